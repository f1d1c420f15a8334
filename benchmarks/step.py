"""Seconds of an optimiser step with and without the entropy block.

    python -m benchmarks.step [--rounds 9]
    python -m benchmarks.step --random-model --device cuda    # 230 million weights, 151,936 tokens

One process, one set of rollouts; the contenders take turns on it: loss, backward pass, what the block does after, and
the optimiser. The rollout (generation and rewards) is timed apart, because it is the same for all. "No entropy block"
is the same fused head asked for log-probabilities and full entropy alone, as plain GRPO needs them.

The model is the embedded one, or one of random weights in the shape of Qwen2, whose completions hardly ever end by
themselves: speed does not ask what is learnt.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from aent import cli
from aent_llm.training.experiment import Experiment, load_experiment
from aent_llm.training.train import keep_freed_memory, load_model, prepare
from aent_llm.training.trainer import AEntGRPOTrainer
from benchmarks.head import now

__all__ = ["contenders", "embedded", "main", "random_model"]

GROUP = 8  # completions of a prompt
COMPLETIONS = "per_device_train_batch_size"  # of a step
TOP = {"type": "top_k", "k": 64}
DROP = {"type": "drop_lowest", "share": 0.33}


def embedded() -> Experiment:
    """The embedded model and task, on a CPU."""
    return load_experiment("cpu_aent", {"train.save_strategy": "no"})


def random_model(folder: Path, options: argparse.Namespace) -> Experiment:
    """A model of random weights, written to ``folder``, that reads the problems of the embedded task."""
    import transformers

    from aent_llm.data import tiny

    torch.manual_seed(0)
    heads = max(1, options.hidden // 64)
    config = transformers.Qwen2Config(
        vocab_size=options.vocabulary, hidden_size=options.hidden, intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=1024 + options.tokens, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    print(f"{sum(weight.numel() for weight in model.parameters()) / 1e6:,.0f} million weights", flush=True)
    model.save_pretrained(folder)
    tiny.tokenizer(tiny.TinySpec(vocabulary=min(options.vocabulary, 16_384))).save_pretrained(folder)
    changes = {
        "model.source": str(folder),
        "train.save_strategy": "no",
        "train.max_completion_length": options.tokens,
        "train.per_device_train_batch_size": options.completions,
        "train.use_cpu": options.device == "cpu",
        "train.bf16": options.device == "cuda",
        "train.learning_rate": 1e-6,
    }
    return load_experiment("cpu_aent", changes)


def contenders(experiment: Experiment, folder: Path) -> dict[str, tuple[Any, Callable[..., Any]]]:
    """Name -> (trainer, its loss of a batch)."""
    parts = prepare(experiment)
    shared: dict[str, Any] = {"train_dataset": parts.problems, "processing_class": parts.tokenizer}

    def ours(support: dict[str, Any], diagnostics: bool = False) -> AEntGRPOTrainer:
        settings = {"entropy_support": support, "entropy_controller": 0.01, "entropy_diagnostics": diagnostics}
        args = experiment.training_arguments(folder, **settings)
        return _ready(AEntGRPOTrainer(load_model(experiment, parts.source), parts.rewards, args, **shared))

    theirs = GRPOConfig(output_dir=str(folder), report_to="none", **experiment.train)
    trl = _ready(GRPOTrainer(load_model(experiment, parts.source), parts.rewards, theirs, **shared))
    plain = GRPOTrainer._compute_loss
    block = AEntGRPOTrainer._compute_loss
    return {
        "TRL's trainer and head": (trl, plain),
        "our head, no entropy block": (ours(TOP), plain),
        "entropy block, top-k 64": (ours(TOP), block),
        "entropy block, drop 0.33": (ours(DROP), block),
        "entropy block, top-k 64, diagnostics": (ours(TOP, True), block),
    }


def _ready(trainer: Any) -> Any:
    trainer.create_optimizer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.logging_steps = 1  # else no step is logged, and no diagnostics are computed
    return trainer


def _update(trainer: Any, loss: Callable[..., Any], batch: dict[str, Any]) -> float:
    trainer._buffered_inputs = [batch]
    start = now()
    with trainer.compute_loss_context_manager():
        value = loss(trainer, trainer.model, batch)
    value.backward()
    if loss is AEntGRPOTrainer._compute_loss:
        trainer._step += 1
        trainer._finish_window()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return now() - start


def _measured(experiment: Experiment, rounds: int, folder: Path) -> dict[str, float]:
    """Median seconds of the rollout and of each contender's update; the first round warms up."""
    found, completions = contenders(experiment, folder), experiment.train[COMPLETIONS]
    seconds: dict[str, list[float]] = {name: [] for name in ("rollout", *found)}
    sampling = next(iter(found.values()))[0]
    for round_ in range(rounds + 1):
        start = now()
        rows = [sampling.train_dataset[(completions * round_ + i) // GROUP] for i in range(completions)]
        batch = sampling._generate_and_score_completions(rows)
        batch["correct"] = batch["advantages"] > 0
        seconds["rollout"].append(now() - start)
        for name, (trainer, loss) in found.items():
            seconds[name].append(_update(trainer, loss, batch))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = cli.Parser(prog="python -m benchmarks.step", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=cli.whole_number(1), default=9)
    parser.add_argument("--random-model", action="store_true", help="with the sizes below, instead of the embedded one")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--vocabulary", type=cli.whole_number(1), default=151_936)
    parser.add_argument("--hidden", type=cli.whole_number(1), default=768, help="width, a multiple of 64")
    parser.add_argument("--layers", type=cli.whole_number(1), default=12)
    parser.add_argument("--completions", type=cli.whole_number(1), default=32, help=f"a multiple of {GROUP}")
    parser.add_argument("--tokens", type=cli.whole_number(1), default=512, help="of each completion")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not (options.random_model and torch.cuda.is_available()):
        parser.error("--device cuda needs a GPU, and --random-model: the embedded experiment is one for a CPU")
    if options.completions % GROUP:
        parser.error(f"--completions={options.completions}: groups are of {GROUP}, so take a multiple of it")
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        experiment = random_model(Path(folder) / "model", options) if options.random_model else embedded()
        medians = _measured(experiment, options.rounds, Path(folder))
    rollout, without = medians.pop("rollout"), medians["our head, no entropy block"]
    trl = medians["TRL's trainer and head"]
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} thread(s)"
    print(f"rollout: {rollout:.3f} s; {where}, torch {torch.__version__}, {options.rounds} rounds\n")
    columns = (f"update of {experiment.train[COMPLETIONS]} completions", "s", "x no block")
    print("|", " | ".join((*columns, "whole step x no block", "whole step x TRL")), "|")
    print("| --- | --- | --- | --- | --- |")
    for name, value in medians.items():
        step = rollout + value
        print(
            f"| {name} | {value:.3f} | {value / without:.2f} | {step / (rollout + without):.3f} "
            f"| {step / (rollout + trl):.3f} |"
        )


if __name__ == "__main__":
    raise SystemExit(cli.run("benchmarks.step", main, extra="llm"))
