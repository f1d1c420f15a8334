"""Ask a GPU everything that the project wants to know: the steps of gpu_check.sh.

    python -m benchmarks.gpu_check env | smoke | compile | quick | kernels | full | tiles | step | train | profile | one
    python -m benchmarks.gpu_check summary

Each step prints a table and writes what it found to $GPU_CHECK_WORK/NAME.json. Sizes come from environment variables,
so that the same steps run on a CPU (GPU_CHECK_DEVICE=cpu). Nothing of the project is changed on disk; what is patched
in memory is said where it is done.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

STARTED = time.time()
WORK = Path(os.environ.get("GPU_CHECK_WORK", "/tmp/gpu_check"))
DEVICE = os.environ.get("GPU_CHECK_DEVICE", "cuda")
CPU = DEVICE == "cpu"
SECONDS = float(os.environ.get("GPU_CHECK_STEP_S", "1e9"))  # of this step: it stops by itself a little before
VOCAB = int(os.environ.get("GPU_CHECK_VOCAB", "600" if CPU else "151936"))
SIZES = [  # (D, T), the most wanted first
    tuple(map(int, one.split("x")))
    for one in os.environ.get(
        "GPU_CHECK_SIZES",
        "8x32 8x64" if CPU else "1536x8192 4096x8192 1536x2048 4096x2048 1536x32768 4096x32768",
    ).split()
]
ROUNDS = int(os.environ.get("GPU_CHECK_ROUNDS", "1" if CPU else "5"))


def left() -> float:
    """Seconds that this step still has."""
    return SECONDS - (time.time() - STARTED)


def save(name: str, found: object) -> None:
    """Keep what a step found, for the summary."""
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / f"{name}.json").write_text(json.dumps(found, indent=1, default=str) + "\n")


def say(*words: object) -> None:
    """Print at once."""
    print(*words, flush=True)


def sync() -> None:
    """Wait for the card."""
    import torch

    if not CPU:
        torch.cuda.synchronize()


def median_ms(run, repeats: int = 7) -> float:
    """Median of ``repeats`` calls by CUDA events, after one to warm up."""
    import torch

    run()
    sync()
    times = []
    for _ in range(repeats):
        if CPU:
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
        else:
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            run()
            b.record()
            b.synchronize()
            times.append(a.elapsed_time(b))
    return statistics.median(times)


# --------------------------------------------------------------------------------------------------------------- 1. env


def env() -> None:
    """Versions, the card, its two ceilings."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict = {"python": sys.version.split()[0]}
    for name in [
        "torch",
        "triton",
        "transformers",
        "tokenizers",
        "trl",
        "accelerate",
        "datasets",
        "pyarrow",
        "peft",
        "huggingface_hub",
        "numpy",
        "numba",
        "pandas",
        "matplotlib",
        "rich",
        "joblib",
        "jaxtyping",
        "beartype",
        "array-api-compat",
        "math-verify",
        "pytest",
        "pytest-xdist",
        "hypothesis",
    ]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "MISSING"
    import torch

    if CPU:
        say(found)
        return save("env", found)
    props = torch.cuda.get_device_properties(0)
    found |= {
        "gpu": props.name, "SMs": props.multi_processor_count, "memory_GiB": round(props.total_memory / 2**30, 1),
        "L2_MB": getattr(props, "L2_cache_size", 0) / 2**20, "capability": torch.cuda.get_device_capability(),
        "cuda": torch.version.cuda, "cores": os.cpu_count(), "tf32": torch.backends.cuda.matmul.allow_tf32,
    }  # fmt: skip
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    found["copy_GBps"] = round(2 * 2**32 / median_ms(lambda: target.copy_(source)) / 1e6)
    del source, target
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    found["bf16_TFLOPs"] = round(2 * 8192**3 / median_ms(lambda: a @ a) / 1e9)
    f = a[:4096, :4096].float()
    found["fp32_TFLOPs"] = round(2 * 4096**3 / median_ms(lambda: f @ f) / 1e9)
    save("env", found)
    say(json.dumps(found))


# ------------------------------------------------------------------------------------------------------------- 2. smoke


