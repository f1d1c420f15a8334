"""From a problem to token ids: one way for training, evaluation and calibration, and no prompt beyond the context."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

import small
from aent_llm.__main__ import main
from aent_llm.data.prompts import chat_options, context_length, encode_prompts, prompt_ids
from aent_llm.measure import calibrate, evaluate
from aent_llm.measure.calibrate import CalibrationConfig
from aent_llm.measure.evaluate import EvalConfig
from aent_llm.measure.generate import transformers_sampler
from aent_llm.training.experiment import parse_experiment
from aent_llm.training.prepare import load_model, prepare
from aent_llm.training.train import _evaluated, make_trainer

# One word per role; the switch is on unless it is turned off, as in Qwen3, and off adds an empty thought.
TEMPLATE = (
    "{% for m in messages %}{{ 'w50 ' if m['role'] == 'system' else 'w51 ' }}{{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}w52 {% if enable_thinking is defined and not enable_thinking %}w53 w54 {% endif %}"
    "{% endif %}"
)
OFF = {"enable_thinking": False}


def chat_tokenizer() -> Any:
    tokenizer = small.tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = small.saved_model(tmp_path_factory.mktemp("chat"))
    chat_tokenizer().save_pretrained(path)
    rows = [{"prompt": prompt, "answer": "w2"} for prompt in small.prompts(6)["prompt"]]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fed(model: Any, work: Callable[[], Any]) -> set[tuple[int, ...]]:
    """Prompts of the first forward pass that ``work`` makes, without padding."""
    seen: list[set[tuple[int, ...]]] = []

    def look(_: Any, arguments: tuple, inputs: dict) -> None:
        if seen:
            return
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        seen.append({tuple(row[kept.bool()].tolist()) for row, kept in zip(ids, mask, strict=True)})

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        work()
    finally:
        handle.remove()
    return seen[0]


def raw(folder: Path, **train: Any) -> dict[str, Any]:
    settings = {key: value for key, value in small.SETTINGS.items() if key not in ("report_to", "disable_tqdm")}
    data = {"source": str(folder / "data.jsonl"), "chat": True, "system": "w40"}
    return {
        "model": {"source": str(folder)}, "data": data, "rewards": ["exact_match"],
        "evaluation": {"data": data, "samples": 1, "max_tokens": 4},
        "train": {**settings, "per_device_train_batch_size": 12, "num_generations": 2, **train},
    }  # fmt: skip


@pytest.mark.parametrize("options", [None, OFF])
def test_training_evaluation_and_calibration_feed_the_same_tokens(
    folder: Path, tmp_path: Path, options: dict[str, bool] | None
) -> None:
    """The expected ids are written out by hand; TRL's trainer, ours before and after, eval and calibrate feed them."""
    experiment = parse_experiment(raw(folder, chat_template_kwargs=options), "chat")
    args = experiment.training_arguments(tmp_path)
    parts = prepare(experiment, args)
    model = load_model(experiment, parts.source)
    trainer = make_trainer(experiment, model, args, parts)
    end = "w52 w53 w54" if options else "w52"
    words = [f"w50 w40 w51 {prompt} {end}" for prompt in small.prompts(6)["prompt"]]
    expected = {tuple(small.tokenizer()(text)["input_ids"]) for text in words}

    batch = next(iter(trainer.get_train_dataloader()))
    assert fed(model, lambda: trainer._prepare_inputs(batch)) == expected
    assert fed(model, lambda: _evaluated(trainer, experiment, parts, tmp_path / "before.json")) == expected
    model = load_model(experiment, parts.source)
    sampler = transformers_sampler(model, parts.tokenizer, chat_template_kwargs=options)
    config = EvalConfig(samples=1, max_tokens=4)
    work = lambda: evaluate.evaluate(sampler, parts.problems, parts.rewards[0], config, progress=False)  # noqa: E731
    assert fed(model, work) == expected
    short = CalibrationConfig(samples=1, max_tokens=4, drop=(0.5,), top_k=(), nucleus=())
    work = lambda: calibrate.calibrate(  # noqa: E731
        model, parts.tokenizer, parts.problems, short, chat_template_kwargs=options
    )
    assert fed(model, work) == expected


