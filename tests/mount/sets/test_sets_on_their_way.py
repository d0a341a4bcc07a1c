"""A directory of a series is on the disk as a whole or not at all; through the mount it is seen."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from actors import Actor, actors

from ckptfs.sets import manifest as manifests

HF = ("model.safetensors", "optimizer.pt", "rng_state.pth")
SAVE = "[open(f'{d}/{n}', 'wb').write(b'\\0' + n.encode()) for n in names]"


@pytest.fixture
def mount(disk_dir: Path) -> Iterator[mounts.Served]:
    with mounts.served(disk_dir, "--profile=auto") as served:
        yield served


def saves(actor: Actor, directory: str, *names: str, make: bool = True) -> None:
    actor.do(f"d, names = {directory!r}, {list(names)}")
    if make:
        actor.do("os.mkdir(d)")
    actor.do(SAVE)


def states(served: mounts.Served) -> dict[str, str]:
    done = served.ckptfs("sets", served.path, "--json")
    assert done.returncode == 0, done.stderr
    return {row["path"]: row["state"] for row in map(json.loads, done.stdout.splitlines())}


def salvaged(served: mounts.Served) -> set[str]:
    done = served.ckptfs("salvage", served.path, "--json")
    return {json.loads(line)["path"] for line in done.stdout.splitlines()}


def shown(served: mounts.Served, directory: str) -> set[str]:
    return set(os.listdir(served.path / directory))


def test_C4_a_set_appears_below_the_mount_when_it_is_complete(mount: mounts.Served) -> None:
    with actors(mount.path, 2) as (trainer, other):
        saves(trainer, "checkpoint-5", *HF)
        assert other.value("sorted(os.listdir('.'))") == ["checkpoint-5"]
        assert shown(mount, "checkpoint-5") == set(HF)
        number = other.value("os.stat('checkpoint-5').st_ino")
        assert not (mount.below / "checkpoint-5").exists()
        assert states(mount) == {"checkpoint-5": "open"}
        saves(trainer, "checkpoint-5", "trainer_state.json", make=False)
        assert (mount.below / "checkpoint-5").stat().st_ino == number
        assert other.value("os.stat('checkpoint-5').st_ino") == number
        assert shown(mount, "checkpoint-5") == {*HF, "trainer_state.json"}
        assert states(mount) == {"checkpoint-5": "complete"}
        trainer.do("open('checkpoint-5/later', 'wb').write(b'x')")
        assert other.content("checkpoint-5/later") == "x"


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 9)", "os._exit(1)", "os.abort()"])
def test_C4_who_looks_right_after_a_job_has_failed_sees_the_set_before(
    mount: mounts.Served, how: str
) -> None:
    with actors(mount.path, 2) as (trainer, resumed):
        saves(trainer, "checkpoint-5", *HF, "trainer_state.json")
        saves(trainer, "checkpoint-10", *HF[:2])
        trainer.exit(how)
        assert resumed.value("sorted(os.listdir('.'))") == ["checkpoint-5"]
        assert resumed.value("os.path.exists('checkpoint-10')") is False
        assert salvaged(mount) == {f"checkpoint-10/{name}" for name in HF[:2]}
        saves(resumed, "checkpoint-10", *HF, "trainer_state.json")
        assert states(mount) == {"checkpoint-5": "complete", "checkpoint-10": "complete"}
    done = mount.ckptfs("latest", mount.path)
    assert (done.returncode, done.stdout) == (0, f"{mount.path}/checkpoint-10\n")


def test_who_ends_well_has_saved_what_there_is(mount: mounts.Served) -> None:
    with actors(mount.path, 1) as (trainer,):
        saves(trainer, "epoch-1", "model.pt")
        trainer.exit()
    mount.wait_until(lambda: (mount.below / "epoch-1").exists())
    assert states(mount) == {"epoch-1": "unmarked"}
    assert mount.ckptfs("latest", mount.path).returncode == 1
    assert mount.ckptfs("latest", mount.path, "--unmarked").returncode == 0


def test_without_a_marker_the_names_of_the_set_before_are_waited_for(mount: mounts.Served) -> None:
    with actors(mount.path, 1) as (trainer,):
        saves(trainer, "epoch-1", "model.pt", "optimizer.pt")
        saves(trainer, "epoch-2", "model.pt")
        mount.wait_until(lambda: (mount.below / "epoch-1").exists())
        assert states(mount) == {"epoch-1": "unmarked", "epoch-2": "open"}
        saves(trainer, "epoch-2", "optimizer.pt", make=False)
        assert states(mount) == {"epoch-1": "unmarked", "epoch-2": "complete"}


def test_a_directory_that_is_synced_is_a_set(mount: mounts.Served) -> None:
    with actors(mount.path, 1) as (trainer,):
        saves(trainer, "epoch-1", "model.pt")
        trainer.do("fd = os.open('epoch-1', os.O_RDONLY); os.fsync(fd)")
        assert (mount.below / "epoch-1" / "model.pt").exists()
        assert states(mount) == {"epoch-1": "complete"}


def test_a_set_is_on_the_disk_before_the_file_that_names_it(mount: mounts.Served) -> None:
    names = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with actors(mount.path, 1) as (trainer,):
        saves(trainer, "global_step20", *names)
        assert not (mount.below / "global_step20").exists()
        trainer.write("latest", "global_step20")
        assert (mount.below / "global_step20").exists()
        assert states(mount) == {"global_step20": "complete"}


def test_a_rename_that_marks_a_set_publishes_it(mount: mounts.Served) -> None:
    with actors(mount.path, 1) as (trainer,):
        saves(trainer, "5.orbax-checkpoint-tmp", "_CHECKPOINT_METADATA", "arrays")
        trainer.do("os.rename('5.orbax-checkpoint-tmp', '5')")
        assert sorted(os.listdir(mount.below / "5")) == ["_CHECKPOINT_METADATA", "arrays"]
        assert trainer.value("os.listdir('.')") == ["5"]


NAMES = """
import os, errno
def tried(work, *arguments):
    try:
        return work(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
os.mkdir('epoch-1'); os.mkdir('epoch-1/sub'); open('epoch-1/a', 'w').write('a')
told = [
    tried(os.mkdir, 'epoch-1'), tried(os.rmdir, 'epoch-1'),
    tried(lambda: open('epoch-1', 'w')), tried(lambda: open('epoch-1', 'x')),
    tried(os.symlink, 'x', 'epoch-1'), tried(os.unlink, 'epoch-1'),
    tried(os.mkdir, 'epoch-2'), tried(os.rename, 'epoch-1', 'epoch-2'),
    sorted(os.listdir('.')), sorted(os.listdir('epoch-2')), os.stat('.').st_nlink,
    tried(os.rename, 'epoch-2/a', 'outside'), tried(os.rename, 'outside', 'epoch-2/b'),
    tried(os.mkdir, 'epoch-3'), tried(os.rmdir, 'epoch-3'), tried(os.rmdir, 'epoch-3'),
    tried(os.mkdir, 'full'), tried(lambda: open('full/x', 'w').write('x')),
    tried(os.rename, 'epoch-2', 'full'), tried(os.rename, 'full', 'epoch-2'),
    tried(os.rename, 'epoch-2', 'epoch-2/sub/deeper'),
    tried(os.mkdir, 'epoch-4'), tried(os.rename, 'full', 'epoch-4'), sorted(os.listdir('epoch-4')),
    tried(os.mkdir, 'top'), tried(os.mkdir, 'top/epoch-9'), tried(os.rmdir, 'top'),
    tried(os.rename, 'epoch-2', 'top'), tried(os.listdir, 'top'),
    tried(os.rename, 'top', 'bottom'), tried(os.listdir, 'bottom'),
    tried(os.rename, 'epoch-2', 'best'), sorted(os.listdir('best')), sorted(os.listdir('.')),
    tried(os.chdir, 'bottom/epoch-9'), os.path.basename(os.getcwd()), tried(os.listdir, '.'),
]
print(told)
"""


def test_names_of_sets_behave_as_those_of_any_directory(
    mount: mounts.Served, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (mount.path / "in").mkdir()
    assert mounts.python(NAMES, cwd=mount.path / "in") == mounts.python(NAMES, cwd=plain)
    assert (mount.below / "in" / "best" / "b").read_text() == "a"


def test_a_set_has_the_owner_mode_and_rights_of_its_place(
    mount: mounts.Served, tmp_path: Path
) -> None:
    script = (
        "umask 027; mkdir top; chgrp 7 top; chmod 2775 top; setfacl -d -m u:5:rx top || true\n"
        "mkdir top/epoch-1; stat -c '%a %u %g' top/epoch-1; getfacl -cp top/epoch-1 || true"
    )
    plain = tmp_path / "plain"
    plain.mkdir()
    assert mounts.shell(script, mount.path) == mounts.shell(script, plain)


def test_C3_what_a_dead_daemon_leaves_of_a_set_is_in_salvage(mount: mounts.Served) -> None:
    with actors(mount.path, 1) as (trainer,):
        saves(trainer, "checkpoint-5", *HF)
        os.kill(mount.pid, signal.SIGKILL)
        trainer.kill()
    mount.ckptfs("umount", mount.path)
    assert not (mount.path / "checkpoint-5").exists()
    mount.start()
    assert os.listdir(mount.path) == []
    assert salvaged(mount) == {f"checkpoint-5/{name}" for name in HF}


def test_a_restart_carries_sets_over(mount: mounts.Served) -> None:
    with actors(mount.path, 1) as (trainer,):
        saves(trainer, "checkpoint-5", *HF)
        done = mount.ckptfs("restart", mount.path)
        assert done.returncode == 0, done.stderr
        assert shown(mount, "checkpoint-5") == set(HF)
        saves(trainer, "checkpoint-5", "trainer_state.json", make=False)
        assert states(mount) == {"checkpoint-5": "complete"}
        saves(trainer, "checkpoint-6", *HF)
        done = mount.ckptfs("restart", mount.path)
        assert done.returncode == 0, done.stderr
        trainer.kill()
        mount.wait_until(lambda: os.listdir(mount.path) == ["checkpoint-5"])


def test_a_restart_remembers_who_was_killed(mount: mounts.Served) -> None:
    with actors(mount.path, 2) as (killed, other):
        saves(killed, "checkpoint-5", *HF[:1])
        saves(other, "checkpoint-5", *HF[1:], make=False)
        killed.kill()
        done = mount.ckptfs("restart", mount.path)
        assert done.returncode == 0, done.stderr
        other.exit()
        mount.wait_until(lambda: os.listdir(mount.path) == [])
    assert salvaged(mount) == {f"checkpoint-5/{name}" for name in HF}


def test_C4_a_held_descriptor_shows_no_torn_set_either(mount: mounts.Served) -> None:
    with actors(mount.path, 2) as (trainer, other):
        saves(trainer, "checkpoint-5", *HF)
        other.do("os.chdir('checkpoint-5')")
        trainer.exit("os.kill(os.getpid(), 9)")
        assert other.errno_of("os.listdir('.')") in ("ENOENT", "ESTALE")
        assert other.errno_of("os.stat('model.safetensors')") in ("ENOENT", "ESTALE")


def test_umount_leaves_nothing_in_stage(mount: mounts.Served) -> None:
    with actors(mount.path.parent, 1) as (notebook,):
        saves(notebook, f"{mount.path}/epoch-1", "model.pt")
        mount.umount()
        assert os.listdir(mount.path / "epoch-1") == ["model.pt"]
        assert os.listdir(mount.path / ".ckptfs" / "stage") == []


def test_without_profiles_files_commit_one_by_one(disk_dir: Path) -> None:
    with mounts.served(disk_dir) as mount, actors(mount.path, 1) as (trainer,):
        saves(trainer, "checkpoint-5", *HF[:1])
        assert (mount.below / "checkpoint-5" / HF[0]).exists()
        assert states(mount) == {}


def test_a_damaged_set_is_passed_over_by_latest(mount: mounts.Served) -> None:
    with actors(mount.path, 1) as (trainer,):
        for step in (5, 10):
            saves(trainer, f"checkpoint-{step}", *HF, "trainer_state.json")
    (mount.below / "checkpoint-10" / "optimizer.pt").unlink()
    done = mount.ckptfs("latest", mount.path)
    assert done.stdout == f"{mount.path}/checkpoint-5\n"
    assert "checkpoint-10" in done.stderr
    assert manifests.series_of("a/checkpoint-10") == "a/checkpoint-*"
