"""``ckptfs mount``."""

from __future__ import annotations

from typing import Any

import click

from ckptfs.cli.arguments import filesystem
from ckptfs.cli.mount_options import OPTIONS, mount_options


@click.command()
@click.argument("directory")
@click.argument("mountpoint", required=False)
@click.pass_context
def mount(context: click.Context, /, directory: str, mountpoint: str | None, **given: Any) -> None:
    """Serve DIRECTORY over itself, or at MOUNTPOINT. Returns once it is served."""
    from ckptfs.mount.daemon.start import mount as start

    start(mount_options(directory, mountpoint, given), *filesystem(context))


mount.params += OPTIONS
