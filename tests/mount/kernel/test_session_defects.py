"""What goes wrong in the daemon itself ends one request, not the mount.

Bugs these close: an exception where a request is taken apart ended the daemon. Beyond 10,000 living
threads each new one had all of them looked up in ``/proc``. Without a thread to be had the open of
a file failed, half made.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ckptfs.mount.kernel import wire
from ckptfs.mount.kernel.session import Session
from ckptfs.mount.operations import sessions
from ckptfs.mount.operations.sessions import Openers
from ckptfs.mount.processes import writers
from ckptfs.mount.writers.watch import Watch


def test_a_defect_answers_its_request_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session, replies = Session.__new__(Session), []

    def dispatch(request: memoryview) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(session, "_dispatch", dispatch, raising=False)
    monkeypatch.setattr(session, "_reply", lambda *reply: replies.append(reply), raising=False)
    session.device, writer = os.pipe()
    try:
        os.write(writer, wire.IN_HEADER.pack(wire.IN_HEADER.size, 3, 77, 1, 0, 0, 1, 0, 0))
        with caplog.at_level(logging.ERROR):
            session._serve_one(bytearray(4096))
    finally:
        os.close(session.device)
        os.close(writer)
    assert replies == [(77, -errno.EIO)]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_living_openers_are_looked_through_when_they_have_doubled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = []
    monkeypatch.setattr(writers, "is_running", lambda pid: bool(looked.append(pid)) or pid % 2)
    monkeypatch.setattr(sessions, "_REMEMBERED", 100)
    monkeypatch.setattr(Openers, "_most", 100)
    openers = Openers()
    for pid in range(1, 5001):
        openers.note(pid)
    assert len(looked) < 3 * 5000
    assert len(openers._seen) < 5000
    assert {pid for pid in range(1, 5001) if pid % 2} == set(openers.running())


def test_the_watch_begins_once_there_is_a_thread_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = threading.Event()
    versions: Any = SimpleNamespace(lock=threading.RLock(), any=lambda: False)
    watch = Watch(versions)
    monkeypatch.setattr(watch, "look", looks.set)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", start)
        watch.wake()
    watch.wake()
    assert looks.wait(20)
    watch.stop()
