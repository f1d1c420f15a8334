"""The guides keep their word: the two scripts and their diff, the glossary, settings, messages and numbers they name.

Commands, links and anchors of these pages are tested with those of all pages, in test_readme.py.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
import yaml
from transformers import AutoModelForCausalLM
from trl.trainer import grpo_trainer

import small
from aent.controllers import Controller
from aent.entropy import SUPPORTS
from aent.runs import Run
from aent_llm.data import rewards, tiny
from aent_llm.data.problems import DataConfig
from aent_llm.measure import calibrate, compare, evaluate
from aent_llm.measure.evaluate import EvalConfig
from aent_llm.measure.generate import transformers_sampler
from aent_llm.training import vllm_sync
from aent_llm.training.config import AEntGRPOConfig
from aent_llm.training.diagnostics import Alarms
from aent_llm.training.experiment import ModelConfig, parse_experiment
from pages import ROOT, blocks, headings, numbers, prose, read, section
from toymdp import compare as toys
from toymdp.training.batch import History
from toymdp.training.config import Learner

TRL, AENT = "examples/trl_grpo.py", "examples/aent_grpo.py"


def rows(text: str) -> Iterator[list[str]]:
    """Cells of the lines of all tables, without their heads."""
    lines = text.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("| ") and above.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def ticked(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# --------------------------------------------------------------------------------------------------- the two scripts


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, smaller; it can do some of the sums."""
    spec = tiny.TinySpec(
        vocabulary=512, hidden=32, intermediate=64, layers=1, warmup_steps=150, habit_steps=20, batch_size=32
    )
    return tiny.build(tmp_path_factory.mktemp("model"), spec=spec, progress=False)


@pytest.fixture
def logged(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a script from its command line for three steps; gives the lines it logged and the folder of its weights."""

    def run(script: str, **changed: Any) -> tuple[list[dict[str, float]], Path]:
        spec = importlib.util.spec_from_file_location("script", ROOT / script)
        assert spec is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        name = "AEntGRPOConfig" if script == AENT else "GRPOConfig"
        config, changed = getattr(module, name), {"use_cpu": True, "bf16": False, **changed}
        monkeypatch.setattr(module, name, lambda **given: config(**{**given, **changed}))
        monkeypatch.setattr(module.tiny, "build", lambda: embedded)
        folder = tmp_path / f"{Path(script).stem}-{len(list(tmp_path.iterdir()))}"
        monkeypatch.setattr(sys, "argv", [script, "--steps", "3", "--output", str(folder)])
        module.main()
        state = json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())
        return [line for line in state["log_history"] if "loss" in line], folder / "checkpoint-3"

    return run


def test_the_page_shows_the_difference_of_the_scripts() -> None:
    lines = [(ROOT / script).read_text(encoding="utf-8").splitlines(keepends=True) for script in (TRL, AENT)]
    assert blocks("diff", read("docs/from-trl.md")) == ["".join(difflib.unified_diff(*lines, TRL, AENT))]


def test_both_scripts_train_and_their_first_losses_differ_by_the_bonus(logged: Any) -> None:
    theirs, _ = logged(TRL)
    ours, _ = logged(AENT)
    assert len(theirs) == len(ours) == 3
    assert 0 < theirs[0]["reward"] < 1
    assert not any(key.startswith("entropy/") for key in theirs[0])
    bonus = ours[0]["entropy/coef"] * ours[0]["entropy/clamped"]
    assert bonus > 0.001
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"] - bonus, abs=1e-5)
    (excerpt,) = blocks("text", read("docs/from-trl.md"))
    assert set(re.findall(r"'(entropy/\w+)'", excerpt)) == {key for key in ours[0] if key.startswith("entropy/")}


def test_at_coefficient_zero_both_scripts_log_the_same_losses(logged: Any) -> None:
    theirs, trained = logged(TRL)
    ours, same = logged(AENT, entropy_controller=0.0)
    for key in ("loss", "reward", "grad_norm", "entropy"):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in theirs], rel=1e-4, abs=1e-6)
    weights = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (trained, same)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------- the glossary

GLOSSARY = read("docs/metrics.md")
METRICS = {
    key
    for title in ("Entropy and its control", "The rest of a log line")
    for cells in rows(section(title, GLOSSARY))
    for key in ticked(cells[0])
}
SOMETIMES = {  # logged with vLLM, tools, a mixture of experts, another loss, a reference, TRL's own bonus
    "sampler/mean_gap", "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max",
    "sampling/importance_sampling_ratio/min", "sampling/importance_sampling_ratio/mean",
    "sampling/importance_sampling_ratio/max", "tools/call_frequency", "tools/failure_frequency", "aux_loss", "kl",
    "sampler/tokenless_share", "cispo_clip_ratio", "vespo/phi_seq_mean", "entropy_coef", "policy_loss",
}  # fmt: skip
BAND = {
    "type": "band", "initial": 0.1, "low": 1.9, "high": 2.0, "step_size": 0.5, "minimum": 0.01, "maximum": 5.0,
}  # fmt: skip


def documented(key: str) -> bool:
    plain = re.sub(r"^rewards/\w+/", "rewards/NAME/", key.removeprefix("eval_"))
    return plain in METRICS or plain.removeprefix("train_") in METRICS


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a run with a band, and one evaluation in it, logs."""
    from aent_llm.training.trainer import AEntGRPOTrainer

    folder = str(tmp_path_factory.mktemp("run"))
    given = {"entropy_support": {"type": "top_k", "k": 9}, "entropy_controller": BAND, "max_steps": 2}
    given |= {"eval_strategy": "steps", "eval_steps": 2, "output_dir": folder}
    one = AEntGRPOTrainer(
        small.model(), [small.even_words], AEntGRPOConfig(**{**small.SETTINGS, **given}), train_dataset=small.prompts(),
        eval_dataset=small.prompts(4), processing_class=small.tokenizer(),
    )  # fmt: skip
    one.train()
    return {key for line in one.state.log_history for key in line}


def test_every_logged_number_is_in_the_glossary(keys: set[str]) -> None:
    assert "eval_entropy/clamped" in keys
    assert {key for key in keys if not documented(key)} == set()
    assert not documented("entropy/nothing")


def test_every_number_of_the_glossary_is_logged(keys: set[str]) -> None:
    plain = {re.sub(r"^rewards/\w+/", "rewards/NAME/", key) for key in keys}
    plain |= {key.removeprefix("train_") for key in plain}
    assert METRICS - plain - SOMETIMES == set()
    assert plain & SOMETIMES == set()
    source = inspect.getsource(grpo_trainer) + "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "llm" / "aent_llm").rglob("*.py")
    )
    assert {key for key in SOMETIMES if f'"{key}"' not in source} == set()


