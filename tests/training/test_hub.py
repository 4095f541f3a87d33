from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from modeling_flip.training import hub


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
