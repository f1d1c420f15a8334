"""One training step of many runs in fused loops (numba): the speed of ``learners.py``, never its definition.

Every run reads its logits, writes its logits, and leaves the cache in between as little as possible: a step moves
8 bytes per action with SGD, 24 with Adam. What is computed is exactly ``learners.reference_step`` (tested for equality
in float64): row statistics, class masses, dynamic programming on the skeleton, the sampled or exact policy gradient,
the entropy bonus of the kept tokens, the optimiser.

The cut is exact. The token at the last step's threshold is the first guess for this one; a secant search over counts
ends when the number above is right, or when the threshold sits on a group of equal logits (the tie rule of
``aent.entropy``).

Nothing here knows a random generator: uniforms and normals come in as arrays.

Shape legend: R runs, S states, A entries, C classes, K special tokens per state, B sampled responses, H horizon.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload


def _can_keep_code() -> bool:
    """Tell whether numba finds a folder for compiled code: beside this file, or the user's cache."""
    try:
        njit(cache=True)(_can_keep_code)
    except RuntimeError:
        warnings.warn(
            "no folder for compiled code can be written, so it is compiled anew each time; NUMBA_CACHE_DIR names one",
            stacklevel=2,
        )
        return False
    return True


OPTIONS = {"fastmath": True, "nogil": True, "cache": _can_keep_code(), "error_model": "numpy"}
# Helpers are inlined by force: as separate functions, a fresh compilation and a cached one may call differently
# optimised copies of them, and float32 sums then differ in the last bit between the first run and the next.
HELPER = {**OPTIONS, "forceinline": True}
BLOCK = 512  # sums are float32 inside a block and float64 across blocks
# Free bytes behind the logits, moments and gradient. The compiled row loops compare addresses: rows closer than one
# vector step (256 bytes with AVX-512) are summed in scalar order, and tiny problems then round as the heap lies.
SPACING = 1024
MOST_TRIALS = 4096  # every third halves the bracket, and a float64 bracket can be halved 1100 times
ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8

# Columns of the per-row statistics.
LOG_TOTAL, ENTROPY, LOG_KEPT, KEPT_ENTROPY, THRESHOLD, TIE_SHARE, SHIFT = range(7)
STATISTICS = 7

_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_HALF, _ONE, _ZERO, _FLOOR = np.float32(0.5), np.float32(1.0), np.float32(0.0), np.float32(-87.0)
_SAFE = 30.0  # a row is summed anew, shifted by its maximum, when log sum_a e^{z_a - shift} lies further from 0
_CEILING = np.float32(2 * _SAFE)  # exponents stop here: one term is out of range, 512 of them do not overflow float32
_C = [np.float32(1 / math.factorial(n)) for n in range(8)]
_C2, _C3, _C4, _C5, _C6, _C7 = _C[2], _C[3], _C[4], _C[5], _C[6], _C[7]


@intrinsic
def _float_from_bits(typing_context, bits):
    """Reinterpret an int32 as a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@intrinsic
def _bits(typing_context, x):
    """Reinterpret a float64 as an int64: the compiled code may assume no NaN, so only integers can ask for one."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.int64))

    return types.int64(types.float64), generate


_MAGNITUDE, _HUGE = 2**63 - 1, int(np.float64(1e200).view(np.int64))
_LEAST, _MOST = (int(np.exp(edge).view(np.int64)) for edge in (np.float64(-_SAFE), np.float64(_SAFE)))


@intrinsic
def _floor(typing_context, x):
    """floor of a float32, as one vector instruction (math.floor goes through int64)."""

    def generate(context, builder, signature, arguments):
        function = builder.module.declare_intrinsic("llvm.floor", [context.get_value_type(types.float32)])
        return builder.call(function, arguments)

    return types.float32(types.float32), generate


def _exp(x):
    return math.exp(x)


@overload(_exp, inline="always")
def _exp_overload(x):
    """exp: libm in float64; in float32 a polynomial that the compiler can vectorise (relative error 1e-7)."""
    if x == types.float32:

        def exp32(x):
            x = min(max(x, _FLOOR), _CEILING)
            n = _floor(x * _LOG2E + _HALF)  # type: ignore[call-arg]
            f = (x - n * _LN2_HIGH) - n * _LN2_LOW  # type: ignore[operator]
            p = _ONE + f * (_ONE + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * (_C6 + f * _C7))))))
            return _float_from_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23))) * p  # type: ignore[call-arg]

        return exp32
    return lambda x: math.exp(min(x, 2 * _SAFE))


