"""Every entropy-control method, by name: a support x a controller x a shaping rule, and the knob it is tuned by.

    method = METHODS["clip-cov"]
    method.support, method.controller, method.shaping

``Method`` holds all there is to say about one; the toys, the trainer, the figures and the pages take what they need.
Its parts carry the published numbers for language models; where a number or a formula is not public, ``assumptions``
says what we chose. The trainer takes the name (``AEntGRPOConfig(entropy_method="clip-cov")``) and lets any part be
replaced. The toys tune the one knob that ``sweep`` names (``toymdp.compare``). Grids of knobs are this project's own
design, centred on where each method works on the suite: entropies of 4 nats at the start and groups of 16 are not
those of a language model. A published constant is in its grid unless it is the coefficient of a bonus, which depends on
the scale of entropies and rewards.

Methods without a reference are this project's own: bonuses on a part of the vocabulary. The trainer takes them too.

A method of your own gets a name by ``METHODS["mine"] = Method(...)`` in a module of yours, say ``my_rules``; from YAML
and on a command line it is then ``my_rules:mine``, which imports the module first.

Left out, because too little is public to build on: UEC-RL, PAEC, GEPO, CES and others listed in EXPERIMENTS.md; how a
method looks in a figure (``paper_figures.style``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from aent.controllers import (
    Anchored,
    Band,
    BangBang,
    Constant,
    Controller,
    Doubling,
    ProportionalIntegral,
    Spring,
    Switch,
)
from aent.entropy import DropLowest, Full, Nucleus, Support, TopK, Tsallis
from aent.fields import is_finite_number
from aent.registry import Registry
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
)

__all__ = ["COEFFICIENTS", "METHODS", "RATIOS", "TARGETS", "Family", "Method", "Sweep", "method", "method_name"]


class Family(StrEnum):
    """What a method changes in GRPO."""

    NOTHING = "nothing"
    BONUS = "pays an entropy bonus"
    WEIGHTS = "weighs or drops samples and tokens"
    CLIP = "moves the clip"


@dataclass(frozen=True)
class Sweep:
    """The one knob by which a method is tuned on the toys, and what its values make of the method's parts.

    Args:
        knob: what it is called in tables.
        values: the grid, ascending. Those of this package hold seven, so that every method has the same budget.
        controller: maps values (R,) of the knob to one controller for R runs, such as ``Constant``.
        shaping: the rule on the toys where it is not the method's own.

    Raises:
        ValueError: no values, or something other than numbers; a controller in place of a function that makes one.
    """

    knob: str
    values: tuple[float, ...]
    controller: Callable[[np.ndarray], Controller]
    shaping: Shaping | None = None

    def __post_init__(self) -> None:
        if not callable(self.controller):
            raise ValueError(
                f"Sweep({self.knob!r}): controller must be a function from values of the knob to a controller, such "
                f"as Constant or lambda s: {self.controller!r}, got {self.controller!r}"
            )
        if not self.values or not all(is_finite_number(value) for value in self.values):
            raise ValueError(
                f"Sweep({self.knob!r}): values must be numbers, e.g. (0.01, 0.1), got {self.values!r}; a method that "
                "has no knob has no sweep"
            )


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        label: its name in tables and figures.
        reference: the paper; empty for an arm of this project's own.
        family: what it changes.
        controller: what moves its coefficient; like the other parts with the numbers published for language models.
        shaping: what it does to the policy gradient.
        support: the tokens that a bonus is taken over.
        assumptions: the details that we chose because the paper does not publish them; empty if there are none.
        trl: fields of ``trl.GRPOConfig`` that make TRL do what ``controller`` and ``shaping`` say; the trainer then
            uses TRL's own piece.
        sweep: how the toys tune it; without one they tune its learning rate only.

    Raises:
        ValueError: an unknown family, or a part of another kind.
    """

    label: str
    reference: str
    family: Family
    controller: Controller = field(default_factory=Constant)
    shaping: Shaping = field(default_factory=Shaping)
    support: Support = field(default_factory=Full)
    _: KW_ONLY
    assumptions: str = ""
    trl: dict[str, Any] = field(default_factory=dict)
    sweep: Sweep | None = None

    def __post_init__(self) -> None:
        if self.family not in list(Family):
            names = ", ".join(f"Family.{one.name}" for one in Family)
            raise ValueError(f"Method({self.label!r}): family must be one of {names}, got {self.family!r}")
        for name, kind, example in (
            ("controller", Controller, "Constant(0.01)"),
            ("shaping", Shaping, "PeakBonus()"),
            ("support", Support, "TopK(100)"),
            ("sweep", Sweep | None, "Sweep('coefficient', COEFFICIENTS, Constant)"),
        ):
            part = getattr(self, name)
            if isinstance(part, type) or not isinstance(part, kind):
                raise ValueError(f"Method({self.label!r}): {name} must be an object such as {example}, got {part!r}")

    def at(self, values: np.ndarray) -> Method:
        """Set the knob: the method whose controller is that of R runs with these ``values`` (R,).

        A method without a sweep has no knob and stays as it is.

        Examples:
            >>> METHODS["full"].at(np.array([0.1, 0.2])).controller
            Constant(coefficient=array([0.1, 0.2]))
        """
        if self.sweep is None:
            return self
        return replace(self, controller=self.sweep.controller(values), shaping=self.sweep.shaping or self.shaping)


