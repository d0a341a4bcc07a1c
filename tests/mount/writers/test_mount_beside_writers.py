"""What others do to a file while it is being written: they truncate it, change its metadata, delete
it. None of that is lost, and none undone by who closes later."""

from __future__ import annotations

import mounts
import pytest
from trees import Tree

_W = "os.O_WRONLY | os.O_CREAT"
_OLD, _NEW, _ADDED = "\0old", "\0new", "\0added"  # NUL: no log


def test_a_file_truncated_by_a_stranger_keeps_owner_mode_and_xattrs(tree: Tree) -> None:
    with tree.actors(2) as (writer, other):
        writer.do(f"fd = os.open('f', {_W}, 0o644); os.fchown(fd, 1, 2)")
        writer.do("os.setxattr(fd, 'user.of', b'writer'); os.write(fd, b'\\0first')")
        other.do("fd = os.open('f', os.O_WRONLY | os.O_TRUNC); os.write(fd, b'\\0second')")
        writer.do("os.close(fd)")
        other.do("os.close(fd); s = os.stat('f')")
        assert other.content("f") == "\0second"
        assert other.value("[s.st_uid, s.st_gid, s.st_mode & 0o777]") == [1, 2, 0o644]
        assert other.value("os.getxattr('f', 'user.of').decode()") == "writer"


@pytest.mark.parametrize("first", ["writer", "other"])
def test_what_an_O_TRUNC_took_away_does_not_come_back(tree: Tree, first: str) -> None:
    """Whoever of the two closes first; nothing was written behind it."""
    with tree.actors(2) as (writer, other):
        writer.do(f"fd = os.open('f', {_W}); os.write(fd, b'\\0first')")
        other.do("fd = os.open('f', os.O_WRONLY | os.O_TRUNC)")
        for actor in (writer, other) if first == "writer" else (other, writer):
            actor.do("os.close(fd)")
    tree.settle()
    assert tree.text("f") == ""
    assert tree.conditions() == {"f": "ok"}


def test_a_close_behind_a_change_of_metadata_does_not_undo_an_O_TRUNC(tree: Tree) -> None:
    tree.seed("f", _OLD)
    with tree.actors(2) as (writer, other):
        writer.do("fd = os.open('f', os.O_RDWR)")
        other.do("fd = os.open('f', os.O_WRONLY | os.O_TRUNC)")
        writer.do("os.fchmod(fd, 0o600); os.close(fd)")
        other.do("os.close(fd)")
    tree.settle()
    assert tree.text("f") == ""


def test_what_was_written_behind_an_O_TRUNC_stays(tree: Tree) -> None:
    """The control: the O_TRUNC, which nothing followed, does not take away what came later."""
    with tree.actors(2) as (writer, other):
        writer.do(f"fd = os.open('f', {_W}); os.write(fd, b'\\0first')")
        other.do("fd = os.open('f', os.O_WRONLY | os.O_TRUNC)")
        writer.do("os.write(fd, b'\\0more'); os.close(fd)")
        other.do("os.close(fd)")
    tree.settle()
    assert tree.text("f") == "\0first\0more"


def test_an_O_TRUNC_that_joins_an_empty_file_moves_its_times(tree: Tree) -> None:
    """And is no write: what is committed meanwhile is not replaced by nothing."""
    with tree.actors(3) as (maker, joiner, writer):
        maker.do(f"fd = os.open('f', {_W}); os.utime(fd, ns=(0, 0)); os.close(fd)")
        maker.do("fd = os.open('f', os.O_RDWR)")
        before = maker.value("os.fstat(fd).st_mtime_ns")
        maker.do("two = os.open('f', os.O_RDWR | os.O_TRUNC)")
        assert maker.value("os.fstat(fd).st_mtime_ns") > before == 0
        joiner.do(f"fd = os.open('g', {_W}); os.close(fd)")
        joiner.do("fd = os.open('g', os.O_RDWR | os.O_TRUNC)")
        joiner.do("two = os.open('g', os.O_RDWR | os.O_TRUNC)")
        writer.write("g", _NEW)
        joiner.do("os.close(fd); os.close(two)")
        maker.do("os.close(fd); os.close(two)")
    tree.settle()
    assert tree.text("g") == _NEW


