"""CTR-BERT: its logit by hand, and users and items that come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.baselines.tiny import ROWS, Collate, Make, counting_rows, sentence, weights_of


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_ctr_berts_logit_is_an_mlp_of_user_item_and_their_product(make: Make, collate: Collate, pooling: str) -> None:
    model = make("ctr_bert", text_pooling=pooling)
    batch, weights = collate(model), weights_of(model)
    expected = []
    for u, i in zip(batch["user_index"], batch["item_index"], strict=True):
        user = sentence(model.user_text_tower, batch["user_input_ids"][u], batch["user_attention_mask"][u], pooling)
        item = sentence(model.item_text_tower, batch["item_input_ids"][i], batch["item_attention_mask"][i], pooling)
        x = np.concatenate([user, item, user * item])
        for layer in (0, 3):  # Linear, ReLU, Dropout, Linear, …
            x = np.maximum(weights[f"head.{layer}.weight"] @ x + weights[f"head.{layer}.bias"], 0)
        expected.append(weights["output.weight"][0] @ x + weights["output.bias"][0])
    output = model(**batch)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(output.logits.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    p = 1 / (1 + np.exp(-np.array(expected)))
    losses = -np.log(np.where([row["label"] for row in ROWS], p, 1 - p))
    assert output.loss.item() == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_ctr_bert_scores_users_and_items_that_come_back_as_rows_alone(
    make: Make, collate: Collate, pooling: str
) -> None:
    model = make("ctr_bert", text_pooling=pooling)
    batch = collate(model)
    assert len(batch["user_input_ids"]) == 3
    assert len(batch["item_input_ids"]) == 4
    with counting_rows(model.user_text_tower) as users, counting_rows(model.item_text_tower) as items:
        together = model(**batch).logits
    assert (users, items) == ([3], [4])
    alone = torch.cat([model(**collate(model, [row])).logits for row in ROWS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert len(together.unique()) == len(ROWS)


def test_ctr_berts_towers_start_alike_and_learn_apart(make: Make, collate: Collate) -> None:
    model = make("ctr_bert")
    user, item = model.user_text_tower.state_dict(), model.item_text_tower.state_dict()
    assert all(torch.equal(user[name], item[name]) for name in user)
    model(**collate(model)).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.weight"):
        assert not torch.equal(user[name], item[name])
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_new_tokens_get_embeddings_in_both_towers_of_ctr_bert(make: Make) -> None:
    model = make("ctr_bert")
    size = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size + 3)
    assert [t.get_input_embeddings().num_embeddings for t in model.fresh_text_towers()] == [size + 3] * 2
