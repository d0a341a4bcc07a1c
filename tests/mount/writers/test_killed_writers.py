"""C6: a writer that dies by a signal before it closed the file publishes nothing.

The kernel closes a dead writer's descriptors as if it had closed them itself, so a server that
commits on close commits half a checkpoint. Here a torch.save over an existing checkpoint is killed
at more than 200 points, most of them between its first write and its close, in processes with and
without other threads. Each time the old version loads, bit for bit, and salvage has the new bytes.
The control serves in mode ``unsafe``, where the same kills tear the file.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mounts import ONE_INODE, PYTHON, Served, ckptfs, ending, served
from saver import BEFORE_OPEN, CLOSED, CLOSING, OPENED, PHASES, WRITING, WRITTEN

if find_spec("torch") is None:  # looked for, not imported: only the children need it
    pytest.skip("no torch", allow_module_level=True)

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)
KINDS = ("plain", "threaded", "in a thread")
SAVES_LIMIT_S = 120.0
_PROGRAM = Path(__file__).parents[2] / "support" / "saver.py"
_LOOK_EVERY = 16  # how often torch.load looks too, beside the digest


class Saver:
    """The program ``saver.py``: torch loaded once, a forked writer per order."""

    def __init__(self, cwd: Path) -> None:
        program = [PYTHON, str(_PROGRAM)]
        self.process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd
        )
        self._watchdog = threading.Timer(SAVES_LIMIT_S, self.process.kill)
        self._watchdog.start()
        self.writes = self._answer()["writes"]
        self._seed = 0

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def save(self, path: Path, kind: str = "plain", **how: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self._seed += 1
        how.setdefault("look", self._seed % _LOOK_EVERY == 0)
        order = {"path": str(path), "kind": kind, "seed": self._seed, **how}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        done = {**order, **self._answer()}
        assert done["signal"] == how.get("signal", 0), done
        return done

    def end(self) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def saver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saver]:
    process = Saver(tmp_path_factory.mktemp("saver"))
    yield process
    process.end()


def points(writes: int, share: int = 1) -> Iterator[dict[str, Any]]:
    """Orders: who writes, by what it dies and where. ``share`` takes every n-th write only."""
    for number in SIGNALS:
        for kind in KINDS:
            for phase in (BEFORE_OPEN, OPENED, WRITTEN, CLOSED):
                yield {"kind": kind, "signal": number, "at": phase}
            for write in range(0, writes, max(1, writes // 18) * share):
                yield {"kind": kind, "signal": number, "write": write}
            yield {"kind": kind, "signal": number, "outside": CLOSING, "within_s": 0.004}
        for _ in range(6 // share):
            during = {"outside": WRITING, "within_s": 0.01, "slow": True}
            yield {"kind": "threaded", "signal": number, **during}


def is_right(done: dict[str, Any]) -> bool:
    """Before the close the old version stays, after it the new one stands; during it either."""
    assert done["exit"] is None, done
    if done["phase"] == CLOSED:
        right = not done["same"]
    else:
        right = done["same"] or done["phase"] == CLOSING
    if done["loads"] is not None:
        right = right and done["loads"] == ("old" if done["same"] else "new")
    return right


def histogram(points: list[dict[str, Any]]) -> str:
    phases = Counter(done["phase"] for done in points)
    width = max(map(len, PHASES))
    return "\n".join(f"{name:{width}} {phases[at]:4}" for at, name in enumerate(PHASES))


def unclosed(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [done for done in points if done["phase"] in (WRITING, WRITTEN)]


def salvaged(mount: Served) -> Counter[tuple[int, int]]:
    """``(crc32, length)`` of everything in salvage."""
    found: Counter[tuple[int, int]] = Counter()
    for note in (mount.below / ".ckptfs/salvage").glob("*.json"):
        content = note.with_suffix("").read_bytes()
        found[zlib.crc32(content), len(content)] += 1
    return found


def assert_salvaged(died: list[dict[str, Any]], kept: Counter[tuple[int, int]]) -> None:
    """Every unclosed version lies in salvage, byte for byte. One killed from outside may have
    written more than it had told yet, and one killed in close may not have begun its FLUSH."""
    told = [done for done in unclosed(died) if "outside" not in done]
    assert Counter((done["crc"], done["length"]) for done in told) - kept == Counter()
    in_close = sum(done["phase"] == CLOSING for done in died)
    assert len(unclosed(died)) <= kept.total() <= len(unclosed(died)) + in_close


def kill_at_all(saver: Saver, path: Path, share: int = 1) -> list[dict[str, Any]]:
    first = saver.save(path, look=True)
    assert first["exit"] == 0 and first["loads"] == "new"
    return [saver.save(path, **point) for point in points(saver.writes, share)]


def test_c6_killed_writers_publish_nothing(disk_dir: Path, saver: Saver) -> None:
    with served(disk_dir, limit_s=SAVES_LIMIT_S) as mount:
        path = disk_dir / "model.pt"
        died = kill_at_all(saver, path)
        print("\n" + histogram(died))
        assert len(died) >= 200
        assert len(unclosed(died)) >= 150
        assert [done for done in died if not is_right(done)] == []
        kept = salvaged(mount)
        assert_salvaged(died, kept)
        log = ckptfs("log", disk_dir)
        assert log.stdout.count("model.pt: its writer was killed before it closed it") == (
            kept.total()
        )
        assert saver.save(path, look=True)["loads"] == "new"  # and the next save works
        assert ckptfs("verify", disk_dir).returncode == 0


def test_c6_killed_writers_publish_nothing_through_the_relay(disk_dir: Path, saver: Saver) -> None:
    with served(disk_dir, "--no-passthrough", limit_s=SAVES_LIMIT_S) as mount:
        died = kill_at_all(saver, disk_dir / "model.pt", share=4)
        assert len(unclosed(died)) >= 30
        assert [done for done in died if not is_right(done)] == []
        assert_salvaged(died, salvaged(mount))


def test_control_the_same_kills_tear_an_unsafe_mount(disk_dir: Path, saver: Saver) -> None:
    with served(disk_dir, "--mode", "unsafe"):
        path = disk_dir / "model.pt"
        assert saver.save(path)["exit"] == 0
        died = [
            saver.save(path, signal=number, write=write, look=True)
            for number in SIGNALS
            for write in range(0, saver.writes, saver.writes // 3)
        ]
        torn = [done for done in died if not is_right(done)]
        assert any(done["loads"].startswith("torn") for done in torn)


def test_c6_nothing_is_published_under_a_new_name(mount: Served, saver: Saver) -> None:
    path = mount.path / "step-1.pt"
    for kind in KINDS:
        saver.save(path, kind, signal=signal.SIGKILL, at=WRITTEN)
        assert not path.exists()
    assert len(mount.events("aborted")) == len(KINDS)


def test_c6_a_core_dump_counts_as_killed(mount: Served, saver: Saver) -> None:
    """The exit code is 139 then: the signal with the core bit set."""
    path = mount.path / "model.pt"
    assert saver.save(path)["exit"] == 0
    done = saver.save(path, signal=signal.SIGSEGV, at=WRITTEN, core=True, look=True)
    if not done["core"]:
        pytest.skip("no core is dumped here (core_pattern, limits)")
    assert is_right(done)


@pytest.mark.parametrize("relay", [(), ("--no-passthrough",)], ids=["passthrough", "relay"])
def test_exit_without_close_commits(disk_dir: Path, saver: Saver, relay: tuple[str, ...]) -> None:
    """That is how shell redirections end. In a threaded process _exit(3) ends the other threads
    as a signal would: PF_SIGNALED is set, and the exit code in /proc reads 768."""
    with served(disk_dir, *relay) as mount:
        path = disk_dir / "model.pt"
        for kind in KINDS * 4:
            done = saver.save(path, kind, exit=3, look=True)
            assert done["exit"] == 3
            assert done["loads"] == "new"
        assert mount.events("aborted") == []


def test_c4_exit_in_the_middle_of_a_save_keeps_the_sound_version(
    mount: Served, saver: Saver
) -> None:
    """An exit is no kill, so it would commit; what it left is no whole checkpoint, so it cannot
    replace one."""
    path = mount.path / "model.pt"
    assert saver.save(path)["exit"] == 0
    program = "import os, sys; f = open(sys.argv[1], 'wb', 0); f.write(b'PK\\3\\4' + b'x' * 5000)"
    for ending_ in ("os._exit(3)", "sys.exit(0)", "raise SystemExit(1)"):
        before = path.read_bytes()
        subprocess.run([PYTHON, "-c", f"{program}; {ending_}", path], timeout=30)
        mount.wait_until(lambda: not mount.status()["writing"])
        assert path.read_bytes() == before
    assert len(mount.events("aborted")) == 3


# --- the daemon in a pid namespace of its own ----------------------------------------------------


@pytest.fixture
def namespaced(disk_dir: Path) -> Iterator[Served]:
    mount = Served(disk_dir)
    mount.prefix = ("unshare", "--pid", "--fork", "--kill-child")
    with ending(mount):
        yield mount.start_in_foreground()


def test_unknown_writers_are_said_to_be_unknown(namespaced: Served) -> None:
    assert any("writers unknown" in line for line in namespaced.status()["degraded"])
    assert ckptfs("status", namespaced.path, "--check").returncode == 2
    assert "DEGRADED" in ckptfs("status", namespaced.path).stdout
    assert "--pid=host" in namespaced.log_text()
    assert ckptfs("verify", namespaced.path).returncode == 0


def test_unknown_writers_publish_at_release_and_only_what_is_whole(
    namespaced: Served, saver: Saver
) -> None:
    path = namespaced.path / "model.pt"
    saver.save(path)
    namespaced.wait_until(lambda: len(namespaced.events("committed")) == 1)
    saver.save(path)
    namespaced.wait_until(lambda: len(namespaced.events("committed")) == 2)
    old = path.read_bytes()
    for kind in KINDS:
        saver.save(path, kind, signal=signal.SIGKILL, write=saver.writes // 2)
    namespaced.wait_until(lambda: len(namespaced.events("aborted")) == len(KINDS))
    assert path.read_bytes() == old
    assert salvaged(namespaced).total() == len(KINDS)
    assert ckptfs("log", namespaced.path).stdout.count("its writer is unknown") == len(KINDS)


@pytest.mark.kernel_only(ONE_INODE)
def test_unknown_writers_and_readers_see_the_committed_view(namespaced: Served) -> None:
    path = namespaced.path / "notes.bin"
    path.write_bytes(b"old")
    namespaced.wait_until(lambda: len(namespaced.events("committed")) == 1)
    with path.open("wb", buffering=0) as file:
        file.write(b"newer")
        assert path.read_bytes() == b"old"  # seen by the writer's own process too
        assert os.fstat(file.fileno()).st_size == 5
    namespaced.wait_until(lambda: len(namespaced.events("committed")) == 2)
    assert path.read_bytes() == b"newer"


_POOL = """
import os, signal, sys, time
name, end, whole = sys.argv[1], getattr(signal, sys.argv[2]), sys.argv[3] == "whole"
file = open(name, "wb")
if whole:
    import zipfile
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", b"z" * 100_000)
    file.flush()
