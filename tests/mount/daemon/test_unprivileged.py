"""Mounts of users without rights, by way of fusermount3: the same promises, data relayed.

Bugs these close: an unprivileged daemon that takes another user's killed writer for a finished one,
and leaves half-made names behind when it may not give them their owner.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import rot
from users import ALICE, BOB, Lab, UserMount, user_mount

from ckptfs.mount.processes import writers

OLD, NEW = "old " * 2000, "new " * 3000
HALF = "f = open('model.bin', 'w'); f.write('half ' * 5000); f.flush()"

pytestmark = pytest.mark.skipif(shutil.which("fusermount3") is None, reason="no fusermount3")


@pytest.mark.parametrize("uid", [ALICE, 65534])
def test_save_read_and_umount(lab: Lab, uid: int) -> None:
    with user_mount(lab, uid) as mount:
        with lab.actors(mount.path, uid) as (user,):
            user.write("model.bin", OLD)
            user.write("model.bin", NEW)
            assert user.content("model.bin") == NEW
            status = json.loads(lab.run(uid, "ckptfs", "status", mount.path, "--json").stdout)
            assert status["passthrough"] is False and status["degraded"] == []
            assert "not permitted" in status["passthrough_refusal"]
            assert status["counts"]["committed"] == 2
            assert lab.run(uid, "ckptfs", "verify", mount.path).returncode == 0
            assert lab.run(uid, "ckptfs", "log", mount.path, "model.bin").stdout.count("\n") == 2
            busy = lab.run(uid, "ckptfs", "umount", "--timeout", "0", mount.path)
            assert busy.returncode == 2, busy
            assert f"pid {user.pid}, working directory" in busy.stderr
        mount.umount()
        assert not mount.mounted()
        assert (mount.path / "model.bin").read_text() == NEW
        assert (mount.path / "model.bin").stat().st_uid == uid
        assert lab.run(uid, "ckptfs", "verify", mount.path).returncode == 0


def test_a_user_restarts_a_daemon_of_his_own(lab: Lab) -> None:
    with user_mount(lab, ALICE) as mount, lab.actors(mount.path, ALICE) as (user,):
        user.write("model.bin", OLD)
        done = lab.run(ALICE, "ckptfs", "restart", mount.path, "--keep", "2")
        assert done.returncode == 0, done
        user.write("model.bin", NEW)
        assert user.content("model.bin") == NEW
        status = json.loads(lab.run(ALICE, "ckptfs", "status", mount.path, "--json").stdout)
        assert status["keep"] == 2 and status["counts"]["committed"] == 2
        done = lab.run(BOB, "ckptfs", "restart", mount.path)
        assert done.returncode == 1, done


def test_c5_rot_is_rolled_back(lab: Lab) -> None:
    with user_mount(lab, ALICE) as mount, lab.actors(mount.path, ALICE) as (user,):
        user.write("model.bin", OLD)
        user.write("model.bin", NEW)
        rot(mount.below / "model.bin", 100)
        assert user.content("model.bin") == OLD
        assert len(mount.events("rolled back")) == 1


def test_c6_a_killed_writer_publishes_nothing(lab: Lab) -> None:
    with user_mount(lab, ALICE) as mount, lab.actors(mount.path, ALICE, ALICE) as (dies, reads):
        dies.write("model.bin", OLD)
        dies.do(HALF)
        dies.kill()
        mount.wait_until(lambda: mount.events("aborted"))
        assert reads.content("model.bin") == OLD


def test_a_killed_daemon_is_recovered_from(lab: Lab) -> None:
    with user_mount(lab, ALICE) as mount, lab.actors(mount.path, ALICE) as (user,):
        user.write("model.bin", OLD)
        user.do(HALF)
        os.kill(mount.pid, signal.SIGKILL)
        user.end()
        mount.start()
        assert lab.shell(ALICE, "cat model.bin", mount.path) == OLD


def test_another_user_is_kept_out(lab: Lab) -> None:
    with user_mount(lab, ALICE) as mount:
        lab.shell(ALICE, "echo x > open; chmod 666 open", mount.path)
        assert "denied" in lab.run(BOB, "cat", mount.path / "open").stderr
        for command in ("umount", "umount --force --timeout 0"):
            refused = lab.run(BOB, "ckptfs", *command.split(), mount.path)
            assert refused.returncode != 0 and "Traceback" not in refused.stderr
            assert refused.stderr.splitlines()[-1].startswith("ckptfs: "), refused
        assert mount.mounted()
        assert lab.shell(ALICE, "cat open", mount.path) == "x\n"


def test_a_user_ends_a_mount_of_his_own_by_force(lab: Lab) -> None:
    with user_mount(lab, ALICE) as mount, lab.actors(mount.path, ALICE) as (user,):
        user.write("model.bin", OLD)
        user.do(HALF)
        done = lab.run(ALICE, "ckptfs", "umount", "--force", "--timeout", "0", mount.path)
        assert done.returncode == 0, done
        assert f"pid {user.pid}" in done.stderr and f"process {mount.pid} " in done.stderr
        assert not mount.mounted() and not writers.is_running(mount.pid)
        assert (mount.path / "model.bin").read_text() == OLD


def test_doctor_says_what_a_user_can_do(lab: Lab) -> None:
    done = lab.run(ALICE, "ckptfs", "doctor", lab.home(ALICE))
    assert done.returncode == 0, done.stdout
    assert "fusermount3" in done.stdout and "FAIL" not in done.stdout


def test_without_fusermount3_the_message_names_run(lab: Lab) -> None:
    path, own = f"PATH={lab.base}/src", lab.folder(ALICE)
    done = lab.run(ALICE, "env", path, lab.python, "-m", "ckptfs", "mount", own)
    assert done.returncode == 8
    assert "fuse3" in done.stderr and "ckptfs run" in done.stderr and done.stderr.count("\n") == 1
    done = lab.run(ALICE, "env", path, lab.python, "-m", "ckptfs", "doctor", own)
    assert done.returncode == 8 and "`ckptfs run DIR COMMAND` needs neither" in done.stdout, done


def test_allow_other_where_the_machine_forbids_it(lab: Lab) -> None:
    path = lab.folder(ALICE)
    done = lab.run(ALICE, "ckptfs", "mount", path, "--allow-other")
    assert done.returncode == 8, done
    assert "/etc/fuse.conf" in done.stderr and done.stderr.count("\n") == 1


# --- other users in a user's mount ---------------------------------------------------------------


@pytest.fixture
def shared(lab: Lab) -> Iterator[UserMount]:
    if not Path("/etc/fuse.conf").exists():
        pytest.skip("no /etc/fuse.conf to lay another over")
    lab.allow_other(True)
    with user_mount(lab, ALICE, "--allow-other") as mount:
        yield mount


def test_others_read_and_write_what_permissions_allow(lab: Lab, shared: UserMount) -> None:
    lab.shell(ALICE, "umask 0; echo a > all; echo a > mine; chmod 600 mine", shared.path)
    with lab.actors(shared.path, BOB) as (bob,):
        assert bob.content("all") == "a\n"
        assert bob.errno_of("open('mine')") == "EACCES"
        bob.write("all", "by bob")
        assert bob.content("all") == "by bob"


def test_what_would_belong_to_another_user_is_refused(lab: Lab, shared: UserMount) -> None:
    """Only root may give a file away: refused before anything is made."""
    lab.shell(ALICE, "chmod 777 .", shared.path)
    with lab.actors(shared.path, BOB) as (bob,):
        for code in (
            "open('f', 'w')",
            "open('f.log', 'w')",
            "os.mkdir('d')",
            "os.symlink('x', 's')",
            "os.mkfifo('p')",
        ):
            assert bob.errno_of(code) == "EPERM", code
        assert bob.value("os.listdir('.')") == []
    assert shared.status()["writing"] == []
    shared.umount()
    assert sorted(os.listdir(shared.path)) == [".ckptfs"]


def test_a_group_that_cannot_be_given_is_refused(lab: Lab) -> None:
    directory = Path(tempfile.mkdtemp(dir=lab.home(ALICE)))
    (directory / "team").mkdir()
    (directory / "team").chmod(0o2777)  # of group root
    with user_mount(lab, ALICE, at=directory) as mount:
        with lab.actors(mount.path, ALICE) as (alice,):
            assert alice.errno_of("open('team/f', 'w')") == "EPERM"
            assert alice.value("os.listdir('team')") == []
        assert mount.status()["writing"] == []


def test_c6_how_another_users_writer_ended_is_unknown(lab: Lab, shared: UserMount) -> None:
    """/proc hides its exit code: then only what is certainly whole is published."""
    assert any("other users' writers" in line for line in shared.status()["degraded"])
    whole = "PK"  # of no format that is judged, so a broken zip over it is judged by itself
    lab.shell(ALICE, f"umask 0; printf {whole} > model.pt", shared.path)
    with lab.actors(shared.path, BOB, BOB) as (dies, reads):
        dies.do(
            "import zipfile; z = zipfile.ZipFile('model.pt', 'w');"
            "z.writestr('a/data.pkl', b'x' * 9000); z.fp.flush()"
        )
        dies.kill()
        shared.wait_until(lambda: shared.events("aborted"))
        assert reads.content("model.pt") == whole
