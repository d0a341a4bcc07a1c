"""What the handlers of requests use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

from ..operations import sessions
from ..operations.context import Mount
from ..processes import calls
from .inodes import Inodes, Opened


@dataclass(eq=False)
class Portable:
    """A mount by libfuse."""

    mount: Mount
    module: ModuleType  # the binding's
    mountpoint: str
    openers: sessions.Openers
    serves: Callable[[], None]  # called once libfuse asks
    opens: dict[int, Opened] = field(default_factory=dict)  # by handle
    inodes: Inodes = field(default_factory=Inodes)
    probes: calls.Probes = field(default_factory=calls.Probes)
