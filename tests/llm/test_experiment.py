"""Experiment files: what they hold reaches the classes that use it, and nothing is ignored in silence."""

import dataclasses
import fnmatch
import re
import socket
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
import yaml
from trl.trainer.grpo_config import GRPOConfig

import small
from aent.controllers import Band, Constant, Spring
from aent.entropy import DropLowest, Full, Nucleus
from aent.methods import METHODS
from aent.shaping import KLCovariance, PeakBonus
from aent_llm.__main__ import main
from aent_llm.data.problems import DataConfig
from aent_llm.data.tiny import TinySpec
from aent_llm.measure.evaluate import EvalConfig
from aent_llm.schema import Places
from aent_llm.training import config as configs
from aent_llm.training.config import AEntGRPOConfig
from aent_llm.training.experiment import NOT_SET_HERE, ModelConfig, load_experiment, overridden, parse_experiment
from aent_llm.training.unheeded import TABLE, Planned, unheeded

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


def test_text_is_converted_by_the_type_of_its_key(tmp_path) -> None:
    """YAML 1.1 took numbers without a dot for text; quoted ones were passed on as text. Both failed after loading."""
    path = tmp_path / "one.yaml"
    lines = ["adam_epsilon: 1e-8", "weight_decay: 1e-2", "beta: 1e-3", 'max_steps: "7"', "warmup_steps: 2.0"]
    text = yaml.safe_dump({**RAW, "train": {"use_cpu": True, "bf16": False, "num_generations": 4}})
    path.write_text(text.replace("use_cpu: true", "\n  ".join(["use_cpu: true", *lines])))
    overrides = {"entropy.tile_bytes": "64", "entropy.support": {"type": "drop_lowest", "share": "0.3"}}
    experiment = load_experiment(path, overrides)
    args = experiment.training_arguments(tmp_path / "out")
    assert (args.adam_epsilon, args.weight_decay, args.beta, args.max_steps) == (1e-8, 0.01, 0.001, 7)
    assert isinstance(args.max_steps, int)
    assert (args.entropy_tile_bytes, args.entropy_support["share"]) == (64, 0.3)
    assert DataConfig("tiny", count="3").count == 3  # type: ignore[arg-type]
    assert EvalConfig(samples="3", temperature="5e-1") == EvalConfig(samples=3, temperature=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig("tiny", chat="no"), "data.chat: expected true or false, got 'no'"),
        (lambda: DataConfig("tiny", limit=2.5), "data.limit: expected a whole number of at least 1, or null, got 2.5"),
        (lambda: EvalConfig(seed=True), "seed: expected a whole number of at least 0 and below 4294967296, got true"),
        (lambda: TinySpec(layers=0), "tiny.layers: expected a whole number of at least 1 and at most 1000, got 0"),
        (lambda: ModelConfig(source=""), "model.source: expected text of at least one letter, got ''"),
        (lambda: ModelConfig(source="x", tiny={"layers": 1}), "model.tiny describes the embedded model"),
        (lambda: AEntGRPOConfig("x", use_cpu=True, bf16=False, loss_type="dappo"), "did you mean 'dapo'"),
        (
            lambda: AEntGRPOConfig("x", use_cpu=True, bf16=False, temperature=0),
            "temperature: expected a number of at least 1e-06",
        ),
    ],
)
def test_the_classes_refuse_in_python_what_the_file_does(make, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        make()
    assert len(str(caught.value).splitlines()) == 1


def test_anchors_and_merges_of_yaml_are_read(tmp_path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        "data: &problems {source: tiny, count: 8}\nevaluation: {data: {<<: *problems, seed: 1}}\nrewards: arithmetic\n"
    )
    experiment = load_experiment(path)
    assert experiment.evaluation is not None
    assert experiment.evaluation.data == DataConfig("tiny", count=8, seed=1)
    assert (experiment.rewards, experiment.entropy) == (("arithmetic",), {"support": "full", "controller": 0.0})


def test_weights_of_rewards_are_given_once_and_reach_trl(tmp_path) -> None:
    experiment = parse_experiment({**RAW, "rewards": {"arithmetic": 1, "exact_match": "0.2"}}, "one")
    assert experiment.rewards == ("arithmetic", "exact_match")
    assert experiment.training_arguments(tmp_path).reward_weights == [1.0, 0.2]
    both = {**RAW, "rewards": {"arithmetic": 1}, "train": {"reward_weights": [1]}}
    with pytest.raises(ValueError, match="give the weights once"):
        parse_experiment(both, "one")


def test_the_batch_is_whole_on_the_number_of_gpus_asked_for(tmp_path, capsys) -> None:
    """2 completions a GPU are half a group on one GPU, and a whole one on two."""
    train = {**RAW["train"], "per_device_train_batch_size": 2, "max_completion_length": 9}
    train = {
        key: value for key, value in train.items() if key not in ("gradient_accumulation_steps", "steps_per_generation")
    }
    path = written(tmp_path, train=train)
    assert main(["train", "--config", str(path), "--dry-run", "--processes", "2"]) == 0
    assert "'prompts per rollout phase': 1," in capsys.readouterr().out
    assert main(["train", "--config", str(path), "--dry-run"]) == 2
    assert "a rollout of 2 completions" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"3 micro-batches .*is not whole optimiser"):
        load_experiment(path, {"train.steps_per_generation": 3, "train.gradient_accumulation_steps": 2}).plan(2)
    plan = load_experiment(path, {"train.generation_batch_size": 16}).plan(2)
    assert (plan["prompts per rollout phase"], plan["optimiser steps per rollout phase"]) == (4, 4)


