"""Hard links share a version, and so its history, until they part: history must not grow by that,
nor lose what a path could be rolled back to. It kept one version a step of each file that had a
link (last, best, step), and called what was deleted a loss.

Random operations run on a store and on a model (``kept_model.py``). After each one every path has
what the model says, and every generation is reached from a path that is noted for it, at most
``keep`` a path. ``CKPTFS_OPERATIONS=100000`` makes a long run.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mounts
import pytest
from harness import store_on
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from kept_model import Model, Version

from ckptfs.checking import orphans
from ckptfs.checking.examine import Condition
from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.history import earlier, moves
from ckptfs.history.lineages import Lineages
from ckptfs.records.layout import Layout
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope
from ckptfs.versions.order import Place

_STEPS = 50
_OPERATIONS = int(os.environ.get("CKPTFS_OPERATIONS", "3000"))

FOLDERS = ("", "d/", "e/")
PATHS = [f"{folder}{name}" for folder in FOLDERS for name in "abc"]
paths = st.sampled_from(PATHS)
contents = st.integers(0, 1 << 30).map(lambda number: b"%d" % number * (1 + number % 5))


class Acts:
    """Operations on a store without a mount."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep
        self.open()

    def open(self) -> None:
        self.store = store_on(self.directory, keep=self.keep)
        self.store.core.copied_at_once_bytes = 0  # all are long ones

    def open_again(self) -> None:
        self.store.close()
        self.open()

    def put(self, path: str, content: bytes) -> None:
        self.store.put(path, content)

    def append(self, path: str, content: bytes) -> None:
        self.store.append(path, content)

    def link(self, path: str, new: str) -> None:
        self.store.link(path, new)

    def unlink(self, path: str) -> None:
        self.store.unlink(path)

    def rename(self, path: str, new: str) -> None:
        self.store.rename(path, new)

    def exchange(self, path: str, other: str) -> None:
        self.store.exchange(path, other)

    def roll_back(self, path: str) -> None:
        self.store.history.rollback(path)

    def make_unrecorded(self, path: str, content: bytes) -> None:
        (self.directory / path).write_bytes(content)

    def expose(self, path: str, content: bytes) -> None:
        """Two processes write it under a lock: it goes on without a record."""
        with osfs.place(self.store.fs, self.store.root, path) as (at, name):
            staged = self.store.saves.stage(path, at, name, exists=True, truncate=True)
            self.store.fs.write(staged.fd, content, 0)
            self.store.saves.expose(staged, at, name)
            self.store.fs.close(staged.fd)

    def open_in_place(self, path: str) -> None:
        with osfs.place(self.store.fs, self.store.root, path) as (at, name):
            self.store.files.open_in_place(Place(at, name, path))

    def adopt(self, path: str) -> None:
        self.store.history.adopt(path)

    def tidy(self) -> None:
        done = self.store.history.tidy()
        assert (done.let_go, done.given_back) == (0, [])

    def inode(self, path: str) -> int:
        return (self.directory / path).lstat().st_ino

    def kept(self) -> dict[str, list[bytes]]:
        assert Lineages(self.store.layout).pins == self.store.core.lineages.pins
        return reached(self.store.layout, self.keep)

    def end(self) -> None:
        findings = {found.condition for found in Check(self.store.layout, Scope()).findings()}
        assert findings <= {Condition.OK, Condition.UNRECORDED}
        for path in standing(self.directory):
            self.store.unlink(path)
        assert os.listdir(self.directory / ".ckptfs/history") == []
        self.store.close()


