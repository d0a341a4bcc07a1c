"""What somebody must look at, until he says that he has (``ckptfs ack``).

An alarm is an event and the path that it happened to. Alarms lie in ``.ckptfs/alarms``, so no
restart and no umount takes them back. There is a bound to them: what comes beyond it is counted by
its event alone. They are written when there is a new one, not each time that one is counted.

Nothing fails because they cannot be written. Thread-safe; who looks at them waits for no disk.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace

from ckptfs.disk.locks import Rank, leaf, ranked
from ckptfs.records import format as fmt
from ckptfs.records import parts
from ckptfs.records.layout import Layout

_MOST = 16
_UNTOLD = 100


@dataclass(frozen=True)
class Alarm:
    event: str
    path: str  # empty: of others
    detail: str  # of the latest
    count: int
    first_ns: int
    last_ns: int
    number: int  # of the latest, in the order in which they came

    @classmethod
    def parse(cls, told: object) -> Alarm | None:
        """None for what is none."""
        if not isinstance(told, dict) or {*told} != {field.name for field in fields(cls)}:
            return None
        alarm = cls(**told)
        texts = alarm.event, alarm.path, alarm.detail
        times = alarm.first_ns, alarm.last_ns
        right = all(isinstance(text, str) for text in texts) and all(map(parts.is_time, times))
        return alarm if right and all(map(parts.is_count, (alarm.count, alarm.number))) else None


class Alarms:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._alarms: dict[tuple[str, str], Alarm] = {}
        self._number = 0
        self._unsaved = False
        self._guard, self._saving = leaf(), ranked(Rank.ALARM_FILE, reentrant=False)
        # What the listener has not taken yet, if there is one: event, path, detail.
        self.untold: deque[tuple[str, str, str]] = deque(maxlen=_UNTOLD)
        self.listener: Callable[[], object] | None = None
        told = layout.read_note(fmt.ALARMS).get("alarms")
        self.resume(told if isinstance(told, list) else [])

    def all(self) -> list[Alarm]:
        with self._guard:
            return sorted(self._alarms.values(), key=lambda alarm: alarm.number)

    def told(self) -> list[dict[str, object]]:
        """All, as JSON has them."""
        return [asdict(alarm) for alarm in self.all()]

    def resume(self, told: list[object]) -> None:
        """Go on with these."""
        found = [alarm for alarm in map(Alarm.parse, told[: 2 * _MOST]) if alarm is not None]
        with self._guard:
            self._alarms = {(alarm.event, alarm.path): alarm for alarm in found}
            self._number = max((alarm.number for alarm in found), default=0)

    def note(self, event: str, path: str, detail: str) -> None:
        now_ns = self._layout.fs.now_ns()
        with self._guard:
            key = event, path
            if key not in self._alarms and len(self._alarms) >= _MOST:
                key, detail = (event, ""), "others"
            known = self._alarms.get(key)
            self._number += 1
            alarm = known or Alarm(*key, detail, 0, now_ns, now_ns, 0)
            self._alarms[key] = replace(
                alarm,
                detail=detail,
                count=alarm.count + 1,
                last_ns=now_ns,
                number=self._number,
            )
            self._unsaved = True
        if known is None:
            self.save()

    def tell(self, event: str, path: str, detail: str) -> None:
        """News for the listener."""
        if self.listener is not None:
            self.untold.append((event, path, detail))
            self.listener()

    def ack(self, up_to: int | None = None) -> None:
        """Somebody has looked at those up to that number, or at all. Durable on return, if it can
        be written."""
        with self._guard:
            for key, alarm in list(self._alarms.items()):
                if up_to is None or alarm.number <= up_to:
                    del self._alarms[key]
                    self._unsaved = True
        self.save()

    def save(self) -> None:
        """If there is something to be written."""
        with self._saving:
            with self._guard:
                if not self._unsaved:
                    return
                self._unsaved = False
                alarms = [asdict(alarm) for alarm in self._alarms.values()]
            try:
                self._write(alarms)
            except OSError:
                self._unsaved = True  # once more with the next, or at the end

    def _write(self, alarms: list[dict[str, object]]) -> None:
        while len(json.dumps(alarms)) > parts.SMALL_BYTES - 100:  # very long names
            alarms.pop()
        if alarms:
            self._layout.write_note(fmt.ALARMS, {"alarms": alarms})
            return
        fs, control = self._layout.fs, self._layout.control
        with suppress(FileNotFoundError):  # needs no room
            fs.unlink(control, fmt.ALARMS)
            fs.fsync_dir(control)
