"""A user's own support, controller, shaping rule and method, about five lines each, in every place they are promised.

The parts are those of docs/extending.md, in a module in an empty folder; everything here runs in processes of its own,
without this suite's conftest, as a user would start it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pages import ROOT, blocks, read, section

EXTENDING = read("docs/extending.md")
SMALL = ROOT / "tests" / "llm"  # small.py: a language model of a few thousand weights
MODULE = blocks("python", section("Your parts by name", EXTENDING))[0]


def start(folder: Path, *command: str, fails: bool = False) -> str:
    """Run python with ``command`` in ``folder``; returns what it printed, errors included."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST") and name != "COLUMNS"
    }
    paths = [str(path) for path in (ROOT, ROOT / "llm", SMALL)]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert bool(done.returncode) is fails, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ``my_rules.py`` in it and nothing else."""
    (tmp_path / "my_rules.py").write_text(MODULE, encoding="utf-8")
    return tmp_path


# ------------------------------------------------------------------------------------------------ the page as scripts


@pytest.mark.slow
@pytest.mark.parametrize("title", ["An MDP", "An estimator", "A controller", "A method"])
def test_a_block_of_the_page_runs_as_a_script(tmp_path: Path, title: str) -> None:
    (tmp_path / "script.py").write_text(blocks("python", section(title, EXTENDING))[0], encoding="utf-8")
    assert start(tmp_path, "script.py").strip()


SLOW_RULE = """
import time
from dataclasses import dataclass
import my_rules

@dataclass(frozen=True)
class Slow(my_rules.MinP):
    calls = []

    def weights(self, logits):
        self.calls.append(1)
        if len(self.calls) % 150 == 0:
            time.sleep(0.3)  # a busy machine
        return super().weights(logits)

rule = Slow(0.05)
"""


def test_the_property_tests_pass_for_a_rule_of_ones_own_on_a_busy_machine(folder: Path) -> None:
    """hypothesis gives an example 200 ms by default, and called this rule unreliable."""
    page = blocks("python", section("Property-test it", EXTENDING))[0]
    (line,) = re.findall(r"^rule = .*$", page, flags=re.MULTILINE)
    (folder / "test_rule.py").write_text(page.replace(line, SLOW_RULE), encoding="utf-8")
    assert "4 passed" in start(folder, "-m", "pytest", "-p", "no:cacheprovider", "test_rule.py")


# ------------------------------------------------------------------------------------------------------------- toys


TOYS = """
import numpy as np
from aent.methods import method
from my_rules import GoodOnly, Halving, MinP
from toymdp import suite
from toymdp.__main__ import main
from toymdp.training.learners import train
from toymdp.training.config import Learner

instances, learner = [suite.make("smoke-bandit", seed) for seed in range(2)], Learner(4, 0.1, record_every=1)
plain = train(instances, learner)
good = method("my_rules:good-only")
for options in (
    {"support": MinP(0.5), "controller": Halving(0.2)},
    {"shaping": GoodOnly()},
    {"support": good.support, "controller": good.controller, "shaping": good.shaping},
):
    history = train(instances, learner, **options)
    assert np.isfinite(history.value).all() and np.abs(history.logits - plain.logits).max() > 1e-4
    if "controller" in options:
        first = history.coefficient[0, 0]
        assert np.allclose(history.coefficient[:, 0] / first, 0.5 ** np.arange(5)), history.coefficient
    if "support" in options:
        assert (history.support_entropy < history.full_entropy).all()
names = ["none", "my_rules:min-p", "my_rules:good-only"]
compare = ["compare", "--settings", "smoke-bandit", "--scale", "smoke", "--steps", "3", "--methods"]
raise SystemExit(main([*compare, *names, "--jobs", "2"]))
"""


def test_own_parts_train_and_are_compared_on_the_toys(folder: Path) -> None:
    """``--jobs 2``: the workers, other processes again, must find the classes too."""
    (folder / "script.py").write_text(TOYS, encoding="utf-8")
    said = start(folder, "script.py")
    assert re.search(r"my_rules:min-p|bonus over min-p", said)
    assert "positive samples" in said


# --------------------------------------------------------------------------------------------------- language models

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl: pip install aent[llm]")

SCRIPT = """
import json
import sys

import small
from trl import TrlParser

from aent_llm.training.config import AEntGRPOConfig
from aent_llm.training.trainer import AEntGRPOTrainer

(args,) = TrlParser(AEntGRPOConfig).parse_args_and_config()
trainer = AEntGRPOTrainer(
    small.model(), [small.even_words], args, train_dataset=small.prompts(), processing_class=small.tokenizer()
)
trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
with open("log.jsonl", "a") as file:
    file.write(json.dumps([entry for entry in trainer.state.log_history if "loss" in entry]) + "\\n")
"""

SEVERAL = """
import json
import runpy
import sys

