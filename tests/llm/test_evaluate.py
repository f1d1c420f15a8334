"""Evaluation: estimators against enumeration, the sampler against forward passes, the command against its promises."""

import itertools
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel

import small
from aent.stats import bootstrap_mean
from aent_llm.__main__ import main as aent_llm
from aent_llm.data import eval_sets
from aent_llm.data.prompts import encode_prompts, load_tokenizer
from aent_llm.data.rewards import CORRECT_REWARD, is_correct
from aent_llm.measure.evaluate import EvalConfig, evaluate, main, majority, pass_at_k
from aent_llm.measure.generate import Completion, transformers_sampler, vllm_sampler
from aent_llm.measure.tasks import write_results
from aent_llm.training.config import AEntGRPOConfig

PROMPTS = ["w1", "w2 w3 w4 w5 w6 w7 w8", "w9 w10", "w40 w41 w42"]


@pytest.fixture(scope="module")
def policy():
    return small.model(1, hidden_size=64)  # head width 32: vLLM on a CPU has no 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory, policy):
    path = tmp_path_factory.mktemp("model")
    policy.save_pretrained(path)
    small.tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def problems_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": str(i)}) + "\n" for i, p in enumerate(PROMPTS)))
    return path


def drawn(policy, prompts=PROMPTS, *, batch_tokens=65_536, **settings):
    options = {
        "samples": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 12,
        "seed": 0,
        "progress": False,
    }
    sampler = transformers_sampler(policy, small.tokenizer(), batch_tokens=batch_tokens)
    return sampler(prompts, **{**options, **settings})


def forward(policy, prompt, token_ids=()):
    """log softmax at every place of a completion, one prompt alone, without cache or padding: (tokens + 1, V)."""
    ids = small.tokenizer()(prompt)["input_ids"]
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([[*ids, *token_ids]])).logits[0, len(ids) - 1 :]
    return logits.double().log_softmax(-1)


# -------------------------------------------------------------------------------------------------------- estimators


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(case):
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    expected = Fraction(sum(map(any, subsets)), len(subsets))
    assert pass_at_k([c], n, k)[0] == pytest.approx(float(expected), abs=1e-14)


@pytest.mark.parametrize(("n", "c", "k"), [(1000, 3, 500), (4000, 1, 7), (512, 500, 256)])
def test_pass_at_k_stays_exact_where_binomials_overflow(n, c, k):
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k([c], n, k)[0] == pytest.approx(float(exact), rel=1e-12)


def test_pass_at_k_is_unbiased_and_the_plug_in_is_not():
    n, k, p = 5, 3, 0.3
    weight = np.array([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)])
    assert weight @ pass_at_k(np.arange(n + 1), n, k) == pytest.approx(1 - (1 - p) ** k, abs=1e-14)
    assert abs(weight @ (1 - (1 - np.arange(n + 1) / n) ** k) - (1 - (1 - p) ** k)) > 0.05


@pytest.mark.parametrize(("correct", "samples", "k"), [([1], 4, 5), ([1], 4, 0), ([5], 4, 1), ([-1], 4, 1)])
def test_pass_at_k_refuses_what_it_cannot_estimate(correct, samples, k):
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(correct, samples, k)


@given(st.lists(st.tuples(st.sampled_from(["7", "5", "3", None]), st.booleans()), min_size=1, max_size=6))
def test_majority_is_the_mean_over_every_way_to_break_a_tie(votes):
    names, scores = zip(*votes, strict=True)
    cast = [name for name in names if name is not None]
    winners = [name for name in set(cast) if all(cast.count(name) >= cast.count(other) for other in cast)]
    per_winner = [np.mean([s for name, s in votes if name == winner]) for winner in winners]
    expected = np.mean(per_winner) if winners else 0.0
    assert majority([names], np.array([scores]))[0] == pytest.approx(expected)
    shuffled = votes[::-1]
    assert majority([[v[0] for v in shuffled]], np.array([[v[1] for v in shuffled]]))[0] == pytest.approx(expected)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """300 sets of 60 problems with mean 0.3: 95% cover, give or take three standard errors and a small-P bias."""
    rng = np.random.default_rng(5)
    trials, covered = 300, 0
    for seed in range(trials):
        values = rng.binomial(4, rng.beta(1.5, 3.5, size=60)) / 4
        found = bootstrap_mean(values, draws=200, seed=seed)
        covered += found.low <= 0.3 <= found.high
    assert (
        0.95 - 0.02 - 3 * math.sqrt(0.05 * 0.95 / trials)
        < covered / trials
        < 0.95 + 3 * math.sqrt(0.05 * 0.95 / trials)
    )


