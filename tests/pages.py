"""The pages a reader sees, taken apart: blocks, sections, command lines, links, numbers."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "PAPER.md", "EXPERIMENTS.md", "llm/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
COMMANDS = r"make|python|pip|accelerate|trl"


def read(page: str) -> str:
    """Text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(language: str, text: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(title: str, text: str) -> str:
    """Text under a heading, down to the next one of its level or above."""
    level, rest = re.search(rf"^(#+) {re.escape(title)}\n(.*)", text, flags=re.MULTILINE | re.DOTALL).groups()  # type: ignore[union-attr]
    outside = re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)  # python blocks have no such lines
    return outside[0]


def anchor(heading: str) -> str:
    """The name under which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(text: str) -> dict[str, str]:
    """Anchor -> heading."""
    return {anchor(found): found for found in re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE)}


def commands(text: str) -> list[str]:
    """Every command line in the order of the page: fenced blocks, indented lines, backticks in running text."""
    place = rf"^```bash\n(.*?)^```$|^    ((?:{COMMANDS}) [^\n]*)$|`((?:{COMMANDS}) [^`]+)`"
    found = []
    for fenced, indented, inline in re.findall(place, text, flags=re.MULTILINE | re.DOTALL):
        lines = fenced.replace("\\\n", " ").splitlines() if fenced else [indented, inline]
        stripped = (" ".join(re.split(r"\s+#", line)[0].split()) for line in lines)
        found += [line for line in stripped if line]
    return list(dict.fromkeys(found))


def links(text: str) -> list[str]:
    """Targets of the links of a page that lead into the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [link for link in found if not link.startswith(("https://", "http://"))]


def leads_somewhere(link: str, page: str) -> bool:
    """Whether a relative link of a page finds its file, and its heading."""
    path, _, heading = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    if not heading or not target.is_file():
        return target.exists()
    return heading in headings(target.read_text(encoding="utf-8"))


def numbers(text: str) -> set[str]:
    """Decimal numbers as they are said: .5 is 0.5, -.13 is 0.13, 1e-7 and 10^4 stay, marks of thousands go."""
    bare = re.sub(r"\]\([^)]*\)|`[^`]*`|arXiv \S+", " ", text).replace(",", "")
    found = re.findall(r"(?<![\w.])\d*\.\d+(?!\d)|(?<![\w.^])\d+(?![\w.^])(?!\.\d)", bare)
    return {"0" + one if one.startswith(".") else one for one in found}
