"""Reading, grouping and averaging of runs against numpy by hand; table, picture, command and refusals."""

import csv
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aent.controllers import controller_from_dict
from aent.runs import Run
from aent_llm.__main__ import main as command
from aent_llm.measure import compare, curves
from aent_llm.measure.compare import RunData, aggregate, draw, final, group_runs, main, notes, read_runs, table

BAND = {
    "type": "Band", "initial": 0.02, "low": 0.3, "high": 0.5, "step_size": 0.02, "minimum": 0.002, "maximum": 0.1,
}  # fmt: skip
CLAMP = {"type": "drop_lowest", "share": 0.33}


def config(name: str, seed: int, *, support: Any = "full", controller: Any = 0.0, **train: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"source": "tiny"},
        "data": {"source": "tiny", "split": "train"},
        "entropy": {"support": support, "controller": controller},
        "train": {"learning_rate": 1e-4, **train, "seed": seed},
    }


def train(directory: Path, settings: dict[str, Any], steps: int = 30, after: float | None = None) -> Path:
    """A run whose entropy follows a first-order plant under its real controller."""
    seed = settings["train"]["seed"]
    run, rng = Run.create(directory, settings, seed), np.random.default_rng(seed)
    rule = settings["entropy"]["controller"]
    rule = controller_from_dict(rule if isinstance(rule, dict) else {"type": "Constant", "coefficient": rule})
    state, entropy = rule.init(), 0.9
    for step in range(1, steps + 1):
        entropy += 0.1 * (0.05 + 20 * state.coefficient - entropy) + 0.01 * rng.random()
        run.log(
            step=step, reward=0.3 + 0.01 * step + 0.02 * rng.random(), **{
                "entropy/full": entropy, "entropy/clamped": 0.9 * entropy, "entropy/coef": state.coefficient,
                "completions/mean_length": 5 + rng.random(),
            },
        )  # fmt: skip
        state = rule.update(state, 0.9 * entropy)
    if after is not None:
        scores = {"avg@4": score(after), "pass@1": score(after), "pass@4": score(after + 0.2)}
        summary = {"before": {"avg@4": score(0.25)}, "after": scores, "seconds": 100.0 + seed}
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def score(value: float) -> dict[str, float]:
    return {"mean": value, "low": value - 0.03, "high": value + 0.03}


def plain(*series: dict[int, float], metric: str = "reward") -> list[RunData]:
    """Runs that logged only this."""
    return [
        RunData(Path(f"run-{i}"), {"name": "x"}, i, {step: {metric: value} for step, value in one.items()}, {})
        for i, one in enumerate(series)
    ]


def text(rows: Any) -> str:
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rows)
    return console.export_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        train(root / f"grpo-{seed}", config("grpo", seed), after=0.5 + 0.01 * seed)
        aent = config("aent", seed, support=CLAMP, controller=BAND)
        train(root / f"aent-{seed}", aent, steps=30 if seed else 20, after=0.6 + 0.01 * seed)
    return root


# ------------------------------------------------------------------------------------------------------------- reading


def test_of_a_step_that_was_logged_twice_the_last_line_counts(tmp_path: Path) -> None:
    settings = config("x", 0)
    run = Run.create(tmp_path / "run", settings, 0)
    for step, reward in [(1, 0.1), (2, 0.2), (3, 0.9)]:
        run.log(step=step, reward=reward)
    again = Run.resume(tmp_path / "run", settings)  # from the checkpoint of step 1
    for step, reward in [(2, 0.5), (3, 0.6), (4, 0.7)]:
        again.log(step=step, reward=reward)
    (found,) = read_runs([tmp_path / "run"])
    assert found.series("reward") == {1: 0.1, 2: 0.5, 3: 0.6, 4: 0.7}
    assert found.seed == 0


def test_metrics_of_a_plain_trl_run_are_found_and_nan_is_passed_over() -> None:
    one = RunData(Path("x"), {}, 0, {1: {"entropy": 0.5, "reward": math.nan}, 2: {"entropy": 0.4, "reward": 1}}, {})
    assert one.series("entropy") == {1: 0.5, 2: 0.4}
    assert one.series("reward") == {2: 1.0}
    assert one.series("coefficient") == {}
    both = RunData(Path("x"), {}, 0, {1: {"entropy": 9.0, "entropy/full": 0.5}}, {})
    assert both.series("entropy") == {1: 0.5}


