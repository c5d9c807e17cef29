"""How a learner's function is judged: run it on fresh inputs, and give the mistake its name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIGNS = {"passed": "✓", "failed": "✗", "not yet": "○"}


@dataclass(frozen=True)
class Verdict:
    """What a check has to say; true where the answer passed."""

    status: str
    message: str

    def __bool__(self) -> bool:
        return self.status == "passed"

    def __repr__(self) -> str:
        return f"{SIGNS[self.status]} {self.message}"


def judge(
    answer: Callable,
    reference: Callable,
    cases: Sequence[tuple],
    *,
    mistakes: Mapping[str, Callable] | None = None,
    success: str = "Right.",
) -> Verdict:
    """Compare a learner's function with a reference on every case.

    Args:
        answer: what the learner wrote.
        reference: gives the right result for the same arguments.
        cases: tuples of arguments, with unequal sizes, so that a mixed-up axis shows. Tensors are copied for each call.
        mistakes: a sentence that names a likely mistake, and a function that makes it. The first that gives the
            learner's results in every case is named, else the first that does so where the answer is wrong.
        success: what to say when everything is right.
    """
    if not callable(answer):
        return Verdict("failed", f"Hand over the function itself, uncalled; this is a {type(answer).__name__}.")
    name = getattr(answer, "__name__", type(answer).__name__)
    results: list[Tensor] = []
    for inputs in cases:
        result = _run(name, answer, inputs)
        if isinstance(result, Verdict) and not results:
            return result
        if isinstance(result, Verdict):  # it worked before: a wrong result there says more than an error here
            cases, stopped = cases[: len(results)], result
            break
        results.append(result)
    else:
        stopped = Verdict("passed", success)
    for inputs, result in zip(cases, results):
        want = torch.as_tensor(reference(*_copied(inputs))).detach().cpu().double()
        if not _same(result, want):
            named = _named(mistakes or {}, cases, results)
            if not named and (result.numel() != 1 or float(result) not in (0.0, 1.0)):  # True and False agree by chance
                named = _named(mistakes or {}, [inputs], [result])
            return Verdict("failed", named or _difference(name, result, want))
    return stopped


def differs(answer: Callable, inputs: tuple, shape: tuple[int, ...]) -> bool:
    """Whether two calls give two results, both of this shape: then there is chance in the answer."""
    try:
        one, other = (_tensor(answer(*_copied(inputs))) for _ in range(2))
    except Exception:  # the verdict tells what it raised
        return False
    if one is None or other is None:
        return False
    return one.shape == other.shape == shape and not torch.equal(one.nan_to_num(), other.nan_to_num())


def _run(name: str, answer: Callable, inputs: tuple) -> Tensor | Verdict:
    """The learner's result as a tensor, or what to say where there is none."""
    fresh = _copied(inputs)
    try:
        got = answer(*fresh)
    except Exception as error:  # whatever a learner's code raises is told, and never stops the notebook
        return Verdict("failed", f"{name} raised {type(error).__name__}: {error}")
    if got is None or got is Ellipsis:
        return Verdict("not yet", f"Not written yet: {name} returns nothing. Write it, and run this cell again.")
    if any(isinstance(x, Tensor) and not torch.equal(x, y) for x, y in zip(inputs, fresh)):
        return Verdict("failed", f"{name} changes its input. Use operations that make a new tensor.")
    result = _tensor(got)
    if result is None:
        return Verdict("failed", f"{name} must return a tensor or a number; it returned a {type(got).__name__}.")
    return result


def _copied(inputs: tuple) -> tuple:
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)


def _tensor(value: object) -> Tensor | None:
    try:
        return torch.as_tensor(value).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        return None


def _same(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and bool(_near(got, want).all())


def _near(got: Tensor, want: Tensor) -> Tensor:
    return torch.isclose(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


def _named(mistakes: Mapping[str, Callable], cases: Sequence[tuple], results: Sequence[Tensor]) -> str | None:
    """The first mistake that gives these results in all of these cases."""
    for sentence, mistake in mistakes.items():
        try:
            wrongs = [_tensor(mistake(*_copied(inputs))) for inputs in cases]
        except Exception:  # a mistake that cannot even run on a case is not the one that was made
            continue
        if all(wrong is not None and _same(result, wrong) for wrong, result in zip(wrongs, results)):
            return sentence
    return None


def _difference(name: str, result: Tensor, want: Tensor) -> str:
    """Where a result differs from the right one, for a mistake that has no name."""
    if result.shape != want.shape:
        shape = f"the shape {tuple(want.shape)}" if want.ndim else "one number, or one True or False"
        return f"{name} should return {shape}; it returned the shape {tuple(result.shape)}."
    if result.isnan().any() and not want.isnan().any():
        return (
            f"{name} returns NaN: somewhere inf − inf, 0 · inf or 0 / 0 was computed, or a row has nothing left to see."
        )
    gap = (result - want).abs().nan_to_num(torch.inf).masked_fill(_near(result, want), 0.0)  # −inf − −inf is NaN
    place = tuple(int(index) for index in torch.unravel_index(gap.argmax(), want.shape))
    start = f"has the right shape, but at {list(place)} it gives" if place else "gives"
    numbers = [float(tensor[place]) for tensor in (result, want)]
    got, right = (f"{n:.0f}" if all(x.is_integer() for x in numbers) else f"{n:.4f}" for n in numbers)
    if got == right:  # four decimals do not show how they differ
        got, right = (f"{n:.6g}" for n in numbers)
    return f"{name} {start} {got} where {right} is right."
