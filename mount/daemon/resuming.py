"""What a restarted daemon begins with: it goes on with what the program before it served."""

from __future__ import annotations

import enum
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ckptfs
from ckptfs.disk.digest import ALGORITHMS
from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout
from ckptfs.store import Store

from ..kernel.session import Session
from ..operations.context import Mount
from . import handover, logfile, metrics, program
from .options import Changes, MountOptions
from .serve import Way, serve

log = logging.getLogger("ckptfs.restart")


def resume(state: int, filesystem: Callable[[], FileSystem] = OsFs, *, only_try: bool) -> None:
    """Go on with the mount that this process serves, until it ends."""
    with os.fdopen(state, "rb") as file:
        carried = handover.Carried(file)
    options = _changed(carried.header.options, carried.header.changes)
    log_file = options.log_file or logfile.default(options.mountpoint)
    logfile.log_to(None if options.foreground else log_file)
    if only_try:
        _try_out(carried, options)
        print(json.dumps({"ckptfs": ckptfs.__version__, "format": handover.FORMAT}), flush=True)
        os._exit(0)  # nothing of it may be closed: the descriptors are not here
    for fd in carried.header.descriptors:
        os.set_inheritable(fd, False)
    handed = _Handed(options, carried, filesystem)
    way = Way(handed.opened, handed.attach, resumed=True)
    try:
        serve(options, way, [], handed.answer)
    except Exception:
        log.exception("the restarted daemon failed")
        raise


class _Handed:
    """The mount and the store of the program before."""

    def __init__(
        self,
        options: MountOptions,
        carried: handover.Carried,
        filesystem: Callable[[], FileSystem],
    ) -> None:
        self._options, self._carried, self._filesystem = options, carried, filesystem
        self._was = carried.header

    def opened(self) -> Store:
        options, was = self._options, self._was
        same_mode = was.options.store.mode == options.store.mode
        return Store.resume(
            options.directory,
            options.store,
            was.root,
            was.lock,
            same_mode=same_mode,
            fs=self._filesystem(),
        )

    def attach(self, mount: Mount) -> Session:
        session = Session(self._was.device, mount, passthrough=self._options.passthrough)
        self._carried.restore(mount, session)
        self._session = session
        return session

    def answer(self, _warnings: list[str]) -> None:
        """To who asked for the restart."""
        log.info("restarted; version %s before, %s now", self._was.version, ckptfs.__version__)
        self._session.granting(self._was.request)(0)


def _try_out(carried: handover.Carried, options: MountOptions) -> None:
    """As far as it goes without changing anything. Raises CannotServe and kin."""
    program.require_outside(options.mountpoint)
    if Layout.existing(OsFs(), carried.header.root, options.directory) is None:
        raise CannotServe(f"{options.directory}: there is no {fmt.CONTROL} any more")
    if options.metrics and options.metrics != carried.header.options.metrics:
        metrics.Server(options.metrics).close()
    carried.try_out()


_OF_MOUNT = {
    *("passthrough", "log_file", "stop_timeout_s", "release", "scrub_interval_s"),
    *("metrics", "on_event"),
}


def _changed(options: MountOptions, changes: Changes) -> MountOptions:
    """Raises CannotServe for what no restart changes, or not to that."""
    try:
        store = {key: _like(vars(options.store)[key], to) for key, to in changes["store"].items()}
        mount = {key: _like(getattr(options, key), to) for key, to in changes["mount"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CannotServe(f"such options it does not take: {error}") from None
    unknown = {*mount} - _OF_MOUNT
    if unknown:
        raise CannotServe(f"a restart does not change {', '.join(sorted(unknown))}")
    new = replace(options, store=replace(options.store, **store), **mount)
    if (
        new.store.checksum not in ALGORITHMS
        or min(new.store.keep, new.store.salvage_bytes, new.store.salvage_entries) < 0
    ):
        raise CannotServe("such options it does not take")
    return new


def _like(before: Any, value: Any) -> Any:
    """The value as of the option's type. Raises ValueError."""
    if isinstance(before, enum.Enum):
        return type(before)(value)
    if isinstance(before, tuple):
        value = tuple(value)
        if all(isinstance(each, str) for each in value):
            return value
    elif type(value) is type(before) or (type(before) is float and type(value) is int):
        return type(before)(value)
    raise ValueError(f"{value!r}")
