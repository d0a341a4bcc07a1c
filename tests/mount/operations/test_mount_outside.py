"""Changes behind a mount, below it, and by writing into a file through it: what is damage is rolled
back and can be taken back, what is not is served. The table of all is
tests/checking/test_outside.py."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from outside import FORMATS, added_to, cut, overwrite, saved

NAME = "model.pt"


def content(name: str, seed: int) -> bytes:
    return FORMATS[name](seed)


@pytest.fixture(params=[(), ("--no-passthrough",)], ids=["passthrough", "relayed"])
def mount(request: pytest.FixtureRequest, disk_dir: Path) -> Iterator[mounts.Served]:
    with mounts.served(disk_dir, *request.param) as served:
        yield served


def save(mount: mounts.Served, name: str, *seeds: int) -> Path:
    """By a process that has ended; the path below the mount."""
    for seed in seeds:
        (mount.path / name).write_bytes(content(name, seed))
    return mount.below / name


def test_damage_below_a_mount_is_rolled_back_told_and_can_be_taken_back(
    mount: mounts.Served,
) -> None:
    below = save(mount, NAME, 1, 2)
    overwrite(below, b"")
    damaged = below.read_bytes()
    done = mounts.ckptfs("verify", mount.path)
    assert done.returncode == 4 and f"damaged         {NAME}" in done.stdout
    assert (mount.path / NAME).read_bytes() == content(NAME, 1)
    (event,) = mount.events("rolled back")
    assert "fails its checksum" in event["detail"]
    assert f"ckptfs adopt {mount.path} {NAME} --quarantined" in event["detail"]
    assert f"ckptfs adopt {mount.path} {NAME} --quarantined" in mount.log_text()
    done = mounts.ckptfs("adopt", mount.path, NAME, "--quarantined")
    assert done.returncode == 0, done.stderr
    assert (mount.path / NAME).read_bytes() == damaged
    done = mounts.ckptfs("rollback", mount.path, NAME)
    assert (mount.path / NAME).read_bytes() == content(NAME, 1)
    done = mounts.ckptfs("adopt", mount.path, NAME, "--quarantined")
    assert done.returncode != 0 and "nothing of it" in done.stderr


def test_what_is_saved_and_edited_below_a_mount_is_served(mount: mounts.Served) -> None:
    changes = ((NAME, saved), ("config.yaml", saved), ("notes.txt", added_to))
    for name, how in changes:
        below = save(mount, name, 1, 2)
        how(below, content(name, 3))
        assert (mount.path / name).read_bytes() == below.read_bytes()
    assert not mount.events("rolled back")
    assert mounts.ckptfs("verify", mount.path).returncode == 0


@pytest.mark.parametrize("name", [NAME, "arrays.npz"])
def test_a_part_that_is_overwritten_through_the_mount_is_refused(
    name: str, mount: mounts.Served
) -> None:
    save(mount, name, 1, 2)
    file = mount.path / name
    dd = ["dd", "if=/dev/urandom", f"of={file}", "bs=4096", "seek=100", "count=2", "conv=notrunc"]
    done = subprocess.run(dd, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0 and os.strerror(errno.EBADMSG) in done.stderr
    assert file.read_bytes() == content(name, 2)


def test_an_archive_that_is_added_to_through_the_mount_is_a_save(mount: mounts.Served) -> None:
    """As zipfile does it: members behind the last one, and a new directory."""
    save(mount, "arrays.npz", 1)
    code = (
        "import sys, zipfile\n"
        "with zipfile.ZipFile(sys.argv[1], 'a') as z: z.writestr('note.txt', 'added' * 1000)\n"
        "print(zipfile.ZipFile(sys.argv[1]).testzip())"
    )
    assert mounts.python(code, mount.path / "arrays.npz") == "None\n"


_STORES = """
import mmap, os, sys, time
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
f.close()
time.sleep(0.3)
for at in range(0, len(m), len(m) // 4):
    m[at:at + 4] = b"mine"
m.flush()
print("stored", flush=True)
time.sleep(60)
"""


def test_what_was_stored_through_a_mapping_is_not_damage(mount: mounts.Served) -> None:
    """The daemon is killed before the mapping ends, so nobody has recorded the stores."""
    for name in ("model.bin", "model.h5"):
        save(mount, name, 1, 2)
    children = [
        subprocess.Popen(
            [mounts.PYTHON, "-c", _STORES, mount.path / name], stdout=subprocess.PIPE, text=True
        )
        for name in ("model.bin", "model.h5")
    ]
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == "stored\n"
        os.kill(mount.pid, signal.SIGKILL)
    finally:
        for child in children:
            child.kill()
            child.communicate(timeout=30)
    mount.start()
    for name in ("model.bin", "model.h5"):
        assert (mount.path / name).read_bytes().count(b"mine") >= 4
    assert not mount.events("rolled back")


_SAVES = """
import sys
with open(sys.argv[1], "w+b") as f:
    f.write(open(sys.argv[2], "rb").read())
print("saved", flush=True)
sys.stdin.read()
"""


def test_who_maps_a_file_no_more_does_not_vouch_for_it(mount: mounts.Served) -> None:
    """The trainer lives on; what it saved is damaged by somebody else."""
    below = save(mount, "model.bin", 1)
    source = mount.path / "source.bin"
    source.write_bytes(content("model.bin", 2))
    command = [mounts.PYTHON, "-c", _SAVES, mount.path / "model.bin", source]
    trainer = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    try:
        assert trainer.stdout is not None and trainer.stdout.readline() == "saved\n"
        mount.wait_until(lambda: not mount.status()["writing"])
        overwrite(below, b"")
        assert (mount.path / "model.bin").read_bytes() == content("model.bin", 1)
    finally:
        trainer.communicate(timeout=30)


def test_damage_while_unmounted_is_found_by_verify_and_mended(disk_dir: Path) -> None:
    mount, file = mounts.Served(disk_dir), disk_dir / NAME
    with mounts.ending(mount):
        mount.start()
        save(mount, NAME, 1, 2)
        save(mount, "model.safetensors", 1, 2)
        mount.umount()
        cut(file, b"")
        overwrite(disk_dir / "model.safetensors", b"")
        damaged = file.read_bytes()
        done = mounts.ckptfs("verify", disk_dir)
        assert done.returncode == 4
        assert "cut short" in done.stdout and "overwritten in place" in done.stdout
        assert mounts.ckptfs("verify", "--outside", "accept", disk_dir).returncode == 0
        assert mounts.ckptfs("verify", "--repair", disk_dir).returncode == 1
        assert file.read_bytes() == content(NAME, 1)
        assert mounts.ckptfs("adopt", disk_dir, NAME, "--quarantined").returncode == 0
        assert file.read_bytes() == damaged
        saved(file, content(NAME, 3))
        overwrite(file, b"")
        mount.options = ("--outside", "accept")
        mount.start()
        assert file.read_bytes() != content(NAME, 3)
        assert not mount.events("rolled back")
