"""The line that installs what is missing, for a checkout and for an installed wheel.

It never asks an index for a project of this name: nobody here owns it on PyPI.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["install_line", "missing"]

ROOT = Path(__file__).resolve().parent.parent


def missing(module: str, extra: str) -> str:
    """Say in one sentence that ``module`` is missing and which line installs the extra that it belongs to."""
    return f"{module.partition('.')[0]} is not installed; run: {install_line(extra)}"


def install_line(extra: str) -> str:
    """Give the pip line that installs an extra of this distribution.

    In a checkout that is the checkout with the extra, elsewhere the extra's requirements one by one.
    """
    if _is_checkout(ROOT):
        place = "." if Path.cwd() == ROOT else str(ROOT)
        return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"
    return f"pip install {' '.join(map(shlex.quote, _requirements(extra)))}"


def _is_checkout(folder: Path) -> bool:
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return False
    return project.get("name") == "aent"


def _requirements(extra: str) -> Iterator[str]:
    """Requirements of an extra as the metadata of the distribution have them; extras inside an extra are followed."""
    for line in importlib.metadata.requires("aent") or []:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", marker):
            inner = re.fullmatch(r"aent\[(.+)\]", requirement)
            if inner is None:
                yield requirement
            else:
                for name in inner[1].split(","):
                    yield from _requirements(name.strip())
