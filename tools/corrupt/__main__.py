"""The corruption study: ``python -m ckptfs.tools.corrupt``.

Thousands of checkpoints are written through a mount, damaged below it and opened through a mount
again: what was served, what was noticed, and what the loaders notice by themselves in the same
bytes. Beside that, reads of untouched files and edits made outside, which must raise no alarm.

Trial n of a seed is always the same. Rows go to ``rows.jsonl`` batch by batch; an interrupted run
goes on with what is not there yet. Nothing but the output directory is left behind.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from ckptfs.errors import CkptfsError

from ..harness import plots
from ..harness.command import bytes_of, end_on_sigterm
from ..harness.study import Row, Rows, progress
from .batch import run, shortcomings
from .draw import Trial, trial
from .plot import plot
from .quiet import edit_outside, read_untouched
from .report import reproducers, short, table, unheld
from .worker import Loaders

_BATCH_BYTES = 1 << 30
_READS_PER_ROW = 5000
_EDITS_PER_BATCH = 250


def batches(trials: Iterable[Trial], most: int) -> Iterator[list[Trial]]:
    """At most ``most`` trials and about ``_BATCH_BYTES`` each."""
    batch: list[Trial] = []
    for drawn in trials:
        size = sum(other.size_bytes * other.versions for other in [*batch, drawn])
        if batch and (len(batch) == most or size > _BATCH_BYTES):
            yield batch
            batch = []
        batch.append(drawn)
    if batch:
        yield batch


def study(
    rows: Rows,
    on: Path,
    seed: int,
    max_bytes: int,
    *,
    counts: tuple[int, int, int],
    batch: int,
    control: bool = False,
) -> None:
    """Do what ``rows`` lacks of these many trials, reads and edits, in directories below ``on``."""
    trials, reads, edits = counts
    with progress() as steps, Loaders() as loaders:
        todo = rows.missing("trial", trials)
        step = steps.of("trials", trials, trials - len(todo))
        for some in batches((trial(seed, number, max_bytes) for number in todo), batch):
            rows.add(run(some, on, loaders, step, control=control))
        left = reads - sum(row["reads"] for row in rows.of("reads"))
        step = steps.of("reads of untouched files", reads, reads - left)
        for row in read_untouched(left, _READS_PER_ROW, seed, on, step):
            rows.add([row])
        todo = rows.missing("edit", edits)
        step = steps.of("edits made outside", edits, edits - len(todo))
        for start in range(0, len(todo), _EDITS_PER_BATCH):
            numbers = todo[start : start + _EDITS_PER_BATCH]
            rows.add(edit_outside(numbers, seed, on, step))


def replay(numbers: Sequence[int], on: Path, seed: int, max_bytes: int, *, control: bool) -> bool:
    """Repeat single trials and show all that is known of them. Whether they held."""
    drawn = [trial(seed, number, max_bytes) for number in numbers]
    with Loaders() as loaders:
        rows = run(drawn, on, loaders, control=control)
    for row in rows:
        row["short"] = shortcomings(row, control=control)
        click.echo(json.dumps(row, indent=1))
    return not any(row["short"] for row in rows)


def report(
    rows: Sequence[Row], out: Path, options: Sequence[str], seed: int, control: bool
) -> bool:
    """Write table, plot and reproducers into ``out``. Whether all promises held."""
    text = table(rows, seed=seed, control=control)
    (out / "table.md").write_text(text, "utf-8")
    script = reproducers(rows, options, control=control)
    (out / "reproduce.sh").write_text(script)
    click.echo(text)
    if not plot(rows, out / "plot", control=control):
        click.echo(plots.NO_MATPLOTLIB, err=True)
    for row in unheld(rows):
        click.echo(f"not as promised: {json.dumps(row)}", err=True)
    fell = short(rows, control=control)
    return not fell and not unheld(rows)


@click.command()
@click.option("--trials", type=click.IntRange(0), default=16_000, show_default=True)
@click.option("--reads", type=click.IntRange(0), default=100_000, show_default=True)
@click.option("--edits", type=click.IntRange(0), default=1_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--out", type=click.Path(file_okay=False), default="corrupt-study")
@click.option(
    "--on",
    type=click.Path(exists=True, file_okay=False),
    help="A directory on the filesystem to study; --out by default.",
)
@click.option(
    "--max-size", default="256MiB", show_default=True, callback=lambda _, __, text: bytes_of(text)
)
@click.option("--batch", type=click.IntRange(1), default=250, help="Trials to a mount.")
@click.option("--only", type=int, multiple=True, metavar="TRIAL", help="Repeat, keep no rows.")
@click.option("--control", is_flag=True, help="Mount with --verify off: damage gets through.")
def main(
    trials: int,
    reads: int,
    edits: int,
    seed: int,
    out: str,
    on: str | None,
    max_size: int,
    batch: int,
    only: tuple[int, ...],
    control: bool,
) -> None:
    """Damage checkpoints below a mount, and see what comes out of it.

    Exit 0 if all promises held, 1 if not. With --control: 0 if all damage of a file's bytes was
    seen as wrong bytes. Needs root, for mounts; torch, numpy and safetensors; matplotlib to plot.
    """
    end_on_sigterm()
    folder = Path(out)
    options = ["--seed", str(seed), "--max-size", str(max_size), *(["--control"] * control)]
    try:
        if only:
            place = Path(on or os.curdir)
            sys.exit(0 if replay(only, place, seed, max_size, control=control) else 1)
        folder.mkdir(parents=True, exist_ok=True)
        head = {"what": "study", "seed": seed, "max_size": max_size, "control": control}
        rows = Rows(folder / "rows.jsonl", head)
        study(
            rows,
            Path(on or out),
            seed,
            max_size,
            counts=(trials, 0, 0) if control else (trials, reads, edits),
            batch=batch,
            control=control,
        )
    except CkptfsError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(0 if report(rows.rows, folder, options, seed, control) else 1)


if __name__ == "__main__":
    main()
