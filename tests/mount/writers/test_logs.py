"""Logs and databases: seen by all at once, and kept when their writer is killed.

Text in a file without a known pattern was held back until it was closed: ``tail -f`` was blind, and
a killed run took its log along. What is meant to be whole stays a transaction.
"""

from __future__ import annotations

from collections.abc import Iterator

import mounts
import pytest
from trees import Shared, Tree, shared_by

from ckptfs.mount.writers.content import Content, judge, may_be_log


@pytest.fixture(scope="module", params=["passthrough", "relayed"])
def logging(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    with shared_by(request.param, tmp_path_factory) as shared:
        yield shared


@pytest.fixture
def tree(logging: Shared) -> Iterator[Tree]:
    with logging.tree() as tree:
        yield tree


@pytest.mark.parametrize("name", ["stdout.txt", "progress.tsv", "history", "state.json"])
def test_what_is_appended_to_text_is_seen_and_outlives_its_writer(tree: Tree, name: str) -> None:
    with tree.actors(2) as (writer, reader):
        writer.do(f"f = open('{name}', 'a'); f.write('1\\n'); f.flush()")
        assert reader.content(name) == "1\n"
        writer.do(f"f.close(); f = open('{name}', 'a'); f.write('2\\n'); f.flush()")
        assert reader.content(name) == "1\n2\n"
        writer.kill()
        assert reader.content(name) == "1\n2\n"
    tree.settle()
    tree.assert_clean()


def test_a_new_log_of_a_killed_run_is_kept(tree: Tree) -> None:
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('log.txt', 'a'); f.write('a line\\n'); f.flush()")
        writer.kill()
        tree.settle()
        assert reader.content("log.txt") == "a line\n"


@pytest.mark.parametrize("before", [None, "an old run\n"], ids=["new", "over another"])
def test_text_that_stays_open_is_a_log(tree: Tree, before: str | None) -> None:
    """``python train.py > stdout.txt``. Nothing of what was written before is lost."""
    if before is not None:
        tree.seed("stdout.txt", before)
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('stdout.txt', 'w'); f.write('epoch 1\\n'); f.flush()")
        tree.mount.wait_until(lambda: (tree.below / "stdout.txt").exists())
        tree.mount.wait_until(lambda: reader.content("stdout.txt") == "epoch 1\n")
        writer.do("f.write('epoch 2\\n'); f.flush()")
        assert reader.content("stdout.txt") == "epoch 1\nepoch 2\n"
        assert tree.conditions()["stdout.txt"] == "busy"
        reader.do("g = open('stdout.txt', 'a'); g.write('by another\\n'); g.close()")
        writer.kill()
        assert reader.content("stdout.txt") == "epoch 1\nepoch 2\nby another\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [("state.json", b"{"), ("model.pt", b"text"), ("weights", b"\0"), ("notes", b"\xff\xfe")],
)
def test_c6_what_is_good_only_when_it_is_whole_stays_a_transaction(
    tree: Tree, name: str, data: bytes
) -> None:
    tree.seed(name, "old", data)
    with tree.actors(2) as (writer, log):
        writer.do(f"f = open('{name}', 'wb'); f.write({data + data!r}); f.flush()")
        log.do("f = open('stdout', 'w'); f.write('x'); f.flush()")
        tree.mount.wait_until(lambda: (tree.below / "stdout").exists())
        assert (tree.below / name).read_bytes() == data
        writer.kill()
        tree.settle(name)
        assert (tree.below / name).read_bytes() == data
        log.do("f.close()")
    assert tree.aside("salvage", name) == [data + data]


def test_a_shell_that_holds_a_log_and_children_that_append(tree: Tree) -> None:
    script = "exec 3>>log; for i in 1 2 3; do echo $i >&3; sh -c 'echo child >> log'; done; cat log"
    assert mounts.shell(script, tree.path) == "1\nchild\n2\nchild\n3\nchild\n"
    assert tree.text("log") == "1\nchild\n2\nchild\n3\nchild\n"


@pytest.mark.parametrize("before", ["", "1\n"], ids=["empty", "text"])
def test_a_follower_that_has_the_log_open_sees_what_is_appended(tree: Tree, before: str) -> None:
    """``tail -f`` saw nothing of ``echo >> log``, ever."""
    tree.seed("log", before)
    with tree.actors(2) as (follower, writer):
        follower.do(f"f = open('log'); assert f.read() == {before!r}")
        for line in ("2", "3"):
            writer.do(f"open('log', 'a').write('{line}\\n')")
            assert follower.value("f.read()") == f"{line}\n"


def test_opened_for_appending_and_not_changed_keeps_its_generation(tree: Tree) -> None:
    tree.seed("notes.txt", "a line\n")
    before = tree.generation("notes.txt")
    with tree.actors(1) as (user,):
        user.do("open('notes.txt', 'a').close()")
    tree.settle()
    assert tree.generation("notes.txt") == before
    tree.assert_clean()


def test_c5_rot_in_a_log_is_not_made_official(tree: Tree) -> None:
    tree.seed("notes.txt", "the old line\n", "a new line\n")
    tree.rot("notes.txt")
    with tree.actors(1) as (user,):
        user.do("f = open('notes.txt', 'a'); f.write('more\\n'); f.close()")
        assert user.content("notes.txt") == "the old line\nmore\n"


_DATABASE = """
import sqlite3, sys
with sqlite3.connect('cache.bin', timeout=30) as db:
    db.execute('create table if not exists t (who, n)')
for n in range(20):
    with sqlite3.connect('cache.bin', timeout=30) as db:
        db.execute('insert into t values (?, ?)', (sys.argv[1], n))
    db.close()
"""


@pytest.mark.kernel_only(mounts.OWN_LOCKS)
def test_a_database_under_any_name_is_used_by_several_processes(tree: Tree) -> None:
    with tree.actors(3) as users:
        for who, user in enumerate(users):
            user.send(f"import sys; sys.argv[1:] = ['{who}']\n{_DATABASE}")
        for user in users:
            user.answer()
        count = "db.execute('select count(*) from t').fetchone()[0]"
        users[0].do("import sqlite3; db = sqlite3.connect('cache.bin')")
        assert users[0].value(count) == 60
        users[0].do("db.close()")


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (b"", Content.EMPTY),
        (b"a line\n", Content.TEXT),
        ("ä".encode() * 100_000, Content.TEXT),
        (b"x" + "\U0001f600".encode() * 50_000, Content.TEXT),
        ("ä".encode()[:1], Content.TEXT),  # the rest is still to come
        ("ä".encode()[1:], Content.OTHER),
        (b"\x80\x04K\x01.", Content.OTHER),  # a pickle
        (b"text" * 50_000 + b"\0", Content.OTHER),
        (b"SQLite format 3\0" + bytes(100), Content.DATABASE),
    ],
)
def test_content_is_told_by_both_ends(data: bytes, content: Content) -> None:
    assert judge(len(data), lambda size, offset: data[offset : offset + size]) is content


def test_names_of_formats_are_no_logs() -> None:
    assert not may_be_log("model.pt", appends=True)
    assert not may_be_log("state.json", appends=False)
    assert may_be_log("state.json", appends=True)
    assert may_be_log("log.txt", appends=False)
