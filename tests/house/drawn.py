"""The pictures of docs/design.md: the tables of a version's life (``ckptfs.versions.life``) and of
a set's (``ckptfs.sets.life``), and the ways of a save and of a rotten open, of which ``WAYS`` says
what is called where.

python tests/house/drawn.py           prints the tables
python tests/house/drawn.py --write   puts them between the two comments of that page, and the ways
                                      into files beside it
"""

from __future__ import annotations

import enum
import itertools
import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

from ckptfs.sets.life import SETS
from ckptfs.versions.life import HOLDS, TRANSITIONS, USES, WRITERS

PAGE = Path(__file__).parents[2] / "docs" / "design.md"
BEGIN, END = "<!-- drawn by tests/house/drawn.py -->", "<!-- drawn until here -->"
TABLES: dict[str, Mapping[tuple[enum.Enum, enum.Enum], enum.Enum]] = {
    "The commit of a version:": TRANSITIONS,
    "Its use by those who open it, in a mount:": USES,
    "What has become of its writers:": WRITERS,
    "One open descriptor of it:": HOLDS,
    "A checkpoint of several files, a set:": SETS,
}


# --- the tables of a version's life --------------------------------------------------------------


def drawn() -> str:
    return "\n\n".join(f"{title}\n\n{picture(table)}" for title, table in TABLES.items())


def picture(table: Mapping[tuple[enum.Enum, enum.Enum], enum.Enum]) -> str:
    return "\n".join(["```mermaid", "stateDiagram-v2", *_lines(table), "```"])


def _lines(table: Mapping[tuple[enum.Enum, enum.Enum], enum.Enum]) -> Iterator[str]:
    states = list(type(next(iter(table))[0]))
    yield from (f"    {_name(state)}: {state.value}" for state in states if " " in state.value)
    yield f"    [*] --> {_name(states[0])}"
    arrows: dict[tuple[enum.Enum, enum.Enum], list[str]] = {}
    for (before, event), after in table.items():
        arrows.setdefault((before, after), []).append(str(event.value))
    for (before, after), events in arrows.items():
        yield f"    {_name(before)} --> {_name(after)}: {', '.join(events)}"
    left = {before for before, after in arrows if before is not after}
    yield from (f"    {_name(state)} --> [*]" for state in states if state not in left)


def _name(state: enum.Enum) -> str:
    return str(state.value).replace(" ", "_")


def with_pictures(page: str) -> str:
    head, _, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise SystemExit(f"{PAGE} lacks {BEGIN!r} or {END!r}")
    return f"{head}{BEGIN}\n\n{drawn()}\n\n{END}{tail}"


# --- the ways of a save and of a rotten open -----------------------------------------------------


class Stop(NamedTuple):
    """A function on the way, in the order of the calls."""

    floor: str  # the folder that its file lies in, or below
    file: str
    function: str  # with its class, or the function that it is in
    words: str

    @property
    def path(self) -> str:
        return f"{self.floor}/{self.file}"


class Way(NamedTuple):
    title: str
    floors: tuple[str, ...]  # from top to bottom
    stops: tuple[Stop, ...]


_KERNEL, _OPERATIONS, _WRITERS = "mount/kernel", "mount/operations", "mount/writers"
_STORE, _CHECKING, _VERSIONS = "ckptfs/store", "ckptfs/checking", "ckptfs/versions"
_HISTORY, _TELLING, _RECORDS, _DISK = (
    "ckptfs/history",
    "ckptfs/telling",
    "ckptfs/records",
    "ckptfs/disk",
)

