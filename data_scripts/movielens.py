"""MovieLens-1M and MovieLens-100K as click data: one row per rating, split by time.

    python -m data_scripts.movielens --dataset_name movielens-1m --raw_dir DIR --output_dir DIR [--push_to_hub OWNER/NAME]

Ratings of 3 are dropped, higher ones become label 1 and lower ones label 0. Rows are ordered by time; the last tenth is
the test split, and the last tenth of what remains is the validation split.
"""

import argparse
import contextlib
import gzip
import hashlib
import os
import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, DownloadConfig, DownloadManager, concatenate_datasets
from huggingface_hub import CommitOperationAdd, DatasetCardData, HfApi

BASE_URL = "https://files.grouplens.org/datasets/movielens"

_COLUMNS = ["user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre", "label"]
ITEM_FIELDS = ["movie_id", "title", "genre"]  # the others describe the user

# dataset name: (archive, and the folder inside it; md5 of the archive, as published beside it)
_ARCHIVES = {
    "movielens-1m": ("ml-1m", "c4d9eecfca2ab87c1945afe126590906"),
    "movielens-100k": ("ml-100k", "0e33842e24a9c977be4e0107933c0723"),
}

# One whole line of each file. A title may hold any character, separators too, so it takes whatever the others leave.
_LINE = {
    "users.dat": r"(?P<user_id>\d+)::(?P<gender>[FM])::(?P<age>\d+)::(?P<occupation>\d+)::(?P<zipcode>[^:]*)",
    "movies.dat": r"(?P<movie_id>\d+)::(?P<title>.*)::(?P<genre>[^:]*)",
    "ratings.dat": r"(?P<user_id>\d+)::(?P<movie_id>\d+)::(?P<rating>[1-5])::(?P<timestamp>\d+)",
    "u.user": r"(?P<user_id>\d+)\|(?P<age>\d+)\|(?P<gender>[FM])\|(?P<occupation>[^|]*)\|(?P<zipcode>[^|]*)",
    "u.item": r"(?P<movie_id>\d+)\|(?P<title>.*)\|[^|]*\|[^|]*\|[^|]*\|(?P<genre>[01](?:\|[01]){18})",  # dates, URL
    "u.genre": r"(?P<name>[^|]*)\|(?P<index>\d+)",
    "u.data": r"(?P<user_id>\d+)\t(?P<movie_id>\d+)\t(?P<rating>[1-5])\t(?P<timestamp>\d+)",
}

_GENDERS = {"F": "female", "M": "male"}

_AGES_1M = {
    "1": "under 18",
    "18": "18-24",
    "25": "25-34",
    "35": "35-44",
    "45": "45-49",
    "50": "50-55",
    "56": "56 or older",
}

_OCCUPATIONS_1M = {
    "0": "other or not specified",
    "1": "academic/educator",
    "2": "artist",
    "3": "clerical/admin",
    "4": "college/grad student",
    "5": "customer service",
    "6": "doctor/health care",
    "7": "executive/managerial",
    "8": "farmer",
    "9": "homemaker",
    "10": "K-12 student",
    "11": "lawyer",
    "12": "programmer",
    "13": "retired",
    "14": "sales/marketing",
    "15": "scientist",
    "16": "self-employed",
    "17": "technician/engineer",
    "18": "tradesman/craftsman",
    "19": "unemployed",
    "20": "writer",
}


def load(dataset_name: str, raw_dir: str | Path | None = None) -> DatasetDict:
    """Return the splits train, validation and test of "movielens-1m" or "movielens-100k".

    Columns: user_id, gender, age, occupation, zipcode, movie_id, title, genre (all strings) and label (int64, 0 or 1).
    `raw_dir` holds the published files, each plain or gzipped; without it the published archive is downloaded once into
    the cache of `datasets` and its checksum verified.

    Raises ValueError for an unknown name, a line that is not in the published format or a rating of an unknown user or
    movie, FileNotFoundError for a missing folder or file, ConnectionError where the archive cannot be had.
    """
    if dataset_name not in _ARCHIVES:
        raise ValueError(f"unknown dataset_name {dataset_name!r}: choose one of {', '.join(_ARCHIVES)}")
    folder = _download(dataset_name) if raw_dir is None else Path(raw_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"raw_dir {str(folder)!r} is not a folder: name the one that holds the published files")
    users, movies, ratings = _read_1m(folder) if dataset_name == "movielens-1m" else _read_100k(folder)
    return _split_by_time(_join(users, movies, ratings))


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
        raise argparse.ArgumentTypeError(f"{text!r} is no dataset id of the Hub: write OWNER/NAME")
    return text


