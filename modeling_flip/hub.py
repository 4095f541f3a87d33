"""What a checkpoint needs on the Hub: its code, checksums of its files, and a push that is whole and tries again."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, HfApi, is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

T = TypeVar("T")

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Part:
    """Files of a checkpoint that are saved and loaded together.

    Attributes:
        checksums: the file with their checksums.
        patterns: their names.
        needed: those that each checkpoint has.
    """

    checksums: str
    patterns: tuple[str, ...]
    needed: tuple[str, ...]


MODEL = Part(
    "model.sha256",
    ("config.json", "model*.safetensors", "model*.safetensors.index.json"),
    ("config.json", "model*.safetensors"),
)
PROCESSOR = Part(
    "processor.sha256",
    (
        "feature_vocab.parquet",
        "processor_config.json",
        "tokenizer*",
        "special_tokens_map.json",
        "vocab.*",
        "merges.txt",
    ),
    ("feature_vocab.parquet", "processor_config.json"),
)
WHOLE = "model.safetensors"  # weights in one file
# Arguments of `from_pretrained` that say where a checkpoint is.
LOCATION_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
PAUSES = (1, 4, 16)  # seconds before a failed request is sent again
PATIENCE = 120  # seconds without a byte after which a request has failed; the client by itself would wait for ever
REMEDY = "download or copy it again; if you changed it on purpose, save model and processor again with save_pretrained"
# huggingface_hub takes a Parquet file in a model's repo for a mistake.
warnings.filterwarnings("ignore", r"It seems that you are about to commit a data file \(.*feature_vocab\.parquet\)")


# ---- code


def copy_code(folder: str | os.PathLike, module_file: str | os.PathLike) -> None:
    """Copy a module, and every sibling that it imports, to `folder`, for `trust_remote_code`."""
    for source in {Path(module_file), *map(Path, get_relative_import_files(str(module_file)))}:
        shutil.copyfile(source, Path(folder) / source.name)


# ---- checksums


def write_checksums(folder: str | os.PathLike, part: Part) -> None:
    """Write the SHA-256 of each file of a part to `model.sha256` or `processor.sha256`, which `sha256sum -c` reads too."""
    files = sorted(file for file in Path(folder).iterdir() if _matches(file.name, part.patterns))
    temporary = Path(folder) / f".{part.checksums}"
    temporary.write_text("".join(f"{_sha256(file)}  {file.name}\n" for file in files))
    temporary.replace(Path(folder) / part.checksums)


def check_files(name_or_path: str | os.PathLike, part: Part, **located: Any) -> str | None:
    """Compare the files of a part with its checksums, downloading them.

    Args:
        name_or_path: a folder or a Hub id.
        part: MODEL or PROCESSOR.
        located: cache_dir, token, revision, subfolder, local_files_only, force_download.

    Returns:
        The commit that was looked at; None for a folder, or where nothing could be compared: checkpoints of the first version
        have no checksums.

    Raises:
        ValueError: a file is truncated or changed, or listed and absent.
        OSError: there is no such checkpoint, or the Hub does not answer.
    """
    offline = located.get("local_files_only") or is_offline_mode()
    may_be_missing: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": not offline,
    }
    sums_file = cached_file(name_or_path, part.checksums, **may_be_missing, **located)
    if sums_file is None:
        return None
    commit = extract_commit_hash(sums_file, None)
    if commit is not None:
        located = {**located, "revision": commit}
    sums = _read_checksums(Path(sums_file), part)
    # It is what transformers loads where there are shards too.
    unlisted = part is MODEL and WHOLE not in sums
    if unlisted and cached_file(name_or_path, WHOLE, **may_be_missing, **located) is not None:
        raise ValueError(f"{name_or_path} holds {WHOLE} beside the shards that {part.checksums} lists; {REMEDY}")
    for name, expected in sums.items():
        try:
            file = cached_file(name_or_path, name, **located)
        except OSError as error:
            if isinstance(error.__cause__, HfHubHTTPError) and not isinstance(error.__cause__, EntryNotFoundError):
                raise
            raise ValueError(f"{name} of {name_or_path} is missing; {REMEDY}") from error
        if _sha256(Path(file)) != expected:
            raise ValueError(f"{file} is cut short or was changed: its SHA-256 is not the saved one; {REMEDY}")
    return commit


def check_weights_are_whole(name_or_path: str | os.PathLike) -> None:
    """Raises ValueError with the name of the first file of weights in a folder that safetensors cannot read."""
    for file in sorted(Path(name_or_path).glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is cut short or was changed ({error}); {REMEDY}") from error


def _read_checksums(path: Path, part: Part) -> dict[str, str]:
    """`{name: SHA-256}`; raises ValueError where a line is none, or the list does not name what each checkpoint has."""
    lines = path.read_text(errors="replace").splitlines()
    sums = {name.lstrip(" *"): value for value, _, name in (line.partition(" ") for line in lines)}
    for name, value in sums.items():
        if not re.fullmatch("[0-9a-f]{64}", value) or not _matches(name, part.patterns) or Path(name).name != name:
            raise ValueError(f"{path} holds {name!r}, which is no line of checksums; {REMEDY}")
    absent = [pattern for pattern in part.needed if not any(fnmatch.fnmatch(name, pattern) for name in sums)]
    if absent:
        raise ValueError(f"{path} is cut short: it lists no {absent[0]}; {REMEDY}")
    return sums


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- push


def create_repo(repo_id: str, private: bool | None = None, token: str | bool | None = None) -> str:
    """The full id of a repo that may be written to; it is created where it does not exist."""

    def attempt() -> str:
        api = HfApi(token=token)
        full_id = _existing_repo(api, repo_id, private)
        # The client takes a repo that exists for its own, whosever it is.
        api.auth_check(full_id, write=True)
        return full_id

    return with_retries(attempt)


def _existing_repo(api: HfApi, repo_id: str, private: bool | None) -> str:
    full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(full_id).private:
        raise HFValidationError(
            f"{full_id} is to be private, and exists in public; choose another id, or make it private"
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

    The same commit deletes weights that lie beside weights of `folder` and are none of them: an earlier push's, in another
    number of shards. It deletes what matches `delete_patterns` too. Other files of the repo stay.

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
    return _matches(path.name, ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"))


def with_retries(attempt: Callable[[], T]) -> T:
    """What `attempt` returns; where the Hub fails or cannot be reached, it is tried again, three times, ever later."""
    for pause in PAUSES:
        try:
            get_session().timeout = PATIENCE
            return attempt()
        except Exception as error:
            if is_final(error):
                raise
            logger.warning(f"the Hub did not take it ({first_line(error)}); trying again in {pause} s")
            time.sleep(pause)
    return attempt()


def is_final(error: Exception) -> bool:
    """Whether the same request would fail again: a refusal, a mistake in it, or a fault of this machine's disk. Not so: a busy
    server, a lost connection."""
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        return status is not None and 400 <= status < 500 and status not in (408, 412, 429)
    if isinstance(error, (ConnectionError, TimeoutError)):
        return isinstance(error, OfflineModeIsEnabled)
    of_the_disk = isinstance(error, OSError) and error.errno is not None
    return of_the_disk or isinstance(error, (HFValidationError, TypeError))


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
