"""``ckptfs export-sums``."""

from __future__ import annotations

import sys

import click

from ckptfs.checking.examine import Condition
from ckptfs.cli.below import Below
from ckptfs.cli.printing import say
from ckptfs.cli.report import LEFT
from ckptfs.disk.digest import ALGORITHMS
from ckptfs.upkeep import adoption
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope


@click.command("export-sums")
@click.argument("directory")
@click.option("--checksum", type=click.Choice(ALGORITHMS), default="blake3", show_default=True)
def export_sums(directory: str, checksum: str) -> None:
    """Print the digests of DIRECTORY's files as `b3sum` or `sha256sum` would, for their --check.

    Taken from the records, where they are of that kind, else read. Files that are not as recorded
    are left out and named on stderr; the exit code is 4 then.
    """
    below = Below(directory)
    layout = below.needed_layout()
    left_out = 0
    for finding in Check(layout, Scope(quick=True, served=below.served is not None)).files_only():
        record = finding.record
        if record is None or finding.condition is not Condition.UNREAD:
            left_out += 1
            say(f"left out: {finding.path}: {finding.condition.value}", err=True)
            continue
        digest = record.digest
        if record.algorithm != checksum:
            digest = adoption.digest_of(layout, finding.path, checksum)
        line = adoption.sums_line(finding.path, digest)
        if sys.stdout.isatty():
            say(line)
        else:
            click.echo(line.encode("utf-8", "surrogateescape"))  # as it is, for b3sum
    sys.exit(LEFT if left_out else 0)
