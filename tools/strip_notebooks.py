"""Bring the notebooks into the form that is committed: ``python tools/strip_notebooks.py``.

No outputs, no execution counts, the same metadata and numbered cells in every file, so that a
change shows what was written and nothing else. ``tests/test_docs.py`` holds them to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def stripped(text: str) -> str:
    """Return a notebook's text in that form."""
    cells = []
    for number, cell in enumerate(json.loads(text)["cells"]):
        kept: dict[str, Any] = {"cell_type": cell["cell_type"], "id": f"cell-{number:02}"}
        kept["metadata"] = {}
        if cell["cell_type"] == "code":
            kept |= {"execution_count": None, "outputs": []}
        source = "".join(cell["source"]).strip("\n")
        cells.append(kept | {"source": source.splitlines(keepends=True)})
    notebook = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for file in sorted(FOLDER.glob("*.ipynb")):
        text = file.read_text(encoding="utf-8")
        if text != stripped(text):
            file.write_text(stripped(text), encoding="utf-8")
            print(f"stripped {file.name}")


if __name__ == "__main__":
    main()
