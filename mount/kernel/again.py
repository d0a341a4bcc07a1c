"""Requests whose node has lost its name since the kernel looked it up.

Answered ESTALE, the kernel looks the path up once more and asks again; a second ESTALE would be the
program's. So the second time the daemon looks the path up itself, as often as it takes. The kernel
goes on with the node that it has found, which therefore is nobody else's: any file can be its.

Threading: an entry of the table belongs to one thread of a program, which makes one call at a time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from ..operations import handles, joining, looking, xattrs
from ..operations.context import Mount
from ..view import acl, aliases
from ..view.answers import Entry, Slow, stale
from ..view.model import Caller, File, Node, stands
from . import wire
from .answers import Answers
from .passthrough import Passthrough
from .wire import Op

NO_REPLY = object()  # it comes later
_AGAIN_S = 1.0  # until then a request by a thread that was sent back is its second try
_TRIES = 50
_LOST = (errno.ESTALE, errno.ENOENT)
_BEGUN_S = 0.1  # at most: other notifications may be ahead
_NOTIFIED_S = 0.002  # for a notification to get as far as to the lock that its request holds
_Handler = Callable[[int, Caller, memoryview], Any]
_RENAMED_S = 0.001  # for a rename to be over
# Requests that name a node and mean a path.
_AHEAD = frozenset({Op.GETATTR, Op.GETXATTR})  # asked ahead of others, too
_OF_PATHS = _AHEAD | {Op.OPEN, Op.SETATTR, Op.SETXATTR, Op.REMOVEXATTR, Op.LISTXATTR}


@dataclass(frozen=True)
class _Request:
    op: int
    unique: int
    nodeid: int
    caller: Caller
    body: memoryview
    handler: _Handler

    def ask(self, nodeid: int) -> Any:
        return self.handler(nodeid, self.caller, self.body)


@dataclass(eq=False)
class _Sent:
    """A thread that was sent back, and what the kernel then found for it."""

    since: float  # by the clock of the gate
    flags: int = 0  # of the open that it asked for
    place: tuple[int, str] | None = None
    nodeid: int = 0
    judged: tuple[int, ...] = ()  # owner and mode, by which the kernel let it in
    fd: int = -1  # O_PATH: on a plain directory it has this, whatever becomes of the name

    def __del__(self) -> None:
        self.hold(-1)

    def hold(self, fd: int) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = fd


class Again:
    def __init__(
        self,
        mount: Mount,
        passthrough: Passthrough,
        handlers: dict[int, _Handler],
        answers: Answers,
        now: Callable[[], float],
    ) -> None:
        """``now`` counts the seconds in which requests are answered."""
        self._now = now
        self._mount, self._passthrough = mount, passthrough
        self._handlers, self._answers = handlers, answers
        self.sent: dict[int, _Sent] = {}

    def resume(self, sent: dict[int, _Sent]) -> None:
        """Of an earlier program; the time between the two counts for nobody."""
        for each in sent.values():
            each.since = self._now()
        self.sent = sent

    def lookup(self, parent_id: int, name: str, caller: Caller) -> Entry:
        """What a thread finds that was sent back is kept for the request that follows."""
        sent = self.sent.get(caller.pid)
        if sent is None or self._now() - sent.since > _AGAIN_S:
            return looking.lookup(self._mount, parent_id, name, caller)
        return self._keep_found(sent, parent_id, name, caller)

    def _keep_found(self, sent: _Sent, parent_id: int, name: str, caller: Caller) -> Entry:
        """What others may have open is given a node of its own, but for the version that the caller
        was sent to: the kernel allows a node one backing file, and this is to have whatever stands
        at the path by then."""
        for _ in range(_TRIES):
            entry = looking.lookup(self._mount, parent_id, name, caller)
            if not isinstance(entry.node, File) or entry.node.kind != stat.S_IFREG:
                return entry
            fd = self._open(entry.node)
            if fd >= 0:
                break
            looking.forget(self._mount, entry.node.id, 1)  # it was replaced meanwhile
        else:
            raise stale()
        sent.hold(fd)
        sent.place, sent.judged = (parent_id, name), _access(entry.status)
        if self._may_be_apart(entry.node, sent.flags, caller):
            entry = looking.alias(self._mount, entry)
        sent.nodeid = entry.node.id
        return entry

    def _may_be_apart(self, node: File, flags: int, caller: Caller) -> bool:
        """Not where the kernel keeps pages of the node: two nodes of one version would overwrite
        each other's. Who truncates begins a version of his own."""
        version = node.version
        if version is None:
            return True
        if caller.pid in version.expected:
            return False
        backed = self._passthrough.active and version.staged.base is None
        return backed or not joining.is_joined(self._mount.versions, version, flags, caller)

    def _open(self, node: File) -> int:
        with contextlib.suppress(OSError), looking.inode_of(self._mount, node) as inode:
            return os.open(f"/proc/self/fd/{inode}", os.O_PATH | os.O_CLOEXEC)
        return -1

    def work(
        self, op: int, unique: int, nodeid: int, caller: Caller, body: memoryview
    ) -> Callable[[], Any]:
        """What a request asks for, on the path that it means."""
        asked = _Request(op, unique, nodeid, caller, body, self._handlers[op])
        if op not in _OF_PATHS and op != Op.CREATE:
            return lambda: asked.ask(nodeid)
        sent = self.sent.get(caller.pid)
        if sent is not None and (op == Op.CREATE or sent.nodeid == nodeid):
            if op not in _AHEAD:
                self.sent.pop(caller.pid, None)  # another thread lets go of what is old
            if self._now() - sent.since < _AGAIN_S:
                return self._second_try(sent, replace(asked, body=memoryview(bytes(body))))
        makes_version = _makes_version(asked)  # the buffer is the next request's by then

        def send_back() -> Any:
            return self._send_back(asked, makes_version)

        return lambda: _unless_lost(lambda: asked.ask(nodeid), send_back)

    # --- the first time --------------------------------------------------------------------------

    def _send_back(self, asked: _Request, makes_version: bool) -> Any:
        """ESTALE. Who watches the file is told ahead of it: when its version is committed the
        kernel may know the old one by no name any more, and by that alone could it be told."""
        for pid, sent in list(self.sent.items()):
            if self._now() - sent.since > _AGAIN_S:
                self.sent.pop(pid, None)
        if asked.caller.pid:  # of 0 nobody knows who it is
            self.sent[asked.caller.pid] = _Sent(self._now(), _flags(asked))
        node = self._mount.nodes.get(asked.nodeid)
        if not makes_version or not isinstance(node, File) or node.parent is None:
            raise stale()
        drop_name = self._mount.caches.drop_name
        if asked.op == Op.OPEN:
            answer = functools.partial(self._answers.reply, asked.unique, -errno.ESTALE)
            drop_name(node.parent.id, node.name, node.id, answer)
            return NO_REPLY
        begun = threading.Event()
        drop_name(node.parent.id, node.name, node.id, begun=begun.set)
        return Slow(functools.partial(_stale_once_notified, begun))

    # --- the second time -------------------------------------------------------------------------

    def _second_try(self, sent: _Sent, asked: _Request) -> Callable[[], Any]:
        retry = self._create if asked.op == Op.CREATE else self._retry
        if asked.op == Op.GETATTR:
            retry = self._getattr
        again = Slow(lambda: retry(sent, asked))
        return lambda: _unless_lost(lambda: asked.ask(asked.nodeid), lambda: again)

    def _retry(self, sent: _Sent, asked: _Request) -> Any:
        for _ in range(_TRIES):
            entry = self._look_up(sent, asked)
            if entry is None:
                if asked.op != Op.OPEN or not _makes_version(asked) or _nameless(sent.fd):
                    break
                time.sleep(_RENAMED_S)
                continue
            try:
                if not _may(self._mount, entry, sent, asked.caller):
                    raise stale()
                if asked.op == Op.OPEN and not self._may_open_as(asked.nodeid, entry.node):
                    raise stale()
                result = _finished(asked.ask(entry.node.id))
                return (
                    self._answered(result, entry, asked)
                    if entry.node.id != asked.nodeid
                    else result
                )
            except OSError as error:
                if error.errno not in _LOST:
                    raise
            finally:
                looking.forget(self._mount, entry.node.id, 1)
        if asked.op == Op.OPEN and sent.fd >= 0:
            return self._open_nameless(sent, asked)
        raise FileNotFoundError(errno.ENOENT, "no such file")

    def _getattr(self, sent: _Sent, asked: _Request) -> bytes:
        """The kernel is about to ask for more: it must not stumble here."""
        return self._answers.attr(asked.nodeid, os.fstat(sent.fd))

    def _look_up(self, sent: _Sent, asked: _Request) -> Entry | None:
        """What stands at the path, or where a rename has carried what was found there."""
        assert sent.place is not None
        with contextlib.suppress(FileNotFoundError):
            return looking.lookup(self._mount, *sent.place, asked.caller)
        node = self._mount.nodes.get(asked.nodeid)
        found = node.of or node if isinstance(node, File) else None
        if found is None or found.parent is None or not stands(found):
            return None
        with contextlib.suppress(FileNotFoundError):
            return looking.lookup(self._mount, found.parent.id, found.name, asked.caller)
        return None

    def _may_open_as(self, nodeid: int, node: Node) -> bool:
        """Whether the kernel can open ``node`` by that other one, which may have another file
        behind it."""
        return nodeid == node.id or not (
            self._passthrough.active and aliases.is_open(self._mount.nodes, nodeid)
        )

    def _answered(self, result: Any, entry: Entry, asked: _Request) -> Any:
        """By another node than the one that the kernel means, which has lost its name."""
        other = entry.node
        if other.parent is not None:
            self._mount.caches.drop_name(other.parent.id, other.name, asked.nodeid)
        if asked.op != Op.OPEN:
            return result
        handle = self._mount.handle(wire.OPEN_OUT.unpack(result)[0])
        self._passthrough.detach(handle)
        handles.give(self._mount, handle, asked.nodeid)
        return self._answers.opened(handle)

    def _open_nameless(self, sent: _Sent, asked: _Request) -> bytes:
        """It was found ahead of the loss. What history may hold is nobody's to write to."""
        flags = _flags(asked)
        access = os.O_RDONLY
        if _makes_version(asked):
            if not _nameless(sent.fd):
                raise stale()
            access = os.O_RDWR | flags & os.O_TRUNC
        node = self._mount.nodes.get(asked.nodeid)
        assert isinstance(node, File)
        fd = os.open(f"/proc/self/fd/{sent.fd}", access)
        handle = self._mount.add_handle(node, fd, flags)
        handle.user = asked.caller.uid
        return self._answers.opened(handle)

    def _create(self, sent: _Sent, asked: _Request) -> Any:
        """Somebody else makes the name, or takes it away. What is there is opened."""
        flags = _flags(asked)
        name = os.fsdecode(bytes(asked.body[wire.CREATE_IN.size :]).split(b"\0")[0])
        body = memoryview(wire.OPEN_IN.pack(flags & ~os.O_CREAT, 0))
        opening = replace(asked, op=Op.OPEN, body=body, handler=self._handlers[Op.OPEN])
        for _ in range(_TRIES):
            try:
                return _finished(asked.ask(asked.nodeid))
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
            with contextlib.suppress(FileNotFoundError):
                entry = self._keep_found(sent, asked.nodeid, name, asked.caller)
                sent.judged = ()  # the kernel has seen no file
                try:
                    opened = self._retry(sent, replace(opening, nodeid=entry.node.id))
                    return self._answers.entry(entry) + opened
                except OSError:
                    looking.forget(self._mount, entry.node.id, 1)
                    raise
        raise stale()


