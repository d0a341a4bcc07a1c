"""What handlers share: names in a request, results that come later. Pure."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from ...view.answers import Slow
from .. import wire


def names_in(body: memoryview) -> list[str]:
    return [os.fsdecode(part) for part in bytes(body).split(b"\0")[:-1]]


def sized(value: bytes, size: int) -> bytes:
    """The reply protocol of GETXATTR and LISTXATTR: size 0 asks how long the value is."""
    if size == 0:
        return wire.GETXATTR_IN.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, "the value is longer than the buffer")
    return value


def then(result: Any, shape: Callable[[Any], bytes]) -> Any:
    """Shape a result now, or once it is there."""
    return Slow(lambda: shape(result.run())) if isinstance(result, Slow) else shape(result)


def after(work: Slow[None] | None, go_on: Callable[[], Any]) -> Any:
    """``go_on``, once the work ahead of it is done, if there is any."""
    if work is None:
        return go_on()
    ahead = work.run

    def both() -> Any:
        ahead()
        return go_on()

    return Slow(both)
