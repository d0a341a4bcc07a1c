"""C5 beside a mapping: a store to a page that is dirty already moves no time, so it must not slip
in between the digest and the fsync. One store ahead of each call of a commit, in turn."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import examine, store_on

from ckptfs.checking.examine import Condition
from ckptfs.disk.real import OsFs
from ckptfs.modes import Outside
from ckptfs.tools.faults import Before, Call, Ignoring
from ckptfs.versions import seal

_SIZES = [3600, seal.DIGESTED_TWICE_BYTES + 3600]


class _Stores:
    """Changes a byte through a mapping, once, ahead of call number ``at`` from ``start`` on."""

    def __init__(self, at: int) -> None:
        self.at, self.calls, self.ahead_of = at, 0, ""
        self._mapping: mmap.mmap | None = None

    def start(self, fd: int, size: int) -> None:
        self._mapping = mmap.mmap(fd, size)
        self._place = size // 2
        self._mapping[self._place] = 1  # only the first store to a page moves the time

    def __call__(self, call: Call) -> None:
        if self._mapping is None:
            return
        if self.calls == self.at:
            self.ahead_of = call.method
            self._mapping[self._place] = 2
        self.calls += 1

    def stop(self) -> None:
        assert self._mapping is not None
        self._mapping.close()
        self._mapping = None


def _rots(directory: Path, size: int, wrap: Callable[[Any], Any] = lambda fs: fs) -> list[str]:
    """The calls ahead of which a store made the committed version look damaged."""
    found = []
    for at in itertools.count():
        stores = _Stores(at)
        store = store_on(directory, wrap(Before(OsFs(), stores).fs))
        staged = store.saves.stage("f", store.root, "f", exists=False, truncate=True)
        store.fs.write(staged.fd, bytes(size), 0)
        stores.start(staged.fd, size)
        store.saves.commit(staged, store.root, "f")
        looked_at = examine(
            store, "f", outside=Outside.ACCEPT
        )  # whether its time tells it from rot
        if looked_at.condition not in (Condition.OK, Condition.MODIFIED):
            found.append(stores.ahead_of)
        stores.stop()
        store.fs.close(staged.fd)
        store.unlink("f")
        store.close()
        if stores.calls <= at:
            break
    return found


@pytest.mark.parametrize("size", _SIZES)
def test_C5_no_store_slips_in_beside_the_digest(ext4_dir: Path, size: int) -> None:
    assert _rots(ext4_dir, size) == []


@pytest.mark.parametrize("size", _SIZES)
def test_control_unless_the_pages_stay_dirty(
    ext4_dir: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "DIGESTED_TWICE_BYTES", -1)
    left_out = {"clean", "start_writeback"}
    assert _rots(ext4_dir, size, lambda fs: Ignoring(fs, lambda c: c.method in left_out).fs)
