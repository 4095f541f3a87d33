"""A Hub on 127.0.0.1 for the session, and processes that talk to it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import pytest

from tests.hub.forked import Forked, run_code
from tests.hub.loopback_hub import TOKEN, LoopbackHub

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_failure_is_left(hub: LoopbackHub) -> Iterator[None]:
    yield
    hub.fail = None


@pytest.fixture(scope="session")
def run_python(
    hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a process whose Hub is the loopback hub, with an empty cache of its own unless `home` is given."""

    def run(
        code: str,
        *,
        home: Path | None = None,
        token: str | None = TOKEN,
        extra_env: dict[str, str] | None = None,
        python: str = sys.executable,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        home = home or tmp_path_factory.mktemp("hf_home")
        env = hub.env(home, token) | {"PYTHONPATH": str(ROOT)} | (extra_env or {})
        folder = tmp_path_factory.mktemp("work")
        command = [python, "-c", code]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def fork(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Forked]:
    """`fork(code)` → a process that has begun to run it, as one of `run_python` would, but at once; all share a cache."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_code.__module__])
    env = hub.env(tmp_path_factory.mktemp("hf_home")) | {"PYTHONPATH": str(ROOT)}
    with mock.patch.dict(os.environ, env, clear=True):
        forkserver.ensure_running()

    def begin(code: str, *, token: str | None = TOKEN, folder: Path | None = None) -> Forked:
        log = tmp_path_factory.mktemp("log")
        folder = folder or tmp_path_factory.mktemp("work")
        process = context.Process(target=run_code, args=(code, token, folder, log), daemon=True)
        process.start()
        return Forked(process, log)

    return begin


@pytest.fixture(scope="session")
def run_forked(fork: Callable[..., Forked]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `fork`, to the end."""
    return lambda code, **options: fork(code, **options).finish()


@pytest.fixture(scope="session")
def every_model(
    run_forked: Callable[..., subprocess.CompletedProcess[str]],
    tiny_text_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A tiny untrained checkpoint of every kind, pushed as me/NAME with `push_to_hub`: NAME → the folder it was saved to."""
    folder = tmp_path_factory.mktemp("every_model")
    code = PUSH_EVERY_MODEL.format(
        text_model=str(tiny_text_model), folder=str(folder), t5=str(tmp_path_factory.mktemp("t5"))
    )
    done = run_forked(code)
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.name: path for path in sorted(folder.iterdir())}


PUSH_EVERY_MODEL = """
import torch
from pathlib import Path
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration
from modeling_flip import CTRBertForCTR, FlipForCTR, FlipProcessor, MoRecForCTR, P5ForCTR

torch.manual_seed(0)
rows = [
    {{"user_id": u, "gender": g, "title": t}}
    for u, g, t in [(1, "female", "Toy Story (1995)"), (2, "male", "東京物語"), (3, None, "Сталкер"), (1, "female", "Amélie")]
]
tokenizer = AutoTokenizer.from_pretrained({text_model!r})
processor = FlipProcessor.fit(rows, ["user_id", "gender", "title"], tokenizer)
t5 = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
              pad_token_id=0, eos_token_id=tokenizer.sep_token_id)
T5ForConditionalGeneration(t5).save_pretrained({t5!r})
sizes = {{"embedding_size": 8, "hidden_sizes": [16, 8], "projection_size": 8}}
made = {{f"flip-{{towers}}": (FlipForCTR, {text_model!r}, {{"towers": towers}}) for towers in ("both", "tabular", "text")}}
made["flip-deepfm"] = FlipForCTR, {text_model!r}, {{"tabular_tower": "deepfm", "batch_norm": True}}
made["ctr_bert"] = CTRBertForCTR, {text_model!r}, {{"item_fields": [2]}}
made["morec"] = MoRecForCTR, {text_model!r}, {{"item_fields": [2]}}
made["p5"] = P5ForCTR, {t5!r}, {{}}
for name, (cls, text_model, settings) in made.items():
    model = cls.from_text_pretrained(text_model, processor, **sizes, **settings).eval()
    its = processor if model.inputs != ("feature_ids",) else processor.tabular_only()
    model.save_pretrained(Path({folder!r}, name))
    its.save_pretrained(Path({folder!r}, name))
    model.push_to_hub(f"me/{{name}}", its)
"""
