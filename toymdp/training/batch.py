"""The arrays of a chunk of runs that step together: parameters, labels, random numbers, records.

What ``learners.py`` holds while it trains; nothing here decides anything about learning but the optimiser's formula.

Shape legend: R runs, S states, A tokens (or lumps), T records, F features, B sampled responses per run, H horizon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from toymdp.families import Instance
from toymdp.mdp import TokenMDP
from toymdp.training import kernels

if TYPE_CHECKING:
    from toymdp.training.config import Learner

RANDOM_BLOCK = 64  # steps whose random numbers are drawn at once


@dataclass(frozen=True, eq=False)
class History:
    """Records of R runs: ``step`` (T,), the rest (T, R); ``logits`` (R, S, A) at the end.

    ``value`` is the exact expected return of the policy. ``full_entropy`` and ``support_entropy`` are mean token
    entropies (nats, weighted by visitation) over all tokens and over the bonus' support.
    """

    step: np.ndarray
    value: np.ndarray
    full_entropy: np.ndarray
    support_entropy: np.ndarray
    coefficient: np.ndarray
    logits: np.ndarray

    @classmethod
    def joined(cls, histories: list[History]) -> History:
        """Chunks of runs, side by side."""
        parts = {
            name: [getattr(h, name) for h in histories]
            for name in ("value", "full_entropy", "support_entropy", "coefficient")
        }
        joined = {name: np.concatenate(part, axis=1) for name, part in parts.items()}
        return History(histories[0].step, logits=np.concatenate([h.logits for h in histories]), **joined)


def spaced(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros with ``kernels.SPACING`` free bytes behind them."""
    size = math.prod(shape)
    return np.zeros(size + kernels.SPACING // np.dtype(dtype).itemsize, dtype)[:size].reshape(shape)


def per_run(values: Any, runs: int) -> np.ndarray:
    """(R,) floats, always a writable copy: a read-only view is another type to numba, and another compilation."""
    return np.array(np.broadcast_to(np.asarray(values, dtype=float), (runs,)))


def shown_to_controller(measured: np.ndarray) -> np.ndarray:
    """Put 0 for the measured entropies (R,) of runs that overflowed: their records say NaN, their neighbours go on."""
    return np.where(np.isfinite(measured), measured, 0.0)


class Skeletons:
    """Labels of all distinct instances as lists of special tokens (class != 0), padded with -1."""

    def __init__(self, instances: list[Instance]):
        distinct = list({id(instance): instance for instance in instances}.values())
        place = {id(instance): i for i, instance in enumerate(distinct)}
        self.instance = np.array([place[id(instance)] for instance in instances])
        found = [[np.flatnonzero(row) for row in instance.mdp.labels] for instance in distinct]
        width = max(1, max(len(row) for rows in found for row in rows))
        self.special = np.full((len(distinct), distinct[0].mdp.states, width), -1)
        self.classes = np.zeros_like(self.special)
        for i, rows in enumerate(found):
            for s, row in enumerate(rows):
                self.special[i, s, : len(row)] = row
                self.classes[i, s, : len(row)] = distinct[i].mdp.labels[s, row]
        lumped = distinct[0].mdp.multiplicity is not None
        self.multiplicity = np.stack([instance.mdp.multiplicity for instance in distinct]) if lumped else None  # type: ignore[misc]

    @property
    def arrays(self) -> tuple[Any, Any, Any, Any]:
        return self.instance, self.special, self.classes, self.multiplicity


class Parameters:
    """Logits (R, S, A), what they are made of, and the optimiser's moments."""

    def __init__(self, learner: Learner, instances: list[Instance], dtype: Any, rate: Any):
        self.learner, self.rate = learner, np.asarray(rate, dtype=float).reshape(-1, 1, 1)
        self.prior = np.stack([instance.prior for instance in instances]).astype(dtype)
        self.logits = spaced(self.prior.shape, dtype)
        self.logits[:] = self.prior
        self.weights = None
        if learner.parametrisation == "loglinear":
            self.features = shared_features(self.prior.shape[-1], learner.features).astype(dtype)
            self.weights = np.zeros((*self.prior.shape[:2], learner.features + 1), dtype)
            self.weights[..., 0] = 1.0
        trained = self.logits if self.weights is None else self.weights
        moments = trained.shape if learner.optimiser == "adam" else (*trained.shape[:2], 0)
        self.first_moment, self.second_moment = spaced(moments, dtype), spaced(moments, dtype)

    def ascend(self, gradient: np.ndarray, t: int) -> None:
        """One optimiser step along the gradient of the logits (R, S, A), in place."""
        if self.weights is None:
            self._optimise(self.logits, gradient, t)
            return
        along = np.empty_like(self.weights)
        np.einsum("rsa,rsa->rs", gradient, self.prior, out=along[..., 0])  # no (R, S, A) temporaries: memory-bound
        flat = gradient.reshape(-1, gradient.shape[-1])
        along[..., 1:] = (flat @ self.features.T).reshape(along[..., 1:].shape)
        self._optimise(self.weights, along, t)
        weights = np.ascontiguousarray(self.weights[..., 1:]).reshape(len(flat), -1)
        np.matmul(weights, self.features, out=self.logits.reshape(flat.shape))  # one product for all runs, not one each
        self.logits += np.multiply(self.weights[..., :1], self.prior, out=gradient)

    def _optimise(self, trained: np.ndarray, gradient: np.ndarray, t: int) -> None:
        if self.learner.optimiser == "sgd":
            trained += self.rate * gradient
            return
        m, v = self.first_moment, self.second_moment
        m += (1 - kernels.ADAM_BETA1) * (gradient - m)
        v += (1 - kernels.ADAM_BETA2) * (gradient**2 - v)
        m_hat, v_hat = m / (1 - kernels.ADAM_BETA1 ** (t + 1)), v / (1 - kernels.ADAM_BETA2 ** (t + 1))
        trained += self.rate * m_hat / (np.sqrt(v_hat) + kernels.ADAM_EPSILON)


@lru_cache(maxsize=2)
def shared_features(actions: int, features: int) -> np.ndarray:
    """(F, A) standard normal features, the same for every prompt and run: the "embedding" of the log-linear policy."""
    return np.random.default_rng([features, actions]).standard_normal((features, actions), dtype=np.float32)


class Randoms:
    """Uniforms (R, B, H, 2) and normals (R, B) of every step, from one generator per run."""

    def __init__(self, mdp: TokenMDP, learner: Learner, seeds: Sequence[int]):
        responses = int((mdp.start > 0).sum()) * learner.group_size if learner.gradient == "sampled" else 0
        self.shape = (responses, mdp.horizon, 2)
        # A stream of its own: default_rng(seed) alone is also what instances are drawn from.
        self.generators = [np.random.default_rng([int(seed), 1]) for seed in seeds]
        self.none = np.empty((len(seeds), *self.shape)), np.empty((len(seeds), responses))

    def at(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        if self.shape[0] == 0:
            return self.none
        if t % RANDOM_BLOCK == 0:
            self.uniforms = np.stack([g.random((RANDOM_BLOCK, *self.shape)) for g in self.generators], axis=1)
            self.normals = np.stack([g.standard_normal((RANDOM_BLOCK, self.shape[0])) for g in self.generators], axis=1)
        return self.uniforms[t % RANDOM_BLOCK], self.normals[t % RANDOM_BLOCK]


class Recorder:
    """Keeps the measures of every ``record_every``-th step and of the last."""

    def __init__(self, learner: Learner, runs: int):
        self.steps = sorted({*range(0, learner.steps + 1, learner.record_every), learner.steps})
        self.rows = np.empty((4, len(self.steps), runs))
        self.place = {step: i for i, step in enumerate(self.steps)}

    def record(self, t: int, *measures: np.ndarray) -> None:
        if t in self.place:
            self.rows[:, self.place[t]] = measures

    def history(self, logits: np.ndarray) -> History:
        value, full_entropy, support_entropy, coefficient = self.rows
        return History(np.array(self.steps), value, full_entropy, support_entropy, coefficient, logits)


def first_anchor(
    z: np.ndarray, mdp: TokenMDP, multiplicity: np.ndarray | None, instance: np.ndarray, kept: float
) -> tuple[np.ndarray, np.ndarray]:
    """The token at the cut of every row, and how many tokens a unit of logit holds there (a first guess)."""
    if kept >= mdp.actions:
        anchor = np.zeros(z.shape[:2], dtype=np.int64)
    elif multiplicity is None:
        anchor = np.argpartition(z, z.shape[-1] - int(kept), axis=-1)[..., z.shape[-1] - int(kept)]
    else:
        order = np.argsort(-z, axis=-1)
        counts = np.cumsum(np.take_along_axis(multiplicity[instance], order, axis=-1), axis=-1)
        first = (counts < kept).sum(-1, keepdims=True)
        anchor = np.take_along_axis(order, first, axis=-1)[..., 0]
    return anchor, np.full(z.shape[:2], max(1.0, min(kept, mdp.actions - kept)))
