"""Names: made, moved and taken away."""

from __future__ import annotations

import contextlib

from ...operations import looking, names, renaming
from ...view.answers import Entry
from ...view.model import Caller
from .. import library
from ..context import Portable
from ..paths import caller_of, finished, in_parent, new, on_entry, walk


def mkdir(portable: Portable, path: str, mode: int) -> None:
    def make(at: int, name: str, caller: Caller) -> Entry:
        return names.mkdir(portable.mount, at, name, new(caller, mode))

    in_parent(portable, path, make, opening=True)


def mknod(portable: Portable, path: str, mode: int, device: int) -> None:
    in_parent(
        portable,
        path,
        lambda at, name, caller: names.mknod(portable.mount, at, name, new(caller, mode), device),
    )


def symlink(portable: Portable, path: str, target: str) -> None:
    text = library.to_name(target)
    in_parent(
        portable,
        path,
        lambda at, name, caller: names.symlink(portable.mount, at, name, text, caller),
    )


def readlink(portable: Portable, path: str) -> str:
    target = on_entry(portable, path, lambda entry: looking.readlink(portable.mount, entry.node.id))
    return library.from_name(target)


def link(portable: Portable, path: str, existing: str) -> None:
    def make(at: int, name: str, caller: Caller) -> Entry:
        return on_entry(
            portable,
            existing,
            lambda old: names.link(portable.mount, old.node.id, at, name, caller),
        )

    in_parent(portable, path, make)


def unlink(portable: Portable, path: str) -> None:
    with contextlib.ExitStack() as held:
        place = walk(portable, path, caller_of(portable), held)
        names.unlink(portable.mount, *place).run()
        portable.inodes.moved(place, None)


def rmdir(portable: Portable, path: str) -> None:
    with contextlib.ExitStack() as held:
        finished(names.rmdir(portable.mount, *walk(portable, path, caller_of(portable), held)))


def rename(portable: Portable, path: str, new_path: str) -> None:
    caller = caller_of(portable)
    with contextlib.ExitStack() as held:
        old, new = walk(portable, path, caller, held), walk(portable, new_path, caller, held)
        finished(renaming.rename(portable.mount, *old, *new, 0, caller))
        if old != new:
            portable.inodes.moved(old, new)
