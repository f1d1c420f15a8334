"""Exactly solvable large-action MDPs that pose a language model's exploration problem; see README.md for a tour.

Importing registers the gymnasium ids (``toymdp/...-v1``) when gymnasium is installed, as gymnasium packages do; entry
points are strings, so nothing else is loaded. It never loads torch.
"""

from toymdp.suite import SETTINGS


def _register() -> None:
    """Make every setting that is not lumped known to ``gymnasium.make`` and ``gymnasium.make_vec``."""
    try:
        from gymnasium.envs.registration import register, registry  # noqa: PLC0415  (optional)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gymnasium":  # a broken gymnasium should be seen
            raise
        return  # toymdp.envs says what to install
    for chosen in SETTINGS.values():
        if chosen.gym_id is not None and chosen.gym_id not in registry:
            register(
                id=chosen.gym_id,
                entry_point="toymdp.envs:TokenEnv",
                vector_entry_point="toymdp.envs:TokenVectorEnv",
                kwargs={"problem": chosen.name},
            )


_register()
