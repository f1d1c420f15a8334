"""Problems to train and evaluate on: a hub data set, a local JSONL or Parquet file, or the embedded task.

``load_problems`` turns any of them into two columns, "prompt" and "answer"; ``check_problems`` then asks of every row
what would otherwise fail, or silently earn nothing, hours later. Both run before any model is loaded, and every
complaint names file, row and column. Rows count from 0, lines of a file from 1.

Left out on purpose: streaming (a GRPO data set fits in memory), images, mixing several sets, other columns.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import string
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from tqdm.auto import tqdm

from aent.names import suggest
from aent_llm.data.announcements import boxed_answer, hash_answer
from aent_llm.data.answers import reference_text
from aent_llm.data.rewards import is_plain, parses
from aent_llm.schema import Count, Seed, convert_fields, setting, short

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LOCAL_SUFFIXES = (".jsonl", ".parquet")
OTHER_SUFFIXES = (".json", ".csv", ".tsv", ".txt", ".gz")  # files that would be mistaken for hub ids
TINY_COUNT = 2048
PARALLEL_FROM = 500  # distinct answers that are not plain; LaTeX takes about 10 ms each


@dataclass(frozen=True)
class DataConfig:
    r"""Where problems come from and how a row becomes a prompt and a reference answer.

    Raises:
        ValueError: a value of another type or out of its range, or a setting that has no effect.
    """

    source: str = field(
        metadata={"help": "`tiny` (the embedded task), a `.jsonl` or `.parquet` file, a hub id or a data set folder"}
    )
    split: str = setting(
        "train", "of a hub data set or the embedded task; slices such as `train[:1000]` work on the hub"
    )
    subset: str | None = setting(None, "configuration of a hub data set, for instance `main` of openai/gsm8k")
    prompt: str = setting(
        "prompt", "column with the question; with `chat` it may hold a list of messages, which is used as it is"
    )
    answer: str = setting("answer", "column with the reference answer, text or number")
    system: str | None = setting(None, "system message, with `chat` only")
    template: str = setting(
        "{prompt}",
        "Python format string around the question: `{prompt}` and any other column but the answer's; literal braces "
        "are doubled, except `{}`, which stays as it is: `\\boxed{}`",
    )
    chat: bool = setting(
        False, "give the prompt as messages, to which the model's chat template is applied; else as plain text"
    )
    answer_extract: str | None = setting(
        None,
        "how the answer is read from a column that holds a whole solution: `boxed` (last `\\boxed{}`, as in MATH), "
        "`hash` (after the last `####`, as in GSM8K), `first` (of a list of answers), or a regular expression with one "
        "group, whose last match counts; null: the column is the answer",
    )
    limit: Count | None = setting(None, "use the first so many rows")
    count: Annotated[int, Field(ge=1, le=1_000_000)] | None = setting(
        None, "number of problems to generate, embedded task only"
    )
    seed: Seed = setting(0, "which problems are generated, embedded task only")
    faulty: Literal["error", "drop"] = setting(
        "error", "rows that cannot be used: `error` stops, `drop` leaves them out and warns"
    )

    def __post_init__(self) -> None:
        convert_fields(self, "data")
        if not self.source:
            raise ValueError("data.source is empty; give 'tiny', a .jsonl or .parquet file, or a hub id")
        if self.system is not None and not self.chat:
            raise ValueError("data.system has no effect without data.chat: true; or put the text into data.template")
        if self.prompt == self.answer:
            raise ValueError(
                f"data.prompt and data.answer are the same column, {self.prompt!r}: the answer would be shown"
            )
        self._check_idle()
        _template_fields(self)
        _extractor(self.answer_extract)

    def _check_idle(self) -> None:
        """A setting without effect is a mistake of the reader, or of the writer."""
        tiny, local = self.source == "tiny", Path(self.source).suffix in LOCAL_SUFFIXES
        if not tiny and (self.count is not None or self.seed):
            raise ValueError(
                "data.count and data.seed belong to the source 'tiny'; data.limit takes the first rows of others"
            )
        if self.subset is not None and (tiny or local):
            raise ValueError(f"data.subset has no effect on {self.source!r}: only hub data sets have subsets")
        if self.split != "train" and local:
            raise ValueError(f"data.split {self.split!r} has no effect: a file is one split; leave data.split out")


@dataclass(frozen=True)
class _Table:
    """Rows before mapping: `place` names the source in messages, `lines` the line of each row where a file has them."""

    place: str
    columns: Sequence[str]
    rows: Iterable[Mapping[str, Any]]
    lines: Sequence[int] = field(default=())

    def at(self, row: int) -> str:
        return f"{self.place}, row {row}" + (f" (line {self.lines[row]})" if self.lines else "")


# ----------------------------------------------------------------------------------------------------------- loading
def load_problems(config: DataConfig) -> Dataset:
    """The problems of a source: column "prompt" (text, or messages with ``config.chat``) and column "answer" (text).

    An answer that is null stays None: ``check_problems`` leaves such rows out and counts them.

    Raises:
        FileNotFoundError: no such file, or no such data set on the hub.
        ConnectionError: the hub cannot be reached.
        ValueError: everything about the content: damaged line, unknown split, missing column, empty set, prompt or
            answer, an answer that ``answer_extract`` does not find.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "mine.jsonl")
        ...     _ = file.write_text('{"question": "6 * 7 = ?", "solution": "Seven sixes. #### 42"}')
        ...     columns = {"prompt": "question", "answer": "solution"}
        ...     problems = load_problems(DataConfig(str(file), **columns, answer_extract="hash"))
        >>> problems[0]
        {'prompt': '6 * 7 = ?', 'answer': '42'}
    """
    from datasets import Dataset

    table = _read(config)
    _check_columns(config, table)
    extract = _extractor(config.answer_extract)
    prompts, answers = [], []
    for index, row in enumerate(table.rows):
        place = table.at(index)
        prompts.append(_prompt(config, row, place))
        answers.append(_answer(config, row, extract, place))
    if not prompts:
        raise ValueError(f"{table.place} has no rows; expected at least one problem")
    return Dataset.from_dict({"prompt": prompts, "answer": answers})


def _read(config: DataConfig) -> _Table:
    path = Path(config.source).expanduser()
    if config.source == "tiny":
        from aent_llm.data import tiny

        rows: Any = tiny.problems(config.count or TINY_COUNT, seed=config.seed, split=config.split)[: config.limit]
        return _Table("the embedded task", ("prompt", "answer"), rows)
    if path.suffix in LOCAL_SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(_missing_file(path))
        return _read_jsonl(path, config.limit) if path.suffix == ".jsonl" else _read_parquet(path, config)
    if path.suffix in OTHER_SUFFIXES:
        raise ValueError(
            f"data.source {config.source!r}: local files are read as {' or '.join(LOCAL_SUFFIXES)}; convert it"
        )
    return _read_hub(config)


def _read_jsonl(path: Path, limit: int | None) -> _Table:
    rows, lines = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if len(rows) == limit:
                break
            rows.append(_json_object(line, f"{path}, line {number}"))
            lines.append(number)
    return _Table(str(path), list(dict.fromkeys(key for row in rows for key in row)), rows, lines)


class _TwiceError(ValueError):
    pass


def _once_each(pairs: list[tuple[str, Any]], place: str) -> dict[str, Any]:
    """The object of these keys and values; of two values under one key JSON would keep the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise _TwiceError(f"{place} has the key {twice!r} twice; keep one of the two")
    return found


