"""The site and the notebooks, as far as no Sphinx is needed: their code runs, nothing is left out.

The site's own build (``python -m sphinx -W docs docs/_build/html``) runs the same code, and holds
every reference and picture to be there.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

import cnnx

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

pytestmark = pytest.mark.skipif(not PAGES or not NOTEBOOKS, reason="docs or examples are not here")


def cells_of(page: Path) -> list[str]:
    """The code cells of a page, without their options."""
    blocks = re.findall(r"(?ms)^```\{code-cell\} python\n(.*?)^```$", page.read_text("utf-8"))
    return [re.sub(r"(?m)\A(:\w.*\n)+", "", block) for block in blocks]


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture
def quiet_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, and matplotlib without a window."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])  # for the pages that draw benchmarks
    yield tmp_path
    importlib.import_module("matplotlib.pyplot").close("all")


@pytest.mark.parametrize("page", [page for page in PAGES if cells_of(page)], ids=lambda p: p.stem)
def test_page(page: Path, quiet_place: Path) -> None:
    if page.stem == "onnx":
        pytest.importorskip("onnx")
    shutil.copy(ROOT / "docs" / "speed.json", quiet_place)
    namespace: dict[str, object] = {"__name__": "page"}
    for number, cell in enumerate(cells_of(page)):
        exec(compile(cell, f"{page.name}, cell {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_python_in_pages_is_run(page: Path) -> None:
    # What is shown as Python is a code cell, so that none of it can grow old.
    assert not re.findall(r"(?m)^```(?:python|py)\b", page.read_text("utf-8"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(notebook: Path, quiet_place: Path) -> None:
    """In Jupyter where it is installed, as plain Python elsewhere."""
    shutil.copy(ROOT / "examples" / "lenet5.npz", quiet_place)
    if find_spec("nbclient") and find_spec("ipykernel"):
        run_in_jupyter(notebook, quiet_place)
        return
    namespace: dict[str, object] = {"__name__": "notebook"}
    for number, cell in enumerate(code_of(notebook)):
        exec(compile(cell, f"{notebook.name}, cell {number}", "exec"), namespace)


def run_in_jupyter(notebook: Path, folder: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    document = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(document, timeout=300, kernel_name="python3", resources=resources).execute()


def stripper() -> ModuleType:
    spec = spec_from_file_location("strip_notebooks", ROOT / "tools" / "strip_notebooks.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stripped(notebook: Path) -> None:
    text = notebook.read_text("utf-8")
    assert text == stripper().stripped(text), "run: python tools/strip_notebooks.py"


def test_notebooks_are_on_the_site() -> None:
    listed = re.findall(
        r"(?m)^examples/(\w+)$", (ROOT / "docs" / "notebooks.md").read_text("utf-8")
    )
    assert sorted(listed) == [notebook.stem for notebook in NOTEBOOKS]


# ---------------------------------------------------------------------------- the reference

MODULES = (
    "training",
    "distributed",
    "models",
    "data",
    "plotting",
    "gradcheck",
    "explain",
    "grading",
    "torch",
    "onnx",
)
NOT_ENTRIES = {
    "__version__",
    "functional",  # its functions are names of cnnx
    "layers",
    "explain",  # a module: its functions are entries
    "models.MODELS",  # dicts and tuples, not documented one by one
    "grading.CATALOGUE",
    "onnx.OPERATORS",
    "explain.dense",  # another name of linear
}


def public() -> Iterator[str]:
    """Every public name, as the reference lists it; what cnnx exports stands under cnnx."""
    yield from cnnx.__all__
    for name in MODULES:
        module = importlib.import_module(f"cnnx.{name}")
        for item in module.__all__:
            # "cnnx.gradcheck" is the function to Python, and the module to Sphinx.
            if item not in cnnx.__all__ or name in ("data", "explain", "onnx"):
                yield item if name == "gradcheck" else f"{name}.{item}"


def test_reference_is_complete() -> None:
    text = (ROOT / "docs" / "api.rst").read_text("utf-8")
    listed = re.findall(r"(?m)^   ([\w.]+)$", text)
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(public()) - NOT_ENTRIES
