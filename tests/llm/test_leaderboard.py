"""The experiment over all methods: every setting is a valid run, and the record keeps what its figure reads."""

import json
import subprocess
import sys

import pytest

from aent.methods import METHODS
from aent_llm.training.experiment import load_experiment
from aent_llm.training.train import _parser
from experiments import all_methods, three_way

SETTINGS = [setting for settings in all_methods.ARMS.values() for setting in settings]


def test_every_method_of_the_field_takes_part_at_two_values():
    assert {name for name, method in METHODS.items() if method.reference} <= set(all_methods.ARMS)
    assert all(len({one.value for one in settings}) == 2 for settings in all_methods.ARMS.values())
    names = [setting.name for setting in SETTINGS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_a_valid_experiment(setting, tmp_path):
    words = ["--config", all_methods.CONFIG, *setting.overrides()]
    _parser().parse_args(words)
    experiment = load_experiment(all_methods.CONFIG, setting.block)
    args = experiment.training_arguments(tmp_path)
    chosen = METHODS[setting.block["entropy.method"]]
    rule = "Shaping" if chosen.trl else type(chosen.shaping).__name__
    assert args.entropy_shaping["type"] == rule
    if "entropy.support" not in setting.block:
        assert args.entropy_support["type"] == type(chosen.support).__name__


def test_the_value_of_the_knob_arrives(tmp_path):
    def arguments(name, value):
        (setting,) = [one for one in all_methods.ARMS[name] if one.value == value]
        return load_experiment(all_methods.CONFIG, setting.block).training_arguments(tmp_path)

    assert arguments("clip-higher", 0.5).epsilon_high == 0.5
    assert arguments("skywork", 0.6).entropy_target == 0.6
    assert arguments("skywork", 0.6).use_adaptive_entropy
    assert arguments("none", 2e-4).learning_rate == 2e-4
    assert arguments("kl-cov", 0.02).entropy_shaping["share"] == 0.02
    assert arguments("kl-cov", 0.02).entropy_controller["coefficient"] == 1.0
    assert arguments("adrpo", 0.3).beta > 0
    assert arguments("top64-band", 0.1).entropy_support == {"type": "TopK", "k": 64}


def test_the_record_is_short_and_keeps_what_is_drawn(tmp_path):
    run = tmp_path / "study" / "leaderboard" / "siren@0.005" / "seed-0"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"entropy": {"method": "siren"}}))
    (run / "provenance.json").write_text(json.dumps({"commit": "abc", "command": "x", "seed": 0}))
    lines = [{"step": 1, "reward": 0.25, "entropy/full": 1.23456, "loss": 3.0}, {"step": 2, "entropy/full": 1.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"pass@1": {"mean": 0.5}, "per_problem": {"correct": [1, 2]}, "samples": 8}
    (run / "summary.json").write_text(json.dumps({"before": result, "after": result, "seconds": 1.0}))
    out = tmp_path / "record.jsonl"
    assert all_methods.main(["record", "--folder", str(tmp_path / "study"), "--out", str(out)]) == 0
    first, line = (json.loads(text) for text in out.read_text().splitlines())
    assert first["provenance"] == {"commit": "abc"}
    assert line["curves"] == {"reward": [0.25, None], "entropy/full": [1.235, 1.0]}
    assert line["after"] == {"pass@1": {"mean": 0.5}, "samples": 8}
    assert (line["arm"], line["seed"]) == ("siren@0.005", 0)
    with pytest.raises(FileExistsError):
        all_methods.main(["record", "--folder", str(tmp_path / "study"), "--out", str(out)])
    assert three_way.record(tmp_path / "study", tmp_path / "whole.jsonl") == 1
    assert "per_problem" in json.loads((tmp_path / "whole.jsonl").read_text().splitlines()[1])["after"]


def test_a_missing_config_is_refused_before_any_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="Near: cpu_methods"):
        all_methods.main(["run", "--config", "cpu_method", "--folder", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_a_run_without_an_evaluation_cannot_be_compared():
    assert three_way.accuracy({"samples": 8, "avg@8": {"mean": 0.25}}) == 0.25
    for result in (None, {"samples": 8}):
        with pytest.raises(ValueError, match="evaluation block"):
            three_way.accuracy(result)


def test_an_unknown_method_is_refused():
    command = [sys.executable, "-m", "experiments.all_methods", "run", "--methods", "sirens"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sirens" in done.stderr