def test_a_dry_run_says_what_it_could_not_reach_and_asks_no_network(tmp_path, capsys, monkeypatch) -> None:
    def connect(*_):
        raise AssertionError("a dry run asked the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert main(["train", "--config", "qwen_math_aent", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for missing in ("bfloat16 on a GPU", "DigitalLearningGmbH/MATH-lighteval", "Qwen/Qwen2.5-Math-1.5B"):
        assert re.search(f"not checked here: .*{re.escape(missing)}", out), missing
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_the_reference_may_be_narrowed_to_a_word(capsys) -> None:
    assert main(["train", "--settings"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert main(["train", "--settings", "LEARNING_rate"]) == 0
    shown = capsys.readouterr().out
    found = [line for line in shown.splitlines() if line.startswith("| `")]
    assert found == [row for row in rows if "learning_rate" in row.casefold()]
    assert {"`model.tiny.learning_rate`", "`train.learning_rate`"} <= {row.split()[1] for row in found}
    headings = [line for line in shown.splitlines() if line.startswith("#")]
    assert "## train" in headings
    assert "## data" not in headings
    assert main(["train", "--settings", "learnin_rate"]) == 2
    assert "no setting has this in its name or meaning; did you mean 'learning_rate'" in capsys.readouterr().err


# Fields that always do something, or that are refused where they do not.
HEEDED = """
accelerator_config adam_* auto_find_batch_size beta bf16 cast_lm_head_to_fp32 chat_template_kwargs correct_reward
dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory
dataloader_prefetch_factor ddp_* debug deepspeed delta disable_dropout do_train enable_jit_checkpoint entropy_coef
entropy_diagnostics entropy_engine entropy_method entropy_shaping entropy_support entropy_tile_bytes epsilon_high fp16
fsdp full_determinism generation_batch_size generation_kwargs gradient_accumulation_steps gradient_checkpointing
ignore_data_skip importance_sampling_level learning_rate log_completions log_completions_hub_repo log_level
log_level_replica log_on_each_node logging_first_step logging_strategy loss_type lr_scheduler_type
mask_truncated_completions max_completion_length max_grad_norm max_steps min_p multi_objective_aggregation
neftune_noise_alpha num_generations num_iterations off_policy_mask_threshold optim pad_to_multiple_of
per_device_train_batch_size push_to_hub remove_unused_columns repetition_penalty report_to
restore_callback_states_from_checkpoint reward_weights router_aux_loss_coef save_on_each_node save_only_model
save_strategy save_total_limit scale_rewards seed shuffle_dataset skip_memory_metrics steps_per_generation
sync_ref_model temperature tf32 top_entropy_quantile top_k top_p torch_compile torch_compile_* torch_empty_cache_steps
use_adaptive_entropy use_cache use_cpu use_liger_kernel use_vllm vllm_importance_sampling_correction weight_decay
"""


def test_of_every_setting_it_is_known_whether_it_is_heeded() -> None:
    """A new version of TRL with a new field ends here: it goes into the table of ``unheeded.py``, or above."""
    fields = {one.name for one in dataclasses.fields(AEntGRPOConfig) if one.init} - set(NOT_SET_HERE)
    patterns = [*(one for row in TABLE for one in row.settings.split()), *HEEDED.split()]
    known = {name for name in fields for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
    assert fields - known == set()
    for pattern in patterns:
        assert fnmatch.filter(fields, pattern), f"{pattern} is no setting any more"


OF_NO_RUN = {
    "do_eval": True, "do_predict": True, "eval_steps": 1, "eval_delay": 1, "eval_accumulation_steps": 1,
    "per_device_eval_batch_size": 3, "num_generations_eval": 3, "prediction_loss_only": True,
    "include_for_metrics": ["loss"], "batch_eval_metrics": True, "metric_for_best_model": "x",
    "greater_is_better": True, "bf16_full_eval": True, "label_smoothing_factor": 0.5, "label_names": ["answer"],
    "average_tokens_across_devices": False, "logging_nan_inf_filter": False, "length_column_name": "prompt",
    "train_sampling_strategy": "sequential", "data_seed": 11, "dataloader_drop_last": True,
    "include_num_input_tokens_seen": "all", "max_tool_calling_iterations": 0, "log_multimodal": False,
}  # fmt: skip
OF_THIS_RUN = {
    "lr_scheduler_kwargs": {"x": 1}, "warmup_steps": 1, "adam_beta1": 0.5, "adam_epsilon": 0.1, "num_train_epochs": 1.0,
    "ref_model_mixup_alpha": 0.1, "ref_model_sync_steps": 1, "use_bias_correction_kl": False, "epsilon": 0.01,
    "epsilon_high": 0.01, "sapo_temperature_neg": 2.0, "vespo_k_pos": 1.0, "entropy_coef_delta": 1.0,
    "entropy_target": 5.0, "gradient_checkpointing_kwargs": {"use_reentrant": True}, "fsdp_config": {"version": 1},
    "ds3_gather_for_generation": False, "vllm_mode": "server", "vllm_importance_sampling_mode": "token_mask",
    "sampler_tolerance": 1e-9, "save_steps": 1, "hub_strategy": "end", "hub_model_id": "a/b", "run_name": "x",
    "project": "x", "log_unique_prompts": True, "num_completions_to_print": 1, "trust_remote_code": True,
    "entropy_warmup_steps": 1, "liger_kernel_config": {"x": 1},
}  # fmt: skip


def test_what_is_said_to_have_no_effect_has_none(tmp_path) -> None:
    """All of them together change no weight in two steps; one that has an effect does."""
    plain = {"max_steps": 2, "entropy_controller": 0.1, "logging_strategy": "no"}
    changes = {"plain": {}, "no run": OF_NO_RUN, "this run": {**OF_THIS_RUN, "logging_steps": 7}, "other": {"seed": 5}}
    found = {}
    for name, changed in changes.items():
        one = small.trainer(tmp_path / name, **{**plain, **changed})
        one.train()
        found[name] = small.weights(one)
        args = one.args
        said = [setting for names, _ in unheeded(changed, Planned(args, 2, 2)) for setting in names]
        assert {*said, *(setting for names, _ in unheeded(changed) for setting in names)} == set(changed) - {"seed"}
    assert torch.equal(found["no run"], found["plain"])
    assert torch.equal(found["this run"], found["plain"])
    assert not torch.equal(found["other"], found["plain"])


def test_the_reference_names_every_setting_and_no_other(capsys) -> None:
    assert main(["train", "--settings"]) == 0
    page = capsys.readouterr().out
    named = set(re.findall(r"^\| `([\w.]+)` \|", page, flags=re.MULTILINE))
    for prefix, cls in (
        ("data", DataConfig),
        ("evaluation", EvalConfig),
        ("model", ModelConfig),
        ("model.tiny", TinySpec),
    ):
        fields = {f"{prefix}.{one.name}" for one in dataclasses.fields(cls)}
        assert fields <= named
        assert all(one.metadata.get("help") for one in dataclasses.fields(cls))
    ours = {one.name for one in dataclasses.fields(AEntGRPOConfig)} - {
        one.name for one in dataclasses.fields(GRPOConfig)
    }
    for name in ours:
        key = f"entropy.{name.removeprefix('entropy_')}" if name.startswith("entropy_") else f"train.{name}"
        assert key in named
    assert "train.output_dir" not in named
    assert "| `train.loss_type` | grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo or vespo | `'dapo'` |" in page
    assert all(kind in page for kind in ("`DropLowest` (share)", "`Band` (initial, low", "`PeakBonus`"))


def test_another_type_leaves_the_options_of_the_file_s_rule_out() -> None:
    """`cpu_aent` has a band and top-k; the order on the command line does not matter."""
    given = {"entropy.support.share": 0.5, "entropy.support.type": "drop_lowest"}
    assert load_experiment("cpu_aent", given).entropy["support"] == {"type": "drop_lowest", "share": 0.5}
    same = load_experiment("cpu_aent", {"entropy.support.type": "top_k"}).entropy["support"]
    assert same == load_experiment("cpu_aent").entropy["support"]


def test_the_reference_has_the_options_of_every_rule(capsys) -> None:
    assert main(["train", "--settings", "band"]) == 0
    shown = capsys.readouterr().out
    assert "## entropy.controller of type Band" in shown
    assert "a dead band [low, high] of entropy" in shown
    assert all(f"`entropy.controller.{name}`" in shown for name in ("low", "high", "step_size", "warmup_steps"))
    assert "`entropy.support.k`" not in shown


def test_it_is_said_which_of_several_rewards_is_correct(capsys) -> None:
    rewards = "{exact_match: 0.2, arithmetic: 1}"
    assert main(["train", "--config", "cpu_aent", "--dry-run", f"--set=rewards={rewards}"]) == 0
    assert "correct: exact_match, the first of rewards, gives 0.5 or more" in capsys.readouterr().err


def test_a_type_that_names_no_rule_leaves_its_block_alone() -> None:
    raw = {"model": {"source": "tiny", "dtype": "float32"}, "entropy": {"support": {"type": "top_k", "k": 9}}}
    found, _ = overridden(raw, {"model.type": "x", "type": "y", "entropy.support.type": "full"}, Places())
    assert found["model"] == {"source": "tiny", "dtype": "float32", "type": "x"}
    assert found == {"model": found["model"], "type": "y", "entropy": {"support": {"type": "full"}}}
