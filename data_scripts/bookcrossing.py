"""BookCrossing as click data: one row per rating, in the order of the published file, which has no times.

    python -m data_scripts.bookcrossing --raw_dir DIR --output_dir DIR [--push_to_hub OWNER/NAME]

Ratings above 5 become label 1, all others label 0, also the zeros of implicit feedback. Ratings of books that the books file
lacks are dropped. The last tenth of the rows is the test split, the last tenth of what remains the validation split.

The dump has a dialect of its own. Values are in Latin-1, some in UTF-8, and words hold HTML entities. Quotes inside a value are
escaped by a backslash, or doubled. Copies that were read as plain CSV and written again have their quotes elsewhere, and their
columns shifted where a title ends in an escaped quote. A place has a line break, and not all ages and years are possible.
"""

from __future__ import annotations

import html
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from datasets import DatasetDict

if __name__ == "__main__":  # run as a file, python looks for modules in the file's folder, not in the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data_scripts import raw_files, registry
from data_scripts.publishing import one_line_errors, parser_of, publish
from data_scripts.raw_files import Folder

URL = "http://www2.informatik.uni-freiburg.de/~cziegler/BX/BX-CSV-Dump.zip"
MD5 = "37d647ee9e18ba134ea6d78ee4fe5292"  # none is published; this is what LensKit's book data tools had

_COLUMNS = ["user_id", "location", "age", "isbn", "title", "author", "publication_year", "publisher", "label"]
_AGES = (5, 100)
_YEARS = (1000, 2005)  # the crawl is of 2004, when books of 2005 were announced

_USERS, _BOOKS, _RATINGS = "BX-Users.csv", "BX-Books.csv", "BX-Book-Ratings.csv"
_HEADS = {
    _USERS: ["User-ID", "Location", "Age"],
    _BOOKS: [
        *("ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher"),
        *("Image-URL-S", "Image-URL-M", "Image-URL-L"),
    ],
    _RATINGS: ["User-ID", "ISBN", "Book-Rating"],
}
# One whole line of each file. Places, titles and names may hold any character, separators too.
_LINES = {
    _USERS: r'"(?P<user_id>\d+)";(?:"(?P<location>.*)"|NULL);(?:"(?P<age>[^"]*)"|NULL)',
    _BOOKS: (
        r'"(?P<isbn>[^"]*)";(?:"(?P<title>.*)"|NULL);(?:"(?P<author>.*)"|NULL);(?:"(?P<year>[^"]*)"|NULL);'
        r'(?:"(?P<publisher>.*)"|NULL)(?:;(?:"[^"]*"|NULL)){3}'
    ),
    _RATINGS: r'"(?P<user_id>\d+)";"(?P<isbn>.*)";"(?P<rating>\d|10)"',
}
# A title that ends in an escaped quote swallows the author when it is read as plain CSV: what follows is a column too early.
_SHIFTED = (
    r'"(?P<isbn>[^"]*)";"(?P<title>.*)\\"*;"*(?P<author>[^"]*)"+;"(?P<year>\d+)";"(?P<publisher>.*)"'
    r'(?:;"[^"]+"){3}(?:;(?:NULL|"")?)?'
)
_BREAK = "\v"  # in place of a line break inside a value, until the value is cleaned


def load(dataset_name: str = "bookcrossing", raw_dir: str | Path | None = None) -> DatasetDict:
    """Return the splits train, validation and test, in the order of the ratings file.

    Columns: user_id, location, age, isbn, title, author, publication_year, publisher (strings; None where the dump has nothing,
    or nothing that can be) and label (int64, 0 or 1). `raw_dir` holds the published files, each plain or gzipped; without it
    the published archive is downloaded once into the cache of `datasets` and its checksum verified.

    Raises ValueError for a line that is not in the published format, FileNotFoundError for a missing folder or file,
    ConnectionError where the archive cannot be had.
    """
    return read(raw_dir)[0]


