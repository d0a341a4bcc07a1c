"""What must raise no alarm: reads of untouched files, and edits made outside of a mount."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptfs.tools.corrupt_batch import Row, digest, served, verify, write_file
from ckptfs.tools.corrupt_content import build
from ckptfs.tools.corrupt_damage import kept, record_of
from ckptfs.tools.corrupt_draw import Trial, trial
from ckptfs.tools.rig import Mount

_FILES = 240
_FILES_MAX_BYTES = 256 << 10
_EDITED_MAX_BYTES = 1 << 20
_HARMLESS = {"committed"}
_SHELL_LIMIT_S = 60.0


def _single(seed: int, number: int, max_bytes: int) -> Trial:
    """A trial whose checkpoint is one file; its damage is not done."""
    while (drawn := trial(seed, number, max_bytes)).format == "dcp":
        seed += 1_000_003
    return drawn


def _content(drawn: Trial, version: int, scratch: Path) -> bytes:
    return build(drawn, version, scratch).files[drawn.target]


# --- untouched files -----------------------------------------------------------------------------


def read_untouched(
    count: int, chunk: int, seed: int, on: Path, step: Callable[[int], None] = lambda _: None
) -> Iterator[Row]:
    """Open and read untouched files through a mount ``count`` times; a row for each ``chunk``.

    Before each read the file's change time is moved below the mount (chmod to the same mode), so
    that what the daemon remembers of it no longer holds and it digests the file again. ``rchar`` of
    the daemon, the bytes it has read by system calls, proves that it did: passthrough reads of the
    programs do not count there.
    """
    with tempfile.TemporaryDirectory(prefix="ckptfs-corrupt-", dir=on) as name:
        root = Path(os.path.realpath(name), "served")
        root.mkdir()
        draws = [_single(seed, number, _FILES_MAX_BYTES) for number in range(_FILES)]
        names = [f"{number:04}.{drawn.format}" for number, drawn in enumerate(draws)]
        with served(root) as mount:
            sums, sizes = [], []
            for path, drawn in zip(names, draws, strict=True):
                data = _content(drawn, 1, Path(name))
                write_file(root / path, data)
                sums.append(digest(data))
                sizes.append(len(data))
        for start in range(0, count, chunk):
            with served(root) as mount:
                todo = [number % _FILES for number in range(start, min(count, start + chunk))]
                row = _read_chunk(mount, names, sums, todo, step)
            row["expected_bytes"] = sum(sizes[number] for number in todo)
            conditions = [found[0]["condition"] for found in verify(root).values()]
            row["not_ok"] = sum(condition != "ok" for condition in conditions)
            yield row


def _read_chunk(
    mount: Mount,
    names: Sequence[str],
    sums: Sequence[str],
    todo: Sequence[int],
    step: Callable[[int], None],
) -> Row:
    status = mount.status()
    below = os.open(f"/proc/{status['pid']}/fd/{status['root_fd']}", os.O_RDONLY | os.O_DIRECTORY)
    alarms = 0
    before = _bytes_read(status["pid"])
    try:
        for number in todo:
            mode = stat.S_IMODE(os.stat(names[number], dir_fd=below).st_mode)
            os.chmod(names[number], mode, dir_fd=below)
            try:
                good = digest((mount.path / names[number]).read_bytes()) == sums[number]
            except OSError:
                good = False
            alarms += not good
            step(1)
    finally:
        os.close(below)
    counts = mount.status()["counts"]
    return {
        "what": "reads",
        "reads": len(todo),
        "alarms": alarms,
        "events": sum(count for event, count in counts.items() if event not in _HARMLESS),
        "digested_bytes": _bytes_read(status["pid"]) - before,
    }


def _bytes_read(pid: int) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise OSError(errno.ENODATA, "no rchar in /proc/PID/io")


# --- edits made outside --------------------------------------------------------------------------

# $F is the file, $O another with other bytes and an older mtime, $H the generation kept of $F,
# $R a file that has a record of its own.
EDITS = {
    "echo >>": 'echo more >> "$F"',
    "rewrite": 'head -c 3000 /dev/urandom > "$F"',
    "rewrite, same size": 'head -c "$(stat -c %s "$F")" /dev/urandom > "$F"',
    "dd in the middle": 'dd if=/dev/urandom of="$F" bs=1 count=16 seek=50 conv=notrunc status=none',
    "sed -i": "LC_ALL=C sed -i '1s/^/edited /' \"$F\"",
    "truncate": 'truncate -s -7 "$F"',
    "truncate to nothing": ': > "$F"',
    "truncate, longer": 'truncate -s +500 "$F"',
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


@dataclass
class _Edit:
    number: int
    name: str
    path: str
    drawn: Trial


def edit_outside(
    numbers: Sequence[int], seed: int, on: Path, step: Callable[[int], None] = lambda _: None
) -> list[Row]:
    """Write files through a mount, edit them without it, and read them through a mount again."""
    names = [name for name in EDITS if not name.startswith("rsync") or _has_rsync()]
    with tempfile.TemporaryDirectory(prefix="ckptfs-corrupt-", dir=on) as scratch:
        root = Path(os.path.realpath(scratch), "served")
        root.mkdir()
        edits = []
        for number in numbers:
            drawn = _single(seed, number, _EDITED_MAX_BYTES)
            path = f"e{number:06}.{drawn.format}"
            edits.append(_Edit(number, names[number % len(names)], path, drawn))
        with served(root):
            for edit in edits:
                for version in (1, 2):
                    write_file(root / edit.path, _content(edit.drawn, version, Path(scratch)))
                if "$R" in EDITS[edit.name]:
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
    size = path.stat().st_size
    other.write_bytes(draw.randbytes(size if draw.random() < 0.5 else draw.randint(1, 50_000)))
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
        ["bash", "-c", EDITS[edit.name]],
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
            if event["path"] == edit.path and event["event"] not in _HARMLESS
        ],
    }


def _has_rsync() -> bool:
    return subprocess.run(["which", "rsync"], capture_output=True, check=False).returncode == 0


def held(row: Row) -> bool:
    """Whether an edit was left alone, or a chunk of reads raised no alarm and was digested."""
    if row["what"] == "edit":
        return row["served"] == "as edited" and not row["events"]
    quiet = row["alarms"] == row["events"] == row["not_ok"] == 0
    return quiet and row["digested_bytes"] >= row["expected_bytes"]
