"""The fused entropy head inside a model: what replaces the forward pass that TRL's ``add_fused_lm_head`` installed.

The steps are TRL's (backbone, shifted labels, gathered head, load-balancing loss); what it asks of the head is ours.
They are repeated here, because TRL's forward is one closure; a contract test notices when it changes.

Left out: the arithmetic (``fused.py``), and models that TRL gives no fused head.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor
from torch.distributed.tensor import DTensor
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from aent.entropy import Support
from aent_llm.head.common import logit_transform
from aent_llm.head.fused import Engine, fused_entropy_head

__all__ = ["EntropyOutput", "add_entropy_head", "check_scalable"]

RowScale = Tensor | Callable[[dict[str, Any]], Tensor]


@dataclass
class EntropyOutput(FusedCausalLMOutput):
    """TRL's output plus the fields of ``HeadOutput``, each (batch, seq - 1) and zero where the label is -100.

    With a ``row_scale``, ``log_probs`` are those of the scaled logits and the only field with a gradient;
    ``plain_log_probs`` and all others are of the logits as they are.
    """

    clamped_entropy: Tensor | None = None
    dropped_mass: Tensor | None = None
    kept: Tensor | None = None
    prob_sq: Tensor | None = None
    full_grad_sq: Tensor | None = None
    clamped_grad_sq: Tensor | None = None
    grad_dot: Tensor | None = None
    plain_log_probs: Tensor | None = None


def add_entropy_head(
    model: Any,
    *,
    temperature: float,
    support: Support | None,
    cast_lm_head_to_fp32: bool = False,
    tile_bytes: int | None = None,
    engine: Engine = "auto",
    positions_from_mask: bool = False,
) -> None:
    """Give ``model`` (a ``PreTrainedModel``) the entropy head in place of TRL's, which must have been added before.

    ``model(..., labels=labels, fused_lm_head=True)`` then returns an ``EntropyOutput``: log-probabilities and entropy;
    with ``entropy_statistics=True`` also the clamped entropy, dropped mass and tokens kept; with
    ``entropy_diagnostics=True`` also the squares. Any other call is the one it was before, so generation is unchanged.
    Only tokens with a label other than -100 are projected. ``row_scale``, (batch, 1) or a function of the dictionary of
    fields that gives it, multiplies the logits of each row of ``log_probs``: one more pass of the head, none of the
    model.

    Args:
        temperature: of sampling; logits are divided by it.
        support: the rule of the clamped entropy; ``None`` if ``entropy_statistics`` will never be asked for.
        cast_lm_head_to_fp32: project in float32, outside autocast.
        tile_bytes: as ``fused_entropy_head`` takes it.
        engine: likewise.
        positions_from_mask: count positions from the attention mask, as ``generate`` does; for models whose own count
            would include the padding on the left.

    Raises:
        ValueError: a PEFT or distributed wrapper, a model that TRL has not given its head, or a head that is no matrix
            of floats.
    """
    if not hasattr(model, "get_output_embeddings") or not _has_fused_head(model.forward):
        raise ValueError(
            f"expected a PreTrainedModel with TRL's fused head, got {type(model).__name__}: unwrap PEFT with "
            f"model.get_base_model(), and call add_entropy_head after GRPOTrainer.__init__ or after trl.trainer.utils."
            f"add_fused_lm_head"
        )
    _check_matrix(model)
    replaced = model.forward
    logit_scale, softcap = logit_transform(model.config)
    head = _ModelHead(
        support=support,
        temperature=temperature,
        logit_scale=logit_scale,
        softcap=softcap,
        in_float32=cast_lm_head_to_fp32,
        tile_bytes=tile_bytes,
        engine=engine,
        positions_from_mask=positions_from_mask,
    )

    @functools.wraps(type(model).forward)  # `generate` validates its arguments against this signature
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        return head(self, *args, **kwargs) if fused_lm_head else replaced(*args, **kwargs)

    model.forward = types.MethodType(forward, model)


def check_scalable(model: Any) -> None:
    """Logits can be scaled through the hidden states if nothing but a matrix lies between them.

    Raises:
        ValueError: a head with a bias or a softcap.
    """
    _, softcap = logit_transform(model.config)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None or softcap is not None:
        found = "a bias" if bias is not None else f"a softcap of {softcap}"
        raise ValueError(
            f"this shaping rule scales logits, and the head of {type(model).__name__} has {found}: the scale cannot be "
            "applied to its inputs. Take another model or another rule"
        )


def _has_fused_head(forward: Any) -> bool:
    code = getattr(getattr(forward, "__func__", forward), "__code__", None)  # the signature is that of the plain model
    return code is not None and "fused_lm_head" in code.co_varnames


def _check_matrix(model: Any) -> None:
    """Raises ValueError for a head whose weight cannot be multiplied with, or whose bias PEFT would leave out."""
    lm_head = model.get_output_embeddings()
    weight = getattr(lm_head, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.element_size() < 2:
        dtype = "no weight" if weight is None else f"a weight of {weight.dtype}"
        raise ValueError(
            f"the head of {type(model).__name__} is a {type(lm_head).__name__} with {dtype}; expected a matrix of 16 "
            "bits or more. Leave the head out of the quantisation (llm_int8_skip_modules=['lm_head'])"
        )
    if isinstance(lm_head, TrainableTokensWrapper) and getattr(lm_head.original_module, "bias", None) is not None:
        raise ValueError(
            "trainable_token_indices on a head with a bias: PEFT leaves the bias out. Train the embedding's tokens "
            "alone, or the whole head with modules_to_save"
        )


class _ModelHead(NamedTuple):
    """The forward pass of a model with the head, step by step as in trl.trainer.utils.add_fused_lm_head."""

    support: Support | None
    temperature: float
    logit_scale: float
    softcap: float | None
    in_float32: bool
    tile_bytes: int | None
    engine: Engine
    positions_from_mask: bool = False

    def __call__(
        self,
        model: Any,
        *args: Any,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        entropy_statistics: bool = False,
        entropy_diagnostics: bool = False,
        row_scale: RowScale | None = None,
        **kwargs: Any,
    ) -> EntropyOutput:
        kwargs["use_cache"] = False
        if self.positions_from_mask and kwargs.get("position_ids") is None:
            kwargs["position_ids"] = _positions(*args, **kwargs)
        if getattr(model.config.get_text_config(), "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        backbone = model.base_model(*args, **kwargs)
        hidden = backbone.last_hidden_state if shift_labels is not None else backbone.last_hidden_state[:, :-1]
        labels = _shifted(labels, shift_labels)
        lm_head, statistics = model.get_output_embeddings(), entropy_statistics or entropy_diagnostics
        with nullcontext() if row_scale is None else torch.no_grad():
            fields, mask = self.score(hidden, labels, lm_head, statistics, entropy_diagnostics)
        if row_scale is not None:
            scale = row_scale(fields) if callable(row_scale) else row_scale
            scaled, _ = self.score(hidden * scale[..., None].to(hidden), labels, lm_head, False, False)
            fields |= {"plain_log_probs": fields["log_probs"], "log_probs": scaled["log_probs"]}
        count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss, auxiliary = -fields["log_probs"].sum() / count, None
        if kwargs.get("output_router_logits"):
            auxiliary = _load_balancing(model, backbone, kwargs.get("attention_mask"))
            loss = loss + getattr(model.config.get_text_config(), "router_aux_loss_coef", 0.0) * auxiliary
        return EntropyOutput(loss=loss, label_mask=mask, aux_loss=auxiliary, **fields)

    def score(
        self, hidden: Tensor, labels: Tensor, lm_head: Any, statistics: bool, diagnostics: bool
    ) -> tuple[dict[str, Any], Tensor]:
        """(batch, seq, D), (batch, seq) -> fields of (batch, seq), mask of the labels that count."""
        if statistics and self.support is None:
            raise ValueError("entropy_statistics=True, but add_entropy_head was given support=None: pass a rule there")
        weight: Any = lm_head.weight
        bias: Any = getattr(lm_head, "bias", None)  # PEFT's wrapper of trainable tokens has none
        hidden, labels = hidden.to(weight.device), labels.to(weight.device)  # a model spread over devices
        mask = labels != -100
        autocast = nullcontext()
        if self.in_float32:
            hidden, autocast = hidden.float(), torch.autocast(hidden.device.type, enabled=False)
        weight, bias = _gathered(weight), _gathered(bias)
        with autocast, maybe_gather_lm_head_ctx(weight, bias):
            output = fused_entropy_head(
                hidden[mask],
                weight,
                bias,
                labels[mask],
                support=self.support if statistics else None,
                temperature=self.temperature,
                logit_scale=self.logit_scale,
                softcap=self.softcap,
                diagnostics=diagnostics,
                tile_bytes=self.tile_bytes,
                engine=self.engine,
            )
        return {name: _spread(values, mask) for name, values in output._asdict().items()}, mask


def _positions(input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, **_: Any) -> Any:
    """(batch, seq), counted from the mask as ``generate`` counts them; the mask may begin with a prefix."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
    return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)[:, -length:]


def _gathered(parameter: Any) -> Any:
    """The whole of what FSDP2 shards, once for all tiles."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _shifted(labels: Tensor | None, shift_labels: Tensor | None) -> Tensor:
    if shift_labels is not None:
        return shift_labels
    if labels is None:
        raise ValueError("fused_lm_head=True scores labels: pass labels=input_ids with -100 where nothing is scored")
    return labels[:, 1:]


def _spread(values: Tensor | None, mask: Tensor) -> Tensor | None:
    """Back to (batch, seq); stays connected to the model where no label counts, so that ``backward`` can run."""
    return None if values is None else values.new_zeros(mask.shape).masked_scatter(mask, values)


def _load_balancing(model: Any, backbone: Any, attention_mask: Tensor | None) -> Tensor:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = model.config.get_text_config()
    logits, experts, chosen = backbone.router_logits, config.num_experts, config.num_experts_per_tok
    return load_balancing_loss_func(logits, experts, chosen, attention_mask)  # type: ignore[return-value]
