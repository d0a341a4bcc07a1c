"""``verify``, ``log``."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import click

from ckptfs.checking.examine import BAD, ROTTEN, Condition, Finding
from ckptfs.cli.base import Below, Progress, commands, say, size, status_of, top_of, when
from ckptfs.disk import osfs
from ckptfs.errors import CannotServe, CkptfsError, UsageError
from ckptfs.history import earlier
from ckptfs.history.lineages import Lineages
from ckptfs.modes import Outside
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.records.layout import Layout
from ckptfs.records.walk import walk
from ckptfs.store import Store, keeping_all
from ckptfs.upkeep import fsck
from ckptfs.upkeep.fsck import Check, Scope

SCHEMA = 1  # of what --json prints: docs/verify.schema.json
REPAIRED, LEFT = 1, 4  # exit codes
Mend = Callable[[Finding], Finding]


@commands.command()
@click.argument("directory")
@click.argument("paths", nargs=-1)
@click.option("--repair", is_flag=True, help="Roll damaged files back to their last good version.")
@click.option("-n", "only_report", is_flag=True, help="Change nothing (what is done anyhow).")
@click.option("--quick", is_flag=True, help="Records, sizes and times only; no bytes are read.")
@click.option("--subset", default="1/1", metavar="N/M", help="Read one of M parts of the files.")
@click.option("--direct", is_flag=True, help="Read past the page cache, from the disk.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, then a summary.")
@click.option("--jobs", "-j", type=click.IntRange(1), default=None, help="Files read at once.")
@click.option("--quiet", is_flag=True, help="Only what is wrong.")
@click.option(
    "--outside",
    type=click.Choice([outside.value for outside in Outside]),
    default=None,
    help="What a change behind ckptfs is: see `ckptfs mount`, whose choice is the default.",
)
def verify(
    directory: str,
    paths: tuple[str, ...],
    repair: bool,
    only_report: bool,
    quick: bool,
    subset: str,
    direct: bool,
    as_json: bool,
    jobs: int | None,
    quiet: bool,
    outside: str | None,
) -> None:
    """Check every file of DIRECTORY, or the PATHS in it, against its record, and its history.

    A folder stands for all that is in it, and all that history knows there: files that are
    missing are found, and --repair of PATHS brings them back.

    Works with and without a mount, also while it is written. Exit codes as fsck(8): 0 clean, 1
    repaired, 4 damage left, 8 could not run, 16 usage.
    """
    if repair and only_report:
        raise UsageError("--repair and -n: one or the other")
    directory, inside = top_of(directory)
    paths = (inside, *paths) if inside else paths
    below = Below(directory)
    layout = below.needed_layout()
    part, parts = _part(subset)
    scope = Scope(
        paths=tuple(map(below.inside, paths)),
        jobs=jobs or osfs.cpu_count(),
        quick=quick,
        direct=direct,
        part=part,
        parts=parts,
        outside=_policy(below, outside),
        served=below.served is not None,
    )
    report = _Report(directory, as_json, quiet, repair)
    total = 0 if quiet or as_json else _bytes_to_read(layout, scope)
    check = Check(layout, scope)
    with (
        Progress(total, quiet or as_json) as advance,
        _mender(below, check, repair) as (mend, cleared),
    ):
        for finding in cleared:
            report.add(finding)
        for finding in check.findings():
            report.add(mend(_unless_written(below, finding)))
            advance(finding.size_bytes)
    report.end(check)
    sys.exit(LEFT if report.left else REPAIRED if report.repaired else 0)


def _policy(below: Below, given: str | None) -> Outside:
    """That of the mount, unless another is asked for."""
    served = status_of(below.where) if below.served is not None else None
    return Outside(given or (served or {}).get("outside", Outside.JUDGE.value))


def _part(subset: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", subset)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--subset {subset}: not a part, such as 1/7 to 7/7")
    return int(match[1]), int(match[2])


def _bytes_to_read(layout: Layout, scope: Scope) -> int:
    if scope.paths or not Progress.wanted():
        return 0
    found = walk(layout.fs, layout.root)
    return sum(status.st_size for path, status in found if status and scope.reads(path))


@contextlib.contextmanager
def _mender(below: Below, check: Check, repair: bool) -> Iterator[tuple[Mend, list[Finding]]]:
    """How a finding is seen to, and what was seen to by beginning."""
    if not repair:
        yield (lambda finding: finding), []
        return
    if below.served is not None:
        yield (lambda finding: _ask_the_mount(below, check, finding)), []
        return
    leftovers = list(check.leftovers()) if check.whole else []
    store = Store.open(below.where, keeping_all())  # clears them

    def mend(finding: Finding) -> Finding:
        try:
            return fsck.repair(store, finding, asked_for=check.asked_for(finding.path))
        except (CkptfsError, OSError) as error:
            return replace(finding, detail=str(error))

    try:
        yield mend, [replace(finding, repair="cleared") for finding in leftovers]
    finally:
        store.close()


def _ask_the_mount(below: Below, check: Check, finding: Finding) -> Finding:
    from ckptfs.mount.operations import commands as mount_commands

    asked_for = check.asked_for(finding.path)
    try:
        if finding.condition in ROTTEN and fsck.generation_of(finding.path):
            mount_commands.set_aside(below.served_at, finding.path)
        elif finding.condition in ROTTEN:
            mount_commands.check(below.served_at, finding.path)
        elif finding.condition is Condition.UNREACHABLE:
            if check.again(finding.path).condition is not Condition.MISSING:  # all at once
                mount_commands.tidy(below.served_at)
        elif finding.condition is Condition.MISSING and asked_for:
            mount_commands.restore(below.served_at, finding.path)
        else:
            return finding
    except OSError as error:
        return replace(finding, detail=f"{finding.detail}; the mount says: {error.strerror}")
    if check.again(finding.path).condition in ROTTEN:
        return replace(finding, detail=f"{finding.detail}; the mount found nothing to repair")
    # Of damage that the mount has not only recorded anew.
    replaced = finding.condition in ROTTEN and not finding.proven
    return replace(finding, repair="seen to by the mount", replaced=replaced)


def _unless_written(below: Below, finding: Finding) -> Finding:
    """What is written where it stands is behind its record without being changed outside."""
    if finding.touched and below.served is not None:
        now = status_of(below.where)
        if now and finding.path in now["writing"]:
            return replace(finding, condition=Condition.BUSY, detail="is being written")
    return finding


@dataclass
class _Report:
    directory: str
    as_json: bool
    quiet: bool
    repairing: bool
    counts: Counter[Condition] = field(default_factory=Counter)
    kept: Counter[Condition] = field(default_factory=Counter)  # of earlier versions
    remain: Counter[Condition] = field(default_factory=Counter)  # of both, not repaired
    left: int = 0
    repaired: int = 0
    set_aside: int = 0  # of the repaired, what lies in quarantine by now
    size_bytes: int = 0

    def add(self, finding: Finding) -> None:
        counts = self.kept if fsck.generation_of(finding.path) else self.counts
        counts[finding.condition] += 1
        self.size_bytes += finding.size_bytes
        if finding.repair:
            self.repaired += 1
            self.set_aside += finding.replaced and not fsck.generation_of(finding.path)
        else:
            self.remain[finding.condition] += 1
            self.left += finding.condition in BAD
        if self.as_json:
            click.echo(json.dumps(as_row(finding)))
        elif finding.condition not in (Condition.OK, Condition.UNREAD) and (
            finding.condition in BAD or finding.repair or not self.quiet
        ):
            detail = f": {finding.detail}" if finding.detail else ""
            done = f" [{finding.repair}]" if finding.repair else ""
            say(f"{finding.condition.value:15} {finding.path}{detail}{done}")

    def end(self, check: Check) -> None:
        if self.as_json:
            row = {
                "schema": SCHEMA,
                "files": check.files,
                "summary": _by_name(self.counts),
                "generations": check.generations,
                "history": _by_name(self.kept),
                "bytes": self.size_bytes,
                "repaired": self.repaired,
                "left": self.left,
                "others": check.others,
            }
            click.echo(json.dumps(row))
        elif not self.quiet or self.left:
            line = f"{self.directory}: {check.files} files checked: {_told(self.counts)}"
            if check.generations:
                line += f"; {check.generations} earlier versions: {_told(self.kept)}"
            say(line)
            for other in check.others:
                say(f"{other}: a ckptfs directory itself, not looked at: verify it by itself")
            for line in self._advice():
                say(line)

    def _advice(self) -> Iterator[str]:
        """What to do next."""
        where, counts = self.directory, self.remain
        if any(counts[condition] for condition in ROTTEN):
            if not self.repairing:
                yield f"`ckptfs verify --repair {where}` rolls back what is damaged"
            else:
                yield "of what is left no good version is known: restore it from a copy"
        if self.set_aside:
            yield (
                f"`ckptfs adopt {where} PATH --quarantined` takes back what was at PATH, if it was "
                "no damage"
            )
        if counts[Condition.MISSING] or counts[Condition.RECORD_MISSING]:
            yield (
                f"`ckptfs verify --repair {where} PATH` brings back what is missing at or below "
                f"PATH, `ckptfs adopt {where}` takes things as they are"
            )
        elif counts[Condition.MODIFIED] or counts[Condition.UNRECORDED]:
            yield f"`ckptfs adopt {where}` records what was edited or added outside"
        if counts[Condition.BROKEN]:
            yield "a broken file is as its program left it: `ckptfs log` has earlier versions"
        if counts[Condition.UNREACHABLE] and not self.repairing:
            yield f"`ckptfs verify --repair {where}` lets go of what is unreachable"
        if counts[Condition.MISPLACED]:
            yield (
                f"the next `ckptfs mount {where}` puts directories of history back that were "
                "swapped; a single file belongs into the directory of the lineage that it names"
            )
        if counts[Condition.LEFTOVER] and not self.repairing:
            yield f"the next `ckptfs mount {where}` clears what a crash left"
        if counts[Condition.STRAY]:
            yield f"what is stray is not of ckptfs and is left alone: move it out of {fmt.CONTROL}"


def _by_name(counts: Counter[Condition]) -> dict[str, int]:
    return dict(sorted((condition.value, count) for condition, count in counts.items()))


def _told(counts: Counter[Condition]) -> str:
    return ", ".join(f"{count} {name}" for name, count in _by_name(counts).items()) or "nothing"


def as_row(finding: Finding) -> dict[str, object]:
    record = finding.record
    kind = "file"
    if finding.path.startswith(f"{fmt.CONTROL}/"):
        kind = "generation" if fsck.generation_of(finding.path) else "control"
    return {
        "kind": kind,
        "path": finding.path,
        "condition": finding.condition.value,
        "size": finding.size_bytes,
        "digest": record.digest if record else None,
        "generation": record.generation if record else None,
        "structure": record.structure if record else None,
        "detail": finding.detail,
        "ranges": [list(pair) for pair in finding.ranges],
        "repair": finding.repair,
    }


# --- log -----------------------------------------------------------------------------------------


@commands.command()
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
