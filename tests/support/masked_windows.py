"""Windows of random ids in memory, of which some have no label: what trains and heals without a data set."""

import numpy as np

VOCAB = 53


class MaskedWindows:
    """Windows of 2 to 14 random ids, of which some have no label."""

    def __init__(self, count: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.lengths = random.integers(2, 15, count)
        self.rows = []
        for length in self.lengths:
            ids = random.integers(0, VOCAB, length)
            labels = np.where(random.random(length) < 0.3, -100, ids)
            self.rows.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "length": int(length)})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]