def _json_object(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=lambda pairs: _once_each(pairs, place))
    except _TwiceError:
        raise
    except ValueError as error:  # damaged JSON or damaged UTF-8
        shown = short(line.decode(errors="replace").strip())
        raise ValueError(f"{place} is not JSON ({error}): {shown}; mend or delete the line") from error
    if not isinstance(row, dict):
        raise ValueError(f'{place} is a {type(row).__name__}, expected an object like {{"prompt": ..., "answer": ...}}')
    return row


def _read_parquet(path: Path, config: DataConfig) -> _Table:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        table = file.read(columns=[name for name in columns if name in _needed(config)])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}); write the file again") from error
    for place, column in enumerate(table.schema):
        if pyarrow.types.is_float32(column.type) or pyarrow.types.is_float16(column.type):
            text = table.column(place).cast("string")  # 0.1; as a Python float it would be 0.10000000149011612
            table = table.set_column(place, column.name, text)
    return _Table(str(path), columns, table.slice(0, config.limit).to_pylist())


def _read_hub(config: DataConfig) -> _Table:
    from datasets import load_dataset

    try:
        data = load_dataset(config.source, config.subset, split=config.split)
    except Exception as error:
        raise _hub_error(config, error) from error
    columns = data.column_names
    rows: Any = data.select_columns([name for name in columns if name in _needed(config)])
    place = f"{config.source} ({config.subset + ', ' if config.subset else ''}{config.split})"
    return _Table(place, columns, rows.select(range(min(len(data), config.limit or len(data)))))


