"""How an answer is judged: run it on every case of its exercise, then find the most useful thing to say."""

import dis
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

HINTS = {  # what to say if an error contains these words
    "Dimension out of range": " Count axes from the end: dim=-1 is the last.",
    "torch.return_types": " max(dim=…), sort and topk return values together with indices: take .values or .indices.",
    "a leaf Variable that requires grad": " Write into a parameter under torch.no_grad().",
    "more than once": " Two axes of the output need two names, one for the queries and one for the keys.",
    "duplicate dimension": " Two axes of the output need two names, one for the queries and one for the keys.",
}
UNWRITTEN = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "POP_TOP"}  # all that a stub compiles to


@dataclass(frozen=True)
class Verdict:
    """What a check says. ``passed`` is a bool; as a condition, a verdict is true or raises its own message."""

    sign: str
    message: str

    @property
    def passed(self) -> bool:
        return self.sign == "✓"

    def require(self) -> "Verdict":
        """Return this verdict if the answer passed; otherwise raise an AssertionError with the message."""
        if not self.passed:
            raise AssertionError(self.message)
        return self

    def __bool__(self) -> bool:
        """A bare ``assert check(answer)`` shows the message, because what fails here is not the assert."""
        return self.require().passed

    def __repr__(self) -> str:
        return f"{self.sign} {self.message}"


class Judge:
    """One answer on trial, by the reference, the cases and the mistakes of an ``Exercise``."""

    def __init__(self, exercise: Any, answer: Callable) -> None:
        self.exercise, self.answer = exercise, answer
        self.name = getattr(answer, "__name__", type(answer).__name__)
        self.run = exercise.adapt(answer)
        self.unwritten = Verdict("○", f"Not written yet: write {self.name}, and run this cell again.")

    def is_right(self, case: int, result: "Tensor | Verdict") -> bool:
        return isinstance(result, Tensor) and _same(result, as_tensor(self.exercise.wanted[case]))

    def verdict(self) -> Verdict:
        results: list[Tensor] = []
        for case in range(len(self.exercise.cases)):
            result = self.result(case)
            if isinstance(result, Verdict):
                break
            results.append(result)
        wrong = [case for case, given in enumerate(results) if not self.is_right(case, given)]
        if wrong:
            return Verdict("✗", self.mistake(results, wrong))
        if isinstance(result, Tensor):
            return Verdict("✓", self.exercise.success)
        if not results:
            return result
        worked, failed = self.exercise.described(len(results) - 1), self.exercise.described(len(results))
        return Verdict(result.sign, f"Right for {worked}. But for {failed}: {result.message}")

    def mistake(self, results: list[Tensor], wrong: list[int]) -> str:
        """What to say about wrong results, the most certain first."""
        first, wanted = results[wrong[0]], self.exercise.wanted[wrong[0]]
        again = self.result(wrong[0])
        if isinstance(again, Tensor) and not _same(again, first):
            return f"Two calls give different numbers: {self.exercise.chance}"
        if named := self.named(range(len(results)), results):
            return named
        if all(_same(results[case], as_tensor(self.exercise.wanted[case]).squeeze()) for case in wrong):
            return "The numbers are right, but an axis of size 1 is missing: name the one to squeeze, squeeze(-1)."
        if isinstance(wanted, bool):  # True and False agree by chance: no mistake is named
            if not first.ndim and float(first) in (0.0, 1.0):
                return f"{self.name} says {not wanted} for {self.exercise.described(wrong[0])}; {wanted} is right."
        elif named := self.named(wrong, results) or self.named(wrong[:1], results):
            return named
        if isinstance(wanted, tuple) and first.ndim == 1 and len(first) != len(wanted):
            return f"{self.name} should return {len(wanted)} numbers in a tuple; it returned {len(first)}."
        return f"{_difference(self.name, first, as_tensor(wanted))}{self.globals_hint()}"

    def named(self, where: Sequence[int], results: Sequence[Tensor]) -> str | None:
        """The first mistake that gives the learner's results in all of these cases."""
        for mistake in self.exercise.mistakes:
            made = (self.exercise.made(mistake, case) for case in where)
            if all(wrong is not None and _same(results[case], wrong) for case, wrong in zip(where, made)):
                return mistake.sentence
        return None

    def result(self, case: int) -> Tensor | Verdict:
        """The learner's result as a tensor, or what to say if there is none."""
        inputs, wanted = self.exercise.cases[case], self.exercise.wanted[case]
        fresh, watch = copied(inputs), _Watch(self.exercise.forbidden)
        try:
            with watch:
                got = self.run(*fresh)
        except Exception as error:  # whatever a learner's code raises is reported, and never stops the notebook
            if isinstance(error, NotImplementedError) and _is_own(error, self.answer):
                return self.unwritten
            hint = next((said for words, said in HINTS.items() if words in str(error)), watch.hint())
            if isinstance(error, AssertionError) and isinstance(wanted, bool):
                hint = " Return True or False instead."
            return Verdict("✗", f"{self.name} {_raised(error, self.answer)}{hint}{self.globals_hint()}")
        if watch.called:
            operator = ", which @ calls" if watch.called == "matmul" else ""
            return Verdict("✗", f"This exercise asks you to do without {watch.called}(){operator}.")
        if got is Ellipsis or (got is None and _is_stub(self.answer)):
            return self.unwritten
        if got is None:
            return Verdict("✗", f"{self.name} returned nothing. Is `return` missing from its last line?")
        if any(isinstance(x, Tensor) and x.ndim and not _same(x.double(), y.double()) for x, y in zip(inputs, fresh)):
            return Verdict("✗", f"{self.name} changes its input. Use operations that make a new tensor.")
        try:
            result = as_tensor(got)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            return Verdict("✗", _not_a_tensor(self.name, got, wanted))
        mask = isinstance(wanted, Tensor) and wanted.ndim and wanted.dtype == torch.bool
        if mask and torch.as_tensor(got).dtype != torch.bool and self.is_right(case, result):
            return Verdict("✗", "The values are right, but the dtype is not: return a boolean tensor.")
        return result

    def globals_hint(self) -> str:
        """Sizes that the answer reads from the notebook instead of from its arguments."""
        code, names = getattr(self.answer, "__code__", None), getattr(self.answer, "__globals__", {})
        reads = dict.fromkeys(s.argval for s in dis.get_instructions(code) if s.opname == "LOAD_GLOBAL") if code else {}
        used = [f"`{name}`" for name in reads if type(names.get(name)) in (int, float, Tensor)]
        return f" It reads {' and '.join(used)} from the notebook; use its own arguments instead." if used else ""


