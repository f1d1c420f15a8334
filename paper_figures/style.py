"""A colour, line and marker per method, the same in every figure, on the look of ``aent.plots``.

Colours follow Okabe and Ito, told apart by readers with any colour vision; line style and marker repeat the message for
print in grey.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cycler import cycler
from matplotlib.colors import LinearSegmentedColormap

from aent import plots
from aent.plots import FAINT, INK, PAPER, SUBTLE, band, canvas, legend_strip, note, powers_of_ten, stamp, stripes

__all__ = [
    "BEFORE", "DPI", "FAINT", "INK", "METHODS", "PAPER", "PUBLISHED", "SEQUENTIAL", "SHARP", "SUBTLE", "Method", "band",
    "canvas", "legend_strip", "look", "note", "powers_of_ten", "stamp", "stripes",
]  # fmt: skip


@dataclass(frozen=True)
class Method:
    """How a method looks, in every figure."""

    label: str
    colour: str
    line: Any = "-"
    marker: str = "o"


METHODS = {  # the names of toymdp.compare
    "none": Method("no bonus", "#8A8F98", (0, (4, 2)), "s"),
    "full": Method("full entropy", "#D55E00", "-", "o"),
    "clamp40": Method("clamped, drop 40%", "#009E73", "-", "^"),
    "clamp90": Method("clamped, drop 90%", "#6CBDEB", "-", "D"),
    "keep100": Method("clamped, keep 100", "#1B7FC6", "-", "D"),
    "full-band": Method("full + band", "#E69F00", (0, (5, 1.5)), "v"),
    "keep100-band": Method("keep 100 + band", "#CC79A7", (0, (5, 1.5)), "P"),
}
METHODS |= {  # of the language-model runs: the same family, the same colour
    "clamp33": replace(METHODS["clamp40"], label="clamped, drop 33%"),
    "keep64": replace(METHODS["keep100"], label="clamped, keep 64"),
}
BEFORE = "#B9BEC6"  # the policy before training
PUBLISHED = "#8A8F98"  # a published bound or value
SHARP = "#CC79A7"  # our sharper statement

DPI = 200  # twice the screen

SEQUENTIAL = LinearSegmentedColormap.from_list("value", ["#5A4E9C", "#2F6DB0", "#2E9C9C", "#9BD08B", "#FBF3B0"])


@contextmanager
def look() -> Iterator[None]:
    """Draw inside this context: the look of all figures, with the methods' colours in turn."""
    cycle: Any = cycler(color=[method.colour for method in METHODS.values()])
    with plots.look({"axes.prop_cycle": cycle}):
        yield
