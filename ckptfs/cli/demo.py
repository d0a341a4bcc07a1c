"""``ckptfs demo``."""

from __future__ import annotations

import sys

import click

from ckptfs.errors import CannotServe


@click.command()
@click.option("--megabytes", type=click.IntRange(1), default=64, help="Size of the checkpoint.")
def demo(megabytes: int) -> None:
    """Train, kill, corrupt and recover in a temporary directory, and show what happens."""
    try:
        from ckptfs.tools.demo.run import run
    except ImportError as error:
        raise CannotServe(f"the demo needs torch: pip install 'ckptfs[torch]' ({error})") from None
    sys.exit(run(megabytes))
