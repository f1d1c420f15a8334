"""Experiment files: what they hold reaches the classes that use it, and nothing is ignored in silence."""

from pathlib import Path

import pytest
import yaml

from aent.controllers import Band, Constant, Spring
from aent.entropy import DropLowest, Full, Nucleus
from aent.methods import METHODS
from aent.shaping import KLCovariance, PeakBonus
from aent_llm import config as configs
from aent_llm.__main__ import main
from aent_llm.experiment import load_experiment, parse_experiment

RAW = {
    "model": {"source": "tiny"},
    "data": {"source": "tiny", "count": 8},
    "rewards": ["arithmetic"],
    "entropy": {
        "support": {"type": "drop_lowest", "share": 0.33},
        "controller": {"type": "band", "initial": "2e-3", "low": 0.15, "high": 0.24, "step_size": "2e-3",
                       "minimum": "6e-4", "maximum": "9e-3"},
        "warmup_steps": 30,
    },
    "train": {"learning_rate": "2e-6", "max_steps": 3, "use_cpu": True, "bf16": False, "num_generations": 4,
              "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 8},
}  # fmt: skip


def written(tmp_path: Path, **changes) -> Path:
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump({**RAW, **changes}))
    return path


def test_every_block_arrives(tmp_path) -> None:
    experiment = load_experiment(written(tmp_path), {"train.max_steps": 5, "entropy.warmup_steps": 7})
    args = experiment.training_arguments(tmp_path / "out")
    assert (args.learning_rate, args.max_steps, args.entropy_warmup_steps) == (2e-6, 5, 7)
    assert configs.support(args.entropy_support) == DropLowest(0.33)
    assert configs.controller(args.entropy_controller) == Band(
        initial=2e-3, low=0.15, high=0.24, step_size=2e-3, minimum=6e-4, maximum=9e-3
    )
    assert experiment.rewards == ("arithmetic",)
    assert experiment.data.count == 8


def test_what_yaml_misreads_is_read_as_meant(tmp_path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(RAW).replace("max_steps: 3", "max_steps: 3\n  save_strategy: no"))
    args = load_experiment(path).training_arguments(tmp_path / "out")
    assert args.save_strategy == "no"


def test_the_plan_counts_as_the_trainer_does(tmp_path) -> None:
    experiment = load_experiment(written(tmp_path))
    args, plan = experiment.training_arguments(tmp_path), experiment.plan()
    assert plan["prompts per rollout phase"] == args.generation_batch_size // args.num_generations == 16
    assert plan["optimiser steps per rollout phase"] == args.steps_per_phase // args.gradient_accumulation_steps == 4
    assert experiment.plan(processes=4)["completions per optimiser step"] == 64


def test_a_method_fills_what_the_file_leaves_out(tmp_path) -> None:
    experiment = parse_experiment({**RAW, "entropy": {"method": "siren", "support": "full"}}, "one")
    args = experiment.training_arguments(tmp_path)
    assert args.entropy_method == "siren"
    assert configs.support(args.entropy_support) == Full()
    assert configs.controller(args.entropy_controller) == Spring(0.005)
    assert configs.shaping(args.entropy_shaping) == PeakBonus(high=0.28)
    plan = experiment.plan()
    assert (plan["method"], plan["support"]) == ("siren", "full")
    assert (plan["controller"]["type"], plan["shaping"]["type"]) == ("Spring", "PeakBonus")
    assert parse_experiment({**RAW, "entropy": {"method": "clip-higher"}}, "one").plan()["controller"] == {
        "trl": {"epsilon_high": 0.28}
    }
    assert "method" not in parse_experiment(RAW, "one").plan()


