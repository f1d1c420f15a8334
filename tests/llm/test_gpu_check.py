"""The one command for a GPU machine, rehearsed on the CPU: every step runs and leaves what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = ["env", "smoke", "checks", "quick", "kernels", "full", "step", "profile", "tiles"]


def rehearse(folder: Path, *steps: str, **changes: str) -> dict:
    """summary.json of these steps."""
    places = {"OUT": str(folder / "out"), "GPU_CHECK_WORK": str(folder / "work"), "WHEELS": "", "PY": sys.executable}
    small = {"GPU_CHECK_DEVICE": "cpu", "GPU_CHECK_WORKERS": "1", "GPU_CHECK_TESTS": "-k gradient_tile"}
    environment = os.environ | places | small | {"BUDGET_S": "1200", "STEPS": " ".join(steps)} | changes
    subprocess.run(["bash", "benchmarks/gpu_check.sh"], cwd=ROOT, env=environment, check=False, capture_output=True)
    return json.loads((folder / "out" / "summary.json").read_text())


@pytest.mark.slow
def test_every_step_runs_on_a_cpu(tmp_path: Path) -> None:
    found = rehearse(tmp_path, *STEPS, GPU_CHECK_TRAIN_S="400")
    ended = {one["step"]: one["rc"] for one in found["steps"]}
    assert ended == dict.fromkeys(
        [*(set(STEPS) - {"checks"}), "tests", "train", "compile"], 0
    )  # "checks" is those three
    assert all(one["ok"] for one in found["smoke"])
    assert found["train"]["block"]["steps"] == 2
    assert found["full"]["cases"]


def test_a_step_that_fails_stops_no_other(tmp_path: Path) -> None:
    """A model without a hidden size: the timings end at once, the versions are kept."""
    found = rehearse(tmp_path, "env", "quick", GPU_CHECK_SIZES="0x8")
    assert {one["step"]: one["rc"] != 0 for one in found["steps"]} == {"env": False, "quick": True}
    assert "torch" in found["env"]
