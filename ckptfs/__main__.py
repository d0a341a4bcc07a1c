"""``python -m ckptfs``, and the ``ckptfs`` command."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Ctrl-C while the rest is loaded ends it without a word."""
    quiet = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if quiet:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ckptfs import cli

    cli.load(sys.argv[1:])
    if quiet:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
