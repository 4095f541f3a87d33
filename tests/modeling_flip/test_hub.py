from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from modeling_flip import hub


def refusal(status: int) -> HfHubHTTPError:
    return HfHubHTTPError(
        f"{status} Client Error", response=SimpleNamespace(status_code=status, headers={}, request=None)
    )


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that are made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", made.append)
    return made


@pytest.mark.parametrize("error", [refusal(500), refusal(503), refusal(429), refusal(412), ConnectionError("reset")])
def test_what_may_pass_is_tried_four_times(error: Exception, pauses: list[float]) -> None:
    answers: list[Any] = [error, error, error, "here"]

    def attempt() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert hub.with_retries(attempt) == "here"
    assert pauses == [1, 4, 16]


@pytest.mark.parametrize(
    "error", [refusal(401), refusal(403), refusal(400), HFValidationError("no id"), TypeError("x")]
)
def test_what_is_refused_is_not_asked_again(error: Exception, pauses: list[float]) -> None:
    def attempt() -> None:
        raise error

    with pytest.raises(type(error)):
        hub.with_retries(attempt)
    assert pauses == []


def test_a_hub_that_never_answers_is_given_up(pauses: list[float]) -> None:
    def attempt() -> None:
        raise refusal(500)

    with pytest.raises(HfHubHTTPError, match="500"):
        hub.with_retries(attempt)
    assert pauses == [1, 4, 16]


def test_checksums_of_model_and_processor_stand_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("[]")
    (tmp_path / "README.md").write_text("not checked")
    hub.write_checksums(tmp_path, hub.MODEL_FILES)
    hub.write_checksums(tmp_path, hub.PROCESSOR_FILES)
    sums = (hashlib.sha256(data).hexdigest() for data in (b"{}", b"[]"))
    lines = [f"{value}  {name}" for value, name in zip(sums, ("config.json", "tokenizer.json"), strict=True)]
    assert (tmp_path / hub.CHECKSUMS_FILE).read_text().splitlines() == lines
    (tmp_path / "config.json").unlink()
    hub.write_checksums(tmp_path, hub.MODEL_FILES)
    assert (tmp_path / hub.CHECKSUMS_FILE).read_text().splitlines() == lines[1:]


@pytest.mark.parametrize(
    "line", ["abc  config.json", "0" * 64 + "  ../../secret", "0" * 64 + "  /etc/hostname", "nonsense"]
)
def test_checksums_name_files_of_the_checkpoint_alone(line: str, tmp_path: Path) -> None:
    (tmp_path / hub.CHECKSUMS_FILE).write_text(line + "\n")
    with pytest.raises(ValueError, match="no line of checksums"):
        hub.check_files(tmp_path, ["*"])


def test_code_is_all_that_the_model_and_the_pipeline_reach(tmp_path: Path) -> None:
    package = Path(hub.__file__).parent
    hub.copy_code(tmp_path, package / "modeling_flip.py")
    copied = {path.name for path in tmp_path.iterdir()}
    assert {"modeling_flip.py", "configuration_flip.py", "objectives.py", "hub.py", "pipeline_flip.py"} <= copied
    assert not {"modeling_baselines.py", "trainer_flip.py", "metrics.py", "recipe.py", "score.py"} & copied
    assert all((tmp_path / name).read_bytes() == (package / name).read_bytes() for name in copied)
