"""What a served directory takes on the disk, by class."""

from __future__ import annotations

import os
from pathlib import Path

from harness import store_on
from images import Mounted

from ckptfs.tools.rig import sync
from ckptfs.upkeep.usage import Share, usage
from ckptfs.versions.commit import stage

MIB = 1 << 20


def blocks(*paths: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in paths)


def test_each_class_is_counted(loop_fs: Mounted) -> None:
    directory = loop_fs.path
    store = store_on(directory)
    assert usage(store.layout).live == Share()
    (directory / "deep/er").mkdir(parents=True)
    for content in (b"a" * MIB, b"b" * MIB, b"c" * 2 * MIB):
        store.put("deep/er/a.bin", content)
    store.put("b.bin", b"d" * MIB)
    os.link(directory / "b.bin", directory / "other-name")
    (directory / "link").symlink_to("b.bin")
    os.mkfifo(directory / "fifo")
    staged = stage(store.core, "x.bin")
    os.write(staged.fd, b"e" * MIB)
    os.fsync(staged.fd)
    lost = stage(store.core, "y.bin")
    os.write(lost.fd, b"f" * MIB)
    os.fsync(lost.fd)
    store.saves.abort(lost, "for the test")
    (directory / ".ckptfs/quarantine/q").write_bytes(b"g" * MIB)
    sync(directory)

    found = usage(store.layout)

    (old,) = (directory / ".ckptfs/history").glob("*/*")
    assert found.live == Share(2, blocks(directory / "deep/er/a.bin", directory / "b.bin"))
    assert found.live.bytes >= 3 * MIB
    assert found.history == Share(1, blocks(old))
    assert found.history_exclusive_bytes == blocks(old) >= MIB
    assert (found.staged.files, found.salvage.files, found.quarantine.files) == (1, 1, 1)
    for share in (found.staged, found.salvage, found.quarantine):
        assert MIB <= share.bytes < 2 * MIB
    for version in (staged, lost):
        os.close(version.fd)
    store.close()


def test_shared_blocks_are_history_in_full_but_not_exclusively(loop_fs: Mounted) -> None:
    store = store_on(loop_fs.path)
    content = bytearray(os.urandom(8 * MIB))
    store.put("a.bin", bytes(content))
    content[MIB : 2 * MIB] = os.urandom(MIB)
    store.put("a.bin", bytes(content))
    shared = store.history.share("a.bin")
    found = usage(store.layout)
    assert found.history.bytes >= 8 * MIB
    assert found.history_exclusive_bytes == found.history.bytes - shared
    assert shared == (0 if loop_fs.kind == "ext4" else 7 * MIB)
    store.close()


def test_an_inode_that_is_live_too_counts_as_live(quick_dir: Path) -> None:
    """Between keep and publish history holds a second name of the committed file."""
    store = store_on(quick_dir)
    store.put("a.bin", b"x" * MIB)
    folder = quick_dir / ".ckptfs/history/anything"
    folder.mkdir()
    os.link(quick_dir / "a.bin", folder / "1")
    found = usage(store.layout)
    assert found.live.files == 1
    assert found.history == Share()
    assert found.history_exclusive_bytes == 0
    store.close()
