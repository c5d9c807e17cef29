"""What holds the repository together: its lists of packages, its floors, its style, its set-up."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

import attnlib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = sorted((ROOT / "attnlib").rglob("*.py"))
FLOORS = [
    {"_fused", "_validate", "device", "masks", "einsum"},
    {"attend"},
    {
        "self_attention",
        "causal",
        "multi_head",
        "memory",
        "lsh",
        "chunked",
        "sharded",
        "positions",
        "kv_cache",
        "generation",
    },
    {"plots", "checks", "real_model"},
]
PIP_NAME = {"IPython": "ipywidgets", "faiss": "faiss-cpu", "yaml": "pyyaml"}  # IPython comes with ipywidgets


def name_of(requirement: str) -> str:
    return re.split(r"[<>=~!\[ ;]", requirement)[0].lower().replace("_", "-")


def bounds(requirements: list[str]) -> dict[str, str]:
    return {name_of(line): re.sub(r"^[\w-]+(\[.*\])?", "", line) for line in requirements}


def requirements() -> list[str]:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def imports(source: str) -> set[str]:
    """The top-level names of the packages that a piece of Python imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"attnlib"}


def test_environment_yml_installs_requirements_txt_on_the_same_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert "-r requirements.txt" in pip
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


def test_pyproject_and_requirements_agree():
    assert "torch==2.13.0" in requirements()
    listed = bounds(requirements())
    project = bounds(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["plots"])
    assert project.pop("torch").startswith(">=")
    assert {name: listed.get(name) for name in project} == project
    test = bounds(PROJECT["optional-dependencies"]["test"])
    assert {name: listed[name] for name in test if name in listed} == {n: b for n, b in test.items() if n in listed}


def test_every_import_of_the_notebooks_is_in_requirements_txt():
    listed = bounds(requirements())
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                python = re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", cell.source)
                for name in imports(python):
                    assert PIP_NAME.get(name, name).replace("_", "-").lower() in listed, f"{path.name} imports {name}"


def test_every_import_of_attnlib_is_in_pyproject():
    extras = PROJECT["optional-dependencies"]
    listed = bounds(PROJECT["dependencies"] + extras["plots"] + extras["faiss"] + extras["model"])
    for path in MODULES:
        for name in imports(path.read_text(encoding="utf-8")):
            assert PIP_NAME.get(name, name).replace("_", "-").lower() in listed, f"{path.name} imports {name}"


def room(path: Path) -> str:
    """The module or package of attnlib that a file belongs to."""
    return path.relative_to(ROOT / "attnlib").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])
def test_a_module_imports_from_its_own_room_and_from_floors_below(path):
    floor = next((i for i, names in enumerate(FLOORS) if room(path) in names or room(path)[1:] in names), None)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Import) and any(alias.name == "attnlib" for alias in node.names))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "attnlib":
            if path.name == "__init__.py" and path.parent.name == "attnlib":
                continue
            assert node.module != "attnlib", "import from the module itself"
            other = node.module.split(".")[1]
            if other != room(path) and floor is not None:
                below = set().union(*FLOORS[: floor + 1]) if floor in (0, 2) else set().union(*FLOORS[:floor])
                assert other in below or other.startswith("_"), f"{room(path)} imports {other}"


def test_imports_have_no_cycle():
    """CycleError names the modules of a cycle."""
    graph = {}
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        graph[name] = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module} - {name}
    graphlib.TopologicalSorter(graph).prepare()


def test_modules_are_small_and_tested():
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") <= 350, f"{path.name} has {source.count(chr(10))} lines"
        assert ast.get_docstring(ast.parse(source)), f"{path.name} does not say what it is for"
    for name in {room(path).lstrip("_") for path in MODULES if path != ROOT / "attnlib" / "__init__.py"}:
        assert list((ROOT / "tests").glob(f"test_{name}*.py")), f"tests/test_{name}.py is missing"


def test_every_package_is_installed_and_the_images_come_along():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES if path.name == "__init__.py"}
    assert set(setup["packages"]) == packages | {"attnlib.images"}
    assert (ROOT / setup["package-dir"]["attnlib.images"] / "series_map.svg").exists()


def test_import_attnlib_brings_nothing_optional_and_each_package_on_first_use():
    """In one process, which imports torch once, and attnlib again for each package."""
    code = """
import sys, torch
old = set(sys.modules)
import attnlib
print(*set(sys.modules) - old)
for name in ("einsum", "lsh", "memory", "sharded"):
    for module in [module for module in sys.modules if module.startswith("attnlib")]:
        del sys.modules[module]
    import attnlib
    assert f"attnlib.{name}" not in sys.modules
    assert getattr(attnlib, name).__name__ == f"attnlib.{name}"
assert attnlib.Encoder and "tokenizers" not in sys.modules
"""
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"matplotlib", "ipywidgets", "IPython", "faiss", "transformers", "opt_einsum"} & set(loaded)
    larger = {"attnlib.einsum", "attnlib.lsh", "attnlib.memory", "attnlib.sharded"}
    assert "attnlib.attend" in loaded
    assert not larger & set(loaded), "they are loaded on first use"


def test_every_public_name_is_there_and_no_other():
    assert set(attnlib.__all__) <= set(dir(attnlib))
    with pytest.raises(AttributeError, match="module 'attnlib' has no attribute 'atend'"):
        getattr(attnlib, "atend")  # noqa: B009


def test_public_names_are_listed_once_and_documented():
    assert len(attnlib.__all__) == len(set(attnlib.__all__))
    for name in attnlib.__all__:
        documentation = getattr(attnlib, name).__doc__ or ""
        assert len(documentation.splitlines()) > 3, name


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_style(command):
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_run_py_is_small_and_uses_the_standard_library_only():
    source = (ROOT / "run.py").read_text(encoding="utf-8")
    assert source.count("\n") < 100
    assert not imports(source)


def test_one_version_everywhere_and_types_are_shipped():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert attnlib.__version__ == citation["version"]
    assert f"## {attnlib.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (ROOT / "attnlib" / "py.typed").exists()