SAVE = Way(
    "A save: from close to settle",
    (_KERNEL, _OPERATIONS, _WRITERS, _STORE, _CHECKING, _VERSIONS, _HISTORY, _RECORDS, _DISK),
    (
        Stop(_KERNEL, "handlers/files.py", "flush", "FLUSH: a program closes a descriptor"),
        Stop(_OPERATIONS, "closing.py", "flush", "what may take long: to the pool"),
        Stop(_WRITERS, "closing.py", "flush", "who closes? is he dying? /proc tells"),
        Stop(_WRITERS, "finished.py", "at_flush", "decides: is that the last close?"),
        Stop(_WRITERS, "closing.py", "_close", "nobody joins the version any more"),
        Stop(_WRITERS, "closing.py", "_finish", "commit, salvage, reseal or drop it"),
        Stop(_WRITERS, "committing.py", "commit_in_turn", "unless it is overtaken"),
        Stop(_WRITERS, "committing.py", "_require_room", "none is committed that lacks bytes"),
        Stop(_STORE, "saves.py", "Saves.commit", "room is made; counted and told"),
        Stop(_VERSIONS, "commit.py", "commit", "under staged.lock; states by life.py"),
        Stop(_VERSIONS, "seal.py", "digest", "clean pages, digest, structure"),
        Stop(_VERSIONS, "standing.py", "replaced_by", "the path is locked until the settle"),
        Stop(_VERSIONS, "commit.py", "_extend", "only added to? extend.py, then 21"),
        Stop(_VERSIONS, "tickets.py", "ticket_after", "its lineage and generation"),
        Stop(_VERSIONS, "seal.py", "seal", "record; fsync; moved? once more"),
        Stop(_RECORDS, "layout.py", "Layout.write_record", "one line in an xattr of the file"),
        Stop(_VERSIONS, "publish.py", "carry_out", "keep, rename, settle"),
        Stop(_HISTORY, "lineages.py", "Lineages.link", "the old version is linked; fsync"),
        Stop(_VERSIONS, "order.py", "Ordering.sync_changed_dirs", "what was changed before"),
        Stop(_DISK, "real.py", "OsFs.rename", "the commit point"),
        Stop(_VERSIONS, "standing.py", "settle_history", "after fsync: past retention goes"),
        Stop(_CHECKING, "opens.py", "Guard.remember", "known to be good"),
        Stop(_WRITERS, "versions.py", "Versions.unplace", "all see it; close() returns 0"),
    ),
)

ROTTEN_OPEN = Way(
    "A rotten open: from open to the good version",
    (_KERNEL, _OPERATIONS, _STORE, _CHECKING, _VERSIONS, _TELLING, _RECORDS, _DISK),
    (
        Stop(_KERNEL, "handlers/files.py", "open_file", "OPEN: for reading"),
        Stop(_OPERATIONS, "opening.py", "open", "a committed file, to be read"),
        Stop(_OPERATIONS, "opening.py", "_open_for_reading", "not known as good: to the pool"),
        Stop(_STORE, "opens.py", "Opens.verify", "what was stored by a mapping: first"),
        Stop(_STORE, "opens.py", "Opens.check", "checked here, told in 18"),
        Stop(_CHECKING, "opens.py", "Guard.check", "what stands there, by its stamp"),
        Stop(_CHECKING, "examine.py", "examine", "if it is being written: again"),
        Stop(_RECORDS, "layout.py", "Layout.read_record", "digest, size, mtime"),
        Stop(_DISK, "digest.py", "digest_file", "again past the cache, if it differs"),
        Stop(_CHECKING, "examine.py", "_judged", "if mtime moved: the evidence"),
        Stop(_CHECKING, "examine.py", "_damage", "where, and is it an older version?"),
        Stop(_VERSIONS, "order.py", "Ordering.path_locks", "unless it was replaced meanwhile"),
        Stop(_CHECKING, "opens.py", "Guard._mend", "proven bytes: only a new record"),
        Stop(_CHECKING, "rollback.py", "newest_good", "read, too; none is left: EIO"),
        Stop(_CHECKING, "rollback.py", "quarantine", "the rotten file, by a link"),
        Stop(_RECORDS, "aside.py", "Aside.put", "with its story; durable"),
        Stop(_CHECKING, "rollback.py", "bring_back", "by stage: link, rename, fsync"),
        Stop(_TELLING, "events.py", "Events.note", "log, alarm: rolled back"),
        Stop(_OPERATIONS, "opening.py", "_open_for_reading.verified", "ESTALE: another inode"),
        Stop(_OPERATIONS, "looking.py", "lookup", "the kernel looks again"),
        Stop(_OPERATIONS, "opening.py", "_open_committed", "after 3 to 9: good bytes"),
    ),
)

WAYS = {"journey-save.svg": SAVE, "journey-rotten-open.svg": ROTTEN_OPEN}

_WIDTH, _ROW, _HEAD, _GAP, _TOP = 900, 24, 28, 12, 48
_LEFT, _RIGHT, _LANE = 16, 780, 12  # of the boxes; between the lanes of arrows beside them
_NUMBER_X, _FUNCTION_X, _FILE_X, _WORDS_X = 40, 62, 284, 492
_LETTER = 7.3  # the widest that one of 12 px takes


