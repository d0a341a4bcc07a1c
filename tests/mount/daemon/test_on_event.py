"""``--on-event COMMAND``: who looks after a mount is told, and no save waits for that."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from pathlib import Path

import pytest
from mounts import PYTHON, Served, ckptfs, roll_back, served

from ckptfs.mount.daemon import hook
from ckptfs.mount.daemon.hook import Hook

NAME = "$(touch pwned); 'a'\n.bin"
_TELL = f"""{PYTHON} -c '
import json, os, signal, sys
told = {{key: value for key, value in os.environ.items() if key.startswith("CKPTFS_")}}
told["fds"] = sorted(os.readlink(f"/proc/self/fd/{{fd}}") for fd in os.listdir("/proc/self/fd")
                     if os.path.exists(f"/proc/self/fd/{{fd}}"))
told["cwd"], told["session"] = os.getcwd(), os.getsid(0)
told["blocked"] = list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(told) + chr(10))
' OUT"""


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_command_is_told_of_a_rollback(disk_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "told"
    with served(disk_dir, "--on-event", _TELL.replace("OUT", str(out))) as mount:
        (mount.path / "ordinary.bin").write_text("saved")
        roll_back(mount, NAME)
        mount.wait_until(lambda: lines(out))
        time.sleep(0.2)  # for what would follow
        (told,) = lines(out)
        assert (told["CKPTFS_EVENT"], told["CKPTFS_PATH"]) == ("rolled back", NAME)
        assert "rolled back to generation 2" in str(told["CKPTFS_DETAIL"])
        assert told["CKPTFS_DIRECTORY"] == told["CKPTFS_MOUNTPOINT"] == str(disk_dir)
        assert told["cwd"] == "/" and told["session"] != os.getsid(mount.pid)
        fds = told["fds"]
        assert isinstance(fds, list)
        assert {fd for fd in fds if not fd.startswith("/proc/")} == {"/dev/null"}
        assert told["blocked"] == []
        assert not list(tmp_path.rglob("pwned"))


@pytest.mark.kernel_only("libfuse cannot hand its session over")
def test_a_command_that_hangs_holds_up_nothing(disk_dir: Path, tmp_path: Path) -> None:
    """Neither saves nor a restart, which carries over what was not told yet."""
    out = tmp_path / "told"
    with served(disk_dir, "--on-event", f"echo $CKPTFS_PATH >> {out}; exec sleep 1000") as mount:
        for name in ("first.bin", "second.bin"):
            roll_back(mount, name)
        mount.wait_until(out.exists)
        (mount.path / "saved.bin").write_text("saved")
        assert out.read_text() == "first.bin\n"
        command = f"echo again $CKPTFS_PATH >> {out}"
        assert ckptfs("restart", mount.path, "--on-event", command).returncode == 0
        mount.wait_until(lambda: out.read_text() == "first.bin\nagain second.bin\n")
        assert "was killed" in mount.log_text()
        assert _sleepers(mount) == []


def _sleepers(mount: Served) -> list[str]:
    children = Path(f"/proc/{mount.pid}/task/{mount.pid}/children").read_text().split()
    return [Path(f"/proc/{pid}/cmdline").read_text() for pid in children]


# --- without a mount -----------------------------------------------------------------------------


def test_a_command_that_takes_too_long_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "_LIMIT_S", 0.3)
    out = tmp_path / "told"
    untold = deque([("rotten", "a", ""), ("rotten", "b", "")])
    one = Hook(f"(sleep 1; echo late >> {out}) & wait", untold, "/d", "/m")
    one.start()
    deadline = time.monotonic() + 20
    while untold:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    one.stop()
    time.sleep(1.2)
    assert not out.exists()
