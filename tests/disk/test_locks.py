"""Locks are taken in the order of their ranks, or a test fails."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator

import pytest

from ckptfs.disk import locks
from ckptfs.disk.locks import KeyedLocks, LockOrder, Rank, leaf, ranked


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    said: list[str] = []
    monkeypatch.setattr(locks, "_report", said.append)
    yield said


def test_ranks_go_up() -> None:
    with ranked(Rank.VERSION, "a"), ranked(Rank.PATH, "a"), leaf():
        pass


def test_control_a_lower_rank_inside_a_higher_one_fails_and_is_told(told: list[str]) -> None:
    lower = ranked(Rank.VERSION, "a")
    with leaf(), pytest.raises(LockOrder):
        lower.acquire()
    assert "VERSION a is taken while LEAF" in told[0]
    with lower:
        pass


def test_of_one_rank_the_keys_go_up() -> None:
    first, second = ranked(Rank.VERSION, "a"), ranked(Rank.VERSION, "b")
    with first, second:
        pass
    with second, pytest.raises(LockOrder):
        first.acquire()


def test_what_may_be_taken_again_is() -> None:
    lock, inside = ranked(Rank.VERSION, "a"), ranked(Rank.PATH, 1)
    with lock, inside, lock:
        pass
    once = leaf()
    with once, pytest.raises(LockOrder):
        once.acquire()


def test_who_does_not_wait_may_try_any() -> None:
    with leaf():
        lock = ranked(Rank.VERSION, "a")
        assert lock.acquire(blocking=False)
        lock.release()


def test_a_condition_gives_back_what_it_waits_with() -> None:
    lock = ranked(Rank.TABLES)
    came = threading.Condition(lock)

    def come() -> None:
        with came:
            came.notify_all()

    with came, lock:
        threading.Thread(target=come).start()
        assert came.wait(5)
    assert locks._held() == []


def test_keyed_locks_have_their_rank() -> None:
    paths = KeyedLocks(Rank.PATH)
    with paths.held((1, "a")), paths.held((1, "b")), paths.held((1, "a")):
        pass
    with paths.held((1, "b")), pytest.raises(LockOrder), paths.held((1, "a")):
        pass


def test_a_lock_that_goes_to_another_program_is_one_of_its_rank() -> None:
    again = pickle.loads(pickle.dumps(ranked(Rank.VERSION, "a")))
    assert (again.rank, again.key) == (Rank.VERSION, "a")
