"""Curves go through the numbers that they are given."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch

from attnlib.plots import plot_curves, plot_scaling, plot_staircase

SIZES = (2, 8, 32)
SPREADS = {"plain": [1.4, 2.8, 5.7], "divided": [torch.tensor(1.0), torch.tensor(1.0), torch.tensor(1.1)]}
SLOPES = {"plain": [0.7, 0.4, 0.2], "divided": [0.7, 0.71, 0.72]}
EDGES, ACCURACY = [2, 32, 64, 128], {"0": [0.1, 0.0, 0.0], "64": [1.0, 1.0, 0.25], "128": [1.0, 1.0, 1.0]}


def texts(labels):
    return [label.get_text() for label in labels]


def test_curves_have_their_numbers_and_names():
    ax = plot_curves([1, 4, 2048], {"a": [0.1, 0.2, math.nan], "b": [1, 2, 3]}, xlabel="n", ylabel="t", log="x")
    assert texts(ax.get_legend().get_texts()) == ["a", "b"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.1, 0.2, math.nan])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("n", "t", "linear")
    assert texts(ax.get_xticklabels()) == ["1", "4", "2K"]


def test_curves_start_at_zero_unless_they_go_below():
    assert plot_curves([1, 2], {"a": [1, 3]}, xlabel="n", ylabel="t").get_ylim()[0] == 0
    low, high = plot_curves([1, 2], {"a": [-3, -1]}, xlabel="n", ylabel="t").get_ylim()
    assert low <= -3 < -1 <= high
    assert plot_curves([1, 2], {"a": [1, 3]}, xlabel="n", ylabel="t", log="xy").get_yscale() == "log"


def test_scaling_shows_one_line_for_each_way_however_many_there_are():
    spread, slope = plot_scaling(SIZES, SPREADS, SLOPES)
    for ax, lines in ((spread, SPREADS), (slope, SLOPES)):
        for line, (label, values) in zip(ax.get_lines(), lines.items(), strict=True):
            assert (line.get_label(), tuple(line.get_xdata())) == (label, SIZES)
            np.testing.assert_allclose(line.get_ydata(), [float(value) for value in values])
        assert texts(ax.get_xticklabels()) == ["2", "8", "32"]
        assert texts(ax.get_legend().get_texts()) == ["plain", "divided"]
    assert (spread.get_yscale(), slope.get_yscale(), slope.get_ylim()) == ("log", "linear", (0.0, 1.0))
    many = {str(number): [1.0, 2.0, float(number)] for number in range(1, 9)}
    assert all(texts(ax.get_legend().get_texts()) == list(many) for ax in plot_scaling(SIZES, many, many))


def test_every_line_of_the_staircase_is_at_its_values_and_seen_where_several_coincide():
    ax = plot_staircase(EDGES, ACCURACY, chance=0.03)
    *steps, guessing = ax.lines
    for line, values in zip(steps, ACCURACY.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [2, 32, 32, 64, 64, 128])
        np.testing.assert_array_equal(line.get_ydata(), np.repeat(values, 2))
    widths = [line.get_linewidth() for line in steps]
    assert all(below - above >= 2 for below, above in zip(widths, widths[1:])), "each shows on both sides of the next"
    assert texts(ax.get_legend().get_texts()) == ["0", "64", "128", "Guessing"]
    assert (ax.get_ylabel(), ax.get_xscale(), set(guessing.get_ydata())) == ("Right answers", "log", {0.03})
    assert len(plot_staircase(EDGES, ACCURACY).lines) == 3


def test_draws_on_the_axes_it_is_given():
    ax = mpl.figure.Figure().subplots()
    assert plot_curves([1, 2], {"a": [0.5, 1]}, xlabel="n", ylabel="t", ax=ax) is ax


def test_an_unknown_scale_is_named():
    with pytest.raises(ValueError, match="log must be .*; got 'z'"):
        plot_curves([1], {"a": [1]}, xlabel="", ylabel="", log="z")
