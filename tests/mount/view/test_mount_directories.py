"""Many directories and many open files beside few descriptors. The daemon of these mounts has 256
of them: it held one for each directory that the kernel remembered, and once they were used up every
save failed, while ``status --check`` said that nothing was mounted.

``CKPTFS_NAMES=1000000 pytest tests/mount/view/test_mount_directories.py`` lists as many files,
in directories of 50 each, and prints what that takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from actors import Actor, Failed, actors
from mounts import Served

_DESCRIPTORS = 256
_DIRECTORIES = 100  # more than are kept open
_MODES = ["--mode=atomic_dirsync", "--mode=atomic_nodirsync", "--no-passthrough"]
_NAMES = int(os.environ.get("CKPTFS_NAMES", "0"))
_MOST_BYTES = 300 << 20


@pytest.fixture(params=_MODES)
def served(disk_dir: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """By a daemon with few descriptors."""
    limit = f"--nofile={_DESCRIPTORS}:{_DESCRIPTORS}"
    mount = Served(disk_dir, request.param, prefix=("prlimit", limit))
    with mounts.ending(mount):
        yield mount.start_in_foreground()


@pytest.fixture(params=["plain", "mounted"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A plain directory, or one that is served so."""
    if request.param == "plain":
        (tmp_path / "plain").mkdir()
        yield tmp_path / "plain"
        return
    directory = request.getfixturevalue("disk_dir")
    limit = f"--nofile={_DESCRIPTORS}:{_DESCRIPTORS}"
    mount = Served(directory, prefix=("prlimit", limit))
    with mounts.ending(mount):
        yield mount.start_in_foreground().path


def _make(directory: Path, count: int = _DIRECTORIES) -> None:
    """Directories of directories, each with a file."""
    for i in range(count):
        run = directory / f"group{i % 10}/run{i}"
        run.mkdir(parents=True)
        (run / "config.json").write_text(f'"{run.name}"')


def _look_at_all(directory: Path) -> None:
    """So that the kernel knows every directory, and what else was open is open no more."""
    mounts.shell("ls -lR . > /dev/null", directory)


def _descriptors(served: Served) -> int:
    return len(os.listdir(f"/proc/{served.status()['pid']}/fd"))


def test_there_can_be_more_directories_than_descriptors(served: Served) -> None:
    _make(served.below, _DESCRIPTORS)
    _look_at_all(served.path)
    for run in served.path.glob("*/*"):
        (run / "model.pt").write_text(run.name)
    for run in served.path.glob("*/*"):
        assert (run / "model.pt").read_text() == run.name
    assert _descriptors(served) < _DESCRIPTORS // 2
    assert served.ckptfs("status", "--check", served.path).returncode == 0
    for run in served.below.glob("group*/*"):
        assert (run / "model.pt").read_text() == run.name


def test_history_has_as_many_directories(served: Served) -> None:
    _make(served.path, _DIRECTORIES)
    history = served.path / ".ckptfs/history"
    for run in served.path.glob("*/*"):
        (run / "config.json").write_text("2")
    for run in served.path.glob("*/*"):
        kept = history / run.relative_to(served.path) / "config.json"
        assert [(kept / name).read_text() for name in os.listdir(kept)] == [f'"{run.name}"']
    assert _descriptors(served) < _DESCRIPTORS // 2


_SAVER = """
import os, random, sys
number, path = int(sys.argv[1]), sys.argv[2]
runs = [f"{path}/{group}/{run}" for group in os.listdir(path) for run in os.listdir(f"{path}/{group}")]
random.seed(number)
for i in range(25):
    run = random.choice(runs)
    name = f"{run}/by{number}.pt"
    with open(name, "w") as file:
        file.write(run)
    with open(name) as file:
        assert file.read() == run, (name, run)
"""  # noqa: E501


def test_saves_land_in_their_directories(served: Served) -> None:
    """Whatever is opened and closed beside them."""
    _make(served.below)
    command = [mounts.PYTHON, "-c", _SAVER]
    savers = [
        subprocess.Popen([*command, str(i), str(served.path)], stderr=subprocess.PIPE, text=True)
        for i in range(4)
    ]
    errors = [saver.communicate(timeout=mounts.CHILD_LIMIT_S)[1] for saver in savers]
    assert errors == [""] * len(savers)
    below = served.below
    saved = list(below.glob("*/*/by*.pt"))
    assert saved
    for file in saved:
        assert file.read_text() == str(served.path / file.parent.relative_to(below))


