"""The session with the kernel: read requests, call the operations, write replies.

One thread reads ``/dev/fuse`` and answers what is quick; what may block runs in a pool that is fair
between users (``pool.py``), so slow work never delays other requests. Where the kernel does not
carry the data (no passthrough) several threads read. No exception leaves a handler: expected ones
become their errno, others EIO and a traceback in the log. Nothing here waits for another request.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ckptfs.listeners import Listeners

from ..operations import looking, opening
from ..operations.context import Mount
from ..operations.sessions import Openers, errno_of
from ..processes import mappings
from ..view.answers import Slow
from ..view.model import Caller
from . import wire
from .again import NO_REPLY, Again
from .answers import Answers
from .caches import KernelCaches
from .context import MAX_WRITE, Kernel
from .gate import Gate
from .handlers.shapes import names_in
from .judge import KERNEL, Judge
from .passthrough import Passthrough
from .pool import Flow, Pool, Underway
from .wire import Op

log = logging.getLogger("ckptfs.session")

_BUFFER_BYTES = MAX_WRITE + (64 << 10)
_RELAY_THREADS = 3
_QUIET_POLL_S = 0.002
_LONG_S = 1.0  # work that was under way for so long may be so for longer
_OPENING = frozenset({Op.OPEN, Op.CREATE, Op.MKDIR})
_SAVING = frozenset({Op.OPEN, Op.CREATE})
_MAKING = frozenset({Op.CREATE, Op.MKDIR, Op.SYMLINK, Op.MKNOD})
# These may read all of a file, or wait for who does.
_OF_WHOLE_FILES = frozenset({Op.OPEN, Op.FLUSH, Op.RELEASE, Op.FSYNC, Op.COPY_FILE_RANGE})
_LONG_BYTES = 64 << 20


class Session:
    def __init__(
        self, device: int, mount: Mount, *, passthrough: bool, judge: Judge = KERNEL
    ) -> None:
        self.device, self.mount = device, mount
        self.requests: Counter[str] = Counter()
        self.passthrough = Passthrough(device, enabled=passthrough)
        self.ready: Listeners[[]] = Listeners()  # called once requests are answered
        self.openers = Openers()
        self._pool = Pool()
        self._handlers: dict[int, Callable[[int, Caller, memoryview], Any]] = {}
        answers = Answers(device, mount, self.passthrough, shown=judge.shown, name_s=judge.name_s)
        self._reply = answers.reply
        self.gate = Gate()
        again = Again(mount, self.passthrough, self._handlers, answers, self.gate.now)
        self.kernel = Kernel(mount, self.passthrough, answers, again, os.geteuid(), judge.wanted)
        for op, handler in judge.handlers.items():
            self._handlers[op] = functools.partial(handler, self.kernel)
        self._ended = self._resumed = False
        self.caches = mount.caches = KernelCaches(device)
        mount.locks.renew = self.caches.drop_attributes

    def run(self) -> None:
        buffer = bytearray(_BUFFER_BYTES)
        if not self._resumed:
            self._serve_one(buffer)  # INIT: what it negotiates decides about the threads
        mappings.look_on(self.device)
        self.passthrough.probe(self.mount.store.layout)
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
            "sent": self.kernel.again.sent,
            "backing": self.passthrough.carried,
            "openers": self.openers,
            "requests": self.requests,
        }

    def descriptors(self) -> set[int]:
        return {self.device, *(sent.fd for sent in self.kernel.again.sent.values())}

    def resume(self, carried: dict[str, Any], *, agreed: bool) -> None:
        """``agreed``: the kernel has agreed to passthrough when the mount began."""
        self._resumed = True
        self.kernel.again.resume(carried["sent"])
        self.passthrough.resume(carried["backing"], agreed=agreed)
        self.openers, self.requests = carried["openers"], carried["requests"]

    def granting(self, request: int) -> Callable[[int], None]:
        return self.kernel.answers.granting(request)

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
            path = self.mount.nodes.get(work.about).path() or "."
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
        if opcode in _MAKING and self.kernel.uid not in (0, uid):
            self._reply(unique, -errno.EPERM)  # only root may give a file to another user
            return
        caller = Caller(uid, gid, pid, unique)
        body = request[wire.IN_HEADER.size :]
        work = _with_room(self.kernel, opcode, unique, nodeid, caller, body)
        work = work or self.kernel.again.work(opcode, unique, nodeid, caller, body)
        self._answer(unique, work, nodeid, lambda: _flow(self.kernel, opcode, nodeid, caller, body))

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

    def passthrough_state(self) -> tuple[bool, str]:
        return self.passthrough.active, self.passthrough.refusal


def _with_room(
    kernel: Kernel, opcode: int, unique: int, nodeid: int, caller: Caller, body: memoryview
) -> Callable[[], Any] | None:
    """The work of an open that begins a save for which room must be made first. Not of who was
    sent back to look again: that would come too late."""
    room = kernel.mount.store.room
    if opcode not in _SAVING or caller.pid in kernel.again.sent:
        return None
    if opcode == Op.CREATE:
        expected = room.sizes.expected(names_in(body[wire.CREATE_IN.size :])[0])
    else:
        expected = opening.about_to_save(kernel.mount, nodeid, wire.OPEN_IN.unpack_from(body)[0])
    if not room.is_short_of(expected, caller.uid):
        return None
    kept = memoryview(bytes(body))  # the buffer is the next request's by then

    def make_room_first() -> Any:
        room.ahead_of(expected, caller.uid)
        return kernel.again.work(opcode, unique, nodeid, caller, kept)()

    return lambda: Slow(make_room_first)


def _flow(kernel: Kernel, opcode: int, nodeid: int, caller: Caller, body: memoryview) -> Flow:
    whole = opcode in _OF_WHOLE_FILES
    if opcode == Op.SETATTR:
        whole = bool(wire.SETATTR_IN.unpack_from(body)[0] & wire.FATTR_SIZE)
    return Flow(caller.uid, whole and looking.size_of(kernel.mount, nodeid) >= _LONG_BYTES)
