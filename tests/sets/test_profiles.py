"""Which directories are sets, and of which framework; what profiles of users may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptfs.errors import UsageError
from ckptfs.sets import names
from ckptfs.sets.profiles import Marker, MarkerKind, Profile, Profiles, recognised

PROFILES = Profiles.load()
# name, series, step, and who has it first
SETS = [
    ("checkpoint-500", "checkpoint-*", 500, "hf-trainer-jit"),
    ("checkpoint_3", "checkpoint_*", 3, "accelerate"),
    ("llama3-checkpoint-500", "llama3-checkpoint-*", 500, "accelerate"),
    ("epoch-10", "epoch-*", 10, "accelerate"),
    ("Epoch10", "Epoch*", 10, "accelerate"),
    ("step_007", "step_*", 7, "accelerate"),
    ("step-7", "step-*", 7, "torchtitan"),
    ("ckpt_12.pt", "ckpt_*.pt", 12, "accelerate"),
    ("checkpoint-5.tmp", "checkpoint-*.tmp", 5, "accelerate"),
    ("tmp_step-5", "step-*", 5, "torch-checkpointing"),
    ("500.orbax-checkpoint-tmp", "*", 500, "orbax"),
    ("run1_500.orbax-checkpoint-tmp", "run1_*", 500, "orbax"),
    ("global_step40", "global_step*", 40, "deepspeed"),
    ("global_step_40", "global_step_*", 40, "bytecheckpoint"),
    ("iter_0000500", "iter_*", 500, "megatron-bridge"),
    ("ep1-ba500", "ep*-ba*", 500, "composer"),
    ("epoch=1-step=100.ckpt", "epoch=*-step=*.ckpt", 100, "lightning"),
    ("m-epoch=1-val_loss=0.25.ckpt", "m-epoch=*-val_loss=*.ckpt", 1, "lightning"),
    ("g--val_loss=0.25-step=9-last", "g--val_loss=*-step=*-last", 9, "nemo"),
    (
        "checkpoint_2026-11-29_12-00-00.123456",
        "checkpoint_*",
        20261129120000123456,
        "ray-train",
    ),
]
NONE = (
    *("version_0", "run-1", "events.123", "2026-11-29", "node1", "images10", "10", "global_rank3"),
    *("checkpoints", "step", "epoch-best", "last.ckpt", "release", "non_persistent", "wandb"),
    *("step-10_samples", "epoch3images", "stepwise10", "footstep-10", "data_batch_1", "layer_12"),
    *("checkpoint-500-hf", "global_step40_universal", "step10k", "model.safetensors", ""),
)


@pytest.mark.parametrize(("name", "series", "step", "first"), SETS, ids=[row[0] for row in SETS])
def test_a_directory_of_a_step_is_a_set(name: str, series: str, step: int, first: str) -> None:
    assert PROFILES.named(name)[0].name == first
    assert PROFILES.series(name) == series
    assert PROFILES.step(name) == step


@pytest.mark.parametrize("name", NONE)
def test_other_directories_are_no_sets(name: str) -> None:
    assert PROFILES.named(name) == ()


def test_a_set_that_is_renamed_into_place_is_of_the_series_of_its_place() -> None:
    assert PROFILES.series("500.orbax-checkpoint-tmp") == PROFILES.series("500")
    assert PROFILES.series("tmp_step-5") == PROFILES.series("step-5")
    assert _named("orbax").place("run_7.orbax-checkpoint-tmp") == "run_7"
    assert _named("hf-trainer").place("checkpoint-7") == "checkpoint-7"
    assert _named("orbax").place("7") is None  # it begins under the temporary name


def test_a_name_without_a_number_has_no_step() -> None:
    assert names.step("release") is None and names.series("release") == "release"


@pytest.mark.parametrize(
    ("directory", "paths", "name"),
    [
        ("checkpoint-500", ["config.json", "model.safetensors"], None),
        ("checkpoint-500", ["training_args.bin"], "hf-trainer"),
        (
            "checkpoint-500",
            ["trainer_state.json", "checkpoint-is-incomplete.txt"],
            "hf-trainer-jit",
        ),
        ("checkpoint-500", ["optimizer.bin"], "accelerate"),
        ("checkpoint-500", [".metadata"], "torch-dcp"),
        ("checkpoint-500", ["pytorch_model_fsdp_0/.metadata"], None),
        ("step_1", ["__0_0.distcp"], "torch-dcp"),
        ("step_1", ["__0_0.distcp", "__0.metadata.tmp"], "torch-dcp-without-collectives"),
        ("step-1", ["__0_0.distcp"], "torchtitan"),
        ("iter_0000001", ["__0_0.distcp"], "megatron-lm"),
        ("iter_0000001", ["__0_0.distcp", "run_config.yaml"], "megatron-bridge"),
        ("step_1", ["shard-00001-model-00001-of-00001.safetensors"], "torch-dcp-hf"),
        ("step_1", ["model-00001-of-00002.safetensors", "model.safetensors.index.json"], None),
        ("epoch-1", ["model.pt"], "plain"),
        ("epoch-1", ["model.bin"], None),
        ("500.orbax-checkpoint-tmp", [], "orbax"),
        ("epoch-1", [], None),
    ],
)
def test_a_profile_is_recognised_by_its_files(
    directory: str, paths: list[str], name: str | None
) -> None:
    found = recognised(PROFILES.named(directory), paths)
    assert (found and found.name) == name


# --- markers outside -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "directory", "entry", "text", "is_about"),
    [
        ("deepspeed", "global_step40", "latest", "global_step40\n", True),
        ("deepspeed", "global_step40", "latest", "global_step4", False),
        ("deepspeed", "global_step40", "latest", "", False),
        ("megatron-lm", "iter_0000500", "latest_checkpointed_iteration.txt", "500", True),
        ("megatron-lm", "iter_0000500", "latest_checkpointed_iteration.txt", "5000", False),
        ("megatron-lm", "iter_0000500", "latest_checkpointed_iteration.txt", "release", False),
        ("composer", "ep1-ba500", "latest-rank0.pt", "ep1-ba500/ep1-ba500-rank0.pt", True),
        ("composer", "ep1-ba500", "latest-rank0.pt", "ep1-ba50/ep1-ba50-rank0.pt", False),
        ("ray-train", "checkpoint_2026-11-29_12-00-00", "checkpoint_manager_snapshot.json",
         '{"a": ["checkpoint_2026-11-29_12-00-00"]}', True),
    ],
)  # fmt: skip
def test_what_is_beside_a_set_names_it(
    profile: str, directory: str, entry: str, text: str, is_about: bool
) -> None:
    (marker,) = (one for one in _named(profile).markers if one.is_outside)
    assert marker.is_at(entry, directory) and not marker.is_at(f"old-{entry}", directory)
    assert marker.is_about(text, directory) is is_about


def test_a_marker_that_goes_away_is_that_of_its_set() -> None:
    (marker,) = _named("nemo").markers
    assert marker.is_at("g--step=9-unfinished", "g--step=9")
    assert not marker.is_at("g--step=99-unfinished", "g--step=9")


def test_what_is_inside_is_nothing_beside() -> None:
    assert not Marker(MarkerKind.INSIDE, "done").is_at("done", "step-1")
    assert not Marker(MarkerKind.RENAME, "tmp_{name}").is_at("tmp_step-1", "step-1")


# --- files of users ------------------------------------------------------------------------------

WHOLE = """
ours:
  read: our loop
  directory: ["model{step}v2", "run*{step}"]
  recognised by: [w.bin]
  members: [w.bin, "opt-{rank}.bin"]
  marker:
    - {kind: inside, path: DONE}
    - {kind: parent file, path: "{name}.ok", says: "*"}
