"""The record of one checked statement, and the two ways to make one: a single comparison, or the worst of many.

Every statement is brought to the form lhs <= rhs. A negative control is the same comparison with an assumption broken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from toymdp.theory.attacks import Case

Array = np.ndarray
Row = tuple[str, Array, Array]  # (where it comes from, lhs, rhs)

RELATIVE, ABSOLUTE = 1e-9, 1e-12  # what rounding may cost
VISIBLE = 1e-9  # a right side below this is compared, but its ratio is rounding


@dataclass(frozen=True)
class Check:
    """``lhs <= rhs`` at the worst case found. ``margin`` = rhs - lhs; a negative control is expected not to hold."""

    name: str
    statement: str
    lhs: float
    rhs: float
    margin: float
    holds: bool
    negative_control: bool = False
    detail: str = ""

    @property
    def passed(self) -> bool:
        """A claim that holds, or a negative control that fails."""
        return self.holds != self.negative_control


@dataclass(frozen=True, eq=False)
class Sample:
    """What every proposition is attacked with: the shared random cases, a generator of its own, and how much to try."""

    cases: list[Case]
    rng: np.random.Generator
    size: int


def repeats(sample: Sample) -> int:
    """How often the slow parts (optimisation, long training runs) are repeated: 1 at smoke scale, else 3."""
    return 1 if sample.size < 60 else 3


def at_most(name: str, statement: str, lhs: float, rhs: float, detail: str = "", *, control: bool = False) -> Check:
    """One comparison lhs <= rhs, up to rounding."""
    lhs, rhs = float(lhs), float(rhs)
    return Check(name, statement, lhs, rhs, rhs - lhs, bool(_below(lhs, rhs)), control, detail)


def worst_of(name: str, statement: str, rows: list[Row], *, control: bool = False) -> Check:
    """The worst of many comparisons, by ratio; ``detail`` lists the largest lhs / rhs of every kind of case."""
    ratios: dict[str, float] = {}
    worst, holds = (-np.inf, 0.0, 0.0), True
    for kind, lhs, rhs in rows:
        lhs, rhs = np.broadcast_arrays(lhs, rhs)
        ratio = lhs / np.maximum(rhs, VISIBLE)
        at = np.unravel_index(ratio.argmax(), ratio.shape)
        worst = max(worst, (float(ratio[at]), float(lhs[at]), float(rhs[at])))
        ratios[kind] = max(ratios.get(kind, 0.0), float(ratio[at]))
        holds &= bool(np.all(_below(lhs, rhs)))
    detail = "lhs/rhs at most " + ", ".join(f"{kind or 'all'} {ratio:.4g}" for kind, ratio in ratios.items())
    return replace(at_most(name, statement, worst[1], worst[2], detail, control=control), holds=holds)


def rows_of(case: Case, lhs: Array, rhs: Array) -> list[Row]:
    """One side each for the random policies of a case and for those met during training."""
    lhs, rhs = np.broadcast_arrays(lhs, rhs)
    cut = len(lhs) - case.trained
    return [(case.kind, lhs[:cut], rhs[:cut]), ("trained", lhs[cut:], rhs[cut:])]


def _below(lhs: float | Array, rhs: float | Array) -> bool | np.bool_ | Array:
    return lhs <= rhs * (1 + RELATIVE) + ABSOLUTE
