"""Every entropy-control method of the field: a support x a controller x a shaping rule, by name.

    method = METHODS["clip-cov"]
    method.support, method.controller, method.shaping

The numbers are the published ones for language models; where a number or a formula is not public, ``reading`` says
what is ours. The toy suite tunes each method's one knob (``toymdp.compare``); the trainer takes the name
(``AEntGRPOConfig(entropy_method="clip-cov")``) and lets any of the three parts be replaced.

A method of your own gets a name by ``METHODS["mine"] = Method(...)`` in a module of yours, say ``my_rules``; from YAML
and on a command line it is then ``my_rules:mine``, which imports the module first.

Left out, because too little is public to build on: UEC-RL, PAEC, GEPO, CES and others listed in EXPERIMENTS.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
from aent.entropy import DropLowest, Full, Nucleus, Support, Tsallis
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

__all__ = ["METHODS", "Method", "method", "method_name"]


@dataclass(frozen=True)
class Method:
    """One method. ``reading`` names what is this project's reading ("" if all of it is public).

    ``trl`` holds the fields of ``trl.GRPOConfig`` that make TRL do what ``controller`` and ``shaping`` say; the trainer
    then uses TRL's own piece.
    """

    label: str
    reference: str
    controller: Controller = field(default_factory=Constant)
    shaping: Shaping = field(default_factory=Shaping)
    support: Support = field(default_factory=Full)
    reading: str = ""
    trl: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind, example in (
            ("controller", Controller, "Constant(0.01)"),
            ("shaping", Shaping, "PeakBonus()"),
            ("support", Support, "TopK(100)"),
        ):
            part = getattr(self, name)
            if isinstance(part, type) or not isinstance(part, kind):
                raise ValueError(f"Method({self.label!r}): {name} must be an object such as {example}, got {part!r}")


_PUBLISHED: dict[str, Method] = {
    "none": Method("no entropy control", "GRPO, arXiv 2402.03300"),
    "full": Method("full-entropy bonus", "EntReg baseline of arXiv 2509.03493", Constant(0.002)),
    "aent": Method(
        "AEnt", "arXiv 2509.03493, setting (a)",
        Band(0.002, 0.15, 0.24, step_size=0.002, minimum=6e-4, maximum=9e-3, warmup_steps=30),
        support=DropLowest(0.33),
    ),
    "aer": Method(
        "AER", "arXiv 2510.10959", Anchored(step_size=1e-3, maximum=0.01), DifficultyBonus(),
        reading="no formula is public: weights 1 - g(q), the additive update, step size and box are ours",
    ),
    "entropic": Method(
        "EntroPIC", "arXiv 2511.15248", ProportionalIntegral(), ConfidentTokens(),
        reading="the anti-windup is ours, and the integral adds once per rollout phase instead of per micro-batch",
    ),
    "adrpo": Method(
        "ADRPO", "arXiv 2510.18053", Constant(0.04), AdvantageKL(),
        reading="beta_0 is not public (.04 is GRPO's KL coefficient); beta_0 - A has no bound; KL by the k3 estimate",
    ),
    "clip-cov": Method("Clip-Cov", "arXiv 2505.22617", Constant(2e-4), ClipCovariance()),
    "kl-cov": Method("KL-Cov", "arXiv 2505.22617", Constant(1.0), KLCovariance()),
    "clip-higher": Method(
        "clip-higher (DAPO)", "arXiv 2503.14476", Constant(0.28), ClipHigher(), trl={"epsilon_high": 0.28}
    ),
    "skywork": Method(
        "Skywork-OR1", "arXiv 2505.22312", BangBang(),
        trl={
            "use_adaptive_entropy": True, "entropy_coef": 0.0, "entropy_target": 0.2, "entropy_coef_delta": 1e-4,
            "entropy_coef_min": 0.0, "entropy_coef_max": 0.005,
        },
    ),
    "siren": Method(
        "SIREN", "arXiv 2509.25133", Spring(0.005), PeakBonus(high=0.28), Nucleus(0.8),
        reading="advantages keep GRPO's deviation, the nucleus is not cut to 10,000 logits, the anchor lags one phase",
    ),
    "entropy-advantage": Method(
        "entropy advantage", "arXiv 2506.14758", Constant(0.4), EntropyAdvantage(),
    ),
    "aepo": Method(
        "AEPO", "arXiv 2510.08141", Switch(0.75, 0.75, below=1.2, inside=1.2, above=0.8), TemperedReinforce(),
        reading="the tempered samples are the last quarter of every group and carry alpha = 1",
    ),
    "ce-gppo": Method("CE-GPPO", "arXiv 2509.20712", Constant(0.75), GradientPreserving()),
    "era": Method("ERA", "arXiv 2510.08549", Constant(0.45), LogitScaling()),
    "qae": Method("QAE", "arXiv 2509.22611", Constant(0.4), QuantileBaseline()),
    "repo-r": Method(
        "REPO-R", "arXiv 2603.11682", Doubling(), LogProbAdvantage(),
        reading="start and box of zeta, and log pi taken at sampling time, are ours",
    ),
    "entrocraft": Method(
        "Entrocraft", "arXiv 2604.26326", Switch(0.6, 0.7, low_end=0.4, high_end=0.5, steps=200), SampleRejection(),
        reading="the length of the schedule (200 phases) is ours",
    ),
    "erc": Method("ERC", "arXiv 2512.05591", Constant(0.05), EntropyRatioClip()),
    "range": Method(
        "range-normalised entropy", "arXiv 2406.05953", Constant(0.02), RangeBonus(),
        reading="the static form with Shannon's range log |A|; the coefficient is ours",
    ),
    "tsallis": Method(
        "sparse Tsallis", "arXiv 1709.06293", Constant(0.01), support=Tsallis(), reading="the coefficient is ours"
    ),
    "espo": Method(
        "ESPO (stand-in)", "arXiv 2512.00499", Constant(0.2), GroupedRatio(),
        reading="only the idea is public: split at the median entropy, clip range proportional to entropy are ours",
    ),
}  # fmt: skip

METHODS: Registry[Method] = Registry(
    "method",
    _PUBLISHED,
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