def smoke() -> None:
    """The compiled kernels at a real vocabulary against ``aent.entropy`` in float64: values and gradient."""
    import torch

    from aent.entropy import DropLowest, Nucleus, TopK, entropy
    from aent_llm.head.fused import fused_entropy_head

    rows, found, worst = 5 if CPU else 64, [], 0.0
    engine = "triton"
    for dtype in (torch.bfloat16, torch.float32):
        g = torch.Generator().manual_seed(0)
        raw = (3 * torch.randn(rows, VOCAB, generator=g)).to(dtype).to(DEVICE)
        targets = torch.randint(VOCAB, (rows,), generator=g).to(DEVICE)
        given = torch.randn(3, rows, generator=g).to(DEVICE)
        for support in (None, DropLowest(0.33), TopK(100), Nucleus(0.9)):
            start = time.time()
            hidden = torch.eye(rows, dtype=dtype, device=DEVICE)
            weight = raw.T.contiguous().requires_grad_()
            out = fused_entropy_head(hidden, weight, None, targets, support=support, temperature=0.9, engine=engine)
            used = [value for value in out[:3] if value is not None]
            torch.autograd.backward(used, [g_ for g_, _ in zip(given, used, strict=False)])
            leaf = raw.double().requires_grad_()
            z = leaf / 0.9
            wanted = [z.log_softmax(-1).gather(-1, targets[:, None])[:, 0], entropy(z)]
            wanted += [] if support is None else [entropy(z, support=support)]
            (slope,) = torch.autograd.grad(
                sum((g_.double() * w).sum() for g_, w in zip(given, wanted, strict=False)), leaf
            )
            errors = [(a.double() - b).abs().max().item() for a, b in zip(used, wanted, strict=True)]
            got = weight.grad.T.double()
            gradient = ((got - slope).norm() / slope.norm()).item()
            limit = 1e-4 if dtype == torch.float32 else 5e-3  # bfloat16 gradients are rounded once, to 8 bits
            fine = max(errors) < 1e-4 and gradient < limit
            worst = max(worst, max(errors))
            found.append(
                {
                    "dtype": str(dtype)[6:], "rule": repr(support), "errors": errors, "gradient": gradient, "ok": fine,
                    "seconds": round(time.time() - start, 2),
                }
            )  # fmt: skip
            say("ok  " if fine else "FAIL", found[-1])
            if left() < 5:
                break
    save("smoke", found)
    if not all(one["ok"] for one in found):
        sys.exit("smoke: some are wrong")


# ----------------------------------------------------------------------------------------------------------- 3. compile


GEOMETRIES = [(b, w) for b in (2048, 4096, 8192) for w in (4, 8, 16)]


def compile_() -> None:
    """Compile what the timings need into Triton's cache, one process per geometry: seconds instead of minutes."""
    code = (
        "import torch; from functools import partial; from aent.entropy import *;"
        "from aent_llm.head.common import Settings;"
        "from aent_llm.head.kernels import *; import sys; b, w = map(int, sys.argv[1:]);"
        f"V = {VOCAB}; d = '{DEVICE}'; raw = torch.randn(4, V, device=d).bfloat16();"
        "t = torch.zeros(4, dtype=torch.int64, device=d); s = torch.zeros(len(ROW_SUMS), 4, device=d);"
        "c = torch.zeros(4, 8, device=d); g = Geometry(block=b, warps=w);"
        "[row_sums(raw, t, s, Settings(r), geometry=g) for r in (None, DropLowest(0.33), TopK(100))];"
        "gradient_tile_(raw, t, c, 0, Settings(None), geometry=g);"
        "torch.cuda.is_available() and torch.cuda.synchronize()"
    )
    geometries = GEOMETRIES if not CPU else [(128, 4)]
    running = [subprocess.Popen([sys.executable, "-c", code, str(b), str(w)]) for b, w in geometries]
    say("compiled:", [one.wait() for one in running])


# ------------------------------------------------------------------------------------------------------ 4./6. the heads


