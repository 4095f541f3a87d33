"""Fields: what each column of a click log is, declared or inferred once, saved in the checkpoint and read back in scoring."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

KINDS = ("categorical", "numeric", "list", "text", "ignored")
TYPES = ("string", "integer", "number", "boolean", "date", "timestamp")
SIDES = ("user", "item", "context")
# More than any real table has: files from others may claim anything.
MOST_FIELDS, LONGEST_NAME = 100_000, 1_000
# The options of each kind. An option of another kind is refused, since it would do nothing.
OPTIONS_OF_KIND: dict[str, tuple[str, ...]] = {
    "categorical": ("min_count", "max_size", "hash_size"),
    "numeric": ("num_buckets",),
    "list": ("min_count", "max_size", "max_items", "separator", "features_of"),
    "text": ("max_words",),
    "ignored": (),
}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One column of a click log.

    Args:
        name: the name of the column.
        kind: "categorical" (one of many values, each with an embedding), "numeric" (a number; its embedding is that of
            its quantile bucket), "list" (several values; their embeddings' mean), "text" (words, read by the text tower
            alone) or "ignored".
        type: the type of a value (for a list, of a member): "string", "integer", "number" (with fractions), "boolean", "date"
            or "timestamp"; by default "number" of a numeric field, else "string". Whatever container a cell comes from, it is
            read as this type.
        side: "user", "item" or "context"; None if unknown.
        words: the name in the sentence, "{words} is …"; by default the column name, with spaces for underscores.
        reason: why the kind is what it is; for an ignored column, why it is left out.
        missing_words: whether "NA", "null" and the other words that pandas reads as missing in a CSV count as missing, in any
            container; "" always does.
        min_count: a value (or member) seen less often shares the field's unknown feature; by default that of all fields, or 1.
        max_size: at most this many values (or members), the most frequent ones, have features of their own; by default all.
        hash_size: for a field that never stops bringing new values: it has this many features, and values with the same hash
            share one. No value is kept, and none is ever unknown.
        num_buckets: at most this many quantile buckets of a numeric field.
        max_items: a list is cut to this many members, the first ones.
        separator: the text between the members of a list that is written as text, such as "|".
        features_of: another field whose features the members share: for a history of items, the item field.
        max_words: text is cut to this many words, the first ones.

    Raises:
        ValueError: a value is not one of those above, or an option belongs to another kind.

    Example:
        >>> Field(name="price", kind="numeric", type="number", num_buckets=20).has_table_side
        True
    """

    name: str
    kind: str = "categorical"
    type: str = ""
    side: str | None = None
    words: str = ""
    reason: str = ""
    missing_words: bool = True
    min_count: int | None = None
    max_size: int | None = None
    hash_size: int | None = None
    num_buckets: int = 32
    max_items: int = 20
    separator: str | None = None
    features_of: str | None = None
    max_words: int = 64

    def __post_init__(self) -> None:
        for key in ("name", "words", "reason", "separator", "features_of"):
            value = getattr(self, key)
            if not isinstance(value, str) and not (value is None and DEFAULTS[key] is None):
                raise ValueError(f"field {self.name!r}: {key} is {value!r}; it must be text, in quotes")
        if not isinstance(self.missing_words, bool):
            raise ValueError(f"field {self.name!r}: missing_words is {self.missing_words!r}; it must be true or false")
        if self.separator == "":
            raise ValueError(f"field {self.name!r}: separator is empty; it must be the text between two members")
        if not self.type:
            object.__setattr__(self, "type", "number" if self.kind == "numeric" else "string")
        if not self.words:
            object.__setattr__(self, "words", self.name.replace("_", " "))
        for key in ("name", "words"):
            if len(getattr(self, key)) > LONGEST_NAME:
                raise ValueError(
                    f"field {self.name[:40] + '…'!r}: {key} has {len(getattr(self, key)):,} characters; at most "
                    f"{LONGEST_NAME:,} are allowed, because it is part of every sentence"
                )
        for key, value, allowed in (
            ("kind", self.kind, KINDS),
            ("type", self.type, TYPES),
            ("side", self.side, (None, *SIDES)),
        ):
            if value not in allowed:
                raise ValueError(
                    f"field {self.name!r}: {key} is {value!r}; it must be one of {', '.join(filter(None, allowed))}"
                    + did_you_mean(str(value), filter(None, allowed))
                )
        for key in ("min_count", "max_size", "hash_size", "num_buckets", "max_items", "max_words"):
            value = getattr(self, key)
            if value is None and DEFAULTS[key] is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"field {self.name!r}: {key} is {value!r}; it must be 1 or more")
        for option in sorted({o for options in OPTIONS_OF_KIND.values() for o in options}):
            if option not in OPTIONS_OF_KIND[self.kind] and getattr(self, option) != DEFAULTS.get(option):
                raise ValueError(
                    f"field {self.name!r} is {self.kind}: {option} is not an option of that kind; leave it out"
                )
        is_counted = self.min_count not in (None, 1) or self.max_size is not None
        if self.features_of is not None and is_counted:
            raise ValueError(
                f"field {self.name!r} shares the features of {self.features_of!r} and its min_count and max_size; leave these out"
            )
        if self.hash_size is not None and is_counted:
            raise ValueError(
                f"field {self.name!r} has a hash_size: its values are not counted; leave min_count and max_size out"
            )
        if self.kind == "numeric" and self.type in ("string", "boolean"):
            raise ValueError(
                f"field {self.name!r} is numeric, but its type is {self.type}; set its type to 'number', or its kind to "
                "'categorical'"
            )

    @property
    def least_count(self) -> int:
        """How often a value must be seen to have a feature of its own."""
        return self.min_count or 1

    @property
    def has_table_side(self) -> bool:
        """Whether the tabular tower reads it."""
        return self.kind in ("categorical", "numeric", "list")

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, and always name, kind and type."""
        shown = {"name", "kind", "type"}
        words = self.name.replace("_", " ")
        return {
            key: value
            for key, value in asdict(self).items()
            if key in shown or (value != words if key == "words" else value != DEFAULTS.get(key))
        }


DEFAULTS = {f.name: f.default for f in fields(Field)}


def make_field(declared: str | Mapping[str, Any] | Field) -> Field:
    """A field from its declaration in a recipe or a saved vocabulary.

    Raises:
        ValueError: a key is unknown (with the nearest one), or a value impossible.
    """
    if isinstance(declared, Field):
        return declared
    if isinstance(declared, str):
        return Field(name=declared)
    check_keys(declared)
    return Field(**declared)


def check_keys(declared: Mapping[str, Any]) -> None:
    """Raises ValueError if a declaration of a field has no name, or an unknown key."""
    if not isinstance(declared.get("name"), str):
        raise ValueError(f"fields: a field needs a name; this one is {dict(declared)}")
    for key in declared:
        if key not in DEFAULTS:
            raise ValueError(f"field {declared['name']!r} has no setting {key!r}{did_you_mean(str(key), DEFAULTS)}")


def check_schema(schema: Sequence[Field]) -> None:
    """Raises ValueError if a name occurs twice, or a list shares the features of a field that has none of its own."""
    for name, count in Counter(field.name for field in schema).items():
        if count > 1:
            raise ValueError(f"field {name!r} is declared twice; name each column once")
    by_name = {field.name: field for field in schema}
    for field in schema:
        if field.features_of is None:
            continue
        target = by_name.get(field.features_of)
        if target is None or target.kind not in ("categorical", "list") or target.features_of is not None:
            raise ValueError(
                f"field {field.name!r} shares the features of {field.features_of!r}, which is not a categorical field here"
                + did_you_mean(field.features_of, [f.name for f in schema if f.kind == "categorical"])
            )
        if target.hash_size is not None:
            raise ValueError(
                f"field {field.name!r} shares the features of {target.name!r}, which has a hash_size; leave one of them out"
            )
        if target.type != field.type:
            raise ValueError(
                f"field {field.name!r} holds values of type {field.type}, but {target.name!r}, whose features it shares, of type "
                f"{target.type}; give both the same type"
            )


def used(schema: Iterable[Field]) -> list[Field]:
    """The fields that are not ignored: those of the sentence, in its order."""
    return [field for field in schema if field.kind != "ignored"]


def did_you_mean(wrong: str, known: Iterable[Any]) -> str:
    """The end of a message about an unknown name: the nearest known one; empty if none is near."""
    near = difflib.get_close_matches(wrong, [str(name) for name in known], n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def with_min_count(schema: Sequence[Field], min_count: int) -> list[Field]:
    """The schema with `min_count` on every field whose kind has it and that has none of its own. What has none after that
    keeps every value, as with 1."""
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}; it must be 1 or more")

    def of(field: Field) -> int | None:
        has_it = "min_count" in OPTIONS_OF_KIND[field.kind] and field.features_of is None and field.hash_size is None
        own = min_count if field.min_count is None and has_it else field.min_count
        return None if own == 1 else own  # as files have it

    return [replace(field, min_count=of(field)) for field in schema]
