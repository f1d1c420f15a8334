"""Constructors of large-action sparse-reward token MDPs, each with the policy that training starts from.

    token_tree   one prompt, H tokens: stay on one of n optimal tokens at every step to be paid 1 at the end; a few
                 decoys are likelier under the prior and pay less. H = 1 is a bandit. slip makes it stochastic.
    units        many independent one-step problems side by side (the layout of the paper's Fig. 1)
    random_tree, random_mdp   small general MDPs without structure, for attacking propositions
    lump         any instance in its lumped form

Priors: ``plausible`` looks pre-trained (a Zipf head of plausible tokens over a huge, thin tail), ``uniform`` is flat,
``gaussian`` has N(0, 1) logits. Prior, decoys and noise of ``plausible`` are this project's own design: the settings of
the paper's synthetic MDP are not public.

Shape legend: S states, A tokens (or lumps). Randomness enters as one ``numpy.random.Generator`` per instance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import logsumexp, ndtr, ndtri  # scipy.stats would make this import three times as slow

from aent.fields import is_whole_number
from toymdp.mdp import Optimum, TokenMDP, optimum

OTHER, OPTIMAL, DECOY = 0, 1, 2
CLASS_NAMES = ("other", "optimal", "decoy")
PRIORS = ("plausible", "uniform", "gaussian")

HEAD = 100  # plausible tokens
TAIL_MASS = 0.05  # probability of all others together
JITTER = 0.3  # standard deviation of the noise on every log-probability


@dataclass(frozen=True, eq=False)
class Instance:
    """An MDP, the logits (S, A) that training starts from, which tokens are plausible, and the exact optimum."""

    mdp: TokenMDP
    prior: np.ndarray
    plausible: np.ndarray
    optimum: Optimum


def token_tree(
    rng: np.random.Generator,
    *,
    actions: int,
    optimal: int,
    horizon: int = 1,
    decoys: int = 3,
    decoy_reward: float = 0.5,
    prior: str = "plausible",
    slip: float = 0.0,
    reward_noise: float = 0.3,
    bins: int | None = None,
) -> Instance:
    """A response of ``horizon`` tokens among |A|^H, of which optimal^H are paid 1 and decoys^H ``decoy_reward``.

    The folded tree has three states per step: on an optimal prefix, on a decoy prefix, lost. Reward comes at the end.

    Args:
        actions: |A|. ``optimal``, ``decoys``: such tokens in each state.
        prior: one of PRIORS. Under ``plausible`` optima sit at head ranks 10-100, decoys among the top 5.
        slip: probability that a token is read as a wrong one (the stochastic family); V* = (1 - slip)^H.
        reward_noise: standard deviation of the noise that sampling learners see on the return.
        bins: None for one entry per token; else the unremarkable tokens are lumped into that many quantile bins, and
            |A| = 10^9 is no more work than 10^3.

    Examples:
        >>> instance = token_tree(np.random.default_rng(0), actions=10**9, optimal=5, horizon=3, bins=64)
        >>> instance.mdp.actions, instance.prior.shape  # 7 states; 100 plausible tokens and 64 bins
        (1000000000, (7, 164))
        >>> instance.optimum.value, round(instance.optimum.log_responses, 4)  # 5^3 responses are optimal
        (1.0, 4.8283)
    """
    _check(actions, optimal, decoys, decoy_reward, prior, reward_noise, bins)
    _check_whole(horizon=horizon)
    if horizon < 1 or not 0 <= slip < 1:
        raise ValueError(f"expected horizon >= 1 and 0 <= slip < 1, got horizon={horizon}, slip={slip}")
    start, transition, reward = _tree_skeleton(horizon, decoy_reward, slip)
    tracks = [OPTIMAL] + [OPTIMAL, DECOY, OTHER] * (horizon - 1)
    rows = [_tokens(rng, actions, optimal, decoys, prior, bins, track) for track in tracks]
    return _instance(start, transition, reward, rows, reward_noise)


def units(
    rng: np.random.Generator,
    *,
    actions: int,
    optimal: int,
    count: int = 20,
    decoys: int | None = None,
    decoy_reward: float = 0.2,
    prior: str = "gaussian",
    reward_noise: float = 0.0,
    bins: int | None = None,
) -> Instance:
    """``count`` independent one-step problems, visited uniformly: optima pay 1, decoys (|A|/100) pay ``decoy_reward``.

    The levels of the paper's Fig. 1 are .20 + .04 k, as of 20 to 25 independent units; this is our candidate recipe for
    it, not the paper's (which is not public).
    """
    decoys = max(1, actions // 100) if decoys is None else decoys
    _check(actions, optimal, decoys, decoy_reward, prior, reward_noise, bins)
    _check_whole(count=count)
    if count < 1:
        raise ValueError(f"expected at least one unit, got count={count}")
    reward = np.tile([0.0, 1.0, decoy_reward], (count, 1))
    rows = [_tokens(rng, actions, optimal, decoys, prior, bins, OPTIMAL) for _ in range(count)]
    return _instance(np.full(count, 1 / count), np.zeros((count, 3, count)), reward, rows, reward_noise)


def random_tree(rng: np.random.Generator, *, actions: int, horizon: int, sparse: bool = False) -> Instance:
    """A full (unfolded) deterministic token tree with random leaf rewards in [0, 1] and N(0, 2^2) logits.

    One state per prefix, C = A classes: no structure to exploit. ``sparse``: 0/1 rewards with few ones.
    """
    _check_whole(actions=actions, horizon=horizon)
    layers = [actions**t for t in range(horizon)]
    states = sum(layers)
    transition, reward = np.zeros((states, actions, states)), np.zeros((states, actions))
    for s in range(states - layers[-1]):
        transition[s, np.arange(actions), s * actions + 1 + np.arange(actions)] = 1.0
    leaves = rng.random((layers[-1], actions))
    if sparse:
        leaves = (leaves >= min(np.quantile(leaves, 0.9), leaves.max())).astype(float)
    reward[states - layers[-1] :] = leaves
    return _general(rng, np.eye(states)[0], transition, reward)


def random_mdp(rng: np.random.Generator, *, actions: int, horizon: int, width: int) -> Instance:
    """A general stochastic MDP: ``width`` states per step, random start, transitions and rewards; returns in [0, 1]."""
    _check_whole(actions=actions, horizon=horizon, width=width)
    states = width * horizon
    transition, reward = np.zeros((states, actions, states)), rng.random((states, actions)) / horizon
    for t in range(horizon - 1):
        here, there = slice(t * width, (t + 1) * width), slice((t + 1) * width, (t + 2) * width)
        transition[here, :, there] = rng.dirichlet(np.full(width, 0.5), size=(width, actions))
    start = np.zeros(states)
    start[:width] = rng.dirichlet(np.ones(width))
    return _general(rng, start, transition, reward)


def lump(instance: Instance, bins: int) -> Instance:
    """The same instance with the tokens of class ``other`` outside the head merged into quantile bins of their logit.

    Exact when the merged tokens start with equal logits (they then stay equal under exact gradients); a controlled
    approximation otherwise. A lump's logit is the log-mean-exp of its tokens, which keeps every class's probability.
    """
    mdp = instance.mdp
    if mdp.multiplicity is not None:
        raise ValueError("the instance is lumped already")
    _check_whole(bins=bins)
    if bins < 1:
        raise ValueError(f"bins={bins}: at least one quantile bin is needed")
    mergeable = (mdp.labels == OTHER) & ~instance.plausible
    if not mergeable.any():
        raise ValueError(f"nothing to lump: all {mdp.actions} tokens are plausible, optimal or decoys")
    kept = mdp.entries - mergeable.sum(axis=1)
    entries = min(mdp.entries, int(kept.max()) + bins)  # one row length for all states: fewer kept tokens, more bins
    rows = []
    for s, merged in enumerate(mergeable):
        places = entries - kept[s]
        tokens = np.sort(instance.prior[s, merged])
        parts = np.array_split(tokens, places) if places else []
        tail = _Tokens.lumped([logsumexp(part) - np.log(len(part)) for part in parts], [len(part) for part in parts])
        own = _Tokens(instance.prior[s, ~merged], mdp.labels[s, ~merged], instance.plausible[s, ~merged])
        rows.append(own.join(tail))
    return _instance(mdp.start, mdp.transition, mdp.reward, rows, mdp.reward_noise)


# -------------------------------------------------------------------------------------------------------- internals


@dataclass(frozen=True)
class _Tokens:
    """The tokens of one state."""

    logits: np.ndarray
    labels: np.ndarray
    plausible: np.ndarray
    multiplicity: np.ndarray | None = None

    @classmethod
    def lumped(cls, logits: list[float] | np.ndarray, sizes: list[int] | np.ndarray) -> _Tokens:
        count = len(logits)
        return cls(np.asarray(logits), np.full(count, OTHER), np.zeros(count, bool), np.asarray(sizes, dtype=float))

    def join(self, tail: _Tokens) -> _Tokens:
        ones = np.ones(len(self.logits))
        own = ones if self.multiplicity is None else self.multiplicity
        return _Tokens(
            np.concatenate([self.logits, tail.logits]),
            np.concatenate([self.labels, tail.labels]),
            np.concatenate([self.plausible, tail.plausible]),
            np.concatenate([own, np.ones(len(tail.logits)) if tail.multiplicity is None else tail.multiplicity]),
        )

    def shuffled(self, rng: np.random.Generator) -> _Tokens:
        order = rng.permutation(len(self.logits))
        return _Tokens(self.logits[order], self.labels[order], self.plausible[order])


def _tokens(
    rng: np.random.Generator, actions: int, optimal: int, decoys: int, prior: str, bins: int | None, track: int
) -> _Tokens:
    """Prior and labels of one state; on a decoy prefix only decoys count, on a lost one nothing does."""
    named, tail_logits = _named_tokens(rng, actions, optimal, decoys, prior)
    dead = {OPTIMAL: (), DECOY: (OPTIMAL,), OTHER: (OPTIMAL, DECOY)}[track]
    named = replace(named, labels=np.where(np.isin(named.labels, dead), OTHER, named.labels))
    rest = actions - len(named.logits)
    mean, spread = tail_logits
    if bins is None:
        logits = mean + spread * rng.standard_normal(rest)
        tail = _Tokens(logits, np.full(rest, OTHER), np.zeros(rest, bool))
        return named.join(tail).shuffled(rng)
    return named.join(_Tokens.lumped(*_quantile_bins(mean, spread, rest, bins))) if rest else named


def _named_tokens(
    rng: np.random.Generator, actions: int, optimal: int, decoys: int, prior: str
) -> tuple[_Tokens, tuple[float, float]]:
    """Tokens that are kept one by one (head, optima, decoys), and (mean, spread) of the logits of all the others."""
    if prior != "plausible":
        spread = {"uniform": 0.0, "gaussian": 1.0}[prior]
        labels = np.repeat([OPTIMAL, DECOY], [optimal, decoys])
        logits = spread * rng.standard_normal(len(labels))
        return _Tokens(logits, labels, np.zeros(len(labels), bool)), (0.0, spread)
    head = min(HEAD, actions)
    log_head = -np.log(np.arange(1, head + 1)) + JITTER * rng.standard_normal(head)
    tail_mass = TAIL_MASS if actions > head else 0.0
    log_head += np.log1p(-tail_mass) - logsumexp(log_head)
    labels = np.full(head, OTHER)
    first = min(9, head - optimal)  # best rank an optimum may have; decoys stay above it, also in a small head
    labels[rng.choice(min(5, first), size=decoys, replace=False)] = DECOY
    labels[rng.choice(np.arange(first, head), size=optimal, replace=False)] = OPTIMAL
    mean = np.log(tail_mass / (actions - head)) - JITTER**2 / 2 if actions > head else 0.0
    return _Tokens(log_head, labels, np.ones(head, bool)), (float(mean), JITTER)


def _quantile_bins(mean: float, spread: float, count: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-mean-exp and size of ``bins`` equal quantile bins of N(mean, spread^2) logits, in closed form."""
    if spread == 0.0:
        return np.array([mean]), np.array([count])
    bins = min(bins, count)
    edges = ndtri(np.linspace(0, 1, bins + 1))
    mass = np.diff(ndtr(edges - spread)) * bins  # of a log-normal: E[e^{spread x} | bin] / E[e^{spread x}]
    return mean + spread**2 / 2 + np.log(mass), np.full(bins, count / bins)


