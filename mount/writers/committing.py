"""A version is committed in its turn, exposed to be written in place, or never published.

Threading: each takes, or is called under, the version's own ``staged.lock``, and takes
``Versions.lock`` after it; no commit runs under the latter.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Iterator

from ckptfs.errors import CkptfsError, final
from ckptfs.structure import Verdict
from ckptfs.telling.events import DISK_FULL, UNKNOWN
from ckptfs.versions.life import Turn, Writers
from ckptfs.versions.staged import Base, Inode

from ..view.identity import identity
from ..view.model import Caller, Version
from . import content, mapped, overtaking
from .content import Content
from .versions import Versions

_LOG_S = 1.0  # text that is still open so long after its first write is a log


def commit_in_turn(versions: Versions, version: Version) -> bool:
    """Commit it unless it is overtaken. Of one without a byte only the RELEASE tells, which
    may come behind later closes: none of them is published between the two."""
    assert version.at is not None
    parent, name = version.at
    if not version.overtakers and not overtaking.is_untouched(versions, version):
        _commit(versions, version)
        return True
    with versions.store.order.path_lock(parent.fd, name):
        if overtaking.overtaken(versions, version):
            return False
        _commit(versions, version)
        return True


def _commit(versions: Versions, version: Version) -> None:
    with versions.lock:
        assert version.at is not None
        parent, name = version.at
        version.staged.path = parent.child_path(name)  # a directory above may have moved
    try:
        if not version.known and _looks_broken(versions, version):
            abort(versions, version, UNKNOWN)
            return
        _require_room(versions, version)
        base = version.staged.base
        with versions.lock:
            overtaking.overtakes(versions, version.staged, parent, name, version.before)
            version.before = {}
        with versions.replacing(parent, name) as old:
            versions.store.saves.commit(
                version.staged, parent.fd, name, functools.partial(_alone, versions)
            )
        if base is not None and not base.filled:
            _became_committed(versions, version, base)
        version.numbers.add(version.node.ident[1])
        if version.mappers or not version.known:
            mapped.remember_mappers(versions, version)
        if not version.known or not version.closed:
            mapped.mark_live(versions, version)
        version.node.stands_for = 0
        versions.sealed(version)
        if old is not None:
            versions.replaced(old)
    except (OSError, CkptfsError) as error:
        version.failure = final(error)
        raise version.failure from None
    finally:
        versions.writeback.remove(version.staged)
        with versions.lock:
            versions.unplace(version)


def _require_room(versions: Versions, version: Version) -> None:
    """A write that finds no room tells its program alone, for the kernel carries it. What
    follows is a close like any other, of a version that may lack the rest."""
    full = versions.store.room.look().is_full if version.is_log else False
    if full or (not version.is_log and versions.store.saves.may_lack_bytes(version.staged)):
        abort(versions, version, DISK_FULL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _alone(versions: Versions, inode: Inode) -> Iterator[bool]:
    """Whether nobody has the inode open through the mount; nobody gets it inside then (C7)."""
    with versions.lock:
        # By descriptor: a node may have been opened with a later version than its own.
        alone = not any(
            each.fd >= 0 and identity(os.fstat(each.fd))[:2] == inode
            for each in versions.handles.values()
        )
        if alone:
            versions.extending.add(inode)
    try:
        yield alone
    finally:
        if alone:
            with versions.lock:
                versions.extending.discard(inode)


def _became_committed(versions: Versions, version: Version, base: Base) -> None:
    """What it added is in the committed file, and so is who has the version open."""
    with versions.lock:
        for handle in version.handles | version.node.handles:
            versions.store.fs.redirect(handle.fd, version.staged.fd)
        base.filled = True
        versions.nodes.detach(version.node)
        version.node.ident = identity(os.fstat(version.staged.fd))


def publish_unfinished(versions: Versions, version: Version) -> None:
    """A log is good as far as it goes: it is published and stays live. A database, which keeps
    transactions of its own, is written in place. Does nothing to anything else; the caller
    holds ``staged.lock``."""
    found = _kind(versions, version)
    if found is None or version.at is None or overtaking.overtaken(versions, version):
        return
    if versions.store.room.look().is_full:
        return  # nothing is committed then
    if found is Content.DATABASE:
        _expose(versions, version)
        return
    version.turn(Turn.CLOSE)  # who opens it now joins what is published
    version.is_log = True
    _commit(versions, version)


def publish_named(versions: Versions, version: Version, caller: Caller) -> None:
    """A process that writes it, or did until nothing was changed any more, gives it another
    name, and so says that it is whole: it is committed, and live from here on. Not of a
    stranger, nor what is broken by its structure. Raises what a commit raises."""
    with version.staged.lock:
        if not version.joinable or version.at is None or version.writers is not Writers.WHOLE:
            return
        if overtaking.overtaken(versions, version) or not _is_written_by(
            versions, version, caller.process
        ):
            return
        if not _looks_broken(versions, version):
            version.turn(Turn.CLOSE)
            _commit(versions, version)


def _is_written_by(versions: Versions, version: Version, process: int | None) -> bool:
    with versions.lock:
        has_it = any(handle.opener == process for handle in version.handles)
        at_close = version.closers.get(process) if process is not None else None
    return has_it or (at_close is not None and at_close == overtaking.content(versions, version))


def _kind(versions: Versions, version: Version) -> Content | None:
    """Whether it is a log (TEXT) or a database rather than a checkpoint; see ``content``."""
    if version.is_binary:
        return None
    staged, saves = version.staged, versions.store.saves
    size = overtaking.content(versions, version)[0]
    found = content.judge(size, lambda n, offset: saves.read(staged, n, offset))
    version.is_binary = found is Content.OTHER
    if found is Content.DATABASE:
        return found
    since, name = version.grows_since, version.at[1] if version.at else ""
    stays_open = since is not None and time.monotonic() - since >= _LOG_S
    lasts = version.appends or stays_open
    is_log = lasts and content.may_be_log(name, appends=version.appends)
    return found if found is Content.TEXT and is_log else None


def write_in_place(versions: Versions, version: Version) -> None:
    """Several processes write it under a lock, so each must see the others' bytes. Does
    nothing once its commit has begun: who comes then sees what it commits."""
    with version.staged.lock:
        if version.joinable and not overtaking.overtaken(versions, version):
            _expose(versions, version)


def _expose(versions: Versions, version: Version) -> None:
    with versions.lock:
        if version.at is None:
            return
        parent, name = version.at
        version.staged.path = parent.child_path(name)
    versions.writeback.remove(version.staged)
    with versions.replacing(parent, name):
        versions.store.saves.expose(version.staged, parent.fd, name)
    with versions.lock:
        versions.unplace(version)
        overtaking.overtakes(versions, version.staged, parent, name, version.before)
        for other in versions.at(parent, name):  # truncated for the lock, not to be emptied
            other.overtakers.append((version.staged, other.staged.as_opened))
    versions.sealed(version)


def _looks_broken(versions: Versions, version: Version) -> bool:
    return judged(versions, version) is Verdict.BROKEN


def judged(versions: Versions, version: Version) -> Verdict:
    return versions.store.saves.verdict(version.staged)


def abort(versions: Versions, version: Version, reason: str) -> None:
    with version.staged.lock:
        if version.unpublished:
            versions.store.saves.abort(version.staged, reason)
    versions.writeback.remove(version.staged)
    with versions.lock:
        versions.unplace(version)
        versions.nodes.detach(version.node)


def fail(versions: Versions, version: Version, error: OSError) -> OSError | CkptfsError:
    """A failed fsync is final: the version is never published, its close says why. Returns
    what to answer."""
    if version.failure is None:
        version.failure = final(error)
        abort(versions, version, f"fsync failed: {error.strerror}")
    return version.failure


def abort_all(versions: Versions, reason: str) -> None:
    """At the end of a mount that was taken away: what was open goes to salvage. What is empty
    so far, or cannot be looked at, stays in stage until the next mount; passthrough writes go
    on without us."""
    for version in versions.all():
        with contextlib.suppress(OSError):
            if not version.public and versions.store.saves.is_changed(version.staged):
                abort(versions, version, reason)
