"""``ckptfs run``."""

from __future__ import annotations

import sys
from typing import Any

import click

from ckptfs.cli.arguments import filesystem
from ckptfs.cli.mount_options import mount_options, options_but


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


@click.command(cls=_WithCommand)
@click.argument("directory")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(context: click.Context, /, directory: str, command: tuple[str, ...], **given: Any) -> None:
    """Run COMMAND with DIRECTORY served, to it and its children alone.

    Needs neither root nor fusermount3. Ends with COMMAND's exit status, 128 + n if signal n ended
    it; 127 if there is no such command.
    """
    from ckptfs.mount.daemon.run import run as start

    sys.exit(start(mount_options(directory, None, given), command, *filesystem(context)))


run.params += options_but("allow_other", "foreground", "release")
