"""Shaping rules against their published definitions: vectors by hand, loops over scalars, autograd of the losses."""

import dataclasses
import json
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aent.controllers import Spring
from aent.shaping import (
    AdvantageKL,
    ClipCovariance,
    ClipHigher,
    ConfidentTokens,
    DifficultyBonus,
    EntropyAdvantage,
    EntropyRatioClip,
    GradientPreserving,
    GroupedRatio,
    KLCovariance,
    LogitScaling,
    LogProbAdvantage,
    PeakBonus,
    QuantileBaseline,
    RangeBonus,
    SampleRejection,
    Shaping,
    TemperedReinforce,
    Tokens,
    group_advantages,
    shaping_from_dict,
    tempered_members,
)

# One of each, with bounds inside the range of the random batches below, so that both sides of every cut are met.
RULES: list[tuple[Shaping, float]] = [
    (Shaping(low=0.1, high=0.15), 0.3),
    (DifficultyBonus(), 0.2),
    (DifficultyBonus(threshold=0.5), 0.2),
    (PeakBonus(quantile=0.6), 0.2),
    (RangeBonus(), 0.3),
    (ClipHigher(), 0.4),
    (ConfidentTokens(confident=0.6), -0.3),
    (AdvantageKL(), 0.4),
    (ClipCovariance(smallest=0.1, largest=2.0), 0.15),
    (KLCovariance(share=0.23), 0.7),
    (EntropyAdvantage(), 0.4),
    (TemperedReinforce(), 1.2),
    (GradientPreserving(dual=1.6, beta_2=0.8), 0.5),
    (LogitScaling(upper=2.0, share=0.4), 1.2),
    (QuantileBaseline(), 0.4),
    (LogProbAdvantage(), 0.5),
    (SampleRejection(), 1.0),
    (SampleRejection(), -1.0),
    (EntropyRatioClip(), 0.1),
    (GroupedRatio(), 0.15),
]
EACH = pytest.mark.parametrize(("rule", "coefficient"), RULES, ids=lambda value: type(value).__name__)
LONG = tuple(field.name for field in dataclasses.fields(Tokens) if field.name not in ("mask", "solved"))


def batch(rng: np.random.Generator, responses: int, length: int) -> Tokens:
    """Random tokens, right-padded; continuous numbers, so that nothing ties and nothing lies on a bound."""
    shape = (responses, length)
    log_probs = -rng.exponential(rng.choice([0.05, 2.0], size=shape))
    lengths = np.append(rng.integers(1, length + 1), rng.integers(0, length + 1, size=responses - 1))
    old_entropy = rng.exponential(size=shape) + 0.05
    return Tokens(
        log_probs=log_probs,
        old_log_probs=np.minimum(log_probs - 0.3 * rng.normal(size=shape), -1e-4),
        advantages=np.repeat(rng.normal(size=(responses, 1)), length, axis=1),
        mask=(np.arange(length) < lengths[:, None]).astype(float),
        entropy=old_entropy * np.exp(0.15 * rng.normal(size=shape)),
        old_entropy=old_entropy,
        support_entropy=rng.exponential(size=shape),
        kept=rng.integers(2, 60, size=shape).astype(float),
        solved=np.append(0.25, rng.integers(0, 5, size=responses - 1) / 4),
        reference_log_probs=log_probs + 0.5 * rng.normal(size=shape),
        uniforms=rng.uniform(size=shape),
    )


SEEDS = st.integers(0, 10**6)
BATCHES = st.builds(
    lambda seed, b, t: batch(np.random.default_rng(seed), b, t), SEEDS, st.integers(1, 6), st.integers(1, 8)
)


def mapped(function: Any, *tokens: Tokens) -> Tokens:
    """Tokens whose every field is ``function`` of that field of ``tokens``."""
    fields = [field.name for field in dataclasses.fields(Tokens)]
    return Tokens(**{name: function(*(getattr(each, name) for each in tokens)) for name in fields})


def by_hand(ratio: Any, advantages: Any, **fields: Any) -> Tokens:
    """One row per response; what a rule does not read is set to values without meaning."""
    advantages, ratio = np.atleast_2d(np.asarray(advantages, float)), np.asarray(ratio, float)
    ones = np.ones(advantages.shape)
    log_probs = np.asarray(fields.pop("log_probs", np.log(0.05) * ones), float)
    plain = {name: 0.5 * ones for name in LONG} | {"mask": ones, "solved": 0.5 * ones[:, 0], "kept": 7 * ones}
    given_ = {name: np.asarray(value, float) for name, value in fields.items()}
    own = {"log_probs": log_probs, "old_log_probs": log_probs - np.log(ratio), "advantages": advantages}
    return Tokens(**{**plain, **own, **given_})


# -------------------------------------------------------------------------------------------------------- by hand


def test_grpo_by_hand():
    """min(r A, clip(r, .8, 1.2) A) is flat where A > 0 and r > 1.2, or A < 0 and r < .8; else its slope is r A."""
    weights = Shaping()(by_hand([[1.3, 1.1, 0.7, 1.3, 0.7, 1.0]], [2, 2, 2, -1, -1, 3], mask=[[1, 1, 1, 1, 1, 0]]), 0.1)
    np.testing.assert_allclose(weights.policy, [[0, 2.2, 1.4, -1.3, 0, 0]])
    np.testing.assert_allclose(weights.bonus, [[0.1, 0.1, 0.1, 0.1, 0.1, 0]])


def test_clip_higher_by_hand():
    """r = 1.25 is inside [.8, 1.28], 1.3 is not; the lower end stays at .8. No bonus."""
    weights = ClipHigher()(by_hand([[1.25, 1.3, 0.7, 1.5]], [1, 1, -1, -1]), 0.28)
    np.testing.assert_allclose(weights.policy, [[1.25, 0, 0, -1.5]])
    np.testing.assert_array_equal(weights.bonus, 0)


def test_entropic_by_hand():
    """alpha = .2 on tokens with pi > .95: 2 (1 + .2), -2 (1 - .2); unsure tokens as before; r = 1.4: 0 + .2 * 1.4."""
    log_probs = np.log([[0.96, 0.96, 0.5, 0.5, 0.98]])
    weights = ConfidentTokens()(by_hand([[1, 1, 1, 1, 1.4]], [2, -2, 2, -2, 1], log_probs=log_probs), -0.2)
    np.testing.assert_allclose(weights.policy, [[2.4, -1.6, 2, -2, 0.28]])


def test_adrpo_by_hand():
    """pi_ref = pi / 2: pull 1 - 1/2; A = 1: 1 - (.04 - 1) / 2 = 1.48; A = -1: -1 - 1.04 / 2 = -1.52.
    pi_ref = 2 pi: pull 1 - 2 = -1; A = 1: 1 - (-.96)(-1) = .04."""
    log_probs = np.full((1, 3), -3.0)
    reference = log_probs + np.log([0.5, 0.5, 2.0])
    tokens = by_hand([[1, 1, 1]], [1, -1, 1], log_probs=log_probs, reference_log_probs=reference)
    np.testing.assert_allclose(AdvantageKL()(tokens, 0.04).policy, [[1.48, -1.52, 0.04]])


# mean A = 0, mean log pi = -2: centred log pi 1, 0 / .5, -1.5, so Cov = A times that: 2, 0 / -1, 3.
COVARIANCES = {"advantages": [[2, 2], [-2, -2]], "log_probs": [[-1, -2], [-1.5, -3.5]]}


