"""Draws every picture of this folder: python run.py images. They are ours, and may be used under CC BY 4.0."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.style
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from attnlib.plots import to_svg

FOLDER = Path(__file__).resolve().parent
INK, PALE, SEEN, HIDDEN = "#1b1f3b", "#f3f5fa", mpl.colormaps["viridis"](0.62), "#dfe3ec"
HEADS = ["#8fb4d9", "#a9dba0"]  # light enough for dark words
MAP = [mpl.colormaps["viridis"](0.35), mpl.colormaps["viridis"](0.75)]
WORDS = ["Your", "journey", "starts", "with", "one", "step"]
INPUTS = np.array(
    [
        [0.43, 0.15, 0.89],
        [0.55, 0.87, 0.66],
        [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33],
        [0.77, 0.25, 0.10],
        [0.05, 0.80, 0.55],
    ]
)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white page, opaque so that it reads on light and on dark, with one unit to the inch."""
    figure = Figure((width, height), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def box(
    ax: Axes, x: float, y: float, width: float, height: float, text: str = "", colour=PALE, size: float = 10
) -> None:
    ax.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.08", fc=colour, ec=INK, lw=1))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], width: float = 1.2) -> None:
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=width, color=INK, shrinkA=2, shrinkB=2)
    )


def matrix(ax: Axes, x: float, y: float, cells: np.ndarray, side: float, colours=(HIDDEN, SEEN)) -> None:
    """A grid whose upper left corner is at (x, y); a cell's number picks its colour."""
    for row, column in np.ndindex(*cells.shape):
        corner = (x + column * side, y - (row + 1) * side)
        ax.add_patch(Rectangle(corner, side, side, fc=colours[int(cells[row, column])], ec="white", lw=0.8))


