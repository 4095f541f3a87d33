"""Rows of text files that cannot be read: named, or left out and counted, and never lost in silence."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_flip.quarantine import NO_TEXT, Quarantine
from modeling_flip.table_files import csv_file, json_lines, open_table, text_stream

BAD_CSV = [b"1", b"1,2", b"1,2,3,4", b"caf\xe9,2,3", b'"caf\xe9, ""x""",2,3', b"\xff"]
BAD_JSON = [b"{", b"[1]", b"7", b'{"a": "caf\xe9"}', b'{"a": 1, "a": 2}', b'{"a": 1} {"b": 2}', b"\xff"]

cells = st.text('ab," \n\u00e9\U0001f600\ufffd', max_size=5)
rows_of_three = st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=12)


def as_csv(row: tuple[str, ...]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="", quoting=csv.QUOTE_ALL).writerow(row)
    return text.getvalue().encode()


def as_json(row: tuple[str, ...]) -> bytes:
    return json.dumps(dict(zip("abc", row, strict=True)), ensure_ascii=False).encode()


def listed(quarantine: Quarantine, folder: Path) -> list[dict[str, str]]:
    quarantine.write(folder / "bad.jsonl")
    return [json.loads(line) for line in (folder / "bad.jsonl").read_text().splitlines()]


def total(quarantine: Quarantine) -> int:
    return sum(sum(reasons.values()) for reasons in quarantine.counts.values())


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_three, data=st.data(), kind=st.sampled_from(["csv", "jsonl"]), block=st.sampled_from([64, 1 << 20]))
def test_the_good_rows_come_out_in_order_and_the_bad_ones_are_counted(
    rows: list[tuple[str, str, str]], data: st.DataObject, kind: str, block: int
) -> None:
    write, bad = (as_csv, BAD_CSV) if kind == "csv" else (as_json, BAD_JSON)
    lines: list[tuple[bytes, bool]] = [(write(row), True) for row in rows]
    for line in data.draw(st.lists(st.sampled_from(bad), max_size=Quarantine.FEW)):
        lines.insert(data.draw(st.integers(0, len(lines))), (line, False))
    content = b"a,b,c\n" * (kind == "csv") + b"".join(line + b"\n" for line, _ in lines)
    numbers = [number for number, (_, is_good) in enumerate(lines, 1 + (kind == "csv")) if not is_good]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for module in (csv_file, text_stream):
            patch.setattr(module, "BLOCK", block)
        path = Path(folder) / f"rows.{kind}"
        path.write_bytes(content)
        quarantine = Quarantine()
        options: dict[str, Any] = {"encoding": "utf-8"} | ({"delimiter": ","} if kind == "csv" else {})
        table = open_table(path, **options, quarantine=quarantine)
        empty = None if kind == "csv" else ""
        expected = [{name: cell or empty for name, cell in zip("abc", row, strict=True)} for row in rows]
        for names in (["b"], list("abc"), ["c", "a"]):  # each time it is read the same rows are left out
            read = [row for batch in table.batches(names) for row in batch.to_pylist()]
            assert read == [{name: row[name] for name in names} for row in expected]
        assert total(quarantine) == len(numbers)
        places = [int(row["place"].split(",")[0].split()[1]) for row in listed(quarantine, Path(folder))]
        assert sorted(places) == numbers
        if numbers:
            with pytest.raises(ValueError, match=rf"rows\.{kind}, line \d+") as error:
                open_table(path, **options).to_table()
            at, firsts = 1 + (kind == "csv"), dict[bool, int]()
            for line, is_good in lines:  # bytes are looked at before cells
                if not is_good:
                    firsts.setdefault(b"\xe9" in line or b"\xff" in line, at)
                at += line.count(b"\n") + 1
            said = str(error.value).partition(", line ")[2]
            assert int(re.match(r"\d+", said)[0]) in firsts.values()


