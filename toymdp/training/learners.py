"""Softmax policy gradient on token MDPs: exact or sampled, tabular or log-linear, SGD or Adam, many runs at once.

One step, as in GRPO with an entropy bonus: (sample a group of responses, centre and scale their returns) -> policy
gradient + coefficient * gradient of the mean token entropy over ``support`` -> optimiser -> the controller sees the
entropy measured before the step. The bonus and the coefficient are ``aent``'s.

    tabular     one logit per state and token
    loglinear   logits = theta_0 * prior + X theta: a learned temperature on the prior and F random features
                shared by all prompts, as a language-model head shares its embedding (this project's own design)

As in the paper's objective (and every GRPO code) the bonus does not differentiate through *which* states are visited.
``reference_step`` is the definition in plain numpy; ``kernels.py`` is the same in fused loops and is used whenever the
support keeps tokens by count. ``engine="reference"`` accepts any support rule.

With a shaping rule, several updates per sampled group, or a support rule of your own and sampled gradients,
``shaped.py`` takes over: importance ratios and clipping are there. One update per group makes every ratio 1.

Left out: value baselines.

Shape legend: R runs, S states, A tokens (or lumps), T records, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from aent.controllers import Constant, Controller
from aent.entropy import Full, Support, Tsallis, entropy, entropy_gradient
from aent.fields import is_whole_number
from aent.registry import is_ours
from aent.shaping import Shaping
from toymdp.families import Instance
from toymdp.mdp import TokenMDP, policy_gradient, softmax, value, visitation
from toymdp.training import kernels
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
from toymdp.training.config import Learner
from toymdp.training.shaped import train_shaped

CACHE_BYTES = 8 << 20  # a chunk of runs is stepped together; its arrays should stay in the last-level cache


def train(
    instances: Sequence[Instance],
    learner: Learner,
    *,
    support: Support = Full(),
    controller: Controller = Constant(0.0),
    shaping: Shaping = Shaping(),
    seeds: Sequence[int] | None = None,
    engine: str = "auto",
    dtype: Any = np.float32,
    n_jobs: int | None = None,
) -> History:
    """Train one run per instance (repeat an instance to run it under several settings).

    Args:
        instances: R instances of one family (same skeleton and |A|).
        support: tokens the entropy bonus is taken over.
        controller: the coefficient rule; fields may be arrays (R,), entry i for run i.
        shaping: the rule that weighs sampled tokens; the plain one is GRPO with a bonus.
        seeds: R sampling seeds; run i depends on its instance, settings and seed alone, not on its neighbours (to
            the bit when tabular; log-linear runs share a matrix product and differ by rounding).
        engine: "auto", "fused" or "reference"; the last knows the plain rule only. A support rule of your own is
            served by "fused" if it keeps the highest logits and says how many in ``kept(vocabulary)``.
        dtype: of the logits, float32 or float64.
        n_jobs: joblib workers over chunks of runs; None follows ``joblib.parallel_config``.

    Raises:
        TypeError: something else than instances, a learner, a controller or a shaping rule.
        ValueError: instances of different families, wrong numbers of seeds or settings, a support rule that the chosen
            engine cannot serve, sampled gradients on a lumped instance.

    Examples:
        One of 20 tokens pays 1 and two pay 0.5. With exact gradients and a constant bonus, training ends at the soft
        optimum: softmax(reward / coefficient), here weights 16, twice 4, and 17 times 1.

        >>> from toymdp.suite import make
        >>> learner = Learner(steps=1000, learning_rate=1.0, optimiser="sgd", gradient="exact")
        >>> history = train([make("smoke-bandit")], learner, controller=Constant(1 / np.log(16)))
        >>> history.value[-1].round(4).tolist()  # (16 * 1 + 2 * 4 * 0.5) / (16 + 2 * 4 + 17) = 20 / 41
        [0.4878]
    """
    if isinstance(instances, Instance):
        raise TypeError("train: give a list of instances, one per run; for one run write train([instance], ...)")
    runs = len(instances)
    seeds = range(runs) if seeds is None else seeds
    _check(instances, learner, seeds, engine)
    for name, given, kind, example in (
        ("controller", controller, Controller, "Constant(0.01)"), ("shaping", shaping, Shaping, "PeakBonus()"),
    ):  # fmt: skip
        if not isinstance(given, kind):
            raise TypeError(f"train: {name} must be an object such as {example}, got {given!r}")
    shaping.check_controller(controller)
    if engine != "reference" and _is_shaped(learner, support, shaping, engine):
        _check_shaped(learner)
        chunk: Any = partial(train_shaped, rule=shaping)
    else:
        chunk = _unshaped(instances, learner, support, shaping, engine)
    size = int(np.clip(CACHE_BYTES // _bytes_per_run(instances[0], learner, dtype), 1, runs))
    parts = [slice(begin, begin + size) for begin in range(0, runs, size)]
    histories = Parallel(n_jobs=n_jobs)(
        delayed(chunk)(
            list(instances[part]),
            _for_runs(learner, part, runs),
            support,
            _for_runs(controller, part, runs),
            seeds=list(seeds[part]),
            dtype=dtype,
        )
        for part in parts
    )
    return History.joined(list(histories))  # type: ignore[arg-type]


def _is_shaped(learner: Learner, support: Support, shaping: Shaping, engine: str) -> bool:
    """Whether the one-pass kernel does not know what is asked for, and ``shaped.py`` does."""
    own = not is_ours(type(support)) and learner.gradient == "sampled" and engine == "auto"
    return not shaping.is_plain or learner.updates > 1 or isinstance(support, Tsallis) or own


def _unshaped(instances: Sequence[Instance], learner: Learner, support: Support, shaping: Shaping, engine: str) -> Any:
    """The plain engine that can serve: fused for supports that keep tokens by count, else reference."""
    if not shaping.is_plain or learner.updates > 1:
        raise ValueError("engine='reference' knows the plain rule and one update per group only: use engine='auto'")
    fused = engine == "fused" or (engine == "auto" and is_ours(type(support)) and hasattr(support, "kept"))
    if fused and not hasattr(support, "kept"):
        raise ValueError(f"{support!r} does not keep tokens by count: use engine='reference'")
    if not fused and instances[0].mdp.multiplicity is not None:
        raise ValueError("lumped instances need the fused engine and a support that keeps tokens by count")
    return _train_fused if fused else _train_reference


# ------------------------------------------------------------------------------------------------ the definition


def reference_step(
    instance: Instance,
    logits: np.ndarray,
    learner: Learner,
    support: Support,
    coefficient: float,
    uniforms: np.ndarray,
    normals: np.ndarray,
) -> np.ndarray:
    """Gradient (S, A) that one step ascends: policy gradient plus coefficient times the bonus. The definition.

        exact:    d(s) pi (Q - V)                             +  coefficient d(s) dH~/dz
        sampled:  sum_i A_i sum_t dlog pi(a_it|s_it)/dz / G   +  coefficient d^(s) dH~/dz

    d(s) is the probability of visiting s, d^(s) the share of the sampled responses that did.
    """
    mdp = instance.mdp
    bonus = entropy_gradient(logits, support=support)
    if learner.gradient == "exact":
        visits = visitation(mdp, softmax(mdp, logits))
        return policy_gradient(mdp, logits) + coefficient * visits[:, None] * bonus
    policy = softmax(mdp, logits)
    gradient, visits = np.zeros_like(logits), np.zeros(mdp.states)
    for prompt, responses, advantages in _sample_groups(mdp, policy, learner.group_size, uniforms, normals):
        for response, advantage in zip(responses, advantages, strict=True):
            for s, a in response:
                weight = mdp.start[prompt] * advantage / learner.group_size
                gradient[s] -= weight * policy[s]
                gradient[s, a] += weight
                visits[s] += mdp.start[prompt] / learner.group_size
    return gradient + coefficient * visits[:, None] * bonus


def _sample_groups(mdp: TokenMDP, policy: np.ndarray, group: int, uniforms: np.ndarray, normals: np.ndarray) -> Any:
    """(prompt, responses, advantages) per start state; a response is its list of (state, token)."""
    cumulative = np.cumsum(policy, axis=-1)
    index = 0
    for prompt in np.flatnonzero(mdp.start):
        responses, returns = [], []
        for _ in range(group):
            s, paid, path = int(prompt), mdp.reward_noise * normals[index], []
            while s >= 0:
                u_token, u_next = uniforms[index, len(path)]
                a = min(int(np.searchsorted(cumulative[s], u_token * cumulative[s, -1], side="right")), mdp.entries - 1)
                path.append((s, a))
                paid += mdp.reward[s, mdp.labels[s, a]]
                ahead = np.cumsum(mdp.transition[s, mdp.labels[s, a]])
                s = int(np.searchsorted(ahead, u_next, side="right")) if u_next < ahead[-1] else -1
            responses.append(path)
            returns.append(paid)
            index += 1
        yield prompt, responses, (np.array(returns) - np.mean(returns)) / (np.std(returns, ddof=1) + 1e-4)


def _train_reference(
    instances: list[Instance], learner: Learner, support: Support, controller: Controller, seeds: list[int], dtype: Any
) -> History:
    """One run after the other in plain numpy."""
    runs = len(instances)
    parameters = [
        Parameters(learner, [instance], dtype, _run_entry(learner.learning_rate, r))
        for r, instance in enumerate(instances)
    ]
    randoms = Randoms(instances[0].mdp, learner, seeds)
    state = controller.init()
    recorder = Recorder(learner, runs)
    for t in range(learner.steps + 1):
        coefficient = per_run(state.coefficient, runs)
        logits = np.stack([p.logits[0] for p in parameters])
        measures = np.array([_measure(instance.mdp, z, support) for instance, z in zip(instances, logits, strict=True)])
        recorder.record(t, *measures.T, coefficient)
        if t == learner.steps:
            break
        uniforms, normals = randoms.at(t)
        for r, instance in enumerate(instances):
            gradient = reference_step(instance, logits[r], learner, support, coefficient[r], uniforms[r], normals[r])
            parameters[r].ascend(gradient[None].astype(dtype), t)
        state = controller.update(state, measures[:, 2])
    return recorder.history(np.stack([p.logits[0] for p in parameters]))


def _measure(mdp: TokenMDP, logits: np.ndarray, support: Support) -> tuple[float, float, float]:
    """(V, mean full token entropy, mean token entropy over the support)"""
    policy = softmax(mdp, logits)
    visits = visitation(mdp, policy)
    share = visits / visits.sum()
    return value(mdp, policy), share @ entropy(logits), share @ entropy(logits, support=support)


# ------------------------------------------------------------------------------------------------- the fast engine


def _train_fused(
    instances: list[Instance], learner: Learner, support: Any, controller: Controller, seeds: list[int], dtype: Any
) -> History:
    """All runs of a chunk step together through ``kernels.step_runs``."""
    runs, mdp = len(instances), instances[0].mdp
    tabular = learner.parametrisation == "tabular"
    skeletons = Skeletons(instances)
    parameters = Parameters(learner, instances, dtype, learner.learning_rate)
    z = parameters.logits
    gradient = spaced((1 if tabular else runs, mdp.states, mdp.entries), dtype)
    statistics = np.zeros((runs, mdp.states, kernels.STATISTICS))
    statistics[..., kernels.SHIFT] = z.max(axis=-1)
    kept = float(support.kept(mdp.actions))
    anchor, density = first_anchor(z, mdp, skeletons.multiplicity, skeletons.instance, kept)
    randoms = Randoms(mdp, learner, seeds)
    rate = per_run(learner.learning_rate, runs)
    state = controller.init()
    recorder = Recorder(learner, runs)
    returned, full, measured = np.empty(runs), np.empty(runs), np.empty(runs)
    for t in range(learner.steps + 1):
        coefficient = per_run(state.coefficient, runs)
        uniforms, normals = randoms.at(t)
        last = t == learner.steps
        kernels.step_runs(
            z, parameters.first_moment, parameters.second_moment, gradient, statistics, anchor, density,
            *skeletons.arrays, mdp.start, mdp.transition, mdp.reward, mdp.reward_noise, kept, coefficient, rate, t,
            uniforms, normals, learner.group_size if learner.gradient == "sampled" else 0,
            learner.optimiser == "adam", tabular, not last, returned, full, measured,
        )  # fmt: skip
        recorder.record(t, returned, full, measured, coefficient)
        if last:
            break
        if not tabular:
            parameters.ascend(gradient, t)
        state = controller.update(state, shown_to_controller(measured))
    return recorder.history(z)


# -------------------------------------------------------------------------------------------------------- internals


def _check(instances: Sequence[Instance], learner: Learner, seeds: Sequence[int], engine: str) -> None:
    if not instances:
        raise ValueError("train: no instance given")
    if not isinstance(learner, Learner) or not all(isinstance(one, Instance) for one in instances):
        raise TypeError("train: expected instances, as toymdp.suite.make gives them, and a Learner")
    if len(seeds) != len(instances):
        raise ValueError(f"train: {len(instances)} instances but {len(seeds)} seeds; give one seed per run")
    for seed in seeds:
        if not is_whole_number(seed) or seed < 0:
            raise ValueError(f"train: seeds holds {seed!r}: expected whole numbers >= 0")
    if engine not in ("auto", "fused", "reference"):
        raise ValueError(f"train: unknown engine {engine!r}; expected auto, fused or reference")
    first = instances[0].mdp
    for instance in {id(i): i for i in instances}.values():
        mdp = instance.mdp
        if not np.isfinite(instance.prior).all():
            raise ValueError(
                "train: prior logits must be finite; give an impossible token a low logit such as -30 instead"
            )
        if mdp.labels.shape != first.labels.shape or not (
            np.array_equal(mdp.transition, first.transition) and np.array_equal(mdp.reward, first.reward)
        ):
            raise ValueError("train: all instances of one call must come from one family with the same options")
    if first.multiplicity is not None and learner.gradient == "sampled":
        raise ValueError("train: sampling breaks the symmetry that lumps rest on; use gradient='exact'")
    if first.multiplicity is not None and learner.parametrisation == "loglinear":
        raise ValueError(
            "train: log-linear features differ between the tokens of a lump; use parametrisation='tabular'"
        )


def _check_shaped(learner: Learner) -> None:
    if learner.gradient != "sampled":
        raise ValueError("train: shaping rules and Tsallis bonuses need samples; use Learner(gradient='sampled')")


def _bytes_per_run(instance: Instance, learner: Learner, dtype: Any) -> int:
    """What a run adds to a chunk. Log-linear runs count less: the more share a pass over the features, the better."""
    arrays = 0.5 if learner.parametrisation == "loglinear" else 3 if learner.optimiser == "adam" else 1
    return int(arrays * instance.prior.size * np.dtype(dtype).itemsize)


def _run_entry(values: Any, run: int) -> Any:
    return values[run] if np.ndim(values) else values


def _for_runs(config: Any, part: slice, runs: int) -> Any:
    """The config of a part of the runs: arrays are sliced, plain fields kept."""
    own = {}
    for field in fields(config):
        values = getattr(config, field.name)
        if isinstance(values, np.ndarray):
            if values.shape != (runs,):
                raise ValueError(
                    f"{type(config).__name__}.{field.name}: shape {values.shape}, expected one per run ({runs},)"
                )
            own[field.name] = values[part]
    return replace(config, **own) if own else config
