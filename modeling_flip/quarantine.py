"""Rows that cannot be read and are left out: counted, listed, and not too many of them."""

from __future__ import annotations

import codecs
import json
import shutil
import tempfile
from pathlib import Path
from typing import TextIO

# Stands for bytes that are not of the encoding, in rows that are then left out. Unicode keeps this character out of all text.
NO_TEXT = "\ufdd0"
codecs.register_error("modeling_flip.no_text", lambda error: (NO_TEXT, error.end))  # type: ignore[attr-defined]


class BadRowError(ValueError):
    """A row that cannot be read, and in a few words why."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class Quarantine:
    """Rows that cannot be read and are left out: counted by file and reason, and listed with their place and content.

    Files are read several times, each time from the beginning, and leave out the same rows each time. A row counts the first
    time. More than 1 % of a file's rows are too many: then something is wrong with the file, or with how it is read.

    Attributes:
        counts: of each file the rows left out, by reason.
    """

    MOST = 0.01
    FEW = 10  # these may be left out of any file, if others remain
    MANY = 10_000  # with so many, the end of the file is not waited for
    CUT = 500  # characters of each row that are listed

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self._last: dict[tuple[str, str], int] = {}  # of each file and reason, the number of the last row
        self._first: dict[str, str] = {}  # of each file, the error of its first such row
        self._rows: TextIO | None = None

    def add(self, path: Path, place: str, text: str, error: BadRowError, number: int | None = None) -> None:
        """Leave out a row.

        Args:
            path: its file.
            place: where in the file it is, in words.
            text: what stands there.
            error: what would be raised if it were not left out.
            number: rises within the file, where that is read again.
        """
        file, reason = str(path), error.reason
        if number is not None:
            if number <= self._last.get((file, reason), -1):
                return
            self._last[file, reason] = number
        self._first.setdefault(file, str(error))
        counts = self.counts.setdefault(file, {})
        counts[reason] = counts.get(reason, 0) + 1
        if self._rows is None:
            self._rows = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # lives as long as this
        text = text if len(text) <= self.CUT else f"{text[: self.CUT]}…"
        row = {"file": file, "place": place, "reason": reason, "text": text.replace(NO_TEXT, "\ufffd")}
        self._rows.write(json.dumps(row, ensure_ascii=False) + "\n")

    def check(self, path: Path, rows: int, so_far: bool = False) -> None:
        """Raises ValueError where too many of a file's rows have been left out: of all, or of so many so far."""
        file = str(path)
        self.check_share(self._first.get(file, ""), sum(self.counts.get(file, {}).values()), rows, so_far)

    def check_share(self, error: str, bad: int, rows: int, so_far: bool = False) -> None:
        """Raises ValueError, which begins with the error of one of them, where so many rows are too many of all."""
        nothing_left = bad == rows and not so_far
        if bad > max(self.MANY if so_far else self.FEW, self.MOST * rows) or (bad and nothing_left):
            raise ValueError(
                f"{error}. {bad:,} of {'the first ' if so_far else ''}{rows:,} rows cannot be read, and on_bad_rows skip leaves "
                f"out at most {self.MOST:.0%}: mend the file, or how it is read"
            )

    def write(self, path: Path) -> None:
        """The rows that were left out, as JSON lines of `file`, `place`, `reason` and `text`."""
        with open(path, "w", encoding="utf-8") as file:
            if self._rows is not None:
                self._rows.seek(0)
                shutil.copyfileobj(self._rows, file)