# ----------------------------------------------------------------------------------------------------------- sampler


def test_greedy_is_the_argmax_loop(policy):
    for prompt, (one,) in zip(PROMPTS, drawn(policy, temperature=0.0), strict=True):
        expected = []
        while len(expected) < 12 and (not expected or expected[-1] != 1):
            expected.append(int(forward(policy, prompt, expected)[-1].argmax()))
        assert one.token_ids == expected
        assert one.tokens == len(expected)


def test_the_logprob_is_that_of_a_forward_pass_whatever_rule_chose_the_tokens(policy):
    for rule in ({}, {"temperature": 0.0, "samples": 1}, {"temperature": 0.5, "top_k": 5}, {"top_p": 0.4}):
        for prompt, ones in zip(PROMPTS, drawn(policy, **{"samples": 3, **rule}), strict=True):
            for one in ones:
                expected = forward(policy, prompt, one.token_ids)[:-1].gather(1, torch.tensor(one.token_ids)[:, None])
                assert one.logprob == pytest.approx(float(expected.sum()), abs=1e-4)


def test_rows_that_stop_leave_the_others_alone(policy):
    """Completions of many lengths in one batch, each equal to what its row gives in a batch of one."""
    together = drawn(policy, samples=8, max_tokens=30)
    lengths = {one.tokens for ones in together for one in ones}
    assert len(lengths) > 3
    apart = drawn(policy, samples=8, max_tokens=30, batch_tokens=1)
    tokens = [[one.token_ids for one in ones] for ones in together]
    assert [[one.token_ids for one in ones] for ones in apart] == tokens
    assert [[o.token_ids for o in ones] for ones in drawn(policy, samples=8, max_tokens=30, batch_tokens=100)] == tokens
    for a, b in zip(itertools.chain(*together), itertools.chain(*apart), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_padding_does_not_shift_positions():
    """A model with absolute positions sees what rotary ones, which know distances only, cannot."""
    torch.manual_seed(0)
    absolute = GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=2, n_positions=64, initializer_range=0.5, eos_token_id=1)
    ).eval()
    for prompt, (one,) in zip(PROMPTS, drawn(absolute, temperature=0.0), strict=True):
        assert one.token_ids == drawn(absolute, [prompt], temperature=0.0)[0][0].token_ids
        expected = forward(absolute, prompt, one.token_ids)[:-1].gather(1, torch.tensor(one.token_ids)[:, None])
        assert one.logprob == pytest.approx(float(expected.sum()), abs=1e-4)


def test_the_stop_token_ends_a_completion_and_only_then_it_is_not_truncated(policy):
    ones = [one for ones in drawn(policy, samples=16, max_tokens=20) for one in ones]
    assert {one.truncated for one in ones} == {True, False}
    for one in ones:
        assert 1 not in one.token_ids[:-1]
        assert one.truncated == (one.token_ids[-1] != 1)
        assert one.tokens == len(one.token_ids) <= 20
        assert one.tokens == 20 or not one.truncated
        assert one.text == small.tokenizer().decode([t for t in one.token_ids if t > 2])  # 0, 1, 2: pad, end, unknown


def test_every_stop_token_of_the_model_counts(policy):
    first = drawn(policy, temperature=0.0)[0][0].token_ids[0]
    before = policy.generation_config.eos_token_id
    policy.generation_config.eos_token_id = [1, first]
    try:
        (one,) = drawn(policy, PROMPTS[:1], temperature=0.0)[0]
    finally:
        policy.generation_config.eos_token_id = before
    assert (one.token_ids, one.truncated) == ([first], False)


