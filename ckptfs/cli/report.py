"""What ``verify`` tells, to people or as JSON, of which docs/verify.schema.json is the schema."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from ckptfs.checking.examine import BAD, ROTTEN, Condition, Finding
from ckptfs.cli.printing import say
from ckptfs.records import format as fmt
from ckptfs.upkeep.fsck import Check

SCHEMA = 1  # of what --json prints: docs/verify.schema.json
REPAIRED, LEFT = 1, 4  # exit codes


@dataclass
class Report:
    """What a run of ``verify`` says: each finding as it comes, sums and advice at the end."""

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
        counts = self.kept if finding.kept else self.counts
        counts[finding.condition] += 1
        self.size_bytes += finding.size_bytes
        if finding.repair:
            self.repaired += 1
            self.set_aside += finding.replaced and finding.kept is None
        else:
            self.remain[finding.condition] += 1
            self.left += finding.condition in BAD
        if self.as_json:
            click.echo(json.dumps(_as_row(finding)))
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


def _as_row(finding: Finding) -> dict[str, object]:
    record = finding.record
    return {
        "kind": finding.subject.value,
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
