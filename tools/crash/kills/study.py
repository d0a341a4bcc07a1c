"""Process crashes: ``python -m ckptfs.tools.crash kills``.

Writers are killed in every phase of a save, daemons at every step of a commit, both at random
moments, and mounts taken away by force. After a dead daemon, ``ckptfs mount`` alone has to bring
the directory back, within a second; what was promised has to hold then, and the next save to work.

Trial n of a seed is always the same draw. Rows go to ``rows.jsonl`` as they come; an interrupted
study goes on with what is not there yet. Nothing but the output directory is left behind.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import click

from ckptfs.errors import CkptfsError

from ...harness.command import end_on_sigterm
from ...harness.study import Row, Rows, progress
from .draw import DAEMON, PAPER, PAPER_MODES, PAPER_TRIALS, PLAIN, WRITER, Trial, trial
from .jobs import Batch, Jobs
from .report import broken, failed_harness, reproducers, slow, table

_CONTROLS = ("unsafe", PLAIN)


def batches(trials: Iterable[Trial], most: int) -> Iterator[Batch]:
    """At most ``most`` trials each, all of one subject."""
    for _, same in groupby(sorted(trials, key=_subject), _subject):
        some = list(same)
        for start in range(0, len(some), most):
            yield some[start : start + most]


def _subject(one: Trial) -> tuple[str, str]:
    return one.what, one.subject


def study(rows: Rows, jobs: Jobs, counts: dict[str, int], seed: int, most: int) -> None:
    """Do what ``rows`` lacks of these many trials."""
    with progress() as steps:
        for what, count in counts.items():
            todo = rows.missing(what, count)
            step = steps.of(f"kills: {what}", count, count - len(todo)) if count else None
            trials = (trial(what, number, seed, jobs.control) for number in todo)
            for row in jobs.run(batches(trials, most)):
                rows.add([row])
                if step is not None and row["what"] == what:
                    step(1)


def replay(named: Sequence[tuple[str, int]], jobs: Jobs, seed: int) -> list[Row]:
    """Repeat trials and show all that is known of them."""
    trials = [trial(what, number, seed, jobs.control) for what, number in named]
    rows = []
    for row in jobs.run(batches(trials, len(trials))):
        rows.append(row)
        click.echo(json.dumps(row, indent=1))
    return rows


def report(rows: Sequence[Row], out: Path, options: Sequence[str], seed: int, control: str) -> None:
    """Write the table and the reproducers into ``out``."""
    text = table(rows, seed=seed, control=control)
    (out / "table.md").write_text(text, "utf-8")
    (out / "reproduce.sh").write_text(reproducers(rows, options), "utf-8")
    click.echo(text)


def _held(rows: Sequence[Row], control: str) -> bool:
    """Of a control: that it was seen to fail."""
    if control:
        return bool(broken(rows)) and not failed_harness(rows)
    safe = [row for row in rows if row.get("subject") != "unsafe"]
    return not broken(safe) and not slow(safe)


def _names(_: click.Context, __: click.Parameter, given: Iterable[str]) -> list[tuple[str, int]]:
    named = []
    for text in given:
        what, _colon, number = text.partition(":")
        if what not in (WRITER, DAEMON, PAPER) or not number.isdigit():
            raise click.BadParameter(f"{text}: not a trial, such as {WRITER}:17")
        named.append((what, int(number)))
    return named


@click.command()
@click.option("--writers", type=click.IntRange(0), default=2000, show_default=True)
@click.option("--daemons", type=click.IntRange(0), default=2000, show_default=True)
@click.option(
    "--paper", is_flag=True, help=f"{PAPER_TRIALS} process crashes in each write mode instead."
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--out", type=click.Path(file_okay=False), default="kills-study", show_default=True)
@click.option(
    "--on",
    type=click.Path(exists=True, file_okay=False),
    help="A directory on the filesystem to study; --out by default.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=50, help="Trials to a directory.")
@click.option(
    "--only",
    multiple=True,
    metavar="WHAT:NUMBER",
    callback=_names,
    help=f"Repeat {WRITER}:17 and the like, keep no rows.",
)
@click.option(
    "--control", type=click.Choice(_CONTROLS), help="Without transactions, or without a mount."
)
def kills(
    writers: int,
    daemons: int,
    paper: bool,
    seed: int,
    out: str,
    on: str | None,
    jobs: int,
    batch: int,
    only: list[tuple[str, int]],
    control: str | None,
) -> None:
    """Kill writers and daemons in the middle of saves, and see what is left.

    Exit 0 if all promises held, 1 if not. With --control: 0 if violations were seen. Needs root,
    for mounts; torch and safetensors.
    """
    end_on_sigterm()
    folder, without = Path(out), control or ""
    counts = {WRITER: writers, DAEMON: 0 if without == PLAIN else daemons}
    if paper:
        counts = {PAPER: PAPER_TRIALS * len(PAPER_MODES)}
    options = ["--seed", str(seed), *(["--control", without] if without else [])]
    try:
        if only:
            with Jobs(Path(on or os.curdir), 1, seed, without) as started:
                sys.exit(0 if _held(replay(only, started, seed), without) else 1)
        folder.mkdir(parents=True, exist_ok=True)
        rows = Rows(folder / "rows.jsonl", {"what": "study", "seed": seed, "control": without})
        with Jobs(Path(on or out), jobs, seed, without) as started:
            study(rows, started, counts, seed, batch)
    except CkptfsError as error:
        raise click.ClickException(str(error)) from None
    report(rows.rows, folder, options, seed, without)
    sys.exit(0 if _held(rows.rows, without) else 1)
