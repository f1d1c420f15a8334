"""The shipped experiment files say what the paper says, and run as they say.

The tables below were typed from the published settings and results, independently of the files. Command lines are read
by the programs' own parsers (accelerate, TRL's server, `aent_llm train` and `eval`).
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("trl")

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from trl.scripts.vllm_serve import make_parser as server_parser
from trl.trainer.grpo_config import GRPOConfig

from aent.controllers import Band, Constant, Controller
from aent.entropy import DropLowest, Full
from aent_llm.__main__ import main as run_command
from aent_llm.config_files import CONFIGS, find_config
from aent_llm.data import eval_sets
from aent_llm.measure import calibrate, evaluate
from aent_llm.training import train
from aent_llm.training.config import AEntGRPOConfig, controller, support
from aent_llm.training.experiment import Experiment, load_experiment

# row: (prompts per step, mini-batch in prompts, rollouts, lr, response, epochs, GPUs, problems, phases between tests)
SETTINGS = {
    "qwen_math": (512, 128, 16, 2e-6, 3072, 30, 4, 7500, 15),
    "r1_distill": (256, 64, 8, 1e-6, 7168, 6, 8, 40_000, 25),
    "gsm8k": (128, 128, 8, 1.5e-5, 1024, 10, 8, 7473, 58),
    "deepmath_7b": (512, 128, 16, 2e-6, 3072, 30, 8, 6000, 15),
}
MODELS = {
    "qwen_math": "Qwen/Qwen2.5-Math-1.5B",
    "r1_distill": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "gsm8k": "Qwen/Qwen2.5-1.5B-Instruct",
    "deepmath_7b": "Qwen/Qwen2.5-Math-7B",
}
# file: (support, controller, warm-up in rollout phases)
BAND_A = Band(initial=0.002, low=0.15, high=0.24, step_size=0.002, minimum=6e-4, maximum=9e-3)
BAND_B = Band(initial=3e-4, low=0.35, high=0.62, step_size=1e-4, minimum=4e-5, maximum=1e-3)
ENTROPY: dict[str, tuple[Any, Controller, int]] = {
    "qwen_math_aent": (DropLowest(0.33), BAND_A, 30),
    "qwen_math_entreg": (Full(), Constant(0.002), 0),
    "qwen_math_grpo": (DropLowest(0.33), Constant(0.0), 0),
    "r1_distill_aent": (DropLowest(0.25), BAND_B, 156),
    "r1_distill_entreg": (Full(), Constant(3e-4), 0),
    "r1_distill_grpo": (DropLowest(0.25), Constant(0.0), 0),
    "gsm8k_aent": (DropLowest(0.4), Constant(0.0020 / 10), 0),  # rewards of the recipe are scaled by 10
    "deepmath_7b_aent": (DropLowest(0.33), BAND_A, 30),
}
# Table 1: MATH-Hard, MATH-500, AIME24, Minerva, OlympiadBench, AMC23
RESULTS = {
    "qwen_math_base": (0.368, 0.584, 0.083, 0.179, 0.279, 0.406),
    "qwen_math_grpo": (0.524, 0.756, 0.192, 0.311, 0.364, 0.550),
    "qwen_math_entreg": (0.546, 0.752, 0.167, 0.316, 0.370, 0.562),
    "qwen_math_aent": (0.552, 0.750, 0.217, 0.330, 0.377, 0.581),
    "r1_distill_base": (0.661, 0.792, 0.225, 0.311, 0.432, 0.594),
    "r1_distill_grpo": (0.773, 0.865, 0.367, 0.347, 0.576, 0.769),
    "r1_distill_entreg": (0.808, 0.872, 0.342, 0.359, 0.576, 0.794),
    "r1_distill_aent": (0.813, 0.882, 0.392, 0.359, 0.591, 0.825),
}
TESTS = ("MATH-Hard", "MATH-500", "AIME24", "Minerva", "OlympiadBench", "AMC23")

NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
PAPER = sorted(ENTROPY)
PRINT_FSDP2 = "python -m aent_llm configs fsdp2 > fsdp2.yaml"
README = (CONFIGS.parents[1] / "README.md").read_text(encoding="utf-8")


def row_of(name: str) -> str:
    return name.rpartition("_")[0]


def batch(experiment: Experiment, gpus: int, **changed: Any) -> tuple[float, float, int]:
    """(prompts per rollout phase, prompts per optimiser step, rollouts), by TRL's definitions."""
    t = {**experiment.train, **changed}
    micro_batch = t["per_device_train_batch_size"] * gpus  # completions
    n = t["num_generations"]
    return micro_batch * t["steps_per_generation"] / n, micro_batch * t["gradient_accumulation_steps"] / n, n


