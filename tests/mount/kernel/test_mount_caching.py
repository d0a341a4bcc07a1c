"""What the kernel remembers of names and attributes is right, whoever changed them."""

from __future__ import annotations

import os

import mounts
import pytest
from actors import Actor
from trees import Tree

_LOOKS = ("LOOKUP", "GETATTR", "READDIRPLUS")
_STAT = "[os.stat(name) and None for name in names]"


def _looks(tree: Tree) -> int:
    requests = tree.mount.status()["requests"]
    return sum(int(requests.get(name, 0)) for name in _LOOKS)


def _sent(tree: Tree, actor: Actor, code: str) -> int:
    """Lookups and the like that the code costs, beyond those of a look at the status."""
    before = _looks(tree)
    own = _looks(tree) - before
    before = _looks(tree)
    actor.do(code)
    return _looks(tree) - before - own


@pytest.mark.kernel_only(mounts.NO_CACHE)
def test_a_cached_stat_does_not_reach_the_daemon(tree: Tree) -> None:
    """With the control: files with two names are asked for each time."""
    with tree.actors(1) as (actor,):
        actor.do("names = [f'd/{i}' for i in range(100)]; os.mkdir('d')")
        actor.do("for name in names: open(name, 'w').write('x')")
        actor.do(_STAT)
        assert _sent(tree, actor, _STAT) < 20
        actor.do("for name in names: os.link(name, name + 'b')")
        assert _sent(tree, actor, _STAT) >= 100


def test_a_name_that_is_missing_is_asked_for_once(tree: Tree) -> None:
    with tree.actors(1) as (actor,):
        look = "[os.path.exists(f'none{i}') for i in range(100)]"
        assert _sent(tree, actor, look) >= 100
        assert _sent(tree, actor, look) < 20


def test_a_name_that_was_missing_is_seen_once_it_is_made(tree: Tree) -> None:
    tree.seed("f", "x")
    makes = {
        "open": "f = open('open', 'w'); f.write('x'); f.flush()",
        "mkdir": "os.mkdir('mkdir')",
        "link": "os.link('f', 'link')",
        "symlink": "os.symlink('f', 'symlink')",
        "mkfifo": "os.mkfifo('mkfifo')",
        "rename": "os.rename('f', 'rename')",
    }
    with tree.actors(2) as (maker, looker):
        for name, make in makes.items():
            assert looker.value(f"os.path.lexists({name!r})") is False
            maker.do(make)
            assert looker.value(f"os.path.lexists({name!r})") is True
        maker.kill()  # what was never closed is gone again
        tree.mount.wait_until(lambda: looker.value("os.path.lexists('open')") is False)


def test_ls_is_told_that_there_are_no_labels(tree: Tree) -> None:
    """It remembers that of a whole filesystem. A label that is there is given."""
    tree.seed("f", "x")
    tree.seed("g", "x")
    with tree.actors(1) as (actor,):
        assert actor.errno_of("os.getxattr('f', 'security.selinux')") == "ENOTSUP"
        assert actor.errno_of("os.getxattr('f', 'security.other')") == "ENODATA"
        actor.do("os.setxattr('g', 'security.selinux', b'label')")
        assert actor.value("os.getxattr('g', 'security.selinux').decode()") == "label"


@pytest.mark.kernel_only(mounts.NO_CACHE)
def test_a_listing_brings_the_attributes_along(tree: Tree) -> None:
    with tree.actors(1) as (actor,):
        actor.do("os.mkdir('d'); [open(f'd/{i}', 'w').close() for i in range(200)]")
        sent = _sent(tree, actor, "for entry in os.scandir('d'): entry.stat()")
        assert sent < 60


def test_a_commit_of_another_process_is_seen_at_once(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        for text in ("longer", "x", "still longer"):
            before = reader.value("[os.stat('f').st_size, os.stat('f').st_ino]")
            writer.do(f"f = open('f', 'w'); f.write({text!r}); f.flush()")
            assert reader.value("[os.stat('f').st_size, os.stat('f').st_ino]") == before
            writer.do("f.close()")
            after = reader.value("[os.stat('f').st_size, os.stat('f').st_ino]")
            assert after[0] == len(text) and after[1] != before[1]
            assert reader.content("f") == text


def test_attributes_after_a_commit_are_the_files_own(tree: Tree) -> None:
    """The seal moves the ctime once more, behind the kernel's back."""
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'wb'); f.write(b'x' * 5000); f.flush(); os.stat('f'); f.close()")
        names = ["st_size", "st_ino", "st_mtime_ns", "st_ctime_ns", "st_nlink", "st_mode"]
        code = f"[getattr(os.stat('f'), name) for name in {names}]"
        below = os.stat(tree.below / "f")
        assert reader.value(code) == [getattr(below, name) for name in names]


def test_a_directory_shows_what_was_made_in_it(tree: Tree) -> None:
    with tree.actors(2) as (writer, reader):
        writer.do("os.mkdir('d'); f = open('d/f', 'w'); f.write('x'); f.flush()")
        before = reader.value("os.stat('d').st_mtime_ns")
        writer.do("f.close()")
        tree.settle()
        assert reader.value("os.stat('d').st_mtime_ns") > before