def test_xattrs_and_mode_set_beside_a_live_and_a_staged_version_stay(tree: Tree) -> None:
    """The committed file is live: its writer has closed a duplicate and writes on. Another one
    has begun a version that will replace it."""
    tree.seed("f", _OLD)
    with tree.actors(3) as (live, writer, other):
        live.do("fd = os.open('f', os.O_RDWR); os.write(fd, b'\\0live'); os.close(os.dup(fd))")
        writer.do("fd = os.open('f', os.O_RDWR); os.write(fd, b'\\0next')")
        other.do("os.setxattr('f', 'user.of', b'other'); os.chmod('f', 0o640)")
        writer.do("os.close(fd)")
        live.do("os.close(fd)")
        assert other.value("os.getxattr('f', 'user.of').decode()") == "other"
        assert other.value("os.stat('f').st_mode & 0o777") == 0o640


@pytest.mark.parametrize("who", ["itself", "a stranger"])
@pytest.mark.parametrize(
    ("change", "left"),
    [("os.pwrite(g, b'X', 1)", "\0Xirstsecond"), ("os.ftruncate(g, 0)", "\0" * 6 + "second")],
)
def test_who_goes_on_behind_the_close_of_a_duplicate_loses_nothing(
    tree: Tree, who: str, change: str, left: str
) -> None:
    """As bash writes by ``exec 9>file``. Somebody edits the file meanwhile, without O_TRUNC."""
    with tree.actors(2) as (writer, other):
        writer.do(f"fd = os.open('f', {_W}); os.write(fd, b'\\0first'); os.close(os.dup(fd))")
        editor = writer if who == "itself" else other
        editor.do(f"g = os.open('f', os.O_RDWR); {change}")
        writer.do("os.write(fd, b'second')")
        editor.do("os.close(g)")
        writer.do("os.close(fd)")
    tree.settle()
    assert tree.text("f") == left
    assert tree.conditions() == {"f": "ok"}


@pytest.mark.parametrize(("written", "left"), [("", "\0olnew"), ("NEW", "NEWnew")])
def test_what_truncate_by_path_cut_off_does_not_come_back(
    tree: Tree, written: str, left: str
) -> None:
    """By the close of a stranger who had the file open for changes."""
    tree.seed("f", "\0old and more")
    with tree.actors(2) as (writer, other):
        writer.do(f"fd = os.open('f', os.O_RDWR); os.write(fd, {written.encode()!r})")
        writer.do("os.lseek(fd, 3, os.SEEK_SET)")
        other.do("os.truncate('f', 5)")
        assert writer.value("os.fstat(fd).st_size") == 5
        writer.do("os.write(fd, b'new'); os.close(fd)")
    tree.settle()
    assert tree.text("f") == left


def test_recording_a_log_anew_moves_no_access_time(tree: Tree) -> None:
    """By which descriptor it is read, and whether it was opened by its name."""
    tree.seed("log", "line\n")
    tree.seed("f", _OLD)
    with tree.actors(1) as (writer,):
        writer.do("past = (1_500_000_000 * 10**9,) * 2")
        writer.do("f = open('log', 'a'); f.write('more\\n'); f.flush()")
        writer.do("r = os.open('f', os.O_RDONLY); fd = os.open(f'/proc/self/fd/{r}', os.O_RDWR)")
        writer.do("os.write(fd, b'\\0ne'); os.close(r)")
        writer.do("os.utime('log', ns=past); os.utime('f', ns=past); f.close(); os.close(fd)")
        tree.settle()
        for name in ("log", "f"):
            assert writer.value(f"os.stat({name!r}).st_atime_ns == past[0]"), name


@pytest.mark.kernel_only(mounts.NO_NAME)
@pytest.mark.parametrize("how", ["os.unlink('f')", "os.rename('g', 'f')"])
def test_who_has_it_open_sees_at_once_that_it_has_no_name(tree: Tree, how: str) -> None:
    """The kernel keeps attributes; it knows of the removal for the node of who removes alone."""
    tree.seed("g", _NEW)
    tree.seed("f", _OLD)
    with tree.actors(3) as (reader, writer, other):
        reader.do("fd = os.open('f', os.O_RDONLY)")
        writer.do("fd = os.open('f', os.O_WRONLY); os.write(fd, b'\\0next')")
        assert writer.value("os.fstat(fd).st_nlink") == 1
        other.do(how)
        assert writer.value("os.fstat(fd).st_nlink") == 0
    with tree.actors(3) as (reader, writer, other):
        writer.do(f"fd = os.open('h', {_W}); os.write(fd, b'\\0one'); os.close(fd)")
        reader.do("fd = os.open('h', os.O_RDONLY); os.fstat(fd)")
        writer.do("fd = os.open('h', os.O_WRONLY); os.write(fd, b'\\0two'); os.unlink('h')")
        assert reader.value("os.fstat(fd).st_nlink") == 0


