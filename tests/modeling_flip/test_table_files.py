"""Files of rows: what is written is what is read, and what cannot be read is named by file, line, column and remedy."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_flip.table_files import csv_file, json_lines, open_splits, open_table, split_of, text_stream

NASTY = [
    "02897",
    "9223372036854775808",
    "1.50",
    "a,b",
    'say "hi"',
    "two\nlines",
    "😀",
    " padded ",
    "NaN",
    "null",
    "2024-01-01",
]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def rows_of(path: Path, columns: list[str] | None = None, **options: Any) -> list[dict[str, Any]]:
    return open_table(path, **options).to_table(columns).to_pylist()


# ---- CSV: cells are text, as written


def test_cells_are_text_as_written_and_empty_ones_are_null(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    pd.DataFrame({"a b.c!": NASTY, "empty": None, "n": range(len(NASTY))}).to_csv(path, index=False)
    table = open_table(path).to_table()
    assert table.schema == pa.schema([("a b.c!", pa.string()), ("empty", pa.string()), ("n", pa.string())])
    assert table["a b.c!"].to_pylist() == NASTY
    assert table["empty"].null_count == len(NASTY)
    assert table["n"].to_pylist() == [str(i) for i in range(len(NASTY))]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(NASTY)


@given(
    names=st.lists(texts.filter(bool), min_size=1, max_size=4, unique=True).filter(
        lambda n: not n[0].startswith("\ufeff")
    ),
    data=st.data(),
    delimiter=st.sampled_from(csv_file.DELIMITERS),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    packed=st.booleans(),
)
def test_any_cells_come_back(
    names: list[str], data: st.DataObject, delimiter: str, encoding: str, packed: bool
) -> None:
    rows = data.draw(st.lists(st.lists(texts, min_size=len(names), max_size=len(names)), max_size=6))
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    content = written.getvalue().encode(encoding)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("rows.csv.gz" if packed else "rows.csv")
        path.write_bytes(gzip.compress(content) if packed else content)
        table = open_table(path, delimiter=delimiter).to_table()
    assert table.column_names == names
    assert [list(row.values()) for row in table.to_pylist()] == [[cell or None for cell in row] for row in rows]


@pytest.mark.parametrize("columns", [None, ["b"], ["c", "a"]])
def test_quoted_cells_work_anywhere_in_a_file_of_many_blocks(
    columns: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (csv_file, text_stream):
        monkeypatch.setattr(module, "BLOCK", 1 << 10)
    rows = [{"a": str(i), "b": NASTY[i % len(NASTY)], "c": None if i % 7 else "x"} for i in range(3_000)]
    rows[1_000]["b"] = "a line\n" * 2_000  # longer than a block, so that the reader has to take larger ones
    path = tmp_path / "rows.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    expected = [{name: row[name] for name in columns or row} for row in rows]
    table = open_table(path)
    assert [row for batch in table.batches(columns) for row in batch.to_pylist()] == expected
    assert table.to_table(columns).column_names == list(expected[0])


def test_batches_can_be_read_again_and_are_small(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    pd.DataFrame({"a": range(200_000), "b": "some words"}).to_csv(path, index=False)
    table = open_table(path)
    first, again = (sum(len(batch) for batch in table.batches()) for _ in range(2))
    assert first == again == 200_000
    assert max(batch.nbytes for batch in table.batches()) < 4 * csv_file.BLOCK


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a\n1\n\n2\n", [{"a": "1"}, {"a": "2"}]),  # one column is a table too
        ('a\n""\n', [{"a": None}]),
        ("tags\nx|y\nz\n", [{"tags": "x|y"}, {"tags": "z"}]),
        ("a;b\n1,5;2\n3,5;4\n", [{"a": "1,5", "b": "2"}, {"a": "3,5", "b": "4"}]),
        ("a\tb\n1,5\t2|3\n", [{"a": "1,5", "b": "2|3"}]),
        ("a|b\n1|2\n", [{"a": "1", "b": "2"}]),
        ('"x;y",b\n"1;2;3",2\n', [{"x;y": "1;2;3", "b": "2"}]),
        ("\n\na,b\n1,2\n", [{"a": "1", "b": "2"}]),
        ("a,b\r\n1,2\r\n", [{"a": "1", "b": "2"}]),
        ("a,b\r1,2\r", [{"a": "1", "b": "2"}]),
        ("a,b\n1,2", [{"a": "1", "b": "2"}]),
        ("a,b\n", []),
        ("a,b", []),
        (",b\n0,2\n1,3\n", [{"Unnamed: 0": "0", "b": "2"}, {"Unnamed: 0": "1", "b": "3"}]),  # as pandas calls it
        ('a,b\n1,""', [{"a": "1", "b": None}]),
        ('a,b\n1,"x"""', [{"a": "1", "b": 'x"'}]),
        ('a,b\n1,"x\n"', [{"a": "1", "b": "x\n"}]),
        ('a,b\n1,5"', [{"a": "1", "b": '5"'}]),
        ('a,b\n5" screen,x\n', [{"a": '5" screen', "b": "x"}]),
    ],
)
def test_csv_by_hand(text: str, rows: list[dict[str, str | None]], tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "rows.csv", text)) == rows


