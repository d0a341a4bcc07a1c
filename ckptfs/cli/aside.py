"""What lies in salvage and quarantine, by kind and id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ckptfs.errors import NoSuchEntry
from ckptfs.records.layout import Layout
from ckptfs.room.expendable import ASIDE, Kind, folder_of


def stories(layout: Layout, kinds: Iterable[Kind]) -> Iterator[dict[str, Any]]:
    for kind in kinds:
        for story in layout.aside.entries(folder_of(layout, kind)):
            yield {"kind": kind.value, **story}


def entry_of(layout: Layout, directory: str, entry: str) -> dict[str, Any]:
    """By its id, the beginning of one, or as ``ckptfs log`` names it. Raises NoSuchEntry."""
    start = entry.removeprefix("salvage/").removeprefix("quarantine/")
    found = [story for story in stories(layout, ASIDE) if start and story["id"].startswith(start)]
    if len(found) != 1:
        which = "several entries begin so" if found else "there is no such entry"
        raise NoSuchEntry(f"{entry}: {which}; see `ckptfs salvage {directory} --quarantine`")
    return found[0]
