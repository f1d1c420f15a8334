"""A language model of a few thousand weights, its tokenizer and a trainer, for tests and their subprocesses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 61  # a prime: a multiple of nothing


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word ``w0`` ... ``w57``, plus pad, end and unknown."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i + 3 for i in range(VOCABULARY - 3)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def model(seed: int = 0, *, tied: bool = False, scale: float = 0.3, **options: Any) -> Qwen2ForCausalLM:
    """Qwen2 architecture, random weights, fp32."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        **{
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
            "tie_word_embeddings": tied, "initializer_range": scale,
            "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, **options,
        }
    )  # fmt: skip
    policy = Qwen2ForCausalLM(config).float().eval()
    with torch.no_grad():
        policy.get_output_embeddings().weight[config.eos_token_id] *= 3  # completions end at different lengths
    return policy


def saved_model(folder: Path, **options: Any) -> Path:
    """The same on disk, as ``from_pretrained`` reads it."""
    model(**options).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def prompts(count: int = 8) -> Dataset:
    """Prompts of one to three words."""
    texts = [" ".join(f"w{(7 * i + 3 * j) % 50}" for j in range(1 + i % 3)) for i in range(count)]
    return Dataset.from_dict({"prompt": texts})


def even_words(completions: list[str], **_: Any) -> list[float]:
    """Reward: share of words with an even number, at least half of them for a 'correct' answer."""
    found = []
    for text in completions:
        words = [word for word in text.split() if word.startswith("w")]
        found.append(sum(int(word[1:]) % 2 == 0 for word in words) / max(len(words), 1))
    return found


SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6, "learning_rate": 0.05,
    "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1, "logging_steps": 1,
    "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
    "disable_tqdm": True, "beta": 0.0, "temperature": 1.0, "seed": 3, "loss_type": "dapo",
}  # fmt: skip


def trainer(
    folder: Path, policy: Any = None, *, callbacks: Any = None, peft_config: Any = None, **settings: Any
) -> Any:
    """An ``AEntGRPOTrainer`` on the small model; ``settings`` go over ``SETTINGS``."""
    from aent_llm.training.config import AEntGRPOConfig
    from aent_llm.training.trainer import AEntGRPOTrainer

    return AEntGRPOTrainer(
        model() if policy is None else policy,
        [even_words],
        AEntGRPOConfig(**{**SETTINGS, "output_dir": str(folder), **settings}),
        train_dataset=prompts(),
        processing_class=tokenizer(),
        callbacks=callbacks,
        peft_config=peft_config,
    )


def logged(one: Any, key: str) -> list[float]:
    """Values of a metric over the logged steps."""
    return [entry[key] for entry in one.state.log_history if key in entry]


def weights(one: Any) -> torch.Tensor:
    """All trainable weights as one vector."""
    return torch.cat([p.detach().flatten() for p in one.model.parameters() if p.requires_grad])