def test_an_open_file_is_saved_where_its_directories_went(served: Served) -> None:
    _make(served.below)
    (served.path / "a/b/c").mkdir(parents=True)
    with actors(served.path / "a/b/c", 1) as (writer,):
        writer.do("file = open('model.pt', 'w'); file.write('new')")
        _look_at_all(served.path)
        (served.path / "a").rename(served.path / "z")
        (served.path / "z/b").rename(served.path / "group1/b")
        _look_at_all(served.path)
        writer.do("file.close()")
        writer.do("open('second.pt', 'w').write('2')")
        assert writer.value("os.getcwd()") == str(served.path / "group1/b/c")
    below = served.below / "group1/b/c"
    assert (below / "model.pt").read_text() == "new"
    assert (below / "second.pt").read_text() == "2"


def test_exchanged_directories_take_their_saves_along(served: Served) -> None:
    _make(served.below)
    (served.path / "x/in").mkdir(parents=True)
    (served.path / "y/in").mkdir(parents=True)
    with actors(served.path, 1) as (writer,):
        writer.do("files = [open(f'{top}/in/{top}.pt', 'w') for top in 'xy']")
        writer.do("[file.write(file.name) for file in files]")
        _look_at_all(served.path)
        mounts.python(_EXCHANGE, served.path / "x", served.path / "y")
        _look_at_all(served.path)
        writer.do("[file.close() for file in files]")
    assert (served.below / "x/in/y.pt").read_text() == "y/in/y.pt"
    assert (served.below / "y/in/x.pt").read_text() == "x/in/x.pt"


_EXCHANGE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
one, other = (os.fsencode(path) for path in sys.argv[1:])
if libc.renameat2(-100, one, -100, other, 2):
    raise OSError(ctypes.get_errno(), "renameat2")
"""


@pytest.mark.kernel_only("libfuse answers by path, and it has none")
@pytest.mark.parametrize("how", ["rmdir", "rename over it"])
def test_who_stands_in_a_removed_directory_is_told_so(place: Path, how: str) -> None:
    _make(place)
    (place / "gone").mkdir()
    with actors(place / "gone", 1) as (visitor,):
        if how == "rmdir":
            (place / "gone").rmdir()
        else:
            (place / "other").mkdir()
            (place / "other").rename(place / "gone")
        _look_at_all(place)
        assert visitor.value("os.stat('.').st_nlink") == 0
        assert visitor.value("os.listdir('.')") == []
        for change in ("open('model.pt', 'w')", "os.mkdir('run')", "os.stat('model.pt')"):
            with pytest.raises(Failed) as failed:
                visitor.do(change)
            assert failed.value.name == "ENOENT"
        (place / "gone/new").mkdir(parents=True)
        assert visitor.value("os.listdir('.')") == []


@pytest.fixture
def deep(served: Served) -> Iterator[Served]:
    yield served
    mounts.shell("rm -rf d", served.below)  # what else would remove it recurses


def test_deep_trees_are_served(deep: Served) -> None:
    levels = 1200
    with actors(deep.path, 1) as (user,):
        user.do(f"[(os.mkdir('d'), os.chdir('d')) for _ in range({levels})]")
        user.do("file = open('model.pt', 'w'); file.write('deep')")
        _make(deep.below)
        _look_at_all(deep.path / "group0")
        user.do("file.close()")
        assert user.value("open('model.pt').read()") == "deep"
        user.do("os.remove('model.pt')")
        user.do(f"[(os.chdir('..'), os.rmdir('d')) for _ in range({levels})]")
    assert not (deep.path / "d").exists()


# --- many open files -----------------------------------------------------------------------------

_TAKE_ALL = """
import errno
taken = []
try:
    while True:
        taken.append(open({name!r} % len(taken), {mode!r}))
except OSError as error:
    refused = errno.errorcode[error.errno]
