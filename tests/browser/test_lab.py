"""Each notebook in a real JupyterLab and a real browser: it opens, runs, draws, slides, and hides its solutions."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOKEN = "attnlib"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MINUTES = 4 * 60 * 1000  # a notebook's longest wait, in milliseconds: the last ones train small models
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # draw every cell, also those off the screen
    "apputils-extension/notification": {"checkForUpdates": False, "fetchNews": "false", "doNotDisturbMode": True},
}

if CHROMIUM is None and not os.environ.get("ATTNLIB_NO_SKIPS"):
    pytest.skip("no Chromium on this machine: the notebooks are not opened in a browser", allow_module_level=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """The address of a JupyterLab, opened on a copy of the notebooks as `jupyter lab notebooks` opens it."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns("__pycache__", ".ipynb*"))
    shutil.copytree(ROOT / "images", folder / "images")
    for name, setting in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyter", "lab", "notebooks", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: answers(f"{address}/api/status?token={TOKEN}"), 60, "JupyterLab did not start")
            yield address
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def answers(address: str):
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return json.load(response)
    except (urllib.error.URLError, OSError):
        return None


def wait_until(condition, seconds: float, message: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.3)


def kernel_is_idle(lab: str, name: str) -> bool:
    sessions = answers(f"{lab}/api/sessions?token={TOKEN}") or []
    kernels = [session["kernel"] for session in sessions if session["path"].endswith(name)]
    return bool(kernels) and kernels[0]["execution_state"] == "idle" and kernels[0]["connections"] > 0


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_notebook_in_jupyterlab(path, lab, browser, tmp_path_factory):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = {tag: [cell for cell in code if tag in cell.metadata.get("tags", [])] for tag in ("solution", "exercise")}
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(f"{lab}/lab/tree/{path.name}?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", state="attached")
    # A fresh kernel loses "Run All" until the page is connected to it.
    wait_until(lambda: kernel_is_idle(lab, path.name), 60, "the kernel did not start")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")

    page.click("text=Run >> visible=true")
    page.click(".lm-Menu-item[data-command='runmenu:run-all'] >> visible=true")
    done = (
        f"() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].at(-1).textContent == '[{len(code)}]:'"
    )
    page.wait_for_function(done, timeout=MINUTES)
    wait_until(lambda: kernel_is_idle(lab, path.name), 60, "the kernel is busy after the last cell")

    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    expected = sum("raises-exception" in cell.metadata.get("tags", []) for cell in code)
    assert len(errors) == expected, errors
    drawn = "() => [...document.querySelectorAll('.jp-OutputArea img')].map(image => image.naturalWidth)"
    pictures = sum(
        "image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {}) for c in code for o in c.outputs
    )
    wait_until(lambda: len(page.evaluate(drawn)) >= pictures, 30, "not every picture is there")
    assert all(width > 0 for width in page.evaluate(drawn)), "a picture is not drawn"

    assert page.locator(".jp-CodeCell .jp-InputPlaceholder, .jp-CodeCell .jp-Placeholder").count() >= len(
        tagged["solution"]
    )
    text = page.locator(".jp-Notebook").inner_text()
    assert text.count("○ Not written yet") >= len(tagged["exercise"])
    assert text.count("✓") >= len(tagged["solution"])
    if any("interactive" in cell.metadata.get("tags", []) for cell in code):
        slide(page)
    folder = os.environ.get("ATTNLIB_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{path.stem}.png")
    page.close()
    for session in answers(f"{lab}/api/sessions?token={TOKEN}") or []:  # the next notebook needs the memory
        address = f"{lab}/api/sessions/{session['id']}?token={TOKEN}"
        urllib.request.urlopen(urllib.request.Request(address, method="DELETE"), timeout=30).close()


def slide(page) -> None:
    """Move the first slider with the arrow keys, and see the picture under it change."""
    widget = page.locator(".jp-OutputArea-output:has(.noUi-handle)").first
    image = widget.locator("img").first
    image.wait_for(state="attached")
    before = image.get_attribute("src")
    handle = widget.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    handle.focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):  # one of them moves, wherever the slider stands
        handle.press(key)
        try:
            page.wait_for_function(
                "([element, before]) => element.querySelector('img') && element.querySelector('img').src != before",
                arg=[widget.element_handle(), before],
                timeout=15_000,
            )
            return
        except Exception as error:
            last = error
    raise AssertionError("the slider does not change the picture") from last
