"""When is a set complete? Each framework's saves, file by file in the order of its source: complete
with the last thing that it needs, and at nothing before. Slow ranks come behind the marker."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ckptfs.sets.complete import Gathered, is_complete
from ckptfs.sets.profiles import Profile, Profiles, parse, recognised

PROFILES = Profiles.load()
MARKED, DONE = "(marked)", "(complete)"


class Save(NamedTuple):
    """A file is opened and then closed; ``a -> b`` renames; ``-a`` unlinks; at ``(marked)`` the
    marker outside comes. It is complete with what is ahead of ``(complete)``, or not at all."""

    directory: str
    profile: str | None
    order: list[str]
    ranks: int | None = None
    elder: frozenset[str] | None = None


class Replay:
    """What the files of a save are after each of its events."""

    def __init__(self, save: Save, profiles: Profiles = PROFILES) -> None:
        self.save, self.marked = save, False
        self.files: dict[str, bool] = {}
        self._candidates = profiles.named(save.directory)

    def until(self, end: str | None) -> list[bool]:
        """Whether it was complete, after each event ahead of that one."""
        ahead = itertools.takewhile(lambda event: event != end, self.save.order)
        return [self.complete() for event in ahead for _ in self._done(event)]

    def _done(self, event: str) -> Iterator[None]:
        before, _, after = event.partition(" -> ")
        if event == MARKED:
            self.marked = True
        elif event.startswith("-"):
            del self.files[event[1:]]
        elif after:
            self.files[after] = self.files.pop(before)
        elif event != DONE:
            self.files[event] = False
            yield
            self.files[event] = True
        yield

    def told(self) -> Profile | None:
        return recognised(self._candidates, self.files)

    def complete(self) -> bool:
        gathered = Gathered(self.files, self.save.ranks, self.save.elder, self.marked)
        return is_complete(self.told(), gathered)


def is_early(save: Save) -> bool:
    """It was taken for complete before it was."""
    found = Replay(save).until(DONE)
    return any(found[:-1] if DONE in save.order else found)


def of_ranks(pattern: str, ranks: int) -> list[str]:
    return [pattern.format(rank) for rank in range(ranks)]


HF = ["config.json", "model.safetensors", "training_args.bin", "optimizer.pt", "scheduler.pt"]
HF_SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
HF_INDEX = "model.safetensors.index.json"
STATE, RNG = "trainer_state.json", "rng_state_{}.pth"
SENTINEL = "checkpoint-is-incomplete.txt"


def hf_trainer() -> Iterator[Save]:
    head, at = HF[:1], "checkpoint-500"
    yield Save(at, "hf-trainer", [*HF, "rng_state.pth", STATE, DONE], 1)
    yield Save(at, "hf-trainer", [*HF[:3], STATE, DONE], 4)  # save_only_model
    sharded = [*head, *HF_SHARDS, HF_INDEX, *HF[2:], "rng_state.pth", STATE, DONE]
    yield Save(at, "hf-trainer", sharded)
    yield Save(at, "hf-trainer", [SENTINEL, *HF, "rng_state.pth", STATE, f"-{SENTINEL}", DONE])
    for ranks in (2, 4):
        slow = [RNG.format(rank) for rank in range(1, ranks)]
        order = [*HF, RNG.format(0), STATE, *slow, DONE]
        yield Save(at, "hf-trainer", order, ranks)
        yield Save(at, "hf-trainer", [*HF, *slow, RNG.format(0), STATE, DONE], ranks)
        # Its writers cannot be asked: as many as it was before.
        elder = frozenset((*HF, STATE, *of_ranks(RNG, ranks)))
        yield Save(at, "hf-trainer", order, None, elder)
        nested = of_ranks("global_step500/zero_pp_rank_{}_mp_rank_00_optim_states.pt", ranks)
        yield Save(at, "hf-trainer", [*HF[:3], *nested, RNG.format(0), STATE, *slow, DONE], ranks)
        fsdp = of_ranks("pytorch_model_fsdp_0/__{}_0.distcp", ranks)
        fsdp += ["pytorch_model_fsdp_0/.metadata"]
        yield Save(
            at, "hf-trainer", [*head, *fsdp, *HF[2:], RNG.format(0), STATE, *slow, DONE], ranks
        )


def accelerate() -> Iterator[Save]:
    """Nothing marks it, so the first one is never complete by itself."""
    files = ["model.safetensors", "optimizer.bin", "scheduler.bin"]
    states = "random_states_{}.pkl"
    for at in ("checkpoint_3", "step_3", "checkpoint-3"):
        one = [*files, states.format(0)]
        yield Save(at, "accelerate", one, 1)
        yield Save(at, "accelerate", [*one, DONE], 1, frozenset(one))
    more = ["custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"]
    elder = frozenset((*one, *more))
    yield Save(at, "accelerate", [*one, *more, DONE], 1, elder)
    for ranks in (2, 4):
        all_states = of_ranks(states, ranks)
        elder = frozenset((*files, *all_states))
        late = [*files, *all_states, DONE]
        yield Save(at, "accelerate", late, ranks, elder)
        yield Save(at, "accelerate", [*all_states, *files, DONE], None, elder)
        # On fewer processes than the one before it.
        yield Save(at, "accelerate", [*files, states.format(0), DONE], 1, elder)


def torch_dcp() -> Iterator[Save]:
    metadata = [".metadata.tmp", ".metadata.tmp -> .metadata", DONE]
    for ranks in (1, 2, 4):
        shards = of_ranks("__{}_0.distcp", ranks)
        yield Save("step_100", "torch-dcp", [*shards, *metadata], ranks)
        yield Save("step-100", "torchtitan", [*shards, *metadata], ranks)
        order = ["config.yaml", *shards[:1], *metadata[:2], DONE]  # the other ranks had nothing
        yield Save("ckpt_100", "torch-dcp", order, ranks)
        lightning = [*shards, *metadata[:2], "meta.pt", DONE]
        yield Save("epoch=1-step=100.ckpt", "lightning", lightning, ranks)
        composer = [*shards, *metadata, MARKED]
        yield Save("ep1-ba100", "composer", composer, ranks)
        each = [f"__{rank}.metadata" for rank in range(ranks)]
        apart = [step for name in each for step in (f"{name}.tmp", f"{name}.tmp -> {name}")]
        yield Save("step_100", "torch-dcp-without-collectives", [*shards, *apart, DONE], ranks)
        if ranks > 1:  # the first is done before the last begins
            first, last = [shards[0], *apart[:2]], [*shards[1:], *apart[2:], DONE]
            yield Save("step_100", "torch-dcp-without-collectives", [*first, *last], ranks)


def torch_dcp_hf() -> Iterator[Save]:
    index = HF_INDEX
    apart = [f"sharded/shard-0000{rank}-{HF_SHARDS[0]}" for rank in (1, 2)]
    apart += [f"sharded/shard-00001-{HF_SHARDS[1]}"]
    yield Save("step_7", "torch-dcp-hf", [*apart, *HF_SHARDS, index, DONE], 2)
    yield Save("step_7", "torch-dcp-hf", apart[:1], 2)
    yield Save("step-7", "torchtitan", [*apart, *HF_SHARDS, index, DONE], 2)
    without = [name.removeprefix("sharded/") for name in apart]  # consolidation: no index at all
    yield Save("step_7", "torch-dcp-hf", without, 2)
    # As save_pretrained does it, too, which goes on behind its index.
    yield Save("step_7", None, [*HF_SHARDS, index, "tokenizer.json"], 1)


def deepspeed() -> Iterator[Save]:
    scripts, model = ["zero_to_fp32.py", "zero_to_torch.py"], "mp_rank_00_model_states.pt"
    optim = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    at = "global_step500"
    yield Save(at, "deepspeed", [model, optim.format(0), *scripts, MARKED, DONE], 1)
    yield Save(at, "deepspeed", [model, *scripts, MARKED, DONE], 4)  # no ZeRO: rank 0 has it all
    for ranks in (2, 4):
        slow = [optim.format(rank) for rank in range(1, ranks)]
        order = [model, optim.format(0), *scripts, MARKED, *slow, DONE]
        yield Save(at, "deepspeed", order, ranks)
        yield Save(at, "deepspeed", [f"bf16_{x}" if "optim" in x else x for x in order], ranks)
        third = [x for y in slow for x in (y, y.replace("optim", "model"))]
        third = [optim.format(0).replace("optim", "model"), optim.format(0), MARKED, *third, DONE]
        yield Save(at, "deepspeed", third, ranks)
        elder = frozenset((model, *scripts, *of_ranks(optim, ranks)))
        yield Save(at, "deepspeed", order, None, elder)
    pairs = [f"zero_pp_rank_{d}_mp_rank_0{mp}_optim_states.pt" for d in (0, 1) for mp in (0, 1)]
    yield Save(at, "deepspeed", [model, pairs[0], *scripts, MARKED, *pairs[1:], DONE], 4)


def megatron() -> Iterator[Save]:
    for ranks in (1, 2, 4):
        shards = [*of_ranks("__{}_0.distcp", ranks), "__0_1.distcp"]
        meta = [".metadata", "metadata.json"]
        order = ["common.pt", *shards, *meta, MARKED, DONE]
        yield Save("iter_0000500", "megatron-lm", order, ranks)
        yield Save("iter_0000500", "megatron-lm", [*shards, MARKED, *meta, DONE], ranks)
        bridge = [*shards, *meta, "run_config.yaml", "train_state.pt", MARKED, DONE]
        yield Save("iter_0000500", "megatron-bridge", bridge, ranks)


def others() -> Iterator[Save]:
    data = ["default/_METADATA", "default/manifest.ocdbt", "default/d/9f3a", "metrics/metrics"]
    order = [*data, "_CHECKPOINT_METADATA", "commit_success.txt"]
    yield Save("500.orbax-checkpoint-tmp", "orbax", [*order, MARKED, DONE])
    yield Save("run_500.orbax-checkpoint-tmp", "orbax", [*order[:-1], MARKED, DONE])
    yield Save("checkpoint_500", "orbax-commit-file", [*order, DONE])
    items = of_ranks("model_{}.pt", 4)
    yield Save("tmp_step-10", "torch-checkpointing", [*items, "metadata.pkl", MARKED, DONE], 4)
    late = ["metadata.pkl", items[0], MARKED, *items[1:], DONE]
    yield Save("tmp_step-10", "torch-checkpointing", late, 4)
    yield Save("checkpoint_2026-11-29_12-00-00.123456", "ray-train", ["model.pt", MARKED, DONE])
    nemo = ["context/io.json", "weights/__0_0.distcp", "weights/.metadata", MARKED, DONE]
    yield Save("gpt--val_loss=0.25-step=100-last", "nemo", nemo)
    parts = ["model/__0_0.distcp", "model/.metadata", "optimizer/__0_0.distcp"]
    parts += ["optimizer/.metadata", *of_ranks("extra_state/extra_state_rank_{}.pt", 2)]
    yield Save("global_step_500", "bytecheckpoint", parts, 2)
    yield Save("global_step_500", "bytecheckpoint", [*parts, DONE], 2, frozenset(parts))


PLAIN = ["model.pt", "optimizer.pt", "scheduler.pt", "dataloader.pt", "config.yaml"]
PLAIN += ["train_state.json"]


def plain() -> Iterator[Save]:
    yield Save("epoch-10", "plain", [*PLAIN, DONE, "metrics.csv"])
    yield Save("epoch_10", "plain", ["metrics.csv", *reversed(PLAIN), DONE])
    fewer = ["model.pt", "optimizer.pt", "state.json"]
    yield Save("epoch-10", "plain", fewer)
    yield Save("epoch-10", "plain", [*fewer, DONE], None, frozenset(fewer))
    yield Save("epoch-10", "plain", [*PLAIN, "ema.pt", DONE], None, frozenset((*PLAIN, "ema.pt")))


def unknown() -> Iterator[Save]:
    """No profile knows these files."""
    files = ["weights-0.bin", "weights-1.bin", "state-400.json"]
    now = [*files[:2], "state-500.json"]
    yield Save("step_500", None, now)
    yield Save("step_500", None, [*now, DONE, "weights-2.bin"], None, frozenset(files))
    shards = [f"w-{number}-of-3.bin" for number in (1, 2, 3)]
    elder = frozenset(f"w-{number}-of-2.bin" for number in (1, 2))
    yield Save("step_500", None, [*shards, DONE], None, elder)
    yield Save("step_500", None, shards[:2], None, elder)


GROUPS = (
    hf_trainer,
    accelerate,
    torch_dcp,
    torch_dcp_hf,
    deepspeed,
    megatron,
    others,
    plain,
    unknown,
)
SAVES = [
    pytest.param(save, id=f"{save.profile}-{number}")
    for group in GROUPS
    for number, save in enumerate(group())
]


@pytest.mark.parametrize("save", SAVES)
def test_a_set_is_complete_with_its_last_file_and_no_earlier(save: Save) -> None:
    assert not is_early(save)
    at = Replay(save)
    at.until(DONE)
    assert at.complete() is (DONE in save.order)
    end = Replay(save)
    end.until(None)
    assert end.complete() is (DONE in save.order)
    told = end.told()
    assert (told and told.name) == save.profile


def test_every_profile_is_replayed() -> None:
    sentinel = Replay(Save("checkpoint-500", None, [SENTINEL, *HF]))
    sentinel.until(None)
    told = {sentinel.told()} | {one for one in PROFILES.all if one.name == "nvrx-local"}
    replayed = {save.profile for group in GROUPS for save in group()} - {None}
    assert {one.name for one in told if one} | replayed == {one.name for one in PROFILES.all}


@pytest.mark.parametrize("ranks", [2, 4])
def test_files_of_ranks_beside_those_of_other_sets(ranks: int) -> None:
    profile = next(one for one in PROFILES.all if one.name == "nvrx-local")
    files = of_ranks("iter_0000500_{}_local.pt", ranks)
    for count in range(ranks + 1):
        gathered = Gathered(dict.fromkeys(files[:count], True), ranks)
        assert is_complete(profile, gathered) is (count == ranks)


@pytest.mark.parametrize("save", SAVES)
def test_nothing_is_complete_while_a_file_is_open_or_without_one(save: Save) -> None:
    replay = Replay(save)
    replay.until(None)
    for name in replay.files:
        files = {**replay.files, name: False}
        assert not is_complete(replay.told(), Gathered(files, save.ranks, save.elder, True))
    for profile in (None, *PROFILES.named(save.directory)):
        assert not is_complete(profile, Gathered({}, 1, frozenset(), True))


def test_names_of_ranks_are_believed_over_a_smaller_world() -> None:
    """A program that starts its ranks by itself leaves WORLD_SIZE as it was."""
    order = [*HF, RNG.format(0), RNG.format(3), STATE, RNG.format(1), RNG.format(2), DONE]
    assert not is_early(Save("checkpoint-5", "hf-trainer", order, 1))


def test_control_a_marker_alone_is_too_early() -> None:
    """Without the count of ranks, and without a set before it, the marker is all there is."""
    slow = Save("checkpoint-5", "hf-trainer", [*HF, RNG.format(0), STATE, RNG.format(1), DONE])
    assert is_early(slow) and not is_early(slow._replace(ranks=2))


USERS = """
ours:
  directory: run_{step}
  members: [w.bin]
  marker: {kind: %s, path: %s}
"""


@pytest.mark.parametrize(
    ("kind", "path", "order"),
    [
        ("parent symlink", "newest", ["w.bin", MARKED]),
        ("parent file", "newest", [MARKED, "w.bin"]),
        ("absent", "busy", ["busy", "w.bin", "-busy"]),
        ("absent", "../busy", ["w.bin", MARKED]),
        ("each rank", "'{rank}.done'", ["0.done", "w.bin", "1.done"]),
        ("inside", "done", ["done", "w.bin"]),
        ("all members", "x", ["a.bin", "w.bin"]),
    ],
)
def test_each_kind_of_marker(kind: str, path: str, order: list[str]) -> None:
    replay = Replay(Save("run_7", "ours", order, 2), Profiles(parse(USERS % (kind, path), "ours")))
    *before, at = replay.until(None)
    assert at and not any(before)
