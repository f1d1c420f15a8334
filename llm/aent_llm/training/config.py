"""The entropy block of a training config, on top of ``trl.GRPOConfig``.

A TRL user changes one class name and adds what the bonus is taken over and how its coefficient moves:

    AEntGRPOConfig(..., entropy_support={"type": "drop_lowest", "share": 0.33},
                        entropy_controller={"type": "band", "initial": 2e-3, "low": .15, "high": .24, "step_size": 2e-3,
                                            "minimum": 6e-4, "maximum": 9e-3},
                        entropy_warmup_steps=30)

or takes a published method by its name and replaces what should be different:

    AEntGRPOConfig(..., entropy_method="siren", entropy_support={"type": "nucleus", "mass": 0.9})

Supports, controllers and shaping rules are those of ``aent`` or your own, given as objects or as dictionaries with a
``type`` (``Band``, ``band`` and ``bang_bang`` are all understood, and ``my_rules:MinP``, which imports ``my_rules``);
the fields hold plain dictionaries afterwards, because a config is saved as JSON. On a command line (HfArgumentParser,
TrlParser) they are JSON, a name or a number:

    --entropy_support '{"type": "top_k", "k": 9}' --entropy_controller 0.01

A number is a number and text is text, but for ``1e-3``, which the YAML of TRL's files takes for text.

Where TRL has a method built in (clip-higher, Skywork-OR1) the method's name sets TRL's fields; otherwise TRL's own
entropy bonus is refused beside ours: two bonuses in one loss have no meaning.
"""

from __future__ import annotations

import json
import math
import numbers
import re
import warnings
from dataclasses import dataclass, field, is_dataclass
from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np
from trl.trainer.grpo_config import GRPOConfig

from aent.controllers import Constant, Controller
from aent.entropy import SUPPORTS, Support, support_to_dict
from aent.methods import METHODS, method_name
from aent.shaping import Shaping, tempered_members
from aent_llm.data.rewards import CORRECT_REWARD
from aent_llm.head.fused import Engine
from aent_llm.schema import REAL, convert_fields, short
from aent_llm.training.agreement import check_generation_kwargs
from aent_llm.training.ranges import ranges_of

__all__ = ["AEntGRPOConfig", "Parts", "controller", "parts", "shaping", "support"]

PARTS = ("entropy_support", "entropy_controller", "entropy_shaping")
_JSON = '{"type": "top_k", "k": 9}'
TOKEN_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")  # of TRL: -weight * log pi per token, which a rule can take over


def support(given: Any) -> Support:
    """Read a support rule: ``"full"``, ``{"type": "top_k", "k": 100}`` or a rule itself.

    Raises:
        ValueError: unknown type (with a suggestion), wrong or missing options, values out of range.
    """
    return SUPPORTS.read(given, "entropy_support")


def controller(given: Any) -> Controller:
    """Read a controller: ``{"type": "band", "initial": 2e-3, ...}``, a number (constant coefficient) or a rule itself.

    Raises:
        ValueError: as ``support``; a number that float32 cannot compute with.
    """
    if isinstance(given, numbers.Real) and not isinstance(given, bool):
        given = {"type": "Constant", "coefficient": float(given)}
    return _in_float32(Controller.registry.read(given, "entropy_controller"), "entropy_controller")


def shaping(given: Any) -> Shaping:
    """Read a shaping rule: ``"kl_covariance"``, ``{"type": "PeakBonus", "quantile": .9}`` or a rule itself.

    Raises:
        ValueError: as ``support``.
    """
    return _in_float32(Shaping.registry.read(given, "entropy_shaping"), "entropy_shaping")


def _in_float32(rule: Any, where: str) -> Any:
    """Give back a rule whose numbers leave the loss finite, which is computed in float32."""
    for name, value in (vars(rule) if is_dataclass(rule) else {}).items():
        if isinstance(value, int | float | np.number | np.ndarray) and np.any(np.abs(np.asarray(value, float)) > REAL):
            raise ValueError(f"{where}: {name}={value!r} overflows in float32; give at most {REAL:g}")
    return rule


class Parts(NamedTuple):
    """What a config comes down to. ``trl`` are the fields of ``GRPOConfig`` that do the method's work, if TRL does."""

    support: Support
    controller: Controller
    shaping: Shaping
    trl: dict[str, Any]


