"""Rows of the benchmark over whole directories: mounts, verification, names and attributes.

A row takes the run it belongs to, measures by turns, clears up after itself and adds its results.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ckptfs.checking.examine import Condition
from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.records.layout import Layout
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope

from ..harness.rig import Mount, Subject, sync, timed
from ..harness.stats import estimate, ratio
from .measure import PLAIN, Bench

Work = Callable[[Path], object]

_VERIFIED = "verified blake3"
_PEAK_OF = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


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
        pair = {"verify": timed(verify, ready), PLAIN: timed(lambda: tool(paths), ready)}
        samples = bench.compare(pair, control=False)
        speed = bench.sizes.save_bytes / estimate(samples["verify"]).median / 1e9
        name = {"blake3": "b3sum", "sha256": "sha256sum, one a core"}[checksum]
        what = f"verify / {name}, {'cached' if cached else 'from disk'} ({speed:.2f} GB/s)"
        value = ratio(samples["verify"], samples[PLAIN])
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

            samples = bench.compare({"mount": subject(ours), PLAIN: subject(plain)})
            value = ratio(samples["mount"], samples[PLAIN])
            each = estimate(samples["mount"]).median / bench.sizes.tree_files * 1e6
            what = f"{what}, {bench.sizes.tree_files:,} files ({each:.1f} us a file)"
            bench.add("9", what, value, "x", target=target, samples=samples)


def _tree(folder: Path, count: int, per_directory: int) -> list[str]:
    """``count`` files of one byte, and their names below ``folder``."""
    names = [f"{number // per_directory}/{number}.txt" for number in range(count)]
    for number, name in enumerate(names):
        if number % per_directory == 0:
            (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
    return names


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
