"""The trained encoder beside transformers on the same files: python run.py bench encoder

First, last states must be equal for twenty texts, alone and padded, and so must the vectors of all timed texts. Then
texts per second, from strings to vectors: short texts (about 30 word pieces) and long ones (about 320), one at a time
and in batches of 32. transformers has two sides: texts in the order in which they come, as the model's page shows, and
sorted by length first, as sentence-transformers does. The sides take turns, in a new order each round; medians.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.testing import assert_close

from attnlib import Encoder, load_encoder
from attnlib.real_model import _folder

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))


class Transformers:
    """The same files as the model's page reads them."""

    def __init__(self) -> None:
        folder = _folder(None)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last states (texts, tokens, 384), and which tokens are real (texts, tokens)."""
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self.model(**inputs).last_hidden_state, inputs["attention_mask"].bool()

    def encode(self, texts: Sequence[str], batch_size: int, by_length: bool) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if by_length else list(range(len(texts)))
        vectors = torch.empty(len(texts), 384)
        for start in range(0, len(texts), batch_size):
            batch = order[start : start + batch_size]
            states, real = self.states([texts[i] for i in batch])
            means = (states * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
            vectors[batch] = F.normalize(means, dim=-1)
        return vectors


def assert_equal(ours: Encoder, theirs: Transformers) -> None:
    """All numbers of the last states of all texts of tests/bert_states.py, alone and padded to the longest."""
    from bert_states import STATES

    together, real = theirs.states(list(STATES))
    ids = torch.zeros(real.shape, dtype=torch.int64)
    for row, text in zip(ids, STATES):
        encoded = ours.tokenizer.encode(text).ids
        row[: len(encoded)] = torch.tensor(encoded)
        alone, _ = theirs.states([text])
        assert_close(ours.hidden_states(text)[-1], alone[0], atol=1e-5, rtol=0)
    assert_close(ours(ids, real)[real], together[real], atol=1e-5, rtol=0)
    print(f"{len(STATES)} texts: last states equal to those of transformers {transformers.__version__}, to 1e-5")


def some_texts(count: int, fewest: int, most: int) -> list[str]:
    """Neighbouring words of the README, as many as a seed says."""
    words, draw = (ROOT / "README.md").read_text(encoding="utf-8").split(), random.Random(0)
    lengths = [draw.randint(fewest, most) for _ in range(count)]
    starts = [draw.randrange(600) for _ in range(count)]
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths)]


def medians(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each side."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    shuffler = random.Random(0)
    for _ in range(rounds):
        for name in shuffler.sample(list(sides), len(sides)):
            start = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ours, theirs = load_encoder(), Transformers()
    assert_equal(ours, theirs)
    print(f"\n{'texts per second':34}{'attnlib':>9}{'as they come':>18}{'by length':>18}")
    for kind, texts in {"short": some_texts(128, 3, 24), "long": some_texts(32, 150, 200)}.items():
        for batch_size in (1, 32):
            timed = texts[: 16 * batch_size]
            sides = {
                "attnlib": lambda t=timed, b=batch_size: ours.encode(t, batch_size=b),
                "as they come": lambda t=timed, b=batch_size: theirs.encode(t, b, False),
                "by length": lambda t=timed, b=batch_size: theirs.encode(t, b, True),
            }
            expected = sides["attnlib"]()
            for side in sides.values():
                assert_close(side(), expected, atol=1e-5, rtol=0)
            first, *others = (len(timed) / t for t in medians(sides, arguments.rounds).values())
            cells = "".join(f"{speed:9.1f} ({first / speed:.2f}×)" for speed in others)
            print(f"{f'{kind}, batches of {batch_size}':34}{first:9.1f}{cells}")
    print("in brackets: the speed of attnlib divided by that one")


if __name__ == "__main__":
    main()
