"""A training experiment as one YAML file: model, data, rewards, entropy, train, evaluation.

    experiment = load_experiment("cpu_aent", {"train.learning_rate": 1e-4})
    print(experiment.plan(processes=1))          # what would run, without loading anything
    args = experiment.training_arguments("runs/first")

Blocks map one to one onto the classes that use them: ``train`` onto ``trl.GRPOConfig``, ``entropy`` onto the entropy
fields of ``AEntGRPOConfig`` (``entropy: {method: clip-cov}`` takes a published method), ``data`` onto
``data.DataConfig``, ``evaluation`` onto ``EvaluationConfig`` here. ``paper`` is documentation. What a block may hold is
derived from its class (``schema.py``), and so is ``reference``, the documentation of all settings: a key that is not
known, or a value of another type, is an error with its line; a setting never goes unused in silence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field

from aent.cli import one_line
from aent.registry import Rules
from aent_llm.config_files import CONFIGS, find_config
from aent_llm.data.problems import DataConfig
from aent_llm.data.tiny import TinySpec
from aent_llm.measure.evaluate import EvalConfig
from aent_llm.schema import (
    Block,
    Count,
    NaturalNumber,
    Places,
    Positive,
    Setting,
    Text,
    block,
    convert_fields,
    narrowed,
    read_yaml,
    setting,
    short,
)
from aent_llm.training.ranges import RANGES
from aent_llm.training.unheeded import unheeded

__all__ = ["CONFIGS", "EvaluationConfig", "Experiment", "ModelConfig", "load_experiment", "reference"]

PARTS = ("support", "controller", "shaping")
RULES = [["entropy", part] for part in PARTS]  # where a block names a rule by its type
LARGEST_ROLLOUT = 2**31  # tokens of a process, of which some ten numbers each are kept
NOT_SET_HERE = {  # a field of AEntGRPOConfig -> where it is set instead
    "output_dir": "by --output on the command line",
    "resume_from_checkpoint": "by --resume on the command line",
    "parallelism_config": "by accelerate's own config file",
    "reward_funcs": "in the block rewards",
    "model_init_kwargs": "in the block model",
}
FROM_FILE = ("accelerator_config", "fsdp_config", "deepspeed")  # a block, or the name of a JSON file with one


class OfTheCommand:
    """Beyond ``RANGES``: what the train command can carry out, and what ``AEntGRPOConfig`` checks in its own words."""

    max_completion_length: Count
    entropy_warmup_steps: NaturalNumber
    sampler_tolerance: Positive | None
    eval_strategy: Literal["no"]  # held-out problems are those of the evaluation block
    save_strategy: Literal["no", "steps", "epoch"]
    do_train: Literal[True]  # false, its default in transformers, would be trained all the same
    remove_unused_columns: Literal[False]  # the rewards read the answer's column


BOUNDS: dict[str, Any] = RANGES | get_type_hints(OfTheCommand, include_extras=True)


@dataclass(frozen=True)
class ModelConfig:
    """Where the policy comes from.

    Raises:
        ValueError: a value of another type, or ``tiny`` beside another source.
    """

    source: Text = setting("tiny", "`tiny` (the embedded model), a hub id or a local folder")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = setting("float32", "of the weights")
    lora: dict[str, Any] | None = setting(None, "train an adapter: fields of `peft.LoraConfig`; null: all weights")
    attn_implementation: Text | None = setting(None, "attention of transformers, e.g. `flash_attention_2`")
    trust_remote_code: bool = setting(False, "run the code that a model of the hub brings along")
    tiny: dict[str, Any] = setting({}, "what the embedded model looks like: fields of `tiny.TinySpec`")

    def __post_init__(self) -> None:
        convert_fields(self, "model")
        if self.tiny and self.source != "tiny":
            raise ValueError(
                f"model.tiny describes the embedded model and has no effect on {self.source!r}: leave it out"
            )


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
        """``AEntGRPOConfig`` of this experiment, writing to ``output``.

        Raises:
            ValueError: whatever TRL, transformers and accelerate refuse, in one line.
        """
        from aent_llm.training.config import AEntGRPOConfig

        ours = {f"entropy_{name}": value for name, value in self.entropy.items()}
        quiet = {"report_to": "none", "disable_tqdm": True}  # the train command shows one bar and one table
        try:
            return AEntGRPOConfig(**{"output_dir": str(output), **quiet, **self.train, **ours, **overrides})
        except Exception as error:  # of several libraries: TypeError, KeyError, AttributeError ...
            raise ValueError(f"{self.name}, train: {_line(error)}") from error

    def plan(self, processes: int = 1) -> dict[str, Any]:
        """Batch arithmetic and entropy block as they would run on ``processes`` GPUs; loads no model and no data.

        Raises:
            ValueError: completions of a rollout that do not fill whole groups, or whole optimiser steps.
        """
        from aent.entropy import support_to_dict
        from aent_llm.training.config import parts

        method = self.entropy.get("method")
        found = parts(method, *(self.entropy.get(name) for name in PARTS))
        batch = self.batch(processes)
        return {
            "experiment": self.name,
            "model": self.model.source,
            "data": self.data.source,
            "rewards": ", ".join(self.rewards),
            "processes": processes,
            "prompts per rollout phase": batch.prompts,
            "completions per prompt": batch.group,
            "completions per optimiser step": batch.completions,
            "optimiser steps per rollout phase": batch.updates,
            "learning rate": self.of_train("learning_rate"),
            **({} if method is None else {"method": method}),
            "support": self.entropy.get("support", support_to_dict(found.support)),
            "controller": {"trl": found.trl}
            if found.trl
            else self.entropy.get("controller", found.controller.to_dict()),
            **({} if found.shaping.is_plain else {"shaping": found.shaping.to_dict()}),
            "controller warm-up (rollout phases)": self.entropy.get("warmup_steps", 0),
        }

    def of_train(self, name: str) -> Any:
        """A setting of the train block, or its default."""
        return self.train.get(name, train_block().settings[name].default)

    def batch(self, processes: int) -> Batch:
        """The batch arithmetic on ``processes`` GPUs. Raises ValueError as ``plan``."""
        group, accumulate = self.of_train("num_generations"), self.of_train("gradient_accumulation_steps")
        micro = self.of_train("per_device_train_batch_size") * processes
        whole = self.of_train("generation_batch_size")
        phase = self.of_train("steps_per_generation") or (accumulate if whole is None else whole // micro)
        asked = micro * phase
        lengths = f"per_device_train_batch_size {micro // processes} x {processes} process(es) x {phase} micro-batches"
        if not asked or (whole is not None and whole % micro):
            raise ValueError(
                f"{self.name}: train.generation_batch_size={whole} is not a multiple of the {micro} completions of a "
                f"micro-batch ({micro // processes} x {processes} process(es)): use a multiple, or leave it out"
            )
        tokens = asked // processes * self.of_train("max_completion_length")
        if tokens > LARGEST_ROLLOUT:
            raise ValueError(
                f"{self.name}: a rollout of {asked // processes} completions per process (train.{lengths}) of up to "
                f"{self.of_train('max_completion_length')} tokens has more than {LARGEST_ROLLOUT:,} tokens, which no "
                "process holds: take fewer at a time"
            )
        if asked % group:
            raise ValueError(
                f"{self.name}: a rollout of {asked} completions (train.{lengths}) is not whole groups of "
                f"train.num_generations={group}: make it a multiple of {group}"
            )
        if phase % accumulate:
            raise ValueError(
                f"{self.name}: a rollout of {phase} micro-batches (train.steps_per_generation) is not whole optimiser "
                f"steps of train.gradient_accumulation_steps={accumulate}: use a multiple, or leave it out"
            )
        return Batch(asked // group, group, micro * accumulate, phase // accumulate * self.of_train("num_iterations"))


@dataclass(frozen=True)
class Batch:
    """What a rollout phase takes and gives: prompts, completions of each, completions and number of optimiser steps."""

    prompts: int
    group: int
    completions: int
    updates: int


# ----------------------------------------------------------------------------------------------------------- reading


def load_experiment(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read and validate an experiment file; ``overrides`` maps dotted keys to values.

    ``entropy.method`` there takes the place of the file's support, controller, shaping and warm-up, which belong to
    another method; to replace a part of the one named, override that part too. ``entropy.controller.type`` and its
    like do the same with the options of the file's rule.

    Args:
        path: a file, or the name of a config of the package.
        overrides: dotted keys.

    Raises:
        FileNotFoundError: no such file; near names are listed.
        ValueError: not UTF-8, not YAML, not a mapping, an unknown, missing or repeated key, a value that its class
            refuses; place and key are named.

    Examples:
        >>> experiment = load_experiment("cpu_aent", {"train.num_generations": 16})
        >>> experiment.plan(processes=2)["prompts per rollout phase"]  # 2 batches of 128 completions, 16 per prompt
        16
    """
    path = find_config(path)
    raw, places = read_yaml(path)
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a mapping with model, data, rewards, entropy and train, got {short(raw)}")
    raw, places = overridden(raw, overrides or {}, places)
    return parse_experiment(raw, path.stem, places)


