"""No / full / clamped / adaptive bonuses and the other methods of the field on the suite, tuned with the same budget.

A comparison is a list of cells (a setting of the suite and a learner) times a list of methods (``aent.methods``:
a support, a controller and a shaping rule). Each method gets the same number of settings (strength x learning rate)
and the same tuning seeds; the best by mean final value is then run on test seeds that were not used for tuning. Judge
the *end* of a run: a full bonus can first rise and then explode, and the peak hides it; both are recorded.

The grids are this project's own design (the paper's synthetic settings are not public).

    python -m toymdp compare --scale smoke

Left out: figures (``paper_figures`` draws from these tables).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from aent.cli import KILLED, BrokenOff, positive_number, whole_number, workers
from aent.entropy import Tsallis
from aent.methods import METHODS, Method
from aent.runs import Run, locked, read_run
from aent.stats import bootstrap, interquartile_mean
from toymdp import suite
from toymdp.training.config import Learner
from toymdp.training.learners import train

Frame = Any  # a pandas DataFrame; pandas ships no types
KNOB_VALUES = 7  # that every method of ``aent.methods`` with a knob is tuned over


@dataclass(frozen=True)
class Cell:
    """A setting of the suite, a learner, and the learning rates every bonus is tuned over."""

    setting: str
    learner: Learner
    rates: tuple[float, ...]

    def settings(self, method: Method) -> list[tuple[float, float]]:
        """(strength, learning rate) pairs to tune over: as many for every method.

        Without a knob the whole budget goes to learning rates, from a third of the lowest to three times the highest.
        """
        if method.sweep is not None:
            return list(product(method.sweep.values, self.rates))
        budget = KNOB_VALUES * len(self.rates)
        return [(0.0, rate) for rate in np.geomspace(min(self.rates) / 3, 3 * max(self.rates), budget)]


@dataclass(frozen=True)
class Budget:
    """Seeds for tuning and for the test; they never overlap."""

    tuning_seeds: int = 8
    test_seeds: int = 20

    @property
    def tuning(self) -> range:
        return range(10_000, 10_000 + self.tuning_seeds)

    @property
    def test(self) -> range:
        return range(self.test_seeds)


def evaluate(
    cell: Cell,
    method: Method,
    settings: Sequence[tuple[float, float]],
    seeds: Sequence[int],
    n_jobs: int | None = None,
) -> Frame:
    """Run every (strength, learning rate) on every seed: one row per run.

    Columns: strength, rate, seed; ``final`` and ``peak`` exact value, ``area`` under the value curve (mean over
    training), ``entropy`` and ``support_entropy`` at the end (nats per token), ``coefficient`` at the end, ``optimum``.
    """
    made = {seed: suite.make(cell.setting, seed) for seed in seeds}
    runs = [(strength, rate, seed) for (strength, rate), seed in product(settings, seeds)]
    strength, rate, seed = (np.array(column) for column in zip(*runs, strict=True))
    tuned = method.at(strength)
    history = train(
        [made[s] for s in seed],
        replace(cell.learner, learning_rate=rate),
        support=tuned.support,
        controller=tuned.controller,
        shaping=tuned.shaping,
        seeds=[int(s) for s in seed],
        n_jobs=n_jobs,
    )
    return pd.DataFrame(
        {
            "strength": strength,
            "rate": rate,
            "seed": seed,
            "final": history.value[-1],
            "peak": history.value.max(axis=0),
            "area": history.value.mean(axis=0),
            "entropy": history.full_entropy[-1],
            "support_entropy": history.support_entropy[-1],
            "coefficient": history.coefficient[-1],
            "optimum": made[seeds[0]].optimum.value,
        }
    )


def best_setting(tuning: Frame) -> tuple[float, float]:
    """(strength, rate) with the highest mean final value; the weaker bonus wins a tie, one that diverged never wins."""
    means = tuning.fillna({"final": -np.inf}).groupby(["strength", "rate"])["final"].mean()
    strength, rate = means.index[int(np.argmax(means.to_numpy() - 1e-9 * np.arange(len(means))))]  # type: ignore[misc]
    return float(strength), float(rate)


def tune_and_test(cell: Cell, method: Method, budget: Budget) -> Frame:
    """Tune, then test the best setting on fresh seeds: rows of ``evaluate`` with a column ``phase``."""
    tuning = evaluate(cell, method, cell.settings(method), budget.tuning)
    test = evaluate(cell, method, [best_setting(tuning)], budget.test)
    return pd.concat([tuning.assign(phase="tune"), test.assign(phase="test")], ignore_index=True)


# ------------------------------------------------------------------------------------------------------- statistics


def probability_of_improvement(ours: Any, theirs: Any) -> float:
    """P(a run of ours beats a run of theirs), ties counting half."""
    ours, theirs = np.asarray(ours)[:, None], np.asarray(theirs)[None, :]
    return float(np.mean((ours > theirs + 1e-9) + 0.5 * (np.abs(ours - theirs) <= 1e-9)))


def window(sweep: Frame, tolerance: float = 0.05, best: float | None = None) -> tuple[float, float, float]:
    """(lowest, highest strength, octaves between) of the contiguous range within ``tolerance`` of the best mean value.

    ``best`` measures against another method's best; default is the sweep's own. Octaves are log2(highest / lowest): 0
    means that one strength of the grid works, or none.
    """
    means = sweep.groupby("strength")["final"].mean()
    good = means.to_numpy() >= (1 - tolerance) * (means.max() if best is None else best)
    first = last = int(np.argmax(means.to_numpy()))
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(good) - 1 and good[last + 1]:
        last += 1
    low, high = float(means.index[first]), float(means.index[last])
    return low, high, float(np.log2(high / low)) if low > 0 else 0.0


GAIN = 0.02  # of the final value: less is no difference


def resolved(ours: Any, theirs: Any, gain: float = GAIN) -> int:
    """1 if a line of ``summarise`` ends above another by more than ``gain`` with its interval above it too.

    -1 if it is below in the same sense, 0 if neither.
    """
    above = ours["final"] > theirs["final"] + gain and ours["low"] > theirs["final"]
    below = ours["final"] < theirs["final"] - gain and ours["high"] < theirs["final"]
    return int(above) - int(below)


def knob_effect(rows: Frame, cell: str, method: str) -> tuple[int, int, int]:
    """(values of the knob that help, values tried, values that hurt): how much a method forgives a wrong value.

    Measured against no control (method "none") on the same tuning seeds, by more than ``GAIN``. Each value counts at
    the better of its learning rates, and so does no control, at the rates nearest to them: the best of all its rates
    would be luck on a few seeds.
    """
    tuning = rows[(rows["phase"] == "tune") & (rows["cell"] == cell)]
    means = tuning[tuning["method"] == method].groupby(["strength", "rate"])["final"].mean()
    plain = tuning[tuning["method"] == "none"].groupby("rate")["final"].mean()
    rates = means.index.get_level_values("rate").unique()
    none = max(float(plain.iloc[int(np.abs(np.log(plain.index / rate)).argmin())]) for rate in rates)
    best = means.groupby("strength").max()
    return int((best > none + GAIN).sum()), len(best), int((best < none - GAIN).sum())


def summarise(rows: Frame) -> Frame:
    """One line per (cell, method): interquartile mean of the tested final values with its 95% interval, and company."""
    lines = []
    for (cell, method), part in rows.groupby(["cell", "method"], sort=False):
        test = part[part["phase"] == "test"]
        rivals = rows[(rows["cell"] == cell) & (rows["method"] == "none") & (rows["phase"] == "test")]
        final = bootstrap(test["final"])  # interquartile mean
        lines.append(
            {
                "cell": cell,
                "method": method,
                "final": final.mean,
                "low": final.low,
                "high": final.high,
                "mean": test["final"].mean(),
                "peak": interquartile_mean(test["peak"]),
                "area": interquartile_mean(test["area"]),
                "entropy": test["entropy"].mean(),
                "beats_none": probability_of_improvement(test["final"], rivals["final"]) if len(rivals) else np.nan,
                "strength": test["strength"].iloc[0],
                "rate": test["rate"].iloc[0],
            }
        )
    return pd.DataFrame(lines)


# ------------------------------------------------------------------------------------------------------ command line

_SCALES = {
    # settings, steps, budget
    "smoke": (("bandit-1e3-n1",), 200, Budget(2, 4)),
    "default": (("bandit-1e4-n1", "bandit-1e4-n15"), 2000, Budget(8, 20)),
    "full": (
        tuple(f"bandit-{size}-n{n}" for size in ("1e3", "1e4", "1e5") for n in (1, 2, 5, 15)),
        2000,
        Budget(8, 30),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``python -m toymdp compare``."""
    parser.add_argument(
        "--scale", choices=_SCALES, help="how much to run; smoke only tries the command (default: default)"
    )
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="settings of the suite instead of the scale's")
    parser.add_argument(
        "--methods",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"all (default), or of {', '.join(METHODS)}; one of your own is module:name",
    )
    parser.add_argument("--steps", type=whole_number(1, 10**9), help="updates per run instead of the scale's")
    parser.add_argument(
        "--updates",
        type=whole_number(1, 10**6),
        help="optimiser steps per sampled group: above 1 clips act (default: 1)",
    )
    parser.add_argument("--optimiser", choices=("adam", "sgd"), help="(default: adam)")
    parser.add_argument("--gradient", choices=("sampled", "exact"), help="(default: sampled)")
    parser.add_argument("--parametrisation", choices=("tabular", "loglinear"), help="(default: tabular)")
    parser.add_argument(
        "--rates",
        nargs="+",
        action="extend",
        type=positive_number,
        help="learning rates to tune over (default: by optimiser)",
    )
    parser.add_argument("--jobs", type=workers, default=-1, help="joblib workers (default: -1, one per core)")
    parser.add_argument("--out", type=Path, help="keep rows in this run directory")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with its settings")


