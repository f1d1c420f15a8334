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
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent import cli, files
from paper_figures.scale import NAMES, Scale

NAME, EXTRA = "paper_figures", "figures"


@dataclass(frozen=True)
class Outcome:
    """How one figure went."""

    stem: str
    status: str
    sentence: str
    seconds: float
    replaced: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 1 when a figure or the report failed, or 2 for a wrong call."""
    return cli.run(NAME, lambda: _run(_parser().parse_args(arguments)), extra=EXTRA)


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m paper_figures", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--scale", choices=NAMES, default="default", help="how much work: seconds, minutes, more seeds")
    parser.add_argument("--only", nargs="+", action="extend", metavar="FIGURE", help="such as f1 f4; default: all")
    parser.add_argument(
        "--seed", type=cli.whole_number(0), default=0, help="seed of every figure's own random stream (default 0)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: paper_figures/out/<scale>")
    cores = cli.workers("-1")
    parser.add_argument("--jobs", type=cli.workers, default=cores, help=f"joblib workers for sweeps (default {cores})")
    return parser


def _run(options: argparse.Namespace) -> int:
    """Make the figures one after the other, then the page over all figures of the folder."""
    from paper_figures import registry

    stems = registry.resolve(options.only)
    import joblib
    from rich.console import Console

    from aent import runs
    from paper_figures import output, records, report  # noqa: F401  (what is missing is named before the work)

    if records.VARIABLE in os.environ and any("_llm_" in stem for stem in stems):
        records.lines()  # a record of the user's own is read once before the work
    scale, folder = Scale(options.scale), options.out or Path("paper_figures/out") / options.scale
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out {folder} is a file; name a folder")
    files.check_writable(folder)
    console = Console(highlight=False, markup=False, emoji=False)
    run_provenance = runs.provenance(options.seed)
    outcomes: list[Outcome] = []
    with _progress(console) as progress, joblib.parallel_config(n_jobs=options.jobs):
        whole = progress.add_task("all figures", total=len(stems))
        for stem in stems:
            own = progress.add_task(stem, total=None)
            outcomes.append(_one(stem, scale, options.seed, folder, run_provenance, _nested(progress, own)))
            progress.remove_task(own)
            progress.advance(whole)
            last = outcomes[-1]
            progress.console.print(f"  {last.stem:<20} {last.seconds:6.1f} s  {last.status}")
    page = _write_page(folder)
    _summary(console, outcomes, folder, page)
    return 1 if page is None or any(outcome.status == "error" for outcome in outcomes) else 0


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
        replaced = _save(spec, df, record, folder)
        return Outcome(stem, verdict.status, verdict.sentence, time.perf_counter() - start, replaced)
    except Exception as error:
        if isinstance(error, cli.FOR_USERS) and cli.DEBUG not in os.environ:
            sentence = cli.describe(error, extra=EXTRA)
        else:
            traceback.print_exc()
            sentence = f"{type(error).__name__}: {error}"
        return Outcome(stem, "error", cli.one_line(sentence), time.perf_counter() - start)


def _save(spec: Any, df: Any, record: Any, folder: Path) -> bool:
    """Save a figure; where the folder takes it no more, in a temporary one, because computing it took a while.

    Raises:
        OSError: the folder takes it no more; says where the figure is now.
    """
    from paper_figures import output

    try:
        return output.save(spec, df, record, folder)
    except OSError as error:
        told = files.explain(error, folder)
        try:
            rescue = Path(tempfile.mkdtemp(prefix="paper_figures-"))
            output.save(spec, df, record, rescue)
        except OSError:
            raise told from None
        raise OSError(f"{told}. The figure is in {rescue}") from None


def _write_page(folder: Path) -> Path | None:
    """Write the page over all figures that are whole; what is left out is said. None when there is no page."""
    from paper_figures import report

    page = folder / "report.html"
    try:
        text, damaged = report.render(folder)
        files.write_atomically(page, text)
    except (OSError, ValueError) as error:
        print(f"{NAME}: no report: {cli.one_line(str(error))}", file=sys.stderr)
        return None
    for sentence in damaged:
        print(f"{NAME}: left out of the report: {cli.one_line(sentence)}; make it again by --only", file=sys.stderr)
    return page


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


def _summary(console: Any, outcomes: Sequence[Outcome], folder: Path, page: Path | None) -> None:
    from rich.table import Table
    from rich.text import Text

    colours = {"holds": "green", "holds only if": "yellow", "fails": "red", "not resolved": "dim", "error": "bold red"}
    wide = console.width >= 120  # sentences in a narrow column are unreadable; the report has them
    columns = ["figure", "s", "verdict", *(["in numbers"] if wide else [])]
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 1 if wide else 0, 0))
    for outcome in outcomes:
        row = [outcome.stem, f"{outcome.seconds:.1f}", Text(outcome.status, colours[outcome.status])]
        table.add_row(*row, *([Text(outcome.sentence)] if wide else []))
    console.print(table)
    failed = [outcome for outcome in outcomes if outcome.status == "error"]
    replaced = sum(outcome.replaced for outcome in outcomes)
    words = f"{sum(o.seconds for o in outcomes):.0f} s for {len(outcomes)} figure{'' if len(outcomes) == 1 else 's'}"
    words += f"; {replaced} replaced an earlier version" if replaced else ""
    if failed:
        words += f"; {len(failed)} failed, what else there is lies in {folder}."
    elif page:
        words += f". Open {page}"
    console.print(words, soft_wrap=True)
    for outcome in failed:
        print(f"{NAME}: {outcome.stem} failed: {outcome.sentence}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
