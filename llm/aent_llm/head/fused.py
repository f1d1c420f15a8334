"""Fused LM head: log-probability, entropy and clamped entropy of every token, without the logits of all of them.

Logits are made for one tile at a time, turned into a handful of numbers per row, and made again in the backward pass,
where the tile is overwritten by its own gradient. What the entropies *are* is defined by ``aent.entropy``; this is that
definition at speed and is tested for equality with it. The index-free form of every threshold rule,
w = (z > threshold) + (z == threshold) * share, is what lets the backward pass know the kept set from two numbers a row.

Two engines do it: Triton kernels on a GPU (``triton_engine.py``), and torch operations (``torch_engine.py``), which run
anywhere and are the reference. Left out on purpose: gradients of gradients.

Shape legend: N scored tokens, D hidden size, V vocabulary. z are the scaled logits; entropies in nats.
"""

from __future__ import annotations

import functools
import logging
import math
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from trl.trainer.utils import maybe_gather_lm_head_ctx

from aent.entropy import DropLowest, Full, Nucleus, Support, TopK
from aent_llm.head import torch_engine, triton_engine
from aent_llm.head.common import SAVED, Gradients, GradientSums, Head, Settings

__all__ = ["DEFAULT_TILE_BYTES", "Engine", "HeadOutput", "fused_entropy_head"]

DEFAULT_TILE_BYTES = {"cpu": 64 * 2**20, "cuda": 1024 * 2**20}  # others as cuda
Engine = Literal["auto", "triton", "torch"]
_LOG = logging.getLogger(__name__)


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
    engine: Engine = "auto",
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
        engine: "auto" takes the Triton kernels on a CUDA device if they know the rule and the dtype, else torch; which
            and why is logged once (a warning if a GPU gets torch). Under "triton" and "torch" there is no choice.

    Raises:
        ValueError: a setting out of range, shapes that do not fit, or an engine that cannot do what was asked.

    Examples:
        >>> weight = torch.log(torch.tensor([[0.4], [0.4], [0.2]]))  # a head of 3 tokens on a hidden size of 1
        >>> out = fused_entropy_head(torch.ones(1, 1), weight, None, torch.tensor([2]), support=TopK(2))
        >>> round(out.log_probs.item(), 4), round(out.clamped_entropy.item(), 4)  # log 0.2; two equal tokens: log 2
        (-1.6094, 0.6931)

    Reference: arXiv 2509.03493, H and H~ per token; the tiles follow trl.kernels.chunked_logprob.
    """
    _check(hidden, weight, targets, support, temperature, diagnostics, tile_bytes)
    whole = support is not None and _keeps_all(support, len(weight))
    settings = Settings(
        support=None if whole else support,
        temperature=float(temperature),
        logit_scale=float(logit_scale),
        softcap=softcap,
        diagnostics=diagnostics,
        tile_bytes=tile_bytes or DEFAULT_TILE_BYTES.get(hidden.device.type, DEFAULT_TILE_BYTES["cuda"]),
        compute_dtype=_compute_dtype(hidden),
    )
    chosen = _chosen(engine, hidden.device, len(weight), settings)
    output = HeadOutput(*_FusedEntropyHead.apply(hidden, weight, bias, targets, settings, chosen))  # type: ignore[misc]
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


# ------------------------------------------------------------------------------------------------------ the engines


def _chosen(engine: Engine, device: torch.device, vocabulary: int, settings: Settings) -> ModuleType:
    if engine not in get_args(Engine):
        raise ValueError(f"engine={engine!r}: expected one of {', '.join(get_args(Engine))}")
    if engine == "torch":
        return torch_engine
    if engine == "auto" and device.type == "cpu":
        _announce("torch", "the device is a CPU")
        return torch_engine
    obstacle = triton_engine.why_not(device, settings, vocabulary)
    if obstacle is None:
        _announce("Triton kernels", f"{settings.compute_dtype} on {device.type}")
        return triton_engine
    if engine == "triton":
        raise ValueError(f"engine='triton': {obstacle}; engine='auto' would take torch")
    _announce("torch", obstacle, slower=True)
    return torch_engine


@functools.cache
def _announce(engine: str, why: str, slower: bool = False) -> None:
    """Once per process and reason."""
    if slower:
        _LOG.warning("The fused entropy head falls back to %s, which is slower: %s.", engine, why)
    else:
        _LOG.info("The fused entropy head runs on %s: %s.", engine, why)


# ------------------------------------------------------------------------------------------------------ autograd


class _FusedEntropyHead(torch.autograd.Function):
    """Keeps seven numbers a row between the passes, never logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: Settings,
        engine: ModuleType,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.settings, ctx.engine = settings, engine
        with torch.autocast(hidden.device.type, enabled=False):
            if len(hidden):
                rows = engine.forward(Head(hidden, weight, bias, settings), targets, settings)
            else:
                rows = _no_rows(hidden, settings)
        ctx.saved = [name for name in SAVED if name in rows]
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
        given = Gradients(*(None if grad is None else grad.to(settings.dtype) * scale for grad in grads[:3]))
        with torch.autocast(hidden.device.type, enabled=False), maybe_gather_lm_head_ctx(weight, bias):
            sums = GradientSums(hidden, weight, bias, ctx.needs_input_grad, settings.dtype)
            if len(hidden):
                ctx.engine.backward(Head(hidden, weight, bias, settings), targets, rows, given, settings, sums)
        return *sums.results(), None, None, None


def _no_rows(hidden: Tensor, settings: Settings) -> dict[str, Tensor]:
    """What a batch without a token to score gives."""
    names = HeadOutput._fields if settings.diagnostics else HeadOutput._fields[:5]
    wanted = names if settings.support is not None else [name for name in names if name not in _OF_A_CUT]
    return {name: hidden.new_empty(0, dtype=settings.dtype) for name in (*wanted, *SAVED)}


_OF_A_CUT = ("clamped_entropy", "dropped_mass", "kept", "clamped_grad_sq", "grad_dot")
