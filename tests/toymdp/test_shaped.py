"""The engine of shaping rules: against the one-pass engine, the definition, autograd, and what each rule must do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aent.controllers import Band, Constant, Controller, ProportionalIntegral, State
from aent.entropy import DropLowest, Full, Nucleus, Support, TopK, Tsallis, entropy, support_weights
from aent.methods import METHODS
from aent.shaping import (
    AdvantageKL,
    ClipCovariance,
    ClipHigher,
    DifficultyBonus,
    EntropyAdvantage,
    EntropyRatioClip,
    GradientPreserving,
    GroupedRatio,
    KLCovariance,
    LogitScaling,
    PeakBonus,
    QuantileBaseline,
    RangeBonus,
    Shaping,
    TemperedReinforce,
    Weights,
)
from toymdp import suite
from toymdp.families import Instance, token_tree, units
from toymdp.mdp import TokenMDP, optimum, softmax, value, visitation
from toymdp.training import kernels, learners, shaped
from toymdp.training.batch import History, Randoms
from toymdp.training.config import Learner
from toymdp.training.learners import train
from toymdp.training.shaped import _Runs, gradient, train_shaped

SUPPORTS = (Full(), DropLowest(0.5), TopK(3))
RECORDS = ("value", "full_entropy", "support_entropy", "coefficient", "logits")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def made(name: str, *seeds: int) -> list[Instance]:
    return [suite.make(name, seed) for seed in seeds]


def runs_at(
    instances: list[Instance],
    learner: Learner,
    *,
    support: Support = Full(),
    rule: Shaping = Shaping(),
    coefficient: float | None = None,
    dtype: Any = np.float64,
) -> _Runs:
    """Runs at their prior, measured, and with a ``coefficient`` rolled out; seeds 5, 6, ..."""
    runs = _Runs(instances, learner, support, rule, list(range(5, 5 + len(instances))), dtype)
    runs.measure()
    if coefficient is not None:
        runs.roll_out(0, np.full(len(instances), coefficient))
    return runs


def trained(instances: list[Instance], learner: Learner, rule: Shaping, controller: Controller, **options: Any) -> Any:
    """``train_shaped`` itself, without the choice of an engine around it."""
    plain = {"support": Full(), "seeds": list(range(3, 3 + len(instances))), "dtype": np.float32, **options}
    return train_shaped(instances, learner, plain["support"], controller, rule, plain["seeds"], plain["dtype"])


def log_softmax(z: np.ndarray) -> np.ndarray:
    peak = z.max(-1, keepdims=True)
    return z - peak - np.log(np.exp(z - peak).sum(-1, keepdims=True))


# ---------------------------------------------------------------------------------------- plain rule, one update each


@pytest.mark.parametrize(
    "name", ["smoke-bandit", "bandit-1e3-n1", "smoke-tree", "tree-1e3-h2-n1", "smoke-units", "fig1-small-n1"]
)
def test_plain_rule_with_one_update_is_the_one_pass_engine(name: str) -> None:
    instances, seeds = made(name, 0, 1), [3, 4]
    rule = Band(np.array([0.05, 0.1]), 1.0, 2.0, 0.01, 0.0, 1.0)
    for optimiser, parametrisation, support in product(("sgd", "adam"), ("tabular", "loglinear"), SUPPORTS):
        learner = Learner(30, 0.05, optimiser, "sampled", parametrisation, features=8, record_every=10)
        one_pass = learners._train_fused(instances, learner, support, rule, seeds, np.float64)
        ours = trained(instances, learner, Shaping(), rule, support=support, seeds=seeds, dtype=np.float64)
        for record in RECORDS:
            np.testing.assert_allclose(
                getattr(ours, record), getattr(one_pass, record), atol=1e-9,
                err_msg=f"{record} {optimiser} {parametrisation} {support}",
            )  # fmt: skip


def test_second_updates_and_other_rules_leave_the_one_pass_engine() -> None:
    """Negative control of the test above: what only this engine knows changes the numbers by far more than 1e-9."""
    instances, learner = made("smoke-tree", 0), Learner(30, 0.05)
    one_pass = train(instances, learner, controller=Constant(0.1), dtype=np.float64)
    changes: list[dict[str, Any]] = [
        {"learner": replace(learner, updates=2)},
        {"shaping": QuantileBaseline()},
        {"support": Tsallis()},
    ]
    for options in changes:
        other = train(instances, **{"learner": learner, "controller": Constant(0.1), "dtype": np.float64, **options})
        assert np.abs(other.logits - one_pass.logits).max() > 1e-3


# -------------------------------------------------------------------------------- the kernels against the definition


FAMILIES = {
    "tree": lambda seed: token_tree(rng(seed), actions=600, optimal=2, horizon=2, slip=0.1),
    "units": lambda seed: units(rng(seed), actions=600, optimal=3, count=3),
}


def random_weights(runs: _Runs, seed: int = 1) -> Weights:
    """Any weights, many of them zero, and logit scales 1, 2 and .5: the rule that made them does not matter."""
    generator, shape = rng(seed), runs.rollout.mask.shape
    runs.rollout = replace(runs.rollout, scale=generator.choice([1.0, 2.0, 0.5], shape))
    policy = generator.normal(size=shape) * (generator.random(shape) < 0.8)
    return Weights(policy * runs.rollout.mask, generator.normal(size=shape) * runs.rollout.mask)


@dataclass(frozen=True)
class OddTokens:
    """A support rule of a user's own that keeps tokens neither by count nor by mass."""

    def weights(self, logits: Any) -> Any:
        return np.broadcast_to(np.arange(logits.shape[-1]) % 2.0, logits.shape)


