"""Propositions, verified and attacked: one function each, returning the claim's checks and their negative controls.

    p1    gradient bounded by entropy: the published constant, the sharp ones, collapse, and the false converse
    p1b   gap bounded by gradient over the probability of an optimal response
    p2    bias of the entropy bonus: the published bound, the exact gap with its transition, the sharp worst case
    p2c   the same inside a kept set, and how it fails when the optimum is cut away
    p3    covariance law of the entropy change (Cui et al.)
    p4    entropy split at the cut
    p5    O(1/t) without, linear with regularisation (Mei et al.), and the regularised Lojasiewicz inequality

A ``Check`` reports the worst case found, over random instances and along training trajectories. In a negative control
an assumption is broken on purpose and the same comparison must fail: a check that cannot fail says nothing.

Left out on purpose: statements about sampled gradients, and the published proofs, which are not public.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from aent.entropy import DropLowest, entropy_gradient
from aent.fields import is_whole_number
from toymdp.families import random_mdp, random_tree, token_tree
from toymdp.mdp import (
    TokenMDP,
    log_responses,
    optimum,
    policy_gradient,
    response_entropy,
    soft_optimum,
    softmax,
    value,
)
from toymdp.theory import bounds
from toymdp.theory.attacks import ascent, bandit, cases, maximise
from toymdp.theory.checks import Array, Check, Row, Sample, at_most, repeats, rows_of, worst_of
from toymdp.theory.laws import lojasiewicz_side, p3_covariance_law, p4_entropy_split, p5_lojasiewicz, p5_rates

__all__ = [
    "PROPOSITIONS",
    "SCALES",
    "Check",
    "Sample",
    "p1_gradient_bound",
    "p1_negative_controls",
    "p1_stagnation",
    "p1b_gap_bound",
    "p2_bias_bound",
    "p2_phase_transition",
    "p2_sharp_bias",
    "p2c_clamped",
    "p3_covariance_law",
    "p4_entropy_split",
    "p5_lojasiewicz",
    "p5_rates",
    "verify",
]

SCALES = {"smoke": 4, "default": 60, "full": 600}  # random instances of every kind
DROPS = (0.0, 0.4, 0.9, 0.99, 0.999)


def verify(scale: str = "default", seed: int = 0, progress: bool = True) -> list[Check]:
    """Run every proposition and every negative control.

    Args:
        scale: "smoke" (seconds), "default" (under a minute) or "full".
        seed: of instances and policies.
        progress: draw a progress bar.

    Raises:
        ValueError: unknown scale, or a seed that is no whole number >= 0.
    """
    if scale not in SCALES:
        raise ValueError(f"scale={scale!r}: expected one of {', '.join(SCALES)}")
    if not is_whole_number(seed) or seed < 0:
        raise ValueError(f"seed={seed!r}: expected a whole number >= 0")
    size = SCALES[scale]
    rngs = np.random.default_rng(seed).spawn(len(PROPOSITIONS) + 1)
    drawn = cases(rngs[-1], size)
    shared = list(tqdm(drawn, desc="instances", total=4 * size, disable=not progress, leave=False))
    found: list[Check] = []
    for proposition, rng in zip(tqdm(PROPOSITIONS, desc="propositions", disable=not progress), rngs[:-1], strict=True):
        found += proposition(Sample(shared, rng, size))
    return found


# -------------------------------------------------------------------------------------------------- P1: gradient bound


def p1_gradient_bound(sample: Sample) -> list[Check]:
    """P1: ||grad V||_2 <= 2 R H(pi) (published); sharp: C R H(pi) with C = sqrt(2) / (4 ln 2), l1: R H(pi) / (2 ln 2).

    Reference: arXiv 2509.03493, Prop. 1 (first half); the sharp constants are this project's.
    """
    published: list[Row] = []
    sharp_l2: list[Row] = []
    sharp_l1: list[Row] = []
    mode: list[Row] = []
    for case in sample.cases:
        gradient = policy_gradient(case.mdp, case.logits)
        entropy = case.span * response_entropy(case.mdp, case.policy)
        two = bounds.norm(case.mdp, gradient)
        published += rows_of(case, two, 2 * entropy)
        sharp_l2 += rows_of(case, two, bounds.GRADIENT_L2 * entropy)
        sharp_l1 += rows_of(case, bounds.norm(case.mdp, gradient, order=1), bounds.GRADIENT_L1 * entropy)
        mode += rows_of(case, two, case.span * bounds.mode_bound(case.mdp, case.policy))
    attacked = [(f"optimised {kind}", np.array(ratio), np.array(1.0)) for kind, ratio in _optimised_ratios(sample)]
    return [
        worst_of("P1 published", "||grad V||_2 <= 2 R H(pi)", published),
        worst_of("P1 sharp l2", "||grad V||_2 <= sqrt(2)/(4 ln 2) R H(pi)", sharp_l2),
        worst_of("P1 sharp l1", "||grad V||_1 <= R H(pi) / (2 ln 2)", sharp_l1),
        worst_of("P1 sharp mode", "||grad V||_2 <= sqrt(2) R sum_s d(s) q_s (1 - q_s), q_s >= 1/2", mode),
        worst_of("P1 attacked", "no optimised policy and rewards exceed the sharp l2 constant", attacked),
        *_p1_equality(),
    ]


def p1_negative_controls(sample: Sample) -> list[Check]:
    """Three ways to get P1 wrong: a smaller constant, the entropy of another temperature, rewards of another range."""
    two, mdp = bandit(np.array([1.0, 0.0])), bandit(np.array([10.0, 0.0]))
    logits = np.array([[[t, 0.0]] for t in np.linspace(-4, 4, 81)])
    policy = softmax(two, logits)
    gradient = bounds.norm(two, policy_gradient(two, logits))
    sharp = bounds.GRADIENT_L2 * response_entropy(two, policy)
    cold = bounds.GRADIENT_L2 * response_entropy(two, softmax(two, logits / 0.5))
    wide = bounds.norm(mdp, policy_gradient(mdp, logits))
    return [
        worst_of("P1 smaller constant", "||grad V||_2 <= 0.99 C R H(pi)", [("", gradient, 0.99 * sharp)], control=True),
        worst_of("P1 wrong temperature", "entropy at T = 0.5, policy at T = 1", [("", gradient, cold)], control=True),
        worst_of("P1 unscaled rewards", "returns up to 10, R = 1", [("", wide, sharp)], control=True),
    ]


def p1_stagnation(sample: Sample) -> list[Check]:
    """A collapse on the wrong token: gradient gone, gap intact, training stuck. And the converse is false.

    Uniform over A tokens with one optimum: H = log A, ||grad||_2 = sqrt((A - 1)/A) / A.
    """
    wrong = bandit(np.array([1.0, 0.5, 0.0]))
    start = np.array([[0.0, 20.0, 0.0]])
    gradient = float(bounds.norm(wrong, policy_gradient(wrong, start)))
    later = ascent(wrong, start, rate=1.0, steps=1000, record=np.array([1000]))[0]
    gap = 1.0 - float(value(wrong, softmax(wrong, later)))
    flat = token_tree(sample.rng, actions=100_000, optimal=1, decoys=0, prior="uniform", bins=1)
    uniform = softmax(flat.mdp, flat.prior)
    entropy = float(response_entropy(flat.mdp, uniform))
    slope = float(bounds.norm(flat.mdp, policy_gradient(flat.mdp, flat.prior)))
    exact = math.sqrt((1e5 - 1) / 1e5) / 1e5
    facts = f"entropy {entropy:.2f} nats, gradient {slope:.2e}"
    return [
        at_most("P1 stagnation: gradient", "||grad V||_2 of a collapsed wrong policy is <= 1e-8", gradient, 1e-8),
        at_most("P1 stagnation: gap", "1000 steps later the gap is still >= 0.49", 0.49, gap),
        at_most("P1 no converse", "uniform over 1e5: ||grad|| = sqrt((A-1)/A)/A", abs(slope / exact - 1), 1e-9, facts),
        at_most(
            "P1 converse", "||grad V||_2 >= 0.01 C H(pi)", 0.01 * bounds.GRADIENT_L2 * entropy, slope, control=True
        ),
    ]


def _p1_equality() -> list[Check]:
    two = bandit(np.array([1.0, 0.0]))
    gradient = policy_gradient(two, np.zeros((1, 2)))
    miss = [
        abs(float(bounds.norm(two, gradient, order)) / (constant * math.log(2)) - 1)
        for order, constant in ((2, bounds.GRADIENT_L2), (1, bounds.GRADIENT_L1))
    ]
    return [
        at_most("P1 equality", "both sharp constants are reached by the uniform two-armed bandit", max(miss), 1e-12)
    ]


def _optimised_ratios(sample: Sample) -> Iterator[tuple[str, float]]:
    """||grad V||_2 / (C R H(pi)) climbed over logits and rewards of bandits, trees and stochastic MDPs."""
    shapes = [random_tree(sample.rng, actions=a, horizon=h) for a, h in ((2, 1), (3, 1), (5, 1), (2, 2))]
    shapes += [random_mdp(sample.rng, actions=2, horizon=2, width=2)]
    for kind, shape in zip(("bandit 2", "bandit 3", "bandit 5", "tree", "mdp"), shapes, strict=True):
        count = shape.prior.size

        def ratio(x: Array, mdp: TokenMDP = shape.mdp, count: int = count) -> float:
            attacked = replace(mdp, reward=x[count:].reshape(mdp.reward.shape))
            logits = x[:count].reshape(mdp.labels.shape)
            gradient = bounds.norm(attacked, policy_gradient(attacked, logits))
            entropy = response_entropy(attacked, softmax(attacked, logits))
            return float(gradient / (bounds.GRADIENT_L2 * bounds.value_span(attacked) * entropy + 1e-30))

        starts = sample.rng.normal(size=(repeats(sample), 2 * count))
        yield kind, max(maximise(ratio, start, bound=6.0)[0] for start in starts)


# ------------------------------------------------------------------------------------------------------ P1b: gap bound


def p1b_gap_bound(sample: Sample) -> list[Check]:
    """P1b: V* - V <= sqrt(H) ||grad V||_2 / pi(tau*) on trees; V* - V <= M ||grad V||_2 with random transitions.

    Reference: arXiv 2509.03493, Prop. 1 (second half); its own constant C is not public, this one is derived here.
    """
    trees: list[Row] = []
    without: list[Row] = []
    greedy: list[Row] = []
    general: list[Row] = []
    for case in sample.cases:
        gap = case.optimum.value - value(case.mdp, case.policy)
        gradient = bounds.norm(case.mdp, policy_gradient(case.mdp, case.logits))
        general += rows_of(case, gap, bounds.mismatch(case.mdp, case.optimum, case.policy) * gradient)
        if not case.mdp.deterministic:
            continue
        root, allowed = math.sqrt(case.mdp.horizon), bounds.optimal_entries(case.mdp, case.optimum)
        trees += rows_of(case, gap, root * gradient / bounds.response_probability(case.mdp, case.policy, allowed))
        without += rows_of(case, gap, root * gradient)
        likeliest = bounds.response_probability(case.mdp, case.policy, np.ones_like(allowed))
        greedy += rows_of(case, gap, root * gradient / likeliest)
    return [
        worst_of("P1b trees", "V* - V <= sqrt(H) ||grad V||_2 / pi(tau*)", trees),
        worst_of("P1b general", "V* - V <= M ||grad V||_2, M^2 = sum_s (d*(s) / (d(s) pi(a*|s)))^2", general),
        worst_of("P1b without pi(tau*)", "V* - V <= sqrt(H) ||grad V||_2", without, control=True),
        worst_of("P1b wrong response", "pi of the likeliest response in place of pi(tau*)", greedy, control=True),
    ]


# -------------------------------------------------------------------------------------------------------- P2: the bias


def p2_bias_bound(sample: Sample) -> list[Check]:
    """P2: V* - V <= (V*_l - V_l) + l (H log|A| - log|A*_H|), and with ||grad V_l||^2 / (2 l C_l).

    Random transitions: H log|A| and log|A*_H| become the largest entropy of any and of an optimal policy.

    Reference: arXiv 2509.03493, Prop. 2; its constant C_lambda is not public, ours is ``bounds.lojasiewicz_constant``.
    """
    bound: list[Row] = []
    epsilon: list[Row] = []
    flat: list[Row] = []
    no_bias: list[Row] = []
    for case in sample.cases:
        mdp, bias = case.mdp, _bias(case.mdp, case.coefficient)
        gap = case.optimum.value - value(mdp, case.policy)
        bound += rows_of(case, gap, case.soft.soft_value - value(mdp, case.policy, case.coefficient) + bias)
        epsilon += rows_of(case, gap, lojasiewicz_side(case) + bias)
        no_bias.append((case.kind, np.array(case.optimum.value - case.soft.value), np.array(0.0)))
        uniform, small = softmax(mdp, np.zeros_like(case.logits[:1])), 1e-3 * case.span
        short = soft_optimum(mdp, small).soft_value - value(mdp, uniform, small)
        flat.append((case.kind, case.optimum.value - value(mdp, uniform), short + _bias(mdp, small)))
    return [
        worst_of("P2 bias bound", "V* - V <= (V*_l - V_l) + l (H log|A| - log|A*_H|)", bound),
        worst_of("P2 published form", "V* - V <= ||grad V_l||^2 / (2 l C_l) + l (H log|A| - log|A*_H|)", epsilon),
        worst_of("P2 tight as l -> 0", "the bound at the uniform policy, l = 0.001 R", flat),
        worst_of("P2 without the bias", "V* - V <= V*_l - V_l, at the soft optimum", no_bias, control=True),
    ]


def p2_phase_transition(sample: Sample) -> list[Check]:
    """Soft optimum of a 0/1 tree: gap = 1 / (1 + exp(1/l - log((M - N)/N))), half at l_c = 1 / log((M - N)/N).

    M = |A|^H responses, N optimal; up to 10^9 tokens in the lumped form.
    """
    rows, halves, misplaced = [], [], []
    for actions in (10, 10**3, 10**5, 10**9):
        for optimal, horizon in ((1, 1), (3, 1), (1, 3), (3, 2)):
            mdp = _sparse_tree(sample.rng, actions, optimal, horizon)
            counts = horizon * math.log(actions), horizon * math.log(optimal)
            critical = bounds.critical_coefficient(*counts)
            for ratio in (0.3, 0.7, 1.0, 1.5, 4.0):
                found = 1 - soft_optimum(mdp, ratio * critical).value
                rows.append(abs(found - bounds.soft_gap(*counts, ratio * critical)))
            halves.append(abs(1 - soft_optimum(mdp, critical).value - 0.5))
            misplaced.append(abs(1 - soft_optimum(mdp, 1 / (counts[0] + 1)).value - 0.5))
    return [
        at_most("P2 exact gap", "soft value iteration agrees with the closed form", max(rows), 1e-10),
        at_most("P2 transition", "the gap is 1/2 at l_c = 1 / log((M - N)/N)", max(halves), 1e-10),
        at_most("P2 misplaced", "the gap is 1/2 at 1 / (log M + 1)", max(misplaced), 1e-10, control=True),
    ]


def p2_sharp_bias(sample: Sample) -> list[Check]:
    """sup over rewards of the soft optimum's gap is l W((M - N)/(N e)), reached at distance l (1 + W)."""
    rows, smaller = [], []
    for case in (case for case in sample.cases if case.mdp.deterministic):
        rows.append(
            (case.kind, np.array(case.optimum.value - case.soft.value), np.array(_worst(case.mdp, case.coefficient)))
        )
    for _ in range(10 * sample.size):
        mdp, coefficient = _near_worst_bandit(sample.rng)
        gap = np.array(optimum(mdp).value - soft_optimum(mdp, coefficient).value)
        rows.append(("near worst", gap, np.array(_worst(mdp, coefficient))))
    for actions, optimal in ((2, 1), (100, 1), (1000, 1), (1000, 7)):
        counts = math.log(actions), math.log(optimal)
        reward = np.full(actions, 1.0)
        reward[optimal:] -= bounds.worst_case_distance(*counts, 0.1)
        gap = np.array(1 - soft_optimum(bandit(reward), 0.1).value)
        rows.append(("equality", gap, np.array(bounds.worst_case_bias(*counts, 0.1))))
        smaller.append(("", gap, np.array(0.99 * bounds.worst_case_bias(*counts, 0.1))))
    start_gap, start_bound = _uneven_start()
    half = 0.5 * bounds.published_bias(math.log(1e5), 0.0, 1.0)
    reached = bounds.worst_case_bias(math.log(1e5), 0.0, 1.0)
    return [
        worst_of("P2 sharp bias", "V* - V <= l W((M - N)/(N e)) at the soft optimum, any rewards", rows),
        at_most("P2 attacked", "optimised rewards stop at l W", _optimised_bias(sample), 1.0),
        worst_of("P2 smaller worst case", "V* - V <= 0.99 l W", smaller, control=True),
        at_most("P2 half the bias", "l W <= half the published bias, |A| = 1e5, n = 1", reached, half, control=True),
        at_most("P2 random start", "l W with averaged logs over two starts", start_gap, start_bound, control=True),
    ]


