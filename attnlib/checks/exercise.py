"""An exercise as data: the right answer, the inputs it is tried on, and the mistakes that are worth naming."""

import dis
import functools
import inspect
import linecache
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

IN_EVERY_TABLE = {"torch": torch, "F": F, "nn": nn, "math": math, "rearrange": rearrange}
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
        """Return this verdict if the answer passed, else raise an AssertionError with the message."""
        if not self.passed:
            raise AssertionError(self.message)
        return self

    def __bool__(self) -> bool:
        """A bare ``assert check(answer)`` shows the message, because what fails here is not the assert."""
        return self.require().passed

    def __repr__(self) -> str:
        return f"{self.sign} {self.message}"


class Mistake(NamedTuple):
    """A sentence that names a mistake, and a function that makes it (from ``code``, an expression in the arguments)."""

    sentence: str
    code: str
    function: Callable


class Exercise:
    """A check that learners call with their own function: ``check_softmax(my_softmax)`` gives a ``Verdict``.

    Args:
        doc: what the function must do, with shapes. It becomes the docstring.
        reference: the right answer. Its parameters are the names that the mistakes use.
        cases: tuples of arguments, of unequal sizes, so that a mixed-up axis shows. Ordinary numbers first.
        mistakes: a table as text. Each line is an expression in the reference's parameters that makes a mistake, and a
            comment that names it. The comment may go on in the lines below; an expression without one shares that of
            the expression above. Names come from the reference's module. A mapping of sentences to functions works
            too. The first mistake that fits is named.
        success: what a learner reads when everything is right.
        forbidden: names of functions that the exercise asks the learner to write without.
        chance: what to say if two calls give two results.
        adapt: makes the function that is run on the cases, if that is not the learner's own. The reference and the
            mistakes go through it as well.
        describe: says in words what is special about a case. Default: the shapes of its tensors.
    """

    def __init__(
        self,
        doc: str,
        reference: Callable,
        cases: Sequence[tuple],
        mistakes: str | Mapping[str, Callable],
        success: str,
        *,
        forbidden: Sequence[str] = (),
        chance: str = "Two calls give different numbers: nothing in this exercise is left to chance.",
        adapt: Callable[[Callable], Callable] = lambda answer: answer,
        describe: Callable[..., str] | None = None,
    ) -> None:
        self.__doc__ = doc
        self.reference, self.cases, self.success = reference, list(cases), success
        self.forbidden, self.chance, self.adapt, self.describe = tuple(forbidden), chance, adapt, describe
        self.solve = adapt(reference)
        self._mistakes = mistakes

    @functools.cached_property
    def mistakes(self) -> list[Mistake]:
        if isinstance(self._mistakes, Mapping):
            return [Mistake(sentence, "", function) for sentence, function in self._mistakes.items()]
        names = IN_EVERY_TABLE | self.reference.__globals__
        parameters = ", ".join(inspect.signature(self.reference).parameters)
        return [
            Mistake(sentence, code, eval(f"lambda {parameters}: {code}", dict(names)))
            for sentence, code in _rows(self._mistakes)
        ]

    def __call__(self, answer: Callable) -> Verdict:
        if not callable(answer):
            return Verdict("✗", f"Pass the function itself, without calling it; this is a {type(answer).__name__}.")
        with torch.random.fork_rng(devices=[]):
            return _Judge(self, answer).verdict()


