"""A deletion: its directory is to be synced before its history may be gone."""

from __future__ import annotations

import pytest
from groups import opened
from harness import NEW, OLD, lineage

from ckptfs.tools.harness.crashfs import CrashFs


def test_C3_a_deletion_is_noted_while_its_history_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(CrashFs())
    for content in (OLD, NEW):
        store.put("a.pt", content)
    of, note, kept = lineage(store, "a.pt"), store.order.note_changed_dir, []

    def noting(at: int) -> None:
        kept.append(of in store.fs.listdir(store.layout.history))
        note(at)

    monkeypatch.setattr(store.order, "note_changed_dir", noting)
    store.unlink("a.pt")
    assert kept == [True]
    assert of not in store.fs.listdir(store.layout.history)