class _Watch(TorchFunctionMode):
    """Sees every call of torch: which forbidden one was made, and which shapes met where a call failed."""

    def __init__(self, forbidden: Sequence[str]) -> None:
        super().__init__()
        self.forbidden, self.called = forbidden, ""
        self.failed: tuple[str, list[tuple[int, ...]]] | None = None

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        name = getattr(func, "__name__", "").removeprefix("special_")
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if name in self.forbidden and not caller.startswith("einops"):  # rearrange may call permute, a learner may not
            self.called = name
        try:
            return func(*args, **(kwargs or {}))
        except (RuntimeError, IndexError):
            given = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg])]
            self.failed = self.failed or (name, [tuple(x.shape) for x in given if isinstance(x, Tensor)])
            raise

    def hint(self) -> str:
        """The shapes that met, and what is most likely missing."""
        if not self.failed or len(self.failed[1]) < 2:
            return ""
        name, (a, b, *_) = self.failed
        met = f" The shapes that met are {a} and {b}."
        longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
        if "matmul" in name or name in ("mm", "bmm", "__rmatmul__"):
            missing = ": is .mT missing?" if len(b) > 1 and a[-1:] == b[-1:] else "."
            if len(a) > 2 and a == b[::-1]:
                missing = ": .T reverses all axes, and .mT swaps only the last two."
            return f"{met} In a product, the last axis of the first is as long as the second's last but one{missing}"
        if len(longer) == len(shorter) + 1 and longer[:-1] == shorter and name not in ("stack", "cat", "einsum"):
            return f"{met} Is an axis missing: keepdim=True in a sum or maximum, or [..., None]?"
        return met


