"""Directories, names, machines and arguments that cannot work: one clear line, nothing lost.

Every refusal is one line on stderr with the exit code of its class, never a traceback; through the
mount it is an errno, at open where that is possible.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from harness import rot
from mounts import PYTHON, Served, ckptfs, served, why_no_mounts

from ckptfs.shown import shown

# Looked for, not imported: that takes seconds, and only the children need it.
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="no torch")
OLD, NEW = b"old " * 2000, b"new " * 3000
NOBODY = 65534


@pytest.fixture(autouse=True)
def _can_mount() -> None:
    if why_no_mounts():
        pytest.skip(f"cannot mount here: {why_no_mounts()}")


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done
    assert done.stderr.startswith("ckptfs: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def mount_refused(directory: Path, *words: str, log: Path | None = None) -> None:
    logs = "--log", log or directory.parent / "refused.log"
    refused(ckptfs("mount", directory, *logs), 8, *words)
    assert not os.path.ismount(directory)
    assert not logs[1].exists() or "Traceback" not in logs[1].read_text()


# --- directories ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"layout": 99}\n', ("layout 99", "use the ckptfs that wrote it")),
        (b"\x00garbage\xff", ("not a layout file",)),
        (b"", ("not a layout file",)),
        (b'{"layout": [1]}', ("not a layout file",)),
    ],
)
def test_an_unknown_layout_is_refused(
    disk_dir: Path, content: bytes, words: tuple[str, ...]
) -> None:
    with served(disk_dir) as mount:
        (disk_dir / "model.bin").write_bytes(OLD)
        mount.umount()
        (disk_dir / ".ckptfs/format").write_bytes(content)
        mount_refused(disk_dir, *words)
        for command in ("verify", "log"):
            refused(ckptfs(command, disk_dir), 8, *words)
        assert (disk_dir / "model.bin").read_bytes() == OLD
        assert (disk_dir / ".ckptfs/format").read_bytes() == content


def test_a_control_directory_that_is_a_symlink_is_refused(disk_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (disk_dir / ".ckptfs").symlink_to(tmp_path / "elsewhere")
    mount_refused(disk_dir, ".ckptfs")
    refused(ckptfs("verify", disk_dir), 8)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_what_is_not_a_directory_is_refused(disk_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(OLD)
    mount_refused(file, "file", "no such directory")
    mount_refused(tmp_path / "missing", "make the directory first")
    done = ckptfs("mount", disk_dir, tmp_path / "missing", "--log", tmp_path / "log")
    refused(done, 8, "make the mountpoint first")
    refused(ckptfs("mount", disk_dir, file, "--log", tmp_path / "log"), 8, "mountpoint")
    assert file.read_bytes() == OLD
    for command in ("verify", "log"):
        refused(ckptfs(command, tmp_path / "missing"), 8)
        refused(ckptfs(command, disk_dir), 8, "no ckptfs directory")
    refused(ckptfs("umount", disk_dir), 1, "not mounted")
    refused(ckptfs("status", tmp_path / "missing"), 1, "not mounted")
    assert ckptfs("doctor", tmp_path / "missing").returncode == 8


def test_a_mount_that_would_meet_itself_is_refused(disk_dir: Path, tmp_path: Path) -> None:
    """A daemon that asks its own mount waits for itself, and so does everybody after it."""
    inside = disk_dir / "inside"
    inside.mkdir()
    refused(ckptfs("mount", disk_dir, inside, "--log", tmp_path / "log"), 8, "lies in")
    refused(ckptfs("mount", disk_dir, "--log", inside / "log"), 8, "lies in the mount")
    assert os.listdir(disk_dir) == ["inside"] and os.listdir(inside) == []


def test_a_directory_without_xattrs_is_served_with_a_warning(ramfs_dir: Path) -> None:
    """The records lie in sidecars, and status says so before the first commit."""
    with served(ramfs_dir) as mount:
        assert any("sidecars" in line for line in mount.status()["degraded"])
        assert "WARNING records lie in sidecars" in mount.log_text()
        assert ckptfs("status", ramfs_dir, "--check").returncode == 2
        path = ramfs_dir / "model.bin"
        path.write_bytes(OLD)
        path.write_bytes(NEW)
        done = ckptfs("verify", ramfs_dir)
        assert done.returncode == 0 and "1 ok" in done.stdout
        rot(mount.below / "model.bin")
        assert ckptfs("verify", ramfs_dir).returncode == 4
        mount.umount()
        again = ckptfs("mount", ramfs_dir, "--log", mount.log)
        assert again.returncode == 0 and "warning: records lie in sidecars" in again.stderr
        assert path.read_bytes() == OLD  # C5: rolled back to the good generation
        assert len(mount.events("rolled back")) == 1


def test_files_from_before_ckptfs_are_served_and_kept(disk_dir: Path) -> None:
    path = disk_dir / "model.bin"
    path.write_bytes(OLD)
    with served(disk_dir) as mount:
        assert path.read_bytes() == OLD
        assert "unrecorded      model.bin" in ckptfs("verify", disk_dir).stdout
        assert "no record" in ckptfs("log", disk_dir, "model.bin").stdout
        path.write_bytes(NEW)
        assert "1 ok" in ckptfs("verify", disk_dir).stdout
        kept = [file.read_bytes() for file in (mount.below / ".ckptfs/history").glob("*/*")]
        assert kept == [OLD]
        assert len(ckptfs("log", disk_dir, "model.bin").stdout.splitlines()) == 2


def test_symlinks_are_never_followed_by_the_daemon(disk_dir: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    (disk_dir / "link").symlink_to(outside)
    (disk_dir / "into").symlink_to(tmp_path / "folder")
    with served(disk_dir) as mount:
        assert os.readlink(disk_dir / "link") == str(outside)
        done = ckptfs("verify", disk_dir)
        assert done.returncode == 0 and "0 files" in done.stdout
        os.replace(shutil.copy(outside, disk_dir / "real"), disk_dir / "link")
        assert not (disk_dir / "link").is_symlink() and outside.read_bytes() == OLD
        # A name that turns into a symlink between the kernel's lookup and the daemon's open.
        (disk_dir / "swap").write_bytes(NEW)
        below = mount.below
        os.unlink(below / "swap")
        os.symlink(outside, below / "swap")
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_TRUNC):
            with pytest.raises(OSError):
                os.close(os.open(disk_dir / "swap", flags | os.O_NOFOLLOW))
        assert outside.read_bytes() == OLD


def test_a_filesystem_below_gives_exdev_at_open(disk_dir: Path) -> None:
    """A version cannot be renamed from stage across filesystems: better at open than at close."""
    inner = disk_dir / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
    try:
        (inner / "old").write_bytes(OLD)
        with served(disk_dir) as mount:
            assert (inner / "old").read_bytes() == OLD
            for name, flags in (
                ("new", os.O_WRONLY | os.O_CREAT),
                ("old", os.O_WRONLY | os.O_TRUNC),
                ("old", os.O_RDWR),
            ):
                with pytest.raises(OSError) as raised:
                    os.open(inner / name, flags)
                assert raised.value.errno == errno.EXDEV
            with pytest.raises(OSError) as raised:
                os.truncate(inner / "old", 5)
            assert raised.value.errno == errno.EXDEV
            assert (inner / "old").read_bytes() == OLD
            (disk_dir / "fine").write_bytes(NEW)
            assert mount.status()["writing"] == []
    finally:
        subprocess.run(["umount", "-l", inner], check=False)


# --- the machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cover", ["/dev/null", "nothing"])
def test_a_machine_without_dev_fuse(disk_dir: Path, tmp_path: Path, cover: str) -> None:
    log = tmp_path / "log"
    if cover == "nothing":  # a /dev that has everything but it
        hide = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && "
    else:
        hide = f"mount --bind {cover} /dev/fuse && "
    commands = f'{hide} "$0" -m ckptfs mount "$1" --log "$2"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", commands, PYTHON, disk_dir, log],
        capture_output=True,
        text=True,
        timeout=30,
    )
    refused(done, 8, "/dev/fuse" if cover == "nothing" else "cannot mount")
    doctor = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{hide} "$0" -m ckptfs doctor "$1"', PYTHON, disk_dir],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "Traceback" not in doctor.stderr
    if cover == "nothing":
        assert doctor.returncode == 8 and "modprobe fuse" in doctor.stdout


@pytest.fixture
def nobodys(tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ckptfs-nobody-") as home:
        os.chmod(home, 0o755)
        directory = Path(home) / "checkpoints"
        directory.mkdir()
        for path in (Path(home), directory):
            os.chown(path, NOBODY, NOBODY)
        yield directory


# Nobody may be unable to read the interpreter's folder: everything is imported before the change.
AS_NOBODY = f"""
import ctypes, os, sys
import ckptfs.cli, ckptfs.mount.daemon.start, ckptfs.mount.daemon.doctor
ckptfs.cli.load([])
import encodings.ascii, encodings.idna
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as execve would: /proc/<pid> is its own
"""


def as_nobody(
    *arguments: object,
    home: Path,
    code: str = "ckptfs.cli.main()",
    prefix: tuple[object, ...] = (),
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, prefix), PYTHON, "-c", AS_NOBODY + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=30,
        cwd="/",
        env={**os.environ, "HOME": str(home)},
    )


USE = """
def step(*words):
    if os.fork() == 0:
        sys.argv = ["ckptfs", *words]
        ckptfs.cli.main()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.wait()[1])

