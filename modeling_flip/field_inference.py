"""Infers the fields of a click log from its training rows, and which columns must not be learned from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .cell_text import ISO, MISSING_WORDS, NUMBER, as_numbers
from .fields import OPTIONS_OF_KIND, Field, check_keys, did_you_mean
from .row_containers import UnreadableError, arrow_or_cells, open_rows, to_arrow
from .row_reader import MEMBER_SEPARATOR, read_column

# With fewer rows, nothing is concluded from how often values repeat.
ROWS_TO_CONCLUDE = 50
ALL_ITEMS = 2**31
# An integer column with at most this many values is a category, whatever its name.
FEW_VALUES = 20
# From this share of rows with a value of their own, a column would only be memorised.
UNIQUE = 0.98
# From this AUC of one column alone, it is taken as known only after the click, and ignored.
GIVES_AWAY = 0.98
# From this AUC of one column alone, a warning asks whether it is known before the click.
SUSPICIOUS = 0.85
# How unlikely by chance it must be that a value occurs only in clicked rows.
BY_CHANCE = 1e-9
IF_AFTER = "if it is known only after the click, leave it out with exclude_fields"
# With fewer clicks or non-clicks, an AUC says nothing.
CLICKS_TO_CONCLUDE = 10
WORDS_OF_TEXT = 4
# Why a column is categorical for which nothing else speaks.
REPEATS = "values that repeat"
# What speaks against a category.
ALL_UNIQUE = "every row has its own value: it would only be memorised"
NEVER_REPEATS = "points in time that never repeat; set time_column to split by it"
SEPARATORS = ("|", ";", ",")
# 3,50 and 1,234 are not lists.
WITH_COMMA = r"^[+-]?([0-9]+,[0-9]+|[0-9]{1,3}(,[0-9]{3})*(\.[0-9]+)?)$"
TIME_WORDS = {"time", "timestamp", "ts", "date", "datetime", "at", "created", "updated"}
# Whole numbers of a column with such a name are seconds, milliseconds, … since 1970 from here on, as `cell_text` reads them.
FIRST_MOMENT = 1e8


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


# Whole numbers are identifiers if the column name ends in one of these: user, but not user_age.
ENTITY_WORDS = _words(
    """user customer visitor member viewer reader buyer session item product movie book ad advert campaign creative article video
    song merchant publisher advertiser shop store"""
)
ID_WORDS = _words("id ids uid uuid guid key hash code zip zipcode postcode sku asin isbn ean")
NUMBER_WORDS = _words(
    """price prices cost costs amount revenue budget count counts cnt num number n qty quantity age days hours minutes seconds
    duration length size width height weight score rate ratio percent pct distance balance income salary views clicks
    impressions likes visits sessions purchases orders year years rank position total sum mean avg average max min freq
    frequency recency stock discount temperature latitude longitude lat lon bid spend volume"""
)
SIDE_WORDS = {
    "user": _words("user customer visitor member viewer reader buyer gender sex age occupation income"),
    "item": _words(
        """item product movie book ad ads advert campaign creative article video song title genre genres brand author
        publisher category price sku asin isbn merchant"""
    ),
    "context": _words("device hour weekday day time slot position page browser os site app channel"),
}


@dataclass(frozen=True)
class FieldReport:
    """What was found in a column.

    Attributes:
        field: the inferred field, with the reason.
        distinct: how many values it has; of a list, how many members.
        missing: how many rows have none.
        example: the first value.
        warning: what to look at; "" if there is nothing.
        leak: how the column, though it is used, may give the click away; "" if it does not seem to.
    """

    field: Field
    distinct: int
    missing: int
    example: str
    warning: str = ""
    leak: str = ""


def infer_fields(
    rows: Any,
    declared: Sequence[str | Mapping[str, Any] | Field] | None = None,
    *,
    labels: np.ndarray | None = None,
    exclude: Mapping[str, str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    population: int | None = None,
) -> list[FieldReport]:
    """The fields of a table, inferred from its training rows.

    Args:
        rows: the training rows, anything that `read_columns` reads.
        declared: the columns to use, in the order of the sentence; each by its name, or with settings of `Field`, which are
            used as given. A column that is named here is never ignored, only warned of. By default all columns.
        labels: (N,) clicks; columns that give them away are ignored.
        exclude: columns to leave out, and why.
        overrides: where no columns are declared, settings of some of them, by name; these columns count as declared, and the
            others are inferred.
        population: how many training rows there are, if `rows` are a random sample of them.

    Raises:
        ValueError: a declared or excluded column does not exist (with the nearest) or is both, a setting is impossible, or a
            column's name is no text.

    Example:
        >>> [r.field.kind for r in infer_fields({"price": [3.5, 2.0], "city": ["Rome", "Oslo"]})]
        ['numeric', 'categorical']
    """
    names, _, column_of = open_rows(rows)
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"the column names must be text; {name!r} is of type {type(name).__name__}: rename it")
    overrides = overrides or {}
    settings: dict[str, dict[str, Any]] = {}
    for one in names if declared is None else declared:
        given = {"name": one} if isinstance(one, str) else one.to_dict() if isinstance(one, Field) else dict(one)
        check_keys(given)
        if given["name"] in settings:
            raise ValueError(f"field {given['name']!r} is declared twice; name each column once")
        settings[given["name"]] = given
    for name, own in overrides.items():
        settings[name] = {"name": name, **own}
        check_keys(settings[name])
    excluded = dict(exclude or {})
    for name in settings if declared is not None else overrides:
        if name in excluded and settings[name].get("kind") != "ignored":
            raise ValueError(f"column {name!r} is declared as a field but also left out ({excluded[name]}): choose one")
    for name in (*settings, *excluded):
        if name not in names:
            known = sorted(map(str, names))
            raise ValueError(f"column {name!r} is missing; the columns are {known}{did_you_mean(name, known)}")
    reports = []
    for name, given in settings.items():
        if name in excluded:
            continue
        try:
            reports.append(
                _report(
                    column_of(name), given, labels, population, may_ignore=declared is None and name not in overrides
                )
            )
        except UnreadableError as error:
            raise UnreadableError(f"{error}, or leave the column out (exclude_fields)") from None
    ignored = [Field(name=name, kind="ignored", reason=reason) for name, reason in excluded.items()]
    return [*reports, *(FieldReport(field, 0, 0, "") for field in ignored)]


def _report(
    values: Any, given: Mapping[str, Any], labels: np.ndarray | None, population: int | None, *, may_ignore: bool
) -> FieldReport:
    name = given["name"]
    for option in given:  # an option that only one kind has decides the kind
        having = [kind for kind, options in OPTIONS_OF_KIND.items() if option in options]
        if len(having) == 1:
            given = {"kind": having[0], **given}
    found, type_, separator = _type_of(values, name)
    kind = given.get("kind", found)
    if found == "list" and kind != "list":  # "a|b" is one value then
        type_ = "string"
    elif kind == "list" and (found is None or "separator" in given):
        type_ = _member_type(values, name, given.get("separator"))
    type_ = given.get("type", type_)
    options: dict[str, Any] = {"name": name, "type": type_, "side": side_of(name)}
    if kind == "list":
        options |= {"kind": "list", "separator": separator if separator != "," else None}
    elif kind == "ignored":
        return FieldReport(Field(**{"reason": "declared", **given}), 0, 0, "")
    probe = Field(**(options | {k: v for k, v in given.items() if k in ("kind", "type", "separator", "missing_words")}))
    if probe.kind in ("numeric", "text"):
        probe = replace(probe, kind="categorical")
    if probe.kind == "list":
        probe = replace(probe, max_items=ALL_ITEMS)
    column = read_column(values, probe)
    facts = _Facts.of(column, probe, labels, population)
    if "type" not in given and _are_moments(facts, probe):
        options["type"], probe = "timestamp", replace(probe, type="timestamp")
    found, reason = (kind, "declared") if "kind" in given else _kind_of(facts, probe)
    leak, is_certain = _leak(facts, probe)
    ignore = _why_not(facts, probe, found, leak if is_certain else "")
    warning = ""
    if ignore and may_ignore and "kind" not in given:
        found, reason = "ignored", ignore
    elif ignore:
        warning = ignore
    if found == "ignored":
        field = Field(name=name, kind="ignored", type=options["type"], side=options["side"], reason=reason)
    else:
        kept = options if found == "list" else {k: v for k, v in options.items() if k not in ("kind", "separator")}
        field = Field(**{**kept, "kind": found, "reason": reason, **given})
        warning = warning or "; ".join(filter(None, [leak, _what_is_lost(facts, field)]))
    leak = "" if found == "ignored" else leak
    return FieldReport(field, facts.distinct, facts.missing, facts.example, warning, leak)


# ---- types


def _type_of(values: Any, name: str) -> tuple[str | None, str, str | None]:
    """The kind if the container decides it ("list"), the type, and the separator of a list written as text."""
    values = arrow_or_cells(values)
    if isinstance(values, pa.Array):
        return _type_of_arrow(values)
    cells = [value for value in values if value is not None and type(value).__name__ not in ("NAType", "NaTType")]
    containers = [isinstance(cell, (list, tuple, set, frozenset, np.ndarray)) for cell in cells]
    if any(containers):
        members = [m for cell, is_list in zip(cells, containers, strict=True) if is_list for m in cell]
        return "list", _type_of(members, name)[1], None
    if len({type(cell) for cell in cells}) == 1:
        return _type_of_arrow(to_arrow(cells, Field(name=name)))
    return _type_of_arrow(
        read_column(cells, Field(name=name))
    )  # cells of several types: go by what their text looks like


def _member_type(values: Any, name: str, separator: str | None) -> str:
    lists = read_column(values, Field(name=name, kind="list", separator=separator)).dictionary
    return _type_of_text(pc.list_flatten(pc.split_pattern(lists, MEMBER_SEPARATOR)).unique())[1]


def _type_of_arrow(values: pa.Array) -> tuple[str | None, str, str | None]:
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _type_of_arrow(values.dictionary)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "list", _type_of_arrow(pc.list_flatten(values))[1], None
    if pa.types.is_boolean(kind):
        return None, "boolean", None
    if pa.types.is_integer(kind):
        return None, "integer", None
    if pa.types.is_decimal(kind) and kind.scale <= 0:  # what a warehouse exports ids as
        return None, "integer", None
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = values.cast(pa.float64()).drop_null()
        numbers = numbers.filter(pc.is_finite(numbers))
        # Integers with a gap are floats in pandas.
        is_whole = pc.all(pc.equal(numbers, pc.floor(numbers))).as_py()
        return None, "integer" if is_whole and pa.types.is_floating(kind) else "number", None
    if pa.types.is_temporal(kind):
        if pa.types.is_timestamp(kind):
            moments = values.cast(pa.timestamp("us"), safe=False).drop_null().cast(pa.int64())
            whole = pc.all(pc.equal(pc.multiply(pc.divide(moments, 86_400_000_000), 86_400_000_000), moments)).as_py()
            return None, "date" if whole else "timestamp", None
        return None, "date" if pa.types.is_date(kind) else "string", None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _type_of_text(values.cast(pa.string()).unique())
    return None, "string", None


def _type_of_text(texts: pa.Array) -> tuple[str | None, str, str | None]:
    """The type that fits all of these distinct texts. Numbers with leading zeros are identifiers and stay text."""
    texts = texts.drop_null()
    texts = texts.filter(pc.invert(pc.is_in(pc.utf8_trim_whitespace(texts), MISSING_WORDS)))
    if not len(texts):
        return None, "string", None
    trimmed = pc.utf8_trim_whitespace(texts)

    def all_match(pattern: str) -> bool:
        return bool(pc.all(pc.match_substring_regex(trimmed, pattern)).as_py())

    if all_match(r"^-?(0|[1-9][0-9]*)(\.0)?$"):
        return None, "integer", None
    if all_match(NUMBER) and not pc.any(pc.match_substring_regex(trimmed, r"^[+-]?0[0-9]+$")).as_py():
        return None, "number", None
    if pc.all(pc.is_in(pc.utf8_lower(trimmed), pa.array(["true", "false"]))).as_py():
        return None, "boolean", None
    if all_match(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"):
        return None, "date", None
    if all_match(ISO) or all_match(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9:.]+(Z|[+-][0-9]{2}:?[0-9]{2})?$"):
        return None, "timestamp", None
    if all_match(r"^\[.*\]$"):
        try:
            members = read_column(texts, Field(name="", kind="list"))
        except UnreadableError:  # such as JSON objects: text, then
            return None, "string", None
        flat = pc.list_flatten(pc.split_pattern(members.dictionary, MEMBER_SEPARATOR))
        return "list", _type_of_text(flat.unique())[1], ","
    separator = _separator_of(trimmed)
    if separator is not None:
        flat = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(trimmed, separator)))
        return "list", _type_of_text(flat.unique())[1], separator
    return None, "string", None


def _separator_of(texts: pa.Array) -> str | None:
    """The separator if the distinct texts are lists: short members, few of them, in many combinations."""
    if len(texts) < FEW_VALUES or pc.all(pc.match_substring_regex(texts, WITH_COMMA)).as_py():
        return None
    for separator in SEPARATORS:
        lists = pc.split_pattern(texts, separator)
        lengths = pc.list_value_length(lists).to_numpy()
        members = pc.utf8_trim_whitespace(pc.list_flatten(lists))
        words = pc.mean(pc.list_value_length(pc.split_pattern(members, " "))).as_py()
        share = np.mean(lengths > 1)
        if share >= 0.3 and words <= 2.5 and pc.count_distinct(members).as_py() <= 0.5 * len(texts):
            return separator
    return None


# ---- kinds


@dataclass(frozen=True)
class _Facts:
    """The facts about a column that the decisions need. `codes` (N,) is each row's value, -1 where it has none."""

    rows: int
    missing: int
    distinct: int
    example: str
    texts: pa.Array
    counts: np.ndarray
    codes: np.ndarray
    labels: np.ndarray | None
    population: int

    @classmethod
    def of(
        cls, column: pa.DictionaryArray, field: Field, labels: np.ndarray | None, population: int | None = None
    ) -> _Facts:
        codes = pc.fill_null(column.indices, -1).to_numpy()
        counts = np.bincount(codes + 1, minlength=len(column.dictionary) + 1)
        texts, distinct = column.dictionary, len(column.dictionary)
        if field.kind == "list":
            distinct = pc.count_distinct(pc.list_flatten(pc.split_pattern(texts, MEMBER_SEPARATOR))).as_py()
        first = texts[0].as_py().replace(MEMBER_SEPARATOR, ", ") if len(texts) else ""
        size = population or len(codes)
        return cls(len(codes), int(counts[0]), distinct, first, texts, counts[1:], codes, labels, size)

    @property
    def present(self) -> int:
        return self.rows - self.missing

    @cached_property
    def distinct_share(self) -> float:
        """Distinct values to a row that has one, in all rows. From a sample it is estimated by how many of the values came once
        and twice (Chao, Scandinavian Journal of Statistics 1984): in a sample nearly every value comes once."""
        distinct, size = float(self.distinct), self.present * self.population / max(1, self.rows)
        if self.population > self.rows:
            once, twice = (int((self.counts == n).sum()) for n in (1, 2))
            distinct += once * (once - 1) / (2 * (twice + 1))
        return min(1.0, distinct / max(1.0, size))


