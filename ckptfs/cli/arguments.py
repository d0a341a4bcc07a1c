"""Arguments as people type them: sizes, times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from ckptfs.disk.filesystem import FileSystem
from ckptfs.units import parse_bytes, parse_seconds

T = TypeVar("T")


def byte_count(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """Callback of an option: of ``10G`` or ``512M``."""
    return None if text is None else _parsed(parse_bytes, text)


def seconds(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """Callback of an option: of ``90``, ``15m``, ``12h``, ``7d``."""
    return None if text is None else _parsed(parse_seconds, text)


def _parsed(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def filesystem(context: click.Context) -> list[Callable[[], FileSystem]]:
    """What makes the one that is served over, if the command line was handed it."""
    return [] if context.obj is None else [context.obj]
