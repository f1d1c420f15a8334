"""Files of a figure run: PNG, PDF, CSV and a small JSON each, written whole or not at all.

Figures are regenerated output, not records, so a newer figure replaces an older one; every file is first written to a
fresh folder next to its destination and then moved, so that an interrupted run leaves the old figure intact. The JSON
says which commit, seed and scale a figure came from, so a folder that mixes runs (``--only``) says so in the report.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aent.files import draft_folder, move_into_place, write_atomically
from paper_figures import style
from paper_figures.registry import FigureSpec
from paper_figures.verdicts import Verdict


@dataclass(frozen=True)
class Record:
    """What the JSON next to a figure holds."""

    stem: str
    title: str
    claim: str
    caption: str
    alt: str
    status: str
    sentence: str
    scale: str
    seed: int
    seconds: float
    rows: int
    provenance: dict[str, Any]  # of aent.runs.provenance
    table: list[list[str]] | None = None  # for the page: the first row is the header


def commit(provenance: dict[str, Any]) -> str:
    """Short hash of the code's commit, ``+changes`` when the working tree differed; ``unknown`` outside a checkout."""
    if provenance["commit"] is None:
        return "unknown"
    return provenance["commit"][:10] + ("+changes" if provenance["dirty"] else "")


def save(spec: FigureSpec, df: Any, record: Record, folder: Path) -> bool:
    """Draw and write all files of one figure into ``folder``; returns whether an older one was replaced."""
    with draft_folder(folder) as fresh:
        with style.look():
            figure = spec.draw(df)
            if record.scale != "full":
                style.stamp(figure, f"{record.scale} scale, seed {record.seed}")
            dpi = style.DPI // (2 if record.scale == "smoke" else 1)
            figure.savefig(fresh / f"{spec.stem}.png", dpi=dpi)
            figure.set_layout_engine("none")  # laid out already; once more would double the time
            figure.savefig(fresh / f"{spec.stem}.pdf", metadata={"CreationDate": None})
        df.to_csv(fresh / f"{spec.stem}.csv", index=False)
        write_atomically(fresh / f"{spec.stem}.json", json.dumps(asdict(record), indent=1) + "\n")
        replaced = (folder / f"{spec.stem}.json").exists()
        for file in sorted(fresh.iterdir()):
            move_into_place(file, folder / file.name)
    return replaced


KINDS: dict[str, Any] = {  # of the fields of a record, as JSON has them
    **dict.fromkeys(("stem", "title", "claim", "caption", "alt", "status", "sentence", "scale"), str),
    "seed": int,
    "seconds": (int, float),
    "rows": int,
    "provenance": dict,
    "table": (list, type(None)),
}
ORIGIN: dict[str, Any] = {  # of what the page shows of a provenance
    "commit": (str, type(None)),
    "dirty": (bool, type(None)),
    "date": str,
    "cpu": str,
    "cores": int,
    "platform": str,
    "versions": dict,
}


def records(folder: Path) -> tuple[list[Record], list[str]]:
    """Read all figures of ``folder``.

    Returns:
        The records in the order of the figures' numbers; a sentence on every file that holds none.
    """
    found, damaged = [], []
    for path in sorted(folder.glob("f[0-9]*.json")):
        try:
            found.append(_read(path))
        except (OSError, ValueError, RecursionError) as error:
            damaged.append(f"{path.name} is damaged: {error}")
    return sorted(found, key=lambda record: int(record.stem.split("_")[0][1:])), damaged


def _read(path: Path) -> Record:
    """Read one record and check what the page relies on.

    Raises:
        ValueError: not JSON, keys missing or unknown, values of the wrong type; says which.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    _check_kinds(content, KINDS, "")
    _check_kinds(content["provenance"], ORIGIN, "provenance.")
    if unknown := sorted(content.keys() - KINDS.keys()):
        raise ValueError(f"unknown keys {', '.join(unknown)}")
    if content["stem"] != path.stem or not re.fullmatch(r"f\d+(_.+)?", path.stem):
        raise ValueError(f"stem {content['stem']!r} does not fit the name of the file")
    rows = content.get("table") or []
    if not all(isinstance(row, list) and row and all(isinstance(cell, str) for cell in row) for row in rows):
        raise ValueError("table must be a list of rows of texts")
    Verdict(content["status"], content["sentence"])
    return Record(**content)


def _check_kinds(content: Any, kinds: dict[str, Any], prefix: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    optional = {"table"}
    if missing := sorted(kinds.keys() - content.keys() - optional):
        raise ValueError(f"{', '.join(prefix + key for key in missing)} missing")
    for key in kinds.keys() & content.keys():
        if not isinstance(content[key], kinds[key]) or (isinstance(content[key], bool) and key != "dirty"):
            raise ValueError(f"{prefix}{key} must not be {content[key]!r:.40}")
