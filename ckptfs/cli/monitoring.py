"""``ack``, and what `status` tells of what somebody must look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from ckptfs.cli.base import Below, absolute, commands, say, when
from ckptfs.errors import CannotServe
from ckptfs.telling.alarms import Alarms

_Alarm = dict[str, Any]  # see ``alarms.Alarm``


def trouble(found: dict[str, Any]) -> Iterator[str]:
    """A line for each thing that somebody must look at, of a status."""
    for condition in found.get("degraded", ()):
        yield f"DEGRADED  {condition}"
    for alarm in found.get("alarms", ()):
        yield f"ALARM     {_told(alarm)}"


def _told(alarm: _Alarm) -> str:
    times = f"{alarm['count']} times, last " if alarm["count"] > 1 else ""
    what = f"{alarm['event']} {alarm['path']}".rstrip()
    return f"{what}: {alarm['detail']} ({times}{when(alarm['last_ns'])})"


def told_short(alarms: list[_Alarm]) -> str:
    return f"{_counted(alarms)}: `ckptfs status` of it names them" if alarms else ""


def _counted(alarms: list[_Alarm]) -> str:
    return "1 alarm" if len(alarms) == 1 else f"{len(alarms) or 'no'} alarms"


def unserved(directory: str) -> list[_Alarm]:
    """The alarms of a directory that nobody serves; none where one cannot look."""
    try:
        layout = Below(directory).layout
    except (CannotServe, OSError):
        return []
    return Alarms(layout).told() if layout is not None else []


def print_metrics(directory: str, found: dict[str, Any] | None) -> None:
    """As the daemon serves them with --metrics, whether it does or not."""
    from ckptfs.mount.daemon import metrics

    metrics.require_client()
    told = {"served": False, "directory": absolute(directory), "alarms": unserved(directory)}
    status = {"served": True, **found} if found is not None else told
    click.echo(metrics.text(lambda: status), nl=False)


def _address(_context: click.Context, _option: click.Parameter, given: str) -> str:
    """As HOST:PORT; empty for none."""
    from ckptfs.mount.daemon import metrics

    if given in ("", "off"):
        return ""
    try:
        host, port = metrics.address(given if given != _DEFAULT else str(metrics.PORT))
    except ValueError as error:
        raise click.BadParameter(f"{error}; a DIRECTORY goes ahead of --metrics") from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_DEFAULT = "default"
metrics_option = click.option(
    "--metrics",
    is_flag=False,
    flag_value=_DEFAULT,
    default="",
    callback=_address,
    metavar="[ADDRESS]",
    help="Serve metrics for Prometheus at PORT or HOST:PORT (127.0.0.1:9934).",
)


on_event_option = click.option(
    "--on-event",
    default="",
    metavar="COMMAND",
    help="Run by /bin/sh for rollbacks, failures and low space; CKPTFS_EVENT, CKPTFS_PATH, "
    "CKPTFS_DETAIL, CKPTFS_DIRECTORY and CKPTFS_MOUNTPOINT tell of what.",
)


@commands.command()
@click.argument("directory")
def ack(directory: str) -> None:
    """Say that you have looked at the alarms of DIRECTORY: `status --check` is 0 again.

    Prints them once more. What somebody must mend, such as a disk that is nearly full, stays.
    """
    below = Below(directory)
    if below.served is not None:
        from ckptfs.mount.operations import commands as mount_commands

        alarms = below.served.get("alarms", [])
        if alarms:
            mount_commands.ack(below.served_at, _latest(alarms))
    else:
        layout = below.needed_layout()
        layout.lock.take(below.where)  # no daemon begins meanwhile
        kept = Alarms(layout)
        alarms = kept.told()
        kept.ack()
    for alarm in alarms:
        say(_told(alarm))
    say(f"{directory}: {_counted(alarms)} taken back")


def _latest(alarms: Iterable[_Alarm]) -> int:
    """Those that came since they were read stay."""
    return max(int(alarm["number"]) for alarm in alarms)