DEFAULT_RATES = {"adam": (0.01, 0.03), "sgd": (0.1, 0.3)}


def main(args: argparse.Namespace) -> int:
    """Run ``python -m toymdp compare`` and print the table. Returns the exit code.

    Raises:
        FileExistsError: ``--out`` holds something and ``--resume`` was not given.
        OSError: ``--out`` cannot be written; nothing was computed.
        ValueError: settings, methods, learner or ``--out`` do not go together; nothing was computed.
    """
    saved = _saved_config(args.out) if args.resume else {}
    if saved and args.scale is None:
        settings, steps, budget = saved["settings"], saved["learner"]["steps"], Budget(**saved["budget"])
    else:
        settings, steps, budget = _SCALES[args.scale or "default"]
    flags = ("steps", "optimiser", "gradient", "parametrisation", "updates")
    given = {key: getattr(args, key) for key in flags if getattr(args, key) is not None}
    chosen = {**saved.get("learner", {}), "steps": steps, **given}
    rates = tuple(args.rates or saved.get("rates") or DEFAULT_RATES[chosen.get("optimiser", Learner.optimiser)])
    asked = args.methods or saved.get("methods") or ["all"]
    names = _wanted(asked, chosen.get("gradient", Learner.gradient))
    settings = tuple(suite.setting(name).name for name in args.settings or settings)
    _check_repeats("--settings", settings)
    _check_repeats("--rates", rates)
    learner = Learner(**{**chosen, "learning_rate": rates[0]})
    for setting in settings:
        _check_lumped(setting, learner)
    cells = [Cell(setting, learner, rates) for setting in settings]
    config = {
        "settings": settings,
        "methods": names,
        "learner": asdict(learner),
        "rates": rates,
        "budget": asdict(budget),
    }
    with _open_run(args.out, args.resume, config) as run:
        if asked == ["all"] and len(names) < len(METHODS):
            print(f"left out, because they weigh sampled tokens: {', '.join(sorted(set(METHODS) - set(names)))}")
        rows = compare(cells, names, budget, run=run, n_jobs=args.jobs, progress=True)
    _print(rows, scale := next((name for name, (*_, one) in _SCALES.items() if one == budget), "own"))
    if scale == "smoke":
        print(
            f"smoke scale tries the command ({budget.test_seeds} seeds, {learner.steps} updates) and judges no method: "
            "that early, no bonus often wins. For a result take --scale default"
        )
    lost = rows[(rows["phase"] == "test") & ~np.isfinite(rows["final"])]
    for cell, name in lost[["cell", "method"]].drop_duplicates().itertuples(index=False):
        print(f"note: {METHODS[name].label} on {cell} diverged: give lower --rates", file=sys.stderr)
    return 0


