"""The passes over all tokens of a shaped training step (numba), three kernels around a rule that runs in numpy.

    measure_runs   statistics, exact value and entropies of every run, and the unnormalised policy (odds)
    sample_runs    groups of responses, some of them at another temperature
    update_runs    the gradient  sum_t w_t d log pi_kappa(a_t|s_t) + sum_t b_t d H~(s_t)  and the optimiser's step

``kernels.step_runs`` does the same in one go where no rule needs to look in between. Speed only: the definition is
``shaped.gradient`` (tested for equality in float64).

Shape legend: R runs, S states, A tokens, C classes, B sampled responses, H horizon.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from toymdp.training.kernels import (
    BLOCK,
    ENTROPY,
    HELPER,
    KEPT_ENTROPY,
    LOG_TOTAL,
    OPTIONS,
    SHIFT,
    THRESHOLD,
    TIE_SHARE,
    _adam,
    _class_masses,
    _close_kept,
    _cut,
    _evaluate,
    _exp,
    _is_finite,
    _is_safe,
    _largest,
    _respond,
    _row_gradient,
    _row_statistics,
    _sgd,
)

ALL, BY_COUNT, BY_MASS, TSALLIS = range(4)  # what the bonus is taken over


@njit(**HELPER)
def _above(z, odds, threshold):
    """(mass, number) of the tokens above the threshold."""
    mass, count, zero, one = 0.0, 0.0, z.dtype.type(0.0), z.dtype.type(1.0)
    for begin in range(0, z.shape[0], BLOCK):
        block, own = z[begin : begin + BLOCK], odds[begin : begin + BLOCK]
        m, n = zero, zero
        for a in range(block.shape[0]):
            m += own[a] if block[a] > threshold else zero
            n += one if block[a] > threshold else zero
        mass += m
        count += n
    return mass, count


@njit(**HELPER)
def _cut_by_mass(z, odds, needed, guess):
    """Threshold of the smallest set of top tokens that holds ``needed``, and the share of each token at it.

    Bisection between a threshold with too much above it and one with too little, until one token is left between.
    """
    low, high = z[0], z[0]
    for a in range(z.shape[0]):
        low, high = min(low, z[a]), max(high, z[a])
    low -= z.dtype.type(1.0)
    many, few = float(z.shape[0]), 0.0
    t, trial = guess, 0
    while many - few > 1.0:
        if trial > 0 or not low < t < high:
            t = low + (high - low) * z.dtype.type(0.5)
        if t <= low or t >= high:  # neighbouring floats: the tokens between them are ties
            break
        mass, count = _above(z, odds, t)
        if mass >= needed:
            low, many = t, count
        else:
            high, few = t, count
        trial += 1
    threshold, group, odd = low, 0.0, 0.0
    for a in range(z.shape[0]):
        if low < z[a] <= high and z[a] > threshold:
            threshold = z[a]
    for a in range(z.shape[0]):
        if z[a] == threshold:
            group, odd = group + 1.0, float(odds[a])
    mass, _ = _above(z, odds, threshold)
    places = min(max(math.ceil((needed - mass) / odd), 1.0), group)
    return threshold, places, places / group


@njit(**HELPER)
def _kept_statistics(z, odds, shift, threshold, places, out):
    """LOG_KEPT and KEPT_ENTROPY of the tokens above the threshold and ``places`` at it."""
    kept, weighted, zero = 0.0, 0.0, z.dtype.type(0.0)
    for begin in range(0, z.shape[0], BLOCK):
        block, own = z[begin : begin + BLOCK], odds[begin : begin + BLOCK]
        k0, k1 = zero, zero
        for a in range(block.shape[0]):
            inside = own[a] if block[a] > threshold else zero
            k0 += inside
            k1 += inside * (block[a] - shift)
        kept += k0
        weighted += k1
    out[THRESHOLD] = threshold
    _close_kept(kept, weighted, threshold - shift, places, out)


@njit(**HELPER)
def _collision(odds, log_total):
    """sum_a p_a^2"""
    total = 0.0
    for begin in range(0, odds.shape[0], BLOCK):
        block = odds[begin : begin + BLOCK]
        part = odds.dtype.type(0.0)
        for a in range(block.shape[0]):
            part += block[a] * block[a]
        total += part
    return total * math.exp(-2.0 * log_total)


@njit(**OPTIONS)
def measure_runs(
    z, odds, block_sums, statistics, shifts, anchor, density, instance, special, classes, start, transition, reward,
    over, kept, visits, value, entropy, measured,
):  # fmt: skip
    """Exact value (R,), mean full entropy and mean entropy of the bonus (R,), visitation (R, S) of every run.

    ``over`` is one of ALL, BY_COUNT (``kept`` tokens), BY_MASS (``kept`` of the probability), TSALLIS.
    """
    R, S, _ = z.shape
    C = reward.shape[1]
    mass, q, values = np.empty((S, C)), np.empty((S, C)), np.empty(S)
    for r in range(R):
        i = instance[r]
        for s in range(S):
            row = statistics[r, s]
            threshold, places = z[r, s, 0], 0.0
            guess = z.dtype.type(row[THRESHOLD])
            if over == BY_COUNT and _is_finite(row[SHIFT]):
                threshold, places, row[TIE_SHARE], anchor[r, s], density[r, s] = _cut(
                    z[r, s], None, kept, anchor[r, s], density[r, s]
                )
            shifts[r, s] = _row_statistics(
                z[r, s], odds[r, s], block_sums[r, s], None, threshold, places, over == BY_COUNT, row
            )
            if over == BY_MASS and _is_finite(row[SHIFT]):
                # A touch less than the mass, or an exact multiple becomes one more token by rounding.
                slack = max(1e-12, 16.0 * np.finfo(z.dtype).eps)
                needed = kept * (1.0 - slack) * math.exp(row[LOG_TOTAL])
                threshold, places, row[TIE_SHARE] = _cut_by_mass(z[r, s], odds[r, s], needed, guess)
                _kept_statistics(z[r, s], odds[r, s], z.dtype.type(shifts[r, s]), threshold, places, row)
            elif over == TSALLIS:
                row[KEPT_ENTROPY] = 0.5 * (1.0 - _collision(odds[r, s], row[LOG_TOTAL]))
        _class_masses(odds[r], statistics[r], special[i], classes[i], None, mass)
        value[r] = _evaluate(mass, start, transition, reward, values, q, visits[r])
        length, entropy[r], measured[r] = visits[r].sum(), 0.0, 0.0
        for s in range(S):
            entropy[r] += visits[r, s] / length * statistics[r, s, ENTROPY]
            measured[r] += visits[r, s] / length * statistics[r, s, KEPT_ENTROPY]


@njit(**HELPER)
def _scaled_odds(z, shift, scale, out):
    """Fill ``out`` = e^{scale (z - offset)} by blocks; returns (their sum, offset).

    The offset is ``shift``, or the maximum of ``z`` where that leaves the exponentials out of range.
    """
    total, factor, offset = 0.0, z.dtype.type(scale), z.dtype.type(shift)
    for attempt in range(2):
        total = 0.0
        for begin in range(0, z.shape[0], BLOCK):
            block, own = z[begin : begin + BLOCK], out[begin : begin + BLOCK]
            part = z.dtype.type(0.0)
            for a in range(block.shape[0]):
                e = _exp(factor * (block[a] - offset))
                own[a] = e
                part += e
            total += part
        if _is_safe(total) or attempt == 1:
            break
        offset = _largest(z)
    return total, offset


@njit(**OPTIONS)
def log_totals(z, shifts, scale, out):
    """out (R, S) = log sum_a e^{scale z_a}."""
    scratch = np.empty(z.shape[2], z.dtype)
    for r in range(z.shape[0]):
        for s in range(z.shape[1]):
            total, offset = _scaled_odds(z[r, s], shifts[r, s], scale, scratch)
            out[r, s] = math.log(total) + scale * offset


@njit(**OPTIONS)
def sample_runs(
    z, odds, block_sums, shifts, instance, special, classes, start, transition, reward, uniforms, group, tempered,
    temperature, states, tokens, returns,
):  # fmt: skip
    """Groups of responses per start state: ``states`` (-1 past the end), ``tokens`` (R, B, H), ``returns`` (R, B).

    The last ``tempered`` members of each group are drawn at ``temperature`` (R,), the others at 1.
    """
    R, S, A = z.shape
    hot = np.empty((S if tempered > 0 else 0, A), z.dtype)
    hot_sums = np.empty((hot.shape[0], block_sums.shape[2]))
    for r in range(R):
        i, response = instance[r], 0
        for s in range(hot.shape[0]):
            _scaled_odds(z[r, s], shifts[r, s], 1.0 / temperature[r], hot[s])
            for b in range(hot_sums.shape[1]):
                hot_sums[s, b] = hot[s, b * BLOCK : (b + 1) * BLOCK].sum()
        states[r] = -1
        for prompt in range(S):
            if start[prompt] <= 0.0:
                continue
            for member in range(group):
                own, sums = (hot, hot_sums) if member >= group - tempered else (odds[r], block_sums[r])
                returns[r, response] = _respond(
                    own, sums, special[i], classes[i], transition, reward, uniforms[r, response], prompt, 0.0,
                    states[r, response], tokens[r, response],
                )  # fmt: skip
                response += 1


@njit(**HELPER)
def _tsallis_gradient(odds, log_total, base, bonus, collision):
    """Turn ``odds`` into g_a = p_a (base - bonus (p_a - sum p^2)), in place."""
    scale = odds.dtype.type(math.exp(-log_total))
    slope, offset = odds.dtype.type(-bonus), odds.dtype.type(base + bonus * collision)
    for a in range(odds.shape[0]):
        p = odds[a] * scale
        odds[a] = p * (offset + slope * p)


@njit(**HELPER)
def _add_scaled(z, shift, scale, base, scratch, gradient):
    """gradient += base * softmax(scale z)"""
    total, _ = _scaled_odds(z, shift, scale, scratch)
    factor = z.dtype.type(base / total)
    for a in range(z.shape[0]):
        gradient[a] += factor * scratch[a]


@njit(**OPTIONS)
def update_runs(
    z, m, v, odds, statistics, shifts, states, tokens, policy, bonus, scale, start, group, over, rate, step, adam,
    tabular,
):  # fmt: skip
    """One step of every run, in place. ``policy``, ``bonus``, ``scale`` are (R, B, H); ``odds`` becomes the gradient.

    Each token weighs start / group, as in GRPO; ``scale`` is the factor of the logits in its log-probability.
    Not ``tabular``: nothing moves, the gradient of the logits is left in ``odds``.
    """
    R, S, A = z.shape
    B, H = states.shape[1], states.shape[2]
    scratch = np.empty(A, z.dtype)
    for r in range(R):
        for s in range(S):
            base, pay = 0.0, 0.0
            for b in range(B):
                for t in range(H):
                    if states[r, b, t] == s:
                        share = start[states[r, b, 0]] / group
                        pay += share * bonus[r, b, t]
                        if scale[r, b, t] == 1.0:
                            base -= share * policy[r, b, t]
            row, own = statistics[r, s], odds[r, s]
            if over == TSALLIS:
                _tsallis_gradient(own, row[LOG_TOTAL], base, pay, 1.0 - 2.0 * row[KEPT_ENTROPY])
            else:
                _row_gradient(z[r, s], own, row, z.dtype.type(shifts[r, s]), base, pay, over != ALL)
            for b in range(B):
                for t in range(H):
                    if states[r, b, t] == s:
                        gain = start[states[r, b, 0]] / group * policy[r, b, t] * scale[r, b, t]
                        own[tokens[r, b, t]] += gain
                        if scale[r, b, t] != 1.0 and gain != 0.0:
                            _add_scaled(z[r, s], shifts[r, s], scale[r, b, t], -gain, scratch, own)
            if tabular and adam:
                _adam(z[r, s], own, m[r, s], v[r, s], rate[r], step)
            elif tabular:
                _sgd(z[r, s], own, rate[r])
