"""Checks that learners run on their own code: one function per exercise, which names the likely mistake."""

from attnlib.checks.causal import check_causal_weights, check_dropout, check_leak, check_look_mask
from attnlib.checks.context_vectors import check_context_vectors, check_cosine_context, check_scores, check_softmax
from attnlib.checks.einsum import check_einsum_attention, check_head_output, check_loops_equation, check_matmul_equation
from attnlib.checks.generation import (
    check_cache_bytes,
    check_cache_step,
    check_expand_heads,
    check_rotate,
    check_window_mask,
)
from attnlib.checks.judge import Verdict
from attnlib.checks.lsh import check_combine_rounds, check_count_once, check_hash, check_sort_and_undo, check_visible
from attnlib.checks.memory import check_joint, check_memory_keys, check_memory_scores, check_topk_attention
from attnlib.checks.merging import check_log_sum_exp, check_merge, check_online_step, check_overlapping
from attnlib.checks.multi_head import (
    check_join_heads,
    check_multi_head,
    check_parameter_count,
    check_split_heads,
    check_two_columns,
)
from attnlib.checks.real_model import check_head_shares, check_masked_mean, check_search, check_topk_weights
from attnlib.checks.self_attention import check_linear, check_scaled_weights, check_self_attention, check_v2_from_v1
from attnlib.checks.start import check_same, check_scores_shape, check_weighted_average

__all__ = [
    "Verdict", "check_cache_bytes", "check_cache_step", "check_causal_weights", "check_combine_rounds",
    "check_context_vectors", "check_cosine_context", "check_count_once", "check_dropout", "check_einsum_attention",
    "check_expand_heads", "check_hash", "check_head_output", "check_head_shares", "check_join_heads", "check_joint",
    "check_leak", "check_linear", "check_log_sum_exp", "check_look_mask", "check_loops_equation", "check_masked_mean",
    "check_matmul_equation", "check_memory_keys", "check_memory_scores", "check_merge", "check_multi_head",
    "check_online_step", "check_overlapping", "check_parameter_count", "check_rotate", "check_same",
    "check_scaled_weights", "check_scores", "check_scores_shape", "check_search", "check_self_attention",
    "check_softmax", "check_sort_and_undo", "check_split_heads", "check_topk_attention", "check_topk_weights",
    "check_two_columns", "check_v2_from_v1", "check_visible", "check_weighted_average", "check_window_mask",
]  # fmt: skip
