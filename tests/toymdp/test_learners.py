"""The learner against its definition, the definition against finite differences and hand-computed steps."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aent.controllers import Anchored, Band, BangBang, Constant, Dual, ProportionalIntegral, Schedule
from aent.entropy import DropLowest, Full, Nucleus, TopK, entropy, support_weights
from toymdp import suite
from toymdp.families import Instance, lump, random_tree, token_tree, units
from toymdp.mdp import TokenMDP, optimum, softmax, value, visitation
from toymdp.training import kernels, learners
from toymdp.training.batch import Parameters, Randoms, Skeletons
from toymdp.training.config import Learner
from toymdp.training.learners import reference_step, train


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


FAMILIES = {
    "slippery tree": lambda seed: token_tree(rng(seed), actions=150, optimal=2, horizon=3, slip=0.1),
    "units": lambda seed: units(rng(seed), actions=150, optimal=3, count=3),
    "unfolded tree": lambda seed: random_tree(rng(7), actions=3, horizon=3),
}
SUPPORTS = (Full(), DropLowest(0.5), TopK(1))
ENGINES = ("fused", "reference")


# --------------------------------------------------------------------------------- the definition, derived elsewhere


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_step_is_the_gradient_of_value_plus_bonus_at_frozen_visitation(family: str) -> None:
    instance = FAMILIES[family](0)
    mdp, z, coefficient = instance.mdp, instance.prior, 0.3
    visits = visitation(mdp, softmax(mdp, z))
    weights = support_weights(z, DropLowest(0.4))

    def objective(logits: np.ndarray) -> float:
        odds = weights * np.exp(logits)
        p = odds / odds.sum(-1, keepdims=True)
        token = np.where(weights > 0, p / np.where(weights > 0, weights, 1), 1.0)
        return value(mdp, softmax(mdp, logits)) - coefficient * float(visits @ (p * np.log(token)).sum(-1))

    none = np.empty((0, 1, 2)), np.empty(0)
    learner = Learner(1, 1.0, gradient="exact")
    gradient = reference_step(instance, z, learner, DropLowest(0.4), coefficient, *none)
    for s, a in zip(rng(1).integers(mdp.states, size=12), rng(2).integers(mdp.entries, size=12), strict=True):
        up, down = z.copy(), z.copy()
        up[s, a] += 1e-5
        down[s, a] -= 1e-5
        assert gradient[s, a] == pytest.approx((objective(up) - objective(down)) / 2e-5, abs=1e-8)


def two_armed(prior: float = 0.0) -> Instance:
    """Arm 1 pays 1, arm 0 nothing; prior logits (0, prior)."""
    mdp = TokenMDP(np.ones(1), np.zeros((1, 2, 1)), np.array([[0.0, 1.0]]), np.array([[0, 1]]))
    return Instance(mdp, np.array([[0.0, prior]]), np.ones((1, 2), bool), optimum(mdp))


def test_sampled_step_by_hand() -> None:
    """Uniforms .2, .9, .7 at pi = (1/2, 1/2) draw arms 0, 1, 1: returns (0, 1, 1), mean 2/3, deviation 1/sqrt(3).

    A = (-2/3, 1/3, 1/3) / (1/sqrt(3) + 1e-4); the gradient of arm 1 is (A_2 + A_3) / 3 because sum A = 0.
    """
    uniforms = np.array([0.2, 0.9, 0.7]).reshape(3, 1, 1) * np.ones((1, 1, 2))
    step = reference_step(
        two_armed(), np.zeros((1, 2)), Learner(1, 1.0, group_size=3), Full(), 0.0, uniforms, np.zeros(3)
    )
    expected = (2 / 3) / (1 / math.sqrt(3) + 1e-4) / 3
    assert step == pytest.approx(np.array([[-expected, expected]]), abs=1e-12)


def test_random_numbers_are_drawn_for_the_responses_to_every_prompt_and_no_others() -> None:
    mdp = random_tree(rng(0), actions=3, horizon=2).mdp  # one prompt, and three states behind it
    for prompts, start in ((1, mdp.start), (2, np.array([0.5, 0.5, 0.0, 0.0]))):
        uniforms, normals = Randoms(replace(mdp, start=start), Learner(1, 1.0, group_size=5), [3, 4, 9]).at(0)
        assert (uniforms.shape, normals.shape) == ((3, 5 * prompts, 2, 2), (3, 5 * prompts))


def test_sampled_steps_average_to_the_scaled_exact_gradient() -> None:
    """In a wide group the return's deviation is fixed, so E[step] = (exact gradient) / sd * (G-1)/G."""
    instance, group = two_armed(-1.0), 64
    p = 1 / (1 + math.e)
    learner = Learner(1, 1.0, group_size=group)
    steps = [
        reference_step(instance, instance.prior, learner, Full(), 0.0, rng(i).random((group, 1, 2)), np.zeros(group))[
            0, 1
        ]
        for i in range(400)
    ]
    expected = p * (1 - p) / math.sqrt(p * (1 - p))
    assert np.mean(steps) == pytest.approx(expected, abs=5 * np.std(steps) / 20 + 0.02)