class ActsOnMount:
    """The same by system calls on a mount."""

    served: mounts.Served
    layout: Layout
    KEEP = 2

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory

    def put(self, path: str, content: bytes) -> None:
        (self.directory / path).write_bytes(content)

    def append(self, path: str, content: bytes) -> None:
        with (self.directory / path).open("ab") as file:
            file.write(content)

    def link(self, path: str, new: str) -> None:
        os.link(self.directory / path, self.directory / new, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(self.directory / path)

    def rename(self, path: str, new: str) -> None:
        os.rename(self.directory / path, self.directory / new)

    def exchange(self, path: str, other: str) -> None:
        both = [os.fsencode(self.directory / name) for name in (path, other)]
        assert ctypes.CDLL(None).renameat2(-100, both[0], -100, both[1], 2) == 0

    def roll_back(self, path: str) -> None:
        os.setxattr(self.directory / path, "user.ckptfs.rollback", b"")

    def make_unrecorded(self, path: str, content: bytes) -> None:
        log = self.directory / "made.log"  # written in place
        log.write_bytes(content)
        log.rename(self.directory / path)

    def inode(self, path: str) -> int:
        return (self._below() / path).lstat().st_ino

    def _below(self) -> Path:
        return Path(f"/proc/self/fd/{self.layout.root}") / self.directory.name

    def kept(self) -> dict[str, list[bytes]]:
        found, prefix = reached(self.layout, self.KEEP), f"{self.directory.name}/"
        assert all(path.startswith(prefix) for path in found)
        return {path.removeprefix(prefix): kept for path, kept in found.items()}

    def end(self) -> None:
        shutil.rmtree(self.directory)
        assert os.listdir(f"/proc/self/fd/{self.layout.history}") == []


class Histories(RuleBasedStateMachine):
    """One example: operations in a fresh directory."""

    base: Path
    acts: Any = Acts
    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=self.base))
        for folder in "de":
            (self.directory / folder).mkdir()
        keep = getattr(self.acts, "KEEP", type(self).operations % 3 + 1)
        self.model, self.on = Model(keep), self.acts(self.directory, keep)

    def some(self, pick: str, **is_: bool) -> str | None:
        """The first path from ``pick`` on where there is such a file."""
        start = PATHS.index(pick)
        for path in PATHS[start:] + PATHS[:start]:
            found = self.model.files.get(path)
            if found is not None and all(getattr(found, key) is is_[key] for key in is_):
                return path
        return None

    # --- operations ------------------------------------------------------------------------------

    @rule(path=paths, content=contents)
    def put(self, path: str, content: bytes) -> None:
        there = self.model.files.get(path)
        if there is None or not there.link:
            self.on.put(path, content)
            self.model.put(path, Version(content))

    @rule(pick=paths, content=contents)
    def overwrite(self, pick: str, content: bytes) -> None:
        if path := self.some(pick, link=False):
            self.put(path, content)

    @rule(pick=paths, content=contents)
    def append(self, pick: str, content: bytes) -> None:
        path = self.some(pick, link=False)
        if path is None:
            return
        version, before = self.model.files[path], self.on.inode(path)
        self.on.append(path, content)
        if self.on.inode(path) == before:
            version.content += content  # it has grown where it lies
        else:
            self.model.put(path, Version(version.content + content))

    @rule(pick=paths, new=paths)
    def link(self, pick: str, new: str) -> None:
        path = self.some(pick)
        if path is None:
            return
        if new in self.model.files:
            with pytest.raises(FileExistsError):
                self.on.link(path, new)
            return
        self.on.link(path, new)
        self.model.link(path, new)

    @rule(pick=paths)
    def unlink(self, pick: str) -> None:
        if path := self.some(pick):
            self.on.unlink(path)
            self.model.unlink(path)

    @rule(pick=paths, new=paths)
    def rename(self, pick: str, new: str) -> None:
        if path := self.some(pick):
            self.on.rename(path, new)
            self.model.rename(path, new)

    @rule(pick=paths, other=paths)
    def rename_onto(self, pick: str, other: str) -> None:
        if new := self.some(other):
            self.rename(pick, new)

    @rule(pick=paths, other=paths)
    def exchange(self, pick: str, other: str) -> None:
        path, new = self.some(pick), self.some(other)
        if path and new:
            self.on.exchange(path, new)
            self.model.exchange(path, new)

    @rule(path=paths)
    def symlink(self, path: str) -> None:
        if path not in self.model.files:
            os.symlink("elsewhere", self.directory / path)
            self.model.files[path] = Version(b"elsewhere", recorded=False, link=True)

    @rule(path=paths, content=contents)
    def make_unrecorded(self, path: str, content: bytes) -> None:
        if path not in self.model.files:
            self.on.make_unrecorded(path, content)
            self.model.files[path] = Version(content, recorded=False)

    @rule(pick=paths)
    def roll_back(self, pick: str) -> None:
        path = self.some(pick, link=False)
        good = [version for version in self.model.kept(path or "") if version.recorded]
        if path and good:
            self.on.roll_back(path)
            self.model.put(path, Version(good[-1].content))

    @rule()
    def rename_folder(self) -> None:
        for old, new in (("d", "f"), ("f", "d")):
            self.on.rename(old, new)
            self.model.rename_folder(old, new)
            self.check()

    @rule()
    def exchange_folders(self) -> None:
        self.on.exchange("d", "e")
        self.model.exchange_folders("d", "e")

    # --- what holds after each -------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        type(self).operations += 1
        self.check()

    def check(self) -> None:
        assert standing(self.directory) == {p: v.content for p, v in self.model.files.items()}
        kept = {path: [v.content for v in self.model.kept(path)] for path in self.model.files}
        assert self.on.kept() == {path: found for path, found in kept.items() if found}

    def teardown(self) -> None:
        self.on.end()
        shutil.rmtree(self.directory, ignore_errors=True)


