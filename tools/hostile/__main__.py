"""What a hostile user costs another one: ``python -m ckptfs.tools.hostile DIR``, as root.

A loop device with ext4, made in DIR, is served by a daemon; one user saves files of 1 MiB in a loop
while another one attacks the mount (``attacks``). A row per attack: how long the saves took
and how many failed. Each attack has a mount of its own; ``all`` is all of them at once. Nothing is
left, also on Ctrl-C and SIGTERM. The control is another ckptfs, by ``--ckptfs COMMAND``. The exit
code is 1 where the 99th percentile is over the target, or a save failed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from ckptfs.errors import CannotServe

from ..harness.command import end_on_sigterm, own_folder
from ..harness.rig import Mount
from .attacks import ATTACKS

HOSTILE, VICTIM = 65534, 65533
_SAVE_BYTES = 1 << 20
_IMAGE_BYTES = 16 << 30
_WARM_UP_S = 2.0  # until the attack is under way
_STUCK_S = 60.0  # for one save, which has failed then
_FILES = 8  # that are saved in turn
_POLL_S = 0.05
_SAMPLE = struct.Struct("=d?")
_NOBODY = "nobody"
_ALL = "all"


@dataclass
class Row:
    attack: str
    seconds: list[float] = field(default_factory=list)
    failures: int = 0

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def __str__(self) -> str:
        shown = (self.quantile(0.5), self.quantile(0.99), max(self.seconds, default=0.0))
        times = " ".join(f"{seconds:8.3f}" for seconds in shown)
        return f"{self.attack:12} {len(self.seconds):6} {times} {self.failures:9}"


HEADING = f"{'attack':12} {'saves':>6} {'p50 s':>8} {'p99 s':>8} {'max s':>8} {'failures':>9}"


class _Served(Mount):
    """By another ckptfs, if a command of one is given."""

    def __init__(self, path: Path, command: str | None) -> None:
        super().__init__(path)
        self._command, self._pid = command, 0

    def start(self) -> Mount:
        super().start()
        self._pid = int(self.status()["pid"])
        return self

    def take_away(self) -> None:
        """With the daemon, which would finish what it was given."""
        super().take_away()
        if self._pid:
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)
            while os.path.exists(f"/proc/{self._pid}"):
                time.sleep(_POLL_S)

    def _ckptfs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        if self._command is None:
            return super()._ckptfs(*arguments)
        words = [self._command, *arguments]
        return subprocess.run(words, capture_output=True, text=True, timeout=_STUCK_S)


@contextlib.contextmanager
def loop_device(folder: Path) -> Iterator[Path]:
    """An ext4 of its own, mounted below ``folder``."""
    image, place = folder / "image", folder / "disk"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(_IMAGE_BYTES)
    try:
        for command in (
            ["mkfs.ext4", "-q", "-F", str(image)],
            ["mount", "-o", "loop", str(image), str(place)],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise CannotServe(done.stderr.strip())
        yield place
    finally:
        subprocess.run(["umount", "-l", place], capture_output=True, check=False)
        image.unlink()


class Children:
    """Processes of users without rights, by their ids; they end with the block, and so do theirs:
    each leads a group."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._pids: list[int] = []

    def start(self, user: int, work: Callable[[], object]) -> None:
        pid = os.fork()
        if pid:
            self._pids.append(pid)
            return
        try:
            os.setpgid(0, 0)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.chdir(self._where)
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            work()
        finally:
            os._exit(0)

    def end(self) -> None:
        """Kill them; those that wait for the mount end once that is gone: see ``reap``."""
        for pid in self._pids:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(OSError):
                    kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        for pid in self._pids:
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)


def save_in_a_loop(answers: int) -> None:
    """The victim: says of each save how long it took, and whether it failed."""
    content = os.urandom(_SAVE_BYTES)
    number = 0
    while True:
        number += 1
        failed, began = False, time.monotonic()
        try:
            with open(f"v-model{number % _FILES}.bin", "wb", buffering=0) as file:
                file.write(content)
        except OSError:
            failed = True
        os.write(answers, _SAMPLE.pack(time.monotonic() - began, failed))
        time.sleep(0.01)


def listen(answers: int, row: Row, seconds: float) -> None:
    """Collect what the victim says; a save that gives no answer has failed, and is the last."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ready, _, _ = select.select([answers], [], [], _STUCK_S)
        if not ready:
            row.seconds.append(_STUCK_S)
            row.failures += 1
            return
        took, failed = _SAMPLE.unpack(os.read(answers, _SAMPLE.size))
        row.seconds.append(took)
        row.failures += failed


def measure(folder: Path, attack: str, seconds: float, command: str | None) -> Row:
    """One attack on one mount."""
    row = Row(attack)
    with loop_device(folder) as disk, contextlib.ExitStack() as ending:
        served = disk / "served"
        served.mkdir()
        served.chmod(0o1777)
        children = Children(served)
        ending.callback(children.reap)
        mount = _Served(served, command)
        ending.callback(mount.take_away)
        mount.start()
        ending.callback(children.end)
        hear, say = os.pipe()
        ending.callback(os.close, hear)
        for name in _attacks_of(attack):
            work, processes = ATTACKS[name]
            for number in range(processes):
                children.start(HOSTILE, lambda work=work, number=number: work(number))  # type: ignore[misc]
        time.sleep(min(_WARM_UP_S, seconds))
        children.start(VICTIM, lambda: save_in_a_loop(say))
        os.close(say)
        listen(hear, row, seconds)
    return row


def _attacks_of(name: str) -> list[str]:
    if name == _NOBODY:
        return []
    return list(ATTACKS) if name == _ALL else [name]


def _chosen(text: str) -> list[str]:
    known = [_NOBODY, *ATTACKS, _ALL]
    names = list(filter(None, text.split(",")))
    if unknown := sorted(set(names) - set(known)):
        raise click.BadParameter(f"no attack {', '.join(unknown)}; there are {', '.join(known)}")
    return names


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("--attacks", default=",".join([_NOBODY, *ATTACKS, _ALL]), show_default=True)
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Of each attack.")
@click.option("--target", type=float, default=1.0, show_default=True, help="Of p99, in seconds.")
@click.option("--ckptfs", "command", help="The command of another ckptfs, which then serves.")
def main(directory: str, attacks: str, seconds: float, target: float, command: str | None) -> None:
    """Measure what a hostile user costs another one. Makes a loop device in DIRECTORY."""
    end_on_sigterm()
    if os.geteuid() != 0:
        raise click.ClickException("it makes a loop device and acts as two users: run it as root")
    missed = False
    click.echo(HEADING)
    for attack in _chosen(attacks):
        try:
            with own_folder(directory, "hostile") as folder:
                row = measure(folder, attack, seconds, command)
        except CannotServe as error:
            raise click.ClickException(str(error)) from None
        click.echo(row)
        missed |= row.failures > 0 or row.quantile(0.99) > target
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
