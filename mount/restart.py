"""``ckptfs restart``: the daemon becomes another program, with other options, and serves on.

It is the same process, so the mount, every open file, every lock and the store's own lock stay
(``handover.py``): there is no moment in which the directory is not served, and none in which two
serve it. Requests that come meanwhile wait in the kernel.

The order of things: the new program reads what it would be handed, while the old one serves on; the
old one reads no more requests and finishes those that are under way; it becomes the new one by
execve(2), which serves on and answers the request that asked for all this. Up to execve a failure
leaves the old one as it was. From there on it is a crash: the mount is dead until it is served
again.

Threading: the daemon's side has a thread of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import IO, TYPE_CHECKING, Any

import ckptfs
from ckptfs import format as fmt
from ckptfs.errors import CannotServe, CkptfsError
from ckptfs.mount import commands, handover, inspect, logfile
from ckptfs.mount.kernel.session import Session
from ckptfs.protocol import Mode, Outside

if TYPE_CHECKING:
    from ckptfs.mount.daemon import Daemon, MountOptions

log = logging.getLogger("ckptfs.restart")

_TRY_S = 60.0  # for a program to start and read
_FIRST_WINDOW_S, _LONGEST_WINDOW_S = 0.05, 5.0
_BETWEEN_S = 0.02
Changes = dict[str, dict[str, Any]]  # fields of MountOptions and of its ``store``


class NotRestarted(CkptfsError):
    """The daemon serves on as it was."""

    errno = errno.EBUSY
    exit_code = CannotServe.exit_code


# --- the asking side -----------------------------------------------------------------------------


def restart(path: str, options: MountOptions, given: set[str]) -> list[str]:
    """Have the daemon of ``path`` go on as this program, with those fields of ``options`` that are
    ``given``. Returns what the user should know, once that serves. Raises NotMounted, and
    CannotServe or NotRestarted, with the daemon as it was."""
    from ckptfs.mount.daemon import check_apart

    try:
        status = inspect.status_of(path)
    except (TimeoutError, OSError) as error:
        raise CannotServe(
            f"{path}: {error.args[-1]}; serve it with `ckptfs mount {path}`"
        ) from None
    if status is None:
        raise inspect.not_mounted(path)
    mountpoint = str(status["mountpoint"])
    check_apart(replace(options, directory=str(status["directory"]), mountpoint=mountpoint))
    program = [sys.executable, "-m", "ckptfs"]
    order = json.dumps({"program": program, "changes": _changes(options, given)})
    try:
        os.setxattr(f"{mountpoint}/{fmt.CONTROL}", commands.RESTART, order.encode())
    except OSError as error:
        raise _refusal(mountpoint, error) from None
    after = inspect.status_of(path) or {}
    return [str(trouble) for trouble in after.get("degraded", [])]


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


class Restarter:
    """Takes orders from the session."""

    def __init__(self, daemon: Daemon, session: Session) -> None:
        self._daemon, self._session = daemon, session
        self._one_at_a_time = threading.Lock()
        self.refused = ""  # why the last order was not obeyed

    def order(self, request: int, value: bytes) -> None:
        threading.Thread(target=self._obey, args=(request, value), daemon=True).start()

    def _obey(self, request: int, value: bytes) -> None:
        """Does not return if all goes well."""
        if not self._one_at_a_time.acquire(blocking=False):
            self._session.granting(request)(errno.EALREADY)
            return
        try:
            order = json.loads(value)
            self._restart([str(word) for word in order["program"]], order["changes"], request)
        except Exception as error:
            known = isinstance(error, CkptfsError | OSError)
            self.refused = str(error)
            log.error("not restarted: %s", error, exc_info=None if known else error)
            self._session.granting(request)(errno.EBUSY)
        finally:
            self._one_at_a_time.release()

    def _restart(self, program: list[str], changes: Changes, request: int) -> None:
        log.info("asked to restart as %s", " ".join(program))
        options = self._daemon.options
        command = [*program, "resume", options.directory]
        with self._when_quiet():
            state, _ = self._written(changes, request)
        try:
            _try(command, state.fileno())
        finally:
            state.close()
        with self._when_quiet(), self._daemon.at_rest():
            if self._session.at_work():
                raise NotRestarted("a program waits for the daemon, and it for the program")
            state, descriptors = self._written(changes, request)
            try:
                self._become([*command, str(state.fileno())], [*descriptors, state.fileno()])
            finally:
                state.close()

    @contextlib.contextmanager
    def _when_quiet(self) -> Iterator[None]:
        """Inside no request is under way. Those that come wait; so they do in turns, for what is
        under way may itself wait for one. Raises NotRestarted."""
        options = self._daemon.options
        window, deadline = _FIRST_WINDOW_S, time.monotonic() + max(options.stop_timeout_s, 1.0)
        while True:
            with self._session.quiet(options.mountpoint, window) as quiet:
                if quiet:
                    yield
                    return
            if time.monotonic() > deadline:
                raise NotRestarted(
                    f"requests were under way for {options.stop_timeout_s:.0f} s without a pause, "
                    "commits of long files maybe; try again, or give the daemon a longer "
                    "--stop-timeout"
                )
            time.sleep(_BETWEEN_S)
            window = min(2 * window, _LONGEST_WINDOW_S)

    def _written(self, changes: Changes, request: int) -> tuple[IO[bytes], list[int]]:
        """A file without a name, at its begin; the descriptors that are carried over."""
        daemon, session = self._daemon, self._session
        header = handover.Header(
            options=daemon.options,
            changes=changes,
            root=daemon.store.root,
            lock=daemon.store.layout.lock_fd,
            device=session.device,
            request=request,
            agreed=session.passthrough.agreed,
            version=ckptfs.__version__,
        )
        file = os.fdopen(os.memfd_create("ckptfs-state"), "w+b")
        handover.write(file, header, daemon.operations, session)
        file.seek(0)
        return file, header.descriptors

    def _become(self, command: list[str], inherited: list[int]) -> None:
        self._daemon.store.committer.sync_changed_dirs()
        try:
            for fd in inherited:
                os.set_inheritable(fd, True)
            os.execv(command[0], command)
        finally:
            for fd in inherited:
                os.set_inheritable(fd, False)


def _try(command: list[str], state: int) -> None:
    """Whether the new program starts and can read what it is handed. Raises NotRestarted."""
    try:
        done = subprocess.run(
            [*command, str(state), "--try"],
            pass_fds=[state],
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


# --- the new program -----------------------------------------------------------------------------


def resume(state: int, *, only_try: bool) -> None:
    """Go on with the mount that this process serves, until it ends."""
    from ckptfs.mount.daemon import Daemon

    with os.fdopen(state, "rb") as file:
        carried = handover.Carried(file)
    options = _changed(carried.header.options, carried.header.changes)
    log_file = options.log_file or logfile.default(options.mountpoint)
    logfile.log_to(None if options.foreground else log_file)
    if only_try:
        carried.try_out()
        os._exit(0)  # nothing of it may be closed: the descriptors are not here
    for fd in carried.header.descriptors:
        os.set_inheritable(fd, False)
    try:
        Daemon(options, [], carried=carried).serve(lambda warnings: None)
    except Exception:
        log.exception("the restarted daemon failed")
        raise


def _changed(options: MountOptions, changes: Changes) -> MountOptions:
    store = dict(changes["store"])
    if "mode" in store:
        store["mode"] = Mode(store["mode"])
    if "outside" in store:
        store["outside"] = Outside(store["outside"])
    if "in_place" in store:
        store["in_place"] = tuple(store["in_place"])
    return replace(options, store=replace(options.store, **store), **changes["mount"])
