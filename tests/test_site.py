"""The site builds without a warning, its links lead somewhere, and its pages fit a phone and a desktop."""

import html.parser
import os
import runpy
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Page(html.parser.HTMLParser):
    """The links, the ids and the pictures of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.ids, self.pictures = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "img":
            self.pictures.append(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What ``python run.py site`` builds; in this process, which has imported most of what the build needs."""
    out = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["build.py", "--out", str(out)])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(ROOT / "tools" / "site" / "build.py"), run_name="__main__")
    assert done.value.code == 0  # a warning is an error there
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.glob("*.html")}


def test_every_internal_link_leads_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in map(urlparse, page.links):
            if link.scheme or link.netloc:
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            known = pages[target].ids if target in pages else None
            if not target.exists() or (link.fragment and known is not None and unquote(link.fragment) not in known):
                broken.append((path.name, link.geturl()))
    assert not broken


def test_every_notebook_every_module_and_the_search_are_there(site):
    names = {path.name for path in site.glob("*.html")}
    assert {f"{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")} <= names
    assert {"index.html", "search.html", "api_attend.html", "api_checks.html", "kill_table.html"} <= names
    assert "logsumexp" in (site / "searchindex.js").read_text(encoding="utf-8")


def test_every_picture_says_what_it_shows(pages):
    for path, page in pages.items():
        for picture in page.pictures:
            assert picture.get("alt"), (path.name, str(picture)[:200])


def test_solutions_and_predictions_are_folded(site):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        text = (site / f"{path.stem}.html").read_text(encoding="utf-8")
        assert text.count("tag_solution") == path.read_text(encoding="utf-8").count('"solution"')
        assert "Hide code cell source" in text


@pytest.mark.skipif(CHROMIUM is None and not os.environ.get("ATTNLIB_NO_SKIPS"), reason="no Chromium on this machine")
def test_pages_fit_a_phone_and_a_desktop(site):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page, widths = browser.new_page(), [390, 1300]
        for path in [*sorted(site.glob("[0-9][0-9]_*.html")), site / "index.html", site / "api_attend.html"]:
            widths.reverse()  # a page opens at the width at which the one before it ended
            page.goto(path.as_uri())
            for width in widths:
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (path.name, width)
                small = "[...document.images].filter(i => i.complete && i.naturalWidth === 0).map(i => i.alt)"
                assert page.evaluate(small) == [], (path.name, width)
                wide = "[...document.querySelectorAll('.cell_output img')].filter(i => i.clientWidth > innerWidth)"
                assert page.evaluate(f"{wide}.length") == 0, (path.name, width)
        browser.close()
