"""What a clamp changes on sampled tokens: entropies, masses and bonus gradients at the logits, per support rule.

The logits of a model are rebuilt from one forward pass, a tile of rows at a time, and reduced at once to a few sums:
``[tokens, V]`` is never held. Means are over tokens, intervals over prompts, whose tokens are not independent.

Left out: gradients through the model (the logits' own are compared), models split over devices.

Shapes: n tokens, V vocabulary, P prompts, S support rules, K sums. Entropies in nats per completion token at the
sampling temperature; gradients are with respect to logits / temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from aent.entropy import Support, entropy, entropy_gradient, support_weights
from aent.stats import Estimate, percentile_interval, resample
from aent_llm.head.common import logit_transform

__all__ = ["Measured", "Rollout", "RuleMeasure", "measure", "measure_rollouts"]

QUARTERS = 4  # of a completion, for entropy against position
BATCH = 8  # completions per forward pass


class Rollout(NamedTuple):
    """One completion: which prompt it answers, the tokens of both, and whether it is right (None: not known)."""

    prompt: int
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    correct: bool | None = None


@dataclass(frozen=True)
class RuleMeasure:
    """One support rule on the sampled tokens.

    ``turn`` is 1 - cosine between full and clamped bonus gradient of all tokens jointly, 1 - <g, g~> / (|g| |g~|);
    ``push`` is the share of sum_a |g_a| on dropped tokens: of what the full bonus moves, how much it spends there.
    ``norm_share`` is the same for the Euclidean norm, which a tail of 100,000 small entries hardly moves.
    """

    rule: Support
    entropy: Estimate
    gap: Estimate  # mean |full - clamped|, nats
    dropped_mass: Estimate
    kept: Estimate  # tokens
    norm: Estimate  # root mean square of |g~|
    turn: Estimate
    push: Estimate
    norm_share: Estimate
    sampled_kept: Estimate
    correct_kept: Estimate  # of the tokens in correct completions; NaN where there are none


@dataclass(frozen=True)
class Measured:
    """Everything measured on a set of completions."""

    rules: tuple[RuleMeasure, ...]
    quarters: tuple[float, ...]  # full entropy over the first ... last quarter of the completions
    policy_norm: float  # root mean square of |e_y - p|: policy gradient at the logits, advantages of unit variance
    length: float  # tokens per completion
    prompts: int
    completions: int
    tokens: int
    correct_tokens: int


# --------------------------------------------------------------------------------------------------------- per token


@dataclass(frozen=True, eq=False)
class _Given:
    """A support whose weights are known: one selection serves entropy and gradient."""

    values: Any

    def weights(self, logits: Any) -> Any:
        return self.values


_SUMS = (
    "tokens", "correct", "full", "policy2", "full2", "full1", "entropy", "gap", "dropped", "kept", "own2",
    "difference2", "push1", "push2", "sampled", "correct_sampled",
)  # fmt: skip


def measure(logits: torch.Tensor, sampled: torch.Tensor, correct: torch.Tensor, rules: Sequence[Support]) -> np.ndarray:
    """Per rule and token, the quantities that are added up (``_SUMS``).

    With p = softmax(logits), y the sampled token, w the weights of a rule, g and g~ the gradients of full and clamped
    entropy: policy2 = |e_y - p|^2 = 1 - 2 p_y + sum_a p_a^2, the squared policy gradient for an advantage of 1;
    full2 = |g|^2, full1 = sum_a |g_a|, own2 = |g~|^2, difference2 = |g - g~|^2, push1 = sum_a (1 - w_a) |g_a|,
    push2 = |(1 - w) g|^2, sampled = w_y.

    Args:
        logits: (n, V) float32 or float64, already divided by the temperature.
        sampled: (n,) token ids.
        correct: (n,) 1 where the completion is right, else 0.
        rules: S support rules.

    Returns:
        (S, n, 16) float64, entropies in nats.
    """

    def total(values: torch.Tensor) -> torch.Tensor:
        return values.sum(-1, dtype=torch.float64)

    def at_sampled(values: torch.Tensor) -> torch.Tensor:
        return values.gather(-1, sampled[:, None])[:, 0].double()

    p, full, g = logits.softmax(-1), entropy(logits).double(), entropy_gradient(logits)
    size, correct = g.abs(), correct.double()
    policy2 = 1 - 2 * at_sampled(p) + total(p * p)
    shared = [torch.ones_like(full), correct, full, policy2, total(g * g), total(size)]
    measured = []
    for rule in rules:
        w = support_weights(logits, rule)
        clamped, own = entropy(logits, support=_Given(w)).double(), entropy_gradient(logits, support=_Given(w))
        out, w_y = 1 - w, at_sampled(w)
        mine = [
            clamped, (full - clamped).abs(), total(out * p), total(w), total(own * own), total((g - own) ** 2),
            total(out * size), total((out * g) ** 2), w_y, correct * w_y,
        ]  # fmt: skip
        measured.append(torch.stack([*shared, *mine], -1))
    return torch.stack(measured).cpu().numpy()


# ------------------------------------------------------------------------------------------------------ per rollout


def measure_rollouts(
    model: Any,
    rollouts: Sequence[Rollout],
    rules: Sequence[Support],
    *,
    temperature: float = 1.0,
    tokens: int = 8192,
    tile_bytes: int = 2**27,
    seed: int = 0,
    progress: bool = False,
) -> Measured:
    """Compare ``rules`` on completions that were drawn from ``model`` at ``temperature``.

    Args:
        model: a transformers causal language model, left as found.
        rollouts: its completions; empty ones are passed over.
        rules: support rules, compared with the full support.
        temperature: of the sampling; logits are divided by it.
        tokens: measured at most, drawn at random from all completions.
        tile_bytes: of one [rows, V] float32 tile; about ten temporaries of this size live at a time.
        seed: of that draw and of the bootstrap.
        progress: show a bar.

    Raises:
        ValueError: no completion token; a model whose logits cannot be rebuilt from its hidden states.
    """
    rollouts = [one for one in rollouts if len(one.token_ids)]
    if not rollouts:
        raise ValueError("calibrate: no completion token to measure; were all completions empty?")
    chosen = _choose(rollouts, tokens, seed)
    rows = max(1, tile_bytes // (4 * model.get_output_embeddings().weight.shape[0]))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            _check_head(model, rollouts[0])
            parts = list(
                _measured(model, rollouts, rules, temperature=temperature, chosen=chosen, rows=rows, progress=progress)
            )
    finally:
        model.train(training)
    prompt, quarter = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    values = np.concatenate([part[2] for part in parts], axis=1)
    return _reduced(rollouts, rules, prompt, quarter, values, seed)


def _reduced(
    rollouts: Sequence[Rollout],
    rules: Sequence[Support],
    prompt: np.ndarray,
    quarter: np.ndarray,
    values: np.ndarray,
    seed: int,
) -> Measured:
    """From (S, n, K) values per token to statistics."""
    sums = _sums_by_prompt(prompt, values)
    total = dict(zip(_SUMS, sums[0].sum(0), strict=True))
    full = values[0, :, _SUMS.index("full")]
    return Measured(
        rules=tuple(RuleMeasure(rule, **_estimates(own, seed)) for rule, own in zip(rules, sums, strict=True)),
        quarters=tuple(float(full[quarter == i].mean()) if (quarter == i).any() else math.nan for i in range(QUARTERS)),
        policy_norm=math.sqrt(total["policy2"] / total["tokens"]),
        length=float(np.mean([len(one.token_ids) for one in rollouts])),
        prompts=sums.shape[1],
        completions=len(rollouts),
        tokens=len(prompt),
        correct_tokens=int(total["correct"]),
    )


def _measured(
    model: Any,
    rollouts: Sequence[Rollout],
    rules: Sequence[Support],
    *,
    temperature: float,
    chosen: list[np.ndarray],
    rows: int,
    progress: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(prompt (n,), quarter (n,), values (S, n, K)) of the chosen tokens, at most ``rows`` of them at a time."""
    for first in tqdm(range(0, len(rollouts), BATCH), desc="measure", unit="batch", disable=not progress):
        part = rollouts[first : first + BATCH]
        hidden = _hidden_states(model, part)
        for i, one in enumerate(part):
            for start in range(0, len(chosen[first + i]), rows):
                at = chosen[first + i][start : start + rows]
                before = torch.as_tensor(at + len(one.prompt_ids) - 1, device=hidden.device)  # predicts token ``at``
                logits = _logits(model, hidden[i, before]) / temperature
                sampled = torch.as_tensor(np.asarray(one.token_ids)[at], device=logits.device)
                correct = torch.full((len(at),), float(bool(one.correct)), device=logits.device)
                values = measure(logits, sampled, correct, rules)
                yield np.full(len(at), one.prompt), QUARTERS * at // len(one.token_ids), values


