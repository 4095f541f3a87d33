"""The HTTP endpoint: a real server on loopback, asked as docs/serving.md says, by many at once, and by those who mean it ill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pyarrow.parquet as pq
import pytest
import uvicorn
from fastapi.exceptions import RequestValidationError
from transformers import PreTrainedTokenizerFast

from benchmarks import serving_load
from modeling_flip import CtrPredictionPipeline, FlipForCTR, FlipProcessor
from modeling_flip.serving import score, serve
from modeling_flip.serving.batching import Batcher
from tests.serving.score.tiny import save_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().splitlines()]
(START,) = (command for command in COMMANDS if "modeling_flip.serving.serve" in command)
ADDRESS = "http://127.0.0.1:8000"  # on the page
MAX_ROWS, MAX_BYTES, MAX_WAITING = 64, 50_000, 256
BIG = 1_234_567_890_123_456_780  # as a float, the ten ids from here are one

ROWS: list[dict[str, Any]] = [
    {"user_id": BIG, "title": "Joyful Harbor", "price": 3.0, "tags": ["a", "b"], "is_new": True},
    {"user_id": BIG + 1, "title": "Toy Story", "price": 3, "tags": ["b"], "is_new": False},
    {"user_id": str(BIG + 2), "title": "東京物語 \U0001f600", "price": "3.0", "tags": "a", "is_new": None},
    {"user_id": BIG + 2, "title": "nothing \ud800 whole", "price": 2.5, "tags": [], "is_new": "true"},
    {"user_id": BIG + 3, "price": 1e-7, "tags": [None, "c"], "not a field": {"of": ["any", "kind"]}},
    {"user_id": None, "title": "", "price": None, "tags": None},
    {"user_id": 10**30, "title": "x" * 500, "price": -12.5},
]


@pytest.fixture(scope="module")
def checkpoint(tiny_text_model: Path, wordpiece: PreTrainedTokenizerFast, tmp_path_factory: Any) -> Path:
    """A random model that tells rows apart, whose fields are of every kind."""
    seen = [
        {
            "user_id": BIG + i % 8,
            "title": f"Toy Story {i}",
            "price": i / 2,
            "tags": ["a", "b", "c"][: i % 4],
            "is_new": i > 9,
        }
        for i in range(40)
    ]
    kinds = {"user_id": ("categorical", "integer"), "title": ("text", "string"), "price": ("numeric", "number")}
    kinds |= {"tags": ("list", "string"), "is_new": ("categorical", "boolean")}
    sides = {"user_id": "user"}
    fields = [{"name": n, "kind": k, "type": t, "side": sides.get(n)} for n, (k, t) in kinds.items()]
    processor = FlipProcessor.fit(seen, fields, wordpiece)
    return save_model(processor, tiny_text_model, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> CtrPredictionPipeline:
    return CtrPredictionPipeline(FlipForCTR.from_pretrained(checkpoint), device="cpu")


class Server:
    """The page's own command as a process, with a port and limits for tests."""

    def __init__(self, checkpoint: Path) -> None:
        limits = {"max_rows": MAX_ROWS, "max_bytes": MAX_BYTES, "max_waiting_rows": MAX_WAITING, "port": 0}
        command = shlex.split(START.replace("outputs/quickstart", str(checkpoint)))
        command = [sys.executable, *command[1:], *(str(a) for name, n in limits.items() for a in (f"--{name}", n))]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # once it has scored a row
        self.url = re.findall(r"http://\S+", line)[0]
        self.client = httpx2.Client(base_url=self.url, timeout=60)

    def scores(self, rows: list[dict]) -> list[float]:
        answer = post(self.client, "/score", {"rows": rows})
        assert answer.status_code == 200, answer.text
        return [scored["probability"] for scored in answer.json()["scores"]]


def post(client: Any, route: str, content: Any) -> Any:
    """A request whose body may hold what strict JSON libraries refuse, such as lone surrogates."""
    return client.post(route, content=json.dumps(content), headers={"content-type": "application/json"})


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        server.client.close()
        server.process.kill()
        server.process.communicate()


@pytest.fixture
def server(servers: list[Server], checkpoint: Path) -> Server:
    """The one that runs, or a new one."""
    if not servers or servers[-1].process.poll() is not None:
        servers.append(Server(checkpoint))
    return servers[-1]


