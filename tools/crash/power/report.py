"""The report of the study of power cuts. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ckptfs.modes import Mode
from ckptfs.versions.life import Step

from ...harness.broken import BROKEN
from ...harness.study import Row, markdown
from .device import KINDS
from .record import PLAIN
from .states import Cut
from .units import ATOMIC, setting_of
from .workloads import WORKLOADS

_MIN_AFTER_STEP = 50
_NAMED = 6  # kinds of violation in a line
_MIN_OUT_OF_ORDER = 0.3
_IN_PLACE = (Step.INTENDED, Step.ADDED, Step.EXTENDED)  # ext4 only: the others share blocks
_OUT_OF_ORDER = (Cut.REORDERED.value, Cut.TORN.value)
# A journal writes these in the order in which they were asked for: nothing is lost by it.
_ORDERED_BY_JOURNAL = {("xfs", "record after fsync"), ("btrfs", "record after fsync")}


def is_control(row: Row) -> bool:
    return setting_of(row).control


def states_of(rows: Iterable[Row], kind: str) -> int:
    """Distinct states of commits that have to be right."""
    own = (row for row in rows if row["kind"] == kind and not is_control(row))
    return len({image for row in own for image in row["hashes"]})


def how(row: Row) -> str:
    """The mode, and what is wrong on purpose."""
    broken = row["broken"] or ("" if row["barriers"] else "no barriers")
    return f"{row['mode']}, {broken}" if broken else str(row["mode"])


def total(rows: Iterable[Row], what: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in rows:
        found.update(row[what])
    return found


def states_in(rows: Iterable[Row]) -> int:
    return sum(total(rows, "cuts").values())


def violating(rows: Iterable[Row]) -> int:
    return sum(total(rows, "worst").values())


def shortcomings(
    rows: Sequence[Row], kinds: Iterable[str], states: int, *, controls: bool
) -> list[str]:
    """What was promised of the study and did not hold."""
    fell = []
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind and not is_control(row)]
        if count := violating(own):
            fell.append(f"{kind}: {count:,} states violate the contract")
        if (found := states_of(rows, kind)) < states:
            fell.append(f"{kind}: {found:,} distinct states of {states:,}")
        cuts = total(own, "cuts")
        mixed = sum(cuts[cut] for cut in _OUT_OF_ORDER)
        if mixed < _MIN_OUT_OF_ORDER * sum(cuts.values()):
            fell.append(f"{kind}: only {mixed:,} states out of order")
        if states >= 100 * _MIN_AFTER_STEP:
            fell += _rare_steps(kind, own)
        if controls:
            fell += _missed(kind, rows)
    return fell


def _rare_steps(kind: str, rows: Sequence[Row]) -> list[str]:
    steps = total(rows, "steps")
    due = [step for step in Step if kind == "ext4" or step not in _IN_PLACE]
    return [
        f"{kind}: {steps[step.value]} states after the step {step.value}"
        for step in due
        if steps[step.value] < _MIN_AFTER_STEP
    ]


def _missed(kind: str, rows: Iterable[Row]) -> list[str]:
    """Controls, by what is wrong on purpose, none of whose states violates anything."""
    seen: Counter[str] = Counter()
    for row in rows:
        if row["kind"] == kind and is_control(row):
            seen[how(row)] += violating([row])
    return [
        f"{kind}: the control was not caught: {name}"
        for name, count in seen.items()
        if not count and (kind, name.partition(", ")[2]) not in _ORDERED_BY_JOURNAL
    ]


def in_order(rows: Iterable[Row]) -> list[Row]:
    """The units, as a reader expects them: they end in any order."""
    modes, broken = [*ATOMIC, PLAIN, Mode.UNSAFE.value], ["", *BROKEN]

    def place(row: Row) -> tuple[int, ...]:
        return (
            list(KINDS).index(row["kind"]),
            is_control(row),
            modes.index(row["mode"]) if not row["broken"] and row["barriers"] else len(modes),
            broken.index(row["broken"]),
            list(WORKLOADS).index(row["workload"]),
        )

    return sorted((row for row in rows if row["what"] == "unit"), key=place)


# --- as text -------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """The report, in Markdown."""
    rows = in_order(rows)
    own, others = [r for r in rows if not is_control(r)], [r for r in rows if is_control(r)]
    text = ["# Power cuts", "", *_summary(own), "", *_by_workload(own), ""]
    text += [*_by_step(own), "", *_by_control(others)]
    return "\n".join(text) + "\n"


def _kinds(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["kind"] for row in rows))


def _summary(rows: Sequence[Row]) -> list[str]:
    heads = ["filesystem", "recordings", "distinct states", *(cut.value for cut in Cut)]
    lines = []
    for kind in _kinds(rows):
        own = [row for row in rows if row["kind"] == kind]
        cuts = total(own, "cuts")
        lines.append(
            [
                kind,
                len(own),
                states_of(rows, kind),
                *(cuts[cut.value] for cut in Cut),
                sum(row["unmounted"] for row in own),
                violating(own),
            ]
        )
    return markdown([*heads, "not mounted", "violations"], lines)


def _by_workload(rows: Sequence[Row]) -> list[str]:
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    lines = []
    for kind in _kinds(rows):
        for mode in dict.fromkeys(row["mode"] for row in rows):
            own = [row for row in rows if (row["kind"], row["mode"]) == (kind, mode)]
            each = [[row for row in own if row["workload"] == name] for name in workloads]
            cells = [f"{states_in(some):,} / {violating(some):,}" for some in each]
            lines.append([f"{kind}, {mode}", *cells])
    return ["States / violations:", "", *markdown(["", *workloads], lines)]


def _by_step(rows: Sequence[Row]) -> list[str]:
    lines = []
    for kind in _kinds(rows):
        steps = total([row for row in rows if row["kind"] == kind], "steps")
        lines.append([kind, *(steps[step.value] or "-" for step in Step)])
    return [
        "States right after a step of the commit:",
        "",
        *markdown(["", *(s.value for s in Step)], lines),
    ]


def _by_control(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    kinds, lines = _kinds(rows), []
    for name in dict.fromkeys(map(how, rows)):
        own = [row for row in rows if how(row) == name]
        each = [[row for row in own if row["kind"] == kind] for kind in kinds]
        cells = [f"{violating(some):,} of {states_in(some):,}" if some else "-" for some in each]
        most = ", ".join(what for what, _ in total(own, "worst").most_common(_NAMED))
        lines.append([name, *cells, most])
    heads = ["control", *kinds, "what is wrong, most often first"]
    return ["States that violate the contract, as they have to:", "", *markdown(heads, lines)]
