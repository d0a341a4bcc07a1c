"""When is a file finished?

FLUSH comes for every close of every duplicate, RELEASE after the last one, and neither says what
the program meant. Each test is one way in which real programs end a file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import mounts
import pytest
from actors import Actor, Failed
from trees import Shared, Tree

_LIBC_MAP = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def map_file(fd, size):
    address = libc.mmap(None, size, 3, mmap.MAP_SHARED, fd, 0)
    assert address != ctypes.c_void_p(-1).value, ctypes.get_errno()
    return address
"""


def program(code: str, cwd: Path) -> int:
    """The exit status of a program of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        timeout=mounts.CHILD_LIMIT_S,
        capture_output=True,
    )
    return done.returncode


# --- shells --------------------------------------------------------------------------------------

_SCRIPTS = {
    "builtin": ("echo one > f", "one\n"),
    "external": ("/bin/echo one > f", "one\n"),
    "emptied": (": > f", ""),
    "appended": ("echo a > f; echo b >> f", "a\nb\n"),
    "subshell": ("(echo a; /bin/echo b) > f", "a\nb\n"),
    "group": ("{ echo a; /bin/echo b; echo c; } > f", "a\nb\nc\n"),
    "descriptor": ("exec 3> f; echo a >&3; /bin/echo b >&3; exec 3>&-", "a\nb\n"),
    "pipe": ("echo a | tee f > /dev/null", "a\n"),
    "here": ("cat > f << E\na\nE", "a\n"),
    "background": ("/bin/echo a > f & wait", "a\n"),
}


@pytest.mark.parametrize("script", _SCRIPTS)
@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_shell_redirection_is_whole_for_the_next_command(
    tree: Tree, script: str, replacing: bool
) -> None:
    if replacing:
        tree.seed("f", "the old version\n")
    command, content = _SCRIPTS[script]
    assert mounts.shell(f"{command}\ncat f", tree.path) == content
    assert tree.text("f") == content
    tree.settle()
    tree.assert_clean()


def test_an_emptied_file_is_empty_for_everybody_at_once(tree: Tree) -> None:
    """`: > f` writes nothing, so only its RELEASE tells; lookups that follow it must agree."""
    with tree.actors(1) as (reader,):
        for _ in range(20):
            tree.seed("f", "old")
            mounts.shell(": > f", tree.path)
            assert reader.content("f") == ""


# --- FLUSH ---------------------------------------------------------------------------------------


def test_c1_closing_a_duplicate_of_an_unchanged_version_commits_nothing(tree: Tree) -> None:
    tree.seed("f", "old")
    before = tree.generation("f")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w'); os.close(os.dup(f.fileno()))")
        assert reader.content("f") == "old"
        assert tree.generation("f") == before
        writer.do("f.write('new'); f.flush()")
        assert reader.content("f") == "old"
        writer.do("f.close()")
        assert reader.content("f") == "new"
    tree.assert_clean()


def test_control_in_place_a_reader_sees_the_unfinished_file(unsafe_mount: Shared) -> None:
    with unsafe_mount.tree() as tree:
        tree.seed("f", "old")
        with tree.actors(2) as (writer, reader):
            writer.do("f = open('f', 'w'); os.close(os.dup(f.fileno()))")
            assert reader.content("f") == ""
            writer.do("f.write('ne'); f.flush()")
            assert reader.content("f") == "ne"


def test_c1_a_forked_child_that_exits_finishes_nothing(tree: Tree) -> None:
    """A DataLoader worker ends while its parent is still writing."""
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w'); f.write('first '); f.flush()")
        for end in (
            "os._exit(0)",
            "os._exit(3)",
            "f.close(); os._exit(0)",
            "os.kill(os.getpid(), 9)",
        ):
            writer.do(f"pid = os.fork()\nif pid == 0:\n    {end}\nos.waitpid(pid, 0)")
            assert reader.content("f") == "old", end
        writer.do("f.write('second'); f.close()")
        assert reader.content("f") == "first second"
    tree.assert_clean()


def test_a_child_goes_on_writing_what_its_parent_closed(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(1) as (writer,):
        writer.do(
            "f = os.open('f', os.O_WRONLY | os.O_TRUNC); os.write(f, b'parent ')\n"
            "r, w = os.pipe()\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    os.close(w); os.read(r, 1); os.write(f, b'child'); os._exit(0)\n"
            "os.close(f)"
        )
        assert tree.text("f") == "parent "
        writer.do("os.close(w); os.waitpid(pid, 0)")
    assert tree.text("f") == "parent child"
    tree.mount.wait_until(lambda: tree.conditions()["f"] == "ok")


def test_a_file_handed_to_a_child_is_finished_by_it(tree: Tree) -> None:
    """subprocess.Popen(stdout=f), where the parent closes first and has written nothing."""
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do(
            "import subprocess\n"
            "f = open('f', 'w')\n"
            "p = subprocess.Popen(['sh', '-c', 'read x; echo from the child'],"
            " stdin=subprocess.PIPE, stdout=f)\n"
            "f.close()"
        )
        assert reader.content("f") == "old"
        writer.do("p.communicate(b'go')")
        assert reader.content("f") == "from the child\n"
    tree.settle()
    tree.assert_clean()


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os._exit(0)", 0),
        ("os._exit(3)", 3),
        ("sys.exit(2)", 2),
        ("raise RuntimeError('in the middle')", 1),
        ("threading.Thread(target=time.sleep, args=(30,), daemon=True).start(); os._exit(3)", 3),
    ],
)
def test_exit_without_close_commits(tree: Tree, end: str, status: int) -> None:
    tree.seed("f", "old")
    code = f"""
        import os, sys, threading, time
        f = open("f", "w")
        f.write("what the program left")
        f.flush()
        {end}
    """
    assert program(code, tree.path) == status
    assert tree.text("f") == "what the program left"
    tree.settle()
    tree.assert_clean()


def test_duplicated_descriptors_end_with_the_last_close(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do(
            "a = os.open('f', os.O_WRONLY | os.O_TRUNC); b = os.dup(a); os.dup2(b, 40)\n"
            "os.close(a); os.close(b)"
        )
        assert reader.content("f") == "old"
        writer.do("os.write(40, b'by the third'); os.close(40)")
        assert reader.content("f") == "by the third"
        # A duplicate that writes after another one closed: a live version, sealed again.
        writer.do("a = os.open('f', os.O_WRONLY | os.O_TRUNC); b = os.dup(a)")
        writer.do("os.write(a, b'one '); os.close(a); os.write(b, b'two'); os.close(b)")
        assert reader.content("f") == "one two"
    tree.mount.wait_until(lambda: tree.conditions()["f"] == "ok")


# --- execve --------------------------------------------------------------------------------------


def test_execve_with_a_close_on_exec_descriptor_does_not_block_the_server(tree: Tree) -> None:
    """The FLUSH came while exec_update_lock was held, and the server read /proc/<pid>/stat, which
    waits for that lock: nothing but an abort of the connection freed them."""
    tree.seed("f", "old")
    code = """
        import os
        f = open("f", "w")
        f.write("before exec")
        f.flush()
        os.execv("/bin/true", ["true"])
    """
    for _ in range(10):
        assert program(code, tree.path) == 0
        assert tree.text("f") == "before exec"


def test_execve_with_a_mapped_file_that_did_not_change(tree: Tree) -> None:
    """The server looks into /proc/<pid>/maps then, which waits for the same lock."""
    tree.seed("f", "old")
    code = """
        import mmap, os
        f = open("f", "r+b")
        m = mmap.mmap(f.fileno(), 3)
        os.execv("/bin/true", ["true"])
    """
    for _ in range(3):
        assert program(code, tree.path) == 0
        assert tree.text("f") == "old"
    tree.settle()
    tree.assert_clean()


def test_execve_in_a_thread_beside_an_open_writer(tree: Tree) -> None:
    code = """
        import os, threading
        f = open("f", "w")
        f.write("before exec")
        f.flush()
        threading.Thread(target=os.execv, args=("/bin/true", ["true"])).start()
        threading.Event().wait()
    """
    assert program(code, tree.path) == 0
    assert tree.text("f") == "before exec"


def test_programs_are_run_while_a_file_is_being_written(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("import subprocess; f = open('f', 'w')")
        for step in range(10):
            writer.do(f"f.write('{step}'); f.flush(); subprocess.run(['true'], check=True)")
            writer.do("subprocess.run(['true'], check=True, close_fds=False)")
            writer.do("os.system('true')")
            assert reader.content("f") == "old"
        writer.do("f.close()")
        assert reader.content("f") == "0123456789"
    tree.assert_clean()


# --- renamed before it is closed -----------------------------------------------------------------


def test_c1_safetensors_saves_over_an_existing_file(tree: Tree, torch_user: Actor) -> None:
    pytest.importorskip("safetensors.torch")
    torch_user.do("from safetensors.torch import load_file, save_file")
    for value in (1.0, 2.0):
        torch_user.do(f"save_file({{'w': torch.full((1000,), {value})}}, 'm.safetensors')")
        assert torch_user.value("float(load_file('m.safetensors')['w'][7])") == value
    tree.assert_clean()
    record = tree.record("m.safetensors")
    assert record is not None and record.structure == "sound"
    assert os.listdir(tree.path) == ["m.safetensors"]


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_a_file_renamed_before_its_close_is_committed_by_it(tree: Tree, replacing: bool) -> None:
    if replacing:
        tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('tmp', 'w'); f.write('new '); f.flush(); os.rename('tmp', 'f')")
        assert writer.content("f") == "new "
        assert reader.content("f") == "new "  # by its own writer: all see it at once
        assert reader.content("tmp") is None
        writer.do("f.write('whole'); f.close()")
        assert reader.content("f") == writer.content("f") == "new whole"
    assert os.listdir(tree.path) == ["f"]
    tree.assert_clean()


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_c6_killed_between_rename_and_close(tree: Tree, replacing: bool) -> None:
    if replacing:
        tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('tmp', 'w'); f.write('half'); f.flush(); os.rename('tmp', 'f')")
        writer.kill()
        tree.settle()
        assert reader.content("f") == ("old" if replacing else None)
        assert reader.content("tmp") is None
    assert tree.aside("salvage", "f") == [b"half"]


def test_c6_killed_after_a_duplicate_was_closed_before_the_first_write(tree: Tree) -> None:
    """So shells redirect; that close must not count as the writer's own."""
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("a = os.open('f', os.O_WRONLY | os.O_TRUNC); os.dup2(a, 40); os.close(a)")
        writer.do("os.write(40, b'half')")
        writer.kill()
        tree.settle()
        assert reader.content("f") == "old"
    assert tree.aside("salvage", "f") == [b"half"]


