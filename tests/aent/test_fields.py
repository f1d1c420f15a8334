"""Every field of every rule: its type, NaN and infinity, its range; numpy's scalars are numbers, a bool is none."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aent.controllers import Anchored, Band, Constant, Controller, Dual, Schedule, Switch
from aent.fields import check_numbers, is_finite_number, is_for_numbers, is_whole_number, is_within
from aent.methods import METHODS
from aent.shaping import (
    ClipCovariance,
    ClipHigher,
    ConfidentTokens,
    DifficultyBonus,
    EntropyAdvantage,
    GradientPreserving,
    KLCovariance,
    LogitScaling,
    PeakBonus,
    QuantileBaseline,
    Shaping,
    TemperedReinforce,
)

# Outside and on the edge of what each field means; by hand from the formulas in aent/shaping.py.
WRONG: list[tuple[type[Shaping], dict[str, float]]] = [
    *((rule, {"low": value}) for rule in (Shaping, ClipHigher) for value in (-3.0, -0.01, 1.01)),
    *((Shaping, {"high": value}) for value in (-0.01, math.inf)),
    *((PeakBonus, {"quantile": value}) for value in (-0.1, 1.1, math.nan)),
    *((DifficultyBonus, {"threshold": value}) for value in (-0.1, 1.1, math.nan)),
    *((ConfidentTokens, {"confident": value}) for value in (-0.1, 1.0)),
    *((KLCovariance, {"share": value}) for value in (2.0, -1.0, 0.0, math.nan)),
    (ClipCovariance, {"smallest": 5.0, "largest": 1.0}),
    (ClipCovariance, {"smallest": 1.0, "largest": 1.0}),
    (ClipCovariance, {"largest": math.inf}),
    *((EntropyAdvantage, {"kappa": value}) for value in (0.0, -1.0)),
    (TemperedReinforce, {"alpha": -1.0}),
    (TemperedReinforce, {"margin": math.nan}),
    *((GradientPreserving, {name: value}) for name, value in (("beta_2", -0.1), ("dual", 1.0))),
    *((LogitScaling, {name: value}) for name, value in (("factor", 1.0), ("upper", -1.0), ("share", 0.0))),
]
RIGHT: list[tuple[type[Shaping], dict[str, float]]] = [
    (Shaping, {"low": 0.0, "high": 0.0}),
    (Shaping, {"low": 1.0, "high": 1e6}),
    (PeakBonus, {"quantile": 0.0}),
    (PeakBonus, {"quantile": 1.0}),
    (DifficultyBonus, {"threshold": 0.0}),
    (ConfidentTokens, {"confident": 0.0}),
    (KLCovariance, {"share": 1.0}),
    (ClipCovariance, {"smallest": -2.0, "largest": -1.0}),
    (TemperedReinforce, {"alpha": 0.0, "margin": -1.0}),
    (GradientPreserving, {"beta_2": 0.0, "dual": 1.01}),
    (LogitScaling, {"upper": 0.0, "share": 1.0}),
]


@pytest.mark.parametrize(("rule", "fields"), WRONG, ids=str)
def test_a_field_outside_its_range_is_refused(rule: type[Shaping], fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be (in|a finite number|below)") as caught:
        rule(**fields)
    assert all(name in str(caught.value) for name in fields)


@pytest.mark.parametrize(("rule", "fields"), RIGHT, ids=str)
def test_the_ends_of_a_range_are_right_where_they_mean_something(rule: type[Shaping], fields: dict[str, float]) -> None:
    assert {name: getattr(rule(**fields), name) for name in fields} == fields


def test_every_range_names_a_field_and_holds_its_default() -> None:
    for rule in Shaping.registry.values():
        for name, range_ in vars(rule).get("ranges", {}).items():
            (field,) = [one for one in dataclasses.fields(rule) if one.name == name]
            assert field.default is None or is_within(field.default, range_)


TYPES = """
import json, sys
import numpy as np
from aent.controllers import Controller
from aent.entropy import DropLowest, Nucleus, TopK, support_to_dict
from aent.methods import METHODS, Family, Method
from aent.shaping import PeakBonus, Shaping

