"""F9: how a training step grows with |A|, H and the number of runs, against the bytes that it must move.

Measured here and now on one thread, so the numbers differ from machine to machine; the floor is measured beside them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aent.entropy import Full, TopK
from paper_figures import style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict
from toymdp.families import token_tree
from toymdp.training.config import Learner
from toymdp.training.timing import copy_bandwidth, time_step

TITLE = "How a training step scales"
CLAIM = "A step costs what moving its logits costs: linear in actions and states, and free of |A| when lumped."
CAPTION = (
    "Time per run and step of the batched learner (sampled groups of 16, float32, one thread) against the number of "
    "actions, the horizon (3H - 2 states of 10,000 actions) and the number of runs that step together (10,000 "
    "actions). Dashed: the floor, the bytes a step must touch (8 per action with SGD, 24 with Adam) over the copy "
    "bandwidth measured in the same minute. Lumped: identical tokens stand together, exact gradients, 512 bins, up to "
    "10⁹ actions. Best of three measurements; timings on a shared machine are upper bounds."
)
ALT = (
    "Three log-log panels of microseconds per run and step: growing linearly with the number of actions close to a "
    "bandwidth floor while the lumped form stays flat to a billion actions; growing with the horizon; and falling "
    "with the number of runs stepped together until it is flat."
)

SERIES = {
    "sgd": ("full entropy, SGD", "full", "o"),
    "adam": ("full entropy, Adam", "none", "s"),
    "kept": ("keep 100, Adam", "keep100", "D"),
}
BYTES = {"sgd": 8, "adam": 24, "kept": 24}


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """Rows: panel ("actions", "horizon", "runs", "lumped"), series, x, microseconds, floor (microseconds)."""
    sizes = scale.pick(
        smoke=(10**3, 10**4), default=(10**3, 10**4, 10**5, 10**6), full=(10**3, 10**4, 10**5, 10**6, 10**7)
    )
    horizons = scale.pick(smoke=(1, 2), default=(1, 2, 3, 5, 8), full=(1, 2, 3, 5, 8, 13))
    runs = scale.pick(smoke=(1, 8), default=(1, 2, 4, 8, 16, 32, 64), full=(1, 2, 4, 8, 16, 32, 64, 256))
    lumped = scale.pick(smoke=(10**6,), default=(10**5, 10**6, 10**7, 10**8, 10**9), full=(10**5, 10**7, 10**9))
    tasks = [("actions", name, x) for x in sizes for name in SERIES]
    tasks += [("horizon", name, x) for x in horizons for name in SERIES]
    tasks += [("runs", name, x) for x in runs for name in SERIES]
    tasks += [("lumped", "lumped", x) for x in lumped]
    bandwidth = copy_bandwidth(64 if scale.name == "smoke" else 256)
    rows = []
    for done, (panel, name, x) in enumerate(tasks):
        progress(done, len(tasks))
        moved, microseconds = _measure(panel, name, x, rng, repeats=1 if scale.name == "smoke" else 3)
        rows.append(
            {"panel": panel, "series": name, "x": x, "microseconds": microseconds, "floor": moved / bandwidth * 1e6}
        )
    progress(len(tasks), len(tasks))
    return pd.DataFrame(rows)


def _measure(panel: str, name: str, x: int, rng: np.random.Generator, repeats: int) -> tuple[float, float]:
    """(bytes that one step of one run must move, microseconds that it takes)"""
    if panel == "lumped":
        instance = token_tree(rng, actions=x, optimal=1, bins=512)
        learner = Learner(1, 0.1, "adam", "exact")
        return 24.0 * instance.mdp.entries, time_step([instance] * 4, learner, TopK(100), 200, repeats)
    actions, horizon = (x, 1) if panel == "actions" else (10_000, x if panel == "horizon" else 1)
    runs = x if panel == "runs" else 1 if actions > 10**5 else 4
    instance = token_tree(rng, actions=actions, optimal=1, horizon=horizon)
    learner = Learner(1, 0.02, "sgd" if name == "sgd" else "adam")
    entries = instance.mdp.states * actions
    steps = int(np.clip(2e7 / (entries * runs), 8, 200))
    taken = time_step([instance] * runs, learner, TopK(100) if name == "kept" else Full(), steps, repeats)
    return float(BYTES[name] * entries), taken


def draw(df: Frame) -> Figure:
    """Three panels on logarithmic axes."""
    figure, axes = style.canvas(
        TITLE,
        "Microseconds per run and step, one thread, beside the memory-bandwidth floor",
        columns=3,
        height=4.1,
        strip=1,
    )
    for axis, panel in zip(axes[0], ("actions", "horizon", "runs"), strict=True):
        part = df[df["panel"] == panel]
        for name, (_, look, marker) in SERIES.items():
            own = part[part["series"] == name]
            axis.plot(own["x"], own["microseconds"], color=style.LOOKS[look].colour, marker=marker)
        for name, colour in (("sgd", style.LOOKS["full"].colour), ("adam", style.SUBTLE)):
            own = part[part["series"] == name]
            axis.plot(own["x"], own["floor"], color=colour, linestyle="--", linewidth=1.1)
        axis.set(xscale="log", yscale="log")
    lumped = df[df["panel"] == "lumped"]
    axes[0, 0].plot(lumped["x"], lumped["microseconds"], color=style.SHARP, marker="P")
    axes[0, 0].set(xlabel="actions", ylabel="µs per run and step", title="actions")
    axes[0, 1].set(xlabel="horizon H", title="horizon (10⁴ actions)")
    axes[0, 2].set(xlabel="runs stepped together", title="runs (10⁴ actions)")
    for axis, values in ((axes[0, 1], "horizon"), (axes[0, 2], "runs")):
        ticks = sorted(df[df["panel"] == values]["x"].unique())
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    handles: list[Any] = [
        Line2D([], [], color=style.LOOKS[look].colour, marker=marker, label=label)
        for label, look, marker in SERIES.values()
    ]
    handles.append(Line2D([], [], color=style.SHARP, marker="P", label="lumped (Adam, exact)"))
    handles.append(Line2D([], [], color=style.SUBTLE, linestyle="--", linewidth=1.1, label="floor: bytes / bandwidth"))
    style.legend_strip(figure, handles)
    return figure


def verdict(df: Frame) -> Verdict:
    """Distance from the floor at the largest |A|, and the price of the lumped form."""
    actions, lumped = df[df["panel"] == "actions"], df[df["panel"] == "lumped"].sort_values("x")
    top = actions[actions["x"] == actions["x"].max()].set_index("series")
    ratio = top["microseconds"] / top["floor"]
    spread = float(lumped["microseconds"].max() / lumped["microseconds"].min())
    told = ", ".join(f"{SERIES[name][0]} {ratio[name]:.1f}" for name in SERIES)
    sentence = (
        f"At {actions['x'].max():,} actions a step takes this many times the bandwidth floor: {told}. Lumped, a step "
        f"of {lumped['x'].max():,} actions takes {lumped['microseconds'].iloc[-1]:.0f} µs; over all lumped sizes the "
        f"largest time is {spread:.1f} times the smallest."
    )
    return Verdict("holds" if ratio.max() <= 3 and spread < 5 else "holds only if", sentence)