def test_a_delimiter_can_be_said_and_tsv_has_its_own(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "rows.csv", "a:b\n1:2\n"), delimiter=":") == [{"a": "1", "b": "2"}]
    assert rows_of(write(tmp_path / "rows.csv", "a,b\tc\n1,2\t3\n"), delimiter="\\t") == [{"a,b": "1,2", "c": "3"}]
    assert rows_of(write(tmp_path / "rows.tsv", "a,b\n1,2\n")) == [{"a,b": "1,2"}]
    with pytest.raises(ValueError, match="delimiter is 'ab'; it must be one ASCII character"):
        open_table(tmp_path / "rows.csv", delimiter="ab")


def test_cp1252_is_found_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "rows.csv", "título,b\nprecio €,1\n", "cp1252")
    assert rows_of(path) == [{"título": "precio €", "b": "1"}]
    assert "rows.csv is not UTF-8 and is read as cp1252" in caplog.text
    caplog.clear()
    assert rows_of(path, encoding="latin-1") == [{"título": "precio \x80", "b": "1"}]
    assert not caplog.text
    with pytest.raises(ValueError, match="encoding is 'utf-99', which Python does not know"):
        open_table(path, encoding="utf-99")


# ---- CSV: errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.csv is empty$"),
        ("\n \n", "rows.csv is empty: it has no header"),
        ("a,b,a\n1,2,3\n", "rows.csv has more than one column 'a'; rename one"),
        ("a,b\n1,2\n1,2,3\n", r"rows.csv, line 3: 3 cells where the header has 2: '1,2,3'; quote cells that hold ','"),
        ("a,b\n1,2\n\n3\n", "rows.csv, line 4: 1 cells where the header has 2: '3'"),
        ('a,b\n"x\ny",2\n3\n', "rows.csv, line 4: 1 cells where"),
        ("a,b\n" + "1,2\n" * 100_000 + "3\n" + "1,2\n" * 9, "rows.csv, line 100002: 1 cells where"),
        ('a,b\n1,2\n"3,4\n5,6\n', "rows.csv, line 3: 1 cells where .* a quote in it may not be closed"),
        ('a,b\n1,"2\n3,4\n5,6\n', "rows.csv, line 2: a quote that opens in this row is not closed"),
        ('a,b\n1,2\n3,"cut of', "rows.csv, line 3: a quote that opens in this row is not closed"),
        ('a,b\n1,2\n3,"', "rows.csv, line 3: a quote that opens"),
        ('a\n"', "rows.csv, line 2: a quote that opens"),
        ('"a,b\n1,2\n', "rows.csv, line 1: a quote in the header is not closed"),
        ('a,b,c\n1,x,"Al\n2,y,z\n3,y,"Heroes"\n', "line 2: a quote that opens in this row is closed only in line 4"),
        (
            'a,b\n"say "hi",1\n"Al,2\n3,4\n"Heroes",5\n',
            "line 3: a quote that opens in this row is closed only in line 5",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_broken_csv_is_named_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", text)
    with pytest.raises(ValueError, match=message) as error:
        open_table(path).to_table()
    assert "\n" not in str(error.value)


def test_a_long_cell_in_the_first_row_hides_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "a,b\n1," + "x" * 200_000 + "\n" + "2,y\n" * 5)
    assert open_table(path).to_table()["a"].to_pylist() == ["1"] + ["2"] * 5


