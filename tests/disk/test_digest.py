"""Digests equal what the standard tools print, at any size, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from ckptfs.disk import digest
from ckptfs.disk.digest import ALGORITHMS, CHUNK_BYTES, digest_file
from ckptfs.disk.real import OsFs
from ckptfs.errors import UsageError
from ckptfs.tools.faults import Before, Call, FailNth, Intercepted

SIZES = [0, 1, 4095, 4096, 4097, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5]
READ_BYTES = 512 << 10
BIG = 3 * CHUNK_BYTES + 5
TOOLS = {"blake3": "b3sum", "sha256": "sha256sum"}


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(BIG)


def opened(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def expected(path: Path, algorithm: str) -> str:
    """What the tool prints; where it is not installed, what its library says."""
    tool = shutil.which(TOOLS[algorithm])
    if tool is not None:
        result = subprocess.run([tool, path], capture_output=True, text=True, check=True)
        return result.stdout.split()[0].lstrip("\\")
    hasher: Any = blake3() if algorithm == "blake3" else hashlib.sha256()
    hasher.update(path.read_bytes())
    return hasher.hexdigest()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("others", [0, 1000])
def test_C9_digests_equal_those_of_the_standard_tools(
    others: int,
    algorithm: str,
    size: int,
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Alone with every core, or on one thread beside many others."""
    monkeypatch.setattr(digest, "_running", others)
    fd = opened(tmp_path / "a", content[:size])
    assert digest_file(OsFs(), fd, size, algorithm) == (
        f"{algorithm}:{expected(tmp_path / 'a', algorithm)}"
    )
    os.close(fd)


@pytest.mark.parametrize("size", SIZES)
def test_only_the_asked_size_is_digested(size: int, content: bytes, tmp_path: Path) -> None:
    fd = opened(tmp_path / "a", content[:size] + b"more than was asked for")
    assert digest_file(OsFs(), fd, size, "blake3") == f"blake3:{blake3(content[:size]).hexdigest()}"
    os.close(fd)


@pytest.mark.parametrize("size", [size for size in SIZES if size > 0])
def test_C5_reads_suit_a_direct_descriptor(size: int, content: bytes, tmp_path: Path) -> None:
    """O_DIRECT refuses unaligned buffers and lengths: a mismatch could then not be confirmed."""
    (tmp_path / "a").write_bytes(content[:size])
    try:
        fd = os.open(tmp_path / "a", os.O_RDONLY | os.O_DIRECT)
    except OSError:
        pytest.skip("this filesystem has no O_DIRECT")
    assert digest_file(OsFs(), fd, size, "blake3") == f"blake3:{blake3(content[:size]).hexdigest()}"
    os.close(fd)


@pytest.mark.parametrize("size", SIZES)
def test_C2_each_chunk_is_cleaned_before_it_is_read(
    size: int, content: bytes, tmp_path: Path
) -> None:
    fd = opened(tmp_path / "a", content[:size])
    order: list[tuple[str, int, int]] = []

    def read(call: Call) -> None:
        if call.method == "readinto":
            order.append(("read", call.arguments[2], len(call.arguments[1])))

    digest_file(
        Before(OsFs(), read).fs, fd, size, "blake3", lambda at, n: order.append(("clean", at, n))
    )
    os.close(fd)
    assert sum(n for step, _, n in order if step == "clean") == size
    clean_up_to = 0
    for step, at, length in order:
        if step == "clean":
            assert at == clean_up_to
            clean_up_to = at + length
        else:
            assert min(at + length, size) <= clean_up_to


@pytest.mark.parametrize("left", [0, 100, CHUNK_BYTES, 2 * CHUNK_BYTES + 7])
def test_a_file_that_is_cut_short_meanwhile_gives_a_wrong_digest_and_no_crash(
    left: int, content: bytes, tmp_path: Path
) -> None:
    fd = opened(tmp_path / "a", content)

    def cut(at: int, length: int) -> None:
        if at > 0:
            os.truncate(tmp_path / "a", left)

    good = digest_file(OsFs(), fd, BIG, "blake3")
    assert digest_file(OsFs(), fd, BIG, "blake3", cut) != good
    os.close(fd)


@pytest.mark.parametrize("size", [10, CHUNK_BYTES, BIG])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_C2_an_error_of_a_read_reaches_the_caller(
    size: int, k: int, content: bytes, tmp_path: Path
) -> None:
    fd = opened(tmp_path / "a", content[:size])
    faults = FailNth(OsFs(), k, methods={"readinto"})
    if size > (k - 1) * READ_BYTES:
        with pytest.raises(OSError, match="injected"):
            digest_file(faults.fs, fd, size, "blake3")
    else:
        digest_file(faults.fs, fd, size, "blake3")
    os.close(fd)


@pytest.mark.parametrize("size", [10, BIG])
def test_C2_an_error_of_cleaning_reaches_the_caller(
    size: int, content: bytes, tmp_path: Path
) -> None:
    fd = opened(tmp_path / "a", content[:size])

    def fail(at: int, length: int) -> None:
        raise OSError(5, "writeback failed")

    with pytest.raises(OSError, match="writeback failed"):
        digest_file(OsFs(), fd, size, "blake3", fail)
    os.close(fd)


def test_an_unknown_algorithm_is_refused(tmp_path: Path) -> None:
    fd = opened(tmp_path / "a", b"x")
    with pytest.raises(UsageError, match="known: blake3, sha256"):
        digest_file(OsFs(), fd, 1, "md5")
    os.close(fd)


class ShortReads(Intercepted):
    """At most 4096 bytes at a time, as a signal or a network filesystem may leave it."""

    def around(self, call: Call) -> Any:
        if call.method != "readinto":
            return call.run()
        fd, buffer, offset = call.arguments
        data = os.pread(fd, min(4096, len(buffer)), offset)
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize("size", [1, 10_000, CHUNK_BYTES + 10_000])
def test_short_reads_do_not_change_the_digest(size: int, content: bytes, tmp_path: Path) -> None:
    fd = opened(tmp_path / "a", content[:size])
    short = digest_file(ShortReads(OsFs()).fs, fd, size, "sha256")
    assert short == f"sha256:{hashlib.sha256(content[:size]).hexdigest()}"
    os.close(fd)


_PEAK = """
import os, sys
from ckptfs.disk.digest import digest_file
from ckptfs.disk.real import OsFs

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

fd = os.open(sys.argv[1], os.O_RDONLY)
digest_file(OsFs(), fd, 9 << 20, "blake3")
before = peak()
if sys.argv[2] == "digest":
    digest_file(OsFs(), fd, 256 << 20, "blake3")
else:
    len(os.pread(fd, 256 << 20, 0))
print(peak() - before)
"""


def growth_kib(how: str, path: Path) -> int:
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, path, how], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(256 << 20)
    assert growth_kib("digest", tmp_path / "a") < 8 << 10
    assert growth_kib("whole", tmp_path / "a") > 200 << 10  # control: the measure sees it
