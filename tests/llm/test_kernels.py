"""The Triton kernels against ``aent.entropy`` in float64: compiled on a GPU, interpreted where there is none.

Logits are given, not projected: hidden states are the identity, so every logit is exact in every dtype.
"""

import importlib
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

import small
from aent.entropy import DropLowest, Full, Nucleus, Support, TopK, Tsallis, entropy, entropy_gradient, support_weights
from aent_llm.head import fused, torch_engine, triton_engine
from aent_llm.head.common import Settings
from aent_llm.head.fused import HeadOutput, fused_entropy_head
from aent_llm.head.model import add_entropy_head
from aent_llm.head.triton_engine import why_not

kernels = pytest.importorskip("aent_llm.head.kernels")  # Triton has no wheel for this platform

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy, at NaN and infinities

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16]
CUTS: list[Support] = [DropLowest(0.33), DropLowest(0.8), TopK(1), TopK(5), Nucleus(0.7), Nucleus(0.97)]
SMALL = kernels.Geometry(block=32, sample=32, warps=1)  # many blocks and a sample even of short rows
ROWS, VOCABULARY = (3, 97) if DEVICE == "cuda" else (2, 67)  # the interpreter takes a second for three rows


@pytest.fixture(autouse=True, scope="module")
def language_is_patched_once() -> Iterator[None]:
    """The interpreter patches ``triton.language`` anew at every call inside a kernel: four fifths of its time."""
    if DEVICE == "cuda":
        yield
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch_language, scopes = interpreter._patch_lang, {}

    def patch_once(function: Any) -> Any:
        if function.__module__ not in scopes:
            scopes[function.__module__] = patch_language(function)
        return interpreter._LangPatchScope()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        yield
    for scope in reversed(scopes.values()):
        scope.restore()


def some_logits(
    rows: int, vocabulary: int, dtype: torch.dtype, *, seed: int = 0, coarse: bool = False, spread: float = 3.0
) -> Tensor:
    """``coarse`` ones lie on a grid of 1/2: ties everywhere."""
    raw = spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    return ((2 * raw).round() / 2 if coarse else raw).to(dtype)


def some_targets(rows: int, vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(1))


def scaled(raw: Tensor, transform: dict[str, Any]) -> Tensor:
    settings = Settings(None, **transform)
    z = raw.double() * settings.logit_scale
    return (z if settings.softcap is None else settings.softcap * torch.tanh(z / settings.softcap)) / (
        settings.temperature
    )


PLAIN: dict[str, Any] = {}
TRANSFORMS: list[dict[str, Any]] = [
    {"temperature": 0.6},
    {"logit_scale": 0.0625, "temperature": 3.0},
    {"softcap": 5.0},
    {"logit_scale": 1.7, "softcap": 4.0, "temperature": 0.8},
]


def row_sums(
    raw: Tensor,
    support: Support | None,
    *,
    transform: dict[str, Any] = PLAIN,
    diagnostics: bool = True,
    geometry: Any = SMALL,
    targets: Tensor | None = None,
) -> dict[str, Tensor]:
    """The kernel's numbers by name, on the CPU; poisoned before, so that one it forgets to write is seen."""
    rows, vocabulary = raw.shape
    targets = some_targets(rows, vocabulary) if targets is None else targets
    sums = torch.full((len(kernels.ROW_SUMS), rows), math.nan, device=DEVICE)
    kernels.row_sums(
        raw.to(DEVICE), targets.to(DEVICE), sums,
        Settings(support, diagnostics=diagnostics, **transform), geometry=geometry,
    )  # fmt: skip
    return dict(zip(kernels.ROW_SUMS, sums.cpu(), strict=True))


def weights_of(raw: Tensor, sums: dict[str, Tensor]) -> Tensor:
    x, threshold = raw.float(), sums["threshold"][:, None]
    return (x > threshold) + (x == threshold) * sums["share"][:, None]


def assert_close(got: Tensor, want: Tensor, name: str, *, atol: float = 3e-6, rtol: float = 3e-6) -> None:
    torch.testing.assert_close(got.double(), want, atol=atol, rtol=rtol, msg=lambda m: f"{name}: {m}")


