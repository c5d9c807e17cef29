"""The cells that readers may copy: each stands alone, and computes what attnlib does in any dtype and at any size.

``ROWS`` has one row for each name that a copyable cell offers; the tests run over all rows.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import attnlib

PATHS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
CELLS = {
    f"{path.stem[:2]}-{number}": cell.source
    for path in PATHS
    for number, cell in enumerate(
        cell for cell in nbformat.read(path, as_version=4).cells if "copyable" in cell.metadata.get("tags", [])
    )
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}


class Row(NamedTuple):
    """A function or class of a copyable cell, and what it must equal.

    Attributes:
        cell: notebook and number of the cell.
        name: what the cell defines.
        inputs: draws float64 inputs, given the number of tokens and the size of a head.
        expected: what attnlib computes from these inputs; for a class, attnlib's class of that name is asked.
        arguments: for a class, those of the constructor, given the size of a head and the context length.
        call: how the cell is used, given what it defines by name, then the inputs.
    """

    cell: str
    name: str
    inputs: Callable[[int, int], tuple]
    expected: Callable | None = None
    arguments: Callable[[int, int], tuple] | None = None
    call: Callable | None = None


def normal(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=torch.float64) / 2 for shape in shapes)


def batch(tokens: int, head_dim: int) -> tuple[Tensor, ...]:
    return normal((2, tokens, 5))


def with_memories_split(queries, stacked):
    query = attnlib.split_heads(queries, 3).unsqueeze(-2)  # (batch, heads, tokens, 1, head_dim)
    key, value = (attnlib.split_heads(t, 3).transpose(1, 2) for t in stacked.unbind(-2))
    return attnlib.join_heads(attnlib.attention(query, key, value).squeeze(-2))


def past_and_present(tokens: int, head_dim: int) -> tuple[Tensor, ...]:
    """Scores of past keys are whole numbers, all different, so that every dtype finds the same ones."""
    query, key, value, past_key, past_value = normal(*[(2, 3, n, head_dim) for n in (tokens, tokens, tokens, 13, 13)])
    query[..., 0], past_key[:] = 1.0, 0.0
    past_key[..., 0] = torch.stack([torch.randperm(13) - 9.0 for _ in range(6)]).view(2, 3, 13)
    return query, key, value, past_key, past_value


def search_and_merge(query, key, value, past_key, past_value):
    memory = attnlib.KVMemory(13, 3, query.shape[-1], batch_size=2, dtype=query.dtype)
    memory.add(past_key, past_value)
    far = attnlib.topk_attend(query, memory.search(query, 4), scale=1.0)
    return attnlib.merge([far, attnlib.attend(query, key, value, is_causal=True, scale=1.0)]).output


def scores_and_values(tokens: int, head_dim: int) -> tuple[Tensor, ...]:
    return normal((2, 7, tokens), (2, tokens, head_dim))


def visible(scores: Tensor) -> Tensor:
    """Query 3 sees no key at all, query 4 not the first one."""
    mask = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    mask[:, 3], mask[:, 4, 0] = False, False
    return mask


def in_parts(cell, scores, value):
    """One part holds the first key, one holds none, one holds the rest, and one is hidden from every query."""
    scores = scores.masked_fill(~visible(scores), -torch.inf)
    parts = [cell["part"](scores[..., a:b], value[..., a:b, :]) for a, b in ((0, 1), (1, 1), (1, None))]
    return cell["merge"]([*parts, cell["part"](torch.full_like(scores, -torch.inf), value)])


def all_at_once(scores, value):
    return attnlib.attend(scores, torch.eye(scores.shape[-1]).to(scores), value, visible(scores), scale=1)


def one_head(count_once: bool) -> Row:
    return Row(
        "07-0",
        "lsh_attention",
        lambda tokens, head_dim: normal((tokens, head_dim), (tokens, 5), (3, head_dim, 2)),
        lambda qk, v, directions: attnlib.lsh_attention(
            qk[None, None], v[None, None], directions[None], chunk_size=3, is_causal=True, count_once=count_once
        )[0, 0],
        call=lambda cell, *inputs: cell["lsh_attention"](*inputs, 3, count_once),
    )


def in_steps(window: int | None, sinks: int) -> Row:
    """The tokens in two calls, with a cache; two query heads share a key head."""

    def call(cell, query, key, value):
        cache: list = []
        calls = zip(*(tensor.tensor_split([query.shape[2] // 2], dim=2) for tensor in (query, key, value)))
        return torch.cat([cell["attend_with_cache"](*new, cache, window, sinks) for new in calls], dim=2)

    def expected(query, key, value):
        mask = attnlib.causal_mask(query.shape[2], device=query.device)
        if window:
            mask = attnlib.sliding_window_mask(query.shape[2], query.shape[2], window, sinks=sinks)
        return attnlib.attention(query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), mask)

    return Row(
        "09-0",
        "attend_with_cache",
        lambda tokens, head_dim: normal((2, 6, tokens, head_dim), (2, 3, tokens, head_dim), (2, 3, tokens, 5)),
        expected,
        call=call,
    )


def encoder_layers() -> tuple[dict[str, Tensor], torch.nn.Module]:
    """Weights of a small encoder layer by their names in notebook 10, and PyTorch's layer that holds them."""
    torch.manual_seed(10)
    theirs = torch.nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True, dtype=torch.float64
    ).eval()
    names = {"self_attn.out_proj": "attention.out_proj", "linear1": "mlp.0", "linear2": "mlp.2"}
    weights = {}
    for name, tensor in theirs.state_dict().items():
        module, _, kind = name.replace("in_proj_", "in_proj.").rpartition(".")
        for role, part in zip(("query", "key", "value"), tensor.chunk(3)):
            if module == "self_attn.in_proj":
                weights[f"attention.W_{role}.{kind}"] = part
        weights[f"{names.get(module, module)}.{kind}"] = tensor
    return weights, theirs


