"""Profiles: how a framework names the directory of a checkpoint, what it writes there, and what
says that all of it is there. Pure, but for the two files that they are read from.

``profiles.yaml`` says what each field means, and which source says so. Users have files like it,
which go first; a profile of theirs takes the place of one of the same name.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

from ckptfs.disk import osfs
from ckptfs.errors import UsageError
from ckptfs.sets import names

_OURS = "profiles.yaml"
_ANY = "any"
T = TypeVar("T")


class MarkerKind(enum.Enum):
    INSIDE = "inside"
    EACH_RANK = "each rank"
    PARENT_FILE = "parent file"
    PARENT_SYMLINK = "parent symlink"
    RENAME = "rename"
    ABSENT = "absent"
    ALL_MEMBERS = "all members"


@dataclass(frozen=True)
class Marker:
    """What says that a set is complete."""

    kind: MarkerKind
    path: str = ""  # of a file; of a rename, the name before it
    says: str = "{name}"  # the text of a file beside the set

    @property
    def is_outside(self) -> bool:
        """It is seen in the directory that the set is in."""
        kinds = (MarkerKind.PARENT_FILE, MarkerKind.PARENT_SYMLINK, MarkerKind.RENAME)
        return self.kind in kinds or self.path.startswith("../")

    def is_at(self, entry: str, name: str) -> bool:
        """Whether ``entry``, beside the set ``name``, is the file or symlink that it is about."""
        if not self.is_outside or self.kind is MarkerKind.RENAME:
            return False
        path = self.path.removeprefix("../")
        return names.of_parent(path, name, names.step(name)).fullmatch(entry) is not None

    def is_about(self, text: str, name: str) -> bool:
        """Whether that file's text, or the target of that symlink, means the set ``name``."""
        if self.kind is MarkerKind.PARENT_SYMLINK:
            return name in text.split("/")
        return bool(names.of_parent(self.says, name, names.step(name)).fullmatch(text.strip()))

    def __str__(self) -> str:
        return f"{self.kind.value} {self.path}".rstrip()


@dataclass(frozen=True)
class Profile:
    name: str
    read: str  # framework and version whose source was read
    directory: tuple[str, ...]  # patterns, or "any"; none: files beside those of other checkpoints
    recognised_by: tuple[str, ...]  # files one of which tells it; none: the directory's name does
    members: tuple[str, ...]
    optional: tuple[str, ...]
    markers: tuple[Marker, ...]  # of which one is enough; none: the set before it tells

    def place(self, name: str) -> str | None:
        """The name under which a directory of that name is complete: that of a rename, else its
        own. None: it is not a directory of this profile."""
        renames = [one.path for one in self.markers if one.kind is MarkerKind.RENAME]
        final = name if not renames else _renamed(renames, name)
        return final if final is not None and self._fits(final) else None

    def match(self, name: str) -> re.Match[str] | None:
        """Of a complete directory's name, with the group ``step``, if a pattern of it has one."""
        patterns = (names.of_directories(one) for one in self.directory if one != _ANY)
        return next(filter(None, (one.fullmatch(name) for one in patterns)), None)

    def _fits(self, name: str) -> bool:
        return self.match(name) is not None or (_ANY in self.directory and names.is_step(name))

    def knows(self, paths: Iterable[str]) -> bool:
        """Whether one of these files, relative to the set, tells it."""
        patterns = [names.of_files(one) for one in self.recognised_by]
        return not patterns or any(one.fullmatch(path) for path in paths for one in patterns)


def _renamed(before: Iterable[str], name: str) -> str | None:
    matches = (names.of_directories(one).fullmatch(name) for one in before)
    return next((match["name"] for match in matches if match), None)


def recognised(candidates: Sequence[Profile], paths: Iterable[str]) -> Profile | None:
    """The first of :meth:`Profiles.named` that these files, relative to the set, tell. To be asked
    again as files come and go: the first ones of some frameworks tell nothing."""
    known = tuple(paths)
    return next((one for one in candidates if one.knows(known)), None)


class Profiles:
    """Immutable; any thread."""

    def __init__(self, profiles: Iterable[Profile]) -> None:
        found: dict[str, Profile] = {}
        for one in profiles:
            found.setdefault(one.name, one)
        self.all = tuple(found.values())

    @classmethod
    def load(cls, extra: str | None = None) -> Profiles:
        """Ours, behind those of the file ``extra``. Raises UsageError, which names file, profile
        and field."""
        theirs = [] if extra is None else parse(_text(extra), extra)
        ours = resources.files("ckptfs.sets").joinpath(_OURS).read_text(encoding="utf-8")
        return cls([*theirs, *parse(ours, _OURS)])

    def named(self, name: str) -> tuple[Profile, ...]:
        """Those that a directory of this name may be a set of: none, unless it has a number."""
        return tuple(one for one in self.all if one.place(name) is not None)

    def series(self, name: str) -> str:
        """The name with a star in place of its number; of a temporary one, that of its place."""
        match = self._match(name)
        return names.series_by(match) if match else names.series(self._place(name))

    def step(self, name: str) -> int | None:
        match = self._match(name)
        return names.number(match["step"]) if match else names.step(self._place(name))

    def _place(self, name: str) -> str:
        return next(filter(None, (one.place(name) for one in self.named(name))), name)

    def _match(self, name: str) -> re.Match[str] | None:
        """By the first pattern that says what the number is."""
        places = ((one, one.place(name)) for one in self.named(name))
        return next(filter(None, (one.match(place) for one, place in places if place)), None)


