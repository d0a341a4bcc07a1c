"""What people read: lines, sizes, times, errors in one line, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from ckptfs.errors import CannotServe, CkptfsError
from ckptfs.shown import shown

_USAGE = 16


def run_or_fail(work: Callable[[], object]) -> None:
    try:
        work()
    except click.exceptions.Abort:
        fail("interrupted", 130)
    except click.UsageError as error:
        hint = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        fail(f"{error.format_message().rstrip('.')}{hint}", _USAGE)
    except CkptfsError as error:
        fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}", CannotServe.exit_code)


def fail(message: str, code: int) -> None:
    say(f"ckptfs: {message}", err=True)
    sys.exit(code)


def say(line: str, *, err: bool = False) -> None:
    """For people; what programs read is JSON, or as its own format wants it."""
    click.echo(shown(line), err=err)


def size(count: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def when(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns / 1e9))


class Progress:
    """A bar on a terminal, nothing elsewhere."""

    @staticmethod
    def wanted() -> bool:
        return sys.stderr.isatty()

    def __init__(self, total_bytes: int, silent: bool) -> None:
        self._bar: Any = None
        if not silent and self.wanted():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True)
            )
            self._task = self._bar.add_task("", total=total_bytes)

    def __enter__(self) -> Callable[[int], None]:
        if self._bar is None:
            return lambda size: None
        self._bar.start()
        return lambda size: self._bar.update(self._task, advance=size)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
