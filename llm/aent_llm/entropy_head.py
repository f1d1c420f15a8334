"""Fused LM head: log-probability, entropy and clamped entropy of every token, without the logits of all of them.

Logits are made for one tile of rows at a time, turned into a handful of numbers per row, and made again in the backward
pass, where the tile is overwritten by its own gradient. What the entropies *are* is defined by ``aent.entropy``; this
file is that definition at speed and is tested for equality with it. The index-free form of every threshold rule,
w = (z > threshold) + (z == threshold) * share, is what lets the backward pass know the kept set from two numbers a row.

Left out on purpose: tiles over the vocabulary, as TRL's head has them (a cut needs the whole row); Triton (this is the
reference for it, and what runs on a CPU); gradients of gradients.

Shape legend: N scored tokens, D hidden size, V vocabulary, ``rows`` of a tile, ``block`` of rows worked on at a time.
z are the scaled logits, m their row maximum, log_total = log sum exp(z - m); entropies in nats.

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
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from trl.trainer.utils import maybe_gather_lm_head_ctx

from aent.entropy import DropLowest, Full, Nucleus, Support, TopK, Tsallis

__all__ = ["DEFAULT_TILE_BYTES", "HeadOutput", "fused_entropy_head"]

DEFAULT_TILE_BYTES = {"cpu": 64 * 2**20, "cuda": 1024 * 2**20}  # others as cuda
_WIDENED = 8192  # tokens of a short-float gradient that the CPU turns to float32 at a time
_CACHE_BYTES = 2**20  # of one float32 block on the CPU: a few of them stay in the cache
_MASKED = -1e20  # in place of a bias of -inf: the probability is exactly 0, and 0 * log 0 stays 0
_NOT_A_LOGIT = 1e12  # in absolute value: masked, or beyond working with
_FAR = -1e4  # a gap between logits whose exponential is 0, small enough to square


# ----------------------------------------------------------------------------------------------- the head as a function


class HeadOutput(NamedTuple):
    """Statistics of N tokens, each of shape [N]; the first three carry gradients. ``None`` is what was not asked for.

    ``g`` and ``g~`` below are the gradients of the two entropies with respect to the temperature-scaled logits.
    """

    log_probs: Tensor  # log p of the target
    entropy: Tensor  # H, nats
    clamped_entropy: Tensor | None = None  # H~, nats
    dropped_mass: Tensor | None = None  # probability outside the support
    kept: Tensor | None = None  # number of tokens in the support (sum of their weights)
    prob_sq: Tensor | None = None  # sum_a p_a^2
    full_grad_sq: Tensor | None = None  # ||g||^2,   g = -p (log p + H)
    clamped_grad_sq: Tensor | None = None  # ||g~||^2,  g~ = -w p~ (log p~ + H~)
    grad_dot: Tensor | None = None  # <g, g~>


def fused_entropy_head(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    *,
    support: Support | None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    diagnostics: bool = False,
    tile_bytes: int | None = None,
) -> HeadOutput:
    """Log-probability, entropy and clamped entropy of softmax(z), differentiable in hidden, weight and bias.

    Of ``Tsallis()`` the clamped entropy is (1 - sum p^2) / 2 over all tokens, g~ = -p (p - sum p^2).

    z = cap(logit_scale * (hidden weight^T + bias)) / temperature with cap(x) = softcap * tanh(x / softcap). The matrix
    products run in the autocast dtype if autocast is on, else in that of ``hidden``; everything after them in float32
    (float64 if they are float64), and gradients are summed in the same.

    A bias of ``-inf`` masks a token: probability 0. A row whose logits hold NaN or +inf, or nothing but masked tokens,
    gives NaN: no error is raised here, where one rank of many would stop alone. Check the outputs.

    Args:
        targets: token ids in [0, V).
        support: the rule of the clamped entropy; ``None`` leaves it out, ``Full()`` returns the entropy itself. A rule
            of one's own is asked for its weights again in the backward pass, so it must answer the same.
        diagnostics: also ``prob_sq`` to ``grad_dot``. Needs a support.
        tile_bytes: most bytes held in logits and in scratch space at a time, but at least one row. ``None`` is
            ``DEFAULT_TILE_BYTES`` of the device. Beyond it: the gradients (float32) and a copy of the weight if that is
            not in the dtype of the products.

    Raises:
        ValueError: a setting out of range, or shapes that do not fit.

    Reference: arXiv 2509.03493, H and H~ per token; the tiles follow trl.kernels.chunked_logprob.
    """
    _check(hidden, weight, targets, support, temperature, diagnostics, tile_bytes)
    whole = support is not None and _keeps_all(support, len(weight))
    settings = _Settings(
        support=None if whole else support,
        temperature=float(temperature),
        logit_scale=float(logit_scale),
        softcap=softcap,
        diagnostics=diagnostics,
        tile_bytes=tile_bytes or DEFAULT_TILE_BYTES.get(hidden.device.type, DEFAULT_TILE_BYTES["cuda"]),
        compute_dtype=_compute_dtype(hidden),
    )
    output = HeadOutput(*_FusedEntropyHead.apply(hidden, weight, bias, targets, settings))  # type: ignore[misc]
    if not whole:
        return output
    square, nothing = output.full_grad_sq, torch.zeros_like(output.entropy, requires_grad=False)
    return HeadOutput(
        *output[:2], output.entropy, nothing, nothing + len(weight), output.prob_sq, square, square, square
    )


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    support: Support | None,
    temperature: float,
    diagnostics: bool,
    tile_bytes: int | None,
) -> None:
    fits = hidden.ndim == 2 and weight.ndim == 2 and hidden.shape[1] == weight.shape[1]
    if not fits or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"expected hidden [N, D], weight [V, D], targets [N]; got {tuple(hidden.shape)}, {tuple(weight.shape)}, "
            f"{tuple(targets.shape)}: flatten batch and time, and keep only the tokens to score"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature!r}: expected a positive finite number, as used for sampling")
    if support is not None and (isinstance(support, type) or not isinstance(support, Support)):
        raise ValueError(f"support must be a rule such as Full() or DropLowest(0.33), or None, got {support!r}")
    if diagnostics and support is None:
        raise ValueError("diagnostics compare two entropies: pass a support, e.g. Full(), or diagnostics=False")
    if tile_bytes is not None and tile_bytes < 1:
        raise ValueError(f"tile_bytes={tile_bytes!r}: expected a positive number of bytes, e.g. {64 * 2**20}")


def _keeps_all(support: Support, vocabulary: int) -> bool:
    if type(support) in (Full, DropLowest, TopK):
        return support.kept(vocabulary) >= vocabulary  # type: ignore[attr-defined]
    return type(support) is Nucleus and support.mass == 1.0


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


# --------------------------------------------------------------------------------------------------- tiles and blocks


class _Settings(NamedTuple):
    support: Support | None
    temperature: float
    logit_scale: float
    softcap: float | None
    diagnostics: bool
    tile_bytes: int
    compute_dtype: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        """Of everything after the matrix product."""
        return torch.float64 if self.compute_dtype == torch.float64 else torch.float32

    @property
    def has_threshold(self) -> bool:
        """Whether two numbers a row say which tokens are kept."""
        return type(self.support) in (DropLowest, TopK, Nucleus)


class _Block(NamedTuple):
    rows: slice  # of the N tokens
    raw: Tensor  # (block, V) what the projection gave, in the compute dtype; the gradient is written here
    z: Tensor  # (block, V) scaled logits; shares memory with ``raw`` where the dtypes agree
    scratch: list[Tensor]  # (block, V) each


class _Tiles:
    """Walks over the logits in tiles and blocks; both passes do so alike, to get the same logits to the last bit."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings):
        self.hidden, self.settings = hidden, settings
        self.weight = weight.to(settings.compute_dtype)
        self.bias = None if bias is None else _finite_bias(bias, settings.compute_dtype)
        self.rows, self.block, self.buffers = _tile_shape(len(hidden), len(weight), settings, hidden.device.type)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Iterator[_Block]]]:
        vocabulary, settings, device = len(self.weight), self.settings, self.hidden.device
        tile = torch.empty(self.rows, vocabulary, dtype=settings.compute_dtype, device=device)
        scratch = torch.empty(self.buffers, self.block, vocabulary, dtype=settings.dtype, device=device)
        for start in range(0, len(self.hidden), self.rows):
            rows = slice(start, min(start + self.rows, len(self.hidden)))
            logits = tile[: rows.stop - rows.start]
            hidden = self.hidden[rows].to(settings.compute_dtype)
            if self.bias is None:
                torch.mm(hidden, self.weight.t(), out=logits)
            else:
                torch.addmm(self.bias, hidden, self.weight.t(), out=logits)
            yield rows, logits, self._blocks(start, logits, scratch)

    def _blocks(self, start: int, logits: Tensor, scratch: Tensor) -> Iterator[_Block]:
        for first in range(0, len(logits), self.block):
            raw = logits[first : first + self.block]
            buffers = [buffer[: len(raw)] for buffer in scratch]
            z = raw if raw.dtype == scratch.dtype else buffers.pop().copy_(raw)
            yield _Block(slice(start + first, start + first + len(raw)), raw, _scaled(z, self.settings), buffers)


