"""``mount``, ``run``, ``umount``, ``status``."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ckptfs.cli import monitoring
from ckptfs.cli.base import (
    Below,
    absolute,
    byte_count,
    commands,
    say,
    seconds,
    size,
    status_of,
    when,
)
from ckptfs.disk import osfs
from ckptfs.disk.digest import ALGORITHMS
from ckptfs.errors import CannotServe, NotMounted, UsageError
from ckptfs.modes import Mode, Outside
from ckptfs.store import Options
from ckptfs.upkeep.usage import usage

if TYPE_CHECKING:
    from ckptfs.mount.daemon.options import MountOptions

_DEGRADED = 2  # exit code


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
    type=click.IntRange(0, 1_000_000),
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
    "--outside",
    type=click.Choice([outside.value for outside in Outside]),
    default=Outside.JUDGE.value,
    show_default=True,
    help="Files changed behind ckptfs: judge damage by evidence, or accept or refuse them all.",
)
@click.option(
    "--in-place",
    "in_place",
    multiple=True,
    metavar="GLOB",
    help="Also write these in place, without transactions.",
)
@click.option(
    "--share/--no-share",
    default=True,
    help="Give every earlier version blocks of its own (XFS and btrfs share what is equal).",
)
@click.option(
    "--salvage-bytes",
    callback=byte_count,
    default="16G",
    show_default=True,
    metavar="SIZE",
    help="What salvage and quarantine may take together (512M, 10G, 1T…); the oldest goes.",
)
@click.option(
    "--salvage-entries",
    type=click.IntRange(0),
    default=10_000,
    show_default=True,
    help="How many files may lie in salvage and quarantine together.",
)
@click.option(
    "--binding",
    type=click.Choice(["kernel", "fusepy", "refuse"]),
    envvar="CKPTFS_BINDING",
    show_envvar=True,
    help="How FUSE is spoken: to the kernel (the default on Linux), or through libfuse 2.",
)
@click.option("--passthrough/--no-passthrough", default=True, help="Relay data through the daemon.")
@click.option("--allow-other", is_flag=True, help="Let other users in (root's mounts do).")
@click.option("--foreground", is_flag=True, help="Stay, and log to the terminal.")
@click.option("--log", "log_file", default="", metavar="FILE", help="Where the daemon logs.")
@click.option(
    "--stop-timeout",
    callback=seconds,
    default="25s",
    show_default=True,
    metavar="TIME",
    help="After SIGTERM, serve on while the mount is used, at most this long; then leave it dead.",
)
@click.option(
    "--release/--no-release",
    default=False,
    help="After that time take a used mount away: later saves go to the plain directory.",
)
@click.option(
    "--scrub-interval",
    callback=seconds,
    default="7d",
    show_default=True,
    metavar="TIME",
    help="Read everything again that often, at idle priority (12h, 7d…; 0: never).",
)
@monitoring.metrics_option
@monitoring.on_event_option
def mount(directory: str, mountpoint: str | None, **given: Any) -> None:
    """Serve DIRECTORY over itself, or at MOUNTPOINT. Returns once it is served."""
    from ckptfs.mount.daemon.start import mount as start

    start(_mount_options(directory, mountpoint, given))


def _mount_options(directory: str, mountpoint: str | None, given: dict[str, Any]) -> MountOptions:
    from ckptfs.mount.daemon.options import MountOptions
    from ckptfs.mount.operations.sessions import choose

    served = absolute(directory)
    options = Options(
        mode=Mode(given["mode"]),
        outside=Outside(given["outside"]),
        checksum=given["checksum"],
        keep=given["keep"],
        verify_opens=given["verify"] == "open",
        validate=given["validate"] == "overwrite",
        in_place=tuple(given["in_place"]),
        salvage_bytes=given["salvage_bytes"],
        salvage_entries=given["salvage_entries"],
        share=given["share"],
    )
    return MountOptions(
        directory=served,
        mountpoint=absolute(mountpoint) if mountpoint else served,
        store=options,
        binding=choose(given.get("binding") or ""),
        passthrough=given["passthrough"],
        allow_other=given.get("allow_other", False),
        foreground=given.get("foreground", False),
        log_file=osfs.real_path(given["log_file"]) if given["log_file"] else "",
        stop_timeout_s=given["stop_timeout"],
        release=given.get("release", False),
        scrub_interval_s=given["scrub_interval"],
        metrics=given["metrics"],
        on_event=given["on_event"],
    )


class _WithCommand(click.Command):
    """From its second argument on everything belongs to the command that is run, so that `--`
    ahead of it is not needed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        takes_value = {
            name: not option.is_flag
            for option in self.params
            if isinstance(option, click.Option)
            for name in (*option.opts, *option.secondary_opts)
        }
        arguments = at = 0
        while at < len(args) and args[at] != "--":
            if args[at].startswith("-"):
                at += takes_value.get(args[at], False)
            else:
                arguments += 1
            if arguments == 2:
                args.insert(at, "--")
                break
            at += 1
        return super().parse_args(ctx, args)


