"""Changes that are not writes: no doubt may fall on the bytes because of them. Any thread; where a
version is being written or committed at the path, one that may wait."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError
from ckptfs.store import Store
from ckptfs.versions.life import State
from ckptfs.versions.staged import Staged, fingerprint

from ..view.model import Directory, Version

_OUTDATED = -1, -1  # the fingerprint of no file


class Metadata:
    def __init__(self, store: Store) -> None:
        self.store = store

    @contextlib.contextmanager
    def unchanged_bytes(self, parent: Directory, name: str) -> Iterator[None]:
        """What is done inside moves the ctime of a committed file but not its bytes: if they
        were verified before, they are after, whatever its name is then."""
        guard = self.store.guard
        if not guard.known_good(parent.fd, name):
            yield
            return
        with osfs.opened(self.store.fs, parent.fd, name, os.O_PATH) as fd:
            yield
            with contextlib.suppress(OSError):  # it is done; the next open verifies it then
                guard.remember(fd)

    @contextlib.contextmanager
    def metadata_change(
        self, parent: Directory, name: str, version: Version | None
    ) -> Iterator[None]:
        """Change mode, owner, times or xattrs of a version without doubt falling on its bytes."""
        if version is not None:
            with version.staged.lock:
                if not version.ended:
                    # A commit that adds to the committed file would leave the change behind.
                    self.store.saves.fill(version.staged)
                    same = not self.store.saves.is_changed(version.staged)
                    yield
                    version.staged.touched = True
                    self._keep_record(version.staged, same)
                    return
        with self.store.order.path_lock(parent.fd, name):
            agrees = self._agrees_with_record(parent, name)
            with self.unchanged_bytes(parent, name):
                yield
                if agrees:
                    with osfs.opened(self.store.fs, parent.fd, name, osfs.O_RDONLY) as fd:
                        record = self.store.layout.read_record(fd)
                        if record is not None:
                            self.store.files.rerecord_times(fd, record)

    def _keep_record(self, staged: Staged, unchanged: bool) -> None:
        store = self.store
        if not unchanged and staged.state is State.SETTLED:
            staged.sealed = _OUTDATED  # whatever time is set: that of the seal, too
        elif staged.state is State.SETTLED and staged.record is not None:
            staged.record = store.files.rerecord_times(staged.fd, staged.record)
            staged.sealed = fingerprint(store.fs, staged.fd)
            store.guard.remember(staged.fd)

    def _agrees_with_record(self, parent: Directory, name: str) -> bool:
        """Whether the committed file has a record, and its size and time are as recorded."""
        store = self.store
        try:
            with osfs.opened(store.fs, parent.fd, name, osfs.O_RDONLY) as fd:
                record = store.layout.read_record(fd)
                return record is not None and fingerprint(store.fs, fd) == (
                    record.size_bytes,
                    record.mtime_ns,
                )
        except (OSError, CkptfsError):
            return False
