"""``ckptfs run``: serve a directory to one command, without root and without fusermount3.

The caller's process stays outside and serves; its child enters namespaces of its own, mounts there,
hands the descriptor over and becomes the command. The mount ends with the command: what it closed
is committed before its exit status is handed on. Other processes see the plain directory.

Threads: the main one serves; one waits for signals, passes them on, and ends the session. The child
is forked before there is a second thread, which unshare(2) demands.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe, CkptfsError
from ckptfs.store import Store

from ..kernel import judge, mounting, namespaces, own_rights
from ..kernel.session import Session
from ..operations.context import Mount
from . import apart, logfile
from .context import Serving
from .options import MountOptions
from .serve import Way, serve
from .start import check

log = logging.getLogger("ckptfs.run")

# What schedulers and people send. A terminal sends its own to the command, too: not passed on.
_PASSED_ON = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
_PASSED_ON |= {signal.SIGUSR1, signal.SIGUSR2}
_WAITED_FOR = _PASSED_ON | {signal.SIGCHLD}
_SI_KERNEL = 0x80
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
_POLL_S = 0.02
_UNSHARED, _MAPPED = b"unshared", b"mapped"


def run(
    options: MountOptions,
    command: Sequence[str],
    filesystem: Callable[[], FileSystem] = OsFs,
) -> int:
    """Run ``command`` with the directory served; its exit status, 128 + n if signal n ended it.

    Raises CannotServe, AlreadyServed and kin, with nothing run.
    """
    check(options)
    below = apart.Below.of(options.directory)
    found_below = apart.require_alone(options.directory, options.mountpoint, below)
    logfile.log_to(options.log_file or logfile.default(options.mountpoint))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    child = _Child(options.mountpoint, command, mask)
    served = _Served(options, child, filesystem)
    way = Way(served.opened, served.attach, wait_for_end=served.wait_for_end, can_restart=False)
    try:
        serve(options, way, found_below, child.go)
    except BaseException:
        if not child.went:
            child.dismiss()
            raise
        log.exception("the daemon failed")
    served.command_ended.wait()
    return served.exit_status


class _Child:
    """The process that will be the command, waiting to be told to mount, and to go."""

    def __init__(self, mountpoint: str, command: Sequence[str], mask: set[int]) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cwd = os.getcwd()
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _become(theirs, mountpoint, cwd, command, mask)
        theirs.close()
        self.went = False
        self.groups: frozenset[int] | None = None  # what exists in its user namespace, if any

    def mount(self) -> tuple[int, int]:
        """The descriptor to serve, and one of the root of the mount. Raises CannotServe."""
        self._ours.send(b"mount")
        text, descriptors, _, _ = socket.recv_fds(self._ours, 4096, 2)
        if text == _UNSHARED:
            mapped = namespaces.map_groups(self.pid)
            self.groups = mapped or frozenset({os.getegid()})
            self._ours.send(_MAPPED if mapped else b"alone")
            text, descriptors, _, _ = socket.recv_fds(self._ours, 4096, 2)
        if len(descriptors) != 2:
            raise CannotServe(os.fsdecode(text) or "the command's process ended before it mounted")
        for fd in descriptors:
            os.set_inheritable(fd, False)
        return descriptors[0], descriptors[1]

    def go(self, warnings: list[str]) -> None:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        sys.stderr.flush()
        self.went = True
        self._ours.send(b"go")

    def dismiss(self) -> None:
        self._ours.close()
        os.waitpid(self.pid, 0)


def _become(
    pipe: socket.socket, mountpoint: str, cwd: str, command: Sequence[str], mask: set[int]
) -> NoReturn:
    """In the child: mount when told to, then be the command, as if the caller had started it."""
    code = CannotServe.exit_code
    try:
        if pipe.recv(16) == b"mount":
            if namespaces.enter_own(lambda: _ask_for_groups(pipe)):
                device = mounting.mount_directly(mountpoint)
            else:  # the daemon is the judge: kernel/own_rights.py
                device = mounting.mount_directly(mountpoint, "")
            root = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            socket.send_fds(pipe, [b"mounted"], [device, root])
            os.close(device)
            os.close(root)
            if pipe.recv(16) == b"go":
                os.stat(mountpoint)  # until then root owns it, and is no user in here
                os.chdir(cwd)  # where it was in the directory, it was below the mount
                for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
                    signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                code = _NOT_EXECUTABLE
                os.execvp(command[0], list(command))
    except CkptfsError as error:
        with contextlib.suppress(OSError):
            pipe.send(os.fsencode(str(error)))
    except OSError as error:
        missing = code == _NOT_EXECUTABLE and error.errno in (errno.ENOENT, errno.ENOTDIR)
        code = _NOT_FOUND if missing else code
        what = "command not found" if missing else error.strerror
        os.write(2, os.fsencode(f"ckptfs: {command[0]}: {what}\n"))
    finally:
        os._exit(code)


def _ask_for_groups(pipe: socket.socket) -> bool:
    pipe.send(_UNSHARED)
    return pipe.recv(16) == _MAPPED


class _Served:
    """The command, served until it has ended and everything it closed is committed."""

    def __init__(
        self, options: MountOptions, child: _Child, filesystem: Callable[[], FileSystem]
    ) -> None:
        self._options, self._child, self._filesystem = options, child, filesystem
        self.command_ended = threading.Event()
        self.exit_status = CannotServe.exit_code

    def opened(self) -> Store:
        options = self._options
        fs = self._filesystem()
        return Store.open(options.directory, options.store, options.mountpoint, fs=fs)

    def attach(self, mount: Mount) -> Session:
        # The mount lives as long as its root is held, so no RELEASE is lost with its namespace.
        device, self._root = self._child.mount()
        passthrough, groups = self._options.passthrough, self._child.groups
        who = judge.KERNEL if groups is None else own_rights.daemon(groups)
        return Session(device, mount, passthrough=passthrough, judge=who)

    def wait_for_end(self, serving: Serving) -> None:
        self.exit_status = self._wait_for_command()
        self.command_ended.set()
        log.info("the command ended with %d", self.exit_status)
        deadline = time.monotonic() + self._options.stop_timeout_s
        while serving.session.openers.running() or serving.mount.handles:
            if time.monotonic() > deadline:
                log.warning("still in use after %.0f s", self._options.stop_timeout_s)
                break
            if serving.ended.wait(_POLL_S):
                return
        assert isinstance(serving.session, Session)
        serving.session.end()
        while not serving.ended.is_set():
            os.fstatvfs(self._root)  # a request for each thread that waits for one

    def _wait_for_command(self) -> int:
        while True:
            arrived = signal.sigwaitinfo(_WAITED_FOR)
            if arrived.si_signo == signal.SIGCHLD:
                pid, status = os.waitpid(self._child.pid, os.WNOHANG)
                if pid:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
            elif arrived.si_code != _SI_KERNEL:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child.pid, arrived.si_signo)
