"""What a crash left in stage: intents are carried out or taken back, versions go to salvage.

Nothing is guessed: empty drafts go away, bytes are kept. Nobody else works on the store.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import Status
from ckptfs.errors import RecordDamaged
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.records import intents
from ckptfs.records.format import Record
from ckptfs.records.intents import Planned
from ckptfs.telling.events import say
from ckptfs.versions import extend, names
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place
from ckptfs.versions.publish import put

Kinds = Mapping[str, Callable[[Core, str], int]]  # by the end of a name


def recover(core: Core, more: Kinds = MappingProxyType({})) -> int:
    """Durable once the filesystem is synced. ``more`` are kinds of the floors above: those of
    directories come last. Returns how many files were salvaged."""
    fs, stage, salvaged = core.fs, core.layout.stage, 0
    kinds = {**KINDS, **more}
    for name in sorted(fs.listdir(stage), key=lambda name: _turn(kinds, name)):
        try:
            status = fs.lstat(stage, name)
        except FileNotFoundError:  # appeared with its intent
            continue
        expected = osfs.is_directory if name.endswith(fmt.SET) else osfs.is_regular
        if not expected(status):  # none of ours
            continue
        kind = _kind(kinds, name)
        salvaged += kinds[kind](core, name) if kind else _version(core, name, status)
    return salvaged


def _turn(kinds: Kinds, name: str) -> int:
    """Intents, and names of versions, come ahead of the versions that they speak of."""
    kind = _kind(kinds, name)
    return list(kinds).index(kind) if kind else len(kinds)


def _kind(kinds: Kinds, name: str) -> str:
    return next((kind for kind in kinds if name.endswith(kind)), "")


def _group(core: Core, name: str) -> int:
    """Carry out what was to be published as one; it had begun, or nothing of it was visible. Who
    has no place any more goes to salvage after it, as any version."""
    try:
        planned = intents.read_group(core.layout, name)
    except RecordDamaged as damaged:
        say(logging.ERROR, "?", f"{damaged}; the versions go to salvage")
        planned = []
    for each in planned:
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError),
            osfs.place(core.fs, core.layout.root, each.path) as (at, last),
        ):
            _carry_out(core, each, Place(at, last, each.path))
    core.fs.sync_all(core.layout.root)
    core.fs.unlink(core.layout.stage, name)
    core.fs.fsync_dir(core.layout.stage)
    return 0


def _carry_out(core: Core, planned: Planned, place: Place) -> None:
    if planned.txid:
        put(core, planned.txid, place)
    elif intents.stood(core.fs.lstat(place.at, place.name)) == planned.stood:
        names.remove(core, place)


def _growth(core: Core, name: str) -> int:
    return int(extend.recover(core.layout, name) is not None)


def _put(core: Core, name: str) -> int:
    """Its version has another name, and shall not be taken for published by this one."""
    core.fs.unlink(core.layout.stage, name)
    return 0


KINDS: dict[str, Callable[[Core, str], int]] = {
    fmt.PUT: _put,
    fmt.GROUP: _group,
    fmt.GROWS: _growth,
}


def _version(core: Core, name: str, status: Status) -> int:
    """What was being written goes to salvage; 1 if there was anything."""
    fs, layout = core.fs, core.layout
    with osfs.opened(fs, layout.stage, name, osfs.O_RDONLY) as fd:
        note = fs.getxattr(fd, fmt.XATTR) or b""
    missing = fmt.missing_of_note(note)
    # A version with a second name was published, or is on its way to quarantine.
    if "." in name or status.st_size == missing or status.st_nlink > 1:
        fs.unlink(layout.stage, name)
        return 0
    story: dict[str, object] = {
        "path": _path_of_staged(core, note),
        "reason": "unfinished when the daemon or the machine stopped",
    }
    if missing:
        story["bytes_missing_at_start"] = missing
    with contextlib.suppress(OSError):  # no room for its name: the next mount tries again
        entry = layout.aside.put(layout.stage, name, layout.salvage, story)
        told = f"{story['reason']}; salvage {entry}"
        say(logging.WARNING, str(story["path"] or "?"), told)
        return 1
    return 0


def _path_of_staged(core: Core, note: bytes) -> str | None:
    """Where a version that was under way was to stand: by its note or, from the seal on, by
    the lineage in its record, if history knows that."""
    with contextlib.suppress(RecordDamaged):
        record = Record.from_bytes(note)
        if record is not None:
            return earlier.noted_path(core.layout, record.lineage)
    return fmt.path_of_note(note)
