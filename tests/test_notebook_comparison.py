"""The comparison of printed outputs in conftest.py: floats to the last digit, everything else exactly."""

import pytest

from conftest import Printed


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("tensor([0.1234, -2.0000])", "tensor([0.1235, -2.0000])"),
        ("[-0.0000, 1.0000]", "[0.0000, 1.0000]"),
        ("loss 1.50e-03", "loss 1.51e-03"),
        ("6 tokens", "6 tokens"),
        ("0.5", "0.50"),
    ],
)
def test_equal(stored, computed):
    assert Printed(stored) == Printed(computed)
    assert (Printed(stored) != Printed(computed)) is False  # nbval asks with !=


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("tensor([0.1234, -2.0000])", "tensor([0.1236, -2.0000])"),
        ("shape (2, 3)", "shape (2, 4)"),
        ("6 tokens", "7 tokens"),
        ("0.5 1.5", "0.5"),
        ("mean 0.5", "mode 0.5"),
        ("1.5e-03", "1.5e-04"),
        ("[1.0000, nan]", "[1.0000, 2.0000]"),
    ],
)
def test_different(stored, computed):
    assert Printed(stored) != Printed(computed)
