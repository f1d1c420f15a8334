"""Committed records of language-model runs as tables, and the statistics that their figures share.

``llm_tiny.jsonl`` is written by ``python -m experiments.three_way record``; ``aent.records`` says what is in it. It is
read, never made: drawing needs no language model, and F10 to F13 are the same at every scale and seed.
``PAPER_FIGURES_LLM_RECORD`` names another file of the same kind.

Shapes: S seeds, T logged steps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aent.records import CURVES, read_record
from aent.stats import Estimate, bootstrap_mean
from paper_figures import style
from paper_figures.scale import Frame

RECORD = Path(__file__).parent / "records" / "llm_tiny.jsonl"
VARIABLE = "PAPER_FIGURES_LLM_RECORD"
STAMP = "recorded language-model runs, the same at every scale and seed"

DRAWN = {key: column for key, column in CURVES.items() if column != "bonus_share"}  # what the figures need of a run
LATE = 0.1  # share of the steps at either end that "start" and "end" mean: one step is 16 prompts, too few


def lines(path: Path | None = None) -> list[dict[str, Any]]:
    """The runs of a record, one dictionary each, without its first line (provenance and config).

    Raises:
        FileNotFoundError: no such file, with the command that makes it.
        ValueError: a line that is not JSON, a run without what every run has, or a record without runs.
    """
    path = path or Path(os.environ.get(VARIABLE, RECORD))
    if not path.is_file():
        raise FileNotFoundError(
            f"no record of language-model runs at {path}: make one with `python -m experiments.three_way sweep`, "
            f"`compare` and `record`, or name another file in {VARIABLE}"
        )
    if not (runs := read_record(path)):
        raise ValueError(f"{path} holds no finished run: run `python -m experiments.three_way sweep` first")
    return runs


def curves(path: Path | None = None) -> Frame:
    """One row per run and logged step: ``label_columns`` and the columns of ``DRAWN``; entropies in nats per token.

    Raises:
        ValueError: as ``lines``, or a run without one of the curves.
    """
    frames = []
    for run in lines(path):
        if lost := DRAWN.keys() - run["curves"].keys():
            raise ValueError(f"the run {run['arm']} of seed {run['seed']} has no curve {', '.join(sorted(lost))}")
        values = {column: _numbers(run["curves"][key]) for key, column in DRAWN.items()}
        frames.append(pd.DataFrame({**label_columns(run), "step": run["step"], **values}))
    return pd.concat(frames, ignore_index=True).assign(kind="curve")


def results(path: Path | None = None) -> Frame:
    """One row per run: ``label_columns``, held-out accuracy and pass@k before and after, and the end of the curves.

    ``accuracy`` is the mean over problems and samples (avg@k = pass@1), ``solved`` is pass@k, k the samples a problem;
    ``full``, ``clamped``, ``dropped`` are means over the last tenth of the steps.
    """
    rows = []
    for run in lines(path):
        last = {column: end(run, key) for key, column in DRAWN.items()}
        rows.append({**label_columns(run), **last, **evaluated(run)})
    return pd.DataFrame(rows).assign(kind="result")


def label_columns(run: Mapping[str, Any]) -> dict[str, Any]:
    """Stage, method (a key of ``style.LOOKS``), rule, setting (the coefficient given), band, box and seed of a run.

    Raises:
        ValueError: a support that has no look.
    """
    support, controller = run["entropy"]["support"], run["entropy"]["controller"]
    setting = controller["coefficient"] if controller["type"] == "constant" else controller["initial"]
    method = "none" if controller["type"] == "constant" and setting == 0 else _method(support)
    return {
        "stage": run["stage"], "arm": run["arm"], "method": method, "rule": controller["type"], "setting": setting,
        **{key: controller.get(key, float("nan")) for key in ("low", "high", "minimum", "maximum")},
        "seed": run["seed"],
    }  # fmt: skip


def _method(support: Mapping[str, Any]) -> str:
    names = {
        "full": lambda: "full",
        "drop_lowest": lambda: f"clamp{100 * support['share']:.0f}",
        "top_k": lambda: f"keep{support['k']}",
    }
    name = names[support["type"]]() if support["type"] in names else support["type"]
    if name not in style.LOOKS:
        raise ValueError(
            f"support {dict(support)} has no look: add {name!r} to LOOKS and LABELS of paper_figures.style"
        )
    return name


def evaluated(run: Mapping[str, Any]) -> dict[str, Any]:
    """Held-out results of a run before and after training; see ``results``."""
    found: dict[str, Any] = {}
    for when, ending in (("before", "_before"), ("after", "")):
        result = run[when]
        k = max(int(key.removeprefix("pass@")) for key in result if key.startswith("pass@"))
        mean = {key: value["mean"] for key, value in result.items() if isinstance(value, dict) and "mean" in value}
        found |= {f"accuracy{ending}": mean["pass@1"], f"solved{ending}": mean[f"pass@{k}"], "samples": k}
        found |= {f"answer_length{ending}": mean["length"], f"truncated{ending}": mean.get("truncated", float("nan"))}
    return found


def _numbers(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def end(run: Mapping[str, Any], key: str) -> float:
    """Mean of a curve over the last tenth of the steps."""
    values = _numbers(run["curves"][key])
    return float(np.nanmean(values[-_few(len(values)) :])) if np.isfinite(values).any() else float("nan")


def _few(steps: int) -> int:
    return max(1, round(LATE * steps))


# ------------------------------------------------------------------------------------------------------- statistics


FEWEST = 3  # seeds behind a claim


def outcome(found: Estimate) -> str:
    """What a difference says: better, worse or not resolved; never a claim from fewer than ``FEWEST`` seeds."""
    if found.count < FEWEST:
        return "not resolved"
    return "better" if found.low > 0 else "worse" if found.high < 0 else "not resolved"


def per_seed(own: Frame, column: str, *, smooth: int = 1) -> Frame:
    """Table of steps by runs of one column; ``smooth`` is the length of a centred moving average in logged steps."""
    runs = own.assign(run=own.stage + " " + own.arm + " " + own.seed.astype(str))
    table = runs.pivot(index="step", columns="run", values=column)
    return table.rolling(smooth, center=True, min_periods=1).mean() if smooth > 1 else table


def ends(own: Frame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a column over the first and over the last tenth of the steps, one number per run each."""
    table = per_seed(own, column)
    few = _few(len(table))
    return table.iloc[:few].mean().to_numpy(), table.iloc[-few:].mean().to_numpy()


