"""Trials, many to a mount: write through it, damage below, verify, mount anew, read.

Each trial has a directory of its own. Nothing is expected of the store here: a row says what was
served, by comparison with bytes that no mount has handled, and what was said about it. Which of
that falls short is for ``shortcomings`` to say.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from ..harness import rig
from ..harness.rig import Mount, served
from ..harness.study import Row
from .content import build, shapes
from .damage import DONOR, Ranges, Undamageable, archives, damage, kept, record_of, write_into
from .draw import NEED_OLDER, OUTSIDE, WHILE_SERVED, Kind, Trial
from .worker import Loaders

_FILLER = "user.filler"
_FILLER_BYTES = 3900  # of the about 4,040 that ext4 has for the xattrs of a file


@dataclass
class _State:
    """What is known of one trial while its batch runs."""

    trial: Trial
    sums: dict[str, list[str]] = field(default_factory=dict)  # digests of each file's versions
    values: str = ""  # fingerprint of the newest version
    older: bytes = b""
    lineage: str = ""
    ranges: Ranges = field(default_factory=list)
    row: Row = field(default_factory=dict)


def run(
    trials: Sequence[Trial],
    on: Path,
    loaders: Loaders,
    step: Callable[[int], None] = lambda _: None,
    *,
    control: bool = False,
) -> list[Row]:
    """Run the trials in a directory below ``on``, which is gone afterwards. One row each."""
    with tempfile.TemporaryDirectory(prefix="ckptfs-corrupt-", dir=on) as name:
        root = Path(os.path.realpath(name), "served")
        root.mkdir()
        states = [_State(trial) for trial in trials]
        _prepare(root, states)
        with served(root, "--keep", "1"):
            for state in states:
                _write(root, state, Path(name))
        for state in states:
            _damage(root, state)
        _load(root, states, loaders)
        findings = verify(root)
        with served(root, "--keep", "1", *(["--verify", "off"] if control else [])) as mount:
            below = mount.below()
            for state in states:
                _write_into(mount.path, below, state)
                _read(mount, state)
                _judge(state, findings)
                step(1)
    return [state.row for state in states]


def _prepare(root: Path, states: Sequence[_State]) -> None:
    for state in states:
        folder = root / state.trial.directory
        folder.mkdir()
        if state.trial.kind is Kind.SIDECAR:  # every version inherits it and has no room left
            path = root / state.trial.path
            path.write_bytes(b"before ckptfs\n")
            with contextlib.suppress(OSError):
                os.setxattr(path, _FILLER, bytes(_FILLER_BYTES))


def _write(root: Path, state: _State, scratch: Path) -> None:
    trial = state.trial
    for version in range(1, trial.versions + 1):
        content = build(trial, version, scratch)
        for name, data in content.files.items():
            write_file(root / trial.directory / name, data)
            state.sums.setdefault(name, []).append(digest(data))
        state.values = content.values
        if trial.kind in NEED_OLDER and version < trial.versions:
            state.older = content.files[trial.target]
    if trial.kind is Kind.RECORD_FOREIGN:
        draw = trial.draw("donor")
        write_file(root / trial.directory / DONOR, draw.randbytes(draw.choice([100, 5000])))


def write_file(path: Path, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def digest(data: bytes) -> str:
    return blake3(data, max_threads=blake3.AUTO).hexdigest(length=16)


def _damage(root: Path, state: _State) -> None:
    trial = state.trial
    path = root / trial.path
    record = record_of(root, path)
    state.lineage = record.lineage if record else ""
    history = kept(root, state.lineage) if state.lineage else []
    state.row = {
        "what": "trial",
        "number": trial.number,
        "kind": trial.kind.name,
        "format": trial.format,
        "file": trial.target,
        "versions": trial.versions,
        "size": path.stat().st_size,
        "kept": sum(record_of(root, kept_path) is not None for kept_path in history),
    }
    if trial.kind in WHILE_SERVED:
        return
    newer = path.read_bytes()
    try:
        state.ranges = damage(root, trial, state.older)
    except Undamageable as why:
        state.row["skipped"] = str(why)
        return
    if trial.kind is Kind.COPIED:
        whole = archives(newer) | archives(state.older)
        state.row["whole_archives"] = archives(path.read_bytes()) <= whole
    _damaged(state, path)


def _damaged(state: _State, path: Path) -> None:
    """Make sure that it is."""
    trial = state.trial
    state.row["ranges"] = state.ranges
    changed = digest(path.read_bytes()) != state.sums[trial.target][-1]
    if changed is not trial.kind.changes_bytes:
        raise RuntimeError(f"trial {trial.number}: the damage did not do what it is named after")


def _write_into(mounted: Path, below: Path, state: _State) -> None:
    """Below the mount, or through it, where the close has to refuse it."""
    trial, draw = state.trial, state.trial.draw("damage")
    if trial.kind is Kind.LIVE:
        state.ranges = write_into(below / trial.path, draw)
        _damaged(state, below / trial.path)
    elif trial.kind is Kind.THROUGH:
        state.row["refused"] = False
        try:
            state.ranges = write_into(mounted / trial.path, draw)
        except OSError as error:
            state.row["refused"] = error.errno == errno.EBADMSG


def _load(root: Path, states: Sequence[_State], loaders: Loaders) -> None:
    """What the loaders make of the damaged bytes by themselves, without any mount."""
    for state in states:
        if "skipped" in state.row or not state.trial.kind.changes_bytes:
            continue
        if state.trial.kind in WHILE_SERVED:
            continue
        folder = root / state.trial.directory
        path = folder if state.trial.format == "dcp" else folder / state.trial.target
        found = loaders.try_all(state.trial.format, path, shapes(state.trial), state.values)
        state.row["loaders"] = found


# --- what ckptfs says ----------------------------------------------------------------------------


def verify(root: Path) -> Mapping[str, list[Row]]:
    """The findings of ``ckptfs verify``, by path. A path can have several."""
    findings: dict[str, list[Row]] = {}
    for finding in rig.verify(root)[1]:
        findings.setdefault(finding["path"], []).append(finding)
    return findings


def _read(mount: Mount, state: _State) -> None:
    trial = state.trial
    if "skipped" in state.row:
        return
    served: dict[str, str] = {}
    for name, sums in state.sums.items():
        served[name] = _served(mount.path / trial.directory / name, sums)
    state.row["served"] = served.pop(trial.target)
    others = [f"{name} is {what}" for name, what in served.items() if what != "newest"]
    state.row["neighbours"] = others
    state.row["events"] = [
        event["event"]
        for event in mount.status()["events"]
        if event["path"] == trial.path and event["event"] != "committed"
    ]
    if trial.kind is Kind.STALE and state.row["served"] == "older" and not state.row["events"]:
        state.row["served"] = "wrong"  # no rollback: these are the stale bytes themselves


def _served(path: Path, sums: Sequence[str]) -> str:
    """``newest``, ``older``, ``EIO`` or another errno, or ``wrong``."""
    try:
        found = digest(path.read_bytes())
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    if found == sums[-1]:
        return "newest"
    return "older" if found in sums else "wrong"


def _judge(state: _State, findings: Mapping[str, list[Row]]) -> None:
    trial, row = state.trial, state.row
    if "skipped" in row:
        return
    own = findings.get(trial.path, [])
    history = f".ckptfs/history/{state.lineage}/"
    of_history = [
        finding
        for path, found in findings.items()
        if state.lineage and path.startswith(history)
        for finding in found
    ]
    row["condition"] = "/".join(finding["condition"] for finding in own) or "not looked at"
    row["history"] = sorted({finding["condition"] for finding in of_history} - {"ok"})
    told = [_pair(found) for finding in own for found in finding.get("ranges") or []]
    if told and trial.kind.changes_bytes:
        row["told"] = told
        row["located"] = all(
            any(start < to and end > at for at, to in told) for start, end in state.ranges
        )
    # that a save was noticed is no alarm
    quiet = {"modified outside", "modified"} if trial.kind in OUTSIDE else set()
    row["by_open"] = row["served"] == "EIO" or bool(set(row["events"]) - quiet)
    if trial.kind.changes_bytes:
        row["by_open"] = row["by_open"] or row["served"] == "older"
    not_ok = any(finding["condition"] not in quiet | {"ok"} for finding in own)
    row["by_verify"] = not_ok or bool(row["history"])
    for name in state.sums.keys() - {trial.target}:
        for finding in findings.get(f"{trial.directory}/{name}", []):
            if finding["condition"] != "ok":
                row["neighbours"].append(f"{name} is called {finding['condition']}")


def _pair(found: Any) -> list[int]:
    """A range of bytes, from and up to, as JSON has it."""
    start, end = found.values() if isinstance(found, dict) else found
    return [start, end]


def shortcomings(row: Row, *, control: bool = False) -> list[str]:
    """What a trial promised and did not hold. The control, in which opens are not checked, has
    to hand damaged bytes out: there it is short where it did not."""
    if "skipped" in row:
        return []
    kind = Kind[row["kind"]]
    if control:
        seen = row["served"] == "wrong" or not kind.changes_bytes or kind is Kind.THROUGH
        return [] if seen else ["the damage was not seen"]
    short = []
    if row.get("refused") is False:
        short.append("the write was not refused")
    if is_unproven(row):
        return short
    if row["served"] == "wrong":
        short.append("wrong bytes served")
    elif row["served"] not in ("newest", "older", "EIO"):
        short.append(f"open failed: {row['served']}")
    if not row["by_open"] and not row["by_verify"] and can_be_noticed(row):
        short.append("not noticed")
    if had_good_generation(row) and row["served"] not in ("newest", "older"):
        short.append("a good generation was there and was not served")
    if row["neighbours"]:
        short.append(f"other files: {', '.join(row['neighbours'])}")
    return short


def is_unproven(row: Row) -> bool:
    """Served, since nothing tells it from a save: of what moves the times, in a format without
    checksums, or of several archives, each of them one of either version."""
    if Kind[row["kind"]] not in OUTSIDE or row["served"] != "wrong":
        return False
    return row.get("whole_archives", False) or not row["file"].endswith((".pt", ".npz", ".distcp"))


def can_be_noticed(row: Row) -> bool:
    """A file without a record and without history is one that was there before ckptfs."""
    if is_unproven(row):
        return False
    return Kind[row["kind"]] is not Kind.RECORD_MISSING or row["kept"] > 0


def had_good_generation(row: Row) -> bool:
    kind = Kind[row["kind"]]
    if kind is Kind.THROUGH:
        return True
    if kind.changes_bytes:
        return kind is not Kind.BOTH and row["kept"] > 0 and not is_unproven(row)
    # Under a damaged record alone the bytes are sound, but nothing proves it.
    return row["kept"] > 0 or kind in (Kind.HISTORY, Kind.RECORD_MISSING)
