"""Rules and methods by name: spellings, suggestions, JSON, classes of one's own, and what is refused."""

import json
import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from aent import entropy as entropies
from aent.controllers import Constant, Controller, State, controller_from_dict
from aent.entropy import DropLowest, Full, Nucleus, Support, TopK, Tsallis, support_from_dict, support_to_dict
from aent.methods import METHODS, Family, Method, method, method_name
from aent.names import suggest
from aent.registry import Registry
from aent.shaping import PeakBonus, Shaping, shaping_from_dict


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten afterwards."""
    monkeypatch.setattr(entropies, "SUPPORTS", entropies.SUPPORTS.copy())
    monkeypatch.setattr(Controller, "registry", Controller.registry.copy())
    monkeypatch.setattr(Shaping, "registry", Shaping.registry.copy())


@pytest.fixture
def my_rules(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An importable module of a user's."""
    module = types.ModuleType("my_rules")
    monkeypatch.setitem(sys.modules, "my_rules", module)
    return module


def own(bases: tuple[type, ...], module: str, name: str = "Own", **body: Any) -> Any:
    """A frozen dataclass with one number, as if its source stood in ``module``."""
    body = {"__module__": module, "__qualname__": name, "__annotations__": {"share": "float"}, "share": 0.5, **body}
    return dataclass(frozen=True)(type(name, bases, body))


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("read", "saved", "expected"),
    [
        (support_from_dict, {"type": "drop-lowest", "share": 0.33}, DropLowest(0.33)),
        (support_from_dict, {"type": "TOPK", "k": 5}, TopK(5)),
        (support_from_dict, {"type": "tsallis"}, Tsallis()),
        (controller_from_dict, {"type": "constant", "coefficient": 0.1}, Constant(0.1)),
        (shaping_from_dict, {"type": "peak_bonus", "quantile": 0.5}, PeakBonus(quantile=0.5)),
    ],
)
def test_spelling_does_not_matter(read: Any, saved: dict, expected: Any) -> None:
    assert read(saved) == expected


def test_methods_are_found_by_any_spelling() -> None:
    assert METHODS["ClipCov"] is METHODS["clip-cov"] is method("CLIP_COV")
    assert method_name("ce_gppo") == "ce-gppo"


@pytest.mark.parametrize("rule", [Full(), DropLowest(0.33), TopK(7), Nucleus(0.9), Tsallis()], ids=repr)
def test_a_support_comes_back_from_json(rule: Support) -> None:
    saved = json.loads(json.dumps(support_to_dict(rule)))
    assert saved["type"] == type(rule).__name__
    assert support_from_dict(saved) == rule


@pytest.mark.parametrize(
    ("read", "saved"),
    [
        (support_from_dict, {"type": "top_k", "k": "9"}),
        (support_from_dict, {"type": "drop_lowest", "share": "0.3"}),
        (controller_from_dict, {"type": "constant", "coefficient": "1e-3"}),
        (controller_from_dict, {"type": "anchored", "step_size": 1, "maximum": "1e1"}),
        (shaping_from_dict, {"type": "difficulty_bonus", "threshold": "0.5"}),
    ],
)
def test_text_is_no_number(read: Any, saved: dict) -> None:
    (name, text) = next((key, value) for key, value in saved.items() if key != "type" and isinstance(value, str))
    with pytest.raises(ValueError, match=f"{name} must be a number, got the text '{text}'; leave quotes out.*1.0e-3"):
        read(saved)


def test_text_in_a_field_for_text_stays_text() -> None:
    with pytest.raises(ValueError, match="shape must be"):
        controller_from_dict({"type": "schedule", "initial": 1, "final": 0, "steps": 5, "shape": "1e3"})


def test_a_rule_is_itself_and_numpy_numbers_are_saved_as_plain_ones() -> None:
    rule = TopK(3)
    assert entropies.SUPPORTS.read(rule, "x") is rule
    one, sweep = Constant(np.float64(0.1)), Constant(np.array([0.1, 0.2]))
    assert json.dumps([one.to_dict()["coefficient"], sweep.to_dict()["coefficient"]]) == "[0.1, [0.1, 0.2]]"


def test_a_suggestion_continues_the_sentence() -> None:
    assert suggest("topp_k", ["TopK", "Full"]) == "; did you mean 'TopK'?"
    assert suggest(None, ["TopK"]) == ""
    assert suggest("ful", ["full", "fulls", "x"], most=2) == "; did you mean 'full' or 'fulls'?"


# ------------------------------------------------------------------------------------------------- classes of one's own


@pytest.mark.parametrize("base", [Support, Controller, Shaping])
def test_a_subclass_is_known_by_its_name_and_saved_with_its_module(base: type, my_rules: Any) -> None:
    rule = own((base,), "my_rules", weights=lambda self, logits: logits, init=lambda self: State(self.share))
    registry = entropies.SUPPORTS if base is Support else base.registry  # type: ignore[attr-defined]
    my_rules.Own = rule
    assert registry.read("own", "x") == rule()
    saved = json.loads(json.dumps(registry.to_dict(rule(share=0.25))))
    assert saved == {"type": "my_rules:Own", **({"low": 0.2, "high": 0.2} if base is Shaping else {}), "share": 0.25}
    assert registry.from_dict(saved) == rule(share=0.25)


