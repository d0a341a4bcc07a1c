"""The kernel carries the data itself: no READ or WRITE reaches the daemon. And where it does not
(an old kernel, no rights, ``--no-passthrough``), mappings are whole all the same."""

from __future__ import annotations

from collections.abc import Iterator

import mounts
import pytest
from actors import Actor
from trees import Shared, Tree, shared_by

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
    with shared_by(request.param, tmp_path_factory) as shared:
        yield shared


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


@pytest.mark.kernel_only(mounts.ONE_INODE)
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
        user.write("a.txt", "one")
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


@pytest.mark.kernel_only(mounts.ONE_INODE)
def test_c7_held_and_mapped_bytes_stay(tree: Tree) -> None:
    tree.seed("f", "old!")
    with tree.actors(2) as (reader, writer):
        reader.do("import mmap; f = open('f'); m = mmap.mmap(f.fileno(), 4, prot=mmap.PROT_READ)")
        for version in ("one", "twoo", "three"):
            writer.write("f", version)
            assert reader.value("m[:].decode() + os.pread(f.fileno(), 9, 0).decode()") == "old!old!"
            assert reader.value("os.fstat(f.fileno()).st_size") == 4
            assert reader.content("f") == version


@pytest.mark.kernel_only(mounts.ONE_INODE)
def test_stores_through_a_mapping_reach_the_file(tree: Tree) -> None:
    tree.seed("f", "-" * 10_000)
    with tree.actors(2) as (writer, reader):
        writer.do(_MAP)
        writer.do("f = open('f', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[:3] = b'abc'")
        writer.do("m.flush(); m.close(); f.close()")
        assert reader.content("f") == "abc" + "-" * 9997
    tree.settle()
    tree.assert_clean()