def test_cells_of_several_lines_and_stray_quotes_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'a,b\n1,"two\nlines, ""quoted"""\n\n2,5" disk\n')
    assert open_table(path).to_table().to_pylist() == [
        {"a": "1", "b": 'two\nlines, "quoted"'},
        {"a": "2", "b": '5" disk'},
    ]


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (csv_file, text_stream):
        monkeypatch.setattr(module, "BLOCK", 1 << 10)
    monkeypatch.setattr(csv_file, "LONGEST_ROW", 1 << 16)
    path = write(tmp_path / "rows.csv", "a,b\n" + "1,2\n" * 5_000 + '"1,2\n' + "1,2\n" * 100_000)
    with pytest.raises(
        ValueError, match=r"rows\.csv, line 5002: a quote that opens in this row is not closed \(or a row is"
    ):
        open_table(path).to_table()


def test_bytes_of_another_encoding_are_named_by_line_and_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\n" + b"1,2\n" * 500_000 + b"caf\xe9,2\n")
    with pytest.raises(
        ValueError, match=r"rows.csv, line 500002 \(byte 2000007\): 0xe9 is not utf-8; set .* such as cp1252"
    ):
        open_table(path, encoding="utf-8").to_table()
    monkeypatch.setattr(text_stream, "ENCODING_SAMPLE", 1 << 20)  # what lies behind the sample is found in reading
    with pytest.raises(ValueError, match="line 500002"):
        open_table(path).to_table()
    path.write_bytes("a,b\n1,2\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"rows.csv is not UTF-8: set its encoding, such as utf-16-le"):
        open_table(path)
    assert open_table(path, encoding="utf-16-le").to_table().to_pylist() == [{"a": "1", "b": "2"}]
    path.write_bytes(b"a,b\nx\x81,2\n")
    with pytest.raises(ValueError, match=r"line 2 \(byte 5\): 0x81 is not cp1252; set"):
        open_table(path).to_table()


def test_names_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "clicks.csv", "user,label\n1,2\n")
    with pytest.raises(FileNotFoundError, match=r"click\.csv does not exist; did you mean 'clicks\.csv'\?"):
        open_table(tmp_path / "click.csv")
    with pytest.raises(
        ValueError, match=r"has no column 'usr'; its columns are \['user', 'label'\]; did you mean 'user'"
    ):
        open_table(tmp_path / "clicks.csv").batches(["usr"])
    for name in ("rows.xlsx", "rows", "rows.parquet.gz"):
        with pytest.raises(
            ValueError, match=rf"{name} ends in .* which is not supported; supported are \.csv, \.tsv, .* and \.parquet"
        ):
            open_table(write(tmp_path / name, "a"))


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-20], lambda content: b"plain text"], ids=["cut", "no gzip"]
)
@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.jsonl.gz"])
def test_damaged_gzip_is_named(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    lines = "".join(f'{{"a": {i}}}\n' for i in range(9_000))
    (tmp_path / name).write_bytes(damage(gzip.compress(lines.encode())))
    with pytest.raises(ValueError, match=rf"{name} is not a complete gzip file .*: copy or download it again"):
        open_table(tmp_path / name).to_table()


# ---- JSON lines: types of their own, and neighbours change no cell


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"i": 1, "f": 1.5, "b": True, "s": "02897", "l": ["x", "y"], "n": None, "d": "2024-01-01", "e": []},
        {"i": -(2**63), "f": None, "b": False, "s": "é\n😀", "l": [], "n": None, "d": "2024-01-02T10:00:00", "e": []},
        {"i": 2**63 - 1, "extra": 7},
    ]
    path = write(tmp_path / "rows.jsonl", "\n\n".join(json.dumps(row) for row in rows) + "\r\n")
    table = open_table(path)
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == {
        "i": pa.int64(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "s": pa.string(),
        "l": pa.list_(pa.string()),
        "n": pa.string(),
        "d": pa.string(),  # not a date: nothing is guessed
        "e": pa.list_(pa.string()),
        "extra": pa.int64(),
    }
    assert table.num_rows == 3
    assert table.to_table().to_pylist() == [{name: row.get(name) for name in table.schema.names} for row in rows]


def test_a_json_column_of_several_types_is_text_each_cell_as_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "ROWS_PER_BATCH", 2)  # types hold for the whole file, not for a batch
    cells = [1, 2, 25.0, 0.1, float("nan"), True, "007", 2**70, None, ["a", 1], {"k": "é"}, 1e300]
    path = write(tmp_path / "rows.jsonl", "".join(json.dumps({"a": cell, "l": [cell]}) + "\n" for cell in cells))
    table = open_table(path).to_table()
    spelled = ["1", "2", "25", "0.1", None, "true", "007", str(2**70), None, '["a", 1]', '{"k": "é"}', "1e+300"]
    assert table["a"].to_pylist() == spelled
    assert table["l"].to_pylist() == [[cell] for cell in spelled]


