"""History that no path leads to: ckptfs kept one version a step of a file that had a hard link, and
a crash or a move outside can cut history off. Such is found, given back where a file is of it, and
else let go."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import mounts
import pytest
from harness import lineage, store_on
from verdicts import ckptfs, conditions

from ckptfs.checking import orphans
from ckptfs.disk import osfs
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.store import Store
from ckptfs.versions import names


def leak(store: Store, path: str) -> str:
    """What ckptfs did with each version of a file that had another name."""
    of = fmt.new_lineage()
    record = store.layout.next_generation()
    with osfs.place(store.fs, store.root, path) as (at, name):
        told = lineage(store, path)
        folder, _ = earlier.link(store.layout, at, name, of, record, path, told)
        store.fs.close(folder)
    return of


def leaked(directory: Path, steps: int = 5) -> Store:
    """step.pt has one generation, and latest.pt is its hard link; ``steps`` more are cut off."""
    store = store_on(directory)
    for step in range(steps):
        store.put("step.pt", b"step %d" % step)
        leak(store, "step.pt")
    store.put("step.pt", b"the last step")
    os.link(directory / "step.pt", directory / "latest.pt")
    return store


def noted(store: Store, of: str) -> tuple[str, ...]:
    note = earlier.note(store.layout, of)
    return note.paths if note is not None else ()


def versions(store: Store) -> int:
    kept = earlier.lineages(store.layout)
    return sum(len(earlier.generations(store.layout, each)) for each in kept)


def test_what_was_leaked_is_let_go_and_nothing_else(quick_dir: Path) -> None:
    store = leaked(quick_dir)
    assert versions(store) == 6
    done = store.history.tidy()
    assert (done.let_go, done.given_back, versions(store)) == (5, [], 1)
    assert store.counts["let go"] == 1
    assert store.history.rollback("step.pt") and store.get("step.pt") == b"step 4"
    assert store.get("latest.pt") == b"the last step"
    assert store.history.tidy() == orphans.Outcome()
    store.close()


def test_what_a_file_carries_under_another_name_is_given_back_to_all_its_names(
    quick_dir: Path,
) -> None:
    """Its note has been taken for that of the path that it was made from."""
    store = leaked(quick_dir)
    (quick_dir / "d").mkdir()
    store.put("d/best.pt", b"good")
    store.put("d/best.pt", b"best")
    os.link(quick_dir / "d/best.pt", quick_dir / "d/same.pt")
    of = lineage(store, "d/best.pt")
    earlier.set_note(store.layout, of, fmt.HistoryNote(("step.pt",)))
    assert sorted(store.history.tidy().given_back) == ["d/best.pt", "d/same.pt"]
    assert noted(store, of) == ("d/best.pt", "d/same.pt")
    assert store.history.rollback("d/same.pt") and store.get("d/same.pt") == b"good"
    store.close()


def test_what_is_renamed_while_the_tree_is_walked_is_not_missed(
    quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what, new in (("z/best.pt", "a/best.pt"), ("z", "0")):
        directory = quick_dir / new[0]
        directory.mkdir()
        store = leaked(directory)
        for folder in "az":
            (directory / folder).mkdir()
        store.put("z/best.pt", b"good")
        store.put("z/best.pt", b"best")
        of = lineage(store, "z/best.pt")
        earlier.set_note(store.layout, of, fmt.HistoryNote())
        walk = orphans.walk

        def walked(*given: object, store=store, walk=walk, what=what, new=new):  # type: ignore[no-untyped-def]
            for path, status in walk(*given):
                if path == "step.pt":  # past a/, not at z/ yet
                    store.rename(what, new)
                yield path, status

        with monkeypatch.context() as patch:
            patch.setattr(orphans, "walk", walked)
            store.history.tidy()
        path = new if "/" in new else f"{new}/best.pt"
        assert earlier.generations(store.layout, of)
        assert noted(store, of) == (path,)
        store.close()


def test_of_what_was_deleted_outside_one_history_a_path_stays(quick_dir: Path) -> None:
    store = leaked(quick_dir)
    for name in ("step.pt", "latest.pt"):
        (quick_dir / name).unlink()
    assert store.history.tidy().let_go == 5
    assert store.history.rollback("step.pt") and store.get("step.pt") == b"step 4"
    store.close()


def test_what_was_renamed_outside_keeps_its_history(quick_dir: Path) -> None:
    store = leaked(quick_dir)
    (quick_dir / "run").mkdir()
    store.put("run/a.pt", b"a1")
    store.put("run/a.pt", b"a2")
    (quick_dir / "run").rename(quick_dir / "run1")
    assert store.history.tidy().let_go == 5
    assert store.history.rollback("run1/a.pt") and store.get("run1/a.pt") == b"a1"
    store.close()


def test_a_deletion_that_a_crash_cut_short_is_finished_or_never_was(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    for path in ("a.pt", "b.pt"):
        store.put(path, b"one")
        store.put(path, b"two")
        of = lineage(store, path)
        earlier.set_note(store.layout, of, fmt.HistoryNote((path,), leaving=True))
    (quick_dir / "a.pt").unlink()
    assert store.history.tidy().let_go == 1
    assert earlier.lineages_by_path(store.layout) == {"b.pt": lineage(store, "b.pt")}
    store.close()


def kept_of(store: Store, path: str) -> list[bytes]:
    with osfs.place(store.fs, store.root, path) as (at, name):
        folder = store.core.lineages.readable(at, name, path)
    kept = Path(f"/proc/self/fd/{store.layout.history}/{folder}")
    return [version.read_bytes() for version in kept.iterdir()]


def test_a_rename_that_a_crash_cut_short_leaves_both_their_history(
    quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_on(quick_dir)
    for path in ("a.pt", "b.pt"):
        store.put(path, path.encode() + b" before")
        store.put(path, path.encode())

    def crash(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(names, "_rename", crash)
        store.rename("a.pt", "b.pt")
    store.close()
    store = store_on(quick_dir)
    assert store.history.tidy().let_go == 0
    for path in ("a.pt", "b.pt"):
        assert path.encode() + b" before" in kept_of(store, path)
    store.close()


def test_marks_of_what_is_gone_are_cleared(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    earlier.pin(store.layout, "0123456789abcdef")
    store.close()
    store = store_on(quick_dir)
    store.history.tidy()
    assert os.listdir(quick_dir / ".ckptfs/history") == []
    store.close()


# --- by the commands -----------------------------------------------------------------------------


def unreachable(directory: Path) -> int:
    found = list(conditions(directory).values())
    assert set(found) <= {"unreachable"}
    return len(found)


def test_verify_reports_it_and_repairs_it(tmp_path: Path) -> None:
    leaked(tmp_path).close()
    assert unreachable(tmp_path) == 5
    told = ckptfs("verify", tmp_path, code=4)
    assert "no path leads to it; it was kept for step.pt" in told and "verify --repair" in told
    assert ckptfs("verify", "--repair", tmp_path, code=1).count("[let go]") == 5
    assert "1 earlier versions: 1 ok" in ckptfs("verify", tmp_path, code=0)


def test_verify_of_a_path_reports_only_what_was_kept_for_it(tmp_path: Path) -> None:
    leaked(tmp_path).close()
    (tmp_path / "other.pt").write_bytes(b"other")
    assert "unreachable" not in ckptfs("verify", tmp_path, "other.pt", code=0)
    assert "5 unreachable" in ckptfs("verify", tmp_path, "step.pt", code=4)


def test_of_a_path_that_was_asked_for_what_was_renamed_elsewhere_is_not_unreachable(
    tmp_path: Path,
) -> None:
    store = store_on(tmp_path)
    for content in (b"one", b"two"):
        store.put("a.pt", content)
    store.close()
    (tmp_path / "a.pt").rename(tmp_path / "b.pt")
    (tmp_path / "a.pt").write_bytes(b"new")
    assert "unreachable" not in ckptfs("verify", tmp_path, "a.pt")


def test_what_a_crash_in_a_deletion_left_is_no_damage(tmp_path: Path) -> None:
    store = store_on(tmp_path)
    for content in (b"one", b"two"):
        store.put("a.pt", content)
    of = lineage(store, "a.pt")
    earlier.set_note(store.layout, of, fmt.HistoryNote(("a.pt",), leaving=True))
    store.close()
    assert conditions(tmp_path) == {}, "it was not deleted yet"
    (tmp_path / "a.pt").unlink()
    assert conditions(tmp_path) == {f".ckptfs/history/{of}/1": "leftover"}
    ckptfs("verify", tmp_path, code=0)
    assert "[let go]" in ckptfs("verify", "--repair", tmp_path, code=1)
    assert conditions(tmp_path) == {}


def test_a_mount_lets_it_go(disk_dir: Path) -> None:
    leaked(disk_dir).close()
    with mounts.served(disk_dir) as served:
        served.wait_until(lambda: served.events("let go"))
        assert unreachable(disk_dir) == 0
        assert (disk_dir / "latest.pt").read_bytes() == b"the last step"
        ckptfs("rollback", disk_dir, "step.pt", code=0)
        assert (disk_dir / "step.pt").read_bytes() == b"step 4"


def test_verify_beside_a_mount_reports_it_and_has_it_repaired(disk_dir: Path) -> None:
    store = leaked(disk_dir)
    store.history.tidy()
    with mounts.served(disk_dir):
        leak(store, "step.pt")
        leak(store, "step.pt")
        store.close()
        assert unreachable(disk_dir) == 2
        ckptfs("verify", "--repair", disk_dir, code=1)
        assert unreachable(disk_dir) == 0


def test_all_of_history_goes_with_all_names(disk_dir: Path) -> None:
    """As checkpoint managers do it: a temporary file, renamed to last, linked to step and best."""
    with mounts.served(disk_dir) as served:
        for step in range(12):
            (disk_dir / "tmp.pt").write_bytes(b"step %d" % step * 1000)
            os.replace(disk_dir / "tmp.pt", disk_dir / "last.pt")
            os.link(disk_dir / "last.pt", disk_dir / f"checkpoint-{step}.pt")
            (disk_dir / "best.pt").unlink(missing_ok=True)
            os.link(disk_dir / "last.pt", disk_dir / "best.pt")
            (disk_dir / f"checkpoint-{step - 3}.pt").unlink(missing_ok=True)
            os.link(disk_dir / "last.pt", disk_dir / "new")
            os.rename(disk_dir / "new", disk_dir / "latest.pt")
        assert conditions(disk_dir) == {}
        files = [path for path in (served.below / ".ckptfs/history").rglob("*") if path.is_file()]
        assert len(files) == 2  # of last.pt and latest.pt
        for path in disk_dir.iterdir():
            path.unlink()
        assert list((served.below / ".ckptfs/history").iterdir()) == []
        assert "nothing" in ckptfs("verify", disk_dir, code=0)


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize(
    "put",
    [lambda p: p.symlink_to("elsewhere"), lambda p: p.symlink_to("other"), os.mkfifo],
)
def test_what_something_else_than_a_file_replaced_is_brought_back(
    put: Callable[[Path], object], served: bool, disk_dir: Path
) -> None:
    store = store_on(disk_dir)
    store.put("a.pt", b"one")
    store.put("other", b"other")
    put(disk_dir / "new")
    store.rename("new", "a.pt")
    store.close()
    assert conditions(disk_dir) == {}
    mount = mounts.served(disk_dir) if served else contextlib.nullcontext()
    with mount:
        assert "something else than a file" in ckptfs("log", disk_dir, "a.pt", code=0)
        ckptfs("rollback", disk_dir, "a.pt", code=0)
        assert (disk_dir / "a.pt").read_bytes() == b"one"
        assert conditions(disk_dir) == {}


def test_what_replaces_a_file_by_a_name_without_a_record_is_not_kept_for_ever(
    disk_dir: Path,
) -> None:
    """git writes index.lock in place and renames it onto index, once a commit."""
    with mounts.served(disk_dir) as served:
        for number in range(5):
            (disk_dir / "index.lock").write_bytes(b"%d" % number)
            (disk_dir / "index.lock").rename(disk_dir / "index")
        assert list((served.below / ".ckptfs/history").iterdir()) == []


def test_a_copy_adopted_in_place_of_a_lost_record_lets_the_old_history_go(tmp_path: Path) -> None:
    store = store_on(tmp_path)
    store.put("a.pt", b"one")
    store.put("a.pt", b"two")
    store.close()
    os.removexattr(tmp_path / "a.pt", fmt.XATTR)
    assert conditions(tmp_path) == {"a.pt": "record-missing"}
    ckptfs("adopt", tmp_path, code=0)
    assert conditions(tmp_path) == {}
