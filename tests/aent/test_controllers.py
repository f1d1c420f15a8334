"""Controllers: published numbers, purity and JSON, closed loops on simulated plants, stability limits on both sides."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aent.controllers import (
    Anchored,
    Band,
    BangBang,
    Constant,
    Controller,
    Doubling,
    Dual,
    ProportionalIntegral,
    Schedule,
    Spring,
    State,
    Switch,
    controller_from_dict,
)

# The two published settings: Qwen2.5-Math-1.5B on MATH, and DeepSeek-R1-Distill-Qwen-1.5B.
MATH = Band(initial=0.002, low=0.15, high=0.24, step_size=0.002, minimum=6e-4, maximum=9e-3)
DISTILL = Band(initial=3e-4, low=0.35, high=0.62, step_size=1e-4, minimum=4e-5, maximum=1e-3)

# One of each, all able to hold an entropy of about 0.5 nats on PLANT.
CLOSED_LOOP = [
    Band(initial=0.0, low=0.45, high=0.55, step_size=0.1, minimum=0.0, maximum=1.0),
    BangBang(target=0.5, step_size=0.01, maximum=1.0),
    Anchored(step_size=0.1, maximum=1.0, ratio=0.5, initial=0.8),  # first measurement 1.0
    ProportionalIntegral(target=0.5, proportional=0.1, integral=0.1),
    Dual(target=0.5, step_size=1.0, initial=0.05, minimum=1e-3, maximum=1.0),
]
# Those that hold no target of their own, or by switching only.
SWITCH, MOVING = Switch(0.6, 0.7), Switch(0.6, 0.7, low_end=0.4, high_end=0.5, steps=4)
OTHERS = [Spring(0.1), Doubling(), SWITCH, MOVING]
EVERY = [Constant(0.3), Schedule(1.0, 0.1, 7), Schedule(0.0, 1.0, 5, "cosine"), MATH, *CLOSED_LOOP, *OTHERS]
BASE, GAIN = 0.2, 1.0  # H = BASE + GAIN * c; 0.5 nats needs c = 0.3


def name(rule):
    return type(rule).__name__


def closed_loop(rule, steps, *, base: Any = BASE, gain=GAIN, delay=0, lag=0.0, noise=0.0, rng: Any = None, state=None):
    """H_{k+1} = lag H_k + (1 - lag)(base_k + gain c_{k-delay}) + noise; returns coefficients, entropies, last state."""
    state = rule.init() if state is None else state
    coefficients, entropies, bases = [state.coefficient] * (delay + 1), [], np.broadcast_to(base, steps)
    level = bases[0] + gain * state.coefficient
    for k in range(steps):
        level = lag * level + (1 - lag) * (bases[k] + gain * coefficients[-1 - delay])
        measured = max(0.0, level + (noise * rng.normal() if noise else 0.0))
        state = rule.update(state, measured)
        entropies.append(measured)
        coefficients.append(state.coefficient)
    return np.array(coefficients), np.array(entropies), state


def held(rule, entropies):
    """Largest distance from the band or target."""
    low = getattr(rule, "low", 0.5)
    high = getattr(rule, "high", 0.5)
    return np.maximum(np.maximum(low - entropies, entropies - high), 0).max()


# --------------------------------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(
    ("rule", "measured", "expected"),
    [
        *((MATH, *pair) for pair in [(0.0, 0.0023), (0.05, 0.0022), (0.15, 0.002), (0.2, 0.002), (0.24, 0.002)]),
        *((MATH, *pair) for pair in [(0.5, 0.00148), (1.0, 0.0006)]),
        *((DISTILL, *pair) for pair in [(0.0, 3.35e-4), (0.35, 3e-4), (0.62, 3e-4), (1.0, 2.62e-4), (4.0, 4e-5)]),
    ],
)
def test_band_moves_as_published(rule, measured, expected):
    assert rule.update(rule.init(), measured).coefficient == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("rule", "steps", "warmup"), [(MATH, 24, 30), (DISTILL, 21, 156), (MATH, 24, 0)])
def test_band_reaches_its_cap_from_collapse_in_the_published_number_of_steps(rule, steps, warmup):
    rule = dataclasses.replace(rule, warmup_steps=warmup)
    state, seen = rule.init(), []
    for _ in range(warmup + steps):
        state = rule.update(state, 0.0)
        seen.append(state.coefficient)
    assert seen[:warmup] == [rule.initial] * warmup
    assert rule.maximum not in seen[:-1]
    assert seen[-1] == rule.maximum


def test_bang_bang_by_hand():
    rule, state, seen = BangBang(), State(0.0, memory=0.0), []
    for measured in (0.1, 0.1, 0.2, 0.3, 0.3, 0.1):  # at the target counts as reached
        state = rule.update(state, measured)
        seen.append((round(state.memory, 7), round(state.coefficient, 7)))
    assert seen == [(1e-4, 1e-4), (2e-4, 2e-4), (1e-4, 0.0), (0.0, 0.0), (0.0, 0.0), (1e-4, 1e-4)]


def test_proportional_integral_by_hand():
    rule = ProportionalIntegral(target=0.1, proportional=1.0, integral=0.01)
    state = rule.update(rule.init(), 0.3)  # e = -0.2, S = -0.2
    assert (state.coefficient, state.memory) == pytest.approx((-0.2 - 0.002, -0.2))
    state = rule.update(state, 0.0)  # e = 0.1, S = -0.1
    assert (state.coefficient, state.memory) == pytest.approx((0.1 - 0.001, -0.1))
    assert ProportionalIntegral(initial=0.2).init().memory == pytest.approx(20)  # starts where the integral holds 0.2


@pytest.mark.parametrize("sign", [1, -1])
def test_an_output_just_at_its_box_winds_nothing_up(sign):
    """c = S = the end of the box is reached and not exceeded, so S is kept; half a nat more would be cut off."""
    rule = ProportionalIntegral(target=2.0, proportional=0.0, integral=1.0, minimum=-1.0, maximum=1.0)
    at = rule.update(rule.init(), 2.0 - sign)
    assert (at.coefficient, at.memory) == (sign, sign)
    beyond = rule.update(at, 2.0 - sign / 2)
    assert (beyond.coefficient, beyond.memory) == (sign, sign)


def test_a_rule_without_a_start_or_a_formula_says_so():
    for call in (Controller().init, lambda: Controller().update(State(0.1), 0.5)):
        with pytest.raises(NotImplementedError):
            call()


def test_anchored_dual_and_schedules_by_hand():
    anchored = Anchored(step_size=0.5, maximum=1.0, ratio=0.4, initial=0.5)
    state = anchored.update(anchored.init(), 2.0)
    assert (state.coefficient, state.memory) == (0.0, 2.0)  # 0.5 + 0.5 (0.8 - 2) is below the box
    assert anchored.update(state, 0.6).coefficient == pytest.approx(0.1)
    dual = Dual(target=0.5, step_size=2.0, initial=0.1, minimum=0.01, maximum=1.0)
    assert dual.update(dual.init(), 0.2).coefficient == pytest.approx(0.1 * math.exp(0.6))
    for shape, middle in (("linear", 0.75), ("cosine", 0.5 + 0.5 * (1 + math.sqrt(0.5)) / 2)):
        coefficients, _, _ = closed_loop(Schedule(1.0, 0.5, 4, shape), 6)
        assert coefficients[0] == 1.0
        assert coefficients[2 if shape == "linear" else 1] == pytest.approx(middle)
        np.testing.assert_array_equal(coefficients[4:], 0.5)


def test_defaults_are_the_published_numbers():
    """arXiv 2505.22312, 2510.10959, 2511.15248, 2509.25133 and 2604.26326; a constant given no number is no bonus."""
    assert dataclasses.astuple(Constant()) == (0.0,)
    assert dataclasses.astuple(BangBang()) == (0.2, 1e-4, 0.0, 0.0, 0.005)  # target, step, start, box
    assert (Anchored(1.0, 1.0).ratio, Anchored(1.0, 1.0).initial) == (0.4, 0.0)
    assert dataclasses.astuple(ProportionalIntegral()) == (
        0.1,
        1.0,
        0.01,
        0.0,
        -1.0,
        1.0,
    )  # target, K_p, K_i, start, box
    assert dataclasses.astuple(Spring()) == (0.005,)
    assert (SWITCH.below, SWITCH.inside, SWITCH.above) == (1, 0, -1)


def coefficients_of(rule, measured):
    state, seen = rule.init(), []
    for value in measured:
        state = rule.update(state, value)
        seen.append(state.coefficient)
    return seen


def test_spring_by_hand():
    """2 * .005 (H_0 - H), H_0 = .5: nothing at the anchor, a bonus below it, a penalty above."""
    assert Spring().init() == State(0.0)
    assert coefficients_of(Spring(), [0.5, 0.3, 0.5, 0.9]) == pytest.approx([0, 0.002, 0, -0.004])


def test_doubling_by_hand():
    """.1 stays at the first measurement; .2, .4; at the anchor counts as not below: .2, .1; the box stops it."""
    assert coefficients_of(Doubling(), [0.5, 0.3, 0.3, 0.5, 0.7]) == pytest.approx([0.1, 0.2, 0.4, 0.2, 0.1])
    assert coefficients_of(Doubling(), [0.5] + 5 * [0.1])[-1] == 1.0
    assert coefficients_of(Doubling(), [0.5] + 9 * [0.9])[-1] == 1e-3


def test_switch_by_hand():
    """Entrocraft: an end of the band is inside. AEPO: 1.2 up to the target, .8 above it."""
    assert coefficients_of(SWITCH, [0.59, 0.6, 0.65, 0.7, 0.71]) == [1, 0, 0, 0, -1]
    aepo = Switch(0.75, 0.75, below=1.2, inside=1.2, above=0.8)
    assert aepo.init().coefficient == 1.2
    assert coefficients_of(aepo, [0.1, 0.75, 0.76]) == [1.2, 1.2, 0.8]


def test_switch_moves_its_band_linearly_and_then_rests():
    """A quarter of the way each update: .6, .55, .5, .45, .4 below and .7, .65, .6, .55, .5 above."""
    bands = [MOVING.band(step) for step in (0, 1, 2, 3, 4, 99)]
    expected = [(0.6, 0.7), (0.55, 0.65), (0.5, 0.6), (0.45, 0.55), (0.4, 0.5), (0.4, 0.5)]
    np.testing.assert_allclose(bands, expected)
    assert coefficients_of(MOVING, [0.66, 0.66, 0.52, 0.52, 0.52, 0.39, 0.45]) == [0, -1, 0, 0, -1, 1, 0]
    assert coefficients_of(SWITCH, [0.66] * 7) == [0] * 7  # control: this one rests
    assert SWITCH.band(0) == SWITCH.band(50) == (0.6, 0.7)


# ----------------------------------------------------------------------------------------------- purity, JSON, arrays


@pytest.mark.parametrize("rule", EVERY, ids=name)
def test_update_is_pure_and_resuming_from_json_goes_on_to_the_same_numbers(rule):
    measured = np.random.default_rng(0).uniform(0, 1, size=30)
    state = rule.init()
    for value in measured[:15]:
        state = rule.update(state, value)
    before = json.dumps(state.to_dict())
    loaded_rule = controller_from_dict(json.loads(json.dumps(rule.to_dict())))
    loaded = State.from_dict(json.loads(before))
    assert (loaded_rule, loaded) == (rule, state)
    for value in measured[15:]:
        assert rule.update(state, value) == rule.update(state, value)
        state, loaded = rule.update(state, value), loaded_rule.update(loaded, value)
    assert loaded == state
    assert state.step == 30
    for kind in (state.coefficient, state.memory):
        assert kind is None or type(kind) is float


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=50)
@given(st.lists(FINITE, min_size=1, max_size=4), st.integers(0, 10**9))
def test_json_round_trip_is_exact_also_for_arrays(values, step):
    for original in (State(values[0], step, values[-1]), State(np.array(values), step, np.array(values)[::-1])):
        loaded = State.from_dict(json.loads(json.dumps(original.to_dict())))
        np.testing.assert_array_equal(loaded.coefficient, original.coefficient)
        np.testing.assert_array_equal(loaded.memory, original.memory)
        assert loaded.step == step
    for rule in (Constant(values[0]), Constant(np.array(values))):
        loaded: Any = controller_from_dict(json.loads(json.dumps(rule.to_dict())))
        np.testing.assert_array_equal(loaded.coefficient, rule.coefficient)


ENTRIES = 4
KEPT = (str, type(None))  # settings that are no numbers


def varied(rule, rng):
    """The same rule with every number replaced by an array of nearby numbers, and its entries one by one."""
    whole = {}
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        if field.name in ("steps", "warmup_steps"):
            whole[field.name] = value + np.arange(ENTRIES)
        else:
            whole[field.name] = value if isinstance(value, KEPT) else value * rng.uniform(0.9, 1.0, ENTRIES)
    if "initial" in whole and "minimum" in whole:
        whole["initial"] = np.clip(whole["initial"], whole["minimum"], whole["maximum"])
    entries = [{k: v if isinstance(v, KEPT) else float(v[i]) for k, v in whole.items()} for i in range(ENTRIES)]
    return type(rule)(**whole), [type(rule)(**entry) for entry in entries]


@pytest.mark.parametrize("rule", [*EVERY, dataclasses.replace(MATH, warmup_steps=3)], ids=name)
def test_an_array_of_settings_is_a_loop_over_its_entries(rule):
    rng = np.random.default_rng(1)
    together, one_by_one = varied(rule, rng)
    state, states = together.init(), [single.init() for single in one_by_one]
    for measured in rng.uniform(0, 1, size=(25, ENTRIES)):
        state = State.from_dict(json.loads(json.dumps(together.update(state, measured).to_dict())))
        states = [r.update(s, float(h)) for r, s, h in zip(one_by_one, states, measured, strict=True)]
        np.testing.assert_array_equal(state.coefficient, [s.coefficient for s in states])
        if states[0].memory is not None:
            np.testing.assert_array_equal(state.memory, [s.memory for s in states])


def test_a_scalar_setting_serves_many_runs():
    state = MATH.update(MATH.init(), np.array([0.0, 0.2, 1.0]))
    np.testing.assert_allclose(state.coefficient, [0.0023, 0.002, 0.0006])


def test_the_three_values_of_a_switch_may_differ_between_runs():
    rule = Switch(0.6, 0.7, below=np.array([1.0, 2.0]), inside=np.array([0.0, 0.5]), above=-1.0)
    np.testing.assert_array_equal(rule.init().coefficient, [0, 0.5])
    np.testing.assert_array_equal(rule.update(rule.init(), np.array([0.1, 0.1])).coefficient, [1, 2])
    loaded = controller_from_dict(json.loads(json.dumps(rule.to_dict())))
    np.testing.assert_array_equal(loaded.update(loaded.init(), np.array([0.65, 0.9])).coefficient, [0, -1])


# -------------------------------------------------------------------------------------------------------- closed loops


@pytest.mark.parametrize("rule", CLOSED_LOOP, ids=name)
@pytest.mark.parametrize(
    "plant",
    [{}, {"delay": 2}, {"lag": 0.8}, {"noise": 0.01}, {"delay": 1, "lag": 0.5, "noise": 0.01}],
    ids=["static", "delay", "lag", "noise", "all"],
)
def test_reaches_its_band_or_target_and_stays_in_its_box(rule, plant):
    coefficients, entropies, state = closed_loop(rule, 600, rng=np.random.default_rng(2), **plant)
    boxed = coefficients if not isinstance(rule, BangBang) else np.array([state.memory])
    assert ((boxed >= rule.minimum) & (boxed <= rule.maximum)).all()
    if isinstance(rule, BangBang):  # a gated bonus has no rest: it swings around the target
        assert entropies[-50:].min() < 0.5 <= entropies[-50:].max() < 0.7
        return
    assert held(rule, entropies[-50:]) <= (0.01 if "noise" not in plant else 0.06)


@pytest.mark.parametrize("rule", CLOSED_LOOP, ids=name)
@pytest.mark.parametrize(("base", "end"), [(0.0, "maximum"), (2.0, "minimum")], ids=["too low", "too high"])
def test_an_unreachable_target_ends_at_the_box_and_comes_back(rule, base, end):
    gain = 0.1 if end == "maximum" else GAIN
    # Anchored sets its target at the first measurement: let it, then make the target unreachable.
    state = rule.update(rule.init(), 1.0) if isinstance(rule, Anchored) else rule.init()
    _, _, state = closed_loop(rule, 1000, base=base, gain=gain, state=state)
    alpha = state.memory if isinstance(rule, BangBang) else state.coefficient
    assert alpha == pytest.approx(getattr(rule, end), abs=1e-12)
    _, entropies, state = closed_loop(rule, 300, state=state)
    if not isinstance(rule, BangBang):
        assert held(rule, entropies[-50:]) < 0.02
    elif end == "minimum":
        assert 0.5 <= entropies[-50:].max() < 0.511
    else:  # documented: nothing brings down an alpha that is more than enough
        assert sorted({*entropies[-50:]}) == pytest.approx([BASE, BASE + GAIN * rule.maximum])


@pytest.mark.parametrize("rule", CLOSED_LOOP, ids=name)
def test_a_coefficient_of_zero_is_not_the_end(rule):
    """The published pitfall: entropy is only measured while the coefficient is not zero. Here it always comes back."""
    state = rule.update(rule.init(), 1.0)  # also sets Anchored's target
    for _ in range(500):
        state = rule.update(state, 10.0)
    assert state.coefficient <= max(rule.minimum, 0.0)
    for _ in range(500):
        state = rule.update(state, 0.0)
    assert state.coefficient == pytest.approx(rule.maximum, rel=0.2)


class _WithoutAntiWindup(ProportionalIntegral):
    def _rule(self, state, measured):
        coefficient, _ = super()._rule(state, measured)
        return coefficient, state.memory + self.target - measured


def recovery_steps(rule):
    """Steps to get within 0.02 nats of the target once a long unreachable phase ends."""
    _, _, saturated = closed_loop(rule, 2000, base=0.0, gain=0.1)
    _, entropies, _ = closed_loop(rule, 1500, state=saturated)
    return int(np.argmax(np.abs(entropies - rule.target) < 0.02))


def test_anti_windup_recovers_at_once_and_without_it_does_not():
    settings_ = {"target": 0.5, "proportional": 0.1, "integral": 0.1}
    assert recovery_steps(ProportionalIntegral(**settings_)) < 60
    assert recovery_steps(_WithoutAntiWindup(**settings_)) > 500


# ---------------------------------------------------------------------------------------------------- stability limits


WIDE = {"minimum": -9.0, "maximum": 9.0}
JUST = 0.02  # relative distance from a limit, on both sides


@pytest.mark.parametrize("gain", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(
    ("plant", "limit"),
    [({}, 2.0), ({"delay": 1}, 1.0), ({"lag": 0.5}, 2 * 1.5 / 0.5), ({"lag": 0.9}, 2 * 1.9 / 0.1)],
    ids=["static", "delayed", "slow", "very slow"],
)
def test_limit_of_integrating_rules(gain, plant, limit):
    def anchored(loop_gain):
        rule = Anchored(step_size=loop_gain / gain, ratio=1.0, initial=0.0, **WIDE)
        first = dataclasses.replace(rule.init(), memory=10.0)  # target 10, reached at c = 0
        coefficients, _, _ = closed_loop(
            rule, 1500, base=10.0, gain=gain, state=dataclasses.replace(first, coefficient=1e-3), **plant
        )
        return np.abs(coefficients[-20:]).max()

    assert anchored(limit * (1 - JUST)) < 1e-4
    assert anchored(limit * (1 + JUST)) > 0.1


@pytest.mark.parametrize(
    ("plant", "limit"),
    [({}, 1.0), ({"delay": 1}, 0.25), ({"lag": 0.25}, 0.5 / 1.5), ({"lag": 0.81}, 0.1 / 1.9)],
    ids=["static", "delayed", "lag .25", "lag .81"],
)
def test_limit_of_no_overshoot(plant, limit):
    def overshoot(loop_gain):
        rule = Anchored(step_size=loop_gain, ratio=1.0, **WIDE)
        start = State(-1.0, memory=10.0)  # far below the target
        coefficients, _, _ = closed_loop(rule, 500, base=10.0, state=start, **plant)
        return coefficients.max()

    assert overshoot(limit * (1 - JUST)) < 1e-12
    assert overshoot(limit * 1.3) > 1e-6


BAND = {"initial": 0.0, "minimum": 0.0, "maximum": 1e6}


def band_from_a_miss(miss, width, loop_gain):
    """Coefficients of a band [low, low + width] on H = c, started ``miss`` nats below it."""
    low = 1000.0
    rule = Band(**{**BAND, "initial": low - miss}, low=low, high=low + width, step_size=loop_gain)
    coefficients, _, _ = closed_loop(rule, 200, base=0.0)
    return coefficients - low


def test_band_does_not_overshoot_up_to_a_loop_gain_of_one():
    assert band_from_a_miss(1.0, 0.1, 1.0 - JUST).max() <= 1e-12
    assert band_from_a_miss(1.0, 0.1, 1.0 + JUST).max() == pytest.approx(JUST)


def test_band_is_jumped_over_exactly_when_the_overshoot_exceeds_its_width():
    miss, loop_gain = 1.0, 1.5
    assert band_from_a_miss(miss, 0.5 + 1e-6, loop_gain)[1:].max() == pytest.approx(0.5)  # lands inside, rests
    assert np.ptp(band_from_a_miss(miss, 0.5 + 1e-6, loop_gain)[1:]) == 0
    assert np.ptp(band_from_a_miss(miss, 0.5 - 1e-6, loop_gain)[1:]) > 0  # above it: has to come back


def test_band_at_a_loop_gain_of_two_settles_only_because_it_has_a_width():
    assert np.ptp(band_from_a_miss(1.0, 0.01, 2.0)[-20:]) == 0
    assert np.ptp(band_from_a_miss(1.0, 0.0, 2.0)[-20:]) == pytest.approx(2.0)


def test_band_above_a_loop_gain_of_two_settles_only_from_small_misses():
    width, loop_gain = 0.5, 2.5
    limit = width / (loop_gain - 2)  # 1 nat
    assert np.ptp(band_from_a_miss(limit * (1 - JUST), width, loop_gain)[-20:]) == 0
    assert np.ptp(band_from_a_miss(limit * (1 + JUST), width, loop_gain)[-20:]) > 100


@pytest.mark.parametrize("gain", [0.5, 2.0])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0, 5.0, math.inf], ids=lambda r: f"integral {r} x proportional")
def test_limit_of_proportional_integral(gain, ratio):
    """z^2 - (1 - g(P + I)) z - g P has both roots inside the circle when g (P + I/2) < 1; without I when g P < 1."""

    def rest(loop_gain):
        total = loop_gain / gain  # P + I / 2
        proportional = 0.0 if ratio == math.inf else total / (1 + ratio / 2)
        integral = 2 * (total - proportional)
        rule = ProportionalIntegral(
            target=10.1, proportional=proportional, integral=0.0 if ratio == 0 else integral, **WIDE
        )
        coefficients, entropies, _ = closed_loop(rule, 1500, base=10.0, gain=gain)
        return np.ptp(coefficients[-20:]), 10.1 - entropies[-1], proportional

    ripple, offset, proportional = rest(1 - JUST)
    assert ripple < 1e-6
    assert offset == pytest.approx(0.1 / (1 + gain * proportional) if ratio == 0 else 0, abs=1e-6)
    ripple, _, _ = rest(1 + JUST)
    assert ripple > 0.5


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_limit_of_dual(gain):
    def ripple(loop_gain, target):
        step_size = loop_gain / (target - 0.2)  # step_size * gain * c = step_size * (target - H_0)
        rule = Dual(target=target, step_size=step_size, initial=0.9 * (target - 0.2) / gain, minimum=1e-9, maximum=1e3)
        coefficients, entropies, _ = closed_loop(rule, 1500, gain=gain)
        return np.ptp(coefficients[-20:]), entropies[-1]

    for target in (0.5, 3.0):
        still, entropy = ripple(2 * (1 - JUST), target)
        assert still < 1e-6
        assert entropy == pytest.approx(target, abs=1e-6)
        assert ripple(2 * (1 + JUST), target)[0] > 0.1 * (target - 0.2) / gain


def test_cycle_of_bang_bang_swings_between_no_bonus_and_just_above_the_target():
    rule = BangBang(target=0.503, step_size=0.01, maximum=1.0)
    _, entropies, _ = closed_loop(rule, 500)
    low, high = sorted({round(value, 9) for value in entropies[-40:]})
    assert low == BASE
    assert 0.503 <= high < 0.503 + rule.step_size * GAIN


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_limit_and_offset_of_spring(gain):
    """c' = 2 s (H_0 - H_rest - gain c): slope -2 s gain; at rest H - H_0 = (H_rest - H_0) / (1 + 2 s gain)."""

    def rest(loop_gain):
        rule = Spring(loop_gain / (2 * gain))
        coefficients, entropies, _ = closed_loop(rule, 1500, base=10.0, gain=gain, state=State(0.0, memory=10.4))
        return np.ptp(coefficients[-20:]), entropies[-1] - 10.4

    for loop_gain in (0.1, 0.5, 1 - JUST):
        ripple, offset = rest(loop_gain)
        assert ripple < 1e-6
        assert offset == pytest.approx(-0.4 / (1 + loop_gain), abs=1e-6)
    assert rest(1 + JUST)[0] > 0.4


