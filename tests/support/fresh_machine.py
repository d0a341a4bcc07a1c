"""A machine that has nothing of ours: this one's root beneath an overlay, in namespaces of its own.

No fusermount3, no home but an empty one, none of the interpreters that lie below /root. What is
installed or changed there is gone with it, and so is every process and mount. The home is a plain
directory of the disk, since what lies on an overlay cannot be passed through.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

USER = 60001
HOME = "/home/reader"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# pivot_root, for in a chroot nobody may make a user namespace, which `ckptfs run` does.
_MAKE = """
set -e
cd "$1"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
rm -f root/usr/bin/fusermount3 root/usr/bin/fusermount root/bin/fusermount3
echo "reader:x:$2:$2::$3:/bin/bash" >>root/etc/passwd
mkdir -p "root$3"
mount --bind home "root$3"
mount --rbind /dev root/dev
mount --rbind /sys root/sys
mount -t proc none root/proc
mount -t tmpfs -o mode=700 none root/root
pivot_root root root/mnt
cd /
umount -l /mnt
shift 3
exec 2>&1
exec "$@"
"""
_END = "the command ended with"


class Machine:
    """With a shell of ``uid`` on it, in ``HOME``, which is ``home`` here."""

    def __init__(self, base: Path, uid: int) -> None:
        (base / "home").mkdir()
        self.home, self._uid = base / "home", uid
        self._shell: subprocess.Popen[str] | None = None
        self._base = base

    def start(self) -> None:
        """What lies in the home by now is the user's."""
        subprocess.run(["chown", "-R", f"{self._uid}:{self._uid}", self.home], check=True)
        # How this machine reaches its package registry is not what is tried here.
        kept = [f"{k}={v}" for k, v in os.environ.items() if k.lower().startswith(("pip_", "http"))]
        as_user = ["setpriv", f"--reuid={self._uid}", f"--regid={self._uid}", "--clear-groups"]
        shell = ["env", "-i", f"--chdir={HOME}", f"HOME={HOME}", f"PATH={_PATH}", *kept, "bash"]
        self._shell = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                *("--propagation", "private", "bash", "-c", _MAKE, "make"),
                *(str(self._base), str(USER), HOME),
                *(as_user if self._uid else []),
                *shell,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def types(self, command: str) -> tuple[int, list[str]]:
        """The exit status of a line, and what it prints. A machine that is gone is 255."""
        assert self._shell is not None and self._shell.stdin and self._shell.stdout
        try:
            self._shell.stdin.write(f"{command}\nprintf '\\n%s %s\\n' '{_END}' $?\n")
            self._shell.stdin.flush()
        except BrokenPipeError:
            return 255, []
        printed: list[str] = []
        for line in self._shell.stdout:
            if line.startswith(_END):
                return int(line.split()[-1]), printed[:-1] if printed[-1:] == [""] else printed
            printed.append(line.rstrip("\n"))
        return 255, printed

    def end(self) -> None:
        if self._shell is not None:
            os.killpg(self._shell.pid, signal.SIGKILL)
            self._shell.communicate()
