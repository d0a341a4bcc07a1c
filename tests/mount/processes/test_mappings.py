"""Who has which file mapped, shared and writable. What cannot be looked at is not taken for
unmapped, and many questions cost few looks.

Bugs these close: a program that exited with 500 files open had the daemon read ``/proc/*/maps`` 500
times; mappings of a process whose first thread had ended were missed; what could not be read of a
process counted as nothing; of the files of ``/proc`` 4 KiB were read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import served, why_no_mounts

from ckptfs.mount.processes import mappings, proc, writers
from ckptfs.mount.processes.mappings import Shared, Snapshot, Unseen

LIMIT_S = 20.0
WAITS = "print(1, flush=True); sys.stdin.read()"
MAPS = "f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 4096)"
NOBODY = 2**22 + 1  # above the kernel's highest process id


@pytest.fixture(autouse=True)
def _any_filesystem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "_filesystem", None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mapped"
    path.write_bytes(bytes(4096))
    return path


@contextlib.contextmanager
def child(code: str, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", f"import ctypes, mmap, os, sys, threading, time\n{code}"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *map(str, words)], stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            yield process
        finally:
            process.kill()


def is_mapped(file: Path, *openers: int) -> bool:
    return writers.map_for_writing(openers, {file.stat().st_ino})


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- one look for all who wait -------------------------------------------------------------------


def test_all_who_ask_while_a_look_is_under_way_share_the_next(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    gate, began, looks = threading.Event(), threading.Event(), []
    everywhere = mappings._look_everywhere

    def look(_: None) -> mappings.Everywhere:
        looks.append(1)
        began.set()
        gate.wait(LIMIT_S)
        return everywhere(None)

    monkeypatch.setattr(mappings, "_everywhere", Shared(look))
    with open(file, "r+b") as f:
        askers = [threading.Thread(target=is_mapped, args=(file, NOBODY)) for _ in range(50)]
        askers[0].start()
        assert began.wait(LIMIT_S)
        for asker in askers[1:]:
            asker.start()
        with mmap.mmap(f.fileno(), 4096):
            wait_until(lambda: all(map(threading.Thread.is_alive, askers)))
            gate.set()
            for asker in askers:
                asker.join(LIMIT_S)
            assert is_mapped(file, NOBODY)
    assert len(looks) <= 5


def test_an_answer_is_of_a_look_that_began_after_the_question() -> None:
    steps, gate = [0], threading.Event()

    def look(_: str) -> int:
        seen = steps[0]
        gate.wait(LIMIT_S)
        return seen

    shared, answers = Shared(look), []

    def ask() -> None:
        asked = steps[0]
        answers.append(shared("all") >= asked)

    askers = [threading.Thread(target=ask) for _ in range(20)]
    for step, asker in enumerate(askers):
        steps[0] = step
        asker.start()
        time.sleep(0.002)
    gate.set()
    for asker in askers:
        asker.join(LIMIT_S)
    assert answers == [True] * 20


def test_a_look_that_fails_fails_for_all_who_share_it() -> None:
    def look(_: str) -> int:
        raise OSError

    shared = Shared(look)
    for _ in range(2):
        with pytest.raises(OSError):
            shared("all")


# --- what a process has mapped -------------------------------------------------------------------


def test_a_mapping_is_seen_of_who_made_it_and_of_all_once_its_opener_has_ended(file: Path) -> None:
    with child(f"{MAPS}; f.close(); {WAITS}", file) as mapper:
        assert is_mapped(file, mapper.pid)
        assert is_mapped(file, NOBODY)
        mapper.send_signal(signal.SIGSTOP)
        wait_until(lambda: writers.is_stopped(mapper.pid))
        assert is_mapped(file, mapper.pid)
    assert not is_mapped(file, mapper.pid)


@pytest.mark.parametrize(
    "how", ["PROT_READ", "PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE"]
)
def test_what_cannot_reach_the_file_is_no_mapping_for_writing(file: Path, how: str) -> None:
    code = f"f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 4096, prot=mmap.{how})"
    with child(f"{code}; {WAITS}", file) as mapper:
        assert not is_mapped(file, mapper.pid, NOBODY)


def test_the_mappings_of_a_process_whose_first_thread_has_ended_are_seen(file: Path) -> None:
    ends = "threading.Thread(target=lambda: time.sleep(60)).start(); print(1, flush=True)"
    with child(f"{MAPS}; {ends}; ctypes.CDLL(None).pthread_exit(None)", file) as mapper:
        wait_until(lambda: writers.is_zombie(mapper.pid))
        assert is_mapped(file, mapper.pid)


def test_a_zombie_has_nothing_mapped(file: Path) -> None:
    with child(f"{MAPS}; {WAITS}", file) as mapper:
        mapper.kill()
        wait_until(lambda: writers.is_zombie(mapper.pid))
        assert Snapshot().of(mapper.pid) == frozenset()
        assert not is_mapped(file, mapper.pid)


def test_a_file_of_another_filesystem_with_that_inode_number_is_another(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child(f"{MAPS}; {WAITS}", file) as mapper:
        assert is_mapped(file, mapper.pid)
        monkeypatch.setattr(mappings, "_filesystem", b"00:fffff")
        assert not is_mapped(file, mapper.pid)


def test_all_of_a_long_list_is_read(file: Path) -> None:
    children = "for _ in range(850):\n if os.fork() == 0: time.sleep(60); os._exit(0)\n"
    mapper = f"if os.fork() == 0:\n {MAPS}; print(1, flush=True); time.sleep(60)\n"
    with child(f"{children}\n{mapper}\ntime.sleep(60)", file) as process:
        try:
            listed = proc.read(f"/proc/{process.pid}/task/{process.pid}/children") or b""
            assert len(listed) > 4096 and len(listed.split()) == 851
            assert is_mapped(file, process.pid)
        finally:
            for pid in listed.split():
                os.kill(int(pid), signal.SIGKILL)


def test_a_process_of_many_groups_is_known_to_live(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("setgroups needs root")
    monkeypatch.setattr(writers, "_stat_fields", None)  # reading it may wait for the server
    with child(f"os.setgroups(range(100_000, 102_000)); {WAITS}") as process:
        assert writers.fate(process.pid) == (process.pid, writers.Fate.ALIVE)


# --- what cannot be looked at --------------------------------------------------------------------


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Processes of which nobody can read the mappings."""
    processes, gate = set[int](), threading.Event()
    maps = mappings._Reader._mapped

    def mapped(reader: mappings._Reader, path: str) -> object:
        reader.opened = True
        if int(path.split("/")[2]) in processes:
            gate.wait(LIMIT_S)
        return maps(reader, path)

    monkeypatch.setattr(mappings._Reader, "_mapped", mapped)
    monkeypatch.setattr(mappings, "_LOOKS", 3)
    yield processes
    gate.set()
    wait_until(lambda: not mappings._left)


