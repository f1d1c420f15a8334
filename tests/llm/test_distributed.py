"""One process, two by DDP, two by FSDP2: the same global batch gives the same loss, bonus and controller trajectory."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aent_llm.training.checkpoint import last_complete

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
pytestmark = pytest.mark.slow


def result(kind: str, out: Path, *what: str) -> dict:
    launcher = [sys.executable]
    if kind != "single":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
    done = subprocess.run(
        [*launcher, str(HERE / "distributed_run.py"), kind, str(out), *what],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return result("single", tmp_path_factory.mktemp("single"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_are_one(kind, single, tmp_path) -> None:
    two = result(kind, tmp_path)
    assert two["ranks"] == 2
    assert two["sharded"] == (kind == "fsdp2")  # accelerate falls back to DDP on a CPU without a word
    assert two["updates"] == single["updates"] == 4
    assert two["coefficient"] == pytest.approx(single["coefficient"], rel=1e-5)
    assert two["weights"] == pytest.approx(single["weights"], rel=1e-6)
    for ours, theirs in zip(two["steps"], single["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    coefficients = [step["entropy/coef"] for step in single["steps"]]
    assert len(set(coefficients)) == 4  # the controller did move


def ends(kind: str, out: Path, what: str) -> list[dict]:
    """How the two ranks ended."""
    result(kind, out, what)
    return [json.loads((out / f"{what}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_nan_on_one_rank_stops_both_before_their_weights_move(kind, tmp_path) -> None:
    for end in ends(kind, tmp_path, "nan"):
        assert end["said"].startswith("NonFiniteError: NaN or infinity in the gradient")
        assert "at step 3" in end["said"]
        assert f"Last complete checkpoint: {tmp_path / 'checkpoint-2'}." in end["said"]
        assert (end["moved"], end["step"]) == (False, 2)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_signal_to_one_rank_stops_both_after_one_checkpoint(kind, tmp_path) -> None:
    for end in ends(kind, tmp_path, "signal"):
        assert (end["said"], end["status"], end["step"]) == ("Interrupted: SIGTERM", 143, 3)
    assert last_complete(tmp_path) == (tmp_path / "checkpoint-3", [])
    for end in ends(kind, tmp_path, "resume"):
        assert (end["said"], end["step"]) == ("", 4)


def test_infinite_rewards_on_one_rank_stop_both(tmp_path) -> None:
    zero, one = ends("ddp", tmp_path, "reward")
    assert zero["said"].startswith("ValueError: step 3: the reward 'even_words' returned no finite number")
    assert one["said"].startswith("ValueError: step 3: the reward 'even_words' returned inf for prompt")


def test_a_run_of_two_ranks_is_not_resumed_on_one(tmp_path) -> None:
    """It used to go on with half the global batch."""
    ends("ddp", tmp_path, "signal")
    result("single", tmp_path, "resume")
    end = json.loads((tmp_path / "resume-0.json").read_text())
    assert "ranks: saved 2, given 1" in end["said"]
    assert end["step"] == 0