def test_spring_rests_at_its_anchor_only_if_the_policy_does():
    coefficients, entropies, _ = closed_loop(Spring(0.1), 50)
    assert (coefficients == 0).all()
    assert (entropies == BASE).all()
    _, entropies, _ = closed_loop(Spring(0.1), 50, base=np.repeat([1.0, 0.2], [10, 40]))
    assert entropies[-1] == pytest.approx(1 - 0.8 / 1.2)


@pytest.mark.parametrize("anchor", [0.25, 0.5, 0.93])
def test_doubling_alternates_around_its_anchor_by_a_factor_of_two(anchor):
    coefficients, entropies, _ = closed_loop(Doubling(), 60, state=State(0.1, memory=anchor))
    low, high = sorted({*coefficients[-20:]})
    assert high == pytest.approx(2 * low)
    assert entropies[-20:].min() < anchor <= entropies[-20:].max()


def test_doubling_out_of_reach_rests_at_its_box_and_comes_back():
    for base, gain, end in ((0.0, 0.1, 1.0), (2.0, 1.0, 1e-3)):
        coefficients, _, state = closed_loop(Doubling(), 40, base=base, gain=gain, state=State(0.1, memory=0.5))
        assert set(coefficients[-20:]) == {end}
        _, entropies, _ = closed_loop(Doubling(), 40, state=state)
        assert entropies[-10:].min() < 0.5 <= entropies[-10:].max()


