"""The on-disk layout: names, xattr key, records. Bytes <-> dataclass, written here once.

A committed file carries one xattr, ``user.ckptfs``, a line of text:

    ckptfs/1 digest=blake3:<hex> size=<bytes> mtime=<ns> lineage=<16 hex> generation=<n> \
committed=<unix ns> mode=<write mode> structure=<sound|broken|unknown> sums=<sums> check=<16 hex>

``sums`` (of long files) tell where a damage is, see ``sums.py``; ``live=1`` follows while
somebody may write the file where it is. ``check`` is the BLAKE2b-64 of
everything before it, so a damaged record is told from a damaged file. A staged file carries a note
under the same key instead, ``ckptfs/1 staged path=<quoted>``, so that salvage can name it. A
directory of history names its paths, ``ckptfs/1 history of=<lineages> path=<quoted> path=…``, or,
while the last of them is being deleted, ``ckptfs/1 leaving of=<lineages> path=<quoted>``. Its own
lineage is the first of ``of``, so that directories which somebody has swapped are told apart; the
records of its generations name one of these.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from ckptfs.errors import RecordDamaged, UnknownLayout
from ckptfs.modes import Mode

LAYOUT_VERSION = 1
XATTR = "user.ckptfs"

CONTROL = ".ckptfs"  # hidden in the mount, same filesystem, mode 0700
FORMAT = "format"
LOCK = "lock"
STAGE = "stage"
HISTORY = "history"
SALVAGE = "salvage"
QUARANTINE = "quarantine"
SETS = "sets"  # manifests
SIDECAR = "sidecar"  # records of files whose filesystem has no room for the xattr
COUNTER = "generation"
SCRUB = "scrub"  # what the last one found
ALARMS = "alarms"  # what nobody has looked at yet
GROWS = ".grows"  # in stage: a link to the committed file that is being extended
GROUP = ".group"  # in stage: what is going to be published together
SET = ".set"  # in stage: a directory that is going to appear as a whole
MANIFEST = ".manifest"  # in stage: of a set that appears, be it by recovery
PUT = ".put"  # in stage: the second name of one of a group, on its way to its path
PIN = ".pin"  # in history: an empty directory beside that of a lineage, see ``lineages.py``
NOTE = ".json"  # beside what lies in salvage and quarantine
SUBDIRECTORIES = (STAGE, HISTORY, SALVAGE, QUARANTINE, SIDECAR, SETS)

_MAGIC = f"ckptfs/{LAYOUT_VERSION}"
# Bytes of paths kept in a note; ext4 has about 4,000 for all xattrs of a file.
_STAGED_MAX, _HISTORY_MAX = 1024, 3000
_NOTES = ("staged", "history", "leaving")
_COUNT_DIGITS = 20  # more than any size has


@dataclass(frozen=True)
class Record:
    """What was committed. ``size_bytes`` and ``mtime_ns`` tell rot from an edit made outside."""

    digest: str  # algorithm:hex, equal to what b3sum or sha256sum prints
    size_bytes: int
    mtime_ns: int
    lineage: str  # follows the file through renames and versions
    generation: int  # store-wide counter, never a clock
    committed_ns: int
    mode: Mode
    structure: str
    sums: str = ""
    live: bool = False  # somebody may write it where it stands, until it is recorded anew

    @property
    def algorithm(self) -> str:
        return self.digest.partition(":")[0]

    def to_bytes(self) -> bytes:
        body = (
            f"{_MAGIC} digest={self.digest} size={self.size_bytes} mtime={self.mtime_ns} "
            f"lineage={self.lineage} generation={self.generation} committed={self.committed_ns} "
            f"mode={self.mode.value} structure={self.structure}"
        )
        if self.sums:
            body += f" sums={self.sums}"
        if self.live:
            body += " live=1"
        return f"{body} check={check_of(body)}".encode("ascii")

    @classmethod
    def from_bytes(cls, value: bytes) -> Record | None:
        """The record in ``value``; None for a staged note. Raises RecordDamaged."""
        try:
            text = value.decode("ascii")
            if text.startswith(f"{_MAGIC} staged "):
                return None
            body, _, check = text.rpartition(" check=")
            if check != check_of(body):
                raise ValueError("checksum of the record does not match")
            magic, *fields = body.split(" ")
            if magic != _MAGIC:
                raise ValueError(f"record version {magic!r}")
            named = dict(field.split("=", 1) for field in fields)
            if not named["lineage"].isalnum():  # who owns a directory can write records, too
                raise ValueError("not a lineage")
            return cls(
                digest=named["digest"],
                size_bytes=int(named["size"]),
                mtime_ns=int(named["mtime"]),
                lineage=named["lineage"],
                generation=int(named["generation"]),
                committed_ns=int(named["committed"]),
                mode=Mode(named["mode"]),
                structure=_known_verdict(named["structure"]),
                sums=named.get("sums", ""),
                live="live" in named,
            )
        except (ValueError, KeyError) as error:
            raise RecordDamaged(f"unreadable record: {error}") from None


def names_digest(value: bytes, digest: str) -> bool:
    """Whether a damaged record names ``digest`` (algorithm:hex): where it belongs, but for a few
    characters. Of 64 hex digits 56 do not agree by accident."""
    start = len(f"{_MAGIC} digest=")
    named = value[start : start + len(digest)].decode("latin-1")
    differ = sum(a != b for a, b in zip(named, digest, strict=False))
    return len(named) == len(digest) and differ <= 8


def names_lineage(value: bytes, lineage: str) -> bool:
    """Whether what is left of a damaged record names ``lineage``, but for a few characters."""
    text, length = value.decode("latin-1"), len(lineage)
    windows = (text[at : at + length] for at in range(len(text) - length + 1))
    return any(sum(map(str.__ne__, window, lineage)) <= length // 5 for window in windows)


def _known_verdict(text: str) -> str:
    if text not in ("sound", "broken", "unknown"):
        raise ValueError(f"structure {text!r}")
    return text


def check_of(body: str) -> str:
    """By which a small file of ours knows that it is whole."""
    return hashlib.blake2b(body.encode("ascii", "replace"), digest_size=8).hexdigest()


def checked(body: str) -> bytes:
    """A small file of ours: one line, ahead of the ``body`` what proves it."""
    return f"{check_of(body)} {body}\n".encode()


def body_of(content: bytes) -> str:
    """Of such a file. Raises RecordDamaged."""
    check, _, body = content.decode("ascii", "replace").rstrip("\n").partition(" ")
    if check != check_of(body):
        raise RecordDamaged("its checksum does not match")
    return body


class HistoryNote(NamedTuple):
    """Which paths a directory of history belongs to, the one that keeps it first."""

    paths: tuple[str, ...] = ()
    leaving: bool = False  # the last of them is being deleted or renamed away
    of: tuple[str, ...] = ()  # lineages: its own, and others that its generations name


def staged_note(path: str, missing_bytes: int = 0) -> bytes:
    """The note a staged file carries until its seal: the end of its path, for messages, and how
    much at its start is a hole where the committed bytes belong."""
    missing = f" missing={missing_bytes}" if missing_bytes else ""
    return f"{_MAGIC} staged path={_quoted(path)[-_STAGED_MAX:]}{missing}".encode("ascii")


def history_note(note: HistoryNote) -> bytes:
    """The note of a directory of history. Paths that it has no room for are left out."""
    text, room = f"{_MAGIC} {'leaving' if note.leaving else 'history'}", _HISTORY_MAX
    if note.of:
        text += f" of={','.join(note.of)}"
    for quoted in map(_quoted, note.paths):
        room -= len(quoted)
        if room >= 0:
            text += f" path={quoted}"
    return text.encode("ascii")


def history_note_of(value: bytes) -> HistoryNote:
    text = value.decode("ascii", "replace")
    for kind in ("history", "leaving"):
        if text.startswith(head := f"{_MAGIC} {kind} "):
            fields = [field.partition("=") for field in text[len(head) :].split(" ")]
            paths = tuple(_unquoted(path) for key, _, path in fields if key == "path" and path)
            of = (name for key, _, names in fields if key == "of" for name in names.split(","))
            return HistoryNote(paths, kind == "leaving", tuple(of))
    return HistoryNote()


def path_of_note(value: bytes) -> str | None:
    """The path in the note of a staged file."""
    text = value.decode("ascii", "replace")
    if text.startswith(head := f"{_MAGIC} staged path="):
        return _unquoted(text[len(head) :].partition(" ")[0]) or None
    return None


def missing_of_note(value: bytes) -> int:
    """How many bytes the note of a staged file says are missing at its start."""
    text, _, missing = value.decode("ascii", "replace").rpartition(" missing=")
    is_count = missing.isascii() and missing.isdigit() and len(missing) < _COUNT_DIGITS
    return int(missing) if text.startswith(f"{_MAGIC} staged path=") and is_count else 0


def is_note(value: bytes) -> bool:
    """Whether this is a note, and no record."""
    return value.startswith(tuple(f"{_MAGIC} {kind}".encode() for kind in _NOTES))


def _quoted(path: str) -> str:
    return quote(path.encode(sys.getfilesystemencoding(), "surrogateescape"))


def _unquoted(text: str) -> str:
    """A path as this process has it from the system, whatever its locale."""
    return unquote_to_bytes(text).decode(sys.getfilesystemencoding(), "surrogateescape")


def new_lineage() -> str:
    return secrets.token_hex(8)


def new_txid() -> str:
    return secrets.token_hex(8)


def format_file() -> bytes:
    """Content of ``.ckptfs/format``."""
    return json.dumps({"layout": LAYOUT_VERSION}).encode() + b"\n"


def check_format_file(content: bytes, where: str) -> None:
    """Raise UnknownLayout unless ``content`` names a layout that this version reads."""
    try:
        layout = int(json.loads(content)["layout"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise UnknownLayout(
            f"{where}: not a layout file that ckptfs wrote; restore it or move {CONTROL} away"
        ) from None
    if layout != LAYOUT_VERSION:
        raise UnknownLayout(
            f"{where}: layout {layout} is unknown to this version (it reads {LAYOUT_VERSION}); "
            "use the ckptfs that wrote it, or a newer one"
        )
