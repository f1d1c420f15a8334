"""The embedded task, tokenizer and model: splits, rewards, text round trips, the tail of the warm-up, the cache."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aent_llm.data import tiny

SMALL = tiny.TinySpec(
    habit_learning_rate=5e-3,
    vocabulary=512,
    hidden=32,
    intermediate=64,
    layers=1,
    warmup_steps=60,
    habit_steps=150,
    batch_size=32,
    tail_mass=0.1,
)
WAYS = st.sampled_from(["{}", "12+35={}", "1=2={}", " {}", "{} "])


@pytest.fixture(scope="module")
def codes():
    return tiny.tokenizer(SMALL)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(cache):
    return tiny.build(cache, spec=SMALL, progress=False)


# ---- the task


def test_splits_share_no_problem_and_cover_all_operands():
    train, test = ({row["prompt"] for row in tiny.problems(20_000, split=split)} for split in ("train", "test"))
    assert not train & test
    assert {tuple(re.findall(r"\d", prompt)) for prompt in train | test} == set(product("123456789", repeat=4))
    assert 0.15 < len(test) / len(train | test) < 0.25


def test_problems_depend_on_the_seed_alone():
    assert tiny.problems(50, seed=3) == tiny.problems(50, seed=3)
    assert tiny.problems(50, seed=3) != tiny.problems(50, seed=4)


def test_answers_are_what_python_computes():
    for row in tiny.problems(500, seed=1) + tiny.problems(500, seed=1, split="test"):
        assert str(eval(row["prompt"].rstrip("="))) == row["answer"]


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="'train' or 'test', got 'dev'"):
        tiny.problems(3, split="dev")


@given(st.integers(-80, 170), st.integers(-80, 170), WAYS)
def test_reward_is_equality_of_the_number_after_the_last_equals(right, given_answer, way):
    assert tiny.reward([way.format(given_answer)], [str(right)]) == [float(right == given_answer)]


@pytest.mark.parametrize("text", ["", "=", "47=", "47 bada", "4 7", "47;", "047", "+47", "47.0", "12+35", "47==48"])
def test_garbled_completions_earn_nothing(text):
    assert tiny.reward([text, [{"role": "assistant", "content": text}]], ["47", "47"], prompts=["?"] * 2) == [0.0, 0.0]


def test_reward_reads_chat_completions():
    assert tiny.reward([[{"role": "assistant", "content": "12+35=47"}]], ["47"]) == [1.0]


# ---- the tokenizer


def test_ids_are_one_to_one_and_the_task_comes_first(codes):
    assert len(codes) == SMALL.vocabulary == len(set(codes.convert_ids_to_tokens(range(512))))
    assert codes("12+35=47")["input_ids"] == [len(tiny.SPECIAL_TOKENS) + "0123456789+-*=".index(c) for c in "12+35=47"]
    assert (codes.pad_token_id, codes.eos_token_id, codes.unk_token_id) == (tiny.PAD, tiny.EOS, tiny.UNK)


@given(st.lists(st.integers(len(tiny.SPECIAL_TOKENS), 511), max_size=20))
def test_ids_survive_text(codes, ids):
    text = codes.decode(ids)
    assert codes(text)["input_ids"] == ids
    assert text == "".join(codes.convert_ids_to_tokens(ids))


def test_chat_and_plain_prompts_are_the_same_tokens(codes):
    chat = codes.apply_chat_template([{"role": "user", "content": "3*4+5*7="}], add_generation_prompt=True)
    assert chat["input_ids"] == codes("3*4+5*7=")["input_ids"]


def test_lengths_stated_are_the_lengths_needed(codes):
    rows = tiny._split("train") + tiny._split("test")
    assert {len(codes(row[0])["input_ids"]) for row in rows} == {tiny.PROMPT_TOKENS}
    assert max(len(row[2]) for row in rows) + 1 == tiny.COMPLETION_TOKENS


# ---- the warm-up


def test_soft_loss_is_cross_entropy_against_dense_targets():
    generator = torch.Generator().manual_seed(0)
    rows, vocabulary, width, mass = 5, 64, 8, 0.2
    hidden, weight = (torch.randn(n, width, dtype=torch.float64, generator=generator) for n in (rows, vocabulary))
    tail = torch.rand(vocabulary - tiny.TASK_TOKENS, dtype=torch.float64, generator=generator)
    tail /= tail.sum()
    target = torch.tensor([3, 4, 1, 12, 9])
    dense = torch.zeros(rows, vocabulary, dtype=torch.float64)
    dense[:, tiny.TASK_TOKENS :] = mass * tail
    dense[torch.arange(rows), target] += 1 - mass
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, dense)
    assert torch.allclose(tiny.soft_loss(hidden, weight, target, tail=tail, tail_mass=mass), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocabulary": 20}, "vocabulary must be in"),
        ({"hidden": 48}, "multiple of head_dim"),
        ({"tail_mass": 1.0}, "tail_mass is a share"),
    ],
)
def test_specs_that_cannot_be_built_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny.TinySpec(**fields)


def _tail_mass(folder, spec):
    """Mean mass of the irrelevant tokens over the positions of right answers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tiny._corpus(spec)[0, :200]
    with torch.no_grad():
        chance = model(input_ids=ids[:, :-1]).logits[:, tiny.PROMPT_TOKENS - 1 :].softmax(-1)
    answered = ids[:, tiny.PROMPT_TOKENS :] != tiny.PAD
    return chance[..., tiny.TASK_TOKENS :].sum(-1)[answered].mean().item()


