"""Callbacks of the ``train`` command: the run directory's log and one progress bar."""

from __future__ import annotations

import math
from typing import Any

from tqdm.auto import tqdm  # in a notebook one bar that moves, not a line per step
from transformers import TrainerCallback

from aent.runs import Run

__all__ = ["RunLog", "StepBar"]


class RunLog(TrainerCallback):
    """Every logged step as one line of metrics.jsonl. After a resume steps come again; readers take the last line."""

    def __init__(self, run: Run):
        self.run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            numbers = {key: value for key, value in logs.items() if isinstance(value, int | float)}
            self.run.log(step=state.global_step, **{k: v for k, v in numbers.items() if k != "step"})


class StepBar(TrainerCallback):
    """A tqdm bar over optimiser steps with reward, entropy and coefficient."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        shown = {"reward": "reward", "H": "entropy/full", "H~": "entropy/clamped", "coef": "entropy/coef"}
        if self.bar is not None and logs:
            found = {short: logs[key] for short, key in shown.items() if isinstance(logs.get(key), float)}
            self.bar.set_postfix({k: f"{v:.3g}" for k, v in found.items() if math.isfinite(v)})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the line of the bar."""
        if self.bar is not None:
            self.bar.close()
