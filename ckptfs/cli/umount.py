"""``ckptfs umount``."""

from __future__ import annotations

import click

from ckptfs.cli.arguments import seconds
from ckptfs.cli.below import absolute
from ckptfs.cli.printing import say


@click.command()
@click.argument("directory")
@click.option(
    "--timeout",
    "timeout_s",
    callback=seconds,
    metavar="TIME",
    help="Wait at most this long: while it is used (default: 5s), and for commits (until done).",
)
@click.option("--force", is_flag=True, help="Then take it away, and end its daemon.")
@click.option(
    "--release",
    is_flag=True,
    help="Detach it though it is used: open files are served until they are closed, later saves go "
    "to the plain directory.",
)
def umount(directory: str, timeout_s: float | None, force: bool, release: bool) -> None:
    """End the mount of DIRECTORY; returns once every commit in flight is finished.

    While programs use it, another mount or mount namespace keeps it, or its daemon does not answer,
    it stays, and the exit code is 1. With --force they get an error then, and what was being
    written goes to salvage.
    """
    from ckptfs.mount.daemon import ending

    where = absolute(directory)
    if release:
        ending.release(where)
    else:
        ending.umount(where, timeout_s, force=force, say=lambda line: say(line, err=True))
