"""Rows of the benchmark over single files: saves, loads, writes, what the daemon needs for them.

A row takes the run it belongs to, measures by turns, clears up after itself and adds its results.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ..harness.rig import Mount, Subject, timed
from ..harness.stats import Estimate, estimate, ratio, size_text
from .by_hand import finish_by_hand, save_by_hand, state_of, synced, torch_or_fail
from .measure import PLAIN, Bench, only

_WRITE_BYTES = 64 << 10
# arXiv 2511.18323: overhead over unsafe writes, in percent
_PAPER = {"atomic_nodirsync": (56.5, 108.4), "atomic_dirsync": (84.2, 570.6)}


def saves(bench: Bench, rows: set[str]) -> None:
    """Rows 1 and 2: torch.save, durable on return."""
    torch, state = torch_or_fail(), state_of(bench.sizes.save_bytes)

    def save_and_sync(path: Path) -> None:
        torch.save(state, str(path))
        synced(path)

    def numbered(name: str, save: Callable[[Path], object]) -> Subject:
        """A ring of numbered checkpoints."""
        folder, written = bench.folder / name, deque[Path]()
        folder.mkdir(exist_ok=True)
        number = itertools.count()

        def subject() -> float:
            written.append(folder / f"step-{next(number)}.pt")
            seconds = timed(lambda: save(written[-1]))()
            if len(written) > bench.sizes.ring:
                written.popleft().unlink()
            return seconds

        return subject

    subjects = {"mount": numbered("served", lambda path: torch.save(state, str(path)))}
    if "1" in rows:
        subjects[PLAIN] = numbered("plain", save_and_sync)
    if "2" in rows:
        subjects["by hand"] = numbered("by hand", lambda path: save_by_hand(state, path))
    samples = bench.compare(subjects)
    for path in bench.folder.glob("*/step-*.pt"):
        path.unlink()
    size = size_text(bench.sizes.save_bytes)
    if "1" in rows:
        value = ratio(samples["mount"], samples[PLAIN])
        what = f"torch.save {size} / plain torch.save + fsync"
        bench.add("1", what, value, "x", target=1.0, samples=samples)
    if "2" in rows:
        value = ratio(samples["mount"], samples["by hand"])
        what = f"torch.save {size} / tmp + fsync + sha256 + xattr + rename + dir fsync"
        bench.add("2", what, value, "x", target=0.5, samples=only(samples, "mount", "by hand"))


def loads(bench: Bench, _rows: set[str]) -> None:
    """Row 3: torch.load of a cached file, verified before, and verified by this very open."""
    torch, size = torch_or_fail(), bench.sizes.save_bytes
    ours, plain = bench.served / "load.pt", bench.plain / "load.pt"
    state = state_of(size)
    for path in (ours, plain):
        torch.save(state, str(path))
    del state
    below = Mount(bench.served).below() / ours.name

    def unverified() -> None:
        below.chmod(0o600)  # moves the ctime, which makes the next open verify again
        torch.load(str(ours))

    samples = bench.compare(
        {
            "mount": timed(lambda: torch.load(str(ours))),
            PLAIN: timed(lambda: torch.load(str(plain))),
            "first": timed(unverified),
        }
    )
    ours.unlink()
    plain.unlink()
    value = ratio(samples["mount"], samples[PLAIN])
    what = f"torch.load {size_text(size)}, warm, verified before / plain"
    bench.add("3", what, value, "x", target=1.05, samples=samples)
    pairs = zip(samples["first"], samples[PLAIN], strict=True)
    speed = estimate([size / max(first - plain, 1e-9) / 1e9 for first, plain in pairs])
    what = "first verified load of a cached file: size / extra time"
    bench.add("3", what, speed, "GB/s", target=4.0, at_least=True)


def small_writes(bench: Bench, _rows: set[str]) -> None:
    """Row 4: many writes, without the close."""
    data = random.Random(4).randbytes(_WRITE_BYTES)

    def subject(path: Path) -> Subject:
        def run() -> float:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                return timed(lambda: [os.write(fd, data) for _ in range(bench.sizes.writes)])()
            finally:
                os.close(fd)
                path.unlink()

        return run

    pair = {"mount": subject(bench.served / "w.bin"), PLAIN: subject(bench.plain / "w.bin")}
    samples = bench.compare(pair)
    what = f"{bench.sizes.writes} writes of 64 KiB / natively"
    bench.add("4", what, ratio(samples["mount"], samples[PLAIN]), "x", target=1.2, samples=samples)


def memory(bench: Bench, _rows: set[str]) -> None:
    """Row 6: peak memory of the daemon, which is all the processes that there are."""
    mount = Mount(bench.served)

    def peak() -> Estimate:
        mebibytes = mount.status()["memory_peak_bytes"] / 1e6
        return Estimate(mebibytes, mebibytes, mebibytes)

    bench.add("6", "peak memory after the rows above", peak(), "MB", target=150.0)
    data, left = random.Random(6).randbytes(8 << 20), bench.sizes.memory_bytes
    path = bench.served / "large.bin"
    with path.open("wb", buffering=0) as file:
        while left > 0:
            left -= file.write(data[:left])
    path.unlink()
    bench.step()
    what = f"peak memory after a file of {size_text(bench.sizes.memory_bytes)}"
    bench.add("6", what, peak(), "MB", target=150.0)


def small_files(bench: Bench, _rows: set[str]) -> None:
    """Row 7: files of 1 kB, a batch a round; each is durable when its close returns."""
    data, count = random.Random(7).randbytes(1000), bench.sizes.small_files
    (bench.served / "small").mkdir()

    def ours(number: int) -> None:
        fd = os.open(bench.served / "small" / str(number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, data)
        os.close(fd)

    def theirs(number: int) -> None:
        path = bench.plain / str(number)
        fd = os.open(path.with_suffix(".tmp"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, data)
        finish_by_hand(fd, path, data)

    def batch(one: Callable[[int], None], folder: Path) -> Subject:
        def work() -> None:
            for number in range(count):
                one(number)

        def clear() -> None:
            for number in range(count):
                (folder / str(number)).unlink()

        return timed(work, clear)

    samples = bench.compare(
        {"mount": batch(ours, bench.served / "small"), PLAIN: batch(theirs, bench.plain)}
    )
    value = ratio(samples["mount"], samples[PLAIN])
    alone = estimate(samples["mount"]).median / count * 1e3
    what = f"create + write 1 kB + close / the same by hand ({alone:.2f} ms a file)"
    bench.add("7", what, value, "x", target=1.5, samples=samples)


def paper(bench: Bench, _rows: set[str]) -> None:
    """Overhead of the atomic modes over unsafe, all three through mounts."""
    torch, modes = torch_or_fail(), ("unsafe", *_PAPER)
    with contextlib.ExitStack() as ending:
        for mode in modes:
            ending.enter_context(Mount(bench.folder / mode, "--mode", mode))
        for size in bench.sizes.paper_bytes:
            state = state_of(size)

            def subject(mode: str, state: object = state) -> Subject:
                path = bench.folder / mode / "save.pt"
                return timed(lambda: torch.save(state, str(path)), path.unlink)

            samples = bench.compare({mode: subject(mode) for mode in modes})
            for mode, (low, high) in _PAPER.items():
                value = ratio(samples[mode], samples["unsafe"]).map(100, -100)
                what = f"{mode} over unsafe, torch.save {size / 1e6:g} MB"
                beside = f"paper +{low} to +{high}%"
                both = only(samples, "unsafe", mode)
                bench.add("paper", what, value, "%", beside=beside, samples=both)
