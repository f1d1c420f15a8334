"""A record of many runs is read as it was written; what is no record is refused, and its line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aent.records import CURVES, header, read_record, run_line, write_record

ROOT = Path(__file__).parent.parent.parent
COMMITTED = sorted((ROOT / "paper_figures" / "records").glob("*.jsonl"))
RESULTS = {
    "before": {"pass@1": {"mean": 0.25}, "samples": 2, "per_problem": {"correct": [1, 0]}, "texts": ["a", "b"]},
    "after": {"pass@1": {"mean": 0.5}, "samples": 2, "per_problem": {"correct": [1, 1]}},
    "seconds": 9.5,
}
METRICS = [
    {"step": 1, "reward": 0.123456, "loss": 3.0},
    {"step": 2, "reward": 0.5, "entropy/full": 1.0},
    {"step": 2, "reward": 0.75},  # again after a resume: this one counts
]


def line(**options) -> dict:
    known = {"stage": "sweep", "arm": "grpo", "seed": 3, "entropy": {"support": "full"}}
    return run_line(METRICS, RESULTS, **{**known, "curves": ("reward", "entropy/full"), **options})


def test_a_run_is_cut_to_what_is_drawn() -> None:
    assert line(per_problem=False) == {
        "stage": "sweep",
        "arm": "grpo",
        "seed": 3,
        "entropy": {"support": "full"},
        "step": [1, 2],
        "curves": {"reward": [0.1235, 0.75], "entropy/full": [None, None]},
        "before": {"pass@1": {"mean": 0.25}, "samples": 2},
        "after": {"pass@1": {"mean": 0.5}, "samples": 2},
        "seconds": 9.5,
    }
    assert line()["before"]["per_problem"] == {"correct": [1, 0]}
    assert "texts" not in line()["before"]
    assert set(run_line(METRICS, RESULTS, stage="s", arm="a", seed=0, entropy={})["curves"]) == set(CURVES)


def test_a_record_is_read_as_it_was_written_and_never_overwritten(tmp_path: Path) -> None:
    runs = [line(), line(seed=4, arm="kl-cov @ 0.1, é")]
    first = header({"commit": "abc", "command": "/home/me/x", "seed": 3, "resumed": [], "cores": 2}, {"name": "tiny"})
    assert first == {"provenance": {"commit": "abc", "cores": 2}, "config": {"name": "tiny"}}
    write_record(tmp_path / "record.jsonl", first, runs)
    assert read_record(tmp_path / "record.jsonl") == runs
    assert json.loads((tmp_path / "record.jsonl").read_text().splitlines()[0]) == first
    before = (tmp_path / "record.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="exists and was not overwritten"):
        write_record(tmp_path / "record.jsonl", first, [])
    assert (tmp_path / "record.jsonl").read_bytes() == before


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_records_have_this_format(path: Path) -> None:
    """Keys of every line, and the curves of this module or some of them."""
    runs = read_record(path)
    assert len(runs) > 30
    assert {tuple(run) for run in runs} == {tuple(line())}
    assert set().union(*(run["curves"] for run in runs)) <= set(CURVES)
    assert len({tuple(run["curves"]) for run in runs}) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"arm": ', "line 2: expected one JSON object, "),
        ("[" * 100_000, "line 2: expected one JSON object, "),
        ("[1]", "line 2: expected one JSON object, got list"),
        ("{}", "line 2: arm, seed, entropy, step, curves, before, after missing or of the wrong type"),
        (json.dumps({**line(), "seed": "0"}), "line 2: seed missing or of the wrong type"),
        (
            json.dumps({**line(), "curves": {"reward": [1.0]}}),
            r"curves.reward must have one value per step \(2",
        ),
        (json.dumps({**line(), "curves": {"reward": 1.0}}), "line 2: curves.reward must have one value per step"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text(json.dumps(header({}, {})) + "\n" + text + "\n")
    with pytest.raises(ValueError, match=said):
        read_record(path)


def test_a_record_may_hold_no_run_yet(tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").write_text(json.dumps(header({}, {})) + "\n")
    assert read_record(tmp_path / "record.jsonl") == []
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "nothing.jsonl")