def series_map() -> Figure:
    tokens = np.arange(8)
    full, causal = np.ones((8, 8), dtype=int), (tokens[:, None] >= tokens).astype(int)
    past = np.zeros((8, 6), dtype=int)
    past[tokens, (tokens * 5 + 2) % 6] = past[tokens, (tokens * 3 + 1) % 6] = 2
    buckets = np.array([0, 1, 0, 2, 1, 0, 2, 1])
    windowed = (tokens[:, None] - tokens < 3) | (tokens < 1)
    blocks = np.repeat(np.repeat([[1, 2], [2, 1]], 4, axis=0), 4, axis=1)
    lessons = [
        ("Start here", "Is my environment\nright?", []),
        ("Context vectors", "What does a token\ngather from the\nothers?", [full]),
        ("Self-attention", "How does a token\nlearn what to\nlook for?", [full]),
        ("Causal attention", "How is the future\nhidden?", [causal]),
        ("Multi-head attention", "Why several heads,\nand how are they\ncut?", [causal, 2 * causal]),
        ("Einsum and einops", "Which index is\nsummed?", []),
        ("Memory attention", "How does a model\nsee beyond its\nwindow?", [np.hstack([past, causal])]),
        ("LSH attention", "Which keys are\nworth a look?", [causal * (buckets[:, None] == buckets)]),
        ("Merging attention", "Why do the pieces\nadd up exactly?", [blocks]),
        ("Generating text", "What must be kept\nto write the next\nword?", [causal * windowed]),
        ("A real model", "What do trained\nheads look at?", [np.eye(8, k=-1, dtype=int), 2 * (tokens < 1) * full]),
    ]
    code = {0: "torch ✓\neinops ✓\nattnlib ✓", 5: "b q h d,\nb k h d\n-> b h q k"}
    figure, ax = canvas(10.2, 10.2)
    ax.text(5.1, 9.82, "One idea, carried through the series", ha="center", fontsize=15, color=INK, weight="bold")
    idea = "Every attention is the same softmax-weighted average of values;"
    choice = "a variant only chooses which keys a query may see."
    ax.text(5.1, 9.4, f"{idea} {choice}", ha="center", va="center", fontsize=10, color=INK)
    ax.text(5.1, 9.15, "And partial averages merge exactly.", ha="center", va="center", fontsize=10, color=INK)
    for index, (name, question, grids) in enumerate(lessons):
        x, y = 0.3 + 3.3 * (index % 3), 6.95 - 2.2 * (index // 3)
        box(ax, x, y, 3.0, 1.9)
        ax.text(x + 0.15, y + 1.65, f"{index:02d}  {name}", fontsize=11, color=INK, weight="bold", va="center")
        for line, text in enumerate(question.split("\n")):
            ax.text(x + 0.15, y + 1.35 - 0.16 * line, text, fontsize=8.5, color=INK, va="top")
        for place, cells in enumerate(grids):
            side = 1.2 / max(cells.shape[1], 9 * len(grids))
            left = x + 2.85 - side * (cells.shape[1] + 9.5 * (len(grids) - 1 - place))
            matrix(ax, left, y + 1.38, cells, side, (HIDDEN, *MAP))
        if index in code:
            ax.text(x + 2.2, y + 0.75, code[index], fontsize=9, family="monospace", color=INK, ha="center", va="center")
        if index % 3 < 2 and index < len(lessons) - 1:
            arrow(ax, (x + 3.0, y + 0.95), (x + 3.3, y + 0.95))
    note = "Small grids: a row for each query, a column for each key; coloured where the query may look."
    ax.text(5.1, 0.14, note, ha="center", va="center", fontsize=8.5, color=INK)
    return figure


def context_vector() -> Figure:
    scores = INPUTS @ INPUTS[1]
    weights = np.exp(scores) / np.exp(scores).sum()
    context = weights @ INPUTS
    figure, ax = canvas(9.6, 4.6)
    ax.text(
        0.3,
        4.3,
        "The context vector of “journey”: every token's vector, times its weight, summed",
        fontsize=12,
        color=INK,
    )
    for index, (word, vector, weight) in enumerate(zip(WORDS, INPUTS, weights)):
        x = 0.3 + 1.55 * index
        ax.text(x + 0.65, 3.9, word, ha="center", fontsize=11, color=INK, weight="bold" if index == 1 else "normal")
        box(ax, x, 3.2, 1.3, 0.5, "  ".join(f"{number:.2f}" for number in vector), size=9)
        shade = mpl.colormaps["viridis"](weight / weights.max())
        ax.add_patch(Rectangle((x + 0.35, 2.35), 0.6, 2.4 * weight, fc=shade, ec=INK, lw=0.8))
        ax.text(x + 0.65, 2.12, f"× {weight:.4f}", ha="center", fontsize=10, color=INK)
        arrow(ax, (x + 0.65, 2.02), (4.8 + 0.18 * (index - 2.5), 1.15), 0.6 + 6 * weight)
    box(ax, 3.75, 0.55, 2.1, 0.55, "  ".join(f"{number:.4f}" for number in context), "#e3f2e6", 11)
    ax.text(4.8, 0.28, "context vector", ha="center", fontsize=10, color=INK)
    ax.text(9.3, 0.75, "weights sum to 1", ha="right", fontsize=10, color=INK)
    return figure


def self_attention() -> Figure:
    draw = torch.Generator().manual_seed(5)  # as in notebook 02
    query, key, value = (INPUTS @ torch.randn(3, 2, generator=draw).double().numpy() for _ in range(3))
    scores = key @ query[1]
    weights = np.exp(scores / 2**0.5) / np.exp(scores / 2**0.5).sum()
    figure, ax = canvas(8.8, 5.5)

    def column(x: float, y: float, width: float, title: str, rows: np.ndarray, colours=(PALE,) * 6) -> None:
        ax.text(x + width / 2, y + 0.1, title, ha="center", fontsize=11, color=INK, weight="bold")
        for index, (row, colour) in enumerate(zip(rows, colours)):
            text = ", ".join(f"{number:.2f}".replace("-", "−") for number in np.atleast_1d(row))
            box(ax, x, y - 0.27 * (index + 1), width, 0.25, text, colour, 10)

    def words(x: float, y: float) -> None:
        for index, word in enumerate(WORDS):
            bold = "bold" if index == 1 else "normal"
            ax.text(x, y - 0.27 * (index + 0.55), word, ha="right", va="center", fontsize=10, color=INK, weight=bold)

    title = "Self-attention for “journey”: its query meets every key, and the weights mix the values"
    ax.text(4.4, 5.2, title, ha="center", fontsize=11.5, color=INK)
    words(0.85, 4.0)
    column(0.95, 4.0, 1.6, "x", INPUTS, [HEADS[0] if index == 1 else PALE for index in range(6)])
    column(3.5, 4.65, 1.3, "query", query[1:2], HEADS[:1])
    column(3.5, 4.0, 1.3, "keys", key)
    column(5.6, 4.0, 0.8, "scores", scores)
    shades = [mpl.colormaps["Greens"](0.9 * weight) for weight in weights]
    column(7.5, 4.0, 0.8, "weights", weights, shades)
    words(3.4, 1.9)
    column(3.5, 1.9, 1.3, "values", value)
    column(7.1, 1.2, 1.6, "context vector", (weights @ value)[None], HEADS[1:])
    for start, end, label, (x, y) in (
        ((2.55, 3.6), (3.5, 4.5), "W_query", (2.6, 4.2)),
        ((2.55, 3.2), (3.5, 3.2), "W_key", (3.0, 3.27)),
        ((2.55, 2.6), (3.5, 1.9), "W_value", (2.6, 2.12)),
        ((4.8, 4.52), (5.7, 4.2), "dot products", (5.75, 4.47)),
        ((4.8, 3.2), (5.6, 3.2), "", (0, 0)),
        ((6.4, 3.2), (7.5, 3.2), "÷ √2,\nsoftmax", (6.93, 3.28)),
        ((7.9, 2.38), (7.9, 1.45), "", (0, 0)),
        ((4.8, 1.06), (7.1, 1.06), "each value times its\nweight, added up", (5.95, 1.15)),
    ):
        arrow(ax, start, end)
        ax.text(x, y, label, ha="center", fontsize=10, color=INK)
    return figure


def causal_mask() -> Figure:
    figure, ax = canvas(8.4, 4.5)
    side = 0.5
    for x, title, mask in (
        (1.1, "Full: each query sees every key", np.ones((6, 6))),
        (5.0, "Causal: none after it", np.tri(6)),
    ):
        matrix(ax, x, 3.5, mask, side)
        ax.text(x + 1.5, 4.2, title, ha="center", fontsize=11, color=INK)
        ax.text(x + 1.5, 3.88, "Keys", ha="center", fontsize=10, color=INK)
        for index, word in enumerate(WORDS):
            ax.text(x + side * (index + 0.5), 3.56, word, ha="center", va="bottom", fontsize=6.5, color=INK)
            ax.text(x - 0.08, 3.5 - side * (index + 0.5), word, ha="right", va="center", fontsize=9, color=INK)
        for row, column in np.ndindex(6, 6):
            text = "✓" if mask[row, column] else "−∞"
            place = (x + side * (column + 0.5), 3.5 - side * (row + 0.5))
            ax.text(*place, text, ha="center", va="center", fontsize=9, color="white" if mask[row, column] else INK)
    ax.text(0.25, 2.0, "Queries", rotation=90, va="center", fontsize=10, color=INK)
    ax.text(
        4.2,
        0.2,
        "✓ the score counts      −∞ the score is replaced, and its weight becomes 0",
        ha="center",
        fontsize=10,
        color=INK,
    )
    return figure


def wrapper_and_split() -> Figure:
    figure, ax = canvas(10.4, 5.2)
    ax.text(2.55, 4.9, "Wrapper: a projection per head", ha="center", fontsize=12, color=INK, weight="bold")
    ax.text(7.8, 4.9, "Weight split: one projection, cut", ha="center", fontsize=12, color=INK, weight="bold")
    box(ax, 1.8, 4.1, 1.5, 0.5, "x  (6, 3)")
    for head, x in enumerate((0.5, 2.9)):
        arrow(ax, (2.55, 4.1), (x + 0.85, 3.5))
        box(ax, x, 3.0, 1.7, 0.5, f"W_query of head {head}\n(3, 2)", HEADS[head], 8)
        arrow(ax, (x + 0.85, 3.0), (x + 0.85, 2.6))
        box(ax, x, 2.1, 1.7, 0.5, f"Q of head {head}  (6, 2)", HEADS[head], 9)
        arrow(ax, (x + 0.85, 2.1), (x + 0.85, 1.7))
        box(ax, x, 1.2, 1.7, 0.5, "attend  (6, 2)", HEADS[head], 9)
        arrow(ax, (x + 0.85, 1.2), (2.55, 0.75))
    box(ax, 1.5, 0.25, 2.1, 0.5, "concatenated  (6, 4)")
    ax.plot([5.2, 5.2], [0.3, 4.7], color=HIDDEN, lw=1)
    box(ax, 7.05, 4.1, 1.5, 0.5, "x  (6, 3)")
    arrow(ax, (7.8, 4.1), (7.8, 3.5))
    box(ax, 6.3, 3.0, 3.0, 0.5, "one W_query  (3, 4)", size=9)
    for head in range(2):
        box(ax, 6.3 + 1.5 * head, 2.1, 1.5, 0.5, f"columns {2 * head}, {2 * head + 1}", HEADS[head], 9)
        x = 5.8 + 2.3 * head
        arrow(ax, (7.05 + 1.5 * head, 2.1), (x + 0.85, 1.7))
        box(ax, x, 1.2, 1.7, 0.5, f"Q of head {head}, attend\n(6, 2)", HEADS[head], 8)
        arrow(ax, (x + 0.85, 1.2), (7.8, 0.75))
    ax.text(9.45, 2.35, "Q  (6, 4)", va="center", fontsize=9, color=INK)
    arrow(ax, (7.8, 3.0), (7.8, 2.6))
    ax.text(8.0, 1.88, "view, transpose", va="center", ha="center", fontsize=8, color=INK)
    box(ax, 6.75, 0.25, 2.1, 0.5, "joined  (6, 4)")
    arrow(ax, (8.85, 0.5), (9.15, 0.5))
    box(ax, 9.15, 0.25, 1.1, 0.5, "out_proj\n(4, 4)", size=8)
    ax.text(5.2, 0.08, "Keys and values go the same way.", ha="center", va="center", fontsize=8.5, color=INK)
    return figure


IMAGES = {
    "series_map": series_map,
    "context_vector": context_vector,
    "self_attention": self_attention,
    "causal_mask": causal_mask,
    "wrapper_and_split": wrapper_and_split,
}

if __name__ == "__main__":
    for name, draw in IMAGES.items():
        with mpl.style.context("default"):
            (FOLDER / f"{name}.svg").write_text(to_svg(draw()) + "\n", encoding="utf-8", newline="\n")
        print(f"drew images/{name}.svg")
