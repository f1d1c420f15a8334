"""Entropy over a support: expected values from plain Python floats, finite differences and hand computation."""

import itertools
import math
import subprocess
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aent import entropy as module
from aent.entropy import (
    DropLowest,
    Full,
    Nucleus,
    TopK,
    Tsallis,
    clamped_entropy,
    entropy,
    entropy_gradient,
    entropy_split,
    sampled_entropy,
    support_weights,
)


@dataclass(frozen=True)
class MinP:
    """A rule of one's own, that of docs/extending.md; it answers with true and false."""

    share: float

    def weights(self, logits):
        return logits >= array_namespace(logits).max(logits, axis=-1, keepdims=True) + math.log(self.share)


SUPPORTS = [
    Full(), DropLowest(0.33), DropLowest(0.9), TopK(1), TopK(3), TopK(50), Nucleus(0.5), Nucleus(0.95), MinP(0.05),
]  # fmt: skip
ENTROPIES = [*SUPPORTS, Tsallis()]  # not a support, but an entropy all the same


def split(logits, support):
    """The parts of a support's split; none for Tsallis, which refuses."""
    if support != Tsallis():
        return entropy_split(logits, support)
    with pytest.raises(ValueError, match="chain rule"):
        entropy_split(logits, support)
    return ()


SIX = np.array([2.0, 1.0, 0.0, -1.0, -2.0, -3.0])
# Few distinct values, so that ties (also at the cut) are the rule; -inf for impossible tokens.
TIED = st.lists(st.sampled_from([-math.inf, -2.0, -0.5, 0.0, 0.25, 1.5]), min_size=1, max_size=9).filter(
    lambda row: max(row) > -math.inf
)
# Rounded, so that distinct values are far enough apart for their order to survive a shift or a scale.
SPREAD = hnp.arrays(float, st.integers(2, 12), elements=st.integers(-600, 600).map(lambda i: i / 100))


def brute_weights(row, kept):
    """Average of the 0/1 choices over all ways to break ties: sort, then share the cut group equally."""
    threshold = sorted(row, reverse=True)[kept - 1]
    above = sum(value > threshold for value in row)
    group = sum(value == threshold for value in row)
    return [1.0 if v > threshold else (kept - above) / group if v == threshold else 0.0 for v in row]


def brute_entropy(row, weights, temperature=1.0):
    """- sum w p log p with exact sums; p = e^z / sum w e^z."""
    odds = [math.exp((value - max(row)) / temperature) for value in row]
    total = math.fsum(w * o for w, o in zip(weights, odds, strict=True))
    terms = [w * o / total * math.log(o / total) for w, o in zip(weights, odds, strict=True) if w * o > 0]
    return -math.fsum(terms)


def brute_nucleus_count(row, mass):
    """Smallest number of most probable tokens that hold ``mass`` (up to a rounding of 1e-12)."""
    odds = sorted((math.exp(value - max(row)) for value in row), reverse=True)
    total = math.fsum(odds)
    return next(n for n in range(1, len(odds) + 1) if math.fsum(odds[:n]) >= mass * total * (1 - 1e-12))


def kept_by(support, row):
    """How many tokens a rule keeps; one that is not of this package (put yours into ``SUPPORTS``) is asked."""
    if isinstance(support, Nucleus):
        return brute_nucleus_count(row, support.mass)
    return support.kept(len(row)) if hasattr(support, "kept") else sum(weights_by(support, row))


def weights_by(support, row):
    """By brute force for the rules of this package, which keep the most probable tokens."""
    if isinstance(support, Nucleus) or hasattr(support, "kept"):
        return brute_weights(row, kept_by(support, row))
    return [float(weight) for weight in support.weights(np.array(row))]


# ------------------------------------------------------------------------------------------------------- known values


@pytest.mark.parametrize(
    ("drop", "value", "gradient"),
    [
        (0.0, 1.023261, None),
        (0.25, 0.999973, [-0.348789, 0.105809, 0.125054, 0.07769, 0.040237, 0.0]),
        (0.33, 0.999973, [-0.348789, 0.105809, 0.125054, 0.07769, 0.040237, 0.0]),
        (0.5, 0.832396, [-0.282587, 0.14077, 0.141817, 0.0, 0.0, 0.0]),
        (0.9, 0.0, [0.0] * 6),
    ],
)
def test_six_token_vectors(drop, value, gradient):
    assert clamped_entropy(SIX, drop=drop) == pytest.approx(value, abs=5e-7)
    if gradient is not None:
        np.testing.assert_allclose(entropy_gradient(SIX, support=DropLowest(drop)), gradient, atol=6e-7)


