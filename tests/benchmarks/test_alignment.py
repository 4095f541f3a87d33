"""Figures 5 and 6: similarities and spreads that are known, and the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch.nn.functional import layer_norm
from transformers import PreTrainedTokenizerFast

from benchmarks import alignment
from data_scripts import demo
from modeling_flip import FlipConfig, FlipForCTR, FlipForPreTraining, FlipProcessor

FIELDS: list[str | dict[str, str]] = [{"name": "review", "kind": "text"}, "user", {"name": "genres", "kind": "list"}]
ROWS: dict[str, list[Any]] = {
    "review": ["a wonderful life", "toy story"],
    "user": ["anna", "ben"],
    "genres": [["drama", "comedy"], ["action"]],
}
Make = Callable[..., FlipForPreTraining]


@pytest.fixture(scope="module")
def processor(wordpiece: PreTrainedTokenizerFast) -> FlipProcessor:
    return FlipProcessor.fit(ROWS, FIELDS, wordpiece)


@pytest.fixture(scope="module")
def make(processor: FlipProcessor, tiny_text_model: Path) -> Make:
    def model(**settings: Any) -> FlipForPreTraining:
        torch.manual_seed(0)
        sizes = {"embedding_size": 4, "hidden_sizes": [8], "projection_size": 8}
        made = FlipForPreTraining.from_text_pretrained(tiny_text_model, processor, **sizes, **settings)
        torch.nn.init.normal_(made.flip.feature_embeddings.embedding.weight)  # fresh ones are hardly seen by the tower
        return made

    return model


@torch.no_grad()
def similarity_by_hand(model: FlipForPreTraining, processor: FlipProcessor, row: dict[str, Any]) -> list[list[float]]:
    """Of one row, one pair of fields at a time: user and genres, which are 1 and 2 of the sentence, 0 and 1 of the table."""
    inputs = processor({name: [value] for name, value in row.items()})
    mask = processor.vocabulary.mask_feature_id
    matrix: list[list[float]] = []
    assert processor.tokenizer is not None
    for of_text in (1, 2):
        is_masked = inputs["token_field_ids"] == of_text
        assert is_masked.any()
        input_ids = inputs["input_ids"].masked_fill(is_masked, processor.tokenizer.mask_token_id)
        sentence = model.flip(input_ids=input_ids, attention_mask=inputs["attention_mask"]).text_representation
        text = model.icl.text_projection(layer_norm(sentence, sentence.shape[-1:]))[0]
        matrix.append([])
        for of_table in ("user", "genres"):
            feature_ids, members = inputs["feature_ids"].clone(), inputs["list_feature_ids"]
            if of_table == "user":
                feature_ids[0, 0] = mask
            else:
                members = torch.tensor([[[mask]]])
            output = model.flip(feature_ids=feature_ids, list_feature_ids=members)
            row_of_table = output.tabular_representation
            table = model.icl.tabular_projection(layer_norm(row_of_table, row_of_table.shape[-1:]))[0]
            matrix[-1].append(float(text @ table / (text.norm() * table.norm())))
    return matrix


def test_the_similarity_is_that_of_one_pair_of_masked_fields_at_a_time(make: Make, processor: FlipProcessor) -> None:
    model = make().train()  # whose dropout has to be switched off
    found = alignment.masked_field_similarity(model, processor, processor.encode(ROWS))
    assert found.shape == (2, 2, 2)
    for n in range(2):
        expected = similarity_by_hand(model, processor, {name: column[n] for name, column in ROWS.items()})
        np.testing.assert_allclose(found[n], expected, atol=1e-5)
        assert abs(found[n] - found[n].T).max() > 0.01  # rows and columns cannot be confused


def test_without_icl_there_is_nothing_to_compare(make: Make, processor: FlipProcessor) -> None:
    with pytest.raises(ValueError, match="without ICL"):
        alignment.masked_field_similarity(make(icl_weight=0), processor, processor.encode(ROWS))


def test_figures_of_the_diagonal() -> None:
    clear = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.0, 0.1, 0.7]])
    mixed = np.array(
        [[0.5, 0.6, 0.1], [0.1, 0.4, 0.4], [0.2, 0.2, 0.9]]
    )  # rows: no, a tie is none, yes; columns: yes, no, yes
    names = ("largest_of_row", "largest_of_column", "mean_diagonal", "mean_off_diagonal")
    expected = [(1, 1, 0.8, 0.8 / 6), (1 / 3, 2 / 3, 0.6, 1.6 / 6)]
    for matrix, figures in zip((clear, mixed), expected, strict=True):
        assert alignment.diagonal_figures(matrix) == pytest.approx(dict(zip(names, figures, strict=True)))
    both = alignment.diagonal_figures(np.stack([clear, mixed]))
    assert both == pytest.approx(dict(zip(names, np.mean(expected, axis=0), strict=True)))


@pytest.mark.parametrize(
    ("embeddings", "mean_cosine", "effective_rank"),
    [
        (3 * np.eye(4), 0, 4),
        (np.full((4, 4), 0.5), 1, 1),
        (np.diag([3, 1, 0, 0])[:2], 0, np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))),  # shares 3/4 and 1/4
        (np.array([[1, 0, 0, 0], [2, 0, 0, 0], [0, 0, -1, 0]]), 1 / 3, None),  # one of three pairs is parallel
    ],
)
def test_the_spread_of_embeddings(embeddings: np.ndarray, mean_cosine: float, effective_rank: float | None) -> None:
    users = [f"user {i}" for i in range(len(embeddings))]
    processor = FlipProcessor.fit({"user": users}, ["user"])
    model = FlipForCTR(FlipConfig.from_processor(processor, embedding_size=4, hidden_sizes=[8]))
    table = torch.full((len(users) + 2, 4), 7.0)  # the first, unknown, and the last, <MASK>, were never seen
    table[1:-1] = torch.from_numpy(embeddings)
    model.flip.feature_embeddings.embedding.weight.data = table
    found = alignment.embedding_spread(model, processor)
    assert found["mean_cosine"] == pytest.approx(mean_cosine, abs=1e-7)
    if effective_rank is not None:
        assert found["effective_rank"] == pytest.approx(effective_rank)
    coordinates = found["coordinates"]
    assert coordinates.shape == (len(users), 2)
    singular = np.linalg.svd(embeddings, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(coordinates, axis=0), singular[:2], atol=1e-7)
    assert (coordinates.sum(0) >= -1e-7).all()


def test_the_command_draws_both_figures(make: Make, processor: FlipProcessor, tmp_path: Path) -> None:
    weights = {"flip": {}, "contrastive": {"mlm_weight": 0, "mtm_weight": 0}, "no-icl": {"icl_weight": 0}}
    for name, settings in weights.items():
        make(**settings).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(dict(zip(ROWS, row, strict=True))) + "\n" for row in zip(*ROWS.values(), strict=True))
    )
    folders = [str(tmp_path / name) for name in weights]
    out = tmp_path / "out"
    alignment.main([*folders, "--rows", str(tmp_path / "rows.jsonl"), "--output_dir", str(out)])
    assert {path.name for path in out.iterdir()} == {
        "alignment.json",
        *(f"{name}.{kind}" for name in ("heat_map", "embeddings") for kind in ("png", "svg")),
    }
    for name in ("heat_map", "embeddings"):
        picture = imread(out / f"{name}.png")
        assert min(picture.shape[:2]) > 300 and picture.std() > 0.01
        assert ElementTree.parse(out / f"{name}.svg").getroot().tag.endswith("svg")
    written = json.loads((out / "alignment.json").read_text())
    assert written["rows"] == 2
    of = written["checkpoints"]
    assert list(of) == ["FLIP", "w/o MLM&MTM", "w/o ICL"]
    assert of["FLIP"]["fields"] == ["user", "genres"] and of["FLIP"]["features"] == 5
    assert "every_row" in of["w/o MLM&MTM"] and "every_row" not in of["w/o ICL"]
    model = make().eval()
    similarity = alignment.masked_field_similarity(model, processor, processor.encode(ROWS))
    assert of["FLIP"]["mean_matrix"] == pytest.approx(alignment.diagonal_figures(similarity.mean(0)))


def test_checkpoints_that_cannot_be_told_apart_need_labels(
    make: Make, processor: FlipProcessor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make().save_pretrained(tmp_path / "flip")
    processor.save_pretrained(tmp_path / "flip")
    with pytest.raises(SystemExit):
        alignment.main([str(tmp_path / "flip")] * 2 + ["--rows", "demo", "--output_dir", str(tmp_path / "out")])
    assert "2 checkpoints need as many --labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_was_not_pretrained_is_refused(
    processor: FlipProcessor, tiny_text_model: Path, tmp_path: Path
) -> None:
    FlipForCTR.from_text_pretrained(tiny_text_model, processor, hidden_sizes=[8]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint of pretraining: it lacks icl"):
        alignment.load(str(tmp_path))


def test_rows_are_spread_over_the_test_rows_of_a_registered_dataset() -> None:
    test = demo.load()["test"]
    rows = alignment.read_rows("demo", None, 3)
    assert rows.to_pylist() == [test[i] for i in (0, len(test) // 3, 2 * len(test) // 3)]
