"""The look of every figure: headline, panels, one legend above the data, the size and colour of letters and lines.

    with plots.look():
        figure, axes = plots.canvas("What is compared", "on what, with which knobs", columns=2, strip=1)
        ...
        plots.legend_strip(figure, handles)

Figures are built on ``matplotlib.figure.Figure`` directly: no pyplot, no global state, no backend to choose. Matplotlib
comes with the extras that draw; nothing else in ``aent`` imports this module.

Left out: colours of methods and of runs, which belong to those who draw them; themes, every figure is light.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

__all__ = [
    "FAINT",
    "INK",
    "PAPER",
    "SUBTLE",
    "band",
    "canvas",
    "header_height",
    "legend_strip",
    "look",
    "note",
    "powers_of_ten",
    "stamp",
    "stripes",
]

INK = "#1B1F24"  # text and strong lines
PAPER = "#FFFFFF"
FAINT = "#D9DDE2"  # grids and frames
SUBTLE = "#59616B"  # secondary text

WIDTH = 9.0  # inches; at 800 px a 10 pt letter is 12 px high
HEADER = 0.78  # inches kept for title and one line of subtitle
LINE = 0.18  # inches, of each further line of subtitle
ROW = 0.2  # inches, of a row of legend
FOOTER = 0.24  # inches kept for the stamp
TICKS = 8.5  # points, of the letters at the ticks

SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": SUBTLE,
    "ytick.color": SUBTLE,
    "xtick.labelsize": TICKS,
    "ytick.labelsize": TICKS,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.9,
    "lines.markersize": 5,
    "lines.solid_capstyle": "round",
    "pdf.fonttype": 42,  # real text in the PDF
    "hatch.linewidth": 0.6,
}


@contextmanager
def look(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Draw inside this context; ``more`` are further settings of matplotlib."""
    settings: Any = {**SETTINGS, **(more or {})}  # matplotlib types the names of settings one by one
    with mpl.rc_context(settings):
        yield


def canvas(
    title: str,
    subtitle: str,
    *,
    rows: int = 1,
    columns: int = 1,
    height: float = 4.2,
    strip: int = 0,
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """Make a figure with its headline in place, and its axes as an array (rows, columns).

    Args:
        title: what is compared.
        subtitle: on what, with which knobs; several lines are allowed.
        rows: of panels.
        columns: of panels.
        height: of the whole figure, inches.
        strip: rows of legend to leave room for.
        options: as ``Figure.subplots``.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    engine: Any = figure.get_layout_engine()
    taken = header_height(subtitle, strip) + FOOTER
    engine.set(rect=(0.008, FOOTER / height, 0.984, 1 - taken / height), w_pad=0.06, h_pad=0.06, wspace=0.03)
    figure.text(0.014, 1 - 0.13 / height, title, fontsize=13.5, fontweight="bold", va="top")
    figure.text(0.014, 1 - 0.43 / height, subtitle, fontsize=9.2, color=SUBTLE, va="top", gid="subtitle")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for panel in axes.flat:  # ticks are made when the figure is drawn, which may be outside of the look
        panel.tick_params(which="both", colors=SUBTLE, labelsize=TICKS, grid_color=FAINT, grid_linewidth=0.6)
    return figure, axes


def header_height(subtitle: str, strip: int = 0) -> float:
    """Inches above the panels: title, lines of subtitle, ``strip`` rows of legend."""
    return HEADER + LINE * subtitle.count("\n") + ROW * strip


def legend_strip(figure: Figure, handles: Sequence[Any], *, columns: int = 8) -> None:
    """Draw one legend for all panels under the subtitle, where it covers no data; the canvas needs ``strip`` rows."""
    (subtitle,) = (text.get_text() for text in figure.texts if text.get_gid() == "subtitle")
    anchor = (0.008, 1 - (header_height(subtitle) - 0.16) / figure.get_size_inches()[1])
    figure.legend(
        handles=list(handles), loc="upper left", bbox_to_anchor=anchor, ncols=columns, borderaxespad=0,
        borderpad=0.2, columnspacing=1.6, handlelength=1.7, handletextpad=0.6,
    ).set_in_layout(False)  # fmt: skip


def stamp(figure: Figure, text: str) -> None:
    """Print small words in the lower right corner, such as the scale when it is not the full one; the first ones stay.

    A figure that is the same at every scale says so itself, and is not stamped again.
    """
    if any(text.get_gid() == "stamp" for text in figure.texts):
        return
    height = figure.get_size_inches()[1]
    figure.text(0.988, 0.07 / height, text, fontsize=7.5, color=SUBTLE, ha="right", va="bottom", gid="stamp")


def band(axes: Axes, x: Any, low: Any, high: Any, colour: str, *, alpha: float = 0.18) -> None:
    """Shade an interval along a curve."""
    axes.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)


def note(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Write a word next to the thing it names, with a halo so that lines below stay out of the letters."""
    halo = [effects.withStroke(linewidth=2.6, foreground=PAPER)]
    axes.text(x, y, text, **{"fontsize": 8.5, "path_effects": halo, **options})


def stripes(axes: Axes, rows: int) -> None:
    """Shade every other of ``rows`` rows at y = 0, 1, ..., in place of a horizontal grid."""
    for y in range(0, rows, 2):
        axes.axhspan(y - 0.5, y + 0.5, color=SUBTLE, alpha=0.06, lw=0)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def powers_of_ten(axis: Any) -> None:
    """Label a log axis 10^k, every decade that fits."""
    axis.set_major_locator(LogLocator(base=10, numticks=8))
    axis.set_minor_formatter(NullFormatter())
