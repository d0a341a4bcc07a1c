"""Filesystems in image files, mounted once for all tests of a session."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

IMAGE_BYTES = 320 << 20  # XFS refuses less than 300 MB; the file is sparse
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
PREFIX = "ckptfs-loop-"


@dataclass(frozen=True)
class Mounted:
    """A filesystem in an image file."""

    kind: str
    path: Path
    image: Path | None = None


def mounted_image(kind: str, mounts: dict[str, Mounted]) -> Mounted:
    if kind not in mounts:
        base = mounts[""].path
        made = Mounted(kind, base / kind, base / f"{kind}.img")
        make_image(made)
        mount_image(made)
        mounts[kind] = made
    return mounts[kind]


def make_image(made: Mounted) -> None:
    """An empty filesystem, and the directory it is to be mounted at."""
    needs_root()
    if shutil.which(MAKE[made.kind][0]) is None:
        pytest.skip(f"{MAKE[made.kind][0]} is not installed")
    assert made.image is not None
    made.path.mkdir()
    with made.image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run([*MAKE[made.kind], made.image], check=True, stdout=subprocess.DEVNULL)


def mount_image(made: Mounted) -> None:
    command = ["mount", "-o", "loop", "-t", made.kind, made.image, made.path]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount {made.kind} here: {done.stderr.strip()}")


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")


def _mountpoints() -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [Path(line.split(" ")[1]) for line in lines]
    return []


def clear(base: Path) -> None:
    for path in _mountpoints():
        if base in path.parents:
            subprocess.run(["umount", "-l", path], check=False)
    if not any(base in path.parents for path in _mountpoints()):
        shutil.rmtree(base, ignore_errors=True)


def clear_stale_mounts() -> None:
    """A session that was killed could not clear up after itself."""
    for base in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = base.name.removeprefix(PREFIX).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            clear(base)