def test_one_count_of_links_under_every_name(tree: Tree) -> None:
    tree.seed("a", "x")
    with tree.actors(2) as (one, other):
        assert other.value("os.stat('a').st_nlink") == 1
        one.do("os.link('a', 'b'); os.link('b', 'c')")
        assert other.value("[os.stat(n).st_nlink for n in 'abc']") == [3] * 3
        one.do("os.chmod('b', 0o604); os.unlink('c')")
        assert (
            other.value("[[os.stat(n).st_nlink, os.stat(n).st_mode & 0o777] for n in 'ab']")
            == [[2, 0o604]] * 2
        )


def test_one_count_of_links_under_every_name_of_a_special_file(tree: Tree) -> None:
    """Seen with pjdfstest: only a regular file with several names was asked for each time."""
    with tree.actors(2) as (one, other):
        one.do("os.mkfifo('a'); os.symlink('to', 's'); os.link('a', 'b'); os.link('b', 'c')")
        one.do("os.link('s', 't', follow_symlinks=False); os.link('t', 'u', follow_symlinks=False)")
        assert other.value("[os.lstat(n).st_nlink for n in 'abcstu']") == [3] * 6
        one.do("os.chmod('b', 0o604); os.unlink('c'); os.unlink('u')")
        assert other.value("[os.lstat(n).st_nlink for n in 'abst']") == [2] * 4
        assert other.value("[os.stat(n).st_mode & 0o777 for n in 'ab']") == [0o604] * 2


def test_a_store_through_a_mapping_moves_the_time(tree: Tree) -> None:
    with tree.actors(2) as (writer, reader):
        writer.do(
            "import mmap\n"
            "f = open('map.log', 'w+b'); f.truncate(4096); os.stat('map.log')\n"
            "m = mmap.mmap(f.fileno(), 4096)"
        )
        before = reader.value("os.stat('map.log').st_mtime_ns")
        writer.do("import time; time.sleep(0.01); m[0] = 1; m.flush()")
        assert reader.value("os.stat('map.log').st_mtime_ns") > before
        writer.do("m.close(); f.close()")


def test_an_edit_below_the_mount_is_seen_at_the_next_open(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(1) as (actor,):
        assert actor.value("os.stat('f').st_size") == 3
        with open(tree.below / "f", "a") as file:
            file.write(" and more")
        assert actor.content("f") == "old and more"
        assert actor.value("os.stat('f').st_size") == 12


def test_a_descriptor_opened_again_for_writing_shows_under_its_name(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        assert reader.value("os.stat('f').st_size") == 3
        writer.do("f = open('f', 'r+'); g = open(f'/proc/self/fd/{f.fileno()}', 'w')")
        writer.do("g.write('longer'); g.close(); f.close()")
        tree.settle()
        tree.mount.wait_until(lambda: reader.value("os.stat('f').st_size") == 6)


def test_removed_and_made_again(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (one, other):
        assert other.content("f") == "old"
        one.do("os.unlink('f')")
        assert other.errno_of("os.stat('f')") == "ENOENT"
        one.do("os.mkdir('f'); os.mkdir('f/g')")
        assert other.value("os.listdir('f')") == ["g"]
        one.do("os.rmdir('f/g'); os.rmdir('f'); os.symlink('elsewhere', 'f')")
        assert other.value("os.readlink('f')") == "elsewhere"
        mounts.shell("rm f; echo again > f", tree.path)
        assert other.content("f") == "again\n"


@pytest.mark.kernel_only(mounts.NO_CACHE)
def test_a_cached_listing_follows_every_change(tree: Tree) -> None:
    """With the control that listings are cached at all."""
    with tree.actors(2) as (one, other):
        listed = "sorted((e.name, e.inode() == e.stat().st_ino) for e in os.scandir('d'))"
        one.do("os.mkdir('d'); [open(f'd/{n}', 'w').close() for n in 'abc']")
        tree.settle()
        assert other.value(listed) == [[n, True] for n in "abc"]
        other.value(listed)
        requests = tree.mount.status()["requests"]
        other.value(listed)
        after = tree.mount.status()["requests"]
        assert all(after.get(op) == requests.get(op) for op in ("READDIR", "READDIRPLUS"))
        one.do("f = open('d/d', 'w'); f.write('x'); f.flush()")
        assert other.value(listed) == [[n, True] for n in "abcd"]
        one.do("f.close(); open('d/a', 'w').write('longer')")
        tree.settle()
        assert other.value(listed) == [[n, True] for n in "abcd"]
        one.do("os.rename('d/a', 'd/e'); os.unlink('d/b'); os.link('d/c', 'd/b2')")
        assert other.value(listed) == [[n, True] for n in ("b2", "c", "d", "e")]


def test_the_name_of_a_killed_writer_leaves_the_listing(tree: Tree) -> None:
    with tree.actors(2) as (writer, reader):
        writer.do("os.mkdir('d'); open('d/a', 'w').close()")
        reader.value("os.listdir('d')")
        writer.do("f = open('d/b', 'w'); f.write('x'); f.flush()")
        assert sorted(reader.value("os.listdir('d')")) == ["a", "b"]
        writer.kill()
        tree.mount.wait_until(lambda: reader.value("os.listdir('d')") == ["a"])
