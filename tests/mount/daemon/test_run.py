"""`ckptfs run`: a mount for one command, with no rights at all; and its command's life.

Bugs these close: an exit status or a signal that gets lost on the way, a command that starts below
the mount because it was called in there, and a RELEASE that goes down with the namespace.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import CHILD_LIMIT_S, ckptfs
from users import ALICE, Lab

from ckptfs.mount.processes import writers

NOT_PRIVILEGED = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")


class Runs:
    """`ckptfs run` on one directory, as one user."""

    def __init__(self, lab: Lab, uid: int, *prefix: str) -> None:
        self.lab, self.uid, self.prefix = lab, uid, prefix
        self.path = Path(tempfile.mkdtemp(dir=lab.home(uid)))
        os.chown(self.path, uid, uid)
        self.log = self.path.with_suffix(".log")

    def command(self, *command: object, options: tuple[str, ...] = ()) -> list[str]:
        ours = [self.lab.python, "-m", "ckptfs", "run", self.path, "--log", self.log, *options]
        return self.lab.command(self.uid, *self.prefix, *ours, "--", *command, cwd=self.path)

    def run(self, *command: object, **how: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*command, **how), capture_output=True, text=True, timeout=CHILD_LIMIT_S
        )

    def shell(self, script: str, **how: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "-c", script, **how)

    def start(self, script: str, **how: tuple[str, ...]) -> subprocess.Popen[str]:
        return self._start("bash", script, **how)

    def start_python(self, program: str) -> subprocess.Popen[str]:
        return self._start(self.lab.python, program)

    def _start(self, *program: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        interpreter, code = program
        return subprocess.Popen(
            self.command(interpreter, "-c", code, options=options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ckptfs(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.lab.run(self.uid, "ckptfs", *words)

    def salvage(self) -> list[bytes]:
        notes = (self.path / ".ckptfs/salvage").glob("*.json")
        return [note.with_suffix("").read_bytes() for note in notes]


@pytest.fixture(params=["user", "root", "root without rights"])
def runs(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Runs]:
    kinds = {"user": (ALICE,), "root": (0,), "root without rights": (0, *NOT_PRIVILEGED)}
    runs = Runs(lab, *kinds[request.param])
    if request.param != "root" and runs.run("true").returncode == 8:
        pytest.skip(f"no user namespaces here: {runs.run('true').stderr}")
    yield runs
    if runs.log.exists():
        assert "Traceback" not in runs.log.read_text(), runs.log.read_text()


def test_a_command_is_served_and_nobody_else(runs: Runs) -> None:
    script = (
        "cd .; echo old > a; echo new > a; : > empty; id -u; stat -f -c %T .; "
        f"{runs.lab.python} -m ckptfs status ."
    )
    done = runs.shell(script)
    assert done.returncode == 0, done
    uid, kind, *status = done.stdout.splitlines()
    assert uid == str(runs.uid) and kind.startswith("fuse")
    carried = "passthrough" if not runs.prefix and runs.uid == 0 else "relay"
    assert carried in "\n".join(status)
    assert (runs.path / "a").read_text() == "new\n"
    assert (runs.path / "empty").read_bytes() == b""
    verified = runs.ckptfs("verify", runs.path)
    assert verified.returncode == 0 and "2 ok" in verified.stdout, verified
    assert runs.ckptfs("log", runs.path, "a").stdout.count("generation") == 2
    assert runs.ckptfs("status", runs.path, "--check").returncode == 1
    assert os.listdir(runs.path / ".ckptfs/stage") == []


def test_the_exit_status_is_the_commands(runs: Runs) -> None:
    assert runs.shell("exit 37").returncode == 37
    assert runs.shell("kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert runs.shell("kill -KILL $$").returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    "given",
    [["{}", "sh", "-c", "exit 3"], ["--keep", "2", "{}", "--mode=unsafe", "sh", "-c", "exit 3"]],
    ids=["plain", "options"],
)
def test_the_command_needs_no_dashes_ahead(tmp_path: Path, given: list[str]) -> None:
    done = ckptfs("run", *(each.format(tmp_path) for each in given))
    assert done.returncode == 3, done.stderr


def test_what_cannot_be_run(lab: Lab) -> None:
    runs = Runs(lab, 0)
    for command, code, words in (
        (("nosuch-command",), 127, "command not found"),
        (("/etc/passwd",), 126, "Permission denied"),
        ((), 16, "COMMAND"),
    ):
        done = runs.run(*command)
        assert done.returncode == code, done
        assert words in done.stderr and done.stderr.count("\n") == 1
    done = runs.lab.run(0, "ckptfs", "run", runs.path / "nosuch", "--", "true")
    assert done.returncode == 8 and "no such directory" in done.stderr


def test_a_command_found_in_the_directory(runs: Runs) -> None:
    (runs.path / "train").write_text("#!/bin/sh\necho trained > out.bin\n")
    (runs.path / "train").chmod(0o755)
    assert runs.run("./train").returncode == 0
    assert (runs.path / "out.bin").read_text() == "trained\n"


def test_no_user_namespaces_is_one_line_with_advice(lab: Lab) -> None:
    """The limit of the machine's administrator, in a user namespace of its own for the test."""
    runs = Runs(lab, ALICE)
    limit = "echo 0 > /proc/sys/user/max_user_namespaces"
    inner = " ".join(
        map(str, [lab.python, "-m", "ckptfs", "run", runs.path, "--log", runs.log, "--", "true"])
    )
    done = lab.run(ALICE, "unshare", "-U", "-r", "setpriv", "--bounding-set", "-all", "true")
    if done.returncode != 0:
        pytest.skip(f"no user namespaces here: {done.stderr}")
    drop = "setpriv --bounding-set -sys_admin --inh-caps -sys_admin"
    done = lab.run(ALICE, "unshare", "-U", "-r", "bash", "-c", f"{limit}; exec {drop} {inner}")
    assert done.returncode == 8, done
    assert "no user namespace may be made here" in done.stderr and "sysctl" in done.stderr
    assert done.stderr.count("\n") == 1


