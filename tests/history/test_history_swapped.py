"""Directories and files of history that somebody has swapped: no file gets another one's bytes, and
verify says so. Directories are put back at the next mount; their notes name their lineage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import NEW, NEWER, OLD, lineage, store_on
from mounts import ckptfs

from ckptfs.errors import NoSuchGeneration
from ckptfs.store import Store


def two_files(directory: Path) -> tuple[Store, Path, Path]:
    """Each with one earlier version; the store, and the directories of history of the two."""
    store = store_on(directory)
    for path, first in (("a.bin", OLD), ("b.bin", NEW)):
        store.put(path, first)
        store.put(path, NEWER)
    folders = [directory / ".ckptfs" / "history" / lineage(store, p) for p in ("a.bin", "b.bin")]
    return store, folders[0], folders[1]


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    os.rename(one, aside)
    os.rename(other, one)
    os.rename(aside, other)


def generation_in(folder: Path) -> Path:
    return next(iter(folder.iterdir()))


@pytest.mark.parametrize("what", ["directories", "files"])
def test_what_was_swapped_is_not_brought_back(quick_dir: Path, what: str) -> None:
    store, one, other = two_files(quick_dir)
    if what == "directories":
        swap(one, other)
    else:
        swap(generation_in(one), generation_in(other))
    for path in ("a.bin", "b.bin"):
        with pytest.raises(NoSuchGeneration):
            store.history.rollback(path)
        assert store.get(path) == NEWER
    checked = ckptfs("verify", quick_dir)
    assert checked.returncode != 0
    assert checked.stdout.count("misplaced  ") == 2, checked.stdout
    store.close()


def test_control_what_was_not_swapped_is(quick_dir: Path) -> None:
    store, _, _ = two_files(quick_dir)
    assert ckptfs("verify", quick_dir).returncode == 0
    for path, first in (("a.bin", OLD), ("b.bin", NEW)):
        store.history.rollback(path)
        assert store.get(path) == first
    store.close()


@pytest.mark.parametrize("renamed", [False, True])
def test_directories_are_put_back_at_the_next_mount(quick_dir: Path, renamed: bool) -> None:
    store, one, other = two_files(quick_dir)
    store.close()
    if renamed:
        os.rename(one, one.with_name("0123456789abcdef"))
    else:
        swap(one, other)
    store = store_on(quick_dir)
    store.recover()
    for path, first in (("a.bin", OLD), ("b.bin", NEW)):
        store.history.rollback(path)
        assert store.get(path) == first
    store.close()


def test_a_copy_of_a_directory_takes_no_place(quick_dir: Path) -> None:
    store, one, _ = two_files(quick_dir)
    store.close()
    os.system(f"cp -a {one} {one.with_name('0123456789abcdef')}")
    store = store_on(quick_dir)
    store.recover()
    store.history.rollback("a.bin")
    assert store.get("a.bin") == OLD
    store.close()
