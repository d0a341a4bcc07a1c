"""The benchmark counts rightly, works end to end on tiny sizes, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mounts
import pytest

from ckptfs.tools.bench import ROWS
from ckptfs.tools.rig import alternate, mounted_device
from ckptfs.tools.stats import Estimate, estimate, ratio, size_text


def test_the_median_ratio_is_taken_round_by_round() -> None:
    # A round that is ten times as slow for both does not move it.
    assert ratio([2.0, 20.0, 2.0, 4.0, 2.0], [1.0, 10.0, 1.0, 1.0, 1.0]).median == 2.0


def test_the_interval_holds_the_true_median_and_narrows_with_more_rounds() -> None:
    draw = random.Random(5)
    few = estimate([draw.gauss(10, 1) for _ in range(10)])
    many = estimate([draw.gauss(10, 1) for _ in range(1000)])
    for found in (few, many):
        assert found.low <= found.median <= found.high
        assert found.low <= 10 <= found.high
    assert many.high - many.low < few.high - few.low


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(6)
    trials = [estimate([draw.expovariate(1) for _ in range(20)]) for _ in range(60)]
    covered = sum(found.low <= 0.6931 <= found.high for found in trials)
    assert 0.85 <= covered / len(trials) <= 1.0


def test_the_same_values_give_the_same_interval() -> None:
    assert estimate([1.0, 2.0, 5.0]) == estimate([1.0, 2.0, 5.0])
    assert estimate([3.0]) == Estimate(3.0, 3.0, 3.0)
    with pytest.raises(ValueError):
        estimate([])
    with pytest.raises(ValueError):
        ratio([1.0], [1.0, 2.0])


def test_subjects_take_turns_and_the_warm_up_is_not_counted(tmp_path: Path) -> None:
    order: list[str] = []

    def subject(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    samples = alternate(
        {"a": lambda: subject("a", 1.0), "b": lambda: subject("b", 2.0)}, 2, tmp_path
    )
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert samples == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_sizes_are_written() -> None:
    assert [size_text(n) for n in (10, 1 << 20, 3 << 29)] == ["10 bytes", "1 MiB", "1.5 GiB"]


# --- end to end ----------------------------------------------------------------------------------


def bench(directory: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ckptfs.tools.bench", str(directory), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_nothing_left(directory: Path) -> None:
    assert list(directory.iterdir()) == []
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()


def test_every_row_works_and_is_cleaned_up(disk_dir: Path) -> None:
    rows = set(ROWS)
    if importlib.util.find_spec("torch") is None:
        rows -= {"1", "2", "3", "paper", "cost"}
    report, picture = disk_dir.parent / "report.json", disk_dir.parent / "cost"
    options = ("--json", str(report), "--plot", str(picture), "--rows", ",".join(rows))
    with bench(disk_dir, "--quick", "--control", *options) as process:
        told, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    if "cost" in rows:
        assert "| ckptfs, default | power cuts |" in told
        assert picture.with_suffix(".svg").exists() or "matplotlib" in errors
    found = json.loads(report.read_text())["rows"]
    assert {row["row"] for row in found} == rows
    for row in found:
        assert row["verdict"] in ("PASS", "MISS", "")
        assert row["unit"] == "%" or row["value"]["median"] > 0
    assert any("control" in row["what"] for row in found)
    assert_nothing_left(disk_dir)


def test_it_cleans_up_when_it_is_interrupted(disk_dir: Path) -> None:
    with bench(disk_dir, "--rows", "7", "--rounds", "100000") as process:
        deadline = time.monotonic() + mounts.CHILD_LIMIT_S
        while not any(mounted_device(path / "served") for path in disk_dir.iterdir()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode != 0
    assert_nothing_left(disk_dir)


def test_an_unknown_row_is_refused(tmp_path: Path) -> None:
    with bench(tmp_path, "--rows", "12") as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "no row 12" in errors
