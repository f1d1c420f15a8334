"""The methods of a comparison, each with the one knob it is tuned by: ``aent.methods`` at the scale of the toys.

A method here is a support, a shaping rule and a function from seven values of its knob to a controller. Knobs are
coefficients, targets or thresholds; the grids are this project's own design, centred on where each method works on the
suite (entropies of 4 nats at the start and group sizes of 16 are not those of a language model). A published
constant is in its grid unless it is a coefficient of a bonus, which depends on the scale of entropies and rewards.

The first seven compare supports and controllers (F3); the rest are the field (``aent.methods``), by the same names.

A method of your own is ``METHODS["mine"] = Method(...)`` in a module of yours, say ``my_rules``; ``compare`` takes it
as ``my_rules:mine``. One that is registered in ``aent.methods`` alone runs as it is: its controller is fixed, and only
the learning rate is tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aent import methods as published
from aent.controllers import (
    Anchored,
    Band,
    BangBang,
    Constant,
    Controller,
    Doubling,
    Dual,
    ProportionalIntegral,
    Spring,
    Switch,
)
from aent.entropy import DropLowest, Full, Support, TopK, Tsallis
from aent.registry import Registry
from aent.shaping import Shaping

__all__ = ["BANDS", "CONTROLLERS", "FIELD", "METHODS", "STRENGTHS", "SUPPORTS", "Method"]

STRENGTHS = (0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)  # coefficients every constant bonus is tuned over
BANDS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # targets or lower ends (nats) of everything that aims at an entropy
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)  # targets as a share of the first measured entropy
LARGEST = max(STRENGTHS)  # no controller may go beyond the largest constant


@dataclass(frozen=True)
class Method:
    """``controller`` maps strengths (R,), values of the method's knob, to one controller for R runs."""

    label: str
    support: Support
    controller: Callable[[np.ndarray], Controller]
    strengths: tuple[float, ...] = STRENGTHS
    shaping: Shaping = field(default_factory=Shaping)
    knob: str = "coefficient"

    def __post_init__(self) -> None:
        if not callable(self.controller):
            raise ValueError(
                f"Method({self.label!r}): controller must be a function from values of the knob to a controller, such "
                f"as Constant or lambda s: {self.controller!r}, got {self.controller!r}"
            )

    @property
    def needs_samples(self) -> bool:
        """Whether the one-pass engines with exact gradients cannot serve it."""
        return not self.shaping.is_plain or isinstance(self.support, Tsallis)


def band(low: np.ndarray) -> Band:
    """AEnt's controller on the band [low, 1.5 low]; start, step size and box are this project's own design."""
    return Band(0.2, low, 1.5 * low, step_size=0.02, minimum=0.001, maximum=LARGEST)


# name -> (what the knob is, its values, controller); start, gains and boxes are this project's own design
CONTROLLERS: dict[str, tuple[str, tuple[float, ...], Callable[[np.ndarray], Controller]]] = {
    "constant": ("coefficient", STRENGTHS, Constant),
    "band": ("lower end", BANDS, band),
    "anchored": ("share of first entropy", RATIOS, lambda s: Anchored(0.02, LARGEST, ratio=s, initial=0.2)),
    "bang-bang": ("target", BANDS, lambda s: BangBang(target=s, step_size=0.005, initial=0.2, maximum=LARGEST)),
    "PI": (
        "target", BANDS,
        lambda s: ProportionalIntegral(s, proportional=0.1, integral=0.002, minimum=0.0, maximum=LARGEST),
    ),
    "dual": ("target", BANDS, lambda s: Dual(s, step_size=0.02, initial=0.1, minimum=0.001, maximum=LARGEST)),
}  # fmt: skip