def test_a_class_that_only_looks_like_a_support_is_saved_and_found_too(my_rules: Any) -> None:
    my_rules.Own = own((), "my_rules", weights=lambda self, logits: logits)
    saved = support_to_dict(my_rules.Own(0.25))
    assert saved == {"type": "my_rules:Own", "share": 0.25}
    fresh = entropies.Rules(  # another process: nothing was met before
        "support", expected="a support rule", accepts=lambda found: hasattr(found, "weights")
    )
    assert fresh.from_dict(saved) == fresh.from_dict({**saved, "type": "my_rules.Own"}) == my_rules.Own(0.25)


def test_a_class_inside_a_function_is_found_while_the_process_lives() -> None:
    @dataclass(frozen=True)
    class Local:
        share: float

        def weights(self, logits: Any) -> Any:
            return logits

    assert support_from_dict(support_to_dict(Local(0.5))) == Local(0.5)


def test_defining_a_class_again_replaces_it_and_another_of_its_name_is_refused(my_rules: Any) -> None:
    first = own((Controller,), "my_rules", init=lambda self: State(1.0))
    again = own((Controller,), "my_rules", init=lambda self: State(2.0))  # a notebook's cell, run again
    assert first is not again
    assert type(controller_from_dict({"type": "own"})) is again
    with pytest.raises(ValueError, match=r"a controller named Own exists already \(my_rules:Own\): give elsewhere:Own"):
        own((Controller,), "elsewhere")
    with pytest.raises(ValueError, match=r"a controller named BangBang exists already .*give my_rules:Bang_Bang"):
        own((Controller,), "my_rules", "Bang_Bang")
    own((Controller,), "my_rules", "_Own")  # a base of rules is none
    assert "_Own" not in Controller.registry


def test_a_rule_that_cannot_be_saved_says_why() -> None:
    class NoDataclass:
        def weights(self, logits: Any) -> Any:
            return logits

    @dataclass(frozen=True)
    class Nested:
        inner: Any

        def weights(self, logits: Any) -> Any:
            return logits

    with pytest.raises(ValueError, match=r"NoDataclass is not a dataclass: write @dataclass\(frozen=True\)"):
        support_to_dict(NoDataclass())
    with pytest.raises(ValueError, match=r"Nested\.inner: TopK\(k=3\) cannot be saved"):
        support_to_dict(Nested(TopK(3)))
    assert support_from_dict(support_to_dict(Nested((1, 2)))) == Nested((1, 2))  # a tuple stays one


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("topp_k", "x: unknown support 'topp_k'; did you mean 'TopK'"),
        ({"k": 3}, r"x: a support needs a 'type', got \{'k': 3\}"),
        ({"type": None}, "x: unknown support None"),
        ({"type": "top_k"}, "x: TopK: missing k; expected k"),
        ({"type": "top_k", "k": 3, 5: 1}, "x: TopK: unknown 5; expected k"),
        ({"type": "full", "share": 1}, "x: Full: unknown share; expected no options"),
        ({"type": "top_k", "k": "many"}, "x: TopK"),
        (TopK, r"x: TopK is a class; give an object, TopK\(...\)"),
        (7, "x: expected the name of a support, a mapping with its type and options, or an object, got 7"),
        (["top_k"], "x: expected the name of a support"),
        ("os:path", r"x: support 'os:path': expected a support rule: .*got <module"),
        ("os:nothing", "x: support 'os:nothing': os has no 'nothing'"),
        (":", "x: support ':': importing '' failed"),
        ("no.such.module:Own", "x: support 'no.such.module:Own': importing 'no.such.module' failed .*PYTHONPATH"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_line(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        entropies.SUPPORTS.read(given, "x")
    assert "\n" not in str(caught.value) or "many" in str(given)


# ------------------------------------------------------------------------------------------------------------ methods


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A table of methods in which a test may register."""
    return Registry("method", METHODS, expected="an aent.methods.Method", accepts=lambda x: isinstance(x, Method))


def test_a_method_of_ones_own_has_a_name_and_may_be_set_again(methods: Registry, my_rules: Any) -> None:
    first, again = (
        Method("Mine", "me", Family.BONUS, Constant(0.1)),
        Method("Mine, better", "me", Family.BONUS, Constant(0.2)),
    )
    methods["my-own"] = first
    assert methods["my_own"] is methods["my_rules:my-own"] is first  # the module has registered it
    methods["my-own"] = again
    assert methods.find("MyOwn") == ("my-own", again)
    my_rules.MINE = first
    assert methods.find("my_rules:MINE") == ("my_rules:MINE", first)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("aent", Method("x", "y", Family.BONUS), "the method 'aent' is part of this package and stays"),
        ("Clip_Cov", Method("x", "y", Family.BONUS), "the method 'clip-cov' is part"),
        ("a:b", Method("x", "y", Family.BONUS), "method name 'a:b'"),
        ("", Method("x", "y", Family.BONUS), "method name ''"),
        ("mine", Constant(0.1), "method 'mine': expected an aent.methods.Method, got Constant"),
    ],
)
def test_what_cannot_be_registered_is_refused(methods: Registry, name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods[name] = value
