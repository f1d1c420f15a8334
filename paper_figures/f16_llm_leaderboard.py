"""F16: every method of the field in GRPO on the embedded language model, at two values of its knob, and AEnt's parts.

Drawn from committed runs (``records/llm_methods.jsonl``, made by ``python -m experiments.all_methods``), the same at
every scale and seed. Nothing was tuned, so nothing was selected: both values are shown. Judged is held-out accuracy
after training by differences between runs of the same seed and their 95% Student interval, as in F11; the verdict also
says which of them are left after Holm's correction for the number of comparisons.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aent.methods import METHODS
from aent.stats import Estimate, holm, student_interval, student_p_value
from paper_figures import records, style
from paper_figures.f14_leaderboard import family_colour, family_handles, name_rows
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict

TITLE = "Every method of the field in GRPO on a language model"
CLAIM = """Methods published for entropy control learn better than plain GRPO on a language model (each paper claims it
for its own method, at billions of parameters)."""
CAPTION = """Held-out accuracy, end of training: one small dot per seed, the mean as a large one, for two values of each
method's knob (filled: the published value where it means something here, hollow: the second). Shaded: plain GRPO, mean
and 95% Student interval over its seeds. Middle: full entropy over the last tenth of training, logarithmic. Right: the
same for pass@k. Rows are sorted by the first value. Last rows: support x controller, AEnt's two ingredients apart and
together. Embedded model (two layers, 16,384 tokens), generated sums, 40 rollouts, two optimiser steps each. Values of
knobs are this project's own choice; nothing was tuned. Recorded runs: the same at every scale and seed of this
command."""
ALT = """Rows of methods with one dot per training run: held-out accuracy, entropy at the end of training and pass@8,
for two values of each method's knob, beside the interval of plain GRPO; below, supports by controllers."""

RECORD = Path(__file__).parent / "records" / "llm_methods.jsonl"
VARIABLE = "PAPER_FIGURES_LLM_METHODS_RECORD"
PARTS = {  # arm -> label: AEnt's ingredients
    "drop33": "drop 33%, constant",
    "full-band": "full, band",
    "top64": "top 64, constant",
    "top64-band": "top 64, band",
}


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """One row per run: method, value of its knob, whether it is the first value, seed, accuracy, pass@k, entropy."""
    rows = []
    for run in records.lines(Path(os.environ.get(VARIABLE, RECORD))):
        method, _, value = str(run["arm"]).partition("@")
        found = records.evaluated(run)
        scores = {key: found[key] for key in ("accuracy", "solved", "samples")}
        entropy = records.end(run, "entropy/full")
        rows.append(
            {"method": method, "value": float(value), "seed": run["seed"], **scores, "entropy": entropy}
            | {"accuracy_before": found["accuracy_before"]}
        )
    df = pd.DataFrame(rows)
    first = {str(name): FIRST.get(str(name), own.min()) for name, own in df.groupby("method").value}
    progress(1, 1)
    return df.assign(first=[value == first[name] for name, value in zip(df.method, df.value, strict=True)])


# The first value of every method whose first is not its smaller one (experiments.all_methods.ARMS).
FIRST = {"none": 3e-4, "entropy-advantage": 0.4, "aepo": 0.75}


def gaps(df: Frame, method: str, value: float) -> Frame:
    """Held-out accuracy less that of plain GRPO at its first value, of every seed that both have."""
    none = df[(df.method == "none") & df["first"]].set_index("seed").accuracy
    own = df[(df.method == method) & (df.value == value)].set_index("seed").accuracy
    return (own - none).dropna()


def difference(df: Frame, method: str, value: float) -> Estimate:
    """Mean of ``gaps``."""
    return student_interval(gaps(df, method, value))


def verdict(df: Frame) -> Verdict:
    """Holds if every method is better at one of its values at least, fails if none is and some are worse."""
    pairs = df[(df.method != "none") & ~df.method.isin(PARTS)].groupby(["method", "value"], sort=False).size().index
    samples = {pair: gaps(df, *pair) for pair in pairs}
    found = {pair: student_interval(sample) for pair, sample in samples.items()}
    told: dict[str, list[str]] = {"better": [], "worse": [], "not resolved": []}
    for (method, value), gap in found.items():
        told[records.outcome(gap)].append(f"{label(method)} ({value:g}) {gap}")
    none = df[(df.method == "none") & df["first"]]
    tested = {pair: student_p_value(samples[pair]) for pair, gap in found.items() if gap.count >= records.FEWEST}
    sure = ", ".join(label(method) for method, _ in holm(tested)) or "none"
    methods = {method for method, _ in pairs}
    winners = {method for (method, _), gap in found.items() if records.outcome(gap) == "better"}
    status = (
        "holds" if winners == methods else "holds only if" if winners else "fails" if told["worse"] else "not resolved"
    )
    parts = "; ".join(
        f"{text} {student_interval(df[(df.method == arm) & df['first']].accuracy)}"
        for arm, text in {"full": "full, constant", "aent": "drop 33%, band (AEnt)", **PARTS}.items()
        if arm in set(df.method)
    )
    return Verdict(
        status,
        f"Plain GRPO {student_interval(none.accuracy)} from {none.accuracy_before.mean():.3g}, "
        f"{records.counted(len(none))}. Less plain GRPO, same seeds: better: "
        f"{', '.join(told['better']) or 'none'}; worse: {', '.join(told['worse']) or 'none'}; not resolved: "
        f"{len(told['not resolved'])} of {len(found)} settings. "
        f"After Holm's correction over the {len(tested)} settings with {records.FEWEST} seeds or more: {sure}. "
        f"Ingredients of AEnt (first value): {parts}. Intervals: 95%, Student, over seeds, uncorrected.",
    )


