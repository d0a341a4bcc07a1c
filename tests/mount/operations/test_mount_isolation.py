"""C7: a reader keeps the version it opened. C5: an open never hands out rotten bytes."""

from __future__ import annotations

from pathlib import Path

import mounts
import pytest
from actors import Actor, actors
from harness import rot
from trees import Shared, Tree

SIZE = 100_000
_OPEN = "import mmap; f = open('f', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)"
_HELD = "(m[:].decode(), os.pread(f.fileno(), 1 << 20, 0).decode(), os.fstat(f.fileno()).st_size)"


# --- C7 ------------------------------------------------------------------------------------------

_REPLACEMENTS = {
    "overwritten": [f"open('f', 'w').write('{n}' * {10 + n})" for n in range(5)],
    "appended": ["open('f', 'a').write('more')"],
    "changed": ["f = open('f', 'r+'); f.write('XX'); f.close()"],
    "renamed over": ["open('g', 'w').write('g'); os.rename('g', 'f')"],
    "unlinked": ["os.unlink('f')"],
    "cut by path": ["os.truncate('f', 3)"],
    "emptied by path": ["os.truncate('f', 0)"],
    "grown by path": [f"os.truncate('f', {SIZE + 5})"],
    "moved away": ["os.rename('f', 'elsewhere')"],
    "in a moved directory": ["os.rename('../' + os.path.basename(os.getcwd()), '../moved-away')"],
}


@pytest.mark.kernel_only(mounts.ONE_INODE)
@pytest.mark.parametrize("how", _REPLACEMENTS)
def test_c7_a_reader_keeps_what_it_opened_and_mapped(tree: Tree, how: str) -> None:
    tree.seed("d/f", "\0" * SIZE)
    with actors(tree.path / "d", 2) as (reader, writer):
        reader.do(_OPEN)
        for step in _REPLACEMENTS[how]:
            writer.do(step)
            assert reader.value(_HELD) == ["\0" * SIZE, "\0" * SIZE, SIZE]
        reader.do("m.close(); f.close()")
    tree.settle()
    assert "damaged" not in tree.conditions().values()


@pytest.mark.kernel_only(mounts.ONE_INODE)
def test_c7_a_mapping_outlives_its_descriptor(tree: Tree) -> None:
    tree.seed("f", "o" * SIZE)
    with tree.actors(2) as (reader, writer):
        reader.do(f"{_OPEN}; f.close()")
        for version in range(5):
            writer.do(f"open('f', 'w').write('{version}' * {SIZE})")
            assert reader.value("m[:].decode()") == "o" * SIZE
            assert writer.content("f") == str(version) * SIZE


def test_control_in_place_a_reader_loses_what_it_opened(unsafe_mount: Shared) -> None:
    with unsafe_mount.tree() as tree:
        tree.seed("f", "o" * SIZE)
        with tree.actors(2) as (reader, writer):
            reader.do("f = open('f')")
            writer.do("open('f', 'w').write('new')")
            assert reader.value("f.read()") == "new"


@pytest.mark.kernel_only(mounts.ONE_INODE)
def test_c7_torch_keeps_mapped_weights(tree: Tree, torch_user: Actor) -> None:
    torch_user.do("torch.save({'w': torch.full((50_000,), 1.0)}, 'm.pt')")
    torch_user.do("held = torch.load('m.pt', mmap=True)['w']")
    with tree.actors(1) as (other,):
        for version in range(2, 5):
            torch_user.do(f"torch.save({{'w': torch.full((50_000,), {version}.0)}}, 'm.pt')")
            assert torch_user.value("float(held.sum())") == 50_000
            assert torch_user.value("float(torch.load('m.pt')['w'][9])") == version
        other.do("os.unlink('m.pt')")
        assert torch_user.value("float(held.sum())") == 50_000
    torch_user.do("del held")


# Reads until told to stop; every version is one letter, and its length tells which.
_READ_ALL = """
seen, torn = set(), []
while not os.path.exists('stop'):
    data = open('m.pt', 'rb').read()
    (seen.add(data[:1]) if data in wanted else torn.append(len(data)))
"""


def _overwrite_under_readers(tree: Tree, rounds: int) -> list[int]:
    """Sizes of what readers saw that was no whole version."""
    wanted = [bytes([65 + n]) * (200_000 + n) for n in range(5)]
    tree.seed("m.pt", wanted[0])
    with tree.actors(3) as (writer, *readers):
        for actor in (writer, *readers):
            actor.do("wanted = [bytes([65 + n]) * (200_000 + n) for n in range(5)]")
        for reader in readers:
            reader.send(_READ_ALL)
        writer.do(
            f"for n in range({rounds}):\n"
            "    f = open('m.pt', 'wb', buffering=0)\n"
            "    for at in range(0, len(wanted[n % 5]), 20_000):\n"
            "        f.write(wanted[n % 5][at:at + 20_000])\n"
            "    f.close()\n"
            "open('stop', 'w').close()"
        )
        torn = []
        for reader in readers:
            reader.answer()
            assert reader.value("len(seen)") > 0
            torn += reader.value("torn")
        return torn


def test_c7_readers_in_a_loop_see_whole_versions_only(tree: Tree) -> None:
    assert _overwrite_under_readers(tree, 50) == []


