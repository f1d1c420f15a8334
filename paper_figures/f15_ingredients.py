"""F15: which ingredient of AEnt does the work, the clamp or the adaptive coefficient? Every support x every controller.

Each of the 24 combinations is tuned over seven values of the controller's one knob and two learning rates, as in F14.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aent.controllers import Dual, ProportionalIntegral
from aent.entropy import DropLowest, Full, Support, TopK
from aent.methods import COEFFICIENTS, METHODS, TARGETS, Family, Method, Sweep
from paper_figures import style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict
from toymdp.compare import Budget, Cell, resolved, summarise, tune_and_test
from toymdp.training.config import Learner

TITLE = "Which ingredient does the work: the clamp or the controller?"
CLAIM = """AEnt's two ingredients, the clamp (p = .33) and the adaptive coefficient, each improve on the entropy bonus
with full support and constant coefficient."""
CAPTION = """Interquartile mean of the final value on fresh test seeds for every combination of support (rows) and
controller (columns), each tuned over 14 settings (seven values of the controller's knob times two learning rates).
Below each number its 95% bootstrap interval. Controllers: gains, starts and boxes are this project's own design; their
targets are tuned. One sampled group per step (left) and four steps per group (right); Adam, tabular."""
ALT = """Two heat maps of final value with four supports in rows (full, drop 33%, drop 90%, keep 100) and six
controllers in columns (constant, band, anchored, bang-bang, PI, dual); the numbers and intervals are written in."""

SUPPORTS: dict[str, Support] = {
    "full": Full(),
    "drop 33%": DropLowest(0.33),
    "drop 90%": DropLowest(0.9),
    "keep 100": TopK(100),
}
LARGEST = max(COEFFICIENTS)
CONTROLLERS: dict[str, Sweep | None] = {
    **{
        name: METHODS[method].sweep
        for name, method in {"constant": "full", "band": "aent", "anchored": "aer", "bang-bang": "skywork"}.items()
    },
    "PI": Sweep(
        "target",
        TARGETS,
        lambda s: ProportionalIntegral(s, proportional=0.1, integral=0.002, minimum=0.0, maximum=LARGEST),
    ),
    "dual": Sweep("target", TARGETS, lambda s: Dual(s, step_size=0.02, initial=0.1, minimum=0.001, maximum=LARGEST)),
}
GAIN = 0.05


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """Rows of ``compare.tune_and_test`` with cell, support and controller. Seeds are fixed, so ``rng`` is not used."""
    steps = scale.pick(smoke=40, default=1200, full=4000)
    budget = scale.pick(smoke=Budget(1, 3), default=Budget(8, 20), full=Budget(12, 30))
    setting = "bandit-1e3-n1" if scale.name == "smoke" else "bandit-1e4-n1"
    once = Learner(steps, 1.0)
    cells = {
        "1 step per group": Cell(setting, once, (0.01, 0.03)),
        "4 steps per group": Cell(setting, replace(once, updates=4), (0.03, 0.1)),
    }
    jobs = [(name, cell, s, c) for name, cell in cells.items() for s in (None, *SUPPORTS) for c in _controllers(s)]
    parts = []
    for part in Parallel(return_as="generator")(delayed(_pair)(*job, budget) for job in jobs):
        parts.append(part)
        progress(len(parts), len(jobs))
    return pd.concat(parts, ignore_index=True)


def _controllers(support: str | None) -> tuple[str, ...]:
    return ("none",) if support is None else tuple(CONTROLLERS)


def _pair(cell_name: str, cell: Cell, support: str | None, controller: str, budget: Budget) -> Frame:
    method = METHODS["none"]
    if support is not None:
        label, sweep = f"{support}, {controller}", CONTROLLERS[controller]
        method = Method(label, "", Family.BONUS, support=SUPPORTS[support], sweep=sweep)
    labels = {"cell": cell_name, "support": support or "none", "controller": controller}
    return tune_and_test(cell, method, budget).assign(**labels, method=f"{support or 'none'} x {controller}")


def table(df: Frame, cell: str) -> Frame:
    """Summary lines of a cell, indexed by (support, controller)."""
    lines = summarise(df[df.cell == cell])
    parts = lines.method.str.split(" x ", n=1, expand=True)
    return lines.assign(support=parts[0], controller=parts[1]).set_index(["support", "controller"])


def effect(lines: Frame, ours: tuple[str, str], theirs: tuple[str, str]) -> str:
    """The gain of one combination over another, and whether the interval of ours is above the value of theirs."""
    us, them = lines.loc[ours], lines.loc[theirs]
    return f"{us['final'] - them['final']:+.2f}" + ("" if resolved(us, them, GAIN) else " (not resolved)")


def verdict(df: Frame) -> Verdict:
    """The two published steps from the plain bonus, and the same with a strong clamp, in every cell."""
    base, told, helped = ("full", "constant"), [], {}
    for cell in dict.fromkeys(df.cell):
        lines = table(df, cell)
        adaptive = max((c for c in CONTROLLERS if c != "constant"), key=lambda c: lines.loc[("full", c), "final"])
        steps = {
            "clamp p = .33": ("drop 33%", "constant"),
            "band": ("full", "band"),
            "both (AEnt)": ("drop 33%", "band"),
            "keep 100": ("keep 100", "constant"),
            "keep 100 and band": ("keep 100", "band"),
            f"the best other controller on full entropy ({adaptive})": ("full", adaptive),
        }
        effects = {label: effect(lines, ours, base) for label, ours in steps.items()}
        for label in ("clamp p = .33", "band"):
            helped[f"{label} ({cell})"] = resolved(lines.loc[steps[label]], lines.loc[base], GAIN) > 0
        told.append(
            f"{cell}: no bonus {lines.loc[('none', 'none'), 'final']:.2f}, full and constant "
            f"{lines.loc[base, 'final']:.2f}; " + ", ".join(f"{label} {text}" for label, text in effects.items())
        )
    published = ", ".join(name for name, yes in helped.items() if yes) or "none"
    lead = f"Published steps that help by themselves: {published}. Change of the final value from full entropy with a "
    status = "holds" if all(helped.values()) else "holds only if" if any(helped.values()) else "fails"
    return Verdict(status, f"{lead}constant. {'. '.join(told)}.")


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(df: Frame) -> Figure:
    """A heat map per cell."""
    cells = list(dict.fromkeys(df.cell))
    figure, axes = style.canvas(
        TITLE, "Final value (interquartile mean and 95% interval) of every support with every controller, tuned",
        columns=len(cells), height=4.1, sharey=True,
    )  # fmt: skip
    for axis, cell in zip(axes[0], cells, strict=True):
        lines = table(df, cell)
        _heat_map(axis, lines)
        axis.set_title(f"{cell}; no bonus {lines.loc[('none', 'none'), 'final']:.2f}")
        axis.set_xlabel("controller")
    axes[0, 0].set_yticks(range(len(SUPPORTS)), list(SUPPORTS))
    axes[0, 0].set_ylabel("support")
    return figure


def _heat_map(axis: Axes, lines: Frame) -> None:
    values = np.array([[lines.loc[(s, c), "final"] for c in CONTROLLERS] for s in SUPPORTS])
    axis.imshow(values, cmap=style.SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    for i, s in enumerate(SUPPORTS):
        for j, c in enumerate(CONTROLLERS):
            own = lines.loc[(s, c)]
            colour = "#15181D" if own["final"] > 0.62 else "#FFFFFF"
            axis.text(j, i - 0.12, f"{own['final']:.2f}", ha="center", va="center", fontsize=9.5, color=colour)
            interval = f"{own['low']:.2f} to {own['high']:.2f}"
            axis.text(j, i + 0.22, interval, ha="center", va="center", fontsize=6.3, color=colour)
    axis.set_xticks(range(len(CONTROLLERS)), list(CONTROLLERS), fontsize=8)
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
