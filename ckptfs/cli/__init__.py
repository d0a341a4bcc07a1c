"""The commands. Parsing and printing only; what they do lives elsewhere.

Exit codes: those of fsck(8) for ``verify`` (0 clean, 1 repaired, 4 left uncorrected, 8 could not
run, 16 usage), each error class's own for the rest. Errors are one line on stderr.
"""

from __future__ import annotations

import io
import sys

import click

from ckptfs.cli import checking, cleaning, keeping, machine, monitoring, serving
from ckptfs.cli.base import commands, run_or_fail

__all__ = [
    "checking",
    "cleaning",
    "commands",
    "keeping",
    "machine",
    "main",
    "monitoring",
    "mount_helper",
    "serving",
]


def main() -> None:
    """The ``ckptfs`` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have what the locale lacks
    if "-o" in sys.argv[3:4] and sys.argv[1] not in commands.commands:
        mount_helper()  # `ckptfs DIR MOUNTPOINT -o OPTIONS`: how mount.fuse calls a filesystem
    else:
        run_or_fail(lambda: commands.main(standalone_mode=False))


def mount_helper() -> None:
    """``mount.fuse.ckptfs``, as mount(8) calls it; see ``ckptfs.mount.daemon.helper``."""
    run_or_fail(lambda: _as_helper(sys.argv[1:]))


def _as_helper(arguments: list[str]) -> None:
    from ckptfs.mount.daemon import helper

    options = [option for option in serving.mount.params if isinstance(option, click.Option)]
    names = {
        name.lstrip("-"): option.is_flag
        for option in options
        for name in (*option.opts, *option.secondary_opts)
    }
    translated = helper.command_line(arguments, names)
    if translated is not None:
        commands.main(["mount", *translated], standalone_mode=False)
