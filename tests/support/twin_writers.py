"""Several writers of one file, of the machine of test_same_as_plain.py: second opens by name,
mappings that are kept, text that is added, and writers that are killed."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from twin_draws import (
    OPENS_AGAIN,
    REOPENS,
    TRUNCATES,
    data,
    lines,
    logs,
    offsets,
    picks,
    sizes,
    workers,
)
from twin_machine import SLOTS, Asking, some_open
from twin_model import Description, is_text, may_be_log

_MAPPED_BYTES = 16384
_MAPPED = 4


class Writers(Asking):
    # --- second opens ----------------------------------------------------------------------------

    @precondition(lambda self: 0 < len(self.model.open) < SLOTS)
    @rule(pick=picks, worker=workers, flags=OPENS_AGAIN)
    def open_again(self, pick: int, worker: int, flags: int) -> None:
        """By a name that it has now."""
        description = self._picked(pick)[1]
        if description.is_file:
            for path in self.pair.files().get(description.inode, [])[:1]:
                self._open(worker, path, flags, 0o666)

    @precondition(lambda self: 0 < len(self.model.open) < SLOTS)
    @rule(pick=picks, worker=workers, flags=TRUNCATES)
    def truncate_again(self, pick: int, worker: int, flags: int) -> None:
        self.open_again(pick, worker, flags)

    @precondition(lambda self: 0 < len(self.model.open) < SLOTS)
    @rule(pick=picks, flags=REOPENS)
    def reopen(self, pick: int, flags: int) -> None:
        """By its link below /proc: the file that it has open, whatever the path shows."""
        (worker, slot), source = self._picked(pick)
        if not source.is_file:
            return
        new, writing = self._free_slot(), bool(flags & (os.O_ACCMODE | os.O_TRUNC))
        answers = self.pair.ask(worker, "reopen", slot, new, flags)
        refused = writing and (source.stale or not source.writing) and not answers[0].ok
        if all(answer.ok for answer in answers):
            self._reopened(worker, new, source, flags, writing)
        elif refused and answers[1].ok:
            self._close_one(worker, new, answers)
        question = worker, "reopen", slot, source.path, flags
        self.pair.compare(worker, question, answers, masked=refused)

    def _reopened(
        self, worker: int, new: int, source: Description, flags: int, writing: bool
    ) -> None:
        inode, holders = source.inode, {(worker, new)}
        live = inode not in self.model.flight and not source.stale
        found = Description(inode, source.path, source.at, writing, True, flags, holders)
        found.stale, found.in_place = source.stale, source.in_place or (writing and live)
        self.model.open[worker, new] = found
        if flags & os.O_TRUNC:
            self.model.written(found)

    @precondition(lambda self: len(self.model.open) < SLOTS)
    @rule(worker=workers, path=logs, line=lines, read=st.booleans())
    def append(self, worker: int, path: str, line: bytes, read: bool) -> None:
        """A log, or what looks like one."""
        access = os.O_RDWR if read else os.O_WRONLY
        before = set(self.model.open)
        self._open(worker, path, access | os.O_APPEND | os.O_CREAT, 0o644)
        for at, key in enumerate(self.model.open):
            if key not in before:
                self.by_slot(at, "write", line, writes=True)

    @precondition(some_open)
    @rule(pick=picks)
    def wait_for_text(self, pick: int) -> None:
        """What is added to text shows to everybody without a close."""
        found = {d.inode: d for d in self.model.open.values() if self._grows(d)}
        if not found:
            return
        description = list(found.values())[pick % len(found)]
        for path in self.pair.files().get(description.inode, [])[:1]:
            content = self.pair.content(path)
            if is_text(content):
                self.pair.wait_for(path, content)
                self.model.time_passed()

    def _grows(self, description: Description) -> bool:
        flight = self.model.flight.get(description.inode)
        if flight is None or not description.writing or self.model.masked(description):
            return False
        text = not flight.mixed and (flight.began == b"" or is_text(flight.began))
        return text and flight.appends and may_be_log(description.at)

    # --- mappings --------------------------------------------------------------------------------

    @precondition(lambda self: self.model.open and len(self.model.maps) < _MAPPED)
    @rule(pick=picks, writable=st.booleans())
    def keep_map(self, pick: int, writable: bool) -> None:
        (worker, _), description = self._picked(pick)
        if not description.is_file:
            return
        new = self._free_slot()
        if self.by_slot(pick, "keep_map", new, writable).ok:
            self.model.maps[worker, new] = description
            if writable:
                description.mapped.add((worker, new))
                self.model.touched(description)

    @precondition(lambda self: len(self.model.open) < SLOTS and len(self.model.maps) < _MAPPED)
    @rule(worker=workers, path=st.sampled_from(["g", "w.pt", "f", "d/g"]))
    def map_only(self, worker: int, path: str) -> None:
        """As numpy.memmap does it, maybe beside others: opened, mapped and closed."""
        before = set(self.model.open)
        self._open(worker, path, os.O_RDWR, 0)
        for at, key in list(enumerate(self.model.open)):
            if key not in before:
                self.keep_map(at, True)
                self.close(at)

    def _mapped(self, pick: int) -> tuple[tuple[int, int], Description]:
        return list(self.model.maps.items())[pick % len(self.model.maps)]

    def by_map(self, pick: int, what: str, *rest: Any, writes: bool = False) -> None:
        (worker, slot), description = self._mapped(pick)
        answers = self.pair.ask(worker, what, slot, *rest)
        if writes and any(answer.ok for answer in answers):
            self.model.written(description)
            if self.pair.relayed:
                self.model.late.add(description.inode)
        masked = self.model.masked(description)
        question = worker, what, slot, description.path, *rest
        self.pair.compare(worker, question, answers, masked=masked)

    def _size(self, description: Description) -> int:
        for path in self.pair.files().get(description.inode, []):
            return len(self.pair.content(path))
        return 0

    @precondition(lambda self: bool(self.model.maps))
    @rule(pick=picks, offset=offsets, data=data)
    def store(self, pick: int, offset: int, data: bytes) -> None:
        """Behind the end of the file a store is lost, at once or later."""
        end = min(self._size(self._mapped(pick)[1]), _MAPPED_BYTES)
        if offset < end:
            self.by_map(pick, "store", offset, data[: end - offset], writes=True)

    @precondition(lambda self: bool(self.model.maps))
    @rule(pick=picks, offset=offsets, size=sizes)
    def load(self, pick: int, offset: int, size: int) -> None:
        end = min(self._size(self._mapped(pick)[1]), _MAPPED_BYTES)
        if offset < end:
            self.by_map(pick, "load", offset, min(size, end - offset))

    @precondition(lambda self: bool(self.model.maps))
    @rule(pick=picks)
    def msync(self, pick: int) -> None:
        self.by_map(pick, "msync")

    @precondition(lambda self: bool(self.model.maps))
    @rule(pick=picks)
    def unmap(self, pick: int) -> None:
        (worker, slot), _ = self._mapped(pick)
        self.by_map(pick, "unmap")
        self.model.unmapped(worker, slot)

    # --- the end of a writer ---------------------------------------------------------------------

    @precondition(lambda self: bool(self.model.open or self.model.maps))
    @rule(pick=picks, at=st.integers(0, 3))
    def kill(self, pick: int, at: int) -> None:
        """One in four of what is drawn: examples would have little open else."""
        if at:
            return
        held = list(self.model.open or self.model.maps)
        worker = held[pick % len(held)][0]
        contents = self.pair.contents()
        self.pair.replace(worker)
        self.pair.settle()
        expected: dict[int, set[bytes]] = {}
        for each in self.model.with_children(worker):
            expected.update(self.model.killed(each, contents))
        files = self.pair.files()
        for inode, wanted in expected.items():
            if not self.model.of(inode):
                self.pair.expect(files.get(inode, []), wanted)
