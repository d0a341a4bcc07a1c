"""What ``status`` and ``ack`` tell of what somebody must look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptfs.cli.below import Below
from ckptfs.cli.printing import when
from ckptfs.errors import CannotServe
from ckptfs.telling.alarms import Alarms

Alarm = dict[str, Any]  # see ``alarms.Alarm``


def trouble(found: dict[str, Any]) -> Iterator[str]:
    """A line for each thing that somebody must look at, of a status."""
    for condition in found.get("degraded", ()):
        yield f"DEGRADED  {condition}"
    for alarm in found.get("alarms", ()):
        yield f"ALARM     {told(alarm)}"


def told(alarm: Alarm) -> str:
    times = f"{alarm['count']} times, last " if alarm["count"] > 1 else ""
    what = f"{alarm['event']} {alarm['path']}".rstrip()
    return f"{what}: {alarm['detail']} ({times}{when(alarm['last_ns'])})"


def told_short(alarms: list[Alarm]) -> str:
    return f"{counted(alarms)}: `ckptfs status` of it names them" if alarms else ""


def counted(alarms: list[Alarm]) -> str:
    return "1 alarm" if len(alarms) == 1 else f"{len(alarms) or 'no'} alarms"


def unserved(directory: str) -> list[Alarm]:
    """The alarms of a directory that nobody serves; none where one cannot look."""
    try:
        layout = Below(directory).layout
    except (CannotServe, OSError):
        return []
    return Alarms(layout).told() if layout is not None else []
