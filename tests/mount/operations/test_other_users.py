"""A mount that several users share: nobody gets at what the permissions of a file deny.

Bugs these close: an ACL that the kernel does not see grants its mask to the whole group; a rollback
brings back the mode of long ago; status.json names private files; a file that others made first
changes hands.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import rot
from users import ALICE, BOB, Lab, UserMount, user_mount

TEAM = 60100
CAP_SYS_RESOURCE = 24


def acl(*entries: tuple[int, int, int]) -> bytes:
    """``(tag, permissions, id)`` as system.posix_acl_access has it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


OWNER, USER, GROUP_OWNER, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = 0xFFFFFFFF


@pytest.fixture(scope="module")
def served(_lab: Lab) -> Iterator[UserMount]:
    """Root's mount over everybody's files."""
    if _lab.trouble:
        pytest.skip(f"cannot act as other users here: {_lab.trouble}")
    with user_mount(_lab, 0, limit_s=240) as mount:
        yield mount


class Place:
    """A directory of its own for a test, open to all, in root's mount."""

    def __init__(self, lab: Lab, mount: UserMount) -> None:
        self.lab, self.mount = lab, mount
        self.below = Path(tempfile.mkdtemp(dir=mount.below))
        self.below.chmod(0o777)
        self.path = mount.path / self.below.name

    def shell(self, uid: int, script: str, **how: object) -> str:
        return self.lab.shell(uid, f"umask 0; {script}", self.path, **how)

    def refused(self, uid: int, script: str, **how: object) -> str:
        done = self.lab.run(uid, "bash", "-c", script, cwd=self.path, **how)
        assert done.returncode != 0, done
        return done.stderr


@pytest.fixture
def place(lab: Lab, served: UserMount) -> Place:
    return Place(lab, served)


# --- the control directory -----------------------------------------------------------------------


def test_the_control_directory_is_its_owners(place: Place) -> None:
    control = place.mount.below / ".ckptfs"
    assert control.stat().st_mode & 0o7777 == 0o700
    place.shell(ALICE, "echo 1 > f; echo 2 > f")
    (lineage, *_) = os.listdir(control / "history")
    names = ["stage", "salvage", "quarantine", "sidecar", "lock", "format", f"history/{lineage}"]
    with place.lab.actors(place.mount.path, 0, BOB) as users:
        for user in users:  # through the mount not even root
            for name in names:
                assert user.errno_of(f"os.stat('.ckptfs/{name}')") == "ENOENT"
            for code in (
                "open('.ckptfs/x', 'w')",
                "os.rename('.ckptfs', 'y')",
                "os.rmdir('.ckptfs')",
            ):
                assert user.errno_of(code) in ("EPERM", "EACCES", "ENOENT", "EROFS"), code


def test_status_names_nobodys_files_to_others(place: Place) -> None:
    place.shell(ALICE, "mkdir -m 700 mine; echo x > mine/secret-name; echo y > mine/secret-name")
    with place.lab.actors(place.path, ALICE, BOB, 0) as (alice, bob, root):
        alice.do("f = open('mine/secret-open', 'w')")
        read = "open('../.ckptfs/status.json').read()"
        shown = bob.value(read)
        assert "secret" not in shown
        status = json.loads(shown)
        assert status["counts"]["committed"] >= 2 and len(status["writing"]) == 1
        assert {"committed"} <= {event["event"] for event in status["events"]}
        assert "secret-name" in root.value(read) and "secret-open" in root.value(read)
    done = place.lab.run(BOB, "ckptfs", "status", place.mount.path)
    assert done.returncode == 0 and "secret" not in done.stdout


def test_the_daemons_descriptors_are_out_of_reach(place: Place) -> None:
    pid = place.mount.pid
    for what in ("ls /proc/{}/fd", "ls /proc/{}/root/", "ls /proc/{}/cwd/", "cat /proc/{}/mem"):
        assert "denied" in place.refused(BOB, what.format(pid))


# --- permissions ---------------------------------------------------------------------------------


def test_files_belong_to_their_makers(place: Place) -> None:
    place.below.joinpath("team").mkdir()
    os.chown(place.below / "team", 0, TEAM)
    (place.below / "team").chmod(0o2777)
    make = "echo x > f; echo x > f.log; mkdir d; ln -s f s; mkfifo p; "
    place.shell(BOB, make + "cd team; " + make)
    for name in ("f", "f.log", "d", "s", "p"):
        made, shared = (place.below / name).lstat(), (place.below / "team" / name).lstat()
        assert (made.st_uid, made.st_gid) == (BOB, BOB), name
        assert (shared.st_uid, shared.st_gid) == (BOB, TEAM), name


