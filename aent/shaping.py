"""What a method does to the policy gradient: per-token weights from sampled log-probabilities, advantages, entropies.

A step of any method here follows, with the weights held constant,

    sum_t  policy_t  d log pi(a_t|s_t)  +  sum_t  bonus_t  d H~(s_t)

over its sampled tokens: ``rule(tokens, coefficient) -> Weights(policy, bonus)``. GRPO with an entropy bonus is
policy = r A where PPO does not clip, bonus = coefficient; every other rule is a change of the one or the other. The
coefficient is the rule's one knob and a controller moves it: for a bonus it is the bonus' coefficient, for clip-higher
the upper clip, for EntroPIC minus its alpha. So any controller can move any rule.

Rules are frozen configs whose methods are pure functions of arrays, for numpy and torch alike; everything comes in
detached and goes out as constants. Fields are the published defaults. ``methods.py`` pairs each rule with its support
and controller.

Left out: how the sums are normalised (the trainer's business, it differs between GRPO's variants), and where the
numbers come from. Statistics "over the batch" are those of the tokens handed in: a trainer's micro-batch.

Shape legend: ``...`` any leading shape (parallel runs), B responses, T tokens, Q prompts of G responses each (B = Q G,
members of a group side by side). Coefficients are floats, or arrays that broadcast against (..., B, T). Nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from array_api_compat import array_namespace

from aent.controllers import Controller
from aent.fields import check_numbers, is_within
from aent.registry import Rules

__all__ = [
    "AdvantageKL",
    "ClipCovariance",
    "ClipHigher",
    "ConfidentTokens",
    "DifficultyBonus",
    "EntropyAdvantage",
    "EntropyRatioClip",
    "GradientPreserving",
    "GroupedRatio",
    "KLCovariance",
    "LogProbAdvantage",
    "LogitScaling",
    "PeakBonus",
    "QuantileBaseline",
    "RangeBonus",
    "SampleRejection",
    "Shaping",
    "TemperedReinforce",
    "Tokens",
    "Weights",
    "group_advantages",
    "shaping_from_dict",
]


@dataclass(frozen=True)
class Tokens:
    """What a rule may look at, all detached; (..., B, T) unless said. Padding holds any finite number."""

    log_probs: Any  # log pi(a_t|s_t) under the present policy, at the logit scale of the rule
    old_log_probs: Any  # the same when the responses were sampled
    advantages: Any  # group-relative, broadcast over T
    mask: Any  # 1 for tokens that count
    entropy: Any  # H_t of the present policy
    old_entropy: Any  # H_t when the responses were sampled
    support_entropy: Any  # H~_t, over the support of the bonus
    kept: Any  # tokens in the support: a number, or (..., B, T)
    solved: Any  # (..., B) share of correct responses in the response's group
    reference_log_probs: Any = None  # under the reference policy
    uniforms: Any = None  # in [0, 1), fresh at every update

    @property
    def ratio(self) -> Any:
        """r = pi / pi_old"""
        return array_namespace(self.log_probs).exp(self.log_probs - self.old_log_probs)


class Weights(NamedTuple):
    """Per-token weights (..., B, T) of d log pi and of d H~ (nats); constants."""

    policy: Any
    bonus: Any


@dataclass(frozen=True)
class Shaping:
    """PPO's clipped surrogate and a bonus on every token: policy = clipped(A), bonus = coefficient. What others change.

    Examples:
        One response of two tokens. The second is 1.5 times as likely as when it was sampled: PPO clips it.

        >>> now, then = np.log([[0.5, 0.3]]), np.log([[0.5, 0.2]])
        >>> others = dict.fromkeys(("entropy", "old_entropy", "support_entropy", "kept", "solved"))
        >>> tokens = Tokens(now, then, advantages=np.ones((1, 1)), mask=np.ones((1, 2)), **others)
        >>> weights = Shaping()(tokens, 0.01)
        >>> weights.policy.tolist(), weights.bonus.tolist()
        ([[1.0, 0.0]], [[0.01, 0.01]])

    Reference: GRPO, arXiv 2402.03300, with an entropy bonus (AEnt: over its support).
    """

    low: float = 0.2  # PPO's clip range [1 - low, 1 + high]
    high: float = 0.2

    registry: ClassVar[Rules[Shaping]] = Rules(
        "shaping",
        expected="a shaping rule: a subclass of aent.shaping.Shaping",
        accepts=lambda found: isinstance(found, type) and issubclass(found, Shaping),
    )
    ranges: ClassVar[dict[str, str]] = {"low": "[0, 1]", "high": "[0, inf)"}  # of fields, added to those of the bases
    coefficients: ClassVar[str] = "(-inf, inf)"  # the range that the coefficient has a meaning in
    pays_bonus: ClassVar[bool] = True  # the coefficient multiplies an entropy bonus
    needs: ClassVar[tuple[str, ...]] = ()  # of ``reference_log_probs``, ``uniforms``, ``old_entropy``
    measures_attention: ClassVar[bool] = False  # the controller sees the mean of attention * H~ instead of H~
    tempered_share: ClassVar[float] = 0.0  # of each group, sampled at the coefficient as temperature
    scales_logits: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Shaping.registry.register(cls)

    def __post_init__(self) -> None:
        check_numbers(self)

    def check_controller(self, controller: Controller) -> None:
        """Raise ValueError if a controller begins or ends with coefficients that this rule has no meaning for."""
        for coefficient in controller.coefficients():
            if not is_within(coefficient, self.coefficients):
                raise ValueError(
                    f"{type(self).__name__} needs coefficients in {self.coefficients}, and {controller!r} has "
                    f"{coefficient!r}"
                )

    @property
    def is_plain(self) -> bool:
        """Whether this is GRPO with a bonus: what any trainer does without a rule."""
        return type(self) is Shaping

    def __call__(self, tokens: Tokens, coefficient: Any) -> Weights:
        """Weights of every token; 0 where the mask is."""
        xp, zero = array_namespace(tokens.mask), array_namespace(tokens.mask).zeros_like(tokens.log_probs)
        bonus = coefficient * self.attention(tokens) if self.pays_bonus else zero
        parts = (self.policy(tokens, coefficient), bonus)
        for name, part in zip(("policy", "attention"), parts, strict=True):
            self._check_shape(name, part, tokens)
        return Weights(*(xp.where(tokens.mask > 0, part, zero) for part in parts))  # padding may overflow

    def policy(self, tokens: Tokens, coefficient: Any) -> Any:
        """Weight of d log pi(a_t|s_t)."""
        advantages = self.advantages(tokens, coefficient)
        self._check_shape("advantages", advantages, tokens)
        return clipped(tokens, advantages, self.low, self.high)

    def _check_shape(self, name: str, part: Any, tokens: Tokens) -> None:
        """Refuse what would be broadcast over responses without a word."""
        shape, whole = tuple(part.shape), tuple(tokens.mask.shape)
        if len(shape) != len(whole) or shape[-2] != whole[-2] or shape[-1] not in (1, whole[-1]):
            raise ValueError(
                f"{type(self).__name__}.{name}: expected one value per token {whole} or per response "
                f"{(*whole[:-1], 1)}, got the shape {shape}"
            )

    def advantages(self, tokens: Tokens, coefficient: Any) -> Any:
        """Advantages that the surrogate is built on."""
        return tokens.advantages

    def attention(self, tokens: Tokens) -> Any:
        """Weight of a token's entropy in the bonus, relative to the coefficient."""
        return array_namespace(tokens.mask).ones_like(tokens.log_probs)

    def group_advantages(self, rewards: Any, coefficient: Any) -> Any:
        """(..., Q, G) rewards -> advantages of the sampled groups; ``coefficient`` broadcasts against (..., Q, G)."""
        return group_advantages(rewards)

    def logit_scale(self, tokens: Tokens, coefficient: Any) -> Any:
        """(..., B, 1): factor of a response's logits in the surrogate; asked only of rules that ``scales_logits``."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready config, with the rule's name under ``type``; see ``shaping_from_dict``."""
        return Shaping.registry.to_dict(self)


