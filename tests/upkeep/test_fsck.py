"""Stores that are broken in each way: detect, repair, clean."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mounts
import pytest
from harness import NEW, NEWER, OLD, contents, lineage, recorded, rot, store_on, touch
from verdicts import ckptfs, conditions, rows_of

from ckptfs.checking.examine import BAD, Condition
from ckptfs.records import format as fmt

# --- a store, and what can happen to it ----------------------------------------------------------


def build(directory: Path) -> str:
    """Files with and without a past. Returns the lineage of a.pt."""
    store = store_on(directory)
    (directory / "run").mkdir()
    for data in (OLD, NEW):
        store.put("a.pt", data)
        store.put("run/b.pt", data)
    store.put("once.pt", NEW)
    of = lineage(store, "a.pt")
    store.close()
    return of


def control(directory: Path) -> Path:
    return directory / ".ckptfs"


def with_mtime_kept(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def garble_record(path: Path) -> None:
    os.setxattr(path, fmt.XATTR, b"ckptfs/1 digest=" + b"?" * 300)


def garble_digest(path: Path) -> None:
    value = os.getxattr(path, fmt.XATTR)
    os.setxattr(path, fmt.XATTR, value[:20] + b"?" * 60 + value[80:])


def flip_in_record(path: Path) -> None:
    value = bytearray(os.getxattr(path, fmt.XATTR))
    value[100] ^= 4
    os.setxattr(path, fmt.XATTR, bytes(value))


@dataclass(frozen=True)
class Breakage:
    """``found`` are the conditions by path, ``left`` those after a repair; ``after`` is the content
    of a.pt then."""

    do: Callable[[Path, str], object]
    found: dict[str, str]
    left: dict[str, str]
    after: bytes | None = NEW


GENERATION = ".ckptfs/history/{of}/1"
BREAKAGES = {
    "rot": Breakage(lambda d, of: rot(d / "a.pt", 3), {"a.pt": "damaged"}, {}, OLD),
    "cut": Breakage(
        lambda d, of: with_mtime_kept(d / "a.pt", lambda: os.truncate(d / "a.pt", 9)),
        {"a.pt": "damaged"},
        {},
        OLD,
    ),
    "stale": Breakage(
        lambda d, of: with_mtime_kept(d / "a.pt", lambda: (d / "a.pt").write_bytes(OLD)),
        {"a.pt": "stale"},
        {},
        OLD,
    ),
    "rot without a past": Breakage(
        lambda d, of: rot(d / "once.pt"), {"once.pt": "damaged"}, {"once.pt": "damaged"}
    ),
    "a bit of the record": Breakage(
        lambda d, of: flip_in_record(d / "a.pt"), {"a.pt": "record-damaged"}, {}
    ),
    "the digest in the record": Breakage(
        lambda d, of: garble_digest(d / "a.pt"), {"a.pt": "record-damaged"}, {}, OLD
    ),
    "the whole record": Breakage(
        lambda d, of: garble_record(d / "a.pt"),
        {"a.pt": "record-damaged"},
        {"a.pt": "record-damaged"},
    ),
    "no record": Breakage(
        lambda d, of: os.removexattr(d / "a.pt", fmt.XATTR),
        {"a.pt": "record-missing"},
        {"a.pt": "record-missing"},
    ),
    "no record and no past": Breakage(
        lambda d, of: os.removexattr(d / "once.pt", fmt.XATTR),
        {"once.pt": "unrecorded"},
        {"once.pt": "unrecorded"},
    ),
    "gone": Breakage(
        lambda d, of: (d / "a.pt").unlink(), {"a.pt": "missing"}, {"a.pt": "missing"}, None
    ),
    "edited": Breakage(
        lambda d, of: ((d / "a.pt").write_bytes(NEWER), touch(d / "a.pt")),
        {"a.pt": "modified"},
        {"a.pt": "modified"},
        NEWER,
    ),
    "rot in history": Breakage(
        lambda d, of: rot(control(d) / "history" / of / "1"), {GENERATION: "damaged"}, {}
    ),
    "a record in history": Breakage(
        lambda d, of: garble_record(control(d) / "history" / of / "1"),
        {GENERATION: "record-damaged"},
        {},
    ),
    "left in stage": Breakage(
        lambda d, of: (control(d) / "stage" / "0123456789abcdef").write_bytes(b"half"),
        {".ckptfs/stage/0123456789abcdef": "leftover"},
        {},
    ),
    "the counter": Breakage(
        lambda d, of: (control(d) / "generation").write_bytes(b"2\n"),
        {".ckptfs/generation": "damaged"},
        {},
    ),
    "another name outside": Breakage(
        lambda d, of: os.link(d / "once.pt", d.parent / f"{d.name}.outside"),
        {"once.pt": "linked"},
        {"once.pt": "linked"},
    ),
}


def expected(given: dict[str, str], of: str) -> dict[str, str]:
    return {path.format(of=of): condition for path, condition in given.items()}


@pytest.mark.parametrize("name", BREAKAGES)
def test_detect_repair_clean(name: str, tmp_path: Path) -> None:
    breakage, directory = BREAKAGES[name], tmp_path / "store"
    directory.mkdir()
    of = build(directory)
    assert conditions(directory) == {}
    breakage.do(directory, of)
    found, left = expected(breakage.found, of), expected(breakage.left, of)
    assert conditions(directory) == found
    assert conditions(directory) == found, "a check changes nothing"
    bad = [c for c in found.values() if Condition(c) in BAD]
    ckptfs("verify", directory, code=4 if bad else 0)
    _, summary = rows_of(directory, "--repair")
    assert summary["repaired"] == len(found) - len(left)
    still_bad = [c for c in left.values() if Condition(c) in BAD]
    ckptfs("verify", directory, code=4 if still_bad else 0)
    assert conditions(directory) == left
    assert rows_of(directory, "--repair")[1]["repaired"] == 0
    if breakage.after is None:
        assert not (directory / "a.pt").exists()
    else:
        assert (directory / "a.pt").read_bytes() == breakage.after
    assert (directory / "run" / "b.pt").read_bytes() == NEW


def test_repair_deletes_nothing(tmp_path: Path) -> None:
    of = build(tmp_path)
    rot(tmp_path / "a.pt")
    rot(control(tmp_path) / "history" / of / "1")
    (control(tmp_path) / "stage" / "0123456789abcdef").write_bytes(b"half")
    before = sorted(path.read_bytes() for path in tmp_path.rglob("*") if is_data(path))
    ckptfs("verify", "--repair", tmp_path, code=4)
    after = sorted(path.read_bytes() for path in tmp_path.rglob("*") if is_data(path))
    assert after == before


def is_data(path: Path) -> bool:
    notes = ("lock", "generation", "alarms")
    return path.is_file() and path.suffix != ".json" and path.name not in notes


def test_files_that_were_copied_with_their_records_are_no_damage(tmp_path: Path) -> None:
    """The counter is that of another directory: it stayed behind in its ``.ckptfs``."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    build(one)
    shutil.copytree(one, other, ignore=shutil.ignore_patterns(fmt.CONTROL))
    ckptfs("adopt", other, code=0)
    ckptfs("verify", other, code=0)
    store = store_on(other)
    before = recorded(store, "a.pt")
    store.put("a.pt", NEWER)
    after = recorded(store, "a.pt")
    store.close()
    assert (after.generation, after.lineage) == (before.generation + 1, before.lineage)
    ckptfs("verify", other, code=0)


