"""Numbers on the pages are those of the records they link to."""

from __future__ import annotations

import json
import re

import pytest

from pages import ROOT, headings, links, numbers, read, section
from paper_figures import registry

RECORDS = ROOT / "paper_figures" / "records" / "default"
EXPERIMENTS = read("EXPERIMENTS.md")


def record(stem: str) -> dict:
    """What ``make figures`` wrote beside a figure."""
    return json.loads((RECORDS / f"{stem}.json").read_text(encoding="utf-8"))


def linked(cell: str) -> str:
    """The text behind the links of a table's cell: a section, or a whole file; of runs only that they are there."""
    found = []
    for link in links(cell):
        path, _, heading = link.partition("#")
        text = read(path)
        found.append(section(headings(text)[heading], text) if heading else text if path.endswith(".json") else "")
    return "\n".join(found)


def findings() -> list[tuple[str, str]]:
    """(answer, record) of every row of the README's table."""
    rows = re.findall(r"^\| .*\|$", section("What was found", read("README.md")), flags=re.MULTILINE)
    return [tuple(row.strip("| ").split(" | ")[1:]) for row in rows[1:]]  # type: ignore[misc]


@pytest.mark.parametrize(("answer", "where"), findings())
def test_every_number_found_is_in_its_record(answer: str, where: str) -> None:
    assert links(where)
    assert numbers(answer) - numbers(linked(where)) == set()


def test_another_number_is_noticed() -> None:
    assert numbers("ends at .51, 9.1 nats of 10^4 and 1,317") == {"0.51", "9.1", "1317"}
    assert numbers("0.50") != numbers("0.51")
    assert len(findings()) > 10
    assert "0.1234" not in numbers(EXPERIMENTS)


def test_every_figure_has_a_record_of_one_run_from_committed_code() -> None:
    records = [record(stem) for stem in registry.MODULES]
    assert {path.stem for path in RECORDS.iterdir()} == set(registry.MODULES)
    assert {one["scale"] for one in records} == {"default"}
    assert len({one["provenance"]["commit"] for one in records}) == 1
    assert not any(one["provenance"]["dirty"] for one in records)


@pytest.mark.parametrize("stem", [stem for stem in registry.MODULES if int(re.findall(r"\d+", stem)[0]) < 10])
def test_the_log_says_what_the_figure_says(stem: str) -> None:
    said = record(stem)["sentence"].replace("|", "/")  # a bar would end the table's cell
    assert said in EXPERIMENTS


def test_the_tables_of_the_methods_are_those_of_the_figures() -> None:
    """F14 and F16 cell by cell; F14's last column is a time."""
    toys = record("f14_leaderboard")["table"]
    for row in toys[1:]:
        printed = re.search(rf"^\| {re.escape(row[0])} \| (.*) \|$", section("The toys (F14, F15)", EXPERIMENTS), re.M)
        assert printed, row[0]
        cells = printed[1].split(" | ")[:3]
        for cell, value in zip(cells, row[2::5], strict=False):
            assert [float(x) for x in re.findall(r"[\d.]+", cell)] == pytest.approx(
                [float(x) for x in re.findall(r"[\d.]+", value)], abs=0.00501
            )
    language_model = section("The language model (F16)", EXPERIMENTS)
    rows = [row for row in record("f16_llm_leaderboard")["table"][1:] if row[2] == "5"]
    assert len(rows) > 20
    assert sum(f"| {' | '.join(row)} |" in language_model for row in rows) >= 20, rows[0]
