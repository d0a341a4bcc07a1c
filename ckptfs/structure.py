"""Is this a whole .pt, safetensors, npz, npy or DCP file?

``BROKEN`` is said only of a file that its readers must refuse or read wrongly: a false alarm costs
somebody a save, while the digest guards whatever slips through. What is not certain is
``UNKNOWN``. ``SOUND`` means that every check within the bounds passed.

The work is bounded whatever the size of the file: ``_STEPS_LIMIT`` reads of headers, and headers,
directories and pickles of up to ``_METADATA_LIMIT_BYTES``. Tensor data is not read, nothing is
ever unpickled. There is no shared state: any thread may call.
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
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

__all__ = ["Read", "Structure", "Verdict", "check"]

Read = Callable[[int, int], bytes]

_METADATA_LIMIT_BYTES = 16 << 20
_STEPS_LIMIT = 1 << 16
_BLOCK_BYTES = 4096

# Under these names a zip archive is one from its first byte to its last.
_ZIP_SUFFIXES = (
    ".pt", ".pth", ".pt2", ".ptl", ".th", ".pth.tar", ".ckpt", ".bin", ".pkl", ".distcp", ".npz",
    ".keras", ".zip",
)  # fmt: skip
# No format of these names begins with zeros. Not so .npy, .bin, .ckpt and .distcp: np.memmap and
# ndarray.tofile put raw arrays under such names.
_NEVER_ZERO_SUFFIXES = (".pt", ".pth", ".pth.tar", ".npz", ".metadata", ".metadata.tmp")
_DCP_METADATA_SUFFIXES = (".metadata", ".metadata.tmp")
# Stand-ins for a file (git-lfs, git-annex), and plainly other formats.
_NOT_SAFETENSORS = (b"version https://", b"/annex/objects/", b"\x1f\x8b")


class Verdict(enum.Enum):
    """The value goes into a version's record."""

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
    """No format known here, or no certainty."""


def check(name: str, size_bytes: int, read: Read) -> Structure:
    """Judge a file of ``size_bytes`` by its name (or path) and its content.

    ``read(offset_bytes, length_bytes)`` returns at most that many bytes, fewer only at the end of
    the file. Raises nothing of its own; an OSError of ``read`` is passed on. A file that shrinks
    meanwhile is ``UNKNOWN``.
    """
    try:
        _judge(name.rsplit("/", 1)[-1].lower(), _File(size_bytes, read))
    except _Broken as broken:
        return Structure(Verdict.BROKEN, str(broken))
    except OSError:
        raise
    except Exception:  # _Unjudged, or malformed in a way that nobody foresaw: no guess
        return Structure(Verdict.UNKNOWN)
    return Structure(Verdict.SOUND)


def _judge(name: str, file: _File) -> None:
    """Return if sound, else raise _Broken or _Unjudged."""
    if file.size == 0 or name.startswith("._"):  # "._x" holds macOS attributes of x
        raise _Unjudged
    head = file.bytes(0, min(file.size, 64))
    if head[:4] in (_ZIP_LOCAL, _ZIP_END):
        _zip(file, name)
    elif name.endswith(".safetensors"):
        if head.startswith(_NOT_SAFETENSORS):
            raise _Unjudged
        _safetensors(file)
    elif head.startswith(_NPY_MAGIC):
        with _broken_only_if(name.endswith((".npy", ".npz"))):
            _npy(file)
    elif head[0] == _PROTO and name.endswith(_DCP_METADATA_SUFFIXES):
        _dcp_metadata(file)
    elif not any(head) and name.endswith(_NEVER_ZERO_SUFFIXES):
        raise _Broken("it begins with zeros in place of a header")
    elif (name.endswith(".npy") and _NPY_MAGIC.startswith(head)) or (
        name.endswith(".npz") and _ZIP_LOCAL.startswith(head)
    ):
        raise _Broken("cut short within its first bytes")
    elif head[8:9] == b"{" and _U64.unpack_from(head)[0] < file.size:
        with _broken_only_if(False):  # "{" is no magic number: only a full match counts
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
    """Exact reads. They come in aligned blocks, as small headers often lie side by side."""

    def __init__(self, size: int, read: Read) -> None:
        self.size = size
        self.steps_left = _STEPS_LIMIT
        self._read = read
        self._block = b""
        self._block_at = 0

    def bytes(self, at: int, length: int) -> bytes:
        self.steps_left -= 1
        skip = at - self._block_at
        if skip >= 0 and skip + length <= len(self._block):
            return self._block[skip : skip + length]
        if at < 0 or at + length > self.size:
            raise _Broken("cut short: it refers to bytes past its end")
        start = at & -_BLOCK_BYTES
        stop = min(self.size, (at + length + _BLOCK_BYTES - 1) & -_BLOCK_BYTES)
        block = self._read(start, stop - start)
        if len(block) != stop - start:
            raise _Unjudged
        if length <= _BLOCK_BYTES:  # larger pieces are wanted once
            self._block, self._block_at = block, start
        return block[at - start : at - start + length]