def test_a_folder_of_runs_is_answered_with_its_runs(runs: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a run directory.*did you mean .*aent-0"):
        read_runs([runs])
    with pytest.raises(FileNotFoundError, match=r"does not exist; did you mean .*grpo-"):
        read_runs([runs / "gpro-1"])


def test_no_metrics_yet_and_the_same_run_twice_are_errors(tmp_path: Path, runs: Path) -> None:
    Run.create(tmp_path / "young", config("x", 0), 0)
    with pytest.raises(ValueError, match="no metrics yet"):
        read_runs([tmp_path / "young"])
    with pytest.raises(ValueError, match="more than once"):
        read_runs([runs / "grpo-0", f"{runs}/./grpo-0"])


# ------------------------------------------------------------------------------------------------------------ grouping


def test_runs_that_differ_in_their_seed_only_are_one_group(runs: Path) -> None:
    groups = group_runs(read_runs(sorted(runs.iterdir())))
    assert [(label, len(members)) for label, members in groups] == [("aent", 3), ("grpo", 3)]


@pytest.mark.parametrize(
    ("by", "labels"),
    [
        ("method", ["drop lowest 0.33 + band", "no bonus"]),
        ("directory", ["aent-0", "aent-1", "aent-2", "grpo-0", "grpo-1", "grpo-2"]),
        ("name", ["name = aent", "name = grpo"]),
        ("train.learning_rate", ["learning_rate = 0.0001"]),
    ],
)
def test_other_groupings(runs: Path, by: str, labels: list[str]) -> None:
    assert [group.label for group in group_runs(read_runs(sorted(runs.iterdir())), by)] == labels


def test_settings_of_one_name_are_told_apart_by_what_differs() -> None:
    made = [RunData(Path("x"), config("aent", 0, learning_rate=rate), 0, {}, {}) for rate in (1e-4, 1e-5)]
    assert [group.label for group in group_runs(made)] == ["aent, learning_rate 0.0001", "aent, learning_rate 1e-05"]


def test_an_unknown_key_is_answered_with_near_ones(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"no config has this key; did you mean \'train\.learning_rate\'"):
        group_runs(read_runs([runs / "grpo-0"]), "train.learning_rates")


@pytest.mark.parametrize(
    ("entropy", "expected"),
    [
        ({}, "no bonus"),
        ({"controller": 0.01}, "full, constant 0.01"),
        ({"support": {"type": "TopK", "k": 100}, "controller": {"type": "BangBang"}}, "top k 100 + bang bang"),
        ({"support": "full", "controller": BAND}, "full + band"),
        ({"method": "clip_cov"}, "clip_cov"),
        ({"method": "aent", "support": {"type": "top_k", "k": 64}}, "aent, top k 64 + band"),
        ({"shaping": {"type": "kl_covariance"}, "controller": 0.0}, "kl covariance, full, constant 0"),
        ({"support": {"type": "not_here:MinP", "share": 0.1}, "controller": "not_here.Halving"}, "min p 0.1 + halving"),
        ({"support": {"type": "not_here:Words", "kept": "odd"}, "controller": 0.1}, "words odd, constant 0.1"),
    ],
)
def test_methods_have_names(entropy: dict, expected: str) -> None:
    assert compare.method({"entropy": entropy}) == expected


def test_a_method_by_name_brings_its_band_and_its_clamp() -> None:
    published = {"entropy": {"method": "AEnt"}}
    assert curves.entropy_block({"entropy": {"method": "ClipCov"}})["support"] == {
        "type": "Full"
    }  # as training takes it
    assert curves.band(published) == (0.15, 0.24)
    assert curves.typed(curves.entropy_block(published)["support"]) == {"type": "drop_lowest", "share": 0.33}
    assert curves.band({"entropy": {"method": "AEnt", "controller": 0.1}}) is None
    assert curves.entropy_block({}) == {"support": "full", "controller": 0.0}


def test_other_data_and_unequal_lengths_are_said() -> None:
    settings = config("b", 0)
    settings["data"] = {"source": "other.jsonl", "split": "train"}
    one, other = RunData(Path("a"), config("a", 0), 0, {1: {}, 9: {}}, {}), RunData(Path("b"), settings, 0, {9: {}}, {})
    (note,) = notes(group_runs([one, other]))
    assert "not comparable" in note
    assert "differ in data (source)" in note
    shorter = RunData(Path("c"), config("a", 1), 1, {4: {}}, {})
    assert notes(group_runs([one, shorter])) == ["a: runs of 4 to 9 steps; curves end with the shortest"]
    assert notes(group_runs([one])) == []


# --------------------------------------------------------------------------------------------------------- aggregation


def test_a_curve_is_the_mean_over_runs_at_the_steps_all_of_them_have() -> None:
    found = aggregate(plain({1: 1.0, 2: 2.0, 3: 9.0}, {1: 3.0, 2: 5.0}, {2: 8.0, 1: 2.0, 7: 1.0}), "reward")
    assert found.steps.tolist() == [1, 2]
    assert found.mean.tolist() == [2.0, 5.0]
    assert (found.low <= found.mean).all()
    assert (found.high >= found.mean).all()


def test_one_run_is_its_own_interval() -> None:
    found = aggregate(plain({1: 1.0, 5: 2.0}), "reward")
    assert found.steps.tolist() == [1, 5]
    assert found.mean.tolist() == found.low.tolist() == found.high.tolist() == [1.0, 2.0]


def test_a_metric_nobody_logged_is_an_empty_curve() -> None:
    found = aggregate(plain({1: 1.0}, {1: 2.0}), "length")
    assert [len(part) for part in found] == [0, 0, 0, 0]


def test_the_interval_is_the_bootstrap_of_the_mean() -> None:
    """All 4^4 resamples of four runs, enumerated."""
    values = np.array([0.1, 0.4, 0.2, 0.9])
    every = values[np.stack(np.meshgrid(*[range(4)] * 4), -1).reshape(-1, 4)].mean(1)
    found = aggregate(plain(*({1: value} for value in values)), "reward")
    low, high = np.percentile(every, [2.5, 97.5])
    assert found.low[0] == pytest.approx(low, abs=0.02)
    assert found.high[0] == pytest.approx(high, abs=0.02)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(1, 9))
