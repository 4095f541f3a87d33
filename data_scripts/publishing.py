"""A dataset as a folder of Parquet files with its card, and that folder on the Hub."""

import argparse
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, concatenate_datasets
from huggingface_hub import CommitOperationAdd, DatasetCardData, HfApi


def parser_of(name: str) -> argparse.ArgumentParser:
    """The command line of a script that reads raw files of others, which may not be redistributed: see `publish`."""
    parser = argparse.ArgumentParser(description=f"Write {name} as Parquet files with a dataset card.")
    parser.add_argument("--raw_dir", type=Path, help="folder of the published files; downloaded if not given")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--push_to_hub",
        type=dataset_id,
        metavar="OWNER/NAME",
        help=f"also push it to this dataset of the Hub, always a private one: {name} may not be redistributed",
    )
    return parser


@contextlib.contextmanager
def one_line_errors(script: str) -> Iterator[None]:
    """End the process with one line where the block raises what is the input's fault, or the network's."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"{script}: error: {error}")


def publish(
    dataset: DatasetDict, counts: Mapping[str, int], options: argparse.Namespace, text: str, **card: Any
) -> None:
    """Write dataset and card as the options of `parser_of` say, print the counts of each step, and push to a private
    dataset where that is asked for. `card` is what `dataset_card` takes beside these."""
    for step, count in counts.items():
        print(f"{count:>12,} {step}")
    name = options.push_to_hub or str(options.output_dir)
    written = write(dataset, options.output_dir, dataset_card(dataset, name, text, counts=counts, **card))
    print(f"wrote {dataset.num_rows} to {written}")
    if options.push_to_hub:
        pushed_to = push(options.output_dir, options.push_to_hub, private=True)
        print(f"pushed it to {pushed_to}, which is private: {card['pretty_name']} may not be redistributed")


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
    dataset: DatasetDict,
    name: str,
    text: str,
    *,
    item_fields: Sequence[str],
    train: str,
    counts: Mapping[str, int] | None = None,
    **metadata: Any,
) -> str:
    """Return a dataset card: the metadata block that `write` needs beside its files, `text`, and what the rows say.

    `name` is what `load_dataset` is to be given, `train` what `train.py` needs beside it, `counts` how many there
    were at each step from the raw files; `metadata` holds at least pretty_name and license.
    """
    rows = concatenate_datasets(list(dataset.values()))
    sizes = [("n<1K", 1_000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000)]
    sizes += [("1M<n<10M", 10_000_000), ("10M<n<100M", 100_000_000)]
    header = DatasetCardData(
        **metadata,
        language=["en"],
        task_categories=["tabular-classification"],
        tags=["click-through-rate-prediction", "recommendation"],
        size_categories=[next((name for name, limit in sizes if len(rows) < limit), "100M<n<1B")],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}.parquet"} for split in dataset],
            }
        ],
    )
    body = _CARD_BODY.format(
        pretty_name=metadata["pretty_name"],
        text=text.strip() + _steps(counts),
        splits="\n".join(
            f"| {split} | {len(part):,} | {_mean(part, 'label'):.1%} |" for split, part in dataset.items()
        ),
        columns="\n".join(
            f"| {column} | {feature.dtype} | {_distinct(rows, column):,} | {_in_a_cell(rows[0][column])} |"
            for column, feature in rows.features.items()
        ),
        item_fields=", ".join(item_fields),
        name=name,
        train=train,
        output_dir=f"outputs/{Path(name).name}",
    )
    return f"---\n{header.to_yaml()}\n---\n{body}"


def _mean(rows: Dataset, column: str) -> float:
    return pc.mean(rows.data[column]).as_py() if len(rows) else float("nan")


def _distinct(rows: Dataset, column: str) -> int:
    """Missing is no value."""
    return pc.count_distinct(rows.data[column]).as_py()


def _steps(counts: Mapping[str, int] | None) -> str:
    if not counts:
        return ""
    lines = "\n".join(f"| {step} | {count:,} |" for step, count in counts.items())
    return f"\n\n| from the raw files | |\n| --- | --- |\n{lines}"


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
    """Return the value as the cell of a Markdown table; a missing one is an empty cell."""
    return "" if value is None else str(value).replace("|", "\\|")


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