def test_a_staged_file_is_as_private_as_it_will_be(place: Place) -> None:
    with place.lab.actors(place.path, ALICE, BOB) as (alice, bob):
        alice.do("os.umask(0o077); f = open('new', 'w'); f.write('secret'); f.flush()")
        assert "new" in bob.value("os.listdir('.')")  # its name is in an open directory
        assert bob.errno_of("open('new')") == "EACCES"
        assert bob.errno_of("open('new', 'a')") == "EACCES"
        assert bob.errno_of("os.truncate('new', 0)") == "EACCES"
        alice.do("f.close(); f = open('new', 'w'); f.write('second'); f.flush()")
        assert bob.errno_of("open('new')") == "EACCES"
        alice.do("f.close()")
        assert (place.below / "new").stat().st_mode & 0o777 == 0o600


def test_only_the_owner_changes_what_is_the_owners(place: Place) -> None:
    place.shell(ALICE, "echo x > f")
    (place.below / "f").chmod(0o666)
    mine = acl((OWNER, 6, NOBODY), (USER, 7, BOB), (GROUP_OWNER, 0, NOBODY), (MASK, 7, NOBODY))
    mine += struct.pack("<HHI", OTHER, 0, NOBODY)
    with place.lab.actors(place.path, BOB) as (bob,):
        for code in (
            "os.chmod('f', 0o777)",
            f"os.chown('f', {BOB}, {BOB})",
            f"os.chown('f', -1, {BOB})",
            "os.utime('f', (1, 1))",
            "os.setxattr('f', 'trusted.x', b'1')",
            "os.setxattr('f', 'security.x', b'1')",
            "os.setxattr('f', 'security.capability', bytes([0, 0, 0, 2]) + bytes(16))",
            f"os.setxattr('f', 'system.posix_acl_access', {mine!r})",
            f"os.setxattr('.', 'system.posix_acl_default', {mine!r})",
        ):
            assert bob.errno_of(code) in ("EPERM", "EACCES"), code
        bob.do("os.setxattr('f', 'user.note', b'1')")  # 0666 lets him write
    status = (place.below / "f").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (ALICE, ALICE, 0o666)
    place.shell(ALICE, "chmod 600 f")
    with place.lab.actors(place.path, BOB) as (bob,):
        assert bob.errno_of("os.getxattr('f', 'user.note')") == "EACCES"


def test_the_sticky_bit_keeps_names(place: Place) -> None:
    place.below.chmod(0o1777)
    place.shell(ALICE, "echo x > f; echo x > g.log")
    with place.lab.actors(place.path, ALICE, BOB) as (alice, bob):
        alice.do("f = open('staged', 'w'); f.write('x'); f.flush()")
        bob.do("open('own', 'w').close()")
        for name in ("f", "g.log", "staged"):
            assert bob.errno_of(f"os.unlink({name!r})") == "EPERM"
            assert bob.errno_of(f"os.rename({name!r}, 'taken')") == "EPERM"
            assert bob.errno_of(f"os.rename('own', {name!r})") == "EPERM"


def test_supplementary_groups_count(place: Place) -> None:
    place.shell(ALICE, "echo x > f")
    os.chown(place.below / "f", ALICE, TEAM)
    (place.below / "f").chmod(0o640)
    assert place.shell(BOB, "cat f", groups=(TEAM,)) == "x\n"
    assert "denied" in place.refused(BOB, "cat f")
    assert "denied" in place.refused(BOB, "echo y > f", groups=(TEAM,))


def test_acls_are_the_kernels_to_enforce(place: Place) -> None:
    """Without them a file's group would be given what is the ACL's mask."""
    place.shell(ALICE, "echo x > f")
    os.chown(place.below / "f", ALICE, TEAM)
    entries = [(OWNER, 6, NOBODY), (USER, 6, BOB), (GROUP_OWNER, 0, NOBODY), (MASK, 6, NOBODY)]
    value = acl(*entries, (OTHER, 0, NOBODY))
    with place.lab.actors(place.path, ALICE, BOB) as (alice, bob):
        try:
            alice.do(f"os.setxattr('f', 'system.posix_acl_access', {value!r})")
        except Exception as error:
            pytest.skip(f"no ACLs on this filesystem: {error}")
        assert bob.content("f") == "x\n"
        bob.write("f", "by bob")
        assert bob.content("f") == "by bob"
    carol = 60003
    assert "denied" in place.refused(carol, "cat f", groups=(TEAM,))
    assert os.getxattr(place.below / "f", "system.posix_acl_access") == value
    assert (place.below / "f").stat().st_uid == ALICE


def test_a_filesystem_without_acls_serves_others_too(lab: Lab) -> None:
    path = lab.home(0) / "ramfs"
    path.mkdir()
    lab.run(0, "mount", "-t", "ramfs", "ramfs", path).check_returncode()
    try:
        with user_mount(lab, 0, at=path) as mount:
            lab.shell(0, "mkdir -m 770 d; echo x > f; chmod 664 f; chmod 755 .", path)
            assert lab.shell(BOB, "cat f", path) == "x\n"
            assert "denied" in lab.run(BOB, "ls", path / "d").stderr
            assert not mount.log_text().count("ERROR")
    finally:
        lab.run(0, "umount", "-l", path)


