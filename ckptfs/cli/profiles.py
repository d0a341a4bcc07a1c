"""``ckptfs profiles``."""

from __future__ import annotations

import click

from ckptfs.cli.printing import say
from ckptfs.sets.profiles import Profile, Profiles

_HEAD = ("profile", "read in", "directory", "complete by")


@click.command()
@click.option("--profiles", "extra", metavar="FILE", help="Yours, which go first. Checks it, too.")
def profiles(extra: str | None) -> None:
    """List how frameworks write checkpoints of several files, as ckptfs knows them.

    For each: in the source of which version it was read, the names of its directories, and what
    says that one is complete, once all of its files are there.
    """
    rows = [_HEAD, *map(_row, Profiles.load(extra).all)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join(padded).rstrip())


def _row(profile: Profile) -> tuple[str, ...]:
    directory = " or ".join(profile.directory) or "none of its own"
    marker = " or ".join(map(str, profile.markers)) or "what the one before it had"
    return profile.name, profile.read, directory, marker
