"""P3, P4 and P5 of ``propositions.py``: laws of other papers that entropy control leans on.

    p3    covariance law of the entropy change (Cui et al., arXiv 2505.22617)
    p4    entropy split at the cut (chain rule)
    p5    O(1/t) without, linear with regularisation; regularised Lojasiewicz inequality (Mei et al., 2005.06392)

Each function returns the checks of its claim and its negative controls, as in ``propositions.py``.
"""

from __future__ import annotations

import numpy as np

from aent.entropy import DropLowest, Full, Nucleus, TopK, entropy_split
from toymdp.mdp import (
    action_values,
    per_token,
    policy_gradient,
    soft_optimum,
    softmax,
    state_entropy,
    state_values,
    value,
    visitation,
)
from toymdp.theory import bounds
from toymdp.theory.attacks import Case, ascent, bandit
from toymdp.theory.checks import Array, Check, Row, Sample, at_most, repeats, rows_of, worst_of

RATES = np.array([0.1, 0.01, 0.001])


def p3_covariance_law(sample: Sample) -> list[Check]:
    """P3: dH(s) = -eta d(s) Cov_pi(log pi, pi A) for policy gradient, -eta Cov_pi(log pi, A) for natural gradient.

    The relative error must vanish in proportion to eta: slope 1 of log error over log eta.

    Reference: Cui et al. 2025 (arXiv 2505.22617); d(s) = 1 is their one-state form.
    """
    pairs = [(case, z) for case in sample.cases if case.mdp.multiplicity is None for z in case.logits[:3]]
    trained = [(case, case.logits[-1]) for case in sample.cases if case.mdp.multiplicity is None]
    plain = [_law_errors(case, z, move="plain", predict="plain") for case, z in pairs + trained]
    natural = [_law_errors(case, z, move="natural", predict="natural") for case, z in pairs + trained]
    crossed = [_law_errors(case, z, move="plain", predict="natural") for case, z in pairs]
    return [
        _first_order("P3 policy gradient", "dH = -eta d Cov(log pi, pi A) + O(eta^2)", plain),
        _first_order("P3 natural gradient", "dH = -eta Cov(log pi, A) + O(eta^2)", natural),
        _first_order("P3 wrong covariance", "plain gradient with Cov(log pi, A)", crossed, control=True),
    ]


def _first_order(name: str, statement: str, errors: list[Array], *, control: bool = False) -> Check:
    total = np.linalg.norm(np.array(errors), axis=0)  # all cases together: some alone have nothing to predict
    relative = total[:-1] / total[-1]
    slope = float(np.polyfit(np.log(RATES), np.log(relative), 1)[0])
    detail = f"slope {slope:.3f}; relative error at eta .1, .01, .001: " + ", ".join(f"{r:.1e}" for r in relative)
    return at_most(
        name, f"{statement}: |slope - 1| of log error over log eta", abs(slope - 1), 0.1, detail, control=control
    )


def _law_errors(case: Case, logits: Array, *, move: str, predict: str) -> Array:
    """|measured / eta - predicted| of the entropy change over all states, per rate eta / R; |predicted| at last."""
    mdp = case.mdp
    policy = softmax(mdp, logits)
    values = state_values(mdp, policy)
    advantage = (per_token(mdp, action_values(mdp, values)) - values[..., None]) / case.span
    steps = {"natural": advantage, "plain": visitation(mdp, policy)[..., None] * policy * advantage}
    law = -_covariance(policy, np.log(policy), steps[predict])
    before = state_entropy(mdp, policy)
    change = [(state_entropy(mdp, softmax(mdp, logits + rate * steps[move])) - before) / rate for rate in RATES]
    return np.array([*(np.linalg.norm(measured - law) for measured in change), np.linalg.norm(law)])


def _covariance(policy: Array, x: Array, y: Array) -> Array:
    """Cov_{a ~ pi}(x, y) in every state"""
    return (policy * (x - (policy * x).sum(-1, keepdims=True)) * y).sum(-1)


# ----------------------------------------------------------------------------------------------------------- P4 and P5


def p4_entropy_split(sample: Sample) -> list[Check]:
    """P4: H = h_b(eps) + (1 - eps) H~ + eps H_tail for every support rule, ties included.

    Reference: chain rule of entropy; eps is the dropped mass, h_b the binary entropy.
    """
    whole, without = [], []
    for support in (Full(), DropLowest(0.33), DropLowest(0.9), TopK(3), Nucleus(0.8)):
        for spread in (0.0, 0.5, 2.0, 6.0):
            logits = spread * sample.rng.standard_normal((10 * sample.size, 50))
            for z in (logits, np.round(logits)):  # rounded: many exact ties
                parts = entropy_split(z, support)
                sum_of_two = (1 - parts.dropped_mass) * parts.clamped + parts.dropped_mass * parts.tail
                whole.append(np.abs(parts.full - sum_of_two - parts.binary).max())
                without.append(np.abs(parts.full - sum_of_two).max())
    return [
        at_most("P4 entropy split", "|H - h_b(eps) - (1 - eps) H~ - eps H_tail|", max(whole), 1e-12),
        at_most("P4 without h_b", "|H - (1 - eps) H~ - eps H_tail|", max(without), 1e-12, control=True),
    ]


