"""What ckptfs costs, side by side with the plain directory: ``python -m ckptfs.tools.bench DIR``.

Everything is measured in one run, by turns (see ``rig``), on one filesystem: in fresh directories
below DIR, some of them mounted, all of them removed at the end, also on Ctrl-C and SIGTERM. A row
holds the median of the ratios round by round with its bootstrap 95% interval; it passes where the
median meets the target. ``--control`` adds plain / plain to the rows: the noise of the machine.
``--fill-cache`` first brings the machine into the state it is in after days of work: all memory in
use as page cache. A virtual machine that gives free memory back has a fault in the host for every
page of a new file otherwise, up to four times the write itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ckptfs.errors import CkptfsError

from ..harness import plots
from ..harness.command import bytes_of, end_on_sigterm, own_folder
from ..harness.rig import Mount, fill_page_cache, memory
from .cost import machine, markdown, plot
from .measure import QUICK, Bench, Result, Sizes
from .rows import ON_THE_MOUNT, ROWS, USUAL


def run(
    directory: str,
    rows: set[str],
    sizes: Sizes,
    *,
    control: bool = False,
    fill_cache: bool = False,
) -> list[Result]:
    """Measure ``rows`` below ``directory``; nothing of it is left there, whatever happens."""
    console = Console(stderr=True)
    with contextlib.ExitStack() as ending, _progress(console) as progress:
        folder = ending.enter_context(own_folder(directory, "bench"))
        bench = Bench(folder, sizes, control, progress.advance)
        if fill_cache:
            progress.begin("Fill the page cache.")
            fill_page_cache(folder / "ballast")
        if rows & ON_THE_MOUNT:
            ending.enter_context(Mount(bench.served))
        for work in dict.fromkeys(ROWS[row] for row in ROWS if row in rows):
            progress.begin((work.__doc__ or "").splitlines()[0])
            known = len(bench.results)
            work(bench, rows)
            for result in bench.results[known:]:
                progress.console.print(_line(result), highlight=False, markup=False, soft_wrap=True)
    return bench.results


class _Steps:
    """Which row, and how many rounds of it are done."""

    def __init__(self, console: Console, bar: Progress | None) -> None:
        self.console, self._bar = console, bar
        self._task = bar.add_task("", total=None) if bar else None

    def begin(self, what: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.reset(self._task, description=what, total=None)

    def advance(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[_Steps]:
    if not console.is_terminal:
        yield _Steps(console, None)
        return
    columns = ("{task.description}", "{task.completed:.0f} rounds, {task.elapsed:.0f} s")
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Steps(console, bar)


def _value(result: Result) -> tuple[str, str]:
    value, digits = result.value, 1 if result.unit in ("%", "MB") else 3
    sign = "+" if result.unit == "%" else ""
    interval = f"{value.low:{sign}.{digits}f} to {value.high:{sign}.{digits}f}"
    return f"{value.median:{sign}.{digits}f} {result.unit}", interval


def _target(result: Result) -> str:
    if result.target is None:
        return result.beside
    return f"at {'least' if result.at_least else 'most'} {result.target:g} {result.unit}"


def _line(result: Result) -> str:
    median, interval = _value(result)
    ending = " ".join(filter(None, (_target(result), result.verdict)))
    return f"{result.row:5} {result.what}: {median} ({interval}) {ending}"


def _table(results: list[Result]) -> Table:
    table = Table("row", "what", "median", "95% interval", "target", "")
    colours = {"PASS": "green", "MISS": "red"}
    for result in results:
        style = colours.get(result.verdict, "")
        verdict = f"[{style}]{result.verdict}[/]" if style else ""
        table.add_row(result.row, result.what, *_value(result), _target(result), verdict)
    return table


def _show_cost(results: list[Result], directory: str, sizes: Sizes, stem: str | None) -> None:
    click.echo(f"{machine(Path(directory))}; {sizes.rounds} rounds\n")
    click.echo(markdown(results))
    if stem and not plot(results, Path(stem)):
        click.echo(plots.NO_MATPLOTLIB, err=True)


def _row_set(text: str) -> set[str]:
    rows = set(filter(None, text.split(",")))
    if unknown := sorted(rows - set(ROWS)):
        raise click.BadParameter(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return rows


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("--rows", default=",".join(USUAL), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--size", default="1GiB", show_default=True, help="Of the checkpoints.")
@click.option("--memory-size", default="10GiB", show_default=True, help="Of row 6's file.")
@click.option("--largest", default="8GiB", show_default=True, help="Of the saves of row cost.")
@click.option("--plot", type=click.Path(), metavar="STEM", help="Row cost, as STEM.svg and .png.")
@click.option("--json", "json_file", type=click.Path(), help="Every sample goes there.")
@click.option("--control", is_flag=True, help="Also plain / plain: the noise.")
@click.option("--fill-cache", is_flag=True, help="Measure with all memory in use as page cache.")
@click.option("--quick", is_flag=True, help="Tiny sizes: whether it works, not how fast.")
def main(directory: str, rows: str, rounds: int, size: str, **given: Any) -> None:
    """Measure ckptfs against the plain directory, on the filesystem of DIRECTORY."""
    end_on_sigterm()
    memory_bytes = bytes_of(given["memory_size"])
    ring = memory() // (3 * bytes_of(size)) if given["fill_cache"] else 0
    largest = bytes_of(given["largest"])
    cost = tuple(size for size in Sizes.cost_bytes if size <= largest)
    sizes = Sizes(rounds, ring, bytes_of(size), memory_bytes, cost_bytes=cost)
    sizes = QUICK if given["quick"] else sizes
    try:
        results = run(
            directory,
            _row_set(rows),
            sizes,
            control=given["control"],
            fill_cache=given["fill_cache"],
        )
    except CkptfsError as error:
        raise click.ClickException(str(error)) from None
    Console().print(_table(results))
    if any(result.key for result in results):
        _show_cost(results, directory, sizes, given["plot"])
    if given["json_file"]:
        report = {
            "machine": " ".join(os.uname()),
            "in_words": machine(Path(directory)),
            "time": time.time(),
            "sizes": asdict(sizes),
            "rows": [{**asdict(result), "verdict": result.verdict} for result in results],
        }
        Path(given["json_file"]).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