def push(output_dir: Path, repo_id: str, *, private: bool) -> str:
    """Push what `write` has written to the Hub's dataset `repo_id`, in one commit, and return its URL.

    Without `private` a new dataset is as visible as its owner's default says. Only the card and the splits are pushed,
    whatever else the folder holds.

    Raises ValueError where the dataset is to be private and exists in public, ConnectionError where the Hub does not take
    it; `output_dir` stays as it is.
    """
    from modeling_flip.training.hub import with_retries  # with it comes torch, which nothing else here needs

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
        reason = getattr(error, "server_message", None) or str(error)  # the Hub's own words, where it gave any
        raise ConnectionError(
            f"cannot push to {repo_id!r} ({' '.join(reason.split())}): the dataset is whole in {str(output_dir)!r}; "
            "check the id, the network and your token (HF_TOKEN, or hf auth login), then give the same command again"
        ) from error
    if public:
        raise ValueError(
            f"{repo_id!r} exists and is public, so nothing was uploaded: make it private ({url}/settings) or choose "
            f"another id, then give the same command again; the dataset is whole in {str(output_dir)!r}"
        )
    return url


def _download(dataset_name: str) -> zipfile.Path:
    """Return the raw folder inside the published archive, downloaded on first use.

    The archive is read where it lies: nothing is unpacked, so no half-unpacked folder can be taken for a whole one.
    """
    name, md5 = _ARCHIVES[dataset_name]
    url = f"{BASE_URL}/{name}.zip"
    # The checksum pins the content, so a cached archive is good without asking the server for its ETag.
    manager = DownloadManager(download_config=DownloadConfig(use_etag=False))
    try:
        archive = Path(manager.download(url))
    except Exception as error:  # each layer below (fsspec, aiohttp, the offline mode) has exceptions of its own
        raise ConnectionError(
            f"cannot download {url} ({error}): pass --raw_dir (raw_dir= in Python), the folder of the unpacked archive"
        ) from error
    found = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    if found != md5:
        archive.unlink()
        raise ValueError(
            f"the archive from {url} has md5 {found}, the published one {md5}; it was deleted: run again, "
            "or pass --raw_dir (raw_dir= in Python), the folder of a good archive, unpacked"
        )
    return zipfile.Path(archive, f"{name}/")


