"""safetensors: README of huggingface/safetensors, "Format", and validate() in its tensor.rs."""

from __future__ import annotations

import json
import math
import re
from operator import itemgetter
from typing import Any

from ckptfs.structure.base import (
    ENTRIES_LIMIT,
    METADATA_LIMIT_BYTES,
    U64,
    Broken,
    File,
    Unjudged,
    quoted,
)

_SAFETENSORS_HEADER_LIMIT_BYTES = 100_000_000  # the format's own
_TENSOR_CHARACTERS, _VALUE_CHARACTERS = 4 << 10, 256 << 10  # of one entry of the header
_SPACE = re.compile(r"[ \t\n\r]*")
_DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

_Span = tuple[int, int, bool]  # begin, end, whether that is its size


def check_safetensors(file: File) -> None:
    """The tensors follow each other without gaps from the header to the end of the file."""
    if file.size < 10:
        raise Broken("cut short within the safetensors header")
    header_bytes = int(U64.unpack(file.bytes(0, 8))[0])
    data_bytes = file.size - 8 - header_bytes
    if data_bytes < 0 or header_bytes > _SAFETENSORS_HEADER_LIMIT_BYTES:
        raise Broken("cut short or damaged: no whole safetensors header")
    if header_bytes > METADATA_LIMIT_BYTES:
        raise Unjudged
    try:
        tensors = _tensors(file.bytes(8, header_bytes).decode())
    except ValueError:
        raise Broken("the safetensors header is not a JSON object") from None
    at = 0
    for name, (begin, end, fits) in sorted(tensors.items(), key=itemgetter(1)):
        if begin != at or not fits:
            raise Broken(f"safetensors: tensor {quoted(name)} does not fit its place")
        at = end
    if at != data_bytes:
        raise Broken(f"safetensors: the header describes {at} bytes, {data_bytes} are there")


def _tensors(header: str) -> dict[str, _Span]:
    """Entry by entry, as the whole may be anything: parsed at once, 16 MiB of it took 430 MiB, and
    kept every thread waiting for seconds. Raises ValueError."""
    tensors: dict[str, _Span] = {}
    at = _after(header, _behind_space(header, 0), "{")
    more = not header.startswith("}", at)
    while more:
        name, at = _value(header, at)
        value, at = _value(header, _after(header, at, ":"))
        if not isinstance(name, str):
            raise ValueError("a name is no string")
        if name != "__metadata__":
            if not isinstance(value, tuple):
                raise Broken("the safetensors header lacks the type, shape or place of a tensor")
            tensors[name] = value
            if len(tensors) > ENTRIES_LIMIT:
                raise Unjudged
        more = header.startswith(",", at)
        if more:
            at = _after(header, at, ",")
    if _after(header, at, "}") != len(header):
        raise ValueError("something follows")
    return tensors


def _after(header: str, at: int, what: str) -> int:
    """Behind ``what``, which is next, and the white space that follows it."""
    if not header.startswith(what, at):
        raise ValueError(f"no {what}")
    return _behind_space(header, at + 1)


def _behind_space(header: str, at: int) -> int:
    found = _SPACE.match(header, at)
    return found.end() if found else at


def _value(header: str, at: int) -> tuple[Any, int]:
    """What stands there, and where the next thing does."""
    for most in (_TENSOR_CHARACTERS, _VALUE_CHARACTERS):
        try:
            value, length = _decoder.raw_decode(header[at : at + most])
        except ValueError:
            if at + most >= len(header):
                raise
        else:
            return value, _behind_space(header, at + length)
    raise Unjudged


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


_decoder = json.JSONDecoder(object_hook=_tensor_span)
