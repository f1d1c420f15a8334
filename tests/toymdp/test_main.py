"""The command line as a user meets it: output, exit status, advice; and the example script."""

import os
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from toymdp import suite
from toymdp.__main__ import main

ROOT = Path(__file__).parents[2]


def check(name: str, *, holds: bool, control: bool = False) -> SimpleNamespace:
    """Stands for ``toymdp.propositions.Check``."""
    return SimpleNamespace(
        name=name,
        statement=f"[{name}] lhs <= rhs",
        lhs=1.0,
        rhs=2.0,
        margin=1.0,
        holds=holds,
        negative_control=control,
        passed=holds != control,
    )


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- list


def test_list_names_every_setting_with_its_exact_optimum(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in suite.SETTINGS:
        (line,) = [line for line in lines if f" {name} " in line]
        facts = suite.describe(name)
        assert f"{facts['actions']:,}" in line
        assert f" {facts['optimal_value']:.4g} " in line
        assert f" {facts['log_optimal_responses']:.3f} " in line


def test_tags_narrow_the_list(capsys):
    assert main(["list", "--tag", "fig1", "--tag", "lumped"]) == 0
    out = capsys.readouterr().out
    assert out.count("lumped-fig1-1e5-n") == 4
    assert "smoke-" not in out


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["list", "--tag", "fgi1"], "did you mean 'fig1'"),
        (["list", "--tag", "fig1", "--tag", "uniform"], "no setting has all of the tags fig1, uniform; give fewer"),
        (["list", "--tga", "smoke"], "did you mean --tag?"),
        (["verify", "--sede", "3"], "did you mean --seed?"),
        (["verify", "--scale", "big"], "choose from 'smoke', 'default', 'full'"),
        (["verify", "--seed", "-3"], "whole number >= 0, got '-3'"),
        (["verify", "--seed", "x"], "whole number >= 0, got 'x'"),
        (["lst"], "choose from 'list', 'verify', 'compare'"),
        ([], "list,verify,compare"),
    ],
)
def test_a_bad_command_line_gets_status_2_and_advice(capsys, argv, advice):
    assert advice in refused(capsys, *argv)


@pytest.mark.parametrize("argv", [[], ["list"], ["verify"], ["compare"]])
def test_help_explains(capsys, argv):
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 200


# ------------------------------------------------------------------------------------------------------------- verify


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([check("P1", holds=True), check("P1 broken", holds=False, control=True)], 0),
        ([check("P1", holds=True), check("P2", holds=False)], 1),
        ([check("P1", holds=True), check("P1 broken", holds=True, control=True)], 1),
    ],
)
def test_verify_fails_when_a_claim_fails_or_a_negative_control_does_not(monkeypatch, capsys, checks, status):
    asked = {}

    def verify(**options):
        asked.update(options)
        return checks

    monkeypatch.setattr("toymdp.propositions.verify", verify)
    assert main(["verify", "--scale", "smoke", "--seed", "7"]) == status
    assert asked == {"scale": "smoke", "seed": 7, "progress": True}
    out = capsys.readouterr().out
    assert all(f"[{one.name}]" in out for one in checks)  # statements with brackets are not eaten as markup
    assert f"{2 - status} of 2 as claimed" in out
    assert ("not: " in out) == bool(status)


# ------------------------------------------------------------------------------------------------------------ compare


def test_compare_gets_its_own_arguments_and_its_status_is_passed_on(monkeypatch):
    seen = []
    monkeypatch.setattr("toymdp.compare.add_arguments", lambda parser: parser.add_argument("--budget", type=int))
    monkeypatch.setattr("toymdp.compare.main", lambda args: seen.append(args.budget) or 5)
    assert main(["compare", "--budget", "3"]) == 5
    assert seen == [3]


@pytest.fixture(scope="module")
def compared():
    """Output of a comparison of everything, in a pipe as wide as a screen and in one of 80 columns."""

    def compare(columns: str) -> str:
        small = ["--steps", "20", "--settings", "smoke-bandit", "--jobs", "1", "--updates", "2"]
        return subprocess.run(
            [sys.executable, "-m", "toymdp", "compare", "--methods", "all", "--scale", "smoke", *small],
            capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "COLUMNS": columns},
        ).stdout  # fmt: skip

    return cache(compare)


def test_compare_all_prints_a_line_for_every_method(compared):
    from toymdp.methods import METHODS

    rows = [line.split("│") for line in compared("200").splitlines() if line.startswith("│")]
    assert [row[2].strip() for row in rows] == [method.label for method in METHODS.values()]
    assert {row[1].strip() for row in rows} == {"smoke-bandit"}
    finals = [float(row[3].split()[0]) for row in rows]
    assert all(0 <= final <= 1 for final in finals)
    assert len(set(finals)) > 5  # not one number for all
    (none,) = [row for row in rows if row[2].strip() == "no bonus"]
    assert none[7].strip() == "0.50"  # P(none beats none)


def test_names_are_whole_in_a_pipe_too(compared):
    assert "…" not in compared("")


def test_list_does_not_load_what_only_compare_and_verify_need():
    code = (
        "import sys; from toymdp.__main__ import main; main(['list', '--tag', 'smoke'])\n"
        "print([m for m in ('toymdp.compare', 'toymdp.propositions', 'numba', 'pandas', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.splitlines()[-1] == "[]"


def test_a_missing_package_is_named_with_the_pip_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    assert main(["list"]) == 2
    assert "pip install 'aent[figures]'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ example


@pytest.mark.extra
@pytest.mark.parametrize(("env_id", "steps", "enough"), [("smoke-bandit", 4096, 0.9), ("smoke-slip", 6144, 0.5)])
def test_stable_baselines3_ppo_learns_unchanged(env_id, steps, enough):
    """Over three times the value it starts with, and past the share of the optimum that no decoy reaches (0.5)."""
    pytest.importorskip("stable_baselines3")
    train = runpy.run_path(str(ROOT / "examples" / "sb3_ppo.py"))["train"]
    before, after, best = train(f"toymdp/{env_id}-v1", steps)
    assert after > 3 * before
    assert after <= best + 1e-6
    assert after > enough * best
