"""A dataset as a folder with its card; tests/hub/test_datasets.py pushes one."""

from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetCard

from data_scripts import publishing

DATASET = datasets.DatasetDict(
    {s: datasets.Dataset.from_dict({"user": ["a", "b"], "label": [0, 1]}) for s in ("train", "validation", "test")}
)


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: datasets.Dataset, path: Path) -> None:
        path.write_bytes(b"half a fi")
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.Dataset, "to_parquet", fail)
    with pytest.raises(KeyboardInterrupt):
        publishing.write(DATASET, tmp_path / "output", "card")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_writing_again_replaces_own_files_only(tmp_path: Path) -> None:
    output = tmp_path / "output"
    publishing.write(DATASET, output, "old")
    (output / "notes.txt").write_text("mine")
    assert publishing.write(DATASET, output, "new") == output
    assert (output / "README.md").read_text() == "new"
    assert (output / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output"]


def test_card_says_what_the_rows_are() -> None:
    dataset = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"user": ["u|1", "u2", "u2"], "film": ["a", "b", "a"], "label": [1, 0, 0]}),
        validation=datasets.Dataset.from_dict({"user": ["u3"], "film": ["a"], "label": [0]}),
        test=datasets.Dataset.from_dict({"user": ["u4", "u2"], "film": ["c", "a"], "label": [1, 0]}),
    )
    text = publishing.dataset_card(
        dataset, "me/clicks", "About.", item_fields=["film"], train="R.yaml", pretty_name="Clicks", license="mit"
    )
    card = DatasetCard(text)
    assert card.data.to_dict() == {
        "language": ["en"],
        "license": "mit",
        "pretty_name": "Clicks",
        "size_categories": ["n<1K"],
        "tags": ["click-through-rate-prediction", "recommendation"],
        "task_categories": ["tabular-classification"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": s, "path": f"{s}.parquet"} for s in ("train", "validation", "test")],
            }
        ],
    }
    tables = [line for line in card.text.splitlines() if line.startswith("|")]
    assert tables == [
        "| split | rows | clicks |",
        "| --- | --- | --- |",
        "| train | 3 | 33.3% |",
        "| validation | 1 | 0.0% |",
        "| test | 2 | 50.0% |",
        "| column | type | distinct values | example |",
        "| --- | --- | --- | --- |",
        r"| user | string | 4 | u\|1 |",
        "| film | string | 3 | a |",
        "| label | int64 | 2 | 1 |",
    ]
    assert card.text.lstrip().startswith("# Clicks\n\nAbout.\n")
    assert 'dataset = load_dataset("me/clicks")' in card.text
    assert '`--item_fields "[film]"`' in card.text
    assert (
        "train.py R.yaml \\\n  --dataset_name me/clicks --label_column label --output_dir outputs/clicks\n" in card.text
    )
