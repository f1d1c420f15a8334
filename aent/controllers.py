"""Rules that move the entropy coefficient from one measurement to the next.

A controller is a frozen config with two pure methods: ``init() -> State`` and ``update(state, measured) -> State``.
The loss uses ``state.coefficient`` (per nat of mean token entropy); ``measured`` is the mean token entropy in nats of
the last global step, over the same support and at the same temperature as the bonus. Nothing else is hidden: a run is
checkpointed by ``state.to_dict()`` and ``config.to_dict()`` and goes on to the same numbers.

All fields, states and measurements are plain floats, or arrays of one shape: a sweep over seeds and settings is then
one controller (entry i of every array is run i). Lists in JSON stand for arrays.

"Stable" below is for the static plant H_{k+1} = H_0 + gain * c_k with c_{k+1} = update(c_k, H_{k+1}), gain > 0 nats
per unit of coefficient: H_0 is the entropy without a bonus. Write L = step_size * gain for a rule that integrates
(Band, Anchored; Dual near its fixed point): each miss is (1 - L) times the one before, so

    L <= 1 no overshoot;  1 < L < 2 decaying oscillation;  L > 2 growth until an end of the box.

If the measurement comes one step later the limits are 1/4 (overshoot) and 1 (stability). If the entropy follows slowly,
H_{k+1} = a H_k + (1 - a)(H_0 + gain * c_k), they are (1 - sqrt a)/(1 + sqrt a) and 2 (1 + a)/(1 - a): a slow policy is
harder to throw off but overshoots from a smaller L. Both together are stable for L < 1 whatever the lag (the product of
the two roots is a + (1 - a) L): the delay decides. A real policy is nonlinear too: guides, not guarantees.

Left out: per-sample and per-token rules (``shaping.py``), and any decision *whether* to measure: always measure, also
at coefficient zero, so that no controller can switch itself off.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from aent.fields import check_numbers, is_whole_number
from aent.registry import Rules

__all__ = [
    "Anchored",
    "Band",
    "BangBang",
    "Constant",
    "Controller",
    "Doubling",
    "Dual",
    "ProportionalIntegral",
    "Schedule",
    "Spring",
    "State",
    "Switch",
    "controller_from_dict",
]

Scalar = float | int | np.floating | np.ndarray


@dataclass(frozen=True)
class State:
    """What a controller carries: the coefficient in use, the number of updates made, and its own memory.

    Examples:
        >>> State(0.01, step=3).to_dict()  # what belongs into a checkpoint
        {'coefficient': 0.01, 'step': 3, 'memory': None}
    """

    coefficient: Any
    step: int = 0
    memory: Any = None  # what it means is in each controller's docstring; None where nothing is remembered

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``from_dict`` gives back the same numbers exactly."""
        return {key: _to_json(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> State:
        """Inverse of ``to_dict``. Raises ValueError on missing or unknown keys and on values that are not finite."""
        known = {field.name for field in fields(cls)}
        unknown, missing = sorted(set(saved) - known), sorted({"coefficient"} - set(saved))
        if unknown or missing:
            what = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
            raise ValueError(f"{cls.__name__}: {what}; expected {', '.join(sorted(known))}")
        step = saved.get("step", 0)
        if not is_whole_number(step) or step < 0:
            raise ValueError(f"State.step: expected a whole number of updates >= 0, got {step!r}")
        arrays = {key: _floats(value, f"State.{key}") for key, value in saved.items() if isinstance(value, list)}
        found = cls(**{**saved, **arrays})
        for key, value in vars(found).items():
            number = isinstance(value, int | float | np.ndarray) and not isinstance(value, bool)
            if not number and not (key == "memory" and value is None):
                raise ValueError(f"State.{key}: expected a number or a list of numbers, got {value!r}")
            if value is not None and not np.all(np.isfinite(value)):
                raise ValueError(f"State.{key}: expected finite numbers, got {saved[key]!r}")
        return found


class Controller:
    """Base of all rules: validation, (de)serialisation, and the bookkeeping around one measurement.

    A subclass is a frozen dataclass with ``init`` and ``_rule``. Fields annotated as numbers (``float``, ``int``,
    ``Scalar``) must be finite; one that checks more calls ``super().__post_init__()`` first.
    """

    registry: ClassVar[Rules[Controller]] = Rules(
        "controller",
        expected="a controller: a subclass of aent.controllers.Controller",
        accepts=lambda found: isinstance(found, type) and issubclass(found, Controller),
        from_list=lambda values: _floats(values, "a list"),
    )

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Controller.registry.register(cls)

    def __post_init__(self) -> None:
        check_numbers(self, arrays=True)

    def init(self) -> State:
        """State before the first measurement."""
        raise NotImplementedError

    def update(self, state: State, measured: Scalar) -> State:
        """State after one measurement of the mean token entropy (nats). Pure.

        Raises:
            TypeError: a state that is none.
            ValueError: a measurement that is NaN, infinite or negative; a rule that answers with such a coefficient.
        """
        if not isinstance(state, State):
            raise TypeError(f"expected a State, as init() and update() give it, got {state!r}")
        entropy = _floats(measured, "measured entropy")
        if not np.all(np.isfinite(entropy)) or np.any(entropy < -1e-6):
            raise ValueError(
                f"measured entropy must be finite and >= 0 nats, got {measured!r}: "
                "check for NaN logits or an empty completion mask before updating the coefficient"
            )
        coefficient, memory = self._rule(state, entropy)
        if not np.all(np.isfinite(np.asarray(coefficient, dtype=float))):
            raise ValueError(
                f"{self!r} answered a measurement of {measured!r} nats with the coefficient {coefficient!r}"
            )
        try:
            return State(_plain(coefficient), state.step + 1, _plain(memory))
        except (TypeError, ValueError):
            raise ValueError(f"{self!r}: its memory must be None, a number or an array, got {memory!r}") from None

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        """(new coefficient, new memory)"""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready config, with the rule's name under ``type``; see ``controller_from_dict``."""
        return Controller.registry.to_dict(self)

    def coefficients(self) -> list[Any]:
        """Return the coefficients that the config names: the first and the last one, or the ends of the box."""
        ends = [getattr(self, name, None) for name in ("minimum", "maximum")]
        start: Any = self.init()
        if not isinstance(start, State) or np.asarray(start.coefficient).dtype.kind not in "fiu":
            raise ValueError(f"{type(self).__name__}.init() must return a State with a number in it, got {start!r}")
        return [start.coefficient, *(end for end in ends if isinstance(end, Scalar))]

    def _require(self, condition: Any, message: str) -> None:
        if not np.all(condition):
            raise ValueError(f"{self!r}: {message}")


def controller_from_dict(saved: dict[str, Any]) -> Controller:
    """Rebuild a controller from ``to_dict()``: ``{"type": "Band", "initial": ...}``.

    Raises:
        ValueError: unknown type (with a suggestion), missing or unknown keys, invalid values.

    Examples:
        >>> controller_from_dict({"type": "Constant", "coefficient": 0.01})
        Constant(coefficient=0.01)
    """
    return Controller.registry.from_dict(saved)


# -------------------------------------------------------------------------------------------------------- the rules


@dataclass(frozen=True)
class Constant(Controller):
    """A coefficient that never moves; 0 is "no regularisation".

    Fixed point: itself. Stable always; it holds no entropy anywhere.

    Examples:
        >>> sweep = Constant(np.array([0.0, 0.01]))  # two runs, the first without a bonus
        >>> sweep.update(sweep.init(), np.array([1.2, 1.5])).coefficient.tolist()
        [0.0, 0.01]
    """

    coefficient: Scalar = 0.0

    def init(self) -> State:
        return State(_plain(self.coefficient))

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        return state.coefficient, None


@dataclass(frozen=True)
class Schedule(Controller):
    """Open-loop decay or growth: from ``initial`` to ``final`` over ``steps`` updates, then held.

    linear: c_t = initial + (final - initial) t/steps; cosine: c_t = final + (initial - final) (1 + cos(pi t/steps))/2.

    Fixed point: ``final``. Ignores the measurement, so there is nothing to destabilise.
    """

    initial: Scalar
    final: Scalar
    steps: Scalar
    shape: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(np.asarray(self.steps) >= 1, "steps must be at least 1")
        self._require(np.asarray(self.steps) % 1 == 0, "steps must be a whole number")
        self._require(self.shape in ("linear", "cosine"), "shape must be 'linear' or 'cosine'")

    def init(self) -> State:
        return State(_plain(self.initial))

    def coefficients(self) -> list[Any]:
        return [self.initial, self.final]

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        t = np.minimum((state.step + 1) / np.asarray(self.steps), 1.0)
        done = t if self.shape == "linear" else (1 - np.cos(math.pi * t)) / 2
        return np.asarray(self.initial) * (1 - done) + np.asarray(self.final) * done, None


@dataclass(frozen=True)
class _Boxed(Controller):
    """Shared checks of the closed-loop rules: finite numbers and minimum <= initial <= maximum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high, start = (getattr(self, name) for name in ("minimum", "maximum", "initial"))
        self._require(
            np.asarray(low) < np.asarray(high), "minimum must be below maximum, or the coefficient cannot move"
        )
        self._require(
            (np.asarray(low) <= start) & (np.asarray(start) <= high),
            "initial must lie in [minimum, maximum]; widen the box or move the start",
        )
        gains = [getattr(self, name) for name in ("step_size", "proportional", "integral") if hasattr(self, name)]
        self._require(all(np.all(np.asarray(gain) >= 0) for gain in gains), "gains and step sizes must be >= 0")
        self._require(
            not gains or sum(np.asarray(gain) for gain in gains) > 0, "all gains are zero: use Constant instead"
        )

    def init(self) -> State:
        return State(_plain(self.initial))  # type: ignore[attr-defined]

    def _project(self, value: Any) -> Any:
        return np.clip(value, self.minimum, self.maximum)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Band(_Boxed):
    """AEnt's rule: a dead band [low, high] of entropy, projected onto a box of coefficients.

    ``c' = Proj_[minimum, maximum][ c - step_size * (min(0, H - low) + max(0, H - high)) ]``: below the band the
    coefficient grows in proportion to the miss, above it shrinks, inside it rests. The first ``warmup_steps``
    measurements leave it alone.

    Fixed point: every (c, H(c)) with low <= H <= high; an end of the box when the band is out of reach.
    Stable for L = step_size * gain <= 1 without leaving the band again once inside; for 1 < L <= 2 a miss m overshoots
    by (L - 1) m, which jumps over a band of width w = high - low when (L - 1) m > w, and still settles (L = 2: only
    because w > 0). For L > 2 misses below w / (L - 2) settle and larger ones grow to the ends of the box.

    Examples:
        >>> rule = Band(0.1, low=1.0, high=2.0, step_size=0.05, minimum=0.0, maximum=0.2)
        >>> measured = (0.4, 1.5, 3.0)  # below the band, inside it, above it
        >>> [round(rule.update(rule.init(), one).coefficient, 6) for one in measured]
        [0.13, 0.1, 0.05]

    Reference: arXiv 2509.03493, Eq. 4.1.
    """

    initial: Scalar
    low: Scalar
    high: Scalar
    step_size: Scalar
    minimum: Scalar
    maximum: Scalar
    warmup_steps: Scalar = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            (np.asarray(self.low) >= 0) & (np.asarray(self.low) <= self.high), "expected 0 <= low <= high nats"
        )
        self._require(np.asarray(self.minimum) >= 0, "minimum must be >= 0: AEnt's bonus never becomes a penalty")
        self._require(np.asarray(self.warmup_steps) >= 0, "warmup_steps must be >= 0")
        self._require(np.asarray(self.warmup_steps) % 1 == 0, "warmup_steps must be a whole number")

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        miss = np.minimum(0, measured - self.low) + np.maximum(0, measured - self.high)
        moved = self._project(state.coefficient - np.asarray(self.step_size) * miss)
        return np.where(state.step < np.asarray(self.warmup_steps), state.coefficient, moved), None


@dataclass(frozen=True)
class BangBang(_Boxed):
    """Skywork-OR1's rule: a fixed step towards the target, and the bonus only counts while entropy is below it.

    alpha' = Proj[ alpha + step_size if H < target else alpha - step_size ]; coefficient = alpha' if H < target else 0.
    ``memory`` is the ungated alpha, kept in the box; the gated coefficient may be 0 outside it, and always comes back.

    Fixed point: none when the target is within reach. On the static plant with H_0 < target the gate drops the whole
    bonus as soon as H >= target, so H alternates between H_0 and H_0 + gain * alpha while alpha steps down and up in
    turns: grown from below it peaks less than step_size * gain above the target, but an alpha that was larger (after a
    phase out of reach) stays larger. A slow policy averages this. Always bounded; out of reach alpha rests at
    ``maximum``, and with H_0 >= target at ``minimum``.

    Reference: arXiv 2505.22312, adaptive entropy control (defaults: delta 1e-4, target 0.2, start 0, cap 0.005).
    """

    target: Scalar = 0.2
    step_size: Scalar = 1e-4
    initial: Scalar = 0.0
    minimum: Scalar = 0.0
    maximum: Scalar = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(np.asarray(self.target) >= 0, "target must be >= 0 nats")

    def init(self) -> State:
        return State(_plain(self.initial), memory=_plain(self.initial))

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        below = measured < self.target
        alpha = self._project(np.where(below, state.memory + self.step_size, state.memory - self.step_size))
        return np.where(below, alpha, 0.0), alpha


@dataclass(frozen=True)
class Anchored(_Boxed):
    """Initial-anchored target with one global scale: our reading of AER, whose exact formulas are not public.

    Target H* = ratio * H_0 with H_0 the first measurement (``memory``); c' = Proj[ c + step_size * (H* - H) ].

    Fixed point: H = ratio * (first measurement) when reachable inside the box, else an end of the box. Stable for
    L = step_size * gain < 2, without overshoot for L <= 1.

    Examples:
        >>> rule = Anchored(step_size=0.1, maximum=1.0, ratio=0.5)
        >>> state = rule.update(rule.init(), 2.0)  # the first measurement sets the target: 1 nat
        >>> round(rule.update(state, 0.6).coefficient, 6)  # 0 + 0.1 * (1 - 0.6)
        0.04

    Reference: arXiv 2510.10959 (initial-anchored target entropy, dynamic global adjustment); ratio 0.4 is the value
    seen in notes about it. The update is this project's own design.
    """

    step_size: Scalar
    maximum: Scalar
    ratio: Scalar = 0.4
    initial: Scalar = 0.0
    minimum: Scalar = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(np.asarray(self.ratio) > 0, "ratio must be positive (0.4 keeps 40% of the initial entropy)")

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        anchor = measured.copy() if state.memory is None else np.asarray(state.memory)  # callers reuse their buffers
        return self._project(state.coefficient + self.step_size * (self.ratio * anchor - measured)), anchor


@dataclass(frozen=True)
class ProportionalIntegral(_Boxed):
    """PI control of the entropy, with anti-windup.

    c = Proj[ proportional * (target - H) + integral * S ], S += (target - H). ``memory`` is S. Negative coefficients (a
    penalty on entropy) are part of the rule; set ``minimum`` to 0 to forbid them. Anti-windup: while the output is at
    an end of its box, S does not move further in that direction, so recovery starts at once.

    Fixed point: H = target with c = integral * S, when reachable and integral > 0. Stable for
    gain * (proportional + integral / 2) < 1. With integral = 0 (P control; ``initial`` is then used once) the limit is
    gain * proportional < 1 and an offset (target - H_0) / (1 + gain * proportional) remains.

    Examples:
        >>> rule = ProportionalIntegral(target=1.0, proportional=0.1, integral=0.01)
        >>> first = rule.update(rule.init(), 0.5)  # 0.1 * 0.5 + 0.01 * 0.5
        >>> second = rule.update(first, 0.5)  # the same miss again: the integral has doubled
        >>> round(first.coefficient, 6), round(second.coefficient, 6)
        (0.055, 0.06)

    Reference: EntroPIC, arXiv 2511.15248: its alpha is minus this coefficient (K_p 1, K_i 0.01, target 0.1, box
    [-1, 1]) and weighs positive samples (1 + alpha), negative ones (1 - alpha); the anti-windup is ours.
    """

    target: Scalar = 0.1
    proportional: Scalar = 1.0
    integral: Scalar = 0.01
    initial: Scalar = 0.0
    minimum: Scalar = -1.0
    maximum: Scalar = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(np.asarray(self.target) >= 0, "target must be >= 0 nats")

    def init(self) -> State:
        start = np.asarray(self.initial, dtype=float)
        gain = np.asarray(self.integral, dtype=float)
        memory = np.divide(start, gain, out=np.zeros(np.broadcast(start, gain).shape), where=gain > 0)
        return State(_plain(start), memory=_plain(memory))

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        error = np.asarray(self.target) - measured
        wish = self.proportional * error + self.integral * (state.memory + error)
        outward = ((wish > self.maximum) & (error > 0)) | ((wish < self.minimum) & (error < 0))
        return self._project(wish), np.where(outward, state.memory, state.memory + error)


@dataclass(frozen=True)
class Dual(_Boxed):
    """SAC's temperature: dual ascent on the entropy constraint H >= target, in log space.

    log c' = Proj[ log c + step_size * (target - H) ], so the coefficient stays positive and moves by a factor.

    Fixed point: H = target when reachable; when the constraint is slack c falls to ``minimum``, when unreachable it
    rises to ``maximum``. Stable for step_size * gain * c < 2 at the c of the fixed point, which on the static plant is
    step_size * (target - H_0) < 2; without overshoot nearby for <= 1.

    Examples:
        >>> rule = Dual(target=1.0, step_size=1.0, initial=0.01, minimum=1e-4, maximum=1.0)
        >>> round(rule.update(rule.init(), 1 - math.log(2)).coefficient, 6)  # log 2 below the target: doubled
        0.02

    Reference: Haarnoja et al., arXiv 1812.05905, automatic temperature adjustment.
    """

    target: Scalar
    step_size: Scalar
    initial: Scalar
    minimum: Scalar
    maximum: Scalar

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(np.asarray(self.minimum) > 0, "minimum must be > 0: a coefficient of 0 has no logarithm")
        self._require(np.asarray(self.target) >= 0, "target must be >= 0 nats")

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        exponent = np.clip(np.asarray(self.step_size) * (self.target - measured), -700, 700)
        return self._project(state.coefficient * np.exp(exponent)), None


@dataclass(frozen=True)
class Spring(Controller):
    """SIREN's self-anchor: the gradient of the loss strength * (H - H_0)^2, as a coefficient of H.

    c = 2 strength (H_0 - H), H_0 the first measurement (``memory``): a bonus below the anchor, a penalty above it. The
    measurement is that of the step before, where SIREN's loss uses the step's own.

    Fixed point: H = H_0 only if the policy rests there by itself; proportional control leaves an offset,
    (H_rest - H_0) / (1 + gain * 2 strength). Stable for gain * 2 strength < 1.

    Reference: arXiv 2509.25133 (strength .005).
    """

    strength: Scalar = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(np.asarray(self.strength) > 0, "strength must be positive: use Constant(0) for no anchor")

    def init(self) -> State:
        return State(_plain(np.zeros_like(np.asarray(self.strength, dtype=float))))

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        anchor = measured.copy() if state.memory is None else np.asarray(state.memory)
        return 2 * np.asarray(self.strength) * (anchor - measured), anchor


@dataclass(frozen=True)
class Doubling(_Boxed):
    """REPO-R's rule: c' = Proj[2 c if H < H_0 else c / 2], H_0 the first measurement (``memory``).

    Fixed point: none; within reach H alternates around H_0 while c moves by a factor of two. Always bounded. The box is
    this project's own: no bounds are published, and without them c overflows.

    Reference: arXiv 2603.11682 (zeta doubles below the initial entropy and halves above).
    """

    initial: Scalar = 0.1
    minimum: Scalar = 1e-3
    maximum: Scalar = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(np.asarray(self.minimum) > 0, "minimum must be > 0: doubling 0 leads nowhere")

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        anchor = measured.copy() if state.memory is None else np.asarray(state.memory)
        factor = np.where(measured < anchor, 2.0, 0.5)
        return self._project(np.where(state.memory is None, 1.0, factor) * state.coefficient), anchor


@dataclass(frozen=True)
class Switch(Controller):
    """Three values of the coefficient: ``below`` the band of entropy, ``inside`` it, ``above`` it.

    The band [low, high] moves linearly to [low_end, high_end] over ``steps`` updates and then rests; by default it does
    not move. Starts at ``inside``.

    Fixed point: inside the band if the policy rests there with ``inside``; else H alternates around an end.

    Reference: AEPO, arXiv 2510.08141 (temperature 1.2 up to the target entropy, .8 above: low = high); Entrocraft,
    arXiv 2604.26326 (1 / 0 / -1 and a band .6 to .7 that falls to .4 to .5).
    """

    low: Scalar
    high: Scalar
    below: Scalar = 1.0
    inside: Scalar = 0.0
    above: Scalar = -1.0
    low_end: Scalar | None = None
    high_end: Scalar | None = None
    steps: Scalar = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require((np.asarray(self.low) >= 0) & (np.asarray(self.low) <= self.high), "expected 0 <= low <= high")
        self._require((self.low_end is None) == (self.high_end is None), "give low_end and high_end together")
        if self.low_end is not None:
            ordered = (np.asarray(self.low_end) >= 0) & (np.asarray(self.low_end) <= self.high_end)
            self._require(ordered, "expected 0 <= low_end <= high_end")
        self._require(np.asarray(self.steps) >= 1, "steps must be at least 1")
        self._require(np.asarray(self.steps) % 1 == 0, "steps must be a whole number")

    def init(self) -> State:
        return State(_plain(np.broadcast_arrays(np.asarray(self.inside, dtype=float), self.low)[0].copy()))

    def _rule(self, state: State, measured: np.ndarray) -> tuple[Any, Any]:
        low, high = self.band(state.step)
        return np.where(measured < low, self.below, np.where(measured > high, self.above, self.inside)), None

    def coefficients(self) -> list[Any]:
        return [self.below, self.inside, self.above]

    def band(self, step: int) -> tuple[Any, Any]:
        """[low, high] in nats that the measurement of update ``step`` is compared with."""
        done = np.minimum(step / np.asarray(self.steps, dtype=float), 1.0)
        ends = ((self.low, self.low_end), (self.high, self.high_end))
        low, high = (np.asarray(a) + (0 if b is None else (np.asarray(b) - a) * done) for a, b in ends)
        return low, high


# -------------------------------------------------------------------------------------------------------- internals


def _plain(value: Any) -> Any:
    """0-d arrays and integers become floats; arrays stay arrays."""
    if value is None:
        return None
    value = np.asarray(value, dtype=float)
    return float(value) if value.ndim == 0 else value


def _floats(values: Any, what: str) -> np.ndarray:
    try:
        if np.asarray(values).dtype == bool:
            raise TypeError
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{what}: expected numbers, got {values!r}") from None


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
