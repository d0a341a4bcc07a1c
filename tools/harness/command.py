"""What the commands of the tools share: how they end, a folder of their own, sizes in words."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from ckptfs.units import parse_bytes

from .rig import mount_table

_ENDED_BY_SIGTERM = 128 + signal.SIGTERM


def end_on_sigterm() -> None:
    """As on Ctrl-C: what a block has to clear up is cleared up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_ENDED_BY_SIGTERM))


@contextlib.contextmanager
def own_folder(directory: str, tool: str) -> Iterator[Path]:
    """A new folder in ``directory``, which is gone at the end, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix=f"ckptfs-{tool}-", dir=os.path.realpath(directory)))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Only what is not served: below a mount the files of a stuck server would be waited for."""
    if any(fields[4].startswith(f"{folder}/") for fields in mount_table()):
        click.echo(f"{folder}: still mounted, left where it is", err=True)
        return
    shutil.rmtree(folder, ignore_errors=True)


def bytes_of(text: str) -> int:
    """Bytes of ``10MiB`` and the like, from an option."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