def test_plain_text_gets_the_special_tokens_that_trl_gives_it(tmp_path: Path) -> None:
    trainer = small.trainer(tmp_path)
    texts = list(small.prompts(5)["prompt"])
    assert prompt_ids(small.tokenizer(), texts) == trainer._tokenize_prompts(texts)[0]


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_the_switch_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    common = [command, "--model", str(folder), "--data", str(folder / "data.jsonl"), "--chat", "--dry-run"]
    common += ["--reward", "exact_match"]
    lengths = []
    for flags in ([], ["--chat-template-kwargs", json.dumps(OFF)]):
        assert main([*common, *flags]) == 0
        told = capsys.readouterr().out
        if command == "eval":
            lengths.append(json.loads(told)["data"][0]["longest_prompt"])
        else:
            lengths.append(int(told.partition("of at most ")[2].partition(" tokens")[0]))
    assert lengths == [5, 7]  # w51, three words, w52; then w53 and w54
    for flags, message in {
        (
            "--chat-template-kwargs",
            '{"enable_thinkng": false}',
        ): "no switch 'enable_thinkng'; did you mean",
        ("--chat-template-kwargs", "{enable"): "is not JSON",
        ("--chat-template-kwargs", "3"): "expected an object",
        ("--chat-template-kwargs", '{"add_generation_prompt": false}'): "is set by the trainer",
        ("--no-chat", "--chat-template-kwargs", json.dumps(OFF)): "has no effect on plain text",
    }.items():
        assert main([*common, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_run_refuses_switches_that_do_nothing(folder: Path) -> None:
    wrong = raw(folder, chat_template_kwargs={"enable_thinkng": False})
    with pytest.raises(ValueError, match="no switch 'enable_thinkng'"):
        prepare(parse_experiment(wrong, "chat"))
    plain = raw(folder, chat_template_kwargs=OFF)
    plain["data"] = {"source": str(folder / "data.jsonl")}
    with pytest.raises(ValueError, match="chat_template_kwargs has no effect on plain text"):
        prepare(parse_experiment(plain, "chat"))


def test_switches_as_trl_takes_them() -> None:
    tokenizer = chat_tokenizer()
    assert chat_options(None, tokenizer) == chat_options({}, small.tokenizer()) == {}
    assert chat_options('{"enable_thinking": false}', tokenizer) == OFF
    talk = [[{"role": "user", "content": "w1"}]]
    assert prompt_ids(tokenizer, talk, '{"enable_thinking": false}') == prompt_ids(tokenizer, talk, OFF)
    assert encode_prompts(tokenizer, talk, max_tokens=1, chat_template_kwargs=OFF) != prompt_ids(tokenizer, talk)


# ------------------------------------------------------------------------------------------------------------- context
@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("qwen2", {"max_position_embeddings": 64}, 64),
        ("gpt2", {"n_positions": 32}, 32),
        ("opt", {"max_position_embeddings": 77}, 77),
        ("mpt", {"max_seq_len": 50}, 50),
        ("mamba", {}, None),
        ("bloom", {}, None),  # ALiBi
        ("falcon", {"alibi": True, "max_position_embeddings": 99}, None),
        ("mistral", {"sliding_window": 16, "max_position_embeddings": 64}, 64),  # a window is no limit
        ("gemma3", {"text_config": {"max_position_embeddings": 48}}, 48),  # the limit is that of the nested text model
        ("qwen2", {"max_position_embeddings": 10**30}, None),
        (
            "qwen2",
            {
                "max_position_embeddings": 64,
                "rope_parameters": {
                    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4,
                },
            },
            256,
        ),
        (
            "qwen2",
            {
                "max_position_embeddings": 256,
                "rope_parameters": {
                    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4,
                },
            },
            256,
        ),
        (
            "llama",
            {
                "max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            },
            128,
        ),
    ],
)  # fmt: skip
def test_the_context_of_a_config(kind: str, fields: dict[str, Any], expected: int | None) -> None:
    assert context_length(AutoConfig.for_model(kind, **fields)) == expected


def test_gpt2_is_complete_at_its_last_position_and_refused_beyond() -> None:
    """The learned positions end there: torch itself raises an IndexError at the next one."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=8, n_layer=1, n_head=1, n_positions=32)).eval()
    sampler = transformers_sampler(model, small.tokenizer())
    options: Any = {"samples": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0, "progress": False}
    prompt = " ".join(["w1"] * 22)
    assert sampler([prompt], max_tokens=10, **options)[0][0].tokens <= 10
    with pytest.raises(ValueError, match=r"22 tokens; with max_tokens=11 that is 33, above the context of 32"):
        sampler([prompt], max_tokens=11, **options)


def test_training_refuses_by_row_what_the_context_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2 with 32 positions: 30 + 10 tokens is an IndexError in the first rollout, and no row said why."""
    GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=8, n_layer=1, n_head=1, n_positions=32)).save_pretrained(tmp_path)
    small.tokenizer().save_pretrained(tmp_path)
    rows = [{"prompt": " ".join(["w1"] * count), "answer": "w2"} for count in [3] * 20 + [30] + [3] * 5]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "fits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    long, fits = {"source": str(tmp_path / "data.jsonl")}, {"source": str(tmp_path / "fits.jsonl")}
    plain = {key: value for key, value in small.SETTINGS.items() if key not in ("report_to", "disable_tqdm")}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (
            {"data": long},
            {"max_completion_length": 10},
            "data: row 20, column 'prompt': 30 tokens, more than the limit of 22",
        ),
        ({"data": fits}, {"max_completion_length": 500}, "train.max_completion_length=500 leaves no room for a prompt"),
        (
            {"data": fits, "evaluation": {"data": long, "samples": 1, "max_tokens": 5}},
            {"max_completion_length": 10},
            "evaluation.data: row 20, column 'prompt': 30 tokens, more than the limit of 27",
        ),
        (
            {"data": fits, "evaluation": {"data": fits, "samples": 1, "max_tokens": 32}},
            {"max_completion_length": 10},
            "evaluation.max_tokens=32 leaves no room for a prompt",
        ),
    ]  # fmt: skip
    for blocks, train, message in cases:
        path = tmp_path / "run.yaml"
        settings = {"model": {"source": str(tmp_path)}, "rewards": ["small:even_words"], "train": {**plain, **train}}
        path.write_text(json.dumps({**settings, **blocks}))  # JSON is YAML
        assert main(["train", "--config", str(path), "--output", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error, error
        assert not (tmp_path / "run").exists()
