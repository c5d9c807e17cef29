"""Checks that learners run on their own code: one function per exercise, which names the likely mistake."""

from attnlib.checks._judge import Verdict
from attnlib.checks.context_vectors import check_context_vectors, check_cosine_context, check_scores, check_softmax
from attnlib.checks.self_attention import check_linear, check_scaled_weights, check_self_attention, check_v2_from_v1

__all__ = [
    "Verdict",
    "check_context_vectors",
    "check_cosine_context",
    "check_linear",
    "check_scaled_weights",
    "check_scores",
    "check_self_attention",
    "check_softmax",
    "check_v2_from_v1",
]