ENCODER, TORCH_ENCODER = encoder_layers()


ROWS = [
    Row("00-0", "largest_difference", lambda n, d: normal((n, d), (n, d)), lambda a, b: (a - b).abs().max().item()),
    Row("01-0", "context_vectors", lambda n, d: normal((2, n, d)), attnlib.context_vectors),
    Row("02-1", "SelfAttention_v1", batch, arguments=lambda d, most: (5, d)),
    Row("02-1", "SelfAttention_v1", batch, arguments=lambda d, most: (5, d, True)),
    Row("02-0", "SelfAttention_v2", batch, arguments=lambda d, most: (5, d)),
    Row("02-0", "SelfAttention_v2", batch, arguments=lambda d, most: (5, d, True)),
    Row("03-0", "CausalAttention", batch, arguments=lambda d, most: (5, d, most)),
    Row("03-0", "CausalAttention", batch, arguments=lambda d, most: (5, d, most, 0.0, True)),
    Row("04-0", "CausalAttention", batch, arguments=lambda d, most: (5, d, most, 0.0, True)),
    Row("04-0", "MultiHeadAttentionWrapper", batch, arguments=lambda d, most: (5, d, most, 2, 0.0)),
    Row("04-1", "MultiHeadAttention", batch, arguments=lambda d, most: (5, 2 * d, most, 0.0, 2)),
    Row("04-1", "MultiHeadAttention", batch, arguments=lambda d, most: (5, 3 * d, most, 0.0, 3, True)),
    Row("05-0", "MultiHeadAttention", batch, arguments=lambda d, most: (5, 2 * d, most, 0.0, 2)),
    Row("05-0", "MultiHeadAttention", batch, arguments=lambda d, most: (5, 3 * d, most, 0.0, 3, True)),
    Row(
        "06-0",
        "attend_to_memories",
        lambda tokens, head_dim: normal((2, tokens, 3 * head_dim), (2, tokens, 7, 2, 3 * head_dim)),
        with_memories_split,
        call=lambda cell, *inputs: cell["attend_to_memories"](*inputs, 3),
    ),
    Row(
        "06-1",
        "memory_attention",
        past_and_present,
        search_and_merge,
        call=lambda cell, *inputs: cell["memory_attention"](*inputs, 4),
    ),
    one_head(count_once=True),
    one_head(count_once=False),
    Row("08-0", "merge", scores_and_values, all_at_once, call=in_parts),
    Row(
        "08-1",
        "attend_in_blocks",
        lambda tokens, head_dim: normal((2, 3, 5, head_dim), (2, 3, tokens, head_dim), (2, 3, tokens, 2)),
        attnlib.attention,
        call=lambda cell, *inputs: cell["attend_in_blocks"](*inputs, 4),
    ),
    in_steps(window=None, sinks=0),
    in_steps(window=3, sinks=1),
    Row(
        "10-0",
        "encoder_layer",
        lambda tokens, head_dim: normal((2, tokens, 12)),
        TORCH_ENCODER,
        call=lambda cell, x: cell["encoder_layer"](x, {name: tensor.to(x) for name, tensor in ENCODER.items()}, 3),
    ),
]

