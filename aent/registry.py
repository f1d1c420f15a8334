"""Names of rules, methods and rewards: one table per kind, look-up with suggestions, rules to and from JSON.

A rule is written as ``{"type": name, **options}``, in a run's config, in a checkpoint, in YAML and on a command line:

    {"type": "top_k", "k": 100}               a rule of this package; case, underscores and hyphens do not matter
    {"type": "my_rules:MinP", "share": 0.05}  a class of your own: the module ``my_rules`` is imported where it is met

A class of your own is always written with its module, so that another process finds it too.

Left out: what a rule computes (``entropy.py``, ``controllers.py``, ``shaping.py``), and the values its fields may hold
(``fields.py``).
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from aent.fields import is_for_numbers
from aent.names import plain_name, suggest

__all__ = ["Registry", "Rules", "is_ours"]

T = TypeVar("T")


def is_ours(rule: type) -> bool:
    """Whether a class is one of this package."""
    return rule.__module__.partition(".")[0] == __name__.partition(".")[0]


class Registry(dict[str, T], Generic[T]):
    """Things of one kind by their names; ``registry[name]`` looks up as ``find`` does.

    Args:
        kind: what one of them is called in messages, e.g. "method".
        entries: those of this package; their names are taken for good.
        expected: what ``module:name`` must lead to, in words.
        accepts: whether an object is that.
    """

    def __init__(
        self, kind: str, entries: Mapping[str, T] | None = None, *, expected: str, accepts: Callable[[Any], bool]
    ):
        super().__init__(entries or {})
        self.kind: str = kind
        self.expected: str = expected
        self.accepts: Callable[[Any], bool] = accepts
        self._taken = frozenset(self)

    def __setitem__(self, name: str, entry: T) -> None:
        """Register ``entry``; setting a name of your own again replaces it.

        Raises:
            ValueError: a name of this package, in any spelling; a name that cannot be looked up; the wrong kind.
        """
        there = next((one for one in self._taken if plain_name(one) == plain_name(str(name))), None)
        if there is not None:
            raise ValueError(f"the {self.kind} {there!r} is part of this package and stays: choose another name")
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w .+-]*", name):
            raise ValueError(f"{self.kind} name {name!r}: expected letters, digits, '-', '_', e.g. 'my-{self.kind}'")
        if not self.accepts(entry):
            raise ValueError(f"{self.kind} {name!r}: expected {self.expected}, got {entry!r}")
        super().__setitem__(name, entry)

    def __missing__(self, name: str) -> T:
        return self.find(name)[1]

    def find(self, given: Any) -> tuple[str, T]:
        """Look up ``given``: a known name in any spelling, or ``module:name``. Returns (canonical name, entry).

        Raises:
            ValueError: an unknown name, with the nearest known one; a module that cannot be imported or has no such
                name; something of another kind.
        """
        text = given if isinstance(given, str) else ""
        if (name := self.spelling(text)) is not None:
            return name, self[name]
        if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", text):  # my_rules.MinP
            text = ":".join(text.rsplit(".", 1))
        if ":" in text:
            return text, self._located(text)
        raise ValueError(
            f"unknown {self.kind} {given!r}{suggest(given, self) or '.'} Known: {', '.join(self._known())}; one of "
            "your own is module:name"
        )

    def spelling(self, text: str) -> str | None:
        """Return the name as it is registered, or ``None`` for an unknown one."""
        return {plain_name(name): name for name in self}.get(plain_name(text))

    def _known(self) -> list[str]:
        return list(self)

    def _located(self, text: str) -> T:
        """Import ``module:name`` and return what it names, or what the module has registered under that name."""
        module_name, _, path = text.partition(":")
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:  # whatever a module of the user's may raise
            raise ValueError(
                f"{self.kind} {text!r}: importing {module_name!r} failed ({type(error).__name__}: {error}). Name the "
                "module without .py; start in its folder, or add that to PYTHONPATH"
            ) from error
        try:
            found = operator.attrgetter(path)(module)
        except AttributeError:
            if (name := self.spelling(path)) is not None and name not in self._taken:
                return self[name]
            raise ValueError(
                f"{self.kind} {text!r}: {module_name} has no {path!r}{suggest(path, vars(module)) or '.'}"
            ) from None
        if not self.accepts(found):
            raise ValueError(f"{self.kind} {text!r}: expected {self.expected}, got {found!r}")
        return found


class Rules(Registry[type[T]], Generic[T]):
    """The classes of one kind of rule: frozen dataclasses that are saved as ``{"type": name, **options}``.

    Args:
        from_list: what a list in JSON stands for.
    """

    def __init__(
        self,
        kind: str,
        *,
        expected: str,
        accepts: Callable[[Any], bool],
        from_list: Callable[[list[Any]], Any] = tuple,
    ):
        super().__init__(kind, expected=expected, accepts=accepts)
        self._from_list = from_list
        self._met: dict[str, type[T]] = {}  # by module and name, also those of a notebook or inside a function

    def copy(self) -> Rules[T]:
        """Return a registry of the same classes that can grow on its own."""
        other = Rules(self.kind, expected=self.expected, accepts=self.accepts, from_list=self._from_list)
        dict.update(other, self)
        other._met = dict(self._met)
        return other

    def register(self, rule: type[T]) -> None:
        """Add a class under its name, unless that begins with an underscore.

        A class of the same module and qualified name takes the place of the one before: a notebook's cell was run
        again, or a module loaded again.

        Raises:
            ValueError: another class has the name.
        """
        name = rule.__name__
        if name.startswith("_"):
            return
        there = self.spelling(name)
        if there is not None and _location(self[there]) != _location(rule):
            raise ValueError(
                f"a {self.kind} named {there} exists already ({_location(self[there])}): give {_location(rule)} "
                "another name"
            )
        dict.__setitem__(self, name, rule)
        self._met[_location(rule)] = rule

    def to_dict(self, rule: T) -> dict[str, Any]:
        """Write a rule as JSON keeps it; ``from_dict`` gives it back.

        Raises:
            ValueError: not a dataclass, or a field that JSON cannot hold.
        """
        kind = type(rule)
        options = {one.name: _to_json(getattr(rule, one.name)) for one in _options(kind)}
        for name, value in options.items():
            try:
                json.dumps(value)
            except TypeError:
                raise ValueError(
                    f"{kind.__name__}.{name}: {value!r} cannot be saved. The fields of a {self.kind} must be numbers, "
                    "text, true or false, or lists of these"
                ) from None
        self._met[_location(kind)] = kind
        return {"type": _type_name(kind), **options}

    def from_dict(self, saved: Mapping[str, Any]) -> T:
        """Build the rule that ``to_dict`` has written.

        Raises:
            ValueError: an unknown type (with a suggestion), unknown or missing options, text where a number belongs,
                values that the rule refuses.
        """
        if not isinstance(saved, Mapping):
            raise ValueError(f"a {self.kind} is a mapping with a 'type' and options, got {saved!r}")
        options = {str(key): value for key, value in saved.items()}
        if "type" not in options:
            raise ValueError(f"a {self.kind} needs a 'type', got {dict(saved)!r}. Known: {', '.join(self._known())}")
        _, rule = self.find(options.pop("type"))
        known = {one.name: one for one in _options(rule)}
        required = [
            name
            for name, one in known.items()
            if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        ]
        for what, names in (
            ("unknown", sorted(set(options) - set(known))),
            ("missing", [name for name in required if name not in options]),
        ):
            if names:
                expected = ", ".join(known) or "no options"
                raise ValueError(f"{rule.__name__}: {what} {', '.join(names)}; expected {expected}")
        for name, value in options.items():
            if isinstance(value, str) and is_for_numbers(known[name]):
                raise ValueError(
                    f"{rule.__name__}: {name} must be a number, got the text {value!r}; leave quotes out, and for a "
                    "reader of YAML 1.1, which takes 1e-3 for text, write 1.0e-3"
                )
        values = {name: self._from_list(value) if isinstance(value, list) else value for name, value in options.items()}
        try:
            return rule(**values)
        except ValueError:
            raise
        except Exception as error:  # whatever a rule of the user's may raise
            raise ValueError(f"{rule.__name__}: {options} refused ({type(error).__name__}: {error})") from error

    def read(self, given: Any, where: str) -> T:
        """Make a rule of what a user gives: its name, a mapping with ``type`` and options, or the rule itself.

        Raises:
            ValueError: as ``from_dict``, beginning with ``where``; anything else given.
        """
        if self.accepts(type(given)):
            return given
        block = {"type": given} if isinstance(given, str) else given
        if isinstance(given, type):
            raise ValueError(f"{where}: {given.__name__} is a class; give an object, {given.__name__}(...)")
        if not isinstance(block, Mapping):
            raise ValueError(
                f"{where}: expected the name of a {self.kind}, a mapping with its type and options, or an object, "
                f"got {given!r}"
            )
        try:
            return self.from_dict(block)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error.__cause__

    def _known(self) -> list[str]:
        return sorted(self)

    def _located(self, text: str) -> type[T]:
        return self._met[text] if text in self._met else super()._located(text)


# -------------------------------------------------------------------------------------------------------- internals


def _location(rule: type) -> str:
    return f"{rule.__module__}:{rule.__qualname__}"


def _type_name(rule: type) -> str:
    return rule.__name__ if is_ours(rule) else _location(rule)


def _options(rule: type) -> list[dataclasses.Field[Any]]:
    if not dataclasses.is_dataclass(rule):
        raise ValueError(
            f"{_location(rule)} is not a dataclass: write @dataclass(frozen=True) above it, so that its options can be "
            "saved with a run"
        )
    return [one for one in dataclasses.fields(rule) if one.init]


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_to_json(one) for one in value] if isinstance(value, list | tuple) else value
