"""The penalty on embeddings."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from modeling_flip.training.sparse import reduce_sparse_gradients, sparse_gradients
from tests.modeling_flip.tabular_towers.models import (
    LIST_FIELDS,
    LISTS,
    NUM_FEATURES,
    ROWS,
    enlarge_embeddings,
    make_model,
    weights_of,
)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("name", "tables"), [("wide_deep", ["embedding", "first_order"]), ("dcnv2", ["embedding"])])
@LIST_FIELDS
def test_all_features_are_penalised_in_training_or_those_of_the_batch_where_gradients_are_sparse(
    name: str, tables: list[str], list_fields: list[int], sparse: bool
) -> None:
    model = make_model(name, embedding_l2=0.3, list_fields=list_fields)
    weights = weights_of(model.flip)
    labels = [1, 0, 0, 1, 1, 0, 1]
    batch = {"feature_ids": ROWS, "list_feature_ids": LISTS}
    logits = model(**batch).logits.detach().double().numpy()
    clicks = np.mean([np.log1p(np.exp(-x if y else x)) for x, y in zip(logits, labels, strict=True)])
    looked_up = sorted({i for row in ROWS.tolist() for i in row})  # the lists have the same features
    assert len(looked_up) < NUM_FEATURES
    penalised = looked_up if sparse else list(range(NUM_FEATURES))
    squares = sum((weights[table][penalised] ** 2).sum() for table in tables)
    with sparse_gradients(model) if sparse else nullcontext():
        trained = model.train()(**batch, labels=torch.tensor(labels)).loss
        evaluated = model.eval()(**batch, labels=torch.tensor(labels)).loss
    np.testing.assert_allclose(trained.item(), clicks + 0.5 * 0.3 * squares, rtol=1e-5)
    np.testing.assert_allclose(evaluated.item(), clicks, rtol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_feature_is_penalised_once_however_often_it_stands_in_the_batch(sparse: bool) -> None:
    gradients = {}
    for l2 in (0.0, 0.3):
        model = make_model("deepfm", embedding_l2=l2).train()
        enlarge_embeddings(model)
        with sparse_gradients(model) if sparse else nullcontext():
            model(feature_ids=ROWS[[0, 0, 4]], labels=torch.tensor([1.0, 1.0, 0.0])).loss.backward()
            if sparse:
                reduce_sparse_gradients(model, Accelerator(cpu=True), l2)
        features = model.flip.feature_embeddings
        gradients[l2] = [table.weight.grad.to_dense() for table in features.children()]
    looked_up = [1, 4, 5, 8]
    rest = [i for i in range(NUM_FEATURES) if i not in looked_up]
    for table, without, penalised in zip(features.children(), gradients[0.0], gradients[0.3], strict=True):
        expected = 0.3 * table.weight.detach()
        if sparse:
            expected[rest] = 0
        torch.testing.assert_close(penalised - without, expected)