IDS = [f"{row.cell}-{row.name}-{index}" for index, row in enumerate(ROWS)]
each_row = pytest.mark.parametrize("row", ROWS, ids=IDS)
TAKING_A_LENGTH = [row for row in ROWS if row.arguments and "SelfAttention" not in row.name]


@cache
def run_cell(cell: str) -> dict:
    names: dict = {}
    exec(compile(CELLS[cell], cell, "exec"), names)
    return names


def cell_and_attnlib(row: Row, dtype: torch.dtype, head_dim: int = 7, most: int = 11) -> tuple[Callable, Callable]:
    """What the cell defines, in ``dtype``, and what it must equal, in float64. Modules get the same weights."""
    cell = run_cell(row.cell)
    if row.arguments is None:
        call = row.call or (lambda cell, *inputs: cell[row.name](*inputs))
        return (lambda *inputs: call(cell, *inputs)), row.expected
    arguments, made = row.arguments(head_dim, most), []
    for make in (cell[row.name], getattr(attnlib, row.name)):
        torch.manual_seed(2)
        made.append(make(*arguments))
    theirs, ours = made
    assert_close(dict(theirs.named_parameters()), dict(ours.named_parameters()), rtol=0, atol=0)
    ours.load_state_dict(theirs.to(dtype).state_dict())
    return theirs, ours.double()


def inputs_of(row: Row, dtype: torch.dtype, tokens: int, head_dim: int = 7) -> list[Tensor]:
    torch.manual_seed(tokens)
    return [tensor.to(dtype) for tensor in row.inputs(tokens, head_dim)]