import dataclasses
rules = [DropLowest(0.3), TopK(3), Nucleus(0.9)]
rules += [part for one in METHODS.values() for part in (one.controller, one.shaping)]
said = []
for rule in rules:
    for field in dataclasses.fields(rule):
        wrong = ["x", "0.1", True, float("nan"), float("inf"), -float("inf"), 10**400, 1j, [0.1, "x"], {}, b"1",
                 np.array([True]), np.array([1.0, np.nan]), np.array(["1"]), np.bool_(False)]
        if getattr(rule, field.name) is not None:
            wrong.append(None)
        for value in wrong:
            if field.name == "k" and isinstance(value, int) and value > 1:
                continue  # a whole number of tokens all the same
            try:
                dataclasses.replace(rule, **{field.name: value})
            except ValueError as error:
                assert field.name in str(error) and "\\n" not in str(error), error
                continue
            said.append(f"{type(rule).__name__}({field.name}={value!r})")
        right = getattr(rule, field.name)
        if isinstance(right, float):
            for kind in (np.float64, np.float32):
                saved = dataclasses.replace(rule, **{field.name: kind(right)})
                saved = support_to_dict(saved) if isinstance(saved, (DropLowest, TopK, Nucleus)) else saved.to_dict()
                assert type(json.loads(json.dumps(saved))[field.name]) is float
        elif isinstance(right, int):
            dataclasses.replace(rule, **{field.name: np.int64(right)})
for part, wrongs in (
    ("controller", (TopK(3), 0.1)), ("shaping", (PeakBonus, "peak_bonus")), ("support", (TopK, "full")),
):
    for wrong in wrongs:
        try:
            Method("mine", "me", Family.BONUS, **{part: wrong})
        except ValueError as error:
            assert f"Method('mine'): {part} must be an object such as" in str(error), error
            continue
        said.append(f"Method({part}={wrong!r})")
