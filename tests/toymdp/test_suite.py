"""Names, tags and exact optima of the suite; what an import costs and survives."""

import math
import subprocess
import sys

import numpy as np
import pytest

import toymdp
from aent.extras import install_line
from toymdp.mdp import class_mass, log_responses, softmax, value
from toymdp.suite import SETTINGS, Setting, describe, exact_optimum, make, select, setting

QUICK = [name for name, chosen in SETTINGS.items() if chosen.options["actions"] <= 1000 or chosen.lumped]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# --------------------------------------------------------------------------------------------------- what there must be


@pytest.mark.parametrize("size", ["1e3", "1e4", "1e5"])
@pytest.mark.parametrize("n", [1, 2, 5, 15])
def test_the_bandit_grid_is_complete(size, n):
    (found,) = [chosen for chosen in select("bandit", f"A{size}", f"n{n}", "plausible") if not chosen.lumped]
    assert found.options["actions"] == int(float(size))
    assert found.options["optimal"] == n


def test_fig1_has_the_sparsities_of_the_paper_full_and_lumped():
    for lumped in (False, True):
        found = [chosen for chosen in select("fig1", "A1e5") if chosen.lumped == lumped]
        assert [chosen.options["optimal"] for chosen in found] == [15, 10, 5, 1]
        assert {chosen.options["count"] for chosen in found} == {20}


def test_trees_and_slip_trees_of_all_horizons_and_a_billion_tokens():
    assert {chosen.options["horizon"] for chosen in select("tree", "A1e4")} == {2, 3, 5}
    assert all(chosen.options["slip"] > 0 for chosen in select("slip"))
    assert {"h2", "h3"} <= {tag for chosen in select("slip") for tag in chosen.tags}
    assert select("lumped", "A1e9", "h3")
    assert {chosen.family for chosen in select("smoke")} == {"token_tree", "units"}


@pytest.mark.parametrize("name", SETTINGS)
def test_tags_and_names_say_what_the_options_say(name):
    chosen = SETTINGS[name]
    actions, optimal, prior = (chosen.options[key] for key in ("actions", "optimal", "prior"))
    sizes = [tag for tag in chosen.tags if tag.startswith("A")]
    assert [float(size[1:]) for size in sizes] == [actions]
    assert f"n{optimal}" in chosen.tags
    assert f"h{chosen.options.get('horizon', 1)}" in chosen.tags
    assert prior in chosen.tags
    assert ("lumped" in chosen.tags) == chosen.lumped == (chosen.gym_id is None)
    assert ("slip" in chosen.tags) == bool(chosen.options.get("slip"))
    assert len(set(chosen.tags)) == len(chosen.tags)
    assert chosen.summary


# ----------------------------------------------------------------------------------------------------------- instances


@pytest.mark.parametrize("name", QUICK)
def test_the_listed_optimum_is_that_of_every_instance(name):
    """Listed from one bin; here from the instance itself and from the definition of the family."""
    options = SETTINGS[name].options
    horizon, slip = options.get("horizon", 1), options.get("slip", 0.0)
    for seed in (0, 1):
        found = make(name, seed)
        assert exact_optimum(name).value == pytest.approx(found.optimum.value, abs=1e-12)
        assert exact_optimum(name).log_responses == pytest.approx(found.optimum.log_responses, abs=1e-9)
        assert found.optimum.value == pytest.approx((1 - slip) ** horizon)
        if not slip:
            assert found.optimum.log_responses == pytest.approx(horizon * math.log(options["optimal"]), abs=1e-9)
            assert log_responses(found.mdp) == pytest.approx(horizon * math.log(options["actions"]))
        assert found.mdp.actions == options["actions"]


@pytest.mark.parametrize("name", QUICK)
def test_every_setting_starts_far_from_its_optimum(name):
    found = make(name)
    start = value(found.mdp, softmax(found.mdp, found.prior))
    assert 0 < start < 0.7 * found.optimum.value


def test_one_seed_one_instance_and_other_seeds_other_instances():
    first, again, other = make("tree-1e3-h2-n5", 3), make("tree-1e3-h2-n5", 3), make("tree-1e3-h2-n5", 4)
    np.testing.assert_array_equal(first.prior, again.prior)
    np.testing.assert_array_equal(first.mdp.labels, again.mdp.labels)
    assert not np.array_equal(first.mdp.labels, other.mdp.labels)


