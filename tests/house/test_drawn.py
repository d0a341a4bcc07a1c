"""The pictures of docs/design.md are those of the tables in the code."""

from __future__ import annotations

from drawn import BEGIN, PAGE, picture, with_pictures

from ckptfs.versions.life import TRANSITIONS, Event, State


def test_the_page_shows_the_tables_as_they_are() -> None:
    """``python tests/house/drawn.py --write`` draws them anew."""
    page = PAGE.read_text()
    assert page.count(BEGIN) == 1
    assert with_pictures(page) == page


def test_control_another_table_is_another_picture() -> None:
    assert picture({**TRANSITIONS, (State.OPEN, Event.PUBLISH): State.PUBLISHED}) != picture(
        TRANSITIONS
    )
    table = {(State.OPEN, Event.SEAL): State.SEALING, (State.SEALING, Event.ABORT): State.ABORTED}
    assert "    open --> sealing: seal\n    sealing --> aborted: abort\n" in picture(table)