@pytest.mark.parametrize(
    ("base", "gain", "end"),
    [
        (0.65, 0.1, [0.65]),  # rests inside
        (0.5, 0.15, [0.5, 0.65]),  # alternates around the lower end
        (0.8, 0.15, [0.65, 0.8]),  # around the upper one
        (0.5, 0.3, [0.2, 0.8]),  # a strong push crosses the whole band
        (0.2, 0.3, [0.5]),  # out of reach: pushes for good
    ],
)
def test_cycles_of_a_switch(base, gain, end):
    coefficients, entropies, state = closed_loop(SWITCH, 40, base=base, gain=gain)
    assert sorted({round(value, 9) for value in entropies[-10:]}) == end
    assert set(coefficients) <= {-1, 0, 1}
    _, entropies, _ = closed_loop(SWITCH, 5, base=0.65, gain=0.01, state=state)
    np.testing.assert_allclose(entropies[-3:], 0.65)  # once the policy rests inside, so does the rule


# -------------------------------------------------------------------------------------------------------------- errors


BOX = {"minimum": 0.1, "maximum": 1.0}


@pytest.mark.parametrize(
    ("rule", "fields", "message"),
    [
        (Band, {**dataclasses.asdict(MATH), "low": 0.3}, "low <= high"),
        (Band, {**dataclasses.asdict(MATH), "low": -0.1}, "0 <= low"),
        (Band, {**dataclasses.asdict(MATH), "minimum": -1.0}, "never becomes a penalty"),
        (Band, {**dataclasses.asdict(MATH), "step_size": 0.0}, "use Constant"),
        (Band, {**dataclasses.asdict(MATH), "step_size": -1.0}, "gains and step sizes"),
        (Band, {**dataclasses.asdict(MATH), "initial": 1.0}, "widen the box"),
        (Band, {**dataclasses.asdict(MATH), "initial": np.array([0.002, 1.0])}, "widen the box"),
        (Band, {**dataclasses.asdict(MATH), "maximum": 6e-4}, "cannot move"),
        (Band, {**dataclasses.asdict(MATH), "warmup_steps": -1}, "warmup_steps"),
        (Band, {**dataclasses.asdict(MATH), "high": math.inf}, "high must be a finite"),
        (BangBang, {"target": -0.1}, "target must be"),
        (Anchored, {"step_size": 1.0, "maximum": 1.0, "ratio": 0.0}, "ratio must be positive"),
        (ProportionalIntegral, {"target": -1.0}, "target must be"),
        (ProportionalIntegral, {"proportional": 0.0, "integral": 0.0}, "use Constant"),
        (Dual, {"target": 1.0, "step_size": 1.0, "initial": 0.1, "minimum": 0.0, "maximum": 1.0}, "no logarithm"),
        (Dual, {"target": -1.0, "step_size": 1.0, "initial": 0.1, **BOX}, "target must be"),
        (Constant, {"coefficient": math.nan}, "finite"),
        (Schedule, {"initial": 0.0, "final": math.nan, "steps": 2}, "finite"),
        (Schedule, {"initial": 0.0, "final": 1.0, "steps": 0}, "at least 1"),
        (Schedule, {"initial": 0.0, "final": 1.0, "steps": 2, "shape": "square"}, "'cosine'"),
        (Spring, {"strength": 0.0}, r"use Constant\(0\)"),
        (Spring, {"strength": np.array([0.1, math.nan])}, "finite"),
        (Doubling, {"minimum": 0.0}, "doubling 0 leads nowhere"),
        (Doubling, {"initial": 2.0}, "widen the box"),
        (Switch, {"low": 0.7, "high": 0.6}, "low <= high"),
        (Switch, {"low": -0.1, "high": 0.6}, "0 <= low"),
        (Switch, {"low": 0.1, "high": math.nan}, "finite"),
        (Switch, {"low": 0.6, "high": 0.7, "low_end": 0.4}, "together"),
        (Switch, {"low": 0.6, "high": 0.7, "low_end": 0.4, "high_end": math.inf}, "finite"),
        (Switch, {"low": 0.6, "high": 0.7, "low_end": 0.5, "high_end": 0.4}, "low_end <= high_end"),
        (Switch, {"low": 0.6, "high": 0.7, "low_end": -0.5, "high_end": 0.4}, "0 <= low_end"),
        (Switch, {"low": 0.6, "high": 0.7, "steps": 0}, "at least 1"),
        (Switch, {"low": 0.6, "high": 0.7, "below": math.nan}, "finite"),
    ],
)
def test_useless_settings_are_refused(rule, fields, message):
    with pytest.raises(ValueError, match=message):
        rule(**fields)


