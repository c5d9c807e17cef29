"""Hashing: vectors in their buckets, the sorted row and its chunks, who sees whom."""

import numpy as np
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from attnlib.lsh import hash_buckets, lsh_attention
from attnlib.plots._base import as_arrays, ink, page, palette
from attnlib.plots.matrices import plot_attention


@style.context("default")
def plot_hash_circle(vectors: Tensor, directions: Tensor, *, ax: Axes | None = None) -> Axes:
    """Draw vectors (tokens, 2), coloured by bucket, and the directions that the buckets belong to.

    Of the directions, (2, num_buckets // 2), each is drawn with its opposite. Longer arrows win more dots.
    """
    (points,) = as_arrays("vectors", "(tokens, 2)", vectors)
    arrows = as_arrays("directions", "(2, num_buckets // 2)", directions)[0].T
    buckets = hash_buckets(vectors[None, None], directions[None, None])[0, 0, 0].cpu()
    ax = ax or page(3.6, 3.6)[0]
    ax.spines[:].set_visible(True)
    reach = np.linalg.norm(points, axis=1).max(initial=0.0) or 1.0
    arrows = 0.7 * reach / np.linalg.norm(arrows, axis=1).max() * np.concatenate([arrows, -arrows])
    colours = palette(len(arrows))
    for number, (arrow, colour) in enumerate(zip(arrows, colours)):
        ax.annotate("", xy=arrow, xytext=(0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
        aside = 0.12 * reach * np.array([-arrow[1], arrow[0]]) / np.linalg.norm(arrow)
        x, y = 0.75 * arrow + aside
        ax.text(x, y, str(number), ha="center", va="center", color="0.25", fontsize=9)
    ax.scatter(points[:, 0], points[:, 1], c=colours[buckets], s=70, edgecolors="black", linewidths=0.6, zorder=3)
    for number, (x, y) in enumerate(1.15 * points):
        ax.text(x, y, str(number), ha="center", va="center", fontsize=8)
    ax.set(xlim=(-1.3 * reach, 1.3 * reach), ylim=(-1.3 * reach, 1.3 * reach), aspect="equal", xticks=[], yticks=[])
    ax.set_title("Arrows: buckets; dots: tokens", fontsize=10)
    return ax


@style.context("default")
def plot_sorted(
    buckets: Tensor, chunk_size: int | None = None, *, num_buckets: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw tokens in reading order and in sorted order, coloured by bucket, with the position of each token.

    Args:
        buckets: integers (tokens,).
        chunk_size: draw a thick line after every so many sorted tokens. Default: none.
        num_buckets: how many colours there are. Default: as many as needed.
    """
    row = as_arrays("buckets", "(tokens,)", buckets)[0].astype(int)
    tokens, order = len(row), np.argsort(row, kind="stable")
    colours = palette(num_buckets or row.max() + 1)
    ax = ax or page(max(3.6, 0.42 * tokens + 1.2), 1.5)[0]
    for y, numbers in ((1.3, np.arange(tokens)), (0.0, order)):
        for x, token in enumerate(numbers):
            colour = colours[row[token]]
            ax.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white"))
            ax.text(x + 0.5, y + 0.5, str(token), ha="center", va="center", fontsize=9, color=ink(colour[:3]))
    for border in [*range(0, tokens, chunk_size), tokens] if chunk_size else ():
        ax.plot([border, border], [-0.15, 1.15], color="black", linewidth=3, solid_capstyle="butt")
    ax.set(xlim=(-0.1, tokens + 0.1), ylim=(-0.2, 2.4), xticks=[])
    ax.set_yticks([1.8, 0.5], ["As read", "Sorted"])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


@style.context("default")
def plot_hash_round(vectors: Tensor, directions: Tensor, *, chunk_size: int) -> np.ndarray:
    """Draw one round on vectors (tokens, 2), both queries and keys: buckets, sorted order, and causal attention.

    No chunk has a border here: in the causal rule a token looks back over ``chunk_size`` places, wherever it is. The
    directions have shape (2, num_buckets // 2).
    """
    batch, rotations = vectors[None, None], directions[None, None]  # one sequence, one head, one round
    eye = torch.eye(len(vectors)).to(vectors)[None, None]  # values that make the output the weights
    weights = lsh_attention(batch, eye, rotations, chunk_size=chunk_size, is_causal=True)[0, 0]
    figure = Figure((9.0, 5.4), facecolor="white", layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[3, 1]).ravel()
    (circle, matrix), row = upper.subplots(1, 2), lower.subplots()
    plot_hash_circle(vectors, directions, ax=circle)
    plot_sorted(hash_buckets(batch, rotations)[0, 0, 0], num_buckets=2 * directions.shape[1], ax=row)
    plot_attention(weights, title="Who sees whom", ax=matrix)
    return np.array([circle, row, matrix])
