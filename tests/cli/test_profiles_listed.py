"""``ckptfs profiles``: what is known, and what is wrong in a file of the user's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT_S = 60


def listed(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ckptfs", "profiles", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)


def test_all_are_listed_with_their_source_directory_and_marker() -> None:
    done = listed()
    assert done.returncode == 0 and not done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["profile", "read", "in", "directory", "complete", "by"]
    (line,) = (line for line in lines if line.startswith("hf-trainer "))
    assert line.split() == [
        *("hf-trainer", "transformers", "5.24.0", "checkpoint-{step}"),
        *("inside", "trainer_state.json"),
    ]
    assert len({line.split()[0] for line in lines}) == len(lines) >= 20


def test_those_of_the_user_go_first(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("ours: {directory: 'run_{step}'}")
    done = listed("--profiles", tmp_path / "ours.yaml")
    assert done.stdout.splitlines()[1].split()[:3] == ["ours", "-", "run_{step}"]


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("ours: {directory: run}")
    done = listed("--profiles", tmp_path / "ours.yaml")
    assert done.returncode == 16 and not done.stdout
    assert done.stderr == (
        f"ckptfs: {tmp_path}/ours.yaml: ours: directory: 'run' has no {{step}}: "
        "sets of a series differ in a number\n"
    )
