"""What of this machine and directory carries ckptfs: tried, not guessed. Nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout

from ..processes import writers
from . import inspect

_PASSTHROUGH_SINCE = (6, 9)
_LOW_SPACE_BYTES = 1 << 30


@dataclass(frozen=True)
class Check:
    verdict: str  # ok, warn, FAIL
    what: str
    found: str
    advice: str = ""


def examine(directory: str) -> Iterator[Check]:
    yield _kernel()
    yield _device()
    yield _rights()
    if not writers.proc_is_ours():
        yield Check(
            "warn",
            "/proc",
            "of another pid namespace",
            "killed writers cannot be told from finished ones; run with --pid=host",
        )
    if inspect.is_mounted(directory):
        yield _served(directory)
        return
    if not os.path.isdir(directory):
        yield Check("FAIL", directory, "no such directory", "make it first")
        return
    yield from _directory(directory)


def _kernel() -> Check:
    release = platform.release()
    version = tuple(int(part) for part in release.split(".")[:2] if part.isdigit())
    if version >= _PASSTHROUGH_SINCE:
        return Check("ok", "kernel", release)
    return Check("warn", "kernel", release, "Linux 6.9 brings passthrough; data is relayed, slower")


def _device() -> Check:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:  # fusermount3 opens it with its caller's rights, too
        advice = "as root: chmod 666 /dev/fuse, as udev does; a container needs --device /dev/fuse"
        return Check("FAIL", "/dev/fuse", error.strerror or "", advice)
    except OSError as error:
        advice = "modprobe fuse, or give the container --device /dev/fuse"
        return Check("FAIL", "/dev/fuse", error.strerror or "cannot be opened", advice)
    return Check("ok", "/dev/fuse", "opens")


def _rights() -> Check:
    if os.geteuid() == 0:
        return Check("ok", "rights", "root: mount(2) and passthrough")
    if shutil.which("fusermount3"):
        advice = "passthrough needs root; data is relayed"
        return Check("warn", "rights", "fusermount3: mounts", advice)
    advice = "`ckptfs run DIR COMMAND` needs neither; for `ckptfs mount` install the package fuse3"
    return Check("FAIL", "rights", "neither root nor fusermount3", advice)


def _served(directory: str) -> Check:
    try:
        inspect.status_of(directory)
    except TimeoutError as error:
        return Check("FAIL", directory, str(error), inspect.how_to_end(directory))
    return Check("ok", directory, "served now; see `ckptfs status`")


def _directory(directory: str) -> Iterator[Check]:
    try:
        folder = tempfile.mkdtemp(prefix=".ckptfs-doctor-", dir=directory)
    except OSError as error:
        yield Check("FAIL", directory, error.strerror or "not writable", "it must be writable")
        return
    fd = osfs.open_directory(folder)
    try:
        yield _rename(fd)
        yield _link(fd)
        yield _xattrs(fd)
        yield _space(fd)
    finally:
        os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)
    yield from _control(directory)


def _control(directory: str) -> Iterator[Check]:
    """The parts of ``.ckptfs``, where there is one."""
    root = osfs.open_directory(directory)
    try:
        layout = Layout.existing(OsFs(), root, directory)
        if layout is not None:
            layout.close()
            yield Check("ok", fmt.CONTROL, "of this layout, and complete")
    except (CannotServe, OSError) as error:
        told, _, advice = (getattr(error, "strerror", None) or str(error)).partition("; ")
        yield Check("FAIL", fmt.CONTROL, told, advice or "see whose it is")
    finally:
        os.close(root)


def _file(at: int, name: str) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=at))


def _rename(at: int) -> Check:
    try:
        _file(at, "a")
        os.rename("a", "b", src_dir_fd=at, dst_dir_fd=at)
        os.fsync(at)
    except OSError as error:
        return Check("FAIL", "rename and fsync", error.strerror or "", "use another filesystem")
    return Check("ok", "rename and fsync", "work, of directories too")


def _link(at: int) -> Check:
    try:
        os.link("b", "c", src_dir_fd=at, dst_dir_fd=at)
    except OSError as error:
        return Check("FAIL", "hard links", error.strerror or "", "mount with --keep 0")
    return Check("ok", "hard links", "work: earlier generations cost no copy")


def _xattrs(at: int) -> Check:
    fd = os.open("b", os.O_RDWR, dir_fd=at)
    try:
        with contextlib.suppress(OSError):
            os.setxattr(fd, fmt.XATTR, b"x" * 400)
            return Check("ok", "user xattrs", "work: records travel with their files")
        return Check(
            "warn",
            "user xattrs",
            "not on this filesystem",
            "records lie in .ckptfs/sidecar and do not travel with copied files",
        )
    finally:
        os.close(fd)


def _space(at: int) -> Check:
    free = OsFs().space(at).free_bytes
    text = f"{free / (1 << 30):.1f} GiB"
    if free < _LOW_SPACE_BYTES:
        return Check("warn", "free space", text, "a save needs room for old and new side by side")
    return Check("ok", "free space", text)