@pytest.mark.parametrize(
    ("share", "uniforms", "expected"),
    [
        (0.25, [[0.6, 0.1], [0.1, 0.5]], [[2, 2], [-2, 0]]),  # one of the candidates 2 and 3: the lower draw
        (0.25, [[0.4, 0.1], [0.1, 0.5]], [[0, 2], [-2, -2]]),
        (2e-4, [[0.6, 0.1], [0.1, 0.5]], [[2, 2], [-2, 0]]),  # never fewer than one
        (0.75, [[0.6, 0.1], [0.1, 0.5]], [[0, 2], [-2, 0]]),  # three wanted, two there
    ],
)
def test_clip_cov_by_hand(share, uniforms, expected):
    tokens = by_hand([[1, 1], [1, 1]], **COVARIANCES, uniforms=uniforms)
    np.testing.assert_allclose(ClipCovariance()(tokens, share).policy, expected)
    above = ClipCovariance(largest=2.5)(tokens, 0.75).policy  # 3 is above 2.5: only Cov = 2 is left
    np.testing.assert_allclose(above, [[0, 2], [-2, -2]])


def test_clip_cov_does_not_draw_what_ppo_clips():
    """r = .7 and A = -2 is clipped at .8: the only candidate left is Cov = 2, though its draw is higher."""
    tokens = by_hand([[1, 1], [1, 0.7]], **COVARIANCES, uniforms=[[0.6, 0.1], [0.1, 0.5]])
    np.testing.assert_allclose(ClipCovariance()(tokens, 0.25).policy, [[0, 2], [-2, 0]])
    # mean A = -1, mean log pi = -2: Cov = 2, -2, -2, 2; A = 0 is never clipped, so the first is drawn, in vain
    tokens = by_hand([[0.7, 1, 1, 1]], [0, 0, -2, -2], log_probs=[[0, -4, 0, -4]], uniforms=[[0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_allclose(ClipCovariance()(tokens, 0.25).policy, [[0, 0, -2, -2]])


def test_kl_cov_by_hand():
    """The top quarter is Cov = 3: -2 * 1.1 - .5 sign(log 1.1). Others r A, also r = 1.3 > 1.2 (no PPO clip): 2.6."""
    tokens = by_hand([[1.3, 1], [1, 1.1]], **COVARIANCES)
    np.testing.assert_allclose(KLCovariance(share=0.25)(tokens, 0.5).policy, [[2.6, 2], [-2, -2.7]])
    tokens = by_hand([[1.3, 1], [1, 0.5]], **COVARIANCES)  # fell: the penalty pulls it up again
    np.testing.assert_allclose(KLCovariance(share=0.25)(tokens, 0.5).policy, [[2.6, 2], [-2, -0.5]])


def test_entropy_advantage_by_hand():
    """A + min(.4 H, |A| / 2): 1 + min(.2, .5), 1 + min(.8, .5), -1 + min(.8, .5), 0 + min(.8, 0)."""
    tokens = by_hand([[1, 1, 1, 1]], [1, 1, -1, 0], entropy=[[0.5, 2, 2, 2]])
    np.testing.assert_allclose(EntropyAdvantage()(tokens, 0.4).policy, [[1.2, 1.5, -0.5, 0]])


def test_aepo_by_hand():
    """The first six: mean .5, std sqrt(.3). The last two: (1 - .5) / std > .05 counts 1, (0 - .5) / std not."""
    rewards = np.array([[1, 0, 1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1, 0.0]])
    got = TemperedReinforce()(by_hand([[1, 1]], [2, -2]), 1.2)
    np.testing.assert_allclose(got.policy, [[2, -2]])
    unit = 0.5 / (math.sqrt(0.3) + 1e-4)
    expected = [[unit, -unit, unit, -unit, unit, -unit, 1, 0], [0] * 8]  # solved by all: nothing better than the mean
    np.testing.assert_allclose(TemperedReinforce().group_advantages(rewards, 1.2), expected, atol=1e-15)
    assert [tempered_members(TemperedReinforce(), group) for group in (2, 3, 4, 8, 16)] == [0, 1, 1, 2, 4]
    assert tempered_members(Shaping(), 8) == 0


def test_ce_gppo_by_hand():
    """.5 * .8 * -1; 1 * 1.2 * 1; beyond the dual clip 0; 9 < 10 keeps r A; .7 with A > 0 is not clipped."""
    tokens = by_hand([[0.7, 1.5, 11, 9, 0.7, 1.1]], [-1, 1, -1, -1, 1, -2])
    np.testing.assert_allclose(GradientPreserving()(tokens, 0.5).policy, [[-0.4, 1.2, 0, -9, 0.7, -2.2]])


def test_era_by_hand():
    """Top 20% of ten tokens: (.5 + .3) / 2 = .4 < .45 though the largest is not; 4 > 3; 1 is neither; A < 0 never."""
    rest = [0.01] * 8
    entropies = [[0.5, 0.3, *rest], [4, 4, *rest], [1, 1, *rest], [0.1, 0.1, *rest], [0.5, 0.3, *rest]]
    mask = np.ones((5, 10))
    mask[4, 6:] = 0  # six tokens count: 20% of them is one, .5 > .45
    advantages = np.repeat([[1.0], [1], [1], [-1], [1]], 10, axis=1)
    tokens = by_hand(np.ones((5, 10)), advantages, old_entropy=entropies, mask=mask)
    rule = LogitScaling()
    np.testing.assert_allclose(rule.logit_scale(tokens, 0.45), [[2], [0.5], [1], [1], [1]])
    np.testing.assert_allclose(rule(tokens, 0.45).policy[:, 0], [0.5, 2, 1, -1, 1])


def test_qae_by_hand():
    """G = 4, K = .4: from the second to the third smallest, a fifth of the way. std .5 for one odd one, else 3^-.5."""
    rewards = np.array([[0, 0, 0, 1], [1, 0, 1, 1], [1, 0, 1, 0.0]])
    one, two = 0.5 + 1e-4, math.sqrt(1 / 3) + 1e-4
    expected = [[0, 0, 0, 1 / one], [0, -1 / one, 0, 0], [0.8 / two, -0.2 / two, 0.8 / two, -0.2 / two]]
    np.testing.assert_allclose(QuantileBaseline().group_advantages(rewards, 0.4), expected, atol=1e-12)


def test_grpo_advantages_by_hand():
    """mean .25, std .5: (1 - .25) / .5001 and -.25 / .5001; a group of equal rewards gets 0."""
    got = group_advantages(np.array([[0, 0, 0, 1], [1, 1, 1, 1.0]]))
    np.testing.assert_allclose(got, [[-0.25 / 0.5001] * 3 + [0.75 / 0.5001], [0] * 4])


@pytest.mark.parametrize("backend", [np.array, torch.tensor])
@pytest.mark.parametrize("rule", [Shaping(), QuantileBaseline(), TemperedReinforce()], ids=repr)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e300])
def test_a_reward_that_no_deviation_can_be_taken_of_is_refused_by_its_place(wrong, rule, backend):
    """The square of 1e300 is no float either: the advantages of its group would be 0."""
    rewards = backend(np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, wrong, 1.0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"rewards\[1, 2\] is .*: expected finite numbers"):
            rule.group_advantages(rewards, 0.5)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (3, 0)])
