"""Stores through writable mappings, by several processes, after the descriptor was closed.

numpy closes its descriptor as soon as it has mapped the file, and the next ``r+`` open got a new
inode: what the older map stored went to a file that was replaced. Up to all of a slice was lost.
"""

from __future__ import annotations

from collections.abc import Iterator

import mounts
import pytest
from trees import Shared, Tree, shared_by

pytestmark = pytest.mark.kernel_only(mounts.ONE_INODE)

_MAP = "import numpy; a = numpy.memmap('a.bin', 'u1', 'r+')"
_MADE = "import numpy; a = numpy.memmap('a.bin', 'u1', 'w+', shape=30)"
_SUM = "int(__import__('numpy').fromfile('a.bin', 'u1').sum())"


@pytest.fixture(scope="module", params=["passthrough", "relayed"])
def mapping(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    with shared_by(request.param, tmp_path_factory) as shared:
        yield shared


@pytest.fixture
def tree(mapping: Shared) -> Iterator[Tree]:
    with mapping.tree() as tree:
        yield tree


def _sealed(tree: Tree) -> None:
    """Its record is about the bytes that are there, though nobody has opened it."""
    tree.mount.wait_until(lambda: set(tree.conditions().values()) == {"ok"})


def test_workers_fill_their_slices_of_one_file(tree: Tree) -> None:
    tree.seed("a.bin", bytes(30))
    with tree.actors(4) as (*workers, reader):
        for rank, worker in enumerate(workers):
            worker.do(f"{_MAP}; a[{10 * rank}] = 1")
        for rank, worker in enumerate(workers):
            worker.do(f"a[{10 * rank} : {10 * rank + 10}] = {rank + 1}; a.flush()")
        assert reader.value(_SUM) == 60
        workers[0].exit()
        workers[1].kill()
        workers[2].do("del a")
        assert reader.value(_SUM) == 60
    _sealed(tree)


def test_workers_that_open_it_at_the_same_moment(tree: Tree) -> None:
    """Opens that meet the commit that another one's close has begun."""
    with tree.actors(5) as (reader, *workers):
        for worker in workers:
            worker.do("import numpy")
        for turn in range(12):
            tree.seed("a.bin", bytes(30))
            for rank, worker in enumerate(workers):
                worker.send(f"{_MAP}; a[{rank}] = 1")
            for worker in workers:
                worker.answer()
            for rank, worker in enumerate(workers):
                worker.do(f"a[{4 + rank}] = 1; a.flush(); del a")
            assert reader.value(_SUM) == 8, turn


def test_two_maps_in_one_process(tree: Tree) -> None:
    tree.seed("a.bin", bytes(30))
    with tree.actors(1) as (user,):
        user.do(f"{_MAP}; b = numpy.memmap('a.bin', 'u1', 'r+')")
        user.do("a[:10] = 1; b[10:] = 2; a.flush(); b.flush()")
        assert user.value("[int(a.sum()), int(b.sum())]") == [50, 50]
        user.do("del a, b")
        assert user.value(_SUM) == 50
    _sealed(tree)


def test_a_parent_sees_what_its_workers_store(tree: Tree) -> None:
    """joblib's way to return results. The parent's later stores belong to the file, too."""
    with tree.actors(3) as (parent, one, other):
        parent.do(_MADE)
        one.do(f"{_MAP}; a[:10] = 1; a.flush()")
        other.do(f"{_MAP}; a[10:20] = 2; a.flush()")
        assert parent.value("int(a.sum())") == 30
        parent.do("a[20:] = 3; a.flush(); del a")
        one.exit()
        other.exit()
        assert parent.value(_SUM) == 60
    _sealed(tree)


def test_written_beside_a_map(tree: Tree) -> None:
    tree.seed("a.bin", bytes(30))
    with tree.actors(3) as (mapper, writer, reader):
        mapper.do(f"{_MAP}; a[0] = 1")
        writer.do("f = open('a.bin', 'r+b'); f.seek(1); f.write(b'\\2'); f.close()")
        assert mapper.value("a[:2].tolist()") == [1, 2]
        mapper.do("a[2] = 3")
        assert reader.value(_SUM) == 6


def test_a_store_after_the_first_process_has_ended(tree: Tree) -> None:
    """A child has inherited the mapping of a parent that is gone."""
    tree.seed("a.bin", bytes(30))
    with tree.actors(3) as (parent, other, reader):
        parent.do(f"{_MAP}; a[0] = 1; r, w = os.pipe(); go, told = os.pipe()")
        parent.do(
            "if os.fork() == 0:\n"
            "    os.close(0); os.close(told); os.read(go, 1)\n"
            "    a[1] = 2; a.flush(); os._exit(0)\n"
        )
        parent.exit("os._exit(0)")  # which closes ``told``, so the child goes on
        other.do(f"{_MAP}; a[2] = 3; a.flush()")
        tree.mount.wait_until(lambda: reader.value(_SUM) == 6)
        other.do("del a")
    _sealed(tree)


def test_c1_truncating_beside_a_map_is_a_version_of_its_own(tree: Tree) -> None:
    tree.seed("a.bin", bytes(30))
    with tree.actors(3) as (mapper, saver, reader):
        mapper.do(f"{_MAP}; a[:] = 1; a.flush()")
        saver.do("f = open('a.bin', 'wb'); f.write(b'\\2' * 10); f.flush()")
        assert reader.value(_SUM) == 30
        saver.do("f.close()")
        mapper.do("a[:] = 9; a.flush()")
        assert reader.value(_SUM) == 20


def test_c1_once_nobody_maps_it_changes_are_a_version_again(tree: Tree) -> None:
    tree.seed("a.bin", bytes(30))
    with tree.actors(3) as (mapper, writer, reader):
        mapper.do(f"{_MAP}; a[:] = 1; a.flush(); del a")
        _sealed(tree)
        writer.do("f = open('a.bin', 'r+b'); f.write(b'\\2' * 10); f.flush()")
        assert reader.value(_SUM) == 30
        writer.do("f.close()")
        assert reader.value(_SUM) == 40
    _sealed(tree)


def test_a_store_moves_the_time_that_others_see(tree: Tree) -> None:
    """Where the kernel carries the data a mapping by itself keeps no FUSE handle; Python's own
    keeps a descriptor, C programs do not. Attributes were kept for 10 s then."""
    tree.seed("a.bin", bytes(30))
    moved = "__import__('os').stat('a.bin').st_mtime_ns"
    with tree.actors(2) as (user, other):
        user.do("import ctypes, os; libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p")
        user.do("fd = os.open('a.bin', os.O_RDWR); at = libc.mmap(None, 30, 3, 1, fd, 0)")
        user.do("os.close(fd)")
        before = other.value(moved)
        user.do("ctypes.memset(at, 1, 1); libc.msync(ctypes.c_void_p(at), 30, 4)")
        assert other.value(moved) > before
        user.do("libc.munmap(ctypes.c_void_p(at), 30)")
