"""The fused head against ``aent.entropy`` through dense autograd, brute force, and TRL's head inside real models."""

import inspect
import math
import re
from dataclasses import dataclass, fields
from typing import Any, cast

import pytest
import torch
import transformers
import trl.trainer.utils as trl_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from aent.entropy import (
    DropLowest,
    Full,
    Nucleus,
    Support,
    TopK,
    Tsallis,
    entropy,
    entropy_gradient,
    entropy_split,
    support_weights,
)
from aent_llm.head.fused import HeadOutput, fused_entropy_head
from aent_llm.head.model import EntropyOutput, add_entropy_head, check_scalable
from benchmarks import head


@dataclass(frozen=True)
class BelowMean:
    """A rule of a user's own, at odds with every assumption: it drops the top and weighs the rest 0.5 or 1."""

    def weights(self, logits: Any) -> Any:
        below = (logits < logits.mean(-1, keepdim=True)).to(logits.dtype)
        return below * (0.5 + 0.5 * (logits < logits.mean(-1, keepdim=True) - 1).to(logits.dtype))


SUPPORTS: list[Support] = [
    Full(), DropLowest(0.0), DropLowest(0.33), DropLowest(0.95), TopK(1), TopK(3), TopK(10**6),
    Nucleus(0.5), Nucleus(0.97), Nucleus(1.0), Tsallis(), BelowMean(),
]  # fmt: skip
CUTS: list[Support] = [DropLowest(0.33), DropLowest(0.8), TopK(1), TopK(5), Nucleus(0.7), Tsallis(), BelowMean()]
Inputs = tuple[Any, ...]  # hidden, weight, bias or None, targets


def fused(*given: Any, **options: Any) -> Any:
    """Without the type checker's doubts about the fields that were not asked for."""
    return fused_entropy_head(*given, **options)


