"""Exported models: click models that ONNX Runtime or OpenVINO computes, from a folder that `export.py` wrote."""

# No `from __future__ import annotations` here: `strict` reads the types of the fields, and skips types that are strings.
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from ..checkpoint_files import LOCATION_KEYS, REMEDY, Part, Source, check_files
from ..commands import installs
from ..modeling_flip import FlipForCTROutput

# The runtimes, and the model's file that each of them reads.
FILES = {"onnx": "model.onnx", "openvino": "model.xml"}
# ONNX Runtime keeps the weights of large models beside the graph, OpenVINO those of all.
EXPORTED = Part(
    "model.sha256", ("config.json", "model.onnx", "model.onnx.data", "model.xml", "model.bin"), ("config.json",)
)
# Arrays by the names of the graph's inputs → its outputs, in their order.
Run = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]


@strict
class ExportedConfig(PreTrainedConfig):
    """What an exported model has kept of its configuration.

    Args:
        exported_from: the `model_type` of the model that was exported.
        file: the graph, "model.onnx" or "model.xml".
        precision: of its weights, "fp32", "int8" or "int8-static".
        inputs: the model's views of a row, for `FlipDataCollator`.
        outputs: the names of the graph's outputs, in their order.
        towers, item_fields, num_features, num_fields, list_fields, text_fields, vocabulary_fingerprint, tokenizer_fingerprint:
            those of the model.
    """

    model_type = "exported_ctr"

    exported_from: str = "flip"
    file: str = FILES["onnx"]
    precision: str = "fp32"
    inputs: list[str] | tuple[str, ...] = ()
    outputs: list[str] | tuple[str, ...] = ()
    towers: str = "both"
    item_fields: list[int] | tuple[int, ...] = ()
    num_features: int = 2
    num_fields: int = 1
    list_fields: list[int] | tuple[int, ...] = ()
    text_fields: list[int] | tuple[int, ...] = ()
    vocabulary_fingerprint: str | None = None
    tokenizer_fingerprint: str | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; raises ValueError if it is asked for other towers than those that were exported."""
        own, asked = config_dict.get("towers"), kwargs.get("towers")
        if asked not in (None, own):
            raise ValueError(
                f"towers is {asked!r}, but this exported model has {own!r}; export the checkpoint with --towers {asked}"
            )
        return super().from_dict(config_dict, **kwargs)


class ExportedForCTR:
    """A click model in ONNX Runtime or OpenVINO, on the CPU, with the face that the pipeline needs.

    Attributes:
        backend: "onnx" or "openvino"; OpenVINO reads files of ONNX too.
    """

    config_class = ExportedConfig
    untrained_weights: tuple[str, ...] = ()  # `export.py` refuses such a model
    training = False
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, config: ExportedConfig, file: str | os.PathLike, loaded_from: Source | None = None):
        self.config, self.file, self.loaded_from = config, Path(file), loaded_from
        self.backend = next(name for name, suffix in FILES.items() if Path(suffix).suffix == self.file.suffix)
        self._run: Run | None = None

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, *, config: Any = None, **kwargs: Any) -> Self:
        """An exported model of a folder or the Hub.

        Raises:
            ValueError: a file is truncated or changed, or config.json names another; `dtype` asks for another precision than that
                of the export.
        """
        if kwargs.get("dtype") not in (None, "auto", "float32", torch.float32):
            raise ValueError(
                f"dtype is {kwargs['dtype']}, but the precision of an exported model is chosen with --precision when it is "
                "exported; leave dtype out"
            )
        located = {key: kwargs[key] for key in LOCATION_KEYS if kwargs.get(key) is not None}
        commit = check_files(name_or_path, EXPORTED, **located)
        if commit is not None:
            located["revision"] = commit
        if config is None:
            config = ExportedConfig.from_pretrained(name_or_path, **located)
        if config.file not in FILES.values():  # such as ../model.onnx
            raise ValueError(
                f"config.json of {name_or_path} names the file {config.file!r}; it must be one of {', '.join(FILES.values())}"
            )
        file = cached_file(name_or_path, config.file, **located)
        return cls(config, file, Source(os.fspath(name_or_path), located))

    @property
    def inputs(self) -> Sequence[str]:
        return self.config.inputs

    def use(self, backend: str) -> None:
        """Compute with "onnx" or "openvino" from now on; raises ValueError where that cannot read the file."""
        if backend not in FILES or (backend == "onnx" and self.backend == "openvino"):
            raise ValueError(
                f"backend is {backend!r}, but {self.file} is a model for {' and '.join(self._readers())}; export the checkpoint "
                "for it, or use the checkpoint itself for 'torch'"
            )
        if backend != self.backend:
            self.backend, self._run = backend, None

    def _readers(self) -> list[str]:
        return ["onnx", "openvino"] if self.file.suffix == ".onnx" else ["openvino"]

    def __call__(self, **batch: torch.Tensor) -> FlipForCTROutput:
        """A batch of `FlipDataCollator` → the logits."""
        if self._run is None:
            self._run = self._read()
        outputs = self._run({name: tensor.numpy() for name, tensor in batch.items()})
        return FlipForCTROutput(
            **{name: torch.from_numpy(output) for name, output in zip(self.config.outputs, outputs, strict=True)}
        )

    def _read(self) -> Run:
        """The graph, ready to run; raises ValueError where the runtime cannot read it."""
        try:
            return RUNTIMES[self.backend](self.file)
        except ImportError:
            raise
        except Exception as error:  # each runtime has its own; some are RuntimeError, some not even that
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")
            raise ValueError(f"{self.backend} cannot read {self.file}: {reason}; {REMEDY}") from error

    def eval(self) -> Self:
        return self

    def to(self, device: Any) -> Self:
        """Itself; raises ValueError for another device than the CPU."""
        if torch.device(device).type != "cpu":
            raise ValueError(
                f"device is {device}, but exported models are computed on the CPU; use the checkpoint itself there"
            )
        return self


def _onnx_runtime(file: Path) -> Run:
    ort = imported("onnxruntime", "serving")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, dict(arrays))


def _openvino(file: Path) -> Run:
    openvino = imported("openvino", "openvino")
    # In fp32, since a CPU with bf16 would otherwise round logits to three digits.
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.compile_model(str(file), "CPU", settings)
    request, free = compiled.create_infer_request(), threading.Lock()

    def run(arrays: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        with free:  # two threads in one request would take each other's results
            # Copies, since the next batch overwrites the request's own.
            return [np.array(value) for value in request.infer(dict(arrays)).values()]

    return run


RUNTIMES: dict[str, Callable[[Path], Run]] = {"onnx": _onnx_runtime, "openvino": _openvino}


def imported(module: str, extra: str) -> Any:
    """A module of an extra; raises ImportError that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed: {installs(extra)}") from error
