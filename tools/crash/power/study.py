"""The study of power cuts: record, make crash states, look at each, count.

    python -m ckptfs.tools.crash power --out DIR

An interrupted study goes on with the units that are not there yet.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import click

from ckptfs.errors import CannotServe, CkptfsError

from ...harness import plots
from ...harness.command import end_on_sigterm
from ...harness.study import Row, Rows, Step, progress
from .check import judging
from .device import KINDS, why_not
from .plot import plot
from .record import Recording, Setting
from .report import is_control, shortcomings, states_of, table
from .units import ATOMIC, controls, setting_of, settings, specs_of, unit
from .workloads import WORKLOADS

_CONTROL_STATES = 150


@dataclass(frozen=True)
class Plan:
    kinds: tuple[str, ...]
    states: int  # distinct ones on each filesystem, of commits that have to be right
    seed: int
    most: int | None  # states of one recording; None: all that are there
    workloads: tuple[str, ...]
    controls: bool = True

    def settings(self, rows: Rows) -> Iterator[Setting]:
        """What to do next: each workload in each mode, and over again until ``rows`` are enough."""
        endless = {kind: settings(kind, self.seed, self.workloads) for kind in self.kinds}
        for _ in range(len(self.workloads) * len(ATOMIC)):
            yield from map(next, endless.values())
        while open_ := [k for k in self.kinds if states_of(rows.rows, k) < self.states]:
            for kind in open_:
                yield next(endless[kind])
        if self.controls:
            for kind in self.kinds:
                yield from controls(kind, self.seed, self.workloads)


def study(rows: Rows, plan: Plan, on: str, keep: Path, jobs: int) -> None:
    """Do what ``rows`` lacks of the plan, in ``jobs`` processes."""
    done = {setting_of(row).name for row in rows.of("unit")}
    running: set[Future[Row]] = set()
    with (
        progress() as steps,
        ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool,
    ):
        looked_at = sum(len(row["hashes"]) for row in rows.of("unit") if not is_control(row))
        step = steps.of("crash states", plan.states * len(plan.kinds), looked_at)
        for setting in plan.settings(rows):
            if setting.name in done:
                continue
            most = _CONTROL_STATES if setting.control else plan.most
            running.add(pool.submit(unit, setting, on, most, str(keep)))
            if len(running) >= jobs:
                running = _collect(rows, running, step)
        while running:
            running = _collect(rows, running, step)


def _collect(rows: Rows, running: set[Future[Row]], step: Step) -> set[Future[Row]]:
    """Wait for one unit at least, and keep its row."""
    ended, left = wait(running, return_when=FIRST_COMPLETED)
    for each in ended:
        row = each.result()
        rows.add([row])
        if not is_control(row):
            step(len(row["hashes"]))
    return left


def replay(folder: Path, only: Sequence[str]) -> bool:
    """Look at kept states again, and say what is wrong with each. Whether nothing is."""
    recording = Recording(folder)
    names = only or [line.split()[0] for line in (folder / "states").read_text().splitlines()]
    sound = True
    with tempfile.TemporaryDirectory() as name, judging(recording, Path(name)) as judge:
        for state in names:
            wrong = judge.look(specs_of(state))
            sound = sound and not wrong
            click.echo(f"{state}  {'; '.join(sorted(map(str, wrong))) or 'nothing is wrong'}")
    return sound


def report(rows: Rows, out: Path, plan: Plan) -> bool:
    """Write table, plot and reproducers into ``out``. Whether all promises held, and all controls
    were caught."""
    text = table(rows.rows)
    (out / "table.md").write_text(text, "utf-8")
    click.echo(text)
    if not plot(rows.rows, out / "plot"):
        click.echo(plots.NO_MATPLOTLIB, err=True)
    fell = shortcomings(rows.rows, plan.kinds, plan.states, controls=plan.controls)
    for what in fell:
        click.echo(f"not as promised: {what}", err=True)
    return not fell


@click.command()
@click.option("--states", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--filesystem", "kinds", multiple=True, type=click.Choice(sorted(KINDS)))
@click.option("--workload", "workloads", multiple=True, type=click.Choice(sorted(WORKLOADS)))
@click.option("--controls/--no-controls", "with_controls", default=True, show_default=True)
@click.option("--most", type=click.IntRange(10), help="States of one recording; all by default.")
@click.option("--jobs", "-j", type=click.IntRange(1), default=2, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="crash-power")
@click.option(
    "--on",
    type=click.Path(exists=True, file_okay=False),
    default="/dev/shm",
    show_default=True,
    help="Where images lie while they are looked at.",
)
@click.option("--replay", "again", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("only", nargs=-1, metavar="[STATE]...")
def power(
    states: int,
    kinds: tuple[str, ...],
    workloads: tuple[str, ...],
    with_controls: bool,
    most: int | None,
    jobs: int,
    seed: int,
    out: Path,
    on: str,
    again: Path | None,
    only: tuple[str, ...],
) -> None:
    """Cut the power at every write of the block device, and look at what is left.

    --states distinct ones on each filesystem, in the atomic modes; then the controls. With
    --replay: look at the STATEs of a kept recording again. Exit 0 if all promises held and every
    control was caught, 1 if not. Needs root and qemu-storage-daemon; torch and safetensors.
    """
    end_on_sigterm()
    try:
        if again is not None:
            sys.exit(0 if replay(again, only) else 1)
        plan = Plan(
            kinds or tuple(KINDS), states, seed, most, workloads or tuple(WORKLOADS), with_controls
        )
        for kind in plan.kinds:
            if missing := why_not(kind):
                raise CannotServe(f"{kind}: {missing}")
        out.mkdir(parents=True, exist_ok=True)
        rows = Rows(out / "rows.jsonl", {"what": "power", "seed": seed, "most": most})
        study(rows, plan, on, out / "reproduce", jobs)
    except CkptfsError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(0 if report(rows, out, plan) else 1)
