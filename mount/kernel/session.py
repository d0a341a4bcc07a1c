"""The session with the kernel: read requests, call the operations, write replies.

One thread reads ``/dev/fuse`` and answers what is quick; what may block runs in a pool that is fair
between users (``pool.py``), so slow work never delays other requests. Where the kernel does not
carry the data (no passthrough) several threads read. No exception leaves a handler: expected ones
become their errno, others EIO and a traceback in the log. Nothing here waits for another request.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Queue
from typing import Any

from ckptfs.disk import osfs
from ckptfs.errors import CannotServe, CkptfsError

from ..operations import commands
from ..operations.attributes import Change
from ..operations.base import Caches, Dropped, Entry, New, Slow, without_names
from ..operations.sessions import Openers, errno_of
from ..operations.whole import Operations
from ..processes import mappings
from ..view import acl
from ..view.identity import CONTROL_ID
from ..view.listing import parts
from ..view.locks import Lock, Wait
from ..view.model import Caller, File, Handle, Node, Virtual
from . import namespaces, wire
from .again import NO_REPLY, Again, Answers
from .gate import Gate
from .passthrough import Passthrough
from .pool import Flow, Pool, Underway
from .wire import Op

log = logging.getLogger("ckptfs.session")

_MAX_WRITE = 1 << 20
_MAX_COPY = 1 << 30  # of one copy_file_range; the caller asks again for the rest
_BUFFER_BYTES = _MAX_WRITE + (64 << 10)
_RELAY_THREADS = 3
_QUIET_POLL_S = 0.002
_LONG_S = 1.0  # work that was under way for so long may be so for longer
_WANTED = (
    wire.ASYNC_READ
    | wire.POSIX_LOCKS
    | wire.FLOCK_LOCKS
    | wire.ATOMIC_O_TRUNC
    | wire.BIG_WRITES
    | wire.DONT_MASK
    | wire.POSIX_ACL
    | wire.AUTO_INVAL_DATA
    | wire.DO_READDIRPLUS
    | wire.READDIRPLUS_AUTO
    | wire.PARALLEL_DIROPS
    | wire.MAX_PAGES
    | wire.HANDLE_KILLPRIV_V2
    | wire.INIT_EXT
)
_OPENING = frozenset({Op.OPEN, Op.CREATE, Op.MKDIR})
_SAVING = frozenset({Op.OPEN, Op.CREATE})
_MAKING = frozenset({Op.CREATE, Op.MKDIR, Op.SYMLINK, Op.MKNOD})
# These may read all of a file, or wait for who does.
_OF_WHOLE_FILES = frozenset({Op.OPEN, Op.FLUSH, Op.RELEASE, Op.FSYNC, Op.COPY_FILE_RANGE})
_LONG_BYTES = 64 << 20
_CACHED_S = 10  # also how long an edit below the mount may go unseen by stat
_GOING_NS = 10 * 10**6
_CACHED_LISTING = wire.FOPEN_CACHE_DIR | wire.FOPEN_KEEP_CACHE


class KernelCaches(Caches):
    """Notifications. Dropping a name takes the kernel's lock of the directory, which a request
    that waits for its answer may hold: a thread of its own does it, and nobody waits for that."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._names: Queue[Dropped] = Queue()
        threading.Thread(target=self._drop_names, name="ckptfs-notify", daemon=True).start()

    def drop_attributes(self, nodeid: int) -> None:
        body = wire.INVAL_INODE_OUT.pack(nodeid, wire.ATTRIBUTES_ONLY, 0)
        self._notify(wire.NOTIFY_INVAL_INODE, body)

    def _drop(self, dropped: Dropped) -> None:
        self._names.put(dropped)

    def _drop_names(self) -> None:
        while True:
            dropped = self._names.get()
            try:
                self._drop_name(dropped)
            except Exception:  # others wait for what follows
                log.exception("a notification failed")
            finally:
                self._names.task_done()

    def _drop_name(self, dropped: Dropped) -> None:
        parent_id, name, gone, then, begun = dropped
        begun()
        encoded = os.fsencode(name)
        if gone:
            head = wire.DELETE_OUT.pack(parent_id, gone, len(encoded), 0)
            self._notify(wire.NOTIFY_DELETE, head + encoded + b"\0")
        else:
            head = wire.INVAL_ENTRY_OUT.pack(parent_id, len(encoded), 0)
            self._notify(wire.NOTIFY_INVAL_ENTRY, head + encoded + b"\0")
        then()

    @property
    def busy(self) -> bool:
        return self._names.unfinished_tasks > 0

    def _notify(self, kind: int, body: bytes) -> None:
        with contextlib.suppress(OSError):  # the kernel knows no such node, or the mount is gone
            os.writev(
                self._device,
                [wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), kind, 0), body],
            )


