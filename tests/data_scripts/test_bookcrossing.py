"""BookCrossing from hand-made files with each oddity of the dump, and the real subset where it is at hand."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetCard

from data_scripts import bookcrossing

REPOSITORY = Path(__file__).resolve().parents[2]
REAL = REPOSITORY.parent / "shared" / "datasets" / "book-crossing"
COLUMNS = ["user_id", "location", "age", "isbn", "title", "author", "publication_year", "publisher", "label"]
HEADS = {
    "BX-Users.csv": '"User-ID";"Location";"Age"',
    "BX-Books.csv": (
        '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S";"Image-URL-M";"Image-URL-L"'
    ),
    "BX-Book-Ratings.csv": '"User-ID";"ISBN";"Book-Rating"',
}
URLS = '"http://x/1.jpg";"http://x/2.jpg";"http://x/3.jpg"'
PLAIN = f'"0001";"Clara Callan";"Richard Bruce Wright";"2001";"HarperFlamingo Canada";{URLS}'


def write(folder: Path, users: list[str], books: list[str], ratings: list[str], *, packed: bool = False) -> Path:
    """The three files in Latin-1, lines ended as the dump's are."""
    folder.mkdir(exist_ok=True)
    for (name, head), lines in zip(HEADS.items(), (users, books, ratings), strict=True):
        content = "".join(f"{line}\r\n" for line in [head, *lines]).encode("latin-1")
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def rows_of(dataset: datasets.DatasetDict) -> list[dict[str, str | int | None]]:
    return [row for split in ("train", "validation", "test") for row in dataset[split]]


def book(folder: Path, line: str) -> Mapping[str, str | int | None]:
    """What becomes of one line of the books file; its ISBN is 0001."""
    dataset, _ = bookcrossing.read(write(folder, ['"1";"x";NULL'], [line], ['"1";"0001";"0"']))
    return rows_of(dataset)[0]


def user(folder: Path, line: str) -> Mapping[str, str | int | None]:
    """What becomes of one line of the users file; its user is 1."""
    dataset, _ = bookcrossing.read(write(folder, [line], [PLAIN], ['"1";"0001";"0"']))
    return rows_of(dataset)[0]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_rows_are_joined_labelled_and_in_file_order(packed: bool, tmp_path: Path) -> None:
    users = ['"2";"málaga, n/a, spain";"18"', '"1";"stockton, california, usa";NULL']
    books = [PLAIN, f'"0002X";"Flu";"Gina Bari Kolata";"0";"Farrar";{URLS}']
    ratings = ['"2";"0002X";"6"', '"1";"0001";"5"', '"1";"0002X";"0"', '"1";"0001";"10"']
    dataset = bookcrossing.load("bookcrossing", write(tmp_path / "raw", users, books, ratings, packed=packed))
    assert dataset.num_rows == {"train": 2, "validation": 1, "test": 1}
    assert [(r["user_id"], r["isbn"], r["label"]) for r in rows_of(dataset)] == [
        *[("2", "0002X", 1), ("1", "0001", 0), ("1", "0002X", 0), ("1", "0001", 1)]
    ]
    assert [rows_of(dataset)[0][name] for name in COLUMNS] == [
        *("2", "málaga, n/a, spain", "18", "0002X", "Flu", "Gina Bari Kolata", None, "Farrar", 1)
    ]
    for split in dataset.values():
        assert split.column_names == COLUMNS
        assert {n: f.dtype for n, f in split.features.items()} == dict.fromkeys(COLUMNS, "string") | {"label": "int64"}


