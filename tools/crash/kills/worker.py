"""The process that runs trials: torch imported once, a forked writer per save.

It alone touches mounts, so that a stuck one blocks nobody else: who started it aborts the mount
and ends it. Orders come as JSON lines, and rows go as such: one a trial, and one for the batch.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ckptfs.errors import CannotServe

from ...harness.study import Row
from .draw import BATCH, Trial, trial
from .judge import Violation
from .place import Site
from .saves import Files
from .trial import Failed, Run, sound

_HANGS_S = 60.0


@dataclass(frozen=True)
class Order:
    """A batch of trials of one subject; they share a directory below ``folder``."""

    what: str
    numbers: tuple[int, ...]
    seed: int
    control: str
    folder: str

    def trials(self) -> list[Trial]:
        return [trial(self.what, number, self.seed, self.control) for number in self.numbers]


def run(order: Order) -> Iterator[Row]:
    """Trials one after the other. Where one cannot go on, the next begins in a new directory."""
    trials = order.trials()
    start = 0
    while start < len(trials):
        path = Path(order.folder, f"{order.what}-{trials[start].number}")
        with Site(path, trials[start].subject) as place:
            shared = Shared(place)
            for row in shared.run(trials[start:]):
                yield row
                start += row["what"] != BATCH


class Shared:
    """Trials that share a place; ends with the first that leaves it unusable."""

    def __init__(self, place: Site) -> None:
        self.place = place
        self.left: dict[str, Files] = {}
        self.below: set[str] = set()

    def run(self, trials: Sequence[Trial]) -> Iterator[Row]:
        self.place.serve(hooked=trials[0].hooked)
        for at, one in enumerate(trials):
            after = trials[at + 1 : at + 2]
            run = Run(self.place, one)
            try:
                row = run.run(next_hooked=bool(after) and after[0].hooked)
            except Exception as error:
                yield _broken(run, error)
                return
            self.left[one.folder] = run.files
            if run.below:
                self.below.add(one.folder)
            yield row
        yield self._together(trials)

    def _together(self, trials: Sequence[Trial]) -> Row:
        """No trial has touched what an earlier one left; and all of it is sound, unmounted."""
        found = [
            Violation("C1", "changed by a later trial", folder)
            for folder, files in self.left.items()
            if self.place.files(folder) != files
        ]
        self.place.stop()
        if self.place.transactional:
            found += sound(self.place, self.below)
        what = trials[0].what
        violations = [violation.row() for violation in found]
        numbers = [one.number for one in trials]
        return {"what": BATCH, "of": what, "numbers": numbers, "violations": violations}


def _broken(run: Run, error: Exception) -> Row:
    promise = "harness"
    if isinstance(error, CannotServe):
        promise = "mount alone brings it back"
    elif isinstance(error, (Failed, OSError)):
        promise = "goes on"
    detail = "".join(traceback.format_exception(error))
    found = [*run.violations, Violation(promise, str(error) or repr(error), detail=detail)]
    return {**run.row, "violations": [violation.row() for violation in found]}


def main() -> None:
    assert safetensors.torch is not None  # its writers are forked from here
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    _say(answers, {"what": "ready"})
    for line in sys.stdin:
        order = json.loads(line)
        for row in run(Order(**{**order, "numbers": tuple(order["numbers"])})):
            _say(answers, row)
        _say(answers, {"what": "done"})


def _say(answers: Any, row: Row) -> None:
    faulthandler.dump_traceback_later(_HANGS_S)  # says on stderr where it is
    answers.write(json.dumps(row).encode() + b"\n")


if __name__ == "__main__":
    main()
