"""Every notebook runs from top to bottom at smoke scale, is stored without outputs, and holds no logic of its own."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
import pytest
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from pages import ROOT, leads_somewhere, links, read

FOLDER = ROOT / "notebooks"
NAMES = [
    "01_entropy_and_the_clamp", "02_propositions", "03_three_way_comparison", "04_controllers",
    "05_reading_a_training_run", "06_train_a_small_model", "07_your_own_model",
]  # fmt: skip
GET = AsyncZMQSocketChannel.get_msg
LONGEST = 25  # lines of a function: a widget's callback or a drawing; anything more belongs into a package


def notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def source(name: str, kind: str = "code") -> str:
    """All cells of a kind; lines for IPython alone are blanked."""
    text = "\n\n".join(cell.source for cell in notebook(name).cells if cell.cell_type == kind)
    return re.sub(r"^[%!].*$", "", text, flags=re.MULTILINE) if kind == "code" else text


def execute(cells: nbformat.NotebookNode, place: Path) -> None:
    """As Jupyter would, in a folder `notebooks` of something like a checkout."""
    (place / "notebooks").mkdir()
    for folder in ("llm", "docs", "examples"):
        (place / folder).symlink_to(ROOT / folder)
    (place / "paper_figures").mkdir()
    (place / "paper_figures" / "records").symlink_to(ROOT / "paper_figures" / "records")
    resources = {"metadata": {"path": str(place / "notebooks")}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncZMQSocketChannel, "get_msg", awake)
        NotebookClient(cells, timeout=150, kernel_name="python3", resources=resources).execute()


async def awake(channel: AsyncZMQSocketChannel, timeout: float | None = None) -> Any:
    """``get_msg`` that looks again every second: a slider's output area can swallow the wake-up of the reply."""
    end = time.monotonic() + (math.inf if timeout is None else timeout)
    while True:
        try:
            return await GET(channel, timeout=max(0.0, min(1.0, end - time.monotonic())))
        except Empty:
            if time.monotonic() >= end:
                raise


@pytest.fixture
def smoke(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AENT_SCALE": "smoke", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("smoke")
def test_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    cells = notebook(name)
    execute(cells, tmp_path)
    pictures = [out for cell in cells.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(pictures) >= (1 if name.startswith("07") else 2)
    printed = [out.text for cell in cells.cells for out in cell.get("outputs", []) if out.output_type == "stream"]
    assert max(map(len, printed), default=0) < 20_000  # a bar that was printed a thousand times
    assert not [text for text in printed if "Traceback" in text]


@pytest.mark.usefixtures("smoke")
def test_a_cell_that_fails_is_noticed(tmp_path: Path) -> None:
    cells = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("from aent.entropy import no_such_rule")])
    with pytest.raises(CellExecutionError, match="no_such_rule"):
        execute(cells, tmp_path)


def test_these_are_all() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    assert all(f"notebooks/{name}.ipynb" in read("README.md") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_stored_without_outputs(name: str) -> None:
    cells = notebook(name)
    nbformat.validate(cells)
    assert cells.metadata.kernelspec.name == "python3"
    assert all(not cell.outputs and cell.execution_count is None for cell in cells.cells if cell.cell_type == "code")
    assert not [cell for cell in cells.cells if cell.metadata]
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 60_000


@pytest.mark.parametrize("name", NAMES)
def test_holds_no_logic(name: str) -> None:
    found = list(ast.walk(ast.parse(source(name))))
    assert not [node.name for node in found if isinstance(node, ast.ClassDef)]
    functions = [node for node in found if isinstance(node, ast.FunctionDef)]
    assert not [one.name for one in functions if one.end_lineno - one.lineno >= LONGEST]  # type: ignore[operator]


@pytest.mark.parametrize("name", NAMES)
def test_tells_what_it_does_and_leads_somewhere(name: str) -> None:
    text = source(name, "markdown")
    assert text.startswith("# ")
    assert "\n## " in text
    found = links(text)
    assert len(found) >= 2
    assert [link for link in found if not leads_somewhere(link, f"notebooks/{name}.ipynb")] == []
    assert not re.search(r"(?<![\w.:/])(?:/(?:work|tmp|home|root|Users|mnt|opt)/|~/)", text + source(name))


def test_interactive_parts_have_a_static_twin() -> None:
    """Sliders are dead on a web page; the figure after them is not."""
    for name in NAMES:
        code = [cell.source for cell in notebook(name).cells if cell.cell_type == "code"]
        sliders = [number for number, cell in enumerate(code) if re.search(r"interact|widgets\.", cell)]
        if sliders:
            assert any("display(figure)" in cell or "style.canvas" in cell for cell in code[sliders[0] + 1 :]), name
    assert re.search(r"interact|widgets\.", source("01_entropy_and_the_clamp"))
    assert re.search(r"interact|widgets\.", source("04_controllers"))


@pytest.mark.usefixtures("smoke")
def test_make_notebooks_opens_jupyterlab_on_them(tmp_path: Path) -> None:
    """The recipe of the Makefile, with a port of its own and no browser."""
    dry = subprocess.run(["make", "--dry-run", "notebooks"], cwd=ROOT, capture_output=True, text=True, check=True)
    (recipe,) = [line.split() for line in dry.stdout.splitlines() if line.startswith(".venv/bin/jupyter lab")]
    command = [
        sys.executable,
        "-m",
        *recipe[0].split("/")[-1:],
        *recipe[1:],
        "--no-browser",
        "--port=0",
        "--allow-root",
    ]
    environment = {**os.environ, "JUPYTER_RUNTIME_DIR": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (files := list(tmp_path.glob("jpserver-*.json"))):
            assert time.monotonic() < deadline, "JupyterLab did not start"
            assert server.poll() is None
            time.sleep(0.2)
        where = json.loads(files[0].read_text())
        request = urllib.request.Request(
            f"{where['url']}api/contents", headers={"Authorization": f"token {where['token']}"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            shown = {entry["name"] for entry in json.load(answer)["content"]}
        assert {f"{name}.ipynb" for name in NAMES} <= shown
    finally:
        server.terminate()
        server.wait(20)
