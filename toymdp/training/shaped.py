"""Training under a shaping rule: sampled groups, several updates per group, a rule of ``aent.shaping`` in between.

One phase, as in GRPO: sample groups of responses; then ``learner.updates`` times: log-probabilities and entropies of
the sampled tokens under the present policy -> the rule's weights -> one optimiser step. The controller sees the mean
entropy of the phase once, at its end. ``learners.train`` calls this whenever a rule, several updates, or an entropy
that its one-pass kernel does not know is asked for; with the plain rule and one update both do the same.

``gradient`` is the definition in plain numpy; ``shaped_kernels.py`` is the same in fused loops. A support rule of your
own is asked by numpy, for all runs at once, and its part is added to what the loops give.

Shape legend: R runs, S states, A tokens, B responses (Q prompts of G), H horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aent.controllers import Controller
from aent.entropy import Full, Nucleus, Support, Tsallis, entropy, entropy_gradient, support_weights
from aent.registry import is_ours
from aent.shaping import Shaping, Tokens, Weights, tempered_members
from toymdp.families import Instance
from toymdp.mdp import TokenMDP, softmax
from toymdp.training import kernels, shaped_kernels
from toymdp.training.batch import (
    History,
    Parameters,
    Randoms,
    Recorder,
    Skeletons,
    first_anchor,
    per_run,
    shown_to_controller,
    spaced,
)

CORRECT = 0.9  # a response is correct when its noise-free return is at least this share of the largest reward


@dataclass(frozen=True)
class Rollout:
    """Sampled responses of every run, and what was true when they were sampled; (R, B, H) unless said."""

    states: np.ndarray  # -1 past the end
    tokens: np.ndarray
    mask: np.ndarray
    advantages: np.ndarray  # (R, B, 1)
    solved: np.ndarray  # (R, B)
    old_entropy: np.ndarray
    old_log_probs: np.ndarray
    reference_log_probs: np.ndarray
    scale: np.ndarray  # of the logits in the surrogate; 1 but for ERA


def gradient(
    mdp: TokenMDP, logits: np.ndarray, rollout: Rollout, run: int, weights: Weights, support: Support, group: int
) -> np.ndarray:
    """(S, A): sum_t start/G [w_t kappa_t (e_{a_t} - softmax(kappa_t z)) + b_t dH~/dz] of one run. The definition."""
    bonus, total = entropy_gradient(logits, support=support), np.zeros_like(logits)
    for response in range(rollout.states.shape[1]):
        share = mdp.start[rollout.states[run, response, 0]] / group
        for t in np.flatnonzero(rollout.mask[run, response]):
            at = run, response, t
            s, a, scale = rollout.states[at], rollout.tokens[at], rollout.scale[at]
            gain = share * weights.policy[at] * scale
            total[s] += share * weights.bonus[at] * bonus[s] - gain * softmax(mdp, scale * logits)[s]
            total[s, a] += gain
    return total


def train_shaped(
    instances: list[Instance],
    learner: Any,
    support: Support,
    controller: Controller,
    rule: Shaping,
    seeds: list[int],
    dtype: Any,
) -> History:
    """All runs of a chunk, side by side; ``learner`` is a ``learners.Learner`` with sampled gradients."""
    runs = _Runs(instances, learner, support, rule, seeds, dtype)
    state = controller.init()
    recorder = Recorder(learner, len(instances))
    phase: list[np.ndarray] = []
    for t in range(learner.steps + 1):
        coefficient = per_run(state.coefficient, len(instances))
        runs.measure()
        recorder.record(t, runs.value, runs.entropy, runs.measured, coefficient)
        if t == learner.steps:
            break
        if t % learner.updates == 0:
            runs.roll_out(t // learner.updates, coefficient)
        tokens = runs.look()
        runs.update(rule(tokens, coefficient[:, None, None]), t)
        phase.append(_attended(rule, tokens) if rule.measures_attention else runs.measured.copy())
        if (t + 1) % learner.updates == 0:
            mean = sum(phase) / len(phase)  # np.mean adds one run's numbers in another order
            state = controller.update(state, shown_to_controller(mean))  # type: ignore[arg-type]
            phase = []
    return recorder.history(runs.z)


def _attended(rule: Shaping, tokens: Tokens) -> np.ndarray:
    """(R,) mean over the sampled tokens of attention * H~: the quantity whose gradient the bonus is."""
    paid = rule.attention(tokens) * tokens.support_entropy * tokens.mask
    return paid.sum((-2, -1)) / tokens.mask.sum((-2, -1))


class _Runs:
    """The arrays of a chunk, and the four things that are done with them in a step."""

    def __init__(
        self, instances: list[Instance], learner: Any, support: Support, rule: Shaping, seeds: Any, dtype: Any
    ):
        mdp = instances[0].mdp
        self.learner, self.rule, self.mdp = learner, rule, mdp
        self.own = None if is_ours(type(support)) else support  # a rule that the kernels do not know
        self.over, self.kept = _bonus_over(support, mdp.actions)
        self.skeletons = Skeletons(instances)
        self.parameters = Parameters(learner, instances, dtype, learner.learning_rate)
        self.rate = per_run(learner.learning_rate, len(instances))
        self.z = self.parameters.logits
        count, states, actions = self.z.shape
        self.odds = spaced(self.z.shape, dtype)
        self.block_sums = np.empty((count, states, -(-actions // kernels.BLOCK)))
        self.statistics = np.zeros((count, states, kernels.STATISTICS))
        self.statistics[..., kernels.SHIFT] = self.z.max(axis=-1)
        self.statistics[..., kernels.THRESHOLD] = self.z.max(axis=-1)
        self.shifts, self.visits = np.empty((count, states)), np.empty((count, states))
        cut = self.kept if self.over == shaped_kernels.BY_COUNT else float(actions)
        self.anchor, self.density = first_anchor(self.z, mdp, None, self.skeletons.instance, cut)
        self.randoms = Randoms(mdp, learner, seeds)
        self.draws = [np.random.default_rng([int(seed), 2]) for seed in seeds]  # for rules that draw tokens
        self.value, self.entropy, self.measured = np.empty(count), np.empty(count), np.empty(count)
        self.prior, self.prior_total = self.z.copy() if "reference_log_probs" in rule.needs else self.z, None

    def measure(self) -> None:
        """Exact value and entropies at the present logits."""
        instance, special, classes, _ = self.skeletons.arrays
        shaped_kernels.measure_runs(
            self.z, self.odds, self.block_sums, self.statistics, self.shifts, self.anchor, self.density, instance,
            special, classes, self.mdp.start, self.mdp.transition, self.mdp.reward, self.over, self.kept, self.visits,
            self.value, self.entropy, self.measured,
        )  # fmt: skip
        if self.own is not None:
            self.statistics[..., kernels.KEPT_ENTROPY] = entropy(self.z, support=self.own)
            share = self.visits / self.visits.sum(-1, keepdims=True)
            self.measured[:] = (share * self.statistics[..., kernels.KEPT_ENTROPY]).sum(-1)
        if self.prior_total is None:
            self.prior_total = self.statistics[..., kernels.SHIFT].copy()

    def roll_out(self, phase: int, coefficient: np.ndarray) -> None:
        """Sample groups from the present policy, score them, and keep what the rule will compare with."""
        group, mdp = self.learner.group_size, self.mdp
        uniforms, normals = self.randoms.at(phase)
        shape = uniforms.shape[:3]
        states, tokens = np.empty(shape, np.int64), np.zeros(shape, np.int64)
        clean: Any = np.empty(shape[:2])
        instance, special, classes, _ = self.skeletons.arrays
        shaped_kernels.sample_runs(
            self.z, self.odds, self.block_sums, self.shifts, instance, special, classes, mdp.start, mdp.transition,
            mdp.reward, uniforms, group, tempered_members(self.rule, group), coefficient, states, tokens, clean,
        )  # fmt: skip
        grouped = (len(clean), shape[1] // group, group)
        rewards = (clean + mdp.reward_noise * normals).reshape(grouped)
        advantages = self.rule.group_advantages(rewards, coefficient[:, None, None]).reshape(clean.shape)
        correct = (clean >= CORRECT * mdp.reward.max()).reshape(grouped).mean(axis=-1, keepdims=True)
        solved = np.broadcast_to(correct, grouped).reshape(clean.shape)
        mask = (states >= 0).astype(float)
        old_entropy = _at(self.statistics[..., kernels.ENTROPY], states)
        nothing = np.zeros(shape)
        rollout = Rollout(
            states, tokens, mask, advantages[..., None], solved, old_entropy, nothing, nothing, nothing + 1
        )
        if self.rule.scales_logits:
            self.rollout = rollout
            scale = self.rule.logit_scale(self.look(), coefficient[:, None, None])
            rollout = replace(rollout, scale=np.broadcast_to(scale, shape).copy())
        reference = _log_probs(self.prior, self.prior_total, rollout) if self.prior is not self.z else nothing
        self.rollout = replace(rollout, old_log_probs=self.log_probs(rollout), reference_log_probs=reference)

    def log_probs(self, rollout: Rollout) -> np.ndarray:
        """(R, B, H) of the sampled tokens under the present policy, at the logit scale of each response."""
        found = _log_probs(self.z, self.statistics[..., kernels.SHIFT], rollout)
        total = np.empty(self.shifts.shape)
        for scale in np.unique(rollout.scale[rollout.scale != 1]):
            shaped_kernels.log_totals(self.z, self.shifts, scale, total)
            other = _log_probs(self.z, total, rollout, scale)
            found = np.where(rollout.scale == scale, other, found)
        return found

    def look(self) -> Tokens:
        """What the rule sees at the present logits."""
        rollout = self.rollout
        needs_draws = "uniforms" in self.rule.needs
        uniforms = np.stack([g.random(rollout.mask.shape[1:]) for g in self.draws]) if needs_draws else None
        return Tokens(
            log_probs=self.log_probs(rollout),
            old_log_probs=rollout.old_log_probs,
            advantages=rollout.advantages,
            mask=rollout.mask,
            entropy=_at(self.statistics[..., kernels.ENTROPY], rollout.states),
            old_entropy=rollout.old_entropy,
            support_entropy=_at(self.statistics[..., kernels.KEPT_ENTROPY], rollout.states),
            kept=self._number_kept(),
            solved=rollout.solved,
            reference_log_probs=rollout.reference_log_probs,
            uniforms=uniforms,
        )

    def _number_kept(self) -> Any:
        if self.own is not None:
            return _at(support_weights(self.z, self.own).sum(-1, dtype=float), self.rollout.states)
        return self.kept if self.over == shaped_kernels.BY_COUNT else float(self.mdp.actions)

    def update(self, weights: Weights, t: int) -> None:
        """One optimiser step along the weighted gradient; ``odds`` is used up."""
        shape, rollout, parameters = self.rollout.mask.shape, self.rollout, self.parameters
        policy, bonus = (np.ascontiguousarray(np.broadcast_to(part, shape), dtype=float) for part in weights)
        extra = None
        if self.own is not None:
            extra, bonus = self._bonus_gradient(bonus, self.own), np.zeros(shape)
        in_kernel = self.learner.parametrisation == "tabular" and extra is None
        shaped_kernels.update_runs(
            self.z, parameters.first_moment, parameters.second_moment, self.odds, self.statistics, self.shifts,
            rollout.states, rollout.tokens, policy, bonus, rollout.scale, self.mdp.start, self.learner.group_size,
            self.over, self.rate, t, self.learner.optimiser == "adam", in_kernel,
        )  # fmt: skip
        if extra is not None:
            self.odds += extra
        if not in_kernel:
            parameters.ascend(self.odds, t)

    def _bonus_gradient(self, bonus: np.ndarray, support: Support) -> np.ndarray:
        """(R, S, A): sum_t start/G b_t dH~/dz over a support rule of one's own; ``bonus`` is (R, B, H)."""
        states, paid = self.rollout.states, np.zeros(self.z.shape[:2])
        share = self.mdp.start[states[..., :1]] / self.learner.group_size
        runs = np.broadcast_to(np.arange(len(states))[:, None, None], states.shape)
        inside = states >= 0
        np.add.at(paid, (runs[inside], states[inside]), (share * bonus)[inside])
        return paid[..., None] * entropy_gradient(self.z, support=support)


