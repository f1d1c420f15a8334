"""A token MDP as a gymnasium environment, and many copies of it stepped by array operations.

    env  = gymnasium.make("toymdp/tree-1e4-h3-n5-v1", instance_seed=3)
    envs = gymnasium.make_vec("toymdp/tree-1e4-h3-n5-v1", num_envs=256, vectorization_mode="vector_entry_point")

Two seeds, never mixed: ``instance_seed`` decides the problem (which tokens are optimal), ``reset(seed=...)`` the
dynamics (start state, slips, reward noise).

Action: a token id in ``Discrete(|A|)``. Observation: ``MultiDiscrete([H + 1, S + 1])``, the number of tokens written
so far and the state id; state id S means that the response has ended. Reward: the mean reward of the token, which in
every setting of the suite is paid at the end of the response only. By default rewards are exact, so that returns can be
compared with exact values; ``noisy=True`` adds the N(0, mdp.reward_noise^2) that the sampling learners train on, once
per response.

``info`` names the exact optimum: ``optimal_value`` (V* of the start distribution), ``optimal_value_to_go`` (V* of the
state now) and ``log_optimal_responses`` (log|A*_H|, nats); after a step also ``token_class``.

Left out on purpose: rendering, truncation (every response ends by itself), and lumped instances, where an action would
not say which of the entries it means.

Shape legend: N environments, S states, C classes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from aent.extras import missing
from aent.fields import is_whole_number
from toymdp.families import Instance
from toymdp.suite import make

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.error import ResetNeeded
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"toymdp's environments need gymnasium: {missing(error.name or 'gymnasium', 'figures')}", name=error.name
    ) from error

__all__ = ["TokenEnv", "TokenVectorEnv"]

Array = np.ndarray


class _Dynamics:
    """Batched sampling from one MDP: the single definition that both environments step."""

    def __init__(self, problem: Instance | str, instance_seed: int, noisy: bool):
        self.instance = _named_instance(problem, instance_seed) if isinstance(problem, str) else problem
        mdp = self.mdp = self.instance.mdp
        if mdp.multiplicity is not None:
            raise ValueError(
                "a lumped instance has no environment: one entry stands for many tokens, so an action would be "
                "ambiguous; use an instance with bins=None, or the exact learners"
            )
        if noisy and mdp.reward_noise == 0:
            raise ValueError(
                "noisy=True has no effect: this instance has reward_noise=0; leave it out, or set the noise"
            )
        self.noise = mdp.reward_noise if noisy else 0.0
        self.ended = mdp.states  # state id of a finished response
        self._start = _cumulative(mdp.start)
        self._next = _cumulative(mdp.transition)  # (S, C, S)
        self._value_to_go = np.append(self.instance.optimum.state_values, 0.0)

    def spaces(self) -> tuple[spaces.MultiDiscrete, spaces.Discrete]:
        """(observation space, action space) of one environment."""
        return spaces.MultiDiscrete([self.mdp.horizon + 1, self.mdp.states + 1]), spaces.Discrete(self.mdp.actions)

    def start(self, rng: np.random.Generator, count: int) -> Array:
        """(N,) first states."""
        return _draw(rng, np.broadcast_to(self._start, (count, self.ended)))

    def step(self, rng: np.random.Generator, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        """(N,) next states, rewards and token classes."""
        classes = self.mdp.labels[states, actions].astype(np.int64)
        after = _draw(rng, self._next[states, classes])
        rewards = self.mdp.reward[states, classes].astype(np.float64)
        if self.noise:
            rewards = rewards + self.noise * rng.standard_normal(len(states)) * (after == self.ended)
        return after, rewards, classes

    def info(self, states: Array) -> dict[str, Array]:
        """(N,) entries of ``info`` that every observation has."""
        best = self.instance.optimum
        return {
            "optimal_value": np.full(len(states), best.value),
            "optimal_value_to_go": self._value_to_go[states],
            "log_optimal_responses": np.full(len(states), best.log_responses),
        }

    def checked(self, actions: Any, shape: tuple[int, ...]) -> Array:
        """Token ids as an array of ``shape``; raises ValueError with advice for anything else."""
        ids = np.asarray(actions)
        what = "one token id" if shape == () else f"one token id per environment, an array of shape {shape}"
        if ids.shape != shape or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"expected {what}, whole numbers from 0 to {self.mdp.actions - 1}; "
                f"got {type(actions).__name__} of shape {ids.shape} and type {ids.dtype}: {actions!r}"
            )
        bad = ids[(ids < 0) | (ids >= self.mdp.actions)]
        if bad.size:
            raise ValueError(
                f"no such token: {bad[:5].tolist()}; this environment has |A| = {self.mdp.actions} tokens, "
                f"ids 0 to {self.mdp.actions - 1} (sample with env.action_space.sample())"
            )
        return ids


class TokenEnv(gymnasium.Env):
    """One response at a time.

    Args:
        problem: name of a setting of the suite, or an instance that is not lumped.
        instance_seed: seed of the instance when ``problem`` is a name.
        noisy: add the instance's reward noise to the return.

    Raises:
        ValueError: unknown name, lumped instance, ``noisy`` without noise; in ``step`` an action that is no token id.
        gymnasium.error.ResetNeeded: ``step`` before ``reset`` or after the end of the response.

    Examples:
        >>> env = TokenEnv("smoke-bandit")
        >>> observation, info = env.reset(seed=0)
        >>> best = np.flatnonzero(env.instance.mdp.labels[0] == 1)[0]  # the token of class 1, optimal
        >>> observation, reward, terminated, truncated, info = env.step(best)
        >>> reward, terminated, info["optimal_value"]
        (1.0, True, 1.0)
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (gymnasium's attribute)

    def __init__(self, problem: Instance | str, *, instance_seed: int = 0, noisy: bool = False):
        self._dynamics = _Dynamics(problem, instance_seed, noisy)
        self.instance = self._dynamics.instance
        self.observation_space, self.action_space = self._dynamics.spaces()
        self._state = np.array([self._dynamics.ended])
        self._length = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        _set_apart(self.np_random, seed)
        self._state, self._length = self._dynamics.start(self.np_random, 1), 0
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self._state[0] == self._dynamics.ended:
            raise ResetNeeded("the response has ended or was never started: call env.reset() before env.step()")
        token = self._dynamics.checked(action, ())
        self._state, rewards, classes = self._dynamics.step(self.np_random, self._state, token[None])
        self._length += 1
        info = {**self._info(), "token_class": int(classes[0])}
        return self._observation(), float(rewards[0]), bool(self._state[0] == self._dynamics.ended), False, info

    def _observation(self) -> Array:
        return np.array([self._length, self._state[0]])

    def _info(self) -> dict[str, Any]:
        return {key: float(value[0]) for key, value in self._dynamics.info(self._state).items()}


class TokenVectorEnv(VectorEnv):
    """``num_envs`` responses at a time, one batch of array operations per step.

    ``autoreset_mode`` is gymnasium's: NEXT_STEP (default; the call after the end of a response ignores its action and
    starts the next one), SAME_STEP (the next response starts at once; the last observation is in ``final_obs``) or
    DISABLED (call ``reset(options={"reset_mask": ended})`` yourself).

    Args:
        problem: name of a setting of the suite, or an instance that is not lumped.
        num_envs: N.
        instance_seed: seed of the one instance that all N share, when ``problem`` is a name.
        noisy: add the instance's reward noise to the returns.
        autoreset_mode: gymnasium.vector.AutoresetMode or its value, e.g. "SameStep".

    Raises:
        ValueError: as ``TokenEnv``; fewer than one environment; an unknown mode; a malformed ``reset_mask``.
        gymnasium.error.ResetNeeded: ``step`` before ``reset``, or on an ended response when autoreset is disabled.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        problem: Instance | str,
        num_envs: int = 1,
        *,
        instance_seed: int = 0,
        noisy: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ):
        if not is_whole_number(num_envs) or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}: expected a whole number, at least one environment")
        self._mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self._mode}
        self.num_envs = num_envs
        self._dynamics = _Dynamics(problem, instance_seed, noisy)
        self.instance = self._dynamics.instance
        self.single_observation_space, self.single_action_space = self._dynamics.spaces()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._states: Array | None = None
        self._lengths = np.zeros(num_envs, dtype=np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        _set_apart(self.np_random, seed)
        mask = self._reset_mask(options)
        states = np.full(self.num_envs, self._dynamics.ended) if self._states is None else self._states
        self._states, self._lengths = self._restarted(states, mask)
        return self._observations(), self._infos(mask)

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        if self._states is None:
            raise ResetNeeded("call envs.reset() before envs.step()")
        tokens = self._dynamics.checked(actions, (self.num_envs,))
        resting = self._states == self._dynamics.ended
        if self._mode is AutoresetMode.DISABLED and resting.any():
            raise ResetNeeded(
                f"responses {np.flatnonzero(resting)[:5].tolist()} have ended and autoreset is disabled: "
                "call envs.reset(options={'reset_mask': terminated}) first"
            )
        # Resting environments are restarted, not stepped; they pass through the arrays as state 0 and are masked out.
        after, rewards, classes = self._dynamics.step(self.np_random, np.where(resting, 0, self._states), tokens)
        after, self._lengths = np.where(resting, self._states, after), self._lengths + ~resting
        rewards = np.where(resting, 0.0, rewards)
        ended = (after == self._dynamics.ended) & ~resting
        self._states = after
        final = self._final(ended, classes) if self._mode is AutoresetMode.SAME_STEP and ended.any() else {}
        if self._mode is not AutoresetMode.DISABLED:
            restart = resting if self._mode is AutoresetMode.NEXT_STEP else ended
            self._states, self._lengths = self._restarted(self._states, restart)
        stepped = ~resting & ~ended if self._mode is AutoresetMode.SAME_STEP else ~resting
        infos = {**self._infos(np.ones(self.num_envs, bool)), **_masked({"token_class": classes}, stepped), **final}
        return self._observations(), rewards, ended, np.zeros(self.num_envs, bool), infos

    def _restarted(self, states: Array, mask: Array) -> tuple[Array, Array]:
        """(states, lengths) with new responses where the mask says so."""
        fresh = self._dynamics.start(self.np_random, self.num_envs) if mask.any() else states
        return np.where(mask, fresh, states), np.where(mask, 0, self._lengths)

    def _observations(self) -> Array:
        return np.stack([self._lengths, self._states], axis=-1)  # type: ignore[list-item]

    def _infos(self, mask: Array) -> dict[str, Any]:
        return _masked(self._dynamics.info(self._states), mask)  # type: ignore[arg-type]

    def _final(self, ended: Array, classes: Array) -> dict[str, Any]:
        """``final_obs`` and ``final_info`` in gymnasium's layout: an object array of observations, a dict of arrays."""
        rows = self._observations()[ended]
        observations = np.full(self.num_envs, None, dtype=object)
        observations[ended] = np.fromiter(rows, dtype=object, count=len(rows))
        info = {**self._infos(ended), **_masked({"token_class": classes}, ended)}
        return {"final_obs": observations, "_final_obs": ended.copy(), "final_info": info, "_final_info": ended.copy()}

    def _reset_mask(self, options: dict[str, Any] | None) -> Array:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, bool)
        boolean = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,)
        if not boolean or not mask.any():
            raise ValueError(
                f"options['reset_mask'] must be a boolean array of shape ({self.num_envs},) with a True in it, "
                f"got {mask!r}"
            )
        if self._states is None:
            raise ResetNeeded("reset all environments once, without reset_mask, before resetting some of them")
        return mask