@pytest.mark.parametrize(
    ("sigma", "drop", "value", "tolerance"),
    [(1.0, 0.0, 11.415, 0.02), (1.0, 0.33, 11.184, 0.02), (2.0, 0.9, 8.867, 0.05), (2.0, 0.999, 4.743, 0.1)],
)
def test_gaussian_logits_over_a_large_vocabulary(sigma, drop, value, tolerance):
    logits = sigma * np.random.default_rng(7).normal(size=(4, 150_000))
    assert clamped_entropy(logits, drop=drop).mean() == pytest.approx(value, abs=tolerance)


def test_uniform_logits_give_log_of_the_number_kept():
    logits = np.zeros(150_000)
    for support, kept in [(Full(), 150_000), (DropLowest(0.25), 112_500), (TopK(100), 100), (Nucleus(0.7), 105_000)]:
        assert support_weights(logits, support).sum() == pytest.approx(kept, rel=1e-12)
        assert entropy(logits, support=support) == pytest.approx(math.log(kept), rel=1e-12)


def test_number_kept_counts_as_the_authors_code_does():
    assert [DropLowest(0.33).kept(v) for v in (1, 2, 3, 6, 100)] == [1, 2, 3, 5, 67]  # V - int(V p)
    assert DropLowest(0.99).kept(6) == 1
    assert DropLowest(0.5).kept(6) == 3  # exactly at the cut
    assert TopK(7).kept(5) == 5


# ------------------------------------------------------------------------------------------------ ties and invariance


@settings(max_examples=150)
@given(TIED, st.sampled_from(SUPPORTS), st.sampled_from([0.5, 1.0, 1.7]))
def test_equals_brute_force_with_ties_and_impossible_tokens(row, support, temperature):
    scaled = [value / temperature for value in row]
    weights = weights_by(support, scaled)
    got = support_weights(np.array(row) / temperature, support)
    possible = np.array(row) > -math.inf  # the weight of an impossible token is of no consequence
    np.testing.assert_allclose(got[possible], np.array(weights)[possible], rtol=1e-13)
    expected = brute_entropy(row, weights, temperature)
    assert entropy(np.array(row), support=support, temperature=temperature) == pytest.approx(expected, abs=1e-13)


def test_tokens_at_the_cut_share_the_remaining_places():
    weights = support_weights(np.array([1.0, 3.0, 1.0, 0.0, 1.0]), TopK(3))
    np.testing.assert_allclose(weights, [2 / 3, 1, 2 / 3, 0, 2 / 3], rtol=1e-15)


