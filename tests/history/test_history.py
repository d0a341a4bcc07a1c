"""Generations: which are kept, that they are the right ones, and that they go when they should."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from harness import examine, lineage, rot, store_on
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.errors import NoSuchGeneration, Rotten
from ckptfs.history import earlier
from ckptfs.store import Store
from ckptfs.versions.order import Place
from ckptfs.versions.standing import keep_replaced, replaced_by


@given(st.sets(st.integers(0, 1000)), st.integers(0, 8))
def test_surplus_leaves_exactly_the_newest(generations: set[int], keep: int) -> None:
    going = earlier.surplus(generations, keep)
    staying = generations - set(going)
    assert going == sorted(going)
    assert len(staying) == min(keep, len(generations))
    assert all(gone < kept for gone in going for kept in staying)


def versions(directory: Path, of: str) -> list[bytes]:
    folder = directory / ".ckptfs" / "history" / of
    if not folder.is_dir():
        return []
    return [path.read_bytes() for path in sorted(folder.iterdir(), key=lambda p: int(p.name))]


def put_all(store: Store, path: str, *contents: bytes) -> str:
    for content in contents:
        store.put(path, content)
    return lineage(store, path)


@pytest.mark.parametrize("keep", [0, 1, 3, 10])
def test_C5_the_newest_replaced_versions_are_kept(keep: int, quick_dir: Path) -> None:
    store = store_on(quick_dir, keep=keep)
    all_of_them = [f"version {number}".encode() for number in range(6)]
    of = put_all(store, "a.pt", *all_of_them)
    replaced = all_of_them[:-1]
    assert versions(quick_dir, of) == replaced[max(0, len(replaced) - keep) :]
    assert store.get("a.pt") == all_of_them[-1]
    store.close()


def test_keeping_costs_no_data(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("a.pt", b"one")
    inode = (quick_dir / "a.pt").stat().st_ino
    of = put_all(store, "a.pt", b"two")
    (kept,) = (quick_dir / ".ckptfs" / "history" / of).iterdir()
    assert kept.stat().st_ino == inode
    store.close()


def test_history_follows_the_file_through_renames(quick_dir: Path) -> None:
    store = store_on(quick_dir, keep=3)
    of = put_all(store, "a.pt", b"one", b"two")
    store.rename("a.pt", "b.pt")
    assert put_all(store, "b.pt", b"three") == of
    assert versions(quick_dir, of) == [b"one", b"two"]
    # A folder of the same name does not disturb it: history is not keyed by path.
    (quick_dir / "a.pt").mkdir()
    assert put_all(store, "a.pt/1", b"other") != of
    store.close()


def test_C5_a_rename_onto_keeps_what_stood_there_and_takes_over_its_history(
    quick_dir: Path,
) -> None:
    store = store_on(quick_dir, keep=3)
    of = put_all(store, "a.pt", b"one", b"two")
    left = put_all(store, "a.tmp", b"draft", b"three")
    store.rename("a.tmp", "a.pt")
    assert lineage(store, "a.pt") == of
    assert versions(quick_dir, of) == [b"one", b"two"]
    assert versions(quick_dir, left) == []
    store.close()


def test_C5_an_older_file_renamed_onto_a_newer_one_counts_as_the_newest(quick_dir: Path) -> None:
    """Its own number was lower than those in the history it took over: rollback passed them by."""
    store = store_on(quick_dir, keep=2)
    store.put("best.pt", b"best")
    of = put_all(store, "last.pt", b"one", b"two")
    store.rename("best.pt", "last.pt")
    newest = examine(store, "last.pt").record
    assert newest is not None
    assert all(newest.generation > number for number in earlier.generations(store.layout, of))
    put_all(store, "last.pt", b"three")
    assert versions(quick_dir, of) == [b"two", b"best"]
    store.close()


def test_C5_an_older_version_that_came_back_counts_as_the_newest_once_it_is_replaced(
    quick_dir: Path,
) -> None:
    """By its number it was the oldest, and the first to go."""
    store = store_on(quick_dir, keep=2)
    of = put_all(store, "a.pt", b"one", b"two", b"three")
    rot(quick_dir / "a.pt")
    rot(quick_dir / ".ckptfs" / "history" / of / "2")
    assert store.get("a.pt") == b"one"
    store.close()
    store = store_on(quick_dir, keep=1)
    assert put_all(store, "a.pt", b"four") == of
    assert versions(quick_dir, of) == [b"one"]
    store.close()


def test_C5_two_hard_links_do_not_share_a_history(quick_dir: Path) -> None:
    """A rotten file was rolled back to a version of the other name."""
    store = store_on(quick_dir, keep=5)
    store.put("a.pt", b"common")
    os.link(quick_dir / "a.pt", quick_dir / "b.pt")
    mine = put_all(store, "a.pt", b"a1", b"a2")
    others = put_all(store, "b.pt", b"b1", b"b2")
    assert mine != others
    assert versions(quick_dir, mine) == [b"common", b"a1"]
    assert versions(quick_dir, others) == [b"common", b"b1"]
    store.close()


def test_a_deleted_file_takes_its_history_along(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    of = put_all(store, "a.pt", b"one", b"two")
    store.unlink("a.pt")
    assert not (quick_dir / ".ckptfs" / "history" / of).exists()
    store.close()


def test_a_deleted_file_takes_its_history_along_after_a_commit_that_failed(
    quick_dir: Path,
) -> None:
    """History then links to the very version that is current: that is no other name of it."""
    store = store_on(quick_dir)
    of = put_all(store, "a.pt", b"one")
    place = Place(store.root, "a.pt", "a.pt")
    replaced = replaced_by(store.core, place)
    keep_replaced(store.core, replaced, place)
    assert versions(quick_dir, of) == [b"one"]
    assert put_all(store, "a.pt", b"two") == of
    keep_replaced(store.core, replaced_by(store.core, place), place)
    store.unlink("a.pt")
    assert not (quick_dir / ".ckptfs" / "history" / of).exists()
    store.close()


def test_a_deleted_name_leaves_the_history_to_the_other_hard_link(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    of = put_all(store, "a.pt", b"one", b"two")
    os.link(quick_dir / "a.pt", quick_dir / "b.pt")
    store.unlink("b.pt")
    assert versions(quick_dir, of) == [b"one"]
    store.close()


def test_a_file_from_before_ckptfs_is_kept_too(quick_dir: Path) -> None:
    (quick_dir / "a.pt").write_bytes(b"mine")
    store = store_on(quick_dir)
    assert versions(quick_dir, put_all(store, "a.pt", b"new")) == [b"mine"]
    store.close()


def test_generations_passes_over_foreign_names(quick_dir: Path) -> None:
    store = store_on(quick_dir, keep=3)
    of = put_all(store, "a.pt", b"one", b"two", b"three")
    (quick_dir / ".ckptfs" / "history" / of / "note.txt").write_text("mine")
    assert earlier.generations(store.layout, of) == [2, 1]
    assert earlier.generations(store.layout, "no such lineage") == []
    store.close()


# --- copies that were made outside, with the record ----------------------------------------------


def copied_with_its_record(directory: Path, source: str, target: str) -> None:
    subprocess.run(["cp", "-a", directory / source, directory / target], check=True, timeout=30)


def test_a_copy_made_outside_does_not_mix_its_history_with_that_of_its_original(
    quick_dir: Path,
) -> None:
    store = store_on(quick_dir, keep=2)
    of = put_all(store, "a.pt", b"a1", b"a2")
    copied_with_its_record(quick_dir, "a.pt", "b.pt")
    assert put_all(store, "b.pt", b"b3", b"b4") != of
    assert put_all(store, "a.pt", b"a5") == of
    assert versions(quick_dir, of) == [b"a1", b"a2"]
    rot(quick_dir / "a.pt")
    rot(quick_dir / "b.pt")
    assert (store.get("a.pt"), store.get("b.pt")) == (b"a2", b"b3")
    store.close()


def test_deleting_a_copy_leaves_its_original_the_history(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    of = put_all(store, "a.pt", b"a1", b"a2")
    copied_with_its_record(quick_dir, "a.pt", "b.pt")
    store.unlink("b.pt")
    assert versions(quick_dir, of) == [b"a1"]
    store.unlink("a.pt")
    assert versions(quick_dir, of) == []
    store.close()


def test_history_knows_a_file_by_its_new_name(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    of = put_all(store, "a.pt", b"a1", b"a2")
    assert earlier.lineages_by_path(store.layout) == {"a.pt": of}
    store.rename("a.pt", "b.pt")
    assert earlier.lineages_by_path(store.layout) == {"b.pt": of}
    (quick_dir / "b.pt").rename(quick_dir / "c.pt")  # outside: it hears of it at the next commit
    put_all(store, "c.pt", b"a3")
    assert earlier.lineages_by_path(store.layout) == {"c.pt": of}
    store.close()


def test_a_copy_cannot_be_rolled_back_to_its_originals_versions(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    of = put_all(store, "a.pt", b"a1", b"a2")
    copied_with_its_record(quick_dir, "a.pt", "b.pt")
    with pytest.raises(NoSuchGeneration):
        store.history.rollback("b.pt")
    store.rename("b.pt", "c.pt")
    assert earlier.lineages_by_path(store.layout) == {"a.pt": of}
    rot(quick_dir / "c.pt")
    with pytest.raises(Rotten):
        store.get("c.pt")
    assert versions(quick_dir, of) == [b"a1"]
    store.close()


def test_a_note_that_names_a_place_outside_makes_no_directory_there(
    quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory's owner can write notes when it is not mounted; a rollback acts as root."""
    served = quick_dir / "served"
    served.mkdir()
    store = store_on(served)
    for data in (b"old", b"new"):
        store.put("a.pt", data)
    known = {"../outside/a.pt": lineage(store, "a.pt")}
    monkeypatch.setattr(earlier, "lineages_by_path", lambda _: known)
    with pytest.raises(OSError, match="not a path within"):
        store.history.rollback("../outside/a.pt")
    assert not (quick_dir / "outside").exists()