path = sys.argv[1] + "/a"
mounted = step("mount", sys.argv[1])
for content in (b"old", b"new"):
    with open(path, "wb") as file:
        file.write(content)
codes = [step(command, sys.argv[1]) for command in ("verify", "status", "umount")]
with open(path) as file:
    print(mounted, codes, file.read(), os.path.ismount(sys.argv[1]))
"""


@pytest.mark.kernel_only("libfuse mounts by itself")
def test_an_ordinary_user_mounts_with_fusermount3(nobodys: Path, tmp_path: Path) -> None:
    """In a mount namespace where the device is open to all, as distributions have it."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    device = tmp_path / "fuse"
    os.mknod(device, 0o020666, os.makedev(10, 229))
    device.chmod(0o666)
    bind = 'mount --bind "$0" /dev/fuse && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", bind, device)
    done = as_nobody(nobodys, home=nobodys.parent, code=USE, prefix=prefix)
    assert done.stdout.endswith("0 [0, 0, 0] new False\n"), done
    assert "1 ok" in done.stdout and "relay (kernel)" in done.stdout


def test_an_ordinary_user_without_the_device_is_told_so(nobodys: Path, tmp_path: Path) -> None:
    device = tmp_path / "fuse"
    os.mknod(device, 0o020600, os.makedev(10, 229))
    prefix = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /dev/fuse && exec "$@"', device)
    done = as_nobody("mount", nobodys, home=nobodys.parent, prefix=prefix)
    refused(done, 8, "fuse")
    (nobodys / "a").write_bytes(OLD)  # still the plain directory


