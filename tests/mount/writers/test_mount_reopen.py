"""What a path shows through renames, deletions, forks and pid namespaces, while it is being written
and then committed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import mounts
import pytest
from trees import Tree


def test_a_chain_of_renames_then_the_close(tree: Tree) -> None:
    tree.seed("c", "old")
    with tree.actors(2) as (writer, other):
        writer.do("f = open('a', 'w'); f.write('new'); f.flush(); os.mkdir('d')")
        other.do("os.rename('a', 'b')")
        writer.do("os.rename('b', 'd/b')")
        other.do("os.rename('d', 'e'); os.rename('e/b', 'c')")
        assert writer.content("c") == "new"
        assert other.content("c") == "old"
        assert sorted(other.value("os.listdir('.')")) == ["c", "e"]
        assert other.value("os.listdir('e')") == []
        writer.do("f.write('er'); f.close()")
        assert other.content("c") == "newer"
    tree.settle()
    assert tree.conditions() == {"c": "ok"}


def test_a_committed_file_renamed_onto_one_that_is_written(tree: Tree) -> None:
    tree.seed("done", "committed")
    with tree.actors(2) as (writer, other):
        writer.do("f = open('f', 'w'); f.write('staged'); f.flush()")
        other.do("os.rename('done', 'f')")
        assert writer.content("f") == other.content("f") == "committed"
        writer.do("f.close()")
        assert other.content("f") == "committed"
    tree.settle()
    assert tree.conditions() == {"f": "ok"}


def test_a_staged_file_renamed_onto_another_staged_one(tree: Tree) -> None:
    with tree.actors(3) as (one, two, other):
        one.do("f = open('a', 'w'); f.write('one'); f.flush()")
        two.do("f = open('b', 'w'); f.write('two'); f.flush()")
        other.do("os.rename('a', 'b')")
        assert other.value("os.listdir('.')") == ["b"]
        two.do("f.close()")
        assert other.content("b") == "one"
        one.do("f.close()")
        assert other.content("b") == "one"
    tree.settle()
    assert tree.conditions() == {"b": "ok"}


def test_a_directory_is_renamed_with_versions_below_it(tree: Tree) -> None:
    tree.seed("d/x/old", "old")
    with tree.actors(2) as (writer, other):
        writer.do("f = open('d/x/new', 'w'); f.write('new'); f.flush(); os.chdir('d/x')")
        writer.do("g = open('old', 'w'); g.write('over'); g.flush()")
        other.do("os.rename('d', 'e')")
        assert writer.value("os.getcwd()") == f"{tree.path}/e/x"
        assert (writer.content("new"), writer.content("old")) == ("new", "over")
        assert (other.content("e/x/new"), other.content("e/x/old")) == ("new", "old")
        writer.do("f.close(); g.close()")
        assert (other.content("e/x/new"), other.content("e/x/old")) == ("new", "over")
    tree.settle()
    assert tree.conditions() == {"e/x/new": "ok", "e/x/old": "ok"}


def test_unlink_then_create_while_the_first_is_open(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, other):
        writer.do("f = open('f', 'w'); f.write('first'); f.flush()")
        other.do("os.unlink('f'); g = os.open('f', os.O_WRONLY | os.O_CREAT | os.O_EXCL)")
        other.do("os.write(g, b'second')")
        assert other.content("f") == writer.content("f") == "second"
        writer.do("f.close()")
        assert writer.content("f") == "second"
        other.do("os.close(g)")
        assert writer.content("f") == "second"
    tree.settle()
    assert tree.conditions() == {"f": "ok"}


def test_writers_without_truncation_share_one_version(tree: Tree) -> None:
    tree.seed("f", "0" * 30)
    with tree.actors(4) as (*writers, reader):
        for at, writer in enumerate(writers):
            writer.do("fd = os.open('f', os.O_RDWR | os.O_CREAT)")
            writer.do(f"os.pwrite(fd, b'{at + 1}' * 10, {at * 10})")
        whole = "1" * 10 + "2" * 10 + "3" * 10
        assert {writer.content("f") for writer in writers} == {whole}
        assert reader.content("f") == "0" * 30
        for writer in writers[:2]:
            writer.do("os.close(fd)")
            assert reader.content("f") == "0" * 30
        writers[2].do("os.close(fd)")
        assert reader.content("f") == whole
    tree.assert_clean()


_DAEMON = """
import os, sys, time
read, write = os.pipe()
done, end = os.pipe()
f = open("f", "w"); f.write("new"); f.flush()
if os.fork() == 0:
    if os.fork() == 0:
        first = open("f").read()
        os.write(end, b"x")
        os.read(read, 1)
        os.setsid()
        os.write(end, f"{first} {open('f').read()}".encode())
        os._exit(0)
    os.read(done, 1)
    os._exit(0)
os.wait()
os.write(write, b"x")
print(os.read(done, 100).decode())
"""


def test_a_descendant_outlives_the_process_between(tree: Tree) -> None:
    tree.seed("f", "old")
    assert mounts.python(_DAEMON, cwd=tree.path).split() == ["new", "new"]
    assert tree.text("f") == "new"


@pytest.mark.parametrize("killed", [False, True])
def test_writers_in_a_pid_namespace_of_their_own(tree: Tree, killed: bool) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    tree.seed("f", "old")
    code = """
import os, signal, subprocess, sys
assert os.getpid() < 10
f = open("f", "w"); f.write("new"); f.flush()
assert open("f").read() == subprocess.check_output(["cat", "f"], text=True) == "new"
if sys.argv[1] == "True":
    pid = os.fork()
    if pid == 0:
        g = open("g", "w"); g.write("lost"); g.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
f.close()
"""
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", code, str(killed)]
    done = subprocess.run(
        command, cwd=tree.path, capture_output=True, text=True, timeout=mounts.CHILD_LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    tree.settle()
    assert tree.text("f") == "new"
    assert tree.text("g") is None
    assert tree.aside("salvage", "g") == ([b"lost"] if killed else [])


def test_names_in_a_directory_that_is_listed_while_it_changes(tree: Tree) -> None:
    with tree.actors(2) as (writer, reader):
        writer.do("files = [open(f'f{n}', 'w') for n in range(50)]")
        assert sorted(reader.value("os.listdir('.')")) == sorted(f"f{n}" for n in range(50))
        writer.do("[f.close() for f in files[::2]]")
        assert sorted(reader.value("os.listdir('.')")) == sorted(f"f{n}" for n in range(50))
        writer.do("[os.unlink(f'f{n}') for n in range(50)]; [f.close() for f in files]")
        assert reader.value("os.listdir('.')") == []
    tree.settle()
    assert os.listdir(tree.below) == []