read, written = os.pipe()
worker = os.fork()
if worker == 0:
    if not whole:
        os.pwrite(file.fileno(), b"half" * 10_000, 0)
    elif sys.argv[4] == "writes":
        os.write(os.open(name + ".part", os.O_WRONLY | os.O_CREAT), b"something else")
    os.write(written, b"x")
    time.sleep(60)
os.read(read, 1)
os.kill(worker, end)
os.waitpid(worker, 0)
try:
    file.close()
except OSError as error:
    print(error.errno)
"""


def pool(mount: Served, *arguments: str) -> str:
    command = [PYTHON, "-c", _POOL, "m.pt", *arguments]
    run = subprocess.run(command, cwd=mount.path, capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize("relay", [(), ("--no-passthrough",)], ids=["passthrough", "relay"])
def test_c6_what_a_crashed_worker_of_a_pool_has_written_is_not_published(
    disk_dir: Path, relay: tuple[str, ...]
) -> None:
    """It was forked with the descriptor, and its parent closes the file in good faith."""
    with served(disk_dir, *relay) as mount:
        (mount.path / "m.pt").write_bytes(b"good")
        assert pool(mount, "SIGKILL", "half") == str(errno.EIO)
        assert (mount.path / "m.pt").read_bytes() == b"good"
        assert pool(mount, "SIGTERM", "half") == ""  # as pools end their workers
        assert (mount.path / "m.pt").read_bytes() == b"half" * 10_000


@pytest.mark.parametrize("worker", ["idle", "writes"])
def test_a_crashed_worker_that_wrote_something_else_takes_nothing_along(
    mount: Served, worker: str
) -> None:
    assert pool(mount, "SIGKILL", "whole", worker) == ""
    assert (mount.path / "m.pt").stat().st_size > 100_000
