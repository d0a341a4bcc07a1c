"""``ckptfs verify``."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import click

from ckptfs.checking.examine import Condition, Finding
from ckptfs.checking.remedy import Remedy, remedy
from ckptfs.cli import asking
from ckptfs.cli.below import Below, status_of, top_of
from ckptfs.cli.printing import Progress
from ckptfs.cli.report import LEFT, REPAIRED, Report
from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError, UsageError
from ckptfs.modes import Outside
from ckptfs.records.layout import Layout
from ckptfs.records.walk import walk
from ckptfs.store import Store, keeping_all
from ckptfs.upkeep.carry_out import mend
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope

Mend = Callable[[Finding], Finding]


@click.command()
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
    report = Report(directory, as_json, quiet, repair)
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
        yield (lambda finding: _asked_for(below, check, finding)), []
        return
    leftovers = list(check.leftovers()) if check.scope.whole else []
    store = Store.open(below.where, keeping_all())  # clears them
    try:
        yield (
            (lambda finding: _mended(store, check, finding)),
            [
                replace(finding, repair=mend(store, finding, remedy(finding)))
                for finding in leftovers
            ],
        )
    finally:
        store.close()


def _wanted(check: Check, finding: Finding) -> Remedy:
    return remedy(finding, asked_for=check.scope.asked_for(finding.path))


def _mended(store: Store, check: Check, finding: Finding) -> Finding:
    try:
        return replace(finding, repair=mend(store, finding, _wanted(check, finding)))
    except (CkptfsError, OSError) as error:
        return replace(finding, detail=str(error))


def _asked_for(below: Below, check: Check, finding: Finding) -> Finding:
    return asking.mend(below.served_at, finding, _wanted(check, finding), check.again)


def _unless_written(below: Below, finding: Finding) -> Finding:
    """What is written where it stands is behind its record without being changed outside."""
    if finding.touched and below.served is not None:
        now = status_of(below.where)
        if now and finding.path in now["writing"]:
            return replace(finding, condition=Condition.BUSY, detail="is being written")
    return finding
