"""Exercises of notebook 10: a mean without padding, the kind of a head, top-k weights, a search with a memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw
from attnlib.checks.memory import TOPK_ROWS, kept  # noqa: F401 (a table uses it)
from attnlib.memory import KVMemory


def masked_mean(states: Tensor, key_mask: Tensor) -> Tensor:
    """(batch, tokens, dim) and (batch, tokens) to means (batch, dim) over real tokens; padding may hold anything."""
    real = states.masked_fill(~key_mask.unsqueeze(-1), 0.0)  # (batch, tokens, dim)
    return real.sum(dim=1) / key_mask.sum(dim=1, keepdim=True)


def head_shares(weights: Tensor) -> Tensor:
    """(heads, tokens, tokens) to (heads, 3), the mean weight on the previous token, the next one, and the first."""
    before, after = (weights.diagonal(offset, dim1=-2, dim2=-1).mean(dim=-1) for offset in (-1, 1))
    return torch.stack([before, after, weights[:, 1:, 0].mean(dim=-1)], dim=-1)  # (heads, 3)


def topk_weights(scores: Tensor, top_k: int) -> Tensor:
    """Scaled scores (…, q_tokens, kv_tokens) to weights: softmax over each query's top_k best keys, else zero."""
    best, ids = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
    return torch.zeros_like(scores).scatter(-1, ids, torch.softmax(best, dim=-1))


def search(documents: Tensor, questions: Tensor, top_k: int) -> Tensor:
    """(documents, dim) and (questions, dim) to the ids (questions, top_k) with the largest cosines, best first."""
    keys = F.normalize(documents, dim=-1)[None, None]  # (1, 1, documents, dim)
    memory = KVMemory(len(documents), num_heads=1, head_dim=documents.shape[-1])
    memory.add(keys, keys)
    return memory.search(questions[None, None], top_k).ids[0, 0]


LENGTHS = (((7, 3), 5), ((2, 5, 1), 3), ((1,), 2), ((3, 3, 3), 3), ((130, 70), 2), ((4, 2, 3), 4))  # of the texts; dim
STATES = [draw(101 + i, (len(lengths), max(lengths), dim))[0] for i, (lengths, dim) in enumerate(LENGTHS)]
MEANS = [(x, torch.arange(x.shape[1]) < torch.tensor(lengths)[:, None]) for x, (lengths, _) in zip(STATES, LENGTHS)]
GAPS = torch.tensor([[True, False, True, True, False], [False, False, False, True, False]])
GAPPED = draw(104, (2, 5, 3))[0]
MEANS += [(STATES[-1], MEANS[-1][1].flip(1)), (GAPPED, GAPS), (GAPPED.masked_fill(~GAPS[..., None], torch.nan), GAPS)]
MEAN_TABLE = """
Right: each text is averaged over its own tokens, whatever the padding holds.
real = key_mask[..., None]; total = states.where(real, 0.0).sum(1); count = key_mask.sum(1, True)
mean = total / count; first = key_mask.int().argmax(1)
last = key_mask.shape[1] - 1 - key_mask.flip(1).int().argmax(1); at = lambda n: states[torch.arange(len(n)), n]
states.mean(1)  # The padding is counted too: leave out the tokens where key_mask is False.
total / states.shape[1]  # This divides by the number of all tokens: divide by the number of real ones in each text.
total  # This is the sum: divide it by the number of real tokens.
total / key_mask.sum(); total / (key_mask.sum() / len(states))  # Texts differ: count each text's own tokens.
total / (count + 1); total / count.sqrt()  # The divisor is count + 1, or a root: divide by the count itself.
torch.stack([x[: m.sum()].mean(0) for x, m in zip(states, key_mask)])  # Padding may be anywhere: use key_mask.
(total - at(first)) / (count - 1).clamp(min=1)  # The first real token counts too.
masked_mean(states, ~key_mask); masked_mean(states, ~key_mask).nan_to_num()  # The mask is inverted: True is real.
(states * real).sum(1) / count  # NaN · 0 is NaN: use masked_fill or torch.where.
states[key_mask].mean(0).expand(len(states), -1)  # The texts are mixed: take one mean for each text.
at(first); at(last)  # This is one token alone: average over all real ones.
states.where(real, -torch.inf).amax(1)  # This is the maximum: take the mean.
F.normalize(mean, dim=-1)  # The mean has length 1 here: that comes later, so leave it out.
mean.mean(-1)  # The mean over dim is one too many.
"""
check_masked_mean = Exercise(masked_mean, MEANS, MEAN_TABLE)

