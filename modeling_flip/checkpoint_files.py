"""Files of a checkpoint: the code that it carries, checksums, and how models are saved, loaded and pushed with them."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib
import inspect
import json
import logging as std_logging
import os
import re
import shutil
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub import CommitInfo, is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    PushToHubMixin,
    cached_file,
    is_peft_available,
    logging,
)
from transformers.utils.hub import extract_commit_hash

if TYPE_CHECKING:
    # Never executed, but these lines make `copy_code` and transformers carry the files. The first is the pipeline that
    # config.json names.
    from .pipeline_flip import CtrPredictionPipeline  # noqa: F401
    from .processing_flip import FlipProcessor

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
# Arguments of `from_pretrained` that locate a checkpoint.
LOCATION_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
REMEDY = "download or copy it again; if you changed it on purpose, save model and processor again with save_pretrained"
# How many more numbers and tensors a model may have than its weights files: new heads, parts of a text model that are created
# but not used. Far more than that, and config.json does not belong to the weights.
MORE_NUMBERS, MORE_TENSORS, TIMES = 200_000_000, 2_000, 4
# huggingface_hub warns that a Parquet file in a model repo is a mistake.
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
        The commit that was checked; None for a folder, and for checkpoints of the first version, which have no checksums.

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
    # transformers prefers this file to the shards.
    unlisted = part is MODEL and SAFE_WEIGHTS_NAME not in sums
    if unlisted and cached_file(name_or_path, SAFE_WEIGHTS_NAME, **may_be_missing, **located) is not None:
        raise ValueError(
            f"{name_or_path} holds {SAFE_WEIGHTS_NAME} beside the shards that {part.checksums} lists; {REMEDY}"
        )
    for name, expected in sums.items():
        try:
            file = cached_file(name_or_path, name, **located)
        except OSError as error:
            if isinstance(error.__cause__, HfHubHTTPError) and not isinstance(error.__cause__, EntryNotFoundError):
                raise
            raise ValueError(f"{name} of {name_or_path} is missing; {REMEDY}") from error
        if file is None:  # transformers returns None if a folder has no config.json
            raise ValueError(f"{name} of {name_or_path} is missing; {REMEDY}")
        if _sha256(Path(file)) != expected:
            raise ValueError(f"{file} is cut short or was changed: its SHA-256 is not the saved one; {REMEDY}")
    return commit


def _read_checksums(path: Path, part: Part) -> dict[str, str]:
    """`{name: SHA-256}`; raises ValueError if a line is malformed, or a file that every checkpoint has is not listed."""
    lines = path.read_text(errors="replace").splitlines()
    sums = {name.lstrip(" *"): value for value, _, name in (line.partition(" ") for line in lines)}
    for name, value in sums.items():
        if not re.fullmatch("[0-9a-f]{64}", value) or not _matches(name, part.patterns) or Path(name).name != name:
            raise ValueError(f"{path} holds {name!r}, which is not a line of checksums; {REMEDY}")
    absent = [pattern for pattern in part.needed if not any(fnmatch.fnmatch(name, pattern) for name in sums)]
    if absent:
        raise ValueError(f"{path} is cut short: it does not list {absent[0]}; {REMEDY}")
    return sums


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- weights


@contextmanager
def safe_weights(name_or_path: str | os.PathLike, variant: str | None = None, **located: Any) -> Iterator[None]:
    """Wraps the loading of a model: only its own safetensors files are read, and the model may not be far larger than they are.

    Args:
        name_or_path: a folder or a Hub id.
        variant: of the weights, as in `from_pretrained`.
        located: cache_dir, token, revision, subfolder, local_files_only, force_download.

    Raises:
        ValueError: the index names a file that is not safetensors, or is in another folder; a file cannot be read; or the model
            has far more numbers or tensors than the files.
    """
    files = _weight_files(name_or_path, variant, located)
    if not files:  # no weights: transformers names the files it looked for
        yield
        return
    num_bytes = num_tensors = 0
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                num_tensors += len(weights.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is cut short or was changed ({error}); {REMEDY}") from error
        num_bytes += file.stat().st_size
    most = {"numbers": MORE_NUMBERS + TIMES * num_bytes, "tensors": MORE_TENSORS + TIMES * num_tensors}
    made, thread = dict.fromkeys(most, 0), threading.get_ident()

    def count(module: torch.nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        if tensor is None or threading.get_ident() != thread:
            return
        made["numbers"] += tensor.numel()
        made["tensors"] += 1
        for what, limit in most.items():
            if made[what] > limit:
                raise ValueError(
                    f"config.json of {name_or_path} asks for at least {made[what]:,} {what}, but weights of {num_bytes:,} "
                    f"bytes allow only {limit:,}: it does not belong to them. {REMEDY.capitalize()}"
                )

    with ExitStack() as hooks:
        for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook):
            hooks.callback(register(count).remove)
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OverflowError) as error:  # sizes that do not match the weights, or are impossible
            raise ValueError(f"{name_or_path} cannot be loaded: {' '.join(str(error).split())}; {REMEDY}") from error


@contextmanager
def without_load_report() -> Iterator[None]:
    """Wraps the loading of a model: hides what transformers says of missing and unexpected weights, since most are intended; the
    caller warns of the others. Errors are still raised."""
    thread, theirs = threading.get_ident(), std_logging.getLogger("transformers.modeling_utils")

    def is_shown(record: std_logging.LogRecord) -> bool:
        message = record.getMessage()
        is_report = "LOAD REPORT" in message and not re.search("MISMATCH|CONVERSION", message)
        is_report |= "both are absent from the checkpoint" in message  # of a head that is missing as a whole
        return not (is_report and threading.get_ident() == thread)

    theirs.addFilter(is_shown)
    try:
        yield
    finally:
        theirs.removeFilter(is_shown)


def some_of(names: Collection[str]) -> str:
    """The first three, and how many more there are."""
    first, more = sorted(names)[:3], len(names) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def _weight_files(name_or_path: str | os.PathLike, variant: str | None, located: dict[str, Any]) -> list[Path]:
    """The weights files that transformers reads, downloaded if needed; empty if there are none."""
    for distributed in Path(name_or_path, located.get("subfolder") or "").glob("shard-*.safetensors"):
        raise ValueError(f"{distributed} would be loaded instead of the weights that save_pretrained writes; remove it")
    maybe = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        **located,
    }
    if is_peft_available() and cached_file(name_or_path, ADAPTER_CONFIG_NAME, **maybe) is not None:
        # With peft, transformers would load the model that this file names, and weights from a file that need not be safetensors.
        raise ValueError(
            f"{name_or_path} holds an adapter ({ADAPTER_CONFIG_NAME}), which is not read: merge it into its model and name that"
        )
    whole = cached_file(name_or_path, _of_variant(SAFE_WEIGHTS_NAME, variant), **maybe)
    if whole is not None:
        return [Path(whole)]
    index = cached_file(name_or_path, _of_variant(SAFE_WEIGHTS_INDEX_NAME, variant), **maybe)
    if index is None:
        return []
    try:
        names = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of weights ({error!r}); {REMEDY}") from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name, re.ASCII):
            raise ValueError(
                f"{index} names {str(name)[:100]!r} as a file of weights; only safetensors files beside it are read"
            )
    return [Path(cached_file(name_or_path, name, **located)) for name in names]


def _remove_stale_weights(folder: Path, variant: str | None) -> None:
    """Once new weights are written, remove what is left of an earlier save: the single file, which is read rather than shards, or
    the index. Of shards, transformers leaves only the new ones."""
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
        return  # the first process alone writes weights, and may not be done
    whole, index = (folder / _of_variant(name, variant) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    shard = re.compile(rf"{re.escape(whole.stem)}-\d{{5}}-of-\d{{5}}\.safetensors")
    in_shards = any(shard.fullmatch(file.name) for file in folder.iterdir())
    (whole if in_shards else index).unlink(missing_ok=True)


def _of_variant(name: str, variant: str | None) -> str:
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


# ---- models


@dataclass(frozen=True)
class Source:
    """The folder or Hub id that a model was loaded from, with cache_dir, token, revision and so on. Copies and pickles of it
    are None, so that the token does not leak.
    """

    name: str
    located: dict[str, Any] = field(repr=False)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


class CheckpointMixin(PushToHubMixin):
    """`from_pretrained`, `save_pretrained` and `push_to_hub` of FLIP's models: as in transformers, with checksums and code.

    Attributes:
        untrained_weights: names of the weights that the checkpoint lacked, or that pretraining did not train. Empty once
            FlipTrainer has trained the model.
        loaded_from: where `from_pretrained` found it.
    """

    untrained_weights: tuple[str, ...] = ()
    loaded_from: Source | None = None

    def may_lack(self, weight: str) -> bool:
        """Whether a checkpoint is expected to lack this weight."""
        return False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Self:
        """As in transformers, from safetensors alone.

        Raises:
            ValueError: a file is truncated or changed, was written by a later version, names files elsewhere, or asks for a model
                far larger than its weights.
        """
        located = {key: kwargs[key] for key in LOCATION_KEYS if kwargs.get(key) is not None}
        if pretrained_model_name_or_path is not None:  # else config and state_dict are given
            commit = check_files(pretrained_model_name_or_path, MODEL, **located)
            if commit is not None:
                kwargs["revision"] = located["revision"] = commit  # load the commit that was checked
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        with ExitStack() as checked:
            if pretrained_model_name_or_path is not None:
                checked.enter_context(safe_weights(pretrained_model_name_or_path, kwargs.get("variant"), **located))
            checked.enter_context(without_load_report())
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        # Its weights are saved under today's names, whatever they were loaded from (with ZeRO-3 transformers would go back).
        vars(model).pop("_weight_conversions", None)
        if pretrained_model_name_or_path is not None:
            model.loaded_from = Source(os.fspath(pretrained_model_name_or_path), located)
        model.untrained_weights = missing = tuple(sorted(info["missing_keys"]))
        for name, module in model.named_modules():
            if getattr(module, "has_random_weights", False):
                module.has_random_weights = any(key.startswith(f"{name}.") for key in missing)
        unfilled = [key for key in missing if not model.may_lack(key)]
        for keys, said in (
            (unfilled, "lacks weights, which are random"),
            (info["unexpected_keys"], "has weights that this model does not use"),
        ):
            if keys:
                logger.warning(f"{pretrained_model_name_or_path} {said}: {some_of(keys)}")
        return (model, info) if with_info else model  # type: ignore[return-value] # as transformers' own

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        *args: Any,
        processor: FlipProcessor | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As in transformers, with the model's code and checksums, and with its processor: a folder that scores raw rows.

        Args:
            processor: the model's. If it is left out and the folder has none yet, a warning says so.

        Raises:
            ValueError: the processor is another model's, or `push_to_hub` is set, which would not push the processor.
        """
        if push_to_hub:
            raise ValueError(
                "a model cannot score rows without its processor: call model.push_to_hub(repo_id, processor)"
            )
        if processor is not None:
            processor.check_belongs_to(self.config)
        # Only the model's own: with those of its text tower, weights get the names of that model's first release, which Trainer
        # cannot read.
        conversions = get_model_conversion_mapping(self, add_legacy=False)
        self._weight_conversions = [one for one in conversions if not one.scope_prefix]
        try:
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        finally:
            del self._weight_conversions
        if is_main_process:
            _remove_stale_weights(Path(save_directory), kwargs.get("variant"))
            if processor is not None:
                processor.save_pretrained(save_directory)
            elif not Path(save_directory, PROCESSOR.needed[0]).exists():
                logger.warning(
                    f"{save_directory} holds the model without its processor, so it cannot score rows. Save both with "
                    "model.save_pretrained(folder, processor=processor)"
                )
            ours = __name__.rpartition(".")[0]  # for a subclass in another package, its base class here
            base = next(c for c in type(self).__mro__ if c.__module__.rpartition(".")[0] == ours)
            copy_code(save_directory, inspect.getfile(base))
            for weights in Path(save_directory).glob(
                "model*.safetensors"
            ):  # safetensors writes files that only their owner can read
                shutil.copymode(Path(save_directory, "config.json"), weights)
            tower = getattr(self.base_model, "tabular_tower", None)
            if tower is not None and type(tower).__module__.rpartition(".")[0] != ours:
                logger.warning_once(
                    f"the code of tabular tower {self.config.tabular_tower!r} is not saved: import {type(tower).__module__} "
                    "before you load the checkpoint"
                )
            write_checksums(save_directory, MODEL)

    def push_to_hub(
        self,
        repo_id: str,
        processor: FlipProcessor | None = None,
        *,
        commit_message: str = "Upload model and processor",
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: Sequence[str] = (),
    ) -> CommitInfo:
        """Push model, processor, their code and, where the repo has none, a model card, in one commit.

        Raises:
            ValueError: no processor is given, or another model's.
            ImportError: this is a checkpoint's own code, and the package is not installed.
            HfHubHTTPError, OSError: the Hub refuses it, or could not be reached in four attempts.
        """
        try:
            publishing = importlib.import_module("modeling_flip.training.publishing")
        except ModuleNotFoundError as error:
            raise ImportError(
                f"push_to_hub needs the package modeling-flip ({error.name} is not installed): install it, or save model and "
                "processor to one folder and push that with `hf upload`"
            ) from error
        return publishing.push_model(
            self,
            processor,
            repo_id,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            max_shard_size=max_shard_size,
            tags=tags,
        )