@commands.command(cls=_WithCommand)
@click.argument("directory")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(directory: str, command: tuple[str, ...], **given: Any) -> None:
    """Run COMMAND with DIRECTORY served, to it and its children alone.

    Needs neither root nor fusermount3. Ends with COMMAND's exit status, 128 + n if signal n ended
    it; 127 if there is no such command.
    """
    from ckptfs.mount.daemon.run import run as start

    sys.exit(start(_mount_options(directory, None, given), command))


_NOT_OF_RUN = {"directory", "mountpoint", "allow_other", "foreground", "release", "help"}
run.params += [option for option in mount.params if option.name not in _NOT_OF_RUN]


@commands.command()
@click.argument("directory")
@click.option(
    "--timeout",
    "timeout_s",
    callback=seconds,
    default="30s",
    show_default=True,
    metavar="TIME",
    help="Wait at most this long for a moment in which no long commit is under way.",
)
@click.pass_context
def restart(context: click.Context, /, directory: str, timeout_s: float, **given: Any) -> None:
    """Have the daemon of DIRECTORY go on as this version of ckptfs, with new options.

    Options that are not given stay. Whatever programs have open stays open; what they ask for
    meanwhile waits. If it cannot be done the daemon serves on as it was.
    """
    from ckptfs.mount.daemon.restart import restart as ask

    options = _mount_options(directory, None, given)
    names = {name for name in given if context.get_parameter_source(name) is _BY_USER}
    fields = {_FIELDS.get(name, name) for name in names}
    where, told = absolute(directory), functools.partial(say, err=True)
    for trouble in ask(where, options, fields, timeout_s=timeout_s, say=told):
        click.echo(f"warning: {trouble}", err=True)


_BY_USER = ParameterSource.COMMANDLINE
_FIELDS = {  # of MountOptions and Options, by other names than those of the command line
    "verify": "verify_opens",
    "stop_timeout": "stop_timeout_s",
    "scrub_interval": "scrub_interval_s",
}
_OF_THE_MOUNT = {"directory", "mountpoint", "binding", "allow_other", "foreground", "help"}
restart.params += [option for option in mount.params if option.name not in _OF_THE_MOUNT]


@commands.command(hidden=True)
@click.argument("directory")
@click.argument("state", type=int)
@click.option("--try", "only_try", is_flag=True)
def resume(directory: str, state: int, only_try: bool) -> None:
    """What a daemon becomes by `restart`; of no use to anybody else."""
    from ckptfs.mount.daemon.resuming import resume as go_on

    go_on(state, only_try=only_try)


@commands.command()
@click.argument("directory")
@click.option(
    "--timeout",
    "timeout_s",
    callback=seconds,
    metavar="TIME",
    help="Wait at most this long: while it is used (default: 5s), and for commits (until done).",
)
@click.option("--force", is_flag=True, help="Then take it away, and end its daemon.")
@click.option(
    "--release",
    is_flag=True,
    help="Detach it though it is used: open files are served until they are closed, later saves go "
    "to the plain directory.",
)
def umount(directory: str, timeout_s: float | None, force: bool, release: bool) -> None:
    """End the mount of DIRECTORY; returns once every commit in flight is finished.

    While programs use it, another mount or mount namespace keeps it, or its daemon does not answer,
    it stays, and the exit code is 1. With --force they get an error then, and what was being
    written goes to salvage.
    """
    from ckptfs.mount.daemon import ending

    where = absolute(directory)
    if release:
        ending.release(where)
    else:
        ending.umount(where, timeout_s, force=force, say=lambda line: say(line, err=True))


@commands.command()
@click.argument("directory", required=False)
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
@click.option(
    "--check",
    is_flag=True,
    help="Only what somebody must look at; exit 0 serving, 1 not mounted, 2 degraded or alarms.",
)
@click.option(
    "--prometheus", is_flag=True, help="Metrics as text, for the textfile collector; see --metrics."
)
def status(directory: str | None, as_json: bool, check: bool, prometheus: bool) -> None:
    """What serves DIRECTORY, how, and what happened; without DIRECTORY, a line for each mount."""
    if directory is None:
        if prometheus:
            raise UsageError("--prometheus needs a DIRECTORY")
        sys.exit(_status_of_all(as_json))
    found = status_of(absolute(directory))
    if prometheus:
        monitoring.print_metrics(directory, found)
        sys.exit(0 if found else NotMounted.exit_code)
    if found is None:
        _status_of_unserved(directory, as_json, check)
        return
    space = None if check else _space(directory)
    trouble = list(monitoring.trouble(found))
    if as_json:
        told = {"served": True, **found}
        click.echo(json.dumps(told if space is None else {**told, "space": space}, indent=1))
    else:
        lines = _checked(found, trouble) if check else (*_status_lines(found), *_space_lines(space))
        for line in lines:
            say(line)
    if check and trouble:
        sys.exit(_DEGRADED)


