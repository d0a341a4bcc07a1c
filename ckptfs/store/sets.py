"""Sets by the store: which directories are gathered, and what becomes of one that is on its way."""

from __future__ import annotations

from collections.abc import Sequence

from ckptfs.records.walk import files
from ckptfs.sets import manifest, staging
from ckptfs.sets.life import SetState
from ckptfs.sets.manifest import Manifest
from ckptfs.sets.profiles import Profile, Profiles, recognised
from ckptfs.store.options import Options
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place

AUTO, NONE = "auto", "none"


class SetStore:
    """Of one directory."""

    def __init__(self, core: Core, options: Options) -> None:
        """Raises UsageError for profiles that cannot be read. There are none where sets are not
        gathered, or files are written in place."""
        self.core = core
        self.profiles = _profiles(options.profile if options.mode.transactional else NONE)

    def make(self, path: str) -> tuple[str, int]:
        """An empty directory in stage, by its id and open: a set that is to appear at ``path``."""
        return staging.make(self.core, path)

    def files(self, fd: int) -> list[str]:
        """What lies in the directory, below it too, by relative path."""
        return [each.path for each in files(self.core.fs, fd) if each.status is not None]

    def elder(self, path: str) -> frozenset[str] | None:
        """The names in the newest complete set of the same series."""
        newest = manifest.newest(manifest.all_of(self.core.layout), path)
        return None if newest is None else frozenset(each.path for each in newest.files)

    def publish(
        self, txid: str, fd: int, place: Place, known: Sequence[Profile], *, unmarked: bool
    ) -> Manifest:
        """Durable on return, with its manifest. Raises OSError; see :func:`staging.publish`."""
        layout = self.core.layout
        members = manifest.members(layout, fd)
        profile = recognised(known, [each.path for each in members])
        found = Manifest(
            id=txid,
            number=layout.next_generation(),
            path=place.path,
            inode=self.core.fs.stat(fd).st_ino,
            profile=profile.name if profile is not None else "",
            state=(SetState.UNMARKED if unmarked else SetState.COMPLETE).value,
            committed_ns=self.core.fs.now_ns(),
            files=members,
        )
        staging.publish(self.core, found, fd, place)
        return found

    def put_aside(self, txid: str) -> int:
        """Its files go to salvage; returns how many they were."""
        return staging.put_aside(self.core, txid)

    def drop(self, txid: str) -> None:
        """It is empty, and its user has removed it. Raises OSError (ENOTEMPTY)."""
        staging.drop(self.core, txid)


def _profiles(how: str) -> Profiles:
    """All, none, the one of that name, or those of a file of the user's own ahead of all. Raises
    UsageError."""
    if how == NONE:
        return Profiles(())
    if how == AUTO:
        return Profiles.load()
    named = [each for each in Profiles.load().all if each.name == how]
    return Profiles(named) if named else Profiles.load(how)
