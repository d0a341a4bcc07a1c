"""Shared fixtures: quick directories, and real filesystems in image files."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from images import PREFIX, Mounted, clear, clear_stale_mounts, mounted_image, needs_root

if TYPE_CHECKING:
    from disks import Disk

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--binding",
        choices=["kernel", "fusepy", "refuse"],
        default="kernel",
        help="how the mounts of the tests speak FUSE",
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ["CKPTFS_BINDING"] = config.getoption("--binding")
    _check_locks()
    # A job in the background ignores it, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        _mounts_apart()


def _check_locks() -> None:
    """Of this process, and of the daemons that the tests start, whoever they run as."""
    from ckptfs.disk import locks

    report, path = tempfile.mkstemp(prefix="ckptfs-locks-")
    os.close(report)
    os.chmod(path, 0o666)
    os.environ["CKPTFS_CHECK_LOCKS"] = path
    locks.check(partial(_append, Path(path)))


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def pytest_unconfigure() -> None:
    Path(os.environ.pop("CKPTFS_CHECK_LOCKS")).unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def _locks_in_order() -> Iterator[None]:
    """Nobody has taken a lock out of the order of their ranks."""
    yield
    report = Path(os.environ["CKPTFS_CHECK_LOCKS"])
    told = report.read_text()
    report.write_text("")
    assert told == ""


def _mounts_apart() -> None:
    """A mount namespace for each worker of xdist: one that a test makes would keep alive what the
    other worker unmounts meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) == 0:
        libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Names that are no UTF-8 get into logs, and xdist cannot send them: its worker would end."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode())
        for title, text in report.sections
    ]
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--binding") == "kernel":
        return
    for item in items:
        for marker in item.iter_markers("kernel_only"):
            item.add_marker(pytest.mark.skip(reason=marker.args[0]))


@pytest.fixture
def quick_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory if it takes user xattrs there (Linux 6.6), else on disk."""
    if not _takes_xattrs(Path("/dev/shm")):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="ckptfs-test-", dir="/dev/shm") as directory:
        yield Path(directory)


def _takes_xattrs(directory: Path) -> bool:
    try:
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            os.setxattr(file.fileno(), "user.ckptfs.test", b"x")
    except OSError:
        return False
    return True


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test leaves no descriptor open."""
    from harness import open_descriptors

    before = open_descriptors()
    yield
    assert open_descriptors() <= before


@pytest.fixture(scope="session")
def _mounts() -> Iterator[dict[str, Mounted]]:
    clear_stale_mounts()
    base = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    atexit.register(clear, base)  # also when pytest itself goes down
    yield {"": Mounted("", base)}
    clear(base)


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def loop_fs(request: pytest.FixtureRequest, _mounts: dict[str, Mounted]) -> Iterator[Mounted]:
    """A fresh directory on each of the filesystems that people keep checkpoints on."""
    mounted = mounted_image(request.param, _mounts)
    directory = Path(tempfile.mkdtemp(dir=mounted.path))
    yield Mounted(mounted.kind, directory, mounted.image)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A filesystem of the test's own, to be filled or broken."""
    from disks import disk_of

    with disk_of(request.param, tmp_path) as disk:
        yield disk


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Disk]:
    from disks import disk_of

    with disk_of("ext4", tmp_path) as disk:
        yield disk


@pytest.fixture
def ext4_dir(_mounts: dict[str, Mounted]) -> Path:
    return Path(tempfile.mkdtemp(dir=mounted_image("ext4", _mounts).path))


@pytest.fixture
def ramfs_dir(_mounts: dict[str, Mounted]) -> Path:
    """A filesystem without user xattrs."""
    needs_root()
    if "ramfs" not in _mounts:
        path = _mounts[""].path / "ramfs"
        path.mkdir()
        subprocess.run(["mount", "-t", "ramfs", "ramfs", path], check=True)
        _mounts["ramfs"] = Mounted("ramfs", path)
    return Path(tempfile.mkdtemp(dir=_mounts["ramfs"].path))


# --- mounts --------------------------------------------------------------------------------------


@pytest.fixture
def disk_dir(tmp_path: Path) -> Path:
    """A directory to be served, on a filesystem with xattrs."""
    import mounts

    reason = mounts.why_no_mounts()
    if reason:
        pytest.skip(f"cannot mount here: {reason}")
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    return directory


@pytest.fixture
def mount(disk_dir: Path, request: pytest.FixtureRequest) -> Iterator[object]:
    """A served directory with the default options, as users have it."""
    import mounts

    slow = request.node.get_closest_marker("frameworks")
    with mounts.served(disk_dir, limit_s=mounts.TEST_LIMIT_S * (5 if slow else 1)) as served:
        yield served


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    import trees

    with trees.sharing(tmp_path_factory.mktemp("shared")) as shared:
        yield shared


@pytest.fixture
def tree(shared_mount: object) -> Iterator[object]:
    """A directory of the test's own in a mount with the default options."""
    with shared_mount.tree() as tree:  # type: ignore[attr-defined]
        yield tree


@pytest.fixture(scope="module")
def torch_process() -> Iterator[object]:
    """A process that has torch; importing it takes longer than the tests that use it."""
    pytest.importorskip("torch")
    from actors import actors

    with actors(Path("/"), 1) as (process,):
        process.do("import torch")
        yield process


@pytest.fixture
def torch_user(torch_process: object, tree: object) -> Iterator[object]:
    """It, at work in the test's own directory."""
    torch_process.do(f"os.chdir({str(tree.path)!r})")  # type: ignore[attr-defined]
    yield torch_process
    torch_process.do("os.chdir('/')")  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def unsafe_mount(
    tmp_path_factory: pytest.TempPathFactory, shared_mount: object
) -> Iterator[object]:
    """The control: written in place, so what the other tests rule out happens."""
    import trees

    with trees.sharing(tmp_path_factory.mktemp("unsafe"), "--mode", "unsafe") as shared:
        yield shared


@pytest.fixture(scope="session")
def _lab() -> Iterator[object]:
    import mounts
    import users

    reason = mounts.why_no_mounts()
    if reason:
        pytest.skip(f"cannot act as other users here: {reason}")
    for tool in ("unshare", "nsenter", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    lab = users.Lab()
    yield lab
    lab.end()


@pytest.fixture
def lab(_lab: object) -> Iterator[object]:
    """Ordinary users, where fusermount3 and /dev/fuse are as on a user's machine."""
    if _lab.trouble:  # type: ignore[attr-defined]
        pytest.skip(f"cannot act as other users here: {_lab.trouble}")  # type: ignore[attr-defined]
    _lab.allow_other(False)  # type: ignore[attr-defined]
    yield _lab


# --- frameworks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def framework(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The framework of a program in ``frameworks/programs``, by its name. Importing one takes
    longer than a test, so the tests of a module share it."""
    from training import Framework

    logs, started = tmp_path_factory.mktemp("frameworks"), {}

    def get(name: str) -> Framework:
        if name not in started:
            started[name] = Framework(name, logs / f"{name}.log")
        return started[name]

    yield get
    for process in started.values():
        process.end()


@pytest.fixture
def plain_dir(tmp_path: Path) -> Path:
    """The control: no ckptfs."""
    directory = tmp_path / "plain"
    directory.mkdir()
    return directory