# --- streams and signals -------------------------------------------------------------------------


def test_streams_are_the_callers(runs: Runs) -> None:
    with runs.start("cat; echo problem >&2") as process:
        out, problems = process.communicate("through\n", timeout=CHILD_LIMIT_S)
    assert (out, problems, process.returncode) == ("through\n", "problem\n", 0)


def test_the_terminal_is_the_commands(lab: Lab) -> None:
    """An interrupt typed there reaches the command once, and the daemon serves on."""
    runs = Runs(lab, ALICE)
    script = (
        "import os, signal, sys; n = []\n"
        "signal.signal(signal.SIGINT, lambda *_: n.append(1))\n"
        "print(os.isatty(0), flush=True); sys.stdin.readline()\n"
        "open('last.bin', 'w').write('saved'); print(len(n), flush=True)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        command = runs.command(lab.python, "-c", script)
        os.execvp(command[0], command)
    with os.fdopen(terminal, "r+b", buffering=0) as tty:
        assert b"True" in tty.read(100)
        tty.write(b"\x03")
        tty.write(b"\n")
        seen = b""
        try:
            while data := tty.read(100):
                seen += data
        except OSError:  # the terminal's last user is gone
            pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, seen
    assert seen.split()[-1] == b"1"
    assert (runs.path / "last.bin").read_text() == "saved"


SAVES_WHEN_SIGNALLED = """
import signal, sys
def save(*_):
    with open("last.bin", "w") as file: file.write("last")
    sys.exit(9)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): signal.signal(number, save)
print("ready", flush=True)
while True: signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_the_last_save_is_committed(lab: Lab, number: int) -> None:
    runs = Runs(lab, ALICE)
    with runs.start_python(SAVES_WHEN_SIGNALLED) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.kill(process.pid, number)
        process.communicate(timeout=CHILD_LIMIT_S)
    assert process.returncode == 9
    assert (runs.path / "last.bin").read_text() == "last"
    assert "1 ok" in runs.ckptfs("verify", runs.path).stdout


# --- ends ----------------------------------------------------------------------------------------

SAVE = """
import os, signal, sys
with open("model.bin", "w") as file: file.write("old")
file = open("model.bin", "w")
file.write("half")
file.flush()
print("ready", flush=True)
"""
LATE = """
import sys
file = open("late.bin", "w")
file.write("late")
file.flush()
sys.stdin.readline()
file.write(" and more")
"""


def test_c6_a_killed_command_publishes_nothing(runs: Runs) -> None:
    with runs.start_python(SAVE + "os.kill(os.getpid(), signal.SIGKILL)") as process:
        process.communicate(timeout=CHILD_LIMIT_S)
    assert process.returncode == 128 + signal.SIGKILL
    assert (runs.path / "model.bin").read_text() == "old"
    assert runs.salvage() == [b"half"]


def test_c1_a_killed_daemon_is_recovered_from(runs: Runs) -> None:
    with runs.start_python(SAVE + "sys.stdin.readline()") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate("\n", timeout=CHILD_LIMIT_S)
    done = runs.shell("cat model.bin")
    assert (done.returncode, done.stdout) == (0, "old")
    assert runs.salvage() == [b"half"]


def test_what_a_child_left_behind_still_writes_is_waited_for(runs: Runs) -> None:
    """A launcher may end before its workers; the mount stays for who uses it."""
    script = f"{runs.lab.python} -c '{LATE}' <&0 & while [ ! -s late.bin ]; do :; done"
    with runs.start(script) as process:
        # bash waits for nobody: the command is gone, its child holds late.bin open
        while "command ended" not in (runs.log.read_text() if runs.log.exists() else ""):
            assert process.poll() is None
        assert not (runs.path / "late.bin").exists()
        process.communicate("\n", timeout=CHILD_LIMIT_S)
    assert process.returncode == 0
    assert (runs.path / "late.bin").read_text() == "late and more"
    assert "1 ok" in runs.ckptfs("verify", runs.path).stdout


def test_a_child_that_stays_is_not_waited_for_longer_than_allowed(runs: Runs) -> None:
    script = f"{runs.lab.python} -c '{LATE}' <&0 >&- 2>&- & while [ ! -s late.bin ]; do :; done"
    with runs.start(script, options=("--stop-timeout", "0.1")) as process:
        assert process.wait(CHILD_LIMIT_S) == 0
        assert not (runs.path / "late.bin").exists()
        assert runs.salvage() == [b"late"]


# --- seen from outside ---------------------------------------------------------------------------


def test_from_outside(runs: Runs) -> None:
    with runs.start("echo x > a; echo half > b; echo ready; read -r _") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        status = runs.ckptfs("status", runs.path)
        assert status.returncode == 1, status
        served = f"served by process {process.pid} in a mount namespace of its own"
        assert served in status.stderr and status.stderr.count("\n") == 1
        assert served in runs.ckptfs("status", runs.path, "--check").stdout
        assert served in runs.ckptfs("umount", runs.path).stderr
        second = runs.shell("true")
        assert second.returncode == 8, second
        assert f"served already, by process {process.pid}" in second.stderr
        assert runs.ckptfs("verify", runs.path).returncode == 0
        assert runs.ckptfs("log", runs.path, "a").returncode == 0
        process.communicate("\n", timeout=CHILD_LIMIT_S)
    assert process.returncode == 0
    assert not writers.is_running(process.pid)


def test_a_directory_that_is_mounted_is_refused(lab: Lab) -> None:
    runs = Runs(lab, 0)
    with runs.start("echo ready; read -r _") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.communicate("\n", timeout=CHILD_LIMIT_S)
    inner = runs.shell(f"{lab.python} -m ckptfs run . -- true")
    assert inner.returncode == 8 and "served already" in inner.stderr
    assert inner.stderr.count("\n") == 1


def test_within_commands_that_must_look_below_say_so(lab: Lab) -> None:
    """The daemon lives outside the user namespace, so its descriptors are out of reach."""
    done = Runs(lab, ALICE).shell(f"echo x > a; {lab.python} -m ckptfs verify .")
    assert done.returncode == 8
    assert "outside of `ckptfs run`" in done.stderr and done.stderr.count("\n") == 1
