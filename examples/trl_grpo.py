"""GRPO with TRL: sums of four digits, reward 1 for the right answer."""

import argparse
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer  # type: ignore

from aent_llm.data import tiny  # for the embedded model only


def sums(count: int, seed: int = 0) -> Dataset:
    """Prompts such as ``5+6+2+8=`` with their answers, ``21``."""
    terms = np.random.default_rng(seed).integers(1, 10, (count, 4)).tolist()
    return Dataset.from_list([{"prompt": "+".join(map(str, row)) + "=", "answer": str(sum(row))} for row in terms])


def right_sum(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    """1 where what follows the last ``=`` is the answer, so that running totals may come first."""
    pairs = zip(completions, answer, strict=True)
    return [float(text.rpartition("=")[2].strip() == right) for text, right in pairs]


def train(model: str, steps: int, output: str) -> GRPOTrainer:
    """Train ``model``, a folder, a hub id or ``tiny``; its checkpoint goes to ``output``."""
    tokenizer = AutoTokenizer
    if model == "tiny":  # its tokenizer is a generic one, which Auto would take for Qwen's
        model, tokenizer = str(tiny.build()), PreTrainedTokenizerFast
    config = GRPOConfig(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=10,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        adam_epsilon=1e-5,  # the usual 1e-8 fills the tail at this rate: docs/troubleshooting.md
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
    )
    trainer = GRPOTrainer(
        model,
        right_sum,
        args=config,
        train_dataset=sums(4000),
        processing_class=tokenizer.from_pretrained(model),
    )
    trainer.train()
    return trainer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="GRPO on sums of four digits.")
    parser.add_argument("--model", default="tiny", help="folder, hub id, or tiny: the embedded one (default)")
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--output", required=True, help="folder of the checkpoint")
    args = parser.parse_args()
    train(args.model, args.steps, args.output)


if __name__ == "__main__":
    main()