@pytest.mark.parametrize(
    "rule", [{}, {"temperature": 0.6}, {"top_k": 7}, {"top_p": 0.8}, {"temperature": 1.3, "top_k": 20, "top_p": 0.7}]
)
def test_first_tokens_follow_the_rule(rule):
    """Chi-square against a distribution cut by hand: temperature, then top-k, then the smallest set of mass top-p."""
    count, policy = 4000, small.model(1, scale=0.15)  # flat enough that every rule keeps many tokens
    sampled = [one.token_ids[0] for one in drawn(policy, ["w1"], samples=count, max_tokens=1, seed=3, **rule)[0]]
    probs = (forward(policy, "w1")[-1] / rule.get("temperature", 1.0)).exp().numpy()
    order = sorted(range(len(probs)), key=lambda token: -probs[token])[: rule.get("top_k") or None]
    kept, mass = [], 0.0
    for token in order:
        kept.append(token)
        mass += probs[token] / probs[order].sum()
        if mass >= rule.get("top_p", 1.0):
            break
    assert set(sampled) <= set(kept)
    expected = count * probs[kept] / probs[kept].sum()
    observed = np.array([sampled.count(token) for token in kept], dtype=float)
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum() if rare.any() else []) for x in (observed, expected)]
    assert len(pooled[0]) > 2
    assert stats.chisquare(pooled[0], pooled[1]).pvalue > 0.001


def test_seed_prompt_and_sample_decide_what_is_drawn(policy):
    ids = [[one.token_ids for one in ones] for ones in drawn(policy, samples=4)]
    assert ids == [[one.token_ids for one in ones] for ones in drawn(policy, samples=4)]
    assert [ones[:2] for ones in ids] == [[o.token_ids for o in ones] for ones in drawn(policy, samples=2)]
    assert ids != [[one.token_ids for one in ones] for ones in drawn(policy, samples=4, seed=1)]
    assert len({tuple(one) for ones in ids for one in ones}) == 16


def test_training_does_not_notice(policy):
    policy.train()
    try:
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002 - the global generator is what is watched
        drawn(policy, samples=3)
        after = torch.rand(3), np.random.rand(3)  # noqa: NPY002
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002
        assert torch.equal(after[0], torch.rand(3))
        assert np.array_equal(after[1], np.random.rand(3))  # noqa: NPY002
        assert policy.training
        assert all(weight.grad is None for weight in policy.parameters())
        policy(input_ids=torch.tensor([[4, 5]])).logits.sum().backward()
    finally:
        policy.zero_grad()
        policy.eval()


def test_nan_weights_are_named_not_sampled(policy):
    broken = small.model(1)
    with torch.no_grad():
        broken.lm_head.weight[5, 0] = math.nan
    with pytest.raises(FloatingPointError, match="prompt 1: logits at token 0"):
        drawn(broken)


def test_prompts_that_cannot_be_completed_are_refused(policy):
    tokenizer = small.tokenizer()
    cases = {
        "prompt 1 has 7 tokens; with max_tokens=60 that is 67, above the context of 64": {"max_tokens": 60},
        "no prompts": {"prompts": []},
        "prompt 0 has no tokens": {"prompts": [""]},
        "no chat template": {"prompts": [[{"role": "user", "content": "w1"}]]},
    }
    for message, settings in cases.items():
        with pytest.raises(ValueError, match=message):
            drawn(policy, **settings)
    with pytest.raises(ValueError, match="embeds 10 tokens"):
        encode_prompts(tokenizer, ["w40"], max_tokens=1, vocabulary=10)
    assert drawn(policy, max_tokens=57)[1][0].tokens <= 57  # exactly full is fine


def test_a_conversation_goes_through_the_chat_template():
    tokenizer = small.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}"
    )
    talk = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]
    assert encode_prompts(tokenizer, [talk], max_tokens=1) == [tokenizer("w1 w2 w9")["input_ids"]]


def test_a_saved_tokenizer_is_read_as_it_was_saved(folder):
    assert load_tokenizer(folder)("w1 w2")["input_ids"] == small.tokenizer()("w1 w2")["input_ids"] == [4, 5]


