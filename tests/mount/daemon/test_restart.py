"""``ckptfs restart``: the daemon becomes another program, and nobody loses anything by it.

Bugs these close: a planned restart was an umount and a mount, between which saves landed in the
plain directory, and which was refused while anything was open. ``CKPTFS_RESTARTS=50`` makes the
long run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from mounts import HOLD, PYTHON, Served, child, ckptfs, python, served

from ckptfs.mount.daemon import handover
from ckptfs.mount.processes import writers
from ckptfs.mount.sets.table import PendingSet
from ckptfs.mount.view import model
from ckptfs.mount.view.descriptors import OpenFolders
from ckptfs.mount.view.model import Directory, File
from ckptfs.versions.staged import Staged

pytestmark = pytest.mark.kernel_only("libfuse cannot hand its session over")

_RESTARTS = int(os.environ.get("CKPTFS_RESTARTS", "1"))
OLD, NEW = b"old " * 2000, b"new " * 500_000
_AT_WORK = """
import json, os, sys
directory, what, number, end = sys.argv[1:5]
path, done = f"{directory}/{what}{number}", 0
if what == "read":
    open(path, "wb").write(b"x" * 100_000)
print(flush=True)
while not os.path.exists(end):
    done += 1
    if what == "save":
        with open(path, "wb") as file:
            for _ in range(20):
                file.write(f"{done}\\n".encode() * 5000)
    elif what == "replace":
        with open(path + ".tmp", "wb") as file:
            file.write(f"{done}\\n".encode() * 5000)
            os.fsync(file.fileno())
        os.replace(path + ".tmp", path)
    elif what == "add":
        with open(path, "ab") as file:
            file.write(f"{done}\\n".encode())
    elif what == "read":
        assert open(path, "rb").read() == b"x" * 100_000
        assert f"read{number}" in os.listdir(directory)
    elif what == "make":
        os.makedirs(f"{path}/{done}/a")
        os.rename(f"{path}/{done}/a", f"{path}/{done}/b")
        open(f"{path}/{done}/b/file", "w").close()
        assert os.listdir(f"{path}/{done}/b") == ["file"]
print(done)
"""


@contextlib.contextmanager
def at_work(directory: Path, end: Path, *kinds: str) -> Iterator[dict[str, int]]:
    """Programs that end at their first error. How often each did what it does, after the block."""
    started: dict[str, subprocess.Popen[str]] = {}
    done: dict[str, int] = {}
    try:
        for number, what in enumerate(kinds):
            command = [PYTHON, "-c", _AT_WORK, directory, what, str(number), end]
            started[f"{what}{number}"] = child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            assert child.stdout is not None
            child.stdout.readline()
        yield done
        end.touch()
        for name, child in started.items():
            out, error = child.communicate(timeout=30)
            assert child.returncode == 0, (name, error)
            done[name] = int(out)
    finally:
        end.touch()
        for child in started.values():
            child.kill()
            child.wait(10)


def restart(mount: Served, *options: object) -> None:
    done = ckptfs("restart", mount.path, *options)
    assert done.returncode == 0, (done, mount.log_text())


@pytest.mark.parametrize("relay", [(), ("--no-passthrough",)], ids=["passthrough", "relay"])
def test_nothing_fails_while_the_daemon_is_restarted(
    disk_dir: Path, tmp_path: Path, relay: tuple[str, ...]
) -> None:
    end, kinds = tmp_path / "end", ("save", "save", "replace", "add", "read", "read", "make")
    limit_s = mounts.TEST_LIMIT_S + 6 * _RESTARTS
    with served(disk_dir, *relay, limit_s=limit_s) as mount:
        with at_work(disk_dir, end, *kinds) as done:
            for number in range(_RESTARTS):
                time.sleep(0.2)
                restart(mount, "--keep", number % 3)
                assert mount.status()["keep"] == number % 3
            time.sleep(0.2)
        assert all(done.values())
        for name, times in done.items():
            if name.startswith(("save", "replace")):
                assert set((disk_dir / name).read_text().split()) == {str(times)}
            if name.startswith("add"):
                lines = (disk_dir / name).read_text().split()
                assert lines == [str(n) for n in range(1, times + 1)]
        assert mount.log_text().count("restarted;") == _RESTARTS
        checked = ckptfs("verify", disk_dir)
        assert checked.returncode == 0, checked.stdout
        assert "unrecorded" not in checked.stdout and "unreachable" not in checked.stdout
        mount.umount()
        assert os.listdir(disk_dir / ".ckptfs/stage") == []
        assert not list((disk_dir / ".ckptfs/salvage").iterdir())


def test_options_that_are_not_given_stay(disk_dir: Path) -> None:
    options = ("--checksum", "sha256", "--keep", "4", "--in-place", "*.x", "--stop-timeout", "9")
    with served(disk_dir, *options) as mount:
        before = mount.status()
        restart(mount, "--mode", "atomic_nodirsync")
        after = mount.status()
        assert after["mode"] == "atomic_nodirsync" and after["started"] > before["started"]
        for same in ("pid", "checksum", "keep", "in_place", "log", "passthrough", "mountpoint"):
            assert after[same] == before[same]
        assert os.getsid(mount.pid) == mount.pid


def test_a_file_that_is_open_for_writing_is_one_version(mount: Served) -> None:
    """Long, so that what was handed to the disk before counts, too; old bytes and new ones."""
    program = """
