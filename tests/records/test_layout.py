"""The control directory: one daemon, numbers used once, records with or without room for them."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from harness import NEW, NEWER, OLD, condition, contents, examine, rot, store_on

from ckptfs.checking.examine import Condition
from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.errors import AlreadyServed, CannotServe, UnknownLayout
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout
from ckptfs.store import Store
from ckptfs.tools.faults import FailAlways

pytestmark = pytest.mark.usefixtures("no_leaks")


def control(directory: Path) -> Path:
    return directory / ".ckptfs"


# --- opening -------------------------------------------------------------------------------------


def test_the_control_directory_is_for_its_owner_only(quick_dir: Path) -> None:
    store_on(quick_dir).close()
    assert stat.S_IMODE(control(quick_dir).stat().st_mode) == 0o700
    assert json.loads((control(quick_dir) / "format").read_text()) == {"layout": 1}


def test_C9_an_unknown_layout_is_refused_and_left_alone(quick_dir: Path) -> None:
    store_on(quick_dir).close()
    (control(quick_dir) / "format").write_text('{"layout": 99}\n')
    for _ in range(2):
        with pytest.raises(UnknownLayout, match="layout 99 is unknown"):
            store_on(quick_dir)
    assert (control(quick_dir) / "format").read_text() == '{"layout": 99}\n'


def test_existing_changes_nothing(quick_dir: Path) -> None:
    root = osfs.open_directory(str(quick_dir))
    assert Layout.existing(OsFs(), root, "here") is None
    assert list(quick_dir.iterdir()) == []
    store_on(quick_dir).close()
    layout = Layout.existing(OsFs(), root, "here")
    assert layout is not None
    layout.close()
    os.close(root)


def test_C9_a_copy_of_the_tree_without_its_empty_folders_is_served(quick_dir: Path) -> None:
    """git, and tools that copy to object stores, leave empty folders out."""
    store = store_on(quick_dir)
    store.put("a.pt", NEW)
    store.close()
    for name in ("salvage", "quarantine", "sidecar", "history", "stage"):
        (control(quick_dir) / name).rmdir()
    again = store_on(quick_dir)
    assert again.get("a.pt") == NEW
    again.close()


def test_a_directory_that_cannot_be_written_is_refused_in_one_line(quick_dir: Path) -> None:
    with pytest.raises(CannotServe) as caught:
        store_on(quick_dir, FailAlways(OsFs(), "mkdir", errno.EROFS))
    assert "\n" not in str(caught.value)
    assert "writable" in str(caught.value)


# --- one daemon ----------------------------------------------------------------------------------

_SERVE = """
import sys
from ckptfs.store import Store
store = Store.open(sys.argv[1])
print("serving", flush=True)
sys.stdin.read()
"""


def test_C7_a_second_process_is_refused_and_told_who_serves(quick_dir: Path) -> None:
    serve = [sys.executable, "-c", _SERVE, str(quick_dir)]
    with subprocess.Popen(serve, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "serving\n"
        with pytest.raises(AlreadyServed) as caught:
            Store.open(str(quick_dir))
        other.kill()
        other.communicate()
    assert f"process {other.pid} on host {os.uname().nodename}" in str(caught.value)
    Store.open(str(quick_dir)).close()  # what a killed daemon leaves behind holds nobody up


def test_C7_a_refused_open_touches_nothing_in_flight(quick_dir: Path) -> None:
    first = Store.open(str(quick_dir))
    staged = first.saves.stage("a.pt", first.root, "a.pt", exists=False, truncate=True)
    first.fs.write(staged.fd, NEW, 0)
    with pytest.raises(AlreadyServed):
        Store.open(str(quick_dir))
    first.saves.commit(staged, first.root, "a.pt")
    first.fs.close(staged.fd)
    assert first.get("a.pt") == NEW
    first.close()


# --- generations ---------------------------------------------------------------------------------


def test_C5_a_number_is_never_handed_out_twice(quick_dir: Path) -> None:
    numbers: list[int] = []
    for _ in range(4):
        store = store_on(quick_dir)
        numbers += [store.layout.next_generation() for _ in range(700)]
        store.close()
    assert numbers == sorted(set(numbers))


def test_C5_numbers_are_reserved_durably_before_use(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.layout.next_generation()
    assert int((control(quick_dir) / "generation").read_text()) >= 1024
    store.close()


def test_a_counter_that_could_not_be_stored_hands_out_nothing(quick_dir: Path) -> None:
    faults = FailAlways(OsFs(), "fsync")
    faults.armed = False
    store = store_on(quick_dir, faults)
    faults.armed = True
    with pytest.raises(OSError):
        store.layout.next_generation()
    faults.armed = False
    assert store.layout.next_generation() >= 1
    assert os.listdir(control(quick_dir) / "stage") == []
    store.close()


# --- records where there is no room for them -----------------------------------------------------


def uses_sidecars(directory: Path, store: Store) -> None:
    """Everything a record is for, with the record in a sidecar."""
    store.put("a.pt", OLD)
    store.put("a.pt", NEW)
    assert len(list((control(directory) / "sidecar").iterdir())) == 2
    with pytest.raises(OSError):
        os.getxattr(directory / "a.pt", fmt.XATTR)
    store.close()
    again = store_on(directory, store.fs)
    assert condition(again, "a.pt") is Condition.OK
    rot(directory / "a.pt", 3)
    assert again.get("a.pt") == OLD
    assert condition(again, "a.pt") is Condition.OK
    again.put("a.pt", NEWER)
    again.unlink("a.pt")
    again.close()


@pytest.mark.parametrize(
    "code", [errno.ENOTSUP, errno.ENOSPC, errno.E2BIG], ids=errno.errorcode.get
)
def test_C5_without_room_for_the_xattr_the_record_goes_to_a_sidecar(
    code: int, quick_dir: Path
) -> None:
    faults = FailAlways(OsFs(), "setxattr", code)
    uses_sidecars(quick_dir, store_on(quick_dir, faults))
    assert faults.calls > 0


def test_C5_on_a_filesystem_without_xattrs(ramfs_dir: Path) -> None:
    uses_sidecars(ramfs_dir, store_on(ramfs_dir))


def test_C5_on_ext4_when_the_users_own_xattrs_fill_the_block(ext4_dir: Path) -> None:
    """Seen: past about 4,040 bytes in all, setxattr says ENOSPC."""
    (ext4_dir / "a.pt").write_bytes(b"mine")
    os.setxattr(ext4_dir / "a.pt", "user.mine", b"m" * 3900)
    store = store_on(ext4_dir)
    store.put("a.pt", OLD)
    store.put("a.pt", NEW)
    assert os.getxattr(ext4_dir / "a.pt", "user.mine") == b"m" * 3900  # every version inherits it
    assert len(list((control(ext4_dir) / "sidecar").iterdir())) == 2
    store.close()
    again = store_on(ext4_dir)
    assert condition(again, "a.pt") is Condition.OK
    rot(ext4_dir / "a.pt")
    assert again.get("a.pt") == OLD
    again.close()


def test_a_sidecar_of_a_reused_inode_is_not_believed(quick_dir: Path) -> None:
    store = store_on(quick_dir, FailAlways(OsFs(), "setxattr", errno.ENOTSUP))
    store.put("a.pt", NEW)
    record = examine(store, "a.pt").record
    assert record is not None
    (quick_dir / "other").write_bytes(OLD)
    with osfs.opened(store.fs, store.root, "other", osfs.O_RDONLY) as fd:
        inode = str(store.fs.stat(fd).st_ino)
        (control(quick_dir) / "sidecar" / inode).write_bytes(record.to_bytes())
        assert store.layout.read_record(fd) is None
    store.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EDQUOT], ids=errno.errorcode.get)
def test_control_other_errors_are_not_taken_for_a_lack_of_room(code: int, quick_dir: Path) -> None:
    store = store_on(quick_dir, FailAlways(OsFs(), "setxattr", code))
    with pytest.raises(OSError) as caught:
        store.put("a.pt", NEW)
    assert caught.value.errno == code
    assert list((control(quick_dir) / "sidecar").iterdir()) == []
    assert contents(control(quick_dir) / "salvage") == [NEW]
    store.close()