def _hub_error(config: DataConfig, error: Exception) -> Exception:
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants

    offer = "give a local .jsonl or .parquet file as data.source instead, or 'tiny' for the embedded task"
    if isinstance(error, ConnectionError):
        why = "HF_HUB_OFFLINE is set: unset it" if constants.HF_HUB_OFFLINE else "check the network"
        return ConnectionError(
            f"data set {config.source!r} is neither a folder here nor in the cache, and the hub cannot be reached "
            f"({error}). {why}, or {offer}"
        )
    if isinstance(error, DatasetNotFoundError):
        return FileNotFoundError(
            f"no data set {config.source!r} on the hub, nor a folder of that name. Mend the id, or {offer}"
        )
    reason = str(error).strip() or type(error).__name__
    return ValueError(f"data set {config.source!r}, subset {config.subset!r}, split {config.split!r}: {reason}")


def _missing_file(path: Path) -> str:
    folder = path.parent
    if path.is_dir():
        return f"{path} is a folder, not a file; give a .jsonl or .parquet file in it"
    if not folder.is_dir():
        return f"no file {str(path)!r}: the folder {str(folder)!r} does not exist (working directory: {Path.cwd()})"
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in LOCAL_SUFFIXES)
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if close:
        return f"no file {path}: did you mean {' or '.join(str(folder / name) for name in close)}?"
    listing = ", ".join(names[:8]) or "no .jsonl or .parquet file"
    return f"no file {path}; its folder holds {listing} (working directory: {Path.cwd()})"


# ----------------------------------------------------------------------------------------------------------- mapping
def _format_string(config: DataConfig) -> str:
    r"""The template with ``{}`` made literal: ``\boxed{}`` is what people write."""
    return re.sub(r"(?<!\{)\{\}(?!\})", "{{}}", config.template)


def _template_fields(config: DataConfig) -> list[str]:
    """The columns a template names; "prompt" stands for ``config.prompt``."""
    advice = "literal braces are doubled, as in {{x}}"
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(_format_string(config)) if name is not None]
    except ValueError as error:
        raise ValueError(
            f"data.template {short(config.template)} is not a format string ({error}); {advice}"
        ) from error
    if not names:
        raise ValueError(
            f"data.template {short(config.template)} names no column, so all prompts would be equal; use {{prompt}}"
        )
    for name in names:
        if name == "" or name.isdigit():
            raise ValueError(f"data.template {short(config.template)} has a field without a name; {advice}")
        if name == config.answer and name != "prompt":
            raise ValueError(f"data.template would show the model the answer column {name!r}; {advice}")
    return names


def _needed(config: DataConfig) -> set[str]:
    others = {name for name in _template_fields(config) if name != "prompt"}
    return {config.prompt, config.answer} | others


