"""A memory by its definition: lists of everything, in Python's own float64. Slow, and what KVMemory is held to."""


class ListMemory:
    """For each row a list of (id, keys of all heads, values of all heads), oldest first."""

    def __init__(self, capacity: int, batch_size: int) -> None:
        self.capacity = capacity
        self.rows: list[list] = [[] for _ in range(batch_size)]
        self.next = [0] * batch_size

    def add(self, key: list, value: list, mask: list | None = None) -> None:
        """Nested lists (batch, heads, tokens, dim), and (batch, tokens)."""
        for row, entries in enumerate(self.rows):
            for token in range(len(key[row][0])):
                if mask is None or mask[row][token]:
                    entry = [[head[token] for head in tensor[row]] for tensor in (key, value)]
                    entries.append((self.next[row], *entry))
                    self.next[row] += 1
            del entries[: max(0, len(entries) - self.capacity)]

    def clear(self, rows: list[int]) -> None:
        for row in rows:
            self.rows[row] = []

    def search(self, query: list) -> list:
        """(batch, heads, tokens): all as (score, id, key, value), in no particular order."""

        def scored(row: int, head: int, vector: list) -> list:
            return [
                (sum(a * b for a, b in zip(vector, keys[head])), number, keys[head], values[head])
                for number, keys, values in self.rows[row]
            ]

        return [
            [[scored(row, head, vector) for vector in tokens] for head, tokens in enumerate(heads)]
            for row, heads in enumerate(query)
        ]
