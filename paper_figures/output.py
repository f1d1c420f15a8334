"""Files of a figure run: PNG (light and dark), PDF, CSV and a small JSON each, written whole or not at all.

Figures are regenerated output, not records, so a newer figure replaces an older one; every file is first written to a
fresh folder next to its destination and then moved, so that an interrupted run leaves the old figure intact. The JSON
says which commit, seed and scale a figure came from, so a folder that mixes runs (``--only``) says so in the report.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aent.files import draft_folder, write_atomically
from paper_figures import style
from paper_figures.registry import FigureSpec


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
        for name in ("light", "dark"):
            with style.theme(name):
                figure = spec.draw(df)
                if record.scale != "full":
                    style.stamp(figure, f"{record.scale} scale, seed {record.seed}")
                suffix = "" if name == "light" else ".dark"
                figure.savefig(
                    fresh / f"{spec.stem}{suffix}.png", dpi=style.DPI // (2 if record.scale == "smoke" else 1)
                )
                if name == "light":
                    figure.set_layout_engine("none")  # laid out already; once more would double the time
                    figure.savefig(fresh / f"{spec.stem}.pdf", metadata={"CreationDate": None})
        df.to_csv(fresh / f"{spec.stem}.csv", index=False)
        write_atomically(fresh / f"{spec.stem}.json", json.dumps(asdict(record), indent=1) + "\n")
        replaced = (folder / f"{spec.stem}.json").exists()
        for file in sorted(fresh.iterdir()):
            file.replace(folder / file.name)
    return replaced


def records(folder: Path) -> list[Record]:
    """All figures found in ``folder``, in the order of their numbers."""
    found = [Record(**json.loads(path.read_text())) for path in folder.glob("f[0-9]*.json")]
    return sorted(found, key=lambda record: int(record.stem.split("_")[0][1:]))