def words_of(name: str) -> list[str]:
    """The words of a column's name: userId, user_id and "User ID" are user, id."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]


def side_of(name: str) -> str | None:
    """The side that a column's name suggests, if any."""
    return next((side for word in words_of(name) for side, words in SIDE_WORDS.items() if word in words), None)


def _kind_of(facts: _Facts, field: Field) -> tuple[str, str]:
    """Kind and reason."""
    words = set(words_of(field.name))
    if field.kind == "list":
        return "list", "several values to a row"
    if field.type == "number":
        return "numeric", "numbers with fractions"
    if field.type == "integer":
        if words & ID_WORDS or set(words_of(field.name)[-1:]) & ENTITY_WORDS:
            return "categorical", "named like an identifier"
        if facts.distinct <= FEW_VALUES:
            return "categorical", f"{facts.distinct} different integers"
        if words & NUMBER_WORDS:
            return "numeric", "integers, named like a number"
        if _is_skewed(facts, field):
            return "numeric", "integers, most of them small, some large: a count"
        return "categorical", "integers that may be identifiers"
    if field.type == "string" and facts.present >= ROWS_TO_CONCLUDE:
        average = np.average(_num_words(facts.texts), weights=facts.counts)
        if average >= WORDS_OF_TEXT and facts.distinct_share > 0.5:
            return "text", f"{average:.0f} words on average, and hardly any text repeats"
    return "categorical", {"boolean": "true or false", "date": "days"}.get(field.type, REPEATS)


