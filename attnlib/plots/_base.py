"""What every picture shares: its page, its colours, and the way it is shown in a notebook."""

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from attnlib.plots._svg import to_svg

PACKAGE = Path(__file__).resolve().parents[1]
Labels = Sequence[str] | None
IMAGES = (PACKAGE / "images", PACKAGE.parent / "images")  # as installed, and in a checkout


def picture(drawn: Axes | Figure | np.ndarray, *, alt: str) -> None:
    """Show axes, an array of axes or a figure in the notebook, no wider than the cell.

    It is an HTML ``<img>`` that holds its own data, so it is drawn before the notebook is trusted. ``alt`` says in a
    sentence what the picture shows; screen readers read it out.
    """
    first = drawn.flat[0] if isinstance(drawn, np.ndarray) else drawn
    figure = first if isinstance(first, Figure) else first.figure.figure  # also from axes in a part of a page
    _show(to_svg(figure), alt)
    if "matplotlib.pyplot" in sys.modules:  # otherwise the notebook would show pyplot's figures a second time
        sys.modules["matplotlib.pyplot"].close(figure)


def show_image(name: str, *, alt: str) -> None:
    """Show one of the series' own images, such as ``"series_map"``, whatever the working directory is."""
    files = {file.stem: file for folder in IMAGES for file in folder.glob("*.svg")}
    if name not in files:
        raise ValueError(f"there is no image {name!r}; choose from {', '.join(sorted(files))}")
    _show(files[name].read_text(encoding="utf-8"), alt)


def _show(svg: str, alt: str) -> None:
    from IPython.display import display  # only notebooks show pictures

    if not alt.strip():
        raise ValueError("alt must describe the picture in a sentence; got an empty one")
    source = f"data:image/svg+xml,{quote(svg, safe=' /:;=,.-()')}"
    html = f'<img alt="{escape(alt)}" style="max-width:100%" src="{source}">'
    display({"text/html": html, "text/plain": f"Picture: {alt}"}, raw=True)


def page(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> np.ndarray:
    """Axes on a new white page of that size in inches, with two of four edges. No pyplot: nothing is left open."""
    figure = Figure((width, height), facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return axes


def as_array(values: Tensor | np.ndarray | Sequence) -> np.ndarray:
    """Numbers for matplotlib, from a tensor on any device and of any dtype."""
    return values.detach().double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)


def as_arrays(names: str, shape: str, *values: Tensor) -> list[np.ndarray]:
    """Numbers of the same shape; ValueError unless they have as many axes as the shape in words."""
    arrays, axes = [as_array(value) for value in values], len(shape.strip("(),").split(","))
    if arrays[0].ndim != axes or any(array.shape != arrays[0].shape for array in arrays):
        raise ValueError(f"{names} must have shape {shape}; got {' and '.join(str(array.shape) for array in arrays)}")
    return arrays


def check_labels(labels: Labels, count: int, name: str) -> None:
    """ValueError unless there is a label for each of so many queries or keys."""
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must hold a word for each {name}, {count} of them; got {len(labels)}")


def palette(count: int) -> np.ndarray:
    """This many colours of viridis that stand out on a white page."""
    return colormaps["viridis"](np.linspace(0.05, 0.92 if count > 2 else 0.7, max(count, 1)))


def ink(colour) -> str:
    """Black or white, whichever can be read on this colour."""
    return "black" if np.dot(to_rgb(colour), [0.3, 0.59, 0.11]) > 0.5 else "white"
