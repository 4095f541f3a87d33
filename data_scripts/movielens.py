"""MovieLens-1M and MovieLens-100K as click data: one row per rating, split by time.

    python -m data_scripts.movielens --dataset_name movielens-1m --raw_dir DIR --output_dir DIR [--push_to_hub OWNER/NAME]

Ratings of 3 are dropped, higher ones become label 1 and lower ones label 0. Rows are ordered by time; the last tenth is
the test split, and the last tenth of what remains is the validation split.
"""

import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import DatasetDict

if __name__ == "__main__":  # run as a file, python looks for modules in the file's folder, not in the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data_scripts import raw_files, registry
from data_scripts.publishing import one_line_errors, parser_of, publish
from data_scripts.raw_files import Folder

BASE_URL = "https://files.grouplens.org/datasets/movielens"

_COLUMNS = ["user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre", "label"]

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
    return read(dataset_name, raw_dir)[0]


def read(dataset_name: str, raw_dir: str | Path | None = None) -> tuple[DatasetDict, dict[str, int]]:
    """Return what `load` does, and the ratings at each step."""
    if dataset_name not in _ARCHIVES:
        raise ValueError(f"unknown dataset_name {dataset_name!r}: choose one of {', '.join(_ARCHIVES)}")
    folder = raw_files.folder_of(raw_dir, lambda: _download(dataset_name))
    users, movies, ratings = _read_1m(folder) if dataset_name == "movielens-1m" else _read_100k(folder)
    rows = _join(users, movies, ratings)
    counts = {"ratings": len(ratings), "dropped: rating 3": len(ratings) - len(rows), "rows": len(rows)}
    return raw_files.cut(rows), counts


def _download(dataset_name: str) -> zipfile.Path:
    """Return the raw folder inside the published archive, downloaded on first use.

    The archive is read where it lies: nothing is unpacked, so no half-unpacked folder can be taken for a whole one.
    """
    name, md5 = _ARCHIVES[dataset_name]
    archive = raw_files.download(f"{BASE_URL}/{name}.zip", md5, "the folder of the unpacked archive")
    return zipfile.Path(archive, f"{name}/")


def _read(folder: Folder, file_name: str) -> pa.Table:
    """Return the file's columns, all strings, read from `file_name` or `file_name`.gz in Latin-1."""
    pattern = _LINE[file_name]
    file = raw_files.find(folder, [file_name])
    # Not splitlines(): in Latin-1 it would also break a line at control characters inside a title.
    text = raw_files.content(file).decode("latin-1").replace("\r\n", "\n").rstrip("\n")
    lines = pc.split_pattern(pa.array([text]), pattern="\n").flatten()
    matches = pc.extract_regex(lines, pattern=f"^{pattern}$")
    if matches.null_count:
        at = pc.index(matches.is_null(), True).as_py()
        columns = ", ".join(re.findall(r"\?P<(\w+)>", pattern))
        raise ValueError(
            f"line {at + 1} of {str(file)!r} is {lines[at].as_py()!r}, which does not hold the columns {columns}: use the file "
            "as published"
        )
    return pa.Table.from_struct_array(matches)


def _read_1m(folder: Folder) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return users, movies and ratings of MovieLens-1M, its codes turned into words."""
    users, movies, ratings = (_read(folder, f"{name}.dat") for name in ("users", "movies", "ratings"))
    for column, words in (("gender", _GENDERS), ("age", _AGES_1M), ("occupation", _OCCUPATIONS_1M)):
        users = _replace(users, column, _in_words(users[column], words, f"{column} in users.dat"))
    return users, _replace(movies, "genre", pc.replace_substring(movies["genre"], "|", ", ")), ratings


def _read_100k(folder: Folder) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return users, movies and ratings of MovieLens-100K, its flags turned into words."""
    users, movies, genres, ratings = (_read(folder, f"u.{name}") for name in ("user", "item", "genre", "data"))
    users = _replace(users, "gender", _in_words(users["gender"], _GENDERS, "gender in u.user"))
    names = {int(row["index"]): row["name"] for row in genres.to_pylist()}
    if sorted(names) != list(range(19)):
        raise ValueError(f"u.genre numbers its genres {sorted(names)}, not 0 to 18: use the file as published")
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


def _positions(values: pa.ChunkedArray, known: pa.ChunkedArray, what: str, where: str) -> pa.ChunkedArray:
    """Return where each value stands in `known`; raise ValueError with the first that does not."""
    found = pc.index_in(values, value_set=known)
    if found.null_count:
        missing = values.filter(pc.is_null(found))[0].as_py()
        raise ValueError(f"{what} {missing!r}, which {where} does not hold: use both files as published")
    return found


def _in_words(codes: pa.ChunkedArray, words: dict[str, str], what: str) -> pa.ChunkedArray:
    """Return each code's word."""
    known = pa.chunked_array([list(words)])
    return pa.chunked_array([list(words.values())]).take(_positions(codes, known, what, "the published README"))


def _replace(table: pa.Table, column: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return the table with other values in one column."""
    return table.set_column(table.column_names.index(column), column, values)


_CARD = """
Ratings of {pretty_name} as clicks: ratings of 3 are dropped, `label` is 1 for a higher rating and 0 for a lower one.
Rows are in time order: `test` is the last tenth of all rows, `validation` the last tenth of the rows before it.

Made by `data_scripts/movielens.py` of modeling-flip from the archive that GroupLens (University of Minnesota) publishes,
{url}. MovieLens data may not be redistributed without permission of
GroupLens and may not be used commercially: keep this dataset private. Acknowledge its use by citing F. Maxwell Harper and
Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM Transactions on Interactive Intelligent Systems
5, 4, Article 19. https://doi.org/10.1145/2827872
"""

DATASET = registry.Dataset(
    names=tuple(_ARCHIVES),
    load=load,
    fields=dict.fromkeys(_COLUMNS[:-1], "categorical"),
    item_fields=("movie_id", "title", "genre"),
    card=_CARD,
    license="other",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one of the data sets as Parquet files with a dataset card, and push it where that is asked for."""
    parser = parser_of("MovieLens")
    parser.add_argument("--dataset_name", required=True, choices=list(_ARCHIVES))
    options = parser.parse_args(arguments)
    with one_line_errors("movielens.py"):
        dataset, counts = read(options.dataset_name, options.raw_dir)
        pretty_name = "MovieLens-" + options.dataset_name.removeprefix("movielens-").upper()
        url = f"{BASE_URL}/{_ARCHIVES[options.dataset_name][0]}"
        publish(
            dataset,
            counts,
            options,
            DATASET.card.format(pretty_name=pretty_name, url=f"{url}.zip"),
            item_fields=DATASET.item_fields,
            train=f"configuration/{options.dataset_name}/dcnv2.yaml",
            pretty_name=pretty_name,
            license=DATASET.license,
            license_name="movielens",
            license_link=f"{url}-README.txt",
        )


if __name__ == "__main__":
    main()
