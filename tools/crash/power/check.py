"""Is a crash state what the contract allows? Mount it, recover, compare with what was told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptfs.checking.examine import BAD, Condition
from ckptfs.errors import CannotServe, CkptfsError
from ckptfs.modes import Mode
from ckptfs.records import format as fmt
from ckptfs.store import Options, Store
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope

from ...harness.rig import served
from . import device
from .record import PLAIN, Recording
from .states import Spec

ROOT = "checkpoints"
NO_FILESYSTEM = "no filesystem"
_PROBE = "probe.bin"
_WRONG = BAD | {Condition.MODIFIED, Condition.LEFTOVER}


# From what is lost for good to what is only untrue.
_BY_SEVERITY = (
    NO_FILESYSTEM,
    "filesystem damaged",
    "no directory",
    "not recovered",
    "gone",
    "empty",
    "zero-filled",
    "torn",
    "mixed",
    "garbled",
    "published by a killed writer",
    "never closed",
    "not closed yet",
    "lost though closed",
    "lost though fsynced",
)


def severity(what: str) -> int:
    """Smaller is worse."""
    known = (n for n, name in enumerate(_BY_SEVERITY) if what.startswith(name))
    return next(known, len(_BY_SEVERITY))


@dataclass(frozen=True)
class Violation:
    what: str  # one of few words, to be counted
    path: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.path}" if self.path else self.what


class Judge:
    """Looks at states of one recording, one after another, on a device of its own."""

    def __init__(self, recording: Recording, screen: device.Screen, name: str, at: Path) -> None:
        self.recording, self._screen, self._device, self._at = recording, screen, name, at
        self._transactional = recording.setting.mode not in (PLAIN, Mode.UNSAFE.value)

    def look(self, specs: Sequence[Spec], *, daemon: bool = False) -> set[Violation]:
        """What is wrong with a state that comes about in each of these ways, at any of their
        moments. ``daemon``: `ckptfs mount` recovers it, and what is seen through the mount is
        judged; else the store does, in this process."""
        setting, log = self.recording.setting, self.recording.log
        positions = sorted({log.position(spec.at) for spec in specs})
        self._screen.show(log.image(specs[0]), log.shown)
        try:
            device.mount(self._device, self._at, setting.kind, setting.options)
        except OSError as error:
            return {Violation(f"{NO_FILESYSTEM}: {os.strerror(error.errno or 0)}")}
        how = self._through_mount if daemon else self._recovered
        try:
            if not (self._at / ROOT).is_dir():
                return {Violation("no directory")}
            return set((how if self._transactional else self._contents)(self._at / ROOT, positions))
        except OSError as error:  # of a path that was written by the filesystem itself
            return {Violation(f"filesystem damaged: {os.strerror(error.errno or 0)}")}
        finally:
            device.unmount(self._device, self._at)

    def _through_mount(self, root: Path, positions: Sequence[int]) -> Iterator[Violation]:
        try:
            with served(root, "--mode", self.recording.setting.mode):
                yield from self._contents(root, positions)
                (root / _PROBE).write_bytes(b"probe")
        except CannotServe as error:
            yield Violation(f"not recovered: {type(error).__name__}")
            return
        yield from self._recovered(root, positions)

    def _recovered(self, root: Path, positions: Sequence[int]) -> Iterator[Violation]:
        try:
            store = Store.open(str(root), Options(mode=Mode(self.recording.setting.mode)))
        except (CkptfsError, OSError) as error:
            yield Violation(f"not recovered: {type(error).__name__}")
            return
        try:
            yield from self._contents(root, positions)
            yield from self._records(store)
            yield from self._salvage(store, positions)
            yield from self._goes_on(store)
        finally:
            store.close()

    # --- what is looked at -----------------------------------------------------------------------

    def _contents(self, root: Path, positions: Sequence[int]) -> Iterator[Violation]:
        """C1, C2, C6, by the bytes themselves."""
        found = {path: data for path, data in _files(root) if path != _PROBE}
        for at in positions:
            yield from self._promised(found, at)
        if self._transactional:
            yield from self._unasked(found)

    def _promised(self, found: dict[str, bytes], at: int) -> Iterator[Violation]:
        oracle = self.recording.oracle
        for path in oracle.changes:
            if wrong := oracle.wrong(path, at, found.get(path)):
                yield Violation(wrong, path)
        for path in oracle.in_place:
            if wrong := oracle.wrong_in_place(path, at, found.get(path)):
                yield Violation(wrong, path)
        if self._transactional and oracle.durable:
            yield from self._order(at, found)

    def _unasked(self, found: dict[str, bytes]) -> Iterator[Violation]:
        oracle = self.recording.oracle
        known = oracle.changes.keys() | oracle.in_place.keys() | oracle.never.keys()
        for path in found.keys() - known:
            yield Violation("never closed", path)
        for path in oracle.never.keys() & found.keys() - oracle.changes.keys():
            yield Violation("published by a killed writer", path)

    def _order(self, at: int, found: dict[str, bytes]) -> Iterator[Violation]:
        """C3: what is there was not closed after something that is not."""
        oracle = self.recording.oracle
        seen = [
            change.begun
            for path, changes in oracle.changes.items()
            for change in changes
            if change.version is not None and found.get(path) == oracle.contents[change.version]
        ]
        latest = max(seen, default=0)
        for path in oracle.changes:
            if oracle.wrong(path, at, found.get(path), due=latest):
                yield Violation("out of order", path)

    def _records(self, store: Store) -> Iterator[Violation]:
        """C5: every record speaks for its bytes, those in history included."""
        in_place = self.recording.oracle.in_place
        for finding in Check(store.layout, Scope()).findings():
            unrecorded = finding.condition is Condition.UNRECORDED and finding.path not in in_place
            if finding.condition in _WRONG or unrecorded:
                yield Violation(f"verify: {finding.condition.value}", finding.path)
        for path in self.recording.oracle.changes:
            with contextlib.suppress(FileNotFoundError):
                try:
                    store.get(path)
                except CkptfsError as error:
                    yield Violation(f"not served: {type(error).__name__}", path)

    def _salvage(self, store: Store, positions: Sequence[int]) -> Iterator[Violation]:
        folder = Path(store.where, fmt.CONTROL, fmt.SALVAGE)
        kept = [path.read_bytes() for path in folder.iterdir() if path.suffix != fmt.NOTE]
        for at in positions:
            for path in self.recording.oracle.lost_bytes(at, kept):
                yield Violation("fsynced bytes are not in salvage", path)
        if store.fs.listdir(store.layout.stage):
            yield Violation("stage is not empty")

    def _goes_on(self, store: Store) -> Iterator[Violation]:
        """It takes a new version, under a number that was never used."""
        history = Path(store.where, fmt.CONTROL, fmt.HISTORY)
        used = [int(path.name) for path in history.glob("*/*")]
        try:
            record = store.put(_PROBE, b"probe")
            if store.get(_PROBE) != b"probe" or record.generation <= max(used, default=0):
                yield Violation("does not go on")
        except (CkptfsError, OSError) as error:
            yield Violation(f"does not go on: {type(error).__name__}")


def _files(root: Path) -> Iterator[tuple[str, bytes]]:
    for folder, folders, names in os.walk(root):
        if fmt.CONTROL in folders:
            folders.remove(fmt.CONTROL)
        for name in names:
            path = Path(folder, name)
            yield str(path.relative_to(root)), path.read_bytes()


@contextlib.contextmanager
def judging(recording: Recording, folder: Path) -> Iterator[Judge]:
    """A device, and a place to mount it, in ``folder``."""
    kind = device.KINDS[recording.setting.kind]
    at = folder / "state"
    at.mkdir(exist_ok=True)
    screen = device.Screen(folder / "screen", kind.size_bytes)
    try:
        with device.loop(folder / "screen") as name:
            yield Judge(recording, screen, name, at)
    finally:
        screen.close()
        os.unlink(folder / "screen")