@njit(**HELPER)
def _is_finite(x):
    """Tell whether a float64 is a number of a sensible size: not NaN, not infinite, below 1e200."""
    return (_bits(x) & _MAGNITUDE) < _HUGE  # type: ignore[call-arg]


@njit(**HELPER)
def _is_safe(total):
    """Tell whether a sum of exponentials was shifted well: e^-30 < total < e^30, and not NaN."""
    return _LEAST < _bits(total) < _MOST  # type: ignore[call-arg]


@njit(**HELPER)
def _largest(z):
    largest = z[0]
    for a in range(z.shape[0]):
        largest = max(largest, z[a])
    return largest


# ------------------------------------------------------------------------------------------------- the cut, exactly


@njit(**HELPER)
def _count(z, multiplicity, threshold):
    """Tokens above and tokens at the threshold."""
    above, equal = 0.0, 0.0
    for begin in range(0, z.shape[0], BLOCK):
        block = z[begin : begin + BLOCK]
        n_above, n_equal = _ZERO, _ZERO
        if multiplicity is None:
            for a in range(block.shape[0]):
                n_above += _ONE if block[a] > threshold else _ZERO
                n_equal += _ONE if block[a] == threshold else _ZERO
            above += n_above
            equal += n_equal
        else:
            m = multiplicity[begin : begin + BLOCK]
            for a in range(block.shape[0]):
                above += m[a] if block[a] > threshold else 0.0
                equal += m[a] if block[a] == threshold else 0.0
    return above, equal


@njit(**HELPER)
def _nearest(z, threshold):
    """Index of the token closest to the threshold."""
    best, distance = 0, np.inf
    for a in range(z.shape[0]):
        if abs(z[a] - threshold) < distance:
            best, distance = a, abs(z[a] - threshold)
    return best


@njit(**HELPER)
def _count_above(z, multiplicity, threshold):
    """Tokens above the threshold: half the work of ``_count``."""
    above = 0.0
    for begin in range(0, z.shape[0], BLOCK):
        block = z[begin : begin + BLOCK]
        if multiplicity is None:
            n_above = _ZERO
            for a in range(block.shape[0]):
                n_above += _ONE if block[a] > threshold else _ZERO
            above += n_above
        else:
            m = multiplicity[begin : begin + BLOCK]
            for a in range(block.shape[0]):
                above += m[a] if block[a] > threshold else 0.0
    return above


@njit(**HELPER)
def _cut(z, multiplicity, kept, anchor, density):
    """Threshold with ``above <= kept <= above + equal``; the anchor token and local density make the next call short.

    Returns (threshold, tokens kept at the threshold, their share of all tokens there, anchor, density).
    """
    t = z[anchor]
    above, equal = _count(z, multiplicity, t)
    if above <= kept <= above + equal:
        return t, kept - above, (kept - above) / equal, anchor, density
    first_miss, reach = abs(above - kept), 1.0
    low, high, count_low, count_high = t, t, -1.0, -1.0  # counts above; -1 = that bound is not known yet
    trial = 0
    while above != kept:
        if above > kept:
            low, count_low = t, above
        else:
            high, count_high = t, above
        if count_low < 0 or count_high < 0:  # step outwards, further each time
            miss = above - kept
            t += z.dtype.type(reach * (miss + (1.0 if miss > 0 else -1.0)) / density)
            reach *= 2.0
        else:
            fraction = min(max((count_low - kept) / (count_low - count_high), 0.01), 0.99)
            if trial % 3 == 2:  # the secant can crawl; bisection cannot
                fraction = 0.5
            t = low + (high - low) * z.dtype.type(fraction)
            if t <= low or t >= high:
                t = low + (high - low) * z.dtype.type(0.5)
            if t <= low or t >= high:  # neighbouring floats: all between them are ties at the upper one
                t, above, equal = high, count_high, count_low - count_high
                break
        above, equal = _count_above(z, multiplicity, t), 0.0
        trial += 1
        if trial == MOST_TRIALS:  # only logits that are not finite come here: their statistics are NaN
            break
    if count_low > count_high >= 0 and high > low:
        density = (count_low - count_high) / (high - low)
    if first_miss > max(8.0, 0.02 * kept):
        anchor = _nearest(z, t)
    share = (kept - above) / equal if equal > 0 else 0.0
    return t, kept - above, share, anchor, density


# ------------------------------------------------------------------------------------------------- row statistics


@njit(**HELPER)
def _close_kept(kept, weighted, d, places, out):
    """LOG_KEPT and KEPT_ENTROPY from the sums of e^z and z e^z above a threshold at ``d``, and ``places`` at it."""
    kept += places * _exp(d)
    weighted += places * _exp(d) * d
    out[LOG_KEPT] = math.log(kept)
    out[KEPT_ENTROPY] = max(0.0, out[LOG_KEPT] - weighted / kept)


