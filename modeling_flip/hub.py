"""What a checkpoint needs on the Hub: its code, checksums of its files, and a push that is whole and tries again."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

logger = logging.get_logger(__name__)

CHECKSUMS_FILE = "SHA256SUMS"
MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
PROCESSOR_FILES = (
    "feature_vocab.parquet",
    "processor_config.json",
    "tokenizer*",
    "*vocab.*",
    "special_tokens_map.json",
)
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
# Arguments of `from_pretrained` that say where a checkpoint is.
LOCATION_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
PAUSES = (1, 4, 16)  # seconds before a failed request is sent again
REMEDY = "download or copy it again; if you changed it on purpose, save model and processor again with save_pretrained"
# huggingface_hub takes a Parquet file in a model's repo for a mistake.
warnings.filterwarnings("ignore", r"It seems that you are about to commit a data file \(.*feature_vocab\.parquet\)")


# ---- code


def copy_code(folder: str | os.PathLike, module_file: str | os.PathLike) -> None:
    """Copy a module, and every sibling that it imports, to `folder`, for `trust_remote_code`."""
    for source in {Path(module_file), *map(Path, get_relative_import_files(str(module_file)))}:
        shutil.copyfile(source, Path(folder) / source.name)


# ---- checksums


def write_checksums(folder: str | os.PathLike, patterns: Sequence[str]) -> None:
    """Enter the files of `folder` that match into its SHA256SUMS, which `sha256sum -c` reads too; others' lines stay."""
    path = Path(folder) / CHECKSUMS_FILE
    sums = {name: value for name, value in _read_checksums(path).items() if not _matches(name, patterns)}
    sums |= {file.name: _sha256(file) for file in Path(folder).iterdir() if _matches(file.name, patterns)}
    temporary = path.with_name(f".{path.name}")
    temporary.write_text("".join(f"{value}  {name}\n" for name, value in sorted(sums.items())))
    temporary.replace(path)


def check_files(name_or_path: str | os.PathLike, patterns: Sequence[str], **located: Any) -> str | None:
    """Compare a checkpoint's files with its SHA256SUMS, downloading those that match.

    Args:
        name_or_path: a folder or a Hub id.
        patterns: which of the files to look at.
        located: cache_dir, token, revision, subfolder, local_files_only, force_download.

    Returns:
        The commit that was looked at; None for a folder, or where nothing could be compared: checkpoints written before
        there were checksums have none.

    Raises:
        ValueError: a file is truncated or changed, or listed and absent.
    """
    sums_file = cached_file(
        name_or_path,
        CHECKSUMS_FILE,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **located,
    )
    if sums_file is None:
        return None
    commit = extract_commit_hash(sums_file, None)
    if commit is not None:
        located = {**located, "revision": commit}
    for name, expected in _read_checksums(Path(sums_file)).items():
        if _matches(name, patterns):
            try:
                file = cached_file(name_or_path, name, **located)
            except OSError as error:
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


def _read_checksums(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pairs = (line.split("  ", 1) for line in path.read_text().splitlines() if line.strip())
    sums = {pair[-1]: pair[0] for pair in pairs}
    for name, value in sums.items():
        if len(value) != 64 or Path(name).name != name:
            raise ValueError(f"{path} holds {name!r}, which is no line of checksums; {REMEDY}")
    return sums


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- push


def create_repo(repo_id: str, private: bool | None = None, token: str | bool | None = None) -> str:
    """The repo's full id; it is created where it does not exist."""
    return with_retries(lambda: HfApi().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id)


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    ignore_patterns: Iterable[str] = (),
) -> CommitInfo:
    """Create the repo if need be and bring `folder` there in one commit.

    In the same commit goes what an earlier push left and this one would contradict: weights in another number of shards,
    and the state of a training that has gone on since. Other files of the repo stay.

    Raises:
        HfHubHTTPError, OSError, ValueError: the Hub refuses it, or could not be reached in four attempts.
    """
    has_weights = any(_matches(file.name, WEIGHTS) for file in Path(folder).iterdir())

    def attempt() -> CommitInfo:
        api = HfApi(token=token)
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(full_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=full_id,
            folder_path=Path(folder),
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=list(ignore_patterns),
            delete_patterns=["last-checkpoint/*", *(WEIGHTS if has_weights else ())],
        )

    return with_retries(attempt)


def with_retries(attempt: Any) -> Any:
    """What `attempt` returns; where the Hub fails or cannot be reached, it is tried again, three times, ever later."""
    for pause in (*PAUSES, None):
        try:
            return attempt()
        except Exception as error:
            if pause is None or is_final(error):
                raise
            logger.warning(f"the Hub did not answer ({_first_line(error)}); trying again in {pause} s")
            time.sleep(pause)


def is_final(error: Exception) -> bool:
    """Whether the same request would fail again: a refusal, or a mistake in it. Not so: a busy server, a lost connection."""
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        return status is not None and 400 <= status < 500 and status not in (408, 412, 429)
    return isinstance(error, (HFValidationError, OfflineModeIsEnabled, TypeError, FileNotFoundError))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
