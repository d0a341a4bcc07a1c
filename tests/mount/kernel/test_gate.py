"""The gate that requests wait at: what its closing costs, and that nobody is late by it."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ckptfs.mount.kernel import again as again_module
from ckptfs.mount.kernel import wire
from ckptfs.mount.kernel.again import Again, _Sent
from ckptfs.mount.kernel.gate import Gate
from ckptfs.mount.kernel.wire import Op
from ckptfs.mount.view.model import Caller

CLOSED_S = 0.1


def test_a_mount_that_answers_by_itself_is_not_asked_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a directory does that is not mounted any more, while a reader waits all the same."""
    asked: list[str] = []
    monkeypatch.setattr(os, "statvfs", asked.append)
    with Gate().closed("/", CLOSED_S) as stopped:
        assert not stopped
    assert 0 < len(asked) < 200


def test_readers_stop_at_the_gate_and_go_on() -> None:
    gate, ended, asked = Gate(2), threading.Event(), threading.Semaphore(0)

    def read() -> None:
        while not ended.is_set():
            gate.pass_through()
            asked.acquire(timeout=0.01)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(20):
        with gate.closed("/", 20) as stopped:
            assert stopped
    ended.set()
    for reader in readers:
        reader.join(20)
        assert not reader.is_alive()


def test_the_time_at_the_gate_does_not_make_a_second_try_a_first_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program would get the ESTALE that is meant for the kernel."""
    monkeypatch.setattr(again_module, "_AGAIN_S", CLOSED_S / 2)
    gate = Gate()
    parts = [cast(Any, SimpleNamespace())] * 2
    again = Again(*parts, {int(Op.OPEN): lambda *_: b"first"}, cast(Any, None), gate.now)
    monkeypatch.setattr(again, "_second_try", lambda sent, asked: lambda: b"second")
    body = memoryview(bytes(wire.OPEN_IN.size))
    answers = []
    for closed in (True, False):
        again.sent[77] = _Sent(gate.now(), nodeid=5)
        if closed:
            with gate.closed("/", 0.01):
                time.sleep(CLOSED_S)
        else:
            time.sleep(CLOSED_S)
        answers.append(again.work(Op.OPEN, 1, 5, Caller(0, 0, 77), body)())
    assert answers == [b"second", b"first"]