import sys
with open(sys.argv[1] + "/model.bin", "wb") as whole, open(sys.argv[1] + "/new.bin", "wb") as new:
    whole.write(b"new " * 8_000_000)
    whole.flush()
    print("open", flush=True)
    sys.stdin.readline()
    assert len(open(sys.argv[1] + "/model.bin").read()) == 32_000_000
    whole.write(b"end")
    new.write(b"new")
"""
    (mount.path / "model.bin").write_bytes(OLD)
    with child(program, mount.path) as process:
        restart(mount)
        assert mount.status()["writing"] == ["model.bin", "new.bin"]
        assert (mount.path / "model.bin").read_bytes() == OLD
        process.communicate("go\n", timeout=20)
        assert process.returncode == 0
    assert (mount.path / "model.bin").read_bytes() == b"new " * 8_000_000 + b"end"
    assert (mount.path / "new.bin").read_bytes() == b"new"
    assert "2 ok" in ckptfs("verify", mount.path).stdout


def test_an_append_to_a_long_file_goes_on(mount: Served) -> None:
    """On ext4 the staged file has a hole where the old bytes are."""
    (mount.path / "long.bin").write_bytes(NEW)
    with open(mount.path / "long.bin", "ab") as file:
        file.write(b"\0first")
        file.flush()
        restart(mount)
        file.write(b"second")
    assert (mount.path / "long.bin").read_bytes() == NEW + b"\0firstsecond"
    with open(mount.path / "long.bin", "ab") as file:
        file.write(b"third")
    assert "1 ok" in ckptfs("verify", mount.path).stdout


def test_readers_keep_what_they_opened(mount: Served) -> None:
    import mmap

    path = mount.path / "model.bin"
    path.write_bytes(OLD)
    with open(path, "rb") as file, open(path, "rb") as late:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        path.write_bytes(NEW)
        restart(mount)
        assert path.read_bytes() == NEW
        assert (late.read(), mapped[:]) == (OLD, OLD)
        assert os.fstat(late.fileno()).st_size == len(OLD)
        path.write_bytes(OLD)
    assert path.read_bytes() == OLD


def test_a_log_a_deleted_file_and_a_working_directory_outlive_it(mount: Served) -> None:
    program = """
