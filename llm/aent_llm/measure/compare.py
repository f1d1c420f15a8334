"""Runs side by side: curves against the controller's band, and a table of where they ended.

    python -m aent_llm compare runs/grpo-* runs/aent-* --out compare.png --baseline grpo

Runs whose configs differ in nothing but the seed are one group: curves are means over its seeds with a 95% bootstrap
interval over seeds, up to the last step that all of them reached. A step that was logged twice (a resumed run) counts
with its last line. A group of one run has a curve and no interval.

Left out: tests of significance (read the intervals, and the number of seeds), metrics other than the four panels (the
CSV has those of the panels; everything else is in each ``metrics.jsonl``).

Shapes: n runs of a group, T steps. Entropies in nats per completion token at the sampling temperature.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aent import cli
from aent.files import check_writable, write_atomically
from aent.names import suggest
from aent.runs import read_run
from aent.stats import bootstrap_difference, bootstrap_mean
from aent_llm.measure import curves

__all__ = ["Curve", "Group", "RunData", "aggregate", "draw", "group_runs", "main", "read_runs", "table"]

METRICS = {  # what is compared, and where a run logs it; the second key is TRL's own, in runs without our block
    "reward": ("reward",),
    "entropy": ("entropy/full", "entropy"),
    "clamped": ("entropy/clamped",),
    "coefficient": ("entropy/coef",),
    "length": ("completions/mean_length",),
}
LAST = 0.1  # of the steps: what "final" means
UPRIGHT = 6  # groups that fit side by side in a table
SHOWN = 5  # directories of a group in a table
LONGEST = 60  # letters of a group's name: what fits a headline


@dataclass(frozen=True)
class RunData:
    """One run directory: its config, seed, metrics by step (the last line of a step wins) and evaluations."""

    directory: Path
    config: dict[str, Any]
    seed: int | None
    metrics: dict[int, dict[str, Any]]
    summary: dict[str, Any]

    def series(self, metric: str) -> dict[int, float]:
        """Step -> value of one of ``METRICS``, where it was logged as a finite number."""
        found: dict[int, float] = {}
        for step, line in self.metrics.items():
            value = next((line[key] for key in METRICS[metric] if isinstance(line.get(key), int | float)), None)
            if value is not None and abs(value) <= sys.float_info.max:  # neither NaN, infinite nor a huge integer
                found[step] = float(value)
        return found


class Group(NamedTuple):
    """Runs that differ in their seed only (or share whatever they were grouped by), under one name."""

    label: str
    runs: tuple[RunData, ...]


class Curve(NamedTuple):
    """Mean over the runs of a group at the steps that all of them logged, with its interval; each (T,)."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


# ------------------------------------------------------------------------------------------------------------ reading


def read_runs(paths: Sequence[str | Path]) -> list[RunData]:
    """Read run directories, also of runs that are still going on or were killed.

    Raises:
        FileNotFoundError: not a run directory; run directories below it are suggested.
        ValueError: no metrics yet, damaged files, or the same directory twice.
    """
    directories = [Path(path).resolve() for path in paths]
    if repeated := sorted({str(one) for one in directories if directories.count(one) > 1}):
        raise ValueError(f"given more than once: {', '.join(repeated)}; a run counts once")
    return [_read(Path(path)) for path in paths]


def _read(path: Path) -> RunData:
    if not (path / "config.json").is_file():
        nested = [*path.glob("*/metrics.jsonl"), *path.glob("*/*/metrics.jsonl")] if path.is_dir() else []
        below = sorted(str(one.parent) for one in nested)[:5]
        near = sorted(path.parent.iterdir()) if path.parent.is_dir() and not path.exists() else []
        close = difflib.get_close_matches(path.name, [one.name for one in near], n=3)
        meant = below or [str(path.parent / name) for name in close]
        what = "does not exist" if not path.exists() else "is not a run directory (no config.json)"
        if path.is_file():
            what = "is a file; expected a run directory, as train writes it"
            meant = [str(path.parent)] if (path.parent / "config.json").is_file() else []
        raise FileNotFoundError(f"{path} {what}" + (f"; did you mean {', '.join(meant)}?" if meant else ""))
    config, origin, lines = read_run(path)
    _check_config(config, path / "config.json")
    metrics = {}
    for number, line in enumerate(lines, 1):
        if "step" in line:
            metrics[_step(line["step"], f"{path / 'metrics.jsonl'}, line {number}")] = line
    if lines and not metrics:
        raise ValueError(f"{path} was not written by train: no line of its metrics.jsonl has a step; leave it out")
    if not metrics:
        raise ValueError(f"{path} has no metrics yet: wait for its first logged step, or leave it out")
    seed = (config.get("train") or {}).get("seed", origin.get("seed"))
    return RunData(path, config, seed, dict(sorted(metrics.items())), _summary(path / "summary.json"))


