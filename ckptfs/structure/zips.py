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
    ENTRIES_LIMIT,
    METADATA_LIMIT_BYTES,
    U16,
    U32,
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
_CENTRAL = struct.Struct("<4s4xHHH2xLLLHHH8xL")
_LOCAL = struct.Struct("<6xH6xL8xH")  # flags, CRC-32, length of the name
_TWO_U16 = struct.Struct("<HH")
_TORCH_PADDING, _ZIP_DESCRIPTOR, _HAS_DESCRIPTOR = 0x4246, b"PK\x07\x08", 0x8
_END_BYTES = 56 + 20 + 22  # behind a directory: the records of zip64, and the end
_IN_ZIP64 = 0xFFFFFFFF


class Entry(NamedTuple):
    name: bytes
    encrypted: int
    method: int
    time: int
    crc: int  # CRC-32 of what it holds
    stored_bytes: int
    size_bytes: int
    at: int  # where its local header is in the file


class _Directory(NamedTuple):
    at: int
    size_bytes: int
    base: int  # what its offsets count from
    entries: int


def check_zip(file: File, name: str) -> None:
    """One archive, or several end to end: torch.save into an open file, shards of DCP."""
    end = file.size
    while end > 0 and file.steps_left > 0:
        lenient = name.endswith(".npz")  # read by Python's zipfile, which looks at less
        with broken_only_if(name.endswith(_ZIP_SUFFIXES)):
            directory = _find_directory(file, end, lenient)
            if directory.size_bytes > METADATA_LIMIT_BYTES:
                raise Unjudged
        with broken_only_if(not _absolute_too(file, name, directory)):
            with broken_only_if(name.endswith(_ZIP_SUFFIXES)):
                entries = _read_directory(file, directory, lenient)
            _members(file, name, entries, directory.at)
        end = min((entry.at for entry in entries), default=directory.at)
        if end > 0 and (end < 22 or file.bytes(end - 22, 4) != ZIP_END):
            raise Unjudged  # something else comes first


def members(file: File) -> Iterator[tuple[Entry, int]]:
    """The entries of all archives in a file, each with where its bytes begin. Raises Unjudged for
    what is not archives end to end (whether that is right, :func:`check_zip` says), and Broken for
    an entry around which something was overwritten."""
    end = file.size
    while end > 0:
        with broken_only_if(False):
            directory = _find_directory(file, end, lenient=True)
            if end - directory.at - directory.size_bytes > _END_BYTES:
                raise Unjudged  # that of another archive, as where ours is damaged; or a comment
            entries = _read_directory(file, directory, lenient=True)
        for entry in entries:
            with broken_only_if(False):
                at = _data_at(file, entry, named=False)
            _require_own(file, entry, at)
            yield entry, at
        start = min((entry.at for entry in entries), default=0)
        if start >= end or (start > 0 and (start < 22 or file.bytes(start - 22, 4) != ZIP_END)):
            raise Unjudged  # something else comes first, or it was made to turn in a circle
        end = start


def _absolute_too(file: File, name: str, directory: _Directory) -> bool:
    """Whether torch.load may find another directory than ours: it takes offsets to count from
    the start of the file. Shards of DCP are read piece by piece."""
    if directory.base == 0 or name.endswith((".npz", ".distcp")):
        return False
    return file.bytes(directory.at - directory.base, 4) == _ZIP_CENTRAL


def _find_directory(file: File, end: int, lenient: bool) -> _Directory:
    if end >= 22:
        record = file.bytes(end - 22, 22)
        if record.startswith(ZIP_END) and record.endswith(b"\0\0"):  # no comment
            return _locate_directory(file, end - 22, lenient)
    tail_at = max(0, end - 22 - 0xFFFF)  # the longest comment there can be
    tail = file.bytes(tail_at, end - tail_at)
    found = [match.start() for match in re.finditer(ZIP_END, tail[:-18])]
    for at in reversed(found):
        if at + 22 + U16.unpack_from(tail, at + 20)[0] == len(tail):
            return _locate_directory(file, tail_at + at, lenient)
    if found:
        rest = tail[found[-1] + 22 + U16.unpack_from(tail, found[-1] + 20)[0] :]
        if not rest or not ZIP_LOCAL.startswith(rest[:4]):
            _locate_directory(file, tail_at + found[-1], lenient)
            raise Unjudged  # readers search backwards and pass over what follows, or a cut comment
    raise Broken("cut short: the zip archive has no end-of-central-directory record")