def test_rounding_to_bfloat16_ties_and_does_not_favour_token_order():
    logits = torch.randn(4096, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    kept = TopK(1000)
    weights = support_weights(logits, kept)
    assert ((weights > 0) & (weights < 1)).sum() > 1  # ties at the cut are real here
    assert float(weights.double().sum()) == pytest.approx(1000, abs=1e-4)
    order = torch.randperm(4096, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(support_weights(logits[order], kept), weights[order], rtol=0, atol=0)


@settings(max_examples=80)
@given(TIED, st.sampled_from(ENTROPIES), st.randoms(use_true_random=False))
def test_permuting_tokens_permutes_the_gradient_and_keeps_the_value(row, support, random):
    logits, order = np.array(row), list(range(len(row)))
    random.shuffle(order)
    assert entropy(logits[order], support=support) == pytest.approx(entropy(logits, support=support), abs=1e-13)
    permuted = entropy_gradient(logits[order], support=support)
    np.testing.assert_allclose(permuted, entropy_gradient(logits, support=support)[order], atol=1e-13)


@settings(max_examples=60)
@given(SPREAD, st.sampled_from(ENTROPIES), st.integers(-1000, 1000))
def test_shifting_all_logits_changes_nothing(logits, support, shift):
    before, after = entropy(logits, support=support), entropy(logits + shift, support=support)
    assert after == pytest.approx(before, abs=1e-9)


# ------------------------------------------------------------------------------------------------- bounds and monotone


@settings(max_examples=100)
@given(TIED, st.sampled_from(SUPPORTS))
def test_between_zero_and_log_of_the_number_kept(row, support):
    value = entropy(np.array(row), support=support)
    assert 0 <= value <= math.log(kept_by(support, row)) + 1e-12


@settings(max_examples=100)
@given(TIED)
def test_adding_the_next_less_likely_token_never_lowers_the_entropy(row):
    """H' - H = h_b(e) - e H with e the new token's share, and H <= -log(smallest kept p) <= -log e <= h_b(e) / e."""
    values = [float(entropy(np.array(row), support=TopK(k))) for k in range(1, len(row) + 1)]
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(values))


def test_adding_a_more_likely_token_can_lower_the_entropy():
    """Negative control of the above: nested sets alone are not enough, the order matters."""
    assert brute_entropy([0.0, 0.0, 9.0], [1, 1, 0]) > brute_entropy([0.0, 0.0, 9.0], [1, 1, 1]) + 0.6


@settings(max_examples=60)
@given(SPREAD, st.sampled_from([Full(), DropLowest(0.33), TopK(3)]))
def test_a_higher_temperature_never_lowers_the_entropy(logits, support):
    values = [float(entropy(logits, support=support, temperature=t)) for t in (0.3, 0.6, 1.0, 2.0)]
    assert values == sorted(values) or np.allclose(np.diff(values).clip(max=0), 0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ nucleus


@settings(max_examples=150)
@given(TIED, st.sampled_from([1e-9, 0.1, 0.25, 0.5, 2 / 3, 0.75, 0.9, 0.999999, 1.0]))
def test_nucleus_is_the_smallest_sufficient_set(row, mass):
    logits = np.array(row)
    weights = np.where(logits > -math.inf, support_weights(logits, Nucleus(mass)), 0)
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    assert weights @ probability >= mass - 1e-11
    smallest_kept = probability[weights > 0].min()
    assert weights @ probability - smallest_kept < mass  # one token fewer is not enough


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nucleus_reached_exactly_keeps_no_further_token(dtype):
    quarter = np.zeros(4, dtype)
    np.testing.assert_array_equal(support_weights(quarter, Nucleus(0.5)), [0.5] * 4)


@pytest.mark.parametrize("count", range(1, 7))
def test_nucleus_reached_but_for_rounding_keeps_no_further_token(count):
    probability = np.arange(7, 0, -1) / 28  # no power of two: the sums of logs and exponentials round
    mass = float(probability[:count].sum())
    assert (support_weights(np.log(probability), Nucleus(mass)) > 0).sum() == count


@pytest.mark.parametrize("vocabulary", [500, 5000])  # fewer and more than eight times the first 128 tokens
def test_nucleus_needs_no_full_sort_but_finds_a_wide_one(vocabulary):
    logits = np.random.default_rng(3).normal(size=(2, vocabulary))  # far more than the first 128 tokens are needed
    expected = [brute_nucleus_count(list(row), 0.9) for row in logits]
    assert support_weights(logits, Nucleus(0.9)).sum(axis=-1).tolist() == expected


def test_a_nucleus_of_all_the_mass_keeps_every_token_however_unlikely():
    logits = np.array([[0.0, -100.0, -700.0], [0.0, 0.0, -40.0]])
    np.testing.assert_array_equal(support_weights(logits, Nucleus(1.0)), np.ones((2, 3)))
    assert support_weights(logits, Nucleus(1 - 1e-9)).tolist() == [[1, 0, 0], [1, 1, 0]]  # control


@pytest.mark.parametrize("temperature", [0.5, 2.0, 3.0])
def test_a_temperature_divides_the_logits(temperature):
    """Of (0, T log 3) at temperature T the second token has three quarters."""
    logits = np.array([0.0, temperature * math.log(3)])
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert entropy(logits, temperature=temperature) == pytest.approx(expected, rel=1e-14)
    slope = 0.75 * 0.25 * math.log(3) / temperature  # p_a (log p_a + H) = -+ p q log 3
    np.testing.assert_allclose(entropy_gradient(logits, temperature=temperature), [slope, -slope], rtol=1e-13)


# ---------------------------------------------------------------------------------------------------------- gradients


@settings(max_examples=60)
@given(SPREAD, st.sampled_from(SUPPORTS), st.sampled_from([0.6, 1.0, 2.5]))
def test_gradient_equals_finite_differences_with_the_support_frozen(logits, support, temperature):
    weights = list(support_weights(logits / temperature, support))
    gradient, step = entropy_gradient(logits, support=support, temperature=temperature), 1e-5
    for token in range(len(logits)):
        up, down = logits.copy(), logits.copy()
        up[token] += step
        down[token] -= step
        slope = (brute_entropy(list(up), weights, temperature) - brute_entropy(list(down), weights, temperature)) / (
            2 * step
        )
        assert gradient[token] == pytest.approx(slope, abs=2e-8)
    assert gradient.sum() == pytest.approx(0, abs=1e-12)
    assert np.all(gradient[np.array(weights) == 0] == 0)


@pytest.mark.parametrize("support", ENTROPIES)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_autograd_equals_the_closed_form(support, temperature):
    logits = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[0, 3] = logits[1, 5:8] = -math.inf
    logits[2] = (logits[2] * 2).round() / 2  # ties
    logits.requires_grad_(True)
    entropy(logits, support=support, temperature=temperature).sum().backward()
    expected = entropy_gradient(logits.detach(), support=support, temperature=temperature)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("support", ENTROPIES)
def test_gradcheck(support):
    logits = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: entropy(x, support=support, temperature=0.8), (logits,))
    assert torch.autograd.gradcheck(lambda x: tuple(split(x, support)) or x, (logits,))


@pytest.mark.parametrize("low", [-math.inf, torch.finfo(torch.float32).min, -1e4])
@pytest.mark.parametrize("support", ENTROPIES)
def test_masked_tokens_give_neither_nan_nor_gradient(low, support):
    rows = [[low, 1.0, 0.5, low, 0.0], [low, low, 3.0, low, low], [1e4, 1e4, -1e4, low, 0.0]]
    logits = torch.tensor(rows, requires_grad=True)
    value = entropy(logits, support=support, temperature=0.6)
    value.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(value).all()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[logits == low] == 0).all()
    assert float(value[1].detach()) == 0.0
    if isinstance(support, Full):
        torch.testing.assert_close(value[2].item(), math.log(2), rtol=1e-6, atol=0)
    for part in split(logits.detach(), support):
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("support", [TopK(1), DropLowest(0.9), Nucleus(1e-6)])
def test_one_kept_token_has_no_entropy_and_no_gradient(support):
    assert entropy(SIX, support=support) == 0.0
    assert math.copysign(1, entropy(SIX, support=support)) == 1  # not -0.0
    assert not entropy_gradient(SIX, support=support).any()
    tied = np.zeros(6)  # one place shared by six equal tokens is still one token
    assert entropy(tied, support=TopK(1)) == 0.0