# ---------------------------------------------------------------------------------------------------------- evaluate


def scripted(table):
    """A sampler that writes what a table says: any estimator can be computed by hand."""

    def sample(prompts, **settings):
        assert settings["samples"] == len(table[0])
        return [[Completion(text, 2, text == "cut", -3.0, [5, 1]) for text in table[int(p)]] for p in prompts]

    return sample


def is_answer(prompts, completions, completion_ids, answer, **_):
    assert len(prompts) == len(completions) == len(completion_ids) == len(answer)
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [None if text == "?" else float(text == gold) for text, gold in zip(texts, answer, strict=True)]


def test_the_summary_is_what_a_hand_computes():
    table = [["7", "7", "1"], ["2", "9", "cut"], ["?", "4", "4"], ["0", "0", "0"]]
    problems = [{"prompt": str(i), "answer": gold} for i, gold in enumerate(["7", "9", "3", "0"])]
    record = []
    result = evaluate(scripted(table), problems, is_answer, EvalConfig(samples=3), progress=False, record=record)
    assert result["per_problem"]["correct"] == [2, 1, 0, 3]
    assert (result["problems"], result["samples"], result["unscored"]) == (4, 3, 1)
    expected = {
        "avg@3": 6 / 12, "pass@1": 6 / 12, "pass@2": (1 + 2 / 3 + 0 + 1) / 4, "pass@3": 3 / 4,
        "maj@3": (1 + 0.5 + 0 + 1) / 4, "reward": 6 / 12, "length": 2, "truncated": 1 / 12, "nll": 1.5,
    }  # fmt: skip
    assert {name: value["mean"] for name, value in result.items() if isinstance(value, dict) and "mean" in value} == (
        pytest.approx(expected)
    )
    assert all(result[name]["low"] <= result[name]["mean"] <= result[name]["high"] for name in expected)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert record[2] == {"prompt": "2", "answer": "3", "completions": table[2], "rewards": [None, 0.0, 0.0]}


def test_correct_is_half_a_reward_and_more_everywhere():
    """The same completions in evaluation, calibration and the trainer's default; exactly one half counts."""
    table = [["half"], ["less"], ["none"]]
    worth = {"half": 0.5, "less": 0.49999, "none": None}
    problems = [{"prompt": str(i)} for i in range(3)]

    def reward(completions, **_):
        return [worth[text] for text in completions]

    config = EvalConfig(samples=1)
    assert evaluate(scripted(table), problems, reward, config, progress=False)["per_problem"]["correct"] == [1, 0, 0]
    assert [is_correct(value) for value in worth.values()] == [True, False, False]
    assert AEntGRPOConfig.correct_reward == CORRECT_REWARD == 0.5
    stricter = evaluate(scripted(table), problems, reward, config, progress=False, correct_reward=0.6)
    assert stricter["per_problem"]["correct"] == [0, 0, 0]


def test_conversations_data_sets_and_limits():
    problems = Dataset.from_list([{"prompt": [{"role": "user", "content": str(i)}], "answer": "1"} for i in range(5)])

    def sampler(prompts, **_):
        return [[Completion(p[0]["content"], 1, False, -1.0, [1])] for p in prompts]

    result = evaluate(sampler, problems, is_answer, EvalConfig(samples=1, limit=3), progress=False)
    assert result["per_problem"]["correct"] == [0, 1, 0]


def test_what_evaluate_refuses():
    config = EvalConfig(samples=1)
    with pytest.raises(ValueError, match="no problem at all"):
        evaluate(scripted([["1"]]), [], is_answer, config)
    with pytest.raises(ValueError, match="column prompt, got \\['question'\\]"):
        evaluate(scripted([["1"]]), [{"question": "0"}], is_answer, config)
    with pytest.raises(ValueError, match="2 values for 1 completions"):
        evaluate(scripted([["1"]]), [{"prompt": "0"}], lambda **_: [1.0, 0.0], config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0}, {"temperature": -0.1}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1},
        {"max_tokens": 0}, {"seed": -1}, {"bootstrap": 0}, {"limit": 0}, {"temperature": 0.0, "samples": 2},
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EvalConfig(**wrong)