def test_a_group_of_one_has_no_deviation(shape):
    with pytest.raises(ValueError, match="groups of G >= 2 responses"):
        group_advantages(np.zeros(shape))


def test_the_largest_reward_still_has_an_advantage():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = group_advantages(np.array([4e153, -4e153]))
    np.testing.assert_allclose(got, [0.5**0.5, -(0.5**0.5)])


def test_repo_r_by_hand():
    """zeta = .1, log pi = -2: 1 + .2 and -(1 - .2); log pi = -20: -(1 - 2), the sign turns. log pi at sampling."""
    log_probs = np.array([[-2, -2, -20.0]])
    tokens = by_hand([[1, 1, 1.1]], [1, -1, -1], log_probs=log_probs + np.log([1, 1, 1.1]))
    np.testing.assert_allclose(LogProbAdvantage()(tokens, 0.1).policy, [[1.2, -0.8, 1.1]])


@pytest.mark.parametrize(("coefficient", "expected"), [(1.0, [0, -1, 0]), (-1.0, [2, 0, 0]), (0.0, [2, -1, 0])])
def test_entrocraft_by_hand(coefficient, expected):
    np.testing.assert_allclose(SampleRejection()(by_hand([[1, 1, 1]], [2, -1, 0]), coefficient).policy, [expected])


def test_erc_by_hand():
    """H_new / H_old = 1.04, 1.06, .94, .96; 0 / 0 has not moved and stays, .1 / 0 has."""
    tokens = by_hand(
        np.ones((1, 6)), [1] * 6, entropy=[[2.08, 2.12, 1.88, 1.92, 0, 0.1]], old_entropy=[[2] * 4 + [0] * 2]
    )
    np.testing.assert_allclose(EntropyRatioClip()(tokens, 0.05).policy, [[1, 0, 0, 1, 1, 0]])


def test_espo_stand_in_by_hand():
    """Median 2.5, mean 2.5, c = .5. Lower part: r = e^{(.1 + .3) / 2} = 1.2214 < 1 + .5 * 1.5 / 2.5 = 1.3.
    Upper part: r = e^{(.8 + .4) / 2} = 1.8221 > 1 + .5 * 3.5 / 2.5 = 1.7: clipped for A = 1."""
    tokens = by_hand(np.exp([[0.1, 0.8, 0.3, 0.4]]), [1] * 4, entropy=[[1, 4, 2, 3]])
    np.testing.assert_allclose(GroupedRatio()(tokens, 0.5).policy, [[math.exp(0.2), 0, math.exp(0.2), 0]])
    low, high = -math.exp(0.2), -math.exp(0.6)
    tokens = dataclasses.replace(tokens, advantages=-tokens.advantages)
    np.testing.assert_allclose(GroupedRatio()(tokens, 0.5).policy, [[low, high, low, high]])


def test_aer_stand_in_by_hand():
    """1 - g = 0, .5, 1, 1, mean .625; with g <= .5: 0, 1, 1, 1, mean .75. All solved: no bonus."""
    tokens = by_hand(np.ones((4, 2)), np.ones((4, 2)), solved=[1, 0.5, 0, 0])
    np.testing.assert_allclose(DifficultyBonus()(tokens, 0.1).bonus, np.repeat([[0], [0.08], [0.16], [0.16]], 2, 1))
    hard = DifficultyBonus(threshold=0.5)(tokens, 0.3).bonus
    np.testing.assert_allclose(hard, np.repeat([[0], [0.4], [0.4], [0.4]], 2, 1))
    solved = dataclasses.replace(tokens, solved=np.ones(4))
    np.testing.assert_array_equal(DifficultyBonus()(solved, 0.1).bonus, 0)
    np.testing.assert_allclose(DifficultyBonus()(solved, 0.1).policy, 1)


def test_siren_by_hand():
    """Eight tokens in two responses: 4 each. .8 quantiles 4.2 and 2.2: one peak each. Medians 3 and 1: three each."""
    mask = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    tokens = by_hand(np.ones((2, 5)), np.ones((2, 5)), support_entropy=[[1, 2, 5, 4, 3], [1, 3, 1, 9, 9]], mask=mask)
    np.testing.assert_allclose(PeakBonus()(tokens, 0.1).bonus, [[0, 0, 0.4, 0, 0], [0, 0.4, 0, 0, 0]])
    third = 0.4 / 3
    half = PeakBonus(quantile=0.5)(tokens, 0.1).bonus
    np.testing.assert_allclose(half, [[0, 0, third, third, third], [third, third, third, 0, 0]])


def test_range_bonus_by_hand():
    tokens = by_hand([[1, 1]], [1, 1], kept=[[100, math.e]])
    np.testing.assert_allclose(RangeBonus()(tokens, 0.3).bonus, [[0.3 / 4.605170185988092, 0.3]])


# --------------------------------------------------------------------------------------------- loops over scalars


class Token(NamedTuple):
    """One counted token, all numbers plain floats."""

    row: int
    column: int
    log_prob: float
    old: float
    advantage: float
    entropy: float
    old_entropy: float
    support_entropy: float
    kept: float
    solved: float
    reference: float
    uniform: float

    @property
    def ratio(self) -> float:
        return math.exp(self.log_prob - self.old)


def counted(tokens: Tokens) -> list[Token]:
    columns = (
        "log_probs", "old_log_probs", "advantages", "entropy", "old_entropy", "support_entropy", "kept", "solved",
        "reference_log_probs", "uniforms",
    )  # fmt: skip
    values = [
        np.broadcast_to(v[:, None] if v.ndim == 1 else v, tokens.mask.shape)
        for v in map(tokens.__getattribute__, columns)
    ]
    return [Token(int(b), int(t), *(float(v[b, t]) for v in values)) for b, t in np.argwhere(tokens.mask > 0)]


def clips(token: Token, advantage: float, low: float = 0.2, high: float = 0.2) -> bool:
    """Whether the clipped side is the smaller one of min(r A, clip(r) A)."""
    return min(max(token.ratio, 1 - low), 1 + high) * advantage < token.ratio * advantage


def ppo(token: Token, advantage: float, low: float = 0.2, high: float = 0.2) -> float:
    return 0.0 if clips(token, advantage, low, high) else token.ratio * advantage


def mean(values: Any) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def covariance(token: Token, batch_: list[Token]) -> float:
    return (token.advantage - mean(t.advantage for t in batch_)) * (token.log_prob - mean(t.log_prob for t in batch_))


def response(token: Token, batch_: list[Token]) -> list[Token]:
    return [other for other in batch_ if other.row == token.row]


def grpo(rule, c, token, batch_):
    return ppo(token, token.advantage, rule.low, rule.high), c


def aer(rule, c, token, batch_, solved):
    hard = [1 - g if rule.threshold is None else float(g <= rule.threshold) for g in solved]
    return ppo(token, token.advantage), c * hard[token.row] * len(hard) / sum(hard) if sum(hard) else 0.0


def siren(rule, c, token, batch_):
    own = [other.support_entropy for other in response(token, batch_)]
    level = np.quantile(own, rule.quantile)
    peaks = sum(value >= level - 1e-12 for value in own)
    each = len(batch_) / len({other.row for other in batch_})
    return ppo(token, token.advantage), c * each / peaks if token.support_entropy >= level - 1e-12 else 0.0


def range_normalised(rule, c, token, batch_):
    return ppo(token, token.advantage), c / math.log(token.kept)


