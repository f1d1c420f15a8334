"""Metrics from sums, and warnings that come when they should and only then."""

import math

import pytest
import torch

from aent.controllers import Band, Constant
from aent.entropy import Full, TopK
from aent_llm.training.diagnostics import SUMS, Alarms, band, metrics, token_sums

CONTROLLER = Band(initial=0.1, low=0.2, high=0.4, step_size=0.1, minimum=0.01, maximum=1.0)


def head(B=3, T=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = ("entropy", "clamped_entropy", "dropped_mass", "kept", "log_probs", "full_grad_sq", "clamped_grad_sq")
    return {name: torch.rand(B, T, generator=generator) for name in (*names, "grad_dot")}


def test_sums_count_masked_tokens_only_and_add_up() -> None:
    whole = head()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    correct = torch.tensor([True, False, True])
    sums = dict(zip(SUMS, token_sums(whole, mask, correct).tolist(), strict=True))
    assert sums["tokens"] == 6
    assert sums["correct_tokens"] == 2
    assert sums["full"] == pytest.approx(float((whole["entropy"] * mask).sum()))
    assert sums["correct"] == pytest.approx(float(whole["entropy"][0, :2].sum()))
    parts = sum(
        token_sums({k: v[i : i + 1] for k, v in whole.items()}, mask[i : i + 1], correct[i : i + 1]) for i in range(3)
    )
    assert parts.tolist() == pytest.approx(list(sums.values()))


def test_what_was_not_measured_is_not_reported() -> None:
    sparse = {name: value for name, value in head().items() if not name.endswith(("_sq", "_dot"))}
    found = metrics(
        token_sums(sparse, torch.ones(3, 4)).tolist(), coefficient=0.1, policy_sq=math.nan, bounds=(0.1, 0.9)
    )
    assert not {"entropy/grad_cosine", "entropy/bonus_grad_share", "entropy/correct"} & set(found)
    assert {"entropy/full", "entropy/clamped", "entropy/coef", "entropy/in_band"} <= set(found)


def test_the_band_of_a_rule() -> None:
    assert band(CONTROLLER) == (0.2, 0.4)
    assert band(Constant(0.1)) is None


def step(**values):
    found = {"full": 1.0, "clamped": 0.3, "coef": 0.1, "kept": 64.0, "dropped_mass": 0.01, "grad_cosine": 0.5}
    return {f"entropy/{name}": value for name, value in {**found, **values}.items()}


@pytest.mark.parametrize(
    ("controller", "support", "steps", "text"),
    [
        (CONTROLLER, TopK(64), [step(), step(full=0.04)], "entropy collapsed"),
        (CONTROLLER, TopK(64), [step(), step(full=3.5)], "entropy explodes"),
        (CONTROLLER, TopK(64), [step(coef=1.0, clamped=0.1)] * 20, "at the end 1 of its box"),
        (CONTROLLER, TopK(64), [step(coef=0.01, clamped=0.5)] * 20, "at the end 0.01 of its box"),
        (CONTROLLER, TopK(64), [step(kept=1.1)], "no policy can reach it"),
        (Constant(0.1), TopK(64), [step(grad_cosine=0.99999)] * 20, "the clamp has had no effect"),
    ],
)
def test_every_alarm_comes_once(controller, support, steps, text) -> None:
    alarms = Alarms(controller, support)
    given = [warning for one in steps for warning in alarms.check(one)]
    assert len(given) == 1
    assert text in given[0]
    assert alarms.check(steps[-1]) == []


def test_a_healthy_run_is_left_in_peace() -> None:
    alarms = Alarms(CONTROLLER, TopK(64))
    assert [alarms.check(step(full=1.0 - 0.02 * i, coef=0.1 + 0.001 * i)) for i in range(40)] == [[]] * 40
    full = Alarms(Constant(0.0), Full())  # nothing is clamped and nothing moves: neither is a reason to warn
    assert [full.check(step(grad_cosine=1.0, coef=0.0)) for _ in range(40)] == [[]] * 40


@pytest.mark.parametrize("values", [(1.0, 0.3), (0.01, 0.3), (1.0, 0.5), (0.01, 0.1)])
def test_an_end_of_the_box_is_no_alarm_while_the_band_does_not_ask_for_more(values) -> None:
    coefficient, clamped = values
    alarms = Alarms(CONTROLLER, TopK(64))
    assert [alarms.check(step(coef=coefficient, clamped=clamped)) for _ in range(40)] == [[]] * 40


def test_alarms_are_remembered_over_a_checkpoint() -> None:
    one, other = Alarms(CONTROLLER, TopK(64)), Alarms(CONTROLLER, TopK(64))
    one.check(step())
    assert one.check(step(full=0.01))
    other.restore(one.state())
    assert other.check(step(full=0.01)) == []
