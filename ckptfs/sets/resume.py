"""Which set to go on from: the newest complete one of which every file is as it was published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ckptfs.checking.examine import Condition, examine_at
from ckptfs.disk import osfs
from ckptfs.records.layout import Layout
from ckptfs.sets.manifest import Manifest, Member

_GOOD = frozenset({Condition.OK, Condition.UNREAD, Condition.BROKEN, Condition.UNRECORDED})


def wrong(layout: Layout, manifest: Manifest, *, quick: bool = False) -> str:
    """What is not as it was published; empty where all is. ``quick`` reads no bytes."""
    try:
        with (
            osfs.place(layout.fs, layout.root, manifest.path) as (at, name),
            osfs.opened(layout.fs, at, name, osfs.DIRECTORY) as fd,
        ):
            if layout.fs.stat(fd).st_ino != manifest.inode:
                return "another directory"
            told = (_wrong(layout, fd, each, quick) for each in manifest.files)
            return next((each for each in told if each), "")
    except OSError as error:
        return "gone" if isinstance(error, FileNotFoundError) else str(error.strerror)


def _wrong(layout: Layout, set_fd: int, member: Member, quick: bool) -> str:
    try:
        with osfs.place(layout.fs, set_fd, member.path) as (at, name):
            finding = examine_at(layout, member.path, at, name, quick=quick)
    except OSError as error:
        return f"{member.path}: {error.strerror}"
    if finding.condition not in _GOOD:
        return f"{member.path}: {finding.condition.value}"
    record = finding.record
    if (record.digest if record else "") != member.digest:
        return f"{member.path}: {'of another save' if record else 'its record is lost'}"
    return ""


def latest(
    layout: Layout, manifests: Sequence[Manifest], told: Callable[[Manifest, str], object]
) -> Manifest | None:
    """The newest of them that is whole, verified now. ``told`` hears of those that are not."""
    for manifest in reversed(manifests):
        found = wrong(layout, manifest)
        if not found:
            return manifest
        told(manifest, found)
    return None


def shown(layout: Layout, manifests: Sequence[Manifest]) -> Iterator[tuple[Manifest, str]]:
    """Each, the oldest first, with what is not as it was published, as far as no byte tells."""
    for manifest in manifests:
        yield manifest, wrong(layout, manifest, quick=True)
