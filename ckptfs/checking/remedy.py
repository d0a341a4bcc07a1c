"""What is to be done about a finding: decided here, for scrubs, ``verify --repair`` and ``adopt``.

Pure. It is done by who holds the store (``upkeep/carry_out.py``), or by the mount that is asked to
(``cli/asking.py``).
"""

from __future__ import annotations

import enum

from ckptfs.checking.examine import ROTTEN, Condition, Finding

_UNREACHED = frozenset({Condition.UNREACHABLE, Condition.LEFTOVER})
_ADOPTED = frozenset({Condition.UNRECORDED, Condition.MODIFIED, Condition.RECORD_MISSING})


class Remedy(enum.Enum):
    NOTHING = "nothing"
    MEND = "mend"  # a file, as an open does: rolled back or, if it is proven, recorded anew
    SET_ASIDE = "set aside"  # a generation, into quarantine
    COUNT_ON = "count on"  # the counter, from the highest generation there is
    BRING_BACK = "bring back"  # a file that is not there
    TIDY = "tidy"  # let go of what no path leads to
    RECOVER = "recover"  # what opening the store does
    ADOPT = "adopt"  # the file as it is
    FORGET = "forget"  # the history of a file that is not there


def remedy(finding: Finding, *, asked_for: bool = False) -> Remedy:
    """What undoes damage. Edits made outside stay, deletions too unless the file was
    ``asked_for``."""
    if finding.condition in ROTTEN:
        if finding.kept is not None:
            return Remedy.SET_ASIDE
        return Remedy.COUNT_ON if finding.highest else Remedy.MEND
    if finding.condition is Condition.MISSING and asked_for:
        return Remedy.BRING_BACK
    if finding.kept is not None and finding.condition in _UNREACHED:
        return Remedy.TIDY
    if finding.condition is Condition.LEFTOVER:
        return Remedy.RECOVER
    return Remedy.NOTHING


def acceptance(finding: Finding) -> Remedy:
    """What takes a file as it is."""
    if finding.condition is Condition.MISSING:
        return Remedy.FORGET
    return Remedy.ADOPT if finding.condition in _ADOPTED else Remedy.NOTHING
