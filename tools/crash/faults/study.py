"""``faults``: each call that the daemon's store makes fails once, in every way, under a program.

For each scenario and each fault: the first call fails, then the second, until a run has no such
call left. Rows go to ``rows.jsonl``; an interrupted study goes on with what is not there yet.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from ckptfs.errors import CkptfsError

from ...harness.command import end_on_sigterm
from ...harness.study import Row, Rows, markdown, progress
from .app import SCENARIOS
from .arming import FAULTS
from .trial import told, trials, turned

_OUTCOMES = ("told", "absorbed", "read-only", "untold", "hung")
_HEADS = ("scenario", "fault", "calls", *_OUTCOMES, "not as promised")


def study(
    rows: Rows,
    on: Path,
    scenarios: Sequence[str],
    faults: Sequence[str],
    *,
    control: bool = False,
) -> None:
    """Do what ``rows`` lacks, in directories below ``on``."""
    groups = list(itertools.product(scenarios, faults))
    with progress() as steps:
        step = steps.of("scenarios and faults", len(groups), 0)
        for scenario, fault in groups:
            done = of(rows.rows, scenario, fault)
            if not done or done[-1]["failed"]:
                numbers = itertools.count(len(done) + 1)
                for row in trials(on, scenario, fault, numbers, control=control):
                    rows.add([row])
            step(1)


def of(rows: Iterable[Row], scenario: str, fault: str) -> list[Row]:
    return [row for row in rows if (row["scenario"], row["fault"]) == (scenario, fault)]


def lied_to(row: Row) -> bool:
    """Whether success was told of what is not there."""
    return any("is old" in wrong for wrong in row["wrong"])


def table(rows: Sequence[Row]) -> str:
    """A line for each scenario and fault, and what stands out among the rows."""
    groups = dict.fromkeys((row["scenario"], row["fault"]) for row in rows)
    lines = [_summary([scenario, fault], of(rows, scenario, fault)) for scenario, fault in groups]
    lines.append(_summary(["all", f"{len(groups)} groups"], rows))
    others = Counter(f"{row['fault']} -> {told(row)}" for row in rows if turned(row))
    found = Counter(f"{row['scenario']}: {what}" for row in rows for what in row.get("verify", ()))
    return "\n".join(
        [
            *markdown(_HEADS, lines),
            "",
            "told with another errno: " + _counts(others),
            "absorbed, but `verify` speaks of it: " + _counts(found),
            "",
        ]
    )


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{what} ({count})" for what, count in counter.items()) or "none"


def _summary(heads: Sequence[str], rows: Sequence[Row]) -> list[object]:
    failed = [row for row in rows if row["failed"]]
    outcomes = Counter(row["outcome"] for row in failed)
    wrong = sum(bool(row["wrong"]) for row in rows)
    return [*heads, len(failed), *(outcomes[name] for name in _OUTCOMES), wrong]


def report(rows: Sequence[Row], out: Path, *, control: bool) -> bool:
    """Write the table into ``out``. Whether all held; of the control: whether lies were seen."""
    text = table(rows)
    (out / "table.md").write_text(text, "utf-8")
    click.echo(text)
    wrong = [row for row in rows if row["wrong"]]
    if control:
        return any(map(lied_to, wrong))
    for row in wrong:
        only = f"{row['scenario']}:{row['fault']}:{row['k']}"
        click.echo(f"not as promised: {row['wrong']}; --only {only!r}", err=True)
    return not wrong


def replay(only: Iterable[tuple[str, str, int]], on: Path, *, control: bool) -> bool:
    """Repeat single trials and show all that is known of them. Whether they held."""
    held = True
    for scenario, fault, k in only:
        for row in trials(on, scenario, fault, [k], control=control):
            click.echo(json.dumps(row, indent=1))
            held = held and not row["wrong"]
    return held


def _trial(
    _: click.Context, __: click.Parameter, texts: Sequence[str]
) -> list[tuple[str, str, int]]:
    found = []
    for text in texts:
        scenario, fault, k = (*text.split(":"), "", "")[:3]
        if scenario not in SCENARIOS or fault not in FAULTS or not k.isdigit():
            raise click.BadParameter(f"{text}: not SCENARIO:FAULT:K")
        found.append((scenario, fault, int(k)))
    return found


@click.command()
@click.option("--out", type=click.Path(file_okay=False), default="fault-study")
@click.option(
    "--on",
    type=click.Path(exists=True, file_okay=False),
    help="A directory on the filesystem to study; --out by default.",
)
@click.option("--scenario", multiple=True, type=click.Choice(list(SCENARIOS)), help="Not all.")
@click.option("--fault", multiple=True, type=click.Choice(list(FAULTS)), help="Not all.")
@click.option("--only", multiple=True, metavar="SCENARIO:FAULT:K", callback=_trial, help="Repeat.")
@click.option("--control", is_flag=True, help="A store that reports success whatever happens.")
def faults(
    out: str,
    on: str | None,
    scenario: tuple[str, ...],
    fault: tuple[str, ...],
    only: list[tuple[str, str, int]],
    control: bool,
) -> None:
    """Fail every call of the daemon's store in turn, and see what its users are told.

    Exit 0 if all promises held, 1 if not. With --control: 0 if the lies were seen. Needs root, for
    mounts.
    """
    end_on_sigterm()
    folder = Path(out)
    try:
        if only:
            sys.exit(0 if replay(only, Path(on or "."), control=control) else 1)
        folder.mkdir(parents=True, exist_ok=True)
        rows = Rows(folder / "rows.jsonl", {"what": "fault study", "control": control})
        study(
            rows,
            Path(on or out),
            scenario or list(SCENARIOS),
            fault or list(FAULTS),
            control=control,
        )
    except CkptfsError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(0 if report(rows.rows, folder, control=control) else 1)
