"""Is the selection of the kept tokens as fast as the best primitive? ``python -m benchmarks.selection [--rows N]``.

Times ``support_weights`` on float32 Gaussian logits against the ways to cut a row that numpy and torch offer, in
milliseconds per row and as a ratio to ``numpy.partition``, which alone finds the threshold but gives no weights. The
methods take turns on each block of rows, so that a busy machine slows all of them alike. numpy
uses one thread here; set OMP_NUM_THREADS=1 to hold torch to one as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from aent import cli
from aent.entropy import DropLowest, TopK, support_weights

__all__ = ["selection_benchmark"]

_BLOCK = 20  # rows at a time: 12 MB of 150,000 float32


def selection_benchmark(rows: int = 1000, vocabulary: int = 150_000) -> list[dict[str, Any]]:
    """Seconds of each method over ``rows`` rows; torch only if it is installed.

    Returns:
        One record per method, with ``task`` (which cut), ``method``, ``milliseconds_per_row``, ``ratio_to_partition``.

    Raises:
        ValueError: no rows, or too few tokens to cut.
    """
    if rows < 1 or vocabulary < 2:
        raise ValueError(f"rows={rows}, vocabulary={vocabulary}: expected at least 1 row of at least 2 tokens")
    tasks = {"drop lowest 33%": DropLowest(0.33), "keep top 100": TopK(100)}
    methods = {
        (task, name): method
        for task, support in tasks.items()
        for name, method in _methods(support, support.kept(vocabulary), vocabulary).items()
    }
    seconds = dict.fromkeys(methods, 0.0)
    rng = np.random.default_rng(0)
    warm = rng.normal(size=(1, vocabulary)).astype(np.float32)
    for method in methods.values():
        method(warm)
    for start in range(0, rows, _BLOCK):
        logits = rng.normal(size=(min(_BLOCK, rows - start), vocabulary)).astype(np.float32)
        for key, method in methods.items():
            began = time.perf_counter()
            method(logits)
            seconds[key] += time.perf_counter() - began
    return [
        {
            "task": task,
            "method": name,
            "milliseconds_per_row": 1000 * spent / rows,
            "ratio_to_partition": spent / seconds[task, "numpy.partition"],
        }
        for (task, name), spent in seconds.items()
    ]


def _methods(support: DropLowest | TopK, kept: int, vocabulary: int) -> dict[str, Callable[[np.ndarray], Any]]:
    cut = vocabulary - kept
    methods: dict[str, Callable[[np.ndarray], Any]] = {
        "numpy.partition": lambda logits: np.partition(logits, cut, axis=-1),
        "aent support_weights": lambda logits: support_weights(logits, support),
        "numpy.argpartition": lambda logits: np.argpartition(logits, cut, axis=-1),
        "numpy.sort": lambda logits: np.sort(logits, axis=-1),
    }
    try:
        import torch
    except ImportError:
        return methods
    tensor = torch.from_numpy
    few_lowest = cut < kept  # torch.topk from the side with fewer tokens, as the authors' code does
    return methods | {
        "torch.topk": lambda logits: tensor(logits).topk(cut if few_lowest else kept, largest=not few_lowest),
        "torch.kthvalue": lambda logits: tensor(logits).kthvalue(cut + 1),
    }


def main() -> None:
    """Print the table."""
    parser = cli.Parser(
        prog="python -m benchmarks.selection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=cli.whole_number(1), default=1000)
    parser.add_argument("--vocabulary", type=cli.whole_number(1), default=150_000)
    options = parser.parse_args()
    print(f"{options.rows} rows of {options.vocabulary} tokens, float32")
    for record in selection_benchmark(options.rows, options.vocabulary):
        print(
            f"{record['task']:>16}  {record['method']:<22}{record['milliseconds_per_row']:9.3f} ms/row"
            f"{record['ratio_to_partition']:9.2f} x numpy.partition"
        )


if __name__ == "__main__":
    raise SystemExit(cli.run("benchmarks.selection", main, extra="llm"))