def copied(inputs: tuple) -> tuple:
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)


def as_tensor(value: object) -> Tensor:
    """A number, a tensor, an array, or a list of numbers, in float64."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(x, Tensor) and x.ndim == 0 for x in value):
        value = torch.stack([x.double() for x in value])
    return torch.as_tensor(value).detach().cpu().double()


def _near(got: Tensor, want: Tensor) -> Tensor:
    return torch.isclose(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


def _same(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and bool(_near(got, want).all())


def _is_stub(answer: Callable) -> bool:
    code = getattr(inspect.unwrap(answer), "__code__", None)
    return code is not None and {step.opname for step in dis.get_instructions(code)} <= UNWRITTEN


def _is_own(error: Exception, answer: Callable) -> bool:
    """Whether the learner's own code raised this, and not a library that it calls."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return getattr(answer, "__globals__", frame.f_globals) is frame.f_globals


def _raised(error: Exception, answer: Callable) -> str:
    """What was raised, and on which line of the answer."""
    code, trace = getattr(answer, "__code__", None), traceback.walk_tb(error.__traceback__)
    lines = [linecache.getline(code.co_filename, number).strip() for frame, number in trace if frame.f_code is code]
    where = f" at `{lines[-1]}`" if lines and lines[-1] else ""
    said = str(error).splitlines()[0].rstrip(".") if str(error) else "no message"
    return f"raised {type(error).__name__}{where}: {said}."


def _not_a_tensor(name: str, got: object, wanted: object) -> str:
    """What to do with a result that is neither a tensor nor a number."""
    kind = type(got).__name__
    if isinstance(wanted, tuple):
        return f"{name} must return a tuple of {len(wanted)} numbers, and nothing else."
    if isinstance(got, tuple) and hasattr(got, "indices"):
        return f"{name} returned values together with indices, as max(dim=…) and sort do: take .values or .indices."
    if isinstance(got, (list, tuple)) and got and all(isinstance(x, Tensor) and not x.is_meta for x in got):
        if _same(as_tensor(got[0]), as_tensor(wanted)):
            return f"{name} returned a {kind} of {len(got)}; the first alone is right: return it without the others."
        if len({x.shape for x in got}) == 1:
            return f"{name} returned a {kind} of {len(got)} tensors: make them one tensor with torch.stack."
    return f"{name} must return a tensor or a number; it returned a {kind}."


def _difference(name: str, result: Tensor, want: Tensor) -> str:
    """How a wrong result without a named mistake is related to the right one, or where it differs."""
    if result.ndim >= 2 and _same(result.mT, want):
        return f"{name} returns the right numbers, transposed: the last two axes are swapped."
    for axis in range(result.ndim):
        if result.shape[axis] == 1 and _same(result.squeeze(axis), want):
            return f"{name} returns the right numbers with an axis of size 1 left over (axis {axis}): squeeze it."
    if result.shape != want.shape:
        shape = f"the shape {tuple(want.shape)}" if want.ndim else "one number, or one True or False"
        return f"{name} should return {shape}; it returned the shape {tuple(result.shape)}."
    if _same(-result, want):
        return f"{name} returns the right numbers with the wrong sign."
    if result.isnan().any() and not want.isnan().any():
        return f"{name} returns NaN: inf − inf, 0 · inf or 0 / 0 was computed, or a row has nothing left to see."
    gap = (result - want).abs().nan_to_num(torch.inf).masked_fill(_near(result, want), 0.0)  # −inf − −inf is NaN
    place = tuple(int(index) for index in torch.unravel_index(gap.argmax(), want.shape))
    start = f"has the right shape, but at {list(place)} it gives" if place else "gives"
    numbers = (float(tensor[place]) for tensor in (result, want))
    got, right = (f"{n:.0f}" if n.is_integer() else f"{n:.6g}" for n in numbers)
    return f"{name} {start} {got}; {right} is right."
