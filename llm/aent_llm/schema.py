"""What a settings file may hold, derived from the dataclasses that take the settings, and what is said if it does not.

    tree, places = read_yaml(Path("my.yaml"))
    values = block(DataConfig).checked(tree["data"], places, ("data",))  # keys known, values converted by type

The annotation of a field is its whole rule: ``Positive`` is a number above 0, ``Literal["a", "b"]`` one of two names.
pydantic converts (text that is a number becomes one, where the field is a number) and judges; a message is one line
with place, key, what was expected and what came. ``Block.reference`` prints the same rules as Markdown.

The YAML is version 1.2: ``1e-8`` is a number, ``no`` is text, a key that stands twice is an error.

Left out: rules between fields, which are the ``__post_init__`` of each dataclass.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError, create_model
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.parser import ParserError
from ruamel.yaml.scanner import ScannerError

from aent.names import suggest

__all__ = [
    "COLDEST", "Block", "Count", "NaturalNumber", "NonNegative", "Places", "Positive", "Seed", "Share", "Temperature",
    "Text", "block", "convert_fields", "describe", "narrowed", "parse_yaml", "read_yaml", "setting", "short",
]  # fmt: skip

Count = Annotated[int, Field(ge=1)]
NaturalNumber = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # of numpy
COLDEST = 1e-6  # temperature: logits over less overflow in float32
Temperature = Annotated[float, Field(ge=COLDEST)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]

KeyPath = tuple[str | int, ...]
LONGEST = 1_000_000  # bytes of a file, DEEPEST blocks in each other, LARGEST values with the aliases written out:
DEEPEST = 100  # a config has a hundredth of each, and the parser takes minutes for more
LARGEST = 20_000
TOO_DEEP = f"nested more than {DEEPEST} deep, which no settings are"
WHOLE, REAL = 2**63 - 1, 1e30  # the largest numbers: 64 bits; room for products in float32
OPTION = "--set"  # the place of a key on the command line
SHOWN = 8  # names of a choice that a message lists


def setting(default: Any, help: str) -> Any:
    """Field of a dataclass with a default and the sentence that documents it."""
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


# ------------------------------------------------------------------------------------------------------- reading YAML


class Places(NamedTuple):
    """Where the keys of a tree were written: ``known`` by path, of all others ``default``."""

    default: str = ""
    known: dict[KeyPath, str] = {}  # noqa: RUF012

    def of(self, path: KeyPath) -> str:
        """The place of a key, or of the nearest block around it, as the start of a message."""
        found = (self.known[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.known)
        place = next(found, self.default)
        return f"{place} " if place == OPTION else f"{place}: " if place else ""

    def overridden(self, path: KeyPath) -> Places:
        """The places after ``path`` and all below it were written anew on the command line."""
        kept = {key: value for key, value in self.known.items() if key[: len(path)] != path}
        new = {path[:end]: OPTION for end in range(1, len(path) + 1) if path[:end] not in kept}
        return Places(self.default, kept | new)


def read_yaml(path: Path) -> tuple[Any, Places]:
    """Read a file as plain dicts, lists, text and numbers, with the line of every key.

    Raises:
        OSError: it cannot be read.
        ValueError: not UTF-8, not YAML, a key twice or not text, a tag; larger or deeper than settings are.
    """
    with path.open("rb") as file:
        content = file.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise ValueError(f"{path}: more than {LONGEST:,} bytes are no settings")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: byte {content[error.start]:#04x} is not UTF-8 text; save the file as UTF-8"
        ) from None
    known: dict[KeyPath, str] = {}
    return parse_yaml(text, str(path), lines=known), Places(str(path), known)


def parse_yaml(text: str, place: str, lines: dict[KeyPath, str] | None = None) -> Any:
    """Parse a YAML text; ``lines`` receives the place of every key. Raises as ``read_yaml``."""
    try:
        _refuse_traps(text, place, several_lines=lines is not None)
        tree = YAML(typ="rt", pure=True).load(text)
    except YAMLError as error:
        raise ValueError(_yaml_fault(error, place, several_lines=lines is not None)) from None
    budget = iter(range(LARGEST))
    return _plain(tree, (), place, lines, budget)


def _refuse_traps(text: str, place: str, *, several_lines: bool) -> None:
    """Raise ValueError for what the loader takes minutes for, or for null: an alias inside the block that it names."""
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text))
    if max(itertools.accumulate(steps), default=0) > DEEPEST:  # the parser looks far ahead into brackets
        raise ValueError(f"{place}: {TOO_DEEP}")
    around: list[str | None] = []  # anchors of the blocks and lists that are open
    for number, event in enumerate(YAML(typ="rt", pure=True).parse(text)):
        at = f"{place}, line {event.start_mark.line + 1}" if several_lines else place
        if isinstance(event, CollectionStartEvent):
            around.append(event.anchor)
        elif isinstance(event, CollectionEndEvent):
            around.pop()
        elif isinstance(event, AliasEvent) and event.anchor in around:
            raise ValueError(f"{at}: the alias *{event.anchor} stands inside what it names; write the value out")
        if len(around) > DEEPEST:
            raise ValueError(f"{at}: {TOO_DEEP}")
        if number > LARGEST:
            raise ValueError(f"{at}: {LARGEST:,} keys and values and more are no settings")


def _yaml_fault(error: Any, place: str, several_lines: bool) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    at = f"{place}, line {mark.line + 1}" if several_lines and mark is not None else place
    if twice := re.match(r'found duplicate key "(.*?)" with value', problem or "", re.DOTALL):
        return f"{at}: the key {twice[1]!r} stands twice in its block; keep one of the two"
    said = " ".join(part for part in (getattr(error, "context", None), problem) if part) or str(error).splitlines()[0]
    advice = "; indent by spaces, not tabs" if "'\\t'" in said else ""
    if isinstance(error, ScannerError | ParserError) and not advice:
        advice = "; text that holds or begins with one of : # [ { @ ' needs quotes"
    return f"{at}: not YAML: {said}{advice}"


def _plain(value: Any, path: KeyPath, place: str, lines: dict[KeyPath, str] | None, budget: Iterator[int]) -> Any:
    """The value without ruamel's own types."""
    here = Places(place, lines or {}).of(path)
    tag = getattr(getattr(value, "tag", None), "value", None)
    if next(budget, None) is None:
        raise ValueError(f"{here}{LARGEST:,} values and more are no settings; do aliases (*name) repeat each other?")
    written = getattr(getattr(value, "lc", None), "data", None) or {}  # key -> line and column, of key and value
    if isinstance(value, dict | list) and not tag:
        numbered = value.items() if isinstance(value, dict) else enumerate(value)
        found = []
        for key, one in numbered:
            below = (*path, key)
            if lines is not None and key in written:
                lines[below] = f"{place}, line {written[key][0] + 1}"
            if isinstance(value, dict) and not (isinstance(key, str) and key):
                here = Places(place, lines or {}).of(below)
                raise ValueError(f"{here}{_in(path)}a key must be text, got {_shown(key)}; put it in quotes")
            found.append((key, _plain(one, below, place, lines, budget)))
        return dict(found) if isinstance(value, dict) else [one for _, one in found]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind) and not tag:
            return kind(value)
    what = f"the tag {tag}" if tag else f"a {type(value).__name__}"
    raise ValueError(f"{here}{_in(path)}{what} is no setting; write text in quotes, a number, true or false")


