"""The fused head on torch operations: any device, any rule, any float; what runs on a CPU, and the Triton engine's
reference.

Logits are made for one tile of rows at a time and worked on in blocks that fit the CPU's cache. Both passes make the
same tiles. Left out on purpose: tiles over the vocabulary, as TRL's head has them (a cut needs the whole row).

Shape legend: ``rows`` of a tile, V vocabulary, ``block`` of rows worked on at a time. z are the scaled logits, m their
row maximum, log_total = log sum exp(z - m); entropies in nats.

Passes over a float32 block while it is in the CPU's cache, in ns a number (one thread, AVX-512; a copy takes 0.08):
forward max 0.05, softmax 0.41, max, subtract 0.08, multiply and sum 0.16: about 0.75. Dropping the lowest share adds a
partitioned copy 0.9 and the same passes over the dropped third, 0.25. Backward for log p and H~: compare, two subtract,
two multiply, subtract, softmax, multiply, copy: about 1.2; for H, three more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aent.entropy import DropLowest, TopK, Tsallis, rule_weights
from aent_llm.head.common import MASKED, NOT_A_LOGIT, Gradients, GradientSums, Head, Settings, slices

__all__ = ["backward", "forward"]

_CACHE_BYTES = 2**20  # of one float32 block on the CPU: a few of them stay in the cache
_FAR = -1e4  # a gap between logits whose exponential is 0, small enough to square


def forward(head: Head, targets: Tensor, settings: Settings) -> dict[str, Tensor]:
    """Every statistic of the head, (N,) each."""
    rows: dict[str, Tensor] = {}
    for _, _, blocks in _Tiles(head, settings):
        for block in blocks:
            for name, value in _forward_block(block, targets[block.rows], settings).items():
                whole = rows.setdefault(name, value.new_empty(len(targets)))
                whole[block.rows] = value[:, 0]
    return rows


def backward(
    head: Head, targets: Tensor, rows: dict[str, Tensor], grads: Gradients, settings: Settings, sums: GradientSums
) -> None:
    """Add the gradients of all tiles to ``sums``; ``rows`` holds what ``SAVED`` names of the forward pass."""
    for tile, logits, blocks in _Tiles(head, settings):
        for block in blocks:
            here = {name: value[block.rows, None] for name, value in rows.items()}
            given = Gradients(*(None if grad is None else grad[block.rows, None] for grad in grads))
            _backward_block(block, targets[block.rows], here, given, settings)
        sums.add(head, tile, slice(0, len(head.weight)), logits)


# --------------------------------------------------------------------------------------------------- tiles and blocks


class _Block(NamedTuple):
    rows: slice  # of the N tokens
    raw: Tensor  # (block, V) what the projection gave, in the compute dtype; the gradient is written here
    z: Tensor  # (block, V) scaled logits; shares memory with ``raw`` where the dtypes agree
    scratch: list[Tensor]  # (block, V) each


class _Tiles:
    """Walks over the logits in tiles and blocks; both passes do so alike, to get the same logits to the last bit."""

    def __init__(self, head: Head, settings: Settings):
        self.head, self.settings = head, settings
        device = head.hidden.device.type
        self.rows, self.block, self.buffers = _tile_shape(len(head.hidden), len(head.weight), settings, device)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Iterator[_Block]]]:
        (tokens, _), vocabulary, device = self.head.hidden.shape, len(self.head.weight), self.head.hidden.device
        tile = torch.empty(self.rows, vocabulary, dtype=self.settings.compute_dtype, device=device)
        scratch = torch.empty(self.buffers, self.block, vocabulary, dtype=self.settings.dtype, device=device)
        for rows in slices(tokens, self.rows):
            logits = tile[: rows.stop - rows.start]
            self.head.project(rows, slice(0, vocabulary), logits)
            yield rows, logits, self._blocks(rows.start, logits, scratch)

    def _blocks(self, start: int, logits: Tensor, scratch: Tensor) -> Iterator[_Block]:
        for first in range(0, len(logits), self.block):
            raw = logits[first : first + self.block]
            buffers = [buffer[: len(raw)] for buffer in scratch]
            z = raw if raw.dtype == scratch.dtype else buffers.pop().copy_(raw)
            yield _Block(slice(start + first, start + first + len(raw)), raw, _scaled(z, self.settings), buffers)


def _tile_shape(tokens: int, vocabulary: int, settings: Settings, device: str) -> tuple[int, int, int]:
    """(rows of a tile, rows of a block, number of scratch blocks): half the budget at most for work on a block."""
    size, stored = settings.dtype.itemsize, settings.compute_dtype.itemsize
    buffers = 2 + (settings.softcap is not None) + (settings.dtype != settings.compute_dtype)
    passing = 1 if settings.support is None or _partitions(settings, device) else 8  # what operations return
    scratch_row, tile_row = (buffers + passing) * vocabulary * size, vocabulary * stored
    budget = max(settings.tile_bytes, scratch_row + tile_row)
    wanted = _CACHE_BYTES if device == "cpu" else budget // 2  # of one buffer; a GPU is busy only with many rows
    block = max(1, min(wanted // (vocabulary * size), budget // 2 // scratch_row, tokens))
    return max(1, min((budget - block * scratch_row) // tile_row, tokens)), block, buffers


def _scaled(z: Tensor, settings: Settings) -> Tensor:
    """Projection -> logits as sampled from, in place."""
    if settings.logit_scale != 1.0:
        z.mul_(settings.logit_scale)
    if settings.softcap is not None:
        z.div_(settings.softcap).tanh_().mul_(settings.softcap)
    return z if settings.temperature == 1.0 else z.div_(settings.temperature)


# ------------------------------------------------------------------------------------------- one block, forward pass


class _Softmax(NamedTuple):
    peak: Tensor  # (block, 1)
    log_total: Tensor  # (block, 1)  log sum exp(z - peak)
    entropy: Tensor  # (block, 1)
    p: Tensor  # (block, V)


def _softmax(z: Tensor, out: Tensor) -> _Softmax:
    """Softmax and entropy of each row; ``z`` becomes z - peak, ``out`` the probabilities."""
    peak = z.amax(-1, keepdim=True)
    p = torch.softmax(z, -1, out=out)
    log_total = -p.amax(-1, keepdim=True).log()  # the top token has exp(0) / total
    return _Softmax(peak, log_total, (log_total - _row_dot(p, z.sub_(peak))).clamp_min_(0), p)


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Summed by torch's pairwise sum: BLAS would run down 150,000 numbers, or use TF32 on a GPU."""
    return (a * b).sum(-1, keepdim=True)