Shaping.registry.register(Shaping)


def shaping_from_dict(saved: dict[str, Any]) -> Shaping:
    """Rebuild a rule from ``to_dict()``: ``{"type": "KLCovariance", "share": 2e-4}``.

    Raises:
        ValueError: unknown type (with a suggestion) or unknown options.

    Examples:
        >>> shaping_from_dict({"type": "PeakBonus", "quantile": 0.9})
        PeakBonus(low=0.2, high=0.2, quantile=0.9)
    """
    return Shaping.registry.from_dict(saved)


# ------------------------------------------------------------------------------------------------------- the pieces


def group_advantages(rewards: Any) -> Any:
    """GRPO's: (R - mean) / (std + 1e-4) within each group, std with G - 1; (..., Q, G) -> same.

    Raises:
        ValueError: groups of one response; a reward that is NaN, infinite or too large to be squared, with its place.

    Examples:
        A group whose responses are all alike teaches nothing. In the other, std = sqrt(4 * 0.25 / 3).

        >>> group_advantages(np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])).round(3).tolist()
        [[0.866, -0.866, -0.866, 0.866], [0.0, 0.0, 0.0, 0.0]]
    """
    xp, rewards = array_namespace(rewards), _checked_rewards(rewards)
    mean = xp.mean(rewards, axis=-1, keepdims=True)
    return (rewards - mean) / _deviation(rewards)


