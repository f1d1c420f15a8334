"""Problems from files, the hub and the embedded task: what is loaded, and what every mistake says."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets.exceptions import DatasetNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from aent_llm.data import problems as data
from aent_llm.data.problems import DataConfig, check_problems, load_problems, short
from aent_llm.data.rewards import exact_match, math_verify

ROWS = [
    {"question": "What is 1+1?", "solution": r"It is $\boxed{2}$.", "level": 1, "gold": "2"},
    {"question": "Half of one?", "solution": r"\boxed{1}, or rather \boxed{\frac{1}{2}}", "level": 2, "gold": 0.5},
    {"question": "Seven?", "solution": r"Clearly \boxed{7}", "level": 3, "gold": 7},
]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def jsonl(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def words_tokenizer(*, chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per word, and one <bos> in front of plain text."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, "<bos>": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<bos>")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def loaded(source: str, **fields: Any) -> list[tuple[Any, str]]:
    problems = load_problems(DataConfig(source, **fields))
    assert problems.column_names == ["prompt", "answer"]
    return list(zip(problems["prompt"], problems["answer"], strict=True))


# ------------------------------------------------------------------------------------------------------ what is read
def test_jsonl_and_parquet_give_the_same_problems(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "gold"} for row in ROWS]  # one type per Parquet column
    fields = {"prompt": "question", "answer": "solution", "answer_extract": "boxed", "template": "[{level}] {prompt}"}
    expected = [("[1] What is 1+1?", "2"), ("[2] Half of one?", r"\frac{1}{2}"), ("[3] Seven?", "7")]
    assert loaded(jsonl(tmp_path / "a.jsonl", rows), **fields) == expected
    assert loaded(parquet(tmp_path / "a.parquet", rows), **fields) == expected
    assert loaded(parquet(tmp_path / "a.parquet", rows), **fields, limit=2) == expected[:2]
    assert loaded(jsonl(tmp_path / "a.jsonl", rows), **fields, limit=2) == expected[:2]
    assert loaded(jsonl(tmp_path / "a.jsonl", rows), **fields, limit=99) == expected


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@given(st.lists(st.tuples(text, text), min_size=1, max_size=5))
def test_any_text_survives_a_file(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("any") / "any.jsonl"
    source = jsonl(path, [{"prompt": prompt, "answer": answer} for prompt, answer in rows])
    assert loaded(source) == [(prompt, answer.strip()) for prompt, answer in rows]


def test_numbers_are_answers(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "n.jsonl", ROWS)
    assert [answer for _, answer in loaded(source, prompt="question", answer="gold")] == ["2", "0.5", "7"]


@pytest.mark.parametrize(
    ("type_", "values", "expected"),
    [
        (pyarrow.float64(), [42.0, 7.0, -0.5], ["42", "7", "-0.5"]),
        (pyarrow.float32(), [42.0, 7.0, 0.1], ["42", "7", "0.1"]),
        (pyarrow.int8(), [42, 7, -1], ["42", "7", "-1"]),
        (pyarrow.decimal128(9, 2), [Decimal("42.00"), Decimal("7.50"), Decimal("-1")], ["42", "7.5", "-1"]),
        (pyarrow.string(), ["42.0", " 7 ", "x"], ["42.0", "7", "x"]),
    ],
)
def test_numbers_of_a_parquet_column_are_answers(
    tmp_path: Path, type_: Any, values: list[Any], expected: list[str]
) -> None:
    """A column of whole numbers becomes floats as soon as pandas sees a missing one."""
    columns = {"prompt": ["a", "b", "c"], "answer": pyarrow.array(values, type=type_)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "n.parquet")
    answers = [answer for _, answer in loaded(str(tmp_path / "n.parquet"))]
    assert answers == expected
    for reward in (exact_match, math_verify):
        assert reward([rf"\boxed{{{answer}}}" for answer in expected], answers) == [1.0] * 3


def test_rows_without_an_answer_are_left_out_with_a_count(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "answer": None if i in (1, 3) else i} for i in range(5)]
    rows[4]["answer"] = float("nan")
    check: Any = {"tokenizer": words_tokenizer(), "max_prompt_tokens": None, "reward_names": ["math_verify"]}
    for source in (jsonl(tmp_path / "a.jsonl", rows), parquet(tmp_path / "a.parquet", rows)):
        problems = load_problems(DataConfig(source))
        assert list(problems["answer"]) == ["0", None, "2", None, None]
        with pytest.warns(UserWarning, match=r"row 1, column 'answer': no reference answer .*: 3 of 5; left out"):
            assert check_problems(problems, **check)["prompt"][:] == ["q0", "q2"]
        with pytest.raises(ValueError, match=r"no reference answer .*: 2 of 2; give data.answer"):
            check_problems(problems.select([1, 3]), **check)
        with pytest.warns(UserWarning, match="3 of 5"), pytest.raises(ValueError, match=r"row 0, .*fault: 5 of 5"):
            check_problems(problems, **{**check, "max_prompt_tokens": 1})  # the count of rows is that of the file


def test_blank_lines_and_a_byte_order_mark_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "blank.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "answer": "1"}\n\n{"prompt": "b", "answer": "2"}')
    assert loaded(str(path)) == [("a", "1"), ("b", "2")]


@pytest.mark.parametrize(
    ("rule", "expected"), [("hash", "72"), (r"so (\d+) in", "24"), (r"(\d+)", "72"), ("boxed", "5"), (None, None)]
)
def test_answers_are_extracted(tmp_path: Path, rule: str | None, expected: str | None) -> None:
    solution = "48 and \\boxed{5}, so 24 in May.\n#### 72"
    source = jsonl(tmp_path / "g.jsonl", [{"prompt": "?", "answer": solution}])
    assert loaded(source, answer_extract=rule) == [("?", expected or solution)]


def test_first_of_a_list_of_answers(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "l.jsonl", [{"prompt": "?", "answer": ["1", "2"]}])
    assert loaded(source, answer_extract="first") == [("?", "1")]
    with pytest.raises(ValueError, match=r"data.answer_extract: first"):
        loaded(source)


def test_braces_in_a_template(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "b.jsonl", [{"prompt": "{x}?", "answer": "1"}])
    for template in (r"{prompt} Use \boxed{}.", r"{prompt} Use \boxed{{}}."):
        assert loaded(source, template=template) == [(r"{x}? Use \boxed{}.", "1")]


def test_chat(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "c.jsonl", [{"prompt": "one two", "answer": "1"}])
    [(messages, _)] = loaded(source, chat=True, system="be brief", template="Q: {prompt}")
    assert messages == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Q: one two"}]
    assert loaded(source, chat=True)[0][0] == [{"role": "user", "content": "one two"}]
    rendered = words_tokenizer().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == "<system> be brief <end> <user> Q: one two <end> <assistant>"


def test_prompts_that_are_conversations(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "2?"},
    ]
    for source in (
        jsonl(tmp_path / "m.jsonl", [{"prompt": turns, "answer": "2"}]),
        parquet(tmp_path / "m.parquet", [{"prompt": turns, "answer": "2"}]),
    ):
        assert loaded(source, chat=True) == [(turns, "2")]
        assert loaded(source, chat=True, system="s")[0][0] == [{"role": "system", "content": "s"}, *turns]
        with pytest.raises(ValueError, match=r"row 0.*column 'prompt' holds a list of messages; set data.chat: true"):
            loaded(source)
        with pytest.raises(ValueError, match=r"data.template does not apply"):
            loaded(source, chat=True, template="Q {prompt}")
    source = jsonl(tmp_path / "e.jsonl", [{"prompt": turns[:2], "answer": "2"}])
    with pytest.raises(ValueError, match="ends with the assistant's turn"):
        loaded(source, chat=True)


def test_the_embedded_task() -> None:
    problems = loaded("tiny", count=20, seed=1)
    assert len(problems) == 20
    assert all(eval(prompt.rstrip("=")) == int(answer) for prompt, answer in problems)  # "a*b+c*d="
    assert loaded("tiny", count=20, seed=1, limit=5) == problems[:5]
    assert loaded("tiny", count=20, seed=2) != problems
    assert not {p for p, _ in loaded("tiny", count=500)} & {p for p, _ in loaded("tiny", count=500, split="test")}


# ------------------------------------------------------------------------------------------------- what mistakes say
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"answer": "answr"},
            r"a.jsonl has no column 'answr', which data.answer names; did you mean 'answer'\? Columns:",
        ),
        ({"prompt": "zzz"}, r"no column 'zzz', which data.prompt names. Columns: prompt, answer, level"),
        ({"template": "{prompt} {levle}"}, r"'levle', which data.template names; did you mean 'level'"),
        ({"template": "{prompt.x}"}, "no column 'prompt.x'"),
        ({"template": "{prompt:{level}q}"}, "does not fit the row"),
        (
            {"answer_extract": "hash"},
            r"row 0 \(line 1\): column 'answer': data.answer_extract 'hash' finds nothing in '7'",
        ),
    ],
)
def test_columns_and_rules_that_do_not_fit(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "answer": "7", "level": 1}])
    with pytest.raises(ValueError, match=message):
        loaded(source, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "no field"}, "names no column, so all prompts would be equal"),
        ({"template": "{prompt} {answer}"}, "would show the model the answer column 'answer'"),
        ({"template": "{prompt} {0}"}, "a field without a name"),
        ({"template": "{prompt"}, "is not a format string"),
        ({"answer": "prompt"}, "same column"),
        ({"system": "be brief"}, "no effect without data.chat"),
        ({"limit": 0}, "data.limit: expected a whole number of at least 1, or null, got 0"),
        ({"count": 5}, "belong to the source 'tiny'"),
        ({"seed": 5}, "belong to the source 'tiny'"),
        ({"subset": "main"}, "data.subset has no effect"),
        ({"split": "test"}, "data.split 'test' has no effect"),
        ({"answer_extract": "boxd"}, r"has 0 groups, expected one; did you mean 'boxed'\?"),
        ({"answer_extract": "(a)(b)"}, "has 2 groups"),
        ({"answer_extract": "("}, "not a regular expression"),
        ({"faulty": "ignore"}, "data.faulty: expected error or drop, got 'ignore'"),
        ({"source": ""}, "data.source is empty"),
    ],
)
def test_settings_refused_before_anything_is_read(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"source": "never-read.jsonl", **fields})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None, "answer": "1"}, r"row 1 \(line 3\): column 'prompt' holds no prompt but None"),
        ({"prompt": " \n", "answer": "1"}, r"row 1 \(line 3\): column 'prompt' holds no prompt but ' \\n'"),
        ({"prompt": 3, "answer": "1"}, "column 'prompt' holds no prompt but 3"),
        ({"answer": "1"}, "column 'prompt' holds no prompt but None"),
        ({"prompt": "p", "answer": ""}, r"row 1 \(line 3\): column 'answer' holds no answer but ''"),
        ({"prompt": "p", "answer": float("inf")}, "column 'answer' holds no answer but inf"),
        ({"prompt": "p", "answer": True}, "column 'answer' holds no answer but True"),
        ({"prompt": "p", "answer": {"a": 1}}, "column 'answer' holds no answer but {'a': 1}"),
        (["p", "1"], r"bad.jsonl, line 3 is a list, expected an object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"prompt": "a", "answer": "1"}}\n\n{json.dumps(row)}\n')
    with pytest.raises(ValueError, match=message):
        loaded(str(path))
    assert loaded(str(path), limit=1) == [("a", "1")]


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    """JSON keeps the last of the two: another reference answer, without a word."""
    (tmp_path / "twice.jsonl").write_text(
        '{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+1=", "answer": "2", "answer": "3"}\n'
    )
    with pytest.raises(ValueError, match=r"twice.jsonl, line 2 has the key 'answer' twice; keep one of the two"):
        load_problems(DataConfig(str(tmp_path / "twice.jsonl")))


@pytest.mark.parametrize("damage", [b'{"prompt": "b", "ans', b'{"prompt": "\xff\xfe", "answer": "1"}'])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(b'{"prompt": "a", "answer": "1"}\n' + damage + b"\n")
    with pytest.raises(ValueError, match=r"damaged.jsonl, line 2 is not JSON .*; mend or delete the line"):
        loaded(str(path))


def test_empty_files_and_files_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"empty.jsonl has no rows"):
        loaded(jsonl(tmp_path / "empty.jsonl", []))
    schema = pyarrow.schema([("prompt", pyarrow.string()), ("answer", pyarrow.string())])
    pyarrow.parquet.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty.parquet has no rows"):
        loaded(str(tmp_path / "empty.parquet"))
    (tmp_path / "not.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"not.parquet cannot be read as Parquet"):
        loaded(str(tmp_path / "not.parquet"))
    with pytest.raises(ValueError, match=r"read as .jsonl or .parquet; convert it"):
        loaded(str(tmp_path / "a.csv"))


def test_a_missing_file_suggests_its_neighbours(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(FileNotFoundError, match=r"did you mean .*train.jsonl\?"):
        loaded(str(tmp_path / "trian.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"its folder holds train.jsonl"):
        loaded(str(tmp_path / "xyz.parquet"))
    with pytest.raises(FileNotFoundError, match=r"the folder '.*nowhere' does not exist"):
        loaded(str(tmp_path / "nowhere" / "a.jsonl"))


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"'nobody/nothing'.*HF_HUB_OFFLINE is set.*give a local .jsonl"):
        loaded("nobody/nothing", split="test")


def test_the_hub_answers_or_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real exceptions of ``datasets``; raising them here spares the minute that a lookup without network takes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    config = DataConfig("nobody/nothing")
    unknown, unreachable = (
        data._hub_error(config, DatasetNotFoundError("?")),
        data._hub_error(config, ConnectionError("?")),
    )
    assert isinstance(unknown, FileNotFoundError)
    assert "no data set 'nobody/nothing' on the hub" in str(unknown)
    assert isinstance(unreachable, ConnectionError)
    assert "check the network" in str(unreachable)
    assert "HF_HUB_OFFLINE" not in str(unreachable)


def test_a_folder_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very path of a hub data set: ``datasets.load_dataset``, with its splits and its complaints."""
    folder = tmp_path / "set"
    folder.mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    jsonl(folder / "train.jsonl", [{"prompt": str(i), "answer": i, "other": "x"} for i in range(5)])
    jsonl(folder / "test.jsonl", [{"prompt": "t", "answer": 9, "other": "x"}])
    assert loaded(str(folder), split="test") == [("t", "9")]
    assert loaded(str(folder), limit=2) == [("0", "0"), ("1", "1")]
    assert loaded(str(folder), split="train[3:]") == [("3", "3"), ("4", "4")]
    with pytest.raises(ValueError, match=r"split 'tset': Unknown split"):
        loaded(str(folder), split="tset")
    with pytest.raises(ValueError, match=r"subset 'main'.*main"):
        loaded(str(folder), subset="main")
    with pytest.raises(ValueError, match="no column 'question'"):
        loaded(str(folder), prompt="question")


