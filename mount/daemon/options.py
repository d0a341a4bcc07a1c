"""How a directory is served."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ckptfs.store import Options

from ..operations import sessions


@dataclass(frozen=True)
class MountOptions:
    directory: str  # absolute
    mountpoint: str  # absolute; the same as ``directory`` to serve it over itself
    store: Options = field(default_factory=Options)
    binding: str = sessions.KERNEL
    passthrough: bool = True
    allow_other: bool = False
    foreground: bool = False
    log_file: str = ""
    stop_timeout_s: float = 25.0
    release: bool = False  # after that the mount is taken away though it is used
    scrub_interval_s: float = 0.0  # 0: never
    metrics: str = ""  # HOST:PORT
    on_event: str = ""  # a command


Changes = dict[str, dict[str, Any]]  # fields of MountOptions and of its ``store``
