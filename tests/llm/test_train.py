"""The train command end to end on a small local model: what it leaves behind, and that a kill costs nothing."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import small
from aent.runs import read_run
from aent_llm.__main__ import main

HERE = Path(__file__).parent
BAND = {"type": "band", "initial": 0.1, "low": 1.9, "high": 2.0, "step_size": 0.5, "minimum": 0.01, "maximum": 5.0}
UNSTABLE = ("step_time", "epoch")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    small.saved_model(folder / "model")
    rows = [{"prompt": prompt, "answer": "w2"} for prompt in small.prompts(12)["prompt"]]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config(parts: Path, folder: Path, **train) -> Path:
    settings = {k: v for k, v in small.SETTINGS.items() if k not in ("report_to", "disable_tqdm")}
    raw = {
        "model": {"source": str(parts / "model")},
        "data": {"source": str(parts / "data.jsonl")},
        "rewards": ["small:even_words"],
        "entropy": {"support": {"type": "top_k", "k": 9}, "controller": BAND},
        "evaluation": {"data": {"source": str(parts / "data.jsonl"), "limit": 4}, "samples": 2, "max_tokens": 6},
        "train": {
            **settings, "optim": "adamw_torch", "learning_rate": 0.01, "max_steps": 12, "save_strategy": "steps",
            "save_steps": 3, **train,
        },
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def metrics(run: Path) -> dict[int, dict]:
    """Step -> its last line."""
    lines = read_run(run)[2]
    return {line["step"]: {k: v for k, v in line.items() if k not in UNSTABLE} for line in lines}


def test_a_run_leaves_a_directory_that_explains_itself(parts, tmp_path, capsys) -> None:
    path = config(parts, tmp_path, max_steps=3)
    assert main(["train", "--config", str(path), "--output", str(tmp_path / "run")]) == 0
    run = tmp_path / "run"
    kept, provenance, lines = read_run(run)
    assert kept["entropy"]["controller"] == BAND
    assert provenance["versions"]["trl"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"reward", "entropy/full", "entropy/clamped", "entropy/coef", "completions/mean_length"} <= set(lines[0])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["before"]["avg@2"]["mean"] >= 0
    assert summary["after"]["problems"] == 4
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "final" / "model.safetensors").is_file()
    assert "run directory" in capsys.readouterr().out
    assert main(["train", "--config", str(path), "--output", str(run)]) == 2
    assert "nothing was overwritten" in capsys.readouterr().err
    weights = (run / "final" / "model.safetensors").read_bytes()
    (run / "after.json").unlink()  # as if killed right after the last step
    assert main(["train", "--output", str(run), "--resume"]) == 0  # with the settings that it keeps
    assert read_run(run)[2] == lines  # not a step more
    assert (run / "final" / "model.safetensors").read_bytes() == weights
    assert json.loads((run / "summary.json").read_text())["after"] == summary["after"]
    assert main(["train", "--output", str(run), "--resume", "--set", "train.seed=5"]) == 2
    assert "leave out --set" in capsys.readouterr().err


def test_mistakes_in_the_data_are_found_before_the_model_is_loaded(parts, tmp_path, capsys) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "w1", "answer": "w2"}\n{"prompt": "", "answer": "w2"}\n')
    start = ["train", "--config", str(config(parts, tmp_path)), "--output", str(tmp_path / "run")]
    assert main([*start, "--set", "model.source=/no/model", "--set", f"data.source={bad}"]) == 2
    said = capsys.readouterr().err
    assert "row 1" in said
    assert "prompt" in said
    assert main([*start, "--set", "model.source=/no/model"]) == 2
    assert "model.source='/no/model' is neither a folder with a tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def command(path: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "aent_llm", "train", "--config", str(path), "--output", str(run), *more]


@pytest.mark.slow
def test_kill_at_any_moment_then_resume_gives_the_same_numbers(parts, tmp_path) -> None:
    """Killed twice at random places; what is logged from the checkpoint on equals the run that was left alone."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    path = config(parts, tmp_path)
    subprocess.run(command(path, tmp_path / "whole"), env=environment, check=True, capture_output=True, timeout=300)
    chance, killed = random.Random(time.time_ns()), tmp_path / "killed"
    for resume in ([], ["--resume"]):
        process = subprocess.Popen(
            command(path, killed, *resume), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        at = chance.randrange(1, 11)
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            lines = (killed / "metrics.jsonl").read_text().splitlines() if (killed / "metrics.jsonl").exists() else []
            if any(json.loads(line)["step"] >= at for line in lines[-1:] if line.endswith("}")):
                break
            time.sleep(0.002)
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    newest = max(killed.glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]), default=None)
    if newest is not None:  # as if the kill had come in the middle of writing it
        (newest / "aent.json").unlink(missing_ok=True)
    last = [sys.executable, "-m", "aent_llm", "train", "--output", str(killed), "--resume"]
    done = subprocess.run(last, env=environment, check=True, capture_output=True, text=True, timeout=300)
    assert newest is None or f"not used: {newest}" in done.stdout
    assert metrics(killed) == metrics(tmp_path / "whole")
    before, after = (json.loads((run / "summary.json").read_text()) for run in (killed, tmp_path / "whole"))
    assert (before["before"], before["after"]) == (after["before"], after["after"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-slow installs it")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_with_vllm_the_sampler_follows_the_trainer(parts, tmp_path, tied) -> None:
    """Weights move far in every step; a sampler one update behind would be off by tenths of a nat."""
    small.saved_model(tmp_path / "model", num_attention_heads=1, tied=tied)  # its attention on a CPU needs 32 a head
    path = config(parts, tmp_path, use_vllm=True, vllm_max_model_length=64, max_steps=4, learning_rate=0.03)
    free = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = {**free, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        command(path, tmp_path / "run", f"--set=model.source={tmp_path / 'model'}"),
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    steps = list(metrics(tmp_path / "run").values())
    assert len(steps) == 4
    assert all(step["sampler/mean_gap"] < 1e-4 for step in steps)
    assert len({round(step["entropy/full"], 2) for step in steps}) > 1  # the policy did move
