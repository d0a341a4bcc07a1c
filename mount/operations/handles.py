"""Handles of versions, and those that the kernel carries by another node than their own.

Threading: any thread; who joins a version holds the lock of the mount.
"""

from __future__ import annotations

import os

from ..view import aliases
from ..view.model import Caller, File, Handle, Version
from ..writers import beginning
from .context import Mount


def give(mount: Mount, handle: Handle, nodeid: int) -> None:
    """The kernel opens an alias in place of the handle's own node. By one that others have open
    only the daemon can carry it."""
    with mount.lock:
        shared = aliases.is_open(mount.nodes, nodeid)
        if shared:
            mount.guests[nodeid] = handle
        elif isinstance(handle.node, File):
            aliases.stand_in(mount.nodes, nodeid, handle.node)
        handle.carrier, handle.relayed = nodeid, shared
    mount.caches.drop_attributes(handle.node.id)
    mount.caches.drop_attributes(nodeid)  # the size that a read by it ends at is another now


def stand_in_for_last(mount: Mount, gone: Handle) -> None:
    """Once its own handles are closed a node is that of its guest."""
    if mount.guests.get(gone.carrier) is gone:
        del mount.guests[gone.carrier]
    guest = mount.guests.get(gone.node.id)
    if guest is not None and not aliases.is_open(mount.nodes, gone.node.id):
        del mount.guests[gone.node.id]
        if isinstance(guest.node, File):
            aliases.stand_in(mount.nodes, gone.node.id, guest.node)


def version_handle(mount: Mount, node: File, version: Version, flags: int) -> Handle:
    base = version.staged.base  # before the descriptor: that may be the committed one next
    handle = mount.add_handle(node, os.dup(version.staged.fd), flags)
    handle.base = base
    return handle


def write_handle(mount: Mount, node: File, version: Version, flags: int, caller: Caller) -> Handle:
    handle = version_handle(mount, node, version, flags)
    handle.relayed = node is not version.node
    beginning.join(mount.versions, version, handle, caller)
    if mount.sets.by_folder and node.parent is not None:
        mount.sets.wrote(node.parent, caller)
    return handle
