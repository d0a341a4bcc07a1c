"""One trial of the fault study: an application at work while the k-th call of the daemon fails.

What must hold afterwards is in :func:`judge`; how it is found out, in :class:`Bench`. A bench is a
directory, its mount and an application; what is stuck is aborted, and begun anew.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ckptfs.errors import CannotServe
from ckptfs.records import format as fmt

from ...harness import hooked
from ...harness.rig import served, verify
from ...harness.study import Row
from .app import SCENARIOS, Application, Scenario, Stuck
from .arming import FAULTS, Switch

_LIMIT_S = 120.0
_ARMING = "ckptfs.tools.crash.faults.arming"
# A deletion that could not look at the record leaves its history behind.
_HARMLESS = {("unlink", "missing")}


class Bench:
    """Served until the block ends."""

    def __init__(self, on: Path, *, control: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="faults-", dir=on)
        self.root = Path(self._folder.name).resolve() / "served"
        self.root.mkdir()
        switch = self.root.parent / "switch"
        self.switch = Switch(switch)
        factory = f"{_ARMING}:{'lying' if control else 'armed'}"
        self._program = hooked.program(factory, switch)
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Bench:
        try:
            self._start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Raises CannotServe where the mount does not end; it is taken away then."""
        try:
            self._running.close()
        finally:
            self._folder.cleanup()

    def _start(self) -> None:
        with contextlib.ExitStack() as on_error:
            self._mount = on_error.enter_context(served(self.root, program=self._program))
            self.application = on_error.enter_context(Application(self.root))
            self.below = self._mount.below() / fmt.CONTROL
            self._running = on_error.pop_all()

    def remount(self) -> None:
        """Raises CannotServe where the mount does not end, or does not come back."""
        self._running.close()
        self._start()

    def free(self) -> None:
        """The mount is stuck: fail what waits for it, and serve anew."""
        self._mount.abort()
        with contextlib.suppress(CannotServe, subprocess.TimeoutExpired):
            self._running.close()
        self._start()

    def set_aside(self) -> dict[str, Path]:
        """What lies in salvage and, of a store that came to a stop, in stage."""
        found = [*(self.below / fmt.SALVAGE).iterdir(), *(self.below / fmt.STAGE).iterdir()]
        return {path.name: path for path in found if path.suffix != fmt.NOTE}

    def log(self) -> str:
        return self.root.with_suffix(".log").read_text("utf-8", "replace")

    def verify(self) -> list[Row]:
        """What ``ckptfs verify`` complains of."""
        try:
            code, rows = verify(self.root, _LIMIT_S)
        except CannotServe as error:
            return [{"path": "", "condition": str(error)}]
        good = ("ok", "unread", "unrecorded", "linked")
        bad = [row for row in rows if row["condition"] not in good]
        return bad or ([{"path": "", "condition": f"exit {code}"}] if code else [])


def trial(bench: Bench, scenario: str, fault: str, k: int) -> Row:
    """The row of trial ``k``; its ``failed`` is empty where there are not that many calls."""
    row: Row = {"what": "trial", "scenario": scenario, "fault": fault, "k": k, "failed": ""}
    ask = bench.application.ask
    try:
        ask("prepare", scenario, k)
        before = bench.set_aside()
        bench.switch.arm(fault, k)
        acted = ask("act", scenario, k)
        settled = ask("settle", scenario, k)
        bench.switch.disarm()
        row |= {"failed": bench.switch.failed, "calls": acted["calls"]}
        now = [path for name, path in bench.set_aside().items() if name not in before]
        kept = _holds(now, SCENARIOS[scenario].data)
        row |= _found(bench, scenario, k) | {"settled": settled, "kept": kept}
        row |= {"done": acted["done"], "taken": acted["taken"]}
    except (Stuck, CannotServe, subprocess.TimeoutExpired) as error:
        failed = bench.switch.failed or "nothing"
        row |= {"failed": failed, "wrong": [f"stuck: {error}"], "outcome": "hung"}
        bench.switch.disarm()
        bench.free()
        return row
    row["outcome"] = outcome(row)
    row["wrong"] = judge(row)
    return row


def _found(bench: Bench, scenario: str, k: int) -> Row:
    """What is there, whether saving goes on, and whether it does after a remount if not before."""
    ask = bench.application.ask
    row: Row = {"seen": ask("look", scenario, k), "goes_on": ask("go on", scenario, k)["calls"]}
    if _failure(row["goes_on"]):
        row["degraded"] = ask("settle", scenario, k)["degraded"]
        bench.remount()
        ask = bench.application.ask
        row["seen_after_remount"] = ask("look", scenario, k)
        row["goes_on_after_remount"] = ask("go on", scenario, k)["calls"]
    return row


