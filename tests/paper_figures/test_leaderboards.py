"""F14 to F16: what counts as better, which knob values help, and verdicts that can come out either way."""

import json

import numpy as np
import pandas as pd
import pytest

from aent.methods import METHODS, Family
from paper_figures import f14_leaderboard, f15_ingredients, f16_llm_leaderboard, records
from paper_figures.scale import Scale


def rows(cell, method, finals, phase="test", strengths=(0.0,), rate=0.1):
    """Runs of one method: the same final values at every strength unless ``finals`` is a dictionary."""
    parts = []
    for strength in strengths:
        values = finals[strength] if isinstance(finals, dict) else finals
        parts += [
            {"strength": strength, "rate": rate, "seed": seed, "final": value, "peak": value, "area": value / 2}
            | {"entropy": 0.5, "optimum": 1.0, "phase": phase, "cell": cell, "method": method}
            for seed, value in enumerate(values)
        ]
    return pd.DataFrame(parts)


def leaderboard(finals, others=0.5):
    """A frame of F14 in which ``finals`` maps methods to final values and every other method ends at ``others``."""
    parts = []
    for name in f14_leaderboard.ROWS:
        value = finals.get(name, others)
        sweep = METHODS[name].sweep
        strengths = sweep.values if sweep else (0.0,)
        parts += [rows("needle", name, [value] * 8), rows("needle", name, [value] * 2, "tune", strengths)]
    cost = pd.DataFrame({"method": f14_leaderboard.ROWS, "ratio": 1.5, "phase": "cost", "cell": "needle"})
    return pd.concat([*parts, cost], ignore_index=True)


# ---------------------------------------------------------------------------------------------------------------- F14


def test_every_method_with_a_reference_is_a_row_and_every_family_has_a_colour():
    assert {name for name, method in METHODS.items() if method.reference} <= set(f14_leaderboard.ROWS)
    assert len(f14_leaderboard.ROWS) == 24  # the figure's alternative text says so
    colours = {f14_leaderboard.family_colour(name) for name in f14_leaderboard.ROWS}
    assert len(colours) == len(Family)
    assert f14_leaderboard.family_colour("siren") == f14_leaderboard.family_colour("keep100")


def test_better_and_worse_need_both_a_gain_and_an_interval():
    df = pd.concat(
        [
            rows("c", "none", [0.5] * 8),
            rows("c", "up", [0.6] * 8),
            rows("c", "little", [0.51] * 8),  # less than GAIN
            rows("c", "wide", [0.0, 0.0, 0.4, 0.4, 0.9, 0.9, 1.0, 1.0]),  # its interval holds .5
            rows("c", "down", [0.4] * 8),
        ]
    )
    lines = f14_leaderboard.table(df)
    signs = {name: f14_leaderboard.better(lines, "c", name) for name in ("up", "little", "wide", "down", "none")}
    assert signs == {"up": 1, "little": 0, "wide": 0, "down": -1, "none": 0}


@pytest.mark.parametrize(
    ("finals", "others", "status"),
    [({}, 0.5, "fails"), ({"siren": 0.9}, 0.5, "holds only if"), ({"none": 0.5}, 0.9, "holds")],
)
def test_f14_verdict_can_come_out_either_way(finals, others, status):
    found = f14_leaderboard.verdict(leaderboard(finals, others))
    assert found.status == status
    count = {"fails": 0, "holds only if": 1, "holds": len(f14_leaderboard.FIELD) + 1}[status]
    assert found.sentence.startswith(f"{count} of {len(f14_leaderboard.FIELD) + 1} published methods")
    assert ("SIREN 0.90" in found.sentence) == (status != "fails")


def test_f14_orders_by_value_and_draws_what_it_is_given():
    figure = f14_leaderboard.draw(leaderboard({"qae": 0.9, "era": 0.1}))
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels[0] == "QAE"
    assert labels[-1] == "ERA"
    assert len(labels) == len(f14_leaderboard.ROWS)


# ---------------------------------------------------------------------------------------------------------------- F15


def ingredients(finals, default=0.5):
    parts = [rows("c", "none x none", [0.5] * 8)]
    for support in f15_ingredients.SUPPORTS:
        for controller in f15_ingredients.CONTROLLERS:
            value = finals.get((support, controller), default)
            parts.append(rows("c", f"{support} x {controller}", [value] * 8))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(
    ("finals", "status"),
    [
        ({}, "fails"),
        ({("drop 33%", "constant"): 0.9, ("full", "band"): 0.9}, "holds"),
        ({("full", "band"): 0.9}, "holds only if"),
        ({("keep 100", "constant"): 1.0}, "fails"),  # our clamp is not the published one
    ],
)
def test_f15_judges_the_two_published_steps(finals, status):
    found = f15_ingredients.verdict(ingredients(finals))
    assert found.status == status
    if ("keep 100", "constant") in finals:
        assert "keep 100 +0.50" in found.sentence


