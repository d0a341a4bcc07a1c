"""What a power cut may leave of a filesystem: which of its pending changes have persisted.

Pure. Changes of one thing (a name, an inode, an xattr) persist in their order, all else
independently. See ``crashfs``.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

EXHAUSTIVE_UP_TO = 4096  # states; about twelve independent changes
_SAMPLES = 1024


@dataclass(frozen=True)
class Inode:
    """What persists together: an update of one of these fields rewrites them all."""

    mode: int
    size: int = 0
    mtime_ns: int = 0
    uid: int = 0
    gid: int = 0


@dataclass
class Node:
    inode: Inode
    ctime_ns: int = 0
    data: bytearray = field(default_factory=bytearray)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Node:
        return Node(self.inode, self.ctime_ns, self.data[:], dict(self.xattrs), dict(self.entries))

    def fit(self) -> None:
        """Cut the bytes at the size, or fill them up with zeros."""
        del self.data[self.inode.size :]
        self.data.extend(bytes(self.inode.size - len(self.data)))


@dataclass(frozen=True)
class NameChange:
    node: int
    name: str
    target: int | None

    def apply(self, node: Node) -> None:
        if self.target is None:
            node.entries.pop(self.name, None)
        else:
            node.entries[self.name] = self.target


@dataclass(frozen=True)
class XattrChange:
    node: int
    name: str
    value: bytes | None

    def apply(self, node: Node) -> None:
        if self.value is None:
            node.xattrs.pop(self.name, None)
        else:
            node.xattrs[self.name] = self.value


@dataclass(frozen=True)
class InodeChange:
    node: int
    inode: Inode
    name: str = ""

    def apply(self, node: Node) -> None:
        node.inode = self.inode


@dataclass(frozen=True)
class BytesChange:
    node: int
    at: int
    data: bytes
    name: str = ""

    def apply(self, node: Node) -> None:
        node.data.extend(bytes(max(0, self.at - len(node.data))))
        node.data[self.at : self.at + len(self.data)] = self.data


@dataclass(frozen=True)
class CutChange:
    node: int
    at: int
    name: str = ""

    def apply(self, node: Node) -> None:
        del node.data[self.at :]


Change = NameChange | XattrChange | InodeChange | BytesChange | CutChange
Choice = tuple[int, ...]  # per slot: how many of its changes persisted


@dataclass(frozen=True)
class Pending:
    change: Change
    only_after: int | None = None  # index of the other half of a rename, by `sequence`
    sequence: int = 0
    together: bool = False  # with that half, or not at all: of directories no name is added alone


class Told(Protocol):
    """A state that can be told from others."""

    def identity(self) -> Hashable: ...


State = TypeVar("State", bound=Told)


class CrashStates(Generic[State]):
    """The states a power cut may leave, each once. ``exhaustive`` says whether all are listed;
    else they are every prefix of the changes, all but each one of them, and a fixed sample.
    ``after`` makes the state in which these changes have persisted; ``keeps_renamed`` leaves out
    those in which a rename has taken a name away and not made the other."""

    def __init__(
        self,
        pending: Sequence[Pending],
        after: Callable[[list[Pending]], State],
        keeps_renamed: bool,
    ) -> None:
        self._pending, self._after, self._keeps_renamed = pending, after, keeps_renamed
        self._slots = _slots(pending)
        self.possible = math.prod(len(slot) + 1 for slot in self._slots)
        self.exhaustive = self.possible <= EXHAUSTIVE_UP_TO

    def __iter__(self) -> Iterator[State]:
        seen: set[Hashable] = set()
        for choice in self._choices():
            chosen = [
                pending
                for slot, count in zip(self._slots, choice, strict=True)
                for pending in slot[:count]
            ]
            if self._keeps_renamed and _lost_a_rename(chosen):
                continue
            if _parted(self._pending, chosen):
                continue
            state = self._after(sorted(chosen, key=lambda each: each.sequence))
            if state.identity() not in seen:
                seen.add(state.identity())
                yield state

    def _choices(self) -> Iterator[Choice]:
        if self.exhaustive:
            return itertools.product(*(range(len(slot) + 1) for slot in self._slots))
        return iter(dict.fromkeys([*self._prefixes(), *self._all_but_one(), *self._sample()]))

    def _prefixes(self) -> Iterator[Choice]:
        for cut in [0, *(pending.sequence + 1 for pending in self._pending)]:
            yield tuple(sum(each.sequence < cut for each in slot) for slot in self._slots)

    def _all_but_one(self) -> Iterator[Choice]:
        full = tuple(len(slot) for slot in self._slots)
        for index in range(len(full)):
            yield (*full[:index], 0, *full[index + 1 :])

    def _sample(self) -> Iterator[Choice]:
        chance = random.Random(len(self._slots))
        for _ in range(_SAMPLES):
            yield tuple(chance.randint(0, len(slot)) for slot in self._slots)


def _slots(pending: Sequence[Pending]) -> list[list[Pending]]:
    """Changes of one thing persist in their order; the bytes of two writes need not."""
    slots: dict[Hashable, list[Pending]] = {}
    for each in pending:
        change = each.change
        alone = isinstance(change, BytesChange | CutChange)
        key = each.sequence if alone else (type(change), change.node, change.name)
        slots.setdefault(key, []).append(each)
    return list(slots.values())


def _lost_a_rename(chosen: list[Pending]) -> bool:
    sequences = {each.sequence for each in chosen}
    return any(each.only_after is not None and each.only_after not in sequences for each in chosen)


def _parted(pending: Sequence[Pending], chosen: list[Pending]) -> bool:
    """Whether one half of what persists together is among them, and not the other."""
    open_, here = ({each.sequence for each in which} for which in (pending, chosen))
    return any(
        (each.sequence in here) != (each.only_after in here or each.only_after not in open_)
        for each in pending
        if each.together
    )