# ------------------------------------------------------------------------------------------------------ grids of knobs
# Starts, gains and boxes of the controllers on the toys are this project's own design.

COEFFICIENTS = (0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)  # of a constant bonus
TARGETS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # nats: targets or lower ends of everything that aims at an entropy
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)  # targets as a share of the first measured entropy
_LARGEST = max(COEFFICIENTS)  # no controller of a bonus may go beyond the largest constant


def _band(low: np.ndarray) -> Band:
    """AEnt's controller on the band [low, 1.5 low]."""
    return Band(0.2, low, 1.5 * low, step_size=0.02, minimum=0.001, maximum=_LARGEST)


def _falling(low: np.ndarray) -> Switch:
    """Entrocraft's gate: a band that falls to two thirds over 500 phases, as .6 falls to .4."""
    return Switch(low, 1.2 * low, low_end=low / 1.5, high_end=0.8 * low, steps=500)


_CONSTANT = Sweep("coefficient", COEFFICIENTS, Constant)
_BAND = Sweep("lower end", TARGETS, _band)

# ------------------------------------------------------------------------------------------------------------- methods

_PUBLISHED_BAND = Band(0.002, 0.15, 0.24, step_size=0.002, minimum=6e-4, maximum=9e-3, warmup_steps=30)

_METHODS: dict[str, Method] = {
    "none": Method(
        "no bonus",
        "GRPO, arXiv 2402.03300",
        Family.NOTHING,
    ),
    "full": Method(
        "full entropy",
        "EntReg baseline of arXiv 2509.03493",
        Family.BONUS,
        Constant(0.002),
        sweep=_CONSTANT,
    ),
    "clamp40": Method("clamped, drop 40%", "", Family.BONUS, Constant(0.002), support=DropLowest(0.4), sweep=_CONSTANT),
    "clamp90": Method("clamped, drop 90%", "", Family.BONUS, Constant(0.002), support=DropLowest(0.9), sweep=_CONSTANT),
    "keep100": Method("clamped, keep 100", "", Family.BONUS, Constant(0.03), support=TopK(100), sweep=_CONSTANT),
    "full-band": Method("full entropy + band", "", Family.BONUS, _PUBLISHED_BAND, sweep=_BAND),
    "keep100-band": Method(
        "clamped, keep 100 + band", "", Family.BONUS, _PUBLISHED_BAND, support=TopK(100), sweep=_BAND
    ),
    "aent": Method(
        "AEnt",
        "arXiv 2509.03493, setting (a)",
        Family.BONUS,
        _PUBLISHED_BAND,
        support=DropLowest(0.33),
        sweep=_BAND,
    ),
    "aer": Method(
        "AER",
        "arXiv 2510.10959",
        Family.BONUS,
        Anchored(step_size=1e-3, maximum=0.01),
        DifficultyBonus(),
        assumptions="no formula is public: weights 1 - g(q), the additive update, step size and box are ours",
        sweep=Sweep("share of first entropy", RATIOS, lambda s: Anchored(0.02, _LARGEST, ratio=s, initial=0.2)),
    ),
    "entropic": Method(
        "EntroPIC",
        "arXiv 2511.15248",
        Family.WEIGHTS,
        ProportionalIntegral(),
        ConfidentTokens(),
        assumptions="the anti-windup is ours, and the integral adds once per rollout phase instead of per micro-batch",
        sweep=Sweep("target", TARGETS, ProportionalIntegral),
    ),
    "adrpo": Method(
        "ADRPO",
        "arXiv 2510.18053",
        Family.WEIGHTS,
        Constant(0.04),
        AdvantageKL(),
        assumptions="beta_0 is not public (.04 is GRPO's KL coefficient); beta_0 - A has no bound; KL by the k3 "
        "estimate",
        sweep=Sweep("beta_0", (0.003, 0.01, 0.04, 0.1, 0.3, 1.0, 3.0), Constant),
    ),
    "clip-cov": Method(
        "Clip-Cov",
        "arXiv 2505.22617",
        Family.WEIGHTS,
        Constant(2e-4),
        ClipCovariance(),
        sweep=Sweep("share of tokens", (2e-4, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8), Constant),
    ),
    "kl-cov": Method(
        "KL-Cov",
        "arXiv 2505.22617",
        Family.WEIGHTS,
        Constant(1.0),
        KLCovariance(),
        sweep=Sweep("KL coefficient", (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), Constant),
    ),
    "clip-higher": Method(
        "clip-higher (DAPO)",
        "arXiv 2503.14476",
        Family.CLIP,
        Constant(0.28),
        ClipHigher(),
        trl={"epsilon_high": 0.28},
        sweep=Sweep("upper clip", (0.22, 0.28, 0.35, 0.5, 1.0, 2.0, 4.0), Constant),
    ),
    "skywork": Method(
        "Skywork-OR1",
        "arXiv 2505.22312",
        Family.BONUS,
        BangBang(),
        trl={
            "use_adaptive_entropy": True,
            "entropy_coef": 0.0,
            "entropy_target": 0.2,
            "entropy_coef_delta": 1e-4,
            "entropy_coef_min": 0.0,
            "entropy_coef_max": 0.005,
        },
        sweep=Sweep("target", TARGETS, lambda s: BangBang(target=s, step_size=0.005, initial=0.2, maximum=_LARGEST)),
    ),
    "siren": Method(
        "SIREN",
        "arXiv 2509.25133",
        Family.BONUS,
        Spring(0.005),
        PeakBonus(high=0.28),
        Nucleus(0.8),
        assumptions="advantages keep GRPO's deviation, the nucleus is not cut to 10,000 logits, the anchor lags one "
        "phase",
        sweep=Sweep("anchor strength", (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32), Spring),
    ),
    "entropy-advantage": Method(
        "entropy advantage",
        "arXiv 2506.14758",
        Family.WEIGHTS,
        Constant(0.4),
        EntropyAdvantage(),
        sweep=Sweep("alpha", (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6), Constant),
    ),
    "aepo": Method(
        "AEPO",
        "arXiv 2510.08141",
        Family.WEIGHTS,
        Switch(0.75, 0.75, below=1.2, inside=1.2, above=0.8),
        TemperedReinforce(),
        assumptions="the tempered samples are the last quarter of every group and carry alpha = 1",
        sweep=Sweep("target", TARGETS, lambda s: Switch(s, s, below=1.2, inside=1.2, above=0.8)),
    ),
    "ce-gppo": Method(
        "CE-GPPO",
        "arXiv 2509.20712",
        Family.CLIP,
        Constant(0.75),
        GradientPreserving(),
        sweep=Sweep("beta_1", (0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0), Constant),
    ),
    "era": Method(
        "ERA",
        "arXiv 2510.08549",
        Family.WEIGHTS,
        Constant(0.45),
        LogitScaling(),
        sweep=Sweep("lower bound", (0.1, 0.25, 0.45, 1.0, 1.5, 2.0, 3.0), Constant, LogitScaling(upper=6.0)),
    ),
    "qae": Method(
        "QAE",
        "arXiv 2509.22611",
        Family.WEIGHTS,
        Constant(0.4),
        QuantileBaseline(),
        sweep=Sweep("quantile", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), Constant),
    ),
    "repo-r": Method(
        "REPO-R",
        "arXiv 2603.11682",
        Family.WEIGHTS,
        Doubling(),
        LogProbAdvantage(),
        assumptions="start and box of zeta, and log pi taken at sampling time, are ours",
        sweep=Sweep("largest zeta", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), lambda s: Doubling(s / 4, s / 64, s)),
    ),
    "entrocraft": Method(
        "Entrocraft",
        "arXiv 2604.26326",
        Family.WEIGHTS,
        Switch(0.6, 0.7, low_end=0.4, high_end=0.5, steps=200),
        SampleRejection(),
        assumptions="the length of the schedule (200 phases) is ours",
        sweep=Sweep("lower end", TARGETS, _falling),
    ),
    "erc": Method(
        "ERC",
        "arXiv 2512.05591",
        Family.CLIP,
        Constant(0.05),
        EntropyRatioClip(),
        sweep=Sweep("half-width", (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6), Constant),
    ),
    "range": Method(
        "range-normalised entropy",
        "arXiv 2406.05953",
        Family.BONUS,
        Constant(0.02),
        RangeBonus(),
        assumptions="the static form with Shannon's range log |A|; the coefficient is ours",
        sweep=Sweep("coefficient", (0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0), Constant),
    ),
    "tsallis": Method(
        "sparse Tsallis",
        "arXiv 1709.06293",
        Family.BONUS,
        Constant(0.01),
        support=Tsallis(),
        assumptions="the coefficient is ours",
        sweep=Sweep("coefficient", (0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0), Constant),
    ),
    "espo": Method(
        "ESPO (stand-in)",
        "arXiv 2512.00499",
        Family.CLIP,
        Constant(0.2),
        GroupedRatio(),
        assumptions="only the idea is public: split at the median entropy, clip range proportional to entropy are ours",
        sweep=Sweep("clip range", (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6), Constant),
    ),
}

METHODS: Registry[Method] = Registry(
    "method",
    _METHODS,
    expected="an aent.methods.Method",
    accepts=lambda found: isinstance(found, Method),
)


def method(name: str) -> Method:
    """Look a method up by name, or by ``module:name`` where a module of yours defines it.

    Raises:
        ValueError: unknown name, with the nearest known one; a module that cannot be imported.

    Examples:
        >>> found = method("aent")
        >>> found.reference, found.support, type(found.controller).__name__
        ('arXiv 2509.03493, setting (a)', DropLowest(share=0.33), 'Band')
    """
    return METHODS[name]


def method_name(given: str) -> str:
    """Return the name of a method as it is registered; case, underscores and hyphens do not matter.

    Raises:
        ValueError: unknown name, with the nearest known one; a module that cannot be imported.
    """
    return METHODS.find(given)[0]
