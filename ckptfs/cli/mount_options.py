"""How a directory is served, as it is typed: the options of ``mount``, ``run`` and ``restart``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckptfs.cli.arguments import byte_count, seconds
from ckptfs.cli.below import absolute
from ckptfs.disk import osfs
from ckptfs.disk.digest import ALGORITHMS
from ckptfs.modes import Mode, Outside
from ckptfs.store import Options

if TYPE_CHECKING:
    from ckptfs.mount.daemon.options import MountOptions

_DEFAULT = "default"


def _address(_context: click.Context, _option: click.Parameter, given: str) -> str:
    """As HOST:PORT; empty for none."""
    from ckptfs.mount.daemon import metrics

    if given in ("", "off"):
        return ""
    try:
        host, port = metrics.address(given if given != _DEFAULT else str(metrics.PORT))
    except ValueError as error:
        raise click.BadParameter(f"{error}; a DIRECTORY goes ahead of --metrics") from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


OPTIONS = [
    click.Option(
        ["--mode"],
        type=click.Choice([mode.value for mode in Mode]),
        default=Mode.ATOMIC_DIRSYNC.value,
        show_default=True,
        help="How a version becomes visible and durable.",
    ),
    click.Option(
        ["--checksum"],
        type=click.Choice(ALGORITHMS),
        default="blake3",
        show_default=True,
    ),
    click.Option(
        ["--keep"],
        type=click.IntRange(0, 1_000_000),
        default=1,
        show_default=True,
        help="Earlier generations retained per file.",
    ),
    click.Option(
        ["--verify"],
        type=click.Choice(["open", "off"]),
        default="open",
        show_default=True,
        help="Check digests when a file is opened for reading.",
    ),
    click.Option(
        ["--validate"],
        type=click.Choice(["overwrite", "off"]),
        default="overwrite",
        show_default=True,
        help="Refuse to replace a sound checkpoint by one that is not whole.",
    ),
    click.Option(
        ["--outside"],
        type=click.Choice([outside.value for outside in Outside]),
        default=Outside.JUDGE.value,
        show_default=True,
        help="Files changed behind ckptfs: judge damage by evidence, or accept or refuse them all.",
    ),
    click.Option(
        ["--in-place", "in_place"],
        multiple=True,
        metavar="GLOB",
        help="Also write these in place, without transactions.",
    ),
    click.Option(
        ["--profile"],
        default="none",
        show_default=True,
        metavar="NAME",
        help="Which directories are checkpoints of several files, to appear as a whole: `auto`, "
        "`none`, a profile, or a file of one's own (see `ckptfs profiles`).",
    ),
    click.Option(
        ["--settle-after", "settle_after"],
        callback=seconds,
        default="30s",
        show_default=True,
        metavar="TIME",
        help="A checkpoint without a marker that was not written for so long is whole.",
    ),
    click.Option(
        ["--share/--no-share"],
        default=True,
        help="Give every earlier version blocks of its own (XFS and btrfs share what is equal).",
    ),
    click.Option(
        ["--salvage-bytes"],
        callback=byte_count,
        default="16G",
        show_default=True,
        metavar="SIZE",
        help="What salvage and quarantine may take together (512M, 10G, 1T…); the oldest goes.",
    ),
    click.Option(
        ["--salvage-entries"],
        type=click.IntRange(0),
        default=10_000,
        show_default=True,
        help="How many files may lie in salvage and quarantine together.",
    ),
    click.Option(
        ["--binding"],
        type=click.Choice(["kernel", "fusepy", "refuse"]),
        envvar="CKPTFS_BINDING",
        show_envvar=True,
        help="How FUSE is spoken: to the kernel (the default on Linux), or through libfuse 2.",
    ),
    click.Option(
        ["--passthrough/--no-passthrough"],
        default=True,
        help="Relay data through the daemon.",
    ),
    click.Option(
        ["--allow-other"],
        is_flag=True,
        help="Let other users in (root's mounts do).",
    ),
    click.Option(
        ["--foreground"],
        is_flag=True,
        help="Stay, and log to the terminal.",
    ),
    click.Option(
        ["--log", "log_file"],
        default="",
        metavar="FILE",
        help="Where the daemon logs.",
    ),
    click.Option(
        ["--stop-timeout"],
        callback=seconds,
        default="25s",
        show_default=True,
        metavar="TIME",
        help="After SIGTERM, serve on while the mount is used, at most this long; "
        "then leave it dead.",
    ),
    click.Option(
        ["--release/--no-release"],
        default=False,
        help="After that time take a used mount away: later saves go to the plain directory.",
    ),
    click.Option(
        ["--scrub-interval"],
        callback=seconds,
        default="7d",
        show_default=True,
        metavar="TIME",
        help="Read everything again that often, at idle priority (12h, 7d…; 0: never).",
    ),
    click.Option(
        ["--metrics"],
        is_flag=False,
        flag_value=_DEFAULT,
        default="",
        callback=_address,
        metavar="[ADDRESS]",
        help="Serve metrics for Prometheus at PORT or HOST:PORT (127.0.0.1:9934).",
    ),
    click.Option(
        ["--on-event"],
        default="",
        metavar="COMMAND",
        help="Run by /bin/sh for rollbacks, failures and low space; CKPTFS_EVENT, CKPTFS_PATH, "
        "CKPTFS_DETAIL, CKPTFS_DIRECTORY and CKPTFS_MOUNTPOINT tell of what.",
    ),
]


def _profile(given: str) -> str:
    """A file of the user's own by its path from anywhere: the daemon works elsewhere."""
    return absolute(given) if "/" in given or "." in given else given


def options_but(*names: str) -> list[click.Option]:
    """Those that such a command takes."""
    return [option for option in OPTIONS if option.name not in names]


def mount_options(directory: str, mountpoint: str | None, given: dict[str, Any]) -> MountOptions:
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
        profile=_profile(given["profile"]),
        settle_after_s=given["settle_after"],
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