print(json.dumps(said))
"""


def test_no_field_takes_what_is_no_number() -> None:
    """In a process of its own: this suite checks annotations at run time, and would refuse the types before we do."""
    done = subprocess.run(
        [sys.executable, "-c", TYPES], capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == []


CALLS = {  # an expression -> what the ValueError or TypeError says
    "Constant(0.1).update(0.1, 1.0)": "expected a State, as init() and update() give it, got 0.1",
    "Constant(0.1).update(State(0.1), 'x')": "measured entropy: expected numbers, got 'x'",
    "State.from_dict({'coefficient': 'x'})": "State.coefficient: expected a number or a list of numbers, got 'x'",
    "State.from_dict({'coefficient': ['x']})": "State.coefficient: expected numbers, got ['x']",
    "State.from_dict({'coefficient': 1, 'step': None})": "State.step: expected a whole number of updates",
    "controller_from_dict({'type': 'constant', 'coefficient': ['a']})": "expected numbers, got ['a']",
    "controller_from_dict({'type': 'constant', 'coefficient': [[1], [2, 3]]})": "expected numbers, got [[1], [2, 3]]",
    "group_advantages(np.array([['a', 'b']]))": "rewards must be real numbers, got <U1",
    "group_advantages(np.array([[1j, 2]]))": "rewards must be real numbers, got complex128",
    "Run.create(folder, 3, 0)": "expected a config of names and values (a dict), got a int: 3",
    "Run.create(folder, {}, 1.5)": "seed=1.5: expected a whole number or None",
    "Run.create(folder, {}, True)": "seed=True: expected a whole number or None",
    "Constant(0.1).update(State(0.1), True)": "measured entropy: expected numbers, got True",
    "State.from_dict({'coefficient': [True]})": "State.coefficient: expected numbers, got [True]",
    "TokenVectorEnv('smoke-tree', True)": "num_envs=True: expected a whole number",
    "State.from_dict({'coefficient': True})": "State.coefficient: expected a number or a list of numbers, got True",
    "suite.make('smoke-bandit', True)": "seed=True: expected a whole number >= 0",
    "verify(scale='smoke', seed=True)": "seed=True: expected a whole number >= 0",
    "TokenEnv('smoke-bandit', instance_seed=1) and TokenEnv('smoke-bandit', instance_seed=True)": "seed=True: expected",
    "train([bandit], Learner(3, 0.1), seeds=[True])": "train: seeds holds True: expected whole numbers >= 0",
    "soft_optimum(bandit.mdp, True)": "coefficient=True: the soft optimum needs lambda > 0",
    **{
        f"{family}(np.random.default_rng(0), **{ {**sizes, wrong: True} })": f"{wrong}=True: expected a whole number"
        for family, sizes in {
            "token_tree": {"actions": 200, "optimal": 1, "horizon": 2, "decoys": 1, "bins": 5},
            "units": {"actions": 200, "optimal": 1, "count": 2, "decoys": 1, "bins": 5},
            "random_tree": {"actions": 3, "horizon": 2},
            "random_mdp": {"actions": 3, "horizon": 2, "width": 2},
        }.items()
        for wrong in sizes
    },
    "lump(bandit, True)": "bins=True: expected a whole number",
    "suite.setting(None)": "unknown setting None",
    "suite.make('smoke-bandit', -1)": "seed=-1: expected a whole number >= 0",
    "suite.make('smoke-bandit', 1.5)": "seed=1.5: expected a whole number >= 0",
    "token_tree(np.random.default_rng(0), actions='x', optimal=1)": "actions='x': expected a whole number",
    "token_tree(np.random.default_rng(0), actions=9.5, optimal=1)": "actions=9.5: expected a whole number",
    "train([3], Learner(3, 0.1))": "expected instances, as toymdp.suite.make gives them, and a Learner",
    "train([bandit], None)": "expected instances, as toymdp.suite.make gives them, and a Learner",
    "train([bandit], Learner(3, 0.1), controller=0.1)": "controller must be an object such as Constant(0.01), got 0.1",
    "train([bandit], Learner(3, 0.1), shaping='x')": "shaping must be an object such as PeakBonus(), got 'x'",
}
PROGRAM = """
import json, sys
import numpy as np
from aent.controllers import *
from aent.runs import Run
from aent.shaping import group_advantages
from toymdp import suite
from toymdp.envs import TokenEnv, TokenVectorEnv
from toymdp.families import lump, random_mdp, random_tree, token_tree, units
from toymdp.training.learners import train
from toymdp.training.config import Learner
from toymdp.mdp import soft_optimum
from toymdp.theory.propositions import verify

bandit, folder, said = suite.make("smoke-bandit"), sys.argv[1], {}
for expression in json.loads(sys.argv[2]):
    try:
        said[expression] = repr(eval(expression))
    except (ValueError, TypeError) as error:
        said[expression] = f"refused: {error}"
print(json.dumps(said))
"""


def test_calls_with_something_of_another_kind_are_refused_with_advice(tmp_path: Path) -> None:
    """In a process of its own, as above; none was a ValueError or TypeError with these words before."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), json.dumps(list(CALLS))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for expression, said in json.loads(done.stdout).items():
        assert said.startswith("refused: "), (expression, said)
        assert CALLS[expression] in said, (expression, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, True), (0.5, True), (np.float32(0.5), True), (np.int8(3), True), (True, False), (np.bool_(True), False),
        ("1", False), (None, False), (math.nan, False), (np.float64(math.inf), False), (10**400, False), (1j, False),
        (np.array(1.0), False),
    ],
)  # fmt: skip
def test_what_is_a_finite_number(value: Any, number: bool) -> None:
    assert is_finite_number(value) is number


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, True), (-3, True), (10**400, True), (np.int8(3), True), (np.uint64(3), True), (True, False), (2.0, False),
        (np.bool_(True), False), (np.float64(2), False), ("1", False), (None, False), (np.array(1), False),
    ],
)  # fmt: skip
def test_what_is_a_whole_number(value: Any, number: bool) -> None:
    assert is_whole_number(value) is number


