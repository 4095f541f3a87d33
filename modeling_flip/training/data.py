"""From a raw column to clicks, times or groups. Rows in messages are counted from 0 within their split."""

from __future__ import annotations

import difflib
import logging
import shlex
import warnings
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..cell_text import MISSING_WORDS, NUMBER
from ..fields import Field
from ..quarantine import BadRowError
from ..row_reader import read_column

logger = logging.getLogger(__name__)

# From 1990 to 2100, in seconds: numbers of a time column that are so in two units are in both.
PRESENT = (631_152_000, 4_102_444_800)
UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")

Column: TypeAlias = pa.Array | pa.ChunkedArray


class BadCellsError(BadRowError):
    """Cells of a column that cannot be read. `rows` (N,) is true where they are."""

    def __init__(self, message: str, reason: str, rows: np.ndarray):
        super().__init__(message, reason)
        self.rows = rows


def _decoded(column: Column) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())  # Arrow computes little with halves
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _first(mask: Any) -> int | None:
    """The first row that a boolean column marks."""
    at = pc.index(mask, True).as_py()
    return None if at < 0 else at


def _rows(mask: Any) -> np.ndarray:
    """(N,) bool; null is false."""
    return np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))


def _missing(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type):
        return pc.or_(pc.is_null(values), pc.fill_null(pc.is_in(pc.utf8_trim_whitespace(values), MISSING_WORDS), True))
    return pc.is_null(values, nan_is_null=True)


# ---- times


def read_times(column: Column, name: str = "time", where: str = "the rows") -> np.ndarray:
    """(N,) datetime64 of a column of moments.

    Read are Arrow's dates and timestamps; text that Arrow or pandas reads as a date (without a zone: UTC); and numbers, also
    as text: YYYYMMDD, or seconds, milli-, micro- or nanoseconds since 1970, whichever the largest of them must be. Whether
    03/04/2024 is in March or April is told by the column's other dates; where they do not, and the order of the rows depends
    on it, it is an error.

    Raises:
        ValueError: a time is missing, is none, or can be two, with row, value and remedy.
    """
    values = _decoded(column)
    missing = _missing(values)
    if (at := _first(missing)) is not None:
        raise BadCellsError(
            f"time column {name!r} of {where} has no value in row {at}: drop such rows, or fill the gaps",
            "no time",
            _rows(missing),
        )
    kind = values.type
    if pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp(kind.unit)).to_numpy(zero_copy_only=False)
    if pa.types.is_date(kind):
        return values.cast(pa.date32()).to_numpy(zero_copy_only=False)
    if pa.types.is_decimal(kind):
        values = values.cast(pa.float64())
    if pa.types.is_integer(kind) or pa.types.is_floating(values.type):
        return _since_1970(values.to_numpy(zero_copy_only=False), name, where)
    if not pa.types.is_string(kind):
        raise ValueError(f"time column {name!r} of {where} has type {kind}: turn it into dates, numbers or text first")
    values = pc.utf8_trim_whitespace(values)
    is_number = _rows(pc.match_substring_regex(values, NUMBER))
    if not is_number.all() and is_number.mean() > 0.5:
        at = int(np.argmin(is_number))
        raise BadCellsError(
            f"time column {name!r} of {where} holds {values[at].as_py()!r} in row {at}, which is not a number, as most are: "
            "write all of them in one way",
            "not a time",
            ~is_number,
        )
    if is_number.all():
        try:
            numbers = values.cast(pa.int64())
        except pa.ArrowInvalid:
            numbers = values.cast(pa.float64())
        return _since_1970(numbers.to_numpy(zero_copy_only=False), name, where)
    iso = _iso_times(values)
    return _other_times(values, name, where) if iso is None else iso


