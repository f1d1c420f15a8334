"""F14: every method of the field on the toys, each tuned over seven values of its one knob and two learning rates.

Three problems, four optimiser steps per sampled group (so that ratios leave 1 and clips act): a needle in 10^4
actions, eight prompts of unlike difficulty, and responses of two tokens. What a row shows: final value, how much
entropy is left, how many of the seven values of the knob help or hurt, and what a step costs.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from aent.methods import METHODS, Family
from paper_figures import style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict
from toymdp import suite
from toymdp.compare import GAIN, Budget, Cell, compare, knob_effect, resolved, summarise
from toymdp.training.config import Learner
from toymdp.training.learners import train

TITLE = "Every method of the field, tuned with one budget"
CLAIM = """Methods published for entropy control end at a higher value than plain GRPO when each is tuned with the same
budget (each paper claims it for its own method, on language models)."""
CAPTION = """Dots: interquartile mean of the final value over fresh test seeds with 95% bootstrap interval, after tuning
over 14 settings (seven values of the method's one knob times two learning rates; 14 learning rates without control).
Hollow: area under the value curve (mean over training). Dashed: no control; P: probability that a tested run ends above
one without control, ties counting half. Bars: of the seven values of the knob, at
the better of two learning rates, how many end more than .02 above (teal) and below (pink) no control on the same
seeds, averaged over the problems.
Entropy: mean full entropy at the end of the tested runs. Cost: time of a training step over that of no control, same
process, alternating rounds. Families: what a method changes. Grids, problems and optimiser are this project's own
design; several formulas are our reading (aent.methods says which). Keep 100 knows how many tokens are plausible in
these problems, which a user would have to measure."""
ALT = """Leaderboard of twenty-four entropy control methods in rows: dot plots of the final value with intervals on
three toy problems, bars of how many knob values help or hurt, final entropy, and relative cost of a step."""

CELLS = {  # setting -> title of its panel
    "bandit-1e4-n1": "needle: 1 of 10⁴",
    "prompts-1e3-n1": "8 prompts, 1 of 10³",
    "tree-1e3-h2-n5": "2 tokens, 5 of 10³",
}
SMOKE = {"smoke-bandit": "needle: 1 of 20"}
FIELD = tuple(name for name, one in METHODS.items() if one.reference and name not in ("none", "full"))
ROWS = ("none", "full", "keep100", "keep100-band", *FIELD)
FAMILY_COLOURS = {
    Family.NOTHING: "#8A8F98",
    Family.BONUS: "#D55E00",
    Family.WEIGHTS: "#1B7FC6",
    Family.CLIP: "#009E73",
}
HELPS, HURTS = "#2E9C9C", "#CC79A7"


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """Rows of ``compare.compare``, and one row per method with phase "cost".

    Seeds are fixed (tuning and test seeds never overlap), so ``rng`` is not used.
    """
    steps = scale.pick(smoke=60, default=1200, full=4000)
    budget = scale.pick(smoke=Budget(1, 3), default=Budget(8, 20), full=Budget(12, 30))
    learner = Learner(steps, 1.0, updates=4)
    cells = [Cell(name, learner, (0.03, 0.1)) for name in (SMOKE if scale.name == "smoke" else CELLS)]
    rows = compare(cells, ROWS, budget, progress=progress)
    cost = costs(cells[0].setting, scale.pick(smoke=4, default=60, full=60), scale.pick(smoke=1, default=5, full=5))
    return pd.concat([rows, cost], ignore_index=True)


def costs(setting: str, steps: int, rounds: int) -> Frame:
    """Time of a step of every method over that of no control: median over rounds in which each takes its turn."""
    instances = [suite.make(setting, seed) for seed in range(8)]
    learner = Learner(steps, 0.03, updates=4)
    seconds = {name: np.empty(rounds + 1) for name in ROWS}
    for turn in range(rounds + 1):  # the first compiles
        for name in ROWS:
            begin, sweep = time.perf_counter(), METHODS[name].sweep
            own = METHODS[name].at(np.full(len(instances), sweep.values[2] if sweep else 0.0))
            train(instances, learner, support=own.support, controller=own.controller, shaping=own.shaping, n_jobs=1)
            seconds[name][turn] = time.perf_counter() - begin
    ratios = {name: float(np.median(own[1:] / seconds["none"][1:])) for name, own in seconds.items()}
    return pd.DataFrame({"method": list(ratios), "ratio": list(ratios.values()), "phase": "cost", "cell": setting})


def table(df: Frame) -> Frame:
    """``compare.summarise`` of the tested runs, indexed by (cell, method)."""
    return summarise(df[df.phase != "cost"]).set_index(["cell", "method"])


def better(lines: Frame, cell: str, method: str) -> int:
    """1 if better than no control, -1 if worse, 0 if not resolved."""
    return resolved(lines.loc[(cell, method)], lines.loc[(cell, "none")])


def verdict(df: Frame) -> Verdict:
    """Holds if every published method is better than none in every cell, fails if none is anywhere."""
    lines = table(df)
    cells, published = list(lines.index.unique("cell")), ["full", *FIELD]
    signs = {name: [better(lines, cell, name) for cell in cells] for name in (*published, "keep100", "keep100-band")}
    wins = sorted((name for name in signs if max(signs[name]) > 0), key=lambda name: -sum(signs[name]))
    everywhere = [name for name in published if min(signs[name]) > 0]

    def final(cell: str, name: str) -> str:
        return f"{lines.loc[(cell, name), 'final']:.2f}"

    told = "; ".join(
        f"{CELLS.get(cell, cell)} (no control {final(cell, 'none')}): "
        + (", ".join(f"{METHODS[n].label} {final(cell, n)}" for n in wins if signs[n][i] > 0) or "none")
        for i, cell in enumerate(cells)
    )
    hurt = [METHODS[name].label for name in signs if min(signs[name]) < 0]
    count = sum(max(signs[name]) > 0 for name in published)
    status = "holds" if len(everywhere) == len(published) else "holds only if" if count else "fails"
    clamp = f"{sum(sign > 0 for sign in signs['keep100'])} of {len(cells)}"
    return Verdict(
        status,
        f"{count} of {len(published)} published methods beat no control on at least one problem, {len(everywhere)} on "
        f"all; a constant bonus on the 100 likeliest tokens on {clamp}. Better by more than {GAIN}, interval above: "
        f"{told}. Worse than no control somewhere, tuned as they are: {', '.join(hurt) or 'none'}.",
    )


def report_table(df: Frame) -> list[list[str]]:
    """The leaderboard in numbers, best first."""
    lines, cost = table(df), df[df.phase == "cost"].set_index("method").ratio
    cells = list(lines.index.unique("cell"))
    head = ["method", "knob"]
    for cell in cells:
        head += [CELLS.get(cell, cell), "P(beats none)", "area", "tuned to", "helps / hurts"]
    rows = [[*head, "entropy kept (nats)", "cost of a step"]]
    for name in ranking(lines):
        sweep = METHODS[name].sweep
        row = [METHODS[name].label, sweep.knob if sweep else "learning rate only"]
        for cell in cells:
            own = lines.loc[(cell, name)]
            helps, tried, hurts = knob_effect(df, cell, name)
            row += [
                f"{own['final']:.3f} [{own['low']:.3f}, {own['high']:.3f}]", f"{own['beats_none']:.2f}",
                f"{own['area']:.3f}", f"{own['strength']:g} at rate {own['rate']:.2g}", f"{helps} / {hurts} of {tried}",
            ]  # fmt: skip
        rows.append([*row, f"{lines.xs(name, level='method').entropy.mean():.2f}", f"{cost[name]:.2f}"])
    return rows


def ranking(lines: Frame) -> list[str]:
    """Methods by the mean over cells of their tested final value, best first."""
    return list(lines.groupby("method").final.mean().sort_values(ascending=False, kind="stable").index)


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(df: Frame) -> Figure:
    """One row per method, best first."""
    lines = table(df)
    cells = list(lines.index.unique("cell"))
    order = ranking(lines)
    figure, axes = style.canvas(
        TITLE, "Final value on fresh seeds, knob values that help or hurt, entropy kept, cost of a step",
        columns=len(cells) + 3, height=1.7 + 0.27 * len(order), strip=2, sharey=True,
        width_ratios=[1.35] * len(cells) + [1.0, 0.7, 0.7],
    )  # fmt: skip
    for axis, cell in zip(axes[0], cells, strict=False):
        _values(axis, lines.loc[cell], order)
        axis.set_title({**CELLS, **SMOKE}.get(cell, cell), fontsize=8.5)
    knobs, entropies, cost = axes[0, len(cells) :]
    _knobs(knobs, df, cells, order)
    ends = lines.groupby("method").entropy.mean()
    _numbers(entropies, "entropy\n(nats)", [ends[name] for name in order], order)
    ratios = df[df.phase == "cost"].set_index("method").ratio
    _numbers(cost, "cost of\na step", [ratios[name] for name in order], order)
    name_rows(axes[0, 0], {METHODS[name].label: family_colour(name) for name in order}, top=-1.1)
    handles = [
        *family_handles(),
        Line2D([], [], color=style.SUBTLE, marker="o", mfc="none", ls="none", label="area under the curve"),
        Patch(color=HELPS, label="knob value helps"),
        Patch(color=HURTS, label="knob value hurts"),
    ]
    style.legend_strip(figure, handles, columns=4)
    return figure


def family_colour(method: str) -> str:
    """Give the colour of the family that a method belongs to."""
    return FAMILY_COLOURS[METHODS[method].family]


def family_handles() -> list[Any]:
    """One entry of the legend per family."""
    return [
        Line2D([], [], color=colour, marker="o", ls="none", label=label) for label, colour in FAMILY_COLOURS.items()
    ]


def name_rows(axis: Axes, rows: dict[str, str], *, top: float) -> None:
    """Labels of the rows in their colours, the first at the top."""
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.set_ylim(len(rows) - 0.4, top)
    for tick, colour in zip(axis.get_yticklabels(), rows.values(), strict=True):
        tick.set_color(colour)


def _values(axis: Axes, lines: Frame, order: list[str]) -> None:
    none = lines.loc["none"]
    axis.axvline(none["final"], color=style.SUBTLE, lw=1.1, ls=(0, (3, 2)))
    for y, name in enumerate(order):
        own, colour = lines.loc[name], family_colour(name)
        axis.plot([own["low"], own["high"]], [y, y], color=colour, lw=1.8, solid_capstyle="butt")
        axis.plot(own["final"], y, "o", color=colour, ms=5)
        axis.plot(own["area"], y, "o", mfc="none", mec=colour, ms=4, mew=0.9)
        if name != "none":
            axis.text(1.3, y, f"{own['beats_none']:.2f}", fontsize=6.8, color=style.SUBTLE, ha="right", va="center")
    axis.text(1.3, -0.85, "P", fontsize=7.5, color=style.SUBTLE, ha="right", va="center", style="italic")
    axis.set(xlim=(-0.03, 1.32), xlabel="final value", xticks=[0, 0.5, 1])
    style.stripes(axis, len(order))


def _knobs(axis: Axes, df: Frame, cells: list[str], order: list[str]) -> None:
    """Stacked bars around zero, averaged over the cells."""
    for y, name in enumerate(order):
        if name == "none":
            continue
        found = np.array([knob_effect(df, cell, name) for cell in cells], dtype=float)
        helps, hurts = (found[:, 0] / found[:, 1]).mean() * 7, (found[:, 2] / found[:, 1]).mean() * 7
        axis.barh(y, helps, color=HELPS, height=0.62)
        axis.barh(y, -hurts, color=HURTS, height=0.62)
    axis.axvline(0, color=style.SUBTLE, lw=0.8)
    axis.set(xlim=(-7.4, 7.4), xticks=[-7, 0, 7], xticklabels=["7", "0", "7"], xlabel="hurt | help")
    axis.set_title("7 knob values", fontsize=8.5)
    style.stripes(axis, len(order))


def _numbers(axis: Axes, title: str, values: list[float], order: list[str]) -> None:
    top = max(values)
    for y, (name, value) in enumerate(zip(order, values, strict=True)):
        axis.barh(y, value, color=family_colour(name), height=0.5, alpha=0.75)
        axis.annotate(f"{value:.2f}", (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    axis.set(xlim=(0, 1.5 * top), xticks=[])
    axis.set_title(title, fontsize=8.5)
    style.stripes(axis, len(order))
