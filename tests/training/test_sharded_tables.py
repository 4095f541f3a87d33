"""Tables in parts. What several processes compute with them is tested with real ones, in tests/distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_flip import FlipTrainingArguments
from modeling_flip.training.sharded_tables import CHUNK, _chunks, _ranges


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
def test_each_process_holds_the_rows_that_torch_gives_it(rows: int, processes: int) -> None:
    weight = torch.arange(rows)
    parts = [part.tolist() for part in weight.chunk(processes)]
    parts += [[]] * (processes - len(parts))
    assert [weight[start:stop].tolist() for start, stop in _ranges(rows, processes)] == parts


def test_a_part_is_sent_in_chunks_of_bounded_size() -> None:
    rows = torch.empty(CHUNK // 4 // 64 * 3 + 1, 64)
    sizes = [len(chunk) for chunk in _chunks(rows)]
    assert sum(sizes) == len(rows) and len(sizes) == 4 and max(sizes) * 64 * 4 <= CHUNK
    assert _chunks(rows[:0]) == ()


@pytest.mark.parametrize(("name", "value"), [("sparse_embeddings", True), ("mini_batch_tokens", 10)])
def test_what_does_not_go_together_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"shard_embeddings does not go together with {name}"):
        FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, shard_embeddings=True, **{name: value})
