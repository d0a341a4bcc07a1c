"""The makers and judges of crash states: what a device may lose, and what a path may hold."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Sequence

import pytest

from ckptfs.tools.crash.device import entries
from ckptfs.tools.crash.oracle import Oracle
from ckptfs.tools.crash.states import (
    SECTOR_BYTES,
    Cut,
    Entry,
    Extent,
    Log,
    Spec,
    covering,
    identity,
    in_order,
    out_of_order,
    survivors,
)

SIZE = 1 << 16
FLUSH = None


def logged(*requests: tuple[int, bytes] | None) -> bytes:
    """A log in the format of dm-log-writes: writes of (offset, data), and flushes."""
    log = struct.pack("<QQQI", 0x6A736677736872, 1, len(requests), SECTOR_BYTES).ljust(SECTOR_BYTES)
    for request in requests:
        offset, data = request or (0, b"")
        sectors = len(data) // SECTOR_BYTES
        head = struct.pack("<QQQQ", offset // SECTOR_BYTES, sectors, request is None, 0)
        log += head.ljust(SECTOR_BYTES, b"\0") + data
    return log


def device(*requests: tuple[int, bytes] | None) -> Log:
    log = logged(*requests)
    return Log(b"o" * SIZE, [Extent(0, SIZE)], list(entries(log)), log)


def sectors(*letters: str) -> bytes:
    return b"".join(letter.encode() * SECTOR_BYTES for letter in letters)


def random_requests(seed: int) -> list[tuple[int, bytes] | None]:
    draw = random.Random(seed)
    return [
        FLUSH
        if draw.random() < 0.25
        else (
            draw.randrange(100) * SECTOR_BYTES,
            draw.randbytes(draw.randint(1, 20) * SECTOR_BYTES),
        )
        for _ in range(40)
    ]


def played(requests: Sequence[tuple[int, bytes] | None]) -> bytearray:
    """The same by itself."""
    image = bytearray(b"o" * SIZE)
    for offset, data in filter(None, requests):
        image[offset : offset + len(data)] = data
    return image


def test_a_log_is_read_as_it_was_written() -> None:
    found = list(entries(logged((1024, sectors("a", "b")), FLUSH, (0, sectors("c")))))
    assert [(e.offset, e.size, e.flush) for e in found] == [
        (1024, 1024, False),
        (0, 0, True),
        (0, 512, False),
    ]
    assert [e.position for e in found] == [512, 2048, 2560]


@pytest.mark.parametrize("seed", range(5))
def test_a_prefix_is_what_was_written_so_far(seed: int) -> None:
    requests = random_requests(seed)
    log = device(*requests)
    order = [*range(len(requests) + 1)]
    random.Random(seed).shuffle(order)
    for at in order:
        assert log.image(Spec(Cut.PREFIX, at)) == played(requests[:at])


@pytest.mark.parametrize("seed", range(5))
def test_what_a_flush_covered_is_never_lost_and_nothing_comes_from_the_future(seed: int) -> None:
    requests = random_requests(seed)
    log = device(*requests)
    for spec in itertools.islice(out_of_order(log, [range(1, len(requests) + 1)], seed), 300):
        flushes = [at for at in range(spec.at) if requests[at] is FLUSH]
        durable = requests[: flushes[-1]] if flushes else []
        late = [each for each in requests[len(durable) : spec.at] if each]
        allowed = [played(durable)] + [played([each]) for each in late]
        image, base = log.image(spec), played([])
        for at in range(0, SIZE, SECTOR_BYTES):
            sector = image[at : at + SECTOR_BYTES]
            assert sector == allowed[0][at : at + SECTOR_BYTES] or any(
                sector == one[at : at + SECTOR_BYTES] != base[at : at + SECTOR_BYTES]
                for one in allowed[1:]
            )


def test_all_that_may_happen_to_two_writes_is_drawn() -> None:
    log = device((0, sectors("a")), FLUSH, (0, sectors("b")), (1024, sectors("c", "d")))
    seen = {
        bytes(log.image(spec)[: 4 * SECTOR_BYTES : SECTOR_BYTES])
        for spec in itertools.islice(out_of_order(log, [[4]], 1), 400)
    }
    assert seen == {b"aooo", b"booo", b"aocd", b"bocd", b"aoco", b"boco", b"aood", b"bood"}


def test_a_state_is_always_the_same_and_its_name_says_which() -> None:
    log = device(*random_requests(9))
    for spec in itertools.islice(out_of_order(log, [range(1, 41)], 3), 100):
        assert Spec.parse(str(spec)) == spec
        assert identity(log.image(spec)) == identity(log.image(Spec.parse(str(spec))))


def test_states_in_order_are_one_for_every_write_and_flush() -> None:
    log = device((0, sectors("a")), FLUSH, (0, sectors("b")))
    assert [str(spec) for spec in in_order(log, 0)] == [
        "prefix:0:0",
        "prefix:1:0",
        "flush:2:0",
        "prefix:3:0",
    ]


def test_a_torn_write_is_torn_at_sectors() -> None:
    writes = [Entry(0, offset=0, size=8192, data=512)]
    seen = set()
    for seed in range(300):
        for _, kept in survivors(writes, Spec(Cut.TORN, 1, seed)):
            assert kept is not None and set(kept) <= set(range(16))
            seen.add(tuple(kept))
    assert len(seen) > 60
    assert tuple(range(8)) in seen  # one page of two


def test_extents_are_joined_by_pages() -> None:
    found = covering([Extent(5000, 6000), Extent(0, 10), Extent(8192, 9000), Extent(40960, 40961)])
    assert found == [Extent(0, 12288), Extent(40960, 45056)]


# --- what a path may hold ------------------------------------------------------------------------

CONTENTS = {1: b"first" * 500, 2: b"second" * 500, 3: b"third!" * 500, 4: b"killed" * 500}
MARKS = [
    {"at": 10, "what": "closing", "path": "a", "version": 1},
    {"at": 20, "what": "closed", "path": "a", "version": 1},
    {"at": 30, "what": "closing", "path": "a", "version": 2},
    {"at": 40, "what": "closed", "path": "a", "version": 2},
    {"at": 45, "what": "staged", "path": "a", "version": 4},
    {"at": 46, "what": "synced", "path": "a", "version": 4, "size": 600},
    {"at": 50, "what": "removing", "path": "a"},
    {"at": 60, "what": "removed", "path": "a"},
    {"at": 70, "what": "closing", "path": "b", "version": 3},
    {"at": 80, "what": "closed", "path": "b", "version": 3},
]


@pytest.mark.parametrize(
    ("at", "allowed"),
    [
        (5, [None]),
        (10, [None, 1]),
        (25, [1]),
        (35, [1, 2]),
        (40, [2]),
        *((at, [2, None]) for at in (55, 65, 75)),
        (80, [None]),
    ],
)
def test_what_closed_is_there_and_what_closes_may_be(at: int, allowed: list[int | None]) -> None:
    """A removal lasts from the next publish that began after it."""
    assert Oracle.of(MARKS, CONTENTS, durable=True).allowed("a", at) == allowed


def test_without_directory_fsyncs_any_whole_version_may_be_there() -> None:
    oracle = Oracle.of(MARKS, CONTENTS, durable=False)
    assert oracle.allowed("a", 45) == [None, 1, 2]
    assert oracle.wrong("a", 45, CONTENTS[1][:-1]) == "torn: cut short"


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (CONTENTS[2], ""),
        (None, "gone"),
        (b"", "empty"),
        (bytes(3000), "zero-filled"),
        (CONTENTS[1], "lost though closed"),
        (CONTENTS[4], "published by a killed writer"),
        (CONTENTS[2][:-7], "torn: cut short"),
        (CONTENTS[2][:1024] + bytes(1976), "torn: zeros inside"),
        (CONTENTS[2][:1024] + CONTENTS[4][1024:], "mixed"),
        (b"x" * 3000, "garbled"),
    ],
)
def test_what_is_wrong_has_a_name(found: bytes | None, name: str) -> None:
    assert Oracle.of(MARKS, CONTENTS, durable=True).wrong("a", 47, found) == name


def test_fsynced_bytes_of_a_killed_writer_have_to_be_kept() -> None:
    oracle = Oracle.of(MARKS, CONTENTS, durable=True)
    assert oracle.lost_bytes(45, []) == []
    assert oracle.lost_bytes(46, [CONTENTS[1]]) == ["a"]
    assert oracle.lost_bytes(99, [CONTENTS[4][:600]]) == []
