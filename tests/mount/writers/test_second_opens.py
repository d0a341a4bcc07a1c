"""What a close publishes is never less than a plain directory would hold.

A file that was written by its name while an older descriptor of it was open ended empty: the
recipe for atomic saves that is on every forum (mkstemp, save by name, replace) lost everything.
``second_opens.py`` has the table of opens, and the plain directory is its oracle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
import second_opens
from second_opens import EARLY, FIRST, OLD, SECOND, Case, cases
from trees import Shared, Tree, shared_by

_TABLE = Path(second_opens.__file__)
_ALL = list(cases())
_LIMIT_S = 240.0
# Every case by CKPTFS_CASES=1; CI takes some of each kind, for which it must be no divisor.
_EVERY = int(os.environ.get("CKPTFS_CASES", "7"))
_SAMPLE = _ALL[::_EVERY]
Found = dict[str, dict[str, str]]


@pytest.fixture(scope="module", params=["passthrough", "relayed"])
def by_name(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    with shared_by(request.param, tmp_path_factory) as shared:
        yield shared


@pytest.fixture
def tree(by_name: Shared) -> Iterator[Tree]:
    with by_name.tree(_LIMIT_S) as tree:
        yield tree


def _alone(case: Case, who: str) -> str:
    """What the version of one of the two holds, without the other's bytes."""
    if who == "second":
        return SECOND.decode("latin-1")
    wrote = (EARLY if case.early else b"") + (FIRST if case.writes != "second" else b"")
    rest = OLD[len(wrote) :] if case.first == "r+b" else b""
    return (wrote + rest).decode("latin-1")


def _is_right(case: Case, plain: dict[str, str], found: dict[str, str]) -> bool:
    """As on the plain directory. Who truncates what another one has written, or may be about to
    write, has a file of its own, so that two saves to one path are not mixed: then the last close
    of one that wrote wins, whole."""
    if found == plain:
        return True
    if case.second not in ("wb", "w+b") or not (case.early or case.who == "stranger"):
        return False
    order = ["first", "second"] if case.closes == "first" else ["second", "first"]
    last = [who for who in order if who in case.writers][-1]
    name, other = ("moved", "path") if case.renamed else ("path", "moved")
    return found[name] == _alone(case, last) and found[other] == plain[other]


def _run(directory: Path) -> Found:
    names = [case.name() for case in _SAMPLE]
    output = mounts.python(_TABLE.read_text(), directory, *names, limit_s=_LIMIT_S)
    found: Found = json.loads(output)
    return found


def test_second_opens_lose_nothing_that_a_plain_directory_keeps(tree: Tree, tmp_path: Path) -> None:
    plain, found = _run(tmp_path), _run(tree.path)
    wrong = {
        case.name(): (plain[case.name()], found[case.name()])
        for case in _SAMPLE
        if not _is_right(case, plain[case.name()], found[case.name()])
    }
    assert not wrong
    tree.settle()
    tree.assert_clean()


def test_control_an_empty_file_is_told(tmp_path: Path) -> None:
    plain = _run(tmp_path)
    empty = {"path": "", "moved": "No such file or directory"}
    told = [case for case in _SAMPLE if not _is_right(case, plain[case.name()], empty)]
    assert len(told) == len(_SAMPLE)


def test_c1_saves_of_strangers_to_one_path_are_not_mixed(tree: Tree) -> None:
    """Both have it open before either writes."""
    with tree.actors(3) as (one, other, reader):
        for rank, user in enumerate((one, other)):
            user.do(f"f = open('model.pt', 'wb'); data = b'{rank}' * 200_000")
        one.do("f.write(data[:100_000]); f.flush()")
        other.do("f.write(data); f.close()")
        assert reader.content("model.pt") == "1" * 200_000
        one.do("f.write(data[100_000:]); f.close()")
        assert reader.content("model.pt") == "0" * 200_000
    tree.assert_clean()


def test_c2_saved_by_name_beside_a_descriptor_that_stays_open(tree: Tree) -> None:
    """mkstemp whose descriptor is never closed: what was saved is committed all the same."""
    tree.seed("final.pt", b"\0old")
    with tree.actors(2) as (saver, reader):
        saver.do("import tempfile; fd, name = tempfile.mkstemp(dir='.')")
        saver.do(
            "f = open(name, 'wb'); f.write(b'\\0new'); f.close(); os.replace(name, 'final.pt')"
        )
        assert reader.content("final.pt") == "\0new"
        assert saver.value("os.pread(fd, 10, 0).decode()") == "\0new"
        assert tree.record("final.pt") is not None
        saver.kill()
        assert reader.content("final.pt") == "\0new"
    tree.settle()
    tree.assert_clean()