def _saved_config(out: Path | None) -> dict[str, Any]:
    """Read the settings that the comparison in a run directory was started with.

    Raises:
        FileNotFoundError: no run there.
        ValueError: no ``--out``, or a run of another kind.
    """
    if out is None:
        raise ValueError("--resume needs --out DIRECTORY, the run directory to go on with")
    if out.is_file():
        raise ValueError(f"--resume: {out} holds no run, it is a file; give the run directory, perhaps {out.parent}")
    if not (out / "config.json").is_file():
        raise FileNotFoundError(f"--resume: {out} holds no run (no config.json); leave --resume out to start one")
    config, origin, _ = read_run(out)
    saved = origin.get("config") or config  # config.json may have been edited: ``Run.resume`` says so
    try:
        Learner(**saved["learner"])
        Budget(**saved["budget"])
        assert all(isinstance(saved[key], list) for key in ("settings", "methods", "rates"))
    except (AssertionError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"--resume: {out} holds no comparison but another kind of run (`python -m toymdp compare` makes one)"
        ) from None
    return saved


def _wanted(asked: list[str], gradient: str) -> list[str]:
    """Names of methods; "all" means all that this gradient can serve.

    Raises:
        ValueError: an unknown method, one given twice, or one that needs samples where gradients are exact.
    """
    if "all" in asked and asked != ["all"]:
        raise ValueError("--methods: 'all' stands alone; leave it or the other names out")
    names = list(METHODS) if asked == ["all"] else [METHODS.find(name)[0] for name in asked]
    _check_repeats("--methods", names)
    need = [name for name in names if _needs_samples(METHODS[name])] if gradient == "exact" else []
    if need and asked != ["all"]:
        raise ValueError(f"{', '.join(need)}: these weigh sampled tokens; leave them out or use --gradient sampled")
    return [name for name in names if name not in need]