def _forward_block(block: _Block, targets: Tensor, settings: Settings) -> dict[str, Tensor]:
    """Every statistic of a block, (block, 1) each; overwrites its logits and its scratch space."""
    z, first, second = block.z, *block.scratch[:2]
    target = z.gather(-1, targets[:, None])
    cut = None if settings.support is None else _cut(z, settings, first, second)
    whole = _softmax(z, second)
    valid = whole.peak.abs() < NOT_A_LOGIT
    peak = whole.peak.where(valid, math.nan)
    log_prob = (target - peak - whole.log_total).where(target > -NOT_A_LOGIT, -math.inf)
    entropy = whole.entropy + 0 * peak
    rows = {"log_probs": log_prob.where(valid, math.nan), "entropy": entropy, "peak": peak, "total": whole.log_total}
    whole = whole._replace(peak=peak, entropy=entropy)
    squares = None
    if settings.diagnostics:
        squares = _Squares.of(z.add_(entropy - whole.log_total), whole.p)
        rows |= {"prob_sq": squares.zeroth, "full_grad_sq": squares.second}
    return rows if cut is None else rows | cut.statistics(whole, squares, z, first, second)


class _Squares(NamedTuple):
    """sum p^2 y^k over a set of tokens, k = 0, 1, 2, where y = log p + H: centred so that no digits cancel."""

    zeroth: Any
    first: Any
    second: Any

    @classmethod
    def of(cls, y: Tensor, p: Tensor) -> _Squares:
        """``y`` becomes p y, minus the gradient of the entropy."""
        y.mul_(p)
        return cls(_row_dot(p, p), _row_dot(p, y), _row_dot(y, y))

    def minus(self, other: _Squares, factor: Tensor) -> _Squares:
        return _Squares(*(mine - factor * its for mine, its in zip(self, other, strict=True)))


# A cut knows, of each row, the logits of one side of it (``first`` holds them until ``statistics`` is called).


def _cut(z: Tensor, settings: Settings, first: Tensor, second: Tensor) -> _Partition | _Weighted | _Collision:
    if type(settings.support) is Tsallis:
        return _Collision()
    if _partitions(settings, z.device.type):
        return _Partition.of(z, settings.support.kept(z.shape[-1]), first, second)  # type: ignore[union-attr]
    return _Weighted.of(z, settings, first)


def _partitions(settings: Settings, device: str) -> bool:
    return device == "cpu" and type(settings.support) in (DropLowest, TopK)


