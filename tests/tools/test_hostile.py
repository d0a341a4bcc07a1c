"""The load test itself: it measures, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mounts
import pytest

from ckptfs.tools.hostile import Row


def leftovers(folder: Path) -> list[str]:
    """Mounts, loop devices and processes that have to do with the folder."""
    found = Path("/proc/self/mountinfo").read_text().splitlines()
    devices = Path("/sys/block").glob("loop*/loop/backing_file")
    found += [device.read_text() for device in devices if device.exists()]
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.append(Path(f"/proc/{entry}/cmdline").read_text(errors="replace"))
            found.append(os.readlink(f"/proc/{entry}/cwd"))
        except OSError:
            continue
    return [each for each in found if "ckptfs-hostile-" in each and str(folder) in each]


@pytest.mark.kernel_only("it mounts by the command's own choice")
@pytest.mark.parametrize("attack", ["nobody", "stopped,sparse"])
def test_it_measures_and_leaves_nothing(attack: str, tmp_path: Path) -> None:
    if reason := mounts.why_no_mounts():
        pytest.skip(f"cannot mount here: {reason}")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ckptfs.tools.hostile", str(tmp_path)),
            *("--attacks", attack, "--seconds", "0.5", "--target", "1000"),
        ],
        capture_output=True,
        text=True,
        timeout=mounts.TEST_LIMIT_S,
    )
    if "mount:" in done.stderr or "mkfs" in done.stderr:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == attack.split(",")
    assert all(int(row[1]) > 0 and row[-1] == "0" for row in rows)
    assert os.listdir(tmp_path) == []
    assert leftovers(tmp_path) == []


def test_quantiles_are_those_of_the_samples() -> None:
    row = Row("a", [float(number) for number in range(100, 0, -1)])
    assert (row.quantile(0.5), row.quantile(0.99), row.quantile(1)) == (51.0, 100.0, 100.0)
    assert Row("a").quantile(0.99) == 0.0
