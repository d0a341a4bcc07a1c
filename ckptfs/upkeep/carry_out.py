"""Findings seen to over a store, by who has it to himself or serves it; what is to be done is
decided in ``checking/remedy.py``."""

from __future__ import annotations

from ckptfs.checking.examine import Finding, Kept
from ckptfs.checking.remedy import Remedy
from ckptfs.history import earlier
from ckptfs.store import Store


def mend(store: Store, finding: Finding, remedy: Remedy) -> str:
    """Durable on return. Says what was done; empty for nothing. Raises CkptfsError, OSError."""
    if remedy is Remedy.SET_ASIDE and finding.kept is not None:
        return store.history.set_aside(*finding.kept)
    if remedy is Remedy.COUNT_ON:
        store.layout.next_generation(finding.highest)
        return "raised"
    if remedy is Remedy.MEND:
        return store.repair(finding.path).repair
    if remedy is Remedy.BRING_BACK:
        return f"brought back generation {store.history.rollback(finding.path)}"
    if remedy is Remedy.TIDY and finding.kept is not None:
        return _tidied(store, finding.kept)
    return "cleared" if remedy is Remedy.RECOVER else ""  # by the recovery that opening it is


def _tidied(store: Store, kept: Kept) -> str:
    """One look through history sees to all that is unreachable."""
    lineage, generation = kept
    if store.history.is_orphan(lineage):
        store.history.tidy()
    if generation in earlier.generations(store.layout, lineage):
        return f"given back to {earlier.noted_path(store.layout, lineage)}"
    return "let go"


def accept(store: Store, finding: Finding, remedy: Remedy, known: dict[str, str]) -> bool:
    """Adopt the file or, where it was deleted outside, let its history go, as ``rm`` through a
    mount does; ``known`` are the lineages by path. Durable on return. Says whether there was
    something to take: not of what is written in place. Raises CkptfsError, OSError."""
    if remedy is Remedy.FORGET:
        return store.history.forget(finding.path, known)
    if remedy is not Remedy.ADOPT or store.in_place(finding.path):
        return False
    store.history.adopt(finding.path)
    return True
