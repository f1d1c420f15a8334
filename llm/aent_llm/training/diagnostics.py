"""What one optimiser step says about the entropy, from sums over its completion tokens, and when to warn about it.

``token_sums`` reduces the fused head's per-token numbers of one micro-batch to one vector; vectors add up over
micro-batches and ranks, so that every metric is a mean over the tokens of the whole global batch. ``metrics`` turns the
sum into the logged numbers; their glossary is ``docs/metrics.md``.

Shape legend: ``B`` completions, ``T`` completion tokens (padded). Entropies in nats per token at the sampling
temperature; gradients are those at the logits divided by the temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from aent.controllers import Controller, Switch
from aent.entropy import Full, Support
from aent.fields import is_finite_number

__all__ = ["SUMS", "Alarms", "metrics", "token_sums"]

# Entries of the vector of sums, in this order.
SUMS = (
    "tokens", "full", "clamped", "dropped_mass", "kept", "logprob", "correct", "correct_tokens",
    "full_sq", "clamped_sq", "dot",
)  # fmt: skip


def token_sums(
    head: dict[str, torch.Tensor | None], mask: torch.Tensor, correct: torch.Tensor | None = None
) -> torch.Tensor:
    """Sums over the tokens that ``mask`` (B, T) counts, as a float64 vector in the order of ``SUMS``; no gradient.

    ``head`` holds the fused head's outputs, each (B, T); those it did not compute are None and count as NaN.
    ``correct`` (B,) says which completions earned the reward.
    """
    weight = mask.detach().double()

    def total(name: str, within: torch.Tensor = weight) -> torch.Tensor:
        value = head.get(name)
        if value is None:
            return weight.new_tensor(math.nan)
        return (value.detach().double() * within).sum()

    right = weight * (0.0 if correct is None else correct[:, None].double())
    return torch.stack(
        [
            weight.sum(), total("entropy"), total("clamped_entropy"), total("dropped_mass"), total("kept"),
            total("log_probs"), total("entropy", right), right.sum(),
            total("full_grad_sq"), total("clamped_grad_sq"), total("grad_dot"),
        ]
    )  # fmt: skip


def metrics(sums: list[float], *, coefficient: float, policy_sq: float, bounds: tuple[float, float] | None) -> dict:
    """The logged numbers of one optimiser step from its global sums.

    Args:
        sums: totals in the order of ``SUMS``, over all micro-batches and ranks.
        coefficient: the bonus' coefficient in this step.
        policy_sq: squared norm of the policy loss' gradient at the logits, over all tokens; NaN when not measured.
        bounds: the band of the controller in nats, None if it has none.
    """
    s = dict(zip(SUMS, sums, strict=True))
    tokens = max(s["tokens"], 1.0)
    full, clamped = s["full"] / tokens, s["clamped"] / tokens
    wrong_tokens = s["tokens"] - s["correct_tokens"]
    norms = math.sqrt(s["full_sq"] * s["clamped_sq"]) if s["full_sq"] >= 0 and s["clamped_sq"] >= 0 else math.nan
    bonus = abs(coefficient) * math.sqrt(s["clamped_sq"]) / tokens if s["clamped_sq"] >= 0 else math.nan
    found = {
        "entropy/full": full,
        "entropy/clamped": clamped,
        "entropy/clamp_gap": full - clamped,
        "entropy/dropped_mass": s["dropped_mass"] / tokens,
        "entropy/kept": s["kept"] / tokens,
        "entropy/sampled": -s["logprob"] / tokens,
        "entropy/correct": s["correct"] / s["correct_tokens"] if s["correct_tokens"] else math.nan,
        "entropy/incorrect": (s["full"] - s["correct"]) / wrong_tokens if wrong_tokens else math.nan,
        "entropy/grad_cosine": s["dot"] / norms if norms else math.nan,
        "entropy/bonus_grad_share": bonus / math.sqrt(policy_sq) if policy_sq > 0 else math.nan,
        "entropy/coef": coefficient,
    }
    if bounds is not None:
        found["entropy/in_band"] = float(bounds[0] <= clamped <= bounds[1])
    return {key: value for key, value in found.items() if not math.isnan(value)}


def band(controller: Controller, step: int = 0) -> tuple[float, float] | None:
    """The band [low, high] a controller aims at in update ``step``; a target has no width; None for open-loop rules."""
    if isinstance(controller, Switch):  # its band moves
        low, high = controller.band(step)
        return float(low), float(high)
    target = getattr(controller, "target", None)
    ends = [getattr(controller, name, target) for name in ("low", "high")]
    return tuple(map(float, ends)) if all(map(is_finite_number, ends)) else None  # type: ignore[return-value]


@dataclass
class Alarms:
    """Warnings with advice, each given once a run. The thresholds are our own choices, not a paper's."""

    controller: Controller
    support: Support
    first_full: float | None = None  # entropy of the first measured step
    at_end: int = 0  # steps in a row with the coefficient at an end of its box
    no_effect: int = 0  # steps in a row in which the clamp changed nothing
    given: list[str] = field(default_factory=list)

    COLLAPSE, EXPLOSION, PATIENCE, SAME = 0.05, 3.0, 20, 0.9999

    def check(self, found: dict[str, float]) -> list[str]:
        """New warnings after a step with these metrics."""
        full, clamped, coefficient = (found[f"entropy/{name}"] for name in ("full", "clamped", "coef"))
        self.first_full = full if self.first_full is None else self.first_full
        self.at_end = self.at_end + 1 if self._stuck(coefficient, clamped) else 0
        cosine = found.get("entropy/grad_cosine", 0.0)
        self.no_effect = self.no_effect + 1 if cosine > self.SAME and self.support != Full() else 0
        possible = {
            "collapse": full < self.COLLAPSE * self.first_full
            and f"entropy collapsed: {full:.3g} nats, {self.first_full:.3g} at the start. Groups will stop differing "
            "and the policy gradient vanish; raise the coefficient or the controller's band",
            "explosion": full > max(self.EXPLOSION * self.first_full, self.first_full + 1)
            and f"entropy explodes: {full:.3g} nats, {self.first_full:.3g} at the start, "
            f"{found.get('entropy/dropped_mass', 0):.2g} of the probability outside the support. "
            "Lower the coefficient, or clamp more (a larger share, a smaller k)",
            "box": self.at_end >= self.PATIENCE
            and f"the coefficient has been at the end {coefficient:g} of its box for {self.at_end} steps while the "
            f"entropy is {clamped:.3g} nats: the band is out of reach. Widen the box or move the band",
            "reach": (bounds := band(self.controller)) is not None
            and bounds[0] > math.log(max(found.get("entropy/kept", math.inf), 1.0))
            and f"the band starts at {bounds[0]:.3g} nats, above log(kept tokens) = "
            f"{math.log(max(found['entropy/kept'], 1.0)):.3g}: no policy can reach it. Lower the band or keep more",
            "clamp": self.no_effect >= self.PATIENCE
            and f"the clamp has had no effect for {self.no_effect} steps: the gradients of the clamped and the full "
            f"bonus have cosine > {self.SAME}. Drop more (see `python -m aent_llm calibrate`), or use full entropy",
        }
        new = {name: str(text) for name, text in possible.items() if text and name not in self.given}
        self.given += new
        return list(new.values())

    def _stuck(self, coefficient: float, clamped: float) -> bool:
        """Whether the coefficient is at the end of its box at which it cannot do what the band asks for."""
        low, high = band(self.controller) or (math.inf, -math.inf)  # without a band either end counts
        ends = [getattr(self.controller, name, None) for name in ("minimum", "maximum")]
        return coefficient != 0 and (
            (coefficient == ends[0] and clamped > high) or (coefficient == ends[1] and clamped < low)
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("first_full", "at_end", "no_effect", "given")}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``."""
        for name, value in state.items():
            setattr(self, name, value)
