"""The promises through libfuse's path API, by fusepy and by refuse, and what that API cannot do.

The rest of the mount tests run through them by ``make portable``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mounts
import pytest
from actors import Actor, actors
from trees import Shared, Tree, needs_binding, shared_by

BINDINGS = ("fusepy", "refuse")


@pytest.fixture(scope="module", params=BINDINGS)
def shared_mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    """In place of the default mount of the other modules."""
    with shared_by(request.param, tmp_path_factory) as shared:
        yield shared


def test_status_names_the_binding(tree: Tree) -> None:
    binding = tree.mount.status()["binding"]
    assert binding in BINDINGS
    assert f"relay ({binding})" in mounts.ckptfs("status", tree.mount.path).stdout


def test_what_the_kernel_would_mix_is_refused(tree: Tree) -> None:
    """One inode has one size: lseek to the end would go to another version's."""
    tree.seed("f", "the old version")
    with tree.actors(2) as (reader, writer):
        reader.do("f = open('f', 'rb', buffering=0)")
        assert reader.value("f.seek(0, 2)") == 15
        writer.do("g = open('f', 'w'); g.write('new'); g.flush()")
        assert reader.errno_of("f.seek(0, 2)") == "EIO"
        writer.do("g.close()")
        assert reader.errno_of("f.seek(0, 2)") == "EIO"
        reader.do("f = open('f', 'rb', buffering=0)")
        assert reader.value("f.seek(0, 2)") == 3


def test_a_descriptor_shows_the_version_it_was_opened_on(tree: Tree) -> None:
    """libfuse hands over the path alone, which shows another version."""
    tree.seed("f", "the old version")
    with tree.actors(2) as (reader, writer):
        reader.do("f = open('f', 'rb', buffering=0); size = lambda f: os.fstat(f.fileno()).st_size")
        writer.do("g = open('f', 'w'); g.write('new'); g.flush()")
        assert reader.value("size(f), os.stat('f').st_size") == [15, 15]
        assert writer.value("os.fstat(g.fileno()).st_size, os.stat('f').st_size") == [3, 3]
        writer.do("g.close()")
        reader.do("now = open('f'); both = open('f', 'r+'); alone = os.open('f', os.O_WRONLY)")
        assert reader.value("size(f), size(now), size(both), os.stat('f').st_size") == [15, 3, 3, 3]
        assert reader.value("os.fstat(alone).st_size") == 3
        assert reader.value("os.stat(f'/proc/self/fd/{f.fileno()}').st_size") == 15
        assert reader.value("open(f'/dev/fd/{f.fileno()}').read()") == "the old version"
        child = "__import__('subprocess').run(['stat', '-L', '-c', '%s', '-'], stdin=f, stdout=-1)"
        assert reader.value(f"int({child}.stdout)") == 15
        writer.do("g = open('f', 'wb', buffering=0); g.write(b'1')")
        reader.do("h = open('f', 'wb', buffering=0); h.write(b'22')")
        assert writer.value("os.fstat(g.fileno()).st_size") == 1
        assert reader.value("size(h), size(f)") == [2, 15]
        writer.do("g.close()")
        reader.do("h.close()")
        reader.do("os.fchmod(f.fileno(), 0o600); os.setxattr(f.fileno(), 'user.k', b'old')")
        assert writer.value("os.stat('f').st_mode & 0o777, os.listxattr('f')") == [0o644, []]
    tree.settle()
    tree.assert_clean()


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    """Without the right to look at its callers the daemon cannot tell a path from a descriptor."""
    if reason := mounts.why_no_mounts():
        pytest.skip(reason)
    needs_binding("fusepy")
    blind = ("setpriv", "--bounding-set=-sys_ptrace")
    (tmp_path / "served").mkdir()
    mount = mounts.Served(tmp_path / "served", "--binding", "fusepy", prefix=blind)
    with mounts.ending(mount), actors(mount.start_in_foreground().path, 3) as users:
        reader, writer, other = users
        writer.do("f = open('f', 'w'); f.write('old'); f.close()")
        reader.do("f = open('f', 'rb')")
        writer.do("f = open('f', 'w'); f.write('newer'); f.flush()")
        assert writer.errno_of("open('/dev/fd/' + str(f.fileno()), 'w')") == "EIO"
        writer.do("f.close()")
        assert reader.errno_of("os.fstat(f.fileno())") == "EIO"
        assert reader.errno_of("os.stat('f')") == "EIO"
        assert other.content("f") == "newer"
        reader.do("f.close()")
        assert reader.content("f") == "newer"


