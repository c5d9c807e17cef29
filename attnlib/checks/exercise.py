"""An exercise as data: the right answer, the inputs it is tried on, and the mistakes that are worth naming."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attnlib.checks.judge import Judge, Verdict, as_tensor, copied


def share(exponentials: Tensor, dim: int = -1) -> Tensor:
    return exponentials / exponentials.sum(dim, keepdim=True)


def less(scores: Tensor, dim: int = -1) -> Tensor:
    """The exponentials after the largest score along ``dim`` was subtracted."""
    return (scores - scores.amax(dim, keepdim=True)).exp()


IN_EVERY_TABLE = {"torch": torch, "F": F, "nn": nn, "math": math, "rearrange": rearrange, "share": share, "less": less}


class Mistake(NamedTuple):
    """A sentence that names a mistake, and a function that makes it (from ``code``, an expression in the arguments)."""

    sentence: str
    code: str
    function: Callable


class Exercise:
    """A check that learners call with their own function: ``check_softmax(my_softmax)`` gives a ``Verdict``.

    Args:
        reference: the right answer. Its docstring says what the function must do, with shapes.
        cases: tuples of arguments, of unequal sizes, so that a mixed-up axis shows. Ordinary numbers first.
        table: all that a learner may read, as text. The first line is for the right answer. Each other line has
            expressions that make a mistake, separated by semicolons, and a comment that names it; a line ``name =
            expression`` gives the rows below it a shorter word. The first mistake that fits is named.
        forbidden: names of functions that the exercise asks the learner to write without.
        chance: why two calls must not give different results.
        adapt: turns any answer, reference and mistakes included, into the function that is run on the cases.
        describe: says in words what is special about a case. Default: the shapes of its tensors, or its numbers.
    """

    def __init__(
        self,
        reference: Callable,
        cases: Sequence[tuple],
        table: str,
        *,
        forbidden: Sequence[str] = (),
        chance: str = "nothing in this exercise is left to chance.",
        adapt: Callable[[Callable], Callable] = lambda answer: answer,
        describe: Callable[..., str] | None = None,
    ) -> None:
        self._parameters = ", ".join(inspect.signature(reference).parameters)
        self.__doc__ = f"Check ``answer({self._parameters})``: {reference.__doc__}"
        self.reference, self.cases, self.forbidden, self.chance = reference, cases, forbidden, chance
        self.success, *self._rows = table.strip().splitlines()
        self.adapt, self._describe = adapt, describe
        self._made: dict[tuple[Mistake, int], Tensor | None] = {}

    @functools.cached_property
    def mistakes(self) -> list[Mistake]:
        names = IN_EVERY_TABLE | self.reference.__globals__
        words: dict[str, str] = {}  # names that the table itself defines
        mistakes = []
        for codes, _, sentence in (row.partition("  # ") for row in self._rows if row):
            for code in codes.split("; "):
                word, is_named, meaning = code.partition(" = ")
                if is_named and word.isidentifier():
                    words[word] = meaning
                    continue
                for word in reversed(words):
                    if re.search(rf"\b{word}\b", code):
                        code = f"(lambda {word}: {code})({words[word]})"
                mistakes.append(Mistake(sentence, code, eval(f"lambda {self._parameters}: {code}", dict(names))))
        return mistakes

    @functools.cached_property
    def wanted(self) -> list:
        """The right result of each case."""
        with torch.random.fork_rng(devices=[]):  # a seed that the reference sets must not help the answer
            return [self.adapt(self.reference)(*copied(inputs)) for inputs in self.cases]

    def made(self, mistake: Mistake, case: int) -> Tensor | None:
        """What a mistake gives for a case, if it runs at all. It is computed once."""
        if (mistake, case) not in self._made:
            try:
                self._made[mistake, case] = as_tensor(self.adapt(mistake.function)(*copied(self.cases[case])))
            except Exception:  # a mistake that cannot even run on a case is not the one that was made
                self._made[mistake, case] = None
        return self._made[mistake, case]

    def described(self, case: int) -> str:
        if self._describe:
            return self._describe(*self.cases[case])
        names = inspect.signature(self.adapt(self.reference)).parameters
        shapes = [f"{name} {tuple(x.shape)}" for name, x in zip(names, self.cases[case]) if isinstance(x, Tensor)]
        return " and ".join(shapes) or ", ".join(f"{name}={x}" for name, x in zip(names, self.cases[case]))

    def __call__(self, answer: Callable) -> Verdict:
        if not callable(answer):
            return Verdict("✗", f"Pass the function itself, without calling it; this is a {type(answer).__name__}.")
        with torch.random.fork_rng(devices=[]):
            return Judge(self, answer).verdict()


def draw(seed: int, *shapes: tuple, scale: float = 1.0, rows: Sequence[float] = (), double: bool = False) -> tuple:
    """Normal random tensors of these shapes, for a case. ``rows`` multiply the first one's rows: scores far apart."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    if rows:
        drawn[0] = torch.einsum("r,r...->r...", torch.tensor(rows, dtype=torch.float32), drawn[0])
    return tuple(x.double() if double else x for x in drawn)