class _Partition(NamedTuple):
    """Rules by count on the CPU: a partitioned copy of the row holds the kept values side by side.

    Of tokens that tie at the cut as many lie among the kept *values* as there are places, which is their total weight.
    """

    kept: int
    threshold: Tensor
    places: Tensor  # tokens at the threshold that are kept, summed over their weights
    share: Tensor  # weight of each

    @classmethod
    def of(cls, z: Tensor, kept: int, first: Tensor, second: Tensor) -> _Partition:
        dropped = z.shape[-1] - kept
        first.copy_(z).numpy().partition(dropped, axis=-1)
        low, high = first[:, :dropped], first[:, dropped:]
        threshold = high[:, :1].clone()
        if not bool((low.amax(-1, keepdim=True) == threshold).any()):  # logits that were never rounded hardly tie
            return cls(kept, threshold, *2 * (torch.ones_like(threshold),))
        equal = torch.eq(first, threshold, out=second)  # as floats: several times faster to sum than booleans
        places = equal[:, dropped:].sum(-1, keepdim=True)
        return cls(kept, threshold, places, places / equal.sum(-1, keepdim=True))

    def statistics(
        self, whole: _Softmax, squares: _Squares | None, z: Tensor, first: Tensor, second: Tensor
    ) -> dict[str, Tensor]:
        """From the side with fewer tokens, by the chain rule of entropy."""
        dropped = first.shape[-1] - self.kept
        drops = dropped <= self.kept
        values, out = (first[:, :dropped], second[:, :dropped]) if drops else (first[:, dropped:], second[:, dropped:])
        part = _softmax(values, out)
        gap = (part.peak - whole.peak).clamp_min(_FAR)
        log_mass = (gap + part.log_total - whole.log_total).clamp_max(0)
        mass = log_mass.exp()
        log_kept, entropy = log_mass, part.entropy
        if drops:
            log_kept = torch.log1p(-mass)
            entropy = log_kept + (whole.entropy + mass * (log_mass - part.entropy)) / (1 - mass)
        rows = {"clamped_entropy": entropy.clamp_min(0) + 0 * whole.peak, "dropped_mass": mass if drops else 1 - mass}
        rows |= {"kept": torch.full_like(mass, self.kept), "log_kept": log_kept}
        rows |= {"threshold": self.threshold, "share": self.share}
        if squares is None:
            return rows
        there = _Squares.of(values.add_(gap - whole.log_total + whole.entropy), part.p)
        nothing = _Squares(0, 0, 0)
        kept = (squares if drops else nothing).minus(there, -(mass**2) if not drops else mass**2)
        return rows | self._gradients(kept, whole, log_kept, rows["clamped_entropy"])

    def _gradients(self, kept: _Squares, whole: _Softmax, log_kept: Tensor, clamped: Tensor) -> dict[str, Tensor]:
        """g~ = -w r p (y + shift) with r = 1 / kept mass: sums over w are those over the kept values."""
        ratio, shift = (-log_kept).exp(), clamped - whole.entropy - log_kept
        dot = ratio * (kept.second + shift * kept.first)
        y = (self.threshold - whole.peak).clamp_min(_FAR) - whole.log_total
        p, y = y.exp(), y + whole.entropy
        surplus = self.places * (1 - self.share) * p**2  # sums over w^2 hold less of those at the cut
        squared = kept.second + 2 * shift * kept.first + shift**2 * kept.zeroth - surplus * (y + shift) ** 2
        return {"clamped_grad_sq": (ratio**2 * squared).clamp_min(0), "grad_dot": dot}


class _Weighted(NamedTuple):
    """Any rule, on any device, from its weights: w p~ = softmax(z + log w)."""

    log_weight: Tensor  # (block, V)
    kept: Tensor
    threshold: Tensor
    share: Tensor

    @classmethod
    def of(cls, z: Tensor, settings: Settings, first: Tensor) -> _Weighted:
        weight = rule_weights(settings.support, z)  # type: ignore[arg-type]
        kept, threshold = weight.sum(-1, keepdim=True), torch.zeros_like(z[:, :1])
        share = threshold
        if settings.has_threshold:
            threshold = z.masked_fill(weight == 0, math.inf).amin(-1, keepdim=True)
            share = weight.masked_fill(z != threshold, 0).amax(-1, keepdim=True)
        log_weight = weight.log().clamp_min_(MASKED)
        torch.add(z, log_weight, out=first)
        return cls(log_weight, kept, threshold, share)

    def statistics(
        self, whole: _Softmax, squares: _Squares | None, z: Tensor, first: Tensor, second: Tensor
    ) -> dict[str, Tensor]:
        part = _softmax(first, second)
        q = part.p.mul_(part.peak > -NOT_A_LOGIT)  # a rule may keep only tokens of probability 0
        log_kept = (part.peak - whole.peak + part.log_total - whole.log_total).clamp(-math.inf, 0)
        entropy = ((part.entropy + _row_dot(q, self.log_weight)) * (part.peak > -NOT_A_LOGIT)).clamp_min(0)
        rows = {"clamped_entropy": entropy + 0 * whole.peak, "dropped_mass": -torch.expm1(log_kept), "kept": self.kept}
        rows |= {"log_kept": log_kept, "threshold": self.threshold, "share": self.share}
        if squares is None:
            return rows
        gradient = first.sub_(self.log_weight).add_(entropy - part.log_total).mul_(q)  # z holds p (log p + H)
        return rows | {"clamped_grad_sq": _row_dot(gradient, gradient), "grad_dot": _row_dot(gradient, z)}


