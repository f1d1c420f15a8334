"""Triton kernels of the fused head: a tile of logits into sums per row, and into its own gradient.

``row_sums`` finds the exact cut of a rule by radix search: a read of the row counts the tokens at or above seven
pivots, which is three bits of the answer, and the cut lies between the last pivot that keeps enough and the first that
does not. Pivots are integers in the order of the floats, so that the search ends at one logit and its ties however they
are spread, after at most 6 such reads of bfloat16 and 11 of float32; three more space the pivots evenly in value, while
they are far apart. A rule by count needs fewer: its first pivots come from a sample of the row and are counted by the
read that finds the maximum and the total, so that bfloat16 logits as a language model has them take three reads in all:
that one, one more count, the sums over the kept tokens. ``gradient_tile_`` is one read and one write. TRL's
full-entropy head takes one read, and one read and one write.

Inside a read nothing is summed across threads: every group of 8 tokens keeps sums of its own until the row ends.

Left out: the matrix products (cuBLAS, ``triton_engine.py``) and the formulas on a row's sums (torch, there too).

Shape legend: R rows of a tile, V vocabulary, (G, 8) a block. z = cap(scale * raw) / temperature are the scaled logits
of ``raw``; gap = z - peak of the row, e = exp(gap). In the kernels z and gap are in bits, for exp2; they come out in
nats. Thresholds are in units of ``raw``, which has the order of z. A name that ends in _ is a pointer.
"""
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from aent.entropy import Nucleus, Support
from aent_llm.head.common import Settings

__all__ = ["ROW_SUMS", "Geometry", "gradient_tile_", "row_sums"]

ROW_SUMS = (
    "peak",  # max z
    "total",  # sum e
    "mean",  # E_p[gap], so that H = log total - mean
    "target",  # gap of the target
    "threshold",  # w = (raw > threshold) + (raw == threshold) * share
    "share",
    "kept",  # sum w
    "kept_total",  # sum w e
    "kept_mean",  # E_p~[gap]
    "dropped_total",  # sum (1 - w) e
    "prob_sq",  # sum p^2
    "full_grad_sq",  # sum (p (gap - mean))^2
    "clamped_grad_sq",  # sum (w p~ (gap - kept_mean))^2
    "grad_dot",  # sum p (gap - mean) w p~ (gap - kept_mean)
    "reads",  # of the row
)
_NO_CUT, _BY_COUNT, _BY_MASS = 0, 1, 2
_INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # its bits, which are its key
_MASS_SLACK = 1e-6  # an exact multiple must not become one more token by rounding


class Geometry(NamedTuple):
    """Sizes that change the speed and nothing else; powers of two."""

    block: int = 4096  # tokens of a row that a program works on at a time
    sample: int = 8192  # tokens of a row that place the first pivots
    warps: int = 8


def row_sums(
    raw: Tensor,
    targets: Tensor,
    sums: Tensor,
    settings: Settings,
    *,
    geometry: Geometry = Geometry(),
) -> None:
    """Fill ``sums`` (len(ROW_SUMS), R), float32, from ``raw`` (R, V) and ``targets`` (R,).

    Sums that the settings do not ask for are left as they are. A row with NaN or +inf has a NaN total,
    one with nothing but masked tokens a peak below -1e12: no error is raised here.
    """
    rows, vocabulary = raw.shape
    rule, wanted, ranks, least = _search(settings.support, vocabulary, geometry)
    with torch.cuda.device_of(raw):  # Triton launches on the current device
        _row_sums[(rows,)](
            raw,
            raw.stride(0),
            vocabulary,
            *_in_bits(settings),
            targets,
            sums,
            sums.stride(0),
            wanted,
            *ranks,
            least,
            RULE=rule,
            SAMPLE=geometry.sample if ranks[0] else 0,
            DIAGNOSTICS=settings.diagnostics,
            SOFTCAP=settings.softcap is not None,
            BITS=8 * raw.element_size(),
            TOP=_INFINITY[raw.dtype],
            BLOCK=min(geometry.block, max(8, triton.next_power_of_2(vocabulary))),
            num_warps=geometry.warps,
        )