def _choose(rollouts: Sequence[Rollout], tokens: int, seed: int) -> list[np.ndarray]:
    """Per completion the places of its measured tokens, in order; all places when there are no more than ``tokens``."""
    lengths = [len(one.token_ids) for one in rollouts]
    drawn = np.random.default_rng(seed).permutation(sum(lengths))[:tokens]
    chosen = np.zeros(sum(lengths), bool)
    chosen[drawn] = True
    return [np.flatnonzero(part) for part in np.split(chosen, np.cumsum(lengths)[:-1])]


def _hidden_states(model: Any, part: Sequence[Rollout]) -> torch.Tensor:
    """(B, T, width), padded on the right: under causal attention padding changes nothing to its left."""
    sequences = [torch.tensor([*one.prompt_ids, *one.token_ids]) for one in part]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in sequences], batch_first=True)
    ids, mask = ids.to(model.device), mask.to(model.device)
    return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(n, width) -> (n, V) float32: the head, then the scale and soft cap of the model's config, if any."""
    factor, cap = logit_transform(model.config)
    logits = model.get_output_embeddings()(hidden).float() * factor
    return logits if cap is None else cap * (logits / cap).tanh()


def _check_head(model: Any, one: Rollout) -> None:
    """Head times hidden state must be what the model itself returns, or every number would be wrong."""
    ours = _logits(model, _hidden_states(model, [one])[0, -1])
    theirs = model(input_ids=torch.tensor([[*one.prompt_ids, *one.token_ids]], device=model.device)).logits[0, -1]
    gap = float((ours.softmax(-1) - theirs.float().softmax(-1)).abs().max())
    if not gap < 0.02:  # bf16 models differ by less from batch to batch
        raise ValueError(
            f"calibrate: {type(model).__name__} turns hidden states into logits in a way not known here (probabilities "
            f"differ by {gap:.2g}). Known are a matrix, a factor (logit_scale, logits_scaling and the like) and "
            "final_logit_softcapping"
        )