def read(raw_dir: str | Path | None = None) -> tuple[DatasetDict, dict[str, int]]:
    """Return what `load` does, and the counts of each step."""
    folder = raw_files.folder_of(raw_dir, _download)
    users, breaks, _ = _read(folder, _USERS)
    books, _, shifted = _read(folder, _BOOKS)
    ratings, _, _ = _read(folder, _RATINGS)
    age, impossible_ages = _within(users["age"], *_AGES)
    year, impossible_years = _within(books["year"], *_YEARS)
    user = pc.index_in(ratings["user_id"], value_set=users["user_id"])
    book = pc.index_in(ratings["isbn"], value_set=books["isbn"])
    kept = pc.and_(pc.is_valid(user), pc.is_valid(book))
    of_user, of_book = user.filter(kept), book.filter(kept)
    clicks = pc.greater(ratings["rating"].filter(kept).cast(pa.int64()), 5).cast(pa.int64())
    rows = pa.table(
        {
            **{name: users[name].take(of_user) for name in ("user_id", "location")},
            "age": age.take(of_user),
            **{name: books[name].take(of_book) for name in ("isbn", "title", "author")},
            "publication_year": year.take(of_book),
            "publisher": books["publisher"].take(of_book),
            "label": clicks,
        }
    )
    counts = {
        "users": len(users),
        "users whose place had a line break, mended": breaks,
        f"users whose age was not between {_AGES[0]} and {_AGES[1]}, made missing": impossible_ages,
        "books": len(books),
        "books whose columns a quote at the end of the title shifts, mended": shifted,
        f"books whose year was not between {_YEARS[0]} and {_YEARS[1]}, made missing": impossible_years,
        "ratings": len(ratings),
        "dropped: the books file lacks the book": pc.sum(pc.is_null(book)).as_py() or 0,
        "dropped: the users file lacks the user": pc.sum(pc.and_(pc.is_null(user), pc.is_valid(book))).as_py() or 0,
        "rows": len(rows),
    }
    return raw_files.cut(rows), counts


def _download() -> zipfile.Path:
    """Return the published archive, downloaded on first use and read where it lies."""
    return zipfile.Path(raw_files.download(URL, MD5, "the folder of the three files BX-*.csv"))


def _read(folder: Folder, file_name: str) -> tuple[pa.Table, int, int]:
    """Return the file's columns, all strings, clean; how many line breaks stood inside a value; how many lines were shifted."""
    file = raw_files.find(folder, [file_name])
    head, _, text = raw_files.content(file).decode("latin-1").rstrip("\r\n").replace("\r\n", "\n").partition("\n")
    expected = ";".join(f'"{name}"' for name in _HEADS[file_name])
    if head != expected:
        raise ValueError(f"line 1 of {str(file)!r} is {head[:200]!r}, not {expected!r}: take the file as published")
    # A line that does not begin with a quote goes on with the value of the one before.
    text, breaks = re.subn(r'\n(?!")', _BREAK, text)
    lines = pc.split_pattern(pa.array([text], pa.large_string()), pattern="\n").flatten()
    found = pc.extract_regex(lines, pattern=f"^(?s:{_LINES[file_name]})$")
    shifted = 0
    if file_name == _BOOKS:
        mended = pc.extract_regex(lines, pattern=f"^(?s:{_SHIFTED})$")
        a_year = pc.match_substring_regex(pc.struct_field(found, "year"), r"^\d*$")
        is_shifted = pc.and_(pc.is_valid(mended), pc.invert(pc.fill_null(a_year, False)))
        shifted = pc.sum(is_shifted).as_py() or 0
        found = pc.if_else(is_shifted, mended, found)
    if found.null_count:
        at = pc.index(found.is_null(), True).as_py()
        before = pc.sum(pc.count_substring(lines.slice(0, at), _BREAK)).as_py() or 0
        raise ValueError(
            f"line {2 + at + before} of {str(file)!r} is {lines[at].as_py()[:200]!r}, which does not hold the columns "
            f"{', '.join(_HEADS[file_name])} in the published format: take the file as published, or mend that line"
        )
    table = pa.Table.from_struct_array(found)
    return pa.table({name: _clean(table[name]) for name in table.column_names}), breaks, shifted


