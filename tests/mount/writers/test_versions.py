"""Versions that come between a lookup and its open, or whose opener dies there.

The kernel tells nobody of an opener that dies after the answer ESTALE. Its version stayed in
``status`` for good, and an open for update joined it although another one had been committed since
it was begun: that one's bytes were lost.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import NEW, NEWER, OLD, contents, store_on

from ckptfs.mount.operations.base import New, Slow
from ckptfs.mount.operations.whole import Operations
from ckptfs.mount.view.identity import ROOT_ID
from ckptfs.mount.view.listing import parts
from ckptfs.mount.view.model import Caller, Directory, File, Handle, Version
from ckptfs.mount.writers import closing, committing, visibility
from ckptfs.store import Store
from ckptfs.versions.staged import Staged


@pytest.fixture
def operations(quick_dir: Path) -> Iterator[Operations]:
    (quick_dir / "f").write_bytes(OLD)
    operations = Operations(store_on(quick_dir), dict)
    yield operations
    closing.stop(operations.versions)
    operations.store.close()


def _caller(pid: int) -> Caller:
    return Caller(os.getuid(), os.getgid(), pid)


def _dead() -> Caller:
    process = subprocess.Popen(["true"])
    process.wait()
    return _caller(process.pid)


def _open(operations: Operations, flags: int, caller: Caller) -> Handle:
    """As the kernel does it, which looks again after ESTALE."""
    for _ in range(2):
        node = operations.lookup(ROOT_ID, "f", caller).node
        try:
            handle = operations.open(node.id, flags, caller)
            return handle if isinstance(handle, Handle) else handle.run()
        except OSError as error:
            assert error.strerror == "look again"
    raise AssertionError("sent back twice")


def _abandon(operations: Operations, flags: int) -> Version:
    with pytest.raises(OSError, match="look again"):
        node = operations.lookup(ROOT_ID, "f", _caller(os.getpid())).node
        handle = operations.open(node.id, flags, _dead())
        handle.run()  # type: ignore[union-attr]
    (version,) = operations.versions.all()
    assert visibility.abandoned(version)
    return version


def _write(operations: Operations, data: bytes, flags: int) -> None:
    handle = _open(operations, flags, _caller(os.getpid()))
    operations.write(handle.id, memoryview(data), 0)
    for work in (
        operations.flush(handle.id, _caller(os.getpid())),
        operations.release(handle.id),
    ):
        if work is not None:
            work.run()


def test_c1_an_abandoned_version_is_not_joined(operations: Operations) -> None:
    _abandon(operations, os.O_RDWR)
    _write(operations, NEW, os.O_WRONLY | os.O_TRUNC)
    _write(operations, NEWER[:10], os.O_RDWR)
    node = operations.lookup(ROOT_ID, "f", _caller(os.getpid())).node
    assert isinstance(node, File) and node.parent is not None
    path = Path(operations.store.where) / "f"
    assert path.read_bytes() == NEWER[:10] + NEW[10:]


def test_an_abandoned_version_is_dropped(operations: Operations) -> None:
    version = _abandon(operations, os.O_WRONLY | os.O_TRUNC)
    operations.versions.watch.look()
    assert version.ended
    assert operations.versions.all() == []
    assert os.listdir(operations.store.layout.stage) == []


def _end(operations: Operations, handle: Handle, *, flush: bool) -> None:
    works = [operations.flush(handle.id, _caller(os.getpid()))] if flush else []
    for work in (*works, operations.release(handle.id)):
        if work is not None:
            work.run()


@pytest.mark.parametrize("flush", [False, True], ids=["killed in open", "closed"])
def test_c6_an_open_that_never_returned_publishes_nothing(
    operations: Operations, quick_dir: Path, flush: bool
) -> None:
    """Who is killed while its open is answered never has a descriptor: RELEASE comes, and no FLUSH
    (seen on Linux 6.18). It published the file as ``: > f`` does, over an old version too."""
    truncating = _open(operations, os.O_WRONLY | os.O_TRUNC, _caller(os.getpid()))
    how = New(_caller(os.getpid()), stat.S_IFREG | 0o644, 0)
    _, creating = operations.create(ROOT_ID, "new", os.O_WRONLY | os.O_CREAT, how)
    for handle in (truncating, creating):
        _end(operations, handle, flush=flush)
    assert (quick_dir / "f").read_bytes() == (b"" if flush else OLD)
    assert (quick_dir / "new").exists() == flush
    assert operations.versions.all() == []


def test_c6_bytes_written_after_the_mount_was_taken_away_are_salvaged(
    operations: Operations, quick_dir: Path
) -> None:
    """Under passthrough they reach the file without us, also one that was empty when we ended."""
    handle = _open(operations, os.O_WRONLY | os.O_TRUNC, _caller(os.getpid()))
    committing.abort_all(operations.versions, "the mount was taken away")
    os.write(handle.fd, NEW)
    os.close(handle.fd)
    store = Store.open(str(quick_dir))
    assert [note["path"] for note in store.layout.aside.entries(store.layout.salvage)] == ["f"]
    assert NEW in contents(quick_dir / ".ckptfs/salvage")
    assert store.get("f") == OLD
    store.close()


def test_c6_a_version_that_cannot_be_looked_at_keeps_no_other_from_salvage(
    operations: Operations, quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = _open(operations, os.O_WRONLY | os.O_TRUNC, _caller(os.getpid()))
    how = New(_caller(os.getpid()), stat.S_IFREG | 0o644, 0)
    _, other = operations.create(ROOT_ID, "new", os.O_WRONLY | os.O_CREAT, how)
    for fd, data in ((handle.fd, NEW), (other.fd, NEWER)):
        os.write(fd, data)
    assert handle.version is not None
    unseen, honest = handle.version.staged, operations.store.saves.is_changed

    def changed(staged: Staged) -> bool:
        if staged is unseen:
            raise OSError(errno.EIO, "injected")
        return honest(staged)

    monkeypatch.setattr(operations.store.saves, "is_changed", changed)
    committing.abort_all(operations.versions, "the mount was taken away")
    assert contents(quick_dir / ".ckptfs/salvage") == [NEWER]
    assert contents(quick_dir / ".ckptfs/stage") == [NEW]  # the next mount sees to it


def test_a_directory_that_the_kernel_forgot_is_the_same_one_while_a_file_in_it_is_committed(
    operations: Operations,
) -> None:
    """Under memory pressure the kernel forgets a directory once nothing in it is open. Seen with
    pjdfstest: looked up again it had another node, and the file that had just been closed was
    not there until its commit was over."""
    maker = _caller(os.getpid())
    directory = operations.mkdir(ROOT_ID, "d", New(maker, 0o755, 0)).node
    made, handle = operations.create(directory.id, "a", os.O_WRONLY, New(maker, 0o644, 0))
    commit = operations.release(handle.id)
    assert isinstance(commit, Slow)
    operations.forget(directory.id, 1)
    operations.forget(made.node.id, 1)
    again = operations.lookup(ROOT_ID, "d", maker).node
    assert operations.lookup(again.id, "a", _dead()).node is made.node
    listed = operations.readdir(operations.opendir(again.id).id, 0, 4096)
    assert isinstance(listed, list) and [parts(each)[0] for each in listed] == [".", "..", "a"]
    commit.run()
    operations.forget(again.id, 1)
    operations.forget(made.node.id, 1)
    for forgotten in (again, made.node):
        with pytest.raises(OSError, match="unknown node"):
            operations.nodes.get(forgotten.id)


def test_a_path_is_written_in_place_also_when_its_directory_was_forgotten(
    operations: Operations,
) -> None:
    maker = _caller(os.getpid())
    directory = operations.mkdir(ROOT_ID, "d", New(maker, 0o755, 0)).node
    operations.locks.share((directory.ident, "a"))
    operations.forget(directory.id, 1)
    again = operations.lookup(ROOT_ID, "d", maker).node
    assert again is not directory  # the control: it was forgotten
    assert isinstance(again, Directory) and operations.in_place(again, "a")


def test_c7_a_node_stands_for_one_inode_whatever_takes_its_name(operations: Operations) -> None:
    """Inode numbers come back: the next version with the old one's is another node."""
    caller = _caller(os.getpid())
    node = operations.lookup(ROOT_ID, "f", caller).node
    assert isinstance(node, File) and node.parent is not None
    looked_up = os.stat("f", dir_fd=node.parent.fd)
    _write(operations, NEW, os.O_WRONLY | os.O_TRUNC)
    with pytest.raises(OSError) as refused:
        operations.open(node.id, os.O_RDONLY, caller)
    assert refused.value.errno == errno.ESTALE
    assert operations.nodes.find(node.parent, "f", looked_up) is None
    assert operations.lookup(ROOT_ID, "f", caller).node is not node


def test_a_directory_is_known_while_a_node_is_in_it(operations: Operations) -> None:
    """Else what was staged in it belongs to a directory that no lookup gives any more."""
    caller = _caller(os.getpid())
    nodes, new = operations.nodes, New(caller, 0o755, 0)
    outer = operations.mkdir(ROOT_ID, "outer", new).node
    inner = operations.mkdir(outer.id, "inner", new).node
    entry, handle = operations.create(inner.id, "f", os.O_WRONLY, new)
    for place in ((inner.id, "f", ROOT_ID, "g"), (ROOT_ID, "g", inner.id, "f")):
        work = operations.rename(*place, 0, _caller(os.getpid()))
        if isinstance(work, Slow):
            work.run()
    for node in (outer, inner, entry.node):
        operations.forget(node.id, 1)
    assert nodes.get(outer.id) is outer and nodes.get(inner.id) is inner
    for work in (operations.flush(handle.id, caller), operations.release(handle.id)):
        if work is not None:
            work.run()
    for node in (outer, inner, entry.node):
        with pytest.raises(OSError, match="unknown node"):
            nodes.get(node.id)
