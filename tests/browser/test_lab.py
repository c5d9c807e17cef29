"""Notebooks in a real JupyterLab and a real browser: a fresh clone shows its pictures; it runs, slides, and folds."""

import json
import os
import platform
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
WIDTHS = [800, 1400]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MINUTES = 4 * 60 * 1000  # a notebook's longest wait, in milliseconds
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # draw every cell, also those off the screen
    "apputils-extension/notification": {"checkForUpdates": False, "fetchNews": "false", "doNotDisturbMode": True},
    "apputils-extension/themes": {"theme": "JupyterLab Light"},
}

if CHROMIUM is None and not os.environ.get("ATTNLIB_NO_SKIPS"):
    pytest.skip("no Chromium on this machine: the notebooks are not opened in a browser", allow_module_level=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of a JupyterLab that opens a copy of the notebooks which nobody on this machine has trusted yet."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns("__pycache__", ".ipynb*"))
    for name, setting in SETTINGS.items():
        settings_file(folder, name).write_text(json.dumps(setting))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "PYTHONPATH": str(ROOT)}
    environment["JUPYTER_NO_CONFIG"] = "1"  # no extensions of the server: nbgrader, terminals, language servers
    environment["JUPYTER_DATA_DIR"] = str(folder / "data")  # no signatures of notebooks that were trusted before
    command = [sys.executable, "-m", "jupyter", "lab", "notebooks", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0"]
    command += ["--LabApp.expose_app_in_browser=True"]  # its commands are called below
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: answers(f"{address}/api/status?token={TOKEN}"), 60, "JupyterLab did not start")
            yield address, folder
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture(scope="module")
def window(lab):
    """A page that shows JupyterLab. Loading it takes longer than a notebook, so all of them are opened in this one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{lab[0]}/lab?token={TOKEN}&reset")
        page.wait_for_function("() => window.jupyterapp")
        page.evaluate("() => window.jupyterapp.restored")
        yield page
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
        time.sleep(0.05)


def ask(address: str, method: str, content: dict | None = None):
    """Send a request to the server, which must not refuse it."""
    asked = urllib.request.Request(f"{address}?token={TOKEN}", json.dumps(content).encode(), method=method)
    with urllib.request.urlopen(asked, timeout=30) as response:
        return json.loads(response.read() or "null")


def kernel_is_idle(lab: str, name: str) -> bool:
    sessions = answers(f"{lab}/api/sessions?token={TOKEN}") or []
    kernels = [session["kernel"] for session in sessions if session["path"].endswith(name)]
    return bool(kernels) and kernels[0]["execution_state"] == "idle" and kernels[0]["connections"] > 0


def wait_for_kernel(page, lab: str, name: str) -> None:
    """A fresh kernel loses "Run All", and changes nothing in the notebook, until the page is connected to it."""
    wait_until(lambda: kernel_is_idle(lab, name), 60, "the kernel did not start")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")


def settings_file(folder: Path, name: str) -> Path:
    file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


@pytest.fixture(scope="module")
def kernel(lab) -> str:
    """A kernel that notebooks share until one of them needs its own, because each start takes seconds."""
    return ask(f"{lab[0]}/api/kernels", "POST", {"name": "python3"})["id"]


@pytest.fixture
def opened(window):
    """Opens a notebook under a theme and gives the page; closes the notebook in the end."""

    def command(name: str, **arguments) -> None:
        window.evaluate(
            "([name, arguments]) => { window.jupyterapp.commands.execute(name, arguments) }", [name, arguments]
        )

    def open_notebook(path: Path, theme: str, **options):
        command("apputils:change-theme", theme=f"JupyterLab {theme}")
        window.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
        command("docmanager:open", path=path.name, **options)
        window.wait_for_selector(".jp-Notebook .jp-CodeCell", state="attached")
        return window

    yield open_notebook
    window.evaluate("() => [...window.jupyterapp.shell.widgets('main')].forEach(widget => widget.dispose())")
    window.wait_for_selector(".jp-Notebook", state="detached")


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def tagged(cells: list, tag: str) -> list:
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def check_pictures(page, wanted: int) -> None:
    """Every picture is drawn, has alt text, and fits its cell, in a wide and in a narrow window."""
    count = "() => document.querySelectorAll('.jp-OutputArea-output img').length"
    look = """() => [...document.querySelectorAll('.jp-OutputArea-output img')].map(image => ({
        alt: image.alt, drawn: image.complete && image.naturalWidth,
        sticks_out: image.getBoundingClientRect().right - image.closest('.jp-OutputArea').getBoundingClientRect().right,
    }))"""
    wait_until(lambda: page.evaluate(count) >= wanted, 30, f"fewer than {wanted} pictures")
    WIDTHS.reverse()  # begin with the width at which the last look ended
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_function(f"() => document.body.clientWidth == {width}")
        wait_until(lambda: all(picture["drawn"] for picture in page.evaluate(look)), 30, "a picture is not drawn")
        for picture in page.evaluate(look):
            assert len(picture["alt"]) > 20
            assert picture["sticks_out"] <= 1, (width, picture)


def pictures_of(cells: list) -> int:
    return sum("<img" in output.get("data", {}).get("text/html", "") for cell in cells for output in cell.outputs)


def save(page, file: Path) -> None:
    before = file.stat().st_mtime_ns
    page.locator(".jp-Notebook").press("Control+s")
    wait_until(lambda: file.stat().st_mtime_ns != before, 30, "it was not saved")


def folded_pictures_of(cells: list) -> int:
    return pictures_of(tagged(cells, "predict"))


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_a_fresh_clone_shows_every_picture_unrun_folds_its_predictions_and_is_not_marked_as_modified(
    path, lab, kernel, opened
):
    page, cells = opened(path, "Light", kernel={"id": kernel}), code_cells(path)
    assert pictures_of(cells)
    check_pictures(page, pictures_of(cells) - folded_pictures_of(cells))
    assert page.locator(".jp-OutputPlaceholder").count() == len(tagged(cells, "predict"))
    wait_for_kernel(page, lab[0], path.name)
    stored = nbformat.read(path, as_version=4).metadata.language_info.version
    if stored == platform.python_version():  # JupyterLab writes the kernel's version of Python into the file
        assert page.locator(".jp-mod-dirty").count() == 0, "opening it marks it as modified"
        copy = lab[1] / "notebooks" / path.name
        save(page, copy)
        wait_until(lambda: copy.read_bytes() == path.read_bytes(), 10, "saving it changes it")
    screenshot(page, path)


def test_a_notebook_runs_on_a_dark_page_slides_and_hides_its_solutions(lab, kernel, opened):
    """The first, which has all kinds of cells; nbval runs every cell of every notebook."""
    path = PATHS[0]
    ask(f"{lab[0]}/api/kernels/{kernel}", "DELETE")  # this one needs a kernel of its own
    page, cells = opened(path, "Dark"), code_cells(path)
    check_pictures(page, pictures_of(cells) - folded_pictures_of(cells))
    wait_for_kernel(page, lab[0], path.name)

    page.click("text=Run >> visible=true")
    page.click(".lm-Menu-item[data-command='runmenu:run-all'] >> visible=true")
    done = (
        f"() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].at(-1).textContent == '[{len(cells)}]:'"
    )
    page.wait_for_function(done, timeout=MINUTES)
    wait_until(lambda: kernel_is_idle(lab[0], path.name), 60, "the kernel is busy after the last cell")

    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    assert len(errors) == len(tagged(cells, "raises-exception")), errors
    check_pictures(page, pictures_of(cells) + len(tagged(cells, "interactive")))
    assert page.locator(".jp-OutputPlaceholder").count() == 0, "running a cell opens its prediction"
    hidden = page.locator(".jp-CodeCell .jp-InputPlaceholder, .jp-CodeCell .jp-Placeholder").count()
    assert hidden >= len(tagged(cells, "solution"))
    text = page.locator(".jp-Notebook").inner_text()
    assert "○ Not written yet" in text  # those on the core path: what is under a folded heading is not on the page
    assert "Solution: ✓" in text
    assert "Going deeper" in text
    assert page.locator(".jp-MarkdownHeadingCollapsed, .jp-collapseHeadingButton.jp-mod-collapsed").count() >= 2
    slide(page)
    screenshot(page, path)


def screenshot(page, path: Path) -> None:
    if folder := os.environ.get("ATTNLIB_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{path.stem}.png")


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
