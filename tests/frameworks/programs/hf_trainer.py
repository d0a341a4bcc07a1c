"""Hugging Face Trainer over a tiny random model, saving at every step."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from zygote import tell


class Telling(TrainerCallback):  # type: ignore[misc]
    def _state(self, kwargs: Any) -> Any:
        optimizer = kwargs["optimizer"].state_dict()["state"]
        return [kwargs["model"].state_dict(), optimizer]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = state.global_step
        tell("resumed", found, self._state(kwargs) if found else None)
        if args.max_steps <= found:
            os._exit(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._told = self._state(kwargs)
        tell("saving", state.global_step, self._told)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tell("saved", state.global_step, self._told)


def whole(directory: str) -> str | None:
    """The newest checkpoint that has the file which Trainer writes last."""
    steps = [int(name.partition("-")[2]) for name in os.listdir(directory) if "-" in name]
    folders = [os.path.join(directory, f"checkpoint-{n}") for n in sorted(steps, reverse=True)]
    return next((f for f in folders if os.path.exists(f"{f}/trainer_state.json")), None)


def train(directory: str, steps: int, choose_whole: bool = False) -> None:
    """Resumes as its users do; with ``choose_whole`` from the newest whole checkpoint."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = GPT2Config(
        vocab_size=4000, n_positions=32, n_embd=128, n_layer=2, n_head=2, use_cache=False
    )
    last = get_last_checkpoint(directory)
    if choose_whole:
        last = whole(directory)
    began = int(last.rpartition("-")[2]) if last else 0
    arguments = TrainingArguments(
        output_dir=directory,
        max_steps=began + steps or 1,
        save_steps=1,
        save_total_limit=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        learning_rate=0.01,
        lr_scheduler_type="constant",
    )
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 4000, (64, 16))]
    trainer = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=rows, callbacks=[Telling()])
    trainer.train(resume_from_checkpoint=last if choose_whole else last is not None)
