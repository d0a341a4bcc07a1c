"""What a daemon loads: not what somebody has put into a working directory, nor from its own mount.

Bugs these close: a restart ran, as root, what lay in the directory that the daemon was started in;
a daemon that was loaded from its mount waited for itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import PYTHON, Served, ending

pytestmark = pytest.mark.kernel_only("libfuse cannot hand its session over")


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    """The command as it is installed: Python looks where the script is, not where the user is."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/ckptfs"
    script.write_text("from ckptfs.cli import main\nmain()\n")
    return [PYTHON, str(script)]


@pytest.fixture
def unstarted(disk_dir: Path) -> Iterator[Served]:
    mount = Served(disk_dir)
    with ending(mount):
        yield mount


def lay_traps(directory: Path, sprung: Path) -> None:
    """Modules that nobody but their maker wants to be loaded."""
    directory.mkdir(exist_ok=True)
    for name in ("json", "ckptfs", "runpy", "subprocess", "site", "click"):
        (directory / f"{name}.py").write_text(f"open({str(sprung)!r}, 'w').close()\n1/0\n")


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("where", ["elsewhere", "in the directory"])
@pytest.mark.parametrize("foreground", [False, True], ids=["detached", "foreground"])
def test_nothing_of_the_working_directory_is_loaded(
    unstarted: Served, tmp_path: Path, script: list[str], where: str, foreground: bool
) -> None:
    sprung, mount = tmp_path / "sprung", unstarted
    cwd = mount.path if where == "in the directory" else tmp_path / "trapped"
    lay_traps(cwd, sprung)
    if foreground:
        command = [*script, "mount", str(mount.path), "--foreground"]
        with open(mount.log, "ab") as log:
            mount.process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log)
        mount.wait_until(lambda: "serving" in mount.log_text(), 30)
    else:
        done = run([*script, "mount", str(mount.path), "--log", str(mount.log)], cwd)
        assert done.returncode == 0, done
    mount.pid = mount.status()["pid"]
    assert os.readlink(f"/proc/{mount.pid}/cwd") == "/"
    done = run([*script, "restart", str(mount.path), "--keep", "3"], cwd)
    assert done.returncode == 0, (done, mount.log_text())
    assert mount.status()["keep"] == 3 and not sprung.exists()


def test_a_module_that_is_looked_for_in_the_working_directory_may_lie_in_the_mount(
    unstarted: Served,
) -> None:
    """``python -m`` looks there first, and so may PYTHONPATH: the daemon would wait for itself."""
    mount, path = unstarted, str(unstarted.path)
    command = [PYTHON, "-m", "ckptfs"]
    with open(mount.log, "ab") as log:
        mount.process = subprocess.Popen(
            [*command, "mount", ".", "--foreground"],
            cwd=mount.path,
            env={**os.environ, "PYTHONPATH": ":"},
            stdout=log,
            stderr=log,
        )
    mount.wait_until(lambda: "serving" in mount.log_text(), 30)
    done = run([*command, "restart", path, "--keep", "3"], mount.path, PYTHONPATH=":")
    assert done.returncode == 0, (done, mount.log_text())
    (mount.path / "model.bin").write_bytes(b"bytes")
    assert mount.status()["keep"] == 3


@pytest.mark.parametrize("what", ["interpreter", "modules"])
def test_a_mount_over_what_it_is_loaded_from_is_refused(
    unstarted: Served, tmp_path: Path, what: str
) -> None:
    path, inside = unstarted.path, unstarted.path / what
    command, environment = [PYTHON], {}
    if what == "modules":
        inside.mkdir()
        environment = {"PYTHONPATH": str(inside)}
    else:
        inside.symlink_to(os.path.realpath(PYTHON))
        command = [str(inside)]
    packages = sysconfig.get_path("purelib")
    script = f"import site; site.addsitedir({packages!r}); from ckptfs.cli import main; main()"
    command += ["-c", script, "mount", str(path), "--log", str(unstarted.log)]
    done = run(command, tmp_path, **environment)
    assert done.returncode == 8, done
    assert str(inside) in done.stderr and "install it outside" in done.stderr
    assert done.stderr.count("\n") == 1 and not unstarted.mounted()


def test_a_restart_as_a_program_in_the_mount_is_refused(unstarted: Served) -> None:
    mount = unstarted.start()
    inside = mount.path / "interpreter"
    inside.symlink_to(os.path.realpath(PYTHON))
    packages = sysconfig.get_path("purelib")
    script = f"import site; site.addsitedir({packages!r}); from ckptfs.cli import main; main()"
    order = {"program": [str(inside), "-c", script], "changes": {"store": {}, "mount": {}}}
    with pytest.raises(OSError, match="busy"):
        os.setxattr(mount.path / ".ckptfs", "user.ckptfs.restart", json.dumps(order).encode())
    status = mount.status()
    assert status["pid"] == mount.pid and str(inside) in status["refused"]
    assert "install it outside" in status["refused"]