def heads(name: str, sizes: list[tuple[int, int]], rounds: int) -> None:
    """``benchmarks.head_gpu``'s tables. The published clamp (12 ms of one core a row) up to 2,048 tokens alone."""
    import torch

    from benchmarks import head_gpu as g
    from benchmarks.head import Case

    everything, results, bandwidth = dict(g.LOSSES), {}, g._header(DEVICE)
    dtype = torch.float32 if CPU else torch.bfloat16
    took = 0.0
    for width, tokens in sizes:
        expected = took * tokens * (width + 500) * (0.4 if tokens > 8192 else 1.0)  # without the two slowest
        if left() < 10 + 1.3 * expected:
            say(f"skipped D = {width}, T = {tokens}: {left():.0f} s left, about {expected:.0f} s needed")
            continue
        start = time.time()
        g.LOSSES.clear()
        g.LOSSES.update(
            {k: v for k, v in everything.items() if k != g.PUBLISHED or (tokens <= 2048 and not _quick(name))}
        )
        if tokens > 8192:  # the two slowest, and the first to run out of memory
            for slow in ("ours on torch: + H~, drop .33", "dense autograd: H"):
                g.LOSSES.pop(slow, None)
        case = Case.random(VOCAB, width, tokens, device=DEVICE, dtype=dtype)
        found = g.measure(case, rounds=rounds)
        say(
            f"\nD = {width:,}, T = {tokens:,}, V = {VOCAB:,}, {dtype}, median of {rounds}, "
            f"{time.time() - start:.0f} s\n"
        )
        say(g._table(found, tokens * VOCAB * dtype.itemsize, bandwidth))
        found.setdefault(g.PUBLISHED, g.Measured(*4 * (math.nan,)))
        results[width, tokens] = found
        took = max(took, (time.time() - start) / (tokens * (width + 500)))
        save(name, {
            "bandwidth": bandwidth, "rounds": rounds,
            "cases": [{"D": w, "T": t, "heads": {k: v._asdict() for k, v in of.items()}}
                      for (w, t), of in results.items()],
            "targets": _verdicts(g, results),
        })  # fmt: skip
        del case
        gc.collect()
        if not CPU:
            torch.cuda.empty_cache()
    say("\ntargets, for an H200:")
    say("\n".join(_verdicts(g, results)))


def _quick(name: str) -> bool:
    return name == "quick"


def _verdicts(g, results) -> list[str]:
    try:
        return g.verdicts(results)
    except Exception as error:  # one T alone has no growth
        return [f"verdicts: {error!r}"]


# ----------------------------------------------------------------------------------------------------- 5. kernels alone


class _WithOptions:
    """A kernel launched with one more option (maxnreg), for as long as it stands in the module."""

    def __init__(self, kernel, **options):
        self.kernel, self.options = kernel, options

    def __getitem__(self, grid):
        return lambda *a, **k: self.kernel[grid](*a, **{**k, **self.options})