# ------------------------------------------------------------------------------------------------------------- types


class Setting(NamedTuple):
    """A field as a setting: its type (as ``_typed``), its default (``MISSING``: it must be given), its text."""

    kind: Any
    default: Any
    help: str


@functools.cache
def settings_of(cls: type) -> dict[str, Setting]:
    """The fields of a dataclass that a file can set. Metadata ``choices`` narrow a type, as in transformers."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError:  # of a user's class, with names that only a type checker imports
        hints = {}
    found = {}
    for one in dataclasses.fields(cls):
        if one.init:
            kind = _typed(hints.get(one.name, Any))
            if choices := one.metadata.get("choices"):
                kind = _either([Literal[tuple(choices)], *([None] if one.default is None else [])])
            default = one.default if one.default_factory is MISSING else one.default_factory()
            found[one.name] = Setting(kind, default, one.metadata.get("help", ""))
    return found


def _typed(hint: Any) -> Any:
    """A type hint as pydantic shall judge it: true is no number, text is no truth, infinity is no setting."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is bool:
        return StrictBool
    if hint is int:
        return Annotated[int, AfterValidator(_below(WHOLE)), BeforeValidator(_no_truth)]
    if hint is float:
        return Annotated[float, Field(allow_inf_nan=False), AfterValidator(_below(REAL)), BeforeValidator(_no_truth)]
    if hint is str:
        return Annotated[str, BeforeValidator(lambda given: os.fspath(given) if isinstance(given, Path) else given)]
    if origin is Annotated:
        return Annotated[(_typed(arguments[0]), *arguments[1:])]
    if origin in (Union, types.UnionType):
        return _either(_typed(one) for one in arguments)
    if origin in (list, tuple, dict):
        generic: Any = origin
        return generic[tuple(one if one is ... else _typed(one) for one in arguments)]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return Literal[tuple(one.value for one in hint)]
    plain = hint in (None, type(None), Any, dict, list) or origin is Literal
    return hint if plain else Any  # a class that no file can hold


