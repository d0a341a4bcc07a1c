"""``doctor``, ``demo``."""

from __future__ import annotations

import sys

import click

from ckptfs.cli.base import absolute, commands, say
from ckptfs.errors import CannotServe


@commands.command()
@click.argument("directory", default=".")
def doctor(directory: str) -> None:
    """What of this machine and DIRECTORY carries ckptfs, and what to do about the rest."""
    from ckptfs.mount.daemon.doctor import examine

    worst = 0
    for check in examine(absolute(directory)):
        say(f"{check.verdict:5} {check.what}: {check.found}")
        if check.advice:
            say(f"      -> {check.advice}")
        worst = max(worst, CannotServe.exit_code if check.verdict == "FAIL" else 0)
    sys.exit(worst)


@commands.command()
@click.option("--megabytes", type=click.IntRange(1), default=64, help="Size of the checkpoint.")
def demo(megabytes: int) -> None:
    """Train, kill, corrupt and recover in a temporary directory, and show what happens."""
    try:
        from ckptfs.tools.demo.run import run
    except ImportError as error:
        raise CannotServe(f"the demo needs torch: pip install 'ckptfs[torch]' ({error})") from None
    sys.exit(run(megabytes))
