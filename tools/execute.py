"""Run notebooks from top to bottom in a fresh kernel and leave clean files: python run.py execute [NOTEBOOK ...]

What stays is what a reader needs and what can be compared: sources, outputs, tags, folding. Timings and widget state
go. The metadata of the notebook is what JupyterLab would write, so that opening one does not mark it as modified. A
hash of the sources is kept, so that a test can tell what was edited afterwards.
"""

import hashlib
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
KEPT = ("tags", "jupyter", "jp-MarkdownHeadingCollapsed")


def source_hash(notebook: nbformat.NotebookNode) -> str:
    """A hash of all code, in order."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Drop from an executed notebook what changes from run to run or cannot be shown without a kernel."""
    notebook.metadata = nbformat.from_dict(
        {
            "attnlib": {"source_hash": source_hash(notebook)},
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": notebook.metadata.language_info,  # as the kernel says it, and as JupyterLab stores it
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT if key in cell.metadata})
        if "interactive" in cell.metadata.get("tags", []):
            cell.outputs = []
        if "predict" in cell.metadata.get("tags", []):  # folded, in both of the ways that JupyterLab writes
            cell.metadata.update(collapsed=True, jupyter={"outputs_hidden": True})


def execute(path: Path) -> None:
    """Run one notebook in its own folder and write it back, only if every cell ran."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,  # seconds for a cell
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # otherwise a busy machine breaks up the output of one cell
        resources={"metadata": {"path": path.parent}},
    )
    client.execute()
    normalise(notebook)
    unfinished = path.with_suffix(".part")
    nbformat.write(notebook, unfinished)
    os.replace(unfinished, path)


if __name__ == "__main__":
    for path in [Path(argument) for argument in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        print(f"executing {path.name}", flush=True)
        execute(path)
