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

from ckptfs.structure import Proof, Read, Verdict, check, prove

CENTRAL = b"PK\x01\x02"
_IN_ZIP64 = 0xFFFFFFFF


def reader(content: bytes) -> Read:
    return lambda start, size: content[start : start + size]


def proof(content: bytes) -> Proof:
    return prove(len(content), reader(content)).proof


def is_seen(name: str, content: bytes) -> bool:
    found = check(name, len(content), reader(content))
    return found.verdict is Verdict.BROKEN or proof(content) is not Proof.HOLDS


def _torch(seed: int = 1, size: int = 20) -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.arange(size) * float(seed), "step": seed}, file)
    return file.getvalue()


def _saved(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _npz(seed: int = 1) -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.arange(100) * seed, b=np.ones(9))
    return file.getvalue()


def test_no_byte_of_torch_s_padding_and_of_no_checksum_changes_unseen() -> None:
    content = _torch()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    looked_at = 0
    for entry in entries:
        name_bytes, extra_bytes = struct.unpack_from("<HH", content, entry.header_offset + 26)
        start = entry.header_offset + 30 + name_bytes + 4
        data = start - 4 + extra_bytes
        behind = data + entry.compress_size + 4
        for at in (*range(start, behind - 4), *range(behind, behind + 4)):
            changed = bytearray(content)
            changed[at] ^= 0x41
            assert is_seen("m.pt", bytes(changed)), at
            looked_at += 1
    assert looked_at > len(content) / 3


def test_a_shard_whose_last_directory_is_damaged_proves_nothing() -> None:
    """The directory of the first archive was taken for it, and the others were not looked at."""
    pieces = [_torch(seed, 500) for seed in range(1, 5)]
    changed = bytearray(b"".join(pieces))
    changed[-len(pieces[-1]) + pieces[-1].index(CENTRAL)] ^= 1
    changed[len(pieces[0]) + 1000 : len(pieces[0]) + 1400] = b"A" * 400
    assert proof(bytes(changed)) is not Proof.HOLDS


def _empty_entry_archive(forward: int, extra: bytes = b"") -> bytes:
    """One whose entry says that it lies ``forward`` bytes behind its own begin."""
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 0, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    central = struct.pack(
        "<4s6H3L5H2L", CENTRAL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, len(extra), 0, 0, 0, 0, forward
    )
    directory = central + b"a" + extra
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), len(local), 0)
    return local + directory + end


def test_archives_that_point_at_each_other_come_to_an_end() -> None:
    once = _empty_entry_archive(0)
    assert proof(_empty_entry_archive(len(once)) + once) is not Proof.HOLDS


def test_entries_that_share_their_bytes_are_not_read_again_and_again() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", bytes(1 << 20))
        (entry,) = archive.infolist()
        archive.filelist = [entry] * 20_000
    assert proof(file.getvalue()) is Proof.NONE


def test_the_header_of_another_save_is_seen() -> None:
    """Half of an archive was copied over another: what differed was one checksum, of two."""
    ours, other = _npz(1), _npz(2)
    crc_at = 14
    assert (
        ours[:crc_at] == other[:crc_at] and ours[crc_at : crc_at + 4] != other[crc_at : crc_at + 4]
    )
    assert proof(other[: crc_at + 4] + ours[crc_at + 4 :]) is Proof.FAILS


def test_an_extra_field_that_is_cut_off_is_no_defect() -> None:
    """It says that ten numbers of zip64 follow, and none does."""
    content = _empty_entry_archive(_IN_ZIP64, struct.pack("<HH", 1, 80))
    assert proof(content) is Proof.NONE
    assert check("m.dat", len(content), reader(content)).verdict is Verdict.BROKEN


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
    "an empty tensor": lambda: _saved({"a": torch.ones(3), "b": torch.tensor([])}),
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


def _replaced() -> bytes:
    """A member is replaced: its old bytes lie ahead of all that count."""
    file = io.BytesIO(_npz())
    with zipfile.ZipFile(file, "a") as archive:
        archive.filelist.remove(archive.NameToInfo.pop("a.npy"))
        archive.writestr("a.npy", b"other")
    return file.getvalue()


def _of_old_names() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("b", b"text")
        archive.writestr("a.txt", b"text")
    content = file.getvalue().replace(b"a.txt", b"\x81.txt")  # cp437
    with zipfile.ZipFile(file := io.BytesIO(content), "a") as archive:
        archive.writestr("more", b"more")
    return file.getvalue()


def _skipped() -> bytes:
    """The checksums of storages are those of nothing: they were filled in later."""
    file = io.BytesIO()
    with torch.serialization.skip_data():
        torch.save({"w": torch.ones(50)}, file)
    content = bytearray(file.getvalue())
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        at = next(e for e in archive.infolist() if e.filename.endswith("data/0")).header_offset
    start = at + 30 + sum(struct.unpack_from("<HH", content, at + 26))
    content[start : start + 4] = b"full"
    return bytes(content)


UNPROVEN: dict[str, Callable[[], bytes]] = {
    "a member replaced": _replaced,
    "data skipped": _skipped,
    "other data between": lambda: _torch() + bytes(100_000) + _torch(2),
    "no archive": lambda: b"PK\x03\x04" + b"some raw log" * 100,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writer", UNPROVEN)
def test_what_proves_nothing_is_no_damage(writer: str) -> None:
    assert proof(UNPROVEN[writer]()) is Proof.NONE


def test_names_that_were_recoded_are_no_damage() -> None:
    assert proof(_of_old_names()) is Proof.HOLDS