HEADS = ((3, 7), (2, 5), (5, 3), (1, 2), (12, 41))  # heads, tokens
PATTERNS = [(2 * draw(111 + i, (heads, n, n))[0]).softmax(-1) for i, (heads, n) in enumerate(HEADS)]
SHARES_TABLE = """
Right: three numbers say what kind of head this is.
beside = lambda offset: weights.diagonal(offset, dim1=-2, dim2=-1); first = weights[:, 1:, 0]
three = lambda a, b, c, by=torch.mean: torch.stack([by(numbers, -1) for numbers in (a, b, c)], -1)
most = weights.argmax(-1); place = torch.arange(weights.shape[-1]); right = head_shares(weights)
head_shares(weights.mT)  # Rows and columns are swapped: a row holds the weights of one query.
three(beside(1), beside(-1), first)  # Previous and next are swapped: previous is offset −1.
three(first, beside(-1), beside(1))  # The order is wrong: the first token comes last.
right.T  # The three numbers must be the last axis: use torch.stack(…, dim=-1).
three(beside(-1), beside(1), weights[:, :, 0])  # For the first token, leave out token 0 itself as a query.
three(beside(-1), beside(1), weights[:, :-1, -1])  # This is the weight on the last token: take the first.
three(beside(-1), beside(1), first, torch.sum)  # These are sums: take the means.
three(beside(-1), beside(1), first, torch.amax)  # These are the largest weights: take the means.
right * (weights.shape[-1] - 1) / weights.shape[-1]  # Only tokens − 1 queries have such a neighbour.
wins = (most[:, 1:] == place[:-1], most[:, :-1] == place[1:], most[:, 1:] == 0)
three(*(win.float() for win in wins))  # These are shares of queries: average the weights themselves.
three(weights.tril(-1).sum(-1), weights.triu(1).sum(-1), first)  # Take the token directly beside, not a whole side.
three(beside(-1), beside(1), weights[:, 0, 1:])  # This is the row of the first query: take the first key's column.
three(beside(0), beside(1), first); three(beside(-2), beside(2), first)  # The tokens beside have offsets −1 and 1.
right.mean(0)  # The heads are averaged: give three numbers for each head.
right.argmax(-1)  # This is the largest one's index: return all three numbers.
right / right.sum(-1, True)  # The three need not sum to 1: return them as they are.
"""
check_head_shares = Exercise(head_shares, [(weights,) for weights in PATTERNS], SHARES_TABLE)

TOP_K = [(*draw(121, (3, 5, 7), scale=2.0), 3), (*draw(122, (2, 3, 7, 5), scale=2.0), 2)]
TOP_K += [(*draw(123, (1, 4, 6)), 6), (*draw(124, (2, 3, 4)), 9), (*draw(125, (2, 5, 3)), 1)]
TOP_K += [(*draw(126, (1, 2, 130), scale=5.0), 8), (draw(127, (2, 5, 6))[0] - 200.0, 4), (*draw(128, (6, 6)), 2)]
TOPK_TABLE = f"""
Right: each query keeps its own best keys, and its weights sum to 1.
s = scores; average = lambda weights: weights; right = topk_weights(scores, top_k)
k = min(top_k, scores.shape[-1]); best = scores.topk(k).values; far = scores.abs().topk(k).indices
above = scores.masked_fill(scores <= best[..., -1:], -torch.inf).softmax(-1).nan_to_num()
above  # One key too few: the last one is dropped.
torch.zeros_like(scores).scatter(-1, far, scores.gather(-1, far).softmax(-1))  # Negative scores win here: drop the abs.
whole = kept(scores.flatten(-2), top_k * scores.shape[-2]).view_as(scores).softmax(-1).nan_to_num()
whole  # The best of the whole matrix are kept: each query keeps its own.
topk_weights(scores / scores.shape[-1] ** 0.5, top_k)  # The scores are scaled already: do not divide again.
right > 0; right * scores  # This is the mask, or weights times scores: return the weights.
topk_weights(scores.softmax(-1), top_k)  # This is a softmax of a softmax: take it once, over the best scores.
kept(scores, top_k, 0.0) / best.sum(-1, True); kept(scores, top_k).exp()  # Use a softmax: e^score over their sum.
kept(scores, top_k, 0.0)  # These are scores: take their softmax.
v = best.softmax(-1); v; F.pad(v, (0, scores.shape[-1] - v.shape[-1]))  # Put weights back to their keys: scatter.
scores[..., :top_k].softmax(-1)  # These are the first top_k keys: take the best ones.
{TOPK_ROWS}"""
check_topk_weights = Exercise(topk_weights, TOP_K, TOPK_TABLE)

LIBRARIES = ((11, 5, 7, 3), (13, 2, 3, 4), (3, 7, 5, 3), (5, 1, 2, 1), (130, 4, 6, 5), (4, 4, 4, 2))
DRAWN = [draw(131 + i, (n, dim), (n, 1), (asked, dim)) for i, (n, asked, dim, _) in enumerate(LIBRARIES)]
ASKED = [(texts * lengths.exp(), asked, top_k) for (texts, lengths, asked), (*_, top_k) in zip(DRAWN, LIBRARIES)]
SEARCH_TABLE = """
Right: the memory finds the nearest documents, best first.
unit = F.normalize(documents, dim=-1); cosines = F.normalize(questions, dim=-1) @ unit.T
ranked = lambda texts, best=True: (questions @ texts.T).topk(top_k, largest=best).indices
find = lambda n=top_k: search(documents, questions, n)
ranked(documents)  # Long documents win: give every document length 1 first.
ranked(F.normalize(documents, p=1, dim=-1))  # The absolute values sum to 1 here: make the length 1, with p=2.
ranked(documents / documents.square().sum(-1, True))  # This divides by the sum of squares: take its root, the length.
ranked(F.normalize(documents, dim=0))  # Normalise along the last axis, dim=-1.
find().flip(-1)  # The best document must come first.
ranked(unit, False)  # These are the least similar documents.
cosines.topk(top_k).values  # These are the cosines: return the ids.
find().sort(-1).values  # The ids are sorted by number: the best must come first.
torch.cdist(questions, documents).topk(top_k, largest=False).indices  # Distances depend on length: use cosines.
cosines.abs().topk(top_k).indices  # A cosine of −1 is the opposite: drop the abs.
search(documents[-top_k:], questions, top_k) + len(documents) - top_k  # The memory is too small: it forgot the first.
search(documents[:top_k], questions, top_k)  # Only the first top_k documents are searched.
search(questions, documents, min(top_k, len(questions)))  # Documents and questions are swapped.
find(len(documents)); find(1)  # Return top_k ids for each question.
find().T; find()[None, None]  # The axes are (questions, top_k), without the batch and the heads: .ids[0, 0].
"""
check_search = Exercise(search, ASKED, SEARCH_TABLE)