def parts(name: str | None, support_: Any = None, controller_: Any = None, shaping_: Any = None) -> Parts:
    """A method and what replaces its parts (``None``: nothing) -> the parts; without a method full entropy, no bonus.

    TRL does a method that it has built in as long as neither controller nor shaping are others.

    Raises:
        ValueError: as ``support``, ``controller``, ``shaping``, ``method_name``; a shaping rule without a coefficient.

    Examples:
        >>> parts("siren", support_={"type": "top_k", "k": 100}).support  # SIREN's own is a nucleus
        TopK(k=100)
        >>> parts("clip_higher").trl  # TRL does this one
        {'epsilon_high': 0.28}
    """
    chosen = METHODS["none" if name is None else name]
    over = chosen.support if support_ is None else support(support_)
    moves = chosen.controller if controller_ is None else controller(controller_)
    shapes = chosen.shaping if shaping_ is None else shaping(shaping_)
    if chosen.trl and (controller_ is None or moves == Constant(0.0)) and (shaping_ is None or shapes == Shaping()):
        return Parts(over, Constant(0.0), Shaping(), chosen.trl)
    if name is None and controller_ is None and not shapes.is_plain:
        raise ValueError(
            f"{type(shapes).__name__} has a coefficient, and none was given: set entropy_controller (a number, or a "
            "rule that moves it), or take a published method with entropy_method"
        )
    shapes.check_controller(moves)
    return Parts(over, moves, shapes, {})


def check_weights(weights: list[float] | None) -> None:
    """Raise ValueError for weights of rewards under which no reward counts."""
    if weights is not None and not any(weights):
        raise ValueError(f"reward_weights={weights}: no reward has a weight, so none would be learnt from; give one")