def _step(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"{where}: step must be a whole number, got {value!r}; delete the line")
    return int(value)


def _check_config(config: dict[str, Any], path: Path) -> None:
    """Refuse a config whose entropy block cannot be told in words or whose band cannot be drawn."""
    for key in ("train", "entropy"):
        if not isinstance(config.get(key) or {}, dict):
            raise ValueError(f"{path}: {key} must be a block of settings, got {config[key]!r}")
    try:
        method(config)
        curves.band(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the entropy block cannot be read ({type(error).__name__}: {error})") from None


def _summary(path: Path) -> dict[str, Any]:
    """Evaluations and seconds of a finished run; empty for another.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        for when in ("before", "after"):
            for key, score in (content.get(when) or {}).items():
                if key.startswith(("avg@", "pass@")):
                    int(key.partition("@")[2])
                    assert all(isinstance(score[name], int | float) for name in ("mean", "low", "high"))
        assert isinstance(content.get("seconds") or 0, int | float)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{path} is damaged: delete it to compare the curves without the evaluations") from None
    return content


def group_runs(runs: Sequence[RunData], by: str = "config") -> list[Group]:
    """Groups in the order of their first run.

    Args:
        runs: of ``read_runs``.
        by: ``config`` (equal but for the seed), ``method`` (equal entropy block), ``directory`` (each run by itself) or
            a dotted key of the config, e.g. ``train.learning_rate``.

    Raises:
        ValueError: a key that no config has.
    """
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(_identity(run, by), []).append(run)
    if by not in ("config", "method", "directory") and set(found) == {"null"}:
        keys = sorted({key for run in runs for key in _leaves(run.config)})
        hint = suggest(by, keys, most=3) or f". There are {', '.join(keys)}"
        raise ValueError(f"--group-by {by}: no config has this key{hint}")
    members = list(found.values())
    labels = [f"{by.rpartition('.')[2]} = {key.strip(chr(34))}" for key in found]
    if by == "directory":
        labels = [group[0].directory.name for group in members]
    elif by == "method":
        labels = [method(group[0].config) for group in members]
    elif by == "config":
        labels = _names(members)
    return [Group(label, tuple(group)) for label, group in zip(_distinct(labels), members, strict=True)]


def _shown(label: str) -> str:
    """Put a name on one line that is not too long for a figure; its two ends tell most."""
    line = cli.one_line(label)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 21]}…{line[-20:]}"


def _identity(run: RunData, by: str) -> str:
    if by == "directory":
        return str(run.directory)
    leaves = _leaves(run.config)
    if by == "method":
        return json.dumps({key: value for key, value in leaves.items() if key.startswith("entropy.")}, sort_keys=True)
    if by != "config":
        return json.dumps(leaves.get(by), ensure_ascii=False)
    return json.dumps(
        {key: value for key, value in leaves.items() if key not in ("seed", "train.seed")}, sort_keys=True
    )


def method(config: dict[str, Any]) -> str:
    """The entropy block in a few words: ``no bonus``, ``top k 100 + band``, ``full, constant 0.01``, ``clip-cov``."""
    own, block = config.get("entropy") or {}, curves.entropy_block(config)
    support, rule = curves.typed(block["support"]), curves.typed(block["controller"])
    kept = " ".join([_words(support), *(_number(value) for key, value in support.items() if key != "type")])
    coefficient = rule.get("coefficient", 0.0) if rule["type"] == "constant" else None
    bonus = f"{kept} + {_words(rule)}" if coefficient is None else f"{kept}, constant {_number(coefficient)}"
    named = [str(own["method"])] if own.get("method") else []
    named += [_words(curves.typed(own["shaping"]))] if own.get("shaping") else []
    if named:  # the coefficient is the rule's, which may pay no bonus at all
        return ", ".join([*named, *([bonus] if {"support", "controller"} & set(own) else [])])
    return "no bonus" if coefficient == 0 else bonus


def _words(rule: dict[str, Any]) -> str:
    """Name of a rule in words, without the module of one's own: ``top_k`` is ``top k``."""
    return rule["type"].rpartition(":")[2].replace("_", " ").strip()


def _number(value: Any) -> str:
    """Shortest form of a number; the options of a rule of one's own may be anything."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _names(groups: list[list[RunData]]) -> list[str]:
    """Names of the experiments, with the settings in which those of one name differ."""
    names = [str(group[0].config.get("name", group[0].directory.name)) for group in groups]
    leaves = [_leaves(group[0].config) for group in groups]
    labels = []
    for name, own in zip(names, leaves, strict=True):
        same = [other for other, its in zip(leaves, names, strict=True) if its == name]
        differing = [
            key
            for key in own
            if key not in ("seed", "train.seed") and any(other.get(key) != own[key] for other in same)
        ]
        labels.append(", ".join([name, *(f"{key.rpartition('.')[2]} {own[key]}" for key in differing[:2])]))
    return labels


def _distinct(labels: list[str]) -> list[str]:
    labels = [_shown(label) for label in labels]
    return [f"{one} ({labels[: i + 1].count(one)})" if labels.count(one) > 1 else one for i, one in enumerate(labels)]


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix[:-1]: tree}
    return {name: value for key, branch in tree.items() for name, value in _leaves(branch, f"{prefix}{key}.").items()}


# ---------------------------------------------------------------------------------------------------------- aggregation


def aggregate(runs: Sequence[RunData], metric: str, *, smooth: int = 1) -> Curve:
    """Mean over runs and its percentile bootstrap interval over runs, at the steps that all of them logged.

    Args:
        runs: of one group.
        metric: a key of ``METRICS``.
        smooth: each run is first averaged over this many neighbouring steps (fewer at the ends).
    """
    series = [run.series(metric) for run in runs]
    steps = np.array(sorted(set.intersection(*(set(one) for one in series))), dtype=int)
    values = np.array([_smoothed(np.array([one[step] for step in steps]), smooth) for one in series])  # (n, T)
    found = bootstrap_mean(values)
    return Curve(steps, found.mean, found.low, found.high)


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    if width <= 1 or len(values) < 2:
        return values
    kernel = np.ones(min(width, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def final(run: RunData, metric: str) -> float:
    """Mean over the last tenth of the run's logged steps (at least one); NaN where nothing was logged."""
    values = list(run.series(metric).values())
    return float(np.mean(values[-max(1, round(LAST * len(values))) :])) if values else float("nan")


def notes(groups: Sequence[Group]) -> list[str]:
    """What a reader must know before comparing: other data, other evaluations, unequal lengths."""
    runs = [run for group in groups for run in group.runs]
    found = []
    for block in ("data", "evaluation", "model"):
        kinds = {json.dumps(run.config.get(block), sort_keys=True): run.config.get(block) for run in runs}
        if len(kinds) > 1:
            leaves = [_leaves(one) for one in kinds.values()]
            keys = sorted({key for one in leaves for key in one if any(one[key] != o.get(key) for o in leaves)})
            what = ", ".join(keys[:3]) or "one has none"
            found.append(f"not comparable as they are: the runs differ in {block} ({what})")
    firsts = {_first_reward(run.config) for run in runs}
    if len(firsts) > 1:
        found.append(f"not comparable as they are: correct is what another reward says ({', '.join(sorted(firsts))})")
    if len(groups) > len(curves.COLOURS):
        found.append(f"{len(groups)} settings share {len(curves.COLOURS)} colours in a figure: draw fewer at a time")
    for label, members in groups:
        ends = [max(run.metrics) for run in members]
        if min(ends) < max(ends):
            found.append(f"{label}: runs of {min(ends)} to {max(ends)} steps; curves end with the shortest")
    return found


def _first_reward(config: Mapping[str, Any]) -> str:
    """Name the reward that says what is correct: a name, or the first of a list or of a mapping to weights."""
    given = config.get("rewards") or "math_verify"
    return given if isinstance(given, str) else str(next(iter(given)))


# --------------------------------------------------------------------------------------------------------------- output


def draw(runs: Sequence[RunData], *, group_by: str = "config") -> Figure:
    """Reward, entropy against the band, coefficient and length over the steps; see ``curves``."""
    groups = group_runs(runs, group_by)
    width = max(1, max(len(run.metrics) for run in runs) // 40)
    smooth = {metric: 1 if metric == "coefficient" else width for metric in METRICS}  # the coefficient is exact
    measured = {
        group.label: {metric: aggregate(group.runs, metric, smooth=smooth[metric]) for metric in METRICS}
        for group in groups
    }
    seeds = {group.label: len(group.runs) for group in groups}
    configs = {group.label: group.runs[0].config for group in groups}
    return curves.draw(measured, seeds, configs, smooth=width, notes=notes(groups))


def table(runs: Sequence[RunData], *, group_by: str = "config", baseline: str | None = None) -> Table:
    """What every group came to, a column each (a row each when there are many); means over seeds.

    The interval of an accuracy is over seeds, or for a single run over problems, as its evaluation wrote it.

    Raises:
        ValueError: a baseline that is no group.
    """
    groups = group_runs(runs, group_by)
    reference = None if baseline is None else _named(groups, baseline)
    caption = (
        f"final: mean of the last {LAST:.0%} of the steps. 95% bootstrap intervals over seeds; for the accuracy of a "
        "single run over problems"
    )
    rows = [{"": group.label, **_cells(group), **_versus(group, reference)} for group in groups]
    out = Table(title="Runs compared" if len(groups) > 1 else None, caption=caption, caption_justify="left")
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    if len(groups) <= UPRIGHT:
        lines = [list(line) for line in zip(*lines, strict=True)]
    for i, heading in enumerate(lines[0]):
        out.add_column(Text(heading), justify="right" if i else "left", overflow="fold")
    for line in lines[1:]:
        out.add_row(*map(Text, line))  # never markup: names and settings are the user's
    return out


def _cells(group: Group) -> dict[str, str]:
    ends = sorted({max(run.metrics) for run in group.runs})
    means = {name: _cell([final(run, name) for run in group.runs]) for name in METRICS}
    return {
        "run directory": _places(group),
        "seeds": str(len(group.runs)),
        "steps": str(ends[0]) if len(ends) == 1 else f"{ends[0]} to {ends[-1]}",
        "final reward": means["reward"],
        "accuracy before": _accuracy(group, "before", "avg@"),
        "accuracy after": _accuracy(group, "after", "avg@"),
        "pass@k after": _accuracy(group, "after", "pass@"),
        "final entropy, full (nats)": means["entropy"],
        "final entropy, clamped (nats)": means["clamped"],
        "final coefficient": means["coefficient"],
        "final length (tokens)": means["length"],
        "seconds": _cell([float(run.summary.get("seconds") or np.nan) for run in group.runs]),
    }


def _places(group: Group) -> str:
    """Directories of the runs, one a line; of many the first."""
    places = [cli.one_line(str(run.directory)) for run in group.runs]
    return "\n".join(places if len(places) <= SHOWN else [*places[: SHOWN - 1], f"and {len(places) - SHOWN + 1} more"])


def _versus(group: Group, reference: Group | None) -> dict[str, str]:
    """Gain over the reference: in accuracy after training, or in final reward where one has no evaluation."""
    if reference is None:
        return {}
    ours, theirs = ([_score(run, "after", "avg@") for run in one.runs] for one in (group, reference))
    if not all(ours) or not all(theirs):
        ours, theirs = ([("reward", {"mean": final(run, "reward")}) for run in one.runs] for one in (group, reference))
    values = [np.array([score[1]["mean"] for score in scores if score]) for scores in (ours, theirs)]
    return {f"better than {reference.label}": "-" if group == reference else _difference(*values)}


def _named(groups: Sequence[Group], name: str) -> Group:
    labels = [group.label for group in groups]
    if _shown(name) not in labels:
        hint = suggest(name, labels) or "."
        raise ValueError(f"--baseline {name}: no such run{hint} There are {', '.join(labels)}")
    return groups[labels.index(_shown(name))]


def _cell(values: Sequence[float]) -> str:
    """Mean, and below it the interval where there are several runs."""
    known = np.array([value for value in values if np.isfinite(value)])
    if len(known) < 2:
        return f"{known[0]:.3g}" if len(known) else "-"
    found = bootstrap_mean(known)
    return f"{found.mean:.3g}\n[{found.low:.3g}, {found.high:.3g}]"


def _score(run: RunData, when: str, prefix: str) -> tuple[str, dict[str, float]] | None:
    """(name, {mean, low, high}) of the evaluation's ``avg@n`` or its ``pass@k`` of the largest k."""
    result = run.summary.get(when) or {}
    names = [name for name in result if name.startswith(prefix)]
    name = max(names, key=lambda one: int(one.partition("@")[2]), default=None)
    return None if name is None else (name, result[name])


def _accuracy(group: Group, when: str, prefix: str) -> str:
    scores = [score for run in group.runs if (score := _score(run, when, prefix))]
    if not scores:
        return "-"
    k = f"k = {scores[0][0].partition('@')[2]}: " if prefix == "pass@" else ""
    if len(scores) == 1:
        one = scores[0][1]
        return f"{k}{one['mean']:.3g}\n[{one['low']:.3g}, {one['high']:.3g}]"
    return k + _cell([score["mean"] for _, score in scores])


def _difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Difference of means, and its interval where there are several runs; runs are not paired."""
    found = bootstrap_difference(ours, theirs)
    change = f"{found.mean:+.3g}"
    return change if len(ours) == len(theirs) == 1 else f"{change}\n[{found.low:+.3g}, {found.high:+.3g}]"


def write_csv(path: Path, runs: Sequence[RunData], *, group_by: str = "config") -> None:
    """Write the curves, not smoothed: one line per run group, metric and step.

    Raises:
        FileExistsError: the file exists.
        OSError: it cannot be written; says why and what to do.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", "seeds", "metric", "step", "mean", "low", "high"])
    for label, members in group_runs(runs, group_by):
        for metric in METRICS:
            for step, *values in zip(*aggregate(members, metric), strict=True):
                writer.writerow([label, len(members), metric, int(step), *(float(value) for value in values)])
    write_atomically(path, text.getvalue(), replace=False)


def write_picture(path: Path, figure: Figure) -> None:
    """Write a figure in the format of the file's ending, PNG for none.

    Raises:
        FileExistsError, OSError: as ``write_csv``.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or "png", dpi=160)
    write_atomically(path, content.getvalue(), replace=False)


# -------------------------------------------------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Raises:
        FileExistsError: an output file exists; nothing is overwritten.
        OSError: an output file cannot be written, found before anything is read.
        FileNotFoundError, ValueError: as ``read_runs``, ``group_runs`` and ``table``; an ending that is no format.
    """
    options = _parser().parse_args(argv)
    _check_outputs(options.out, options.csv)
    runs = read_runs(options.runs)
    rows = table(runs, group_by=options.group_by, baseline=options.baseline)
    Console().print(rows)
    for note in notes(group_runs(runs, options.group_by)):
        print(f"note: {cli.one_line(note)}", file=sys.stderr)
    if options.out:
        write_picture(options.out, draw(runs, group_by=options.group_by))
        print(f"curves: {options.out}")
    else:
        print("curves: add --out FILE.png")
    if options.csv:
        write_csv(options.csv, runs, group_by=options.group_by)
        print(f"numbers: {options.csv}")
    return 0


def _check_outputs(picture: Path | None, numbers: Path | None) -> None:
    """Refuse files that cannot be written or are there already, before anything is read."""
    for flag, path in (("--out", picture), ("--csv", numbers)):
        if path is None:
            continue
        if path.is_dir():
            raise IsADirectoryError(f"{flag} {path} is a folder; name a file in it")
        if path.exists():
            raise FileExistsError(f"{flag} {path} already exists; nothing was overwritten. Choose another name")
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"{flag} {path}: there is no folder {path.parent}; make it, or choose another place"
            )
        check_writable(path.parent)
    if picture and numbers and picture.resolve() == numbers.resolve():
        raise ValueError(f"--out and --csv both name {picture}; choose two names")
    formats = sorted(Figure().canvas.get_supported_filetypes())
    if picture and picture.suffix and picture.suffix[1:].lower() not in formats:
        raise ValueError(f"--out {picture}: {picture.suffix} is no format of pictures; known: {', '.join(formats)}")


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="python -m aent_llm compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, as written by train")
    parser.add_argument(
        "--group-by", default="config", metavar="BY",
        help="config: all but the seed equal (default); method: equal entropy block; directory: each run by itself; or "
        "a key of the config, e.g. train.learning_rate",
    )  # fmt: skip
    parser.add_argument("--baseline", metavar="NAME", help="add differences to this group, by its name in the table")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="draw the curves (also .pdf, .svg)")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="write the curves as numbers")
    return parser


if __name__ == "__main__":
    cli.run_as("aent_llm", "compare")