def _read(folder: Path | zipfile.Path, file_name: str) -> pa.Table:
    """Return the file's columns, all strings, read from `file_name` or `file_name`.gz in Latin-1."""
    pattern = _LINE[file_name]
    file = next((folder / name for name in (file_name, f"{file_name}.gz") if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no {file_name} in {str(folder)!r}: looked for {file_name} and {file_name}.gz")
    try:
        content = gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{str(file)!r} is not a whole gzip file ({error}): fetch it again") from error
    # Not splitlines(): in Latin-1 it would also break a line at control characters inside a title.
    text = content.decode("latin-1").replace("\r\n", "\n").rstrip("\n")
    lines = pc.split_pattern(pa.array([text]), pattern="\n").flatten()
    matches = pc.extract_regex(lines, pattern=f"^{pattern}$")
    if matches.null_count:
        at = pc.index(matches.is_null(), True).as_py()
        columns = ", ".join(re.findall(r"\?P<(\w+)>", pattern))
        raise ValueError(
            f"line {at + 1} of {str(file)!r} is {lines[at].as_py()!r}, which does not hold the columns {columns} in "
            "the published format: take the file as published"
        )
    return pa.Table.from_struct_array(matches)


def _read_1m(folder: Path | zipfile.Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return users, movies and ratings of MovieLens-1M, its codes turned into words."""
    users, movies, ratings = (_read(folder, f"{name}.dat") for name in ("users", "movies", "ratings"))
    for column, words in (("gender", _GENDERS), ("age", _AGES_1M), ("occupation", _OCCUPATIONS_1M)):
        users = _replace(users, column, _in_words(users[column], words, f"{column} in users.dat"))
    return users, _replace(movies, "genre", pc.replace_substring(movies["genre"], "|", ", ")), ratings


def _read_100k(folder: Path | zipfile.Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return users, movies and ratings of MovieLens-100K, its flags turned into words."""
    users, movies, genres, ratings = (_read(folder, f"u.{name}") for name in ("user", "item", "genre", "data"))
    users = _replace(users, "gender", _in_words(users["gender"], _GENDERS, "gender in u.user"))
    names = {int(row["index"]): row["name"] for row in genres.to_pylist()}
    if sorted(names) != list(range(19)):
        raise ValueError(
            f"u.genre numbers its genres {sorted(names)}, not 0 to 18 as published: take the file as published"
        )
    flags = (row.split("|") for row in movies["genre"].to_pylist())
    genre = [", ".join(names[index] for index, flag in enumerate(row) if flag == "1") for row in flags]
    return users, _replace(movies, "genre", pa.array(genre, pa.string())), ratings


def _join(users: pa.Table, movies: pa.Table, ratings: pa.Table) -> pa.Table:
    """Return one row per rating other than 3, oldest first, ties in file order, with the columns of `_COLUMNS`."""
    user = users.take(_positions(ratings["user_id"], users["user_id"], "the ratings name user_id", "the users file"))
    movie = movies.take(
        _positions(ratings["movie_id"], movies["movie_id"], "the ratings name movie_id", "the movies file")
    )
    rating = ratings["rating"].cast(pa.int64())
    rows = pa.table(
        {name: user[name] if name in user.column_names else movie[name] for name in _COLUMNS[:-1]}
        | {"label": pc.greater(rating, 3).cast(pa.int64())}
    )
    time = ratings["timestamp"].cast(pa.int64()).to_numpy()
    order = np.argsort(time, kind="stable")
    return rows.take(order[rating.to_numpy()[order] != 3])


def _split_by_time(rows: pa.Table) -> DatasetDict:
    """Cut rows that are in time order into train, validation and test."""
    fitted = 9 * len(rows) // 10  # train and validation
    train = 9 * fitted // 10
    return DatasetDict(
        train=Dataset(rows.slice(0, train)),
        validation=Dataset(rows.slice(train, fitted - train)),
        test=Dataset(rows.slice(fitted)),
    )


def _positions(values: pa.ChunkedArray, known: pa.ChunkedArray, what: str, where: str) -> pa.ChunkedArray:
    """Return where each value stands in `known`; raise ValueError with the first that does not."""
    found = pc.index_in(values, value_set=known)
    if found.null_count:
        missing = values.filter(pc.is_null(found))[0].as_py()
        raise ValueError(f"{what} {missing!r}, which {where} does not hold: take both as published")
    return found


def _in_words(codes: pa.ChunkedArray, words: dict[str, str], what: str) -> pa.ChunkedArray:
    """Return each code's word."""
    known = pa.chunked_array([list(words)])
    return pa.chunked_array([list(words.values())]).take(_positions(codes, known, what, "the published README"))


def _replace(table: pa.Table, column: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return the table with other values in one column."""
    return table.set_column(table.column_names.index(column), column, values)


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

_CARD = """
Ratings of {pretty_name} as clicks: ratings of 3 are dropped, `label` is 1 for a higher rating and 0 for a lower one.
Rows are in time order: `test` is the last tenth of all rows, `validation` the last tenth of the rows before it.

Made by `data_scripts/movielens.py` of modeling-flip from the archive that GroupLens (University of Minnesota) publishes,
{url}. MovieLens data may not be redistributed without permission of
GroupLens and may not be used commercially: keep this dataset private. Acknowledge its use by citing F. Maxwell Harper and
Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM Transactions on Interactive Intelligent Systems
5, 4, Article 19. https://doi.org/10.1145/2827872
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one of the data sets as Parquet files with a dataset card, and push it where that is asked for."""
    parser = argparse.ArgumentParser(description="Write MovieLens as Parquet files with a dataset card.")
    parser.add_argument("--dataset_name", required=True, choices=list(_ARCHIVES))
    parser.add_argument("--raw_dir", type=Path, help="folder of the published files; downloaded if not given")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--push_to_hub",
        type=dataset_id,
        metavar="OWNER/NAME",
        help="also push it to this dataset of the Hub, always a private one: MovieLens may not be redistributed",
    )
    options = parser.parse_args(arguments)
    try:
        dataset = load(options.dataset_name, options.raw_dir)
        pretty_name = "MovieLens-" + options.dataset_name.removeprefix("movielens-").upper()
        url = f"{BASE_URL}/{_ARCHIVES[options.dataset_name][0]}"
        card = dataset_card(
            dataset,
            options.push_to_hub or str(options.output_dir),
            _CARD.format(pretty_name=pretty_name, url=f"{url}.zip"),
            item_fields=ITEM_FIELDS,
            train=f"configuration/{options.dataset_name}/dcnv2.yaml",
            pretty_name=pretty_name,
            license="other",
            license_name="movielens",
            license_link=f"{url}-README.txt",
        )
        print(f"wrote {dataset.num_rows} to {write(dataset, options.output_dir, card)}")
        if options.push_to_hub:
            pushed_to = push(options.output_dir, options.push_to_hub, private=True)
            print(f"pushed it to {pushed_to}, which is private: MovieLens may not be redistributed")
    except (ValueError, OSError) as error:
        sys.exit(f"movielens.py: error: {error}")


if __name__ == "__main__":
    main()