# --- opened again --------------------------------------------------------------------------------


def test_a_second_open_joins_the_version_that_is_being_written(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w'); f.write('one '); f.flush()")
        writer.do("g = open('f', 'ab'); g.write(b'two '); g.close()")
        writer.do(
            "h = open('f', 'r+b'); assert h.read() == b'one two '; h.write(b'three'); h.close()"
        )
        assert reader.content("f") == "old"
        writer.do("f.close()")
        assert reader.content("f") == "one two three"
    tree.assert_clean()


@pytest.mark.parametrize(
    ("change", "content"),
    [
        ("f = open('f', 'ab'); f.write(b'-more'); f.flush()", "\0irst-more"),
        ("f = open('f', 'r+b'); f.write(b'FIR'); f.flush()", "FIRst"),
        ("f = open('f', 'r+b'); f.truncate(2)", "\0i"),
        ("f = open('f', 'r+b'); f.seek(7); f.write(b'x'); f.flush()", "\0irst\0\0x"),
    ],
)
def test_c1_reopened_for_changes_is_a_version_of_its_own(
    tree: Tree, change: str, content: str
) -> None:
    tree.seed("f", "\0irst")
    before = tree.generation("f")
    with tree.actors(2) as (writer, reader):
        writer.do(change)
        assert writer.content("f") == content
        assert reader.content("f") == "\0irst"
        writer.do("f.close()")
        assert reader.content("f") == content
    assert tree.generation("f") > before
    record = tree.record("f")
    assert record is not None
    kept = tree.mount.below / ".ckptfs/history" / record.lineage / str(before)
    assert kept.read_text() == "\0irst"
    tree.assert_clean()


@pytest.mark.parametrize("mode", ["r+", "a"])
def test_opened_for_changes_and_not_changed_keeps_its_generation(tree: Tree, mode: str) -> None:
    tree.seed("f", "first")
    before = tree.generation("f"), (tree.below / "f").stat().st_ino
    with tree.actors(1) as (writer,):
        writer.do(f"open('f', {mode!r}).close()")
        writer.do(f"f = open('f', {mode!r}); os.close(os.dup(f.fileno())); f.close()")
    tree.settle()
    assert (tree.generation("f"), (tree.below / "f").stat().st_ino) == before
    assert tree.text("f") == "first"


def test_closed_and_opened_again_to_go_on(tree: Tree) -> None:
    """FastPersist, DataStates and CheckFreq write a file in several openings."""
    with tree.actors(2) as (writer, reader):
        writer.do("open('f', 'w').close()")
        for part in range(5):
            writer.do(f"f = open('f', 'r+b'); f.seek({part}); f.write(b'{part}'); f.close()")
        assert reader.content("f") == "01234"
    tree.assert_clean()


# --- several writers -----------------------------------------------------------------------------

_SAVERS = """
go, ready, pids = os.pipe(), os.pipe(), []
for rank in range(count):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(go[1])
            os.write(ready[1], b"r")
            os.read(go[0], 1)
            torch.save({"rank": rank, "w": torch.full((50_000,), float(rank))}, "model.pt")
            status = 0
        finally:
            os._exit(status)
    pids.append(pid)
for _ in pids:
    os.read(ready[0], 1)
os.close(go[0]); os.close(go[1])
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count
saved = torch.load("model.pt")
assert saved["w"].tolist() == [float(saved["rank"])] * 50_000
"""


@pytest.mark.parametrize("count", [2, 8])
def test_c1_ranks_that_save_to_one_path_leave_one_of_them_whole(
    tree: Tree, torch_user: Actor, count: int
) -> None:
    torch_user.do(f"count = {count}\n{_SAVERS}")
    tree.settle()
    tree.assert_clean()
    assert not tree.aside("salvage", "model.pt")


def _open_slice(actor: Actor, rank: int) -> None:
    actor.do(f"f = os.open('f', os.O_RDWR | os.O_CREAT); os.pwrite(f, b'{rank}' * 4, {4 * rank})")


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_c1_writers_of_slices_commit_at_the_last_close(tree: Tree, replacing: bool) -> None:
    if replacing:
        tree.seed("f", "-" * 16)
    before = tree.record("f")
    with tree.actors(5) as (*writers, reader):
        for rank, writer in enumerate(writers):
            _open_slice(writer, rank)
        for writer in writers[1:]:
            writer.do("os.close(f)")
            assert tree.record("f") == before
        if replacing:
            assert reader.content("f") == "-" * 16
        writers[0].do("os.close(f)")
        assert reader.content("f") == "0000111122223333"
    tree.assert_clean()


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_c6_one_killed_writer_of_slices_aborts_the_version(tree: Tree, replacing: bool) -> None:
    if replacing:
        tree.seed("f", "-" * 16)
    with tree.actors(5) as (*writers, reader):
        for rank, writer in enumerate(writers):
            _open_slice(writer, rank)
        writers[0].do("os.close(f)")
        writers[1].kill()
        writers[2].do("os.close(f)")
        # The one whose close decides must hear of it: a close that returns 0 says "committed".
        assert writers[3].errno_of("os.close(f)") == "EIO"
        tree.settle()
        assert reader.content("f") == ("-" * 16 if replacing else None)
    assert tree.aside("salvage", "f") == [b"0000111122223333"]


def test_c1_who_wrote_nothing_says_nothing_by_a_name(tree: Tree) -> None:
    """As touch(1) and mv(1) do, while another is in the middle of it."""
    tree.seed("f", "-" * 16)
    with tree.actors(3) as (writer, other, reader):
        writer.do("f = os.open('f.tmp', os.O_WRONLY | os.O_CREAT); os.write(f, b'1' * 8)")
        other.do("g = os.open('f.tmp', os.O_WRONLY | os.O_CREAT); os.utime(g); os.close(g)")
        other.do("os.rename('f.tmp', 'f')")
        writer.kill()
        tree.settle()
        assert reader.content("f") == "-" * 16
    tree.assert_clean()


@pytest.mark.parametrize("changed", [False, True], ids=["as closed", "changed since"])
def test_c1_a_name_by_who_closed_it_says_that_it_is_whole(tree: Tree, changed: bool) -> None:
    """Not where another process that has it open has gone on: it may write the rest."""
    tree.seed("f", "-" * 16)
    with tree.actors(3) as (writer, other, reader):
        writer.do("f = os.open('f.tmp', os.O_WRONLY | os.O_CREAT); os.write(f, b'1' * 16)")
        other.do("g = os.open('f.tmp', os.O_RDWR)")
        writer.do("os.close(f)")
        if changed:
            other.do("os.pwrite(g, b'2' * 8, 0)")
        writer.do("os.rename('f.tmp', 'f')")
        other.kill()
        tree.settle()
        assert reader.content("f") == ("-" if changed else "1") * 16
    tree.assert_clean()
    assert tree.aside("salvage", "f") == ([b"2222222211111111"] if changed else [])


# --- mappings ------------------------------------------------------------------------------------


@pytest.mark.kernel_only(mounts.ONE_INODE)
@pytest.mark.parametrize("mode", ["w+", "r+"])
def test_numpy_memmap(tree: Tree, mode: str) -> None:
    pytest.importorskip("numpy")
    tree.seed("a.bin", bytes(8000))
    with tree.actors(2) as (writer, reader):
        writer.do("import numpy"), reader.do("import numpy")
        writer.do(f"m = numpy.memmap('a.bin', 'int64', {mode!r}, shape=(1000,))")
        writer.do("m[:] = range(1000); m.flush(); m[7] = -7")
        writer.do("del m")
        total = "int(numpy.memmap('a.bin', 'int64', 'r').sum())"
        assert reader.value(total) == sum(range(1000)) - 14
        tree.settle()
        assert reader.value("int(numpy.fromfile('a.bin', 'int64').sum())") == sum(range(1000)) - 14
    tree.assert_clean()


_CHANGES = """
import os
pids = []
for rank in range(4):
    pid = os.fork()
    if pid == 0:
        for i in range(100):
            with open('f', 'r+b', buffering=0) as f:
                os.pwrite(f.fileno(), bytes([65 + rank]), rank)
        os._exit(0)
    pids.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
"""


def test_changes_by_several_processes_at_once_are_not_lost(tree: Tree) -> None:
    """Opens that meet a commit under way: each failed with ESTALE, or wrote to a version that
    was being sealed, or lost its bytes to a version begun beside it."""
    tree.seed("f", "--------")
    mounts.python(_CHANGES, cwd=tree.path)
    assert tree.text("f") == "ABCD----"
    tree.settle()
    tree.assert_clean()


@pytest.mark.kernel_only(mounts.ONE_INODE)
def test_c5_stores_through_a_mapping_after_close_are_not_damage(tree: Tree) -> None:
    """The descriptor is closed, the version committed, and the mapping still stores."""
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do(_LIBC_MAP)
        writer.do("f = os.open('f', os.O_RDWR | os.O_TRUNC); os.ftruncate(f, 8192)")
        writer.do("at = map_file(f, 8192); ctypes.memset(at, ord('a'), 8192); os.close(f)")
        assert reader.content("f") == "a" * 8192
        for letter in "bc":
            writer.do(f"ctypes.memset(at, ord('{letter}'), 100)")
            assert reader.content("f") == letter * 100 + "a" * 8092
        writer.do("ctypes.memset(at, ord('d'), 100); libc.munmap(at, 8192)")
        assert reader.content("f") == "d" * 100 + "a" * 8092
    tree.settle()
    tree.assert_clean()
    assert not tree.aside("quarantine", "f")


@pytest.mark.kernel_only(mounts.ONE_INODE)
def test_c7_a_mapping_of_an_old_version_does_not_reach_the_new_one(tree: Tree) -> None:
    tree.seed("f", "old!")
    with tree.actors(2) as (mapper, writer):
        mapper.do("import mmap; f = open('f', 'r+b'); m = mmap.mmap(f.fileno(), 4); m[0] = 79")
        mapper.do("f.close()")
        writer.do("open('f', 'w').write('new!')")
        mapper.do("m[1] = 76; m.flush(); m.close()")
    tree.settle()
    assert tree.text("f") == "new!"
    tree.assert_clean()


# --- rot is not laundered ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ab", "r+b"])
def test_c5_changes_to_a_rotten_file_start_from_the_last_good_version(tree: Tree, how: str) -> None:
    tree.seed("f", "good one", "good two")
    rotten = tree.rot("f")
    with tree.actors(1) as (writer,):
        writer.do(f"f = open('f', {how!r}); f.seek(0, 2); f.write(b'-more'); f.close()")
    assert tree.text("f") == "good one-more"
    assert tree.aside("quarantine", "f") == [rotten]
    tree.settle()
    tree.assert_clean()


@pytest.mark.parametrize("how", ["ab", "r+b"])
def test_c5_changes_to_a_rotten_file_without_a_good_version_fail(tree: Tree, how: str) -> None:
    tree.seed("f", "the only one")
    rotten = tree.rot("f")
    with tree.actors(1) as (writer,):
        assert writer.errno_of(f"open('f', {how!r})") == "EIO"
        assert tree.conditions() == {"f": "damaged"}
        assert (tree.below / "f").read_bytes() == rotten
        writer.write("f", "written anew")
    assert tree.text("f") == "written anew"
    tree.assert_clean()


# --- an exception in the writer ------------------------------------------------------------------

_SAVE = "torch.save({'w': torch.ones(1000)}, 'model.pt')"
_FAILING_SAVE = """
class Breaks:
    def __reduce__(self):
        raise RuntimeError("cannot be pickled")
torch.save({"w": torch.ones(1000), "broken": Breaks(), "v": torch.ones(1000)}, "model.pt")
"""
_CUT = "data = open('model.pt', 'rb').read(); f = open('model.pt', 'wb'); f.write(data[:900])"


def test_c4_an_exception_in_torch_save_does_not_cost_the_sound_checkpoint(
    tree: Tree, torch_user: Actor
) -> None:
    torch_user.do(_SAVE)
    good = (tree.path / "model.pt").read_bytes()
    with pytest.raises(Failed):
        torch_user.do(_FAILING_SAVE)
    tree.settle()
    assert (tree.path / "model.pt").read_bytes() == good
    assert len(tree.aside("salvage", "model.pt")) == 1
    tree.assert_clean()


def test_c4_a_cut_file_does_not_replace_a_sound_one_and_close_says_so(
    tree: Tree, torch_user: Actor
) -> None:
    torch_user.do(_SAVE)
    good = (tree.path / "model.pt").read_bytes()
    torch_user.do(_CUT)
    assert torch_user.errno_of("f.close()") == "EBADMSG"
    tree.settle()
    assert (tree.path / "model.pt").read_bytes() == good
    assert tree.aside("salvage", "model.pt") == [good[:900]]
    tree.assert_clean()


def test_a_broken_file_under_a_new_name_is_committed_and_called_broken(
    tree: Tree, torch_user: Actor
) -> None:
    with pytest.raises(Failed):
        torch_user.do(_FAILING_SAVE)
    tree.settle()
    record = tree.record("model.pt")
    assert record is not None and record.structure == "broken"
    assert tree.conditions() == {"model.pt": "broken"}
    done = mounts.ckptfs("verify", tree.mount.path)
    assert done.returncode == 4 and "model.pt" in done.stdout
    torch_user.do(_SAVE)  # a sound one replaces it
    tree.assert_clean()


def test_validate_off_lets_a_cut_file_replace_a_sound_one(
    disk_dir: Path, torch_process: Actor
) -> None:
    """The control of the structure check."""
    with mounts.served(disk_dir, "--validate", "off"):
        torch_process.do(f"os.chdir({str(disk_dir)!r}); {_SAVE}")
        good = (disk_dir / "model.pt").read_bytes()
        torch_process.do(f"{_CUT}; f.close(); os.chdir('/')")
        assert (disk_dir / "model.pt").read_bytes() == good[:900]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV])
@pytest.mark.parametrize("written", [b"", b"half" * 1000], ids=["before", "within"])
def test_c6_a_killed_child_that_was_given_the_file_publishes_nothing(
    tree: Tree, number: int, written: bytes
) -> None:
    """Popen(…, stdout=file), the file closed by the parent: nobody has said that it is whole."""
    tree.seed("model.bin", "old")
    with tree.actors(1) as (parent,):
        parent.do("import subprocess, sys; f = open('model.bin', 'wb')")
        code = f"import os, time; os.write(1, {written!r}); os.write(2, b'.'); time.sleep(60)"
        parent.do(f"command = [sys.executable, '-c', {code!r}]")
        parent.do("p = subprocess.Popen(command, stdout=f, stderr=subprocess.PIPE); f.close()")
        parent.do(f"p.stderr.read(1); p.send_signal({int(number)}); p.wait()")
        tree.settle()
        assert parent.content("model.bin") == "old"
