"""The session through libfuse 2's path API: one adapter for fusepy and refuse.

Relays data, and keeps the same promises as the kernel session but for what a path API cannot do
(docs/design.md, "Portable bindings"). libfuse hands over a path where the kernel has a node: each
request looks its path up for its caller, component by component, and forgets it again.
``ESTALE`` ("look again") is retried (``paths.py``).

Threading: libfuse's own threads, as many as requests wait, so a handler may block. libfuse runs in
a thread beside the main one, which is left to Python's signal handlers. No exception leaves a
handler but ``OSError`` with an errno: fusepy answers garbage for anything else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from ckptfs.errors import CannotServe
from ckptfs.listeners import Listeners

from ..operations import sessions
from ..operations.context import Mount
from . import library
from .context import Portable
from .handlers import HANDLERS

log = logging.getLogger("ckptfs.session")


class Bound:
    """What a binding is handed. It looks for attributes: handlers by name, ``use_ns`` and the
    flags."""

    use_ns = True
    flag_nullpath_ok = flag_nopath = flag_utime_omit_ok = True

    def __init__(self, portable: Portable, requests: Counter[str]) -> None:
        self._portable, self._requests = portable, requests

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in HANDLERS:
            return HANDLERS[name]
        raise AttributeError(name)

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Every request comes through here."""
        self._requests[name.upper()] += 1
        try:
            return HANDLERS[name](self._portable, *arguments)
        except BaseException as error:
            code = sessions.errno_of(error)
            raise OSError(code, os.strerror(code)) from None


class PortableSession:
    def __init__(self, binding: str, mount: Mount, mountpoint: str, *, allow_other: bool) -> None:
        self.requests = Counter[str]()
        self.ready: Listeners[[]] = Listeners()
        self._module = sessions.load(binding)
        self._mountpoint, self._allow_other = mountpoint, allow_other
        self.openers = sessions.Openers()
        portable = Portable(mount, self._module, mountpoint, self.openers, self._serves)
        self._bound = Bound(portable, self.requests)
        self._before_serving: Callable[[], object] = lambda: None
        self._served = False

    def run(self) -> None:
        said = library.Said()
        self._before_serving = said.stop
        failure: list[BaseException] = []

        def serve() -> None:
            try:
                library.with_handles(self._module)(
                    self._bound,
                    library.from_name(self._mountpoint),
                    raw_fi=True,
                    encoding=library.ENCODING,
                    foreground=True,
                    **library.options(allow_other=self._allow_other),
                )
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=serve, name="ckptfs-libfuse", daemon=True)
        thread.start()
        thread.join()
        text = said.stop()
        if not self._served:
            raise CannotServe(f"{self._mountpoint}: cannot mount by /dev/fuse: {text or failure}")
        if failure:
            log.error("libfuse ended with an error: %s", failure[0])

    def passthrough_state(self) -> tuple[bool, str]:
        return False, "by libfuse"

    def quiet(self, mountpoint: str, limit_s: float) -> contextlib.AbstractContextManager[bool]:
        """libfuse cannot be kept from reading requests."""
        return contextlib.nullcontext(False)

    def _serves(self) -> None:
        self._served = True
        self._before_serving()
        self.ready()