def overridden(raw: dict[str, Any], overrides: Mapping[str, Any], places: Places) -> tuple[dict[str, Any], Places]:
    """The content of a file with other values at dotted keys, and where each was written.

    Raises:
        ValueError: a key without text between its dots, or below a value that is no block.
    """
    raw = dict(raw)
    if overrides.get("entropy.method") is not None and isinstance(raw.get("entropy"), dict):
        raw["entropy"] = {key: value for key, value in raw["entropy"].items() if key not in (*PARTS, "warmup_steps")}
    for dotted, value in sorted(overrides.items(), key=lambda one: not one[0].endswith(".type")):
        *parents, last = dotted.split(".")
        if not all((*parents, last)):
            raise ValueError(f"--set {dotted}: expected a key such as train.max_steps")
        at = raw
        for parent in parents:
            inner = at.get(parent)
            if inner is not None and not isinstance(inner, dict):
                raise ValueError(f"--set {dotted}: {parent} is {short(inner)}, not a block with keys")
            at[parent] = dict(inner or {})  # a copy: the caller's tree stays
            at = at[parent]
        if last == "type" and parents in RULES and at.get("type") != value:  # the options of the file's rule go with it
            at.clear()
        at[last] = value
        places = places.overridden((*parents, last))
    return raw, places


