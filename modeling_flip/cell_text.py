"""The text of cells: a value's text is a function of the value and its field's type alone.

It depends neither on the values beside it nor on the container it comes in: the integer 7, "007" of a CSV, 7.0 of a pandas column
with a gap and Decimal("7.00") are all "7" in a field of integers. Identifiers stay text to the digit.
"""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .fields import Field

# Words for a missing value, as pandas reads them in a CSV; in any container, so that all are read alike.
MISSING_WORDS = pa.array(
    [
        *("", "#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "n/a", "NA", "NULL", "null", "None"),
        *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    ]
)
TRUE_WORDS, FALSE_WORDS = (
    pa.array(["true", "t", "yes", "y", "1", "1.0"]),
    pa.array(["false", "f", "no", "n", "0", "0.0"]),
)
INTEGER = r"^[+-]?[0-9]+(\.0*)?$"
PLAIN_INTEGER = r"^(0|-?[1-9][0-9]*)$"  # as it is written
SHORT_INTEGER = r"^(0|-?[1-9][0-9]{0,5})$"  # which a 32-bit float holds
INFINITY = r"^[+-]?(?i:inf(inity)?)$"
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
ISO = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?)?$"
# Other spellings of a moment that are read in bulk, not one by one.
ZONED = (
    r"^[12][0-9]{3}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])$"
)
SINCE_1970 = r"^[1-9][0-9]{8,17}$"
# Moments lie within this many seconds of 1970, some 28,000 years in all; Arrow writes no others.
LAST_SECOND = 9 * 10**11
# Below this, a float holds every whole number exactly.
EXACT = 2.0**53


def holds_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


# The Arrow types that can be written as text.
KINDS_OF_TEXT = (
    *(
        holds_text,
        pa.types.is_null,
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
    ),
    *(pa.types.is_date, pa.types.is_timestamp, pa.types.is_time),
)


def canonical_text(values: pa.Array, field: Field) -> pa.Array:
    """(N,) values of any Arrow type that has a text → (N,) their text as the field's type writes it, null where missing.

    What cannot be read as that type keeps its own text, and so counts as an unseen value.
    """
    kind = values.type
    is_text = holds_text(kind)
    if is_text:
        if kind != pa.string():
            values = values.cast(pa.string())
        if field.type != "string":
            values = pc.utf8_trim_whitespace(values)
        # An empty cell of a CSV is a missing value, whoever reads it.
        missing = MISSING_WORDS if field.missing_words else MISSING_WORDS[:1]
        is_missing = pc.is_in(values, missing)
        if is_missing.true_count:
            values = pc.if_else(is_missing, None, values)
    elif pa.types.is_decimal(kind):
        values, is_text = _text_of_decimals(values), True
    elif pa.types.is_floating(kind):
        values = values.cast(pa.float32()) if pa.types.is_float16(kind) else values
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    if pa.types.is_boolean(kind) and field.type in ("integer", "number"):
        return values.cast(pa.int8()).cast(pa.string())
    if pa.types.is_temporal(kind):
        is_date = field.type == "date" or (pa.types.is_date(kind) and field.type != "timestamp")
        return _moment_text(values, "date" if is_date else "timestamp")
    if is_text:
        return _READ_TEXT[field.type](values)
    if field.type == "number" and pa.types.is_integer(kind):
        values = values.cast(pa.float64(), safe=False)
    text = _number_text(values, short=field.type == "number")
    return text if field.type in ("string", "integer", "number") else _READ_TEXT[field.type](text)


def _number_text(values: pa.Array, *, short: bool) -> pa.Array:
    """Numbers as people write them: 25.0 is 25. A number that a 32-bit float holds has the digits that it has there, whatever
    it comes in. `short`: of any fraction, so that 0.1 is "0.1" whether it comes with 32 bits or with 64."""
    texts = values.cast(pa.string())
    if not pa.types.is_floating(values.type):
        return texts
    narrow = values.cast(pa.float32(), safe=False)
    fits = pc.is_finite(narrow) if short else pc.equal(narrow.cast(values.type), values)
    texts = pc.if_else(fits, narrow.cast(pa.string()), texts)
    if short:
        values = pc.if_else(pc.and_not(fits, _is_whole(values)), narrow.cast(values.type), values)
    is_whole = _is_whole(values)
    whole = pc.if_else(is_whole, values, pa.scalar(0, values.type)).cast(pa.int64())
    return pc.if_else(is_whole, whole.cast(pa.string()), texts)


def _is_whole(values: pa.Array) -> pa.Array:
    return pc.and_(pc.equal(values, pc.floor(values)), pc.less(pc.abs(values), EXACT))