def test_smoothing_keeps_constants_and_is_a_mean_of_neighbours(values: list[float], width: int) -> None:
    found = compare._smoothed(np.array(values), width)
    assert len(found) == len(values)
    assert found.min() >= min(values) - 1e-9
    assert found.max() <= max(values) + 1e-9
    width = min(width, len(values))
    middle = len(values) // 2
    left, right = middle - width // 2, middle + (width - 1) // 2 + 1
    if width > 1 and left >= 0 and right <= len(values) and width % 2:
        assert found[middle] == pytest.approx(np.mean(values[left:right]), abs=1e-9)


def test_final_is_the_mean_of_the_last_tenth() -> None:
    (long,) = plain({step: float(step) for step in range(1, 41)})
    assert final(long, "reward") == np.mean([37, 38, 39, 40])
    (short,) = plain({1: 1.0, 2: 5.0})
    assert final(short, "reward") == 5.0
    assert math.isnan(final(short, "length"))


# -------------------------------------------------------------------------------------------------------------- output


def test_the_table_holds_what_numpy_finds(runs: Path) -> None:
    read = read_runs(sorted(runs.iterdir()))
    shown = text(table(read, baseline="grpo"))
    rewards = [np.mean([line["reward"] for line in list(run.metrics.values())[-3:]]) for run in read[3:]]
    assert f"{np.mean(rewards):.3g}" in shown
    assert "20 to 30" in shown
    assert "0.61" in shown  # mean accuracy after, of .60, .61, .62
    assert "+0.1" in shown  # over .50, .51, .52
    assert "k = 4: 0.81" in shown


