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
from ckptfs.versions.order import Place, place_of
from ckptfs.versions.publish import put
from ckptfs.versions.standing import status_at

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
        if kind:
            salvaged += kinds[kind](core, name)
        elif core.order.poisoned is None:  # else an intent that stays may speak of it
            salvaged += _version(core, name, status)
    return salvaged


def _turn(kinds: Kinds, name: str) -> int:
    """Intents, and names of versions, come ahead of the versions that they speak of."""
    kind = _kind(kinds, name)
    return list(kinds).index(kind) if kind else len(kinds)


def _kind(kinds: Kinds, name: str) -> str:
    return next((kind for kind in kinds if name.endswith(kind)), "")


def _group(core: Core, name: str) -> int:
    """Carry out what was to be published as one; it had begun, or nothing of it was visible. Who
    has no place any more goes to salvage after it, as any version. What cannot be carried out for
    another reason stays, and makes the store read-only: a later mount tries again."""
    planned: list[Planned] = []
    try:
        planned = _read_group(core, name)
        for each in planned:
            _carry_out(core, each)
        core.fs.sync_all(core.layout.root)
        core.fs.unlink(core.layout.stage, name)
        core.fs.fsync_dir(core.layout.stage)
    except OSError as error:
        paths = ", ".join(each.path for each in planned) or name
        core.order.poison(f"cannot publish what belongs together ({paths}): {error.strerror}")
    return 0


def _read_group(core: Core, name: str) -> list[Planned]:
    try:
        return intents.read_group(core.layout, name)
    except RecordDamaged as damaged:
        say(logging.ERROR, "?", f"{damaged}; the versions go to salvage")
        return []


def _carry_out(core: Core, planned: Planned) -> None:
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        place_of(core.fs, core.layout.root, planned.path) as place,
    ):
        if planned.txid:
            _install(core, planned, place)
        elif intents.stood(core.fs.lstat(place.at, place.name)) == planned.stood:
            names.remove(core, place)


def _install(core: Core, planned: Planned, place: Place) -> None:
    """What somebody has put there since the intent goes to salvage; what is no file stays, and the
    version has no place."""
    member = core.fs.lstat(core.layout.stage, planned.txid)  # not there: its place is durable
    status = status_at(core, place)
    if status is None or status.st_ino == member.st_ino or intents.stood(status) == planned.stood:
        put(core, planned.txid, place)
    elif osfs.is_regular(status):
        _set_aside(core, place)
        put(core, planned.txid, place)
    else:
        say(logging.WARNING, place.path, "no file stands there; what was published is in salvage")


def _set_aside(core: Core, place: Place) -> None:
    layout = core.layout
    story: dict[str, object] = {
        "path": place.path,
        "reason": "put below the mount where a version was being published",
    }
    entry = layout.aside.put(place.at, place.name, layout.salvage, story)
    core.fs.fsync_dir(layout.salvage)
    say(logging.WARNING, place.path, f"{story['reason']}; salvage {entry}")


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