@pytest.mark.parametrize("block", [64, 1 << 20])
@pytest.mark.parametrize("good", [1, 4, 9])
def test_a_bad_row_at_the_end_does_not_open_the_quote_before_it(
    block: int, good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (csv_file, text_stream):
        monkeypatch.setattr(module, "BLOCK", block)
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b,c\n1\n" + b'"","",""\n' * good + b'"","","\n"\n1\n')
    table = open_table(path, encoding="utf-8", delimiter=",", quarantine=Quarantine())
    assert table.to_table(["c"])["c"].to_pylist() == [None] * good + ["\n"]
    path.write_bytes(b"a,b,c\n" + b'"","",""\n' * good + b'"","","\n1\n')  # here it is open
    with pytest.raises(ValueError, match="not closed"):
        open_table(path, encoding="utf-8", delimiter=",", quarantine=Quarantine()).to_table()


def test_what_was_left_out_is_listed_with_its_place_reason_and_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,2\n\n"x\ny",2\n3\ncaf\xe9,5\n6,' + b"7" * 600 + b",8\n9,10\n")
    quarantine = Quarantine()
    table = open_table(path, encoding="utf-8", quarantine=quarantine)
    assert table.to_table().to_pylist() == [{"a": "1", "b": "2"}, {"a": "x\ny", "b": "2"}, {"a": "9", "b": "10"}]
    assert quarantine.counts == {str(path): {"wrong number of cells": 2, "not utf-8": 1}}
    found = sorted(listed(quarantine, tmp_path), key=lambda row: row["place"])
    assert [row["place"] for row in found] == [f"row {n}, of which the header is the first" for n in (4, 5, 6)]
    assert [row["text"] for row in found] == ["3", "caf\ufffd,5", f"6,{'7' * 498}…"]
    assert {row["file"] for row in found} == {str(path)}


def test_each_file_of_a_folder_is_counted_by_itself(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.csv").write_text("a,b\n" + "1,2\n" * (i + 1) + "3\n" * (i + 1))
    quarantine = Quarantine()
    assert len(open_table(tmp_path, quarantine=quarantine).to_table()) == 3
    assert [list(reasons.values()) for reasons in quarantine.counts.values()] == [[1], [2]]


@pytest.mark.parametrize(("bad", "good"), [(11, 1_000), (3, 0), (20, 1_900)])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_more_than_one_in_a_hundred_is_an_error(bad: int, good: int, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    good_line, bad_line, header = ("1,2\n", "3\n", "a,b\n") if kind == "csv" else ('{"a": 1}\n', "{\n", "")
    message = (
        rf"rows\.{kind}, (row 2|line 1): .*\. {bad} of {bad + good:,} rows cannot be read, and on_bad_rows skip .* 1%"
    )
    path.write_text(header + bad_line * bad + good_line * good)
    with pytest.raises(ValueError, match=message):
        open_table(path, delimiter=",", quarantine=Quarantine()).to_table()
    if good:  # the same, few enough
        path.write_text(header + bad_line * bad + good_line * (100 * bad))
        assert len(open_table(path, quarantine=Quarantine()).to_table()) == 100 * bad


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_of_a_file_that_is_all_wrong_the_end_is_not_waited_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Quarantine, "MANY", 100)
    path = tmp_path / f"rows.{kind}"
    path.write_text("a,b\n" * (kind == "csv") + "{\n" * 5_000)
    quarantine = Quarantine()
    with pytest.raises(ValueError, match=r"101 of the first 10[12] rows cannot be read"):
        open_table(path, delimiter=",", quarantine=quarantine).to_table()
    assert total(quarantine) == 101


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv.gz", gzip.compress(b"a,b\n" + bytes(range(48, 58)) * 9_000)[:-20], "not a complete gzip file"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9_000)[:-20], "not a complete gzip file"),
        ("rows.parquet", b"PAR1 and no more", "not a complete Parquet file"),
        ("rows.csv", b'a,b\n1,2\n3\n1,"2\n3,4\n5,6\n', "line 4: a quote that opens in this row is not closed"),
        (
            "rows.csv",
            b'a,b\n1,2\n3\n"3,4\n5,6\n7,8",9,9\n1,2\n',
            "line 4: 3 cells where .* a quote in it may not be closed",
        ),
        ("rows.csv", b"caf\xe9,b\n1,2\n", "the header is not utf-8; set the file's encoding"),
    ],
)
def test_damage_of_unknown_extent_is_an_error_all_the_same(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    encoding = None if "parquet" in name else "utf-8"
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path / name, encoding=encoding, quarantine=Quarantine()).to_table()


def test_one_broken_byte_does_not_make_a_file_of_utf_8_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("a,b\nthé,déjà\n".encode() + b"caf\xe9,2\n")
    with pytest.raises(ValueError, match=r"rows\.csv, line 3 \(byte 19\): 0xe9 is not utf-8; set the file's encoding"):
        open_table(path).to_table()
    assert open_table(path, quarantine=Quarantine()).to_table().to_pylist() == [{"a": "thé", "b": "déjà"}]


def test_a_key_that_stands_twice_in_an_object_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n')
    with pytest.raises(ValueError, match=r"line 2: .* is not a JSON object \(it has more than one key 'a'\)"):
        open_table(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_json_line_that_is_too_long_is_named_or_left_out_alone(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "LONGEST_ROW", 1 << 10)
    lines = ['{"a": "before"}', json.dumps({"a": "x" * 5_000}), '{"a": "after"}', json.dumps({"a": "y" * 3_000})]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + end)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: longer than .* MiB; write one object a line"):
        open_table(path)
    quarantine = Quarantine()
    assert open_table(path, quarantine=quarantine).to_table().to_pylist() == [{"a": "before"}, {"a": "after"}]
    assert [(row["place"], row["reason"]) for row in listed(quarantine, tmp_path)] == [
        ("line 2", "too long"),
        ("line 4", "too long"),
    ]


def test_the_character_that_marks_bytes_is_text_where_all_is_text(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"a": "{NO_TEXT}"}}\n')
    assert open_table(tmp_path / "rows.jsonl").to_table()["a"].to_pylist() == [NO_TEXT]
    pq.write_table(pa.table({"a": [NO_TEXT]}), tmp_path / "rows.parquet")
    assert open_table(tmp_path / "rows.parquet", quarantine=Quarantine()).to_table().num_rows == 1
