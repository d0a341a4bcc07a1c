"""``ckptfs strip``."""

from __future__ import annotations

import click

from ckptfs.cli.alone import opened_store
from ckptfs.cli.below import Below
from ckptfs.cli.printing import say
from ckptfs.errors import CannotServe
from ckptfs.upkeep import adoption
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope


@click.command()
@click.argument("directory")
@click.option("--yes", is_flag=True, help="Do not ask.")
def strip(directory: str, yes: bool) -> None:
    """Leave ckptfs: take the records off and remove DIRECTORY/.ckptfs, with all earlier versions.

    The files themselves stay as they are.
    """
    below = Below(directory)
    layout = below.needed_layout()
    if below.served is not None:
        raise CannotServe(f"{directory}: mounted; `ckptfs umount {directory}` first")
    aside = [*layout.aside.entries(layout.salvage), *layout.aside.entries(layout.quarantine)]
    kept = sum(1 for _ in Check(layout, Scope(quick=True)).kept())
    if not yes:
        click.confirm(
            f"remove {kept} earlier versions, and {len(aside)} files in salvage and quarantine?",
            abort=True,
        )
    with opened_store(below) as store:
        count = sum(1 for _ in adoption.strip(store.layout))
    say(f"{directory}: {count} records taken off; these are plain files now")
