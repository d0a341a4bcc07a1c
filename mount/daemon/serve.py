"""The process that serves one mount, from its first thread to its end.

Threads: the main one serves; one waits for the end (``stop.py``), others work beside it
(``idle.py``, ``monitor.py``), and one more restarts it (``restart.py``).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ckptfs.store import Store

from ..kernel import mounting
from ..kernel.session import Session as KernelSession
from ..libfuse.session import PortableSession
from ..operations import sessions
from ..operations.context import Mount
from . import inspect, program, status, stop
from .context import Serving
from .idle import IdleWork
from .monitor import Monitor
from .options import MountOptions
from .restart import Restarter
from .signals import Signals

log = logging.getLogger("ckptfs.daemon")

_SWITCH_S = 0.0005
_TIDY_S = 0.3  # that a mount waits for it; in a large store it goes on behind


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Way:
    """How a daemon comes by its store and its mount, and what ends it."""

    opened: Callable[[], Store]
    attach: Callable[[Mount], KernelSession]  # mounts, through the kernel
    serves: Callable[[], None] = _nothing  # told before anybody else
    wait_for_end: Callable[[Serving], None] = stop.wait_for_end  # in a thread of its own
    can_restart: bool = True
    resumed: bool = False


def serve(
    options: MountOptions,
    way: Way,
    found_below: list[str],
    ready: Callable[[list[str]], None],
) -> None:
    """Until the mount is gone. ``ready`` is told what the user should know once it serves:
    ``found_below`` the mount, and what it lacks."""
    started_s = time.time()
    signals = Signals(has_terminal=options.foreground and sys.stderr.isatty())
    program.leave_working_directory(options.mountpoint)
    signals.block()
    _raise_descriptor_limit()
    _share_interpreter()
    mounting.drop_reserve_rights()
    monitor = Monitor(options, resumed=way.resumed)
    store = way.opened()
    idle = IdleWork(store, options)
    idle.tidy(_TIDY_S)
    try:
        mount = Mount(store, lambda: status.told(serving))
        monitor.watch(store, functools.partial(_staged, mount))
        session = _session(options, way, mount)
        serving = Serving(options, store, mount, session, monitor, idle, signals, started_s)
        if way.can_restart:
            _let_restart(serving)
        session.ready.add(lambda: _serves(serving, way, found_below, ready))
        threading.Thread(target=way.wait_for_end, args=(serving,), daemon=True).start()
        monitor.start(lambda: status.told(serving))
        _begin_idle_work(serving)
        session.run()
        stop.finish(serving, unmounted=True)
    finally:
        idle.tidier.stop()
        store.close()


def _session(options: MountOptions, way: Way, mount: Mount) -> sessions.Session:
    if options.binding == sessions.KERNEL:
        return way.attach(mount)
    return PortableSession(
        options.binding, mount, options.mountpoint, allow_other=options.allow_other
    )


def _let_restart(serving: Serving) -> None:
    session = serving.session
    if not isinstance(session, KernelSession):
        return
    serving.restarter = restarter = Restarter(
        serving.options,
        serving.mount,
        session,
        stopping=lambda: serving.signals.stopping,
        at_rest=lambda: _at_rest(serving),
    )
    session.kernel.restart = restarter.order
    session.kernel.interrupted.add(restarter.interrupt)


def _begin_idle_work(serving: Serving) -> None:
    serving.idle.begin(functools.partial(status.being_written, serving.mount))
    serving.monitor.begin()


@contextlib.contextmanager
def _at_rest(serving: Serving) -> Iterator[None]:
    """Inside no thread changes anything unless a request asks for it; a signal to stop stays
    pending. Raises MountBusy once there was one."""
    with serving.signals.pending():
        serving.idle.scrub.stop()
        serving.idle.tidier.stop()
        serving.idle.sharer.stop()
        serving.monitor.stop()
        serving.store.alarms.save()
        serving.mount.versions.pause()
        serving.mount.sets.pause()
        try:
            yield
        finally:
            serving.mount.versions.go_on()
            serving.mount.sets.go_on()
            serving.idle.tidy(0)
            _begin_idle_work(serving)


def _serves(
    serving: Serving,
    way: Way,
    found_below: list[str],
    ready: Callable[[list[str]], None],
) -> None:
    options, (passthrough, refusal) = serving.options, serving.session.passthrough_state()
    serving.store.room.doubts.sees_writes = not passthrough
    how = "the kernel carries the data" if passthrough else f"data is relayed ({refusal})"
    log.info("serving %s at %s: %s", options.directory, options.mountpoint, how)
    if inspect.is_mounted(options.mountpoint):  # else it is another namespace's
        serving.store.saves.released = lambda: not inspect.is_mounted(options.mountpoint)
    way.serves()
    ready(_warnings(serving, found_below))


def _warnings(serving: Serving, found_below: list[str]) -> list[str]:
    warnings = found_below + status.degraded(serving)
    for warning in warnings:
        log.warning("%s", warning)
    return [*warnings, *serving.monitor.conditions()]


def _staged(mount: Mount) -> list[int]:
    return [version.staged.fd for version in mount.versions.all()]


def _share_interpreter() -> None:
    """A thread that computes lets go of the interpreter ten times as often as by default: a commit
    needs it dozens of times, and somebody's headers may be parsed in several threads."""
    sys.setswitchinterval(_SWITCH_S)


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