def test_what_nobody_can_look_at_counts_as_mapped_for_a_while(
    stuck: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with child(WAITS) as opener, child(WAITS) as stranger:
        stuck.update({opener.pid, stranger.pid})
        for _ in range(3):
            assert writers.map_for_writing({opener.pid}, {1 << 60})
            assert writers.map_for_writing({NOBODY}, {1 << 60})
        assert len(mappings._left) == 2  # one thread each
        monkeypatch.setattr(mappings, "_ASSUMED_S", 0)
        assert not writers.map_for_writing({NOBODY}, {1 << 60})
        assert writers.map_for_writing({opener.pid}, {1 << 60})


def test_others_are_looked_at_beside_one_that_nobody_can_look_at(
    stuck: set[int], file: Path
) -> None:
    with child(WAITS) as stranger, child(f"{MAPS}; {WAITS}", file) as mapper:
        stuck.add(min(stranger.pid, mapper.pid))
        seen = Snapshot()
        if stranger.pid in stuck:
            assert file.stat().st_ino in seen.everywhere().numbers
        assert seen.everywhere().blocked


@pytest.mark.parametrize("refused", [PermissionError, OSError])
def test_an_opener_that_may_not_be_looked_at_counts_as_if_it_had_it_mapped(
    monkeypatch: pytest.MonkeyPatch, refused: type[OSError]
) -> None:
    def mapped(reader: mappings._Reader, path: str) -> None:
        raise refused

    monkeypatch.setattr(mappings._Reader, "_mapped", mapped)
    assert writers.map_for_writing({os.getpid()}, {1})
    blocked = refused is OSError  # no descriptor left: then it can be anybody
    assert writers.map_for_writing({NOBODY}, {1}) == blocked


def test_without_a_thread_to_look_with_all_counts_as_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert Snapshot().of(os.getpid()) is Unseen.BLOCKED
    assert writers.map_for_writing({NOBODY}, {1})


def test_one_in_the_middle_of_execve_has_let_go_of_its_mappings(disk_dir: Path) -> None:
    """It closes what is close-on-exec while it keeps everybody from its mappings, and waits for a
    server that does not answer."""
    if why_no_mounts():
        pytest.skip(f"cannot mount here: {why_no_mounts()}")
    with served(disk_dir) as mount:
        execs = f"{MAPS}; print(1, flush=True); sys.stdin.read(1); os.execv('/bin/true', ['true'])"
        (disk_dir / "f").write_bytes(bytes(4096))
        with child(execs, disk_dir / "f") as process:
            assert isinstance(Snapshot().of(process.pid), set)
            os.kill(mount.pid, signal.SIGSTOP)
            try:
                assert process.stdin is not None
                process.stdin.write(b"1")
                process.stdin.flush()
                wait_until(lambda: not proc.read(f"/proc/{process.pid}/cmdline"))  # a new one
                for _ in range(3):
                    assert Snapshot().of(process.pid) == frozenset()
                assert len(mappings._left) == 1
            finally:
                os.kill(mount.pid, signal.SIGCONT)
            assert process.wait(LIMIT_S) == 0
    wait_until(lambda: not mappings._left)
