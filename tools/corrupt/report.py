"""The rows of a study as a table, a picture, and commands that repeat what fell short."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..harness.study import Row, markdown
from .batch import can_be_noticed, had_good_generation, is_unproven, shortcomings
from .draw import Kind
from .quiet import held
from .worker import LOADERS, noticed

PAPER = "arXiv 2511.18323: SHA-256 guard, 1,600 trials, 99.8-100% noticed, 0 false positives"
NOTHING = "-"
_HEADS = (
    "damage",
    "trials",
    "at open",
    "by verify",
    "noticed",
    "good one served",
    "wrong bytes",
    "no proof",
)


@dataclass(frozen=True)
class Share:
    """``part`` of ``whole``; nothing to say where that is 0."""

    part: int
    whole: int

    @property
    def value(self) -> float | None:
        return self.part / self.whole if self.whole else None

    def __str__(self) -> str:
        """Never rounded up to 100% nor down to 0%."""
        if not self.whole:
            return NOTHING
        percent = 100 * self.part / self.whole
        digits = 0 if self.part in (0, self.whole) else 1
        if digits:
            percent = min(99.9, max(0.1, percent))
        return f"{percent:.{digits}f}%"


@dataclass(frozen=True)
class Line:
    """One kind of damage, or all of them."""

    name: str
    rows: Sequence[Row]

    def share(self, true: Callable[[Row], object], among: Iterable[Row] | None = None) -> Share:
        rows = self.rows if among is None else list(among)
        return Share(sum(bool(true(row)) for row in rows), len(rows))

    @property
    def noticed(self) -> Share:
        rows = (row for row in self.rows if can_be_noticed(row))
        return self.share(lambda row: row["by_open"] or row["by_verify"], rows)

    @property
    def good_served(self) -> Share:
        rows = (row for row in self.rows if had_good_generation(row))
        return self.share(lambda row: row["served"] in ("newest", "older"), rows)

    @property
    def wrong(self) -> Share:
        return self.share(lambda row: row["served"] == "wrong" and not is_unproven(row))

    @property
    def unproven(self) -> Share:
        return self.share(is_unproven)

    def by_loader(self, name: str) -> Share:
        rows = [row for row in self.rows if name in row.get("loaders", {})]
        return self.share(lambda row: noticed(row["loaders"][name]), rows)

    def cells(self) -> list[str]:
        at_open = self.share(lambda row: row["by_open"])
        by_verify = self.share(lambda row: row["by_verify"])
        counts = [f"{len(self.rows):,}", str(at_open), str(by_verify), str(self.noticed)]
        loaders = [str(self.by_loader(name)) for name in LOADERS]
        wrong, unproven = f"{self.wrong.part:,}", f"{self.unproven.part:,}"
        return [self.name, *counts, str(self.good_served), wrong, unproven, *loaders]


def lines(rows: Iterable[Row]) -> list[Line]:
    """A line for each kind of damage, in their order, and one for all."""
    trials = [row for row in rows if row["what"] == "trial" and "skipped" not in row]
    by_kind = {kind: [row for row in trials if row["kind"] == kind.name] for kind in Kind}
    found = [Line(kind.value, rows) for kind, rows in by_kind.items() if rows]
    return [*found, Line("all", trials)]


def short(rows: Iterable[Row], *, control: bool) -> list[tuple[Row, list[str]]]:
    """The trials that fell short, with what they fell short of."""
    trials = (row for row in rows if row["what"] == "trial")
    found = ((row, shortcomings(row, control=control)) for row in trials)
    return [(row, why) for row, why in found if why]


def unheld(rows: Iterable[Row]) -> list[Row]:
    """Edits that were not left alone, and chunks of reads with an alarm or without digests."""
    return [row for row in rows if row["what"] in ("edit", "reads") and not held(row)]


def quiet_lines(rows: Sequence[Row]) -> list[str]:
    reads = [row for row in rows if row["what"] == "reads"]
    edits = [row for row in rows if row["what"] == "edit"]
    said = []
    if reads:
        alarms = sum(row["alarms"] + row["events"] + row["not_ok"] for row in reads)
        digested = sum(row["digested_bytes"] for row in reads)
        digests = sum(row["digests"] for row in reads)
        count = sum(row["reads"] for row in reads)
        said.append(
            f"{count:,} reads of untouched files, {digests:,} of them digested again (the daemon "
            f"read {digested:,} bytes for them): {alarms:,} false alarms."
        )
    if edits:
        changed = sum(not held(row) for row in edits)
        kinds = len({row["edit"] for row in edits})
        said.append(
            f"{len(edits):,} edits made outside of a mount, in {kinds} ways: "
            f"{changed:,} rolled back or refused."
        )
    return said


def table(rows: Sequence[Row], *, seed: int, control: bool) -> str:
    """The report, in Markdown."""
    found = lines(rows)
    title = "# Corruption study" + (" (control: opens are not checked)" if control else "")
    heads = [*_HEADS, *LOADERS]
    text = [title, "", f"{len(found[-1].rows):,} trials, seed {seed}. Beside it, {PAPER}.", ""]
    text += markdown(heads, (line.cells() for line in found))
    text += [
        "",
        "*at open*, *by verify*, *noticed* (by either): share of the trials. *Good one served*: "
        "of the trials in which a good generation was left. *Wrong bytes*: opens that handed out "
        "other bytes than a version had. *No proof*: changed by a program, in a format without "
        "checksums, and nothing told it from a save: served. From `torch.load` on: what the "
        "loaders notice by themselves in the same damaged bytes (they raised, crashed or hung).",
        "",
        *_loader_lines(rows),
        *_located_lines(rows),
        *quiet_lines(rows),
        *_skipped_lines(rows),
        "",
        *_condition_lines(found[:-1]),
        *_short_lines(rows, control=control),
    ]
    return "\n".join(text) + "\n"


def _loader_lines(rows: Iterable[Row]) -> list[str]:
    outcomes: dict[str, Counter[str]] = {}
    for row in rows:
        for name, outcome in row.get("loaders", {}).items():
            how = outcome if not noticed(outcome) else outcome.split()[0]
            outcomes.setdefault(name, Counter())[how] += 1
    said = []
    for name, counts in outcomes.items():
        parts = ", ".join(f"{count:,} {how}" for how, count in sorted(counts.items()))
        said.append(f"- {name}: {parts}")
    return [*said, ""] if said else []


def _located_lines(rows: Iterable[Row]) -> list[str]:
    told = [row["located"] for row in rows if "located" in row]
    if not told:
        return []
    return [f"`verify` told where in {len(told):,} trials, rightly in {sum(told):,}.", ""]


def _skipped_lines(rows: Iterable[Row]) -> list[str]:
    skipped = Counter(row["skipped"] for row in rows if "skipped" in row)
    return [f"{count:,} trials skipped: {why}." for why, count in skipped.items()]


def _condition_lines(found: Sequence[Line]) -> list[str]:
    text = ["## What was served, and what verify said", ""]
    for line in found:
        served = Counter(row["served"] for row in line.rows)
        said = Counter(row["condition"] for row in line.rows)
        history = Counter(f"history {what}" for row in line.rows for what in row["history"])
        counts = [
            ", ".join(f"{count:,} {what}" for what, count in sorted(counter.items()))
            for counter in (served, said + history)
        ]
        text.append(f"- {line.name}: served {counts[0]}; said {counts[1]}")
    return [*text, ""]


def _short_lines(rows: Sequence[Row], *, control: bool) -> list[str]:
    fell = short(rows, control=control)
    if not fell:
        held = "All damage of a file's bytes came through." if control else "Every trial held."
        return [held]
    counts = Counter((Kind[row["kind"]].value, reason) for row, why in fell for reason in why)
    text = [f"## {len(fell):,} trials fell short", ""]
    text += [f"- {kind}: {count:,} {reason}" for (kind, reason), count in counts.most_common()]
    return [*text, "", "`reproduce.sh` has the command for each."]


def reproducers(rows: Iterable[Row], options: Sequence[str], *, control: bool) -> str:
    """A shell script that repeats each trial that fell short."""
    text = ["#!/bin/sh", "# Each line repeats one trial that fell short.", ""]
    for row, why in short(rows, control=control):
        command = ["python", "-m", "ckptfs.tools.corrupt", *options, "--only", str(row["number"])]
        text.append(f"{shlex.join(command)}  # {Kind[row['kind']].value}: {'; '.join(why)}")
    return "\n".join(text) + "\n"
