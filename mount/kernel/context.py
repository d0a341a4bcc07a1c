"""What the handlers of requests use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ckptfs.listeners import Listeners

from ..operations.context import Mount
from ..view.model import Caller
from .again import Again
from .answers import Answers
from .passthrough import Passthrough

MAX_WRITE = 1 << 20  # bytes of one request


@dataclass(eq=False)
class Kernel:
    """The kernel, as one mount has it."""

    mount: Mount
    passthrough: Passthrough
    answers: Answers
    again: Again
    uid: int  # the daemon's
    wanted: int  # what is agreed to of the flags that the kernel offers
    restart: Callable[[int, bytes], None] | None = None  # by a request, with an order
    interrupted: Listeners[[int]] = field(default_factory=Listeners)  # a request


# Of a node, for a caller, with the request's body: the reply, or a Slow that makes it.
Handler = Callable[[Kernel, int, Caller, memoryview], Any]
