"""The picture of ``compare`` and of a single run: reward, entropy against the band, coefficient, length.

Takes aggregated curves and configs, returns a ``matplotlib`` figure; reads nothing. One colour per group; full entropy
is solid, clamped entropy dashed. Bands are drawn in grey where all groups share one, else in the group's colour.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from aent import plots
from aent.controllers import Controller
from aent.entropy import SUPPORTS, support_to_dict
from aent.methods import METHODS
from aent.plots import SUBTLE
from aent.shaping import Shaping

__all__ = ["COLOURS", "band", "draw", "entropy_block", "typed"]

Curves = Mapping[str, Mapping[str, Any]]  # label -> metric -> compare.Curve
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#59616B")
PLAIN_TEXT = {"text.parse_math": False, "text.usetex": False}  # names are the user's: a dollar begins no formula
PANEL = 2.75  # inches, height of a panel
PANELS = (  # metrics, title, unit
    (("reward",), "Reward", "mean reward per completion"),
    (("entropy", "clamped"), "Token entropy", "nats per completion token"),
    (("coefficient",), "Entropy coefficient", "reward per nat"),
    (("length",), "Completion length", "tokens, mean"),
)


def draw(
    measured: Curves, seeds: Mapping[str, int], configs: Mapping[str, dict], *, smooth: int, notes: Sequence[str]
) -> Figure:
    """Four panels over the optimiser steps; means over seeds with 95% intervals where there are several.

    Args:
        measured: label of a group -> metric -> its curve.
        seeds: label -> number of runs behind it.
        configs: label -> config of its first run, for support and band.
        smooth: steps each curve was averaged over, to be said.
        notes: lines to add under the headline.
    """
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(measured)}
    clamps = {label: typed(entropy_block(configs[label])["support"]) for label in measured}
    clamped = {label for label in measured if clamps[label]["type"] != "full" and len(measured[label]["clamped"].steps)}
    bands = {label: found for label in measured if (found := band(configs[label]))}
    subtitle = "\n".join([_subtitle(seeds, smooth), *(_short(note) for note in notes)])
    with plots.look(PLAIN_TEXT):
        figure, axes = _canvas(_title(seeds), subtitle, _handles(colours, clamped, bands))
        for panel, (metrics, title, unit) in zip(axes.flat, PANELS, strict=True):
            panel.set(title=title, ylabel=unit, xlabel="optimiser step")
            shown = 0
            for label, curves in measured.items():
                for metric in metrics:
                    if metric != "clamped" or label in clamped:
                        shown += _curve(panel, curves[metric], colours[label], metric == "clamped", seeds[label] > 1)
            if not shown:
                _empty(panel, "not logged by these runs")
        _draw_bands(axes[0, 1], bands, colours)
        _scale(axes[1, 0])
    return figure


def typed(block: Any) -> dict[str, Any]:
    """Write a support, controller or shaping rule of a file as {"type": snake_case, options}: ``0.01`` is a constant.

    Of a rule of somebody's own, ``my_rules:MinP``, only the name is used: its module need not be here.
    """
    if isinstance(block, int | float):
        return {"type": "constant", "coefficient": block}
    block = {"type": block} if isinstance(block, str) else dict(block)
    given = str(block.get("type", "full"))
    known = (rules.spelling(given) for rules in (SUPPORTS, Controller.registry, Shaping.registry))
    name = next((one for one in known if one is not None), re.split(r"[:.]", given)[-1])
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return {**block, "type": words.lower().replace("-", "_")}


def entropy_block(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entropy block of a run's config, with the support and the controller that a method by name brings along."""
    own = config.get("entropy") or {}
    if own.get("method") is None:
        return {"support": "full", "controller": 0.0, **own}
    named = METHODS[own["method"]]
    return {"support": support_to_dict(named.support), "controller": named.controller.to_dict(), **own}


