"""What long studies share: results that outlive an interruption, and how far it is."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from ckptfs.errors import CannotServe

Row = dict[str, Any]
Step = Callable[[int], None]


class Rows:
    """A file of results: the first line says of what study, each other one is a result."""

    def __init__(self, path: Path, study: Row) -> None:
        self._path, self.rows = path, []
        whole = _without_torn_line(path)
        found = [json.loads(line) for line in whole.splitlines()]
        if found and found[0] != study:
            raise CannotServe(f"{path}: of another study ({found[0]}); choose another --out")
        if found:
            os.truncate(path, len(whole))
            self.rows = found[1:]
        else:
            path.write_bytes(_line(study))

    def add(self, rows: Sequence[Row]) -> None:
        """Kept from now on, also if the study is interrupted."""
        with open(self._path, "ab") as file:
            file.write(b"".join(map(_line, rows)))
        self.rows += rows

    def of(self, what: str) -> list[Row]:
        return [row for row in self.rows if row["what"] == what]

    def missing(self, what: str, count: int) -> list[int]:
        """The numbers below ``count`` that have no row yet."""
        done = {row["number"] for row in self.of(what)}
        return [number for number in range(count) if number not in done]


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _without_torn_line(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        content = path.read_bytes()
        return content[: content.rfind(b"\n") + 1]
    return b""


class Steps:
    """A bar on a terminal, a line for every tenth elsewhere."""

    def __init__(self, console: Console, bar: Progress | None) -> None:
        self._console, self._bar = console, bar

    def of(self, what: str, total: int, done: int) -> Step:
        """To be called with what is done on top of ``done``."""
        task = self._bar.add_task(what, total=total, completed=done) if self._bar else None

        def step(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            if self._bar is not None and task is not None:
                self._bar.advance(task, count)
            elif 10 * before // total != 10 * done // total:
                self._console.print(f"{what}: {done:,} of {total:,}", highlight=False)

        return step


@contextlib.contextmanager
def progress() -> Iterator[Steps]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Steps(console, None)
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield Steps(console, bar)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the advice to initialise torch.distributed."""
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def markdown(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """A table: names to the left, numbers to the right."""

    def line(cells: Iterable[object]) -> str:
        return f"| {' | '.join(map(_cell, cells))} |"

    return [line(heads), f"|{' --- |' + ' ---: |' * (len(heads) - 1)}", *map(line, lines)]


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
