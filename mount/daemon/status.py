"""What a daemon tells of itself: its status.json, its metrics and `ckptfs status` are made of it.

Threading: asked by any thread, as often as anybody likes.
"""

from __future__ import annotations

import heapq
import os
from typing import Any

import ckptfs

from ..operations.context import Mount
from ..processes import writers
from . import logfile
from .context import Serving

_WRITING_SHOWN = 1000  # anybody may ask for the status again and again


def told(serving: Serving) -> dict[str, Any]:
    """What ``.ckptfs/status.json`` shows."""
    store, session, options = serving.store, serving.session, serving.options
    passthrough, refusal = session.passthrough_state()
    conditions, restarter = serving.monitor.conditions(), serving.restarter
    return {
        "version": ckptfs.__version__,
        "pid": writers.own_pid(),
        "root_fd": store.root,
        "root_id": serving.root_id,
        "directory": options.directory,
        "mountpoint": options.mountpoint,
        "started": serving.started_s,
        "mode": options.store.mode.value,
        "checksum": options.store.checksum,
        "keep": options.store.keep,
        "verify": "open" if options.store.verify_opens else "off",
        "validate": "overwrite" if options.store.validate else "off",
        "outside": options.store.outside.value,
        "binding": options.binding,
        "passthrough": passthrough,
        "passthrough_refusal": refusal,
        "degraded": [*degraded(serving), *conditions],
        "in_place": list(store.patterns),
        "writing": heapq.nsmallest(_WRITING_SHOWN, being_written(serving.mount)),
        "scrub": serving.idle.scrub.status(),
        "counts": dict(store.counts),
        "events": store.events[-20:],
        "alarms": store.alarms.told(),
        "requests": dict(session.requests),
        "memory_peak_bytes": _peak_memory(),
        "refused": restarter.refused if restarter else "",
        "restart_waits_for": restarter.waits_for if restarter else "",
        "sets": [pending.path for pending in serving.mount.sets.all()],
        "in_flight": len(serving.mount.versions.all()),
        **serving.monitor.status(store, conditions),
        "metrics": options.metrics,
        "log": options.log_file or logfile.default(options.mountpoint),
    }


def degraded(serving: Serving) -> list[str]:
    """What it lacks, or cannot do."""
    store, found = serving.store, list(serving.monitor.degraded)
    if store.order.poisoned:
        found.append(f"read-only: {store.order.poisoned}")
    if not writers.proc_is_ours() or serving.session.openers.strangers:
        found.append(
            "writers unknown, for they live in another pid namespace: killed ones cannot "
            "be told from finished ones, and all see the committed files; run with "
            "--pid=host"
        )
    if serving.options.allow_other and os.geteuid() != 0:
        found.append(
            "other users' writers unknown, for only root may see how they ended: killed ones "
            "cannot be told from finished ones"
        )
    if serving.mount.room.is_short():
        total = serving.mount.room.total
        found.append(
            f"descriptors are used up ({total}): opens fail (ENFILE) until some files are "
            "closed; commits go on; raise the hard limit (LimitNOFILE=)"
        )
    if store.layout.uses_sidecars:
        found.append("records lie in sidecars: the filesystem has no room for xattrs")
    return found


def being_written(mount: Mount) -> set[str]:
    versions = mount.versions
    return {version.staged.path for version in (*versions.all(), *versions.live())}


def _peak_memory() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0
