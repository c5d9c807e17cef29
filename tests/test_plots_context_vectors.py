"""The picture of notebook 01 shows the numbers and words that it is given, and changes nothing else."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

from attnlib.plots import plot_context

LABELS = ["a", "b", "c", "d", "e"]
SCORES = torch.tensor([0.5, -1.25, 3.0, 0.0, 2.0])
QUERY = torch.tensor([0.25, -0.75, 1.5])


@pytest.fixture(autouse=True)
def _closed():
    mpl.use("agg")
    with mpl.rc_context():
        mpl.rcdefaults()  # so that a setting that an earlier test let slip is seen
        yield
    plt.close("all")


def draw(**changes):
    given = {"scores": SCORES, "weights": SCORES.softmax(0), "query": QUERY, "context": QUERY / 2, "labels": LABELS}
    return plot_context(**{**given, **changes})


def test_shows_the_numbers_and_the_words():
    scores, weights, vectors = draw(title="The query is 'b'")
    assert [bar.get_width() for bar in scores.patches] == SCORES.tolist()
    assert [bar.get_width() for bar in weights.patches] == pytest.approx(SCORES.softmax(0).tolist())
    assert [bar.get_height() for bar in vectors.patches] == QUERY.tolist() + (QUERY / 2).tolist()
    assert [tick.get_text() for tick in scores.get_yticklabels()] == LABELS
    assert "-1.25" in [text.get_text() for text in scores.texts]
    assert scores.get_ylabel() == "Keys"
    assert scores.figure.get_suptitle() == "The query is 'b'"
    assert [text.get_text() for text in vectors.get_legend().get_texts()] == ["query", "context vector"]


def test_everything_lies_inside_the_axes_and_the_first_word_on_top():
    for scale in (0.1, 1.0, 20.0):
        scores, weights, vectors = draw(scores=SCORES * scale, query=QUERY * scale, context=-QUERY * scale)
        low, high = scores.get_xlim()
        assert low <= float(scale * SCORES.min())
        assert high > float(scale * SCORES.max())
        low, high = vectors.get_ylim()
        assert low < -1.5 * scale
        assert high > 1.5 * scale
        assert weights.get_xlim()[0] == 0.0
        assert weights.get_xlim()[1] >= 1.0
        for ax in (scores, weights):
            assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_takes_tensors_of_any_dtype_with_gradients():
    scores, *_ = draw(scores=SCORES.bfloat16().requires_grad_())
    assert [bar.get_width() for bar in scores.patches] == SCORES.tolist()


def test_changes_nothing_else():
    settings, given = dict(mpl.rcParams), SCORES.clone()
    draw()
    assert dict(mpl.rcParams) == settings
    assert torch.equal(SCORES, given)
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": SCORES[:4]}, r"scores must be a row of 5 numbers; got shape \(4,\)"),
        ({"weights": torch.ones(5, 5)}, r"weights must be a row of 5 numbers; got shape \(5, 5\)"),
        ({"context": torch.ones(2)}, r"context must be a row of 3 numbers; got shape \(2,\)"),
        ({"query": torch.ones(3, 1)}, r"query must be a row of several numbers; got shape \(3, 1\)"),
    ],
)
def test_says_which_argument_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        draw(**changes)