def _since_1970(numbers: np.ndarray, name: str, where: str) -> np.ndarray:
    numbers = numbers.astype(np.float64 if numbers.dtype.kind == "f" else np.int64)
    if (
        numbers.dtype.kind == "f" and not (in_range := np.abs(numbers) < 2.0**63).all()
    ):  # neither infinite nor no number
        at = int(np.argmin(in_range))
        raise BadCellsError(
            f"time column {name!r} of {where} holds {numbers[at]} in row {at}, which is not a time: drop such rows",
            "not a time",
            ~in_range,
        )
    year, month, day = numbers // 10_000, numbers // 100 % 100, numbers % 100
    if ((year >= 1900) & (year <= 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all():
        months = ((year - 1970) * 12 + month - 1).astype(np.int64).astype("datetime64[M]")
        return months.astype("datetime64[D]") + (day.astype(np.int64) - 1)
    of_units = [
        (numbers > start * 1000**i) & (numbers < stop * 1000**i) for i, (start, stop) in enumerate([PRESENT] * 4)
    ]
    in_units = [(int(np.argmax(mask)), unit) for mask, unit in zip(of_units, UNITS, strict=True) if mask.any()]
    if len(in_units) > 1:
        (one, unit), (other, other_unit) = in_units[:2]
        raise ValueError(
            f"time column {name!r} of {where} holds {numbers[one]} in row {one}, which are {unit} since 1970, and "
            f"{numbers[other]} in row {other}, which are {other_unit}: write all of them in one unit"
        )
    # Seconds as large as the least milliseconds would be of the year 5138, and so on.
    largest = float(np.abs(numbers).max(initial=0))
    power = int(np.searchsorted([1e11, 1e14, 1e17], largest, side="right"))
    if numbers.dtype.kind == "f":  # microseconds are as fine as a double tells the present
        return np.round(numbers * 10.0 ** (6 - 3 * power)).astype(np.int64).astype("datetime64[us]")
    return numbers.astype(f"datetime64[{('s', 'ms', 'us', 'ns')[power]}]")


def _iso_times(values: pa.Array) -> np.ndarray | None:
    """ISO 8601 dates and times, with or without zone; None where any is none."""
    zoned = pc.match_substring_regex(values, r":\d{2}(\.\d+)?(Z|[+-]\d{2}(:?\d{2})?)$")
    for unit in ("ns", "us"):  # nanoseconds end in 2262
        try:
            plain = pc.if_else(zoned, None, values).cast(pa.timestamp(unit))
            utc = pc.if_else(zoned, values, None).cast(pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit))
        except pa.ArrowInvalid:
            continue
        return pc.coalesce(plain, utc).to_numpy(zero_copy_only=False)
    return None


def _other_times(values: pa.Array, name: str, where: str) -> np.ndarray:
    """Dates in words, or with the day or the month first, as pandas reads them."""
    import pandas as pd  # `datasets` brings it

    is_short = pc.match_substring_regex(values, r"^\d{2}[/-]\d{1,2}[/-]\d{2}(\D|$)")
    if (at := _first(is_short)) is not None:
        raise BadCellsError(
            f"time column {name!r} of {where} holds {values[at].as_py()!r} in row {at}: with a year of two digits it can be two "
            "dates; write it as 2024-04-25",
            "not a time",
            _rows(is_short),
        )
    texts = values.to_pandas()

    def parse(day_first: bool) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                times = pd.to_datetime(texts, utc=True, dayfirst=day_first)  # fast where all are spelled as the first
            except (ValueError, OverflowError):
                times = pd.to_datetime(texts, utc=True, dayfirst=day_first, format="mixed", errors="coerce")
        return times.dt.tz_localize(None).to_numpy()

    numeric = pc.extract_regex(values, r"^(?P<first>\d{1,2})[/.-](?P<second>\d{1,2})[/.-](?P<rest>\d{4}|\d{2}(?:\D|$))")
    first, second = (pc.fill_null(pc.struct_field(numeric, part).cast(pa.int64()), 0) for part in ("first", "second"))
    day_first, month_first = _first(pc.greater(first, 12)), _first(pc.greater(second, 12))
    if day_first is not None and month_first is not None:
        raise ValueError(
            f"time column {name!r} of {where} has the day first in row {day_first} ({values[day_first].as_py()!r}) and the month "
            f"first in row {month_first} ({values[month_first].as_py()!r}): write dates as 2024-04-25"
        )
    times = parse(day_first is not None)
    # A cell without a year would be taken for a time of today.
    has_year = pc.match_substring_regex(values, r"\d{4}|\d{1,2}[/.-]\d{1,2}[/.-]\d{2}").to_numpy(zero_copy_only=False)
    wrong = np.isnat(times) | ~has_year
    if wrong.any():
        at = int(np.argmax(wrong))
        raise BadCellsError(
            f"time column {name!r} of {where} holds {values[at].as_py()!r} in row {at}, which is not a date or time that can "
            "be read: write it as 2024-04-25 or 2024-04-25T13:00:00, or as seconds since 1970",
            "not a time",
            wrong,
        )
    if day_first is None and month_first is None and numeric.null_count < len(numeric):
        other = np.argsort(parse(True), kind="stable")
        if not np.array_equal(np.argsort(times, kind="stable"), other):
            at = next(i for i in range(len(values)) if numeric[i].is_valid)
            raise ValueError(
                f"time column {name!r} of {where}: {values[at].as_py()!r} in row {at} has the day first or the month first, "
                "and no other date in the column settles it: write dates as 2024-04-25"
            )
    return times


# ---- labels and groups


def read_labels(
    column: Column,
    name: str = "label",
    where: str = "the rows",
    positive_label: str | None = None,
    positive_above: float | None = None,
) -> np.ndarray:
    """(N,) float32 clicks, 0 or 1.

    Args:
        column: 0 and 1 as numbers or text, or booleans; with `positive_label` any words; with `positive_above` numbers.
        name: of the column, for messages.
        where: it is, for messages, such as "split 'train'".
        positive_label: the word that is a click; all others are none.
        positive_above: numbers greater than this are clicks.

    Raises:
        ValueError: a label is missing, or none of those, or the word does not occur; with row, value and remedy.

    Example:
        >>> read_labels(pa.array(["yes", "no", "maybe"]), positive_label="yes")
        array([1., 0., 0.], dtype=float32)
    """
    here = f"label column {name!r} of {where}"
    if positive_label is not None and positive_above is not None:
        raise ValueError(
            f"positive_label is {positive_label!r} and positive_above is {positive_above}: give only one of them"
        )
    if positive_label is not None and not positive_label.strip():
        raise ValueError(
            f"positive_label is {positive_label!r}, which is not a label: give the label that means a click"
        )
    values = _decoded(column)
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
        raise ValueError(f"{here} has type {values.type}; labels are numbers, booleans or text")
    is_missing = _missing(values)
    if positive_label is not None and pa.types.is_string(values.type):
        is_missing = pc.and_(is_missing, pc.fill_null(pc.not_equal(values, positive_label), True))
    if (at := _first(is_missing)) is not None:
        count = pc.sum(is_missing).as_py()
        missing = "a missing value (row" if count == 1 else f"{count:,} missing values (the first in row"
        raise BadCellsError(
            f"{here} holds {missing} {at}): drop such rows or fill them in first", "no label", _rows(is_missing)
        )
    texts = pc.utf8_trim_whitespace(read_column(values, Field(name=name, missing_words=False)).dictionary_decode())
    if positive_label is not None:
        wanted = positive_label.lower() if pa.types.is_boolean(values.type) else positive_label.strip()
        clicks = pc.equal(texts, wanted)
        if len(clicks) and not pc.any(clicks).as_py():
            raise ValueError(
                f"{here} never holds positive_label {positive_label!r}; it holds {_seen(texts, positive_label)}"
            )
        alike = pc.and_(pc.equal(pc.utf8_lower(texts), wanted.lower()), pc.invert(clicks))
        if (at := _first(alike)) is not None:
            logger.warning(f"{here} holds {texts[at].as_py()!r} (row {at}) besides {wanted!r}: it counts as no click")
    elif positive_above is not None:
        clicks = pc.greater(_numbers(values, texts, here), float(positive_above))
    else:
        lower = pc.utf8_lower(texts)
        is_number = pc.match_substring_regex(texts, NUMBER)
        numbers = pc.if_else(is_number, texts, None).cast(pa.float64())
        clicks = pc.if_else(is_number, pc.equal(numbers, 1.0), pc.equal(lower, "true"))
        known = pc.or_(clicks, pc.if_else(is_number, pc.equal(numbers, 0.0), pc.equal(lower, "false")))
        unknown = pc.invert(known)
        if (at := _first(unknown)) is not None:
            values, counts = texts.value_counts().flatten()
            rarest = values[int(np.argmin(counts))].as_py()  # clicks are rarer than their absence
            examples = (
                "--positive_above 3 (labels above 3 are clicks)",
                f"--positive_label {shlex.quote(rarest)} (the others are no clicks)",
            )
            first, second = examples if is_number[at].as_py() else examples[::-1]
            raise BadCellsError(
                f"{here} holds {texts[at].as_py()!r} (row {at}); labels are 0 or 1, and these are {_seen(texts)}: say which "
                f"are clicks, such as {first} or {second}",
                "not a label",
                _rows(unknown),
            )
    return clicks.to_numpy(zero_copy_only=False).astype(np.float32)


def _numbers(values: pa.Array, texts: pa.Array, here: str) -> pa.Array:
    is_text = pa.types.is_string(values.type)
    wrong = pc.invert(pc.match_substring_regex(texts, NUMBER) if is_text else pc.is_finite(values.cast(pa.float64())))
    if (at := _first(wrong)) is not None:
        raise BadCellsError(
            f"{here} holds {texts[at].as_py()!r} (row {at}), which is not a number: positive_above is for ratings; for words "
            "give positive_label",
            "not a label",
            _rows(wrong),
        )
    return (texts if pa.types.is_string(values.type) else values).cast(pa.float64())


def _seen(texts: pa.Array, near: str | None = None) -> str:
    """Up to ten distinct values, the nearest first."""
    distinct = texts.unique()
    shown = distinct[:1000].to_pylist()
    if near is not None:
        likeness = {text: difflib.SequenceMatcher(None, near.lower(), text.lower()).ratio() for text in shown}
        shown.sort(key=lambda text: -likeness[text])
    more = f", … ({len(distinct):,} in all)" if len(distinct) > 10 else ""
    return ", ".join(map(repr, shown[:10])) + more


def group_codes(column: Column, name: str) -> np.ndarray:
    """(N,) int64 codes of a column's values, such as users, for gAUC; rows without a value have -1."""
    return pc.fill_null(read_column(column, Field(name=name)).indices, -1).to_numpy().astype(np.int64)