def _tree_skeleton(horizon: int, decoy_reward: float, slip: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    states = 3 * horizon - 2
    transition, reward = np.zeros((states, 3, states)), np.zeros((states, 3))
    for s in range(states):
        step, track = (0, 0) if s == 0 else ((s + 2) // 3, (s + 2) % 3)  # track: 0 optimal, 1 decoy, 2 lost
        good = {0: {OPTIMAL: (0, 1.0), DECOY: (1, decoy_reward)}, 1: {DECOY: (1, decoy_reward)}, 2: {}}[track]
        if step == 0 or track < 2:
            for label, (_, paid) in good.items():
                reward[s, label] = (1 - slip) * paid if step == horizon - 1 else 0.0
        if step < horizon - 1:
            base = 3 * step + 1  # the next step's (optimal, decoy, lost)
            for label in (OTHER, OPTIMAL, DECOY):
                onward = good.get(label, (2, 0.0))[0]
                transition[s, label, base + onward] += 1 - slip
                transition[s, label, base + 2] += slip
    return np.eye(states)[0], transition, reward


def _instance(
    start: np.ndarray, transition: np.ndarray, reward: np.ndarray, rows: list[_Tokens], noise: float
) -> Instance:
    multiplicity = None if rows[0].multiplicity is None else np.stack([row.multiplicity for row in rows])  # type: ignore[arg-type]
    labels = np.stack([row.labels for row in rows]).astype(np.uint8)
    mdp = TokenMDP(start, transition, reward, labels, multiplicity, noise, CLASS_NAMES)
    return Instance(
        mdp, np.stack([row.logits for row in rows]), np.stack([row.plausible for row in rows]), optimum(mdp)
    )


def _general(rng: np.random.Generator, start: np.ndarray, transition: np.ndarray, reward: np.ndarray) -> Instance:
    states, actions = reward.shape
    mdp = TokenMDP(start, transition, reward, np.tile(np.arange(actions), (states, 1)))
    prior = 2.0 * rng.standard_normal((states, actions))
    return Instance(mdp, prior, np.ones((states, actions), bool), optimum(mdp))


def _check(
    actions: int, optimal: int, decoys: int, decoy_reward: float, prior: str, reward_noise: float, bins: int | None
) -> None:
    if prior not in PRIORS:
        raise ValueError(f"unknown prior {prior!r}: expected one of {', '.join(PRIORS)}")
    _check_whole(actions=actions, optimal=optimal, decoys=decoys, bins=1 if bins is None else bins)
    if optimal < 1 or decoys < 0 or optimal + decoys >= actions:
        raise ValueError(
            f"need 1 <= optimal, 0 <= decoys, optimal + decoys < actions; got {optimal}, {decoys}, {actions}"
        )
    if prior == "plausible" and (decoys > 5 or optimal + decoys > min(HEAD, actions)):
        raise ValueError(
            f"the plausible head holds {HEAD} tokens: at most 5 decoys and {HEAD - 5} optima, got {decoys}, {optimal}"
        )
    if not 0 <= decoy_reward < 1:
        raise ValueError(f"decoy_reward={decoy_reward}: expected 0 <= decoy_reward < 1, or the decoys are the optimum")
    if not 0 <= reward_noise < np.inf:
        raise ValueError(f"reward_noise={reward_noise}: a standard deviation, expected >= 0")
    if bins is not None and bins < 1:
        raise ValueError(f"bins={bins}: at least one, or None for one entry per token")


def _check_whole(**numbers: Any) -> None:
    for name, number in numbers.items():
        if not is_whole_number(number):
            raise ValueError(f"{name}={number!r}: expected a whole number")
