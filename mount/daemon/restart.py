"""``ckptfs restart``: the daemon becomes another program, with other options, and serves on.

It is the same process, so the mount, every open file, every lock and the store's own lock stay
(``handover.py``): there is no moment in which the directory is not served, and none in which two
serve it. Requests that come meanwhile wait in the kernel.

The order of things: the new program reads what it would be handed, while the old one serves on, and
says so; the old one reads no more requests and finishes those that are under way; it becomes the
new one by execve(2), which serves on and answers the request that asked for all this. Up to execve
a failure leaves the old one as it was. From there on it is a crash: the mount is dead until it is
served again.

Nobody waits for the commit of somebody else: no request is left unread while long work is under
way, nor for longer than a short window until what is short is done.

Threading: the daemon's side has a thread of its own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import IO

import ckptfs
from ckptfs.disk import worker
from ckptfs.errors import CannotServe, CkptfsError
from ckptfs.records import format as fmt
from ckptfs.records.parts import parse

from ..kernel.session import Session
from ..operations import commands
from ..operations.context import Mount
from . import handover, inspect, program
from .options import Changes, MountOptions

log = logging.getLogger("ckptfs.restart")

_TRY_S = 60.0  # for a program to start and read
_FIRST_WINDOW_S, _LONGEST_WINDOW_S = 0.05, 0.3
_BETWEEN = 3  # times as long as a window requests are served between two
_LOOK_S = 0.2  # whether to wait on
_TIMEOUT_S = 30.0


class NotRestarted(CkptfsError):
    """The daemon serves on as it was."""

    errno = errno.EBUSY
    exit_code = CannotServe.exit_code


# --- the asking side -----------------------------------------------------------------------------


def restart(
    path: str,
    options: MountOptions,
    given: set[str],
    *,
    timeout_s: float = _TIMEOUT_S,
    say: Callable[[str], object] = log.info,
) -> list[str]:
    """Have the daemon of ``path`` go on as this program, with those fields of ``options`` that are
    ``given``. Waits that long for a moment in which no commit is under way, and tells ``say`` what
    it waits for. Returns what the user should know, once that serves. Raises NotMounted, and
    CannotServe or NotRestarted, with the daemon as it was."""
    from .apart import require_apart

    try:
        status = inspect.status_of(path)
    except (TimeoutError, OSError) as error:
        raise CannotServe(
            f"{path}: {error.args[-1]}; serve it with `ckptfs mount {path}`"
        ) from None
    if status is None:
        raise inspect.not_mounted(path)
    mountpoint = str(status["mountpoint"])
    require_apart(str(status["directory"]), mountpoint, options.log_file)
    order = _Order(program.command(), _changes(options, given), timeout_s)
    control, done = f"{mountpoint}/{fmt.CONTROL}", threading.Event()
    threading.Thread(target=_tell, args=(mountpoint, done, say), daemon=True).start()
    try:
        os.setxattr(control, commands.RESTART, json.dumps(asdict(order)).encode())
    except OSError as error:
        raise _refusal(mountpoint, error) from None
    finally:
        done.set()
    after = inspect.status_of(path) or {}
    return [str(trouble) for trouble in after.get("degraded", [])]


def _tell(mountpoint: str, done: threading.Event, say: Callable[[str], object]) -> None:
    """What the daemon waits for, once. Asked in a thread, for the order has no answer yet."""
    told = ""
    while not done.wait(_LOOK_S):
        waits_for = (inspect.status_unguarded(mountpoint) or {}).get("restart_waits_for", "")
        if waits_for != told and not done.is_set():
            told = waits_for
            if told:
                say(f"waiting: {mountpoint}: {told}")


def _changes(options: MountOptions, given: set[str]) -> Changes:
    store = {key: value for key, value in asdict(options.store).items() if key in given}
    if "mode" in store:
        store["mode"] = options.store.mode.value
    mount = {key: value for key, value in vars(options).items() if key in given}
    return {"store": store, "mount": mount}


def _refusal(mountpoint: str, error: OSError) -> CkptfsError:
    if error.errno == errno.EBUSY:
        with contextlib.suppress(TimeoutError):
            status = inspect.status_of(mountpoint) or {}
            return NotRestarted(f"{mountpoint}: not restarted: {status.get('refused', '?')}")
    told = {
        errno.EOPNOTSUPP: "this daemon cannot be restarted: it serves through libfuse, or to one "
        "command, or is an older version; umount, then mount",
        errno.EPERM: "only the user whose daemon it is, and root, may restart it, and only from "
        "where the daemon lives: its user, mount and pid namespace (not from a container)",
        errno.ENOTCONN: f"its daemon has ended; serve it with `ckptfs mount {mountpoint}`",
        errno.ECONNABORTED: f"its daemon has ended; serve it with `ckptfs mount {mountpoint}`",
    }
    return CannotServe(f"{mountpoint}: {told.get(error.errno or 0, error.strerror)}")


# --- the daemon's side ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Order:
    program: list[str]
    changes: Changes
    timeout_s: float  # for a moment in which it can be done

    @classmethod
    def parse(cls, value: bytes) -> _Order:
        """Raises CannotServe. What may be changed is known to the new program only."""
        try:
            told = json.loads(value)
            words, changes = told["program"], told["changes"]
            order = cls(words, changes, float(told.get("timeout_s", _TIMEOUT_S)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise CannotServe("that is no order to restart") from None
        if not words or not all(isinstance(word, str) for word in words) or words[0][:1] != "/":
            raise CannotServe("an order to restart names its program by an absolute path")
        return order


class Restarter:
    """Takes orders from the session."""

    def __init__(
        self,
        options: MountOptions,
        mount: Mount,
        session: Session,
        *,
        stopping: Callable[[], bool],
        at_rest: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        """``at_rest``: inside nothing of the daemon is changed but by requests; ``stopping``:
        whether it was asked to stop."""
        self._options, self._mount, self._session = options, mount, session
        self._stopping, self._at_rest = stopping, at_rest
        self._one_at_a_time = threading.Lock()
        self._request = 0
        self._given_up = threading.Event()  # by who asked
        self.refused = ""  # why the last order was not obeyed
        self.waits_for = ""

    def order(self, request: int, value: bytes) -> None:
        if not self._one_at_a_time.acquire(blocking=False):
            self._session.granting(request)(errno.EALREADY)
            return
        self._given_up.clear()
        self._request = request  # from here on it can be interrupted
        if not worker.started(functools.partial(self._obey, request, value), "restart"):
            self._one_at_a_time.release()
            self._session.granting(request)(errno.EAGAIN)

    def interrupt(self, request: int) -> None:
        """The one who asked is about to end."""
        if request == self._request:
            self._given_up.set()

    def _obey(self, request: int, value: bytes) -> None:
        """Does not return if all goes well."""
        try:
            self._restart(_Order.parse(value), request)
        except Exception as error:
            known = isinstance(error, CkptfsError | OSError)
            self.refused = str(error)
            log.error("not restarted: %s", error, exc_info=None if known else error)
            self._session.granting(request)(errno.EBUSY)
        finally:
            self._request, self.waits_for = 0, ""
            self._one_at_a_time.release()

    def _restart(self, order: _Order, request: int) -> None:
        log.info("asked to restart as %s", " ".join(order.program))
        command = [*order.program, "resume", self._options.directory]
        until_s = time.monotonic() + order.timeout_s
        with self._when_quiet(until_s):
            state, _ = self._written(order.changes, request)
        try:
            _try(command, state.fileno(), self._mount.store.root)
        finally:
            state.close()
        with self._when_quiet(until_s, self._at_rest):
            if self._session.at_work():
                raise NotRestarted("a program waits for the daemon, and it for the program")
            state, descriptors = self._written(order.changes, request)
            try:
                self._become([*command, str(state.fileno())], [*descriptors, state.fileno()])
            finally:
                state.close()

    @contextlib.contextmanager
    def _when_quiet(
        self,
        until_s: float,
        at_rest: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> Iterator[None]:
        """Inside no request is under way, and the daemon is ``at_rest``. Those that come wait; so
        they do in turns, for what is under way may itself wait for one. Raises NotRestarted."""
        window_s = _FIRST_WINDOW_S
        while True:
            self._require_wanted()
            while long := self._session.long_work(_LOOK_S):
                self._wait_on(long, until_s)
            with at_rest(), self._session.quiet(self._options.mountpoint, window_s) as quiet:
                if quiet:
                    self.waits_for = ""
                    yield
                    return
                busy = self._session.work()
            self._wait_on(busy, until_s)
            time.sleep(_BETWEEN * window_s)
            window_s = min(2 * window_s, _LONGEST_WINDOW_S)

    def _wait_on(self, work: list[str], until_s: float) -> None:
        """Raises NotRestarted where there is no use in it, or no time."""
        more = f" and {len(work) - 1} more" if len(work) > 1 else ""
        told = f"a commit or check of {work[0]}{more}" if work else "requests without a pause"
        if not self.waits_for:
            log.info("the restart waits for %s", told)
        self.waits_for = told
        self._require_wanted()
        if time.monotonic() > until_s:
            raise NotRestarted(f"{told}: under way all the time; try again, or with --timeout")

    def _require_wanted(self) -> None:
        if self._given_up.is_set():
            raise NotRestarted("who asked for it has given up")
        if self._stopping():
            raise NotRestarted("it was asked to stop")

    def _written(self, changes: Changes, request: int) -> tuple[IO[bytes], list[int]]:
        """A file without a name, at its begin; the descriptors that are carried over."""
        session, store = self._session, self._mount.store
        header = handover.Header(
            options=self._options,
            changes=changes,
            root=store.root,
            lock=store.layout.lock.fd,
            device=session.device,
            request=request,
            agreed=session.passthrough.agreed,
            version=ckptfs.__version__,
        )
        file = os.fdopen(os.memfd_create("ckptfs-state"), "w+b")
        handover.write(file, header, self._mount, session)
        file.seek(0)
        return file, header.descriptors

    def _become(self, command: list[str], inherited: list[int]) -> None:
        self._mount.store.order.sync_changed_dirs()
        try:
            for fd in inherited:
                os.set_inheritable(fd, True)
            os.execv(command[0], command)
        finally:
            for fd in inherited:
                os.set_inheritable(fd, False)


def _try(command: list[str], state: int, root: int) -> None:
    """Whether the new program starts, can read what it is handed and open the store, and says so.
    Raises NotRestarted."""
    try:
        done = subprocess.run(
            [*command, str(state), "--try"],
            pass_fds=[state, root],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TRY_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRestarted(f"{command[0]} cannot go on: {error}") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise NotRestarted(f"the new program cannot go on: {said[-1].removeprefix('ckptfs: ')}")
    if parse(done.stdout.encode()).get("format") != handover.FORMAT:
        raise NotRestarted(
            f"{command[0]}: does not say that it can go on, so it is not ckptfs, or another version"
        )
