"""Sizes and times as people type them."""

from __future__ import annotations

_SIZES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LIMIT = float(1 << 62)


def parse_bytes(text: str) -> int:
    """Of ``512M``, ``10G``, ``1.5T``, ``10GiB``, or plain bytes; K is 1,024. Raises ValueError."""
    number = text.strip()
    unit = number.lstrip("0123456789._")
    value = _number(number[: len(number) - len(unit)])
    unit = unit.strip().upper()
    if len(unit) > 1:
        unit = unit.removesuffix("IB").removesuffix("B")
    if unit not in _SIZES or not value * _SIZES[unit] < _LIMIT:
        raise ValueError(f"{text}: not a size, such as 512M, 10G or 1T")
    return int(value * _SIZES[unit])


def parse_seconds(text: str) -> float:
    """Of ``90``, ``15m``, ``12h``, ``7d``. Raises ValueError."""
    unit = text[-1:] if text[-1:].isalpha() else ""
    value = _number(text[: len(text) - len(unit)])
    if unit not in _SECONDS or not 0 <= value * _SECONDS[unit] < _LIMIT:
        raise ValueError(f"{text}: not a time, such as 90s, 15m, 12h or 7d")
    return value * _SECONDS[unit]


def _number(digits: str) -> float:
    """Infinite for what is none."""
    try:
        return float(digits)
    except ValueError:
        return float("inf")
