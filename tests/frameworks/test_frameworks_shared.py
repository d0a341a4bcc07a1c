"""What libraries do with files beside checkpoints: several processes at once, several descriptors
of one name, links, locks, maps. Each finds through a mount what it finds in the plain directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mounts import CHILD_LIMIT_S, PYTHON, Served, ckptfs
from training import LIMIT_S, PROGRAMS, Event, GetFramework, resumes_after_kills

pytestmark = pytest.mark.frameworks


def _needs(*modules: str) -> None:
    for module in modules:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def _contents(directory: Path) -> dict[str, str]:
    found = {}
    for folder, folders, names in os.walk(directory):
        if ".ckptfs" in folders:
            folders.remove(".ckptfs")
        for name in names:
            path = Path(folder, name)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(directory))] = digest
    return found


def _run(directory: Path, program: str, order: dict[str, Any]) -> list[Event]:
    """What the program tells; it and whoever belongs to it are gone then."""
    command = [PYTHON, "once.py", program, json.dumps({"directory": str(directory), **order})]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=PROGRAMS,
        env=environment,
        start_new_session=True,
        text=True,
    ) as process:
        try:
            told, errors = process.communicate(timeout=2 * LIMIT_S)  # compilers take long
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-4000:]
    return [json.loads(line) for line in told.splitlines()]


def _same(mount: Served, plain: Path, program: str, times: int = 1, **order: Any) -> None:
    """The program tells the same of both, each time in a fresh process."""
    for _ in range(times):
        expected = _run(plain, program, order)
        assert _run(mount.path, program, order) == expected
    mount.wait_until(lambda: not mount.status()["writing"], CHILD_LIMIT_S)
    done = ckptfs("verify", mount.path)
    assert done.returncode == 0, done.stdout


def _same_files(mount: Served, plain: Path) -> None:
    """What is left is the same, through the mount and without it."""
    expected = _contents(plain)
    assert _contents(mount.path) == expected
    mount.umount()
    assert _contents(mount.path) == expected


# --- Hugging Face datasets -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_datasets_finds_what_it_mapped_in_its_cache(
    mount: Served, plain_dir: Path, kind: str
) -> None:
    _needs("datasets")
    _same(mount, plain_dir, "hf_datasets", times=2, do="prepared", kind=kind)


@pytest.mark.parametrize("do", ["saved", "exported", "generated"])
def test_datasets_loads_what_it_saved(mount: Served, plain_dir: Path, do: str) -> None:
    _needs("datasets")
    _same(mount, plain_dir, "hf_datasets", do=do, kind="json")


# --- tensorstore ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [
        pytest.param({"driver": "zarr"}, id="zarr"),
        pytest.param({"driver": "zarr3"}, id="zarr3"),
        pytest.param({"driver": "n5"}, id="n5"),
        pytest.param({"driver": "zarr", "locking": "lockfile"}, id="lockfile"),
        pytest.param({"driver": "zarr", "store": "ocdbt"}, id="ocdbt"),
    ],
)
def test_tensorstore_writers_lose_nothing_of_a_chunk_that_they_share(
    mount: Served, plain_dir: Path, order: dict[str, str]
) -> None:
    _needs("tensorstore")
    _same(mount, plain_dir, "tensor_store", do="written", **order)
    if "store" not in order:  # whose files are named at random
        _same_files(mount, plain_dir)


# --- joblib --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap_mode", [None, "r", "r+"])
def test_joblib_memory_serves_parallel_callers(
    mount: Served, plain_dir: Path, mmap_mode: str | None
) -> None:
    _needs("joblib")
    _same(mount, plain_dir, "joblib_cache", do="memory", mmap_mode=mmap_mode)


@pytest.mark.parametrize("by_name", [False, True], ids=["passed", "by-name"])
@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_joblib_workers_fill_an_array_that_the_parent_holds(
    mount: Served, plain_dir: Path, backend: str, by_name: bool
) -> None:
    _needs("joblib")
    order = {"do": "filled", "backend": backend, "by_name": by_name}
    _same(mount, plain_dir, "joblib_cache", **order)
    _same_files(mount, plain_dir)


def test_joblib_workers_map_their_inputs(mount: Served, plain_dir: Path) -> None:
    _needs("joblib")
    _same(mount, plain_dir, "joblib_cache", do="dumped")


# --- caches of compilers -------------------------------------------------------------------------


def test_inductor_writes_its_code_cache_from_several_processes(
    mount: Served, plain_dir: Path
) -> None:
    _needs("torch")
    _same(mount, plain_dir, "compiled", do="written")


def test_torch_compile_finds_what_others_compiled(mount: Served, plain_dir: Path) -> None:
    _needs("torch")
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    _same(mount, plain_dir, "compiled", do="compile")


def test_tritons_cache_is_filled_by_several_processes(mount: Served, plain_dir: Path) -> None:
    _needs("torch", "triton")
    _same(mount, plain_dir, "compiled", do="triton_cache")


# --- nanoGPT -------------------------------------------------------------------------------------


@pytest.mark.parametrize("do", ["batches", "documents", "workers", "appended"])
def test_a_token_file_holds_what_was_stored(mount: Served, plain_dir: Path, do: str) -> None:
    _needs("numpy")
    _same(mount, plain_dir, "token_file", do=do)
    _same_files(mount, plain_dir)


# --- timm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_history", [1, 3])
def test_timms_links_name_the_checkpoints_they_should(
    mount: Served, plain_dir: Path, max_history: int
) -> None:
    _needs("torch", "timm")
    _same(mount, plain_dir, "timm_saver", do="trained", max_history=max_history)
    _same_files(mount, plain_dir)


def test_timm_resumes_whole_after_kills(mount: Served, framework: GetFramework) -> None:
    _needs("torch", "timm")
    outcomes = resumes_after_kills(mount, framework("timm_saver"), kills=3)
    assert [outcome for outcome in outcomes if not outcome.right] == []
