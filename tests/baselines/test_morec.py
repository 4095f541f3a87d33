"""MoRec: its logit by hand, what it reads of a row, and what it does not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_flip import TABULAR_TOWERS, MoRecConfig, MoRecForCTR
from tests.baselines.tiny import FIELDS, ITEMS, ROWS, USER_FIELDS, Collate, Make, counting_rows, sentence, weights_of


def morec_logits_by_hand(model: MoRecForCTR, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    tower, features, pooling = model.tabular_tower, model.feature_embeddings, model.config.text_pooling
    weight, bias = weights_of(model)["item_projection.weight"], weights_of(model)["item_projection.bias"]
    logits = []
    for ids, i in zip(batch["feature_ids"], batch["item_index"].tolist(), strict=True):
        words = sentence(model.text_tower, batch["item_input_ids"][i], batch["item_attention_mask"][i], pooling)
        x = weight @ words + bias
        if model.config.item_activation == "gelu":
            x = np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x])
        item = torch.from_numpy(x)
        user = [features.embedding.weight[ids[f]] for f in USER_FIELDS]
        logit = tower(torch.stack([*user, item])[None])[1]
        if tower.first_order:
            named = [ids[f].item() for f in USER_FIELDS] + [model.config.num_features - 1]  # <MASK>
            logit = logit + features.first_order.weight[named].sum()
        logits.append(logit)
    return torch.cat(logits)


@pytest.mark.parametrize(("tower", "activation"), [*((t, "gelu") for t in sorted(TABULAR_TOWERS)), ("dcnv2", "linear")])
def test_morecs_logit_is_the_tabular_towers_over_user_features_and_the_projected_sentence(
    make: Make, collate: Collate, tower: str, activation: str
) -> None:
    pooling = "mean" if tower == "dcnv2" else None
    # In fp64: AFN's powers of fresh embeddings are large.
    model = make("morec", tabular_tower=tower, text_pooling=pooling, item_activation=activation).double()
    batch = collate(model)
    output = model(**batch)
    expected = morec_logits_by_hand(model, batch)
    torch.testing.assert_close(output.logits, expected, rtol=1e-6, atol=1e-6)
    assert len(expected.unique()) == len(ROWS)
    losses = np.logaddexp(0, np.where(batch["labels"] == 1, -1, 1) * expected.detach().numpy())
    assert output.loss.item() == pytest.approx(losses.mean(), rel=1e-5)


def test_morec_reads_an_items_words_and_none_of_its_ids(make: Make, collate: Collate) -> None:
    model = make("morec", tabular_tower="deepfm")  # which also has weights of single features
    batch = collate(model)
    logits = model(**batch).logits
    for field in range(len(FIELDS)):
        changed = batch["feature_ids"].clone()
        changed[:, field] = (changed[:, field] + 1) % model.config.num_features
        differ = logits != model(**batch | {"feature_ids": changed}).logits
        assert differ.tolist() == [field in USER_FIELDS] * len(ROWS)
    tokens = batch["item_input_ids"].clone()
    tokens[2, 1] += 1
    differ = logits != model(**batch | {"item_input_ids": tokens}).logits
    assert torch.equal(differ, batch["item_index"] == 2)
    assert differ.any()


def test_a_morec_from_before_it_had_an_activation_scores_as_it_did(
    make: Make, collate: Collate, tmp_path: Path
) -> None:
    old, new = make("morec", item_activation="linear"), make("morec")
    batch = collate(old)
    for model, version in ((new, 4), (old, 2)):
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["format_version"] == version
    del config["item_activation"]  # as files of that time are
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.sha256").unlink()
    loaded = MoRecForCTR.from_pretrained(tmp_path)
    assert loaded.config.item_activation == "linear"
    torch.testing.assert_close(loaded(**batch).logits, old(**batch).logits)
    assert (new(**batch).logits - old(**batch).logits).abs().max() > 1e-3
    with pytest.raises(ValueError, match="item_activation is 'relu'; it must be one of gelu, linear"):
        MoRecConfig(item_activation="relu", item_fields=[0], num_fields=2)


def test_morec_encodes_each_item_of_a_batch_once_and_scores_rows_as_if_alone(make: Make, collate: Collate) -> None:
    model = make("morec")
    with counting_rows(model.text_tower) as counts:
        together = model(**collate(model)).logits
    assert counts == [len(ITEMS)]
    alone = torch.cat([model(**collate(model, [row])).logits for row in ROWS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_morecs_embeddings_are_penalised_in_training(make: Make, collate: Collate) -> None:
    model = make("morec", tabular_tower="deepfm", embedding_l2=0.02, freeze_text_tower=True)
    batch = collate(model)
    tables = [model.feature_embeddings.embedding.weight, model.feature_embeddings.first_order.weight]
    penalty = sum(0.01 * table.square().sum() for table in tables)
    torch.testing.assert_close(model.train()(**batch).loss - model.eval()(**batch).loss, penalty)


@pytest.mark.parametrize("tower", ["deepfm", "dcnv2"])
@pytest.mark.parametrize("list_fields", [[2], [0, 1], [1, 2, 3]], ids=str)
def test_morec_reads_the_users_lists_and_none_of_the_items(
    make: Make, collate: Collate, tower: str, list_fields: list[int]
) -> None:
    plain = make("morec", tabular_tower=tower)
    model = MoRecForCTR(MoRecConfig.from_dict(plain.config.to_dict() | {"list_fields": list_fields})).eval()
    model.load_state_dict(plain.state_dict())
    batch = collate(model)
    members = batch["feature_ids"][:, list_fields, None]
    logits = model(**batch, list_feature_ids=members).logits  # lists of one
    torch.testing.assert_close(logits, plain(**batch).logits)
    for n, field in enumerate(list_fields):
        changed = torch.cat([members, torch.full_like(members, -1)], dim=2)
        changed[:, n, 1] = 1
        differ = logits != model(**batch, list_feature_ids=changed).logits
        assert differ.any() == (field in USER_FIELDS)