# ----------------------------------------------------------------------------------------------------------- command


def test_the_command_writes_everything_and_overwrites_nothing(folder, problems_file, tmp_path, capsys):
    out, texts = tmp_path / "new" / "eval.json", tmp_path / "texts.jsonl"
    arguments = [
        *("--model", str(folder), "--data", str(problems_file), "--samples", "2", "--max-tokens", "5", "--seed", "4"),
        *("--reward", "exact_match", "--limit", "3", "--out", str(out), "--completions", str(texts)),
    ]
    assert main(arguments) == 0
    assert "avg@2" in capsys.readouterr().out
    report = json.loads(out.read_text())
    result = report["results"][str(problems_file)]
    assert report["config"]["seed"] == report["provenance"]["seed"] == 4
    assert {"avg@2", "pass@1", "pass@2", "maj@2", "length", "truncated", "nll", "data", "reward_name"} <= result.keys()
    assert (result["problems"], len(result["per_problem"]["correct"])) == (3, 3)
    lines = [json.loads(line) for line in texts.read_text().splitlines()]
    policy = drawn(small.model(1, hidden_size=64), PROMPTS[:3], samples=2, max_tokens=5, seed=4)
    assert [line["completions"] for line in lines] == [[one.text for one in ones] for ones in policy]
    before = out.read_bytes()
    with pytest.raises(FileExistsError, match="nothing was overwritten"):
        main(arguments)
    assert out.read_bytes() == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["eval.json"]  # no draft is left


def without_weights(folder, tmp_path):
    """A model folder in which everything is right but the weights: whoever loads them gets another error."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((folder / name).read_bytes())
    (bare / "model.safetensors").write_bytes(b"not weights")
    return bare


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_a_place_that_cannot_be_written_is_noticed_before_the_model_is_loaded(
    folder, problems_file, tmp_path, capsys, command
):
    common = ["--model", str(without_weights(folder, tmp_path)), "--data", str(problems_file)]
    common += ["--reward", "exact_match"]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere.json")
    for place in ("file/out.json", "file/deeper/out.json", "file", "link.json"):
        assert aent_llm([command, *common, "--out", str(tmp_path / place)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(tmp_path / "file") in error or "already exists" in error
    assert (tmp_path / "file").read_text() == "mine"
    assert aent_llm([command, *common, "--out", "/proc/aent.json"]) == 2
    assert "cannot write /proc" in capsys.readouterr().err
    if command == "eval":
        one = str(tmp_path / "one.json")
        assert aent_llm(["eval", *common, "--out", one, "--completions", one]) == 2
        assert "asked for twice" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_left_elsewhere(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        OSError, match=r"cannot write .*file: .*; part of the path is a file; choose another place. The results are in "
    ) as caught:
        write_results(tmp_path / "file" / "eval.json", "hours", replace=False)
    place = Path(str(caught.value).rpartition("The results are in ")[2])
    assert place.read_text() == "hours"
    place.unlink()


def test_results_made_meanwhile_are_kept_and_so_are_ours(tmp_path):
    path = tmp_path / "new" / "eval.json"
    write_results(path, "1", replace=False)
    write_results(path, "2", replace=True)
    with pytest.raises(FileExistsError, match="was not overwritten; what was to be in it is in"):
        write_results(path, "3", replace=False)
    assert path.read_text() == "2"
    assert [one.read_text() for one in path.parent.iterdir() if one != path] == ["3"]


def test_on_a_full_disk_the_results_are_printed(tmp_path):
    """A limit on the size of files is a full disk to a program, for the result and for every other place alike."""
    code = f"""
