"""Attention among tokens that share a bucket: sorted, cut into chunks, and merged over the rounds."""

from torch import Tensor

from attnlib._validate import check_bool, check_count, check_key_mask, check_options, check_same, check_tensor
from attnlib.lsh._rounds import attend_rounds
from attnlib.lsh._sorted import Rule
from attnlib.lsh.hashing import check_rotations


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
    """Let each token attend to the tokens that share its bucket in at least one of several rounds of hashing.

    Formula: ``output_i = Σ_j exp(s_ij) v_j / Σ_j exp(s_ij)`` with ``s_ij = scale · q_i · q_j / ‖q_j‖``: queries and
    keys are the same vectors, with the keys scaled to length 1. j runs over the tokens that i sees in at least one
    round. A round sorts the tokens by (bucket, position) and cuts them into chunks. Token i sees the tokens of its
    bucket that are in its own chunk or the one before; the first chunk does not wrap around to the last. A token sees
    itself only if it sees nothing else in any round.

    With ``is_causal``, token i sees the tokens of its bucket that come at most ``chunk_size`` places before it in the
    sorted order. As long as the number of buckets does not depend on the length, **a forward pass on a prefix then
    equals the forward pass on the whole.** With ``is_causal`` and ``across_buckets``, the chunks decide and later
    positions are hidden. No value leaks back, but a later token shifts the borders of the chunks, so a prefix does not
    give the same outputs as the whole.

    Args:
        query_key: (batch, heads, tokens, head_dim). The key of a zero vector is zero.
        value: (batch, heads, tokens, value_dim).
        rotations: (heads or 1, num_hashes, head_dim, num_buckets // 2), from ``random_rotations``.
        chunk_size: number of sorted tokens in a chunk.
        is_causal: hide later tokens.
        key_mask: boolean (batch, tokens), True = real token. Padding may be anywhere and hold anything, even NaN: no
            token sees it, and its output and its gradient are zero.
        count_once: count a key once even if several rounds show it, so the output approaches full attention as the
            number of rounds grows. If False, it counts once per round that shows it, as in most implementations, and
            the limit is different. (The paper subtracts log N_ij from the scores, where N_ij counts the rounds in which
            i sees j; here, only the first of them shows the pair, which gives the same output.)
        across_buckets: ignore the buckets after sorting, so that the chunks alone decide.
        scale: factor on the scores; default: 1.0, so scores reach ‖q_i‖. The paper's is ``head_dim ** -0.5``.

    Returns:
        (batch, heads, tokens, value_dim) in the dtype of ``value``, differentiable once. ``torch.vmap`` works.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, dtypes or devices differ, or a shape does not fit.
        NotImplementedError: its gradient is differentiated again; ``attend`` can do that with a mask.

    Source: Kitaev et al. 2020, "Reformer", section 2; N_ij is in its appendix A.

    >>> import torch
    >>> from attnlib.lsh import random_rotations
    >>> x = torch.randn(2, 3, 50, 5)
    >>> rotations = random_rotations(head_dim=5, num_buckets=4, num_hashes=2)
    >>> whole = lsh_attention(x, x, rotations, chunk_size=8, is_causal=True)
    >>> prefix = lsh_attention(x[:, :, :20], x[:, :, :20], rotations, chunk_size=8, is_causal=True)
    >>> torch.allclose(prefix, whole[:, :, :20], atol=1e-6)
    True
    """
    check_tensor("query_key", query_key, "batch heads tokens head_dim")
    sizes = dict(zip(("batch", "heads", "tokens"), query_key.shape))
    check_tensor("value", value, "batch heads tokens value_dim", sizes)
    check_same(query_key=query_key, value=value)
    check_rotations(rotations, query_key, "query_key")
    check_count("chunk_size", chunk_size)
    check_options(is_causal, scale)
    check_bool("count_once", count_once)
    check_bool("across_buckets", across_buckets)
    if key_mask is not None:
        check_key_mask(key_mask, query_key[:, 0])
    scale = 1.0 if scale is None else float(scale)
    rule = Rule(chunk_size, 2 * rotations.shape[-1], is_causal, count_once, across_buckets, scale)
    return attend_rounds(query_key, value, rotations, key_mask, rule)