def test_the_table_says_where_the_runs_are(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were given; of more than five the first four."""
    monkeypatch.chdir(runs)
    names = [f"grpo-{seed}" for seed in range(3)]
    grpo, _ = compare.group_runs(read_runs([*names, "aent-0"]))
    assert compare._places(grpo).split() == names
    assert "".join(names) in "".join(column(text(table(read_runs([*names, "aent-0"]))), 1))
    assert compare._places(compare.Group("x", grpo.runs * 2)).split("\n") == [*names, "grpo-0", "and 2 more"]


def test_a_single_run_shows_the_interval_of_its_evaluation(runs: Path) -> None:
    shown = text(table(read_runs([runs / "grpo-1"])))
    assert "[0.48, 0.54]" in shown


def test_a_run_without_evaluation_has_a_table_too(tmp_path: Path) -> None:
    shown = text(table(read_runs([train(tmp_path / "x", config("x", 0), steps=3)]), baseline="x"))
    assert "accuracy after" in shown


def test_many_groups_are_rows() -> None:
    made = [RunData(Path(f"r{i}"), {"name": f"m{i}"}, 0, {1: {"reward": 0.5}}, {}) for i in range(9)]
    assert len(table(made).rows) == 9
    assert len(table(made[:3]).columns) == 4


def test_an_unknown_baseline_is_answered(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"--baseline gpro: no such run; did you mean 'grpo'"):
        table(read_runs([runs / "grpo-0"]), baseline="gpro")


def words(figure: Any) -> str:
    return "\n".join(one.get_text() for one in figure.texts)


def test_the_picture_has_four_panels_the_band_and_says_the_seeds(runs: Path) -> None:
    figure = draw(read_runs(sorted(runs.iterdir())))
    reward, entropy, coefficient, length = figure.axes
    assert len(reward.lines) == len(coefficient.lines) == len(length.lines) == 2
    assert [line.get_linestyle() for line in entropy.lines] == ["-", "--", "-"]  # the bonus of grpo is not clamped
    band = entropy.patches[0].get_extents().transformed(entropy.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((0.3, 0.5))
    assert all(panel.get_ylabel() and panel.get_xlabel() for panel in figure.axes)
    assert "3 seeds" in words(figure)
    assert "20 to 30 steps" in words(figure)
    assert len(reward.collections) == 2  # an interval each


def test_one_run_has_no_interval_and_the_title_says_one_seed(runs: Path) -> None:
    figure = draw(read_runs([runs / "aent-1"]))
    assert "aent: 1 seed" in words(figure)
    assert not any(panel.collections for panel in figure.axes)
    drawn = np.asarray(figure.axes[2].lines[0].get_ydata())
    logged = read_runs([runs / "aent-1"])[0].series("coefficient")
    assert drawn.tolist() == list(logged.values())  # not smoothed


def test_the_legend_covers_no_panel_and_no_text_overlaps(runs: Path) -> None:
    """On the drawn figure: legend, headline and panels are apart, and all is on the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for by in ("config", "directory"):
        figure = draw(read_runs(sorted(runs.iterdir())), group_by=by)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        legend = figure.legends[0].get_window_extent(renderer)
        panels = [panel.get_tightbbox(renderer) for panel in figure.axes]
        heads = [one.get_window_extent(renderer) for one in figure.texts]
        boxes = [legend, *panels, *heads]
        for i, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[i + 1 :])
            assert figure.bbox.x0 <= one.x0
            assert one.x1 <= figure.bbox.x1 + 1
            assert one.y1 <= figure.bbox.y1


