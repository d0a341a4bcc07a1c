"""The kernel carries the data itself: no READ or WRITE reaches the daemon. And where it does not
(an old kernel, no rights, ``--no-passthrough``), every promise holds all the same."""

from __future__ import annotations

from collections.abc import Iterator

import mounts
import pytest
from actors import Actor
from trees import Shared, Tree

_MAP = """
import mmap
f = open('mapped', 'w+b'); f.truncate(10_000)
m = mmap.mmap(f.fileno(), 10_000); m[:3] = b'abc'; m[-3:] = b'xyz'; m.flush(); m.close(); f.close()
f = open('mapped', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
assert m[:3] + m[5000:5001] + m[-3:] == b'abc' + bytes(1) + b'xyz'
m.close(); f.close()
"""


@pytest.fixture(scope="module", params=["passthrough", "relayed"])
def shared_mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    """Both ways, in place of the default mount of the other modules."""
    reason = mounts.why_no_mounts()
    if reason:
        pytest.skip(f"cannot mount here: {reason}")
    options = ["--no-passthrough"] if request.param == "relayed" else []
    shared = Shared(tmp_path_factory.mktemp(request.param), *options)
    yield shared
    shared.end()


def _data_requests(tree: Tree) -> int:
    requests = tree.mount.status()["requests"]
    return int(requests.get("READ", 0)) + int(requests.get("WRITE", 0))


def _assert_sent(tree: Tree, start: int, relayed: bool) -> None:
    """status.json is answered by the daemon itself, so each look costs a READ or two."""
    sent = _data_requests(tree) - start
    before = _data_requests(tree)
    own = _data_requests(tree) - before
    assert sent > own if relayed else sent <= own


def _is_relayed(tree: Tree) -> bool:
    """Skips where passthrough was asked for and the kernel refused it."""
    status = tree.mount.status()
    asked = "--no-passthrough" not in tree.mount.options
    if asked and not status["passthrough"]:
        pytest.skip(f"no passthrough here: {status['passthrough_refusal']}")
    return not asked


def test_no_data_passes_the_daemon(tree: Tree, torch_user: Actor) -> None:
    """With the control: relayed, the same work sends requests."""
    relayed = _is_relayed(tree)
    start = _data_requests(tree)
    torch_user.do(
        "torch.save({'w': torch.ones(100_000)}, 'm.pt')\n"
        "assert float(torch.load('m.pt')['w'].sum()) == 100_000\n"
        "assert float(torch.load('m.pt', mmap=True)['w'].sum()) == 100_000"
    )
    torch_user.do(_MAP)
    with tree.actors(1) as (user,):
        user.do("f = open('a.txt', 'w'); f.write('one'); f.close()")
        user.do("f = open('a.txt', 'a'); f.write(' two'); f.close()")
        user.do("f = open('a.txt', 'r+'); f.write('ONE'); f.close()")
        assert user.content("a.txt") == "ONE two"
        user.do("f = open('run.log', 'a'); f.write('x'); f.close(); assert open('run.log').read()")
    mounts.shell("cp m.pt copy.pt && cmp m.pt copy.pt", tree.path)
    _assert_sent(tree, start, relayed)


def test_safetensors_passes_nobody(tree: Tree, torch_user: Actor) -> None:
    pytest.importorskip("safetensors.torch")
    relayed = _is_relayed(tree)
    start = _data_requests(tree)
    torch_user.do(
        "from safetensors.torch import load_file, save_file\n"
        "for value in (1.0, 2.0):\n"
        "    save_file({'w': torch.full((100_000,), value)}, 'm.safetensors')\n"
        "    assert float(load_file('m.safetensors')['w'].sum()) == 100_000 * value"
    )
    _assert_sent(tree, start, relayed)
    tree.settle()
    tree.assert_clean()


# --- the same promises both ways -----------------------------------------------------------------


def test_c1_others_see_the_old_version_until_the_close(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w'); f.write('new'); f.flush()")
        assert (writer.content("f"), reader.content("f")) == ("new", "old")
        assert writer.value("os.stat('f').st_size") == 3
        writer.do("f.close()")
        assert reader.content("f") == "new"
    tree.assert_clean()


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


def test_c7_held_and_mapped_bytes_stay(tree: Tree) -> None:
    tree.seed("f", "old!")
    with tree.actors(2) as (reader, writer):
        reader.do("import mmap; f = open('f'); m = mmap.mmap(f.fileno(), 4, prot=mmap.PROT_READ)")
        for version in ("one", "twoo", "three"):
            writer.do(f"f = open('f', 'w'); f.write({version!r}); f.close()")
            assert reader.value("m[:].decode() + os.pread(f.fileno(), 9, 0).decode()") == "old!old!"
            assert reader.value("os.fstat(f.fileno()).st_size") == 4
            assert reader.content("f") == version


def test_stores_through_a_mapping_reach_the_file(tree: Tree) -> None:
    tree.seed("f", "-" * 10_000)
    with tree.actors(2) as (writer, reader):
        writer.do(_MAP)
        writer.do("f = open('f', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[:3] = b'abc'")
        writer.do("m.flush(); m.close(); f.close()")
        assert reader.content("f") == "abc" + "-" * 9997
    tree.settle()
    tree.assert_clean()


def test_c5_rot_is_rolled_back(tree: Tree) -> None:
    tree.seed("f", "good one", "good two")
    tree.rot("f")
    with tree.actors(2) as (writer, reader):
        assert reader.content("f") == "good one"
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


def test_descriptors_are_opened_again_by_their_link(tree: Tree) -> None:
    tree.seed("f", "old")
    with tree.actors(2) as (writer, reader):
        writer.do("f = open('f', 'w+'); f.write('one '); f.flush()")
        writer.do("g = open(f'/proc/self/fd/{f.fileno()}', 'a'); g.write('two'); g.close()")
        writer.do("f.close()")
        assert reader.content("f") == "one two"
    tree.assert_clean()
