"""Closed forms behind the propositions: sharp constants, exact soft gaps, worst cases.

Each function is one formula with its derivation in a line or two; ``propositions.py`` attacks all of them on random
instances. What is sharper than the published statement says so.

Left out on purpose: the published proofs (not public), and any bound on a clamped policy outside its kept set.

Shape legend: S states, A tokens (or lumps); ``*batch`` a batch of policies. d(s) is the probability that a response
visits s, d*(s) the same for an optimal policy. Entropies are in nats per response.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit, wrightomega

from toymdp.mdp import Optimum, SoftOptimum, TokenMDP, optimum, per_token, visitation

Array = np.ndarray

GRADIENT_L2 = math.sqrt(2) / (4 * math.log(2))
"""Sharp constant of ||grad V||_2 <= C R H(pi), 0.5100697...; the published one is 2.

One state, advantage range R: the worst rewards are 0 or R on a set of mass m (convexity), where the norm is at most
sqrt(2) R m (1 - m), and H >= h_b(m) >= 4 ln 2 m (1 - m), with equality at m = 1/2. Over states the l2 norm of the rows
d(s) C R H(s) is at most their sum C R H(pi): so it holds for every horizon and for random transitions.
"""

GRADIENT_L1 = 1 / (2 * math.log(2))
"""Sharp constant of ||grad V||_1 <= C R H(pi), 0.7213475...; the same proof with norm 2 R m (1 - m)."""


# -------------------------------------------------------------------------------------------------- gradients and gaps


def norm(mdp: TokenMDP, gradient: Float[Array, "*batch S A"], order: int = 2) -> Any:
    """l1 or l2 norm over the logits of all |A| tokens of all states; an entry for m tokens counts m times."""
    weight = 1.0 if mdp.multiplicity is None else mdp.multiplicity
    size = np.abs(gradient)
    peak = np.maximum(size.max(axis=(-2, -1)), np.finfo(float).tiny)  # scaled: squares of 1e-170 would vanish
    return peak * (weight * (size / peak[..., None, None]) ** order).sum(axis=(-2, -1)) ** (1 / order)


def value_span(mdp: TokenMDP) -> float:
    """R: the largest difference of expected return-to-go that choices in one reachable state can make.

    max_s V*(s) - V_min(s). At most the range of the return, so bounds with R hold with R_max too.
    """
    lowest = optimum(replace(mdp, reward=-mdp.reward))
    spread = optimum(mdp).state_values + lowest.state_values
    uniform = np.broadcast_to(1 / mdp.class_sizes.sum(-1, keepdims=True), (mdp.states, mdp.entries))
    return float(spread[visitation(mdp, uniform) > 0].max())


def mode_bound(mdp: TokenMDP, policy: Float[Array, "*batch S A"]) -> Any:
    """sqrt(2) sum_s d(s) q_s (1 - q_s), q_s the largest probability: bounds ||grad V||_2 / R when every q_s >= 1/2.

    A set or its complement holds the mode, so its mass m has m (1 - m) <= q (1 - q). Below q = 1/2 the factor
    q (1 - q) is replaced by its maximum 1/4.
    """
    peak = np.maximum(policy.max(axis=-1), 0.5)
    return math.sqrt(2) * (visitation(mdp, policy) * peak * (1 - peak)).sum(axis=-1)


def optimal_entries(mdp: TokenMDP, best: Optimum) -> Bool[Array, "S A"]:
    """Which tokens an optimal policy may take."""
    tolerance = 1e-12 * (1 + np.abs(best.state_values[:, None]))
    return per_token(mdp, best.action_values) >= best.state_values[:, None] - tolerance


def response_probability(mdp: TokenMDP, policy: Float[Array, "*batch S A"], allowed: Bool[Array, "S A"]) -> Any:
    """pi(tau): probability of the likeliest response made of allowed tokens only.

    Raises:
        ValueError: random transitions, where a response is more than its tokens; use ``mismatch``.
    """
    if not mdp.deterministic:
        raise ValueError("response_probability needs certain start and transitions; use mismatch() for stochastic MDPs")
    with np.errstate(divide="ignore"):
        log_policy = np.where(allowed, np.log(policy), -math.inf)
    best = np.zeros(policy.shape[:-1])
    for s in reversed(range(mdp.states)):
        onward = np.where(mdp.transition[s] > 0, best[..., None, :], 0.0).sum(axis=-1)  # 0 * -inf must stay 0
        best[..., s] = (log_policy[..., s, :] + onward[..., mdp.labels[s]]).max(axis=-1)
    return np.exp(best[..., int(mdp.start.argmax())])


def mismatch(mdp: TokenMDP, best: Optimum, policy: Float[Array, "*batch S A"]) -> Any:
    """M with V* - V <= M ||grad V||_2, for any transitions: sqrt(sum_s (d*(s) / (d(s) pi(a*_s|s)))^2).

    Performance difference: ``V* - V = sum_s d*(s) Adv(s, a*_s) = sum_s d*(s) / (d(s) pi(a*_s|s)) dV/dz_{s,a*_s}``, then
    Cauchy-Schwarz. ``a*_s`` is the likeliest optimal token. On a tree M <= sqrt(H) / pi(tau*), the form of P1b.

    Raises:
        ValueError: a lumped instance (a single token of a lump is not a policy of the lumped form).

    Reference: non-uniform Lojasiewicz inequality, Mei et al. 2020 (arXiv 2005.06392, Lemma 8), without its 1/sqrt(S).
    """
    if mdp.multiplicity is not None:
        raise ValueError("mismatch needs one entry per token; build the instance with bins=None")
    likeliest = np.where(optimal_entries(mdp, best), policy, -1.0).argmax(axis=-1)
    chosen = np.eye(mdp.entries)[likeliest]
    optimal_visits = visitation(mdp, chosen)
    reach = visitation(mdp, policy) * (chosen * policy).sum(axis=-1)
    ratio = np.divide(optimal_visits, reach, out=np.where(optimal_visits > 0, np.inf, 0.0), where=reach > 0)
    return np.sqrt((ratio**2).sum(axis=-1))


# ------------------------------------------------------------------------------------------- bias of the soft optimum
# M responses in all, N of them optimal, given as log M and log N: 1e9 tokens and 3 steps are already 1e27 responses.


def published_bias(log_all: float, log_optimal: float, coefficient: float) -> float:
    """lambda (H log|A| - log|A*_H|), the bias term of Prop. 2 (in units of the return)."""
    return coefficient * (log_all - log_optimal)


def soft_gap(log_all: float, log_optimal: float, coefficient: float) -> float:
    """V* - V of the soft-optimal policy when N of M certain responses pay 1 and the others 0.

    1 / (1 + exp(1/lambda - log((M - N)/N))): the soft optimum of a tree is softmax(return / lambda) over responses.

    Examples:
        >>> round(soft_gap(math.log(9), 0.0, 1 / math.log(4)), 6)  # weights 4 for the right one, 8 for the others
        0.666667
    """
    return float(expit(_log_odds(log_all, log_optimal) - 1 / coefficient))


def critical_coefficient(log_all: float, log_optimal: float) -> float:
    """lambda_c = 1 / log((M - N)/N): half of the mass of the soft optimum is off the optimal responses.

    Raises:
        ValueError: no transition, when at least half of all responses are optimal.

    Examples:
        >>> round(critical_coefficient(math.log(1e5), 0.0), 4)
        0.0869
    """
    odds = _log_odds(log_all, log_optimal)
    if odds <= 1e-12:  # rounding of the logarithms
        raise ValueError("at least half of the responses are optimal: the soft optimum has no transition")
    return 1 / odds


def worst_case_bias(log_all: float, log_optimal: float, coefficient: float) -> float:
    """sup over rewards of V* - V of the soft optimum: lambda W((M - N) / (N e)), W Lambert's function.

    All wrong responses at distance D give lambda K x e^-x / (1 + K e^-x), x = D/lambda, K = (M - N)/N; its maximum has
    x - 1 = K e^-x, so x = 1 + W(K/e) and the value is lambda (x - 1). Unequal distances give less. Certain transitions
    only: over random starts W is convex in log(M/N), and the same formula with averaged logs is exceeded.

    Examples:
        >>> round(worst_case_bias(math.log(1 + math.e**2), 0.0, 0.1), 6)  # (M - N) / (N e) = e, and W(e) = 1
        0.1
    """
    return coefficient * _lambert(log_all, log_optimal)


def worst_case_distance(log_all: float, log_optimal: float, coefficient: float) -> float:
    """The reward distance lambda (1 + W) at which ``worst_case_bias`` is reached."""
    return coefficient * (1 + _lambert(log_all, log_optimal))


def kept_bias(log_kept: float, log_optimal: float, coefficient: float) -> float:
    """Bias term of Prop. 2 inside a kept set that contains every optimum: |A| becomes the number kept.

    Nothing is promised when an optimum is cut away: then the gap of every kept policy is what the cut cost.
    """
    return published_bias(log_kept, log_optimal, coefficient)


def _log_odds(log_all: float, log_optimal: float) -> float:
    """log((M - N) / N)"""
    excess = log_all - log_optimal
    if excess <= 0:
        return -math.inf
    return excess + math.log(-math.expm1(-excess))


def _lambert(log_all: float, log_optimal: float) -> float:
    """W((M - N) / (N e)) through wrightomega(y) = W(e^y), which cannot overflow."""
    odds = _log_odds(log_all, log_optimal)
    return 0.0 if odds == -math.inf else float(np.real(wrightomega(odds - 1)))


# ------------------------------------------------------------------------------------------ regularised Lojasiewicz


def lojasiewicz_constant(mdp: TokenMDP, soft: SoftOptimum, policy: Float[Array, "*batch S A"], power: int = 2) -> Any:
    """C_lambda in ||grad V_lambda||^2 >= 2 lambda C_lambda (V*_lambda - V_lambda).

    C_lambda = min_s d(s)^2 min_a pi(a|s)^2 / d*(s), d* visited by the soft optimum; min_a pi(a)^2 for a bandit. Even
    4 lambda C_lambda holds, and no more: two arms near uniform reach it. With zeta = Q_lambda - lambda log pi:

        V*_lambda - V_lambda <= sum_s d*(s) lambda KL(pi_s || softmax(Q_s / lambda))     (soft performance difference)
        lambda KL <= range(zeta_s)^2 / (8 lambda)                                        (Hoeffding's lemma)
        ||grad_s||_2 = d(s) ||pi_s (zeta_s - mean)||_2 >= d(s) min_a pi(a|s) range(zeta_s) / sqrt(2)

    ``power`` exists to break it: 1 and 0 are false.

    Reference: Mei et al. 2020 (arXiv 2005.06392, Lemma 15) with 2 lambda and (1/S) min mu min pi^2 / ||d*/mu||;
    ours has no 1/S.
    """
    return lojasiewicz_root(mdp, soft, policy, power) ** 2


def lojasiewicz_root(mdp: TokenMDP, soft: SoftOptimum, policy: Float[Array, "*batch S A"], power: int = 2) -> Any:
    """sqrt(C_lambda): collapsed policies in long trees have a C_lambda below the smallest float, but not its root."""
    target = visitation(mdp, soft.policy(mdp))
    reached = target > 0
    rows = visitation(mdp, policy) * policy.min(axis=-1) ** (power / 2)
    return (rows[..., reached] / np.sqrt(target[reached])).min(axis=-1)


def linear_rate(policy: Float[Array, " A"], coefficient: float, step: float) -> float:
    """Asymptotic slope of log(V*_lambda - V_lambda) per exact gradient step of a bandit at its soft optimum.

    The Hessian there is -lambda (diag(pi) - pi pi^T), so distances shrink by 1 - step lambda mu, mu its smallest
    non-zero eigenvalue, and values by the square: 2 log(1 - step lambda mu).
    """
    eigenvalues = np.linalg.eigvalsh(np.diag(policy) - np.outer(policy, policy))
    return 2 * math.log1p(-step * coefficient * float(eigenvalues[1]))
