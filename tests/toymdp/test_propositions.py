"""Checks hold, negative controls fail, a broken library is noticed, closed forms agree with independent derivations."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

from toymdp.families import lump, random_mdp, random_tree, token_tree
from toymdp.mdp import TokenMDP, optimum, policy_gradient, response_entropy, soft_optimum, softmax, value
from toymdp.theory import bounds, laws, propositions
from toymdp.theory.attacks import KINDS, Case, ascent, bandit, cases, maximise
from toymdp.theory.checks import Check, Sample, at_most, rows_of, worst_of

CONTROLS_PER_CLAIM = {"P1": 4, "P1b": 2, "P2": 5, "P2c": 2, "P3": 1, "P4": 1, "P5": 5}


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return propositions.verify("smoke", seed=1, progress=False)


@pytest.fixture(scope="module")
def sample() -> Sample:
    rng = np.random.default_rng(7)
    return Sample(list(cases(rng, 2)), rng, 2)


# ------------------------------------------------------------------------------------------------------ the suite


def test_every_claim_holds(checks: list[Check]) -> None:
    assert [c for c in checks if not c.negative_control and not c.holds] == []


def test_every_negative_control_fails(checks: list[Check]) -> None:
    assert [c for c in checks if c.negative_control and c.holds] == []


def test_every_claim_has_its_negative_controls(checks: list[Check]) -> None:
    counted = {claim: 0 for claim in CONTROLS_PER_CLAIM}
    for check in checks:
        counted[check.name.split()[0]] += check.negative_control
    assert all(counted[claim] >= least for claim, least in CONTROLS_PER_CLAIM.items()), counted
    assert len({c.name for c in checks}) == len(checks)


def test_checks_are_plain_finite_numbers(checks: list[Check]) -> None:
    for check in checks:
        assert np.isfinite([check.lhs, check.rhs, check.margin]).all(), check
        assert check.margin == pytest.approx(check.rhs - check.lhs)
        assert check.passed


def test_the_seed_decides_everything() -> None:
    sample = [list(cases(np.random.default_rng(3), 1)) for _ in range(2)]
    for one, other in zip(*sample, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
    assert [case.kind for case in sample[0]] == list(KINDS)


def test_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="smoke, default, full"):
        propositions.verify("huge", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_default_scale(seed: int) -> None:
    assert [c for c in propositions.verify(seed=seed, progress=False) if not c.passed] == []


# ------------------------------------------------------------------------------- a broken library must be noticed


def _failing(found: list[Check]) -> set[str]:
    return {check.name for check in found if not check.passed}


def test_a_constant_one_percent_too_small_is_noticed(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "GRADIENT_L2", 0.99 * bounds.GRADIENT_L2)
    assert {"P1 attacked", "P1 equality"} <= _failing(propositions.p1_gradient_bound(sample))


def test_a_wrong_gradient_is_noticed(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propositions, "policy_gradient", lambda *args: 0.5 * policy_gradient(*args))
    assert "P1b trees" in _failing(propositions.p1b_gap_bound(sample))
    assert "P1 equality" in _failing(propositions.p1_gradient_bound(sample))


def test_a_wrong_bias_is_noticed(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "published_bias", lambda *args: 0.0)
    assert {"P2 bias bound", "P2 tight as l -> 0"} <= _failing(propositions.p2_bias_bound(sample))


def test_a_wrong_worst_case_is_noticed(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = bounds.worst_case_bias
    monkeypatch.setattr(bounds, "worst_case_bias", lambda *args: 0.999 * exact(*args))
    assert {"P2 sharp bias", "P2 attacked"} <= _failing(propositions.p2_sharp_bias(sample))


def test_an_entropy_off_by_one_percent_is_noticed_by_the_covariance_law(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = laws.state_entropy
    monkeypatch.setattr(laws, "state_entropy", lambda mdp, policy: 1.01 * exact(mdp, policy))
    assert "P3 policy gradient" in _failing(laws.p3_covariance_law(sample))


def test_a_wrong_split_is_noticed(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = laws.entropy_split
    monkeypatch.setattr(laws, "entropy_split", lambda *args: exact(*args)._replace(tail=0 * exact(*args).tail))
    assert "P4 entropy split" in _failing(laws.p4_entropy_split(sample))


def test_a_comparison_with_nan_never_holds() -> None:
    assert not at_most("", "", math.nan, 1.0).holds
    assert not worst_of("", "", [("", np.array([0.0, math.nan]), np.array([1.0, 1.0]))]).holds


def test_the_worst_of_many_is_the_largest_ratio() -> None:
    rows = [("a", np.array([1.0, 3.0]), np.array([2.0, 4.0])), ("b", np.array([0.1]), np.array([0.11]))]
    found = worst_of("n", "s", rows)
    assert (found.lhs, found.rhs, found.holds) == (0.1, 0.11, True)
    assert found.detail == "lhs/rhs at most a 0.75, b 0.9091"
    assert not worst_of("n", "s", [*rows, ("c", np.array([2.0]), np.array([1.0]))]).holds


def test_rows_keep_trained_policies_apart(sample: Sample) -> None:
    case = sample.cases[0]
    random, trained = rows_of(case, np.arange(len(case.logits)), np.array(1.0))
    assert (random[0], trained[0]) == (case.kind, "trained")
    assert len(trained[1]) == case.trained == 12  # 2 starts, 3 moments, with and without the bonus
    assert len(random[1]) == 7  # prior, four spreads, two collapses


# --------------------------------------------------------------------------------------------------- P1, P1b by hand


def test_golden_constants() -> None:
    # sqrt(2)/(4 ln 2) = 1.41421356/2.77258872; 1/(2 ln 2) = 1/1.38629436
    np.testing.assert_allclose([bounds.GRADIENT_L2, bounds.GRADIENT_L1], [0.5100697233, 0.7213475204], atol=1e-10)


def test_the_two_lemmas_of_the_sharp_constant() -> None:
    m = np.linspace(1e-6, 1 - 1e-6, 100_001)
    binary_entropy = -m * np.log(m) - (1 - m) * np.log(1 - m)
    assert np.all(binary_entropy >= 4 * math.log(2) * m * (1 - m) - 1e-15)
    rng = np.random.default_rng(0)
    for policy in rng.dirichlet(np.full(5, 0.5), size=50):

        def size(reward: np.ndarray, policy: np.ndarray = policy) -> float:
            return float(np.linalg.norm(policy * (reward - policy @ reward)))

        vertices = max(size(np.array(corner)) for corner in itertools.product((0.0, 1.0), repeat=5))
        assert max(size(reward) for reward in rng.random((200, 5))) <= vertices
        masses = [policy[list(chosen)].sum() for k in range(6) for chosen in itertools.combinations(range(5), k)]
        assert vertices <= max(math.sqrt(2) * mass * (1 - mass) for mass in masses) + 1e-12


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(-5, 5)), min_size=2, max_size=8))
def test_sharp_bound_on_any_bandit(arms: list[tuple[float, float]]) -> None:
    logits, reward = np.array(arms).T
    mdp = bandit(reward)
    policy = softmax(mdp, logits[None])
    probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    gradient = probability * (reward - probability @ reward)  # written out, not the library's
    entropy = -(probability * np.log(probability)).sum()
    span = reward.max() - reward.min()
    assert bounds.value_span(mdp) == pytest.approx(span, abs=1e-12)
    assert np.linalg.norm(gradient) <= bounds.GRADIENT_L2 * span * entropy + 1e-12
    assert np.linalg.norm(gradient) <= span * float(bounds.mode_bound(mdp, policy)) + 1e-12


def test_mode_bound_is_reached_by_two_arms() -> None:
    for q in (0.5, 0.7, 0.99):
        mdp, logits = bandit(np.array([1.0, 0.0])), np.array([[math.log(q / (1 - q)), 0.0]])
        reached = bounds.norm(mdp, policy_gradient(mdp, logits))
        assert reached == pytest.approx(math.sqrt(2) * q * (1 - q))
        assert bounds.mode_bound(mdp, softmax(mdp, logits)) == pytest.approx(reached)


def test_span_of_a_tree_is_the_span_of_its_leaves_and_scales() -> None:
    instance = random_tree(np.random.default_rng(1), actions=3, horizon=3)
    leaves = instance.mdp.reward[-9:]
    assert bounds.value_span(instance.mdp) == pytest.approx(leaves.max() - leaves.min())
    assert bounds.value_span(replace(instance.mdp, reward=-10 * instance.mdp.reward)) == pytest.approx(
        10 * (leaves.max() - leaves.min())
    )


def test_span_ignores_states_that_nobody_visits() -> None:
    mdp = bandit(np.array([1.0, 0.0]))
    reward = np.array([[1.0, 0.0], [100.0, 0.0]])
    two = replace(
        mdp, start=np.array([1.0, 0.0]), transition=np.zeros((2, 2, 2)), reward=reward, labels=np.array([[0, 1]] * 2)
    )
    assert bounds.value_span(two) == 1.0


def test_norm_of_tiny_and_of_zero_gradients() -> None:
    mdp = bandit(np.array([1.0, 0.0]))
    assert bounds.norm(mdp, np.array([[3e-200, -4e-200]])) == pytest.approx(5e-200)
    assert bounds.norm(mdp, np.zeros((1, 2))) == 0.0


@pytest.mark.parametrize("order", [1, 2])
def test_norm_counts_every_token_of_a_lump(order: int) -> None:
    full = token_tree(np.random.default_rng(2), actions=50, optimal=2, decoys=0, prior="uniform")
    lumped = lump(full, 1)
    norms = [bounds.norm(i.mdp, policy_gradient(i.mdp, i.prior), order) for i in (full, lumped)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    assert norms[0] == pytest.approx(np.linalg.norm(policy_gradient(full.mdp, full.prior).ravel(), order), rel=1e-12)


def _responses(policy: np.ndarray, actions: int, horizon: int) -> dict[tuple[int, ...], list[float]]:
    """Every response of an unfolded tree with its prefix probabilities, by enumeration."""
    found = {}
    for tokens in itertools.product(range(actions), repeat=horizon):
        state, prefix = 0, []
        for token in tokens:
            prefix.append((prefix[-1] if prefix else 1.0) * float(policy[state, token]))
            state = state * actions + 1 + token
        found[tokens] = prefix
    return found


def test_response_probability_and_mismatch_by_enumeration() -> None:
    instance = random_tree(np.random.default_rng(4), actions=3, horizon=3)
    mdp, policy = instance.mdp, softmax(instance.mdp, instance.prior)
    leaves = mdp.reward[-9:].ravel()  # the leaf of tokens (a, b, c) is entry 9 a + 3 b + c
    best = tuple(int(digit) for digit in np.base_repr(int(leaves.argmax()), 3).zfill(3))
    prefixes = _responses(policy, 3, 3)
    allowed = bounds.optimal_entries(mdp, instance.optimum)
    assert bounds.response_probability(mdp, policy, allowed) == pytest.approx(prefixes[best][-1])
    likeliest = bounds.response_probability(mdp, policy, np.ones_like(allowed))
    assert likeliest == pytest.approx(max(prefix[-1] for prefix in prefixes.values()))
    expected = math.sqrt(sum(1 / p**2 for p in prefixes[best]))
    assert bounds.mismatch(mdp, instance.optimum, policy) == pytest.approx(expected)
    assert expected <= math.sqrt(3) / prefixes[best][-1]


def _ragged(rng: np.random.Generator) -> TokenMDP:
    """A deterministic MDP of 5 states whose responses have 1 to 5 tokens: any class may end the response."""
    states, classes = 5, 3
    transition = np.zeros((states, classes, states))
    for s, c in itertools.product(range(states - 1), range(classes)):
        if (after := int(rng.integers(s + 1, states + 1))) < states:
            transition[s, c, after] = 1.0
    labels = rng.integers(classes, size=(states, 4))
    return TokenMDP(np.eye(states)[0], transition, rng.random((states, classes)), labels)


def _all_responses(mdp: TokenMDP, policy: np.ndarray, allowed: np.ndarray) -> list[tuple[float, int]]:
    """Probability and length of every response of allowed tokens, walked token by token."""
    found, open_ = [], [(0, 1.0, 0)]
    while open_:
        s, probability, length = open_.pop()
        for a in np.flatnonzero(allowed[s]):
            after = np.flatnonzero(mdp.transition[s, mdp.labels[s, a]])
            here = (probability * float(policy[s, a]), length + 1)
            found += [] if len(after) else [here]
            open_ += [(int(after[0]), *here)] if len(after) else []
    return found


def test_response_probability_where_responses_end_early_by_enumeration() -> None:
    rng = np.random.default_rng(6)
    lengths = set()
    for _ in range(60):
        mdp = _ragged(rng)
        policy = softmax(mdp, 2 * rng.standard_normal((2, *mdp.labels.shape)))
        allowed = rng.random(mdp.labels.shape) < 0.7
        walked = [_all_responses(mdp, own, allowed) for own in policy]
        expected = [max((p for p, _ in one), default=0.0) for one in walked]
        np.testing.assert_allclose(bounds.response_probability(mdp, policy, allowed), expected, rtol=1e-12)
        lengths |= {max(one)[1] for one in walked if one}
    assert lengths >= {1, 2, 3}


def test_the_covariance_law_predicts_the_derivative_along_the_gradient_of_the_value() -> None:
    """sum_b dH(s)/dz_b dV/dz_b, both by finite differences, in states that are visited with different probability."""
    instance = random_tree(np.random.default_rng(8), actions=3, horizon=2)
    mdp, z = instance.mdp, instance.prior

    def slope(objective: Callable[[np.ndarray], Any], s: int, a: int) -> Any:
        step = 1e-5 * (np.arange(z.size).reshape(z.shape) == s * z.shape[1] + a)
        return (objective(z + step) - objective(z - step)) / 2e-5

    def odds(logits: np.ndarray) -> np.ndarray:
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def objective(logits: np.ndarray) -> float:  # V over the nine leaves, written out
        p = odds(logits)
        return float(sum(p[0, a] * p[1 + a] @ mdp.reward[1 + a] for a in range(3)))

    def entropies(logits: np.ndarray) -> np.ndarray:
        return -(odds(logits) * np.log(odds(logits))).sum(-1)

    law = sum(slope(entropies, s, a) * slope(objective, s, a) for s, a in itertools.product(range(4), range(3)))
    assert np.linalg.norm(law) > 1e-3
    span = mdp.reward[1:].max() - mdp.reward[1:].min()
    case = Case("tree", mdp, z[None], 0.1, 0)
    *errors, predicted = laws._law_errors(case, z, move="plain", predict="plain")
    assert predicted == pytest.approx(np.linalg.norm(law) / span, rel=1e-6)
    assert errors[-1] < 0.01 * predicted


def test_tokens_whose_returns_differ_by_rounding_are_all_optimal() -> None:
    """Whatever the size of the return: .1 + .2 - .3 is 6e-17, not 0."""
    for rewards, optimal in (
        ([0.0, 0.1 + 0.2 - 0.3, -1e-9], [True, True, False]),
        ([1e6 * (0.1 + 0.2), 3e5, 3e5 - 1e-3], [True, True, False]),
    ):
        mdp = TokenMDP(np.ones(1), np.zeros((1, 3, 1)), np.array([rewards]), np.arange(3)[None])
        assert bounds.optimal_entries(mdp, optimum(mdp)).tolist() == [optimal]


def test_the_gap_identity_behind_p1b() -> None:
    """V* - V = sum_t dV/dz(s_t*, a_t*) / P(a_0*..a_t*), the performance difference along the optimal response."""
    instance = random_tree(np.random.default_rng(5), actions=2, horizon=3)
    mdp, policy = instance.mdp, softmax(instance.mdp, instance.prior)
    gradient = policy_gradient(mdp, instance.prior)
    best = [int(digit) for digit in np.binary_repr(int(mdp.reward[-4:].ravel().argmax()), 3)]
    state, probability, total = 0, 1.0, 0.0
    for token in best:
        probability *= policy[state, token]
        total += gradient[state, token] / probability
        state = 2 * state + 1 + token
    assert total == pytest.approx(instance.optimum.value - value(mdp, policy))


def test_what_only_makes_sense_on_trees_says_so() -> None:
    instance = random_mdp(np.random.default_rng(0), actions=2, horizon=2, width=2)
    policy = softmax(instance.mdp, instance.prior)
    with pytest.raises(ValueError, match="mismatch"):
        bounds.response_probability(instance.mdp, policy, np.ones(policy.shape, bool))
    lumped = token_tree(np.random.default_rng(0), actions=50, optimal=1, decoys=0, prior="uniform", bins=1)
    with pytest.raises(ValueError, match="bins=None"):
        bounds.mismatch(lumped.mdp, lumped.optimum, softmax(lumped.mdp, lumped.prior))


# --------------------------------------------------------------------------------------------------------- P2 by hand


@pytest.mark.parametrize(("actions", "horizon", "optimal"), [(3, 1, 1), (4, 2, 1), (3, 3, 2), (5, 2, 2)])
def test_soft_gap_by_enumerating_responses(actions: int, horizon: int, optimal: int) -> None:
    for coefficient in (0.1, 0.5, 3.0):
        returns = np.array(
            [all(token < optimal for token in tokens) for tokens in itertools.product(range(actions), repeat=horizon)],
            dtype=float,
        )
        odds = np.exp(returns / coefficient)
        expected = 1 - (odds * returns).sum() / odds.sum()
        found = bounds.soft_gap(horizon * math.log(actions), horizon * math.log(optimal), coefficient)
        assert found == pytest.approx(expected, rel=1e-12)


def test_golden_transitions() -> None:
    # 1/log((A - n)/n): 1/log(99999) = .08686, 1/log(9999) = .10857; kept k = A - int(pA) of 1e5, n = 1
    kept = {0.0: 0.0869, 0.4: 0.0909, 0.9: 0.1086, 0.99: 0.1448, 0.999: 0.2176}
    for drop, expected in kept.items():
        assert bounds.critical_coefficient(math.log(1e5 * (1 - drop)), 0.0) == pytest.approx(expected, abs=5e-5)
    assert bounds.critical_coefficient(math.log(1e5), math.log(10)) == pytest.approx(0.1086, abs=5e-5)
    with pytest.raises(ValueError, match="half"):
        bounds.critical_coefficient(math.log(10), math.log(5))


def test_mass_of_the_published_fixed_point_table() -> None:
    # n e^{1/l} / (n e^{1/l} + k - n) at l = .1, |A| = 1e5: .768/.688/.524/.181 for n = 15/10/5/1
    for n, mass in ((15, 0.768), (10, 0.688), (5, 0.524), (1, 0.181)):
        assert 1 - bounds.soft_gap(math.log(1e5), math.log(n), 0.1) == pytest.approx(mass, abs=5e-4)


@pytest.mark.parametrize(
    ("actions", "n", "ratio"), [(100, 1, 0.57), (1000, 1, 0.64), (10**5, 1, 0.73), (10**5, 15, 0.68)]
)
def test_worst_case_bias_three_ways(actions: int, n: int, ratio: float) -> None:
    counts = math.log(actions), math.log(n)
    k = (actions - n) / n
    numeric = minimize_scalar(
        lambda x: -k * x * math.exp(-x) / (1 + k * math.exp(-x)), bounds=(0, 50), method="bounded"
    )
    found = bounds.worst_case_bias(*counts, 1.0)
    assert found == pytest.approx(float(lambertw(k / math.e).real), rel=1e-10)
    assert found == pytest.approx(-float(numeric.fun), rel=1e-8)
    assert bounds.worst_case_distance(*counts, 1.0) == pytest.approx(float(numeric.x), rel=1e-4)
    assert found / bounds.published_bias(*counts, 1.0) == pytest.approx(ratio, abs=6e-3)


def test_worst_case_neither_overflows_nor_needs_a_choice() -> None:
    # W(y) = log y - log log y + ... for 10^9 tokens and 1000 steps: y = e^20722
    assert bounds.worst_case_bias(1000 * math.log(1e9), 0.0, 1.0) == pytest.approx(
        20722.3 - math.log(20722.3), rel=1e-3
    )
    assert bounds.worst_case_bias(math.log(7), math.log(7), 1.0) == 0.0
    assert bounds.soft_gap(math.log(7), math.log(7), 1.0) == 0.0


@settings(max_examples=60)
@given(st.lists(st.floats(1e-3, 20), min_size=1, max_size=12), st.integers(1, 5))
def test_no_rewards_exceed_the_worst_case(distances: list[float], n: int) -> None:
    odds = np.exp(-np.array(distances))
    gap = float((odds * distances).sum() / (n + odds.sum()))  # coefficient 1, written out
    assert gap <= bounds.worst_case_bias(math.log(n + len(distances)), math.log(n), 1.0) * (1 + 1e-12)
    mdp = bandit(np.concatenate([np.zeros(n), -np.array(distances)]))
    assert -soft_optimum(mdp, 1.0).value == pytest.approx(gap, rel=1e-9)


def test_random_starts_exceed_the_averaged_worst_case() -> None:
    """Half of the starts are free, half are worst-case bandits: the gap is half of lambda W(K/e), by hand."""
    gap, averaged = propositions._uneven_start()
    worst = 0.1 * float(lambertw(999 / math.e).real)
    assert gap == pytest.approx(worst / 2)
    assert averaged == pytest.approx(0.1 * float(lambertw((math.sqrt(1000) - 1) / math.e).real))
    assert gap > 1.2 * averaged


def test_kept_bias_counts_kept_tokens() -> None:
    # p = .33 of 151,936 tokens: the bias falls by lambda log(1/.67) = .40 lambda, of 11.93 lambda
    shift = bounds.published_bias(math.log(151_936), 0.0, 1.0) - bounds.kept_bias(math.log(0.67 * 151_936), 0.0, 1.0)
    assert shift == pytest.approx(0.40, abs=5e-3)


# ------------------------------------------------------------------------------------------------------ P5 and tools


def test_lojasiewicz_constant_of_a_bandit_is_min_pi_squared() -> None:
    mdp = bandit(np.array([1.0, 0.3, 0.0]))
    policy = softmax(mdp, np.array([[[0.0, 1.0, -1.0]], [[2.0, 0.0, 0.0]]]))
    found = bounds.lojasiewicz_constant(mdp, soft_optimum(mdp, 0.5), policy)
    np.testing.assert_allclose(found, policy.min(axis=-1)[:, 0] ** 2)


def test_lojasiewicz_constant_of_a_tree_by_hand() -> None:
    """min_s d(s)^2 min_a pi(a|s)^2 / d*(s) over the root and its two children, which are visited as their token is."""
    leaves, root, children = (
        np.array([[0.9, 0.1], [0.3, 0.2]]),
        np.array([0.7, 0.3]),
        np.array([[0.6, 0.4], [0.2, 0.8]]),
    )
    transition, reward = np.zeros((3, 2, 3)), np.vstack([np.zeros(2), leaves])
    transition[0, [0, 1], [1, 2]] = 1.0
    mdp = TokenMDP(np.eye(3)[0], transition, reward, np.array([[0, 1]] * 3))
    weights = np.exp(leaves / 0.2).sum(axis=1)  # the soft optimum visits a child by the sum of e^{r / lambda} below it
    target = np.array([1.0, *weights / weights.sum()])
    rows = np.array([1.0, *root]) ** 2 * np.array([0.3, 0.4, 0.2]) ** 2 / target
    policy = np.vstack([root, children])
    assert bounds.lojasiewicz_constant(mdp, soft_optimum(mdp, 0.2), policy) == pytest.approx(rows.min(), rel=1e-12)
    assert rows.argmin() == 2  # with d* in the numerator it would be another row and another number
    assert bounds.lojasiewicz_root(mdp, soft_optimum(mdp, 0.2), policy) == pytest.approx(math.sqrt(rows.min()))


def test_without_a_wrong_response_there_is_no_bias_and_no_transition() -> None:
    every = math.log(50)
    assert bounds.soft_gap(every, every, 0.1) == 0.0
    assert bounds.worst_case_bias(every, every, 0.1) == 0.0
    assert bounds.worst_case_distance(every, every, 0.1) == 0.1
    for optimal in (25, 50):
        with pytest.raises(ValueError, match="no transition"):
            bounds.critical_coefficient(every, math.log(optimal))
    assert bounds.critical_coefficient(every, math.log(24)) == pytest.approx(1 / math.log(26 / 24))


def test_a_vanishing_constant_gives_an_empty_bound_not_nan() -> None:
    mdp = bandit(np.array([1.0, 0.0]))
    case = Case("collapsed", mdp, np.array([[[0.0, -600.0]]]), 0.5, 0)
    assert bounds.lojasiewicz_constant(mdp, case.soft, case.policy) == 0.0  # e^-1200
    assert laws.lojasiewicz_side(case) > 1
    assert laws.lojasiewicz_side(replace(case, logits=np.array([[[0.0, -800.0]]]))) == math.inf  # e^-800 is 0 here
    never = softmax(mdp, np.array([[[-800.0, 0.0]]]))
    assert bounds.mismatch(mdp, optimum(mdp), never) == math.inf


@settings(max_examples=80)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-3, 3)), min_size=2, max_size=6))
def test_sharp_lojasiewicz_on_any_bandit(arms: list[tuple[float, float]]) -> None:
    """Coefficient 1, everything written out: KL(pi || softmax(r)) <= ||grad||^2 / (4 min pi^2)."""
    logits, reward = np.array(arms).T
    policy = np.exp(logits) / np.exp(logits).sum()
    target = np.exp(reward) / np.exp(reward).sum()
    zeta = reward - np.log(policy)
    gradient = policy * (zeta - policy @ zeta)
    divergence = float(policy @ np.log(policy / target))
    assert divergence <= gradient @ gradient / (4 * policy.min() ** 2) * (1 + 1e-9) + 1e-12


def test_linear_rate_of_two_arms() -> None:
    # diag(pi) - pi pi^T of (p, 1 - p) has eigenvalues 0 and 2 p (1 - p)
    rate = bounds.linear_rate(np.array([0.8, 0.2]), 0.5, 0.4)
    assert rate == pytest.approx(2 * math.log(1 - 0.4 * 0.5 * 2 * 0.8 * 0.2))


def test_ascent_records_what_was_asked_and_climbs() -> None:
    mdp = bandit(np.array([1.0, 0.5, 0.0]))
    path = ascent(mdp, np.zeros((1, 3)), rate=1.0, steps=20)
    chosen = ascent(mdp, np.zeros((1, 3)), rate=1.0, steps=20, record=np.array([0, 7, 20]))
    np.testing.assert_array_equal(chosen, path[[0, 7, 20]])
    # first step by hand: uniform policy, V = 1/2, gradient (1/3)(r - 1/2)
    np.testing.assert_allclose(path[1][0], [1 / 6, 0, -1 / 6])
    assert np.all(np.diff(value(mdp, softmax(mdp, path))) > 0)


def test_maximise_finds_a_known_peak() -> None:
    found, at = maximise(lambda x: 3 - float(((x - 1) ** 2).sum()), np.zeros(2))
    assert found == pytest.approx(3)
    np.testing.assert_allclose(at, 1, atol=1e-4)


def test_cases_vary_what_a_bound_could_forget() -> None:
    drawn = list(cases(np.random.default_rng(0), 12))
    assert min(c.span for c in drawn) < 0.5 < 3 < max(c.span for c in drawn)
    assert {c.mdp.deterministic for c in drawn} == {True, False}
    assert max(c.mdp.horizon for c in drawn) >= 3
    entropies = np.concatenate([response_entropy(c.mdp, c.policy) for c in drawn])
    assert entropies.min() < 0.01
    assert entropies.max() > 4
    for case in drawn:
        assert case.optimum.value == pytest.approx(optimum(case.mdp).value)
