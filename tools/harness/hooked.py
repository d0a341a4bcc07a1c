"""ckptfs over a filesystem that a harness has wrapped, in a daemon of its own:

    python -m ckptfs.tools.harness.hooked MODULE:FACTORY ARGUMENT mount DIR …

``FACTORY(fs, ARGUMENT)`` gets the real filesystem and returns what the store is to use in its place
(see ``faults``); the rest is the command line of ckptfs.
"""

from __future__ import annotations

import importlib
import sys

from ckptfs.disk.real import OsFs


def main() -> None:
    named, argument, *words = sys.argv[1:]
    module, _, name = named.partition(":")
    factory = getattr(importlib.import_module(module), name)
    sys.argv = ["ckptfs", *words]
    command = importlib.import_module("ckptfs.__main__")  # a floor above, as users start it
    command.main(lambda: factory(OsFs(), argument))


def program(named: str, argument: object) -> tuple[str, ...]:
    """The ``program`` of a :class:`~.rig.Mount` whose store uses this factory."""
    return ("-m", "ckptfs.tools.harness.hooked", named, str(argument))


if __name__ == "__main__":
    main()