def test_slip_optimum_by_hand():
    """H = 2, slip s: the optimal policy of largest entropy spreads over n, then over n, or over all |A| once lost."""
    s, n, actions = 0.1, 5, 1000
    facts = describe("slip-1e3-h2-n5")
    assert facts["optimal_value"] == pytest.approx((1 - s) ** 2)
    expected = math.log(n) + (1 - s) * math.log(n) + s * math.log(actions)
    assert facts["log_optimal_responses"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_prompts_setting_has_prompts_of_unlike_difficulty(seed):
    """Success under the prior differs by a factor of three and more; the decoy of every prompt is likelier."""
    found = make("prompts-1e3-n1", seed)
    assert (found.mdp.start == 1 / 8).all()
    _, optimal, decoy = class_mass(found.mdp, softmax(found.mdp, found.prior)).T
    assert optimal.max() > 3 * optimal.min()
    assert (decoy > 5 * optimal).all()
    np.testing.assert_array_equal(found.mdp.class_sizes[:, 1:], [[1, 3]] * 8)
    np.testing.assert_allclose(found.mdp.reward, [[0.0, 1.0, 0.5]] * 8)
    assert found.mdp.reward_noise == 0.3


# -------------------------------------------------------------------------------------------------- looking things up


def test_select_narrows_and_keeps_the_order_of_the_suite():
    assert select() == tuple(SETTINGS.values())
    smoke, both = select("smoke"), select("smoke", "lumped")
    assert set(both) < set(smoke) < set(select())
    assert select("uniform", "fig1") == ()
    assert [chosen.name for chosen in smoke] == [name for name in SETTINGS if "smoke" in SETTINGS[name].tags]


def test_a_setting_is_found_by_name_and_by_gymnasium_id():
    assert setting("toymdp/smoke-bandit-v1") is setting("smoke-bandit-v1") is setting("smoke-bandit")
    assert setting("smoke-bandit").gym_id == "toymdp/smoke-bandit-v1"


@pytest.mark.parametrize("wrong", ["smoke-bandits", "toymdp/smoke-bandit", "smoke-bandit-v7"])
def test_unknown_names_get_the_nearest_known_one(wrong):
    if wrong == "toymdp/smoke-bandit":
        assert setting(wrong).name == "smoke-bandit"  # without the version: the current one
        return
    for function in (make, describe, exact_optimum, setting):
        with pytest.raises(ValueError, match="did you mean 'smoke-bandit'"):
            function(wrong)


def test_unknown_tags_get_the_nearest_known_one():
    with pytest.raises(ValueError, match="did you mean 'fig1'"):
        select("fgi1")
    with pytest.raises(ValueError, match=r"unknown setting 'xyz'\. .*list"):
        setting("xyz")


def test_describe_is_complete_and_a_copy():
    facts = describe("fig1-1e5-n10")
    assert facts["optimal_value"] == pytest.approx(1.0)
    assert facts["log_optimal_responses"] == pytest.approx(math.log(10))
    assert (facts["actions"], facts["horizon"], facts["optimal"]) == (100_000, 1, 10)
    facts["options"]["actions"] = 7
    assert SETTINGS["fig1-1e5-n10"].options["actions"] == 100_000


def test_a_new_version_is_a_new_id():
    old = SETTINGS["smoke-bandit"]
    new = Setting(old.name, old.family, {**old.options, "optimal": 3}, old.tags, old.summary, version=2)
    assert new.gym_id == "toymdp/smoke-bandit-v2" != old.gym_id


# -------------------------------------------------------------------------------------------------------------- import


def test_import_is_light():
    heavy = ["torch", "scipy", "numba", "pandas", "matplotlib", "rich"]
    assert run(f"import sys, toymdp; print([m for m in {heavy} if m in sys.modules])") == "[]"
    instance = "toymdp.suite.make('smoke-tree')"
    assert run(f"import sys, toymdp, toymdp.suite; {instance}; print('torch' in sys.modules)") == "False"


def test_import_without_gymnasium_works_and_asking_for_an_env_says_what_to_install():
    code = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "import toymdp, toymdp.suite\n"
        "print(toymdp.suite.make('smoke-tree').optimum.value)\n"
        "try:\n    import toymdp.envs\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    said = f"toymdp's environments need gymnasium: gymnasium is not installed; run: {install_line('figures')}"
    assert run(code).splitlines() == ["1.0", said]


def test_importing_registers_every_id_once_and_no_lumped_one():
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import gymnasium, importlib, toymdp\n"
        "importlib.reload(toymdp)\n"
        "print(*sorted(i for i in gymnasium.registry if i.startswith('toymdp/')))"
    )
    ids = sorted(chosen.gym_id for chosen in toymdp.SETTINGS.values() if not chosen.lumped)
    assert run(code).split() == ids
    assert len(ids) > 35
