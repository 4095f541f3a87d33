"""Serve a checkpoint over HTTP: `python -m modeling_flip.serving.serve --model ID_OR_FOLDER`.

POST /score scores rows, POST /rank orders candidates of one user; /docs describes both, with a row of the model's own fields.
Rows are read as `CtrPredictionPipeline` reads them. GET /health, /ready and /metrics are for whoever runs it. Nothing listens
before the model is loaded and has scored a row. At SIGTERM new connections are refused, and requests that are being worked on
are answered.

FastAPI, uvicorn and a small batcher (`batching.py`), not LitServe: LitServe computes each route in a process of its own, so that
/score and /rank would each hold the model, and raw rows and scores would travel between processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from transformers.utils import logging

from ..commands import ends_in_order, exit_code, missing_extra
from ..feature_vocabulary import FeatureVocabulary
from ..pipeline_flip import BACKENDS, CtrPredictionPipeline
from ..processing_flip import FlipProcessor
from ..row_reader import MEMBER_SEPARATOR
from ..table_files.json_lines import each_key_once
from ..version import __version__
from .batching import Batcher, QueueFullError
from .explain import never_seen
from .score import load_pipeline, model_version, positive

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi_offline import FastAPIOffline
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        ProcessCollector,
        disable_created_metrics,
    )
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
    from starlette.requests import ClientDisconnect
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise missing_extra("serve", __name__, "serving") from error

# A body that is not there by then will not come.
SECONDS_FOR_A_BODY = 10
SECONDS_FOR_THE_LAST_REQUESTS = 30
MOST_ERRORS = 10
MOST_CHARACTERS = 100_000  # of a cell: a tokenizer reads all of it, and others wait meanwhile
POWERS_OF_TWO = [2**i for i in range(13)]
SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]

Row = dict[str, Any]


class ScoreRequest(BaseModel):
    """Rows to score. Keys that are not fields of the model are ignored, and a field that is absent counts as missing."""

    model_config = ConfigDict(extra="forbid")
    rows: list[Row] = Field(min_length=1)
    return_towers: bool = Field(False, description="also the probability from each tower alone")


class RankRequest(BaseModel):
    """Candidates of one user to order, the most probable first."""

    model_config = ConfigDict(extra="forbid")
    user: Row = Field(description="the fields that all rows share: the user's, and those of the situation")
    candidates: list[Row] = Field(min_length=1, description="the fields of each item")
    top_k: int | None = Field(None, ge=1, description="how many to return; all, if left out")


class Score(BaseModel):
    probability: float
    tabular_probability: float | None = None
    text_probability: float | None = None


class ScoreAnswer(BaseModel):
    scores: list[Score] = Field(description="in the order of the rows")


class Ranked(BaseModel):
    index: int = Field(description="position among the candidates")
    probability: float


class RankAnswer(BaseModel):
    ranked: list[Ranked]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request, and all that wait, may ask for.

    Args:
        max_rows: rows, or candidates, of a request.
        max_bytes: of a request's body.
        max_waiting_rows: rows of all requests that wait; others are refused with 503.
        max_waiting_bytes: of the bodies of all unanswered requests; others are refused with 503. A few rows may be long.
        max_batch_size: rows that are scored together.
    """

    max_rows: int = 1024
    max_bytes: int = 4 << 20
    max_waiting_rows: int = 2048
    max_waiting_bytes: int = 64 << 20
    max_batch_size: int = 64

    def __post_init__(self) -> None:
        for of_all, of_one in (("max_waiting_rows", "max_rows"), ("max_waiting_bytes", "max_bytes")):
            if getattr(self, of_all) < getattr(self, of_one):
                raise ValueError(
                    f"{of_all} is {getattr(self, of_all)}: a request of {of_one} {getattr(self, of_one)} could never wait; "
                    "raise the one or lower the other"
                )


class Metrics:
    """What /metrics shows."""

    def __init__(self) -> None:
        disable_created_metrics()  # each would have a second series, with the time when it was made
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("flip_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "flip_request_seconds", "From the request to its answer.", ["route"], registry=registry, buckets=SECONDS
        )
        self.rows = Counter("flip_rows_scored", "Rows scored, candidates included.", registry=registry)
        self.batches = Histogram(
            "flip_batch_rows", "Rows that were scored together.", registry=registry, buckets=POWERS_OF_TWO
        )
        self.waiting = Gauge("flip_waiting_rows", "Rows that wait.", registry=registry)
        self.held = Gauge("flip_waiting_bytes", "Bytes of the bodies of unanswered requests.", registry=registry)

    def observe_batch(self, size: int) -> None:
        self.rows.inc(size)
        self.batches.observe(size)


