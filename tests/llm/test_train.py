"""The train command end to end on a small local model: what it leaves behind, and that a kill costs nothing."""

import contextlib
import importlib.util
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import small
from aent.runs import Run, locked, read_run
from aent_llm.__main__ import main
from aent_llm.training import train, vllm_sync
from aent_llm.training.checkpoint import read_checked, write_checked
from aent_llm.training.trainer import AEntGRPOTrainer

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
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
    path = config(parts, tmp_path, max_steps=3, log_completions=True)
    run = tmp_path / "run"
    (run / "completions").mkdir(parents=True)  # left by a start that failed once TRL's trainer was made
    assert main(["train", "--config", str(path), "--output", str(run)]) == 0
    assert len(list((run / "completions").glob("*.parquet"))) == 3
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
    assert "train.seed: saved 3, given 5" in capsys.readouterr().err


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


def test_a_start_without_a_step_is_taken_over_and_the_last_step_is_always_logged(parts, tmp_path, capsys) -> None:
    """``logging_steps`` is past the end of the run, and the directory is what a start that failed has left."""
    run = tmp_path / "run"
    Run.create(run, {"train": {"learning_rate": 7.0}}, seed=9)
    (run / "before.json").write_text(json.dumps({"problems": 99}))
    (run / "notes.txt").write_text("mine")
    path = config(parts, tmp_path, max_steps=2, logging_steps=10, save_strategy="no")
    path.write_text(path.read_text().replace("- small:even_words", "  small:even_words: 0.25"))
    assert main(["train", "--config", str(path), "--output", str(run)]) == 0
    kept, provenance, (line,) = read_run(run)
    assert (kept["train"]["learning_rate"], provenance["seed"]) == (0.01, 3)
    assert line["step"] == 2
    assert line["reward"] == pytest.approx(0.25 * line["rewards/even_words/mean"], rel=1e-5)
    assert line["reward"] > 0
    assert json.loads((run / "summary.json").read_text())["before"]["problems"] == 4
    assert (run / "notes.txt").read_text() == "mine"
    assert "run directory" in capsys.readouterr().out


def test_a_directory_with_a_step_or_with_other_files_is_not_taken(parts, tmp_path, capsys) -> None:
    path = config(parts, tmp_path)
    logged = Run.create(tmp_path / "logged", {}, seed=0)
    logged.log(step=1, reward=0.5)
    Run.create(tmp_path / "saved", {}, seed=0)
    (tmp_path / "saved" / "checkpoint-3").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("logged", "saved", "other", "file"):
        before = sorted(tmp_path.rglob("*"))
        for more in ([], ["--dry-run"]):
            assert main(["train", "--config", str(path), "--output", str(tmp_path / name), *more]) == 2
            assert "nothing was overwritten" in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="logged steps"):
        Run.restart(tmp_path / "logged", {}, seed=0)