def _are_moments(facts: _Facts, field: Field) -> bool:
    if (
        field.type != "integer"
        or field.kind == "list"
        or not facts.present
        or not TIME_WORDS & set(words_of(field.name))
    ):
        return False
    return bool(as_numbers(facts.texts, field.type).min() >= FIRST_MOMENT)


def _is_skewed(facts: _Facts, field: Field) -> bool:
    numbers = as_numbers(facts.texts, field.type)
    order = np.argsort(numbers)
    cumulative = np.cumsum(facts.counts[order])
    median = numbers[order][np.searchsorted(cumulative, cumulative[-1] / 2)]
    mean = np.average(numbers, weights=facts.counts)
    return bool(
        numbers.min() >= 0 and numbers.min() <= 1 and mean > 1.5 * max(median, 0.5) and facts.counts[order][0] > 1
    )


def _why_not(facts: _Facts, field: Field, kind: str, leak: str) -> str:
    """Why a column must not be learned from; "" if it may be."""
    if facts.present == 0:
        return "no row has a value"
    if len(facts.texts) == 1 and facts.missing == 0:
        return (
            "constant: the same value in every row"  # the value is not named: the reason is saved with the checkpoint
        )
    if leak:
        return leak
    if kind != "categorical" or facts.present < ROWS_TO_CONCLUDE:
        return ""
    if facts.distinct_share >= UNIQUE:
        return "; ".join(filter(None, [ALL_UNIQUE, _what_is_lost(facts, field)]))
    if field.type == "timestamp" and facts.distinct > FEW_VALUES:
        return NEVER_REPEATS
    return ""