# --------------------------------------------------------------------------------------- fast engine = the definition


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gradient", ["exact", "sampled"])
def test_fused_equals_reference(family: str, gradient: str) -> None:
    instances = [FAMILIES[family](seed) for seed in (0, 1)]
    rule = Band(np.array([0.05, 0.1]), 1.0, 2.0, 0.01, 0.0, 1.0)
    for optimiser, parametrisation, support in product(("sgd", "adam"), ("tabular", "loglinear"), SUPPORTS):
        learner = Learner(25, 0.05, optimiser, gradient, parametrisation, group_size=4, features=8, record_every=5)
        both = [
            train(instances, learner, support=support, controller=rule, seeds=[3, 4], engine=engine, dtype=np.float64)
            for engine in ("fused", "reference")
        ]
        for name in ("value", "full_entropy", "support_entropy", "coefficient", "logits"):
            fast, plain = (getattr(history, name) for history in both)
            np.testing.assert_allclose(
                fast, plain, atol=1e-8, err_msg=f"{name} {optimiser} {parametrisation} {support}"
            )


BOLD = [("sgd", 1e3), ("sgd", 1e4), ("adam", 120.0), ("adam", 1e3)]  # logits move by hundreds in one step


@pytest.mark.parametrize(("optimiser", "rate"), BOLD)
@pytest.mark.parametrize("parametrisation", ["tabular", "loglinear"])
def test_fused_equals_reference_when_logits_jump(optimiser: str, rate: float, parametrisation: str) -> None:
    """Exact gradients. Float32 with no bonus: a bonus on logits of 10^4 would amplify its rounding."""
    instances = [token_tree(rng(s), actions=300, optimal=2, horizon=2) for s in range(3)]
    learner = Learner(12, rate, optimiser, "exact", parametrisation, record_every=1)
    for support, (dtype, coefficient, tolerance) in product(
        (Full(), TopK(30)), ((np.float64, 0.05, 1e-6), (np.float32, 0.0, 1e-6))
    ):
        fast, plain = (
            train(instances, learner, support=support, controller=Constant(coefficient), engine=engine, dtype=dtype)
            for engine in ("fused", "reference")
        )
        np.testing.assert_allclose(fast.value, plain.value, atol=tolerance)
        for name in ("full_entropy", "support_entropy") if dtype is np.float64 else ():
            np.testing.assert_allclose(getattr(fast, name), getattr(plain, name), atol=tolerance)


@pytest.mark.parametrize(("optimiser", "rate"), [*BOLD, ("adam", 200.0)])
@pytest.mark.parametrize("support", [Full(), TopK(30)], ids=repr)
def test_sampled_runs_whose_logits_jump_keep_sensible_numbers(optimiser: str, rate: float, support: Any) -> None:
    instances = [suite.make("bandit-1e3-n1", seed) for seed in range(8)]
    learner = Learner(40, rate, optimiser, record_every=1)
    history = train(instances, learner, support=support, controller=Constant(0.02))
    assert ((history.value >= 0) & (history.value <= instances[0].optimum.value + 1e-6)).all()
    for measured in (history.full_entropy, history.support_entropy):
        assert ((measured >= 0) & (measured <= math.log(1000) + 1e-6)).all()


