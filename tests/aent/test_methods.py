"""The table of methods: every one of the field, with its published numbers."""

import ast
import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from aent.controllers import BangBang, Constant, controller_from_dict
from aent.entropy import DropLowest, Full, Nucleus, TopK, Tsallis
from aent.methods import METHODS, Family, Method, Sweep, method
from aent.shaping import LogitScaling, Shaping, shaping_from_dict

PUBLISHED: dict[str, dict] = {  # typed from the papers, their configuration files and code; see PAPER.md
    "none": {"coefficient": 0.0},
    "full": {"coefficient": 0.002},  # setting (a)
    "aent": {
        "initial": 0.002, "low": 0.15, "high": 0.24, "step_size": 0.002, "minimum": 6e-4, "maximum": 9e-3,
        "warmup_steps": 30,
    },
    "aer": {"ratio": 0.4},
    "entropic": {
        "proportional": 1.0, "integral": 0.01, "target": 0.1, "minimum": -1.0, "maximum": 1.0, "confident": 0.95,
    },
    "adrpo": {},
    "clip-cov": {"coefficient": 2e-4, "smallest": 1.0, "largest": 5.0, "low": 0.2, "high": 0.2},
    "kl-cov": {"coefficient": 1.0, "share": 0.002},  # .2% is the share of the 7B run
    "clip-higher": {"coefficient": 0.28, "low": 0.2},
    "skywork": {"step_size": 1e-4, "target": 0.2, "initial": 0.0, "minimum": 0.0, "maximum": 0.005},
    "siren": {"strength": 0.005, "quantile": 0.8, "high": 0.28, "mass": 0.8},
    "entropy-advantage": {"coefficient": 0.4, "kappa": 2.0},  # .4 with GRPO
    "aepo": {"below": 1.2, "inside": 1.2, "above": 0.8, "margin": 0.05, "alpha": 1.0},
    "ce-gppo": {"coefficient": 0.75, "beta_2": 1.0, "dual": 10.0, "low": 0.2, "high": 0.2},  # .75 for 7B
    "era": {"coefficient": 0.45, "upper": 3.0, "factor": 2.0, "share": 0.2},
    "qae": {"coefficient": 0.4},
    "repo-r": {},
    "entrocraft": {"low_end": 0.4, "high_end": 0.5, "below": 1.0, "inside": 0.0, "above": -1.0},
    "erc": {"coefficient": 0.05},  # .95 to 1.05
    "range": {},
    "tsallis": {},
    "espo": {},
}  # fmt: skip

ARXIV = {
    "none": "2402.03300", "full": "2509.03493", "aent": "2509.03493", "aer": "2510.10959", "entropic": "2511.15248",
    "adrpo": "2510.18053", "clip-cov": "2505.22617", "kl-cov": "2505.22617", "clip-higher": "2503.14476",
    "skywork": "2505.22312", "siren": "2509.25133", "entropy-advantage": "2506.14758", "aepo": "2510.08141",
    "ce-gppo": "2509.20712", "era": "2510.08549", "qae": "2509.22611", "repo-r": "2603.11682",
    "entrocraft": "2604.26326", "erc": "2512.05591", "range": "2406.05953", "tsallis": "1709.06293",
    "espo": "2512.00499",
}  # fmt: skip

# Methods of which a formula or a needed number is not public: what stands in for it has to be named.
NOT_ALL_PUBLIC = {
    "aer": "no formula", "adrpo": "beta_0", "repo-r": "zeta", "range": "coefficient", "espo": "only the idea",
    "aepo": "last quarter", "tsallis": "coefficient", "entrocraft": "schedule", "entropic": "anti-windup",
    "siren": "10,000",
}  # fmt: skip

SUPPORTS = {"aent": DropLowest(0.33), "siren": Nucleus(0.8), "tsallis": Tsallis()}
OURS = {
    "clamp40": DropLowest(0.4), "clamp90": DropLowest(0.9), "keep100": TopK(100), "full-band": Full(),
    "keep100-band": TopK(100),
}  # fmt: skip
BONUS = {"full", "aent", "aer", "skywork", "siren", "range", "tsallis", *OURS}


def numbers(name: str) -> dict:
    """All options of a method's parts; a shaping rule's ``low`` and ``high`` are its clip range, not a band."""
    found = METHODS[name]
    parts = {**vars(found.support), **found.shaping.to_dict(), **found.controller.to_dict()}
    return parts