json_cells = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5)
)


@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), json_cells), min_size=1).filter(any))
def test_a_json_cell_is_the_same_value_or_its_text(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        read = rows_of(path)
    for row, got in zip(rows, read, strict=True):
        for name, cell in got.items():
            alone = row.get(name)
            if isinstance(alone, str):
                alone = alone.encode(errors="replace").decode()
            assert cell == alone or cell == json_lines._spelled(alone)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.jsonl is empty"),
        ("\n\n", "rows.jsonl is empty: it has no JSON object"),
        (
            '{"a": 1}\n[1, 2]\n',
            r"rows.jsonl, line 2: '\[1, 2\]' is not a JSON object but an array; write one object a line",
        ),
        ('{"a": 1}\n\n{"a": \n', r"rows.jsonl, line 3: '{\"a\":' is not a JSON object \(Expecting value"),
        ('[\n{"a": 1}\n]\n', r"rows.jsonl, line 1: '\[' is not a JSON object .*; write one object a line"),
        ('{"a": 1} {"a": 2}\n', r"rows.jsonl, line 1: .* is not a JSON object \(Extra data"),
        ("[" * 100_000, "rows.jsonl, line 1: .* is not a JSON object"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_broken_json_is_named_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        open_table(write(tmp_path / "rows.jsonl", text)).to_table()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


# ---- Parquet


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a.b": pa.array([1, None, 3], pa.int8()),
            "a": pa.array(["x", "y", "x"]).dictionary_encode(),
            "l": [[1], [], None],
            "t": pa.array([1, 2, 3], pa.timestamp("ms", "UTC")),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    read = open_table(tmp_path / "rows.parquet")
    assert read.num_rows == 3
    assert read.schema.field("a.b").type == pa.int8() and read.schema.field("t").type == pa.timestamp("ms", "UTC")
    assert read.to_table().to_pylist() == table.to_pylist()
    chosen = open_table(tmp_path / "rows.parquet").to_table(["t", "a"])
    assert chosen.column_names == ["t", "a"] and chosen["a"].to_pylist() == ["x", "y", "x"]


def test_broken_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": [f"value {i}" for i in range(5_000)]}), path)
    whole = path.read_bytes()
    for content, message in (
        (whole[:-9], r"rows.parquet is not a complete Parquet file .*: copy or download it again"),
        (b"", "rows.parquet is empty"),
        (whole[:4] + bytes(200) + whole[204:], r"rows.parquet cannot be read .*: copy or download it again"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_table(path).to_table()
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(ValueError, match="more than one column 'a'"):
        open_table(path)


# ---- folders


def test_the_files_of_a_folder_are_one_table_in_name_order(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", "y;x\n3;4\n")
    write(tmp_path / "a.csv", "x,y\n1,2\n")
    for other in ("README.md", "_SUCCESS", ".hidden.csv", "dataset_infos.json"):
        write(tmp_path / other, "no rows")
    assert rows_of(tmp_path) == [{"x": "1", "y": "2"}, {"x": "4", "y": "3"}]
    assert rows_of(tmp_path, columns=["y"]) == [{"y": "2"}, {"y": "3"}]
    assert list(open_splits(tmp_path)) == [None]


def test_types_of_a_folder_are_widened_to_a_common_one(tmp_path: Path) -> None:
    parts: list[dict[str, Any]] = [
        {"n": pa.array([1], pa.int32()), "gap": pa.nulls(1), "c": pa.array(["x"]).dictionary_encode()},
        {"n": pa.array([2**40]), "gap": pa.array(["z"]), "c": pa.array(["y"]).dictionary_encode()},
    ]
    for i, part in enumerate(parts):
        pq.write_table(pa.table(part), tmp_path / f"{i}.parquet")
    assert rows_of(tmp_path) == [{"n": 1, "gap": None, "c": "x"}, {"n": 2**40, "gap": "z", "c": "y"}]
    assert open_table(tmp_path).num_rows == 2
    pq.write_table(pa.table({"n": ["a"], "gap": ["a"], "c": ["a"]}), tmp_path / "9.parquet")
    with pytest.raises(ValueError, match=r"column 'n' is string in .*9\.parquet and int64 in the files before it"):
        open_table(tmp_path)


def test_json_files_of_a_folder_agree_on_types(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"x": null, "y": 1}\n')
    write(tmp_path / "b.ndjson", '{"x": 5, "y": "one", "z": 2}\n')
    assert rows_of(tmp_path) == [{"x": None, "y": "1", "z": None}, {"x": 5, "y": "one", "z": 2}]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.csv": "x,y\n", "b.csv": "x,z\n"}, r"b\.csv has no column 'y', which .*a\.csv has"),
        ({"a.csv": "x\n", "b.csv": "x,z\n"}, r"b\.csv has a column 'z', which .*a\.csv does not have"),
        ({"a.csv": "title\n", "b.csv": "titel\n"}, r"b\.csv has no column 'title', .*did you mean 'titel'"),
        ({"a.csv": "x\n", "b.jsonl": "{}"}, r"holds a\.csv and b\.jsonl: one table is made of files of one kind"),
        ({"dev.csv": "x\n", "valid.csv": "x\n"}, r"holds dev\.csv and valid\.csv, all named after split validation"),
        ({"a.md": "x\n"}, r"holds no supported file \(\.csv.*it holds \['a\.md'\]"),
        (
            {"train.csv": "x\n", "more.csv": "x\n"},
            r"train\.csv, which is named after a split, and more\.csv, which is not",
        ),
        ({"train.csv": "x\n", "test/a.csv": "x\n"}, r"holds both train\.csv and a folder test"),
        ({"train.csv": "x\n", "test.csv": "x\n"}, r"holds the splits train, test, each a table of its own: name one"),
    ],
    ids=str,
)
def test_folders_that_are_no_table(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path).to_table()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("TEST.jsonl.gz", "test"),
        ("dev", "validation"),
        ("valid-00001-of-00002.parquet", "validation"),
        ("train_2.csv", "train"),
        ("training.csv", None),
        ("test_users.csv", None),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    "names",
    [("train.csv", "valid.csv", "test.csv"), ("train/1.csv", "validation/1.csv", "test/x.csv"), ("data/train.csv",)],
)
def test_splits_of_a_folder(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        write(tmp_path / name, f"x\n{name}\n")
    write(tmp_path / "text_model" / "config.json", "{}")  # a folder that is no split
    splits = open_splits(tmp_path)
    assert list(splits) == ["train", "validation", "test"][: len(names)]
    assert [table.to_table()["x"].to_pylist() for table in splits.values()] == [[name] for name in names]


def test_shards_of_a_split_are_one_table(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"train-{i:05}-of-00003.csv", f"x\n{i}\n")
    write(tmp_path / "test.csv", "x\n9\n")
    splits = open_splits(tmp_path)
    assert splits["train"].to_table()["x"].to_pylist() == ["0", "1", "2"]
    assert splits["test"].to_table()["x"].to_pylist() == ["9"]


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"a": ["x", "y", "z"], "n": [1, 2, 3]})
    rows.select([2, 0]).save_to_disk(tmp_path / "one")
    assert rows_of(tmp_path / "one") == [{"a": "z", "n": 3}, {"a": "x", "n": 1}]
    assert rows_of(tmp_path / "one", columns=["n"]) == [{"n": 3}, {"n": 1}]
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(tmp_path / "many")
    splits = open_splits(tmp_path / "many")
    assert {split: table.num_rows for split, table in splits.items()} == {"train": 3, "validation": 3}
    datasets.DatasetDict({"dev": rows, "train": rows, "validation": rows}).save_to_disk(tmp_path / "twice")
    with pytest.raises(
        ValueError, match="twice holds dev and validation, all named after split validation: leave all but"
    ):
        open_splits(tmp_path / "twice")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="one cannot be read as what save_to_disk writes"):
        open_table(tmp_path / "one")


