"""The process that serves one mount: start, status, signals, end.

``mount`` returns when the mount serves. SIGTERM and SIGINT ask for a clean end: the mount is served
on, new opens included, until nobody holds it (a scheduler signals the trainer and us together, and
the trainer may be about to write its last checkpoint) or ``stop_timeout_s`` is over. Then it is
left dead.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import ckptfs
from ckptfs.checking.orphans import Tidier
from ckptfs.errors import AlreadyServed, CannotServe, CkptfsError, MountBusy
from ckptfs.history.sharing import Sharer
from ckptfs.store import Store
from ckptfs.telling.events import TAKEN_AWAY
from ckptfs.upkeep.scrub import Scrub

from ..kernel import mounting
from ..kernel.beneath import covered
from ..kernel.session import Session as KernelSession
from ..libfuse.session import PortableSession
from ..operations import sessions
from ..operations.context import Mount
from ..processes import writers
from ..writers import closing, committing
from . import apart, holding, inspect, logfile, program
from .handover import Carried
from .monitor import Monitor
from .options import MountOptions
from .restart import Restarter

log = logging.getLogger("ckptfs.daemon")

_POLL_S = 0.1
_SWITCH_S = 0.0005
_WRITING_SHOWN = 1000  # anybody may ask for the status again and again
_QUIET_S = 5.0  # for the requests that are under way
_TIDY_S = 0.3  # that a mount waits for it; in a large store it goes on behind
_STOPPED_BY = {signal.SIGTERM, signal.SIGINT}
_LEAVE_IT = signal.SIGUSR1  # to ourselves: no more of these is taken
_AWAITED = {*_STOPPED_BY, _LEAVE_IT, signal.SIGHUP}
_STAYS_BELOW = "keeps working below the mount, unprotected; restart it"


def mount(options: MountOptions) -> None:
    """Serve ``options.directory``. Returns once it is served, or in the foreground once it is no
    longer. Raises CannotServe, AlreadyServed and kin, with nothing mounted."""
    program.require_outside(options.mountpoint)
    replaces = check(options)
    found = [] if replaces else _found_below(options)
    if options.foreground:
        logfile.log_to(None)
        Daemon(options, found, replaces).serve(lambda warnings: None)
        return
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _detached(Daemon(options, found, replaces), write_end)
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as pipe:
            answer = os.fsdecode(pipe.read())
    except KeyboardInterrupt:  # it has a session of its own, so only we can tell it
        os.kill(child, signal.SIGTERM)
        raise
    verdict, _, warnings = answer.partition("\n")
    if verdict != "serving":
        code, _, message = answer.partition(" ")
        error = CannotServe(message or "the daemon ended before it served; see its log")
        error.exit_code = int(code) if code.isdigit() else CannotServe.exit_code
        raise error
    for warning in warnings.splitlines():
        print(f"warning: {warning}", file=sys.stderr)


def _found_below(options: MountOptions) -> list[str]:
    """Warnings of what the mount is about to cover. Raises CannotServe where it may not."""
    below = apart.Below.of(options.directory)
    nested = apart.require_alone(options.directory, options.mountpoint, below)
    return [*nested, *below.unrecorded(options.directory), *_users_below(options)]


def _users_below(options: MountOptions) -> list[str]:
    """Warnings of who works in the directory that the mount is about to cover."""
    if options.directory != options.mountpoint:
        return []
    try:
        return [f"{holder} {_STAYS_BELOW}" for holder in holding.holders(options.directory)]
    except OSError as error:
        why = error.strerror or error
        return [f"who works in the directory already is not known ({why}): it {_STAYS_BELOW}"]


def check(options: MountOptions) -> bool:
    """Whether there is what to serve, and nobody serves it. True if a dead mount of our own is to
    be replaced; where it cannot be, it is cleared."""
    replaces = False
    for path, what in ((options.directory, "directory"), (options.mountpoint, "mountpoint")):
        if inspect.is_dead(path):
            replaces = path == options.mountpoint and _replaces_dead(options)
            if replaces:
                continue
            _clear_dead(path)
        elif inspect.is_mounted(path):
            raise _served_already(path)
        if not os.path.isdir(path):
            raise CannotServe(f"{path}: no such directory; make the {what} first")
    apart.require_apart(options.directory, options.mountpoint, options.log_file)
    return replaces


def _clear_dead(mountpoint: str) -> None:
    dead = mounting.served(mountpoint, None)
    if dead is not None:
        mounting.unmount(dead, lazy=True)


def _served_already(path: str) -> CkptfsError:
    try:
        status = inspect.status_of(path) or {}
    except TimeoutError as error:
        return inspect.silent(path, error)
    return AlreadyServed(
        f"{path}: served already, by process {status.get('pid', '?')}; see `ckptfs status`"
    )


def _replaces_dead(options: MountOptions) -> bool:
    return os.geteuid() == 0 and options.binding == sessions.KERNEL


def _detached(daemon: Daemon, pipe: int) -> NoReturn:
    """The child: leave the terminal and the caller's session, then serve."""
    options = daemon.options

    def answer(text: str) -> None:
        nonlocal pipe
        if pipe >= 0:
            with contextlib.suppress(BrokenPipeError):  # the command was killed meanwhile
                os.write(pipe, os.fsencode(text))
            os.close(pipe)
            pipe = -1

    code = 0
    try:
        os.setsid()
        logfile.log_to(options.log_file or logfile.default(options.mountpoint))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        daemon.serve(lambda warnings: answer("\n".join(["serving", *warnings])))
    except CkptfsError as error:
        code = error.exit_code
        answer(f"{code} {error}")
    except BaseException as error:
        code = 1
        log.exception("the daemon failed")
        answer(f"8 the daemon failed: {error}")
    os._exit(code)