def parse_experiment(raw: dict[str, Any], name: str, places: Places | None = None) -> Experiment:
    """Validate the content of an experiment file; see ``load_experiment``."""
    places = places or Places()
    given = block(_File).checked(raw, places)
    model = block(ModelConfig).checked(given.get("model"), places, ("model",))
    if model.get("lora") is not None:
        model["lora"] = lora_block().checked(model["lora"], places, ("model", "lora"))
    if "tiny" in model:
        model["tiny"] = _built(TinySpec, model["tiny"], places, ("model", "tiny"), as_dict=True)
    names, weights = _rewards(given.get("rewards"), places)
    train = _train(given.get("train"), names, weights, places)
    return Experiment(
        name=name,
        raw=raw,
        model=_made(ModelConfig, model, places, ("model",)),
        data=_built(DataConfig, given.get("data"), places, ("data",)),
        rewards=names,
        entropy=_entropy(given.get("entropy"), places),
        train=train,
        evaluation=_evaluation(given.get("evaluation"), places),
        paper=given.get("paper") or {},
    )


@dataclass
class _File:
    """The blocks of a file; what is in each is checked by itself."""

    data: dict[str, Any] = field(metadata={"help": "the problems to train on"})
    model: dict[str, Any] | None = setting(None, "where the policy comes from")
    rewards: Text | list[Text] | dict[str, float] | None = setting(
        "math_verify",
        "names of `rewards.py`, or dotted paths of functions (`package.module:function`); `{name: weight, ...}` weighs "
        "them; the first one says what is correct",
    )
    entropy: dict[str, Any] | None = setting(None, "what the bonus is taken over, and what moves its coefficient")
    train: dict[str, Any] | None = setting(None, "everything else of `trl.GRPOConfig`")
    evaluation: dict[str, Any] | None = setting(None, "held-out problems, measured before and after training")
    paper: dict[str, Any] | None = setting(None, "documentation: what a published run used and reported")


