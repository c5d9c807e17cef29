"""The one idea: a softmax-weighted average of values, and partial averages that merge exactly."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlib._fused import fused_attention
from attnlib._validate import check_device, check_key_mask, check_qkv, check_same, check_tensor


class Attended(NamedTuple):
    """An average over some keys, and how much those keys weigh in total.

    Attributes:
        output: (…, q_tokens, value_dim).
        logsumexp: (…, q_tokens), in float64 if the device has it: near 10⁴, neighbouring float32 numbers are
            0.001 apart, and merged weights would be off by as much.
    """

    output: Tensor
    logsumexp: Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Attended:
    """Average the values with softmax weights, and keep the log-sum-exp that ``merge`` needs.

    Formula: ``scores_ij = scale · q_i · k_j``, ``logsumexp_i = log Σ_j exp(scores_ij)``,
    ``output_i = Σ_j exp(scores_ij − logsumexp_i) · v_j``, where j runs over the keys that query i may see.

    Keys that a mask (…, 1, kv_tokens) hides from all queries alike, such as padding, may hold anything, even NaN. Keys
    hidden from some queries only, as with ``is_causal``, must be finite, because a weight of 0 times NaN is NaN.

    Args:
        query: (…, q_tokens, head_dim). Leading axes broadcast against those of key and value.
        key, value: (…, kv_tokens, head_dim) and (…, kv_tokens, value_dim).
        mask: boolean, broadcasts to (…, q_tokens, kv_tokens), True = may attend.
        is_causal: also hide the keys after each query (upper-left alignment, as in PyTorch).
        scale: factor on the scores; default: ``1/√head_dim``.
        dropout_p: share of the weights set to zero; the others grow by 1/(1 − p), and the log-sum-exp stays.

    Returns ``Attended(output, logsumexp)``; a query that may see no key gets zeros and −inf, never NaN. TypeError,
    ValueError: an argument is of the wrong kind, or dtypes, devices or shapes do not fit together.

    Source: Vaswani et al. 2017, section 3.2.1; the log-sum-exp as in Dao et al. 2022 (FlashAttention), section 3.1.

    >>> eye = torch.eye(2)
    >>> attend(torch.tensor([[0.0, 2**0.5]]), eye, eye)  # scores [0, 1], weights [1, e] / (1 + e)
    Attended(output=tensor([[0.2689, 0.7311]]), logsumexp=tensor([1.3133], dtype=torch.float64))
    """
    check_qkv(query, key, value, mask, is_causal, scale, dropout_p)
    key, value = blank(key, mask), blank(value, mask)
    return _average(_scores(query, key, mask, is_causal, scale), value, dropout_p)


def _average(scores: Tensor, value: Tensor, dropout_p: float = 0.0) -> Attended:
    """What ``attend`` returns for scores (…, q_tokens, kv_tokens)."""
    weights, logsumexp = _softmax(scores)
    weights = F.dropout(weights, dropout_p)
    with without_autocast(value.device):
        output = weights @ value.to(weights.dtype)  # (…, q_tokens, value_dim)
    return Attended(output.to(value.dtype), logsumexp.expand(output.shape[:-1]))


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """Compute only the softmax weights: how much of each key's value goes into each query's average.

    Formula: ``weights_ij = exp(scores_ij) / Σ_j exp(scores_ij)``, (…, q_tokens, kv_tokens) in the dtype of ``query``.
    Rows sum to one, or to zero where a query sees no key. Arguments and errors are as in ``attend``.

    >>> attention_weights(torch.tensor([[0.0, 2**0.5]]), torch.eye(2))
    tensor([[0.2689, 0.7311]])
    """
    check_qkv(query, key, key, mask, is_causal, scale)
    return _softmax(_scores(query, blank(key, mask), mask, is_causal, scale))[0].to(query.dtype)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute only the output of ``attend``, with PyTorch's fused kernel, which never stores the weights.

    Formula, arguments, shapes, errors and what hidden keys may hold are as in ``attend``.

    Without dropout, memory is linear in the tokens for any leading axes and sizes, with ``is_causal``, a mask
    (…, 1, kv_tokens) or both. With both, a hidden key gets a large negative score instead of −∞: it stays hidden as
    long as a query and the keys that it sees have products above −2⁹⁵, or −2²⁹ in float16. A mask that differs between
    queries is converted a block of queries at a time, and the backward pass keeps the blocks. With dropout, PyTorch
    stores the weights on most devices.

    The fused kernel can be differentiated once. For second derivatives, such as a gradient penalty, call this (or a
    layer) under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``, or use ``attend``.

    Source: Dao et al. 2022 (FlashAttention), through ``F.scaled_dot_product_attention``.

    >>> eye = torch.eye(2)
    >>> attention(torch.tensor([[0.0, 2**0.5]]), eye, eye)
    tensor([[0.2689, 0.7311]])
    """
    check_qkv(query, key, value, mask, is_causal, scale, dropout_p)
    key, value = blank(key, mask), blank(value, mask)
    return fused_attention(query, key, value, mask, is_causal, scale, dropout_p)


