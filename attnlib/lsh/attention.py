"""Attention among the tokens that fall into the same bucket, sorted, cut into chunks, and merged over rounds."""

import torch
from torch import Tensor

from attnlib._validate import check_bool, check_count, check_options, check_same, check_shape, check_tensor
from attnlib.lsh._rounds import attend_rounds
from attnlib.lsh._sorted import Rule
from attnlib.lsh.hashing import check_rotations, hash_buckets


def lsh_attention(
    query_key: Tensor,
    value: Tensor,
    rotations: Tensor,
    *,
    chunk_size: int,
    is_causal: bool = False,
    key_mask: Tensor | None = None,
    count_once: bool = True,
    across_buckets: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Let each token attend to the tokens that share its bucket, in any of several rounds of hashing.

    Formula: ``output_i = Σ_j exp(s_ij) v_j / Σ_j exp(s_ij)`` with ``s_ij = scale · q_i · q_j / ‖q_j‖``: queries and
    keys are the same vectors, the keys at length 1. j runs over what i sees in at least one round. A round sorts the
    tokens by (bucket, position) and cuts them into chunks; token i sees those of its bucket in its own chunk and in the
    chunk before, never around the end. It sees itself only where it sees nothing else in any round.

    With ``is_causal`` token i sees the entries of its own bucket that stand at most ``chunk_size`` places before it in
    sorted order. Where the number of buckets does not depend on the length, **a forward on any prefix then equals the
    forward on the whole.** With ``is_causal`` and ``across_buckets`` the chunk rule stays and later positions are
    hidden: no value leaks back, but a later token moves the borders of the chunks, and a prefix gives other outputs
    than the whole.

    Args:
        query_key: (batch, heads, tokens, head_dim), any number of tokens. A vector of zeros makes a key of zeros.
        value: (batch, heads, tokens, value_dim).
        rotations: (heads or 1, num_hashes, head_dim, num_buckets // 2), from ``random_rotations``.
        chunk_size: number of sorted tokens in a chunk.
        is_causal: hide later tokens.
        key_mask: boolean (batch, tokens), True = real. Padding may stand anywhere, sorts last, is seen by nobody, and
            gets zeros.
        count_once: a key that is met in several rounds counts once, so that the output tends to full attention as the
            rounds grow. False counts it as often as it is met, as most implementations do, and tends elsewhere.
            Subtracting log N_ij, in how many rounds i sees j, from the scores of each round is the same; here a pair
            is left out of the rounds after the first that shows it.
        across_buckets: drop the rule that the bucket must be the same; the chunks alone decide.
        scale: factor on the scores; 1.0 where it is left out, so that scores reach ‖q_i‖. For the paper's formula,
            pass ``head_dim ** -0.5``.

    Returns:
        (batch, heads, tokens, value_dim) in the dtype of ``value``.

    Raises:
        TypeError: an argument is no floating-point tensor, dtypes differ, ``key_mask`` is not boolean, another option
            no bool, or ``scale`` no number.
        ValueError: a shape or a device does not fit, or ``chunk_size`` is below 1.

    Source: Kitaev et al. 2020, "Reformer", section 2; counting once is the N_ij of its appendix A.

    >>> from attnlib.lsh import random_rotations
    >>> x = torch.randn(2, 3, 50, 5)
    >>> rotations = random_rotations(head_dim=5, num_buckets=4, num_hashes=2)
    >>> whole = lsh_attention(x, x, rotations, chunk_size=8, is_causal=True)
    >>> prefix = lsh_attention(x[:, :, :20], x[:, :, :20], rotations, chunk_size=8, is_causal=True)
    >>> torch.allclose(prefix, whole[:, :, :20], atol=1e-6)
    True
    """
    check_tensor("query_key", query_key)
    check_tensor("value", value)
    check_shape("query_key", query_key, "batch heads tokens head_dim")
    sizes = dict(zip(("batch", "heads", "tokens"), query_key.shape))
    check_shape("value", value, "batch heads tokens value_dim", sizes)
    check_same(query_key=query_key, value=value)
    check_rotations(rotations, query_key, "query_key")
    check_count("chunk_size", chunk_size)
    check_options(is_causal, scale)
    check_bool("count_once", count_once)
    check_bool("across_buckets", across_buckets)
    if key_mask is not None:
        _check_key_mask(key_mask, query_key)
    scale = 1.0 if scale is None else float(scale)
    if across_buckets and query_key.shape[2] <= chunk_size:
        rotations = rotations[:, :1]  # one chunk holds all: every round would show the same
    buckets = hash_buckets(query_key.detach(), rotations)
    num_buckets = 2 * rotations.shape[-1]
    chunk_size = min(chunk_size, query_key.shape[2])  # no buffers for places that stay empty
    rule = Rule(chunk_size, num_buckets, is_causal, count_once, across_buckets, scale)
    return attend_rounds(query_key, value, buckets, key_mask, rule)


def _check_key_mask(key_mask: object, query_key: Tensor) -> None:
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        got = key_mask.dtype if isinstance(key_mask, Tensor) else type(key_mask).__name__
        raise TypeError(f"key_mask must be a boolean tensor, True = real; got {got}")
    batch, tokens = query_key.shape[0], query_key.shape[2]
    if key_mask.shape != (batch, tokens):
        raise ValueError(f"key_mask must have shape (batch={batch}, tokens={tokens}); got {tuple(key_mask.shape)}")
    if key_mask.device != query_key.device:
        raise ValueError(f"key_mask must be on the device of query_key, {query_key.device}; got {key_mask.device}")