def test_f15_says_when_a_gain_is_not_resolved():
    df = ingredients({})
    wide = rows("c", "full x band", [0.0, 0.2, 0.5, 0.6, 0.7, 0.8, 1.0, 1.0])
    lines = f15_ingredients.table(pd.concat([df[df.method != "full x band"], wide], ignore_index=True), "c")
    assert "not resolved" in f15_ingredients.effect(lines, ("full", "band"), ("full", "constant"))
    assert f15_ingredients.effect(lines, ("full", "dual"), ("full", "constant")) == "+0.00 (not resolved)"


# ---------------------------------------------------------------------------------------------------------------- F16


def record(tmp_path, monkeypatch, arms):
    """A record in which ``arms`` maps arm@value to accuracies of seeds 0, 1, ..."""
    runs = []
    for arm, scores in arms.items():
        for seed, score in enumerate(scores):
            result = {"pass@1": {"mean": score}, "pass@8": {"mean": min(1.0, score + 0.2)}, "length": {"mean": 5.0}}
            curves = {"entropy/full": [1.0] * 10 + [0.25] * 10, "reward": [None, 0.3] * 10}
            runs.append(
                {"stage": "leaderboard", "arm": arm, "seed": seed, "curves": curves, "step": list(range(20))}
                | {"after": result, "before": {**result, "pass@1": {"mean": 0.3}}, "entropy": {"method": arm}}
            )
    path = tmp_path / "methods.jsonl"
    path.write_text("".join(json.dumps(run) + "\n" for run in [{"provenance": {}}, *runs]))
    monkeypatch.setenv(f16_llm_leaderboard.VARIABLE, str(path))
    return f16_llm_leaderboard.compute(Scale("smoke"), np.random.default_rng(0))


GRPO = {"none@0.0003": [0.60, 0.62, 0.61], "none@0.0002": [0.5, 0.5, 0.5]}


def test_f16_pairs_seeds_and_takes_the_first_value_of_plain_grpo(tmp_path, monkeypatch):
    df = record(tmp_path, monkeypatch, GRPO | {"siren@0.005": [0.70, 0.72, 0.74], "siren@0.05": [0.1, 0.9]})
    gap = f16_llm_leaderboard.difference(df, "siren", 0.005)
    # differences .10, .10, .13: mean .11, deviation .01732, times 4.303 / sqrt 3 is .0430
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.11, 0.0670, 0.1530), abs=1e-4)
    assert records.outcome(gap) == "better"
    assert records.outcome(f16_llm_leaderboard.difference(df, "siren", 0.05)) == "not resolved"
    assert df[(df.method == "siren") & df["first"]].value.unique().tolist() == [0.005]
    assert df.entropy.unique().tolist() == [0.25]  # the last tenth


@pytest.mark.parametrize(
    ("scores", "status"),
    [
        ([0.70, 0.72, 0.71], "holds"),
        ([0.60, 0.70, 0.50], "not resolved"),
        ([0.10, 0.12, 0.11], "fails"),
    ],
)
def test_f16_verdict_can_come_out_either_way(tmp_path, monkeypatch, scores, status):
    found = f16_llm_leaderboard.verdict(record(tmp_path, monkeypatch, GRPO | {"qae@0.4": scores}))
    assert found.status == status
    both = GRPO | {"qae@0.4": [0.70, 0.72, 0.71], "era@0.45": scores}
    if status != "holds":
        assert f16_llm_leaderboard.verdict(record(tmp_path, monkeypatch, both)).status == "holds only if"


def test_f16_draws_one_dot_per_run(tmp_path, monkeypatch):
    df = record(tmp_path, monkeypatch, GRPO | {"aent@0.01": [0.6, 0.7], "top64@0.03": [0.4, 0.5, 0.6]})
    figure = f16_llm_leaderboard.draw(df)
    drawn = sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_markersize() == 2.4)
    assert drawn == len(df) == 11
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["AEnt", "no bonus", "top 64, constant"]  # parts of AEnt come last, whatever their value


def test_f16_knows_every_arm_of_the_experiment():
    leaderboard = pytest.importorskip("experiments.all_methods")
    published = {name for name, method in METHODS.items() if method.reference}
    assert set(leaderboard.ARMS) == published | set(f16_llm_leaderboard.PARTS)
    first = {name: settings[0].value for name, settings in leaderboard.ARMS.items()}
    smaller = {name: min(one.value for one in settings) for name, settings in leaderboard.ARMS.items()}
    assert {name: value for name, value in first.items() if value != smaller[name]} == f16_llm_leaderboard.FIRST
