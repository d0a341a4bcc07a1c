"""A listing is whole: a name that nobody touches while a directory is read comes exactly once.

``ls -l`` of 200,000 files gave 36,890, and exit 0: the kernel lists from its own cache, and where
it had dropped that midway it asked for the rest by a position in a list that nobody had made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from actors import Actor, actors
from images import Mounted
from mounts import served
from trees import WAYS, Shared, Tree, shared_by

_COUNT = 700
_NAME = "kept{:060}"  # so long that one reply holds half of them
_FIRST = 5

# Python's own listings begin anew each time; these are readdir(3) and its relatives.
_READING = """
import collections, ctypes, random, subprocess, time
libc = ctypes.CDLL(None, use_errno=True)
libc.fdopendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
class Reader:
    def __init__(self, path='d'):
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.stream = ctypes.c_void_p(libc.fdopendir(self.fd))
    def read(self, count=1 << 30):
        names = []
        while len(names) < count and (entry := libc.readdir(self.stream)):
            names.append(os.fsdecode(ctypes.string_at(entry + 19)))
        return names
    def tell(self):
        return libc.telldir(self.stream)
    def seek(self, position):
        libc.seekdir(self.stream, ctypes.c_long(position))
    def rewind(self):
        libc.rewinddir(self.stream)
    def close(self):
        libc.closedir(self.stream)
def counted(names, kept):
    "How many of the names that were kept are missing, and how many came twice."
    counts = collections.Counter(names)
    return [sum(counts[n] == 0 for n in kept), sum(counts[n] > 1 for n in kept)]
