"""Directories are known by the million and open by the hundred: whoever uses one has that very one,
however many are opened and closed beside it, and whatever becomes of the names above it."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import open_descriptors

from ckptfs.disk.real import OsFs
from ckptfs.modes import Mode
from ckptfs.mount.view.descriptors import Descriptor, OpenFolders, Room
from ckptfs.mount.view.model import Directory
from ckptfs.mount.view.nodes import NodeTable
from ckptfs.versions.order import Ordering

_OPEN = 4
_BYTES_OF_A_NAME = 280  # a million of them within 300 MB, beside the interpreter


class _ClosesAtOnce(OpenFolders):
    """The control: one is closed under whoever uses it, and its number is given to another."""

    other = -1

    def _close_some(self) -> None:
        before = dict(self._open)
        super()._close_some()
        for folder in before.keys() - self._open.keys():
            os.dup2(self.other, before[folder].fd)


@pytest.fixture
def table(tmp_path: Path, no_leaks: None) -> Iterator[NodeTable]:
    root = os.open(tmp_path, os.O_RDONLY)
    table = NodeTable(root, Room(8 * _OPEN))
    first = table.folders
    yield table
    for folders in (first, table.folders):
        folders._open.clear()
        folders._always.clear()
    os.close(root)
    gc.collect()


def _make(tmp_path: Path, count: int) -> None:
    for i in range(count):
        (tmp_path / f"run{i}").mkdir()
        (tmp_path / f"run{i}/name").write_text(f"run{i}")


def _node(table: NodeTable, path: str) -> Directory:
    at = table.root
    for name in path.split("/"):
        status = os.stat(name, dir_fd=at.fd, follow_symlinks=False)
        node = table.committed(at, name, status)
        assert isinstance(node, Directory)
        at = node
    return at


def _read(fd: int) -> str:
    file = os.open("name", os.O_RDONLY, dir_fd=fd)
    try:
        return os.read(file, 100).decode()
    finally:
        os.close(file)


def _read_by_held(table: NodeTable) -> str:
    """What a descriptor leads to after all the others were opened."""
    nodes = [_node(table, f"run{i}") for i in range(4 * _OPEN)]
    held = nodes[0].fd
    for node in nodes[1:]:
        assert _read(node.fd) == node.name
    return _read(held)


def test_who_uses_a_directory_has_that_one(table: NodeTable, tmp_path: Path) -> None:
    _make(tmp_path, 4 * _OPEN)
    assert _read_by_held(table) == "run0"


def test_control_one_that_is_closed_at_once_is_another(table: NodeTable, tmp_path: Path) -> None:
    _make(tmp_path, 4 * _OPEN)
    (tmp_path / "name").write_text("the root")
    root = table.root.fd
    table.folders = table.root.folders = folders = _ClosesAtOnce(_OPEN)
    folders.keep_open(table.root, root)
    folders.other = int(root)
    assert _read_by_held(table) == "the root"


def test_threads_have_what_they_asked_for(table: NodeTable, tmp_path: Path) -> None:
    _make(tmp_path, 4 * _OPEN)
    nodes = [_node(table, f"run{i}") for i in range(4 * _OPEN)]
    wrong: list[str] = []

    def use(step: int) -> None:
        for i in range(0, 400 * step, step):
            node = nodes[i % len(nodes)]
            if _read(node.fd) != node.name:
                wrong.append(node.name)

    threads = [threading.Thread(target=use, args=(step,)) for step in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_bounded_number_is_open(table: NodeTable, tmp_path: Path) -> None:
    _make(tmp_path, 4 * _OPEN)
    before = len(open_descriptors(tmp_path))
    for i in range(4 * _OPEN):
        assert _node(table, f"run{i}").fd >= 0
    assert len(open_descriptors(tmp_path)) - before == _OPEN


def test_one_that_was_used_stays(table: NodeTable, tmp_path: Path) -> None:
    _make(tmp_path, 4 * _OPEN)
    used = _node(table, "run0")
    for i in range(4 * _OPEN):
        assert used.fd >= 0
        assert _node(table, f"run{i}").fd >= 0
        assert table.folders.is_open(used)


def _closed(table: NodeTable, node: Directory) -> Directory:
    table.folders.close(node)
    return node


def test_it_is_found_where_renames_have_put_it(table: NodeTable, tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/name").write_text("c")
    a, b, c = (_node(table, path) for path in ("a", "a/b", "a/b/c"))
    for node in (a, b, c):
        _closed(table, node)
    (tmp_path / "a").rename(tmp_path / "z")
    table.move(a, table.root, "z")
    (tmp_path / "z/b").rename(tmp_path / "b")
    table.move(b, table.root, "b")
    assert _read(c.fd) == "c"


def test_while_it_is_renamed_it_is_open(table: NodeTable, tmp_path: Path) -> None:
    _make(tmp_path, 4 * _OPEN)
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/name").write_text("b")
    a, b = _node(table, "a"), _node(table, "a/b")
    with table.moving(a):
        (tmp_path / "a").rename(tmp_path / "z")
        for i in range(4 * _OPEN):
            assert _node(table, f"run{i}").fd >= 0
        assert _read(_closed(table, b).fd) == "b"
        table.move(a, table.root, "z")
    assert _read(_closed(table, b).fd) == "b"


@pytest.mark.parametrize("now", ["nothing", "a symlink", "a file", "another directory"])
def test_what_was_moved_below_the_mount_is_lost(table: NodeTable, tmp_path: Path, now: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    a, b = _node(table, "a"), _node(table, "a/b")
    for node in (a, b):
        _closed(table, node)
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    if now == "a symlink":
        (tmp_path / "a").symlink_to("elsewhere")
    elif now == "a file":
        (tmp_path / "a").write_text("")
    elif now == "another directory":
        (tmp_path / "a/b").mkdir(parents=True)
    with pytest.raises(OSError) as caught:
        _ = b.fd
    assert caught.value.errno == errno.ESTALE


def test_a_removed_one_stays_open(table: NodeTable, tmp_path: Path) -> None:
    _make(tmp_path, 4 * _OPEN)
    (tmp_path / "gone").mkdir()
    gone = _node(table, "gone")
    with table.moving(gone):
        (tmp_path / "gone").rmdir()
        table.removed(gone, stays_open=True)
    for i in range(4 * _OPEN):
        assert _node(table, f"run{i}").fd >= 0
    assert gone.status().st_nlink == 0
    table.forget(gone.id, 0)


def test_thousands_of_levels_need_no_stack(table: NodeTable, tmp_path: Path) -> None:
    levels = 3000
    at = os.open(tmp_path, os.O_RDONLY)
    node = table.root
    for _ in range(levels):
        os.mkdir("d", dir_fd=at)
        below = table.committed(node, "d", os.stat("d", dir_fd=at))
        assert isinstance(below, Directory)
        node, before = below, at
        at = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(before)
    assert os.fstat(node.fd).st_ino == os.fstat(at).st_ino
    os.close(at)
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # pytest would recurse


def test_it_is_no_text(tmp_path: Path) -> None:
    fd = Descriptor(os.open(tmp_path, os.O_RDONLY))
    with pytest.raises(TypeError):
        f"/proc/self/fd/{fd}"
    assert os.path.samefile(fd.link(), tmp_path)


# --- what the kernel remembers -------------------------------------------------------------------


def _known(table: NodeTable, tmp_path: Path, files: int) -> list[int]:
    """Ids of as many names, as lookups make them."""
    (tmp_path / "file").write_text("")
    status = os.stat(tmp_path / "file")
    node = _node(table, "run0")
    ids = []
    for i in range(files):
        found = table.committed(node, f"checkpoint-{i:07}.pt", status)
        found.lookups += 1
        ids.append(found.id)
    return ids


def test_a_name_takes_few_bytes(table: NodeTable, tmp_path: Path) -> None:
    _make(tmp_path, 1)
    files = 20_000
    tracemalloc.start()
    _known(table, tmp_path, files)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / files < _BYTES_OF_A_NAME


def test_what_is_forgotten_takes_nothing(table: NodeTable, tmp_path: Path) -> None:
    _make(tmp_path, 1)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for nodeid in _known(table, tmp_path, 20_000):
        table.forget(nodeid, 1)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < (4 << 20)  # names that are shared


# --- directories that are to be durable before the next commit ------------------------------------


class _Counting(OsFs):
    def __init__(self) -> None:
        super().__init__()
        self.synced: list[str] = []

    def sync_all(self, fd: int) -> None:
        self.synced.append("all")

    def fsync_dir(self, fd: int) -> None:
        self.synced.append("one")


@pytest.mark.parametrize(("changed", "whole_filesystem"), [(10, False), (200, True)])
def test_what_was_changed_in_many_is_synced_at_once(
    tmp_path: Path, no_leaks: None, changed: int, whole_filesystem: bool
) -> None:
    fs = _Counting()
    ordering, before = Ordering(fs, Mode.ATOMIC_DIRSYNC), len(open_descriptors(tmp_path))
    for i in range(changed):
        (tmp_path / f"run{i}").mkdir()
        fd = os.open(tmp_path / f"run{i}", os.O_RDONLY)
        ordering.note_changed_dir(fd)
        os.close(fd)
    held = len(open_descriptors(tmp_path)) - before
    assert held == min(changed, 64)
    ordering.sync_changed_dirs()
    assert fs.synced.count("all") == whole_filesystem
    assert fs.synced.count("one") == held
    fs.synced.clear()
    ordering.sync_changed_dirs()
    assert fs.synced == []
