"""Records and the format file: what is written is read back, what is damaged is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from harness import condition, rot, store_on
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptfs.checking import examine
from ckptfs.checking.examine import Condition
from ckptfs.errors import RecordDamaged, UnknownLayout
from ckptfs.modes import Mode
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope

FIXTURE = Path(__file__).parents[1] / "support" / "fixtures" / "layout-1"

hexadecimal = st.text("0123456789abcdef", min_size=16, max_size=64)
records = st.builds(
    Record,
    digest=st.builds("{}:{}".format, st.sampled_from(["blake3", "sha256"]), hexadecimal),
    size_bytes=st.integers(0, 2**63 - 1),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
    lineage=st.text("0123456789abcdef", min_size=16, max_size=16),
    generation=st.integers(1, 2**63),
    committed_ns=st.integers(0, 2**63 - 1),
    mode=st.sampled_from(Mode),
    structure=st.sampled_from(["sound", "broken", "unknown"]),
)
RECORD = Record(
    "blake3:" + "5e" * 32,
    1234,
    1763600000123456789,
    "0123456789abcdef",
    7,
    99,
    Mode.UNSAFE,
    "sound",
)


@given(records)
def test_a_record_is_read_back_as_it_was_written(record: Record) -> None:
    assert Record.from_bytes(record.to_bytes()) == record


def test_C5_any_flipped_bit_of_a_record_is_told() -> None:
    whole = RECORD.to_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordDamaged):
            Record.from_bytes(bytes(flipped))


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_what_is_no_record_is_told_and_nothing_else_is_raised(value: bytes) -> None:
    with pytest.raises(RecordDamaged):
        Record.from_bytes(value)


@pytest.mark.parametrize("cut", [0, 1, 50, -1])
def test_a_cut_record_is_told(cut: int) -> None:
    with pytest.raises(RecordDamaged):
        Record.from_bytes(RECORD.to_bytes()[:cut])


def test_a_record_of_a_later_layout_is_not_guessed_at() -> None:
    body = RECORD.to_bytes().decode().rpartition(" check=")[0].replace("ckptfs/1", "ckptfs/2")
    later = f"{body} check={fmt.check_of(body)}".encode()
    with pytest.raises(RecordDamaged, match="version"):
        Record.from_bytes(later)


def test_control_an_unharmed_record_is_read() -> None:
    assert Record.from_bytes(RECORD.to_bytes()) == RECORD


@given(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=200))
def test_C6_a_staged_note_names_its_path(path: str) -> None:
    path = path.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    assert fmt.path_of_note(fmt.staged_note(path)) == path
    assert fmt.missing_of_note(fmt.staged_note(path)) == 0
    with_hole = fmt.staged_note(path, 1 << 40)
    assert (fmt.path_of_note(with_hole), fmt.missing_of_note(with_hole)) == (path, 1 << 40)
    assert Record.from_bytes(fmt.staged_note(path)) is None
    assert fmt.path_of_note(RECORD.to_bytes()) is None


def test_a_staged_note_of_a_very_long_path_fits_an_xattr() -> None:
    note = fmt.staged_note("é" * 4000 + "/end.pt")
    assert len(note) < 1100
    assert str(fmt.path_of_note(note)).endswith("/end.pt")


def test_ids_have_one_form() -> None:
    ids = {fmt.new_lineage() for _ in range(50)} | {fmt.new_txid() for _ in range(50)}
    assert len(ids) == 100
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in ids)


# --- layout versions -----------------------------------------------------------------------------


def test_the_format_file_is_accepted_by_its_own_check() -> None:
    fmt.check_format_file(fmt.format_file(), "here")


@pytest.mark.parametrize("content", [b'{"layout": 2}', b'{"layout": 0}', b'{"layout": "9"}'])
def test_an_unknown_layout_is_refused_and_named(content: bytes) -> None:
    with pytest.raises(UnknownLayout, match="is unknown to this version"):
        fmt.check_format_file(content, "here")


@pytest.mark.parametrize("content", [b"", b"\0" * 14, b"[]", b"{}", b'{"layout": null}', b"\xff"])
def test_a_format_file_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(UnknownLayout, match="not a layout file"):
        fmt.check_format_file(content, "here")


@pytest.fixture
def layout_1(quick_dir: Path) -> Path:
    """The fixture with its records put back: git keeps neither xattrs, times nor empty folders."""
    directory = quick_dir / "layout-1"
    shutil.copytree(FIXTURE / "tree", directory)
    for line in (FIXTURE / "records.txt").read_text().splitlines():
        name, value = line.split("\t")
        os.setxattr(directory / name, fmt.XATTR, value.encode())
        record = Record.from_bytes(value.encode())
        if record is not None:
            os.utime(directory / name, ns=(record.mtime_ns, record.mtime_ns))
    return directory


def test_layout_1_is_still_read(layout_1: Path) -> None:
    store = store_on(layout_1)
    assert store.recover() == 1
    assert {f.path: f.condition for f in found(store)} == {
        "mine.txt": Condition.UNRECORDED,
        "model.txt": Condition.OK,
        "run/state.txt": Condition.OK,
    }
    assert store.get("model.txt") == b"weights of step 2\n"
    (note,) = store.layout.aside.entries(store.layout.salvage)
    assert note["path"] == "half.txt"
    assert store.layout.next_generation() > 1024  # the numbers handed out before are not reused
    store.close()


def test_C5_layout_1_still_rolls_back(layout_1: Path) -> None:
    rot(layout_1 / "model.txt")
    store = store_on(layout_1)
    assert store.get("model.txt") == b"weights of step 1\n"
    store.close()


def test_control_a_damaged_fixture_is_seen(layout_1: Path) -> None:
    rot(layout_1 / "run" / "state.txt")
    store = store_on(layout_1)
    assert condition(store, "run/state.txt") is Condition.DAMAGED
    store.close()


def found(store: object) -> list[examine.Finding]:
    return list(Check(store.layout, Scope(jobs=2)).files_only())