def test_a_renamed_directory_takes_its_history_along(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    (quick_dir / "run").mkdir()
    of = put_all(store, "run/a.pt", b"a1", b"a2")
    store.rename("run", "run1")
    assert earlier.lineages_by_path(store.layout) == {"run1/a.pt": of}
    store.close()


def test_exchanged_files_take_their_histories_along(disk_dir: Path) -> None:
    store = store_on(disk_dir)
    of, other = put_all(store, "a.pt", b"a1", b"a2"), put_all(store, "b.pt", b"b1", b"b2")
    store.exchange("a.pt", "b.pt")
    assert earlier.lineages_by_path(store.layout) == {"b.pt": of, "a.pt": other}
    store.close()


def test_a_file_committed_while_a_rollback_looked_is_not_overwritten(
    quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_on(quick_dir)
    put_all(store, "a.pt", b"a1", b"a2")
    (quick_dir / "a.pt").unlink()
    honest = store.guard.restore

    def late(*given: object) -> int | None:
        monkeypatch.setattr(store.guard, "restore", honest)
        store.put("a.pt", b"new")
        return honest(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(store.guard, "restore", late)
    with pytest.raises(NoSuchGeneration):  # the new file has a history of its own
        store.history.rollback("a.pt")
    assert store.get("a.pt") == b"new"
    store.close()


def test_a_rollback_shows_nobody_more_than_the_version_did(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("a.pt", b"secret")
    (quick_dir / "a.pt").chmod(0o600)
    store.put("a.pt", b"open")
    (quick_dir / "a.pt").chmod(0o666)
    store.history.rollback("a.pt")
    assert (quick_dir / "a.pt").stat().st_mode & 0o777 == 0o600
    store.close()


@pytest.mark.parametrize("path", ["../a", "a/../../b", ".", "..", "", "a/."])
def test_no_path_leads_out(path: str, quick_dir: Path) -> None:
    store = store_on(quick_dir)
    with pytest.raises(OSError, match="not a path"):
        store.history.adopt(path)
    store.close()


def test_a_file_without_a_record_that_replaces_another_misses_none(quick_dir: Path) -> None:
    """git writes index.lock in place and renames it onto index."""
    store = store_on(quick_dir)
    for content in (b"one", b"two"):
        (quick_dir / "index.lock").write_bytes(content)
        store.rename("index.lock", "index")
    assert earlier.lineages_by_path(store.layout) == {}
    store.close()