# ----------------------------------------------------------------------------------------------------- check_problems
def problems_of(tmp_path: Path, rows: list[tuple[str, str]], **fields: Any) -> Any:
    source = jsonl(tmp_path / "check.jsonl", [{"prompt": prompt, "answer": answer} for prompt, answer in rows])
    return load_problems(DataConfig(source, **fields))


@pytest.mark.parametrize(("chat", "length"), [(False, 4), (True, 6)])  # <bos> a b c;  <user> a b c <end> <assistant>
def test_the_longest_prompt_that_fits(tmp_path: Path, chat: bool, length: int) -> None:
    problems = problems_of(tmp_path, [("a b", "1"), ("a b c", "2")], chat=chat)
    check = {"tokenizer": words_tokenizer(), "reward_names": ["exact_match"]}
    assert check_problems(problems, max_prompt_tokens=length, **check) is problems
    assert check_problems(problems, max_prompt_tokens=None, **check) is problems
    with pytest.raises(
        ValueError, match=rf"row 1, column 'prompt': {length} tokens, more than the limit of {length - 1}: 'a b c'"
    ):
        check_problems(problems, max_prompt_tokens=length - 1, **check)


def test_rows_of_later_batches_keep_their_number(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, [("a " * (9 if i == 300 else 1), "1") for i in range(400)])
    with pytest.raises(ValueError, match=r"row 300, .* 10 tokens, .*Rows at fault: 1 of 400"):
        check_problems(problems, tokenizer=words_tokenizer(), max_prompt_tokens=9, reward_names=[])


