"""A column as the reader reads it."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

from modeling_flip import Field
from modeling_flip.row_reader import MEMBER_SEPARATOR, read_column

D = decimal.Decimal
UTC, ROME = dt.UTC, dt.timezone(dt.timedelta(hours=1))


def texts_of(values: Any, type: str = "string", **options: Any) -> list[str | None]:
    """The canonical text of one column."""
    return read_column(values, Field(name="a", type=type, **options)).to_pylist()


def lists_of(values: Any, type: str = "string", **options: Any) -> list[list[str] | None]:
    """The members of each list of one column."""
    texts = texts_of(values, type, kind="list", **options)
    return [None if text is None else text.split(MEMBER_SEPARATOR) for text in texts]
