"""What happened to a store, for its status and for the log. Any thread.

The log is for who looks after the machine: what is ordinary (commits, closes, shared blocks) is
only counted, and a thing is said once, until it is over: a rotten file by the first of its
readers, a full disk when it becomes full and when there is room again.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable

log = logging.getLogger("ckptfs.events")

DISK_FULL = "the disk is full, so it may not be whole"
_RECENT = 100
_TOLD_LIMIT = 10_000  # texts
_LEVELS = {
    "aborted": logging.WARNING,
    "rotten": logging.ERROR,
    "rolled back": logging.WARNING,
    "mended": logging.WARNING,
    "set aside": logging.WARNING,
    "modified outside": logging.INFO,
    "adopted": logging.INFO,
}
_GOOD_AGAIN = frozenset({"committed", "rolled back", "mended", "adopted"})


class Events:
    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.counts: Counter[str] = Counter()
        self.recent: list[dict[str, object]] = []
        self._now_ns = now_ns
        self._told: dict[str, set[str]] = {}  # by path
        self._texts = 0  # that are kept there
        self._is_full = False
        self._guard = threading.Lock()

    def note(self, what: str, path: str, detail: str = "", *, level: int = 0) -> None:
        """Count an event, keep it for ``status``, and log it if somebody must know. What somebody
        asked for is of a lower ``level`` than what happened to him."""
        detail = detail.removeprefix(f"{path}: ")
        text = f"{what}: {detail}" if detail else what
        with self._guard:
            self._keep(what, path, detail)
            if what in _GOOD_AGAIN:
                self._texts -= len(self._told.pop(path, ()))
            news = what in _LEVELS and self._is_news(path, text)
            has_room = what == "committed" and self._is_full
            self._is_full = self._is_full and not has_room
        if news:
            say(level or _LEVELS[what], path, text)
        if has_room:
            log.info("there is room on the disk again")

    def not_committed(
        self, path: str, reason: str | BaseException, salvage: str | None = None
    ) -> None:
        """A version failed, or was dropped; its bytes lie in ``salvage``, if there were any. While
        the disk is full the log does not say so of each."""
        detail = str(reason).removeprefix(f"{path}: ")
        if salvage is not None:
            detail += f"; salvage {salvage}"
        if not _is_disk_full(reason):
            self.note("aborted", path, detail)
            return
        with self._guard:
            self._keep("aborted", path, detail)
            was_full, self._is_full = self._is_full, True
        if not was_full:
            say(
                logging.ERROR,
                path,
                "the disk is full: from here on what finds no room is not committed",
            )

    def _keep(self, what: str, path: str, detail: str) -> None:
        self.counts[what] += 1
        self.recent.append(
            {"time_ns": self._now_ns(), "event": what, "path": path, "detail": detail}
        )
        del self.recent[:-_RECENT]

    def _is_news(self, path: str, text: str) -> bool:
        if self._texts >= _TOLD_LIMIT:
            self._told.clear()
            self._texts = 0
        told = self._told.setdefault(path, set())
        if text in told:
            return False
        told.add(text)
        self._texts += 1
        return True


def _is_disk_full(reason: str | BaseException) -> bool:
    return reason == DISK_FULL or getattr(reason, "errno", None) == errno.ENOSPC


def say(level: int, path: str, text: str) -> None:
    log.log(level, "%s: %s", path, text)