def _where(mask: pa.Array, read: Callable[[pa.Array], pa.Array], values: pa.Array) -> pa.Array:
    """Applies `read` to the values where `mask` is true."""
    mask = pc.fill_null(mask, False)
    return pc.replace_with_mask(values, mask, read(values.filter(mask)))


def _integers_of_text(texts: pa.Array) -> pa.Array:
    """ "007", "+7" and "7.0" are "7", to any number of digits."""
    if _all_match(texts, PLAIN_INTEGER):
        return texts
    is_integer = pc.match_substring_regex(texts, INTEGER)

    def read(found: pa.Array) -> pa.Array:
        found = pc.replace_substring_regex(found, r"^\+?(-?)0*([0-9]+?)(\.0*)?$", r"\1\2")
        return pc.if_else(pc.equal(found, "-0"), "0", found)

    texts = _where(is_integer, read, texts)
    is_other = pc.and_not(_is_number(texts), is_integer)
    return _where(is_other, lambda found: _number_text(_floats(found), short=False), texts)


def _numbers_of_text(texts: pa.Array) -> pa.Array:
    if _all_match(texts, SHORT_INTEGER):
        return texts
    return _where(_is_number(texts), lambda found: _number_text(_floats(found), short=True), texts)


def _all_match(texts: pa.Array, pattern: str) -> bool:
    """Whether all that are not missing do. Who asks saves a dozen calls of Arrow, most of the time that a single row takes."""
    return pc.match_substring_regex(texts, pattern).false_count == 0


def _is_number(texts: pa.Array) -> pa.Array:
    return pc.or_(pc.match_substring_regex(texts, NUMBER), pc.match_substring_regex(texts, INFINITY))


def _floats(texts: pa.Array) -> pa.Array:
    return pc.utf8_ltrim(texts, "+").cast(pa.float64())


def _as_booleans(texts: pa.Array) -> pa.Array:
    lower = pc.utf8_lower(texts)
    texts = pc.if_else(pc.is_in(lower, TRUE_WORDS), "true", texts)
    return pc.if_else(pc.is_in(lower, FALSE_WORDS), "false", texts)


def without_zeros(texts: pa.Array) -> pa.Array:
    """2.50 is 2.5, 2.00 is 2."""
    return pc.utf8_rtrim(pc.replace_substring_regex(texts, r"(\.[0-9]*?)0+$", r"\1"), ".")


