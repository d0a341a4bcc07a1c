"""Closing and syncing: what a close or an fsync must wait for is left as ``Slow``.

Threading: any thread.
"""

from __future__ import annotations

import functools
import os

from ckptfs.disk import osfs
from ckptfs.versions.staged import fingerprint

from ..sets import deciding
from ..view.answers import Slow
from ..view.model import Caller, File, Virtual
from ..writers import closing, committing
from .context import Mount
from .handles import stand_in_for_last
from .setdirs import settled

_MUCH_BYTES = 64 << 20


def flush(mount: Mount, handle_id: int, caller: Caller) -> Slow[None] | None:
    handle = mount.handle(handle_id)
    work = closing.flush(mount.versions, handle, caller)
    if work is not None and mount.sets.by_folder:
        work = settled(mount, handle, work)
    return None if work is None else Slow(work)


def release(mount: Mount, handle_id: int) -> Slow[None] | None:
    mount.store.room.before_freeing()
    with mount.lock:
        handle = mount.handles.pop(handle_id)
        if isinstance(handle.node, File | Virtual):
            handle.node.let_go(handle)
        stand_in_for_last(mount, handle)
    work = closing.release(mount.versions, handle)
    if work is None and _frees_much(handle.fd):
        work = functools.partial(os.close, handle.fd)
    else:
        os.close(handle.fd)
    with mount.lock:
        mount.nodes.drop_if_forgotten(handle.node)
    if work is not None and mount.sets.by_folder:
        work = settled(mount, handle, work)
    return None if work is None else Slow(work)


def fsync(mount: Mount, handle_id: int) -> Slow[None]:
    """The bytes are durable on return, in stage as in place; a staged name is not
    published by it."""
    handle = mount.handle(handle_id)

    def sync() -> None:
        version = handle.version
        if version is not None and version.failure is not None:
            raise version.failure  # the next fsync would return 0 over lost data
        try:
            if version is not None:
                version.synced = fingerprint(mount.store.fs, version.staged.fd)
            mount.store.fs.fsync(handle.fd)
            if version is not None and version.unpublished:
                mount.store.order.sync_dir(mount.store.layout.stage)
        except OSError as error:
            if version is None:
                raise
            raise committing.fail(mount.versions, version, error) from None

    return Slow(sync)


def fsync_dir(mount: Mount, nodeid: int, caller: Caller) -> Slow[None]:
    """Every file of the directory that was closed before is committed on return; an empty one
    that a child of its opener has open is where its opener asks."""
    directory = mount.nodes.directory(nodeid)

    def sync() -> None:
        mount.store.order.require_writable()  # what is on disk is unknown
        with mount.lock:
            below = [v for v in mount.versions.all() if v.at and v.at[0] is directory]
        closing.close_empty(mount.versions, below, caller.process)
        for version in below:
            closing.wait_settled(mount.versions, version)
        mount.store.order.sync_changed_dirs()
        mount.store.order.sync_dir(directory.fd)
        deciding.ask(mount.sets, directory)

    return Slow(sync)


def _frees_much(fd: int) -> bool:
    """Whether closing it may free the blocks of a long file, which takes a while."""
    status = os.fstat(fd)
    return status.st_nlink == 0 and osfs.allocated_bytes(status) >= _MUCH_BYTES
