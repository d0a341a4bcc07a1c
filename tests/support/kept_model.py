"""What a tree holds, and what is kept of each path: the rules of ``ckptfs/history/lineages.py`` on
plain dictionaries. Paths that share a version share their history, until one of them moves on: the
first takes it along, the others begin anew."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Version:
    """One inode."""

    content: bytes
    recorded: bool = True
    link: bool = False  # a symlink


@dataclass(eq=False)
class Line:
    """What is kept of some paths, oldest first. The first of them keeps it."""

    names: list[str]
    kept: list[Version] = field(default_factory=list)


@dataclass
class Model:
    keep: int
    files: dict[str, Version] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)

    def kept(self, path: str) -> list[Version]:
        line = self.lines.get(path)
        return line.kept if line else []

    def is_kept(self, version: Version) -> bool:
        return any(version in line.kept for line in self.lines.values())

    # --- operations ------------------------------------------------------------------------------

    def put(self, path: str, version: Version) -> None:
        """Commit a version at the path; what stood there goes to history."""
        if path in self.files:
            self._moves_on(path, self.files[path])
        self.files[path] = version

    def link(self, path: str, new: str) -> None:
        self.files[new] = self.files[path]
        if line := self.lines.get(path):
            line.names.append(new)
            self.lines[new] = line

    def unlink(self, path: str) -> None:
        del self.files[path]
        self._leave(path)

    def rename(self, path: str, new: str) -> None:
        moved, there = self.files[path], self.files.get(new)
        if moved is there:
            return
        if there is not None and not there.link and (moved.recorded or there.recorded):
            self._moves_on(new, there)
            self._leave(path)
        elif there is not None and self._keeps(new):
            self._alone(new)
            self._leave(path)
        else:
            self._leave(new)
            self._renamed({path: new})
        self.files[new] = self.files.pop(path)

    def exchange(self, path: str, other: str) -> None:
        if self.files[path] is self.files[other]:
            return
        if self.lines.get(path) is not self.lines.get(other):
            self._renamed({path: other, other: path})
        self.files[path], self.files[other] = self.files[other], self.files[path]

    def rename_folder(self, path: str, new: str) -> None:
        self._renamed_below({path: new})

    def exchange_folders(self, path: str, other: str) -> None:
        self._renamed_below({path: other, other: path})

    # --- lines -----------------------------------------------------------------------------------

    def _keeps(self, path: str) -> bool:
        return path in self.lines and self.lines[path].names[0] == path

    def _moves_on(self, path: str, version: Version) -> None:
        if self._keeps(path):
            self._alone(path)
        else:
            self._leave(path)
            self.lines[path] = Line([path])
        line = self.lines[path]
        line.kept = [*line.kept, version][-self.keep :] if self.keep else []
        if not self.keep:
            del self.lines[path]

    def _alone(self, path: str) -> None:
        for name in self.lines[path].names[1:]:
            del self.lines[name]
        self.lines[path].names = [path]

    def _leave(self, path: str) -> None:
        line = self.lines.pop(path, None)
        if line is not None:
            line.names.remove(path)

    def _renamed(self, names: dict[str, str]) -> None:
        for line in {id(line): line for line in self.lines.values()}.values():
            line.names = [names.get(name, name) for name in line.names]
        self.lines = {names.get(name, name): line for name, line in self.lines.items()}

    def _renamed_below(self, folders: dict[str, str]) -> None:
        names = {}
        for path in self.files:
            folder, _, name = path.rpartition("/")
            if folder in folders:
                names[path] = f"{folders[folder]}/{name}"
        self.files = {names.get(path, path): version for path, version in self.files.items()}
        self._renamed(names)