def as_tuple(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def assert_equal(got, expected, tolerance: float) -> None:
    for one, other in zip(as_tuple(got), as_tuple(expected), strict=True):
        assert_close(*(torch.as_tensor(number).double() for number in (one, other)), rtol=tolerance, atol=tolerance)


def test_every_cell_has_a_row():
    assert {row.cell for row in ROWS} == set(CELLS)


def test_cells_stand_alone(tmp_path):
    for name, source in CELLS.items():
        assert source.startswith(f"# attnlib notebook {name[:2]} · MIT licence\n"), name
        nodes = list(ast.walk(ast.parse(source)))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert {module.split(".")[0] for module in imported} <= {"torch", "einops", "numpy", "matplotlib", "math"}, name
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", str(tmp_path)]
    subprocess.run(ruff, check=True, timeout=60)
    run_each = "import runpy, sys; [runpy.run_path(path) for path in sys.argv[1:]]"
    files = sorted(map(str, tmp_path.glob("*.py")))
    environment = {**os.environ, "MPLBACKEND": "agg"}
    isolated = [sys.executable, "-I", "-c", run_each, *files]
    subprocess.run(isolated, check=True, timeout=120, cwd=tmp_path, env=environment)


@each_row
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_attnlib_in_any_dtype(row, dtype):
    theirs, ours = cell_and_attnlib(row, dtype)
    for tokens in (1, 7, 11):
        inputs = inputs_of(row, dtype, tokens)
        got = theirs(*inputs)
        assert not isinstance(got, Tensor) or got.dtype == dtype
        assert_equal(got, ours(*[tensor.double() for tensor in inputs]), TOLERANCE[dtype])


@pytest.mark.parametrize("row", ROWS[1:], ids=IDS[1:])  # the first returns a Python number
def test_gradients_equal_attnlibs(row):
    theirs, ours = cell_and_attnlib(row, torch.float64)
    gradients = []
    for function in (theirs, ours):
        inputs = [tensor.requires_grad_() for tensor in inputs_of(row, torch.float64, 7)]
        leaves = [*inputs, *(function.parameters() if row.arguments else [])]
        output = as_tuple(function(*inputs))[0]
        gradients.append(torch.autograd.grad(output.square().sum(), leaves, allow_unused=True))
    for got, expected in zip(*gradients, strict=True):
        if expected is not None:  # attnlib's memories pass no gradient on
            assert_close(got, expected)


@each_row
def test_works_under_autocast(row):
    theirs, ours = cell_and_attnlib(row, torch.float32)
    inputs = inputs_of(row, torch.float32, 11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = theirs(*inputs)
    assert_equal(got, ours(*[tensor.double() for tensor in inputs]), 2**-4)


@each_row
def test_makes_tensors_on_the_device_of_its_inputs(row):
    """With another default device, a tensor made without a device meets the inputs on the wrong one."""
    theirs, ours = cell_and_attnlib(row, torch.float32)
    inputs = inputs_of(row, torch.float32, 7)
    with torch.device("meta"):
        got = theirs(*inputs)
    assert_equal(got, ours(*[tensor.double() for tensor in inputs]), 1e-5)
    if row.arguments:  # and a tensor that does not move with its module stays behind
        assert theirs.to("meta")(inputs[0].to("meta")).device.type == "meta"


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "memory_attention"], ids=lambda row: row.name)
def test_large_inputs_do_not_overflow_in_float16(row):
    """Queries and keys of 64 sixties: their product is 230,400, and float16 ends at 65,504."""
    theirs, ours = cell_and_attnlib(row, torch.float16, head_dim=64)
    if row.arguments:
        with torch.no_grad():
            for module in (theirs, ours):
                for parameter in module.parameters():
                    parameter.fill_(0.0 if parameter.ndim == 1 else 0.08)  # of 5 inputs at 150: 60
    inputs = [
        torch.full_like(tensor, 150.0 if row.arguments else 60.0) for tensor in inputs_of(row, torch.float16, 7, 64)
    ]
    assert_equal(theirs(*inputs), ours(*[tensor.double() for tensor in inputs]), 2**-8)


@pytest.mark.parametrize("row", TAKING_A_LENGTH, ids=lambda row: f"{row.cell}-{row.name}")
@pytest.mark.parametrize("most", [1, 3])
def test_more_tokens_than_context_length_are_refused(row, most):
    theirs, ours = cell_and_attnlib(row, torch.float64, most=most)
    fits, too_long = (inputs_of(row, torch.float64, tokens)[0] for tokens in (most, 5))
    assert_equal(theirs(fits), ours(fits), 1e-12)
    with pytest.raises(ValueError, match=f"at most context_length={most} tokens; got 5"):
        theirs(too_long)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_thousands_of_keys_add_up_in_half_precision(dtype):
    query, key = (tensor.to(dtype) for tensor in normal((3, 64), (8192, 64)))
    value = torch.linspace(-1, 3, 8192, dtype=dtype)[:, None]
    got = run_cell("08-1")["attend_in_blocks"](query, key, value, 16)
    assert_equal(got, attnlib.attention(query.double(), key.double(), value.double()), 2**-7)