def blank(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros in the rows that a mask (…, 1, tokens) hides from all queries, so it does not matter what they hold."""
    if mask is None or mask.ndim == 0 or (mask.ndim > 1 and mask.shape[-2] != 1):
        return tensor
    return tensor.masked_fill(~mask.mT if mask.ndim > 1 else ~mask[:, None], 0.0)


def hide_padding(x: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A layer's input with zeros as padding, and which tokens are real, as a mask (…, 1, tokens)."""
    if key_mask is None:
        return x, None
    check_key_mask(key_mask, x)
    mask = key_mask.unsqueeze(-2)
    return blank(x, mask), mask


def active_dropout(module: nn.Module | None) -> float:
    """The share that a Dropout module drops now: its own ``training`` decides; a module that replaces it drops none."""
    return getattr(module, "p", 0.0) if module is not None and module.training else 0.0


def merge(parts: Sequence[Attended]) -> Attended:
    """Merge averages over disjoint sets of keys into the average over all of them, exactly.

    Formula: ``logsumexp = log Σ_p exp(logsumexp_p)``, ``output = Σ_p exp(logsumexp_p − logsumexp) · output_p``.

    ``parts`` is what ``attend`` returned for each set of keys, all with the same queries; shapes broadcast. Raises a
    TypeError or ValueError if ``parts`` is empty, one is not an ``Attended``, or they do not fit together.

    Source: Dao et al. 2022 (FlashAttention), section 3.1; Milakov and Gimelshein 2018, "Online normalizer calculation
    for softmax".

    >>> query, key, value = torch.randn(3, 5), torch.randn(7, 5), torch.randn(7, 2)
    >>> halves = [attend(query, key[:4], value[:4]), attend(query, key[4:], value[4:])]
    >>> torch.allclose(merge(halves).output, attend(query, key, value).output, atol=1e-6)
    True
    """
    parts = list(parts)
    if not parts:
        raise ValueError("parts must hold at least one Attended; got none")
    leading = torch.Size()
    for index, part in enumerate(parts):
        leading = _check_part(index, part, parts[0], leading)
    logsumexps = torch.stack([part.logsumexp.expand(leading) for part in parts], dim=-1)
    shares, logsumexp = _softmax(logsumexps)  # (…, q_tokens, parts)
    dtype = parts[0].output.dtype
    shares = shares.to(torch.promote_types(dtype, torch.float32))
    outputs = torch.stack([share[..., None] * part.output for share, part in zip(shares.unbind(-1), parts)])
    return Attended(outputs.sum(0).to(dtype), logsumexp.to(logsumexps.dtype))


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """Scaled scores, −inf where a query may not look; (…, q_tokens, kv_tokens), in float32 or wider."""
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    dtype = torch.promote_types(query.dtype, torch.float32)
    with without_autocast(query.device):
        scores = (query.to(dtype) * scale) @ key.to(dtype).mT
    if is_causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        mask = past if mask is None else mask & past
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Inside it dtypes stay as they are. There is nothing to do on meta, which has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def logsumexp_dtype(scores: Tensor) -> torch.dtype:
    """float64, or that of the scores where the device has no float64."""
    return scores.dtype if scores.device.type in ("mps", "xpu") else torch.float64


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax and log-sum-exp over the last axis; zeros, −inf and no NaN, even in gradients, if it is empty or −inf."""
    if scores.shape[-1] == 0:
        return scores, scores.sum(-1).to(logsumexp_dtype(scores)) - torch.inf
    top = scores.detach().amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0.0)
    exponentials = (scores - top).exp()
    total = exponentials.sum(-1, keepdim=True)  # at least 1 wherever there is something to see
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    logsumexp = (total.log() + top.to(logsumexp_dtype(scores))).masked_fill(empty, -torch.inf)
    return exponentials / total, logsumexp.squeeze(-1)


def _check_part(index: int, part: Attended, first: Attended, leading: torch.Size) -> torch.Size:
    """Errors that name the part; (…, q_tokens) of this part and the ones before it, which have ``leading``."""
    name = f"parts[{index}]"
    if not isinstance(part, Attended):
        raise TypeError(f"{name} must be an Attended; got {type(part).__name__}")
    for field, ours, theirs in zip(Attended._fields, part, first):
        check_tensor(f"{name}.{field}", ours)
        check_same(**{f"parts[0].{field}": theirs, f"{name}.{field}": ours})
    check_device(f"{name}.logsumexp", part.logsumexp, "its output", part.output.device)
    with suppress(RuntimeError):  # raised by shapes that do not broadcast
        if part.output.ndim and part.output.shape[-1] == first.output.shape[-1]:
            return torch.broadcast_shapes(leading, part.output.shape[:-1], part.logsumexp.shape)
    expected = "output (..., q_tokens, value_dim) and logsumexp (..., q_tokens) that broadcast with the parts before it"
    got = f"{tuple(part.output.shape)} and {tuple(part.logsumexp.shape)}, after {tuple(first.output.shape)} in parts[0]"
    raise ValueError(f"{name} must have {expected}; got {got}")
