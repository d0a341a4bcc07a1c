"""The stress of appends under locks: nothing is lost, and without locks it sees what is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mounts
import pytest

from ckptfs.tools.locks import KINDS, Round

pytestmark = pytest.mark.kernel_only("it mounts by the command's own choice")


def stress(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    if reason := mounts.why_no_mounts():
        pytest.skip(f"cannot mount here: {reason}")
    command = [sys.executable, "-m", "ckptfs.tools.locks", str(directory), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=mounts.TEST_LIMIT_S)


def test_nothing_that_is_written_under_a_lock_is_lost(disk_dir: Path) -> None:
    done = stress(disk_dir, "--rounds", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 12 rounds, 0 with losses" in done.stdout.splitlines()[-1]
    assert os.listdir(disk_dir) == []


def test_control_without_locks_losses_are_seen(disk_dir: Path) -> None:
    done = stress(disk_dir, "--rounds", "6", "--control")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "through the mount" in done.stdout and "unmounted" in done.stdout
    assert done.stdout.endswith("losses, as expected\n")
    assert os.listdir(disk_dir) == []


def test_few_rounds_draw_every_kind() -> None:
    drawn = [Round.drawn(1, number) for number in range(12)]
    assert {kind for this in drawn for kind in this[1:]} == {
        kind for kinds in KINDS for kind in kinds
    }


@pytest.mark.parametrize("file", ["old", "new"])
def test_what_is_lost_is_counted(file: str) -> None:
    lines = Round(0, "flock", "kept open", "O_APPEND", file, ".log")
    whole = lines.before + b"".join(f"turn {turn}".ljust(31).encode() + b"\n" for turn in range(3))
    assert lines.lost(whole, 3) == 0
    assert lines.lost(whole[:-32], 3) == lines.lost(whole[:-1], 3) == 1
    assert lines.lost(whole + whole[-32:], 3) == 1  # written twice
    assert lines.lost(b"", 3) == 3
    counter = lines._replace(way="counter")
    three = b"3".rjust(20) + counter.before[20:]
    assert (counter.lost(three, 3), counter.lost(three, 5), counter.lost(three, 2)) == (0, 2, 1)
    assert (counter.lost(bytes(20), 3), counter.lost(b"", 3), counter.lost(three + b"x", 3)) == (
        3,
        3,
        1,
    )
