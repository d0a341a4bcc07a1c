"""``ckptfs doctor``."""

from __future__ import annotations

import sys

import click

from ckptfs.cli.below import absolute
from ckptfs.cli.printing import say
from ckptfs.errors import CannotServe


@click.command()
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
