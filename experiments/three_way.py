"""The honest experiment on the embedded task: plain GRPO, a full entropy bonus and AEnt, with one tuning budget.

    python -m experiments.three_way sweep               # every support at every constant coefficient, few seeds
    python -m experiments.three_way compare             # every method at its best coefficient, other seeds
    python -m experiments.three_way record --out paper_figures/records/llm_tiny.jsonl

Each run is ``python -m aent_llm train`` with overrides, in a process of its own: a study can be stopped at any time,
finished runs are kept and a killed one resumes from its last checkpoint. Runs go through joblib.

What is compared is held-out accuracy at the end of training. A method's coefficient is the one of highest mean accuracy
in the sweep (a tie goes to the smaller). AEnt's band controller starts there, may move from a fifth to five times of
it, and aims at a quarter to a half of the clamped entropy at the start, by the rule of ``calibrate``: it is not tuned
further.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from aent import cli
from aent.files import check_writable
from aent.records import CURVES, header, run_line, write_record
from aent.runs import read_run
from aent_llm.config_files import find_config

__all__ = ["Arm", "best_coefficients", "compare_arms", "main", "record", "sweep_arms"]

CONFIG = "cpu_aent"
GRID = (0.003, 0.01, 0.03, 0.1, 0.3)
SUPPORTS: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "drop33": {"type": "drop_lowest", "share": 0.33},
    "top64": {"type": "top_k", "k": 64},
}
BANDS = {"full": (0.28, 0.55), "drop33": (0.26, 0.52), "top64": (0.18, 0.36)}  # nats: 1/4 to 1/2 of the start
STEP = 2.0  # controller step, in units of the starting coefficient: a miss of .1 nats moves it by a fifth of that
SEED = cli.whole_number(0, 2**32 - 1)  # of numpy
WARMUP = 30  # steps before it moves, as in the paper's setting (a)


@dataclass(frozen=True)
class Arm:
    """One setting: a name, a support and a coefficient that is constant or starts a band controller."""

    method: str
    support: str
    coefficient: float
    adaptive: bool = False

    @property
    def name(self) -> str:
        """Folder of its runs."""
        return f"{self.method}-{self.coefficient:g}" if self.coefficient else self.method

    def overrides(self) -> list[str]:
        """``--set`` arguments of the train command."""
        controller: dict[str, Any] = {"type": "constant", "coefficient": self.coefficient}
        if self.adaptive:
            c, (low, high) = self.coefficient, BANDS[self.support]
            ends = {"minimum": c / 5, "maximum": 5 * c}
            controller = {"type": "band", "initial": c, "low": low, "high": high, "step_size": STEP * c, **ends}
        warmup = WARMUP if self.adaptive else 0
        block = {
            "entropy.support": SUPPORTS[self.support],
            "entropy.controller": controller,
            "entropy.warmup_steps": warmup,
        }
        return [f"--set={key}={json.dumps(value)}" for key, value in block.items()]


def sweep_arms() -> list[Arm]:
    """Plain GRPO and every support at every constant coefficient of the grid."""
    return [Arm("grpo", "full", 0.0)] + [Arm(f"constant-{s}", s, c) for s in SUPPORTS for c in GRID]


def compare_arms(best: dict[str, float]) -> list[Arm]:
    """The four methods, each at its best coefficient of the sweep."""
    return [
        Arm("GRPO", "full", 0.0),
        Arm("GRPO + entropy", "full", best["full"]),
        Arm("AEnt p=.33", "drop33", best["drop33"], adaptive=True),
        Arm("AEnt top-64", "top64", best["top64"], adaptive=True),
    ]


def best_coefficients(folder: Path) -> dict[str, float]:
    """Support -> coefficient of highest mean held-out accuracy among the finished runs of the sweep."""
    found: dict[str, float] = {}
    for support in SUPPORTS:
        scores = {c: _accuracies(folder / Arm(f"constant-{support}", support, c).name) for c in GRID}
        finished = {c: float(np.mean(values)) for c, values in scores.items() if values}
        if not finished:
            raise ValueError(f"{folder} has no finished run with support {support}: run the sweep first")
        found[support] = max(finished, key=lambda c: (finished[c], -c))
    return found


def run_arm(arm: Any, seed: int, folder: Path, config: Path, extra: list[str]) -> int:
    """One run, unless it is finished; one that was killed goes on."""
    output = folder / arm.name / f"seed-{seed}"
    if (output / "summary.json").is_file():
        return 0
    resume = ["--resume"] if (output / "config.json").is_file() else []
    command = [sys.executable, "-m", "aent_llm", "train", "--config", str(config), "--output", str(output)]
    command += [f"--seed={seed}", *resume, *arm.overrides(), *extra]
    output.parent.mkdir(parents=True, exist_ok=True)
    with (output.parent / f"seed-{seed}.log").open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    return done.returncode


def add_arguments(parser: argparse.ArgumentParser, *, folder: Path, config: str, out: Path) -> None:
    """Flags of every experiment of many runs; ``run_all`` and ``record`` take them."""
    parser.add_argument("--folder", type=Path, default=folder, help="default: %(default)s")
    parser.add_argument("--config", default=config, help="file or name, as for train (default: %(default)s)")
    parser.add_argument("--jobs", type=cli.workers, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--out", type=Path, default=out, help="file of the record (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override for every run")
    parser.add_argument("--dry-run", action="store_true", help="list the runs; run nothing")


def run_all(runs: list[tuple[Any, int]], folder: Path, options: argparse.Namespace) -> int:
    """Every (arm, seed), ``options.jobs`` at a time; the exit code: 1 if one failed. ``--dry-run`` only lists them.

    Raises:
        OSError, ValueError: a config, an override or a place that every run would stumble over; a run given twice.
    """
    from aent_llm.training.experiment import load_experiment
    from aent_llm.training.train import override

    config = find_config(options.config)
    for arm in dict.fromkeys(arm.name for arm, _ in runs):
        words = next(one for one, _ in runs if one.name == arm).overrides()
        settings = [*(word.removeprefix("--set=") for word in words), *options.set]
        load_experiment(config, dict(override(one) for one in settings))
    counted = collections.Counter(f"{arm.name}/seed-{seed}" for arm, seed in runs)
    if twice := [name for name, times in counted.items() if times > 1]:
        raise ValueError(f"{', '.join(twice[:3])}: asked for twice; name each seed and method once")
    print(f"{len(runs)} runs into {folder}")
    if options.dry_run:
        print("\n".join(f"{arm.name}/seed-{seed}" for arm, seed in runs))
        return 0
    check_writable(folder)
    extra = [f"--set={one}" for one in options.set]
    jobs = [joblib.delayed(run_arm)(arm, seed, folder, config, extra) for arm, seed in runs]
    failed = sum(code != 0 for code in joblib.Parallel(n_jobs=options.jobs, verbose=10)(jobs))
    print(f"{failed} failed; see the .log files" if failed else "all finished")
    return 1 if failed else 0


def record(folder: Path, out: Path, *, curves: Iterable[str] = tuple(CURVES), per_problem: bool = True) -> int:
    """Write the record (``aent.records``) of the finished runs in a folder; returns how many there are.

    ``curves`` are the logged keys to keep; ``per_problem`` keeps what was measured on every held-out problem too.

    Raises:
        FileExistsError: ``out`` is there. FileNotFoundError: no run in ``folder`` is finished.
        OSError: ``out`` cannot be written; says why and what to do.
        ValueError: a file of a run is damaged; it is named.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; nothing was overwritten. Remove it or choose another --out")
    check_writable(out.parent)
    first: dict[str, Any] = {}
    runs = []
    for summary in sorted(folder.glob("*/*/*/summary.json")):
        stage, arm, seed = summary.parts[-4:-1]
        config, provenance, metrics = read_run(summary.parent)
        first = first or header(provenance, config)
        runs.append(
            run_line(
                metrics, _read_summary(summary), stage=stage, arm=arm, seed=int(seed.removeprefix("seed-")),
                entropy=config.get("entropy"), curves=curves, per_problem=per_problem,
            )
        )  # fmt: skip
    if not runs:
        raise FileNotFoundError(f"no finished run in {folder}: nothing to record")
    write_record(out, first, runs)
    return len(runs)