def _built(cls: Any, given: Any, places: Places, path: tuple[str, ...], *, as_dict: bool = False) -> Any:
    """The dataclass of a block, its values checked with their lines; ``as_dict``: the values alone."""
    values = block(cls).checked(given, places, path)
    made = _made(cls, values, places, path)
    return values if as_dict else made


def _made(cls: Any, values: dict[str, Any], places: Places, path: tuple[str, ...]) -> Any:
    try:
        return cls(**values)
    except ValueError as error:  # what only several fields together can say
        named = (name for name in values if f"{path[-1]}.{name}" in str(error))
        raise ValueError(f"{places.of((*path, next(named, '')))}{error}") from None


def _rewards(given: Any, places: Places) -> tuple[tuple[str, ...], list[float] | None]:
    """Names, and weights if there are any."""
    given = "math_verify" if given is None else given
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{places.of(('rewards',))}rewards: expected one or more different names, got {short(given)}")
    return names, list(given.values()) if isinstance(given, dict) else None


def _train(given: Any, rewards: tuple[str, ...], weights: list[float] | None, places: Places) -> dict[str, Any]:
    from aent_llm.training.config import check_weights

    for key in given if isinstance(given, Mapping) else ():
        elsewhere = "in the block entropy" if key in _ours() else NOT_SET_HERE.get(key)
        if elsewhere:
            raise ValueError(f"{places.of(('train', key))}train: {key} is not set here; it is set {elsewhere}")
    train = train_block().checked(given, places, ("train",))
    here = places.of(("train", "reward_weights"))
    if weights is not None:
        if train.get("reward_weights") is not None:
            raise ValueError(f"{here}train.reward_weights and the weights in rewards: give the weights once")
        train["reward_weights"] = weights
    if train.get("reward_weights") is not None and len(train["reward_weights"]) != len(rewards):
        raise ValueError(
            f"{here}train.reward_weights: expected one number for each of {', '.join(rewards)}, got "
            f"{short(train['reward_weights'])}"
        )
    try:
        check_weights(train.get("reward_weights"))
    except ValueError as error:
        raise ValueError(f"{places.of(('rewards',)) if weights else here}{error}") from None
    for names, why in unheeded(train):
        here = places.of(("train", names[0]))
        raise ValueError(f"{here}train.{names[0]} has {why}. Leave it out")
    _check_text(train, places)
    for name in ("logging_steps", "save_steps"):
        every = train.get(name, 1)
        if every > 1 and every != int(every):
            raise ValueError(
                f"{places.of(('train', name))}train.{name}: expected a whole number, or a share of all steps"
            )
    if train.get("max_steps") == 0:
        raise ValueError(
            f"{places.of(('train', 'max_steps'))}train.max_steps: expected 1 or more, or -1 (epochs), got 0"
        )
    return train


def _check_text(train: dict[str, Any], places: Places) -> None:
    """Read what stands in a text: blocks of settings in JSON or in a file, options of the optimiser."""
    from trl.trainer.grpo_config import GRPOConfig

    for name in GRPOConfig._VALID_DICT_FIELDS:
        if isinstance(text := train.get(name), str):
            try:
                from_file = name in FROM_FILE and not text.startswith("{")
                found = json.loads(Path(text).read_text(encoding="utf-8") if from_file else text)
                fault = "" if isinstance(found, dict) else "no JSON object"
            except OSError as error:
                fault = f"it cannot be read ({error.strerror})"
            except (ValueError, RecursionError):
                fault = "no JSON"
            if fault:
                what = f"a block of settings{', or a JSON file with one' * (name in FROM_FILE)}"
                place = places.of(("train", name))
                raise ValueError(f"{place}train.{name}: expected {what}, got {short(text)}: {fault}")
    options = train.get("optim_args")
    if options and not all(re.fullmatch(r"[^=]+=[^=]+", one) for one in options.replace(" ", "").split(",")):
        raise ValueError(
            f"{places.of(('train', 'optim_args'))}train.optim_args: expected name=value, or several with commas "
            f"between them, got {short(options)}"
        )


