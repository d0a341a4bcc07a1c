"""Who wrote what, and when: what a close publishes is never less than a plain directory would hold.

Where nothing was written to a version since its begin, or since somebody truncated the path once
more, it does not replace what was committed meanwhile: it is *overtaken*.

Threading: the caller holds ``Versions.lock`` or the version's ``staged.lock``, or both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ckptfs.errors import CkptfsError, final
from ckptfs.versions.life import VISIBLE
from ckptfs.versions.staged import Fingerprint, Staged, fingerprint

from ..processes import writers
from ..view.model import Before, Directory, Version
from . import finished
from .versions import Versions


def content(versions: Versions, version: Version) -> Fingerprint:
    try:
        return fingerprint(versions.store.fs, version.staged.fd)
    except OSError as error:
        raise _failed(versions, version, error) from None


def is_untouched(versions: Versions, version: Version) -> bool:
    """Whether no byte was written since it was begun."""
    return content(versions, version) == version.staged.as_opened


def changed(versions: Versions, version: Version) -> bool:
    try:
        return versions.store.saves.is_changed(version.staged)
    except OSError as error:
        raise _failed(versions, version, error) from None


def is_complete(versions: Versions, version: Version, *, released: bool = False) -> bool:
    """Whether there is something to commit."""
    empty = finished.empty_is_complete
    return changed(versions, version) or empty(version.fresh, version.is_meant, released=released)


def _failed(versions: Versions, version: Version, error: OSError) -> OSError | CkptfsError:
    """A version that cannot be looked at has failed: the close that hears of it is the last
    that anybody waits for."""
    with versions.lock:
        version.failure = version.failure or final(error)
        return version.failure


def cut_by(versions: Versions, process: int | None, others: list[Version]) -> Before:
    """What an open with O_TRUNC takes away of the others, as they are by now. Nothing of what
    a stranger adds to the committed bytes."""
    return {
        version: content(versions, version)
        for version in others
        if version.fresh
        or all(writers.are_related(process, handle.opener) for handle in version.handles)
    }


@contextlib.contextmanager
def cutting(versions: Versions, version: Version) -> Iterator[None]:
    """An O_TRUNC of what is empty moves its times and writes no byte."""
    with version.staged.lock:
        was, untouched = content(versions, version), is_untouched(versions, version)
        yield
        now = content(versions, version)
        if untouched and was[0] == now[0] == 0 and version.unpublished:
            _still_untouched(versions, version, was, now)


def _still_untouched(
    versions: Versions, version: Version, was: Fingerprint, now: Fingerprint
) -> None:
    with versions.lock:
        version.staged.as_opened = now
        version.overtakers = [(by, now if at == was else at) for by, at in version.overtakers]
        for other in versions.at(*version.at) if version.at else ():
            if other.before.get(version) == was:
                other.before[version] = now


def overtaken(versions: Versions, version: Version) -> bool:
    """Whether another version of its path was committed since, and nothing was written to this
    one that the begin of the other did not take away."""
    overtakers = [at for by, at in version.overtakers if by.state in VISIBLE]
    return bool(overtakers) and content(versions, version) in overtakers


def overtakes(versions: Versions, by: Staged, parent: Directory, name: str, before: Before) -> None:
    """``by`` is going to be committed at the path. Who is still on the way to open a version
    opens it after that. The caller holds ``lock``."""
    now = fingerprint(versions.store.fs, by.fd)
    for other in versions.at(parent, name):
        if other.staged is by or (other.expected and not other.handles):
            continue
        if any(version.staged is by and now == at for version, at in other.before.items()):
            continue  # all that ``by`` holds was taken away by the begin of the other
        if other in before:
            other.overtakers.append((by, before[other]))
        elif now != by.as_opened:  # else it changes no byte: owner, mode, xattrs
            other.overtakers.append((by, other.staged.as_opened))