def test_a_missing_file_is_brought_back_when_it_is_named(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "a.pt").unlink()
    ckptfs("verify", "--repair", tmp_path, "a.pt", code=1)
    assert (tmp_path / "a.pt").read_bytes() == OLD
    assert conditions(tmp_path) == {}


def test_repair_says_what_it_did_and_what_to_do_next(tmp_path: Path) -> None:
    build(tmp_path)
    rot(tmp_path / "a.pt")
    rot(tmp_path / "once.pt")
    (tmp_path / "new.pt").write_bytes(b"x")
    told = ckptfs("verify", tmp_path, code=4)
    assert "ckptfs verify --repair" in told and "ckptfs adopt" in told
    told = ckptfs("verify", "--repair", tmp_path, code=4)
    assert "[rolled back to generation 1]" in told
    assert "no good generation is left" in told and "restore it from a copy" in told
    assert "3 files" not in ckptfs("verify", tmp_path, "--quiet", code=4)


@pytest.mark.parametrize("arguments", [("--repair", "-n"), ("--subset", "8/7"), ("--subset", "x")])
def test_wrong_arguments(arguments: tuple[str, ...], tmp_path: Path) -> None:
    build(tmp_path)
    ckptfs("verify", *arguments, tmp_path, code=16)


def test_quick_reads_no_bytes_and_subsets_read_all_in_turn(tmp_path: Path) -> None:
    build(tmp_path)
    assert {row["condition"] for row in rows_of(tmp_path, "--quick")[0]} == {"unread"}
    rot(tmp_path / "a.pt")
    assert conditions(tmp_path, "--quick") == {}
    found = [conditions(tmp_path, "--subset", f"{part}/5") for part in range(1, 6)]
    assert sorted(map(len, found)) == [0, 0, 0, 0, 1]
    read = [
        row["path"]
        for part in range(1, 6)
        for row in rows_of(tmp_path, "--subset", f"{part}/5")[0]
        if row["condition"] != "unread"
    ]
    assert sorted(read) == sorted({row["path"] for row in rows_of(tmp_path)[0]})