import os, sys
os.mkdir("work"); os.chdir("work"); os.mkdir("../gone"); gone = os.open("../gone", os.O_RDONLY)
os.rmdir("../gone")
log = open("train.txt", "a", buffering=1); print("first", file=log)
deleted = open("deleted", "w+"); deleted.write("kept"); deleted.flush(); os.unlink("deleted")
print("ready", flush=True)
sys.stdin.readline()
print("second", file=log); log.close()
deleted.seek(0)
print(deleted.read(), os.listdir("."), os.getcwd().rpartition("/")[2], os.fstat(gone).st_nlink)
"""
    with child(program, cwd=mount.path) as process:
        restart(mount)
        out, _ = process.communicate("go\n", timeout=20)
        assert out.split() == ["kept", "['train.txt']", "work", "0"]
    assert (mount.path / "work/train.txt").read_text() == "first\nsecond\n"
    assert "1 ok" in ckptfs("verify", mount.path).stdout


def test_locks_hold_and_who_waits_gets_them(mount: Served) -> None:
    (mount.path / "a.lock").touch()
    waits = "import fcntl, sys; f = open(sys.argv[1], 'r+'); print(1, flush=True);"
    waits += "fcntl.lockf(f, fcntl.LOCK_EX); print('got it')"
    with open(mount.path / "a.lock", "r+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        with child(waits, mount.path / "a.lock") as process:
            mount.wait_until(lambda: mount.status()["requests"].get("SETLKW"))
            restart(mount)
            refused = "import fcntl, sys\nf = open(sys.argv[1], 'r+')\n"
            refused += "try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            refused += "except BlockingIOError: print('locked')"
            assert python(refused, mount.path / "a.lock") == "locked\n"
            fcntl.lockf(held, fcntl.LOCK_UN)
            assert process.communicate(timeout=10)[0] == "got it\n"


def test_history_and_status_that_are_open_outlive_it(mount: Served) -> None:
    for content in (OLD, NEW, OLD):
        (mount.path / "model.bin").write_bytes(content)
    past = mount.path / ".ckptfs/history/model.bin"
    generation = past / os.listdir(past)[0]
    with open(generation, "rb") as file, open(mount.path / ".ckptfs/status.json") as status:
        restart(mount)
        assert file.read() == NEW
        assert json.load(status)["pid"] == mount.pid
    assert generation.read_bytes() == NEW
    assert mount.status()["counts"]["committed"] == 3


def test_passthrough_is_switched_off_and_on_again(mount: Served) -> None:
    (mount.path / "model.bin").write_bytes(OLD)
    was = mount.status()["passthrough"]
    with open(mount.path / "model.bin", "rb") as carried:
        restart(mount, "--no-passthrough")
        assert not mount.status()["passthrough"]
        assert carried.read() == OLD
        assert (mount.path / "model.bin").read_bytes() == OLD
        with open(mount.path / "relayed.bin", "wb") as relayed:
            relayed.write(OLD)
            relayed.flush()
            restart(mount, "--passthrough")
            relayed.write(OLD)
    assert mount.status()["passthrough"] == was
    assert (mount.path / "relayed.bin").read_bytes() == OLD + OLD


_ENDLESS = """
import os, sys
os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534)
fd = os.open("sparse.pt", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"1", 0)
os.ftruncate(fd, 8 << 40)
print("closing", flush=True)
os.close(fd)
"""


def test_a_restart_beside_an_endless_commit_keeps_nobody_waiting(mount: Served) -> None:
    """It asks no reader to stop, says what it waits for, and ends when it is told to."""
    (mount.path / "free").mkdir()
    (mount.path / "free").chmod(0o777)
    command = [PYTHON, "-c", _ENDLESS, mount.path / "free"]
    told = f"waiting: {mount.path}: a commit or check of free/sparse.pt, for user 65534\n"
    with subprocess.Popen(command, stdout=subprocess.PIPE) as closing:
        assert closing.stdout is not None and closing.stdout.readline() == b"closing\n"
        mount.wait_until(lambda: mount.status()["requests"].get("FLUSH", 0) > 0)
        before = mount.status()["requests"].get("STATFS", 0)  # it wakes readers to stop them
        done = ckptfs("restart", mount.path, "--timeout", "1s")
        assert done.returncode == 8 and done.stderr.startswith(told)
        assert "not restarted: a commit or check of free/sparse.pt, for user" in done.stderr
        waits = [PYTHON, "-m", "ckptfs", "restart", mount.path, "--timeout", "1h"]
        with subprocess.Popen(waits, stderr=subprocess.PIPE, text=True) as asking:
            assert asking.stderr is not None and asking.stderr.readline() == told
            (mount.path / "other.pt").write_bytes(NEW)
            assert (mount.path / "other.pt").read_bytes() == NEW
            asking.send_signal(signal.SIGINT)
            assert asking.wait(20) == 130
        status = mount.status()
        assert status["restart_waits_for"] == "" and "given up" in status["refused"]
        assert status["requests"].get("STATFS", 0) == before
        mount.abort()
        os.kill(mount.pid, signal.SIGKILL)


# --- what can go wrong ---------------------------------------------------------------------------

_ORDER = """
import json, os, sys
order = {"program": json.loads(sys.argv[2]), "changes": {"store": {}, "mount": {}}}
os.setxattr(sys.argv[1] + "/.ckptfs", "user.ckptfs.restart", json.dumps(order).encode())
"""


@pytest.mark.parametrize(
    "program",
    [
        ["/nowhere/python"],
        ["python3"],
        [],
        ["/bin/false"],
        ["/bin/true"],
        ["/bin/echo", '{"format": 1}'],
        [PYTHON, "-c", "import sys; sys.exit('no such thing')"],
    ],
    ids=["missing", "relative", "nothing", "fails", "says nothing", "says another", "explains"],
)
def test_a_program_that_cannot_go_on_leaves_the_daemon_as_it_was(
    mount: Served, program: list[str]
) -> None:
    with open(mount.path / "model.bin", "wb") as file:
        file.write(OLD)
        command = [PYTHON, "-c", _ORDER, mount.path, json.dumps(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode == 1 and "busy" in done.stderr
    assert (mount.path / "model.bin").read_bytes() == OLD
    status = mount.status()
    assert status["pid"] == mount.pid and status["refused"]
    assert "not restarted: " in mount.log_text()
    if program[:1] == [PYTHON]:
        assert "no such thing" in status["refused"]
    restart(mount)
    assert mount.status()["refused"] == ""


def test_a_state_of_another_version_is_refused(mount: Served) -> None:
    other = "import sys; from ckptfs.mount.daemon import handover; handover.FORMAT += 1\n"
    other += "from ckptfs.cli import main; main()"
    command = [PYTHON, "-c", _ORDER, mount.path, json.dumps([PYTHON, "-c", other])]
    assert subprocess.run(command, capture_output=True, timeout=20).returncode == 1
    assert "umount, then mount" in mount.status()["refused"]


_ANY_ORDER = """
import json, os, sys
order = {"program": [sys.executable, "-m", "ckptfs"], "changes": json.loads(sys.argv[2])}
os.setxattr(sys.argv[1] + "/.ckptfs", "user.ckptfs.restart", json.dumps(order).encode())
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"store": {"checksum": "md5"}, "mount": {}},
        {"store": {"keep": "2"}, "mount": {}},
        {"store": {"mode": "none"}, "mount": {}},
        {"store": {"in_place": [1]}, "mount": {}},
        {"store": {}, "mount": {"directory": "/etc"}},
        {"store": {}, "mount": {"no such": 1}},
        {"store": {}},
        [],
    ],
    ids=lambda changes: json.dumps(changes)[:50],
)
def test_options_that_no_command_gives_leave_the_daemon_as_it_was(
    mount: Served, changes: object
) -> None:
    command = [PYTHON, "-c", _ANY_ORDER, mount.path, json.dumps(changes)]
    assert subprocess.run(command, capture_output=True, timeout=20).returncode == 1
    assert "option" in mount.status()["refused"] or "directory" in mount.status()["refused"]
    assert "Traceback" not in mount.log_text()