def _needs_samples(method: Method) -> bool:
    """Whether exact gradients cannot serve it."""
    return not method.shaping.is_plain or isinstance(method.support, Tsallis)


def _check_repeats(flag: str, values: Sequence[Any]) -> None:
    if repeated := sorted({str(value) for value in values if values.count(value) > 1}):
        raise ValueError(f"{flag}: {', '.join(repeated)} is given twice; name each once")


def _check_lumped(setting: str, learner: Learner) -> None:
    """Refuse what ``train`` would refuse only after other settings were computed."""
    if suite.setting(setting).lumped and (learner.gradient, learner.parametrisation) != ("exact", "tabular"):
        raise ValueError(
            f"{setting} holds many identical tokens per entry, which only exact gradients of tabular policies know: "
            "give --gradient exact --parametrisation tabular, or leave it out"
        )


@contextlib.contextmanager
def _open_run(out: Path | None, resume: bool, config: dict[str, Any]) -> Iterator[Run | None]:
    """Start or go on with the run directory of ``--out``, and hold its lock; None when there is none."""
    if out is None:
        yield None
        return
    if resume:
        with locked(out):
            yield Run.resume(out, config)
        return
    if out.is_file():
        raise FileExistsError(
            f"{out} is a file; nothing was overwritten. --out names a run directory: a new one, or with --resume an old"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} already exists and is not empty; nothing was overwritten. Go on with it by --resume, or choose "
            "another --out"
        )
    run = Run.create(out, config, seed=0)
    with locked(out):
        yield run


