"""Pickles: the opcodes of pickletools, walked over without building any object."""

from __future__ import annotations

import re
import struct

from ckptfs.structure.base import (
    ENTRIES_LIMIT,
    METADATA_LIMIT_BYTES,
    U32,
    U64,
    Broken,
    File,
    Unjudged,
)

_ITEM_BYTES = {
    b"UntypedStorage": 1, b"ByteStorage": 1, b"CharStorage": 1, b"BoolStorage": 1,
    b"ShortStorage": 2, b"HalfStorage": 2, b"BFloat16Storage": 2, b"IntStorage": 4,
    b"FloatStorage": 4, b"LongStorage": 8, b"DoubleStorage": 8, b"ComplexFloatStorage": 8,
    b"ComplexDoubleStorage": 16, b"QInt8Storage": 1, b"QUInt8Storage": 1, b"QInt32Storage": 4,
    b"QUInt4x2Storage": 1, b"QUInt2x4Storage": 1,
}  # fmt: skip

PROTO, _MARK, _STOP = 0x80, 0x28, 0x2E
# Opcodes of fixed length. A mark before a string or a memo entry is looked at on its own.
_FIXED = re.compile(
    rb"(?:[)\]}NRQbaesudlot012\x81\x85-\x89\x8f-\x94\x97\x98]|[qhK\x80\x82].|[M\x83].."
    rb"|\((?![hjX\x8c])|[Jrj\x84].{4}|[G\x95].{8}){1,256}",
    re.DOTALL,
)
_LENGTHS = (
    dict.fromkeys(b"UC\x8a\x8c", struct.Struct("<B"))
    | dict.fromkeys(b"TXB\x8b", U32)
    | dict.fromkeys(b"\x8d\x8e\x96", U64)
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


def walk_pickle(pickle: bytes) -> tuple[int, list[_Storage]]:
    """Offset behind the _STOP opcode, and the storages that torch refers to on the way there."""
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
                    if len(storages) > ENTRIES_LIMIT:
                        raise Unjudged
                at = found.end() if found and storage else at + 1
            elif op in _LINES:
                for _ in range(_LINES[op]):
                    at = pickle.index(b"\n", at) + 1
            elif op == _STOP:
                return at + 1, storages
            elif not fixed:
                raise Broken("the pickle is damaged")
    except (IndexError, OverflowError, ValueError, struct.error):
        raise Broken("cut short: the pickle does not end") from None


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


def check_dcp_metadata(file: File) -> None:
    """One pickle (torch/distributed/checkpoint/filesystem.py, ``finish``)."""
    if file.size > METADATA_LIMIT_BYTES:
        if file.bytes(file.size - 1, 1)[0] != _STOP:
            raise Broken("cut short: the pickle does not end")
        raise Unjudged
    if walk_pickle(file.bytes(0, file.size))[0] != file.size:
        raise Unjudged  # unpickling passes over what follows
