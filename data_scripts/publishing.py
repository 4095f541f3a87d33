"""A dataset as a folder of Parquet files with its card, and that folder on the Hub."""

import argparse
import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict, concatenate_datasets
from huggingface_hub import CommitOperationAdd, DatasetCardData, HfApi


def write(dataset: DatasetDict, output_dir: str | Path, card: str) -> Path:
    """Write each split as `<split>.parquet` and the card as `README.md`, a folder that `load_dataset` reads."""
    with finished_folder(output_dir) as folder:
        for split, rows in dataset.items():
            rows.to_parquet(folder / f"{split}.parquet")
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(output_dir)


@contextlib.contextmanager
def finished_folder(output_dir: str | Path) -> Iterator[Path]:
    """Yield an empty folder whose files appear in `output_dir` when the block ends, and never if it fails.

    Files of the same name that are already in `output_dir` are replaced, others are left alone.
    """
    output_dir = Path(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as parent:
        folder = Path(parent) / "finished"
        folder.mkdir()
        yield folder
        if not output_dir.exists():
            folder.rename(output_dir)
        else:
            for file in folder.iterdir():
                os.replace(file, output_dir / file.name)


def dataset_card(
    dataset: DatasetDict, name: str, text: str, *, item_fields: Sequence[str], train: str, **metadata: Any
) -> str:
    """Return a dataset card: the metadata block that `write` needs beside its files, `text`, and what the rows say.

    `name` is what `load_dataset` is to be given, `train` what `train.py` needs beside it; `metadata` holds at least
    pretty_name and license.
    """
    rows = concatenate_datasets(list(dataset.values()))
    sizes = [("n<1K", 1_000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000)]
    header = DatasetCardData(
        **metadata,
        language=["en"],
        task_categories=["tabular-classification"],
        tags=["click-through-rate-prediction", "recommendation"],
        size_categories=[next((name for name, limit in sizes if len(rows) < limit), "1M<n<10M")],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}.parquet"} for split in dataset],
            }
        ],
    )
    body = _CARD_BODY.format(
        pretty_name=metadata["pretty_name"],
        text=text.strip(),
        splits="\n".join(
            f"| {split} | {len(part):,} | {np.mean(part.data['label']):.1%} |" for split, part in dataset.items()
        ),
        columns="\n".join(
            f"| {column} | {feature.dtype} | {len(rows.unique(column)):,} | {_in_a_cell(rows[0][column])} |"
            for column, feature in rows.features.items()
        ),
        item_fields=", ".join(item_fields),
        name=name,
        train=train,
        output_dir=f"outputs/{Path(name).name}",
    )
    return f"---\n{header.to_yaml()}\n---\n{body}"


def dataset_id(text: str) -> str:
    """Return a Hub id as it was given on the command line; argparse prints the error where it is none."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a dataset id: write OWNER/NAME")
    return text


def push(output_dir: Path, repo_id: str, *, private: bool) -> str:
    """Push what `write` has written to the Hub's dataset `repo_id`, in one commit, and return its URL.

    Without `private`, a new dataset gets its owner's default visibility. Only the card and the splits are pushed, whatever else
    the folder holds.

    Raises ValueError if the dataset should be private but is public, ConnectionError if the push fails; `output_dir` stays as
    it is.
    """
    from modeling_flip.training.hub import with_retries  # imports torch, which nothing else here needs

    api = HfApi()

    def attempt() -> tuple[str, bool]:
        url = api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        public = private and not api.dataset_info(repo_id).private
        if not public:
            files = ["README.md", *(f"{split}.parquet" for split in ("train", "validation", "test"))]
            operations = [CommitOperationAdd(file, output_dir / file) for file in files]
            api.create_commit(repo_id, operations, repo_type="dataset", commit_message="Upload dataset")
        return str(url), public

    try:
        url, public = with_retries(attempt)
    except Exception as error:  # each layer below (httpx, hf_xet, huggingface_hub) has exceptions of its own
        reason = getattr(error, "server_message", None) or str(error)  # the Hub's own message, if any
        raise ConnectionError(
            f"cannot push to {repo_id!r} ({' '.join(reason.split())}): the dataset is complete in {str(output_dir)!r}; check "
            "the id, the network and your token (HF_TOKEN, or hf auth login), then run the same command again"
        ) from error
    if public:
        raise ValueError(
            f"{repo_id!r} exists and is public, so nothing was uploaded: make it private ({url}/settings) or choose "
            f"another id, then run the same command again; the dataset is complete in {str(output_dir)!r}"
        )
    return url


def _in_a_cell(value: Any) -> str:
    """Return the value as the cell of a Markdown table."""
    return str(value).replace("|", "\\|")


_CARD_BODY = """
# {pretty_name}

{text}

| split | rows | clicks |
| --- | --- | --- |
{splits}

| column | type | distinct values | example |
| --- | --- | --- | --- |
{columns}

`label` is the click, 0 or 1. {item_fields} describe the item, the other columns the user; CTR-BERT and MoRec are told so
with `--item_fields "[{item_fields}]"`.

## Use

```python
from datasets import load_dataset

dataset = load_dataset("{name}")
```

To train a click model on it, with the `train.py` of modeling-flip:

```bash
accelerate launch train.py {train} \\
  --dataset_name {name} --label_column label --output_dir {output_dir}
```

A private dataset is read with your token: `hf auth login`, or `HF_TOKEN` in the environment.
"""
