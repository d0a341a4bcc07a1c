"""A user who holds a file by O_PATH makes its name another user's file, then asks for something by
the descriptor. A program, run as root on a directory: prints what should not have happened."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

VICTIM, ATTACKER = 1, 65534
_folder = ""  # where it is tried now
SECRET = b"the victim's secret"
OLD_NS = 1_000_000_000
AT_FDCWD, AT_SYMLINK_FOLLOW, RENAME_EXCHANGE = -100, 0x400, 2
libc = ctypes.CDLL(None, use_errno=True)
# An operation that is refused says so by one of these; it may also do its work on the old file.
REFUSED = {errno.ESTALE, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENODATA, errno.EOPNOTSUPP}


def as_user(uid: int, work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a process of that user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.umask(0o077)
            os.write(writer, json.dumps(work()).encode())
        except BaseException:
            os.write(writer, json.dumps(traceback.format_exc()).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as answer:
        return json.loads(answer.read() or b"null")


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def save(path: Path) -> None:
    path.write_bytes(SECRET)
    os.setxattr(path, "user.s", b"1")
    os.utime(path, ns=(OLD_NS, OLD_NS))


def told(path: Path) -> tuple[Any, ...]:
    status = path.lstat()
    xattrs = {k: os.getxattr(path, k).hex() for k in os.listxattr(path) if "ckptfs" not in k}
    owners = status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns
    return (*owners, path.read_bytes().decode(), xattrs)


# --- what the name comes to stand for; each returns where the victim's file is then ------------


def renamed_over(folder: Path) -> Path:
    as_user(VICTIM, lambda: save(folder / "secret"))
    as_user(ATTACKER, lambda: os.rename(folder / "secret", folder / "x"))
    return folder / "x"


def made_again(folder: Path) -> Path:
    """On ext4 with the number of the file that was there."""
    as_user(ATTACKER, lambda: os.unlink(folder / "x"))
    as_user(VICTIM, lambda: save(folder / "x"))
    return folder / "x"


def exchanged(folder: Path) -> Path:
    as_user(VICTIM, lambda: save(folder / "secret"))
    names = os.fsencode(folder / "secret"), os.fsencode(folder / "x")
    swap = AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE
    as_user(ATTACKER, lambda: checked(libc.renameat2(*swap)))
    return folder / "x"


def made_a_link_to(folder: Path) -> Path:
    as_user(VICTIM, lambda: save(folder / "secret"))
    as_user(ATTACKER, lambda: (os.unlink(folder / "x"), os.symlink("secret", folder / "x"))[1])
    return folder / "secret"


def made_a_fifo(folder: Path) -> Path:
    """To open it would wait for a writer."""
    as_user(VICTIM, lambda: save(folder / "secret"))
    as_user(ATTACKER, lambda: (os.unlink(folder / "x"), os.mkfifo(folder / "x"))[1])
    return folder / "secret"


def moved_away(folder: Path) -> Path:
    """And back, when another file has taken the name meanwhile."""
    as_user(ATTACKER, lambda: os.rename(folder / "x", folder / "y"))
    as_user(VICTIM, lambda: save(folder / "x"))
    return folder / "x"


# --- what is asked for ----------------------------------------------------------------------------


def read(held: str) -> str:
    with open(held, "rb") as file:
        return file.read().decode()


def write(flags: int) -> Callable[[str], str]:
    def work(held: str) -> str:
        opened = os.open(held, flags)
        before = os.pread(opened, 100, 0) if flags & os.O_RDWR else b""
        os.pwrite(opened, b"OWNED", 0)
        os.close(opened)
        return before.decode()

    return work


def status(held: str) -> str:
    return "" if os.stat(held).st_uid == ATTACKER else "the status of another user's file"


def link(held: str) -> None:
    new = os.path.join(_folder, "link")
    names = os.fsencode(held), AT_FDCWD, os.fsencode(new)
    checked(libc.linkat(AT_FDCWD, *names, AT_SYMLINK_FOLLOW))


OPERATIONS: dict[str, Callable[[str], Any]] = {
    "read": read,
    "write r+": write(os.O_RDWR),
    "append": write(os.O_WRONLY | os.O_APPEND),
    "write w": write(os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda held: os.truncate(held, 3),
    "empty": lambda held: os.truncate(held, 0),
    "chmod": lambda held: os.chmod(held, 0o666),
    "chgrp": lambda held: os.chown(held, -1, ATTACKER),
    "utime": lambda held: os.utime(held, (5, 5)),
    "touch": lambda held: os.utime(held),
    "setxattr": lambda held: os.setxattr(held, "user.s", b"2"),
    "getxattr": lambda held: os.getxattr(held, "user.s").decode().replace("1", "the xattr"),
    "removexattr": lambda held: os.removexattr(held, "user.s"),
    "listxattr": lambda held: "user.s" in os.listxattr(held) and "the name of an xattr",
    "verify": lambda held: os.setxattr(held, "user.ckptfs.verify", b""),
    "rollback": lambda held: os.setxattr(held, "user.ckptfs.rollback", b""),
    "adopt": lambda held: os.setxattr(held, "user.ckptfs.adopt", b""),
    "link": link,
    "stat": status,
}
SWAPS = (renamed_over, made_again, exchanged, made_a_link_to, made_a_fifo, moved_away)


def attacked(held: str, operation: Callable[[str], Any], uid: int) -> tuple[str, str]:
    """The name of its error, and what it got to see."""

    def work() -> tuple[str, str]:
        try:
            return "", str(operation(held) or "")
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "?"), ""

    outcome = as_user(uid, work)
    return (outcome[0], outcome[1]) if isinstance(outcome, list) else ("TRACE", str(outcome))


def tried(top: Path, swap: Callable[[Path], Path], name: str, by_name: bool) -> str | None:
    """What went wrong, if anything."""
    global _folder
    folder = top / f"{swap.__name__} {name}".replace(" ", "-")
    folder.mkdir()
    folder.chmod(0o777)
    _folder = str(folder)
    mine = folder / "x"
    as_user(ATTACKER, lambda: [mine.write_bytes(b"mine") for _ in range(2)])
    fd = os.open(mine, os.O_PATH)
    os.stat(f"/proc/self/fd/{fd}")
    secret = swap(folder)
    before = told(secret)
    held, uid = (str(mine), 0) if by_name else (f"/proc/self/fd/{fd}", ATTACKER)
    error, got = attacked(held, OPERATIONS[name], uid)
    os.close(fd)
    after = told(secret)
    case = f"{name}, {swap.__name__}"
    if before != after:
        return f"{case}: {before} became {after}"
    if error and getattr(errno, error, 0) not in REFUSED:
        return f"{case}: {error} {got}"
    if got and got != "mine":
        return f"{case}: got {got!r}"
    return None


def main() -> None:
    """With a second argument as root, by name: the control."""
    by_name = len(sys.argv) > 2
    os.chdir(sys.argv[1])  # what is above need not be for these users
    os.chmod(".", 0o755)
    top = Path()
    swaps = [swap for swap in SWAPS if not by_name or swap is not made_a_fifo]
    wrong = [tried(top, swap, name, by_name) for swap in swaps for name in OPERATIONS]
    print(json.dumps([case for case in wrong if case]))


if __name__ == "__main__":
    main()
