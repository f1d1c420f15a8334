"""F1. One policy-optimisation step, shown as policies: who gets the mass that the bonus moves?

The instance is this project's own design (arms, step and coefficient of the published picture are not public): one
decoy, one optimum, four more plausible tokens, and a tail of 10^5 tokens nobody wants. Three optimisers take one exact
step each. The natural step has size 1; plain gradient and Adam get the step size whose *unregularised* step moves the
policy just as far (equal KL), so their panels differ by direction alone. Adam's first step is the sign of the gradient.

Groups: "design" is the instance itself, "varied" are random instances around it (every plausible log-probability with
noise of standard deviation .3, the tail .3 within; every class keeps its mass, so all start from the same bars).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.optimize import brentq

from aent.entropy import Full, Support, TopK, entropy_gradient
from paper_figures import style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict

TITLE = "One optimisation step: whom does the entropy bonus pay?"
CLAIM = """A full entropy bonus spends itself on the huge tail of meaningless tokens; a clamped bonus on the plausible
alternatives."""
CAPTION = """Policy mass by class of token before (hollow) and after one exact step without bonus, with the full entropy
bonus and with the clamped one (bonus over the six plausible tokens; coefficient .2). Bars: mean over random
instances; whiskers: their 5-95% range. The percentages say where the bonus itself put the mass it moved on the design
instance. Plain gradient and Adam take the step size whose unregularised step is as far (in KL) as the natural step of
size 1. Instance, step and coefficient are our own design: the numbers of the published picture are not public."""
ALT = """Three bar charts, one per optimiser (natural gradient, plain gradient, Adam). Each shows the probability of
the decoy, the optimum, other plausible tokens and the tail of 100,000 tokens, before and after one step with no, full
and clamped bonus. With the natural gradient the full bonus pays the tail almost alone; with the other two it mostly
pays plausible tokens."""

COEFFICIENT = 0.2
MASS = {"decoy": 0.62, "optimum": 0.03, "plausible": 0.33, "tail": 0.02}
PROBABILITY = np.array([0.62, 0.03, 0.18, 0.10, 0.04, 0.01])  # decoy, optimum, four other plausible tokens
REWARD = np.array([0.5, 1.0, 0.3, 0.0, 0.0, 0.0])
TAIL = 100_000
SPREAD = 0.3
HEAD = len(PROBABILITY)
CLASSES = tuple(MASS)
OPTIMISERS = {"natural": "natural gradient", "plain": "plain gradient", "adam": "Adam (first step)"}
BONUSES: dict[str, tuple[float, Support]] = {
    "none": (0.0, Full()),
    "full": (COEFFICIENT, Full()),
    "clamped": (COEFFICIENT, TopK(HEAD)),
}


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """One row per group, instance, optimiser and bonus (``before`` included): mass by class, value, entropy (nats)."""
    count = scale.pick(smoke=6, default=40, full=400)
    sizes = matched_step_sizes()
    rows = []
    for number in range(count + 1):
        group, logits = ("design", design()) if number == 0 else ("varied", varied(rng))
        for optimiser, size in sizes.items():
            common = {"group": group, "instance": number, "optimiser": optimiser, "step_size": size}
            rows.append({**common, "bonus": "before", **measure(logits)})
            for bonus in BONUSES:
                rows.append({**common, "bonus": bonus, **measure(step(logits, optimiser, bonus, size))})
        progress(number + 1, count + 1)
    return pd.DataFrame(rows)


def design() -> np.ndarray:
    """(V,) log-probabilities of the design instance, the six plausible tokens first."""
    return np.concatenate([np.log(PROBABILITY), np.full(TAIL, np.log(MASS["tail"] / TAIL))])


def varied(rng: np.random.Generator) -> np.ndarray:
    """A random instance around the design; every class keeps its mass."""
    probability = np.exp(design() + SPREAD * rng.standard_normal(HEAD + TAIL))
    parts = [slice(0, 1), slice(1, 2), slice(2, HEAD), slice(HEAD, None)]
    for part, mass in zip(parts, MASS.values(), strict=True):
        probability[part] *= mass / probability[part].sum()
    return np.log(probability)


def step(logits: np.ndarray, optimiser: str, bonus: str, size: float) -> np.ndarray:
    """Logits after one exact ascent step on V + lambda H~ in a softmax bandit."""
    coefficient, support = BONUSES[bonus]
    policy = np.exp(logits) / np.exp(logits).sum()
    reward = np.concatenate([REWARD, np.zeros(TAIL)])
    gradient = policy * (reward - policy @ reward)
    if coefficient:
        gradient = gradient + coefficient * entropy_gradient(logits, support=support)
    direction = {
        "natural": lambda: gradient / policy,  # inverse Fisher matrix, up to a constant that softmax ignores
        "plain": lambda: gradient,
        "adam": lambda: gradient / (np.abs(gradient) + 1e-8),
    }[optimiser]()
    return logits + size * direction


def matched_step_sizes() -> dict[str, float]:
    """Step sizes at which every optimiser's step without bonus has the KL of the natural step of size 1."""
    logits = design()
    target = _kl(logits, step(logits, "natural", "none", 1.0))
    sizes = {"natural": 1.0}
    for optimiser, largest in (("plain", 100.0), ("adam", 3.0)):
        sizes[optimiser] = _root(lambda s, o=optimiser: _kl(logits, step(logits, o, "none", s)) - target, largest)
    return sizes


