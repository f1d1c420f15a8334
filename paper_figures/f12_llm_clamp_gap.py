"""F12. Does the paper's clamp change anything on the policy of a language model?

Drawn from committed runs (``records.RECORD``), the same at every scale and seed. Every run with a clamped bonus
measured at each step the full and the clamped entropy of its own policy, and the cosine between the gradients of the
two at the logits. Left: along training, the runs of the comparison. Right: every run and step of the record against
the full entropy, the policies of mis-set coefficients included.

A bonus acts through its gradient; its value only moves the controller's measurement. So the clamp makes it a different
bonus when the cosine, averaged over training, is below ``TURNS``, judged by the 95% Student interval over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aent.stats import Estimate, student_interval
from paper_figures import records, style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict

TITLE = "Does the clamp change anything on this policy?"
CLAIM = """Dropping the least likely third of the vocabulary (the published p = .33) makes the bonus a different one
than full entropy on a language model's policy."""
CAPTION = """Difference of full and clamped entropy, and cosine between the gradients of the two at the logits, measured
while an embedded language model (16,384 tokens) was trained with the clamped bonus. Left: along training with the band
rule, mean over seeds with a 95% bootstrap interval, single seeds faint. Right: all runs and steps of the record with
a clamped bonus, against the full entropy of the policy; far right are policies that a large coefficient has flooded
with irrelevant tokens. A cosine of 1 means that the clamp changes nothing but the size of the bonus; dashed: .95, from
where down we call it a different bonus. The tail of this model is built by its warm-up, and the share of entropy that a
clamp removes depends on it (F8 has other tails). Recorded runs: the same at every scale and seed of this command."""
ALT = """Four charts: above, the difference of full and clamped entropy on a logarithmic axis, in nats over training
steps and as a share of the full entropy against it; below, the cosine between the two bonus gradients. One colour for
dropping a third of the vocabulary, one for keeping 64 tokens."""

CLAMPED = ("clamp33", "keep64")
TURNS = 0.95  # cosine
FLOOR = 1e-6  # nats: what float32 resolves
VOCABULARY = 16_384  # of the embedded model


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """All curves of clamped runs, with |gap|, from the record; ``scale`` and ``rng`` change nothing.

    Raises:
        ValueError: the record holds no run with a clamped bonus.
    """
    found = records.curves()
    progress(1, 1)
    own = found[found.method.isin(CLAMPED)].reset_index(drop=True)
    if own.empty:
        raise ValueError("the record holds no run with a clamped bonus: run `python -m experiments.three_way sweep`")
    return own.assign(gap=own.gap.abs())


def trained(df: Frame) -> Frame:
    """The runs of the comparison; while there are none, those of the sweep's smallest coefficient."""
    own = df[df.stage == "compare"]
    return df[df.setting == df.setting.min()] if own.empty else own


def bite(df: Frame, method: str) -> Estimate:
    """|full - clamped| / full, averaged over training."""
    return _per_run(df, method, lambda own: float((own.gap / own.full).mean()))


def cosine(df: Frame, method: str) -> Estimate:
    """Cosine between the bonus gradients, averaged over training."""
    return _per_run(df, method, lambda own: float(own.cosine.mean()))


def _per_run(df: Frame, method: str, value: Callable[[Frame], float]) -> Estimate:
    own = df[df.method == method]
    return student_interval([value(run) for _, run in own.groupby(["arm", "stage", "seed"])])


def verdict(df: Frame) -> Verdict:
    """Holds if the published share turns the gradient, only-if if just the strong clamp does, else fails."""
    own = trained(df)
    turned = {name: cosine(own, name) for name in CLAMPED if name in set(own.method)}
    shares = {name: bite(own, name) for name in turned}
    told = "; ".join(
        f"{style.label(name)}: cosine {turned[name]}, entropy less by {shares[name]} of itself" for name in turned
    )
    if "clamp33" in turned and turned["clamp33"].high < TURNS:
        status, lead = "holds", "The published clamp turns the gradient of the bonus."
    elif "keep64" in turned and turned["keep64"].high < TURNS:
        status, lead = "holds only if", "Only a clamp that keeps a few dozen tokens turns the gradient of the bonus."
    else:
        status, lead = "fails", f"No clamp is shown to turn the gradient of the bonus below a cosine of {TURNS:g}."
    if "clamp33" in turned and turned["clamp33"].low < TURNS <= turned["clamp33"].high:
        lead += " For the published one this is not resolved."
    return Verdict(status, f"{lead} Means over training, {told}.{_extreme(df)} Intervals: 95%, Student, over seeds.")


