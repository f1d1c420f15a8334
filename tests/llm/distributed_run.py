"""A few steps of the small trainer in this process or under torchrun; prints one JSON line from rank 0.

    python distributed_run.py single OUT            torchrun --nproc_per_node=2 distributed_run.py ddp|fsdp2 OUT

A third argument lets something happen on rank 1 alone in step 3: ``nan`` (one entry of its gradient), ``signal`` (it
gets SIGTERM), ``reward`` (its rewards are infinite); ``resume`` goes on from the last checkpoint. Every rank writes
to OUT how it ended.

Completions are a fixed function of the prompt and its place in the group, so that every way of splitting the same
global batch over ranks and micro-batches trains on the same tokens.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

import small
from aent_llm.training import signals
from aent_llm.training.trainer import AEntGRPOTrainer

BAND = {"type": "band", "initial": 0.3, "low": 1.5, "high": 1.6, "step_size": 0.5, "minimum": 0.01, "maximum": 5.0}
KEYS = ("loss", "reward", "grad_norm", "entropy/full", "entropy/clamped", "entropy/coef", "entropy/grad_cosine",
        "entropy/bonus_grad_share", "entropy/correct", "entropy/sampled", "entropy/dropped_mass")  # fmt: skip


class FixedRollouts(AEntGRPOTrainer):
    """Completions that depend on nothing but their prompt."""

    def _generate_single_turn(self, prompt_ids, *_args, **_options):
        seen: Counter = Counter()
        completions = []
        for ids in map(tuple, prompt_ids):
            seen[ids] += 1
            draw = random.Random(str((ids, seen[ids])))
            completions.append([draw.randrange(3, small.VOCABULARY) for _ in range(draw.randrange(1, 6))] + [1])
        return completions, None


class FSDP2OnCPU(FixedRollouts):
    """accelerate falls back to DDP without a word on a CPU; with its state set, the sharding is the real one."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        plugin = self.accelerator.state._shared_state.get("fsdp_plugin") or _plugin()
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        self.is_fsdp_enabled = True


def _plugin():
    from accelerate.utils import FullyShardedDataParallelPlugin

    return FullyShardedDataParallelPlugin(
        fsdp_version=2, reshard_after_forward=True, auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Qwen2DecoderLayer"], state_dict_type="FULL_STATE_DICT",
    )  # fmt: skip


class OnRank1(TrainerCallback):
    """Does something in step 3."""

    def __init__(self, do):
        self.do = do

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 2 and os.environ["RANK"] == "1":
            self.do()


def poison(trainer) -> None:
    """Make one entry of a gradient NaN after ranks have summed theirs, or in this rank's shard."""
    weight = trainer.model.model.layers[1].mlp.up_proj.weight
    real = trainer._finish_window

    def finish() -> None:
        gradient = weight.grad.to_local() if hasattr(weight.grad, "to_local") else weight.grad
        gradient[0, 0] = math.nan
        real()

    trainer._finish_window = finish


def main(kind: str, out: str, what: str = "") -> None:
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    from aent.entropy import TopK
    from aent_llm.training.config import AEntGRPOConfig

    infinite = []

    def even_words(completions, **columns):
        return [math.inf] * len(completions) if infinite else small.even_words(completions)

    trainer = {"single": FixedRollouts, "ddp": FixedRollouts, "fsdp2": FSDP2OnCPU}[kind](
        small.model(),
        [even_words],
        AEntGRPOConfig(
            **{
                **small.SETTINGS, "output_dir": out, "max_steps": 4, "per_device_train_batch_size": 8 // ranks,
                "entropy_support": TopK(9), "entropy_controller": BAND, "learning_rate": 0.02,
                **({"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"} if what else {}),
            }
        ),
        train_dataset=small.prompts(),
        processing_class=small.tokenizer(),
    )  # fmt: skip
    if what:
        ended(trainer, what, infinite)
        return
    trainer.train()
    sharded = any(type(p).__name__ == "DTensor" for p in trainer.model.parameters())
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in trainer.model.parameters()]
    norm = float(torch.cat([p.detach().flatten() for p in full]).double().norm())
    if trainer.accelerator.is_main_process:
        steps = [entry for entry in trainer.state.log_history if "loss" in entry]
        print(
            "RESULT "
            + json.dumps(
                {
                    "steps": [{key: entry.get(key) for key in KEYS} for entry in steps],
                    "coefficient": trainer.control_state.coefficient,
                    "updates": trainer.control_state.step,
                    "ranks": ranks,
                    "sharded": sharded,
                    "type": str(trainer.accelerator.distributed_type),
                    "weights": norm,
                }
            )
        )


def ended(trainer, what: str, infinite: list) -> None:
    """Print how the run ended on this rank, and whether its weights are those from before the last step."""
    kept = {}
    happens = {
        "nan": lambda: poison(trainer),
        "signal": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "reward": lambda: infinite.append(1),
    }
    if what in happens:
        trainer.add_callback(OnRank1(happens[what]))
    keep = TrainerCallback()
    keep.on_step_begin = lambda *_, **__: kept.update(weights=local(trainer))
    trainer.add_callback(keep)
    said, status = "", 0
    try:
        with signals.handled() as trainer.stop:
            trainer.train(resume_from_checkpoint=True if what == "resume" else None)
    except (Exception, signals.Interrupted) as error:
        said, status = f"{type(error).__name__}: {error}", getattr(error, "status", 1)
    moved = bool(kept) and not torch.equal(local(trainer), kept["weights"])
    result = {"said": said, "status": status, "moved": moved, "step": trainer.state.global_step}
    Path(trainer.args.output_dir, f"{what}-{trainer.accelerator.process_index}.json").write_text(json.dumps(result))
    if trainer.accelerator.is_main_process:
        print("RESULT {}")


def local(trainer) -> torch.Tensor:
    """The weights that this rank holds."""
    parts = (p.to_local() if hasattr(p, "to_local") else p for p in trainer.model.parameters())
    return torch.cat([part.detach().flatten().clone() for part in parts])


if __name__ == "__main__":
    main(*sys.argv[1:])