@dataclasses.dataclass(frozen=True)
class _Own(Controller):
    start: float
    every: int = 2
    flag: bool = True
    words: tuple[str, ...] = ("a",)
    low: "float | None" = None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": math.nan}, r"_Own\(start=nan\): start must be a finite number"),
        ({"start": 0.1, "low": math.inf}, "low must be a finite number"),
        ({"start": 0.1, "every": 2.5}, r"_Own\(every=2\.5\): every must be a whole number"),
    ],
)
def test_a_rule_of_ones_own_has_its_numbers_checked_by_their_annotations(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _Own(**fields)
    assert _Own(0.1, flag=False, words=("b", "c")).flag is False
    assert _Own(0.1, every=3.0).every == 3  # type: ignore[arg-type]


def test_arrays_are_numbers_of_controllers_alone() -> None:
    @dataclasses.dataclass
    class Rule:
        share: "float | np.ndarray"

    with pytest.raises(ValueError, match=r"Rule\(share=array\(.*\)\): share must be a finite number"):
        check_numbers(Rule(np.array([0.5])))
    check_numbers(Rule(np.array([0.5, 1.0])), arrays=True)
    with pytest.raises(ValueError, match="share must be a finite number"):
        check_numbers(Rule(np.array([0.5, math.inf])), arrays=True)


def test_which_fields_are_for_numbers() -> None:
    numeric = {field.name for field in dataclasses.fields(_Own) if is_for_numbers(field)}
    assert numeric == {"start", "every", "low"}


@pytest.mark.parametrize("rule", [Schedule(1.0, 0.0, 5), Switch(0.5, 0.6, steps=3)], ids=repr)
def test_numbers_of_steps_are_whole(rule: Any) -> None:
    with pytest.raises(ValueError, match="whole number"):
        dataclasses.replace(rule, steps=2.5)


def test_a_warm_up_is_a_whole_number_of_measurements() -> None:
    with pytest.raises(ValueError, match="warmup_steps must be a whole number"):
        Band(0.1, 0.2, 0.3, 0.1, 0.0, 1.0, warmup_steps=1.5)


# ------------------------------------------------------------------------------------------ coefficients with a meaning


@pytest.mark.parametrize(
    ("rule", "controller"),
    [
        (QuantileBaseline(), Constant(2.0)),  # a quantile: beyond 1 the baseline was NaN
        (ClipCovariance(), Constant(0.0)),  # a share of the tokens
        (ClipCovariance(), Constant(np.array([0.1, 1.5]))),
        (ClipHigher(), Constant(-0.1)),
        (TemperedReinforce(), Constant(0.0)),  # a temperature
        (KLCovariance(), Constant(-1.0)),
        (QuantileBaseline(), Anchored(step_size=0.1, maximum=3.0)),  # the end of its box
        (QuantileBaseline(), Schedule(0.5, 2.0, 10)),  # its end
        (TemperedReinforce(), Switch(0.5, 0.6, below=1.2, inside=1.2)),  # above it, -1
    ],
    ids=str,
)
def test_a_coefficient_without_a_meaning_is_refused(rule: Shaping, controller: Controller) -> None:
    with pytest.raises(ValueError, match=f"{type(rule).__name__} needs coefficients in"):
        rule.check_controller(controller)


def test_every_published_method_has_coefficients_with_a_meaning() -> None:
    for one in METHODS.values():
        one.shaping.check_controller(one.controller)
    Shaping().check_controller(Dual(1.0, 0.1, 0.1, 1e-3, 1.0))
