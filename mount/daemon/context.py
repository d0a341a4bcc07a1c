"""What one daemon serves with: handed to what tells of it, rests it and ends it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

from ckptfs.store import Store

from ..operations import sessions
from ..operations.context import Mount
from .idle import IdleWork
from .monitor import Monitor
from .options import MountOptions
from .restart import Restarter
from .signals import Signals


@dataclass
class Serving:
    options: MountOptions
    store: Store
    mount: Mount
    session: sessions.Session
    monitor: Monitor
    idle: IdleWork
    signals: Signals
    started_s: float  # since the epoch
    restarter: Restarter | None = None  # where it can be restarted
    ended: threading.Event = field(default_factory=threading.Event)
    root_id: list[int] = field(init=False)  # device and inode of the directory

    def __post_init__(self) -> None:
        root = os.fstat(self.store.root)
        self.root_id = [root.st_dev, root.st_ino]
