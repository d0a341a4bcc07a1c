"""Earlier generations through the mount: ``.ckptfs/history/<path>/<generation>``.

Promises: what is kept can be read as any file, is verified as any file is (C5), cannot be changed,
and is shown to nobody whom the file itself would not be shown to.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from harness import rot
from trees import WAYS, Shared, Tree, shared_by, sharing
from users import ALICE, BOB, Lab, UserMount, user_mount


@pytest.fixture(scope="module", params=WAYS)
def shared_mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    with shared_by(request.param, tmp_path_factory, "--keep", "3") as shared:
        yield shared


def past(tree: Tree, name: str = "") -> Path:
    return tree.mount.path / ".ckptfs/history" / tree.name / name


def kept(tree: Tree, name: str) -> list[Path]:
    """The generations of a file, oldest first."""
    folder = past(tree, name)
    return [folder / entry for entry in sorted(os.listdir(folder), key=int)]


def on_disk(tree: Tree, generation: Path) -> Path:
    """Where a generation lies below the mount."""
    (found,) = (tree.mount.below / ".ckptfs/history").glob(f"*/{generation.name}")
    return found


def errno_of(work: object) -> str:
    try:
        work()  # type: ignore[operator]
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def through_libfuse(tree: Tree) -> bool:
    return tree.mount.status()["binding"] != "kernel"


# --- reading -------------------------------------------------------------------------------------


def test_what_is_kept_is_read_by_its_generation(tree: Tree) -> None:
    generations = []
    for version in ("one", "second", "3"):
        tree.seed("a/b.pt", version)
        generations.append(str(tree.generation("a/b.pt")))
    tree.seed("a/b.pt", "the last")
    found = kept(tree, "a/b.pt")
    assert [path.name for path in found] == generations
    assert [path.read_text() for path in found] == ["one", "second", "3"]
    assert [path.stat().st_size for path in found] == [3, 6, 1]
    for path in found:
        below = on_disk(tree, path).stat()
        assert path.stat().st_mtime_ns == below.st_mtime_ns
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        record = os.getxattr(path, "user.ckptfs")
        assert f"generation={path.name} ".encode() in record
        assert os.listxattr(path) == []
    assert stat.S_IMODE(past(tree, "a/b.pt").stat().st_mode) == 0o555
    copied = mounts.shell(
        "cp -r b.pt /dev/shm/$$ && cat /dev/shm/$$/*; rm -r /dev/shm/$$", past(tree, "a")
    )
    assert copied == "onesecond3"


def test_the_tree_is_mirrored_and_what_has_no_past_is_left_out(tree: Tree) -> None:
    tree.seed("d/e/f", "1", "2")
    tree.seed("d/once", "1")
    tree.seed("d/x.log", "1", "2")
    (tree.path / "d/link").symlink_to("e/f")
    os.mkfifo(tree.path / "d/pipe")
    (tree.path / "empty").mkdir()
    (tree.below / "d/unrecorded").write_text("x")
    names = {"d", "empty"}
    assert set(os.listdir(past(tree))) == names
    assert {entry.name for entry in os.scandir(past(tree)) if entry.is_dir()} == names
    assert os.listdir(past(tree, "d")) == ["e"] and os.listdir(past(tree, "empty")) == []
    for name in ("once", "x.log", "link", "pipe", "unrecorded", "none"):
        assert not os.path.lexists(past(tree, f"d/{name}")), name
    found = mounts.shell("find . -type f", past(tree)).split()
    assert found == [f"./d/e/f/{kept(tree, 'd/e/f')[0].name}"]
    for wrong in ("0", "01", "x", "²", "-1"):
        assert not os.path.lexists(past(tree, f"d/e/f/{wrong}"))
    assert errno_of(lambda: os.stat(kept(tree, "d/e/f")[0] / "x")) == "ENOTDIR"


def test_history_is_not_listed_in_the_tree(tree: Tree) -> None:
    root = tree.mount.path
    tree.seed("f", "1", "2")
    assert mounts.shell("ls -a", root).split() == [".", "..", *sorted(os.listdir(root))]
    assert ".ckptfs" not in os.listdir(root)
    assert ".ckptfs" not in os.listdir(root / ".ckptfs/history")
    assert not os.path.lexists(root / ".ckptfs/history/.ckptfs")
    assert not os.path.samefile(root, root / ".ckptfs/history")
    assert mounts.shell("find . -name '[0-9]*' -type f", root) == ""


def test_a_generation_is_mapped(tree: Tree) -> None:
    data = os.urandom(3 << 20)
    tree.seed("f", data, "now")
    (path,) = kept(tree, "f")
    code = (
        "import mmap, sys; f = open(sys.argv[1], 'rb'); "
        "shared = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); "
        "own = mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE); "
        "print(shared[:] == own[:] == f.read(), len(own))"
    )
    assert mounts.python(code, path) == f"True {len(data)}\n"
    assert path.read_bytes() == data


def test_torch_loads_a_generation(tree: Tree) -> None:
    torch = pytest.importorskip("torch")
    for step in range(2):
        torch.save({"w": torch.full((1000,), step)}, tree.path / "m.pt")
    (path,) = kept(tree, "m.pt")
    assert torch.load(path)["w"].tolist() == [0] * 1000
    assert torch.load(path, mmap=True)["w"].tolist() == [0] * 1000


def test_the_kernel_carries_it(tree: Tree) -> None:
    if not tree.mount.status()["passthrough"]:
        pytest.skip("relayed")
    tree.seed("f", b"x" * (8 << 20), "now")
    (path,) = kept(tree, "f")
    before = tree.mount.status()["requests"].get("READ", 0)
    with open(path, "rb") as first, open(path, "rb") as second:
        assert len(first.read()) == len(second.read()) == 8 << 20
    assert tree.mount.status()["requests"].get("READ", 0) - before <= 4  # status.json itself


def test_one_inode_is_read_as_past_and_present(tree: Tree) -> None:
    """Hard links part at a commit: what is the past of one name is the present of the other."""
    tree.seed("f", b"x" * 100_000)
    os.link(tree.path / "f", tree.path / "g")
    tree.seed("f", "2")
    (path,) = kept(tree, "f")
    with open(path, "rb") as past_file, open(tree.path / "g", "rb") as present:
        fcntl.flock(past_file, fcntl.LOCK_SH)
        assert past_file.read() == present.read() == b"x" * 100_000
    assert not os.path.lexists(past(tree, "g"))


def test_where_records_lie_in_sidecars(ramfs_dir: Path) -> None:
    directory = ramfs_dir / "served"
    directory.mkdir()
    with mounts.served(directory) as mount:
        for text in ("one", "two"):
            (directory / "f").write_text(text)
        (path,) = (directory / ".ckptfs/history/f").iterdir()
        assert path.read_text() == "one"
        (below,) = (mount.below / ".ckptfs/history").glob("*/*")
        rot(below)
        assert errno_of(path.read_text) == "EIO"


# --- what is kept comes and goes -----------------------------------------------------------------


def test_it_follows_the_file_to_its_new_name(tree: Tree) -> None:
    tree.seed("d/f", "1", "2")
    assert kept(tree, "d/f")[0].read_text() == "1"
    os.rename(tree.path / "d/f", tree.path / "g")
    assert not os.path.lexists(past(tree, "d/f"))
    assert kept(tree, "g")[0].read_text() == "1"
    tree.seed("d/f", "another")
    assert not os.path.lexists(past(tree, "d/f"))
    os.rename(tree.path / "d", tree.path / "moved")
    assert not os.path.lexists(past(tree, "d"))
    assert os.listdir(past(tree, "moved")) == []


def test_no_name_is_remembered(tree: Tree) -> None:
    tree.seed("f", "0")
    for count in range(1, 6):
        assert os.path.exists(past(tree, "f")) == (count > 1)
        tree.seed("f", str(count))
        texts = [path.read_text() for path in kept(tree, "f")]
        assert texts == [str(n) for n in range(count)][-3:]
    os.unlink(tree.path / "f")
    assert not os.path.lexists(past(tree, "f"))
    assert os.listdir(past(tree)) == []


def test_an_open_generation_is_read_on(tree: Tree) -> None:
    tree.seed("f", "the first", "2")
    (first,) = kept(tree, "f")
    with open(first, "rb", buffering=0) as file:
        tree.seed("f", "3", "4", "5")
        assert not first.exists() and errno_of(first.read_bytes) == "ENOENT"
        assert first.name not in os.listdir(past(tree, "f"))
        assert file.read() == b"the first"
        if not through_libfuse(tree):  # which has no path for it
            assert os.fstat(file.fileno()).st_size == 9


def test_a_directory_that_was_entered_shows_the_present(tree: Tree) -> None:
    tree.seed("f", "1", "2")
    with tree.actors(1) as (user,):
        user.do(f"os.chdir({str(past(tree, 'f'))!r})")
        assert len(user.value("os.listdir('.')")) == 1
        tree.seed("f", "3")
        assert len(user.value("os.listdir('.')")) == 2
        assert user.value("os.getcwd()") == str(past(tree, "f"))


def test_what_is_forgotten_is_closed(tree: Tree) -> None:
    """A name that is gone is dropped by the kernel, with it the descriptor of its directory."""
    for number in range(20):
        tree.seed(f"d{number}/f", "1", "2")

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{tree.mount.status()['pid']}/fd"))

    before = descriptors()
    for number in range(20):
        assert len(kept(tree, f"d{number}/f")) == 1
        assert kept(tree, f"d{number}/f")[0].read_text() == "1"
    if not through_libfuse(tree):
        assert descriptors() >= before + 20
    for number in range(20):
        os.rename(tree.path / f"d{number}", tree.path / f"e{number}")
        assert not os.path.lexists(past(tree, f"d{number}"))
    tree.mount.wait_until(lambda: descriptors() < before + 10)


# --- C5 ------------------------------------------------------------------------------------------


def test_a_damaged_generation_is_not_handed_out(tree: Tree) -> None:
    """C5. There is nothing to roll it back to."""
    tree.seed("f", b"a" * 5000, b"b" * 5000, b"c")
    first, second = kept(tree, "f")
    assert second.read_bytes() == b"b" * 5000
    rot(on_disk(tree, first), 4321)
    rot(on_disk(tree, second), 4321)  # verified before, and changed since
    for path in (first, second):
        assert errno_of(path.read_bytes) == "EIO"
        assert errno_of(path.read_bytes) == "EIO"
    assert tree.text("f") == "c"
    told = [event["path"] for event in tree.mount.events("rotten")]
    assert f".ckptfs/history/{tree.name}/f/{first.name}" in told


def test_control_without_verification_the_damage_is_read(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    base = tmp_path_factory.mktemp("off")
    with sharing(base, "--verify", "off") as shared, shared.tree() as tree:
        tree.seed("f", b"a" * 5000, b"b")
        (path,) = kept(tree, "f")
        rot(on_disk(tree, path), 4321)
        found = path.read_bytes()
        assert len(found) == 5000 and found != b"a" * 5000


def test_what_was_there_before_ckptfs_is_generation_0(tree: Tree) -> None:
    (tree.below / "f").write_text("before")
    tree.seed("f", "after")
    (path,) = kept(tree, "f")
    assert path.name == "0" and path.read_text() == "before"


# --- read-only -----------------------------------------------------------------------------------


def test_nothing_can_be_changed(tree: Tree) -> None:
    tree.seed("d/f", "1", "2")
    tree.seed("live", "x")
    (path,) = kept(tree, "d/f")
    folder, directory, live = path.parent, past(tree, "d"), tree.path / "live"
    refused = {
        "write": lambda: path.write_text("x"),
        "append": lambda: path.open("a"),
        "update": lambda: path.open("r+"),
        "truncate": lambda: os.truncate(path, 0),
        "truncating reader": lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
        "chmod": lambda: path.chmod(0o666),
        "chown": lambda: os.chown(path, 1, 1),
        "utime": lambda: os.utime(path, (1, 1)),
        "touch": lambda: os.utime(path),
        "setxattr": lambda: os.setxattr(path, "user.note", b"x"),
        "removexattr": lambda: os.removexattr(path, "user.note"),
        "record": lambda: os.setxattr(path, "user.ckptfs", b"x"),
        "unlink": lambda: path.unlink(),
        "rename": lambda: path.rename(folder / "9"),
        "move out": lambda: path.rename(live),
        "move in": lambda: live.rename(path),
        "link": lambda: os.link(path, tree.path / "taken"),
        "link into": lambda: os.link(live, folder / "9"),
    }
    for where in (folder, directory, past(tree).parent):
        refused |= {
            f"create {where}": lambda w=where: (w / "999").write_text("x"),  # type: ignore[misc]
            f"mkdir {where}": lambda w=where: (w / "999").mkdir(),  # type: ignore[misc]
            f"symlink {where}": lambda w=where: (w / "999").symlink_to("x"),  # type: ignore[misc]
            f"mkfifo {where}": lambda w=where: os.mkfifo(w / "999"),  # type: ignore[misc]
            f"chmod {where}": lambda w=where: w.chmod(0o777),  # type: ignore[misc]
            f"utime {where}": lambda w=where: os.utime(w, (1, 1)),  # type: ignore[misc]
            f"rename {where}": lambda w=where: w.rename(tree.path / "y"),  # type: ignore[misc]
        }
    refused |= {"rmdir": lambda: folder.rmdir(), "rmdir above": lambda: directory.rmdir()}
    before = path.stat()
    for what, attempt in refused.items():
        assert errno_of(attempt) == "EPERM", what
    assert path.read_text() == "1" and path.stat().st_mtime_ns == before.st_mtime_ns
    assert tree.text("d/f") == "2" and tree.text("live") == "x"
    assert sorted(os.listdir(tree.path)) == ["d", "live"]
    tree.assert_clean()


# --- other users ---------------------------------------------------------------------------------

OWNER, USER, GROUP_OWNER, MASK, OTHER = 1, 2, 4, 16, 32
NOBODY = 0xFFFFFFFF
TEAM = 60100


def acl(bob: int) -> bytes:
    """The owner and, as far as ``bob`` says, Bob."""
    entries = ((OWNER, 7, NOBODY), (USER, bob, BOB), (GROUP_OWNER, 0, NOBODY), (MASK, 7, NOBODY))
    packed = b"".join(struct.pack("<HHI", *entry) for entry in (*entries, (OTHER, 0, NOBODY)))
    return struct.pack("<I", 2) + packed


@pytest.fixture(scope="module")
def served(_lab: Lab) -> Iterator[UserMount]:
    """Root's mount over everybody's files."""
    if mounts.binding() != "kernel":
        pytest.skip("ACLs are not told to libfuse")
    with user_mount(_lab, 0, "--keep", "5", limit_s=240) as mount:
        yield mount


class Place:
    """A directory of its own for a test, open to all, and its like below history."""

    def __init__(self, mount: UserMount) -> None:
        self.below = Path(tempfile.mkdtemp(dir=mount.below))
        self.below.chmod(0o777)
        self.path = mount.path / self.below.name
        self.past = mount.path / ".ckptfs/history" / self.below.name


@pytest.fixture
def place(lab: Lab, served: UserMount) -> Place:
    return Place(served)


_READ = "(lambda d: open(d + '/' + max(os.listdir(d), key=int)).read())({!r})"


def test_what_the_file_denies_its_past_denies(place: Place, lab: Lab) -> None:
    read = _READ.format(f"{place.past}/f")
    with lab.actors(place.path, ALICE, BOB, 0) as (alice, bob, root):
        alice.write("f", "public once")
        alice.write("f", "2")
        number = alice.value(f"os.listdir('{place.past}/f')")[0]
        assert alice.value(read) == bob.value(read) == root.value(read) == "public once"
        bob.do(f"folder = os.open('{place.past}/f', os.O_RDONLY); os.chdir('{place.past}/f')")
        alice.do("os.chmod('f', 0o600)")
        assert alice.value(read) == root.value(read) == "public once"
        for code in (
            f"os.listdir('{place.past}/f')",
            f"open('{place.past}/f/{number}')",
            f"os.stat('{place.past}/f/{number}')",
            f"open('{number}')",
            f"os.open('{number}', os.O_RDONLY, dir_fd=folder)",
        ):
            assert bob.errno_of(code) == "EACCES", code
        assert bob.value(f"oct(os.stat('{place.past}/f').st_mode)") == "0o40500"
        alice.do("os.chmod('f', 0o644)")
        assert bob.value(read) == "public once"


def test_a_directory_denies_as_its_like_does(place: Place, lab: Lab) -> None:
    with lab.actors(place.path, ALICE, BOB) as (alice, bob):
        alice.do("os.mkdir('d', 0o700)")
        alice.write("d/f", "1")
        alice.write("d/f", "2")
        number = alice.value(f"os.listdir('{place.past}/d/f')")[0]
        for code in (f"os.listdir('{place.past}/d')", f"open('{place.past}/d/f/{number}')"):
            assert bob.errno_of(code) == "EACCES", code
        shown = alice.value(
            f"[(s.st_uid, s.st_gid, oct(s.st_mode)) for s in [os.stat('{place.past}/d')]]"
        )
        assert shown == [[ALICE, ALICE, "0o40500"]]
        alice.do("os.chmod('d', 0o711)")
        assert bob.errno_of(f"os.listdir('{place.past}/d')") == "EACCES"
        assert bob.value(f"open('{place.past}/d/f/{number}').read()") == "1"


def test_acls_count_for_the_past(place: Place, lab: Lab) -> None:
    read = _READ.format(f"{place.past}/d/f")
    with lab.actors(place.path, ALICE, BOB) as (alice, bob):
        alice.do("os.umask(0o077); os.mkdir('d', 0o700)")
        try:
            alice.do(f"os.setxattr('d', 'system.posix_acl_access', {acl(5)!r})")
        except Exception as error:
            pytest.skip(f"no ACLs on this filesystem: {error}")
        alice.write("d/f", "1")
        alice.do(f"os.setxattr('d/f', 'system.posix_acl_access', {acl(7)!r})")
        alice.write("d/f", "2")
        alice.write("d/f", "3")
        assert bob.value(read) == "2"
        assert bob.value(f"os.access('{place.past}/d/f', os.W_OK)") is False
        name = "'system.posix_acl_access'"
        assert bob.value(f"list(os.getxattr('{place.past}/d/f', {name}))") != list(acl(7))
        assert bob.value(f"os.listxattr('{place.past}/d')") == ["system.posix_acl_access"]
        carol = 60003
        done = lab.run(carol, "ls", place.past / "d", groups=(TEAM, ALICE))
        assert "denied" in done.stderr
        alice.do(f"os.setxattr('d/f', {name}, {acl(0)!r})")
        assert bob.errno_of(f"os.listdir('{place.past}/d/f')") == "EACCES"
        alice.do(f"os.setxattr('d/f', {name}, {acl(7)!r})")
        assert bob.value(read) == "2"
        alice.do(f"os.setxattr('d', {name}, {acl(0)!r})")
        assert bob.errno_of(f"open('{place.past}/d/f')") == "EACCES"


def test_a_file_renamed_over_a_secret_one_does_not_open_its_past(place: Place, lab: Lab) -> None:
    """The lineage goes on under the new owner, who may not have what he could not read before."""
    read = _READ.format(f"{place.past}/f")
    with lab.actors(place.path, ALICE, BOB) as (alice, bob):
        alice.do("os.umask(0o077)")
        alice.write("f", "secret")
        bob.write("mine", "x")
        bob.do("os.rename('mine', 'f')")
        assert bob.value(f"len(os.listdir('{place.past}/f'))") == 1
        assert bob.errno_of(f"print({read})") == "EACCES"
        assert alice.value(read) == "secret"


def test_a_forged_lineage_leads_nowhere(place: Place, lab: Lab, served: UserMount) -> None:
    """Who owns a directory below can write records into it."""
    from ckptfs.records.format import Record

    with lab.actors(place.path, BOB) as (bob,):
        bob.write("f", "1")
        bob.write("f", "2")
        record = Record.from_bytes(os.getxattr(place.below / "f", "user.ckptfs"))
        assert record is not None
        for lineage in ("../stage", "..", "/etc", "../../..", "."):
            forged = Record(**{**vars(record), "lineage": lineage})
            os.setxattr(place.below / "f", "user.ckptfs", forged.to_bytes())
            assert bob.errno_of(f"os.listdir('{place.past}/f')") in ("ENOENT", "EIO")
            assert bob.value(f"os.listdir('{place.past}')") == []
