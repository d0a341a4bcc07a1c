"""Whatever stands in the place of a part of ``.ckptfs``: no command hangs, traces or leaves it.

A FIFO for the lock, a directory for a note, a link to somebody else's file for ``stage``, JSON of
another kind… Each command ends in its time with one of its exit codes, and where it cannot do its
work one line names the part and says what to do. Nothing outside of the directory is written.

By default one case in ``CKPTFS_CASES`` (23) is tried, another selection for each kind;
``CKPTFS_CASES=1`` tries all.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from mounts import Served, served, why_no_mounts

import ckptfs.cli
import ckptfs.mount.daemon.doctor
import ckptfs.mount.daemon.ending
import ckptfs.mount.daemon.run
from ckptfs.records import format as fmt
from ckptfs.store import Store

ckptfs.cli.load([])
_EVERY = int(os.environ.get("CKPTFS_CASES", "23"))
_LIMIT_S = 15.0
_SECRET = b"not of this tree\n"
_STAGED = "0123456789abcdef"
_CODES = {0, 1, 2, 4, 8, 16}
_LINES = 12  # that one command may print of one small directory


@dataclass(frozen=True)
class Done:
    code: int | None  # None: it had to be killed
    out: str
    err: str

    @property
    def text(self) -> str:
        return f"{self.out}{self.err}"


def ckptfs_here(*words: object, limit_s: float = _LIMIT_S) -> Done:
    """The command, in a child that has everything imported already."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _become_the_command([str(word) for word in words], out.fileno(), err.fileno())
        code = _ended(child, limit_s)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Done(code, *texts)


def _become_the_command(words: list[str], out: int, err: int) -> None:
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["ckptfs", *words]
        ckptfs.cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(child: int, limit_s: float) -> int | None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


# --- the parts -----------------------------------------------------------------------------------


def _first(folder: Path, ending: str = "") -> Path:
    return sorted(path for path in folder.iterdir() if path.name.endswith(ending))[0]


def _lineage(control: Path) -> Path:
    found = [p for p in (control / fmt.HISTORY).iterdir() if not p.name.endswith(fmt.PIN)]
    return sorted(found)[0]


PARTS: dict[str, Callable[[Path], Path]] = {
    ".ckptfs": lambda control: control,
    **{
        name: lambda control, name=name: control / name  # type: ignore[misc]
        for name in (*fmt.SUBDIRECTORIES, fmt.FORMAT, fmt.LOCK, fmt.COUNTER, fmt.SCRUB, fmt.ALARMS)
    },
    "lineage": _lineage,
    "generation of history": lambda control: _first(_lineage(control)),
    "stray in a lineage": lambda control: _lineage(control) / "77",
    "stray in history": lambda control: control / fmt.HISTORY / "stray",
    "stray with digits": lambda control: control / fmt.HISTORY / "\N{SUPERSCRIPT TWO}3",
    "pin": lambda control: _lineage(control).with_suffix(fmt.PIN),
    "salvage entry": lambda control: control / fmt.SALVAGE / "aaaa",
    "salvage note": lambda control: control / fmt.SALVAGE / "aaaa.json",
    "quarantine note": lambda control: control / fmt.QUARANTINE / "bbbb.json",
    "staged": lambda control: control / fmt.STAGE / _STAGED,
    "intent": lambda control: control / fmt.STAGE / f"{_STAGED}-5{fmt.GROWS}",
    "draft": lambda control: control / fmt.STAGE / "lock.0123",
    "sidecar of the file": lambda control: (
        control / fmt.SIDECAR / str((control.parent / "a.pt").stat().st_ino)
    ),
}
FOLDERS = {".ckptfs", *fmt.SUBDIRECTORIES, "lineage", "pin"}
# Where the directory cannot be used without it, and is said so.
NEEDED = {".ckptfs", *fmt.SUBDIRECTORIES, fmt.FORMAT, fmt.LOCK, fmt.COUNTER}


def _fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "1").write_bytes(b"inside")