@njit(**HELPER)
def _row_statistics(z, odds, block_sums, multiplicity, threshold, places, clamped, out):
    """Fill ``odds`` = e^{z - shift}, its block sums and the row's statistics (entropies in nats).

    ``out[SHIFT]`` comes in as the last step's log-sum-exp (any value near it keeps the exponentials in range) and
    leaves as the present one; tracking the maximum instead would keep the compiler from vectorising the loop. Logits
    that moved too far for it in one step are summed again, shifted by their maximum. A row whose logits are not all
    finite gets NaN for odds and statistics.
    """
    shift = z.dtype.type(out[SHIFT])
    total, weighted, kept, kept_weighted = 0.0, 0.0, 0.0, 0.0
    zero = z.dtype.type(0.0)
    for attempt in range(2):
        total, weighted, kept, kept_weighted = 0.0, 0.0, 0.0, 0.0
        for b, begin in enumerate(range(0, z.shape[0], BLOCK)):
            block, block_odds = z[begin : begin + BLOCK], odds[begin : begin + BLOCK]
            s0, s1, k0, k1 = zero, zero, zero, zero
            for a in range(block.shape[0]):
                d = block[a] - shift
                e = _exp(d)
                block_odds[a] = e
                if multiplicity is not None:
                    e = e * z.dtype.type(multiplicity[begin + a])
                s0 += e
                s1 += e * d
                if clamped:
                    inside = e if block[a] > threshold else zero
                    k0 += inside
                    k1 += inside * d
            block_sums[b] = s0
            total += s0
            weighted += s1
            kept += k0
            kept_weighted += k1
        if _is_safe(total) or attempt == 1:
            break
        shift = _largest(z)
    if not _is_finite(weighted):
        odds[:], block_sums[:], out[:] = np.nan, np.nan, np.nan
        return shift
    out[LOG_TOTAL] = math.log(total)
    out[ENTROPY] = max(0.0, out[LOG_TOTAL] - weighted / total)
    out[THRESHOLD], out[SHIFT] = threshold, shift + out[LOG_TOTAL]
    if clamped:
        _close_kept(kept, kept_weighted, threshold - shift, places, out)
    else:
        out[LOG_KEPT], out[KEPT_ENTROPY] = out[LOG_TOTAL], out[ENTROPY]
    return shift


# -------------------------------------------------------------------------------------------- skeleton and sampling


@njit(**HELPER)
def _class_masses(odds, statistics, special, classes, multiplicity, mass):
    """mass[s, c] from the special tokens; everything else is class 0."""
    for s in range(mass.shape[0]):
        mass[s, :] = 0.0
        named, scale = 0.0, math.exp(-statistics[s, LOG_TOTAL])
        for j in range(special.shape[1]):
            a = special[s, j]
            if a < 0:
                break
            p = odds[s, a] * scale
            if multiplicity is not None:
                p *= multiplicity[s, a]
            mass[s, classes[s, j]] += p
            named += p
        mass[s, 0] += max(0.0, 1.0 - named)


@njit(**HELPER)
def _evaluate(mass, start, transition, reward, values, q, visits):
    """Exact V(s), Q(s, c), d(s) of the present policy; returns V(start)."""
    S, C = mass.shape
    for s in range(S - 1, -1, -1):
        values[s] = 0.0
        for c in range(C):
            q[s, c] = reward[s, c]
            for n in range(s + 1, S):
                q[s, c] += transition[s, c, n] * values[n]
            values[s] += mass[s, c] * q[s, c]
    total = 0.0
    visits[:] = start
    for s in range(S):
        total += start[s] * values[s]
        for c in range(C):
            for n in range(s + 1, S):
                visits[n] += visits[s] * mass[s, c] * transition[s, c, n]
    return total


@njit(**HELPER)
def _draw(odds, block_sums, u):
    """Token index with probability odds / sum(odds), by inversion of the cumulative sum."""
    total = 0.0
    for b in range(block_sums.shape[0]):
        total += block_sums[b]
    rest = u * total
    b = 0
    while b < block_sums.shape[0] - 1 and rest >= block_sums[b]:
        rest -= block_sums[b]
        b += 1
    a, last = b * BLOCK, min((b + 1) * BLOCK, odds.shape[0]) - 1
    while a < last and rest >= odds[a]:
        rest -= odds[a]
        a += 1
    return a


@njit(**HELPER)
def _label(special, classes, a):
    for j in range(special.shape[0]):
        if special[j] == a:
            return classes[j]
        if special[j] < 0:
            break
    return 0


