"""Every failure ckptfs reports, in one tree.

Each class carries the errno a program sees through the mount and the exit code a command ends
with. A plain ``OSError`` from the filesystem below keeps its own errno and is never wrapped.
"""

from __future__ import annotations

import errno as _errno
from typing import TypeVar

_E = TypeVar("_E", bound=Exception)


class CkptfsError(Exception):
    """Base of all. ``str()`` is one line: what failed, on which path, what to do."""

    errno: int = _errno.EIO
    exit_code: int = 1
    logged = False  # whether the log has what happened already, or the one who asked has the answer


class UsageError(CkptfsError):
    """The command line or an option is wrong."""

    errno = _errno.EINVAL
    exit_code = 16


class CannotServe(CkptfsError):
    """The directory, the machine or the kernel cannot carry a mount."""

    errno = _errno.ENODEV
    exit_code = 8


class UnknownLayout(CannotServe):
    """``.ckptfs/format`` names a layout this version does not know."""

    errno = _errno.EPROTONOSUPPORT


class WrongPart(CannotServe):
    """A part of ``.ckptfs`` is missing, or something else stands in its place."""

    errno = _errno.EIO


class AlreadyServed(CannotServe):
    """Another daemon, perhaps on another host, holds the directory."""

    errno = _errno.EBUSY


class NotMounted(CkptfsError):
    """The command needs a mount and there is none."""

    errno = _errno.ENOTCONN
    exit_code = 1


class MountBusy(CkptfsError):
    """The mount is in use; the message names who holds it."""

    errno = _errno.EBUSY
    exit_code = 2


class RecordDamaged(CkptfsError):
    """A record whose own checksum does not match, or which cannot be parsed."""

    errno = _errno.EIO


class Rotten(CkptfsError):
    """The bytes differ from their record and no good generation is left."""

    errno = _errno.EIO
    logged = True


class NoSuchGeneration(CkptfsError):
    """History does not hold what was asked for, or not intact."""

    errno = _errno.ENODATA
    logged = True


class NoSuchEntry(CkptfsError):
    """Neither salvage nor quarantine holds what was asked for."""

    errno = _errno.ENOENT


class BrokenStructure(CkptfsError):
    """A version that is certainly not whole would have replaced a sound one."""

    errno = _errno.EBADMSG
    logged = True


class WriterKilled(CkptfsError):
    """One of the writers of a version was killed: what the others wrote is not published."""

    errno = _errno.EIO
    logged = True


class Superseded(CkptfsError):
    """The mount was taken away from a writer, and its file was changed in the plain directory."""

    errno = _errno.ESTALE
    logged = True


class StoreReadOnly(CkptfsError):
    """A directory fsync failed, or a group was published in part: what is on disk is unknown, so
    nothing is written."""

    errno = _errno.EROFS
    logged = True


class IllegalTransition(CkptfsError):
    """A step was asked for in a state that does not allow it. Always a defect of ckptfs."""

    errno = _errno.EIO


def final(error: _E) -> _E | OSError:
    """What to tell of a failure that no second try can mend. EINTR asks for one, and who gets it
    from close(2) takes the file for closed."""
    if isinstance(error, OSError) and error.errno == _errno.EINTR:
        return OSError(_errno.EIO, f"interrupted: {error.strerror}")
    return error
