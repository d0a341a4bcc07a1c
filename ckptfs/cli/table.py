"""All commands by name; each has a file, which is loaded when it is asked for.

So ``ckptfs status`` does not import what ``ckptfs mount`` needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import cast

import click

from ckptfs import __version__

_WHOLE = 1000  # characters
MODULES = {
    "ack": "ack",
    "adopt": "adopt",
    "clean": "clean",
    "demo": "demo",
    "doctor": "doctor",
    "export-sums": "export_sums",
    "latest": "latest",
    "log": "log",
    "mount": "mount",
    "profiles": "profiles",
    "restart": "restart",
    "resume": "resume",
    "rollback": "rollback",
    "run": "run",
    "salvage": "salvage",
    "sets": "sets",
    "status": "status",
    "strip": "strip",
    "umount": "umount",
    "verify": "verify",
}


class _Loaded(Mapping[str, click.Command]):
    """The commands, each imported when it is taken."""

    def __getitem__(self, name: str) -> click.Command:
        module = MODULES[name]
        command = getattr(importlib.import_module(f"ckptfs.cli.{module}"), module)
        assert isinstance(command, click.Command)
        return command

    def __contains__(self, name: object) -> bool:
        return name in MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


class _Group(click.Group):
    """Lists what each command is for without cutting it short."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        listed = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, each.get_short_help_str(_WHOLE))
                    for name, each in listed
                    if not each.hidden
                ]
            )


@click.group(
    cls=_Group,
    commands=cast(MutableMapping[str, click.Command], _Loaded()),
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="ckptfs")
@click.pass_context
def commands(context: click.Context) -> None:
    """A transactional checkpoint filesystem for AI training."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def load(arguments: Sequence[str]) -> None:
    """Import what these need: one command, or all, for the help that lists them."""
    asked = [name for name in arguments[:1] if name in MODULES]
    for name in asked or MODULES:
        commands.commands[name]