def test_the_tail_holds_the_share_asked_for(folder):
    assert _tail_mass(folder, SMALL) == pytest.approx(SMALL.tail_mass, rel=0.5)


def test_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny.build(
        tmp_path, spec=tiny.TinySpec(vocabulary=64, hidden=32, layers=1, warmup_steps=1, habit_steps=1), progress=False
    )
    assert torch.equal(torch.rand(3), expected)


# ---- the cache


def test_what_is_built_loads_and_speaks(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    codes = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "qwen2"
    assert model.lm_head.weight.shape == (SMALL.vocabulary, SMALL.hidden)
    assert json.loads((folder / "spec.json").read_text())["tail_mass"] == SMALL.tail_mass
    batch = codes(["3*4+5*7=", "9*9-1*2="], return_tensors="pt", padding=True)
    out = model.generate(**batch, max_new_tokens=6, do_sample=False)
    assert out[:, : tiny.PROMPT_TOKENS].tolist() == batch["input_ids"].tolist()
    # digits, signs and the end are most of what is said: a model that was not trained says words
    text = "".join(codes.batch_decode(out[:, tiny.PROMPT_TOKENS :], skip_special_tokens=True))
    assert re.fullmatch(r"[-+=\d]+", text)


def test_a_second_build_is_the_first(folder, cache):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny.build(cache, spec=SMALL, progress=False) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_the_environment_names_the_cache(folder, cache, monkeypatch):
    monkeypatch.setenv("AENT_CACHE", str(cache))
    assert tiny.build(spec=SMALL, progress=False) == folder


def test_a_damaged_folder_is_built_again(tmp_path):
    spec = tiny.TinySpec(vocabulary=64, hidden=32, layers=1, warmup_steps=1, habit_steps=1)
    first = tiny.build(tmp_path, spec=spec, progress=False)
    (first / "spec.json").unlink()
    assert tiny.build(tmp_path, spec=spec, progress=False) == first
    assert (first / "spec.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),  # of the same size
        lambda path: path.write_bytes(b""),
        lambda path: path.with_name("tokenizer.json").write_text("{}"),
        lambda path: path.with_name("sha256.json").write_text("[]"),
        lambda path: path.with_name("sha256.json").unlink(),
    ],
)
def test_damage_of_any_file_is_seen(folder, tmp_path, damage):
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = (copy / "spec.json").read_text()
    assert tiny._is_whole(copy, content)
    damage(copy / "model.safetensors")
    assert not tiny._is_whole(copy, content)


def test_a_truncated_model_is_built_again_and_leftovers_of_killed_builds_go(tmp_path):
    from transformers import AutoModelForCausalLM

    spec = tiny.TinySpec(vocabulary=64, hidden=32, layers=1, warmup_steps=1, habit_steps=1)
    first = tiny.build(tmp_path, spec=spec, progress=False)
    weights = (first / "model.safetensors").read_bytes()
    (first / "model.safetensors").write_bytes(weights[:1000])
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for name in (f".draft-{platform.node()}-{process.pid}-0a", f".{first.name}-abc"):  # the second of earlier versions
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0) if name.startswith(".tiny") else None)
    assert tiny.build(tmp_path, spec=spec, progress=False) == first
    assert (first / "model.safetensors").read_bytes() == weights
    AutoModelForCausalLM.from_pretrained(first)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_a_cache_that_cannot_be_written_is_named_before_the_warm_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "warmed_up", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file.*; AENT_CACHE names another cache"):
        tiny.build(tmp_path / "file", spec=SMALL)
    monkeypatch.delenv("AENT_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-has-this-name").expanduser())
    with pytest.raises(ValueError, match="name a folder in AENT_CACHE"):
        tiny.build(spec=SMALL)


def test_a_build_that_dies_leaves_nothing(tmp_path, monkeypatch):
    def dies(spec):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "tokenizer", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny.build(tmp_path, spec=SMALL, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_builders_wins(folder, tmp_path):
    """Both come to the rename with a whole folder; both end with the same one."""
    content = (folder / "spec.json").read_text()
    target = tmp_path / "target"
    for number in range(6):
        shutil.copytree(folder, tmp_path / f"building{number}")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: tiny._publish(tmp_path / f"building{n}", target, content), range(6)))
    assert tiny._is_whole(target, content)
    assert len(list(tmp_path.iterdir())) == 6  # target and the five that lost


@pytest.mark.slow
def test_the_default_is_peaked_long_tailed_and_half_able(tmp_path):
    """Start between 15 and 50% right, 0.5 to 1.5 nats, a few per cent on 16,000 irrelevant tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = tiny.TinySpec()
    folder = tiny.build(tmp_path, spec=spec)
    assert 0.5 < _tail_mass(folder, spec) / spec.tail_mass < 2.0
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    codes = AutoTokenizer.from_pretrained(folder)
    rows = tiny.problems(512, split="test")
    torch.manual_seed(0)
    ids = codes([row["prompt"] for row in rows], return_tensors="pt")["input_ids"]
    out = model.generate(ids, do_sample=True, top_k=0, max_new_tokens=tiny.COMPLETION_TOKENS)[:, tiny.PROMPT_TOKENS :]
    texts = codes.batch_decode(out, skip_special_tokens=True)
    right = sum(tiny.reward(texts, [row["answer"] for row in rows])) / len(rows)
    assert 0.15 < right < 0.5
    assert 0.005 < sum("=" in text for text in texts) / len(texts) < 0.3
    with torch.no_grad():
        first = model(ids).logits[:, -1].log_softmax(-1)
    assert 0.5 < -(first.exp() * first).sum(-1).mean().item() < 1.5
