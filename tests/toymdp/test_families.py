"""The structure that the families promise, from their definitions; and what they refuse."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from toymdp import families
from toymdp.families import (
    DECOY,
    HEAD,
    OPTIMAL,
    OTHER,
    TAIL_MASS,
    lump,
    random_mdp,
    random_tree,
    token_tree,
    units,
)
from toymdp.mdp import class_mass, response_entropy, softmax, state_entropy, value


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --------------------------------------------------------------------------------------------------------- token_tree


@pytest.mark.parametrize("prior", ["plausible", "uniform", "gaussian"])
@pytest.mark.parametrize(("actions", "optimal", "horizon"), [(1000, 1, 1), (300, 5, 3), (12, 2, 2)])
def test_tree_pays_one_of_its_promised_responses(prior, actions, optimal, horizon):
    tree = token_tree(rng(), actions=actions, optimal=optimal, horizon=horizon, decoys=2, prior=prior)
    assert tree.optimum.value == 1.0
    assert tree.optimum.log_responses == pytest.approx(horizon * math.log(optimal), abs=1e-12)
    assert (tree.mdp.actions, tree.mdp.entries, tree.mdp.horizon) == (actions, actions, horizon)
    assert tree.mdp.states == 3 * horizon - 2
    np.testing.assert_array_equal(tree.mdp.class_sizes[0], [actions - optimal - 2, optimal, 2])


@pytest.mark.parametrize(("slip", "horizon"), [(0.0, 3), (0.1, 1), (0.25, 4)])
def test_value_of_the_optimum_and_of_the_decoys(slip, horizon):
    tree = token_tree(rng(), actions=50, optimal=2, horizon=horizon, decoys=3, decoy_reward=0.4, slip=slip)
    assert tree.optimum.value == pytest.approx((1 - slip) ** horizon)
    for label, paid in ((OPTIMAL, 1.0), (DECOY, 0.4)):
        here = tree.mdp.labels == label
        policy = np.where(here.any(-1, keepdims=True), here, True).astype(float)
        policy /= policy.sum(-1, keepdims=True)
        assert value(tree.mdp, policy) == pytest.approx(paid * (1 - slip) ** horizon)


def test_leaving_a_prefix_is_final():
    """Optimal then decoy, or decoy then optimal, is paid nothing beyond what its track allows."""
    tree = token_tree(rng(), actions=50, optimal=2, horizon=2, decoys=3)
    assert (tree.mdp.labels[2] != OPTIMAL).all()  # on the decoy prefix
    assert (tree.mdp.labels[3] == OTHER).all()  # lost
    first, then = tree.mdp.labels[0] == OPTIMAL, tree.mdp.labels[1] == DECOY
    policy = np.full(tree.mdp.labels.shape, 1 / 50)
    policy[0], policy[1] = first / first.sum(), then / then.sum()
    assert value(tree.mdp, policy) == pytest.approx(0.5)


def test_plausible_prior_has_a_head_a_thin_tail_and_ranks_as_promised():
    masses, optimal_ranks, decoy_ranks = [], [], []
    for seed in range(40):
        tree = token_tree(rng(seed), actions=5000, optimal=5)
        policy = softmax(tree.mdp, tree.prior)[0]
        head = tree.plausible[0]
        assert head.sum() == HEAD
        assert head[tree.mdp.labels[0] != OTHER].all()
        masses.append(policy[~head].sum())
        rank = np.empty(HEAD)
        rank[np.argsort(-policy[head])] = np.arange(1, HEAD + 1)
        optimal_ranks += list(rank[tree.mdp.labels[0][head] == OPTIMAL])
        decoy_ranks += list(rank[tree.mdp.labels[0][head] == DECOY])
    assert np.mean(masses) == pytest.approx(TAIL_MASS, rel=0.01)
    # jitter moves ranks a little: nominally decoys are ranks 1-5, optima uniform on 10-100
    assert max(decoy_ranks) <= 12
    assert min(optimal_ranks) >= 5
    assert np.mean(optimal_ranks) == pytest.approx(55, abs=4)


def test_without_jitter_decoys_are_ranks_1_to_5_and_optima_ranks_10_to_100(monkeypatch):
    """With the noise off, the token of rank r has the r-th largest probability, and every rank that may occur does."""
    monkeypatch.setattr(families, "JITTER", 0.0)
    ranks = {OPTIMAL: [], DECOY: []}
    for seed in range(60):
        tree = token_tree(rng(seed), actions=300, optimal=20, decoys=3)
        labels = tree.mdp.labels[0][np.argsort(-tree.prior[0], kind="stable")]
        for label, found in ranks.items():
            found += list(1 + np.flatnonzero(labels == label))
    assert set(ranks[DECOY]) == {1, 2, 3, 4, 5}
    assert set(ranks[OPTIMAL]) == set(range(10, 101))
    assert np.mean(ranks[DECOY]) == pytest.approx(3, abs=4 * math.sqrt(2 / 180))  # 180 draws, variance at most 2
    assert np.mean(ranks[OPTIMAL]) == pytest.approx(55, abs=4 * math.sqrt(690 / 1200))  # (91^2 - 1) / 12 = 690


def test_the_head_is_zipf_and_the_tail_log_normal_around_its_mean(monkeypatch):
    """Without jitter: p_r = 0.95 / (r H_100) in the head, 0.05 / 200 for each of the 200 tokens of the tail."""
    monkeypatch.setattr(families, "JITTER", 0.0)
    tree = token_tree(rng(), actions=300, optimal=1)
    expected = [0.95 / r / sum(1 / k for k in range(1, 101)) for r in range(1, 101)] + [0.05 / 200] * 200
    np.testing.assert_allclose(np.sort(np.exp(tree.prior[0]))[::-1], np.sort(expected)[::-1], rtol=1e-12)


def test_start_of_training_prefers_decoys_and_uniform_prior_is_the_control():
    plausible = token_tree(rng(), actions=10_000, optimal=1)
    mass = class_mass(plausible.mdp, softmax(plausible.mdp, plausible.prior))[0]
    assert mass[DECOY] > 0.2 > 0.03 > mass[OPTIMAL] > 0
    flat = token_tree(rng(), actions=10_000, optimal=1, prior="uniform")
    policy = softmax(flat.mdp, flat.prior)
    np.testing.assert_allclose(policy, 1e-4)
    assert response_entropy(flat.mdp, policy) == pytest.approx(math.log(10_000))


def test_the_place_of_the_optimal_tokens_is_random():
    places = {
        int(np.flatnonzero(token_tree(rng(s), actions=1000, optimal=1).mdp.labels[0] == OPTIMAL)[0]) for s in range(20)
    }
    assert len(places) > 15


def test_a_head_smaller_than_its_ranks_still_has_room_for_all():
    for actions, optimal, decoys in ((5, 1, 3), (6, 4, 1), (7, 1, 5), (100, 95, 4), (150, 95, 5)):
        for seed in range(20):
            sizes = token_tree(rng(seed), actions=actions, optimal=optimal, decoys=decoys).mdp.class_sizes[0]
            np.testing.assert_array_equal(sizes, [actions - optimal - decoys, optimal, decoys])


# -------------------------------------------------------------------------------------------------------------- units


def test_units_are_independent_problems_visited_uniformly():
    found = units(rng(), actions=1000, optimal=3, count=4)
    assert found.optimum.value == 1.0
    assert found.optimum.log_responses == pytest.approx(math.log(3))
    np.testing.assert_allclose(found.mdp.start, 0.25)
    np.testing.assert_array_equal(found.mdp.class_sizes, [[987, 3, 10]] * 4)
    solved = np.where(found.mdp.labels == OPTIMAL, 1 / 3, 0.0)
    stuck = np.where(found.mdp.labels == DECOY, 1 / 10, 0.0)
    for k in range(5):  # the levels .20 + .80 k / count of a partly solved run
        policy = np.where(np.arange(4)[:, None] < k, solved, stuck)
        assert value(found.mdp, policy) == pytest.approx(0.2 + 0.8 * k / 4)
    assert np.std(found.prior) == pytest.approx(1, abs=0.05)
    assert not np.allclose(found.prior[0], found.prior[1])


# ------------------------------------------------------------------------------------------------- random, determinism


def test_random_tree_is_a_full_tree_of_random_leaves():
    found = random_tree(rng(), actions=3, horizon=3)
    assert found.mdp.states == 1 + 3 + 9
    assert found.mdp.deterministic
    assert (found.mdp.reward[:4] == 0).all()
    assert found.optimum.value == found.mdp.reward.max() <= 1
    sparse = random_tree(rng(), actions=3, horizon=3, sparse=True)
    assert set(np.unique(sparse.mdp.reward)) == {0.0, 1.0}
    assert 1 <= sparse.mdp.reward.sum() <= 4


@pytest.mark.parametrize(
    "build",
    [
        lambda r: token_tree(r, actions=300, optimal=2, horizon=2, slip=0.1),
        lambda r: token_tree(r, actions=300, optimal=2, bins=4),
        lambda r: units(r, actions=50, optimal=2, count=3),
        lambda r: random_tree(r, actions=3, horizon=2),
        lambda r: random_mdp(r, actions=3, horizon=2, width=2),
        lambda r: lump(token_tree(r, actions=300, optimal=2), 4),
    ],
)
def test_one_seed_one_instance(build):
    first, again, other = build(rng(4)), build(rng(4)), build(rng(5))
    for name in ("start", "transition", "reward", "labels"):
        np.testing.assert_array_equal(getattr(first.mdp, name), getattr(again.mdp, name))
    np.testing.assert_array_equal(first.prior, again.prior)
    assert not np.array_equal(first.prior, other.prior)


# --------------------------------------------------------------------------------------------------------------- bins


def test_uniform_bins_are_exact():
    full = token_tree(rng(), actions=500, optimal=3, horizon=2, prior="uniform")
    few = token_tree(rng(), actions=500, optimal=3, horizon=2, prior="uniform", bins=7)
    assert few.mdp.entries == 7
    for function in (value, response_entropy):
        expected = function(full.mdp, softmax(full.mdp, full.prior))
        assert function(few.mdp, softmax(few.mdp, few.prior)) == pytest.approx(expected)


@pytest.mark.parametrize("prior", ["plausible", "gaussian"])
def test_bins_come_close_and_closer_with_more_of_them(prior):
    """The exact entropy of a log-normal tail is known in closed form; sampled full instances scatter around it."""
    spread, optimal = {"plausible": 0.3, "gaussian": 1.0}[prior], 1
    errors = []
    for bins in (1, 8, 512):
        few = token_tree(rng(), actions=10**6, optimal=optimal, decoys=0, prior=prior, bins=bins)
        policy = softmax(few.mdp, few.prior)[0]
        tail = few.mdp.multiplicity[0] > 1
        weights = few.mdp.multiplicity[0][tail]
        conditional = policy[tail] / (policy[tail] @ weights)
        entropy = -(weights * conditional) @ np.log(conditional)
        # tokens e^{s x}, x normal: H = log count - E[y log y] with y = e^{s x - s^2/2}, E[y log y] = s^2 / 2
        errors.append(abs(entropy - (math.log(weights.sum()) - spread**2 / 2)))
    assert errors[0] == pytest.approx(spread**2 / 2)  # one bin: all tokens equal
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 0.003


def test_bins_cost_nothing_at_a_billion_tokens():
    huge = token_tree(rng(), actions=10**9, optimal=5, horizon=3, bins=64)
    assert huge.mdp.entries == 164
    assert huge.mdp.actions == 10**9
    policy = softmax(huge.mdp, huge.prior)
    tail = huge.mdp.multiplicity > 1
    np.testing.assert_allclose((policy * huge.mdp.multiplicity * tail).sum(-1), TAIL_MASS)
    assert state_entropy(huge.mdp, policy)[0] < math.log(1e9)


def test_quantile_bins_are_the_means_of_their_tokens():
    few = token_tree(rng(), actions=10**6 + 1, optimal=1, decoys=0, prior="gaussian", bins=4)
    tokens = np.sort(norm.ppf((np.arange(10**6) + 0.5) / 10**6)).reshape(4, -1)
    np.testing.assert_allclose(few.prior[0, 1:], np.log(np.exp(tokens).mean(axis=1)), atol=2e-3)


def test_lump_keeps_class_masses_of_any_instance_and_rows_of_one_length():
    for prior in ("plausible", "gaussian"):
        full = token_tree(rng(), actions=400, optimal=3, horizon=3, prior=prior)
        few = lump(full, 5)
        here, there = (
            class_mass(full.mdp, softmax(full.mdp, full.prior)),
            class_mass(few.mdp, softmax(few.mdp, few.prior)),
        )
        np.testing.assert_allclose(there, here, atol=1e-12)
        np.testing.assert_allclose(few.mdp.multiplicity.sum(-1), 400)
        assert few.plausible.sum() == full.plausible.sum()


def test_lump_with_as_many_bins_as_tokens_is_the_same_instance():
    full = token_tree(rng(), actions=30, optimal=3, horizon=2, prior="gaussian")
    few = lump(full, 10**6)
    assert (few.mdp.multiplicity == 1).all()
    np.testing.assert_allclose(np.sort(few.prior), np.sort(full.prior))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prior": "zipf"}, "plausible, uniform, gaussian"),
        ({"optimal": 0}, "1 <= optimal"),
        ({"decoys": -1}, "0 <= decoys"),
        ({"optimal": 990, "decoys": 10}, "optimal \\+ decoys < actions"),
        ({"decoys": 6}, "at most 5 decoys"),
        ({"optimal": 98}, "holds 100 tokens"),
        ({"decoy_reward": 1.0}, "decoys are the optimum"),
        ({"decoy_reward": -0.1}, "0 <= decoy_reward"),
        ({"reward_noise": -1.0}, "standard deviation"),
        ({"reward_noise": math.nan}, "standard deviation"),
        ({"bins": 0}, "at least one"),
        ({"horizon": 0}, "horizon >= 1"),
        ({"slip": 1.0}, "slip < 1"),
        ({"slip": -0.1}, "0 <= slip"),
        ({"slip": math.nan}, "0 <= slip"),
    ],
)
def test_a_bad_tree_is_refused_with_what_was_expected(wrong, message):
    with pytest.raises(ValueError, match=message):
        token_tree(rng(), **{"actions": 1000, "optimal": 5, **wrong})


def test_bad_units_and_lumps_are_refused():
    with pytest.raises(ValueError, match="at least one unit"):
        units(rng(), actions=100, optimal=1, count=0)
    with pytest.raises(ValueError, match="unknown prior"):
        units(rng(), actions=100, optimal=1, prior="flat")
    tree = token_tree(rng(), actions=200, optimal=1)
    with pytest.raises(ValueError, match="lumped already"):
        lump(lump(tree, 2), 2)
    with pytest.raises(ValueError, match="at least one"):
        lump(tree, 0)
    with pytest.raises(ValueError, match="nothing to lump"):
        lump(token_tree(rng(), actions=100, optimal=1), 2)
