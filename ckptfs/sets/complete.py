"""Is a set complete? Pure: what was seen of it in, yes or no out.

Markers lie where there are several ranks: Hugging Face's Trainer writes ``trainer_state.json``
while other ranks still save their random states, DeepSpeed writes ``latest`` ahead of its last
barrier. So a marker is believed only where all files are closed and all that its profile expects is
there, of each rank. Where nothing marks a set, it is complete once it has what the one before it
had. When in doubt the answer is no: what is not complete by itself is so by its end
(:mod:`ckptfs.sets.life`).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ckptfs.sets import names
from ckptfs.sets.profiles import Marker, MarkerKind, Profile

_COUNTED = re.compile(r"(\d+)[-_]of[-_](\d+)")  # model-00001-of-00004.safetensors


@dataclass(frozen=True)
class Gathered:
    """What was seen of a set."""

    files: Mapping[str, bool]  # relative paths; closed by all who wrote them
    ranks: int | None = None  # WORLD_SIZE of the writers, if known
    elder: frozenset[str] | None = None  # the paths of the one before it in the series
    # Its profile's marker outside of the directory came: the file or symlink that names this set,
    # the rename. One whose absence tells was there, and is gone.
    marked: bool = False


def is_complete(profile: Profile | None, gathered: Gathered) -> bool:
    """``profile`` as :func:`~ckptfs.sets.profiles.recognised` tells it of the files by now."""
    files = gathered.files
    if not files or not all(files.values()) or not _has_all_counted(files):
        return False
    if profile is None:
        return _has_what_elder_had((), gathered)
    if not profile.markers:
        return _has_members(profile, gathered) and _has_what_elder_had(_ranked(profile), gathered)
    return any(_is_marked(profile, one, gathered) for one in profile.markers)


def is_told(profile: Profile | None, elder: Iterable[str] | None) -> bool:
    """Whether such a set tells by itself when it is complete."""
    markers = profile.markers if profile is not None else ()
    return bool(elder) or any(one.kind is not MarkerKind.ALL_MEMBERS for one in markers)


def _is_marked(profile: Profile, marker: Marker, gathered: Gathered) -> bool:
    if marker.kind is MarkerKind.ALL_MEMBERS and gathered.elder:
        return _has_what_elder_had(_ranked(profile), gathered)
    return _says_so(marker, gathered) and _has_members(profile, gathered)


def _says_so(marker: Marker, gathered: Gathered) -> bool:
    if marker.is_outside:
        return gathered.marked
    if marker.kind is MarkerKind.EACH_RANK:
        return _is_of_each_rank(marker.path, gathered, or_none=False)
    if marker.kind is MarkerKind.ALL_MEMBERS:
        return True
    return _is_there(marker.path, gathered.files) is (marker.kind is MarkerKind.INSIDE)


def _has_members(profile: Profile, gathered: Gathered) -> bool:
    expected = [(one, False) for one in profile.members] + [(one, True) for one in profile.optional]
    return all(_is_of_each_rank(one, gathered, or_none=optional) for one, optional in expected)


def _is_there(pattern: str, paths: Iterable[str]) -> bool:
    return any(map(names.of_files(pattern).fullmatch, paths))


# --- by rank -------------------------------------------------------------------------------------


def _is_of_each_rank(pattern: str, gathered: Gathered, *, or_none: bool) -> bool:
    """Without ``{rank}`` in the pattern: there is one."""
    found = _ranks(pattern, gathered.files)
    if not found or "{rank}" not in pattern:
        return bool(found) or or_none
    known = gathered.ranks or _count(_ranks(pattern, gathered.elder or ()))
    return len(found) >= max(known, _count(found))


def _ranks(pattern: str, paths: Iterable[str]) -> set[tuple[int, ...]]:
    """Of what fits; of several numbers, as data and model parallel ranks, each combination."""
    matches = filter(None, map(names.of_files(pattern).fullmatch, paths))
    return {tuple(int(rank) for rank in match.groups() if rank) for match in matches}


def _count(found: set[tuple[int, ...]]) -> int:
    """How many there are from 0 up to these."""
    return math.prod(max(column) + 1 for column in zip(*found, strict=True)) if found else 0


def _ranked(profile: Profile) -> tuple[str, ...]:
    return tuple(one for one in (*profile.members, *profile.optional) if "{rank}" in one)


# --- by count, and by what was there before ------------------------------------------------------


def _has_all_counted(paths: Iterable[str]) -> bool:
    """Of files that say how many they are, all are there."""
    found = defaultdict(set)
    for path in paths:
        for match in _COUNTED.finditer(path):
            rest = names.without_numbers(f"{path[: match.start()]}/{path[match.end() :]}")
            found[rest, int(match[2])].add(int(match[1]))
    return all(len(these) >= count for (_, count), these in found.items())


def _has_what_elder_had(ranked: Iterable[str], gathered: Gathered) -> bool:
    """As many of each name, but for its numbers; of files that are ``ranked`` or say how many they
    are, any, since how many these are is known better."""
    if not gathered.elder:
        return False
    there = Counter(map(names.without_numbers, gathered.files))
    before = Counter(map(names.without_numbers, gathered.elder))
    counted = {names.without_numbers(path) for path in gathered.elder if _is_counted(path, ranked)}
    return all(there[name] >= (1 if name in counted else n) for name, n in before.items())


def _is_counted(path: str, ranked: Iterable[str]) -> bool:
    return bool(_COUNTED.search(path)) or any(_is_there(one, (path,)) for one in ranked)
