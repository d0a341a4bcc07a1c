"""The promises on each filesystem that people keep checkpoints on, as root and as a user."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import rot
from images import IMAGE_BYTES, MAKE
from users import ALICE, Lab, UserMount, user_mount

OLD, NEW = "old " * 50_000, "new " * 60_000


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, _lab: Lab) -> Iterator[Path]:
    """A filesystem in an image file, mounted in the lab."""
    kind, make = request.param, MAKE[request.param]
    if _lab.trouble:
        pytest.skip(f"cannot act as other users here: {_lab.trouble}")
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not installed")
    image, path = _lab.base / f"{kind}.img", _lab.base / kind
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run([*make, image], check=True, stdout=subprocess.DEVNULL)
    mounted = _lab.run(0, "mount", "-o", "loop", "-t", kind, image, path)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount {kind} here: {mounted.stderr.strip()}")
    yield path
    _lab.run(0, "umount", "-l", path)
    image.unlink()


@pytest.fixture(params=["root", "user"])
def mount(request: pytest.FixtureRequest, disk: Path, lab: Lab) -> Iterator[UserMount]:
    if request.param == "user" and shutil.which("fusermount3") is None:
        pytest.skip("no fusermount3")
    uid = 0 if request.param == "root" else ALICE
    name = Path(tempfile.mkdtemp(dir=lab.seen(disk))).name
    with user_mount(lab, uid, at=disk / name) as served:
        yield served


def test_the_promises_hold(mount: UserMount, lab: Lab) -> None:
    with lab.actors(mount.path, mount.uid, mount.uid) as (writer, reader):
        # committed whole, and seen by others only then
        writer.write("model.bin", OLD)
        reader.do("kept = open('model.bin')")
        writer.do(f"f = open('model.bin', 'w'); f.write({NEW!r}); f.flush()")
        assert reader.content("model.bin") == OLD
        writer.do("f.close()")
        assert reader.content("model.bin") == NEW
        assert reader.value("kept.read()") == OLD
        reader.do("kept.close()")
        # extended, renamed onto another, written in place, deleted
        writer.do("f = open('model.bin', 'a'); f.write('more'); f.close()")
        assert reader.content("model.bin") == NEW + "more"
        writer.write("tmp.bin", OLD)
        writer.do("os.rename('tmp.bin', 'model.bin')")
        assert reader.content("model.bin") == OLD
        writer.do("os.makedirs('a/b'); f = open('a/b/x.log', 'a'); f.write('line'); f.flush()")
        assert reader.content("a/b/x.log") == "line"
        writer.write("gone.bin", NEW)
        writer.do("os.unlink('gone.bin')")
        assert sorted(reader.value("os.listdir('.')")) == ["a", "model.bin"]
        # rot is rolled back
        writer.write("model.bin", NEW)
        rot(mount.below / "model.bin", len(NEW) // 2)
        assert reader.content("model.bin") == OLD
        # a killed writer publishes nothing
        writer.do("f = open('model.bin', 'w'); f.write('half'); f.flush()")
        writer.kill()
        mount.wait_until(lambda: mount.events("aborted"))
        assert reader.content("model.bin") == OLD
    assert lab.run(mount.uid, "ckptfs", "verify", mount.path).returncode == 0
    below = lab.seen(mount.path)
    mount.umount()
    assert (below / "model.bin").read_text() == OLD
    assert (below / "model.bin").stat().st_uid == mount.uid
    assert lab.run(mount.uid, "ckptfs", "verify", mount.path).returncode == 0
    notes = [path.read_bytes() for path in (below / ".ckptfs/salvage").glob("*[!n]")]
    assert b"half" in notes
