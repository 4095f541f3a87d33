"""MovieLens from files in the published layouts: small ones made here, and the real ones where they are at hand."""

import functools
import gzip
import hashlib
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from huggingface_hub import CommitOperationAdd, DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts import movielens, publishing

REPOSITORY = Path(__file__).resolve().parents[2]
REAL = REPOSITORY.parent / "shared" / "datasets"
COLUMNS = ["user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre", "label"]

TITLES = {
    "1193": "One Flew Over the Cuckoo's Nest (1975)",
    "73": "Misérables, Les (1995)",
    "260": "Star Wars: Episode IV - A New Hope (1977)",
    "9": 'A::B|C "d", e\t\x85 (2000):',
}
GENRES = {"1193": ["Drama"], "73": ["Drama", "Musical"], "260": ["Action", "Sci-Fi"], "9": ["Children's", "Comedy"]}
GENRE_NAMES = [
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]
# user, movie, rating, time: out of order, with ties, and with ratings of 3 that must go
RATINGS = [
    ("1", "1193", 5, 30),
    ("2", "73", 3, 10),
    ("2", "260", 1, 20),
    ("1", "9", 4, 20),
    ("10", "73", 2, 20),
    ("10", "260", 3, 40),
    ("1", "260", 5, 5),
    ("2", "9", 2, 100),
]
IN_ORDER = [("1", "260", 1), ("2", "260", 0), ("1", "9", 1), ("10", "73", 0), ("1", "1193", 1), ("2", "9", 0)]


def files_1m(ratings: list[tuple[str, str, int, int]], titles: dict[str, str] = TITLES) -> dict[str, str]:
    """The three files of MovieLens-1M."""
    return {
        "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n10::F::35::1::95370-1234\n",
        "movies.dat": "".join(f"{movie}::{title}::{'|'.join(GENRES[movie])}\n" for movie, title in titles.items()),
        "ratings.dat": "".join(f"{user}::{movie}::{rating}::{time}\n" for user, movie, rating, time in ratings),
    }


def files_100k(ratings: list[tuple[str, str, int, int]], titles: dict[str, str] = TITLES) -> dict[str, str]:
    """The four files of MovieLens-100K."""

    def flags(movie: str) -> str:
        return "|".join(str(int(name in GENRES[movie])) for name in GENRE_NAMES)

    return {
        "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n10|7|M|student|V3N4P\n",
        "u.item": "".join(f"{m}|{title}|01-Jan-1995||http://x/?{m}|{flags(m)}\n" for m, title in titles.items()),
        "u.genre": "".join(f"{name}|{number}\n" for number, name in enumerate(GENRE_NAMES)) + "\n",
        "u.data": "".join(f"{user}\t{movie}\t{rating}\t{time}\n" for user, movie, rating, time in ratings),
    }


FILES = {"movielens-1m": files_1m, "movielens-100k": files_100k}