def many(server: Server, route: str, bodies: list[Any]) -> list[Any]:
    """The answers to requests that are all sent at once."""

    async def send() -> list[Any]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(post(client, route, body) for body in bodies))

    return asyncio.run(send())


# ---- the same answers as everywhere


def test_a_row_has_one_probability_over_http_in_python_and_from_a_file(
    server: Server, pipe: CtrPredictionPipeline, checkpoint: Path, tmp_path: Path
) -> None:
    over_http = [server.scores([row])[0] for row in ROWS]
    assert over_http == [pipe(row)["probability"] for row in ROWS]
    assert len(set(over_http)) == len(ROWS)
    ids = [server.scores([{"user_id": BIG + i}])[0] for i in range(8)]  # 19 digits, to the digit
    assert len(set(ids)) == 8

    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    arguments = ["--model", checkpoint, "--input", tmp_path / "rows.jsonl", "--output", tmp_path / "scores.parquet"]
    assert score.main([*map(str, arguments), "--batch_size", "1", "--device", "cpu"]) == 0
    assert over_http == pq.read_table(tmp_path / "scores.parquet")["probability"].to_pylist()


def test_rank_and_towers_are_the_pipelines(server: Server, pipe: CtrPredictionPipeline) -> None:
    user, candidates = {"user_id": BIG}, [{"title": f"Toy Story {i}", "price": i} for i in range(20)]
    answer = post(server.client, "/rank", {"user": user, "candidates": candidates, "top_k": 5}).json()["ranked"]
    expected = pipe.rank(user, candidates, top_k=5)
    assert [each["index"] for each in answer] == [each["index"] for each in expected]
    assert [e["probability"] for e in answer] == pytest.approx([e["probability"] for e in expected], abs=1e-5)
    assert len(post(server.client, "/rank", {"user": {}, "candidates": candidates}).json()["ranked"]) == 20
    (scored,) = post(server.client, "/score", {"rows": [ROWS[0]], "return_towers": True}).json()["scores"]
    assert scored == pytest.approx(pipe(ROWS[0], return_towers=True), abs=1e-5)


def test_many_at_once_are_scored_together_and_each_gets_its_own(server: Server) -> None:
    rows = [{"user_id": BIG + i % 8, "title": f"Toy Story {i % 50}", "price": i} for i in range(200)]
    alone = [server.scores([row])[0] for row in rows[:20]]
    before = metrics_of(server)
    bodies: list[Any] = [{"rows": [row]} for row in rows]
    bodies[7::20] = [{"rows": [{"title": {"no": "cell"}}]}] * 10  # which fail only those who sent them
    bodies[9::20] = [{"rows": [{"unknown": 1}]}] * 10
    bodies[11::20] = [{"user": {}, "rows": 3}] * 10
    answers = many(server, "/score", bodies)
    for i, answer in enumerate(answers):
        assert answer.status_code == (422 if i % 20 in (7, 9, 11) else 200)
        if i < 20 and answer.status_code == 200:
            assert answer.json()["scores"][0]["probability"] == pytest.approx(alone[i], abs=1e-5)
    after = metrics_of(server)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["flip_rows_scored_total"] == grown["flip_batch_rows_sum"] == 170
    assert grown["flip_batch_rows_count"] < 85  # two or more rows to a batch
    assert grown['flip_requests_total{route="/score",status="200"}'] == 170
    assert grown['flip_requests_total{route="/score",status="422"}'] == 30
    assert grown['flip_request_seconds_count{route="/score"}'] == 200
    assert after["process_resident_memory_bytes"] > 1e7


