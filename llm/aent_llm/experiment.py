"""A training experiment as one YAML file: model, data, rewards, entropy, train, evaluation.

    experiment = load_experiment("cpu_aent", {"train.learning_rate": 1e-4})
    print(experiment.plan(processes=1))          # what would run, without loading anything
    args = experiment.training_arguments("runs/first")

Blocks map one to one onto the classes that use them: ``train`` onto ``trl.GRPOConfig``, ``entropy`` onto the entropy
fields of ``AEntGRPOConfig`` (``entropy: {method: clip-cov}`` takes a published method), ``data`` onto
``data.DataConfig``, ``evaluation`` onto ``EvaluationConfig`` here. A key that is not known is an error with a
suggestion: a setting never goes unused in silence. ``paper`` is documentation.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aent_llm.config_files import CONFIGS, find_config
from aent_llm.data import DataConfig
from aent_llm.evaluate import EvalConfig

__all__ = ["CONFIGS", "EvaluationConfig", "Experiment", "ModelConfig", "load_experiment"]

PARTS = ("support", "controller", "shaping")
EXPONENTS = ("learning_rate", "epsilon")


@dataclass(frozen=True)
class ModelConfig:
    """Where the policy comes from: ``tiny`` (the embedded model), a hub id or a local folder."""

    source: str = "tiny"
    dtype: str = "float32"
    lora: dict[str, Any] | None = None  # fields of peft.LoraConfig
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    tiny: dict[str, Any] = field(default_factory=dict)  # fields of tiny.TinySpec, for source "tiny"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16", "auto"):
            raise ValueError(f"model.dtype={self.dtype!r}: expected float32, bfloat16, float16 or auto")


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out problems, measured before and after training: ``data`` as the data block, the rest as ``EvalConfig``."""

    data: DataConfig
    config: EvalConfig


@dataclass(frozen=True)
class Experiment:
    """A parsed file. ``raw`` is what was written (with overrides), the rest is validated."""

    name: str
    raw: dict[str, Any]
    model: ModelConfig
    data: DataConfig
    rewards: tuple[str, ...]
    entropy: dict[str, Any]
    train: dict[str, Any]
    evaluation: EvaluationConfig | None
    paper: dict[str, Any]

    def training_arguments(self, output: str | Path, **overrides: Any) -> Any:
        """``AEntGRPOConfig`` of this experiment, writing to ``output``."""
        from aent_llm.config import AEntGRPOConfig

        ours = {f"entropy_{name}": value for name, value in self.entropy.items()}
        quiet = {"report_to": "none", "disable_tqdm": True}  # the train command shows one bar and one table
        return AEntGRPOConfig(**{"output_dir": str(output), **quiet, **self.train, **ours, **overrides})

    def plan(self, processes: int = 1) -> dict[str, Any]:
        """Batch arithmetic and entropy block as they would run on ``processes`` GPUs; loads no model and no data."""
        from aent.entropy import support_to_dict
        from aent_llm.config import parts

        train, method = self.train, self.entropy.get("method")
        found = parts(method, *(self.entropy.get(name) for name in PARTS))
        micro = train.get("per_device_train_batch_size", 8) * processes
        accumulate = train.get("gradient_accumulation_steps", 1)
        per_phase, group = train.get("steps_per_generation") or accumulate, train.get("num_generations", 8)
        return {
            "experiment": self.name,
            "model": self.model.source,
            "data": self.data.source,
            "rewards": ", ".join(self.rewards),
            "processes": processes,
            "prompts per rollout phase": micro * per_phase // group,
            "completions per prompt": group,
            "completions per optimiser step": micro * accumulate,
            "optimiser steps per rollout phase": per_phase // accumulate * train.get("num_iterations", 1),
            "learning rate": train.get("learning_rate", 1e-6),
            **({} if method is None else {"method": method}),
            "support": self.entropy.get("support", support_to_dict(found.support)),
            "controller": {"trl": found.trl}
            if found.trl
            else self.entropy.get("controller", found.controller.to_dict()),
            **({} if found.shaping.is_plain else {"shaping": found.shaping.to_dict()}),
            "controller warm-up (rollout phases)": self.entropy.get("warmup_steps", 0),
        }


