"""Checks that learners run on their own code: one function per exercise, which names the likely mistake."""

from attnlib.checks._judge import Verdict
from attnlib.checks.causal import check_causal_weights, check_dropout, check_leak, check_look_mask
from attnlib.checks.context_vectors import check_context_vectors, check_cosine_context, check_scores, check_softmax
from attnlib.checks.multi_head import (
    check_join_heads,
    check_multi_head,
    check_parameter_count,
    check_split_heads,
    check_two_columns,
)
from attnlib.checks.self_attention import check_linear, check_scaled_weights, check_self_attention, check_v2_from_v1

__all__ = [
    "Verdict",
    "check_causal_weights",
    "check_context_vectors",
    "check_cosine_context",
    "check_dropout",
    "check_join_heads",
    "check_leak",
    "check_linear",
    "check_look_mask",
    "check_multi_head",
    "check_parameter_count",
    "check_scaled_weights",
    "check_scores",
    "check_self_attention",
    "check_softmax",
    "check_split_heads",
    "check_two_columns",
    "check_v2_from_v1",
]