def _locate_directory(file: File, end: int, lenient: bool) -> _Directory:
    disk, directory_disk, _, count, size, offset = struct.unpack("<4x4H2L2x", file.bytes(end, 22))
    if disk not in (0, 0xFFFF) or directory_disk not in (0, 0xFFFF):
        raise Unjudged  # one volume of several
    records = [(count, size, offset, end)]
    if end >= 76 and file.bytes(end - 20, 4) == _ZIP64_LOCATOR:
        places = (end - 76, int(U64.unpack(file.bytes(end - 12, 8))[0]))
        wide = [
            (*struct.unpack("<3Q", file.bytes(place + 32, 24)), place)
            for place in places
            if place <= end - 76 and file.bytes(place, 4) == _ZIP64_END
        ]
        records = wide + records
    # Offsets count from where the archive starts, which may be behind other data; with a gap
    # before the end record, from the start of the file. A gap may be damaged records of zip64.
    for number, (count, size, offset, end) in enumerate(records):
        for base in (end - size - offset, end - 76 - size - offset, 0):
            at = base + offset
            fits = base >= 0 and at + size <= end and (lenient or size >= count % 65536 * 46)
            if fits and (size == 0 or file.bytes(at, 4) == _ZIP_CENTRAL):
                if number > 0:
                    raise Unjudged  # readers differ in which record they take
                return _Directory(at, size, base, count)
    for _, _, offset, _ in records:
        if offset + 4 <= file.size and file.bytes(offset, 4) == _ZIP_CENTRAL:
            raise Unjudged  # it is there; how far it goes, readers learn from its entries
    raise Broken("the zip central directory is not where the end record says")


def _read_directory(file: File, found: _Directory, lenient: bool) -> list[Entry]:
    directory, base = file.bytes(found.at, found.size_bytes), found.base
    entries: list[Entry] = []
    at, end = 0, len(directory)
    while at + 46 <= end and directory.startswith(_ZIP_CENTRAL, at):
        _, flags, method, time, crc, stored, size, *lengths, offset = _CENTRAL.unpack_from(
            directory, at
        )
        name_bytes, extra_bytes, comment_bytes = lengths
        name_at, extra_at = at + 46, at + 46 + name_bytes
        at = extra_at + extra_bytes + comment_bytes
        if _IN_ZIP64 in (stored, size, offset):
            extra = directory[extra_at : extra_at + extra_bytes]
            size, stored, offset = _zip64_fields(extra, (size, stored, offset))
        name = directory[name_at:extra_at]
        if len(entries) == ENTRIES_LIMIT:
            raise Unjudged
        entries.append(Entry(name, flags & 1, method, time, crc, stored, size, base + offset))
    if at > end if lenient else at < end and len(entries) == found.entries:
        raise Unjudged  # the lengths in the last entry: zipfile takes less, torch leaves the rest
    if at != end:
        raise Broken("the zip central directory is damaged")
    return entries


def _zip64_fields(extra: bytes, fields: tuple[int, int, int]) -> list[int]:
    """Those of the fields that do not fit in 32 bits are in the extra field, in this order."""
    while len(extra) >= 4:
        kind, length = _TWO_U16.unpack_from(extra)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            return [next(wide, field) if field == _IN_ZIP64 else field for field in fields]
        extra = extra[4 + length :]
    return list(fields)


def _members(file: File, name: str, entries: list[Entry], directory_at: int) -> None:
    if not entries:
        return
    names = {entry.name.lower() for entry in entries}  # torch does not tell case
    root = entries[0].name.lower().split(b"/")[0]
    torch = root + b"/version" in names or root + b"/" + _ID in names
    if not torch and (name.endswith(".zip") or not name.endswith(_ZIP_SUFFIXES)):
        return  # archives of the wild bend the rules and can be read all the same
    if torch:
        _torch_archive(file, name, entries, directory_at)
        return
    with broken_only_if(name.endswith(_ZIP_SUFFIXES)):
        for entry, end in _in_order(file, entries, directory_at):
            if name.endswith(".npz") and entry.name.endswith(b".npy"):
                _npz_member(file, entry, end)
            else:
                _whole(file, entry, end)


