"""Whether the tokens that are sampled come from the policy that is trained, asked before the first step.

The trainer scores softmax(logits / temperature) over every row of the head: log-probabilities, entropies, ratios and KL
are of that distribution. Here is what makes a sampler draw from another one (settings of generation, also those that a
model brings along), and what makes the trainer score another one (a head that turns hidden states into logits in its
own way, positions that count the padding, a vocabulary that is not the tokenizer's).

What TRL or transformers would ignore or stumble over is refused; what is possible but trains another distribution than
it samples from is said once. Left out: weights that a sampler of its own must be sent (``vllm_sync.py``).
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import GenerationConfig
from transformers.utils import logging

from aent.names import suggest

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl.trainer.grpo_config import GRPOConfig

__all__ = [
    "NEUTRAL", "Vocabulary", "check", "check_generation_kwargs", "check_head", "check_ids", "check_stop_tokens",
    "compare_vocabularies", "counts_padding", "describe_differences", "incomparable", "padding_gaps",
]  # fmt: skip

logger = logging.get_logger(__name__)

_OFF = (None, False, 0, 0.0, [], {}, ())
_WHOLE = (None, 1, 1.0)
NEUTRAL: dict[str, tuple[Any, ...]] = {  # setting of generation -> values under which it changes no probability
    "do_sample": (None, True),
    **dict.fromkeys(("top_p", "typical_p", "repetition_penalty", "encoder_repetition_penalty"), _WHOLE),
    **dict.fromkeys(("guidance_scale", "num_beams", "num_beam_groups"), _WHOLE),
    "top_k": (None, 0, -1),
    **dict.fromkeys(("min_p", "top_h", "epsilon_cutoff", "eta_cutoff", "penalty_alpha", "dola_layers"), _OFF),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), _OFF),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"), _OFF),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "watermarking_config"), (None,)),
    **dict.fromkeys(("exponential_decay_length_penalty", "remove_invalid_values"), _OFF),
    **dict.fromkeys(("diversity_penalty", "constraints", "force_words_ids"), _OFF),
    # vLLM's own
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "min_tokens", "ignore_eos"), _OFF),
    **dict.fromkeys(("logit_bias", "allowed_token_ids", "bad_words", "logits_processors", "structured_outputs"), _OFF),
    "truncate_prompt_tokens": (None,),
}
_OF_TRL = ("top_p", "top_k", "min_p", "repetition_penalty")  # fields of GRPOConfig that reach the sampler
_BREAK_TRL = ("num_return_sequences", "n", "return_dict_in_generate", "stop_strings")


# ----------------------------------------------------------------------------------------------------- of a trainer


def check(trainer: Any, *, policy: PreTrainedModel) -> frozenset[int]:
    """Check a ``GRPOTrainer`` whose ``policy`` has the entropy head, and log once what will not agree.

    Returns:
        The ids that no token has.

    Raises:
        ValueError: as ``check_stop_tokens``, ``compare_vocabularies``, ``check_head``.
    """
    args, tokenizer, dataset = trainer.args, trainer._tokenizer, trainer.train_dataset
    if not args.use_vllm:
        check_stop_tokens(args, trainer.eos_token_ids)
    has_prompts = isinstance(dataset, Dataset) and "prompt" in dataset.column_names
    prompts = dataset["prompt"] if has_prompts else ()
    vocabulary = compare_vocabularies(policy, tokenizer, prompts)
    different = None if trainer.rollout_func else describe_differences(args, policy)
    for text in vocabulary.warnings if different is None else [*vocabulary.warnings, different]:
        _warn(trainer.accelerator, text)

    def refusal() -> str | None:
        try:
            return check_head(policy, trainer.temperature)
        except ValueError as error:
            return str(error)

    if (problem := _on_main_process(trainer.accelerator, policy, refusal)) is not None:
        raise ValueError(problem)
    return vocabulary.tokenless


def counts_padding(policy: PreTrainedModel, accelerator: Accelerator) -> bool:
    """Whether the model's own positions count the padding on the left, so that they must be taken from the mask.

    TRL scores without position ids, while ``generate`` gives those of the mask. A model that reads the padding itself
    cannot be helped: it is named in a warning.
    """
    found = _on_main_process(accelerator, policy, lambda: padding_gaps(policy))
    plain, counted = found or (0.0, 0.0)
    allowed = _tolerance(policy.dtype)
    if counted > allowed:
        _warn(
            accelerator,
            f"{type(policy).__name__} does not ignore the padding on the left of a prompt (total variation "
            f"{counted:.2g} to the prompt alone): sampled and scored is what follows the padded prompt. Use prompts of "
            "one length",
        )
    return plain > allowed >= counted


def _warn(accelerator: Accelerator, text: str) -> None:
    if accelerator.is_main_process:
        logger.warning(text)


def _on_main_process(accelerator: Accelerator, policy: torch.nn.Module, ask: Callable[[], Any]) -> Any:
    """What the main process answers, on all ranks: others may still lack the weights (FSDP). None if they are sharded.

    There they have no entries yet (DeepSpeed ZeRO-3) or no storage.
    """
    whole = all(p.numel() > 0 and p.device.type != "meta" for p in policy.parameters())
    answer = [ask() if accelerator.is_main_process and whole else None]
    return broadcast_object_list(answer)[0]


# --------------------------------------------------------------------------------------------------------- settings


def check_generation_kwargs(args: GRPOConfig) -> None:
    """Refuse what cannot be meant in ``generation_kwargs``.

    Raises:
        ValueError: a temperature or a length other than the field of ``args``; a name that transformers would ignore; a
            setting that changes the shape of what TRL gets back.
    """
    given: dict[str, Any] = args.generation_kwargs or {}  # type: ignore[assignment]  # JSON text is parsed by now
    temperature = given.get("temperature", args.temperature)
    if temperature != args.temperature:
        raise ValueError(
            f"generation_kwargs: temperature={temperature} beside temperature={args.temperature}: completions would be "
            "sampled at one and scored at the other. Set temperature alone; trainer and sampler both follow it"
        )
    for name in ("max_new_tokens", "max_tokens", "max_length"):
        if given.get(name) not in (None, args.max_completion_length):
            raise ValueError(
                f"generation_kwargs: {name}={given[name]} beside max_completion_length={args.max_completion_length}, "
                "by which context and batch are checked. Set max_completion_length alone"
            )
    if given.get("do_sample") is False:
        raise ValueError(
            "generation_kwargs: do_sample=false writes the same completion for a whole group, which teaches nothing. "
            "Leave it out"
        )
    for name in _BREAK_TRL:
        if given.get(name) not in (*_OFF, 1):
            raise ValueError(
                f"generation_kwargs: {name}={given[name]!r} does not go with GRPO, which wants one list of tokens per "
                "prompt, ended by an end-of-sequence token. Leave it out (num_generations is the size of a group)"
            )
    if args.use_vllm:
        return  # vLLM refuses what it does not know
    known = GenerationConfig().to_dict().keys()
    for name in given.keys() - known:
        hint = suggest(name, known) or "; see transformers.GenerationConfig for what there is."
        raise ValueError(f"generation_kwargs: transformers has no setting {name!r} and would ignore it{hint}")


def check_stop_tokens(args: GRPOConfig, known: Iterable[int]) -> None:
    """Refuse a stop token that the trainer does not know: it would count the padding behind it as sampled.

    Raises:
        ValueError: ``generation_kwargs`` has an ``eos_token_id`` that is not among ``known``.
    """
    given: Any = (args.generation_kwargs or {}).get("eos_token_id")  # type: ignore[union-attr]
    asked = {given} if isinstance(given, int) else set(given or ())
    if unknown := sorted(asked - set(known)):
        raise ValueError(
            f"generation_kwargs: eos_token_id={given} ends completions at {unknown}, but the trainer ends them at "
            f"{sorted(known)} and would train on the padding that follows. Set model.generation_config.eos_token_id"
        )


def incomparable(args: GRPOConfig, of_model: GenerationConfig | None = None) -> list[str]:
    """List what makes the sampled distribution another one than softmax(logits / temperature), as ``name=value``.

    The log-probabilities that vLLM reports under such a setting are of the cut or penalised distribution and cannot be
    checked against the trainer's.

    Args:
        args: its ``generation_kwargs`` go over its own fields, as in TRL.
        of_model: what the model brings along; transformers fills in from it what TRL leaves open, vLLM does not.
    """
    given: dict[str, Any] = args.generation_kwargs or {}  # type: ignore[assignment]
    values = {name: getattr(args, name) for name in _OF_TRL} | given
    found = [f"{name}={value}" for name, value in values.items() if name in NEUTRAL and value not in NEUTRAL[name]]
    if values.get("temperature", args.temperature) != args.temperature:
        found.append(f"temperature={values['temperature']}")
    if args.use_vllm and args.vllm_structured_outputs_regex is not None:
        found.append(f"vllm_structured_outputs_regex={args.vllm_structured_outputs_regex!r}")
    if of_model is None:
        return found
    brought = {name: getattr(of_model, name, None) for name in NEUTRAL if values.get(name) is None}
    brought.pop("do_sample", None)  # TRL sets it
    return found + [
        f"{name}={value} (from the model's generation_config)"
        for name, value in brought.items()
        if value not in NEUTRAL[name]
    ]


def describe_differences(args: GRPOConfig, model: PreTrainedModel) -> str | None:
    """Say in one line what makes the sampled distribution another one than the trained; None if nothing does."""
    found = incomparable(args, None if args.use_vllm else model.generation_config)
    shares = [one.p for one in model.modules() if isinstance(one, torch.nn.Dropout) and one.p > 0]
    if shares:
        found.append(f"dropout of {max(shares):g} in {len(shares)} modules (disable_dropout=True turns it off)")
    if not found:
        return None
    return (
        f"Completions are not sampled from the policy that is trained, because of {', '.join(found)}. The trainer "
        "scores softmax(logits / temperature) over all tokens: entropies, ratios and KL are of that distribution. "
        "Leave the setting out unless this is meant"
    )


# ------------------------------------------------------------------------------------------------------- vocabulary


class Vocabulary(NamedTuple):
    """How the tokenizer's ids and the model's rows fit: ids that no token has, and what should be said of them."""

    tokenless: frozenset[int]
    warnings: list[str]


def compare_vocabularies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Any] = ()
) -> Vocabulary:
    """Compare the rows of embedding and head with the ids of the tokenizer.

    Rows without a token are a warning: no sampler masks them (transformers, vLLM and TRL do not), so a mask in the
    trainer alone would score another distribution than was sampled from.

    Raises:
        ValueError: a token that the run will use and that the embedding has no row for.
    """
    ids, said = tokenizer.get_vocab(), []
    embedded, scored = _rows(model.get_input_embeddings()), _rows(model.get_output_embeddings())
    if beyond := {token: number for token, number in ids.items() if number >= embedded}:
        said.append(_beyond(beyond, embedded, _used(beyond, tokenizer, prompts)))
    tokenless = frozenset(range(scored)) - frozenset(ids.values())
    if tokenless:
        said.append(
            f"{len(tokenless)} of the {scored} rows of the head have no token (the tokenizer has {len(ids)}): these "
            "ids can be sampled, decode to nothing, and count in the full entropy like any other, so that a bonus on "
            "it pays for them too. How often they are drawn is logged as sampler/tokenless_share. A support that "
            "drops the tail leaves them out of the bonus while they are unlikely; to be rid of those at the end, for "
            "every sampler, call model.resize_token_embeddings(len(tokenizer)) before training"
        )
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    if missing := sorted({mark for mark in re.findall(r"<\|[\w-]+\|>", template) if mark not in ids}):
        said.append(
            f"the chat template writes {', '.join(missing[:5])}, which the tokenizer does not hold as a token: the "
            "model will read the mark in pieces. Is the template its own?"
        )
    return Vocabulary(tokenless, said)


def check_ids(sequences: Iterable[list[int]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse token ids that the embedding has no row for: on a GPU the look-up would end the process without a reason.

    Raises:
        ValueError: names the first such id and its token.
    """
    embedded = _rows(model.get_input_embeddings())
    for ids in sequences:
        if ids and max(ids) >= embedded:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise ValueError(
                f"token {max(ids)} ({token!r}) is in a prompt or completion, but the model embeds {embedded} tokens "
                f"only. {_RESIZE}"
            )