def test_sampled_fused_runs_end_where_the_reference_ends_when_logits_jump() -> None:
    """The same draws: rewards of 0, 1/2 and 1 and certain policies leave no room for rounding."""
    instances = [suite.make("bandit-1e3-n1", seed) for seed in range(8)]
    fast, plain = (train(instances, Learner(60, 1000.0, "sgd"), engine=engine).value for engine in ENGINES)
    np.testing.assert_allclose(fast, plain, atol=1e-4)


@pytest.mark.parametrize("gradient", ["exact", "sampled"])
@pytest.mark.parametrize("support", [Full(), TopK(30)], ids=repr)
def test_overflown_logits_read_nan_and_leave_their_neighbours_alone(gradient: str, support: Any) -> None:
    """A rate of 1e300 is no float32. Nothing of such a run may look like a number, an entropy of 0 least of all."""
    instances = [token_tree(rng(s), actions=300, optimal=2, horizon=2) for s in range(2)]
    options: dict[str, Any] = {"support": support, "controller": Constant(0.05)}
    both = train(instances, Learner(4, np.array([1e300, 1.0]), "sgd", gradient, record_every=1), **options)
    alone = train(instances[1:], Learner(4, 1.0, "sgd", gradient, record_every=1), seeds=[1], **options)
    for name in ("value", "full_entropy", "support_entropy"):
        overflown, sound = getattr(both, name).T
        assert np.isfinite(overflown[0])
        assert np.isnan(overflown[1:]).all()
        np.testing.assert_array_equal(sound, getattr(alone, name)[:, 0])


def test_float32_stays_close_to_float64() -> None:
    instances = [token_tree(rng(s), actions=2000, optimal=3) for s in range(3)]
    learner = Learner(200, 5.0, "sgd", "exact")
    runs = [
        train(instances, learner, support=TopK(100), controller=Constant(0.05), dtype=d)
        for d in (np.float32, np.float64)
    ]
    np.testing.assert_allclose(runs[0].value, runs[1].value, atol=2e-4)


def test_any_support_rule_works_on_the_reference_engine() -> None:
    instances = [token_tree(rng(0), actions=50, optimal=1)]
    history = train(instances, Learner(5, 0.1), support=Nucleus(0.8), controller=Constant(0.1))
    assert (history.support_entropy < history.full_entropy).all()
    with pytest.raises(ValueError, match="reference"):
        train(instances, Learner(5, 0.1), support=Nucleus(0.8), engine="fused")


def test_every_twentieth_step_is_recorded_and_the_last() -> None:
    instances = [token_tree(rng(0), actions=50, optimal=1)]
    assert train(instances, Learner(45, 0.1)).step.tolist() == [0, 20, 40, 45]
    assert train(instances, Learner(6, 0.1, record_every=3)).step.tolist() == [0, 3, 6]


def test_runs_do_not_depend_on_chunks_neighbours_or_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    instances = [token_tree(rng(s), actions=300, optimal=1) for s in range(4)]
    coefficients = np.array([0.0, 0.1, 0.2, 0.3])
    learner = Learner(30, np.array([0.01, 0.02, 0.03, 0.04]))
    whole = train(instances, learner, controller=Constant(coefficients), seeds=[5, 6, 7, 8])
    monkeypatch.setattr(learners, "CACHE_BYTES", 1)
    parts = train(instances, learner, controller=Constant(coefficients), seeds=[5, 6, 7, 8], n_jobs=2)
    alone = train(instances[2:3], Learner(30, 0.03), controller=Constant(0.2), seeds=[7])
    np.testing.assert_array_equal(whole.value, parts.value)
    np.testing.assert_array_equal(whole.logits[2], alone.logits[0])


