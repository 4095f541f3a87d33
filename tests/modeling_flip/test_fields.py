"""Fields: what may be declared, what is refused and how, and that they come back from JSON as they were."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_flip.fields import (
    KINDS,
    OPTIONS_OF_KIND,
    SIDES,
    TYPES,
    Field,
    check_schema,
    did_you_mean,
    make_field,
    used,
    with_min_count,
)

OTHER_VALUES: dict[str, Any] = {
    "min_count": 5,
    "max_size": 4,
    "hash_size": 6,
    "num_buckets": 7,
    "max_items": 3,
    "separator": "|",
    "features_of": "movie",
    "max_words": 9,
}


@st.composite
def any_field(draw: st.DrawFn) -> Field:
    kind = draw(st.sampled_from(KINDS))
    types = [t for t in TYPES if kind != "numeric" or t not in ("string", "boolean")]
    options = draw(st.sets(st.sampled_from(OPTIONS_OF_KIND[kind]))) if OPTIONS_OF_KIND[kind] else set()
    if {"features_of", "hash_size"} & options:
        options -= {"min_count", "max_size"}
    text = st.text(max_size=5)
    return Field(
        name=draw(text),
        kind=kind,
        type=draw(st.sampled_from(types)),
        side=draw(st.sampled_from([None, *SIDES])),
        words=draw(text),
        reason=draw(text),
        missing_words=draw(st.booleans()),
        **{option: OTHER_VALUES[option] for option in options},
    )


@given(any_field())
def test_a_field_comes_back_from_json(field: Field) -> None:
    written = json.loads(json.dumps(field.to_dict()))
    assert make_field(written) == field
    assert {"name", "kind", "type"} <= set(written)


def test_only_what_differs_from_the_defaults_is_written() -> None:
    assert Field(name="user_id").to_dict() == {"name": "user_id", "kind": "categorical", "type": "string"}
    field = Field(name="tags", kind="list", words="labels", side="item", max_items=5, missing_words=False)
    assert field.to_dict() == {
        **{"name": "tags", "kind": "list", "type": "string", "words": "labels", "side": "item", "max_items": 5},
        "missing_words": False,
    }


def test_a_field_is_made_of_a_name_of_settings_or_of_itself() -> None:
    field = Field(name="age", kind="numeric", type="integer")
    assert make_field(field) is field
    assert make_field("user_id") == Field(name="user_id", words="user id")
    assert make_field({"name": "age", "kind": "numeric", "type": "integer"}) == field


@pytest.mark.parametrize(
    ("name", "words"), [("user_id", "user id"), ("Größe (cm)", "Größe (cm)"), ("👍", "👍"), ("a__b", "a  b"), ("", "")]
)
def test_the_words_are_the_names_unless_said(name: str, words: str) -> None:
    assert Field(name=name).words == words
    assert Field(name=name, words="other").words == "other"


def test_which_kinds_the_tabular_tower_reads() -> None:
    schema = [Field(name=kind, kind=kind, type="number" if kind == "numeric" else "string") for kind in KINDS]
    assert {field.name for field in schema if field.has_table_side} == {"categorical", "numeric", "list"}
    assert [field.name for field in used(schema)] == ["categorical", "numeric", "list", "text"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "catgorical"},
            r"field 'a': kind is 'catgorical'; it must be one of categorical, numeric, list, text, ignored"
            r"; did you mean 'categorical'\?",
        ),
        (
            {"type": "int"},
            r"field 'a': type is 'int'; it must be one of string, integer, number, boolean, date, timestamp"
            r"; did you mean 'integer'\?",
        ),
        ({"side": "usr"}, r"field 'a': side is 'usr'; it must be one of user, item, context; did you mean 'user'\?"),
        ({"side": ""}, r"field 'a': side is ''; it must be one of user, item, context$"),
        ({"min_count": 0}, "field 'a': min_count is 0; it must be 1 or more"),
        ({"min_count": True}, "field 'a': min_count is True; it must be 1 or more"),
        ({"min_count": 1.5}, "field 'a': min_count is 1.5; it must be 1 or more"),
        ({"min_count": "3"}, "field 'a': min_count is '3'; it must be 1 or more"),
        (
            {"kind": "numeric", "type": "number", "num_buckets": -1},
            "field 'a': num_buckets is -1; it must be 1 or more",
        ),
        ({"kind": "list", "max_items": 0}, "field 'a': max_items is 0; it must be 1 or more"),
        ({"kind": "text", "max_words": None}, "field 'a': max_words is None; it must be 1 or more"),
        (
            {"kind": "numeric", "type": "string"},
            "field 'a' is numeric, but its type is string; set its type to 'number', or its kind to 'categorical'",
        ),
        (
            {"kind": "numeric", "type": "boolean"},
            "field 'a' is numeric, but its type is boolean; set its type to 'number'",
        ),
        (
            {"kind": "list", "features_of": "movie", "min_count": 2},
            "field 'a' shares the features of 'movie' and its min_count and max_size; leave these out",
        ),
        ({"max_size": 0}, "field 'a': max_size is 0; it must be 1 or more"),
        (
            {"hash_size": 9, "min_count": 2},
            "field 'a' has a hash_size: its values are not counted; leave min_count and max_size out",
        ),
        (
            {"kind": "numeric", "hash_size": 9},
            "field 'a' is numeric: hash_size is not an option of that kind; leave it out",
        ),
        ({"knd": "list"}, r"field 'a' has no setting 'knd'; did you mean 'kind'\?"),
        ({"buckets": 3}, r"field 'a' has no setting 'buckets'; did you mean 'num_buckets'\?"),
        ({"xyzzy": 3}, r"field 'a' has no setting 'xyzzy'$"),
        ({5: 3}, r"field 'a' has no setting 5$"),
    ],
    ids=str,
)
def test_an_impossible_setting_is_refused_in_one_line(settings: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_field({"name": "a", **settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("declared", [{}, {"kind": "list"}, {"name": None}, {"name": 5}], ids=str)
def test_a_field_without_a_name_is_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a field needs a name; this one is "):
        make_field(declared)


@pytest.mark.parametrize(
    ("kind", "option"),
    [(kind, o) for kind in KINDS for o in OTHER_VALUES if o not in OPTIONS_OF_KIND[kind]],
)
def test_an_option_of_another_kind_is_refused(kind: str, option: str) -> None:
    kept: dict[str, Any] = {"type": "number"} if kind == "numeric" else {}
    with pytest.raises(ValueError, match=f"field 'a' is {kind}: {option} is not an option of that kind; leave it out"):
        Field(name="a", kind=kind, **kept, **{option: OTHER_VALUES[option]})


def test_every_option_belongs_to_a_kind() -> None:
    common = {"name", "kind", "type", "side", "words", "reason", "missing_words"}
    options = {option for options in OPTIONS_OF_KIND.values() for option in options}
    assert options == {field.name for field in fields(Field)} - common == set(OTHER_VALUES)


# ---- schemas

MOVIE = Field(name="movie", type="integer")


def history(**settings: Any) -> Field:
    return Field(**{"name": "history", "kind": "list", "type": "integer", "features_of": "movie"} | settings)


def test_a_list_may_share_the_features_of_a_categorical_field_or_of_another_list() -> None:
    check_schema([MOVIE, history()])
    check_schema([history(), MOVIE])
    check_schema([Field(name="liked", kind="list", type="integer"), history(features_of="liked")])


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([MOVIE, MOVIE], "field 'movie' is declared twice; name each column once"),
        (
            [MOVIE, history(features_of="movies")],
            r"field 'history' shares the features of 'movies', which is not a categorical "
            r"field here; did you mean 'movie'\?",
        ),
        ([history()], "'history' shares the features of 'movie', which is not a categorical field here$"),
        ([history(features_of="history")], "shares the features of 'history', which is not a categorical field here"),
        ([MOVIE, history(), history(name="older", features_of="history")], "'older' shares the features of 'history'"),
        (
            [Field(name="movie", kind="numeric", type="integer"), history()],
            "shares the features of 'movie', which is not a categorical field here",
        ),
        (
            [Field(name="movie", kind="text", type="integer"), history()],
            "shares the features of 'movie', which is not a categorical field here",
        ),
        (
            [Field(name="movie", kind="ignored", type="integer"), history()],
            "shares the features of 'movie', which is not a categorical field here",
        ),
        (
            [MOVIE, history(type="string")],
            "field 'history' holds values of type string, but 'movie', whose features it "
            "shares, of type integer; give both the same type",
        ),
    ],
)
def test_an_impossible_schema_is_refused(schema: list[Field], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_schema(schema)


def test_min_count_is_that_of_each_field_that_has_one_and_says_nothing_else() -> None:
    schema = [
        MOVIE,
        history(),
        Field(name="own", min_count=2),
        Field(name="whole", min_count=1),
        Field(name="tags", kind="list"),
        Field(name="price", kind="numeric", type="number"),
        Field(name="title", kind="text"),
        Field(name="row", kind="ignored"),
    ]
    assert [field.min_count for field in with_min_count(schema, 5)] == [5, None, 2, None, 5, None, None, None]
    assert [field.min_count for field in with_min_count(schema, 1)] == [None, None, 2, *[None] * 5]


@pytest.mark.parametrize("min_count", [0, -1])
def test_min_count_below_one_is_refused(min_count: int) -> None:
    with pytest.raises(ValueError, match=f"min_count is {min_count}; it must be 1 or more"):
        with_min_count([], min_count)


def test_the_nearest_name_ends_a_message_where_there_is_one() -> None:
    assert did_you_mean("gendre", ["age", "gender", 5]) == "; did you mean 'gender'?"
    assert did_you_mean("xyz", ["gender"]) == did_you_mean("xyz", []) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"separator": -1}, "field 'a': separator is -1; it must be text"),
        ({"separator": ""}, "field 'a': separator is empty"),
        ({"words": 5}, "field 'a': words is 5; it must be text"),
        ({"features_of": ["b"]}, r"field 'a': features_of is \['b'\]; it must be text"),
        ({"missing_words": "no"}, "field 'a': missing_words is 'no'; it must be true or false"),
    ],
    ids=str,
)
def test_settings_of_another_type_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Field(**{"name": "a", "kind": "list"} | settings)