def test_a_run_without_our_metrics_is_drawn_and_says_what_is_missing() -> None:
    figure = draw(plain({1: 0.1, 2: 0.3}))
    assert "not logged" in figure.axes[2].texts[0].get_text()


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("full", {"type": "full"}),
        (0.01, {"type": "constant", "coefficient": 0.01}),
        ({"type": "DropLowest", "share": 0.3}, {"type": "drop_lowest", "share": 0.3}),
        ({"type": "top-k", "k": 3}, {"type": "top_k", "k": 3}),
    ],
)
def test_blocks_are_read_in_any_spelling(block: Any, expected: dict) -> None:
    assert curves.typed(block) == expected


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_picture_and_numbers_and_never_overwrites(runs: Path, tmp_path: Path, capsys) -> None:
    paths = [str(one) for one in sorted(runs.iterdir())]
    picture, numbers = tmp_path / "c.png", tmp_path / "c.csv"
    assert main([*paths, "--out", str(picture), "--csv", str(numbers)]) == 0
    out, err = capsys.readouterr()
    assert "final reward" in out
    assert "20 to 30 steps" in err
    assert picture.read_bytes().startswith(b"\x89PNG")
    with numbers.open() as file:
        lines = list(csv.DictReader(file))
    read = read_runs(paths)
    expected = np.mean([run.metrics[7]["reward"] for run in read[3:]])
    (line,) = (one for one in lines if (one["run"], one["metric"], one["step"]) == ("grpo", "reward", "7"))
    assert float(line["mean"]) == pytest.approx(expected)
    assert line["seeds"] == "3"
    before = picture.read_bytes()
    with pytest.raises(FileExistsError, match="nothing was overwritten"):
        main([*paths, "--out", str(picture)])
    assert picture.read_bytes() == before