def as_svg(way: Way) -> str:
    rows, boxes, height = _placed(way)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">'
    )
    parts = [head, f"<title>{escape(way.title)}</title>", _MARKER]
    parts.append(f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>')
    parts.append(_text(_LEFT, 28, way.title, 'font-size="16" font-weight="bold"'))
    parts += (_box(floor, *box) for floor, box in boxes.items())
    parts += _arrows(rows)
    parts += (row for number, stop in enumerate(way.stops) for row in _row(number, stop, rows))
    return "\n".join([*parts, "</svg>", ""])


_MARKER = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#3f51b5"/></marker></defs>'
)


def _placed(way: Way) -> tuple[list[int], dict[str, tuple[int, int]], int]:
    """The middle of each stop's row; of each box its top and height; the height of all."""
    rows, boxes, y = [0] * len(way.stops), {}, _TOP
    for floor in way.floors:
        inside = [number for number, stop in enumerate(way.stops) if stop.floor == floor]
        boxes[floor] = y, _HEAD + _ROW * len(inside)
        for place, number in enumerate(inside):
            rows[number] = y + _HEAD + _ROW * place + 8
        y += boxes[floor][1] + _GAP
    return rows, boxes, y


def _box(floor: str, y: int, height: int) -> str:
    return (
        f'<rect x="{_LEFT}" y="{y}" width="{_RIGHT - _LEFT}" height="{height}" rx="5" '
        f'fill="#f5f6fb" stroke="#9fa8da"/>\n{_text(_LEFT + 8, y + 17, floor, _BOLD)}'
    )


_BOLD, _CODE = 'font-weight="bold" fill="#1a237e"', 'font-family="monospace"'


def _row(number: int, stop: Stop, rows: list[int]) -> Iterator[str]:
    y = rows[number] + 4
    yield f'<circle cx="{_NUMBER_X}" cy="{rows[number]}" r="9.5" fill="#3f51b5"/>'
    yield _text(_NUMBER_X, y, str(number + 1), 'text-anchor="middle" fill="#ffffff" font-size="11"')
    yield _text(_FUNCTION_X, y, stop.function, f"{_CODE} {_BOLD}")
    yield _text(_FILE_X, y, stop.file, _CODE)
    yield _text(_WORDS_X, y, stop.words, 'fill="#333333"')


def _text(x: int, y: int, words: str, how: str) -> str:
    return f'<text x="{x}" y="{y}" {how}>{escape(words)}</text>'


def _arrows(rows: list[int]) -> Iterator[str]:
    """To the row below straight, else by a lane beside the boxes."""
    lanes: list[list[tuple[int, int]]] = []
    for number, (before, after) in enumerate(itertools.pairwise(rows), 2):
        if after - before == _ROW:
            line = f"M{_NUMBER_X} {before + 10} V{after - 10}"
            yield f'<path d="{line}" stroke="#3f51b5" fill="none"/>'
            continue
        lane = _free_lane(lanes, min(before, after), max(before, after))
        x = _RIGHT + _LANE + _LANE * lane
        line = f"M{_RIGHT - 2} {before + 4} H{x} V{after - 4} H{_RIGHT - 2}"
        yield f'<path d="{line}" stroke="#3f51b5" fill="none" marker-end="url(#head)"/>'
        yield _text(_RIGHT - 20, after, str(number), 'fill="#3f51b5" font-size="11"')


def _free_lane(lanes: list[list[tuple[int, int]]], top: int, bottom: int) -> int:
    for number, taken in enumerate(lanes):
        if all(bottom < start or end < top for start, end in taken):
            taken.append((top, bottom))
            return number
    lanes.append([(top, bottom)])
    return len(lanes) - 1


def overlong(stop: Stop) -> bool:
    """Whether a text of its row would run into the next."""
    room = (
        (stop.function, _FILE_X - _FUNCTION_X),
        (stop.file, _WORDS_X - _FILE_X),
        (stop.words, _RIGHT - 24 - _WORDS_X),
    )
    return any(len(text) * _LETTER > pixels for text, pixels in room)


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(with_pictures(PAGE.read_text()))
        for name, way in WAYS.items():
            (PAGE.parent / name).write_text(as_svg(way))
    else:
        print(drawn())


if __name__ == "__main__":
    main()