def _socket(path: Path, outside: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _writes(content: bytes) -> Callable[[Path, Path], None]:
    return lambda path, outside: path.write_bytes(content) and None


_NUMBERS = dict.fromkeys(
    ("layout", "pid", "host", "mountpoint", "path", "reason", "found", "files", "bytes"), 7
)
_ODD = {
    **{key: [{"a": None}] for key in _NUMBERS},
    **dict.fromkeys(("time_ns", "ended_ns", "started_ns"), "soon"),
}
_LARGE = {
    **_NUMBERS,
    **dict.fromkeys(("time_ns", "ended_ns", "started_ns"), 10**30),
    "layout": 1e99,
}
KINDS: dict[str, Callable[[Path, Path], None]] = {
    "missing": lambda path, outside: None,
    "fifo": _fifo,
    "directory": _folder,
    "link to a file": lambda path, outside: path.symlink_to(outside / "file"),
    "link to a directory": lambda path, outside: path.symlink_to(outside / "folder"),
    "dangling": lambda path, outside: path.symlink_to(outside / "made"),
    "loop": lambda path, outside: path.symlink_to(path),
    "socket": _socket,
    "device": lambda path, outside: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),
    "empty": _writes(b""),
    "garbage": _writes(b"\x00\xff garbage" * 99),
    "huge": _writes(b'{"layout": 1, "a": "' + b"x" * (3 << 20) + b'"}'),
    "list": _writes(b"[1]"),
    "numbers": _writes(json.dumps(_NUMBERS).encode()),
    "odd": _writes(json.dumps(_ODD).encode()),
    "large": _writes(json.dumps(_LARGE).encode()),
    "infinite": _writes(b'{"layout": 1e999, "time_ns": NaN, "ended_ns": -Infinity}'),
    "nested": _writes(b"[" * 60000),
    "digits": _writes(b"9" * 4200),
}
_CONTENTS = ("garbage", "huge", "list", "numbers", "odd", "large", "infinite", "nested", "digits")

COMMANDS: dict[str, tuple[str, ...]] = {
    "verify": ("verify", "DIR"),
    "verify --quick --json": ("verify", "--quick", "--json", "DIR"),
    "verify --repair": ("verify", "--repair", "DIR", "a.pt"),
    "verify --repair all": ("verify", "--repair", "DIR"),
    "log": ("log", "DIR"),
    "log path": ("log", "DIR", "a.pt"),
    "status": ("status", "DIR"),
    "status --check": ("status", "DIR", "--check"),
    "umount": ("umount", "DIR"),
    "doctor": ("doctor", "DIR"),
    "export-sums": ("export-sums", "DIR"),
    "adopt": ("adopt", "DIR"),
    "rollback": ("rollback", "DIR", "a.pt"),
    "strip": ("strip", "DIR", "--yes"),
    "run": ("run", "--log", "LOG", "DIR", "--", "cp", "/dev/null", "DIR/new"),
    "mount": ("mount", "DIR", "--log", "LOG"),
}
_READING = ("verify", "verify --quick --json", "log", "log path", "export-sums")


def cases() -> list[tuple[str, str, str]]:
    """Of part, kind, command."""
    pairs = [
        (part, kind)
        for part, kind in product(PARTS, KINDS)
        if not (part in FOLDERS and kind in ("directory", *_CONTENTS))
    ]
    every = [(part, kind, command) for part, kind in pairs for command in COMMANDS]
    return every[:: max(1, _EVERY)]


def by_part() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {part: [] for part in PARTS}
    for part, kind, command in cases():
        found[part].append((kind, command))
    return found


# --- the directory -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that has something of everything."""
    directory = tmp_path_factory.mktemp("parts") / "template"
    directory.mkdir()
    store = Store.open(str(directory))
    for content in (b"old " * 700, b"new " * 900):
        store.put("a.pt", content)
        store.put("b.pt", content)
    store.layout.write_note(fmt.SCRUB, {"started_ns": 1, "ended_ns": 2, "files": 1, "bytes": 1})
    store.alarms.note("rotten", "a.pt", "a test")
    store.close()
    control = directory / fmt.CONTROL
    _lineage(control).with_suffix(fmt.PIN).mkdir()
    for folder, entry in ((fmt.SALVAGE, "aaaa"), (fmt.QUARANTINE, "bbbb")):
        (control / folder / entry).write_bytes(b"aside")
        note = {"path": "a.pt", "reason": "a test", "time_ns": 1}
        (control / folder / f"{entry}.json").write_text(json.dumps(note))
    (control / fmt.STAGE / _STAGED).write_bytes(b"staged")
    return directory