"""
_KEPT = [_NAME.format(number) for number in range(_COUNT)]


@pytest.fixture(scope="module", params=WAYS)
def shared_mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    """In place of the default mount of the other modules."""
    with shared_by(request.param, tmp_path_factory, "--mode", "atomic_nodirsync") as shared:
        yield shared


@pytest.fixture
def users(tree: Tree) -> Iterator[list[Actor]]:
    """Two, beside a directory ``d`` with many names in it."""
    _fill(tree.below / "d")
    with tree.actors(2) as found:
        for user in found:
            user.do(_READING)
            user.do(f"kept = {_KEPT}")
        yield found


def _fill(directory: Path) -> None:
    """Below the mount, which takes less time."""
    directory.mkdir()
    for name in _KEPT:
        (directory / name).touch()


def _peek(reader: Actor) -> None:
    """The kernel drops what it has cached where a version is staged in the directory."""
    reader.do("f = open('d/peek', 'w'); next(os.scandir('d')); f.close(); os.unlink('d/peek')")


def _drop(_: Actor) -> None:
    Path("/proc/sys/vm/drop_caches").write_text("1")


@pytest.mark.parametrize("drop", [_peek, _drop])
def test_the_rest_comes_where_the_kernel_dropped_its_cache_midway(
    users: list[Actor], drop: Any
) -> None:
    reader, other = users
    other.do("os.listdir('d'); os.listdir('d')")  # in the kernel's cache
    reader.do(f"r = Reader(); names = r.read({_FIRST})")
    drop(other)
    reader.do("names += r.read(); r.close()")
    assert reader.value("counted(names, kept)") == [0, 0]


def test_names_come_and_go_while_a_directory_is_read(users: list[Actor]) -> None:
    reader, other = users
    changes = (
        "[open(f'd/new{i}', 'w').close() for i in range(60)]",
        "[os.rename(f'd/new{i}', f'd/moved{i}') for i in range(30)]",
        "[os.unlink(f'd/new{i}') for i in range(30, 60)]",
        "[os.rename(f'd/moved{i}', 'd/over') for i in range(20)]",
    )
    for begin in range(len(changes)):
        other.do("os.listdir('d'); os.listdir('d')")
        reader.do(f"r = Reader(); names = r.read({_FIRST})")
        other.do(changes[begin])
        _peek(other)
        reader.do(f"names += r.read({_COUNT // 2})")
        _peek(other)
        other.do(
            "open(f'd/{kept[7]}', 'w').write('over'); open(f'd/{kept[-1]}', 'a').write('more')"
        )
        reader.do("names += r.read(); r.close()")
        assert reader.value("counted(names, kept)") == [0, 0]
        assert reader.value("counted(names, names)") == [0, 0]


def test_what_a_reader_removes_as_it_goes_hides_nothing(users: list[Actor]) -> None:
    remover, other = users
    other.do("os.listdir('d'); os.listdir('d')")
    remover.do(f"r = Reader(); names = r.read({_FIRST})")
    _peek(other)
    remover.do(
        "batch = names\n"
        "while batch:\n"
        "    [os.unlink(f'd/{n}') for n in batch if n[0] != '.']\n"
        "    batch = r.read(100); names += batch\n"
        "r.close(); os.rmdir('d')"
    )
    assert remover.value("counted(names, kept)") == [0, 0]


@pytest.mark.parametrize("command", ["rm -r d", "find d -delete"])
def test_a_large_directory_is_removed(users: list[Actor], tree: Tree, command: str) -> None:
    remover, other = users
    other.do("os.listdir('d'); os.listdir('d')")
    remover.send(f"subprocess.run({command!r}, shell=True, check=True)")
    for _ in range(5):
        other.do("os.path.exists('d') and list(os.scandir('.'))")
        _drop(other)
    remover.answer()
    assert not (tree.below / "d").exists()


def test_a_renamed_name_is_met_again_but_not_for_ever(users: list[Actor], tree: Tree) -> None:
    renamer, other = users
    other.do("os.listdir('d'); os.listdir('d')")
    renamer.do(f"r = Reader(); batch = r.read({_FIRST}); seen = 0")
    _peek(other)
    renamer.do(
        "while batch:\n"
        "    seen += len(batch)\n"
        "    assert seen < 10 * len(kept)\n"
        "    [os.rename(f'd/{n}', f'd/{n}x') for n in batch if n[0] != '.']\n"
        "    batch = r.read(100)"
    )
    found = os.listdir(tree.below / "d")
    assert sorted(name.rstrip("x") for name in found) == _KEPT and not set(found) & set(_KEPT)


def test_a_position_is_one_of_the_directory(users: list[Actor]) -> None:
    """Seen from another handle, after names came and went, it parts the names as it did."""
    one, other = users
    one.do("r = Reader(); first = r.read(200); position = r.tell(); rest = r.read()")
    other.do("[open(f'd/new{i}', 'w').close() for i in range(60)]; f = open(f'd/{kept[3]}', 'w')")
    one.do("[os.unlink(f'd/{n}') for n in first[100:150]]")
    other.do(f"r = Reader(); r.seek({one.value('position')}); names = r.read()")
    one.do("r.seek(position); names = r.read()")
    for reader in users:
        reader.do("names = [n for n in names if not n.startswith('new')]")
    assert one.value("names == rest")
    assert other.value("names") == one.value("names")


def test_telldir_and_seekdir(users: list[Actor]) -> None:
    reader, other = users
    reader.do(
        "r = Reader(); places, names = [], []\n"
        "while True:\n"
        "    places.append(r.tell()); batch = r.read(97)\n"
        "    if not batch: break\n"
        "    names.append(batch)"
    )
    _peek(other)
    reader.do(
        "for at in random.sample(range(len(names)), len(names)):\n"
        "    r.seek(places[at]); assert r.read(len(names[at])) == names[at]\n"
        "r.seek(places[-1]); assert r.read() == []"
    )
    assert reader.value("counted(sum(names, []), kept)") == [0, 0]


def test_rewinding_shows_what_came_meanwhile(users: list[Actor]) -> None:
    reader, other = users
    reader.do("r = Reader(); r.read(100)")
    other.do("open('d/new', 'w').close(); f = open('d/staged', 'w'); os.unlink(f'd/{kept[5]}')")
    reader.do("r.rewind(); names = r.read()")
    assert reader.value("counted(names, ['new', 'staged', *kept])") == [1, 0]
    assert reader.value("kept[5] in names") is False
    other.do("f.close(); open(f'd/{kept[5]}', 'w').close()")
    reader.do("os.lseek(r.fd, 0, 0); names = os.listdir(r.fd)")
    assert reader.value("counted(names, ['new', 'staged', *kept])") == [0, 0]


def test_the_name_of_a_killed_writer_leaves_a_listing_that_is_read_again(tree: Tree) -> None:
    """The directory's times moved when the name came, not when it went, so the kernel took what it
    had cached in between for true."""
    with tree.actors(2) as (writer, reader):
        writer.do("os.mkdir('d'); open('d/a', 'w').close()")
        tree.settle()
        reader.do("fd = os.open('d', os.O_RDONLY)")
        writer.do("f = open('d/b', 'w'); f.write('x'); f.flush()")
        assert sorted(reader.value("os.listdir(fd)")) == ["a", "b"]
        writer.kill()
        tree.settle()
        assert reader.value("os.listdir(fd)") == reader.value("os.listdir('d')") == ["a"]


def test_two_readers_of_one_descriptor_share_the_names(users: list[Actor]) -> None:
    reader, _ = users
    reader.do(
        "fd = os.open('d', os.O_RDONLY | os.O_DIRECTORY)\n"
        "def batch():\n"
        "    buffer = ctypes.create_string_buffer(2000)\n"
        "    size, at, names = libc.getdents64(fd, buffer, 2000), 0, []\n"
        "    while at < size:\n"
        "        names.append(os.fsdecode(buffer.raw[at + 19:].partition(b'\\0')[0]))\n"
        "        at += int.from_bytes(buffer.raw[at + 16:at + 18], 'little')\n"
        "    return names\n"
        "end, other = os.pipe()\n"
        "child = os.fork()\n"
        "names = []\n"
        "while more := batch(): names += more\n"
        "if not child: os.write(other, '/'.join(names).encode()); os._exit(0)\n"
        "os.close(other); names += open(end).read().split('/'); os.waitpid(child, 0)"
    )
    assert reader.value("counted([n for n in names if n], kept)") == [0, 0]


def test_a_directory_that_was_removed_lists_nothing(tree: Tree) -> None:
    with tree.actors(2) as (reader, other):
        for user in (reader, other):
            user.do(_READING)
        other.do("os.mkdir('d'); open('d/a', 'w').close()")
        reader.do("r, opened = Reader(), Reader(); assert 'a' in r.read()")
        other.do("os.unlink('d/a'); os.rmdir('d')")
        assert reader.value("opened.read()") == []
        reader.do("r.rewind()")
        assert reader.value("r.read()") == []
        other.do("os.mkdir('d'); open('d/b', 'w').close()")
        assert reader.value("r.read()") == []
        assert sorted(reader.value("Reader().read()")) == [".", "..", "b"]


@pytest.fixture
def crew(loop_fs: Mounted) -> Iterator[list[Actor]]:
    """Many, on each filesystem; XFS and btrfs have an order of their own, btrfs a changing one."""
    directory = loop_fs.path / "served"
    directory.mkdir()
    _fill(directory / "d")
    with served(directory, "--mode", "atomic_nodirsync"), actors(directory, 6) as found:
        for user in found:
            user.do(_READING)
            user.do(f"kept = {_KEPT}; opened = os.listdir('d')")
        yield found


def test_a_file_that_is_committed_while_the_directory_is_read(crew: list[Actor]) -> None:
    """A new name, and names that are replaced: those read already, and those to come."""
    writer, *readers = crew
    for stage in (5, 250, 600):
        writer.do("names = ['new', *kept[::50]]; files = [open(f'd/{n}', 'w') for n in names]")
        for reader in readers:
            reader.do(f"r = Reader(); names = r.read({stage})")
        writer.do("[f.write('x') for f in files]; [f.close() for f in files]")
        readers[0].do("names += r.read(50)")
        writer.do("[open(f'd/{n}', 'w').close() for n in names]; f = open('d/new', 'w')")
        for reader in readers:
            reader.do("names += r.read(); r.close()")
            assert reader.value("counted(names, ['new', *kept])") == [0, 0]
        writer.do("f.close(); os.unlink('d/new')")


# With pauses, in which the kernel has a listing in its cache.
_BUSY = {
    "overwrite": "open(f'd/{random.choice(kept)}', 'w').write('x'); time.sleep(0.1)",
    "make": "open(f'd/n{turn}', 'w').close(); os.rename(f'd/n{turn}', f'd/m{turn}')\n"
    "if turn % 3: os.unlink(f'd/m{turn}')\n"
    "time.sleep(0.03)",
    "stage": "f = open(f'd/{kept[turn % 9]}', 'w'); next(os.scandir('d')); f.close()\n"
    "time.sleep(0.1)",
    "read": "r = Reader(); names = []\n"
    "while batch := r.read(random.randrange(1, 300)):\n"
    "    names += batch; r.seek(r.tell())\n"
    "r.close(); assert counted(names, kept) == [0, 0], counted(names, kept)",
    "list": "names = []\n"
    "for e in os.scandir('d'): names.append(e.name); e.name in kept[::9] and e.stat()\n"
    "assert counted(names, kept) == [0, 0], counted(names, kept)",
}


def test_readers_beside_makers_renamers_and_removers(crew: list[Actor]) -> None:
    loop = "until, turn = time.monotonic() + 2, 0\nwhile time.monotonic() < until:\n    turn += 1\n"
    for user, code in zip(crew, [*_BUSY.values(), _BUSY["read"]], strict=True):
        user.send(loop + "".join(f"    {line}\n" for line in code.split("\n")))
    for _ in range(5):
        time.sleep(0.3)
        _drop(crew[0])
    for user in crew:
        user.answer()
