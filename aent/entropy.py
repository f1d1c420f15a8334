"""Token entropy over a chosen support: full, clamped (drop the lowest share), top-k, nucleus.

One definition for numpy and torch. A *support rule* gives every token a weight in [0, 1]; the entropy is that of the
policy renormalised over the kept tokens:

    p~_a = e^{z_a} / sum_b w_b e^{z_b},        H~ = - sum_a w_a p~_a log p~_a      (nats)

Standard entropy is the full support, w = 1. Weights are 0 or 1 except at the cut: tokens whose logit *equals* the
threshold share the remaining places equally, so neither value nor gradient depends on token order (bf16 logits tie all
the time). No gradient flows through the choice of the set, as in the authors' code.

Left out on purpose: anything that avoids holding the logits (the fused head of the language-model trainer does, and is
tested against this file). A numpy array is worked through a few rows at a time, so that 1,000 rows of 150,000 tokens
need little memory beyond themselves; a torch tensor passes whole, for autograd and the GPU.

Shape legend: ``*batch`` any leading shape, ``V`` vocabulary. All entropies are in nats. Dtypes: float32, float64; half
precision is refused, because sums over a vocabulary lose their digits in it: pass ``logits.float()``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array
from jaxtyping import Float

from aent.fields import is_finite_number, is_whole_number
from aent.registry import Rules, is_ours

__all__ = [
    "SUPPORTS",
    "DropLowest",
    "EntropySplit",
    "Full",
    "Nucleus",
    "Support",
    "TopK",
    "Tsallis",
    "clamped_entropy",
    "entropy",
    "entropy_gradient",
    "entropy_split",
    "rule_weights",
    "sampled_entropy",
    "support_from_dict",
    "support_to_dict",
    "support_weights",
]


Function = TypeVar("Function", bound=Callable[..., Any])

_BLOCK = 2**18  # numbers worked on at a time in numpy: the temporaries (about ten of this size) stay in the CPU's cache


def _by_blocks_of_rows(function: Function) -> Function:
    """Let a numpy ``function(logits, ...) -> array`` of independent rows see a few rows at a time."""

    @functools.wraps(function)
    def blockwise(logits: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(logits, np.ndarray) or logits.ndim < 2 or logits.size <= _BLOCK:
            return function(logits, *args, **options)
        *batch, vocabulary = logits.shape
        rows, step = logits.reshape(-1, vocabulary), max(1, _BLOCK // vocabulary)
        np.empty(64 * _BLOCK, np.uint8)  # freed at once: glibc then keeps freed blocks; paging them in again costs 2x
        first = function(rows[:step], *args, **options)
        result = np.empty((len(rows), *first.shape[1:]), first.dtype)
        result[:step] = first
        for start in range(step, len(rows), step):
            result[start : start + step] = function(rows[start : start + step], *args, **options)
        return result.reshape(*batch, *first.shape[1:])

    return blockwise  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------- support rules


@runtime_checkable
class Support(Protocol):
    """A support rule: which tokens the entropy is taken over. Any frozen dataclass with this method is one.

    A subclass is also known by its name, as the rules of this module are; any other is named by its module,
    ``my_rules:MinP``, where a run is saved.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        SUPPORTS.register(cls)

    def weights(self, logits: Any) -> Any:
        """Weights in [0, 1] of the shape of ``logits`` (*batch, V), constants for autograd.

        The rule must answer the same for the same logits: it is asked again for the gradient. A row of which it keeps
        nothing has entropy 0.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method weights(logits); see docs/extending.md")


SUPPORTS: Rules[Any] = Rules(
    "support",
    expected="a support rule: a frozen dataclass with a method weights(logits)",
    accepts=lambda found: isinstance(found, type) and callable(getattr(found, "weights", None)),
)


@dataclass(frozen=True)
class Full(Support):
    """Every token: standard entropy."""

    def kept(self, vocabulary: int) -> int:
        """Number of tokens kept out of ``vocabulary``."""
        return vocabulary

    def weights(self, logits: Any) -> Any:
        return array_namespace(logits).ones_like(logits)


@dataclass(frozen=True)
class DropLowest(Support):
    """AEnt's clamp: drop the ``int(share * V)`` tokens of lowest logit, 0 <= share < 1.

    A share by *count*, not by probability mass: not nucleus sampling.

    Examples:
        >>> DropLowest(0.5).weights(np.array([0.0, 3.0, 1.0, 2.0])).tolist()
        [0.0, 1.0, 0.0, 1.0]
        >>> DropLowest(0.33).kept(151_936)  # int(50138.88) are dropped
        101798

    Reference: arXiv 2509.03493, clamped token set A(s); ``int(V * p)`` as in the authors' code.
    """

    share: float

    def __post_init__(self) -> None:
        if not (is_finite_number(self.share) and 0.0 <= self.share < 1.0):
            raise ValueError(
                f"DropLowest(share={self.share!r}): the dropped share must be in [0, 1), e.g. 0.33; 0 keeps all tokens"
            )

    def kept(self, vocabulary: int) -> int:
        """Number of tokens kept out of ``vocabulary``: V - int(share * V), at least one."""
        return vocabulary - int(vocabulary * self.share)

    def weights(self, logits: Any) -> Any:
        return _top_weights(logits, self.kept(logits.shape[-1]))


@dataclass(frozen=True)
class TopK(Support):
    """The ``k`` tokens of highest logit; all of them when the vocabulary is smaller.

    Examples:
        >>> float(round(entropy(np.zeros(5), support=TopK(2)), 6))  # five equal tokens share two places: log 2
        0.693147
    """

    k: int

    def __post_init__(self) -> None:
        if not is_whole_number(self.k) or self.k < 1:
            raise ValueError(f"TopK(k={self.k!r}): k must be a whole number of tokens, at least 1")

    def kept(self, vocabulary: int) -> int:
        """Number of tokens kept out of ``vocabulary``: min(k, V)."""
        return min(int(self.k), vocabulary)

    def weights(self, logits: Any) -> Any:
        return _top_weights(logits, self.kept(logits.shape[-1]))


@dataclass(frozen=True)
class Nucleus(Support):
    """The smallest set of most probable tokens that holds at least ``mass``, 0 < mass <= 1; the crossing token is kept.

    Examples:
        >>> support_weights(np.log([0.5, 0.3, 0.15, 0.05]), Nucleus(0.7)).tolist()  # 0.5 is too little, 0.8 enough
        [1.0, 1.0, 0.0, 0.0]

    Reference: SIREN (arXiv 2509.25133) takes its entropy over a nucleus; its code leaves the crossing token out and
    can end with an empty set, this rule cannot.
    """

    mass: float

    def __post_init__(self) -> None:
        if not (is_finite_number(self.mass) and 0.0 < self.mass <= 1.0):
            raise ValueError(f"Nucleus(mass={self.mass!r}): the kept probability mass must be in (0, 1], e.g. 0.9")

    def weights(self, logits: Any) -> Any:
        return _nucleus_weights(logits, self.mass)


@dataclass(frozen=True)
class Tsallis(Support):
    """Not a support but another entropy over all tokens: Tsallis' of index 2, (1 - sum_a p_a^2) / 2, no unit.

    Its gradient at the logits is -p (p - sum p^2): quadratic in p, so that a thin tail is paid next to nothing; the
    policy that it and a reward make optimal gives most tokens exactly zero (sparsemax). Largest value (1 - 1/V) / 2.

    Examples:
        >>> float(round(entropy(np.log([0.5, 0.25, 0.25]), support=Tsallis()), 6))  # (1 - 1/4 - 1/16 - 1/16) / 2
        0.3125

    Reference: arXiv 1709.06293.
    """

    def kept(self, vocabulary: int) -> int:
        """Number of tokens kept out of ``vocabulary``: all."""
        return vocabulary

    def weights(self, logits: Any) -> Any:
        return array_namespace(logits).ones_like(logits)


def support_to_dict(rule: Support) -> dict[str, Any]:
    """Write a rule as JSON keeps it: ``{"type": "TopK", "k": 100}``; one of your own as ``{"type": "module:Name"}``.

    Raises:
        ValueError: a rule that is no dataclass, or that holds what JSON cannot.
    """
    return SUPPORTS.to_dict(rule)


def support_from_dict(saved: dict[str, Any]) -> Support:
    """Rebuild a rule from ``support_to_dict``.

    Raises:
        ValueError: unknown type (with a suggestion), unknown or missing options, values out of range.

    Examples:
        >>> support_from_dict({"type": "drop_lowest", "share": 0.33})
        DropLowest(share=0.33)
    """
    return SUPPORTS.from_dict(saved)


@_by_blocks_of_rows
def support_weights(logits: Float[Any, "*batch V"], support: Support) -> Float[Any, "*batch V"]:
    """Weights in [0, 1] of the tokens that ``support`` keeps.

    Tokens above the threshold weigh 1, below it 0; the ``m`` tokens *at* it share the remaining places:
    w = (kept - number above) / m. Rules by count sum to exactly the number kept.

    Args:
        logits: float32 or float64; ``-inf`` marks a token of probability zero. For ``Nucleus`` the temperature matters:
            pass logits already divided by it.
        support: the rule.

    Returns:
        Same shape and dtype as ``logits``; a constant for autograd.

    Raises:
        TypeError: not a floating array of float32/float64, or not a support rule.
        ValueError: NaN or +inf logits, a row of only -inf, an empty vocabulary.

    Examples:
        >>> support_weights(np.array([2.0, 1.0, 1.0, 0.0]), TopK(2)).tolist()
        [1.0, 0.5, 0.5, 0.0]
    """
    _check_type(logits)
    _check_values(logits)
    return _weights(logits, support)


# -------------------------------------------------------------------------------------------------------- entropies


@_by_blocks_of_rows
def entropy(
    logits: Float[Any, "*batch V"], *, support: Support = Full(), temperature: float = 1.0
) -> Float[Any, "*batch"]:
    """Entropy of softmax(logits / temperature) renormalised over ``support``.

    H~ = - sum_a w_a p~_a log p~_a, with p~_a = e^{z_a} / sum_b w_b e^{z_b} and z = logits / temperature. Torch autograd
    flows through the kept logits and equals ``entropy_gradient``.

    Returns:
        Entropy per row in nats, 0 <= H~ <= log(number kept). One kept token gives 0.

    Raises:
        TypeError, ValueError: as ``support_weights``; ValueError for a temperature that is not positive.

    Examples:
        >>> float(round(entropy(np.log([0.5, 0.25, 0.25])), 6))  # 1/2 log 2 + 1/2 log 4
        1.039721
        >>> float(round(entropy(np.array([2.0, 1, 0, -1, -2, -3]), support=DropLowest(0.5)), 6))
        0.832396

    Reference: arXiv 2509.03493, the entropy H and its clamped version H~, per token.
    """
    return _Renormalised.of(logits, support, temperature).entropy()


def clamped_entropy(logits: Float[Any, "*batch V"], *, drop: float, temperature: float = 1.0) -> Float[Any, "*batch"]:
    """AEnt's clamped entropy: the ``drop`` share of tokens with the lowest logits is left out.

    ``entropy(logits, support=DropLowest(drop))`` under the paper's name, in nats per row; ``drop`` = 0 is standard
    entropy.

    Raises:
        TypeError, ValueError: as ``entropy``; ValueError for a share outside [0, 1).

    Examples:
        >>> float(round(clamped_entropy(np.log([0.4, 0.4, 0.1, 0.1]), drop=0.5), 6))  # two equal tokens left: log 2
        0.693147
    """
    return entropy(logits, support=DropLowest(drop), temperature=temperature)


@_by_blocks_of_rows
def entropy_gradient(
    logits: Float[Any, "*batch V"], *, support: Support = Full(), temperature: float = 1.0
) -> Float[Any, "*batch V"]:
    """Closed-form gradient of ``entropy`` with respect to the logits, the kept set held fixed.

    dH~/dlogit_a = - w_a p~_a (log p~_a + H~) / temperature; zero outside the support; every row sums to zero.

    Returns:
        Same shape as ``logits``, in nats per unit of logit.

    Raises:
        TypeError, ValueError: as ``entropy``.

    Examples:
        >>> entropy_gradient(np.log([0.5, 0.25, 0.25])).round(6).tolist()  # (-1/4, 1/8, 1/8) log 2
        [-0.173287, 0.086643, 0.086643]

    Reference: gradient of H~ with A(s) frozen, as the authors' code masks without gradient.
    """
    return _Renormalised.of(logits, support, temperature).entropy_gradient() / float(temperature)


class EntropySplit(NamedTuple):
    """Parts of the full entropy: ``full = binary + (1 - dropped_mass) * clamped + dropped_mass * tail`` (nats)."""

    full: Any
    clamped: Any
    tail: Any
    binary: Any
    dropped_mass: Any


def entropy_split(logits: Float[Any, "*batch V"], support: Support, *, temperature: float = 1.0) -> EntropySplit:
    """Split the full entropy at the cut: H = h_b(eps) + (1 - eps) H~ + eps H_tail, an exact identity.

    ``eps`` is the dropped probability mass, h_b the binary entropy, H_tail the entropy inside the dropped tokens
    (0 when nothing is dropped).

    Returns:
        ``EntropySplit`` with one value per row, nats (``dropped_mass`` is a probability).

    Raises:
        TypeError, ValueError: as ``entropy``; ValueError for ``Tsallis``, which has no chain rule of this form.

    Examples:
        >>> split = entropy_split(np.log([0.3, 0.3, 0.2, 0.2]), TopK(2))
        >>> [float(round(part, 4)) for part in split]  # clamped and tail: two equal tokens each, log 2
        [1.3662, 0.6931, 0.6931, 0.673, 0.4]

    Reference: chain rule of entropy; see PAPER.md, P4.
    """
    if isinstance(support, Tsallis):
        raise ValueError("entropy_split is Shannon's chain rule over a kept set: Tsallis() has none, pass a support")
    parts = _split(logits, support, temperature)
    return EntropySplit(*array_namespace(parts).unstack(parts, axis=-1))


@_by_blocks_of_rows
def _split(logits: Any, support: Support, temperature: float) -> Any:
    """(*batch, V) -> (*batch, 5)"""
    whole = _Renormalised.of(logits, Full(), temperature)
    xp, weights = whole.xp, _weights(whole.scaled, support)
    kept = _Renormalised(xp, whole.scaled, weights)
    tail = _Renormalised(xp, whole.scaled, 1 - weights)
    dropped_mass = xp.sum((1 - weights) * whole.probability, axis=-1)
    binary = _binary_entropy(xp, dropped_mass)
    return xp.stack([whole.entropy(), kept.entropy(), tail.entropy(), binary, dropped_mass], axis=-1)


def sampled_entropy(logprobs: Float[Any, "*batch T"], *, mask: Any | None = None) -> Float[Any, "*batch"]:
    """Monte-Carlo entropy: minus the mean log-probability of sampled tokens.

    -(sum_t m_t log pi(a_t|s_t)) / sum_t m_t: unbiased for the full entropy when the tokens were drawn from the policy
    itself at the same temperature. It has no useful gradient as a loss: never back-propagate it.

    Args:
        logprobs: log-probabilities of the sampled tokens, finite and <= 0.
        mask: optional weights >= 0 of the tokens (1 = counts, 0 = padding, whatever its log-probability), same shape.

    Returns:
        Estimate per leading row, nats per token.

    Raises:
        TypeError: no array of real numbers.
        ValueError: log-probabilities that are positive, NaN or -inf where the mask counts them; a mask of another
            shape, negative or NaN; a row whose mask is all zero.

    Examples:
        >>> logprobs = np.log([0.5, 0.25, 0.9])  # of the tokens of a response; the last is padding
        >>> float(round(sampled_entropy(logprobs, mask=np.array([1, 1, 0])), 6))  # (log 2 + log 4) / 2
        1.039721
    """
    xp = _namespace(logprobs, "log-probabilities")
    if not xp.isdtype(logprobs.dtype, ("real floating", "integral")):
        raise TypeError(f"log-probabilities must be real numbers, got {logprobs.dtype}")
    if logprobs.dtype not in (xp.float32, xp.float64):  # sums of integers cannot hold a weight, those of halves few
        logprobs = xp.astype(logprobs, xp.float64)
    ones = xp.ones_like(logprobs)
    weight: Any = ones if mask is None else xp.asarray(mask, dtype=logprobs.dtype, device=device(logprobs))
    if weight.shape != logprobs.shape or bool(xp.any(~((weight >= 0) & (weight < math.inf)))):
        raise ValueError(
            f"sampled_entropy: expected a mask of shape {tuple(logprobs.shape)} with finite weights >= 0 (1 = counts), "
            f"got shape {tuple(weight.shape)}; NaN, infinite and negative weights are not allowed"
        )
    counted = weight > 0
    if bool(xp.any(counted & ~(logprobs <= 0))):
        raise ValueError("sampled_entropy: log-probabilities must be <= 0 and not NaN; were logits passed instead?")
    if bool(xp.any(counted & (logprobs == -math.inf))):
        raise ValueError(
            "sampled_entropy: expected finite log-probabilities, got -inf: no policy draws a token of probability 0. "
            "Give the log-probabilities of the policy that sampled, before tokens are masked, and mask padding out"
        )
    total = xp.sum(weight, axis=-1)
    if bool(xp.any(total <= 0)):
        raise ValueError("sampled_entropy: a row has no token to average over; drop empty completions first")
    return -xp.sum(weight * xp.where(counted, logprobs, xp.zeros_like(logprobs)), axis=-1) / total


# -------------------------------------------------------------------------------------------------------- internals


class _Renormalised:
    """softmax over weighted tokens without infinities: a ``where`` around one would turn its gradient into NaN.

    Logits are clipped from far below instead: the probability there is exactly 0, value and gradient stay finite.
    """

    def __init__(self, xp: Any, scaled: Any, weights: Any, tsallis: bool = False):
        self.xp, self.scaled, self.tsallis = xp, scaled, tsallis
        with np.errstate(divide="ignore", over="ignore"):
            log_kept = xp.log(xp.ceil(weights))  # 0 kept, -inf dropped; in numpy many times faster than ``where``
            peak = xp.max(_detached(scaled) + log_kept, axis=-1, keepdims=True)
            peak = xp.where(peak > -math.inf, peak, xp.zeros_like(peak))  # an empty tail has no peak
            shifted = (scaled - peak).clip(-1e30, 0.0)  # the top only for dropped tokens above the kept ones
        mass = weights * xp.exp(shifted)
        total = xp.sum(mass, axis=-1, keepdims=True)
        total = xp.where(total > 0, total, xp.ones_like(total))
        self.probability = mass / total  # w_a p~_a
        self.log_probability = shifted - xp.log(total)  # log p~_a where w_a > 0

    @classmethod
    def of(cls, logits: Any, support: Support, temperature: float) -> _Renormalised:
        if not (is_finite_number(temperature) and temperature > 0):
            raise ValueError(f"temperature={temperature!r}: expected a positive finite number, as used for sampling")
        _check_type(logits)
        with np.errstate(over="ignore"):  # infinity is refused below
            scaled = logits if temperature == 1 else logits / float(temperature)  # numpy's float64 would change a dtype
        _check_values(scaled)
        return cls(array_namespace(logits), scaled, _weights(scaled, support), isinstance(support, Tsallis))

    def entropy(self) -> Any:
        if self.tsallis:
            return (1 - self._collision()) / 2
        value = -self.xp.sum(self.probability * self.log_probability, axis=-1)
        return self.xp.where(value > 0, value, self.xp.zeros_like(value))[()]  # -1e-17 from rounding is 0

    def _collision(self) -> Any:
        return self.xp.sum(self.probability * self.probability, axis=-1)

    def entropy_gradient(self) -> Any:
        if self.tsallis:
            return -self.probability * (self.probability - self._collision()[..., None])
        return -self.probability * (self.log_probability + self.entropy()[..., None])


def _namespace(array: Any, what: str) -> Any:
    try:
        return array_namespace(array)
    except TypeError:
        raise TypeError(f"{what} must be a numpy array or torch tensor, got {type(array).__name__}") from None


def _check_type(logits: Any) -> None:
    xp = _namespace(logits, "logits")
    if logits.dtype not in (xp.float32, xp.float64):
        cure = "logits.float()" if is_torch_array(logits) else "logits.astype(np.float32)"
        raise TypeError(f"logits must be float32 or float64, got {logits.dtype}; convert them first: {cure}")
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits must have a last axis of at least one token, got shape {tuple(logits.shape)}")


def _check_values(logits: Any) -> None:
    """Validate by the row maximum alone: it is NaN, +inf or -inf exactly when the row is unusable."""
    if math.prod(logits.shape) == 0:
        return
    xp = array_namespace(logits)
    peak = xp.max(_detached(logits), axis=-1)
    if bool(xp.all((peak > -math.inf) & (peak < math.inf))):
        return  # one wait for the device where all is well
    if bool(xp.any(xp.isnan(peak))):
        raise ValueError("logits contain NaN: the model has diverged, or a mask was applied as 0 * inf")
    if bool(xp.any(peak == math.inf)):
        raise ValueError("logits contain +inf: expected finite logits, or -inf for tokens of probability zero")
    raise ValueError("a row of logits is all -inf: no token has any probability")


def _weights(logits: Any, support: Support) -> Any:
    if not isinstance(support, Support) or isinstance(support, type):
        raise TypeError(f"support must be a rule such as Full() or DropLowest(0.33), got {support!r}")
    weights = rule_weights(support, _detached(logits))
    if is_ours(type(support)) or math.prod(logits.shape) == 0:
        return weights
    xp = array_namespace(logits)
    if weights.shape != logits.shape or not bool(xp.all((weights >= 0) & (weights <= 1))):
        raise ValueError(
            f"{support!r}: expected weights in [0, 1] of shape {tuple(logits.shape)}, got shape {tuple(weights.shape)} "
            f"from {float(xp.min(weights)):g} to {float(xp.max(weights)):g}"
        )
    return weights


def rule_weights(support: Support, logits: Any) -> Any:
    """Ask a rule for its weights and give them the dtype of ``logits``; nothing is checked.

    A rule of your own may answer with a comparison: true and false become 1 and 0.

    Raises:
        TypeError: an answer that is no array of the kind of ``logits``.
    """
    weights = support.weights(logits)
    if getattr(weights, "dtype", None) == logits.dtype:
        return weights
    xp = array_namespace(logits)
    try:
        return xp.astype(weights, logits.dtype)
    except (TypeError, AttributeError):
        raise TypeError(
            f"{support!r}: weights() must return an array like the logits ({type(logits).__name__}), got "
            f"{type(weights).__name__}; take functions from array_api_compat.array_namespace(logits)"
        ) from None


def _top_weights(logits: Any, kept: int) -> Any:
    xp = array_namespace(logits)
    if kept >= logits.shape[-1] or math.prod(logits.shape) == 0:
        return xp.ones_like(logits)
    threshold = _kth_largest(logits, kept)
    above, equal = _above_and_equal(xp, logits, threshold)
    places = kept - xp.sum(above, axis=-1, keepdims=True)
    return above + equal * (places / xp.sum(equal, axis=-1, keepdims=True))


def _above_and_equal(xp: Any, logits: Any, threshold: Any) -> tuple[Any, Any]:
    """Indicators 0/1 as numbers: products of them are several times faster than ``where`` in numpy."""
    return xp.astype(logits > threshold, logits.dtype), xp.astype(logits == threshold, logits.dtype)


def _nucleus_weights(logits: Any, mass: float) -> Any:
    xp = array_namespace(logits)
    vocabulary = logits.shape[-1]
    if mass == 1.0 or math.prod(logits.shape) == 0:
        return xp.ones_like(logits)
    peak = xp.max(logits, axis=-1, keepdims=True)
    odds = _odds(xp, logits, peak)
    # An exact multiple must not become one more token by rounding: ask for a touch less than ``mass``.
    needed = mass * (1 - 1e-12) * xp.sum(odds, axis=-1, keepdims=True)
    count = min(vocabulary, 128)  # language models need few tokens; grow until the mass is reached: rarely a full sort
    while True:
        top = _largest_sorted(logits, count)
        cumulative = xp.cumulative_sum(_odds(xp, top, peak), axis=-1)
        if count == vocabulary or bool(xp.all(cumulative[..., -1:] >= needed)):
            break
        count = min(vocabulary, 8 * count)
    crossing = xp.sum(cumulative[..., :-1] < needed, axis=-1, keepdims=True)  # index of the token that crosses
    threshold = xp.take_along_axis(top, crossing, axis=-1)
    above, equal = _above_and_equal(xp, logits, threshold)
    missing = needed - xp.sum(above * odds, axis=-1, keepdims=True)
    group = xp.astype(xp.sum(equal, axis=-1, keepdims=True), xp.float64)
    places = xp.ceil(missing / _odds(xp, threshold, peak))
    places = xp.where(places > 1, places, xp.ones_like(places))  # summed in another order, ``missing`` may round to 0
    share = xp.where(places < group, places / group, xp.ones_like(group))
    return above + equal * xp.astype(share, logits.dtype)


def _odds(xp: Any, logits: Any, peak: Any) -> Any:
    """Probability over that of the top token, in float64: 150,000 small terms are added up."""
    return xp.exp(xp.astype(logits - peak, xp.float64))


# Selection is O(V). On the CPU numpy's vectorised partition serves torch too, through shared memory: ten times faster
# than torch.kthvalue there (EXPERIMENTS.md).


def _kth_largest(logits: Any, k: int) -> Any:
    """(..., V) -> (..., 1)"""
    if _on_accelerator(logits):
        return logits.kthvalue(logits.shape[-1] - k + 1, dim=-1, keepdim=True).values
    return _partitioned(logits, k)[..., :1]


def _largest_sorted(logits: Any, k: int) -> Any:
    """(..., V) -> (..., k), largest first"""
    if _on_accelerator(logits):
        return logits.topk(k, dim=-1).values
    xp = array_namespace(logits)
    return xp.flip(xp.sort(_partitioned(logits, k), axis=-1, stable=False), axis=-1)


def _partitioned(logits: Any, k: int) -> Any:
    """(..., V) -> (..., k): the k largest in any order, but the smallest of them first"""
    host = logits.numpy() if is_torch_array(logits) else logits
    start = host.shape[-1] - k
    return array_namespace(logits).asarray(np.partition(host, start, axis=-1)[..., start:])


def _on_accelerator(logits: Any) -> bool:
    return is_torch_array(logits) and logits.device.type != "cpu"


def _detached(array: Any) -> Any:
    return array.detach() if is_torch_array(array) else array


def _binary_entropy(xp: Any, probability: Any) -> Any:
    """-e log e - (1 - e) log(1 - e), exact to relative precision for small e; 0 at the ends."""
    inside = (probability > 0) & (probability < 1)
    e = xp.where(inside, probability, xp.full_like(probability, 0.5))
    return xp.where(inside, -e * xp.log(e) - (1 - e) * xp.log1p(-e), xp.zeros_like(e))