def _entropy(given: Any, places: Places) -> dict[str, Any]:
    """The entropy block as it was meant; what no one sets stays away if a method or a rule is there to fill it."""
    from aent_llm.training.config import parts

    values = {key: one for key, one in entropy_block().checked(given, places, ("entropy",)).items() if one is not None}
    rules = {name: _rule(name, values.pop(name), places) for name in PARTS if name in values}
    if "method" not in values:
        rules = {"support": "full", **({} if "shaping" in rules else {"controller": 0.0}), **rules}
    try:
        parts(values.get("method"), *(rules.get(name) for name in PARTS))  # refuses here what it would refuse later
    except ValueError as error:
        raise ValueError(f"{places.of(('entropy', 'method'))}entropy: {error}") from None
    return values | rules


def _rule(name: str, given: Any, places: Places) -> Any:
    """A support, controller or shaping rule, its numbers converted by the fields of its class."""
    from aent_llm.training import config

    path = ("entropy", name)
    if isinstance(given, Mapping):
        kind, options = given.get("type"), {key: value for key, value in given.items() if key != "type"}
        if not isinstance(kind, str):
            raise ValueError(f"{places.of((*path, 'type'))}entropy.{name}.type is needed: {', '.join(rules_of(name))}")
        try:
            _, rule = rules_of(name).find(kind)
        except ValueError as error:
            raise ValueError(f"{places.of((*path, 'type'))}entropy.{name}.type: {error}") from error
        if dataclasses.is_dataclass(rule):
            try:
                options = block(rule).checked(options, places, path)
            except ValueError as error:
                other = f" (options of {kind}; another rule has others: set entropy.{name}.type too)"
                raise ValueError(f"{error}{other if 'unknown key' in str(error) else ''}") from None
        given = {"type": kind, **options}
    elif name == "controller" and isinstance(given, str):
        with contextlib.suppress(ValueError):  # else the name of a rule
            given = float(given)
    try:
        getattr(config, name)(given)
    except ValueError as error:
        options = given if isinstance(given, Mapping) else {}
        named = next((key for key in options if re.search(rf"\b{re.escape(key)}\b", str(error))), "")
        raise ValueError(f"{places.of((*path, named))}entropy.{name}: {error}") from None
    return given


def rules_of(name: str) -> Rules[Any]:
    """The supports, controllers or shaping rules by name."""
    from aent_llm.training import config

    return {"support": config.SUPPORTS, "controller": config.Controller.registry, "shaping": config.Shaping.registry}[
        name
    ]


def _evaluation(given: Any, places: Places) -> EvaluationConfig | None:
    if not given:
        return None
    values = evaluation_block().checked(given, places, ("evaluation",))
    data = _built(DataConfig, values.pop("data"), places, ("evaluation", "data"))
    return EvaluationConfig(data, _made(EvalConfig, values, places, ("evaluation",)))


# ------------------------------------------------------------------------------------------------------------ blocks


@functools.cache
def train_block() -> Block:
    """The settings of ``AEntGRPOConfig`` that an experiment file can set in ``train``."""
    from aent_llm.training.config import AEntGRPOConfig

    return narrowed(AEntGRPOConfig, BOUNDS | dict.fromkeys((*NOT_SET_HERE, *_ours())))


@functools.cache
def _ours() -> tuple[str, ...]:
    """The fields of the entropy block as ``AEntGRPOConfig`` names them."""
    from aent_llm.training.config import AEntGRPOConfig

    inherited = {one.name for base in AEntGRPOConfig.__bases__ for one in dataclasses.fields(base)}
    names = [one.name for one in dataclasses.fields(AEntGRPOConfig) if one.name not in inherited]
    return tuple(name for name in names if name.startswith("entropy_"))


