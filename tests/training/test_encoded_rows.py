"""Rows encoded in parts and on the disk are the same as rows encoded at once and in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from modeling_flip.feature_vocabulary import FeatureVocabulary
from modeling_flip.fields import Field
from modeling_flip.processing_flip import FlipProcessor
from modeling_flip.sentences import value_words
from modeling_flip.training import encoded_rows
from modeling_flip.training.encoded_rows import fit_and_encode, open_split
from modeling_flip.training.splits import SPLITS, RawSplits, Source, in_memory

SCHEMA = [
    Field(name="user", type="integer", min_count=2),
    Field(name="price", kind="numeric", num_buckets=3),
    Field(name="seen", kind="list", separator="|", features_of="item"),
    Field(name="item"),
    Field(name="tags", kind="list", separator="|"),
    Field(name="story", kind="text"),
    Field(name="session", hash_size=3),
    Field(name="city", max_size=2),
]
CELLS = {
    "user": ["1", "007", "7", "42", None, "x"],
    "price": ["1", "2.5", "2.50", "-3", "dear", None],
    "seen": ["a|b", "b", "c|a", None],
    "item": ["a", "b", "c", "d", "Ünïcödé", ""],
    "tags": ["x|y", "y", "z", None],
    "session": ["s1", "s2", "s3", "s4", "2", None],
    "city": ["Rome", "Oslo", "Lima", "Kyiv", None],
    "story": ["once upon a time", "the end.", None, "a b c d"],
}
rows = st.lists(
    st.fixed_dictionaries({name: st.sampled_from(cells) for name, cells in CELLS.items()}), min_size=3, max_size=40
)


def a_source(table: pa.Table, codes: np.ndarray, seed: int, part: int) -> Source:
    """Rows of all splits, one after the other in the file, in any order within their splits, read so many at once."""
    places = np.zeros(len(codes), np.int64)
    for code in range(len(SPLITS)):
        mine = np.flatnonzero(codes == code)
        places[mine] = np.random.default_rng(seed).permutation(len(mine))
    whole = in_memory(table, Path("log"))

    def batches(names: Any = None) -> Any:
        return iter(table.select(names or table.column_names).to_batches(part))

    return Source("train", type(whole)(whole.path, whole.schema, batches, whole.num_rows), codes, places, {})


@given(rows=rows, data=st.data())
def test_parts_on_the_disk_equal_the_whole_in_memory(
    rows: list[dict[str, Any]],
    data: st.DataObject,
    tmp_path_factory: Any,
    wordpiece: PreTrainedTokenizerBase,
) -> None:
    table = pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in CELLS]))
    codes = np.array(
        data.draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, -1]), min_size=len(rows), max_size=len(rows))), np.int8
    )
    codes[:3] = [0, 1, 2]
    source = a_source(table, codes, data.draw(st.integers(0, 9)), data.draw(st.integers(1, 7)))
    raw = RawSplits("", lambda: [source])
    with_text = data.draw(st.booleans())
    tokenizer = wordpiece if with_text else None
    folder = tmp_path_factory.mktemp("encoded")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoded_rows, "VALUES_AT_ONCE", data.draw(st.integers(1, 5)))
        patched.setattr(encoded_rows, "ROWS_AT_ONCE", data.draw(st.integers(1, 9)))
        small = type("Small", (RawSplits,), {"parts": lambda self, names: RawSplits.parts(self, names, rows=1)})(
            "", raw.find
        )
        made = fit_and_encode(
            small, SCHEMA, lambda fit: FlipProcessor(tokenizer, fit()), folder, workers=data.draw(st.integers(1, 3))
        )
        expected = FlipProcessor(tokenizer, FeatureVocabulary.fit(raw["train"].to_table(), SCHEMA))
        assert made.vocabulary == expected.vocabulary
        assert made.vocabulary.fingerprint == expected.vocabulary.fingerprint
        for split in SPLITS:
            ours, theirs = open_split(folder / split, made), expected.encode(raw[split].to_table())
            assert len(ours) == len(theirs)
            assert ours.feature_ids().tolist() == theirs.feature_ids().tolist()
            assert ours.list_feature_ids().tolist() == theirs.list_feature_ids().tolist()
            assert ours.is_unseen.tolist() == theirs.is_unseen.tolist()
            assert list(value_words(ours)) == list(value_words(theirs))
            assert ours.lengths.tolist() == theirs.lengths.tolist()
            if with_text:
                for key, value in expected.sentences(theirs).items():
                    assert made.sentences(ours)[key].tolist() == value.tolist()
    assert not (folder / "codes.bin").exists()