def test_weights_cut_short_are_named_before_a_model_is_loaded(parts, tmp_path, capsys) -> None:
    path = config(parts, tmp_path)
    broken = tmp_path / "model"
    shutil.copytree(parts / "model", broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    for more in ([], ["--dry-run"]):
        start = ["train", "--config", str(path), "--output", str(tmp_path / "new"), "--set", f"model.source={broken}"]
        assert main([*start, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{broken}/model.safetensors is damaged" in line
        assert "download or copy it again" in line
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.fixture(scope="module")
def finished(parts, tmp_path_factory):
    """A run of 4 steps with checkpoints 2 and 4; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    path = config(parts, folder, max_steps=4, save_steps=2)
    assert main(["train", "--config", str(path), "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def refused(run: Path, capsys, *more: str, dry: bool = True) -> str:
    """The one line on stderr of a ``--resume`` that is refused before anything is loaded or written.

    ``dry``: whether a dry run must say the same.
    """
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    said = []
    for flags in ([], ["--dry-run"]) if dry else ([],):
        capsys.readouterr()
        assert main(["train", "--output", str(run), "--resume", *more, *flags]) == 2
        said.append(capsys.readouterr().err)
    assert {path: path.read_bytes() for path in before} == before
    assert "Loading weights" not in said[0]
    assert said[0].count("\n") == 1
    assert said[-1] == said[0]
    return said[0]


def edit(run: Path, block: str, **settings) -> None:
    """Change config.json by hand."""
    content = json.loads((run / "config.json").read_text())
    content[block] |= settings
    (run / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("block", "settings", "named"),
    [
        ("train", {"learning_rate": 0.5}, "train.learning_rate: saved 0.01, given 0.5"),
        ("train", {"seed": 4}, "train.seed: saved 3, given 4"),
        ("entropy", {"support": {"type": "top_k", "k": 61}}, "entropy.support.k: saved 9, given 61"),
        ("evaluation", {"samples": 3}, "evaluation.samples: saved 2, given 3"),
    ],
)
def test_an_edit_of_the_config_that_makes_another_run_is_refused_by_name(run, capsys, block, settings, named) -> None:
    edit(run, block, **settings)
    assert named in refused(run, capsys)


def test_an_edit_of_both_files_is_refused_before_anything_is_written(run, capsys) -> None:
    """The copy in provenance.json says the same then; what the checkpoint was written with does not."""
    edit(run, "train", learning_rate=0.5, weight_decay=0.1)
    origin = json.loads((run / "provenance.json").read_text())
    origin["config"]["train"] |= {"learning_rate": 0.5, "weight_decay": 0.1}
    (run / "provenance.json").write_text(json.dumps(origin))
    said = refused(run, capsys)
    assert "(learning_rate: saved 0.01, given 0.5; weight_decay: saved 0.0, given 0.1)" in said


def test_more_steps_take_effect_are_recorded_and_measured(run, capsys) -> None:
    """By --set or by hand; they were ignored, and the old result shown."""
    before = json.loads((run / "summary.json").read_text())
    edit(run, "train", max_steps=5)
    more = ["--set", "train.max_steps=6", "--set=train.save_steps=3"]
    assert main(["train", "--output", str(run), "--resume", *more]) == 0
    assert sorted(metrics(run)) == [1, 2, 3, 4, 5, 6]
    kept, origin, _ = read_run(run)
    assert (kept["train"]["max_steps"], kept["train"]["save_steps"]) == (6, 3)
    changed = ["train.max_steps: saved 4, given 6", "train.save_steps: saved 2, given 3"]
    assert origin["resumed"][-1]["changed"] == changed
    after = json.loads((run / "summary.json").read_text())
    assert after["before"] == before["before"]
    assert after["after"] != before["after"]
    assert (run / "checkpoint-6" / "aent.json").is_file()
    assert "max_steps: saved 6, given 5" in refused(run, capsys, "--set=train.max_steps=5")
    assert main(["train", "--output", str(run), "--resume", "--dry-run"]) == 0


def test_other_data_and_another_number_of_ranks_are_refused_before_the_model_is_loaded(parts, run, capsys) -> None:
    data = parts / "data.jsonl"
    content = data.read_text()
    try:
        data.write_text(content.replace("w2", "w4", 1))
        assert "dataset: saved '12 rows, " in refused(run, capsys)
    finally:
        data.write_text(content)
    seal = run / "checkpoint-4" / "aent.json"
    kept = read_checked(seal)
    kept["state"]["settings"]["ranks"] = 2
    write_checked(seal, kept)
    assert "ranks: saved 2, given 1" in refused(run, capsys)


def test_two_at_a_time_are_refused_and_the_second_is_told_who_is_first(run, capsys) -> None:
    with locked(run):
        assert f"is in use by process {os.getpid()} on " in refused(run, capsys, dry=False)
    origin = read_run(run)[1]
    assert origin["resumed"] == []


def test_two_that_start_at_the_same_time_do_not_take_each_others_place(parts, tmp_path, capsys, monkeypatch) -> None:
    """The first makes its directory while the second loads its model; it has no step yet."""
    path, run, held = config(parts, tmp_path), tmp_path / "run", contextlib.ExitStack()
    load = train.load_model

    def first_begins(*arguments):
        Run.create(run, {"by": "the first"}, seed=0)
        held.enter_context(locked(run))
        return load(*arguments)

    monkeypatch.setattr(train, "load_model", first_begins)
    with held:
        assert main(["train", "--config", str(path), "--output", str(run)]) == 2
    assert "is in use by process" in capsys.readouterr().err
    assert read_run(run)[0] == {"by": "the first"}


@pytest.mark.parametrize("name", ["metrics.jsonl", "provenance.json"])
def test_a_deleted_file_of_a_run_is_named_with_the_way_out(run, capsys, name) -> None:
    (run / name).unlink()
    said = refused(run, capsys)
    assert str(run / name) in said
    assert "was it deleted?" in said
    (run / name).write_text("" if name == "metrics.jsonl" else "{}")
    assert main(["train", "--output", str(run), "--resume"]) == 0


@pytest.mark.parametrize("damage", ["[1]", "digit"])
def test_a_damaged_evaluation_is_measured_again(run, capsys, damage) -> None:
    before = json.loads((run / "summary.json").read_text())
    path = run / "before.json"
    path.write_text(path.read_text().replace('"problems": 4', '"problems": 5') if damage == "digit" else damage)
    (run / "after.json").unlink()
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert f"{path} is damaged: measured anew" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["before"], summary["after"]) == (before["before"], before["after"])


def test_a_place_that_takes_no_run_is_refused_before_anything_is_loaded(parts, tmp_path, capsys) -> None:
    path = config(parts, tmp_path)
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        assert main(["train", "--config", str(path), "--output", str(tmp_path / place)]) == 2
        assert f"{tmp_path / 'file'} " in capsys.readouterr().err
    for dry in ([], ["--dry-run"]):
        assert main(["train", "--config", str(path), "--output", "/proc/a/run", *dry]) == 2  # root can neither
        assert "cannot write /proc: " in capsys.readouterr().err


def test_nan_ends_a_run_with_one_line_and_status_1(parts, tmp_path, capsys) -> None:
    path = config(parts, tmp_path, max_steps=4)
    start = ["train", "--config", str(path), "--output", str(tmp_path / "run"), "--set=entropy.controller=1e29"]
    assert main(start) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("aent_llm train: NaN or infinity in the gradient")
    assert list((tmp_path / "run").glob("checkpoint-*")) == []


def test_a_reward_that_raises_is_named_and_the_run_goes_on_once_it_is_mended(
    parts, tmp_path, capsys, monkeypatch
) -> None:
    """It ended in a traceback through TRL that names neither the reward nor the step."""
    real = small.even_words

    def even_words(completions, trainer_state, **columns):
        if trainer_state is not None and trainer_state.global_step == 2:
            raise KeyError("mine")
        return real(completions)

    monkeypatch.delenv("AENT_DEBUG", raising=False)
    monkeypatch.setattr(small, "even_words", even_words)
    path, run = config(parts, tmp_path, max_steps=4, save_steps=1), tmp_path / "run"
    assert main(["train", "--config", str(path), "--output", str(run)]) == 1
    *_, trace, line = capsys.readouterr().err.partition("Traceback (most recent call last):")[1:]
    *trace, line = line.splitlines()
    number = even_words.__code__.co_firstlineno + 2
    assert line == (
        f"aent_llm train: step 3: the reward 'even_words' ({__file__}, line {number}) raised KeyError: 'mine'. The "
        f"weights were not updated. Last complete checkpoint: {run / 'checkpoint-2'}; once this is mended, the run can "
        "be resumed"
    )
    assert [text.strip() for text in trace if text.strip().startswith("File")] == [
        f'File "{__file__}", line {number}, in even_words'
    ]
    assert sorted(metrics(run)) == [1, 2]
    monkeypatch.setattr(small, "even_words", real)
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert sorted(metrics(run)) == [1, 2, 3, 4]


# ----------------------------------------------------------------------------------------------------------- signals


def signalling(monkeypatch, number: int, when) -> None:
    """Let the reward send this process a signal, once, when ``when(its arguments)``."""
    real, sent = small.even_words, []

    def even_words(completions, **columns):
        if not sent and when(columns):
            sent.append(number)
            os.kill(os.getpid(), number)
        return real(completions, **columns)

    monkeypatch.setattr(small, "even_words", even_words)


def test_a_terminated_run_says_how_to_go_on_and_does_to_the_same_numbers(parts, tmp_path, capsys, monkeypatch) -> None:
    path = config(parts, tmp_path, max_steps=4, save_steps=4)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", "--config", str(path), "--output", str(whole)]) == 0

    def third_step(columns):
        return columns["trainer_state"] is not None and columns["trainer_state"].global_step == 2

    signalling(monkeypatch, signal.SIGTERM, third_step)
    assert main(["train", "--config", str(path), "--output", str(cut)]) == 143
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        f"stopped by SIGTERM; {cut / 'checkpoint-3'} is complete. Go on with: python -m aent_llm train"
    )
    assert not (cut / "final").exists()
    assert main(line.partition("python -m aent_llm ")[2].split()) == 0
    assert metrics(cut) == metrics(whole)
    before, after = (json.loads((one / "summary.json").read_text()) for one in (whole, cut))
    assert (before["before"], before["after"]) == (after["before"], after["after"])


def test_a_signal_after_the_last_write_changes_nothing(finished, capsys, monkeypatch) -> None:
    """The table is printed then; 143 told a scheduler to start it all again."""
    from rich.console import Console

    real = Console.print

    def printed(console, *words, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        real(console, *words, **options)

    monkeypatch.setattr(Console, "print", printed)
    assert main(["train", "--output", str(finished), "--resume"]) == 0
    out, err = capsys.readouterr()
    assert f"run directory: {finished}" in out
    assert "SIGTERM" not in err


def test_memory_that_runs_out_is_told_in_one_line(parts, tmp_path, capsys, monkeypatch) -> None:
    """Torch says so by a RuntimeError."""
    monkeypatch.delenv("AENT_DEBUG", raising=False)
    monkeypatch.setattr(AEntGRPOTrainer, "_check_sampler", lambda *_: torch.empty(2**60))
    path = config(parts, tmp_path, max_steps=2)
    assert main(["train", "--config", str(path), "--output", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("aent_llm train: not enough memory (")
    assert line.endswith("; ask for less at a time")


def test_a_sampler_out_of_sync_ends_in_one_line(parts, tmp_path, capsys, monkeypatch) -> None:
    def out_of_sync(trainer, theirs, ours, mask):
        ours, step = ours.detach(), trainer.state.global_step
        vllm_sync.check_sync(ours - 1, ours, mask, tolerance=0.2, generation=None, model=None, step=step)

    monkeypatch.delenv("AENT_DEBUG", raising=False)
    monkeypatch.setattr(AEntGRPOTrainer, "_check_sampler", out_of_sync)
    path = config(parts, tmp_path, max_steps=2)
    assert main(["train", "--config", str(path), "--output", str(tmp_path / "run")]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("aent_llm train: step 0: the sampler's log-probs are 1 nats per token off the trainer's")
    )


def test_a_signal_during_evaluation_ends_the_run_at_once(parts, tmp_path, capsys, monkeypatch) -> None:
    signalling(monkeypatch, signal.SIGINT, lambda columns: columns["trainer_state"] is None)
    path, run = config(parts, tmp_path, max_steps=2), tmp_path / "run"
    assert main(["train", "--config", str(path), "--output", str(run)]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        "stopped by SIGINT; what its last checkpoint holds is kept. Go on with: "
        f"python -m aent_llm train --output {run} --resume"
    )
    assert main(["train", "--output", str(run), "--resume"]) == 0


# ------------------------------------------------------------------------------------------------- in other processes


def command(path: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "aent_llm", "train", "--config", str(path), "--output", str(run), *more]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, to mount a small disk")
def test_a_disk_that_is_full_says_so_in_one_line_and_the_run_goes_on_elsewhere(parts, tmp_path) -> None:
    """A real one, of a size between one checkpoint and two; then the run is moved to where there is room."""
    disk, whole = tmp_path / "disk", tmp_path / "whole"
    disk.mkdir()
    path = config(parts, tmp_path, max_steps=4, save_steps=2)
    assert main(["train", "--config", str(path), "--output", str(whole)]) == 0
    room = 1.5 * sum(one.stat().st_size for one in (whole / "checkpoint-2").iterdir()) // 1024
    words = " ".join(map(shlex.quote, command(path, disk / "run")))
    script = (
        f"mount -t tmpfs -o size={room:.0f}k none {disk} || exit 77; {words}; status=$?; "
        f"cp -r {disk}/run {tmp_path}/moved; exit $status"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode == 77:
        pytest.skip("may not mount here")
    assert done.returncode == 2, done.stderr[-3000:]
    *_, line = done.stderr.splitlines()
    assert line.startswith(f"aent_llm train: cannot write {disk}/run/checkpoint-4: No space left on device; free some")
    assert f"last complete checkpoint is {disk}/run/checkpoint-2" in line
    assert "Traceback" not in done.stderr
    assert main(["train", "--output", str(tmp_path / "moved"), "--resume"]) == 0
    assert metrics(tmp_path / "moved") == metrics(whole)


@pytest.mark.slow
def test_kill_at_any_moment_then_resume_gives_the_same_numbers(parts, tmp_path) -> None:
    """Killed twice at random places; what is logged from the checkpoint on equals the run that was left alone."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
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
    environment = {**free, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        command(path, tmp_path / "run", f"--set=model.source={tmp_path / 'model'}"),
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    steps = list(metrics(tmp_path / "run").values())
    assert len(steps) == 4
    assert all(step["sampler/mean_gap"] < 1e-4 for step in steps)
    assert len({round(step["entropy/full"], 2) for step in steps}) > 1  # the policy did move
