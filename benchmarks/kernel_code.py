"""What the Triton kernels compile to, beside TRL's: read from the machine code, without a GPU.

    python -m benchmarks.kernel_code [--capability 90]

Instructions per logit are those of a loop's body over the logits that a thread handles in it. With four schedulers a
Hopper multiprocessor issues at most four warp instructions a clock, which is 132 * 4 * 32 per clock on an H200 (132 of
them); at 1.7 GHz and 4.8 TB/s a read of bfloat16 logits is bound by memory up to about 12 instructions per logit.
Beyond registers, spills and instructions this knows nothing of speed: that is what ``make bench-gpu`` measures.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aent import cli

__all__ = ["Code", "compile_all", "main"]

_POINTERS = {"raw_": "*bf16", "sums_": "*fp32", "targets_": "*i64", "coefficients_": "*fp32"}
_POINTERS |= {"mm_ptr": "*bf16", "targets_ptr": "*i64"}  # TRL's
_FLOATS = ("a", "c", "wanted", "least", "logit_scale", "softcap", "inv_t")
_ALIGNED = ("raw_stride", "mm_stride", "vocabulary", "width", "first", "vocab_start", "n_cols")  # multiples of 16


class Code(NamedTuple):
    """One compiled kernel."""

    name: str
    registers: int
    spilled: int  # loads and stores of spilled registers
    loops: list[float]  # instructions per logit of each loop over a row, in the order of the code
    straight: float  # instructions per logit of the whole, for a kernel without a loop


def compile_all(capability: int = 90) -> list[Code]:
    """Compile our kernels and TRL's for a vocabulary of a multiple of 16 in bfloat16."""
    from trl.kernels import chunked_logprob as trl

    from aent_llm.head import kernels

    geometry = kernels.Geometry()
    sizes: dict[str, Any] = {"SOFTCAP": False, "BLOCK": geometry.block}
    bfloat16 = {"BITS": 16, "TOP": kernels._INFINITY[torch.bfloat16]}
    wanted = {
        "ours: H": (0, 0, False),
        "ours: H~ by count": (1, geometry.sample, False),
        "ours: H~ by count, diagnostics": (1, geometry.sample, True),
        "ours: H~ by mass": (2, 0, False),
    }
    codes = []
    for name, (rule, sample, diagnostics) in wanted.items():
        options = {"RULE": rule, "SAMPLE": sample, "DIAGNOSTICS": diagnostics, **bfloat16, **sizes}
        codes.append(_compiled(name, kernels._row_sums, options, geometry.block, geometry.warps, capability))
    codes.append(_compiled("ours: gradient", kernels._gradient, sizes, geometry.block, geometry.warps, capability))
    outputs: dict[str, Any] = {
        "HAS_ENTROPY": True,
        "HAS_LOG_SUM_SQ_PROBS": False,
        "HAS_MEAN_LOGITS": False,
        "HAS_IS_TOP1": False,
    }
    block = {"HAS_SOFTCAP": False, "BLOCK_SIZE": trl._BLOCK_SIZE}
    codes.append(_compiled("TRL: H", trl._forward_kernel, outputs | block, trl._BLOCK_SIZE, 4, capability))
    gradients = {"HAS_LOGPROB_GRAD": True, "HAS_ENTROPY_GRAD": True, **block}
    codes.append(_compiled("TRL: gradient", trl._backward_kernel, gradients, trl._BLOCK_SIZE, 4, capability))
    return codes


def _compiled(name: str, kernel: Any, options: dict[str, Any], block: int, warps: int, capability: int) -> Code:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    aligned = [i for i, arg in enumerate(names) if arg in _ALIGNED or arg.endswith(("_", "_ptr"))]
    source = ASTSource(
        fn=kernel,
        signature={arg: "constexpr" if arg in options else _type(arg) for arg in names},
        constexprs={(names.index(arg),): value for arg, value in options.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    usage, listing = _disassembled(binary.asm["cubin"], Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", listing)]
    per_thread = block / (32 * warps)
    return Code(
        name,
        int(re.findall(r"REG:(\d+)", usage)[0]),
        sum(bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in code),
        [length / per_thread for length in _row_loops(code)],
        len(code) / per_thread,
    )


def _type(arg: str) -> str:
    if arg in _FLOATS:
        return "fp32"
    return _POINTERS.get(arg, "*fp32" if arg.endswith("_ptr") else "i32")


def _disassembled(cubin: bytes, tool: Path) -> tuple[str, str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, listing = (
            subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout
            for what in ("-res-usage", "-sass")
        )
        return usage, listing


def _row_loops(code: list[tuple[int, str]]) -> list[int]:
    """Lengths of the innermost loops that read 16 bytes at a time: those over a row."""
    loops = []
    for end, text in code:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < end:
            loops.append((int(jump[1], 16), end))
    bodies = []
    for start, end in loops:
        holds_another = any(start <= a and b <= end and (a, b) != (start, end) for a, b in loops)
        body = [text for at, text in code if start <= at <= end]
        if not holds_another and any("LDG.E.128" in text for text in body):
            bodies.append(len(body))
    return bodies


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = cli.Parser(prog="python -m benchmarks.kernel_code", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--capability", type=cli.whole_number(1), default=90, help="of the GPU: 80, 90, 100 ...")
    capability = parser.parse_args(arguments).capability
    if os.environ.pop("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set: interpreted kernels are not compiled; unset it")
    import triton

    print(f"Triton {triton.__version__}, compute capability {capability / 10:.1f}, bfloat16\n")
    print("| kernel | registers | spills | instructions per logit, read by read |\n| --- | --- | --- | --- |")
    for code in compile_all(capability):
        reads = " + ".join(f"{length:.1f}" for length in code.loops or [code.straight])
        print(f"| {code.name} | {code.registers} | {code.spilled} | {reads} |")


if __name__ == "__main__":
    raise SystemExit(cli.run("benchmarks.kernel_code", main, extra="llm"))