# --- zip: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory),
# --- 4.3.14 to 4.3.16 (end records), 4.5.3 (zip64 extra field)

_ZIP_LOCAL, _ZIP_CENTRAL, _ZIP_END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_ZIP64_END, _ZIP64_LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL = struct.Struct("<4s4xHH8xLLHHH8xL")
_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<L"), struct.Struct("<Q")
_TWO_U16 = struct.Struct("<HH")
_IN_ZIP64 = 0xFFFFFFFF


class _Entry(NamedTuple):
    name: bytes
    encrypted: int
    method: int
    stored_bytes: int
    size_bytes: int
    at: int  # where its local header is in the file


def _zip(file: _File, name: str) -> None:
    """One archive, or several end to end: torch.save into an open file, shards of DCP."""
    end = file.size
    while end > 0 and file.steps_left > 0:
        with _broken_only_if(name.endswith(_ZIP_SUFFIXES)):
            directory_at, directory_bytes, base = _find_directory(file, end)
            if directory_bytes > _METADATA_LIMIT_BYTES:
                return
            entries = _read_directory(file.bytes(directory_at, directory_bytes), base)
        _members(file, name, entries, directory_at)
        end = min((entry.at for entry in entries), default=directory_at)
        if end > 0 and (end < 22 or file.bytes(end - 22, 4) != _ZIP_END):
            raise _Unjudged  # something else comes first


def _find_directory(file: _File, end: int) -> tuple[int, int, int]:
    """Offset and length of the central directory, and what its offsets count from."""
    if end >= 22:
        record = file.bytes(end - 22, 22)
        if record.startswith(_ZIP_END) and record.endswith(b"\0\0"):  # no comment
            return _locate_directory(file, end - 22)
    tail_at = max(0, end - 22 - 0xFFFF)  # the longest comment there can be
    tail = file.bytes(tail_at, end - tail_at)
    found = [match.start() for match in re.finditer(_ZIP_END, tail[:-18])]
    for at in reversed(found):
        if at + 22 + _U16.unpack_from(tail, at + 20)[0] == len(tail):
            return _locate_directory(file, tail_at + at)
    if found:
        rest = tail[found[-1] + 22 + _U16.unpack_from(tail, found[-1] + 20)[0] :]
        if rest and not _ZIP_LOCAL.startswith(rest[:4]):
            _locate_directory(file, tail_at + found[-1])
            raise _Unjudged  # readers search backwards and pass over what follows
    raise _Broken("cut short: the zip archive has no end-of-central-directory record")