def test_control_in_place_readers_in_a_loop_see_torn_files(unsafe_mount: Shared) -> None:
    with unsafe_mount.tree() as tree:
        assert _overwrite_under_readers(tree, 200)


@pytest.mark.kernel_only(mounts.ONE_INODE)
def test_c7_torch_saves_under_a_reader_that_loads(tree: Tree, torch_user: Actor) -> None:
    save = "torch.save({'step': n, 'w': torch.full((20_000,), float(n))}, 'm.pt')"
    torch_user.do(f"n = 0; {save}")
    torch_user.do(
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    status = 1\n"
        "    try:\n"
        f"        for n in range(50): {save}\n"
        "        open('stop', 'w').close(); status = 0\n"
        "    finally:\n"
        "        os._exit(status)\n"
        "steps = []\n"
        "while not os.path.exists('stop'):\n"
        "    loaded = torch.load('m.pt')\n"
        "    assert loaded['w'].tolist() == [float(loaded['step'])] * 20_000\n"
        "    steps.append(loaded['step'])\n"
        "assert os.waitpid(pid, 0)[1] == 0"
    )
    assert torch_user.value("steps == sorted(steps) and len(steps) > 0")
    assert torch_user.value("torch.load('m.pt')['step']") == 49


# --- C5 ------------------------------------------------------------------------------------------


def test_c5_rot_is_answered_by_the_last_good_version(tree: Tree) -> None:
    tree.seed("f", "good one", "good two")
    rotten = tree.rot("f", 3)
    assert tree.conditions() == {"f": "damaged"}
    with tree.actors(1) as (reader,):
        assert reader.content("f") == "good one"
    assert tree.aside("quarantine", "f") == [rotten]
    assert len(tree.events("rolled back", "f")) == 1
    assert tree.mount.status()["counts"]["rolled back"] >= 1
    tree.assert_clean()


def test_c5_a_large_file(tree: Tree) -> None:
    size = 64 << 20
    with tree.actors(1) as (writer,):
        for letter in "ab":
            writer.do(f"f = open('big', 'w'); f.write('{letter}' * {size}); f.close()")
    tree.rot("big", size - 2)
    with tree.actors(1) as (reader,):
        assert reader.value("open('big').read() == 'a' * (64 << 20)")
    tree.assert_clean()


def test_c5_rot_without_a_good_version_is_an_error(tree: Tree) -> None:
    tree.seed("f", "the only one")
    rotten = tree.rot("f")
    with tree.actors(1) as (reader,):
        assert reader.errno_of("open('f')") == "EIO"
        assert reader.errno_of("open('f')") == "EIO"
    assert (tree.below / "f").read_bytes() == rotten  # nothing is thrown away
    assert len(tree.events("rotten", "f")) == 2


def test_c5_both_versions_rotten_is_an_error(tree: Tree) -> None:
    tree.seed("f", "good one", "good two")
    tree.rot("f")
    record = tree.record("f")
    assert record is not None
    (kept,) = (tree.mount.below / ".ckptfs/history" / record.lineage).iterdir()
    rot(kept)
    with tree.actors(1) as (reader,):
        assert reader.errno_of("open('f')") == "EIO"


def test_c5_a_reader_that_holds_the_file_is_not_disturbed_by_the_rollback(tree: Tree) -> None:
    tree.seed("f", "good one", "good two")
    with tree.actors(2) as (holder, reader):
        holder.do("f = open('f')")
        rotten = tree.rot("f", 3)
        assert reader.content("f") == "good one"
        assert holder.value("f.read()") == rotten.decode()  # opened before it rotted
        assert holder.content("f") == "good one"


def test_a_file_edited_outside_is_served_as_it_is(disk_dir: Path) -> None:
    mount = mounts.Served(disk_dir)
    with mounts.ending(mount):
        mount.start()
        for version in ("a: 1\n", "a: 2\n"):
            (disk_dir / "config.yaml").write_text(version)
        mount.umount()
        with open(disk_dir / "config.yaml", "a") as file:
            file.write("b: 3\n")
        mount.start()
        with actors(disk_dir, 1) as (reader,):
            assert reader.content("config.yaml") == "a: 2\nb: 3\n"
        done = mounts.ckptfs("verify", disk_dir)
        assert "modified" in done.stdout and done.returncode == 0
        assert not mount.events("rolled back")


def test_control_verify_off_serves_rot(disk_dir: Path) -> None:
    with mounts.served(disk_dir, "--verify", "off") as mount:
        for version in ("good one", "good two"):
            (disk_dir / "f").write_text(version)
        rot(mount.below / "f")
        with actors(disk_dir, 1) as (reader,):
            assert reader.content("f") == "food two"


def test_c5_survives_a_new_mount(disk_dir: Path) -> None:
    """What one mount remembers as verified, the next one verifies itself."""
    mount = mounts.Served(disk_dir)
    with mounts.ending(mount):
        mount.start()
        for version in ("good one", "good two"):
            (disk_dir / "f").write_text(version)
        mount.umount()
        rot(disk_dir / "f")
        mount.start()
        with actors(disk_dir, 1) as (reader,):
            assert reader.content("f") == "good one"
