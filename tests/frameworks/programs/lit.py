"""Lightning's ModelCheckpoint, saving at every step."""

from __future__ import annotations

import os
import warnings
from typing import Any

import lightning
import torch
import torch._dynamo  # as optimizers do at their first step
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from zygote import tell


class Model(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4)))

    def training_step(self, batch: Any, index: int) -> Any:
        loss = self.layers(batch).square().mean()
        self.log("loss", loss)
        self.log("score", float(self.global_step), prog_bar=False)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Telling(Callback):  # type: ignore[misc]
    saving: tuple[int, Any] | None = None

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def _state(self, trainer: Any, module: Any) -> Any:
        return [module.state_dict(), trainer.optimizers[0].state_dict()["state"]]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        found = trainer.global_step
        tell("resumed", found, self._state(trainer, module) if found else None)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Before the checkpoint callbacks, which are always last."""
        self.saving = trainer.global_step, self._state(trainer, module)
        tell("saving", *self.saving)

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if self.saving:
            tell("saved", *self.saving)
            self.steps -= 1
        if not self.steps:
            os._exit(0)


def train(
    directory: str, steps: int, save_last: bool | str = True, save_top_k: int = 1, by: str = ""
) -> None:
    """``by`` is the metric that is monitored."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    checkpoint = ModelCheckpoint(
        dirpath=directory,
        filename="{step}",
        save_last=save_last,
        save_top_k=save_top_k,
        monitor=by or None,
        mode="max",
        every_n_train_steps=1,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=100_000,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Telling(steps), checkpoint],
    )
    data = torch.utils.data.DataLoader(torch.rand(100_000, 512), batch_size=2)
    trainer.fit(Model(), data, ckpt_path="last")
