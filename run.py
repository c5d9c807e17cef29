"""Everything that this repository does, from a fresh clone, with Python 3.11 or newer and nothing else.

python run.py lab [ARGS]          set up, and open the notebooks in JupyterLab (ARGS go to jupyter lab)
python run.py test [ARGS]         set up, and run every test (ARGS go to pytest)
python run.py execute [NOTEBOOK]  run notebooks from top to bottom and store their outputs
python run.py images              draw the pictures of images/ again
python run.py student [FOLDER]    write the notebooks without their solutions into FOLDER (student/)
python run.py bench [NAME]        run benchmarks/bench_NAME.py, or all, beside the packages of benchmarks/requirements.txt
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

if sys.version_info < (3, 11):
    sys.exit("run.py: Python 3.11 or newer is needed; this is Python " + sys.version.split()[0] + ".")

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
UV = shutil.which("uv")
CPU_TORCH = "https://download.pytorch.org/whl/cpu"  # PyTorch's own index for machines without a GPU
REASONS = {  # a word of an installer's error, and what it means
    "space": "the disk is full; about 3 GB are needed.",
    "ensurepip": "Python came without venv; on Debian and Ubuntu, install the package python3-venv.",
    "onnect": "the package index cannot be reached; check the network.",
    "resol": "the package index cannot be reached; check the network.",
    "from versions: none": "the package index cannot be reached; check the network.",
}


def run(*command: object, installing: bool = False) -> None:
    """Print a command and run it; where it fails, stop with its exit status or, when installing, with one sentence."""
    print("+", *command, flush=True)
    done = subprocess.run([str(part) for part in command], cwd=ROOT, stderr=subprocess.PIPE if installing else None)
    if done.returncode and installing:
        shutil.rmtree(VENV, ignore_errors=True)
        errors = done.stderr.decode(errors="replace")
        sys.exit(
            "run.py: " + next((why for word, why in REASONS.items() if word in errors), "set-up failed:\n" + errors)
        )
    if done.returncode:
        sys.exit(done.returncode)


def set_up(kind: str, *requirements: str) -> None:
    """Make .venv hold what is asked for. Its stamps, written last, say for which files and Python it was made."""
    described = (ROOT / "requirements.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    wanted = hashlib.sha256(described + f"{sys.version} {VENV}".encode()).hexdigest()
    ready = [stamp.name for stamp in VENV.glob("ready-*") if stamp.read_text() == wanted]
    if f"ready-{kind}" in ready:
        return
    if not ready:
        make = [UV, "venv", "--python", sys.executable] if UV else [sys.executable, "-m", "venv"]
        run(*make, "--clear", VENV, installing=True)
    for stamp in VENV.glob("ready-*"):
        stamp.unlink()
    index = []
    if sys.platform == "linux" and not shutil.which("nvidia-smi"):
        try:
            urlopen(f"{CPU_TORCH}/torch/", timeout=5).close()
            index = ["--torch-backend", "cpu"] if UV else ["--extra-index-url", CPU_TORCH]
        except OSError:
            print("PyTorch's index for machines without a GPU cannot be reached: torch comes from the usual one.")
    install = [UV, "pip", "install", "--python", PYTHON] if UV else [PYTHON, "-m", "pip", "install"]
    run(*install, *index, "-r", "requirements.txt", *requirements, installing=True)
    for name in {*ready, f"ready-{kind}", "ready-lab"}:
        (VENV / name).write_text(wanted)


if __name__ == "__main__":
    what, *args = sys.argv[1:] or ["help"]
    if what not in ("lab", "test", "execute", "images", "student", "bench"):
        sys.exit(__doc__)
    kind = what if what in ("test", "bench") else "lab"
    set_up(
        kind,
        "-e",
        ".[test]" if kind == "test" else ".",
        *(["-r", "benchmarks/requirements.txt"] if kind == "bench" else []),
    )
    if what == "lab":
        run(PYTHON, "-m", "jupyter", "lab", "notebooks", *args)
    elif what == "test":
        run(PYTHON, "-m", "pytest", *args)
    elif what == "execute":
        run(PYTHON, "notebooks/execute.py", *args)
    elif what == "images":
        run(PYTHON, "images/make_images.py")
    elif what == "student":
        tags = "--TagRemovePreprocessor.remove_cell_tags=solution"
        folder = Path(args[0] if args else "student").resolve()
        run(PYTHON, "-m", "nbconvert", "--to", "notebook", "--TagRemovePreprocessor.enabled=True", tags,
            "--output-dir", folder, "notebooks/*.ipynb")  # fmt: skip
    else:
        names = [f"bench_{name}.py" for name in args] or sorted(
            path.name for path in ROOT.glob("benchmarks/bench_*.py")
        )
        for name in names:
            run(PYTHON, f"benchmarks/{name}")