# -------------------------------------------------------------------------------------------------------- optimisers


@pytest.mark.parametrize("engine", ["fused", "reference"])
@pytest.mark.parametrize("parametrisation", ["tabular", "loglinear"])
def test_adam_is_the_published_recurrence(engine: str, parametrisation: str) -> None:
    """Kingma and Ba (2015) written out: beta .9, .999 and epsilon 1e-8, with gradients as small as epsilon."""
    reward, prior, steps, rate = 2e-7 * np.array([0.0, 1.0, 0.4]), np.array([0.3, -0.5, 0.1]), 40, 0.2
    mdp = TokenMDP(np.ones(1), np.zeros((1, 3, 1)), reward[None], np.arange(3)[None])
    instance = Instance(mdp, prior[None], np.ones((1, 3), bool), optimum(mdp))
    rows = np.eye(3)
    if parametrisation == "loglinear":
        features = np.random.default_rng([2, 3]).standard_normal((2, 3), dtype=np.float32)
        rows = np.concatenate([prior[None], features])  # logits = theta @ rows, from theta = (1, 0, 0)
    theta = prior.copy() if parametrisation == "tabular" else np.eye(3)[0]
    m, v = np.zeros(3), np.zeros(3)
    for t in range(1, steps + 1):
        p = np.exp(theta @ rows) / np.exp(theta @ rows).sum()
        g = rows @ (p * (reward - p @ reward))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta = theta + rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    learner = Learner(steps, rate, "adam", "exact", parametrisation, features=2)
    found = train([instance], learner, engine=engine, dtype=np.float64).logits[0, 0]
    np.testing.assert_allclose(found, theta @ rows, rtol=1e-7)


# ------------------------------------------------------------------------------------------------------------ lumps


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("support", [Full(), DropLowest(0.4), TopK(7)])
def test_lumps_follow_the_path_of_their_tokens(optimiser: str, support: object) -> None:
    """Equal prior logits stay equal under exact gradients: the lumped run is the full run, ties and all.

    A cut needs states without dead tokens: an optimal token on a lost prefix ties with a lump of its own, one unit in
    the last place (which depends on the processor's vector length) breaks that tie, and the cut then tells them apart.
    """
    build: Any = token_tree if support == Full() else units
    options = {
        "actions": 400,
        "optimal": 3,
        "prior": "uniform",
        **({"horizon": 2} if support == Full() else {"count": 2}),
    }
    full, lumped = build(rng(0), **options), build(rng(0), **options, bins=5)
    learner = Learner(60, {"sgd": 30.0, "adam": 0.05}[optimiser], optimiser, "exact")
    both = [train([i], learner, support=support, controller=Constant(0.03), dtype=np.float64) for i in (full, lumped)]
    for name in ("value", "full_entropy", "support_entropy"):
        np.testing.assert_allclose(*(getattr(history, name) for history in both), atol=1e-9)


def test_quantile_bins_approximate_the_full_run() -> None:
    """The measured error of 64 bins; 4 bins are worse (the negative control)."""
    full = token_tree(rng(3), actions=3000, optimal=2)
    learner = Learner(300, 20.0, "sgd", "exact")
    values = [
        train([i], learner, support=DropLowest(0.4), controller=Constant(0.06), dtype=np.float64).full_entropy[:, 0]
        for i in (full, lump(full, 64), lump(full, 2))
    ]
    fine, coarse = (np.abs(values[0] - v).max() for v in values[1:])
    assert fine < 0.01
    assert coarse > 3 * fine


def test_training_ends_at_the_regularised_optimum() -> None:
    """Mass on n optima at the maximum of V + lambda H~, k kept: n e^{1/lambda} / (n e^{1/lambda} + k - n)."""
    odds = 5 * math.exp(1 / 0.2)
    for prior, support, kept in (("uniform", Full(), 1000), ("plausible", TopK(100), 100)):
        instance = token_tree(rng(0), actions=1000, optimal=5, decoys=0, prior=prior, bins=1)
        learner = Learner(20_000, 10.0, "sgd", "exact", record_every=20_000)
        history = train([instance], learner, support=support, controller=Constant(0.2), dtype=np.float64)
        assert history.value[-1, 0] == pytest.approx(odds / (odds + kept - 5), abs=2e-3)