def test_nothing_is_lost_uncounted(tmp_path: Path) -> None:
    users = ['"1";"cernusco s\n, milan, italy";NULL', '"2";"a";"4"', '"3";"a";"101"', '"4";"a";"100"', '"5";"a";"five"']
    books = [
        PLAIN,
        f'"0002";"A";"B";"0";"C";{URLS}',
        f'"0003";"A";"B";"2030";"C";{URLS}',
        f'"0004";"A";"B";"DK Publishing Inc";"C";{URLS}',
        f'"0005";"Readers (Level 4)\\";Michael Teitelbaum";"2000";"DK Publishing Inc";{URLS}',
    ]
    ratings = ['"1";"0001";"8"', '"1";"0009";"8"', '"9";"0001";"8"', '"9";"0009";"8"', '"1";"0005";"8"']
    dataset, counts = bookcrossing.read(write(tmp_path, users, books, ratings))
    assert list(counts.values()) == [5, 1, 3, 5, 1, 3, 5, 2, 1, 2]
    assert counts["ratings"] == counts["rows"] + sum(n for step, n in counts.items() if step.startswith("dropped"))
    assert [row["isbn"] for row in rows_of(dataset)] == ["0001", "0005"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"\"O\" Is for Outlaw", '"O" Is for Outlaw'),  # the dump
        ('""O"" Is for Outlaw', '"O" Is for Outlaw'),  # plain CSV
        (r'\O\"" Is for Outlaw""', '"O" Is for Outlaw'),  # the dump, read as plain CSV and written again
        (r'The Yogi Book: \I Said\""""', 'The Yogi Book: "I Said"'),
        (r"a \\ b", r"a \ b"),
        (r"a \ b", r"a \ b"),
        ("Tom; Dick; Harry", "Tom; Dick; Harry"),
        ("Simon &amp; Schuster", "Simon & Schuster"),
        ("&#321;ód&#378;", "Łódź"),
        ("B&N", "B&N"),
        ("Böll", "Böll"),
        ("Saint-ExupÃ©ry", "Saint-Exupéry"),  # UTF-8 in the midst of Latin-1
        ("Saint-Exup\u00c3\u0083\u00c2\u00a9ry", "Saint-Exupéry"),  # twice
        ("QuerschÃ?Â¼sse", "Querschüsse"),  # twice, and a byte without a letter became a question mark
        (" two  spaces ", "two spaces"),
        ("", None),
    ],
)
def test_words_are_what_they_stand_for(written: str, meant: str | None, tmp_path: Path) -> None:
    row = book(tmp_path, f'"0001";"{written}";"{written}";"1999";"{written}";{URLS}')
    assert [row[name] for name in ("title", "author", "publication_year", "publisher")] == [meant, meant, "1999", meant]


@pytest.mark.parametrize(
    "line",
    [
        rf'"0001";"The X-Men (Level 4)\"";"Michael Teitelbaum";"2000";"DK Publishing Inc";{URLS}',
        rf'"0001";"The X-Men (Level 4)\";Michael Teitelbaum";"2000";"DK Publishing Inc";{URLS}',
        rf'"0001";"The X-Men (Level 4)\"";Michael Teitelbaum""";"2000";"DK Publishing Inc";{URLS};NULL',
        rf'"0001";"The X-Men (Level 4)\"";Michael Teitelbaum""";"2000";"DK Publishing Inc";{URLS};""',
    ],
    ids=["dump", "shifted", "written again", "written again, empty"],
)
def test_shifted_columns_are_put_back(line: str, tmp_path: Path) -> None:
    row = book(tmp_path, line)
    assert str(row["title"]).rstrip('"') == "The X-Men (Level 4)"
    assert [row[name] for name in ("author", "publication_year", "publisher")] == [
        *("Michael Teitelbaum", "2000", "DK Publishing Inc")
    ]


@pytest.mark.parametrize(
    ("line", "location", "age"),
    [
        ('"1";"cernusco s\n, milan, italy";NULL', "cernusco s , milan, italy", None),
        ('"1";"a ""b"", c";"5"', 'a "b", c', "5"),
        ('"1";NULL;"100"', None, "100"),
        ('"1";"a";"0"', "a", None),
        ('"1";"a";"244"', "a", None),
        ('"1";"a";"-1"', "a", None),
        ('"1";"a";"025"', "a", "25"),
        ('"1";"a";"twenty"', "a", None),
        ('"1";"a";"99999999999999999999"', "a", None),
        ('"1";"a";""', "a", None),
    ],
)
def test_places_and_ages(line: str, location: str | None, age: str | None, tmp_path: Path) -> None:
    row = user(tmp_path, line)
    assert (row["location"], row["age"]) == (location, age)


