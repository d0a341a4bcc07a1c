"""The picture of the study of power cuts: how many crash states violate the contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...harness import plots
from ...harness.study import Row
from .check import severity
from .report import how, in_order, states_in, total

_OTHER = "other"
_COLOURS = [f"C{number}" for number in range(10)]
_SHOWN = 8  # kinds of violation with a colour of their own


def plot(rows: Sequence[Row], stem: Path) -> bool:
    """Write ``stem``.png and .svg. False where matplotlib is missing."""
    pyplot = plots.pyplot()
    if pyplot is None:
        return False
    rows = in_order(rows)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    names = list(dict.fromkeys(how(row) for row in rows))
    shown = [what for what, _ in total(rows, "worst").most_common(_SHOWN)]
    shown.sort(key=severity)
    colours = dict(zip([*shown, _OTHER], _COLOURS, strict=False))
    figure, panels = pyplot.subplots(
        1,
        len(kinds),
        sharey=True,
        squeeze=False,
        layout="constrained",
        figsize=(3.2 + 3.0 * len(kinds), 1.9 + 0.36 * len(names)),
    )
    for axes, kind in zip(panels[0], kinds, strict=True):
        for y, name in enumerate(names):
            _bar(axes, y, [r for r in rows if (r["kind"], how(r)) == (kind, name)], colours)
        axes.set_title(kind, fontsize=12, weight="bold")
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of its crash states violate the contract", fontsize=8.5)
        axes.tick_params(left=False, labelsize=9)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    panels[0][0].set_yticks(range(len(names)), names)
    panels[0][0].invert_yaxis()
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.legend(
        handles,
        list(colours),
        loc="outside lower center",
        ncols=5,
        fontsize=8.5,
        frameon=False,
        title="the worst that is wrong in a state",
        title_fontsize=8.5,
    )
    plots.headline(figure, f"{states_in(rows):,} crash states at block level")
    plots.save(figure, stem)
    pyplot.close(figure)
    return True


def _bar(axes: Any, y: int, rows: Sequence[Row], colours: dict[str, str]) -> None:
    states, left = states_in(rows), 0.0
    if not states:
        axes.text(1, y, "-", va="center", fontsize=8.5, color="#a0a0a0")
        return
    worst = total(rows, "worst")
    for what, colour in colours.items():
        count = worst.pop(what, 0) if what != _OTHER else sum(worst.values())
        axes.barh(y, 100 * count / states, left=left, color=colour, height=0.7)
        left += 100 * count / states
    violating = round(left * states / 100)
    axes.text(left + 1, y, f"{violating:,} of {states:,}", va="center", fontsize=8.5)