def test_what_another_process_wrote_is_read_by_the_first_descriptor(tree: Tree) -> None:
    with tree.actors(1) as (user,):
        user.do("import subprocess, tempfile; f = tempfile.NamedTemporaryFile(dir='.')")
        user.do("subprocess.run(['sh', '-c', 'head -c 1000 /dev/zero > ' + f.name], check=True)")
        assert user.value("len(f.read())") == 1000


def test_a_name_that_is_gone_is_not_made_again_by_an_open_for_changes(tree: Tree) -> None:
    tree.seed("f", b"\0old")
    with tree.actors(1) as (user,):
        user.do("f = open('f', 'rb'); os.unlink('f')")
        user.do("g = os.open(f'/proc/self/fd/{f.fileno()}', os.O_RDWR); os.pwrite(g, b'NEW', 1)")
        assert user.value("f.read().decode()") == "\0NEW"
        user.do("os.close(g); f.close()")
        assert user.value("os.listdir('.')") == []


def test_deleted_files_are_opened_again_by_their_link(tree: Tree) -> None:
    tree.seed("f", b"\0old")
    with tree.actors(1) as (user,):
        user.do("f = open('f', 'rb'); os.unlink('f')")
        link = f"/proc/self/fd/{user.value('f.fileno()')}"
        assert user.content(link) == "\0old"
        user.do("n = open('new', 'w'); n.write('staged'); n.flush(); os.unlink('new')")
        link = f"/proc/self/fd/{user.value('n.fileno()')}"
        assert user.content(link) == "staged"


# --- a name that is given before the close -------------------------------------------------------


def test_c2_what_is_fsynced_and_renamed_by_its_writer_is_committed(tree: Tree) -> None:
    """``fsync`` and ``os.replace`` inside the ``with``: the program says "saved"."""
    tree.seed("final.pt", b"\0old")
    with tree.actors(2) as (saver, reader):
        saver.do("f = open('tmp', 'wb'); f.write(b'\\0new'); f.flush(); os.fsync(f.fileno())")
        saver.do("os.replace('tmp', 'final.pt')")
        assert reader.content("final.pt") == "\0new"
        assert tree.record("final.pt") is not None
        saver.kill()
        assert reader.content("final.pt") == "\0new"
    tree.settle()
    tree.assert_clean()


def test_what_is_written_to_a_live_version_stays_whatever_time_is_set(tree: Tree) -> None:
    """The time and the size of its record, as a tool sets them that keeps the time of a file."""
    tree.seed("final.bin", b"\0old")
    with tree.actors(1) as (writer,):
        writer.do("f = open('tmp', 'wb', buffering=0); f.write(b'\\0one'); os.fsync(f.fileno())")
        writer.do("os.replace('tmp', 'final.bin'); time = os.stat('final.bin').st_mtime_ns")
        writer.do(
            "f.seek(0); f.write(b'\\0two'); os.utime('final.bin', ns=(time, time)); f.close()"
        )
    tree.settle()
    assert tree.text("final.bin") == "\0two"
    tree.assert_clean()


def test_c6_what_is_renamed_without_fsync_shows_to_all_and_commits_at_its_close(
    tree: Tree,
) -> None:
    """A lock file that becomes the file: who takes the lock next reads what was written."""
    tree.seed("f", b"\0old")
    with tree.actors(3) as (saver, other, reader):
        for user, content in ((saver, b"\0one"), (other, b"\0two")):
            user.do(f"f = open('f.__lock', 'xb'); f.write({content!r}); f.flush()")
            user.do("os.rename('f.__lock', 'f')")
            assert reader.content("f") == content.decode()
            if user is saver:
                user.do("f.close()")
        other.kill()
        tree.settle()
        assert reader.content("f") == "\0one"


def test_c1_what_a_stranger_renames_commits_at_its_close(tree: Tree) -> None:
    tree.seed("f", b"\0old")
    with tree.actors(3) as (saver, other, reader):
        saver.do("f = open('tmp', 'wb'); f.write(b'\\0half'); f.flush()")
        other.do("os.rename('tmp', 'f')")
        assert reader.content("f") == "\0old"
        saver.do("f.write(b' whole'); f.close()")
        assert reader.content("f") == "\0half whole"
    tree.assert_clean()


@pytest.mark.kernel_only(mounts.NOT_THERE)
def test_a_link_by_its_writer_to_what_is_still_open(tree: Tree) -> None:
    """The put-if-absent of object stores: write, link to the name, unlink, close."""
    with tree.actors(3) as (writer, other, reader):
        writer.do("f = open('tmp', 'xb'); f.write(b'\\0new'); f.flush()")
        assert other.errno_of("os.link('tmp', 'stolen')") == "ENOTSUP"
        writer.do("os.link('tmp', 'name'); os.unlink('tmp'); f.close()")
        assert reader.content("name") == "\0new"
    tree.settle()
    tree.assert_clean()
