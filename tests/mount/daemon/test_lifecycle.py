"""Mount, recover, lock, unmount, stop: a daemon's life, seen by the commands that users give.

Bugs these close: a dead mount that has to be cleared by hand (ENOTCONN), a second daemon over one
directory, a mount that goes away under a trainer that is about to write its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from harness import rot
from mounts import HOLD, PYTHON, Served, child, ckptfs, ending, python, served, shell

from ckptfs.mount.processes import writers

# Looked for, not imported: that takes seconds, and only the children need it.
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="no torch")
OLD, NEW = b"old " * 2000, b"new " * 3000


def salvage(directory: Path) -> list[bytes]:
    notes = (directory / ".ckptfs/salvage").glob("*.json")
    return [note.with_suffix("").read_bytes() for note in notes]


def gone(mount: Served) -> bool:
    return not mount.mounted() and not writers.is_running(mount.pid)


# --- start ---------------------------------------------------------------------------------------


def test_mount_returns_when_it_serves(disk_dir: Path) -> None:
    (disk_dir / "a").write_bytes(OLD)
    with served(disk_dir) as mount:
        assert mount.mounted()
        assert (disk_dir / "a").read_bytes() == OLD
        assert os.listdir(disk_dir) == ["a"]  # the control directory is not listed
        assert mount.status()["pid"] != os.getpid()


def test_mount_leaves_the_terminal_and_writes_its_log_outside_the_tree(mount: Served) -> None:
    pid = mount.pid
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    log = Path(mount.status()["log"])
    assert log == mount.log and mount.path not in log.parents
    assert "serving" in mount.log_text()


def test_the_log_rotates(tmp_path: Path) -> None:
    program = (
        "import logging, sys; from ckptfs.mount.daemon import logfile\n"
        "logfile.BYTES = 2000; logfile.log_to(sys.argv[1])\n"
        "[logging.getLogger('ckptfs.x').info('line %d \\udcff', n) for n in range(300)]\n"
    )
    python(program, tmp_path / "logs/daemon.log")
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert logs == ["daemon.log", "daemon.log.1", "daemon.log.2", "daemon.log.3"]
    assert "line 299 \\xff" in (tmp_path / "logs/daemon.log").read_text()


def test_a_log_that_cannot_be_written_is_one_line(disk_dir: Path) -> None:
    done = ckptfs("mount", disk_dir, "--log", "/proc/nowhere/daemon.log")
    assert done.returncode == 8
    assert "cannot log there" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("what", ["FIFO", "FIFO with a reader", "directory", "device", "socket"])
def test_a_log_that_is_no_file_is_one_line_and_nobody_waits(
    disk_dir: Path, tmp_path: Path, what: str
) -> None:
    place, reader = tmp_path / "log", -1
    if what == "directory":
        place.mkdir()
    elif what == "device":
        os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    elif what == "socket":
        socket.socket(socket.AF_UNIX).bind(str(place))
    else:
        os.mkfifo(place)
    if what == "FIFO with a reader":
        reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    try:
        done = ckptfs("mount", disk_dir, "--log", place, limit_s=15)
        assert done.returncode == 8, done
        told = f"{place}: cannot log there: there is a {what.split()[0]}; use --log"
        assert done.stderr == f"ckptfs: {told}\n"
        with served(disk_dir) as mount:
            done = ckptfs("restart", disk_dir, "--log", place, limit_s=15)
            assert done.returncode == 8 and told in done.stderr, done
            assert mount.status()["log"] == str(mount.log)
    finally:
        if reader >= 0:
            os.close(reader)


def test_mount_names_who_works_below_it(disk_dir: Path) -> None:
    program = "print('here', flush=True); import sys; sys.stdin.read()"
    with child(program, cwd=disk_dir) as process, ending(Served(disk_dir)) as mount:
        done = ckptfs("mount", disk_dir, "--log", mount.log)
        assert done.returncode == 0
        assert f"pid {process.pid}, working directory" in done.stderr
        assert "below the mount" in done.stderr
        assert f"pid {process.pid}" in mount.log_text()


def test_mount_does_not_look_at_the_files_it_serves(disk_dir: Path) -> None:
    """Recovery looks at names in stage; the time to mount must not grow with what is kept."""
    for number in range(2000):
        (disk_dir / f"f{number}").write_bytes(b"x")
    with served(disk_dir) as mount:
        assert sum(mount.status()["requests"].values()) < 50
        reads = Path(f"/proc/{mount.pid}/fd")
        assert len(os.listdir(reads)) < 50
        assert len(os.listdir(disk_dir)) == 2000


def test_only_stage_is_looked_at_by_recovery(disk_dir: Path, tmp_path: Path) -> None:
    for number in range(50):
        (disk_dir / f"precious-{number}").write_bytes(b"x")
    trace = tmp_path / "trace"
    try:
        command = ["strace", "-f", "-e", "trace=file", "-o", str(trace), PYTHON, "-c", "0"]
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no strace here")
    program = (
        "import sys; from ckptfs.store import Store; Store.open(sys.argv[1]).close();"
        "open(sys.argv[1] + '/precious-control').close()"
    )
    (disk_dir / "precious-control").touch()
    subprocess.run([*command[:6], PYTHON, "-c", program, disk_dir], check=True, timeout=30)
    touched = [line for line in trace.read_text().splitlines() if "precious" in line]
    assert touched and all("precious-control" in line for line in touched)


# --- recovery ------------------------------------------------------------------------------------


def kill_daemon_mid_save(mount: Served, name: str) -> None:
    """Old bytes committed under the name; the daemon dies while new ones are in stage."""
    python("import sys; open(sys.argv[1], 'wb').write(b'old ' * 2000)", mount.path / name)
    with child(HOLD, mount.path / name, NEW.decode()):
        os.kill(mount.pid, signal.SIGKILL)
        mount.wait_until(lambda: not writers.is_running(mount.pid))


def test_c1_mount_alone_recovers_from_a_killed_daemon(mount: Served) -> None:
    kill_daemon_mid_save(mount, "model.bin")
    assert mount.mounted()  # and dead: every access gives ENOTCONN
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mount.path)
    mount.start()
    assert (mount.path / "model.bin").read_bytes() == OLD
    assert salvage(mount.below) == [NEW]
    log = ckptfs("log", mount.path).stdout
    assert "model.bin: unfinished when the daemon or the machine stopped" in log
    assert ckptfs("verify", mount.path).returncode == 0


def test_c9_a_dead_mount_can_also_be_unmounted(mount: Served) -> None:
    kill_daemon_mid_save(mount, "model.bin")
    told = ckptfs("status", mount.path, "--check")  # said that another mount covers it
    assert told.returncode == 1 and "its daemon is gone" in told.stdout, told
    dead = ckptfs("verify", mount.path)
    assert dead.returncode == 8 and "its daemon is gone" in dead.stderr
    mount.umount()
    assert (mount.path / "model.bin").read_bytes() == OLD
    assert ckptfs("verify", mount.path).returncode == 0


# --- the lock ------------------------------------------------------------------------------------


def test_a_second_mount_is_refused_and_the_holder_named(mount: Served, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for place in ((mount.path,), (mount.path, other), (mount.path / "..", mount.path)):
        done = ckptfs("mount", *place, "--log", tmp_path / "second.log")
        assert done.returncode == 8, done
        assert f"process {mount.pid}" in done.stderr and done.stderr.count("\n") == 1
    assert not os.path.ismount(other)
    assert (mount.path / "..").exists() and mount.status()["pid"] == mount.pid


def test_the_lock_holds_below_another_mountpoint(disk_dir: Path, tmp_path: Path) -> None:
    """Served elsewhere, the directory itself looks free: the lock says who has it."""
    first = Served(tmp_path / "first")
    first.path.mkdir()
    with ending(first):
        assert ckptfs("mount", disk_dir, first.path, "--log", first.log).returncode == 0
        first.pid = first.status()["pid"]
        done = ckptfs("mount", disk_dir, "--log", tmp_path / "second.log")
        assert done.returncode == 8 and f"process {first.pid}" in done.stderr
        assert not os.path.ismount(disk_dir)


def test_served_at_another_mountpoint(disk_dir: Path, tmp_path: Path) -> None:
    at = Served(tmp_path / "at")
    at.path.mkdir()
    with ending(at):
        assert ckptfs("mount", disk_dir, at.path, "--log", at.log).returncode == 0
        (at.path / "a").write_bytes(NEW)
        assert (disk_dir / "a").read_bytes() == NEW
        for path in (disk_dir, at.path):  # either name finds the mount
            status = json.loads(ckptfs("status", path, "--json").stdout)
            assert (status["directory"], status["mountpoint"]) == (str(disk_dir), str(at.path))
            assert ckptfs("verify", path).returncode == 0
            assert "generation" in ckptfs("log", path, path / "a").stdout
        at.pid = status["pid"]
        assert ckptfs("umount", disk_dir).returncode == 0
        assert gone(at)
        assert os.listdir(at.path) == []


# --- the end -------------------------------------------------------------------------------------


def test_umount_leaves_no_mount_and_no_process(mount: Served) -> None:
    (mount.path / "a").write_bytes(NEW)
    mount.umount()
    assert gone(mount)
    assert (mount.path / "a").read_bytes() == NEW
    again = ckptfs("umount", mount.path)
    assert again.returncode == 1 and "not mounted" in again.stderr


def test_umount_waits_for_commits_that_nobody_waits_for(mount: Served) -> None:
    """`: > f` and descriptors held by a child commit at RELEASE, after close() returned."""
    shell("for i in $(seq 40); do : > empty-$i; done", mount.path)
    shell("exec 3> held; echo from the child | (cat >&3) & exec 3>&-; wait", mount.path)
    python(
        "import os, sys\n"
        "for n in range(40):\n"
        "    f = os.open(f'child-{n}', os.O_CREAT | os.O_WRONLY)\n"
        "    if os.fork() == 0:\n"
        "        os.write(f, b'by the child')\n"
        "        os._exit(0)\n"
        "    os.close(f); os.wait()\n",
        cwd=mount.path,
    )
    mount.umount()
    assert all((mount.path / f"empty-{n}").read_bytes() == b"" for n in range(1, 41))
    assert all((mount.path / f"child-{n}").read_bytes() == b"by the child" for n in range(40))
    assert (mount.path / "held").read_bytes() == b"from the child\n"
    assert os.listdir(mount.path / ".ckptfs/stage") == []
    assert "unrecorded" not in ckptfs("verify", mount.path).stdout


@pytest.mark.parametrize("how", ["working directory", "open file model.bin"])
def test_umount_is_refused_while_busy_and_names_the_holder(mount: Served, how: str) -> None:
    if how == "working directory":
        code, options = "print(1, flush=True); import sys; sys.stdin.read()", {"cwd": mount.path}
    else:
        code, options = HOLD, {}
    with child(code, mount.path / "model.bin", "bytes", **options) as process:
        refused = ckptfs("umount", mount.path, "--timeout", "0")
        assert refused.returncode == 2
        assert f"pid {process.pid}, {how}" in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert mount.status()["pid"] == mount.pid
    mount.umount()
    assert gone(mount)
    if how != "working directory":
        assert (mount.path / "model.bin").read_bytes() == b"bytes"


SAVES_LATER = """
import os, sys
open(sys.argv[1] + "/first", "wb").write(b"1")
print("ready", flush=True)
sys.stdin.readline()
open(sys.argv[1] + "/last", "wb").write(b"2")
"""


def test_control_released_without_a_timeout_the_last_save_misses_the_mount(disk_dir: Path) -> None:
    """The mount goes at once: what is saved then lands below, without a record."""
    with served(disk_dir, "--stop-timeout", "0", "--release") as mount:
        with child(SAVES_LATER, disk_dir) as process:
            os.kill(mount.pid, signal.SIGTERM)
            mount.wait_until(lambda: gone(mount))
            process.communicate("go\n", timeout=20)
        assert "unrecorded      last" in ckptfs("verify", disk_dir).stdout


def test_sigterm_serves_on_while_the_mount_is_used(mount: Served) -> None:
    with child(SAVES_LATER, mount.path) as process:
        os.kill(mount.pid, signal.SIGTERM)
        mount.wait_until(lambda: "asked to stop" in mount.log_text())
        read = "import sys; print(open(sys.argv[1]).read())"  # new opens are served
        assert python(read, mount.path / "first") == "1\n"
        process.communicate("go\n", timeout=20)
        assert process.returncode == 0
    mount.wait_until(lambda: gone(mount), 20)
    assert (mount.path / "last").read_bytes() == b"2"
    done = ckptfs("verify", mount.path)
    assert done.returncode == 0 and "2 ok" in done.stdout and "unrecorded" not in done.stdout


def test_a_mount_that_is_used_at_its_stop_is_left_dead(disk_dir: Path) -> None:
    """A save that finds the plain directory would be unprotected, and nobody would know."""
    with served(disk_dir, "--stop-timeout", "0.3") as mount:
        with child(SAVES_LATER, disk_dir) as process:
            os.kill(mount.pid, signal.SIGTERM)
            mount.wait_until(lambda: not writers.is_running(mount.pid))
            assert mount.mounted()
            process.communicate("go\n", timeout=20)
            assert process.returncode == 1
        with pytest.raises(OSError, match="not connected"):
            os.listdir(disk_dir)
        assert f"(pid {process.pid}): leaving the mount dead" in mount.log_text()
        mount.start()
        assert os.listdir(disk_dir) == ["first"]
        assert "1 ok" in ckptfs("verify", disk_dir).stdout


def test_what_is_open_when_a_mount_is_left_dead_goes_to_salvage(disk_dir: Path) -> None:
    with served(disk_dir, "--stop-timeout", "0.3") as mount:
        (disk_dir / "model.bin").write_bytes(OLD)
        with child(HOLD, disk_dir / "model.bin", NEW.decode()):
            os.kill(mount.pid, signal.SIGTERM)
            mount.wait_until(lambda: not writers.is_running(mount.pid))
        mount.umount()
        assert (disk_dir / "model.bin").read_bytes() == OLD
        assert salvage(disk_dir) == [NEW]
        assert "model.bin: the mount was taken away" in ckptfs("log", disk_dir).stdout
        assert ckptfs("verify", disk_dir).returncode == 0


def test_a_mount_that_nobody_uses_goes_at_once_without_a_timeout(disk_dir: Path) -> None:
    with served(disk_dir, "--stop-timeout", "0") as mount:
        os.kill(mount.pid, signal.SIGTERM)
        mount.wait_until(lambda: gone(mount))


def test_release_takes_a_used_mount_away_and_keeps_what_was_open(disk_dir: Path) -> None:
    with served(disk_dir, "--stop-timeout", "0.3", "--release") as mount:
        (disk_dir / "model.bin").write_bytes(OLD)
        with child(HOLD, disk_dir / "model.bin", NEW.decode()):
            os.kill(mount.pid, signal.SIGTERM)
            mount.wait_until(lambda: gone(mount))
            assert salvage(disk_dir) == [NEW]
            assert "taking the mount away" in mount.log_text()
        assert (disk_dir / "model.bin").read_bytes() == OLD
        assert "model.bin: the mount was taken away" in ckptfs("log", disk_dir).stdout
        assert ckptfs("verify", disk_dir).returncode == 0


def test_umount_release_serves_what_is_open_until_it_is_closed(mount: Served) -> None:
    (mount.path / "model.bin").write_bytes(OLD)
    with child(HOLD, mount.path / "model.bin", NEW.decode()):
        refused = ckptfs("umount", mount.path)
        assert refused.returncode == 2 and "--release" in refused.stderr
        assert ckptfs("umount", mount.path, "--release").returncode == 0
        assert not mount.mounted()
        assert (mount.path / "model.bin").read_bytes() == OLD
    mount.wait_until(lambda: not writers.is_running(mount.pid))
    assert (mount.path / "model.bin").read_bytes() == NEW
    assert "1 ok" in ckptfs("verify", mount.path).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_unused_mount_in_the_foreground(disk_dir: Path, number: int) -> None:
    mount = Served(disk_dir)
    with ending(mount):
        mount.start_in_foreground()
        assert mount.process is not None
        python("import sys; open(sys.argv[1], 'wb').write(b'1')", disk_dir / "a")
        mount.process.send_signal(number)
        assert mount.process.wait(20) == 0
        assert not mount.mounted()
        assert (disk_dir / "a").read_bytes() == b"1"


TRAINER = """
import hashlib, os, signal, sys, time
import torch

