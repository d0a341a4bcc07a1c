"""A set on its way: a directory in stage, which appears by one rename or goes to salvage.

    stage/<id>.set        the directory, with a note of its path
    stage/<id>.manifest   <- the commit point: from here on recovery carries it out

Durability does not depend on the mode: the files are durable as their commits made them, the
directories are when the manifest is, and the manifest is before the rename.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping

from ckptfs.disk import osfs
from ckptfs.errors import RecordDamaged
from ckptfs.records import format as fmt
from ckptfs.records.layout import install
from ckptfs.sets import manifest as manifests
from ckptfs.sets.manifest import Manifest
from ckptfs.telling.events import say
from ckptfs.versions.core import Core
from ckptfs.versions.life import Step
from ckptfs.versions.order import Place

_TORN = "a set whose writers ended before it was complete"
_UNFINISHED = "a set that was unfinished when the daemon or the machine stopped"


def make(core: Core, path: str) -> tuple[str, int]:
    """An empty directory in stage, by its id, and a descriptor of it. Durable, as the mode says,
    with the first commit that follows."""
    fs, stage, txid = core.fs, core.layout.stage, fmt.new_txid()
    fs.mkdir(stage, f"{txid}{fmt.SET}", 0o700)
    fd = fs.open(stage, f"{txid}{fmt.SET}", osfs.DIRECTORY)
    note(core, fd, path)
    core.order.note_changed_dir(stage)
    return txid, fd


def note(core: Core, fd: int, path: str) -> None:
    """Where it is to appear, so that salvage can name what it holds."""
    with contextlib.suppress(OSError):  # no xattrs: then it has no name there
        core.fs.setxattr(fd, fmt.XATTR, fmt.staged_note(path))


def publish(core: Core, found: Manifest, fd: int, place: Place) -> None:
    """Durable on return. Raises OSError: where the name is taken nothing has changed, and what
    fails behind the rename makes the store read-only."""
    fs, stage = core.fs, core.layout.stage
    core.order.require_writable()
    core.order.sync_changed_dirs()
    with core.order.path_lock(place.at, place.name), core.order.steady_directories():
        _sync_directories(core, fd)
        fs.fsync_dir(stage)  # the directory is there whenever the manifest is
        install(fs, stage, f"{found.id}{fmt.MANIFEST}", found.to_bytes(), stage)
        fs.step(Step.INTENDED)
        try:
            fs.rename(stage, f"{found.id}{fmt.SET}", place.at, place.name)
        except OSError:
            fs.unlink(stage, f"{found.id}{fmt.MANIFEST}")
            fs.fsync_dir(stage)
            raise
        try:
            fs.step(Step.PUBLISHED)
            fs.fsync_dir(place.at)
            _file(core, found)
            fs.step(Step.SETTLED)
        except BaseException as error:
            core.order.poison(f"a set was published, and its directory not synced: {error}")
            raise


def _sync_directories(core: Core, fd: int) -> None:
    """From below: a directory is durable ahead of its name."""
    core.fs.fsync_dir(fd)
    for name in core.fs.listdir(fd):
        if osfs.is_directory(core.fs.lstat(fd, name)):
            with osfs.opened(core.fs, fd, name, osfs.DIRECTORY) as below:
                _sync_directories(core, below)


def _file(core: Core, found: Manifest) -> None:
    """In both places, until it is durable in the one that lasts."""
    fs, layout = core.fs, core.layout
    install(fs, layout.stage, found.id, found.to_bytes(), layout.sets)
    fs.unlink(layout.stage, f"{found.id}{fmt.MANIFEST}")
    fs.fsync_dir(layout.stage)


def drop(core: Core, txid: str) -> None:
    """It is empty. Raises OSError (ENOTEMPTY)."""
    core.fs.rmdir(core.layout.stage, f"{txid}{fmt.SET}")


def put_aside(core: Core, txid: str, reason: str = _TORN) -> int:
    """All its files go to salvage, under the name of the set. What is no file goes. A directory in
    it is taken apart as one of its own, so that no depth matters. Returns how many files it were.
    """
    fs, stage, count = core.fs, core.layout.stage, 0
    waiting = [f"{txid}{fmt.SET}"]
    while waiting:
        name = waiting.pop()
        with osfs.opened(fs, stage, name, osfs.DIRECTORY) as fd:
            path = fmt.path_of_note(fs.getxattr(fd, fmt.XATTR) or b"")
            for entry in fs.listdir(fd):
                below = f"{path or txid}/{entry}"
                status = fs.lstat(fd, entry)
                if osfs.is_directory(status):
                    waiting.append(_taken_out(core, fd, entry, below))
                elif osfs.is_regular(status):
                    story: dict[str, object] = {"path": below, "reason": reason, "set": txid}
                    core.layout.aside.put(fd, entry, core.layout.salvage, story)
                    count += 1
                else:
                    fs.unlink(fd, entry)
        fs.rmdir(stage, name)
    return count


def _taken_out(core: Core, at: int, name: str, path: str) -> str:
    """Beside the directory that it lies in."""
    aside = f"{fmt.new_txid()}{fmt.SET}"
    with osfs.opened(core.fs, at, name, osfs.DIRECTORY) as fd:
        note(core, fd, path)
    core.fs.rename(at, name, core.layout.stage, aside)
    return aside


# --- recovery ------------------------------------------------------------------------------------


def _recover_manifest(core: Core, name: str) -> int:
    """Carry out what was decided: the directory appears, or has appeared. Where its name is taken
    by now it goes to salvage with the sets that were not complete."""
    fs, layout = core.fs, core.layout
    try:
        found = manifests.read(fs, layout.stage, name)
    except (RecordDamaged, ValueError, TypeError, KeyError) as damaged:
        say(logging.ERROR, "?", f"{damaged}; what it speaks of goes to salvage")
        fs.unlink(layout.stage, name)
        return 0
    _appear(core, found)
    if manifests.is_there(layout, found):
        fs.sync_all(layout.root)
        _file(core, found)
    else:
        fs.unlink(layout.stage, name)
    return 0


def _appear(core: Core, found: Manifest) -> None:
    fs, layout, name = core.fs, core.layout, f"{found.id}{fmt.SET}"
    if name not in fs.listdir(layout.stage):
        return
    try:
        with osfs.place(fs, layout.root, found.path) as (at, last):
            fs.rename(layout.stage, name, at, last)
    except OSError as error:
        say(logging.WARNING, found.path, f"cannot appear ({error.strerror}); it goes to salvage")


def _recover_set(core: Core, name: str) -> int:
    txid = name.removesuffix(fmt.SET)
    with osfs.opened(core.fs, core.layout.stage, name, osfs.DIRECTORY) as fd:
        path = fmt.path_of_note(core.fs.getxattr(fd, fmt.XATTR) or b"") or "?"
    count = put_aside(core, txid, _UNFINISHED)
    if count:
        say(logging.WARNING, path, f"{_UNFINISHED}; {count} files are in salvage")
    return count


KINDS: Mapping[str, Callable[[Core, str], int]] = {
    fmt.MANIFEST: _recover_manifest,
    fmt.SET: _recover_set,
}
