"""Errors reach the program (C2), injected through osfs under a real mount.

A failed fsync is final: the kernel reports it once, and the next fsync returns 0 over lost data.
Its faults are armed by a file, so that the same mount shows the control too. Then the fault study
for some of its scenarios: every call in turn.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest

from ckptfs.tools import hooked
from ckptfs.tools.crash import faults_study, faults_trial


@pytest.fixture
def faulty(disk_dir: Path, tmp_path: Path) -> Iterator[tuple[mounts.Served, Path]]:
    """A mount, and the stem of the files that arm its faults."""
    trigger = tmp_path / "trigger"
    program = hooked.program("ckptfs.tools.faults:FailWhile", trigger)
    served = mounts.Served(disk_dir, program=program)
    with mounts.ending(served):
        (served.start_in_foreground().path / "model.pt").write_bytes(b"old" * 1000)
        yield served, trigger


def _save(path: Path) -> int:
    """The errno of the close, 0 for success."""
    file = open(path, "wb", buffering=0)  # noqa: SIM115  its close is what is tested
    file.write(b"new" * 1000)
    try:
        file.close()
    except OSError as error:
        return error.errno or -1
    return 0


def test_c2_a_failed_fsync_reaches_close_and_the_old_version_stays(
    faulty: tuple[mounts.Served, Path],
) -> None:
    served, trigger = faulty
    path, armed = served.path / "model.pt", Path(f"{trigger}.fsync")
    armed.touch()
    assert _save(path) == errno.EIO
    assert path.read_bytes() == b"old" * 1000
    assert [e["path"] for e in served.events("aborted")] == ["model.pt"]
    assert "salvage" in mounts.ckptfs("log", served.path).stdout
    armed.unlink()
    assert _save(path) == 0  # the control: the same save without the fault
    assert path.read_bytes() == b"new" * 1000


def test_c2_a_failed_fsync_of_the_writer_is_final(faulty: tuple[mounts.Served, Path]) -> None:
    served, trigger = faulty
    path, armed = served.path / "model.pt", Path(f"{trigger}.fsync")
    with open(path, "wb", buffering=0) as file:
        file.write(b"new")
        armed.touch()
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(file)
        armed.unlink()
        for again in (lambda: os.fsync(file), file.close):  # the disk below would answer 0 now
            with pytest.raises(OSError, match="Input/output"):
                again()
    assert path.read_bytes() == b"old" * 1000


def test_c2_a_failed_directory_fsync_makes_the_mount_read_only(
    faulty: tuple[mounts.Served, Path],
) -> None:
    served, trigger = faulty
    path, armed = served.path / "model.pt", Path(f"{trigger}.fsync_dir")
    armed.touch()
    assert _save(path) == errno.EIO
    armed.unlink()
    with pytest.raises(OSError) as refused:
        (served.path / "other").write_bytes(b"x")
    assert refused.value.errno == errno.EROFS
    assert path.read_bytes() in (b"old" * 1000, b"new" * 1000)
    done = mounts.ckptfs("status", served.path, "--check")
    assert done.returncode == 2
    assert "read-only" in done.stdout


def test_c2_an_fsync_of_a_directory_is_refused_once_the_mount_is_read_only(
    faulty: tuple[mounts.Served, Path],
) -> None:
    served, trigger = faulty
    armed = Path(f"{trigger}.fsync_dir")
    armed.touch()
    assert _save(served.path / "model.pt") == errno.EIO
    armed.unlink()
    fd = os.open(served.path, os.O_RDONLY)
    with pytest.raises(OSError) as refused:
        os.fsync(fd)
    os.close(fd)
    assert refused.value.errno == errno.EROFS


# --- every call in turn --------------------------------------------------------------------------

MAIN = ("overwrite", "append", "fsync, close")
GROUPS = [
    *((name, "EIO") for name in ("new file", *MAIN, "rename onto", "unlink", "rename, close")),
    *((name, fault) for name in MAIN for fault in ("fsync", "fsync_dir")),
    *(("overwrite", fault) for fault in ("ENOSPC", "EDQUOT")),
    *(("by hand", fault) for fault in ("EINTR", "fsync_dir")),
    *((name, "short") for name in ("append", "reopen, change")),
]


@pytest.mark.parametrize(("scenario", "fault"), GROUPS)
def test_c1_c2_every_call_of_the_daemon_fails_in_turn(
    scenario: str, fault: str, disk_dir: Path, quick_dir: Path
) -> None:
    rows = list(faults_trial.trials(quick_dir, scenario, fault, itertools.count(1)))
    told = [(row["k"], row["failed"], row["wrong"], row["calls"]) for row in rows if row["wrong"]]
    assert told == []
    assert rows[-1]["outcome"] == "nothing failed"
    assert any(row["outcome"] in ("told", "read-only") for row in rows)
    assert len(rows) > (20 if fault.startswith("E") else 1)


def test_c2_what_is_truncated_and_closed_is_committed_or_its_close_fails(
    disk_dir: Path, quick_dir: Path
) -> None:
    """Its commit followed the close, and only the log said why not."""
    rows = list(faults_trial.trials(quick_dir, "truncate", "EIO", itertools.count(1)))
    assert [row for row in rows if row["wrong"]] == []
    outcomes = {row["outcome"] for row in rows}
    assert "told" in outcomes and "untold" not in outcomes


def test_control_a_daemon_that_swallows_errors_is_seen(disk_dir: Path, quick_dir: Path) -> None:
    rows = list(
        faults_trial.trials(quick_dir, "overwrite", "fsync", itertools.count(1), control=True)
    )
    assert {row["failed"] for row in rows if faults_study.lied_to(row)} == {"fsync"}


def test_the_fault_study_is_resumed_and_repeats_single_trials(
    disk_dir: Path, quick_dir: Path
) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ckptfs.tools.crash", "faults", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    out = quick_dir / "out"
    some = ("--out", str(out), "--scenario", "new file", "--fault", "fsync_dir")
    whole = run(*some)
    assert whole.returncode == 0, whole.stderr
    assert (out / "table.md").read_text() in whole.stdout
    lines = (out / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (out / "rows.jsonl").write_bytes(b"".join(lines[:3]) + b'{"torn')
    again = run(*some)
    assert again.stdout == whole.stdout
    assert len((out / "rows.jsonl").read_bytes().splitlines()) == len(lines)
    one = run("--on", str(quick_dir), "--only", "overwrite:EIO:20")
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout)["k"] == 20
    assert run("--only", "overwrite:rot:1").returncode == 2
