"""Holes are not read, and give the digest and the sums that their zeros would."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from images import Mounted

from ckptfs.disk import digest, osfs, zeros
from ckptfs.disk.digest import ALGORITHMS, CHUNK_BYTES, digest_file, hash_range
from ckptfs.disk.real import OsFs
from ckptfs.disk.sums import Sums, differing
from ckptfs.disk.zeros import FROM_BYTES, Zeros, kept_length, next_kept
from ckptfs.tools.faults import Before, Call

KINDS = ("hole", "data", "zeros", "unwritten", "punched", "mapped")
LENGTHS = (1, 4095, 4096, 65_536, 524_288, 1_048_577, CHUNK_BYTES, 2 * CHUNK_BYTES + 12_345)


@pytest.fixture
def small_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """States are kept from 1 MiB on, so that short files show what long ones do."""
    monkeypatch.setattr(digest, "_zeros", Zeros())
    monkeypatch.setattr(digest, "FROM_BYTES", 1 << 20)
    monkeypatch.setattr(zeros, "FROM_BYTES", 1 << 20)


def lay_out(path: Path, draw: random.Random) -> bytes:
    """A file of random pieces at odd places, and what it reads as."""
    content = b""
    with open(path, "w+b", buffering=0) as file:
        for _ in range(draw.randint(1, 6)):
            kind, length = draw.choice(KINDS), draw.choice(LENGTHS)
            content += put(file.fileno(), kind, len(content), length, draw)
        if draw.random() < 0.5:
            os.fsync(file.fileno())
    return content


def put(fd: int, kind: str, at: int, length: int, draw: random.Random) -> bytes:
    os.truncate(fd, at + length)
    data = draw.randbytes(length)
    if kind == "data":
        os.pwrite(fd, data, at)
        return data
    if kind == "zeros":
        os.pwrite(fd, bytes(length), at)
    elif kind == "unwritten":
        osfs.allocate(fd, 0, at, length)
    elif kind == "punched":
        os.pwrite(fd, data, at)
        osfs.allocate(fd, 0x3, at, length)  # KEEP_SIZE | PUNCH_HOLE
    elif kind == "mapped":
        with mmap.mmap(fd, at + length) as mapped:
            mapped[at : at + 1] = b"m"
        return b"m" + bytes(length - 1)
    return bytes(length)


def expected(content: bytes, algorithm: str) -> str:
    hasher: Any = blake3() if algorithm == "blake3" else hashlib.sha256()
    hasher.update(content)
    return hasher.hexdigest()


def sums_of(content: bytes) -> str:
    summed = Sums()
    summed.update(memoryview(content))
    return summed.text()


@pytest.mark.parametrize("seed", range(6))
def test_C9_any_layout_gives_the_digest_of_what_is_read(
    loop_fs: Mounted, seed: int, small_zeros: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    for number in range(3):
        path = loop_fs.path / str(number)
        content = lay_out(path, draw)
        fd = os.open(path, os.O_RDONLY)
        for algorithm in ALGORITHMS:
            for others in (0, 1000):  # on every core, or on one thread
                monkeypatch.setattr(digest, "_running", others)
                hasher = hash_range(OsFs(), fd, (0, len(content)), algorithm, sums=True)
                assert hasher.hexdigest() == expected(content, algorithm)
                assert hasher.sums is not None and hasher.sums.text() == sums_of(content)
        assert differing(OsFs(), fd, len(content), len(content), sums_of(content)) == []
        os.close(fd)
        path.unlink()


@pytest.mark.parametrize("tool", ["b3sum", "sha256sum"])
@pytest.mark.parametrize("layout", ["hole", "hole data", "data hole", "data hole data"])
def test_C9_the_standard_tools_print_the_same(loop_fs: Mounted, layout: str, tool: str) -> None:
    path = loop_fs.path / "f"
    with open(path, "wb") as file:
        for piece in layout.split():
            if piece == "hole":
                file.truncate(file.seek(FROM_BYTES + 4096 * 3 + 5, os.SEEK_CUR))
            else:
                file.write(b"data" * 1000)
    try:
        done = subprocess.run([tool, path], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip(f"{tool} is not installed")
    algorithm = {"b3sum": "blake3", "sha256sum": "sha256"}[tool]
    fd = os.open(path, os.O_RDONLY)
    for _ in range(2):
        assert digest_file(OsFs(), fd, path.stat().st_size, algorithm) == (
            f"{algorithm}:{done.stdout.split()[0]}"
        )
    os.close(fd)


@pytest.fixture
def reads() -> Iterator[tuple[Any, list[int]]]:
    """A filesystem, and the lengths that were read of it."""
    lengths: list[int] = []

    def read(call: Call) -> None:
        if call.method == "readinto":
            lengths.append(len(call.arguments[1]))
        if call.method == "read":
            lengths.append(call.arguments[1])

    yield Before(OsFs(), read).fs, lengths


def test_a_hole_is_not_read(loop_fs: Mounted, reads: tuple[Any, list[int]]) -> None:
    fs, lengths = reads
    path = loop_fs.path / "f"
    with open(path, "wb") as file:
        for at in (200 << 20, 500 << 20):
            file.seek(at)
            file.write(b"x")
        file.truncate(700 << 20)
    fd = os.open(path, os.O_RDONLY)
    text = hash_range(fs, fd, (0, 700 << 20), "blake3", sums=True).sums
    assert sum(lengths) <= 4 * CHUNK_BYTES
    assert text is not None and differing(fs, fd, 700 << 20, 700 << 20, text.text()) == []
    assert sum(lengths) <= 5 * CHUNK_BYTES
    os.close(fd)


def test_what_a_file_begins_with_in_zeros_is_hashed_once(
    ext4_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "_zeros", Zeros())
    path, size = ext4_dir / "f", 1 << 30
    path.touch()
    os.truncate(path, size)
    fd = os.open(path, os.O_RDONLY)
    hashed: list[int] = []
    first = hash_range(OsFs(), fd, (0, size), "blake3", sums=True)
    again = hash_range(
        OsFs(), fd, (0, size), "blake3", sums=True, before=lambda at, n: hashed.append(n)
    )
    assert hashed == []
    assert again.hexdigest() == first.hexdigest()
    other = hash_range(
        OsFs(), fd, (0, size - 1), "blake3", sums=True, before=lambda at, n: hashed.append(n)
    )
    assert sum(hashed) <= size // 16
    assert other.hexdigest() != first.hexdigest()
    os.close(fd)


@pytest.mark.parametrize("left", [0, 4096, FROM_BYTES, FROM_BYTES + 1])
def test_a_sparse_file_that_is_cut_meanwhile_gives_another_digest(
    ext4_dir: Path, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "_zeros", Zeros())
    path, size = ext4_dir / "f", 4 * FROM_BYTES
    path.touch()
    os.truncate(path, size)
    fd = os.open(path, os.O_RDONLY)

    def cut(at: int, length: int) -> None:
        if at > 0:
            os.truncate(path, left)

    cut_digest = digest_file(OsFs(), fd, size, "blake3", cut)
    os.truncate(path, size)
    assert cut_digest != digest_file(OsFs(), fd, size, "blake3")
    os.close(fd)


def test_a_filesystem_that_is_not_known_to_tell_holes_is_read(
    ramfs_dir: Path, reads: tuple[Any, list[int]]
) -> None:
    fs, lengths = reads
    path = ramfs_dir / "f"
    path.touch()
    os.truncate(path, CHUNK_BYTES)
    fd = os.open(path, os.O_RDONLY)
    assert fs.next_data(fd, 0) == 0
    assert digest_file(fs, fd, CHUNK_BYTES, "blake3") == (
        f"blake3:{blake3(bytes(CHUNK_BYTES)).hexdigest()}"
    )
    assert sum(lengths) >= CHUNK_BYTES
    os.close(fd)


def test_a_copy_of_a_sparse_file_keeps_its_holes(loop_fs: Mounted) -> None:
    source, target = loop_fs.path / "s", loop_fs.path / "t"
    with open(source, "w+b") as one, open(target, "w+b") as other:
        one.seek(500 << 20)
        one.write(b"x" * 5000)
        one.truncate(700 << 20)
        one.flush()
        OsFs().copy(one.fileno(), other.fileno(), 0, 700 << 20)
        os.fsync(other.fileno())
        assert os.fstat(other.fileno()).st_blocks * 512 < 1 << 20
        assert os.pread(other.fileno(), 6000, (500 << 20) - 500) == (
            bytes(500) + b"x" * 5000 + bytes(500)
        )


def test_kept_lengths_are_few_and_close() -> None:
    length, count = next_kept(0), 0
    assert length == FROM_BYTES
    while length < 1 << 63:
        following = next_kept(length)
        assert kept_length(following) == following
        assert kept_length(following - 1) == length
        assert following - length <= length // 16
        length, count = following, count + 1
    assert count < 1000
