"""F8. How much of the entropy, and of the bonus' direction, does the clamp change at vocabulary size?

Two families of next-token distributions over V = 150,000 tokens: Gaussian logits of growing spread (from uniform to
peaked), and stand-ins for a language model: a Zipf law log p = -s log(rank). No language model runs here; typical
per-token entropies of one during RL, 0.1 to 1 nat, are marked as a band and reached by s = 2.6 to 4. ``bite`` is
|full - clamped| in nats; ``turn`` is 1 - cosine between the two bonus gradients: 0 means the clamp changes nothing.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from aent.entropy import DropLowest, Full, entropy, entropy_gradient
from paper_figures import style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict

TITLE = "Does the clamp bite? Full against clamped entropy at V = 150,000"
CLAIM = """Dropping the least likely quarter to third of the vocabulary (the published p = .25 to .33) makes the bonus
a different one."""
CAPTION = """Left: difference of full and clamped entropy against the dropped share, for Gaussian logits of spread σ
and for stand-ins of a language model's next-token distribution (Zipf laws; we have no language model here). Middle:
the same difference against how peaked the policy is. Right: angle between the two bonus gradients (1 - cosine). The
grey band marks 0.1 to 1 nat, typical of a language model's tokens. Each dot is one draw of Gaussian logits. Values
below 10⁻¹⁰ are cut off."""
ALT = """Three line charts on logarithmic axes. The difference between full and clamped entropy is large only for
nearly uniform policies or for dropped shares of .9 and more; in the range of typical language-model entropies it is
below a thousandth of a nat at the published p."""

VOCABULARY = 150_000
SHARES = (0.1, 0.25, 0.33, 0.5, 0.7, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9997, 0.9999)
SHOWN = {0.25: "#8074D6", 0.33: "#0072B2", 0.9: "#009E73", 0.99: "#E69F00", 0.999: "#D55E00"}
CURVES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)  # spreads drawn over all p
SPREADS = (*CURVES, 0.5, 1.5, 2.5, 2.75, 3.25, 3.5, 3.75, 4.25, 4.5, 5.0, 5.5)
ZIPF = (1.0, 1.2, 1.5, 2.0, 2.6, 3.0, 4.0)
LLM_LIKE = (2.6, 3.0, 4.0)  # their entropies lie in the typical range
TYPICAL = (0.1, 1.0)  # nats per token
FLOOR = 1e-10
PUBLISHED_SHARE = 0.33


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """One row per family, peakedness, draw and dropped share: entropies (nats), bite (nats), turn."""
    draws = scale.pick(smoke=1, default=4, full=20)
    spreads = scale.pick(smoke=CURVES, default=SPREADS, full=SPREADS)
    jobs = [("gaussian", spread, draw) for spread in spreads for draw in range(draws if spread else 1)]
    jobs += [("zipf", exponent, 0) for exponent in ZIPF]
    rows = []
    for done, (family, peakedness, draw) in enumerate(jobs):
        shares = SHARES if family == "zipf" or (peakedness in CURVES and draw == 0) else tuple(SHOWN)
        rows += compare(logits_of(family, peakedness, rng), shares, family=family, peakedness=peakedness, draw=draw)
        progress(done + 1, len(jobs))
    return pd.DataFrame(rows)


def logits_of(family: str, peakedness: float, rng: np.random.Generator) -> np.ndarray:
    """(V,) logits of one next-token distribution."""
    if family == "gaussian":
        return peakedness * rng.standard_normal(VOCABULARY)
    return -peakedness * np.log(np.arange(1, VOCABULARY + 1))


def compare(logits: np.ndarray, shares: tuple[float, ...], **labels: object) -> list[dict]:
    """Full against clamped entropy and gradient, one row per dropped share."""
    full, direction = float(entropy(logits)), entropy_gradient(logits, support=Full())
    rows = []
    for share in shares:
        support = DropLowest(share)
        clamped, other = float(entropy(logits, support=support)), entropy_gradient(logits, support=support)
        turn = _turn(direction, other)
        rows.append(
            {**labels, "share": share, "full": full, "clamped": clamped, "bite": abs(full - clamped), "turn": turn}
        )
    return rows


def _turn(one: np.ndarray, other: np.ndarray) -> float:
    """1 - cosine; NaN where a gradient vanishes (the uniform policy, where entropy is already largest)."""
    size = np.linalg.norm(one), np.linalg.norm(other)
    if min(size) < 1e-12:
        return float("nan")
    return float(0.5 * ((one / size[0] - other / size[1]) ** 2).sum())  # without the cancellation in 1 - cos


def verdict(df: Frame) -> Verdict:
    """Holds if the published share changes entropy by 5% at language-model entropies; only-if where some share does."""
    typical: Frame = df[(df.family == "zipf") & df.full.between(*TYPICAL)]
    change = (typical.bite / typical.full).groupby(typical.share).max()
    published, aggressive = change[PUBLISHED_SHARE], change[0.999]
    peaked, flat = (_gaussian(df, spread, PUBLISHED_SHARE) for spread in (4.0, 1.0))
    turn = typical[typical.share == PUBLISHED_SHARE].turn.max()
    sentence = (
        f"Only near uniform policies, or when almost everything is dropped. At p = {PUBLISHED_SHARE} and typical "
        f"language-model entropies (stand-ins of {typical.full.min():.2f}-{typical.full.max():.2f} nats) the clamp "
        f"changes entropy by at most {published:.1e} of its value and turns its gradient by 1 - cos = {turn:.0e}; even "
        f"p = .999 changes it by {aggressive:.2%}. Gaussian logits: {flat:.3f} nats at σ = 1, {peaked:.0e} at σ = 4."
    )
    return Verdict("holds" if published > 0.05 else "holds only if" if flat > 0.05 else "fails", sentence)


def _gaussian(df: Frame, spread: float, share: float) -> float:
    return float(df[(df.family == "gaussian") & (df.peakedness == spread) & (df.share == share)].bite.mean())


def draw(df: Frame) -> Figure:
    """Bite against p, bite against entropy, turn against entropy."""
    figure, axes = style.canvas(
        TITLE,
        "Difference of the entropies and angle between the bonus gradients, against dropped share p and peakedness",
        columns=3,
        height=4.7,
        strip=1,
    )
    _against_share(axes[0, 0], df)
    for panel, column, label in (
        (axes[0, 1], "bite", "|full - clamped| entropy, nats"),
        (axes[0, 2], "turn", "1 - cosine"),
    ):
        _against_entropy(panel, df, column)
        panel.set_ylabel(label)
    axes[0, 0].set_title("Bite against p")
    axes[0, 1].set_title("Bite against entropy")
    axes[0, 2].set_title("Turn of the bonus gradient")
    handles = [Line2D([], [], color=colour, label=f"p = {share:g}") for share, colour in SHOWN.items()]
    handles += [
        Line2D([], [], color=style.SUBTLE, marker="o", ms=3.5, ls="none", label="Gaussian logits"),
        Line2D([], [], color=style.SUBTLE, marker="*", ms=8, ls=(0, (2, 2)), lw=1, label="Zipf stand-in"),
        Patch(color=style.SUBTLE, alpha=0.2, label="LLM-like"),
    ]
    style.legend_strip(figure, handles)
    return figure


def _against_share(panel: Axes, df: Frame) -> None:
    colours = style.SEQUENTIAL
    spreads = ", ".join(f"{spread:g}" for spread in CURVES[1:])
    style.note(panel, 0.7, 25, f"Gaussian, σ = {CURVES[0]:g} (top), {spreads}", fontsize=7.5)
    for spread in CURVES:
        own = df[(df.family == "gaussian") & (df.peakedness == spread) & (df.draw == 0) & (df.bite > FLOOR)]
        own = own[own.share.isin(SHARES)]
        panel.plot(1 - own.share, own.bite, color=colours(spread / 7), lw=1.6)
    for exponent in LLM_LIKE:
        own = df[(df.family == "zipf") & (df.peakedness == exponent) & (df.bite > FLOOR)]
        panel.plot(1 - own.share, own.bite, color=style.SUBTLE, lw=1, ls=(0, (2, 2)), marker="*", ms=6, mew=0)
        beside = {"va": "bottom" if exponent == LLM_LIKE[0] else "center", "fontsize": 7.5, "color": style.SUBTLE}
        style.note(panel, 6.5e-5, own.bite.iloc[-1], f"Zipf {exponent:g}", **beside)  # the first two end close together
    panel.set(xscale="log", yscale="log", xlim=(1, 5e-6), ylim=(FLOOR, 300), xlabel="kept share 1 - p")
    panel.set_ylabel("|full - clamped| entropy, nats")
    panel.set_xticks([1, 1e-1, 1e-2, 1e-3, 1e-4])
    panel.minorticks_off()


def _against_entropy(panel: Axes, df: Frame, column: str) -> None:
    panel.axvspan(*TYPICAL, color=style.SUBTLE, alpha=0.16, lw=0)
    for share, colour in SHOWN.items():
        at = df[(df.share == share) & (df[column] > FLOOR)]
        gaussian, zipf = (at[at.family == family].sort_values("full") for family in ("gaussian", "zipf"))
        panel.plot(gaussian.full, gaussian[column], "o", color=colour, ms=2.6, mew=0, alpha=0.75)
        panel.plot(zipf.full, zipf[column], color=colour, lw=1, ls=(0, (2, 2)), marker="*", ms=7, mew=0)
    panel.set(xscale="log", yscale="log", xlim=(0.08, 14), ylim=(FLOOR, 300), xlabel="full entropy, nats")
    panel.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    panel.minorticks_off()