for command in json.loads(sys.argv[1]):
    sys.argv = command
    try:
        run = runpy.run_module if command[0] == "aent_llm" else runpy.run_path
        run(command[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, (command, end.code)
"""

EXPERIMENT = """
model: {source: model}
data: {source: data.jsonl}
rewards: ["small:even_words"]
entropy:
  support: {type: my_rules:MinP, share: 0.1}
  controller: "my_rules:Halving"
  shaping: my_rules:GoodOnly
train:
"""

UNSTABLE = ("step_time", "epoch", "num_tokens")


def lines(folder: Path) -> list[dict]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in UNSTABLE} for entry in entries]


@needs_trl
def test_own_parts_train_from_a_command_line_and_from_yaml_and_resume(folder: Path) -> None:
    """Two processes: one trains, the other, which has never seen the classes, resumes from step 2 of 3 and compares."""
    sys.path.insert(0, str(SMALL))
    try:
        import small
    finally:
        sys.path.remove(str(SMALL))
    small.saved_model(folder / "model")
    rows = [{"prompt": prompt, "answer": "w2"} for prompt in small.prompts(12)["prompt"]]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**small.SETTINGS, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    (folder / "args.yaml").write_text(yaml.safe_dump({**settings, "entropy_shaping": "my_rules:GoodOnly"}))
    train = {key: value for key, value in settings.items() if key not in ("report_to", "disable_tqdm")}
    block = "".join(f"  {line}\n" for line in yaml.safe_dump(train).splitlines())
    (folder / "own.yaml").write_text(EXPERIMENT + block)
    (folder / "hf.py").write_text(SCRIPT)
    (folder / "several.py").write_text(SEVERAL)
    script = [
        "hf.py", "--config", "args.yaml", "--output_dir", "trained", "--entropy_controller", "my_rules:Halving",
        "--entropy_support", '{"type": "my_rules:MinP", "share": 0.1}',
    ]  # fmt: skip
    named = ["--set", 'entropy={"method": "my_rules:good-only"}', "--dry-run"]
    planned = start(
        folder, "several.py",
        json.dumps([
            script,
            ["aent_llm", "train", "--config", "own.yaml", "--output", "run"],
            ["aent_llm", "train", "--config", "own.yaml", *named],
        ]),
    )  # fmt: skip
    whole = lines(folder / "run")
    assert [line["entropy/coef"] for line in whole] == [0.1, 0.05, 0.025]  # halved after every rollout
    assert all(1 < line["entropy/kept"] < small.VOCABULARY for line in whole)
    assert "'method': 'my_rules:good-only'" in planned
    assert "{'type': 'my_rules:Halving', 'initial': 0.1}" in planned
    for checkpoint in folder.glob("*/checkpoint-3/aent.json"):
        checkpoint.unlink()  # as if killed while it was written
    said = start(
        folder, "several.py",
        json.dumps([
            [*script, "--resume_from_checkpoint", "trained/checkpoint-2"],
            ["aent_llm", "train", "--output", "run", "--resume"],
            ["aent_llm", "compare", "run"],
        ]),
    )  # fmt: skip
    first, resumed = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    for key in ("loss", "reward", "entropy/clamped", "entropy/kept", "entropy/coef"):
        assert [entry[key] for entry in first][-1] == [entry[key] for entry in resumed][-1], key
    assert lines(folder / "run")[-1] == whole[-1]
    assert "resuming from run/checkpoint-2" in said
    assert "curves: " in said
    saved = json.loads((folder / "run" / "config.json").read_text())
    assert saved["entropy"]["support"] == {"type": "my_rules:MinP", "share": 0.1}
    sealed = (folder / "trained" / "checkpoint-2" / "aent.json").read_text()
    assert {"my_rules:Halving", "my_rules:GoodOnly"} <= set(re.findall(r"my_rules:\w+", sealed))


@needs_trl
def test_a_part_that_cannot_be_found_is_one_line(folder: Path) -> None:
    (folder / "broken.py").write_text("import nothing_such\n")
    said = start(folder, "-c", BAD)
    for message in (
        "support 'not_here:MinP': importing 'not_here' failed (ModuleNotFoundError",
        "support 'broken:MinP': importing 'broken' failed (ModuleNotFoundError: No module named 'nothing_such')",
        "support 'my_rules:MinQ': my_rules has no 'MinQ'; did you mean 'MinP'?",
        "support 'my_rules:np': expected a support rule",
        "controller 'my_rules:MinP': expected a controller",
        "method 'my_rules:MinP': expected an aent.methods.Method",
        "MinP: unknown shares; expected share",
        "a support named MinP exists already (my_rules:MinP): give __main__:MinP another name",
        "the method 'aent' is part of this package",
    ):
        assert message in said, said


BAD = """
from dataclasses import dataclass
from aent.controllers import Controller
from aent.entropy import SUPPORTS, Support
from aent.methods import METHODS, Family, Method

def told(function, *given):
    try:
        function(*given)
    except ValueError as error:
        assert "\\n" not in str(error)
        print(error)

for name in ("not_here:MinP", "broken:MinP", "my_rules:MinQ", "my_rules:np"):
    told(SUPPORTS.read, name, "entropy_support")
told(Controller.registry.read, "my_rules:MinP", "entropy_controller")
told(METHODS.find, "my_rules:MinP")
told(SUPPORTS.read, {"type": "my_rules:MinP", "shares": 0.1}, "entropy_support")
told(lambda: type("MinP", (Support,), {"__qualname__": "MinP", "__module__": "__main__"}))
told(METHODS.__setitem__, "aent", Method("x", "y", Family.BONUS))
"""