def test_a_clamp_far_inside_a_flat_policy_is_a_trap() -> None:
    """With 90% of a *uniform* policy cut off, the bonus of the few kept tokens outweighs the policy gradient.

    At p = 1/A the policy gradient on an optimum is p, the bonus on it -lambda d/k for a lead d in logits (k kept): they
    balance at d = k / (lambda A), here 0.5, and training stays there. Full entropy has d = 1 / lambda and goes through.
    """
    instance = token_tree(rng(0), actions=1000, optimal=5, decoys=0, prior="uniform", bins=1)
    learner = Learner(5000, 10.0, "sgd", "exact")
    history = train([instance], learner, support=TopK(100), controller=Constant(0.2), dtype=np.float64)
    assert history.value[-1, 0] < 0.02
    lead = history.logits[0, 0].max() - history.logits[0, 0].min()
    assert lead == pytest.approx(0.5, abs=0.1)


# ------------------------------------------------------------------------------------------------------- the kernels


@settings(max_examples=150)
@given(
    st.lists(
        st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.25, 0.25000003, 2.0, 7.0]) | st.floats(-5, 5, width=32),
        min_size=2,
        max_size=60,
    ),
    st.data(),
)
def test_cut_is_exact_from_any_first_guess(row: list[float], data: st.DataObject) -> None:
    z = np.array(row, dtype=np.float32)
    kept = data.draw(st.integers(1, len(z) - 1))
    anchor = data.draw(st.integers(0, len(z) - 1))
    density = data.draw(st.floats(1e-2, 1e6))
    threshold, places, share, _, _ = kernels._cut(z, None, float(kept), anchor, density)
    weights = np.where(z > threshold, 1.0, np.where(z == threshold, share, 0.0))
    np.testing.assert_allclose(weights, support_weights(z.astype(np.float64), TopK(kept)), atol=1e-6)
    assert places == pytest.approx(kept - (z > threshold).sum())


def test_cut_among_neighbouring_floats() -> None:
    """One token on top, eight one float below it, one a float below these: of eight places seven go to the eight."""
    middle = np.nextafter(np.float32(1.0), np.float32(2.0))
    z = np.array([1.0, *[middle] * 8, np.nextafter(middle, np.float32(2.0))], dtype=np.float32)
    threshold, places, share, _, _ = kernels._cut(z, None, 8.0, 0, 2.0**23)
    assert (threshold, places, share) == (middle, 7.0, 7 / 8)


