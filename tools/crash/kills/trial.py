"""One kill, and what has to hold afterwards.

Each trial has a folder of its own, so it can be repeated alone. Versions are saved in peace, then
one while its writer or the daemon dies; then all is checked, and a further save has to work.

After the death of a daemon nothing is done but ``ckptfs mount``: the dead mount is still there. It
is the mount that the next trial needs: mostly by the daemon that tells its steps (the same command
line and daemon under a wrapper), for about one trial in ten by the plain command.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable

from ckptfs.checking.examine import BAD, Condition, Subject

from ...harness.study import Row
from .draw import DAEMON, How, Phase, Trial, Work
from .judge import STRAY, Progress, Violation, in_salvage, judge, needs_salvage, state
from .place import Site
from .saves import Act, Files, Op, after, save
from .writer import SAVED, Account, Death, Writer, end

_SAVE_S, _CLOSE_S = 0.01, 0.003  # where none was timed
_SAVES_S = {Work.MANY: 0.03, Work.SHARDS: 0.015}
_UMOUNT_IN = 0.5  # the command itself takes a while
_SOON_S = 5.0  # for what follows a close that nobody waits for
_BEYOND = 1.1  # moments go a little beyond the save
_POLL_S = 0.002
_DYING_S = 2.0
_OUTSIDE = frozenset({Condition.MODIFIED, Condition.UNRECORDED, Condition.MISSING})


class Failed(Exception):
    """A save that nothing disturbed did not work."""


class Run:
    """One trial, at a place that is served."""

    def __init__(self, place: Site, trial: Trial) -> None:
        self.place, self.trial = place, trial
        self.path = place.path / trial.folder
        self.path.mkdir()
        self.files: Files = {}
        self.save_s, self.close_s = _SAVES_S.get(trial.work, _SAVE_S), _CLOSE_S
        self.row: Row = {
            "what": trial.what,
            "number": trial.number,
            "subject": trial.subject,
            "work": trial.work.value,
            "how": trial.how.value,
            "signal": trial.signal,
        }
        self.violations: list[Violation] = []
        self.below = False  # the mount was gone while the writer lived: it goes on below it

    def run(self, next_hooked: bool) -> Row:
        """``next_hooked``: which daemon is to serve after this one's death."""
        for version in range(1, self.trial.versions + 1):
            self._save_whole(version)
        ops = save(self.trial, self.trial.versions + 1, self.files)
        if self.trial.what == DAEMON:
            told = self._kill_daemon(ops)
            self._mount_again(next_hooked)
        else:
            told = self._kill_writer(ops)
        self._check(ops, told)
        self._go_on()
        self.row["violations"] = [violation.row() for violation in self.violations]
        return self.row

    def _save_whole(self, version: int) -> list[Op]:
        ops = save(self.trial, version, self.files)
        writer = Writer(self.path, ops)
        code = writer.wait()
        told = writer.told
        if code != SAVED:
            raise Failed(f"version {version}: exit {code}, error {told.errno}, at {told.where}")
        self.files = after(self.files, ops)
        self.save_s, self.close_s = told.save_s, told.close_s or _CLOSE_S
        return ops

    # --- kills -----------------------------------------------------------------------------------

    def _kill_writer(self, ops: list[Op]) -> Progress:
        trial = self.trial
        inside = trial.how is How.PHASE and trial.phase is not Phase.CLOSING
        writer = Writer(
            self.path,
            ops,
            death=self._death(ops) if inside else None,
            number=trial.signal,
            threads=trial.threads,
            stays=True,
        )
        if not inside:
            self._wait_for_moment(writer, ops)
            writer.kill(trial.signal)
        code = writer.wait()
        if code != -trial.signal:
            self._violated("harness", f"the writer ended with {code}", f"{writer.told.where}")
        return self._progress(writer.told, ops)

    def _death(self, ops: list[Op]) -> Death:
        assert self.trial.phase is not None
        number = self._file(ops)
        content = ops[number].content
        assert content is not None
        size = len(content) - ops[number].start
        return number, self.trial.phase, min(size - 1, int(self.trial.within * size))

    def _file(self, ops: list[Op]) -> int:
        """Which op it is to happen in."""
        files = [number for number, op in enumerate(ops) if op.act.told]
        return files[int(self.trial.place * len(files))]

    def _wait_for_moment(self, writer: Writer, ops: list[Op]) -> None:
        trial = self.trial
        if trial.phase is Phase.CLOSING:
            closing = self._file(ops), Phase.CLOSING
            writer.wait_for(lambda told: told.where >= closing)
            time.sleep(trial.within * self.close_s * _BEYOND)
        else:
            share = _UMOUNT_IN if trial.how in (How.FORCED, How.LAZY) else _BEYOND
            writer.wait_for(lambda told: told.began)
            time.sleep(trial.within * self.save_s * share)

    def _kill_daemon(self, ops: list[Op]) -> Progress:
        trial, place = self.trial, self.place
        step = trial.step if trial.how is How.STEP else None
        files = sum(op.act not in (Act.FOLDER, Act.REMOVE) for op in ops)
        place.control.arm(step.value if step else "", int(trial.place * files) + 1 if step else 0)
        writer = Writer(self.path, ops, threads=trial.threads)
        try:
            if step is not None:
                self._wait_for_step(writer)
            else:
                self._wait_for_moment(writer, ops)
                self._umount()
            place.kill_daemon()
            place.reap()
            if writer.wait() is None:
                self._violated("errors are told", "the writer hangs")
        except BaseException:
            end(writer)
            raise
        self.row["step"] = place.control.reached if trial.hooked else ""
        place.control.arm("", 0)
        return self._progress(writer.told, ops)

    def _wait_for_step(self, writer: Writer) -> None:
        died = False
        while not died and writer.runs():
            died = self.place.daemon_died(_POLL_S)
        assert self.trial.step is not None
        self.row["aimed"] = self.trial.step.value
        failed = writer.told.errno != 0  # it may hear of the death first
        self.row["reached"] = died or self.place.daemon_died(_DYING_S if failed else 0)

    def _umount(self) -> None:
        if self.trial.how in (How.FORCED, How.LAZY):
            self.place.umount("-f" if self.trial.how is How.FORCED else "-l")
            self.below = not self.place.mounted
            # An aborted connection ends the daemon; some are left the time for it.
            self.place.daemon_died(self.trial.place * self.save_s)

    def _progress(self, told: Account, ops: list[Op]) -> Progress:
        number, phase = told.where
        known = {"op": number, "ops": len(ops), "phase": str(phase), "errno": told.errno}
        self.row.update(known, unheard=told.unheard, save_s=round(self.save_s, 4))
        return Progress(number, phase, told.written)

    def _mount_again(self, hooked: bool) -> None:
        seconds = self.place.serve(hooked=hooked)
        self.row["mount_s"], self.row["plain"] = round(seconds, 4), not hooked
        self.row["load"] = round(os.getloadavg()[0], 1)

    # --- checks ----------------------------------------------------------------------------------

    def _violated(self, promise: str, found: str, detail: str = "") -> None:
        self.violations.append(Violation(promise, found, detail=detail))

    def _check(self, ops: list[Op], told: Progress) -> None:
        """What was closed, or written to, is looked at right away. A file that a killed writer has
        only opened is dropped at its RELEASE; until then others see the new name."""
        opened = not ops[told.op].act.told or not told.written
        if self.place.transactional and opened and not told.done(told.op):
            self.place.at_rest()
        found = self.place.files(self.trial.folder)
        self.violations += filter(self._counts, judge(self.files, ops, told, found))
        op = ops[told.op]
        old = self.files.get(op.name)
        self.row["met"] = state(found.get(op.name), old, op.content)
        if self.place.transactional:
            self._check_salvage(ops, told, found)
            self.violations += self._findings()
        self.files = found

    def _counts(self, seen: Violation) -> bool:
        """When the mount goes away a name means two things to a writer: safetensors renames below
        what it made in the mount, fails, and closes its temporary file, alive."""
        lost = self.below and self.trial.work is Work.SAFETENSORS
        return not (lost and seen.found == STRAY)

    def _check_salvage(self, ops: list[Op], told: Progress, found: Files) -> None:
        op = needs_salvage(self.files, ops, told, found)
        if op is None:
            return
        deadline = time.monotonic() + _SOON_S
        while True:
            kept = self.place.salvaged(self.trial.folder)
            path = in_salvage(op, told, kept)
            if path is not None:
                self.row["salvaged"] = path != ""
                return
            if time.monotonic() > deadline:
                self._violated("C6", "its bytes are not in salvage", op.name)
                return
            time.sleep(_POLL_S)

    def _findings(self) -> Iterable[Violation]:
        outside = {self.trial.folder} if self.below else set()
        return sound(self.place, outside, self.trial.folder)

    def _go_on(self) -> None:
        """A further save works, and after it nothing is left in stage."""
        if self.place.transactional:
            self._save_whole(self.trial.versions + 2)
            found = self.place.files(self.trial.folder)
            if found != self.files:
                wrong = sorted(name for name in self.files if found.get(name) != self.files[name])
                self._violated("goes on", "a further save is not there", ", ".join(wrong))
            if not self.place.at_rest():
                self._violated("goes on", "something is left in stage")


def sound(place: Site, below: Container[str], folder: str = "") -> Iterable[Violation]:
    """What verify calls bad. In the folders ``below`` a writer went on where the mount had been,
    and its files are as any that were written outside."""
    for finding in place.findings(folder):
        path = finding.path if finding.subject is Subject.FILE else finding.of
        outside = path.partition("/")[0] in below and finding.condition in _OUTSIDE
        bad = finding.condition in BAD | _OUTSIDE | {Condition.LEFTOVER}
        if bad and not outside:
            yield Violation("verify", finding.condition.value, finding.path, finding.detail)
