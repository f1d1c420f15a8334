"""``AEntGRPOTrainer``: TRL's GRPO with a bonus on clamped entropy and a controller for its coefficient.

TRL generates, scores, computes the policy loss and steps the optimiser; nothing of that is copied here. Added are:

1. measure: the model's fused head also returns the entropy over the support, from the same forward pass;
2. bonus: loss - coefficient * (mean clamped entropy over the completion tokens of the whole optimiser step, all ranks);
   a shaping rule spreads it over the tokens, or changes the policy gradient instead (``shaped.py``);
3. control: once per rollout phase (the paper's global step) the controller sees the token mean of that phase;
4. keep: the controller's state goes into the checkpoint, and a resumed run continues to the same numbers (``safe.py``).

The measurement never depends on the coefficient, so no controller can switch itself off. What TRL calls ``entropy``
(its metric and ``top_entropy_quantile``) stays the full entropy.

Shape legend: ``B`` completions of a micro-batch, ``T`` completion tokens.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging
from trl.trainer.utils import create_model_from_path

from aent.controllers import State
from aent.entropy import DropLowest, Full, TopK, Tsallis, support_weights
from aent.shaping import Shaping, Tokens
from aent_llm.data.reward_checks import blamed
from aent_llm.head.model import EntropyOutput, add_entropy_head
from aent_llm.training import agreement, vllm_sync
from aent_llm.training import config as configs
from aent_llm.training.config import AEntGRPOConfig
from aent_llm.training.diagnostics import Alarms, band, metrics, token_sums
from aent_llm.training.finite import NonFiniteError
from aent_llm.training.policy_loss import PolicyLoss, completion
from aent_llm.training.safe import SafeGRPOTrainer

__all__ = ["AEntGRPOTrainer", "NonFiniteError"]

logger = logging.get_logger(__name__)


class AEntGRPOTrainer(SafeGRPOTrainer):
    """``trl.GRPOTrainer`` with AEnt's entropy bonus; the same arguments, ``args`` an ``AEntGRPOConfig``.

    Minimises  L_policy - c * H~,   H~ = (1 / N) sum_t H~_t  over the N completion tokens of the optimiser step on all
    ranks: its value depends neither on gradient accumulation nor on the number of ranks. A shaping rule other than
    plain ``Shaping`` weighs the tokens of either term.

    Raises:
        TypeError: ``args`` is not an ``AEntGRPOConfig``.
        ValueError: a clamp that keeps a single token of this vocabulary, or all; a model or tools that the rule cannot
            work on; while training, a reward that is no finite number, or a checkpoint that cannot be resumed.
        NonFiniteError, aent_llm.training.vllm_sync.SyncError: while training; each names step and cause.
        OSError: a checkpoint cannot be written; says where, why and what to do.
        aent_llm.training.signals.Interrupted: a signal came; names what was saved.

    Reference: arXiv 2509.03493, L_AEnt and Eq. 4.1.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "aent"]

    def __init__(self, model: Any, reward_funcs: Any, args: AEntGRPOConfig, **options: Any):
        if not isinstance(args, AEntGRPOConfig):
            raise TypeError(f"args must be an aent_llm.training.config.AEntGRPOConfig, got {type(args).__name__}")
        if args.use_vllm and isinstance(model, str):  # the engine's dtype is the model's, so the model comes first
            settings: Any = args.model_init_kwargs or {}
            model = create_model_from_path(model, **settings)
        with _engine(model, args):
            super().__init__(model, reward_funcs, args=args, **options)
        self.support = configs.support(args.entropy_support)
        self.controller = configs.controller(args.entropy_controller)
        self.shaping = configs.shaping(args.entropy_shaping)
        self.control_state = self.controller.init()
        clamp = Full() if isinstance(self.support, Tsallis) else self.support  # another entropy, not a clamped one
        self.alarms = Alarms(self.controller, clamp)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        check_kept_tokens(self.support, vocabulary)
        check_controller(self.controller, vocabulary)
        self._check_shaping()
        check_shaping(self.shaping, self.control_state.coefficient)
        self._add_heads()
        self._tokenless = agreement.check(self, policy=self._base_model())
        if self.use_vllm:
            vllm_sync.mend_sync(self.vllm_generation)
        self._window: list[torch.Tensor] = []  # sums of the micro-batches of this optimiser step
        self._finite: list[torch.Tensor] = []
        self._policy_sq: list[torch.Tensor] = []  # squared gradient norms, filled in by the backward pass
        self._window_tokens = math.nan  # N above
        self._phase = [0.0, 0.0]  # (sum of what the controller sees: clamped entropy; tokens) since the last rollout
        self.add_callback(_EpochOrder(self))

    # ------------------------------------------------------------------------------------------------ measure, bonus

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        train = self.model.training
        found = self._policy_loss(model, inputs, diagnostics=not train or self._will_log())
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        head = {name: completion(value, mask) for name, value in found.output.items()}
        head["log_probs"] = head.get("plain_log_probs", head["log_probs"])
        measured = self._weigh_by_attention(found, head)
        sums = token_sums(head, mask, inputs.get("correct"))
        if not train:
            self._log_entropy(self._over_ranks(sums), policy_sq=math.nan, mode="eval")
            coefficient = self.control_state.coefficient if self.shaping.pays_bonus else 0.0
            return found.loss - coefficient * sums[2].float() / sums[0].clamp(min=1).float()
        if self._step % self.args.steps_per_phase < self.current_gradient_accumulation_steps:
            self._check_sampler(inputs.get("sampling_per_token_logps"), head["log_probs"], mask)
        self._window.append(torch.cat([sums, sums[2:3] if measured is None else measured]))
        self._finite.append(torch.isfinite(found.loss.detach()) & torch.isfinite(sums[1:6]).all())
        if self.shaping.pays_bonus:
            self._watch_policy_gradient(found.output, head, mask)
        if len(self._window) == 1:
            self._window_tokens = self._count_window_tokens()
        # Ranks' gradients are averaged, micro-batches' are summed: hence the factor, and no other.
        share = self.accelerator.num_processes / self._window_tokens
        if found.weights is None:
            return found.loss - self.control_state.coefficient * share * (head["clamped_entropy"] * mask).sum()
        if not self.shaping.pays_bonus:
            return found.loss
        return found.loss - share * (found.weights.bonus * head["clamped_entropy"]).sum()

    def _weigh_by_attention(self, found: PolicyLoss, head: dict[str, Any]) -> torch.Tensor | None:
        """Sum of what a controller of attended entropy sees; the diagnostics become those of the bonus that is paid."""
        if found.tokens is None or not self.shaping.pays_bonus:
            return None
        attention = self.shaping.attention(found.tokens)
        for name, weight in (("clamped_grad_sq", attention**2), ("grad_dot", attention)):
            if head.get(name) is not None:
                head[name] = head[name] * weight
        if not self.shaping.measures_attention:
            return None
        return (attention * found.tokens.support_entropy * found.tokens.mask).double().sum()[None]

    def _count_window_tokens(self) -> float:
        """Completion tokens of this optimiser step, over its micro-batches (all generated already) and all ranks."""
        buffered: list[dict[str, Any]] = self._buffered_inputs  # type: ignore[assignment]
        first = self._step % len(buffered)
        batches = buffered[first : first + self.current_gradient_accumulation_steps]
        tokens = sum((batch["completion_mask"] * batch.get("tool_mask", 1)).sum() for batch in batches)
        return max(self._over_ranks(torch.as_tensor(tokens, dtype=torch.float64)), 1.0)

    def _over_ranks(self, sums: torch.Tensor) -> Any:
        """Sum over ranks, as a number or a list."""
        total: Any = self.accelerator.reduce(sums)
        return total.tolist()

    def _watch_policy_gradient(self, output: EntropyOutput, head: dict[str, Any], mask: torch.Tensor) -> None:
        """||policy gradient at the logits||^2 = sum_t a_t^2 (1 - 2 p_y + sum_a p_a^2) with a_t = dL/dlog p_t."""
        log_probs: Any = output.log_probs
        if head.get("prob_sq") is None or not log_probs.requires_grad:
            return
        per_token = (1 - 2 * head["log_probs"].detach().exp() + head["prob_sq"]) * mask
        log_probs.register_hook(lambda a: self._policy_sq.append((completion(a, mask).double() ** 2 * per_token).sum()))

    # ------------------------------------------------------------------------------------------------------- control

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._finish_window()
        return loss

    def _finish_window(self) -> None:
        """After the last backward pass of an optimiser step, before the weights move."""
        self._stop_if_not_finite(self._finite)
        zero = self._window[0].new_zeros(())
        policy_sq = sum(self._policy_sq, zero) if self._policy_sq else zero + math.nan
        *sums, measured, policy = self._over_ranks(torch.stack([*torch.stack(self._window).sum(0), policy_sq]))
        if sums[0]:  # else every completion was masked out: nothing was measured
            self._log_entropy(sums, policy_sq=policy / self.accelerator.num_processes**2, mode="train")
        self._phase = [self._phase[0] + measured, self._phase[1] + sums[0]]
        self._window, self._finite, self._policy_sq = [], [], []
        if self._step % self.args.steps_per_phase == 0:
            self._step_controller()

    def _step_controller(self) -> None:
        total, tokens = self._phase
        self._phase = [0.0, 0.0]
        if not tokens:
            return
        state = self.control_state
        try:
            moved = self.controller.update(state, max(total / tokens, 0.0))
        except Exception as error:  # whatever a rule of the user's may raise, or the answer NaN
            fault = blamed(f"the controller {type(self.controller).__name__}", error)
            raise self._broken_off(fault) from fault.__cause__
        held = State(state.coefficient, moved.step, state.memory)
        self.control_state = held if state.step < self.args.entropy_warmup_steps else moved

    def _log_entropy(self, sums: list[float], *, policy_sq: float, mode: str) -> None:
        coefficient = self.control_state.coefficient
        bounds = band(self.controller, self.control_state.step)
        found = metrics(sums, coefficient=coefficient, policy_sq=policy_sq, bounds=bounds)
        for name, value in found.items():
            self._metrics[mode][name].append(value)
        if mode == "train":
            for text in self.alarms.check(found):
                logger.warning(f"step {self.state.global_step + 1}: {text}")  # main process only, by default

    def _will_log(self) -> bool:
        """Whether this step ends with a logged line, which then holds the gradient diagnostics too."""
        args, step = self.args, self.state.global_step + 1
        first = step == 1 and args.logging_first_step
        if not args.entropy_diagnostics or args.logging_strategy == IntervalStrategy.NO:
            return args.entropy_diagnostics and first
        by_step = args.logging_strategy == IntervalStrategy.STEPS
        every = int((self.state.logging_steps if by_step else self._steps_per_epoch()) or 1)
        return first or step >= self.state.max_steps or step % max(every, 1) == 0

    def _steps_per_epoch(self) -> int:
        loader: Any = self.callback_handler.train_dataloader
        try:
            return math.ceil(len(loader) / self.args.gradient_accumulation_steps)
        except TypeError:  # a stream has no length, and no epochs
            return 1

    # ------------------------------------------------------------------------------------------------------- sampler

    def _check_sampler(self, theirs: torch.Tensor | None, ours: torch.Tensor, mask: torch.Tensor) -> None:
        """Before a phase's first update the policy is the one just synced: vLLM's log-probs must be the trainer's."""
        if theirs is None or not self.use_vllm:  # a rollout_func of one's own: TRL does not use its log-probs either
            return
        if reasons := agreement.incomparable(self.args):
            logger.warning_once(f"vLLM's log-probs are not checked against the trainer's: {', '.join(reasons)}")
            return
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else self.model.dtype
        report = vllm_sync.check_sync(
            theirs,
            ours.detach(),
            mask,
            tolerance=self.args.sampler_tolerance or vllm_sync.default_tolerance(dtype),
            generation=self.vllm_generation,
            model=self.model,
            step=self.state.global_step,
        )
        self._metrics["train"]["sampler/mean_gap"].append(report.mean_gap)

    def _generate(self, prompts: list[Any]) -> Any:
        found = super()._generate(prompts)
        prompt_ids, completion_ids, *_ = found
        if self.rollout_func is not None:
            agreement.check_ids([*prompt_ids, *completion_ids], self._base_model(), self._tokenizer)
        if self._tokenless:
            drawn = sum(token in self._tokenless for ids in completion_ids for token in ids)
            counts = torch.tensor([drawn, sum(map(len, completion_ids))], device=self.accelerator.device)
            drawn, total = self._over_ranks(counts)
            mode = "train" if self.model.training else "eval"
            self._metrics[mode]["sampler/tokenless_share"].append(drawn / max(total, 1))
        return found

    # ---------------------------------------------------------------------------------------------------------- keep

    def _state(self) -> dict[str, Any]:
        return {
            "control_state": self.control_state.to_dict(),
            "phase": self._phase,
            "micro_batches": self._step,
            "alarms": self.alarms.state(),
        }

    def _restore(self, kept: dict[str, Any]) -> None:
        self.control_state = State.from_dict(kept["control_state"])
        self._phase = list(kept["phase"])
        self._step = kept["micro_batches"]  # where in a rollout phase
        self.alarms.restore(kept["alarms"])

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._prompt_order = super()._get_train_sampler(dataset)
        return self._prompt_order

    def _add_heads(self) -> None:
        """Give the policy the entropy head, and the reference too where positions must be counted from the mask."""
        policy, args = self._base_model(), self.args
        options: dict[str, Any] = {
            "temperature": self.temperature, "cast_lm_head_to_fp32": args.cast_lm_head_to_fp32,
            "tile_bytes": args.entropy_tile_bytes, "engine": args.entropy_engine,
            "positions_from_mask": agreement.counts_padding(policy, self.accelerator),
        }  # fmt: skip
        add_entropy_head(policy, support=self.support, **options)
        if self.ref_model is not None and options["positions_from_mask"]:
            add_entropy_head(self.ref_model, support=None, **options)


