"""Which part of a file is damaged, by the sums in its record."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from harness import store_on

from ckptfs.disk.real import OsFs
from ckptfs.disk.sums import MAX_BLOCKS, UNIT_BYTES, Sums, differing
from ckptfs.records.format import Record

MIB = 1 << 20


def text_of(data: bytes, *cuts: int) -> str:
    sums = Sums()
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        sums.update(memoryview(data)[start:end])
        sums = sums.copy()
    return sums.text()


def located(path: Path, data: bytes, text: str) -> list[tuple[int, int]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return differing(OsFs(), fd, path.stat().st_size, len(data), text)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [UNIT_BYTES + 1, MIB, 16 * MIB, 16 * MIB + 1, 40 * MIB + 7])
def test_the_sums_do_not_depend_on_the_pieces(size: int) -> None:
    data = random.Random(size).randbytes(size)
    cuts = sorted(random.Random(1).randrange(size) for _ in range(20))
    assert text_of(data) == text_of(data, *cuts)
    units, _, encoded = text_of(data).partition(":")
    assert size / (int(units) * UNIT_BYTES) <= MAX_BLOCKS
    assert len(encoded) < 1400


def test_a_short_file_has_none() -> None:
    assert text_of(b"x" * UNIT_BYTES) == ""


@pytest.mark.parametrize("size", [3 * UNIT_BYTES, 16 * MIB + 5, 40 * MIB])
def test_a_flipped_byte_is_found_in_its_block(size: int, tmp_path: Path) -> None:
    data = bytearray(random.Random(size).randbytes(size))
    text = text_of(bytes(data))
    block = int(text.partition(":")[0]) * UNIT_BYTES
    for at in (0, block, size // 2, size - 1):
        damaged = bytearray(data)
        damaged[at] ^= 1
        (tmp_path / "f").write_bytes(damaged)
        start = at // block * block
        assert located(tmp_path / "f", bytes(data), text) == [(start, min(start + block, size))]


def test_two_units_that_changed_places_differ_even_within_a_block(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(40 * MIB)
    text = text_of(data)
    assert int(text.partition(":")[0]) > 1
    (tmp_path / "f").write_bytes(
        data[UNIT_BYTES : 2 * UNIT_BYTES] + data[:UNIT_BYTES] + data[2 * UNIT_BYTES :]
    )
    assert len(located(tmp_path / "f", data, text)) == 1


def test_neighbours_are_joined_and_a_changed_length_is_told(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(8 * UNIT_BYTES)
    text = text_of(data)
    hurt = bytearray(data)
    hurt[UNIT_BYTES : 3 * UNIT_BYTES] = bytes(2 * UNIT_BYTES)
    (tmp_path / "f").write_bytes(hurt)
    assert located(tmp_path / "f", data, text) == [(UNIT_BYTES, 3 * UNIT_BYTES)]
    (tmp_path / "f").write_bytes(data + b"more")
    assert located(tmp_path / "f", data, text) == [(len(data), len(data) + 4)]
    (tmp_path / "f").write_bytes(data[: 5 * UNIT_BYTES + 1])
    assert located(tmp_path / "f", data, text) == [(5 * UNIT_BYTES, len(data))]


def test_a_commit_records_them_and_a_file_that_grows_goes_on(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    parts = [random.Random(i).randbytes(5 * MIB + i) for i in range(4)]
    store.put("a.bin", parts[0])
    for part in parts[1:]:
        store.append("a.bin", part)
    record = Record.from_bytes(os.getxattr(quick_dir / "a.bin", "user.ckptfs"))
    assert record is not None
    assert record.sums == text_of(b"".join(parts))
    store.close()
