"""Processes of ordinary users, in a mount namespace of their own.

A user without rights cannot reach an interpreter below /root, nor a /dev/fuse of mode 0600. The
lab is a mount namespace in which both are laid out as on a user's machine; nothing outside is
changed, and all of it goes with the lab's last process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actors import Actor
from mounts import CHILD_LIMIT_S, TEST_LIMIT_S, Served, ending

PROJECT = Path(__file__).parents[2]
ALICE, BOB = 60001, 60002
_SET_UP = """
set -e
cd "$1"
mkdir lab python site
mount -t tmpfs -o mode=755 lab lab
mknod lab/fuse c 10 229
chmod 666 lab/fuse
mount --bind lab/fuse /dev/fuse
mount --bind "$2" python
mount --bind "$3" site
{ cat /etc/passwd; echo alice:x:60001:60001::/:/bin/sh; echo bob:x:60002:60002::/:/bin/sh; } >passwd
mount --bind passwd /etc/passwd
if [ -e /etc/fuse.conf ]; then touch fuse.conf; mount --bind fuse.conf /etc/fuse.conf; fi
echo ready
read -r _
"""


class Lab:
    """``base`` is the same path inside and outside; what it holds for users lies in ``disk``."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="ckptfs-users-", dir="/tmp"))
        self.base.chmod(0o755)
        (self.base / "disk").mkdir()
        self._lay_out_the_program()
        spec = find_spec("click")
        assert spec is not None and spec.origin is not None
        site = Path(spec.origin).parent.parent
        self._holder = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private"),
                *("bash", "-c", _SET_UP, "lab", self.base, sys.base_prefix, site),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None and self._holder.stderr is not None
        self.trouble = ""
        if self._holder.stdout.readline() != "ready\n":
            self.trouble = self._holder.stderr.read().strip() or "no mount namespace"
            return
        self.pid = self._holder.pid
        done = self.run(ALICE, "ckptfs", "--version")
        if done.returncode != 0:
            self.trouble = f"users cannot run the program here: {done.stderr.strip()}"

    def _lay_out_the_program(self) -> None:
        ignore = shutil.ignore_patterns("__pycache__")
        package = self.base / "src/ckptfs"
        shutil.copytree(PROJECT / "ckptfs", package, ignore=ignore)
        for folder in ("mount", "tools"):
            shutil.copytree(PROJECT / folder, package / folder, ignore=ignore)

    def end(self) -> None:
        self._holder.kill()
        self._holder.communicate()
        shutil.rmtree(self.base, ignore_errors=True)

    def home(self, uid: int) -> Path:
        path = self.base / "disk" / str(uid)
        if not path.exists():
            path.mkdir()
            os.chown(path, uid, uid)
        return path

    def folder(self, uid: int) -> Path:
        """A new directory of that user's, in which nothing was ever served."""
        path = Path(tempfile.mkdtemp(dir=self.home(uid)))
        path.chmod(0o755)
        os.chown(path, uid, uid)
        return path

    def seen(self, path: Path) -> Path:
        """A path in the lab, whatever is mounted there, for a process outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def allow_other(self, allowed: bool) -> None:
        (self.base / "fuse.conf").write_text("user_allow_other\n" if allowed else "")

    @property
    def python(self) -> str:
        return f"{self.base}/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"

    def command(
        self, uid: int, *words: object, cwd: object = "/", groups: tuple[int, ...] = ()
    ) -> list[str]:
        """What runs ``words`` as a user in the lab; ``python`` and ``ckptfs`` stand for ours."""
        program, *rest = map(str, words)
        ours = {"python": [self.python], "ckptfs": [self.python, "-m", "ckptfs"]}
        as_user = [
            *("setpriv", "--reuid", str(uid), "--regid", str(uid)),
            *(["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]),
        ]
        return [
            *("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--"),
            *(as_user if uid else []),
            *("env", "-i", f"--chdir={cwd}", f"HOME={self.home(uid)}"),
            f"PATH={os.environ['PATH']}:/usr/sbin",
            f"PYTHONPATH={self.base}/src:{self.base}/site",
            "PYTHONDONTWRITEBYTECODE=1",
            *ours.get(program, [program]),
            *rest,
        ]

    def run(
        self, uid: int, *words: object, limit_s: float = CHILD_LIMIT_S, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(uid, *words, **how)
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s)

    def shell(self, uid: int, script: str, cwd: object, **how: Any) -> str:
        done = self.run(uid, "bash", "-c", script, cwd=cwd, **how)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def actors(self, cwd: Path, *uids: int, groups: tuple[int, ...] = ()) -> Iterator[list[Actor]]:
        """A process of each user, to be directed step by step."""
        with contextlib.ExitStack() as stack:
            commands = [self.command(uid, "python", cwd=cwd, groups=groups) for uid in uids]
            yield [stack.enter_context(Actor(None, command)) for command in commands]


class UserMount(Served):
    """A directory that a user serves; seen in the lab only."""

    def __init__(self, lab: Lab, uid: int, directory: Path, *options: str) -> None:
        super().__init__(directory, *options)
        self.lab, self.uid = lab, uid
        self.table = f"/proc/{lab.pid}/mountinfo"
        self.log = lab.home(uid) / f"{directory.name}.log"

    def ckptfs(self, *words: object, limit_s: float = CHILD_LIMIT_S) -> Any:
        return self.lab.run(self.uid, "ckptfs", *words, limit_s=limit_s)

    def detach(self) -> int:
        return self.lab.run(0, "umount", "-l", self.path).returncode


@contextlib.contextmanager
def user_mount(
    lab: Lab, uid: int, *options: str, at: Path | None = None, limit_s: float = TEST_LIMIT_S
) -> Iterator[UserMount]:
    directory = at or lab.folder(uid)
    lab.seen(directory).chmod(0o755)
    os.chown(lab.seen(directory), uid, uid)
    mount = UserMount(lab, uid, directory, *options)
    with ending(mount, limit_s):
        mount.start()
        yield mount