def _checked_rewards(rewards: Any) -> Any:
    """Give the rewards of groups as floating numbers whose squares can be summed; integers become float64."""
    xp = array_namespace(rewards)
    if rewards.ndim < 1 or rewards.shape[-1] < 2:
        raise ValueError(
            f"rewards of shape {tuple(rewards.shape)}: expected (..., Q, G), groups of G >= 2 responses to one prompt"
        )
    if not xp.isdtype(rewards.dtype, ("bool", "integral", "real floating")):
        raise TypeError(f"rewards must be real numbers, got {rewards.dtype}")
    if not xp.isdtype(rewards.dtype, "real floating"):
        rewards = xp.astype(rewards, xp.float64)
    largest = (xp.finfo(rewards.dtype).max / (4 * rewards.shape[-1])) ** 0.5
    wrong = ~(xp.abs(rewards) <= largest)
    if bool(xp.any(wrong)):
        row = tuple(int(place[0]) for place in xp.nonzero(wrong))
        raise ValueError(
            f"rewards[{', '.join(map(str, row))}] is {float(rewards[row])}: expected finite numbers of at most "
            f"{largest:.1g}, or the deviation of their group overflows; leave that response out, or give it a reward"
        )
    return rewards


def clipped(tokens: Tokens, advantages: Any, low: Any, high: Any) -> Any:
    """Gradient weight of PPO's surrogate min(r A, clip(r, 1 - low, 1 + high) A): r A, or 0 where it is clipped."""
    xp, ratio = array_namespace(tokens.log_probs), tokens.ratio
    return xp.where(_outside(ratio, advantages, low, high), xp.zeros_like(ratio), ratio * advantages)


def _outside(ratio: Any, advantages: Any, low: Any, high: Any) -> Any:
    return ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))


def _deviation(rewards: Any) -> Any:
    xp = array_namespace(rewards)
    return xp.std(rewards, axis=-1, keepdims=True, correction=1) + 1e-4


def _batch_mean(values: Any, mask: Any) -> Any:
    """Mean over the tokens of the batch, (..., 1, 1)."""
    xp = array_namespace(values)
    total = xp.sum(mask * xp.ones_like(values), axis=(-2, -1), keepdims=True)
    return xp.sum(values * mask, axis=(-2, -1), keepdims=True) / xp.maximum(total, xp.ones_like(total))


def _covariance(tokens: Tokens) -> Any:
    """(A - mean A)(log pi - mean log pi): a token's share in how much a step lowers the entropy."""
    advantages = tokens.advantages + 0 * tokens.log_probs
    centred = [values - _batch_mean(values, tokens.mask) for values in (advantages, tokens.log_probs)]
    return centred[0] * centred[1]


