"""How fast is a training step, against what people would write and against what the memory allows?

    python -m benchmarks.learner [--actions 100000] [--runs 16] [--steps 200]

Everything is measured in one process, one after the other and several times, on one thread each; the best time counts.
The same problem for all: a plausible-head bandit, group of 16 sampled responses, float32.

    numpy   one seed at a time, idiomatic array code
    torch   all seeds in one tensor, autograd, torch.optim, the bonus from aent.entropy
    floor   the bytes that one step must touch over the measured copy bandwidth of memory: logits in and out
            (8 bytes per action), with Adam both moments too (24). Runs are stepped in chunks that fit the last-level
            cache, so "floor" can be beaten.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from aent import cli
from aent.entropy import DropLowest, Full, Support, TopK, entropy
from toymdp.families import Instance, token_tree
from toymdp.training.config import Learner
from toymdp.training.timing import COEFFICIENT, copy_bandwidth, time_per_step, time_step, train_steps

RATE, GROUP = 0.02, 16
SUPPORTS: tuple[Support, ...] = (Full(), DropLowest(0.4), TopK(100))


def step_table(actions: int = 100_000, runs: int = 16, steps: int = 200, repeats: int = 3) -> pd.DataFrame:
    """Microseconds per run and step of every contender, and their ratios to ours."""
    instances = [token_tree(np.random.default_rng(seed), actions=actions, optimal=1) for seed in range(runs)]
    bandwidth = copy_bandwidth()
    rows = []
    for optimiser in ("sgd", "adam"):
        floor = actions * {"sgd": 8, "adam": 24}[optimiser] / bandwidth * 1e6
        for support in SUPPORTS:
            ours = time_per_step(partial(_ours, instances, optimiser, support), runs, steps, repeats)
            plain = time_per_step(
                partial(_numpy_loop, instances[:2], optimiser, support), 2, max(5, steps // 20), repeats
            )
            row = {"optimiser": optimiser, "support": repr(support), "ours": ours, "numpy": plain, "floor": floor}
            loop = _torch_loop_or_none()
            if loop is not None:
                row["torch"] = time_per_step(
                    partial(loop, instances, optimiser, support), runs, max(5, steps // 20), repeats
                )
            rows.append(row)
    table = pd.DataFrame(rows)
    table["numpy / ours"] = table["numpy"] / table["ours"]
    if "torch" in table:
        table["torch / ours"] = table["torch"] / table["ours"]
    table["ours / floor"] = table["ours"] / table["floor"]
    return table


# ---------------------------------------------------------------------------------------------------- the contenders


def _ours(instances: list[Instance], optimiser: str, support: Support, steps: int) -> None:
    train_steps(instances, Learner(1, RATE, optimiser, group_size=GROUP), support, steps)


def _numpy_loop(instances: list[Instance], optimiser: str, support: Any, steps: int) -> None:
    """One seed after the other, as one would write it in numpy."""
    for seed, instance in enumerate(instances):
        rng = np.random.default_rng(seed)
        z = instance.prior[0].astype(np.float32)
        paid = instance.mdp.reward[0][instance.mdp.labels[0]]
        m, v = np.zeros_like(z), np.zeros_like(z)
        kept = support.kept(len(z))
        for t in range(1, steps + 1):
            p = np.exp(z - z.max())
            p /= p.sum()
            sampled = np.searchsorted(np.cumsum(p), rng.random(GROUP)).clip(max=len(z) - 1)
            returns = paid[sampled] + instance.mdp.reward_noise * rng.standard_normal(GROUP)
            advantages = (returns - returns.mean()) / (returns.std(ddof=1) + 1e-4)
            q = p if kept == len(z) else np.where(z >= np.partition(z, len(z) - kept)[len(z) - kept], p, 0)
            q = q / q.sum()
            log_q = np.log(np.where(q > 0, q, 1))
            g = -COEFFICIENT * q * (log_q - (q * log_q).sum()) - p * advantages.mean()
            np.add.at(g, sampled, advantages / GROUP)
            if optimiser == "sgd":
                z += RATE * g
            else:
                m = 0.9 * m + 0.1 * g
                v = 0.999 * v + 0.001 * g * g
                z += RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def _torch_loop_or_none() -> Callable[..., None] | None:
    try:
        import torch
    except ImportError:
        return None

    def loop(instances: list[Instance], optimiser: str, support: Support, steps: int) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.manual_seed(0)
        z = torch.tensor(np.stack([i.prior[0] for i in instances]), dtype=torch.float32, requires_grad=True)
        paid = torch.tensor(np.stack([i.mdp.reward[0][i.mdp.labels[0]] for i in instances]), dtype=torch.float32)
        noise = instances[0].mdp.reward_noise
        rule = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimiser]([z], lr=RATE)
        for _ in range(steps):
            log_p = torch.log_softmax(z, -1)
            with torch.no_grad():
                sampled = torch.multinomial(log_p.exp(), GROUP, replacement=True)
                returns = paid.gather(1, sampled) + noise * torch.randn(sampled.shape)
                advantages = (returns - returns.mean(1, keepdim=True)) / (returns.std(1, keepdim=True) + 1e-4)
            objective = (advantages * log_p.gather(1, sampled)).mean(1) + COEFFICIENT * entropy(z, support=support)
            rule.zero_grad()
            (-objective.sum()).backward()
            rule.step()
        torch.set_num_threads(threads)

    return loop


def main() -> None:
    """Print the tables."""
    parser = cli.Parser(
        prog="python -m benchmarks.learner", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--actions", type=cli.whole_number(1), default=100_000)
    parser.add_argument("--runs", type=cli.whole_number(1), default=16)
    parser.add_argument("--steps", type=cli.whole_number(1), default=200)
    args = parser.parse_args()
    with pd.option_context("display.width", 200, "display.max_columns", 20, "display.float_format", "{:.1f}".format):
        print(
            f"one training step at |A| = {args.actions:,}, {args.runs} runs; microseconds per run and step, one thread"
        )
        print(step_table(args.actions, args.runs, args.steps).to_string(index=False))
        print(f"copy bandwidth of one thread: {copy_bandwidth() / 1e9:.1f} GB/s read + written")
        lumped = [token_tree(np.random.default_rng(0), actions=10**9, optimal=1, bins=512)]
        per_step = time_step(lumped, Learner(1, 0.3, "sgd", "exact"), TopK(100), steps=1000)
        print(f"lumped, |A| = 10^9: {per_step:.1f} microseconds per exact step")


if __name__ == "__main__":
    raise SystemExit(cli.run("benchmarks.learner", main, extra="figures"))
