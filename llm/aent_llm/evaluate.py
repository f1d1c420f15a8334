"""How good is a model: avg@k, pass@k, maj@k, length and truncation, each with an interval over problems.

    result = evaluate(transformers_sampler(model, tokenizer), problems, reward_function("math_verify"), EvalConfig())
    python -m aent_llm eval --model runs/first/checkpoint-50 --data math500 --data my.jsonl --out eval.json

A completion is correct when its reward is at least one half; one that cannot be scored (None) counts as wrong and in
``unscored``. Each problem has ``samples`` completions, n below, of which c are correct:

- ``avg@n``: mean of c / n. The unbiased pass@1 is the same number.
- ``pass@k``: mean of 1 - C(n-c, k) / C(n, k), unbiased for the chance that k completions hold a correct one
  (Chen et al. 2021, arXiv:2107.03374, Eq. 1).
- ``maj@n``: a vote over final answers (Wang et al. 2022, arXiv:2203.11171); tied answers share the vote.

Left out: several processes, judges that are models, pass@k with k above the number of samples (no unbiased estimate).

Shapes: P problems, n samples, M metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aent.runs import provenance
from aent_llm import benchmarks
from aent_llm.rewards import boxed_answer, final_answer, hash_answer

if TYPE_CHECKING:
    from aent_llm.data import DataConfig
    from aent_llm.generate import Completion, Sampler

__all__ = ["EvalConfig", "evaluate", "interval", "main", "majority", "pass_at_k", "voted_answer"]

CORRECT = 0.5  # as AEntGRPOConfig.correct_reward
LONGEST = 4096  # tokens of a completion when --max-tokens is not given and the context has room for it
COLUMNS = ("split", "subset", "prompt", "answer", "answer_extract", "system", "template", "chat")
TRUNCATED_SHARE = 0.1  # above, the numbers say more about max_tokens than about the model


@dataclass(frozen=True)
class EvalConfig:
    """How completions are drawn and summarised.

    Raises:
        ValueError: a field out of its range, or several greedy samples, which would all be equal.
    """

    samples: int = 4
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: no cut
    max_tokens: int = 64
    seed: int = 0
    bootstrap: int = 1000  # resamples behind an interval
    limit: int | None = None  # only the first problems

    def __post_init__(self) -> None:
        ranges = {
            "samples": (self.samples >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < np.inf, "0 (greedy) or positive"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1 (no cut)"),
            "top_k": (self.top_k >= 0, "0 (no cut) or positive"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "seed": (self.seed >= 0, "0 or positive"),
            "bootstrap": (self.bootstrap >= 1, "at least 1"),
            "limit": (self.limit is None or self.limit >= 1, "at least 1, or None"),
        }
        for name, (fine, expected) in ranges.items():
            if not fine:
                raise ValueError(f"{name}={getattr(self, name)}: expected {expected}")
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
) -> dict[str, Any]:
    """Complete the problems, score the completions and summarise.

    Args:
        sampler: of ``generate``.
        problems: a ``datasets.Dataset`` or list of dicts with ``prompt`` and whatever columns the reward reads.
        reward: TRL's contract, ``reward(prompts=, completions=, completion_ids=, **columns) -> list``.
        config: how to sample and summarise.
        progress: show a bar.
        extract: what a text votes for; ``voted_answer`` when None.
        record: a list that receives prompt, columns, texts and rewards of each problem.

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
    rewards = _scored(reward, rows, completions)  # (P, n), NaN where there is no score
    correct = np.nan_to_num(rewards, nan=0.0) >= CORRECT
    texts = [[one.text for one in ones] for ones in completions]
    if record is not None:
        scores = [[None if np.isnan(x) else float(x) for x in one] for one in rewards]
        record += [{**row, "completions": t, "rewards": r} for row, t, r in zip(rows, texts, scores, strict=True)]
    answers = [[(extract or voted_answer)(text) for text in ones] for ones in texts]
    metrics = _metrics(correct, np.nan_to_num(rewards, nan=0.0), majority(answers, correct), completions)
    bounds = interval(np.stack(list(metrics.values())), resamples=config.bootstrap, seed=config.seed)
    return {
        "problems": len(rows),
        "samples": config.samples,
        "unscored": int(np.isnan(rewards).sum()),
        **{name: dict(zip(("mean", "low", "high"), b, strict=True)) for name, b in zip(metrics, bounds, strict=True)},
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


def voted_answer(text: str) -> str | None:
    r"""What a text votes for: its ``\boxed{}`` or ``####`` answer, else its last number; None if it has neither.

    Compared as text: 0.5 and \frac{1}{2} are two candidates.

    Examples:
        >>> voted_answer(r"so \boxed{\frac{1}{2}}."), voted_answer("3*4+1*5=17"), voted_answer("no idea")
        ('\\frac{1}{2}', '17', None)
    """
    if boxed_answer(text) is not None or hash_answer(text) is not None:
        return final_answer(text) or None
    numbers = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", text)
    return numbers[-1].replace(",", "") if numbers else None


def interval(values: np.ndarray, *, resamples: int, seed: int, level: float = 0.95) -> list[tuple[float, float, float]]:
    """(mean, low, high) of each row of (M, P): percentile bootstrap of the mean over the P problems.

    All rows see the same resampled problems. With few problems the interval is narrow by about sqrt((P-1)/P), and with
    one it is a point.
    """
    rng, count = np.random.default_rng(seed), values.shape[1]
    weights = (np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(resamples))
    means = np.stack([values @ weight / count for weight in weights])  # (resamples, M)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [(float(m), float(a), float(b)) for m, a, b in zip(values.mean(1), low, high, strict=True)]


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
    """Rewards, (P, n); conversations are answered by a message, as in training."""
    samples = len(completions[0])
    repeated = [row for row in rows for _ in range(samples)]
    flat = [one for ones in completions for one in ones]
    scores = reward(
        prompts=[row["prompt"] for row in repeated],
        completions=[
            one.text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": one.text}]
            for row, one in zip(repeated, flat, strict=True)
        ],
        completion_ids=[one.token_ids for one in flat],
        **{key: [row[key] for row in repeated] for key in rows[0] if key != "prompt"},
    )
    if len(scores) != len(flat):
        raise ValueError(f"the reward returned {len(scores)} values for {len(flat)} completions: expected one each")
    return np.array([np.nan if one is None else one for one in scores], dtype=float).reshape(len(rows), samples)


# ------------------------------------------------------------------------------------------------------ command line


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m aent_llm eval``; returns the exit status.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: a command line that cannot be carried out, before any model is
            loaded; the message says what to do.
    """
    args = _parser().parse_args(argv)
    if args.list:
        _print_benchmarks()
        return 0
    if not args.model or not args.data:
        raise ValueError("--model and --data are needed, e.g. --model tiny --data tiny (--list shows the named sets)")
    if taken := [path for path in (args.out, args.completions) if path and Path(path).exists()]:
        raise FileExistsError(
            f"{taken[0]} already exists; nothing was overwritten. Move it away or choose another name"
        )
    if len(set(args.data)) < len(args.data):
        raise ValueError(f"--data names a set twice: {' '.join(args.data)}")
    tasks, path, config = _prepared(args)
    if args.dry_run:
        plan = {"model": str(path), "config": asdict(config), "data": [task.plan() for task in tasks]}
        print(json.dumps(plan, indent=2))
        return 0
    sampler = _sampler(args, path, max(task.longest for task in tasks) + config.max_tokens)
    report: dict[str, Any] = {
        "model": args.model, "backend": args.backend, "dtype": args.dtype, "config": asdict(config), "results": {},
        "provenance": provenance(config.seed),
    }  # fmt: skip
    lines: list[str] = []
    for task in tasks:
        record: list[dict[str, Any]] = []
        result = evaluate(sampler, task.problems, task.reward, config, record=record)
        report["results"][task.name] = {"data": asdict(task.data), "reward_name": task.reward_name, **result}
        lines += [json.dumps({"data": task.name, **row}) + "\n" for row in record]
        first = len(report["results"]) == 1
        for file, text in ((args.out, json.dumps(report, indent=2) + "\n"), (args.completions, "".join(lines))):
            if file:  # after each set, so that the last one cannot take hours with it
                _write(Path(file), text, first=first)
    _print_results(report["results"], config)
    return 0


@dataclass(frozen=True)
class _Task:
    """One data set, loaded and checked."""

    name: str
    data: DataConfig
    problems: Any
    reward_name: str
    reward: Callable[..., Any]
    longest: int  # tokens of the longest prompt

    def plan(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "problems": len(self.problems),
            "longest_prompt": self.longest,
            "first_prompt": self.problems[0]["prompt"],
            "first_answer": self.problems[0].get("answer"),
            "reward": self.reward_name,
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    add = parser.add_argument_group("how data are read, over the named set's own").add_argument
    add("--reward", metavar="NAME", help="math_verify, exact_match, arithmetic or a dotted path")
    for name in COLUMNS[:-1]:
        add(f"--{name.replace('_', '-')}", metavar="TEXT", help=f"{name} of data.DataConfig")
    add("--chat", action=argparse.BooleanOptionalAction, help="use the tokenizer's chat template")
    return parser


def _prepared(args: argparse.Namespace) -> tuple[list[_Task], str | Path, EvalConfig]:
    """Everything that can fail without the weights: model folder, tokenizer, data, reward, room for the prompts."""
    from transformers import AutoConfig

    from aent_llm.generate import context_length, load_tokenizer

    for name in args.data:
        benchmarks.resolve(name)  # a mistyped name, before a model is built
    if args.greedy and args.temperature:
        raise ValueError(f"--greedy and --temperature {args.temperature:g} contradict each other: leave one out")
    temperature = 0.0 if args.greedy else 1.0 if args.temperature is None else args.temperature
    samples = (1 if temperature == 0 else EvalConfig.samples) if args.samples is None else args.samples
    config = EvalConfig(
        samples=samples, temperature=temperature, top_p=args.top_p, top_k=args.top_k, seed=args.seed,
        max_tokens=1 if args.max_tokens is None else args.max_tokens, bootstrap=args.bootstrap, limit=args.limit,
    )  # fmt: skip
    path = benchmarks.model_path(args.model)
    try:
        context, tokenizer = context_length(AutoConfig.from_pretrained(path)), load_tokenizer(path)
    except OSError as error:
        raise FileNotFoundError(f"--model {args.model}: no model there, or no network: {error}") from None
    tasks = [_task(name, args, config, tokenizer, context) for name in args.data]
    if args.max_tokens is None:
        room = LONGEST if context is None else context - max(task.longest for task in tasks)
        config = replace(config, max_tokens=min(LONGEST, room))  # at least 1: the prompts were checked with 1
    return tasks, path, config


def _task(name: str, args: argparse.Namespace, config: EvalConfig, tokenizer: Any, context: int | None) -> _Task:
    from aent_llm.data import DataConfig, check_problems, load_problems
    from aent_llm.generate import encode_prompts
    from aent_llm.rewards import reward_function

    named = benchmarks.resolve(name)
    template = {} if "chat" in named.data else {"chat": tokenizer.chat_template is not None}
    given = {key: value for key in COLUMNS if (value := getattr(args, key)) is not None}
    reward_name = args.reward or named.reward
    reward, data = reward_function(reward_name), DataConfig(**{**named.data, **template, **given})
    problems = load_problems(data)
    problems = problems.select(range(min(len(problems), config.limit or len(problems))))
    if name not in benchmarks.BENCHMARKS:  # of a benchmark every problem counts, also one that cannot be scored
        problems = check_problems(problems, tokenizer=tokenizer, max_prompt_tokens=None, reward_names=[reward_name])
    try:
        encoded = encode_prompts(tokenizer, problems["prompt"], max_tokens=config.max_tokens, context=context)
    except ValueError as error:
        raise ValueError(f"--data {name}: {error}") from None
    return _Task(name, data, problems, reward_name, reward, max(map(len, encoded)))


def _sampler(args: argparse.Namespace, path: str | Path, context: int) -> Sampler:
    from aent_llm import generate

    if args.backend == "vllm":
        try:
            return generate.vllm_sampler(path, dtype=args.dtype, context=context)
        except ModuleNotFoundError as error:
            raise ValueError(error) from None
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).to(device)  # pyright: ignore[reportArgumentType]
    return generate.transformers_sampler(model, generate.load_tokenizer(path))


def _write(path: Path, text: str, *, first: bool) -> None:
    """Whole or not at all; the first time only where nothing is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    if not first:
        draft.replace(path)
        return
    try:
        os.link(draft, path)  # unlike rename, never replaces what came meanwhile
    except FileExistsError:
        raise FileExistsError(f"{path} was made by somebody meanwhile; the results are in {draft}") from None
    draft.unlink()


def _print_benchmarks() -> None:
    for name, one in benchmarks.BENCHMARKS.items():
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
    for name, result in results.items():
        if (share := result["truncated"]["mean"]) > TRUNCATED_SHARE:
            console.print(
                f"{name}: {share:.0%} of completions were cut at {config.max_tokens} tokens; raise --max-tokens"
            )
        if result["unscored"]:
            console.print(f"{name}: {result['unscored']} completions could not be scored and count as wrong")