def assert_sums(raw: Tensor, support: Support, sums: dict[str, Tensor], transform: dict[str, Any] = PLAIN) -> None:
    z, targets = scaled(raw, transform), some_targets(*raw.shape)
    p, full = z.softmax(-1), entropy(z)
    assert_close(sums["peak"], z.amax(-1), "peak")
    assert_close(sums["total"].log() - sums["mean"], full, "entropy")
    log_prob = z.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    assert_close(sums["target"] - sums["total"].log(), log_prob, "log p of the target", atol=1e-5)
    weights, g, clamped = support_weights(z, support), entropy_gradient(z), entropy_gradient(z, support=support)
    assert_close(weights_of(raw, sums), weights, "weights", atol=1e-6)
    assert_close(sums["kept"], weights.sum(-1), "kept")
    assert_close(sums["kept_total"].log() - sums["kept_mean"], entropy(z, support=support), "clamped entropy")
    assert_close(sums["dropped_total"] / sums["total"], ((1 - weights) * p).sum(-1), "dropped mass", atol=1e-12)
    assert_close(sums["prob_sq"], (p**2).sum(-1), "prob_sq")
    assert_close(sums["full_grad_sq"], (g**2).sum(-1), "full_grad_sq")
    assert_close(sums["clamped_grad_sq"], (clamped**2).sum(-1), "clamped_grad_sq")
    assert_close(sums["grad_dot"], (g * clamped).sum(-1), "grad_dot")


# ------------------------------------------------------------------------------------------------------- sums of a row


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("coarse", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("support", CUTS, ids=repr)
def test_sums_equal_the_definition(support: Support, coarse: bool, dtype: torch.dtype) -> None:
    raw = some_logits(ROWS, VOCABULARY, dtype, coarse=coarse)
    sums = row_sums(raw, support)
    if coarse and support == DropLowest(0.33):
        assert ((sums["share"] > 0) & (sums["share"] < 1)).any(), "no ties at the cut: the example tests nothing"
    assert_sums(raw, support, sums)


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 8, 9, 31, 33, 64, 301])
def test_rows_of_any_length(vocabulary: int) -> None:
    for dtype, support in ((torch.bfloat16, DropLowest(0.4)), (torch.float32, TopK(3)), (torch.bfloat16, Nucleus(0.9))):
        raw = some_logits(2, vocabulary, dtype, seed=vocabulary)
        assert_sums(raw, support, row_sums(raw, support))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("support", [DropLowest(0.33), TopK(5), Nucleus(0.7)], ids=repr)
def test_temperature_scale_and_softcap(support: Support, transform: dict[str, Any]) -> None:
    for dtype in DTYPES:
        raw = some_logits(ROWS, VOCABULARY, dtype)
        assert_sums(raw, support, row_sums(raw, support, transform=transform), transform)


def test_without_a_cut_only_what_was_asked_for_is_written() -> None:
    raw = some_logits(ROWS, VOCABULARY, torch.bfloat16)
    z, always, squares = raw.double(), {"peak", "total", "mean", "target", "reads"}, {"prob_sq", "full_grad_sq"}
    for diagnostics in (False, True):
        sums = row_sums(raw, None, diagnostics=diagnostics)
        assert {name for name, values in sums.items() if not values.isnan().any()} == (
            always | squares if diagnostics else always
        )
        assert_close(sums["total"].log() - sums["mean"], entropy(z), "entropy")
        assert (sums["reads"] == 1 + diagnostics).all()
    assert_close(sums["full_grad_sq"], (entropy_gradient(z) ** 2).sum(-1), "full_grad_sq")


LOGITS = st.one_of(
    st.floats(-40, 40, width=16),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-14, -(2.0**-14), 30.0, -math.inf]),
)