def test_every_method_of_the_field_is_there():
    assert {name for name, one in METHODS.items() if one.reference} == set(PUBLISHED) == set(ARXIV)
    assert len(PUBLISHED) == 22
    assert set(METHODS) - set(PUBLISHED) == set(OURS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_published_ones(name):
    ours = numbers(name)
    assert {key: ours[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    assert METHODS[name].support == SUPPORTS.get(name, Full())


def test_bands_and_targets_of_the_two_switches():
    """AEPO: one target, its best .75. Entrocraft: .6 to .7, falling to .4 to .5."""
    aepo, entrocraft = METHODS["aepo"].controller.to_dict(), METHODS["entrocraft"].controller.to_dict()
    assert (aepo["low"], aepo["high"], aepo["low_end"]) == (0.75, 0.75, None)
    assert [entrocraft[key] for key in ("low", "high", "low_end", "high_end")] == [0.6, 0.7, 0.4, 0.5]


@pytest.mark.parametrize("name", ARXIV)
def test_references_and_what_is_ours(name):
    found = METHODS[name]
    assert re.findall(r"arXiv (\d{4}\.\d{5})", found.reference) == [ARXIV[name]]
    assert found.label
    assert NOT_ALL_PUBLIC.get(name, "") in found.assumptions
    assert bool(found.assumptions) == (name in NOT_ALL_PUBLIC)


def test_a_number_of_ours_is_the_one_that_the_assumptions_name():
    found = METHODS["entrocraft"]
    assert f"({found.controller.to_dict()['steps']} phases) is ours" in found.assumptions


def test_every_shaping_rule_is_some_methods_rule_and_moves_what_it_says():
    assert {type(found.shaping) for found in METHODS.values()} == set(Shaping.registry.values())
    assert {name for name in METHODS if METHODS[name].shaping.pays_bonus} == {"none", *BONUS}


def test_what_pays_a_bonus_is_in_its_family_and_nothing_else_is():
    assert {name for name in METHODS if METHODS[name].family is Family.BONUS} == BONUS
    assert [name for name in METHODS if METHODS[name].family is Family.NOTHING] == ["none"]


@pytest.mark.parametrize("name", OURS)
def test_our_own_arms_are_a_support_with_the_controller_of_the_full_bonus_or_of_aent(name):
    found, like = METHODS[name], METHODS["aent" if name.endswith("-band") else "full"]
    assert (found.support, found.shaping, found.sweep) == (OURS[name], Shaping(), like.sweep)
    assert type(found.controller) is type(like.controller)
    assert min(np.atleast_1d(found.controller.init().coefficient)) > 0  # the trainer takes it as it is


def test_the_knob_moves_the_controller_and_nothing_else():
    knob = np.array([0.1, 0.2])
    tuned = METHODS["clip-cov"].at(knob)
    np.testing.assert_array_equal(tuned.controller.init().coefficient, knob)
    assert dataclasses.replace(tuned, controller=METHODS["clip-cov"].controller) == METHODS["clip-cov"]
    assert METHODS["none"].at(knob) is METHODS["none"]
    assert METHODS["era"].at(knob).shaping == LogitScaling(upper=6.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sweep("knob", (0.1,), Constant(0.1)), "controller must be a function from values of the knob"),
        (lambda: Sweep("knob", (), Constant), r"values must be numbers, e.g. \(0.01, 0.1\), got \(\)"),
        (lambda: Sweep("knob", (0.1, "x"), Constant), "values must be numbers"),
        (lambda: Method("mine", "me", Constant(0.1)), "family must be one of Family.NOTHING, Family.BONUS"),
        (lambda: Method("mine", "me", Family.BONUS, sweep=Constant), "sweep must be an object such as Sweep"),
    ],
)
def test_what_is_no_method_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", METHODS)
def test_parts_survive_json(name):
    found = METHODS[name]
    saved = json.loads(json.dumps([found.controller.to_dict(), found.shaping.to_dict()]))
    assert controller_from_dict(saved[0]) == found.controller
    assert shaping_from_dict(saved[1]) == found.shaping


def test_lookup_by_name():
    assert method("kl-cov") is METHODS["kl-cov"]
    with pytest.raises(
        ValueError, match=r"unknown method 'clip-hihger'; did you mean 'clip-higher'\? Known: none, full"
    ):
        method("clip-hihger")
    with pytest.raises(ValueError, match=r"unknown method 'zzz'\. Known: none"):
        method("zzz")


def trl_fields() -> set[str]:
    """Fields of ``trl.GRPOConfig``, read off its source: importing it takes seconds."""
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs trl, of the extra llm")
    source = Path(spec.submodule_search_locations[0]) / "trainer" / "grpo_config.py"
    classes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)]
    body = next(node.body for node in classes if node.name == "GRPOConfig")
    return {node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}


def test_what_is_left_to_trl_is_what_the_parts_say():
    known = trl_fields()
    assert {key for found in METHODS.values() for key in found.trl} <= known
    assert "entropy_target_of_nothing" not in known
    assert {name for name in METHODS if METHODS[name].trl} == {"clip-higher", "skywork"}
    assert METHODS["clip-higher"].trl["epsilon_high"] == METHODS["clip-higher"].controller.init().coefficient
    ours, trl = METHODS["skywork"].controller, METHODS["skywork"].trl
    assert isinstance(ours, BangBang)
    assert (ours.initial, ours.target, ours.step_size) == (
        trl["entropy_coef"], trl["entropy_target"], trl["entropy_coef_delta"],
    )  # fmt: skip
    assert (ours.minimum, ours.maximum) == (trl["entropy_coef_min"], trl["entropy_coef_max"])
    assert trl["use_adaptive_entropy"] is True  # without it TRL takes a constant coefficient and reads none of these
