"""``ckptfs resume``, which no user types."""

from __future__ import annotations

import click

from ckptfs.cli.arguments import filesystem


@click.command(hidden=True)
@click.argument("directory")
@click.argument("state", type=int)
@click.option("--try", "only_try", is_flag=True)
@click.pass_context
def resume(context: click.Context, /, directory: str, state: int, only_try: bool) -> None:
    """What a daemon becomes by `restart`; of no use to anybody else."""
    from ckptfs.mount.daemon.resuming import resume as go_on

    go_on(state, *filesystem(context), only_try=only_try)
