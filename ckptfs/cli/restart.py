"""``ckptfs restart``."""

from __future__ import annotations

import functools
from typing import Any

import click
from click.core import ParameterSource

from ckptfs.cli.arguments import seconds
from ckptfs.cli.below import absolute
from ckptfs.cli.mount_options import mount_options, options_but
from ckptfs.cli.printing import say


@click.command()
@click.argument("directory")
@click.option(
    "--timeout",
    "timeout_s",
    callback=seconds,
    default="30s",
    show_default=True,
    metavar="TIME",
    help="Wait at most this long for a moment in which no long commit is under way.",
)
@click.pass_context
def restart(context: click.Context, /, directory: str, timeout_s: float, **given: Any) -> None:
    """Have the daemon of DIRECTORY go on as this version of ckptfs, with new options.

    Options that are not given stay. Whatever programs have open stays open; what they ask for
    meanwhile waits. If it cannot be done the daemon serves on as it was.
    """
    from ckptfs.mount.daemon.restart import restart as ask

    options = mount_options(directory, None, given)
    names = {name for name in given if context.get_parameter_source(name) is _BY_USER}
    fields = {_FIELDS.get(name, name) for name in names}
    where, told = absolute(directory), functools.partial(say, err=True)
    for trouble in ask(where, options, fields, timeout_s=timeout_s, say=told):
        click.echo(f"warning: {trouble}", err=True)


_BY_USER = ParameterSource.COMMANDLINE
_FIELDS = {  # of MountOptions and Options, by other names than those of the command line
    "verify": "verify_opens",
    "stop_timeout": "stop_timeout_s",
    "scrub_interval": "scrub_interval_s",
}
restart.params += options_but("binding", "allow_other", "foreground")
