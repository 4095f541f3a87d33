"""Text in any encoding, plain or gzipped, as a stream of checked UTF-8."""

from __future__ import annotations

import codecs
import gzip
import io
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..quarantine import NO_TEXT

logger = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes that are read at once
LONGEST_ROW = 1 << 26  # bytes; a longer row is taken for a quote that is not closed, or a file that is no lines
BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ENCODING_SAMPLE = 1 << 24


def known_encoding(encoding: str | None) -> str | None:
    """Python's name of an encoding; raises ValueError where there is none for text."""
    try:
        "a".encode(encoding or "utf-8")  # looked up alone, there is base64 too, which is none of text
        return encoding and codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"encoding is {encoding!r}, which Python does not know; use utf-8, utf-16, cp1252, …"
        ) from error


@contextmanager
def _bytes_of(path: Path) -> Iterator[BinaryIO]:
    with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
        yield file  # type: ignore[misc]


def _not_gzip(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a complete gzip file ({error}): copy or download it again")


def detect_encoding(path: Path) -> str:
    """What the byte order mark says; UTF-8 where the first 16 MiB are, or hold more of its characters than other bytes; else
    cp1252, with a warning.

    Raises:
        ValueError: the file is empty, or no whole gzip file.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    size = characters = wrong = 0

    def count(text: str) -> None:
        nonlocal characters, wrong
        if not text.isascii():
            bad = len(text) - len(text.encode("utf-8", "ignore").decode())
            wrong, characters = wrong + bad, characters + len(text) - len(text.encode("ascii", "ignore")) - bad

    try:
        with _bytes_of(path) as file:
            while size < ENCODING_SAMPLE and (chunk := file.read(BLOCK)):
                if size == 0:
                    for mark, encoding in BOMS.items():
                        if chunk.startswith(mark):
                            return encoding
                    if chunk.count(0) > len(chunk) // 4:
                        raise ValueError(f"{path} is not UTF-8: set its encoding, such as utf-16-le")
                size += len(chunk)
                count(decoder.decode(chunk))
                if wrong > characters + 100:  # no need to look further
                    break
            if size < ENCODING_SAMPLE:
                count(decoder.decode(b"", final=True))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _not_gzip(path, error) from error
    if wrong > characters:
        logger.warning(f"{path} is not UTF-8 and is read as cp1252 (Windows); if that is wrong, set its encoding")
        return "cp1252"
    if size == 0:
        raise ValueError(f"{path} is empty")
    return "utf-8"


class Utf8Stream(io.RawIOBase):
    """A file's text as UTF-8 bytes without byte order mark.

    Args:
        path, file, encoding: where it is.
        marks: hand over NO_TEXT for bytes that are not of the encoding; `has_marks` tells whether there were any.

    Raises:
        ValueError: while it is read, where bytes are not of the encoding, with line and offset.
    """

    def __init__(self, path: Path, file: BinaryIO, encoding: str, marks: bool):
        self.path, self.file, self.encoding, self.marks = path, file, encoding, marks
        self.has_marks = False
        self.decoder = codecs.getincrementaldecoder(encoding)("modeling_flip.no_text" if marks else "strict")
        self.offset = self.lines = 0
        self.started = self.ended = False
        self.waiting = b""
        self.end = ""  # the last of what has been read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.waiting and not self.ended:
            self.waiting = self._next().encode()
        part, self.waiting = self.waiting[: len(buffer)], self.waiting[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _next(self) -> str:
        try:
            chunk = self.file.read(BLOCK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _not_gzip(self.path, error) from error
        self.ended = not chunk
        try:
            text = self.decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            offset = self.offset + len(chunk) - len(error.object) + error.start
            line = self.lines + before.decode(self.encoding, "replace").count("\n") + 1
            wrong = error.object[error.start : error.start + 1].hex()
            other = "cp1252" if self.encoding == "utf-8" else "latin-1"
            raise ValueError(
                f"{self.path}, line {line} (byte {offset}): 0x{wrong} is not {self.encoding}; set the file's encoding, such as "
                f"{other}"
            ) from error
        except UnicodeError as error:  # such as a byte order mark that is not there
            raise ValueError(f"{self.path} is not {self.encoding} ({error}); set the file's encoding") from error
        self.offset += len(chunk)
        if not self.started and text:
            self.started, text = True, text.removeprefix("\ufeff")
        self.lines += text.count("\n")
        self.has_marks = self.has_marks or (self.marks and NO_TEXT in text)
        self.end = (self.end + text)[-(1 << 16) :]
        return text


@contextmanager
def utf8_stream(path: Path, encoding: str, marks: bool = False) -> Iterator[tuple[io.BufferedReader, Utf8Stream]]:
    """A file's text as a stream of UTF-8, and what makes it, which knows what has been read."""
    with _bytes_of(path) as file:
        raw = Utf8Stream(path, file, encoding, marks)
        yield io.BufferedReader(raw, BLOCK), raw