def test_a_method_on_the_command_line_takes_the_place_of_the_file_s(tmp_path) -> None:
    """The band, the clamp and the warm-up of the file are AEnt's; what is set beside the method stays."""
    path = written(tmp_path)
    for name, method in METHODS.items():
        experiment = load_experiment(path, {"entropy.method": name})
        args = experiment.training_arguments(tmp_path)
        assert args.entropy_warmup_steps == 0
        assert configs.support(args.entropy_support) == method.support
        assert configs.controller(args.entropy_controller) == (Constant(0.0) if method.trl else method.controller)
    overrides = {"entropy.method": "siren", "entropy.support": {"type": "nucleus", "mass": 0.9}}
    args = load_experiment(path, overrides).training_arguments(tmp_path)
    assert configs.support(args.entropy_support) == Nucleus(0.9)


def test_a_rule_without_a_method_and_numbers_without_a_dot(tmp_path) -> None:
    block = {"shaping": {"type": "kl_covariance", "share": "2e-3"}, "controller": "1e-1"}
    args = parse_experiment({**RAW, "entropy": block}, "one").training_arguments(tmp_path)
    assert configs.shaping(args.entropy_shaping) == KLCovariance(share=0.002)
    assert configs.controller(args.entropy_controller) == Constant(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": {}}, "unknown key 'modle'; did you mean 'model'"),
        ({"train": {"learnin_rate": 1}}, "train: unknown key 'learnin_rate'; did you mean 'learning_rate'"),
        ({"data": {"source": "x", "promt": "q"}}, "did you mean 'prompt'"),
        ({"data": {}}, "data: .*source"),
        ({"entropy": {"supports": "full"}}, "did you mean 'support'"),
        ({"entropy": {"support": {"type": "top_k", "k": 0}}}, "at least 1"),
        ({"entropy": {"method": "sirn"}}, "unknown method 'sirn'; did you mean 'siren'"),
        ({"entropy": {"shaping": {"type": "peek_bonus"}}}, "did you mean 'PeakBonus'"),
        ({"entropy": {"shaping": "peak_bonus"}}, "none was given"),
        ({"entropy": {"mehod": "siren"}}, "did you mean 'method'"),
        ({"train": {"output_dir": "x"}}, "output_dir is not set here"),
        ({"train": {"entropy_method": "siren"}}, "entropy_method is not set here"),
        ({"model": {"dtype": "fp8"}}, "expected float32"),
    ],
)
def test_a_mistake_is_named(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        parse_experiment({**RAW, **changes}, "one")


def test_a_missing_file_names_near_ones(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Near: qwen_math_aent"):
        load_experiment(tmp_path / "qwen_math_aen.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="expected a mapping"):
        load_experiment(tmp_path / "list.yaml")


def test_the_command_line_says_what_is_wrong_without_a_traceback(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("AENT_DEBUG", raising=False)
    assert main(["train", "--config", str(written(tmp_path, train={"learnin_rate": 1}))]) == 2
    assert "did you mean 'learning_rate'" in capsys.readouterr().err
    assert main(["trian"]) == 2
    assert main(["--help"]) == 0
    assert "calibrate" in capsys.readouterr().out
    monkeypatch.setenv("AENT_DEBUG", "1")
    with pytest.raises(ValueError, match="learnin_rate"):
        main(["train", "--config", str(written(tmp_path, train={"learnin_rate": 1}))])


def test_a_dry_run_loads_nothing_and_shows_the_plan(tmp_path, capsys) -> None:
    nowhere = written(tmp_path, model={"source": "no/such-model"}, data={"source": "no/such-data"})
    assert main(["train", "--config", str(nowhere), "--dry-run", "--processes", "4"]) == 0
    assert "'prompts per rollout phase': 64" in capsys.readouterr().out


def test_an_existing_directory_is_refused_before_any_work(tmp_path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "something").write_text("mine")
    assert main(["train", "--config", str(written(tmp_path)), "--output", str(tmp_path / "out")]) == 2
    assert "nothing was overwritten" in capsys.readouterr().err
    assert main(["train", "--config", str(written(tmp_path)), "--output", str(tmp_path / "no"), "--resume"]) == 2
    assert "holds no run" in capsys.readouterr().err
