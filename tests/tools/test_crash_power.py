"""C1, C2, C3, C5, C6 through power cuts at block level: a sample of what
``python -m ckptfs.tools.crash power`` looks at, on ext4, XFS and btrfs; and its controls."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from ckptfs.tools.crash import power, power_plot, power_report
from ckptfs.tools.crash.device import KINDS, why_not
from ckptfs.tools.crash.record import PLAIN, Setting
from ckptfs.tools.crash.units import ATOMIC, unit
from ckptfs.tools.study import Rows

STATES = 60  # of one recording
ON = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    reason = why_not(request.param)
    if reason:
        pytest.skip(reason)
    return str(request.param)


def looked_at(setting: Setting, keep: Path, states: int = STATES) -> dict[str, Any]:
    return unit(setting, ON, states, str(keep))


@pytest.mark.parametrize("workload", ["numbered", "append"])
def test_C1_C2_C3_C5_C6_hold_after_power_cuts(kind: str, workload: str, tmp_path: Path) -> None:
    cuts: Counter[str] = Counter()
    for mode in ATOMIC:
        row = looked_at(Setting(kind, mode, workload), tmp_path)
        assert row["violations"] == {}, row["wrong"]
        cuts.update(row["cuts"])
    assert sum(cuts.values()) >= 100
    assert cuts["reordered"] + cuts["torn"] >= 0.3 * sum(cuts.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "broken", ["fsync left out", "directory fsync left out", "rename before fsync"]
)
def test_control_a_broken_commit_is_caught(kind: str, broken: str, tmp_path: Path) -> None:
    row = looked_at(Setting(kind, ATOMIC[0], "numbered", broken=broken), tmp_path, 3 * STATES)
    assert sum(row["worst"].values()) > 0


@pytest.mark.parametrize("mode", [PLAIN, "unsafe"])
def test_control_without_transactions_checkpoints_are_lost(
    kind: str, mode: str, tmp_path: Path
) -> None:
    states = 2 * STATES  # of 60 on btrfs it is 26, give or take 5: that came down to 15 once
    row = looked_at(Setting(kind, mode, "overwrite"), tmp_path, states)
    assert sum(row["worst"].values()) > states / 4
    assert {"gone", "empty", "zero-filled"} & set(row["violations"])


@pytest.mark.parametrize("name", ["ext4", "btrfs"])
def test_control_without_barriers_only_states_out_of_order_are_wrong(
    name: str, tmp_path: Path
) -> None:
    if why_not(name):
        pytest.skip(why_not(name))
    setting = Setting(name, ATOMIC[0], "numbered", barriers=False)
    row = looked_at(setting, tmp_path, 2 * STATES)
    assert sum(row["worst"].values()) > 0
    states = (tmp_path / setting.name / "states").read_text().splitlines()
    assert not [line for line in states if line.startswith(("prefix", "flush")) and "," not in line]


def test_a_violating_state_is_kept_and_can_be_looked_at_again(tmp_path: Path) -> None:
    if why_not("ext4"):
        pytest.skip(why_not("ext4"))
    setting = Setting("ext4", PLAIN, "overwrite")
    looked_at(setting, tmp_path, 30)
    lines = (tmp_path / setting.name / "states").read_text().splitlines()
    state, _, wrong = lines[0].partition("  ")
    assert wrong
    assert not power.replay(tmp_path / setting.name, [state])


def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    if why_not("ext4"):
        pytest.skip(why_not("ext4"))
    plan = power.Plan(("ext4",), 40, 1, 20, ("small",), controls=False)
    rows = Rows(tmp_path / "rows.jsonl", {"what": "power"})
    power.study(rows, plan, ON, tmp_path / "keep", 1)
    done = len(rows.of("unit"))
    assert power_report.states_of(rows.rows, "ext4") >= 40
    again = Rows(tmp_path / "rows.jsonl", {"what": "power"})
    power.study(again, plan, ON, tmp_path / "keep", 1)
    assert len(again.of("unit")) == done
    assert "| ext4 |" in power_report.table(again.rows)
    assert power_report.shortcomings(again.rows, ["ext4"], 40, controls=False) == []
    assert power_report.shortcomings(again.rows, ["ext4"], 41_000, controls=False)
    if power_plot.plot(again.rows, tmp_path / "plot"):
        assert (tmp_path / "plot.svg").stat().st_size > 1000
