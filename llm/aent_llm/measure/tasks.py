"""What ``eval`` and ``calibrate`` share: their flags for data and model, and results that are never lost.

    add_data_flags(parser)                                     # --reward, --split ... --chat-template-kwargs
    model = read_model(args.model)                             # tokenizer and context, no weights
    task = load_task(name, args, model, max_tokens=1)          # problems whose prompts fit, and their reward
    write_results(path, text, replace=False)

Everything here is done before weights are loaded, but the last line, which loses nothing when the disk is full.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aent.files import check_writable, write_atomically
from aent_llm.data import eval_sets

if TYPE_CHECKING:
    from aent_llm.data.problems import DataConfig
    from aent_llm.data.rewards import Reward

__all__ = [
    "Model",
    "Task",
    "add_data_flags",
    "check_free",
    "completion_limit",
    "keep_elsewhere",
    "load_task",
    "read_model",
    "write_results",
]

COLUMNS = ("split", "subset", "prompt", "answer", "answer_extract", "system", "template", "chat")


@dataclass(frozen=True)
class Model:
    """What can be known of a model without its weights: where it is, its tokenizer, its context in tokens."""

    path: str | Path
    tokenizer: Any
    context: int | None


@dataclass(frozen=True)
class Task:
    """One data set, loaded and checked; ``reward`` is None where completions are not judged."""

    name: str
    data: DataConfig
    problems: Any
    reward_name: str
    reward: Reward | None
    longest: int  # tokens of the longest prompt
    left_out: int = 0  # rows without a reference answer
    repeated: int = 0  # problems whose prompt has stood before

    def plan(self) -> dict[str, Any]:
        """Say what would run, ready for JSON."""
        return {
            "name": self.name,
            "problems": len(self.problems),
            "left_out": self.left_out,
            "repeated": self.repeated,
            "longest_prompt": self.longest,
            "first_prompt": self.problems[0]["prompt"],
            "first_answer": self.problems[0].get("answer"),
            "reward": self.reward_name,
        }


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how data are read, over the named set's own."""
    add = parser.add_argument_group("how data are read, over the named set's own").add_argument
    add("--reward", metavar="NAME", help="math_verify, exact_match, arithmetic, a dotted path; calibrate: none")
    for name in COLUMNS[:-1]:
        add(f"--{name.replace('_', '-')}", metavar="TEXT", help=f"{name} of data.DataConfig")
    add("--chat", action=argparse.BooleanOptionalAction, help="use the tokenizer's chat template")
    add(
        "--chat-template-kwargs",
        type=_json_object,
        metavar="JSON",
        help="switches of the chat template, as in training: '{\"enable_thinking\": false}'",
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'expected an object such as {{"enable_thinking": false}}, got {text!r}')
    return value


def read_model(source: str) -> Model:
    """Read tokenizer and configuration of ``--model``, a folder, a hub id or "tiny".

    Raises:
        FileNotFoundError: no model there, or no network. ValueError: files that cannot be read.
    """
    from transformers import AutoConfig

    from aent_llm.data.prompts import context_length, load_tokenizer

    path = eval_sets.model_path(source)
    try:
        return Model(path, load_tokenizer(path), context_length(AutoConfig.from_pretrained(path)))
    except OSError as error:
        raise FileNotFoundError(f"--model {source}: no model there, or no network: {error}") from None
    except Exception as error:  # ValueError, and what a damaged file makes of json and tokenizers
        raise ValueError(f"--model {source}: its config or tokenizer cannot be read: {error}") from error


def load_task(name: str, args: Any, model: Model, *, max_tokens: int, limit: int | None) -> Task:
    """Load the problems of ``--data name`` and check that the model can take their prompts.

    Args:
        name: a named set, a file or a hub id.
        args: parsed flags of ``add_data_flags``.
        model: takes the prompts.
        max_tokens: room that must be left for a completion.
        limit: take the first so many problems; None: all.

    Raises:
        ValueError, OSError: data, reward or prompts that cannot be used; the message names the set.
    """
    from aent_llm.data.problems import DataConfig, check_problems, load_problems
    from aent_llm.data.prompts import encode_prompts
    from aent_llm.data.rewards import reward_function

    named = eval_sets.resolve(name)
    template = {} if "chat" in named.data else {"chat": bool(model.tokenizer.chat_template)}
    given = {key: value for key in COLUMNS if (value := getattr(args, key)) is not None}
    reward_name = args.reward or named.reward
    reward = None if reward_name == "none" else reward_function(reward_name)
    data = DataConfig(**{**named.data, **template, **given})
    if args.chat_template_kwargs and not data.chat:
        raise ValueError(f"--data {name}: --chat-template-kwargs has no effect on plain text; add --chat")
    problems: Any = load_problems(data)
    problems = problems.select(range(min(len(problems), limit or len(problems))))
    rows = len(problems)
    options: Any = {"chat_template_kwargs": args.chat_template_kwargs}
    try:
        if name not in eval_sets.BENCHMARKS:  # of a benchmark every problem counts, also one that cannot be scored
            names = [reward_name]
            problems = check_problems(
                problems, tokenizer=model.tokenizer, max_prompt_tokens=None, reward_names=names, **options
            )
        encoded = encode_prompts(
            model.tokenizer, problems["prompt"], max_tokens=max_tokens, context=model.context, **options
        )
    except ValueError as error:
        raise ValueError(f"--data {name}: {error}") from None
    repeated = len(problems) - len({json.dumps(prompt) for prompt in problems["prompt"]})
    return Task(name, data, problems, reward_name, reward, max(map(len, encoded)), rows - len(problems), repeated)


def completion_limit(asked: int | None, tasks: Sequence[Task], context: int | None, *, most: int) -> int:
    """Return the tokens of a completion: as asked, else what the context leaves, at most ``most``."""
    if asked is not None:
        return asked
    return most if context is None else min(most, context - max(task.longest for task in tasks))


# ------------------------------------------------------------------------------------------------------------- results
def check_free(*paths: str | Path | None) -> None:
    """Check, before any work, that result files can be written where nothing is yet; missing folders are made.

    Raises:
        FileExistsError: a file is there, which is never overwritten. ValueError: two results for one file.
        OSError: the place cannot be written to; says what to do.
    """
    wanted = [Path(path) for path in paths if path]
    for path in wanted:
        if path.is_symlink() or path.exists():
            raise FileExistsError(
                f"{path} already exists; nothing was overwritten. Move it away or choose another name"
            )
        if wanted.count(path) > 1:
            raise ValueError(f"{path} is asked for twice, for different results; give them different names")
    for path in wanted:
        check_writable(path.parent)


def write_results(path: Path, text: str, *, replace: bool) -> None:
    """Write a result file whole or not at all; where that fails, leave the results elsewhere.

    Raises:
        OSError: it cannot be written, or, without ``replace``, exists by now; says where the results are instead.
    """
    try:
        check_writable(path.parent)  # makes it again if it was removed meanwhile
        write_atomically(path, text, replace=replace)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.exists():
            raise  # says itself where the text is
        raise OSError(f"{error}. The results are in {keep_elsewhere(path.name, text)}") from None


def keep_elsewhere(name: str, text: str) -> str:
    """Write results that have no place to the folder for temporary files, else to standard output; says where."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=f"-{name}", delete=False) as file:
            file.write(text)
        return file.name
    except OSError:
        sys.stdout.write(text)
        return "what was printed on standard output"
