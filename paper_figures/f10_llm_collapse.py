"""F10. What plain GRPO does to the entropy of a language model, and whether learning stops with it.

Drawn from committed runs (``records.RECORD``), the same at every scale and seed: GRPO without a bonus on the embedded
two-layer Qwen2 of 16,384 tokens and its sums. All seeds of the record, of the sweep and of the comparison.

A run's start and end are the means over its first and its last tenth of steps. Entropy has collapsed when it ends below
``COLLAPSED`` of its start, and learning has stopped when reward gains less than ``STALLED`` of its whole gain between
the third and the last quarter of training. Both are judged by the 95% Student interval over seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from aent.stats import Estimate, student_interval
from paper_figures import records, style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict

TITLE = "Plain GRPO on a language model: does the entropy collapse?"
CLAIM = """Without an entropy bonus the policy's entropy collapses during GRPO, and learning stops with it (the paper's
Fig. 2, at 1.5 billion parameters)."""
CAPTION = """GRPO without a bonus on an embedded language model (Qwen2 architecture, two layers, 16,384 tokens) and
generated sums. Faint: single seeds; strong: their mean with a 95% bootstrap interval over seeds; all are moving
averages over 5 steps. A group of 8 answers that all get the same reward has no variance
and gives no gradient. Dashed: a quarter of the entropy at the start, from where on we call it collapsed. Recorded runs:
the same at every scale and seed of this command."""
ALT = """Four line charts over training steps of plain GRPO, one faint line per seed and their mean: reward, full
entropy in nats with a dashed line at a quarter of its start, share of groups without reward variance, and completion
length in tokens."""

COLLAPSED = 0.25  # of the entropy at the start
STALLED = 0.1  # of the whole gain in reward
SMOOTH = 5  # logged steps
PANELS = (
    ("reward", "Reward (share of correct answers)", "reward, 0 to 1"),
    ("full", "Entropy of the policy", "full entropy, nats per token"),
    ("zero_variance", "Groups without a gradient", "share of zero-variance groups"),
    ("length", "Length of an answer", "tokens"),
)


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """All curves of plain GRPO, from the record; ``scale`` and ``rng`` change nothing."""
    found = records.curves()
    progress(1, 1)
    return found[found.method == "none"].reset_index(drop=True)


def verdict(df: Frame) -> Verdict:
    """Holds if entropy collapses and reward stalls, only-if if it collapses and reward still grows; else fails."""
    start, end = records.ends(df, "full")
    ratio = student_interval(end / start)
    stalled = _late_gain(df)
    collapsed = _judge(ratio.low, ratio.high, COLLAPSED)
    stopped = _judge(stalled.low, stalled.high, STALLED)
    zero = [student_interval(values) for values in records.ends(df, "zero_variance")]
    first = {
        "yes": f"Entropy collapses (its interval is below {COLLAPSED:g} of the start)",
        "no": f"Entropy falls but does not collapse (its interval is above {COLLAPSED:g} of the start)",
        "not resolved": f"Whether entropy ends below {COLLAPSED:g} of its start is not resolved by these seeds",
    }[collapsed]
    if collapsed == "no" and ratio.high >= 1:
        first = "Entropy does not collapse, and whether it falls at all is not resolved"
    second = {
        "yes": "learning has stopped",
        "no": "learning goes on",
        "not resolved": "whether learning has stopped is not resolved",
    }[stopped]
    sentence = (
        f"{first}: {records.counted(ratio.count)}, {start.mean():.3g} to {end.mean():.3g} nats a token, ratio {ratio}. "
        f"From the third to the last quarter of training reward gains {stalled} of its whole gain: {second}. "
        f"Groups without reward variance: from {zero[0]} to {zero[1]}. Intervals: 95%, Student, over seeds."
    )
    status = "fails" if collapsed != "yes" else "holds" if stopped == "yes" else "holds only if"
    return Verdict(status, sentence)


def _late_gain(df: Frame) -> Estimate:
    """Gain in reward from the third to the last quarter, as a share of that from the first to the last."""
    table = records.per_seed(df, "reward").to_numpy()
    quarters = [part.mean(0) for part in np.array_split(table, 4)]
    whole = quarters[3] - quarters[0]
    return student_interval((quarters[3] - quarters[2]) / whole.mean())  # the mean: one seed's may be near zero


def _judge(low: float, high: float, limit: float) -> str:
    return "yes" if high < limit else "no" if low > limit else "not resolved"


def draw(df: Frame) -> Figure:
    """Reward, entropy, zero-variance groups and length over training."""
    seeds = df.groupby(["stage", "seed"]).ngroups
    figure, axes = style.canvas(
        TITLE, f"No bonus, {records.counted(seeds)} (faint), mean and 95% interval; embedded model, generated sums",
        rows=2, columns=2, height=6.2, sharex=True,
    )  # fmt: skip
    for panel, (column, title, label) in zip(axes.flat, PANELS, strict=True):
        look: dict[str, Any] = {"ls": "-", "color": style.INK, "lw": 2.1}  # the only method here: no colour needed
        records.draw_curve(panel, df, column, smooth=SMOOTH, **look)
        panel.set_title(title)
        panel.set(ylabel=label, xlim=(1, df.step.max()))
        panel.set_ylim(bottom=0)
    start = records.ends(df, "full")[0].mean()
    axes[0, 1].axhline(COLLAPSED * start, color=style.LOOKS["full"].colour, lw=1.2, ls=(0, (4, 2)))
    style.note(
        axes[0, 1], 0.02 * df.step.max() + 1, COLLAPSED * start, "collapsed: below a quarter of the start",
        va="bottom", color=style.LOOKS["full"].colour,
    )  # fmt: skip
    for panel in axes[1]:
        panel.set_xlabel("training step")
    axes[0, 0].set_ylim(0, 1)
    axes[1, 0].set_ylim(0, 1)
    style.stamp(figure, records.STAMP)
    return figure