def test_a_rule_without_a_bonus_has_no_share_of_the_bonus(tmp_path: Path) -> None:
    one = small.trainer(tmp_path, entropy_method="clip-cov")
    one.train()
    assert small.logged(one, "entropy/grad_cosine")
    assert not small.logged(one, "entropy/bonus_grad_share")


def test_every_number_of_an_evaluation_is_in_the_glossary() -> None:
    generate = transformers_sampler(small.model(), small.tokenizer())
    config = EvalConfig(samples=2, max_tokens=3, bootstrap=10)
    found = evaluate.evaluate(generate, [{"prompt": "w1 w2"}], small.even_words, config, progress=False)  # type: ignore[arg-type]
    told = {key for cells in rows(section("Evaluation", GLOSSARY)) for key in ticked(cells[0])}
    assert {re.sub(r"^(avg|maj)@\d+", r"\1@n", re.sub(r"^pass@\d+", "pass@k", key)) for key in found} == told


def test_every_column_of_a_calibration_is_in_the_glossary() -> None:
    config = calibrate.CalibrationConfig(
        prompts=2, samples=1, max_tokens=3, drop=(0.5,), top_k=(9,), nucleus=(0.5,), tokens=50
    )
    result = calibrate.calibrate(small.model(), small.tokenizer(), [{"prompt": "w1 w2"}, {"prompt": "w3"}], config)
    _, *columns = (str(column.header) for column in result.table().columns)
    told = [
        name for cells in rows(section("Calibration", GLOSSARY)) for name in cells[0].replace("\\|", "|").split(", ")
    ]
    assert told == columns