def test_row_statistics_in_float32() -> None:
    z = rng(0).normal(0, 3, 100_000).astype(np.float32)
    odds, sums, out = np.empty_like(z), np.empty(200), np.zeros(kernels.STATISTICS)
    kernels._row_statistics(z, odds, sums[: -(-len(z) // kernels.BLOCK)], None, z[0], 0.0, False, out)
    np.testing.assert_allclose(odds, np.exp(z.astype(np.float64)), rtol=2e-7)
    assert out[kernels.ENTROPY] == pytest.approx(entropy(z.astype(np.float64)), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("moved", [-1e4, -100.0, -88.5, -40.0, 0.0, 40.0, 88.5, 89.0, 100.0, 200.0, 1e4])
def test_row_statistics_do_not_depend_on_how_far_the_logits_moved(dtype: Any, moved: float) -> None:
    """One token of 1300 by 12 above the others, all moved by the same: statistics but the shift are the old ones.

    With a = e^12 and b = 1299: entropy log(a + b) - 12 a / (a + b).
    """
    z = np.full(1300, moved, dtype)
    z[700] += 12.0
    odds, sums, out = np.empty_like(z), np.empty(3), np.zeros(kernels.STATISTICS)
    shift = kernels._row_statistics(z, odds, sums, None, z[0], 0.0, False, out)
    a, b = math.exp(12), 1299
    assert out[kernels.ENTROPY] == pytest.approx(math.log(a + b) - 12 * a / (a + b), abs=2e-5)
    assert out[kernels.SHIFT] == pytest.approx(moved + math.log(a + b), rel=1e-6)
    assert shift + out[kernels.LOG_TOTAL] == pytest.approx(moved + math.log(a + b), rel=1e-6)
    np.testing.assert_allclose(odds[700] * math.exp(-out[kernels.LOG_TOTAL]), a / (a + b), rtol=1e-5)
    np.testing.assert_allclose(sums.sum() * math.exp(-out[kernels.LOG_TOTAL]), 1.0, rtol=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_row_statistics_of_logits_that_are_not_finite_are_nan(wrong: float) -> None:
    z = rng(0).normal(size=1300).astype(np.float32)
    z[700] = wrong
    odds, sums, out = np.empty_like(z), np.empty(3), np.zeros(kernels.STATISTICS)
    kernels._row_statistics(z, odds, sums, None, z[0], 0.0, False, out)
    assert all(np.isnan(array).all() for array in (odds, sums, out))


def test_draws_follow_the_policy() -> None:
    """Chi-square of 20,000 inversions on 5 tokens over three blocks, against a wrong policy as negative control."""
    odds = np.zeros(3 * kernels.BLOCK)
    places = [0, 100, kernels.BLOCK, 2 * kernels.BLOCK + 1, 3 * kernels.BLOCK - 1]
    odds[places] = p = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    sums = odds.reshape(3, -1).sum(-1)
    drawn = np.array([kernels._draw(odds, sums, u) for u in rng(0).random(20_000)])
    counts = np.array([(drawn == place).sum() for place in places])
    assert counts.sum() == 20_000
    chi = lambda q: float(((counts - 20_000 * q) ** 2 / (20_000 * q)).sum())  # noqa: E731
    assert chi(p) < 18.5  # the 99.9% point at 4 degrees of freedom
    assert chi(np.full(5, 0.2)) > 100


def test_a_draw_never_finds_a_token_of_probability_zero() -> None:
    """Also at the ends of [0, 1) and at the edge of a block, where the sum so far equals the uniform to the bit."""
    odds = np.zeros(3 * kernels.BLOCK)
    odds[[kernels.BLOCK + 3, 2 * kernels.BLOCK + 5]] = 0.5
    sums = odds.reshape(3, -1).sum(-1)
    for u, place in ((0.0, kernels.BLOCK + 3), (0.25, kernels.BLOCK + 3), (0.5, 2 * kernels.BLOCK + 5)):
        assert kernels._draw(odds, sums, u) == place
    assert kernels._draw(odds, sums, 1 - 2**-53) == 2 * kernels.BLOCK + 5
    short = np.array([0.25, 0.75])  # less than a block: its last token is the last of all
    assert [kernels._draw(short, np.ones(1), u) for u in (0.0, 0.2499, 0.25, 1 - 2**-53)] == [0, 0, 1, 1]
    assert kernels._draw(short, np.full(1, 1.001), 1 - 2**-53) == 1  # a block's sum in float32 may be rounded upwards
    odds[:] = 0.0
    odds[[kernels.BLOCK - 1, kernels.BLOCK + 5]] = 0.5
    assert kernels._draw(odds, np.array([0.5005, 0.5, 0.0]), 0.5) == kernels.BLOCK - 1  # and the draw stays in it


# ------------------------------------------------------------------------------------------ controllers on a toy MDP


CONTROLLERS = {
    "Band": (Band(0.01, 0.9, 1.1, 0.01, 0.001, 0.5), (0.9, 1.1)),
    "BangBang": (BangBang(target=1.0, step_size=2e-3, maximum=0.5), (0.85, 1.15)),
    "Anchored": (Anchored(step_size=0.01, maximum=0.5, ratio=0.25), None),
    "ProportionalIntegral": (ProportionalIntegral(1.0, 0.2, 0.005, minimum=0.0, maximum=0.5), (0.95, 1.05)),
    "Dual": (Dual(1.0, 0.05, 0.02, 1e-4, 0.5), (0.9, 1.1)),
}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_controllers_hold_the_entropy_of_a_learning_policy(name: str) -> None:
    """Closed loop on a bandit whose policy would collapse: the target is reached and kept, inside the box."""
    controller, target = CONTROLLERS[name]
    instance = token_tree(rng(0), actions=1000, optimal=2, bins=64)
    learner = Learner(3000, 5.0, "sgd", "exact", record_every=50)
    history = train([instance], learner, support=TopK(100), controller=controller, dtype=np.float64)
    free = train([instance], learner, support=TopK(100), dtype=np.float64)
    if target is None:
        anchor = history.support_entropy[0, 0]
        target = (0.25 * anchor - 0.1, 0.25 * anchor + 0.1)
    assert free.support_entropy[-1, 0] < 0.1  # negative control: uncontrolled, it collapses
    tail = history.support_entropy[-10:, 0]
    assert target[0] - 0.05 <= tail.mean() <= target[1] + 0.05
    assert history.coefficient.min() >= 0
    assert history.coefficient.max() <= 0.5


def test_open_loop_rules_do_what_they_say() -> None:
    instance = token_tree(rng(0), actions=1000, optimal=2, bins=64)
    learner = Learner(100, 5.0, "sgd", "exact", record_every=50)
    history = train([instance], learner, controller=Schedule(0.2, 0.0, 100), dtype=np.float64)
    np.testing.assert_allclose(history.coefficient[:, 0], [0.2, 0.1, 0.0], atol=1e-12)


def test_a_controller_that_starts_at_zero_wakes_up() -> None:
    instance = token_tree(rng(0), actions=1000, optimal=2, bins=64)
    rule = Band(0.0, 1.0, 1.2, 0.01, 0.0, 0.5)
    history = train(
        [instance], Learner(3000, 5.0, "sgd", "exact"), support=TopK(100), controller=rule, dtype=np.float64
    )
    assert history.coefficient[0, 0] == 0
    assert history.support_entropy[-1, 0] > 0.95


def test_a_misset_full_bonus_floods_the_tail_and_a_clamped_one_cannot() -> None:
    instances = [token_tree(rng(s), actions=10_000, optimal=1) for s in range(3)]
    full, kept = (
        train(instances, Learner(600, 0.05), support=support, controller=Constant(0.3))
        for support in (Full(), TopK(100))
    )
    assert full.full_entropy[-1].min() > 6
    assert kept.full_entropy[-1].max() < 5


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimiser": "lion"}, "sgd, adam"),
        ({"gradient": "reinforce"}, "sampled, exact"),
        ({"parametrisation": "linear"}, "tabular, loglinear"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 2.5}, r"steps=2\.5.*whole number"),
        ({"steps": float("nan")}, "steps=nan.*whole number"),
        ({"steps": "10"}, "steps='10'.*whole number"),
        ({"updates": True}, "updates=True.*whole number"),
        ({"record_every": -1}, "record_every=-1.*at least 1"),
        ({"group_size": 0}, "group_size=0.*at least 1"),
        ({"learning_rate": 0.0}, "positive"),
        ({"learning_rate": float("inf")}, "finite"),
        ({"learning_rate": np.array([0.1, np.nan])}, "finite"),
        ({"learning_rate": "0.1"}, "finite"),
        ({"learning_rate": None}, "finite"),
        ({"group_size": 1}, "group_size >= 2"),
        ({"updates": 2, "gradient": "exact"}, "updates > 1 reuse a sample"),
    ],
)
def test_learner_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Learner(**{"steps": 10, "learning_rate": 0.1, **options})
    assert Learner(10, 0.1, updates=2).gradient == "sampled"


def test_train_refuses() -> None:
    small, other = token_tree(rng(0), actions=50, optimal=1), token_tree(rng(0), actions=50, optimal=1, horizon=2)
    lumped = token_tree(rng(0), actions=1000, optimal=1, bins=5)
    learner = Learner(2, 0.1)
    paid = replace(small, mdp=replace(small.mdp, reward=small.mdp.reward + 0.5))
    ends = replace(other, mdp=replace(other.mdp, transition=0 * other.mdp.transition))
    impossible = replace(small, prior=np.where(np.arange(50) == 3, -np.inf, small.prior))
    for call, message in (
        (lambda: train([impossible], learner), "prior logits must be finite"),
        (lambda: train([], learner), "no instance"),
        (lambda: train([small], learner, seeds=[1, 2]), "one seed per run"),
        (lambda: train([small, other], learner), "one family"),
        (lambda: train([small, paid], learner), "one family"),
        (lambda: train([other, ends], learner), "one family"),
        (lambda: train([small], learner, engine="cuda"), "engine"),
        (lambda: train([small], learner, controller=Constant(np.zeros(3))), "one per run"),
        (lambda: train([lumped], learner), "gradient='exact'"),
        (lambda: train([lumped], Learner(2, 0.1, gradient="exact"), engine="reference"), "fused"),
        (lambda: train([lumped], Learner(2, 0.1, gradient="exact", parametrisation="loglinear")), "tabular"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="give a list of instances"):
        train(small, learner)  # type: ignore[arg-type]


_DIGEST = """
import hashlib, numpy as np
from toymdp.families import token_tree
from toymdp.training.learners import train
from toymdp.training.config import Learner
runs = [token_tree(np.random.default_rng(s), actions=300, optimal=1) for s in range(2)]
print(hashlib.sha256(train(runs, Learner(30, 0.03)).logits.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_freshly_compiled_and_cached_kernels_give_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    digests = [
        subprocess.run(
            [sys.executable, "-c", _DIGEST], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert any(tmp_path.rglob("*.nbc"))
    assert digests[0] == digests[1]


def _gradient_at_distance(gap: int) -> np.ndarray:
    """The gradient of one tiny row, written ``gap`` bytes behind the end of its logits."""
    instance = token_tree(rng(5), actions=20, optimal=1)
    mdp, row = instance.mdp, instance.prior.size * 4
    memory = np.zeros(2 * row + gap, np.uint8)
    z = memory[:row].view(np.float32).reshape(1, *instance.prior.shape)
    out = memory[row + gap :].view(np.float32).reshape(z.shape)
    z[0] = instance.prior
    statistics = np.zeros((1, mdp.states, kernels.STATISTICS))
    statistics[..., kernels.SHIFT] = z.max(-1)
    uniforms, normals = Randoms(mdp, Learner(1, 0.1), [3]).at(0)
    one, none = np.full(1, 0.3), np.empty((1, mdp.states, 0), np.float32)
    kernels.step_runs(
        z, none, none, out, statistics, np.zeros((1, mdp.states), np.int64), np.ones((1, mdp.states)),
        *Skeletons([instance]).arrays, mdp.start, mdp.transition, mdp.reward, mdp.reward_noise, float(mdp.actions),
        one, one, 0, uniforms, normals, 16, False, False, True, np.empty(1), np.empty(1), np.empty(1),
    )  # fmt: skip
    return out.copy()


def test_where_arrays_lie_in_memory_does_not_change_a_bit() -> None:
    """Adjacent tiny arrays made compiled loops take their scalar path: the last bit then depended on the heap."""
    far = _gradient_at_distance(1 << 20)
    np.testing.assert_array_equal(_gradient_at_distance(kernels.SPACING), far)
    np.testing.assert_allclose(_gradient_at_distance(0), far, atol=1e-7)
    arrays = Parameters(Learner(1, 0.1), [token_tree(rng(0), actions=20, optimal=1)], np.float32, 0.1)
    for array in (arrays.logits, arrays.first_moment, arrays.second_moment):
        assert array.base is not None
        assert array.base.nbytes >= array.nbytes + kernels.SPACING