def _in_order(file: File, entries: list[Entry], directory_at: int) -> Iterator[tuple[Entry, int]]:
    """The entries as they lie in the file, and where the next one or the directory begins."""
    ordered = sorted(entries, key=attrgetter("at"))
    ends = [entry.at for entry in ordered[1:]] + [directory_at]
    skip = max(0, len(ordered) - file.steps_left // 4)  # damage is likelier towards the end
    yield from zip(ordered[skip:], ends[skip:], strict=True)


def _whole(file: File, entry: Entry, end: int, *, torch: bool = False) -> None:
    """It has a local header, and ends before the next one begins. ``torch``: as far as torch
    looks, which does not compare the names, nor the sizes where there is a time."""
    stored = entry.size_bytes if torch and entry.time and not entry.method else entry.stored_bytes
    if _data_at(file, entry, named=not torch) + stored > end:
        raise Broken(f"zip entry {quoted(entry.name)} runs into what follows it")
    if entry.method == 0 and stored != entry.size_bytes and not entry.encrypted:
        raise Broken(f"zip entry {quoted(entry.name)} is shorter than its size")


def _data_at(file: File, entry: Entry, *, named: bool) -> int:
    """``named``: the reader compares the name in the local header, which torch does not."""
    name, at = entry.name, entry.at
    header = file.bytes(at, 30 + len(name))
    if header[:4] != ZIP_LOCAL or (named and header[30:] != name):
        raise Broken(f"zip entry {quoted(name)} has no local header")
    name_bytes, extra_bytes = _TWO_U16.unpack_from(header, 26)
    return at + 30 + int(name_bytes) + int(extra_bytes)


def _require_own(file: File, entry: Entry, data_at: int) -> None:
    """The checksum in the local header is that of the directory, if there is one. So is that behind
    the data of torch, and torch's padding is of one letter. No reader looks at them, but of half of
    another save that fits byte for byte nothing else tells."""
    header = file.bytes(entry.at, data_at - entry.at)
    flags, crc, name_bytes = _LOCAL.unpack_from(header)
    if entry.encrypted or not entry.size_bytes:
        return
    if crc not in (0, entry.crc):
        raise Broken(f"zip entry {quoted(entry.name)} has the header of another")
    padding = _padding_of_torch(header[30 + name_bytes :])
    if padding is None:
        return
    if padding.strip(b"Z"):
        raise Broken(f"the padding of zip entry {quoted(entry.name)} is overwritten")
    end = data_at + entry.stored_bytes
    if flags & _HAS_DESCRIPTOR and end + 8 <= file.size:
        behind = file.bytes(end, 8)
        if behind[:4] == _ZIP_DESCRIPTOR and U32.unpack_from(behind, 4)[0] != entry.crc:
            raise Broken(f"zip entry {quoted(entry.name)} has the checksum of another behind it")


def _padding_of_torch(extra: bytes) -> bytes | None:
    """What fills its extra field up; None where no such field ends it. One of zip64 may precede."""
    while len(extra) >= 4:
        kind, length = _TWO_U16.unpack_from(extra)
        if kind == _TORCH_PADDING:
            return extra[4:] if len(extra) == 4 + length else None
        extra = extra[4 + length :]
    return None


def _npz_member(file: File, entry: Entry, end: int) -> None:
    """NumPy reads as much as the npy header says, whatever the sizes of the entry; what is more
    than that leaves it unjudged."""
    if entry.encrypted:
        raise Unjudged
    at = _data_at(file, entry, named=True)
    room = end - at
    stored = entry.stored_bytes if entry.method != 0 else min(entry.stored_bytes, entry.size_bytes)
    head = file.bytes(at, max(0, min(1024, stored, room)))
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
    if data_bytes is None:
        return
    needed = header_bytes + data_bytes
    if needed > entry.size_bytes or (entry.method == 0 and needed > min(stored, room)):
        raise Broken(f"{quoted(entry.name)} is not as long as its npy header says")
    if needed < entry.size_bytes or entry.stored_bytes > room:
        raise Unjudged


# --- torch archives

_ID = b".data/serialization_id"
_READ = {b"version", b"byteorder", b"data.pkl"}
_UNREAD = {b".format_version", b".storage_alignment", _ID}  # by torch.load
_BOOKKEEPING = {b"version", b"byteorder", b".format_version", b".storage_alignment", _ID}


def _is_spare(entry: Entry, root: bytes, plain: bool) -> bool:
    """Whether torch.load gives the same whatever is there: it does not look at it."""
    name = entry.name.lower()[len(root) + 1 :]
    unread = plain and name not in _READ and not name.startswith((b"data/", b"tensors/"))
    return entry.size_bytes == 0 or name in _UNREAD or unread


def _torch_archive(file: File, name: str, entries: list[Entry], directory_at: int) -> None:
    """Broken is only said of what torch.load reads; damage elsewhere leaves it unjudged."""
    root = entries[0].name.lower().split(b"/")[0]
    names = {entry.name.lower() for entry in entries}
    plain = root + b"/data.pkl" in names and root + b"/constants.pkl" not in names  # no script
    read = [entry for entry in entries if not _is_spare(entry, root, plain)]
    doubtful = False
    with broken_only_if(name.endswith(_ZIP_SUFFIXES)):
        for entry, end in _in_order(file, read, directory_at):
            try:
                _whole(file, entry, end)
            except Broken:
                _whole(file, entry, end, torch=True)
                doubtful = True
    try:
        for entry, end in _in_order(file, entries, directory_at):
            if _is_spare(entry, root, plain):
                _whole(file, entry, end)
    except Broken:
        doubtful = True
    _torch(file, root, {entry.name.lower(): entry for entry in entries})
    if doubtful:
        raise Unjudged


def _torch(file: File, root: bytes, by_name: dict[bytes, Entry]) -> None:
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
    if entry.method != 0:
        return
    if entry.size_bytes > METADATA_LIMIT_BYTES:
        raise Unjudged
    pickle = file.bytes(_data_at(file, entry, named=False), entry.size_bytes)
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