def launched(line: str, experiment: Experiment) -> tuple[int, Experiment]:
    """GPUs in all, and the experiment that a launch line would run."""
    program, *words = shlex.split(line.replace("$NODE", "1"))
    assert program == "accelerate"
    assert words[0] == "launch"
    asked = launch_command_parser().parse_args(words[1:])
    assert asked.module
    assert (asked.training_script, asked.training_script_args[0]) == ("aent_llm", "train")
    if asked.config_file:
        assert asked.config_file == "fsdp2.yaml"  # written by the block's first line
    else:
        assert asked.multi_gpu
        assert asked.mixed_precision == "bf16"
    options = train._parser().parse_args(asked.training_script_args[1:])
    assert options.config == experiment.name
    changes = {key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in options.set)}
    return asked.num_processes, load_experiment(CONFIGS / f"{experiment.name}.yaml", changes)


def at(raw: dict[str, Any], dotted: str) -> Any:
    for key in dotted.split("."):
        raw = raw[key]
    return raw


# ----------------------------------------------------------------------------------------------------------- all files


def test_the_rows_of_the_paper_are_all_here():
    assert set(PAPER) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_dry_runs(name: str, capsys: pytest.CaptureFixture[str]):
    assert train.main(["--config", name, "--dry-run"]) == 0
    assert "completions per optimiser step" in capsys.readouterr().out


@pytest.mark.parametrize("name", PAPER)
def test_train_keys_are_trls(name: str):
    raw = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert raw["train"].keys() <= {one.name for one in dataclasses.fields(GRPOConfig)}


def test_a_misspelt_key_is_refused(tmp_path: Path):
    text = (CONFIGS / "qwen_math_aent.yaml").read_text(encoding="utf-8")
    for right, wrong in (("learning_rate:", "learning_rat:"), ("  template:", "  tempalte:"), ("share:", "shares:")):
        assert right in text
        (tmp_path / "bad.yaml").write_text(text.replace(right, wrong), encoding="utf-8")
        with pytest.raises(ValueError, match=wrong.strip(" :")):
            load_experiment(tmp_path / "bad.yaml")


# ------------------------------------------------------------------------------------------------------ found by name


