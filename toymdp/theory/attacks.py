"""Instances and policies to attack the propositions with: random ones, ones met during training, and optimised ones.

Rewards are rescaled at random, so that a bound that forgets the reward range is found out. ``ascent`` is the smallest
exact-gradient training loop; the learners that are compared with each other live in ``learners.py``.

Shape legend: B policies per case, S states, A tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from toymdp.families import Instance, random_mdp, random_tree, token_tree
from toymdp.mdp import Optimum, SoftOptimum, TokenMDP, optimum, policy_gradient, soft_optimum, softmax
from toymdp.theory.bounds import value_span

Array = np.ndarray
KINDS = ("bandit", "tree", "mdp", "token_tree")


@dataclass(frozen=True, eq=False)
class Case:
    """One MDP, a batch of logits (B, S, A) to test on it, and a coefficient of the size of its rewards."""

    kind: str
    mdp: TokenMDP
    logits: Array
    coefficient: float
    trained: int  # the last so many of the B policies come from training runs

    @cached_property
    def policy(self) -> Array:
        return softmax(self.mdp, self.logits)

    @cached_property
    def optimum(self) -> Optimum:
        return optimum(self.mdp)

    @cached_property
    def soft(self) -> SoftOptimum:
        return soft_optimum(self.mdp, self.coefficient)

    @cached_property
    def span(self) -> float:
        return value_span(self.mdp)


def ascent(
    mdp: TokenMDP,
    logits: Float[Array, "*batch S A"],
    *,
    rate: float | Array,
    steps: int,
    coefficient: float = 0.0,
    record: Array | None = None,
) -> Float[Array, "time *batch S A"]:
    """Exact gradient ascent on V_lambda; logits after the steps listed in ``record`` (default: all, 0 to steps)."""
    record = np.arange(steps + 1) if record is None else np.asarray(record)
    kept, z = [], np.array(logits, dtype=float)
    wanted = set(record.tolist())
    for t in range(steps + 1):
        if t in wanted:
            kept.append(z.copy())
        z = z + rate * policy_gradient(mdp, z, coefficient)
    return np.stack(kept)


def cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    """``count`` cases of every kind, each with random, collapsed and trained policies."""
    for kind in KINDS:
        for _ in range(count):
            yield _case(rng, kind, _instance(rng, kind))


def maximise(
    objective: Callable[[Array], float], start: Float[Array, " n"], *, bound: float = 12.0
) -> tuple[float, Float[Array, " n"]]:
    """Climb from ``start`` inside the box [-bound, bound] (L-BFGS with numeric gradients): the value and the point."""
    found = minimize(lambda x: -objective(x), start, method="L-BFGS-B", bounds=[(-bound, bound)] * len(start))
    return -float(found.fun), found.x


def bandit(reward: Float[Array, " A"]) -> TokenMDP:
    """One state, one token, the given rewards."""
    actions = len(reward)
    return TokenMDP(
        np.ones(1), np.zeros((1, actions, 1)), np.asarray(reward, dtype=float)[None], np.arange(actions)[None]
    )


def _instance(rng: np.random.Generator, kind: str) -> Instance:
    if kind == "bandit":
        return random_tree(rng, actions=int(rng.choice([2, 3, 5, 20])), horizon=1, sparse=bool(rng.random() < 0.3))
    if kind == "tree":
        actions, horizon = [(2, 2), (2, 4), (3, 2), (3, 3), (5, 2)][rng.integers(5)]
        return random_tree(rng, actions=actions, horizon=horizon, sparse=bool(rng.random() < 0.5))
    if kind == "mdp":
        horizon, width = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        return random_mdp(rng, actions=int(rng.integers(2, 6)), horizon=horizon, width=width)
    return token_tree(
        rng,
        actions=int(rng.choice([30, 300])),
        optimal=int(rng.integers(1, 5)),
        horizon=int(rng.integers(1, 4)),
        prior=str(rng.choice(["plausible", "uniform", "gaussian"])),
        slip=float(rng.choice([0.0, 0.2])),
    )


def _case(rng: np.random.Generator, kind: str, instance: Instance) -> Case:
    scale = 10 ** rng.uniform(-1, 1)
    mdp = replace(instance.mdp, reward=scale * instance.mdp.reward)
    coefficient = scale * 10 ** rng.uniform(-1.5, 0)
    drawn = _random_logits(rng, instance.prior)
    start = np.stack([instance.prior, drawn[0]])
    record = np.array([3, 10, 30])
    rate = 3 / value_span(mdp)
    runs = [ascent(mdp, start, rate=rate, steps=30, coefficient=c, record=record) for c in (0.0, coefficient)]
    trained = np.concatenate(runs).reshape(-1, *instance.prior.shape)
    return Case(kind, mdp, np.concatenate([instance.prior[None], drawn, trained]), coefficient, len(trained))


def _random_logits(rng: np.random.Generator, prior: Float[Array, "S A"]) -> Float[Array, "B S A"]:
    """Nearly uniform to nearly deterministic, and two policies collapsed on a random token in every state."""
    spread = [scale * rng.standard_normal(prior.shape) for scale in (0.1, 1.0, 3.0, 8.0)]
    one_hot = np.eye(prior.shape[1])[rng.integers(prior.shape[1], size=(2, prior.shape[0]))]
    depth = np.array([6.0, 14.0])[:, None, None] + math.log(prior.shape[1])
    return np.concatenate([np.stack(spread), depth * one_hot + rng.standard_normal(one_hot.shape)])
