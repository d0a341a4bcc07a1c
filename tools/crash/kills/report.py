"""The rows of the kills as tables, and commands that repeat what violated a promise."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from ckptfs.versions.life import Step

from ...harness.study import Row, markdown
from ..damage import LOST
from .draw import BATCH, DAEMON, PAPER, PAPER_MODES, WRITER, How, Phase, Work
from .judge import NEW, OLD, STRAY

MOUNT_LIMIT_S = 1.0
_OUTCOMES = ("old version", "new version", "lost or torn")


def broken(rows: Iterable[Row]) -> list[Row]:
    """The trials and batches with violations."""
    return [row for row in rows if row.get("violations")]


def slow(rows: Iterable[Row]) -> list[Row]:
    """The trials after which the mount took too long to serve."""
    return [row for row in rows if row.get("mount_s", 0.0) >= MOUNT_LIMIT_S]


def failed_harness(rows: Iterable[Row]) -> bool:
    """Whether something else than a promise went wrong."""
    found = (violation for row in broken(rows) for violation in row["violations"])
    return any(violation["promise"] == "harness" for violation in found)


def _outcome(row: Row) -> str:
    found = {violation["found"] for violation in row["violations"]}
    if found & {*LOST, STRAY} or row.get("met") not in (OLD, NEW):
        return _OUTCOMES[2]
    return _OUTCOMES[row["met"] == NEW]


def _markdown(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    return [*markdown(heads, lines), ""]


def _counted(
    name: str, rows: Sequence[Row], keys: Iterable[str], key: Callable[[Row], object]
) -> list[str]:
    """What the kills met, a line for each key."""

    def line(title: str, some: Sequence[Row]) -> list[object]:
        met = Counter(map(_outcome, some))
        counts = [met[outcome] for outcome in _OUTCOMES]
        return [title, len(some), *counts, len(broken(some))]

    lines = [line(str(k), [row for row in rows if key(row) == str(k)]) for k in keys]
    heads = [name, "kills", *_OUTCOMES, "violations"]
    return _markdown(heads, [*(found for found in lines if found[1]), line("all", rows)])


def table(rows: Sequence[Row], *, seed: int, control: str) -> str:
    """The report, in Markdown."""
    title = "# Process crashes" + (f" (control: {control})" if control else "")
    parts = {
        WRITER: _writers,
        DAEMON: _daemons,
        PAPER: _paper,
    }
    text = [title, "", f"Seed {seed}.", ""]
    for what, part in parts.items():
        found = [row for row in rows if row["what"] == what]
        text += part(found) if found else []
    batches = [row for row in rows if row["what"] == BATCH]
    text += [
        f"{len(batches):,} directories were looked through as a whole after their trials: "
        f"{len(broken(batches)):,} with something wrong.",
        "",
        *_violations(rows),
    ]
    return "\n".join(text) + "\n"


def _values(members: Iterable[How | Work | Step]) -> list[str]:
    return [member.value for member in members]


def _writers(rows: Sequence[Row]) -> Iterator[str]:
    yield from (f"## {len(rows):,} kills of writers", "")
    yield from _counted("phase", rows, map(str, Phase), lambda row: row.get("phase"))
    yield from _counted("workload", rows, _values(Work), lambda row: row.get("work"))
    yield from _counted("signal", rows, ["9", "15", "11"], lambda row: str(row.get("signal")))


def _daemons(rows: Sequence[Row]) -> Iterator[str]:
    yield from (f"## {len(rows):,} kills of the daemon", "")
    yield from _counted("how", rows, _values(How), lambda row: row.get("how"))
    yield from _steps(rows)
    yield from _counted("writer was", rows, map(str, Phase), lambda row: row.get("phase"))
    yield from _counted("workload", rows, _values(Work), lambda row: row.get("work"))
    yield from _mounts(rows)
    yield f"{len(slow(rows)):,} of these mounts took {MOUNT_LIMIT_S:g} s or longer."
    yield ""
    yield from _asides(rows)


def _steps(rows: Sequence[Row]) -> Iterator[str]:
    aimed = Counter(row["aimed"] for row in rows if row.get("reached"))
    missed = Counter(row["aimed"] for row in rows if row.get("reached") is False)
    after = Counter(row["step"] for row in rows if "aimed" not in row and row.get("step"))
    lines = [[s, aimed[s], missed[s], after[s]] for s in _values(Step)]
    heads = ["step of the commit", "killed at it", "not reached", "at a moment after it"]
    yield from _markdown(heads, lines)


def _mounts(rows: Sequence[Row]) -> Iterator[str]:
    lines = []
    for name, plain in (("plain `ckptfs mount`", True), ("the daemon that tells its steps", False)):
        some = [row for row in rows if row.get("plain") is plain]
        if some:
            times = sorted(row["mount_s"] for row in some)
            at = [quantile(times, share) for share in (0.5, 0.99, 1.0)]
            load = quantile(sorted(row["load"] for row in some), 0.5)
            lines.append([name, len(times), *(f"{seconds:.3f} s" for seconds in at), load])
    what = "`ckptfs mount` after the crash, until it serves"
    heads = [what, "mounts", "median", "p99", "max", "machine's load"]
    yield from _markdown(heads, lines)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _asides(rows: Sequence[Row]) -> Iterator[str]:
    unheard = sum(bool(row.get("unheard")) for row in rows)
    if unheard:
        yield (
            f"In {unheard:,} of them a library's save returned without an error though the server "
            "was gone: it keeps the error of close() to itself. Such a save counts as not told."
        )
    unnamed = sum(row.get("salvaged") is False for row in rows)
    if unnamed:
        named = sum(row.get("salvaged") is True for row in rows)
        yield (
            f"Salvage has the bytes of {named + unnamed:,} unfinished files, {unnamed:,} of them "
            "without their path (sealed, and new to history)."
        )
    yield ""


def _paper(rows: Sequence[Row]) -> Iterator[str]:
    yield from ("## A process crash in a save, by write mode (arXiv 2511.18323)", "")
    yield from _counted("mode", rows, PAPER_MODES, lambda row: row["subject"])


def _violations(rows: Sequence[Row]) -> Iterator[str]:
    counts = Counter(
        (violation["promise"], violation["found"].split("\n")[0])
        for row in rows
        for violation in row["violations"]
    )
    if not counts:
        yield "No violation."
        return
    yield from (f"## Violations in {len(broken(rows)):,} trials", "")
    lines = [[promise, found, count] for (promise, found), count in counts.most_common()]
    yield from _markdown(["promise", "found", "times"], lines)
    yield "`reproduce.sh` has the command for each."


def reproducers(rows: Iterable[Row], options: Sequence[str]) -> str:
    """A shell script that repeats each trial that violated a promise."""
    text = ["#!/bin/sh", "# Each line repeats what violated a promise.", ""]
    rows = list(rows)
    for row in [*broken(rows), *(row for row in slow(rows) if not row["violations"])]:
        numbers = row.get("numbers", [row.get("number")])
        what = row.get("of", row["what"])
        only = [word for number in numbers for word in ("--only", f"{what}:{number}")]
        command = ["python", "-m", "ckptfs.tools.crash", "kills", *options, *only]
        why = "; ".join(f"{v['promise']}: {v['found']}" for v in row["violations"])
        why = why or f"mounted in {row['mount_s']} s"
        text.append(f"{shlex.join(command)}  # {' '.join(why.split())}")
    return "\n".join(text) + "\n"
