"""Findings seen to through a mount, by asking its daemon; what is to be done is decided in
``checking/remedy.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ckptfs.checking.examine import ROTTEN, Condition, Finding
from ckptfs.checking.remedy import Remedy

Look = Callable[[Finding], Finding]


def mend(mountpoint: str, finding: Finding, remedy: Remedy, again: Look) -> Finding:
    """The finding, and what was done about it. ``again`` takes a second look at it."""
    try:
        if not _asked(mountpoint, finding, remedy, again):
            return finding
    except OSError as error:
        return replace(finding, detail=f"{finding.detail}; the mount says: {error.strerror}")
    if again(finding).condition in ROTTEN:
        return replace(finding, detail=f"{finding.detail}; the mount found nothing to repair")
    # Of damage that the mount has not only recorded anew.
    replaced = remedy in {Remedy.SET_ASIDE, Remedy.MEND} and not finding.proven
    return replace(finding, repair="seen to by the mount", replaced=replaced)


def _asked(mountpoint: str, finding: Finding, remedy: Remedy, again: Look) -> bool:
    """Whether it is what a mount does."""
    from ckptfs.mount.operations import commands

    if remedy is Remedy.SET_ASIDE:
        commands.set_aside(mountpoint, finding.path)
    elif remedy is Remedy.MEND:
        commands.check(mountpoint, finding.path)
    elif remedy is Remedy.TIDY:
        if again(finding).condition is not Condition.MISSING:  # all at once
            commands.tidy(mountpoint)
    elif remedy is Remedy.BRING_BACK:
        commands.restore(mountpoint, finding.path)
    else:
        return False
    return True


def accept(mountpoint: str, finding: Finding, remedy: Remedy) -> bool:
    """Whether there was something to take: not of what is written in place. Raises OSError."""
    from ckptfs.mount.operations import commands

    wanted = remedy in {Remedy.ADOPT, Remedy.FORGET}
    return wanted and commands.adopt(mountpoint, finding.path)
