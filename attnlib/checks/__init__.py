"""Checks that learners run on their own code: one function per exercise, which names the likely mistake."""

from attnlib.checks._judge import Verdict

__all__ = [
    "Verdict",
]
