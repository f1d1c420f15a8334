"""One look for all figures: a colour per method, titles that say what is compared, a light and a dark theme.

Figures are built on ``matplotlib.figure.Figure`` directly: no pyplot, no global state, no backend to choose. Colours
follow Okabe and Ito, told apart by readers with any colour vision and legible on both themes; line style and marker
repeat the message for print in grey.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.patheffects as effects
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from aent.methods import METHODS


@dataclass(frozen=True)
class Look:
    """Colour, line and marker of a method, the same in every figure."""

    colour: str
    line: Any = "-"
    marker: str = "o"


LOOKS = {  # by the names of aent.methods, and by the supports of the language-model runs (records.label_columns)
    "none": Look("#8A8F98", (0, (4, 2)), "s"),
    "full": Look("#D55E00", "-", "o"),
    "clamp40": Look("#009E73", "-", "^"),
    "clamp90": Look("#6CBDEB", "-", "D"),
    "keep100": Look("#1B7FC6", "-", "D"),
    "full-band": Look("#E69F00", (0, (5, 1.5)), "v"),
    "keep100-band": Look("#CC79A7", (0, (5, 1.5)), "P"),
}
LOOKS |= {"clamp33": LOOKS["clamp40"], "keep64": LOOKS["keep100"]}  # the same kind of support, the same look
LABELS = {"clamp33": "clamped, drop 33%", "keep64": "clamped, keep 64"}  # of those that are no methods of aent.methods
BEFORE = "#B9BEC6"  # the policy before training
PUBLISHED = "#8A8F98"  # a published bound or value
SHARP = "#CC79A7"  # our sharper statement

INK = {"light": "#1B1F24", "dark": "#E7EAEE"}
PAPER = {"light": "#FFFFFF", "dark": "#15181D"}
FAINT = {"light": "#D9DDE2", "dark": "#343A43"}
SUBTLE = {"light": "#59616B", "dark": "#A3ABB6"}

WIDTH = 9.0  # inches; at 800 px a 10 pt letter is 12 px high
DPI = 200  # twice the screen
HEADER = 0.78  # inches kept for title and subtitle
FOOTER = 0.24  # inches kept for the stamp

SEQUENTIAL = LinearSegmentedColormap.from_list("value", ["#5A4E9C", "#2F6DB0", "#2E9C9C", "#9BD08B", "#FBF3B0"])


@contextmanager
def theme(name: str = "light") -> Iterator[None]:
    """Draw inside this context; ``ink()`` and its sisters then give the theme's colours."""
    ink, paper, faint = INK[name], PAPER[name], FAINT[name]
    settings: Any = {
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.labelsize": 9.5,
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "axes.facecolor": paper,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=[look.colour for look in LOOKS.values()]),
        "grid.color": faint,
        "grid.linewidth": 0.6,
        "xtick.color": SUBTLE[name],
        "ytick.color": SUBTLE[name],
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "text.color": ink,
        "figure.facecolor": paper,
        "savefig.facecolor": paper,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.9,
        "lines.markersize": 5,
        "lines.solid_capstyle": "round",
        "pdf.fonttype": 42,  # real text in the PDF
        "hatch.linewidth": 0.6,
    }
    with mpl.rc_context(settings):
        yield


def label(name: str) -> str:
    """Name a method as ``aent.methods`` does, or a support of the language-model runs in its words."""
    return LABELS.get(name) or METHODS[name].label


def ink() -> str:
    """Colour of text and strong lines in the current theme."""
    return str(mpl.rcParams["text.color"])


def subtle() -> str:
    """Colour of secondary text."""
    return str(mpl.rcParams["xtick.color"])


def paper() -> str:
    """Background colour."""
    return str(mpl.rcParams["figure.facecolor"])


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
    """A figure with its headline in place, and its axes as an array (rows, columns).

    Args:
        title: what is compared. ``subtitle``: on what, with which knobs.
        height: inches. ``strip``: rows of legend to leave room for. ``options``: as ``Figure.subplots``.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    engine: Any = figure.get_layout_engine()
    taken = HEADER + FOOTER + 0.2 * strip
    engine.set(rect=(0.008, FOOTER / height, 0.984, 1 - taken / height), w_pad=0.06, h_pad=0.06, wspace=0.03)
    figure.text(0.014, 1 - 0.13 / height, title, fontsize=13.5, fontweight="bold", va="top")
    figure.text(0.014, 1 - 0.43 / height, subtitle, fontsize=9.2, color=subtle(), va="top")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def stamp(figure: Figure, text: str) -> None:
    """Small print in the lower right corner, such as the scale when it is not the full one; the first one stays.

    A figure that is the same at every scale says so itself, and is not stamped again.
    """
    if any(text.get_gid() == "stamp" for text in figure.texts):
        return
    height = figure.get_size_inches()[1]
    figure.text(0.988, 0.07 / height, text, fontsize=7.5, color=subtle(), ha="right", va="bottom", gid="stamp")


def band(axes: Axes, x: Any, low: Any, high: Any, colour: str) -> None:
    """An interval along a curve."""
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def note(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """A word next to the thing it names, with a halo so that lines below stay out of the letters."""
    halo = [effects.withStroke(linewidth=2.6, foreground=paper())]
    axes.text(x, y, text, **{"fontsize": 8.5, "path_effects": halo, **options})


def stripes(axes: Axes, rows: int) -> None:
    """Shade every other of ``rows`` rows at y = 0, 1, ..., in place of a horizontal grid."""
    for y in range(0, rows, 2):
        axes.axhspan(y - 0.5, y + 0.5, color=subtle(), alpha=0.06, lw=0)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def legend_strip(figure: Figure, handles: Sequence[Any], *, columns: int = 8) -> None:
    """One legend for all panels, under the subtitle: it can never cover data. Needs a canvas with ``strip`` rows."""
    height = figure.get_size_inches()[1]
    anchor = (0.008, 1 - (HEADER - 0.16) / height)
    figure.legend(
        handles=list(handles), loc="upper left", bbox_to_anchor=anchor, ncols=columns, borderaxespad=0,
        borderpad=0.2, columnspacing=1.6, handlelength=1.7, handletextpad=0.6,
    ).set_in_layout(False)  # fmt: skip


def powers_of_ten(axis: Any) -> None:
    """Label a log axis 10^k, every decade that fits."""
    axis.set_major_locator(LogLocator(base=10, numticks=8))
    axis.set_minor_formatter(NullFormatter())