def measured(app: ASGIApp, metrics: Metrics, routes: Sequence[str]) -> ASGIApp:
    """The application, its requests counted and timed; those of no route as "other"."""

    async def measure(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        status = 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        route, started = scope["path"] if scope["path"] in routes else "other", time.perf_counter()
        try:
            await app(scope, receive, note)
        finally:
            metrics.requests.labels(route, status).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - started)

    return measure


@dataclass
class Bodies:
    """The bodies of unanswered requests.

    Attributes:
        max_bytes: what they may hold together.
        held: bytes that they hold now.
    """

    max_bytes: int
    held: int = 0

    def check(self, size: int) -> None:
        """Raises HTTPException (503) where there is no room for as many bytes more."""
        if self.held + size > self.max_bytes:
            raise _full("the unanswered requests hold too many bytes")


def bounded(app: ASGIApp, bodies: Bodies) -> ASGIApp:
    """The application; a request whose body the others leave no room for gets 503."""

    async def bound(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        own = 0

        async def take() -> Message:
            nonlocal own
            message = await receive()
            size = len(message.get("body", b""))
            bodies.check(size)
            bodies.held, own = bodies.held + size, own + size
            return message

        try:
            await app(scope, take, send)
        finally:
            bodies.held -= own

    return bound


def make_app(pipe: CtrPredictionPipeline, limits: Limits) -> FastAPI:
    """The web application of a loaded model."""
    metrics, fields = Metrics(), {field.name: field.kind == "list" for field in pipe.processor.vocabulary.columns}
    runs: dict[bool, Callable[[list[Row]], list[dict]]] = {
        towers: partial(pipe, return_towers=towers, batch_size=limits.max_batch_size) for towers in (False, True)
    }
    batcher: Batcher
    bodies = Bodies(limits.max_waiting_bytes)
    metrics.held.set_function(lambda: bodies.held)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(limits.max_batch_size, limits.max_waiting_rows, metrics.observe_batch)
        metrics.waiting.set_function(lambda: batcher.waiting_rows)
        yield
        batcher.close()

    app = FastAPIOffline(title="Click probabilities", version=__version__, redoc_url=None, lifespan=lifespan)
    app.add_middleware(bounded, bodies=bodies)
    app.add_middleware(measured, metrics=metrics, routes=["/score", "/rank", "/health", "/ready", "/metrics"])
    app.add_exception_handler(RequestValidationError, _unprocessable)
    row = example_row(pipe.processor.vocabulary)
    sides = {field.name: field.side for field in pipe.processor.vocabulary.columns}
    user = {name: value for name, value in row.items() if sides[name] == "user"}
    item = {name: value for name, value in row.items() if name not in user}

    def faults_of(rows: list[Row]) -> list[str | None]:
        """Why each row cannot be read; None where it can."""
        return [_unreadable(pipe.processor, row) for row in rows]

    async def submit(request: Request, run: Callable[[list], list], items: list, size: int) -> list:
        """What `run` makes of the items, unless the client leaves before."""
        job = asyncio.create_task(batcher.submit(run, items, size))
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait((job, gone), return_when=asyncio.FIRST_COMPLETED)
            if not job.done():  # for the metrics: nobody is there to read it
                raise HTTPException(499, "the client closed the connection before its rows were scored")
            return await job
        except QueueFullError:
            raise _full() from None
        finally:
            job.cancel()
            gone.cancel()

    async def answer(request: Request, run: Callable[[list], list], items: list, name: str, rows: list[Row]) -> list:
        """What `run` makes of the items; where it fails, the `rows` that cannot be read are named."""
        try:
            return await submit(request, run, items, len(rows))
        except (TypeError, ValueError):
            faults = await submit(request, faults_of, rows, len(rows))
            found = [(i, fault) for i, fault in enumerate(faults) if fault is not None]
            if not found:  # it is not the rows
                raise
            raise RequestValidationError(
                [{"type": "row", "loc": ("body", name, i), "msg": fault} for i, fault in found]
            ) from None

    @app.post(
        "/score",
        response_model=ScoreAnswer,
        response_model_exclude_none=True,
        openapi_extra=_body_of(ScoreRequest, {"rows": [row]}),
    )
    async def score(request: Request) -> Mapping[str, Any]:
        """Click probabilities of rows."""
        asked = await _read(request, ScoreRequest, limits, "rows")
        _check_rows(asked.rows, fields, "rows")
        if asked.return_towers and (towers := pipe.model.config.towers) != "both":
            fault = f"needs a model with both towers, but this model's config.towers is {towers!r}; leave it out"
            raise RequestValidationError([{"type": "towers", "loc": ("body", "return_towers"), "msg": fault}])
        return {"scores": await answer(request, runs[asked.return_towers], asked.rows, "rows", asked.rows)}

    @app.post(
        "/rank", response_model=RankAnswer, openapi_extra=_body_of(RankRequest, {"user": user, "candidates": [item]})
    )
    async def rank(request: Request) -> Mapping[str, Any]:
        """Order candidate items of one user."""
        asked = await _read(request, RankRequest, limits, "candidates")
        if asked.user:
            _check_rows([asked.user], fields, "user")
        _check_rows(asked.candidates, fields, "candidates")

        def run(_: list[None]) -> list[list[dict]]:
            return [pipe.rank(asked.user, asked.candidates, top_k=asked.top_k, batch_size=limits.max_batch_size)]

        rows = [{**asked.user, **candidate} for candidate in asked.candidates]
        (ranked,) = await answer(request, run, [None], "candidates", rows)
        return {"ranked": ranked}

    @app.get("/health")
    async def health() -> Mapping[str, str]:
        """Whether the process works; where it does not, it should be started again."""
        if not batcher.is_alive:
            raise HTTPException(503, "requests are no longer worked on; start the server again")
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Mapping[str, str]:
        """Whether requests should be sent here: the model has scored a row, and there is room for more."""
        if batcher.waiting_rows >= limits.max_waiting_rows:
            raise _full()
        bodies.check(limits.max_bytes)
        return await health()

    @app.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


# ---- a request's body

Asked = TypeVar("Asked", bound=BaseModel)


def _body_of(request: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": request.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is not in its grammar, and null stands for a missing value")


# Not the framework's own reading: it takes NaN, and of a key that stands there twice the last value.
_decode = json.JSONDecoder(object_pairs_hook=each_key_once, parse_constant=_no_number).decode


async def _read(request: Request, kind: type[Asked], limits: Limits, rows: str) -> Asked:
    """The body of a request, whose `rows` are what it calls its rows.

    Raises:
        HTTPException: it is not JSON (400, 415), too large (413), or does not come (408).
        RequestValidationError: it is not what was asked for.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send the body as JSON, with the header content-type: application/json")
    too_large = HTTPException(413, f"the body is larger than {limits.max_bytes:,} bytes; send several requests")
    if int(request.headers.get("content-length", 0)) > limits.max_bytes:
        raise too_large  # without reading it
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS_FOR_A_BODY):
            async for part in request.stream():
                body += part
                if len(body) > limits.max_bytes:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"the body was not there after {SECONDS_FOR_A_BODY} seconds; send it again") from None
    except ClientDisconnect:  # for the metrics: nobody is there to read it
        raise HTTPException(400, "the body ended early") from None
    try:
        content = _decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise HTTPException(
            400, f"the body is not JSON: {str(error).partition(';')[0]}; send an object in UTF-8"
        ) from None
    if isinstance(content, dict):  # before each of a million faults is written down
        _check_number(rows, content.get(rows), limits.max_rows)
        if unknown := list(islice((key for key in content if key not in kind.model_fields), MOST_ERRORS)):
            known = ", ".join(kind.model_fields)
            raise RequestValidationError(
                [{"type": "extra", "loc": ("body", key), "msg": f"is none of {known}"} for key in unknown]
            )
    try:
        return kind.model_validate(content, strict=True)
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False, include_input=False)]
        ) from None


async def _disconnected(request: Request) -> None:
    """Ends when the client has closed the connection. The request's body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_number(name: str, rows: Any, at_most: int) -> None:
    if isinstance(rows, list) and len(rows) > at_most:
        raise HTTPException(
            413, f"{len(rows):,} {name} in a request; at most {at_most:,} are taken: send several requests"
        )


def _check_rows(rows: Sequence[Row], fields: Mapping[str, bool], name: str) -> None:
    """Raises RequestValidationError where a row has no field of the model, or a cell is of a kind that its field cannot be.

    Args:
        fields: for each field of the model, whether it holds lists.
        name: what the rows are called in the request.
    """
    errors: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        place = ("body", name) if name == "user" else ("body", name, i)
        known = row.keys() & fields.keys()
        if not known:
            errors.append({"loc": place, "msg": f"none of the model's fields is here; they are {', '.join(fields)}"})
        for field in known:
            if (fault := _fault(row[field], fields[field])) is not None:
                errors.append({"loc": (*place, field), "msg": fault})
        if len(errors) >= MOST_ERRORS:
            break
    if errors:
        raise RequestValidationError([{"type": "row", **error} for error in errors])


def _fault(cell: Any, is_list: bool) -> str | None:
    """What is wrong with a JSON value as a cell, and what to send instead."""
    if isinstance(cell, list):
        if not is_list:
            return "a list, but this field holds one value; send a string, a number, true, false or null"
        return next((f"in the list: {fault}" for each in cell if (fault := _fault(each, False)) is not None), None)
    if isinstance(cell, dict):
        return "an object; send a string, a number, true, false or null" + (", or a list of these" if is_list else "")
    if isinstance(cell, str) and len(cell) > MOST_CHARACTERS:
        return f"a text of {len(cell):,} characters; send at most {MOST_CHARACTERS:,}"
    if isinstance(cell, float) and not math.isfinite(cell):
        return "a number too large for 64 bits; send null if it is missing, or a string"
    return None


async def _unprocessable(request: Request, error: Exception) -> Response:
    """422, with the first errors. In ASCII, since names that a client has sent may not be UTF-8; and without what it has sent,
    which may be long."""
    assert isinstance(error, RequestValidationError)
    detail = [{key: each[key] for key in ("loc", "msg", "type")} for each in error.errors()[:MOST_ERRORS]]
    return Response(json.dumps({"detail": detail}), 422, media_type="application/json")


def _unreadable(processor: FlipProcessor, row: Row) -> str | None:
    """Why a processor cannot read a row; None where it can."""
    try:
        processor.encode([row], strict=False)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _full(why: str = "too many rows wait") -> HTTPException:
    return HTTPException(503, f"{why}; send it again later", {"Retry-After": "1"})


def example_row(vocabulary: FeatureVocabulary) -> Row:
    """A row with a value of each field that training has seen, or a word where it kept none."""
    row: Row = {}
    for field in vocabulary.columns:
        values = vocabulary.values[field.name]
        text = values[0].as_py() if len(values) else field.words
        row[field.name] = text.split(MEMBER_SEPARATOR) if field.kind == "list" else text
    return row


# ---- the command


def _bound(host: str, port: int) -> socket.socket:
    """A socket of the address, which refuses connections until it listens.

    Raises:
        ValueError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Its connections inherit it. asyncio sets it only where a socket names its protocol; without it an answer, which is
        # written in two parts, waits 40 ms for the client's acknowledgement of the first.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen at {host}, port {port}: {error}; choose another --host or --port") from error
    return bound


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve",
        usage="python -m modeling_flip.serving.serve --model ID_OR_FOLDER [options]",
        description="Serve a model over HTTP: POST /score and /rank; /docs describes them.",
    )
    parser.add_argument("--model", required=True, metavar="ID_OR_FOLDER", help="a model on the Hub, or a folder")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub (default: main)")
    parser.add_argument("--backend", choices=BACKENDS, help="what computes the model (default: what its files are for)")
    parser.add_argument(
        "--towers", choices=("both", "tabular", "text"), help="which towers to load (default: those of the checkpoint)"
    )
    parser.add_argument(
        "--cold_start",
        choices=("text",),
        help="values never seen in training get the embedding that the text tower predicts for their words",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for all interfaces (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 for a free one (default: %(default)s)")
    for name, what in (
        ("max_rows", "rows, or candidates, of a request"),
        ("max_bytes", "bytes of a request's body"),
        ("max_waiting_rows", "rows that may wait; further requests are refused with 503"),
        ("max_waiting_bytes", "bytes of the bodies of unanswered requests; further ones are refused with 503"),
        ("max_batch_size", "rows that are scored together"),
    ):
        default = getattr(Limits, name)
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"{what} (default: {default:,})")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 where it was told to end while it served, 2 where it could not serve, 130 or 143 where it was interrupted
    before."""
    args = make_parser().parse_args(arguments)
    given = {
        name: getattr(args, name) for name in ("backend", "towers", "cold_start") if getattr(args, name) is not None
    }
    logging.disable_progress_bar()
    served = False
    try:
        with ends_in_order():
            limits = Limits(**{name: getattr(args, name) for name in Limits.__dataclass_fields__})
            listener = _bound(args.host, args.port)
            revision = model_version(args.model, args.revision)["revision"]
            pipe = load_pipeline(args.model, revision, None, return_towers=False, **given)
            row = example_row(pipe.processor.vocabulary)
            pipe([row])  # the first row takes longest, and with cold_start the first values that training never saw
            if args.cold_start is not None:
                pipe([row | never_seen(pipe.processor, row, pipe.processor.fields)])
            app = make_app(pipe, limits)
            gc.collect()
            gc.freeze()  # what the libraries hold stays; each collection would look through it
            listener.listen()
            host, port = listener.getsockname()[:2]
            print(f"serving {args.model} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                http="h11",  # bounds a request's headers, which uvicorn's other reader does not
                ws="none",
                timeout_graceful_shutdown=SECONDS_FOR_THE_LAST_REQUESTS,
            )
            served = True
            uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt as interrupt:  # uvicorn has answered what it was working on, and raises the signal again
        return 0 if served else exit_code(interrupt)
    except (OSError, ValueError, TypeError, ImportError) as error:
        print(f"serve: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
