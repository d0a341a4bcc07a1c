"""Is this text, and does it still read as its name says?

Only what reads it wrongly is said of a text: where nothing here knows its language, or where it is
too long to be parsed beside other work, it reads. Nothing is ever evaluated.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import tokenize
from collections.abc import Callable

from ckptfs.structure.base import Read, Unjudged, pieces

LIMIT_BYTES = 16 << 20  # longer files are not looked at
# Anybody can write a file: a parser in C may take 30 times as much memory, one in Python 3 s a MiB.
_JSON_CHARACTERS, _PARSED_CHARACTERS = 8 << 20, 256 << 10
SUFFIXES = (
    ".json", ".jsonl", ".ipynb", ".yaml", ".yml", ".toml", ".csv", ".tsv", ".py", ".sh", ".txt",
    ".md", ".rst", ".log", ".cfg", ".ini", ".xml", ".html",
)  # fmt: skip


def text_of(size_bytes: int, read: Read) -> str | None:
    """What the file holds if it is UTF-8 without NUL; None for everything else, and where it is
    too long to be looked at. An OSError of ``read`` is passed on."""
    if size_bytes > LIMIT_BYTES:
        return None
    decoder, parts = codecs.getincrementaldecoder("utf-8")(), []
    try:
        for piece in pieces(read, 0, size_bytes):
            if b"\0" in piece:
                return None
            parts.append(decoder.decode(piece))
        return "".join([*parts, decoder.decode(b"", final=True)])
    except (UnicodeDecodeError, Unjudged):
        return None


def trouble_with(name: str, text: str) -> str:
    """Why the text does not read as its name says; empty where it does."""
    suffix = name.rpartition(".")[2].lower()
    parse, most = _PARSERS.get(suffix, (None, 0))
    if parse is None or len(text) > most:
        return ""
    try:
        parse(text)
    except RecursionError:
        return ""  # a parser's limit, not the file's fault
    except (ValueError, SyntaxError, csv.Error, tokenize.TokenError):
        return f"it does not read as {suffix}"
    return ""


def _json(text: str) -> None:
    json.loads(text, parse_int=float)  # which takes any length


def _each_line(text: str) -> None:
    for line in text.splitlines():
        if line.strip():
            _json(line)


def _events(text: str) -> None:
    """As events, which refer to aliases and do not unfold them."""
    import yaml  # here, for it takes a quarter of the time of loading all of ckptfs

    try:
        for _ in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            pass
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _rows(text: str) -> None:
    for _ in csv.reader(io.StringIO(text, newline=""), strict=True):
        pass


def _tokens(text: str) -> None:
    """Not by ``compile``, which a nested text can crash."""
    for _ in tokenize.generate_tokens(io.StringIO(text).readline):
        pass


_PARSERS: dict[str, tuple[Callable[[str], None], int]] = {
    "json": (_json, _JSON_CHARACTERS),
    "ipynb": (_json, _JSON_CHARACTERS),
    "jsonl": (_each_line, _PARSED_CHARACTERS),
    "yaml": (_events, _PARSED_CHARACTERS),
    "yml": (_events, _PARSED_CHARACTERS),
    "csv": (_rows, _PARSED_CHARACTERS),
    "py": (_tokens, _PARSED_CHARACTERS),
}
