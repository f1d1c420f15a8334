"""Measure what a training step takes, and what the memory allows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from aent.controllers import Constant
from aent.entropy import Support
from toymdp.families import Instance
from toymdp.training.config import Learner
from toymdp.training.learners import train

COEFFICIENT = 0.1  # of the bonus, in every timed step


def copy_bandwidth(megabytes: int = 256, repeats: int = 5) -> float:
    """Measure the bytes per second that one thread reads and writes to copy an array much larger than the caches."""
    source = np.ones(megabytes << 18, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / min(_seconds(lambda: np.copyto(target, source)) for _ in range(repeats))


def time_step(instances: list[Instance], learner: Learner, support: Support, steps: int, repeats: int = 3) -> float:
    """Time the batched learner on one thread: microseconds per run and step."""
    return time_per_step(partial(train_steps, instances, learner, support), len(instances), steps, repeats)


def train_steps(instances: list[Instance], learner: Learner, support: Support, steps: int) -> None:
    """Train for so many steps on one thread, and record only the last."""
    train(
        instances,
        replace(learner, steps=steps, record_every=steps),
        support=support,
        controller=Constant(COEFFICIENT),
        n_jobs=1,
    )


def time_per_step(contender: Callable[[int], None], runs: int, steps: int, repeats: int) -> float:
    """Time a contender: microseconds per run and step, without those of a one-step run (set-up, compilation)."""
    contender(1)
    once = min(_seconds(lambda: contender(1)) for _ in range(repeats))
    many = min(_seconds(lambda: contender(1 + steps)) for _ in range(repeats))
    return (many - once) / steps / runs * 1e6


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