def label(method: str) -> str:
    """As in F14."""
    return PARTS.get(method) or METHODS[method].label


def report_table(df: Frame) -> list[list[str]]:
    """Every setting in numbers, best accuracy first."""
    rows = []
    for (method, value), own in df.groupby(["method", "value"], sort=False):
        gap = difference(df, str(method), float(value))  # type: ignore[arg-type]
        rows.append(
            [
                label(str(method)), f"{value:g}", f"{len(own)}", str(student_interval(own.accuracy)), str(gap),
                records.outcome(gap), f"{own.solved.mean():.3f}", f"{own.entropy.mean():.2f}",
            ]
        )  # fmt: skip
    rows.sort(key=lambda row: -float(row[3].split()[0]))
    measured = ["accuracy", "less plain GRPO", "", f"pass@{df.samples.iloc[0]}", "entropy (nats)"]
    return [["method", "knob", "seeds", *measured], *rows]


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(df: Frame) -> Figure:
    """One row per method, by mean accuracy at the first value (the second has fewer seeds); AEnt's parts below."""
    ranked = df[df["first"]].groupby("method").accuracy.mean().sort_values(ascending=False, kind="stable").index
    order = [name for name in ranked if name not in PARTS] + [name for name in PARTS if name in ranked]
    figure, axes = style.canvas(
        TITLE, "Held-out accuracy, entropy at the end and pass@k; two values of each knob, one dot per run",
        columns=3, height=1.7 + 0.27 * len(order), strip=2, sharey=True, width_ratios=(1.7, 1.1, 1.1),
    )  # fmt: skip
    samples = int(df.samples.iloc[0])
    titles = {
        "accuracy": ("Held-out accuracy", "share of samples"),
        "entropy": ("Full entropy at the end", "nats per token"),
        "solved": (f"Held-out pass@{samples}", "share of problems"),
    }
    for axis, (column, (title, unit)) in zip(axes[0], titles.items(), strict=True):
        _column(axis, df, column, order)
        axis.set_title(title)
        axis.set_xlabel(unit)
    _log_ticks(axes[0, 1], df.entropy)
    name_rows(axes[0, 0], {label(name): _colour(name) for name in order}, top=-0.6)
    handles = [
        *family_handles(),
        Line2D([], [], color=style.SUBTLE, marker="o", ls="none", label="first value"),
        Line2D([], [], color=style.SUBTLE, marker="o", mfc="none", ls="none", label="second value"),
    ]
    style.legend_strip(figure, handles, columns=4)
    style.stamp(figure, records.STAMP)
    return figure


def _log_ticks(axis: Axes, values: Frame) -> None:
    low, high = 0.8 * float(values.min()), 1.25 * float(values.max())
    ticks = [t for t in (m * 10.0**k for k in range(-4, 2) for m in (1, 3)) if low <= t <= high]
    axis.set(xscale="log", xlim=(low, high))
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()


def _colour(method: str) -> str:
    return family_colour("full" if method in PARTS else method)


def _column(axis: Axes, df: Frame, column: str, order: list[str]) -> None:
    none = student_interval(df[(df.method == "none") & df["first"]][column])
    if np.isfinite(none.low):
        axis.axvspan(max(none.low, 1e-3), none.high, color=style.SUBTLE, alpha=0.16, lw=0)
    axis.axvline(none.mean, color=style.SUBTLE, lw=1.1, ls=(0, (3, 2)))
    for y, name in enumerate(order):
        colour = _colour(name)
        for first, shift in ((True, -0.17), (False, 0.17)):
            values = df[(df.method == name) & (df["first"] == first)][column]
            if values.empty:
                continue
            axis.plot(values, [y + shift] * len(values), "o", color=colour, ms=2.4, mew=0, alpha=0.5)
            face = colour if first else style.PAPER
            axis.plot(values.mean(), y + shift, "o", color=colour, mfc=face, ms=4.6, mew=1.1)
    style.stripes(axis, len(order))
    parts = sum(name in PARTS for name in order)
    if parts:
        axis.axhline(len(order) - parts - 0.5, color=style.SUBTLE, lw=0.9)