def test_a_symlink_to_a_descriptor_is_not_truncated_as_a_path(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/stdout")
    script = f"(echo kept; if : > {tmp_path / 'log'}; then echo lost; fi) > f 2> /dev/null"
    mounts.shell(script, tree.path)
    assert tree.text("f") == "kept\n"


def test_a_process_truncates_by_path_beside_itself(tree: Tree) -> None:
    """A save that is tried again while the file of the first try is still open: whole at close."""
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w'); f.write('half of it'); f.flush()")
        writer.do("g = open('f', 'w'); g.write('whole'); g.close()")
        assert reader.content("f") == "whole"
        writer.do("f.close()")
    tree.settle()
    tree.assert_clean()


def test_ranks_and_readers_on_one_path_see_whole_versions(tree: Tree) -> None:
    tree.save_and_read_at_once()


def test_torch_saves_and_loads(tree: Tree, torch_user: Actor) -> None:
    torch_user.do(
        "for value in (1.0, 2.0):\n"
        "    torch.save({'w': torch.full((100_000,), value)}, 'tmp.pt')\n"
        "    os.rename('tmp.pt', 'm.pt')\n"
        "    assert float(torch.load('m.pt')['w'].sum()) == 100_000 * value\n"
        "    torch.save({'w': torch.full((100_000,), -value)}, 'm.pt')\n"
        "    assert float(torch.load('m.pt', mmap=True)['w'].sum()) == -100_000 * value\n"
    )
    tree.assert_clean()


def test_safetensors_and_numpy_map_what_they_load(tree: Tree, torch_user: Actor) -> None:
    pytest.importorskip("safetensors.torch")
    torch_user.do(
        "import numpy\n"
        "from safetensors.torch import load_file, save_file\n"
        "for value in (1.0, 2.0):\n"
        "    save_file({'w': torch.full((1000,), value)}, 'm.safetensors')\n"
        "    assert float(load_file('m.safetensors')['w'][7]) == value\n"
        "numpy.save('a.npy', numpy.arange(1000))\n"
        "assert numpy.load('a.npy', mmap_mode='r')[999] == 999\n"
        "m = numpy.memmap('new.dat', dtype='u1', mode='w+', shape=10_000)\n"
        "m[:3] = (1, 2, 3); m[-1] = 9; m.flush(); del m"
    )
    tree.settle()
    assert (tree.path / "new.dat").read_bytes() == b"\1\2\3" + bytes(9996) + b"\x09"
    tree.assert_clean()


def test_a_shared_mapping_of_other_files_is_refused(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(1) as (user,):
        user.do("import mmap; f = open('f', 'rb')")
        assert user.errno_of("mmap.mmap(f.fileno(), 3, prot=mmap.PROT_READ)") == "ENODEV"
        user.do("m = mmap.mmap(f.fileno(), 3, mmap.MAP_PRIVATE); assert m[:] == b'old'")


def test_stores_to_a_new_file_are_not_cut_off_by_another_version(tree: Tree) -> None:
    with tree.actors(2) as (mapper, other):
        mapper.do("import mmap; f = open('f', 'w+b'); f.truncate(9); m = mmap.mmap(f.fileno(), 9)")
        mapper.do("m[:] = b'by stores'")
        assert other.errno_of("open('f', 'w')") == "EBUSY"
        mapper.do("m.close(); f.close()")
        assert other.content("f") == "by stores"
    tree.mount.wait_until(lambda: tree.conditions() == {"f": "ok"})


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_locks_hold_across_versions(tree: Tree, how: str) -> None:
    with tree.actors(2) as (one, two):
        for user in (one, two):
            user.do(f"import fcntl; lock = lambda f: fcntl.{how}(f, fcntl.LOCK_EX | fcntl.LOCK_NB)")
        one.do("f = open('f', 'w'); lock(f)")
        assert two.errno_of("g = open('f', 'w'); lock(g)") == "EAGAIN"
        one.do("f.write('one'); f.close()")
        two.do("lock(g); g.close()")


def test_a_file_that_was_deleted_can_be_used(tree: Tree) -> None:
    with tree.actors(1) as (user,):
        user.do("f = open('f', 'w+b', buffering=0); f.write(b'one'); os.unlink('f')")
        assert user.value("os.listdir('.')") == []
        user.do("f.write(b' two'); f.seek(0); assert f.read() == b'one two'; f.truncate(3)")
        assert user.errno_of("os.fstat(f.fileno())") == "ENOENT"  # listed in docs/design.md
        user.do("f.close()")
    tree.settle()
    assert os.listdir(tree.path) == []


def test_names_metadata_and_directories(tree: Tree) -> None:
    name = b"caf\xe9 \xff".decode(errors="surrogateescape")
    with tree.actors(1) as (user,):
        user.do(
            f"n = {name!r}; os.makedirs('d/e'); f = open('d/e/' + n, 'w'); f.write('x'); f.close()"
        )
        user.do("os.symlink(n, 'd/e/link'); os.rename('d', 'g'); os.link('g/e/' + n, 'second')")
        assert user.value("sorted(map(ascii, os.listdir('g/e')))") == sorted(
            [ascii(name), ascii("link")]
        )
        user.do("assert open('g/e/link').read() == open('second').read() == 'x'")
        user.do("os.setxattr('second', 'user.k', b'v'); os.chmod('second', 0o640)")
        user.do("assert os.getxattr('second', 'user.k') == b'v'")
        assert user.value("os.listxattr('second')") == ["user.k"]
        user.do("import struct; no = 0xFFFFFFFF")
        user.do("acl = struct.pack('<IHHIHHIHHI', 2, 1, 7, no, 4, 5, no, 32, 5, no)")
        assert user.errno_of("os.setxattr('g', 'system.posix_acl_default', acl)") == "ENOTSUP"
        user.do("os.utime('second', ns=(10**18 + 1, 10**18 + 2))")
        assert user.value("os.stat('second').st_mtime_ns") == 10**18 + 2
        user.do("os.utime('second'); import time")
        assert user.value("abs(os.stat('second').st_mtime - time.time()) < 60")
        assert user.value("os.stat('second').st_mode & 0o777") == 0o640
        assert user.value("os.statvfs('.').f_bavail > 0")
    mounts.shell("touch -m -d @5 second; stat -c '%Y' second | grep -x 5", tree.path)
    mounts.shell("rm -r g; test ! -e g", tree.path)


def test_two_levels_of_staged_directories(tree: Tree) -> None:
    """The directories of an open file stay known, though each request looks its path up anew."""
    with tree.actors(2) as (writer, reader):
        writer.do("os.makedirs('a/b'); f = open('a/b/f', 'w'); f.write('x'); f.flush()")
        writer.do("os.rename('a', 'c')")
        assert reader.errno_of("os.rmdir('c/b')") == "ENOTEMPTY"
        assert writer.content("c/b/f") == "x"
        writer.do("f.write('y'); f.close()")
        assert reader.content("c/b/f") == "xy"
    tree.assert_clean()


# --- what needs no mount -------------------------------------------------------------------------


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_missing_package_is_one_line(tmp_path: Path, binding: str) -> None:
    hide = (
        "import sys; sys.modules['fuse'] = sys.modules['refuse'] = None\n"
        "from ckptfs.cli import main; main()"
    )
    command = [sys.executable, "-c", hide, "mount", str(tmp_path), "--binding", binding]
    done = subprocess.run(command, capture_output=True, text=True, timeout=mounts.CHILD_LIMIT_S)
    assert done.returncode == 8
    assert "pip install 'ckptfs[" in done.stderr and done.stderr.count("\n") == 1


def test_a_module_of_the_same_name_is_not_taken_for_fusepy(tmp_path: Path) -> None:
    (tmp_path / "fuse.py").write_text("class Fuse: pass\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom ckptfs.cli import main; main()"
    command = [sys.executable, "-c", code, "mount", str(tmp_path), "--binding", "fusepy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=mounts.CHILD_LIMIT_S)
    assert done.returncode == 8 and "is not fusepy" in done.stderr


@pytest.mark.parametrize("error", [OSError("no errno"), KeyboardInterrupt(), SystemExit(3)])
def test_nothing_but_an_errno_leaves_a_handler(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fusepy answers garbage for anything else."""
    from ckptfs.mount.libfuse import session

    def read(*_: object) -> bytes:
        raise error

    monkeypatch.setitem(session.HANDLERS, "read", read)
    portable: Any = None
    with pytest.raises(OSError) as raised:
        session.Bound(portable, Counter())("read", None, 1, 0, None)
    assert raised.value.errno == 5