def _search(support: Support | None, vocabulary: int, geometry: Geometry) -> tuple[int, float, tuple[int, int], float]:
    """(kind of rule, what it keeps, ranks in the sample below and above the cut, lowest log2 p at the cut).

    Six standard deviations of a rank, as neighbours in a vocabulary are alike: 1024 draws of 8 say less than 8192 of 1.
    """
    if support is None:
        return _NO_CUT, 0.0, (0, 0), 0.0
    if isinstance(support, Nucleus):
        least = math.log1p(-support.mass) - math.log(vocabulary)  # fewer than V tokens hold the mass left out
        return _BY_MASS, support.mass * (1 - _MASS_SLACK), (0, 0), least / math.log(2)
    kept = support.kept(vocabulary)  # type: ignore[attr-defined]
    if vocabulary < 2 * geometry.sample:
        return _BY_COUNT, float(kept), (0, 0), 0.0
    rank = geometry.sample * kept / vocabulary
    margin = 6 * math.sqrt(rank * (1 - kept / vocabulary)) + 4
    return _BY_COUNT, float(kept), (min(math.ceil(rank + margin), geometry.sample), max(int(rank - margin), 1)), 0.0


def gradient_tile_(
    raw: Tensor,
    targets: Tensor,
    coefficients: Tensor,
    first: int,
    settings: Settings,
    *,
    geometry: Geometry = Geometry(),
) -> None:
    """Overwrite ``raw`` (R, columns), logits of the tokens from ``first`` on, with the gradient of the loss there.

    ``coefficients`` (R, 8), float32: log sum exp z, c, c', d, d', threshold, share, g, and

        gradient = p (c + c' log p + w (d + d' log p)) + 1[target] g        (times the slope of the softcap)
    """
    rows, columns = raw.shape
    block = min(geometry.block, triton.next_power_of_2(columns))
    with torch.cuda.device_of(raw):
        _gradient[(rows, triton.cdiv(columns, block))](
            raw,
            raw.stride(0),
            columns,
            *_in_bits(settings),
            targets,
            coefficients,
            first,
            SOFTCAP=settings.softcap is not None,
            BLOCK=block,
            num_warps=geometry.warps,
        )


def _in_bits(settings: Settings) -> tuple[float, float]:
    """(a, c): z / log 2 = a raw, or c tanh(a raw) with a softcap."""
    per_bit = settings.temperature * math.log(2)
    if settings.softcap is None:
        return settings.logit_scale / per_bit, 1.0
    return settings.logit_scale / settings.softcap, settings.softcap / per_bit


# ------------------------------------------------------------------------------------------------------------- numbers

_FAR = tl.constexpr(-1e4)  # a gap whose exponential is 0, small enough to square
_NONE = tl.constexpr(-3e38)  # below every logit, and finite: no difference of infinities
_LOG2 = tl.constexpr(math.log(2))
_PIVOTS = tl.constexpr(7)
(
    _PEAK, _TOTAL, _MEAN, _TARGET, _THRESHOLD, _SHARE, _KEPT, _KEPT_TOTAL, _KEPT_MEAN, _DROPPED_TOTAL,
    _PROB_SQ, _FULL_GRAD_SQ, _CLAMPED_GRAD_SQ, _GRAD_DOT, _READS,
) = map(tl.constexpr, range(len(ROW_SUMS)))  # fmt: skip


@triton.jit
def _key(x, BITS: tl.constexpr):
    """The integer of the same order as the float; both zeros have key 0."""
    if BITS == 16:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        size = bits & 0x7FFF
    else:
        bits = x.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
    return tl.where(bits < 0, -size, size)


@triton.jit
def _value(key, like_, BITS: tl.constexpr):
    """The float32 of a key."""
    size = tl.abs(key.to(tl.int32))
    if BITS == 16:
        value = size.to(tl.int16).to(like_.dtype.element_ty, bitcast=True).to(tl.float32)
    else:
        value = size.to(tl.float32, bitcast=True)
    return tl.where(key < 0, -value, value)


@triton.jit
def _block(row_, start, length, BLOCK: tl.constexpr):
    """(G, 8) of a row; -inf beyond its end, as if there were more tokens of probability 0."""
    columns = start + tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    return tl.load(row_ + columns, mask=columns < length, other=float("-inf"))


@triton.jit
def _scaled(x, a, c, SOFTCAP: tl.constexpr):
    """In bits."""
    x = x.to(tl.float32)
    if SOFTCAP:
        tanh = 2 * tl.sigmoid(2 * a * x) - 1
        return tl.where(x == float("-inf"), x, c * tanh)
    return a * x


