"""The entropy block of a config: what it accepts, what it refuses and says."""

import json
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import HfArgumentParser
from trl import TrlParser

from aent.controllers import Band, BangBang, Constant, Controller
from aent.entropy import DropLowest, Full, Nucleus, TopK, Tsallis, support_to_dict
from aent.methods import METHODS
from aent.shaping import ClipCovariance, PeakBonus, Shaping
from aent_llm.training.config import AEntGRPOConfig, controller, parts, shaping, support

BAND = {"initial": 2e-3, "low": 0.15, "high": 0.24, "step_size": 2e-3, "minimum": 6e-4, "maximum": 9e-3}


def config(**settings):
    return AEntGRPOConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none", **settings)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("full", Full()),
        ({"type": "drop_lowest", "share": 0.33}, DropLowest(0.33)),
        ({"type": "DropLowest", "share": 0.33}, DropLowest(0.33)),
        ({"type": "top_k", "k": 100}, TopK(100)),
        ({"type": "nucleus", "mass": 0.9}, Nucleus(0.9)),
        ("tsallis", Tsallis()),
        (TopK(7), TopK(7)),
    ],
)
def test_every_support_is_understood(given_, expected) -> None:
    assert support(given_) == expected
    assert support(support_to_dict(expected)) == expected


@given(st.sampled_from(sorted(Controller.registry)), st.sampled_from([str.lower, str.upper, str]))
def test_every_controller_type_is_found_by_any_spelling(name: str, spelling) -> None:
    with pytest.raises(ValueError, match=f"{name}: unknown nonsense"):  # the rule was found, the option was not
        controller({"type": spelling(name), "nonsense": 1})


@given(st.sampled_from(sorted(Shaping.registry)), st.sampled_from([str.lower, str.upper, str]))
def test_every_shaping_rule_is_found_by_any_spelling(name: str, spelling) -> None:
    assert shaping(spelling(name)) == Shaping.registry[name]()
    with pytest.raises(ValueError, match=f"{name}: unknown nonsense"):
        shaping({"type": spelling(name), "nonsense": 1})


def test_a_number_is_a_constant_coefficient() -> None:
    assert controller(0.01) == Constant(0.01)
    assert controller({"type": "bang_bang", "target": 0.3}) == BangBang(target=0.3)
    assert controller({"type": "band", **BAND}) == Band(**BAND)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("entropy_support", {"type": "drop_lowst", "share": 0.3}, "did you mean 'DropLowest'"),
        ("entropy_support", {"type": "top_k"}, "expected k"),
        ("entropy_support", {"type": "top_k", "share": 0.3}, "expected k"),
        ("entropy_support", {"type": "drop_lowest", "share": 1.0}, r"must be in \[0, 1\)"),
        ("entropy_controller", {"type": "bnd", **BAND}, "did you mean 'Band'"),
        ("entropy_controller", {"type": "band", **BAND, "hihg": 1.0}, "unknown hihg"),
        ("entropy_controller", {"type": "band", **{**BAND, "low": 0.5}}, "low <= high"),
        ("entropy_shaping", {"type": "peak_bonos"}, "did you mean 'PeakBonus'"),
        ("entropy_shaping", "kl_covariance", "has a coefficient, and none was given: set entropy_controller"),
        ("entropy_shaping", {"type": "shaping", "high": 0.28}, r"the clip range is TRL's.*epsilon_high=0\.28"),
        ("entropy_method", "clip-cof", "did you mean 'clip-cov'"),
        ("entropy_warmup_steps", -1, ">= 0"),
        ("sampler_tolerance", 0.0, "positive gap"),
        ("entropy_engine", "cuda", "expected one of auto, triton, torch"),
        ("entropy_coef", 0.01, "there would be two"),
        ("use_adaptive_entropy", True, "there would be two"),
        ("save_total_limit", 1, "Use 2 or more"),
    ],
)
def test_what_has_no_meaning_is_refused(field, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(**{field: value})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("clip-cov", {"loss_type": "cispo"}, "loss_type='cispo' does not go with ClipCovariance.*grpo, bnpo"),
        ("clip-cov", {"loss_type": "sapo"}, "loss_type='sapo'"),
        ("clip-cov", {"importance_sampling_level": "sequence"}, "ratio of each token"),
        ("clip-cov", {"delta": 3.0}, r"delta=3\.0 does not go with ClipCovariance"),
        ("clip-cov", {"off_policy_mask_threshold": 1.0}, "which tokens count"),
        ("clip-cov", {"epsilon": 0.3}, "set low and high of entropy_shaping"),
        ("clip-cov", {"epsilon_high": 0.28}, "set low and high of entropy_shaping"),
        ("clip-cov", {"beta": 0.1, "num_iterations": 2}, "set it to False"),
        ("qae", {"scale_rewards": "batch"}, "scale_rewards='batch' does not go with QuantileBaseline"),
        ("aepo", {"scale_rewards": "none"}, "use 'group'"),
        ("qae", {"multi_objective_aggregation": "normalize_then_sum"}, "use 'sum_then_normalize'"),
        ("aepo", {"use_vllm": True}, "set use_vllm=False"),
        ("aepo", {"use_transformers_continuous_batching": True}, "one temperature for all"),
        ("aepo", {"num_generations": 2}, "use 3 or more"),
        ("adrpo", {"entropy_controller": 0.0}, "beta=0 does not go with AdvantageKL.*other value"),
        ("none", {"entropy_shaping": "advantage_kl", "entropy_controller": 0.1}, "beta=0 does not go with"),
        ("aent", {"use_adaptive_entropy": True}, "there would be two"),
        ("skywork", {"entropy_controller": 0.1, "use_adaptive_entropy": True}, "there would be two"),
        ("clip-higher", {"entropy_coef": 0.1}, "there would be two"),
    ],
)
def test_a_setting_that_a_rule_cannot_honour_is_refused_with_advice(method, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(entropy_method=method, **settings)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("clip-cov", {"epsilon_high": 0.2}),
        ("clip-cov", {"scale_rewards": "none"}),  # it leaves the advantages of a group alone
        ("clip-cov", {"beta": 0.1}),
        ("clip-cov", {"beta": 0.1, "num_iterations": 2, "use_bias_correction_kl": False}),
        ("adrpo", {"num_iterations": 2}),
        ("clip-higher", {"delta": 3.0, "loss_type": "cispo"}),  # TRL does it
        ("aent", {"epsilon_high": 0.28, "delta": 3.0, "loss_type": "vespo"}),
        ("qae", {"use_vllm": True}),
    ],
)
def test_a_setting_that_does_no_harm_is_not_refused(method, settings) -> None:
    one = config(entropy_method=method, **settings)
    assert {name: getattr(one, name) for name in settings} == settings


