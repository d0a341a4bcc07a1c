"""``ckptfs umount``: what it waits for it names, within its time; ``--force`` ends any mount.

Bugs these close: an umount that waited for ever for a stopped daemon, or for one whose mount a
namespace of another process kept; that said "unmounted" of a daemon that had not committed; that
asked another directory's daemon, named by a lock file that had been copied along.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from mounts import PYTHON, Served, ckptfs, served, why_no_mounts

from ckptfs.disk.real import OsFs
from ckptfs.mount.daemon import holding, inspect, start
from ckptfs.mount.daemon.options import MountOptions
from ckptfs.mount.kernel import mounting
from ckptfs.mount.processes import mounts as table
from ckptfs.mount.processes import writers
from ckptfs.records.layout import Layout

OLD, NEW = b"old " * 2000, b"new " * 3000
WAITS = "print(1, flush=True); import sys; sys.stdin.read()"
WRITES = f"f = open(sys.argv[1], 'wb', 0); f.write({NEW!r}); {WAITS}".replace("import sys; ", "")
MAPS = f"""
import ctypes  # whose mapping keeps no descriptor
libc = ctypes.CDLL(None)
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
with open(sys.argv[1], "rb") as f:
    libc.mmap(None, 4096, 1, 2, f.fileno(), 0)
{WAITS}
"""


@pytest.fixture(autouse=True)
def _can_mount() -> None:
    if why_no_mounts():
        pytest.skip(f"cannot mount here: {why_no_mounts()}")


@pytest.fixture
def mount(disk_dir: Path) -> Iterator[Served]:
    with served(disk_dir) as mount:
        (disk_dir / "model.bin").write_bytes(OLD)
        yield mount
        with contextlib.suppress(OSError):
            os.kill(mount.pid, signal.SIGCONT)


@contextlib.contextmanager
def child(*command: object, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line."""
    words = list(map(str, command))
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, cwd=cwd) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            yield process
        finally:
            process.kill()


def program(code: str, *words: object) -> tuple[object, ...]:
    return (PYTHON, "-c", f"import sys\n{code}", *words)


def gone(mount: Served) -> bool:
    return not mount.mounted() and not writers.is_running(mount.pid)


def salvage(directory: Path) -> list[bytes]:
    notes = (directory / ".ckptfs/salvage").glob("*.json")
    return [note.with_suffix("").read_bytes() for note in notes]


def umount_refused(mount: Served, *words: str, timeout: str = "0") -> None:
    done = ckptfs("umount", mount.path, "--timeout", timeout)
    assert done.returncode == 2, done
    assert done.stderr.splitlines()[-1].startswith("ckptfs: "), done
    for word in words:
        assert word in done.stderr, done
    assert mount.mounted() and writers.is_running(mount.pid)


# --- in use --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["working directory", "open file model.bin", "mapping of model.bin"]
)
def test_what_uses_the_mount_is_named(mount: Served, how: str) -> None:
    codes = {"working": WAITS, "open": WRITES, "mapping": MAPS}
    command = program(codes[how.split()[0]], mount.path / "model.bin")
    with child(*command, cwd=mount.path if how.startswith("working") else None) as process:
        umount_refused(mount, f"pid {process.pid}, {how}", "--force")
        assert mount.status()["pid"] == mount.pid
    mount.umount()
    assert gone(mount)


