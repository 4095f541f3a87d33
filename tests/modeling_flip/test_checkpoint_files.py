from __future__ import annotations

import copy
import hashlib
import pickle
from pathlib import Path

import pytest

from modeling_flip import checkpoint_files
from modeling_flip.checkpoint_files import MODEL, PROCESSOR, Source, check_files, copy_code, write_checksums


def test_each_part_has_its_checksums(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "adapter.safetensors"):
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path, MODEL)
    write_checksums(tmp_path, PROCESSOR)
    lines = [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("config.json", "model.safetensors")]
    assert (tmp_path / "model.sha256").read_text() == "".join(lines)
    assert (tmp_path / "processor.sha256").read_text().endswith("  tokenizer.json\n")
    assert check_files(tmp_path, MODEL) is None
    (tmp_path / "config.json").write_text("another")
    with pytest.raises(ValueError, match=r"config.json is cut short or was changed"):
        check_files(tmp_path, MODEL)


def test_a_copy_of_a_model_knows_no_token() -> None:
    source = Source("me/flip", {"token": "hf_secret"})
    assert "hf_secret" not in repr(source)
    assert copy.deepcopy(source) is None
    assert b"hf_secret" not in pickle.dumps(source)


def test_code_is_all_that_the_model_and_the_pipeline_reach(tmp_path: Path) -> None:
    package = Path(checkpoint_files.__file__).parent
    copy_code(tmp_path, package / "modeling_flip.py")
    copied = {path.name for path in tmp_path.iterdir()}
    assert {
        "modeling_flip.py",
        "configuration_flip.py",
        "objectives.py",
        "checkpoint_files.py",
        "pipeline_flip.py",
    } <= copied
    at_home = {path.name for folder in ("training", "serving") for path in (package / folder).iterdir()}
    assert {"__init__.py", "trainer.py", "hub.py", "score.py"} <= at_home
    assert not (at_home | {"modeling_morec.py"}) & copied
    assert all((tmp_path / name).read_bytes() == (package / name).read_bytes() for name in copied)
