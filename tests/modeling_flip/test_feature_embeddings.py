"""Features of every kind to embeddings and first-order terms, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modeling_flip.configuration_flip import FlipConfig
from modeling_flip.feature_embeddings import FeatureEmbeddings, FeatureTable

NUM_FEATURES, SIZE = 12, 3
# Four fields; the first and the third are lists: [1, 2, 2] and [8], [3] and [7, 8].
ROWS = torch.tensor([[1, 4, 8, 10], [3, 5, 7, 10]])
LISTS = torch.tensor([[[1, 2, 2], [8, -1, -1]], [[3, -1, -1], [7, 8, -1]]])
MEMBERS = [[[1, 2, 2], [4], [8], [10]], [[3], [5], [7, 8], [10]]]  # of each row's fields
LOOKED_UP = [1, 2, 3, 4, 5, 7, 8, 10]


def make_features(first_order: bool = True, **settings: Any) -> FeatureEmbeddings:
    sizes = {"num_features": NUM_FEATURES, "num_fields": 4, "embedding_size": SIZE, "list_fields": [0, 2]}
    torch.manual_seed(0)
    return FeatureEmbeddings(FlipConfig(towers="tabular", **sizes | settings), first_order)


def mean(table: torch.Tensor, members: list[int]) -> torch.Tensor:
    return sum((table[i] for i in members), torch.zeros(table.shape[1])) / len(members)


def test_a_field_gives_its_features_row_and_a_list_the_mean_of_its_members() -> None:
    features = make_features()
    embeddings = features(ROWS, LISTS)
    assert embeddings.shape == (2, 4, SIZE)
    for row, fields in enumerate(MEMBERS):
        for field, members in enumerate(fields):
            torch.testing.assert_close(embeddings[row, field], mean(features.embedding.weight, members))


def test_the_linear_term_is_the_sum_over_fields_of_their_means() -> None:
    features = make_features()
    weight = features.first_order.weight
    expected = [float(sum(mean(weight.detach(), members) for members in fields)) for fields in MEMBERS]
    torch.testing.assert_close(features.linear_term(ROWS, LISTS), torch.tensor(expected))


@pytest.mark.parametrize("list_fields", [[], [3], [0, 1, 2, 3]])
def test_lists_may_stand_anywhere_or_nowhere(list_fields: list[int]) -> None:
    """A list of one is its member, to the bit."""
    features, plain = make_features(list_fields=list_fields), make_features(list_fields=[])
    members = ROWS[:, list_fields, None]
    assert torch.equal(features(ROWS, members), plain(ROWS))
    assert torch.equal(features.linear_term(ROWS, members), plain.linear_term(ROWS))
    assert torch.equal(features.squared_norm(ROWS, members), plain.squared_norm(ROWS))


def test_a_member_has_its_share_of_the_gradient_and_what_is_not_named_has_none() -> None:
    features = make_features()
    (features(ROWS, LISTS).sum() + features.linear_term(ROWS, LISTS).sum()).backward()
    share = torch.zeros(NUM_FEATURES)
    for fields in MEMBERS:
        for members in fields:
            for i in members:
                share[i] += 1 / len(members)
    torch.testing.assert_close(features.embedding.weight.grad, share[:, None].expand(-1, SIZE))
    torch.testing.assert_close(features.first_order.weight.grad, share[:, None])
    assert sorted(share.nonzero().flatten().tolist()) == LOOKED_UP


@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_norm_is_of_all_features_or_with_sparse_gradients_of_each_that_is_looked_up_once(
    first_order: bool, sparse: bool
) -> None:
    features = make_features(first_order)
    weights = [features.embedding.weight] + ([features.first_order.weight] if first_order else [])
    for table in features.tables:
        table.sparse = sparse
    rows = LOOKED_UP if sparse else list(range(len(weights[0])))
    norm = features.squared_norm(ROWS, LISTS)
    torch.testing.assert_close(norm, sum((weight[rows] ** 2).sum() for weight in weights))
    if sparse:  # the gradient is of all rows of a step: tests/training/test_sparse.py
        assert not norm.requires_grad
        return
    norm.backward()
    for weight in weights:
        by_hand = torch.zeros_like(weight)
        by_hand[rows] = 2 * weight.detach()[rows]
        torch.testing.assert_close(weight.grad.to_dense(), by_hand)


def test_more_padding_changes_nothing() -> None:
    features = make_features()
    padded = torch.cat([LISTS, torch.full((2, 2, 4), -1)], dim=2)
    torch.testing.assert_close(features(ROWS, padded), features(ROWS, LISTS), rtol=1e-6, atol=0)
    torch.testing.assert_close(features.linear_term(ROWS, padded), features.linear_term(ROWS, LISTS))
    assert torch.equal(features.squared_norm(ROWS, padded), features.squared_norm(ROWS, LISTS))


def test_a_table_is_looked_up_once_and_only_where_the_batch_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[FeatureTable, set[int]]] = []
    rows = FeatureEmbeddings._rows

    def spy(table: FeatureTable, ids: torch.Tensor) -> torch.Tensor:
        asked.append((table, set(ids.flatten().tolist())))
        return rows(table, ids)

    monkeypatch.setattr(FeatureEmbeddings, "_rows", staticmethod(spy))
    features = make_features()
    features(ROWS, LISTS)
    features.linear_term(ROWS, LISTS)
    assert asked == [(features.embedding, set(LOOKED_UP)), (features.first_order, set(LOOKED_UP))]


def test_no_rows_are_no_error() -> None:
    features = make_features()
    assert features(ROWS[:0], LISTS[:0]).shape == (0, 4, SIZE)
    assert features.linear_term(ROWS[:0], LISTS[:0]).shape == (0,)
    features.embedding.sparse = features.first_order.sparse = True
    assert features.squared_norm(ROWS[:0], LISTS[:0]).item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_is_the_tables(dtype: torch.dtype) -> None:
    features = make_features().to(dtype)
    assert features(ROWS, LISTS).dtype == features.linear_term(ROWS, LISTS).dtype == dtype


def test_a_linear_term_is_there_only_where_a_tower_wants_it() -> None:
    assert list(make_features(first_order=False).state_dict()) == ["embedding.weight"]


def test_lists_that_are_missing_are_asked_for() -> None:
    features = make_features()
    with pytest.raises(
        ValueError, match=r"list_feature_ids is missing; fields \[0, 2\] are lists: pass everything that"
    ):
        features(ROWS)
    with pytest.raises(ValueError, match=r"list_feature_ids is of shape \(2, 1, 3\); fields \[0, 2\] are lists"):
        features(ROWS, LISTS[:, :1])