def metrics_of(server: Server) -> dict[str, float]:
    lines = [line for line in server.client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


# ---- the page


def test_the_curl_commands_of_the_page_run(server: Server) -> None:
    commands = [command for command in COMMANDS if command.startswith("curl ")]
    answers = {}
    for command in commands:
        words = shlex.split(command.replace(ADDRESS, server.url))
        done = subprocess.run([*words, "--fail-with-body"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}"
        answers[words[-1] if words[-1].startswith("http") else words[words.index("-s") + 1]] = done.stdout
    assert {url.removeprefix(server.url) for url in answers} == {"/score", "/rank", "/ready", "/metrics"}
    assert all(0 < scored["probability"] < 1 for scored in json.loads(answers[f"{server.url}/score"])["scores"])


def test_what_the_page_asks_of_docker_is_what_docker_takes() -> None:
    """No daemon, no image: only that the commands are docker's."""
    if (docker := shutil.which("docker")) is None:
        pytest.skip("docker is not at hand")
    commands = [shlex.split(command) for command in COMMANDS if command.startswith("docker ")]
    assert {words[1] for words in commands} == {"build", "run"}
    for words in commands:
        usage = subprocess.run([docker, words[1], "--help"], capture_output=True, text=True, timeout=60).stdout
        for flag in (word for word in words[2:] if word.startswith("-") and "modeling_flip" not in words):
            assert re.search(rf"(^|\s){re.escape(flag)}[ ,]", usage), f"docker {words[1]} has no {flag}"
    files = re.findall(r"^COPY (.*) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for line in files for name in line.split())
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    (default,) = re.findall(r"^CMD (.*)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    command = [*json.loads(entry), *json.loads(default)]
    assert command[:3] == ["python", "-m", "modeling_flip.serving.serve"]
    assert serve.make_parser().parse_args(command[3:]).host == "0.0.0.0"


def test_the_documented_example_is_a_request_and_docs_need_no_cdn(server: Server) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    for route in ("/score", "/rank"):
        body = paths[route]["post"]["requestBody"]["content"]["application/json"]
        assert post(server.client, route, body["example"]).status_code == 200
        assert body["schema"]["properties"]
    assert set(paths["/score"]["post"]["requestBody"]["content"]["application/json"]["example"]["rows"][0]) == {
        *("user_id", "title", "price", "tags", "is_new")
    }
    page = server.client.get("/docs").text
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page)
    for path in re.findall(r"(?:src|href)=\"(/[^\"]+)\"", page):
        assert server.client.get(path).status_code == 200


# ---- requests that are none

JSON = {"content-type": "application/json"}
BAD = {
    "no json": (b"{", 400, "not JSON"),
    "not utf-8": (b"\xff\xfe", 400, "UTF-8"),
    "nan": (b'{"rows": [{"price": NaN}]}', 400, "NaN"),
    "a key twice": (b'{"rows": [{"price": 1, "price": 2}]}', 400, "price"),
    "a long key twice": (b'{"%b": 1, "%b": 2}' % ((b"k" * 9_000,) * 2), 400, "more than one key"),
    "deep": (b"[" * 19_000, 400, "recursion"),
    "many digits": (b'{"rows": [{"user_id": ' + b"9" * 5000 + b"}]}", 400, "digits"),
    "another type": (b"[1, 2]", 422, "body"),
    "no rows": (b'{"rows": []}', 422, "rows"),
    "rows are no list": (b'{"rows": {"user_id": 1}}', 422, "rows"),
    "a row is no object": (b'{"rows": [{"user_id": 1}, 7]}', 422, "1"),
    "an option that is none": (b'{"rows": [{"user_id": 1}], "return_tower": true}', 422, "return_tower"),
    "a name that is no text": (b'{"rows": [{"user_id": 1}], "\\ud800": true}', 422, "is none of rows"),
    "no field of the model": (b'{"rows": [{"userid": 1, "tittle": "a"}]}', 422, "user_id, title"),
    "one row without a field": (b'{"rows": [{"user_id": 1}, {"tittle": "a"}]}', 422, "user_id, title"),
    "an object": (b'{"rows": [{"user_id": 1}, {"title": {"a": 1}}]}', 422, '"rows", 1, "title"'),
    "a list": (b'{"rows": [{"user_id": [1]}]}', 422, "holds one value"),
    "a list of lists": (b'{"rows": [{"tags": ["a", ["b"]]}]}', 422, "in the list"),
    "a list that is spelled in a list": (b'{"rows": [{"user_id": 1}, {"tags": "[[1]]"}]}', 422, '"rows", 1]'),
    "infinite": (b'{"rows": [{"price": 1e999}]}', 422, "64 bits"),
    "too many rows": (b'{"rows": [' + b'{"price":1},' * MAX_ROWS + b'{"price":1}]}', 413, str(MAX_ROWS)),
    "too many bytes": (b'{"rows": [' + b" " * MAX_BYTES + b"]}", 413, f"{MAX_BYTES:,} bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_told_what_is_wrong(server: Server, case: str) -> None:
    body, status, words = BAD[case]
    answer = server.client.post("/score", content=body, headers=JSON)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert answer.headers["content-type"] == "application/json" and len(answer.content) < 2000


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"rows": [' + b"1," * (MAX_ROWS + 1) + b"1]}", 413, f"at most {MAX_ROWS}"),
        (b"{" + b", ".join(b'"%d": 1' % i for i in range(99)) + b"}", 422, "is none of rows, return_towers"),
    ],
    ids=["rows that are none", "unknown keys"],
)
def test_many_faults_are_seen_before_each_is_written_down(server: Server, body: bytes, status: int, words: str) -> None:
    """By pydantic, which of a body of a few megabytes would make millions of them, while other requests wait."""
    answer = server.client.post("/score", content=body, headers=JSON)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text


def test_a_cell_of_too_much_text_is_refused() -> None:
    long = "x" * (serve.MOST_CHARACTERS + 1)
    serve._check_rows(
        [{"title": long[1:], "tags": [long[1:]], "none of ours": long}], {"title": False, "tags": True}, "rows"
    )
    for row in ({"title": long}, {"tags": ["a", long]}):
        with pytest.raises(RequestValidationError) as error:
            serve._check_rows([row], {"title": False, "tags": True}, "rows")
        assert "a text of 100,001 characters; send at most 100,000" in error.value.errors()[0]["msg"]


def test_a_large_request_is_computed_in_batches(pipe: CtrPredictionPipeline) -> None:
    app, sizes = serve.make_app(pipe, serve.Limits(max_batch_size=4)), []
    hook = pipe.model.register_forward_hook(lambda model, given, output: sizes.append(len(output.logits)))

    async def ask() -> None:
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            rows = [{"title": f"Toy Story {i}"} for i in range(9)]
            for route, body in {
                "/score": {"rows": rows},
                "/rank": {"user": {"user_id": 1}, "candidates": rows},
            }.items():
                assert (await client.post(route, json=body)).status_code == 200

    try:
        asyncio.run(ask())
    finally:
        hook.remove()
    assert sizes == [4, 4, 1, 4, 4, 1]


def test_towers_of_a_model_with_one_are_refused(checkpoint: Path) -> None:
    app = serve.make_app(
        CtrPredictionPipeline(FlipForCTR.from_pretrained(checkpoint, towers="tabular")), serve.Limits()
    )

    async def ask() -> Any:
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            return await client.post("/score", json={"rows": [{"title": "Toy Story"}], "return_towers": True})

    answer = asyncio.run(ask())
    assert answer.status_code == 422
    (fault,) = answer.json()["detail"]
    assert fault["loc"] == ["body", "return_towers"]
    assert fault["msg"] == "needs a model with both towers, but this model's config.towers is 'tabular'; leave it out"


def test_it_is_ready_while_there_is_room_and_healthy_while_it_works(
    pipe: CtrPredictionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        begun.set()
        go_on.wait(60)

    hook = pipe.model.register_forward_pre_hook(wait)
    app = serve.make_app(pipe, serve.Limits(max_rows=2, max_waiting_rows=2, max_batch_size=2))
    body = {"rows": [{"title": "Toy Story"}] * 2}

    async def ask() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x", timeout=60) as client,
        ):
            assert [(await client.get(route)).status_code for route in ("/ready", "/health")] == [200, 200]
            computed = asyncio.create_task(client.post("/score", json=body))
            assert await asyncio.to_thread(begun.wait, 60)
            waiting = asyncio.create_task(client.post("/score", json=body))
            async with asyncio.timeout(60):
                while (await client.get("/ready")).status_code == 200:
                    await asyncio.sleep(0.01)
            assert [(await client.get(route)).status_code for route in ("/ready", "/health")] == [503, 200]
            refused = await client.post("/score", json=body)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            go_on.set()
            assert [(await task).status_code for task in (computed, waiting)] == [200, 200]
            assert (await client.get("/ready")).status_code == 200
            monkeypatch.setattr(Batcher, "is_alive", False)
            assert [(await client.get(route)).status_code for route in ("/ready", "/health")] == [503, 503]

    try:
        asyncio.run(ask())
    finally:
        go_on.set()
        hook.remove()


def test_a_body_that_does_not_come_is_not_waited_for(
    pipe: CtrPredictionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "SECONDS_FOR_A_BODY", 0.2)
    app = serve.make_app(pipe, serve.Limits())

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"rows": '
        await asyncio.sleep(60)

    async def ask() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x") as client,
        ):
            answer = await asyncio.wait_for(client.post("/score", content=slowly(), headers=JSON), 30)
            assert answer.status_code == 408 and "the body was not there after 0.2 seconds" in answer.text

    asyncio.run(ask())


def test_unanswered_bodies_hold_a_bounded_number_of_bytes(pipe: CtrPredictionPipeline) -> None:
    """Clients that send most of a body and wait; each body, and all rows, are within their own limits."""
    app = serve.make_app(pipe, serve.Limits(max_bytes=1000, max_waiting_bytes=3000))
    arrived, go_on = list[int](), asyncio.Event()
    body = json.dumps({"rows": [{"title": "x" * 900}]}).encode()

    async def in_two_parts() -> AsyncIterator[bytes]:
        yield body[:-1]
        arrived.append(1)
        await go_on.wait()
        yield body[-1:]

    async def ask() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x", timeout=60) as client,
        ):
            slow = [asyncio.create_task(client.post("/score", content=in_two_parts(), headers=JSON)) for _ in range(3)]
            async with asyncio.timeout(60):
                while len(arrived) < 3:
                    await asyncio.sleep(0.01)
            for refused in (await client.post("/score", content=body, headers=JSON), await client.get("/ready")):
                assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
                assert refused.json()["detail"] == "the unanswered requests hold too many bytes; send it again later"
            assert f"flip_waiting_bytes {3 * len(body) - 3:.1f}" in (await client.get("/metrics")).text
            go_on.set()
            assert [(await task).status_code for task in slow] == [200] * 3
            assert (await client.post("/score", content=body, headers=JSON)).status_code == 200
            assert "flip_waiting_bytes 0.0" in (await client.get("/metrics")).text

    asyncio.run(ask())


def test_rows_of_a_client_that_has_gone_are_not_scored(pipe: CtrPredictionPipeline) -> None:
    """A real connection that is closed while its rows wait behind others."""
    begun, go_on, scored = threading.Event(), threading.Event(), list[int]()

    def wait(_: Any, __: Any, given: dict[str, Any]) -> None:
        scored.append(len(given["input_ids"]))
        begun.set()
        go_on.wait(60)

    hook = pipe.model.register_forward_pre_hook(wait, with_kwargs=True)
    listener = serve._bound("127.0.0.1", 0)
    listener.listen()
    port = listener.getsockname()[1]
    config = uvicorn.Config(serve.make_app(pipe, serve.Limits()), log_level="warning", http="h11", ws="none")
    server = uvicorn.Server(config)

    async def metric(client: httpx2.AsyncClient, name: str) -> float:
        (value,) = re.findall(rf"^{re.escape(name)} (.*)$", (await client.get("/metrics")).text, re.MULTILINE) or ["0"]
        return float(value)

    async def ask() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            first = asyncio.create_task(client.post("/score", json={"rows": [{"title": "Toy Story"}]}))
            assert await asyncio.to_thread(begun.wait, 60)
            body = json.dumps({"rows": [{"title": "Toy Story"}] * 5}).encode()
            _, leaving = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            leaving.write(head.encode() + b"\r\n\r\n" + body)
            async with asyncio.timeout(60):
                while await metric(client, "flip_waiting_rows") != 5:
                    await asyncio.sleep(0.01)
                leaving.close()
                while await metric(client, "flip_waiting_rows") != 0:
                    await asyncio.sleep(0.01)
            go_on.set()
            assert (await first).status_code == 200
            assert (await client.post("/score", json={"rows": [{"title": "Toy Story"}] * 2})).status_code == 200
            assert await metric(client, 'flip_requests_total{route="/score",status="499"}') == 1
        server.should_exit = True
        await serving

    try:
        asyncio.run(ask())
    finally:
        go_on.set()
        hook.remove()
    assert scored == [1, 2]


def test_the_command_loads_what_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[Any] = []

    def load(*args: Any, **given: Any) -> Any:
        loaded.append((args[:2], given))
        raise ValueError("enough")

    monkeypatch.setattr(serve, "load_pipeline", load)
    monkeypatch.setattr(serve, "model_version", lambda model, revision: {"revision": f"commit of {revision}"})
    options = ["--revision", "v2", "--towers", "tabular", "--backend", "onnx", "--cold_start", "text"]
    assert serve.main(["--model", "me/mine", "--port", "0", *options]) == 2
    assert capsys.readouterr().err == "serve: error: enough\n"
    given = {"return_towers": False, "towers": "tabular", "backend": "onnx", "cold_start": "text"}
    assert loaded == [(("me/mine", "commit of v2"), given)]


def test_other_bad_requests(server: Server) -> None:
    good = json.dumps({"rows": [{"user_id": 1}]}).encode()
    assert server.client.post("/score", content=good, headers={"content-type": "text/plain"}).status_code == 415
    parts = (b"  " * 1000 for _ in range(30))  # without a content-length
    assert server.client.post("/score", content=parts, headers=JSON).status_code == 413
    with contextlib.suppress(httpx2.TransportError):  # the connection may be closed before all of it is sent
        assert server.client.get("/health", headers={"x": "a" * 1_000_000}).status_code == 400
    assert server.client.get("/score").status_code == 405
    assert server.client.get("/nothing/here").status_code == 404
    candidates = [{"title": "Toy Story"}]
    for body, words in (
        ({"user": {"userid": 1}, "candidates": candidates}, "user_id"),
        ({"user": {"user_id": 1}, "candidates": [{"tittle": "a"}]}, "candidates"),
        ({"user": {"user_id": 1}, "candidates": candidates, "top_k": 0}, "top_k"),
        ({"user": {"user_id": [1]}, "candidates": candidates}, "user"),
        ({"user": {"user_id": 1}, "candidates": candidates * (MAX_ROWS + 1)}, str(MAX_ROWS)),
    ):
        answer = post(server.client, "/rank", body)
        assert answer.status_code in (413, 422) and words in answer.text
    assert server.client.get("/ready").status_code == 200


def test_where_too_many_rows_wait_requests_are_sent_away(server: Server) -> None:
    rows = [{"user_id": BIG + i, "title": "Toy Story " * i} for i in range(MAX_ROWS)]
    alone = server.scores(rows)
    answers = many(server, "/score", [{"rows": rows}] * 40)
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
        else:
            assert [s["probability"] for s in answer.json()["scores"]] == pytest.approx(alone, abs=1e-5)
    assert server.client.get("/ready").status_code == 200


def test_the_load_test_writes_its_figures(
    server: Server, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_load, "served", lambda *_: contextlib.nullcontext(server.url))
    monkeypatch.setattr(serving_load, "CLIENTS", (1, 3))
    monkeypatch.setattr(serving_load, "LOOKS", 6)
    arguments = {"model": checkpoint, "rows": 2, "seconds": 0.1, "minutes": 0.01, "json": tmp_path / "figures.json"}
    monkeypatch.setattr(sys, "argv", ["", *(str(a) for name, value in arguments.items() for a in (f"--{name}", value))])
    serving_load.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["clients"]) == {"1", "3"} and {"commit", "hardware"} <= figures.keys()
    for level in figures["clients"].values():
        assert level["failures"] == 0 and 0 < level["p50_ms"] <= level["p99_ms"]
        assert level["rows_per_second"] == 2 * level["requests_per_second"]
    assert len(figures["soak"]["memory_mib"]) == 7 and min(figures["soak"]["memory_mib"]) > 10


# ---- how it ends; the last tests, since the server is gone then


def test_at_sigterm_requests_in_work_are_answered_and_new_ones_refused(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    half = socket.create_connection((host, int(port)))  # a client that never goes on
    half.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-")
    rows = [{"user_id": BIG, "title": "Toy Story " * 50}] * MAX_ROWS
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.extend(many(server, "/score", [{"rows": rows}] * 4)))
    before = metrics_of(server).get("flip_rows_scored_total", 0)
    asking.start()
    waiting, scored = 0.0, before
    while asking.is_alive() and not (waiting and waiting + scored - before >= 3 * MAX_ROWS):  # one more is being scored
        now = metrics_of(server)
        waiting, scored = now["flip_waiting_rows"], now["flip_rows_scored_total"]
    assert waiting
    server.process.send_signal(signal.SIGTERM)
    asking.join(timeout=30)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert server.process.wait(timeout=30) == 0
    half.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, int(port)))


def test_what_cannot_be_served_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert serve.main(["--model", "x", "--port", port]) == 2
    assert serve.main(["--model", str(tmp_path / "quickstrat"), "--port", "0"]) == 2
    assert serve.main(["--model", "x", "--max_rows", "9", "--max_waiting_rows", "8"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[:2] for line in errors] == [["serve", " error"]] * 3
    assert port in errors[0] and "quickstrat" in errors[1] and "max_waiting_rows" in errors[2]


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """An answer is written in two parts: without this option the second waits 40 ms."""
    with serve._bound("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
