"""Threads that are of use and not needed: a machine may have none left (RLIMIT_NPROC, pids.max)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("ckptfs.threads")


def started(target: Callable[[], object], name: str) -> threading.Thread | None:
    """A thread that runs ``target``; None where there is none to be had."""
    thread = threading.Thread(target=target, name=f"ckptfs-{name}", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        log.warning("%s: %s goes without a thread of its own", error, name)
        return None
    return thread
