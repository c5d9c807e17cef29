"""Masks: True where a query may attend."""

import pytest
import torch

from attnlib.masks import causal_mask, padding_mask


def test_causal_mask_by_hand():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert causal_mask(2, 3).tolist() == [[True, False, False], [True, True, False]]
    assert causal_mask(3, 2).tolist() == [[True, False], [True, True], [True, True]]
    assert causal_mask(3).dtype == torch.bool


def test_causal_mask_of_no_tokens_and_on_a_device():
    assert causal_mask(0).shape == (0, 0)
    assert causal_mask(0, 5).shape == (0, 5)
    assert causal_mask(5, 0).shape == (5, 0)
    assert causal_mask(3, device="meta").device.type == "meta"


def test_padding_mask_by_hand():
    assert padding_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert padding_mask(torch.tensor([], dtype=torch.int64), 5).shape == (0, 5)
    assert padding_mask(torch.tensor([0]), 0).shape == (1, 0)
    assert padding_mask(torch.empty(0, dtype=torch.int64, device="meta"), 5).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.int32, torch.uint64])
def test_lengths_of_any_integer_dtype(dtype):
    assert padding_mask(torch.tensor([1, 100], dtype=dtype), 300).sum(-1).tolist() == [1, 100]


def test_padding_mask_where_lengths_cannot_be_read():
    """Under compile, export and vmap, and on meta."""
    lengths = torch.tensor([[2, 0], [5, 3]])
    want = padding_mask(lengths.flatten(), 5).unflatten(0, (2, 2))
    assert torch.equal(torch.vmap(lambda row: padding_mask(row, 5))(lengths), want)
    for backend in ("eager", "aot_eager"):
        compiled = torch.compile(padding_mask, backend=backend, fullgraph=True)
        assert torch.equal(compiled(lengths[1], 5), want[1])
    assert padding_mask(lengths[1].to("meta"), 5).shape == (2, 5)

    class Padded(torch.nn.Module):
        def forward(self, lengths, x):
            return padding_mask(lengths, x.shape[1])

    sizes = ({0: torch.export.Dim("batch")}, {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")})
    exported = torch.export.export(Padded(), (lengths[1], torch.zeros(2, 7)), dynamic_shapes=sizes).module()
    assert torch.equal(exported(lengths.flatten(), torch.zeros(4, 5)), want.flatten(0, 1))


def test_errors():
    with pytest.raises(TypeError, match="q_tokens must be an int; got float"):
        causal_mask(3.0)
    with pytest.raises(ValueError, match="kv_tokens must be at least 0; got -1"):
        causal_mask(3, -1)
    with pytest.raises(TypeError, match="num_tokens must be an int; got bool"):
        padding_mask(torch.tensor([1]), True)
    with pytest.raises(TypeError, match="lengths must be an integer tensor; got torch.float32"):
        padding_mask(torch.tensor([1.0]), 3)
    with pytest.raises(TypeError, match="lengths must be an integer tensor; got torch.complex64"):
        padding_mask(torch.tensor([1 + 0j]), 3)
    with pytest.raises(TypeError, match="lengths must be an integer tensor; got torch.bool"):
        padding_mask(torch.tensor([True]), 3)
    with pytest.raises(TypeError, match="lengths must be an integer tensor; got list"):
        padding_mask([1], 3)
    with pytest.raises(ValueError, match=r"lengths must have shape \(batch,\); got \(1, 2\)"):
        padding_mask(torch.tensor([[1, 2]]), 3)
    with pytest.raises(ValueError, match=r"lengths must lie between 0 and num_tokens=3; got \[1, 4\]"):
        padding_mask(torch.tensor([1, 4]), 3)
    with pytest.raises(ValueError, match=r"lengths must lie between 0 and num_tokens=3; got \[-1\]"):
        padding_mask(torch.tensor([-1]), 3)
