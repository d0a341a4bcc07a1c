"""What a path shows while it is being written, and to whom."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import mounts
import pytest
from actors import Failed, actors
from trees import Tree

NOBODY = 65534
# Inside the process: an interpreter may lie where nobody but its owner can start it.
_BECOME_NOBODY = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); os.umask(0o027)"


# --- staged names --------------------------------------------------------------------------------


def test_the_writer_its_threads_and_its_children_see_what_it_stages(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do(
            "import subprocess, threading\n"
            "f = open('f', 'w'); f.write('new'); f.flush()\n"
            "subprocess.run(['gzip', '-k', 'f'], check=True)\n"
            "seen = []\n"
            "t = threading.Thread(target=lambda: seen.append(open('f').read()))\n"
            "t.start(); t.join()\n"
            "seen.append(subprocess.check_output('(cat f)', shell=True, text=True))"
        )
        assert writer.value("seen + [open('f').read(), os.stat('f').st_size]") == [
            *["new"] * 3,
            3,
        ]
        assert reader.content("f") == "old"
        assert mounts.shell("gunzip -c f.gz; cat f", tree.path) == "newold"
        writer.do("f.close()")
        assert reader.content("f") == "new"
    tree.assert_clean()


def test_a_new_file_is_seen_by_everybody_while_it_is_written(tree: Tree) -> None:
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w'); f.write('half'); f.flush()")
        assert reader.content("f") == "half"
        assert reader.value("os.stat('f').st_size") == 4
        assert reader.errno_of("os.open('f', os.O_CREAT | os.O_EXCL | os.O_WRONLY)") == "EEXIST"
        assert reader.errno_of("os.mkdir('f')") == "EEXIST"
        assert reader.errno_of("os.symlink('x', 'f')") == "EEXIST"
        writer.do("f.write(' and half'); f.close()")
        assert reader.content("f") == "half and half"
    tree.assert_clean()


@pytest.mark.kernel_only(mounts.NO_NAME)
def test_directories_count_the_names_that_are_being_written(tree: Tree) -> None:
    with tree.actors(2) as (writer, reader):
        writer.do("os.mkdir('d'); f = open('d/f', 'w'); f.write('x'); f.flush()")
        assert reader.value("os.listdir('d')") == ["f"]
        assert reader.errno_of("os.rmdir('d')") == "ENOTEMPTY"
        assert writer.errno_of("os.rmdir('d')") == "ENOTEMPTY"
        reader.do("os.unlink('d/f'); os.rmdir('d')")
        writer.do("f.write('y'); f.flush(); f.seek(0)")
        writer.do("assert os.fstat(f.fileno()).st_size == 2; f.close()")
    tree.settle()
    assert os.listdir(tree.path) == []
    assert not tree.aside("salvage", "d/f")


def test_an_unlinked_version_is_never_published(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, other):
        writer.do("f = open('f', 'w+'); f.write('new'); f.flush(); os.unlink('f')")
        assert other.content("f") is writer.content("f") is None
        other.do("open('f', 'w').write('by another')")
        writer.do("f.write('er'); f.seek(0); assert f.read() == 'newer'; f.close()")
        assert other.content("f") == writer.content("f") == "by another"
    tree.settle()
    tree.assert_clean()


def test_truncating_starts_a_private_version_beside_another_writer(tree: Tree) -> None:
    with tree.actors(3) as (one, two, reader):
        one.do("f = open('f', 'w'); f.write('one'); f.flush()")
        two.do("f = open('f', 'w'); f.write('two'); f.flush()")
        assert (one.content("f"), two.content("f")) == ("one", "two")
        one.do("f.close()")
        assert (reader.content("f"), two.content("f")) == ("one", "two")
        two.do("f.close()")
        assert reader.content("f") == one.content("f") == "two"
    tree.assert_clean()


def test_truncating_read_write_opens_the_empty_file_that_was_just_made(tree: Tree) -> None:
    """mkstemp, then open(name, 'w+'): the same file, as two descriptors of it show."""
    with tree.actors(1) as (writer,):
        writer.do("a = os.open('f', os.O_RDWR | os.O_CREAT | os.O_EXCL)")
        writer.do("b = open('f', 'w+'); b.write('through b'); b.flush()")
        assert writer.value("os.pread(a, 100, 0).decode()") == "through b"
        assert writer.value("os.path.samestat(os.fstat(a), os.fstat(b.fileno()))")
        writer.do("b.close(); os.close(a)")
    assert tree.text("f") == "through b"


@pytest.mark.parametrize(
    ("rename", "name"),
    [
        ("os.rename('d/f', 'd/g')", "d/g"),
        ("os.rename('d', 'e')", "e/f"),
        ("os.rename('d/f', 'old')", "old"),
    ],
)
def test_a_rename_carries_the_version_that_is_being_written(
    tree: Tree, rename: str, name: str
) -> None:
    tree.seed("old", "old")
    with tree.actors(3) as (writer, renamer, reader):
        writer.do("os.mkdir('d'); f = open('d/f', 'w'); f.write('first '); f.flush()")
        renamer.do(rename)
        assert writer.content(name) == "first "
        assert reader.content(name) == ("old" if name == "old" else "first ")
        assert reader.content("d/f") is None
        writer.do("f.write('second'); f.close()")
        assert reader.content(name) == "first second"
    tree.assert_clean()


@pytest.mark.parametrize("link", ["/proc/self/fd/{}", "/dev/fd/{}"])
def test_descriptors_are_opened_again_by_their_link(tree: Tree, link: str) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w+'); f.write('one '); f.flush()")
        path = link.format(writer.value("f.fileno()"))
        assert writer.value(f"open({path!r}).read()") == "one "
        writer.do(f"g = open({path!r}, 'a'); g.write('two'); g.close()")
        assert reader.content("f") == "old"
        writer.do("f.close()")
        assert reader.content("f") == "one two"
        reader.do("f = open('f')")
        path = link.format(reader.value("f.fileno()"))
        assert reader.value(f"open({path!r}).read()") == "one two"
        # The kernel does not look such a path up again: it is written where it stands.
        reader.do(f"g = open({path!r}, 'r+'); g.write('ONE'); g.close()")
        assert writer.content("f") == "ONE two"
    tree.settle()
    tree.assert_clean()


@pytest.mark.parametrize(
    "script",
    [
        "(echo a; echo b >> /dev/stdout) > f",
        "(echo a; echo b >> /dev/stdout; echo c | tee -a /dev/stdout) > f",
        "exec 3> f; echo a >&3; echo b >> /dev/fd/3; exec 3>&-",
        "python3 -c \"open('/dev/stdout', 'w').write('x')\" > f",
        "(echo long; python3 -c \"open('/dev/stdout', 'w').write('x')\") > f",
    ],
)
def test_standard_output_is_opened_by_its_name(tree: Tree, tmp_path: Path, script: str) -> None:
    """The file itself is opened again: what comes out is what a plain directory gives."""
    mounts.shell(script, tree.path)
    mounts.shell(script, tmp_path)
    assert tree.text("f") == (tmp_path / "f").read_text()
    tree.settle()
    tree.mount.wait_until(lambda: tree.conditions() == {"f": "ok"})


# --- written in place ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.log", "model.lock", "wandb/x", "a/wandb/run/y", "m.jsonl"])
def test_files_of_these_patterns_are_written_in_place(tree: Tree, name: str) -> None:
    (tree.path / name).parent.mkdir(parents=True, exist_ok=True)
    with tree.actors(2) as (writer, reader):
        writer.do(f"f = open({name!r}, 'w'); f.write('step 1'); f.flush()")
        assert reader.content(name) == "step 1"
        writer.do("f.write(' step 2'); f.flush()")
        assert reader.content(name) == "step 1 step 2"
        writer.do("f.close()")
        writer.do(f"f = open({name!r}, 'w')")
        assert reader.content(name) == ""
        writer.do(f"g = open({name!r}, 'a'); g.write('again'); g.close(); f.close()")
        assert reader.content(name) == "again"
    assert tree.record(name) is None
    assert tree.conditions() == {name: "unrecorded"}


def test_more_patterns_by_option(disk_dir: Path) -> None:
    with (
        mounts.served(disk_dir, "--in-place", "*.tsv", "--in-place", "runs/**") as mount,
        actors(disk_dir, 2) as (writer, reader),
    ):
        (disk_dir / "runs").mkdir()
        for name in ("a.tsv", "runs/b.txt"):
            writer.do(f"f = open({name!r}, 'w'); f.write('x'); f.flush()")
            writer.do(f"g = open({name!r}, 'w')")
            assert reader.content(name) == ""
            writer.do("f.close(); g.close()")
        assert {"*.tsv", "runs/**"} <= set(mount.status()["in_place"])


def test_a_committed_file_that_becomes_in_place_loses_its_record(tree: Tree) -> None:
    """Else the next write would read as rot."""
    tree.seed("f", "first", "second")
    with tree.actors(1) as (writer,):
        writer.do("os.rename('f', 'f.log'); open('f.log', 'a').write(' more')")
    assert tree.text("f.log") == "second more"
    assert tree.record("f.log") is None


# --- whose file it is ----------------------------------------------------------------------------


def test_a_new_version_keeps_owner_mode_and_xattrs_of_the_old_one(tree: Tree) -> None:
    path = tree.seed("f", "old")
    os.chown(path, NOBODY, 1234)
    path.chmod(0o604)
    os.setxattr(path, "user.note", b"kept")
    tree.seed("f", "new")
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY, 1234, 0o604)
    assert os.getxattr(path, "user.note") == b"kept"
    tree.assert_clean()


def test_a_new_path_belongs_to_the_caller(tree: Tree) -> None:
    tree.path.chmod(0o777)
    with tree.actors(1) as (nobody,):
        nobody.do(_BECOME_NOBODY)
        nobody.do("f = open('f', 'w'); f.write('x'); f.flush()")
        for look in (tree.path / "f", tree.path / "d"):
            nobody.do("os.mkdir('d')") if look.name == "d" else None
            status = look.stat()
            assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY)
            assert status.st_mode & 0o7777 == (0o750 if look.name == "d" else 0o640)
        nobody.do("f.close()")
        assert (tree.path / "f").stat().st_uid == NOBODY
        nobody.do("os.chmod('f', 0o400)")
        assert nobody.errno_of("open('f', 'a')") == "EACCES"
        (tree.path / "roots").touch(0o600)
        assert nobody.errno_of("open('roots')") == "EACCES"
        assert nobody.errno_of("open('roots', 'w')") == "EACCES"


def test_a_setgid_directory_gives_its_group(tree: Tree) -> None:
    os.chown(tree.path, 0, 4321)
    tree.path.chmod(0o2777)
    with tree.actors(1) as (nobody,):
        nobody.do(_BECOME_NOBODY)
        nobody.do("open('f', 'w').write('x'); os.mkdir('d'); os.symlink('f', 's')")
    assert {p.lstat().st_gid for p in tree.path.iterdir()} == {4321}
    assert (tree.path / "d").stat().st_mode & stat.S_ISGID


# --- what belongs to ckptfs ----------------------------------------------------------------------


def test_the_control_directory_is_hidden_and_cannot_be_touched(tree: Tree) -> None:
    root = tree.mount.path
    assert ".ckptfs" not in os.listdir(root)
    assert [entry.name for entry in os.scandir(root)] == os.listdir(root)
    with actors(root, 1) as (user,):
        assert user.errno_of("os.mkdir('.ckptfs')") in ("EEXIST", "EPERM")
        assert user.errno_of("os.rmdir('.ckptfs')") in ("EPERM", "ENOTEMPTY", "EACCES")
        assert user.errno_of("os.rename('.ckptfs', 'x')") == "EPERM"
        assert user.errno_of(f"os.rename({tree.name!r}, '.ckptfs')") in ("EPERM", "ENOTEMPTY")
        assert user.errno_of("open('.ckptfs/x', 'w')") in ("EPERM", "ENOENT", "EACCES")
        assert user.errno_of("os.unlink('.ckptfs/status.json')") in ("EPERM", "EACCES")
        assert user.errno_of("open('.ckptfs/status.json', 'a')") in ("EPERM", "EACCES")
        assert json.loads(user.value("open('.ckptfs/status.json').read()"))["mode"]
        assert user.errno_of("open('.ckptfs/lock')") == "ENOENT"
    # Only at the root: the name is free below it.
    (tree.path / ".ckptfs").mkdir()
    assert os.listdir(tree.path) == [".ckptfs"]


def test_the_record_can_be_read_by_its_name_alone(tree: Tree) -> None:
    """Changing it has no effect, and is no error: tools that restore a backup bring one along."""
    path = tree.seed("f", "x")
    record = os.getxattr(path, "user.ckptfs")
    assert record.startswith(b"ckptfs")
    assert os.listxattr(path) == []
    with path.open("r+") as staged:
        for file in (path, tree.path, staged.fileno()):
            os.setxattr(file, "user.ckptfs", b"forged")
            os.removexattr(file, "user.ckptfs")
    assert os.getxattr(path, "user.ckptfs") == record
    with pytest.raises(OSError, match="No data"):
        os.getxattr(tree.path, "user.ckptfs")
    with pytest.raises(PermissionError):
        os.setxattr(tree.mount.path / ".ckptfs", "user.ckptfs", b"forged")
    shutil.copy2(path, tree.path / "copy")
    record, copy = tree.record("f"), tree.record("copy")
    assert record and copy and record.digest == copy.digest and record.lineage != copy.lineage
    tree.assert_clean()


# --- directories ---------------------------------------------------------------------------------


def test_working_directories_stay_valid_over_commits_in_them(tree: Tree) -> None:
    with tree.actors(2) as (stays, writer):
        stays.do("os.makedirs('a/b'); os.chdir('a/b')")
        here = stays.value("os.getcwd()")
        for version in range(5):
            writer.do(f"open('a/b/f', 'w').write('{version}')")
            assert stays.value("os.getcwd()") == here == f"{tree.path}/a/b"
            assert stays.content("f") == str(version)
        stays.do("f = open('g', 'w'); f.write('x'); f.flush()")
        assert stays.value("os.getcwd()") == here
        writer.do("os.rename('a', 'moved')")
        assert stays.value("os.getcwd()") == f"{tree.path}/moved/b"
        stays.do("f.close()")
    assert tree.text("moved/b/g") == "x"


# --- whole trees ---------------------------------------------------------------------------------


def _make_source(at: Path) -> None:
    (at / "sub/deep").mkdir(parents=True)
    for n, name in enumerate(("a.pt", "sub/b.bin", "sub/deep/c.txt", "empty", "näme ü.bin")):
        path = at / name
        path.write_bytes(b"" if name == "empty" else b"x" + os.urandom(1000 * n))
        path.chmod(0o640 if n % 2 else 0o755)
        os.utime(path, ns=(10**18 + n, 10**18 + n * 12345))
        os.setxattr(path, "user.tag", str(n).encode())
    (at / "link").symlink_to("sub/deep/c.txt")
    os.utime(at / "sub", ns=(10**18, 10**18 + 7))


def _facts(root: Path, *, xattrs: bool, times: bool = True) -> dict[str, object]:
    facts = {}
    for folder, dirs, files in os.walk(root):
        for name in (*dirs, *files):
            path = Path(folder) / name
            status = path.lstat()
            fact: list[object] = [stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)]
            if path.is_symlink():
                fact.append(os.readlink(path))
            elif path.is_file():
                fact += [path.read_bytes(), status.st_mtime_ns if times else None]
                fact.append(os.listxattr(path) if xattrs else None)
            facts[str(path.relative_to(root))] = fact
    return facts


_COPIES = {
    "cp": ("cp -a {from}/. {to}", True),
    "rsync": ("rsync -aX {from}/ {to}", True),
    "tar": ("tar -C {from} --xattrs -cf - . | tar -C {to} --xattrs -xf -", True),
    "copytree": (
        "python3 -c \"import shutil; shutil.copytree('{from}', '{to}', symlinks=True,"
        ' dirs_exist_ok=True)"',
        True,
    ),
    "plain": ("cp -rp {from}/. {to}", False),
}


@pytest.mark.parametrize("copy", _COPIES)
def test_c9_copies_of_a_tree_are_equal_in_and_out(tree: Tree, tmp_path: Path, copy: str) -> None:
    command, xattrs = _COPIES[copy]
    if shutil.which(copy) is None and copy == "rsync":
        pytest.skip("rsync is not installed")
    source, back = tmp_path / "source", tmp_path / "back"
    into, again = tree.path / "in", tree.path / "again"
    for directory in (source, back, into, again):
        directory.mkdir()
    _make_source(source)
    wanted = _facts(source, xattrs=xattrs)
    for origin, target in ((source, into), (into, again), (again, back)):
        mounts.shell(command.format(**{"from": origin, "to": target}), tmp_path)
        assert _facts(target, xattrs=xattrs) == wanted
    tree.settle()
    tree.assert_clean()
    # Over a tree that is there: the same again, as new versions (copytree keeps no old link).
    (into / "link").unlink()
    mounts.shell(command.format(**{"from": source, "to": into}), tmp_path)
    assert _facts(into, xattrs=xattrs) == wanted
    tree.settle()
    tree.assert_clean()


def test_c9_trees_are_moved_and_removed(tree: Tree, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _make_source(source)
    wanted = _facts(source, xattrs=True)
    mounts.shell(f"mv {source} {tree.path}/in", tmp_path)
    assert _facts(tree.path / "in", xattrs=True) == wanted
    mounts.shell("mv in moved", tree.path)
    tree.settle()
    tree.assert_clean()
    mounts.shell(f"mv moved {tmp_path}/out", tree.path)
    assert _facts(tmp_path / "out", xattrs=True) == wanted
    mounts.shell(f"cp -a {tmp_path}/out in && rm -r in", tree.path)
    assert os.listdir(tree.path) == []
    assert list(tree.below.iterdir()) == []


def test_c9_the_files_below_are_plain_ones(tree: Tree) -> None:
    """The control: what the mount shows is what lies under the same names without it."""
    _make_source(tree.path)
    tree.settle()
    below = _facts(tree.below, xattrs=False)
    assert below == _facts(tree.path, xattrs=False) and len(below) == 8


def test_a_failed_copy_says_so(tree: Tree) -> None:
    """The control: an error in the middle is not lost on the way through the mount."""
    (tree.path / "target").mkdir()
    with tree.actors(1) as (user,), pytest.raises(Failed):
        user.do("import shutil; shutil.copy2('missing', 'target')")
    done = subprocess.run(
        ["cp", "-a", "missing", "target"], cwd=tree.path, capture_output=True, timeout=10
    )
    assert done.returncode != 0