def inputs(rows: int, width: int, vocabulary: int, *, seed: int = 0, coarse: bool = False, bias: bool = True) -> Inputs:
    """float64 leaves; ``coarse`` ones give logits on a grid of 1/4, without any rounding: ties everywhere."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        if coarse:
            return (torch.randint(-2, 3, shape, generator=g).double() / 2).requires_grad_()
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    targets = torch.randint(vocabulary, (rows,), generator=g)
    return draw(rows, width), draw(vocabulary, width), draw(vocabulary) if bias else None, targets


def dense_logits(
    given: Inputs, temperature: float = 1.0, logit_scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    hidden, weight, bias, _ = given
    z = (hidden @ weight.T if bias is None else hidden @ weight.T + bias) * logit_scale
    return (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature


def dense(z: Tensor, targets: Tensor, support: Support) -> tuple[Tensor, Tensor, Tensor]:
    log_probs = torch.log_softmax(z, -1).gather(-1, targets[:, None])[:, 0]
    return log_probs, entropy(z), entropy(z, support=support)


def gradients(outputs: Any, given: Inputs) -> list[Tensor]:
    """Of a random mix of the three outputs, so that none can hide behind another."""
    stacked = torch.stack(list(outputs[:3]))
    mix = torch.randn(stacked.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(stacked.dtype)
    return list(torch.autograd.grad((stacked * mix).sum(), [x for x in given[:3] if x is not None], retain_graph=True))


def assert_same(
    given: Inputs, support: Support, *, atol: float = 1e-11, tile_bytes: int | None = None, **transform: Any
):
    output = fused(*given, support=support, tile_bytes=tile_bytes, **transform)
    expected = dense(dense_logits(given, **transform), given[3], support)
    for name, got, want in zip(HeadOutput._fields, output, expected, strict=False):
        torch.testing.assert_close(got, want, atol=atol, rtol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
    for got, want in zip(gradients(output, given), gradients(expected, given), strict=True):
        torch.testing.assert_close(got, want, atol=atol, rtol=1e-9)
    return output


# ------------------------------------------------------------------------------------------- equality with aent.entropy


@pytest.mark.parametrize("support", SUPPORTS, ids=repr)
@pytest.mark.parametrize("vocabulary", [1, 7, 97, 1009])
def test_equals_dense_autograd(support: Support, vocabulary: int) -> None:
    assert_same(inputs(6, 4, vocabulary), support)


@pytest.mark.parametrize("support", SUPPORTS, ids=repr)
@pytest.mark.parametrize("vocabulary", [7, 97])
def test_ties_share_the_cut(support: Support, vocabulary: int) -> None:
    given = inputs(12, 2, vocabulary, coarse=True)
    weights = support_weights(dense_logits(given).detach(), support)
    if vocabulary == 97 and support in (DropLowest(0.33), TopK(3), Nucleus(0.5)):
        assert ((weights > 0) & (weights < 1)).any(), "no ties at the cut: the example tests nothing"
    output = assert_same(given, support)
    torch.testing.assert_close(output.kept, weights.sum(-1))


@pytest.mark.parametrize("support", [Full(), DropLowest(0.4), TopK(2), Nucleus(0.8), Tsallis(), BelowMean()], ids=repr)
def test_gradcheck(support: Support) -> None:
    hidden, weight, bias, targets = inputs(3, 2, 7)

    def head(*leaves: Tensor) -> tuple[Tensor, ...]:
        return fused(*leaves, targets, support=support, temperature=0.7, softcap=5.0, logit_scale=0.8)[:3]

    assert torch.autograd.gradcheck(head, (hidden, weight, bias))


@pytest.mark.parametrize("support", CUTS, ids=repr)
@pytest.mark.parametrize(
    "transform",
    [
        {"temperature": 0.6},
        {"temperature": 3.0, "logit_scale": 0.0625},
        {"softcap": 1.5},
        {"softcap": 2.0, "logit_scale": 1.7, "temperature": 0.8},
    ],
    ids=str,
)
def test_temperature_scale_and_softcap(support: Support, transform: dict[str, Any]) -> None:
    assert_same(inputs(5, 4, 53), support, **transform)


@pytest.mark.parametrize("support", CUTS, ids=repr)
def test_every_tile_size_gives_the_same(support: Support) -> None:
    given = inputs(13, 4, 97)
    for tile_bytes in (1, 97 * 8 * 5, 97 * 8 * 9, 97 * 8 * 21, 2**30):
        assert_same(given, support, tile_bytes=tile_bytes)


def test_no_bias_one_token_and_each_gradient_alone() -> None:
    given = inputs(1, 3, 11, bias=False)
    for wanted in range(3):
        output = fused(*given, support=TopK(4))[wanted]
        expected = dense(dense_logits(given), given[3], TopK(4))[wanted]
        for leaf in given[:2]:  # one at a time: the other product is left out
            assert leaf is not None
            (got,) = torch.autograd.grad(output.sum(), leaf, retain_graph=True)
            (want,) = torch.autograd.grad(expected.sum(), leaf, retain_graph=True)
            torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)


def test_no_support_gives_no_clamped_numbers() -> None:
    given = inputs(4, 3, 11)
    output = fused(*given, support=None)
    log_probs, full, _ = dense(dense_logits(given), given[3], Full())
    torch.testing.assert_close(output.log_probs, log_probs)
    torch.testing.assert_close(output.entropy, full)
    assert output[2:] == (None,) * 7


def test_tsallis_by_hand() -> None:
    """p = (1/2, 1/4, 1/4): sum p^2 = 3/8, entropy 5/16, gradient -p (p - 3/8) = (-1, 1/2, 1/2) / 16."""
    z = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log().requires_grad_()
    output = fused(z, torch.eye(3).double(), None, torch.tensor([0]), support=Tsallis(), diagnostics=True)
    assert output.clamped_entropy.item() == pytest.approx(5 / 16, abs=1e-15)
    assert (output.dropped_mass.item(), output.kept.item()) == (0.0, 3.0)
    (gradient,) = torch.autograd.grad(output.clamped_entropy.sum(), z)
    assert gradient[0].tolist() == pytest.approx([-1 / 16, 1 / 32, 1 / 32], abs=1e-15)
    assert output.clamped_grad_sq.item() == pytest.approx(6 / 1024, abs=1e-15)
    assert output.entropy.item() == pytest.approx(1.5 * math.log(2), abs=1e-15)  # Shannon's stays beside it


def test_full_support_returns_the_entropy_itself() -> None:
    output = fused(*inputs(4, 3, 11), support=Full(), diagnostics=True)
    assert output.clamped_entropy is output.entropy
    assert output.kept.tolist() == [11.0] * 4
    assert output.dropped_mass.tolist() == [0.0] * 4
    assert output.clamped_grad_sq is output.full_grad_sq is output.grad_dot
    assert not output.kept.requires_grad
    assert not output.dropped_mass.requires_grad


@given(
    st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 60), st.booleans(),
    st.sampled_from([rule for rule in CUTS[:-1] if rule != Tsallis()]),  # the chain rule is Shannon's
    st.sampled_from([0.1, 1.0, 30.0]), st.integers(1, 4000),
)  # fmt: skip
@settings(max_examples=40)
def test_properties(
    seed: int, rows: int, vocabulary: int, coarse: bool, support: Support, size: float, tile_bytes: int
) -> None:
    hidden, *rest = inputs(rows, 2, vocabulary, seed=seed, coarse=coarse)
    given = (hidden.detach().mul(size).requires_grad_(), *rest)
    output = assert_same(given, support, atol=1e-9, tile_bytes=tile_bytes)
    clamped, dropped = output.clamped_entropy.detach(), output.dropped_mass
    assert (clamped >= 0).all()
    assert (clamped <= output.kept.log() + 1e-9).all()
    parts = entropy_split(dense_logits(given).detach(), support)
    torch.testing.assert_close(dropped, parts.dropped_mass, atol=1e-11, rtol=1e-9)
    chain = parts.binary + (1 - dropped) * clamped + dropped * parts.tail
    torch.testing.assert_close(output.entropy.detach(), chain, atol=1e-9, rtol=1e-9)


# --------------------------------------------------------------------------------------------------- at the edges


@pytest.mark.parametrize("support", CUTS, ids=repr)
def test_extreme_rows(support: Support) -> None:
    """Logits of 1e4, a probability of 1 to the last bit, equal rows, equal logits: logits are the weight."""
    g = torch.Generator().manual_seed(3)
    peaked = torch.full((41,), -60.0, dtype=torch.float64)
    peaked[7] = 30
    rows = [1e4 * torch.randn(41, generator=g, dtype=torch.float64), peaked, torch.zeros(41, dtype=torch.float64)]
    logits = torch.stack([*rows, peaked, peaked + 1e-9 * torch.arange(41)])
    given = (torch.eye(5, dtype=torch.float64).requires_grad_(), logits.T.clone().requires_grad_(), None)
    output = assert_same((*given, torch.tensor([0, 7, 3, 7, 7])), support)
    for values in output[:3]:
        assert values[1].item() == values[3].item()


@pytest.mark.parametrize("support", CUTS[:-1], ids=repr)
def test_float32_keeps_its_digits_at_logits_of_ten_thousand(support: Support) -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0)) + 1e4
    output = fused(torch.eye(3), logits.T, None, torch.tensor([0, 1, 2]), support=support)
    for got, want in zip(output[:3], dense(logits.double(), torch.tensor([0, 1, 2]), support), strict=True):
        torch.testing.assert_close(got.double(), want, atol=3e-6, rtol=1e-6)


@pytest.mark.parametrize("support", CUTS[:-1], ids=repr)
@pytest.mark.parametrize("masked", [1, 20, 36])
def test_masked_vocabulary(support: Support, masked: int) -> None:
    hidden, weight, bias, targets = inputs(6, 3, 37)
    bias = bias.detach().clone()
    bias[:masked] = -math.inf
    given = (hidden, weight, bias.requires_grad_(), targets.clamp(min=masked))
    output = assert_same(given, support)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(output, given))
    with_squares = fused(*given, support=support, diagnostics=True)
    assert all(torch.isfinite(values).all() for values in with_squares)


def test_a_rule_that_keeps_only_masked_tokens_has_no_entropy() -> None:
    hidden, weight, bias, targets = inputs(4, 3, 9)
    bias = bias.detach().clone()
    bias[:4] = -math.inf

    @dataclass(frozen=True)
    class First:
        def weights(self, logits: Any) -> Any:
            return (torch.arange(9) < 4).to(logits.dtype).expand_as(logits)

    given = (hidden, weight, bias, targets)
    output = fused(*given, support=First(), diagnostics=True)
    assert output.clamped_entropy.tolist() == entropy(dense_logits(given), support=First()).tolist() == [0.0] * 4
    assert output.dropped_mass.tolist() == [1.0] * 4
    assert output.clamped_grad_sq.tolist() == output.grad_dot.tolist() == [0.0] * 4
    (gradient,) = torch.autograd.grad(output.clamped_entropy.sum(), hidden)
    assert not gradient.any()


def test_a_masked_target_has_no_log_probability_and_a_masked_row_nothing() -> None:
    hidden, weight, bias, _ = inputs(2, 3, 5)
    masked = bias.detach().clone()
    masked[2] = -math.inf
    output = fused(hidden, weight, masked, torch.tensor([2, 1]), support=TopK(2))
    assert output.log_probs[0] == -math.inf
    assert torch.isfinite(output.log_probs[1])
    nothing = fused(hidden, weight, torch.full((5,), -math.inf).double(), torch.tensor([2, 1]), support=TopK(2))
    assert all(torch.isnan(values).all() for values in nothing[:3])


@pytest.mark.parametrize("support", [*CUTS[:-1], Full(), None], ids=repr)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_row_is_nan_and_breaks_no_other(support: Support | None, poison: float) -> None:
    hidden, weight, bias, targets = inputs(5, 3, 29)
    broken = hidden.detach().clone()
    broken[2, 1] = poison
    got = fused(broken, weight, bias, targets, support=support)
    want = fused(hidden, weight, bias, targets, support=support)
    for values, right in zip(got[:3], want[:3], strict=True):
        if values is not None and right is not None:
            assert torch.isnan(values).tolist() == [False, False, True, False, False]
            torch.testing.assert_close(values[[0, 1, 3, 4]], right[[0, 1, 3, 4]])


@pytest.mark.parametrize("support", [None, *SUPPORTS[:3], Nucleus(0.5)], ids=repr)
def test_no_token_to_score(support: Support | None) -> None:
    given = inputs(0, 3, 11)
    output = fused(*given, support=support, diagnostics=support is not None)
    assert all(values is None or values.shape == (0,) for values in output)
    assert (output.dropped_mass is None) == (support is None)
    output.log_probs.sum().backward()
    assert given[1].grad is not None
    assert not given[1].grad.any()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"support": DropLowest}, "support must be a rule"),
        ({"support": None, "diagnostics": True}, "pass a support"),
        ({"tile_bytes": 0}, "tile_bytes"),
        ({"targets": torch.zeros(2, dtype=torch.long)}, "expected hidden"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], says: str) -> None:
    hidden, weight, bias, targets = inputs(3, 2, 5)
    arguments = {"targets": targets, "support": TopK(2), **wrong}
    with pytest.raises(ValueError, match=says):
        fused(hidden, weight, bias, **arguments)


# ----------------------------------------------------------------------------------------------------- diagnostics


@pytest.mark.parametrize("coarse", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("support", [*SUPPORTS, DropLowest(0.5)], ids=repr)
def test_diagnostics_by_brute_force(support: Support, coarse: bool) -> None:
    given = inputs(8, 3, 41, coarse=coarse)
    output = fused(*given, support=support, temperature=0.5, diagnostics=True, tile_bytes=41 * 8 * 9)
    z = dense_logits(given, temperature=0.5).detach()
    p, weights = z.softmax(-1), support_weights(z, support)
    g, clamped = entropy_gradient(z), entropy_gradient(z, support=support)
    expected = {
        "dropped_mass": ((1 - weights) * p).sum(-1), "kept": weights.sum(-1), "prob_sq": (p**2).sum(-1),
        "full_grad_sq": (g**2).sum(-1), "clamped_grad_sq": (clamped**2).sum(-1), "grad_dot": (g * clamped).sum(-1),
    }  # fmt: skip
    for name, want in expected.items():
        got = getattr(output, name)
        assert not got.requires_grad
        torch.testing.assert_close(got, want, atol=1e-13, rtol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    plain = fused(*given, support=support, temperature=0.5)
    torch.testing.assert_close(output.clamped_entropy, plain.clamped_entropy)
    assert plain.grad_dot is None


# ------------------------------------------------------------------------------------------------------ short floats


@pytest.mark.parametrize("support", [Full(), *CUTS[:-1]], ids=repr)
def test_autocast_equals_the_definition_on_the_same_rounded_logits(support: Support) -> None:
    hidden, weight, bias, targets = (x.detach() for x in inputs(24, 8, 1009))
    hidden, weight, bias = (
        hidden.float().requires_grad_(),
        weight.float().requires_grad_(),
        bias.float().requires_grad_(),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = fused(hidden, weight, bias, targets, support=support, temperature=0.7)
        rounded = torch.nn.functional.linear(hidden, weight, bias)
    assert rounded.dtype == torch.bfloat16
    assert output.entropy.dtype == torch.float32
    z = (rounded.float() / 0.7).detach()
    if support == DropLowest(0.33):
        weights = support_weights(z, support)
        assert ((weights > 0) & (weights < 1)).sum() > 10, "logits rounded to 8 bits should tie at the cut"
    for got, want in zip(output[:3], dense(z.double(), targets, support), strict=True):
        torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=2e-6)
    given = (hidden, weight, bias, targets)
    expected = dense(rounded.float() / 0.7, targets, support)
    for got, want in zip(gradients(output, given), gradients(expected, given), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, atol=0.01 * want.abs().max().item(), rtol=0.02)


def test_bfloat16_parameters_sum_their_gradients_in_float32() -> None:
    """Thousands of equal small terms: a running bfloat16 sum stops growing at 256 times the term."""
    hidden, weight = torch.ones(4096, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16).requires_grad_()
    targets = torch.zeros(4096, dtype=torch.long)
    output = fused(hidden, weight, None, targets, support=TopK(1), tile_bytes=64)
    output.log_probs.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad[:, 0].tolist() == [2048.0, -2048.0]


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("support", [None, DropLowest(0.33), TopK(5)], ids=repr)
@pytest.mark.parametrize("diagnostics", [False, True])
def test_never_more_than_the_budget_in_logits(support: Support | None, diagnostics: bool) -> None:
    """N V float32 numbers would be 8.2 MB; no tensor may pass 300 kB beyond the gradients, nor all of them together."""
    case, budget = head.Case.random(4001, 4, 512, device="cpu", dtype=torch.float32), 300_000
    with head.PeakBytes() as forward, torch.no_grad():
        fused(
            *case[:2],
            None,
            case[2],
            support=support,
            tile_bytes=budget,
            diagnostics=diagnostics and support is not None,
        )
    assert budget / 2 < forward.peak <= budget + 16 * 4 * 512, "beyond the budget: at most 16 numbers a token"
    with head.PeakBytes() as counter:
        output = fused(
            case.hidden, case.weight, None, case.targets, support=support, tile_bytes=budget,
            diagnostics=diagnostics and support is not None,
        )  # fmt: skip
        torch.stack([values for values in output[:3] if values is not None]).sum().backward()
    of_gradients, of_rows = 4 * 4 * (4001 + 512), 4 * 512 * 40
    assert counter.largest <= budget
    assert counter.peak <= budget + of_gradients + of_rows
    assert counter.peak > budget / 2, "the budget is hardly used, or the counter sees nothing"


def test_the_counter_sees_dense_logits() -> None:
    case = head.Case.random(4001, 4, 512, device="cpu", dtype=torch.float32)
    with head.PeakBytes() as counter:
        head.CONTENDERS["dense autograd: log-prob + H"](case)
    assert counter.largest >= 4001 * 512 * 4
    assert counter.peak >= 3 * 4001 * 512 * 4


# ----------------------------------------------------------------------------------------------------- inside a model

TINY = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "initializer_range": 0.6, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2": {"tie_word_embeddings": False},
    "Qwen2 tied": {"tie_word_embeddings": True},
    "Gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8, "query_pre_attn_scalar": 8},
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {"logit_scale": 0.25},
    "Mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2, "output_router_logits": True},
}


def tiny(name: str) -> Any:
    family = name.partition(" ")[0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**TINY, **MODELS[name])
    return getattr(transformers, f"{family}ForCausalLM")(config).train()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, 61, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # left padding
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    labels[1, 7:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def parameter_gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def bonus(output: Any, value: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, value.numel()).view(value.shape)
    auxiliary = 0.0 if output.aux_loss is None else output.aux_loss
    return (weight * output.log_probs + 0.3 * value).sum() + auxiliary


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_head_of_trl(name: str, checkpointing: bool) -> None:
    model = tiny(name)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy", "log_sum_sq_probs"))
    peer = model(**batch(), fused_lm_head=True)
    wanted = parameter_gradients(model, bonus(peer, peer.entropy))
    add_entropy_head(model, temperature=0.8, support=DropLowest(0.33))
    ours = model(**batch(), fused_lm_head=True, entropy_diagnostics=True)
    assert type(ours) is EntropyOutput
    ours = cast("Any", ours)
    for field in ("loss", "log_probs", "entropy"):
        torch.testing.assert_close(getattr(ours, field), getattr(peer, field), atol=3e-6, rtol=1e-5)
    assert torch.equal(ours.label_mask, peer.label_mask)
    scored = ours.label_mask
    torch.testing.assert_close(ours.prob_sq[scored].log(), peer.log_sum_sq_probs[scored], atol=1e-5, rtol=1e-5)
    assert (ours.aux_loss is None) == (peer.aux_loss is None) == (name != "Mixtral")
    got = parameter_gradients(model, bonus(ours, ours.entropy))
    assert got.keys() == wanted.keys()
    for key, want in wanted.items():
        torch.testing.assert_close(got[key], want, atol=3e-6 + 1e-5 * want.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_clamped_entropy_in_a_model_equals_the_definition_on_its_logits(name: str) -> None:
    model, support = tiny(name), TopK(9)
    logits = model(**batch()).logits[:, :-1].float() / 0.8
    scored = batch()["labels"][:, 1:] != -100
    value = entropy(logits, support=support) * scored
    wanted = parameter_gradients(model, value.sum())
    add_fused_lm_head(model)
    add_entropy_head(model, temperature=0.8, support=support)
    output = model(**batch(), fused_lm_head=True, entropy_statistics=True)
    torch.testing.assert_close(output.clamped_entropy, value, atol=3e-6, rtol=1e-5)
    got = parameter_gradients(model, output.clamped_entropy.sum())
    for key, want in wanted.items():
        torch.testing.assert_close(got[key], want, atol=3e-6 + 1e-5 * want.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("as_function", [False, True])
def test_a_row_scale_multiplies_the_logits_of_the_log_probs_and_of_nothing_else(as_function: bool) -> None:
    model, scale = tiny("Qwen2"), torch.tensor([[2.0], [0.5]])
    logits = model(**batch()).logits[:, :-1].float() / 0.8
    labels = batch()["labels"][:, 1:]
    scored = labels != -100
    rows = scale[torch.arange(len(labels)) % 2]
    target = labels.clamp(min=0)[..., None]
    wanted = (rows[..., None] * logits).log_softmax(-1).gather(-1, target)[..., 0] * scored
    expected = parameter_gradients(model, wanted.sum())
    add_fused_lm_head(model)
    add_entropy_head(model, temperature=0.8, support=TopK(9))
    seen = []

    def decide(fields: dict[str, Any]) -> Tensor:
        seen.append(fields["entropy"])
        return rows

    backbones = []
    model.base_model.register_forward_hook(lambda *_: backbones.append(1))
    given = decide if as_function else rows
    output = model(**batch(), fused_lm_head=True, entropy_statistics=True, row_scale=given)
    assert len(backbones) == 1
    torch.testing.assert_close(output.log_probs, wanted, atol=3e-6, rtol=1e-5)
    plain = logits.log_softmax(-1).gather(-1, target)[..., 0] * scored
    torch.testing.assert_close(output.plain_log_probs, plain, atol=3e-6, rtol=1e-5)
    torch.testing.assert_close(output.entropy, entropy(logits) * scored, atol=3e-6, rtol=1e-5)
    assert all(torch.equal(one, output.entropy) for one in seen)
    assert len(seen) == as_function
    assert not output.entropy.requires_grad
    got = parameter_gradients(model, output.log_probs.sum())
    for key, want in expected.items():
        torch.testing.assert_close(got[key], want, atol=3e-6 + 1e-5 * want.abs().max().item(), rtol=1e-4)
    assert not torch.allclose(plain[0], wanted[0], atol=1e-3)  # negative control: the scale does something


def test_logits_behind_a_bias_or_a_softcap_cannot_be_scaled() -> None:
    model = tiny("Qwen2")
    check_scalable(model)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"a softcap of 30\.0"):
        check_scalable(model)
    model.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="a bias"):
        check_scalable(model)


def headed(name: str = "Qwen2", **options: Any) -> Any:
    model = tiny(name)
    add_fused_lm_head(model, temperature=0.8)
    add_entropy_head(model, temperature=0.8, support=DropLowest(0.33), **options)
    return model


def test_fields_are_what_was_asked_for_and_zero_elsewhere() -> None:
    model = headed()
    of_statistics = {"clamped_entropy", "dropped_mass", "kept"}
    of_diagnostics = {"prob_sq", "full_grad_sq", "clamped_grad_sq", "grad_dot"}
    for options, extra in (
        ({}, set()),
        ({"entropy_statistics": True}, of_statistics),
        ({"entropy_statistics": True, "entropy_diagnostics": True}, of_statistics | of_diagnostics),
    ):
        output = model(**batch(), fused_lm_head=True, **options)
        given = {"loss", "log_probs", "entropy", "label_mask"} | extra
        assert {field.name for field in fields(output) if getattr(output, field.name) is not None} == given
        for name in given - {"loss", "label_mask"}:
            values = getattr(output, name)
            assert values.shape == (3, 8)
            assert not values[~output.label_mask].any()
            assert values[output.label_mask].all() or name == "log_probs"


def test_a_batch_without_labels_gives_a_differentiable_zero() -> None:
    model, given = headed(), batch()
    given["labels"] = torch.full_like(given["labels"], -100)
    output = model(**given, fused_lm_head=True, entropy_statistics=True)
    found = parameter_gradients(model, (output.log_probs + output.clamped_entropy).sum() + output.loss)
    assert "lm_head.weight" in found
    assert not any(gradient.any() for gradient in found.values())


def test_other_calls_and_generation_are_unchanged() -> None:
    plain, model = tiny("Qwen2").eval(), headed().eval()
    given = batch()
    expected, output = plain(**given), model(**given)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)
    prompt = {"input_ids": given["input_ids"][1:], "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**prompt), plain.generate(**prompt))


def test_shifted_labels_float32_head_and_items_in_the_batch() -> None:
    model, given = headed(cast_lm_head_to_fp32=True), batch()
    labels = given.pop("labels")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**given, labels=labels, fused_lm_head=True)
        shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        other = model(**given, shift_labels=shifted, fused_lm_head=True, num_items_in_batch=7)
    torch.testing.assert_close(other.log_probs[:, :-1], output.log_probs)
    torch.testing.assert_close(other.loss, -output.log_probs.sum() / 7)


def test_a_float32_head_on_a_bfloat16_model() -> None:
    model, given = headed(cast_lm_head_to_fp32=True).bfloat16(), batch()
    model.lm_head.float()
    labels = given.pop("labels")
    logits = model.model(**given).last_hidden_state.float()[:, :-1] @ model.lm_head.weight.T / 0.8
    wanted = torch.log_softmax(logits, -1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    output = model(**given, labels=labels, fused_lm_head=True)
    torch.testing.assert_close(output.log_probs, wanted * output.label_mask, atol=1e-5, rtol=1e-5)


def test_lora_trains_through_the_head() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny("Qwen2"), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    add_fused_lm_head(model.get_base_model(), temperature=0.8)
    add_entropy_head(model.get_base_model(), temperature=0.8, support=TopK(5))
    output = model(**batch(), fused_lm_head=True, entropy_statistics=True)
    found = parameter_gradients(model, output.clamped_entropy.sum())
    assert found
    assert all("lora" in name for name in found)


def test_sharded_parameters_give_the_same() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = headed()
    wanted = model(**batch(), fused_lm_head=True, entropy_statistics=True)
    gradient = parameter_gradients(model, wanted.clamped_entropy.sum())["lm_head.weight"]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        output = model(**batch(), fused_lm_head=True, entropy_statistics=True)
        torch.testing.assert_close(output.clamped_entropy, wanted.clamped_entropy)
        found: Any = parameter_gradients(model, output.clamped_entropy.sum())["lm_head.weight"]
        torch.testing.assert_close(found.full_tensor(), gradient)
    finally:
        dist.destroy_process_group()


def test_a_model_without_the_head_of_trl_is_refused() -> None:
    model = tiny("Qwen2")
    add_fused_lm_head(model)
    add_entropy_head(model, temperature=1.0, support=None)
    assert model(**batch(), fused_lm_head=True).clamped_entropy is None
    with pytest.raises(ValueError, match="support=None"):
        model(**batch(), fused_lm_head=True, entropy_statistics=True)
    with pytest.raises(ValueError, match="add_fused_lm_head"):
        add_entropy_head(tiny("Qwen2"), temperature=1.0, support=Full())
    with pytest.raises(ValueError, match="pass labels"):
        headed()(input_ids=batch()["input_ids"], fused_lm_head=True)


def test_trl_is_the_one_this_was_written_for() -> None:
    """What the head repeats of TRL's; if this fails, read add_fused_lm_head again before changing the lists."""
    assert [field.name for field in fields(FusedCausalLMOutput)] == [
        "loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask", "aux_loss",
    ]  # fmt: skip
    assert list(inspect.signature(add_fused_lm_head).parameters) == [
        "model", "temperature", "cast_lm_head_to_fp32", "outputs",
    ]  # fmt: skip
    source = inspect.getsource(add_fused_lm_head)
    assert set(re.findall(r'getattr\(text_config, "(\w+)"', source)) == {
        "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling",
        "output_router_logits", "router_aux_loss_coef",
    }  # fmt: skip
    assert re.findall(r'model_type == "(\w+)"', source) == ["hyperclovax", "gpt_oss"]
    names = re.search(r"def _fused_forward\((.*?)\):", source, re.DOTALL)
    assert names is not None
    assert re.findall(r"(\w+)=", names[1]) == ["fused_lm_head", "labels", "shift_labels", "num_items_in_batch"]
    assert str(inspect.signature(trl_utils.maybe_gather_lm_head_ctx)) == "(*params: torch.nn.parameter.Parameter)"
    caller = inspect.getsource(__import__("trl").GRPOTrainer._get_per_token_logps_and_entropies)
    assert "model(**model_inputs, labels=labels, fused_lm_head=True)" in caller
    assert set(re.findall(r"outputs\.(\w+)", caller)) == {"log_probs", "entropy", "aux_loss"}