def test_a_store_that_does_not_open_leaves_the_daemon_as_it_was(mount: Served) -> None:
    with open(mount.path / "model.bin", "wb") as file:
        below = mount.below / ".ckptfs"
        (below / "history").rename(below / "away")
        done = ckptfs("restart", mount.path)
        assert done.returncode == 8 and "history" in done.stderr
        (below / "away").rename(below / "history")
        file.write(OLD)
    restart(mount)
    assert (mount.path / "model.bin").read_bytes() == OLD


@pytest.mark.parametrize("when", ["before", "in", "after"])
def test_a_kill_in_a_restart_leaves_what_a_crash_leaves(mount: Served, when: str) -> None:
    """The program that is killed as it begins to serve has read what was handed to it."""
    (mount.path / "model.bin").write_bytes(OLD)
    dies = {
        "before": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "in": "import sys, os, signal\nif '--try' not in sys.argv:"
        " os.kill(os.getpid(), signal.SIGKILL)\nfrom ckptfs.cli import main; main()",
        "after": "import os, signal; from ckptfs.mount.kernel.session import Session\n"
        "Session.resume = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from ckptfs.cli import main; main()",
    }[when]
    with child(HOLD, mount.path / "model.bin", NEW.decode()[:100_000]):
        command = [PYTHON, "-c", _ORDER, mount.path, json.dumps([PYTHON, "-c", dies])]
        assert subprocess.run(command, capture_output=True, timeout=20).returncode == 1
        mount.wait_until(lambda: not writers.is_running(mount.pid))
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mount.path)
    dead = ckptfs("restart", mount.path)
    assert dead.returncode == 1 and "ckptfs mount" in dead.stderr and dead.stderr.count("\n") == 1
    mount.start()
    assert (mount.path / "model.bin").read_bytes() == OLD
    assert "unfinished when the daemon" in ckptfs("log", mount.path).stdout
    assert ckptfs("verify", mount.path).returncode == 0