def test_text_of_parquet_that_is_not_utf_8_is_named_by_its_file(tmp_path: Path) -> None:
    column = pa.Array.from_buffers(pa.string(), 2, [None, *pa.array([b"ok", b"a\xc0"]).buffers()[1:]])
    pq.write_table(pa.table({"a": column}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows.parquet cannot be read .*UTF8"):
        open_table(tmp_path / "rows.parquet").to_table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "base64"}, "encoding is 'base64', which Python does not know"),
        ({"encoding": "utf\x008"}, "which Python does not know"),
        ({"encoding": "utf-16"}, r"rows.csv is not utf-16 \(.*BOM\); set the file's encoding"),
        ({"delimiter": "§"}, "delimiter is '§'; it must be one ASCII character"),
        ({"delimiter": "\0"}, "it must be one ASCII character"),
    ],
    ids=str,
)
def test_encodings_and_delimiters_that_are_none_are_named(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        open_table(write(tmp_path / "rows.csv", "a,b\n1,2\n"), **options).to_table()


def test_classes_of_a_parquet_file_have_their_names(tmp_path: Path) -> None:
    """As those of the same dataset where it is not a file."""
    label = datasets.ClassLabel(names=["drama", "comedy"])
    features = datasets.Features({"genre": label, "genres": datasets.List(label), "n": datasets.Value("int64")})
    rows = {"genre": [1, 0, None], "genres": [[0, 1], [], None], "n": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    named = {"genre": ["comedy", "drama", None], "genres": [["drama", "comedy"], [], None], "n": [1, 0, 1]}
    table = open_table(tmp_path / "rows.parquet")
    assert table.to_table().to_pydict() == named
    assert table.to_table(["n", "genre"]).to_pydict() == {"n": named["n"], "genre": named["genre"]}
    assert table.to_table().schema == table.schema
