"""``ckptfs adopt``."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator

import click

from ckptfs.checking.examine import Condition, Finding, Subject
from ckptfs.checking.remedy import acceptance
from ckptfs.cli import asking
from ckptfs.cli.alone import opened_store
from ckptfs.cli.below import Below, top_of
from ckptfs.cli.printing import say
from ckptfs.cli.report import LEFT
from ckptfs.disk import osfs
from ckptfs.disk.digest import ALGORITHMS
from ckptfs.errors import CannotServe, NoSuchGeneration, UsageError
from ckptfs.history import earlier
from ckptfs.records.layout import Layout
from ckptfs.upkeep import adoption, carry_out
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope


@click.command()
@click.argument("directory")
@click.argument("paths", nargs=-1)
@click.option("--from", "sums", metavar="FILE", help="Only what agrees with this list of digests.")
@click.option("--quarantined", is_flag=True, help="What was put into quarantine of the PATHS.")
@click.option("--checksum", type=click.Choice(ALGORITHMS), default="blake3", show_default=True)
def adopt(
    directory: str, paths: tuple[str, ...], sums: str | None, quarantined: bool, checksum: str
) -> None:
    """Take DIRECTORY, or the PATHS in it, as it is: record the files that have no record or were
    edited outside, and let go of the history of those that were deleted.

    --quarantined makes what was last taken for damage at each PATH its version again; what stands
    there now is kept as an earlier one.

    FILE is what `b3sum` or `sha256sum` printed in DIRECTORY; what differs from it is not adopted.
    The exit code is 4 then.
    """
    directory, inside = top_of(directory)
    paths = (inside, *paths) if inside else paths
    below = Below(directory)
    if quarantined:
        _take_back(below, directory, paths, checksum)
        return
    listed = _listed(sums) if sums else {}
    named = {below.relative(path) for path in paths}
    done = wrong = 0
    lost = False  # a record, so that the history of that path is another file's
    with _adopter(below, checksum) as (take, tidy):
        layout = below.needed_layout()
        scope = Scope(tuple(named or listed), quick=True, served=below.served is not None)
        for finding in Check(layout, scope).findings():
            if finding.subject is not Subject.FILE:
                continue
            trouble = _disagreement(layout, finding, listed) if sums else ""
            if trouble:
                wrong += 1
                say(f"{finding.path}: {trouble}", err=True)
            else:
                done += take(finding)
                lost |= finding.condition is Condition.RECORD_MISSING
        if lost:
            tidy()
    say(f"{directory}: {done} adopted" + (f", {wrong} not" if wrong else ""))
    sys.exit(LEFT if wrong else 0)


def _take_back(below: Below, directory: str, paths: tuple[str, ...], checksum: str) -> None:
    below.needed_layout()
    if not paths:
        raise UsageError("--quarantined needs a PATH; `ckptfs log` lists what is in quarantine")
    for path in map(below.relative, paths):
        if below.served is None:
            with opened_store(below, checksum) as store:
                store.history.take_back(path)
        else:
            _ask_to_take_back(below, directory, path)
        say(f"{path}: taken back from quarantine")


def _ask_to_take_back(below: Below, directory: str, path: str) -> None:
    from ckptfs.mount.operations import commands as mount_commands

    try:
        mount_commands.take_back(below.served_at, path)
    except OSError as error:
        if error.errno == errno.ENODATA:
            raise NoSuchGeneration(f"{path}: nothing of it lies in quarantine") from None
        raise CannotServe(f"{path}: {error.strerror}") from None


def _listed(file: str) -> dict[str, str]:
    """The digests by path. The name of the list says what lines without a tag are."""
    try:
        text = osfs.read_text(file)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    algorithm = "sha256" if "sha256" in file.rpartition("/")[2].lower() else "blake3"
    return {line.path: line.digest for line in adoption.parse_sums(text, algorithm)}


def _disagreement(layout: Layout, finding: Finding, listed: dict[str, str]) -> str:
    if finding.path not in listed:
        return "not in the list"
    if finding.condition is Condition.MISSING:
        return "in the list, but not there"
    wanted = listed[finding.path]
    found = adoption.digest_of(layout, finding.path, wanted.partition(":")[0])
    return "" if found == wanted else f"differs from the list: {found}"


@contextlib.contextmanager
def _adopter(
    below: Below, checksum: str
) -> Iterator[tuple[Callable[[Finding], bool], Callable[[], object]]]:
    """What takes a finding as it is, and says whether there was something to take; and what looks
    for history that belongs to nothing any more."""
    if below.served is not None:
        from ckptfs.mount.operations import commands as mount_commands

        yield (
            lambda finding: asking.accept(below.served_at, finding, acceptance(finding)),
            lambda: mount_commands.tidy(below.served_at),
        )
        return
    with opened_store(below, checksum) as store:
        known = earlier.lineages_by_path(store.layout)
        yield (
            lambda finding: carry_out.accept(store, finding, acceptance(finding), known),
            store.history.tidy,
        )
