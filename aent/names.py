"""Names that users type: what two spellings have in common, and the nearest known one where a name is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["plain_name", "suggest"]


def plain_name(name: str) -> str:
    """Strip a name of case, underscores and hyphens."""
    return name.replace("_", "").replace("-", "").lower()


def suggest(name: object, known: Iterable[str], *, most: int = 1) -> str:
    """Continue a sentence with the nearest known names, or with nothing when none is near.

    Examples:
        >>> suggest("drop_lowst", ["TopK", "DropLowest"]), suggest("x", ["TopK"])
        ("; did you mean 'DropLowest'?", '')
    """
    names = {plain_name(one): one for one in known}
    close = difflib.get_close_matches(plain_name(str(name)), names, n=most)
    return f"; did you mean {' or '.join(repr(names[one]) for one in close)}?" if close else ""