@pytest.mark.parametrize("author", ["NULL", '""'])
def test_a_missing_author_is_missing(author: str, tmp_path: Path) -> None:
    assert book(tmp_path, f'"0001";"A";{author};"1999";NULL;{URLS}')["author"] is None


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("BX-Users.csv", '"3";"a, b, c"'),
        ("BX-Users.csv", '"x";"a";NULL'),
        ("BX-Books.csv", '"0003";"Title";"Author";"1999";"Publisher"'),
        ("BX-Book-Ratings.csv", '"1";"0001"'),
        ("BX-Book-Ratings.csv", '"1";"0001";"11"'),
        ("BX-Book-Ratings.csv", '"1";"0001";"5";"5"x'),
        ("BX-Book-Ratings.csv", '"'),
    ],
)
def test_a_broken_line_is_shown_with_its_number(file: str, line: str, tmp_path: Path) -> None:
    lines = {
        "BX-Users.csv": ['"1";"a\n b";NULL'],
        "BX-Books.csv": [PLAIN],
        "BX-Book-Ratings.csv": ['"1";"0001";"5"'],
    }
    lines[file] += [line, lines[file][0].replace("\n", "")]
    number = 4 if file == "BX-Users.csv" else 3  # the first user takes two lines
    with pytest.raises(ValueError, match=r"does not hold the columns .* mend that line") as error:
        bookcrossing.read(write(tmp_path, *lines.values()))
    assert f"line {number} of {str(tmp_path / file)!r}" in str(error.value)


def test_another_head_is_another_file(tmp_path: Path) -> None:
    write(tmp_path, ['"1";"a";NULL'], [PLAIN], ['"1";"0001";"5"'])
    (tmp_path / "BX-Users.csv").write_text("User-ID,Location,Age\n1,a,\n")
    with pytest.raises(ValueError, match=r"line 1 of .*BX-Users\.csv' is 'User-ID,Location,Age', not '\"User-ID\";"):
        bookcrossing.read(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, ['"1";"a";NULL'], [PLAIN], ['"1";"0001";"5"'], packed=True)
    whole = (tmp_path / "BX-Books.csv.gz").read_bytes()
    (tmp_path / "BX-Books.csv.gz").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"BX-Books\.csv\.gz' is not a complete gzip file"):
        bookcrossing.read(tmp_path)
    (tmp_path / "BX-Books.csv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no BX-Books\.csv in .*: looked for BX-Books.csv and BX-Books.csv.gz"):
        bookcrossing.read(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"raw_dir '.*nowhere' is not a folder"):
        bookcrossing.read(tmp_path / "nowhere")


def test_no_network_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache")
    with pytest.raises(ConnectionError, match=r"cannot download .*BX-CSV-Dump\.zip .*pass --raw_dir"):
        bookcrossing.read()


def test_the_written_folder_says_what_became_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratings = ['"1";"0001";"8"', '"1";"0009";"8"', *['"1";"0001";"0"'] * 20]
    raw, output = write(tmp_path / "raw", ['"1";"a";NULL'], [PLAIN], ratings), tmp_path / "output"
    bookcrossing.main(["--raw_dir", str(raw), "--output_dir", str(output)])
    printed = capsys.readouterr().out
    assert "           1 dropped: the books file lacks the book\n" in printed
    assert "wrote {'train': 16, 'validation': 2, 'test': 3}" in printed
    card = DatasetCard.load(output / "README.md")
    assert "| dropped: the books file lacks the book | 1 |\n" in card.text and "| rows | 21 |\n" in card.text
    assert "https://doi.org/10.1145/1060745.1060754" in card.text and "research use" in card.text
    assert "train.py configuration/bookcrossing/dcnv2.yaml" in card.text
    assert (card.data.license, card.data.license_name, card.data.pretty_name) == (
        "other",
        "research-use",
        "BookCrossing",
    )
    reloaded = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert rows_of(reloaded) == rows_of(bookcrossing.load("bookcrossing", raw))
    with pytest.raises(SystemExit, match=r"^bookcrossing\.py: error: raw_dir '.*nowhere' is not a folder"):
        bookcrossing.main(["--raw_dir", str(tmp_path / "nowhere"), "--output_dir", str(output)])


def test_real_subset() -> None:
    if not REAL.is_dir():
        pytest.skip(f"the BookCrossing files are not at {REAL}")
    dataset, counts = bookcrossing.read(REAL)
    assert dataset.num_rows == {"train": 216_300, "validation": 24_034, "test": 26_704}
    assert list(counts.values()) == [57_568, 0, 232, 29_346, 0, 533, 410_594, 143_556, 0, 267_038]
    assert "Querschüsse - Downsize This!" in (titles := set(dataset["train"]["title"]))
    assert '"O" Is for Outlaw' in titles and not any("&amp;" in title or "\\" in title for title in titles)