@njit(**HELPER)
def _respond(odds, block_sums, special, classes, transition, reward, uniforms, prompt, paid, states, tokens):
    """One response from ``prompt``: fills its ``states`` and ``tokens``, returns ``paid`` plus its rewards."""
    s, t = prompt, 0
    while s >= 0:
        a = _draw(odds[s], block_sums[s], uniforms[t, 0])
        c = _label(special[s], classes[s], a)
        states[t], tokens[t] = s, a
        paid += reward[s, c]
        rest, follow = uniforms[t, 1], -1
        for n in range(s + 1, transition.shape[0]):
            if rest < transition[s, c, n]:
                follow = n
                break
            rest -= transition[s, c, n]
        s = follow
        t += 1
    return paid


@njit(**HELPER)
def _sample(
    odds, block_sums, special, classes, start, transition, reward, noise_scale, uniforms, normals, group, paths
):
    """Groups of responses, one group per start state. Fills ``paths`` = (states, tokens, advantages) of every response.

    Advantages are GRPO's: (return - group mean) / (group standard deviation + 1e-4), times the weight of the prompt.
    """
    states, tokens, advantages = paths
    states[:, :] = -1
    response = 0
    for prompt in range(start.shape[0]):
        if start[prompt] <= 0.0:
            continue
        first, mean, square = response, 0.0, 0.0
        for _ in range(group):
            paid = _respond(
                odds, block_sums, special, classes, transition, reward, uniforms[response], prompt,
                noise_scale * normals[response], states[response], tokens[response],
            )  # fmt: skip
            advantages[response] = paid
            mean += paid / group
            response += 1
        for i in range(first, response):
            square += (advantages[i] - mean) ** 2
        deviation = math.sqrt(square / max(1, group - 1))
        for i in range(first, response):
            advantages[i] = start[prompt] * (advantages[i] - mean) / (deviation + 1e-4)


# ------------------------------------------------------------------------------------------------------ the update


@njit(**HELPER)
def _row_gradient(z, odds, statistics, shift, base, bonus, clamped):
    """Turn ``odds`` into the gradient g_a = pi_a base - bonus * w_a p~_a (log p~_a + H~), in place."""
    zero = z.dtype.type(0.0)
    threshold, share = z.dtype.type(statistics[THRESHOLD]), z.dtype.type(statistics[TIE_SHARE])
    scale = z.dtype.type(base * math.exp(-statistics[LOG_TOTAL]))
    slope = z.dtype.type(-bonus * math.exp(-statistics[LOG_KEPT]))
    offset = z.dtype.type(statistics[KEPT_ENTROPY] - statistics[LOG_KEPT] - shift)
    if bonus == 0.0:
        for a in range(z.shape[0]):
            odds[a] *= scale
    elif clamped:
        for a in range(z.shape[0]):
            whole = slope * (z[a] + offset)
            own = whole if z[a] > threshold else zero
            own = share * whole if z[a] == threshold else own
            odds[a] *= scale + own
    else:
        for a in range(z.shape[0]):
            odds[a] *= scale + slope * (z[a] + offset)


@njit(**HELPER)
def _sgd(z, gradient, rate):
    eta = z.dtype.type(rate)
    for a in range(z.shape[0]):
        z[a] += eta * gradient[a]


@njit(**HELPER)
def _adam(z, gradient, m, v, rate, step):
    one, beta1, beta2 = z.dtype.type(1.0), z.dtype.type(ADAM_BETA1), z.dtype.type(ADAM_BETA2)
    correction = z.dtype.type(1.0 / math.sqrt(1.0 - ADAM_BETA2 ** (step + 1)))
    eta, epsilon = z.dtype.type(rate / (1.0 - ADAM_BETA1 ** (step + 1))), z.dtype.type(ADAM_EPSILON)
    for a in range(z.shape[0]):
        g = gradient[a]
        m[a] = beta1 * m[a] + (one - beta1) * g
        v[a] = beta2 * v[a] + (one - beta2) * g * g
        z[a] += eta * m[a] / (math.sqrt(v[a]) * correction + epsilon)


@njit(**HELPER)
def _exact_extras(odds, statistics, special, classes, visits, q, extra, gain):
    """Special tokens get d(s) pi(a) (Q(s, c) - Q(s, 0)) on top of the dense part; returns how many."""
    count, scale = 0, visits * math.exp(-statistics[LOG_TOTAL])
    for j in range(special.shape[0]):
        a = special[j]
        if a < 0:
            break
        extra[count], gain[count] = a, scale * odds[a] * (q[classes[j]] - q[0])
        count += 1
    return count


