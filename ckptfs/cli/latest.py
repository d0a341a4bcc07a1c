"""``ckptfs latest``."""

from __future__ import annotations

import posixpath
import sys

import click

from ckptfs.cli.below import Below
from ckptfs.cli.printing import say
from ckptfs.sets import manifest as manifests
from ckptfs.sets import resume

_NONE = 1


@click.command()
@click.argument("directory")
@click.option("--series", metavar="PATTERN", help="Of this one only, as `runs/a/checkpoint-*`.")
@click.option(
    "--unmarked", is_flag=True, help="Also those of which nothing says they are complete."
)
def latest(directory: str, series: str | None, unmarked: bool) -> None:
    """Print the path of the newest complete checkpoint, every file of it verified now.

    Newer ones that are not whole are named on stderr. The exit code is 1 where there is none.
    """
    below = Below(directory)
    layout = below.needed_layout()
    states = {"complete", "unmarked"} if unmarked else {"complete"}
    found = resume.latest(
        layout,
        [
            each
            for each in manifests.all_of(layout)
            if each.state in states and series in (None, each.series)
        ],
        lambda each, wrong: say(f"not whole: {each.path}: {wrong}", err=True),
    )
    if found is None:
        say(f"ckptfs: {directory}: no complete checkpoint; see `ckptfs sets {directory}`", err=True)
        sys.exit(_NONE)
    click.echo(posixpath.join(below.served_at or below.where, found.path))