class Daemon:
    can_restart = True

    def __init__(
        self,
        options: MountOptions,
        found_below: list[str],
        replaces: bool = False,
        carried: Carried | None = None,
    ) -> None:
        """``replaces`` a dead mount; or goes on with what was ``carried`` over by a restart."""
        self.options, self._found_below, self._replaces = options, found_below, replaces
        self._has_terminal = options.foreground and sys.stderr.isatty()
        self._carried = carried
        self._dead: mounting.MountEntry | None = None
        self._restarter: Restarter | None = None
        self._started_s = time.time()
        self.ended = threading.Event()
        self._stopping, self._resting = threading.Event(), threading.Lock()

    def serve(self, ready: Callable[[list[str]], None]) -> None:
        """Until the mount is gone. ``ready`` is told what the user should know once it serves."""
        program.leave_working_directory(self.options.mountpoint)
        # Every thread inherits it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
        _raise_descriptor_limit()
        _share_interpreter()
        mounting.drop_reserve_rights()
        self.monitor = Monitor(self.options, resumed=self._carried is not None)
        self.store = self._opened_store()
        status = os.fstat(self.store.root)
        self._root_id = [status.st_dev, status.st_ino]
        self._tidy(_TIDY_S)
        try:
            self.operations = Mount(self.store, self.status)
            self.monitor.watch(self.store, self._staged)
            self.session = self._session()
            self.session.ready = lambda: self._serves(ready)
            stopper = threading.Thread(target=self.wait_for_end, daemon=True)
            stopper.start()
            self.monitor.start(self.status)
            self._begin_idle_work()
            self.session.run()
            self._finish()
        finally:
            self.tidier.stop()
            self.store.close()

    def _opened_store(self) -> Store:
        options = self.options
        if self._carried is not None:
            was = self._carried.header
            same_mode = was.options.store.mode == options.store.mode
            return Store.resume(
                options.directory, options.store, was.root, was.lock, same_mode=same_mode
            )
        hidden = self._replaces and options.directory == options.mountpoint
        root = covered(options.directory) if hidden else None
        return Store.open(options.directory, options.store, options.mountpoint, root)

    def _tidy(self, wait_s: float) -> None:
        self.tidier = Tidier(self.store.history.tidy)
        self.tidier.start(wait_s)

    def _begin_idle_work(self) -> None:
        """What is done beside serving, by threads of its own."""
        self.sharer = Sharer(self.store.history.share)
        if self.options.store.share:
            self.store.kept.add(self.sharer.add)
        self.scrub = Scrub(self.store, self.options.scrub_interval_s, self._being_written)
        self.scrub.start()
        self.monitor.begin()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Inside no thread changes anything unless a request asks for it; a signal to stop stays
        pending. Raises MountBusy once there was one."""
        with self._resting:
            os.kill(os.getpid(), _LEAVE_IT)
            while _LEAVE_IT in signal.sigpending() and not self._stopping.is_set():
                time.sleep(_POLL_S / 50)
            if self._stopping.is_set():
                raise MountBusy("it was asked to stop")
            self.scrub.stop()
            self.tidier.stop()
            self.sharer.stop()
            self.monitor.stop()
            self.store.alarms.save()
            self.operations.versions.pause()
            try:
                yield
            finally:
                self.operations.versions.go_on()
                self._tidy(0)
                self._begin_idle_work()

    def attach(self) -> KernelSession:
        """Mount, and serve that."""
        options, device = self.options, None
        if self._carried is not None:
            return self._resumed(self._carried)
        if self._replaces:
            self._dead = mounting.served(options.mountpoint, None)
            device = mounting.mount_in_place_of(options.mountpoint)
            if device is None:
                self._clear_replaced()
        if device is None:
            device = mounting.mount(options.mountpoint, allow_other=options.allow_other)
        return KernelSession(device, self.operations, passthrough=options.passthrough)

    def _resumed(self, carried: Carried) -> KernelSession:
        was = carried.header
        session = KernelSession(was.device, self.operations, passthrough=self.options.passthrough)
        carried.restore(self.operations, session)
        return session

    def _session(self) -> sessions.Session:
        options = self.options
        if options.binding != sessions.KERNEL:
            return PortableSession(
                options.binding,
                self.operations,
                options.mountpoint,
                allow_other=options.allow_other,
            )
        session = self.attach()
        if self.can_restart:
            self._restarter = Restarter(self, session)
            session.kernel.restart = self._restarter.order
            session.kernel.interrupted = self._restarter.interrupt
        return session

    def _serves(self, ready: Callable[[list[str]], None]) -> None:
        options, (passthrough, refusal) = self.options, self.session.passthrough_state()
        self.store.room.doubts.sees_writes = not passthrough
        how = "the kernel carries the data" if passthrough else f"data is relayed ({refusal})"
        log.info("serving %s at %s: %s", options.directory, options.mountpoint, how)
        if inspect.is_mounted(options.mountpoint):  # else it is another namespace's
            self.store.saves.released = lambda: not inspect.is_mounted(options.mountpoint)
        if self._replaces:
            self._clear_replaced()  # which hides this
        ready(self._warnings())
        if self._carried is not None:
            assert isinstance(self.session, KernelSession)
            was, self._carried = self._carried.header, None
            log.info("restarted; version %s before, %s now", was.version, ckptfs.__version__)
            self.session.granting(was.request)(0)

    def _clear_replaced(self) -> None:
        self._replaces = False
        if self._dead is not None:
            with contextlib.suppress(mounting.NotOnTop):
                mounting.unmount(self._dead, lazy=True)

    def _own_mount(self) -> mounting.MountEntry:
        """Raises OSError where the mountpoint shows another one, or none."""
        device = self.session.device if isinstance(self.session, KernelSession) else None
        found = mounting.served(self.options.mountpoint, device)
        if found is None:
            raise mounting.NotOnTop(errno.EINVAL, "not mounted there")
        return found

    def _warnings(self) -> list[str]:
        warnings = self._found_below + self._degraded()
        for warning in warnings:
            log.warning("%s", warning)
        return [*warnings, *self.monitor.conditions()]

    def _finish(self) -> None:
        self.ended.set()
        self.scrub.stop()
        self.tidier.stop()
        committing.abort_all(self.operations.versions, TAKEN_AWAY)
        closing.stop(self.operations.versions)
        self.sharer.stop()
        self.monitor.stop()
        log.info("ended; %s", dict(self.store.counts))

    # --- ending ----------------------------------------------------------------------------------

    def wait_for_end(self) -> None:
        """In a thread of its own: end the mount when it is time. A handler would run in the main
        thread, which may be about to wait for a request."""
        self._await_signal()
        deadline = time.monotonic() + self.options.stop_timeout_s
        log.info("asked to stop; serving until nobody uses the mount")
        while True:
            if not self.session.openers.running() and self._unmounted():
                return
            if self.ended.wait(_POLL_S):
                return
            if time.monotonic() >= deadline:
                break
        if self.options.release:
            self._take_away()
        else:
            self._leave_dead()

    def _await_signal(self) -> None:
        """One that comes at a restart is left to the program that follows. SIGHUP is for the log,
        as from logrotate(8), unless it is the end of the terminal that we log to."""
        while (number := signal.sigwait(_AWAITED)) not in _STOPPED_BY:
            if number == _LEAVE_IT:
                with self._resting:
                    pass
            elif self._has_terminal:
                break
            else:
                logfile.reopen()
        self._stopping.set()

    def _take_away(self) -> None:
        after = self.options.stop_timeout_s
        log.warning("still in use after %.0f s: taking the mount away (--release)", after)
        try:
            mounting.unmount(self._own_mount(), lazy=True)
        except OSError as error:
            log.error("cannot unmount: %s", error)
        if not self.ended.wait(1.0):  # somebody holds files open: end without them
            self._finish()
            os._exit(0)

    def _leave_dead(self) -> None:
        """What would be saved to the plain directory from here on had no protection, and nobody
        would know. A mount that nobody serves answers ENOTCONN."""
        options, users = self.options, holding.named(self.session.openers.running())
        with self.session.quiet(options.mountpoint, _QUIET_S):
            log.warning(
                "still in use after %.0f s%s: leaving the mount dead, so that no save goes to the "
                "plain directory unnoticed: all access fails (ENOTCONN) until `ckptfs mount` "
                "serves it again, or `ckptfs umount` takes it away",
                options.stop_timeout_s,
                f" by {', '.join(users)}" if users else "",
            )
            self._finish()
            self.store.close()
            os._exit(0)

    def _unmounted(self) -> bool:
        try:
            mounting.unmount(self._own_mount())
        except OSError:  # busy, or somebody else is faster; in the end it is taken away by force
            return False
        return True

    # --- status ----------------------------------------------------------------------------------

    def _degraded(self) -> list[str]:
        store, found = self.store, list(self.monitor.degraded)
        if store.order.poisoned:
            found.append(f"read-only: {store.order.poisoned}")
        if not writers.proc_is_ours() or self.session.openers.strangers:
            found.append(
                "writers unknown, for they live in another pid namespace: killed ones cannot "
                "be told from finished ones, and all see the committed files; run with "
                "--pid=host"
            )
        if self.options.allow_other and os.geteuid() != 0:
            found.append(
                "other users' writers unknown, for only root may see how they ended: killed ones "
                "cannot be told from finished ones"
            )
        if self.operations.room.is_short():
            total = self.operations.room.total
            found.append(
                f"descriptors are used up ({total}): opens fail (ENFILE) until some files are "
                "closed; commits go on; raise the hard limit (LimitNOFILE=)"
            )
        if store.layout.uses_sidecars:
            found.append("records lie in sidecars: the filesystem has no room for xattrs")
        return found

    def _being_written(self) -> set[str]:
        versions = self.operations.versions
        return {version.staged.path for version in (*versions.all(), *versions.live())}

    def _staged(self) -> list[int]:
        return [version.staged.fd for version in self.operations.versions.all()]

    def status(self) -> dict[str, Any]:
        """What ``.ckptfs/status.json`` shows."""
        store, session, options = self.store, self.session, self.options
        passthrough, refusal = session.passthrough_state()
        conditions = self.monitor.conditions()
        return {
            "version": ckptfs.__version__,
            "pid": writers.own_pid(),
            "root_fd": store.root,
            "root_id": self._root_id,
            "directory": options.directory,
            "mountpoint": options.mountpoint,
            "started": self._started_s,
            "mode": options.store.mode.value,
            "checksum": options.store.checksum,
            "keep": options.store.keep,
            "verify": "open" if options.store.verify_opens else "off",
            "validate": "overwrite" if options.store.validate else "off",
            "outside": options.store.outside.value,
            "binding": options.binding,
            "passthrough": passthrough,
            "passthrough_refusal": refusal,
            "degraded": [*self._degraded(), *conditions],
            "in_place": list(store.patterns),
            "writing": heapq.nsmallest(_WRITING_SHOWN, self._being_written()),
            "scrub": self.scrub.status(),
            "counts": dict(store.counts),
            "events": store.events[-20:],
            "alarms": store.alarms.told(),
            "requests": dict(session.requests),
            "memory_peak_bytes": _peak_memory(),
            "refused": self._restarter.refused if self._restarter else "",
            "restart_waits_for": self._restarter.waits_for if self._restarter else "",
            "in_flight": len(self.operations.versions.all()),
            **self.monitor.status(store, conditions),
            "metrics": options.metrics,
            "log": options.log_file or logfile.default(options.mountpoint),
        }


def _share_interpreter() -> None:
    """A thread that computes lets go of the interpreter ten times as often as by default: a commit
    needs it dozens of times, and somebody's headers may be parsed in several threads."""
    sys.setswitchinterval(_SWITCH_S)


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _peak_memory() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0