def _root(function: Callable[[float], float], largest: float) -> float:
    found: Any = brentq(function, 1e-6, largest)
    return float(found)


def _kl(before: np.ndarray, after: np.ndarray) -> float:
    """KL(before || after) in nats."""
    difference = after - before
    return float(np.log(np.exp(before) @ np.exp(difference)) - np.exp(before) @ difference)


def measure(logits: np.ndarray) -> dict[str, float]:
    """Mass of each class, expected reward, entropy in nats."""
    policy = np.exp(logits - logits.max())
    policy /= policy.sum()
    masses = [policy[0], policy[1], policy[2:HEAD].sum(), policy[HEAD:].sum()]
    inner = {"value": float(policy[:HEAD] @ REWARD), "entropy": float(-(policy * np.log(policy)).sum())}
    return {name: float(mass) for name, mass in zip(CLASSES, masses, strict=True)} | inner


def paid(df: Frame) -> Frame:
    """What the bonus itself moved on the design: mass after the step minus mass after the step without bonus."""
    means = df[df.group == "design"].set_index(["optimiser", "bonus"])[list(CLASSES)]
    rows = [(o, b) for o in OPTIMISERS for b in ("full", "clamped")]
    return pd.DataFrame({row: means.loc[row] - means.loc[(row[0], "none")] for row in rows}).T


def verdict(df: Frame) -> Verdict:
    """Holds where the full bonus gives the tail most of what it gives, and the clamped one gives it nothing."""
    moved = paid(df)
    share = {key: row["tail"] / row.clip(lower=0).sum() for key, row in moved.iterrows()}
    shown = [o for o in OPTIMISERS if share[(o, "full")] > 0.5 and share[(o, "clamped")] < 0.05]
    natural = df[(df.group == "design") & (df.optimiser == "natural")].set_index("bonus")
    tail, optimum = natural["tail"], natural["optimum"]
    numbers = (
        f"After a natural step the tail holds {tail['full']:.3f} with the full bonus, {tail['clamped']:.3f} with the "
        f"clamped one and {tail['none']:.3f} without; the optimum {optimum['full']:.3f}, {optimum['clamped']:.3f} and "
        f"{optimum['none']:.3f}. Of the mass that the full bonus hands out, the tail gets "
        + ", ".join(f"{share[(o, 'full')]:.0%} ({o})" for o in OPTIMISERS)
        + "; of the clamped bonus' mass "
        + ", ".join(f"{max(share[(o, 'clamped')], 0):.0%} ({o})" for o in OPTIMISERS)
        + "."
    )
    status = "holds" if len(shown) == len(OPTIMISERS) else "holds only if" if shown else "fails"
    condition = f"Only with the {' and '.join(OPTIMISERS[o] for o in shown)}. " if status == "holds only if" else ""
    return Verdict(status, condition + numbers)