def main(argv: list[str] | None = None) -> int:
    """Run a stage, or write the record."""
    parser = cli.Parser(prog="python -m experiments.three_way", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stage", choices=("sweep", "compare", "record"))
    parser.add_argument("--seeds", type=SEED, nargs="+", help="default: 100 101 for the sweep, 0 to 4 to compare")
    add_arguments(parser, folder=Path("runs/study"), config=CONFIG, out=Path("paper_figures/records/llm_tiny.jsonl"))
    options = parser.parse_args(argv)
    if options.stage == "record":
        print(f"{record(options.folder, options.out)} runs -> {options.out}")
        return 0
    folder = options.folder / options.stage
    arms = sweep_arms() if options.stage == "sweep" else compare_arms(best_coefficients(options.folder / "sweep"))
    seeds = options.seeds or ([100, 101] if options.stage == "sweep" else [0, 1, 2, 3, 4])
    runs = [(arm, seed) for seed in seeds for arm in arms]
    return run_all(runs, folder, options)


def _accuracies(folder: Path) -> list[float]:
    return [accuracy(_read_summary(path)["after"]) for path in sorted(folder.glob("*/summary.json"))]


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        int(path.parent.name.removeprefix("seed-"))
        return {**found, "after": found["after"], "before": found["before"], "seconds": float(found["seconds"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged, or not of a run of this study ({type(error).__name__}: {error}): remove its folder, "
            "and the run is made again"
        ) from None


def accuracy(result: dict[str, Any] | None) -> float:
    """Give the mean held-out accuracy of an evaluation, whatever its number of samples.

    Raises:
        ValueError: the run was not evaluated.
    """
    for key, value in (result or {}).items():
        if key.startswith("avg@"):
            return value["mean"]
    raise ValueError("a run was not evaluated, but runs are compared by accuracy: give its config an evaluation block")


if __name__ == "__main__":
    raise SystemExit(cli.run("experiments.three_way", main, extra="llm"))