@njit(**HELPER)
def _sampled_extras(paths, s, start, group, extra, gain):
    """Sampled tokens of state s, merged; returns (how many, dense coefficient -sum A/G, sampled visitation of s)."""
    states, tokens, advantages = paths
    count, dense, here = 0, 0.0, 0.0
    for i in range(states.shape[0]):
        for t in range(states.shape[1]):
            if states[i, t] != s:
                continue
            a, weight = tokens[i, t], advantages[i] / group
            dense -= weight
            here += start[states[i, 0]]
            found = -1
            for j in range(count):
                if extra[j] == a:
                    found = j
                    break
            if found < 0:
                found = count
                extra[count], gain[count] = a, 0.0
                count += 1
            gain[found] += weight
    return count, dense, here / group


@njit(**OPTIONS)
def step_runs(
    z, m, v, out, statistics, anchor, density, instance, special, classes, multiplicity, start, transition, reward,
    noise_scale, kept, coefficient, rate, step, uniforms, normals, group, adam, tabular, update, value, entropy,
    measured,
):  # fmt: skip
    """Measure every run at its present logits and, if ``update``, move it one step. Arrays are changed in place.

    value (R,), entropy (R,), measured (R,): exact return, mean full and mean kept token entropy (nats, weighted by
    visitation) *before* the step. Not ``tabular``: the gradient of the logits goes to ``out`` (R, S, A) and nothing
    moves. ``tabular``: ``out`` (1, S, A) is scratch, kept by the caller: above 32 MB the fresh pages of a new one cost
    more than the step.
    ``group`` = 0 means exact gradients. ``kept`` = A (or all tokens) means full entropy. z, m, v and out come from
    ``batch.spaced``: any other memory gives the same numbers up to rounding, these the same bits every time.
    """
    R, S, A = z.shape
    C = reward.shape[1]
    sampled = group > 0
    block_sums = np.empty((S, (A + BLOCK - 1) // BLOCK))
    mass, q = np.empty((S, C)), np.empty((S, C))
    values, visits, shifts = np.empty(S), np.empty(S), np.empty(S)
    B, H = uniforms.shape[1], uniforms.shape[2]
    paths = (np.empty((B, H), np.int64), np.empty((B, H), np.int64), np.empty(B))
    slots = max(special.shape[2], B * H)
    extra, gain = np.empty(slots, np.int64), np.empty(slots)
    for r in range(R):
        i = instance[r]
        odds = out[0 if tabular else r]
        tokens = float(A)
        if multiplicity is not None:
            tokens = multiplicity[i, 0].sum()
        clamped = kept < tokens
        for s in range(S):
            own = None if multiplicity is None else multiplicity[i, s]
            threshold, places = z[r, s, 0], 0.0
            if clamped and _is_finite(statistics[r, s, SHIFT]):
                threshold, places, statistics[r, s, TIE_SHARE], anchor[r, s], density[r, s] = _cut(
                    z[r, s], own, kept, anchor[r, s], density[r, s]
                )
            shifts[s] = _row_statistics(
                z[r, s], odds[s], block_sums[s], own, threshold, places, clamped, statistics[r, s]
            )
        own_rows = None if multiplicity is None else multiplicity[i]
        _class_masses(odds, statistics[r], special[i], classes[i], own_rows, mass)
        value[r] = _evaluate(mass, start, transition, reward, values, q, visits)
        length, entropy[r], measured[r] = visits.sum(), 0.0, 0.0
        for s in range(S):
            entropy[r] += visits[s] / length * statistics[r, s, ENTROPY]
            measured[r] += visits[s] / length * statistics[r, s, KEPT_ENTROPY]
        if not update:
            continue
        if sampled:
            _sample(
                odds, block_sums, special[i], classes[i], start, transition, reward, noise_scale, uniforms[r],
                normals[r], group, paths,
            )  # fmt: skip
        for s in range(S):
            if sampled:
                count, base, weight = _sampled_extras(paths, s, start, group, extra, gain)
            else:
                base, weight = visits[s] * (q[s, 0] - values[s]), visits[s]
                count = _exact_extras(
                    odds[s], statistics[r, s], special[i, s], classes[i, s], visits[s], q[s], extra, gain
                )
            _row_gradient(z[r, s], odds[s], statistics[r, s], shifts[s], base, coefficient[r] * weight, clamped)
            for j in range(count):
                odds[s, extra[j]] += gain[j]
            if tabular and adam:
                _adam(z[r, s], odds[s], m[r, s], v[r, s], rate[r], step)
            elif tabular:
                _sgd(z[r, s], odds[s], rate[r])