@triton.jit
def _gap(z, peak):
    return tl.maximum(z - peak, _FAR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _bits(nats):
    return nats / _LOG2


# ------------------------------------------------------------------------------------------------------ sums of a row


@triton.jit
def _row_sums(
    raw_,
    raw_stride,
    vocabulary,
    a,
    c,
    targets_,
    sums_,
    sums_stride,
    wanted,
    rank_low,
    rank_high,
    least,
    RULE: tl.constexpr,
    SAMPLE: tl.constexpr,
    DIAGNOSTICS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BITS: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row. RULE 0: no cut, 1: keep ``wanted`` tokens, 2: keep a mass of ``wanted``; TOP: key of inf."""
    row = tl.program_id(0).to(tl.int64)
    raw_ += row * raw_stride
    sums_ += row

    low, high = tl.full((), -TOP, tl.int64), tl.full((), TOP, tl.int64)
    pivots = ()
    if SAMPLE > 0:
        keys = _sampled(raw_, vocabulary, SAMPLE, BITS)
        pivots = _pivots(_ranked(keys, rank_low, TOP), _ranked(keys, rank_high, TOP), True, raw_, BITS, TOP)
    peak, total, mean, found = _first_read(raw_, vocabulary, a, c, pivots, SOFTCAP, BITS, BLOCK)
    target = _scaled(tl.load(raw_ + tl.load(targets_ + row)), a, c, SOFTCAP)
    tl.store(sums_ + _PEAK * sums_stride, peak * _LOG2)
    tl.store(sums_ + _TOTAL * sums_stride, total)
    tl.store(sums_ + _MEAN * sums_stride, mean * _LOG2)
    tl.store(sums_ + _TARGET * sums_stride, (target - peak) * _LOG2)

    reads, threshold = tl.full((), 1.0, tl.float32), tl.full((), float("-inf"), tl.float32)
    if RULE != 0:
        if RULE == 2:
            wanted *= total
            if not SOFTCAP:
                low, high = _bounds(raw_, low, high, (least + peak + tl.log2(total)) / a, peak / a, BITS)
        measured = wanted + 1  # at and above low; at and above high it is less than wanted
        if SAMPLE > 0:
            low, measured, high = _narrowed(low, measured, high, pivots, found, wanted)
        while (high - low > 1) & (measured != wanted):
            between = _pivots(low, high, reads <= 3, raw_, BITS, TOP)
            counts = _counting_read(raw_, vocabulary, a, c, peak, between, RULE, SOFTCAP, BITS, BLOCK)
            low, measured, high = _narrowed(low, measured, high, between, counts, wanted)
            reads += 1
        threshold = _value(low, raw_, BITS)
    if RULE != 0 or DIAGNOSTICS:
        _last_read(
            raw_, vocabulary, a, c, sums_, sums_stride, threshold, wanted, peak, total, mean,
            RULE, DIAGNOSTICS, SOFTCAP, BLOCK,
        )  # fmt: skip
        reads += 1
    tl.store(sums_ + _READS * sums_stride, reads)


@triton.jit
def _sampled(raw_, vocabulary, SAMPLE: tl.constexpr, BITS: tl.constexpr):
    """Keys of SAMPLE / 8 groups, spread over the row."""
    apart = vocabulary // (SAMPLE // 8) // 8 * 8
    return _key(tl.load(raw_ + tl.arange(0, SAMPLE // 8)[:, None] * apart + tl.arange(0, 8)[None, :]), BITS)


@triton.jit
def _ranked(keys, rank, TOP: tl.constexpr):
    """Key of the ``rank``-th largest, counted from 1."""
    low, high = tl.full((), -TOP, tl.int64), tl.full((), TOP, tl.int64)
    while high - low > 1:
        middle = (low + high) >> 1
        if tl.sum((keys >= middle.to(tl.int32)).to(tl.int32)) >= rank:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _pivots(low, high, by_value, raw_, BITS: tl.constexpr, TOP: tl.constexpr):
    """Keys between low and high: spaced evenly in value while they span more than an octave, else as integers."""
    OCTAVE: tl.constexpr = 128 if BITS == 16 else 1 << 23  # of bfloat16 and of float32
    by_value = (high - low > OCTAVE) & (low > -TOP) & (high < TOP) & by_value
    start, step = _value(low, raw_, BITS), (_value(high, raw_, BITS) - _value(low, raw_, BITS)) / (_PIVOTS + 1)
    pivots = ()
    for i in tl.static_range(1, _PIVOTS + 1):
        in_value = _key((start + i * step).to(raw_.dtype.element_ty), BITS).to(tl.int64)
        pivots = pivots + (tl.where(by_value, in_value, low + (high - low) * i // (_PIVOTS + 1)),)
    return pivots


@triton.jit
def _bounds(raw_, low, high, lowest, highest, BITS: tl.constexpr):
    """Keys that a nucleus ends between; a few more, since dividing has rounded the logits."""
    lowest, highest = lowest.to(raw_.dtype.element_ty), highest.to(raw_.dtype.element_ty)
    low = tl.maximum(low, _key(lowest, BITS).to(tl.int64) - 4)
    return low, tl.minimum(high, _key(highest, BITS).to(tl.int64) + 4)


@triton.jit
def _narrowed(low, measured, high, pivots, found, wanted):
    """From the last pivot that keeps enough to the first that does not."""
    for i in tl.static_range(len(pivots)):
        enough = found[i] >= wanted  # not "less than": NaN must end the search too
        higher = enough & (pivots[i] > low)
        low, measured = tl.where(higher, pivots[i], low), tl.where(higher, found[i], measured)
        high = tl.where((not enough) & (pivots[i] < high), pivots[i], high)
    return low, measured, high


@triton.jit
def _first_read(raw_, vocabulary, a, c, pivots, SOFTCAP: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Maximum of z, sum e, E_p[gap], and how many tokens are at or above each pivot, if there are any."""
    peaks = tl.full((BLOCK // 8,), _NONE, tl.float32)
    totals, moments = tl.zeros_like(peaks), tl.zeros_like(peaks)
    thresholds, found = _thresholds(pivots, raw_, BITS, BLOCK)
    for start in range(0, vocabulary, BLOCK):
        raw = _block(raw_, start, vocabulary, BLOCK)
        z = _scaled(raw, a, c, SOFTCAP)
        higher = tl.maximum(peaks, tl.max(z, axis=1))
        gap, step = _gap(z, higher[:, None]), _gap(peaks, higher)
        e, kept = tl.exp2(gap), tl.exp2(step)
        moments = kept * (moments + step * totals) + tl.sum(e * gap, axis=1)
        totals = kept * totals + tl.sum(e, axis=1)
        peaks = higher
        found = _more(found, raw, 1.0, thresholds)
    peak = tl.max(peaks, axis=0)
    step = _gap(peaks, peak)
    total = tl.sum(tl.exp2(step) * totals, axis=0)
    mean = tl.sum(tl.exp2(step) * (moments + step * totals), axis=0) / total
    return peak, total, mean, _summed(found)


@triton.jit
def _counting_read(
    raw_, vocabulary, a, c, peak, pivots,
    RULE: tl.constexpr, SOFTCAP: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Number of tokens (RULE 1) or their sum of e (RULE 2) at or above each pivot."""
    thresholds, found = _thresholds(pivots, raw_, BITS, BLOCK)
    for start in range(0, vocabulary, BLOCK):
        raw = _block(raw_, start, vocabulary, BLOCK)
        if RULE == 1:
            found = _more(found, raw, 1.0, thresholds)
        else:
            found = _more(found, raw, tl.exp2(_gap(_scaled(raw, a, c, SOFTCAP), peak)), thresholds)
    return _summed(found)


@triton.jit
def _thresholds(pivots, raw_, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Pivots as floats, and the zeros that counting starts from."""
    thresholds, found = (), ()
    for i in tl.static_range(len(pivots)):
        thresholds = thresholds + (_value(pivots[i], raw_, BITS),)
        found = found + (tl.zeros((BLOCK // 8,), tl.float32),)
    return thresholds, found


@triton.jit
def _more(found, raw, amount, thresholds):
    x, more = raw.to(tl.float32), ()
    for i in tl.static_range(len(thresholds)):
        more = more + (found[i] + tl.sum(tl.where(x >= thresholds[i], amount, 0.0), axis=1),)
    return more


@triton.jit
def _summed(found):
    sums = ()
    for i in tl.static_range(len(found)):
        sums = sums + (tl.sum(found[i], axis=0),)
    return sums


@triton.jit
def _last_read(
    raw_, vocabulary, a, c, sums_, sums_stride, threshold, wanted, peak, total, mean,
    RULE: tl.constexpr, DIAGNOSTICS: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums above and below the cut. Those at it are alike: ``places`` of them are kept, each with weight ``share``."""
    zero = tl.zeros((BLOCK // 8,), tl.float32)
    number, equal, kept_total, kept_moment, dropped_total = zero, zero, zero, zero, zero
    square, slope_sq, kept_0, kept_1, kept_2 = zero, zero, zero, zero, zero
    for start in range(0, vocabulary, BLOCK):
        raw = _block(raw_, start, vocabulary, BLOCK)
        x, gap = raw.to(tl.float32), _gap(_scaled(raw, a, c, SOFTCAP), peak)
        e = tl.exp2(gap)
        above = tl.where(x > threshold, e, 0.0)
        number += tl.sum((x > threshold).to(tl.float32), axis=1)
        equal += tl.sum((x == threshold).to(tl.float32), axis=1)
        kept_total += tl.sum(above, axis=1)
        kept_moment += tl.sum(above * gap, axis=1)
        dropped_total += tl.sum(tl.where(x < threshold, e, 0.0), axis=1)
        if DIAGNOSTICS:
            slope, above_slope = e * (gap - mean), above * (gap - mean)
            square += tl.sum(e * e, axis=1)
            slope_sq += tl.sum(slope * slope, axis=1)
            kept_0 += tl.sum(above * above, axis=1)
            kept_1 += tl.sum(above * above_slope, axis=1)
            kept_2 += tl.sum(above_slope * above_slope, axis=1)
    if DIAGNOSTICS:
        tl.store(sums_ + _PROB_SQ * sums_stride, tl.sum(square, axis=0) / (total * total))
        tl.store(sums_ + _FULL_GRAD_SQ * sums_stride, tl.sum(slope_sq, axis=0) / (total * total) * (_LOG2 * _LOG2))
    if RULE != 0:
        at_cut = _gap(_scaled(threshold, a, c, SOFTCAP), peak)
        e_cut, number, equal = tl.exp2(at_cut), tl.sum(number, axis=0), tl.sum(equal, axis=0)
        if RULE == 1:
            places = wanted - number
        else:
            places = tl.maximum(tl.ceil((wanted - tl.sum(kept_total, axis=0)) / e_cut), 1.0)
        places = tl.minimum(places, equal)
        share = tl.where(equal > 0, places / tl.maximum(equal, 1.0), 1.0)
        kept = tl.sum(kept_total, axis=0) + places * e_cut
        kept_mean = (tl.sum(kept_moment, axis=0) + places * e_cut * at_cut) / kept
        tl.store(sums_ + _THRESHOLD * sums_stride, threshold)
        tl.store(sums_ + _SHARE * sums_stride, share)
        tl.store(sums_ + _KEPT * sums_stride, number + places)
        tl.store(sums_ + _KEPT_TOTAL * sums_stride, kept)
        tl.store(sums_ + _KEPT_MEAN * sums_stride, kept_mean * _LOG2)
        tl.store(sums_ + _DROPPED_TOTAL * sums_stride, tl.sum(dropped_total, axis=0) + (equal - places) * e_cut)
        if DIAGNOSTICS:
            cut_slope, shift = e_cut * (at_cut - mean), mean - kept_mean  # gap - kept_mean = (gap - mean) + shift
            zeroth = tl.sum(kept_0, axis=0) + places * e_cut * e_cut
            first = tl.sum(kept_1, axis=0) + places * e_cut * cut_slope
            second = tl.sum(kept_2, axis=0) + places * cut_slope * cut_slope
            surplus = places * (1 - share) * (cut_slope + shift * e_cut) * (cut_slope + shift * e_cut)  # they weigh w^2
            squares = tl.maximum(second + 2 * shift * first + shift * shift * zeroth - surplus, 0.0)
            tl.store(sums_ + _CLAMPED_GRAD_SQ * sums_stride, squares / (kept * kept) * (_LOG2 * _LOG2))
            tl.store(sums_ + _GRAD_DOT * sums_stride, (second + shift * first) / (total * kept) * (_LOG2 * _LOG2))


# ----------------------------------------------------------------------------------------------------------- gradient


@triton.jit
def _gradient(
    raw_, raw_stride, width, a, c, targets_, coefficients_, first, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr
):
    """One program per block of a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    raw_ += row * raw_stride + columns
    of_row_ = coefficients_ + row * 8
    raw = tl.load(raw_, mask=columns < width, other=0.0)
    z, x = _scaled(raw, a, c, SOFTCAP), raw.to(tl.float32)
    log_p = _gap(z, _bits(tl.load(of_row_)))
    threshold = tl.load(of_row_ + 5)
    weight = tl.where(x > threshold, 1.0, tl.where(x == threshold, tl.load(of_row_ + 6), 0.0))
    bracket = tl.load(of_row_ + 1) + tl.load(of_row_ + 2) * _LOG2 * log_p
    bracket += weight * (tl.load(of_row_ + 3) + tl.load(of_row_ + 4) * _LOG2 * log_p)
    gradient = tl.exp2(log_p) * bracket
    gradient += tl.where(columns + first == tl.load(targets_ + row), tl.load(of_row_ + 7), 0.0)
    if SOFTCAP:
        gradient *= 1 - (z / c) * (z / c)
    tl.store(raw_, gradient.to(raw_.dtype.element_ty), mask=columns < width)