def test_it_says_what_it_waits_for_and_goes_on_when_that_ends(mount: Served) -> None:
    with child(*program(WAITS), cwd=mount.path) as process:
        waiting = subprocess.Popen(
            [PYTHON, "-m", "ckptfs", "umount", str(mount.path), "--timeout", "20"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr is not None
        line = waiting.stderr.readline()
        assert "waiting" in line and f"pid {process.pid}, working directory" in line
        process.kill()
        process.wait(10)
        assert waiting.wait(20) == 0
        waiting.stderr.close()
    assert gone(mount)


@contextlib.contextmanager
def namespace(propagation: str) -> Iterator[subprocess.Popen[str]]:
    """A process with a mount namespace of its own, a copy of ours."""
    unshare = ("unshare", "--mount", "--propagation", propagation)
    with child(*unshare, *program(WAITS)) as process:
        yield process


def test_a_mount_namespace_that_keeps_the_mount_is_named(mount: Served) -> None:
    with namespace("private") as process:
        umount_refused(mount, f"pid {process.pid}, mount namespace")
        (mount.path / "model.bin").write_bytes(NEW)
    mount.umount()
    assert gone(mount)
    assert (mount.path / "model.bin").read_bytes() == NEW


def test_another_place_that_it_is_mounted_at_is_named(mount: Served, tmp_path: Path) -> None:
    other = tmp_path / "other place"
    other.mkdir()
    subprocess.run(["mount", "--bind", mount.path, other], check=True, timeout=10)
    try:
        umount_refused(mount, f"a mount at {other}")
    finally:
        subprocess.run(["umount", "-l", other], check=True, timeout=10)


def test_a_namespace_that_the_kernel_tells_does_not_keep_it(tmp_path: Path) -> None:
    """What a service with PrivateTmp has: a copy that follows ours."""
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", volume], check=True)
    try:
        subprocess.run(["mount", "--make-shared", volume], check=True)
        (volume / "served").mkdir()
        with served(volume / "served") as mount, namespace("slave"):
            mount.umount()
            assert gone(mount)
    finally:
        subprocess.run(["umount", "-l", volume], check=False)


@contextlib.contextmanager
def served_in_a_namespace(directory: Path, stays: bool) -> Iterator[int]:
    """The daemon, in a mount namespace with a process beside it or with none."""
    log = directory.parent / "log"
    then = "read -r _" if stays else "true"
    script = f'{PYTHON} -m ckptfs mount "$1" --log "$2" && echo ready; {then}'
    with child(*("unshare", "--mount", "sh", "-c", script, "sh", directory, log)) as process:
        if not stays:
            process.wait(10)
        pid = json.loads((directory / ".ckptfs/lock").read_text())["pid"]
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 20
            while writers.is_running(pid):
                assert time.monotonic() < deadline
                time.sleep(0.02)


@pytest.mark.parametrize("stays", [True, False])
def test_what_is_served_in_another_namespace_says_how_it_ends(disk_dir: Path, stays: bool) -> None:
    """A shell in a namespace of its own that mounted, and ended: nobody could reach the mount, and
    every command only said that it was there."""
    with served_in_a_namespace(disk_dir, stays) as pid:
        for command in ("status", "umount"):
            done = ckptfs(command, disk_dir)
            assert done.returncode == 1 and f"`kill {pid}` ends it" in done.stderr, done
            assert ("no other process is left" in done.stderr) != stays, done
    assert "not mounted; serve it" in ckptfs("status", disk_dir).stderr
    assert ckptfs("verify", disk_dir).returncode == 0


# --- a daemon that does not answer ---------------------------------------------------------------


def test_a_stopped_daemon_is_named_and_its_mount_stays(mount: Served) -> None:
    os.kill(mount.pid, signal.SIGSTOP)
    umount_refused(mount, f"process {mount.pid}", "stopped by a signal", "kill -CONT", "--force")
    os.kill(mount.pid, signal.SIGCONT)
    mount.umount()
    assert gone(mount)


def test_an_answer_that_stops_half_way_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The child has told a part, and then waits for a server: no signal ends it."""

    def dump(_: object, pipe: TextIO) -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        pipe.write("[1")
        pipe.flush()
        time.sleep(20)

    monkeypatch.setattr(inspect.json, "dump", dump)
    with monkeypatch.context() as no_signal:
        no_signal.setattr(signal, "SIGKILL", 0)
        with pytest.raises(TimeoutError):
            inspect.asked(lambda: None, 0.5)
    child = int((tmp_path / "pid").read_text())
    assert writers.is_running(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


# --- by force ------------------------------------------------------------------------------------


def forced(mount: Served, *words: str) -> None:
    done = ckptfs("umount", mount.path, "--force", "--timeout", "0")
    assert done.returncode == 0, done
    for word in words:
        assert word in done.stderr, done
    assert gone(mount)
    assert (mount.path / "model.bin").read_bytes() == OLD


@pytest.mark.parametrize("stopped", [False, True], ids=["in use", "and stopped"])
def test_by_force_what_is_being_written_goes_to_salvage(mount: Served, stopped: bool) -> None:
    with child(*program(WRITES, mount.path / "model.bin")) as process:
        if stopped:
            os.kill(mount.pid, signal.SIGSTOP)
        reason = "stopped by a signal" if stopped else f"pid {process.pid}, open file model.bin"
        forced(mount, reason, f"process {mount.pid} ended", "salvage")
        assert salvage(mount.path) == [NEW]
    assert ckptfs("verify", mount.path).returncode == 0


def test_by_force_without_a_user_it_ends_as_it_does_without(mount: Served) -> None:
    done = ckptfs("umount", mount.path, "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert gone(mount)


def test_by_force_a_namespace_keeps_no_daemon(mount: Served) -> None:
    with namespace("private") as process:
        forced(mount, f"pid {process.pid}, mount namespace")


def test_by_force_a_daemon_that_does_not_end_is_killed(mount: Served) -> None:
    """A debugger holds it: it is not let go on by SIGCONT."""
    held = "import ctypes, sys, time; l = ctypes.CDLL(None); p = int(sys.argv[1])\n"
    held += "assert l.ptrace(16, p, 0, 0) == 0; print(1, flush=True); time.sleep(60)"
    with child(*program(held, mount.pid)):
        mount.wait_until(lambda: writers.is_stopped(mount.pid))
        done = ckptfs("umount", mount.path, "--force", "--timeout", "0")
        assert done.returncode == 0 and "was killed" in done.stderr, done
        assert not mount.mounted()
    assert (mount.path / "model.bin").read_bytes() == OLD


def test_a_copied_lock_file_leads_to_nobody_elses_mount(disk_dir: Path, tmp_path: Path) -> None:
    """`cp -a` of a directory brings the lock file along, which says where the original is."""
    copy, at = tmp_path / "copy", tmp_path / "at"
    at.mkdir()
    (disk_dir / "model.bin").write_bytes(OLD)
    mount = Served(at)
    done = ckptfs("mount", disk_dir, at, "--log", mount.log)
    assert done.returncode == 0, done
    try:
        shutil.copytree(disk_dir, copy)
        assert ckptfs("status", disk_dir, "--check").returncode == 0
        for command in ("status", "umount", "umount --force"):
            told = ckptfs(*command.split(), copy)
            assert told.returncode == 1 and "not mounted" in told.stderr, told
        assert ckptfs("umount", disk_dir).returncode == 0
    finally:
        mount.end()


@pytest.mark.parametrize("how", [[], ["--force"], ["--release"]], ids=" ".join)
def test_no_mount_below_is_taken_along(mount: Served, how: list[str]) -> None:
    folder = mount.path / "scratch"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    try:
        done = ckptfs("umount", mount.path, *how)
        assert done.returncode == 2 and f"{folder} is mounted in it" in done.stderr
        assert os.path.ismount(folder) and ckptfs("status", mount.path, "--check").returncode == 0
    finally:
        subprocess.run(["umount", folder], check=True)
    assert ckptfs("umount", mount.path, *how).returncode == 0


@pytest.mark.parametrize(
    "command", [["umount"], ["umount", "--release"], ["status"], ["log"], ["verify"], ["adopt"]]
)
def test_a_covered_mount_says_what_covers_it(mount: Served, command: list[str]) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", mount.path], check=True)
    try:
        done = ckptfs(*command, mount.path)
        assert done.returncode != 0 and "another mount (tmpfs) covers it" in done.stderr
    finally:
        subprocess.run(["umount", mount.path], check=True)
    assert (mount.path / "model.bin").read_bytes() == OLD


@pytest.mark.parametrize("change", ["saved", "added to", "left", "deleted"])
@pytest.mark.parametrize("flags", ["w", "r+"])
def test_a_late_close_after_a_release_takes_nothing_from_the_plain_directory(
    mount: Served, change: str, flags: str
) -> None:
    """Who had a file open goes on; what others saved there since stays, and the late version is in
    salvage."""
    path = mount.path / "model.bin"
    late = f"f = open(sys.argv[1], '{flags}b', 0); f.write({NEW!r}); {WAITS}"
    with child(PYTHON, "-c", f"import sys; {late.replace('import sys; ', '')}", path) as writer:
        assert ckptfs("umount", mount.path, "--release").returncode == 0
        assert path.read_bytes() == OLD
        if change == "saved":
            path.write_bytes(b"plain")
        elif change == "added to":
            path.write_bytes(OLD + b"plain")
        elif change == "deleted":
            path.unlink()
        plain = path.read_bytes() if path.exists() else b""
        assert writer.stdin is not None
        writer.stdin.close()
        writer.wait(10)
    mount.wait_until(lambda: not writers.is_running(mount.pid))
    if change in ("left", "deleted"):
        assert path.read_bytes() == NEW
        return
    assert path.read_bytes() == plain
    salvage = mount.path / ".ckptfs" / "salvage"
    (kept,) = (each for each in salvage.iterdir() if each.suffix != ".json")
    assert kept.read_bytes() == NEW
    assert "WARNING model.bin: aborted: the mount was released" in mount.log_text()
    assert kept.name in mount.log_text()


# --- what else is mounted there ------------------------------------------------------------------

ODD = "a\rb\u00a0c\u3000d\u2028e\x85f g\\h"


@contextlib.contextmanager
def tmpfs(at: Path, source: str = "none") -> Iterator[Path]:
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", source, str(at)], check=True)
    try:
        yield at
    finally:
        while subprocess.run(["umount", "-l", str(at)], stderr=subprocess.DEVNULL).returncode == 0:
            pass


def test_several_at_once_take_away_the_mount_and_not_the_disk_below(tmp_path: Path) -> None:
    """The second one unmounted what lay below, by its path."""
    with tmpfs(tmp_path / "disk") as disk:
        for _ in range(2):
            mount = Served(disk).start()
            (disk / "model.bin").write_bytes(OLD)
            here = table.topmost(str(disk))
            assert here is not None and here.type == table.FS_TYPE
            command = [PYTHON, "-m", "ckptfs", "umount", str(disk)]
            pipe = subprocess.PIPE
            together = [subprocess.Popen(command, stderr=pipe, text=True) for _ in range(3)]
            for each in together:
                told = each.communicate(timeout=30)[1]
                assert each.returncode == 0 or "not mounted" in told, told
            for lazy in (False, True):  # as one does that comes late
                with pytest.raises(mounting.NotOnTop):
                    mounting.unmount(here, lazy=lazy)
            assert os.path.ismount(disk) and (disk / "model.bin").read_bytes() == OLD
            assert gone(mount)


def test_what_was_mounted_over_it_is_left_alone(mount: Served) -> None:
    here = table.topmost(str(mount.path))
    assert here is not None
    with tmpfs(mount.path):
        for lazy in (False, True):
            with pytest.raises(mounting.NotOnTop):
                mounting.unmount(here, lazy=lazy)
        os.kill(mount.pid, signal.SIGTERM)  # asked so, its daemon takes nothing else away either
        time.sleep(0.5)
        assert os.path.ismount(mount.path) and not (mount.path / "model.bin").exists()
    mount.wait_until(lambda: gone(mount))


@pytest.mark.parametrize("where", ["source", "path"])
def test_any_byte_may_be_in_the_mount_table(disk_dir: Path, where: str) -> None:
    """A carriage return ended the line, and other white space a field, so every command failed."""
    at, source = disk_dir.parent / "other", ODD
    if where == "path":
        at, source = disk_dir.parent / ODD, "none"
    with tmpfs(at, source), served(disk_dir) as mount:
        assert table.mounted_type(str(at)) == "tmpfs"
        (disk_dir / "model.bin").write_bytes(OLD)
        mount.umount()
        assert gone(mount)


def test_a_directory_with_any_name_is_served(tmp_path: Path) -> None:
    directory = tmp_path / ODD
    directory.mkdir()
    assert ckptfs("mount", directory, "--log", tmp_path / "log").returncode == 0
    assert inspect.is_mounted(str(directory))
    with child(*program(WAITS), cwd=directory) as process:
        done = ckptfs("umount", directory, "--timeout", "0")
        assert done.returncode == 2 and f"pid {process.pid}, working directory" in done.stderr
    assert ckptfs("umount", directory).returncode == 0


@pytest.mark.parametrize("name", ["new\nline", "x (deleted)", "a\rb\u2028c"])
def test_a_mapping_of_a_file_with_any_name_is_named(mount: Served, name: str) -> None:
    (mount.path / name).write_bytes(OLD)
    with child(*program(MAPS, mount.path / name)) as process:
        umount_refused(mount, f"pid {process.pid}, mapping of ")
    mount.umount()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENOTCONN, errno.ECONNREFUSED])
def test_a_mount_that_refuses_to_be_looked_at_is_not_dead(
    mount: Served, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def statvfs(path: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert inspect.is_dead(str(mount.path)) == (code not in (errno.EACCES, errno.EIO))


def test_a_mount_waits_for_who_only_looks_at_the_lock(disk_dir: Path) -> None:
    fs, root = OsFs(), os.open(disk_dir, os.O_RDONLY)
    layout = Layout.create(fs, root, "here")
    lock = os.open(disk_dir / ".ckptfs/lock", os.O_RDONLY | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.05, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        layout.lock.take("here")
    finally:
        layout.close()
        os.close(lock)
        os.close(root)


@pytest.mark.parametrize(
    "error", [TimeoutError("the mount does not answer"), OSError(errno.EMFILE, "too many files")]
)
def test_who_cannot_be_looked_for_is_a_warning(
    disk_dir: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def holders(path: str) -> None:
        raise error

    monkeypatch.setattr(holding, "holders", holders)
    (warning,) = start._users_below(MountOptions(str(disk_dir), str(disk_dir)))
    assert "not known" in warning
