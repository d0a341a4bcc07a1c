"""What is known to be good takes little memory, however long and on whatever it is served."""

from __future__ import annotations

import tracemalloc

import pytest

from ckptfs.checking.examine import Stamp
from ckptfs.checking.remembered import Remembered

CREATED_NS = 1_700_000_000 * 10**9


def seen(inode: int, *, size: int = 1, mtime_ns: int = CREATED_NS, device: int = 7) -> Stamp:
    return (device, inode), (size, mtime_ns, CREATED_NS)


def test_one_state_of_an_inode_is_known() -> None:
    known = Remembered()
    known.add(seen(12))
    assert seen(12) in known
    assert seen(13) not in known
    assert seen(12, device=8) not in known
    assert seen(12, size=2) not in known
    known.add(seen(12, size=2))
    assert seen(12, size=2) in known
    assert seen(12) not in known


@pytest.mark.parametrize("years", [-60, 300, 480])  # ext4 and XFS go from 1901 to 2446 and 2486
def test_times_far_from_now_are_told_apart(years: int) -> None:
    known = Remembered()
    mtime_ns = years * 365 * 86_400 * 10**9
    known.add(seen(12, mtime_ns=mtime_ns))
    assert seen(12, mtime_ns=mtime_ns) in known
    assert seen(12, mtime_ns=mtime_ns + 1) not in known


def test_what_only_looks_like_an_entry_across_two_is_none() -> None:
    """A user chooses size and mtime, so that these may read as an inode."""
    known = Remembered()
    known.add(((7, 7), (7, 100, 200)))
    known.add(((9, 7), (1, 2, 3)))
    assert known.packed().count(b"\x07" + b"\0" * 7) == 4
    assert ((7, 7), (100, 200, 9)) not in known
    assert ((9, 7), (1, 2, 3)) in known


@pytest.mark.parametrize("step", [1, 2, 64, 256, 1 << 21, 1 << 32])
def test_what_is_in_use_stays_known_however_inodes_are_numbered(step: int) -> None:
    known = Remembered()
    stamps = [seen(number * step) for number in range(20_000)]
    for stamp in stamps:
        known.add(stamp)
    assert sum(stamp in known for stamp in stamps) > 19_900


def test_memory_is_bounded() -> None:
    """A hundred thousand in 5 MB, and half a million in little more."""
    tracemalloc.start()
    try:
        known = Remembered()
        for inode in range(100_000):
            known.add(seen(inode))
        filled, _ = tracemalloc.get_traced_memory()
        for inode in range(100_000, 500_000):
            known.add(seen(inode))
        full, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert filled < 7 << 20
    assert full < 8 << 20
    assert len(known.packed()) == 131_072 * 40


def test_the_program_that_goes_on_knows_it() -> None:
    known, next_one = Remembered(), Remembered()
    for inode in range(1000):
        known.add(seen(inode))
    next_one.update(known.packed())
    assert all(seen(inode) in next_one for inode in range(1000))
