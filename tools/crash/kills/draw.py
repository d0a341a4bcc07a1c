"""What is killed, when and during which save: every trial of a study. Pure.

Ways to die take turns, so that kills fall evenly on phases and steps; the rest is drawn.
"""

from __future__ import annotations

import enum
import math
import random
import signal
from dataclasses import dataclass

from ckptfs.modes import Mode
from ckptfs.versions.life import Step

WRITER, DAEMON, PAPER = "writer", "daemon", "paper"
BATCH = "batch"  # trials that share a directory, looked at together
PLAIN = "plain"  # no mount at all
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)
PAPER_MODES = tuple(mode.value for mode in Mode)
PAPER_TRIALS = 430  # of each mode, as in arXiv 2511.18323


class Phase(enum.IntEnum):
    """How far a writer is with a file, in order."""

    BEFORE_OPEN = 0
    OPENED = 1
    IN_WRITE = 2
    BETWEEN_WRITES = 3
    WRITTEN = 4
    IN_CALL = 5  # of a library that opens, writes and closes
    CLOSING = 6
    CLOSED = 7

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class How(str, enum.Enum):
    PHASE = "in a phase"
    MOMENT = "at a random moment"
    STEP = "at a step"
    FORCED = "umount -f"
    LAZY = "umount -l"


class Work(str, enum.Enum):
    """The ways in which checkpoints are written."""

    OVERWRITE = "torch.save over one file"
    NUMBERED = "numbered files, the oldest removed"
    MANY = "many small files"
    APPEND = "append to a long file"
    SHARDS = "shards, then .metadata"
    BY_PATH = "torch.save by path"
    SAFETENSORS = "safetensors.save_file"


TOLD = (Work.OVERWRITE, Work.NUMBERED, Work.MANY, Work.APPEND, Work.SHARDS)  # phase by phase
LIBRARY = (Work.BY_PATH, Work.SAFETENSORS)
_PHASES = tuple(phase for phase in Phase if phase is not Phase.IN_CALL)
_GROWS = (Step.INTENDED, Step.ADDED, Step.EXTENDED)
_REPLACES = (Step.SEALED, Step.KEPT, Step.PUBLISHED, Step.SETTLED)
_WRITER_TURNS = (*((How.PHASE, phase) for phase in _PHASES * 2), *[(How.MOMENT, None)] * 6)
_DAEMON_TURNS = (
    *((How.STEP, step) for step in Step),
    *[(How.MOMENT, None)] * 7,
    *[(How.FORCED, None)] * 2,
    (How.LAZY, None),
)


@dataclass(frozen=True)
class Trial:
    what: str
    number: int
    seed: int
    subject: str  # a write mode, or PLAIN
    work: Work
    versions: int  # saved before the one that dies
    size_bytes: int
    how: How
    phase: Phase | None
    step: Step | None
    signal: int
    threads: bool  # the writer has others
    place: float  # which of the files, or which n-th time of the step: a share of them
    within: float  # how much of a file is written, or of a time is over: a share
    hooked: bool  # the daemon tells its steps; else it is the plain command

    @property
    def folder(self) -> str:
        return f"{self.what}-{self.number}"


def trial(what: str, number: int, seed: int, control: str = "") -> Trial:
    """The same for the same arguments, whatever else a study has. ``control`` is a subject that
    is to fail, in place of the default write mode."""
    draw = random.Random(f"kills {what} {seed} {number}")
    how, at = _turn(what, number, draw)
    subject = PAPER_MODES[number % len(PAPER_MODES)] if what == PAPER else Mode.ATOMIC_DIRSYNC.value
    subject = control or subject
    if how is How.STEP and subject != Mode.ATOMIC_DIRSYNC.value:
        how, at = How.MOMENT, None  # nothing is committed there
    work = Work.OVERWRITE if what == PAPER else _work(how, at, draw)
    append = work is Work.APPEND
    return Trial(
        what=what,
        number=number,
        seed=seed,
        subject=subject,
        work=work,
        versions=1 if what == PAPER else draw.randint(1 if append else 0, 2),
        size_bytes=draw.randint(3 << 19, 5 << 19) if append else _log_uniform(draw),
        how=how,
        phase=at if isinstance(at, Phase) else None,
        step=at if isinstance(at, Step) else None,
        signal=draw.choice(SIGNALS),
        threads=draw.random() < 0.3,
        place=draw.random(),
        within=draw.random(),
        hooked=how is not How.MOMENT or draw.random() > 0.3,
    )


def _turn(what: str, number: int, draw: random.Random) -> tuple[How, Phase | Step | None]:
    if what == DAEMON:
        return _DAEMON_TURNS[number % len(_DAEMON_TURNS)]
    if what == PAPER:
        return draw.choice(_WRITER_TURNS)
    return _WRITER_TURNS[number % len(_WRITER_TURNS)]


def _work(how: How, at: Phase | Step | None, draw: random.Random) -> Work:
    if how is How.PHASE:
        return draw.choice(TOLD)
    if at in _GROWS or (at is Step.RECORDED and draw.random() < 0.5):
        return Work.APPEND
    if at in _REPLACES:
        return draw.choice([work for work in Work if work is not Work.APPEND])
    return draw.choice(tuple(Work))


def _log_uniform(draw: random.Random) -> int:
    return int(math.exp(draw.uniform(math.log(16 << 10), math.log(300 << 10))))
