"""F5. Proposition 1: does a collapsed policy stop learning, and does an uncollapsed one learn?

The norm of the exact policy gradient against the policy entropy, for random policies, collapsed policies and along
training runs of random bandits, random trees and sparse-reward token trees. Norms and gaps are in units of R, the
largest difference of return-to-go that choices can make, so that all instances share one plot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures import style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict
from toymdp.families import Instance, random_tree, token_tree
from toymdp.mdp import TokenMDP, optimum, policy_gradient, response_entropy, softmax, value
from toymdp.theory.attacks import Case, ascent, bandit, cases
from toymdp.theory.bounds import GRADIENT_L2, norm, value_span

TITLE = "Gradient norm against entropy: bound, sharp bound, no converse"
CLAIM = """Prop. 1: the norm of the policy gradient is at most 2 R H, H the policy entropy, so a collapsed policy
stagnates."""
CAPTION = """Left: every dot is one policy (random, collapsed, or met along exact-gradient training with and without
bonus; bandits, trees and stochastic MDPs). Grey dashes: the published bound 2 R H; line: the sharp bound 0.5101 R H,
reached by the uniform two-armed bandit (diamond). The star is the uniform policy over 10⁵ tokens with one optimum:
much entropy, no gradient. Right: training of sparse token trees from a pre-trained-like policy: without bonus the
gradient can die while the gap to the optimum stays; line ends are marked."""
ALT = """Left, a log-log scatter of gradient norm against entropy; all dots lie below the sharp bound, one touches it.
Right, training runs as lines of gap to the optimum against gradient norm: runs that get stuck end
with a vanished gradient and a gap of one half."""

SOURCES = {
    "random policy": ("#8A8F98", "o"),
    "collapsed policy": ("#CC79A7", "v"),
    "training, no bonus": ("#E69F00", "s"),
    "training, full bonus": (style.LOOKS["full"].colour, "o"),
}
COEFFICIENT = 0.05  # of the sparse trees' bonus: inside its window at |A| = 10^4 (see F4)


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """One row per policy: source, kind, run, step, entropy (nats per response), norm/R, gap/R."""
    per_kind, runs = scale.pick(smoke=(4, 2), default=(40, 6), full=(600, 40))
    total = 4 * per_kind + 3 * runs + 1
    rows = [_row("equality", "two-armed bandit", 0, 0, bandit(np.array([0.0, 1.0])), np.zeros((1, 2)))]
    lone = token_tree(rng, actions=100_000, optimal=1, decoys=0, prior="uniform", bins=1)
    rows.append(_row("converse", "uniform over 10^5", 0, 0, lone.mdp, lone.prior))
    done = 0
    for case in cases(rng, per_kind):
        rows += list(_of_case(case, done))
        done += 1
        progress(done, total)
    jobs = (delayed(_training)(*_sparse_instance(rng, run), run, scale) for run in range(3 * runs))
    finished: Any = Parallel(return_as="generator")(jobs)
    for own in finished:
        rows += own
        done += 1
        progress(done, total)
    return pd.DataFrame(rows)


def _of_case(case: Case, run: int) -> Iterator[dict]:
    """All policies of one attack: the prior and four random ones, two collapsed ones, then trained ones."""
    untrained = len(case.logits) - case.trained
    for i, logits in enumerate(case.logits):
        steps = case.trained // 2
        if i >= untrained:
            source = "training, no bonus" if i < untrained + steps else "training, full bonus"
        else:
            source = "collapsed policy" if i >= untrained - 2 else "random policy"
        yield _row(source, case.kind, run, i, case.mdp, logits)


def _sparse_instance(rng: np.random.Generator, run: int) -> tuple[str, Instance]:
    """A sparse-reward tree to train on: lumped 10^4 tokens with decoys, H = 1 or 2, or a small random tree."""
    kind = ("bandit, 10^4", "tree, 10^4 x 10^4", "random tree")[run % 3]
    if kind == "random tree":
        return kind, random_tree(rng, actions=4, horizon=2, sparse=True)
    return kind, token_tree(rng, actions=10_000, optimal=2, horizon=1 + run % 3, bins=60)


def _training(kind: str, instance: Instance, run: int, scale: Scale) -> list[dict]:
    steps = scale.pick(smoke=200, default=1000, full=10_000)
    record = np.unique(np.geomspace(1, steps, 24).astype(int))
    rows = []
    for source, coefficient in (("training, no bonus", 0.0), ("training, full bonus", COEFFICIENT)):
        path = ascent(instance.mdp, instance.prior, rate=4.0, steps=steps, coefficient=coefficient, record=record)
        rows += [
            _row(source, f"sparse: {kind}", run, int(t), instance.mdp, logits)
            for t, logits in zip(record, path, strict=True)
        ]
    return rows


def _row(source: str, kind: str, run: int, step: int, mdp: TokenMDP, logits: np.ndarray) -> dict:
    policy, span = softmax(mdp, logits), value_span(mdp)
    return {
        "source": source,
        "kind": kind,
        "run": run,
        "step": step,
        "horizon": mdp.horizon,
        "entropy": float(response_entropy(mdp, policy)),
        "norm": float(norm(mdp, policy_gradient(mdp, logits))) / span,
        "gap": (optimum(mdp).value - float(value(mdp, policy))) / span,
    }


def verdict(df: Frame) -> Verdict:
    """Holds if no policy violates either bound."""
    ratio = (df["norm"] / df.entropy)[df.entropy > 1e-12]
    violations = int((ratio > 2 * (1 + 1e-9)).sum())
    sharp = int((ratio > GRADIENT_L2 * (1 + 1e-9)).sum())
    plain: Frame = df[df.kind.str.startswith("sparse") & (df.source == "training, no bonus")]
    ends = plain.sort_values("step").groupby("run").tail(1)
    stuck = ends[ends.gap > 0.2]
    helped = df[df.kind.str.startswith("sparse") & (df.source == "training, full bonus")].sort_values("step")
    flooded = helped.groupby("run").tail(1).query("gap > 0.2")
    lone = df[df.source == "converse"].iloc[0]
    sentence = (
        f"{len(df)} policies, {violations} violations of the published bound: the largest norm/(R·H) is "
        f"{ratio.max():.4f}, a quarter of the published 2 and exactly the sharp {GRADIENT_L2:.4f} ({sharp} violations)."
        f" Without bonus {len(stuck)} of {len(ends)} sparse runs end stuck: gap {stuck.gap.median():.2f}, gradient "
        f"norm {stuck['norm'].median():.0e} (with a bonus of {COEFFICIENT} {len(flooded)} of {helped.run.nunique()} do "
        f"not solve it either, at {flooded.entropy.median():.1f} nats). The converse fails: {lone.entropy:.1f} nats of "
        f"entropy and a norm of {lone['norm']:.0e}."
    )
    return Verdict("holds" if violations == 0 else "fails", sentence)


def draw(df: Frame) -> Figure:
    """Scatter with bounds, and the sparse training runs."""
    figure, axes = style.canvas(
        TITLE,
        "Exact gradients on bandits, trees, stochastic MDPs and sparse token trees, in units of the return range R",
        columns=2,
        height=4.9,
        strip=1,
        width_ratios=(1.15, 1),
    )
    _scatter(axes[0, 0], df)
    _stagnation(axes[0, 1], df[df.kind.str.startswith("sparse")])
    style.legend_strip(
        figure,
        [Line2D([], [], color=c, marker=m, ls="none", ms=5, mew=0, label=name) for name, (c, m) in SOURCES.items()],
    )
    return figure


def _scatter(panel: Axes, df: Frame) -> None:
    panel.set_title("Norm of the policy gradient")
    x = np.geomspace(1e-5, 30, 50)
    panel.plot(x, 2 * x, color=style.SUBTLE, ls=(0, (4, 2)), lw=1.3)
    panel.plot(x, GRADIENT_L2 * x, color=style.INK, lw=1.3)
    for source, (colour, marker) in SOURCES.items():
        own = df[df.source == source]
        panel.plot(own.entropy, own["norm"], marker, color=colour, ms=2.6, mew=0, alpha=0.6, rasterized=True)
    equality, lone = (df[df.source == name].iloc[0] for name in ("equality", "converse"))
    panel.plot(equality.entropy, equality["norm"], "D", color=style.INK, ms=6)
    panel.plot(lone.entropy, lone["norm"], "*", color=style.LOOKS["keep100"].colour, ms=13)
    style.note(
        panel, 1.7e-5, 4.6e-5, "2 R H (published)", rotation=_slope(panel), rotation_mode="anchor", color=style.SUBTLE
    )
    style.note(panel, 1.7e-5, 1.15e-5, f"{GRADIENT_L2:.4f} R H (sharp)", rotation=_slope(panel), rotation_mode="anchor")
    style.note(panel, 0.5, 0.52, "equality", ha="right", va="center")
    style.note(panel, 8, 1.1e-5, "uniform over 10⁵\n(converse fails)", ha="right", va="center")
    panel.set(xscale="log", yscale="log", xlim=(1e-5, 30), ylim=(1e-7, 4))
    panel.set(xlabel="policy entropy H, nats per response", ylabel="‖∇V‖₂ / R")
    style.powers_of_ten(panel.yaxis)
    style.powers_of_ten(panel.xaxis)


def _slope(panel: Axes) -> float:
    """Angle of a line of slope 1 on these log axes, in degrees of the drawn panel (about 4.1 x 3.1 inches)."""
    return math.degrees(math.atan((3.1 / math.log10(4e7)) / (4.1 / math.log10(3e6))))


def _stagnation(panel: Axes, df: Frame) -> None:
    panel.set_title("Sparse token trees: gap against gradient")
    for (source, _), own in df.groupby(["source", "run"]):
        colour, marker = SOURCES[source]
        own = own.sort_values("step")
        panel.plot(own["norm"], own.gap, color=colour, lw=0.9, alpha=0.65)
        panel.plot(own["norm"].iloc[-1], own.gap.iloc[-1], marker, color=colour, ms=5.5, mec=style.PAPER, mew=0.6)
    panel.set(
        xscale="log", xlabel="‖∇V‖₂ / R  (training goes from line to marker)", ylabel="gap to the optimum, (V* - V) / R"
    )
    panel.set_ylim(-0.03, 1.03)
    style.powers_of_ten(panel.xaxis)
