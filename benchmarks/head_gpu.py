"""The fused head on a GPU: against TRL's, dense autograd, the published clamp, and the floor; `make bench-gpu`.

    python -m benchmarks.head_gpu [--tokens 2048 8192 32768] [--hidden 1536 4096] [--rounds 5]

One process, one card, the contenders take turns. The floor is the matrix products alone, plus the passes over the
logits at the bandwidth that a copy on this card reaches. Below the tables: the kernels by themselves, in several
geometries, and whether the targets are met. With the optimiser step that ``make bench-gpu`` runs after it, it is meant
to fit ten minutes; the published clamp, which keeps a CPU busy for most of them, runs once.

Left out: correctness (``make test-gpu``), an optimiser step (``bench_step.py``).

Shape legend: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from aent import cli
from aent.entropy import DropLowest, TopK
from aent_llm.head.common import Settings
from benchmarks.head import Case, Loss, Peak, dense, fused, matrix_products, published_clamp, timed, trl_head

__all__ = ["Measured", "main", "measure", "verdicts"]

FLOOR, TRL, CLAMP, PUBLISHED = "matrix products alone", "TRL: H", "ours: + H~, drop .33", "published clamp, drop .33"
LOSSES: dict[str, Loss] = {
    TRL: trl_head,
    "ours: H": fused(None),
    CLAMP: fused(DropLowest(0.33)),
    "ours: + H~, top-k 100": fused(TopK(100)),
    "ours on torch: + H~, drop .33": fused(DropLowest(0.33), engine="torch"),
    "dense autograd: H": dense(None),
    PUBLISHED: published_clamp,
}
_SLOW = (PUBLISHED,)  # once, without warming up
_PASSES = {TRL: 3, "ours: H": 3, CLAMP: 5, "ours: + H~, top-k 100": 5}  # reads and writes of all logits, as counted


class Measured(NamedTuple):
    """Of one contender: medians, and peaks beyond the inputs; NaN where memory ran out."""

    forward: float
    whole: float  # forward and backward pass
    forward_bytes: float
    whole_bytes: float


def measure(case: Case, *, rounds: int) -> dict[str, Measured]:
    """Every contender on one case; the first round compiles and warms up."""
    names = [FLOOR, *LOSSES]
    runs = {name: [_run(name, case)] for name in names}
    for _ in range(rounds):
        for name in names:
            if name not in _SLOW:
                runs[name].append(_run(name, case))
    return {name: Measured(*map(statistics.median, zip(*(of[1:] or of), strict=True))) for name, of in runs.items()}


def _run(name: str, case: Case) -> Measured:
    case.forget_gradients()
    passes = _products(case) if name == FLOOR else _loss_and_gradient(LOSSES[name], case)
    try:
        with Peak(case.hidden.device.type) as peak:
            forward = timed(lambda: next(passes))
            forward_bytes = peak.bytes()
            whole = forward + timed(lambda: next(passes))
            return Measured(forward, whole, forward_bytes, peak.bytes())
    except torch.cuda.OutOfMemoryError:
        pass  # what it holds on to is free once the error is gone
    torch.cuda.empty_cache()
    return Measured(*4 * (math.nan,))


def _loss_and_gradient(loss: Loss, case: Case) -> Iterator[None]:
    value = loss(case)
    yield
    value.backward()
    yield


def _products(case: Case) -> Iterator[None]:
    """The forward product, then the three of the backward pass."""
    matrix_products(case, backward=False)
    yield
    matrix_products(case, forward=False)
    yield


# ---------------------------------------------------------------------------------------------------------- reporting


def _table(results: dict[str, Measured], logit_bytes: float, bandwidth: float) -> str:
    floor, peer = results[FLOOR], results[TRL]
    lines = [
        "| head | forward ms | both ms | x TRL | x products | x products and passes | forward MiB | both MiB | x TRL |",
        "|" + " --- |" * 9,
    ]
    for name, one in results.items():
        passes = _PASSES.get(name)
        bound = None if passes is None else floor.whole + passes * logit_bytes / bandwidth
        lines.append(
            f"| {name} | {1e3 * one.forward:.2f} | {1e3 * one.whole:.2f} | {one.whole / peer.whole:.2f} "
            f"| {one.whole / floor.whole:.2f} | {'' if bound is None else f'{one.whole / bound:.2f}'} "
            f"| {one.forward_bytes / 2**20:,.0f} | {one.whole_bytes / 2**20:,.0f} "
            f"| {one.whole_bytes / peer.whole_bytes:.2f} |"
        )
    return "\n".join(lines)


def verdicts(results: dict[tuple[int, int], dict[str, Measured]]) -> list[str]:
    """The targets, one line each, over all (D, T): the worst case decides; D and T of it are named."""

    def worst(ratio: Callable[[dict[str, Measured]], float], most: bool = True) -> tuple[float, tuple[int, int]]:
        values = {size: ratio(of) for size, of in results.items()}
        known = {size: value for size, value in values.items() if value == value}
        if not known:
            return float("nan"), (0, 0)
        at = (max if most else min)(known, key=lambda size: known[size])
        return known[at], at

    targets = [
        ("time over TRL's, at most 1.10", *worst(lambda of: of[CLAMP].whole / of[TRL].whole), 1.10, True),
        ("time over the products, at most 1.25", *worst(lambda of: of[CLAMP].whole / of[FLOOR].whole), 1.25, True),
        ("published clamp over ours, at least 20", *worst(_speedup, False), 20, False),
        ("peak over TRL's, at most 1.05", *worst(lambda of: of[CLAMP].whole_bytes / of[TRL].whole_bytes), 1.05, True),
        ("growth with T beyond hidden states, at most 1.05", *_growth(results), 1.05, True),
    ]
    return [
        f"{'met' if (value <= bound if at_most else value >= bound) else 'MISSED'}: {what}: {value:.3f} (D, T = {size})"
        for what, value, size, bound, at_most in targets
    ]


def _speedup(of: dict[str, Measured]) -> float:
    return of[PUBLISHED].whole / of[CLAMP].whole


def _growth(results: dict[tuple[int, int], dict[str, Measured]]) -> tuple[float, tuple[int, int]]:
    """Peak less the gradients of the hidden states (in float32, and in bfloat16), at the largest T over the next."""
    found = []
    for width in {width for width, _ in results}:
        sizes = sorted(tokens for other, tokens in results if other == width)[-2:]
        rest = [results[width, tokens][CLAMP].whole_bytes - 6 * width * tokens for tokens in sizes]
        found.append((rest[-1] / rest[0], (width, sizes[-1])))
    return max(found)


def _header(device: str) -> float:
    """Say what this runs on; bytes a second of a copy."""
    import transformers
    import trl

    size = 2**32 if device == "cuda" else 2**26
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    target.copy_(source)
    bandwidth = 2 * size / min(timed(lambda: target.copy_(source)) for _ in range(5))
    print(f"torch {torch.__version__}, trl {trl.__version__}, transformers {transformers.__version__}", end="")
    if device == "cuda":
        import triton

        print(f", triton {triton.__version__}, CUDA {torch.version.cuda}\n{torch.cuda.get_device_name()}", end="")
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            print(", driver", subprocess.run(query, capture_output=True, text=True).stdout.strip(), end="")
    print(f"\nbandwidth of a copy, read and written: {bandwidth / 1e9:,.0f} GB/s")
    return bandwidth


def _kernels_alone(vocabulary: int, rows: int) -> None:
    """Milliseconds and GB/s of one pass over a tile, by geometry."""
    from aent_llm.head.kernels import ROW_SUMS, Geometry, gradient_tile_, row_sums

    raw = 3 * torch.randn(rows, vocabulary, device="cuda", dtype=torch.bfloat16)
    spare = raw.clone()  # overwritten by its gradient: of zeros in the end, the same bytes
    targets = torch.randint(vocabulary, (rows,), device="cuda")
    sums, coefficients = torch.zeros(len(ROW_SUMS), rows, device="cuda"), torch.zeros(rows, 8, device="cuda")
    print(f"\nkernels alone on {rows:,} rows of {vocabulary:,}: ms (GB/s, the reads of a row counted)\n")
    print("| block | warps | H | + H~, drop .33 | reads | gradient |\n| --- | --- | --- | --- | --- | --- |")
    for block in (2048, 4096, 8192):
        for warps in (4, 8, 16):
            geometry = Geometry(block=block, warps=warps)
            cells = []
            for support in (None, DropLowest(0.33)):
                run = partial(row_sums, raw, targets, sums, Settings(support), geometry=geometry)
                seconds = _best(run)
                reads = sums[ROW_SUMS.index("reads")].mean().item()
                cells.append(f"{1e3 * seconds:.2f} ({reads * 2 * raw.numel() / seconds / 1e9:,.0f})")
            run = partial(gradient_tile_, spare, targets, coefficients, 0, Settings(None), geometry=geometry)
            seconds = _best(run)
            gradient = f"{1e3 * seconds:.2f} ({4 * raw.numel() / seconds / 1e9:,.0f})"
            print(f"| {block} | {warps} | {cells[0]} | {cells[1]} | {reads:.2f} | {gradient} |", flush=True)


def _best(run: Callable[[], object]) -> float:
    run()
    return min(timed(run) for _ in range(5))


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = cli.Parser(prog="python -m benchmarks.head_gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=cli.whole_number(1), nargs="+", default=[2048, 8192, 32_768])
    parser.add_argument("--hidden", type=cli.whole_number(1), nargs="+", default=[1536, 4096])
    parser.add_argument("--vocab", type=cli.whole_number(1), default=151_936)
    parser.add_argument("--rounds", type=cli.whole_number(1), default=5)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu tries the script, in float32")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU was found; --device cpu --vocab 1000 --tokens 64 128 --hidden 8 tries the script")
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    bandwidth, results = _header(options.device), {}
    for width in options.hidden:
        for tokens in options.tokens:
            case = Case.random(options.vocab, width, tokens, device=options.device, dtype=dtype)
            results[width, tokens] = measure(case, rounds=options.rounds)
            print(f"\nD = {width:,}, T = {tokens:,}, V = {options.vocab:,}, {dtype}, median of {options.rounds}\n")
            print(_table(results[width, tokens], tokens * options.vocab * dtype.itemsize, bandwidth), flush=True)
    if options.device == "cuda":
        _kernels_alone(options.vocab, 3456)
        print("\n".join(["", "targets, for an H200:", *verdicts(results)]))


if __name__ == "__main__":
    raise SystemExit(cli.run("benchmarks.head_gpu", main, extra="llm"))