def _extreme(df: Frame) -> str:
    """Where the published clamp turns the gradient most, over every step of every run."""
    own = df[df.method == "clamp33"].dropna(subset=["cosine"])
    if own.empty:
        return ""
    most = own.loc[own.cosine.idxmin()]
    uniform = math.log(VOCABULARY)
    lowest = f"{most.cosine:.3g}, at {most.full:.3g} nats (uniform is {uniform:.3g})"
    return f" Lowest cosine of p = .33 in any run and step: {lowest}."


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(df: Frame) -> Figure:
    """Difference above cosine: along training, and against the full entropy."""
    figure, axes = style.canvas(
        TITLE, "Full against clamped entropy bonus, measured during training; embedded model, 16,384 tokens",
        rows=2, columns=2, height=6.4, strip=1, sharex="col",
    )  # fmt: skip
    floored = df.assign(gap=df.gap.clip(lower=FLOOR), share=(df.gap / df.full).clip(lower=FLOOR))
    for name in CLAMPED:
        own = floored[floored.method == name]
        if own.empty:
            continue
        for panel, column in ((axes[0, 0], "gap"), (axes[1, 0], "cosine")):
            records.draw_curve(panel, trained(own), column)
        for panel, column in ((axes[0, 1], "share"), (axes[1, 1], "cosine")):
            panel.plot(own.full, own[column], "o", color=style.LOOKS[name].colour, ms=2.4, mew=0, alpha=0.35)
    _frame(axes, floored)
    style.legend_strip(figure, _handles(df))
    style.stamp(figure, records.STAMP)
    return figure


def _frame(axes: np.ndarray, df: Frame) -> None:
    for panel, column in ((axes[0, 0], "gap"), (axes[0, 1], "share")):
        panel.set(yscale="log", ylim=(min(1e-2, 0.6 * float(df[column].min())), 1.2))
        style.powers_of_ten(panel.yaxis)
    axes[0, 0].set_ylabel("|full - clamped| entropy, nats")
    axes[0, 1].set_ylabel("|full - clamped| / full")
    for panel in axes[1]:
        panel.set(ylim=(min(-0.03, float(df.cosine.min()) - 0.05), 1.05), ylabel="cosine of the bonus gradients")
        panel.axhline(TURNS, color=style.SUBTLE, lw=1.1, ls=(0, (4, 2)))
    axes[0, 0].set_title("Along training")
    axes[0, 1].set_title("On every policy of the record")
    axes[1, 0].set(xlabel="training step", xlim=(1, df.step.max()))
    _against(axes[1, 1], df)


def _against(panel: Axes, df: Frame) -> None:
    low, high = 0.8 * float(df.full.min()), 1.25 * float(df.full.max())
    panel.set(xlabel="full entropy of the policy, nats per token", xscale="log", xlim=(low, high))
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if low < t < high]
    panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
    panel.minorticks_off()
    uniform = math.log(VOCABULARY)
    if uniform < high:
        style.note(panel, 0.93 * uniform, 0.02, "uniform over\n16,384 tokens", ha="right", va="bottom", fontsize=8)


def _handles(df: Frame) -> list[Line2D]:
    handles = [
        Line2D([], [], color=style.LOOKS[name].colour, lw=2.4, label=style.label(name))
        for name in CLAMPED
        if name in set(df.method)
    ]
    dashed = Line2D(
        [], [], color=style.SUBTLE, lw=1.1, ls=(0, (4, 2)), label=f"cosine {TURNS:g}: below, a different bonus"
    )
    return [*handles, dashed]