def _text_of_decimals(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    # Arrow writes 3E-8 of small ones.
    small = pc.match_substring(texts, "E")
    texts = _where(
        small, lambda t: pa.array([format(decimal.Decimal(v), "f") for v in t.to_pylist()], pa.string()), texts
    )
    return without_zeros(texts)


def _moments_of_text(values: pa.Array, kind: str) -> pa.Array:
    """Dates and times in one spelling, in UTC: "2024-01-31", "2024-01-31 12:30:00", with fractions where there are some."""
    is_iso = pc.match_substring_regex(values, ISO)

    def read(found: pa.Array) -> pa.Array:
        return pc.coalesce(_moment_text(_timestamps(found), kind), found)

    is_zoned = pc.match_substring_regex(values, ZONED)
    is_count = pc.match_substring_regex(values, SINCE_1970)
    known = pc.or_(pc.or_(is_iso, is_zoned), is_count)
    other = pc.and_(pc.invert(pc.fill_null(known, False)), values.is_valid())
    values = _where(is_iso, read, values)
    values = _where(is_zoned, lambda found: _zoned_text(found, kind), values)
    values = _where(is_count, lambda found: _moment_text(_since_1970(found), kind), values)
    return _where(other, lambda found: pa.array([_moment(t, kind) for t in found.to_pylist()], pa.string()), values)


def _zoned_text(texts: pa.Array, kind: str) -> pa.Array:
    try:
        return _moment_text(texts.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us")), kind)
    except pa.ArrowInvalid:  # one of them is such as 2024-02-30
        return pa.array([_moment(text, kind) for text in texts.to_pylist()], pa.string())


def _since_1970(texts: pa.Array) -> pa.Array:
    """(N,) whole numbers of seconds, milli-, micro- or nanoseconds, whichever so large a number must be → (N,) timestamps."""
    count = texts.cast(pa.int64()).to_numpy()
    unit = np.searchsorted(np.array([10**11, 10**14, 10**17]), count, side="right")
    with np.errstate(over="ignore"):  # in the units that are not chosen
        return pa.array(np.choose(unit, [count * 10**6, count * 10**3, count, count // 10**3])).cast(pa.timestamp("us"))


def _timestamps(texts: pa.Array) -> pa.Array:
    """(N,) text in the spelling of `ISO` → (N,) timestamps in microseconds, null of a day that there is not."""
    try:
        return texts.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:  # one of them is such as 2024-02-30
        return pa.array([_microseconds(text) for text in texts], pa.int64()).cast(pa.timestamp("us"))


def _microseconds(text: pa.Scalar) -> int | None:
    try:
        return text.cast(pa.timestamp("us")).value
    except pa.ArrowInvalid:
        return None


def _moment(text: str, kind: str) -> str:
    """One moment in any ISO 8601 spelling, or in seconds, milliseconds, … since 1970; other text as it is."""
    try:
        if not re.match(NUMBER, text):
            moment = microseconds_since_1970(datetime.datetime.fromisoformat(text))
        else:
            number = decimal.Decimal(text)
            if not 1e8 <= abs(number) < 1e20:  # no moment, such as a year
                return _number_text(pa.array([float(text)]), short=False)[0].as_py()
            scale = next((s for bound, s in ((1e11, 1), (1e14, 10**3), (1e17, 10**6)) if abs(number) < bound), 10**9)
            moment = int(number * 10**6 / scale)
    except (ValueError, ArithmeticError):  # no moment, or of more digits than a Decimal or a moment has
        return text
    return _moment_text(pa.array([moment], pa.int64()).cast(pa.timestamp("us")), kind)[0].as_py()


_READ_TEXT: dict[str, Callable[[pa.Array], pa.Array]] = {
    "string": lambda texts: texts,
    "integer": _integers_of_text,
    "number": _numbers_of_text,
    "boolean": _as_booleans,
    "date": lambda texts: _moments_of_text(texts, "date"),
    "timestamp": lambda texts: _moments_of_text(texts, "timestamp"),
}


def _moment_text(values: pa.Array, kind: str) -> pa.Array:
    """Moments to the microsecond; null in years that have no text."""
    if pa.types.is_time(values.type):
        return without_zeros(values.cast(pa.time64("us"), safe=False).cast(pa.string()))
    if pa.types.is_date(values.type):
        values = values.cast(pa.date32())
        counts, last = values.cast(pa.int32()), LAST_SECOND // 86_400
    else:
        second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[values.type.unit]
        counts, last = values.cast(pa.int64()), min(LAST_SECOND * second, 2**63 - 1)
    has_text = pc.and_(pc.less_equal(counts, last), pc.greater_equal(counts, -last))
    values = pc.if_else(has_text, values, pa.scalar(None, values.type))
    if pa.types.is_date(values.type) and kind == "date":
        return values.cast(pa.string())
    texts = values.cast(pa.timestamp("us"), safe=False).cast(pa.string())
    texts = without_zeros(texts)
    return pc.replace_substring_regex(texts, " 00:00:00$", "") if kind == "date" else texts


def moments_of(values: np.ndarray) -> pa.Array:
    """(N,) datetime64 of any unit → (N,) timestamps; null in years that have no text."""
    if np.datetime_data(values.dtype)[0] in ("Y", "M", "W", "D", "h", "m", "s", "ms", "us"):
        last = np.datetime64(LAST_SECOND, "s").astype(values.dtype).astype(np.int64)
        values = np.where(np.abs(values.astype(np.int64)) <= last, values, np.datetime64("NaT"))
    return pa.array(values.astype("datetime64[us]"))


def microseconds_since_1970(moment: datetime.datetime) -> int:
    """In UTC, where the year may be 0 or 10000, which `datetime` does not allow."""
    since = moment.replace(tzinfo=None) - datetime.datetime(1970, 1, 1)
    return (since - (moment.utcoffset() or datetime.timedelta())) // datetime.timedelta(microseconds=1)


def as_numbers(texts: pa.Array, kind: str) -> np.ndarray:
    """(N,) canonical text of a numeric field of type `kind` → (N,) float64: the number, days or seconds since 1970; NaN where it
    is none."""
    numbers = np.full(len(texts), np.nan)
    if kind in ("date", "timestamp"):
        found = pc.fill_null(pc.match_substring_regex(texts, ISO), False)
        moments = (
            _timestamps(texts.filter(found))
            .cast(pa.int64())
            .cast(pa.float64(), safe=False)
            .to_numpy(zero_copy_only=False)
        )
        numbers[found.to_numpy(zero_copy_only=False)] = moments / (86_400e6 if kind == "date" else 1e6)
        return numbers
    found = pc.fill_null(pc.match_substring_regex(texts, NUMBER), False)
    numbers[found.to_numpy(zero_copy_only=False)] = _floats(texts.filter(found)).to_numpy()
    return numbers
