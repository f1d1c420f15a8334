"""The record of a study: many training runs in one file of JSON lines, short enough to be committed.

    line 1        {"provenance": of the first run, "config": its config}
    other lines   one finished run each: stage, arm, seed, entropy (its block of the config), step (T whole numbers),
                  curves (key -> T numbers, null where nothing was logged), before and after (held-out results), seconds

The experiments write records, the figures read them; what is logged under a key is said in docs/metrics.md.

Left out: the text of completions and what else was logged; they stay in the run directories.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aent.files import write_atomically

__all__ = ["CURVES", "header", "read_record", "run_line", "write_record"]

CURVES = {  # key that a run logs -> short name, a column of the figures' tables
    "reward": "reward",
    "entropy/full": "full",
    "entropy/clamped": "clamped",
    "entropy/clamp_gap": "gap",
    "entropy/dropped_mass": "dropped",
    "entropy/grad_cosine": "cosine",
    "entropy/bonus_grad_share": "bonus_share",
    "entropy/coef": "coefficient",
    "completions/mean_length": "length",
    "frac_reward_zero_std": "zero_variance",
}
KINDS = {"arm": str, "seed": int, "entropy": dict, "step": list, "curves": dict, "before": dict, "after": dict}
PRIVATE = ("command", "resumed", "seed")  # of a provenance: a command line holds paths of one machine
DIGITS = 4  # of the numbers of a curve


def header(provenance: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Make the first line, from provenance and config of one of the runs."""
    return {"provenance": {key: value for key, value in provenance.items() if key not in PRIVATE}, "config": config}


def run_line(
    metrics: Iterable[Mapping[str, Any]],
    results: Mapping[str, Any],
    *,
    stage: str,
    arm: str,
    seed: int,
    entropy: Mapping[str, Any] | None,
    curves: Iterable[str] = tuple(CURVES),
    per_problem: bool = True,
) -> dict[str, Any]:
    """Make the line of one run.

    Args:
        metrics: what the run logged; the last line of a step counts, as after a resume.
        results: summary.json of the run: ``before``, ``after`` and ``seconds``.
        stage: part of the study.
        arm: name of the setting within the stage.
        seed: of the run.
        entropy: entropy block of its config.
        curves: keys to keep, to ``DIGITS`` digits.
        per_problem: keep what was measured on every held-out problem, not only the means.
    """
    last = {entry["step"]: entry for entry in metrics}
    steps = sorted(last)
    return {
        "stage": stage,
        "arm": arm,
        "seed": seed,
        "entropy": entropy,
        "step": steps,
        "curves": {key: [_rounded(last[step].get(key)) for step in steps] for key in curves},
        **{when: _summed_up(results[when], per_problem) for when in ("before", "after")},
        "seconds": results["seconds"],
    }


def write_record(path: Path, first: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
    """Write a record: the first line as ``header`` makes it, then the runs as ``run_line`` makes them.

    Raises:
        FileExistsError: the file exists; it was not overwritten.
        OSError: it cannot be written; says why and what to do.
    """
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in (first, *runs)), replace=False)


def read_record(path: Path) -> list[dict[str, Any]]:
    """Read the runs of a record, one dictionary each, without the first line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is not JSON, or a run without what every run has; the line is named.
    """
    runs = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: expected one JSON object, {error}") from None
        if _is_run(content, where):
            runs.append(content)
    return runs


# -------------------------------------------------------------------------------------------------------- internals


def _is_run(line: Any, where: str) -> bool:
    """Tell a run from the first line; refuse what is neither, or has not one value per step in every curve."""
    if not isinstance(line, dict):
        raise ValueError(f"{where}: expected one JSON object, got {type(line).__name__}")
    if "arm" not in line and "provenance" in line:
        return False
    if wrong := [key for key, kind in KINDS.items() if not isinstance(line.get(key), kind)]:
        raise ValueError(f"{where}: {', '.join(wrong)} missing or of the wrong type: make the record again")
    for key, values in line["curves"].items():
        if not isinstance(values, list) or len(values) != len(line["step"]):
            raise ValueError(f"{where}: curves.{key} must have one value per step ({len(line['step'])})")
    return True


def _rounded(value: Any) -> Any:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _summed_up(result: Mapping[str, Any], per_problem: bool) -> dict[str, Any]:
    kept = {key: value for key, value in result.items() if isinstance(value, dict | int | float | str)}
    return kept if per_problem else {key: value for key, value in kept.items() if key != "per_problem"}
