"""`python -m paper_figures`: compute, draw, judge and report every figure.

Figures land in ``paper_figures/out/<scale>/`` under the current folder: PNG, PDF, CSV and JSON each, and
``report.html`` over all figures found there. Each figure has its own seed stream, so ``--only f4`` gives the same F4.
A figure that fails is reported at the end and costs only itself.

Imports wait inside functions, so that a missing package is a sentence and ``--help`` is instant.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper_figures.scale import NAMES, Scale

LIGHT_STACK = {"matplotlib", "rich", "pandas", "joblib", "scipy", "numba", "gymnasium", "tqdm"}


@dataclass(frozen=True)
class Outcome:
    """How one figure went."""

    stem: str
    status: str
    sentence: str
    seconds: float
    replaced: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 1 when a figure failed, or 2 for a wrong call."""
    options = _parser().parse_args(arguments)
    try:
        from paper_figures import registry

        stems = registry.resolve(options.only)
        import rich  # noqa: F401

        from paper_figures import output, report  # noqa: F401
    except ValueError as error:
        print(f"paper_figures: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in LIGHT_STACK:
            raise
        print(f"paper_figures: {error.name} is missing; pip install 'aent[figures]'", file=sys.stderr)
        return 2
    folder = options.out or Path("paper_figures/out") / options.scale
    if folder.exists() and not folder.is_dir():
        print(f"paper_figures: --out {folder} is a file; name a folder", file=sys.stderr)
        return 2
    return _run(stems, Scale(options.scale), options.seed, folder, options.jobs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m paper_figures", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--scale", choices=NAMES, default="default", help="how much work: seconds, minutes, more seeds")
    parser.add_argument("--only", nargs="+", metavar="FIGURE", help="such as f1 f4; default: all")
    parser.add_argument("--seed", type=_natural, default=0, help="seed of every figure's own random stream (default 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: paper_figures/out/<scale>")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--jobs", type=_positive, default=cores, help=f"joblib workers for sweeps (default {cores})")
    return parser


def _run(stems: Sequence[str], scale: Scale, seed: int, folder: Path, jobs: int) -> int:
    import joblib
    from rich.console import Console

    from aent import runs
    from aent.files import write_atomically
    from paper_figures import output, report

    console = Console(highlight=False)
    run_provenance = runs.provenance(seed)
    outcomes: list[Outcome] = []
    with _progress(console) as progress, joblib.parallel_config(n_jobs=jobs):
        whole = progress.add_task("all figures", total=len(stems))
        for stem in stems:
            own = progress.add_task(stem, total=None)
            outcomes.append(_one(stem, scale, seed, folder, run_provenance, _nested(progress, own)))
            progress.remove_task(own)
            progress.advance(whole)
            last = outcomes[-1]
            progress.console.print(f"  {last.stem:<20} {last.seconds:6.1f} s  {last.status}")
    page = folder / "report.html"
    if output.records(folder):
        write_atomically(page, report.render(folder))
    _summary(console, outcomes, page)
    return 1 if any(outcome.status == "error" for outcome in outcomes) else 0


def _one(stem: str, scale: Scale, seed: int, folder: Path, run_provenance: dict[str, Any], progress: Any) -> Outcome:
    """Compute, judge, draw and save one figure; its error becomes an outcome, for the other figures to go on."""
    import numpy as np

    from paper_figures import output, registry

    start = time.perf_counter()
    try:
        spec = registry.load(stem)
        df = spec.compute(scale, np.random.default_rng([seed, spec.number]), progress)
        verdict = spec.verdict(df)
        record = output.Record(
            stem, spec.title, spec.claim, spec.caption, spec.alt, verdict.status, verdict.sentence, scale.name, seed,
            round(time.perf_counter() - start, 2), len(df), run_provenance, spec.table and spec.table(df),
        )  # fmt: skip
        replaced = output.save(spec, df, record, folder)
        return Outcome(stem, verdict.status, verdict.sentence, time.perf_counter() - start, replaced)
    except Exception as error:
        traceback.print_exc()
        return Outcome(stem, "error", f"{type(error).__name__}: {error}", time.perf_counter() - start)


def _progress(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description:<20}"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=console,
    )  # fmt: skip


def _nested(progress: Any, task: Any) -> Any:
    def report(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    return report


def _summary(console: Any, outcomes: Sequence[Outcome], page: Path) -> None:
    from rich.table import Table

    colours = {"holds": "green", "holds only if": "yellow", "fails": "red", "not resolved": "dim", "error": "bold red"}
    wide = console.width >= 120  # sentences in a narrow column are unreadable; the report has them
    columns = ["figure", "s", "verdict", *(["in numbers"] if wide else [])]
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 1 if wide else 0, 0))
    for outcome in outcomes:
        row = [outcome.stem, f"{outcome.seconds:.1f}", f"[{colours[outcome.status]}]{outcome.status}[/]"]
        table.add_row(*row, *([outcome.sentence.replace("[", "\\[")] if wide else []))
    console.print(table)
    replaced = sum(outcome.replaced for outcome in outcomes)
    tail = f"; {replaced} replaced an earlier version" if replaced else ""
    console.print(
        f"{sum(o.seconds for o in outcomes):.0f} s for {len(outcomes)} figures{tail}. Open {page}", soft_wrap=True
    )


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