@pytest.mark.kernel_only("libfuse mounts by itself")
def test_a_directory_of_somebody_else_is_refused(nobodys: Path, disk_dir: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ckptfs-root-") as other:
        os.chmod(other, 0o755)
        done = as_nobody("mount", other, home=nobodys.parent)
        refused(done, 8, "Permission denied")
        assert os.listdir(other) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 24 MiB, with a directory to serve."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    image, at = tmp_path / "image", tmp_path / "disk"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    make = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal", image]
    subprocess.run(make, check=True)
    done = subprocess.run(["mount", "-o", "loop", image, at], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr}")
    directory = at / "checkpoints"
    directory.mkdir()
    yield directory
    subprocess.run(["umount", "-l", at], check=False)


SAVE = """
import sys, torch
for megabytes in sys.stdin:
    try:
        torch.save({"w": torch.full((int(megabytes) << 18,), 7.0)}, sys.argv[1])
    except Exception as error:
        print("failed:", type(error).__name__, flush=True)
    else:
        print("saved", flush=True)
"""


@contextlib.contextmanager
def saving(path: Path) -> Iterator[Callable[[int], str]]:
    """A trainer: told how many MiB to save, it says how that went."""
    command = [PYTHON, "-c", SAVE, path]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        watchdog = threading.Timer(30, trainer.kill)
        watchdog.start()

        def save(megabytes: int) -> str:
            assert trainer.stdin is not None and trainer.stdout is not None
            print(megabytes, file=trainer.stdin, flush=True)
            return trainer.stdout.readline().strip()

        try:
            yield save
        finally:
            watchdog.cancel()
            trainer.kill()


