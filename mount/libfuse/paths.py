"""From a path to what it shows to its caller, component by component, as the kernel would go.

What is looked up is known as long as it is held, and forgotten then.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar, overload

from ..operations import looking, setdirs
from ..view.answers import Entry, New, Slow
from ..view.identity import ROOT_ID
from ..view.model import Caller, Handle
from . import library
from .context import Portable
from .descriptors import meant_by

T = TypeVar("T")

_TRIES = 3


def caller_of(portable: Portable, *, opening: bool = False) -> Caller:
    uid, gid, pid = portable.module.fuse_get_context()
    if opening:
        portable.openers.note(pid)
    return Caller(uid, gid, pid)


def look_up(
    portable: Portable, parent_id: int, name: str, caller: Caller, held: contextlib.ExitStack
) -> Entry:
    undecided = setdirs.undecided(portable.mount, parent_id)
    if undecided is not None:
        undecided.run()
    entry = looking.lookup(portable.mount, parent_id, name, caller)
    held.callback(looking.forget, portable.mount, entry.node.id, 1)
    return entry


def walk(
    portable: Portable, path: str, caller: Caller, held: contextlib.ExitStack
) -> tuple[int, str]:
    """The directory and the name that a path ends in; known as long as ``held``."""
    *folders, name = library.to_bytes(path).strip(b"/").split(b"/")
    at = ROOT_ID
    for folder in folders:
        at = look_up(portable, at, os.fsdecode(folder), caller, held).node.id
    return at, os.fsdecode(name)


def on_entry(
    portable: Portable,
    path: str,
    work: Callable[[Entry], T | Slow[T]],
    caller: Caller | None = None,
    *,
    truncates: bool = False,
) -> T:
    """``work`` on what the path shows to its caller; looked up anew when it is told to."""
    caller = caller or caller_of(portable)
    if path == "/":
        root = Entry(
            portable.mount.nodes.root, looking.getattr(portable.mount, ROOT_ID, None), False, False
        )
        return finished(work(root))
    meant: Handle | None = None
    for tries_left in reversed(range(_TRIES)):
        with contextlib.ExitStack() as held:
            place = walk(portable, path, caller, held)
            try:
                entry = look_up(portable, *place, caller, held)
                meant = meant or meant_by(portable, place, entry, caller, truncates)
                if meant is not None:
                    status = looking.getattr(portable.mount, meant.node.id, meant.id)
                    entry = Entry(meant.node, status, False, False)
                return finished(work(entry))
            except OSError as error:
                if error.errno != errno.ESTALE or not tries_left:
                    raise
    raise AssertionError


def in_parent(
    portable: Portable,
    path: str,
    work: Callable[[int, str, Caller], Entry],
    *,
    opening: bool = False,
) -> None:
    """``work`` that makes a name."""
    caller = caller_of(portable, opening=opening)
    with contextlib.ExitStack() as held:
        entry = work(*walk(portable, path, caller, held), caller)
        looking.forget(portable.mount, entry.node.id, 1)


@overload
def finished(result: Slow[None] | None) -> None: ...
@overload
def finished(result: T | Slow[T]) -> T: ...
def finished(result: Any) -> Any:
    return result.run() if isinstance(result, Slow) else result


def new(caller: Caller, mode: int) -> New:
    """The kernel has taken the umask off already."""
    return New(caller, mode, umask=0)
