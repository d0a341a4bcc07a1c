"""How versions are written, and what becomes of files that were changed behind ckptfs: the choices
of whoever serves a directory."""

from __future__ import annotations

import enum


class Mode(enum.Enum):
    """How a version becomes visible and durable (arXiv 2511.18323, section on write modes)."""

    UNSAFE = "unsafe"
    ATOMIC_NODIRSYNC = "atomic_nodirsync"
    ATOMIC_DIRSYNC = "atomic_dirsync"

    @property
    def transactional(self) -> bool:
        return self is not Mode.UNSAFE

    @property
    def syncs_directories(self) -> bool:
        return self is Mode.ATOMIC_DIRSYNC


class Outside(enum.Enum):
    """What becomes of a file that was changed behind ckptfs, so that its time moved, too."""

    JUDGE = "judge"  # by the evidence: served as a save or an edit, or mended as damage
    ACCEPT = "accept"  # served as it is
    REFUSE = "refuse"  # damage, whatever it is