def draw(df: Frame) -> Figure:
    """Grouped bars, one panel per optimiser."""
    figure, axes = style.canvas(
        TITLE,
        f"Policy mass by class of token. One decoy (pays .5), one optimum (1), {HEAD - 2} more plausible tokens, "
        f"a tail of 10⁵; λ = {COEFFICIENT}; own design",
        columns=3,
        height=4.7,
        strip=1,
        sharey=True,
    )
    moved = paid(df)
    for panel, (optimiser, title) in zip(axes[0], OPTIMISERS.items(), strict=True):
        own = df[df.optimiser == optimiser]
        panel.set_title(f"{title}, size {own.step_size.iloc[0]:.3g}")
        for slot, bonus in enumerate(LOOKS):
            _bars(panel, own[own.bonus == bonus], (slot - 1.5) * 0.21, bonus)
        _who_is_paid(panel, moved.loc[optimiser])
        panel.set_xticks(range(4), ["decoy", "optimum", "other\nplausible", "tail"])
        panel.grid(axis="x", visible=False)
        panel.tick_params(axis="x", length=0)
    axes[0, 0].set_ylabel("probability")
    axes[0, 0].set_ylim(0, 0.92)
    style.legend_strip(figure, [Patch(**_look(bonus), label=label) for bonus, label in LOOKS.items()])
    return figure


LOOKS = {"before": "before the step", "none": "no bonus", "full": "full bonus", "clamped": "clamped bonus"}


def _look(bonus: str) -> dict:
    if bonus == "before":
        return {"facecolor": "none", "edgecolor": style.SUBTLE, "linewidth": 0.9}
    return {"facecolor": _colour(bonus), "edgecolor": _colour(bonus), "linewidth": 0.9}


def _colour(bonus: str) -> str:
    return style.LOOKS["keep100" if bonus == "clamped" else bonus].colour


def _bars(panel: Axes, rows: Frame, shift: float, bonus: str) -> None:
    masses = rows[rows.group == "varied"][list(CLASSES)]
    x, mean = np.arange(4) + shift, masses.mean().to_numpy()
    low, high = masses.quantile([0.05, 0.95]).to_numpy()
    panel.bar(x, mean, 0.185, **_look(bonus))
    if bonus != "before":
        whisker = np.clip([mean - low, high - mean], 0, None)
        panel.errorbar(x, mean, whisker, fmt="none", ecolor=style.INK, elinewidth=0.9, capsize=1.6)
    for k in (1, 3):  # the two classes that the claim is about
        text = f"{mean[k]:.3f}".lstrip("0")
        style.note(panel, x[k], high[k] + 0.012, text, rotation=90, ha="center", va="bottom", fontsize=7.5)


def _who_is_paid(panel: Axes, moved: Frame) -> None:
    """Where the mass went that the bonus itself handed out (against the step without bonus)."""
    panel.text(0.99, 0.985, "the bonus pays", transform=panel.transAxes, ha="right", va="top", fontsize=8)
    for line, bonus in enumerate(("full", "clamped")):
        gains = moved.loc[bonus].clip(lower=0)
        gains = (gains / gains.sum()).sort_values(ascending=False)
        text = ", ".join(f"{name} {share:.0%}" for name, share in gains.items() if share > 0.005)
        place = {"transform": panel.transAxes, "ha": "right", "va": "top", "fontsize": 8}
        panel.text(0.99, 0.92 - 0.065 * line, text, color=_colour(bonus), fontweight="bold", **place)
