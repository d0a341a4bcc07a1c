"""What a crash left, against what was promised and what the writer was told. Pure.

A file whose close() returned 0 is there (C2); one that was never closed is not (C6); one in whose
close the crash fell is either, but whole (C1); and nothing is there without what came before (C3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...harness.study import Row
from ..damage import damage
from .draw import Phase
from .saves import Act, Files, Op

OLD, NEW, STRAY = "old", "new", "stray file"


@dataclass(frozen=True)
class Violation:
    promise: str
    found: str
    path: str = ""
    detail: str = ""

    def row(self) -> Row:
        return {key: value for key, value in vars(self).items() if value}


@dataclass(frozen=True)
class Progress:
    """How far a save had come, as its writer was told."""

    op: int
    phase: Phase
    written: int = 0

    def done(self, number: int) -> bool:
        return number < self.op or (number == self.op and self.phase is Phase.CLOSED)

    def maybe(self, number: int) -> bool:
        """Whether the crash fell into what would have made it visible."""
        return number == self.op and Phase.IN_CALL <= self.phase < Phase.CLOSED


def state(found: bytes | None, old: bytes | None, new: bytes | None) -> str:
    """One word for what stands at a path. ``None``: no file."""
    for content, word in ((new, NEW), (old, OLD)):
        if found == content:
            return word
    return damage(found, [whole for whole in (new, old) if whole is not None])


def judge(before: Files, ops: Sequence[Op], told: Progress, found: Files) -> list[Violation]:
    """``before``: the files ahead of the save; ``found``: those after the crash."""
    states = [
        NEW if op.act is Act.FOLDER else state(found.get(op.name), before.get(op.name), op.content)
        for op in ops
    ]
    return [
        *_wrong(before, ops, told, states),
        *_out_of_order(before, ops, told, states),
        *_others(before, ops, found),
    ]


def _wrong(
    before: Files, ops: Sequence[Op], told: Progress, states: Sequence[str]
) -> Iterable[Violation]:
    for number, (op, seen) in enumerate(zip(ops, states, strict=True)):
        if op.act is Act.FOLDER or _same(before, op):
            continue
        if seen not in (OLD, NEW):
            yield Violation("C1", seen, op.name)
        elif told.done(number) and seen != NEW:
            yield Violation("C2", seen, op.name)
        elif seen == NEW and not told.done(number) and not told.maybe(number):
            yield Violation("C6", seen, op.name)


def _same(before: Files, op: Op) -> bool:
    return before.get(op.name) == op.content


def _out_of_order(
    before: Files, ops: Sequence[Op], told: Progress, states: Sequence[str]
) -> Iterable[Violation]:
    missing = ""
    for op, seen in zip(ops, states, strict=True):
        if op.act is Act.FOLDER or _same(before, op):
            continue
        if seen != NEW:
            missing = missing or op.name
        elif missing:
            yield Violation("C3", seen, op.name, f"without {missing}")


def _others(before: Files, ops: Sequence[Op], found: Files) -> Iterable[Violation]:
    touched = {op.name for op in ops}
    for name in sorted((before.keys() | found.keys()) - touched):
        if name not in before:
            yield Violation("C6", STRAY, name)
        elif found.get(name) != before[name]:
            yield Violation("C1", state(found.get(name), before[name], None), name)


def in_salvage(op: Op, told: Progress, kept: Iterable[tuple[str, bytes]]) -> str | None:
    """The path that salvage knows what was written of the file under, which may be empty; None
    where it is not there."""
    assert op.content is not None
    wanted = op.content[op.start :]
    for path, content in kept:
        written = content[op.start :]
        if len(written) >= told.written and wanted.startswith(written):
            return path
    return None


def needs_salvage(before: Files, ops: Sequence[Op], told: Progress, found: Files) -> Op | None:
    """The file whose bytes belong in salvage, if any."""
    op = ops[told.op]
    begun = told.written > 0 and op.act.told and told.phase < Phase.CLOSED
    old = found.get(op.name) == before.get(op.name) != op.content
    return op if begun and old else None
