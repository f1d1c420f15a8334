"""A colour, line and marker per method, the same in every figure, on the look of ``aent.plots``.

Colours follow Okabe and Ito, told apart by readers with any colour vision; line style and marker repeat the message for
print in grey.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cycler import cycler
from matplotlib.colors import LinearSegmentedColormap

from aent import plots
from aent.methods import METHODS
from aent.plots import FAINT, INK, PAPER, SUBTLE, band, canvas, legend_strip, note, powers_of_ten, stamp, stripes

__all__ = [
    "BEFORE", "DPI", "FAINT", "INK", "LOOKS", "PAPER", "PUBLISHED", "SEQUENTIAL", "SHARP", "SUBTLE", "Look", "band",
    "canvas", "label", "legend_strip", "look", "note", "powers_of_ten", "stamp", "stripes",
]  # fmt: skip


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

DPI = 200  # twice the screen

SEQUENTIAL = LinearSegmentedColormap.from_list("value", ["#5A4E9C", "#2F6DB0", "#2E9C9C", "#9BD08B", "#FBF3B0"])


@contextmanager
def look() -> Iterator[None]:
    """Draw inside this context: the look of all figures, with the methods' colours in turn."""
    cycle: Any = cycler(color=[one.colour for one in LOOKS.values()])
    with plots.look({"axes.prop_cycle": cycle}):
        yield


def label(name: str) -> str:
    """Name a method as ``aent.methods`` does, or a support of the language-model runs in its words."""
    return LABELS.get(name) or METHODS[name].label