def _clean(column: pa.ChunkedArray) -> pa.Array:
    """Return the words that the values stand for; an empty one is missing."""
    values = column.cast(pa.string()).combine_chunks()
    # Most are as they should be.
    odd = pc.match_substring_regex(values, r'[\\"&\x00-\x1f\x{80}-\x{ff}]|^ |  | $|^$')
    return pc.replace_with_mask(values, odd, pa.array(map(_clean_value, values.filter(odd).to_pylist()), pa.string()))


def _clean_value(value: str) -> str | None:
    value = _unescape(value.replace('""', '"'))
    while (decoded := _from_utf8(value)) != value:
        value = decoded
    # ü in UTF-8, twice: "Ã\x83Â¼", of which the second letter, none that can be seen, became a question mark.
    value = re.sub("Ã\\?Â([\x80-\xbf])", lambda found: _from_utf8(f"Ã{found[1]}"), value)
    return " ".join(html.unescape(value).split()) or None


def _unescape(value: str) -> str:
    r"""Return the value without backslashes that escape a quote, or another backslash.

    A copy that was read as plain CSV has lost the first escaped quote, and has a quote at its end instead: `\O\" Is for Outlaw"`
    was `\"O\" Is for Outlaw`.
    """
    lost = re.search(r'\\(?!["\\])', value)
    if lost and value.endswith('"') and not value.endswith('\\"'):
        value = f'{value[: lost.end()]}"{value[lost.end() : -1]}'
    return re.sub(r'\\(["\\])', r"\1", value)


def _from_utf8(value: str) -> str:
    """Return what the value's bytes are in UTF-8, and the value itself where they are none."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def _within(values: pa.Array, least: int, most: int) -> tuple[pa.Array, int]:
    """Return whole numbers from `least` to `most`, as text without leading zeros, all else as missing; how many of that were
    there."""
    digits = pc.match_substring_regex(values, r"^0*\d{1,9}$")
    numbers = pc.if_else(digits, values, None).cast(pa.int64())
    numbers = pc.if_else(pc.and_(pc.greater_equal(numbers, least), pc.less_equal(numbers, most)), numbers, None)
    return numbers.cast(pa.string()), numbers.null_count - values.null_count


_CARD = f"""
Ratings of BookCrossing as clicks: `label` is 1 for a rating above 5 and 0 for all others, also for the zeros of implicit
feedback. Ratings of books without a record are dropped.

The dump has no times, so rows are in the order of its file of ratings, which is not by time, and mostly by user: `test` is the
last tenth of all rows, `validation` the last tenth of the rows before it.

Made by `data_scripts/bookcrossing.py` of modeling-flip from BX-CSV-Dump ({URL}), collected by
Cai-Nicolas Ziegler in August and September 2004 with permission of Ron Hornbaker. It is free for research use that
acknowledges it by citing Cai-Nicolas Ziegler, Sean M. McNee, Joseph A. Konstan, and Georg Lausen. 2005. Improving
Recommendation Lists Through Topic Diversification. WWW '05. https://doi.org/10.1145/1060745.1060754
"""

DATASET = registry.Dataset(
    names=("bookcrossing",),
    load=load,
    fields=dict.fromkeys(_COLUMNS[:-1], "categorical"),
    item_fields=("isbn", "title", "author", "publication_year", "publisher"),
    card=_CARD,
    license="other",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the dataset as Parquet files with a dataset card, and push it where that is asked for."""
    options = parser_of("BookCrossing").parse_args(arguments)
    with one_line_errors("bookcrossing.py"):
        dataset, counts = read(options.raw_dir)
        publish(
            dataset,
            counts,
            options,
            DATASET.card,
            item_fields=DATASET.item_fields,
            train="configuration/bookcrossing/dcnv2.yaml",
            pretty_name="BookCrossing",
            license=DATASET.license,
            license_name="research-use",
            license_link="http://www2.informatik.uni-freiburg.de/~cziegler/BX/",
        )


if __name__ == "__main__":
    main()
