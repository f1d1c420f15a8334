"""What would a clamp change on *your* model, and where should the band lie? Measured, then written as YAML.

    python -m aent_llm calibrate --model DIR --data FILE --out entropy.yaml

Completions are sampled from the model and a grid of support rules is compared on them (``clamp_effect``). From the
numbers follows a proposal for the ``entropy:`` block of an experiment file: support, band, coefficient, box, step size.
The method's paper leaves these to "careful tuning"; every rule of thumb here is this project's own design and says so.

Left out: training (a calibration describes the policy before it), any search over proposals.

Entropies in nats per completion token at the sampling temperature.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from aent import cli
from aent.controllers import Band
from aent.entropy import DropLowest, Full, Nucleus, Support, TopK, support_to_dict
from aent.stats import Estimate
from aent_llm.data import eval_sets
from aent_llm.data.prompts import context_length, encode_prompts
from aent_llm.data.rewards import is_correct, score_completions
from aent_llm.measure.clamp_effect import Measured, Rollout, RuleMeasure, measure_rollouts
from aent_llm.measure.generate import transformers_sampler
from aent_llm.measure.tasks import Model, Task, add_data_flags, check_free, load_task, read_model, write_results
from aent_llm.schema import Count, NaturalNumber, Positive, Seed, Share, Temperature, convert_fields

__all__ = ["CalibrationConfig", "CalibrationResult", "calibrate", "main", "propose"]

LONGEST = 512  # tokens of a completion when the limit is not given and the context has room for it
ENOUGH = 50  # tokens of correct completions, to judge a clamp by them rather than by all sampled tokens


@dataclass(frozen=True)
class CalibrationConfig:
    """What is sampled, the grid, and the limits of the proposal (the latter are this project's own design)."""

    prompts: Count = 64
    samples: Count = 4
    temperature: Temperature = 1.0
    max_tokens: Count | None = None  # of a completion; None: what the context leaves, at most ``LONGEST``
    drop: tuple[float, ...] = (0.2, 0.33, 0.9, 0.99, 0.999)
    top_k: tuple[int, ...] = (10, 32, 100, 1000)
    nucleus: tuple[float, ...] = (0.8, 0.95)
    tokens: Count = 8192  # measured at most, drawn at random from all completions
    tile_bytes: Count = 2**27  # of one [rows, V] float32 tile; about ten temporaries of this size live at a time
    seed: Seed = 0
    min_push: Share = 0.05  # a clamp has an effect when at least this share of the full bonus' push is cut
    max_dropped: Share = 0.05  # it may cut at most this probability mass
    min_kept: Share = 0.99  # and must keep this share of the sampled tokens (of correct completions, where known)
    bonus_share: Positive = 0.1  # size of the bonus gradient over that of the policy gradient's signal
    band: tuple[float, float] = (0.25, 0.5)  # times the measured entropy over the support
    box: Annotated[float, Field(ge=1)] = 10.0  # from initial / box to initial * box
    steps_to_box: Count = 20  # controller steps from ``initial`` to the top of the box while the entropy is zero
    warmup_steps: NaturalNumber = 30

    def __post_init__(self) -> None:
        convert_fields(self, "calibrate")
        if len(self.rules) == 1:
            raise ValueError("calibrate: the grid is empty; give at least one of --drop, --top-k, --nucleus")

    @property
    def rules(self) -> tuple[Support, ...]:
        """Full support, then the grid; a share, k or mass out of range raises the ValueError of its rule."""
        return (Full(), *map(DropLowest, self.drop), *map(TopK, self.top_k), *map(Nucleus, self.nucleus))


@dataclass(frozen=True)
class CalibrationResult:
    """Everything measured, and the proposal that follows from it: a support, a band, one reason per YAML line."""

    config: CalibrationConfig
    measured: Measured
    support: Support
    band: Band
    reasons: Mapping[str, str]

    def table(self) -> Table:
        """The grid as a table for the terminal."""
        return _table(self)

    def to_yaml(self, source: str = "") -> str:
        """The ``entropy:`` block of an experiment file, each line with its reason."""
        return _yaml(self, source)


# --------------------------------------------------------------------------------------------------------- the whole


def calibrate(
    model: Any,
    tokenizer: Any,
    problems: Any,
    config: CalibrationConfig = CalibrationConfig(),
    *,
    reward: Callable[..., Sequence[float | None]] | None = None,
    progress: bool = False,
    chat_template_kwargs: Mapping[str, Any] | str | None = None,
) -> CalibrationResult:
    """Sample completions of the first ``config.prompts`` problems and measure the grid on them.

    Args:
        model: a transformers causal language model, left as found.
        tokenizer: of the model.
        problems: a ``datasets.Dataset`` or list of dicts, with ``prompt`` (text or conversation) and the columns that
            ``reward`` reads.
        config: what is sampled, the grid, the limits of the proposal.
        reward: TRL's contract; from ``CORRECT_REWARD`` on a completion is correct, and a clamp must keep the tokens of
            those. Without it every sampled token counts as one to keep.
        progress: show bars on the terminal.
        chat_template_kwargs: switches of the chat template, as the model is trained with.

    Raises:
        ValueError: no problem; prompts that do not fit; a model whose logits cannot be rebuilt; a policy without
            entropy.
    """
    rows = [problems[i] for i in range(min(len(problems), config.prompts))]
    prompts = [row["prompt"] for row in rows]
    context = context_length(model.config)
    options: Any = {"chat_template_kwargs": chat_template_kwargs}
    encoded = encode_prompts(tokenizer, prompts, max_tokens=config.max_tokens or 1, context=context, **options)
    room = LONGEST if context is None else context - max(map(len, encoded))
    max_tokens = config.max_tokens or min(LONGEST, room)
    groups = transformers_sampler(model, tokenizer, **options)(
        prompts, samples=config.samples, temperature=config.temperature, top_p=1.0, top_k=0,
        max_tokens=max_tokens, seed=config.seed, progress=progress,
    )  # fmt: skip
    rollouts = [Rollout(i, encoded[i], one.token_ids) for i, group in enumerate(groups) for one in group]
    if reward is not None:
        texts = [one.text for group in groups for one in group]
        found = score_completions(
            reward, [rows[one.prompt] for one in rollouts], texts, [one.token_ids for one in rollouts]
        )
        rollouts = [one._replace(correct=is_correct(score)) for one, score in zip(rollouts, found, strict=True)]
    measured = measure_rollouts(
        model, rollouts, config.rules, temperature=config.temperature, tokens=config.tokens,
        tile_bytes=config.tile_bytes, seed=config.seed, progress=progress,
    )  # fmt: skip
    return propose(measured, config)


# ------------------------------------------------------------------------------------------------------ the proposal


def propose(measured: Measured, config: CalibrationConfig = CalibrationConfig()) -> CalibrationResult:
    """Support, band, coefficient, box and step size that follow from the measurement, each with its reason.

    Raises:
        ValueError: a policy without entropy.
    """
    chosen, why = _propose_support(measured, config)
    band, reasons = _propose_band(chosen, measured.policy_norm, measured.length, config)
    return CalibrationResult(config, measured, chosen.rule, band, {"support": why, **reasons})


def _propose_support(measured: Measured, config: CalibrationConfig) -> tuple[RuleMeasure, str]:
    """The mildest rule (most tokens kept) that cuts a share of the push and nothing that matters; else full."""
    graded = measured.correct_tokens >= ENOUGH
    number = measured.correct_tokens if graded else measured.tokens
    what = f"{number:,} tokens of correct completions" if graded else f"{number:,} sampled tokens"

    def kept(one: RuleMeasure) -> float:
        return one.correct_kept.mean if graded else one.sampled_kept.mean

    full, *grid = measured.rules
    effective = [one for one in grid if one.push.mean >= config.min_push]
    harmless = [one for one in grid if one.dropped_mass.mean <= config.max_dropped and kept(one) >= config.min_kept]
    good = sorted((one for one in effective if one in harmless), key=lambda one: -one.kept.mean)
    if good:
        best = good[0]
        return best, (
            f"mildest of the grid that takes >= {config.min_push:.0%} of the bonus' push off the tail: "
            f"{best.push.mean:.1%} of it (1 - cosine {best.turn.mean:.2g}); keeps {kept(best):.2%} of the {what}, "
            f"drops {best.dropped_mass.mean:.2g} of the mass"
        )
    if effective:
        mildest = max(effective, key=lambda one: one.kept.mean)
        quiet = max((one.push.mean for one in harmless), default=math.nan)
        others = f"; the harmless ones take at most {quiet:.1g} of the push off the tail" if harmless else ""
        return full, (
            f"every clamp of the grid with an effect cuts too much: the mildest, {label(mildest.rule)}, drops "
            f"{mildest.dropped_mass.mean:.2g} of the mass and keeps {kept(mildest):.2%} of the {what} (wanted <= "
            f"{config.max_dropped:g} and >= {config.min_kept:.1%}){others}"
        )
    most = max(grid, key=lambda one: one.push.mean)
    return full, (
        f"a clamp has no effect here: even {label(most.rule)} takes only {most.push.mean:.2g} of the bonus' push off "
        f"the tail (1 - cosine {most.turn.mean:.1g}); under {config.min_push:.0%} it is the full bonus by another name"
    )


def _propose_band(
    chosen: RuleMeasure, policy_norm: float, length: float, config: CalibrationConfig
) -> tuple[Band, dict[str, str]]:
    """Band, coefficient, box and step size from the measured entropy and gradient sizes, rounded to three digits.

    The advantages' unit variance is shared by the L token choices of a completion (law of total variance), so the
    policy gradient that survives averaging is about policy_norm / sqrt(L) per token; the bonus gets a share of that:
    initial = bonus_share * policy_norm / (sqrt(L) * norm).
    """
    measured, norm = chosen.entropy.mean, chosen.norm.mean
    if measured < 1e-4 or norm == 0:
        raise ValueError(
            f"calibrate: the policy has no entropy to hold ({measured:.2g} nats per token over {label(chosen.rule)}). "
            "Sample at a higher --temperature, or check that the model is the one to be trained"
        )
    low, high = (_rounded(share * measured) for share in config.band)
    initial = _rounded(config.bonus_share * policy_norm / (math.sqrt(length) * norm))
    minimum, maximum = _rounded(initial / config.box), _rounded(initial * config.box)
    step_size = _rounded((maximum - initial) / (config.steps_to_box * low))
    band = Band(initial, low, high, step_size, minimum, maximum, config.warmup_steps)
    reasons = {
        "initial": f"bonus gradient {config.bonus_share:.0%} of the policy gradient's signal at the logits, "
        f"{policy_norm:.3g} / sqrt({length:.3g} tokens) against {norm:.3g} per unit of coefficient",
        "low": f"{config.band[0]:g} x the measured {measured:.3g} nats per token [{chosen.entropy.low:.3g}, "
        f"{chosen.entropy.high:.3g}]",
        "high": f"{config.band[1]:g} x measured; AER (arXiv 2510.10959) is reported best at a target of .4 x initial",
        "step_size": f"{config.steps_to_box} steps from initial to maximum at zero entropy (the paper's own: 24, 21)",
        "minimum": f"initial / {config.box:g}; above zero, so that the bonus cannot switch itself off",
        "maximum": f"initial x {config.box:g}; a coefficient that stays here asks for a new calibration",
        "warmup_steps": "the entropy starts above the band: let it fall first, or the coefficient sinks to minimum",
    }
    return band, reasons


def label(rule: Support) -> str:
    """A rule as people write it: ``drop 0.33``, ``top-k 100``."""
    match rule:
        case DropLowest():
            return f"drop {rule.share:g}"
        case TopK():
            return f"top-k {rule.k}"
        case Nucleus():
            return f"nucleus {rule.mass:g}"
        case Full():
            return "full"
    return repr(rule)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


# ------------------------------------------------------------------------------------------------------------ output


def _yaml(result: CalibrationResult, source: str) -> str:
    names = {Full: "full", DropLowest: "drop_lowest", TopK: "top_k", Nucleus: "nucleus"}
    band, reasons, measured = result.band, result.reasons, result.measured
    saved = support_to_dict(result.support)
    lines = [
        "# Written by `python -m aent_llm calibrate`" + (f" for {source}" if source else "") + ".",
        f"# {measured.prompts} prompts, {measured.completions} completions, {measured.tokens:,} tokens measured; "
        f"temperature {result.config.temperature:g}, seed {result.config.seed}. Entropies: nats per token.",
        '# The method\'s paper leaves band and box to "careful tuning". The rules behind these numbers are this',
        "# project's own design: a place to start from, not an optimum. The band matters most.",
        "entropy:",
        *(f"  # {line}" for line in textwrap.wrap(reasons["support"], 110)),
        "  support:",
        f"    type: {names.get(type(result.support), saved.pop('type'))}",
        *(f"    {key}: {_number(value)}" for key, value in saved.items()),
        "  controller:",
        "    type: band",
    ]
    for field in fields(band):
        if field.name in reasons and field.name != "warmup_steps":
            lines.append(f"    {field.name}: {_number(getattr(band, field.name))}  # {reasons[field.name]}")
    lines.append(f"  warmup_steps: {band.warmup_steps}  # {reasons['warmup_steps']}")
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    """Never in a form YAML 1.1 reads as text: ``1e-05`` needs its point."""
    text = json.dumps(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


def _table(result: CalibrationResult) -> Table:
    quarters = ", ".join(f"{value:.3g}" for value in result.measured.quarters)
    table = Table(
        title=f"Clamps on {result.measured.tokens:,} sampled tokens of {result.measured.prompts} prompts",
        caption="95% bootstrap intervals over prompts. turn: 1 - cosine of the bonus gradients, full against clamped. "
        "tail push: share of the full bonus' |gradient| on dropped tokens. "
        f"Full entropy by quarter of the completion: {quarters} nats. * proposed",
        caption_justify="left",
    )
    table.add_column("support", no_wrap=True)
    for name in (
        "entropy (nats)",
        "|gap|",
        "dropped mass",
        "kept",
        "turn",
        "tail push",
        "sampled kept",
        "correct kept",
    ):
        table.add_column(name, justify="right")
    for one in result.measured.rules:
        star = " *" if one.rule == result.support else ""
        correct = "-" if math.isnan(one.correct_kept.mean) else f"{one.correct_kept.mean:.2%}"
        table.add_row(
            label(one.rule) + star, _interval(one.entropy), _interval(one.gap, 2), f"{one.dropped_mass.mean:.2g}",
            f"{one.kept.mean:,.0f}", _interval(one.turn, 2), _interval(one.push, 2),
            f"{one.sampled_kept.mean:.2%}", correct, style="bold" if star else None,
        )  # fmt: skip
    return table


def _interval(value: Estimate, digits: int = 3) -> str:
    return f"{value.mean:.{digits}g}\n[{value.low:.{digits}g}, {value.high:.{digits}g}]"


# ------------------------------------------------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Raises:
        FileExistsError: the file of ``--out`` exists; nothing is overwritten.
        OSError, ValueError: data, settings or a place for ``--out`` that cannot be used, found before the model is
            loaded.
    """
    options = _parser().parse_args(argv)
    names = {field.name for field in fields(CalibrationConfig)}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name in names
    }
    config = CalibrationConfig(**given)
    check_free(options.out)
    eval_sets.resolve(options.data)  # a mistyped name, before a model is built
    model = read_model(options.model)
    task = load_task(options.data, options, model, max_tokens=config.max_tokens or 1, limit=config.prompts)
    if options.dry_run:
        return _dry_run(options, config, task)
    result = calibrate(
        _weights(options, model), model.tokenizer, task.problems, config, reward=task.reward, progress=True,
        chat_template_kwargs=options.chat_template_kwargs,
    )  # fmt: skip
    block = result.to_yaml(f"{options.model} on {options.data}")
    Console().print(result.table())
    print(block, end="", flush=True)
    if options.out:
        write_results(options.out, block, replace=False)
        print(f"# written to {options.out}", file=sys.stderr)
    return 0


def _weights(options: argparse.Namespace, model: Model) -> Any:
    """The model with its weights, on the GPU if there is one."""
    import torch
    from transformers import AutoModelForCausalLM

    policy: Any = AutoModelForCausalLM.from_pretrained(model.path, dtype=options.dtype)
    return policy.to("cuda" if torch.cuda.is_available() else "cpu")


def _dry_run(options: argparse.Namespace, config: CalibrationConfig, task: Task) -> int:
    prompts = len(task.problems)
    longest = f"of at most {config.max_tokens} tokens" if config.max_tokens else "as long as the context allows"
    reward = "not known, --reward names one" if task.reward is None else task.reward_name
    print(
        f"model {options.model}, data {options.data}: the first {prompts:,} are used, of at most {task.longest} tokens"
    )
    print(f"completions: {prompts * config.samples:,}, {longest}, at temperature {config.temperature:g}")
    print(f"measured: at most {config.tokens:,} tokens under {', '.join(map(label, config.rules))}")
    print(f"correct completions by reward: {reward}")
    return 0


def _parser() -> cli.Parser:
    default = CalibrationConfig()
    parser = cli.Parser(
        prog="python -m aent_llm calibrate", description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", default="tiny", help="folder, hub id, or tiny (the embedded model)")
    parser.add_argument(
        "--data", default="tiny", help="named set of `eval --list`, file, hub id, or tiny (the embedded task)"
    )
    parser.add_argument("--max-tokens", type=int, help=f"of a completion; else what the context leaves, <= {LONGEST}")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--out", type=Path, help="also write the YAML block to a new file")
    parser.add_argument("--dry-run", action="store_true", help="check data and settings, say what would run")
    grid = {"drop": "shares of tokens to drop", "top_k": "numbers of tokens to keep", "nucleus": "masses to keep"}
    for name, text in grid.items():
        value = getattr(default, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", nargs="*", type=type(value[0]), default=list(value), help=text
        )
    settings = {
        "prompts": "number of problems", "samples": "completions of each",
        "temperature": "of sampling and of every entropy", "tokens": "measured at most, drawn at random",
        "tile_bytes": "size of one tile of logits", "seed": "of sampling and bootstrap",
        "min_push": "a clamp with less of the bonus' push cut counts as without effect",
        "max_dropped": "probability mass a proposed clamp may drop",
        "min_kept": "share of (correct) sampled tokens a proposed clamp must keep",
        "bonus_share": "bonus gradient over the policy gradient's signal, sets the coefficient",
        "warmup_steps": "of the controller",
    }  # fmt: skip
    for name, text in settings.items():
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=text)
    add_data_flags(parser)
    return parser


if __name__ == "__main__":
    cli.run_as("aent_llm", "calibrate")
