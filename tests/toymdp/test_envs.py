"""The environments against the gymnasium checkers, against exact values, and against each other."""

import math
import warnings
from itertools import product

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import toymdp  # noqa: F401  (registers the ids)
from toymdp.envs import TokenEnv, TokenVectorEnv
from toymdp.families import Instance, random_mdp, token_tree, units
from toymdp.mdp import softmax, value
from toymdp.suite import SETTINGS, make

IDS = [chosen.gym_id for chosen in SETTINGS.values() if not chosen.lumped]


def stochastic() -> Instance:
    """Random starts and transitions, rewards on the way, sharp policies: everything an environment can get wrong."""
    return random_mdp(np.random.default_rng(2), actions=4, horizon=3, width=3)


def slip() -> Instance:
    return token_tree(np.random.default_rng(0), actions=12, optimal=3, horizon=3, decoys=2, slip=0.3, prior="gaussian")


def draw(rng: np.random.Generator, policy: np.ndarray) -> np.ndarray:
    return (policy.cumsum(-1) < rng.random(len(policy))[:, None] * 0.999999999).sum(-1)


def z_score(returns: np.ndarray, expected: float) -> float:
    return (returns.mean() - expected) / (returns.std(ddof=1) / math.sqrt(len(returns)))


# --------------------------------------------------------------------------------------------------------- conformance


@pytest.mark.parametrize("name", IDS)
def test_every_id_passes_the_checker_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(name, instance_seed=1)
        check_env(env.unwrapped)
        assert env.action_space.n == SETTINGS[env.unwrapped.spec.kwargs["problem"]].options["actions"]
        envs = gymnasium.make_vec(name, num_envs=3, vectorization_mode="vector_entry_point", instance_seed=1)
        observations, _ = envs.reset(seed=0)
        assert observations in envs.observation_space
        observations, *_ = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space


def test_the_wrappers_of_gymnasium_run_on_both():
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("toymdp/smoke-tree-v1"))
    env.reset(seed=0)
    env.step(0)
    assert env.step(0)[-1]["episode"]["l"] == 2
    for mode in ("NextStep", "SameStep"):
        inner = gymnasium.make_vec(
            "toymdp/smoke-tree-v1",
            num_envs=5,
            vectorization_mode="vector_entry_point",
            autoreset_mode=mode,
        )
        envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(inner)
        envs.reset(seed=0)
        envs.step(envs.action_space.sample())
        *_, info = envs.step(envs.action_space.sample())
        np.testing.assert_array_equal(info["episode"]["l"], 2)


# ------------------------------------------------------------------------------------------------- returns and optimum


@pytest.mark.parametrize("build", [stochastic, slip])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_returns_match_the_exact_value(build, mode):
    instance, rng, count = build(), np.random.default_rng(0), 20_000
    logits = 2.0 * np.random.default_rng(1).standard_normal(instance.prior.shape)
    policy = softmax(instance.mdp, logits)
    envs = TokenVectorEnv(instance, count, autoreset_mode=mode)
    # the agent's generator has the seed of the environment on purpose: their streams must not be one
    observations, _ = envs.reset(seed=0)
    finished, running = [], np.zeros(count)
    while sum(map(len, finished)) < 2 * count:
        states = np.minimum(observations[:, 1], instance.mdp.states - 1)  # a resting environment ignores its action
        observations, rewards, ended, truncated, _ = envs.step(draw(rng, policy[states]))
        running += rewards
        finished.append(running[ended].copy())
        running[ended] = 0
        assert not truncated.any()
        if mode is AutoresetMode.DISABLED and ended.any():
            observations, _ = envs.reset(options={"reset_mask": ended})
    returns = np.concatenate(finished)
    assert abs(z_score(returns, value(instance.mdp, policy))) < 4
    assert abs(z_score(returns, value(instance.mdp, softmax(instance.mdp, logits * 0.8)))) > 4  # another policy: seen


@pytest.mark.parametrize("build", [stochastic, slip])
def test_scalar_returns_match_the_exact_value(build):
    instance, rng = build(), np.random.default_rng(0)
    policy = softmax(instance.mdp, instance.prior)
    env = TokenEnv(instance)
    env.reset(seed=0)
    returns = []
    for _ in range(3000):
        (_, state), _ = env.reset()
        total, ended = 0.0, False
        while not ended:
            (_, state), reward, ended, _, _ = env.step(rng.choice(instance.mdp.entries, p=policy[state]))
            total += reward
        returns.append(total)
    assert abs(z_score(np.array(returns), value(instance.mdp, policy))) < 4


