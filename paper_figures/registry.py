"""Which figures there are. Adding one is one line in ``MODULES``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aent.names import suggest
from paper_figures.verdicts import Verdict

MODULES = (
    "f1_one_step",
    "f2_synthetic_mdp",
    "f3_fair_comparison",
    "f4_phase_diagram",
    "f5_gradient_bound",
    "f6_bias",
    "f7_controllers",
    "f8_clamp_bite",
    "f9_scaling",
    "f10_llm_collapse",
    "f11_llm_methods",
    "f12_llm_clamp_gap",
    "f13_llm_window",
    "f14_leaderboard",
    "f15_ingredients",
    "f16_llm_leaderboard",
)


@dataclass(frozen=True)
class FigureSpec:
    """A loaded figure module. ``stem`` names its files, ``short`` is what ``--only`` takes."""

    stem: str
    title: str
    claim: str
    caption: str
    alt: str
    compute: Callable[..., Any]
    draw: Callable[..., Any]
    verdict: Callable[..., Verdict]
    table: Callable[..., list[list[str]]] | None = None  # rows for the page, if the module has ``report_table``

    @property
    def short(self) -> str:
        return self.stem.split("_", 1)[0]

    @property
    def number(self) -> int:
        return int(self.short[1:])


def load(stem: str) -> FigureSpec:
    """Import one figure module; nothing is imported before it is asked for."""
    module = importlib.import_module(f"paper_figures.{stem}")
    title, claim, caption, alt = (
        " ".join(getattr(module, name).split()) for name in ("TITLE", "CLAIM", "CAPTION", "ALT")
    )
    table = getattr(module, "report_table", None)
    return FigureSpec(stem, title, claim, caption, alt, module.compute, module.draw, module.verdict, table)


def resolve(names: Sequence[str] | None) -> list[str]:
    """Stems of the wanted figures in the order of the paper; ``f4`` and ``f4_phase_diagram`` both name one.

    Raises:
        ValueError: an unknown name, with the nearest known one.
    """
    if not names:
        return list(MODULES)
    known = {alias: stem for stem in MODULES for alias in (stem, stem.split("_", 1)[0], stem.split("_", 1)[1])}
    for name in names:
        if name not in known:
            shown = ", ".join(stem.split("_")[0] for stem in MODULES)
            raise ValueError(f"unknown figure {name!r}{suggest(name, known) or '.'} Known: {shown}")
    wanted = {known[name] for name in names}
    return [stem for stem in MODULES if stem in wanted]
