"""What both engines of the fused head work with: settings, a finite bias, matrix products, gradients summed without
rounding them.

Shape legend: N scored tokens, D hidden size, V vocabulary, ``rows`` and ``columns`` of a tile of logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aent.entropy import DropLowest, Nucleus, Support, TopK

__all__ = [
    "MASKED", "NOT_A_LOGIT", "SAVED", "GradientSums", "Gradients", "Head", "Settings", "add_product", "logit_transform",
    "slices",
]  # fmt: skip

MASKED = -1e20  # in place of a bias of -inf: the probability is exactly 0, and 0 * log 0 stays 0
NOT_A_LOGIT = 1e12  # in absolute value: masked, or beyond working with
SAVED = ("peak", "total", "entropy", "threshold", "share", "log_kept", "clamped_entropy")  # between the passes, per row
_WIDENED = 8192  # tokens of a short-float gradient that the CPU turns to float32 at a time


class Settings(NamedTuple):
    """How a head turns its projection into logits, and what is asked of them."""

    support: Support | None
    temperature: float = 1.0
    logit_scale: float = 1.0
    softcap: float | None = None
    diagnostics: bool = False
    tile_bytes: int = 2**26
    compute_dtype: torch.dtype = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """Of everything after the matrix product."""
        return torch.float64 if self.compute_dtype == torch.float64 else torch.float32

    @property
    def has_threshold(self) -> bool:
        """Whether two numbers a row say which tokens are kept."""
        return type(self.support) in (DropLowest, TopK, Nucleus)


def logit_transform(config: Any) -> tuple[float, float | None]:
    """Return what an architecture does to its projection: the factor, then the soft cap (None if it has none).

    logits = cap(factor * projection) with cap(x) = softcap * tanh(x / softcap). The names and their order are those of
    TRL's head, which scores the reference model.
    """
    text = config.get_text_config()
    return _logit_factor(text), getattr(text, "final_logit_softcapping", None)


def _logit_factor(config: Any) -> float:
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return scaling if config.model_type == "hyperclovax" else 1 / scaling


class Gradients(NamedTuple):
    """Of the loss at the outputs, per row, times logit_scale / temperature; ``None`` where it does not use one."""

    log_probs: Tensor | None
    entropy: Tensor | None
    clamped_entropy: Tensor | None


class Head:
    """Hidden states, weight and bias in the dtype of the products."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings):
        self.hidden, self.dtype = hidden, settings.compute_dtype
        self.weight = weight.to(self.dtype)
        self.bias = None if bias is None else _finite_bias(bias, self.dtype)

    def project(self, rows: slice, columns: slice, out: Tensor) -> Tensor:
        """Fill ``out`` with what the projection gives for those rows and tokens."""
        hidden, weight = self.hidden[rows].to(self.dtype), self.weight[columns].t()
        if self.bias is None:
            return torch.mm(hidden, weight, out=out)
        return torch.addmm(self.bias[columns], hidden, weight, out=out)


def _finite_bias(bias: Tensor, dtype: torch.dtype) -> Tensor:
    lowest = max(MASKED, torch.finfo(dtype).min)
    return bias.to(dtype).masked_fill(bias == -math.inf, lowest)


class GradientSums:
    """Gradients of hidden, weight and bias, in float32 or better: sums of rounded products drift (TRL saw it)."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...], dtype: torch.dtype
    ):
        self.inputs = hidden, weight, bias
        self.sums = [
            torch.zeros(like.shape, dtype=dtype, device=like.device) if need and like is not None else None
            for like, need in zip(self.inputs, needed[:3], strict=True)
        ]

    def add(self, head: Head, rows: slice, columns: slice, gradient: Tensor) -> None:
        """Add a tile: ``gradient`` (rows, columns) at the projection."""
        of_hidden, of_weight, of_bias = self.sums
        hidden = head.hidden[rows].to(gradient.dtype)
        for some in _pieces(columns, gradient):
            part = gradient[:, some.start - columns.start : some.stop - columns.start]
            if of_hidden is not None:
                add_product(of_hidden[rows], part, head.weight[some])
            if of_weight is not None:
                add_product(of_weight[some], part.t(), hidden)
            if of_bias is not None:
                of_bias[some] += part.sum(0, dtype=of_bias.dtype)

    def results(self) -> list[Tensor | None]:
        pairs = zip(self.sums, self.inputs, strict=True)
        return [None if total is None or like is None else total.to(like.dtype) for total, like in pairs]


def _pieces(columns: slice, gradient: Tensor) -> Iterator[slice]:
    """The CPU must widen short floats before the product, and a whole tile would need a second."""
    widens = gradient.device.type == "cpu" and gradient.dtype.itemsize < 4
    return slices(columns.stop, _WIDENED if widens else columns.stop - columns.start, first=columns.start)


def slices(stop: int, step: int, first: int = 0) -> Iterator[slice]:
    """From ``first`` to ``stop``, the last one shorter."""
    return (slice(start, min(start + step, stop)) for start in range(first, stop, step))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b without rounding the product to a dtype shorter than that of ``total``."""
    if a.device.type == "cuda" and a.dtype.itemsize < 4:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
