"""Making a file: as a version of its own, or in place.

Threading: any thread. Nothing here waits for a commit.
"""

from __future__ import annotations

import errno
import os

from ckptfs.disk import osfs

from ..view.answers import Entry, New, stale
from ..view.descriptors import no_room
from ..view.identity import exists
from ..view.model import Directory, File, Handle
from ..writers import beginning, visibility
from .context import Mount
from .handles import write_handle
from .looking import entry_of
from .names import check_device, touch, writable_parent
from .owning import or_nothing, own


def create(mount: Mount, parent_id: int, name: str, flags: int, new: New) -> tuple[Entry, Handle]:
    parent = writable_parent(mount, parent_id, name)
    if not mount.has_room_for(new.caller):
        raise no_room()
    with mount.lock:
        taken = exists(parent.fd, name) or bool(mount.versions.at(parent, name))
        taken |= mount.sets.at(parent, name) is not None
        if taken and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "exists")
        if mount.in_place(parent, name):
            return _create_in_place(mount, parent, name, flags, new)
        if taken:  # made by somebody else since the kernel looked
            raise stale()
        check_device(mount.nodes, parent)
        version = beginning.begin(
            mount.versions, parent, name, new.caller, exists=False, truncate=True
        )
        try:
            own(version.staged.fd, parent, new)
        except OSError as error:
            refusal = error
        else:
            touch(parent)
            flags |= os.O_CREAT  # libfuse keeps it
            handle = write_handle(mount, version.node, version, flags, new.caller)
            return entry_of(mount, version.node, os.fstat(version.staged.fd)), handle
    visibility.dismiss(mount.versions, version, new.caller)
    raise refusal


def _create_in_place(
    mount: Mount, parent: Directory, name: str, flags: int, new: New
) -> tuple[Entry, Handle]:
    make = os.O_RDWR | os.O_CREAT | os.O_EXCL | osfs.NOFOLLOW
    try:
        fd = os.open(name, make, 0o600, dir_fd=parent.fd)
    except FileExistsError:  # made by somebody else since the kernel looked: not ours to own
        if flags & os.O_EXCL:
            raise
        raise stale() from None
    try:
        with or_nothing(parent, name):
            own(fd, parent, new)
    except BaseException:
        os.close(fd)
        raise
    mount.store.order.note_changed_dir(parent.fd)
    status = os.fstat(fd)
    node = mount.nodes.committed(parent, name, status)
    assert isinstance(node, File)
    node.aliased = True  # see ``open_in_place``
    handle = mount.add_handle(node, fd, flags)
    return entry_of(mount, node, status), handle