# ------------------------------------------------------------------------------------------------------------ Tsallis


def brute_tsallis(row, temperature=1.0):
    odds = [math.exp((value - max(row)) / temperature) for value in row]
    return (1 - math.fsum(o * o for o in odds) / math.fsum(odds) ** 2) / 2


def test_tsallis_by_hand():
    """p = 1/2, 1/4, 1/4: sum p^2 = 3/8, (1 - 3/8) / 2 = 5/16; slopes -1/2 (1/2 - 3/8) and -1/4 (1/4 - 3/8)."""
    logits = np.log([0.5, 0.25, 0.25])
    assert entropy(logits, support=Tsallis()) == pytest.approx(5 / 16, rel=1e-14)
    np.testing.assert_allclose(entropy_gradient(logits, support=Tsallis()), [-1 / 16, 1 / 32, 1 / 32], rtol=1e-13)
    cooled = entropy_gradient(logits * 0.5, support=Tsallis(), temperature=0.5)  # the same policy, steeper logits
    np.testing.assert_allclose(cooled, [-1 / 8, 1 / 16, 1 / 16], rtol=1e-13)
    assert Tsallis().kept(7) == 7
    np.testing.assert_array_equal(support_weights(logits, Tsallis()), 1)


@settings(max_examples=100)
@given(TIED, st.sampled_from([0.5, 1.0, 1.7]))
def test_tsallis_equals_brute_force_and_stays_in_its_range(row, temperature):
    value = entropy(np.array(row), support=Tsallis(), temperature=temperature)
    assert value == pytest.approx(brute_tsallis(row, temperature), abs=1e-14)
    assert 0 <= value <= (1 - 1 / len(row)) / 2 + 1e-15


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 150_000])
def test_tsallis_is_largest_for_the_uniform_policy(vocabulary):
    value = entropy(np.zeros(vocabulary), support=Tsallis())
    assert value == pytest.approx((1 - 1 / vocabulary) / 2, rel=1e-12)


@settings(max_examples=60)
@given(SPREAD, st.sampled_from([0.6, 1.0, 2.5]))
def test_tsallis_gradient_equals_finite_differences(logits, temperature):
    gradient, step = entropy_gradient(logits, support=Tsallis(), temperature=temperature), 1e-5
    for token in range(len(logits)):
        up, down = logits.copy(), logits.copy()
        up[token] += step
        down[token] -= step
        slope = (brute_tsallis(list(up), temperature) - brute_tsallis(list(down), temperature)) / (2 * step)
        assert gradient[token] == pytest.approx(slope, abs=2e-9)
    assert gradient.sum() == pytest.approx(0, abs=1e-13)


def sparsemax(scores):
    """Projection on the simplex: p = max(z - tau, 0), tau from the sorted scores (Martins and Astudillo 2016)."""
    ordered, total, tau = sorted(scores, reverse=True), 0.0, 0.0
    for count, score in enumerate(ordered, start=1):
        total += score
        if 1 + count * score > total:
            tau = (total - 1) / count
    return np.maximum(np.array(scores) - tau, 0)