@given(
    st.lists(LOGITS, min_size=1, max_size=70),
    st.sampled_from([DropLowest(0.2), DropLowest(0.5), DropLowest(0.9), TopK(1), TopK(4), TopK(40)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=25)
def test_any_row_is_cut_exactly(row: list[float], support: Any, dtype: torch.dtype) -> None:
    """Both zeros, ties, -inf, numbers next to 0, one token: weights are the definition's."""
    raw = torch.tensor([row, row[::-1]]).to(dtype)
    if not torch.isfinite(raw).any():
        return
    sums, weights = row_sums(raw, support), support_weights(raw.double(), support)
    finite = raw.isfinite()  # those at -inf have no probability, whatever their weight
    assert_close(weights_of(raw, sums) * finite, weights * finite, "weights", atol=1e-6)
    assert (sums["kept"] == support.kept(len(row))).all()
    assert_close(sums["kept_total"].log() - sums["kept_mean"], entropy(raw.double(), support=support), "H~", atol=1e-5)
    assert (sums["reads"] <= (11 if dtype.itemsize == 2 else 16)).all()  # 1 + 3 by value + 6 or 11 by key + 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("support", [DropLowest(0.33), TopK(5), Nucleus(0.7)], ids=repr)
def test_extreme_rows(support: Support, dtype: torch.dtype) -> None:
    """Logits of 1e4, a probability of 1 to the last bit, equal logits, all but one masked, a step at zero."""
    peaked, masked = torch.full((41,), -60.0), torch.full((41,), -1e20)
    peaked[7], masked[7] = 30, 0.0
    step = torch.cat([torch.full((20,), -1e-30), torch.zeros(10), torch.full((11,), 1e-30)])
    large = 1e4 * torch.randn(41, generator=torch.Generator().manual_seed(0))
    raw = torch.stack([large, peaked, torch.zeros(41), masked, step]).to(dtype)
    sums = row_sums(raw, support)
    z = raw.double()
    weights = support_weights(z, support)
    assert_close(sums["total"].log() - sums["mean"], entropy(z), "entropy")
    assert_close(sums["kept_total"].log() - sums["kept_mean"], entropy(z, support=support), "clamped entropy")
    if not isinstance(support, Nucleus):  # the step is flat in probability: a nucleus may end anywhere on it
        assert_close(weights_of(raw, sums), weights, "weights", atol=1e-6)
    assert all(torch.isfinite(values).all() for values in sums.values())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("support", [None, DropLowest(0.33), Nucleus(0.7)], ids=repr)
def test_a_broken_row_is_seen_and_breaks_no_other(support: Support | None, poison: float) -> None:
    whole = row_sums(some_logits(3, VOCABULARY, torch.bfloat16), support, diagnostics=False)
    for place in (0, VOCABULARY - 1):
        raw = some_logits(3, VOCABULARY, torch.bfloat16)
        raw[1, place] = poison
        sums = row_sums(raw, support, diagnostics=False)
        assert torch.isnan(sums["total"]).tolist() == [False, True, False]
        for name, values in sums.items():
            assert torch.equal(values[::2], whole[name][::2]) or whole[name].isnan().all()


def test_the_vocabulary_of_a_language_model_takes_three_reads() -> None:
    """V = 151,936 logits in bfloat16: 38 blocks, a real sample, and shares that tie."""
    raw = some_logits(1, 151_936, torch.bfloat16)
    for support, most in ((DropLowest(0.33), 3), (TopK(100), 3), (Nucleus(0.9), 5)):
        sums = row_sums(raw, support, geometry=kernels.Geometry())
        assert sums["reads"].max() <= most
        assert_sums(raw, support, sums)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_that_misleads_costs_reads_and_nothing_else(dtype: torch.dtype) -> None:
    """The groups that a sample of 32 reads of 400 tokens hold the lowest logits of all."""
    raw = some_logits(2, 400, dtype)
    apart = 400 // 4 // 8 * 8
    for group in range(4):
        raw[:, group * apart : group * apart + 8] -= 100
    support = DropLowest(0.33)
    sums = row_sums(raw, support)
    assert_sums(raw, support, sums)
    honest = row_sums(some_logits(2, 400, dtype), support)
    assert sums["reads"].min() > honest["reads"].max()


# ----------------------------------------------------------------------------------------------------- gradient tile


@pytest.mark.parametrize("transform", [PLAIN, *TRANSFORMS], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_tile_equals_autograd(dtype: torch.dtype, transform: dict[str, Any]) -> None:
    """In pieces of the vocabulary, in place, against float64; bfloat16 rounds what is written."""
    raw, support, targets = some_logits(4, VOCABULARY, dtype), TopK(9), some_targets(4, VOCABULARY)
    leaf = raw.double().requires_grad_()
    z = scaled(leaf, transform)
    given = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    outputs = z.log_softmax(-1).gather(-1, targets[:, None])[:, 0], entropy(z), entropy(z, support=support)
    (want,) = torch.autograd.grad(sum((g * o).sum() for g, o in zip(given, outputs, strict=True)), leaf)
    got = fused_gradient(raw, support, targets, given.float(), transform)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7  # the interpreter cuts digits off where a GPU rounds
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=tolerance)


def fused_gradient(raw: Tensor, support: Support, targets: Tensor, given: Tensor, transform: dict[str, Any]) -> Tensor:
    """Gradient at the logits through the whole head: they are its weight, the hidden states are the identity."""
    hidden = torch.eye(len(raw), dtype=raw.dtype, device=DEVICE)
    weight = raw.T.contiguous().to(DEVICE).requires_grad_()
    output: Any = fused_entropy_head(
        hidden, weight, None, targets.to(DEVICE), support=support, engine="triton", tile_bytes=2 * 128 * 4,
        **transform,
    )  # fmt: skip
    torch.autograd.backward(output[:3], list(given.to(DEVICE)))
    assert weight.grad is not None
    return weight.grad.T.cpu()


# -------------------------------------------------------------------------------------------------------- whole head


def head_inputs(rows: int, vocabulary: int, dtype: torch.dtype, *, bias: bool) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(3)
    shapes = (rows, 5), (vocabulary, 5), (vocabulary,)
    hidden, weight, offset = (torch.randn(*shape, generator=g).to(DEVICE, dtype).requires_grad_() for shape in shapes)
    return hidden, weight, offset if bias else None, some_targets(rows, vocabulary).to(DEVICE)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("support", [None, Full(), *CUTS], ids=repr)
def test_the_engines_agree(support: Support | None, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, gradients of hidden states, weight and bias, diagnostics; rows and vocabulary in several tiles."""
    monkeypatch.setattr(triton_engine, "_PIECE", 32)
    inputs = head_inputs(6, VOCABULARY, torch.float32, bias=bias)
    results = []
    for engine in ("torch", "triton"):
        output: Any = fused_entropy_head(
            *inputs, support=support, temperature=0.7, diagnostics=support is not None, tile_bytes=3 * 128 * 4,
            engine=engine,
        )  # fmt: skip
        loss = sum((i + 1) * values.sum() for i, values in enumerate(output[:3]) if values is not None)
        leaves = [leaf for leaf in inputs[:3] if leaf is not None]
        results.append((output, torch.autograd.grad(loss, leaves)))
    (ours, ours_grads), (theirs, their_grads) = results
    for name, got, want in zip(HeadOutput._fields, theirs, ours, strict=True):
        assert (got is None) == (want is None), name
        if got is not None:
            torch.testing.assert_close(got, want, atol=3e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    for got, want in zip(their_grads, ours_grads, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("wanted", range(3))
def test_one_output_in_the_loss_is_enough(wanted: int) -> None:
    inputs = head_inputs(4, 61, torch.bfloat16, bias=False)
    grads = []
    for engine in ("torch", "triton"):
        output: Any = fused_entropy_head(*inputs, support=TopK(7), engine=engine)
        grads.append(torch.autograd.grad(output[wanted].sum(), inputs[:2]))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, atol=0.02 * want.abs().max().item(), rtol=0.02)


def test_masks_and_no_token_at_all() -> None:
    hidden, weight, bias, targets = head_inputs(3, 37, torch.float32, bias=True)
    masked = bias.detach().clone()
    masked[:20] = -math.inf
    targets = torch.tensor([3, 25, 36], device=DEVICE)
    results: Any = [
        fused_entropy_head(hidden, weight, masked, targets, support=DropLowest(0.2), diagnostics=True, engine=engine)
        for engine in ("torch", "triton")
    ]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=3e-6, rtol=1e-5)
    assert results[1].log_probs[0] == -math.inf
    nothing: Any = fused_entropy_head(
        hidden, weight, torch.full_like(bias, -math.inf), targets, support=TopK(2), engine="triton"
    )
    assert all(values.isnan().all() for values in nothing[:3])
    empty: Any = fused_entropy_head(hidden[:0], weight, bias, targets[:0], support=TopK(2), engine="triton")
    empty.log_probs.sum().backward()
    assert not weight.grad.any()


def test_a_model_runs_on_the_engine_it_was_given() -> None:
    """The same model and batch on both: the fields a trainer reads, and every parameter's gradient."""
    fields: dict[str, Any] = {}
    for engine in ("torch", "triton"):
        model = small.model().to(DEVICE)
        add_fused_lm_head(model)
        add_entropy_head(model, temperature=0.8, support=TopK(9), engine=engine)
        ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0)).to(DEVICE)
        output = model(input_ids=ids, labels=ids, fused_lm_head=True, entropy_diagnostics=True)
        (output.log_probs + output.clamped_entropy).sum().backward()
        grads = {name: weight.grad for name, weight in model.named_parameters()}
        fields[engine] = {"H": output.entropy, "H~": output.clamped_entropy, "dot": output.grad_dot, **grads}
    assert fields["torch"].keys() == fields["triton"].keys()
    for name, want in fields["torch"].items():
        torch.testing.assert_close(
            fields["triton"][name], want, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.skipif(DEVICE == "cpu", reason="compares what the GPU's matrix products round")
def test_both_passes_see_the_same_logits() -> None:
    """A forward tile is made of the backward pass's pieces: to the last bit, or a logit could change sides of a cut."""
    g = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(256, 1536, generator=g, device=DEVICE).bfloat16()
    weight = torch.randn(151_936, 1536, generator=g, device=DEVICE).bfloat16()
    whole, piece = hidden.new_empty(256, 151_936), hidden.new_empty(256, triton_engine._PIECE)
    for start in range(0, 151_936, triton_engine._PIECE):
        columns = slice(start, min(start + triton_engine._PIECE, 151_936))
        torch.mm(hidden, weight[columns].t(), out=whole[:, columns])
        again = torch.mm(hidden, weight[columns].t(), out=piece[:, : columns.stop - columns.start])
        assert torch.equal(whole[:, columns], again)


# ------------------------------------------------------------------------------------------------------- machine code


@pytest.mark.parametrize("capability", [pytest.param("80", marks=pytest.mark.slow), "90"])
def test_the_kernels_compile_without_a_gpu(capability: str) -> None:
    """What the interpreter lets pass, a compiler may not. No spills on Hopper; fewer instructions a logit than TRL."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernel_code", "--capability", capability]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    rows = [line.strip("|").split("|") for line in result.stdout.splitlines() if line.startswith(("| ours", "| TRL"))]
    code = {name.strip(): (int(spills), [float(x) for x in reads.split("+")]) for name, _, spills, reads in rows}
    assert len(code) == 7
    assert [len(code[f"ours: {name}"][1]) for name in ("H", "H~ by count", "H~ by mass", "gradient")] == [1, 3, 3, 1]
    if capability == "90":
        assert all(spills == 0 for spills, _ in code.values())
        assert code["ours: H"][1] < code["TRL: H"][1]
        assert code["ours: gradient"][1] < code["TRL: gradient"][1]


# ------------------------------------------------------------------------------------------------------ which engine


def asked(**changes: Any) -> Settings:
    return Settings(DropLowest(0.3), 1.0, 1.0, None, False, 2**20, torch.bfloat16)._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"compute_dtype": torch.float64}, "float64"),
        ({"support": Tsallis()}, "Tsallis"),
        ({"logit_scale": -1.0}, "order of the logits"),
    ],
)
def test_what_the_kernels_cannot_do_falls_back_to_torch_with_one_warning(
    changes: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    fused._announce.cache_clear()
    cuda, wish = torch.device("cuda"), asked(**changes)
    with caplog.at_level(logging.INFO, "aent_llm"):
        for _ in range(3):
            assert fused._chosen("auto", cuda, 100, wish) is torch_engine
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert says in record.getMessage()
    with pytest.raises(ValueError, match=says):
        fused._chosen("triton", cuda, 100, wish)


def test_a_gpu_that_can_gets_the_kernels_and_one_that_cannot_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fused._announce.cache_clear()
    cuda = torch.device("cuda")
    with caplog.at_level(logging.INFO, "aent_llm"):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        assert fused._chosen("auto", cuda, 100, asked()) is triton_engine
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
        assert fused._chosen("auto", cuda, 100, asked()) is torch_engine
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "Triton kernels: torch.bfloat16 on cuda" in caplog.messages[0]
    monkeypatch.setattr(triton_engine, "_INSTALLED", False)
    assert why_not(cuda, asked(), 100) == "Triton is not installed"


def test_without_triton_everything_else_imports_and_runs() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from aent.entropy import TopK
from aent_llm.head import fused, triton_engine
from aent_llm.training import trainer
from benchmarks import head, head_gpu, kernel_code, step
output = fused.fused_entropy_head(torch.eye(2), torch.eye(2), None, torch.tensor([0, 1]), support=TopK(1))
assert output.clamped_entropy.tolist() == [0.0, 0.0]
try:
    fused.fused_entropy_head(
        torch.eye(2), torch.eye(2), None, torch.tensor([0, 1]), support=TopK(1), engine="triton"
    )
except ValueError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Triton is not installed" in result.stdout


def test_a_cpu_runs_torch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    fused._announce.cache_clear()
    with caplog.at_level(logging.INFO, "aent_llm"):
        assert fused._chosen("auto", torch.device("cpu"), 100, asked()) is torch_engine
    assert caplog.messages == ["The fused entropy head runs on torch: the device is a CPU."]
    assert "fewer than 16,777,216" in str(why_not(torch.device("cpu"), asked(), 2**24))
    assert "'mps'" in str(why_not(torch.device("mps"), asked(), 100))
    with pytest.raises(ValueError, match="expected one of auto, triton, torch"):
        fused_entropy_head(*head_inputs(2, 9, torch.float32, bias=False), support=None, engine="cuda")  # type: ignore[arg-type]