class _Collision(NamedTuple):
    """Tsallis' entropy: no cut, from c = sum p^2."""

    def statistics(
        self, whole: _Softmax, squares: _Squares | None, z: Tensor, first: Tensor, second: Tensor
    ) -> dict[str, Tensor]:
        collision = _row_dot(whole.p, whole.p)
        nothing = 0 * whole.peak
        rows = {"clamped_entropy": (0.5 - collision / 2).clamp_min(0) + nothing, "dropped_mass": nothing}
        rows |= {"kept": torch.full_like(nothing, z.shape[-1])}
        if squares is None:
            return rows
        gradient = torch.sub(whole.p, collision, out=first).mul_(whole.p)  # -g~; z holds p (log p + H) = -g
        return rows | {"clamped_grad_sq": _row_dot(gradient, gradient), "grad_dot": _row_dot(gradient, z)}


# ------------------------------------------------------------------------------------------ one block, backward pass


def _backward_block(
    block: _Block, targets: Tensor, rows: dict[str, Tensor], grads: Gradients, settings: Settings
) -> None:
    """Overwrite ``block.raw`` with the gradient of the loss at the projection.

    dz = gl (1[target] - p) - ge p (log p + H) - gc w p~ (log p~ + H~): p times a bracket that is linear in z.
    """
    z, first, bracket = block.z, *block.scratch[:2]
    slope = None if settings.softcap is None else _softcap_slope(z, settings, out=block.scratch[2])
    own = None
    if grads.clamped_entropy is None:
        bracket.zero_()
    elif settings.has_threshold:
        weight = _threshold_weight(z, rows["threshold"], rows["share"], first, bracket)
        torch.sub(z, rows["peak"], out=bracket).sub_(rows["total"] + rows["log_kept"] - rows["clamped_entropy"])
        bracket.mul_(weight).mul_(-grads.clamped_entropy * (-rows["log_kept"]).exp())
    else:
        bracket.zero_()
        own = _own_rule_gradient(z, settings).mul_(grads.clamped_entropy)
    if grads.log_probs is not None:
        bracket.sub_(grads.log_probs)
    if grads.entropy is not None:
        bracket.sub_(torch.sub(z, rows["peak"], out=first).sub_(rows["total"] - rows["entropy"]).mul_(grads.entropy))
    gradient = bracket.mul_(torch.softmax(z, -1, out=first))
    if own is not None:
        gradient.add_(own)
    if grads.log_probs is not None:
        gradient.scatter_add_(-1, targets[:, None], grads.log_probs)
    block.raw.copy_(gradient if slope is None else gradient.mul_(slope))


def _threshold_weight(z: Tensor, threshold: Tensor, share: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    if z.device.type == "cpu" and bool((share == 1).all()):  # a GPU would wait for the answer
        return torch.ge(z, threshold, out=out)
    return torch.gt(z, threshold, out=out).addcmul_(torch.eq(z, threshold, out=spare), share)


def _own_rule_gradient(z: Tensor, settings: Settings) -> Tensor:
    """-w p~ (log p~ + H~) for a rule that two numbers a row do not describe; -p (p - sum p^2) for Tsallis."""
    if type(settings.support) is Tsallis:
        p = torch.softmax(z, -1)
        return _row_dot(p, p).sub(p).mul_(p)
    log_weight = rule_weights(settings.support, z).log().clamp_min_(MASKED)  # type: ignore[arg-type]
    shifted = z + log_weight
    part = _softmax(shifted, torch.empty_like(z))
    q = part.p.mul_(part.peak > -NOT_A_LOGIT)
    log_p = shifted.sub_(log_weight).sub_(part.log_total)
    return log_p.sub_(_row_dot(q, log_p)).mul_(q).neg_()


def _softcap_slope(z: Tensor, settings: Settings, out: Tensor) -> Tensor:
    """1 - tanh^2, from the scaled logits softcap * tanh / temperature."""
    return torch.mul(z, settings.temperature / settings.softcap, out=out).square_().neg_().add_(1)  # type: ignore[operator]