@pytest.mark.parametrize("rewards", [[1.0, 0.8, 0.1, 0.0, 0.7], [0.3, 0.2, 0.25, 0.1, 0.0], [2.0, 0.0, 0.1, 1.8, 0.0]])
def test_sparsemax_is_the_policy_that_tsallis_and_a_reward_make_optimal(rewards):
    """argmax <p, r> / l + (1 - |p|^2) / 2 = argmin |p - r / l|^2; with Shannon it is a softmax, positive everywhere."""
    scores = np.array(rewards) / 0.3

    def optimum(support):
        logits = policy = np.full(5, 0.2)
        for _ in range(1000):
            policy = np.exp(logits - logits.max())
            policy /= policy.sum()
            gradient = policy * (scores - policy @ scores) + entropy_gradient(logits, support=support)
            logits = logits + 0.5 * gradient / np.maximum(policy, 1e-200)  # natural: no slow tail
        return policy

    found, expected = optimum(Tsallis()), sparsemax(scores)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert expected.sum() == pytest.approx(1)
    assert 1 < (expected > 0).sum() < 5
    softmax = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(optimum(Full()), softmax, atol=1e-9)
    assert softmax.min() > 5e-4


def test_tsallis_pays_a_thin_tail_next_to_nothing():
    """Slope per probability: log(1 / p) - H grows without end in the tail, sum p^2 - p does not."""
    logits = np.array([0.0, *[-12.0] * 1000])
    probability = math.exp(-12) / (1 + 1000 * math.exp(-12))
    shannon, tsallis = (entropy_gradient(logits, support=s)[-1] / probability for s in (Full(), Tsallis()))
    assert 10 < shannon < 12.1
    assert tsallis == pytest.approx((1 - 1000 * probability) ** 2, rel=1e-5)


# ------------------------------------------------------------------------------------------- numpy, torch and accuracy


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (0, 7), (2, 0, 7), (4, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("support", ENTROPIES)
def test_numpy_equals_torch_in_value_shape_and_dtype(shape, dtype, support):
    logits = np.random.default_rng(5).normal(size=shape).round(1).astype(dtype)
    tolerance = {"rtol": 0, "atol": 1e-6 if dtype == np.float32 else 1e-14}
    tensor = torch.from_numpy(logits)
    pairs = [
        (support_weights(logits, support), support_weights(tensor, support), shape),
        (entropy(logits, support=support), entropy(tensor, support=support), shape[:-1]),
        (entropy_gradient(logits, support=support), entropy_gradient(tensor, support=support), shape),
        *((*both, shape[:-1]) for both in zip(split(logits, support), split(tensor, support), strict=True)),
    ]
    for ours, theirs, expected_shape in pairs:
        assert ours.shape == tuple(theirs.shape) == expected_shape
        assert ours.dtype == theirs.numpy().dtype == dtype
        np.testing.assert_allclose(ours, theirs.numpy(), **tolerance)


@pytest.mark.parametrize("support", SUPPORTS)
def test_the_selection_used_on_accelerators_agrees(support, monkeypatch):
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(6)).bfloat16().float()
    expected = support_weights(logits, support)
    monkeypatch.setattr(module, "_on_accelerator", lambda logits: True)
    torch.testing.assert_close(support_weights(logits, support), expected, rtol=0, atol=0)


@pytest.mark.parametrize("function", [entropy, entropy_gradient])
def test_a_row_of_numpy_gives_a_scalar_and_a_numpy_temperature_keeps_the_dtype(function):
    result = function(SIX.astype(np.float32), temperature=np.float64(0.7))
    assert result.dtype == np.float32
    assert isinstance(entropy(SIX), np.float64)
    assert all(isinstance(part, np.float64) for part in entropy_split(SIX, TopK(2)))


@pytest.mark.parametrize("support", [Full(), DropLowest(0.33), TopK(100), Nucleus(0.9)])
def test_float32_is_accurate_over_a_large_vocabulary(support):
    logits = (3 * np.random.default_rng(8).normal(size=(3, 150_000))).astype(np.float32)
    wide = logits.astype(np.float64)
    assert np.abs(entropy(logits, support=support) - entropy(wide, support=support)).max() < 5e-6
    exact = entropy_gradient(wide, support=support)
    error = np.abs(entropy_gradient(logits, support=support) - exact).max(axis=-1)
    assert (error < 2e-6 * np.abs(exact).max(axis=-1)).all()


