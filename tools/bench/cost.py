"""What a save costs a user: his plain ``torch.save`` beside the mount, in each mode and size.

Each way of saving runs once per round on fresh files, all ways of one size by turns. Two measures:
the plain ``torch.save``, which is not durable when it returns, and the same with an fsync, which is
what ckptfs has to be compared with.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ..harness import plots
from ..harness.rig import Mount, Subject, memory, mount_table, timed
from ..harness.stats import Estimate, estimate, ratio
from .by_hand import state_of, synced, torch_or_fail
from .measure import Bench, Result, only

ROW = "cost"
PLAIN, DURABLE = "plain torch.save", "plain + fsync"
CONTROL = "plain torch.save again"
MEASURES = (DURABLE, PLAIN)
MOUNTS = {  # the options of the mount, and what a save survives once it has returned
    "ckptfs, default": ((), "power cuts"),
    "ckptfs, relayed": (("--no-passthrough",), "power cuts"),
    "ckptfs, atomic_nodirsync": (("--mode", "atomic_nodirsync"), "kills; a power cut: old or new"),
    "ckptfs, unsafe": (("--mode", "unsafe"), "nothing"),
}
SURVIVES = {
    PLAIN: "nothing",
    DURABLE: "power cuts after it, none in it",
    **{way: what for way, (_, what) in MOUNTS.items()},
    CONTROL: "nothing",
}
_ROOM = 4  # times the size, on the disk: each way leaves nothing, but a delete may come late
_IN_MEMORY = 2.5  # times the size: the state, and a file in the page cache


def cost(bench: Bench, _rows: set[str]) -> None:
    """What a save costs: torch.save, plain, durable, and through mounts in each mode."""
    torch = torch_or_fail()
    with contextlib.ExitStack() as ending:
        for way, (options, _) in MOUNTS.items():
            ending.enter_context(Mount(_folder(bench, way), *options))
        ways = [way for way in SURVIVES if bench.control or way != CONTROL]
        for way in set(ways) - set(MOUNTS):
            _folder(bench, way).mkdir()
        for size in filter(lambda size: _fits(bench.folder, size), bench.sizes.cost_bytes):
            state = state_of(size)
            saves = {way: _save(torch, state, durable=way == DURABLE) for way in ways}
            samples = bench.compare({w: _subject(_folder(bench, w), saves[w]) for w in saves})
            del state, saves
            for way, measure in itertools.product(ways, MEASURES):
                if way != measure:
                    value = ratio(samples[way], samples[measure])
                    both = only(samples, way, measure)
                    what = f"{_mega(size)}: {way} / {measure}"
                    bench.add(ROW, what, value, "x", samples=both, key=(size, way, measure))


def _folder(bench: Bench, way: str) -> Path:
    return bench.folder / f"cost {way}"


def _fits(folder: Path, size: int) -> bool:
    short = shutil.disk_usage(folder).free < _ROOM * size or memory() < _IN_MEMORY * size
    if short:
        click.echo(f"{_mega(size)}: left out, for want of room", err=True)
    return not short


def _save(torch: Any, state: object, *, durable: bool) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        torch.save(state, str(path))
        if durable:
            synced(path)

    return save


def _subject(folder: Path, save: Callable[[Path], None]) -> Subject:
    path = folder / "save.pt"
    return timed(lambda: save(path), path.unlink)


def _mega(size: int) -> str:
    return f"{size / 1e9:g} GB" if size >= 10**9 else f"{size / 1e6:g} MB"


# --- what is shown of it -------------------------------------------------------------------------


def _seconds(results: Sequence[Result], size: int, measure: str) -> Estimate:
    """What the measure itself took."""
    return next(
        estimate(result.samples[measure])
        for result in results
        if result.key and (result.key[0], result.key[2]) == (size, measure)
    )


def _found(results: Sequence[Result]) -> dict[tuple[int, str, str], Estimate]:
    """By size, way and measure."""
    return {result.key: result.value for result in results if result.key}


def markdown(results: Sequence[Result]) -> str:
    """A table for each measure: a way a line, a size a column."""
    found = _found(results)
    sizes = sorted({size for size, _, _ in found})
    lines = []
    for measure in MEASURES:
        heads = "".join(f" {_mega(size)} |" for size in sizes)
        lines += [
            "",
            f"| times {measure} | survives |{heads}",
            f"| --- | --- |{' ---: |' * len(sizes)}",
        ]
        taken = "".join(f" 1 = {_seconds(results, n, measure).median:.2f} s |" for n in sizes)
        lines.append(f"| {measure} | {SURVIVES[measure]} |{taken}")
        for way, survives in SURVIVES.items():
            if any((size, way, measure) in found for size in sizes):
                cells = "".join(f" {_cell(found, (size, way, measure))} |" for size in sizes)
                lines.append(f"| {way} | {survives} |{cells}")
    return "\n".join(lines[1:])


def _cell(found: dict[tuple[int, str, str], Estimate], key: tuple[int, str, str]) -> str:
    value = found.get(key)
    return f"{value.median:.2f} ({value.low:.2f} to {value.high:.2f})" if value else "-"


_MARKS = {DURABLE: ("o", "#1f77b4", 0.14), PLAIN: ("D", "#ff7f0e", -0.14)}


def plot(results: Sequence[Result], stem: Path) -> bool:
    """Write ``stem``.png and .svg: a panel a size, a line a way. False without matplotlib."""
    pyplot = plots.pyplot()
    found = _found(results)
    if pyplot is None or not found:
        return False
    sizes = sorted({size for size, _, _ in found})
    ways = list(MOUNTS)
    figure, panels = pyplot.subplots(
        1,
        len(sizes),
        sharey=True,
        sharex=True,
        squeeze=False,
        layout="constrained",
        figsize=(2.6 + 2.9 * len(sizes), 3.6),
    )
    for axes, size in zip(panels[0], sizes, strict=True):
        _panel(axes, found, size, ways)
        axes.set_title(_mega(size), fontsize=12, weight="bold")
    panels[0][0].set_yticks(range(len(ways)), ways)
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    plots.headline(
        figure, "Time of a torch.save through the mount, as a multiple of the plain one", 13
    )
    plots.save(figure, stem)
    pyplot.close(figure)
    return True


def _panel(
    axes: Any, found: dict[tuple[int, str, str], Estimate], size: int, ways: Sequence[str]
) -> None:
    for measure, (mark, colour, above) in _MARKS.items():
        at = [(y, found[size, way, measure]) for y, way in enumerate(ways)]
        medians = [value.median for _, value in at]
        axes.errorbar(
            medians,
            [y - above for y, _ in at],
            xerr=[
                [value.median - value.low for _, value in at],
                [value.high - value.median for _, value in at],
            ],
            fmt=mark,
            color=colour,
            markersize=6,
            capsize=3,
            label=f"times {measure}",
        )
    axes.axvline(1, color="#808080", linewidth=0.8, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    axes.grid(axis="x", color="#e8e8e8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(left=False, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def machine(folder: Path) -> str:
    """In words: cores, memory, kernel, filesystem."""
    kind = "?"
    here = os.path.realpath(folder)
    inside = [f for f in mount_table() if (here + "/").startswith(f[4].rstrip("/") + "/")]
    if inside:
        above = max(inside, key=lambda f: len(f[4]))
        kind = above[above.index("-") + 1]
    release = ".".join(os.uname().release.split(".")[:2])
    return f"{os.cpu_count()} cores, {round(memory() / 2**30)} GiB, Linux {release}, {kind}"
