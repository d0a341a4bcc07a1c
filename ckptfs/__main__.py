"""``python -m ckptfs``, and the ``ckptfs`` command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptfs.disk.filesystem import FileSystem


def main(filesystem: Callable[[], FileSystem] | None = None) -> None:
    """``filesystem``: see ``cli.main``. Ctrl-C while the rest is loaded ends it without a word."""
    quiet = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if quiet:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ckptfs import cli

    report = os.environ.get("CKPTFS_CHECK_LOCKS")
    if report:  # under tests
        from ckptfs.disk import locks

        locks.check(partial(_append, report))
    cli.load(sys.argv[1:])
    if quiet:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main(filesystem)


def _append(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


if __name__ == "__main__":
    main()