class _Judge:
    """One answer on trial: run it on every case, then find the most useful thing to say."""

    def __init__(self, exercise: Exercise, answer: Callable) -> None:
        self.exercise, self.answer = exercise, answer
        self.name = getattr(answer, "__name__", type(answer).__name__)
        self.run = exercise.adapt(answer)

    def verdict(self) -> Verdict:
        results: list[Tensor] = []
        wrong: list[int] = []
        stopped = Verdict("✓", self.exercise.success)
        for inputs in self.exercise.cases:
            result = self.result(inputs)
            if isinstance(result, Verdict):
                stopped = result
                break
            results.append(result)
            if not _same(result, _tensor(self.wanted(inputs))):
                wrong.append(len(results) - 1)
        if not wrong:
            return self.after_right_ones(stopped, len(results))
        inputs, result = self.exercise.cases[wrong[0]], results[wrong[0]]
        again = self.result(inputs)
        if isinstance(again, Tensor) and not _same(again, result):
            return Verdict("✗", self.exercise.chance)
        wanted = self.wanted(inputs)
        said = self.named(range(len(results)), results)
        if not said and all(self.squeezed(self.exercise.cases[i], results[i]) for i in wrong):
            said = "The numbers are right, but an axis of size 1 is missing: name the one to squeeze, squeeze(-1)."
        if not said and not isinstance(wanted, bool):  # True and False agree by chance
            said = self.named(wrong, results) or self.named(wrong[:1], results)
        return Verdict("✗", said or self.unnamed(inputs, result, wanted))

    def squeezed(self, inputs: tuple, result: Tensor) -> bool:
        return _same(result, _tensor(self.exercise.solve(*_copied(inputs))).squeeze())

    def unnamed(self, inputs: tuple, result: Tensor, wanted: object) -> str:
        """What to say of a wrong result that no mistake in the table gives."""
        want = _tensor(wanted)
        if isinstance(wanted, bool) and not result.ndim and float(result) in (0.0, 1.0):
            return f"{self.name} says {not wanted} for {_described(self.exercise, inputs)}; {wanted} is right."
        if isinstance(wanted, tuple) and result.ndim == 1 and result.shape != want.shape:
            return f"{self.name} should return {len(wanted)} numbers in a tuple; it returned {len(result)}."
        difference = _relation(self.name, result, want) or _difference(self.name, result, want)
        return f"{difference}{self.globals_hint()}"

    def after_right_ones(self, stopped: Verdict, count: int) -> Verdict:
        """The last word where no result was wrong: all right, or an error after ``count`` right results."""
        if stopped.passed or not count:
            return stopped
        worked, failed = (_described(self.exercise, self.exercise.cases[i]) for i in (count - 1, count))
        return Verdict(stopped.sign, f"Right for {worked}. But for {failed}: {stopped.message}")

    def wanted(self, inputs: tuple) -> object:
        with torch.random.fork_rng(devices=[]):  # a seed that the reference sets must not help the answer
            return self.exercise.solve(*_copied(inputs))

    def result(self, inputs: tuple) -> Tensor | Verdict:
        """The learner's result as a tensor, or what to say if there is none."""
        fresh, watch, wanted = _copied(inputs), _Watch(self.exercise.forbidden), self.wanted(inputs)
        try:
            with watch:
                got = self.run(*fresh)
        except AssertionError as error:
            advice = " Return True or False instead." if isinstance(wanted, bool) else ""
            return Verdict("✗", f"{self.name} {_raised(error, self.answer)}{advice}")
        except Exception as error:  # whatever a learner's code raises is told, and never stops the notebook
            if isinstance(error, NotImplementedError) and _is_own(error, self.answer):
                return self.unwritten()
            hint = watch.hint()
            if "torch.return_types" in str(error):
                hint = " max(dim=…), sort and topk return values together with indices: take .values or .indices."
            return Verdict("✗", f"{self.name} {_raised(error, self.answer)}{hint}{self.globals_hint()}")
        if watch.called:
            return Verdict("✗", f"This exercise asks you to do without {watch.called}().")
        if got is Ellipsis or (got is None and _is_stub(self.answer)):
            return self.unwritten()
        if got is None:
            return Verdict("✗", f"{self.name} returned nothing. Is `return` missing from its last line?")
        if any(isinstance(x, Tensor) and x.ndim and not _identical(x, y) for x, y in zip(inputs, fresh)):
            return Verdict("✗", f"{self.name} changes its input. Use operations that make a new tensor.")
        try:
            result = _tensor(got)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            return Verdict("✗", _not_a_tensor(self.name, got, wanted))
        if isinstance(wanted, Tensor) and wanted.dtype == torch.bool and wanted.ndim:
            is_bool = isinstance(got, Tensor) and got.dtype == torch.bool
            if not is_bool and _same(result, _tensor(wanted)):
                return Verdict("✗", "The values are right, but the dtype is not: return a boolean tensor.")
        return result

    def unwritten(self) -> Verdict:
        return Verdict("○", f"Not written yet: write {self.name}, and run this cell again.")

    def named(self, where: Sequence[int], results: Sequence[Tensor]) -> str | None:
        """The first mistake that gives the learner's results in all of these cases."""
        for mistake in self.exercise.mistakes:
            try:
                makes = self.exercise.adapt(mistake.function)
                made = (_tensor(makes(*_copied(self.exercise.cases[i]))) for i in where)
                if all(_same(results[i], wrong) for i, wrong in zip(where, made)):
                    return mistake.sentence
            except Exception:  # a mistake that cannot even run on a case is not the one that was made
                continue
        return None

    def globals_hint(self) -> str:
        """Sizes that the answer reads from the notebook instead of from its arguments."""
        code, names = getattr(self.answer, "__code__", None), getattr(self.answer, "__globals__", {})
        used = [n for n in getattr(code, "co_names", ()) if type(names.get(n)) in (int, float, Tensor)]
        if not used:
            return ""
        return f" It reads {' and '.join(f'`{n}`' for n in used)} from the notebook; use its own arguments instead."


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
            tensors = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg])]
            self.failed = self.failed or (name, [tuple(x.shape) for x in tensors if isinstance(x, Tensor)])
            raise

    def hint(self) -> str:
        """The shapes that met, and the likeliest thing that is missing."""
        if not self.failed or len(self.failed[1]) < 2:
            return ""
        name, (a, b, *_) = self.failed
        met = f" The shapes that met are {a} and {b}."
        longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
        if "matmul" in name or name in ("mm", "bmm", "__rmatmul__"):
            missing = ": is .mT missing?" if len(b) > 1 and len(a) > 0 and a[-1] == b[-1] else "."
            if len(a) > 2 and a == b[::-1]:
                missing = ": .T reverses all axes, and .mT swaps only the last two."
            return f"{met} A product needs the last axis of the first to be the last but one of the second{missing}"
        if len(longer) == len(shorter) + 1 and longer[:-1] == shorter and name not in ("stack", "cat", "einsum"):
            return f"{met} Is an axis missing: keepdim=True in a sum or maximum, or [..., None]?"
        return met


