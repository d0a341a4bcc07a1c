"""What must raise no alarm: reads of untouched files, saves and edits made outside of a mount."""

from __future__ import annotations

import errno
import itertools
import os
import random
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..harness.rig import Mount, served
from ..harness.study import Row
from .batch import digest, verify, write_file
from .content import build
from .damage import kept, record_of
from .draw import Trial, trial

_FILES = 240
_FILES_MAX_BYTES = 256 << 10
_FILES_MIN_BYTES = 8 << 10  # far more than the requests of one open, read and close
_EDITED_MAX_BYTES = 1 << 20
_HARMLESS = {"committed"}
_TOLD = _HARMLESS | {"modified outside"}  # that an edit is noticed is no harm to it
_SHELL_LIMIT_S = 60.0


def _single(seed: int, number: int, max_bytes: int) -> Trial:
    """A trial whose checkpoint is one file; its damage is not done."""
    while (drawn := trial(seed, number, max_bytes)).format == "dcp":
        seed += 1_000_003
    return drawn


def _content(drawn: Trial, version: int, scratch: Path) -> bytes:
    return build(drawn, version, scratch).files[drawn.target]


# --- untouched files -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    name: str
    size_bytes: int
    digest: str


def read_untouched(
    count: int,
    chunk: int,
    seed: int,
    on: Path,
    step: Callable[[int], None] = lambda _: None,
    *,
    again: bool = True,
) -> Iterator[Row]:
    """Open and read untouched files through a mount ``count`` times; a row for each ``chunk``.

    Before each read the file's change time is moved below the mount (chmod to the same mode), so
    that what the daemon remembers of it no longer holds and it digests the file ``again``.
    ``rchar`` of the daemon, the bytes it has read by system calls, proves for each read that it
    did: what programs read by passthrough does not count there, requests are much shorter than the
    files.
    """
    if count <= 0:
        return
    with tempfile.TemporaryDirectory(prefix="ckptfs-corrupt-", dir=on) as name:
        root = Path(os.path.realpath(name), "served")
        root.mkdir()
        with served(root):
            files = list(_write_files(root, seed, Path(name)))
        for start in range(0, count, chunk):
            with served(root) as mount:
                todo = [files[n % _FILES] for n in range(start, min(count, start + chunk))]
                row = _read_chunk(mount, todo, step, again=again)
            conditions = [found[0]["condition"] for found in verify(root).values()]
            row["not_ok"] = sum(condition != "ok" for condition in conditions)
            yield row


def _write_files(root: Path, seed: int, scratch: Path) -> Iterator[_File]:
    numbers = itertools.count()
    for index in range(_FILES):
        data = b""
        while len(data) < _FILES_MIN_BYTES:
            drawn = _single(seed, next(numbers), _FILES_MAX_BYTES)
            data = _content(drawn, 1, scratch)
        name = f"{index:04}.{drawn.format}"
        write_file(root / name, data)
        yield _File(name, len(data), digest(data))


def _read_chunk(
    mount: Mount, files: Sequence[_File], step: Callable[[int], None], *, again: bool
) -> Row:
    status = mount.status()
    pid = status["pid"]
    below = os.open(f"/proc/{pid}/fd/{status['root_fd']}", os.O_RDONLY | os.O_DIRECTORY)
    alarms = digests = total = 0
    try:
        for file in files:
            if again:
                mode = stat.S_IMODE(os.stat(file.name, dir_fd=below).st_mode)
                os.chmod(file.name, mode, dir_fd=below)
            before = _bytes_read(pid)
            try:
                good = digest((mount.path / file.name).read_bytes()) == file.digest
            except OSError:
                good = False
            read = _bytes_read(pid) - before
            alarms += not good
            digests += read >= file.size_bytes
            total += read
            step(1)
    finally:
        os.close(below)
    counts = mount.status()["counts"]
    return {
        "what": "reads",
        "reads": len(files),
        "alarms": alarms,
        "events": sum(count for event, count in counts.items() if event not in _HARMLESS),
        "digests": digests,
        "digested_bytes": total,
    }


def _bytes_read(pid: int) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise OSError(errno.ENODATA, "no rchar in /proc/PID/io")


# --- edits made outside --------------------------------------------------------------------------

