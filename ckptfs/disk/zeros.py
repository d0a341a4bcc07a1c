"""Hash states after n zero bytes, so that files which begin with a long hole are hashed quickly.

Kept are 16 lengths between one power of two and the next, from 64 MiB on: a few hundred states of
some KB at most, and what is left to hash is a sixteenth of the hole. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

from ckptfs.disk.locks import leaf

FROM_BYTES = 64 << 20
_BITS = 5  # of a length that is kept, all others are 0


class _Copied(Protocol):
    def copy(self: C) -> C: ...


C = TypeVar("C", bound="_Copied")


class Zeros(Generic[C]):
    def __init__(self) -> None:
        self._states: dict[tuple[Hashable, int], C] = {}
        self._guard = leaf()

    def longest(self, kind: Hashable, most_bytes: int) -> tuple[int, C] | None:
        """The longest that is kept, up to that length, and a copy of the state after it."""
        length = kept_length(most_bytes)
        with self._guard:
            while length >= FROM_BYTES:
                state = self._states.get((kind, length))
                if state is not None:
                    return length, state.copy()
                length = kept_length(length - 1)
        return None

    def keep(self, kind: Hashable, length_bytes: int, state: C) -> None:
        """Does nothing for a length that is not kept."""
        if length_bytes >= FROM_BYTES and kept_length(length_bytes) == length_bytes:
            with self._guard:
                self._states[kind, length_bytes] = state.copy()


def kept_length(most_bytes: int) -> int:
    """The longest length up to that which is kept."""
    shift = max(0, most_bytes.bit_length() - _BITS)
    return most_bytes >> shift << shift


def next_kept(length_bytes: int) -> int:
    """The shortest one beyond that."""
    step = max(FROM_BYTES >> (_BITS - 1), 1 << max(0, length_bytes.bit_length() - _BITS))
    return max(FROM_BYTES, kept_length(length_bytes) + step)