def test_a_tokenizer_that_cannot_take_the_messages(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, [("a", "1")], chat=True, system="s")
    with pytest.raises(ValueError, match="no chat template"):
        check_problems(problems, tokenizer=words_tokenizer(chat_template=None), max_prompt_tokens=None, reward_names=[])
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    with pytest.raises(ValueError, match=r"prompt 0: .*refuses the messages \(no system role\)"):
        check_problems(
            problems, tokenizer=words_tokenizer(chat_template=strict), max_prompt_tokens=None, reward_names=[]
        )


@pytest.mark.parametrize("parallel_from", [2000, 1])
def test_answers_that_do_not_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel_from: int) -> None:
    monkeypatch.setattr(data, "PARALLEL_FROM", parallel_from)
    answers = ["1", r"\frac{1}{2}", "???", "(1,2]", r"\{1,2\}", "???", "1"]
    problems = problems_of(tmp_path, [(f"q{i}", answer) for i, answer in enumerate(answers)])
    check = {"tokenizer": words_tokenizer(), "max_prompt_tokens": None}
    assert check_problems(problems, reward_names=["exact_match"], **check) is problems
    with pytest.raises(ValueError, match=r"row 2, column 'answer': math_verify cannot parse '\?\?\?'.*fault: 2 of 7"):
        check_problems(problems, reward_names=["exact_match", "math_verify"], **check)
    with pytest.warns(UserWarning, match=r"row 2.*left out"):
        kept = check_problems(problems, reward_names=["math_verify"], faulty="drop", **check)
    assert kept["prompt"][:] == ["q0", "q1", "q3", "q4", "q6"]
    with pytest.raises(ValueError, match="fault: 1 of 1"):  # nothing would be left
        check_problems(problems.select([2]), reward_names=["math_verify"], faulty="drop", **check)


def test_plain_answers_need_no_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "PARALLEL_FROM", 1)
    monkeypatch.setattr(data, "parses", None)
    monkeypatch.setattr(data, "_unread_in_parallel", None)
    problems = problems_of(tmp_path, [(f"q{i}", answer) for i, answer in enumerate(["1", "-0.5", "3/4", "east"])])
    checked = check_problems(
        problems, tokenizer=words_tokenizer(), max_prompt_tokens=None, reward_names=["math_verify"]
    )
    assert checked is problems


def test_a_long_check_of_answers_shows_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "parses", lambda answer: time.sleep(0.3) or True)
    problems = problems_of(tmp_path, [(f"q{i}", f"x^{i}") for i in range(9)])
    check_problems(problems, tokenizer=words_tokenizer(), max_prompt_tokens=None, reward_names=["math_verify"])
    assert "parsing answers" in capsys.readouterr().err


@given(st.text(max_size=300), st.integers(40, 120))
def test_shown_values_are_short_and_whole_when_they_fit(value: str, width: int) -> None:
    shown = short(value, width)
    assert len(shown) <= width
    assert (shown == repr(value)) == (len(repr(value)) <= width)