def _bonus_over(support: Support, actions: int) -> tuple[int, float]:
    """(kind, tokens or mass kept) as the kernels know them."""
    if not is_ours(type(support)):
        return shaped_kernels.ALL, float(actions)
    if isinstance(support, Tsallis):
        return shaped_kernels.TSALLIS, float(actions)
    if isinstance(support, Nucleus) and support.mass < 1:
        return shaped_kernels.BY_MASS, float(support.mass)
    if isinstance(support, Full | Nucleus) or support.kept(actions) >= actions:  # type: ignore[attr-defined]
        return shaped_kernels.ALL, float(actions)
    return shaped_kernels.BY_COUNT, float(support.kept(actions))  # type: ignore[attr-defined]


def _at(values: np.ndarray, states: np.ndarray) -> np.ndarray:
    """(R, S) -> (R, B, H): the value at each visited state, 0 past the end."""
    runs = np.arange(len(values))[:, None, None]
    return np.where(states >= 0, values[runs, np.maximum(states, 0)], 0.0)


def _log_probs(z: np.ndarray, log_total: Any, rollout: Rollout, scale: float = 1.0) -> np.ndarray:
    runs, states = np.arange(len(z))[:, None, None], np.maximum(rollout.states, 0)
    found = scale * z[runs, states, rollout.tokens].astype(float) - log_total[runs, states]
    return np.where(rollout.states >= 0, found, 0.0)
