"""What of a directory a check looks at, and how closely."""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass
from itertools import accumulate

from ckptfs.modes import Outside


@dataclass(frozen=True)
class Scope:
    """What to look at."""

    paths: tuple[str, ...] = ()  # files and folders; none, or an empty one: everything
    jobs: int = 1
    quick: bool = False  # records, sizes and times; no bytes
    direct: bool = False  # past the page cache
    part: int = 1  # of ``parts``, whose bytes are read; the others get the quick look
    parts: int = 1
    outside: Outside = Outside.JUDGE
    served: bool = False  # a daemon works here

    @functools.cached_property
    def whole(self) -> bool:
        return not self.paths or "" in self.paths

    @functools.cached_property
    def _asked(self) -> frozenset[str]:
        return frozenset(self.paths)

    def asked_for(self, path: str) -> bool:
        """Whether the path, or a folder that it lies in, was named."""
        return bool({"", path} & self._asked) or self.lies_in_one_asked_for(path)

    def lies_in_one_asked_for(self, path: str) -> bool:
        folders = accumulate(path.split("/")[:-1], lambda above, name: f"{above}/{name}")
        return any(folder in self._asked for folder in folders)

    def covers(self, path: str) -> bool:
        return self.whole or self.asked_for(path)

    def reads(self, path: str) -> bool:
        """Whether its bytes are looked at; the same files in every run."""
        if self.quick:
            return False
        return zlib.crc32(path.encode("utf-8", "surrogateescape")) % self.parts == self.part - 1
