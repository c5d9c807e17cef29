"""The approximate index: a view of the memory, and an honest one."""

import copy
import sys

import pytest
import torch

from attnlib.memory import IVFIndex, KVMemory


def memory_of(key, capacity=None):
    memory = KVMemory(capacity or key.shape[2], key.shape[1], key.shape[3], batch_size=key.shape[0])
    memory.add(key, -key)
    return memory


def test_import_attnlib_needs_no_faiss_and_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="faiss, which is not installed; run: pip install faiss-cpu$"):
        IVFIndex(KVMemory(3, 1, 2))


class TestWithFaiss:
    @pytest.fixture(autouse=True)
    def _faiss(self):
        pytest.importorskip("faiss", reason="faiss is an extra: pip install faiss-cpu")

    def test_probing_all_lists_is_exact(self):
        torch.manual_seed(0)
        memory = memory_of(torch.randn(2, 3, 97, 5), capacity=61)  # the ring has turned
        query = torch.randn(2, 3, 7, 5)
        index = IVFIndex(memory, num_lists=5, num_probes=5)
        for one, other in zip(memory.search(query, 11), index.search(query, 11)):
            torch.testing.assert_close(one, other)
        assert index.recall(query, 11) == 1.0

    def test_by_default_eight_lists_are_probed(self):
        torch.manual_seed(0)
        index = IVFIndex(memory_of(torch.eye(11)[None, None]), num_lists=11)  # a key in each
        assert (index.search(torch.randn(1, 1, 7, 11), 11).mask.sum(-1) == 8).all()

    def test_it_misses_most_of_random_keys_and_little_of_clustered_ones(self):
        torch.manual_seed(0)
        random = torch.nn.functional.normalize(torch.randn(1, 1, 4096, 64), dim=-1)
        centres = torch.nn.functional.normalize(torch.randn(64, 64), dim=-1)
        clustered = (centres[torch.arange(4096) % 64] + 0.01 * torch.randn(4096, 64))[None, None]
        query = torch.nn.functional.normalize(torch.randn(1, 1, 64, 64), dim=-1)
        near = (centres + 0.01 * torch.randn(64, 64))[None, None]
        assert IVFIndex(memory_of(random)).recall(query, 32) < 0.6
        assert IVFIndex(memory_of(clustered)).recall(near, 32) > 0.95

    def test_it_follows_the_memory(self):
        torch.manual_seed(0)
        memory = memory_of(torch.randn(2, 1, 50, 5), capacity=70)
        index, query = IVFIndex(memory, num_lists=3, num_probes=3), torch.randn(2, 1, 7, 5)
        changes = (
            lambda: memory.add(torch.randn(2, 1, 40, 5), torch.randn(2, 1, 40, 5)),
            lambda: memory.clear(rows=0),
            lambda: memory.clear(),
            lambda: memory.add(torch.randn(2, 1, 2, 5), torch.randn(2, 1, 2, 5)),
            lambda: memory.load_state_dict({**memory.state_dict(), "keys": torch.randn(2, 1, 70, 5)}),
            lambda: setattr(index, "memory", copy.deepcopy(memory)),
            lambda: setattr(index, "memory", memory_of(torch.randn(2, 1, 61, 5), capacity=70)),
        )
        for change in changes:
            index.search(query, 5)
            change()
            exact, found = index.memory.search(query, 5), index.search(query, 5)
            assert torch.equal(exact.mask, found.mask)
            assert torch.equal(exact.ids, found.ids)
            assert index.recall(query, 5) == 1.0

    def test_an_index_can_be_copied_and_goes_on_by_itself(self):
        torch.manual_seed(0)
        index, query = IVFIndex(memory_of(torch.randn(1, 1, 50, 5), capacity=70), num_lists=1), torch.randn(1, 1, 3, 5)
        before, twin = index.search(query, 4), copy.deepcopy(index)
        twin.memory.add(torch.randn(1, 1, 20, 5), torch.randn(1, 1, 20, 5))
        assert torch.equal(index.search(query, 4).ids, before.ids)
        assert torch.equal(twin.search(query, 4).ids, twin.memory.search(query, 4).ids)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_a_broken_key_is_never_found(self, bad):
        torch.manual_seed(0)
        key, query = torch.randn(1, 2, 50, 5), torch.randn(1, 2, 3, 5)
        key[:, 0, 7:13], key[:, 1] = bad, bad
        hits = IVFIndex(memory_of(key), num_lists=3, num_probes=3).search(query, 50)
        assert hits.mask.sum(-1).tolist() == [[[44] * 3, [0] * 3]]
        assert hits.scores[hits.mask].isfinite().all()

    def test_the_default_device_does_not_matter(self):
        torch.manual_seed(0)
        memory, query = memory_of(torch.randn(1, 2, 50, 5)), torch.randn(1, 2, 3, 5)
        with torch.device("meta"):
            found = IVFIndex(memory, num_lists=3, num_probes=3).search(query, 4)
        assert torch.equal(found.ids, memory.search(query, 4).ids)

    def test_scores_pass_their_gradient_to_the_query(self):
        memory = memory_of(torch.randn(1, 1, 50, 5))
        query = torch.randn(1, 1, 3, 5, requires_grad=True)
        hits = IVFIndex(memory).search(query, 2)
        (gradient,) = torch.autograd.grad(hits.scores.sum(), query)
        torch.testing.assert_close(gradient, hits.keys.sum(-2))

    @pytest.mark.parametrize(
        ("call", "error", "match"),
        [
            (lambda m: IVFIndex("memory"), TypeError, "memory must be a KVMemory; got str"),
            (lambda m: IVFIndex(m, num_lists=0), ValueError, "num_lists must be at least 1; got 0"),
            (lambda m: IVFIndex(m, num_probes=1.0), TypeError, "num_probes must be an int; got float"),
            (lambda m: IVFIndex(m).search(torch.ones(1, 2, 3, 4), 1), ValueError, "query must have shape .*heads=1"),
            (lambda m: IVFIndex(m).recall(torch.ones(1, 1, 3, 2), 0), ValueError, "top_k must be at least 1; got 0"),
        ],
    )
    def test_errors(self, call, error, match):
        with pytest.raises(error, match=match):
            call(KVMemory(3, 1, 2))
