"""F3: every method tuned on the same grid with the same budget, where the claim appears and where it does not.

Upper part: final value of each method's best setting on fresh seeds, over sparsity, |A|, prior, optimiser and
parametrisation. Lower part: value against the coefficient at the tuned learning rate, and the width of the range that
stays within 5% of the best: what a mis-set coefficient costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aent.methods import COEFFICIENTS, METHODS
from aent.stats import bootstrap_mean
from paper_figures import style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict
from toymdp.compare import Budget, Cell, best_setting, evaluate, resolved, summarise, window
from toymdp.training.config import Learner

TITLE = "Tuned fairly, who wins where?"
CLAIM = (
    "The published claim: standard entropy regularisation helps when optimal actions are many and not when they are "
    "few; clamping helps at every sparsity."
)
CAPTION = (
    "Interquartile mean of the final value on fresh test seeds with 95% bootstrap intervals (dots), after tuning every "
    "method over 14 settings (7 coefficients or bands times 2 learning rates; 14 learning rates without a bonus). "
    "Plausible-head bandits of our own design, groups of 16 sampled responses, unless a row says otherwise. Below: "
    "final value against the coefficient, at the tuned learning rate; the bars are the range within 5% of the best."
)
ALT = (
    "Dot plot of final values of seven methods in cells that differ in sparsity, number of actions, prior, optimiser "
    "and parametrisation; below, curves of final value against the entropy coefficient with bars for the usable range."
)

SWEEP = (0.01, 0.02, 0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8)
SWEPT = ("full", "clamp40", "clamp90", "keep100")
ALL = ("none", "full", "clamp40", "clamp90", "keep100", "full-band", "keep100-band")
FEW = ("none", "full", "clamp40", "keep100")


@dataclass(frozen=True)
class Row:
    """One cell of the comparison and whether its coefficient is swept too."""

    group: str
    label: str
    cell: Cell
    methods: tuple[str, ...] = ALL
    tuning_seeds: int = 8
    swept: bool = False


def rows(scale: Scale) -> list[Row]:
    """The cells at this scale."""
    steps = scale.pick(smoke=60, default=2000, full=2000)
    short = scale.pick(smoke=40, default=800, full=800)
    adam, sgd = (0.01, 0.03), (1.0, 3.0)
    tabular = Learner(steps, 1.0)
    linear = Learner(short, 1.0, parametrisation="loglinear")
    if scale.name == "smoke":
        return [
            Row("tabular, Adam", "10³ actions, 1 optimum", Cell("bandit-1e3-n1", tabular, adam), FEW, 2, swept=True),
            Row("log-linear, Adam", "10³ actions, 1 optimum", Cell("bandit-1e3-n1", linear, adam), FEW, 2, swept=True),
        ]
    found = [
        Row("tabular, Adam", f"10⁴ actions, {_optima(n)}", Cell(f"bandit-1e4-n{n}", tabular, adam), swept=n == 1)
        for n in (1, 2, 5, 15)
    ]
    found += [Row("tabular, Adam", "10³ actions, 1 optimum", Cell("bandit-1e3-n1", tabular, adam))]
    found += [
        Row(
            "tabular, Adam",
            f"10⁵ actions, {_optima(n)}",
            Cell(f"bandit-1e5-n{n}", replace(tabular, steps=1200), adam),
            FEW,
            3,
        )
        for n in (1, 15)
    ]
    found += [
        Row(
            "log-linear, Adam",
            f"10⁴ actions, {_optima(n)}",
            Cell(f"bandit-1e4-n{n}", linear, adam),
            ALL,
            5,
            swept=n == 1,
        )
        for n in (1, 15)
    ]
    found += [
        Row(
            "tabular, SGD",
            f"10⁴ actions, {_optima(n)}",
            Cell(f"bandit-1e4-n{n}", replace(tabular, optimiser="sgd"), sgd),
            FEW,
            swept=n == 1,
        )
        for n in (1, 15)
    ]
    found += [
        Row(
            "uniform prior, Adam",
            f"10⁴ actions, {_optima(n)}",
            Cell(f"bandit-1e4-n{n}-uniform", tabular, (0.03, 0.1)),
            FEW,
            5,
        )
        for n in (1, 15)
    ]
    return found


def _optima(n: int) -> str:
    return f"{n} optimum" if n == 1 else f"{n} optima"


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """All runs: columns of ``compare.evaluate`` plus group, cell, method and phase ("tune", "test", "sweep").

    Seeds are fixed (tuning and test seeds never overlap), so ``rng`` is not used.
    """
    pairs = [(row, name) for row in rows(scale) for name in row.methods]
    parts = []
    for part in Parallel(return_as="generator")(delayed(_pair)(row, name, scale) for row, name in pairs):
        parts.append(part)
        progress(len(parts), len(pairs))
    return pd.concat(parts, ignore_index=True)


def _pair(row: Row, name: str, scale: Scale) -> Frame:
    """Tuning, test and (if asked for) coefficient sweep of one method in one cell."""
    cell, method = row.cell, METHODS[name]
    budget = Budget(row.tuning_seeds, scale.pick(smoke=3, default=20, full=30))
    settings = cell.settings(method)
    if scale.name == "smoke":
        settings = settings[:: max(1, len(settings) // 4)]
    tuning = evaluate(cell, method, settings, budget.tuning)
    best = best_setting(tuning)
    parts = [tuning.assign(phase="tune"), evaluate(cell, method, [best], budget.test).assign(phase="test")]
    if row.swept and name in SWEPT:
        strengths = SWEEP if scale.name != "smoke" else SWEEP[::4]
        seeds = budget.test[: scale.pick(smoke=2, default=8, full=20)]
        parts.append(
            evaluate(cell, method, [(strength, best[1]) for strength in strengths], seeds).assign(phase="sweep")
        )
    whole = pd.concat(parts, ignore_index=True)
    return whole.assign(group=row.group, cell=f"{row.group}: {row.label}", method=name)


def report_table(df: Frame) -> list[list[str]]:
    """The tuned value of every method in every cell: value [95% interval] at its coefficient or band."""
    summary = summarise(df).set_index(["cell", "method"])
    names = [name for name in ALL if name in set(df["method"])]
    rows = [["cell", *(METHODS[name].label for name in names)]]
    for cell in dict.fromkeys(df["cell"]):
        own = summary.loc[cell]
        rows.append([str(cell), *(_cell_text(own.loc[name]) if name in own.index else "" for name in names)])
    return rows


def _cell_text(line: Any) -> str:
    return f"{line['final']:.2f} [{line['low']:.2f}, {line['high']:.2f}] at {line['strength']:g}"


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(df: Frame) -> Figure:
    """Dot plot of the tuned values above, coefficient sweeps below."""
    cells = list(dict.fromkeys(df["cell"]))
    swept = list(dict.fromkeys(df[df["phase"] == "sweep"]["cell"]))
    height = 1.6 + 0.42 * len(cells) + 3.6
    figure, axes = style.canvas(
        TITLE, "Final value of the tuned method on fresh seeds: interquartile mean and 95% interval",
        rows=2, columns=len(swept), height=height, strip=2, height_ratios=(0.42 * len(cells), 3.3),
    )  # fmt: skip
    grid = axes[0, 0].get_gridspec()
    for axis in axes[0]:
        axis.remove()
    _dots(figure.add_subplot(grid[0, :]), summarise(df), cells)
    for axis, cell in zip(axes[1], swept, strict=True):
        _sweep(axis, df[(df["cell"] == cell) & (df["phase"] == "sweep")], cell)
    axes[1, 0].set_ylabel("final value")
    used = [name for name in ALL if name in set(df["method"])]
    handles = [
        Line2D(
            [],
            [],
            color=style.LOOKS[n].colour,
            marker=style.LOOKS[n].marker,
            linestyle="none",
            label=METHODS[n].label,
        )
        for n in used
    ]
    style.legend_strip(figure, handles, columns=4)
    return figure


def _dots(axis: Any, summary: Frame, cells: list[str]) -> None:
    names = [name for name in ALL if name in set(summary["method"])]
    for line in summary.to_dict("records"):
        look = style.LOOKS[line["method"]]
        y = cells.index(line["cell"]) + 0.78 * (names.index(line["method"]) / max(1, len(names) - 1) - 0.5)
        axis.plot([line["low"], line["high"]], [y, y], color=look.colour, linewidth=1.6, solid_capstyle="butt")
        axis.plot(line["final"], y, color=look.colour, marker=look.marker, markersize=4.6)
    style.stripes(axis, len(cells))
    axis.set(yticks=range(len(cells)), yticklabels=cells, xlim=(-0.02, 1.03), ylim=(len(cells) - 0.5, -0.5))
    axis.set_xlabel("final value of the tuned method (decoys pay 0.5, the optimum 1)")


def _sweep(axis: Any, sweep: Frame, cell: str) -> None:
    for i, (name, part) in enumerate(sweep.groupby("method", sort=False)):
        look = style.LOOKS[str(name)]
        points = part.groupby("strength")["final"]
        x = np.array(list(points.groups), dtype=float)
        found = [bootstrap_mean(values, draws=400) for _, values in points]
        style.band(axis, x, [one.low for one in found], [one.high for one in found], look.colour)
        axis.plot(x, points.mean(), color=look.colour, linestyle=look.line, marker=look.marker, markersize=3.5)
        found = usable(sweep, str(name))
        if found is not None:
            ends, y = np.array(found[:2]) * [0.94, 1.06], -0.08 - 0.05 * i
            axis.plot(ends, [y, y], color=look.colour, linewidth=3.2, solid_capstyle="butt")
    axis.set(xscale="log", ylim=(-0.3, 1.04), xlabel="coefficient (per nat)")
    axis.set_title(cell.replace(": ", "\n"), fontsize=9)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])


def usable(sweep: Frame, method: str) -> tuple[float, float, float] | None:
    """``compare.window`` within 5% of the best of *any* swept method; None if this method never gets there."""
    best = sweep.groupby(["method", "strength"])["final"].mean().max()
    own = sweep[sweep["method"] == method]
    if own.groupby("strength")["final"].mean().max() < 0.95 * best:
        return None
    return window(own, best=best)


def verdict(df: Frame) -> Verdict:
    """Where a strong clamp beats the full bonus after fair tuning, and what a mis-set coefficient costs each."""
    summary = summarise(df).set_index(["cell", "method"])
    cells = list(dict.fromkeys(df["cell"]))
    wins = [cell for cell in cells if _beats(summary, cell, "keep100", "full")]
    losses = [cell for cell in cells if _beats(summary, cell, "full", "keep100")]
    sentences = [
        f"Tuned fairly, keeping 100 tokens beats the full bonus (by more than .05, and its interval is above) in "
        f"{len(wins)} of {len(cells)} cells ({'; '.join(wins) or 'none'}) and loses in {len(losses)} "
        f"({'; '.join(losses) or 'none'}). The full bonus is tuned to the weakest coefficient of the grid in "
        f"{sum(summary.loc[(cell, 'full'), 'strength'] == min(COEFFICIENTS) for cell in cells)} cells."
    ]
    for cell, part in df[df["phase"] == "sweep"].groupby("cell", sort=False):
        top = part[part["strength"] == part["strength"].max()].groupby("method")["entropy"].mean()
        ranges = {str(name): usable(part, str(name)) for name in dict.fromkeys(part["method"])}
        told = ", ".join(
            f"{METHODS[name].label} " + ("never" if found is None else f"{found[0]:g} to {found[1]:g}")
            for name, found in ranges.items()
        )
        sentences.append(
            f"{cell}: coefficients within 5% of the best value: {told}; at {part['strength'].max():g} the full bonus "
            f"ends at {top['full']:.1f} nats, keeping 100 at {top['keep100']:.1f}."
        )
    status = "holds" if len(wins) == len(cells) else "holds only if" if wins else "fails"
    return Verdict(status, " ".join(sentences))


def _beats(summary: Frame, cell: str, ours: str, theirs: str) -> bool:
    return resolved(summary.loc[(cell, ours)], summary.loc[(cell, theirs)], gain=0.05) > 0