# -------------------------------------------------------------------------------------------------------- internals


@lru_cache(maxsize=4, typed=True)  # gymnasium.make_vec(..., "sync") and env checkers ask for one again and again
def _named_instance(name: str, seed: int) -> Instance:
    return make(name, seed)


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(repr(one.value) for one in AutoresetMode)
        raise ValueError(f"unknown autoreset_mode {mode!r}: expected one of {known}") from None


def _set_apart(rng: np.random.Generator, seed: int | None) -> None:
    """Move a newly seeded stream out of reach of ``numpy.random.default_rng(seed)``.

    Gymnasium seeds exactly that generator, and an agent may draw its tokens from the same seed: tokens and slips would
    then come from the same uniform numbers, and returns would not have the exact value as their mean.
    """
    if seed is not None:
        rng.bit_generator.advance(1 << 96)  # type: ignore[attr-defined]


def _cumulative(probabilities: Array) -> Array:
    """Cumulative distribution over the last axis; sums that are 1 up to rounding are made exactly 1."""
    total = np.cumsum(probabilities, axis=-1)
    return np.where(total > 1 - 1e-9, 1.0, total)


def _draw(rng: np.random.Generator, cumulative: Array) -> Array:
    """(N, S) cumulative rows -> (N,) drawn indices; S, one past the last, has the missing probability."""
    return (cumulative <= rng.random(len(cumulative))[:, None]).sum(axis=-1)


def _masked(info: dict[str, Array], mask: Array) -> dict[str, Any]:
    """Gymnasium's layout of vector infos: value where the mask holds, else 0, and the mask under ``_key``."""
    values = {key: np.where(mask, value, np.zeros_like(value)) for key, value in info.items()}
    return values | {f"_{key}": mask.copy() for key in info}