@pytest.mark.parametrize("support", ENTROPIES)
def test_row_blocks_change_nothing(support, monkeypatch):
    logits = np.random.default_rng(9).normal(size=(3, 5, 16)).round(1)

    def results():
        weights, gradient = support_weights(logits, support), entropy_gradient(logits, support=support)
        return [weights, gradient, entropy(logits, support=support), *split(logits, support)]

    whole = results()
    for block in (1, 16, 50):  # one row, one row, three rows of the fifteen
        monkeypatch.setattr(module, "_BLOCK", block)
        for ours, expected in zip(results(), whole, strict=True):
            np.testing.assert_array_equal(ours, expected)


# -------------------------------------------------------------------------------------------------------------- split


@settings(max_examples=100)
@given(TIED, st.sampled_from(SUPPORTS))
def test_split_adds_up_to_the_full_entropy(row, support):
    parts = entropy_split(np.array(row), support)
    eps = parts.dropped_mass
    assert parts.binary + (1 - eps) * parts.clamped + eps * parts.tail == pytest.approx(parts.full, abs=1e-13)
    assert parts.full == pytest.approx(brute_entropy(row, [1.0] * len(row)), abs=1e-13)
    assert parts.clamped == pytest.approx(entropy(np.array(row), support=support), abs=1e-13)
    assert min(parts) >= 0


def test_split_by_hand():
    parts = entropy_split(np.log(np.array([0.5, 0.25, 0.125, 0.125])), TopK(2))
    binary = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    clamped = -2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3)
    np.testing.assert_allclose(parts, [1.75 * math.log(2), clamped, math.log(2), binary, 0.25], rtol=1e-14)


def test_binary_part_of_a_tiny_tail_is_exact_in_float32():
    """1 - 1e-9 is 1 in float32: without log1p the term (1 - e) log(1 - e) is lost or negative."""
    parts = entropy_split(np.array([0.0, math.log(1e-9)], np.float32), TopK(1))
    assert parts.binary == pytest.approx(1e-9 * (1 - math.log(1e-9)), rel=1e-5)


class LeastLikely:
    """Keep the one token of lowest logit: all of the mass is dropped."""

    def weights(self, logits):
        return (logits == logits.min()) * 1.0


def test_binary_part_is_zero_where_nothing_or_all_of_the_mass_is_dropped():
    logits = np.array([0.0, 0.0, -80.0])  # 1 - e^-80 / 2 is 1 in float64
    parts = entropy_split(logits, LeastLikely())
    assert (parts.dropped_mass, parts.binary, parts.clamped) == (1.0, 0.0, 0.0)
    assert parts.tail == pytest.approx(math.log(2))
    assert entropy_split(logits, Full()).binary == 0.0


@pytest.mark.parametrize("support", [Full(), TopK(2)])
def test_the_binary_part_has_a_finite_gradient_also_where_nothing_is_dropped(support):
    logits = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    entropy_split(logits, support).binary.backward()
    if support == Full():
        assert logits.grad.tolist() == [0.0, 0.0, 0.0]
        return
    odds = np.exp(logits.detach().numpy())  # e = p_3; dh/dz = log((1 - e) / e) e (1_3 - p)
    p = odds / odds.sum()
    expected = math.log((1 - p[2]) / p[2]) * p[2] * (np.array([0, 0, 1]) - p)
    np.testing.assert_allclose(logits.grad, expected, rtol=1e-12)


@pytest.mark.parametrize("support", [Full(), TopK(1), TopK(2)])
def test_the_parts_of_a_split_have_together_the_gradient_of_the_whole(support):
    """h + (1 - e) H~ + e H_tail = H, so their slopes are -p (log p + H), also beside an impossible token."""
    logits = torch.tensor([1.0, 0.0, -math.inf, -1.0], dtype=torch.float64, requires_grad=True)
    parts = entropy_split(logits, support)
    eps = parts.dropped_mass
    (parts.binary + (1 - eps) * parts.clamped + eps * parts.tail).backward()
    assert logits.grad is not None
    p = np.exp([1.0, 0.0, -math.inf, -1.0])
    p /= p.sum()
    log_p = np.log(np.where(p > 0, p, 1))
    np.testing.assert_allclose(logits.grad, -p * (log_p - p @ log_p), atol=1e-14)


@pytest.mark.parametrize("support", [Full(), TopK(1), LeastLikely()])
def test_a_split_computes_nothing_invalid_on_the_way(support):
    """Neither for an empty tail nor for a dropped mass of 0 or 1; numpy would warn."""
    with np.errstate(all="raise", under="ignore"):
        parts = entropy_split(np.array([1.0, 0.0, -math.inf]), support)
    assert np.isfinite(parts).all()


