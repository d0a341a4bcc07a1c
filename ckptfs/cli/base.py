"""What the commands share: the group, errors as one line, the directory below a mount, progress."""

from __future__ import annotations

import errno
import posixpath
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ckptfs import __version__
from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe, CkptfsError, UsageError
from ckptfs.history import earlier
from ckptfs.records.format import CONTROL, FORMAT
from ckptfs.records.layout import Layout
from ckptfs.shown import shown
from ckptfs.units import parse_bytes, parse_seconds

T = TypeVar("T")

_USAGE = 16
_WHOLE = 1000  # characters


class _Group(click.Group):
    """Lists what each command is for without cutting it short."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        listed = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, each.get_short_help_str(_WHOLE))
                    for name, each in listed
                    if not each.hidden
                ]
            )


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="ckptfs")
@click.pass_context
def commands(context: click.Context) -> None:
    """A transactional checkpoint filesystem for AI training."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def absolute(path: str) -> str:
    """The real directory: mountinfo and /proc know no symlinks."""
    return osfs.real_path(path)


def top_of(typed: str) -> tuple[str, str]:
    """The served or known directory that a path lies in, and the path itself, empty for that
    directory: people type one path where two are asked for. What is no path in such a directory is
    given back as it is. Raises CannotServe for a file that is in none."""
    from ckptfs.mount.daemon.apart import above, is_known
    from ckptfs.mount.daemon.inspect import is_mounted

    path = posixpath.abspath(typed)
    # By the table of mounts first: a mount may hang, and this asks it nothing.
    for top in (path, *above(path)):
        if is_mounted(top):
            return (top, path) if top != path else (typed, "")
    path = osfs.real_path(path)
    for top in (path, *above(path)):
        if is_mounted(top) or is_known(top):
            return (top, path) if top != path else (typed, "")
    if posixpath.isfile(path):
        raise CannotServe(f"{typed}: lies in no ckptfs directory (none above it has a .ckptfs)")
    return typed, ""


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


def when(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns / 1e9))


def status_of(directory: str) -> dict[str, Any] | None:
    from ckptfs.mount.daemon import inspect

    try:
        return inspect.status_of(directory)
    except TimeoutError as error:
        raise inspect.silent(directory, error) from None


class Below:
    """The served directory, reached below its mount where there is one. Nothing is changed."""

    def __init__(self, directory: str) -> None:
        from ckptfs.mount.daemon import inspect

        self.fs = OsFs()
        self.where = absolute(directory)
        found = status_of(self.where)
        if found and not inspect.is_here(found):
            raise CannotServe(
                f"{directory}: served from another pid namespace (a container): run this there"
            )
        if not found and (told := inspect.covered(self.where)):
            raise CannotServe(told)
        path = inspect.below(found) if found else self.where
        try:
            self.root = osfs.open_directory(path)
        except OSError as error:
            dead = "; its daemon is gone, `ckptfs mount` or `ckptfs umount` clears it"
            inside = "; run it outside of `ckptfs run`, which hides what is below the mount"
            hints = {errno.ENOTCONN: dead, errno.EACCES: inside if found else ""}
            hint = hints.get(error.errno or 0, "")
            raise CannotServe(f"{directory}: {error.strerror}{hint}") from None
        self.served = found
        self.served_at = str(found["mountpoint"]) if found else ""
        self.directory = str(found["directory"]) if found else self.where
        self.layout = Layout.existing(self.fs, self.root, self.where)

    def needed_layout(self) -> Layout:
        if self.layout is None:
            raise CannotServe(
                f"{self.where}: no ckptfs directory ({CONTROL}/{FORMAT} is missing); serve it once "
                f"with `ckptfs mount {self.where}`, or record what is there with `ckptfs adopt`"
            )
        return self.layout

    def reopen(self) -> None:
        """The layout may have been made meanwhile."""
        self.layout = Layout.existing(self.fs, self.root, self.where)

    def relative(self, path: str) -> str:
        """A path as typed, seen from the working directory if that lies in the directory, else
        from the directory itself, or absolute; as one relative to it. Symlinks that stay in it are
        followed, but for one that replaced a file: the history there is that of its path."""
        found = self.inside(path)
        if not found:
            raise UsageError(f"{path or '(empty)'}: not a file below {self.where}")
        return found

    def inside(self, path: str) -> str:
        """:meth:`relative`, also of the directory itself, which is empty."""
        for typed in (path, posixpath.join(self.where, path)) if path else ():
            if posixpath.islink(typed):
                folder, name = posixpath.split(typed)
                itself = self._below_top(posixpath.join(osfs.real_path(folder), name))
                if self.layout and itself in earlier.lineages_by_path(self.layout):
                    return itself
            found = self._below_top(osfs.real_path(typed))
            if found is not None:
                return found
        normal = posixpath.normpath(path)
        if not path or normal.startswith(("/", "../")) or normal in ("..", "."):
            raise UsageError(f"{path or '(empty)'}: not a file below {self.where}")
        return normal

    def _below_top(self, real: str) -> str | None:
        for top in (self.where, self.served_at, self.directory):
            if top and (real == top or real.startswith(f"{top}/")):
                return real[len(top) + 1 :]
        return None


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
