"""The corruption study damages what it says, is repeatable, and sees what gets through."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mounts
import pytest

from ckptfs.errors import CannotServe
from ckptfs.tools import corrupt, corrupt_plot, corrupt_quiet, corrupt_report
from ckptfs.tools.corrupt_batch import _pair, shortcomings
from ckptfs.tools.corrupt_content import build, shapes
from ckptfs.tools.corrupt_damage import (
    Undamageable,
    damage_bytes,
    replace_content,
    spoil,
)
from ckptfs.tools.corrupt_draw import FORMATS, OF_BYTES, OUTSIDE, PAGE_BYTES, Kind, Trial, trial
from ckptfs.tools.corrupt_worker import LOADERS, Loaders, noticed
from ckptfs.tools.study import Rows

SMALL = 64 << 10
TRIALS = 5 * len(Kind)
SEED = 3
# What has to hold as soon as bytes rot under an intact record of the same size.
ROT = tuple(kind for kind in Kind if kind.changes_bytes and kind not in {Kind.BOTH, *OUTSIDE})


# --- draws ---------------------------------------------------------------------------------------


def test_a_trial_is_always_the_same_and_no_other_one() -> None:
    assert trial(1, 7, SMALL) == trial(1, 7, SMALL)
    drawn = {
        (trial(seed, n, SMALL).kind, trial(seed, n, SMALL).size_bytes)
        for seed in (1, 2)
        for n in range(30)
    }
    assert len(drawn) > 50


def test_kinds_take_turns_and_sizes_stay_within_bounds() -> None:
    trials = [trial(SEED, number, SMALL) for number in range(60 * len(Kind))]
    for start in range(0, len(trials), len(Kind)):
        assert {drawn.kind for drawn in trials[start : start + len(Kind)]} == set(Kind)
    assert {drawn.format for drawn in trials} == set(FORMATS)
    assert {drawn.versions for drawn in trials} == {1, 2}
    assert all(1 << 10 <= drawn.size_bytes <= SMALL for drawn in trials)
    large = [trial(SEED, number, 256 << 20).size_bytes for number in range(16_000)]
    assert large.count(256 << 20) >= 4
    assert sum(size <= SMALL for size in large) > 10_000


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100, 5000, 3 * PAGE_BYTES, 100_000])
@pytest.mark.parametrize("kind", OF_BYTES, ids=lambda kind: kind.name)
def test_damage_changes_bytes_where_it_says_and_no_times(
    kind: Kind, size: int, tmp_path: Path
) -> None:
    if kind is Kind.SWAPPED and size < 2 * PAGE_BYTES:
        size = 2 * PAGE_BYTES
    path, before = tmp_path / "file", random.Random(5).randbytes(size - 1) + b"x"
    for seed in range(20):
        path.write_bytes(before)
        os.utime(path, ns=(10**18 + 1, 10**18 + 7))
        ranges = damage_bytes(path, kind, random.Random(seed))
        status, after = path.stat(), path.read_bytes()
        assert (status.st_atime_ns, status.st_mtime_ns) == (10**18 + 1, 10**18 + 7)
        assert after != before
        differing = {
            at
            for at in range(max(len(before), len(after)))
            if before[at : at + 1] != after[at : at + 1]
        }
        assert all(any(start <= at < end for start, end in ranges) for at in differing)
        assert all(any(start <= at < end for at in differing) for start, end in ranges)
        path.write_bytes(before)
        damage_bytes(path, kind, random.Random(seed))
        assert path.read_bytes() == after


def test_kinds_do_what_they_are_named_after(tmp_path: Path) -> None:
    path, before = tmp_path / "file", random.Random(6).randbytes(10 * PAGE_BYTES)

    def damaged(kind: Kind) -> bytes:
        path.write_bytes(before)
        damage_bytes(path, kind, random.Random(1))
        return path.read_bytes()

    flipped = int.from_bytes(before, "big") ^ int.from_bytes(damaged(Kind.BIT), "big")
    assert flipped.bit_count() == 1
    assert sum(a != b for a, b in zip(before, damaged(Kind.BYTE), strict=True)) == 1
    assert damaged(Kind.ZERO_BLOCK).count(bytes(PAGE_BYTES)) == 1
    assert bytes(5 * PAGE_BYTES) in damaged(Kind.ZERO_HALF)
    assert before.startswith(damaged(Kind.TRUNCATED))
    assert damaged(Kind.EXTENDED).startswith(before)
    blocks = [before[at : at + PAGE_BYTES] for at in range(0, len(before), PAGE_BYTES)]
    swapped = damaged(Kind.SWAPPED)
    found = [swapped[at : at + PAGE_BYTES] for at in range(0, len(before), PAGE_BYTES)]
    assert sorted(found) == sorted(blocks)
    assert sum(a != b for a, b in zip(blocks, found, strict=True)) == 2


@pytest.mark.parametrize("kind", [Kind.ZERO_BLOCK, Kind.ZERO_HALF, Kind.SWAPPED])
def test_damage_that_would_change_nothing_is_refused(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(5 * PAGE_BYTES))
    with pytest.raises(Undamageable):
        damage_bytes(tmp_path / "zeros", kind, random.Random(1))
    with pytest.raises(Undamageable):
        replace_content(tmp_path / "zeros", bytes(5 * PAGE_BYTES))


def test_a_spoilt_record_is_another_one() -> None:
    record = b"ckptfs/1 digest=blake3:00"
    for seed in range(200):
        assert spoil(record, random.Random(seed)) != record


# --- contents and loaders ------------------------------------------------------------------------


def first(form: str) -> Trial:
    drawn = (trial(SEED, number, SMALL) for number in range(1000))
    return next(t for t in drawn if t.format == form and t.versions == 2)


@pytest.fixture(scope="module")
def loaders() -> Any:
    with Loaders() as process:
        yield process


@pytest.mark.parametrize("form", FORMATS)
def test_contents_are_repeatable_and_load_right(
    form: str, loaders: Loaders, tmp_path: Path
) -> None:
    drawn = first(form)
    content, older = build(drawn, 2, tmp_path), build(drawn, 1, tmp_path)
    assert content == build(drawn, 2, tmp_path / "elsewhere")
    assert content.files[drawn.target] != older.files[drawn.target]
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name, data in content.files.items():
        (folder / name).write_bytes(data)
    path = folder if form == "dcp" else folder / drawn.target
    found = loaders.try_all(form, path, shapes(drawn), content.values)
    assert set(found.values()) == {"loaded right"}
    assert set(found) == {name for name, (loads, _) in LOADERS.items() if loads == form}
    found = loaders.try_all(form, path, shapes(drawn), older.values)
    assert set(found.values()) == {"loaded wrong"}
    (folder / drawn.target).write_bytes(b"nothing of the kind")
    found = loaders.try_all(form, path, shapes(drawn), content.values)
    assert all(outcome.startswith("raised") and noticed(outcome) for outcome in found.values())


def test_a_loader_that_crashes_or_hangs_takes_nothing_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text("{}")
    with Loaders() as process:
        monkeypatch.setitem(LOADERS, "unknown there", LOADERS["json.load"])
        found = process.try_all("json", tmp_path / "a.json", [], "")
        assert found == {"json.load": "loaded wrong", "unknown there": "crashed 1"}
        monkeypatch.delitem(LOADERS, "unknown there")
        os.mkfifo(tmp_path / "b.json")
        monkeypatch.setattr("ckptfs.tools.corrupt_worker._LIMIT_S", 0.2)
        assert process.try_all("json", tmp_path / "b.json", [], "") == {"json.load": "hung"}
        monkeypatch.undo()
        assert process.try_all("json", tmp_path / "a.json", [], "") == {"json.load": "loaded wrong"}


# --- rows ----------------------------------------------------------------------------------------


def row(kind: Kind, **known: Any) -> dict[str, Any]:
    fields = {"what": "trial", "number": 1, "kind": kind.name, "kept": 1, "neighbours": []}
    said = {"by_open": False, "by_verify": True, "served": "older", "history": []}
    return {**fields, **said, "condition": "damaged", **known}


def test_what_falls_short_is_told() -> None:
    assert shortcomings(row(Kind.BIT)) == []
    assert shortcomings(row(Kind.BIT, kept=0, served="EIO")) == []
    assert shortcomings(row(Kind.BIT, by_verify=False)) == ["not noticed"]
    assert shortcomings(row(Kind.BIT, neighbours=["x"])) == ["other files: x"]
    assert "wrong bytes served" in shortcomings(row(Kind.BIT, served="wrong"))
    assert len(shortcomings(row(Kind.BIT, served="EIO"))) == 1
    assert len(shortcomings(row(Kind.BIT, kept=0, served="ENOENT"))) == 1
    assert shortcomings(row(Kind.BOTH, served="EIO")) == []
    missing = row(Kind.RECORD_MISSING, by_verify=False, served="newest")
    assert shortcomings(missing) == ["not noticed"]
    assert shortcomings({**missing, "kept": 0}) == []
    unproven = row(Kind.WRITTEN, served="wrong", by_verify=False, file="model.safetensors")
    assert shortcomings(unproven) == []
    assert "wrong bytes served" in shortcomings({**unproven, "file": "model.pt"})
    assert shortcomings({**unproven, "file": "0.distcp", "whole_archives": True}) == []
    assert shortcomings({**unproven, "file": "0.distcp", "whole_archives": False})
    assert shortcomings(row(Kind.THROUGH, served="newest", refused=True)) == []
    assert shortcomings(row(Kind.THROUGH, served="newest", refused=False))
    assert shortcomings(row(Kind.BIT), control=True)
    assert not shortcomings(row(Kind.BIT, served="wrong"), control=True)


def test_ranges_are_read_as_pairs_and_as_objects() -> None:
    assert _pair([1, 2]) == _pair({"from": 1, "to": 2}) == [1, 2]


def test_rows_outlive_an_interruption_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path, study = tmp_path / "rows.jsonl", {"what": "study", "seed": 1}
    rows = Rows(path, study)
    rows.add([{"what": "trial", "number": 0}, {"what": "trial", "number": 2}])
    with path.open("a") as file:
        file.write('{"what": "trial", "num')
    again = Rows(path, study)
    assert again.missing("trial", 4) == [1, 3]
    again.add([{"what": "trial", "number": 1}])
    assert Rows(path, study).missing("trial", 4) == [3]
    with pytest.raises(CannotServe, match="another study"):
        Rows(path, {"what": "study", "seed": 2})


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    shares = [(0, 5), (1, 3000), (1, 2), (2999, 3000), (5, 5), (0, 0)]
    texts = [str(corrupt_report.Share(*share)) for share in shares]
    assert texts == ["0%", "0.1%", "50.0%", "99.9%", "100%", "-"]


def test_without_matplotlib_there_is_a_table_and_no_plot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not corrupt_plot.plot([row(Kind.BIT)], tmp_path / "plot", control=False)
    assert "one bit flipped" in corrupt_report.table([row(Kind.BIT)], seed=1, control=False)


def test_a_batch_is_bounded_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [trial(SEED, number, SMALL) for number in range(20)]
    assert [len(some) for some in corrupt.batches(trials, 8)] == [8, 8, 4]
    monkeypatch.setattr(corrupt, "_BATCH_BYTES", 1)
    assert [len(some) for some in corrupt.batches(trials, 8)] == [1] * 20


# --- end to end ----------------------------------------------------------------------------------


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "ckptfs.tools.corrupt", *map(str, options)]


def run(*options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*options), capture_output=True, text=True, timeout=200)


def read_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def assert_nothing_left(out: Path) -> None:
    assert list(out.glob("ckptfs-corrupt-*")) == []
    assert str(out) not in Path("/proc/self/mountinfo").read_text()


def options(out: Path, trials: int = TRIALS, reads: int = 0, edits: int = 0) -> list[object]:
    counts = ["--trials", trials, "--reads", reads, "--edits", edits]
    return ["--seed", SEED, "--max-size", "64KiB", "--out", out, *counts]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study."""
    reason = mounts.why_no_mounts()
    if reason:
        pytest.skip(f"cannot mount here: {reason}")
    folder = tmp_path_factory.mktemp("study")
    done = run(*options(folder, reads=300, edits=2 * len(corrupt_quiet.EDITS)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert corrupt_report.short(read_rows(folder), control=False) == []
    assert len((folder / "reproduce.sh").read_text().splitlines()) == 3
    return folder


def test_every_kind_of_damage_is_done_and_nothing_is_left_behind(out: Path) -> None:
    trials = [found for found in read_rows(out) if found["what"] == "trial"]
    assert [found["number"] for found in trials] == list(range(TRIALS))
    assert {found["kind"] for found in trials if "skipped" not in found} >= {
        kind.name for kind in Kind if kind is not Kind.SIDECAR
    }
    assert_nothing_left(out)


@pytest.mark.parametrize("kind", ROT, ids=lambda kind: kind.name)
def test_C5_rot_is_noticed_and_the_good_generation_comes_back(kind: Kind, out: Path) -> None:
    found = [row for row in read_rows(out) if row.get("kind") == kind.name]
    for seen in found:
        assert shortcomings(seen) == []
        assert seen["by_open"] and seen["by_verify"]
        assert seen["served"] == ("older" if seen["kept"] else "EIO")
        assert seen["loaders"]


@pytest.mark.parametrize("kind", sorted(OUTSIDE, key=str), ids=lambda kind: kind.name)
def test_C5_what_programs_and_people_damage_is_noticed_where_there_is_evidence(
    kind: Kind, out: Path
) -> None:
    found = [row for row in read_rows(out) if row.get("kind") == kind.name]
    assert found
    assert [shortcomings(seen) for seen in found] == [[]] * len(found)


def test_every_read_is_digested_again_and_none_raises_an_alarm(out: Path) -> None:
    (reads,) = (row for row in read_rows(out) if row["what"] == "reads")
    assert reads["reads"] == reads["digests"] == 300
    assert corrupt_quiet.held(reads)


def test_control_a_read_that_is_not_digested_is_told_apart(disk_dir: Path) -> None:
    (reads,) = corrupt_quiet.read_untouched(480, 480, SEED, disk_dir, again=False)
    assert reads["digests"] == 240, "the first read of each file, after the mount"
    assert not corrupt_quiet.held(reads)


def test_edits_made_outside_are_served_as_they_are(out: Path) -> None:
    edits = [row for row in read_rows(out) if row["what"] == "edit"]
    assert len({row["edit"] for row in edits}) >= len(corrupt_quiet.EDITS) - 3
    assert [row for row in edits if not corrupt_quiet.held(row)] == []


def test_there_is_a_table_and_a_plot(out: Path) -> None:
    text = (out / "table.md").read_text()
    for kind in Kind:
        assert f"| {kind.value} |" in text or kind is Kind.SIDECAR
    if importlib.util.find_spec("matplotlib") is not None:
        assert (out / "plot.png").stat().st_size > 10_000
        assert (out / "plot.svg").read_text().startswith("<?xml")


def test_an_interrupted_study_goes_on_and_finds_the_same(out: Path, tmp_path: Path) -> None:
    first, rows = tmp_path / "again", tmp_path / "again" / "rows.jsonl"
    with subprocess.Popen(
        command(*options(first), "--batch", 15), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: rows.exists() and rows.read_bytes().count(b"\n") > 15, process)
        process.terminate()
        process.communicate(timeout=60)
    assert_nothing_left(first)
    done = len(read_rows(first)) - 1
    assert 15 <= done < TRIALS
    with rows.open("a") as file:
        file.write('{"what": "trial", "number": 1')
    assert run(*options(first)).returncode in (0, 1)
    trials = [row for row in read_rows(out) if row["what"] == "trial"]
    assert read_rows(first)[1:] == trials


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_single_trial_is_repeated(out: Path, tmp_path: Path) -> None:
    done = run(*options(tmp_path / "none"), "--only", 17, "--on", tmp_path)
    again = json.loads(done.stdout)
    assert done.returncode == (1 if again.pop("short") else 0)
    assert again == next(row for row in read_rows(out) if row.get("number") == 17)
    assert not (tmp_path / "none").exists()
    assert_nothing_left(tmp_path)


def test_control_without_verified_opens_the_damage_gets_through(disk_dir: Path) -> None:
    done = run(*options(disk_dir, trials=2 * len(Kind)), "--control")
    assert done.returncode == 0, done.stdout + done.stderr
    for seen in read_rows(disk_dir)[1:]:
        if "skipped" not in seen:
            kind = Kind[seen["kind"]]
            gets_through = kind.changes_bytes and kind is not Kind.THROUGH  # its close refuses
            assert seen["served"] == ("wrong" if gets_through else "newest")
            assert not seen["by_open"] or kind is Kind.THROUGH
