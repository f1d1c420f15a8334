"""Every method of the field on the embedded task at two values of its knob, and support x controller beside them.

    python -m experiments.all_methods run           # first value of every method, then the second; 3 seeds each
    python -m experiments.all_methods record        # -> paper_figures/records/llm_methods.jsonl

Each run is ``python -m aent_llm train --config cpu_methods``, in a process of its own, as in ``three_way.py``: stop at
any time, finished runs are kept. The first value is the published one where it means something on this task, else our
own choice; the second says how much the value matters. Nothing is tuned: both are reported. What counts is held-out
accuracy at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aent import cli
from experiments.three_way import SEED, add_arguments, record, run_all

__all__ = ["ARMS", "Setting", "main"]

CONFIG = "cpu_methods"
TOP64 = {"type": "top_k", "k": 64}


@dataclass(frozen=True)
class Setting:
    """One method at one value of its knob: a name for its folder, and what it overrides in the config."""

    method: str
    value: float
    block: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Folder of its runs."""
        return f"{self.method}@{self.value:g}"

    def overrides(self) -> list[str]:
        """``--set`` arguments of the train command."""
        return [f"--set={key}={json.dumps(value)}" for key, value in self.block.items()]


def _method(name: str, values: tuple[float, ...], block: Any, support: Any = None, arm: str | None = None) -> Any:
    """(arm, its settings): ``block(value)`` maps a knob's value to overrides."""
    own = {"entropy.method": name} | ({} if support is None else {"entropy.support": support})
    return arm or name, [Setting(arm or name, value, own | block(value)) for value in values]


def _constant(value: float) -> dict[str, Any]:
    return {"entropy.controller": value}


def _rule(type_: str, **options: Any) -> dict[str, Any]:
    return {"entropy.controller": {"type": type_, **options}}


def _band(start: float) -> dict[str, Any]:
    """AEnt's controller as in ``three_way.py``: a quarter to a half of the first entropy, the start times .2 to 5."""
    ends = {"minimum": start / 5, "maximum": 5 * start}
    return _rule("band", initial=start, low=0.28, high=0.55, step_size=2 * start, **ends) | {"entropy.warmup_steps": 10}


def _anchored(ratio: float) -> dict[str, Any]:
    return _rule("anchored", ratio=ratio, step_size=0.01, maximum=0.03)


def _skywork(target: float) -> dict[str, Any]:
    """TRL's own controller, ten times its published step and cap: 40 phases are few."""
    return {"train.entropy_target": target, "train.entropy_coef_delta": 1e-3, "train.entropy_coef_max": 0.03}


def _entrocraft(low: float) -> dict[str, Any]:
    ends = {"low_end": low / 1.5, "high_end": (low + 0.1) / 1.4}
    return _rule("switch", low=low, high=low + 0.1, steps=40, **ends)


ARMS: dict[str, list[Setting]] = dict(
    [
        _method("none", (3e-4, 2e-4), lambda rate: {"train.learning_rate": rate}),
        _method("full", (0.003, 0.01), _constant),
        _method("aent", (0.01, 0.03), _band),
        _method("aer", (0.4, 0.7), _anchored),
        _method("entropic", (0.3, 0.6), lambda target: _rule("proportional_integral", target=target)),
        _method("adrpo", (0.04, 0.3), _constant),
        _method("clip-cov", (2e-4, 0.02), _constant),
        _method("kl-cov", (0.002, 0.02), lambda share: {"entropy.shaping": {"type": "kl_covariance", "share": share}}),
        _method("clip-higher", (0.28, 0.5), lambda high: {"train.epsilon_high": high}),
        _method("skywork", (0.3, 0.6), _skywork),
        _method("siren", (0.005, 0.05), lambda strength: _rule("spring", strength=strength)),
        _method("entropy-advantage", (0.4, 0.1), _constant),
        _method("aepo", (0.75, 0.4), lambda h: _rule("switch", low=h, high=h, below=1.2, inside=1.2, above=0.8)),
        _method("ce-gppo", (0.5, 0.75), _constant),
        _method("era", (0.45, 1.0), _constant),
        _method("qae", (0.4, 0.6), _constant),
        _method(
            "repo-r", (0.1, 0.5), lambda zeta: _rule("doubling", initial=zeta / 4, minimum=zeta / 64, maximum=zeta)
        ),
        _method("entrocraft", (0.6, 0.8), _entrocraft),
        _method("erc", (0.05, 0.2), _constant),
        _method("range", (0.03, 0.1), _constant),
        _method("tsallis", (0.01, 0.1), _constant),
        _method("espo", (0.2, 0.4), _constant),
        # which ingredient of AEnt does the work: the rest of support x controller
        _method("full", (0.01, 0.03), _band, arm="full-band"),
        _method("full", (0.003, 0.01), _constant, {"type": "drop_lowest", "share": 0.33}, "drop33"),
        _method("full", (0.03, 0.1), _constant, TOP64, "top64"),
        _method("full", (0.03, 0.1), _band, TOP64, "top64-band"),
    ]
)


def main(argv: list[str] | None = None) -> int:
    """Run a stage, or write the record."""
    parser = cli.Parser(prog="python -m experiments.all_methods", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stage", choices=("run", "record"))
    parser.add_argument("--methods", nargs="+", choices=ARMS, metavar="NAME", help="only these (default: all)")
    parser.add_argument("--values", type=cli.whole_number(1, 2), default=2, help="values of the knob (default: 2)")
    parser.add_argument("--seeds", type=SEED, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    record_file = Path("paper_figures/records/llm_methods.jsonl")
    add_arguments(parser, folder=Path("runs/leaderboard"), config=CONFIG, out=record_file)
    options = parser.parse_args(argv)
    if options.stage == "record":
        runs = record(options.folder, options.out, curves=("reward", "entropy/full"), per_problem=False)
        print(f"{runs} runs -> {options.out}")
        return 0
    runs = [
        (ARMS[name][value], seed)
        for value in range(options.values)
        for seed in options.seeds
        for name in options.methods or ARMS
    ]
    return run_all(runs, options.folder / "leaderboard", options)


if __name__ == "__main__":
    raise SystemExit(cli.run("experiments.all_methods", main, extra="llm"))
