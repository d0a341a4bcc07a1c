"""Names of checkpoints and of their files, and the patterns of profiles for both. Pure.

A set is a directory that is one checkpoint; its series are those that differ in their number only.
What is no number of a step stays: ``version_0``, ``run-1`` and ``images10`` are no sets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

_DATE = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(?:\.\d+)?"
_NUMBER = rf"{_DATE}|\d+"
_WORD = r"(?:global[-_]?)?step|epoch|checkpoint|ckpt|iteration|iter|ep|ba"
_STEP = re.compile(rf"(?<![a-z0-9])(?:{_WORD})[-_=]?({_NUMBER})(?![a-z0-9])", re.IGNORECASE)
# What may follow it: metrics, "last", a suffix. Anything else is a folder that speaks of a step.
_REST = re.compile(
    r"(?:[-_]\w+=\d+(?:\.\d+)?)*(?:[-_](?:last|best|final))?(?:\.(?:ckpt|pt|pth))?(?:[-_.]te?mp)?",
    re.IGNORECASE,
)
_METRIC = re.compile(r"=(\d+\.\d+)")  # Lightning's: epoch=3-val_loss=0.25
_LAST = re.compile(r"(\d+)(?=\D*\Z)")
_TOKEN = re.compile(r"\{\w*\}|\*\*|\*|\|")

_IN_DIRECTORIES = {
    "{step}": r"(?<!\d)(?P<step>\d+)(?!\d)",
    "{date}": rf"(?P<step>{_DATE})",
    "{name}": r"(?P<name>.+)",
    "*": r".*",
}
_IN_FILES = {
    "{rank}": r"(\d+)",
    "{step}": r"\d+",
    "*": r"[^/]*",
    "**": r".*",
    "|": "|",
}


def is_step(name: str) -> bool:
    """Whether a directory of this name looks like one checkpoint of many."""
    found = list(_STEP.finditer(name))
    return bool(found) and _REST.fullmatch(name, found[-1].end()) is not None


def step(name: str) -> int | None:
    """The number of the step, a date as all of its digits; else the last number."""
    found = list(_STEP.finditer(name)) or list(_LAST.finditer(name))
    return number(found[-1][1]) if found else None


def number(digits: str) -> int:
    return int(re.sub(r"\D", "", digits))


def series(name: str) -> str:
    """With a star in place of each number that :func:`step` may be, and of metrics."""
    found = [match.span(1) for match in _STEP.finditer(name)]
    found = found or [match.span(1) for match in _LAST.finditer(name)]
    return _starred(name, [*found, *(match.span(1) for match in _METRIC.finditer(name))])


def series_by(match: re.Match[str]) -> str:
    """The same of a name that a pattern with a step fits."""
    metrics = (metric.span(1) for metric in _METRIC.finditer(match.string))
    steps = (found.span(1) for found in _STEP.finditer(match.string))
    return _starred(match.string, [match.span("step"), *steps, *metrics])


def _starred(name: str, spans: list[tuple[int, int]]) -> str:
    for start, end in sorted(set(spans), reverse=True):
        name = f"{name[:start]}*{name[end:]}"
    return name


def without_numbers(path: str) -> str:
    return re.sub(r"\d+", "*", path)


@lru_cache(maxsize=1024)
def of_directories(pattern: str) -> re.Pattern[str]:
    """Has the groups ``step`` and ``name``. Raises ValueError for what cannot stand there."""
    return _compiled(pattern, _IN_DIRECTORIES)


@lru_cache(maxsize=1024)
def of_files(pattern: str) -> re.Pattern[str]:
    """Its groups are the ranks. Raises ValueError likewise."""
    return _compiled(pattern, _IN_FILES)


def of_parent(pattern: str, name: str, number: int | None) -> re.Pattern[str]:
    """Names beside the set ``name``, and texts that name it. Raises ValueError likewise."""
    step = "(?!)" if number is None else rf"0*{number}"
    return _compiled(pattern, {"{name}": re.escape(name), "{step}": step, "*": ".*"})


def _compiled(pattern: str, words: Mapping[str, str]) -> re.Pattern[str]:
    parts, at = [], 0
    for token in _TOKEN.finditer(pattern):
        if token[0] not in words:
            raise ValueError(f"{token[0]} cannot stand in {pattern!r}, {' '.join(words)} can")
        parts += [re.escape(pattern[at : token.start()]), words[token[0]]]
        at = token.end()
    try:
        return re.compile("".join([*parts, re.escape(pattern[at:])]), re.DOTALL)
    except re.error as error:
        raise ValueError(f"{pattern!r}: {error}") from None