_RESIZE = "Is the tokenizer the model's own? After adding tokens call model.resize_token_embeddings(len(tokenizer))"


def _rows(module: Any) -> int:
    weight = module.weight
    return getattr(weight, "ds_shape", weight.shape)[0]  # DeepSpeed ZeRO-3 keeps an empty tensor in place


def _used(tokens: Iterable[str], tokenizer: Any, prompts: Iterable[Any]) -> list[str]:
    """Those of ``tokens`` that the run will write: named by the tokenizer, in the chat template or in a prompt."""
    named = {tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    used = {token for token in tokens if token in named or token in str(tokenizer.chat_template or "")}
    rest = set(tokens) - used
    for prompt in prompts:
        used |= {token for token in rest if token in str(prompt)}
    return sorted(used)


def _beyond(beyond: dict[str, int], embedded: int, used: list[str]) -> str:
    shown = used or sorted(beyond, key=lambda token: beyond[token])
    names = ", ".join(f"{token!r} ({beyond[token]})" for token in shown[:5])
    text = f"the tokenizer has {len(beyond)} tokens beyond the {embedded} that the model embeds: {names}"
    if used:
        raise ValueError(f"{text}, which this run uses. {_RESIZE}")
    return f"{text}. No prompt or template uses them; one that does will be refused. {_RESIZE}"


# ------------------------------------------------------------------------------------------------- head and padding


def _tolerance(dtype: torch.dtype) -> float:
    """Largest gap, in nats or in probability, that rounding explains between two ways to compute one distribution."""
    return 1e-3 if dtype.itemsize >= 4 else 0.1


def check_head(model: PreTrainedModel, temperature: float) -> None:
    """Compare the fused head's log-probabilities with those of the model's own logits, on the likeliest tokens.

    Raises:
        ValueError: they differ, as behind a head of several layers or a scale that TRL and this package do not know.
    """
    ids = _probe(model)
    everywhere = torch.ones_like(ids)
    with _at_rest(model):
        own = model(input_ids=ids, attention_mask=everywhere).logits.float() / temperature
        expected, likeliest = own.log_softmax(-1).max(-1)
        output = model(input_ids=ids, attention_mask=everywhere, shift_labels=likeliest, fused_lm_head=True)
    gap = float((output.log_probs - expected).abs().mean())
    if not gap <= _tolerance(model.dtype):
        raise ValueError(
            f"{type(model).__name__} turns hidden states into logits in a way that the fused head does not know: its "
            f"log-probabilities are {gap:.3g} nats off the model's own. Known are a matrix with or without a bias, a "
            "factor (logit_scale, output_multiplier, lm_head_multiplier, logits_scaling) and final_logit_softcapping. "
            "Take another model"
        )


def padding_gaps(model: PreTrainedModel) -> tuple[float, float]:
    """Total variation between the next-token distributions of a text alone and padded on the left, mean over tokens.

    The first gap is with positions as the model counts them, the second with positions counted from the attention mask,
    as ``generate`` gives them (the first again where the model takes none). Both are in [0, 1].
    """
    ids = _probe(model)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 64
    width = max(1, min(16, room - ids.shape[1]))
    padded = torch.nn.functional.pad(ids, (width, 0), value=int(ids[0, 0]))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (width, 0))

    def distribution(**given: Any) -> torch.Tensor:
        return model(**given).logits[:, -ids.shape[1] :].float().softmax(-1)

    with _at_rest(model):
        alone = distribution(input_ids=ids, attention_mask=torch.ones_like(ids))
        gaps = [distribution(input_ids=padded, attention_mask=mask)]
        if "position_ids" in inspect.signature(model.forward).parameters:  # the question that `generate` asks
            positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
            gaps.append(distribution(input_ids=padded, attention_mask=mask, position_ids=positions))
    first, *second = [float((gap - alone).abs().sum(-1).mean() / 2) for gap in gaps]
    return first, second[0] if second else first


def _probe(model: Any) -> torch.Tensor:
    """(1, 6) token ids, plain characters in most vocabularies."""
    return torch.arange(3, 9, device=model.device)[None] % _rows(model.get_input_embeddings())


@contextlib.contextmanager
def _at_rest(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