directory = sys.argv[1]
torch.set_num_threads(1)
model = torch.nn.Linear(64, 64)
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
step = 0
while not stopping:
    model.zero_grad()
    model(torch.randn(8, 64)).pow(2).mean().backward()
    with torch.no_grad():  # by hand: importing torch.optim takes seconds
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
    torch.save(model.state_dict(), f"{directory}/model.pt")
    step += 1
    if step == 2:
        print("training", flush=True)
time.sleep(1)  # evaluates once more before it saves
state = {"model": model.state_dict(), "step": step}
torch.save(state, f"{directory}/last.pt")
with open(f"{directory}/last.pt", "rb") as file:
    print(hashlib.sha256(file.read()).hexdigest(), flush=True)
"""


@needs_torch
def test_sigterm_to_the_whole_group_commits_the_last_checkpoint(disk_dir: Path) -> None:
    """A scheduler signals the trainer and the daemon together. The trainer saves in answer."""
    mount = Served(disk_dir)
    lead = "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    mount.prefix = (PYTHON, "-c", lead)  # the daemon leads a group that the trainer joins
    with ending(mount):
        mount.start_in_foreground()
        group = os.getpgid(mount.status()["pid"])
        assert group != os.getpgid(0)
        join = f"import os; os.setpgid(0, {group})\n"
        with child(join + TRAINER, disk_dir) as trainer:
            assert os.getpgid(trainer.pid) == group
            os.killpg(group, signal.SIGTERM)
            said, _ = trainer.communicate(timeout=30)
            assert trainer.returncode == 0
        assert mount.process is not None and mount.process.wait(20) == 0
        assert not mount.mounted()
        saved = (disk_dir / "last.pt").read_bytes()
        assert hashlib.sha256(saved).hexdigest() == said.strip()
        done = ckptfs("verify", disk_dir)
        assert done.returncode == 0 and "2 ok" in done.stdout


def test_verify_while_files_are_written(mount: Served) -> None:
    writes = """
