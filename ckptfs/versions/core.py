"""What every change of one store works on, handed to each step: no step keeps anything of its own.

``order`` says what may happen when, ``lineages`` which path has which history, ``digests`` what is
known of files that are gone on with. The rest are the options.
"""

from __future__ import annotations

from ckptfs.disk.filesystem import Status
from ckptfs.history.lineages import Lineages
from ckptfs.listeners import Listeners
from ckptfs.modes import Mode
from ckptfs.records.layout import Layout
from ckptfs.versions.order import Ordering
from ckptfs.versions.origin import COPIED_AT_ONCE_BYTES, Digests


class Core:
    def __init__(
        self, layout: Layout, mode: Mode, checksum: str, keep: int, validate: bool
    ) -> None:
        self.layout, self.fs, self.mode = layout, layout.fs, mode
        self.checksum, self.keep, self.validate = checksum, keep, validate
        self.order = Ordering(layout.fs, mode)
        self.lineages = Lineages(layout)
        self.digests = Digests(layout.fs)
        self.copied_at_once_bytes = COPIED_AT_ONCE_BYTES
        # told of each path whose last version went to history, and how long that is
        self.kept: Listeners[[str, int]] = Listeners()
        # told of a path that was rolled back, and of what stood there, if anything
        self.rolled_back: Listeners[[str, Status | None]] = Listeners()
