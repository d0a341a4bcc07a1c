"""What is done about a finding: by repair only what undoes damage, by adopt only what was changed.

Pure, so every condition is looked at.
"""

from __future__ import annotations

import pytest

from ckptfs.checking.examine import ROTTEN, Condition, Finding, Kept
from ckptfs.checking.remedy import Remedy, acceptance, remedy

KEPT = Kept("0123456789abcdef", 7)


def of_file(condition: Condition) -> Finding:
    return Finding("a.pt", condition)


def of_generation(condition: Condition) -> Finding:
    return Finding(KEPT.path, condition, kept=KEPT)


@pytest.mark.parametrize("condition", Condition)
def test_repair_undoes_damage_and_no_change_of_anybody(condition: Condition) -> None:
    rotten = condition in ROTTEN
    leftover = Remedy.RECOVER if condition is Condition.LEFTOVER else Remedy.NOTHING
    assert remedy(of_file(condition)) is (Remedy.MEND if rotten else leftover)


@pytest.mark.parametrize("condition", Condition)
def test_a_file_that_was_named_is_brought_back_if_it_is_missing(condition: Condition) -> None:
    asked, unasked = (remedy(of_file(condition), asked_for=each) for each in (True, False))
    assert asked is (Remedy.BRING_BACK if condition is Condition.MISSING else unasked)


@pytest.mark.parametrize("condition", Condition)
def test_a_generation_is_set_aside_or_let_go(condition: Condition) -> None:
    unreached = condition in (Condition.UNREACHABLE, Condition.LEFTOVER)
    otherwise = Remedy.TIDY if unreached else Remedy.NOTHING
    assert remedy(of_generation(condition)) is (
        Remedy.SET_ASIDE if condition in ROTTEN else otherwise
    )


def test_a_counter_goes_on_from_the_highest() -> None:
    found = Finding(".ckptfs/generation", Condition.DAMAGED, control=True, highest=9)
    assert remedy(found) is Remedy.COUNT_ON


def test_adopt_takes_what_was_changed_and_no_damage() -> None:
    taken = {each: acceptance(of_file(each)) for each in Condition}
    assert {each for each, what in taken.items() if what is Remedy.ADOPT} == {
        Condition.UNRECORDED,
        Condition.MODIFIED,
        Condition.RECORD_MISSING,
    }
    assert {each for each, what in taken.items() if what is Remedy.FORGET} == {Condition.MISSING}


def test_a_path_that_is_typed_names_a_generation_or_something_else() -> None:
    folder = KEPT.path.rpartition("/")[0]
    others = (f"{folder}/note", folder, "history/0123456789abcdef/7")
    assert [Kept.named(path) for path in (KEPT.path, *others)] == [KEPT, None, None, None]