def _smallest(keys: Any, count: Any) -> Any:
    """Which of the finite (..., B, T) keys are among the ``count`` (..., 1, 1) smallest; of equal ones the first."""
    xp = array_namespace(keys)
    flat = xp.reshape(keys, (*keys.shape[:-2], 1, -1))
    rank = xp.reshape(xp.argsort(xp.argsort(flat, axis=-1, stable=True), axis=-1), keys.shape)
    return (rank < count) & xp.isfinite(keys)


def _count(share: Any, mask: Any) -> Any:
    """max(1, int(share N)) of the N tokens of the batch, (..., 1, 1)."""
    xp = array_namespace(mask)
    count = xp.floor(share * xp.sum(mask, axis=(-2, -1), keepdims=True) + 1e-6)
    return xp.maximum(count, xp.ones_like(count))


def _row_quantile(values: Any, mask: Any, level: Any) -> Any:
    """Quantile of each row's counted values, linearly interpolated; (..., T) -> (..., 1)."""
    xp = array_namespace(values)
    ordered = xp.sort(xp.where(mask > 0, values, xp.full_like(values, xp.inf)), axis=-1)
    place = xp.arange(values.shape[-1], dtype=values.dtype, device=values.device)
    counted = xp.sum(mask * xp.ones_like(values), axis=-1, keepdims=True)
    wanted = level * xp.maximum(counted - 1, xp.zeros_like(counted))
    ordered = xp.where(counted > 0, ordered, xp.zeros_like(ordered))
    low = xp.max(xp.where(place <= wanted, ordered, xp.full_like(ordered, -xp.inf)), axis=-1, keepdims=True)
    high = xp.min(xp.where(place >= wanted, ordered, xp.full_like(ordered, xp.inf)), axis=-1, keepdims=True)
    return xp.minimum(low + (wanted - xp.floor(wanted)) * (high - low), high)  # exact where both ends are equal


# ----------------------------------------------------------------------------------------- rules that place the bonus


@dataclass(frozen=True)
class DifficultyBonus(Shaping):
    """AER: the bonus goes where the group fails. bonus = c w(q), w = (1 - g(q)) / mean (1 - g), or 1[g <= threshold].

    g(q) is the share of correct responses to the prompt. A batch in which everything is solved gets no bonus.

    Reference: arXiv 2510.10959, difficulty-aware coefficients; the formula is not public, this one is our reading.
    """

    threshold: float | None = None

    ranges: ClassVar[dict[str, str]] = {"threshold": "[0, 1]"}

    def attention(self, tokens: Tokens) -> Any:
        xp, solved = array_namespace(tokens.mask), tokens.solved
        hard = 1 - solved if self.threshold is None else xp.astype(solved <= self.threshold, solved.dtype)
        mean = xp.mean(hard, axis=-1, keepdims=True)
        return (hard / xp.maximum(mean, xp.full_like(mean, 1e-12)))[..., None] + xp.zeros_like(tokens.log_probs)


@dataclass(frozen=True)
class PeakBonus(Shaping):
    """SIREN: the bonus goes to each response's most uncertain tokens, each response counting alike.

    attention_t = (N / B) 1[H~_t >= quantile of the response] / (tokens chosen), so that its token mean with H~ is the
    mean over responses of the mean over peaks; a response's largest entropy always counts.

    Reference: arXiv 2509.25133, peak-entropy mask (quantile .8). The self-anchor is ``controllers.Spring``.
    """

    quantile: float = 0.8

    ranges: ClassVar[dict[str, str]] = {"quantile": "[0, 1]"}
    measures_attention: ClassVar[bool] = True

    def attention(self, tokens: Tokens) -> Any:
        xp, mask, values = array_namespace(tokens.mask), tokens.mask, tokens.support_entropy
        level = _row_quantile(values, mask, self.quantile)
        peak = xp.astype(values >= level - 1e-9, values.dtype) * mask
        chosen = xp.sum(peak, axis=-1, keepdims=True)
        responses = xp.sum(xp.astype(chosen > 0, values.dtype), axis=(-2, -1), keepdims=True)
        tokens_each = xp.sum(mask, axis=(-2, -1), keepdims=True) / xp.maximum(responses, xp.ones_like(responses))
        return tokens_each * peak / xp.maximum(chosen, xp.ones_like(chosen))


