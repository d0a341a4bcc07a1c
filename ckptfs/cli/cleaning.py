"""``salvage``, ``clean``: what was set aside, for people to look at and to let go of."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from ckptfs.checking.opens import Guard
from ckptfs.cli.base import Below, byte_count, commands, say, seconds, size, when
from ckptfs.cli.keeping import opened_store
from ckptfs.disk import osfs
from ckptfs.errors import CannotServe, NoSuchEntry, UsageError
from ckptfs.modes import Mode, Outside
from ckptfs.records.layout import Layout
from ckptfs.room.expendable import ASIDE, Expendable, Item, Kind, folder_of, item_of
from ckptfs.versions.core import Core

_CHUNK_BYTES = 4 << 20


# --- salvage -------------------------------------------------------------------------------------


@commands.command()
@click.argument("directory")
@click.argument("entry", required=False)
@click.option("--quarantine", is_flag=True, help="Also what was rolled back as damaged.")
@click.option("--to", "target", metavar="FILE", help="Copy ENTRY to this new file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def salvage(
    directory: str, entry: str | None, quarantine: bool, target: str | None, as_json: bool
) -> None:
    """List what lies in salvage: bytes of saves that were never published. Or copy one out.

    ENTRY is an id of the list, or the beginning of one; it may be one of quarantine.
    """
    below = Below(directory)
    layout = below.needed_layout()
    if (entry is None) is not (target is None):
        raise UsageError("an ENTRY and --to FILE belong together: what to copy, and where to")
    if entry is not None and target is not None:
        story = _entry(layout, directory, entry)
        _copy_out(layout, story, target)
        say(f"{target}: {size(int(story['size']))} of {story['path'] or 'a file without a name'}")
        return
    kinds = ASIDE if quarantine else (Kind.SALVAGE,)
    found = list(_stories(layout, kinds))
    for story in found:
        if as_json:
            click.echo(json.dumps(story))
        else:
            say(_line(story, quarantine))
    if not as_json and not found:
        say(f"{directory}: nothing lies in {' and '.join(kind.value for kind in kinds)}")


def _stories(layout: Layout, kinds: Iterable[Kind]) -> Iterator[dict[str, Any]]:
    for kind in kinds:
        for story in layout.aside.entries(folder_of(layout, kind)):
            yield {"kind": kind.value, **story}


def _line(story: dict[str, Any], with_kind: bool) -> str:
    kind = f"  {story['kind']:10}" if with_kind else ""
    about = f"{story['path'] or '?'}: {story['reason']}"
    return f"{story['id']}{kind}  {when(story['time_ns'])}  {size(story['size']):>8}  {about}"


def _entry(layout: Layout, directory: str, entry: str) -> dict[str, Any]:
    """By its id, the beginning of one, or as ``ckptfs log`` names it. Raises NoSuchEntry."""
    start = entry.removeprefix("salvage/").removeprefix("quarantine/")
    stories = _stories(layout, ASIDE)
    found = [story for story in stories if start and story["id"].startswith(start)]
    if len(found) != 1:
        which = "several entries begin so" if found else "there is no such entry"
        raise NoSuchEntry(f"{entry}: {which}; see `ckptfs salvage {directory} --quarantine`")
    return found[0]


def _copy_out(layout: Layout, story: dict[str, Any], target: str) -> None:
    """To a file that was not there, whole or not at all; holes stay holes."""
    folder = folder_of(layout, Kind(story["kind"]))
    with osfs.opened(layout.fs, folder, story["id"], osfs.O_RDONLY) as fd:
        try:
            with osfs.new_file(target) as copy:
                layout.fs.copy(fd, copy, 0, layout.fs.stat(fd).st_size)
                layout.fs.copy_times(fd, copy)
        except FileExistsError:
            raise UsageError(f"{target}: is there already; nothing was written") from None
        except OSError as error:
            raise CannotServe(f"{target}: {error.strerror}") from None
    missing = story.get("bytes_missing_at_start")
    if missing:
        said = f"its first {missing} bytes were those of the version it went on from, not written"
        say(f"{target}: {said}", err=True)


# --- clean ---------------------------------------------------------------------------------------


@commands.command()
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
        stories = [_entry(layout, directory, entry) for entry in entries]
        going = [item_of(Kind(story["kind"]), story) for story in stories]
    else:
        plan = _Plan(_expendable(layout), kinds or ASIDE)
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


def _expendable(layout: Layout) -> Expendable:
    """To look only: nothing is changed by it."""
    core = Core(layout, Mode.ATOMIC_DIRSYNC, "blake3", 1 << 30, True)
    return Expendable(Guard(core, Outside.JUDGE))


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
