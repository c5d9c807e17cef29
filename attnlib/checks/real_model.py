"""Exercises of notebook 10: a mean without padding, the kind of a head, top-k weights, a search with a memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw
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


def averaged(states: Tensor, seen: Tensor, count: Tensor | float | None = None) -> Tensor:
    """The mean of the states that are seen, or their sum divided by another count."""
    real = states.masked_fill(~seen.unsqueeze(-1), 0.0)
    return real.sum(1) / (seen.sum(1, keepdim=True) if count is None else count)


def largest(states: Tensor, key_mask: Tensor) -> Tensor:
    return states.masked_fill(~key_mask.unsqueeze(-1), -torch.inf).amax(1)


def chosen(states: Tensor, places: Tensor) -> Tensor:
    """The state at one place of each text."""
    return states[torch.arange(len(states)), places]


def beside(weights: Tensor, offset: int) -> Tensor:
    return weights.diagonal(offset, dim1=-2, dim2=-1)


def to_first(weights: Tensor) -> Tensor:
    return weights[:, 1:, 0].mean(-1)


def three(*numbers: Tensor, dim: int = -1) -> Tensor:
    return torch.stack(numbers, dim)


def how_often(weights: Tensor) -> Tensor:
    """How many queries look most at the token before, at the one after, and at the first."""
    most, places = weights.argmax(-1), torch.arange(weights.shape[-1])
    shares = [(most[:, 1:] == places[:-1]), (most[:, :-1] == places[1:]), most[:, 1:] == 0]
    return three(*(share.float().mean(-1) for share in shares))


def kept(scores: Tensor, top_k: int, fill: float = -torch.inf, dim: int = -1, largest: bool = True) -> Tensor:
    """Scores with all but the best along an axis filled."""
    ids = scores.topk(min(top_k, scores.shape[dim]), dim, largest).indices
    return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter(dim, ids, True), fill)


def above(scores: Tensor, top_k: int) -> Tensor:
    """The mistake that drops the last of the best."""
    last = scores.topk(min(top_k, scores.shape[-1])).values[..., -1:]
    return scores.masked_fill(scores <= last, -torch.inf).softmax(-1).nan_to_num()


def by_size(scores: Tensor, top_k: int) -> Tensor:
    ids = scores.abs().topk(min(top_k, scores.shape[-1])).indices
    return torch.zeros_like(scores).scatter(-1, ids, scores.gather(-1, ids).softmax(-1))


def everywhere(scores: Tensor, top_k: int) -> Tensor:
    """The mistake of one list of the best for a whole matrix."""
    flat = scores.flatten(-2)
    return kept(flat, top_k * scores.shape[-2]).view_as(scores).softmax(-1).nan_to_num()


def ranked(documents: Tensor, questions: Tensor, top_k: int, largest: bool = True) -> Tensor:
    return (questions @ documents.T).topk(top_k, largest=largest).indices


def cosines(documents: Tensor, questions: Tensor) -> Tensor:
    return F.normalize(questions, dim=-1) @ F.normalize(documents, dim=-1).T


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


GAPS = torch.tensor([[True, False, True, True, False], [False, False, False, True, False]])
LIBRARIES = ((11, 5, 7, 3), (13, 2, 3, 4), (3, 7, 5, 3), (5, 1, 2, 1), (130, 4, 6, 5), (4, 4, 4, 2))

check_masked_mean = Exercise(
    "Check ``answer(states, key_mask)``: (batch, tokens, dim) and (batch, tokens) to the mean over the real tokens, "
    "(batch, dim); padding may hold anything.",
    masked_mean,
    [
        padded(101, 7, 3, tokens=7, dim=5),
        padded(102, 2, 5, 1, tokens=5, dim=3),
        padded(103, 4, 2, 3, tokens=4, dim=4, left=True),
        (*draw(104, (2, 5, 3)), GAPS),
        padded(105, 1, tokens=1, dim=2),
        padded(106, 3, 3, 3, tokens=3, dim=3),
        padded(107, 130, 70, tokens=130, dim=2),
        padded(108, 2, 4, tokens=6, dim=3, fill=torch.nan),
    ],
    """
    states.mean(1)  # The padding is counted too: leave out the tokens where key_mask is False.
    averaged(states, key_mask, states.shape[1])  # Divide by the number of real tokens of each text, not of all tokens.
    averaged(states, key_mask, 1.0)  # This is the sum: divide it by the number of real tokens.
    averaged(states, key_mask, key_mask.sum())  # The count runs over the whole batch: count each text's own tokens.
    averaged(states, key_mask, key_mask.sum() / len(states))  # Texts differ in length: count each text's own tokens.
    averaged(states, key_mask, key_mask.sum(1, True) + 1)  # The count is one too high.
    averaged(states, ~key_mask).nan_to_num(); averaged(states, ~key_mask)  # The mask is inverted: True is a real token.
    (states * key_mask[..., None]).sum(1) / key_mask.sum(1, True)  # NaN · 0 is NaN: use masked_fill or torch.where.
    states[key_mask].mean(0).expand(len(states), -1)  # The texts are mixed: take one mean for each text.
    chosen(states, key_mask.int().argmax(1))  # This is the first token alone: average over all real ones.
    chosen(states, key_mask.shape[1] - 1 - key_mask.flip(1).int().argmax(1))  # This is the last token alone.
    largest(states, key_mask)  # This is the maximum: take the mean.
    F.normalize(averaged(states, key_mask), dim=-1)  # The mean has length 1 here: that comes later, so leave it out.
    averaged(states.masked_fill(~key_mask.unsqueeze(-1), 0.0), key_mask).mean(-1)  # The mean over dim is one too many.
    """,
    "Right: each text is averaged over its own tokens, whatever the padding holds.",
)

check_head_shares = Exercise(
    "Check ``answer(weights)``: (heads, tokens, tokens) to (heads, 3), the mean weight on the previous token, the next "
    "one, and the first.",
    head_shares,
    [_weights(111, 3, 7), _weights(112, 2, 5), _weights(113, 5, 3), _weights(114, 1, 2), _weights(115, 12, 41)],
    """
    head_shares(weights.mT)  # Rows and columns are swapped: a row holds the weights of one query.
    three(beside(weights, 1).mean(-1), beside(weights, -1).mean(-1), to_first(weights))  # Previous is offset −1.
    three(to_first(weights), beside(weights, -1).mean(-1), beside(weights, 1).mean(-1))  # The first token comes last.
    head_shares(weights).T  # The three numbers must be the last axis: use torch.stack(…, dim=-1).
    three(beside(weights, -1).mean(-1), beside(weights, 1).mean(-1), weights[:, :, 0].mean(-1))  # [CLS] asks too here.
    three(beside(weights, -1).mean(-1), beside(weights, 1).mean(-1), weights[:, :-1, -1].mean(-1))  # That is the last.
    three(beside(weights, -1).sum(-1), beside(weights, 1).sum(-1), weights[:, 1:, 0].sum(-1))  # Sums: take the means.
    head_shares(weights) * (weights.shape[-1] - 1) / weights.shape[-1]  # Only tokens − 1 queries have such a neighbour.
    three(beside(weights, -1).amax(-1), beside(weights, 1).amax(-1), weights[:, 1:, 0].amax(-1))  # Means, not maxima.
    how_often(weights)  # This counts where a query looks most: take the mean of the weights.
    three(beside(weights, 0).mean(-1), beside(weights, 1).mean(-1), to_first(weights))  # Offset 0 is the token itself.
    three(beside(weights, -2).mean(-1), beside(weights, 2).mean(-1), to_first(weights))  # These are two places away.
    head_shares(weights).mean(0)  # The heads are averaged: give three numbers for each head.
    head_shares(weights).argmax(-1)  # This is the largest one's index: return all three numbers.
    head_shares(weights) / head_shares(weights).sum(-1, True)  # The three need not sum to 1: return them as they are.
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
    scores.softmax(-1)  # All keys have a weight: keep the top_k best of each query.
    kept(scores.softmax(-1), top_k, 0.0)  # The weights do not sum to 1: take the top_k first, then the softmax.
    kept(scores, top_k, 0.0).softmax(-1)  # exp(0) is 1: fill the others with −inf.
    kept(scores, top_k, -100.0).softmax(-1)  # Real scores may be lower than that: fill with −inf.
    kept(scores, top_k, dim=-2).softmax(-1).nan_to_num()  # These are the best queries of a key: use dim=-1.
    kept(scores, top_k, dim=-2).softmax(-1)  # These are the best queries of a key: use topk along dim=-1.
    kept(scores, top_k).softmax(-2).nan_to_num(); kept(scores, top_k).softmax(-2)  # The keys compete: use dim=-1.
    kept(scores, top_k, largest=False).softmax(-1)  # These are the worst keys: keep the largest scores.
    kept(scores, top_k + 1).softmax(-1)  # One key too many is kept.
    kept(scores, max(top_k - 1, 1)).softmax(-1); above(scores, top_k)  # One key too few: the last one is dropped.
    by_size(scores, top_k)  # Scores are compared by size, so one far below 0 is kept: drop the abs.
    everywhere(scores, top_k)  # The best of the whole matrix are kept: each query keeps its own.
    topk_weights(scores / scores.shape[-1] ** 0.5, top_k)  # The scores are scaled already: do not divide again.
    topk_weights(scores, top_k) > 0  # This is the mask: return the weights.
    topk_weights(scores, top_k) * scores  # These are weights times scores: return the weights alone.
    kept(scores, top_k, 0.0)  # These are scores: take their softmax.
    scores.topk(min(top_k, scores.shape[-1])).values.softmax(-1)  # Put the weights back to their keys, with scatter.
    scores[..., :top_k].softmax(-1)  # These are the first top_k keys: take the best ones.
    kept(torch.zeros_like(scores) + scores, top_k).isfinite() / min(top_k, scores.shape[-1])  # All weights are equal.
    """,
    "Right: each query keeps its own best keys, and its weights sum to 1.",
)

check_search = Exercise(
    "Check ``answer(documents, questions, top_k)``: (documents, dim) and (questions, dim) to the ids (questions, "
    "top_k) of the documents with the largest cosines, best first.",
    search,
    [_library(131 + i, *sizes) for i, sizes in enumerate(LIBRARIES)],
    """
    ranked(documents, questions, top_k)  # Long documents win: give every document length 1 first.
    ranked(F.normalize(documents, dim=0), questions, top_k)  # Normalise along the last axis, dim=-1.
    search(documents, questions, top_k).flip(-1)  # The best document must come first.
    ranked(F.normalize(documents, dim=-1), questions, top_k, False)  # These are the least similar documents.
    cosines(documents, questions).topk(top_k).values  # These are the cosines: return the ids.
    search(documents, questions, top_k).sort(-1).values  # The ids are sorted by number: the best must come first.
    torch.cdist(questions, documents).topk(top_k, largest=False).indices  # Distances depend on length: use cosines.
    cosines(documents, questions).abs().topk(top_k).indices  # A cosine of −1 is the opposite: drop the abs.
    search(documents[-top_k:], questions, top_k)  # The capacity is too small: the memory forgot the first documents.
    search(documents[:top_k], questions, top_k)  # Only the first top_k documents are searched.
    search(questions, documents, min(top_k, len(questions)))  # Documents and questions are swapped.
    search(documents, questions, len(documents)); search(documents, questions, 1)  # Return top_k ids for each question.
    search(documents, questions, top_k).T  # The axes are (questions, top_k).
    search(documents, questions, top_k)[None, None]  # Drop the axes of the batch and the heads: .ids[0, 0].
    search(documents, questions, top_k) + 1  # The ids start at 1: they must start at 0.
    """,
    "Right: the memory finds the nearest documents, best first.",
)