import resource
from pathlib import Path
from aent_llm.data.rewards import CORRECT_REWARD, is_correct
from aent_llm.measure.tasks import write_results
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
write_results(Path({str(tmp_path)!r}) / "eval.json", "hours " * 100, replace=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stdout == "hours " * 100
    assert "eval.json: File too large" in done.stderr
    assert "The results are in what was printed on standard output" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_rows_left_out_and_repeated_are_counted(folder, tmp_path, capsys):
    data, out = tmp_path / "mine.jsonl", tmp_path / "eval.json"
    pairs = [("w1", "1"), ("w1", "1"), ("w2", None), ("w3", "3"), ("w1", "2"), ("w4", None)]
    data.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in pairs))
    arguments = ["--model", str(folder), "--data", str(data), "--reward", "exact_match", "--greedy"]
    with pytest.warns(UserWarning, match="no reference answer"):
        assert main([*arguments, "--max-tokens", "2", "--out", str(out)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "mine.jsonl: 2 of 6 rows left out: they have no reference answer" in told
    assert "mine.jsonl: 2 of 4 problems repeat an earlier prompt; each counts" in told
    result = json.loads(out.read_text())["results"][str(data)]
    assert (result["problems"], result["left_out"], result["repeated"]) == (4, 2, 2)
    with pytest.warns(UserWarning, match="no reference answer"):
        assert main([*arguments, "--dry-run", "--limit", "3"]) == 0
    plan = json.loads(capsys.readouterr().out)["data"][0]
    assert (plan["problems"], plan["left_out"], plan["repeated"]) == (2, 1, 1)


def test_completions_outlive_a_reward_that_fails(folder, problems_file, tmp_path, monkeypatch):
    (tmp_path / "failing_reward_of_test.py").write_text(
        "def fails(completions, **kwargs):\n    raise KeyError('key of mine')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--model", str(folder), "--data", str(problems_file), "--samples", "2", "--max-tokens", "5"]
    with pytest.raises(ValueError, match=r"failing_reward_of_test:fails failed \(KeyError: 'key of mine'\)") as caught:
        main([*arguments, "--reward", "failing_reward_of_test:fails", "--out", str(tmp_path / "eval.json")])
    place = Path(str(caught.value).rpartition("completions are in ")[2])
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    place.unlink()
    policy = drawn(small.model(1, hidden_size=64), PROMPTS, samples=2, max_tokens=5)
    assert [line["completions"] for line in lines] == [[one.text for one in ones] for ones in policy]


def test_a_dry_run_loads_no_weights_and_plans_the_rest(folder, problems_file, tmp_path, capsys):
    bare = without_weights(folder, tmp_path)
    assert main(["--model", str(bare), "--data", str(problems_file), "--greedy", "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["config"]["max_tokens"] == 64 - 7  # what the longest prompt leaves
    assert (plan["config"]["samples"], plan["config"]["temperature"]) == (1, 0.0)
    assert plan["data"][0]["problems"] == len(PROMPTS)


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_bad_input_is_one_line_and_exit_2_before_the_weights(folder, problems_file, tmp_path, capsys, command):
    model = ["--model", str(without_weights(folder, tmp_path))]
    data = ["--data", str(problems_file)]
    (tmp_path / "null.jsonl").write_text('{"prompt": "w1", "answer": null}\n')
    (tmp_path / "broken").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / "broken" / name).write_text("{")
    cases = {
        "did you mean --samples": [*model, *data, "--sample-count", "4"],
        "invalid int value: 'x'": [*model, *data, "--samples", "x"],
        "samples": [*model, *data, "--samples", "0"],
        "seed": [*model, *data, "--seed", "-1"],
        "temperature": [*model, *data, "--temperature", "nan"],
        "above the context of 64": [*model, *data, "--max-tokens", "60"],
        "unknown reward": [*model, *data, "--reward", "exact_mach"],
        "no chat template": [*model, *data, "--chat"],
        "did you mean 'math500'": [*model, "--data", "math50"],
        "no file": [*model, "--data", str(tmp_path / "nowhere.jsonl")],
        "no reference answer (null). Such rows: 1 of 1": [*model, "--data", str(tmp_path / "null.jsonl")],
        "no such folder": ["--model", str(tmp_path / "nowhere"), *data],
        "broken": ["--model", str(tmp_path / "broken"), *data],
    }
    for message, arguments in cases.items():
        assert aent_llm([command, *arguments]) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1, captured.err


def test_command_lines_that_cannot_be_carried_out(folder, problems_file, tmp_path):
    model, data = ["--model", str(folder)], ["--data", str(problems_file)]
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "final" / "config.json").write_text("{}")
    cases = {
        "--model and --data are needed": model,
        "did you mean 'math500'": [*model, "--data", "math50"],
        "names a set twice": [*model, *data, *data],
        "greedy samples are all equal": [*model, *data, "--greedy", "--samples", "4"],
        "contradict": [*model, *data, "--greedy", "--temperature", "0.6"],
        "samples: expected a whole number of at least 1, got 0": [*model, *data, "--samples", "0"],
        "above the context of 64": [*model, *data, "--max-tokens", "60"],
        "no such folder": ["--model", str(tmp_path / "nowhere"), *data],
        "no config.json, no weights, no tokenizer: save": ["--model", str(tmp_path / "empty"), *data],
        "LoRA adapter": ["--model", str(tmp_path / "adapter"), *data],
        "did you mean .*final": ["--model", str(tmp_path / "run"), *data],
        "unknown reward": [*model, *data, "--reward", "exact_mach"],
        "no chat template": [*model, *data, "--chat"],
    }
    for message, arguments in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            main(arguments)


def test_named_sets_are_listed_and_fit_the_data_config(capsys):
    from aent_llm.data.problems import DataConfig

    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    named = {"math500", "math_hard", "aime24", "aime25", "amc23", "minerva", "olympiadbench", "gsm8k", "tiny"}
    assert set(eval_sets.BENCHMARKS) == named
    for name, one in eval_sets.BENCHMARKS.items():
        assert name in listed
        config = DataConfig(**one.data)
        assert config.template.format(prompt="Q").startswith("Q")
    assert eval_sets.BENCHMARKS["gsm8k"].data["template"].format(prompt="Q").endswith(r"\boxed{}.")
    assert eval_sets.resolve("owner/name").data["source"] == "owner/name"


@pytest.mark.slow
def test_vllm_writes_what_transformers_writes(folder, policy):
    if (
        "AENT_ALONE" not in os.environ
    ):  # the engine looks through every loaded module, and trips over some of other tests
        command = [sys.executable, "-m", "pytest", "-m", "slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
        alone = [*command, f"{__file__}::test_vllm_writes_what_transformers_writes"]
        done = subprocess.run(alone, env={**os.environ, "AENT_ALONE": "1"}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-4000:]
        return
    settings = {"top_p": 1.0, "top_k": 0, "max_tokens": 12, "seed": 0, "progress": False}
    engine = vllm_sampler(folder, context=64, kv_cache_bytes=64 << 20)  # fp32, as the checkpoint is
    theirs = engine(PROMPTS, samples=1, temperature=0.0, **settings)
    for ours, one in zip(drawn(policy, temperature=0.0), theirs, strict=True):
        assert one[0][:3] == ours[0][:3]
        assert one[0].token_ids == ours[0].token_ids
        assert one[0].logprob == pytest.approx(ours[0].logprob, abs=1e-3)
    sampled = engine(PROMPTS, samples=8, temperature=0.7, **{**settings, "top_k": 20, "top_p": 0.9, "seed": 2})
    for prompt, ones in zip(PROMPTS, sampled, strict=True):
        assert len({tuple(one.token_ids) for one in ones}) > 4
        for one in ones:
            expected = forward(policy, prompt, one.token_ids)[:-1].gather(1, torch.tensor(one.token_ids)[:, None])
            assert one.logprob == pytest.approx(float(expected.sum()), abs=1e-3)
            assert one.truncated == (one.token_ids[-1] != 1)
    again = engine(PROMPTS, samples=8, temperature=0.7, **{**settings, "top_k": 20, "top_p": 0.9, "seed": 2})
    assert [[o.token_ids for o in ones] for ones in again] == [[o.token_ids for o in ones] for ones in sampled]
    with pytest.raises(ValueError, match="above the context of 64"):
        engine(PROMPTS, samples=1, temperature=0.0, **{**settings, "max_tokens": 60})
