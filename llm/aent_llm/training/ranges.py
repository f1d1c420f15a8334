"""What the settings of TRL's GRPO may be, where TRL and transformers find out late or never.

They check a name such as ``loss_type`` when the first loss is computed, a temperature when the first token is drawn,
after a model has been loaded and a run directory made. Types in the way of ``schema.py``; None as a value stays allowed
where it means "off" or "chosen for you".
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field

from aent_llm.schema import Block, Count, NaturalNumber, NonNegative, Positive, Seed, Share, Temperature, narrowed

__all__ = ["RANGES", "ranges_of"]

Port = Annotated[int, Field(ge=1, le=65_535)]
Decay = Annotated[float, Field(ge=0, lt=1)]
UpToOne = Annotated[float, Field(gt=0, le=1)]


class Ranges:
    """The type of each setting that is bounded here."""

    # names
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"]
    scale_rewards: Literal["group", "batch", "none"] | bool
    importance_sampling_level: Literal["token", "sequence"]
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"]
    vllm_mode: Literal["colocate", "server"]
    vllm_model_impl: Literal["vllm", "transformers"]
    vllm_importance_sampling_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
    cache_implementation: (
        Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized", "sliding_window", "hybrid"]
        | Literal["hybrid_chunked", "offloaded_hybrid", "offloaded_hybrid_chunked"]
        | None
    )
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None
    # numbers
    seed: Seed
    data_seed: Seed | None
    max_steps: Annotated[int, Field(ge=-1)]
    num_train_epochs: Annotated[float, Field(gt=0, le=1e9)]
    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count
    steps_per_generation: Count | None
    generation_batch_size: Count | None
    num_generations: Annotated[int, Field(ge=2)]
    num_iterations: Count
    max_completion_length: Count | None
    pad_to_multiple_of: Count | Literal["auto"] | None
    learning_rate: NonNegative
    reward_weights: list[float] | None
    warmup_steps: NonNegative
    weight_decay: NonNegative
    adam_beta1: Decay
    adam_beta2: Decay
    adam_epsilon: Positive
    max_grad_norm: NonNegative
    neftune_noise_alpha: Positive | None
    logging_steps: NonNegative
    save_steps: Positive
    save_total_limit: Count | None
    dataloader_num_workers: Annotated[int, Field(ge=0, le=1024)]
    temperature: Temperature
    top_p: UpToOne
    top_k: NaturalNumber
    min_p: Share | None
    repetition_penalty: Positive
    beta: NonNegative
    epsilon: Share
    epsilon_high: NonNegative | None
    delta: Positive | None
    top_entropy_quantile: Share
    off_policy_mask_threshold: Positive | None
    sapo_temperature_neg: Positive
    sapo_temperature_pos: Positive
    ref_model_mixup_alpha: Share
    ref_model_sync_steps: Count
    vllm_gpu_memory_utilization: UpToOne
    vllm_max_model_length: Count | None
    vllm_tensor_parallel_size: Count
    vllm_server_port: Port
    vllm_group_port: Port
    vllm_server_timeout: Positive
    entropy_tile_bytes: Count | None


RANGES: dict[str, Any] = get_type_hints(Ranges, include_extras=True)


@functools.cache
def ranges_of(cls: type) -> Block:
    """The settings of a GRPO config class that are bounded here."""
    settings = narrowed(cls, RANGES).settings
    return Block({name: settings[name] for name in RANGES})
