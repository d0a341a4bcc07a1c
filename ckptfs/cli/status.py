"""``ckptfs status``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from ckptfs.cli import alarms_told
from ckptfs.cli.below import Below, absolute, status_of
from ckptfs.cli.printing import say, size, when
from ckptfs.errors import CannotServe, NotMounted, UsageError
from ckptfs.upkeep.usage import usage

_DEGRADED = 2  # exit code


@click.command()
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
        _print_metrics(directory, found)
        sys.exit(0 if found else NotMounted.exit_code)
    if found is None:
        _status_of_unserved(directory, as_json, check)
        return
    space = None if check else _space(directory)
    trouble = list(alarms_told.trouble(found))
    if as_json:
        told = {"served": True, **found}
        click.echo(json.dumps(told if space is None else {**told, "space": space}, indent=1))
    else:
        lines = _checked(found, trouble) if check else (*_status_lines(found), *_space_lines(space))
        for line in lines:
            say(line)
    if check and trouble:
        sys.exit(_DEGRADED)


def _print_metrics(directory: str, found: dict[str, Any] | None) -> None:
    """As the daemon serves them with --metrics, whether it does or not."""
    from ckptfs.mount.daemon import metrics

    metrics.require_client()
    told = {
        "served": False,
        "directory": absolute(directory),
        "alarms": alarms_told.unserved(directory),
    }
    status = {"served": True, **found} if found is not None else told
    click.echo(metrics.text(lambda: status), nl=False)


def _checked(found: dict[str, Any], trouble: list[str]) -> Iterator[str]:
    """One line if all is well, else one for each trouble."""
    yield from trouble or [f"{_serving(found)}; nothing to look at"]
    if found.get("alarms"):
        yield f"`ckptfs ack {found['directory']}` says that you have looked at the alarms"


def _status_of_unserved(directory: str, as_json: bool, check: bool) -> None:
    from ckptfs.mount.daemon import inspect

    why = inspect.not_mounted(absolute(directory))
    alarms = alarms_told.unserved(directory)
    if as_json:
        told = {"served": False, "directory": absolute(directory), "why": str(why)}
        click.echo(json.dumps({**told, "alarms": alarms, "space": _space(directory)}, indent=1))
    elif check:
        for line in (str(why), *alarms_told.trouble({"alarms": alarms})):
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
        alarms = alarms_told.told_short(found.get("alarms", []))
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
    for trouble in alarms_told.trouble(found):
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