def _tile_shape(tokens: int, vocabulary: int, settings: _Settings, device: str) -> tuple[int, int, int]:
    """(rows of a tile, rows of a block, number of scratch blocks): half the budget at most for work on a block."""
    size, stored = settings.dtype.itemsize, settings.compute_dtype.itemsize
    buffers = 2 + (settings.softcap is not None) + (settings.dtype != settings.compute_dtype)
    passing = 1 if settings.support is None or _partitions(settings, device) else 8  # what operations return
    scratch_row, tile_row = (buffers + passing) * vocabulary * size, vocabulary * stored
    budget = max(settings.tile_bytes, scratch_row + tile_row)
    wanted = _CACHE_BYTES if device == "cpu" else budget // 2  # of one buffer; a GPU is busy only with many rows
    block = max(1, min(wanted // (vocabulary * size), budget // 2 // scratch_row, tokens))
    return max(1, min((budget - block * scratch_row) // tile_row, tokens)), block, buffers


def _finite_bias(bias: Tensor, dtype: torch.dtype) -> Tensor:
    lowest = max(_MASKED, torch.finfo(dtype).min)
    return bias.to(dtype).masked_fill(bias == -math.inf, lowest)


def _scaled(z: Tensor, settings: _Settings) -> Tensor:
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


def _forward_block(block: _Block, targets: Tensor, settings: _Settings) -> dict[str, Tensor]:
    """Every statistic of a block, (block, 1) each; overwrites its logits and its scratch space."""
    z, first, second = block.z, *block.scratch[:2]
    target = z.gather(-1, targets[:, None])
    cut = None if settings.support is None else _cut(z, settings, first, second)
    whole = _softmax(z, second)
    valid = whole.peak.abs() < _NOT_A_LOGIT
    peak = whole.peak.where(valid, math.nan)
    log_prob = (target - peak - whole.log_total).where(target > -_NOT_A_LOGIT, -math.inf)
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


def _cut(z: Tensor, settings: _Settings, first: Tensor, second: Tensor) -> _Partition | _Weighted | _Collision:
    if type(settings.support) is Tsallis:
        return _Collision()
    if _partitions(settings, z.device.type):
        return _Partition.of(z, settings.support.kept(z.shape[-1]), first, second)  # type: ignore[union-attr]
    return _Weighted.of(z, settings, first)


def _partitions(settings: _Settings, device: str) -> bool:
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
    def of(cls, z: Tensor, settings: _Settings, first: Tensor) -> _Weighted:
        weight = settings.support.weights(z)  # type: ignore[union-attr]
        kept, threshold = weight.sum(-1, keepdim=True), torch.zeros_like(z[:, :1])
        share = threshold
        if settings.has_threshold:
            threshold = z.masked_fill(weight == 0, math.inf).amin(-1, keepdim=True)
            share = weight.masked_fill(z != threshold, 0).amax(-1, keepdim=True)
        log_weight = weight.log().clamp_min_(_MASKED)
        torch.add(z, log_weight, out=first)
        return cls(log_weight, kept, threshold, share)

    def statistics(
        self, whole: _Softmax, squares: _Squares | None, z: Tensor, first: Tensor, second: Tensor
    ) -> dict[str, Tensor]:
        part = _softmax(first, second)
        q = part.p.mul_(part.peak > -_NOT_A_LOGIT)  # a rule may keep only tokens of probability 0
        log_kept = (part.peak - whole.peak + part.log_total - whole.log_total).clamp(-math.inf, 0)
        entropy = ((part.entropy + _row_dot(q, self.log_weight)) * (part.peak > -_NOT_A_LOGIT)).clamp_min(0)
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


class _Gradients(NamedTuple):
    """Incoming gradients of a block, (block, 1) each; ``None`` where the loss does not use the output."""

    log_probs: Tensor | None
    entropy: Tensor | None
    clamped_entropy: Tensor | None


def _backward_block(
    block: _Block, targets: Tensor, rows: dict[str, Tensor], grads: _Gradients, settings: _Settings
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


def _own_rule_gradient(z: Tensor, settings: _Settings) -> Tensor:
    """-w p~ (log p~ + H~) for a rule that two numbers a row do not describe; -p (p - sum p^2) for Tsallis."""
    if type(settings.support) is Tsallis:
        p = torch.softmax(z, -1)
        return _row_dot(p, p).sub(p).mul_(p)
    log_weight = settings.support.weights(z).log().clamp_min_(_MASKED)  # type: ignore[union-attr]
    shifted = z + log_weight
    part = _softmax(shifted, torch.empty_like(z))
    q = part.p.mul_(part.peak > -_NOT_A_LOGIT)
    log_p = shifted.sub_(log_weight).sub_(part.log_total)
    return log_p.sub_(_row_dot(q, log_p)).mul_(q).neg_()


def _softcap_slope(z: Tensor, settings: _Settings, out: Tensor) -> Tensor:
    """1 - tanh^2, from the scaled logits softcap * tanh / temperature."""
    return torch.mul(z, settings.temperature / settings.softcap, out=out).square_().neg_().add_(1)  # type: ignore[operator]


# ------------------------------------------------------------------------------------------------------ autograd


_SAVED = ("peak", "total", "entropy", "threshold", "share", "log_kept", "clamped_entropy")


class _FusedEntropyHead(torch.autograd.Function):
    """Keeps seven numbers a row between the passes, never logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: _Settings
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        rows: dict[str, Tensor] = {}
        with torch.autocast(hidden.device.type, enabled=False):
            for _, _, blocks in _Tiles(hidden, weight, bias, settings):
                for block in blocks:
                    for name, value in _forward_block(block, targets[block.rows], settings).items():
                        whole = rows.setdefault(name, value.new_empty(len(hidden)))
                        whole[block.rows] = value[:, 0]
        rows = rows or _no_rows(hidden, settings)
        ctx.saved = [name for name in _SAVED if name in rows]
        ctx.save_for_backward(hidden, weight, bias, targets, *(rows[name] for name in ctx.saved))
        outputs = [rows.get(name) for name in HeadOutput._fields]
        ctx.mark_non_differentiable(*(value for value in outputs[3:] if value is not None))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, *saved = ctx.saved_tensors
        settings, scale = ctx.settings, ctx.settings.logit_scale / ctx.settings.temperature
        rows = dict(zip(ctx.saved, saved, strict=True))
        incoming = [None if grad is None else grad.to(settings.dtype) * scale for grad in grads[:3]]
        with torch.autocast(hidden.device.type, enabled=False), maybe_gather_lm_head_ctx(weight, bias):
            sums = _GradientSums(hidden, weight, bias, ctx.needs_input_grad, settings.dtype)
            tiles = _Tiles(hidden, weight, bias, settings)
            for tile, logits, blocks in tiles:
                for block in blocks:
                    here = {name: value[block.rows, None] for name, value in rows.items()}
                    given = _Gradients(*(None if grad is None else grad[block.rows, None] for grad in incoming))
                    _backward_block(block, targets[block.rows], here, given, settings)
                sums.add(tile, logits, tiles.weight)
        return *sums.results(), None, None


def _no_rows(hidden: Tensor, settings: _Settings) -> dict[str, Tensor]:
    """What a batch without a token to score gives."""
    names = HeadOutput._fields if settings.diagnostics else HeadOutput._fields[:5]
    wanted = names if settings.support is not None else [name for name in names if name not in _OF_A_CUT]
    return {name: hidden.new_empty(0, dtype=settings.dtype) for name in (*wanted, *_SAVED)}


_OF_A_CUT = ("clamped_entropy", "dropped_mass", "kept", "clamped_grad_sq", "grad_dot")


class _GradientSums:
    """Gradients of hidden, weight and bias, in float32 or better: sums of rounded products drift (TRL saw it)."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...], dtype: torch.dtype
    ):
        self.inputs = hidden, weight, bias
        self.sums = [
            torch.zeros(like.shape, dtype=dtype, device=like.device) if need and like is not None else None
            for like, need in zip(self.inputs, needed[:3], strict=True)
        ]

    def add(self, rows: slice, gradient: Tensor, weight: Tensor) -> None:
        """Add a tile: ``gradient`` (rows, V) at the projection, ``weight`` (V, D) as it was multiplied."""
        of_hidden, of_weight, of_bias = self.sums
        hidden = self.inputs[0][rows].to(gradient.dtype)
        for some in _pieces(len(weight), gradient):
            if of_hidden is not None:
                _add_product(of_hidden[rows], gradient[:, some], weight[some])
            if of_weight is not None:
                _add_product(of_weight[some], gradient[:, some].t(), hidden)
            if of_bias is not None:
                of_bias[some] += gradient[:, some].sum(0, dtype=of_bias.dtype)

    def results(self) -> list[Tensor | None]:
        pairs = zip(self.sums, self.inputs, strict=True)
        return [None if total is None or like is None else total.to(like.dtype) for total, like in pairs]


def _pieces(vocabulary: int, gradient: Tensor) -> Iterator[slice]:
    """Of the vocabulary: the CPU must widen short floats before the product, and a whole tile would need a second."""
    widens = gradient.device.type == "cpu" and gradient.dtype.itemsize < 4
    step = _WIDENED if widens else vocabulary
    return (slice(start, start + step) for start in range(0, vocabulary, step))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b without rounding the product to a dtype shorter than that of ``total``."""
    if a.device.type == "cuda" and a.dtype.itemsize < 4:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