def load_experiment(path: str | Path, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read and validate an experiment file; ``overrides`` maps dotted keys to values.

    ``path`` may also be the name of a config of the package, such as ``"cpu_aent"`` (see ``find_config``).

    ``entropy.method`` there takes the place of the file's support, controller, shaping and warm-up, which belong to
    another method; to replace a part of the one named, override that part too.

    Raises:
        FileNotFoundError: no such file; near names are listed.
        ValueError: not a mapping, an unknown or missing key, a value that its class refuses.

    Examples:
        >>> experiment = load_experiment("cpu_aent", {"train.num_generations": 16})
        >>> experiment.plan(processes=2)["prompts per rollout phase"]  # 2 batches of 128 completions, 16 per prompt
        16
    """
    path = find_config(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a mapping with model, data, rewards, entropy and train")
    if "entropy.method" in (overrides or {}) and isinstance(raw.get("entropy"), dict):
        raw["entropy"] = {key: value for key, value in raw["entropy"].items() if key not in (*PARTS, "warmup_steps")}
    for key, value in (overrides or {}).items():
        _set(raw, key, value)
    return parse_experiment(raw, path.stem)


def parse_experiment(raw: dict[str, Any], name: str) -> Experiment:
    """Validate the content of an experiment file; see ``load_experiment``."""
    from aent_llm.config import AEntGRPOConfig

    _known(raw, ("model", "data", "rewards", "entropy", "train", "evaluation", "paper"), "the file")
    rewards = raw.get("rewards") or ["math_verify"]
    entropy = _entropy(dict(raw.get("entropy") or {}))
    train = _as_meant(dict(raw.get("train") or {}))
    _known(train, [one.name for one in dataclasses.fields(AEntGRPOConfig)], "train")
    ours = {f"entropy_{name}" for name in ("method", *PARTS)}
    if reserved := sorted({"output_dir", "resume_from_checkpoint", *ours} & set(train)):
        raise ValueError(f"train: {', '.join(reserved)} is not set here; use the command line or the entropy block")
    evaluation = dict(raw.get("evaluation") or {})
    return Experiment(
        name=name,
        raw=raw,
        model=_build(ModelConfig, raw.get("model"), "model"),
        data=_build(DataConfig, raw.get("data"), "data"),
        rewards=tuple([rewards] if isinstance(rewards, str) else rewards),
        entropy=entropy,
        train=train,
        evaluation=_evaluation(evaluation) if evaluation else None,
        paper=dict(raw.get("paper") or {}),
    )


def _entropy(block: dict[str, Any]) -> dict[str, Any]:
    """The entropy block as it was meant; what no one sets stays away if a method or a rule is there to fill it."""
    from aent_llm.config import parts

    _known(block, ("method", *PARTS, "warmup_steps", "diagnostics", "tile_bytes", "engine"), "entropy")
    given = {name: _numbers(block[name]) for name in PARTS if block.get(name) is not None}
    if block.get("method") is None:
        given = {"support": "full", **({} if "shaping" in given else {"controller": 0.0}), **given}
    parts(block.get("method"), *(given.get(name) for name in PARTS))  # refuses here what it would refuse later
    return {**{name: value for name, value in block.items() if name not in PARTS and value is not None}, **given}


def _evaluation(block: dict[str, Any]) -> EvaluationConfig:
    settings = [one.name for one in dataclasses.fields(EvalConfig)]
    data_keys = [one.name for one in dataclasses.fields(DataConfig)]
    _known(block, [*settings, "data"], "evaluation")
    data = block.pop("data", None)
    _known(data or {}, data_keys, "evaluation.data")
    return EvaluationConfig(_build(DataConfig, data, "evaluation.data"), EvalConfig(**block))


def _build(cls: Any, block: Any, where: str) -> Any:
    block = dict(block or {})
    _known(block, [one.name for one in dataclasses.fields(cls)], where)
    try:
        return cls(**block)
    except TypeError as error:
        raise ValueError(f"{where}: {str(error).partition('__init__() ')[2] or error}") from None


def _known(block: dict[str, Any], names: Any, where: str) -> None:
    for key in block:
        if key not in names:
            close = difflib.get_close_matches(str(key), list(names), n=1)
            raise ValueError(f"{where}: unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise ValueError(f"--set {dotted}: {parent} is {raw!r}, not a block with keys")
    raw[last] = value


def _numbers(value: Any) -> Any:
    """YAML takes ``1e-6`` (no dot) for text; in a part of the entropy block no text looks like that."""
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", value) else value


def _as_meant(block: dict[str, Any]) -> dict[str, Any]:
    """Undo two habits of YAML: ``1e-6`` (no dot) is text to it, and ``save_strategy: no`` is false."""

    def meant(key: str, value: Any) -> Any:
        if key in EXPONENTS and isinstance(value, str):
            return float(value)
        return "no" if key.endswith("_strategy") and value is False else value

    return {key: meant(key, value) for key, value in block.items()}