def compare(
    cells: Sequence[Cell],
    methods: Sequence[str],
    budget: Budget,
    *,
    run: Run | None = None,
    n_jobs: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Frame:
    """All cells times all methods; with a ``run``, finished pairs are kept in it and not computed again.

    Args:
        progress: True draws a bar; a function is called with (pairs done, pairs to do).

    Returns:
        Rows of ``tune_and_test`` with the columns ``cell`` (name of the setting) and ``method``.

    Raises:
        ValueError: two cells of one setting, whose rows could not be told apart.
        BrokenOff: a worker process was killed; says what is kept and how to go on.
        KeyboardInterrupt: Ctrl-C; says the same.
    """
    if len({cell.setting for cell in cells}) < len(cells):
        raise ValueError("two cells have the same setting: call compare once per learner and add a column to its rows")
    pairs = {(cell.setting, name): (cell, METHODS[name]) for cell, name in product(cells, methods)}
    parts = {} if run is None else _finished(pairs, budget, _logged_rows(run))
    todo = [pair for pair in pairs if pair not in parts]
    fresh = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(tune_and_test)(*pairs[pair], budget) for pair in todo
    )
    bar = tqdm(todo, desc="compare", disable=progress is not True)
    try:
        for done, ((setting, name), part) in enumerate(zip(bar, fresh, strict=True), 1):
            assert part is not None, "joblib gives back every result"
            parts[setting, name] = part.assign(cell=setting, method=name)
            if run is not None:
                for row in parts[setting, name].to_dict("records"):
                    run.log(**row)
            if callable(progress):
                progress(done, len(todo))
    except (BrokenExecutor, KeyboardInterrupt) as stop:
        kept = "nothing is kept without a run directory (--out)"
        if run is not None:
            kept = f"{len(parts)} of {len(pairs)} pairs are kept in {run.directory}: go on with --resume"
        if isinstance(stop, KeyboardInterrupt):
            raise KeyboardInterrupt(f"Ctrl-C; {kept}") from None
        raise BrokenOff(f"{KILLED}; {kept}. Give fewer --jobs") from None
    finally:
        bar.close()
    return pd.concat([parts[pair] for pair in pairs], ignore_index=True)


_TEXTS = ("cell", "method", "phase")
_NUMBERS = (
    "strength", "rate", "seed", "final", "peak", "area", "entropy", "support_entropy", "coefficient", "optimum",
)  # fmt: skip


def _logged_rows(run: Run) -> Frame:
    """Rows that a run directory holds.

    Raises:
        ValueError: a line without the columns of ``tune_and_test``, or with something else in them; it is named.
    """
    for number, row in enumerate(run.logged, 1):
        wrong = [key for key in _TEXTS if not isinstance(row.get(key), str)]
        wrong += [key for key in _NUMBERS if not isinstance(row.get(key), int | float)]
        if wrong:
            raise ValueError(
                f"{run.directory / 'metrics.jsonl'}, line {number} is damaged ({', '.join(wrong)} missing or of the "
                "wrong type): delete the line, and what it held is computed again"
            )
    return pd.DataFrame(list(run.logged))


def _finished(pairs: dict[Any, tuple[Cell, Method]], budget: Budget, logged: Frame) -> dict[Any, Frame]:
    """Pairs whose rows are all logged; one that was cut off half-way is computed again, to the same numbers."""
    found = {}
    for (setting, name), (cell, method) in pairs.items():
        known = logged[(logged["cell"] == setting) & (logged["method"] == name)] if len(logged) else logged
        expected = len(cell.settings(method)) * budget.tuning_seeds + budget.test_seeds
        if len(known) >= expected:
            found[setting, name] = known.iloc[-expected:]
    return found


def _print(rows: Frame, scale: str) -> None:
    from rich.console import Console  # noqa: PLC0415  (only the command line needs it)
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=f"final value, interquartile mean [95% interval] on test seeds ({scale} scale)")
    for column in (
        "setting",
        "method",
        "final value",
        "area",
        "peak",
        "entropy (nats)",
        "P(beats none)",
        "tuned to",
        "rate",
        "help / hurt",
    ):
        table.add_column(column)
    compared = set(rows["cell"][rows["method"] == "none"])
    for line in summarise(rows).to_dict("records"):
        cell, method, forgives = line["cell"], line["method"], ""
        if METHODS[method].sweep and cell in compared:
            helps, tried, hurts = knob_effect(rows, cell, method)
            forgives = f"{helps} / {hurts} of {tried}"
        table.add_row(
            cell,
            METHODS[method].label,
            f"{line['final']:.3f} [{line['low']:.3f}, {line['high']:.3f}]",
            f"{line['area']:.3f}",
            f"{line['peak']:.3f}",
            f"{line['entropy']:.2f}",
            f"{line['beats_none']:.2f}",
            f"{line['strength']:g}",
            f"{line['rate']:.3g}",
            forgives,
        )
    # A pipe has no width: 80 columns would cut the names.
    asked = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() else int(asked) if asked.isdecimal() and int(asked) > 0 else 160
    Console(width=width).print(table)
