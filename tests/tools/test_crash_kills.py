"""The kill study kills where it says, is repeatable, and sees what gets through.

C1, C2, C3 and C6 are checked by the study itself after each kill: of writers in every phase of a
save, of the daemon at every step of a commit. The controls write without transactions, and lose.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mounts
import pytest

from ckptfs.errors import CannotServe
from ckptfs.tools.crash import kills, kills_draw, kills_jobs, kills_report
from ckptfs.tools.crash.damage import LOST
from ckptfs.tools.crash.kills_draw import DAEMON, PAPER, PLAIN, WRITER, How, Phase, Work, trial
from ckptfs.tools.crash.kills_dying import Control
from ckptfs.tools.crash.kills_jobs import Jobs
from ckptfs.tools.crash.kills_judge import Progress, in_salvage, judge, needs_salvage, state
from ckptfs.tools.crash.kills_saves import Act, Op, after, save
from ckptfs.tools.study import Rows
from ckptfs.versions.life import Step

SEED = 4
WRITERS, DAEMONS = 60, 20  # turns: each phase eight times and more, each step once
OLD, NEW = b"o" * 3000, b"n" * 4000

if find_spec("torch") is None or find_spec("safetensors") is None:
    pytest.skip("no torch or safetensors", allow_module_level=True)


# --- draws ---------------------------------------------------------------------------------------


def test_a_trial_is_always_the_same_and_no_other_one() -> None:
    assert trial(DAEMON, 7, SEED) == trial(DAEMON, 7, SEED)
    drawn = {trial(WRITER, n, seed).within for seed in (1, 2) for n in range(50)}
    assert len(drawn) == 100


def test_ways_to_die_take_turns() -> None:
    writers = [trial(WRITER, n, SEED) for n in range(WRITERS)]
    daemons = [trial(DAEMON, n, SEED) for n in range(DAEMONS)]
    assert {one.phase for one in writers} == {*Phase, None} - {Phase.IN_CALL}
    assert {one.step for one in daemons} == {*Step, None}
    assert {one.how for one in (*writers, *daemons)} == set(How)
    assert {one.work for one in (*writers, *daemons)} == set(Work)
    assert all(one.versions >= 1 for one in writers if one.work is Work.APPEND)


def test_the_paper_s_trials_are_as_many_in_each_mode() -> None:
    total = kills_draw.PAPER_TRIALS * len(kills_draw.PAPER_MODES)
    modes = Counter(trial(PAPER, n, SEED).subject for n in range(total))
    assert modes == dict.fromkeys(kills_draw.PAPER_MODES, 430)


def test_a_batch_is_of_one_subject() -> None:
    some = list(kills.batches((trial(PAPER, n, SEED) for n in range(30)), 4))
    assert [len(batch) for batch in some] == [4, 4, 2] * 3
    assert all(len({one.subject for one in batch}) == 1 for batch in some)


@pytest.mark.parametrize("work", [Work.MANY, Work.APPEND, Work.SHARDS])
def test_contents_are_repeatable_and_tell_versions_apart(work: Work) -> None:
    numbers = (n for n in range(1000) if trial(WRITER, n, SEED).work is work)
    drawn = trial(WRITER, next(numbers), SEED)
    first = after({}, save(drawn, 1, {}))
    second = after(first, save(drawn, 2, first))
    assert first == after({}, save(drawn, 1, {}))
    assert len(set(second.values())) == len(second)
    assert not any(b"\0" in content for content in second.values())


# --- the judge -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (OLD, "old"),
        (NEW, "new"),
        (None, "gone"),
        (b"", "empty"),
        (NEW[:700], "torn: cut short"),
        (OLD[:700], "torn: cut short"),
        (bytes(4000), "zero-filled"),
        (NEW[:1024] + bytes(2976), "torn: zeros inside"),
        (NEW[:1024] + OLD[1024:], "mixed"),
        (b"x" * 4000, "garbled"),
    ],
)
def test_every_state_has_a_word(found: bytes | None, word: str) -> None:
    assert state(found, OLD, NEW) == word


OPS = [Op(Act.FILE, "a", NEW), Op(Act.FILE, "b", NEW)]


def promises(op: int, phase: Phase, found: dict[str, bytes]) -> set[str]:
    before = {"a": OLD, "b": OLD, "kept": OLD}
    found = {"kept": OLD, **found}
    return {broken.promise for broken in judge(before, OPS, Progress(op, phase), found)}


def test_the_judge_goes_by_what_the_writer_was_told() -> None:
    for phase in Phase:
        closed = phase is Phase.CLOSED
        either = Phase.IN_CALL <= phase < Phase.CLOSED
        old, new = {"a": NEW, "b": OLD}, {"a": NEW, "b": NEW}
        assert promises(1, phase, old) == ({"C2"} if closed else set())
        assert promises(1, phase, new) == (set() if closed or either else {"C6"})
        assert promises(1, phase, {"a": NEW, "b": NEW[:9]}) == {"C1"}
        assert promises(1, phase, {"a": NEW}) == {"C1"}


def test_the_judge_sees_order_and_what_was_not_touched() -> None:
    assert promises(1, Phase.CLOSED, {"a": OLD, "b": NEW}) == {"C2", "C3"}
    assert promises(0, Phase.CLOSING, {"a": OLD, "b": OLD, "tmp": b""}) == {"C6"}
    assert promises(0, Phase.CLOSING, {"a": OLD, "b": OLD, "kept": NEW}) == {"C1"}


def test_unfinished_bytes_have_to_be_in_salvage() -> None:
    before, told = {"a": OLD}, Progress(0, Phase.BETWEEN_WRITES, written=1000)
    assert needs_salvage(before, OPS, told, {"a": OLD}) is OPS[0]
    assert needs_salvage(before, OPS, told, {"a": NEW}) is None
    assert in_salvage(OPS[0], told, [("a", NEW[:1000])]) == "a"
    assert in_salvage(OPS[0], told, [("", NEW[:2000])]) == ""
    assert in_salvage(OPS[0], told, [("a", NEW[:999]), ("a", OLD)]) is None


# --- the daemon that dies ------------------------------------------------------------------------


def test_a_step_is_deadly_the_n_th_time_after_it_was_armed(tmp_path: Path) -> None:
    control = Control.make(tmp_path / "control")
    daemon = Control(str(tmp_path / "control"))
    assert not daemon.note("sealed")
    control.arm("sealed", 2)
    assert control.reached == ""
    assert [daemon.note(name) for name in ("sealed", "kept", "sealed", "sealed")] == [
        *(False, False, True, False)
    ]
    assert control.reached == "sealed"
    control.close()
    daemon.close()


# --- rows and report -----------------------------------------------------------------------------


def row(number: int, **known: Any) -> dict[str, Any]:
    known = {"subject": "atomic_dirsync", "violations": [], **known}
    met = {"met": "old", "phase": "opened", "work": Work.MANY.value, "signal": 9}
    return {"what": WRITER, "number": number, "how": How.PHASE.value, **met, **known}


def test_what_is_violated_is_in_the_table_and_can_be_repeated() -> None:
    torn = {"promise": "C1", "found": "torn", "path": "a"}
    rows = [row(0), row(1, violations=[torn], met="torn")]
    rows.append({"what": "batch", "of": WRITER, "numbers": [0, 1], "violations": [torn]})
    text = kills_report.table(rows, seed=SEED, control="")
    assert "| opened | 2 | 1 | 0 | 1 | 1 |" in text
    assert "| C1 | torn | 2 |" in text
    script = kills_report.reproducers(rows, ["--seed", "4"]).splitlines()[3:]
    assert "--only writer:1  # C1: torn" in script[0]
    assert "--only writer:0 --only writer:1  # C1: torn" in script[1]


def test_a_slow_mount_is_told_though_no_promise_about_bytes_is_broken() -> None:
    rows = [row(0, mount_s=0.3), row(1, mount_s=1.2)]
    assert kills_report.broken(rows) == []
    assert [late["number"] for late in kills_report.slow(rows)] == [1]
    assert "--only writer:1  # mounted in 1.2 s" in kills_report.reproducers(rows, [])


def test_a_quantile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [kills_report.quantile(values, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert kills_report.quantile([7.0], 0.99) == 7


# --- kills ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """Torch is loaded once for all tests."""
    reason = mounts.why_no_mounts()
    if reason:
        pytest.skip(f"cannot mount here: {reason}")
    on = tmp_path_factory.mktemp("kills")
    with Jobs(on, 2, SEED, "") as started:
        yield started
    assert os.listdir(on) == []
    assert_nothing_mounted(on)


def assert_nothing_mounted(on: Path) -> None:
    assert str(on) not in Path("/proc/self/mountinfo").read_text()


def run(jobs: Jobs, what: str, numbers: Sequence[int], most: int = 10) -> list[dict[str, Any]]:
    trials = [trial(what, number, SEED, jobs.control) for number in numbers]
    rows = list(jobs.run(kills.batches(trials, most)))
    assert sorted(row["number"] for row in rows if row["what"] == what) == list(numbers)
    return rows


def grows_in_place(path: Path) -> bool:
    """Whether files are extended where they lie: not where a clone does it."""
    done = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True)
    return done.stdout.strip() == "ext2/ext3"


def test_C1_C2_C3_C6_after_kills_of_writers(jobs: Jobs) -> None:
    rows = run(jobs, WRITER, range(WRITERS), most=20)
    assert kills_report.broken(rows) == []
    died = Counter(row["phase"] for row in rows if row["what"] == WRITER)
    assert {str(phase) for phase in Phase} - {"closing", "in call"} <= set(died)


def test_C1_C2_C3_C6_after_kills_of_the_daemon_at_every_step(jobs: Jobs) -> None:
    rows = run(jobs, DAEMON, range(DAEMONS))
    assert kills_report.broken(rows) == []
    reached = {row["aimed"] for row in rows if row.get("reached")}
    growing = {Step.INTENDED, Step.ADDED, Step.EXTENDED}
    expected = set(Step) if grows_in_place(Path(os.curdir)) else set(Step) - growing
    assert reached >= {step.value for step in expected}
    assert all(row["mount_s"] > 0 for row in rows if row["what"] == DAEMON)
    print(kills_report.table(rows, seed=SEED, control=""))


@pytest.mark.parametrize("control", ["unsafe", PLAIN])
def test_control_without_transactions_the_kills_are_seen(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, control: str
) -> None:
    monkeypatch.setattr(jobs, "control", control)
    rows = run(jobs, WRITER, range(20))
    found = {seen["found"] for row in rows for seen in row["violations"]}
    assert {"torn: cut short", "empty"} <= found
    assert found <= {*LOST, "new", "stray file"}
    assert not kills_report.failed_harness(rows)


def test_the_paper_s_crashes_lose_checkpoints_in_unsafe_mode_only(jobs: Jobs) -> None:
    rows = run(jobs, PAPER, range(30))
    assert {row["subject"] for row in kills_report.broken(rows)} == {"unsafe"}


def test_a_daemon_that_hangs_takes_neither_the_study_nor_its_mount_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills_jobs, "_ROW_LIMIT_S", 8.0)
    stopped: list[int] = []
    with Jobs(tmp_path, 1, SEED, "") as started:
        rows = []
        for found in started.run([[trial(WRITER, n, SEED) for n in range(4)]]):
            rows.append(found)
            if not stopped:
                stopped.append(stop_daemon(tmp_path))
        harness = [row for row in rows if kills_report.failed_harness([row])]
        assert len(harness) == 1
        numbers = [row["number"] for row in rows if row["what"] == WRITER]
        assert numbers == list(range(4))
    assert not is_running(stopped[0])
    assert os.listdir(tmp_path) == []
    assert_nothing_mounted(tmp_path)


def stop_daemon(on: Path) -> int:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes() if path.exists() else b""
        if os.fsencode(on) in words and b"mount" in words:
            os.kill(int(path.parent.name), signal.SIGSTOP)
            return int(path.parent.name)
    raise AssertionError("no daemon")


def is_running(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return Path(f"/proc/{pid}").exists()


def test_a_worker_that_does_not_start_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills_jobs, "_WORKER", "ckptfs.no_such_module")
    with Jobs(tmp_path, 1, SEED, "") as started, pytest.raises(CannotServe, match="torch"):
        list(started.run([[trial(WRITER, 0, SEED)]]))
    assert os.listdir(tmp_path) == []


# --- the command ---------------------------------------------------------------------------------


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "ckptfs.tools.crash", "kills", *map(str, options)]


def test_an_interrupted_study_goes_on(disk_dir: Path) -> None:
    options = ["--writers", 24, "--daemons", 0, "--batch", 8, "--seed", SEED, "--out", disk_dir]
    path = disk_dir / "rows.jsonl"
    with subprocess.Popen(
        command(*options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        while not path.exists() or path.read_bytes().count(b"\n") < 6:
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        process.wait()
        watchdog.cancel()
    assert sorted(os.listdir(disk_dir)) == ["rows.jsonl"]
    assert_nothing_mounted(disk_dir)
    done = subprocess.run(command(*options), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    head = {"what": "study", "seed": SEED, "control": ""}
    rows = Rows(path, head)
    assert rows.missing(WRITER, 24) == []
    assert len(rows.of(WRITER)) == 24
    assert (disk_dir / "table.md").read_text() in done.stdout + "\n"
    assert sorted(os.listdir(disk_dir)) == ["reproduce.sh", "rows.jsonl", "table.md"]


def test_a_single_trial_is_repeated(disk_dir: Path) -> None:
    only = ["--only", "writer:2", "--seed", SEED, "--on", disk_dir]
    done = subprocess.run(command(*only), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found, _ = json.JSONDecoder().raw_decode(done.stdout)
    assert (found["number"], found["phase"], found["violations"]) == (2, "in write", [])
    assert os.listdir(disk_dir) == []
    wrong = subprocess.run(command("--only", "x"), capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "not a trial" in wrong.stderr
