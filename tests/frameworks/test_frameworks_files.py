"""C1 and C6 with the frameworks' own resume: killed in a save, a fresh process resumes from the
last save that was finished or the one it was killed in, whole.

Each trainer is killed with SIGKILL at drawn changes of the directory. The control is the same loop
on the plain directory: torch.save leaves what cannot be loaded, h5py also what loads with the
weights of two steps mixed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mounts import Served
from training import GetFramework, resumes_after_kills, survive

pytest.importorskip("torch")

SINGLE_FILE = [
    pytest.param("torch_save", "train", id="torch.save"),
    pytest.param("safe", "train", id="safetensors"),
    pytest.param("hdf5", "train", id="h5py-anew"),
    pytest.param("hdf5", "update", id="h5py-update"),
    pytest.param("torch_dcp", "train", id="dcp"),
]


@pytest.mark.parametrize(("name", "do"), SINGLE_FILE)
def test_c6_resumes_whole_after_kills(
    mount: Served, framework: GetFramework, name: str, do: str
) -> None:
    if name == "hdf5":
        pytest.importorskip("h5py")
    outcomes = resumes_after_kills(mount, framework(name), do=do)
    assert [outcome for outcome in outcomes if not outcome.right] == []


@pytest.mark.parametrize("name", ["torch_save", "hdf5"])
def test_control_the_same_kills_tear_a_plain_directory(
    plain_dir: Path, framework: GetFramework, name: str
) -> None:
    if name == "hdf5":
        pytest.importorskip("h5py")
    outcomes = survive(framework(name), plain_dir, plain_dir, kills=20)
    assert not outcomes[-1].right, outcomes  # unloadable, or silently mixed
