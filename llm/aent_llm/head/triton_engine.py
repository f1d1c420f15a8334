"""The fused head on Triton kernels: matrix products by cuBLAS, everything else by ``kernels.py`` on a tile.

The forward pass makes whole rows, because a cut needs them; the backward pass knows the cut and makes a piece of the
vocabulary at a time: small tiles of many rows, since every tile is added to the float32 gradient of the weight. Both
multiply the same pieces: a product of another shape could round a logit to the other side of the cut.

Left out: float64, rules of one's own, Tsallis' entropy (``torch_engine.py`` has them).

Shape legend: N scored tokens, R rows of a tile, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from aent_llm.head.common import NOT_A_LOGIT, Gradients, GradientSums, Head, Settings, slices

__all__ = ["backward", "forward", "why_not"]

_INSTALLED = find_spec("triton") is not None  # kernels.py is imported where it is used, since it needs Triton
_PIECE = 32_768  # tokens of the vocabulary that are multiplied at a time
_ALIGNED = 64  # numbers: rows of a tile start at a multiple, so that threads read 16 bytes at a time
_EXACT = 2**24  # tokens that float32 can count


def why_not(device: torch.device, settings: Settings, vocabulary: int) -> str | None:
    """What keeps this engine from doing it, ``None`` if nothing does."""
    dtype, support = settings.compute_dtype, settings.support
    if not _INSTALLED:
        return "Triton is not installed"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels know float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if support is not None and not settings.has_threshold:
        return f"the kernels know DropLowest, TopK and Nucleus, not {type(support).__name__}"
    if not settings.logit_scale > 0:
        return f"a logit scale of {settings.logit_scale} does not keep the order of the logits"
    if vocabulary >= _EXACT:
        return f"the kernels count tokens in float32: fewer than {_EXACT:,}, not {vocabulary:,}"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return None if capability >= (8, 0) else f"the kernels need compute capability 8.0, this GPU has {capability}"
    if device.type == "cpu" and _interpreted():
        return None
    return f"the kernels run on CUDA devices, not on {device.type!r} (on a CPU only with TRITON_INTERPRET=1)"


def _interpreted() -> bool:
    from triton import knobs

    return knobs.runtime.interpret


def forward(head: Head, targets: Tensor, settings: Settings) -> dict[str, Tensor]:
    """Every statistic of the head, (N,) each."""
    from aent_llm.head.kernels import ROW_SUMS, row_sums

    sums = targets.new_zeros((len(ROW_SUMS), len(targets)), dtype=settings.dtype)
    tile = _buffer(head, settings, _up(len(head.weight), _ALIGNED))
    for rows in _tiles(head, settings):
        logits = tile[: rows.stop - rows.start, : len(head.weight)]
        for columns in _pieces(head):
            head.project(rows, columns, logits[:, columns])
        row_sums(
            logits,
            targets[rows],
            sums[:, rows],
            settings,
        )
    return _statistics(dict(zip(ROW_SUMS, sums, strict=True)), settings)


def _statistics(sums: dict[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    peak = sums["peak"].where(sums["peak"].abs() < NOT_A_LOGIT, math.nan)
    log_total, nothing = sums["total"].log(), 0 * peak  # NaN in a row that is not one of logits
    log_probs = (sums["target"] - log_total).where(sums["target"] + peak > -NOT_A_LOGIT, -math.inf)
    rows = {"log_probs": log_probs + nothing, "entropy": (log_total - sums["mean"]).clamp_min(0) + nothing}
    rows |= {"peak": peak, "total": log_total}
    if settings.support is not None:
        dropped = sums["dropped_total"] / sums["total"]
        by_kept = (sums["kept_total"] / sums["total"]).log()
        clamped = (sums["kept_total"].log() - sums["kept_mean"]).clamp_min(0) + nothing
        rows |= {"clamped_entropy": clamped, "dropped_mass": dropped, "kept": sums["kept"]}
        rows |= {"threshold": sums["threshold"], "share": sums["share"]}
        rows |= {"log_kept": torch.log1p(-dropped).where(dropped < 0.5, by_kept)}
    if settings.diagnostics:
        rows |= {"prob_sq": sums["prob_sq"], "full_grad_sq": sums["full_grad_sq"]}
        if settings.support is not None:
            rows |= {"clamped_grad_sq": sums["clamped_grad_sq"], "grad_dot": sums["grad_dot"]}
    return rows


def backward(
    head: Head, targets: Tensor, rows: dict[str, Tensor], grads: Gradients, settings: Settings, sums: GradientSums
) -> None:
    """Add the gradients of all tiles to ``sums``; ``rows`` holds what ``SAVED`` names of the forward pass."""
    from aent_llm.head.kernels import gradient_tile_

    coefficients = _coefficients(rows, grads)
    piece = _buffer(head, settings, min(_PIECE, _up(len(head.weight), _ALIGNED)))
    for tile in _tiles(head, settings):
        for columns in _pieces(head):
            logits = piece[: tile.stop - tile.start, : columns.stop - columns.start]
            head.project(tile, columns, logits)
            gradient_tile_(logits, targets[tile], coefficients[tile], columns.start, settings)
            sums.add(head, tile, columns, logits)


def _coefficients(rows: dict[str, Tensor], grads: Gradients) -> Tensor:
    """(N, 8), as ``kernels.gradient_tile_`` takes them.

    dz = gl (1[target] - p) - ge p (log p + H) - gc w p~ (log p~ + H~), with p~ = p / kept mass.
    """
    nothing = torch.zeros_like(rows["peak"])
    of_log_prob, of_entropy, of_clamped = (nothing if grad is None else grad for grad in grads)
    threshold, share, shift, factor = nothing, nothing, nothing, nothing
    if grads.clamped_entropy is not None:
        threshold, share = rows["threshold"], rows["share"]
        factor = of_clamped * (-rows["log_kept"]).exp()
        shift = rows["clamped_entropy"] - rows["log_kept"]
    columns = (
        rows["peak"] + rows["total"],
        -of_log_prob - of_entropy * rows["entropy"],
        -of_entropy,
        -factor * shift,
        -factor,
        threshold,
        share,
        of_log_prob,
    )
    return torch.stack(columns, dim=1)


def _tile_rows(head: Head, settings: Settings) -> int:
    """As many as the budget has room for; whole blocks of a matrix product if it can be."""
    rows = settings.tile_bytes // (_up(len(head.weight), _ALIGNED) * settings.compute_dtype.itemsize)
    return max(1, min(rows if rows < 128 else rows // 128 * 128, len(head.hidden)))


def _buffer(head: Head, settings: Settings, width: int) -> Tensor:
    return head.hidden.new_empty((_tile_rows(head, settings), width), dtype=settings.compute_dtype)


def _tiles(head: Head, settings: Settings) -> Iterator[slice]:
    return slices(len(head.hidden), _tile_rows(head, settings))


def _pieces(head: Head) -> Iterator[slice]:
    return slices(len(head.weight), _PIECE)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
