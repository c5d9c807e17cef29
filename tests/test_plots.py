"""Pictures in a notebook: an <img> with its data and alt text, the same under any matplotlibrc, on any page."""

import html
import importlib.util
import re
import xml.etree.ElementTree as ET
from functools import cache
from urllib.parse import unquote

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import attnlib.plots
from attnlib.einsum import explain_einsum
from attnlib.plots import picture, plot_attention, show_image, to_svg

TURN = torch.tensor([[1.0, 0.2], [0.1, 1.0]])
ROW = torch.tensor([0.5, -1.25, 3.0])
EXAMPLES = {
    "plot_arrows": lambda f: f(ROW[:2], TURN, labels="ab"),
    "plot_attention": lambda f: f(torch.eye(2), query_labels=["a", "b"], title="t"),
    "plot_context": lambda f: f(ROW, ROW.softmax(0), ROW[:2], ROW[1:], labels="abc", title="t"),
    "plot_curves": lambda f: f([1, 4, 2048], {"a": [1, 20, 3]}, xlabel="n", ylabel="t", log="xy"),
    "plot_einsum": lambda f: f(explain_einsum("i j, j -> i", (2, 3), (3,)), (1,), step=1),
    "plot_hash_circle": lambda f: f(TURN, TURN),
    "plot_hash_round": lambda f: f(TURN, TURN, chunk_size=2),
    "plot_head_numbers": lambda f: f(torch.rand(2, 3), label="n"),
    "plot_head_split": lambda f: f(torch.arange(12.0).view(2, 3, 2)),
    "plot_heads": lambda f: f(torch.rand(3, 2, 2)),
    "plot_masks": lambda f: f({"one": torch.eye(3).bool(), "other": torch.ones(3, 2).bool()}),
    "plot_memory_reads": lambda f: f(torch.tensor([[3, -1]]), torch.rand(1, 2), now=5, capacity=3, labels="abcde"),
    "plot_model": lambda f: f(torch.rand(2, 3, 4, 5)),
    "plot_parts": lambda f: f(ROW, ROW, [1]),
    "plot_ring": lambda f: f(3, is_causal=True),
    "plot_softmax": lambda f: f(ROW, ROW.softmax(0), title="t"),
    "plot_sorted": lambda f: f(torch.tensor([1, 0, 1]), 2),
}


@cache
def drawn_once(name: str) -> str:
    return draw(name)


def draw(name: str) -> str:
    """The SVG text of an example."""
    torch.manual_seed(0)
    drawn = EXAMPLES[name](getattr(attnlib.plots, name))
    return to_svg((drawn.flat[0] if isinstance(drawn, np.ndarray) else drawn).figure.figure)


@pytest.fixture
def shown(monkeypatch) -> list[dict]:
    outputs: list[dict] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: outputs.append(data))
    return outputs


def test_there_is_an_example_of_every_plot():
    assert {name for name in attnlib.plots.__all__ if name.startswith("plot_")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_picture_depends_neither_on_settings_nor_on_what_was_drawn_before(name):
    plain, before, figures = drawn_once(name), dict(mpl.rcParams), plt.get_fignums()
    with mpl.rc_context({"figure.dpi": 200, "font.size": 20, "figure.facecolor": "black", "axes.grid": True}):
        assert draw(name) == plain
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == figures, "nothing is left open for the notebook to show twice"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_picture_is_a_white_page_with_everything_on_it(name):
    root = ET.fromstring(drawn_once(name))
    width, height = float(root.get("width")), float(root.get("height"))
    first, *_ = root.iterfind("{*}path")
    assert first.get("fill") == "#ffffff"
    assert set(re.findall(r"[\d.]+", first.get("d"))) == {"0.0", f"{width:.1f}", f"{height:.1f}"}
    texts = list(root.iterfind("{*}text"))
    assert texts
    for text in texts:
        assert 0 <= float(text.get("x")) <= width, text.text
        assert 0 <= float(text.get("y")) <= height, text.text
        assert float(text.get("font-size")) >= 9, f"{text.text!r} is too small to read"


def test_picture_shows_an_image_with_its_data_its_alt_text_and_no_more_than_the_cells_width(shown):
    for drawn in (plot_attention(torch.eye(2)), attnlib.plots.plot_heads(torch.rand(2, 3, 3)), plt.figure()):
        picture(drawn, alt='what "it" shows')
    show_image("causal_mask", alt='what "it" shows')
    for data in shown:
        assert data["text/plain"] == 'Picture: what "it" shows'
        alt, style, source = re.fullmatch(r'<img alt="(.*?)" style="(.*?)" src="(.*?)">', data["text/html"]).groups()
        assert (html.unescape(alt), style) == ('what "it" shows', "max-width:100%")
        assert ET.fromstring(unquote(source.removeprefix("data:image/svg+xml,"))).tag.endswith("svg")
    assert not plt.get_fignums()


def test_picture_refuses_an_empty_alt_text_and_an_unknown_image():
    with pytest.raises(ValueError, match="alt must describe the picture in a sentence; got an empty one"):
        picture(plot_attention(torch.eye(2)), alt=" ")
    with pytest.raises(ValueError, match="there is no image 'mask'; choose from causal_mask, context_vector"):
        show_image("mask", alt="a mask")


def test_a_changed_number_changes_the_picture():
    weights = torch.full((9, 9), 0.5)
    before = to_svg(plot_attention(weights).figure)
    weights[3, 4] = 0.4
    assert to_svg(plot_attention(weights).figure) != before


def test_figures_of_a_readers_own_are_drawn_too():
    figure, (ax, other) = plt.subplots(1, 2)
    ax.plot([0, 10], [0, 10], "--o", label="$x^2$ & < >")
    ax.set(xlim=(0, 5), title="two\nlines")
    ax.legend()
    other.imshow(np.eye(3))
    other.fill_between([0, 1], [1, 2], alpha=0.4)
    root = ET.fromstring(to_svg(figure))
    assert {"two", "lines"} <= {text.text for text in root.iterfind("{*}text")}
    assert len(root.findall("{*}image")) == 1
    assert root.findall("{*}clipPath"), "the line leaves its axes"
    assert any(path.get("fill-opacity") == "0.40" for path in root.iterfind("{*}path"))
    plt.close(figure)


def test_the_images_are_found_from_a_checkout_and_from_an_installed_package(tmp_path, monkeypatch, shown):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "other.svg").write_text("<svg/>")
    monkeypatch.setattr("attnlib.plots._base.IMAGES", (tmp_path / "images", *attnlib.plots._base.IMAGES))
    for name in ("series_map", "other"):
        show_image(name, alt="an image")
    first, second = [unquote(data["text/html"].partition("svg+xml,")[2]) for data in shown]
    assert first.startswith("<svg xmlns=")
    assert second == '<svg/>">'


def test_without_matplotlib_the_import_names_the_extra(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    said = 'attnlib.plots draws with matplotlib; install it with: pip install "attnlib[plots]"'
    with pytest.raises(ImportError, match=re.escape(said)):
        importlib.reload(attnlib.plots)