def test_optimal_tokens_reach_the_optimum_that_info_names():
    env = gymnasium.make("toymdp/tree-1e3-h3-n5-v1", instance_seed=3)
    instance = make("tree-1e3-h3-n5", 3)
    (length, state), info = env.reset(seed=0)
    ended = False
    while not ended:
        assert info["optimal_value"] == info["optimal_value_to_go"] == 1.0
        assert info["log_optimal_responses"] == pytest.approx(3 * math.log(5))
        token = int(np.flatnonzero(instance.mdp.labels[state] == 1)[0])
        (length, state), reward, ended, truncated, info = env.step(token)
        assert info["token_class"] == 1
        assert not truncated
        assert reward == float(ended)
    assert (length, state) == (3, instance.mdp.states)
    assert info["optimal_value_to_go"] == 0.0


def test_a_lost_response_is_worth_nothing_and_info_says_so():
    env = TokenEnv("smoke-tree")
    env.reset()
    wrong = int(np.flatnonzero(env.instance.mdp.labels[0] == 0)[0])
    _, reward, ended, _, info = env.step(wrong)
    assert (reward, ended, info["optimal_value_to_go"], info["optimal_value"]) == (0.0, False, 0.0, 1.0)


# ---------------------------------------------------------------------------------------------------------- two seeds


def test_instance_seed_and_dynamics_seed_are_apart():
    one, two = TokenEnv("slip-1e3-h3-n5", instance_seed=1), TokenEnv("slip-1e3-h3-n5", instance_seed=2)
    assert not np.array_equal(one.instance.mdp.labels, two.instance.mdp.labels)
    labels = one.instance.mdp.labels.copy()

    def walk(env: TokenEnv, seed: int) -> list[int]:
        env.reset(seed=seed)
        states = []
        for _ in range(60):
            (_, state), _, ended, _, _ = env.step(int(np.flatnonzero(env.instance.mdp.labels[env._state[0]] != 9)[0]))
            states.append(int(state))
            if ended:
                env.reset()
        return states

    assert walk(one, 5) == walk(one, 5)
    np.testing.assert_array_equal(one.instance.mdp.labels, labels)  # reset(seed) leaves the problem alone
    chance = TokenEnv(units(np.random.default_rng(0), actions=9, optimal=2, decoys=1, count=20))
    starts = [
        [int(chance.reset(seed=seed)[0][1])] + [int(chance.reset()[0][1]) for _ in range(9)] for seed in (5, 5, 6)
    ]
    assert starts[0] == starts[1] != starts[2]


def test_reward_noise_is_off_by_default_and_comes_once_per_response():
    instance = token_tree(np.random.default_rng(0), actions=30, optimal=2, horizon=3, decoys=2, reward_noise=0.3)
    for noisy in (False, True):
        envs = TokenVectorEnv(instance, 4000, noisy=noisy)
        envs.reset(seed=0)
        lost = np.full(4000, np.flatnonzero(instance.mdp.labels[0] == 0)[0])
        totals = np.zeros(4000)
        for step in range(3):
            _, rewards, ended, _, _ = envs.step(lost if step == 0 else np.zeros(4000, int))
            assert step == 2 or not rewards.any()
            totals += rewards
        assert ended.all()
        assert totals.std() == pytest.approx(0.3 if noisy else 0.0, rel=0.1)
        assert abs(totals.mean()) < 0.03
    with pytest.raises(ValueError, match="no effect"):
        TokenEnv(stochastic(), noisy=True)


# ------------------------------------------------------------------------------------------- vector against scalar env


def same_info(ours: dict, theirs: dict) -> None:
    """Equal where gymnasium's own vector env has an entry; keys that only ours has must be masked throughout."""
    for key, expected in theirs.items():
        if isinstance(expected, dict):
            same_info(ours[key], expected)
        elif key == "final_obs":
            assert all(
                (a is None) == (b is None) and np.array_equal(a, b) for a, b in zip(ours[key], expected, strict=True)
            )
        else:
            np.testing.assert_allclose(np.asarray(ours[key], float), np.asarray(expected, float), err_msg=key)
    for key in set(ours) - set(theirs):
        assert not np.any(ours[key] if key.startswith("_") else ours[f"_{key}"])