"""


def _take_all(user: Actor, name: str, mode: str) -> None:
    for line in (f"source = {_TAKE_ALL.format(name=name, mode=mode)!r}", "exec(source)"):
        user.do(line)
    assert user.value("refused") == "ENFILE"


@pytest.mark.parametrize(("name", "mode"), [("new%d.pt", "w"), ("old.pt#%.0s", "r")])
def test_who_opens_too_many_files_stops_nobody(served: Served, name: str, mode: str) -> None:
    _make(served.path, 20)
    (served.path / "old.pt").write_text("old")
    name = name.replace("#", "")
    with actors(served.path, 2) as (user, trainer):
        trainer.do("file = open('group1/run1/model.pt', 'w'); file.write('new')")
        _take_all(user, name, mode)
        with pytest.raises(Failed) as refused:
            trainer.do("open('old.pt', 'w')")
        assert refused.value.name == "ENFILE"
        trainer.do("file.close()")
        assert (served.below / "group1/run1/model.pt").read_text() == "new"
        trainer.do("os.rename('group1/run1', 'group1/moved')")
        trainer.do("os.mkdir('group1/another'); os.remove('group1/moved/config.json')")
        assert len(os.listdir(served.path / "group1")) == 3

        done = served.ckptfs("status", "--check", served.path)
        assert done.returncode == 2
        assert "descriptors are used up" in done.stdout + done.stderr

        user.do("[file.close() for file in taken]")
        trainer.do("open('old.pt', 'w').write('newer')")
    assert (served.below / "old.pt").read_text() == "newer"
    served.wait_until(lambda: not os.listdir(served.below / ".ckptfs/stage"))
    assert served.ckptfs("status", "--check", served.path).returncode == 0


@pytest.mark.parametrize("mode", ["w", "r"])
def test_one_user_leaves_as_many_to_the_others_as_he_takes(served: Served, mode: str) -> None:
    served.path.chmod(0o777)
    with actors(served.path, 2) as (hostile, trainer):
        hostile.do("open('old.pt', 'w').write('old')")
        for user, uid in ((hostile, 60001), (trainer, 60002)):
            user.do(f"os.setgroups([]); os.setgid({uid}); os.setuid({uid})")
        _take_all(hostile, "new%d.pt" if mode == "w" else "old.pt%.0s", mode)
        trainer.do("held = [open(f'own{i}.pt', 'w') for i in range(5)]")
        trainer.do("[each.write('new') for each in held]; [each.close() for each in held]")
        assert trainer.value("[open(f'own{i}.pt').read() for i in range(5)]") == ["new"] * 5
        with pytest.raises(Failed):
            hostile.do("open('one more', 'w')")
        hostile.do("[file.close() for file in taken]")
        hostile.do("open('one more', 'w').close()")


# --- the long run --------------------------------------------------------------------------------


@pytest.mark.skipif(not _NAMES, reason="CKPTFS_NAMES=1000000 takes some minutes")
def test_a_million_names(disk_dir: Path) -> None:
    _fill(disk_dir, _NAMES)
    with mounts.served(disk_dir, limit_s=3600) as served:
        pid = served.status()["pid"]
        begin = time.monotonic()
        listed = mounts.shell("ls -lR . | wc -l", disk_dir, limit_s=3000)
        took_s = time.monotonic() - begin
        known, again = _resident(pid), time.monotonic()
        mounts.shell("ls -R . > /dev/null", disk_dir, limit_s=3000)
        again_s = time.monotonic() - again
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        (disk_dir / "group1/run200/model.pt").write_text("new")
        assert served.ckptfs("status", "--check", disk_dir).returncode == 0
        Path("/proc/sys/vm/drop_caches").write_text("2")
        time.sleep(3)
        measured = {
            "listed": int(listed),
            "ls -lR, s": round(took_s),
            "ls -R, s": round(again_s),
            "descriptors": descriptors,
            "resident MB": known >> 20,
            "once forgotten": _resident(pid) >> 20,
        }
        print(json.dumps(measured))
        assert known < _MOST_BYTES


def _fill(directory: Path, names: int) -> None:
    for i in range(0, names, 50):
        run = directory / f"group{i // 10_000}/run{i // 50}"
        run.mkdir(parents=True)
        for number in range(i, i + 50):
            os.close(os.open(run / f"model-{number:07}.pt", os.O_CREAT | os.O_WRONLY))


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS:"))
