"""The order in which operands are joined: the cheapest of all for up to four, against brute force."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlib.einsum import explain_einsum


def cheapest(tensors: list[dict[str, int]], output: str) -> int:
    """The fewest multiplications of any order: try each pair, and all orders of what is left after it."""
    if len(tensors) < 2:
        return 0
    best = []
    for first, second in itertools.combinations(range(len(tensors)), 2):
        rest = [tensor for place, tensor in enumerate(tensors) if place not in (first, second)]
        kept, one, other = set(output).union(*rest), tensors[first], tensors[second]
        # an axis that nobody else needs is summed beforehand if the other lacks it, or has it with size 1
        met = {axis: max(one.get(axis, 1), other.get(axis, 1)) for axis in {*one, *other}
               if axis in kept or one.get(axis) == other.get(axis)}  # fmt: skip
        result = {axis: size for axis, size in met.items() if axis in kept}
        best.append(math.prod(met.values()) + cheapest([*rest, result], output))
    return min(best)


@st.composite
def equations(draw):
    """Two to four terms over five letters, their shapes with some axes of size 1, and an output."""
    sizes = {letter: draw(st.sampled_from((2, 3, 7, 32, 1000))) for letter in "ijkbd"}
    terms = draw(st.lists(st.lists(st.sampled_from("ijkbd"), max_size=4, unique=True), min_size=2, max_size=4))
    tensors = [{axis: draw(st.sampled_from((sizes[axis], sizes[axis], 1))) for axis in term} for term in terms]
    output = draw(st.lists(st.sampled_from(sorted(set().union(*terms))), unique=True)) if any(terms) else []
    return tensors, "".join(output)


@settings(max_examples=200, deadline=None)
@given(equations())
def test_no_order_of_up_to_four_operands_is_cheaper(equation):
    tensors, output = equation
    text = f"{','.join(''.join(tensor) for tensor in tensors)}->{output}"
    explanation = explain_einsum(text, *(tuple(tensor.values()) for tensor in tensors))
    assert explanation.path_multiplications == cheapest(tensors, output)
    assert len(explanation.path) == len(tensors) - 1


def test_an_operand_that_broadcasts_is_joined_first_if_that_is_cheapest():
    explanation = explain_einsum("ijk,bj,bk->bi", (32, 32, 32), (10_000, 32), (1, 32))
    assert explanation.path == (
        ("A", "C", {"i": 32, "j": 32, "b": 1}, 32**3),
        ("AC", "B", {"b": 10_000, "i": 32}, 10_000 * 32 * 32),
    )
    assert "joined two by two, in the cheapest order: 10,272,768" in str(explanation)


def test_of_two_equally_cheap_orders_the_one_with_the_smaller_intermediate_wins():
    for shapes, first in (([(3, 4), (4, 6), (6, 4)], "BC"), ([(4, 6), (6, 4), (4, 3)], "AB")):
        explanation = explain_einsum("ij,jk,kl->il", *shapes)  # A with B first and B with C first both take 144
        assert explanation.path_multiplications == 144
        assert "".join(explanation.path[0][:2]) == first
        assert explanation.path[0].elements == 16  # 18 in the other order


@pytest.mark.parametrize("count", [5, 6, 8])
def test_the_order_of_more_operands_is_called_good(count):
    letters = "abcdefghi"[: count + 1]
    text = ",".join(one + two for one, two in itertools.pairwise(letters)) + f"->{letters[0]}{letters[-1]}"
    explanation = explain_einsum(text, *[(50, 50)] * count)
    assert explanation.path_multiplications == (count - 1) * 50**3
    assert f"joined two by two, in a good order: {(count - 1) * 50**3:,}" in str(explanation)
