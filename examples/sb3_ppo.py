"""Stable-Baselines3's PPO, unchanged, on one of the settings, judged by exact values.

    pip install -e '.[figures]' stable-baselines3
    python examples/sb3_ppo.py                                        # about 10 seconds on one CPU core
    python examples/sb3_ppo.py --id toymdp/bandit-1e3-n5-v1 --steps 50000

How to use the environments with a library of your own:

1. ``import toymdp`` registers them; ``python -m toymdp list`` names them.
2. ``gymnasium.make(id, instance_seed=...)`` chooses the problem; the library passes its own seed to ``env.reset``.
3. Read the policy's token probabilities in every state, shape (S, A), and hand them to ``toymdp.mdp.value``: the
   expected return comes out exactly, no test episodes are needed. ``info["optimal_value"]`` is the best there is.

PPO starts from a random network here, not from the instance's prior: the problem of the *uniform* prior. Expected:
value .100 -> 1.000 on ``smoke-bandit`` (|A| = 20, one optimum, two decoys), .007 -> .999 on ``bandit-1e3-n5``.
"""

import argparse
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]

import toymdp  # noqa: F401  (registers the ids)
from toymdp.families import Instance
from toymdp.mdp import TokenMDP, value


def exact_value(model: PPO, mdp: TokenMDP) -> float:
    """Expected return of the policy as it samples."""
    observations = np.stack([mdp.depth, np.arange(mdp.states)], axis=-1)  # (S, 2): tokens so far, state
    with torch.no_grad():
        categorical: Any = model.policy.get_distribution(torch.as_tensor(observations)).distribution
    probabilities = categorical.probs.double().numpy()  # (S, A)
    return float(value(mdp, probabilities / probabilities.sum(-1, keepdims=True)))


def train(env_id: str, steps: int, instance_seed: int = 0, seed: int = 0) -> tuple[float, float, float]:
    """Train PPO; returns the exact value before, the exact value after, and the optimum."""
    env = gymnasium.make(env_id, instance_seed=instance_seed)
    instance: Instance = env.get_wrapper_attr("instance")
    model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, learning_rate=3e-3, gamma=1.0, seed=seed, device="cpu")
    before = exact_value(model, instance.mdp)
    model.learn(steps)
    return before, exact_value(model, instance.mdp), instance.optimum.value


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Stable-Baselines3 PPO on a toymdp setting, judged by exact values.")
    parser.add_argument("--id", default="toymdp/smoke-bandit-v1", help="gymnasium id (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4096, help="environment steps (default: %(default)s)")
    parser.add_argument("--instance-seed", type=int, default=0, help="which instance of the setting (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of PPO and of the dynamics (default: 0)")
    args = parser.parse_args()
    before, after, best = train(args.id, args.steps, args.instance_seed, args.seed)
    print(f"{args.id}: value {before:.3f} before, {after:.3f} after {args.steps} steps, optimum {best:.3f}")


if __name__ == "__main__":
    main()