@pytest.mark.kernel_only(mounts.NO_NAME)
@pytest.mark.parametrize(
    ("how", "links"), [("os.unlink('f')", 0), ("os.rename('g', 'f')", 1)], ids=["unlink", "rename"]
)
def test_who_has_it_open_by_O_PATH_sees_that_too(tree: Tree, how: str, links: int) -> None:
    """History keeps what was replaced."""
    tree.seed("g", _NEW + _NEW)
    tree.seed("f", _OLD)
    with tree.actors(2) as (holder, other):
        holder.do("fd = os.open('f', os.O_PATH); os.fstat(fd)")
        other.do(how)
        seen = holder.value("[os.fstat(fd).st_nlink, os.fstat(fd).st_size]")
        assert seen == [links, len(_OLD)]


@pytest.mark.kernel_only(mounts.OWN_LOCKS)
def test_who_began_a_version_ahead_of_a_shared_lock_opens_it_again(tree: Tree) -> None:
    """The path is written in place since the lock; a version that was begun before is not."""
    with tree.actors(2) as (one, two):
        one.do("import fcntl")
        one.do(f"fd = os.open('f', {_W}); fcntl.flock(fd, fcntl.LOCK_SH); os.write(fd, b'\\0one')")
        two.do("import fcntl; fd = os.open('f', os.O_WRONLY | os.O_TRUNC); os.write(fd, b'\\0')")
        two.do("fcntl.flock(fd, fcntl.LOCK_SH)")
        two.do("again = os.open('f', os.O_WRONLY | os.O_TRUNC); os.write(again, b'\\0two')")
        two.do("os.close(fd); os.close(again)")
        one.do("os.close(fd)")
        tree.settle()
        assert tree.text("f") == "\0two"


def test_a_close_of_an_older_version_does_not_hide_the_own_one(tree: Tree) -> None:
    """Not even while it is being committed, and nobody waits for that: only a RELEASE tells."""
    tree.seed("f", _OLD)
    with tree.actors(2) as (one, two):
        for _ in range(20):
            one.do("fd = os.open('f', os.O_WRONLY | os.O_TRUNC)")
            two.do("fd = os.open('f', os.O_WRONLY | os.O_TRUNC); at = os.stat('f').st_mtime_ns")
            one.send("os.close(fd)")
            seen = two.value("[os.stat('f').st_mtime_ns == at for _ in range(50)]")
            one.answer()
            two.do("os.close(fd)")
            assert all(seen)


def test_what_is_changed_by_a_name_that_is_gone_shows_by_the_other(tree: Tree) -> None:
    """Attributes are cached of a file with one name: who had opened the other changes them, too."""
    tree.seed("f", "a line\n")
    with tree.actors(2) as (user, other):
        user.do("os.link('f', 'g'); f = os.open('f', os.O_WRONLY | os.O_APPEND)")
        user.do("os.write(f, b'more\\n'); os.unlink('f')")
        assert other.value("os.stat('g').st_nlink") == 1
        user.do("os.fchmod(f, 0o600)")
        assert other.value("oct(os.stat('g').st_mode)") == "0o100600"
        user.do("os.write(f, b'and more\\n')")
        assert other.value("os.stat('g').st_size") == user.value("os.fstat(f).st_size")


def test_a_version_that_is_overtaken_keeps_nobody_waiting(tree: Tree) -> None:
    """Closed by a duplicate and still open, it was neither committed nor done with: who opened
    the path for writing waited for ever."""
    with tree.actors(2) as (user, other):
        user.do("f = os.open('f', os.O_RDWR | os.O_CREAT); os.write(f, b'first')")
        user.do("g = os.open('f', os.O_RDWR | os.O_TRUNC); os.close(g); os.close(os.dup(f))")
        other.do("f = open('f', 'w'); f.write('new'); f.close()")
        assert other.content("f") == user.content("f") == "new"
        user.do("os.close(f)")
        assert other.content("f") == "new"
