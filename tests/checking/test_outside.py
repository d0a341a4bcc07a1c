"""C5 for files that were changed behind ckptfs: damage is told from saves and edits by evidence."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from harness import contents, store_on
from outside import (
    DAMAGED,
    DAMAGES,
    EITHER,
    FORMATS,
    SERVED,
    added_to,
    expected,
    overwrite,
    saved,
)

from ckptfs.checking import examine
from ckptfs.checking.examine import Condition
from ckptfs.disk import osfs
from ckptfs.errors import Rotten
from ckptfs.modes import Outside
from ckptfs.records import format as fmt
from ckptfs.store import Store

Change = Callable[[Path, bytes], None]
_made: dict[tuple[str, int], bytes] = {}


def content(name: str, seed: int) -> bytes:
    if (name, seed) not in _made:
        _made[name, seed] = FORMATS[name](seed)
    return _made[name, seed]


@pytest.mark.parametrize("how", [*DAMAGES, saved, added_to], ids=lambda how: str(how.__name__))
@pytest.mark.parametrize("name", FORMATS)
def test_what_was_changed_outside_is_judged_by_evidence(
    name: str, how: Change, quick_dir: Path
) -> None:
    store = store_on(quick_dir)
    store.put(name, content(name, 1))
    store.put(name, content(name, 2))
    path = quick_dir / name
    how(path, content(name, 3))
    changed = path.read_bytes()
    served = store.get(name)
    quarantined = contents(quick_dir / ".ckptfs" / "quarantine")
    wanted = expected(name, how)
    if wanted == EITHER:
        wanted = SERVED if served == changed else DAMAGED
    if wanted == SERVED:
        assert (served, quarantined) == (changed, [])
    else:
        assert (served, quarantined) == (content(name, 1), [changed])
    store.close()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("policy", [Outside.ACCEPT, Outside.REFUSE])
def test_whoever_runs_the_mount_may_decide_for_all(
    name: str, policy: Outside, quick_dir: Path
) -> None:
    store = store_on(quick_dir, outside=policy)
    store.put(name, content(name, 1))
    store.put(name, content(name, 2))
    overwrite(quick_dir / name, b"")
    changed = (quick_dir / name).read_bytes()
    assert store.get(name) == (changed if policy is Outside.ACCEPT else content(name, 1))
    store.close()


def condition(store: Store, name: str) -> Condition:
    with osfs.place(store.fs, store.root, name) as (at, file):
        return examine.examine(store.layout, at, file).condition


def test_an_earlier_version_that_somebody_copies_back_is_a_save(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    old, new = content("model.bin", 1), content("model.bin", 2)
    part = old[: len(old) // 4 * 3] + new[len(old) // 4 * 3 :]
    store.put("model.bin", old)
    store.put("model.bin", part)
    saved(quick_dir / "model.bin", old)
    assert condition(store, "model.bin") is Condition.MODIFIED
    assert store.get("model.bin") == old
    store.close()


def test_without_an_earlier_version_damage_is_refused_and_stays(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("model.pt", content("model.pt", 1))
    overwrite(quick_dir / "model.pt", b"")
    damaged = (quick_dir / "model.pt").read_bytes()
    with pytest.raises(Rotten, match="fails its checksum"):
        store.get("model.pt")
    assert (quick_dir / "model.pt").read_bytes() == damaged
    store.close()


def test_a_generation_that_is_not_as_recorded_is_never_brought_back(quick_dir: Path) -> None:
    """Nobody saves or edits in history."""
    store = store_on(quick_dir, keep=2)
    for seed in (1, 2, 3):
        store.put("model.pt", content("model.pt", seed))
    *_, newest = sorted(
        (p for p in (quick_dir / ".ckptfs/history").rglob("*") if p.is_file()),
        key=lambda path: int(path.name),
    )
    saved(newest, content("model.pt", 4))
    overwrite(quick_dir / "model.pt", b"")
    assert store.get("model.pt") == content("model.pt", 1)
    store.close()


def test_control_the_times_say_nothing(quick_dir: Path) -> None:
    """Damage and save differ in their bytes alone here."""
    store = store_on(quick_dir)
    stamps = []
    for name, how in (("a.pt", overwrite), ("b.pt", saved)):
        store.put(name, content("model.pt", 1))
        how(quick_dir / name, content("model.pt", 2))
        os.utime(quick_dir / name, ns=(5, 5))
        stamps.append(condition(store, name))
    assert stamps == [Condition.DAMAGED, Condition.MODIFIED]
    store.close()


@pytest.mark.parametrize("forged", ["x:AAAA", ":AAAA", "0:AAAA", "1:A", "²:AAAA"])
def test_sums_that_somebody_has_forged_tell_nothing(forged: str, quick_dir: Path) -> None:
    """Who owns a file can write its record."""
    store = store_on(quick_dir)
    record = store.put("model.bin", content("model.bin", 1))
    overwrite(quick_dir / "model.bin", b"")
    value = replace(record, sums=forged.encode("ascii", "replace").decode()).to_bytes()
    os.setxattr(quick_dir / "model.bin", fmt.XATTR, value)
    assert condition(store, "model.bin") is Condition.MODIFIED
    store.close()
