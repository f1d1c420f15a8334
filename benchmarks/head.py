"""Time and memory of the fused head against TRL's head, dense autograd, and the matrix products neither can avoid.

    python -m benchmarks.head [--vocab 16384 --hidden 64 --tokens 2048] [--device cuda] [--dtype bfloat16]

``make bench-gpu`` (``bench_gpu.py``) is the longer comparison on a GPU.

One forward and backward pass of each in one process, alternating, so that a busy machine slows all alike. The floor is
the four matrix products of any head that keeps no logits: logits, logits again, gradient of hidden, gradient of weight.
Peak memory counts what lives at a time beyond the inputs: gradients included, results of Python-visible operations only
on the CPU (what a kernel allocates inside itself is not seen), the allocator's own figure on CUDA.

Left out: the backbone, the trainer (``seconds per step`` is measured by its own records).

Shape legend: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from aent import cli
from aent.entropy import DropLowest, Nucleus, Support, TopK, entropy
from aent_llm.head.common import add_product
from aent_llm.head.fused import DEFAULT_TILE_BYTES, Engine, fused_entropy_head

__all__ = [
    "Case", "Loss", "Peak", "PeakBytes", "compare", "dense", "fused", "main", "matrix_products", "now",
    "published_clamp", "timed", "trl_head",
]  # fmt: skip

CASES = ((16_384, 64, 2_048), (151_936, 896, 256))  # (V, D, N): the embedded model's head, and Qwen2.5's
_TRL_CHUNK = 32_768  # of the vocabulary, as TRL's head uses
_TEMPERATURE = 0.9


class PeakBytes(TorchDispatchMode):
    """Counts bytes of the tensors that operations create while it is on: the most alive at a time, and the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_address(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _address(tensor) not in given | self._known:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        size, key = storage.nbytes(), storage._cdata
        self._known.add(key)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Peak:
    """Most bytes alive beyond those before it: counted tensors on a CPU, the allocator's figure on CUDA."""

    def __init__(self, device: str) -> None:
        self.counter = None if device == "cuda" else PeakBytes()

    def __enter__(self) -> Peak:
        if self.counter is None:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.counter is not None:
            self.counter.__exit__(*error)

    def bytes(self) -> float:
        """So far."""
        return torch.cuda.max_memory_allocated() - self.before if self.counter is None else self.counter.peak


def now() -> float:
    """Seconds, once all work handed to a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = now()
    run()
    return now() - start


class Case(NamedTuple):
    """Inputs of one comparison. Logits have a spread of about 3 nats, as a language model's have."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    targets: Tensor  # (N,)

    @classmethod
    def random(cls, vocabulary: int, width: int, tokens: int, *, device: str, dtype: torch.dtype) -> Case:
        """Draw one with a fixed seed."""
        generator = torch.Generator(device).manual_seed(0)
        hidden = torch.randn(tokens, width, generator=generator, device=device)
        weight = torch.randn(vocabulary, width, generator=generator, device=device) * (3 / width**0.5)
        targets = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
        return cls(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets)

    def forget_gradients(self) -> None:
        """Of the contender before."""
        self.hidden.grad = self.weight.grad = None


Loss = Callable[[Case], Tensor]


def fused(support: Support | None, diagnostics: bool = False, engine: Engine = "auto") -> Loss:
    """Our head: log-prob and its bonus, H or H~."""

    def loss(case: Case) -> Tensor:
        output = fused_entropy_head(
            case.hidden,
            case.weight,
            None,
            case.targets,
            support=support,
            temperature=_TEMPERATURE,
            diagnostics=diagnostics,
            engine=engine,
        )
        bonus = output.entropy if output.clamped_entropy is None else output.clamped_entropy
        return (output.log_probs + 0.01 * bonus).mean()

    return loss


def trl_head(case: Case) -> Tensor:
    """TRL's fused head: log-prob and H."""
    log_probs, bonus, *_ = ChunkedLogProbFunction.apply(  # type: ignore[misc]
        case.hidden, case.weight, None, case.targets, _TEMPERATURE, _TRL_CHUNK, None, 1.0, ("log_probs", "entropy")
    )
    return (log_probs + 0.01 * bonus).mean()


def dense(support: Support | None) -> Loss:
    """All logits at once, autograd."""

    def loss(case: Case) -> Tensor:
        logits = (case.hidden @ case.weight.t()).float() / _TEMPERATURE
        log_probs = torch.log_softmax(logits, -1).gather(-1, case.targets[:, None])[:, 0]
        bonus = entropy(logits) if support is None else entropy(logits, support=support)
        return (log_probs + 0.01 * bonus).mean()

    return loss


def published_clamp(case: Case) -> Tensor:
    """The clamp of the authors' code (AReaL 0.5.3), written anew from what it does: the lowest p = .33 of each 1,024
    tokens' float32 logits are found by ``topk`` on the CPU, a mask goes back, masked logits go through autograd.
    """
    logits = (case.hidden @ case.weight.t()) / _TEMPERATURE
    log_probs = torch.log_softmax(logits.float(), -1).gather(-1, case.targets[:, None])[:, 0]
    bonus = [_clamped_on_the_cpu(some.float()) for some in logits.split(1024)]
    return (log_probs + 0.01 * torch.cat(bonus)).mean()


def _clamped_on_the_cpu(logits: Tensor) -> Tensor:
    here = logits.detach().cpu()
    _, lowest = torch.topk(here, int(0.33 * here.shape[-1]), dim=-1, largest=False)
    mask = torch.zeros_like(here, dtype=torch.bool).scatter_(-1, lowest, True).to(logits.device)
    masked = logits.masked_fill(mask, -torch.inf)
    if logits.device.type == "cuda":
        torch.cuda.empty_cache()
    return -(masked.softmax(-1) * masked.log_softmax(-1).masked_fill(mask, 0)).sum(-1)


def matrix_products(case: Case, *, forward: bool = True, backward: bool = True) -> None:
    """What no head avoids, by tiles into memory that is used again: no pass over logits, no page faults.

    Forward the logits; backward the logits again and the gradients, of the weight in float32 if on a GPU.
    """
    hidden, weight = case.hidden.detach(), case.weight.detach()
    rows = max(1, DEFAULT_TILE_BYTES[hidden.device.type] // (len(weight) * weight.itemsize))
    tile = torch.empty(min(rows, len(hidden)), len(weight), dtype=weight.dtype, device=weight.device)
    if forward:
        for some in hidden.split(rows):
            torch.mm(some, weight.t(), out=tile[: len(some)])
    if backward:
        wide = hidden.device.type == "cuda" and weight.itemsize < 4
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32 if wide else None)
        for some, gradient in zip(hidden.split(rows), of_hidden.split(rows), strict=True):
            logits = torch.mm(some, weight.t(), out=tile[: len(some)])
            torch.mm(logits, weight, out=gradient)
            add_product(of_weight, logits.t(), some)


def _both(loss: Loss) -> Callable[[Case], None]:
    return lambda case: loss(case).backward()


FLOOR, PEER = "matrix products alone (floor)", "TRL: log-prob + H"
CONTENDERS: dict[str, Callable[[Case], None]] = {
    FLOOR: matrix_products,
    PEER: _both(trl_head),
    "ours: log-prob + H": _both(fused(None)),
    "ours: + H~, drop 0.33": _both(fused(DropLowest(0.33))),
    "ours: + H~, top-k 100": _both(fused(TopK(100))),
    "ours: + H~, nucleus 0.9": _both(fused(Nucleus(0.9))),
    "ours: + H~, drop 0.33, diagnostics": _both(fused(DropLowest(0.33), diagnostics=True)),
    "dense autograd: log-prob + H": _both(dense(None)),
    "dense autograd: log-prob + H~, drop 0.33": _both(dense(DropLowest(0.33))),
    "published clamp: drop 0.33 by topk": _both(published_clamp),
}


def compare(case: Case, *, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of a forward and backward pass, and peak bytes, of every contender."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, run in CONTENDERS.items():
            case.forget_gradients()
            seconds[name].append(timed(partial(run, case)))
    results = {}
    for name, run in CONTENDERS.items():
        case.forget_gradients()
        with Peak(case.hidden.device.type) as peak:
            run(case)
            results[name] = statistics.median(seconds[name]), peak.bytes()
    return results


def _table(results: dict[str, tuple[float, float]]) -> str:
    floor, peer = results[FLOOR][0], results[PEER][0]
    lines = ["| head, forward + backward | s | x TRL | x floor | peak MiB |", "| --- | --- | --- | --- | --- |"]
    for name, (seconds, size) in results.items():
        lines.append(f"| {name} | {seconds:.3f} | {seconds / peer:.2f} | {seconds / floor:.2f} | {size / 2**20:,.0f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print one table per size."""
    parser = cli.Parser(prog="python -m benchmarks.head", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--vocab", type=cli.whole_number(1), help="one size instead of the two built-in ones; with --hidden, --tokens"
    )
    parser.add_argument("--hidden", type=cli.whole_number(1), default=64)
    parser.add_argument("--tokens", type=cli.whole_number(1), default=2048)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float64"))
    parser.add_argument("--rounds", type=cli.whole_number(1), default=5)
    options = parser.parse_args(arguments)
    sizes = CASES if options.vocab is None else ((options.vocab, options.hidden, options.tokens),)
    for vocabulary, width, tokens in sizes:
        case = Case.random(vocabulary, width, tokens, device=options.device, dtype=getattr(torch, options.dtype))
        print(
            f"\nV = {vocabulary:,}, D = {width:,}, N = {tokens:,}, {options.dtype}, {options.device}, "
            f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, median of {options.rounds}\n"
        )
        print(_table(compare(case, rounds=options.rounds)), flush=True)


if __name__ == "__main__":
    raise SystemExit(cli.run("benchmarks.head", main, extra="llm"))
