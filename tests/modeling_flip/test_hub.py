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


@pytest.mark.parametrize(
    "error", [refusal(500), refusal(503), refusal(429), refusal(412), ConnectionError("reset"), TimeoutError()]
)
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
    "error",
    [refusal(401), refusal(403), refusal(400), HFValidationError("no id"), TypeError("x"), OSError(28, "No space")],
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


def test_each_part_has_its_checksums(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "adapter.safetensors"):
        (tmp_path / name).write_text(name)
    hub.write_checksums(tmp_path, hub.MODEL)
    hub.write_checksums(tmp_path, hub.PROCESSOR)
    lines = [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("config.json", "model.safetensors")]
    assert (tmp_path / "model.sha256").read_text() == "".join(lines)
    assert (tmp_path / "processor.sha256").read_text().endswith("  tokenizer.json\n")
    assert hub.check_files(tmp_path, hub.MODEL) is None
    (tmp_path / "config.json").write_text("another")
    with pytest.raises(ValueError, match=r"config.json is cut short or was changed"):
        hub.check_files(tmp_path, hub.MODEL)


def test_code_is_all_that_the_model_and_the_pipeline_reach(tmp_path: Path) -> None:
    package = Path(hub.__file__).parent
    hub.copy_code(tmp_path, package / "modeling_flip.py")
    copied = {path.name for path in tmp_path.iterdir()}
    carried = {
        "modeling_flip.py",
        "configuration_flip.py",
        "feature_embeddings.py",
        "objectives.py",
        "pipeline_flip.py",
    }
    assert carried | {"hub.py"} <= copied
    left = {"ctr_models.py", "modeling_morec.py", "trainer_flip.py", "metrics.py", "recipe.py", "run.py", "score.py"}
    assert not left & copied
    assert all((tmp_path / name).read_bytes() == (package / name).read_bytes() for name in copied)