@dataclass(frozen=True)
class RangeBonus(Shaping):
    """Range-normalised entropy: bonus = c / log(tokens in the support), so that c means the same for any vocabulary.

    Reference: arXiv 2406.05953 (a regulariser's range grows with |A|; Shannon's is log |A|). Exact equations are not
    public, this is our reading of the static form.
    """

    def attention(self, tokens: Tokens) -> Any:
        xp = array_namespace(tokens.log_probs)
        kept = tokens.kept + xp.zeros_like(tokens.log_probs)
        some = kept > 1  # one kept token has no entropy to pay for, and log 1 = 0
        return xp.where(some, 1 / xp.log(xp.where(some, kept, xp.full_like(kept, 2.0))), xp.zeros_like(kept))


# ------------------------------------------------------------------------------- rules that change the policy gradient


@dataclass(frozen=True)
class _PolicyRule(Shaping):
    """A rule without an entropy bonus: its coefficient moves the policy weights instead."""

    pays_bonus: ClassVar[bool] = False


@dataclass(frozen=True)
class ClipHigher(_PolicyRule):
    """DAPO: the upper clip is the coefficient (.28), so that rare tokens have room to grow.

    Reference: arXiv 2503.14476. In the trainer this is TRL's ``epsilon_high``.
    """

    coefficients: ClassVar[str] = "[0, inf)"

    def policy(self, tokens: Tokens, coefficient: Any) -> Any:
        return clipped(tokens, tokens.advantages, self.low, coefficient)


@dataclass(frozen=True)
class ConfidentTokens(_PolicyRule):
    """EntroPIC: on tokens with pi > ``confident``, positive samples weigh (1 + alpha), negative ones (1 - alpha).

    policy = clipped(A) + alpha r |A| 1[pi > confident], alpha = -coefficient (the controller's sign: a positive
    coefficient raises entropy). Move it by ``ProportionalIntegral``.

    Reference: arXiv 2511.15248 (confident .95, K_p 1, K_i .01, target .1).
    """

    confident: float = 0.95

    ranges: ClassVar[dict[str, str]] = {"confident": "[0, 1)"}

    def policy(self, tokens: Tokens, coefficient: Any) -> Any:
        xp, weight = array_namespace(tokens.log_probs), super().policy(tokens, coefficient)
        sure = xp.astype(xp.exp(tokens.log_probs) > self.confident, weight.dtype)
        return weight - coefficient * tokens.ratio * xp.abs(tokens.advantages) * sure


@dataclass(frozen=True)
class AdvantageKL(_PolicyRule):
    """ADRPO: the pull to the reference is (beta_0 - A) KL, weaker for good samples; beta_0 is the coefficient.

    policy = clipped(A) - (beta_0 - A)(1 - e^{log pi_ref - log pi}), the last factor being the gradient of the k3
    estimate of KL(pi || pi_ref) that GRPO uses.

    Reference: arXiv 2510.18053; the value of beta_0 and any bound on (beta_0 - A) are not public: ours has none.
    """

    needs: ClassVar[tuple[str, ...]] = ("reference_log_probs",)

    def policy(self, tokens: Tokens, coefficient: Any) -> Any:
        xp = array_namespace(tokens.log_probs)
        pull = 1 - xp.exp(tokens.reference_log_probs - tokens.log_probs)
        return super().policy(tokens, coefficient) - (coefficient - tokens.advantages) * pull


