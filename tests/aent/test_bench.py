"""The selection benchmark runs and reports; its numbers are for people to read."""

import pytest

from benchmarks.selection import selection_benchmark


def test_every_method_is_timed_against_numpy_partition():
    records = selection_benchmark(rows=21, vocabulary=200)  # more than one block of rows
    assert {"numpy.partition", "aent support_weights", "torch.topk", "torch.kthvalue"} <= {r["method"] for r in records}
    assert len({(r["task"], r["method"]) for r in records}) == len(records)
    for record in records:
        assert record["milliseconds_per_row"] > 0
        assert record["method"] != "numpy.partition" or record["ratio_to_partition"] == 1


def test_nothing_to_cut_is_refused():
    with pytest.raises(ValueError, match="at least 1 row"):
        selection_benchmark(rows=0)