def test_what_trl_has_built_in_it_does_until_a_part_is_another() -> None:
    by_trl = parts("clip-higher")
    assert (by_trl.trl, by_trl.controller, by_trl.shaping) == ({"epsilon_high": 0.28}, Constant(0.0), Shaping())
    assert parts("clip-higher", "tsallis").trl
    moved = parts("clip-higher", None, 0.3)
    assert (moved.trl, moved.controller) == ({}, Constant(0.3))
    assert type(moved.shaping).__name__ == "ClipHigher"
    assert parts("skywork", None, BangBang(target=0.3)).trl == {}
    assert config(entropy_method="clip-higher", epsilon_high=0.3).epsilon_high == 0.3
    assert config(entropy_method="adrpo", beta=0.5).beta == 0.5
    assert config(entropy_method="adrpo").beta == 0.04


def test_without_a_method_nothing_is_shaped() -> None:
    assert parts(None) == (Full(), Constant(0.0), Shaping(), {})
    assert parts(None, None, 0.1, "clip_covariance")[1:3] == (Constant(0.1), ClipCovariance())
    assert parts("aent", None, None, "peak_bonus")[2] == PeakBonus()


def test_a_rollout_phase_is_a_whole_number_of_optimiser_steps() -> None:
    config(gradient_accumulation_steps=2, steps_per_generation=4)
    with pytest.raises(ValueError, match="not a multiple of gradient_accumulation_steps"):
        config(gradient_accumulation_steps=4, steps_per_generation=2)


def test_checkpoints_inside_a_phase_are_warned_of() -> None:
    phase = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}
    config(**phase, save_strategy="steps", save_steps=8)
    with pytest.warns(UserWarning, match="rollout phase of 4 optimiser steps"):
        config(**phase, save_strategy="steps", save_steps=6)


