"""What anybody can write costs the daemon little, whatever format it claims to be: memory, reads,
and the time for which no other thread can go on."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptfs.structure import Verdict, check
from ckptfs.structure.base import METADATA_LIMIT_BYTES

LENGTH_BYTES = 4 << 20
PEAK_BYTES = 8 * LENGTH_BYTES
READ_BYTES = 600 << 20
NEARLY = LENGTH_BYTES - 1000
_CENTRAL = struct.Struct("<4s4xHHH6xLLHHH8xL")
_STORAGE = b"(h\0h\0X\1\0\0\0000h\0K\1tQ"


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(8)


def filled(head: bytes, piece: bytes, tail: bytes) -> bytes:
    return head + piece * ((NEARLY - len(head) - len(tail)) // len(piece)) + tail


def numbered(piece: str) -> bytes:
    """An object of as many entries as fit, each of another name."""
    count = NEARLY // (len(piece) + 6)
    return b"{" + b",".join((piece % number).encode() for number in range(count)) + b"}"


def archive(name: bytes) -> bytes:
    """A zip archive with as many entries as fit in its directory, and zip64 records."""
    entries, size = [], 0
    while size < NEARLY - 100:
        each = name % len(entries) if b"%" in name else name
        entries.append(_CENTRAL.pack(b"PK\1\2", 0, 0, 0, 0, 0, len(each), 0, 0, 4) + each)
        size += len(entries[-1])
    count, body = len(entries), b"PK\3\4" + bytes(100)
    wide = struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, count, count, size, len(body))
    where = struct.pack("<LQL", 0, len(body) + size, 1)
    end = struct.pack("<HHHHLLH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return b"".join(
        (body, *entries, b"PK\6\6", wide, b"PK\6\7", where, b"PK\5\6", end),
    )


def torch_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/data.pkl", filled(b"\x80\2", _STORAGE, b"."))
        file.writestr("a/version", "3")
        file.writestr("a/data/0", "x")
    return buffer.getvalue()


def arrays_of_objects() -> bytes:
    """Each of which ends with a pickle, of which nobody knows how far it goes."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n"
    one = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + b"\x80\2."
    return filled(b"", one, b"")


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "lists": ("a.safetensors", lambda: safetensors(filled(b'{"a":[', b"[],", b"[]]}"))),
    "objects": ("a.safetensors", lambda: safetensors(filled(b'{"a":[', b'{"a":0},', b"0]}"))),
    "metadata": (
        "a.safetensors",
        lambda: safetensors(filled(b'{"__metadata__":{"a":[', b"[],", b"0]}}")),
    ),
    "names": ("a.safetensors", lambda: safetensors(numbered('"%x":0'))),
    "tensors": (
        "a.safetensors",
        lambda: safetensors(numbered('"%x":{"dtype":"U8","shape":[],"data_offsets":[0,0]}')),
    ),
    "one name": ("a.safetensors", lambda: safetensors(filled(b'{"', b"a", b'":0}'))),
    "nested": ("a.safetensors", lambda: safetensors(filled(b'{"a":', b"[", b""))),
    "without a suffix": ("a", lambda: safetensors(filled(b'{"a":[', b"[],", b"[]]}"))),
    "wide characters": (
        "a.safetensors",
        lambda: safetensors(filled('{"a":"😀","b":['.encode(), b"1.5,", b"0]}")),
    ),
    "zip": ("a.zip", lambda: archive(b"")),
    "zip torch": ("a.pt", lambda: archive(b"a/data/%d")),
    "zip npz": ("a.npz", lambda: archive(b"%x.npy")),
    "torch pickle": ("a.pt", torch_archive),
    "DCP metadata": (".metadata", lambda: filled(b"\x80\2", _STORAGE, b".")),
    "npy objects": ("a.npy", arrays_of_objects),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_costs_little(case: str, tmp_path: Path) -> None:
    name, make = HOSTILE[case]
    path, reads = tmp_path / "f", [0]
    path.write_bytes(make())

    def read(at: int, length: int) -> bytes:
        reads[0] += length
        return os.pread(fd, length, at)

    fd = os.open(path, os.O_RDONLY)
    tracemalloc.start()
    try:
        found = check(name, path.stat().st_size, read)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        os.close(fd)
    assert found.verdict is not Verdict.SOUND
    assert peak < PEAK_BYTES
    assert reads[0] < READ_BYTES


@pytest.mark.parametrize("name", ["a.safetensors", "a"])
def test_a_header_over_the_limit_is_not_even_read(name: str) -> None:
    reads: list[int] = []

    def read(at: int, length: int) -> bytes:
        reads.append(length)
        head = struct.pack("<Q", METADATA_LIMIT_BYTES + 1) + b"{" * length
        return head[at : at + length]

    assert check(name, 1 << 30, read).verdict is Verdict.UNKNOWN
    assert sum(reads) < 1 << 16


def test_long_values_and_names_are_read_all_the_same() -> None:
    """Entries of the header that are longer than those of most."""
    header = {
        "__metadata__": {"tags": json.dumps({"a": "x" * 100_000})},
        "n" * 10_000: {"dtype": "U8", "shape": [1] * 3000, "data_offsets": [0, 1]},
    }
    for text in (json.dumps(header), json.dumps(header, indent=1), "\n" + json.dumps(header)):
        data = struct.pack("<Q", len(text)) + text.encode() + b"x"
        found = check("a.safetensors", len(data), lambda at, n, data=data: data[at : at + n])
        assert found.verdict is Verdict.SOUND
