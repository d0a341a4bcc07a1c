"""Zip archives, and what torch and NumPy keep in them.

PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16
(end records), 4.5.3 (zip64 extra field). torch/serialization.py (_save) and
caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

from ckptfs.structure.arrays import NPY_MAGIC, npy_sizes
from ckptfs.structure.base import (
    METADATA_LIMIT_BYTES,
    U16,
    U64,
    Broken,
    File,
    Unjudged,
    broken_only_if,
    quoted,
)
from ckptfs.structure.pickles import PROTO, walk_pickle

# Under these names a zip archive is one from its first byte to its last.
_ZIP_SUFFIXES = (
    ".pt", ".pth", ".pt2", ".ptl", ".th", ".pth.tar", ".ckpt", ".bin", ".pkl", ".distcp", ".npz",
    ".keras", ".zip",
)  # fmt: skip
ZIP_LOCAL, _ZIP_CENTRAL, ZIP_END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_ZIP64_END, _ZIP64_LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL = struct.Struct("<4s4xHH8xLLHHH8xL")
_TWO_U16 = struct.Struct("<HH")
_IN_ZIP64 = 0xFFFFFFFF


class _Entry(NamedTuple):
    name: bytes
    encrypted: int
    method: int
    stored_bytes: int
    size_bytes: int
    at: int  # where its local header is in the file


def check_zip(file: File, name: str) -> None:
    """One archive, or several end to end: torch.save into an open file, shards of DCP."""
    end = file.size
    while end > 0 and file.steps_left > 0:
        with broken_only_if(name.endswith(_ZIP_SUFFIXES)):
            directory_at, directory_bytes, base = _find_directory(file, end)
            if directory_bytes > METADATA_LIMIT_BYTES:
                return
            entries = _read_directory(file.bytes(directory_at, directory_bytes), base)
        _members(file, name, entries, directory_at)
        end = min((entry.at for entry in entries), default=directory_at)
        if end > 0 and (end < 22 or file.bytes(end - 22, 4) != ZIP_END):
            raise Unjudged  # something else comes first


def _find_directory(file: File, end: int) -> tuple[int, int, int]:
    """Offset and length of the central directory, and what its offsets count from."""
    if end >= 22:
        record = file.bytes(end - 22, 22)
        if record.startswith(ZIP_END) and record.endswith(b"\0\0"):  # no comment
            return _locate_directory(file, end - 22)
    tail_at = max(0, end - 22 - 0xFFFF)  # the longest comment there can be
    tail = file.bytes(tail_at, end - tail_at)
    found = [match.start() for match in re.finditer(ZIP_END, tail[:-18])]
    for at in reversed(found):
        if at + 22 + U16.unpack_from(tail, at + 20)[0] == len(tail):
            return _locate_directory(file, tail_at + at)
    if found:
        rest = tail[found[-1] + 22 + U16.unpack_from(tail, found[-1] + 20)[0] :]
        if rest and not ZIP_LOCAL.startswith(rest[:4]):
            _locate_directory(file, tail_at + found[-1])
            raise Unjudged  # readers search backwards and pass over what follows
    raise Broken("cut short: the zip archive has no end-of-central-directory record")


def _locate_directory(file: File, end: int) -> tuple[int, int, int]:
    disk, directory_disk, _, count, size, offset = struct.unpack("<4x4H2L2x", file.bytes(end, 22))
    if disk not in (0, 0xFFFF) or directory_disk not in (0, 0xFFFF):
        raise Unjudged  # one volume of several
    if end >= 76 and file.bytes(end - 20, 4) == _ZIP64_LOCATOR:
        for record_at in (end - 76, U64.unpack(file.bytes(end - 12, 8))[0]):
            if record_at <= end - 76 and file.bytes(record_at, 4) == _ZIP64_END:
                count, size, offset = struct.unpack("<3Q", file.bytes(record_at + 32, 24))
                end = record_at
                break
    # Offsets count from where the archive starts, which may be behind other data; with a gap
    # before the end record, from the start of the file.
    for base in (end - size - offset, 0):
        at = base + offset
        fits = base >= 0 and at + size <= end and size >= count % 65536 * 46
        if fits and (size == 0 or file.bytes(at, 4) == _ZIP_CENTRAL):
            return at, size, base
    raise Broken("the zip central directory is not where the end record says")


def _read_directory(directory: bytes, base: int) -> list[_Entry]:
    entries = []
    at, end = 0, len(directory)
    while at + 46 <= end and directory.startswith(_ZIP_CENTRAL, at):
        _, flags, method, stored, size, name_bytes, extra_bytes, comment_bytes, offset = (
            _CENTRAL.unpack_from(directory, at)
        )
        name_at, extra_at = at + 46, at + 46 + name_bytes
        at = extra_at + extra_bytes + comment_bytes
        if _IN_ZIP64 in (stored, size, offset):
            extra = directory[extra_at : extra_at + extra_bytes]
            size, stored, offset = _zip64_fields(extra, (size, stored, offset))
        name = directory[name_at:extra_at]
        entries.append(_Entry(name, flags & 1, method, stored, size, base + offset))
    if at != end:
        raise Broken("the zip central directory is damaged")
    return entries


def _zip64_fields(extra: bytes, fields: tuple[int, int, int]) -> list[int]:
    """Those of the fields that do not fit in 32 bits are in the extra field, in this order."""
    while len(extra) >= 4:
        kind, length = _TWO_U16.unpack_from(extra)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            return [next(wide, field) if field == _IN_ZIP64 else field for field in fields]
        extra = extra[4 + length :]
    return list(fields)


def _members(file: File, name: str, entries: list[_Entry], directory_at: int) -> None:
    if not entries:
        return
    by_name = {entry.name: entry for entry in entries}
    root = entries[0].name.split(b"/")[0]
    torch = root + b"/version" in by_name or root + b"/" + _ID in by_name
    if not torch and (name.endswith(".zip") or not name.endswith(_ZIP_SUFFIXES)):
        return  # archives of the wild bend the rules and can be read all the same
    with broken_only_if(name.endswith(_ZIP_SUFFIXES)):
        for entry, data_at in _whole_entries(file, entries, directory_at):
            if name.endswith(".npz") and entry.name.endswith(b".npy"):
                _npz_member(file, entry, data_at)
    if torch:
        _torch(file, root, by_name)


def _whole_entries(
    file: File, entries: list[_Entry], directory_at: int
) -> Iterator[tuple[_Entry, int]]:
    """The entries, in their order in the file, and where their data begins.

    Each has a local header, and ends before the next one or the directory begins.
    """
    ordered = sorted(entries, key=attrgetter("at"))
    ends = [entry.at for entry in ordered[1:]] + [directory_at]
    skip = max(0, len(ordered) - file.steps_left // 4)  # damage is likelier towards the end
    for entry, end in zip(ordered[skip:], ends[skip:], strict=True):
        data_at = _data_at(file, entry)
        if data_at + entry.stored_bytes > end:
            raise Broken(f"zip entry {quoted(entry.name)} runs into what follows it")
        if entry.method == 0 and entry.stored_bytes != entry.size_bytes and not entry.encrypted:
            raise Broken(f"zip entry {quoted(entry.name)} is shorter than its size")
        yield entry, data_at


def _data_at(file: File, entry: _Entry) -> int:
    name, at = entry.name, entry.at
    header = file.bytes(at, 30 + len(name))
    if header[:4] != ZIP_LOCAL or header[30:] != name:
        raise Broken(f"zip entry {quoted(name)} has no local header")
    name_bytes, extra_bytes = _TWO_U16.unpack_from(header, 26)
    return at + 30 + int(name_bytes) + int(extra_bytes)


def _npz_member(file: File, entry: _Entry, at: int) -> None:
    if entry.encrypted:
        raise Unjudged
    head = file.bytes(at, min(1024, entry.stored_bytes))
    if entry.method == 8:
        try:
            head = zlib.decompressobj(-15).decompress(head, 4096)
        except zlib.error:
            raise Broken(f"{quoted(entry.name)} cannot be decompressed") from None
    elif entry.method != 0:
        return
    if not head.startswith(NPY_MAGIC):
        if any(head[:6]):
            raise Unjudged  # numpy.load gives its bytes
        raise Broken(f"{quoted(entry.name)} has no npy header")
    header_bytes, data_bytes = npy_sizes(file if entry.method == 0 else None, at, head)
    if data_bytes is not None and header_bytes + data_bytes != entry.size_bytes:
        raise Broken(f"{quoted(entry.name)} is not as long as its npy header says")


# --- torch archives

_ID = b".data/serialization_id"
_BOOKKEEPING = {b"version", b"byteorder", b".format_version", b".storage_alignment", _ID}


def _torch(file: File, root: bytes, by_name: dict[bytes, _Entry]) -> None:
    """Every storage that data.pkl refers to is there, in full.

    An exception within torch.save leaves an archive that has its end record all the same, but
    lacks storages, or data.pkl too.
    """
    entry = by_name.get(root + b"/data.pkl")
    if entry is None:
        names = {name[len(root) + 1 :] for name in by_name}
        if _ID in names and names <= _BOOKKEEPING:
            raise Broken("the torch archive holds no object: saving it failed")
        return  # torch.package, torch.export
    if entry.method != 0 or entry.size_bytes > METADATA_LIMIT_BYTES:
        return
    pickle = file.bytes(_data_at(file, entry), entry.size_bytes)
    if pickle and pickle[0] != PROTO:
        return  # the text protocol, or a pickle_module of the user's own
    for key, item_bytes, items in walk_pickle(pickle)[1]:
        record = by_name.get(root + b"/data/" + key)
        if record is None:
            if root + b"/tensors/" + key in by_name:
                continue  # torch 1.4
            raise Broken(f"storage {quoted(key)} is missing from the torch archive")
        # A storage may end with a fraction of an item.
        if item_bytes and record.size_bytes // item_bytes != items:
            raise Broken(
                f"storage {quoted(key)} has {record.size_bytes} bytes, not {items * item_bytes}"
            )
