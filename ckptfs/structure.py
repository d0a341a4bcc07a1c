"""Is this a whole .pt, safetensors, npz, npy or DCP file?

Promise: ``BROKEN`` is said only of a file that its own reader must refuse or read wrongly: a
false alarm costs somebody a save, and what slips through is still caught by the digest. Whatever
is not certain is ``UNKNOWN``; ``SOUND`` means that every check within the bounds below passed.

Work is bounded whatever the file's size: headers, directories and pickles up to
``_METADATA_LIMIT_BYTES`` each and ``_READS_LIMIT`` small reads; tensor data is never read and
nothing is ever unpickled. Pure functions without shared state: any thread may call them.
"""

from __future__ import annotations

import ast
import enum
import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

__all__ = ["Read", "Structure", "Verdict", "check"]

Read = Callable[[int, int], bytes]

_METADATA_LIMIT_BYTES = 16 << 20
_READS_LIMIT = 16384
_BLOCK_BYTES = 8192

_ZIP_SUFFIXES = tuple(
    ".pt .pth .pt2 .ptl .th .ckpt .bin .pkl .pth.tar .npz .distcp .keras .zip".split()
)
# Neither a torch file (zip, pickle, tar) nor these others can begin with a hole. Not listed: .npy,
# .bin, .ckpt, .distcp, under which raw arrays are written too (np.memmap, ndarray.tofile).
_NEVER_ZERO_SUFFIXES = (".pt", ".pth", ".pth.tar", ".npz", ".metadata", ".metadata.tmp")
_DCP_METADATA_SUFFIXES = (".metadata", ".metadata.tmp")
# What stands in for a large file in a git checkout (git-lfs, git-annex), or names another format.
_STAND_INS = (b"version https://", b"/annex/objects/", b"PK\x03\x04", b"\x1f\x8b")


class Verdict(enum.Enum):
    """The value is what the record of a version holds as its structure."""

    SOUND = "sound"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Structure:
    """A verdict and, for ``BROKEN``, one short clause that tells the user why."""

    verdict: Verdict
    reason: str = ""


class _Broken(Exception):
    """Certainly not whole; the message is the reason."""


class _Unjudged(Exception):
    """No known format, or none that could be judged with certainty."""


def check(name: str, size_bytes: int, read: Read) -> Structure:
    """Judge one file by its name and content.

    ``name`` is its file name or path, ``size_bytes`` its size; ``read(offset_bytes,
    length_bytes)`` returns at most that many bytes, fewer only at the end of the file. Never
    raises by itself; an OSError of ``read`` is passed on. A file that shrinks meanwhile is
    ``UNKNOWN``.
    """
    try:
        _judge(name.rsplit("/", 1)[-1].lower(), _File(size_bytes, read))
    except _Broken as broken:
        return Structure(Verdict.BROKEN, str(broken))
    except OSError:
        raise
    except Exception:  # _Unjudged, and malformed input that nobody foresaw: no guess
        return Structure(Verdict.UNKNOWN)
    return Structure(Verdict.SOUND)


def _judge(name: str, file: _File) -> None:
    """Return if sound, else raise _Broken or _Unjudged."""
    if file.size == 0 or name.startswith("._"):  # "._x" is macOS metadata about x
        raise _Unjudged
    head = file.bytes(0, min(file.size, 64))
    if head[:4] in (_ZIP_LOCAL, _ZIP_END):
        _zip(file, name)
    elif name.endswith(".safetensors"):
        if head.startswith(_STAND_INS):
            raise _Unjudged
        _safetensors(file)
    elif head.startswith(_NPY_MAGIC):
        with _broken_only_if(name.endswith((".npy", ".npz"))):
            _npy(file)
    elif head[0] == _PROTO and name.endswith(_DCP_METADATA_SUFFIXES):
        _dcp_metadata(file)
    elif not any(head) and name.endswith(_NEVER_ZERO_SUFFIXES):
        raise _Broken("begins with zeros instead of a header")
    elif (name.endswith(".npy") and _NPY_MAGIC.startswith(head)) or (
        name.endswith(".npz") and _ZIP_LOCAL.startswith(head)
    ):
        raise _Broken("cut short within its first bytes")
    elif head[8:9] == b"{" and _U64.unpack_from(head)[0] < file.size:
        with _broken_only_if(False):  # "{" is no magic: under another name, only a match counts
            _safetensors(file)
    else:
        raise _Unjudged


