"""The calls that a commit makes, in order, as text under ``golden/``: a step that is left out,
doubled or moved shows up in review. ``CKPTFS_UPDATE_GOLDEN=1`` writes them anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import NEW, OLD

from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.modes import Mode
from ckptfs.store import Options, Store
from ckptfs.tools.faults import Recording
from ckptfs.versions.order import Place

GOLDEN = Path(__file__).parents[1] / "golden"


def nothing(store: Store) -> None:
    pass


def old(store: Store) -> None:
    store.put("a.pt", OLD)


def old_and_temporary(store: Store) -> None:
    old(store)
    store.put("b.tmp", NEW)


def new_folder(store: Store) -> None:
    store.fs.mkdir(store.root, "run", 0o755)
    store.order.note_changed_dir(store.root)


def folder_and_two(store: Store) -> None:
    old(store)
    new_folder(store)
    store.put("run/b.pt", NEW)
    store.order.note_changed_dir(store.layout.stage)


def exchange(store: Store, name: str, below: str) -> None:
    folder, target = below.split("/")
    with osfs.opened(store.fs, store.root, folder, osfs.DIRECTORY) as to:
        store.files.exchange(Place(store.root, name, name), Place(to, target, below))


def two_and_rot(store: Store) -> None:
    old(store)
    store.put("a.pt", NEW)
    with osfs.opened(store.fs, store.root, "a.pt", osfs.O_RDWR) as fd:
        mtime = store.fs.stat(fd).st_mtime_ns
        store.fs.write(fd, b"N", 0)
        os.utime(fd, ns=(mtime, mtime))


CASES: dict[str, tuple[Mode, Callable[[Store], None], Callable[[Store], object]]] = {
    "dirsync-new": (Mode.ATOMIC_DIRSYNC, nothing, lambda store: store.put("a.pt", NEW)),
    "dirsync-overwrite": (Mode.ATOMIC_DIRSYNC, old, lambda store: store.put("a.pt", NEW)),
    "dirsync-new-folder": (
        Mode.ATOMIC_DIRSYNC,
        new_folder,
        lambda store: store.put("run/a.pt", NEW),
    ),
    "dirsync-rename-onto": (
        Mode.ATOMIC_DIRSYNC,
        old_and_temporary,
        lambda store: store.rename("b.tmp", "a.pt"),
    ),
    "dirsync-exchange": (
        Mode.ATOMIC_DIRSYNC,
        folder_and_two,
        lambda store: exchange(store, "a.pt", "run/b.pt"),
    ),
    "dirsync-roll-back": (Mode.ATOMIC_DIRSYNC, two_and_rot, lambda store: store.get("a.pt")),
    "dirsync-large": (Mode.ATOMIC_DIRSYNC, nothing, lambda store: store.put("a.pt", NEW * 300)),
    "nodirsync-new": (Mode.ATOMIC_NODIRSYNC, nothing, lambda store: store.put("a.pt", NEW)),
    "nodirsync-overwrite": (Mode.ATOMIC_NODIRSYNC, old, lambda store: store.put("a.pt", NEW)),
}


def traced(case: str, directory: Path) -> str:
    mode, prepare, act = CASES[case]
    root = osfs.open_directory(str(directory))
    recording = Recording(OsFs(), {root: "."})
    store = Store(recording.fs, root, str(directory), Options(mode=mode))
    prepare(store)
    recording.start()
    act(store)
    text = recording.text()
    store.close()
    return text


@pytest.mark.parametrize("case", CASES)
def test_C1_C2_a_commit_makes_these_calls_in_this_order(case: str, quick_dir: Path) -> None:
    golden = GOLDEN / f"{case}.txt"
    text = traced(case, quick_dir)
    if os.environ.get("CKPTFS_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def order(case: str, *steps: str) -> bool:
    """Whether the golden has these lines, in this order."""
    lines = iter((GOLDEN / f"{case}.txt").read_text().splitlines())
    return all(step in lines for step in steps)


@pytest.mark.parametrize(
    "case", ["dirsync-new", "dirsync-large", "dirsync-overwrite", "nodirsync-overwrite"]
)
def test_C1_record_then_fsync_then_rename(case: str) -> None:
    rename = "rename stage/<tx> -> a.pt"
    assert order(case, "setxattr stage/<tx> record", "fsync stage/<tx>", rename)


def test_C2_the_directory_is_synced_after_the_rename() -> None:
    steps = ("rename stage/<tx> -> a.pt", "fsync_dir .")
    assert order("dirsync-new", *steps)
    assert not order("nodirsync-new", *steps)


def test_C3_a_new_folder_is_synced_before_the_publish() -> None:
    assert order(
        "dirsync-new-folder", "fsync_dir .", "rename stage/<tx> -> run/a.pt", "fsync_dir run"
    )


def test_C5_the_replaced_version_is_in_history_before_the_rename() -> None:
    assert order(
        "dirsync-overwrite",
        "link a.pt -> history/<lineage>/1",
        "fsync_dir history/<lineage>",
        "fsync_dir history",
        "rename stage/<tx> -> a.pt",
    )


def test_control_an_order_that_is_not_there_is_seen() -> None:
    assert not order("dirsync-new", "rename stage/<tx> -> a.pt", "fsync stage/<tx>")