def _check_columns(config: DataConfig, table: _Table) -> None:
    if not table.columns:
        return  # an empty file: load_problems says so
    asked_by = {config.answer: "data.answer", config.prompt: "data.prompt"}
    for name in sorted(_needed(config).difference(table.columns)):
        raise ValueError(
            f"{table.place} has no column {name!r}, which {asked_by.get(name, 'data.template')} names"
            f"{suggest(name, table.columns) or '.'} Columns: {', '.join(table.columns)}"
        )


def _prompt(config: DataConfig, row: Mapping[str, Any], place: str) -> str | list[dict[str, str]]:
    question = row.get(config.prompt)
    if isinstance(question, (list, tuple)):
        return _conversation(config, question, place)
    if not isinstance(question, str) or not question.strip():
        raise ValueError(
            f"{place}: column {config.prompt!r} holds no prompt but {short(question)}; mend or remove the row"
        )
    values: dict[str, Any] = {"prompt": question}
    for name in _template_fields(config):
        if name != "prompt":
            values[name] = row.get(name)
            if values[name] is None:
                raise ValueError(
                    f"{place}: column {name!r}, which data.template names, is empty; mend or remove the row"
                )
    try:
        text = _format_string(config).format(**values)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{place}: data.template {short(config.template)} does not fit the row ({error})") from error
    if not config.chat:
        return text
    system = [] if config.system is None else [{"role": "system", "content": config.system}]
    return [*system, {"role": "user", "content": text}]


def _conversation(config: DataConfig, messages: Sequence[Any], place: str) -> list[dict[str, str]]:
    place = f"{place}: column {config.prompt!r}"
    if not config.chat:
        raise ValueError(f"{place} holds a list of messages; set data.chat: true")
    if config.template != "{prompt}":
        raise ValueError(f"{place} holds messages, to which data.template does not apply; leave data.template out")
    sound = all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    if not messages or not sound:
        raise ValueError(
            f'{place} holds {short(messages)}, expected messages like {{"role": "user", "content": "..."}}'
        )
    turns = [{"role": m["role"], "content": m["content"]} for m in messages]
    if turns[-1]["role"] == "assistant":
        raise ValueError(f"{place} ends with the assistant's turn; a prompt ends where the model is to speak")
    if config.system is not None and turns[0]["role"] == "system":
        raise ValueError(f"{place} begins with a system message of its own; leave data.system out")
    return turns if config.system is None else [{"role": "system", "content": config.system}, *turns]


def _extractor(rule: str | None) -> Any:
    """text -> answer or None."""
    named = {None: str.strip, "first": str.strip, "boxed": boxed_answer, "hash": hash_answer}
    if rule in named:
        return named[rule]
    try:
        pattern = re.compile(rule or "")
    except re.error as error:
        raise ValueError(f"data.answer_extract {rule!r} is not a regular expression ({error})") from error
    if pattern.groups != 1:
        raise ValueError(
            f"data.answer_extract {rule!r} has {pattern.groups} groups, expected one"
            f"{suggest(rule, ('boxed', 'hash', 'first')) or '.'} "
            "Give 'boxed', 'hash', 'first' or a regular expression like 'answer: (.+)'"
        )
    return lambda text: next((match.group(1) for match in reversed(list(pattern.finditer(text)))), None)


def _answer(config: DataConfig, row: Mapping[str, Any], extract: Any, place: str) -> str | None:
    """The reference answer as text; None where the column is null, which ``check_problems`` leaves out."""
    value, place = row.get(config.answer), f"{place}: column {config.answer!r}"
    if value is None or value != value:
        return None
    if config.answer_extract == "first" and isinstance(value, (list, tuple)) and value:
        value = value[0]
    is_number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    text = reference_text(value) if is_number or isinstance(value, str) else None
    if text is None:
        raise ValueError(
            f"{place} holds no answer but {short(value)}; mend or remove the row (of a list, "
            "data.answer_extract: first takes the first)"
        )
    answer = extract(text)
    if not (answer and answer.strip()):
        raise ValueError(
            f"{place}: data.answer_extract {config.answer_extract!r} finds nothing in {short(text[-200:])}"
        )
    return answer.strip()


