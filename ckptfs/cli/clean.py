"""``ckptfs clean``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

import click

from ckptfs.cli.alone import opened_store
from ckptfs.cli.arguments import byte_count, seconds
from ckptfs.cli.aside import entry_of
from ckptfs.cli.below import Below
from ckptfs.cli.printing import say, size, when
from ckptfs.disk import osfs
from ckptfs.errors import CannotServe, UsageError
from ckptfs.records.layout import Layout
from ckptfs.room.expendable import ASIDE, Expendable, Item, Kind, folder_of, item_of, to_look_at


@click.command()
@click.argument("directory")
@click.argument("entries", nargs=-1, metavar="[ENTRY]...")
@click.option("--salvage", "of_salvage", is_flag=True, help="Bytes that were never published.")
@click.option("--quarantine", "of_quarantine", is_flag=True, help="Damaged versions.")
@click.option("--history", "of_history", is_flag=True, help="Versions older than a good one.")
@click.option("--older-than", callback=seconds, metavar="TIME", help="Only these: 12h, 7d…")
@click.option("--down-to", callback=byte_count, metavar="SIZE", help="Only until so much is left.")
@click.option("--dry-run", "-n", is_flag=True, help="Say what would go; change nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def clean(
    directory: str,
    entries: tuple[str, ...],
    of_salvage: bool,
    of_quarantine: bool,
    of_history: bool,
    older_than: float | None,
    down_to: int | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Let go of what was set aside: salvage and quarantine, if nothing else is chosen.

    Says first what would go, and asks. The oldest goes first. Of every file the last good version
    stays, and what lies in quarantine of a file that has none; an ENTRY that is named goes anyhow.
    Works through a mount while it is served.
    """
    chosen = {
        Kind.SALVAGE: of_salvage,
        Kind.QUARANTINE: of_quarantine,
        Kind.HISTORY: of_history,
    }
    kinds = [kind for kind, is_chosen in chosen.items() if is_chosen]
    below = Below(directory)
    layout = below.needed_layout()
    if entries and (kinds or older_than is not None or down_to is not None):
        raise UsageError("name entries, or choose classes: one or the other")
    if entries:
        found = [entry_of(layout, directory, entry) for entry in entries]
        going = [item_of(Kind(story["kind"]), story) for story in found]
    else:
        plan = _Plan(to_look_at(layout), kinds or ASIDE)
        going = plan.going(older_than, down_to)
        for line in plan.staying:
            say(line)
    for line in _summary(going):
        say(line)
    if not going:
        say(f"{directory}: nothing to let go of")
        return
    if dry_run:
        return
    if not yes:
        click.confirm("let go of that?", abort=True)
    gone = _let_go(below, going)
    say(f"{directory}: {_amount(gone)} let go of")
    if len(gone) < len(going):
        say(f"{len(going) - len(gone)} are in use, or not expendable any more", err=True)
        sys.exit(1)


class _Plan:
    """What of these classes goes, and why some of it does not."""

    def __init__(self, expendable: Expendable, kinds: Sequence[Kind]) -> None:
        self._judged = expendable.judged()
        self._items = [item for kind in kinds for item in expendable.of(kind)]
        self.staying: list[str] = []

    def going(self, older_than_s: float | None, down_to: int | None) -> list[Item]:
        now_ns, left = time.time_ns(), sum(item.size_bytes for item in self._items)
        going, only = list[Item](), list[Item]()
        for item in self._items:
            if down_to is not None and left <= down_to:
                break
            if older_than_s is not None and item.time_ns > now_ns - older_than_s * 1e9:
                continue
            if item.kind is Kind.HISTORY and not item.freed_bytes:
                continue  # it has another name, or shares all that it has
            if self._judged.may_go(item):
                going.append(item)
                left -= item.size_bytes
            elif item.kind is Kind.QUARANTINE:
                only.append(item)
        self.staying = [
            f"stays: quarantine/{item.name}  {item.path or '?'} has no good version"
            for item in only
        ]
        return going


def _summary(going: Iterable[Item]) -> Iterator[str]:
    """A class a line."""
    for kind in Kind:
        items = [item for item in going if item.kind is kind]
        if items:
            oldest = when(min(item.time_ns for item in items))
            newest = when(max(item.time_ns for item in items))
            yield f"  {kind.value:10}  {_amount(items)}, of {oldest} to {newest}"


def _amount(items: Sequence[Item]) -> str:
    noun = "file" if len(items) == 1 else "files"
    return f"{len(items)} {noun}, {size(sum(item.freed_bytes for item in items))}"


def _let_go(below: Below, going: list[Item]) -> list[Item]:
    """Returns what is gone by that."""
    if below.served is None:
        with opened_store(below) as store:
            return store.room.clean(going)
    from ckptfs.mount.operations import commands as mount_commands

    try:
        mount_commands.clean(below.served_at, [item.told for item in going])
    except OSError as error:
        raise CannotServe(f"{below.where}: the mount says: {error.strerror}") from None
    return [item for item in going if not _is_there(below.needed_layout(), item)]


def _is_there(layout: Layout, item: Item) -> bool:
    with (
        contextlib.suppress(FileNotFoundError),
        osfs.place(layout.fs, folder_of(layout, item.kind), item.name) as (at, name),
    ):
        layout.fs.lstat(at, name)
        return True
    return False
