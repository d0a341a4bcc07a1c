"""Committed files, where they stand: their names, and their records. Thread-safe."""

from __future__ import annotations

from functools import partial

from ckptfs.versions import names, recording
from ckptfs.versions.core import Core


class StandingFiles:
    """Of one store; what each does says :mod:`ckptfs.versions.names`, or ``recording``."""

    def __init__(self, core: Core) -> None:
        self.rename, self.exchange = partial(names.rename, core), partial(names.exchange, core)
        self.link, self.unlink = partial(names.link, core), partial(names.unlink, core)
        self.open_in_place = partial(names.open_in_place, core)
        self.reseal = partial(recording.reseal_committed, core)
        self.rerecord_times = partial(recording.rerecord_times, core)
