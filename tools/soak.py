"""Whether the daemon stays as it is: ``python -m ckptfs.tools.soak DIR --minutes 60``.

Several processes do mixed work on a mount of a new directory in DIR: saves over a name and by
rename, logs, edits, reads, listings, deletions, directories that come and go, and writers that are
killed in a save. A row each so often: what the daemon has of memory and descriptors. The exit code
is 1 where one of them grew in the second half of the run, by more than a tenth and 8 MB (or 20
descriptors).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import click

from .harness.command import end_on_sigterm, own_folder
from .harness.rig import Mount

_NAMES = 40
_WORKERS = 3
_MOST_BYTES = 300_000
_LOG_BYTES = 1 << 20
_GROWS_BYTES, _GROWS_DESCRIPTORS, _GROWS_BY = 8 << 20, 20, 1.1


@dataclass(frozen=True)
class Sample:
    minutes: float
    operations: int
    killed: int
    rss_bytes: int
    descriptors: int

    def __str__(self) -> str:
        return (
            f"{self.minutes:8.1f} {self.operations:11} {self.killed:8} "
            f"{self.rss_bytes / 1e6:9.1f} {self.descriptors:12}"
        )


HEADING = f"{'minutes':>8} {'operations':>11} {'killed':>8} {'RSS MB':>9} {'descriptors':>12}"


class Worker:
    """Does mixed work in the current directory until it is killed."""

    def __init__(self, seed: int, operations: Synchronized[int], killed: Synchronized[int]) -> None:
        self._dice = random.Random(seed)
        self._operations, self._killed = operations, killed
        self._works: list[Callable[[], None]] = [
            self._save,
            self._save,
            self._replace,
            self._replace,
            self._log,
            self._edit,
            self._read,
            self._list,
            self._delete,
            self._folder,
            self._be_killed,
        ]

    def run(self) -> None:
        parent = os.getppid()
        while os.getppid() == parent:
            with contextlib.suppress(OSError):  # names come and go
                self._dice.choice(self._works)()
            with self._operations.get_lock():
                self._operations.value += 1

    def _name(self, suffix: str = ".bin") -> str:
        return f"f{self._dice.randrange(_NAMES)}{suffix}"

    def _bytes(self) -> bytes:
        return self._dice.randbytes(self._dice.randrange(_MOST_BYTES))

    def _save(self) -> None:
        Path(self._name()).write_bytes(self._bytes())

    def _replace(self) -> None:
        draft = Path(f"draft-{os.getpid()}")
        draft.write_bytes(self._bytes())
        draft.replace(self._name())

    def _log(self) -> None:
        with open(self._name(".txt"), "a") as file:
            file.write("step done\n" * 20)
            if file.tell() > _LOG_BYTES:
                os.unlink(file.name)

    def _edit(self) -> None:
        with open(self._name(), "r+b") as file:
            file.seek(self._dice.randrange(_MOST_BYTES))
            file.write(b"edited")

    def _read(self) -> None:
        Path(self._name()).read_bytes()

    def _list(self) -> None:
        for entry in os.scandir("."):
            entry.stat()

    def _delete(self) -> None:
        os.unlink(self._name())

    def _folder(self) -> None:
        folder = Path(f"epoch-{os.getpid()}-{self._dice.randrange(1000)}")
        folder.mkdir()
        (folder / "model.bin").write_bytes(self._bytes())
        shutil.rmtree(folder)

    def _be_killed(self) -> None:
        writer = os.fork()
        if writer == 0:
            try:
                with open(self._name(), "wb") as file:
                    file.write(b"half of it")
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        os.waitpid(writer, 0)
        with self._killed.get_lock():
            self._killed.value += 1


def sample(pid: int, began: float, operations: int, killed: int) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text()
    rss = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    minutes = (time.monotonic() - began) / 60
    return Sample(minutes, operations, killed, int(rss.split()[1]) * 1024, descriptors)


def grew(samples: list[Sample]) -> list[str]:
    """What is more at the end than in the middle."""
    half, last = samples[len(samples) // 2], samples[-1]
    found = []
    if last.rss_bytes > max(half.rss_bytes * _GROWS_BY, half.rss_bytes + _GROWS_BYTES):
        found.append("memory")
    most = max(half.descriptors * _GROWS_BY, half.descriptors + _GROWS_DESCRIPTORS)
    return [*found, "descriptors"] if last.descriptors > most else found


def soak(directory: Path, minutes: float, every_s: float) -> list[Sample]:
    samples: list[Sample] = []
    operations, killed = multiprocessing.Value("q", 0), multiprocessing.Value("q", 0)
    context = multiprocessing.get_context("fork")
    mount = Mount(directory)
    workers: list[multiprocessing.process.BaseProcess] = []
    with contextlib.ExitStack() as ending:
        ending.callback(mount.take_away)
        mount.start()
        pid = int(mount.status()["pid"])
        began = time.monotonic()

        def work(seed: int) -> None:
            os.chdir(directory)
            Worker(seed, operations, killed).run()

        for seed in range(_WORKERS):
            workers.append(context.Process(target=work, args=(seed,), daemon=True))
            workers[-1].start()
            ending.callback(workers[-1].kill)
        while time.monotonic() - began < minutes * 60:
            time.sleep(every_s)
            samples.append(sample(pid, began, operations.value, killed.value))
            click.echo(samples[-1])
    return samples


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("--minutes", type=float, default=60.0, show_default=True)
@click.option("--every", "every_s", type=float, default=60.0, show_default=True, help="Seconds.")
def main(directory: str, minutes: float, every_s: float) -> None:
    """Watch memory and descriptors of a daemon under mixed work, in a new folder of DIRECTORY."""
    end_on_sigterm()
    with own_folder(directory, "soak") as folder:
        click.echo(HEADING)
        samples = soak(folder / "served", minutes, every_s)
    found = grew(samples)
    for what in found:
        click.echo(f"{what} grew in the second half", err=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
