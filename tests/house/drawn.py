"""The tables of a version's life (``ckptfs.versions.life``) as pictures in docs/design.md.

python tests/house/drawn.py           prints them
python tests/house/drawn.py --write   puts them between the two comments of that page
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ckptfs.versions.life import HOLDS, TRANSITIONS, USES, WRITERS

PAGE = Path(__file__).parents[2] / "docs" / "design.md"
BEGIN, END = "<!-- drawn by tests/house/drawn.py -->", "<!-- drawn until here -->"
TABLES: dict[str, Mapping[tuple[enum.Enum, enum.Enum], enum.Enum]] = {
    "The commit of a version:": TRANSITIONS,
    "Its use by those who open it, in a mount:": USES,
    "What has become of its writers:": WRITERS,
    "One open descriptor of it:": HOLDS,
}


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


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(with_pictures(PAGE.read_text()))
    else:
        print(drawn())


if __name__ == "__main__":
    main()
