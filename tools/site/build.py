"""Build the site, offline and from what is stored: python run.py site [--out DIR]

Every notebook as it is, solutions and predictions folded; a page for each module of attnlib; the table of what the
checks reject; search.
"""

import argparse
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import nbformat
from sphinx.cmd.build import main as sphinx

import attnlib

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "attend": "The one idea: attend and merge",
    "masks": "Masks",
    "self_attention": "Self-attention and causal attention",
    "multi_head": "Multi-head attention",
    "einsum": "Einsum, explained",
    "memory": "Memory attention",
    "lsh": "LSH attention",
    "positions": "Rotary positions",
    "generation": "Grouped-query attention",
    "kv_cache": "A cache of keys and values",
    "real_model": "A trained encoder",
    "chunked": "Attention in blocks",
    "sharded": "Attention on several machines",
    "device": "Devices",
    "plots": "Pictures",
    "checks": "Checks of the exercises",
}
INDEX = """\
{readme}

```{{toctree}}
:hidden:
:caption: Notebooks

{notebooks}
```

```{{toctree}}
:hidden:
:caption: attnlib

{modules}
kill_table
CHANGELOG
```
"""


def fold(notebook: nbformat.NotebookNode) -> None:
    """Give each cell the tag by which the site folds it."""
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if "predict" in tags:
            tags.add("hide-output")
        if "solution" in tags or "setup" in tags:
            tags.add("hide-input")
        cell.metadata["tags"] = sorted(tags)


def api_page(name: str, title: str) -> str:
    """The public names of one module, each with its docstring."""
    module = import_module(f"attnlib.{name}")
    public = getattr(module, "__all__", None) or [
        other for other in attnlib.__all__ if getattr(attnlib, other).__module__ == module.__name__
    ]
    entries = "".join(_entry(name, module, other) for other in public)
    return f"{title}\n{'=' * len(title)}\n\n.. automodule:: attnlib.{name}\n   :no-members:\n{entries}"


def _entry(name: str, module: ModuleType, public: str) -> str:
    kind = "autoclass" if isinstance(getattr(module, public), type) else "autofunction"
    options = "   :members:\n   :inherited-members: Module, tuple\n" * (kind == "autoclass")
    return f"\n.. {kind}:: attnlib.{name}.{public}\n{options}"


def prepare(source: Path) -> None:
    """Everything that Sphinx reads, in one folder."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        fold(notebook)
        nbformat.write(notebook, source / path.name)
    shutil.copytree(ROOT / "images", source / "images", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copy(ROOT / "tools" / "site" / "conf.py", source)
    (source / "_static").mkdir()
    shutil.copy(ROOT / "tools" / "site" / "site.css", source / "_static")
    for name, title in MODULES.items():
        (source / f"api_{name}.rst").write_text(api_page(name, title), encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("<!-- kill table -->")[2].partition("<!--")[0]
    (source / "kill_table.md").write_text(f"# What the checks reject\n\n{table}", encoding="utf-8")
    shutil.copy(ROOT / "CHANGELOG.md", source)
    index = INDEX.format(
        readme=readme.replace("](notebooks/", "](").replace("[CITATION.cff](CITATION.cff)", "`CITATION.cff`"),
        notebooks="\n".join(path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))),
        modules="\n".join(f"api_{name}" for name in MODULES),
    )
    (source / "index.md").write_text(index, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "_site", help="folder to write into (default: _site/)")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        sys.exit(sphinx(["-q", "-W", "--keep-going", "-b", "html", folder, str(out)]))
