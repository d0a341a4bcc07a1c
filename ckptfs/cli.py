"""The commands. Parsing and printing only; what they do lives elsewhere.

Exit codes: those of fsck(8) for ``verify`` (0 clean, 1 repaired, 4 left uncorrected, 8 could not
run, 16 usage), each error class's own for the rest. Errors are one line on stderr.
"""

from __future__ import annotations

import errno
import io
import json
import posixpath
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ckptfs import __version__, history, osfs
from ckptfs.digest import ALGORITHMS
from ckptfs.errors import CannotServe, CkptfsError, UsageError
from ckptfs.format import Record
from ckptfs.layout import Layout
from ckptfs.osfs import OsFs
from ckptfs.protocol import Mode
from ckptfs.store import Options
from ckptfs.verify import BAD, Condition, Finding, examine_all, walk

if TYPE_CHECKING:
    from ckptfs.mount.daemon import MountOptions

_USAGE = 16
_NEED_ATTENTION = 4


def main() -> None:
    """The ``ckptfs`` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names need not be UTF-8
    if "-o" in sys.argv[3:4] and sys.argv[1] not in commands.commands:
        mount_helper()  # `ckptfs DIR MOUNTPOINT -o OPTIONS`: how mount.fuse calls a filesystem
    else:
        _run(lambda: commands.main(standalone_mode=False))


def mount_helper() -> None:
    """``mount.fuse.ckptfs``, as mount(8) calls it; see ``ckptfs.mount.helper``."""
    _run(lambda: _as_helper(sys.argv[1:]))


def _as_helper(arguments: list[str]) -> None:
    from ckptfs.mount import helper

    options = [option for option in mount.params if isinstance(option, click.Option)]
    names = {name.lstrip("-"): option.is_flag for option in options for name in option.opts}
    translated = helper.command_line(arguments, names)
    if translated is not None:
        commands.main(["mount", *translated], standalone_mode=False)


def _run(work: Callable[[], object]) -> None:
    try:
        work()
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except click.UsageError as error:
        hint = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        _fail(f"{error.format_message()}{hint}", _USAGE)
    except CkptfsError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", CannotServe.exit_code)


def _fail(message: str, code: int) -> None:
    click.echo(f"ckptfs: {message}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ckptfs")
def commands() -> None:
    """A transactional checkpoint filesystem for AI training."""


def _absolute(path: str) -> str:
    """The real directory: mountinfo and /proc know no symlinks."""
    return osfs.real_path(path)


# --- mount, umount, status -----------------------------------------------------------------------


@commands.command()
@click.argument("directory")
@click.argument("mountpoint", required=False)
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.ATOMIC_DIRSYNC.value,
    show_default=True,
    help="How a version becomes visible and durable.",
)
@click.option("--checksum", type=click.Choice(ALGORITHMS), default="blake3", show_default=True)
@click.option(
    "--keep",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Earlier generations retained per file.",
)
@click.option(
    "--verify",
    type=click.Choice(["open", "off"]),
    default="open",
    show_default=True,
    help="Check digests when a file is opened for reading.",
)
@click.option(
    "--validate",
    type=click.Choice(["overwrite", "off"]),
    default="overwrite",
    show_default=True,
    help="Refuse to replace a sound checkpoint by one that is not whole.",
)
@click.option(
    "--in-place",
    "in_place",
    multiple=True,
    metavar="GLOB",
    help="Also write these in place, without transactions.",
)
@click.option("--salvage-bytes", type=click.IntRange(0), default=16 << 30, show_default=True)
@click.option(
    "--binding",
    type=click.Choice(["kernel", "fusepy", "refuse"]),
    envvar="CKPTFS_BINDING",
    show_envvar=True,
    help="How FUSE is spoken: to the kernel (the default on Linux), or through libfuse 2.",
)
@click.option("--no-passthrough", is_flag=True, help="Relay data through the daemon.")
@click.option("--allow-other", is_flag=True, help="Let other users in (root's mounts do).")
@click.option("--foreground", is_flag=True, help="Stay, and log to the terminal.")
@click.option("--log", "log_file", default="", metavar="FILE", help="Where the daemon logs.")
@click.option(
    "--stop-timeout",
    type=click.FloatRange(0),
    default=25.0,
    show_default=True,
    metavar="SECONDS",
    help="After SIGTERM, serve on while the mount is used, at most this long.",
)
def mount(directory: str, mountpoint: str | None, **given: Any) -> None:
    """Serve DIRECTORY over itself, or at MOUNTPOINT. Returns once it is served."""
    from ckptfs.mount.daemon import mount as start

    start(_mount_options(directory, mountpoint, given))


def _mount_options(directory: str, mountpoint: str | None, given: dict[str, Any]) -> MountOptions:
    from ckptfs.mount.daemon import MountOptions
    from ckptfs.mount.sessions import choose

    served = _absolute(directory)
    options = Options(
        mode=Mode(given["mode"]),
        checksum=given["checksum"],
        keep=given["keep"],
        verify_opens=given["verify"] == "open",
        validate=given["validate"] == "overwrite",
        in_place=tuple(given["in_place"]),
        salvage_bytes=given["salvage_bytes"],
    )
    return MountOptions(
        directory=served,
        mountpoint=_absolute(mountpoint) if mountpoint else served,
        store=options,
        binding=choose(given.get("binding") or ""),
        passthrough=not given["no_passthrough"],
        allow_other=given.get("allow_other", False),
        foreground=given.get("foreground", False),
        log_file=osfs.real_path(given["log_file"]) if given["log_file"] else "",
        stop_timeout_s=given["stop_timeout"],
    )


@commands.command(options_metavar="[OPTIONS] --")
@click.argument("directory")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(directory: str, command: tuple[str, ...], **given: Any) -> None:
    """Run COMMAND with DIRECTORY served, to it and its children alone.

    Needs neither root nor fusermount3. Ends with COMMAND's exit status, 128 + n if signal n ended
    it; 127 if there is no such command.
    """
    from ckptfs.mount.run import run as start

    sys.exit(start(_mount_options(directory, None, given), command))


_NOT_OF_RUN = {"directory", "mountpoint", "allow_other", "foreground", "help"}
run.params += [option for option in mount.params if option.name not in _NOT_OF_RUN]


@commands.command()
@click.argument("directory")
def umount(directory: str) -> None:
    """End the mount of DIRECTORY; returns once every commit in flight is finished."""
    from ckptfs.mount.daemon import umount as stop

    stop(_absolute(directory))


@commands.command()
@click.argument("directory", default=".")
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
@click.option("--check", is_flag=True, help="Exit 0 serving, 1 not mounted, 2 degraded.")
def status(directory: str, as_json: bool, check: bool) -> None:
    """What serves DIRECTORY, how, and what happened."""
    found = _status(_absolute(directory))
    if found is None:
        from ckptfs.mount import inspect

        why = inspect.not_mounted(_absolute(directory))
        if check:
            click.echo(str(why))
            sys.exit(why.exit_code)
        raise why
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for line in _status_lines(found):
            click.echo(line)
    if check and found["degraded"]:
        sys.exit(2)


def _status(directory: str) -> dict[str, Any] | None:
    from ckptfs.mount import inspect

    try:
        return inspect.status_of(directory)
    except TimeoutError as error:
        message = f"{directory}: {error}; see its log, or `umount -l {directory}`"
        raise CannotServe(message) from None


def _status_lines(found: dict[str, Any]) -> Iterator[str]:
    data = "passthrough" if found["passthrough"] else f"relay ({found['binding']})"
    if found["passthrough_refusal"]:
        data += f": {found['passthrough_refusal']}"
    yield f"{found['directory']} at {found['mountpoint']}: serving, process {found['pid']}"
    yield f"  mode      {found['mode']}, {found['checksum']}, {found['keep']} earlier kept"
    yield f"  data      {data}"
    yield f"  checks    verify={found['verify']} validate={found['validate']}"
    counts = found["counts"]
    yield "  so far    " + (", ".join(f"{counts[k]} {k}" for k in sorted(counts)) or "nothing")
    yield f"  in place  {' '.join(found['in_place'])}"
    yield f"  log       {found['log']}"
    for path in found["writing"]:
        yield f"  writing   {path}"
    for trouble in found["degraded"]:
        yield f"  DEGRADED  {trouble}"
    for event in found["events"]:
        if event["event"] != "committed":
            what = f"{event['event']} {event['path']}: {event['detail']}"
            yield f"  {_when(event['time_ns'])}  {what}"


def _when(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns / 1e9))


# --- the directory below a mount, or by itself ---------------------------------------------------


class _Below:
    """The served directory, reached below its mount where there is one. Nothing is changed."""

    def __init__(self, directory: str) -> None:
        from ckptfs.mount import inspect

        self.fs = OsFs()
        self.where = _absolute(directory)
        found = _status(self.where)
        if found and not inspect.is_here(found):
            raise CannotServe(
                f"{directory}: served from another pid namespace (a container): run this there"
            )
        path = inspect.below(found) if found else self.where
        try:
            self.root = osfs.open_directory(path)
        except OSError as error:
            dead = "; its daemon is gone, `ckptfs mount` or `ckptfs umount` clears it"
            inside = "; run it outside of `ckptfs run`, which hides what is below the mount"
            hints = {errno.ENOTCONN: dead, errno.EACCES: inside if found else ""}
            hint = hints.get(error.errno or 0, "")
            raise CannotServe(f"{directory}: {error.strerror}{hint}") from None
        self.layout = Layout.existing(self.fs, self.root, self.where)

    def relative(self, path: str) -> str:
        """A path as typed, under the directory or absolute, as one relative to it."""
        real = osfs.real_path(path)
        inside = real.startswith(self.where + "/")
        found = posixpath.relpath(real, self.where) if inside else posixpath.normpath(path)
        if found.startswith(("/", "../")) or found in ("..", "."):
            raise UsageError(f"{path or '(empty)'}: not a file below {self.where}")
        return found


# --- verify --------------------------------------------------------------------------------------


@commands.command()
@click.argument("directory")
@click.argument("paths", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, then a summary.")
@click.option("--jobs", "-j", type=click.IntRange(1), default=None, help="Files read at once.")
@click.option("--quiet", is_flag=True, help="Only what is wrong.")
def verify(
    directory: str, paths: tuple[str, ...], as_json: bool, jobs: int | None, quiet: bool
) -> None:
    """Check every file of DIRECTORY, or the PATHS in it, against its record.

    Works with and without a mount. Exit codes as fsck(8): 0 clean, 4 damage found, 8 could not
    run, 16 usage.
    """
    below = _Below(directory)
    if below.layout is None:
        raise CannotServe(
            f"{directory}: no ckptfs directory (nothing is recorded here); "
            f"serve it once with `ckptfs mount {directory}`"
        )
    named = [below.relative(path) for path in paths]
    files = [(path, 0) for path in named] or list(walk(below.fs, below.root))
    total_bytes = sum(size for _, size in files)
    findings = examine_all(below.layout, [p for p, _ in files], jobs or osfs.cpu_count())
    counts: Counter[Condition] = Counter()
    with _progress(total_bytes, quiet or as_json) as advance:
        for finding in findings:
            counts[finding.condition] += 1
            advance(finding.size_bytes)
            _print_finding(finding, as_json, quiet)
    bad = sum(counts[condition] for condition in BAD)
    bad += counts[Condition.MISSING] if named else 0
    summary = {condition.value: count for condition, count in sorted(counts.items(), key=str)}
    if as_json:
        click.echo(json.dumps({"summary": summary, "files": len(files), "bytes": total_bytes}))
    elif not quiet or bad:
        click.echo(_summary(directory, len(files), summary, bad))
    sys.exit(_NEED_ATTENTION if bad else 0)


def _print_finding(finding: Finding, as_json: bool, quiet: bool) -> None:
    condition = finding.condition
    if as_json:
        record = finding.record
        row = {
            "path": finding.path,
            "condition": condition.value,
            "size": finding.size_bytes,
            "digest": record.digest if record else None,
            "generation": record.generation if record else None,
            "detail": finding.detail,
        }
        click.echo(json.dumps(row))
    elif condition in BAD or (condition is not Condition.OK and not quiet):
        detail = f": {finding.detail}" if finding.detail else ""
        click.echo(f"{condition.value:15} {finding.path}{detail}")


def _summary(directory: str, files: int, summary: dict[str, int], bad: int) -> str:
    parts = ", ".join(f"{count} {name}" for name, count in summary.items()) or "no files"
    line = f"{directory}: {files} files checked: {parts}"
    if bad:
        line += "\nopen a damaged file through the mount to get its last good generation back"
    return line


class _progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, total_bytes: int, silent: bool) -> None:
        self._bar: Any = None
        if not silent and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

            self._bar = Progress(
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


# --- log -----------------------------------------------------------------------------------------


@commands.command()
@click.argument("directory")
@click.argument("path", required=False)
def log(directory: str, path: str | None) -> None:
    """The generations of PATH, or what lies in salvage and quarantine."""
    below = _Below(directory)
    if below.layout is None:
        raise CannotServe(f"{directory}: no ckptfs directory")
    if path is not None:
        _log_path(below, below.relative(path))
        return
    layout = below.layout
    for folder, what in ((layout.quarantine, "quarantine"), (layout.salvage, "salvage")):
        for entry in layout.set_aside(folder):
            when, where = _when(int(str(entry["time_ns"]))), f"{what}/{entry['id']}"
            why = f"{entry.get('path') or '?'}: {entry.get('reason', '')}"
            click.echo(f"{when}  {where}  {entry['size']} bytes  {why}")


def _log_path(below: _Below, path: str) -> None:
    assert below.layout is not None
    layout = below.layout
    with (
        osfs.place(below.fs, below.root, path) as (at, name),
        osfs.opened(below.fs, at, name, osfs.O_RDONLY) as fd,
    ):
        if not osfs.is_regular(below.fs.stat(fd)):
            raise CannotServe(f"{path}: not a file; only files have generations")
        record = layout.read_record(fd)
    if record is None:
        click.echo(f"{path}: no record (written in place, or there before ckptfs)")
        return
    click.echo(f"{_log_line(record)}  current, {record.mode.value}, {record.structure}")
    for generation in history.generations(layout, record.lineage):
        with (
            osfs.opened(below.fs, layout.history, record.lineage, osfs.DIRECTORY) as kept,
            osfs.opened(below.fs, kept, str(generation), osfs.O_RDONLY) as fd,
        ):
            old = layout.read_record(fd)
        click.echo(_log_line(old) if old else f"generation {generation}  unrecorded")


def _log_line(record: Record) -> str:
    when = _when(record.committed_ns)
    return f"generation {record.generation}  {when}  {record.size_bytes} bytes  {record.digest}"


# --- doctor, demo --------------------------------------------------------------------------------


@commands.command()
@click.argument("directory", default=".")
def doctor(directory: str) -> None:
    """What of this machine and DIRECTORY carries ckptfs, and what to do about the rest."""
    from ckptfs.mount.doctor import examine

    worst = 0
    for check in examine(_absolute(directory)):
        click.echo(f"{check.verdict:5} {check.what}: {check.found}")
        if check.advice:
            click.echo(f"      -> {check.advice}")
        worst = max(worst, CannotServe.exit_code if check.verdict == "FAIL" else 0)
    sys.exit(worst)


@commands.command()
@click.option("--megabytes", type=click.IntRange(1), default=64, help="Size of the checkpoint.")
def demo(megabytes: int) -> None:
    """Train, kill, corrupt and recover in a temporary directory, and show what happens."""
    try:
        from ckptfs.tools.demo import run
    except ImportError as error:
        raise CannotServe(f"the demo needs torch: pip install 'ckptfs[torch]' ({error})") from None
    sys.exit(run(megabytes))