# --- the files -----------------------------------------------------------------------------------

_FIELDS = ("read", "directory", "recognised by", "members", "optional", "marker")
_OF_MARKERS = ("kind", "path", "says")


def parse(text: str, where: str) -> list[Profile]:
    """The profiles of a file, in its order. Raises UsageError."""
    import yaml  # here, for it takes a quarter of the time of loading all of ckptfs

    try:
        tables = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UsageError(f"{where}: {line}{getattr(error, 'problem', error)}") from None
    if not isinstance(tables, dict):
        raise UsageError(f"{where}: is no table of profiles by their names")
    return [_profile(str(name), table, where) for name, table in tables.items()]


def _text(path: str) -> str:
    try:
        return osfs.read_text(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


class _Table:
    """A table of the file, whose fields are believed type by type."""

    def __init__(self, table: Any, where: str, fields: Sequence[str] = _FIELDS) -> None:
        if not isinstance(table, dict):
            raise UsageError(f"{where}: is no table of fields")
        for field in table:
            if field not in fields:
                raise UsageError(f"{where}: {field}: is no field, {', '.join(fields)} are")
        self.table: dict[str, Any] = table
        self.where = where

    def word(self, field: str, default: str | None = None) -> str:
        value = self.table.get(field, default)
        if value is None:
            raise UsageError(f"{self.where}: {field}: is missing")
        if not isinstance(value, str) or not value:
            raise UsageError(f"{self.where}: {field}: {value!r} is no text; quotes make it one")
        return value

    def words(self, field: str) -> tuple[str, ...]:
        return tuple(_Table({field: one}, self.where).word(field) for one in self._list(field))

    def patterns(self, field: str) -> tuple[str, ...]:
        """Of files."""
        found = self.words(field)
        for pattern in found:
            self.check(field, names.of_files, pattern)
        return found

    def tables(self, field: str) -> Iterator[_Table]:
        for one in self._list(field):
            yield _Table(one, f"{self.where}: {field}", _OF_MARKERS)

    def check(self, field: str, means: Callable[[T], object], value: T) -> None:
        try:
            means(value)
        except ValueError as error:
            raise UsageError(f"{self.where}: {field}: {error}") from None

    def _list(self, field: str) -> list[Any]:
        value = self.table.get(field, [])
        return value if isinstance(value, list) else [value]


def _profile(name: str, fields: Any, where: str) -> Profile:
    table = _Table(fields, f"{where}: {name}")
    return Profile(
        name,
        table.word("read", "-"),
        _directories(table),
        table.patterns("recognised by"),
        table.patterns("members"),
        table.patterns("optional"),
        tuple(_marker(one) for one in table.tables("marker")),
    )


def _directories(table: _Table) -> tuple[str, ...]:
    if "directory" not in table.table:
        raise UsageError(f"{table.where}: directory: is missing")
    found = table.words("directory")
    for pattern in found:
        table.check("directory", _with_number, pattern)
    return found


def _with_number(pattern: str) -> None:
    if pattern != _ANY and "step" not in names.of_directories(pattern).groupindex:
        raise ValueError(f"{pattern!r} has no {{step}}: sets of a series differ in a number")


def _marker(table: _Table) -> Marker:
    kinds = {kind.value: kind for kind in MarkerKind}
    word = table.word("kind")
    if word not in kinds:
        raise UsageError(f"{table.where}: kind: {word!r} is none, {', '.join(kinds)} are")
    kind = kinds[word]
    marker = Marker(kind, table.word("path", "*"), table.word("says", "{name}"))
    if kind is MarkerKind.ALL_MEMBERS:
        return Marker(kind)
    table.word("path")
    table.check("path", _with_meaning, marker)
    table.check("says", _of_parent, marker.says)
    return marker


def _of_parent(pattern: str) -> re.Pattern[str]:
    return names.of_parent(pattern, "", 0)


def _with_meaning(marker: Marker) -> None:
    if marker.kind is MarkerKind.RENAME:
        if "name" not in names.of_directories(marker.path).groupindex:
            raise ValueError(f"{marker.path!r} has no {{name}}, which it is renamed to")
    elif marker.is_outside:
        _of_parent(marker.path)
    else:
        names.of_files(marker.path)
