"""The rows of the benchmark: each compares the mount with the plain directory.

A row takes the run it belongs to, measures by turns, clears up after itself and adds its results.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptfs.checking.examine import Condition
from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.errors import UsageError
from ckptfs.records.layout import Layout
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope

from .rig import Mount, Samples, Subject, alternate, sync, timed
from .stats import Estimate, estimate, ratio, size_text

Work = Callable[[Path], object]

_PLAIN, _AGAIN = "plain", "plain again"
_WRITES, _WRITE_BYTES = 4096, 64 << 10
# arXiv 2511.18323: overhead over unsafe writes, in percent
_PAPER = {"atomic_nodirsync": (56.5, 108.4), "atomic_dirsync": (84.2, 570.6)}


@dataclass(frozen=True)
class Sizes:
    """How much is written; ``--quick`` tries everything and measures nothing."""

    rounds: int = 20
    ring: int = 0  # earlier checkpoints that stay; those still cached free memory as they go
    save_bytes: int = 1 << 30
    memory_bytes: int = 10 << 30
    writes: int = _WRITES
    small_files: int = 50
    many_files: int = 100_000
    tree_files: int = 10_000
    mounts: int = 10
    paper_bytes: tuple[int, ...] = (10**6, 10**7, 10**8, 10**9)
    cost_bytes: tuple[int, ...] = (10**8, 10**9, 8 * 10**9)


QUICK = Sizes(2, 1, 1 << 20, 1 << 22, 16, 3, 100, 200, 1, (10**4, 10**5), (10**5,))


@dataclass(frozen=True)
class Result:
    row: str
    what: str
    value: Estimate
    unit: str  # "x": a ratio
    target: float | None = None
    at_least: bool = False
    beside: str = ""
    samples: Samples = field(default_factory=dict)
    key: tuple[int, str, str] | None = None  # where it belongs in the table of ``bench_cost``

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        short = self.target - self.value.median
        return "PASS" if (short <= 0 if self.at_least else short >= 0) else "MISS"


@dataclass
class Bench:
    """One run: the directory it has to itself, the mount under test, and what it found."""

    folder: Path
    sizes: Sizes
    control: bool
    step: Callable[[], None]
    results: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.served, self.plain = self.folder / "served", self.folder / "plain"
        self.plain.mkdir()

    def compare(
        self, subjects: dict[str, Subject], rounds: int | None = None, control: bool = True
    ) -> Samples:
        if self.control and control and _PLAIN in subjects:
            subjects = {**subjects, _AGAIN: subjects[_PLAIN]}
        return alternate(subjects, rounds or self.sizes.rounds, self.folder, self.step)

    def add(self, row: str, what: str, value: Estimate, unit: str, **more: Any) -> None:
        samples: Samples = more.get("samples", {})
        self.results.append(Result(row, what, value, unit, **more))
        if _AGAIN in samples:
            noise = ratio(samples[_AGAIN], samples[_PLAIN])
            self.results.append(Result(row, "  control: plain / plain", noise, "x"))


# --- the rows ------------------------------------------------------------------------------------


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
        subjects[_PLAIN] = numbered("plain", save_and_sync)
    if "2" in rows:
        subjects["by hand"] = numbered("by hand", lambda path: _save_by_hand(state, path))
    samples = bench.compare(subjects)
    for path in bench.folder.glob("*/step-*.pt"):
        path.unlink()
    size = size_text(bench.sizes.save_bytes)
    if "1" in rows:
        value = ratio(samples["mount"], samples[_PLAIN])
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
            _PLAIN: timed(lambda: torch.load(str(plain))),
            "first": timed(unverified),
        }
    )
    ours.unlink()
    plain.unlink()
    value = ratio(samples["mount"], samples[_PLAIN])
    what = f"torch.load {size_text(size)}, warm, verified before / plain"
    bench.add("3", what, value, "x", target=1.05, samples=samples)
    pairs = zip(samples["first"], samples[_PLAIN], strict=True)
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

    pair = {"mount": subject(bench.served / "w.bin"), _PLAIN: subject(bench.plain / "w.bin")}
    samples = bench.compare(pair)
    what = f"{bench.sizes.writes} writes of 64 KiB / natively"
    bench.add("4", what, ratio(samples["mount"], samples[_PLAIN]), "x", target=1.2, samples=samples)


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
        _finish_by_hand(fd, path, data)

    def batch(one: Callable[[int], None], folder: Path) -> Subject:
        def work() -> None:
            for number in range(count):
                one(number)

        def clear() -> None:
            for number in range(count):
                (folder / str(number)).unlink()

        return timed(work, clear)

    samples = bench.compare(
        {"mount": batch(ours, bench.served / "small"), _PLAIN: batch(theirs, bench.plain)}
    )
    value = ratio(samples["mount"], samples[_PLAIN])
    alone = estimate(samples["mount"]).median / count * 1e3
    what = f"create + write 1 kB + close / the same by hand ({alone:.2f} ms a file)"
    bench.add("7", what, value, "x", target=1.5, samples=samples)


def many_files(bench: Bench, _rows: set[str]) -> None:
    """Row 8: how soon a large directory is served."""
    folder = bench.folder / "many"
    _tree(folder, bench.sizes.many_files, 1000)
    sync(folder)
    mount = Mount(folder)
    times = []
    with contextlib.ExitStack() as ending:
        ending.push(mount.__exit__)
        for number in range(bench.sizes.mounts):
            if number:
                mount.stop()
            times.append(timed(mount.start)())
            bench.step()
    what = f"mount of {bench.sizes.many_files:,} files, the command's start included"
    bench.add("8", what, estimate(times), "s", target=1.0, samples={"mount": times})


_VERIFIED = "verified blake3"
_PEAK_OF = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def verification(bench: Bench, _rows: set[str]) -> None:
    """How fast a directory is verified, beside the tools whose digests it keeps."""
    for checksum, tool in (("blake3", _b3sum), ("sha256", _sha256sum)):
        _verify_speed(bench, checksum, tool)
    # by way of a small process: the peak of a child begins with that of its parent
    command = [sys.executable, "-m", "ckptfs", "verify", "--quiet", str(bench.folder / _VERIFIED)]
    told = subprocess.check_output([sys.executable, "-c", _PEAK_OF, *command])
    bench.add("verify", "peak memory of the command", estimate([int(told) / 1e3]), "MB", target=150)


def _verify_speed(bench: Bench, checksum: str, tool: Callable[[list[Path]], None]) -> None:
    folder, count = bench.folder / f"verified {checksum}", 8
    with Mount(folder, "--checksum", checksum):
        for number in range(count):
            data = random.Random(number).randbytes(bench.sizes.save_bytes // count)
            (folder / f"{number}.bin").write_bytes(data)
    paths = sorted(folder.glob("*.bin"))

    def verify() -> None:
        fs = OsFs()
        root = osfs.open_directory(str(folder))
        layout = Layout.existing(fs, root, str(folder))
        assert layout is not None
        check = Check(layout, Scope(jobs=osfs.cpu_count()))
        good = [finding.condition is Condition.OK for finding in check.findings()]
        assert len(good) == count and all(good)
        layout.close()
        os.close(root)

    for cached in (True, False):
        ready = (lambda: None) if cached else (lambda: _drop_cached(paths))
        pair = {"verify": timed(verify, ready), _PLAIN: timed(lambda: tool(paths), ready)}
        samples = bench.compare(pair, control=False)
        speed = bench.sizes.save_bytes / estimate(samples["verify"]).median / 1e9
        name = {"blake3": "b3sum", "sha256": "sha256sum, one a core"}[checksum]
        what = f"verify / {name}, {'cached' if cached else 'from disk'} ({speed:.2f} GB/s)"
        value = ratio(samples["verify"], samples[_PLAIN])
        bench.add("verify", what, value, "x", target=1.11, samples=samples)


def metadata(bench: Bench, _rows: set[str]) -> None:
    """Names and attributes of 10,000 files: by stat, ls and git, cold and warm."""
    ours, plain = bench.folder / "tree", bench.folder / "tree plain"
    names = _tree(ours, bench.sizes.tree_files, 100)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x"]
    for order in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *order], cwd=ours, check=True)
    subprocess.run(["cp", "-a", ours, plain], check=True)

    def listed(folder: Path) -> object:
        return subprocess.run(["ls", "-lR"], cwd=folder, check=True, stdout=subprocess.DEVNULL)

    def compared(folder: Path) -> object:
        return subprocess.run(["git", "status", "--short"], cwd=folder, check=True)

    works = {
        "stat of a cached path": (lambda folder: [os.stat(folder / n) for n in names], False, 1.2),
        "ls -lR, warm": (listed, False, 3.0),
        "git status, warm": (compared, False, 3.0),
        "ls -lR, cold": (listed, True, 3.0),
        "git status, cold": (compared, True, 3.0),
    }
    with Mount(ours):
        for what, (work, cold, target) in works.items():

            def subject(folder: Path, work: Work = work, cold: bool = cold) -> Subject:
                def run() -> float:
                    if cold:
                        _forget_everything(bench.folder)
                    else:
                        work(folder)
                    return timed(lambda: work(folder))()

                return run

            samples = bench.compare({"mount": subject(ours), _PLAIN: subject(plain)})
            value = ratio(samples["mount"], samples[_PLAIN])
            each = estimate(samples["mount"]).median / bench.sizes.tree_files * 1e6
            what = f"{what}, {bench.sizes.tree_files:,} files ({each:.1f} us a file)"
            bench.add("9", what, value, "x", target=target, samples=samples)


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


ROWS: dict[str, Callable[[Bench, set[str]], None]] = {
    "1": saves,
    "2": saves,
    "3": loads,
    "4": small_writes,
    "7": small_files,
    "6": memory,
    "8": many_files,
    "verify": verification,
    "9": metadata,
    "paper": paper,
}
ON_THE_MOUNT = {"1", "2", "3", "4", "6", "7"}


# --- what the rows are made of -------------------------------------------------------------------


def torch_or_fail() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UsageError(f"this row needs torch: pip install 'ckptfs[torch]' ({error})") from None


def state_of(size_bytes: int) -> dict[str, object]:
    """A state dict of random data: zeros would flatter whoever compresses or leaves holes."""
    torch = torch_or_fail()
    torch.manual_seed(1)
    words = max(1, size_bytes // 16 // 8)
    return {f"layer.{i}": torch.empty(words, dtype=torch.int64).random_() for i in range(16)}


def _tree(folder: Path, count: int, per_directory: int) -> list[str]:
    """``count`` files of one byte, and their names below ``folder``."""
    names = [f"{number // per_directory}/{number}.txt" for number in range(count)]
    for number, name in enumerate(names):
        if number % per_directory == 0:
            (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
    return names


def synced(path: Path, flags: int = os.O_RDONLY) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _save_by_hand(state: object, path: Path) -> None:
    """What careful training code does today."""
    draft = path.with_suffix(".tmp")
    torch_or_fail().save(state, str(draft))
    synced(draft)
    digest = hashlib.sha256()
    with draft.open("rb") as file:
        while data := file.read(4 << 20):
            digest.update(data)
    fd = os.open(draft, os.O_RDONLY)
    _finish_by_hand(fd, path, digest.hexdigest().encode())


def _finish_by_hand(fd: int, path: Path, digest_or_data: bytes) -> None:
    """From the bytes to a durable, recorded name."""
    os.setxattr(fd, "user.sha256", hashlib.sha256(digest_or_data).hexdigest().encode())
    os.fsync(fd)
    os.close(fd)
    path.with_suffix(".tmp").rename(path)
    synced(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _b3sum(paths: list[Path]) -> None:
    if shutil.which("b3sum"):
        subprocess.run(["b3sum", *paths], check=True, stdout=subprocess.DEVNULL)
        return
    blake3 = importlib.import_module("blake3").blake3
    for path in paths:
        blake3(max_threads=blake3.AUTO).update_mmap(path).digest()


def _sha256sum(paths: list[Path]) -> None:
    names = "\0".join(map(str, paths)).encode()
    each = ["xargs", "-0", "-n1", f"-P{osfs.cpu_count()}", "sha256sum"]
    subprocess.run(each, input=names, check=True, stdout=subprocess.DEVNULL)


def _forget_everything(folder: Path) -> None:
    """Cached names, attributes and pages, of the mount and of the filesystem below."""
    sync(folder)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _drop_cached(paths: list[Path]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def only(samples: Samples, *names: str) -> Samples:
    return {name: samples[name] for name in names}