def test_a_signal_to_stop_is_not_lost_by_a_restart(mount: Served) -> None:
    restarting = threading.Thread(target=ckptfs, args=("restart", mount.path))
    restarting.start()
    mount.wait_until(lambda: "asked to restart" in mount.log_text())
    os.kill(mount.pid, signal.SIGTERM)
    mount.wait_until(lambda: not writers.is_running(mount.pid), 20)
    restarting.join()
    assert not mount.mounted()


def test_a_daemon_that_is_being_stopped_is_not_restarted(mount: Served) -> None:
    with child(HOLD, mount.path / "model.bin", "bytes"):
        os.kill(mount.pid, signal.SIGTERM)
        mount.wait_until(lambda: "asked to stop" in mount.log_text())
        done = ckptfs("restart", mount.path)
        assert done.returncode == 8 and "asked to stop" in done.stderr
    mount.wait_until(lambda: not writers.is_running(mount.pid))
    assert (mount.path / "model.bin").read_bytes() == b"bytes"


def test_only_the_users_whose_daemon_it_is_may_restart_it(mount: Served) -> None:
    """Who owns the directory commands much, but not which program root runs."""
    os.chown(mount.path, 65534, 65534)
    as_owner = "import json, os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    command = [PYTHON, "-c", as_owner + _ORDER, mount.path, json.dumps(["/bin/true"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "PermissionError" in done.stderr
    assert "asked to restart" not in mount.log_text()


