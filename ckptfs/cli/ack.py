"""``ckptfs ack``."""

from __future__ import annotations

from collections.abc import Iterable

import click

from ckptfs.cli.alarms_told import Alarm, counted, told
from ckptfs.cli.below import Below
from ckptfs.cli.printing import say
from ckptfs.telling.alarms import Alarms


@click.command()
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
        say(told(alarm))
    say(f"{directory}: {counted(alarms)} taken back")


def _latest(alarms: Iterable[Alarm]) -> int:
    """Those that came since they were read stay."""
    return max(int(alarm["number"]) for alarm in alarms)