# $F is the file, $O another save of its kind with an older mtime, $H the generation kept of $F, and
# $R a file that has a record of its own.
EDITS = {
    "save": 'cat "$O" > "$F"',
    "cp": 'cp "$O" "$F"',
    "cp -p": 'cp -p "$O" "$F"',
    "cp -a of an older generation": 'cp -a "$H" "$F"',
    "cp -p of an older generation": 'cp -p "$H" "$F"',
    "mv": 'mv "$O" "$F"',
    "mv of a recorded file": 'mv "$R" "$F"',
    "rsync --inplace": 'rsync --inplace "$O" "$F"',
    "rsync -a --inplace": 'rsync -a --inplace "$O" "$F"',
    "rsync -a": 'rsync -a "$O" "$F"',
    "touch -d": "touch -d '2020-02-02 02:02:02' \"$F\"",
    "touch": 'touch "$F"',
}
OF_TEXT = {
    "echo >>": 'echo >> "$F"',
    "sed -i": 'sed -i \'s/"step": 2/"step": 20000/\' "$F"',
    "an editor": 'text="$(cat "$F")"; printf "\\n%s\\n" "$text" > "$F"',
}


@dataclass
class _Edit:
    number: int
    name: str
    path: str
    drawn: Trial

    @property
    def command(self) -> str:
        return {**EDITS, **OF_TEXT}[self.name]


def edit_outside(
    numbers: Sequence[int], seed: int, on: Path, step: Callable[[int], None] = lambda _: None
) -> list[Row]:
    """Write files through a mount, edit them without it, and read them through a mount again."""
    names = [name for name in EDITS if not name.startswith("rsync") or _has_rsync()]
    of_text = [*names, *OF_TEXT]
    with tempfile.TemporaryDirectory(prefix="ckptfs-corrupt-", dir=on) as scratch:
        root = Path(os.path.realpath(scratch), "served")
        root.mkdir()
        edits = []
        for number in numbers:
            drawn = _single(seed, number, _EDITED_MAX_BYTES)
            path = f"e{number:06}.{drawn.format}"
            known = of_text if drawn.format == "json" else names
            edits.append(_Edit(number, known[number % len(known)], path, drawn))
        with served(root):
            for edit in edits:
                for version in (1, 2):
                    write_file(root / edit.path, _content(edit.drawn, version, Path(scratch)))
                if "$R" in edit.command:
                    write_file(root / f"{edit.path}.new", edit.drawn.draw("new").randbytes(2000))
        after = [_edit(root, Path(scratch), edit) for edit in edits]
        findings = verify(root)
        with served(root) as mount:
            rows = []
            for edit, right in zip(edits, after, strict=True):
                rows.append(_read_edited(mount, edit, right))
                found = findings.get(edit.path, [])
                rows[-1]["condition"] = "/".join(finding["condition"] for finding in found)
                step(1)
    return rows


def _edit(root: Path, scratch: Path, edit: _Edit) -> str:
    """Returns the digest of what the file holds now."""
    path, other = root / edit.path, scratch / "other"
    draw = random.Random(f"{edit.drawn.seed}/{edit.number}/edit")
    other.write_bytes(_content(edit.drawn, 3, scratch))
    os.utime(other, ns=(10**18, 10**18 + draw.randrange(10**15)))
    record = record_of(root, path)
    history = kept(root, record.lineage) if record else []
    names = {
        "F": str(path),
        "O": str(other),
        "H": str(history[0]) if history else str(other),
        "R": f"{path}.new",
    }
    done = subprocess.run(
        ["bash", "-c", edit.command],
        env={**os.environ, **names},
        capture_output=True,
        text=True,
        timeout=_SHELL_LIMIT_S,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{edit.name}: {done.stderr.strip()}")
    return digest(path.read_bytes())


def _read_edited(mount: Mount, edit: _Edit, right: str) -> Row:
    try:
        what = "as edited" if digest((mount.path / edit.path).read_bytes()) == right else "changed"
    except OSError as error:
        what = errno.errorcode.get(error.errno or 0, str(error))
    return {
        "what": "edit",
        "number": edit.number,
        "edit": edit.name,
        "format": edit.drawn.format,
        "served": what,
        "events": [
            event["event"]
            for event in mount.status()["events"]
            if event["path"] == edit.path and event["event"] not in _TOLD
        ],
    }


def _has_rsync() -> bool:
    return subprocess.run(["which", "rsync"], capture_output=True, check=False).returncode == 0


def held(row: Row) -> bool:
    """Whether an edit was left alone, or a chunk of reads raised no alarm and was digested."""
    if row["what"] == "edit":
        return bool(row["served"] == "as edited" and not row["events"])
    quiet = row["alarms"] == row["events"] == row["not_ok"] == 0
    return bool(quiet and row["digests"] == row["reads"])