def _holds(paths: Sequence[Path], data: bytes) -> bool:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if data in path.read_bytes():
                return True
    return False


def _failure(calls: Sequence[Sequence[Any]]) -> tuple[str, str] | None:
    """The first call that failed, and its errno."""
    for name, code in calls:
        if code:
            return name, errno.errorcode.get(code, str(code))
    return None


def told(row: Row) -> str:
    """What the application heard first; empty if nothing."""
    return " ".join(_failure(row.get("calls", ())) or ())


def outcome(row: Row) -> str:
    if not row["failed"]:
        return "nothing failed"
    if _failure(row["goes_on"]):
        return "read-only"
    if _failure(row["calls"]):
        return "told"
    if any(state == "old" for state in row["seen"].values()):
        return "untold"
    return "absorbed"


def judge(row: Row) -> list[str]:
    """What is not as promised."""
    scenario = SCENARIOS[row["scenario"]]
    wrong = [*_judge_contents(row, scenario, row["seen"]), *_judge_errno(row)]
    read_only = row["outcome"] == "read-only"
    if row["settled"]["writing"]:
        wrong.append("a version is still being written")
    if read_only:
        if row["failed"] != "fsync_dir" or not row["degraded"]:
            wrong.append(f"saving goes on with {_failure(row['goes_on'])}")
        if _failure(row["goes_on_after_remount"]):
            wrong.append("saving does not go on after a remount")
        wrong += _judge_contents(row, scenario, row["seen_after_remount"])
    states = row["seen"].values()
    saved = "new" in states or "loose" in states
    moved = row["scenario"] in ("rename onto", "rename folder")  # seen to by the contents
    if scenario.data and row["taken"] and not saved and not moved and not row["kept"]:
        wrong.append("the bytes are not in salvage")
    return wrong


def _judge_contents(row: Row, scenario: Scenario, seen: dict[str, str]) -> Iterator[str]:
    """Each path is old or new, and new where that was told."""
    strict = row["outcome"] != "read-only"
    for name, state in seen.items():
        allowed = {"same", "new"}
        if name not in row["done"]:
            allowed |= {"old", "loose"} if name == scenario.loose else {"old"}
            failed = _failure(row["calls"])
            if failed and strict:
                allowed -= {"new"}
        if not scenario.tells and (row["settled"]["aborted"] or not strict):
            allowed |= {"old"}
        if state not in allowed:
            yield f"{name} is {state}, not {' or '.join(sorted(allowed))}"
    if len(set(seen.values()) - {"same", "loose"}) > 1 and row["scenario"] != "many files":
        yield f"half of it is there: {seen}"


def _judge_errno(row: Row) -> Iterator[str]:
    failed = _failure(row["calls"])
    if failed is None:
        return
    if not row["failed"]:
        yield f"an error without a fault: {failed}"
        return
    injected = errno.errorcode[FAULTS[row["fault"]].errno]
    if failed[1] != injected and not turned(row):
        yield f"{failed} for {injected}"


def turned(row: Row) -> bool:
    """Whether EINTR was told as EIO: where no second try can mend it, it must not ask for one."""
    name, code = _failure(row.get("calls", ())) or ("", "")
    final = name in ("close", "fsync") or row["failed"] == "fsync_dir"
    return row["fault"] == "EINTR" and code == "EIO" and final


def unclean(bench: Bench, rows: Sequence[Row]) -> None:
    """Give the rows what ``verify`` and the log say of them."""
    for finding in bench.verify():
        folder = finding["path"].partition("/")[0]
        for row in rows:
            if str(row["k"]) == folder or (row is rows[-1] and not finding["path"]):
                row.setdefault("verify", []).append(finding["condition"])
                if (row["scenario"], finding["condition"]) not in _HARMLESS:
                    row["wrong"].append(f"verify: {finding['path']} {finding['condition']}")
    if "Traceback" in bench.log():
        rows[-1]["wrong"].append("a traceback in the log")


def trials(
    on: Path, scenario: str, fault: str, numbers: Iterable[int], *, control: bool = False
) -> Iterator[Row]:
    """The trials of these numbers, up to one in which nothing failed. Rows come late: it takes the
    end of a bench to know what ``verify`` says of them."""
    left = iter(numbers)
    most = 1 if SCENARIOS[scenario].alone else None
    while True:
        rows: list[Row] = []
        with Bench(on, control=control) as bench:
            for k in itertools.islice(left, most):
                rows.append(trial(bench, scenario, fault, k))
                if not rows[-1]["failed"]:
                    break
            unclean(bench, rows)
        yield from rows
        if not rows or most is None or not rows[-1]["failed"]:
            return
