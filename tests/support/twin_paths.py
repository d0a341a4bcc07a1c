"""Operations on paths, of the machine of test_same_as_plain.py."""

from __future__ import annotations

import os
import stat
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from twin import Answer
from twin_draws import (
    EXCHANGE,
    data,
    lines,
    modes,
    names,
    owners,
    paths,
    picks,
    sizes,
    times,
    workers,
    xattrs,
)
from twin_machine import Asking, around, some_open


class Paths(Asking):
    @rule(worker=workers, path=paths, follow=st.booleans())
    def look(self, worker: int, path: str, follow: bool) -> None:
        status, hidden = self.pair.plain(path, follow), self._hidden(path, worker, follow)
        inode = status.st_ino if status is not None else None
        self.by_path(worker, "stat", path, follow, masked=hidden, inode=inode)

    @rule(worker=workers, path=paths)
    def read_path(self, worker: int, path: str) -> None:
        status = self.pair.plain(path)
        if status is not None and not (
            stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        ):
            return
        shown = self.model.shown(status.st_ino if status else None, worker)

        def allowed(ours: tuple[str, Any], theirs: tuple[str, Any]) -> bool:
            return shown is None or ours[1] in shown or (ours[0] != theirs[0] and bool(shown))

        self.by_path(worker, "read_path", path, allowed=allowed)

    @rule(worker=workers, path=paths, size=sizes)
    def truncate(self, worker: int, path: str, size: int) -> None:
        self.by_metadata(worker, "truncate", path, size, commits=True)

    @rule(worker=workers, path=paths)
    def unlink(self, worker: int, path: str) -> None:
        self.by_path(worker, "unlink", path)

    @rule(worker=workers, path=paths)
    def rmdir(self, worker: int, path: str) -> None:
        self.by_path(worker, "rmdir", path)

    @rule(worker=workers, path=paths, mode=modes)
    def mkdir(self, worker: int, path: str, mode: int) -> None:
        self.by_path(worker, "mkdir", path, mode)

    @rule(worker=workers, path=st.sampled_from(["d", "e", "d/s"]))
    def mkdir_for_use(self, worker: int, path: str) -> None:
        self.by_path(worker, "mkdir", path, 0o777)

    @rule(worker=workers, to=paths, path=paths)
    def symlink(self, worker: int, to: str, path: str) -> None:
        answers = self.pair.ask(worker, "symlink", to, path, watched=around(path))
        self.pair.compare(worker, (worker, "symlink", to, path), answers)

    @rule(worker=workers, path=paths)
    def readlink(self, worker: int, path: str) -> None:
        self.by_path(worker, "readlink", path)

    @rule(
        worker=workers,
        path=paths,
        kind=st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR]),
        mode=modes,
    )
    def mknod(self, worker: int, path: str, kind: int, mode: int) -> None:
        self.by_path(
            worker, "mknod", path, kind | mode, os.makedev(1, 3) if kind == stat.S_IFCHR else 0
        )

    @rule(worker=workers, old=paths, new=paths, follow=st.booleans())
    def link(self, worker: int, old: str, new: str, follow: bool) -> None:
        """Of a file that is being written its own writer publishes what it is so far."""
        status, there = self.pair.plain(old, follow), self.pair.plain(new, False)
        inode = status.st_ino if status is not None else None
        staged = inode in self.model.flight or inode in self.model.split
        own = self.model.writes(inode, worker) and inode not in self.model.split
        answers = self.pair.ask(
            worker, "link", old, new, follow, watched=[*around(old), *around(new)]
        )
        ours, theirs = answers
        refused = staged and not own and theirs.ok and ours.result == ("error", "ENOTSUP")
        if refused:
            self._undo_link(worker, new, answers)
        elif theirs.ok and inode is not None and own:
            self.model.linked(inode)
        elif staged and theirs.ok and inode is not None and there is None:
            self.model.part(inode)  # it is the committed file that has got another name
        self.pair.compare(
            worker, (worker, "link", old, new, follow), answers, masked=refused, commits=own
        )

    @precondition(some_open)
    @rule(pick=picks, worker=st.none() | workers, new=paths)
    def link_again(self, pick: int, worker: int | None, new: str) -> None:
        """What is open, by who has it open or by another."""
        (holder, _), description = self._picked(pick)
        for path in self.pair.files().get(description.inode, [])[:1]:
            self.link(holder if worker is None else worker, path, new, False)

    @rule(pick=picks, worker=workers, new=names, what=st.integers(0, 5), line=lines)
    def by_one_name(self, pick: int, worker: int, new: str, what: int, line: bytes) -> None:
        """Something with one of the names of a file that has several."""
        linked = [names for names in self.pair.files().values() if len(names) > 1]
        if not linked:
            return
        found = sorted(linked[pick % len(linked)])
        path = found[pick // 7 % len(found)]
        if what == 0:
            self.unlink(worker, path)
        elif what == 1:
            self.rename(worker, new, path, 0)
        elif what == 2:
            self.rename(worker, path, new, 0)
        elif what == 3:
            self.truncate(worker, path, 7)
        else:
            self.write_once(worker, path, line, os.O_TRUNC if what == 4 else 0)

    def _undo_link(self, worker: int, new: str, answers: list[Answer]) -> None:
        plain = self.pair.sides[1][worker]
        plain.send("unlink", new)
        assert plain.answer().ok
        for answer in answers:
            answer.before.clear(), answer.after.clear()

    @rule(
        worker=workers,
        old=paths,
        new=paths,
        how=st.sampled_from([0, 0, 0, 0, 1, 2, 2, 2, 3, 8]),
    )
    def rename(self, worker: int, old: str, new: str, how: int) -> None:
        before = self.pair.plain(old, False), self.pair.plain(new, False)
        source, target = before
        links = source is not None and target is not None and source.st_ino == target.st_ino
        if links and source is not None and source.st_ino in self.model.split:
            return  # its names have parted on the mount, where this replaces one
        contents = self.pair.content(old), self.pair.content(new)
        answers = self.pair.ask(
            worker, "rename", old, new, how, watched=[*around(old), *around(new)]
        )
        if answers[1].ok:
            self.model.renamed(None if how == EXCHANGE else worker, source, target, contents)
            if how == EXCHANGE:
                self.model.renamed(None, target, source, contents[::-1])
            else:
                self.model.replaced(source, target)
        for answer in answers:
            if answer.ok:  # the times of a file are watched, not those of a name
                answer.after[0], answer.after[2] = answer.after[2], answer.after[0]
        self.pair.compare(
            worker,
            (worker, "rename", old, new, how),
            answers,
            allowed=lambda ours, theirs: links and ours[1] in ("EACCES", "EPERM"),
        )

    @rule(worker=workers, path=paths, mode=modes)
    def chmod(self, worker: int, path: str, mode: int) -> None:
        self.by_metadata(worker, "chmod", path, mode)

    @rule(worker=workers, path=paths, uid=owners, gid=owners, follow=st.booleans())
    def chown(self, worker: int, path: str, uid: int, gid: int, follow: bool) -> None:
        self.by_metadata(worker, "chown", path, uid, gid, follow, follow=follow)

    @rule(worker=workers, path=paths, atime=times, mtime=times, follow=st.booleans())
    def utimens(self, worker: int, path: str, atime: int, mtime: int, follow: bool) -> None:
        self.by_metadata(worker, "utimens", path, atime, mtime, follow, follow=follow)

    @rule(worker=workers, path=paths, mode=st.integers(0, 7), effective=st.booleans())
    def access(self, worker: int, path: str, mode: int, effective: bool) -> None:
        masked = self._hidden(path, worker)
        self.by_path(worker, "access", path, mode, effective, masked=masked)

    @rule(
        worker=workers,
        path=paths,
        key=xattrs,
        value=data,
        how=st.sampled_from([0, 0, 1, 2]),
        follow=st.booleans(),
    )
    def setxattr(
        self, worker: int, path: str, key: str, value: bytes, how: int, follow: bool
    ) -> None:
        self.by_metadata(worker, "setxattr", path, key, value, how, follow, follow=follow)

    @rule(worker=workers, path=paths, key=xattrs)
    def getxattr(self, worker: int, path: str, key: str) -> None:
        self.by_path(worker, "getxattr", path, key, masked=self._hidden(path, worker))

    @rule(worker=workers, path=paths, follow=st.booleans())
    def listxattr(self, worker: int, path: str, follow: bool) -> None:
        self.by_path(worker, "listxattr", path, follow, masked=self._hidden(path, worker, follow))

    @rule(worker=workers, path=paths, key=xattrs)
    def removexattr(self, worker: int, path: str, key: str) -> None:
        self.by_metadata(worker, "removexattr", path, key)

    @rule(worker=workers, path=paths)
    def listdir(self, worker: int, path: str) -> None:
        self.by_path(worker, "listdir", path)

    @rule(worker=workers, path=paths)
    def statfs(self, worker: int, path: str) -> None:
        self.by_path(worker, "statfs", path)

    @rule(worker=workers, mask=st.sampled_from([0o022, 0o077, 0o000]))
    def umask(self, worker: int, mask: int) -> None:
        answers = self.pair.ask(worker, "umask", mask)
        self.pair.compare(worker, (worker, "umask", mask), answers)
