"""The trainers that people run, killed in their saves, through the mount (make test-frameworks).

Where one checkpoint is one file, or a directory that the framework commits by its last file or a
rename, its own resume finds the last save that was finished, or the one it was killed in, whole.
HF Trainer and Accelerate take the newest directory whether it is whole or not. Every file in it is
whole, and they are published in order, so the file that is written last tells whole directories
from others; that these frameworks resume by themselves takes checkpoint sets (C4).
"""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from mounts import PYTHON, Served
from training import (
    PROGRAMS,
    GetFramework,
    Snapshot,
    Unresumable,
    kill_when,
    resumes_after_kills,
)

pytestmark = pytest.mark.frameworks

NEEDS = {
    "hf_trainer": "transformers",
    "accel": "accelerate",
    "lit": "lightning",
    "orbax_jax": "orbax.checkpoint",
    "torch_dcp": "torch",
}


@pytest.mark.parametrize(
    ("name", "order"),
    [
        pytest.param("torch_dcp", {"do": "train_async"}, id="dcp-async"),
        pytest.param("torch_dcp", {"do": "train_ranks"}, id="dcp-two-ranks"),
        pytest.param("lit", {}, id="lightning-last"),
        pytest.param("lit", {"save_top_k": 2, "by": "score"}, id="lightning-top-k"),
        pytest.param("orbax_jax", {}, id="orbax"),
        pytest.param("hf_trainer", {"choose_whole": True}, id="hf-trainer-whole"),
        pytest.param("accel", {"choose_whole": True}, id="accelerate-whole"),
    ],
)
def test_c6_resumes_whole_after_kills(
    mount: Served, framework: GetFramework, name: str, order: dict[str, Any]
) -> None:
    pytest.importorskip(NEEDS[name])
    outcomes = resumes_after_kills(mount, framework(name), **order)
    assert [outcome for outcome in outcomes if not outcome.right] == []


def test_c6_lightning_with_a_link_resumes_whole_or_finds_no_last(
    mount: Served, framework: GetFramework
) -> None:
    """It deletes the file that ``last.ckpt`` points to, then the link, then makes a new one.
    Killed between, it starts anew; the newest checkpoint is there, under its own name."""
    pytest.importorskip("lightning")
    program = framework("lit")
    for outcome in resumes_after_kills(mount, program, save_last="link"):
        if not outcome.right:
            assert outcome.resumed == (0, "") and not (mount.path / "last.ckpt").exists()
            left = {
                int(step) for step in re.findall(r"step=(\d+)", str(list(mount.path.iterdir())))
            }
            assert left & {outcome.before[0], outcome.killed_in[0]}


def test_dcp_saves_and_loads_under_torchrun(mount: Served) -> None:
    pytest.importorskip("torch")
    run = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = []
    for steps in ("2", "0"):
        command = [*run, "torch_dcp.py", str(mount.path), steps]
        done = subprocess.run(command, cwd=PROGRAMS, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        told += done.stdout.splitlines()
    assert '"saved", "step": 2' in told[-2]
    assert told[-1] == told[-2].replace("saved", "resumed")


# --- directories without a commit marker ---------------------------------------------------------


def _newest(now: Snapshot, pattern: str) -> set[str]:
    """The names in the newest of the folders that match."""
    found: dict[int, set[str]] = {}
    for path in now:
        match = re.match(pattern, path)
        if match:
            found.setdefault(int(match[1]), set()).add(match[2])
    return found[max(found)] if found else set()


def _needs_sets(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(
        strict=True, raises=(AssertionError, Unresumable), reason=f"C4, checkpoint sets: {reason}"
    )


@pytest.mark.parametrize(
    ("name", "folder", "later"),
    [
        pytest.param("hf_trainer", r"checkpoint-(\d+)/(.+)", "trainer_state.json", id="hf-trainer"),
        pytest.param(
            "accel", r"checkpoints/checkpoint_(\d+)/(.+)", "optimizer.bin", id="accelerate"
        ),
    ],
)
@_needs_sets("both take the newest directory")
def test_c4_resumes_by_itself(
    mount: Served, framework: GetFramework, name: str, folder: str, later: str
) -> None:
    """Killed when the model of a checkpoint is there and a later file is not."""
    pytest.importorskip(NEEDS[name])
    program = framework(name)

    def half(_: Snapshot, now: Snapshot) -> bool:
        names = _newest(now, folder)
        return "model.safetensors" in names and later not in names

    run = kill_when(program, mount.path, mount.below, half)
    assert program.resume(mount.path) in (run.states("saved")[-1], run.states("saving")[-1])


@_needs_sets("shards of two steps under one name")
def test_c4_dcp_overwrites_one_directory(mount: Served, framework: GetFramework) -> None:
    """Killed when one rank has saved over its shard and the other has not: it loads without an
    error, the weights of two steps mixed."""
    pytest.importorskip("torch")
    program = framework("torch_dcp")
    order = {"do": "train_ranks", "overwrite": True}
    first, second = (f"latest/__{rank}_0.distcp" for rank in (0, 1))

    def one_of_two(before: Snapshot, now: Snapshot) -> bool:
        both = second in now and first in now
        return both and now[first] != before[first] and now[second] == before[second]

    run = kill_when(program, mount.path, mount.below, one_of_two, **order)
    found = program.resume(mount.path, **order)
    assert found in (run.states("saved")[-1], run.states("saving")[-1])


@_needs_sets("DCP unlinks .metadata ahead of the rename of the new one")
def test_c4_dcp_that_overwrites_has_its_metadata_at_every_instant(
    mount: Served, framework: GetFramework
) -> None:
    """Killed between the two there is no checkpoint, on a plain directory either."""
    pytest.importorskip("torch")
    program = framework("settings")
    order = {"do": "dcp_files", "overwrite": True}

    def without(before: Snapshot, now: Snapshot) -> bool:
        gone = before.keys() - now.keys()
        return any(path.endswith("/.metadata") for path in gone)

    run = kill_when(program, mount.path, mount.below, without, **order)
    found = program.resume(mount.path, **order)
    assert found in (run.states("saved")[-1], run.states("saving")[-1])
