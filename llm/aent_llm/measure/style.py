"""One look for the figures of training runs: headline, panels, one legend above the data, colours told apart by all.

Figures are built on ``matplotlib.figure.Figure`` directly: no pyplot, no global state, no backend to choose. Colours
follow Okabe and Ito. Left out: themes; ``paper_figures`` has its own style and is not imported from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#59616B")
INK, SUBTLE, FAINT = "#1B1F24", "#59616B", "#DDE1E6"
WIDTH, PANEL, HEADER = 10.0, 2.75, 0.80  # inches
LINE = 0.21  # inches, of the legend

SETTINGS: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 10,
    "text.parse_math": False,  # names and settings are the user's: a dollar sign in them begins no formula
    "text.usetex": False,
    "text.color": INK,
    "axes.labelsize": 9.5,
    "axes.labelcolor": SUBTLE,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.9,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def canvas(title: str, subtitle: Sequence[str], handles: Sequence[Any]) -> tuple[Figure, np.ndarray]:
    """A figure with headline, lines of subtitle, one legend above the panels, and its 2 x 2 axes."""
    columns = _columns([handle.get_label() for handle in handles])
    legend_rows = -(-len(handles) // columns)
    header = HEADER + 0.17 * (len(subtitle) - 1) + LINE * legend_rows
    height = header + 2 * PANEL
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0.008, 0.008, 0.984, 1 - header / height), w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.03)
        figure.text(0.014, 1 - 0.14 / height, title, fontsize=13.5, fontweight="bold", va="top")
        figure.text(0.014, 1 - 0.45 / height, "\n".join(subtitle), fontsize=9, color=SUBTLE, va="top", linespacing=1.35)
        figure.legend(
            handles=list(handles), loc="upper left", ncols=columns, borderaxespad=0, borderpad=0.2,
            bbox_to_anchor=(0.0125, 1 - (header - LINE * legend_rows - 0.10) / height), columnspacing=1.8,
            handlelength=2.0, handletextpad=0.6, labelspacing=0.35,
        ).set_in_layout(False)  # fmt: skip
        axes = figure.subplots(2, 2, squeeze=False)
    for panel in axes.flat:  # ticks are made when the figure is drawn, outside of the settings above
        panel.tick_params(labelsize=9, color=FAINT, labelcolor=SUBTLE, which="both")
    return figure, axes


def _columns(labels: Sequence[str]) -> int:
    """Columns of a legend that fits the width: about 14 letters an inch at 9 points, and 4 for each sample."""
    widest = max((len(label) for label in labels), default=1) + 6
    return max(1, min(len(labels), int(WIDTH * 13.5 / widest)))


def empty(panel: Axes, text: str) -> None:
    """Say in a panel why it shows nothing."""
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=SUBTLE, fontsize=10)
    panel.set_xticks([])
    panel.set_yticks([])
