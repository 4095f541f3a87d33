"""Rows of five fields, read by three families of tokenizers."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from modeling_flip import FlipDataset, FlipProcessor
from tests.modeling_flip.data_collator.batches import FIELDS, make_rows


@pytest.fixture(scope="module")
def processors(tokenizers: dict[str, PreTrainedTokenizerFast]) -> dict[str, FlipProcessor]:
    return {family: FlipProcessor.fit(make_rows(7), FIELDS, tokenizer) for family, tokenizer in tokenizers.items()}


@pytest.fixture(scope="module")
def datasets(processors: dict[str, FlipProcessor]) -> dict[str, FlipDataset]:
    """Sixteen rows; the last title of every eight was never seen."""
    return {family: processor.encode(make_rows(16)) for family, processor in processors.items()}
