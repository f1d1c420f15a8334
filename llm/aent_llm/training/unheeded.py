"""Settings that have no effect, and what to do instead: all fields of ``trl.GRPOConfig`` were gone through for it.

    for name, why in unheeded({"eval_steps": 10}): ...             # what no run of the train command heeds: refused
    for name, why in unheeded({"hub_strategy": "end"}, run): ...   # what this run does not heed: said

Two kinds, because files are varied by ``--set``: with ``--set train.use_vllm=false`` all other settings of vLLM may
stay in the file, and one line says that they rest. A setting that has its default is never complained about.

Left out: ``ddp_*`` and the like on one process, which the next launch may have more of.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from aent.controllers import Constant

__all__ = ["Planned", "unheeded"]


class Planned(NamedTuple):
    """A run as it would be: its arguments, and its length as far as it is known."""

    args: Any  # AEntGRPOConfig
    steps: int | None = None  # of the optimiser
    phases: int | None = None  # rollouts


class Row(NamedTuple):
    """Settings (patterns) that have no effect ``when``; None: in no run of the train command."""

    settings: str
    instead: str
    when: Callable[[Planned], bool] | None = None
    verdict: str = "no effect"


ON_POLICY = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # losses that clip the ratio, which is 1 in the first update


def _text(setting: Any) -> str:
    """The text of a setting that transformers turns into an enumeration."""
    return str(getattr(setting, "value", setting))


def _controller(run: Planned) -> Any:
    from aent_llm.training.config import controller

    return controller(run.args.entropy_controller)


def _rests(warm_up: Any, length: int | None) -> bool:
    """Whether nothing of a run is left after its warm-up."""
    return length is not None and 0 < length <= warm_up


def _no_option_of_the_optimiser(name: str) -> Callable[[Planned], bool]:
    """Whether the optimiser is the same with this setting at its default."""

    def same(run: Planned) -> bool:
        from transformers import Trainer

        if getattr(run.args, name) == _default(run.args, name):
            return False  # not asked for
        plain = copy.copy(run.args)
        setattr(plain, name, _default(run.args, name))
        try:
            return Trainer.get_optimizer_cls_and_kwargs(plain) == Trainer.get_optimizer_cls_and_kwargs(run.args)
        except Exception:  # one that asks for the model, or cannot do without the setting
            return False

    return same


TABLE = (
    # ------------------------------------------------------------------------------------------ heeded by no run
    Row(
        "do_eval do_predict eval_* per_device_eval_batch_size num_generations_eval prediction_loss_only "
        "include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval load_best_model_at_end "
        "metric_for_best_model greater_is_better",
        "nothing is evaluated while training; the block evaluation names problems to measure before and after it",
    ),
    Row("label_smoothing_factor label_names", "there are no labels here, the policy learns from rewards"),
    Row("average_tokens_across_devices", "train.loss_type says what the loss is averaged over"),
    Row("logging_nan_inf_filter", "NaN or infinity ends a run"),
    Row("train_sampling_strategy length_column_name", "train.shuffle_dataset=false keeps the order of the problems"),
    Row("data_seed", "train.seed gives the order of the problems too"),
    Row("dataloader_drop_last", "problems that fill no rollout are always left out"),
    Row("include_num_input_tokens_seen", "the metric num_tokens counts them"),
    Row("max_tool_calling_iterations log_multimodal", "the command trains on text, without tools"),
    Row("local_rank", "the launcher gives it"),
    Row("disable_tqdm", "the command shows one bar of its own"),
    # ------------------------------------------------------------------- switched off by another setting of the run
    Row("num_train_epochs", "train.max_steps ends the run", lambda run: run.args.max_steps > 0),
    Row(
        "warmup_steps",
        "the schedule 'constant' has no warm-up; 'constant_with_warmup' has one",
        lambda run: _text(run.args.lr_scheduler_type) == "constant",
    ),
    Row(
        "lr_scheduler_kwargs",
        "the schedule (train.lr_scheduler_type) takes no options",
        lambda run: _text(run.args.lr_scheduler_type) in ("constant", "constant_with_warmup"),
    ),
    *(
        Row(name, "the optimiser (train.optim) does not take it", _no_option_of_the_optimiser(name))
        for name in ("optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon")
    ),
    Row("ref_model_*", "it needs train.sync_ref_model=true", lambda run: not run.args.sync_ref_model),
    Row("use_bias_correction_kl", "there is no KL with train.beta=0", lambda run: run.args.beta == 0.0),
    Row(
        "trust_remote_code",
        "model.trust_remote_code is for the policy, and there is neither a reference model nor vLLM",
        lambda run: run.args.beta == 0.0 and not run.args.use_vllm,
    ),
    Row(
        "epsilon epsilon_high",
        "the only update of each rollout has the ratio 1, which nothing clips; see train.steps_per_generation",
        lambda run: run.args.updates_per_phase == 1 and run.args.loss_type in ON_POLICY,
    ),
    Row(
        "epsilon",
        "this loss (train.loss_type) does not use it",
        lambda run: run.args.loss_type in ("cispo", "sapo", "vespo"),
    ),
    Row(
        "epsilon_high delta",
        "this loss (train.loss_type) does not use it",
        lambda run: run.args.loss_type in ("sapo", "vespo"),
    ),
    Row("sapo_*", "it belongs to train.loss_type=sapo", lambda run: run.args.loss_type != "sapo"),
    Row("vespo_*", "it belongs to train.loss_type=vespo", lambda run: run.args.loss_type != "vespo"),
    Row(
        "entropy_coef_* entropy_target",
        "it belongs to TRL's adaptive bonus; here entropy.controller moves the coefficient",
        lambda run: not run.args.use_adaptive_entropy,
    ),
    Row(
        "gradient_checkpointing_kwargs",
        "it needs train.gradient_checkpointing=true",
        lambda run: not run.args.gradient_checkpointing,
    ),
    Row("liger_kernel_config", "it needs train.use_liger_kernel=true", lambda run: not run.args.use_liger_kernel),
    Row("fsdp_config", "it needs train.fsdp=true", lambda run: not run.args.fsdp),
    Row("deepspeed", "it is an empty block", lambda run: not run.args.deepspeed),
    Row("ds3_gather_for_generation", "it belongs to DeepSpeed", lambda run: run.args.deepspeed_plugin is None),
    Row(
        "dataloader_in_order", "it needs train.dataloader_num_workers", lambda run: not run.args.dataloader_num_workers
    ),
    Row(
        "use_transformers_continuous_batching use_transformers_paged transformers_continuous_batching_config "
        "cache_implementation",
        "vLLM generates (train.use_vllm=true)",
        lambda run: run.args.use_vllm,
    ),
    Row(
        "transformers_continuous_batching_config",
        "it needs train.use_transformers_continuous_batching=true",
        lambda run: not (run.args.use_vllm or run.args.use_transformers_continuous_batching),
    ),
    Row("vllm_* sampler_tolerance", "it needs train.use_vllm=true", lambda run: not run.args.use_vllm),
    Row(
        "vllm_server_* vllm_group_port",
        "it needs train.vllm_mode=server",
        lambda run: run.args.use_vllm and run.args.vllm_mode == "colocate",
    ),
    Row(
        "vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_enable_sleep_mode vllm_model_impl",
        "the server was started with its own (train.vllm_mode=server)",
        lambda run: run.args.use_vllm and run.args.vllm_mode == "server",
    ),
    Row(
        "vllm_importance_sampling_mode vllm_importance_sampling_clip_* vllm_importance_sampling_cap",
        "it needs train.vllm_importance_sampling_correction=true",
        lambda run: run.args.use_vllm and not run.args.vllm_importance_sampling_correction,
    ),
    Row(
        "logging_steps",
        "it needs train.logging_strategy=steps",
        lambda run: _text(run.args.logging_strategy) != "steps",
    ),
    Row("save_steps", "it needs train.save_strategy=steps", lambda run: _text(run.args.save_strategy) != "steps"),
    Row("run_name", "no tracker is told (train.report_to)", lambda run: not run.args.report_to),
    Row("project trackio_*", "it needs trackio in train.report_to", lambda run: "trackio" not in run.args.report_to),
    Row(
        "log_unique_prompts num_completions_to_print",
        "it needs train.log_completions=true",
        lambda run: not run.args.log_completions,
    ),
    Row(
        "hub_model_id hub_strategy hub_token hub_always_push hub_revision",
        "it needs train.push_to_hub=true",
        lambda run: not run.args.push_to_hub,
    ),
    Row(
        "hub_private_repo",
        "it needs train.push_to_hub=true",
        lambda run: not (run.args.push_to_hub or run.args.log_completions_hub_repo or run.args.report_to),
    ),
    # ------------------------------------------------------------------------------ a warm-up as long as the run
    Row(
        "warmup_steps",
        "train.learning_rate is never reached",
        lambda run: (
            _text(run.args.lr_scheduler_type) != "constant"
            and _rests(run.args.get_warmup_steps(run.steps or 0), run.steps)
        ),
        verdict="no end within the run",
    ),
    Row(
        "entropy_warmup_steps",
        "the run has no more rollouts than that, so that entropy.controller never moves the coefficient; take fewer",
        lambda run: not isinstance(_controller(run), Constant) and _rests(run.args.entropy_warmup_steps, run.phases),
    ),
    Row(
        "entropy_warmup_steps",
        "entropy.controller never moves the coefficient",
        lambda run: isinstance(_controller(run), Constant),
    ),
    Row(
        "entropy_controller",
        "its warmup_steps are as many as the run has rollouts, so that it never moves the coefficient",
        lambda run: _rests(getattr(_controller(run), "warmup_steps", 0), run.phases),
    ),
)


def unheeded(given: Mapping[str, Any], run: Planned | None = None) -> Iterator[tuple[list[str], str]]:
    """Yield settings that have no effect, with that verdict: those that no run heeds, or those that ``run`` does not.

    Args:
        given: the fields of ``AEntGRPOConfig`` that someone has set, and their values.
        run: the run that they are for.
    """
    from aent_llm.training.config import AEntGRPOConfig

    for row in TABLE:
        if (row.when is None) == (run is None) and (row.when is None or run is None or row.when(run)):
            found = [
                name
                for name, value in given.items()
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in row.settings.split())
                and value != _default(AEntGRPOConfig, name)
            ]
            if found:
                yield found, f"{row.verdict}: {row.instead}"


def _default(of: Any, name: str) -> Any:
    (one,) = (one for one in fields(of) if one.name == name)
    return one.default if one.default_factory is MISSING else one.default_factory()
