"""What the rows of the benchmark are measured with: sizes, one run, and what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..harness.rig import Samples, Subject, alternate
from ..harness.stats import Estimate, ratio

PLAIN = "plain"
_AGAIN = "plain again"


@dataclass(frozen=True)
class Sizes:
    """How much is written; ``--quick`` tries everything and measures nothing."""

    rounds: int = 20
    ring: int = 0  # earlier checkpoints that stay; those still cached free memory as they go
    save_bytes: int = 1 << 30
    memory_bytes: int = 10 << 30
    writes: int = 4096
    small_files: int = 50
    many_files: int = 100_000
    tree_files: int = 10_000
    mounts: int = 10
    paper_bytes: tuple[int, ...] = (10**6, 10**7, 10**8, 10**9)
    cost_bytes: tuple[int, ...] = (10**8, 10**9, 8 * 10**9)


QUICK = Sizes(2, 1, 1 << 20, 1 << 22, 16, 3, 100, 200, 1, (10**4, 10**5), (10**5,))


@dataclass(frozen=True)
class Result:
    row: str
    what: str
    value: Estimate
    unit: str  # "x": a ratio
    target: float | None = None
    at_least: bool = False
    beside: str = ""
    samples: Samples = field(default_factory=dict)
    key: tuple[int, str, str] | None = None  # where it belongs in the table of ``cost``

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        short = self.target - self.value.median
        return "PASS" if (short <= 0 if self.at_least else short >= 0) else "MISS"


@dataclass
class Bench:
    """One run: the directory it has to itself, the mount under test, and what it found."""

    folder: Path
    sizes: Sizes
    control: bool
    step: Callable[[], None]
    results: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.served, self.plain = self.folder / "served", self.folder / "plain"
        self.plain.mkdir()

    def compare(
        self, subjects: dict[str, Subject], rounds: int | None = None, control: bool = True
    ) -> Samples:
        if self.control and control and PLAIN in subjects:
            subjects = {**subjects, _AGAIN: subjects[PLAIN]}
        return alternate(subjects, rounds or self.sizes.rounds, self.folder, self.step)

    def add(self, row: str, what: str, value: Estimate, unit: str, **more: Any) -> None:
        samples: Samples = more.get("samples", {})
        self.results.append(Result(row, what, value, unit, **more))
        if _AGAIN in samples:
            noise = ratio(samples[_AGAIN], samples[PLAIN])
            self.results.append(Result(row, "  control: plain / plain", noise, "x"))


def only(samples: Samples, *names: str) -> Samples:
    return {name: samples[name] for name in names}
