"""The commands. Parsing and printing only; what they do lives elsewhere.

Exit codes: those of fsck(8) for ``verify`` (0 clean, 1 repaired, 4 left uncorrected, 8 could not
run, 16 usage), each error class's own for the rest. Errors are one line on stderr.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

from ckptfs.cli.printing import run_or_fail
from ckptfs.cli.table import commands, load
from ckptfs.disk.filesystem import FileSystem

__all__ = ["commands", "load", "main", "mount_helper"]


def main(filesystem: Callable[[], FileSystem] | None = None) -> None:
    """The ``ckptfs`` command. What it serves it serves over a ``filesystem`` that is made there."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have what the locale lacks
    if "-o" in sys.argv[3:4] and sys.argv[1] not in commands.commands:
        mount_helper()  # `ckptfs DIR MOUNTPOINT -o OPTIONS`: how mount.fuse calls a filesystem
    else:
        run_or_fail(lambda: commands.main(standalone_mode=False, obj=filesystem))


def mount_helper() -> None:
    """``mount.fuse.ckptfs``, as mount(8) calls it; see ``ckptfs.mount.daemon.helper``."""
    run_or_fail(lambda: _as_helper(sys.argv[1:]))


def _as_helper(arguments: list[str]) -> None:
    from ckptfs.cli.mount_options import OPTIONS
    from ckptfs.mount.daemon import helper

    names = {
        name.lstrip("-"): option.is_flag
        for option in OPTIONS
        for name in (*option.opts, *option.secondary_opts)
    }
    translated = helper.command_line(arguments, names)
    if translated is not None:
        commands.main(["mount", *translated], standalone_mode=False)
