"""Pushes in one commit, with retries."""

from __future__ import annotations

import fnmatch
import json
import os
import time
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session
from transformers.utils import logging

T = TypeVar("T")

logger = logging.get_logger(__name__)

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
PAUSES = (1, 4, 16)  # seconds before a failed request is sent again
PATIENCE = 120  # seconds without a byte after which a request has failed; the client by itself would wait for ever


def create_repo(repo_id: str, private: bool | None = None, token: str | bool | None = None) -> str:
    """The full id of a repo that may be written to; it is created where it does not exist."""

    def attempt() -> str:
        api = HfApi(token=token)
        full_id = _existing_repo(api, repo_id, private)
        # The client treats any existing repo as its own, whoever owns it.
        api.auth_check(full_id, write=True)
        return full_id

    return with_retries(attempt)


def _existing_repo(api: HfApi, repo_id: str, private: bool | None) -> str:
    full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(full_id).private:
        raise HFValidationError(
            f"{full_id} should be private, but exists and is public; choose another id, or make it private"
        )
    return full_id


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    delete_patterns: Iterable[str] = (),
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    ignore_patterns: Iterable[str] = (),
) -> CommitInfo:
    """Create the repo if need be and bring `folder` there in one commit.

    The same commit deletes weights of an earlier push with another number of shards, and files that match `delete_patterns`.
    Other files of the repo stay.

    Raises:
        HfHubHTTPError, OSError, ValueError: the Hub refuses it, or could not be reached in four attempts.
    """
    ours = {file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if _is_weights(file)}
    beside = {Path(name).parent for name in ours}

    def attempt() -> CommitInfo:
        api = HfApi(token=token)
        full_id = _existing_repo(api, repo_id, private)
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(full_id, branch=revision, exist_ok=True)
        theirs = api.list_repo_files(full_id, revision=revision)
        stale = [n for n in theirs if _is_weights(Path(n)) and Path(n).parent in beside and n not in ours]
        return api.upload_folder(
            repo_id=full_id,
            folder_path=Path(folder),
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=list(ignore_patterns),
            delete_patterns=[*stale, *delete_patterns],
        )

    return with_retries(attempt)


def _is_weights(path: Path) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in WEIGHTS)


def with_retries(attempt: Callable[[], T]) -> T:
    """Returns the result of `attempt`. If the Hub fails or cannot be reached, retries three times with growing pauses."""
    for pause in PAUSES:
        try:
            with patient_client():
                return attempt()
        except Exception as error:
            if is_final(error):
                raise
            logger.warning(f"a request to the Hub failed ({first_line(error)}); trying again in {pause} s")
            time.sleep(pause)
    with patient_client():
        return attempt()


@contextmanager
def patient_client() -> Iterator[None]:
    """Limits the client's wait for an answer to PATIENCE, and restores the limit afterwards."""
    session = get_session()
    before, session.timeout = session.timeout, PATIENCE
    try:
        yield
    finally:
        session.timeout = before


def is_final(error: BaseException) -> bool:
    """Whether the same request would fail again. A busy server, a lost connection or a truncated answer may pass; a refusal, a
    bad request, a bug or a disk error does not."""
    if isinstance(error, OfflineModeIsEnabled):
        return True
    if isinstance(error, LocalEntryNotFoundError):  # neither here nor, for another reason, there
        return error.__cause__ is not None and is_final(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        return status is not None and 400 <= status < 500 and status not in (408, 412, 429)
    if isinstance(error, urllib.error.HTTPError):
        return 400 <= error.code < 500 and error.code not in (408, 429)
    if isinstance(error, (ConnectionError, TimeoutError, httpx2.RequestError, json.JSONDecodeError)):
        return False
    # The client's errors for a truncated answer have no status code; hf_xet raises RuntimeError for everything.
    return not (isinstance(error, OSError) and error.errno is None) and type(error) is not RuntimeError


def push_error(error: Exception) -> str:
    """One line of what went wrong, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = (
        " Log in with `hf auth login`, or set HF_TOKEN, with a token that may write there"
        if status in (401, 403)
        else ""
    )
    return (" ".join(str(error).split()) or type(error).__name__) + login


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