"""


def _load(tmp_path: Path, text: str) -> Profiles:
    (tmp_path / "ours.yaml").write_text(text)
    return Profiles.load(str(tmp_path / "ours.yaml"))


def _named(name: str) -> Profile:
    return next(one for one in PROFILES.all if one.name == name)


def test_profiles_of_users_go_first(tmp_path: Path) -> None:
    found = _load(tmp_path, WHOLE)
    assert [one.name for one in found.all] == ["ours", *(one.name for one in PROFILES.all)]
    assert found.series("model12v2") == "model*v2" and found.step("model12v2") == 12
    assert found.step("run500") == 500 and found.series("run-a-500") == "run-a-*"
    assert [one.name for one in found.named("model12v2")] == ["ours"]
    assert found.all[0].markers[1].is_at("run500.ok", "run500")
    assert found.all[0].markers[1].is_about("whatever", "run500")


def test_one_of_a_known_name_takes_its_place(tmp_path: Path) -> None:
    found = _load(tmp_path, "hf-trainer: {directory: 'hf_{step}'}")
    assert len(found.all) == len(PROFILES.all)
    assert [one.name for one in found.named("hf_5")] == ["hf-trainer"]
    assert "hf-trainer" not in [one.name for one in found.named("checkpoint-5")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no table of profiles"),
        ("- a", "is no table of profiles"),
        ("a: b", "a: is no table of fields"),
        ("a: {directory: x{step", "line 1: "),
        ("a: {read: x}", "a: directory: is missing"),
        ("a: {directory: run}", "a: directory: 'run' has no {step}"),
        ("a: {directory: any, files: x}", "a: files: is no field, "),
        ("a: {directory: any, read: 2.13}", "a: read: 2.13 is no text"),
        ("a: {directory: any, members: [1]}", "a: members: 1 is no text"),
        ("a: {directory: any, members: '{node}.pt'}", "a: members: {node} cannot stand in "),
        ("a: {directory: '{rank}-{step}'}", "a: directory: {rank} cannot stand in "),
        ("a: {directory: '{step}-{step}'}", "a: directory: "),
        ("a: {directory: any, marker: done}", "a: marker: is no table of fields"),
        ("a: {directory: any, marker: {kind: file}}", "a: marker: kind: 'file' is none, inside, "),
        ("a: {directory: any, marker: {kind: inside}}", "a: marker: path: is missing"),
        ("a: {directory: any, marker: {path: x}}", "a: marker: kind: is missing"),
        ("a: {directory: any, marker: {kind: rename, path: tmp}}", "a: marker: path: 'tmp' has no"),
        ("a: {directory: any, marker: {kind: inside, path: '{x}'}}", "a: marker: path: {x} cannot"),
        (
            "a: {directory: any, marker: {kind: parent file, path: x, says: '{x}'}}",
            "a: marker: says: {x} cannot",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_profile_and_field(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(UsageError) as error:
        _load(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path}/ours.yaml: {told}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match=r"^/nowhere\.yaml: No such file"):
        Profiles.load("/nowhere.yaml")


def test_each_of_ours_says_where_it_was_read() -> None:
    assert all(one.read != "-" and (one.members or one.markers) for one in PROFILES.all)
