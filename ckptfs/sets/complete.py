"""Is a set complete? Pure: its files, its profile, and the set before it.

A marker is not believed alone: with several ranks it comes before the other ranks' files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ckptfs.sets.profiles import Profile, fits, pattern, series

_SHARD = re.compile(r"(.*-)(\d+)-of-(\d+)(\D*)")


@dataclass(frozen=True)
class Gathered:
    files: Mapping[str, bool]  # by path within the set: whether it is closed by all its writers
    ranks: int | None = None  # of the job, where that is known
    elder: Collection[str] | None = None  # the files of the newest complete set of the series
    marked: bool = False  # by what lies outside of it


def is_complete(profile: Profile | None, gathered: Gathered) -> bool:
    files = gathered.files
    if profile is None or not files or not all(files.values()) or not _has_all_shards(files):
        return False
    if not all(_is_there(expected, gathered) for expected in profile.expects):
        return False
    absent = profile.marker.get("absent")
    if absent is not None and any(fits(absent, file) for file in files):
        return False
    if profile.is_marked_outside:
        return gathered.marked
    inside = profile.marker.get("inside")
    if inside is not None:
        return any(fits(inside, file) for file in files)
    return _is_like_elder(gathered)


def _is_like_elder(gathered: Gathered) -> bool:
    """All names of the set before it, but for their numbers, as many of each."""
    if gathered.elder is None:
        return False
    left = [series(file) for file in gathered.files]
    for file in gathered.elder:
        if series(file) not in left:
            return False
        left.remove(series(file))
    return True


def _is_there(expected: str, gathered: Gathered) -> bool:
    """One, or with ``{rank}`` one of each rank: of all that the job has, or as many as the set
    before had. Where neither is known, of all up to the highest that is there."""
    ranks = _ranks_of(expected, gathered.files)
    if "{rank}" not in expected:
        return any(fits(expected, file) for file in gathered.files)
    count = gathered.ranks or len(_ranks_of(expected, gathered.elder or ()))
    if count == 1 and not ranks:
        return True  # of one rank some frameworks leave the number out
    return ranks >= set(range(count or max(ranks, default=-1) + 1))


def _ranks_of(expected: str, files: Collection[str]) -> set[int]:
    if "{rank}" not in expected:
        return set()
    found = (pattern(expected).fullmatch(file) for file in files)
    return {int(each["rank"]) for each in found if each is not None}


def _has_all_shards(files: Collection[str]) -> bool:
    """Of what counts itself: ``model-00001-of-00004.safetensors``."""
    of: dict[tuple[str, str, int], set[int]] = {}
    for found in map(_SHARD.fullmatch, files):
        if found is not None:
            of.setdefault((found[1], found[4], int(found[3])), set()).add(int(found[2]))
    return all(len(numbers) >= count for (_, _, count), numbers in of.items())