@functools.cache
def entropy_block() -> Block:
    """The entropy fields of ``AEntGRPOConfig``, without their prefix."""
    from aent_llm.training.config import AEntGRPOConfig

    whole = narrowed(AEntGRPOConfig, BOUNDS).settings
    return Block({name.removeprefix("entropy_"): whole[name] for name in _ours()})


@functools.cache
def evaluation_block() -> Block:
    """The settings of ``EvalConfig`` and the block ``data``."""
    data = Setting(dict[str, Any], dataclasses.MISSING, "the problems: as the block `data`")
    return Block({"data": data, **block(EvalConfig).settings})


@functools.cache
def lora_block() -> Block:
    """The fields of ``peft.LoraConfig`` that say what is trained."""
    from peft import LoraConfig

    named = Literal["gaussian", "eva", "olora", "pissa", "corda", "loftq", "orthogonal", "mica"]
    changed: dict[str, Any] = {
        "r": Annotated[int, Field(ge=1, le=65_536)],
        "lora_alpha": Count,
        "lora_dropout": Annotated[float, Field(ge=0, lt=1)],
        "init_lora_weights": bool | named | Annotated[str, Field(pattern=r"^pissa_niter_\d+$")],
        **dict.fromkeys(("task_type", "peft_type", "peft_version", "base_model_name_or_path", "inference_mode")),
    }
    return narrowed(LoraConfig, changed)


def reference() -> str:
    """Every setting of an experiment file as Markdown, from the classes that take them."""
    sections = [
        ("The file", block(_File).reference(), "The blocks. A block that is left out has its defaults."),
        ("model", block(ModelConfig).reference("model."), ""),
        ("model.tiny", block(TinySpec).reference("model.tiny."), "Of the embedded model."),
        ("model.lora", lora_block().reference("model.lora."), "Of `peft.LoraConfig`."),
        ("data", block(DataConfig).reference("data."), ""),
        ("entropy", entropy_block().reference("entropy."), _rules_reference()),
        *_options_of_rules(),
        ("evaluation", evaluation_block().reference("evaluation."), ""),
        ("train", train_block().reference("train."), "Of `trl.GRPOConfig`, in the words of its authors."),
    ]
    head = (
        "# Settings\n\nWritten by `python -m aent_llm train --settings`. A value is converted to the type of its key "
        "(YAML 1.2: `1e-8` is a number, `no` is text); anything else is refused with its line before a model is "
        "loaded. On the command line: `--set train.learning_rate=1e-6`."
    )
    return "\n\n".join(
        [head, *(part for title, table, text in sections for part in (f"## {title}", text, table) if part)]
    )


def _rules_reference() -> str:
    lines = []
    for name in PARTS:
        rows = [
            f"`{kind}` ({', '.join(settings_names(cls)) or 'no options'})"
            for kind, cls in sorted(rules_of(name).items())
        ]
        lines.append(f"`{name}` takes a name, or `{{type: name, option: value}}`: {'; '.join(rows)}.")
    return "\n\n".join(lines)


def _options_of_rules() -> list[tuple[str, str, str]]:
    """(title, table, what it is) of every rule that has options."""
    return [
        (f"entropy.{name} of type {kind}", block(rule).reference(f"entropy.{name}."), _first_sentence(rule))
        for name in PARTS
        for kind, rule in sorted(rules_of(name).items())
        if settings_names(rule)
    ]


def _first_sentence(rule: type) -> str:
    """What a rule is, and where its formula stands."""
    first = " ".join((rule.__doc__ or "").partition("\n\n")[0].split()).replace("``", "`")
    return f"{first} See `{rule.__module__}.{rule.__name__}`."


def settings_names(cls: Any) -> list[str]:
    """The options of a rule."""
    return list(block(cls).settings) if dataclasses.is_dataclass(cls) else []


def _line(error: BaseException) -> str:
    return one_line(str(error)) or type(error).__name__
