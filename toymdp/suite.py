"""The named settings: what is solved, under which name, with which exact optimum.

A setting is a family, its options and a version; ``make(name, seed=...)`` draws one instance of it. A name never
changes its meaning: new options are a new version, which is part of the gymnasium id (``toymdp/<name>-v<version>``).

Lumped settings (tag ``lumped``) hold many identical tokens per entry. They are for exact learners only and get no
gymnasium id: in ``Discrete(|A|)`` an action would not say which entry it is.

Left out on purpose: the small random MDPs of ``families.py``; they are for attacking propositions, not for comparing
methods.

This module is light, because ``import toymdp`` loads it: scipy comes with the first instance.

Tags: family (``bandit``, ``tree``, ``slip``, ``units``), horizon (``h3``), size (``A1e4``), sparsity (``n5`` optimal
tokens per state), prior (``plausible``, ``uniform``, ``gaussian``), ``lumped``, ``fig1`` (our candidate recipe for the
paper's Fig. 1, whose settings are not public), ``control`` and ``smoke`` (runs in a blink).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from aent.fields import is_whole_number
from aent.names import suggest

if TYPE_CHECKING:
    from toymdp.families import Instance
    from toymdp.mdp import Optimum

__all__ = ["SETTINGS", "Setting", "describe", "exact_optimum", "make", "select", "setting"]


@dataclass(frozen=True, eq=False)
class Setting:
    """One named problem: ``family`` is a constructor of ``families.py``, ``options`` its keyword arguments."""

    name: str
    family: str
    options: dict[str, Any]
    tags: tuple[str, ...]
    summary: str
    version: int = 1

    @property
    def lumped(self) -> bool:
        """Whether entries stand for many identical tokens."""
        return self.options.get("bins") is not None

    @property
    def gym_id(self) -> str | None:
        """Id for ``gymnasium.make``; None for lumped settings."""
        return None if self.lumped else f"toymdp/{self.name}-v{self.version}"


def setting(name: str) -> Setting:
    """Look a setting up by name or gymnasium id.

    Raises:
        ValueError: unknown name, with the nearest known ones.
    """
    bare = str(name).removeprefix("toymdp/")
    stem, _, version = bare.rpartition("-v")
    bare = stem if stem in SETTINGS and version == str(SETTINGS[stem].version) else bare
    if bare not in SETTINGS:
        raise ValueError(
            f"unknown setting {name!r}{suggest(bare, SETTINGS, most=3) or '.'} `python -m toymdp list` shows all"
        )
    return SETTINGS[bare]


def make(name: str, seed: int = 0) -> Instance:
    """Draw the instance of a setting: same name and seed, same arrays.

    ``seed`` decides the instance only (prior logits, which tokens are optimal); learners and environments have seeds of
    their own.

    Raises:
        ValueError: unknown name, or a seed that is no whole number >= 0.

    Examples:
        >>> instance = make("bandit-1e4-n5", seed=1)
        >>> instance.mdp.class_sizes.tolist()  # other, optimal and decoy tokens
        [[9992.0, 5.0, 3.0]]
    """
    chosen = setting(name)
    if not is_whole_number(seed) or seed < 0:
        raise ValueError(f"seed={seed!r}: expected a whole number >= 0")
    return _family(chosen)(np.random.default_rng(seed), **chosen.options)


def select(*tags: str) -> tuple[Setting, ...]:
    """Settings that carry all the tags, in their order in the suite; all settings for no tag.

    Raises:
        ValueError: a tag that no setting carries, with the nearest known one.

    Examples:
        >>> [chosen.name for chosen in select("fig1", "A1e5", "n15")]
        ['fig1-1e5-n15', 'lumped-fig1-1e5-n15']
    """
    known = sorted({tag for chosen in SETTINGS.values() for tag in chosen.tags})
    for tag in tags:
        if tag not in known:
            raise ValueError(f"unknown tag {tag!r}{suggest(tag, known, most=3) or '.'} Known tags: {', '.join(known)}")
    return tuple(chosen for chosen in SETTINGS.values() if set(tags) <= set(chosen.tags))


@cache
def exact_optimum(name: str) -> Optimum:
    """V*, Q* and log|A*_H| of a setting; the same for every seed, which only shuffles tokens and prior.

    Computed on the setting lumped into one bin: optima depend on how many tokens each class has, not on their logits.

    Raises:
        ValueError: unknown name.

    Examples:
        >>> round(exact_optimum("slip-1e4-h3-n5").value, 6)  # each of 3 tokens is read wrongly with probability 0.1
        0.729
    """
    chosen = setting(name)
    return _family(chosen)(np.random.default_rng(0), **{**chosen.options, "bins": 1}).optimum


def describe(name: str) -> dict[str, Any]:
    """What there is to know about a setting before solving it.

    Returns:
        ``name``, ``gym_id``, ``family``, ``tags``, ``summary``, ``options``, ``actions`` (|A|), ``horizon`` (H),
        ``optimal`` (per state), ``prior``, ``optimal_value`` (V*) and ``log_optimal_responses`` (log|A*_H|, nats; where
        tokens may slip, the largest entropy that an optimal policy can have).

    Raises:
        ValueError: unknown name.
    """
    chosen = setting(name)
    best = exact_optimum(chosen.name)
    return {
        "name": chosen.name,
        "gym_id": chosen.gym_id,
        "family": chosen.family,
        "tags": chosen.tags,
        "summary": chosen.summary,
        "options": dict(chosen.options),
        "actions": chosen.options["actions"],
        "horizon": chosen.options.get("horizon", 1),
        "optimal": chosen.options["optimal"],
        "prior": chosen.options["prior"],
        "optimal_value": best.value,
        "log_optimal_responses": best.log_responses,
    }


# ------------------------------------------------------------------------------------------------------ the settings


def _settings() -> dict[str, Setting]:
    """The suite; every name is built from the options it stands for."""
    rows = [
        *(_tree(f"bandit-{size}-n{n}", size, n) for size in ("1e3", "1e4", "1e5") for n in (1, 2, 5, 15)),
        *(_tree(f"bandit-1e4-n{n}-uniform", "1e4", n, prior="uniform", tags=("control",)) for n in (1, 5, 15)),
        *(_units(f"fig1-1e5-n{n}", "1e5", n, tags=("fig1",)) for n in (15, 10, 5, 1)),
        *(_units(f"fig1-small-n{n}", "1e3", n, count=5, tags=("fig1", "smoke")) for n in (15, 1)),
        *(_tree(f"tree-{size}-h{h}-n{n}", size, n, h) for size in ("1e3", "1e4") for h in (2, 3, 5) for n in (1, 5)),
        *(_tree(f"slip-{size}-h{h}-n5", size, 5, h, slip=0.1) for size in ("1e3", "1e4") for h in (2, 3)),
        # Eight prompts of unlike difficulty (the optimum's rank differs), for methods that weigh prompts.
        _units("prompts-1e3-n1", "1e3", 1, count=8, prior="plausible", decoys=3, decoy_reward=0.5, reward_noise=0.3),
        *(_tree(f"lumped-{size}-n{n}", size, n, bins=512) for size in ("1e5", "1e7", "1e9") for n in (1, 15)),
        *(_tree(f"lumped-{size}-h3-n5", size, 5, 3, bins=512) for size in ("1e5", "1e9")),
        *(_units(f"lumped-fig1-1e5-n{n}", "1e5", n, bins=512, tags=("fig1",)) for n in (15, 10, 5, 1)),
        _tree("smoke-bandit", "20", 1, decoys=2, tags=("smoke",)),
        _tree("smoke-tree", "20", 2, 2, decoys=2, tags=("smoke",)),
        _tree("smoke-slip", "20", 2, 3, decoys=2, slip=0.1, tags=("smoke",)),
        _tree("smoke-uniform", "20", 2, 2, decoys=2, prior="uniform", tags=("smoke", "control")),
        _units("smoke-units", "20", 2, count=4, tags=("smoke",)),
        _tree("smoke-lumped", "1e6", 5, bins=16, tags=("smoke",)),
    ]
    settings = {row.name: row for row in rows}
    assert len(settings) == len(rows), "two settings share a name"
    return settings


def _tree(
    name: str,
    size: str,
    optimal: int,
    horizon: int = 1,
    *,
    prior: str = "plausible",
    tags: tuple[str, ...] = (),
    **more: Any,
) -> Setting:
    """A setting of ``families.token_tree``; its tags follow from its options, so they cannot disagree with them."""
    options = {"actions": int(float(size)), "optimal": optimal, "horizon": horizon, "prior": prior, **more}
    kind = "bandit" if horizon == 1 else "slip" if more.get("slip") else "tree"
    what = "one token" if horizon == 1 else f"{horizon} tokens in a row" + (", each may slip" if kind == "slip" else "")
    summary = f"{what}: find {optimal} of {size}; {prior} prior" + (", in bins" if "bins" in more else "")
    lumped = ("lumped",) if "bins" in more else ()
    own = (kind, f"h{horizon}", f"A{size}", f"n{optimal}", prior)
    return Setting(name, "token_tree", options, own + lumped + tags, summary)


def _units(name: str, size: str, optimal: int, *, count: int = 20, tags: tuple[str, ...] = (), **more: Any) -> Setting:
    """A setting of ``families.units``."""
    options = {"actions": int(float(size)), "optimal": optimal, "count": count, "prior": "gaussian", **more}
    prior = options["prior"]
    summary = f"{count} independent one-token problems: find {optimal} of {size} in each; {prior} prior"
    lumped = ("lumped",) if "bins" in more else ()
    own = ("units", "h1", f"A{size}", f"n{optimal}", prior)
    return Setting(name, "units", options, own + lumped + tags, summary + (", in bins" if lumped else ""))


def _family(chosen: Setting) -> Any:
    from toymdp import families  # noqa: PLC0415  (loads scipy, which listing names does not need)

    return getattr(families, chosen.family)


SETTINGS: dict[str, Setting] = _settings()