def kernels() -> None:
    """One pass over a tile by geometry, sample size and register cap; TRL's kernels on the same tile."""
    import torch

    from aent.entropy import DropLowest, Nucleus, TopK
    from aent_llm.head import kernels as k
    from aent_llm.head.common import Settings

    rows = 4 if CPU else 4096
    dtype = torch.bfloat16
    raw = (3 * torch.randn(rows, VOCAB, device=DEVICE)).to(dtype)
    spare = raw.clone()
    targets = torch.randint(VOCAB, (rows,), device=DEVICE)
    sums = torch.zeros(len(k.ROW_SUMS), rows, device=DEVICE)
    coefficients = torch.zeros(rows, 8, device=DEVICE)
    one_read = raw.numel() * 2
    found: list[dict] = []

    def note(what: str, ms: float, passes: float) -> None:
        found.append({"what": what, "ms": round(ms, 3), "passes": passes, "GBps": round(passes * one_read / ms / 1e6)})
        say(f"| {what} | {ms:.3f} | {passes:.2f} | {found[-1]['GBps']:,} |")
        save("kernels", {"rows": rows, "vocabulary": VOCAB, "table": found})

    def ours(geometry, support, label: str) -> None:
        with contextlib.suppress(_NoTime):
            ms = timed(partial(k.row_sums, raw, targets, sums, Settings(support), geometry=geometry))
            note(f"{label}, {support!r}", ms, sums[k.ROW_SUMS.index("reads")].mean().item())

    def timed(run) -> float:
        if left() < 8:
            raise _NoTime
        return median_ms(run, 5)

    say("| kernel | ms | reads and writes of the tile | GB/s |\n| --- | --- | --- | --- |")
    with contextlib.suppress(_NoTime):
        target = torch.empty_like(raw)
        note("copy", timed(lambda: target.copy_(raw)), 2)
        note("torch.amax (one read)", timed(lambda: raw.amax(-1)), 1)
        del target
    _trl_kernels(raw, spare, targets, timed, note)
    spare.copy_(raw)
    base = k.Geometry()
    for support in (None, DropLowest(0.33), TopK(100), Nucleus(0.9)):
        ours(base, support, "ours")
    with contextlib.suppress(_NoTime):
        run = partial(k.gradient_tile_, spare, targets, coefficients, 0, Settings(None), geometry=base)
        note("ours, gradient", timed(run), 2)
    for block, warps in GEOMETRIES if not CPU else [(128, 4)]:
        geometry = k.Geometry(block=block, warps=warps)
        if geometry == base:
            continue
        for support in (None, DropLowest(0.33)):
            ours(geometry, support, f"ours {block}/{warps}")
        with contextlib.suppress(_NoTime):
            run = partial(k.gradient_tile_, spare, targets, coefficients, 0, Settings(None), geometry=geometry)
            note(f"ours {block}/{warps}, gradient", timed(run), 2)
    for sample in (1024, 2048, 4096, 16_384) if not CPU else (64,):  # what the ranks cost, against the reads they save
        ours(k.Geometry(sample=sample), DropLowest(0.33), f"ours sample {sample}")
    ours(k.Geometry(sample=2**20), DropLowest(0.33), "ours without a sample")
    if not CPU:
        kernel = k._row_sums
        try:
            for cap in (64, 56, 48):  # 79 registers let 3 programs of 8 warps onto a multiprocessor
                k._row_sums = _WithOptions(kernel, maxnreg=cap)
                ours(base, DropLowest(0.33), f"ours maxnreg {cap}")
        except Exception as error:
            say("maxnreg:", repr(error)[:300])
        finally:
            k._row_sums = kernel
    for block, warps in ((16_384, 32), (16_384, 16)) if not CPU else ():  # 132 rows at a time are 40 MB: L2 holds them
        try:
            ours(k.Geometry(block=block, warps=warps), DropLowest(0.33), f"ours {block}/{warps}, L2")
        except Exception as error:
            say(block, warps, repr(error)[:300])


class _NoTime(Exception):
    pass


