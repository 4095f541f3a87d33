"""Generated raw files of GoodReads, record by record as the public dump writes them: for tests and timing alone.

    python -m benchmarks.goodreads_like --output_dir DIR [--interactions 2000000] [--books 230000] [--seed 0]

Where nothing else is said, as many users, authors and works to a book as in the real files. Ids, titles, dates and empty strings
are made up; popularity is uneven, and some interactions name a book that the books file lacks, as in any crawl.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

GENRES = [
    *("children", "comics, graphic", "fantasy, paranormal", "fiction", "history, historical fiction, biography"),
    *("mystery, thriller, crime", "non-fiction", "poetry", "romance", "young-adult"),
]
FORMATS = ["Paperback", "Hardcover", "Mass Market Paperback", "ebook", "Kindle Edition", "Audio CD", ""]
LANGUAGES = ["eng", "en-US", "", "spa", "ger", "fre"]
WORDS = [
    *("Ash", "Birch", "Cloud", "Dune", "Ember", "Fjord", "Glen", "Harbour"),
    *("Isle", "Junges", "Kéa", "Lønn", "Moor", "Night", "Ödland", "Pine"),
]
CHUNK = 100_000  # interactions drawn at once
DAYS = [(datetime(2007, 1, 1) + timedelta(days=day)).strftime("%a %b %d") for day in range(3950)]
YEARS = [(datetime(2007, 1, 1) + timedelta(days=day)).year for day in range(3950)]


def write(folder: Path, interactions: int, books: int, users: int | None = None, seed: int = 0) -> Path:
    """Write the five files, gzipped; the same numbers and seed give the same records."""
    folder.mkdir(parents=True, exist_ok=True)
    users = users or max(1, books * 876_145 // 2_360_655)
    authors, works = max(1, books * 829_529 // 2_360_655), max(1, books * 1_521_962 // 2_360_655)
    rng = np.random.default_rng(seed)
    kinds: dict[str, Iterator[dict[str, Any]]] = {
        "goodreads_books": (_book(rng, number, authors, works) for number in range(books)),
        "goodreads_book_authors": (_author(number) for number in range(authors)),
        "goodreads_book_works": (_work(rng, number) for number in range(works)),
        "goodreads_book_genres_initial": (_genres(rng, number) for number in range(books)),
    }
    for name, records in kinds.items():
        with gzip.open(folder / f"{name}.json.gz", "wt", compresslevel=1, encoding="ascii") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    with gzip.open(folder / "goodreads_interactions_dedup.json.gz", "wt", compresslevel=1, encoding="ascii") as file:
        for start in range(0, interactions, CHUNK):
            file.writelines(_interactions(rng, min(CHUNK, interactions - start), books, users, start))
    return folder


def _uneven(rng: np.random.Generator, size: int, number: int) -> np.ndarray:
    """Numbers below `number`, the small ones far more often."""
    return (number ** rng.random(size) * rng.random(size)).astype(np.int64)


def _interactions(rng: np.random.Generator, size: int, books: int, users: int, start: int) -> Iterator[str]:
    """Lines; a few thousandths name a book that is not there, and two in five have no rating."""
    user = (_uneven(rng, size, users) * 2_654_435_761 + 17) % 2**32
    book = _uneven(rng, size, books) + np.where(rng.random(size) < 0.003, books, 0)
    rating = rng.choice(6, size, p=[0.4, 0.02, 0.04, 0.14, 0.2, 0.2])
    day, second, zone = rng.integers(0, len(DAYS), size), rng.integers(0, 86_400, size), rng.integers(7, 9, size)
    columns = (column.tolist() for column in (user, book, rating, day, second, zone))
    for row, (u, b, r, d, s, z) in enumerate(zip(*columns, strict=True), start=start):
        added = f"{DAYS[d]} {s // 3600:02}:{s // 60 % 60:02}:{s % 60:02} -0{z}00 {YEARS[d]}"
        yield (
            f'{{"user_id": "{u:08x}{u ^ 0x5BD1E995:08x}{u:08x}{u:08x}", "book_id": "{b + 1}", "review_id": "{row:032x}", '
            f'"is_read": {"true" if r else "false"}, "rating": {r}, "review_text_incomplete": "", "date_added": "{added}", '
            f'"date_updated": "{added}", "read_at": "", "started_at": ""}}\n'
        )


def _title(rng: np.random.Generator) -> str:
    words = " ".join(WORDS[word] for word in rng.integers(0, len(WORDS), int(rng.integers(2, 6))))
    return f"{words}, {rng.integers(1, 1_000_000)}"


def _book(rng: np.random.Generator, number: int, authors: int, works: int) -> dict[str, Any]:
    title, known = _title(rng), rng.random(6) > 0.2
    by = [int(author) + 1 for author in rng.integers(0, authors, 1 + int(rng.random() < 0.1))]
    return {
        "isbn": f"{number:010}" if known[0] else "",
        "text_reviews_count": str(rng.integers(0, 500)),
        "series": [str(rng.integers(1, 400_000))] if rng.random() < 0.3 else [],
        "country_code": "US",
        "language_code": LANGUAGES[rng.integers(0, len(LANGUAGES))],
        "popular_shelves": [{"count": str(rng.integers(1, 999)), "name": name} for name in ("to-read", "owned")],
        "asin": "",
        "is_ebook": "true" if rng.random() < 0.2 else "false",
        "average_rating": f"{rng.uniform(2.5, 5):.2f}",
        "kindle_asin": "",
        "similar_books": [str(rng.integers(1, 2_000_000)) for _ in range(int(rng.integers(0, 4)))],
        "description": " ".join(WORDS[word] for word in rng.integers(0, len(WORDS), int(rng.integers(0, 120)))),
        "format": FORMATS[rng.integers(0, len(FORMATS))],
        "link": f"https://www.goodreads.com/book/show/{number + 1}",
        "authors": [
            {"author_id": str(author), "role": "" if place == 0 else "Editor"} for place, author in enumerate(by)
        ],
        "publisher": f"{WORDS[rng.integers(0, len(WORDS))]} Press {rng.integers(1, 9_000)}" if known[1] else "",
        "num_pages": str(rng.integers(16, 900)) if known[2] else "",
        "publication_day": str(rng.integers(1, 29)) if known[3] else "",
        "isbn13": f"978{number:010}" if known[0] else "",
        "publication_month": str(rng.integers(1, 13)) if known[3] else "",
        "edition_information": "",
        "publication_year": str(rng.integers(1950, 2018)) if known[4] else "",
        "url": f"https://www.goodreads.com/book/show/{number + 1}",
        "image_url": "",
        "book_id": str(number + 1),
        "ratings_count": str(rng.integers(1, 90_000)),
        "work_id": str(rng.integers(1, works + 1)) if known[5] else "",
        "title": title,
        "title_without_series": title,
    }


def _author(number: int) -> dict[str, Any]:
    name = f"{WORDS[number % len(WORDS)]} {WORDS[number // len(WORDS) % len(WORDS)]}son {number}"
    return {
        "average_rating": "3.51",
        "author_id": str(number + 1),
        "text_reviews_count": "634",
        "name": name,
        "ratings_count": "4599",
    }


def _work(rng: np.random.Generator, number: int) -> dict[str, Any]:
    return {
        "books_count": str(rng.integers(1, 20)),
        "reviews_count": "33",
        "original_publication_month": "",
        "default_description_language_code": "",
        "text_reviews_count": "4",
        "best_book_id": str(number + 1),
        "original_publication_year": str(rng.integers(1800, 2018)) if rng.random() < 0.6 else "",
        "original_title": "",
        "rating_dist": "5:7|4:4|3:2|2:0|1:0|total:13",
        "default_chaptering_book_id": "",
        "original_publication_day": "",
        "original_language_id": "",
        "ratings_count": "13",
        "media_type": ["", "book", "not a book"][rng.integers(0, 3)],
        "ratings_sum": "57",
        "work_id": str(number + 1),
    }


def _genres(rng: np.random.Generator, number: int) -> dict[str, Any]:
    names = rng.choice(len(GENRES), int(rng.integers(0, 4)), replace=False)
    return {"book_id": str(number + 1), "genres": {GENRES[name]: int(rng.integers(1, 900)) for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--interactions", type=int, default=2_000_000)
    parser.add_argument("--books", type=int, default=230_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"wrote {write(options.output_dir, options.interactions, options.books, seed=options.seed)}")


if __name__ == "__main__":
    main()