@pytest.mark.parametrize(
    "apart",
    [
        ["unshare", "--mount"],
        ["unshare", "--pid", "--fork"],
        ["unshare", "--user", "--map-root-user"],
        ["chroot", "/proc/1/root"],
    ],
    ids=["mounts", "pids", "users", "root"],
)
def test_root_of_a_container_does_not_restart_the_daemon(
    mount: Served, tmp_path: Path, apart: list[str]
) -> None:
    """It would be the daemon that runs its program, and writes its log: as root, outside."""
    made = tmp_path / "made"
    if apart[0] == "chroot":  # into another place that the same files stand at
        root = tmp_path / "root"
        root.mkdir()
        subprocess.run(["mount", "--rbind", "/", root], check=True)
        apart = ["chroot", str(root)]
    try:
        order = [PYTHON, "-c", _ORDER, str(mount.path), json.dumps(["/bin/touch", str(made)])]
        for command in (order, [PYTHON, "-m", "ckptfs", "restart", mount.path, "--log", made]):
            done = subprocess.run([*apart, *command], capture_output=True, text=True, timeout=20)
            assert done.returncode in (1, 8), done
            assert "Operation not permitted" in done.stderr or "from a container" in done.stderr
    finally:
        if apart[0] == "chroot":
            subprocess.run(["umount", "-l", apart[1]], check=True)
    assert not made.exists()
    assert "asked to restart" not in mount.log_text()
    restart(mount)


def test_what_is_not_mounted_is_not_restarted(disk_dir: Path) -> None:
    done = ckptfs("restart", disk_dir)
    assert done.returncode == 1 and "not mounted" in done.stderr
    assert ckptfs("restart", disk_dir, "--keep", "-1").returncode == 16


def test_who_changes_what_is_carried_over_changes_its_format() -> None:
    """Fields that another version does not have: FORMAT is to be one more, and this list new."""
    assert handover.FORMAT == 6
    dataclass_fields = {
        kind: " ".join(field.name for field in dataclasses.fields(kind))
        for kind in (model.Handle, model.Version, Staged, PendingSet, handover.Header)
    }
    assert dataclass_fields == {
        model.Handle: "id node fd flags opener user carrier version relayed hold bystander "
        "as_joined listing cached locks wrote owners locker base",
        model.Version: "staged node at members fresh known user use writers expected public "
        "appends is_log is_binary grows_since before overtakers mappers numbers synced "
        "closers held is_meant failure handles",
        Staged: "txid fd path as_opened state touched continues sealed record digested hasher base "
        "stood fulls expected_bytes writeback_error lock",
        PendingSet: "txid node at profiles writers ranks asked_ranks changed_at pause_s aborted "
        "looked_at look_s marked next_begun asked gone lock",
        handover.Header: "options changes root lock device request agreed descriptors version",
    }
    rare = {name for name, value in vars(File).items() if type(value).__name__ == "Rare"}
    assert rare == {
        *("fd", "stands_for", "version", "of", "stands_in", "aliased", "replaced", "gone"),
        *("last", "superseded"),
    }
    assert Directory.__slots__ == ("children", "folders", "gone", "names")
    assert OpenFolders(0).always_open() == []


def test_positions_in_a_directory_stay_while_the_daemon_is_restarted(mount: Served) -> None:
    """Who reads it goes on from one of them. Another mount has others."""
    for number in range(5):
        (mount.path / f"name{number}").write_bytes(b"x")
    before = positions(mount.path)
    restart(mount)
    (mount.path / "new").write_bytes(b"x")  # so that the kernel asks
    after = positions(mount.path)
    assert after.pop("new") and after == before
    mount.umount()
    mount.start()
    again = positions(mount.path)
    assert all(again[name] != before[name] for name in before if name.startswith("name"))


def positions(folder: Path) -> dict[str, int]:
    """By what getdents(2) says."""
    code = """
import ctypes, json, os, struct, sys
fd, libc, found = os.open(sys.argv[1], os.O_RDONLY), ctypes.CDLL(None), {}
buffer = ctypes.create_string_buffer(1 << 16)
while (size := libc.getdents64(fd, buffer, len(buffer))) > 0:
    at = 0
    while at < size:
        _, position, length = struct.unpack_from("<QqH", buffer, at)
        found[os.fsdecode(ctypes.string_at(ctypes.addressof(buffer) + at + 19))] = position
        at += length
print(json.dumps(found))
"""
    return dict(json.loads(python(code, folder)))
