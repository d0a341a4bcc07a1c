"""How little room a node takes: the kernel remembers a million names, the daemon a node for each.

Threading: what changes the numbers or a page holds the lock of the node table.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from .identity import Identity

T = TypeVar("T")
N = TypeVar("N", bound="Numbered")

_DEVICE, _INODE, _ID, _LOOKUPS = 4, 24, 88, 128  # where a node has its numbers
_KIND_MASK, _DEVICE_MASK, _INODE_MASK, _ID_MASK, _BELOW_LOOKUPS = (
    (1 << bits) - 1 for bits in (_DEVICE, _INODE - _DEVICE, _ID - _INODE, _LOOKUPS - _ID, _LOOKUPS)
)
_NAMES_SHARED = 1 << 12
_PAGE_BITS = 6
_PAGE_SIZE = 1 << _PAGE_BITS
_DEVICES: list[int] = []  # those of the nodes, which name them by their place here
_setting = threading.Lock()  # a rare attribute


@functools.lru_cache(_NAMES_SHARED)
def shared(name: str) -> str:
    """One string for a name that many directories have."""
    return name


@functools.cache
def _number_of(device: int) -> int:
    _DEVICES.append(device)
    return len(_DEVICES) - 1


def _packed(ident: Identity) -> int:
    device, inode, kind = ident
    return inode << _INODE | _number_of(device) << _DEVICE | kind >> 12


class Numbered:
    """The numbers of a node in one: from below the type, the device, the inode, the id, and the
    lookups."""

    __slots__ = ("_numbers",)

    def __init__(self, nodeid: int, ident: Identity) -> None:
        self._numbers = nodeid << _ID | _packed(ident)

    @property
    def id(self) -> int:
        return self._numbers >> _ID & _ID_MASK

    @property
    def ident(self) -> Identity:
        numbers = self._numbers
        device = _DEVICES[numbers >> _DEVICE & _DEVICE_MASK]
        return device, numbers >> _INODE & _INODE_MASK, (numbers & _KIND_MASK) << 12

    @ident.setter
    def ident(self, ident: Identity) -> None:
        self._numbers = self._numbers >> _ID << _ID | _packed(ident)

    @property
    def lookups(self) -> int:
        return self._numbers >> _LOOKUPS

    @lookups.setter
    def lookups(self, count: int) -> None:
        self._numbers = count << _LOOKUPS | self._numbers & _BELOW_LOOKUPS

    @property
    def kind(self) -> int:
        return (self._numbers & _KIND_MASK) << 12


class HasRare(Protocol):
    rare: dict[str, Any] | None  # what is not as usual


class Rare(Generic[T]):
    """An attribute that few nodes have: the kernel remembers a million of them, so what is as
    ``usual`` takes no room."""

    def __init__(self, usual: T) -> None:
        self._usual = usual

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, node: HasRare, owner: type) -> T:
        rare = node.rare
        return self._usual if rare is None else rare.get(self._name, self._usual)

    def __set__(self, node: HasRare, value: T) -> None:
        with _setting:
            rare = node.rare or {}
            if value is self._usual:
                rare.pop(self._name, None)
            else:
                rare[self._name] = value
            node.rare = rare or None


class ById(Generic[N]):
    """Nodes by their ids, which count up. A dictionary would take several times as much for each,
    and keep its size when they have gone."""

    def __init__(self) -> None:
        self._pages: dict[int, list[N | None]] = {}
        self._on_page: Counter[int] = Counter()

    def get(self, nodeid: int) -> N | None:
        page = self._pages.get(nodeid >> _PAGE_BITS)
        return page[nodeid & _PAGE_SIZE - 1] if page is not None else None

    def __iter__(self) -> Iterator[N]:
        for page in self._pages.values():
            yield from (node for node in page if node is not None)

    def add(self, node: N) -> None:
        number, place = node.id >> _PAGE_BITS, node.id & _PAGE_SIZE - 1
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = [None] * _PAGE_SIZE
        self._on_page[number] += page[place] is None
        page[place] = node

    def remove(self, node: N) -> None:
        number = node.id >> _PAGE_BITS
        self._pages[number][node.id & _PAGE_SIZE - 1] = None
        self._on_page[number] -= 1
        if not self._on_page[number]:
            del self._pages[number], self._on_page[number]