# ------------------------------------------------------------------------------------------------------------ sampled


@pytest.mark.parametrize("seed", range(3))
def test_sampled_entropy_is_unbiased(seed):
    rng = np.random.default_rng(seed)
    logprob = SIX - np.log(np.exp(SIX).sum())
    drawn = logprob[rng.choice(6, size=200_000, p=np.exp(logprob))]
    z = (sampled_entropy(drawn) - entropy(SIX)) / (drawn.std() / math.sqrt(len(drawn)))
    assert abs(z) < 4
    assert abs((-drawn.mean() - entropy(SIX, temperature=1.2)) / (drawn.std() / math.sqrt(len(drawn)))) > 20  # control


def test_sampled_entropy_averages_over_the_mask():
    logprobs = np.array([[-1.0, -2.0, 7.0], [-3.0, np.nan, -5.0]])  # padding may hold anything
    mask = np.array([[1, 1, 0], [1, 0, 3]])
    np.testing.assert_allclose(sampled_entropy(logprobs, mask=mask), [1.5, 4.5])
    masked = sampled_entropy(torch.from_numpy(logprobs), mask=torch.from_numpy(mask).bool())
    np.testing.assert_allclose(masked, [1.5, 4.0])
    assert sampled_entropy(np.array([-1.0, -2.0])) == 1.5
    np.testing.assert_allclose(sampled_entropy(logprobs[:1], mask=np.array([[0.25, 0.25, 0]])), [1.5])
    assert sampled_entropy(logprobs[0], mask=np.array([0, 1, 0])) == 2.0


@pytest.mark.parametrize("backend", [np.array, torch.tensor])
@pytest.mark.parametrize("padding", [-math.inf, math.inf, math.nan, 1e308])
def test_sampled_entropy_does_not_look_at_padding(backend, padding):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(sampled_entropy(backend([-1.0, padding, -3.0]), mask=backend([1.0, 0.0, 1.0]))) == 2.0


def test_sampled_entropy_keeps_fractions_of_a_mask_whatever_the_types():
    """By hand: (1.9 * 1 + .9 * 3) / 2.8 = 4.6 / 2.8. As installed: here, types are checked at run time."""
    program = """
import numpy as np, torch
from aent.entropy import sampled_entropy
whole, mask = [-1, -3], [1.9, 0.9]
for kind in (np.int64, np.int8, np.float16, np.float32, np.float64):
    print(sampled_entropy(np.array(whole, kind), mask=np.array(mask)))
    print(sampled_entropy(np.array(whole, kind), mask=mask))
for kind in (torch.int64, torch.float16, torch.bfloat16, torch.float32):
    print(float(sampled_entropy(torch.tensor(whole, dtype=kind), mask=torch.tensor(mask))))
    print(float(sampled_entropy(torch.tensor(whole, dtype=kind), mask=np.array(mask))))
    assert float(sampled_entropy(torch.tensor(whole, dtype=kind), mask=torch.tensor([True, False]))) == 1
for wrong in (whole, np.array(["a"]), np.array([1j])):
    try: sampled_entropy(wrong)
    except TypeError as error: assert "log-probabilities must be " in str(error)
    else: raise AssertionError(wrong)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert [float(line) for line in out.splitlines()] == pytest.approx([4.6 / 2.8] * 18, rel=1e-6)


@pytest.mark.parametrize(
    ("logprobs", "mask", "message"),
    [
        ([[0.5, -1.0]], None, "were logits passed"),
        ([[math.nan, -1.0]], None, "NaN"),
        ([[-math.inf, -1.0]], None, "finite log-probabilities, got -inf: no policy draws a token of probability 0"),
        ([[-1.0, -1.0], [-1.0, -math.inf]], [[1.0, 1.0], [0.0, 1e-9]], "finite log-probabilities, got -inf"),
        ([[-1.0, -1.0]], [[0.0, 0.0]], "no token"),
        ([[-1.0, -1.0], [-1.0, -1.0]], [[0.0, 0.0], [1.0, 0.0]], "no token"),
        ([[-1.0, -1.0]], [[2.0, -1.0]], "weights >= 0"),
        ([[-1.0, -1.0]], [[math.nan, 1.0]], "weights >= 0"),
        ([[-1.0, -1.0]], [[math.inf, 1.0]], "finite weights >= 0"),
        ([[-1.0, -1.0]], [[1.0]], "shape"),
    ],
)
def test_sampled_entropy_refuses(logprobs, mask, message):
    with pytest.raises(ValueError, match=message):
        sampled_entropy(np.array(logprobs), mask=None if mask is None else np.array(mask))


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("backend", [np.array, torch.tensor])
@pytest.mark.parametrize(
    ("row", "message"),
    [([math.nan, 0.0], "NaN"), ([math.inf, 0.0], r"\+inf"), ([-math.inf, -math.inf], "all -inf"), ([], "one token")],
)
def test_unusable_logits_are_refused(backend, row, message):
    for call in (entropy, entropy_gradient, lambda x: support_weights(x, TopK(1)), lambda x: entropy_split(x, TopK(1))):
        with pytest.raises(ValueError, match=message):
            call(backend([[0.0] * len(row), row]))


def test_logits_that_overflow_at_the_temperature_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"\+inf"):
            entropy(np.array([3e38, 0.0], np.float32), temperature=0.5)


def test_logits_whose_difference_overflows_are_fine():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert entropy(np.array([1e308, -1e308])) == 0.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="positive finite"):
        entropy(SIX, temperature=temperature)


@pytest.mark.parametrize("share", [-0.1, 1.0, 33.0, math.nan])
def test_bad_share_is_refused(share):
    with pytest.raises(ValueError, match=r"0\.33"):
        DropLowest(share)


@pytest.mark.parametrize("mass", [0.0, -0.1, 1.1, math.nan])
def test_bad_mass_is_refused(mass):
    with pytest.raises(ValueError, match=r"0\.9"):
        Nucleus(mass)


@pytest.mark.parametrize("k", [0, -1])
def test_bad_k_is_refused(k):
    with pytest.raises(ValueError, match="at least 1"):
        TopK(k)


def test_wrong_types_are_refused_with_advice():
    """As installed, without the run-time type checks of the test session."""
    program = """