def check_kept_tokens(support: Any, vocabulary: int) -> None:
    """Refuse a clamp under which every entropy is 0 or the full one, and a rule that does not answer with weights.

    Raises:
        ValueError: it keeps a single token of this vocabulary, or all though it says otherwise, or fails on a torch
            tensor.
    """
    if isinstance(support, TopK) and support.k > vocabulary:
        raise ValueError(
            f"k={support.k} of the top_k support is more than the vocabulary of {vocabulary} tokens: nothing would be "
            "cut. Give a smaller k, or take the support full"
        )
    if isinstance(support, DropLowest) and support.share and support.kept(vocabulary) == vocabulary:
        raise ValueError(
            f"share={support.share} of the drop_lowest support is less than one of the vocabulary's {vocabulary} "
            "tokens: nothing would be cut. Give a larger share, or take the support full"
        )
    try:
        steepness = torch.tensor([[0.1], [0.5], [1.0], [2.0], [4.0]])  # from nearly flat to p = .92 for the first token
        weights = support_weights(-steepness * torch.arange(1.0, vocabulary + 1).log(), support)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:  # whatever a rule of the user's may raise
        raise ValueError(
            f"{support}: weights(logits) failed on a torch tensor ({type(error).__name__}: {error}); use the functions "
            "of array_api_compat.array_namespace(logits), which serve numpy and torch alike"
        ) from error
    kept = support.kept(vocabulary) if hasattr(support, "kept") else int((weights > 0).sum(-1).max())
    if kept < 2:
        raise ValueError(f"{support} keeps {kept} of {vocabulary} tokens: its entropy is 0. Keep 2 or more")


