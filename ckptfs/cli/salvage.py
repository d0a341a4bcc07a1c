"""``ckptfs salvage``."""

from __future__ import annotations

import json
from typing import Any

import click

from ckptfs.cli.aside import entry_of, stories
from ckptfs.cli.below import Below
from ckptfs.cli.printing import say, size, when
from ckptfs.disk import osfs
from ckptfs.errors import CannotServe, UsageError
from ckptfs.records.layout import Layout
from ckptfs.room.expendable import ASIDE, Kind, folder_of


@click.command()
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
        story = entry_of(layout, directory, entry)
        _copy_out(layout, story, target)
        say(f"{target}: {size(int(story['size']))} of {story['path'] or 'a file without a name'}")
        return
    kinds = ASIDE if quarantine else (Kind.SALVAGE,)
    found = list(stories(layout, kinds))
    for story in found:
        if as_json:
            click.echo(json.dumps(story))
        else:
            say(_line(story, quarantine))
    if not as_json and not found:
        say(f"{directory}: nothing lies in {' and '.join(kind.value for kind in kinds)}")


def _line(story: dict[str, Any], with_kind: bool) -> str:
    kind = f"  {story['kind']:10}" if with_kind else ""
    about = f"{story['path'] or '?'}: {story['reason']}"
    return f"{story['id']}{kind}  {when(story['time_ns'])}  {size(story['size']):>8}  {about}"


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