def _numbers_the_rows(facts: _Facts, field: Field) -> bool:
    """Whether the column numbers the rows: a distinct integer per row, with few gaps (such as those that a split leaves)."""
    if field.type != "integer" or facts.present < ROWS_TO_CONCLUDE or facts.distinct_share < UNIQUE:
        return False
    numbers = as_numbers(facts.texts, field.type)
    return bool(numbers.max() - numbers.min() < 2 * facts.present * facts.population / facts.rows)


def _num_words(texts: pa.Array) -> np.ndarray:
    """(N,) texts → (N,) words, counted as they are cut."""
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
    return np.asarray(pc.list_value_length(words).to_numpy(zero_copy_only=False))


def _what_is_lost(facts: _Facts, field: Field) -> str:
    """A warning about values that are cut, not read as a person would read them, or meaningless; "" if there are none."""
    if field.kind == "text":
        share = facts.counts[_num_words(facts.texts) > field.max_words].sum() / max(facts.present, 1)
        return f"{share:.1%} of its texts are cut to their first {field.max_words} words (max_words)" if share else ""
    if field.kind == "list":
        items = pc.add(pc.count_substring(facts.texts, MEMBER_SEPARATOR), 1).to_numpy(zero_copy_only=False)
        share = facts.counts[items > field.max_items].sum() / max(facts.present, 1)
        return f"{share:.1%} of its lists are cut to their first {field.max_items} members (max_items)" if share else ""
    if field.kind == "numeric" and _numbers_the_rows(facts, field):
        return "it numbers the rows one by one: leave it out with exclude_fields, unless the numbers mean something"
    if field.kind == "numeric" and facts.present:
        strange = np.isnan(as_numbers(facts.texts, field.type))
        share = facts.counts[strange].sum() / facts.present
        if share:
            example = facts.texts[int(np.argmax(strange))].as_py()
            return f"{share:.1%} of its values, such as {example!r}, are not numbers and count as missing"
    if field.kind == "categorical" and field.type == "string" and facts.distinct > FEW_VALUES:
        are_numbers = pc.match_substring_regex(facts.texts, WITH_COMMA)
        if pc.all(are_numbers).as_py() and pc.any(pc.match_substring(facts.texts, ",")).as_py():
            return "numbers with commas are read as words; write them as 1234.5"
    return ""


