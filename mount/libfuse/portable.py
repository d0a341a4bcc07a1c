"""The session through libfuse 2's path API: one adapter for fusepy and refuse.

Relays data, and keeps the same promises as the kernel session but for what a path API cannot do
(docs/design.md, "Portable bindings"). libfuse hands over a path where the kernel has a node: each
request looks its path up for its caller, component by component, and forgets it again.
``ESTALE`` ("look again") is retried here.

Threading: libfuse's own threads, as many as requests wait, so a handler may block. libfuse runs in
a thread beside the main one, which is left to Python's signal handlers. No exception leaves a
handler but ``OSError`` with an errno: fusepy answers garbage for anything else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar, overload

from ckptfs.disk import osfs
from ckptfs.errors import CannotServe

from ..operations import (
    attributes,
    closing,
    creating,
    directories,
    looking,
    names,
    opening,
    relay,
    renaming,
    sessions,
    xattrs,
)
from ..operations.context import Mount
from ..processes import calls, writers
from ..view.answers import Change, Entry, New, Slow
from ..view.identity import ROOT_ID, Identity, exists, identity, lstat
from ..view.model import Caller, File, Handle, Node
from ..view.past import Generation
from . import library
from .inodes import Inodes, Opened, Place

log = logging.getLogger("ckptfs.session")

T = TypeVar("T")

_TRIES = 3
_LISTED_BYTES = 32 << 10  # as the C library asks for; libfuse takes what it has room for
# Read through shared mappings as a rule, which only the page cache can carry. What meets a version
# that is being written under the same name then gets EIO, where others read on.
_MAPPED = (".safetensors", ".npy", ".gguf")


class PortableSession:
    """Attributes that the bindings look for: handlers by name, ``use_ns`` and the flags."""

    use_ns = True
    flag_nullpath_ok = flag_nopath = flag_utime_omit_ok = True

    def __init__(self, binding: str, mount: Mount, mountpoint: str, *, allow_other: bool) -> None:
        self.mount, self.requests = mount, Counter[str]()
        self.ready: Callable[[], None] = lambda: None
        self._binding, self._module = binding, sessions.load(binding)
        self._mountpoint, self._allow_other = mountpoint, allow_other
        self.openers = sessions.Openers()
        self._opens: dict[int, Opened] = {}
        self._inodes = Inodes()
        self._probes = calls.Probes()
        self._served = False

    # --- session ---------------------------------------------------------------------------------

    def run(self) -> None:
        said = library.Said()
        self._before_serving = said.stop
        failure: list[BaseException] = []

        def serve() -> None:
            try:
                library.with_handles(self._module)(
                    self,
                    library.from_name(self._mountpoint),
                    raw_fi=True,
                    encoding=library.ENCODING,
                    foreground=True,
                    **library.options(allow_other=self._allow_other),
                )
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=serve, name="ckptfs-libfuse", daemon=True)
        thread.start()
        thread.join()
        text = said.stop()
        if not self._served:
            raise CannotServe(f"{self._mountpoint}: cannot mount by /dev/fuse: {text or failure}")
        if failure:
            log.error("libfuse ended with an error: %s", failure[0])

    def passthrough_state(self) -> tuple[bool, str]:
        return False, "by libfuse"

    def quiet(self, mountpoint: str, limit_s: float) -> contextlib.AbstractContextManager[bool]:
        """libfuse cannot be kept from reading requests."""
        return contextlib.nullcontext(False)

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Every request comes through here."""
        self.requests[name.upper()] += 1
        try:
            return getattr(self, name)(*arguments)
        except BaseException as error:
            code = sessions.errno_of(error)
            raise OSError(code, os.strerror(code)) from None

    def init(self, _path: str) -> None:
        self._served = True
        self._before_serving()
        self.ready()

    # --- paths -----------------------------------------------------------------------------------

    def _caller(self, *, opening: bool = False) -> Caller:
        uid, gid, pid = self._module.fuse_get_context()
        if opening:
            self.openers.note(pid)
        return Caller(uid, gid, pid)

    def _look_up(
        self, parent_id: int, name: str, caller: Caller, held: contextlib.ExitStack
    ) -> Entry:
        entry = looking.lookup(self.mount, parent_id, name, caller)
        held.callback(looking.forget, self.mount, entry.node.id, 1)
        return entry

    def _walk(self, path: str, caller: Caller, held: contextlib.ExitStack) -> tuple[int, str]:
        """The directory and the name that a path ends in; known as long as ``held``."""
        *folders, name = library.to_bytes(path).strip(b"/").split(b"/")
        at = ROOT_ID
        for folder in folders:
            at = self._look_up(at, os.fsdecode(folder), caller, held).node.id
        return at, os.fsdecode(name)

    def _on_entry(
        self,
        path: str,
        work: Callable[[Entry], T | Slow[T]],
        caller: Caller | None = None,
        *,
        truncates: bool = False,
    ) -> T:
        """``work`` on what the path shows to its caller; looked up anew when it is told to."""
        caller = caller or self._caller()
        if path == "/":
            root = Entry(
                self.mount.nodes.root, looking.getattr(self.mount, ROOT_ID, None), False, False
            )
            return _finished(work(root))
        meant: Handle | None = None
        for tries_left in reversed(range(_TRIES)):
            with contextlib.ExitStack() as held:
                place = self._walk(path, caller, held)
                try:
                    entry = self._look_up(*place, caller, held)
                    meant = meant or self._meant(place, entry, caller, truncates)
                    if meant is not None:
                        status = looking.getattr(self.mount, meant.node.id, meant.id)
                        entry = Entry(meant.node, status, False, False)
                    return _finished(work(entry))
                except OSError as error:
                    if error.errno != errno.ESTALE or not tries_left:
                        raise
        raise AssertionError

    def _meant(self, place: Place, entry: Entry, caller: Caller, truncates: bool) -> Handle | None:
        """The open file whose descriptor the request was made by, as far as it matters: it has
        another version than its path shows, or is to be truncated and not begun anew."""
        opens, shown = self._inodes.opens(place), identity(entry.status)
        itself = truncates and isinstance(entry.node, File) and entry.node.version is not None
        others = {o.process for o, at in opens.items() if o.handle and (itself or at != shown)}
        if not others:
            return None
        try:
            number = calls.descriptor(caller.pid, self._mountpoint, place[1] if itself else "")
            if number is None:
                return None
            handle_id = self._probes.look(caller.pid, number)
        except calls.Unknown:
            if caller.pid in others or writers.descends_from(caller.pid, frozenset(others)):
                raise OSError(errno.EIO, "by path or by a descriptor of another version?") from None
            return None
        return next((o.handle for o in opens if o.handle and o.handle.id == handle_id), None)

    def ioctl(self, handle_id: int) -> None:
        self._probes.answer(self._caller().pid, handle_id)
        raise OSError(errno.ENOTTY, "no ioctl")

    def _in_parent(
        self, path: str, work: Callable[[int, str, Caller], Entry], *, opening: bool = False
    ) -> None:
        """``work`` that makes a name."""
        caller = self._caller(opening=opening)
        with contextlib.ExitStack() as held:
            entry = work(*self._walk(path, caller, held), caller)
            looking.forget(self.mount, entry.node.id, 1)

    # --- attributes ------------------------------------------------------------------------------

    def getattr(self, path: str | None, info: Any = None) -> dict[str, int]:
        if info:
            handle = self.mount.handle(info.fh)
            self._require_alone(info.fh)
            return library.attributes(looking.getattr(self.mount, handle.node.id, handle.id))
        assert path is not None
        return self._on_entry(path, lambda entry: library.attributes(entry.status))

    def _change(self, path: str, change: Change) -> None:
        self._on_entry(
            path, lambda entry: attributes.setattr(self.mount, entry.node.id, None, change)
        )

    def chmod(self, path: str, mode: int) -> None:
        self._change(path, Change(mode=mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        keep = -1
        self._change(
            path, Change(uid=None if uid == keep else uid, gid=None if gid == keep else gid)
        )

    def truncate(self, path: str | None, length: int, info: Any = None) -> None:
        if info:
            handle = self.mount.handle(info.fh)
            _finished(
                attributes.setattr(self.mount, handle.node.id, handle.id, Change(size=length))
            )
        else:
            assert path is not None
            self._change(path, Change(size=length))

    def utimens(self, path: str, times: tuple[int, int] | None) -> None:
        atime, mtime = map(library.to_time, times or (osfs.UTIME_NOW, osfs.UTIME_NOW))
        self._change(path, Change(atime_ns=atime, mtime_ns=mtime))

    def readlink(self, path: str) -> str:
        target = self._on_entry(path, lambda entry: looking.readlink(self.mount, entry.node.id))
        return library.from_name(target)

    def statfs(self, _path: str) -> dict[str, int]:
        found = attributes.statfs(self.mount)
        keys = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail")
        return {f"f_{key}": getattr(found, f"f_{key}") for key in (*keys, "namemax")}

    def getxattr(self, path: str, key: str, _position: int = 0) -> bytes:
        return self._on_entry(
            path, lambda entry: xattrs.getxattr(self.mount, entry.node.id, library.to_name(key))
        )

    def listxattr(self, path: str) -> list[str]:
        caller = self._caller()
        keys = self._on_entry(
            path, lambda entry: xattrs.listxattr(self.mount, entry.node.id, caller)
        )
        return [library.from_name(key) for key in keys]

    def setxattr(self, path: str, key: str, value: bytes, flags: int, _position: int = 0) -> None:
        if key.startswith("system.posix_acl_"):  # the kernel would not go by it
            raise OSError(errno.EOPNOTSUPP, "no ACLs")

        caller = self._caller()

        def work(entry: Entry) -> Slow[None] | None:
            return xattrs.setxattr(
                self.mount, entry.node.id, library.to_name(key), value, flags, caller
            )

        self._on_entry(path, work)

    def removexattr(self, path: str, key: str) -> None:
        self._on_entry(
            path, lambda entry: xattrs.removexattr(self.mount, entry.node.id, library.to_name(key))
        )

    # --- names -----------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> None:
        def make(at: int, name: str, caller: Caller) -> Entry:
            return names.mkdir(self.mount, at, name, _new(caller, mode))

        self._in_parent(path, make, opening=True)

    def mknod(self, path: str, mode: int, device: int) -> None:
        self._in_parent(
            path,
            lambda at, name, caller: names.mknod(self.mount, at, name, _new(caller, mode), device),
        )

    def symlink(self, path: str, target: str) -> None:
        text = library.to_name(target)
        self._in_parent(
            path, lambda at, name, caller: names.symlink(self.mount, at, name, text, caller)
        )

    def link(self, path: str, existing: str) -> None:
        def make(at: int, name: str, caller: Caller) -> Entry:
            return self._on_entry(
                existing, lambda old: names.link(self.mount, old.node.id, at, name, caller)
            )

        self._in_parent(path, make)

    def unlink(self, path: str) -> None:
        with contextlib.ExitStack() as held:
            place = self._walk(path, self._caller(), held)
            names.unlink(self.mount, *place).run()
            self._inodes.moved(place, None)

    def rmdir(self, path: str) -> None:
        with contextlib.ExitStack() as held:
            names.rmdir(self.mount, *self._walk(path, self._caller(), held))

    def rename(self, path: str, new_path: str) -> None:
        caller = self._caller()
        with contextlib.ExitStack() as held:
            old, new = self._walk(path, caller, held), self._walk(new_path, caller, held)
            _finished(renaming.rename(self.mount, *old, *new, 0, caller))
            if old != new:
                self._inodes.moved(old, new)

    # --- files -----------------------------------------------------------------------------------

    def open(self, path: str, info: Any) -> int:
        caller = self._caller(opening=True)
        reads, truncates = info.flags & os.O_ACCMODE == os.O_RDONLY, bool(info.flags & os.O_TRUNC)
        opened: Opened | None = None

        def work(entry: Entry) -> Handle | Slow[Handle]:
            nonlocal opened
            if opened is not None:
                self._inodes.leave(opened)
            node = entry.node
            version = node.version if isinstance(node, File) else None
            begins = not reads and version is None and not self._in_place(node)
            place = (node.parent.id if node.parent else 0), node.name
            try:
                opened = self._enter(place, caller, info.flags, None if begins else node.ident)
            except OSError:
                if version is not None:  # it may have been begun for this open, which does not come
                    self.mount.versions.dismiss(version, caller)
                raise
            return opening.open(self.mount, node.id, info.flags, caller)

        try:
            handle = self._on_entry(path, work, caller, truncates=truncates)
        except BaseException:
            if opened is not None:
                self._inodes.leave(opened)
            raise
        assert opened is not None
        self._keep(opened, handle, info)
        return 0

    def create(self, path: str, mode: int, info: Any) -> int:
        caller = self._caller(opening=True)
        with contextlib.ExitStack() as held:
            place = self._walk(path, caller, held)
            opened = self._enter(place, caller, info.flags, None)
            try:
                entry, handle = creating.create(self.mount, *place, info.flags, _new(caller, mode))
            except BaseException:
                self._inodes.leave(opened)
                raise
            self._keep(opened, handle, info)
            looking.forget(self.mount, entry.node.id, 1)
        return 0

    def _enter(self, place: Place, caller: Caller, flags: int, ident: Identity | None) -> Opened:
        process = writers.thread_group(caller.pid) or caller.pid
        opened = Opened(flags & os.O_ACCMODE != os.O_RDONLY, process, ident)
        if not self._inodes.enter(place, opened):
            raise OSError(errno.EBUSY, "another version of it may be mapped for writing")
        return opened

    def _keep(self, opened: Opened, handle: Handle, info: Any) -> None:
        self._inodes.complete(opened, handle, may_cache=self._may_cache(handle))
        self._opens[handle.id] = opened
        info.fh = handle.id
        info.direct_io = not opened.cached

    def _may_cache(self, handle: Handle) -> bool:
        access, node = handle.flags & os.O_ACCMODE, handle.node
        # The end that an append goes to is known to the daemon alone.
        if handle.relayed or access == os.O_WRONLY or handle.flags & os.O_APPEND:
            return False
        if isinstance(node, Generation):
            return True  # of one path and number, one version
        with self.mount.lock:
            if not isinstance(node, File) or node.parent is None:
                return False
            if self._in_place(node):
                return True
            staged = self.mount.versions.at(node.parent, node.name)
            if access == os.O_RDONLY:
                return not staged and node.name.endswith(_MAPPED)
            # A new file: everybody sees this one version of it.
            return staged == [handle.version] and not exists(node.parent.fd, node.name)

    def _in_place(self, node: Node) -> bool:
        return node.parent is not None and self.mount.in_place(node.parent, node.name)

    def _require_alone(self, handle_id: int) -> None:
        """Before the kernel is told what it keeps for the inode, and not for the handle."""
        node = self.mount.handle(handle_id).node
        if handle_id not in self._opens or not isinstance(node, File) or node.parent is None:
            return
        shown = None
        if node.version is None:
            status = lstat(node.parent.fd, node.name)
            shown = identity(status) if status else None
        if self._inodes.meets_others(self._opens[handle_id], shown):
            raise OSError(errno.EIO, "versions meet in one inode")

    def read(self, _path: str | None, size: int, offset: int, info: Any) -> bytes:
        if not info.lock_owner:  # a page, for a mapping; read(2) past the page cache has an owner
            self._require_alone(info.fh)
        return _finished(relay.read(self.mount, info.fh, size, offset))

    def write(self, _path: str | None, data: bytes, offset: int, info: Any) -> int:
        return _finished(relay.write(self.mount, info.fh, memoryview(data), offset))

    def flush(self, _path: str | None, info: Any) -> None:
        _finished(closing.flush(self.mount, info.fh, self._caller()))

    def release(self, _path: str | None, info: Any) -> None:
        self._inodes.leave(self._opens.pop(info.fh))
        _finished(closing.release(self.mount, info.fh))

    def fsync(self, _path: str | None, _data_only: int, info: Any) -> None:
        closing.fsync(self.mount, info.fh).run()

    # --- directories -----------------------------------------------------------------------------

    def opendir(self, path: str) -> int:
        def work(entry: Entry) -> int:
            handle = directories.opendir(self.mount, entry.node.id)
            with self.mount.lock:
                entry.node.lookups += 1  # known until releasedir
            return handle.id

        return self._on_entry(path, work)

    def readdir(self, handle_id: int, position: int) -> list[bytes]:
        return _finished(directories.readdir(self.mount, handle_id, position, _LISTED_BYTES))

    def releasedir(self, _path: str | None, handle_id: int) -> None:
        node = self.mount.handle(handle_id).node
        directories.releasedir(self.mount, handle_id)
        looking.forget(self.mount, node.id, 1)

    def fsyncdir(self, _path: str | None, _data_only: int, handle_id: int) -> None:
        closing.fsync_dir(self.mount, self.mount.handle(handle_id).node.id, self._caller()).run()


@overload
def _finished(result: Slow[None] | None) -> None: ...
@overload
def _finished(result: T | Slow[T]) -> T: ...
def _finished(result: Any) -> Any:
    return result.run() if isinstance(result, Slow) else result


def _new(caller: Caller, mode: int) -> New:
    """The kernel has taken the umask off already."""
    return New(caller, mode, umask=0)
