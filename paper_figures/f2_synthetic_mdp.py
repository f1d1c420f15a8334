"""F2: the layout of the paper's Fig. 1 at |A| = 10^5, beside the values read off the published figure.

The settings of the published synthetic MDP are not public. Two recipes of this project's own design stand in for it:

    pre-trained   bandits with a plausible head, log-linear policy, Adam, sampled groups: closest to a language model
    flat          20 independent units with N(0, 1) logits, tabular, exact gradients, SGD: levels of the paper's axis

Each method's coefficient is tuned once (on the sparsest problem, on seeds that are not drawn) and kept for all panels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from aent.controllers import Constant
from aent.entropy import DropLowest, Full, Support, TopK
from aent.stats import bootstrap_mean
from paper_figures import style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict
from toymdp.families import Instance, token_tree, units
from toymdp.training.config import Learner
from toymdp.training.learners import train

TITLE = "The synthetic MDP of the paper's Fig. 1, at 10⁵ actions"
CLAIM = "Fig. 1: the full entropy bonus helps with 10 to 15 optimal actions, not with 5 or fewer; a clamped one always."
CAPTION = (
    "Average reward during training with 15, 10 and 1 optimal actions among 100,000, and the gain over no bonus at the "
    "end. Ticks at the right edge and hollow bars are the paper's values, read off its figure. The paper's settings "
    "are not public: both rows are recipes of our own. Upper row: plausible-head bandits, log-linear policy, Adam, "
    "groups of 16 sampled responses, the 100 head tokens kept. Lower row: 20 independent units, Gaussian logits, exact "
    "gradients, SGD, the top 1% kept. One coefficient per method for all panels of a row, tuned at one optimal action. "
    "Bands: 95% bootstrap intervals over seeds."
)
ALT = (
    "Two rows of four panels, above for a pre-trained prior, below for a flat one. Three panels show average reward "
    "against training step for 15, 10 and 1 optimal actions, with no bonus, full entropy and clamped entropy (40% "
    "dropped, or only the head kept); the fourth shows bars of the gain over no bonus at 15, 10, 5 and 1 optimal "
    "actions beside the paper's values."
)

OPTIMA = (15, 10, 5, 1)
PANELS = (15, 10, 1)
TUNED_AT = 1
COEFFICIENTS = (0.05, 0.1, 0.2, 0.3, 0.4)
METHODS = ("none", "full", "clamp40", "keep100")

# Final values read off the published figure (no bonus, full, clamped), and the gains of its bar panel.
PAPER_FINAL = {15: (0.24, 0.36, 0.80), 10: (0.20, 0.32, 0.60), 1: (0.20, 0.20, 0.44)}
PAPER_GAIN = {15: (0.12, 0.56), 10: (0.12, 0.40), 5: (0.0, 0.24), 1: (0.0, 0.24)}


@dataclass(frozen=True)
class Recipe:
    """A stand-in for the unpublished settings."""

    name: str
    learner: Learner
    seeds: int
    tuning_seeds: int
    actions: int

    def instance(self, optimal: int, seed: int) -> Instance:
        """One problem with so many optimal actions."""
        rng = np.random.default_rng(seed)
        if self.name == "flat":
            return units(rng, actions=self.actions, optimal=optimal, count=20, bins=256)
        return token_tree(rng, actions=self.actions, optimal=optimal)

    def support(self, method: str) -> Support:
        """The strong clamp keeps the plausible head, or the top 1% where there is no head."""
        strong: Support = TopK(self.actions // 100) if self.name == "flat" else TopK(100)
        return {"none": Full(), "full": Full(), "clamp40": DropLowest(0.4), "keep100": strong}[method]


def recipes(scale: Scale) -> tuple[Recipe, Recipe]:
    """Both recipes at this scale."""
    smoke = scale.name == "smoke"
    actions = 1000 if smoke else 100_000
    sampled = Learner(60 if smoke else 600, 0.01, parametrisation="loglinear", record_every=10)
    exact = Learner(200 if smoke else 3000, 2000.0, "sgd", "exact", record_every=25)
    return (
        Recipe(
            "pre-trained",
            sampled,
            scale.pick(smoke=3, default=10, full=20),
            scale.pick(smoke=2, default=5, full=8),
            actions,
        ),
        Recipe("flat", exact, scale.pick(smoke=2, default=3, full=10), 2, actions),
    )


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """Curves: recipe, method, coefficient, optimal, seed, step, value. Seeds are fixed, so ``rng`` is not used."""
    pairs = [(recipe, method) for recipe in recipes(scale) for method in METHODS]
    total = len(pairs) * (1 + len(OPTIMA))
    tuned = Parallel(return_as="generator")(delayed(_tuned)(recipe, method) for recipe, method in pairs)
    coefficients = []
    for coefficient in tuned:
        coefficients.append(coefficient)
        progress(len(coefficients), total)
    jobs = [
        (recipe, method, coefficient, optimal)
        for (recipe, method), coefficient in zip(pairs, coefficients, strict=True)
        for optimal in OPTIMA
    ]
    parts = []
    for part in Parallel(return_as="generator")(delayed(_curves_of)(*job) for job in jobs):
        parts.append(part)
        progress(len(pairs) + len(parts), total)
    return pd.concat(parts, ignore_index=True)


def _curves_of(recipe: Recipe, method: str, coefficient: float, optimal: int) -> Frame:
    """Learning curves of all seeds of one method at one sparsity."""
    history = _run(recipe, method, optimal, [coefficient] * recipe.seeds, list(range(recipe.seeds)))
    steps, seeds = np.meshgrid(history.step, np.arange(recipe.seeds), indexing="ij")
    curves = pd.DataFrame({"seed": seeds.ravel(), "step": steps.ravel(), "value": history.value.ravel()})
    return curves.assign(recipe=recipe.name, method=method, coefficient=coefficient, optimal=optimal)


def _run(recipe: Recipe, method: str, optimal: int, coefficients: list[float], seeds: list[int]) -> Any:
    instances = {seed: recipe.instance(optimal, seed) for seed in set(seeds)}
    return train(
        [instances[seed] for seed in seeds],
        recipe.learner,
        support=recipe.support(method),
        controller=Constant(np.array(coefficients)),
        seeds=seeds,
    )


def _tuned(recipe: Recipe, method: str) -> float:
    """The coefficient with the highest mean final value at TUNED_AT optimal actions, on seeds of its own."""
    if method == "none":
        return 0.0
    seeds = list(range(10_000, 10_000 + recipe.tuning_seeds))
    pairs = [(coefficient, seed) for coefficient in COEFFICIENTS for seed in seeds]
    history = _run(recipe, method, TUNED_AT, [c for c, _ in pairs], [s for _, s in pairs])
    means = history.value[-1].reshape(len(COEFFICIENTS), -1).mean(axis=1)
    return COEFFICIENTS[int(np.argmax(means))]


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(df: Frame) -> Figure:
    """A row of curves and bars per recipe."""
    names = list(dict.fromkeys(df["recipe"]))
    figure, axes = style.canvas(
        TITLE, "Average reward; ticks at the right and hollow bars: the paper's values (its settings are not public)",
        rows=len(names), columns=4, height=1.2 + 2.75 * len(names), strip=1, width_ratios=(1, 1, 1, 1.25),
    )  # fmt: skip
    for row, name in enumerate(names):
        part = df[df["recipe"] == name]
        for column, optimal in enumerate(PANELS):
            _curves(axes[row, column], part[part["optimal"] == optimal], optimal)
        axes[row, 0].set_ylabel(f"{name} prior\naverage reward")
        _bars(axes[row, 3], part)
        for axis in axes[row, :3]:
            axis.set_xlabel("step" if row == len(names) - 1 else "")
    handles: list[Any] = [
        Line2D([], [], color=style.LOOKS[m].colour, linestyle=style.LOOKS[m].line, label=_label(m)) for m in METHODS
    ]
    handles.append(Patch(facecolor="none", edgecolor=style.SUBTLE, label="paper's value"))
    style.legend_strip(figure, handles)
    return figure


def _label(method: str) -> str:
    return "clamped, head kept" if method == "keep100" else style.label(method)


def _curves(axis: Any, part: Frame, optimal: int) -> None:
    last = part["step"].max()
    for method, own in part.groupby("method", sort=False):
        look = style.LOOKS[str(method)]
        table = own.pivot(index="step", columns="seed", values="value")
        found = bootstrap_mean(table.to_numpy().T, draws=400)
        style.band(axis, table.index, found.low, found.high, look.colour)
        axis.plot(table.index, found.mean, color=look.colour, linestyle=look.line)
    for value, method in zip(PAPER_FINAL[optimal], ("none", "full", "keep100"), strict=True):
        axis.plot([1.0 * last, 1.1 * last], [value, value], color=style.LOOKS[method].colour, linewidth=2.6, alpha=0.75)
    axis.set(ylim=(-0.04, 1.04), xlim=(0, 1.1 * last), title=f"{optimal} optimal" if optimal > 1 else "1 optimal")


def gains(part: Frame) -> Frame:
    """Mean final value minus that of no bonus, per (optimal, method), with a paired bootstrap interval."""
    last = part[part["step"] == part["step"].max()]
    table = last.pivot_table(index=["optimal", "seed"], columns="method", values="value")
    rows = []
    for optimal in OPTIMA:
        for method in METHODS[1:]:
            gain = (table.loc[optimal, method] - table.loc[optimal, "none"]).to_numpy()
            found = bootstrap_mean(gain)
            rows.append(
                {"optimal": optimal, "method": method, "gain": found.mean, "low": found.low, "high": found.high}
            )
    return pd.DataFrame(rows)


def _bars(axis: Any, part: Frame) -> None:
    table = gains(part)
    for i, optimal in enumerate(OPTIMA):
        for j, method in enumerate(METHODS[1:]):
            line = table[(table["optimal"] == optimal) & (table["method"] == method)].iloc[0]
            x, colour = i + 0.27 * (j - 1), style.LOOKS[method].colour
            axis.bar(x, line["gain"], width=0.24, color=colour)
            axis.plot([x, x], [line["low"], line["high"]], color=style.INK, linewidth=0.9)
            published = {"full": PAPER_GAIN[optimal][0], "keep100": PAPER_GAIN[optimal][1]}.get(method)
            if published is not None:
                axis.bar(x, published, width=0.24, facecolor="none", edgecolor=style.SUBTLE, linewidth=1.1)
    axis.axhline(0, color=style.SUBTLE, linewidth=0.8)
    axis.set(xticks=range(len(OPTIMA)), xticklabels=OPTIMA, title="gain over no bonus", ylim=(-0.35, 0.85))
    axis.set_xlabel("optimal actions")
    axis.grid(axis="x", visible=False)


def verdict(df: Frame) -> Verdict:
    """Does the gain of the full bonus shrink with sparsity while the clamped one keeps it?"""
    sentences, agree = [], {}
    for name, part in df.groupby("recipe", sort=False):
        table = gains(part).set_index(["optimal", "method"])["gain"]
        full, kept = [table[(n, "full")] for n in OPTIMA], [table[(n, "keep100")] for n in OPTIMA]
        agree[name] = kept[-1] > full[-1] + 0.05 and full[0] > 0.02 and kept[-1] > 0.05
        used = part.groupby("method")["coefficient"].first()
        sentences.append(
            f"From the {name} prior the gain at 15, 10, 5, 1 optimal actions is {_list(full)} with the full bonus "
            f"(coefficient {used['full']:g}), {_list(kept)} with a strong clamp ({used['keep100']:g}) and "
            f"{_list([table[(n, 'clamp40')] for n in OPTIMA])} with p = .4 ({used['clamp40']:g})."
        )
    paper = f"Paper: {_list([PAPER_GAIN[n][0] for n in OPTIMA])} and {_list([PAPER_GAIN[n][1] for n in OPTIMA])}."
    seen = ", ".join(f"{name} prior {'yes' if yes else 'no'}" for name, yes in agree.items())
    lead = f"Does a strong clamp keep a gain at one optimum that the full bonus loses? {seen.capitalize()}."
    status = "holds" if all(agree.values()) else "holds only if" if any(agree.values()) else "fails"
    return Verdict(status, " ".join([lead, *sentences, paper]))


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)