def _leak(facts: _Facts, field: Field) -> tuple[str, bool]:
    """How a column gives the label away ("" if it does not), and whether that is certain enough to leave it out."""
    if facts.labels is None or facts.rows < ROWS_TO_CONCLUDE or len(np.unique(facts.labels)) < 2:
        return "", False
    groups = facts.codes + 1  # the missing value is a group too
    rows = np.bincount(groups, minlength=len(facts.texts) + 1)
    clicks = np.bincount(groups, weights=facts.labels, minlength=len(rows))
    used_groups = rows > 0
    if used_groups.sum() == 2 and np.isin(clicks[used_groups] / rows[used_groups], (0, 1)).all():
        if facts.missing:
            return "it has a value only in rows of one label: known only after the click", True
        return "identical to the label", True
    if facts.missing and clicks[0] in (0, rows[0]) and (rows[0] - clicks[0] in (0, (1 - facts.labels).sum())):
        others = facts.labels[facts.codes >= 0]
        if len(np.unique(others)) == 1:
            return "it has a value only in rows of one label: known only after the click", True
    if min(facts.labels.sum(), facts.rows - facts.labels.sum()) < CLICKS_TO_CONCLUDE:
        return "", False
    auc = _auc_of_rates(groups, facts.labels)
    if field.type in ("integer", "number"):
        ranked = np.append([np.nan], as_numbers(facts.texts, field.type))
        known = used_groups & ~np.isnan(ranked)
        of_numbers = _auc(rows[known], clicks[known], ranked[known])
        auc = max(auc, of_numbers, 1 - of_numbers)
    told = f"alone it ranks the clicks with an AUC of {auc:.3f}"
    if auc > GIVES_AWAY:
        return f"{told}: known only after the click?", True
    if auc > SUSPICIOUS:
        return f"{told}: {IF_AFTER}", False
    return _always_clicked(facts, rows, clicks), False