class Session:
    wanted = _WANTED

    def __init__(self, device: int, operations: Operations, *, passthrough: bool) -> None:
        self.device, self.ops = device, operations
        self.requests: Counter[str] = Counter()
        self.passthrough = Passthrough(device, enabled=passthrough)
        self.ready: Callable[[], None] = lambda: None  # called once requests are answered
        self._uid = os.geteuid()
        self.openers = Openers()
        self._pool = Pool()
        self._handlers: dict[int, Callable[[int, Caller, memoryview], Any]] = {
            op: getattr(self, f"_{op.name.lower()}")
            for op in Op
            if hasattr(self, f"_{op.name.lower()}")
        }
        answers = Answers(self._entry, self._opened, self._attr, self._reply)
        self.gate = Gate()
        self.again = Again(operations, self.passthrough, self._handlers, answers, self.gate.now)
        self._ended = self._resumed = False
        self.restart: Callable[[int, bytes], None] | None = None  # by a request, with an order
        self.interrupted: Callable[[int], None] = lambda request: None
        self.caches = operations.caches = KernelCaches(device)
        operations.locks.renew = self.caches.drop_attributes

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        buffer = bytearray(_BUFFER_BYTES)
        if not self._resumed:
            self._serve_one(buffer)  # INIT: what it negotiates decides about the threads
        mappings.look_on(self.device)
        self.passthrough.probe(self.ops.store.layout)
        helpers = [
            threading.Thread(target=self._loop, name=f"ckptfs-relay-{i}", daemon=True)
            for i in range(0 if self.passthrough.active else _RELAY_THREADS - 1)
        ]
        self.ready()
        self._begin(helpers)
        self._loop(buffer)
        for helper in helpers:
            helper.join()
        self._pool.shutdown()

    def _begin(self, helpers: list[threading.Thread]) -> None:
        """As many of them as there are threads to be had; this one reads anyhow."""
        self.gate.readers += len(helpers)
        for index, helper in enumerate(helpers):
            try:
                helper.start()
            except RuntimeError as error:
                log.warning("%s: %d threads carry the data", error, index + 1)
                self.gate.readers -= len(helpers) - index
                del helpers[index:]
                break

    def carried(self) -> dict[str, Any]:
        """For the program that goes on."""
        return {
            "sent": self.again.sent,
            "backing": self.passthrough.carried,
            "openers": self.openers,
            "requests": self.requests,
        }

    def descriptors(self) -> set[int]:
        return {self.device, *(sent.fd for sent in self.again.sent.values())}

    def resume(self, carried: dict[str, Any], *, agreed: bool) -> None:
        """``agreed``: the kernel has agreed to passthrough when the mount began."""
        self._resumed = True
        self.again.resume(carried["sent"])
        self.passthrough.resume(carried["backing"], agreed=agreed)
        self.openers, self.requests = carried["openers"], carried["requests"]

    def granting(self, request: int) -> Callable[[int], None]:
        return lambda error: self._reply(request, -error)

    def end(self) -> None:
        """``run`` returns once each of its threads has answered one more request."""
        self._ended = True

    def _loop(self, buffer: bytearray | None = None) -> None:
        buffer = buffer or bytearray(_BUFFER_BYTES)
        while not self._ended:
            self.gate.pass_through()
            self._serve_one(buffer)

    @contextlib.contextmanager
    def quiet(self, mountpoint: str, limit_s: float) -> Iterator[bool]:
        """Inside, no request is read or under way; what waits for a lock has no answer. Gives False
        where that took too long: a notification may wait for what a request holds that nobody
        reads."""
        deadline = time.monotonic() + limit_s
        with self.gate.closed(mountpoint, limit_s) as stopped:
            while stopped and self.at_work() and time.monotonic() < deadline:
                time.sleep(_QUIET_POLL_S)
            yield stopped and not self.at_work()

    def at_work(self) -> bool:
        # Work hands notifications over, and what follows those may be work again.
        return self._pool.busy or self.caches.busy or self._pool.busy

    def long_work(self, wait_s: float) -> list[str]:
        """Work that keeps the daemon from being quiet, the longest under way first; waits a while
        for it to be nothing."""
        return list(map(self._told, self._pool.long_work(_LONG_S, wait_s)))

    def work(self) -> list[str]:
        """What is under way at this moment."""
        return list(map(self._told, self._pool.underway()))

    def _told(self, work: Underway) -> str:
        path = "?"
        with contextlib.suppress(OSError):
            path = self.ops.nodes.get(work.about).path() or "."
        return f"{path}, for user {work.flow.user}"

    def _serve_one(self, buffer: bytearray) -> None:
        try:
            size = os.readv(self.device, [buffer])
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                return  # ENOENT: the request was interrupted before it was read
            if error.errno not in (errno.ENODEV, errno.EBADF, errno.ECONNABORTED):
                log.error("reading requests failed: %s", error)
            self._ended = True
            return
        request = memoryview(buffer)[:size]
        try:
            self._dispatch(request)
        except Exception as error:  # of what takes it apart: it may not end the others
            unique = wire.IN_HEADER.unpack_from(request)[2]
            self._reply(unique, -errno_of(error))

    def _dispatch(self, request: memoryview) -> None:
        _, opcode, unique, nodeid, uid, gid, pid, _, _ = wire.IN_HEADER.unpack_from(request)
        if opcode not in self._handlers:
            self.requests[f"unsupported {opcode}"] += 1
            self._reply(unique, -errno.ENOSYS)
            return
        self.requests[Op(opcode).name] += 1
        if opcode in _OPENING:
            self.openers.note(pid)
        if opcode in _MAKING and self._uid not in (0, uid):
            self._reply(unique, -errno.EPERM)  # only root may give a file to another user
            return
        caller = Caller(uid, gid, pid, unique)
        body = request[wire.IN_HEADER.size :]
        work = self._with_room(opcode, unique, nodeid, caller, body)
        work = work or self.again.work(opcode, unique, nodeid, caller, body)
        self._answer(unique, work, nodeid, lambda: self._flow(opcode, nodeid, caller, body))

    def _with_room(
        self, opcode: int, unique: int, nodeid: int, caller: Caller, body: memoryview
    ) -> Callable[[], Any] | None:
        """The work of an open that begins a save for which room must be made first. Not of who was
        sent back to look again: that would come too late."""
        room = self.ops.store.room
        if opcode not in _SAVING or caller.pid in self.again.sent:
            return None
        if opcode == Op.CREATE:
            expected = room.sizes.expected(names(body[wire.CREATE_IN.size :])[0])
        else:
            expected = self.ops.about_to_save(nodeid, wire.OPEN_IN.unpack_from(body)[0])
        if not room.is_short_of(expected, caller.uid):
            return None
        kept = memoryview(bytes(body))  # the buffer is the next request's by then

        def make_room_first() -> Any:
            room.ahead_of(expected, caller.uid)
            return self.again.work(opcode, unique, nodeid, caller, kept)()

        return lambda: Slow(make_room_first)

    def _flow(self, opcode: int, nodeid: int, caller: Caller, body: memoryview) -> Flow:
        whole = opcode in _OF_WHOLE_FILES
        if opcode == Op.SETATTR:
            whole = bool(wire.SETATTR_IN.unpack_from(body)[0] & wire.FATTR_SIZE)
        return Flow(caller.uid, whole and self.ops.size_of(nodeid) >= _LONG_BYTES)

    def _answer(
        self, unique: int, work: Callable[[], Any], nodeid: int, flow_of: Callable[[], Flow]
    ) -> None:
        """Run ``work`` and reply with what it returns: bytes, an error, or later."""
        try:
            result = work()
        except Exception as error:
            self._reply(unique, -errno_of(error))
        else:
            if isinstance(result, Slow):
                later, flow = result.run, flow_of()
                if result.user is not None:
                    flow = flow._replace(user=result.user)
                self._pool.submit(
                    flow, lambda: self._answer(unique, later, nodeid, lambda: flow), nodeid
                )
            elif result is not NO_REPLY:
                self._reply(unique, 0, result or b"")

    def _reply(self, unique: int, error: int, payload: bytes = b"") -> None:
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(payload), error, unique)
        try:
            os.writev(self.device, [header, payload] if payload else [header])
        except OSError as failure:
            if failure.errno not in (errno.ENOENT, errno.ENODEV):  # the caller is gone
                log.error("reply to request %d failed: %s", unique, failure)

    def passthrough_state(self) -> tuple[bool, str]:
        return self.passthrough.active, self.passthrough.refusal

    # --- session ---------------------------------------------------------------------------------

    def _init(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        major, minor, readahead, flags, flags2 = wire.INIT_IN.unpack_from(body)
        if major != wire.KERNEL_VERSION or minor < wire.MINIMUM_MINOR:
            raise CannotServe(f"the kernel speaks FUSE {major}.{minor}, too old for ckptfs")
        offered = flags | (flags2 << 32 if flags & wire.INIT_EXT else 0)
        agreed = offered & self.wanted
        if offered & wire.PASSTHROUGH and self.passthrough.enabled:
            agreed |= wire.PASSTHROUGH
            self.passthrough.agreed = self.passthrough.active = True
        return wire.INIT_OUT.pack(
            wire.KERNEL_VERSION,
            min(minor, wire.KERNEL_MINOR),
            readahead,
            agreed & 0xFFFFFFFF,
            64,
            48,
            _MAX_WRITE,
            1,
            _MAX_WRITE // os.sysconf("SC_PAGESIZE"),
            0,
            agreed >> 32,
            self.passthrough.stack_depth(self.ops.store.root),
        )

    def _destroy(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        return b""

    def _interrupt(self, nodeid: int, caller: Caller, body: memoryview) -> object:
        """Ends the wait for a lock or a restart; a commit that began is finished."""
        request = wire.FORGET_IN.unpack_from(body)[0]
        self.ops.locks.interrupt(request)
        self.interrupted(request)
        return NO_REPLY

    def _forget(self, nodeid: int, caller: Caller, body: memoryview) -> object:
        self.ops.forget(nodeid, wire.FORGET_IN.unpack_from(body)[0])
        return NO_REPLY

    def _batch_forget(self, nodeid: int, caller: Caller, body: memoryview) -> object:
        count, _ = wire.BATCH_FORGET_IN.unpack_from(body)
        size = wire.FORGET_ONE.size
        rest = body[wire.BATCH_FORGET_IN.size :][: count * size]
        for forgotten, lookups in wire.FORGET_ONE.iter_unpack(rest):
            self.ops.forget(forgotten, lookups)
        return NO_REPLY

    # --- names and attributes --------------------------------------------------------------------

    def _lookup(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        try:
            return self._entry(self.again.lookup(nodeid, names(body)[0], caller))
        except FileNotFoundError:
            if isinstance(self.ops.nodes.get(nodeid), Virtual):
                raise  # a commit may put it there, which drops no name
            return _ABSENT

    def _entry(self, entry: Entry) -> bytes:
        name_s = _CACHED_S if entry.name_lasts else 0
        status_s = _CACHED_S if entry.status_lasts else 0
        status, status_ns = entry.status, 0
        if entry.going:  # when its dentry is replaced, who watches the file is told
            status, status_s, status_ns = without_names(status), 0, _GOING_NS
        head = wire.ENTRY_OUT.pack(entry.node.id, 0, name_s, status_s, 0, status_ns)
        return head + self._shown(status, _shown_inode(entry.node))

    def _shown(self, status: os.stat_result, inode: int) -> bytes:
        return wire.attr(status, inode)

    def _getattr(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        flags, _, handle = wire.GETATTR_IN.unpack_from(body)
        status = self.ops.getattr(nodeid, handle if flags & wire.GETATTR_FH else None)
        return self._attr(nodeid, status)

    def _attr(self, nodeid: int, status: os.stat_result) -> bytes:
        node = self.ops.nodes.get(nodeid)
        seconds = _CACHED_S if self.ops.status_lasts(node, status) else 0
        return wire.ATTR_OUT.pack(seconds, 0, 0) + self._shown(status, _shown_inode(node))

    def _setattr(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        fields = wire.SETATTR_IN.unpack_from(body)
        valid, handle = fields[0], fields[2]
        result = self.ops.setattr(
            nodeid, handle if valid & wire.FATTR_FH else None, _change(valid, fields)
        )
        return _then(result, lambda status: self._attr(nodeid, status))

    def _readlink(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        return os.fsencode(self.ops.readlink(nodeid))

    def _symlink(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        name, target = names(body)
        return self._entry(self.ops.symlink(nodeid, name, target, caller))

    def _mknod(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        mode, device, umask, _ = wire.MKNOD_IN.unpack_from(body)
        name = names(body[wire.MKNOD_IN.size :])[0]
        new = New(caller, mode, umask)
        return self._entry(self.ops.mknod(nodeid, name, new, wire.device_number(device)))

    def _mkdir(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        mode, umask = wire.MKDIR_IN.unpack_from(body)
        name = names(body[wire.MKDIR_IN.size :])[0]
        return self._entry(self.ops.mkdir(nodeid, name, New(caller, mode, umask)))

    def _unlink(self, nodeid: int, caller: Caller, body: memoryview) -> Slow[None]:
        return self.ops.unlink(nodeid, names(body)[0])

    def _rmdir(self, nodeid: int, caller: Caller, body: memoryview) -> None:
        self.ops.rmdir(nodeid, names(body)[0])

    def _rename(self, nodeid: int, caller: Caller, body: memoryview) -> Slow[None] | None:
        (target,) = wire.RENAME_IN.unpack_from(body)
        name, new_name = names(body[wire.RENAME_IN.size :])
        return self.ops.rename(nodeid, name, target, new_name, 0, caller)

    def _rename2(self, nodeid: int, caller: Caller, body: memoryview) -> Slow[None] | None:
        target, flags, _ = wire.RENAME2_IN.unpack_from(body)
        name, new_name = names(body[wire.RENAME2_IN.size :])
        return self.ops.rename(nodeid, name, target, new_name, flags, caller)

    def _link(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        (old,) = wire.LINK_IN.unpack_from(body)
        name = names(body[wire.LINK_IN.size :])[0]
        return _then(self.ops.link(old, nodeid, name, caller), self._entry)

    def _statfs(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        s = self.ops.statfs()
        return wire.STATFS_OUT.pack(
            s.f_blocks,
            s.f_bfree,
            s.f_bavail,
            s.f_files,
            s.f_ffree,
            s.f_bsize,
            s.f_namemax,
            s.f_frsize,
            0,
        )

    # --- extended attributes ---------------------------------------------------------------------

    def _getxattr(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        size, _ = wire.GETXATTR_IN.unpack_from(body)
        key = names(body[wire.GETXATTR_IN.size :])[0]
        try:
            return _sized(self.ops.getxattr(nodeid, key), size)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and key in acl.KEYS:
                raise OSError(errno.ENODATA, "no ACLs here") from None  # asked on every path walk
            raise

    def _listxattr(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        size, _ = wire.GETXATTR_IN.unpack_from(body)
        keys = self.ops.listxattr(nodeid, caller)
        return _sized(b"".join(os.fsencode(key) + b"\0" for key in keys), size)

    def _setxattr(self, nodeid: int, caller: Caller, body: memoryview) -> object:
        size, flags = wire.SETXATTR_IN.unpack_from(body)
        key, _, value = bytes(body[wire.SETXATTR_IN.size :]).partition(b"\0")
        if os.fsdecode(key) == commands.RESTART and nodeid == CONTROL_ID and self.restart:
            # It names the program that we become: root of a container is not to choose it.
            if caller.uid not in (0, self._uid) or not namespaces.is_at_home(caller.pid):
                raise PermissionError(errno.EPERM, "not for everybody")
            self.restart(caller.request, value[:size])
            return NO_REPLY
        return self.ops.setxattr(nodeid, os.fsdecode(key), value[:size], flags, caller)

    def _removexattr(self, nodeid: int, caller: Caller, body: memoryview) -> Slow[None] | None:
        return self.ops.removexattr(nodeid, names(body)[0])

    # --- files -----------------------------------------------------------------------------------

    def _open(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        flags, open_flags = wire.OPEN_IN.unpack_from(body)

        def opened(handle: Handle) -> bytes:
            handle.user = caller.uid
            if open_flags & wire.OPEN_KILL_SUIDGID:
                self.ops.drop_set_id(handle)
            return self._opened(handle)

        return _then(self.ops.open(nodeid, flags, caller), opened)

    def _opened(self, handle: Handle) -> bytes:
        reply, backing = 0, 0
        if handle.relayed:
            reply |= wire.FOPEN_DIRECT_IO
        else:
            backing = self.passthrough.attach(handle)
            if backing:
                reply |= wire.FOPEN_PASSTHROUGH
        return wire.OPEN_OUT.pack(handle.id, reply, backing)

    def _create(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
        name = names(body[wire.CREATE_IN.size :])[0]
        entry, handle = self.ops.create(nodeid, name, flags, New(caller, mode, umask))
        handle.user = caller.uid
        return self._entry(entry) + self._opened(handle)

    def _read(self, nodeid: int, caller: Caller, body: memoryview) -> bytes | Slow[bytes]:
        handle, offset, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
        return self.ops.read(handle, size, offset)

    def _write(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        handle, offset, size, flags, _, _, _ = wire.WRITE_IN.unpack_from(body)
        data = body[wire.WRITE_IN.size :][:size]
        self.ops.note_writer(handle, caller)

        def shape(written: int) -> bytes:
            if flags & wire.WRITE_KILL_SUIDGID:
                self.ops.drop_set_id(self.ops.handle(handle))
            return wire.WRITE_OUT.pack(written, 0)

        cached = bool(flags & wire.WRITE_CACHE)
        return _then(self.ops.write(handle, data, offset, cached=cached), shape)

    def _flush(self, nodeid: int, caller: Caller, body: memoryview) -> Slow[None] | None:
        handle, _, _, owner = wire.FLUSH_IN.unpack_from(body)
        with contextlib.ExitStack() as stack:  # who gets the lock then sees what was closed
            stack.callback(self.ops.unlock_process, handle, owner)
            work = self.ops.flush(handle, caller)
            if work is None:
                return None
            commit, unlocking = work.run, stack.pop_all()

        def both() -> None:
            with unlocking:
                commit()

        return Slow(both)

    def _release(self, nodeid: int, caller: Caller, body: memoryview) -> Slow[None] | None:
        handle = self.ops.handle(wire.RELEASE_IN.unpack_from(body)[0])
        self.passthrough.detach(handle)
        try:
            work = self.ops.release(handle.id)
        finally:
            self.ops.unlock_description(handle)
        return work and replace(work, user=handle.user)

    def _fsync(self, nodeid: int, caller: Caller, body: memoryview) -> Slow[None]:
        return self.ops.fsync(wire.FSYNC_IN.unpack_from(body)[0])

    def _fallocate(self, nodeid: int, caller: Caller, body: memoryview) -> Slow[None]:
        handle, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
        return self.ops.fallocate(handle, mode, offset, length)

    def _copy_file_range(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        source, at, _, target, to, size, _ = wire.COPY_FILE_RANGE_IN.unpack_from(body)
        result = self.ops.copy_range(source, at, target, to, min(size, _MAX_COPY))
        return _then(result, lambda copied: wire.WRITE_OUT.pack(copied, 0))

    def _lseek(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        handle, offset, whence, _ = wire.LSEEK_IN.unpack_from(body)
        return wire.LSEEK_OUT.pack(self.ops.seek(handle, offset, whence))

    # --- locks -----------------------------------------------------------------------------------

    def _getlk(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        handle, lock, kind = _lock(nodeid, body)
        look = self.ops.locks.own if kind == fcntl.F_UNLCK else self.ops.locks.test
        found = look(self.ops.handle(handle).locks, lock)
        if found is None:
            return wire.LK_OUT.pack(lock.start, lock.end, fcntl.F_UNLCK, 0)
        kind = fcntl.F_WRLCK if found.exclusive else fcntl.F_RDLCK
        return wire.LK_OUT.pack(found.start, found.end, kind, found.pid)

    def _setlk(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        handle, lock, kind = _lock(nodeid, body)
        locks = self.ops.handle(handle).locks
        if kind == fcntl.F_UNLCK:
            self.ops.locks.drop(locks, lock)
            return None
        ahead = self.ops.coordinates(handle, caller, lock, waits=False)
        return _after(ahead, lambda: self.ops.locks.take(locks, lock))

    def _setlkw(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        handle, lock, kind = _lock(nodeid, body)
        if kind == fcntl.F_UNLCK:
            return self._setlk(nodeid, caller, body)
        locks, request = self.ops.handle(handle).locks, caller.request
        wait = Wait(locks, lock, request, caller.pid, self.granting(request))

        def begin() -> object:
            self.ops.locks.wait(wait)
            return NO_REPLY

        return _after(self.ops.coordinates(handle, caller, lock, waits=True), begin)

    # --- directories -----------------------------------------------------------------------------

    def _opendir(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        handle = self.ops.opendir(nodeid)
        return wire.OPEN_OUT.pack(handle.id, _CACHED_LISTING if handle.cached else 0, 0)

    def _readdir(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        handle, position, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
        return _then(self.ops.readdir(handle, position, size), b"".join)

    def _readdirplus(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        def look_up(name: str) -> bytes:
            if name in (".", ".."):
                return _NO_ENTRY
            try:
                return self._entry(self.ops.lookup(nodeid, name, caller))
            except (OSError, CkptfsError):  # gone meanwhile: a lookup tells why
                return _NO_ENTRY

        def shape(entries: list[bytes]) -> bytes:
            return b"".join(look_up(parts(entry)[0]) + entry for entry in entries)

        handle, position, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
        return _then(self.ops.readdir(handle, position, size, len(_NO_ENTRY)), shape)

    def _releasedir(self, nodeid: int, caller: Caller, body: memoryview) -> None:
        self.ops.releasedir(wire.RELEASE_IN.unpack_from(body)[0])

    def _fsyncdir(self, nodeid: int, caller: Caller, body: memoryview) -> Slow[None]:
        return self.ops.fsync_dir(nodeid, caller)


def _lock(nodeid: int, body: memoryview) -> tuple[int, Lock, int]:
    """Handle, lock and kind of a lock request."""
    handle, owner, start, end, kind, pid, flags, _ = wire.LK_IN.unpack_from(body)
    is_flock, exclusive = bool(flags & wire.LK_FLOCK), kind == fcntl.F_WRLCK
    return handle, Lock(owner, start, end, exclusive, is_flock, pid, nodeid), kind


def names(body: memoryview) -> list[str]:
    return [os.fsdecode(part) for part in bytes(body).split(b"\0")[:-1]]


def _shown_inode(node: Node) -> int:
    return node.stands_for if isinstance(node, File) else 0


# Node 0, "no such name": one is to be looked up once it is asked for, one stays absent for a while.
_NO_ENTRY = bytes(wire.ENTRY_OUT.size + wire.ATTR.size)
_ABSENT = wire.ENTRY_OUT.pack(0, 0, _CACHED_S, 0, 0, 0) + bytes(wire.ATTR.size)


def _sized(value: bytes, size: int) -> bytes:
    """The reply protocol of GETXATTR and LISTXATTR: size 0 asks how long the value is."""
    if size == 0:
        return wire.GETXATTR_IN.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, "the value is longer than the buffer")
    return value


def _then(result: Any, shape: Callable[[Any], bytes]) -> Any:
    """Shape a result now, or once it is there."""
    return Slow(lambda: shape(result.run())) if isinstance(result, Slow) else shape(result)


def _after(work: Slow[None] | None, then: Callable[[], Any]) -> Any:
    """``then``, once the work ahead of it is done, if there is any."""
    if work is None:
        return then()
    ahead = work.run

    def both() -> Any:
        ahead()
        return then()

    return Slow(both)


def _change(valid: int, fields: tuple[int, ...]) -> Change:
    _, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields
    known = (
        wire.FATTR_MODE
        | wire.FATTR_UID
        | wire.FATTR_GID
        | wire.FATTR_SIZE
        | wire.FATTR_ATIME
        | wire.FATTR_MTIME
    )
    new_atime = osfs.NOW if valid & wire.FATTR_ATIME_NOW else _time(atime, atime_ns)
    new_mtime = osfs.NOW if valid & wire.FATTR_MTIME_NOW else _time(mtime, mtime_ns)
    return Change(
        size=size if valid & wire.FATTR_SIZE else None,
        mode=mode if valid & wire.FATTR_MODE else None,
        uid=uid if valid & wire.FATTR_UID else None,
        gid=gid if valid & wire.FATTR_GID else None,
        atime_ns=new_atime if valid & wire.FATTR_ATIME else None,
        mtime_ns=new_mtime if valid & wire.FATTR_MTIME else None,
        # valid without any attribute is the kernel's order to clear set-id bits (KILLPRIV_V2)
        drop_set_id=bool(valid & wire.FATTR_KILL_SUIDGID) or not valid & known,
    )


def _time(seconds: int, nanoseconds: int) -> int:
    return wire.signed64(seconds) * 10**9 + nanoseconds
