"""Exact quantities against enumeration of every response, closed forms over responses, and finite differences.

The enumeration walks token by token and transition by transition and knows nothing of classes or backward induction.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from toymdp.families import Instance, lump, random_mdp, random_tree, token_tree, units
from toymdp.mdp import (
    TokenMDP,
    class_mass,
    log_responses,
    optimum,
    policy_gradient,
    response_entropy,
    soft_optimum,
    softmax,
    state_entropy,
    state_values,
    value,
    visitation,
)


class Path(NamedTuple):
    """One way a response can go: its probability, its return, -sum log pi along it, its states and tokens."""

    probability: float
    reward: float
    surprise: float
    states: tuple[int, ...]
    tokens: tuple[int, ...]


def paths(mdp: TokenMDP, policy: np.ndarray) -> list[Path]:
    """Every path with positive probability; an entry with multiplicity m is walked once with m times its mass."""
    found = []
    copies = np.ones_like(policy) if mdp.multiplicity is None else mdp.multiplicity

    def walk(s: int, path: Path) -> None:
        if s == mdp.states:
            found.append(path)
            return
        for a in np.flatnonzero(policy[s]):
            c, p = mdp.labels[s, a], policy[s, a]
            onward = np.append(mdp.transition[s, c], 1 - mdp.transition[s, c].sum())
            for after in np.flatnonzero(onward > 1e-12):
                walk(
                    int(after),
                    Path(
                        path.probability * copies[s, a] * p * onward[after],
                        path.reward + mdp.reward[s, c],
                        path.surprise - math.log(p),
                        (*path.states, s),
                        (*path.tokens, int(a)),
                    ),
                )

    for s in np.flatnonzero(mdp.start):
        walk(int(s), Path(mdp.start[s], 0.0, 0.0, (), ()))
    return found


def enumerated(mdp: TokenMDP, logits: np.ndarray, coefficient: float = 0.0) -> float:
    """V_lambda by enumeration."""
    return sum(p.probability * (p.reward + coefficient * p.surprise) for p in paths(mdp, softmax(mdp, logits)))


def finite_differences(objective, point: np.ndarray, step: float = 1e-5) -> np.ndarray:
    slope = np.zeros_like(point)
    for index in np.ndindex(*point.shape):
        up, down = point.copy(), point.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (objective(up) - objective(down)) / (2 * step)
    return slope


SMALL = {
    "bandit": lambda rng: token_tree(rng, actions=6, optimal=2, decoys=1),
    "tree": lambda rng: token_tree(rng, actions=4, optimal=2, decoys=1, horizon=3, prior="gaussian"),
    "slip": lambda rng: token_tree(rng, actions=4, optimal=1, decoys=1, horizon=3, prior="gaussian", slip=0.2),
    "units": lambda rng: units(rng, actions=6, optimal=2, count=3, decoys=1),
    "lumped": lambda rng: token_tree(rng, actions=50, optimal=2, decoys=1, horizon=2, prior="gaussian", bins=3),
    "random tree": lambda rng: random_tree(rng, actions=3, horizon=3),
    "sparse tree": lambda rng: random_tree(rng, actions=3, horizon=3, sparse=True),
    "random mdp": lambda rng: random_mdp(rng, actions=3, horizon=3, width=2),
}


@pytest.fixture(params=SMALL)
def small(request) -> Instance:
    return SMALL[request.param](np.random.default_rng(3))


# ------------------------------------------------------------------------------------------ policies, by enumeration


def test_softmax_is_a_distribution_over_tokens_not_over_entries(small):
    policy = softmax(small.mdp, small.prior)
    copies = 1.0 if small.mdp.multiplicity is None else small.mdp.multiplicity
    np.testing.assert_allclose((policy * copies).sum(-1), 1.0)
    np.testing.assert_allclose(class_mass(small.mdp, policy).sum(-1), 1.0)
    np.testing.assert_allclose(np.diff(np.log(policy)), np.diff(small.prior), atol=1e-10)


def test_value_entropy_and_visits_equal_enumeration(small):
    mdp, policy = small.mdp, softmax(small.mdp, small.prior)
    walked = paths(mdp, policy)
    assert math.isclose(sum(p.probability for p in walked), 1.0)
    assert math.isclose(value(mdp, policy), sum(p.probability * p.reward for p in walked))
    assert math.isclose(response_entropy(mdp, policy), sum(p.probability * p.surprise for p in walked))
    visits = np.zeros(mdp.states)
    for p in walked:
        visits[list(p.states)] += p.probability
    np.testing.assert_allclose(visitation(mdp, policy), visits, atol=1e-12)
    assert math.isclose(visitation(mdp, policy).sum(), sum(p.probability * len(p.states) for p in walked))
    assert mdp.horizon == max(len(p.states) for p in walked)


def test_soft_value_is_value_plus_coefficient_times_entropy(small):
    policy = softmax(small.mdp, small.prior)
    expected = value(small.mdp, policy) + 0.37 * response_entropy(small.mdp, policy)
    assert math.isclose(value(small.mdp, policy, 0.37), expected)


@pytest.mark.parametrize("coefficient", [0.0, 0.4])
def test_state_values_are_values_from_that_state_on(small, coefficient):
    policy = softmax(small.mdp, small.prior)
    for s, expected in enumerate(state_values(small.mdp, policy, coefficient)):
        from_here = replace(small.mdp, start=np.eye(small.mdp.states)[s])
        assert math.isclose(expected, enumerated(from_here, small.prior, coefficient), abs_tol=1e-12)


def test_a_batch_of_policies_is_evaluated_one_by_one(small):
    logits = np.random.default_rng(0).normal(size=(2, 3, *small.prior.shape))
    for function in (value, response_entropy, state_entropy, visitation, class_mass, state_values):
        batched = function(small.mdp, softmax(small.mdp, logits))
        for index in np.ndindex(2, 3):
            np.testing.assert_allclose(batched[index], function(small.mdp, softmax(small.mdp, logits[index])))
    gradients = policy_gradient(small.mdp, logits, 0.1)
    np.testing.assert_allclose(gradients[1, 2], policy_gradient(small.mdp, logits[1, 2], 0.1))


@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_policy_gradient_equals_finite_differences_of_the_enumerated_objective(small, coefficient):
    mdp = small.mdp
    slope = finite_differences(lambda logits: enumerated(mdp, logits, coefficient), small.prior)
    copies = 1.0 if mdp.multiplicity is None else mdp.multiplicity
    # moving the logit of an entry moves all its m tokens at once, hence m times the derivative of one
    np.testing.assert_allclose(policy_gradient(mdp, small.prior, coefficient) * copies, slope, atol=2e-8)


def test_without_a_coefficient_there_is_no_bonus_and_no_noise_is_added(small):
    mdp, policy = small.mdp, softmax(small.mdp, small.prior)
    for function in (policy_gradient, state_values, value):
        argument = small.prior if function is policy_gradient else policy
        np.testing.assert_array_equal(function(mdp, argument), function(mdp, argument, 0.0))
    assert TokenMDP(mdp.start, mdp.transition, mdp.reward, mdp.labels).reward_noise == 0.0


def test_the_gradient_counts_the_entropy_still_to_come():
    """Negative control: the entropy of the present token alone gives a different gradient."""
    mdp, logits = (found := SMALL["tree"](np.random.default_rng(3))).mdp, found.prior
    first = np.eye(mdp.states)[0]
    local = finite_differences(lambda z: enumerated(mdp, z) + 0.3 * state_entropy(mdp, softmax(mdp, z)) @ first, logits)
    assert np.abs(policy_gradient(mdp, logits, 0.3) - local)[0].max() > 1e-3


def test_a_deterministic_policy_has_no_entropy_and_no_gradient():
    mdp = SMALL["tree"](np.random.default_rng(0)).mdp
    logits = np.where(np.arange(mdp.entries) == 1, 0.0, -np.inf) + np.zeros((mdp.states, 1))
    assert response_entropy(mdp, softmax(mdp, logits)) == 0
    assert not policy_gradient(mdp, logits, 0.5).any()


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    actions=st.integers(2, 3),
    horizon=st.integers(1, 3),
    width=st.integers(0, 2),
    coefficient=st.sampled_from([0.0, 0.05, 1.0]),
)
def test_random_instances_agree_with_enumeration(seed, actions, horizon, width, coefficient):
    rng = np.random.default_rng(seed)
    if width:
        found = random_mdp(rng, actions=actions, horizon=horizon, width=width)
    else:
        found = random_tree(rng, actions=actions, horizon=horizon, sparse=bool(seed % 2))
    policy = softmax(found.mdp, found.prior)
    exact = value(found.mdp, policy, coefficient)
    assert math.isclose(exact, enumerated(found.mdp, found.prior, coefficient), abs_tol=1e-12)
    assert -1e-12 <= value(found.mdp, policy) <= found.optimum.value + 1e-12 <= 1 + 2e-12
    assert response_entropy(found.mdp, policy) <= log_responses(found.mdp) + 1e-9
    gradient = policy_gradient(found.mdp, found.prior, coefficient)
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-12)  # a shift of all logits changes nothing
    direction = rng.normal(size=found.prior.shape)
    slope = finite_differences(lambda t: enumerated(found.mdp, found.prior + t * direction, coefficient), np.zeros(()))
    assert math.isclose((gradient * direction).sum(), slope, rel_tol=1e-5, abs_tol=1e-8)


# ------------------------------------------------------------------------------------------------------------- optima


DETERMINISTIC = ("bandit", "tree", "random tree", "sparse tree")


def responses(mdp: TokenMDP) -> dict[tuple[int, ...], float]:
    """Return of every response of a deterministic MDP."""
    everything = np.full(mdp.labels.shape, 1 / mdp.entries)
    return {p.tokens: p.reward for p in paths(mdp, everything)}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_optimum_is_the_best_response_and_counts_the_best_ones(name):
    found = SMALL[name](np.random.default_rng(5))
    returns = np.array(list(responses(found.mdp).values()))
    best = found.optimum
    assert math.isclose(best.value, returns.max())
    assert math.isclose(best.log_responses, math.log((returns > returns.max() - 1e-9).sum()), abs_tol=1e-12)
    assert math.isclose(log_responses(found.mdp), math.log(len(returns)))


@pytest.mark.parametrize("name", ["slip", "units", "random mdp"])
def test_stochastic_optimum_is_the_best_deterministic_policy(name):
    mdp = SMALL[name](np.random.default_rng(5)).mdp
    best = -math.inf
    choices = [np.unique(mdp.labels[s], return_index=True)[1] for s in range(mdp.states)]  # one token per class
    for chosen in np.stack(np.meshgrid(*choices, indexing="ij"), -1).reshape(-1, mdp.states):
        policy = np.zeros(mdp.labels.shape)
        policy[np.arange(mdp.states), chosen] = 1.0
        best = max(best, sum(p.probability * p.reward for p in paths(mdp, policy)))
    assert math.isclose(optimum(mdp).value, best)


@pytest.mark.parametrize("name", SMALL)
def test_log_responses_is_the_largest_entropy_of_an_optimal_policy(name):
    """As lambda falls to 0 the soft optimum becomes the optimal policy of largest entropy."""
    found = SMALL[name](np.random.default_rng(7))
    cold = soft_optimum(found.mdp, 1e-5)
    assert math.isclose(cold.value, found.optimum.value, abs_tol=1e-6)
    assert math.isclose(cold.entropy, found.optimum.log_responses, abs_tol=1e-6)
    hot = soft_optimum(found.mdp, 1e7)
    assert math.isclose(hot.entropy, log_responses(found.mdp), abs_tol=1e-5)


def test_a_tie_below_the_tolerance_counts_and_a_gap_above_it_does_not():
    mdp = random_tree(np.random.default_rng(0), actions=3, horizon=1).mdp
    tie = replace(mdp, reward=np.array([[1.0, 1.0, 0.0]]))
    assert optimum(tie).log_responses == pytest.approx(math.log(2))
    assert optimum(replace(mdp, reward=np.array([[1.0, 1.0 - 1e-9, 0.0]]))).log_responses == pytest.approx(0, abs=1e-12)


def test_a_class_without_tokens_cannot_be_optimal():
    """The best class exists in the skeleton only: no token of the state has it."""
    mdp = replace(random_tree(np.random.default_rng(0), actions=3, horizon=1).mdp, labels=np.array([[0, 0, 2]]))
    best = optimum(replace(mdp, reward=np.array([[0.2, 1.0, 0.1]])))
    assert best.value == pytest.approx(0.2)
    assert best.log_responses == pytest.approx(math.log(2))
    assert soft_optimum(replace(mdp, reward=np.array([[0.2, 1.0, 0.1]])), 0.01).value == pytest.approx(0.2, abs=1e-4)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("coefficient", [0.05, 0.3, 2.0])
def test_soft_optimum_is_the_gibbs_distribution_over_responses(name, coefficient):
    """Deterministic: max V_lambda = lambda log sum_tau e^{R(tau) / lambda}, reached by p(tau) ~ e^{R(tau) / lambda}."""
    mdp = SMALL[name](np.random.default_rng(5)).mdp
    returns = np.array(list(responses(mdp).values()))
    odds = np.exp((returns - returns.max()) / coefficient)
    gibbs = odds / odds.sum()
    soft = soft_optimum(mdp, coefficient)
    assert math.isclose(soft.soft_value, returns.max() + coefficient * math.log(odds.sum()))
    assert math.isclose(soft.value, gibbs @ returns, abs_tol=1e-12)
    assert math.isclose(soft.entropy, -gibbs @ np.log(gibbs), abs_tol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_soft_optimum_is_stationary_attained_and_not_beaten(name):
    found = SMALL[name](np.random.default_rng(5))
    mdp, rng = found.mdp, np.random.default_rng(1)
    soft = soft_optimum(mdp, 0.3)
    policy = soft.policy(mdp)
    assert math.isclose(value(mdp, policy, 0.3), soft.soft_value)
    assert math.isclose(value(mdp, policy), soft.value)
    assert math.isclose(response_entropy(mdp, policy), soft.entropy)
    assert np.abs(policy_gradient(mdp, np.log(policy), 0.3)).max() < 1e-12
    others = softmax(mdp, np.log(policy) + rng.normal(size=(200, 1, 1)) * rng.normal(size=(200, *policy.shape)))
    assert value(mdp, others, 0.3).max() < soft.soft_value


@pytest.mark.parametrize("name", ["tree", "slip", "random mdp"])
def test_clamped_optimum_is_the_best_policy_on_the_kept_tokens(name):
    """Against a numerical optimiser that can only use the kept tokens."""
    mdp = SMALL[name](np.random.default_rng(5)).mdp
    kept = np.ones(mdp.labels.shape, bool)
    kept[:, 0] = False  # one token fewer in every state
    sizes = np.stack([[(kept[s] & (mdp.labels[s] == c)).sum() for c in range(mdp.classes)] for s in range(mdp.states)])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        logits = np.full(kept.shape, -np.inf)
        logits[kept] = flat
        gradient = policy_gradient(mdp, logits, 0.2)
        return -value(mdp, softmax(mdp, logits), 0.2), -gradient[kept]

    found = minimize(loss, np.zeros(kept.sum()), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
    clamped = soft_optimum(mdp, 0.2, kept_sizes=sizes.astype(float))
    assert math.isclose(clamped.soft_value, -found.fun, abs_tol=1e-9)
    assert clamped.soft_value < soft_optimum(mdp, 0.2).soft_value - 1e-4  # negative control: the full one is better


def test_clamping_the_optimum_away_loses_it():
    mdp = token_tree(np.random.default_rng(0), actions=200, optimal=1, decoys=2).mdp
    without = mdp.class_sizes.copy()
    without[0, 1] = 0
    assert soft_optimum(mdp, 0.01, kept_sizes=without).value == pytest.approx(0.5, abs=1e-6)
    assert soft_optimum(mdp, 0.01).value == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("coefficient", [0.0, -1.0, math.inf, math.nan])
def test_soft_optimum_refuses_coefficients_without_an_optimum(coefficient):
    mdp = SMALL["bandit"](np.random.default_rng(0)).mdp
    with pytest.raises(ValueError, match="lambda > 0"):
        soft_optimum(mdp, coefficient)


def test_soft_optimum_refuses_impossible_supports():
    mdp = SMALL["bandit"](np.random.default_rng(0)).mdp
    one_more, less_than_none = mdp.class_sizes + np.eye(3)[2], np.array([[3, 2, -1]])
    for sizes in (mdp.class_sizes + 1, one_more, mdp.class_sizes * 0, -mdp.class_sizes, less_than_none):
        with pytest.raises(ValueError, match="at least one token per state"):
            soft_optimum(mdp, 0.1, kept_sizes=sizes.astype(float))


# ------------------------------------------------------------------------------------------------------------- lumped


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_lumped_equals_full_where_merged_tokens_are_equal(slip):
    rng = np.random.default_rng(0)
    full = token_tree(rng, actions=40, optimal=2, decoys=3, horizon=3, prior="uniform", slip=slip)
    few = lump(full, 2)
    assert few.mdp.entries < full.mdp.entries == few.mdp.actions
    here, there = softmax(full.mdp, full.prior), softmax(few.mdp, few.prior)
    for function in (value, response_entropy, state_entropy, visitation, class_mass):
        np.testing.assert_allclose(function(few.mdp, there), function(full.mdp, here), atol=1e-13)
    np.testing.assert_allclose(few.mdp.class_sizes, full.mdp.class_sizes)
    assert few.optimum.log_responses == pytest.approx(full.optimum.log_responses)
    assert soft_optimum(few.mdp, 0.2).soft_value == pytest.approx(soft_optimum(full.mdp, 0.2).soft_value)
    assert log_responses(few.mdp) == pytest.approx(log_responses(full.mdp))


def test_lumped_gradients_are_those_of_one_token_so_whole_trajectories_agree():
    full = token_tree(np.random.default_rng(0), actions=40, optimal=2, decoys=3, horizon=2, prior="uniform")
    few = lump(full, 1)
    here, there = full.prior.copy(), few.prior.copy()
    for _ in range(20):
        here += 5.0 * policy_gradient(full.mdp, here, 0.05)
        there += 5.0 * policy_gradient(few.mdp, there, 0.05)
    for s in range(full.mdp.states):
        for c in range(3):
            tokens = here[s, full.mdp.labels[s] == c]
            np.testing.assert_allclose(there[s, few.mdp.labels[s] == c], tokens[0] if tokens.size else 0, atol=1e-10)
    assert value(few.mdp, softmax(few.mdp, there)) == pytest.approx(value(full.mdp, softmax(full.mdp, here)))
    # negative control: without multiplicities the numbers are others
    wrong = replace(few.mdp, multiplicity=None)
    assert abs(value(wrong, softmax(wrong, few.prior)) - value(full.mdp, softmax(full.mdp, full.prior))) > 0.01


# --------------------------------------------------------------------------------------------------------- validation


def _changed(**changes) -> TokenMDP:
    return replace(SMALL["random mdp"](np.random.default_rng(0)).mdp, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": np.ones(5) / 5}, "shapes disagree"),
        ({"reward": np.zeros((6, 2))}, "shapes disagree"),
        ({"labels": np.zeros((5, 3), int)}, "shapes disagree"),
        ({"start": np.array([0.5, 0.4, 0, 0, 0, 0])}, "probability distribution"),
        ({"start": np.array([0.5, 0.6, 0, 0, 0, 0])}, "probability distribution"),
        ({"start": np.array([1.5, -0.5, 0, 0, 0, 0])}, "probability distribution"),
        ({"transition": np.full((6, 3, 6), 0.5)}, "at most 1"),
        ({"transition": -np.ones((6, 3, 6))}, ">= 0"),
        ({"transition": np.tile(np.eye(6)[:, None], (1, 3, 1))}, "sorted in time"),
        ({"labels": np.full((6, 3), 3)}, r"0\.\.2"),
        ({"labels": np.full((6, 3), -1)}, r"0\.\.2"),
        ({"labels": np.array([[0, 1, -1]] * 6)}, r"0\.\.2"),
        ({"labels": np.array([[0, 1, 3]] * 6)}, r"0\.\.2"),
        ({"multiplicity": np.ones((6, 2))}, "multiplicity"),
        ({"multiplicity": np.zeros((6, 3))}, "multiplicity"),
        ({"multiplicity": np.eye(6)[:, :3]}, "multiplicity"),
        ({"start": np.array([np.nan, 0.5, 0, 0, 0, 0])}, "start must be finite"),
        ({"transition": np.full((6, 3, 6), np.nan)}, "transition must be finite"),
        ({"reward": np.full((6, 3), np.nan)}, "reward must be finite"),
        ({"reward": np.where(np.eye(6)[:, :3] > 0, np.inf, 0.0)}, "reward must be finite"),
        ({"multiplicity": np.full((6, 3), np.nan)}, "multiplicity must be finite"),
        ({"reward_noise": math.nan}, "reward_noise must be finite"),
    ],
)
def test_a_malformed_mdp_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _changed(**changes)


def test_the_well_formed_one_is_accepted_and_knows_its_shape():
    mdp = _changed()
    assert (mdp.states, mdp.classes, mdp.entries, mdp.actions, mdp.horizon, mdp.deterministic) == (6, 3, 3, 3, 3, False)
    np.testing.assert_array_equal(mdp.depth, [0, 0, 1, 1, 2, 2])
    assert SMALL["tree"](np.random.default_rng(0)).mdp.deterministic
    assert not SMALL["slip"](np.random.default_rng(0)).mdp.deterministic