def _either(kinds: Iterable[Any]) -> Any:
    """The union; names of an enumeration leave no other text, a number with and without a point is a number."""
    found = list(kinds)
    names = any(get_origin(one) is Literal for one in found)
    real = any(_base(one) is float for one in found)
    kept = [one for one in found if not (one is Any or (names and _base(one) is str) or (real and _base(one) is int))]
    return Union[tuple(kept or [Any])]  # noqa: UP007


def _base(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _no_truth(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("not a number")
    return given


def _below(limit: float) -> Callable[[Any], Any]:
    def check(number: Any) -> Any:
        if abs(number) > limit:
            raise ValueError("too large")
        return number

    return check


def describe(kind: Any) -> str:
    """A type in words, as after "expected": ``a whole number of at least 1, or null``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[arguments[0]] + _range(
            kind
        )
    if origin in (Union, types.UnionType):
        return ", or ".join(describe(one) for one in arguments)
    if origin is Literal:
        return _listed([_shown(one).strip("'") for one in arguments])
    if origin in (list, tuple):
        return f"a list, each {describe(arguments[0])}"
    if kind is dict or origin is dict:
        return "a block of keys" + (f", each {describe(arguments[1])}" if arguments and arguments[1] is not Any else "")
    return {None: "null", type(None): "null", list: "a list"}.get(kind, "a value")


def _range(kind: Any) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    rules = [one for rule in get_args(kind)[1:] for one in getattr(rule, "metadata", ())]
    found = [f"{text} {getattr(rule, name)}" for rule in rules for name, text in words.items() if hasattr(rule, name)]
    if any(hasattr(rule, "min_length") for rule in rules):
        found.append("at least one letter")
    text = " and ".join(found)
    return f"{' of' * text.startswith('at')} {text}" if text else ""


def _listed(names: list[str]) -> str:
    if len(names) > SHOWN:
        return f"one of {len(names)} names ({', '.join(names[:SHOWN])} ...)"
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


# ---------------------------------------------------------------------------------------------------------- checking


class Block:
    """Settings by name that stand together in a file, and the pydantic model that judges them."""

    def __init__(self, settings: dict[str, Setting]):
        self.settings = settings
        fields: dict[str, Any] = {
            name: (one.kind, ... if one.default is MISSING else one.default) for name, one in settings.items()
        }
        self.model: Any = create_model(
            "Block", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields
        )

    def checked(self, given: Any, places: Places = Places(), path: KeyPath = ()) -> dict[str, Any]:
        """``given`` with its values converted to the types of the fields; defaults are not filled in.

        Args:
            given: what was read; None is an empty block.
            places: of ``read_yaml``.
            path: of the block, which messages name.

        Raises:
            ValueError: not a block, an unknown or missing key, a value of another type or out of its range.
        """
        if given is not None and not isinstance(given, Mapping):
            what = f"{_in(path)}expected a block of settings (key: value), got {_shown(given)}"
            raise ValueError(f"{places.of(path)}{what}")
        given = given or {}
        try:
            found = self.model.model_validate({key: given[key] for key in given})
        except ValidationError as error:
            raise ValueError(self._complaint(error, given, places, path)) from None
        return {name: getattr(found, name) for name in given}

    def _complaint(self, error: ValidationError, given: Mapping[Any, Any], places: Places, path: KeyPath) -> str:
        """The first fault in the order of the file; the keys of others behind it."""
        faults = {fault["loc"][0]: fault for fault in reversed(error.errors())}
        key = next((one for one in given if one in faults), next(iter(faults)))
        place, name = places.of((*path, *faults[key]["loc"])), _dotted((*path, key))
        others = [str(one) for one in faults if one != key]
        rest = f" (also wrong: {', '.join(others)})" if others else ""
        if key not in self.settings:
            listed = f"; known here: {', '.join(self.settings)}" if len(self.settings) < 20 else ""
            hint = suggest(key, self.settings) or listed
            block = _in(path) or f"{key}: " * place.startswith(OPTION)
            return f"{place}{block}unknown key {key!r}{hint}{rest}"
        kind = describe(self.settings[key].kind)
        if key not in given:
            return f"{places.of(path)}{_in(path)}the key {key!r} is needed: {self.settings[key].help or kind}{rest}"
        return f"{place}{name}: expected {kind}, got {_shown(given[key])}{_cure(self.settings[key], given[key])}{rest}"

    def reference(self, prefix: str = "") -> str:
        """A Markdown table of the settings: key, type, default, meaning."""
        rows = ["| Key | Value | Default | Meaning |", "|---|---|---|---|"]
        for name, one in self.settings.items():
            default = "needed" if one.default is MISSING else f"`{_shown(getattr(one.default, 'value', one.default))}`"
            cells = (f"`{prefix}{name}`", describe(one.kind), default, one.help.replace("%%", "%"))
            rows.append(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |")
        return "\n".join(rows)


def matching(reference: str, pattern: str) -> str:
    """Keep of a page of such tables, under headings, the rows that hold ``pattern``, in upper or lower case.

    A table whose heading holds it as a word is kept whole.

    Raises:
        ValueError: no row does.
    """
    kept, heading, said = [], "", []
    for part in reference.split("\n\n"):
        if part.startswith("#"):
            heading, said = part, []
        elif not part.startswith("|"):
            said.append(part)
        head, rows = part.splitlines()[:2], part.splitlines()[2:]
        whole = heading.startswith("## ") and pattern.casefold() in heading.casefold().split()
        found = [row for row in rows if whole or pattern.casefold() in row.casefold()]
        if part.startswith("|") and found:
            kept += [heading, *said * whole, "\n".join([*head, *found])]
    if not kept:
        names = re.findall(r"^\| `([\w.]+)`", reference, re.MULTILINE)
        hint = suggest(pattern, [*names, *(name.rpartition(".")[2] for name in names)], most=3) or "."
        raise ValueError(f"--settings {pattern}: no setting has this in its name or meaning{hint}")
    return "\n\n".join(kept)


@functools.cache
def block(cls: type) -> Block:
    """The settings of a dataclass as it declares them."""
    return Block(settings_of(cls))


def narrowed(cls: type, changed: Mapping[str, Any]) -> Block:
    """The settings of a dataclass, some with other types than its fields have; None: not set in a file."""
    new = {name: None if kind is None else _typed(kind) for name, kind in changed.items()}
    kinds = {name: new.get(name, one.kind) for name, one in settings_of(cls).items()}
    return Block({name: settings_of(cls)[name]._replace(kind=kind) for name, kind in kinds.items() if kind is not None})


def convert_fields(instance: Any, name: str = "", settings: Block | None = None) -> None:
    """Convert the fields of a dataclass by their types, in place; ``name`` stands before each in messages.

    Raises:
        ValueError: as ``Block.checked``.
    """
    settings = settings or block(type(instance))
    given = {one: getattr(instance, one) for one in settings.settings}
    for key, value in settings.checked(given, path=(name,) if name else ()).items():
        object.__setattr__(instance, key, value)


def _cure(setting: Setting, given: Any) -> str:
    kinds = get_args(setting.kind) if get_origin(setting.kind) in (Union, types.UnionType) else (setting.kind,)
    names = [str(name) for one in kinds if get_origin(one) is Literal for name in get_args(one)]
    bases = [_base(one) for one in kinds]
    if hint := suggest(given, names):
        return hint
    if given is None and setting.default is not MISSING:
        return f"; leave the key out for {_shown(setting.default)}"
    if isinstance(given, str) and dict in (get_origin(one) or one for one in kinds):
        return "; a block is {key: value}, or lines below the key, indented"
    if isinstance(given, str) and bool in bases:
        return "; write true or false without quotes"
    if isinstance(given, int | float) and (math.inf > abs(given) > (REAL if float in bases else WHOLE)):
        return "; that overflows"
    return "; put text in quotes" if bases == [str] and not isinstance(given, str | None) else ""


def _dotted(path: KeyPath) -> str:
    return ".".join(str(one) for one in path)


def _in(path: KeyPath) -> str:
    """Begin a sentence with the block that it is about; with nothing for a whole file, which its place has named."""
    return f"{_dotted(path)}: " if path else ""


def _shown(value: Any) -> str:
    """A value as YAML would have it."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else short(value)
    )


def short(value: Any, width: int = 80) -> str:
    """`value` as it would be typed, its middle left out when long."""
    text = repr(value)
    return text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 + 5 :]}"
