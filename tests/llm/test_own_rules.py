"""A user's own rules inside the trainer: what it asks of them besides training (tests/test_own_parts.py trains)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import small
from aent.cli import UsersCodeError
from aent.controllers import Controller, State
from aent.entropy import Full, Support, TopK, Tsallis, entropy
from aent_llm.head.fused import fused_entropy_head
from aent_llm.measure.calibrate import label
from aent_llm.training.diagnostics import Alarms, band


@dataclass(frozen=True)
class AboveMean:
    """Keeps what is above the mean logit, and answers with true and false."""

    def weights(self, logits: Any) -> Any:
        return logits >= logits.mean(-1)[..., None]


@dataclass(frozen=True)
class OnlyNumpy:
    """Works on the toys and on no tensor."""

    def weights(self, logits: Any) -> Any:
        return np.where(logits > np.max(logits), 1.0, 0.5)


@dataclass(frozen=True)
class TooHeavy:
    def weights(self, logits: Any) -> Any:
        return 2 * torch.ones_like(logits)


@dataclass(frozen=True)
class _Lower(Controller):
    """A floor and no ceiling."""

    low: float = 0.5
    minimum: str = "none"

    def init(self) -> State:
        return State(0.1)

    def _rule(self, state: State, measured: Any) -> tuple[Any, Any]:
        return state.coefficient, None


def test_the_head_takes_true_and_false_for_weights() -> None:
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, dtype=torch.float64, generator=g) for shape in ((5, 3), (40, 3)))
    hidden.requires_grad_(True)
    out = fused_entropy_head(hidden, weight, None, torch.zeros(5, dtype=torch.long), support=AboveMean())
    logits = hidden @ weight.t()
    expected = entropy(logits, support=AboveMean())
    torch.testing.assert_close(out.clamped_entropy, expected)
    assert 1 < float(out.kept.min()) <= float(out.kept.max()) < 40  # type: ignore[union-attr]
    ours, theirs = (torch.autograd.grad(value.sum(), hidden)[0] for value in (out.clamped_entropy, expected))  # type: ignore[union-attr]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (OnlyNumpy(), r"OnlyNumpy\(\): weights\(logits\) failed on a torch tensor .*array_namespace"),
        (TooHeavy(), r"TooHeavy\(\): expected weights in \[0, 1\]"),
    ],
)
def test_a_rule_that_gives_no_weights_is_refused_before_training(rule: Support, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        small.trainer(tmp_path, entropy_support=rule)


def test_a_controller_without_a_whole_band_has_none() -> None:
    assert band(_Lower()) is None
    numbers = {"entropy/full": 1.0, "entropy/clamped": 0.1, "entropy/coef": 0.1, "entropy/kept": 9.0}
    alarms = Alarms(_Lower(), Full())
    for _ in range(2 * Alarms.PATIENCE):
        assert alarms.check(numbers) == []


def test_a_calibration_calls_every_rule_by_its_name() -> None:
    rules = (Full(), TopK(9), Tsallis(), AboveMean())
    assert [label(rule) for rule in rules] == ["full", "top-k 9", "Tsallis()", "AboveMean()"]


def test_a_coefficient_or_a_memory_that_is_no_number_stops_the_controller() -> None:
    @dataclass(frozen=True)
    class _Broken(_Lower):
        def _rule(self, state: State, measured: Any) -> tuple[Any, Any]:
            return state.coefficient / 0.0 if measured < 0 else float("nan"), None

    class _Keeps(_Lower):
        def _rule(self, state: State, measured: Any) -> tuple[Any, Any]:
            return state.coefficient, {"mean": measured}

    with pytest.raises(ValueError, match=r"memory must be None, a number or an array, got \{'mean'"):
        _Keeps().update(State(0.1), 0.5)
    with pytest.raises(ValueError, match=r"_Broken\(.*answered a measurement of 0\.5 nats with the coefficient nan"):
        _Broken().update(State(0.1), 0.5)


@dataclass(frozen=True)
class _Late(Controller):
    """Answers what it is tried with before training (log 61 = 4.11 nats, half of it, 0), and nothing else."""

    def init(self) -> State:
        return State(0.1)

    def _rule(self, state: State, measured: Any) -> tuple[Any, Any]:
        return {4.11: 0.1, 2.06: 0.1, 0.0: 0.1}[round(float(measured), 2)], None


def test_a_controller_that_fails_while_training_is_named_with_its_step(tmp_path: Path) -> None:
    one = small.trainer(tmp_path, entropy_controller=_Late(), max_steps=2)
    with pytest.raises(UsersCodeError, match=r"^step 1: the controller _Late \(.*, line \d+\) raised KeyError: 2"):
        one.train()
    assert one.state.global_step == 0
