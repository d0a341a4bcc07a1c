"""One user's long commits keep nobody waiting: not others, and not his own short ones. Who waits
for one by opening its file finds what it left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from actors import Actor, actors
from mounts import Served

from ckptfs.tools import hooked
from ckptfs.tools.faults import LongReadsWait

HOSTILE, VICTIM = 65534, 65533
LONG_BYTES = LongReadsWait.LONG_BYTES
FILES = 20  # more than may run

_BECOME = "import threading; os.setgroups([]); os.setgid({0}); os.setuid({0})"
_OPEN = f"fds = [os.open(f'long{{i}}', os.O_RDWR | os.O_CREAT) for i in range({FILES})]"
_FILL = f"[(os.pwrite(fd, b'x', 0), os.truncate(fd, {LONG_BYTES})) for fd in fds]"
_CLOSE = """
closes = [threading.Thread(target=os.close, args=(fd,)) for fd in fds]
[close.start() for close in closes]
"""
_LEAVE_TO_A_CHILD = f"""
ready, go = os.pipe()
child = os.fork()
if child == 0:
    os.read(ready, 1)
    {_FILL}
    os._exit(0)
[os.close(fd) for fd in fds]
os.write(go, b'x')
os.waitpid(child, 0)
"""


@pytest.fixture
def trigger(tmp_path: Path) -> Path:
    return tmp_path / "reads-wait"


@pytest.fixture
def stuck(disk_dir: Path, trigger: Path) -> Iterator[Served]:
    """A mount on which digests of long files wait while the trigger is there."""
    disk_dir.chmod(0o1777)
    program = hooked.program("ckptfs.tools.faults:LongReadsWait", trigger)
    mount = Served(disk_dir, program=program)
    with mounts.ending(mount):
        mount.start_in_foreground()
        trigger.touch()
        try:
            yield mount
        finally:
            trigger.unlink(missing_ok=True)


@contextlib.contextmanager
def users(mount: Served, *uids: int) -> Iterator[tuple[Actor, ...]]:
    with actors(mount.path, len(uids)) as everybody:
        for actor, uid in zip(everybody, uids, strict=True):
            actor.do(_BECOME.format(uid))
        yield everybody


@pytest.mark.kernel_only("libfuse has threads of its own")
def test_long_closes_of_one_user_keep_nobody_waiting(stuck: Served, trigger: Path) -> None:
    with users(stuck, HOSTILE, HOSTILE, VICTIM) as (hostile, same, victim):
        for code in (_OPEN, _FILL, _CLOSE):
            hostile.do(code)
        for actor, name in ((victim, "others"), (same, "own")):
            actor.write(name, "saved")
            actor.do(f"fd = os.open({name!r}, os.O_RDWR); os.fsync(fd); os.close(fd)")
            actor.do(f"os.rename({name!r}, '{name}.2'); os.unlink('{name}.2')")
        assert trigger.exists()
        trigger.unlink()
        hostile.do("[close.join() for close in closes]")
    stuck.umount()
    assert sum(path.stat().st_size == LONG_BYTES for path in stuck.path.glob("long*")) == FILES


@pytest.mark.kernel_only("libfuse has threads of its own")
def test_what_a_release_commits_is_the_work_of_who_opened_it(stuck: Served, trigger: Path) -> None:
    """The request names no user, that is root: root's own long work must not wait for it."""
    with users(stuck, HOSTILE) as (hostile,), actors(stuck.path, 1) as (root,):
        hostile.do(_OPEN)
        hostile.do(_LEAVE_TO_A_CHILD)
        root.do(f"fd = os.open('r', os.O_RDWR | os.O_CREAT); os.truncate(fd, {LONG_BYTES})")
        root.do("os.close(fd)")
        assert trigger.exists()


_ADD = """
import fcntl
fcntl.flock(fd, fcntl.LOCK_EX)
end = os.lseek(fd, 0, os.SEEK_END)
os.write(fd, b'x')
fcntl.flock(fd, fcntl.LOCK_UN)
"""


@pytest.mark.kernel_only(mounts.OWN_LOCKS)
def test_who_waited_for_a_commit_goes_on_where_others_yet_write(
    stuck: Served, trigger: Path
) -> None:
    """They add to one file under its lock, as torch's FileStore does. One closes it while another
    has it open; a third, who opens it meanwhile, is not to have a copy that lacks what they add."""
    with actors(stuck.path, 3) as (first, other, third):
        opened = "fd = os.open('store', os.O_RDWR | os.O_CREAT)"
        other.do(opened)
        first.do(opened)
        first.do(f"os.pwrite(fd, b'x', 0); os.truncate(fd, {LONG_BYTES})")
        first.send("os.close(fd)")
        wait_in_a_request(first)
        third.send(opened)
        wait_in_a_request(third)
        trigger.unlink()
        first.answer()
        third.answer()
        for number, actor in enumerate((other, third, other)):
            actor.do(_ADD)
            assert actor.value("end") == LONG_BYTES + number
        other.do("os.close(fd)")
        third.do("os.close(fd)")
    assert (stuck.path / "store").stat().st_size == LONG_BYTES + 3


def wait_in_a_request(actor: Actor) -> None:
    """Until it has been asleep in one for a while: it may be sent back once."""
    idle = "0"  # reads its orders
    deadline, since = time.monotonic() + mounts.CHILD_LIMIT_S, time.monotonic()
    while time.monotonic() < since + 0.3:
        assert time.monotonic() < deadline
        if Path(f"/proc/{actor.pid}/syscall").read_text().split()[0] in ("running", idle):
            since = time.monotonic()
        time.sleep(0.01)
