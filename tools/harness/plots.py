"""What the pictures of the studies share; matplotlib may be missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NO_MATPLOTLIB = "no plot: matplotlib is not installed (pip install 'ckptfs[dev]')"
_DPI = 160


def pyplot() -> Any | None:
    """matplotlib's, without a screen; None where it is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    return pyplot


def headline(figure: Any, text: str, fontsize: int = 14) -> None:
    """Above all panels, at the left edge."""
    figure.suptitle(text, fontsize=fontsize, weight="bold", x=0.01, ha="left")


def save(figure: Any, stem: Path) -> None:
    """As ``stem``.png and .svg."""
    for suffix in (".png", ".svg"):
        figure.savefig(stem.with_suffix(suffix), dpi=_DPI)
