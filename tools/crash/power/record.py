"""Recordings: a workload on a filesystem whose block device is logged."""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe
from ckptfs.modes import Mode

from ...harness import hooked
from ...harness.rig import served, sync
from . import device
from .marking import MARKING
from .oracle import Marks, Oracle, contents_of, marks_of
from .states import Cut, Log, Spec
from .workloads import WORKLOADS, Writer

PLAIN = "plain"  # the workload on the filesystem itself
_LIMIT_S = 120.0
_WRITERS = ("one", "two")
_PULSE_S = 0.03  # how often, on average, others make the disk write
_START_SYNC = 0x80089418  # BTRFS_IOC_START_SYNC


@dataclass(frozen=True)
class Setting:
    """What is recorded. ``broken`` names a commit with a fault of its own (``harness.broken``);
    without ``barriers`` the filesystem never flushes the device."""

    kind: str
    mode: str
    workload: str
    seed: int = 1
    barriers: bool = True
    broken: str = ""

    @property
    def control(self) -> bool:
        """Whether violations have to be seen."""
        return self.mode in (PLAIN, Mode.UNSAFE.value) or bool(self.broken) or not self.barriers

    @property
    def name(self) -> str:
        words = [self.kind, self.mode, self.workload, str(self.seed)]
        words += [] if self.barriers else ["no-barriers"]
        return "-".join([*words, *self.broken.split()])

    @property
    def options(self) -> str:
        """Of the filesystem's mount."""
        return "" if self.barriers else device.KINDS[self.kind].no_barriers


@dataclass
class Recording:
    """A finished one. ``folder`` holds all of it: ``base``, ``log``, marks, contents, setting."""

    folder: Path

    def __post_init__(self) -> None:
        self.setting = Setting(**json.loads((self.folder / "setting").read_text()))
        self.marks = marks_of(self.folder)
        self.oracle = Oracle.of(
            self.marks,
            contents_of(self.folder),
            durable=self.setting.mode != Mode.ATOMIC_NODIRSYNC.value,
        )
        data = (self.folder / "log").read_bytes()
        with open(self.folder / "base", "rb") as base:
            extents = list(device.extents(base.fileno()))
            bytes_ = b"".join(os.pread(base.fileno(), e.end - e.start, e.start) for e in extents)
        self.log = Log(bytes_, extents, list(device.entries(data)), data)
        self._steps = [(mark["at"], mark["name"]) for mark in self.marks if mark["what"] == "step"]
        begun = next(mark["at"] for mark in self.marks if mark["what"] == "begin")
        self.first = next(
            at for at, entry in enumerate(self.log.entries) if entry.position >= begun
        )

    def steps_at(self, at: int) -> set[str]:
        """The steps reached since the last entry before ``at``; if there are none, the last one:
        what this state comes right after."""
        now, before = self.log.position(at), self.log.position(at - 1)
        past = self._steps[: bisect.bisect_right(self._steps, (now, "\uffff"))]
        return {name for begun, name in past if begun > before} or {name for _, name in past[-1:]}


def record(setting: Setting, folder: Path) -> Recording:
    """Run the workload; ``folder``, which is in memory at best, has the recording afterwards."""
    folder.mkdir(parents=True)
    (folder / "setting").write_text(json.dumps(asdict(setting)))
    kind = device.KINDS[setting.kind]
    device.make(kind, folder / "base")
    device.run("cp", "--sparse=always", folder / "base", folder / "image")
    mounted = folder / "mounted"
    mounted.mkdir()
    log = folder / "log"
    marks = Marks(folder, log)
    with device.Recorder(folder / "image", log).recording() as name:
        device.mount(name, mounted, kind.name, setting.options)
        try:
            with _others(mounted, setting.seed):
                _work(setting, folder, mounted, marks)
        finally:
            device.unmount(name, mounted)
    recording = Recording(folder)
    _compare(recording, folder / "image")
    os.unlink(folder / "image")
    return recording


def _compare(recording: Recording, image: Path) -> None:
    """The log played to its end is the device as it was left."""
    log, at = recording.log, 0
    played = log.image(Spec(Cut.PREFIX, len(log.entries)))
    with open(image, "rb") as file:
        for extent in log.shown:
            size = extent.end - extent.start
            if os.pread(file.fileno(), size, extent.start) != played[at : at + size]:
                raise CannotServe(f"{recording.setting.name}: the log lacks writes")
            at += size


def _work(setting: Setting, folder: Path, mounted: Path, marks: Marks) -> None:
    root = mounted / "checkpoints"
    root.mkdir()
    sync(mounted)
    if setting.mode == PLAIN:
        marks.add("begin")
        _run(setting, root, marks, folder)
        return
    argument = json.dumps([str(folder), str(folder / "log"), setting.broken])
    program = hooked.program(MARKING, argument)
    with served(root, "--mode", setting.mode, program=program, limit_s=_LIMIT_S):
        marks.add("begin")
        _run(setting, root, marks, folder)


def _run(setting: Setting, root: Path, marks: Marks, folder: Path) -> None:
    """The workload in two processes at once, so that the disk has more of several files to do."""
    context = multiprocessing.get_context("fork")
    running = [
        context.Process(target=_workload, args=(setting, root, name, marks, folder))
        for name in _WRITERS
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(_LIMIT_S / 2)
        if process.is_alive():
            process.kill()
            process.join()
    if any(process.exitcode != 0 for process in running):
        codes = [process.exitcode for process in running]
        raise CannotServe(f"{setting.name}: the workload's processes ended with {codes}")


def _workload(setting: Setting, root: Path, name: str, marks: Marks, folder: Path) -> None:
    scratch = folder / f"scratch-{name}"
    scratch.mkdir()
    (root / name).mkdir()
    WORKLOADS[setting.workload](Writer(root, name, marks, scratch, setting.seed))


@contextlib.contextmanager
def _others(mounted: Path, seed: int) -> Iterator[None]:
    """What else a machine does to the filesystem, at random moments: the kernel writes out what is
    dirty, and another program has a file of its own fsynced, by which a journal makes durable what
    it knows of all files, while their data is not written yet."""
    fs, ended, draw = OsFs(), threading.Event(), random.Random(seed)
    fd = os.open(mounted / "other", os.O_RDWR | os.O_CREAT)

    def disturb() -> None:
        while not ended.wait(draw.expovariate(1 / _PULSE_S)):
            if draw.random() < 0.5:
                fs.sync_all(fd)
                continue
            os.pwrite(fd, b"x", draw.randrange(4096))
            fs.fsync(fd)
            with contextlib.suppress(OSError):  # btrfs: begin to commit the transaction
                fcntl.ioctl(fd, _START_SYNC, bytes(8))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        os.close(fd)