def _locate_directory(file: _File, end: int) -> tuple[int, int, int]:
    disk, directory_disk, _, count, size, offset = struct.unpack("<4x4H2L2x", file.bytes(end, 22))
    if disk not in (0, 0xFFFF) or directory_disk not in (0, 0xFFFF):
        raise _Unjudged  # one volume of several
    if end >= 76 and file.bytes(end - 20, 4) == _ZIP64_LOCATOR:
        for record_at in (end - 76, _U64.unpack(file.bytes(end - 12, 8))[0]):
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
    raise _Broken("the zip central directory is not where the end record says")


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
        raise _Broken("the zip central directory is damaged")
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


def _members(file: _File, name: str, entries: list[_Entry], directory_at: int) -> None:
    if not entries:
        return
    by_name = {entry.name: entry for entry in entries}
    root = entries[0].name.split(b"/")[0]
    torch = root + b"/version" in by_name or root + b"/" + _ID in by_name
    if not torch and (name.endswith(".zip") or not name.endswith(_ZIP_SUFFIXES)):
        return  # archives of the wild bend the rules and can be read all the same
    with _broken_only_if(name.endswith(_ZIP_SUFFIXES)):
        for entry, data_at in _whole_entries(file, entries, directory_at):
            if name.endswith(".npz") and entry.name.endswith(b".npy"):
                _npz_member(file, entry, data_at)
    if torch:
        _torch(file, root, by_name)


