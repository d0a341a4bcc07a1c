"""C2 on a disk that is nearly full, through a mount: a save gets the room that salvage and earlier
versions took, and what found none is not published behind its writer's back."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import mounts
import pytest
from actors import actors
from disks import Disk, free_on, killed_save, leave, serving, verified

from ckptfs.tools.harness.rig import sync

MIB = 1 << 20
SAVE = 24 * MIB
MODES = [
    (),
    ("--no-passthrough",),
    ("--mode", "atomic_nodirsync"),
]


def save(path: Path, number: int, size: int = SAVE) -> int:
    """The errno it ends with, or 0."""
    code = """
import os, sys
path, number, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
found = 0
try:
    with open(path, "wb", buffering=0) as file:
        rest = memoryview(bytes([number]) * size)
        while rest:
            rest = rest[file.write(rest):]
except OSError as error:
    found = error.errno
print(found)
"""
    return int(mounts.python(code, path, number, size))


def salvaged(served: mounts.Served) -> int:
    return len(mounts.ckptfs("salvage", served.path, "--json").stdout.splitlines())


@pytest.mark.parametrize("options", MODES, ids=" ".join)
def test_saves_go_on_where_two_versions_fit_and_three_do_not(
    options: tuple[str, ...], ext4: Disk
) -> None:
    leave(ext4, int(2.5 * SAVE))
    with serving(ext4, *options) as served:
        for number in range(1, 6):
            assert save(served.path / "a.pt", number) == 0
            assert (served.path / "a.pt").read_bytes()[-1] == number
        verified(served.path)
        assert "history/" in served.log_text() and "for room on the disk" in served.log_text()


def test_salvage_that_fills_the_disk_goes_before_a_save_fails(disk: Disk) -> None:
    with serving(disk) as served:
        assert save(served.path / "a.pt", 1) == 0
        for number in range(4):
            killed_save(served.path / f"killed-{number}.pt", SAVE // 2)
        served.wait_until(lambda: salvaged(served) == 4)
        leave(disk, SAVE // 4)
        assert save(served.path / "a.pt", 2) == 0
        assert (served.path / "a.pt").read_bytes()[-1] == 2
        assert salvaged(served) < 4
        verified(served.path)


@pytest.mark.parametrize("options", MODES, ids=" ".join)
def test_who_gets_enospc_once_and_goes_on_is_saved_the_next_time(
    options: tuple[str, ...], ext4: Disk
) -> None:
    """Nothing told ahead how long it would be, and it wrote faster than room was made."""
    with serving(ext4, *options) as served:
        for number in range(6):
            killed_save(served.path / f"killed-{number}.bin", SAVE // 4)
        served.wait_until(lambda: salvaged(served) == 6)
        leave(ext4, SAVE // 4)
        found = [save(served.path / "new-1.bin", 3), save(served.path / "new-2.bin", 4)]
        assert found[0] in (0, errno.ENOSPC)
        assert found[1] == (0 if found[0] else errno.ENOSPC) or not any(found)
        if found[0]:
            assert not (served.path / "new-1.bin").exists()
            assert (served.path / "new-2.bin").stat().st_size == SAVE


def test_an_edit_that_finds_no_room_keeps_nothing_from_being_freed(ext4: Disk) -> None:
    """The version that it went on from: a file that nobody sees, and that takes its blocks."""
    edit = "f = open('a.pt', 'r+b'); f.write(b'x'); f.flush()"
    with serving(ext4) as served, actors(served.path, 1) as (editor,):
        assert save(served.path / "a.pt", 1) == 0
        leave(ext4, SAVE // 4)
        for _ in range(3):
            assert editor.errno_of(f"{edit}; f.close()") == "ENOSPC"
            editor.do("f = None")
        (served.path / "a.pt").unlink()
        links = Path(f"/proc/{served.pid}/fd")
        served.wait_until(
            lambda: not any("(deleted)" in os.readlink(each) for each in _listed(links))
        )


def _listed(links: Path) -> list[Path]:
    return [each for each in links.iterdir() if each.is_symlink()]


def test_what_found_no_room_is_not_published_once_there_is_some(ext4: Disk) -> None:
    """The kernel told its program alone. By the time of the close others had made room."""
    with serving(ext4) as served:
        path = served.path / "a.bin"
        assert save(path, 1, MIB) == 0
        leave(ext4, 3 * MIB)
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        with pytest.raises(OSError):
            for _ in range(64):
                os.write(fd, b"\2" * MIB)
        served.wait_until(lambda: free_on(ext4) < MIB)
        assert save(served.path / "other.bin", 3, 64) == errno.ENOSPC  # who looks finds it full
        (ext4.path / "ballast").unlink()
        sync(ext4.path)
        with pytest.raises(OSError) as told:
            os.close(fd)
        assert told.value.errno == errno.ENOSPC
        assert path.read_bytes() == b"\1" * MIB
        assert save(path, 4) == 0


def _truncated(path: Path) -> None:
    os.truncate(path / "big.log", 0)


def _punched(path: Path) -> None:
    mounts.shell(f"fallocate --punch-hole --offset 0 --length {SAVE} big.log", path)


def _last_reader(path: Path) -> None:
    reading.pop().close()


reading: list[IO[bytes]] = []


@pytest.mark.parametrize("frees", [_truncated, _punched, _last_reader], ids=lambda f: f.__name__)
def test_what_found_no_room_is_not_published_once_a_program_has_made_some(
    ext4: Disk, frees: Callable[[Path], None]
) -> None:
    with serving(ext4) as served:
        path = served.path / "a.bin"
        assert save(path, 1, MIB) == 0
        (served.path / "big.log").write_bytes(b"\3" * SAVE)
        if frees is _last_reader:
            reading.append((served.path / "big.log").open("rb"))
            (served.path / "big.log").unlink()
        leave(ext4, 3 * MIB)
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        with pytest.raises(OSError):
            for _ in range(64):
                os.write(fd, b"\2" * MIB)
        frees(served.path)
        sync(ext4.path)
        with pytest.raises(OSError) as told:
            os.close(fd)
        assert told.value.errno == errno.ENOSPC
        assert path.read_bytes() == b"\1" * MIB


def test_a_length_does_not_prove_that_nothing_is_missing(ext4: Disk) -> None:
    """A write in the middle found no room; those behind it did, once there was some."""
    numpy = pytest.importorskip("numpy")
    with serving(ext4) as served:
        path = served.path / "w.npy"
        numpy.save(path, numpy.ones(MIB, numpy.uint8))
        head = numpy.lib.format.header_data_from_array_1_0(numpy.ones(64 * MIB, numpy.uint8))
        (served.path / "big.log").write_bytes(b"\3" * SAVE)
        leave(ext4, 3 * MIB)
        with io.BytesIO() as header:
            numpy.lib.format.write_array_header_1_0(header, head)
            start, lost = header.tell(), 0
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
            os.write(fd, header.getvalue())
        for number in range(64):
            try:
                os.pwrite(fd, b"\2" * MIB, start + number * MIB)
            except OSError:
                lost += 1
                (served.path / "big.log").unlink(missing_ok=True)
                os.truncate(ext4.path / "ballast", 0)
                sync(ext4.path)
        assert lost and os.fstat(fd).st_size == start + 64 * MIB
        with pytest.raises(OSError) as told:
            os.close(fd)
        assert told.value.errno == errno.ENOSPC
        assert numpy.load(path).size == MIB


def test_relayed_writes_find_room_while_they_are_written(ext4: Disk) -> None:
    with serving(ext4, "--no-passthrough") as served:
        for number in range(4):
            killed_save(served.path / f"killed-{number}.pt", SAVE // 2)
        served.wait_until(lambda: salvaged(served) == 4)
        leave(ext4, 0)  # so that the first write finds none
        assert save(served.path / "new.bin", 7, SAVE) == 0
        assert (served.path / "new.bin").read_bytes() == b"\7" * SAVE
        verified(served.path)
