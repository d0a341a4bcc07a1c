"""Formats and settings beside the usual ones, and the habits of frameworks that are too large to be
installed here: killed in their saves, through the mount (make test-frameworks)."""

from __future__ import annotations

from typing import Any

import pytest
from mounts import Served
from training import GetFramework, resumes_after_kills

pytest.importorskip("torch")
pytestmark = pytest.mark.frameworks

NEEDS = {
    "joblib_dump": "joblib",
    "safetensors_held": "safetensors.torch",
    "hdf5_swmr": "h5py",
    "zarr_groups": "zarr",
}
FILES = {"single_file_per_rank": False, "sync_files": False, "thread_count": 2}


@pytest.mark.parametrize(
    ("do", "order"),
    [
        pytest.param("torch_legacy", {}, id="torch.save-legacy"),
        pytest.param("pickled", {}, id="pickle"),
        pytest.param("joblib_dump", {}, id="joblib"),
        pytest.param("joblib_dump", {"compress": 1}, id="joblib-compressed"),
        pytest.param("npz", {}, id="npz"),
        pytest.param("safetensors_held", {}, id="safetensors-held"),
        pytest.param("hdf5_swmr", {}, id="h5py-swmr"),
        pytest.param("dcp_files", {"sync_files": True}, id="dcp-sync_files"),
        pytest.param("dcp_files", FILES, id="dcp-file-per-tensor"),
        pytest.param("zarr_groups", {}, id="zarr"),
        pytest.param("linked_best", {}, id="hard-links"),
        pytest.param("reopened", {}, id="reopened"),
        pytest.param("latest_file", {}, id="latest-file"),
        pytest.param("unfinished_marker", {}, id="unfinished-marker"),
    ],
)
def test_c6_resumes_whole_after_kills(
    mount: Served, framework: GetFramework, do: str, order: dict[str, Any]
) -> None:
    if do in NEEDS:
        pytest.importorskip(NEEDS[do])
    outcomes = resumes_after_kills(mount, framework("settings"), do=do, kills=3, **order)
    assert [outcome for outcome in outcomes if not outcome.right] == []
