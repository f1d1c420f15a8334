"""F13. How wide is the range of coefficients in which a language model still learns, and what is past its edge?

Drawn from committed runs (``records.RECORD``), the same at every scale and seed: the sweep of constant coefficients,
one grid for every support. A coefficient *learns* when every seed gains at least ``LEARNS`` of what plain GRPO gains on
average, *fails* when none does, and is *not resolved* otherwise. A bonus *floods* the vocabulary when every seed ends
with more full entropy than ``KEPT`` tokens can hold, log 64 nats.

The mass outside of the kept tokens was measured by the clamped runs only. For the full bonus the least mass outside of
the likeliest 64 tokens follows from its entropy (``least_tail``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.optimize import brentq

from aent.stats import bootstrap_mean, student_interval
from paper_figures import records, style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict

TITLE = "Which coefficients still learn, and what is past the edge?"
CLAIM = """A mis-set full entropy bonus floods the vocabulary and unlearns the task; a clamped bonus forgives larger
coefficients, the more it clamps the more so (the paper's Fig. 6: larger p tends to be better)."""
CAPTION = """Constant coefficients on an embedded language model (16,384 tokens, 26 of them of the task) and generated
sums. Left: held-out accuracy after training, one dot per seed, lines through the means; grey: plain GRPO, mean and 95%
bootstrap interval over its seeds; dotted: before training. Right, at the end of training (last tenth of the steps):
full entropy, with the most that 64 tokens can hold, and the probability outside of the kept tokens, measured for the
clamped bonuses; for the full bonus the least probability outside of the likeliest 64 that its entropy allows (open
triangles). Recorded runs: the same at every scale and seed of this command."""
ALT = """Three charts against the coefficient on a logarithmic axis, one line each for full entropy, dropping a third of
the vocabulary and keeping 64 tokens: held-out accuracy after training beside a band for plain GRPO, full entropy at the
end, and probability outside of the kept tokens."""

SUPPORTS = ("full", "clamp33", "keep64")
LEARNS = 0.5  # of plain GRPO's mean gain in accuracy
KEPT, VOCABULARY = 64, 16_384  # of the strong clamp; of the embedded model
SHIFT = {"full": 0.93, "clamp33": 1.0, "keep64": 1.075}  # side by side on the logarithmic axis


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """Results of the sweep and of all plain GRPO runs, from the record; ``scale`` and ``rng`` change nothing.

    Raises:
        ValueError: the record holds no run of a support, or none of plain GRPO.
    """
    found = records.results()
    progress(1, 1)
    own = found[((found.stage == "sweep") & (found.rule == "constant")) | (found.method == "none")]
    if not {"none", "full"} < set(own.method):
        raise ValueError("the record lacks plain GRPO or the full bonus: run `python -m experiments.three_way sweep`")
    return own.reset_index(drop=True)


def least_tail(entropy: float, *, kept: int = KEPT, vocabulary: int = VOCABULARY) -> float:
    """Least mass e outside of ``kept`` tokens at a given entropy: H <= h_b(e) + (1 - e) log k + e log(V - k).

    The right side is concave in e and grows up to e = (V - k) / V, so the bound holds for means over tokens too.
    """
    if entropy <= math.log(kept):
        return 0.0

    def room(e: float) -> float:
        mixed = -e * math.log(e) - (1 - e) * math.log1p(-e)
        return mixed + (1 - e) * math.log(kept) + e * math.log(vocabulary - kept) - entropy

    top = (vocabulary - kept) / vocabulary
    root: Any = top if room(top) <= 0 else brentq(room, 1e-15, top)
    return float(root)


def judged(df: Frame, method: str) -> dict[float, str]:
    """Coefficient -> "learns", "fails" or "not resolved"."""
    plain = df[df.method == "none"]
    needed = LEARNS * float((plain.accuracy - plain.accuracy_before).mean())
    own = df[df.method == method]
    enough = (own.accuracy - own.accuracy_before >= needed).groupby(own.setting)
    return {
        float(c): "learns" if all_of else "not resolved" if any_of else "fails"
        for c, all_of, any_of in zip(enough.all().index, enough.all(), enough.any(), strict=True)
    }


def edge(df: Frame, method: str) -> float:
    """The largest coefficient that learns, with every smaller one of the grid; 0 if not even the smallest does."""
    largest = 0.0
    for coefficient, word in sorted(judged(df, method).items()):
        if word != "learns":
            break
        largest = coefficient
    return largest


def floods(df: Frame, method: str) -> bool:
    """Whether every seed at the largest coefficient ends above log 64 nats."""
    own = df[df.method == method]
    return bool((own[own.setting == own.setting.max()].full > math.log(KEPT)).all())


def verdict(df: Frame) -> Verdict:
    """Holds if the full bonus floods and both clamps learn at more, only-if if just the strong one does, else fails."""
    found = [name for name in SUPPORTS if name in set(df.method)]
    further = [name for name in found if name != "full" and edge(df, name) > edge(df, "full")]
    if not floods(df, "full"):
        status, lead = "fails", "The full bonus does not flood at the largest coefficient of the grid."
    else:
        lead = "The full bonus floods at the largest coefficient. "
        status = "holds" if "clamp33" in further else "holds only if" if further else "fails"
        names = " and ".join(map(_label, further))
        lead += (
            f"Of the clamps, {names} still learns at a larger coefficient."
            if further
            else "No clamp shows a wider range."
        )
    told = "; ".join(_told(df, name) for name in found)
    unsure = [f"{_label(name)} at {c:g}" for name in found for c, w in judged(df, name).items() if w == "not resolved"]
    open_cases = f" Not resolved (seeds disagree): {', '.join(unsure)}." if unsure else ""
    plain = df[df.method == "none"]
    seeds = records.counted(int(df[df.method != "none"].seed.nunique()))
    return Verdict(
        status,
        f"{lead} At least half of plain GRPO's gain, in each of {seeds}: {told}.{open_cases} Plain GRPO: "
        f"{student_interval(plain.accuracy)} from {plain.accuracy_before.mean():.3g}. Intervals: 95%, Student.",
    )


def _told(df: Frame, name: str) -> str:
    own = df[df.method == name]
    top = own[own.setting == own.setting.max()]
    reach = edge(df, name)
    text = f"{_label(name)} {f'up to {reach:g}' if reach else 'nowhere'}"
    text += ", the whole grid" if reach == own.setting.max() else ""
    tail = least_tail(float(top.full.mean())) if name == "full" else float(top.dropped.mean())
    said = f"at least {tail:.2g} of the mass outside of 64 tokens" if name == "full" else f"{tail:.2g} of the mass cut"
    said += ", flooded" if floods(df, name) else ""
    ends = f"{top.accuracy.mean():.2g} at {top.full.mean():.2g} nats, {said}"
    return f"{text} (at {own.setting.max():g}: accuracy {ends})"


def _label(name: str) -> str:
    return {"full": "full entropy", "clamp33": "p = .33", "keep64": "top 64"}[name]


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(df: Frame) -> Figure:
    """Accuracy on the left; entropy and mass outside of the kept tokens on the right."""
    figure, axes = style.canvas(
        TITLE, "Constant coefficients, one grid for all; one dot per seed; embedded model, generated sums",
        rows=2, columns=2, height=5.6, strip=1, width_ratios=(1.25, 1), sharex=True,
    )  # fmt: skip
    grid = axes[0, 0].get_gridspec()
    for panel in axes[:, 0]:
        panel.remove()
    left = figure.add_subplot(grid[:, 0], sharex=axes[0, 1])
    _accuracy(left, df)
    _entropy(axes[0, 1], df)
    _mass(axes[1, 1], df)
    settings = sorted(set(df[df.method != "none"].setting))
    for panel in (left, axes[0, 1], axes[1, 1]):
        panel.set_xscale("log")
        panel.set_xlim(settings[0] / 1.35, settings[-1] * 1.35)
        panel.set_xticks(settings, [f"{c:g}" for c in settings])
        panel.minorticks_off()
    for panel in (left, axes[1, 1]):
        panel.set_xlabel("coefficient of the bonus, per nat")
    style.legend_strip(figure, _handles(df))
    style.stamp(figure, records.STAMP)
    return figure


def _lines(panel: Axes, df: Frame, column: str) -> None:
    for name in SUPPORTS:
        own, look = df[df.method == name].dropna(subset=[column]), style.LOOKS[name]
        if own.empty:
            continue
        mean = own.groupby("setting")[column].mean()
        panel.plot(mean.index * SHIFT[name], mean, color=look.colour, lw=1.7, zorder=2)
        panel.plot(own.setting * SHIFT[name], own[column], look.marker, color=look.colour, ms=4.2, mew=0, alpha=0.75)


def _accuracy(panel: Axes, df: Frame) -> None:
    plain = df[df.method == "none"]
    found = bootstrap_mean(plain.accuracy)
    panel.axhspan(found.low, found.high, color=style.LOOKS["none"].colour, alpha=0.22, lw=0)
    panel.axhline(found.mean, color=style.LOOKS["none"].colour, lw=1.5, ls=style.LOOKS["none"].line)
    before = float(df.accuracy_before.mean())
    panel.axhline(before, color=style.SUBTLE, lw=1.1, ls=(0, (1, 2)))
    left = min(df[df.method != "none"].setting) / 1.3
    style.note(panel, left, before, "before training", va="top", fontsize=8, color=style.SUBTLE)
    _lines(panel, df, "accuracy")
    panel.set_title("Accuracy after training")
    panel.set(ylim=(-0.02, 1), ylabel="held-out accuracy, share of samples")


def _entropy(panel: Axes, df: Frame) -> None:
    _lines(panel, df, "full")
    limit = math.log(KEPT)
    panel.axhline(limit, color=style.SUBTLE, lw=1.1, ls=(0, (4, 2)))
    left = min(df[df.method != "none"].setting) / 1.3
    style.note(panel, left, limit, "log 64: the most 64 tokens hold", va="bottom", fontsize=8, color=style.SUBTLE)
    panel.set_title("Entropy at the end")
    panel.set(ylabel="full entropy, nats", ylim=(0, math.log(VOCABULARY) * 1.03))
    panel.tick_params(labelbottom=False)


def _mass(panel: Axes, df: Frame) -> None:
    _lines(panel, df[df.method != "full"], "dropped")
    own = df[df.method == "full"]
    look = style.LOOKS["full"]
    least = own.full.map(least_tail)
    panel.plot(
        own.setting[least > 0] * SHIFT["full"], least[least > 0], "^", color=look.colour, ms=6, mfc="none", mew=1.3
    )
    panel.set_title("Probability outside of the kept tokens")
    low = float(df[df.method != "full"].dropna(subset=["dropped"]).query("dropped > 0").dropped.min())
    panel.set(ylabel="share of the mass", yscale="log", ylim=(0.5 * min(low, 0.01), 1.6))
    style.powers_of_ten(panel.yaxis)


def _handles(df: Frame) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D(
            [],
            [],
            color=style.LOOKS[n].colour,
            lw=1.7,
            marker=style.LOOKS[n].marker,
            ms=4.5,
            label=style.label(n),
        )
        for n in SUPPORTS
        if n in set(df.method)
    ]
    seeds = len(df[df.method == "none"])
    handles.append(Patch(color=style.LOOKS["none"].colour, alpha=0.4, label=f"plain GRPO, {records.counted(seeds)}"))
    handles.append(
        Line2D(
            [],
            [],
            color=style.LOOKS["full"].colour,
            marker="^",
            mfc="none",
            ls="none",
            label="full: at least, outside of 64 tokens",
        )
    )
    return handles