def clip_higher(rule, c, token, batch_):
    return ppo(token, token.advantage, rule.low, c), 0


def entropic(rule, c, token, batch_):
    """Loss + alpha (-r |A|) on sure tokens, alpha = -c."""
    extra = -c * token.ratio * abs(token.advantage) if math.exp(token.log_prob) > rule.confident else 0.0
    return ppo(token, token.advantage) + extra, 0


def adrpo(rule, c, token, batch_):
    """The k3 estimate is x - log x - 1 with x = pi_ref / pi; its slope in log pi is 1 - x."""
    slope = 1 - math.exp(token.reference) / math.exp(token.log_prob)
    return ppo(token, token.advantage) - (c - token.advantage) * slope, 0


def clip_cov(rule, c, token, batch_):
    free = [t for t in batch_ if not clips(t, t.advantage)]
    candidates = [t for t in free if rule.smallest < covariance(t, batch_) < rule.largest]
    drawn = sorted(candidates, key=lambda t: t.uniform)[: max(1, int(c * len(batch_)))]
    return 0.0 if token in drawn else ppo(token, token.advantage), 0


def kl_cov(rule, c, token, batch_):
    count = max(1, int(rule.share * len(batch_)))
    top = sorted(batch_, key=lambda t: covariance(t, batch_), reverse=True)[:count]
    slope = math.copysign(1, token.log_prob - token.old) if token in top else 0.0
    return token.ratio * token.advantage - c * slope, 0


def entropy_advantage(rule, c, token, batch_):
    return ppo(token, token.advantage + min(c * token.entropy, abs(token.advantage) / rule.kappa)), 0


def ce_gppo(rule, c, token, batch_):
    r, a = token.ratio, token.advantage
    if a < 0 and r < 1 - rule.low:
        return c * (1 - rule.low) * a, 0
    if a > 0 and r > 1 + rule.high:
        return rule.beta_2 * (1 + rule.high) * a, 0
    return (0.0 if a < 0 and r > rule.dual else r * a), 0


def era(rule, c, token, batch_):
    own = sorted((t.old_entropy for t in response(token, batch_)), reverse=True)
    level = mean(own[: max(1, int(rule.share * len(own) + 1e-9))])
    a = token.advantage
    if a > 0 and level < c:
        a /= rule.factor
    elif a > 0 and level > rule.upper:
        a *= rule.factor
    return ppo(token, a), 0


def repo_r(rule, c, token, batch_):
    a = token.advantage
    return ppo(token, a * (1 - c * token.old) if a > 0 else a * (1 + c * token.old)), 0


def entrocraft(rule, c, token, batch_):
    rejected = (c > 0 and token.advantage > 0) or (c < 0 and token.advantage < 0)
    return 0.0 if rejected else ppo(token, token.advantage), 0


def erc(rule, c, token, batch_):
    inside = 1 - c < token.entropy / token.old_entropy < 1 + c
    return ppo(token, token.advantage) if inside else 0.0, 0


def espo(rule, c, token, batch_):
    own = response(token, batch_)
    cut = np.median([t.entropy for t in own])
    part = [t for t in own if (t.entropy >= cut) == (token.entropy >= cut)]
    geometric = math.prod(t.ratio for t in part) ** (1 / len(part))
    reach = c * mean(t.entropy for t in part) / mean(t.entropy for t in batch_)
    as_one = token._replace(log_prob=math.log(geometric), old=0.0)
    return ppo(as_one, token.advantage, reach, reach), 0


SLOW: dict[type[Shaping], Any] = {
    Shaping: grpo, DifficultyBonus: aer, PeakBonus: siren, RangeBonus: range_normalised, ClipHigher: clip_higher,
    ConfidentTokens: entropic, AdvantageKL: adrpo, ClipCovariance: clip_cov, KLCovariance: kl_cov,
    EntropyAdvantage: entropy_advantage, TemperedReinforce: lambda *a: (grpo(*a)[0], 0), GradientPreserving: ce_gppo,
    LogitScaling: era, QuantileBaseline: lambda *a: (grpo(*a)[0], 0), LogProbAdvantage: repo_r,
    SampleRejection: entrocraft, EntropyRatioClip: erc, GroupedRatio: espo,
}  # fmt: skip


