"""Does the whole of an archive prove itself? Nothing that its writer left can change unseen, and no
writer's archive is called damaged."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ckptfs.structure import Proof, Verdict, check, prove

CENTRAL = b"PK\x01\x02"


def proof(content: bytes) -> Proof:
    return prove(len(content), lambda start, size: content[start : start + size]).proof


def is_seen(name: str, content: bytes) -> bool:
    def read(start: int, size: int) -> bytes:
        return content[start : start + size]

    return check(name, len(content), read).verdict is Verdict.BROKEN or proof(content) is not (
        Proof.HOLDS
    )


def _torch(seed: int = 1, size: int = 20) -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.arange(size) * float(seed), "step": seed}, file)
    return file.getvalue()


def _npz(seed: int = 1) -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.arange(100) * seed, b=np.ones(9))
    return file.getvalue()


@pytest.mark.parametrize("content", [_torch(), _torch() + _torch(2)], ids=["pt", "distcp"])
def test_no_byte_ahead_of_the_directory_changes_unseen(content: bytes) -> None:
    unseen = []
    for at in range(content.index(CENTRAL)):
        changed = bytearray(content)
        changed[at] ^= 0x41
        if not is_seen("m.distcp", bytes(changed)):
            unseen.append(at)
    assert unseen == []


def test_the_header_of_another_save_is_seen() -> None:
    """Half of an archive was copied over another: what differed was one checksum, of two."""
    ours, other = _npz(1), _npz(2)
    crc_at = 14
    assert (
        ours[:crc_at] == other[:crc_at] and ours[crc_at : crc_at + 4] != other[crc_at : crc_at + 4]
    )
    assert proof(other[: crc_at + 4] + ours[crc_at + 4 :]) is Proof.FAILS


def test_an_extra_field_that_is_cut_off_is_no_defect() -> None:
    content = bytearray(_npz())
    name_bytes = struct.unpack_from("<H", content, 26)[0]
    struct.pack_into("<H", content, 30 + name_bytes + 2, 0x4141)  # how long it says it is
    assert proof(bytes(content)) in (Proof.FAILS, Proof.NONE, Proof.HOLDS)


# --- other writers -------------------------------------------------------------------------------


class _Unseekable(io.RawIOBase):
    """As a pipe is: sizes and checksums follow the data."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.content += bytes(data)  # type: ignore[call-overload]
        return len(bytes(data))  # type: ignore[call-overload]


def _zipped(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder/größer.txt", b"text" * 100)
        archive.writestr("b.bin", bytes(1000))
    return file.getvalue()


def _streamed() -> bytes:
    file = _Unseekable()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        archive.writestr("a", b"text" * 100)
        archive.writestr("b", bytes(1000))
    return file.content


def _added_to(content: bytes) -> bytes:
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more", b"more" * 100)
    return file.getvalue()


def _scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 3)), file)
    return file.getvalue()


WRITERS: dict[str, Callable[[], bytes]] = {
    "torch": _torch,
    "a long tensor": lambda: _torch(3, 300_000),
    "torch, more than once": lambda: _torch(1) + _torch(2) + _torch(3),
    "torch.jit": _scripted,
    "NumPy": _npz,
    "stored": lambda: _zipped(zipfile.ZIP_STORED),
    "deflated": lambda: _zipped(zipfile.ZIP_DEFLATED),
    "streamed": _streamed,
    "added to": lambda: _added_to(_zipped(zipfile.ZIP_STORED)),
    "torch's, added to": lambda: _added_to(_torch()),
    "NumPy's, added to": lambda: _added_to(_npz()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writer", WRITERS)
def test_no_archive_is_called_damaged_for_its_writer(writer: str) -> None:
    assert proof(WRITERS[writer]()) is Proof.HOLDS


@pytest.mark.filterwarnings("ignore")
def test_without_checksums_there_is_no_proof() -> None:
    torch.serialization.set_crc32_options(False)
    try:
        assert proof(_torch()) is Proof.NONE
    finally:
        torch.serialization.set_crc32_options(True)