@contextmanager
def _broken_only_if(certain: bool) -> Iterator[None]:
    try:
        yield
    except _Broken:
        if certain:
            raise
        raise _Unjudged from None


class _File:
    """Exact reads within a file, in aligned blocks: small headers mostly lie side by side."""

    def __init__(self, size: int, read: Read) -> None:
        self.size = size
        self.reads_left = _READS_LIMIT
        self._read = read
        self._block = b""
        self._block_at = 0

    def bytes(self, at: int, length: int) -> bytes:
        if at < 0 or at + length > self.size:
            raise _Broken("cut short: it refers to bytes past its end")
        skip = at - self._block_at
        if skip < 0 or skip + length > len(self._block):
            start = at - at % _BLOCK_BYTES
            stop = min(self.size, -(-(at + length) // _BLOCK_BYTES) * _BLOCK_BYTES)
            self.reads_left -= 1
            block = self._read(start, stop - start)
            if len(block) != stop - start:
                raise _Unjudged
            if length > _BLOCK_BYTES:  # large pieces are wanted once
                return block[at - start : at - start + length]
            self._block, self._block_at, skip = block, start, at - start
        return self._block[skip : skip + length]


# --- zip: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory),
# --- 4.3.14 to 4.3.16 (end records), 4.5.3 (zip64 extra field)

_ZIP_LOCAL, _ZIP_CENTRAL, _ZIP_END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_ZIP64_END, _ZIP64_LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
_END = struct.Struct("<4x4H2L2x")
_CENTRAL = struct.Struct("<4s4xHH8xLLHHH8xL")
_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<L"), struct.Struct("<Q")
_SENTINEL = 0xFFFFFFFF


class _Entry(NamedTuple):
    name: bytes
    flags: int
    method: int
    stored_bytes: int
    size_bytes: int
    at: int  # of the local header, in the file


def _zip(file: _File, name: str) -> None:
    """One archive, or several end to end: torch.save called on an open file, a DCP shard."""
    end = file.size
    while end > 0 and file.reads_left > 0:
        with _broken_only_if(name.endswith(_ZIP_SUFFIXES)):
            directory_at, directory_bytes, base = _find_directory(file, end)
            if directory_bytes > _METADATA_LIMIT_BYTES:
                return
            entries = _read_directory(file.bytes(directory_at, directory_bytes), base)
        _members(file, name, entries, directory_at)
        end = min((entry.at for entry in entries), default=directory_at)
        if end > 0 and (end < 22 or file.bytes(end - 22, 4) != _ZIP_END):
            raise _Unjudged  # something other than an archive comes first


def _find_directory(file: _File, end: int) -> tuple[int, int, int]:
    """Offset and length of the central directory, and the offset that its offsets count from."""
    if end >= 22:
        record = file.bytes(end - 22, 22)
        if record[:4] == _ZIP_END and record[20:] == b"\0\0":
            return _locate_directory(file, end - 22)
    tail_at = max(0, end - 22 - 0xFFFF)  # the longest comment there can be
    tail = file.bytes(tail_at, end - tail_at)
    last = found = tail.rfind(_ZIP_END, 0, max(0, len(tail) - 18))
    while found >= 0:
        if found + 22 + _U16.unpack_from(tail, found + 20)[0] == len(tail):
            return _locate_directory(file, tail_at + found)
        found = tail.rfind(_ZIP_END, 0, found)
    if last >= 0 and _U16.unpack_from(tail, last + 20)[0] < len(tail) - last - 22:
        rest = tail[last + 22 + _U16.unpack_from(tail, last + 20)[0] :]
        with _broken_only_if(True):
            _locate_directory(file, tail_at + last)
            if not (rest.startswith(_ZIP_LOCAL) or _ZIP_LOCAL.startswith(rest)):
                raise _Unjudged  # readers search for the end record and pass over what follows it
    raise _Broken("cut short: the zip archive has no end-of-central-directory record")


def _locate_directory(file: _File, end_at: int) -> tuple[int, int, int]:
    disk, directory_disk, _, count, size, offset = _END.unpack(file.bytes(end_at, 22))
    if disk not in (0, 0xFFFF) or directory_disk not in (0, 0xFFFF):
        raise _Unjudged  # one volume of several
    end = end_at
    if end_at >= 76 and file.bytes(end_at - 20, 4) == _ZIP64_LOCATOR:
        far_at = _U64.unpack(file.bytes(end_at - 12, 8))[0]
        for record_at in (end_at - 76, far_at):
            if record_at <= end_at - 76 and file.bytes(record_at, 4) == _ZIP64_END:
                count, size, offset = struct.unpack("<3Q", file.bytes(record_at + 32, 24))
                end = record_at
                break
    # Offsets count from the archive's start, which need not be the file's (readers agree on that),
    # or, where something lies between directory and end record, from the file's.
    for base in (end - size - offset, 0):
        at = base + offset
        fits = 0 <= base and at + size <= end and size >= 46 * count // 65536
        if fits and (size == 0 or file.bytes(at, 4) == _ZIP_CENTRAL):
            return at, size, base
    raise _Broken("the zip central directory is not where the end record says")


def _read_directory(directory: bytes, base: int) -> list[_Entry]:
    entries = []
    at = 0
    while at < len(directory):
        if at + 46 > len(directory) or directory[at : at + 4] != _ZIP_CENTRAL:
            raise _Broken("the zip central directory is damaged")
        (_, flags, method, stored, size, name_bytes, extra_bytes, comment_bytes, offset) = (
            _CENTRAL.unpack_from(directory, at)
        )
        extra_at = at + 46 + name_bytes
        if _SENTINEL in (stored, size, offset):
            extra = directory[extra_at : extra_at + extra_bytes]
            size, stored, offset = _zip64_fields(extra, (size, stored, offset))
        name = directory[at + 46 : extra_at]
        entries.append(_Entry(name, flags, method, stored, size, base + offset))
        at = extra_at + extra_bytes + comment_bytes
    if at != len(directory):
        raise _Broken("the zip central directory is damaged")
    return entries


def _zip64_fields(extra: bytes, fields: tuple[int, int, int]) -> list[int]:
    """Fields that hold the sentinel are given as 64 bits in the extra field, in this order."""
    at = 0
    while at + 4 <= len(extra) and _U16.unpack_from(extra, at)[0] != 1:
        at += 4 + _U16.unpack_from(extra, at + 2)[0]
    at += 4
    resolved = []
    for field in fields:
        if field == _SENTINEL and at + 8 <= len(extra):
            field = _U64.unpack_from(extra, at)[0]
            at += 8
        resolved.append(field)
    return resolved


def _members(file: _File, name: str, entries: list[_Entry], directory_at: int) -> None:
    by_name = {entry.name: entry for entry in entries}
    root = entries[0].name.split(b"/")[0] if entries else b""
    torch = root + b"/version" in by_name or root + b"/.data/serialization_id" in by_name
    if not torch and (name.endswith(".zip") or not name.endswith(_ZIP_SUFFIXES)):
        return  # Zip files of the wild bend the rules (self-extractors, archives over 4 GiB)
    with _broken_only_if(name.endswith(_ZIP_SUFFIXES)):
        _local_headers(file, entries, directory_at)
    if torch:
        _torch(file, root, by_name)
    elif name.endswith(".npz"):
        for entry in entries:
            if entry.name.endswith(b".npy") and not entry.flags & 1 and file.reads_left > 0:
                _npz_member(file, entry)


def _local_headers(file: _File, entries: list[_Entry], directory_at: int) -> None:
    """Each entry has its local header, and ends before the next one or the directory begins."""
    ordered = sorted(entries, key=attrgetter("at"))
    ends = [entry.at for entry in ordered[1:]] + [directory_at]
    skip = max(0, len(ordered) - file.reads_left // 2)  # a cut or a hole is likelier at the end
    for entry, end in zip(ordered[skip:], ends[skip:], strict=True):
        if _data_at(file, entry) + entry.stored_bytes > end:
            raise _Broken(f"zip entry {_quoted(entry.name)} runs into what follows it")
        stored = entry.method == 0 and not entry.flags & 1
        if stored and entry.stored_bytes != entry.size_bytes:
            raise _Broken(f"zip entry {_quoted(entry.name)} is shorter than its size")


def _data_at(file: _File, entry: _Entry) -> int:
    length = 30 + len(entry.name)
    header = file.bytes(entry.at, length)
    if header[:4] != _ZIP_LOCAL or header[30:] != entry.name:
        raise _Broken(f"zip entry {_quoted(entry.name)} has no local header")
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    return entry.at + 30 + int(name_bytes) + int(extra_bytes)


def _quoted(name: bytes) -> str:
    return ascii(name[:80].decode("utf-8", "replace"))


# --- torch archives: torch/serialization.py (_save), caffe2/serialize/inline_container.cc

_BOOKKEEPING = {b"version", b"byteorder", b".format_version", b".storage_alignment"}
_ITEM_BYTES = {
    b"UntypedStorage": 1, b"ByteStorage": 1, b"CharStorage": 1, b"BoolStorage": 1,
    b"ShortStorage": 2, b"HalfStorage": 2, b"BFloat16Storage": 2, b"IntStorage": 4,
    b"FloatStorage": 4, b"LongStorage": 8, b"DoubleStorage": 8, b"ComplexFloatStorage": 8,
    b"ComplexDoubleStorage": 16, b"QInt8Storage": 1, b"QUInt8Storage": 1, b"QInt32Storage": 4,
    b"QUInt4x2Storage": 1, b"QUInt2x4Storage": 1,
}  # fmt: skip


def _torch(file: _File, root: bytes, by_name: dict[bytes, _Entry]) -> None:
    """Each storage that data.pkl refers to is there in full.

    An exception within torch.save leaves an archive whose end record is written all the same,
    but which lacks storages, or data.pkl.
    """
    entry = by_name.get(root + b"/data.pkl")
    if entry is None:
        names = {name[len(root) + 1 :] for name in by_name}
        if b".data/serialization_id" in names <= _BOOKKEEPING | {b".data/serialization_id"}:
            raise _Broken("the torch archive holds no data: saving it failed half-way")
        return  # torch.package, torch.export
    if entry.method != 0 or entry.size_bytes > _METADATA_LIMIT_BYTES:
        return
    pickle = file.bytes(_data_at(file, entry), entry.size_bytes)
    if pickle[:1] != b"\x80":
        return  # text protocol, or a pickle module of the user's own
    walk = _PickleWalk(pickle)
    walk.run()
    for kind, key, count in walk.storages:
        record = by_name.get(root + b"/data/" + key) or by_name.get(root + b"/tensors/" + key)
        if record is None:  # tensors/ is torch 1.4
            raise _Broken(f"storage {_quoted(key)} is missing from the torch archive")
        item_bytes = _ITEM_BYTES.get(kind)
        # A storage's bytes need not be a multiple of its item's.
        if item_bytes and record.size_bytes // item_bytes != count:
            raise _Broken(
                f"storage {_quoted(key)} has {record.size_bytes} bytes, not {count * item_bytes}"
            )