@needs_torch
def test_c2_a_full_disk_fails_the_save_and_keeps_the_old_version(small_disk: Path) -> None:
    path = small_disk / "model.pt"
    with served(small_disk, "--keep", "0") as mount, saving(path) as save:
        assert save(6) == "saved"
        old = path.read_bytes()
        ballast = small_disk.parent / "ballast"
        free = os.statvfs(small_disk.parent)
        ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - (4 << 20)))
        assert save(6).startswith("failed:")
        assert path.read_bytes() == old
        assert ckptfs("verify", small_disk).returncode == 0
        (degraded,) = mount.status()["degraded"]
        assert degraded.startswith("low space")
        for name in os.listdir(mount.below / ".ckptfs/salvage"):
            os.unlink(mount.below / ".ckptfs/salvage" / name)
        ballast.unlink()
        assert save(6) == "saved"
        assert ckptfs("verify", small_disk).returncode == 0


def test_c2_a_version_without_room_for_its_record_gets_a_sidecar(small_disk: Path) -> None:
    """ext4 has about 4,000 bytes for the xattrs of a file; a user's own may fill them."""
    with served(small_disk) as mount:
        path = small_disk / "model.bin"
        path.write_bytes(OLD)
        (mount.below / "model.bin").stat()
        os.removexattr(mount.below / "model.bin", "user.ckptfs")
        os.setxattr(mount.below / "model.bin", "user.big", b"x" * 3900)
        path.write_bytes(NEW)
        assert os.getxattr(path, "user.big") == b"x" * 3900
        assert any("sidecar" in line for line in mount.status()["degraded"])
        done = ckptfs("verify", small_disk)
        assert done.returncode == 0 and "1 ok" in done.stdout
        rot(mount.below / "model.bin")
        assert ckptfs("verify", small_disk).returncode == 4


def test_a_read_only_directory_is_refused(small_disk: Path) -> None:
    disk = small_disk.parent
    with served(small_disk) as mount:
        (small_disk / "model.bin").write_bytes(OLD)
        mount.umount()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        mount_refused(small_disk, "Read-only file system", log=disk.parent / "log")
        assert "1 ok" in ckptfs("verify", small_disk).stdout  # which only reads
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    fresh = disk / "fresh"
    fresh.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    mount_refused(fresh, "Read-only file system", log=disk.parent / "log")
    assert os.listdir(fresh) == []


def test_c2_a_disk_that_fails_fails_the_save(small_disk: Path) -> None:
    """ext4 refuses every change after an error; ``abort`` is that error, made to order."""
    with served(small_disk) as mount:
        path = small_disk / "model.bin"
        path.write_bytes(OLD)
        subprocess.run(["mount", "-o", "remount,abort", small_disk.parent], check=True)
        with pytest.raises(OSError) as raised:
            path.write_bytes(NEW)
        assert raised.value.errno in (errno.EROFS, errno.EIO)
        assert path.read_bytes() == OLD
        assert ckptfs("verify", small_disk).returncode == 0
        mount.umount()
        assert path.read_bytes() == OLD


