"""Tuning, statistics and the command line of the comparison."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import trim_mean

from aent.runs import read_run
from toymdp import compare
from toymdp.compare import METHODS, Budget, Cell, best_setting, bootstrap_interval, evaluate, interquartile_mean
from toymdp.learners import Learner

CELL = Cell("smoke-bandit", Learner(40, 0.05), (0.02, 0.05))


def test_every_method_gets_the_same_budget_and_fresh_test_seeds() -> None:
    sizes = {name: len(CELL.settings(method)) for name, method in METHODS.items()}
    assert len(set(sizes.values())) == 1, sizes
    assert not set(Budget(50, 500).tuning) & set(Budget(50, 500).test)


def test_interquartile_mean() -> None:
    assert interquartile_mean([1, 2, 3, 4, 5, 6, 7, 100]) == 4.5  # by hand: mean of 3, 4, 5, 6
    assert interquartile_mean([1, 2, 4]) == pytest.approx(
        (0.25 * 1 + 2 + 0.25 * 4) / 1.5
    )  # quarters cut through 1 and 4
    values = np.random.default_rng(0).normal(size=40)
    assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25))


def test_bootstrap_interval_covers() -> None:
    """95% intervals of the mean of 40 normals cover the truth in 88 to 99% of 120 experiments."""
    draws = np.random.default_rng(0).normal(1.0, 2.0, size=(120, 40))
    hits = sum(low <= 1.0 <= high for low, high in (bootstrap_interval(d, np.mean, draws=300) for d in draws))
    assert 0.88 <= hits / 120 <= 0.99


def test_probability_of_improvement() -> None:
    assert compare.probability_of_improvement([1, 1, 0], [0, 1]) == pytest.approx((1 + 0.5 + 1 + 0.5 + 0.5 + 0) / 6)
    assert compare.probability_of_improvement([0.3] * 4, [0.3] * 5) == 0.5


def test_window_is_the_contiguous_range_around_the_best() -> None:
    sweep = pd.DataFrame({"strength": [0.1, 0.2, 0.4, 0.8, 1.6], "final": [0.96, 0.5, 0.96, 1.0, 0.94]})
    assert compare.window(sweep) == (0.4, 0.8, 1.0)
    assert compare.window(sweep, tolerance=0.1)[:2] == (0.4, 1.6)
    assert compare.window(sweep, best=2.0) == (0.8, 0.8, 0.0)  # never near a better method's best: nothing usable


def test_best_setting_prefers_the_weaker_bonus_on_a_tie() -> None:
    rows = pd.DataFrame({"strength": [0.1, 0.1, 0.2, 0.2, 0.3], "rate": 0.1, "final": [0.5, 0.7, 0.6, 0.6, 0.1]})
    assert best_setting(rows) == (0.1, 0.1)
    assert best_setting(rows.assign(final=[0, 0, 0, 0, 1])) == (0.3, 0.1)


def test_evaluate_is_the_learner_with_that_setting() -> None:
    from aent.controllers import Constant
    from aent.entropy import TopK
    from toymdp import suite
    from toymdp.learners import train

    rows = evaluate(CELL, METHODS["keep100"], [(0.1, 0.02), (0.3, 0.05)], [4, 5])
    alone = train(
        [suite.make("smoke-bandit", 5)], Learner(40, 0.05), support=TopK(100), controller=Constant(0.3), seeds=[5]
    )
    row = rows[(rows["strength"] == 0.3) & (rows["seed"] == 5)].iloc[0]
    assert row["final"] == alone.value[-1, 0]
    assert row["peak"] >= row["final"]


def test_a_killed_comparison_resumes_to_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compare._SCALES, "smoke", (("smoke-bandit",), 30, Budget(2, 3)))
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    call = ["--scale", "smoke", "--methods", "none", "full", "--jobs", "1"]
    assert compare.main(parser.parse_args([*call, "--out", str(tmp_path / "whole")])) == 0
    assert compare.main(parser.parse_args([*call, "--out", str(tmp_path / "cut")])) == 0
    log = tmp_path / "cut" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[: len(lines) - 4]) + lines[-4][:20])  # killed in the middle of a line
    again = [*call, "--out", str(tmp_path / "cut"), "--resume"]
    assert compare.main(parser.parse_args(again)) == 0
    rows = [pd.DataFrame(read_run(tmp_path / name)[2]) for name in ("whole", "cut")]
    last = rows[1][rows[1]["method"] == "full"].iloc[-len(rows[0]) // 2 :].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows[0][rows[0]["method"] == "full"].reset_index(drop=True), last)
    with pytest.raises(FileExistsError, match="resume"):
        compare.main(parser.parse_args([*call, "--out", str(tmp_path / "cut")]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "entropy"], "unknown method entropy"),
        (["--settings", "bandit-1e4-n3"], "unknown setting"),
        (["--resume"], "--out"),
        (["--steps", "0"], "at least 1"),
    ],
)
def test_bad_flags_are_refused_with_advice(flags: list[str], message: str) -> None:
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    with pytest.raises(ValueError, match=message):
        compare.main(parser.parse_args(["--scale", "smoke", *flags]))


@pytest.mark.extra
def test_a_ray_backend_takes_a_sweep_unchanged() -> None:
    ray = pytest.importorskip("ray")
    from joblib import parallel_config
    from ray.util.joblib import register_ray

    here = evaluate(CELL, METHODS["full"], [(0.1, 0.02)], range(4))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register_ray()
    try:
        with parallel_config(backend="ray", n_jobs=2):
            there = evaluate(CELL, METHODS["full"], [(0.1, 0.02)], range(4))
    finally:
        ray.shutdown()
    pd.testing.assert_frame_equal(here, there)