def test_a_share_of_all_steps_is_compared_with_the_phase_as_steps() -> None:
    """0.5 was taken for a number of steps, which no phase divides."""
    share = {"num_iterations": 4, "save_strategy": "steps", "save_steps": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config(**share, max_steps=8)  # every 4
        config(**share)  # of epochs, whose length is not known yet
    with pytest.warns(UserWarning, match="save_steps=6 falls inside a rollout phase of 4"):
        config(**share, max_steps=12)


def test_the_warm_up_is_given_once() -> None:
    with pytest.raises(ValueError, match="warm-up once"):
        config(entropy_controller={"type": "band", **BAND, "warmup_steps": 3}, entropy_warmup_steps=3)


def test_the_block_is_plain_json_and_comes_back() -> None:
    one = config(entropy_support=DropLowest(0.33), entropy_controller=Band(**BAND))
    saved = json.loads(one.to_json_string())
    again = config(entropy_support=saved["entropy_support"], entropy_controller=saved["entropy_controller"])
    assert support(again.entropy_support) == DropLowest(0.33)
    assert controller(again.entropy_controller) == Band(**BAND)


def test_a_command_line_gives_json_text() -> None:
    one = config(
        entropy_support='{"type": "top_k", "k": 5}', entropy_controller='{"type": "constant", "coefficient": 1}'
    )
    assert support(one.entropy_support) == TopK(5)
    assert controller(one.entropy_controller) == Constant(1)
    rule = config(entropy_shaping='{"type": "peak_bonus", "quantile": 0.5}', entropy_controller=0.1).entropy_shaping
    assert shaping(rule) == PeakBonus(quantile=0.5)


# ------------------------------------------------------------------------------------------------------- command lines


def parsed(parser: type, *words: str) -> AEntGRPOConfig:
    fixed = ("--output_dir", "unused", "--use_cpu", "--bf16", "False", "--report_to", "none")
    (one,) = parser(AEntGRPOConfig).parse_args_into_dataclasses([*fixed, *words])
    return one


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
@pytest.mark.parametrize(
    ("words", "support_", "controller_"),
    [
        (["--entropy_support", '{"type": "top_k", "k": 9}'], TopK(9), Constant(0.0)),
        (["--entropy-support", "full", "--entropy_controller", "0.01"], Full(), Constant(0.01)),
        (["--entropy_support", "tsallis", "--entropy_controller", "1e-2"], Tsallis(), Constant(0.01)),
        (["--entropy_controller", ".5", "--entropy_support", '"full"'], Full(), Constant(0.5)),
        (["--entropy_controller", '{"type": "constant", "coefficient": 1e-3}'], Full(), Constant(0.001)),
        (["--entropy_method", "AEnt", "--entropy_controller", "null"], DropLowest(0.33), METHODS["aent"].controller),
    ],
)
def test_parsers_of_hugging_face_take_json_names_and_numbers(parser, words, support_, controller_) -> None:
    one = parsed(parser, *words)
    assert (support(one.entropy_support), controller(one.entropy_controller)) == (support_, controller_)


def test_a_config_file_of_trl_and_its_command_line(tmp_path) -> None:
    file = tmp_path / "trl.yaml"  # 1e-1 is text to the YAML that TRL reads
    file.write_text(
        "output_dir: unused\nuse_cpu: true\nbf16: false\nreport_to: none\n"
        "entropy_support: {type: drop_lowest, share: 1e-1}\nentropy_controller: 1e-2\nentropy_shaping: peak_bonus\n"
    )
    (one,) = TrlParser(AEntGRPOConfig).parse_args_and_config(["--config", str(file)])
    assert support(one.entropy_support) == DropLowest(0.1)
    assert controller(one.entropy_controller) == Constant(0.01)
    assert shaping(one.entropy_shaping) == PeakBonus()
    (one,) = TrlParser(AEntGRPOConfig).parse_args_and_config(["--config", str(file), "--entropy_support", "full"])
    assert support(one.entropy_support) == Full()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--entropy_support", '{"type": top_k}'], r"entropy_support=\{\"type\": top_k\}: not JSON .*expected e\.g\."),
        (["--entropy_support", "5"], "entropy_support: expected the name of a support.*got 5"),
        (["--entropy_support", "ful"], "entropy_support: unknown support 'ful'; did you mean 'Full'"),
        (["--entropy_controller", "nan"], r"Constant\(coefficient=nan\): coefficient must be a finite number"),
        (["--entropy_controller", "true"], "entropy_controller: expected the name of a controller"),
        (["--entropy_method", "qae", "--entropy_controller", "2"], r"QuantileBaseline needs coefficients in \[0, 1\]"),
    ],
)
def test_a_wrong_command_line_says_which_part_is_wrong(words, message) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(HfArgumentParser, *words)


def test_text_is_a_number_only_where_yaml_1_1_made_it_text() -> None:
    assert config(entropy_support={"type": "drop_lowest", "share": "1.5e-1"}).entropy_support["share"] == 0.15
    for text in ("0.3", "3", "1e"):
        with pytest.raises(ValueError, match=f"entropy_support: DropLowest: share must be .* the text '{text}'"):
            config(entropy_support={"type": "drop_lowest", "share": text})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entropy_controller": 1e300}, r"entropy_controller: coefficient=1e\+300 overflows in float32"),
        ({"entropy_controller": Constant(-1e31)}, r"coefficient=-1e\+31 overflows in float32"),
        ({"entropy_method": "ce-gppo", "entropy_shaping": {"type": "gradient_preserving", "dual": 1e300}}, "dual=1e"),
        ({"entropy_support": "[" * 100_000}, "entropy_support=.*: nested too deeply"),
        ({"reward_weights": [0.0, 0]}, "reward_weights=.*: no reward has a weight"),
        ({"reward_weights": [1e31]}, "reward_weights: expected a list"),
        ({"mask_truncated_completions": True, "max_completion_length": 1}, "nothing would be learnt. Give more tokens"),
        ({"max_steps": 10**30}, "max_steps: expected a whole number of at least -1, got .*; that overflows"),
    ],
)
def test_settings_that_nothing_can_be_trained_with_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_help_names_every_part() -> None:
    text = " ".join(HfArgumentParser(AEntGRPOConfig).format_help().split())
    assert "or module:Class. None: the method's, else full." in text
    assert "a number is a constant" in text
