"""What a daemon does beside serving, by threads of its own: look through history, share blocks,
scrub."""

from __future__ import annotations

from collections.abc import Callable

from ckptfs.checking.orphans import Tidier
from ckptfs.history.sharing import Sharer
from ckptfs.store import Store
from ckptfs.upkeep.scrub import Scrub

from .options import MountOptions


class IdleWork:
    """Over one store; may be stopped and begun again."""

    tidier: Tidier
    sharer: Sharer
    scrub: Scrub

    def __init__(self, store: Store, options: MountOptions) -> None:
        self._store, self._options = store, options
        self._is_told = not options.store.share  # of what was kept, whichever sharer there is

    def tidy(self, wait_s: float) -> None:
        """Returns once history is looked through, or after ``wait_s``."""
        self.tidier = Tidier(self._store.history.tidy)
        self.tidier.start(wait_s)

    def begin(self, busy: Callable[[], set[str]]) -> None:
        """``busy`` says which paths are being written."""
        store = self._store
        self.sharer = Sharer(store.history.share)
        if not self._is_told:
            self._is_told = True
            store.kept.add(lambda path, size_bytes: self.sharer.add(path, size_bytes))
        self.scrub = Scrub(store, self._options.scrub_interval_s, busy)
        self.scrub.start()
