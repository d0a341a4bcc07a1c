"""What programs may expect of any Linux filesystem, one by one: who owns and may use what is made,
whose times move, swaps of names, allocation, directory streams. Random operations are in
test_same_as_plain.py."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import mounts
import pytest
from actors import Actor
from trees import Tree

_CALLS = """
import ctypes, stat
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), 'failed')
def rename(old, new, flags):
    checked(libc.renameat2(-100, old.encode(), -100, new.encode(), flags))
def fallocate(fd, mode, offset, size):
    checked(libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)))
"""
_EXCHANGE = 2

_RIGHTS = """
set -u; cd "$1"; umask 022
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
echo '# default ACLs are inherited, and the umask does not count then'
mkdir a; setfacl -d -m u:65534:rwx,g:1:r-x,m::rwx a
(umask 077; echo x > a/f; mkdir a/d; mkfifo a/p; echo y > a/k.log; install -m 640 /dev/null a/i)
python3 -c "import os; os.open('a/x', os.O_CREAT | os.O_WRONLY, 0o640); os.mkdir('a/m', 0o1750)"
mkdir b; setfacl -d -m u::rwx,g::r-x,o::--- b; (umask 0; echo z > b/f; mkdir b/d)
for f in a/* b/*; do stat -c '%n %A' $f; getfacl -cp $f; done
echo '# an ACL lets in, also a later version'
echo secret > s; chmod 600 s; setfacl -m u:65534:r s; as_nobody cat s
echo over > s; as_nobody cat s; chmod 640 s; getfacl -cp s
echo '# a setgid directory hands on its group'
mkdir g; chown 0:1 g; chmod 2777 g
as_nobody sh -c 'echo 1 > g/f; mkdir g/d; mkfifo g/p; ln -s f g/l; stat -c "%n %A %u %g" g/*'
echo '# set-id bits go with a write, a truncation, a chown'
cat > p.py <<END
import os, sys
os.umask(0)
for mode in (0o4777, 0o2777, 0o6777, 0o2767):
    for what in sys.argv[1:]:
        path = f'{what}{mode:o}'
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))
        os.truncate(path, 5), os.chmod(path, mode)
        fd = os.open(path, os.O_RDWR | (os.O_TRUNC if what == 'trunc' else 0))
        {'write': lambda: os.write(fd, b'x'), 'trunc': lambda: 0,
         'cut': lambda: os.truncate(path, 3), 'fcut': lambda: os.ftruncate(fd, 2),
         'chown': lambda: os.chown(path, -1, 65534),
         'alloc': lambda: os.posix_fallocate(fd, 0, 99)}[what]()
        print(path, oct(os.fstat(fd).st_mode), oct(os.stat(path).st_mode))
        os.close(fd)
END
mkdir w; chmod 777 w; chmod 644 p.py; cd w
as_nobody python3 ../p.py write trunc cut fcut chown alloc; stat -c '%n %A %s' *; cd ..
mkdir r; cd r; python3 ../p.py write chown; stat -c '%n %A %s' *; cd ..
echo '# a sticky directory keeps the files of others'
mkdir t; chmod 1777 t; echo r > t/r; chmod 666 t/r
as_nobody sh -c 'rm -f t/r; mv t/r t/q; echo m > t/m; mv t/m t/r; rm t/m; echo new > t/r; ls t' 2>&1
stat -c '%n %A %u %g' t/*
"""


@pytest.mark.kernel_only(mounts.NOT_THERE)
@pytest.mark.skipif(not shutil.which("setfacl"), reason="setfacl is not installed")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed")
def test_owners_modes_and_acls_are_as_on_a_plain_directory(tree: Tree, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    said = []
    for directory in (tree.path, plain):
        directory.chmod(0o755)
        for parent in directory.parents[:-2]:
            parent.chmod(parent.stat().st_mode | 0o055)
        done = subprocess.run(
            ["bash", "-c", _RIGHTS, "bash", directory], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    assert said[0] == said[1]
    assert "user:nobody" in said[1] and "rws" in said[1]  # the control: there was something to see


# --- names ---------------------------------------------------------------------------------------


def test_exchange_swaps_committed_files(tree: Tree) -> None:
    tree.seed("f", "one", "two")
    tree.seed("d/g", "three")
    f, g = tree.record("f"), tree.record("d/g")
    with tree.actors(1) as (user,):
        user.do(f"{_CALLS}\nrename('f', 'd/g', {_EXCHANGE})")
        assert (user.content("f"), user.content("d/g")) == ("three", "two")
    assert (tree.record("f"), tree.record("d/g")) == (g, f)  # history follows the file
    tree.seed("d/g", "four")
    now, before = tree.record("d/g"), tree.record("f")
    assert f and g and now and before and (now.lineage, before.lineage) == (f.lineage, g.lineage)
    tree.assert_clean()


_MANY = 3000 if mounts.binding() == "kernel" else 600  # several buffers full; libfuse is slow


@pytest.mark.kernel_only("libfuse numbers the inodes")
def test_what_is_opened_for_writing_has_the_number_of_its_path(tree: Tree) -> None:
    """vim.tiny opens the file that it has looked at, and refuses another one (E949)."""
    tree.seed("f", "old")
    number = "os.stat('f').st_ino"
    with tree.actors(2) as (writer, reader):
        before = reader.value(number)
        writer.do("f = open('f', 'r+'); f.write('new')")
        assert writer.value(f"[os.fstat(f.fileno()).st_ino, {number}]") == [before, before]
        assert writer.value("[e.inode() for e in os.scandir() if e.name == 'f']") == [before]
        writer.do("f.close()")
        assert reader.value(number) == writer.value(number) == (tree.below / "f").stat().st_ino


def test_c5_what_a_symlink_replaces_is_kept(tree: Tree) -> None:
    tree.seed("f", "one")
    record = tree.record("f")
    assert record is not None
    with tree.actors(1) as (user,):
        user.do("os.symlink('elsewhere', 'l'); os.rename('l', 'f')")
        assert user.value("os.readlink('f')") == "elsewhere"
    (kept,) = (tree.mount.below / ".ckptfs/history" / record.lineage).iterdir()
    assert kept.read_text() == "one"


def test_a_hard_link_renamed_onto_its_file_changes_nothing(tree: Tree) -> None:
    tree.seed("f", "one")
    with tree.actors(1) as (user,):
        user.do("os.link('f', 'g'); before = os.stat('f'); os.rename('g', 'f')")
        assert user.value("[os.path.samefile('f', 'g'), os.stat('f').st_nlink]") == [True, 2]
        assert user.value("os.stat('f').st_ctime_ns == before.st_ctime_ns")


def test_a_directory_that_is_being_filled_is_not_replaced(tree: Tree) -> None:
    with tree.actors(2) as (writer, user):
        writer.do("os.mkdir('d'); f = open('d/f', 'w'); f.write('x'); f.flush()")
        user.do("os.mkdir('e')")
        assert user.errno_of("os.rename('e', 'd')") == "ENOTEMPTY"
        writer.do("f.close()")
        assert user.content("d/f") == "x"


_KINDS = {
    "file": "open({0!r}, 'w').write({0!r})",
    "in place": "open({0!r}, 'w').write({0!r})",
    "staged": "files[{0!r}] = f = open({0!r}, 'w'); f.write({0!r}); f.flush()",
    "overwritten": "open({0!r}, 'w').write('old')\n"
    "files[{0!r}] = f = open({0!r}, 'w'); f.write({0!r}); f.flush()",
    "directory": "os.mkdir({0!r}); open({0!r} + '/x', 'w').write({0!r})",
    "being filled": "os.mkdir({0!r}); files[{0!r}] = f = open({0!r} + '/x', 'w')\n"
    "f.write({0!r}); f.flush()",
    "symlink": "os.symlink('to-' + {0!r}, {0!r})",
    "fifo": "os.mkfifo({0!r})",
}
_LOOK = """
def look(name):
    s = os.lstat(name)
    if stat.S_ISDIR(s.st_mode):
        return os.listdir(name), open(name + '/x').read()
    return os.readlink(name) if stat.S_ISLNK(s.st_mode) else (
        open(name).read() if stat.S_ISREG(s.st_mode) else 'fifo')
def times(name):
    s = os.lstat(name)
    return [s.st_ino, s.st_mtime_ns], s.st_ctime_ns
def directory(name):
    s = os.stat(os.path.dirname(name) or '.')
    return s.st_mtime_ns, s.st_ctime_ns
def newer(old, new):
    return new[0] > old[0] and new[1] > old[1]
"""


@pytest.mark.parametrize("places", [("a", "b"), ("a", "d/b")])
@pytest.mark.parametrize("kinds", list(itertools.combinations_with_replacement(_KINDS, 2)))
def test_exchange_swaps_any_two(
    tree: Tree, kinds: tuple[str, str], places: tuple[str, str]
) -> None:
    names = [
        place + ".log" * (kind == "in place") for place, kind in zip(places, kinds, strict=True)
    ]
    one, other = map(repr, names)
    with tree.actors(2) as (user, reader):
        user.do(f"{_CALLS}\n{_LOOK}\nfiles = {{}}; os.mkdir('d')")
        for name, kind in zip(names, kinds, strict=True):
            user.do(_KINDS[kind].format(name))
        before = [user.value(f"[look({name!r}), *times({name!r})]") for name in names]
        user.do(f"folders = directory({one}), directory({other})")
        user.do(f"rename({one}, {other}, {_EXCHANGE})")
        after = [user.value(f"[look({name!r}), *times({name!r})]") for name in reversed(names)]
        assert [found[:2] for found in after] == [found[:2] for found in before]
        assert all(new[2] > old[2] for new, old in zip(after, before, strict=True))
        assert user.value(f"all(map(newer, folders, (directory({one}), directory({other}))))")
        user.do("for file in files.values(): file.close()")
        reader.do(f"{_CALLS}\n{_LOOK}")
        for actor in (user, reader):
            seen = [actor.value(f"look({name!r})") for name in reversed(names)]
            assert seen == [found[0] for found in before]
        user.do(f"rename({one}, {other}, {_EXCHANGE})")
        for actor in (user, reader):
            assert [actor.value(f"look({name!r})") for name in names] == [f[0] for f in before]
    tree.settle()


def test_exchange_refuses_what_cannot_be_swapped(tree: Tree) -> None:
    tree.seed("d/e/f", "deep")
    with tree.actors(1) as (user,):
        user.do(f"{_CALLS}")
        for old, new, expected in (
            ("d", "none", "ENOENT"),
            ("none", "d", "ENOENT"),
            ("d", "d/e", "EINVAL"),
            ("d/e/f", "d", "EINVAL"),
            ("d/e/f", "d/none/g", "ENOENT"),
        ):
            assert user.errno_of(f"rename({old!r}, {new!r}, {_EXCHANGE})") == expected
        assert user.errno_of(f"rename('d', 'none', {_EXCHANGE | 1})") == "EINVAL"
        user.do(f"rename('d/e/f', 'd/e/f', {_EXCHANGE}); rename('d', 'd', {_EXCHANGE})")
        assert user.content("d/e/f") == "deep"


def test_exchange_swaps_what_is_being_written(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, other):
        writer.do(f"{_CALLS}\nn = open('new', 'w'); n.write('new'); n.flush()")
        writer.do(f"rename('new', 'f', {_EXCHANGE})")
        assert (writer.content("f"), writer.content("new")) == ("new", "old")
        assert other.content("new") == "old"
        writer.do("n.close()")
        assert (other.content("f"), other.content("new")) == ("new", "old")
    tree.assert_clean()


def test_exchange_takes_overwrites_that_are_under_way_along(tree: Tree) -> None:
    """Each is committed where its file is then, and keeps that file's history."""
    tree.seed("f", "f1")
    tree.seed("d/g", "g1")
    with tree.actors(3) as (one, two, other):
        one.do(f"{_CALLS}\nf = open('f', 'w'); f.write('f2'); f.flush()")
        two.do("g = open('d/g', 'w'); g.write('g2'); g.flush()")
        one.do(f"rename('f', 'd/g', {_EXCHANGE})")
        assert (one.content("d/g"), one.content("f")) == ("f2", "g1")
        assert (two.content("d/g"), two.content("f")) == ("f1", "g2")
        assert (other.content("d/g"), other.content("f")) == ("f1", "g1")
        lineages = tree.record("d/g"), tree.record("f")
        one.do("f.close()")
        assert (other.content("d/g"), other.content("f")) == ("f2", "g1")
        two.do("g.close()")
        assert (other.content("d/g"), other.content("f")) == ("f2", "g2")
        for name, old in zip(("d/g", "f"), lineages, strict=True):
            record = tree.record(name)
            assert old is not None and record is not None and record.lineage == old.lineage
    tree.assert_clean()


def test_a_rename_moves_the_change_time_of_what_is_being_written(tree: Tree) -> None:
    with tree.actors(1) as (user,):
        user.do("f = open('f', 'w'); f.write('x'); f.flush(); before = os.stat('f')")
        user.do("os.rename('f', 'g'); after = os.stat('g')")
        assert user.value("after.st_ctime_ns > before.st_ctime_ns")
        assert user.value("after.st_mtime_ns == before.st_mtime_ns")


@pytest.mark.parametrize("taken", ["os.unlink({!r})", "os.mkfifo('q'); os.rename('q', {!r})"])
def test_what_is_open_without_a_handle_outlives_its_name(tree: Tree, taken: str) -> None:
    """A FIFO is opened without a request, as is anything by O_PATH."""
    with tree.actors(1) as (user,):
        user.do("os.mkfifo('p'); p = os.open('p', os.O_RDWR)")
        user.do("os.symlink('f', 'l'); l = os.open('l', os.O_PATH | os.O_NOFOLLOW)")
        user.do("fds = (p, l); before = [os.fstat(fd).st_ino for fd in fds]")
        for name in "pl":
            user.do(taken.format(name))
        assert user.value("[os.fstat(fd).st_ino for fd in fds] == before")
        assert user.value("[os.fstat(fd).st_nlink for fd in fds]") == [0, 0]
        user.do("os.fchmod(p, 0o604)")
        assert user.value("oct(os.fstat(p).st_mode)[-3:]") == "604"


def test_a_file_that_was_closed_can_be_linked(tree: Tree) -> None:
    """Nobody waits for the commit of an empty one, so link(2) does; a file that is open has no
    second name yet."""
    with tree.actors(2) as (one, other):
        other.do(
            "for n in range(200):\n"
            "    os.close(os.open(f'a{n}', os.O_CREAT | os.O_WRONLY)); os.link(f'a{n}', f'b{n}')"
        )
        assert other.value("sorted({os.stat(n).st_nlink for n in os.listdir('.')})") == [2]
        one.do("f = open('c', 'w')")
        assert other.errno_of("os.link('c', 'd')") == "ENOTSUP"
        one.do("f.close()")
        other.do("os.link('c', 'd')")


def test_a_directory_stream_keeps_its_place_while_names_change(tree: Tree) -> None:
    with tree.actors(1) as (user,):
        user.do(f"os.mkdir('d')\nfor n in range({_MANY}): os.mknod('d/kept-%05d' % n)")
        user.do(f"for n in range({_MANY // 3}): os.mknod('d/gone-%05d' % n)")
        user.do("names = os.scandir('d'); seen = [next(names).name for _ in range(100)]")
        swap = "os.unlink('d/gone-%05d' % n); os.mknod('d/made-%05d' % n)"
        user.do(f"for n in range({_MANY // 3}): {swap}")
        user.do("os.rename('d/made-00000', 'd/moved'); seen += [entry.name for entry in names]")
        assert user.value("len(seen) == len(set(seen))")
        assert user.value("sum(name.startswith('kept') for name in seen)") == _MANY
        assert user.value("len(os.listdir('d'))") == _MANY + _MANY // 3


_STREAM = """
import ctypes
libc = ctypes.CDLL(None)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
def name(entry): return ctypes.string_at(entry + 19).decode()
stream = ctypes.c_void_p(libc.opendir(b'd'))
def read(count): return [name(libc.readdir(stream)) for _ in range(count)]
"""


def test_telldir_and_seekdir_come_back_to_the_same_names(tree: Tree) -> None:
    with tree.actors(1) as (user,):
        user.do(f"os.mkdir('d')\nfor n in range({_MANY}): os.mknod('d/%05d' % n)")
        user.do(f"{_STREAM}\nread({_MANY // 2}); place = ctypes.c_long(libc.telldir(stream))")
        user.do("later = read(100); libc.seekdir(stream, place)")
        assert user.value("read(100) == later")
        user.do("os.mknod('d/new'); libc.rewinddir(stream)")
        assert user.value(f"'new' in read({_MANY + 3})")


# --- times ---------------------------------------------------------------------------------------


def test_a_name_that_comes_or_goes_moves_the_times_of_its_directory(tree: Tree) -> None:
    """Staged ones too: readdir shows them, and programs that cache by the mtime must look."""
    with tree.actors(1) as (user,):
        user.do("os.mkdir('d'); t = lambda: os.stat('d').st_mtime_ns; before = t()")
        for step in (
            "f = open('d/f', 'w')",
            "os.rename('d/f', 'd/g')",
            "os.unlink('d/g')",
            "open('d/h', 'w').close()",
        ):
            user.do(step)
            assert user.value("t() > before"), step
            user.do("before = t()")
        user.do("f.close()")


def test_opening_for_update_moves_no_time(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(1) as (user,):
        user.do("before = os.stat('f').st_mtime_ns; f = open('f', 'r+')")
        assert user.value("os.fstat(f.fileno()).st_mtime_ns == before")
        user.do("f.write('new'); f.flush()")
        assert user.value("os.fstat(f.fileno()).st_mtime_ns > before")
        user.do("f.close()")


def test_now_is_the_clock_of_the_filesystem(tree: Tree) -> None:
    """Another clock would put a touched file after one that is written later."""
    with tree.actors(1) as (user,):
        user.do("open('a', 'w').close(); late = 0")
        user.do(
            "for n in range(200):\n"
            "    os.utime('a'); f = open('b', 'w'); f.write('x'); f.close()\n"
            "    late += os.stat('a').st_mtime_ns > os.stat('b').st_mtime_ns"
        )
        assert user.value("late") == 0


# --- attributes and data -------------------------------------------------------------------------


def test_the_attributes_of_a_fifo_can_be_changed(tree: Tree) -> None:
    """Opening it to look for a record would wait for its other end, and the mount with it."""
    with tree.actors(1) as (user,):
        user.do("os.mkfifo('p'); os.chmod('p', 0o604); os.utime('p'); os.chown('p', 1, 1)")
        assert user.errno_of("os.setxattr('p', 'user.a', b'x')") == "EPERM"
        user.do("os.setxattr('p', 'trusted.a', b'x'); os.link('p', 'q'); os.rename('q', 'r')")
        assert user.value("oct(os.stat('p').st_mode)[-3:], os.stat('p').st_uid") == ["604", 1]


@pytest.mark.kernel_only(mounts.NO_NAME)
@pytest.mark.parametrize("name", ["f", "run.log"])
def test_a_deleted_file_that_is_open_keeps_its_attributes(tree: Tree, name: str) -> None:
    tree.seed(name, "old")
    with tree.actors(1) as (user,):
        user.do(f"fd = os.open({name!r}, os.O_RDONLY); os.unlink({name!r})")
        user.do("os.fchmod(fd, 0o604); os.fchown(fd, 1, 1); os.setxattr(fd, 'user.a', b'x')")
        user.do("os.utime(fd, (1, 1)); s = os.fstat(fd)")
        assert user.value("oct(s.st_mode)[-3:], s.st_uid, s.st_mtime") == ["604", 1, 1]
        assert user.value("os.listxattr(fd), s.st_nlink") == [["user.a"], 0]
        user.do(f"open({name!r}, 'w').close(); os.fchmod(fd, 0o600)")
        assert user.value(f"oct(os.stat({name!r}).st_mode)[-3:]") == "644"


def test_what_others_change_while_a_file_is_written_is_not_lost(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, other):
        writer.do("f = open('f', 'w'); f.write('new'); f.flush()")
        other.do("os.chmod('f', 0o640); os.chown('f', 1, 1); os.setxattr('f', 'user.a', b'x')")
        writer.do("f.close(); s = os.stat('f')")
        assert writer.value("oct(s.st_mode)[-3:], s.st_uid, os.listxattr('f')") == [
            "640",
            1,
            ["user.a"],
        ]
        assert other.content("f") == "new"
    tree.assert_clean()


def test_a_mode_alone_that_is_set_through_a_descriptor_stays(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(1) as (user,):
        user.do("f = open('f', 'r+'); os.fchmod(f.fileno(), 0o604); f.close()")
        assert user.value("oct(os.stat('f').st_mode)[-3:]") == "604"
        assert user.content("f") == "old"
    tree.assert_clean()


@pytest.mark.kernel_only(mounts.NOT_THERE)
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (0x01, "abcdefghij"),  # KEEP_SIZE
        (0x03, "abc\0\0\0ghij"),  # PUNCH_HOLE
        (0x10, "abc\0\0\0ghij"),  # ZERO_RANGE
    ],
)
def test_fallocate_is_a_change_like_a_write(tree: Tree, mode: int, expected: str) -> None:
    tree.seed("f", "abcdefghij")
    with tree.actors(2) as (writer, reader):
        writer.do(f"{_CALLS}\nf = open('f', 'r+'); fallocate(f.fileno(), {mode}, 3, 3)")
        assert reader.content("f") == "abcdefghij"
        assert writer.content("f") == expected
        writer.do("f.close()")
        assert reader.content("f") == expected
    tree.assert_clean()


def test_copy_file_range_between_versions(tree: Tree) -> None:
    tree.seed("f", "0123456789" * 1000)
    with tree.actors(2) as (writer, reader):
        writer.do("f, g = open('f', 'rb'), open('g', 'wb')")
        writer.do("assert os.copy_file_range(f.fileno(), g.fileno(), 5000, 3, 10) == 5000")
        writer.do("g.close()")
        assert reader.content("g") == "\0" * 10 + ("0123456789" * 1000)[3:5003]
    tree.assert_clean()


def test_fsync_of_a_directory_waits_for_what_was_closed_in_it(tree: Tree) -> None:
    """``: > f`` is committed behind its close; a barrier after it says when."""
    with tree.actors(1) as (user,):
        for n in range(20):
            user.do(f"os.close(os.open('f{n}', os.O_CREAT | os.O_WRONLY))")
            _sync_directory(user)
            assert tree.record(f"f{n}") is not None


def _sync_directory(user: Actor) -> None:
    user.do("d = os.open('.', os.O_RDONLY); os.fsync(d); os.close(d)")


@pytest.mark.parametrize("size", [1 << 19, 8 << 20])
def test_a_sparse_file_stays_sparse(tree: Tree, size: int) -> None:
    """Also when it is opened to go on, which copies it on ext4; and what is allocated stays so."""
    with tree.actors(1) as (user,):
        user.do(f"f = open('s', 'wb'); f.truncate({size}); f.seek({size // 2}); f.write(b'x')")
        user.do(f"f.close(); f = open('a', 'wb'); os.posix_fallocate(f.fileno(), 0, {size})")
        user.do("f.close(); old = {n: os.stat(n) for n in 'sa'}")
        for name in "sa":
            user.do(f"f = open('{name}', 'r+b'); f.seek(9); f.write(b'y'); f.close()")
        user.do("new = {n: os.stat(n) for n in 'sa'}")
        assert user.value("new['s'].st_ino != old['s'].st_ino")  # the control: it was copied
        assert user.value("new['s'].st_blocks * 512") < size // 4
        assert user.value("new['a'].st_blocks * 512") >= size
        whole = f"bytes(9) + b'y' + bytes({size // 2 - 10}) + b'x' + bytes({size // 2 - 1})"
        assert user.value(f"open('s', 'rb').read() == {whole}")
    tree.assert_clean()


def test_times_before_1970(tree: Tree) -> None:
    """Seen with xfstests: a file with such a time could not be looked at any more."""
    tree.seed("old", "x")
    with tree.actors(1) as (user,):
        for second in (-1, -315_619_200, -(2**31) + 1):
            times = [second * 10**9 + 7, second * 10**9 + 9]
            user.do(f"os.utime('old', ns={tuple(times)})")
            assert user.value("[os.stat('old').st_atime_ns, os.stat('old').st_mtime_ns]") == times
            assert user.value("[e.stat().st_mtime_ns for e in os.scandir('.')]") == times[1:]
            assert user.content("old") == "x"
            tree.assert_clean()
        user.do("open('old', 'a').write('y')")
        assert user.content("old") == "xy"
    tree.assert_clean()
