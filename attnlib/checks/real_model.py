"""Exercises of notebook 10: a mean without padding, the kind of a head, top-k weights, a search with a memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw
from attnlib.checks.memory import kept  # noqa: F401 (a table uses it)
from attnlib.memory import KVMemory


def masked_mean(states: Tensor, key_mask: Tensor) -> Tensor:
    real = states.masked_fill(~key_mask.unsqueeze(-1), 0.0)  # (batch, tokens, dim)
    return real.sum(dim=1) / key_mask.sum(dim=1, keepdim=True)


def head_shares(weights: Tensor) -> Tensor:
    before, after = (weights.diagonal(offset, dim1=-2, dim2=-1).mean(dim=-1) for offset in (-1, 1))
    return torch.stack([before, after, weights[:, 1:, 0].mean(dim=-1)], dim=-1)  # (heads, 3)


def topk_weights(scores: Tensor, top_k: int) -> Tensor:
    best, ids = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
    return torch.zeros_like(scores).scatter(-1, ids, torch.softmax(best, dim=-1))


def search(documents: Tensor, questions: Tensor, top_k: int) -> Tensor:
    keys = F.normalize(documents, dim=-1)[None, None]  # (1, 1, documents, dim)
    memory = KVMemory(len(documents), num_heads=1, head_dim=documents.shape[-1])
    memory.add(keys, keys)
    return memory.search(questions[None, None], top_k).ids[0, 0]


def padded(seed: int, *lengths: int, tokens: int, dim: int, fill: float | None = None, left: bool = False) -> tuple:
    (states,) = draw(seed, (len(lengths), tokens, dim))
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if left else mask
    return (states if fill is None else states.masked_fill(~mask.unsqueeze(-1), fill)), mask


def _weights(seed: int, heads: int, tokens: int) -> tuple[Tensor]:
    return (torch.softmax(2 * draw(seed, (heads, tokens, tokens))[0], dim=-1),)


def _library(seed: int, documents: int, questions: int, dim: int, top_k: int) -> tuple:
    texts, lengths, asked = draw(seed, (documents, dim), (documents, 1), (questions, dim))
    return texts * lengths.exp(), asked, top_k


MEANS = [padded(101, 7, 3, tokens=7, dim=5), padded(102, 2, 5, 1, tokens=5, dim=3)]
MEANS += [padded(103, 4, 2, 3, tokens=4, dim=4, left=True), padded(105, 1, tokens=1, dim=2)]
MEANS += [padded(106, 3, 3, 3, tokens=3, dim=3), padded(107, 130, 70, tokens=130, dim=2)]
MEANS += [padded(108, 2, 4, tokens=6, dim=3, fill=torch.nan)]
GAPS = torch.tensor([[True, False, True, True, False], [False, False, False, True, False]])
LIBRARIES = ((11, 5, 7, 3), (13, 2, 3, 4), (3, 7, 5, 3), (5, 1, 2, 1), (130, 4, 6, 5), (4, 4, 4, 2))

check_masked_mean = Exercise(
    "Check ``answer(states, key_mask)``: (batch, tokens, dim) and (batch, tokens) to the mean over the real tokens, "
    "(batch, dim); padding may hold anything.",
    masked_mean,
    [*MEANS, (*draw(104, (2, 5, 3)), GAPS)],
    """
    real = key_mask[..., None]; total = states.where(real, 0.0).sum(1); count = key_mask.sum(1, True)
    mean = total / count; first = key_mask.int().argmax(1)
    last = key_mask.shape[1] - 1 - key_mask.flip(1).int().argmax(1); at = lambda n: states[torch.arange(len(n)), n]
    states.mean(1)  # The padding is counted too: leave out the tokens where key_mask is False.
    total / states.shape[1]  # Divide by the number of real tokens of each text, not of all tokens.
    total  # This is the sum: divide it by the number of real tokens.
    total / key_mask.sum(); total / (key_mask.sum() / len(states))  # Texts differ: count each text's own tokens.
    total / (count + 1)  # The count is one too high.
    total / count.sqrt()  # Divide by the count itself, without a root.
    torch.stack([x[: m.sum()].mean(0) for x, m in zip(states, key_mask)])  # Padding may be anywhere: use key_mask.
    (total - at(first)) / (count - 1).clamp(min=1)  # The first real token counts too.
    masked_mean(states, ~key_mask); masked_mean(states, ~key_mask).nan_to_num()  # The mask is inverted: True is real.
    (states * real).sum(1) / count  # NaN · 0 is NaN: use masked_fill or torch.where.
    states[key_mask].mean(0).expand(len(states), -1)  # The texts are mixed: take one mean for each text.
    at(first); at(last)  # This is one token alone: average over all real ones.
    states.where(real, -torch.inf).amax(1)  # This is the maximum: take the mean.
    F.normalize(mean, dim=-1)  # The mean has length 1 here: that comes later, so leave it out.
    mean.mean(-1)  # The mean over dim is one too many.
    """,
    "Right: each text is averaged over its own tokens, whatever the padding holds.",
)

check_head_shares = Exercise(
    "Check ``answer(weights)``: (heads, tokens, tokens) to (heads, 3), the mean weight on the previous token, the next "
    "one, and the first.",
    head_shares,
    [_weights(111, 3, 7), _weights(112, 2, 5), _weights(113, 5, 3), _weights(114, 1, 2), _weights(115, 12, 41)],
    """
    beside = lambda offset: weights.diagonal(offset, dim1=-2, dim2=-1); first = weights[:, 1:, 0]
    three = lambda a, b, c, by=torch.mean: torch.stack([by(numbers, -1) for numbers in (a, b, c)], -1)
    most = weights.argmax(-1); place = torch.arange(weights.shape[-1]); right = head_shares(weights)
    head_shares(weights.mT)  # Rows and columns are swapped: a row holds the weights of one query.
    three(beside(1), beside(-1), first)  # Previous is offset −1.
    three(first, beside(-1), beside(1))  # The first token comes last.
    right.T  # The three numbers must be the last axis: use torch.stack(…, dim=-1).
    three(beside(-1), beside(1), weights[:, :, 0])  # For the first token, leave out token 0 itself as a query.
    three(beside(-1), beside(1), weights[:, :-1, -1])  # This is the weight on the last token: take the first.
    three(beside(-1), beside(1), first, torch.sum)  # These are sums: take the means.
    three(beside(-1), beside(1), first, torch.amax)  # These are maxima: take the means.
    right * (weights.shape[-1] - 1) / weights.shape[-1]  # Only tokens − 1 queries have such a neighbour.
    wins = (most[:, 1:] == place[:-1], most[:, :-1] == place[1:], most[:, 1:] == 0)
    three(*(win.float() for win in wins))  # These are shares of queries: average the weights themselves.
    three(weights.tril(-1).sum(-1), weights.triu(1).sum(-1), first)  # Take the token directly beside, not a whole side.
    three(beside(-1), beside(1), weights[:, 0, 1:])  # This is the row of the first query: take the first key's column.
    three(beside(0), beside(1), first)  # Offset 0 is the token itself.
    three(beside(-2), beside(2), first)  # These are two places away.
    right.mean(0)  # The heads are averaged: give three numbers for each head.
    right.argmax(-1)  # This is the largest one's index: return all three numbers.
    right / right.sum(-1, True)  # The three need not sum to 1: return them as they are.
    """,
    "Right: three numbers say what kind of head this is.",
)

TOP_K = [(*draw(121, (3, 5, 7), scale=2.0), 3), (*draw(122, (2, 3, 7, 5), scale=2.0), 2)]
TOP_K += [(*draw(123, (1, 4, 6)), 6), (*draw(124, (2, 3, 4)), 9), (*draw(125, (2, 5, 3)), 1)]
TOP_K += [(*draw(126, (1, 2, 130), scale=5.0), 8), (draw(127, (2, 5, 6))[0] - 200.0, 4), (*draw(128, (6, 6)), 2)]

check_topk_weights = Exercise(
    "Check ``answer(scores, top_k)``: scaled scores (…, q_tokens, kv_tokens) to weights of the same shape, with a "
    "softmax over the top_k best keys of each query and zero elsewhere.",
    topk_weights,
    TOP_K,
    """
    best = scores.topk(min(top_k, scores.shape[-1])).values; right = topk_weights(scores, top_k)
    far = scores.abs().topk(min(top_k, scores.shape[-1])).indices
    scores.softmax(-1)  # All keys have a weight: keep the top_k best of each query.
    kept(scores.softmax(-1), top_k, 0.0)  # The weights do not sum to 1: take the top_k first, then the softmax.
    kept(scores, top_k, 0.0).softmax(-1)  # exp(0) is 1: fill the others with −inf.
    kept(scores, top_k, -100.0).softmax(-1)  # Real scores may be lower than that: fill with −inf.
    w = kept(scores, top_k, dim=-2).softmax(-1); w; w.nan_to_num()  # These are the best queries of a key: use dim=-1.
    v = kept(scores, top_k).softmax(-2); v; v.nan_to_num()  # The keys compete: use dim=-1.
    kept(scores, top_k, largest=False).softmax(-1)  # These are the worst keys: keep the largest scores.
    kept(scores, top_k + 1).softmax(-1)  # One key too many is kept.
    above = scores.masked_fill(scores <= best[..., -1:], -torch.inf).softmax(-1).nan_to_num()
    kept(scores, max(top_k - 1, 1)).softmax(-1); above  # One key too few: the last one is dropped.
    torch.zeros_like(scores).scatter(-1, far, scores.gather(-1, far).softmax(-1))  # Drop the abs: large scores count.
    whole = kept(scores.flatten(-2), top_k * scores.shape[-2]).view_as(scores).softmax(-1).nan_to_num()
    whole  # The best of the whole matrix are kept: each query keeps its own.
    topk_weights(scores / scores.shape[-1] ** 0.5, top_k)  # The scores are scaled already: do not divide again.
    right > 0  # This is the mask: return the weights.
    right * scores  # These are weights times scores: return the weights alone.
    topk_weights(scores.softmax(-1), top_k)  # This is a softmax of a softmax: take it once, over the best scores.
    kept(scores, top_k, 0.0) / best.sum(-1, True); kept(scores, top_k).exp()  # Use a softmax: e^score over their sum.
    kept(scores, top_k, 0.0)  # These are scores: take their softmax.
    v = best.softmax(-1); v; F.pad(v, (0, scores.shape[-1] - v.shape[-1]))  # Put weights back to their keys: scatter.
    scores[..., :top_k].softmax(-1)  # These are the first top_k keys: take the best ones.
    kept(scores, top_k).isfinite() / best.shape[-1]  # All weights are equal.
    """,
    "Right: each query keeps its own best keys, and its weights sum to 1.",
)

check_search = Exercise(
    "Check ``answer(documents, questions, top_k)``: (documents, dim) and (questions, dim) to the ids (questions, "
    "top_k) of the documents with the largest cosines, best first.",
    search,
    [_library(131 + i, *sizes) for i, sizes in enumerate(LIBRARIES)],
    """
    unit = F.normalize(documents, dim=-1); cosines = F.normalize(questions, dim=-1) @ unit.T
    ranked = lambda texts, best=True: (questions @ texts.T).topk(top_k, largest=best).indices
    find = lambda n=top_k: search(documents, questions, n)
    ranked(documents)  # Long documents win: give every document length 1 first.
    ranked(F.normalize(documents, p=1, dim=-1))  # The absolute values sum to 1 here: make the length 1, with p=2.
    ranked(documents / documents.square().sum(-1, True))  # Divide by the length, which is the root of that sum.
    ranked(documents / documents.abs().amax(-1, True))  # Divide by the length, not by the largest number.
    ranked(F.normalize(documents, dim=0))  # Normalise along the last axis, dim=-1.
    find().flip(-1)  # The best document must come first.
    ranked(unit, False)  # These are the least similar documents.
    cosines.topk(top_k).values  # These are the cosines: return the ids.
    find().sort(-1).values  # The ids are sorted by number: the best must come first.
    torch.cdist(questions, documents).topk(top_k, largest=False).indices  # Distances depend on length: use cosines.
    cosines.abs().topk(top_k).indices  # A cosine of −1 is the opposite: drop the abs.
    late = search(documents[-top_k:], questions, top_k) + len(documents) - top_k
    late  # The capacity is too small: the memory forgot the first documents.
    search(documents[:top_k], questions, top_k)  # Only the first top_k documents are searched.
    search(questions, documents, min(top_k, len(questions)))  # Documents and questions are swapped.
    find(len(documents)); find(1)  # Return top_k ids for each question.
    find().T  # The axes are (questions, top_k).
    find()[None, None]  # Drop the axes of the batch and the heads: .ids[0, 0].
    find() + 1  # The ids start at 1: they must start at 0.
    """,
    "Right: the memory finds the nearest documents, best first.",
)