SUPPORTS: dict[str, Method] = {
    "none": Method("no bonus", Full(), lambda strength: Constant(0.0), strengths=()),
    "full": Method("full entropy", Full(), Constant),
    "clamp40": Method("clamped, drop 40%", DropLowest(0.4), Constant),
    "clamp90": Method("clamped, drop 90%", DropLowest(0.9), Constant),
    "keep100": Method("clamped, keep 100", TopK(100), Constant),
    "full-band": Method("full entropy + band", Full(), band, BANDS, knob="lower end"),
    "keep100-band": Method("clamped, keep 100 + band", TopK(100), band, BANDS, knob="lower end"),
}


def _published(
    name: str, knob: str, strengths: tuple[float, ...], controller: Callable[[np.ndarray], Controller], **shaping: Any
) -> Method:
    """The method of that name in ``aent.methods``, its knob turned by ``controller``."""
    known = published.METHODS[name]
    return Method(known.label, known.support, controller, strengths, replace(known.shaping, **shaping), knob)


def _falling(low: np.ndarray) -> Switch:
    """Entrocraft's gate: a band that falls to two thirds over 500 phases, as .6 falls to .4."""
    return Switch(low, 1.2 * low, low_end=low / 1.5, high_end=0.8 * low, steps=500)


FIELD: dict[str, Method] = {
    "aent": _published("aent", "lower end", BANDS, band),
    "aer": _published("aer", *CONTROLLERS["anchored"]),
    "entropic": _published("entropic", "target", BANDS, ProportionalIntegral),
    "adrpo": _published("adrpo", "beta_0", (0.003, 0.01, 0.04, 0.1, 0.3, 1.0, 3.0), Constant),
    "clip-cov": _published("clip-cov", "share of tokens", (2e-4, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8), Constant),
    "kl-cov": _published("kl-cov", "KL coefficient", (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), Constant),
    "clip-higher": _published("clip-higher", "upper clip", (0.22, 0.28, 0.35, 0.5, 1.0, 2.0, 4.0), Constant),
    "skywork": _published("skywork", *CONTROLLERS["bang-bang"]),
    "siren": _published("siren", "anchor strength", (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32), Spring),
    "entropy-advantage": _published("entropy-advantage", "alpha", (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6), Constant),
    "aepo": _published("aepo", "target", BANDS, lambda s: Switch(s, s, below=1.2, inside=1.2, above=0.8)),
    "ce-gppo": _published("ce-gppo", "beta_1", (0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0), Constant),
    "era": _published("era", "lower bound", (0.1, 0.25, 0.45, 1.0, 1.5, 2.0, 3.0), Constant, upper=6.0),
    "qae": _published("qae", "quantile", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), Constant),
    "repo-r": _published(
        "repo-r", "largest zeta", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), lambda s: Doubling(s / 4, s / 64, s)
    ),
    "entrocraft": _published("entrocraft", "lower end", BANDS, _falling),
    "erc": _published("erc", "half-width", (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6), Constant),
    "range": _published("range", "coefficient", (0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0), Constant),
    "tsallis": _published("tsallis", "coefficient", (0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0), Constant),
    "espo": _published("espo", "clip range", (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6), Constant),
}


class _Methods(Registry[Method]):
    """Those of this module; what only ``aent.methods`` knows is made into one with a fixed controller."""

    def __missing__(self, name: str) -> Method:
        return _fixed(published.METHODS[name]) if name in published.METHODS else super().__missing__(name)

    def spelling(self, text: str) -> str | None:
        return super().spelling(text) or published.METHODS.spelling(text)

    def _located(self, text: str) -> Method:
        found: Any = super()._located(text)
        return _fixed(found) if isinstance(found, published.Method) else found


def _fixed(method: published.Method) -> Method:
    return Method(method.label, method.support, lambda strength: method.controller, (), method.shaping, "none")


METHODS = _Methods(
    "method",
    {**SUPPORTS, **FIELD},
    expected="a toymdp.methods.Method or an aent.methods.Method",
    accepts=lambda found: isinstance(found, Method | published.Method),
)