def test_a_damage_is_located_and_told_in_json(tmp_path: Path) -> None:
    store = store_on(tmp_path)
    store.put("a.bin", os.urandom(1 << 20))
    store.close()
    rot(tmp_path / "a.bin", 100_000)
    (row,), _ = rows_of(tmp_path)
    assert row["ranges"] == [[65536, 131072]]


def test_interrupting_a_repair_leaves_each_file_old_or_repaired(tmp_path: Path) -> None:
    store = store_on(tmp_path)
    for number in range(30):
        for data in (OLD * 2000, NEW * 2000):
            store.put(f"{number}.pt", data)
    store.close()
    for number in range(30):
        rot(tmp_path / f"{number}.pt")
    for wait_s in (0.3, 0.4, 0.5, 0.6):
        process = subprocess.Popen(
            [sys.executable, "-m", "ckptfs", "verify", "--repair", str(tmp_path)],
            stdout=subprocess.DEVNULL,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(wait_s)
            raise subprocess.TimeoutExpired("", 0)
        process.kill()
        process.wait(10)
    ckptfs("verify", "--repair", tmp_path)
    assert conditions(tmp_path) == {}
    assert {(tmp_path / f"{number}.pt").read_bytes() for number in range(30)} == {OLD * 2000}
    assert len(contents(control(tmp_path) / "quarantine")) >= 30


# --- beside a mount ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["rot", "stale", "a bit of the record", "the digest in the record", "rot in history"]
)
def test_repair_through_a_mount(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    of = build(directory)
    breakage = BREAKAGES[name]
    with mounts.served(directory) as served:
        (directory / "a.pt").read_bytes()  # the daemon remembers it as good
        breakage.do(served.below, of)
        assert conditions(directory) == expected(breakage.found, of)
        with (directory / "run" / "b.pt").open("rb") as reader:
            ckptfs("verify", "--repair", directory, code=1)
            assert reader.read() == NEW
        assert conditions(directory) == {}
        assert (directory / "a.pt").read_bytes() == breakage.after


def test_a_missing_file_is_brought_back_through_a_mount(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    build(directory)
    with mounts.served(directory) as served:
        (served.below / "run" / "b.pt").unlink()
        assert conditions(directory) == {"run/b.pt": "missing"}
        ckptfs("verify", "--repair", directory, "run/b.pt", code=1)
        assert (directory / "run" / "b.pt").read_bytes() == OLD


# --- rollback ------------------------------------------------------------------------------------


@pytest.mark.parametrize("served", [False, True])
def test_rollback_and_back_again(served: bool, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    build(directory)
    with mounts.served(directory) if served else contextlib.nullcontext():
        with (directory / "a.pt").open("rb") as reader:
            ckptfs("rollback", directory, "a.pt", code=0)
            assert (directory / "a.pt").read_bytes() == OLD
            assert reader.read() == NEW, "who has it open keeps it"
        ckptfs("rollback", directory, directory / "a.pt", code=0)
        assert (directory / "a.pt").read_bytes() == NEW
        told = ckptfs("rollback", directory, "a.pt", "--to", "12345", code=1)
        assert "12345" in told or "ckptfs log" in told
        ckptfs("rollback", directory, "once.pt", code=1)
        assert (directory / "once.pt").read_bytes() == NEW
        assert conditions(directory) == {}


def test_a_rollback_chooses_the_generation_asked_for(tmp_path: Path) -> None:
    store = store_on(tmp_path, keep=5)
    for number in range(5):
        store.put("a.pt", b"version %d" % number)
    assert store.history.rollback("a.pt", 2) == 2
    assert store.get("a.pt") == b"version 1"
    assert store.history.rollback("a.pt") == 5, "the newest, which is what was rolled back from"
    rot(tmp_path / "a.pt")
    assert store.history.rollback("a.pt", 3) == 3
    assert store.get("a.pt") == b"version 2"
    store.close()
    assert conditions(tmp_path) == {}


# --- in and out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("served", [False, True])
def test_adopt_takes_things_as_they_are(served: bool, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    build(directory)
    with mounts.served(directory) if served else contextlib.nullcontext() as mount:
        below = mount.below if mount else directory
        (below / "a.pt").write_bytes(NEWER)
        (below / "mine.pt").write_bytes(b"mine")
        (below / "run" / "b.pt").unlink()
        (below / "train.log").write_bytes(b"in place")
        assert set(conditions(directory).values()) == {"modified", "unrecorded", "missing"}
        told = ckptfs("adopt", directory, code=0)
        assert "3 adopted" in told
        assert conditions(directory) == {"train.log": "unrecorded"}
        assert (directory / "a.pt").read_bytes() == NEWER
        rot(below / "a.pt")
        ckptfs("verify", "--repair", directory, code=1)
        assert (directory / "a.pt").read_bytes() == OLD, "adopted under its lineage"


@pytest.mark.parametrize("tool", ["b3sum", "sha256sum"])
def test_adopt_from_a_list_checks_first(tool: str, tmp_path: Path) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    names = ["a.pt", "back\\slash", "line\nbreak"]
    for name in names:
        (directory / name).write_bytes(name.encode() * 100)
    sums = tmp_path / f"{tool}.txt"
    sums.write_bytes(subprocess.check_output([tool, *names], cwd=directory))
    rot(directory / "a.pt")
    told = ckptfs("adopt", directory, "--from", sums, code=4)
    assert "a.pt: differs from the list" in told and "2 adopted, 1 not" in told
    assert conditions(directory) == {"a.pt": "unrecorded"}


@pytest.mark.parametrize("tool", ["b3sum", "sha256sum"])
def test_export_sums_are_what_the_tool_checks(tool: str, tmp_path: Path) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    store = store_on(tmp_path)
    for name in ("a.pt", "back\\slash", "line\nbreak", "ä \udcff"):
        store.put(name, os.urandom(100))
    store.close()
    checksum = {"b3sum": "blake3", "sha256sum": "sha256"}[tool]
    done = subprocess.run(
        [sys.executable, "-m", "ckptfs", "export-sums", "--checksum", checksum, str(tmp_path)],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done
    sums = tmp_path.parent / f"{tmp_path.name}.sums"
    lines = [
        line for line in done.stdout.splitlines() if b"\xff" not in line or tool == "sha256sum"
    ]
    sums.write_bytes(b"\n".join(lines) + b"\n")
    subprocess.run([tool, "--check", sums], cwd=tmp_path, check=True, timeout=60)


def test_strip_leaves_plain_files(tmp_path: Path) -> None:
    build(tmp_path)
    rot(tmp_path / "a.pt")
    ckptfs("verify", "--repair", tmp_path, code=1)
    told = subprocess.run(
        [sys.executable, "-m", "ckptfs", "strip", str(tmp_path)],
        input="n\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 130 and "1 files in salvage and quarantine" in told.stdout
    ckptfs("strip", "--yes", tmp_path, code=0)
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "once.pt", "run"]
    assert all(os.listxattr(path) == [] for path in tmp_path.rglob("*"))
    assert (tmp_path / "a.pt").read_bytes() == OLD
    ckptfs("strip", "--yes", tmp_path, code=8)