def _trl_kernels(raw, spare, targets, timed, note) -> None:
    if CPU:
        return
    import torch
    from trl.kernels import chunked_logprob as trl

    rows, columns = len(raw), 32_768
    stats = [torch.zeros(rows, device="cuda") for _ in range(7)]
    flags = {"HAS_ENTROPY": True, "HAS_LOG_SUM_SQ_PROBS": False, "HAS_MEAN_LOGITS": False, "HAS_IS_TOP1": False}
    scale = {"logit_scale": 1.0, "softcap": 1.0, "inv_t": 1 / 0.9, "HAS_SOFTCAP": False}
    pieces = [(s, min(s + columns, raw.shape[1])) for s in range(0, raw.shape[1], columns)]

    def forward():
        for start, end in pieces:
            trl._forward_kernel[(rows,)](
                raw[:, start:end], raw.stride(0), targets, *stats, start, end - start,
                BLOCK_SIZE=trl._BLOCK_SIZE, **flags, **scale,
            )  # fmt: skip

    def backward():
        for start, end in pieces:
            trl._backward_kernel[(rows, -(-(end - start) // trl._BLOCK_SIZE))](
                spare[:, start:end], raw.stride(0), targets, stats[1], stats[2], stats[3], stats[4], start, end - start,
                HAS_LOGPROB_GRAD=True, HAS_ENTROPY_GRAD=True, BLOCK_SIZE=trl._BLOCK_SIZE, **scale,
            )  # fmt: skip

    try:
        note("TRL, forward of H", timed(forward), 1)
        note("TRL, gradient", timed(backward), 2)
    except _NoTime:
        pass
    except Exception as error:
        say("TRL's kernels:", repr(error)[:300])


# ------------------------------------------------------------------------------------------------------ 7. tile budgets


def tiles() -> None:
    """The whole head by tile budget: fewer tiles, fewer passes over the float32 gradient of the weight."""
    import torch

    from aent.entropy import DropLowest
    from aent_llm.head.fused import fused_entropy_head
    from benchmarks.head import Case, Peak, trl_head

    found = []
    for width, tokens in SIZES[:2]:
        case = Case.random(VOCAB, width, tokens, device=DEVICE, dtype=torch.float32 if CPU else torch.bfloat16)

        def ours(budget, case=case):
            case.forget_gradients()
            out = fused_entropy_head(
                case.hidden, case.weight, None, case.targets, support=DropLowest(0.33), temperature=0.9,
                tile_bytes=budget,
            )  # fmt: skip
            (out.log_probs + 0.01 * out.clamped_entropy).mean().backward()

        def theirs(case=case):
            case.forget_gradients()
            trl_head(case).backward()

        runs = {"TRL": theirs}
        row = 2 * -(-VOCAB // 64) * 64
        for rows in (1408, 2048, 2816, 3456, 4096, 8192):
            runs[f"ours, {rows} rows"] = partial(ours, rows * row)
        for name, run in runs.items():
            if left() < 10:
                break
            run()
            with Peak(DEVICE) as peak:
                run()
                size = peak.bytes()
            ms = median_ms(run, 3)
            found.append({"D": width, "T": tokens, "head": name, "ms": round(ms, 2), "MiB": round(size / 2**20)})
            say(found[-1])
            save("tiles", found)
        del case
        gc.collect()


# -------------------------------------------------------------------------------------------------------------- 8. step


def step() -> None:
    """Time ``benchmarks.step`` on random weights, and note the dtype of the head's products (TRL enters autocast)."""
    from benchmarks import step as b

    seen: set[str] = set()
    sizes = os.environ.get(
        "GPU_CHECK_STEP",
        "--vocabulary 1000 --hidden 64 --layers 1 --completions 8 --tokens 4 --rounds 1"
        if CPU
        else "--completions 32 --tokens 256 --rounds 3",
    )
    text = io.StringIO()
    with contextlib.redirect_stdout(_Tee(text)), _watched(seen):
        b.main(["--random-model", "--device", DEVICE, *sizes.split()])
    save("step", {"arguments": sizes, "head dtypes": sorted(seen), "table": text.getvalue()})
    say("dtype of the head's products:", sorted(seen))


@contextlib.contextmanager
def _watched(seen: set):
    from aent_llm.head import fused as e

    kept = e._compute_dtype

    def watch(hidden):
        dtype = kept(hidden)
        seen.add(str(dtype))
        return dtype

    e._compute_dtype = watch
    try:
        yield
    finally:
        e._compute_dtype = kept


class _Tee(io.TextIOBase):
    def __init__(self, copy):
        self.copy, self.out = copy, sys.stdout

    def write(self, text):
        self.out.write(text)
        self.out.flush()
        return self.copy.write(text)


# ------------------------------------------------------------------------------------------------------------- 9. train


def _build_on_the_gpu() -> None:
    """``tiny.warmed_up`` works on the CPU, where 80 steps on 151,936 tokens take minutes: its tensors go to the GPU."""

    from aent_llm.data import tiny

    model, states, shares, loss = (
        tiny._model, tiny._answer_states, tiny.tail_shares, tiny.soft_loss,
    )  # fmt: skip
    tiny._model = lambda *a: model(*a).to(DEVICE)
    tiny._answer_states = lambda m, ids: states(m, ids.to(next(m.parameters()).device))
    tiny.tail_shares = lambda spec: shares(spec).to(DEVICE)
    tiny.soft_loss = lambda *a, tail, tail_mass: loss(*a, tail=tail.to(a[0].device), tail_mass=tail_mass)


def train() -> None:
    """The embedded task as the config gpu_aent has it, shortened, generation by transformers: there is no vLLM."""
    import torch

    from aent_llm.training import train as t

    os.environ.setdefault("AENT_CACHE", str(WORK / "cache"))
    _build_on_the_gpu()
    common = {
        "train.use_vllm": "false", "train.save_strategy": "no",
        "train.max_steps": os.environ.get("GPU_CHECK_TRAIN_STEPS", "2" if CPU else "40"),
        "evaluation.samples": "2", "evaluation.data.count": "16" if CPU else "200",
        "entropy.warmup_steps": "0",
    }  # fmt: skip
    if CPU:
        common |= {
            "model.tiny": "{vocabulary: 600, hidden: 32, intermediate: 32, layers: 1, "
            "warmup_steps: 30, habit_steps: 5}",
            "train.use_cpu": "true", "train.per_device_train_batch_size": "32",
        }  # fmt: skip
    runs = {
        "block": {},
        "no bonus": {"entropy.controller": "0.0"},
        "block, bf16 autocast": {"train.bf16": "true"},
        "block, drop .33, bf16": {"train.bf16": "true", "entropy.support": "{type: drop_lowest, share: 0.33}"},
        "block, torch engine": {"entropy.engine": "torch"},
    }
    found = {}
    for name, changes in runs.items():
        if left() < 25:
            say(f"skipped: {name}")
            continue
        output = WORK / "runs" / name.replace(" ", "_").replace(",", "").replace(".", "")
        arguments = ["--config", "gpu_aent", "--output", str(output)]
        settings = common | changes
        if name == "block, torch engine":
            settings["train.max_steps"] = "2" if CPU else "10"
        for key, value in settings.items():
            arguments += ["--set", f"{key}={value}"]
        start = time.time()
        if not CPU:
            torch.cuda.reset_peak_memory_stats()
        try:
            t.main(arguments)
        except Exception as error:
            import traceback

            traceback.print_exc()
            found[name] = {"error": repr(error)[:500]}
            save("train", found)
            continue
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((output / "summary.json").read_text())

        def last(key: str, rows=rows) -> float | None:
            values = [row[key] for row in rows if key in row]
            return round(statistics.mean(values[-5:]), 4) if values else None

        times = [row["step_time"] for row in rows if "step_time" in row]
        found[name] = {
            "seconds": round(time.time() - start, 1), "steps": len(rows),
            "step_time": round(statistics.median(times), 4) if times else None,
            "before": _score(summary["before"]), "after": _score(summary["after"]),
            "peak_MiB": None if CPU else round(torch.cuda.max_memory_allocated() / 2**20),
            **{key: last(key) for key in ("reward", "entropy/full", "entropy/clamped", "entropy/coef", "grad_norm")},
        }  # fmt: skip
        say(name, found[name])
        save("train", found)


def _score(result) -> object:
    """The means of an evaluation."""
    if not isinstance(result, dict):
        return result
    return {k: round(v["mean"], 4) for k, v in result.items() if isinstance(v, dict) and "mean" in v}


# -------------------------------------------------------------------------------------------------- 10. where time goes


def profile() -> None:
    """torch.profiler on one forward and backward pass, ours and TRL's: time by kernel, and a trace."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from aent.entropy import DropLowest
    from benchmarks.head import Case, fused, trl_head

    width, tokens = SIZES[0]
    case = Case.random(VOCAB, width, tokens, device=DEVICE, dtype=torch.float32 if CPU else torch.bfloat16)
    activities = [ProfilerActivity.CPU] + ([] if CPU else [ProfilerActivity.CUDA])
    sort, tables = "self_cpu_time_total" if CPU else "self_cuda_time_total", {}
    for name, loss in {"ours, drop .33": fused(DropLowest(0.33)), "TRL: H": trl_head}.items():
        for _ in range(2):
            case.forget_gradients()
            loss(case).backward()
        sync()
        case.forget_gradients()
        with profiler(activities=activities) as found:
            loss(case).backward()
            sync()
        tables[name] = found.key_averages().table(sort_by=sort, row_limit=14, max_name_column_width=60)
        say(f"\n{name}, D = {width}, T = {tokens}\n{tables[name]}")
        if name.startswith("ours"):
            found.export_chrome_trace(str(WORK / "trace.json"))
    save("profile", tables)


def one() -> None:
    """One launch of each kernel, for ncu."""
    import torch

    from aent.entropy import DropLowest
    from aent_llm.head import kernels as k
    from aent_llm.head.common import Settings

    rows = 4 if CPU else 1056
    raw = (3 * torch.randn(rows, VOCAB, device=DEVICE)).bfloat16()
    targets = torch.randint(VOCAB, (rows,), device=DEVICE)
    sums, coefficients = torch.zeros(len(k.ROW_SUMS), rows, device=DEVICE), torch.zeros(rows, 8, device=DEVICE)
    k.row_sums(raw, targets, sums, Settings(None))
    k.row_sums(raw, targets, sums, Settings(DropLowest(0.33)))
    k.gradient_tile_(raw, targets, coefficients, 0, Settings(None))
    sync()


# ---------------------------------------------------------------------------------------------------------- 11. summary


def summary() -> None:
    """summary.json and summary.md from what the steps left, and their exit codes."""

    def read(name: str):
        path = WORK / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    steps = []
    status = WORK / "steps.tsv"
    for line in status.read_text().splitlines() if status.is_file() else []:
        name, code, seconds = line.split("\t")
        steps.append({"step": name, "rc": int(code), "seconds": float(seconds)})
    found = {
        name: read(name) for name in ["env", "smoke", "quick", "kernels", "full", "tiles", "step", "train", "profile"]
    }
    tests = WORK / "tests.log"
    if tests.is_file():
        found["tests"] = [line for line in tests.read_text().splitlines() if line.strip()][-25:]
    lines = ["# GPU check", "", "| step | exit | s |", "| --- | --- | --- |"]
    lines += [f"| {s['step']} | {s['rc'] if s['rc'] != -1 else 'skipped'} | {s['seconds']:.0f} |" for s in steps]
    if found["env"]:
        lines += ["", "    " + json.dumps(found["env"])]
    if found["smoke"]:
        wrong = [one for one in found["smoke"] if not one["ok"]]
        lines += ["", f"smoke: {len(found['smoke']) - len(wrong)} of {len(found['smoke'])} right {wrong or ''}"]
    lines += ["", "tests: " + (found.get("tests") or ["not run"])[-1]]
    for name in ("quick", "full"):
        if not found[name]:
            continue
        lines += ["", f"## heads, {name}", "", "| D | T | head | forward ms | both ms | x TRL | x products | MiB |"]
        lines += ["| --- " * 8 + "|"]
        for case in found[name]["cases"]:
            trl, floor = (case["heads"][key]["whole"] for key in ("TRL: H", "matrix products alone"))
            for head, of in case["heads"].items():
                lines.append(
                    f"| {case['D']} | {case['T']} | {head} | {1e3 * of['forward']:.2f} | {1e3 * of['whole']:.2f} | "
                    f"{of['whole'] / trl:.3f} | {of['whole'] / floor:.3f} | {of['whole_bytes'] / 2**20:.0f} |"
                )
        lines += ["", *(f"- {line}" for line in found[name]["targets"])]
    if found["kernels"]:
        table = found["kernels"]
        lines += [
            "",
            f"## kernels on {table['rows']} rows of {table['vocabulary']}",
            "",
            "| kernel | ms | passes | GB/s |",
        ]
        lines += ["| --- " * 4 + "|"]
        lines += [f"| {o['what']} | {o['ms']} | {o['passes']:.2f} | {o['GBps']} |" for o in table["table"]]
    for name in ("tiles", "train"):
        if found[name]:
            entries = found[name].items() if isinstance(found[name], dict) else enumerate(found[name])
            lines += ["", f"## {name}", "", *(f"- {key}: {json.dumps(value)}" for key, value in entries)]
    if found["step"]:
        lines += ["", f"## step ({found['step']['arguments']}; head in {found['step']['head dtypes']})", ""]
        lines += [found["step"]["table"]]
    out = Path(os.environ.get("OUT") or WORK)
    (out / "summary.md").write_text("\n".join(lines) + "\n")
    (out / "summary.json").write_text(json.dumps({"steps": steps, **found}, indent=1) + "\n")
    say("\n".join(lines)[-11_000:])


if __name__ == "__main__":
    command = sys.argv[1]
    {
        "env": env, "smoke": smoke, "compile": compile_, "kernels": kernels, "tiles": tiles, "step": step,
        "train": train, "profile": profile, "one": one, "summary": summary,
        "quick": lambda: heads("quick", SIZES[:1], min(3, ROUNDS)),
        "full": lambda: heads("full", SIZES, ROUNDS),
    }[command]()  # fmt: skip