# --- names ---------------------------------------------------------------------------------------


NAMES = [b"n" * 255, b"\xff\xfe not UTF-8", b"new\nline", "名前.pt".encode(), b" ", b"a'b\"c\\"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_works_everywhere(mount: Served, name: bytes) -> None:
    directory = os.fsencode(mount.path)
    path, other = directory + b"/" + name, directory + b"/" + name[:-1] + b"2"
    for content in (OLD, NEW):
        with open(path, "wb") as file:
            file.write(content)
    assert os.listdir(directory) == [name]
    os.rename(path, other)
    os.rename(other, path)
    with open(path, "rb") as file:
        assert file.read() == NEW
    kill = "import os, sys; f = open(sys.argv[1], 'wb', 0); f.write(b'x'); os.kill(os.getpid(), 9)"
    subprocess.run([PYTHON, "-c", kill, path], timeout=30)
    assert mount.events("aborted")[0]["path"] == os.fsdecode(name)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    for command in (["verify", name], ["verify", "--json"], ["log"], ["log", name], ["status"]):
        done = in_locale(ascii_only, command[0], mount.path, *command[1:])
        assert done.returncode == 0, done.stderr
        assert done.stderr == b"" and done.stdout
    rot(mount.below / os.fsdecode(name))
    told = shown(os.fsdecode(name)).encode()
    assert told in in_locale({}, "verify", mount.path).stdout
    os.unlink(path)
    assert os.listdir(directory) == []


def in_locale(
    environment: dict[str, str], *arguments: object
) -> subprocess.CompletedProcess[bytes]:
    words = [word if isinstance(word, bytes) else str(word) for word in arguments]
    return subprocess.run(
        [PYTHON, "-m", "ckptfs", *words],
        capture_output=True,
        timeout=30,
        env={**os.environ, **environment},
    )


def test_a_served_directory_may_have_any_name(tmp_path: Path) -> None:
    directory = tmp_path / os.fsdecode("a \\ b\nc\t\xff".encode("latin-1"))
    directory.mkdir()
    log = tmp_path / "log"
    try:
        done = ckptfs("mount", directory, "--log", log)
        assert done.returncode == 0, done.stderr
        (directory / "a").write_bytes(NEW)
        for command in (["status", "--check"], ["verify"], ["log"]):
            done = in_locale({}, command[0], os.fsencode(directory), *command[1:])
            assert done.returncode == 0 and done.stderr == b""
    finally:
        ended = ckptfs("umount", directory)
    assert ended.returncode == 0, ended.stderr
    assert (directory / "a").read_bytes() == NEW
    assert "Traceback" not in log.read_text()


def test_a_name_that_is_too_long(mount: Served) -> None:
    for make in (Path.touch, Path.mkdir):
        with pytest.raises(OSError) as raised:
            make(mount.path / ("n" * 256))
        assert raised.value.errno == errno.ENAMETOOLONG
    (mount.path / "a").write_bytes(OLD)
    with pytest.raises(OSError) as raised:
        os.rename(mount.path / "a", mount.path / ("n" * 256))
    assert raised.value.errno == errno.ENAMETOOLONG
    assert os.listdir(mount.path) == ["a"] and mount.status()["writing"] == []


def test_the_control_directory_cannot_be_touched_through_the_mount(mount: Served) -> None:
    control = mount.path / ".ckptfs"
    for attempt in (
        lambda: (control / "format").write_bytes(b"x"),
        lambda: (control / "stage").mkdir(),
        lambda: (control / "status.json").write_bytes(b"x"),
        lambda: control.rename(mount.path / "other"),
        lambda: control.rmdir(),
        lambda: (mount.path / "a").mkdir() or (mount.path / "a").rename(control),
        lambda: (control / "status.json").unlink(),
        lambda: os.chmod(control, 0o777),
        lambda: os.link(control / "status.json", mount.path / "b"),
    ):
        with pytest.raises(OSError):
            attempt()
    assert mount.status()["degraded"] == []


# --- arguments -----------------------------------------------------------------------------------


COMMANDS = ["mount", "umount", "status", "verify", "log", "doctor", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_a_usage_error(command: str) -> None:
    refused(ckptfs(command, "--no-such-option"), 16, "--no-such-option", "--help")
    helped = ckptfs(command, "--help")
    assert helped.returncode == 0 and helped.stdout.startswith("Usage: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["mount"],
        ["umount"],
        ["verify"],
        ["log"],
        ["mount", "a", "b", "c"],
        ["umount", "a", "b"],
        ["status", "a", "b"],
        ["log", "a", "b", "c"],
        ["doctor", "a", "b"],
        ["mount", "a", "--mode", "safe"],
        ["mount", "a", "--keep", "-1"],
        ["mount", "a", "--keep", "many"],
        ["mount", "a", "--checksum", "md5"],
        ["mount", "a", "--stop-timeout", "-1"],
        ["mount", "a", "--stop-timeout", "nan"],
        ["mount", "a", "--keep", "1000001"],
        ["mount", "a", "--log"],
        ["verify", "a", "--jobs", "0"],
        ["demo", "--megabytes", "0"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_a_usage_error(arguments: list[str]) -> None:
    refused(ckptfs(*arguments), 16)


def test_no_arguments_show_the_commands() -> None:
    done = ckptfs()
    said = done.stdout + done.stderr
    assert all(command in said for command in COMMANDS) and "Traceback" not in said
    assert done.returncode == 0 and "..." not in said.partition("Commands:")[2]


_INTERRUPTED_WHILE_LOADED = """
import os, signal, sys
import ckptfs.__main__
class Interrupts:
    def find_spec(self, name, *rest):
        if name == "ckptfs.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
ckptfs.__main__.main()
"""


def test_ctrl_c_ends_a_command_that_is_being_loaded_without_a_word() -> None:
    done = subprocess.run(
        [PYTHON, "-c", _INTERRUPTED_WHILE_LOADED], capture_output=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_one_path_names_the_directory_and_the_file(mount: Served) -> None:
    folder = mount.path / "run"
    folder.mkdir()
    file = folder / "a.pt"
    file.write_bytes(b"one")
    file.write_bytes(b"two")
    for _ in ("mounted", "unmounted"):
        assert "generation" in ckptfs("log", file).stdout
        done = ckptfs("verify", file)
        assert done.returncode == 0 and "1 files checked: 1 ok" in done.stdout
        assert "1 files checked: 1 ok" in ckptfs("verify", folder).stdout
        assert "0 adopted" in ckptfs("adopt", file).stdout
        before = file.read_bytes()
        done = ckptfs("rollback", file)
        assert done.returncode == 0 and "run/a.pt: rolled back" in done.stdout
        assert {before, file.read_bytes()} == {b"one", b"two"}
        if mount.mounted():
            mount.umount()
    refused(ckptfs("rollback", mount.path), 16, "which file of")
    refused(ckptfs("log", mount.path.parent / "missing"), 8, "missing")


def test_paths_that_are_not_there(mount: Served) -> None:
    (mount.path / "a").write_bytes(OLD)
    (mount.path / "folder").mkdir()
    done = ckptfs("verify", mount.path, "missing", "a")
    assert done.returncode == 4 and "missing         missing" in done.stdout
    for path in ("../outside", "/etc/hostname"):
        refused(ckptfs("verify", mount.path, path), 16, "not a file below")
    for path in ("missing", "folder", "a/b"):
        refused(ckptfs("log", mount.path, path), 8)
    for path in ("../outside", "/etc/hostname", "", "."):
        refused(ckptfs("log", mount.path, path), 16, "not a file below")
