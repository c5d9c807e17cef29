"""Bad input becomes one clear error that names the argument."""

import numpy as np
import pytest
import torch

from attnlib import _validate


def test_shapes_are_given_in_words():
    tensor = torch.zeros(2, 8, 10, 32)
    _validate.check_shape("query", tensor, "batch heads tokens head_dim", {"head_dim": 32})
    with pytest.raises(
        ValueError, match=r"query must have shape \(batch, heads, tokens, head_dim=64\); got \(2, 8, 10, 32\)"
    ):
        _validate.check_shape("query", tensor, "batch heads tokens head_dim", {"head_dim": 64})
    with pytest.raises(ValueError, match=r"query must have shape \(tokens, head_dim\)"):
        _validate.check_shape("query", tensor, "tokens head_dim")
    with pytest.raises(ValueError, match=r"query must have shape \(\.\.\., tokens, head_dim\); got \(32,\)"):
        _validate.check_shape("query", tensor[0, 0, 0], "... tokens head_dim")


def test_counts_and_probabilities():
    _validate.check_counts(top_k=1)
    with pytest.raises(ValueError, match="top_k must be at least 1; got 0"):
        _validate.check_counts(top_k=0)
    with pytest.raises(TypeError, match="top_k must be an int; got bool"):
        _validate.check_counts(top_k=True)
    _validate.check_probability("dropout", 0)
    _validate.check_probability("dropout", 1.0)
    with pytest.raises(ValueError, match=r"dropout must lie between 0 and 1; got -0.1"):
        _validate.check_probability("dropout", -0.1)
    with pytest.raises(TypeError, match="dropout must be a number; got bool"):
        _validate.check_probability("dropout", False)


def test_a_bool_of_numpy_is_named():
    _validate.check_bool("is_causal", False)
    with pytest.raises(TypeError, match=r"is_causal must be a Python bool; got numpy.bool_? \(wrap it in bool\(\)\)"):
        _validate.check_bool("is_causal", np.bool_(True))
    with pytest.raises(TypeError, match="is_causal must be a bool; got int"):
        _validate.check_bool("is_causal", 1)
