"""What a tabular learner is: its optimiser, its gradient, its parametrisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aent.fields import is_whole_number

__all__ = ["Learner"]


@dataclass(frozen=True)
class Learner:
    """What is trained and how.

    Args:
        steps: number of updates.
        learning_rate: a number, or one per run (R,).
        optimiser: "sgd" or "adam" (beta .9, .999, epsilon 1e-8).
        gradient: "sampled" (group-relative advantages, as GRPO) or "exact".
        parametrisation: "tabular" or "loglinear".
        group_size: responses per prompt and step (sampled only); every start state is a prompt.
        updates: optimiser steps on each sampled group (sampled only); from the second on PPO's ratio and clip matter.
        features: random features of the log-linear policy.
        record_every: steps between records; the last state is always recorded.
    """

    steps: int
    learning_rate: float | np.ndarray
    optimiser: str = "adam"
    gradient: str = "sampled"
    parametrisation: str = "tabular"
    group_size: int = 16
    updates: int = 1
    features: int = 64
    record_every: int = 20

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimiser", ("sgd", "adam")),
            ("gradient", ("sampled", "exact")),
            ("parametrisation", ("tabular", "loglinear")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Learner({name}={getattr(self, name)!r}): expected one of {', '.join(allowed)}")
        for name in ("steps", "record_every", "features", "updates", "group_size"):
            number = getattr(self, name)
            if not is_whole_number(number) or number < 1:
                raise ValueError(f"Learner({name}={number!r}): expected a whole number, at least 1")
        if self.updates > 1 and self.gradient == "exact":
            raise ValueError("Learner: updates > 1 reuse a sample, which gradient='exact' has not; use 'sampled'")
        if self.gradient == "sampled" and self.group_size < 2:
            raise ValueError("Learner: a group-relative baseline needs group_size >= 2")
        rates = np.asarray(self.learning_rate)
        if rates.dtype.kind not in "iuf" or not np.all((rates > 0) & np.isfinite(rates)):
            raise ValueError(f"Learner: learning_rate must be positive and finite, got {self.learning_rate!r}")
