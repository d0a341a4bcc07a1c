"""What a list of a directory holds that was made while files in it were committed.

btrfs gives a name that is replaced another place in its directory, behind all others; a list that
is read meanwhile misses it, or has it twice. Here a directory does so at the worst moment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from harness import NEW, OLD, store_on

from ckptfs.mount.operations.base import New, Slow
from ckptfs.mount.operations.whole import Operations
from ckptfs.mount.view.identity import ROOT_ID
from ckptfs.mount.view.listing import Listing, new_key, parts
from ckptfs.mount.view.model import Caller, Handle
from ckptfs.mount.writers import closing

_ROOM = 512
_NAMES = [f"name{number}" for number in range(100)]
_CALLER = Caller(os.getuid(), os.getgid(), os.getpid())


@pytest.fixture
def operations(quick_dir: Path) -> Iterator[Operations]:
    for name in _NAMES:
        (quick_dir / name).write_bytes(OLD)
    operations = Operations(store_on(quick_dir), dict)
    yield operations
    closing.stop(operations.versions)
    operations.store.close()


def _now(result: Any) -> Any:
    return result.run() if isinstance(result, Slow) else result


def _create(operations: Operations, name: str) -> Handle:
    new = New(_CALLER, 0o644, 0)
    _, handle = operations.create(ROOT_ID, name, os.O_WRONLY | os.O_CREAT, new)
    operations.write(handle.id, memoryview(NEW), 0)
    return handle


def _overwrite(operations: Operations, name: str) -> Handle:
    for _ in range(2):
        node = operations.lookup(ROOT_ID, name, _CALLER).node
        with contextlib.suppress(OSError):  # look again
            return _now(operations.open(node.id, os.O_WRONLY | os.O_TRUNC, _CALLER))
    raise AssertionError("sent back twice")


def _close(operations: Operations, handle: Handle) -> None:
    for work in (operations.flush(handle.id, _CALLER), operations.release(handle.id)):
        if work is not None:
            work.run()


def _listed(operations: Operations, handle: Handle | None = None, position: int = 0) -> list[str]:
    handle = handle or operations.opendir(ROOT_ID)
    names = []
    while entries := _now(operations.readdir(handle.id, position, _ROOM)):
        names += [parts(entry)[0] for entry in entries]
        position = parts(entries[-1])[3]
    return names


def _expect(names: list[str], *more: str) -> None:
    assert sorted(names) == sorted([".", "..", *_NAMES, *more])


@pytest.fixture
def while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The next list of a directory is read past ``change``, and gets a name so many times."""
    scandir = os.scandir

    def arrange(change: Callable[[], None], name: str, times: int) -> None:
        @contextlib.contextmanager
        def reading(fd: int) -> Iterator[list[os.DirEntry[str]]]:
            monkeypatch.setattr(os, "scandir", scandir)
            with scandir(fd) as entries:
                found = list(entries)
            change()
            moved = [entry for entry in found if entry.name == name]
            yield [entry for entry in found if entry.name != name] + moved * times

        monkeypatch.setattr(os, "scandir", reading)

    return arrange


@pytest.mark.parametrize("times", [0, 2])
@pytest.mark.parametrize("opened_before", [True, False])
def test_a_name_that_is_replaced_meanwhile(
    operations: Operations,
    while_it_is_read: Callable[..., None],
    opened_before: bool,
    times: int,
) -> None:
    opened = _overwrite(operations, _NAMES[7]) if opened_before else None

    def replace() -> None:
        _close(operations, opened or _overwrite(operations, _NAMES[7]))

    while_it_is_read(replace, _NAMES[7], times)
    _expect(_listed(operations))
    _expect(_listed(operations))


def test_a_new_name_that_is_committed_meanwhile(
    operations: Operations, while_it_is_read: Callable[..., None]
) -> None:
    """It was not on the disk when it was passed there, and is not staged any more afterwards."""
    new = _create(operations, "new")
    while_it_is_read(lambda: _close(operations, new), "new", 0)
    _expect(_listed(operations), "new")