import numpy as np, torch
from aent.entropy import *
for call in (
    lambda: entropy([1.0, 2.0]),
    lambda: entropy(np.array([1, 2])),
    lambda: entropy(torch.zeros(2, dtype=torch.bfloat16)),
    lambda: entropy(np.zeros(2, np.float16)),
    lambda: entropy(np.float64(1.0)),
    lambda: entropy(np.zeros(2), support=DropLowest),
    lambda: entropy(np.zeros(2), support=0.33),
    lambda: entropy(np.zeros(2), temperature="1"),
    lambda: TopK(2.5),
    lambda: TopK(True),
):
    try: print("accepted", call())
    except (TypeError, ValueError) as error: print(type(error).__name__, error)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    expected = ["numpy array or torch tensor, got list", "got int64; convert"]
    expected += [
        "got torch.bfloat16; convert them first: logits.float()",
        "logits.astype(np.float32)",
        "last axis",
    ]
    expected += ["a rule such as", "a rule such as", "temperature='1'", "whole number", "whole number"]
    for line, message in zip(out.splitlines(), expected, strict=True):
        assert message in line


class Answers:
    """A rule of one's own that answers with ``given``, made into an array unless it is one."""

    def __init__(self, given):
        self.given = given

    def weights(self, logits):
        return self.given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([1.0, 2.0, 0.0]), r"expected weights in \[0, 1\] of shape \(3,\), got shape \(3,\) from 0 to 2"),
        (np.array([1.0, -0.5, 0.0]), "from -0.5 to 1"),
        (np.array([1.0, math.nan, 0.0]), "from nan to nan"),
        (np.array([1.0, 1.0]), r"of shape \(3,\), got shape \(2,\)"),
    ],
)
def test_weights_of_ones_own_rule_that_are_none_are_refused(given, message):
    for call in (entropy, entropy_gradient):
        with pytest.raises(ValueError, match=message):
            call(np.zeros(3), support=Answers(given))


def test_weights_of_another_type_are_those_of_the_logits_or_refused():
    logits = np.array([2.0, 1.0, 0.0], np.float32)
    for answer in (np.array([True, True, False]), np.array([1, 1, 0]), np.array([1.0, 1.0, 0.0])):
        assert support_weights(logits, Answers(answer)).dtype == np.float32
        assert entropy(logits, support=Answers(answer)) == entropy(logits, support=TopK(2))
    for answer in ([1.0, 1.0, 0.0], None):
        with pytest.raises(TypeError, match=r"weights\(\) must return an array like the logits"):
            entropy(logits, support=Answers(answer))
    with pytest.raises(TypeError, match="got ndarray; take functions from array_api_compat"):
        entropy(torch.zeros(3), support=Answers(np.ones(3)))


def test_importing_the_ground_floor_loads_neither_torch_nor_the_floors_above():
    program = (
        "import sys, aent.entropy, aent.controllers, aent.runs, benchmarks.selection; aent.runs.provenance(); "
        "print(sorted({'torch', 'scipy', 'toymdp', 'aent_llm'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