@pytest.mark.parametrize("name", ["gsm8k_aent", "gsm8k_aent.yaml", CONFIGS / "gsm8k_aent.yaml"])
def test_a_config_is_found_by_name_from_anywhere(name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == CONFIGS / "gsm8k_aent.yaml"
    assert load_experiment(name).name == "gsm8k_aent"


@pytest.mark.parametrize("name", ["gsm8k_aent", "gsm8k_aent.yaml"])
def test_a_file_of_yours_comes_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k_aent").mkdir()  # a folder of this name is no config
    Path("gsm8k_aent.yaml").write_text(find_config("cpu_aent").read_text(encoding="utf-8"), encoding="utf-8")
    assert load_experiment(name).model.source == "tiny"


@pytest.mark.parametrize("name", ["gsm8k_aen", "elsewhere/gsm8k_aent.yaml", "llm/configs/gsm8k_aent.yaml"])
def test_no_other_config_is_taken_for_a_missing_file(name: str, capsys: pytest.CaptureFixture[str]):
    assert run_command(["train", "--config", name, "--dry-run"]) != 0
    message = capsys.readouterr().err
    assert f"{name}: no such file" in message
    assert "gsm8k_aent" in message.removeprefix(f"aent_llm train: {name}")
    assert "python -m aent_llm configs" in message


def test_a_config_of_accelerate_is_no_experiment():
    with pytest.raises(FileNotFoundError, match="no config of the package"):
        find_config("fsdp2")


def test_the_command_lists_every_config_with_what_it_is(capsys: pytest.CaptureFixture[str]):
    assert run_command(["configs"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(listed) == {*NAMES, "fsdp2"}
    assert all(10 < len(about) < 160 and "\n" not in about for about in listed.values())
    assert "Qwen2.5-Math-1.5B on MATH" in listed["qwen_math_aent"]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_prints_a_copy_to_start_from(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_command(["configs", name]) == 0
    copy = tmp_path / "mine.yaml"
    copy.write_text(capsys.readouterr().out, encoding="utf-8")
    assert copy.read_bytes() == (CONFIGS / f"{name}.yaml").read_bytes()
    assert load_experiment(copy).raw == load_experiment(name).raw


# ----------------------------------------------------------------------------------------------------- paper: settings


@pytest.mark.parametrize("name", PAPER)
def test_published_settings(name: str):
    prompts, mini_batch, rollouts, lr, response, epochs, gpus, problems, test_every = SETTINGS[row_of(name)]
    file = load_experiment(CONFIGS / f"{name}.yaml")
    args = file.training_arguments("unused", use_cpu=True, bf16=False)
    assert file.model.source == MODELS[row_of(name)]
    assert (args.learning_rate, args.max_completion_length, args.num_train_epochs) == (lr, response, epochs)
    assert (args.beta, args.num_iterations, args.scale_rewards) == (0.0, 1, "group")  # no KL, one PPO epoch, GRPO
    assert args.vllm_max_model_length - args.max_completion_length == 1024  # the room for the prompt
    assert file.rewards == ("math_verify",)
    assert file.paper["hardware"]["gpus"] == gpus
    assert batch(file, gpus) == (prompts, mini_batch, rollouts)
    assert file.paper["batch"] == {
        "prompts_per_step": prompts, "mini_batch_prompts": mini_batch, "rollouts": rollouts, "ppo_epochs": 1,
        "epochs": epochs, "test_every": test_every,
    }  # fmt: skip
    # a checkpoint at every test of the paper, and a log line per phase at least
    assert args.save_steps == test_every * (prompts // mini_batch)
    assert prompts // mini_batch % args.logging_steps == 0
    # comments in the files name the number of optimiser steps
    steps = problems // prompts * epochs * (prompts // mini_batch)
    if name.endswith("aent"):
        assert f"{steps:,} optimiser steps" in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")


def test_published_settings_hold_for_trls_own_arithmetic():
    """TRL derives the generation batch itself; on one process it is one GPU's share."""
    for name, gpus in (("qwen_math_aent", 4), ("r1_distill_aent", 8), ("gsm8k_aent", 8)):
        prompts, _, rollouts, *_ = SETTINGS[row_of(name)]
        args = load_experiment(CONFIGS / f"{name}.yaml").training_arguments("unused", use_cpu=True, bf16=False)
        assert args.generation_batch_size * gpus == prompts * rollouts


@pytest.mark.parametrize("name", PAPER)
def test_the_batch_check_would_notice(name: str):
    file, row = load_experiment(CONFIGS / f"{name}.yaml"), SETTINGS[row_of(name)]
    assert batch(file, row[6] * 2) != row[:3]
    assert batch(file, row[6], num_generations=row[2] // 2) != row[:3]
    assert batch(file, row[6], gradient_accumulation_steps=1) != row[:3]


@pytest.mark.parametrize("name", PAPER)
def test_entropy_block(name: str):
    rule, moved_by, warmup = ENTROPY[name]
    file = load_experiment(CONFIGS / f"{name}.yaml")
    args = file.training_arguments("unused", use_cpu=True, bf16=False)
    assert isinstance(args, AEntGRPOConfig)
    assert support(args.entropy_support) == rule
    assert controller(args.entropy_controller) == moved_by
    assert args.entropy_warmup_steps == warmup


@pytest.mark.parametrize(
    ("name", "vectors"),
    [
        ("qwen_math_aent", {0: 0.0023, 0.05: 0.0022, 0.15: 0.002, 0.24: 0.002, 0.5: 0.00148, 1: 0.0006}),
        ("r1_distill_aent", {0: 3.35e-4, 0.35: 3e-4, 0.62: 3e-4, 1: 2.62e-4, 4: 4e-5}),
    ],
)
def test_controllers_move_as_published(name: str, vectors: dict[float, float]):
    rule = controller(load_experiment(CONFIGS / f"{name}.yaml").entropy["controller"])
    for entropy, coefficient in vectors.items():
        assert rule.update(rule.init(), entropy).coefficient == pytest.approx(coefficient, rel=1e-12)
    state, updates = rule.init(), 0
    while state.coefficient < rule.maximum * (1 - 1e-9):  # type: ignore[attr-defined]
        state, updates = rule.update(state, 0.0), updates + 1
    assert updates == {"qwen_math_aent": 24, "r1_distill_aent": 20}[name]  # ceil((maximum - initial) / (step * low))


@pytest.mark.parametrize("row", ["qwen_math", "r1_distill"])
def test_methods_of_a_row_differ_in_nothing_else(row: str):
    files = [load_experiment(CONFIGS / f"{row}_{method}.yaml").raw for method in ("grpo", "entreg", "aent")]
    shared = [{key: value for key, value in raw.items() if key not in ("entropy", "paper")} for raw in files]
    assert shared[0] == shared[1] == shared[2]


# ---------------------------------------------------------------------------------------------------- paper: the block


@pytest.mark.parametrize("name", sorted(RESULTS.keys() & set(PAPER)))
def test_expected_numbers(name: str):
    paper = load_experiment(CONFIGS / f"{name}.yaml").paper
    for block, key in (("expected", name), ("base", f"{row_of(name)}_base")):
        found = dict(paper[block])
        mean = found.pop("mean")
        assert found == dict(zip(TESTS, RESULTS[key], strict=True))
        assert mean == pytest.approx(sum(RESULTS[key]) / 6, abs=6e-5)


def test_expected_numbers_of_the_others():
    assert load_experiment(CONFIGS / "gsm8k_aent.yaml").paper["expected"] == {"GSM8K": 0.79971}
    seven = load_experiment(CONFIGS / "deepmath_7b_aent.yaml").paper
    assert (seven["expected"], seven["compared_with"]) == ({"MATH-Hard": 0.657}, {"MATH-Hard": 0.628})


@pytest.mark.parametrize("name", PAPER)
def test_paper_block_is_complete_and_true(name: str):
    file = load_experiment(CONFIGS / f"{name}.yaml")
    paper = file.paper
    assert {"reference", "row", "script", "hardware", "batch", "evaluation", "expected", "launch", "unknown"} < set(
        paper
    )
    assert paper["rerun"] is False
    listed = {one["field"]: one for one in paper["unknown"]}
    assert len(listed) == len(paper["unknown"])
    for field, one in listed.items():
        assert at(file.raw, field) == one["value"], f"{field} says {one['value']}, the file has another value"
        assert len(one["why"]) > 10
    if row_of(name) in ("qwen_math", "r1_distill"):
        assert {"train.temperature", "train.loss_type", "train.epsilon", "data.template", "data.source"} <= set(listed)
    assert ("entropy.controller.coefficient" in listed) == (name.endswith("entreg") or name == "gsm8k_aent")
    if name == "r1_distill_entreg":
        assert "NOT PUBLIC" in listed["entropy.controller.coefficient"]["why"]
    if name == "deepmath_7b_aent":  # nearly everything: all of the entropy block and the batch
        rule = {
            "share",
            *(f"controller.{key}" for key in ("initial", "low", "high", "step_size", "minimum", "maximum")),
        }
        assert {f"entropy.{'support.' if one == 'share' else ''}{one}" for one in rule} <= set(listed)
        assert {"train.learning_rate", "train.num_generations", "train.num_train_epochs"} <= set(listed)


@pytest.mark.parametrize("name", PAPER)
def test_launch_lines(name: str):
    file, row = load_experiment(CONFIGS / f"{name}.yaml"), SETTINGS[row_of(name)]
    lines = dict(file.paper["launch"])
    written = lines.pop("config_file", None)
    assert written == (PRINT_FSDP2 if "--config_file" in lines["one_node"] else None)
    server = shlex.split(lines.pop("server"))
    assert server[:2] == ["trl", "vllm-serve"]
    asked, left = server_parser().parse_args_and_config(server[2:], return_remaining_strings=True)
    assert left == []
    assert (asked.model, asked.max_model_len) == (file.model.source, file.train["vllm_max_model_length"])
    assert len(lines) == 3
    seen = {}
    for label, line in lines.items():
        gpus, run = launched(line, file)
        seen[label] = gpus
        assert batch(run, gpus) == row[:3], f"{label} changes the batch"
        assert run.plan(gpus)["prompts per rollout phase"] == row[0]
        assert run.train["vllm_mode"] == ("server" if label == "multi_node" else "colocate")
    assert seen["one_node"] == row[6]
    assert sorted(set(seen.values()) & {4, 8}) == [4, 8]  # both sizes of one node


@pytest.mark.parametrize("name", PAPER)
def test_evaluation_command(name: str):
    file = load_experiment(CONFIGS / f"{name}.yaml")
    block = file.paper["evaluation"]
    program, *words = shlex.split(block["command"])
    assert (program, words[:3]) == ("python", ["-m", "aent_llm", "eval"])
    asked = evaluate._parser().parse_args(words[3:])
    assert [eval_sets.resolve(one) for one in asked.data]
    assert len(asked.data) == len(block["benchmarks"])
    asked_sampling = {key: getattr(asked, key) for key in ("temperature", "top_p", "top_k", "samples")}
    assert asked_sampling == block["sampling"]
    assert asked.max_tokens == file.train["max_completion_length"]
    if row_of(name) in ("qwen_math", "r1_distill"):
        top_k = 20 if row_of(name) == "qwen_math" else 0
        assert block["sampling"] == {"temperature": 0.6, "top_p": 0.95, "top_k": top_k, "samples": 4}


def test_accelerate_config_is_fsdp2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command, file = PRINT_FSDP2.removeprefix("python -m aent_llm ").split(" > ")
    assert run_command(command.split()) == 0
    (tmp_path / file).write_text(capsys.readouterr().out, encoding="utf-8")
    config = load_config_from_file(str(tmp_path / file))
    assert config.distributed_type == "FSDP"
    assert getattr(config, "fsdp_config")["fsdp_version"] == 2  # noqa: B009


# -------------------------------------------------------------------------------------------------------------- README


def test_the_readme_names_every_config():
    for name in PAPER:
        row, _, method = name.rpartition("_")
        assert name in README or re.search(rf"{row}_\{{[a-z,]*{method}[a-z,]*\}}", README), name


def test_commands_of_the_readme_are_understood():
    parsers = {"train": train._parser(), "eval": evaluate._parser(), "calibrate": calibrate._parser()}
    lines = re.findall(rf"python -m aent_llm ({'|'.join(parsers)})\b([^#\n`]*)", README)
    assert {command for command, _ in lines} == set(parsers)
    for command, rest in lines:
        parsers[command].parse_args(shlex.split(rest))