class StoreHistories(Histories):
    """With what only the daemon itself does."""

    @rule(pick=paths, content=contents)
    def expose(self, pick: str, content: bytes) -> None:
        if path := self.some(pick, link=False):
            self.on.expose(path, content)
            self.model.put(path, Version(content, recorded=False))

    @rule(pick=paths)
    def open_in_place(self, pick: str) -> None:
        path = self.some(pick, link=False)
        if path and not self.model.is_kept(self.model.files[path]):  # it would change, too
            self.on.open_in_place(path)
            self.model.files[path].recorded = False

    @rule(pick=paths)
    def adopt(self, pick: str) -> None:
        path = self.some(pick, recorded=False, link=False)
        if path and not self.model.is_kept(self.model.files[path]):
            self.on.adopt(path)
            self.model.files[path].recorded = True

    @rule()
    def open_again(self) -> None:
        self.on.open_again()

    @rule()
    def tidy(self) -> None:
        self.on.tidy()


def standing(directory: Path) -> dict[str, bytes]:
    found = {}
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if name != ".ckptfs"]
        for path in (Path(folder) / name for name in names):
            text = str(path.relative_to(directory))
            found[text] = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
    return found


def reached(layout: Layout, keep: int) -> dict[str, list[bytes]]:
    """What is kept of each path that stands, oldest first; by the notes, and as commands find it.
    All that history holds is among that."""
    lineages = Lineages(layout)
    assert orphans.find(lineages) == orphans.Found()
    found: dict[str, list[bytes]] = {}
    for lineage in earlier.lineages(layout):
        folder = Path(f"/proc/self/fd/{layout.history}/{lineage}")
        numbers = sorted(map(int, os.listdir(folder)))
        assert len(numbers) <= keep
        note = earlier.note(layout, lineage)
        assert note is not None and note.paths and not note.leaving
        for path in note.paths:
            assert path not in found, "a path has one history"
            found[path] = [(folder / str(number)).read_bytes() for number in numbers]
            with osfs.place(layout.fs, layout.root, path) as (at, name):
                assert lineages.readable(at, name, path) == lineage
    return found


def run(machine: type[Histories], operations: int, *phases: Phase) -> None:
    machine.operations = 0
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=max(1, operations * 11 // 10 // _STEPS),
            stateful_step_count=_STEPS,
            phases=phases or (Phase.generate, Phase.shrink),
            deadline=None,
            database=None,
            derandomize="CKPTFS_OPERATIONS" not in os.environ,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
    assert machine.operations > 0.75 * operations, "hypothesis has given up early"


def test_C5_every_path_keeps_its_history_and_no_other(quick_dir: Path) -> None:
    StoreHistories.base = quick_dir
    run(StoreHistories, _OPERATIONS)


@pytest.mark.kernel_only(mounts.NOT_THERE)  # RENAME_EXCHANGE
@pytest.mark.parametrize(
    "option", ["--mode=atomic_dirsync", "--no-passthrough", "--mode=atomic_nodirsync"]
)
def test_C5_so_it_is_through_a_mount(option: str, disk_dir: Path) -> None:
    with mounts.served(disk_dir, "--keep=2", option, limit_s=24 * 3600) as served:
        root = osfs.open_directory(str(served.below))
        layout = Layout.existing(OsFs(), root, str(disk_dir))
        assert layout is not None
        ActsOnMount.layout = layout

        class MountHistories(Histories):
            base, acts = disk_dir, ActsOnMount

        try:
            run(MountHistories, _OPERATIONS // 10)
            assert mounts.ckptfs("verify", disk_dir).returncode == 0
        finally:
            layout.close()
            os.close(root)


@pytest.mark.parametrize("name", ["leave", "follow", "keep_alone", "pin", "exchanged", "renamed"])
def test_control_a_rule_that_is_left_out_is_seen(
    name: str, quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = Lineages if name == "pin" else moves
    monkeypatch.setattr(rules, name, lambda lineages, *given: False)
    StoreHistories.base = quick_dir
    with pytest.raises((AssertionError, FileNotFoundError)):
        run(StoreHistories, 3000, Phase.generate)