def _always_clicked(facts: _Facts, rows: np.ndarray, clicks: np.ndarray) -> str:
    """Warns of values whose rows are all clicks, such as those with a purchase; "" if there are none.

    `rows` and `clicks` are those of each value, the missing one first. Values are checked one by one only if there are few:
    among many, such as users, some click every time.
    """
    usual, shown = int(np.argmax(rows)), pc.replace_substring(facts.texts, MEMBER_SEPARATOR, ", ")
    name = repr(shown[usual - 1].as_py()) if usual else "no value"
    groups = [(rows.sum() - rows[usual], clicks.sum() - clicks[usual], f"anything but {name}" if usual else "a value")]
    if len(facts.texts) <= FEW_VALUES:
        named = zip(rows[1:], clicks[1:], shown.to_pylist(), strict=True)
        groups += [(n, clicked, repr(text)) for n, clicked, text in named]
    if facts.missing and usual:
        groups.append((facts.present, clicks[1:].sum(), "a value"))
    rate = clicks.sum() / rows.sum()
    for n, clicked, what in groups:
        if n == clicked and n >= CLICKS_TO_CONCLUDE and rate**n < BY_CHANCE:
            return f"each of the {n:,.0f} rows with {what} is a click: {IF_AFTER}"
    return ""


def _auc_of_rates(groups: np.ndarray, labels: np.ndarray) -> float:
    """AUC of each row's group click rate, with rates estimated on one half of the rows and evaluated on the other: estimated on
    all rows, the rate of a rare value would already contain its own labels."""
    half = np.random.default_rng(0).random(len(groups)) < 0.5
    size = groups.max() + 1
    rows, others = (np.bincount(groups[h], minlength=size) for h in (half, ~half))
    clicks, others_clicks = (np.bincount(groups[h], weights=labels[h], minlength=size) for h in (half, ~half))
    return _auc(others, others_clicks, (clicks + labels.mean()) / (rows + 1))


def _auc(rows: np.ndarray, clicks: np.ndarray, scores: np.ndarray) -> float:
    """AUC of scores shared by groups of rows; one half if it is undefined."""
    order = np.argsort(scores, kind="stable")
    _, tie = np.unique(scores[order], return_inverse=True)
    clicks = np.bincount(tie, weights=clicks[order])
    others = np.bincount(tie, weights=rows[order]) - clicks
    below = np.cumsum(others) - others
    total = clicks.sum() * others.sum()
    return float((clicks * (below + others / 2)).sum() / total) if total else 0.5


def field_table(reports: Sequence[FieldReport]) -> str:
    """The reports as a table to read before training."""
    header = ("field", "kind", "type", "side", "distinct", "missing", "example", "why")
    lines = [header]
    for report in reports:
        field = report.field
        example = report.example if len(report.example) <= 28 else report.example[:27] + "…"
        is_contradicted = field.reason == REPEATS and report.warning.startswith((ALL_UNIQUE, NEVER_REPEATS))
        reasons = [] if is_contradicted else [field.reason]
        why = "; but: ".join([*reasons, *filter(None, [report.warning])])
        looked_at = bool(report.distinct or report.missing)
        cells = (
            " ".join(field.name.split()),
            field.kind,
            field.type if looked_at else "–",
            field.side or "–",
            f"{report.distinct:,}" if looked_at else "–",
            f"{report.missing:,}" if looked_at else "–",
        )
        lines.append((*cells, " ".join(example.split()), why))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header) - 1)]
    right = {4, 5}

    def row(line: tuple[str, ...]) -> str:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=False))]
        return "  ".join([*cells, line[-1]]).rstrip()

    return "\n".join(row(line) for line in lines)
