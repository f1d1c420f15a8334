"""TRL's GRPO that loses no work: it stops before NaN reaches the weights, seals its checkpoints and resumes from them.

1. stop: loss, rewards, gradient norm and weights are finite, or the run ends with a ``NonFiniteError``. Ranks exchange
   what they found after the last backward pass and before the optimiser, and so stop together.
2. keep: a checkpoint counts once it is sealed (``checkpoint.py``), old ones are deleted after that, and a run goes on
   from the newest whole one, under the settings it was written with.
3. signals: SIGTERM and SIGINT end a run after a checkpoint (``signals.py``).

Left out: rollouts are not in a checkpoint. Resumed in the middle of a phase, a run draws the rest of it anew.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import IntervalStrategy, TrainOutput, rotate_checkpoints
from transformers.utils import logging

from aent.cli import UsersCodeError
from aent_llm.data.reward_checks import check_rewards
from aent_llm.training import checkpoint
from aent_llm.training.finite import NonFiniteError, are_finite
from aent_llm.training.policy_loss import ShapedGRPOTrainer
from aent_llm.training.signals import Interrupted, Stop

__all__ = ["SafeGRPOTrainer"]

logger = logging.get_logger(__name__)


class SafeGRPOTrainer(ShapedGRPOTrainer):
    """``ShapedGRPOTrainer`` with finite checks, sealed checkpoints and a stop by signal."""

    def __init__(self, model: Any, reward_funcs: Any, args: Any, **options: Any):
        super().__init__(model, reward_funcs, args=args, **options)
        self.stop = Stop()  # replaced by what ``signals.handled`` gives
        self._stop_number = 0  # the signal that all ranks have agreed on
        self._kept: dict[str, Any] = {}  # what the checkpoint to go on from keeps
        self._saving = False
        self._faults: list[Any] = []  # of the rewards of this rollout
        self.reward_funcs = [
            one if isinstance(one, torch.nn.Module) else check_rewards(one, name, self._faults.append)
            for one, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]
        self.add_callback(_StepEnd(self))

    def _state(self) -> dict[str, Any]:
        """What a subclass adds to a checkpoint (JSON-ready)."""
        return {}

    def _restore(self, kept: dict[str, Any]) -> None:
        """Take up what ``_state`` gave."""

    # ---------------------------------------------------------------------------------------------------------- stop

    def _stop_if_not_finite(self, mine: list[torch.Tensor]) -> None:
        """Look at one flag for each micro-batch of an optimiser step, on all ranks."""
        finite: Any = self.accelerator.gather(torch.stack(mine)[None])  # (ranks, micro-batches)
        if not bool(finite.all()):
            found = ", ".join(f"rank {rank} micro-batch {batch}" for rank, batch in (~finite).nonzero().tolist())
            where = f"the loss, the log-probabilities or the entropy at step {self.state.global_step + 1}"
            raise self._not_finite(f"{where} ({found} of {finite.shape[1]})", moved=self._moves_early)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called after the last backward pass and before the optimiser: here all ranks agree whether to go on."""
        norm = super()._get_grad_norm(model, grad_norm)
        mine = [0.0 if norm is None or self._scales_down(norm) else float(norm), float(self.stop.number)]
        everyone: Any = self.accelerator.gather(torch.tensor([mine], device=self.accelerator.device))
        norms, signals = everyone.T.tolist()
        if bad := [rank for rank, one in enumerate(norms) if not math.isfinite(one)]:
            where = f"the gradient (its norm is {norms[bad[0]]}) at step {self.state.global_step + 1}"
            ranks = f"rank {', '.join(map(str, bad))} of {len(norms)}"
            raise self._not_finite(f"{where} ({ranks})", moved=self._moves_early)
        self._stop_number = int(max(signals))
        return norm

    @property
    def _moves_early(self) -> bool:
        """DeepSpeed moves the weights within the backward pass."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _scales_down(self, norm: Any) -> bool:
        """With float16 an overflow is usual: the scaler leaves the step out and halves its factor, down to 1."""
        scaler = self.accelerator.scaler
        return scaler is not None and not math.isfinite(norm) and scaler.is_enabled() and scaler.get_scale() > 1

    def _stop_if_weights_are_not_finite(self) -> None:
        finite = are_finite(weight for weight in self.model.parameters() if weight.requires_grad)
        if self.is_sharded:  # else every rank has the same
            bad: Any = self.accelerator.reduce(torch.tensor(float(not finite), device=self.accelerator.device))
            finite = not bool(bad)
        if not finite:
            raise self._not_finite(f"the weights after step {self.state.global_step}", moved=True)

    @property
    def is_sharded(self) -> bool:
        """Whether a rank holds only a part of the weights."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _not_finite(self, where: str, *, moved: bool) -> NonFiniteError:
        last, _ = checkpoint.last_complete(str(self.args.output_dir))
        weights = "cannot be used and were not saved" if moved else "were not updated"
        return NonFiniteError(
            f"NaN or infinity in {where}; the weights {weights}. Last complete checkpoint: {last or 'none'}. "
            "Lower the learning rate or the coefficient, or check the rewards of that batch"
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            return super()._generate_and_score_completions(inputs)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            where = f"the probabilities that step {self.state.global_step + 1} samples from"
            raise self._not_finite(where, moved=self.state.global_step > 0) from None

    def _calculate_rewards(self, *args: Any) -> Any:
        self._faults.clear()
        rewards = super()._calculate_rewards(*args)  # of all ranks
        modules = [isinstance(one, torch.nn.Module) for one in self.reward_funcs]
        bad = rewards.isinf() | (rewards.isnan() & torch.tensor(modules, device=rewards.device))
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            name = self.reward_func_names[column]
            fault = (self._faults or [f"the reward {name!r} returned no finite number for completion {row}"])[0]
            if isinstance(fault, UsersCodeError):
                raise self._broken_off(fault) from fault.__cause__
            raise ValueError(
                f"step {self.state.global_step + 1}: {fault}. Expected is one finite number for each completion, or "
                "None, which leaves it out"
            )
        return rewards

    def _broken_off(self, fault: UsersCodeError) -> UsersCodeError:
        last, _ = checkpoint.last_complete(str(self.args.output_dir))
        return UsersCodeError(
            f"step {self.state.global_step + 1}: {fault}. The weights were not updated. Last complete checkpoint: "
            f"{last or 'none'}; once this is mended, the run can be resumed"
        )

    # ---------------------------------------------------------------------------------------------------------- keep

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> Any:
        """Train as ``transformers.Trainer``; ``True`` goes on from the last whole checkpoint, a path from that one.

        Raises:
            ValueError: the checkpoint is damaged, has weights only, or was written with other settings; with ``True``
                there is no whole one.
            Interrupted: a signal came (see ``signals.py``); the checkpoint written for it is named.
        """
        folder = self._whole(resume_from_checkpoint) if resume_from_checkpoint else None
        if folder is not None:
            checkpoint.check_settings(folder, self._kept["settings"], self._settings)
            if self.is_done(folder):
                return self._load_weights(folder)
        self._stop_number = 0
        with self.stop.between_steps():
            result = super().train(folder, *args, **options)
            if self._stop_number:
                raise Interrupted(self._stop_number, self._folder())
        return result

    def last_checkpoint(self) -> str | None:
        """Find the checkpoint that ``train(True)`` goes on from, the same on all ranks; None if none was ever whole.

        Raises:
            ValueError: there are checkpoints, and all are damaged.
        """
        return self._chosen(functools.partial(checkpoint.to_resume, str(self.args.output_dir)))

    def _whole(self, asked: str | bool) -> str:
        """A checkpoint whose files are as they were written, and whose state is in ``_kept``."""

        def this_one() -> tuple[Path, list[str]]:
            checkpoint.unseal(str(asked))
            return Path(str(asked)), []

        if asked is not True and self._kept.get("folder") == str(asked):
            return str(asked)  # read a moment ago
        found = self.last_checkpoint() if asked is True else self._chosen(this_one)
        if found is None:
            raise ValueError(f"no complete checkpoint in {self.args.output_dir}: leave resume_from_checkpoint out")
        return found

    def _chosen(self, choose: Callable[[], tuple[Path | None, list[str]]]) -> str | None:
        """Let rank 0 read the checkpoints, which takes a while, and tell the others what it found."""
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                folder, passed_over = choose()
                for reason in passed_over:
                    logger.warning(f"not used: {reason}")
                kept = {} if folder is None else checkpoint.read_seal(folder)["state"]
                found = [{**kept, "folder": None if folder is None else str(folder)}]
            except ValueError as error:
                found = [error]
        (self._kept,) = broadcast_object_list(found)
        if isinstance(self._kept, ValueError):
            error, self._kept = self._kept, {}
            raise error
        return self._kept["folder"]

    def is_done(self, folder: str) -> bool:
        """Whether nothing is left to train; transformers would train a step more."""
        state = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json"))
        asked = self.args.max_steps
        return state.global_step == asked if asked > 0 else (state.epoch or 0) >= self.args.num_train_epochs

    def _load_weights(self, folder: str) -> TrainOutput:
        if self.is_sharded:
            raise ValueError(f"all steps are done; the weights are in {folder}")
        self._load_from_checkpoint(folder)
        self.state = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json"))
        return TrainOutput(self.state.global_step, math.nan, {})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as ``transformers.Trainer``, unless it is broken.

        Raises:
            NonFiniteError: a weight is NaN or infinite; nothing was written.
            OSError: it cannot be written; says where, why and what to do.
        """
        self._stop_if_weights_are_not_finite()
        folder = output_dir or str(self.args.output_dir)
        with contextlib.nullcontext() if _internal_call else checkpoint.explained(folder):
            super().save_model(output_dir, _internal_call)

    def _folder(self, trial: Any = None) -> Path:
        return Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self._folder(trial)
        if self.args.should_save:
            (folder / checkpoint.SEAL).unlink(missing_ok=True)  # of an earlier attempt: it is not whole meanwhile
        with checkpoint.explained(folder, discard=True):
            with self._without_rotation():
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                settings = {**self._settings, "save_only_model": self.args.save_only_model}
                checkpoint.seal(folder, {"settings": settings, **self._state()})
                best = self.state.best_model_checkpoint
                rotate_checkpoints(str(folder.parent), self.args.save_total_limit, best, use_mtime=True)
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _without_rotation(self) -> Iterator[None]:
        """transformers would delete an old checkpoint before the new one is sealed; TRL would write a model card."""
        limit, self.args.save_total_limit, self._saving = self.args.save_total_limit, None, True
        try:
            yield
        finally:
            self.args.save_total_limit, self._saving = limit, False

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Write TRL's model card, but beside checkpoints for the hub only: it knows neither task nor data of a run."""
        if not self._saving or self.args.push_to_hub:
            super().create_model_card(*args, **options)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._restore(self._kept)
            self.state.compute_steps(self.args, self.state.max_steps)  # the present ones, not those of the checkpoint

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        return checkpoint.settings(self.args, rewards=self.reward_func_names, dataset=self.train_dataset)


class _StepEnd(TrainerCallback):
    """Looks at the weights; saves and stops if a signal asked for it. The last step of a run is always logged."""

    def __init__(self, trainer: SafeGRPOTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._stop_if_weights_are_not_finite()
        if self.trainer._stop_number:
            control.should_save = control.should_training_stop = True
            args.save_only_model = False  # of this one: it is there to be gone on from
        if control.should_training_stop and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True
