"""The site: built as `make docs` builds it; complete, without a dead link, without another host."""

from __future__ import annotations

import ast
import json
import os
import posixpath
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from filelock import FileLock

pytest.importorskip("mkdocs")

ROOT = Path(__file__).parent.parent
PACKAGES = ["aent", "toymdp", "paper_figures", "llm/aent_llm"]
MODULES = sorted(path.relative_to(ROOT).as_posix() for one in PACKAGES for path in (ROOT / one).rglob("*.py"))
(RECIPE,) = re.findall(r"/mkdocs (.+)", (ROOT / "Makefile").read_text(encoding="utf-8"))


def build(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """`make docs` in a folder, into another place."""
    command = [sys.executable, "-m", "mkdocs", *shlex.split(RECIPE), "--site-dir", str(target)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # a notice about the future of the theme
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Path:
    """Built once, by whichever worker of pytest-xdist comes first."""
    target = tmp_path_factory.getbasetemp().parent / f"site-{testrun_uid}"
    with FileLock(f"{target}.lock"):
        if not target.exists():
            done = build(ROOT, target)
            assert done.returncode == 0, done.stderr
            assert not re.search(r"WARNING|ERROR", done.stderr)
    return target


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, str]:
    """Path in the site -> HTML."""
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def page_of(module: str) -> str:
    return module.replace("__init__.py", "index.html").replace(".py", ".html")


def dotted(module: str) -> str:
    return module.removeprefix("llm/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def defined(module: str) -> set[str]:
    """Public functions and classes that a module defines itself; ``__all__`` decides where there is one."""
    names, exported = set(), None
    for node in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = set(ast.literal_eval(node.value))
    return {name for name in names if not name.startswith("_") and (exported is None or name in exported)}


# ------------------------------------------------------------------------------------------------------- what is there


def test_every_module_has_a_page_with_all_that_is_public_and_nothing_private(pages: dict[str, str]) -> None:
    for module in MODULES:
        name, anchors = dotted(module), set(re.findall(r'id="([\w.]+)"', pages[page_of(module)]))
        assert {name, *(f"{name}.{one}" for one in defined(module))} - anchors == set()
        assert [one for one in anchors if one.startswith(name) and re.search(r"\._[^_]", one)] == []


def test_the_modules_above_are_the_right_ones() -> None:
    assert {"aent/entropy.py", "toymdp/mdp.py", "paper_figures/style.py", "llm/aent_llm/training/trainer.py"} <= set(
        MODULES
    )
    assert {"clamped_entropy", "DropLowest"} <= defined("aent/entropy.py")
    assert "AEntGRPOTrainer" in defined("llm/aent_llm/training/trainer.py")


def test_the_pages_of_the_repository_are_there(pages: dict[str, str], site: Path) -> None:
    texts = ["PAPER.md", "EXPERIMENTS.md", *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
    books = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("notebooks/*.ipynb")]
    wanted = {re.sub(r"\.(md|ipynb)$", ".html", path) for path in texts + books} | {"index.html", "llm/index.html"}
    assert wanted <= set(pages)
    for path in ("docs/overview.png", "constraints.txt"):  # shown and linked by README.md
        assert (site / path).read_bytes() == (ROOT / path).read_bytes()
    assert not (site / "docs/hooks.py").exists()


def test_the_settings_of_an_experiment_file_have_a_page(pages: dict[str, str]) -> None:
    text = re.sub(r"<[^>]+>", "", pages["docs/settings.html"])
    for key in ("model.source", "data.answer_extract", "entropy.support", "evaluation.samples", "train.loss_type"):
        assert key in text
    assert "what the embedded model looks like" in text  # a description, which stands in the class alone


def test_modules_come_in_the_reading_order_of_the_readme(pages: dict[str, str]) -> None:
    links = re.findall(r'<a href="(\w+)\.html" class="md-nav__link">', pages["aent/index.html"])
    assert links[:3] == ["entropy", "controllers", "shaping"]


def test_names_in_docstrings_are_links(pages: dict[str, str]) -> None:
    assert re.search(
        r'href="shaping\.html#aent\.shaping"[^>]*><code>shaping\.py</code>', pages["aent/controllers.html"]
    )
    assert re.search(r'href="[^"]*#toymdp\.mdp\.TokenMDP"', pages["toymdp/theory/bounds.html"])  # in a signature
    assert "autoref " not in pages["aent/controllers.html"]


def test_shapes_are_shown_as_written(pages: dict[str, str]) -> None:
    text = re.sub(r"<[^>]+>", "", pages["aent/entropy.html"])
    assert re.search(r"support_weights\(\s*logits: Float\[Any, .{1,6}\*batch V", text)


def test_formulas_of_notebooks_are_shown_without_a_script(pages: dict[str, str]) -> None:
    pytest.importorskip("latex2mathml")
    books = [html for path, html in pages.items() if path.startswith("notebooks/")]
    assert any("<math " in html for html in books)
    assert not any("<code>$" in html for html in books)


def test_search_knows_a_function(site: Path) -> None:
    index = json.loads((site / "search/search_index.js").read_text(encoding="utf-8").removeprefix("var __index = "))
    assert "aent/entropy.html#aent.entropy.clamped_entropy" in {one["location"] for one in index["docs"]}


# --------------------------------------------------------------------------------------------------------------- links


def dead_links(pages: dict[str, str], site: Path) -> list[str]:
    """Relative links and sources that lead to no file or no anchor of the site."""
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', html)) for path, html in pages.items()}
    files, dead = {path.relative_to(site).as_posix() for path in site.rglob("*")}, []
    for path, html in pages.items():
        if path == "404.html":  # its links start at the root of a server
            continue
        for link in set(re.findall(r'<\w+\b[^>]*?\s(?:href|src)="([^"]+)"', html)):
            target, _, anchor = unquote(link).partition("#")
            place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else path
            if re.match(r"\w+:", link):
                continue
            if place not in files | {"."} or (anchor and anchor not in anchors.get(place, {anchor}) | {"__top"}):
                dead.append(f"{path}: {link}")
    return dead


def test_no_link_is_dead(pages: dict[str, str], site: Path) -> None:
    assert dead_links(pages, site) == []
    broken = {"docs/x.html": '<a href="../aent/nothing.html">', "PAPER.html": '<a href="#nothing">'}
    assert len(dead_links(broken, site)) == 2


def elsewhere(html: str) -> list[str]:
    """What a page would load from another host."""
    loading = (
        r'<(?:script|link|img|iframe|source|object|video|audio)\b[^>]*?\b(?:src|href|srcset|data)="((?:\w+:)?//[^"]+)'
    )
    return re.findall(loading, html) + re.findall(r"""(?:@import|url\()\s*["']?((?:https?:)?//[^"')]+)""", html)


def test_nothing_is_loaded_from_another_host(pages: dict[str, str], site: Path) -> None:
    texts = pages | {path.name: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    assert {path: elsewhere(text) for path, text in texts.items() if elsewhere(text)} == {}
    assert 'class="mermaid"' not in "".join(pages.values())  # the theme would load its script from a host
    assert elsewhere('<script defer src="https://host/x.js"></script><style>@import "//host/x.css"</style>') != []


# ----------------------------------------------------------------------------------------------------- what must break


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The configuration of the site over pages and packages of one line each."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.md", "*.png", "__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for package in PACKAGES:
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text('"""One line."""\n')
    for page in re.findall(r"[\w/-]+\.md(?=\n)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")):
        (tmp_path / page).write_text(
            "# Title\n\n[module](MODULE)\n".replace("MODULE", "../aent" * ("/" in page) or "aent")
        )
    return tmp_path


def test_a_sound_copy_passes(small: Path) -> None:
    done = build(small, small / "site")
    assert done.returncode == 0, done.stderr
    assert 'href="../aent/index.html"' in (small / "site/docs/metrics.html").read_text(encoding="utf-8")


def test_whatever_is_broken_fails_the_build_and_is_named(small: Path) -> None:
    (small / "PAPER.md").write_text("# Title\n\n[a](absent.md) [b](README.md#absent) [c](aent/absent.py) [d](absent)\n")
    (small / "README.md").write_text('# Title\n\n<img src="docs/absent.png" alt="no such file">\n')
    (small / "docs/forgotten.md").write_text("# In no section\n")
    (small / "aent/__init__.py").write_text('"""See [this][aent.absent]."""\n')
    (small / "toymdp/__init__.py").write_text('def f(x):\n    """Title.\n\n    Args:\n        y: no.\n    """\n')
    done = build(small, small / "site")
    assert done.returncode != 0
    warnings = "".join(line for line in done.stderr.splitlines() if not line.startswith("INFO"))
    causes = ["absent.md", "#absent", "absent.py", "'absent'", "absent.png", "forgotten.md", "aent.absent", "'y'"]
    assert [cause for cause in causes if cause not in warnings] == []


def test_an_unknown_module_fails_the_build(small: Path) -> None:
    (small / "EXPERIMENTS.md").write_text("# Title\n\n::: aent.unknown\n")
    done = build(small, small / "site")
    assert done.returncode != 0
    assert "aent.unknown" in done.stderr