def _whole_entries(
    file: _File, entries: list[_Entry], directory_at: int
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
            raise _Broken(f"zip entry {_quoted(entry.name)} runs into what follows it")
        if entry.method == 0 and entry.stored_bytes != entry.size_bytes and not entry.encrypted:
            raise _Broken(f"zip entry {_quoted(entry.name)} is shorter than its size")
        yield entry, data_at


def _data_at(file: _File, entry: _Entry) -> int:
    name, at = entry.name, entry.at
    header = file.bytes(at, 30 + len(name))
    if header[:4] != _ZIP_LOCAL or header[30:] != name:
        raise _Broken(f"zip entry {_quoted(name)} has no local header")
    name_bytes, extra_bytes = _TWO_U16.unpack_from(header, 26)
    return at + 30 + int(name_bytes) + int(extra_bytes)


def _quoted(name: bytes | str) -> str:
    return ascii(name[:80].decode("utf-8", "replace") if isinstance(name, bytes) else name[:80])


# --- torch archives: torch/serialization.py (_save), caffe2/serialize/inline_container.cc

_ID = b".data/serialization_id"
_BOOKKEEPING = {b"version", b"byteorder", b".format_version", b".storage_alignment", _ID}
_ITEM_BYTES = {
    b"UntypedStorage": 1, b"ByteStorage": 1, b"CharStorage": 1, b"BoolStorage": 1,
    b"ShortStorage": 2, b"HalfStorage": 2, b"BFloat16Storage": 2, b"IntStorage": 4,
    b"FloatStorage": 4, b"LongStorage": 8, b"DoubleStorage": 8, b"ComplexFloatStorage": 8,
    b"ComplexDoubleStorage": 16, b"QInt8Storage": 1, b"QUInt8Storage": 1, b"QInt32Storage": 4,
    b"QUInt4x2Storage": 1, b"QUInt2x4Storage": 1,
}  # fmt: skip


def _torch(file: _File, root: bytes, by_name: dict[bytes, _Entry]) -> None:
    """Every storage that data.pkl refers to is there, in full.

    An exception within torch.save leaves an archive that has its end record all the same, but
    lacks storages, or data.pkl too.
    """
    entry = by_name.get(root + b"/data.pkl")
    if entry is None:
        names = {name[len(root) + 1 :] for name in by_name}
        if _ID in names and names <= _BOOKKEEPING:
            raise _Broken("the torch archive holds no object: saving it failed")
        return  # torch.package, torch.export
    if entry.method != 0 or entry.size_bytes > _METADATA_LIMIT_BYTES:
        return
    pickle = file.bytes(_data_at(file, entry), entry.size_bytes)
    if pickle and pickle[0] != _PROTO:
        return  # the text protocol, or a pickle_module of the user's own
    for key, item_bytes, items in _walk_pickle(pickle)[1]:
        record = by_name.get(root + b"/data/" + key)
        if record is None:
            if root + b"/tensors/" + key in by_name:
                continue  # torch 1.4
            raise _Broken(f"storage {_quoted(key)} is missing from the torch archive")
        # A storage may end with a fraction of an item.
        if item_bytes and record.size_bytes // item_bytes != items:
            raise _Broken(
                f"storage {_quoted(key)} has {record.size_bytes} bytes, not {items * item_bytes}"
            )


# --- pickle: the opcodes of pickletools, walked over without building any object

_PROTO, _MARK, _STOP = 0x80, 0x28, 0x2E
# Opcodes of fixed length. A mark before a string or a memo entry is looked at on its own.
_FIXED = re.compile(
    rb"(?:[)\]}NRQbaesudlot012\x81\x85-\x89\x8f-\x94\x97\x98]|[qhK\x80\x82].|[M\x83].."
    rb"|\((?![hjX\x8c])|[Jrj\x84].{4}|[G\x95].{8}){1,256}",
    re.DOTALL,
)
_LENGTHS = (
    dict.fromkeys(b"UC\x8a\x8c", struct.Struct("<B"))
    | dict.fromkeys(b"TXB\x8b", _U32)
    | dict.fromkeys(b"\x8d\x8e\x96", _U64)
)
_LINES = dict.fromkeys(b"PFILSVgp", 1) | dict.fromkeys(b"ci", 2)
# The persistent id ('storage', type, key, location, items) that torch gives to a storage. Strings
# and globals seen before come from the memo, of which only the types are looked up; those of
# protocols 4 and 5, whose memo has no explicit indices, are taken as unknown.
_STORAGE_ID = re.compile(
    rb"""\( (?: h. | j.{4} | (?:X\x07\0\0\0|\x8c\x07) storage PUT )
    (?: h(.) | j(.{4})
      | (?: c [\w.]{1,64} \n (\w{1,64}) \n
          | (?: h. | j.{4} | \x8c.[a-z.]{1,64} PUT ) \x8c.([A-Z]\w{1,64}) PUT \x93 )
        (?: q(.) | r(.{4}) | \x94 )? )
    (?: X(.)\0\0\0 | \x8c(.) ) ([0-9]{1,20}) PUT
    (?: h. | j.{4} | (?: X(.)\0\0\0 | \x8c(.) ) ([\w:.-]{0,64}?) PUT )
    (?: K(.) | M(..) | J(.{4}) | \x8a\x05(.{5}) | \x8a\x08(.{8}) )
    t PUT Q""".replace(b"PUT", rb"(?: q. | r.{4} | \x94 )?"),
    re.DOTALL | re.VERBOSE,
)

_Storage = tuple[bytes, int | None, int]  # key, bytes per item if known, items


def _walk_pickle(pickle: bytes) -> tuple[int, list[_Storage]]:
    """Offset behind the STOP opcode, and the storages that torch refers to on the way there."""
    storages: list[_Storage] = []
    types: dict[int, int | None] = {}
    at = 0
    try:
        while True:
            if fixed := _FIXED.match(pickle, at):
                at = fixed.end()
            op = pickle[at]
            if length := _LENGTHS.get(op):
                at += 1 + length.size + length.unpack_from(pickle, at + 1)[0]
            elif op == _MARK:
                found = _STORAGE_ID.match(pickle, at)
                storage = _storage(found, types) if found else None
                if found and storage:
                    storages.append(storage)
                at = found.end() if found and storage else at + 1
            elif op in _LINES:
                for _ in range(_LINES[op]):
                    at = pickle.index(b"\n", at) + 1
            elif op == _STOP:
                return at + 1, storages
            elif not fixed:
                raise _Broken("the pickle is damaged")
    except (IndexError, OverflowError, ValueError, struct.error):
        raise _Broken("cut short: the pickle does not end") from None


def _storage(found: re.Match[bytes], types: dict[int, int | None]) -> _Storage | None:
    """``types`` maps memo indices to item sizes; None if the match is only a look-alike."""
    (get, get4, kind, kind4, put, put4, key_len, key_len4, key, place_len, place_len4, place) = (
        found.groups()[:12]
    )
    if len(key) != ord(key_len or key_len4):
        return None
    if place is not None and len(place) != ord(place_len or place_len4):
        return None
    if kind or kind4:
        item_bytes = _ITEM_BYTES.get(kind or kind4)
        if put or put4:
            types[int.from_bytes(put or put4, "little")] = item_bytes
    else:
        item_bytes = types.get(int.from_bytes(get or get4, "little"))
    return key, item_bytes, int.from_bytes(found[found.lastindex or 0], "little")


def _dcp_metadata(file: _File) -> None:
    """One pickle (torch/distributed/checkpoint/filesystem.py, ``finish``)."""
    if file.size > _METADATA_LIMIT_BYTES:
        if file.bytes(file.size - 1, 1)[0] != _STOP:
            raise _Broken("cut short: the pickle does not end")
    elif _walk_pickle(file.bytes(0, file.size))[0] != file.size:
        raise _Unjudged  # unpickling passes over what follows


# --- npy: numpy.lib.format, versions 1.0 to 3.0

_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER_LIMIT_BYTES = 10_000  # NumPy's own, because ast.literal_eval is not meant for more
_NPY_HEADER = re.compile(  # as NumPy writes it for simple types; ast takes 20 times as long
    rb"\{'descr': '([^']*)', 'fortran_order': (?:True|False), 'shape': \(([\d, ]*)\), \}\s*"
)
_NPY_TYPE = re.compile(r"[<>|=]?([biufcmMSaUV])(\d+)(?:\[[^\]]*\])?")


def _npy(file: _File) -> None:
    """One array, or several end to end, as the documentation of numpy.save shows."""
    at = 0
    while file.steps_left > 0:
        header_bytes, data_bytes = _npy_sizes(file, at, file.bytes(at, min(256, file.size - at)))
        begin = at + header_bytes
        if data_bytes is None:
            if file.size - begin > _METADATA_LIMIT_BYTES:
                raise _Unjudged
            data_bytes = _walk_pickle(file.bytes(begin, file.size - begin))[0]
        elif begin == file.size and at == 0 and data_bytes > 0:
            raise _Unjudged  # open_memmap first closes the file with only the header in it
        at = begin + data_bytes
        if at > file.size:
            raise _Broken(f"cut short: {data_bytes} bytes of data, {file.size - begin} are there")
        further = file.bytes(at, min(6, file.size - at))
        if not further:
            return
        if not _NPY_MAGIC.startswith(further):
            raise _Unjudged  # numpy.load passes over it


def _npz_member(file: _File, entry: _Entry, at: int) -> None:
    if entry.encrypted:
        raise _Unjudged
    head = file.bytes(at, min(1024, entry.stored_bytes))
    if entry.method == 8:
        try:
            head = zlib.decompressobj(-15).decompress(head, 4096)
        except zlib.error:
            raise _Broken(f"{_quoted(entry.name)} cannot be decompressed") from None
    elif entry.method != 0:
        return
    if not head.startswith(_NPY_MAGIC):
        if any(head[:6]):
            raise _Unjudged  # numpy.load gives its bytes
        raise _Broken(f"{_quoted(entry.name)} has no npy header")
    header_bytes, data_bytes = _npy_sizes(file if entry.method == 0 else None, at, head)
    if data_bytes is not None and header_bytes + data_bytes != entry.size_bytes:
        raise _Broken(f"{_quoted(entry.name)} is not as long as its npy header says")


def _npy_sizes(file: _File | None, at: int, head: bytes) -> tuple[int, int | None]:
    """Bytes of header and of data (None: pickled objects) of the array that begins with ``head``.

    A longer header is read from ``file`` at ``at``; without a file it goes unjudged.
    """
    if len(head) < 12:
        raise _Broken("cut short within the npy header")
    if not 1 <= head[6] <= 3:
        raise _Unjudged
    start, field = (10, _U16) if head[6] == 1 else (12, _U32)
    stop = start + int(field.unpack_from(head, 8)[0])
    if stop > len(head):
        if file is None or stop > _NPY_HEADER_LIMIT_BYTES:
            raise _Unjudged
        head = file.bytes(at, stop)
    header = head[start:stop]
    if simple := _NPY_HEADER.fullmatch(header):
        descr: Any = simple[1].decode("latin-1")
        shape: Any = [int(size) for size in simple[2].split(b",") if size.strip()]
    elif b"\0" in header:
        raise _Broken("the npy header is damaged")
    else:
        fields = ast.literal_eval(header.decode("utf-8" if head[6] == 3 else "latin-1").strip())
        descr, shape = fields["descr"], fields["shape"]
    item_bytes = _npy_item_bytes(descr)
    return stop, None if item_bytes is None else item_bytes * math.prod(shape)


def _npy_item_bytes(descr: Any) -> int | None:
    """Size of a dtype as numpy.lib.format.descr_to_dtype reads it; None if it holds objects."""
    if isinstance(descr, str):
        if simple := _NPY_TYPE.fullmatch(descr):
            return int(simple[2]) * (4 if simple[1] == "U" else 1)
        if descr.endswith("O"):
            return None
        raise _Unjudged
    total = 0
    for _, field, *shape in descr:
        item_bytes = _npy_item_bytes(field)
        if item_bytes is None:
            return None
        total += item_bytes * math.prod(shape[0] if shape else ())
    return total


# --- safetensors: README of huggingface/safetensors, "Format", and validate() in its tensor.rs

_SAFETENSORS_HEADER_LIMIT_BYTES = 100_000_000  # the format's own
_DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


def _safetensors(file: _File) -> None:
    """The tensors follow each other without gaps from the header to the end of the file."""
    if file.size < 10:
        raise _Broken("cut short within the safetensors header")
    header_bytes = int(_U64.unpack(file.bytes(0, 8))[0])
    data_bytes = file.size - 8 - header_bytes
    if data_bytes < 0 or header_bytes > _SAFETENSORS_HEADER_LIMIT_BYTES:
        raise _Broken("cut short or damaged: no whole safetensors header")
    if header_bytes > _METADATA_LIMIT_BYTES:
        return
    try:
        tensors = json.loads(file.bytes(8, header_bytes).decode(), object_hook=_tensor_span)
    except ValueError:
        raise _Broken("the safetensors header is not JSON") from None
    if not isinstance(tensors, dict):
        raise _Broken("the safetensors header is not a JSON object")
    tensors.pop("__metadata__", None)
    if not all(isinstance(span, tuple) for span in tensors.values()):
        raise _Broken("the safetensors header lacks the type, shape or place of a tensor")
    at = 0
    for name, (begin, end, fits) in sorted(tensors.items(), key=itemgetter(1)):
        if begin != at or not fits:
            raise _Broken(f"safetensors: tensor {_quoted(name)} does not fit its place")
        at = end
    if at != data_bytes:
        raise _Broken(f"safetensors: the header describes {at} bytes, {data_bytes} are there")


def _tensor_span(fields: dict[str, Any]) -> Any:
    """What is needed of a tensor's description: begin, end, and whether that is its size."""
    offsets = fields.get("data_offsets")
    if not isinstance(offsets, list):
        return fields  # the header itself, or __metadata__
    try:
        (begin, end), bits = offsets, _DTYPE_BITS.get(fields["dtype"])
        fits = bits is None or math.prod(fields["shape"]) * bits == (end - begin) * 8
        return int(begin), int(end), fits and begin <= end
    except (KeyError, TypeError, ValueError):
        return None