NAMES = [
    "[INST] {prompt} [/INST]", "[red]", "[/]", "[nan, 1]", ":smile:", "$x$ and $y$", r"$\frac{$",
    "$\\frac{", "5$ & 6_{ % # ~ ^",
    "_hidden", "", "a\nb\tc", "\x1b[31mred", "x" * 500, "熵 🎉 é", "half \udcff", "a\\",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_any_kind_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither rich nor matplotlib reads a name as a language of its own; all of them at once are rows of the table."""
    paths = [str(train(tmp_path / f"{i}", config(name, i), steps=3)) for i, name in enumerate(NAMES)]
    assert main([*paths, "--out", str(tmp_path / "c.svg"), "--csv", str(tmp_path / "c.csv")]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    labels = [group.label for group in group_runs(read_runs(paths))]
    assert all(label.isprintable() and len(label) <= compare.LONGEST + 4 for label in labels)
    assert len(set(labels)) == len(NAMES)
    legend = draw(read_runs(paths)).legends[0].get_texts()
    assert [one.get_text() for one in legend[: len(NAMES)]] == labels
    assert not any(one.get_parse_math() for one in legend)
    shown = "".join(column(text(table(read_runs(paths))), 0))
    assert all("".join(label.split()) in shown for label in labels)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_one_run_of_any_name_has_a_title_and_a_column(tmp_path: Path, name: str) -> None:
    read = [read_runs([train(tmp_path / "run", config(name, 0), steps=2)])[0]]
    (label, _) = group_runs(read)[0]
    assert "".join(label.split()) in "".join(column(text(table(read)), 1))
    figure = draw(read)
    assert figure.texts[0].get_text() == f"{label}: 1 seed"
    assert not any(one.get_parse_math() for one in figure.texts)


def column(shown: str, place: int) -> list[str]:
    """Letters of one column of a printed table, folded cells put together."""
    rows = [re.split("[│┃]", line) for line in shown.splitlines() if line.startswith(("│", "┃"))]
    return ["".join(row[place + 1].split()) for row in rows]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "nothing does not exist"),
        (["grpo-00"], "did you mean grpo-0"),
        (["."], "did you mean aent-0"),
        (["mine"], "mine is a file; expected a run directory, as train writes it\n"),
        (
            ["grpo-0/config.json"],
            "config.json is a file; expected a run directory, as train writes it; did you mean gr",
        ),
        (["other"], "other was not written by train: no line of its metrics.jsonl has a step"),
        (["grpo-0", "./grpo-0"], "a run counts once"),
        (["grpo-0", "--baseline", "gpro"], "did you mean 'grpo'?"),
        (["grpo-0", "--group-by", "train.learnin_rate"], "did you mean 'train.learning_rate'"),
        (["grpo-0", "--group-by", ""], "expected a value"),
        (["grpo-0", "--out", "mine"], "already exists"),
        (["grpo-0", "--out", "."], "is a folder"),
        (["grpo-0", "--out", "no/c.png"], "there is no folder no"),
        (["grpo-0", "--out", "mine/c.png"], "there is no folder mine"),
        (["grpo-0", "--out", "c.xlsx"], ".xlsx is no format of pictures; known: "),
        (["grpo-0", "--out", "c.png", "--csv", "./c.png"], "choose two names"),
        (["grpo-0", "--csv", "/proc/c.csv"], "cannot write /proc"),
        (["grpo-0", "--out", "x" * 300 + ".png"], "File name too long"),
        (["grpo-0", "--ouy", "c.png"], "did you mean --out?"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_in_one_line(runs: Path, tmp_path, monkeypatch, capsys, arguments, told):
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    monkeypatch.chdir(folder)
    (folder / "mine").write_text("mine")
    Run.create(folder / "other", {}, seed=0).log(cell="x", final=0.5)  # as `toymdp compare` keeps it
    before = sorted(folder.rglob("*"))
    assert told in refused(capsys, *arguments)
    assert sorted(folder.rglob("*")) == before
    assert (folder / "mine").read_text() == "mine"


def refused(capsys: Any, *arguments: str) -> str:
    try:
        status = command(["compare", *arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", "", r"config\.json is damaged"),
        ("config.json", "[1]", r"config\.json: expected a JSON object"),
        ("config.json", '{"train": [1]}', "train must be a block"),
        ("config.json", '{"entropy": "full"}', "entropy must be a block"),
        ("config.json", '{"entropy": {"method": "nope"}}', "entropy block cannot be read"),
        ("config.json", '{"entropy": {"support": [1]}}', "entropy block cannot be read"),
        ("config.json", '{"entropy": {"controller": null}}', "entropy block cannot be read"),
        ("provenance.json", "\xff", r"provenance\.json is damaged"),
        ("metrics.jsonl", "{}\n{\n", r"metrics\.jsonl, line 2 is damaged"),
        ("metrics.jsonl", '{"step": "1"}\n', r"metrics\.jsonl, line 1: step must be a whole number, got '1'"),
        ("metrics.jsonl", '{"step": NaN}\n', "got nan"),
        ("metrics.jsonl", '{"step": null}\n', "got None"),
        ("metrics.jsonl", '{"step": 1.5}\n', "got 1.5"),
        ("metrics.jsonl", '{"step": 1e999}\n', "got inf"),
        ("summary.json", "", r"summary\.json is damaged: delete it"),
        ("summary.json", "[]", r"summary\.json is damaged"),
        ("summary.json", '{"after": {"avg@4": 0.5}}', r"summary\.json is damaged"),
        ("summary.json", '{"after": {"avg@x": {"mean": 1, "low": 1, "high": 1}}}', r"summary\.json is damaged"),
        ("summary.json", '{"after": {"avg@4": {"mean": 1}}}', r"summary\.json is damaged"),
        ("summary.json", '{"seconds": "1"}', r"summary\.json is damaged"),
        ("summary.json", "[" * 100_000, r"summary\.json is damaged"),
    ],
)
def test_a_damaged_file_is_named(runs: Path, tmp_path: Path, capsys, name: str, content: str, told: str) -> None:
    shutil.copytree(runs / "grpo-0", tmp_path / "run")
    (tmp_path / "run" / name).write_text(content, encoding="latin-1")
    assert re.search(told, refused(capsys, str(tmp_path / "run")))


def test_numbers_that_are_none_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN, infinite, beyond a float, text, null: none of them is a point of a curve."""
    train(tmp_path / "run", config("x", 0), steps=4)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        for step, value in enumerate(["NaN", "Infinity", "1" * 400, '"text"', "null", "[1]"], 5):
            file.write(f'{{"step": {step}, "reward": {value}, "entropy/full": {value}}}\n')
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "c.png")]) == 0
    assert list(read_runs([tmp_path / "run"])[0].series("reward")) == [1, 2, 3, 4]


def test_a_rule_of_ones_own_has_a_name_too() -> None:
    """Options may be anything; the module is left out."""
    own = {"type": "my_rules:MinP", "share": 0.05, "of": "top", "flag": True, "list": [1]}
    assert compare.method({"entropy": {"support": own, "controller": 0.1}}) == "min p 0.05 top True [1], constant 0.1"


def test_files_that_come_meanwhile_are_kept(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="was not overwritten"):
        compare.write_csv(tmp_path / "c.csv", read_runs([runs / "grpo-0"]))
    assert (tmp_path / "c.csv").read_text() == "mine"