BOXED = [MATH, *CLOSED_LOOP[1:], Doubling()]


@pytest.mark.parametrize("rule", BOXED, ids=name)
def test_every_boxed_rule_checks_its_box_and_takes_a_start_at_either_end(rule):
    ends = {"minimum": 0.25, "maximum": 0.5}
    for start in ends.values():
        assert dataclasses.replace(rule, **ends, initial=start).init().coefficient == start
    for wrong, message in (
        ({"initial": 0.2}, "widen the box"),
        ({"initial": 0.6}, "widen the box"),
        ({"initial": 0.5, "minimum": 0.5}, "cannot move"),
        ({"initial": math.nan}, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(rule, **{**ends, **wrong})


@pytest.mark.parametrize(
    "rule",
    [
        Band(0.0, low=0.0, high=0.0, step_size=0.1, minimum=0.0, maximum=1.0),
        BangBang(target=0.0),
        Anchored(step_size=0.1, maximum=1.0, ratio=1e-3),
        ProportionalIntegral(target=0.0, proportional=0.0, integral=0.1),
        ProportionalIntegral(target=0.0, proportional=0.1, integral=0.0),
        Dual(target=0.0, step_size=0.1, initial=0.1, minimum=1e-9, maximum=1.0),
        Schedule(1.0, 0.5, 1),
        Spring(1e-3),
        Switch(0.0, 0.0, low_end=0.0, high_end=0.0, steps=1),
    ],
    ids=name,
)
def test_settings_at_the_end_of_their_range_are_accepted(rule):
    assert np.isfinite(rule.update(rule.init(), 0.0).coefficient)


def test_dual_ends_at_its_box_after_a_miss_of_any_size():
    rule = Dual(target=1e6, step_size=1e3, initial=0.1, minimum=1e-9, maximum=1e3)  # exp(1e9) is no float
    state = rule.update(rule.init(), 0.0)
    assert state.coefficient == 1e3
    assert rule.update(state, 1e7).coefficient == 1e-9


@pytest.mark.parametrize("rule", EVERY, ids=name)
@pytest.mark.parametrize("measured", [math.nan, math.inf, -0.1, np.array([0.1, math.nan])])
def test_unusable_measurements_are_refused(rule, measured):
    with pytest.raises(ValueError, match="finite and >= 0"):
        rule.update(rule.init(), measured)


def test_a_measurement_rounded_below_zero_is_accepted():
    assert MATH.update(MATH.init(), -1e-9).coefficient == pytest.approx(0.0023)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"type": "bnd"}, "did you mean 'Band'"),
        ({"type": "_Boxed"}, "unknown controller"),
        ({}, "Known: Anchored, Band, BangBang, Constant, Doubling, Dual, .*, Schedule, Spring, Switch$"),
        ({"type": "Band", "low": 0.1}, "missing"),
        ({**MATH.to_dict(), "beta": 1.0}, "unknown beta; expected initial, low, high"),
    ],
)
def test_bad_saved_controllers_are_refused(saved, message):
    with pytest.raises(ValueError, match=message):
        controller_from_dict(saved)


def test_bad_saved_states_are_refused():
    with pytest.raises(ValueError, match="unknown lambda"):
        State.from_dict({"coefficient": 1.0, "lambda": 2.0})
    with pytest.raises(ValueError, match="missing"):
        State.from_dict({"step": 1})
    for bad in ({"coefficient": math.nan}, {"coefficient": [0.1, math.inf]}, {"coefficient": 0.1, "memory": math.nan}):
        with pytest.raises(ValueError, match=r"State\.(coefficient|memory): expected finite numbers, got "):
            State.from_dict(bad)
    for step in (-1, 2.5):
        with pytest.raises(ValueError, match=r"State\.step: expected a whole number of updates >= 0"):
            State.from_dict({"coefficient": 0.1, "step": step})


@pytest.mark.parametrize("rule", [*CLOSED_LOOP, *OTHERS], ids=name)
def test_a_state_does_not_share_memory_with_the_measurement(rule):
    """A training loop writes every measurement into one buffer: an anchor that aliases it would follow the entropy."""
    buffer = np.array([2.0, 3.0])
    state = rule.update(rule.init(), buffer)
    before = state.to_dict()
    buffer[:] = 0.01
    assert state.to_dict() == before