@dataclass(frozen=True)
class ClipCovariance(_PolicyRule):
    """Clip-Cov: max(1, int(c N)) tokens drawn at random among those with smallest < Cov < largest get no gradient.

    Cov = (A - mean A)(log pi - mean log pi) over the batch; tokens that PPO clips are not drawn. c is the share.

    Reference: arXiv 2505.22617 (share 2e-4, Cov between 1 and 5).
    """

    smallest: float = 1.0
    largest: float = 5.0

    coefficients: ClassVar[str] = "(0, 1]"
    needs: ClassVar[tuple[str, ...]] = ("uniforms",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.smallest < self.largest:
            raise ValueError(f"{self!r}: smallest must be below largest, or no token is ever clipped")

    def policy(self, tokens: Tokens, coefficient: Any) -> Any:
        xp, weight, cov = array_namespace(tokens.log_probs), super().policy(tokens, coefficient), _covariance(tokens)
        free = ~_outside(tokens.ratio, tokens.advantages, self.low, self.high) & (tokens.mask > 0)
        candidate = free & (cov > self.smallest) & (cov < self.largest)
        keys = xp.where(candidate, tokens.uniforms, xp.full_like(tokens.uniforms, xp.inf))
        return xp.where(_smallest(keys, _count(coefficient, tokens.mask)), xp.zeros_like(weight), weight)


@dataclass(frozen=True)
class KLCovariance(_PolicyRule):
    """KL-Cov: the top ``share`` of tokens by Cov pay coefficient * |log pi - log pi_old|; no token is PPO-clipped.

    policy = r A - c sign(log pi - log pi_old) 1[top]. Zero penalty at the first update after sampling.

    Reference: arXiv 2505.22617 (share .002 for 7B, .0002 for 32B; coefficient 1).
    """

    share: float = 0.002

    coefficients: ClassVar[str] = "[0, inf)"
    ranges: ClassVar[dict[str, str]] = {"share": "(0, 1]"}

    def policy(self, tokens: Tokens, coefficient: Any) -> Any:
        xp, cov = array_namespace(tokens.log_probs), _covariance(tokens)
        keys = xp.where(tokens.mask > 0, -cov, xp.full_like(cov, xp.inf))
        top = xp.astype(_smallest(keys, _count(self.share, tokens.mask)), cov.dtype)
        moved = xp.sign(tokens.log_probs - tokens.old_log_probs)
        return tokens.ratio * tokens.advantages - coefficient * moved * top


@dataclass(frozen=True)
class EntropyAdvantage(_PolicyRule):
    """Reasoning with Exploration: A' = A + min(c H_t, |A| / kappa), H_t a constant.

    Reference: arXiv 2506.14758 (kappa 2, c .4 for GRPO and .1 for PPO).
    """

    kappa: float = 2.0

    ranges: ClassVar[dict[str, str]] = {"kappa": "(0, inf)"}

    def advantages(self, tokens: Tokens, coefficient: Any) -> Any:
        xp = array_namespace(tokens.log_probs)
        return tokens.advantages + xp.minimum(coefficient * tokens.entropy, xp.abs(tokens.advantages) / self.kappa)


@dataclass(frozen=True)
class TemperedReinforce(_PolicyRule):
    """AEPO: a quarter of each group is sampled at temperature c and adds alpha E_{pi^T}[ d log pi 1[correct] ].

    The last members of a group are the tempered ones: those better than the others' mean (advantage > ``margin``)
    get advantage alpha, the rest 0, and they are no part of the group's baseline. Move c by ``Switch``: 1.2 below the
    target entropy, .8 above.

    Reference: arXiv 2510.08141. Its code replaces 60 samples of a batch; a fixed share of each group is our reading.
    """

    alpha: float = 1.0
    margin: float = 0.05

    ranges: ClassVar[dict[str, str]] = {"alpha": "[0, inf)"}
    coefficients: ClassVar[str] = "(0, inf)"
    tempered_share: ClassVar[float] = 0.25

    def group_advantages(self, rewards: Any, coefficient: Any) -> Any:
        rewards = _checked_rewards(rewards)
        xp, plain = array_namespace(rewards), rewards.shape[-1] - tempered_members(self, rewards.shape[-1])
        base, extra = rewards[..., :plain], rewards[..., plain:]
        score = (extra - xp.mean(base, axis=-1, keepdims=True)) / _deviation(base)
        kept = self.alpha * xp.astype(score > self.margin, rewards.dtype)
        return xp.concat([group_advantages(base), kept], axis=-1)


def tempered_members(rule: Shaping, group: int) -> int:
    """How many of a group's last members are sampled at the rule's temperature; two at least are left as they are."""
    return min(max(1, int(rule.tempered_share * group)), group - 2) if rule.tempered_share else 0


@dataclass(frozen=True)
class GradientPreserving(_PolicyRule):
    """CE-GPPO: clipped tokens keep a bounded gradient.

    policy = beta_1 (1 - low) A where A < 0 and r < 1 - low; beta_2 (1 + high) A where A > 0 and r > 1 + high; else r A,
    0 where A < 0 and r > ``dual``. beta_1 is the coefficient.

    Reference: arXiv 2509.20712 (beta_1 .5 for 1.5B and .75 for 7B, beta_2 1, dual clip 10).
    """

    beta_2: float = 1.0
    dual: float = 10.0

    coefficients: ClassVar[str] = "[0, inf)"
    ranges: ClassVar[dict[str, str]] = {"beta_2": "[0, inf)", "dual": "(1, inf)"}

    def policy(self, tokens: Tokens, coefficient: Any) -> Any:
        xp, ratio, advantages = array_namespace(tokens.log_probs), tokens.ratio, tokens.advantages
        kept = xp.where((advantages < 0) & (ratio > self.dual), xp.zeros_like(ratio), ratio * advantages)
        kept = xp.where((advantages < 0) & (ratio < 1 - self.low), coefficient * (1 - self.low) * advantages, kept)
        return xp.where((advantages > 0) & (ratio > 1 + self.high), self.beta_2 * (1 + self.high) * advantages, kept)


@dataclass(frozen=True)
class LogitScaling(_PolicyRule):
    """ERA: good responses of low entropy are trained on sharpened logits, which leaves their own entropy high.

    For A > 0 and H_resp, the mean of the response's top ``share`` of token entropies when it was sampled: below the
    coefficient the logits are multiplied by ``factor`` and A divided by it, above ``upper`` the other way round; else
    nothing changes. Old and new log-probabilities are both those of the scaled logits.

    Reference: arXiv 2510.08549, language-model form (factor 2, bounds .45 and 3, top 20%).
    """

    factor: float = 2.0
    upper: float = 3.0
    share: float = 0.2

    ranges: ClassVar[dict[str, str]] = {"factor": "(1, inf)", "upper": "[0, inf)", "share": "(0, 1]"}
    needs: ClassVar[tuple[str, ...]] = ("old_entropy",)
    scales_logits: ClassVar[bool] = True

    def logit_scale(self, tokens: Tokens, coefficient: Any) -> Any:
        xp, entropy, mask = array_namespace(tokens.log_probs), tokens.old_entropy, tokens.mask
        down = -xp.sort(-xp.where(mask > 0, entropy, xp.full_like(entropy, -1.0)), axis=-1)  # entropies are >= 0
        counted = xp.sum(mask * xp.ones_like(entropy), axis=-1, keepdims=True)
        count = xp.maximum(xp.floor(self.share * counted + 1e-6), xp.ones_like(counted))
        place = xp.arange(entropy.shape[-1], dtype=entropy.dtype, device=entropy.device)
        response = xp.sum(xp.where(place < count, down, xp.zeros_like(down)), axis=-1, keepdims=True) / count
        good = tokens.advantages[..., :1] > 0
        scale = xp.where(good & (response < coefficient), xp.full_like(response, self.factor), xp.ones_like(response))
        return xp.where(good & (response > self.upper), xp.full_like(response, 1 / self.factor), scale)

    def advantages(self, tokens: Tokens, coefficient: Any) -> Any:
        return tokens.advantages / self.logit_scale(tokens, coefficient)


@dataclass(frozen=True)
class QuantileBaseline(_PolicyRule):
    """QAE: the group's baseline is the c-quantile of its rewards (linear interpolation) in place of their mean.

    Still divided by the group's deviation, as GRPO does.

    Reference: arXiv 2509.22611 (c .4; .6 against collapse).
    """

    coefficients: ClassVar[str] = "[0, 1]"

    def group_advantages(self, rewards: Any, coefficient: Any) -> Any:
        xp, rewards = array_namespace(rewards), _checked_rewards(rewards)
        return (rewards - _row_quantile(rewards, xp.ones_like(rewards), coefficient)) / _deviation(rewards)


@dataclass(frozen=True)
class LogProbAdvantage(_PolicyRule):
    """REPO-R: A' = A (1 - c log pi) for A > 0 and A (1 + c log pi) for A < 0: rare tokens gain more and lose less.

    Move c by ``Doubling``. A' of very rare bad tokens changes sign; no bound is published.

    Reference: arXiv 2603.11682 (zeta doubles below the initial entropy, halves above); log pi at sampling: our reading.
    """

    def advantages(self, tokens: Tokens, coefficient: Any) -> Any:
        xp = array_namespace(tokens.log_probs)
        return tokens.advantages * (1 - xp.sign(tokens.advantages) * coefficient * tokens.old_log_probs)


@dataclass(frozen=True)
class SampleRejection(_PolicyRule):
    """Entrocraft: c > 0 (entropy below its band) trains on negatives only, c < 0 on positives only, 0 is GRPO.

    Move c by ``Switch``.

    Reference: arXiv 2604.26326 (band .6 to .7, linearly down to .4 to .5).
    """

    def advantages(self, tokens: Tokens, coefficient: Any) -> Any:
        xp, advantages = array_namespace(tokens.log_probs), tokens.advantages + 0 * tokens.log_probs
        return xp.where(coefficient * advantages > 0, xp.zeros_like(advantages), advantages)


@dataclass(frozen=True)
class EntropyRatioClip(_PolicyRule):
    """ERC: tokens whose H_new / H_old leaves (1 - c, 1 + c) get no gradient.

    Reference: arXiv 2512.05591 (.95 to 1.05, so c = .05; its yaml default is .8 to 1.2).
    """

    coefficients: ClassVar[str] = "[0, inf)"
    needs: ClassVar[tuple[str, ...]] = ("old_entropy",)

    def policy(self, tokens: Tokens, coefficient: Any) -> Any:
        xp, weight = array_namespace(tokens.log_probs), super().policy(tokens, coefficient)
        still = xp.abs(tokens.entropy - tokens.old_entropy) <= coefficient * tokens.old_entropy
        return xp.where(still, weight, xp.zeros_like(weight))


@dataclass(frozen=True)
class GroupedRatio(_PolicyRule):
    """ESPO as far as public: an importance ratio per entropy group of a response, a clip range that follows entropy.

    A response's tokens split at their median entropy; r is the geometric mean over a part, clipped to
    1 +- c H_part / H_batch. Both the split and the range are our own stand-ins: the formulas are not public.

    Reference: arXiv 2512.00499 (idea only).
    """

    coefficients: ClassVar[str] = "[0, inf)"

    def policy(self, tokens: Tokens, coefficient: Any) -> Any:
        xp, mask, entropy = array_namespace(tokens.log_probs), tokens.mask, tokens.entropy
        upper = xp.astype(entropy >= _row_quantile(entropy, mask, 0.5), entropy.dtype)
        everywhere, weight = _batch_mean(entropy, mask), xp.zeros_like(entropy)
        for part in (upper * mask, (1 - upper) * mask):
            count = xp.sum(part, axis=-1, keepdims=True)
            count = xp.maximum(count, xp.ones_like(count))
            moved = xp.sum(part * (tokens.log_probs - tokens.old_log_probs), axis=-1, keepdims=True) / count
            level = xp.sum(part * entropy, axis=-1, keepdims=True) / count
            reach = coefficient * level / xp.maximum(everywhere, xp.full_like(everywhere, 1e-12))
            ratio = xp.exp(moved) + xp.zeros_like(entropy)
            outside = _outside(ratio, tokens.advantages, reach, reach)
            weight = weight + part * xp.where(outside, xp.zeros_like(ratio), ratio * tokens.advantages)
        return weight