def p5_lojasiewicz(sample: Sample) -> list[Check]:
    """P5: V*_l - V_l <= ||grad V_l||^2 / (2 l C_l), C_l = min_s d(s)^2 min_a pi(a|s)^2 / d*(s); sharp: half of that.

    Reference: Mei et al. 2020 (arXiv 2005.06392, Lemma 15); the factor two and d(s)^2/d*(s) are this project's.
    """
    published: list[Row] = []
    sharp: list[Row] = []
    linear: list[Row] = []
    without: list[Row] = []
    for case in sample.cases:
        gap = case.soft.soft_value - value(case.mdp, case.policy, case.coefficient)
        published += rows_of(case, gap, lojasiewicz_side(case))
        sharp += rows_of(case, gap, lojasiewicz_side(case) / 2)
        linear += rows_of(case, gap, lojasiewicz_side(case, power=1))
        without += rows_of(case, gap, lojasiewicz_side(case, power=0))
    gap, side = _lojasiewicz_limit()
    return [
        worst_of("P5 Lojasiewicz", "V*_l - V_l <= ||grad V_l||^2 / (2 l C_l)", published),
        worst_of("P5 sharp Lojasiewicz", "V*_l - V_l <= ||grad V_l||^2 / (4 l C_l)", sharp),
        at_most("P5 equality", "reached by two arms near uniform, up to 0.2%", 0.998, gap / side),
        at_most("P5 smaller side", "V*_l - V_l <= 0.99 ||grad V_l||^2 / (4 l C_l)", gap, 0.99 * side, control=True),
        worst_of("P5 first power", "min pi in place of min pi^2", linear, control=True),
        worst_of("P5 without min pi", "V*_l - V_l <= ||grad V_l||^2 / (2 l min d^2/d*)", without, control=True),
    ]


def p5_rates(sample: Sample) -> list[Check]:
    """Exact gradients on bandits: gap ~ 1/t without regularisation; V*_l - V_l ~ e^{-ct} with it, to a biased optimum.

    c is predicted by the smallest non-zero eigenvalue of diag(pi) - pi pi^T at the soft optimum.

    Reference: Mei et al. 2020 (arXiv 2005.06392): O(1/t) with a matching lower bound; linear when regularised.
    """
    runs = [_rates_of(_spaced_rewards(sample.rng)) for _ in range(repeats(sample))]
    slope, off_rate, straight, plain_straight, left = np.array(runs).T
    text = "slope of log(V*_l - V_l) per step over the predicted one, less 1"
    return [
        at_most("P5 plain O(1/t)", "|slope of log gap over log t + 1|", np.abs(slope + 1).max(), 0.1),
        at_most("P5 linear rate", text, off_rate.max(), 0.05),
        at_most("P5 linear: straight", "late over early rate, regularised, is >= 0.9", 0.9, straight.min()),
        at_most(
            "P5 plain is linear", "late over early rate, plain, is >= 0.9", 0.9, plain_straight.min(), control=True
        ),
        at_most("P5 limit is V*", "V* - V at the end of the regularised run", left.min(), 1e-6, control=True),
    ]


def lojasiewicz_side(case: Case, power: int = 2) -> Array:
    """||grad V_lambda||^2 / (2 lambda C_lambda) for every policy of a case, in units of the return."""
    gradient = policy_gradient(case.mdp, case.logits, case.coefficient)
    root = bounds.lojasiewicz_root(case.mdp, case.soft, case.policy, power)
    norm = bounds.norm(case.mdp, gradient)
    with np.errstate(over="ignore"):  # an infinite side is a true bound, if an empty one
        ratio = np.divide(norm, root, out=np.full_like(norm, np.inf), where=root > 0)
        return ratio**2 / (2 * case.coefficient)


def _lojasiewicz_limit() -> tuple[float, float]:
    """Both sides of the sharp inequality for two equal arms, lambda = 1, log-odds 0.001."""
    mdp, logits = bandit(np.zeros(2)), np.array([[[0.001, 0.0]]])
    case = Case("limit", mdp, logits, 1.0, 0)
    gap = case.soft.soft_value - value(mdp, case.policy, 1.0)
    return gap.item(), lojasiewicz_side(case).item() / 2


def _spaced_rewards(rng: np.random.Generator) -> Array:
    """Five rewards well apart, so that the asymptotes are reached."""
    return 1 - np.cumsum([0.0, *rng.uniform(0.15, 0.3, size=4)])


def _rates_of(reward: Array, coefficient: float = 0.3, rate: float = 0.4) -> tuple[float, ...]:
    """log-log slope (plain), |rate / predicted - 1|, late over early rate (regularised, plain), and the gap left."""
    mdp, start = bandit(reward), np.zeros((1, len(reward)))
    steps = np.unique(np.geomspace(1000, 10_000, 40).astype(int))
    plain = reward[0] - value(mdp, softmax(mdp, ascent(mdp, start, rate=rate, steps=10_000, record=steps)))
    path = ascent(mdp, start, rate=rate, steps=4000, coefficient=coefficient)
    best = soft_optimum(mdp, coefficient)
    short = best.soft_value - value(mdp, softmax(mdp, path), coefficient)
    visible = int(np.flatnonzero(short > 1e-12)[-1])
    late = np.arange(3 * visible // 4, visible + 1)
    predicted = bounds.linear_rate(best.policy(mdp)[0], coefficient, rate)
    return (
        float(np.polyfit(np.log(steps), np.log(plain), 1)[0]),
        abs(float(np.polyfit(late, np.log(short[late]), 1)[0]) / predicted - 1),
        _late_over_early(late, short[late]),
        _late_over_early(steps, plain),
        float(reward[0] - value(mdp, softmax(mdp, path[-1]))),
    )


def _late_over_early(t: Array, gap: Array) -> float:
    """Ratio of the exponential rates of the second and the first half of a curve: 1 for e^{-ct}, less for 1/t."""
    middle = len(t) // 2
    early, late = (np.polyfit(t[part], np.log(gap[part]), 1)[0] for part in (slice(0, middle), slice(middle, None)))
    return float(late / early)
