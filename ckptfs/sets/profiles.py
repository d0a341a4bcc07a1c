"""How frameworks lay out a checkpoint of several files: data, in ``profiles.toml``, and what names
tell. Pure but for reading that file, and a user's own, whose profiles come first."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from ckptfs.errors import CannotServe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AUTO, NONE = "auto", "none"
_NUMBER = re.compile(r"\d+")
_TOKENS = re.compile(r"\{step\}|\{rank\}|\[[^\]]*\]|\*|\|")
_REGEX = {"{step}": r"(?P<step>\d+)", "{rank}": r"(?P<rank>\d+)", "*": "[^/]*", "|": "|"}
_MARKERS = {"inside", "parent", "rename", "absent"}


@functools.cache
def pattern(text: str) -> re.Pattern[str]:
    """Of a name, or of a path within the set; a second ``{step}`` is any number."""
    parts, at, named = [], 0, set[str]()
    for token in _TOKENS.finditer(text):
        parts.append(re.escape(text[at : token.start()]))
        found = token[0] if token[0].startswith("[") else _REGEX[token[0]]
        parts.append(r"\d+" if token[0] in named else found)
        named.add(token[0] if token[0].startswith("{") else "")
        at = token.end()
    parts.append(re.escape(text[at:]))
    return re.compile("".join(parts))


def fits(text: str, name: str) -> bool:
    return pattern(text).fullmatch(name) is not None


@dataclass(frozen=True)
class Profile:
    name: str
    read: str  # the version whose source was read
    directory: tuple[str, ...]
    known_by: tuple[str, ...]
    expects: tuple[str, ...] = ()
    marker: Mapping[str, str] = field(default_factory=dict)

    def names(self, directory: str) -> bool:
        return any(fits(each, directory) for each in self.directory)

    def knows(self, files: Iterable[str]) -> bool:
        return any(fits(each, file) for file in files for each in self.known_by)

    def is_marked_by_rename(self, old: str, new: str) -> bool:
        """Whether a directory of this name was on its way, and is not any more."""
        temporary = self.marker.get("rename")
        return temporary is not None and fits(temporary, old) and not fits(temporary, new)

    @property
    def is_marked_outside(self) -> bool:
        return "parent" in self.marker or "rename" in self.marker


@dataclass(frozen=True)
class Profiles:
    """Those that are asked, in order."""

    all: tuple[Profile, ...]

    @classmethod
    def of(cls, how: str) -> Profiles:
        """``auto``, ``none``, the name of one, or a file of the user's own beside them. Raises
        CannotServe."""
        if how == NONE:
            return cls(())
        shipped = _parsed(_shipped(), "profiles.toml")
        if how == AUTO:
            return cls(shipped)
        named = tuple(each for each in shipped if each.name == how)
        if named:
            return cls(named)
        return cls((*_of_file(how), *shipped))

    def named(self, directory: str) -> tuple[Profile, ...]:
        return tuple(each for each in self.all if each.names(directory))


def _shipped() -> str:
    return resources.files("ckptfs.sets").joinpath("profiles.toml").read_text("utf-8")


def _of_file(path: str) -> tuple[Profile, ...]:
    try:
        with open(path, encoding="utf-8") as file:
            return _parsed(file.read(), path)
    except (OSError, UnicodeDecodeError):
        raise CannotServe(
            f"--profile {path}: no profile, and no file that can be read; see `ckptfs profiles`"
        ) from None


def _parsed(text: str, path: str) -> tuple[Profile, ...]:
    try:
        tables = tomllib.loads(text).get("profile", [])
    except tomllib.TOMLDecodeError as error:
        raise CannotServe(f"{path}: {error}") from None
    return tuple(_profile(table, path) for table in tables)


def _profile(table: Mapping[str, Any], path: str) -> Profile:
    name = table.get("name")
    if not isinstance(name, str):
        raise CannotServe(f"{path}: a profile has no name")
    marker = table.get("marker", {})
    wrong = set(marker) - _MARKERS if isinstance(marker, dict) else {"marker"}
    if wrong:
        raise CannotServe(f"{path}: {name}: marker: not one of {', '.join(sorted(_MARKERS))}")
    return Profile(
        name,
        str(table.get("read", "")),
        _texts(table, "directory", name, path),
        _texts(table, "known_by", name, path),
        _texts(table, "expects", name, path, needed=False),
        marker,
    )


def _texts(
    table: Mapping[str, Any], key: str, name: str, path: str, *, needed: bool = True
) -> tuple[str, ...]:
    texts = table.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise CannotServe(f"{path}: {name}: {key}: not a list of texts")
    if needed and not texts:
        raise CannotServe(f"{path}: {name}: {key} is missing")
    return tuple(texts)


def recognised(candidates: Sequence[Profile], files: Iterable[str]) -> Profile | None:
    """The first that knows one of the files."""
    listed = list(files)
    return next((each for each in candidates if each.knows(listed)), None)


def series(name: str) -> str:
    """What the sets of a series have in common."""
    return _NUMBER.sub("*", name)


def step(name: str) -> int:
    """The last number; 0 where there is none."""
    numbers = _NUMBER.findall(name)
    return int(numbers[-1]) if numbers else 0