def _checked(found: dict[str, Any], trouble: list[str]) -> Iterator[str]:
    """One line if all is well, else one for each trouble."""
    yield from trouble or [f"{_serving(found)}; nothing to look at"]
    if found.get("alarms"):
        yield f"`ckptfs ack {found['directory']}` says that you have looked at the alarms"


def _status_of_unserved(directory: str, as_json: bool, check: bool) -> None:
    from ckptfs.mount.daemon import inspect

    why = inspect.not_mounted(absolute(directory))
    alarms = monitoring.unserved(directory)
    if as_json:
        told = {"served": False, "directory": absolute(directory), "why": str(why)}
        click.echo(json.dumps({**told, "alarms": alarms, "space": _space(directory)}, indent=1))
    elif check:
        for line in (str(why), *monitoring.trouble({"alarms": alarms})):
            say(line)
    else:
        raise why
    sys.exit(why.exit_code)


def _status_of_all(as_json: bool) -> int:
    """The exit code: the worst there is."""
    from ckptfs.mount.daemon import inspect

    code, all_of_them = 0, []
    for mountpoint in inspect.mountpoints():
        try:
            found = inspect.status_of(mountpoint) or {"degraded": ["its daemon is gone"]}
        except (TimeoutError, OSError) as error:
            found = {"degraded": [str(error.strerror or error)]}
        all_of_them.append({"mountpoint": mountpoint, **found})
        alarms = monitoring.told_short(found.get("alarms", []))
        code = _DEGRADED if found["degraded"] or alarms else code
        served = f"{found['directory']}, process {found['pid']}" if "pid" in found else ""
        line = "; ".join(filter(None, (served, *found["degraded"], alarms)))
        if not as_json:
            say(f"{mountpoint}: {line}")
    if as_json:
        click.echo(json.dumps(all_of_them, indent=1))
    elif not all_of_them:
        say("nothing is mounted here")
    return code if all_of_them else NotMounted.exit_code


def _status_lines(found: dict[str, Any]) -> Iterator[str]:
    data = "passthrough" if found["passthrough"] else f"relay ({found['binding']})"
    if found["passthrough_refusal"]:
        data += f": {found['passthrough_refusal']}"
    yield _serving(found)
    yield f"  mode      {found['mode']}, {found['checksum']}, {found['keep']} earlier kept"
    yield f"  data      {data}"
    yield f"  checks    verify={found['verify']} validate={found['validate']}"
    counts = found["counts"]
    yield "  so far    " + (", ".join(f"{counts[k]} {k}" for k in sorted(counts)) or "nothing")
    yield f"  in place  {' '.join(found['in_place'])}"
    yield f"  scrub     {_scrub(found['scrub'])}"
    yield f"  log       {found['log']}"
    for path in found["writing"]:
        yield f"  writing   {path}"
    for trouble in monitoring.trouble(found):
        yield f"  {trouble}"
    for event in found["events"]:
        if event["event"] != "committed":
            what = f"{event['event']} {event['path']}: {event['detail']}"
            yield f"  {when(event['time_ns'])}  {what}"


def _serving(found: dict[str, Any]) -> str:
    return f"{found['directory']} at {found['mountpoint']}: serving, process {found['pid']}"


def _space(directory: str) -> dict[str, Any] | None:
    """What lies where, in bytes on the disk; None where one cannot look below the mount."""
    try:
        return asdict(usage(Below(directory).needed_layout()))
    except (CannotServe, OSError):
        return None


def _space_lines(space: dict[str, Any] | None) -> Iterator[str]:
    """A class a line, those that hold nothing left out."""
    for name in ("live", "history", "staged", "salvage", "quarantine"):
        if space and name in space and space[name]["files"]:
            found = space[name]
            line = f"  {name:10}{size(found['bytes'])} in {found['files']} files"
            if name == "history":
                line += f", {size(space['history_exclusive_bytes'])} of its own"
            yield line


def _scrub(found: dict[str, Any]) -> str:
    if not found["interval_s"]:
        return "never"
    if found["running"]:
        return f"under way: {found['running']['files']} files so far"
    last = found["last"]
    if not last:
        return "none yet"
    counts = ", ".join(f"{count} {what}" for what, count in sorted(last["found"].items()))
    return f"{when(last['ended_ns'])}: {last['files']} files, {size(last['bytes'])}: {counts}"
