"""The site mirrors the repository: every page and file lies where it lies there, so one relative link works in both.

mkdocs calls the functions ``on_...``; griffe, which reads the docstrings for mkdocstrings, takes ``Docstrings``. Absent
targets of links are reported by mkdocs itself (``validation`` in mkdocs.yml), those of raw HTML by ``_targets``.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import posixpath
import re
import subprocess
import sys
from contextlib import suppress
from html import unescape
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

mathml: Any = None
with suppress(ModuleNotFoundError):  # the formulas of notebooks are then shown as LaTeX
    mathml = importlib.import_module("latex2mathml.converter").convert

log = logging.getLogger("mkdocs.hooks")  # a warning here fails a strict build

PACKAGES = ("aent", "toymdp", "paper_figures", "llm/aent_llm")
SETTINGS = "docs/settings.md"  # of an experiment file; written by the program that takes them


class GeneratedPage(File):
    """The page of a module or a notebook, at the path of its file: a link to the file in a text leads to this page."""

    def is_documentation_page(self) -> bool:
        return True


def modules(root: Path, package: str) -> list[str]:
    """Paths of the modules of a package, in the reading order of the annotated tree in README.md."""
    order, above = [], []
    readme = (root / "README.md").read_text(encoding="utf-8")
    for indent, name in re.findall(r"^([│ ]*)[├└]── (\S+)", readme, flags=re.MULTILINE):
        above = [*above[: len(indent) // 4], name]
        order.append("/".join(above))
    found = [path.relative_to(root).as_posix() for path in (root / package).rglob("*.py") if path.name != "__init__.py"]
    return sorted(found, key=lambda path: (order.index(path) if path in order else len(order), path))


def notebooks(root: Path) -> list[str]:
    """Paths of the notebooks, in order."""
    return sorted(path.relative_to(root).as_posix() for path in root.glob("notebooks/*.ipynb"))


def on_config(config: MkDocsConfig) -> None:
    """Fill the sections Notebooks and API of the navigation."""
    root = Path(config.config_file_path).parent
    sections = {name: inside for entry in config.nav or [] for name, inside in entry.items()}
    sections["Notebooks"] += notebooks(root)
    for package in PACKAGES:
        rooms: dict[str, list[dict[str, Any]]] = {package: [{"overview": package}]}
        sections["API"].append({posixpath.basename(package): rooms[package]})
        for path in modules(root, package):
            room = posixpath.dirname(path)
            if room not in rooms:
                rooms[room] = [{"overview": room}]
                rooms[package].append({posixpath.basename(room): rooms[room]})
            rooms[room].append({Path(path).stem.replace("__main__", "command line"): path})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of docs/ and of the navigation, a page for every notebook and module, and what the pages link to."""
    root = Path(config.config_file_path).parent
    site: dict[str, File] = {}

    def add(path: str) -> None:
        site[path] = File(path, str(root), config.site_dir, config.use_directory_urls)

    for one in files:
        if one.src_dir == config.docs_dir:
            add(posixpath.join(posixpath.basename(config.docs_dir), one.src_uri))
        else:
            site[one.src_uri] = one  # of the theme
    for path in re.findall(r"'([^']+\.md)'", str(config.nav)):
        if (root / path).is_file():  # otherwise mkdocs says what the navigation lacks
            add(path)
    if not (root / SETTINGS).is_file():
        site[SETTINGS] = GeneratedPage.generated(config, SETTINGS, content=_settings(root))
    for path in notebooks(root):
        site[path] = GeneratedPage.generated(config, path, content=_notebook(root / path))
    texts = [one for one in site.values() if one.is_documentation_page()]
    for package in PACKAGES:
        paths = modules(root, package)
        for path in {package: None} | {posixpath.dirname(path): None for path in paths} | dict.fromkeys(paths):
            site[path] = _module(config, path)
    for text in texts:
        for target in _targets(text, root):
            if target not in site and (root / target).is_file():
                add(target)
    return Files(list(site.values()))


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Formulas of notebooks, which ``_notebook`` marked as code, become MathML, which browsers show without a script.

    Long names in tables may break after a dot, a slash, a colon or an underscore, and nowhere else.
    """

    def formula(found: re.Match[str]) -> str:
        return mathml(unescape(found[2]), display="inline" if found[1] == "$" else "block")

    def breakable(cell: re.Match[str]) -> str:
        return re.sub(r"(?<=<code>)[^<]+", lambda name: re.sub(r"(?<=[./:_])(?=\w)", "<wbr>", name[0]), cell[0])

    if mathml and page.file.src_uri.endswith(".ipynb"):
        html = re.sub(r"<code>(\$\$?)([^<]+?)\1</code>", formula, html)
    return re.sub(r"<td.*?</td>", breakable, html, flags=re.DOTALL)


def _notebook(path: Path) -> str:
    """Text and code of a notebook."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        marked = re.sub(r"(\$\$?)[^$]+\1", r"`\g<0>`", text)  # formulas as code: Markdown leaves them alone
        parts.append(marked if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, *rest = "\n\n".join(parts).split("\n", maxsplit=1)
    return "\n".join([title, "\n*Text and code; `make notebooks` runs it and draws the figures.*\n", *rest])


def _settings(root: Path) -> str:
    """What ``python -m aent_llm train --settings`` prints; in a process of its own, which loads torch and TRL."""
    command = [sys.executable, "-m", "aent_llm", "train", "--settings"]
    path = os.pathsep.join(map(str, (root, root / "llm")))
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        log.warning(f"{SETTINGS}: {' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout or "# Settings\n"


def _module(config: MkDocsConfig, path: str) -> File:
    """``::: name`` is what mkdocstrings replaces by the reference."""
    name = path.removeprefix("llm/").removesuffix(".py").replace("/", ".")
    page: Any = GeneratedPage.generated(config, path, content=f"---\ntitle: {name}\n---\n\n::: {name}\n")
    if not path.endswith(".py"):  # a package
        page.dest_uri = f"{path}/index.html"
    return page


def _targets(page: File, root: Path) -> set[str]:
    """Paths that a page links to or shows. An absent one of raw HTML is reported: mkdocs passes raw HTML by."""
    text, folder = page.content_string, posixpath.dirname(page.src_uri)
    raw = re.findall(r'<(?:a|img)\b[^>]*?\b(?:href|src)="([^"#:]+)"', text)
    for link in raw:
        if not (root / folder / link).exists():
            log.warning(f"{page.src_uri}: the target of raw HTML '{link}' does not exist")
    return {posixpath.normpath(posixpath.join(folder, link)) for link in raw + re.findall(r"\]\(([^)\s#]+)", text)}


class Docstrings(griffe.Extension):
    """What the reference links and leaves out; the docstrings stay plain text.

    Names in backticks become links where they name something of the four packages, as the docstring's scope sees it
    (``optional``: a name whose target has no page, private or of another library, stays without a link). Left out are
    imported names, which their own module shows, and undocumented methods and fields of a class: overrides, which
    their base documents, and fields, which signature and source show.
    """

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        _edit(pkg)


def _edit(owner: griffe.Object) -> None:
    def link(found: re.Match[str]) -> str:
        target = _resolved(owner, found[2].removesuffix("()").removesuffix(".py"))
        return f'<autoref identifier="{target}" optional>{found[0]}</autoref>' if target else found[0]

    if owner.docstring:
        owner.docstring.value = re.sub(r"(`+)([\w.]+(?:\(\))?)\1", link, owner.docstring.value)
    if isinstance(owner, griffe.Class) and "NamedTuple" in map(str, owner.bases):
        _make_signature(owner)
    for member in list(owner.members.values()):
        undocumented = owner.is_class and not member.has_docstring and "property" not in member.labels
        if member.is_alias or undocumented:
            member.public = False
        if isinstance(member, griffe.Object):
            _edit(member)


def _make_signature(owner: griffe.Class) -> None:
    """Show the fields of a NamedTuple as griffe shows those of a dataclass."""
    fields = [one for one in owner.attributes.values() if one.annotation and "property" not in one.labels]
    kind = griffe.ParameterKind.positional_or_keyword
    parameters = [griffe.Parameter(one.name, annotation=one.annotation, kind=kind, default=one.value) for one in fields]
    owner.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))


def _resolved(owner: griffe.Object, name: str) -> str:
    """Dotted path of a name in a docstring of ``owner``; empty where it names nothing."""
    if name.partition(".")[0] in map(posixpath.basename, PACKAGES):
        return name
    try:
        return "" if name == owner.name else owner.resolve(name)
    except griffe.NameResolutionError:
        return ""
