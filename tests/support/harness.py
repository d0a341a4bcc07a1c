"""What several test modules share: stores over a directory, rot, open descriptors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ckptfs.checking import examine as verify_module
from ckptfs.checking.examine import Condition, Finding
from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.records.format import Record
from ckptfs.store import Options, Store

OLD, NEW, NEWER = b"old " * 700, b"new " * 900, b"newer " * 800


def store_on(directory: Path, fs: Any = None, **options: Any) -> Store:
    """A store without lock and recovery, so that several can follow each other quickly."""
    root = osfs.open_directory(str(directory))
    try:
        return Store(fs or OsFs(), root, str(directory), Options(**options))
    except BaseException:
        os.close(root)
        raise


def look_on(store: Store, fs: Any) -> None:
    """From here on the steps of its commits go through ``fs``."""
    store.core.fs = store.order.fs = store.layout.fs = fs


def two_versions(store: Store) -> None:
    store.put("a.pt", OLD)
    store.put("a.pt", NEW)


def rot(path: Path, offset: int = 0) -> None:
    """Flip a bit, on the medium too, and leave size and times as they were: what a disk does, not
    what a program does."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
        file.flush()
        os.fsync(file.fileno())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touch(path: Path) -> None:
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


def examine(store: Store, path: str, **how: Any) -> Finding:
    with osfs.place(store.fs, store.root, path) as (at, name):
        return verify_module.examine(store.layout, at, name, **how)


def condition(store: Store, path: str) -> Condition:
    return examine(store, path).condition


def recorded(store: Store, path: str) -> Record:
    record = examine(store, path).record
    assert record is not None
    return record


def lineage(store: Store, path: str) -> str:
    return recorded(store, path).lineage


def contents(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(directory.iterdir()) if path.suffix != ".json"]


def open_descriptors(below: Path = Path("/")) -> set[str]:
    """Of this process. Those of other tests are closed whenever their objects are collected: a test
    that counts names its directory."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that listed
            continue
        if below == Path("/") or target.startswith(f"{below}/") or target == str(below):
            found.add(f"{fd} {target}")
    return found