def write_files(folder: Path, files: dict[str, str], *, packed: bool = False) -> Path:
    """Write the files in Latin-1, plain or gzipped."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        content = text.encode("latin-1")
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def all_rows(dataset: datasets.DatasetDict) -> list[dict[str, str | int]]:
    return [row for split in ("train", "validation", "test") for row in dataset[split]]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", FILES)
def test_rows_are_joined_labelled_and_in_time_order(name: str, packed: bool, tmp_path: Path) -> None:
    dataset = movielens.load(name, write_files(tmp_path / "raw", FILES[name](RATINGS), packed=packed))
    rows = all_rows(dataset)
    assert list(dataset) == ["train", "validation", "test"]
    assert [(row["user_id"], row["movie_id"], row["label"]) for row in rows] == IN_ORDER
    assert [row["title"] for row in rows] == [TITLES[movie] for _, movie, _ in IN_ORDER]
    assert [row["genre"] for row in rows] == [", ".join(GENRES[movie]) for _, movie, _ in IN_ORDER]
    for split in dataset.values():
        assert split.column_names == COLUMNS
        assert {name: feature.dtype for name, feature in split.features.items()} == {
            **dict.fromkeys(COLUMNS, "string"),
            "label": "int64",
        }


def test_codes_of_1m_become_words(tmp_path: Path) -> None:
    rows = all_rows(movielens.load("movielens-1m", write_files(tmp_path, files_1m(RATINGS))))
    users = {row["user_id"]: [row[name] for name in COLUMNS[1:5]] for row in rows}
    assert users == {
        "1": ["female", "under 18", "K-12 student", "48067"],
        "2": ["male", "56 or older", "self-employed", "70072"],
        "10": ["female", "35-44", "academic/educator", "95370-1234"],
    }


def test_words_of_100k_stay(tmp_path: Path) -> None:
    rows = all_rows(movielens.load("movielens-100k", write_files(tmp_path, files_100k(RATINGS))))
    users = {row["user_id"]: [row[name] for name in COLUMNS[1:5]] for row in rows}
    assert users == {
        "1": ["male", "24", "technician", "85711"],
        "2": ["female", "53", "other", "94043"],
        "10": ["male", "7", "student", "V3N4P"],
    }


def test_windows_line_ends(tmp_path: Path) -> None:
    unix, windows = files_1m(RATINGS), {k: v.replace("\n", "\r\n") for k, v in files_1m(RATINGS).items()}
    expected = all_rows(movielens.load("movielens-1m", write_files(tmp_path / "unix", unix)))
    assert all_rows(movielens.load("movielens-1m", write_files(tmp_path / "windows", windows))) == expected


@settings(max_examples=40, deadline=None)
@given(title=st.text(st.characters(codec="latin-1", exclude_characters="\r\n")), name=st.sampled_from(list(FILES)))
def test_any_title_comes_back(title: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = FILES[name]([("1", "9", 5, 1)], {**TITLES, "9": title})
        dataset = movielens.load(name, write_files(Path(folder), files))
    assert all_rows(dataset)[0]["title"] == title


@pytest.mark.parametrize(
    ("rows", "train", "validation", "test"),
    [(20, 16, 2, 2), (25, 19, 3, 3), (100, 81, 9, 10), (109, 88, 10, 11), (1, 0, 0, 1)],
)
def test_split_sizes_by_hand(rows: int, train: int, validation: int, test: int, tmp_path: Path) -> None:
    # One rating of 3 per kept row, which must not count. Times fall, so that file order is not time order.
    ratings = [("1", "9", rating, 1000 - time) for time in range(rows) for rating in (3, 4)]
    dataset = movielens.load("movielens-1m", write_files(tmp_path, files_1m(ratings)))
    assert dataset.num_rows == {"train": train, "validation": validation, "test": test}


def test_no_row_is_lost_or_in_two_splits_and_ties_keep_file_order(tmp_path: Path) -> None:
    pairs = [(user, movie) for user in ("1", "2", "10") for movie in TITLES] * 20
    ratings = [(user, movie, 1 + at % 2, at * 7 % 5) for at, (user, movie) in enumerate(pairs)]
    dataset = movielens.load("movielens-100k", write_files(tmp_path, files_100k(ratings)))
    expected = [(user, movie) for user, movie, _, _ in sorted(ratings, key=lambda rating: rating[3])]
    assert [(row["user_id"], row["movie_id"]) for row in all_rows(dataset)] == expected


def test_unknown_name_offers_the_right_ones() -> None:
    with pytest.raises(ValueError, match="'movielens-20m': choose one of movielens-1m, movielens-100k"):
        movielens.load("movielens-20m")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"raw_dir '.*nowhere' is not a folder"):
        movielens.load("movielens-1m", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, files in FILES.items() for file in files(RATINGS)], ids="/".join
)
def test_missing_file_is_named(name: str, file: str, tmp_path: Path) -> None:
    (write_files(tmp_path, FILES[name](RATINGS)) / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {file} in .*: looked for {file} and {file}.gz"):
        movielens.load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "line"),
    [
        ("movielens-1m", "users.dat", "3::F::1::10"),
        ("movielens-1m", "users.dat", "3::X::1::10::48067"),
        ("movielens-1m", "movies.dat", "3::Jumanji (1995)"),
        ("movielens-1m", "ratings.dat", "1::9::4::978300760::1"),
        ("movielens-1m", "ratings.dat", "1::9::6::978300760"),
        ("movielens-1m", "ratings.dat", ""),
        ("movielens-100k", "u.user", "3|53|F|other"),
        ("movielens-100k", "u.item", "3|Jumanji (1995)|01-Jan-1995||http://x|0|0|1"),
        ("movielens-100k", "u.genre", "Western"),
        ("movielens-100k", "u.data", "1 9 4 978300760"),
    ],
)
def test_broken_line_is_shown(name: str, file: str, line: str, tmp_path: Path) -> None:
    files = FILES[name](RATINGS)
    lines = files[file].rstrip("\n").split("\n")
    files[file] = "\n".join([*lines, line, lines[-1], ""])
    with pytest.raises(ValueError, match=r"does not hold the columns .* as published") as error:
        movielens.load(name, write_files(tmp_path, files))
    assert f"line {len(lines) + 1} of {str(tmp_path / file)!r} is {line!r}" in str(error.value)


def test_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1 of .*ratings\.dat' is ''"):
        movielens.load("movielens-1m", write_files(tmp_path, files_1m([])))


@pytest.mark.parametrize(
    ("rating", "message"),
    [(("77", "9", 5, 1), "user_id '77'.* users file"), (("1", "77", 5, 1), "movie_id '77'.* movies")],
)
@pytest.mark.parametrize("name", FILES)
def test_unknown_user_or_movie(name: str, rating: tuple[str, str, int, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        movielens.load(name, write_files(tmp_path, FILES[name]([*RATINGS, rating])))


@pytest.mark.parametrize(("column", "line"), [("age", "3::F::2::10::1"), ("occupation", "3::F::1::21::1")])
def test_unknown_code(column: str, line: str, tmp_path: Path) -> None:
    files = files_1m(RATINGS)
    files["users.dat"] += f"{line}\n"
    with pytest.raises(ValueError, match=f"{column} .*'2.*published README"):
        movielens.load("movielens-1m", write_files(tmp_path, files))


def test_genres_that_are_not_the_published_ones(tmp_path: Path) -> None:
    files = files_100k(RATINGS)
    files["u.genre"] = files["u.genre"].replace("Western|18\n", "")
    with pytest.raises(ValueError, match=r"u\.genre numbers its genres .*not 0 to 18"):
        movielens.load("movielens-100k", write_files(tmp_path, files))


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-20], lambda content: b"plain text"], ids=["cut", "no gzip"]
)
def test_damaged_gzip_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = write_files(tmp_path, files_1m(RATINGS), packed=True) / "ratings.dat.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"ratings\.dat\.gz' is not a complete gzip file"):
        movielens.load("movielens-1m", tmp_path)


# The download, against a server on this machine


@pytest.fixture
def archive_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serve tmp_path/served, which holds a small ml-1m.zip, in place of the publisher."""
    served = tmp_path / "served"
    served.mkdir()
    with zipfile.ZipFile(served / "ml-1m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files_1m(RATINGS).items():
            archive.writestr(f"ml-1m/{name}", text.encode("latin-1"))
    md5 = hashlib.md5((served / "ml-1m.zip").read_bytes()).hexdigest()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    monkeypatch.setattr(movielens, "BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setitem(movielens._ARCHIVES, "movielens-1m", ("ml-1m", md5))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("archive_server")
def test_archive_is_downloaded_once(tmp_path: Path) -> None:
    expected = all_rows(movielens.load("movielens-1m", write_files(tmp_path / "raw", files_1m(RATINGS))))
    assert all_rows(movielens.load("movielens-1m")) == expected
    shutil.rmtree(tmp_path / "served")
    assert all_rows(movielens.load("movielens-1m")) == expected


@pytest.mark.usefixtures("archive_server")
def test_archive_with_another_checksum_is_refused_and_not_kept(tmp_path: Path) -> None:
    archive = tmp_path / "served" / "ml-1m.zip"
    good = archive.read_bytes()
    archive.write_bytes(good[:-1])
    with pytest.raises(ValueError, match=r"md5 .*, the published one .*--raw_dir"):
        movielens.load("movielens-1m")
    archive.write_bytes(good)
    assert len(all_rows(movielens.load("movielens-1m"))) == len(IN_ORDER)


@pytest.mark.usefixtures("archive_server")
def test_archive_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "served" / "ml-1m.zip").unlink()
    with pytest.raises(ConnectionError, match=r"cannot download http://127.*ml-1m\.zip .*pass --raw_dir"):
        movielens.load("movielens-1m")


def test_no_network(archive_server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    archive_server.socket.close()
    with pytest.raises(ConnectionError, match="pass --raw_dir"):
        movielens.load("movielens-1m")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="pass --raw_dir"):
        movielens.load("movielens-1m")


# The written folder


@pytest.mark.parametrize("name", FILES)
def test_written_folder_reloads(name: str, tmp_path: Path) -> None:
    raw, output = write_files(tmp_path / "raw", FILES[name](RATINGS * 3)), tmp_path / "new" / "output"
    movielens.main(["--dataset_name", name, "--raw_dir", str(raw), "--output_dir", str(output)])
    assert sorted(file.name for file in output.iterdir()) == [
        "README.md",
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]
    reloaded = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    original = movielens.load(name, raw)
    assert {split: rows.to_list() for split, rows in reloaded.items()} == {
        split: rows.to_list() for split, rows in original.items()
    }
    assert reloaded["train"].features == original["train"].features
    card = DatasetCard.load(output / "README.md")
    assert card.data.pretty_name == {"movielens-1m": "MovieLens-1M", "movielens-100k": "MovieLens-100K"}[name]
    assert (card.data.license, card.data.language, card.data.size_categories) == ("other", ["en"], ["n<1K"])
    assert card.data.task_categories == ["tabular-classification"]
    assert (card.data.license_name, card.data.license_link.rsplit("/", 1)[1]) == (
        "movielens",
        {"movielens-1m": "ml-1m-README.txt", "movielens-100k": "ml-100k-README.txt"}[name],
    )
    assert "may not be redistributed" in card.text and "https://doi.org/10.1145/2827872" in card.text
    assert f'load_dataset("{output}")' in card.text
    assert f"train.py configuration/{name}/dcnv2.yaml" in card.text
    assert (REPOSITORY / "configuration" / name / "dcnv2.yaml").is_file()


def test_runs_as_a_file_from_anywhere(tmp_path: Path) -> None:
    raw = write_files(tmp_path / "raw", files_1m(RATINGS))
    script = REPOSITORY / "data_scripts" / "movielens.py"
    command = [
        sys.executable,
        str(script),
        "--dataset_name",
        "movielens-1m",
        "--raw_dir",
        str(raw),
        "--output_dir",
        "out",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out" / "train.parquet").is_file()


# The push, against a Hub that only takes notes; tests/hub/test_datasets.py has one that serves


class NotingHub:
    """In place of HfApi: its one dataset is private or not, and `fault` is raised when something is pushed."""

    def __init__(self, private: bool = True, fault: Exception | None = None):
        self.private, self.fault = private, fault
        self.created: list[tuple[str, dict[str, Any]]] = []
        self.commits: list[dict[str, Any]] = []

    def __call__(self) -> "NotingHub":
        return self

    def create_repo(self, repo_id: str, **settings: Any) -> str:
        self.created.append((repo_id, settings))
        return f"https://hub/datasets/{repo_id}"

    def dataset_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def create_commit(self, repo_id: str, operations: list[CommitOperationAdd], **settings: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.commits.append({operation.path_in_repo: operation.path_or_fileobj for operation in operations})


@pytest.fixture
def push_arguments(tmp_path: Path) -> list[str]:
    raw = write_files(tmp_path / "raw", files_1m(RATINGS * 3))
    output = tmp_path / "output"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    where = ["--raw_dir", str(raw), "--output_dir", str(output)]
    return ["--dataset_name", "movielens-1m", *where, "--push_to_hub", "me/ml"]


def test_pushed_is_private_and_in_one_commit(
    push_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = NotingHub()
    monkeypatch.setattr(publishing, "HfApi", hub)
    movielens.main(push_arguments)
    assert hub.created == [("me/ml", {"repo_type": "dataset", "private": True, "exist_ok": True})]
    files = ["README.md", "train.parquet", "validation.parquet", "test.parquet"]
    assert hub.commits == [{file: str(tmp_path / "output" / file) for file in files}]  # and not notes.txt
    assert 'load_dataset("me/ml")' in (tmp_path / "output" / "README.md").read_text()
    assert "pushed it to https://hub/datasets/me/ml, which is private" in capsys.readouterr().out


def test_public_movielens_is_refused(
    push_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = NotingHub(private=False)
    monkeypatch.setattr(publishing, "HfApi", hub)
    with pytest.raises(SystemExit, match=r"error: 'me/ml' exists and is public, so nothing was uploaded: make it") as e:
        movielens.main(push_arguments)
    assert "https://hub/datasets/me/ml/settings" in str(e.value) and "\n" not in str(e.value)
    assert hub.commits == []
    assert (tmp_path / "output" / "train.parquet").is_file()


def test_failed_push_is_one_line_and_loses_nothing(
    push_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "HfApi", NotingHub(fault=RuntimeError("no\n\nroom")))
    with pytest.raises(SystemExit, match=r"cannot push to 'me/ml' \(no room\): .*then run the same command again$"):
        movielens.main(push_arguments)
    assert datasets.load_dataset(str(tmp_path / "output"), cache_dir=str(tmp_path / "cache")).num_rows["train"] > 0


@pytest.mark.parametrize("name", ["ml", "me/ml/1m", "me/", "https://huggingface.co/me"])
def test_what_is_no_dataset_id_is_refused_before_anything_is_done(
    name: str, push_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        movielens.main([*push_arguments[:-1], name])
    assert f"{name!r} is not a dataset id: write OWNER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "output" / "train.parquet").exists()


def test_bad_raw_files_are_one_line(push_arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "raw" / "users.dat").unlink()
    with pytest.raises(SystemExit, match=r"^movielens\.py: error: no users\.dat in "):
        movielens.main(push_arguments)


# The real files


def test_real_1m() -> None:
    raw = REAL / "movielens-1m"
    if not raw.is_dir():
        pytest.skip(f"the MovieLens-1M files are not at {raw}")
    dataset = movielens.load("movielens-1m", raw)
    assert dataset.num_rows == {"train": 598_599, "validation": 66_511, "test": 73_902}
    assert sum(dataset.num_rows.values()) == 739_012
    assert len(set(dataset["train"].data["genre"].to_pylist())) > 250
    for row in (dataset["train"][0], dataset["test"][-1]):
        assert all(isinstance(row[name], str) and row[name] for name in COLUMNS[:-1])


def test_real_100k() -> None:
    raw = REAL / "movielens-100k"
    if not raw.is_dir():
        pytest.skip(f"the MovieLens-100K files are not at {raw}")
    dataset = movielens.load("movielens-100k", raw)
    assert dataset.num_rows == {"train": 59_012, "validation": 6_557, "test": 7_286}
