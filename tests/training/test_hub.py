from __future__ import annotations

import json
from email.message import Message
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from modeling_flip.training import hub


def refusal(status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"{status} Client Error", response=response)


def from_cause(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that are made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", made.append)
    return made


@pytest.mark.parametrize(
    "error",
    [
        *(refusal(500), refusal(503), refusal(429), refusal(412), ConnectionError("reset"), TimeoutError()),
        *(httpx2.ReadTimeout("slow"), httpx2.RemoteProtocolError("cut short"), json.JSONDecodeError("cut", "{", 1)),
        *(OSError("Consistency check failed"), RuntimeError("Data processing error: CAS service error")),
        from_cause(LocalEntryNotFoundError("not here"), httpx2.ConnectError("refused")),
        HTTPError("http://x", 503, "Unavailable", Message(), None),
    ],
    ids=repr,
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
    [
        *(refusal(401), refusal(403), refusal(400), HFValidationError("no id"), OSError(28, "No space")),
        *(TypeError("x"), ValueError("x"), KeyError("x"), AttributeError("x"), OfflineModeIsEnabled("offline")),
        from_cause(LocalEntryNotFoundError("not here"), OfflineModeIsEnabled("offline")),
        from_cause(LocalEntryNotFoundError("not here"), refusal(403)),
        HTTPError("http://x", 404, "Not Found", Message(), None),
    ],
    ids=repr,
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


def test_the_client_is_as_patient_afterwards_as_before(pauses: list[float]) -> None:
    get_session().timeout = 7.0
    before, seen = get_session().timeout, []

    def attempt() -> None:
        seen.append(get_session().timeout.read)
        raise refusal(500 if len(seen) < 3 else 403)

    with pytest.raises(HfHubHTTPError, match="403"):
        hub.with_retries(attempt)
    assert seen == [hub.PATIENCE] * 3
    assert get_session().timeout == before
