"""A rule of ``aent.shaping`` inside TRL's GRPO: what it needs from a rollout, and its weights in place of advantages.

TRL's loss calls the model first and reads ``inputs["advantages"]`` and ``inputs["old_per_token_logps"]`` afterwards.
Between the two, once the model has answered, the rule's weights (B, T) are put in place of the advantages and the old
log-probabilities are taken away: TRL then has ratio 1 everywhere, clips nothing, and follows the gradient of
sum_t weight_t log pi_t. Its aggregation over tokens, its KL term, the importance weights of vLLM and
``top_entropy_quantile`` apply unchanged; its ``clip_ratio`` metrics are 0. Contract tests hold TRL to that order.

Plain ``Shaping`` is TRL's own loss and takes none of this path. Evaluation never does.

Shape legend: ``B`` completions of a micro-batch, ``T`` completion tokens, ``G`` completions of a prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.grpo_trainer import GRPOTrainer

from aent.controllers import State
from aent.shaping import Shaping, Tokens, Weights, tempered_members
from aent_llm.head.model import EntropyOutput, check_scalable
from aent_llm.training.agreement import check_ids
from aent_llm.training.config import AEntGRPOConfig

__all__ = ["PolicyLoss", "ShapedGRPOTrainer", "completion"]


class PolicyLoss(NamedTuple):
    """TRL's loss, the model's answer, and what the rule saw and said (None for plain ``Shaping``)."""

    loss: torch.Tensor
    output: EntropyOutput
    tokens: Tokens | None
    weights: Weights | None


class ShapedGRPOTrainer(GRPOTrainer):
    """``GRPOTrainer`` whose rollouts carry what a shaping rule asks for and whose policy loss follows the rule."""

    model: Any  # a PreTrainedModel or PeftModel
    args: AEntGRPOConfig
    shaping: Shaping = Shaping()
    control_state: State  # its coefficient is the rule's knob

    _rewards: Any = None  # (completions of all ranks, reward functions) of the last rollout
    _sampled_entropy: list[torch.Tensor] | None = None  # a list while a rollout is being made

    @property
    def is_shaped(self) -> bool:
        """Whether a rule, and not TRL's own loss, says what the policy gradient is."""
        return not self.shaping.is_plain

    def _check_shaping(self) -> None:
        """Raises ValueError for what only the model and the arguments of the trainer can tell."""
        if self.shaping.scales_logits:
            check_scalable(self._base_model())
        if self.shaping.tempered_share and (self.tools or self.rollout_func is not None):
            raise ValueError(
                f"{type(self.shaping).__name__} samples a part of each group at its own temperature, in one turn and "
                "with the trainer's own generation: leave out tools, environment_factory and rollout_func"
            )

    def _base_model(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    # ---------------------------------------------------------------------------------------------------- the loss

    def _policy_loss(self, model: Any, inputs: dict[str, Any], *, diagnostics: bool) -> PolicyLoss:
        """TRL's loss on ``inputs``, its policy part as the rule has it."""
        inputs = dict(inputs)  # the rule's weights go in here and not into the buffered rollout
        shaped = self.is_shaped and self.model.training
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        answers: list[tuple[EntropyOutput, Tokens | None, Weights | None]] = []

        def forward(**batch: Any) -> EntropyOutput:  # TRL calls the model; the head's extra outputs are kept
            scale = {"row_scale": self._row_scale(inputs, mask)} if shaped and self.shaping.scales_logits else {}
            output = model(**batch, entropy_statistics=True, entropy_diagnostics=diagnostics, **scale)
            tokens = self._tokens(dict(output), inputs, mask, fresh=True) if shaped else None
            weights = None if tokens is None else self.shaping(tokens, self.control_state.coefficient)
            if weights is not None:
                inputs["advantages"] = weights.policy
                inputs.pop("old_per_token_logps", None)
            answers.append((output, tokens, weights))
            return output

        with self._reference_kl_of_the_rule() if shaped else contextlib.nullcontext():
            loss = super()._compute_loss(forward, inputs)
        ((output, tokens, weights),) = answers
        if tokens is not None and "reference_log_probs" in self.shaping.needs:
            self._log_kl(tokens)
        return PolicyLoss(loss, output, tokens, weights)

    def _tokens(self, fields: dict[str, Any], inputs: dict[str, Any], mask: torch.Tensor, *, fresh: bool) -> Tokens:
        """What the rule may look at; ``fresh``: with numbers drawn for this update, if the rule wants any."""
        log_probs, entropy, support_entropy, kept = (
            completion(fields[name], mask).detach() for name in ("log_probs", "entropy", "clamped_entropy", "kept")
        )
        advantages = inputs["advantages"]
        old = inputs.get("old_per_token_logps")
        draws = fresh and "uniforms" in self.shaping.needs
        return Tokens(
            log_probs=log_probs,
            old_log_probs=log_probs if old is None else old,
            advantages=advantages[:, None] if advantages.dim() == 1 else advantages,
            mask=mask.to(log_probs.dtype),
            entropy=entropy,
            old_entropy=inputs.get("old_entropy", entropy),
            support_entropy=support_entropy,
            kept=kept.clamp(min=2),  # padding; and one token alone has no range, its entropy is 0
            solved=inputs["solved"],
            reference_log_probs=inputs.get("ref_per_token_logps"),
            uniforms=torch.rand(log_probs.shape, device=log_probs.device) if draws else None,
        )

    def _row_scale(self, inputs: dict[str, Any], mask: torch.Tensor) -> Any:
        """(B, 1), decided at the rollout if there are several updates of it; else it follows the present entropies."""
        if "logit_scale" in inputs:
            return inputs["logit_scale"]
        return lambda fields: self.shaping.logit_scale(
            self._tokens(fields, inputs, mask, fresh=False), self.control_state.coefficient
        )

    @contextlib.contextmanager
    def _reference_kl_of_the_rule(self) -> Iterator[None]:
        """A rule that has the pull to the reference has all of it: TRL's term is off while its loss is computed."""
        beta = self.beta
        if "reference_log_probs" in self.shaping.needs:
            self.beta = 0.0
        try:
            yield
        finally:
            self.beta = beta

    def _log_kl(self, tokens: Tokens) -> None:
        """TRL's metric, where its own term is off."""
        gap = tokens.reference_log_probs - tokens.log_probs
        kl = torch.stack([((gap.exp() - gap - 1) * tokens.mask).sum(), tokens.mask.sum()])
        total, count = self.accelerator.reduce(kl).tolist()  # type: ignore[union-attr]
        self._metrics["train"]["kl"].append(total / max(count, 1.0))

    # ------------------------------------------------------------------------------------------------- the rollout

    def _calculate_rewards(self, *args: Any) -> Any:
        self._rewards = super()._calculate_rewards(*args)
        return self._rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._sampled_entropy = []
        try:
            output = super()._generate_and_score_completions(inputs)
            entropies = self._sampled_entropy
        finally:
            self._sampled_entropy = None
        mine = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        group: Any = self.num_generations if self.model.training else self.num_generations_eval
        correct = self._rewards[:, 0] >= self.args.correct_reward
        solved = correct.float().view(-1, group).mean(1).repeat_interleave(group)
        output |= {"correct": correct[mine], "solved": solved[mine]}
        if not self.model.training:
            return output
        if type(self.shaping).group_advantages is not Shaping.group_advantages:
            output["advantages"] = self._group_advantages()[mine]
        if "old_per_token_logps" in output:
            output["old_entropy"] = entropies[0]
            if self.shaping.scales_logits:
                self._scale_old_log_probs(output)
        return output

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **options: Any) -> Any:
        """TRL asks the sampling policy for log-probabilities only; its entropies are there in the same pass."""
        stash = self._sampled_entropy
        if stash is None or stash or model is not self.model:  # in a rollout the policy comes first, a reference later
            return super()._get_per_token_logps_and_entropies(model, *args, **options)
        found = super()._get_per_token_logps_and_entropies(model, *args, **{**options, "compute_entropy": True})
        stash.append(found[1])  # type: ignore[arg-type]
        return found

    def _group_advantages(self) -> torch.Tensor:
        """(completions of all ranks,): the rule's, from TRL's sum of rewards; 0 where no reward could be given."""
        group: Any = self.num_generations
        weighted: torch.Tensor = self._rewards * self.reward_weights.to(self._rewards.device)
        missing = torch.isnan(weighted).all(1).view(-1, group)
        rewards = weighted.nansum(1).view(-1, group)
        known = (~missing).sum(1, keepdim=True).clamp(min=1)
        mean = (rewards * ~missing).sum(1, keepdim=True) / known  # of the scored: it moves no baseline
        advantages = self.shaping.group_advantages(rewards.where(~missing, mean), self.control_state.coefficient)
        found = advantages.masked_fill(missing, 0.0).flatten()
        self._logs["advantages"].clear()
        self._logs["advantages"].extend(found.tolist())
        return found

    def _scale_old_log_probs(self, output: dict[str, Any]) -> None:
        """Of a rollout with several updates: the scale of each response, and the old log-probabilities under it."""
        if "pixel_values" in output:
            raise ValueError(f"{type(self.shaping).__name__} scales the logits of old rollouts for text alone so far")
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        old, entropy = output["old_per_token_logps"], output["old_entropy"]
        fields = {"log_probs": old, "entropy": entropy, "clamped_entropy": entropy, "kept": torch.ones_like(old)}
        tokens = self._tokens(fields, output, mask, fresh=False)
        scale = self.shaping.logit_scale(tokens, self.control_state.coefficient)
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        options: Any = self.args.gradient_checkpointing_kwargs
        scaled = []
        with torch.no_grad(), disable_gradient_checkpointing(self.model, options):
            for rows in torch.arange(len(ids), device=ids.device).split(self.args.per_device_train_batch_size):
                scaled.append(self._log_probs_at(scale[rows], ids[rows], attention[rows], old.shape[1]))
        output |= {"logit_scale": scale, "old_per_token_logps": torch.cat(scaled)}

    def _log_probs_at(self, scale: Any, ids: Any, attention: Any, length: int) -> torch.Tensor:
        def model(**batch: Any) -> EntropyOutput:
            return self.model(**batch, row_scale=scale)

        return self._get_per_token_logps_and_entropies(model, ids, attention, length)[0]

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, *args: Any, **options: Any
    ) -> Any:
        """The tempered members of each group at temperature coefficient * args.temperature, the rest as usual."""
        check_ids(prompt_ids, self._base_model(), self._tokenizer)
        members = tempered_members(self.shaping, num_generations) if self.model.training else 0
        if not members:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, *args, **options
            )
        if images is not None:
            raise ValueError(f"{type(self.shaping).__name__} samples tempered completions for text alone so far")
        first = self.accelerator.process_index * len(prompt_ids)
        places = [(first + row) % num_generations >= num_generations - members for row in range(len(prompt_ids))]
        completions: list[Any] = [None] * len(prompt_ids)
        for tempered, factor in ((False, 1.0), (True, float(self.control_state.coefficient))):
            rows = [row for row, place in enumerate(places) if place is tempered]
            wanted = rows or [0]  # sharded ranks generate together: one with no such row takes part all the same
            fields = {name: [values[row] for row in wanted] for name, values in multimodal_fields.items()}
            with self._sampling_temperature(factor * self.temperature):
                some, _ = super()._generate_single_turn(
                    [prompt_ids[row] for row in wanted], None, fields, num_generations, *args, **options
                )
            for row, ids in zip(rows, some, strict=False):
                completions[row] = ids
        return completions, None

    @contextlib.contextmanager
    def _sampling_temperature(self, temperature: float) -> Iterator[None]:
        kept = self.generation_config.temperature, self.generation_kwargs.get("temperature")
        self.generation_config.temperature = self.generation_kwargs["temperature"] = temperature
        try:
            yield
        finally:
            self.generation_config.temperature, self.generation_kwargs["temperature"] = kept


def completion(value: torch.Tensor | None, mask: torch.Tensor) -> Any:
    """(B, prompt + T - 1) -> (B, T), the completion's part of a per-token output; anything else is None."""
    if value is None or value.dim() != 2:
        return None
    return value[:, -mask.shape[1] :]
