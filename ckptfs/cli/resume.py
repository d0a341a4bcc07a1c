"""``ckptfs resume``, which no user types."""

from __future__ import annotations

import click


@click.command(hidden=True)
@click.argument("directory")
@click.argument("state", type=int)
@click.option("--try", "only_try", is_flag=True)
def resume(directory: str, state: int, only_try: bool) -> None:
    """What a daemon becomes by `restart`; of no use to anybody else."""
    from ckptfs.mount.daemon.resuming import resume as go_on

    go_on(state, only_try=only_try)