def _bias(mdp: TokenMDP, coefficient: float) -> float:
    return bounds.published_bias(log_responses(mdp), optimum(mdp).log_responses, coefficient)


def _worst(mdp: TokenMDP, coefficient: float) -> float:
    return bounds.worst_case_bias(log_responses(mdp), optimum(mdp).log_responses, coefficient)


def _sparse_tree(rng: np.random.Generator, actions: int, optimal: int, horizon: int) -> TokenMDP:
    return token_tree(rng, actions=actions, optimal=optimal, horizon=horizon, decoys=0, prior="uniform", bins=1).mdp


def _near_worst_bandit(rng: np.random.Generator) -> tuple[TokenMDP, float]:
    """Distances scattered around the worst one, some tokens optimal: as close to the supremum as luck allows."""
    actions = int(rng.integers(2, 200))
    optimal = int(rng.integers(1, max(2, actions // 4)))
    coefficient = 10 ** rng.uniform(-2, 0)
    distance = bounds.worst_case_distance(math.log(actions), math.log(optimal), coefficient)
    scatter = np.exp(10 ** rng.uniform(-3, 0) * rng.standard_normal(actions))
    scatter[:optimal] = 0.0
    return bandit(1 - distance * scatter), coefficient


def _optimised_bias(sample: Sample) -> float:
    """Best gap / (l W) that optimisation over the distances of 6 tokens finds, 2 of them optimal (l = 1)."""
    bound = bounds.worst_case_bias(math.log(6), math.log(2), 1.0)

    def ratio(x: Array) -> float:
        reward = np.concatenate([[0.0, 0.0], -0.01 - np.exp(x)])
        return -soft_optimum(bandit(reward), 1.0).value / bound

    return max(maximise(ratio, start, bound=3.0)[0] for start in sample.rng.normal(size=(4, 4)))


def _uneven_start() -> tuple[float, float]:
    """Half of the prompts need no choice, half are the worst bandit over 1000 tokens: W is convex in log(M/N)."""
    actions, coefficient = 1000, 0.1
    reward = np.ones((2, actions))
    reward[1, 1:] -= bounds.worst_case_distance(math.log(actions), 0.0, coefficient)
    mdp = TokenMDP(np.full(2, 0.5), np.zeros((2, actions, 2)), reward, np.tile(np.arange(actions), (2, 1)))
    return optimum(mdp).value - soft_optimum(mdp, coefficient).value, _worst(mdp, coefficient)


# ---------------------------------------------------------------------------------------------- P2c: inside a kept set


def p2c_clamped(sample: Sample) -> list[Check]:
    """P2c: with every optimum kept, |A| becomes the number kept; with the optimum cut away the promise is void.

    Reference: our reading of arXiv 2509.03493's clamped entropy; the paper states no guarantee for it.
    """
    exact, table = [], []
    for horizon, optimal in ((1, 1), (1, 5), (2, 3)):
        for drop in DROPS:
            mdp = _sparse_tree(sample.rng, 100_000, optimal, horizon)
            kept = DropLowest(drop).kept(100_000)
            counts = horizon * math.log(kept), horizon * math.log(optimal)
            critical = bounds.critical_coefficient(*counts)
            for coefficient in (0.5 * critical, critical, 2 * critical):
                clamped = soft_optimum(mdp, coefficient, kept_sizes=_kept(mdp, kept, keep_optima=True))
                exact.append(abs(1 - clamped.value - bounds.soft_gap(*counts, coefficient)))
            table += [critical] * ((horizon, optimal) == (1, 1))
    mdp = _sparse_tree(sample.rng, 100_000, 1, 1)
    cut = 1 - soft_optimum(mdp, 0.05, kept_sizes=_kept(mdp, 1000, keep_optima=False)).value
    promised = bounds.kept_bias(math.log(1000), 0.0, 0.05)
    pull, full_pull = _pull_on_dropped_optimum()
    shifts = ", ".join(f"p={p:g}: {c:.4f}" for p, c in zip(DROPS, table, strict=True))
    return [
        at_most(
            "P2c exact gap", "clamped soft optimum = closed form with k tokens", max(exact), 1e-10, f"l_c {shifts}"
        ),
        at_most(
            "P2c cut away: gap", "the clamped optimum without the optimal token misses all of the reward", 1.0, cut
        ),
        at_most("P2c cut away: no pull", "gradient of clamped entropy at the dropped optimum", pull, 0.0),
        at_most("P2c bias, optimum cut", "gap <= l log k without the optimum", cut, promised, control=True),
        at_most("P2c full entropy", "full entropy has no pull on it either", full_pull, 0.0, control=True),
    ]


def _kept(mdp: TokenMDP, kept: int, *, keep_optima: bool) -> Array:
    """(S, C) kept tokens by class: the optima first (or last), then others; classes are (other, optimal, decoy)."""
    sizes = mdp.class_sizes.copy()
    if not keep_optima:
        sizes[:, 1] = 0
    sizes[:, 0] = kept - sizes[:, 1]
    return sizes


def _pull_on_dropped_optimum() -> tuple[float, float]:
    """|dH~/dlogit| and |dH/dlogit| of an optimum that lies in the tail of a peaked policy (1000 tokens, p = 0.9)."""
    logits = -0.01 * np.arange(1000.0)[None]
    optimum_token = 950
    clamped = entropy_gradient(logits, support=DropLowest(0.9))[0, optimum_token]
    return abs(float(clamped)), abs(float(entropy_gradient(logits)[0, optimum_token]))


PROPOSITIONS: tuple[Callable[[Sample], list[Check]], ...] = (
    p1_gradient_bound,
    p1_negative_controls,
    p1_stagnation,
    p1b_gap_bound,
    p2_bias_bound,
    p2_phase_transition,
    p2_sharp_bias,
    p2c_clamped,
    p3_covariance_law,
    p4_entropy_split,
    p5_lojasiewicz,
    p5_rates,
)