@pytest.mark.parametrize(
    ("name", "mode"), list(product(["smoke-tree", "bandit-1e3-n2"], ["NextStep", "SameStep", "Disabled"]))
)
def test_vector_env_is_gymnasiums_sync_vector_env_on_certain_dynamics(name, mode):
    mode, count = AutoresetMode(mode), 7
    ours = TokenVectorEnv(name, count, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: TokenEnv(name)] * count, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == mode == theirs.metadata["autoreset_mode"]
    rng = np.random.default_rng(0)
    for (a, a_info), (b, b_info) in [(ours.reset(seed=0), theirs.reset(seed=0))]:
        np.testing.assert_array_equal(a, b)
        same_info(a_info, b_info)
    likely = np.flatnonzero(ours.instance.mdp.labels[0])  # often a named token, so that all tracks are visited
    for _ in range(25):
        actions = np.where(rng.random(count) < 0.6, rng.choice(likely, count), rng.integers(20, size=count))
        mine, reference = ours.step(actions), theirs.step(actions)
        for a, b in zip(mine[:4], reference[:4], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        same_info(mine[4], reference[4])
        if mode is AutoresetMode.DISABLED and mine[2].any():
            (a, a_info), (b, b_info) = (envs.reset(options={"reset_mask": mine[2].copy()}) for envs in (ours, theirs))
            np.testing.assert_array_equal(a, b)
            same_info(a_info, b_info)


def test_returned_arrays_are_never_reused():
    envs = TokenVectorEnv("smoke-tree", 3)
    seen = [envs.reset(seed=0)[0]] + [envs.step(np.zeros(3, int))[0] for _ in range(4)]
    np.testing.assert_array_equal([observation[0, 0] for observation in seen], [0, 1, 2, 0, 1])


def test_large_batches_are_stepped_as_arrays():
    """60 steps of 50,000 environments in seconds: impossible with a Python loop over environments."""
    envs = TokenVectorEnv("slip-1e3-h3-n5", 50_000)
    envs.reset(seed=0)
    total = sum(envs.step(np.full(50_000, step))[2].sum() for step in range(60))
    assert total == 50_000 * 15  # three tokens and one autoreset step each


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("action", [-1, 20, 1.5, True, "1", None, [1], np.array([1]), np.float64(2)])
def test_a_bad_action_is_refused_with_the_valid_range(action):
    env = TokenEnv("smoke-tree")
    env.reset()
    with pytest.raises(ValueError, match="19"):
        env.step(action)
    env.step(np.int64(19))  # and the environment goes on


@pytest.mark.parametrize("actions", [0, [0, 1], np.zeros((3, 1), int), np.zeros(3), [0, 1, 20], [0, -1, 0]])
def test_bad_batches_of_actions_are_refused(actions):
    envs = TokenVectorEnv("smoke-tree", 3)
    envs.reset()
    with pytest.raises(ValueError, match="19"):
        envs.step(actions)


def test_steps_out_of_order_are_refused():
    env = TokenEnv("smoke-bandit")
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(0)
    env.reset()
    assert env.step(0)[2]
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(0)
    with pytest.raises(ResetNeeded, match="reset"):
        TokenVectorEnv("smoke-bandit", 2).step(np.zeros(2, int))
    envs = TokenVectorEnv("smoke-bandit", 2, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match="without reset_mask"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset()
    envs.step(np.zeros(2, int))
    with pytest.raises(ResetNeeded, match="autoreset is disabled"):
        envs.step(np.zeros(2, int))


@pytest.mark.parametrize("mask", [np.zeros(2, bool), np.ones(3, bool), np.ones(2), [True, True]])
def test_malformed_reset_masks_are_refused(mask):
    envs = TokenVectorEnv("smoke-bandit", 2)
    envs.reset()
    with pytest.raises(ValueError, match=r"boolean array of shape \(2,\)"):
        envs.reset(options={"reset_mask": mask})


def test_what_cannot_be_an_environment_is_refused():
    for build in (TokenEnv, TokenVectorEnv):
        with pytest.raises(ValueError, match="lumped"):
            build("smoke-lumped")
        with pytest.raises(ValueError, match="did you mean 'smoke-tree'"):
            build("smoke-tre")
    with pytest.raises(ValueError, match="at least one environment"):
        TokenVectorEnv("smoke-tree", 0)
    with pytest.raises(ValueError, match="autoreset"):
        TokenVectorEnv("smoke-tree", 2, autoreset_mode="sometimes")