def band(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return (low, high) of a controller that has both and can be drawn, in nats; None for another."""
    rule = typed(entropy_block(config)["controller"])
    ends: list[Any] = [rule.get(key) for key in ("low", "high")]
    if not all(isinstance(end, int | float) and math.isfinite(end) for end in ends):
        return None
    return float(ends[0]), float(ends[1])


def _title(seeds: Mapping[str, int]) -> str:
    if len(seeds) > 1:
        return f"{len(seeds)} settings compared"
    (label, number), *_ = seeds.items()
    return f"{label}: {number} seed{'s' if number > 1 else ''}"


def _subtitle(seeds: Mapping[str, int], smooth: int) -> str:
    counts = sorted(set(seeds.values()))
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    where = " per setting" if len(seeds) > 1 else ""
    words = f"Mean and 95% bootstrap interval over seeds ({many} seeds{where})."
    if counts[-1] == 1:
        words = f"1 seed{where}: no interval."
    return words + (f" Running mean of {smooth} logged steps, but for the coefficient." if smooth > 1 else "")


def _short(note: str) -> str:
    return note if len(note) <= 130 else note[:127] + "..."


def _handles(colours: Mapping[str, str], clamped: set[str], bands: Mapping[str, Any]) -> list[Any]:
    handles: list[Any] = [Line2D([], [], color=colour, lw=2.4, label=label) for label, colour in colours.items()]
    if clamped:
        handles += [Line2D([], [], color=SUBTLE, label="full entropy")]
        handles += [Line2D([], [], color=SUBTLE, ls=(0, (3, 1.6)), label="clamped entropy")]
    if bands:
        handles += [Patch(color=SUBTLE, alpha=0.16, lw=0, label="controller's band")]
    return handles


def _canvas(title: str, subtitle: str, handles: Sequence[Any]) -> tuple[Figure, np.ndarray]:
    """Make the 2 x 2 panels under a headline and a legend of as many rows as it needs."""
    columns = _legend_columns([handle.get_label() for handle in handles])
    strip = -(-len(handles) // columns)
    height = plots.header_height(subtitle, strip) + 2 * PANEL
    figure, axes = plots.canvas(title, subtitle, rows=2, columns=2, height=height, strip=strip)
    plots.legend_strip(figure, handles, columns=columns)
    return figure, axes


def _legend_columns(labels: Sequence[str]) -> int:
    """Columns of a legend that fits the width: about 14 letters an inch, and 6 for each sample of a line."""
    widest = max((len(label) for label in labels), default=1) + 6
    return max(1, min(len(labels), int(plots.WIDTH * 13.5 / widest)))


def _empty(panel: Axes, text: str) -> None:
    """Say in a panel why it shows nothing."""
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=SUBTLE, fontsize=10)
    panel.set_xticks([])
    panel.set_yticks([])


def _curve(panel: Axes, curve: Any, colour: str, dashed: bool, several: bool) -> bool:
    if not len(curve.steps):
        return False
    marker = "o" if len(curve.steps) == 1 else None
    panel.plot(
        curve.steps, curve.mean, color=colour, lw=1.6 if dashed else 1.9, ls=(0, (3, 1.6)) if dashed else "-",
        marker=marker, ms=5, zorder=3 if dashed else 2.5,
    )  # fmt: skip
    if several:
        plots.band(panel, curve.steps, curve.low, curve.high, colour, alpha=0.08 if dashed else 0.16)
    return True


def _draw_bands(panel: Axes, bands: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Shade the bands, and let them into the picture where they are not far from the curves."""
    shared = len(set(bands.values())) == 1
    bottom, top = panel.get_ylim()
    for label, (low, high) in list(bands.items())[: 1 if shared else None]:
        panel.axhspan(low, high, color=SUBTLE if shared else colours[label], alpha=0.14, lw=0, zorder=0)
        bottom, top = min(bottom, low), max(top, high + 0.04 * (top - bottom))
    if panel.lines:
        panel.set_ylim(max(0.0, bottom), top)


def _scale(panel: Axes) -> None:
    """A logarithmic axis where positive coefficients span more than a factor of ten."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in panel.lines] or [np.zeros(1)])
    if values.min() > 0 and values.max() / values.min() > 10:
        panel.set_yscale("log")
    elif panel.lines and values.min() == values.max():
        panel.set_ylim(min(0, 1.5 * values.min()), 1.5 * values.max() or 1)
    elif panel.lines and values.min() >= 0:
        panel.set_ylim(bottom=0)
