"""The promises by every way into the store: the kernel's passthrough, its relay, libfuse's two
bindings."""

from __future__ import annotations

from collections.abc import Iterator

import mounts
import pytest
from trees import WAYS, Shared, Tree, shared_by


@pytest.fixture(scope="module", params=WAYS)
def shared_mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    """In place of the default mount of the other modules."""
    with shared_by(request.param, tmp_path_factory) as shared:
        yield shared


def test_c1_others_see_the_old_version_until_the_close(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w'); f.write('new'); f.flush()")
        assert (writer.content("f"), reader.content("f")) == ("new", "old")
        assert writer.value("os.stat('f').st_size") == 3
        writer.do("f.close()")
        assert reader.content("f") == "new"
        writer.do("f = open('f', 'a'); f.write('er'); f.close()")
        assert reader.content("f") == "newer"
    tree.assert_clean()


def test_c5_rot_is_rolled_back(tree: Tree) -> None:
    tree.seed("f", "good one", "good two")
    tree.rot("f")
    with tree.actors(2) as (writer, reader):
        assert reader.content("f") == "good one"
        assert tree.events("rolled back", "f")
        tree.assert_clean()
        writer.do("f = open('f', 'a'); f.write('-more'); f.close()")
        assert reader.content("f") == "good one-more"
    tree.assert_clean()


def test_c6_a_killed_writer_publishes_nothing(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w'); f.write('half'); f.flush()")
        writer.kill()
        tree.settle()
        assert reader.content("f") == "old"
    assert tree.aside("salvage", "f") == [b"half"]


def test_c7_a_reader_goes_on_with_what_it_opened(tree: Tree) -> None:
    tree.seed("f", "the old version")
    with tree.actors(2) as (reader, writer):
        reader.do("f = open('f', 'rb', buffering=0); assert f.read(4) == b'the '")
        for version in ("new", "another", "third"):
            writer.do(f"f = open('f', 'w'); f.write({version!r}); f.flush()")
            assert reader.value("os.pread(f.fileno(), 99, 4).decode()") == "old version"
            writer.do("f.close()")
            assert reader.content("f") == version
        assert reader.value("f.read().decode()") == "old version"


def test_ranks_and_readers_on_one_path_see_whole_versions(tree: Tree) -> None:
    tree.save_and_read_at_once()


def test_large_writes_at_any_offset(tree: Tree) -> None:
    with tree.actors(2) as (writer, reader):
        writer.do("data = os.urandom(5_000_001); f = open('f', 'wb'); f.write(data); f.seek(7)")
        writer.do("f.write(b'seven'); f.truncate(4_000_003); f.close()")
        writer.do("data = data[:7] + b'seven' + data[12:4_000_003]")
        assert writer.value("open('f', 'rb').read() == data")
        digest = "__import__('hashlib').sha256({}).hexdigest()"
        assert reader.value(digest.format("open('f', 'rb').read()")) == writer.value(
            digest.format("data")
        )
    tree.assert_clean()


def test_appends_of_two_processes_do_not_overwrite_each_other(tree: Tree) -> None:
    with tree.actors(2) as (one, two):
        one.do("f = open('f', 'ab', buffering=0); f.write(b'1')")
        two.do("f = open('f', 'ab', buffering=0)")
        for _ in range(20):
            one.send("f.write(b'1' * 10)")
            two.send("f.write(b'2' * 10)")
            one.answer(), two.answer()
        one.do("f.close()")
        two.do("f.close()")
    text = tree.text("f")
    assert text is not None and (text.count("1"), text.count("2")) == (201, 200)
    tree.settle()
    tree.assert_clean()


def test_an_emptied_file_is_empty_for_everybody_at_once(tree: Tree) -> None:
    """Several threads read requests when data is relayed; a LOOKUP must not overtake the RELEASE
    before it."""
    with tree.actors(1) as (user,):
        user.do(
            "for n in range(60):\n"
            "    f = open('f', 'w'); f.write('old'); f.close()\n"
            "    os.close(os.open('f', os.O_WRONLY | os.O_TRUNC))\n"
            "    assert os.stat('f').st_size == 0, n\n"
        )


def test_shell_redirections(tree: Tree) -> None:
    script = "(echo a; /bin/echo b) > f; echo c >> f; cat f; : > g; cat g; wc -c < f"
    assert mounts.shell(script, tree.path) == "a\nb\nc\n6\n"
    tree.settle()
    tree.assert_clean()


def test_descriptors_are_opened_again_by_their_link(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w+'); f.write('one '); f.flush()")
        writer.do("g = open(f'/proc/self/fd/{f.fileno()}', 'a'); g.write('two'); g.close()")
        writer.do("f.close()")
        assert reader.content("f") == "one two"
    tree.assert_clean()
