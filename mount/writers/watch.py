"""What no request tells of: openers that never came back, text that grows under an open descriptor,
closed files that somebody can still write, mappings that are gone. A thread looks from time to
time, as long as there is anything to look at.

Threading: the thread holds no lock between two looks; who holds ``Versions.lock`` may wake it.
"""

from __future__ import annotations

import logging
import os
import threading
import time

from ckptfs.disk.worker import started
from ckptfs.errors import CkptfsError
from ckptfs.versions.life import Turn

from ..processes import writers
from ..processes.mappings import Snapshot
from ..view.model import Version
from . import closing, committing, mapped, overtaking, visibility
from .versions import Versions

log = logging.getLogger("ckptfs.watch")

_LOOK_S = 0.2
_SHARE = 0.2  # of the time may go into looking: somebody may have thousands of files open
_MAPPINGS_S = 1.0
_PENDING_S = 60.0  # an open that was sent to look again and never came back


class Watch:
    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._mappings_at = 0.0

    def wake(self) -> None:
        """The caller holds ``Versions.lock``. Where no thread is to be had it begins with the next
        call."""
        if self._thread is None and not self._stopped.is_set():
            self._thread = started(self._run, "watch")

    def stop(self) -> None:
        """The thread has ended on return."""
        self._stopped.set()
        with self._versions.lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        took = 0.0
        while not self._stopped.wait(max(_LOOK_S, took / _SHARE)):
            began = time.monotonic()
            try:
                self.look()
            except Exception:
                log.exception("looking at versions failed by a defect")
            took = time.monotonic() - began
            with self._versions.lock:
                if not self._versions.any():
                    self._thread = None
                    return

    def look(self) -> None:
        for version in self._versions.all():
            if not self._dropped(version):
                self._look_at_content(version)
        for version in self._versions.unmarked():  # whoever closed it has a duplicate, or a child
            if version.staged.lock.acquire(blocking=False):
                try:
                    mapped.mark_live(self._versions, version)
                finally:
                    version.staged.lock.release()
        now = time.monotonic()
        if now - self._mappings_at >= _MAPPINGS_S:
            self._mappings_at = now
            self._look_at_mappings()

    def _look_at_mappings(self) -> None:
        """What is not mapped any more is sealed, which asks once more."""
        seen = Snapshot()  # one process, many files
        with self._versions.lock:
            asked = [(v, set(v.mappers), set(v.numbers)) for v in self._versions.lingering]
        for version, mappers, numbers in asked:
            if not writers.map_for_writing(mappers, numbers, seen):
                closing.settle_lingering(self._versions, version)

    def _dropped(self, version: Version) -> bool:
        """Whether its opener was sent to look again and never came. No lock is held meanwhile:
        nobody who holds ``Versions.lock`` may take a ``staged.lock``."""
        old = time.monotonic() - _PENDING_S
        with self._versions.lock:
            expected = version.expected.values()
            if version.handles or not expected:
                return False
            if max(expected) > old and not visibility.abandoned(version):
                return False
            version.expected.clear()
            version.turn(Turn.CLOSE)
        visibility.drop(self._versions, version)
        return True

    def _look_at_content(self, version: Version) -> None:
        """A log or a database is seen by all from here on."""
        versions, lock = self._versions, version.staged.lock
        if not lock.acquire(blocking=False):
            return  # it is being committed
        try:
            with versions.lock:
                if not version.joinable or version.ended:
                    return
                if overtaking.is_untouched(versions, version):
                    return
                version.grows_since = version.grows_since or _since(version)
            committing.publish_unfinished(versions, version)
        except (OSError, CkptfsError) as error:  # its close tells its writer
            log.warning("%s: cannot be published while it is open: %s", version.staged.path, error)
        finally:
            lock.release()


def _since(version: Version) -> float:
    """When the first write came, of which the last look knew nothing; monotonic."""
    age = time.time() - os.fstat(version.staged.fd).st_mtime
    return time.monotonic() - min(max(age, 0.0), _LOOK_S)
