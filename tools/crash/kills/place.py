"""A directory that is served, and whose daemon is killed; what stands in it, above and below."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from ckptfs.checking.examine import Finding
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe
from ckptfs.modes import Mode
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope

from ...harness.hooked import program
from ...harness.rig import PLAIN_PROGRAM, Mount, mounted_device
from .draw import PLAIN
from .dying import Control
from .saves import Files

_DEATH_LIMIT_S = 20.0
_UMOUNT_LIMIT_S = 20.0
_REST_LIMIT_S = 5.0
_POLL_S = 0.002
_FACTORY = "ckptfs.tools.crash.kills.dying:dying"


def _raise(error: OSError) -> None:
    raise error


def end_all(folder: Path) -> None:
    """Every process that was started for a place in this folder, by its command line, and every
    mount: also those of a command that was only about to mount."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) + b"/" in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
    for control in folder.glob("*.control"):
        Mount(control.with_suffix("")).take_away()


class Site:
    """``subject`` is a write mode, or :data:`PLAIN` for a directory without a mount."""

    def __init__(self, path: Path, subject: str) -> None:
        self.path, self.subject = path, subject
        path.mkdir()
        self._root = os.open(path, os.O_DIRECTORY | os.O_CLOEXEC)  # below, whatever is mounted
        self._control_file = path.with_suffix(".control")
        self.control = Control.make(self._control_file)
        self._mount: Mount | None = None
        self._daemon = -1

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        if self._mount is not None:
            self._mount.take_away()
            self.kill_daemon()
            self._forget()
        os.close(self._root)
        self.control.close()
        for path in self.path.parent.glob(f"{self.path.name}.*"):
            path.unlink()
        shutil.rmtree(self.path, ignore_errors=True)

    # --- the daemon ------------------------------------------------------------------------------

    def serve(self, *, hooked: bool) -> float:
        """Mount by the command, with a daemon that tells its steps or the plain one. The seconds
        until the command returned, which is when it serves. Raises CannotServe."""
        if self.subject == PLAIN:
            return 0.0
        own = program(_FACTORY, self._control_file) if hooked else PLAIN_PROGRAM
        self._mount = mount = Mount(self.path, "--mode", self.subject, program=own)
        began = time.perf_counter()
        mount.start()
        seconds = time.perf_counter() - began
        self._daemon = os.pidfd_open(int(mount.status()["pid"]))
        return seconds

    def stop(self) -> None:
        """Unmount by the command."""
        if self._mount is not None:
            self._mount.stop()
            self._forget()

    def kill_daemon(self) -> None:
        """Does nothing where there is none."""
        if self._daemon >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._daemon, signal.SIGKILL)

    def daemon_died(self, within_s: float = _DEATH_LIMIT_S) -> bool:
        """Whether it has ended, every thread of it, within this time."""
        ready, _, _ = select.select([self._daemon], [], [], within_s)
        return bool(ready)

    def reap(self) -> None:
        """After the daemon's death. Raises CannotServe if it lives."""
        if not self.daemon_died():
            raise CannotServe("the daemon does not die")
        self._forget()

    def _forget(self) -> None:
        if self._daemon >= 0:
            os.close(self._daemon)
        self._daemon, self._mount = -1, None

    def umount(self, option: str) -> None:
        """``umount -f`` or ``-l``, as a person would. It may be refused: what is open keeps it."""
        command = ["umount", option, str(self.path)]
        subprocess.run(command, capture_output=True, timeout=_UMOUNT_LIMIT_S, check=False)

    @property
    def mounted(self) -> bool:
        return mounted_device(self.path) is not None

    @property
    def transactional(self) -> bool:
        return self.subject != PLAIN and Mode(self.subject).transactional

    # --- what is there ---------------------------------------------------------------------------

    def files(self, folder: str) -> Files:
        """What programs see in a folder of the directory."""
        top = self.path / folder
        return {
            str(path.relative_to(top)): path.read_bytes()
            for place, _, names in os.walk(top, onerror=_raise)
            for path in (Path(place, name) for name in names)
        }

    @property
    def _control(self) -> Path:
        return Path(f"/proc/self/fd/{self._root}", fmt.CONTROL)

    def salvaged(self, folder: str) -> list[tuple[str, bytes]]:
        """Paths and bytes in salvage: those of the files in a folder, and those without a path,
        which are what the daemon's death met between seal and publish."""
        found = []
        with self._layout() as layout:
            for story in layout.aside.entries(layout.salvage):
                path = str(story.get("path") or "")
                if not path or path.startswith(f"{folder}/"):
                    content = (self._control / fmt.SALVAGE / str(story["id"])).read_bytes()
                    found.append((path, content))
        return found

    def at_rest(self, within_s: float = _REST_LIMIT_S) -> bool:
        """Whether the daemon has no version under way, after this time at most: RELEASE comes when
        the kernel gets to it, and nobody waits for it."""
        assert self._mount is not None
        deadline = time.monotonic() + within_s
        while os.listdir(self._control / fmt.STAGE) or self._mount.status()["writing"]:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def findings(self, folder: str = "") -> Iterator[Finding]:
        """What ``ckptfs verify`` says of a folder, or of everything."""
        paths = (folder,) if folder else ()
        scope = Scope(paths=paths, served=self._mount is not None)
        with self._layout() as layout:
            yield from Check(layout, scope).findings()

    @contextlib.contextmanager
    def _layout(self) -> Iterator[Layout]:
        layout = Layout.existing(OsFs(), self._root, str(self.path))
        if layout is None:
            raise CannotServe(f"{self.path}: no ckptfs directory")
        try:
            yield layout
        finally:
            layout.close()
