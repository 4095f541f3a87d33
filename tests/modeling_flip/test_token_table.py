"""The token table: segments gathered into sentences, by hand and against a loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_flip.token_table import Segments, TokenTable, gather, gather_sentences

CLS, SEP, PAD = 101, 102, 0


def table_of(segments: list[tuple[list[int], list[bool]]]) -> TokenTable:
    return TokenTable.of_parts([part_of(segments)])


def part_of(segments: list[tuple[list[int], list[bool]]]) -> Segments:
    tokens = np.array([token for ids, _ in segments for token in ids], np.int32)
    is_value = np.array([flag for _, flags in segments for flag in flags], bool)
    return tokens, is_value, np.array([len(ids) for ids, _ in segments], np.int64)


# Values 0 to 2 were seen, 3 and 4 were not; value 1 has no tokens at all.
SEEN = table_of([([10, 11, 12], [False, True, False]), ([], []), ([20], [True])])
OTHERS = table_of([([30, 31], [False, True]), ([40, 41, 42, 43], [False, True, True, False])])


def sentences(value_ids: list[list[int]], fields: list[int], max_length: int = 99) -> dict[str, list[list[int]]]:
    made = gather_sentences(
        (SEEN, OTHERS),
        np.asarray(value_ids, np.int32).reshape(len(value_ids), len(fields)),
        np.asarray(fields),
        ([CLS], [SEP]),
        PAD,
        max_length,
    )
    assert {value.dtype for value in made.values()} == {np.dtype(np.int64)}
    return {key: value.tolist() for key, value in made.items()}


def test_sentences_by_hand() -> None:
    assert sentences([[0, 3], [2, 1], [1, 4]], [0, 1]) == {
        "input_ids": [
            [CLS, 10, 11, 12, 30, 31, SEP],
            [CLS, 20, SEP, PAD, PAD, PAD, PAD],
            [CLS, 40, 41, 42, 43, SEP, PAD],
        ],
        "attention_mask": [[1] * 7, [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]],
        "token_field_ids": [
            [-1, -1, 0, -1, -1, 1, -1],
            [-1, 0, -1, -1, -1, -1, -1],
            [-1, -1, 1, 1, -1, -1, -1],
        ],
    }


def test_fields_keep_their_numbers_where_only_some_are_gathered() -> None:
    assert sentences([[4, 2]], [2, 5])["token_field_ids"] == [[-1, -1, 2, 2, -1, 5, -1]]


def test_sentences_are_cut_before_the_last_special_token() -> None:
    assert sentences([[0, 4], [2, 1]], [0, 1], max_length=6) == {
        "input_ids": [[CLS, 10, 11, 12, 40, SEP], [CLS, 20, SEP, PAD, PAD, PAD]],
        "attention_mask": [[1] * 6, [1, 1, 1, 0, 0, 0]],
        "token_field_ids": [[-1, -1, 0, -1, -1, -1], [-1, 0, -1, -1, -1, -1]],
    }


@pytest.mark.parametrize(("rows", "width"), [([], 2), ([[1, 1]], 2)])
def test_no_rows_and_rows_without_tokens(rows: list[list[int]], width: int) -> None:
    made = sentences(rows, [0, 1])
    assert made["input_ids"] == [[CLS, SEP]] * len(rows)
    assert made["token_field_ids"] == [[-1] * width] * len(rows)


def test_several_special_tokens_and_none() -> None:
    ids = np.asarray([[2, 0]])
    for special in (([1, 2], [3, 4]), ([], []), ([], [9]), ([9], [])):
        made = gather_sentences((SEEN, OTHERS), ids, np.arange(2), special, PAD, 99)
        assert made["input_ids"].tolist() == [[*special[0], 20, 10, 11, 12, *special[1]]]
        assert made["attention_mask"].all()


segments = st.lists(st.lists(st.tuples(st.integers(1, 99), st.booleans()), max_size=5), max_size=5)


@given(segments, segments, st.integers(0, 4), st.integers(1, 3), st.integers(3, 14), st.data())
def test_sentences_are_those_of_a_loop(
    seen: list[list[tuple[int, bool]]],
    others: list[list[tuple[int, bool]]],
    size: int,
    num_fields: int,
    max_length: int,
    data: st.DataObject,
) -> None:
    values = [*seen, *others]
    ids = data.draw(
        st.lists(
            st.lists(st.integers(0, max(0, len(values) - 1)), min_size=num_fields, max_size=num_fields), max_size=size
        )
    )
    ids = ids if values else []
    tables = tuple(table_of([([t for t, _ in v], [f for _, f in v]) for v in part]) for part in (seen, others))
    value_ids = np.asarray(ids, np.int32).reshape(len(ids), num_fields)
    made = gather_sentences((tables[0], tables[1]), value_ids, np.arange(num_fields), ([CLS], [SEP]), PAD, max_length)
    expected = []
    for row in ids:
        tokens = [(token, f if is_value else -1) for f, v in enumerate(row) for token, is_value in values[v]]
        expected.append([(CLS, -1), *tokens[: max_length - 2], (SEP, -1)])
    width = max(map(len, expected), default=2)
    assert made["input_ids"].shape == (len(ids), width)
    for r, sentence in enumerate(expected):
        padded = [*sentence, *[(PAD, -1)] * (width - len(sentence))]
        assert made["input_ids"][r].tolist() == [token for token, _ in padded]
        assert made["token_field_ids"][r].tolist() == [field for _, field in padded]
        assert made["attention_mask"][r].tolist() == [1] * len(sentence) + [0] * (width - len(sentence))


@given(st.lists(segments, max_size=4))
def test_a_table_that_comes_in_parts_is_one_table(chunks: list[list[list[tuple[int, bool]]]]) -> None:
    table = TokenTable.of_parts(part_of([([t for t, _ in s], [f for _, f in s]) for s in c]) for c in chunks)
    flat = [segment for chunk in chunks for segment in chunk]
    assert table.tokens.tolist() == [token for segment in flat for token, _ in segment]
    assert table.is_value.tolist() == [flag for segment in flat for _, flag in segment]
    assert table.lengths.tolist() == [len(segment) for segment in flat]
    assert table.offsets.tolist() == [sum(map(len, flat[:i])) for i in range(len(flat) + 1)]
    assert (table.tokens.dtype, table.is_value.dtype, table.offsets.dtype) == (np.int32, bool, np.int64)


@given(sizes=st.tuples(st.integers(0, 5), st.integers(0, 5)), data=st.data())
def test_gather_reads_two_arrays_as_one(sizes: tuple[int, int], data: st.DataObject) -> None:
    first, second = np.arange(sizes[0]), 100 + np.arange(sizes[1])
    possible = st.lists(st.integers(0, max(0, sum(sizes) - 1)), max_size=8 if sum(sizes) else 0)
    index = np.asarray(data.draw(possible), np.int32).reshape(1, -1)
    np.testing.assert_array_equal(gather(first, second, index), np.concatenate([first, second])[index])