def _stale_once_notified(begun: threading.Event) -> NoReturn:
    begun.wait(_BEGUN_S)
    time.sleep(_NOTIFIED_S)
    raise stale()


def _nameless(fd: int) -> bool:
    return os.fstat(fd).st_nlink == 0


def _flags(asked: _Request) -> int:
    layout = {Op.OPEN: wire.OPEN_IN, Op.CREATE: wire.CREATE_IN}.get(Op(asked.op))
    return int(layout.unpack_from(asked.body)[0]) if layout else 0


def _makes_version(asked: _Request) -> bool:
    if asked.op == Op.OPEN:
        flags = _flags(asked)
        return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
    if asked.op != Op.SETATTR:
        return False
    valid = wire.SETATTR_IN.unpack_from(asked.body)[0]
    return bool(valid & wire.FATTR_SIZE) and not valid & wire.FATTR_FH


def _unless_lost(work: Callable[[], Any], lost: Callable[[], Any]) -> Any:
    try:
        result = work()
    except OSError as error:
        if error.errno not in _LOST:
            raise
        return lost()
    if isinstance(result, Slow):
        return Slow(lambda: _unless_lost(result.run, lost))
    return result


def _finished(result: Any) -> Any:
    while isinstance(result, Slow):
        result = result.run()
    return result or b""


def _access(status: os.stat_result) -> tuple[int, ...]:
    return status.st_uid, status.st_gid, status.st_mode


def _may(mount: Mount, entry: Entry, sent: _Sent, caller: Caller) -> bool:
    """Whether the kernel would have let the caller in here, too."""
    status, owned = entry.status, stat.S_IRUSR | stat.S_IWUSR
    if caller.uid == 0 or (caller.uid == status.st_uid and status.st_mode & owned == owned):
        return True
    if _access(status) != sent.judged:
        return False
    try:
        xattrs.getxattr(mount, entry.node.id, acl.ACCESS)
    except OSError as error:
        return error.errno in (errno.ENODATA, errno.EOPNOTSUPP)
    return False