# ---------------------------------------------------------------------------------------------------------- checking
def check_problems(
    problems: Dataset,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int | None,
    reward_names: Iterable[str],
    faulty: Literal["error", "drop"] = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Dataset:
    """Return the problems, each with a prompt that fits and an answer that the rewards can read.

    A prompt's length is counted as the trainer tokenises it (``generate.prompt_ids``). None as the limit counts
    nothing. An answer is parsed when ``math_verify`` is among the rewards. A row without a reference answer is left out
    with a warning that counts them, whatever ``faulty`` says.

    Returns:
        ``problems`` itself; with ``faulty="drop"`` (``DataConfig.faulty``) without the rows that fail, and a warning.

    Raises:
        ValueError: a row fails (with ``faulty="drop"``: all do), no row has a reference answer, or the tokenizer has no
            chat template for messages.
    """
    unanswered = [row for row, answer in enumerate(problems["answer"]) if answer is None]
    if unanswered:
        told = f"row {unanswered[0]}, column 'answer': no reference answer (null). Such rows: {len(unanswered)} of "
        if len(unanswered) == len(problems):
            raise ValueError(f"{told}{len(problems)}; give data.answer the column that holds the answers")
        warnings.warn(f"{told}{len(problems)}; left out", stacklevel=2)
    faults = _unread_answers(problems) if "math_verify" in reward_names else {}
    faults |= _long_prompts(problems, tokenizer, max_prompt_tokens, chat_template_kwargs)
    if faults:
        first = f"{faults[min(faults)]}. Rows at fault: {len(faults)} of {len(problems)}"
        if faulty == "error" or len(faults.keys() | set(unanswered)) == len(problems):
            raise ValueError(f"{first}; mend or remove them, or leave them out with data.faulty: drop")
        warnings.warn(f"{first}; left out", stacklevel=2)
    bad = faults.keys() | set(unanswered)
    return problems.select([row for row in range(len(problems)) if row not in bad]) if bad else problems


def _unread_answers(problems: Dataset) -> dict[int, str]:
    answers = list(problems["answer"])
    distinct = list(dict.fromkeys(filter(None, answers)))
    hard = [answer for answer in distinct if not is_plain(answer)]
    if len(hard) >= PARALLEL_FROM:
        unread = _unread_in_parallel(hard)
    else:
        unread = {answer for answer in tqdm(hard, desc="parsing answers", delay=2) if not parses(answer)}
    return {
        index: f"row {index}, column 'answer': math_verify cannot parse {short(answer)} (is it a whole solution? "
        "data.answer_extract reads the answer from one; is it words? the reward exact_match compares them)"
        for index, answer in enumerate(answers)
        if answer in unread
    }


def _unread_in_parallel(answers: list[str]) -> set[str]:
    from datasets import Dataset

    rows = Dataset.from_dict({"answer": answers})
    known: Any = rows.map(_parse_row, num_proc=min(8, os.cpu_count() or 1), desc="parsing answers")
    return {row["answer"] for row in known if not row["parses"]}


def _parse_row(row: dict[str, str]) -> dict[str, bool]:
    return {"parses": parses(row["answer"])}


def _long_prompts(
    problems: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> dict[int, str]:
    """Say which rows have too long a prompt; without a limit, only try whether the template takes the messages."""
    from aent_llm.data.prompts import prompt_ids

    found = {}
    for start in range(0, len(problems) if limit is not None else 1, 256):
        prompts = problems[start : start + 256]["prompt"]
        for index, ids in enumerate(prompt_ids(tokenizer, prompts, chat_template_kwargs, first=start), start):
            if limit is not None and len(ids) > limit:
                prompt = prompts[index - start]
                shown = short(prompt if isinstance(prompt, str) else prompt[-1]["content"])
                found[index] = (
                    f"row {index}, column 'prompt': {len(ids)} tokens, more than the limit of {limit}: {shown}"
                )
    return found