def draw(seed: int, *shapes: tuple[int, ...], scale: float = 1.0) -> tuple[Tensor, ...]:
    """Normal random tensors of these shapes, for a case."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(shape, generator=generator) for shape in shapes)


def _rows(table: str) -> Iterator[tuple[str, str]]:
    """(sentence, code) for each expression of a table of mistakes."""
    rows: list[list[str]] = []  # [code, words, words, …]
    for code, _, words in (line.partition("#") for line in table.splitlines()):
        if code.strip():
            rows.append([code.strip()])
        if words:
            rows[-1].append(words.strip())
    sentence = ""
    for code, *comment in rows:
        sentence = " ".join(comment) or sentence
        yield sentence, code


def _copied(inputs: tuple) -> tuple:
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)


def _tensor(value: object) -> Tensor:
    """A number, a tensor, an array, or a list of numbers, in float64."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(x, Tensor) and x.ndim == 0 for x in value):
        value = torch.stack([x.double() for x in value])
    return torch.as_tensor(value).detach().cpu().double()


def _identical(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else torch.equal(a, b)


def _near(got: Tensor, want: Tensor) -> Tensor:
    return torch.isclose(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


def _same(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and bool(_near(got, want).all())


def _is_stub(answer: Callable) -> bool:
    code = getattr(inspect.unwrap(answer), "__code__", None)
    return code is not None and {step.opname for step in dis.get_instructions(code)} <= UNWRITTEN


def _is_own(error: Exception, answer: Callable) -> bool:
    """Whether the learner's own code raised this, and not a library that it calls."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    scope = trace.tb_frame.f_globals if trace else None
    return getattr(answer, "__globals__", scope) is scope


def _raised(error: Exception, answer: Callable) -> str:
    """What was raised, and on which line of the answer."""
    code, line, trace = getattr(answer, "__code__", None), "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is code:
            line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip()
        trace = trace.tb_next
    where = f" at `{line}`" if line else ""
    said = str(error).splitlines()[0] if str(error) else "no message"
    advice = " Count axes from the end: dim=-1 is the last." if said.startswith("Dimension out of range") else ""
    return f"raised {type(error).__name__}{where}: {said}.{advice}"


def _described(exercise: Exercise, inputs: tuple) -> str:
    if exercise.describe:
        return exercise.describe(*inputs)
    names = inspect.signature(exercise.solve).parameters
    shapes = [f"{name} {tuple(x.shape)}" for name, x in zip(names, inputs) if isinstance(x, Tensor)]
    return " and ".join(shapes) or str(inputs)


def _not_a_tensor(name: str, got: object, wanted: object) -> str:
    """What to do with a result that is no tensor and no number."""
    kind = type(got).__name__
    if isinstance(wanted, tuple):
        return f"{name} must return a tuple of {len(wanted)} numbers, and nothing else."
    if isinstance(got, tuple) and hasattr(got, "indices"):
        return f"{name} returned values together with indices, as max(dim=…) and sort do: take .values or .indices."
    if isinstance(got, (list, tuple)) and got and all(isinstance(x, Tensor) for x in got):
        if _same_or_error(got[0], wanted):
            return f"{name} returned a {kind} of {len(got)}; the first alone is right: return it without the others."
        if len({x.shape for x in got}) == 1:
            return f"{name} returned a {kind} of {len(got)} tensors: make them one tensor with torch.stack."
        return f"{name} returned a {kind} of {len(got)} tensors; return one tensor."
    return f"{name} must return a tensor or a number; it returned a {kind}."


def _same_or_error(got: object, want: object) -> bool:
    try:
        return _same(_tensor(got), _tensor(want))
    except (TypeError, ValueError, RuntimeError):
        return False


def _relation(name: str, result: Tensor, want: Tensor) -> str | None:
    """How a wrong result is related to the right one, for mistakes that every exercise shares."""
    if result.ndim >= 2 and _same(result.mT, want):
        return f"{name} returns the right numbers, transposed: the last two axes are swapped."
    for axis in range(result.ndim):
        if result.shape[axis] == 1 and _same(result.squeeze(axis), want):
            return f"{name} returns the right numbers with an axis of size 1 left over (axis {axis}): squeeze it."
    if result.shape == want.shape and _same(-result, want) and not _same(result, want):
        return f"{name} returns the right numbers with the wrong sign."
    return None


def _difference(name: str, result: Tensor, want: Tensor) -> str:
    """Where a result differs from the right one, for a mistake that has no name."""
    if result.shape != want.shape:
        shape = f"the shape {tuple(want.shape)}" if want.ndim else "one number, or one True or False"
        return f"{name} should return {shape}; it returned the shape {tuple(result.shape)}."
    if result.isnan().any() and not want.isnan().any():
        return f"{name} returns NaN: inf − inf, 0 · inf or 0 / 0 was computed, or a row has nothing left to see."
    gap = (result - want).abs().nan_to_num(torch.inf).masked_fill(_near(result, want), 0.0)  # −inf − −inf is NaN
    place = tuple(int(index) for index in torch.unravel_index(gap.argmax(), want.shape))
    start = f"has the right shape, but at {list(place)} it gives" if place else "gives"
    numbers = [float(tensor[place]) for tensor in (result, want)]
    got, right = (f"{n:.0f}" if all(x.is_integer() for x in numbers) else f"{n:.4f}" for n in numbers)
    if got == right:  # four decimals do not show how they differ
        got, right = (f"{n:.6g}" for n in numbers)
    return f"{name} {start} {got}; {right} is right."
