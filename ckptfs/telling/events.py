"""What happened to a store, for its status and for the log. Any thread.

The log is for who looks after the machine: what is ordinary (commits, closes, shared blocks) is
only counted, and a thing is said once, until it is over: a rotten file by the first of its
readers, a full disk when it becomes full and when there is room again.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Callable

from ckptfs.disk.locks import leaf
from ckptfs.errors import CkptfsError, Rotten
from ckptfs.telling.alarms import Alarms

log = logging.getLogger("ckptfs.events")

DISK_FULL = "the disk is full, so it may not be whole"
# Why versions are given up in ordinary use: a trainer is preempted, a mount is ended by force.
KILLED = "its writer was killed before it closed it"
UNKNOWN = "its writer is unknown and the file is not whole"
TAKEN_AWAY = "the mount was taken away while it was being written"
_ORDINARY = (KILLED, UNKNOWN, TAKEN_AWAY)
_RECENT = 100
_TOLD_LIMIT = 10_000  # texts
_LEVELS = {
    "aborted": logging.WARNING,
    "rotten": logging.ERROR,
    "unreadable": logging.ERROR,
    "rolled back": logging.WARNING,
    "mended": logging.WARNING,
    "set aside": logging.WARNING,
    "modified outside": logging.INFO,
    "adopted": logging.INFO,
}
_ALARMS = frozenset({"rotten", "unreadable", "rolled back", "set aside"})
_UNSERVED = {errno.EIO, errno.EBADMSG, errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_GOOD_AGAIN = frozenset({"committed", "rolled back", "mended", "adopted"})


class Events:
    def __init__(self, now_ns: Callable[[], int], alarms: Alarms) -> None:
        self.counts: Counter[str] = Counter()
        self.recent: list[dict[str, object]] = []
        self._now_ns, self._alarms = now_ns, alarms
        self._told: dict[str, set[str]] = {}  # by path
        self._texts = 0  # that are kept there
        self._is_full = False
        self._guard = leaf()

    def note(self, what: str, path: str, detail: str = "", *, level: int = 0) -> None:
        """Count an event, keep it for ``status``, and log it if somebody must know. What somebody
        asked for is of a lower ``level`` than what happened to him, and no alarm."""
        self._note(what, path, detail, level, alarming=what in _ALARMS and not level)

    def _note(self, what: str, path: str, detail: str, level: int, *, alarming: bool) -> None:
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
        if alarming:
            self._alarm(what, path, detail, news=news)

    def _alarm(self, what: str, path: str, detail: str, *, news: bool) -> None:
        self._alarms.note(what, path, detail)
        if news:
            self._alarms.tell(what, path, detail)

    def not_served(self, path: str, error: CkptfsError | OSError) -> None:
        """An open failed, unless for a reason of its program's own."""
        if isinstance(error, Rotten):
            self.note("rotten", path, str(error))
        elif error.errno in _UNSERVED:
            reason = error.strerror if isinstance(error, OSError) else error
            self.note("unreadable", path, str(reason))

    def not_committed(
        self, path: str, reason: str | BaseException, salvage: str | None = None
    ) -> None:
        """A version failed, or was dropped; its bytes lie in ``salvage``, if there were any. While
        the disk is full the log does not say so of each."""
        detail = str(reason).removeprefix(f"{path}: ")
        if salvage is not None:
            detail += f"; salvage {salvage}"
        if not _is_disk_full(reason):
            self._note("aborted", path, detail, 0, alarming=reason not in _ORDINARY)
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
        self._alarm("aborted", path, detail, news=not was_full)

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