def test_every_row_of_a_comparison_is_in_the_glossary(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run = Run.create(tmp_path / name, {"train": {"seed": 0}}, 0)
        run.log(step=1, reward=0.5)
    runs = compare.read_runs([tmp_path / "one", tmp_path / "two"])
    table = compare.table(runs, group_by="directory", baseline="one")
    text = section("Comparing runs", GLOSSARY)
    told = " ".join(cells[0] for cells in rows(text)).replace("NAME", "one")
    assert [str(cell) for cell in table.columns[0].cells if str(cell) not in told] == []
    logged_as = {key for names in compare.METRICS.values() for key in names}
    assert logged_as <= set(ticked(text))
    assert logged_as <= METRICS


def test_every_number_of_the_toys_is_in_the_glossary() -> None:
    text = section("The toys", GLOSSARY)
    told = {key for cells in rows(text) for key in ticked(cells[0])}
    cell = toys.Cell("smoke-bandit", Learner(steps=3, learning_rate=0.03), rates=(0.03,))
    lines = toys.compare([cell], ["none"], toys.Budget(1, 2), n_jobs=1)
    fields = {field.name for field in dataclasses.fields(History)}
    assert told == fields | set(lines.columns) | set(toys.summarise(lines).columns)


def test_thresholds_are_those_of_the_code() -> None:
    limits = dict.fromkeys((torch.float32, torch.bfloat16))
    limits = {dtype: f"{vllm_sync.default_tolerance(dtype):g}".lstrip("0") for dtype in limits}
    assert f"default {limits[torch.float32]}, or {limits[torch.bfloat16]} in half precision" in GLOSSARY
    grid = calibrate.CalibrationConfig()
    assert (grid.max_dropped, grid.min_push, grid.min_kept, grid.band) == (0.05, 0.05, 0.99, (0.25, 0.5))
    told = section("Calibration", GLOSSARY)
    assert all(one in told for one in ("at most .05", "under .05", "below 99%", "a quarter to a half"))
    assert (evaluate.TRUNCATED_SHARE, rewards.CORRECT_REWARD, compare.LAST) == (0.1, 0.5, 0.1)
    table = section("Training goes wrong", read("docs/troubleshooting.md"))
    assert (Alarms.COLLAPSE, Alarms.EXPLOSION, Alarms.PATIENCE, Alarms.SAME) == (0.05, 3.0, 20, 0.9999)
    assert all(one in table for one in ("below 5% of", "above 3 times", "for 20 steps", "above .9999 for 20 steps"))


# ----------------------------------------------------------------------------------------------------- troubleshooting

TROUBLE = read("docs/troubleshooting.md")
BLOCKS: dict[str, Any] = {"model": ModelConfig, "data": DataConfig, "evaluation": EvalConfig, "train": AEntGRPOConfig}
WORDS = {  # in backticks, neither metric nor setting
    "[tokens, vocabulary]", "none", "torch", "auto", "HF_HUB_OFFLINE", "AutoTokenizer", "Alarms", "AEntGRPOConfig",
    "entropy_warmup_steps", "beta", "make", "calibrate", "eval", "use_vllm=True needs vLLM", "NonFiniteError",
    "SyncError", "operator torchvision::nms does not exist",
}  # fmt: skip
COMMAND = re.compile(r"(HF_HUB_OFFLINE=0 )?(make|python|pip) |--\w")


def exists(setting: str) -> bool:
    """Whether an experiment file has this key, ``entropy.support.k``, and takes the value after it if there is one."""
    key, _, value = setting.partition(": ")
    block, name, *part = key.split(".")
    if part:
        rules: Any = {"support": SUPPORTS.values(), "controller": Controller.registry.values()}[name]
        return part == ["type"] or any(part[0] in one.__dataclass_fields__ for one in rules)
    if block != "entropy":
        known = {one.name for one in dataclasses.fields(BLOCKS[block])}
    else:
        known = {one.name.removeprefix("entropy_") for one in dataclasses.fields(AEntGRPOConfig)} - {"coef", "target"}
    if not value:
        return name in known
    try:
        file = parse_experiment({"data": {"source": "tiny"}, block: {name: yaml.safe_load(value)}}, "test")
        file.training_arguments("unused", use_cpu=True, bf16=False)
    except ValueError:
        return False
    return True


def messages() -> list[str]:
    """Every text that the packages can say, with NUL where names and numbers stand."""
    found = []
    for folder in ("aent", "llm/aent_llm"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (str(one.value) if isinstance(one, ast.Constant) else "\0" for one in node.values)
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


SAID = messages()


def is_said(text: str) -> bool:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in text.split("...") if part.strip()), re.DOTALL)
    return any(pattern.search(one) for one in SAID)


@pytest.mark.parametrize("title", ["Training goes wrong", "It stops with a message", "Installing and importing"])
def test_troubleshooting_names_only_what_exists(title: str) -> None:
    table = list(rows(section(title, TROUBLE)))
    assert len(table) > 4
    for cells in table:
        quoted = title == "It stops with a message"
        for word in ticked(" ".join(cells[quoted:])):
            if "." in word and word.split(".")[0] in (*BLOCKS, "entropy"):
                assert exists(word), word
            elif word.startswith("aent_llm."):
                module, _, name = word.removesuffix("()").rpartition(".")
                assert hasattr(importlib.import_module(module), name), word
            elif not COMMAND.match(word):
                assert word in METRICS or word in WORDS, word


