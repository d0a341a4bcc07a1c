"""``python -m ckptfs.tools.crash``: one command a study."""

from __future__ import annotations

import importlib

import click

_STUDIES = ("power", "kills", "faults")


class _Studies(click.Group):
    """Imports the study that is asked for: one needs torch, another does not."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_STUDIES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _STUDIES:
            return None
        module = importlib.import_module(f"ckptfs.tools.crash.{name}.study")
        command = getattr(module, name)
        assert isinstance(command, click.Command)
        return command


main = _Studies(help="Studies of crashes: power cuts, kills, faults. Each has a command.")

if __name__ == "__main__":
    main()
