"""``ckptfs log``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import click

from ckptfs.cli.below import Below, top_of
from ckptfs.cli.printing import say, size, when
from ckptfs.disk import osfs
from ckptfs.errors import CannotServe
from ckptfs.history import earlier
from ckptfs.history.lineages import Lineages
from ckptfs.records.format import Record
from ckptfs.records.layout import Layout


@click.command()
@click.argument("directory")
@click.argument("path", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def log(directory: str, path: str | None, as_json: bool) -> None:
    """The generations of PATH, or what lies in salvage and quarantine.

    `log DIRECTORY/PATH` is the same.
    """
    if path is None:
        directory, inside = top_of(directory)
        path = inside or None
    below = Below(directory)
    layout = below.needed_layout()
    if path is not None:
        rows = _generations(below, layout, below.relative(path))
    else:
        rows = _set_aside(layout)
    for row, line in rows:
        if as_json:
            click.echo(json.dumps(row))
        else:
            say(line)


_Rows = Iterator[tuple[dict[str, object], str]]  # what JSON tells, and what people are told


def _set_aside(layout: Layout) -> _Rows:
    for folder, what in ((layout.quarantine, "quarantine"), (layout.salvage, "salvage")):
        for entry in layout.aside.entries(folder):
            time, where = when(int(str(entry["time_ns"]))), f"{what}/{entry['id']}"
            why = f"{entry.get('path') or '?'}: {entry.get('reason', '')}"
            row = {"kind": what, **entry}
            yield row, f"{time}  {where}  {entry['size']} bytes  {why}"


def _generations(below: Below, layout: Layout, path: str) -> _Rows:
    """The file as it is, then its earlier versions."""
    record: Record | None = None
    try:
        with osfs.place(below.fs, below.root, path) as (at, name):
            status = below.fs.lstat(at, name)
            lineage = Lineages(layout).readable(at, name, path)
            if osfs.is_regular(status):
                with osfs.opened(below.fs, at, name, osfs.O_RDONLY) as fd:
                    record = layout.read_record(fd)
                told = _told_of(path, record)
            elif lineage:
                told = f"{path}: something else than a file by now"
            else:
                raise CannotServe(f"{path}: not a file; only files have generations")
    except FileNotFoundError:
        lineage = earlier.lineages_by_path(layout).get(path, "")
        if not lineage:
            raise
        told = f"{path}: not there any more"
    yield {"kind": "current", "path": path, **_row(record)}, told
    for generation in earlier.generations(layout, lineage):
        old = earlier.record_of(layout, lineage, generation)
        line = _log_line(old) if old else f"generation {generation}  unrecorded"
        row = {"kind": "kept", "path": path, "generation": generation, **_row(old)}
        yield row, f"{line}{_space_of(layout, lineage, generation)}"


def _row(record: Record | None) -> dict[str, object]:
    if record is None:
        return {"digest": None}
    return {
        "generation": record.generation,
        "time_ns": record.committed_ns,
        "size": record.size_bytes,
        "digest": record.digest,
        "mode": record.mode.value,
        "structure": record.structure,
    }


def _told_of(path: str, record: Record | None) -> str:
    if record is None:
        return f"{path}: no record (written in place, or there before ckptfs)"
    return f"{_log_line(record)}  current, {record.mode.value}, {record.structure}"


def _space_of(layout: Layout, lineage: str, generation: int) -> str:
    """What letting go of it would free."""
    with (
        contextlib.suppress(OSError),
        osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder,
        osfs.opened(layout.fs, folder, str(generation), osfs.O_RDONLY) as fd,
    ):
        if layout.fs.stat(fd).st_nlink == 1:
            return f"  {size(layout.fs.exclusive_bytes(fd))} of its own"
    return "  nothing of its own"


def _log_line(record: Record) -> str:
    made = when(record.committed_ns)
    return f"generation {record.generation}  {made}  {record.size_bytes} bytes  {record.digest}"