@dataclass
class Place:
    directory: Path
    outside: Path
    template: Path

    def renew(self, part: str, kind: str) -> None:
        subprocess.run(["rm", "-rf", self.directory, self.outside], check=True)
        subprocess.run(["cp", "-a", self.template, self.directory], check=True)
        (self.outside / "folder").mkdir(parents=True)
        (self.outside / "file").write_bytes(_SECRET)
        path = PARTS[part](self.directory / fmt.CONTROL)
        if os.path.lexists(path):
            subprocess.run(["rm", "-rf", path], check=True)
        KINDS[kind](path, self.outside)

    @property
    def log(self) -> Path:
        return self.directory.with_suffix(".log")

    def do(self, command: str) -> Done:
        words = (word.replace("DIR", str(self.directory)) for word in COMMANDS[command])
        done = ckptfs_here(*(word.replace("LOG", str(self.log)) for word in words))
        if os.path.ismount(self.directory):
            Served(self.directory).end()
        return done

    def judge(self, done: Done, part: str, kind: str, command: str) -> str:
        """What is wrong with how the command ended; empty if nothing is."""
        log = self.log.read_text() if self.log.exists() else ""
        left = sorted(path.name for path in self.outside.rglob("*"))
        if done.code is None:
            return "hangs"
        if done.code not in _CODES:
            return f"exit code {done.code}"
        if "Traceback" in done.text + log or "the daemon failed" in done.text:
            return "traces"
        if len(done.text.splitlines()) > _LINES:
            return "talks too much"
        if left != ["file", "folder"] or (self.outside / "file").read_bytes() != _SECRET:
            return f"wrote outside: {left}"
        if done.code == 8 and command != "doctor":
            return self._judge_refusal(done, part)
        return ""

    @staticmethod
    def _judge_refusal(done: Done, part: str) -> str:
        """One line, that names the part."""
        said = done.err.splitlines()
        if len(said) != 1 or not said[0].startswith("ckptfs: ") or "; " not in said[0]:
            return "is not one line that says what to do"
        name = fmt.CONTROL if part == ".ckptfs" else f"{fmt.CONTROL}/{part}"
        return "" if part not in NEEDED or name in said[0] else "does not name the part"


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Iterator[Place]:
    if why_no_mounts():
        pytest.skip(f"cannot mount here: {why_no_mounts()}")
    yield Place(tmp_path / "served", tmp_path / "outside", template)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_wrong_kind(place: Place, part: str) -> None:
    troubles = []
    for kind, command in by_part()[part]:
        place.renew(part, kind)
        done = place.do(command)
        wrong = place.judge(done, part, kind, command)
        if wrong:
            troubles.append(f"{command}: {kind} for {part}: {wrong}: {done}"[:700])
    assert not troubles, "\n".join(troubles)


def test_verify_names_what_is_not_of_ckptfs(place: Place) -> None:
    place.renew("stray in history", "fifo")
    control = place.directory / fmt.CONTROL
    (control / fmt.STAGE / "pipe").mkdir()
    (_lineage(control) / "notes.txt").write_text("mine")
    done = ckptfs_here("verify", place.directory)
    strays = [line for line in done.out.splitlines() if line.startswith("stray ")]
    assert [line.split()[1].rstrip(":") for line in strays] == [
        ".ckptfs/stage/pipe",
        ".ckptfs/history/stray",
        f".ckptfs/history/{_lineage(control).name}/notes.txt",
    ]
    assert done.code == 0 and "left alone" in done.out
    assert ckptfs_here("rollback", place.directory, "a.pt").code == 0
    assert stat.S_ISFIFO(os.lstat(control / fmt.HISTORY / "stray").st_mode)


def test_a_save_whose_history_is_no_directory_fails_and_names_it(place: Place) -> None:
    """And keeps the old version: what the history was is not known."""
    place.renew("lineage", "fifo")
    with served(place.directory) as mount:
        errors = []
        for name in ("a.pt", "b.pt"):
            try:
                (place.directory / name).write_bytes(b"newest")
            except OSError as error:
                errors.append((name, error.errno))
        assert [code for _, code in errors] == [errno.ENOTDIR]
        assert (place.directory / errors[0][0]).read_bytes() == b"new " * 900
        assert "is no directory; move it away" in mount.log_text()
