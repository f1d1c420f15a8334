"""Turn a problem into the token ids of a prompt: one way for training and for measuring."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils.chat_template_utils import _get_template_variables

from aent.names import suggest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prompt", "chat_options", "context_length", "encode_prompts", "load_tokenizer", "prompt_ids"]

Prompt = str | list[dict[str, Any]]  # plain text, or a conversation for the chat template
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
UNLIMITED = 10**9  # what configs write for "no limit"
STRETCHED = ("yarn", "linear", "dynamic")
OF_THE_TRAINER = {"messages", "tools", "chat_template", "add_generation_prompt", "tokenize", "return_dict", "padding"}


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a model, as it was saved.

    Where the saved class is the generic one (tokenizer.json says all), ``AutoTokenizer`` of transformers 5 takes
    the class registered for the model type instead. For ``qwen2`` that rebuilds the tokenizer as Qwen's, and with a
    vocabulary that is not Qwen's text then encodes to nothing, without a word.
    """
    saved = get_tokenizer_config(path)
    generic = saved.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return (PreTrainedTokenizerFast if generic and "auto_map" not in saved else AutoTokenizer).from_pretrained(path)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    chat_template_kwargs: Mapping[str, Any] | str | None = None,
    *,
    first: int = 0,
) -> list[list[int]]:
    """Turn prompts into token ids, exactly as TRL's ``GRPOTrainer`` does: the one way for training and measuring.

    Plain text gets the tokenizer's special tokens. A conversation goes through the chat template, which opens the
    assistant's turn.

    Args:
        tokenizer: with a chat template, if prompts are conversations.
        prompts: texts or lists of ``{"role": ..., "content": ...}``.
        chat_template_kwargs: switches of the chat template, such as ``{"enable_thinking": False}``; see
            ``chat_options``. They do nothing to plain text.
        first: number of the first prompt, for messages.

    Raises:
        ValueError: a conversation without a template, one that the template refuses, a switch that it does not have.
    """
    if all(isinstance(prompt, str) for prompt in prompts):
        return [list(ids) for ids in tokenizer(list(prompts))["input_ids"]] if len(prompts) else []  # type: ignore[arg-type]
    if not tokenizer.chat_template:
        raise ValueError(
            "the prompts are conversations, but the model's tokenizer has no chat template: set data.chat: false "
            "(--no-chat) for plain text, as a base model takes it, or use the instruct model"
        )
    options = chat_options(chat_template_kwargs, tokenizer)
    return [
        list(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else _chat_ids(tokenizer, prompt, options, i)  # type: ignore[arg-type]
        for i, prompt in enumerate(prompts, first)
    ]


def _chat_ids(tokenizer: Any, messages: list[dict[str, Any]], options: dict[str, Any], number: int) -> list[int]:
    try:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **options
        )
    except Exception as error:  # whatever the template's author raises, for instance at a system message
        raise ValueError(f"prompt {number}: the model's chat template refuses the messages ({error})") from error
    return list(ids["input_ids"])


def chat_options(given: Mapping[str, Any] | str | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Check switches of a chat template: an unknown one would be ignored by the template without a word.

    Args:
        given: a mapping, or JSON of one, as TRL takes ``chat_template_kwargs``.
        tokenizer: has the template.

    Raises:
        ValueError: no mapping, a switch that the template does not read, or one that the trainer sets.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"chat_template_kwargs {given!r} is not JSON ({error})") from None
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f'chat_template_kwargs={given!r}: expected a mapping such as {{"enable_thinking": false}}')
    options = dict(given or {})
    if not options:
        return {}
    if ours := sorted(OF_THE_TRAINER & set(options)):
        raise ValueError(f"chat_template_kwargs: {', '.join(ours)} is set by the trainer; leave it out")
    switches = set(_get_template_variables(tokenizer.get_chat_template())) - OF_THE_TRAINER
    if unknown := sorted(set(options) - switches - {"documents"}):
        raise ValueError(
            f"chat_template_kwargs: the model's chat template has no switch {unknown[0]!r}"
            f"{suggest(unknown[0], switches) or '.'} It reads: {', '.join(sorted(switches)) or 'none'}"
        )
    return options


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    context: float | None = None,
    vocabulary: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | str | None = None,
) -> list[list[int]]:
    """Turn prompts into token ids (``prompt_ids``) and check that the model can complete them.

    Args:
        tokenizer: with a chat template, if prompts are conversations.
        prompts: texts or lists of ``{"role": ..., "content": ...}``.
        max_tokens: room that must be left for the completion.
        context: the model's limit on prompt and completion together; None is no limit.
        vocabulary: rows of the model's embedding; None leaves ids unchecked.
        chat_template_kwargs: switches of the chat template.

    Raises:
        ValueError: no prompt, an empty one, one too long, ids the model lacks, or as ``prompt_ids``.
    """
    if len(prompts) == 0:
        raise ValueError("no prompts: the list is empty")
    encoded = prompt_ids(tokenizer, prompts, chat_template_kwargs)
    for i, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {i} has no tokens (text {prompts[i]!r})")
        if context is not None and len(ids) + max_tokens > context:
            raise ValueError(
                f"prompt {i} has {len(ids)} tokens; with max_tokens={max_tokens} that is {len(ids) + max_tokens}, "
                f"above the context of {context:.0f}. Lower max_tokens, or leave long problems out"
            )
        if vocabulary is not None and max(map(int, ids)) >= vocabulary:
            raise ValueError(
                f"prompt {i} has token {max(ids)}, but the model embeds {vocabulary} tokens: is the tokenizer its own?"
            )
    return encoded


def context_length(config: Any) -> int | None:
    """Return the most tokens that a model with this config takes, prompt and completion together.

    It is None if the config does not say, or the model has no limit (ALiBi, recurrent models). A sliding window is no
    limit. Rotary positions that are stretched (``rope_type`` yarn, linear or dynamic) reach as far as vLLM says.
    """
    text = config.get_text_config()
    if getattr(text, "alibi", False):
        return None
    found = (getattr(text, name, None) for name in CONTEXT_NAMES)
    limit = next((one for one in found if isinstance(one, int) and 0 < one < UNLIMITED), None)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if limit is None or not factor or kind not in STRETCHED:
        return limit
    base = rope.get("original_max_position_embeddings", limit) if kind == "yarn" else limit
    return max(limit, int(base * factor))
