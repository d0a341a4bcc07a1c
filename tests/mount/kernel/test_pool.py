"""The pool of the session: nobody's work waits for what somebody else has queued, and what one user
has running never locks it up."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ckptfs.mount.kernel.pool import Flow, Pool

LIMIT_S = 20.0
THREADS, LONG = 8, 2


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(THREADS, LONG)
    yield pool
    pool.shutdown()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What is stuck goes on when the test ends, at the latest."""
    gate = threading.Event()
    yield gate
    gate.set()


class Running:
    """Works that count themselves and wait at a gate."""

    def __init__(self, gate: threading.Event) -> None:
        self.gate, self.count, self.most = gate, 0, 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.count += 1
            self.most = max(self.most, self.count)
            self._changed.notify_all()
        self.gate.wait(LIMIT_S)
        with self._changed:
            self.count -= 1

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= count, LIMIT_S)


def finishes(pool: Pool, flow: Flow) -> bool:
    done = threading.Event()
    pool.submit(flow, done.set)
    return done.wait(LIMIT_S)


@pytest.mark.parametrize("long", [False, True])
def test_work_of_another_user_starts_however_much_one_has(
    pool: Pool, gate: threading.Event, long: bool
) -> None:
    stuck = Running(gate)
    for _ in range(1000):
        pool.submit(Flow(1, long), stuck)
    stuck.wait_for(LONG if long else THREADS // 2)
    for user in range(2, 50):
        assert finishes(pool, Flow(user, long=False))
        assert finishes(pool, Flow(user, long=True))


def test_short_work_starts_beside_any_number_of_long_ones_of_the_same_user(
    pool: Pool, gate: threading.Event
) -> None:
    stuck = Running(gate)
    for _ in range(1000):
        pool.submit(Flow(1, True), stuck)
    stuck.wait_for(LONG)
    for _ in range(50):
        assert finishes(pool, Flow(1, long=False))


def test_a_newcomer_finds_a_thread_while_several_have_more_than_they_get(
    pool: Pool, gate: threading.Event
) -> None:
    stuck = Running(gate)
    for user in range(3):
        for _ in range(100):
            pool.submit(Flow(user, False), stuck)
    stuck.wait_for(THREADS - 2)
    assert finishes(pool, Flow(9, long=False))


def test_no_more_threads_run_than_there_may_be(pool: Pool, gate: threading.Event) -> None:
    stuck = Running(gate)
    for user in range(100):
        pool.submit(Flow(user, False), stuck)
    stuck.wait_for(THREADS)
    gate.set()
    pool.shutdown()
    assert stuck.most == THREADS


def test_users_are_served_in_turn() -> None:
    """One thread, so the order is seen: three works of one user do not go ahead of another's."""
    pool, order, gate = Pool(2, 1), [], threading.Event()
    started = threading.Event()

    def hold() -> None:
        started.set()
        gate.wait(LIMIT_S)

    pool.submit(Flow(0, False), hold)
    assert started.wait(LIMIT_S)
    held = Running(gate)
    pool.submit(Flow(9, False), held)
    held.wait_for(1)  # both threads are taken
    for user in (1, 1, 1, 2, 2, 3):
        pool.submit(Flow(user, True), lambda user=user: order.append(user))
    gate.set()
    pool.shutdown()
    assert sorted(order) == [1, 1, 1, 2, 2, 3]
    assert order.index(3) < 4 and order.index(2) < 3


def test_waiting_for_the_lock_of_another_work_locks_nothing_up(
    pool: Pool, gate: threading.Event
) -> None:
    """As closes of one version do, of which one holds its lock and digests."""
    lock, passed = threading.Lock(), []
    holding = Running(gate)

    def hold() -> None:
        with lock:
            holding()

    def follow() -> None:
        with lock:
            passed.append(1)

    pool.submit(Flow(1, True), hold)
    holding.wait_for(1)
    for number in range(500):
        pool.submit(Flow(number % 3, bool(number % 2)), follow)
    gate.set()
    pool.shutdown()
    assert len(passed) == 500


def test_a_defect_ends_no_thread(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3 * THREADS):
        pool.submit(Flow(1, False), lambda: 1 / 0)
    assert finishes(pool, Flow(1, long=False))
    assert "by a defect" in caplog.text


def test_what_was_submitted_is_done_when_the_pool_has_ended() -> None:
    pool, done = Pool(THREADS, LONG), []
    for number in range(300):
        pool.submit(Flow(number % 5, number % 2 == 0), lambda number=number: done.append(number))
    pool.shutdown()
    assert sorted(done) == list(range(300))


# --- no thread to be had -------------------------------------------------------------------------


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_what_is_given_is_done_by_the_threads_that_there_are(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was lost, and the pool took the thread that had not started for one of its own."""
    pool = Pool(THREADS, LONG)
    with monkeypatch.context() as limited:
        refuse_threads(limited)
        stuck = Running(gate)
        pool.submit(Flow(1, False), stuck)
        stuck.wait_for(1)
        waiting = [threading.Event() for _ in range(20)]
        for done in waiting:
            pool.submit(Flow(2, False), done.set)
        gate.set()
        for done in waiting:
            assert done.wait(LIMIT_S)
    assert finishes(pool, Flow(1, False))
    pool.shutdown()


def test_threads_are_tried_for_again(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, stuck = Pool(THREADS, LONG), Running(gate)
    with monkeypatch.context() as limited:
        refuse_threads(limited)
        for user in range(4):
            pool.submit(Flow(user, False), stuck)
        stuck.wait_for(1)
    pool.submit(Flow(5, False), stuck)
    stuck.wait_for(5)
    gate.set()
    pool.shutdown()