def slow(rule: Shaping, coefficient: float, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    policy, bonus = np.zeros(tokens.mask.shape), np.zeros(tokens.mask.shape)
    batch_ = counted(tokens)
    extra = (tokens.solved.tolist(),) if isinstance(rule, DifficultyBonus) else ()
    for token in batch_:
        at = token.row, token.column
        policy[at], bonus[at] = SLOW[type(rule)](rule, coefficient, token, batch_, *extra)
    return policy, bonus


def test_every_rule_has_a_loop_and_a_random_case():
    assert set(SLOW) == set(Shaping.registry.values()) == {type(rule) for rule, _ in RULES}
    assert len(SLOW) == 18


@EACH
@settings(max_examples=30)
@given(BATCHES)
def test_equals_a_loop_over_tokens(rule, coefficient, tokens):
    if isinstance(rule, KLCovariance):
        assume(tokens.mask[1:].any() and tokens.mask.sum() > 2)  # else covariances tie: see below
    policy, bonus = slow(rule, coefficient, tokens)
    weights = rule(tokens, coefficient)
    np.testing.assert_allclose(weights.policy, policy, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(weights.bonus, bonus, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rule", "coefficient"), RULES[1:], ids=lambda value: type(value).__name__)
def test_the_random_batches_reach_both_sides_of_every_rule(rule, coefficient):
    """Else the loop above could agree on a rule that never does anything."""
    changed, same = 0, 0
    for seed in range(20):
        tokens = batch(np.random.default_rng(seed), 5, 8)
        ours, plain = rule(tokens, coefficient), Shaping(rule.low, rule.high)(tokens, coefficient)
        pairs = zip(ours, plain, strict=True) if rule.pays_bonus else [(ours.policy, plain.policy)]
        different = np.sum([(np.abs(a - b) > 1e-12) * tokens.mask for a, b in pairs], axis=0)
        changed, same = changed + (different > 0).sum(), same + ((different == 0) * tokens.mask).sum()
    always = isinstance(rule, PeakBonus | RangeBonus | AdvantageKL | LogProbAdvantage | GroupedRatio)
    elsewhere = isinstance(rule, TemperedReinforce | QuantileBaseline)  # in the advantages of the group
    assert (changed == 0) if elsewhere else (changed > 0)
    assert always or same > 0


# --------------------------------------------------------------------------------------- the published losses, autograd


def slope(tokens: Tokens, objective: Any) -> np.ndarray:
    """Gradient of the sum of ``objective(log_probs, tokens)`` at the log-probabilities, counted tokens only."""
    tensors = mapped(torch.from_numpy, tokens)
    log_probs = tensors.log_probs.clone().requires_grad_(True)
    (objective(log_probs, tensors) * tensors.mask).sum().backward()
    assert log_probs.grad is not None
    return log_probs.grad.numpy()


def surrogate(log_probs, tokens, low=0.2, high=0.2):
    ratio = torch.exp(log_probs - tokens.old_log_probs)
    return torch.minimum(ratio * tokens.advantages, ratio.clamp(1 - low, 1 + high) * tokens.advantages)


def k3(log_probs, tokens):
    gap = tokens.reference_log_probs - log_probs
    return torch.exp(gap) - gap - 1


def preserved(log_probs, tokens):
    """beta (1 -+ eps) / sg(r) r A outside the range; dual clip: max(r A, dual A) for A < 0."""
    ratio, a = torch.exp(log_probs - tokens.old_log_probs), tokens.advantages
    kept = torch.where(a < 0, torch.maximum(ratio * a, 1.6 * a), ratio * a)
    kept = torch.where((a < 0) & (ratio < 0.8), 0.5 * 0.8 / ratio.detach() * ratio * a, kept)
    return torch.where((a > 0) & (ratio > 1.2), 0.8 * 1.2 / ratio.detach() * ratio * a, kept)


def sure(log_probs, tokens):
    extra = torch.exp(log_probs - tokens.old_log_probs) * tokens.advantages.abs() * (tokens.log_probs.exp() > 0.6)
    return surrogate(log_probs, tokens) + 0.3 * extra


LOSSES = {
    Shaping: lambda x, t: surrogate(x, t, 0.1, 0.15),
    ClipHigher: lambda x, t: surrogate(x, t, 0.2, 0.4),
    AdvantageKL: lambda x, t: surrogate(x, t) - (0.4 - t.advantages) * k3(x, t),
    GradientPreserving: preserved,
    ConfidentTokens: sure,
}


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.__name__)
@settings(max_examples=20)
@given(BATCHES)
def test_policy_weights_are_the_gradient_of_the_published_objective(kind, tokens):
    rule, coefficient = next(pair for pair in RULES if type(pair[0]) is kind)
    expected = slope(tokens, LOSSES[kind])
    np.testing.assert_allclose(rule(tokens, coefficient).policy, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=20)
@given(BATCHES)
def test_kl_cov_is_the_gradient_of_an_absolute_log_ratio_on_the_top(tokens):
    assume(tokens.mask[1:].any() and tokens.mask.sum() > 2)
    rule = KLCovariance(share=0.23)
    free = rule(tokens, 0.0).policy
    np.testing.assert_allclose(
        free, slope(tokens, lambda x, t: torch.exp(x - t.old_log_probs) * t.advantages), atol=1e-12
    )
    touched = torch.from_numpy(rule(tokens, 0.7).policy != free)
    penalty = slope(tokens, lambda x, t: -0.7 * (x - t.old_log_probs).abs() * touched)
    np.testing.assert_allclose(rule(tokens, 0.7).policy, free + penalty, atol=1e-12)
    assert int(touched.sum()) == max(1, int(0.23 * tokens.mask.sum()))


@settings(max_examples=20)
@given(BATCHES)
def test_espo_stand_in_is_the_gradient_of_the_clipped_ratio_of_its_parts(tokens):
    upper = np.zeros(tokens.mask.shape, bool)
    for row, mask in enumerate(tokens.mask > 0):
        if mask.any():
            upper[row] = tokens.entropy[row] >= np.median(tokens.entropy[row][mask])
    overall = tokens.entropy[tokens.mask > 0].mean()

    def objective(log_probs, t):
        total = torch.zeros_like(log_probs)
        for part in (torch.from_numpy(upper) * t.mask, torch.from_numpy(~upper) * t.mask):
            count = part.sum(-1, keepdim=True).clamp(min=1)
            ratio = torch.exp((part * (log_probs - t.old_log_probs)).sum(-1, keepdim=True) / count)
            reach = 0.15 * (part * t.entropy).sum(-1, keepdim=True) / count / overall
            clipped = torch.clamp(ratio, 1 - reach, 1 + reach)
            total = total + part * torch.minimum(ratio * t.advantages, clipped * t.advantages)
        return total

    np.testing.assert_allclose(GroupedRatio()(tokens, 0.15).policy, slope(tokens, objective), rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(BATCHES, st.floats(0.1, 2))
def test_siren_bonus_is_the_gradient_of_the_self_anchored_loss(tokens, anchor):
    """- d strength (mean over responses of the mean over peaks - anchor)^2, with the trainer's mean over N tokens."""
    rule = PeakBonus()
    entropies = torch.from_numpy(tokens.support_entropy).requires_grad_(True)
    per_response = []
    for row, mask in zip(entropies, torch.from_numpy(tokens.mask > 0), strict=True):
        if mask.any():
            own = row[mask]
            per_response.append(own[own.detach() >= torch.quantile(own.detach(), 0.8) - 1e-12].mean())
    level = torch.stack(per_response).mean()
    (-0.005 * (level - anchor) ** 2).backward()
    total = tokens.mask.sum()
    measured = float((rule.attention(tokens) * tokens.support_entropy * tokens.mask).sum() / total)
    assert measured == pytest.approx(level.item(), rel=1e-12)
    spring = Spring(0.005)
    state = spring.update(spring.update(spring.init(), anchor), measured)
    assert entropies.grad is not None
    np.testing.assert_allclose(rule(tokens, state.coefficient).bonus / total, entropies.grad, rtol=1e-9, atol=1e-14)
    assert rule.measures_attention


# ------------------------------------------------------------------------------------------------- stated properties


@settings(max_examples=60)
@given(BATCHES, st.floats(1e-4, 0.9))
def test_clip_cov_silences_exactly_its_share_of_the_candidates(tokens, share):
    rule = ClipCovariance(smallest=0.05, largest=1.5)
    batch_ = counted(tokens)
    candidates = [t for t in batch_ if not clips(t, t.advantage) and 0.05 < covariance(t, batch_) < 1.5]
    plain, ours = Shaping()(tokens, 0.0).policy, rule(tokens, share).policy
    silenced = (ours == 0) & (plain != 0)
    assert silenced.sum() == min(len(candidates), max(1, int(share * len(batch_))))
    assert {tuple(at) for at in np.argwhere(silenced)} <= {(t.row, t.column) for t in candidates}
    np.testing.assert_array_equal(ours[~silenced], plain[~silenced])


def test_clip_cov_draws_every_candidate_alike():
    rng, seen = np.random.default_rng(0), np.zeros((2, 4))
    tokens = by_hand(np.ones((2, 4)), [[2] * 4, [-2] * 4], log_probs=[[-1, -1.1, -1.2, -2], [-3.5, -3.6, -2, -2.6]])
    for _ in range(3000):
        drawn = dataclasses.replace(tokens, uniforms=rng.uniform(size=(2, 4)))
        seen += ClipCovariance()(drawn, 0.3).policy == 0  # int(.3 * 8) = 2 of the 5 candidates
    share = seen / 3000
    candidates = np.array([[1, 1, 1, 0, 0][:4], [1, 1, 0, 0]])  # mean log pi = -2.125: Cov 2.25, 2.05, 1.85, .25, ...
    np.testing.assert_allclose(share, candidates * 2 / 5, atol=0.045)  # five standard deviations


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_kl_cov_touches_its_share_also_where_covariances_tie(share):
    """Sure tokens have log pi = 0 exactly: they tie at the top. The published rule picks k of them, not all."""
    log_probs = np.tile([0.0, 0, 0, -0.5, -2], (4, 2))
    tokens = by_hand(np.full((4, 10), 1.01), np.repeat([[1], [1], [-1], [-1]], 10, axis=1), log_probs=log_probs)
    rule = KLCovariance(share=share)
    assert (rule(tokens, 0.5).policy != rule(tokens, 0.0).policy).sum() == int(share * 40)


@settings(max_examples=40)
@given(BATCHES, st.floats(-1, 1))
def test_entropic_weighs_sure_tokens_by_one_plus_or_minus_alpha(tokens, alpha):
    unclipped = ConfidentTokens(low=1.0, high=1e9, confident=0.6)
    positive = np.where(tokens.advantages > 0, 1 + alpha, 1 - alpha)
    factor = np.where(np.exp(tokens.log_probs) > 0.6, positive, 1.0)
    np.testing.assert_allclose(
        unclipped(tokens, -alpha).policy, tokens.ratio * tokens.advantages * factor * tokens.mask, atol=1e-12
    )


@settings(max_examples=40)
@given(BATCHES, st.floats(0, 1), st.floats(0, 1))
def test_ce_gppo_is_ppo_inside_and_bounded_outside(tokens, beta_1, beta_2):
    ours, plain = GradientPreserving(beta_2=beta_2)(tokens, beta_1).policy, Shaping()(tokens, 0.0).policy
    inside = np.abs(tokens.ratio - 1) <= 0.2
    np.testing.assert_array_equal(ours[inside], plain[inside])
    clipped = (plain == 0) & (tokens.mask > 0)
    bound = np.maximum(beta_1 * 0.8, beta_2 * 1.2) * np.abs(tokens.advantages)
    assert (np.abs(ours) <= bound + 1e-12)[clipped].all()
    assert (ours * tokens.advantages >= 0).all()


@settings(max_examples=40)
@given(BATCHES)
def test_era_keeps_the_product_of_scale_and_advantage(tokens):
    rule, coefficient = LogitScaling(upper=2.0, share=0.4), 1.2
    scale = rule.logit_scale(tokens, coefficient)
    assert scale.shape == (tokens.mask.shape[0], 1)
    np.testing.assert_allclose(scale * rule.advantages(tokens, coefficient), tokens.advantages)
    assert set(np.unique(scale)) <= {0.5, 1.0, 2.0}
    assert (scale[tokens.advantages[:, :1] <= 0] == 1).all()


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 12), st.floats(0, 1))
def test_quantiles_equal_numpys(seed, group, level):
    rewards = np.random.default_rng(seed).choice([0.0, 0.2, 0.5, 1.0], size=(3, group))
    baseline = np.quantile(rewards, level, axis=1, keepdims=True)
    expected = (rewards - baseline) / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(QuantileBaseline().group_advantages(rewards, level), expected, atol=1e-9)


@settings(max_examples=60)
@given(BATCHES, st.sampled_from([0.0, 0.25, 0.5, 0.8, 0.95, 1.0]))
def test_siren_picks_the_tokens_at_or_above_the_quantile(tokens, quantile):
    attention = PeakBonus(quantile=quantile).attention(tokens)
    for row, mask in enumerate(tokens.mask > 0):
        if mask.any():
            own = tokens.support_entropy[row][mask]
            np.testing.assert_array_equal(attention[row][mask] > 0, own >= np.quantile(own, quantile) - 1e-12)
            assert attention[row][mask][own.argmax()] > 0  # the largest always counts
    assert (attention[tokens.mask == 0] == 0).all()
    assert (attention * tokens.mask).sum() == pytest.approx(tokens.mask.sum())


@pytest.mark.parametrize("backend", [np.asarray, torch.from_numpy])
@given(SEEDS, st.integers(1, 12))
def test_siren_finds_a_peak_in_every_response_also_in_float32_with_ties(backend, seed, length):
    rng = np.random.default_rng(seed)
    entropies = rng.choice(rng.exponential(size=2), size=(8, length))
    tokens = by_hand(np.ones((8, length)), np.ones((8, length)), support_entropy=entropies)
    attention = PeakBonus().attention(mapped(lambda v: backend(v.astype(np.float32)), tokens))
    assert (attention > 0).any(-1).all()
    exact = PeakBonus().attention(mapped(lambda v: backend(v.astype(np.float32).astype(float)), tokens))
    np.testing.assert_array_equal(attention > 0, exact > 0)


@settings(max_examples=60)
@given(BATCHES, st.floats(0, 5), st.floats(1.01, 8))
def test_entropy_advantage_keeps_the_sign_and_is_bounded(tokens, coefficient, kappa):
    shaped = EntropyAdvantage(kappa=kappa).advantages(tokens, coefficient)
    assert (np.sign(shaped) == np.sign(tokens.advantages)).all()
    added = shaped - tokens.advantages
    assert (added >= 0).all()
    assert (added <= np.abs(tokens.advantages) / kappa + 1e-12).all()
    flipped = EntropyAdvantage(kappa=0.5).advantages(tokens, 1e6)  # control: kappa below 1 turns signs
    assert (tokens.advantages > 0).all() or (np.sign(flipped) != np.sign(tokens.advantages)).any()


@settings(max_examples=40)
@given(BATCHES, st.sampled_from([-1.0, -0.3, 0.4, 1.0]))
def test_entrocraft_trains_on_one_sign_only(tokens, coefficient):
    kept = SampleRejection()(tokens, coefficient).policy
    assert (kept * coefficient <= 0).all()
    one_sided = np.sign(tokens.advantages) != np.sign(coefficient)
    np.testing.assert_array_equal(kept[one_sided], Shaping()(tokens, 0.0).policy[one_sided])


@settings(max_examples=40)
@given(BATCHES, st.one_of(st.none(), st.sampled_from([0.25, 0.5, 1.0])))
def test_aer_weights_have_mean_one_over_responses(tokens, threshold):
    weights = DifficultyBonus(threshold=threshold).attention(tokens)[:, 0]
    assert weights.mean() == pytest.approx(1.0)
    assert weights.min() >= 0
    harder = np.argsort(tokens.solved, kind="stable")
    assert (np.diff(weights[harder]) <= 1e-12).all()  # never more where more is solved


@pytest.mark.parametrize("vocabulary", [2, 100, 150_000])
def test_range_bonus_is_worth_its_coefficient_at_most_whatever_the_vocabulary(vocabulary):
    weights = RangeBonus()(by_hand([[1.0]], [1.0], kept=float(vocabulary)), 0.3)
    assert weights.bonus[0, 0] * math.log(vocabulary) == pytest.approx(0.3)  # largest entropy: log of the number kept


def test_range_bonus_of_one_kept_token_is_zero():
    """A nucleus of a sure token is that token: its entropy is 0 whatever the weight, which must not be infinite."""
    with np.errstate(divide="ignore"):
        weights = RangeBonus()(by_hand([[1.0, 1.0]], [1.0, 1.0], kept=[[1, 10]]), 0.3)
    np.testing.assert_allclose(weights.bonus, [[0, 0.3 / math.log(10)]])


@settings(max_examples=60)
@given(SEEDS, st.integers(3, 16))
def test_aepo_baseline_ignores_the_tempered_members(seed, group):
    rule, rng = TemperedReinforce(alpha=0.7), np.random.default_rng(seed)
    rewards = rng.choice([0.0, 1.0], size=(3, group))
    members = tempered_members(rule, group)
    assert members == min(max(1, group // 4), group - 2)
    got = rule.group_advantages(rewards, 1.2)
    np.testing.assert_array_equal(got[:, :-members], group_advantages(rewards[:, :-members]))
    other = rewards.copy()
    other[:, -members:] = 1 - other[:, -members:]
    np.testing.assert_array_equal(rule.group_advantages(other, 1.2)[:, :-members], got[:, :-members])
    better = rewards[:, -members:] > rewards[:, :-members].mean(axis=1, keepdims=True)
    np.testing.assert_array_equal(got[:, -members:], 0.7 * better)


@EACH
def test_only_two_rules_change_the_advantages_of_a_group(rule, coefficient):
    rewards = np.random.default_rng(0).choice([0.0, 1.0], size=(6, 8))
    same = np.array_equal(rule.group_advantages(rewards, coefficient), group_advantages(rewards))
    assert same != isinstance(rule, TemperedReinforce | QuantileBaseline)


# ----------------------------------------------------------------------------------------- padding, shapes, backends


@EACH
@settings(max_examples=15)
@given(BATCHES, SEEDS)
def test_padding_weighs_nothing_and_moves_nothing(rule, coefficient, tokens, seed):
    rng = np.random.default_rng(seed)
    weights = rule(tokens, coefficient)
    for part in weights:
        assert (part[tokens.mask == 0] == 0).all()
    for scale in (1.0, 20.0):
        noise = {name: np.abs(scale * rng.normal(size=tokens.mask.shape)) + 1.5 for name in LONG}
        noise["advantages"] = tokens.advantages  # one number for the whole response, padding included
        noise["log_probs"], noise["old_log_probs"] = -noise["log_probs"], -noise["old_log_probs"]
        padded = {name: np.where(tokens.mask > 0, getattr(tokens, name), noise[name]) for name in LONG}
        for ours, expected in zip(rule(dataclasses.replace(tokens, **padded), coefficient), weights, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


@EACH
@pytest.mark.parametrize("filler", [0.0, 1.0, -1e30, 1e30], ids=str)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:divide by zero", "ignore:invalid value")
def test_padding_may_hold_any_finite_number(rule, coefficient, filler):
    tokens = batch(np.random.default_rng(2), 4, 6)
    assert (tokens.mask == 0).any()
    for name in ("log_probs", "old_log_probs", "entropy", "old_entropy", "support_entropy", "kept", "uniforms"):
        value = np.where(tokens.mask > 0, getattr(tokens, name), filler)
        moved = rule(dataclasses.replace(tokens, **{name: value}), coefficient)
        for ours, expected in zip(moved, rule(tokens, coefficient), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14, err_msg=name)


@EACH
@settings(max_examples=10)
@given(BATCHES)
def test_numpy_equals_torch(rule, coefficient, tokens):
    tensors = mapped(torch.from_numpy, tokens)
    for ours, theirs in zip(rule(tokens, coefficient), rule(tensors, coefficient), strict=True):
        assert isinstance(theirs, torch.Tensor)
        np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-12, atol=1e-14)
    rewards = np.random.default_rng(1).choice([0.0, 1.0], size=(2, 8))
    np.testing.assert_allclose(
        rule.group_advantages(torch.from_numpy(rewards), coefficient), rule.group_advantages(rewards, coefficient)
    )
    if rule.scales_logits:
        np.testing.assert_array_equal(rule.logit_scale(tensors, coefficient), rule.logit_scale(tokens, coefficient))


@EACH
@pytest.mark.parametrize("backend", [np.asarray, torch.from_numpy])
def test_float32_stays_float32(rule, coefficient, backend):
    tokens = batch(np.random.default_rng(3), 6, 8)
    small = mapped(lambda v: backend(v.astype(np.float32)), tokens)
    for part, expected in zip(rule(small, coefficient), rule(tokens, coefficient), strict=True):
        part = part if isinstance(part, np.ndarray) else part.numpy()
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, expected, rtol=2e-5, atol=1e-6)
    rewards = backend(np.array([[0, 1, 1, 0, 1]], np.float32))
    assert rule.group_advantages(rewards, coefficient).dtype == rewards.dtype


@EACH
@pytest.mark.parametrize("backend", [np.asarray, torch.from_numpy])
def test_runs_side_by_side_equal_one_at_a_time(rule, coefficient, backend):
    rng = np.random.default_rng(4)
    runs = [batch(rng, 4, 6) for _ in range(3)]
    together = mapped(lambda *values: backend(np.stack(values)), *runs)
    each = coefficient * np.array([0.5, 1.0, 1.5])
    column = backend(each.reshape(3, 1, 1))
    whole = rule(together, column)
    for run, (tokens, own) in enumerate(zip(runs, each, strict=True)):
        for part, expected in zip(whole, rule(tokens, float(own)), strict=True):
            assert part.shape == (3, 4, 6)
            np.testing.assert_allclose(part[run], expected, rtol=1e-12, atol=1e-14)
    rewards = rng.choice([0.0, 1.0], size=(3, 2, 8))
    advantages = rule.group_advantages(backend(rewards), column)
    for run, own in enumerate(each):
        np.testing.assert_allclose(advantages[run], rule.group_advantages(rewards[run], float(own)))


@EACH
@settings(max_examples=10)
@given(BATCHES, st.randoms(use_true_random=False))
def test_permuting_responses_permutes_the_weights(rule, coefficient, tokens, random):
    order = list(range(len(tokens.mask)))
    random.shuffle(order)
    moved = rule(mapped(lambda values: values[order], tokens), coefficient)
    for part, expected in zip(moved, rule(tokens, coefficient), strict=True):
        np.testing.assert_allclose(part, expected[order], rtol=1e-11, atol=1e-13)


@EACH
def test_advantages_may_come_as_one_number_per_response(rule, coefficient):
    tokens = batch(np.random.default_rng(5), 5, 6)
    short = dataclasses.replace(tokens, advantages=tokens.advantages[:, :1])
    for part, expected in zip(rule(short, coefficient), rule(tokens, coefficient), strict=True):
        assert part.shape == expected.shape
        np.testing.assert_allclose(part, expected, rtol=1e-12, atol=1e-14)


def test_a_batch_without_a_counted_token_weighs_nothing():
    tokens = dataclasses.replace(batch(np.random.default_rng(6), 2, 3), mask=np.zeros((2, 3)))
    for rule, coefficient in RULES:
        with np.errstate(all="raise", under="ignore"):
            weights = rule(tokens, coefficient)
        for part in weights:
            np.testing.assert_array_equal(part, 0)


def test_only_the_plain_rule_is_plain():
    assert Shaping(low=0.1).is_plain is True
    assert [rule.is_plain for rule, _ in RULES if type(rule) is not Shaping] == [False] * (len(RULES) - 1)


def test_a_number_at_a_bound_is_inside():
    """Clips, thresholds and bands are open or closed as published; all numbers here are exact in binary."""
    at_the_clip = by_hand([[0.5, 2.0]], [-4, 4], log_probs=[[0, 0]])  # low .5, high 1
    np.testing.assert_array_equal(Shaping(low=0.5, high=1.0)(at_the_clip, 0.0).policy, [[-2, 8]])
    np.testing.assert_array_equal(GradientPreserving(0.5, 1.0, beta_2=0.0)(at_the_clip, 0.0).policy, [[-2, 8]])
    np.testing.assert_array_equal(
        GradientPreserving(dual=2.0)(by_hand([[2.0]], [-4], log_probs=[[0]]), 0.0).policy, [[-8]]
    )
    half = by_hand([[1.0]], [1.0], log_probs=np.log([[0.5]]))  # pi > .5 is not met
    np.testing.assert_array_equal(ConfidentTokens(confident=0.5)(half, 8.0).policy, [[1]])
    even = by_hand([[1.0, 1.0]], [1.0], old_entropy=[[0.75, 0.75]])  # neither below .75 nor above it
    np.testing.assert_array_equal(LogitScaling(upper=0.75).logit_scale(even, 0.75), [[1]])
    # Cov = (1 - 0)(1 - 0) of two tokens with A = -+1 and log pi = -1 -+ 1: 1 is not above 1, nor below it
    tokens = by_hand([[1.0], [1.0]], [[-1.0], [1.0]], log_probs=[[-2.0], [0.0]], uniforms=[[0.1], [0.2]])
    for rule in (ClipCovariance(smallest=1.0, largest=5.0), ClipCovariance(smallest=0.0, largest=1.0)):
        np.testing.assert_array_equal(rule(tokens, 1.0).policy, [[-1], [1]])
    np.testing.assert_array_equal(ClipCovariance(smallest=0.5, largest=5.0)(tokens, 1.0).policy, [[0], [0]])  # control


@EACH
def test_a_rule_asks_for_what_it_reads(rule, coefficient):
    """Fields that a rule does not name in ``needs`` may be missing; without those that it names it cannot run."""
    tokens = batch(np.random.default_rng(7), 3, 4)
    optional = ("reference_log_probs", "uniforms", "old_entropy")
    assert set(rule.needs) <= set(optional)
    rule(dataclasses.replace(tokens, **{name: None for name in optional if name not in rule.needs}), coefficient)
    for name in rule.needs:
        with pytest.raises((TypeError, AttributeError)):
            rule(dataclasses.replace(tokens, **{name: None}), coefficient)


# --------------------------------------------------------------------------------------------------------- neutral


def as_is(tokens: Tokens) -> Tokens:
    return tokens


NEUTRAL = [  # (rule, coefficient that makes it plain GRPO, one that does not, what the tokens must be like for it)
    (ClipHigher(), 0.2, 0.35, as_is),
    (ConfidentTokens(confident=0.6), 0.0, 0.1, as_is),
    (AdvantageKL(), 0.4, 0.4, lambda t: dataclasses.replace(t, reference_log_probs=t.log_probs)),
    (ClipCovariance(smallest=1e8, largest=1e9), 0.5, 0.5, as_is),  # nothing is between
    (KLCovariance(low=1.0, high=9.0), 0.0, 0.5, as_is),
    (EntropyAdvantage(), 0.0, 0.4, as_is),
    (GradientPreserving(beta_2=0.0), 0.0, 0.5, as_is),
    (LogitScaling(upper=1e9), -1.0, 2.0, as_is),
    (LogProbAdvantage(), 0.0, 0.1, as_is),
    (SampleRejection(), 0.0, 1.0, as_is),
    (EntropyRatioClip(), 1e9, 0.1, as_is),
]


@pytest.mark.parametrize(("rule", "neutral", "other", "like"), NEUTRAL, ids=lambda v: type(v).__name__)
def test_at_its_neutral_coefficient_a_rule_is_grpo_and_at_another_it_is_not(rule, neutral, other, like):
    tokens = batch(np.random.default_rng(8), 8, 12)
    plain = Shaping(rule.low, rule.high)(tokens, 0.0)
    np.testing.assert_allclose(rule(like(tokens), neutral).policy, plain.policy, rtol=1e-12)
    np.testing.assert_array_equal(rule(like(tokens), neutral).bonus, 0)
    control = ClipCovariance(smallest=0.1) if isinstance(rule, ClipCovariance) else rule
    assert np.abs(control(tokens, other).policy - plain.policy).max() > 1e-3


def test_where_the_bonus_of_a_rule_is_the_plain_one():
    tokens = batch(np.random.default_rng(9), 6, 5)
    even = dataclasses.replace(tokens, mask=np.ones((6, 5)), solved=np.full(6, 0.25), kept=math.e)
    for rule in (DifficultyBonus(), PeakBonus(quantile=0.0), RangeBonus()):
        np.testing.assert_allclose(rule(even, 0.2).bonus, 0.2)
        np.testing.assert_array_equal(rule(even, 0.2).policy, Shaping()(even, 0.2).policy)
        assert np.ptp((PeakBonus() if isinstance(rule, PeakBonus) else rule)(tokens, 0.2).bonus[0]) > 0 or isinstance(
            rule, DifficultyBonus
        )
    assert np.ptp(DifficultyBonus()(tokens, 0.2).bonus) > 0


def test_espo_stand_in_of_one_token_each_and_equal_entropies_is_ppo():
    tokens = batch(np.random.default_rng(10), 40, 1)
    even = dataclasses.replace(tokens, entropy=np.full((40, 1), 0.7), mask=np.ones((40, 1)))
    np.testing.assert_allclose(GroupedRatio()(even, 0.2).policy, Shaping()(even, 0.0).policy, rtol=1e-12)
    assert np.abs(GroupedRatio()(even, 0.1).policy - Shaping()(even, 0.0).policy).max() > 0.1


def test_group_rules_at_their_neutral_setting():
    rewards = np.random.default_rng(11).choice([0.0, 1.0], size=(4, 2))
    np.testing.assert_allclose(QuantileBaseline().group_advantages(rewards, 0.5), group_advantages(rewards))  # a pair
    np.testing.assert_array_equal(TemperedReinforce().group_advantages(rewards, 1.2), group_advantages(rewards))
    wide = np.random.default_rng(12).choice([0.0, 1.0], size=(4, 8))
    np.testing.assert_array_equal(TemperedReinforce(alpha=0.0).group_advantages(wide, 1.2)[:, -2:], 0)


@pytest.mark.parametrize("rule", [Shaping(), QuantileBaseline(), TemperedReinforce(alpha=0.5)], ids=repr)
def test_rewards_that_are_integers_or_truth_values_are_numbers(rule):
    rewards = np.random.default_rng(13).integers(0, 2, size=(4, 8))
    expected = rule.group_advantages(rewards.astype(float), 0.4)
    assert np.ptp(expected) > 0.4
    for kind in (np.int64, np.int8, bool):
        np.testing.assert_array_equal(rule.group_advantages(rewards.astype(kind), 0.4), expected)
        found = rule.group_advantages(torch.tensor(rewards.astype(kind)), 0.4)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


# ------------------------------------------------------------------------------------------------------------ JSON


@EACH
def test_json_round_trip(rule, coefficient):
    assert shaping_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert shaping_from_dict({"type": type(rule).__name__}) == type(rule)()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"type": "ClipCovarianse"}, "did you mean 'ClipCovariance'"),
        ({"type": "_PolicyRule"}, "unknown shaping"),
        ({}, "Known: AdvantageKL, ClipCovariance, ClipHigher"),
        (
            {"type": "ClipCovariance", "share": 2e-4},
            "ClipCovariance: unknown share; expected low, high, smallest, largest",
        ),
        ({"type": "PeakBonus", "quantil": 0.8, "a": 1}, "unknown a, quantil"),
    ],
)
def test_bad_saved_rules_are_refused(saved, message):
    with pytest.raises(ValueError, match=message):
        shaping_from_dict(saved)


def test_a_rule_that_leaves_the_logits_has_no_scale():
    with pytest.raises(NotImplementedError):
        Shaping().logit_scale(batch(np.random.default_rng(0), 1, 1), 1.0)