import sys
print("writing", flush=True)
for n in range(100000):
    with open(f"{sys.argv[1]}/f{n % 5}", "wb") as file:
        file.write(str(n).encode() * 5000)
    if n > 20 and sys.stdin in __import__("select").select([sys.stdin], [], [], 0)[0]:
        break
"""
    with child(writes, mount.path):
        for _ in range(3):
            done = ckptfs("verify", mount.path)
            assert done.returncode == 0, done.stdout
    assert ckptfs("verify", mount.path).returncode == 0
    mount.umount()
    done = ckptfs("verify", mount.path)
    assert done.returncode == 0 and "5 ok" in done.stdout


@needs_torch
def test_c9_unmounted_the_directory_holds_plain_checkpoints(mount: Served) -> None:
    saves_then_loads = """
import os, sys, torch
os.makedirs(sys.argv[1] + "/run/1")
torch.save({"step": 7}, sys.argv[1] + "/run/1/model.pt")
print("saved", flush=True)
sys.stdin.readline()
print(torch.load(sys.argv[1] + "/run/1/model.pt")["step"])
"""
    with child(saves_then_loads, mount.path) as process:
        through_mount = (mount.path / "run/1/model.pt").read_bytes()
        mount.umount()
        assert process.communicate("go\n", timeout=20)[0].strip() == "7"
    assert (mount.path / "run/1/model.pt").read_bytes() == through_mount
    assert ckptfs("verify", mount.path).returncode == 0


# --- what commands say ---------------------------------------------------------------------------


def test_status_says_what_serves_and_its_exit_code(mount: Served) -> None:
    (mount.path / "model.bin").write_bytes(OLD)
    text = ckptfs("status", mount.path).stdout
    assert f"serving, process {mount.pid}" in text and "atomic_dirsync" in text
    assert "1 committed" in text
    assert ckptfs("status", mount.path, "--check").returncode == 0
    with child(HOLD, mount.path / "model.bin", "x"):
        assert mount.status()["writing"] == ["model.bin"]
    mount.umount()
    checked = ckptfs("status", mount.path, "--check")
    assert checked.returncode == 1 and "not mounted" in checked.stdout
    assert ckptfs("status", mount.path).returncode == 1
    assert ckptfs("status", mount.path, "--json").returncode == 1


def test_log_tells_the_generations_of_a_path(mount: Served) -> None:
    for content in (OLD, NEW):
        (mount.path / "model.bin").write_bytes(content)
    for path in ("model.bin", mount.path / "model.bin"):
        lines = ckptfs("log", mount.path, path).stdout.splitlines()
        assert [line.split()[1] for line in lines] == ["2", "1"]
        assert f"{len(NEW)} bytes" in lines[0] and "current" in lines[0]
        assert f"{len(OLD)} bytes" in lines[1]
    assert ckptfs("log", mount.path).stdout == ""  # nothing in salvage or quarantine


def test_a_digest_in_the_log_is_what_the_tools_print(disk_dir: Path) -> None:
    with served(disk_dir, "--checksum", "sha256"):
        (disk_dir / "model.bin").write_bytes(NEW)
        assert hashlib.sha256(NEW).hexdigest() in ckptfs("log", disk_dir, "model.bin").stdout


def test_doctor_says_what_carries_a_mount(disk_dir: Path) -> None:
    done = ckptfs("doctor", disk_dir)
    assert done.returncode == 0 and "FAIL" not in done.stdout
    assert os.listdir(disk_dir) == []  # nothing is left behind
    with served(disk_dir):
        assert "served now" in ckptfs("doctor", disk_dir).stdout


def test_status_without_a_directory_lists_the_mounts(mount: Served) -> None:
    done = ckptfs("status")
    line = f"{mount.path}: {mount.path}, process {mount.pid}"
    assert line in done.stdout.splitlines()
    listed = json.loads(ckptfs("status", "--json").stdout)
    assert mount.pid in [each.get("pid") for each in listed]
    mount.umount()
    assert line not in ckptfs("status").stdout.splitlines()


def test_status_as_json_tells_of_a_directory_that_is_not_served(mount: Served) -> None:
    (mount.path / "a").write_bytes(b"saved")
    assert json.loads(ckptfs("status", mount.path, "--json").stdout)["served"] is True
    mount.umount()
    done = ckptfs("status", mount.path, "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1 and told["served"] is False and told["space"]["live"]["files"] == 1


def test_log_as_json(mount: Served) -> None:
    file = mount.path / "a"
    for content in (b"one", b"two"):
        file.write_bytes(content)
    rows = [json.loads(line) for line in ckptfs("log", file, "--json").stdout.splitlines()]
    assert [row["kind"] for row in rows] == ["current", "kept"]
    assert rows[0]["generation"] == rows[1]["generation"] + 1 and rows[1]["size"] == 3
    rot(mount.below / "a")
    assert file.read_bytes() == b"one"
    (aside,) = map(json.loads, ckptfs("log", mount.path, "--json").stdout.splitlines())
    assert aside["kind"] == "quarantine" and aside["path"] == "a"
