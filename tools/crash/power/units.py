"""Units of the study of power cuts: one recording, and every crash state that is made of it.

States are told apart by a hash of the image; one is looked at for every moment at which the power
could have gone and left it.
"""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from ckptfs.modes import Mode

from ...harness.broken import BROKEN
from ...harness.study import Row
from . import device
from .check import NO_FILESYSTEM, judging, severity
from .record import PLAIN, Recording, Setting, record
from .states import Cut, Spec, identity, in_order, out_of_order

ATOMIC = (Mode.ATOMIC_DIRSYNC.value, Mode.ATOMIC_NODIRSYNC.value)
_SHARE_OUT_OF_ORDER = 0.4
_DRAWS_PER_STATE = 20  # before we take it that there are no more to be had
_THROUGH_DAEMON = 100  # every so many states are recovered by `ckptfs mount`
_UNIT_STATES = 1000
_EXAMPLES = 5


# --- what is studied -----------------------------------------------------------------------------


def settings(kind: str, seed: int, workloads: Sequence[str]) -> Iterator[Setting]:
    """Of the commits that have to be right, without end."""
    for turn in itertools.count(seed):
        for workload, mode in itertools.product(workloads, ATOMIC):
            yield Setting(kind, mode, workload, turn)


def controls(kind: str, seed: int, workloads: Sequence[str]) -> list[Setting]:
    """Where violations have to be seen."""
    found = [
        Setting(kind, mode, workload, seed)
        for mode in (PLAIN, Mode.UNSAFE.value)
        for workload in workloads
    ]
    pair = [workload for workload in ("numbered", "append") if workload in workloads]
    for workload in pair or workloads[:1]:
        found += [Setting(kind, ATOMIC[0], workload, seed, broken=name) for name in BROKEN]
        if device.KINDS[kind].no_barriers:
            found.append(Setting(kind, ATOMIC[0], workload, seed, barriers=False))
    return found


# --- one unit ------------------------------------------------------------------------------------


def states(recording: Recording, most: int | None, seed: int) -> dict[str, list[Spec]]:
    """Images by their hash, each with the ways in which it comes about: every prefix, and as many
    out of order as make up a fair share, or fill up to ``most``. With ``most`` a sample of both."""
    log, draw = recording.log, random.Random(seed)
    ordered = in_order(log, recording.first)
    if most is not None and len(ordered) > most * (1 - _SHARE_OUT_OF_ORDER):
        ordered = sorted(draw.sample(ordered, int(most * (1 - _SHARE_OUT_OF_ORDER))))
    found: dict[str, list[Spec]] = defaultdict(list)
    for spec in ordered:
        found[identity(log.image(spec))].append(spec)
    share = _SHARE_OUT_OF_ORDER / (1 - _SHARE_OUT_OF_ORDER)
    wanted = max(int(len(found) * (1 + share)), most or _UNIT_STATES)
    mixed = itertools.islice(out_of_order(log, moments(recording), seed), _DRAWS_PER_STATE * wanted)
    while len(found) < wanted and (some := list(itertools.islice(mixed, wanted - len(found)))):
        for spec in sorted(some, key=_moment):
            found[identity(log.image(spec))].append(spec)
    return found


def _moment(spec: Spec) -> int:
    return spec.at


def moments(recording: Recording) -> list[list[int]]:
    """The entries ahead of which the power may go, by the step that was reached last."""
    groups: dict[str, list[int]] = defaultdict(list)
    for at in range(recording.first + 1, len(recording.log.entries) + 1):
        for step in recording.steps_at(at) or {""}:
            groups[step].append(at)
    return list(groups.values())


def unit(setting: Setting, on: str, most: int | None, keep: str) -> Row:
    """Record and look at every state. What is wrong in a state is kept in ``keep``."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ckptfs-crash-", dir=on) as name:
        recording = record(setting, Path(name) / "recording")
        found = states(recording, most, setting.seed)
        row = _looked_at(recording, found, Path(name))
        if row["wrong"]:
            _keep(recording, row["wrong"], Path(keep) / setting.name)
    row["wrong"] = dict(itertools.islice(row["wrong"].items(), _EXAMPLES))
    return {"what": "unit", **asdict(setting), **row, "seconds": time.monotonic() - began}


def _looked_at(recording: Recording, found: dict[str, list[Spec]], folder: Path) -> Row:
    cuts: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    violations: Counter[str] = Counter()
    worst: Counter[str] = Counter()
    unmounted: list[str] = []
    wrong: dict[str, list[str]] = {}
    in_time = sorted(found.items(), key=lambda item: item[1][0].at)
    with judging(recording, folder) as judge:
        for number, (image, specs) in enumerate(in_time, 1):
            violated = judge.look(specs, daemon=number % _THROUGH_DAEMON == 0)
            if any(v.what.startswith(NO_FILESYSTEM) for v in violated) and _is_torn(specs):
                unmounted.append(image)
                continue
            cuts[min(specs, key=lambda spec: list(Cut).index(spec.cut)).cut.value] += 1
            steps.update({step for spec in specs for step in recording.steps_at(spec.at)})
            violations.update({v.what for v in violated})
            if violated:
                worst[min((v.what for v in violated), key=severity)] += 1
                wrong[name_of(specs)] = sorted(map(str, violated))
    return {
        "entries": len(recording.log.entries) - recording.first,
        "hashes": sorted(found.keys() - set(unmounted)),
        "unmounted": len(unmounted),
        "cuts": dict(cuts),
        "steps": dict(steps),
        "violations": dict(violations),
        "worst": dict(worst),
        "wrong": wrong,
    }


def name_of(specs: Sequence[Spec]) -> str:
    """Of a state: one way in which it comes about for each moment at which it does."""
    return ",".join(map(str, {spec.at: spec for spec in specs}.values()))


def specs_of(name: str) -> list[Spec]:
    """The other way round. Raises ValueError."""
    return [Spec.parse(word) for word in name.split(",")]


def _is_torn(specs: Sequence[Spec]) -> bool:
    """A filesystem need not survive sectors of its own blocks that are torn apart."""
    return all(spec.cut is Cut.TORN for spec in specs)


def _keep(recording: Recording, wrong: dict[str, list[str]], folder: Path) -> None:
    """All that is needed to look at these states again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = [recording.folder / name for name in ("setting", "base", "log", "marks", "contents")]
    device.run("cp", "--recursive", "--sparse=always", *parts, folder)
    lines = (f"{spec}  {'; '.join(what)}\n" for spec, what in wrong.items())
    (folder / "states").write_text("".join(lines))


def setting_of(row: Row) -> Setting:
    return Setting(**{field.name: row[field.name] for field in fields(Setting)})
