"""Encoded rows: features of values, members of lists, and which rows hold what training never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from modeling_flip import Field, FlipDataset, FlipProcessor
from modeling_flip.row_reader import MEMBER_SEPARATOR, read_columns

SCHEMA = [
    Field(name="movie", type="integer", min_count=2),
    Field(name="title", kind="text"),
    Field(name="tags", kind="list", separator="|"),
    Field(name="price", kind="numeric", type="number"),
    Field(name="history", kind="list", type="integer", features_of="movie"),
]
SEEN: list[dict[str, Any]] = [
    {"movie": 7, "title": "a", "tags": "x|y", "price": 1, "history": [8, 8]},
    {"movie": 7, "title": "b", "tags": "y", "price": 2, "history": [9]},
]
# movie: unknown 0, "7" 1, "8" 2 ("9" came once); tags: unknown 3, x 4, y 5; price: unknown 6, 7, 8; <MASK> 9


@pytest.fixture(scope="module")
def processor() -> FlipProcessor:
    return FlipProcessor.fit(SEEN, SCHEMA)


def row(**cells: Any) -> dict[str, Any]:
    return {**SEEN[0], **cells}


def test_feature_ids_by_hand(processor: FlipProcessor) -> None:
    rows = [
        row(),
        row(movie=8, tags="y|x", price=1.9, history=[7]),
        row(movie=9, tags="new|x", price=-5, history=[9, 7]),
        row(movie=99, tags=None, price=2.5, history=[]),
        row(movie=None, title=None, price="?", history=None),
    ]
    dataset = processor.encode(rows)
    ids = dataset.feature_ids()
    assert ids.dtype == np.int64
    assert ids.tolist() == [[1, 4, 7, 2], [2, 5, 7, 1], [0, 3, 7, 0], [0, 3, 8, 0], [0, 4, 6, 0]]
    lists = dataset.list_feature_ids()
    assert lists.dtype == np.int64
    assert lists.tolist() == [
        [[4, 5], [2, 2]],
        [[5, 4], [1, -1]],
        [[3, 4], [0, 1]],  # an unknown tag, and a rare movie
        [[3, -1], [0, -1]],  # missing lists: their fields' unknown features
        [[4, 5], [0, -1]],
    ]


def test_lists_are_padded_to_the_longest_of_the_batch(processor: FlipProcessor) -> None:
    dataset = processor.encode([row(tags="x|y|x|y"), row(tags="x", history=[7])])
    assert dataset.list_feature_ids().shape == (2, 2, 4)
    assert dataset.__getitems__([1]).list_feature_ids().tolist() == [[[4], [1]]]
    assert dataset.__getitems__([]).list_feature_ids().shape == (0, 2, 1)
    assert dataset.__getitems__([]).feature_ids().shape == (0, 4)
    assert processor.encode([row(tags=None, history=None)]).list_feature_ids().tolist() == [[[3], [0]]]


def test_rows_of_which_every_value_was_seen_need_no_values_of_their_own() -> None:
    processor = FlipProcessor.fit(SEEN, [SCHEMA[0], SCHEMA[3]])
    dataset = processor.encode(SEEN)
    assert len(dataset.local) == 0
    assert dataset.feature_ids().tolist() == [[1, 3], [1, 4]]
    assert dataset.list_feature_ids().shape == (2, 0, 1)
    assert not dataset.has_unseen_value.any()


@pytest.mark.parametrize(
    ("cells", "unseen"),
    [
        ({}, False),
        ({"title": "never"}, False),  # text is read, not known
        ({"price": 1e9}, False),  # a number falls into a bucket
        ({"price": "what"}, False),
        ({"movie": 99}, True),
        ({"movie": 9}, False),  # rare, but seen
        ({"movie": None, "tags": None, "price": None, "history": None, "title": None}, False),
        ({"tags": "y|x|y"}, False),  # another list of seen members
        ({"tags": "x|new"}, True),
        ({"history": [7, 8, 7]}, False),
        ({"history": [7, 99]}, True),
        ({"history": [7, 9]}, False),  # rare, but seen
    ],
    ids=str,
)
def test_a_row_has_an_unseen_value_where_a_category_or_a_member_is_new(
    processor: FlipProcessor, cells: dict[str, Any], unseen: bool
) -> None:
    assert processor.encode([row(), row(**cells), row()]).has_unseen_value.tolist() == [False, unseen, False]
    assert processor.encode([row(**cells), row(movie=99)]).__getitems__([0]).has_unseen_value.tolist() == [unseen]


def test_the_unseen_cells_are_those_of_the_new_values(processor: FlipProcessor) -> None:
    unseen = processor.encode([row(), row(movie=99, tags="x|never", price=1e9)]).is_unseen
    assert unseen.shape == (2, len(processor.fields))
    assert not unseen[0].any()
    assert [name for name, new in zip(processor.fields, unseen[1], strict=True) if new] == ["movie", "tags"]


some_rows = st.lists(
    st.fixed_dictionaries(
        {
            "movie": st.sampled_from([7, 8, 9, 10, None]),
            "title": st.sampled_from(["a", "c", None]),
            "tags": st.sampled_from(["x", "x|y", "z|x|y|y", None]),
            "price": st.sampled_from([0, 1.5, 9, None, "?"]),
            "history": st.lists(st.integers(6, 10), max_size=4),
        }
    ),
    min_size=1,
    max_size=8,
)


@given(some_rows, st.data())
def test_a_batch_is_what_its_rows_are_alone(
    processor: FlipProcessor, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    dataset = processor.encode(rows, np.arange(len(rows)) % 2)
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
    batch = dataset.__getitems__(index)
    assert batch.row_ids.tolist() == index
    assert batch.labels is not None
    assert batch.labels.tolist() == [r % 2 for r in index]
    lists = batch.list_feature_ids()
    for i, r in enumerate(index):
        alone = processor.encode([rows[r]])
        assert batch.feature_ids()[i].tolist() == alone.feature_ids()[0].tolist()
        width = alone.list_feature_ids().shape[2]
        assert lists[i, :, :width].tolist() == alone.list_feature_ids()[0].tolist()
        assert (lists[i, :, width:] == -1).all()
        assert batch.has_unseen_value[i] == alone.has_unseen_value[0]


@given(some_rows)
def test_the_members_of_a_list_are_those_of_a_loop(processor: FlipProcessor, rows: list[dict[str, Any]]) -> None:
    vocabulary = processor.vocabulary
    dataset = processor.encode(rows)
    lists, ids = dataset.list_feature_ids(), dataset.feature_ids()
    columns, _ = read_columns(rows, vocabulary.columns)
    features = {
        name: dict(
            zip(vocabulary.values[name].to_pylist(), vocabulary.value_features[offset + 1 :].tolist(), strict=False)
        )
        for name, offset in zip(vocabulary.fields, vocabulary.value_offsets, strict=False)
    }
    for i, (column, owner, unknown) in enumerate((("tags", "tags", 3), ("history", "movie", 0))):
        for r, text in enumerate(columns[column].to_pylist()):
            expected = (
                [unknown] if text is None else [features[owner].get(m, unknown) for m in text.split(MEMBER_SEPARATOR)]
            )
            found = lists[r, i]
            assert found[found >= 0].tolist() == expected
            assert ids[r, (1, 3)[i]] == expected[0]


def test_lengths_are_those_of_the_sentences(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit(SEEN, SCHEMA, wordpiece)
    dataset = processor.encode([row(), row(tags=None, title="a b c"), row(history=[1, 2, 3, 4])])
    assert dataset.token_tables is not None
    mask = processor.sentences(dataset)["attention_mask"]
    assert (dataset.lengths + 2).tolist() == mask.sum(1).tolist()
    assert FlipProcessor.fit(SEEN, SCHEMA).encode(SEEN).lengths.tolist() == [0, 0]


def test_an_epoch_is_the_batchs_too(processor: FlipProcessor) -> None:
    dataset = processor.encode(SEEN)
    dataset.epoch = 3
    assert isinstance(dataset[1], FlipDataset)
    assert (dataset[1].epoch, dataset[1].row_ids.tolist(), dataset[1].labels) == (3, [1], None)


def test_an_index_beyond_the_rows_is_a_row_of_a_later_epoch(processor: FlipProcessor) -> None:
    """So the sampler tells each worker the epoch, and nothing is told to a dataset of which workers hold copies."""
    dataset = processor.encode(SEEN)
    rows = len(dataset)
    later = dataset.__getitems__([2 * rows, 2 * rows + 1])
    assert (later.epoch, later.row_ids.tolist()) == (2, [0, 1])
    assert dataset.epoch == 0
    assert dataset[-1].row_ids.tolist() == [rows - 1]
    assert [row.row_ids.item() for row in iter(dataset)] == list(range(rows))  # it ends
    with pytest.raises(IndexError, match=f"row {rows} of {rows}"):
        dataset[rows]
