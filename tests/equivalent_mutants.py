"""Mutants that change nothing on any input that the exercise allows: the line that differs, and the reason."""

ROWS = """
same: return bool((b - a).abs().max() <= 1e-05)  # an absolute value has no sign
same: return bool((a - b).abs().max() < 1e-05)  # rounding decides whether a difference is exactly 1e-05
cosine_context: directions = tokens / tokens.norm(dim=1, keepdim=True)  # tokens have two axes, so 1 is the last
cosine_context: return torch.softmax(directions @ directions.T, dim=1) @ tokens  # scores have two axes, 1 is the last
scaled_weights: scores = query @ key.T / query.shape[1] ** 0.5  # a query has two axes, so 1 is the last
scaled_weights: scores = query @ key.T / key.shape[-1] ** 0.5  # queries and keys share head_dim
scaled_weights: return torch.softmax(scores, dim=1)  # scores have two axes, so 1 is the last
self_attention: scores = query @ key.T / key.shape[1] ** 0.5  # a key has two axes, so 1 is the last
self_attention: return torch.softmax(scores, dim=1) @ value  # scores have two axes, so 1 is the last
leak: difference = layer(x) - layer(changed)  # an absolute value has no sign
split_heads: return x.view(batch, tokens, num_heads, d_out // num_heads).transpose(2, 1)  # swaps are symmetric
join_heads: return heads.transpose(2, 1).flatten(-2)  # swaps are symmetric
join_heads: return heads.transpose(1, 2).flatten(2)  # of four axes, 2 is the last but one
multi_head: batch, tokens, d_out = key.shape  # query, key and value have the same shape
multi_head: batch, tokens, d_out = value.shape  # query, key and value have the same shape
multi_head: query, key, value = (part.view(sizes).transpose(2, 1) for part in (query, key, value))  # symmetric
multi_head: scores = query @ key.mT / key.shape[-1] ** 0.5  # query, key and value have the same head_dim
multi_head: scores = query @ key.mT / value.shape[-1] ** 0.5  # query, key and value have the same head_dim
multi_head: return (weights @ value).transpose(2, 1).flatten(-2)  # swaps are symmetric
multi_head: return (weights @ value).transpose(1, 2).flatten(2)  # of four axes, 2 is the last but one
loops_equation: return 'head uqery key -> head key'  # a summed axis may have any name
loops_equation: return 'head qeury key -> head key'  # a summed axis may have any name
loops_equation: return 'head qurey key -> head key'  # a summed axis may have any name
loops_equation: return 'head queyr key -> head key'  # a summed axis may have any name
topk_attention: scores, ids = (query @ key.mT / query.shape[1] ** 0.5).topk(top_k)  # a query has two axes
topk_attention: scores, ids = (query @ key.mT / key.shape[-1] ** 0.5).topk(top_k)  # queries are as long as keys
topk_attention: weights = torch.softmax(scores, dim=1)  # scores have two axes, so 1 is the last
hash: return torch.cat([projected, -projected], dim=-1).argmax(dim=1)  # a matrix has two axes, so 1 is the last
hash: return torch.cat([projected, -projected], dim=1).argmax(dim=-1)  # a matrix has two axes, so 1 is the last
sort_and_undo: undo = torch.empty_like(order).scatter_(-1, order, places)  # a vector has only one axis
online_step: new_top = torch.maximum(scores.max(), top)  # a maximum does not depend on the order
online_step: return [new_top, total * (top - new_top).exp() + (scores - new_top).exp().sum()]  # a list says the same
overlapping: return torch.softmax(once, dim=-1) @ values  # a vector has only one axis
cache_step: visible = torch.ones_like(scores, dtype=torch.bool).tril(len(past_value))  # as many values as keys
cache_step: scores = query @ keys.T / query.shape[1] ** 0.5  # a query has two axes, so 1 is the last
cache_step: scores = query @ keys.T / key.shape[-1] ** 0.5  # queries and keys share head_dim
cache_step: scores = query @ keys.T / past_key.shape[-1] ** 0.5  # queries and keys share head_dim
cache_step: return torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=1) @ values  # scores have two axes
head_shares: before, after = (weights.diagonal(offset, dim1=-2, dim2=-1).mean(dim=1) for offset in (-1, 1))  # two axes
head_shares: return torch.stack([before, after, weights[:, 1:, 0].mean(dim=1)], dim=-1)  # a column has two axes
head_shares: return torch.stack([before, after, weights[:, 1:, 0].mean(dim=-1)], dim=1)  # 1 is the last axis
topk_weights: best, ids = scores.topk(min(top_k, scores.shape[-1]))  # topk takes the last axis
topk_weights: best, ids = scores.topk(min(scores.shape[-1], top_k), dim=-1)  # a minimum does not depend on the order
search: keys = F.normalize(documents)[None, None]  # normalize takes axis 1, and a matrix has two
search: keys = F.normalize(documents, dim=1)[None, None]  # a matrix has two axes, so 1 is the last
search: memory = KVMemory(len(documents), num_heads=1, head_dim=documents.shape[1])  # a matrix has two axes
search: memory = KVMemory(len(documents), num_heads=1, head_dim=questions.shape[-1])  # documents are as long
search: return memory.search(questions[None, None], top_k).ids[-1, 0]  # there is one row
search: return memory.search(questions[None, None], top_k).ids[0, -1]  # there is one head
"""

EQUIVALENT: dict[str, dict[str, str]] = {}  # of each check: the line, and the reason
for row in ROWS.strip().splitlines():
    name, _, rest = row.partition(": ")
    line, _, reason = rest.partition("  # ")
    EQUIVALENT.setdefault(f"check_{name}", {})[line] = reason
