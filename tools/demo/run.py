"""``ckptfs demo``: train through a mount, kill, corrupt, recover; and what a plain directory does.

Everything happens in a temporary directory under the current one; no mount and no process is left,
also when it is interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import torch

from . import train

_LIMIT_S = 300.0
_PYTHON = sys.executable


class _Failed(Exception):
    """The demo showed something other than what ckptfs promises."""


def run(megabytes: int) -> int:
    """Run the demo with checkpoints of about ``megabytes``. Returns the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    root = Path(tempfile.mkdtemp(prefix="ckptfs-demo-", dir="."))
    try:
        _Demo(root.resolve(), megabytes).show()
    except _Failed as error:
        print(f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    finally:
        _remove(root.resolve())
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _remove(root: Path) -> None:
    mountpoint = root / "checkpoints"
    if mountpoint.is_mount():
        _ckptfs("umount", str(mountpoint))
    if mountpoint.is_mount():
        subprocess.run(["umount", "-l", mountpoint], check=False, timeout=_LIMIT_S)
    shutil.rmtree(root, ignore_errors=True)


def _ckptfs(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [_PYTHON, "-m", "ckptfs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)


class _Demo:
    def __init__(self, root: Path, megabytes: int) -> None:
        self.megabytes = megabytes
        self.plain = root / "plain"
        self.served = root / "checkpoints"
        self.log = root / "ckptfs.log"
        self.rights: dict[int, str] = {}  # step -> fingerprint of its weights

    def show(self) -> None:
        self.plain.mkdir()
        self.served.mkdir()
        _say(f"1. a plain directory: train, save {self.megabytes} MB a step, kill -9 in a save")
        self._train_and_kill(self.plain, lambda: _size(self.plain / "last.pt"))
        self._load_torn(self.plain / "last.pt")

        _say("2. ckptfs mount checkpoints; the same program, killed in a save again")
        self._mount()
        below = self._below()
        stage = below / ".ckptfs" / "stage"
        self._train_and_kill(self.served, lambda: max(map(_size, stage.glob("*")), default=0))
        step = self._load_good("the last save that was finished")

        _say("3. resume, save twice more, then flip one byte of last.pt on the disk")
        self._train(self.served, 2)
        self._flip(below / "last.pt")
        rolled_back = self._load_good("the generation before the damaged one")
        _check(rolled_back == step + 1, "the load gave another generation than the one before")
        self._show("log", str(self.served))

        _say("4. ckptfs verify, umount; what is left are plain files")
        self._show("verify", str(self.served))
        self._show("umount", str(self.served))
        self._load_good("without ckptfs")
        _say("the old version or the new one, whole, every time")

    # --- steps -----------------------------------------------------------------------------------

    def _mount(self) -> None:
        done = _ckptfs("mount", str(self.served), "--log", str(self.log))
        _check(done.returncode == 0, done.stderr.strip())

    def _below(self) -> Path:
        done = _ckptfs("status", str(self.served), "--json")
        _check(done.returncode == 0, done.stderr.strip())
        status = json.loads(done.stdout)
        return Path(f"/proc/{status['pid']}/fd/{status['root_fd']}")

    def _train(self, folder: Path, steps: int) -> None:
        with self._trainer(folder, steps) as process:
            self._follow(process)

    def _train_and_kill(self, folder: Path, written: Callable[[], int]) -> None:
        """Let it save twice, then SIGKILL it when half of the third save is written."""
        with self._trainer(folder, 100) as process:
            self._follow(process, lines=2)
            whole = _size(folder / "last.pt")
            while not 0.1 * whole < written() < 0.9 * whole:
                _check(process.poll() is None, "the trainer ended by itself")
            process.kill()
            self._follow(process)

    @contextlib.contextmanager
    def _trainer(self, folder: Path, steps: int) -> Iterator[subprocess.Popen[str]]:
        command = [_PYTHON, train.__file__, str(folder / "last.pt"), str(self.megabytes)]
        process = subprocess.Popen(
            [*command, str(steps)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the demo, which ends it
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _follow(self, process: subprocess.Popen[str], lines: int = -1) -> None:
        assert process.stdout is not None
        while lines != 0 and (line := process.stdout.readline()):
            what, step, fingerprint = line.split()
            self.rights[int(step)] = fingerprint
            print(f"   trainer: {what} step {step}, weights {fingerprint}")
            lines -= 1

    def _load_torn(self, path: Path) -> None:
        try:
            torch.load(path)
        except Exception as error:
            print(f"   torch.load: {str(error).splitlines()[0][:90]}")
            print("   both the old weights and the new ones are gone")
            return
        raise _Failed("the plain directory did not tear; try a larger --megabytes")

    def _load_good(self, which: str) -> int:
        state = torch.load(self.served / "last.pt")
        step, found = int(state["step"]), train.fingerprint(state)
        _check(self.rights.get(step) == found, f"step {step} loads with wrong weights {found}")
        print(f"   torch.load: step {step}, weights {found}: right, {which}")
        return step

    def _flip(self, path: Path) -> None:
        """Rot: the bytes change, the time and size stay."""
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(before.st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _show(self, *arguments: str) -> None:
        done = _ckptfs(*arguments)
        shown = (done.stdout + done.stderr).replace(f"{self.served.parent}/", "").splitlines()
        print(f"   $ ckptfs {arguments[0]} checkpoints", *shown, sep="\n   ")


def _say(text: str) -> None:
    print(text, flush=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise _Failed(message)
