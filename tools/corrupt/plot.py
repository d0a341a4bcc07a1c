"""The picture of a corruption study: who notices which damage, as a table in colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..harness import plots
from ..harness.study import Row
from .report import NOTHING, PAPER, Line, Share, lines
from .worker import LOADERS

_OURS = ("noticed", "wrong bytes\nserved", "no proof,\nserved")
_GAP = 0.2  # between what is ours and the loaders, in cells
_NOTES = (
    "ckptfs: noticed at open or by verify, but for those of which nothing tells that they are no "
    "save (no proof).",
    "The loaders: raised an error, from the same damaged bytes; "
    f"{NOTHING} where the file's own bytes are sound.",
    f"{PAPER}.",
)


def plot(rows: Sequence[Row], stem: Path, *, control: bool) -> bool:
    """Write ``stem``.png and .svg. False where matplotlib is missing."""
    pyplot = plots.pyplot()
    if pyplot is None:
        return False
    found = lines(rows)
    figure, axes = pyplot.subplots(figsize=(11, 0.44 * len(found) + 2.7), layout="constrained")
    for y, line in enumerate(found):
        _row(pyplot, axes, y, line)
    heads = [*_OURS, *(name.replace(" mmap", "\nmmap") for name in LOADERS)]
    axes.set_xticks([_left(x) + 0.48 for x in range(len(heads))], heads, fontsize=10)
    names = [f"{line.name}   n = {len(line.rows):,}" for line in found]
    axes.set_yticks([y + 0.47 for y in range(len(found))], names, fontsize=10)
    axes.axhline(len(found) - 1.04, color="#404040", linewidth=0.8)
    axes.set_xlim(-0.02, _left(len(heads)))
    axes.set_ylim(len(found), -0.08)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for first, last, group in (
        (0, len(_OURS) - 1, "ckptfs"),
        (len(_OURS), len(heads) - 1, "noticed by the loaders themselves"),
    ):
        middle = (_left(first) + _left(last) + 0.96) / 2
        axes.text(middle, -1.15, group, ha="center", va="bottom", fontsize=11, weight="bold")
    title = f"{len(found[-1].rows):,} damaged checkpoints: what is noticed"
    if control:
        title += " (control: opens are not checked)"
    plots.headline(figure, title)
    figure.supxlabel("\n".join(_NOTES), fontsize=8.5, color="#404040", x=0.01, ha="left")
    plots.save(figure, stem)
    pyplot.close(figure)
    return True


def _left(x: int) -> float:
    return x + (_GAP if x >= len(_OURS) else 0)


def _row(pyplot: Any, axes: Any, y: int, line: Line) -> None:
    ours = [line.noticed, line.wrong, line.unproven]
    colours = dict(enumerate([pyplot.cm.Blues, pyplot.cm.Reds, pyplot.cm.Oranges]))
    for x, share in enumerate([*ours, *(line.by_loader(name) for name in LOADERS)]):
        _cell(pyplot, axes, (_left(x), y), share, colours.get(x, pyplot.cm.Blues))


def _cell(pyplot: Any, axes: Any, at: tuple[float, float], share: Share, colours: Any) -> None:
    value = share.value
    if value is not None:
        face = colours(0.06 + 0.84 * value) if value else "#f0f0f0"
        axes.add_patch(pyplot.Rectangle(at, 0.96, 0.92, facecolor=face, edgecolor="none"))
    ink = "#b0b0b0" if value is None else "white" if value > 0.55 else "#202020"
    middle = (at[0] + 0.48, at[1] + 0.47)
    axes.text(*middle, str(share), ha="center", va="center", color=ink, fontsize=10)
