"""F11. GRPO, GRPO with a full entropy bonus, and AEnt on a language model, each at its best coefficient.

Drawn from committed runs (``records.RECORD``), the same at every scale and seed. Coefficients were chosen on one grid
and other seeds (F13); AEnt starts there and moves within a box by the band rule, Eq. 4.1. Judged is held-out accuracy
after training, by differences between runs of the same seed and their 95% Student interval: one method beats another
when the whole interval is above zero, and "not resolved" means that zero is inside. There is no correction for the
number of comparisons.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aent.stats import Estimate, student_interval
from paper_figures import records, style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict

TITLE = "GRPO, a full entropy bonus and AEnt on a language model"
CLAIM = """AEnt, clamped entropy with an adaptive coefficient, learns best: better than GRPO and than GRPO with a full
entropy bonus, with its entropy held in a band (the paper's Table 1 and Fig. 2, at 1.5 billion parameters)."""
CAPTION = """Four methods on an embedded language model (two layers, 16,384 tokens) and generated sums, each at the best
constant coefficient of one grid, chosen on other seeds; AEnt starts from it and moves by the band rule. Curves: mean
over seeds with a 95% bootstrap interval, single seeds faint; moving averages over 5 steps, but for the coefficient.
The clamped entropy is that of the tokens that a method keeps; shaded: its band. Below: held-out problems before and
after training, one dot per seed, mean with 95% bootstrap interval beside them; accuracy is the
mean over samples, pass@k the chance that one of the k samples is right. Recorded runs: the same at every scale and
seed of this command."""
ALT = """Six charts comparing plain GRPO, GRPO with a full entropy bonus, AEnt dropping a third of the vocabulary and
AEnt keeping 64 tokens: reward, full entropy, clamped entropy of the AEnt methods with its band, and coefficient over
training steps; then held-out accuracy and pass@k per method as one dot per seed with mean and interval."""

ORDER = ("none", "full", "clamp33", "keep64")
CLAMPED = ("clamp33", "keep64")
SHORT = {"none": "GRPO", "full": "full\nentropy", "clamp33": "AEnt\np = .33", "keep64": "AEnt\ntop 64"}
SMOOTH = 5  # logged steps


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """Curves and results (``kind``) of the comparison, from the record; ``scale`` and ``rng`` change nothing.

    Raises:
        ValueError: the record holds no run of the stage "compare".
    """
    found = pd.concat([records.curves(), records.results()], ignore_index=True)
    progress(1, 1)
    own = found[found.stage == "compare"].reset_index(drop=True)
    if own.empty:
        raise ValueError(
            "the record holds no run of the stage 'compare': run `python -m experiments.three_way compare`"
        )
    return own


def methods(df: Frame) -> list[str]:
    """The methods that were run, in the order of the figure."""
    return [name for name in ORDER if name in set(df.method)]


def difference(df: Frame, ours: str, theirs: str) -> Estimate:
    """Held-out accuracy of one method less that of another, over the seeds that both have."""
    table = df[df.kind == "result"].pivot_table(index="seed", columns="method", values="accuracy")
    return student_interval((table[ours] - table[theirs]).dropna())


def in_band(df: Frame, method: str) -> Estimate:
    """Share of the steps in the second half of training within the method's band, per seed."""
    own = df[(df.kind == "curve") & (df.method == method) & (df.step > df.step.max() / 2)]
    inside = own.clamped.between(own.low, own.high)
    return student_interval(inside.groupby(own.seed).mean())


def at_box(df: Frame, method: str) -> Estimate:
    """Share of the steps in the second half of training with the coefficient at an end of its box, per seed."""
    own = df[(df.kind == "curve") & (df.method == method) & (df.step > df.step.max() / 2)]
    stuck = np.isclose(own.coefficient, own.minimum, rtol=1e-3) | np.isclose(own.coefficient, own.maximum, rtol=1e-3)
    return student_interval(own.assign(stuck=stuck).groupby("seed").stuck.mean())


def verdict(df: Frame) -> Verdict:
    """Holds if AEnt as published (p = .33) beats both others, only-if if just the strong clamp does, fails if worse."""
    found = methods(df)
    pairs = {(a, b): difference(df, a, b) for b, a in itertools.combinations(found, 2)}
    wins = {a for a in CLAMPED if all(_better(pairs, a, b) for b in ("none", "full"))}
    told = "; ".join(f"{_name(a)} less {_name(b)} {gap}: {records.outcome(gap)}" for (a, b), gap in pairs.items())
    result = df[df.kind == "result"]
    scores = ", ".join(f"{_name(name)} {student_interval(result[result.method == name].accuracy)}" for name in found)
    bands = ", ".join(f"{_name(name)} {in_band(df, name).mean:.0%}" for name in found if name in CLAMPED)
    stuck = ", ".join(f"{_name(name)} {at_box(df, name).mean:.0%}" for name in found if name in CLAMPED)
    if "clamp33" in wins:
        status, lead = "holds", "AEnt as published (p = .33) beats both others."
    elif wins:
        status, lead = "holds only if", "Only with a strong clamp (64 tokens kept) does AEnt beat both others."
    else:
        beaten = [_name(name) for name in CLAMPED if _worse(pairs, name)]
        status, lead = (
            "fails" if beaten else "not resolved",
            "Not shown: neither AEnt beats both others by more than the seeds scatter.",
        )
        lead += f" Worse than one of them: {', '.join(beaten)}." if beaten else ""
    common = min((gap.count for gap in pairs.values()), default=0)
    sentence = (
        f"{lead} Held-out accuracy from {result.accuracy_before.mean():.3g} to: {scores}. Differences over "
        f"{records.counted(common, 'common seed')}: {told}. Steps within the band in the second half of training: "
        f"{bands}; with the coefficient at an end of its box: {stuck}. Intervals: 95%, Student, over seeds."
    )
    return Verdict(status, sentence)


def _better(pairs: dict[tuple[str, str], Estimate], a: str, b: str) -> bool:
    return (a, b) in pairs and records.outcome(pairs[a, b]) == "better"


def _worse(pairs: dict[tuple[str, str], Estimate], a: str) -> bool:
    return any((a, b) in pairs and records.outcome(pairs[a, b]) == "worse" for b in ("none", "full"))


def _name(method: str) -> str:
    return SHORT[method].replace("\n", " ")


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(df: Frame) -> Figure:
    """Reward, entropies and coefficient along training; accuracy and pass@k before and after."""
    curve, result = df[df.kind == "curve"], df[df.kind == "result"]
    figure, axes = style.canvas(
        TITLE,
        f"{records.counted(result.seed.nunique())} each, mean and 95% interval; embedded model, generated sums",
        rows=2, columns=3, height=6.6, strip=2,
    )  # fmt: skip
    panels: list[tuple[Axes, str, str, str, int]] = [
        (axes[0, 0], "reward", "Reward", "share of correct answers", SMOOTH),
        (axes[0, 1], "full", "Full entropy", "nats per token", SMOOTH),
        (axes[0, 2], "clamped", "Clamped entropy", "nats per token", SMOOTH),
        (axes[1, 0], "coefficient", "Coefficient of the bonus", "coefficient, per nat", 1),
    ]
    for panel, column, title, label, smooth in panels:
        for name in methods(curve):
            own = curve[curve.method == name]
            if (column != "clamped" or name in CLAMPED) and (column != "coefficient" or name != "none"):
                records.draw_curve(panel, own, column, smooth=smooth)
        panel.set_title(title)
        panel.set(xlabel="training step", ylabel=label, xlim=(1, curve.step.max()))
    _entropies((axes[0, 1], axes[0, 2]), curve)
    _coefficients(axes[1, 0], curve)
    axes[0, 0].set_ylim(0, 1)
    samples = int(result.samples.iloc[0])
    for panel, column, title in (
        (axes[1, 1], "accuracy", "Held-out accuracy"),
        (axes[1, 2], "solved", f"Held-out pass@{samples}"),
    ):
        _dots(panel, result, column)
        panel.set_title(title)
        panel.set_ylabel("share of samples" if column == "accuracy" else "share of problems")
    style.legend_strip(figure, _handles(df), columns=2)
    style.stamp(figure, records.STAMP)
    return figure


def _entropies(pair: tuple[Axes, Axes], curve: Frame) -> None:
    """One scale for both entropies, logarithmic when one method leaves the others far below, and the band."""
    top = float(curve.full.max())
    wide = top > 8 * float(curve.groupby("method").full.median().median())
    for name in methods(curve):
        own, colour = curve[curve.method == name].iloc[0], style.LOOKS[name].colour
        if own.rule == "band":
            pair[1].axhspan(own.low, own.high, color=colour, alpha=0.1, lw=0)
            for end in (own.low, own.high):
                pair[1].axhline(end, color=colour, lw=1, ls=(0, (3, 2)))
    for panel in pair:
        panel.set(yscale="log" if wide else "linear")
        panel.set_ylim((0.5 * float(curve.clamped.min()), 1.2 * top) if wide else (0, 1.05 * top))


def _coefficients(panel: Axes, curve: Frame) -> None:
    used = curve[(curve.method != "none") & (curve.coefficient > 0)].coefficient
    low, high = 0.6 * float(used.min()), 1.7 * float(used.max())
    ticks = [t for t in (m * 10.0**k for k in range(-6, 2) for m in (1, 3)) if low <= t <= high]
    panel.set(yscale="log", ylim=(low, high))
    panel.set_yticks(ticks, [f"{t:g}" for t in ticks])
    panel.minorticks_off()


def _dots(panel: Axes, result: Frame, column: str) -> None:
    before = float(result[f"{column}_before"].mean())
    panel.axhline(before, color=style.SUBTLE, lw=1.1, ls=(0, (2, 2)))
    style.note(panel, -0.45, before, "before training", va="top", fontsize=7.8, color=style.SUBTLE)
    names = methods(result)
    for x, name in enumerate(names):
        own, look = result[result.method == name], style.LOOKS[name]
        records.draw_dots(panel, x, own[column], look.colour, marker=look.marker)
        panel.annotate(
            f"{own[column].mean():.2f}", (x, max(own[column])), xytext=(0, 6), textcoords="offset points",
            ha="center", fontsize=8.5, color=look.colour, fontweight="bold",
        )  # fmt: skip
    panel.set_xticks(range(len(names)), [SHORT[name] for name in names], fontsize=7.8)
    low, high = min(before, *result[column]), max(before, *result[column])
    pad = 0.2 * (high - low) + 0.01
    panel.set(xlim=(-0.5, len(names) - 0.5), ylim=(max(-0.02, low - pad), high + 1.2 * pad))
    panel.grid(axis="x", visible=False)


def _handles(df: Frame) -> list[Any]:
    handles: list[Any] = []
    for name in methods(df):
        own, look = df[df.method == name].iloc[0], style.LOOKS[name]
        text = {
            "constant": f"coefficient {own.setting:g}",
            "band": f"from {own.setting:g}, band {own.low:g} to {own.high:g} nats",
        }.get(own.rule)
        label = "GRPO, no bonus" if name == "none" else f"{_name(name)}, {text or own.rule}"
        handles.append(Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, ms=4.5, label=label))
    return handles
