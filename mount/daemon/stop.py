"""How a daemon ends.

SIGTERM and SIGINT ask for a clean end: the mount is served on, new opens included, until nobody
holds it (a scheduler signals the trainer and us together, and the trainer may be about to write its
last checkpoint) or ``stop_timeout_s`` is over. Then it is left dead.

Threading: :func:`wait_for_end` has a thread of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import time

from ckptfs.telling.events import TAKEN_AWAY

from ..kernel import mounting
from ..kernel.session import Session as KernelSession
from ..processes import mounts
from ..sets import deciding
from ..writers import closing, committing
from . import holding
from .context import Serving

log = logging.getLogger("ckptfs.daemon")

_POLL_S = 0.1
_QUIET_S = 5.0  # for the requests that are under way


def wait_for_end(serving: Serving) -> None:
    """In a thread of its own: end the mount when it is time. A handler would run in the main
    thread, which may be about to wait for a request."""
    serving.signals.wait_to_stop()
    deadline = time.monotonic() + serving.options.stop_timeout_s
    log.info("asked to stop; serving until nobody uses the mount")
    while True:
        if not serving.session.openers.running() and _unmounted(serving):
            return
        if serving.ended.wait(_POLL_S):
            return
        if time.monotonic() >= deadline:
            break
    if serving.options.release:
        _take_away(serving)
    else:
        _leave_dead(serving)


def _take_away(serving: Serving) -> None:
    after = serving.options.stop_timeout_s
    log.warning("still in use after %.0f s: taking the mount away (--release)", after)
    try:
        mounting.unmount(_own_mount(serving), lazy=True)
    except OSError as error:
        log.error("cannot unmount: %s", error)
    if not serving.ended.wait(1.0):  # somebody holds files open: end without them
        finish(serving)
        os._exit(0)


def _leave_dead(serving: Serving) -> None:
    """What would be saved to the plain directory from here on had no protection, and nobody
    would know. A mount that nobody serves answers ENOTCONN."""
    options, users = serving.options, holding.named(serving.session.openers.running())
    with serving.session.quiet(options.mountpoint, _QUIET_S):
        log.warning(
            "still in use after %.0f s%s: leaving the mount dead, so that no save goes to the "
            "plain directory unnoticed: all access fails (ENOTCONN) until `ckptfs mount` "
            "serves it again, or `ckptfs umount` takes it away",
            options.stop_timeout_s,
            f" by {', '.join(users)}" if users else "",
        )
        finish(serving)
        serving.store.close()
        os._exit(0)


def _unmounted(serving: Serving) -> bool:
    try:
        mounting.unmount(_own_mount(serving))
    except OSError:  # busy, or somebody else is faster; in the end it is taken away by force
        return False
    return True


def _own_mount(serving: Serving) -> mounts.MountEntry:
    """Raises OSError where the mountpoint shows another one, or none."""
    device = serving.session.device if isinstance(serving.session, KernelSession) else None
    found = mounts.served(serving.options.mountpoint, device)
    if found is None:
        raise mounting.NotOnTop(errno.EINVAL, "not mounted there")
    return found


def finish(serving: Serving, *, unmounted: bool = False) -> None:
    """What is being written is saved, and no thread is left that changes anything. A set that is
    not complete is published where nobody uses the mount any more; else it stays in stage."""
    serving.ended.set()
    serving.idle.scrub.stop()
    serving.idle.tidier.stop()
    committing.abort_all(serving.mount.versions, TAKEN_AWAY)
    closing.stop(serving.mount.versions)
    deciding.end_all(serving.mount.sets, undecided=unmounted)
    serving.idle.sharer.stop()
    serving.monitor.stop()
    log.info("ended; %s", dict(serving.store.counts))
