"""Sets by the store: which directories are gathered, and what becomes of one that is on its way."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ckptfs.disk import osfs
from ckptfs.records import format as fmt
from ckptfs.records.walk import files
from ckptfs.sets import manifest, staging
from ckptfs.sets.profiles import Profile, Profiles, recognised, series
from ckptfs.store.options import Options
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place


class SetStore:
    """Of one directory."""

    def __init__(self, core: Core, options: Options) -> None:
        self.core, self._options = core, options

    @functools.cached_property
    def profiles(self) -> Profiles:
        """None of them where sets are not gathered, or files are written in place."""
        how = self._options.profile if self._options.mode.transactional else "none"
        return Profiles.of(how)

    def make(self, path: str) -> tuple[str, int]:
        """An empty directory in stage, open: a set that is to appear at ``path``."""
        txid = staging.make(self.core, path, 0o700)
        return txid, self.core.fs.open(self.core.layout.stage, staging.name_of(txid), osfs.DIRECTORY)

    def files(self, fd: int) -> list[str]:
        """What lies in the directory, below it too, by relative path."""
        return [each.path for each in files(self.core.fs, fd) if each.status is not None]

    def elder(self, path: str) -> frozenset[str] | None:
        """The names in the newest complete set of the same series."""
        newest = manifest.newest(self.core.layout, path)
        return None if newest is None else frozenset(each.path for each in newest.files)

    def publish(self, txid: str, place: Place, known: Sequence[Profile], *, unmarked: bool) -> None:
        """Durable on return, with its manifest. Raises OSError; nothing is changed then."""
        raise NotImplementedError

    def salvage(self, txid: str, path: str) -> None:
        """As one directory."""
        raise NotImplementedError

    def drop(self, txid: str) -> None:
        """It is empty, and its user has removed it. Raises OSError (ENOTEMPTY)."""
        staging.drop(self.core, txid)
