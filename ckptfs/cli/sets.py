"""``ckptfs sets``."""

from __future__ import annotations

import json
import time

import click

from ckptfs.cli.below import Below
from ckptfs.cli.printing import say, size, when
from ckptfs.sets import manifest as manifests
from ckptfs.sets import resume
from ckptfs.sets.manifest import Manifest


@click.command()
@click.argument("directory")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def sets(directory: str, as_json: bool) -> None:
    """List the checkpoints of several files that were published as a whole, the oldest first.

    No byte is read: `ckptfs latest` verifies, and so does `ckptfs verify`.
    """
    below = Below(directory)
    layout = below.needed_layout()
    listed = list(resume.shown(layout, manifests.all_of(layout)))
    for found, wrong in listed:
        click.echo(json.dumps(_row(found, wrong))) if as_json else say(_line(found, wrong))
    for path in (below.served or {}).get("sets", []):
        if as_json:
            click.echo(json.dumps({"path": path, "state": "open"}))
        else:
            say(f"open      {path}: is being written")
    if not listed and not as_json:
        say(f"{directory}: no set was published here; `ckptfs profiles` tells what is one")


def _row(found: Manifest, wrong: str) -> dict[str, object]:
    return {
        "path": found.path,
        "state": found.state,
        "wrong": wrong or None,
        "profile": found.profile,
        "step": found.step,
        "files": len(found.files),
        "size": found.size_bytes,
        "digest": found.digest,
        "time_ns": found.committed_ns,
        "age_s": round(time.time() - found.committed_ns / 1e9, 3),
    }


def _line(found: Manifest, wrong: str) -> str:
    what = f"{len(found.files)} files, {size(found.size_bytes)}, {when(found.committed_ns)}"
    told = f"; {wrong}" if wrong else ""
    return f"{found.state:9} {found.path}  step {found.step}  {what}  {found.profile}{told}"