def test_a_misspelt_name_would_be_noticed() -> None:
    assert exists("train.adam_epsilon")
    assert exists("entropy.support.k")
    assert exists("entropy.support: full")
    for wrong in ("train.adam_eps", "entropy.supports", "entropy.controller.lowest", "entropy.support: fulll"):
        assert not exists(wrong), wrong
    assert not is_said("the coefficient has been at the beginning")


def test_messages_begin_as_the_code_says_them() -> None:
    quoted = [text for cells in rows(section("It stops with a message", TROUBLE)) for text in ticked(cells[0])]
    assert len(quoted) > 20
    assert [text for text in quoted if not is_said(text)] == []


def test_every_alarm_has_a_line() -> None:
    told = re.findall(r'"([^"]+)" \|', section("Training goes wrong", TROUBLE))
    starts = re.findall(r'\band f"([^{]+)', inspect.getsource(Alarms.check))
    assert len(starts) == 5
    assert sorted(told) == sorted(next(text for text in told if start.startswith(text)) for start in starts)


def test_the_reward_of_the_guide_takes_texts_and_conversations() -> None:
    (block,) = blocks("python", read("llm/README.md"))
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["brief"](completions=["a" * 300, "a"], answer=["1", "2"], trainer_state=None) == [0.0, 1.0]
    assert names["brief"](completions=[[{"role": "assistant", "content": "a"}]], answer=["1"]) == [1.0]


@pytest.mark.parametrize(
    "page", ["docs/which-method.md", "docs/from-trl.md", "docs/metrics.md", "docs/methods.md", "llm/README.md"]
)
def test_the_guides_name_only_known_metrics_and_settings(page: str) -> None:
    slashed = {
        word for word in ticked(read(page)) if re.fullmatch(r"(entropy|completions|sampl\w+|clip_ratio)/[\w/]+", word)
    }
    assert slashed <= METRICS
    settings = [
        word for word in ticked(read(page)) if re.fullmatch(r"(model|data|entropy|train|evaluation)\.[a-z_.]+", word)
    ]
    assert [word for word in settings if not exists(word)] == []


# ------------------------------------------------------------------------------------------------------- the evidence


def cited(link: str) -> str:
    """Text of the section that a link of a page in docs/ leads to."""
    path, _, anchor = link.partition("#")
    text = ((ROOT / "docs") / path).read_text(encoding="utf-8")
    title = headings(text)[anchor]
    return f"{title}\n{section(title, text)}"


LINK = re.compile(r"\[([^]]+)\]\((\.\./EXPERIMENTS\.md#[^)]+)\)")
EVIDENCE = [cells for cells in rows(read("docs/which-method.md")) if LINK.search(cells[-1])]


@pytest.mark.parametrize("cells", EVIDENCE, ids=lambda cells: cells[0][:30])
def test_every_number_of_the_decision_is_in_the_record_it_cites(cells: list[str]) -> None:
    said, sources = LINK.split(cells[-1])[::3], LINK.findall(cells[-1])
    for text, (label, link) in zip(said, sources, strict=False):
        assert numbers(text) - numbers(cited(link)) == set(), label
        assert not re.fullmatch(r"F\d+", label) or label in figures(cited(link)), label
    everything = "".join(cited(link) for _, link in sources)
    assert numbers(" ".join(cells[:-1])) - numbers(everything) == set()


def figures(text: str) -> set[str]:
    """F1, and every one of F10 to F13."""
    spans = [range(int(low), int(high) + 1) for low, high in re.findall(r"\bF(\d+) to F(\d+)\b", text)]
    return {f"F{number}" for span in spans for number in span} | set(re.findall(r"\bF\d+\b", text))


def test_the_whole_decision_is_backed() -> None:
    tables = [cells for cells in rows(read("docs/which-method.md")) if len(cells) == 3]
    assert len(tables) == len(EVIDENCE) > 10
    assert numbers("gains .014 [-.049, .077]") == {"0.014", "0.049", "0.077"}
    assert "0.123" not in numbers(cited("../EXPERIMENTS.md#the-toys-f14-f15"))
    assert numbers(prose(read("docs/which-method.md"))) - numbers(read("EXPERIMENTS.md")) == set()