def _sums_by_prompt(prompt: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(S, n, K) -> (S, P, K)"""
    return (np.unique(prompt)[:, None] == prompt).astype(float) @ values


def _estimates(sums: np.ndarray, seed: int, draws: int = 1000) -> dict[str, Estimate]:
    """(P, K) sums -> every statistic with its percentile bootstrap interval over prompts."""
    counts = np.concatenate(list(resample(len(sums), np.random.default_rng(seed), draws)))
    point, drawn = _statistics(sums.sum(0)), _statistics(counts @ sums)
    found = {}
    for name, values in drawn.items():
        known = values[np.isfinite(values)]  # a draw without correct tokens has no share of them
        ends = percentile_interval(known) if len(known) else (math.nan, math.nan)
        found[name] = Estimate(float(point[name]), *ends, count=len(sums))
    return found


def _statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
    """(..., K) -> the fields of ``RuleMeasure``.

    1 - cos = (|g - g~|^2 - (|g| - |g~|)^2) / (2 |g| |g~|): without the cancellation of 1 - <g, g~> / (|g| |g~|). NaN
    where a gradient is zero, as of a rule that keeps one token of each.
    """
    s = dict(zip(_SUMS, np.moveaxis(sums, -1, 0), strict=True))
    full, own = np.sqrt(s["full2"]), np.sqrt(s["own2"])
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "entropy": s["entropy"] / s["tokens"],
            "gap": s["gap"] / s["tokens"],
            "dropped_mass": s["dropped"] / s["tokens"],
            "kept": s["kept"] / s["tokens"],
            "norm": own / np.sqrt(s["tokens"]),
            "turn": np.maximum(s["difference2"] - (full - own) ** 2, 0)
            / np.where(full * own > 0, 2 * full * own, np.nan),
            "push": s["push1"] / s["full1"],
            "norm_share": np.sqrt(s["push2"] / s["full2"]),
            "sampled_kept": s["sampled"] / s["tokens"],
            "correct_kept": s["correct_sampled"] / s["correct"],
        }