def check_controller(rule: Any, vocabulary: int) -> None:
    """Refuse a rule that does not answer entropies with one finite coefficient, tried from log(vocabulary) down to 0.

    Raises:
        ValueError: what the rule answered or raised, and the entropy it was given.
    """
    given = "its start"
    try:
        state = _one_number(rule.init())
        for entropy in (math.log(vocabulary), 0.5 * math.log(vocabulary), 0.0):
            given = f"an entropy of {entropy:.3g} nats"
            state = _one_number(rule.update(state, entropy))
    except (Exception, SystemExit) as error:  # whatever a rule of the user's may raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{type(rule).__name__} failed on {given} ({kind}{error})") from error


def check_shaping(rule: Shaping, coefficient: float) -> None:
    """Refuse a rule that does not answer two responses of three tokens with a finite weight for each.

    Raises:
        ValueError: what the rule answered or raised.
    """
    log_probs, row = -torch.linspace(0.5, 1.5, 6).view(2, 3), torch.tensor([1.0, 0.5])
    tokens = Tokens(
        log_probs=log_probs,
        old_log_probs=log_probs,
        advantages=torch.tensor([[1.0], [-1.0]]),
        mask=torch.ones_like(log_probs),
        entropy=-log_probs,
        old_entropy=-log_probs,
        support_entropy=-log_probs,
        kept=torch.full_like(log_probs, 10.0),
        solved=row,
        reference_log_probs=log_probs if "reference_log_probs" in rule.needs else None,
        uniforms=torch.full_like(log_probs, 0.5) if "uniforms" in rule.needs else None,
    )
    name = type(rule).__name__
    try:
        weights = rule(tokens, coefficient)
        found = {"policy": weights.policy, "bonus": weights.bonus}
        bad = [one for one, value in found.items() if value.shape != (2, 3) or not bool(torch.isfinite(value).all())]
    except (Exception, SystemExit) as error:  # whatever a rule of the user's may raise
        raise ValueError(f"{name} failed on two responses of three tokens ({type(error).__name__}: {error})") from error
    if bad:
        raise ValueError(f"{name}: expected a finite weight for each of 2 x 3 tokens ({bad[0]}), got {found[bad[0]]!r}")


def _one_number(state: Any) -> State:
    """The state as a checkpoint gives it back, whose coefficient a trainer can use."""
    found = State.from_dict(state.to_dict())
    if np.ndim(found.coefficient):
        raise ValueError(f"a trainer has one coefficient, got {found.coefficient!r}")
    return found


def _engine(model: Any, args: AEntGRPOConfig) -> Any:
    """Context in which TRL builds its colocated vLLM engine with the options that it leaves out."""
    if not args.use_vllm or args.vllm_mode != "colocate":
        return contextlib.nullcontext()
    return vllm_sync.engine_options(**vllm_sync.default_engine_options(model, args))


class _EpochOrder(TrainerCallback):
    """Makes the order of the prompts a function of (seed, epoch): a run resumed in a later epoch sees the same."""

    def __init__(self, trainer: AEntGRPOTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        order: Any = getattr(self.trainer, "_prompt_order", None)
        if getattr(order, "generator", None) is not None:
            order.generator.manual_seed(args.seed + int(state.epoch or 0))
