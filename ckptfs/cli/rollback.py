"""``ckptfs rollback``."""

from __future__ import annotations

import click

from ckptfs.cli.alone import opened_store
from ckptfs.cli.below import Below, top_of
from ckptfs.cli.printing import say
from ckptfs.errors import NoSuchGeneration, UsageError


@click.command()
@click.argument("directory")
@click.argument("path", required=False)
@click.option("--to", type=int, default=None, metavar="GENERATION", help="Which; see `ckptfs log`.")
def rollback(directory: str, path: str | None, to: int | None) -> None:
    """Bring an earlier version of PATH back: the newest good one that is kept, or GENERATION.

    What stands there now is kept as a version itself. Works through a mount while it is served;
    who has the file open keeps what was opened. `rollback DIRECTORY/PATH` is the same.
    """
    if path is None:
        directory, path = top_of(directory)
        if not path:
            raise UsageError(
                f"which file of {directory}? `ckptfs log {directory} PATH` shows its versions"
            )
    below = Below(directory)
    below.needed_layout()
    inside = below.relative(path)
    if below.served is not None:
        from ckptfs.mount.operations import commands as mount_commands

        try:
            mount_commands.rollback(below.served_at, inside, to)
        except OSError as error:
            raise NoSuchGeneration(
                f"{inside}: {error.strerror}; `ckptfs log {directory} {inside}` shows what is kept"
            ) from None
        say(f"{inside}: rolled back")
        return
    with opened_store(below) as store:
        say(f"{inside}: rolled back to generation {store.history.rollback(inside, to)}")