def test_users_do_not_write_into_the_reserve(place: Place) -> None:
    with open(f"/proc/{place.mount.pid}/status") as file:
        rights = next(line.split()[1] for line in file if line.startswith("CapEff"))
    assert not int(rights, 16) >> CAP_SYS_RESOURCE & 1
    assert place.mount.status()["passthrough"]


# --- earlier versions ----------------------------------------------------------------------------


def test_a_rollback_keeps_who_may_read(place: Place) -> None:
    """Public once, private since: the generation of that time must not come back as public."""
    everybody = acl((OWNER, 6, NOBODY), (USER, 6, BOB), (GROUP_OWNER, 4, NOBODY), (MASK, 6, NOBODY))
    everybody += struct.pack("<HHI", OTHER, 4, NOBODY)
    with place.lab.actors(place.path, ALICE, BOB) as (alice, bob):
        alice.write("f", "old")
        with contextlib.suppress(Exception):
            alice.do(f"os.setxattr('f', 'system.posix_acl_access', {everybody!r})")
        assert bob.content("f") == "old"
        alice.write("f", "new")
        with contextlib.suppress(Exception):
            alice.do("os.removexattr('f', 'system.posix_acl_access')")
        alice.do("os.chmod('f', 0o600)")
        assert bob.errno_of("open('f')") == "EACCES"
        rot(place.below / "f")
        assert alice.content("f") == "old"
        assert bob.errno_of("open('f')") == "EACCES"
    assert (place.below / "f").stat().st_mode & 0o777 == 0o600
    assert len(place.mount.events("rolled back")) >= 1


# --- names ---------------------------------------------------------------------------------------


def test_symlinks_lead_where_their_user_may_go(place: Place, lab: Lab) -> None:
    secret = lab.home(0) / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    with place.lab.actors(place.path, BOB) as (bob,):
        bob.do(f"os.symlink({str(secret)!r}, 'link')")
        assert bob.errno_of("open('link')") == "EACCES"
        assert bob.errno_of("open('link', 'w')") == "EACCES"
        assert bob.errno_of("os.chmod('link', 0o777)") == "EPERM"
        bob.do(f"os.chown('link', {BOB}, {BOB}, follow_symlinks=False)")
    assert secret.read_text() == "secret" and secret.stat().st_uid == 0


def test_what_is_swapped_below_the_mount_leads_nowhere_else(place: Place, lab: Lab) -> None:
    """Who owns a directory that is served at another place can change it while root's daemon works
    in it: every name is resolved from the directory that was opened, and no symlink followed."""
    trap = lab.home(0) / "trap"
    trap.mkdir(mode=0o700)
    (trap / "f").write_text("secret")
    with place.lab.actors(place.path, BOB) as (bob,):
        bob.do(
            "os.mkdir('d'); f = open('d/f', 'w'); f.write('mine'); f.close(); at = os.open('d', 0)"
        )
        os.rename(place.below / "d", place.below / "away")
        os.symlink(trap, place.below / "d")
        for code in (
            "open('f', 'w', opener=lambda p, f: os.open(p, f, dir_fd=at)).close()",
            "open('new', 'w', opener=lambda p, f: os.open(p, f, 0o666, dir_fd=at)).close()",
            "os.mkdir('made', dir_fd=at)",
            "os.unlink('f', dir_fd=at)",
            "os.chmod('new', 0o777, dir_fd=at)",
        ):
            bob.errno_of(code)  # where it went, it did not go into the trap
        os.unlink(place.below / "away/new")
        os.symlink(trap / "f", place.below / "away/new")
        for code in (
            "os.open('new', os.O_RDONLY, dir_fd=at)",
            "os.open('new', os.O_WRONLY | os.O_TRUNC, dir_fd=at)",
            "os.chmod('new', 0o777, dir_fd=at)",
            f"os.chown('new', {BOB}, {BOB}, dir_fd=at)",
        ):
            assert bob.errno_of(code) in ("EACCES", "EPERM", "ELOOP", "ESTALE"), code
    assert os.listdir(trap) == ["f"]
    assert (trap / "f").read_text() == "secret"
    status = (trap / "f").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o644)


@pytest.mark.parametrize("how", ["kill", "stay"])
def test_c2_another_user_does_not_keep_a_save_from_its_commit(place: Place, how: str) -> None:
    """By a descriptor that he may write by, and by his end."""
    place.shell(ALICE, "printf old > f; chmod 666 f")
    with place.lab.actors(place.path, ALICE, BOB) as (alice, bob):
        alice.do("f = open('f', 'wb', 0); f.write(b'new')")
        bob.do("g = os.open('f', os.O_RDWR)")
        if how == "kill":
            alice.do("f.close()")
            bob.kill()
        else:
            alice.do("os.fsync(f.fileno()); f.close(); os.rename('f', 'f')")
        assert (place.below / "f").read_bytes() == b"new"
    assert (place.below / "f").read_bytes() == b"new"
