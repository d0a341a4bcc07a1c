"""A day of who runs the machine, in one go: what he types is what the guide says, and a trainer
that was started in the morning saves until the evening."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from disks import Disk, free_on, killed_save, leave, serving
from mounts import PYTHON, Served, ckptfs
from scraping import free_port, read, scraped

pytest.importorskip("torch")
pytest.importorskip("prometheus_client")

MIB = 1 << 20
SAVE = 12 * MIB
TRAINER = """
import sys, torch
weights = torch.arange(int(sys.argv[2]) // 4, dtype=torch.int32)
for step, _ in enumerate(sys.stdin, 1):
    try:
        torch.save({"step": step, "weights": weights}, sys.argv[1])
        print(f"saved {step}", flush=True)
    except Exception as error:
        print(f"failed {step}: {type(error).__name__}", flush=True)
"""


class Trainer:
    """Saves when it is told to, and goes on whatever comes of it."""

    def __init__(self, path: Path) -> None:
        command = [PYTHON, "-c", TRAINER, str(path), str(SAVE)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def saves(self) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def mount(ext4: Disk, port: int) -> Iterator[Served]:
    with serving(ext4, "--metrics", str(port)) as mount:
        yield mount


@pytest.fixture
def trainer(mount: Served) -> Iterator[Trainer]:
    trainer = Trainer(mount.path / "last.pt")
    try:
        yield trainer
    finally:
        trainer.process.kill()
        trainer.end()


def step_at(path: Path) -> int:
    """By a program of its own: this one must not keep the mount busy."""
    code = "import sys, torch; print(torch.load(sys.argv[1])['step'])"
    return int(mounts.python(code, path))


def checked(mount: Served) -> tuple[int, str]:
    done = ckptfs("status", mount.path, "--check")
    return done.returncode, done.stdout


def test_an_operator_s_day(
    mount: Served, trainer: Trainer, ext4: Disk, port: int, tmp_path: Path
) -> None:
    assert [trainer.saves(), trainer.saves()] == ["saved 1", "saved 2"]
    assert checked(mount)[0] == 0
    _damage_is_seen(mount, port)
    assert trainer.saves() == "saved 3"
    _a_full_disk_is_got_over(mount, trainer, ext4, port)
    _the_log_is_rotated(mount)
    _is_upgraded(mount)
    assert trainer.saves().startswith("saved")
    _is_backed_up(mount, tmp_path)
    assert trainer.saves().startswith("saved")
    assert trainer.process.poll() is None
    trainer.end()
    done = ckptfs("verify", mount.path)
    assert done.returncode == 0, done.stdout


def _damage_is_seen(mount: Served, port: int) -> None:
    path = mount.below / "last.pt"
    before = path.stat().st_size // 2
    command = ["dd", "if=/dev/urandom", f"of={path}", "bs=1000", "count=5", "conv=notrunc"]
    subprocess.run([*command, f"seek={before // 1000}"], check=True, capture_output=True)
    assert step_at(mount.path / "last.pt") == 1, "the load gets the version before"
    code, told = checked(mount)
    assert code == 2 and "rolled back last.pt" in told and "--quarantined" in told
    assert read(scraped(port))["ckptfs_alarms"] == 1
    (line,) = (each for each in mount.log_text().splitlines() if "rolled back" in each)
    assert "WARNING last.pt" in line and "generation 2 rolled back to generation 1" in line
    assert ckptfs("ack", mount.path).returncode == 0
    assert checked(mount)[0] == 0 and read(scraped(port))["ckptfs_alarms"] == 0


def _a_full_disk_is_got_over(mount: Served, trainer: Trainer, disk: Disk, port: int) -> None:
    """First by what ckptfs gives up itself, then by what the operator removes."""
    for number in range(3):
        killed_save(mount.path / f"killed-{number}.pt", SAVE)
    leave(disk, SAVE // 2)
    assert trainer.saves() == "saved 4"
    assert "for room on the disk" in mount.log_text()
    ckptfs("clean", mount.path, "--history", "--salvage", "--quarantine", "--yes")
    leave(disk, 0)
    assert trainer.saves().startswith("failed 5")
    code, told = checked(mount)
    assert code == 2 and "low space" in told and "aborted last.pt" in told
    assert read(scraped(port))["ckptfs_low_space"] == 1
    os.truncate(disk.path / "ballast", 0)
    mount.wait_until(lambda: free_on(disk) > 4 * SAVE)
    assert trainer.saves() == "saved 6"
    assert ckptfs("ack", mount.path).returncode == 0
    assert checked(mount)[0] == 0


def _the_log_is_rotated(mount: Served) -> None:
    old = mount.log.rename(mount.log.with_suffix(".1"))
    os.kill(mount.pid, signal.SIGHUP)
    mount.wait_until(mount.log.exists)
    assert "rolled back" in old.read_text() and "rolled back" not in mount.log_text()


def _is_upgraded(mount: Served) -> None:
    done = ckptfs("restart", mount.path, "--keep", "3")
    assert done.returncode == 0, done.stderr
    assert mount.status()["keep"] == 3 and mount.status()["pid"] == mount.pid
    assert "restarted" in mount.log_text()


def _is_backed_up(mount: Served, tmp_path: Path) -> None:
    """Below the mount, with records and history; put up elsewhere, it is all there."""
    copy = tmp_path / "restored"
    copy.mkdir()
    tar = ["tar", "--xattrs", "--xattrs-include=*"]
    below = [*tar, "-C", str(mount.below), "-cf", "-", "."]
    archive = subprocess.run(below, check=True, capture_output=True).stdout
    subprocess.run([*tar, "-C", copy, "-xf", "-"], input=archive, check=True)
    done = ckptfs("verify", copy)
    assert done.returncode == 0, done.stdout
    with mounts.served(copy) as restored:
        assert step_at(copy / "last.pt") == step_at(mount.path / "last.pt")
        assert checked(restored)[0] == 0
