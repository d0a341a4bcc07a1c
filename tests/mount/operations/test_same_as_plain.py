"""The mount behaves as a plain directory of the same filesystem does, operation by operation.

Random operations run on both; results, errors, times that move, and the trees must be the same,
but for the differences that docs/design.md lists. ``CKPTFS_OPERATIONS=100000`` makes a long run,
``CKPTFS_RELAYED=1`` one without passthrough.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mounts
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from twin import Different, Twins, twins
from twin_descriptors import Descriptors
from twin_paths import Paths
from twin_writers import Writers

_STEPS = 50
_OPERATIONS = int(os.environ.get("CKPTFS_OPERATIONS", "3500"))


class SamePlain(Descriptors, Paths, Writers):
    @rule(worker=st.sampled_from([0, 1]))
    def compare_trees(self, worker: int) -> None:
        self.pair.compare_trees(worker)

    @invariant()
    def make_equal(self) -> None:
        """What has parted is compared again once nobody has it open. What a killed writer has
        taken along is so at once: its other writers go on with a file that has no name."""
        if not self.model.split or self.pair.over:
            return
        files = self.pair.files()
        for inode in list(self.model.split):
            unused = not self.model.of(inode)
            if inode in files and (unused or inode in self.model.lost):
                self.pair.make_equal(files[inode])
            if unused:
                self.model.forget(inode)

    def teardown(self) -> None:
        if self.pair.over:
            return
        while self.model.open:
            self.close(0)
        while self.model.maps:
            self.unmap(0)
        self.make_equal()
        self.pair.compare_trees(1)


# --- tests ---------------------------------------------------------------------------------------


@pytest.fixture
def pair(disk_dir: Path) -> Iterator[Twins]:
    plain = disk_dir.parent / "plain"
    plain.mkdir()
    relayed = "CKPTFS_RELAYED" in os.environ
    options = ["--no-passthrough"] if relayed else []
    with (
        mounts.served(disk_dir, *options, limit_s=24 * 3600) as served,
        twins(disk_dir, plain, served.abort, relayed) as pair,
    ):
        yield pair


def test_the_mount_does_what_the_plain_directory_does(pair: Twins) -> None:
    SamePlain.pair = pair
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        SamePlain,
        settings=settings(
            max_examples=max(1, _OPERATIONS * 11 // 10 // _STEPS),  # some draws say nothing
            stateful_step_count=_STEPS,
            phases=(Phase.generate, Phase.shrink),
            deadline=None,
            database=None,
            derandomize="CKPTFS_OPERATIONS" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{pair.operations} operations, {pair.succeeded} of them succeeded")
    assert pair.operations > 0.75 * _OPERATIONS, "hypothesis has given up early"
    assert pair.succeeded > 0.3 * pair.operations


class _ForgetsModes(SamePlain):
    """A mount whose chmod does nothing would look like this."""

    def chmod(self, worker: int, path: str, mode: int) -> None:
        worker_there = self.pair.sides[1][worker]
        worker_there.send("chmod", path, mode)
        assert worker_there.answer().ok


@pytest.mark.parametrize("path", ["f", "d", "h"])
def test_control_a_dropped_chmod_is_seen(pair: Twins, path: str) -> None:
    _ForgetsModes.pair = pair
    machine = _ForgetsModes()
    machine.look(0, path, True)
    machine.chmod(0, path, 0o640)
    with pytest.raises(Different):
        machine.look(0, path, True)
    with pytest.raises(Different):
        machine.compare_trees(1)


def _plant(pair: Twins, *orders: tuple[Any, ...]) -> None:
    """Done on the mount alone, by somebody else."""
    for order in orders:
        pair.sides[0][1].send(*order)
        assert pair.sides[0][1].answer().ok


@pytest.mark.parametrize("killed", [False, True], ids=["control", "planted"])
def test_control_a_killed_writer_that_publishes_is_seen(pair: Twins, killed: bool) -> None:
    SamePlain.pair = pair
    machine = SamePlain()
    machine.open_to_write(0, "g", os.O_TRUNC, 0o644)
    machine.write(0, b"\0new")
    replace = pair.replace

    def publishing(worker: int) -> None:
        replace(worker)
        if killed:
            _plant(pair, ("open", 0, "g", os.O_WRONLY, 0), ("pwrite", 0, b"\0new", 0), ("close", 0))

    pair.replace = publishing  # type: ignore[method-assign]
    with pytest.raises(Different) if killed else contextlib.nullcontext():
        machine.kill(0, 0)


@pytest.mark.parametrize("lost", [False, True], ids=["control", "planted"])
def test_control_a_lost_store_through_a_mapping_is_seen(pair: Twins, lost: bool) -> None:
    SamePlain.pair = pair
    machine = SamePlain()
    machine.map_only(0, "g")
    machine.map_only(1, "g")
    machine.store(0, 1, b"n")
    if lost:
        _plant(pair, ("open", 0, "g", os.O_RDWR, 0), ("pwrite", 0, b"o", 1), ("close", 0))
    with pytest.raises(Different) if lost else contextlib.nullcontext():
        machine.load(1, 0, 7)