@pytest.mark.parametrize("support", [Full(), TopK(20), DropLowest(0.4), Nucleus(0.8), Tsallis(), OddTokens()], ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_moves_the_logits_along_the_definition(family: str, support: Support) -> None:
    instances, rates = [FAMILIES[family](seed) for seed in (0, 1)], np.array([0.3, 0.7])
    runs = runs_at(instances, Learner(1, rates, "sgd", group_size=6), support=support, coefficient=0.0)
    weights, before = random_weights(runs), runs.z.copy()
    assert set(np.unique(runs.rollout.scale)) == {0.5, 1.0, 2.0}
    runs.update(weights, 0)
    for run, instance in enumerate(instances):
        along = gradient(instance.mdp, before[run], runs.rollout, run, weights, support, 6)
        assert np.abs(along).max() > 0.01
        np.testing.assert_allclose(runs.z[run] - before[run], rates[run] * along, atol=1e-12)


def bonus_of(z: Any, support: Support) -> Any:
    """H~ of one torch row from its sorted logits, nothing taken from ``aent``; no ties here."""
    if isinstance(support, Tsallis):
        return (1 - (z.softmax(-1) ** 2).sum()) / 2
    z, _ = z.sort(descending=True)
    if isinstance(support, TopK):
        z = z[: support.k]
    if isinstance(support, Nucleus):
        z = z[: 1 + int((z.softmax(-1).cumsum(-1) < support.mass).sum())]
    return -(z.softmax(-1) * z.log_softmax(-1)).sum()


@pytest.mark.parametrize("support", [Full(), TopK(20), Nucleus(0.8), Tsallis()], ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_definition_is_the_gradient_of_the_surrogate(family: str, support: Support) -> None:
    """sum_t start/G [w_t log softmax(kappa_t z)[a_t] + b_t H~], by autograd."""
    torch = pytest.importorskip("torch")
    instances, group = [FAMILIES[family](seed) for seed in (0, 1)], 5
    runs = runs_at(instances, Learner(1, 0.1, group_size=group), support=support, coefficient=0.0)
    weights, rollout, run = random_weights(runs), runs.rollout, 1
    mdp, z = instances[run].mdp, torch.tensor(runs.z[run], requires_grad=True)
    surrogate = torch.zeros((), dtype=torch.float64)
    for response, t in np.argwhere(rollout.states[run] >= 0):
        at = run, response, t
        row, share = z[rollout.states[at]], mdp.start[rollout.states[run, response, 0]] / group
        log_prob = (row * rollout.scale[at]).log_softmax(-1)[rollout.tokens[at]]
        surrogate = surrogate + share * (weights.policy[at] * log_prob + weights.bonus[at] * bonus_of(row, support))
    (expected,) = torch.autograd.grad(surrogate, z)
    ours = gradient(mdp, runs.z[run], rollout, run, weights, support, group)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-12)


def test_a_rule_sees_present_old_and_reference_policies_at_its_scale() -> None:
    """Two steps after sampling: log-probabilities and entropies of three policies, recomputed from their logits."""
    instances, learner = [FAMILIES["tree"](seed) for seed in (0, 1)], Learner(9, 0.5, updates=3, group_size=6)
    runs = runs_at(instances, learner, rule=AdvantageKL(), support=Nucleus(0.8))
    prior = runs.z.copy()
    runs.z += rng(2).normal(size=runs.z.shape)
    runs.measure()
    runs.roll_out(0, np.zeros(2))
    old, weights = runs.z.copy(), random_weights(runs)
    for t in range(2):
        runs.update(weights, t)
        runs.measure()
    tokens, rollout = runs.look(), runs.rollout
    for at in np.argwhere(rollout.mask > 0):
        run, s, a, scale = at[0], *(values[tuple(at)] for values in (rollout.states, rollout.tokens, rollout.scale))
        expected = {
            "log_probs": log_softmax(scale * runs.z[run, s])[a],
            "old_log_probs": log_softmax(old[run, s])[a],
            "reference_log_probs": log_softmax(prior[run, s])[a],
            "entropy": entropy(runs.z[run, s]),
            "old_entropy": entropy(old[run, s]),
            "support_entropy": entropy(runs.z[run, s], support=Nucleus(0.8)),
        }
        found = {name: getattr(tokens, name)[tuple(at)] for name in expected}
        assert found == pytest.approx(expected, abs=1e-10)
    assert np.abs(tokens.log_probs - tokens.old_log_probs).max() > 0.1
    assert tokens.kept == 600
    assert runs_at(instances, learner, support=TopK(9), coefficient=0.0).look().kept == 9


def test_old_log_probs_of_era_are_those_of_the_scaled_logits() -> None:
    """Else the first ratio would not be 1. Every good response is sharpened: no entropy reaches the bound 100."""
    instances = [FAMILIES["tree"](0)]
    runs = runs_at(instances, Learner(1, 0.1), rule=LogitScaling(upper=200.0), coefficient=100.0)
    tokens, good = runs.look(), runs.rollout.advantages[0, :, 0] > 0
    np.testing.assert_array_equal(runs.rollout.scale[0], np.where(good, 2.0, 1.0)[:, None] * np.ones((1, 2)))
    assert 0 < good.sum() < len(good)
    np.testing.assert_array_equal(tokens.log_probs, tokens.old_log_probs)
    states, actions = runs.rollout.states[0, good, 0], runs.rollout.tokens[0, good, 0]
    expected = log_softmax(2.0 * runs.z[0])[states, actions]
    np.testing.assert_allclose(tokens.old_log_probs[0, good, 0], expected, atol=1e-12)


def test_rules_that_draw_get_fresh_uniforms_and_the_others_none() -> None:
    instances = made("smoke-tree", 0, 0)
    runs = runs_at(instances, Learner(4, 0.1, updates=4), rule=ClipCovariance(), coefficient=0.2)
    first, second = runs.look().uniforms, runs.look().uniforms
    assert first.shape == runs.rollout.mask.shape
    assert 0 <= first.min() < first.max() < 1
    assert not np.isclose(first, second).any()
    assert not np.isclose(first[0], first[1]).any()  # seeds 5 and 6
    assert runs_at(instances, Learner(4, 0.1), coefficient=0.2).look().uniforms is None


# -------------------------------------------------------------------------------------------------------- measuring


def side_by_side(rows: np.ndarray) -> Instance:
    """Independent one-token problems with these logits (S, V); token 0 pays 1."""
    states, entries = rows.shape
    labels = np.zeros(rows.shape, np.uint8)
    labels[:, 0] = 1
    mdp = TokenMDP(np.full(states, 1 / states), np.zeros((states, 2, states)), np.tile([0.0, 1.0], (states, 1)), labels)
    return Instance(mdp, rows, np.ones((states, entries), bool), optimum(mdp))


def random_rows(seed: int, entries: int, kind: str) -> np.ndarray:
    generator = rng(seed)
    rows = generator.normal(0, 2, (3, entries))
    if kind == "ties":
        return np.round(rows)  # about nine levels
    if kind == "few levels":
        return generator.choice([-1.0, 0.0, 0.25], rows.shape)
    if kind == "dominant":
        rows[np.arange(3), generator.integers(entries, size=3)] += 40.0
    return rows


ROWS = st.builds(
    random_rows,
    st.integers(0, 10**6),
    st.sampled_from([2, 5, 37, 511, 513, 700, 1100]),
    st.sampled_from(["normal", "ties", "few levels", "dominant"]),
)
RULES = (
    st.builds(Nucleus, st.sampled_from([0.05, 0.5, 0.8, 0.99, 0.999999, 1 - 1e-9, 1.0]) | st.floats(0.01, 1.0))
    | st.builds(TopK, st.integers(1, 1100))
    | st.builds(DropLowest, st.floats(0.0, 0.99))
    | st.sampled_from([Full(), Tsallis()])
)


def assert_measured(runs: _Runs, rows: np.ndarray, support: Support) -> None:
    """Entropies per state and their mean, all over again by ``aent.entropy``."""
    found = runs.statistics[0]
    np.testing.assert_allclose(found[:, kernels.ENTROPY], entropy(rows), atol=1e-10)
    np.testing.assert_allclose(found[:, kernels.KEPT_ENTROPY], entropy(rows, support=support), atol=1e-10)
    assert runs.entropy[0] == pytest.approx(entropy(rows).mean(), abs=1e-10)
    assert runs.measured[0] == pytest.approx(entropy(rows, support=support).mean(), abs=1e-10)
    assert runs.value[0] == pytest.approx(np.exp(log_softmax(rows))[:, 0].mean(), abs=1e-10)
    if runs.over in (shaped.shaped_kernels.BY_COUNT, shaped.shaped_kernels.BY_MASS):
        cut, share = found[:, kernels.THRESHOLD, None], found[:, kernels.TIE_SHARE, None]
        weights = np.where(rows > cut, 1.0, np.where(rows == cut, share, 0.0))
        np.testing.assert_allclose(weights, support_weights(rows, support), atol=1e-10)


@settings(max_examples=150)
@given(ROWS, RULES, st.integers(0, 10**6))
def test_measured_entropies_are_those_of_the_library(rows: np.ndarray, support: Support, seed: int) -> None:
    """At the prior, and again after a step: the search for the cut then starts from the last threshold."""
    runs = runs_at([side_by_side(rows)], Learner(1, 0.1), support=support)
    assert_measured(runs, rows, support)
    later = rows + rng(seed).choice([0.0, 0.5, -3.0], rows.shape)
    runs.z[0] = later
    runs.measure()
    assert_measured(runs, later, support)


def test_measured_entropies_by_hand() -> None:
    """Four equal tokens, mass .6: three places, shared, so log 3. A top of .7 alone holds .6. Tsallis: (1 - .54) / 2.

    p = (.7, .2, .1): sum p^2 = .54.
    """
    flat, peaked = np.zeros((1, 4)), np.log([[0.7, 0.2, 0.1]])
    for rows, support, expected in (
        (flat, Nucleus(0.6), np.log(3)),
        (flat, Nucleus(0.75), np.log(3)),
        (flat, Nucleus(0.76), np.log(4)),
        (peaked, Nucleus(0.6), 0.0),
        (peaked, Nucleus(0.8), -(7 / 9) * np.log(7 / 9) - (2 / 9) * np.log(2 / 9)),
        (peaked, Tsallis(), 0.23),
        (flat, Tsallis(), 0.375),
    ):
        assert runs_at([side_by_side(rows)], Learner(1, 0.1), support=support).measured[0] == pytest.approx(expected)


@pytest.mark.parametrize("support", [TopK(50), Nucleus(0.8), Tsallis()], ids=repr)
def test_a_tree_is_measured_by_visitation(support: Support) -> None:
    instance = FAMILIES["tree"](3)
    runs = runs_at([instance], Learner(1, 0.1), support=support)
    policy = softmax(instance.mdp, instance.prior)
    visits = visitation(instance.mdp, policy)
    expected = visits @ entropy(instance.prior, support=support) / visits.sum()
    assert runs.measured[0] == pytest.approx(expected, abs=1e-10)
    assert runs.value[0] == pytest.approx(value(instance.mdp, policy), abs=1e-12)
    np.testing.assert_allclose(runs.visits[0], visits, atol=1e-12)


@pytest.mark.parametrize("support", [TopK(50), Nucleus(0.8), Tsallis()], ids=repr)
def test_float32_measures_what_float64_does(support: Support) -> None:
    rows = rng(0).normal(0, 2, (3, 5000))
    runs = runs_at([side_by_side(rows)], Learner(1, 0.1), support=support, dtype=np.float32)
    assert runs.measured[0] == pytest.approx(entropy(rows, support=support).mean(), abs=2e-3)


@pytest.mark.parametrize("support", [Full(), TopK(50), Nucleus(0.8), Tsallis()], ids=repr)
@pytest.mark.parametrize("moved", [-1000.0, -100.0, -50.0, 50.0, 95.0, 200.0, 1000.0])
def test_entropies_and_log_totals_do_not_depend_on_how_far_the_logits_moved(support: Support, moved: float) -> None:
    rows = np.round(16 * rng(0).normal(0, 2, (3, 1300))) / 16  # these and the moved ones are exact in float32
    runs = runs_at([side_by_side(rows)], Learner(1, 0.1), support=support, dtype=np.float32)
    runs.z += np.float32(moved)
    runs.measure()
    assert runs.entropy[0] == pytest.approx(entropy(rows).mean(), abs=1e-3)
    assert runs.measured[0] == pytest.approx(entropy(rows, support=support).mean(), abs=1e-3)
    for scale in (0.05, 2.0, 30.0):
        totals, scaled = np.empty(runs.shifts.shape), scale * rows
        shaped.shaped_kernels.log_totals(runs.z, runs.shifts - moved, scale, totals)
        expected = scaled[:, 0] - log_softmax(scaled)[:, 0] + scale * moved
        np.testing.assert_allclose(totals[0], expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("updates", [1, 2])
def test_shaped_runs_whose_logits_jump_keep_sensible_numbers(updates: int) -> None:
    instances = made("bandit-1e3-n1", *range(8))
    for rule in (Shaping(), LogitScaling(), TemperedReinforce()):
        learner = Learner(30, 1000.0, "sgd", updates=updates, record_every=1)
        history = trained(instances, learner, rule, Constant(0.02))
        assert ((history.value >= 0) & (history.value <= instances[0].optimum.value + 1e-6)).all()
        assert ((history.full_entropy >= 0) & (history.full_entropy <= np.log(1000) + 1e-6)).all()


@pytest.mark.parametrize("support", [Full(), TopK(50), Nucleus(0.8), Tsallis()], ids=repr)
def test_overflown_logits_read_nan_under_a_rule_too(support: Support) -> None:
    learner = Learner(4, 1e300, "sgd", updates=2, record_every=1)
    history = trained(made("smoke-tree", 0), learner, Shaping(), Constant(0.05), support=support)
    for measured in (history.value, history.full_entropy, history.support_entropy):
        assert np.isnan(measured[1:]).all()


def test_an_exact_multiple_does_not_become_one_more_token_in_float32() -> None:
    """Ten equal tokens and mass .8 are eight, at the first step and, with another shift, at the second."""
    runs = runs_at([side_by_side(np.zeros((1, 10)))], Learner(1, 0.1), support=Nucleus(0.8), dtype=np.float32)
    runs.measure()
    assert np.exp(runs.measured[0]) == pytest.approx(8.0, abs=1e-3)


# --------------------------------------------------------------------------------------------------------- sampling

PLACES = (0, 100, kernels.BLOCK, 2 * kernels.BLOCK + 1, 3 * kernels.BLOCK - 1)  # in three blocks, ends among them
GROUP = 8000  # a quarter of it is tempered


def two_prompts() -> tuple[Instance, np.ndarray]:
    """Two prompts with all their mass on five tokens; (instance, (2, 5) logits of the five)."""
    live = np.log([[0.1, 0.2, 0.3, 0.15, 0.25], [0.5, 0.05, 0.15, 0.2, 0.1]])
    rows = np.full((2, 3 * kernels.BLOCK), -300.0)
    rows[:, PLACES] = live
    return side_by_side(rows), live


def chi_square(tokens: np.ndarray, logits: np.ndarray) -> float:
    """Of draws of the five tokens against softmax(logits); 4 degrees of freedom, 18.5 is the 99.9% point."""
    counts = np.array([(tokens == place).sum() for place in PLACES])
    assert counts.sum() == tokens.size
    expected = tokens.size * np.exp(log_softmax(logits))
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_only_the_last_members_of_each_group_are_tempered(temperature: float) -> None:
    instance, live = two_prompts()
    runs = runs_at([instance], Learner(1, 0.1, group_size=GROUP), rule=TemperedReinforce(), coefficient=temperature)
    groups = runs.rollout.tokens.reshape(2, GROUP)
    for tokens, logits in zip(groups, live, strict=True):
        plain, tempered = tokens[: 3 * GROUP // 4], tokens[3 * GROUP // 4 :]
        assert chi_square(plain, logits) < 18.5
        assert chi_square(tempered, logits / temperature) < 18.5
        assert chi_square(plain, logits / temperature) > 50  # negative controls: the other temperature
        assert chi_square(tempered, logits) > 50


def test_without_a_tempered_share_the_coefficient_does_not_touch_the_samples() -> None:
    instance, live = two_prompts()
    low, high = (
        runs_at([instance], Learner(1, 0.1, group_size=GROUP), coefficient=c).rollout.tokens for c in (0.6, 1.6)
    )
    np.testing.assert_array_equal(low, high)
    assert max(chi_square(low.reshape(2, GROUP)[s], live[s]) for s in range(2)) < 18.5


def returns_of(runs: _Runs, run: int, instance: Instance) -> np.ndarray:
    """(B,) noise-free returns, added up token by token."""
    states, tokens, mdp = runs.rollout.states[run], runs.rollout.tokens[run], instance.mdp
    paid = [
        sum(mdp.reward[s, mdp.labels[s, a]] for s, a in zip(*path, strict=True) if s >= 0)
        for path in zip(states, tokens, strict=True)
    ]
    return np.array(paid)


@pytest.mark.parametrize("rule", [Shaping(), QuantileBaseline(), TemperedReinforce()], ids=repr)
def test_advantages_and_shares_solved_are_those_of_each_group(rule: Shaping) -> None:
    """Noise is in the rewards and not in ``solved``; the group's baseline leaves the tempered members out."""
    instances, learner, q = made("prompts-1e3-n1", 0, 1), Learner(1, 0.1, group_size=8), 0.7
    for instance in instances:
        instance.prior[instance.mdp.labels == 1] += 4.0  # optima are met by some and missed by others
    runs = runs_at(instances, learner, rule=rule, coefficient=q)
    _, normals = Randoms(instances[0].mdp, learner, [5, 6]).at(0)
    for run, instance in enumerate(instances):
        clean = returns_of(runs, run, instance).reshape(8, 8)
        rewards = clean + instance.mdp.reward_noise * normals[run].reshape(8, 8)
        np.testing.assert_allclose(runs.rollout.solved[run].reshape(8, 8), np.tile((clean == 1).mean(1), (8, 1)).T)
        base = rewards[:, :6] if isinstance(rule, TemperedReinforce) else rewards
        middle = np.quantile(base, q, axis=1) if isinstance(rule, QuantileBaseline) else base.mean(1)
        expected = (rewards - middle[:, None]) / (base.std(1, ddof=1) + 1e-4)[:, None]
        if isinstance(rule, TemperedReinforce):
            expected[:, 6:] = expected[:, 6:] > rule.margin
        np.testing.assert_allclose(runs.rollout.advantages[run].reshape(8, 8), expected, atol=1e-12)
    assert len(np.unique(runs.rollout.solved)) > 2


# ---------------------------------------------------------------------------------------- methods, phases and chunks


def with_knob(name: str, instances: list[Instance], learner: Learner, places: list[int], **options: Any) -> History:
    """Train a method of the comparison at these places of its grid; one run, one seed and one knob per instance."""
    sweep = METHODS[name].sweep
    method = METHODS[name].at(np.array(sweep.values if sweep else np.zeros(7))[places])
    return train(
        instances, learner, support=method.support, controller=method.controller, shaping=method.shaping,
        seeds=[place + 20 for place in places], **options,
    )  # fmt: skip


@pytest.mark.parametrize("setting", ["smoke-bandit", "smoke-tree"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_its_runs_do_not_depend_on_their_neighbours(name: str, setting: str) -> None:
    instances, learner = made(setting, 0, 1), Learner(20, 0.05, updates=4, record_every=4)
    together = with_knob(name, instances, learner, [2, 5])
    for record in RECORDS:
        assert np.isfinite(getattr(together, record)).all(), record
    assert np.abs(together.logits - np.stack([i.prior for i in instances])).max(axis=(1, 2)).min() > 0.05
    for run, place in enumerate((2, 5)):
        alone = with_knob(name, instances[run : run + 1], learner, [place])
        np.testing.assert_array_equal(alone.logits[0], together.logits[run])
        np.testing.assert_array_equal(alone.coefficient[:, 0], together.coefficient[:, run])
        np.testing.assert_array_equal(alone.value[:, 0], together.value[:, run])


def test_long_phases_do_not_depend_on_neighbours_either() -> None:
    instances, learner = made("smoke-tree", 0, 1, 2), Learner(48, 0.05, updates=16, record_every=1)
    together = with_knob("siren", instances, learner, [2, 3, 5])
    for run, place in enumerate((2, 3, 5)):
        alone = with_knob("siren", instances[run : run + 1], learner, [place])
        np.testing.assert_array_equal(alone.coefficient[:, 0], together.coefficient[:, run])


@pytest.mark.parametrize("name", ["siren", "clip-cov", "era", "aepo"])
def test_chunks_and_workers_do_not_change_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instances, learner = made("smoke-tree", 0, 1, 0), Learner(20, np.array([0.02, 0.05, 0.08]), updates=4)
    whole = with_knob(name, instances, learner, [1, 3, 5])
    monkeypatch.setattr(learners, "CACHE_BYTES", 1)  # every run a chunk of its own
    for workers in (None, 2) if name == "siren" else (None,):
        parts = with_knob(name, instances, learner, [1, 3, 5], n_jobs=workers)
        for record in RECORDS:
            np.testing.assert_array_equal(getattr(parts, record), getattr(whole, record))


@dataclass(frozen=True)
class _Recording(Controller):
    """Halves its coefficient at every measurement and keeps what it was shown."""

    seen: list

    def init(self) -> State:
        return State(0.4)

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        self.seen.append(measured.copy())
        return state.coefficient / 2, None


@pytest.mark.parametrize("support", [Full(), Nucleus(0.8)], ids=repr)
def test_the_controller_sees_the_mean_of_each_whole_phase_once(support: Support) -> None:
    recording = _Recording([])
    learner = Learner(14, 0.05, updates=4, record_every=1)
    history = train(made("smoke-tree", 0, 1), learner, support=support, controller=recording, dtype=np.float64)
    phases = history.support_entropy[:12].reshape(3, 4, 2)  # the last phase is cut off: not shown
    np.testing.assert_allclose(recording.seen, phases.mean(1), atol=1e-12)
    assert np.ptp(phases, axis=1).min() > 1e-4  # the mean is not the first or the last by chance
    np.testing.assert_array_equal(history.coefficient[:, 0], 0.4 / 2.0 ** (np.arange(15) // 4))


def test_siren_shows_its_controller_the_mean_over_peaks() -> None:
    """H = 2, quantile .8: the peak of a response is its token of larger entropy (both if equal)."""
    recording, instances = _Recording([]), made("smoke-tree", 0, 1)
    train(
        instances, Learner(1, 0.1), support=Nucleus(0.8), shaping=PeakBonus(), controller=recording, seeds=[5, 6],
        dtype=np.float64,
    )  # fmt: skip
    states = runs_at(instances, Learner(1, 0.1), support=Nucleus(0.8), coefficient=0.0).rollout.states
    expected = []
    for run, instance in enumerate(instances):
        per_state = entropy(instance.prior, support=Nucleus(0.8))
        expected.append(per_state[states[run]].max(axis=-1).mean())
        assert per_state[states[run]].mean() < expected[-1] - 1e-3  # not the plain mean
    np.testing.assert_allclose(recording.seen, [expected], atol=1e-12)


# ------------------------------------------------------------------------------------------- support rules of one's own


@dataclass(frozen=True)
class LikeTopK:
    """``TopK`` by another hand: the kernels do not know it, so numpy must come to the numbers of the kernels."""

    k: int

    def weights(self, logits: Any) -> Any:
        return logits >= np.sort(logits, axis=-1)[..., -self.k, None]  # no ties here


@pytest.mark.parametrize(
    "rule", [Shaping(), RangeBonus(), ClipHigher(), LogitScaling()], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize(("updates", "parametrisation"), [(1, "tabular"), (3, "tabular"), (2, "loglinear")])
def test_a_support_rule_of_ones_own_trains_to_the_numbers_of_the_same_rule_in_the_kernels(
    rule: Shaping, updates: int, parametrisation: str
) -> None:
    instances = [FAMILIES[family](seed) for family, seed in (("tree", 0), ("tree", 1))]
    learner = Learner(12, 0.05, parametrisation=parametrisation, features=8, updates=updates, record_every=4)
    both = [
        train(instances, learner, support=support, shaping=rule, controller=Constant(0.3), dtype=np.float64)
        for support in (LikeTopK(20), TopK(20))
    ]
    for record in RECORDS:
        np.testing.assert_allclose(*(getattr(history, record) for history in both), atol=1e-9, err_msg=record)
    other = train(instances, learner, support=LikeTopK(200), shaping=rule, controller=Constant(0.3), dtype=np.float64)
    assert np.abs(other.support_entropy - both[0].support_entropy).max() > 1e-3  # negative control: k matters


@pytest.mark.parametrize("gradient", ["sampled", "exact"])
def test_a_support_rule_of_ones_own_trains_as_the_reference_engine_defines(gradient: str) -> None:
    instances, learner = made("smoke-tree", 0, 1), Learner(10, 0.05, gradient=gradient)
    both = [
        train(instances, learner, support=OddTokens(), controller=Constant(0.2), engine=engine, dtype=np.float64)
        for engine in ("reference", "auto")
    ]
    for record in RECORDS:
        np.testing.assert_allclose(*(getattr(history, record) for history in both), atol=1e-9, err_msg=record)


@dataclass(frozen=True)
class SaysTwo:
    """Keeps all tokens and claims to keep two: the fused engine, which believes it, must be asked for."""

    def kept(self, vocabulary: int) -> int:
        return 2

    def weights(self, logits: Any) -> Any:
        return np.ones_like(logits)


def test_the_fused_engine_believes_a_rule_of_ones_own_only_where_it_is_asked_for() -> None:
    instances, learner = made("smoke-bandit", 0), Learner(3, 0.05)
    free, fused = (train(instances, learner, support=SaysTwo(), engine=engine) for engine in ("auto", "fused"))
    np.testing.assert_allclose(free.support_entropy, free.full_entropy, atol=1e-5)
    assert (fused.support_entropy <= np.log(2) + 1e-6).all()
    assert (free.support_entropy > 1).all()


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [({"updates": 0}, "at least 1"), ({"updates": 2, "gradient": "exact"}, "reuse a sample.*use 'sampled'")],
)
def test_learner_refuses_updates(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Learner(10, 0.1, **options)


def test_train_refuses_what_a_rule_cannot_be_used_with() -> None:
    small, lumped = made("smoke-bandit", 0), made("smoke-lumped", 0)
    exact, sampled = Learner(2, 0.1, gradient="exact"), Learner(2, 0.1)
    refused: list[tuple[Any, Learner, dict[str, Any], str]] = [
        (small, exact, {"shaping": ClipHigher()}, r"use Learner\(gradient='sampled'\)"),
        (small, exact, {"support": Tsallis()}, "gradient='sampled'"),
        (lumped, exact, {"shaping": ClipHigher()}, "gradient='sampled'"),
        (lumped, sampled, {"shaping": ClipHigher()}, "gradient='exact'"),
        (small, sampled, {"shaping": ClipHigher(), "engine": "reference"}, "use engine='auto'"),
        (small, replace(sampled, updates=2), {"engine": "reference"}, "use engine='auto'"),
        (small, sampled, {"support": OddTokens(), "engine": "fused"}, "engine='reference'"),
    ]
    for instances, learner, options, message in refused:
        with pytest.raises(ValueError, match=message):
            train(instances, learner, **options)
    assert train(small, sampled, support=OddTokens()).value.shape == (2, 1)  # the plain rule takes any support


def test_the_plain_rule_on_the_reference_engine_still_takes_tsallis() -> None:
    both = [
        train(made("smoke-tree", 0), Learner(10, 0.05), support=Tsallis(), controller=Constant(0.5), engine=engine,
              dtype=np.float64)
        for engine in ("reference", "auto")
    ]  # fmt: skip
    for record in RECORDS:
        np.testing.assert_allclose(*(getattr(history, record) for history in both), atol=1e-9)


# --------------------------------------------------------------------------------------------------------- behaviour

RATIO_RULES = [
    (ClipHigher(), 0.28),
    (GradientPreserving(), 0.75),
    (EntropyRatioClip(), 0.05),
    (KLCovariance(), 1.0),
    (GroupedRatio(), 0.2),
]


@pytest.mark.parametrize(("rule", "coefficient"), RATIO_RULES, ids=lambda x: type(x).__name__)
def test_rules_about_ratios_are_grpo_until_a_group_is_used_twice(rule: Shaping, coefficient: float) -> None:
    instances = made("smoke-tree", 0, 1)
    once, often = Learner(30, 0.1), Learner(40, 0.3, updates=8)
    for learner in (once, often):
        ours = trained(instances, learner, rule, Constant(coefficient)).logits
        grpo = trained(instances, learner, Shaping(), Constant(0.0)).logits
        if learner is once:
            np.testing.assert_array_equal(ours, grpo)
        else:
            assert np.abs(ours - grpo).max(axis=(1, 2)).min() > 0.01
    one_pass = train(instances, once, seeds=[3, 4], dtype=np.float64).logits
    ours = train(instances, once, shaping=rule, controller=Constant(coefficient), seeds=[3, 4], dtype=np.float64).logits
    np.testing.assert_allclose(ours, one_pass, atol=1e-9)


def test_entropic_steers_towards_its_target() -> None:
    """It acts on tokens with pi > .95 alone, so on a policy that has begun to collapse."""
    instances = made("smoke-bandit", *range(6))
    for instance in instances:
        instance.prior[instance.mdp.labels == 1] += 6.0
    knobs = {"learner": Learner(200, 0.02), "shaping": METHODS["entropic"].shaping}
    low, none, high = (
        train(instances, controller=controller, **knobs).full_entropy[-1]
        for controller in (ProportionalIntegral(0.0), Constant(0.0), ProportionalIntegral(2.0))
    )
    assert (low < none).all()
    assert (none < high).all()
    assert high.mean() > 1.4 * low.mean()


def test_entropy_advantage_with_coefficient_zero_is_none() -> None:
    learner, instances = Learner(30, 0.1, updates=3), made("smoke-tree", 0, 1)
    none, zero, some = (
        trained(instances, learner, rule, Constant(c)).logits
        for rule, c in ((Shaping(), 0.0), (EntropyAdvantage(), 0.0), (EntropyAdvantage(), 0.4))
    )
    np.testing.assert_array_equal(zero, none)
    assert np.abs(some - none).max() > 0.01


def test_aer_pays_no_bonus_on_a_solved_prompt() -> None:
    """Prompt 0 is solved by all, prompt 1 by none, 2 and 3 by some; the mean over all responses is the coefficient."""
    (instance,) = made("smoke-units", 0)
    optimal, share = instance.mdp.labels == 1, np.array([1.0, 1e-9, 0.5, 0.2])[:, None]
    each = np.where(optimal, share, 1 - share) / np.where(optimal, 2, 18)
    instance = replace(instance, prior=np.log(each + 1e-12))
    runs = runs_at([instance], Learner(1, 0.1), rule=DifficultyBonus(), coefficient=0.3)
    solved, (policy, bonus) = runs.rollout.solved.reshape(4, 16), runs.rule(runs.look(), 0.3)
    bonus = bonus.reshape(4, 16)
    assert (solved[0, 0], solved[1, 0]) == (1.0, 0.0)
    assert 0 < solved[3, 0] < solved[2, 0] < 1
    np.testing.assert_array_equal(bonus[0], 0.0)
    np.testing.assert_allclose(bonus / bonus[1], 1 - solved, atol=1e-12)
    assert bonus.mean() == pytest.approx(0.3)
    assert np.abs(policy).max() > 0
    plain = runs_at([instance], Learner(1, 0.1), coefficient=0.3)
    np.testing.assert_allclose(plain.rule(plain.look(), 0.3).bonus, 0.3)  # negative control: GRPO pays all alike


def test_groups_of_the_prompts_setting_are_unlike_in_what_they_solve() -> None:
    """Some prompts come to be solved by all of their responses, others never leave the decoy."""
    instances = made("prompts-1e3-n1", 0)
    history = train(instances, Learner(300, 0.1))
    later = [replace(instances[0], prior=history.logits[0].astype(float))]
    runs = runs_at(later, Learner(1, 0.1), rule=DifficultyBonus(), coefficient=0.3)
    solved, bonus = runs.rollout.solved.reshape(8, 16), runs.rule(runs.look(), 0.3).bonus.reshape(8, 16)
    assert (solved[:, 0] == 0).any()
    assert (solved[:, 0] > 0.9).any()
    assert bonus[solved == 0].min() > 0.3 > bonus[solved > 0.9].max()  # AER shifts the bonus between them