@dataclass
class AEntGRPOConfig(GRPOConfig):
    """``trl.GRPOConfig`` and the entropy block. Entropies are nats per completion token at the sampling temperature.

    What a method sets in TRL (``epsilon_high``, ``use_adaptive_entropy`` and its fields, ``beta`` for ADRPO) it sets
    where the field has TRL's default; another value given stays.

    Raises:
        ValueError: TRL's ``entropy_coef`` or ``use_adaptive_entropy`` beside ours; a rollout phase that is not a whole
            number of optimiser steps; rewards that all weigh 0; ``save_total_limit`` 1; a setting of TRL that a shaping
            rule cannot honour; anything the support, the controller or the rule refuses.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, *PARTS]

    # HfArgumentParser takes the second type of a union for that of the text on a command line: it must be ``str``.
    entropy_method: str | None = field(
        default=None,
        metadata={
            "help": "A method by its name in aent.methods, e.g. clip-cov, or module:name; the parts given replace its."
        },
    )
    entropy_support: dict[str, Any] | str | Support | None = field(
        default=None,
        metadata={
            "help": "Tokens the bonus is taken over: full, drop_lowest (share), top_k (k), nucleus (mass), or the "
            "entropy tsallis, or module:Class. None: the method's, else full."
        },
    )
    entropy_controller: dict[str, Any] | str | Controller | float | None = field(
        default=None,
        metadata={
            "help": "Rule that moves the coefficient, of aent.controllers or module:Class; a number is a constant. "
            "None: the method's, else 0."
        },
    )
    entropy_shaping: dict[str, Any] | str | Shaping | None = field(
        default=None,
        metadata={
            "help": "What is done to the policy gradient, a rule of aent.shaping or module:Class. None: the method's, "
            "else PPO's."
        },
    )
    entropy_warmup_steps: int = field(
        default=0,
        metadata={"help": "Rollout phases measured before the controller first moves the coefficient."},
    )
    entropy_diagnostics: bool = field(
        default=True,
        metadata={"help": "Log the gradient diagnostics (grad_cosine, bonus_grad_share) on logged steps."},
    )
    entropy_tile_bytes: int | None = field(
        default=None,
        metadata={"help": "Bytes of logits the fused head may hold at a time; None: chosen for the device."},
    )
    entropy_engine: Engine = field(
        default="auto",
        metadata={"help": "What computes the fused head: triton (CUDA), torch, or auto: Triton where it can."},
    )
    sampler_tolerance: float | None = field(
        default=None,
        metadata={"help": "Largest mean |log-prob of vLLM - log-prob of the trainer|; None: chosen for the dtype."},
    )
    correct_reward: float = field(
        default=CORRECT_REWARD,
        metadata={"help": "A completion counts as correct when its first reward is at least this."},
    )

    def __post_init__(self) -> None:
        convert_fields(self, settings=ranges_of(type(self)))
        check_weights(self.reward_weights)
        for name in PARTS:
            setattr(self, name, _from_text(getattr(self, name), name))
        self._resolve_parts()
        super().__post_init__()
        self._check_entropy_block()
        check_generation_kwargs(self)
        self._check_shaping(shaping(self.entropy_shaping))

    def _resolve_parts(self) -> None:
        found = parts(self.entropy_method, self.entropy_support, self.entropy_controller, self.entropy_shaping)
        if self.entropy_method is not None:
            self.entropy_method = method_name(self.entropy_method)
        for name, value in found.trl.items():
            self._set_default(name, value)
        if self.entropy_method == "adrpo" and "reference_log_probs" in found.shaping.needs:
            self._set_default("beta", found.controller.init().coefficient)
        self.entropy_support = support_to_dict(found.support)
        self.entropy_controller = found.controller.to_dict()
        self.entropy_shaping = found.shaping.to_dict()
        self._trl_pays = bool(found.trl.get("use_adaptive_entropy"))

    def _set_default(self, name: str, value: Any) -> None:
        if getattr(self, name) == GRPOConfig.__dataclass_fields__[name].default:
            setattr(self, name, value)

    def _check_entropy_block(self) -> None:
        if not self._trl_pays and (self.entropy_coef != 0.0 or self.use_adaptive_entropy):
            raise ValueError(
                "entropy_coef / use_adaptive_entropy are TRL's own bonus; beside AEnt's there would be two. "
                "Leave them at 0 / False and set entropy_support and entropy_controller, e.g. "
                "entropy_controller={'type': 'constant', 'coefficient': 0.01} or {'type': 'bang_bang', ...}; for TRL's "
                "own adaptive bonus take entropy_method='skywork'"
            )
        if self.entropy_engine not in get_args(Engine):
            raise ValueError(f"entropy_engine={self.entropy_engine!r}: expected one of {', '.join(get_args(Engine))}")
        if self.entropy_warmup_steps < 0:
            raise ValueError(f"entropy_warmup_steps={self.entropy_warmup_steps}: expected a number of phases >= 0")
        if self.entropy_warmup_steps and getattr(controller(self.entropy_controller), "warmup_steps", 0):
            raise ValueError("give the warm-up once: entropy_warmup_steps, or warmup_steps of the Band controller")
        steps: int = self.steps_per_generation  # type: ignore[assignment]
        if steps % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation={steps} is not a multiple of gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps}: the bonus is a mean over all tokens of an optimiser step, which "
                "must be known before its first micro-batch. Leave steps_per_generation unset, or use a multiple"
            )
        phase = self.updates_per_phase
        every = self.save_steps if self.save_steps >= 1 else math.ceil(max(self.max_steps, 0) * self.save_steps)
        if self.save_strategy == "steps" and every % phase:  # a share of a number of epochs is not known here
            warnings.warn(
                f"save_steps={every} falls inside a rollout phase of {phase} optimiser steps: rollouts are "
                "not in a checkpoint, so a resumed run draws new ones and its numbers differ. Use a multiple",
                stacklevel=4,
            )
        if self.save_total_limit == 1:
            raise ValueError(
                "save_total_limit=1 keeps no checkpoint to fall back on where the newest is damaged. Use 2 or more"
            )
        if self.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint=True saves in the middle of a step, which cannot be resumed. Leave it out: "
                "`aent_llm train` saves on SIGTERM by itself, a script does with aent_llm.training.signals.handled()"
            )
        if self.mask_truncated_completions and self.max_completion_length == 1:
            raise ValueError(
                "mask_truncated_completions=True leaves out what is cut off, and with max_completion_length=1 that is "
                "all but an empty answer: nothing would be learnt. Give more tokens, or set it to False"
            )
        if self.sampler_tolerance is not None and not 0 < self.sampler_tolerance < math.inf:
            raise ValueError(f"sampler_tolerance={self.sampler_tolerance}: expected a positive gap in nats, or None")

    def _check_shaping(self, rule: Shaping) -> None:
        name = type(rule).__name__
        if rule.is_plain:
            if rule != Shaping():
                raise ValueError(
                    f"entropy_shaping={rule}: without another rule the clip range is TRL's. Set epsilon={rule.low} and "
                    f"epsilon_high={rule.high}"
                )
            return
        default = Shaping()
        refused = {
            f"loss_type={self.loss_type!r}": self.loss_type not in TOKEN_LOSSES
            and f"it weighs the tokens itself; use one of {', '.join(TOKEN_LOSSES)}",
            f"importance_sampling_level={self.importance_sampling_level!r}": self.importance_sampling_level != "token"
            and "the rule works on the ratio of each token; use 'token'",
            f"delta={self.delta}": self.delta is not None and "the rule clips the ratio; set it to None (null)",
            f"off_policy_mask_threshold={self.off_policy_mask_threshold}": self.off_policy_mask_threshold is not None
            and "the rule decides which tokens count; set it to None (null)",
            f"epsilon={self.epsilon}, epsilon_high={self.epsilon_high}": (self.epsilon, self.epsilon_high)
            not in ((default.low, None), (default.low, default.high))
            and "the clip range is the rule's own; set low and high of entropy_shaping",
        }
        has_kl = "reference_log_probs" in rule.needs  # the whole of it: TRL's is off then
        if self.beta != 0.0 and self.updates_per_phase > 1 and not has_kl:
            refused["use_bias_correction_kl=True"] = self.use_bias_correction_kl and (
                "TRL does not see the ratio of an old rollout that it would multiply the KL by; set it to False"
            )
        if type(rule).group_advantages is not Shaping.group_advantages:
            refused |= {
                f"scale_rewards={self.scale_rewards!r}": self.scale_rewards != "group"
                and "the rule computes the advantages of a group; use 'group'",
                f"multi_objective_aggregation={self.multi_objective_aggregation!r}": self.multi_objective_aggregation
                != "sum_then_normalize"
                and "the rule computes the advantages from the sum of the rewards; use 'sum_then_normalize'",
            }
        if has_kl:
            refused["beta=0"] = self.beta == 0.0 and (
                "the rule needs a reference model, which TRL loads for beta != 0 only. Set beta to any other value: "
                "the weight of the KL is the rule's coefficient, not beta"
            )
        if rule.tempered_share:
            refused |= self._refused_by_tempered_sampling(rule)
        for setting, why in refused.items():
            if why:
                raise ValueError(f"{setting} does not go with {name}: {why}")

    def _refused_by_tempered_sampling(self, rule: Shaping) -> dict[str, Any]:
        group: Any = self.num_generations
        return {
            "use_vllm=True": self.use_vllm
            and "a part of each group is sampled at its own temperature, which only generation by transformers does "
            "here; set use_vllm=False",
            "use_transformers_continuous_batching=True": (
                self.use_transformers_continuous_batching or self.use_transformers_paged
            )
            and "it has one temperature for all; set it to False",
            f"num_generations={group}": tempered_members(rule, group) < 1
            and "a group needs one tempered completion and two others; use 3 or more",
        }

    @property
    def steps_per_phase(self) -> int:
        """Micro-batches between two rollouts: the controller moves once in that time."""
        return self.steps_per_generation * self.num_iterations  # type: ignore[operator]

    @property
    def updates_per_phase(self) -> int:
        """Optimiser steps between two rollouts."""
        return self.steps_per_phase // self.gradient_accumulation_steps


def _from_text(value: Any, where: str) -> Any:
    """Read what a command line or TRL's YAML gives: JSON, or numbers; a name, and what is no text, stays as it is."""
    if isinstance(value, dict):
        return {key: _from_yaml_1_1(one) for key, one in value.items()}
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError(f"{where}={short(value)}: nested too deeply; expected e.g. '{_JSON}'") from None
    except json.JSONDecodeError as error:
        if value.lstrip().startswith(("{", "[")):
            raise ValueError(f"{where}={value}: not JSON ({error}); expected e.g. '{_JSON}'") from None
    try:
        return float(value)
    except ValueError:
        return value


def _from_yaml_1_1(value: Any) -> Any:
    """Read ``1e-3``, which is text to the YAML 1.1 of TRL's files, as a number; any other text stays text."""
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if is_number else value
