"""Finite-horizon token MDPs with huge action sets, and everything about them that is exact.

A response is a sequence of tokens. What matters about a token is its *class* (optimal, decoy, other): two tokens of
one class in one state lead to the same future. So an MDP over |A| tokens is a small skeleton over C classes plus a
label for every token. Dynamic programming runs on the skeleton; only softmax, class sums and gradients touch |A|
numbers. C = |A| gives back the general tabular MDP.

States are sorted in time: a transition leads to a later index or, with the missing probability, ends the response. A
token tree is folded: prefixes with the same future are one state.

``multiplicity`` makes the lumped form: entry (s, a) then stands for that many identical tokens, and every formula
below stays exact, so |A| = 10^9 costs what its few hundred distinct tokens cost.

Left out on purpose: training (``learners.py``) and any sampling (``envs.py``).

Shape legend: S states, C classes, A tokens (or lumps); ``*batch`` leading shape of a batch of policies. Policies and
logits are (*batch, S, A); probabilities are *per token*. Entropies are in nats, summed over time unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from aent.fields import is_finite_number

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class TokenMDP:
    """A token MDP. Build one with ``families.py``; the constructor validates.

    Args:
        start: (S,) distribution of the first state.
        transition: (S, C, S) probability of the next state; what is missing to 1 ends the response.
        reward: (S, C) mean reward of a token of that class.
        labels: (S, A) class of every token.
        multiplicity: (S, A) tokens that an entry stands for; None means 1 each.
        reward_noise: standard deviation of Gaussian noise on the return, seen by sampling learners only.
        class_names: names for figures, one per class.

    Examples:
        One state, two classes, four tokens; the last token is of class 1, which pays 1.

        >>> mdp = TokenMDP(np.ones(1), np.zeros((1, 2, 1)), np.array([[0.0, 1.0]]), np.array([[0, 0, 0, 1]]))
        >>> mdp.actions, mdp.horizon, optimum(mdp).value
        (4, 1, 1.0)
    """

    start: Array
    transition: Array
    reward: Array
    labels: Array
    multiplicity: Array | None = None
    reward_noise: float = 0.0
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        S, C, _ = self.transition.shape
        if self.start.shape != (S,) or self.reward.shape != (S, C) or self.labels.shape[:-1] != (S,):
            raise ValueError(
                f"shapes disagree: start {self.start.shape}, transition {self.transition.shape}, "
                f"reward {self.reward.shape}, labels {self.labels.shape}; expected (S,), (S, C, S), (S, C), (S, A)"
            )
        for name in ("start", "transition", "reward", "multiplicity", "reward_noise"):
            numbers = getattr(self, name)
            if numbers is not None and not np.isfinite(numbers).all():
                raise ValueError(f"{name} must be finite: it holds NaN or an infinity")
        if np.any(self.start < 0) or abs(self.start.sum() - 1) > 1e-9:
            raise ValueError("start must be a probability distribution over states")
        if np.any(self.transition < 0) or np.any(self.transition.sum(-1) > 1 + 1e-9):
            raise ValueError("transition rows must be >= 0 and sum to at most 1 (the rest ends the response)")
        if np.any(np.tril(self.transition.max(axis=1))):
            raise ValueError("states must be sorted in time: a transition may only lead to a later state index")
        if self.labels.min() < 0 or self.labels.max() >= C:
            raise ValueError(f"labels must be classes 0..{C - 1}")
        if self.multiplicity is not None and (
            self.multiplicity.shape != self.labels.shape or self.multiplicity.min() <= 0
        ):
            raise ValueError("multiplicity must be positive and of the shape of labels")

    @property
    def states(self) -> int:
        return self.start.shape[0]

    @property
    def classes(self) -> int:
        return self.reward.shape[1]

    @property
    def entries(self) -> int:
        """Stored tokens or lumps, the last axis of a policy."""
        return self.labels.shape[1]

    @cached_property
    def actions(self) -> int:
        """|A|: tokens per state, lumps counted with their multiplicity."""
        return self.entries if self.multiplicity is None else round(float(self.multiplicity[0].sum()))

    @cached_property
    def membership(self) -> Array:
        """(S, A, C) tokens of entry a in class c: multiplicity at the label, else 0."""
        one_hot = self.labels[..., None] == np.arange(self.classes)
        return one_hot * (1.0 if self.multiplicity is None else self.multiplicity[..., None])

    @cached_property
    def class_sizes(self) -> Array:
        """(S, C) tokens of each class in each state."""
        weights = np.ones(self.entries) if self.multiplicity is None else None
        rows = [
            np.bincount(self.labels[s], weights if self.multiplicity is None else self.multiplicity[s], self.classes)
            for s in range(self.states)
        ]
        return np.stack(rows)

    @cached_property
    def depth(self) -> Array:
        """(S,) time step of each state (the longest way to it)."""
        depth = np.zeros(self.states, dtype=int)
        for s in range(self.states):
            for later in np.flatnonzero(self.transition[s].max(axis=0)):
                depth[later] = max(depth[later], depth[s] + 1)
        return depth

    @property
    def horizon(self) -> int:
        """H: tokens of the longest response."""
        return int(self.depth.max()) + 1

    @property
    def deterministic(self) -> bool:
        """Whether the start state and every transition are certain."""
        certain = np.isin(self.transition.sum(-1), (0.0, 1.0)).all() and np.isin(self.transition, (0.0, 1.0)).all()
        return bool(certain and np.isin(self.start, (0.0, 1.0)).all())


# ------------------------------------------------------------------------------------------------- policies, exactly


def softmax(mdp: TokenMDP, logits: Float[Array, "*batch S A"]) -> Float[Array, "*batch S A"]:
    """Probability of one token: pi(a|s) = e^{z_a} / sum_b m_b e^{z_b}, m the multiplicities (1 unless lumped)."""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weighted = odds if mdp.multiplicity is None else odds * mdp.multiplicity
    return odds / weighted.sum(axis=-1, keepdims=True)


def class_mass(mdp: TokenMDP, policy: Float[Array, "*batch S A"]) -> Float[Array, "*batch S C"]:
    """Probability that the token drawn in state s is of class c."""
    return (policy[..., None, :] @ mdp.membership)[..., 0, :]


def state_entropy(mdp: TokenMDP, policy: Float[Array, "*batch S A"]) -> Float[Array, "*batch S"]:
    """Entropy of the next token in every state, nats: - sum_a m_a pi_a log pi_a.

    Examples:
        >>> from toymdp.suite import make
        >>> instance = make("smoke-lumped")  # 10^6 tokens in 116 entries
        >>> uniform = np.full(instance.prior.shape, 1e-6)  # the probability of one token, not of an entry
        >>> state_entropy(instance.mdp, uniform).round(4).tolist()  # 6 log 10
        [13.8155]
    """
    terms = -policy * np.log(np.where(policy > 0, policy, 1.0))
    return terms.sum(axis=-1) if mdp.multiplicity is None else (terms * mdp.multiplicity).sum(axis=-1)


def action_values(mdp: TokenMDP, values: Float[Array, "*batch S"]) -> Float[Array, "*batch S C"]:
    """Q(s, c) = r(s, c) + sum_s' P(s'|s, c) V(s')."""
    return mdp.reward + np.einsum("scn,...n->...sc", mdp.transition, values)


def state_values(
    mdp: TokenMDP, policy: Float[Array, "*batch S A"], coefficient: float = 0.0
) -> Float[Array, "*batch S"]:
    """V_lambda^pi(s) by backward induction: expected return plus coefficient times the entropy still to come."""
    mass = class_mass(mdp, policy)
    bonus = coefficient * state_entropy(mdp, policy) if coefficient else np.zeros(mass.shape[:-1])
    values = np.zeros(mass.shape[:-1])
    for s in reversed(range(mdp.states)):
        q = mdp.reward[s] + values @ mdp.transition[s].T
        values[..., s] = (mass[..., s, :] * q).sum(axis=-1) + bonus[..., s]
    return values


def value(mdp: TokenMDP, policy: Float[Array, "*batch S A"], coefficient: float = 0.0) -> Any:
    """V_lambda^pi = V^pi + lambda H(pi) over the start distribution; coefficient 0 is the expected return.

    Examples:
        >>> from toymdp.suite import make
        >>> instance = make("smoke-bandit")  # of 20 tokens one pays 1 and two pay 0.5
        >>> uniform = np.full(instance.prior.shape, 1 / 20)
        >>> float(round(value(instance.mdp, uniform), 6))  # (1 + 2 * 0.5) / 20
        0.1

    Reference: arXiv 2509.03493, V_lambda.
    """
    return state_values(mdp, policy, coefficient) @ mdp.start


def visitation(mdp: TokenMDP, policy: Float[Array, "*batch S A"]) -> Float[Array, "*batch S"]:
    """d(s): probability that a response visits state s (sums to the expected length over all states)."""
    mass = class_mass(mdp, policy)
    visits = np.broadcast_to(mdp.start, mass.shape[:-1]).copy()
    for s in range(mdp.states):
        visits += visits[..., s, None] * (mass[..., s, :] @ mdp.transition[s])
    return visits


def response_entropy(mdp: TokenMDP, policy: Float[Array, "*batch S A"]) -> Any:
    """H(pi) = sum_t E[H(pi(.|s_t))], nats per response.

    Reference: arXiv 2509.03493, policy entropy as a sum over time.
    """
    return (visitation(mdp, policy) * state_entropy(mdp, policy)).sum(axis=-1)


def policy_gradient(
    mdp: TokenMDP, logits: Float[Array, "*batch S A"], coefficient: float = 0.0
) -> Float[Array, "*batch S A"]:
    """Exact gradient of V_lambda with respect to each token's logit, the effect on later states included.

    dV_lambda/dz_{s,a} = d(s) pi(a|s) (Q_lambda(s, a) - lambda log pi(a|s) - V_lambda(s)). In the lumped form this is
    the derivative for *one* of the identical tokens, so lumps follow the same path as the tokens they stand for.
    """
    policy = softmax(mdp, logits)
    values = state_values(mdp, policy, coefficient)
    advantage = per_token(mdp, action_values(mdp, values)) - values[..., None]
    if coefficient:
        advantage = advantage - coefficient * np.log(np.where(policy > 0, policy, 1.0))
    return visitation(mdp, policy)[..., None] * policy * advantage


def per_token(mdp: TokenMDP, by_class: Float[Array, "*batch S C"]) -> Float[Array, "*batch S A"]:
    """Look a class quantity up for every token."""
    return by_class[..., np.arange(mdp.states)[:, None], mdp.labels]


# ------------------------------------------------------------------------------------------------------------ optima


@dataclass(frozen=True, eq=False)
class Optimum:
    """V*, V*(s), Q*(s, c) and log|A*_H|, the log-number of optimal responses.

    With random transitions ``log_responses`` is the largest entropy an optimal policy can have: the same number when
    everything is certain, and what Prop. 2 needs when it is not.
    """

    value: float
    state_values: Array
    action_values: Array
    log_responses: float


@dataclass(frozen=True, eq=False)
class SoftOptimum:
    """The maximiser of V_lambda (over a support): its soft value, expected return, entropy, and mass by class."""

    soft_value: float
    value: float
    entropy: float
    class_mass: Array

    def policy(self, mdp: TokenMDP) -> Array:
        """(S, A) per-token probabilities (full support)."""
        share = np.divide(
            self.class_mass, mdp.class_sizes, out=np.zeros_like(self.class_mass), where=mdp.class_sizes > 0
        )
        return per_token(mdp, share)


def optimum(mdp: TokenMDP) -> Optimum:
    """Optimal values by backward induction, and the number of optimal responses."""
    values, spread = np.zeros(mdp.states), np.zeros(mdp.states)
    q = np.zeros((mdp.states, mdp.classes))
    sizes = mdp.class_sizes
    for s in reversed(range(mdp.states)):
        present = sizes[s] > 0
        q[s] = mdp.reward[s] + mdp.transition[s] @ values
        values[s] = q[s][present].max()
        best = present & (q[s] >= values[s] - 1e-12)
        spread[s] = _log_sum(mdp.transition[s, best] @ spread, sizes[s, best])
    return Optimum(float(mdp.start @ values), values, q, float(mdp.start @ spread))


def _log_sum(scores: Array, weights: float | Array = 1.0) -> float:
    """log sum_i w_i e^score_i; scipy's ``logsumexp`` takes twenty times as long for a few numbers."""
    top = scores.max()
    return float(top + np.log(np.sum(weights * np.exp(scores - top))))


def log_responses(mdp: TokenMDP) -> float:
    """log of the number of responses, H log|A| when all have H tokens: the largest entropy any policy can have."""
    spread = np.zeros(mdp.states)
    for s in reversed(range(mdp.states)):
        spread[s] = _log_sum(mdp.transition[s] @ spread, mdp.class_sizes[s])
    return float(mdp.start @ spread)


def soft_optimum(mdp: TokenMDP, coefficient: float, kept_sizes: Float[Array, "S C"] | None = None) -> SoftOptimum:
    """Closed-form maximiser of V_lambda: V*_lambda(s) = lambda log sum_a exp(Q_lambda(s, a) / lambda).

    Args:
        coefficient: lambda > 0.
        kept_sizes: (S, C) tokens of each class inside the support; the *clamped optimum*, the best policy among those
            that use kept tokens only. Default: all tokens.

    Raises:
        ValueError: a coefficient that is not positive, or a state without any kept token.

    Examples:
        Of four tokens one pays 1; at e^(1 / coefficient) = 3 it weighs as much as the three others together.

        >>> mdp = TokenMDP(np.ones(1), np.zeros((1, 2, 1)), np.array([[0.0, 1.0]]), np.array([[0, 0, 0, 1]]))
        >>> soft = soft_optimum(mdp, coefficient=1 / np.log(3))
        >>> round(soft.value, 4), round(soft.soft_value, 4)  # 3 / (3 + 3), and log(3 + 3) / log 3
        (0.5, 1.6309)
    """
    if not (is_finite_number(coefficient) and coefficient > 0):
        raise ValueError(
            f"coefficient={coefficient!r}: the soft optimum needs lambda > 0; use optimum() for lambda = 0"
        )
    sizes = mdp.class_sizes if kept_sizes is None else np.asarray(kept_sizes, dtype=float)
    if np.any(sizes > mdp.class_sizes + 1e-9) or np.any(sizes < 0) or np.any(sizes.sum(-1) <= 0):
        raise ValueError("kept_sizes must keep at least one token per state and at most as many as each class has")
    soft, plain, entropy = np.zeros(mdp.states), np.zeros(mdp.states), np.zeros(mdp.states)
    mass = np.zeros((mdp.states, mdp.classes))
    with np.errstate(divide="ignore"):
        log_sizes = np.log(sizes)
    for s in reversed(range(mdp.states)):
        scores = (mdp.reward[s] + mdp.transition[s] @ soft) / coefficient + log_sizes[s]
        total = _log_sum(scores)
        mass[s] = np.exp(scores - total)
        soft[s] = coefficient * total
        plain[s] = mass[s] @ (mdp.reward[s] + mdp.transition[s] @ plain)
        present = mass[s] > 0
        own = mass[s, present] @ (log_sizes[s, present] - np.log(mass[s, present]))
        entropy[s] = own + mass[s] @ (mdp.transition[s] @ entropy)
    return SoftOptimum(float(mdp.start @ soft), float(mdp.start @ plain), float(mdp.start @ entropy), mass)