def counted(number: int, word: str = "seed") -> str:
    """A number with its noun: 1 seed, 5 seeds."""
    return f"{number} {word}{'' if number == 1 else 's'}"


# ---------------------------------------------------------------------------------------------------------- drawing


def draw_curve(panel: Any, own: Frame, column: str, *, smooth: int = 1, **look: Any) -> None:
    """Single runs faint, their mean strong, its interval shaded; colour, line and label from ``style.LOOKS``."""
    method = style.LOOKS[str(own.method.iloc[0])]
    table = per_seed(own, column, smooth=smooth)
    for run in table:
        panel.plot(table.index, table[run], color=method.colour, lw=0.7, alpha=0.28, zorder=1.5)
    found = bootstrap_mean(table.to_numpy().T)
    style.band(panel, table.index, found.low, found.high, method.colour)
    panel.plot(table.index, found.mean, **{"color": method.colour, "ls": method.line, "zorder": 3, **look})


def draw_dots(panel: Any, x: float, values: Any, colour: str, *, marker: str = "o", width: float = 0.16) -> None:
    """One small dot per seed, beside it the mean with its 95% bootstrap interval."""
    values = np.asarray(values, dtype=float)
    found = bootstrap_mean(values)
    offsets = np.linspace(-width, 0, len(values)) if len(values) > 1 else np.zeros(1)
    panel.plot(x + offsets, values, "o", color=colour, ms=3.6, mew=0, alpha=0.5)
    panel.plot([x + width] * 2, [found.low, found.high], color=colour, lw=2.2, solid_capstyle="butt")
    panel.plot(x + width, found.mean, marker, color=colour, ms=6.5, mec=style.PAPER, mew=0.8)