def test_a_name_that_is_renamed_over_meanwhile(
    operations: Operations, while_it_is_read: Callable[..., None]
) -> None:
    _close(operations, _create(operations, "new"))
    rename = operations.rename(ROOT_ID, "new", ROOT_ID, _NAMES[7], 0, _CALLER)
    while_it_is_read(lambda: _now(rename), _NAMES[7], 0)
    assert set(_listed(operations)) == {".", "..", *_NAMES, "new"}
    _expect(_listed(operations))


def test_the_list_is_kept_no_longer_than_it_is_read(operations: Operations) -> None:
    handle = operations.opendir(ROOT_ID)
    assert handle.listing is None
    _now(operations.readdir(handle.id, 0, _ROOM))
    assert handle.listing is not None
    _listed(operations, handle)
    assert handle.listing is None


def test_a_handle_that_may_have_begun_anew_unseen_gets_a_new_list(operations: Operations) -> None:
    """The kernel lists from its own cache again, and drops that again."""
    handle = operations.opendir(ROOT_ID)
    assert handle.cached
    for _ in range(2):
        position = parts(_now(operations.readdir(handle.id, 2, _ROOM))[-1])[3]
        _now(operations.readdir(handle.id, position, _ROOM))
    _close(operations, _create(operations, "new"))
    assert sorted(_listed(operations, handle, 2)) == sorted([*_NAMES, "new"])


def test_positions_are_those_of_the_names() -> None:
    def read(names: list[str], position: int, room: int) -> list[tuple[str, int, int, int]]:
        listing = Listing(b"k" * 16)
        listing.add((name, 2**40, 0o100000) for name in names)
        found = []
        while entries := listing.read(position, room):
            found += [parts(entry) for entry in entries]
            position = found[-1][3]
        return found

    names = [".", "..", "\udcff", "n" * 255, *_NAMES]
    found = read(names, 0, 4096)
    assert [each[0] for each in found[:2]] == [".", ".."]
    assert {each[0] for each in found} == set(names) and len(found) == len(names)
    assert {each[1:3] for each in found} == {(2**40, 0o100000)}
    assert all(0 < each[3] < 2**63 for each in found)
    assert read(names[::-1], 0, 300) == found
    for at, (name, _, _, position) in enumerate(found):
        fewer = [each for each in names if each != name]
        assert read(fewer, position, 300) == found[at + 1 :]


def _read(listing: Listing, room: int) -> list[str]:
    names: list[str] = []
    position = 0
    while entries := listing.read(position, room):
        names += [parts(entry)[0] for entry in entries]
        position = parts(entries[-1])[3]
    return names


def test_positions_cannot_be_told_without_the_key() -> None:
    """Else anybody could make a name that stands where another one does."""

    def position(key: bytes) -> int:
        listing = Listing(key)
        listing.add([("model.pt", 1, 0o100000)])
        return parts(listing.read(0, 100)[0])[3]

    assert len({position(key) for key in (b"k" * 16, b"l" * 16, new_key(), new_key())}) == 4


@pytest.mark.parametrize("room", [80, 100, 150, 10_000])
def test_names_of_one_position_are_all_listed(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes after them, and where the reader's room ends."""
    monkeypatch.setattr(
        "ckptfs.mount.view.listing.blake2b", lambda raw, **_: blake2b(raw[16:18], digest_size=8)
    )
    names = ["aa1", "aa2", "bb1", "bb2", "cc1", "cc2", "dd1"]
    for gone in (None, *names):
        listing = Listing(new_key())
        listing.add((name, number, 0o100000) for number, name in enumerate(names))
        if gone:
            listing.discard(gone)
        assert sorted(_read(listing, room)) == sorted(set(names) - {gone})
