"""NaN and infinity in weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["NonFiniteError", "are_finite"]


class NonFiniteError(FloatingPointError):
    """NaN or infinity in loss, gradient or weights; says whether the weights were changed by it."""


def are_finite(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Whether all weights that this process holds are finite; of sharded ones only its own part is looked at."""
    ends = []
    for weight in parameters:
        mine: Any = weight.detach()
        mine = mine.to_local() if hasattr(mine, "to_local") else mine
        if mine.numel():
            ends.append(torch.stack([*torch.aminmax(mine)]).float())  # NaN and infinity show in either
    return not ends or bool(torch.isfinite(torch.cat(ends).sum()))
