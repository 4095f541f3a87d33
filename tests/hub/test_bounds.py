"""Files made to fill memory, or to keep a machine busy for ever, are refused in one line before anything of their size is made.

All of them are loaded in one process that the system gives only so much memory, and an alarm clock: what is not refused ends
there, not on the machine of the tests.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast

from modeling_flip import FlipForCTR, FlipProcessor
from modeling_flip.checkpoint_files import MODEL, PROCESSOR
from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.recipe import read_yaml, to_yaml

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import json, resource, signal, sys
from pathlib import Path
from modeling_flip import FlipForCTR, FlipProcessor
from modeling_flip.text_tower import load_text_model
from modeling_flip.training.command_line import recipe_parser
from transformers import AutoModel

signal.signal(signal.SIGALRM, signal.default_int_handler)
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
said = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    kind = folder.name.partition("-")[0]
    load = {
        "config": FlipForCTR.from_pretrained,
        "text": lambda path: load_text_model(AutoModel, path),
        "vocabulary": FlipProcessor.from_pretrained,
    }[kind]
    signal.alarm(20)
    try:
        load(folder)
        said[folder.name] = "loaded"
    except (ValueError, OSError) as error:
        said[folder.name] = str(error)
    except BaseException as error:
        said[folder.name] = f"not said in a line: {error!r}"[:500]
    signal.alarm(0)
    said[folder.name + " MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(json.dumps(said))
"""
BIG = 10**12


def of_text(**settings: Any) -> dict[str, Any]:
    return {"text_config": settings}


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "features": ({"num_features": BIG}, "asks for at least .* numbers, but weights of .* bytes allow only"),
    "columns": ({"embedding_size": 10**9}, "asks for at least .* numbers"),
    "both": ({"num_features": BIG, "embedding_size": BIG}, "cannot be loaded: .*overflow"),
    "fields": ({"num_fields": BIG}, "num_fields of config.json is 1,000,000,000,000; at most 100,000 are read"),
    "cross_layers": ({"num_cross_layers": 10**8}, "num_cross_layers of config.json is 100,000,000; at most 100,000"),
    "hidden_sizes": ({"hidden_sizes": [8] * 10**6}, "hidden_sizes of config.json has 1,000,000 entries"),
    "hidden_layers": (
        {"hidden_sizes": [8] * 10**5},
        "asks for at least .* tensors, but weights of .* bytes allow only",
    ),
    "list_fields": ({"list_fields": [0] * 10**6}, "list_fields of config.json has 1,000,000 entries"),
    "name": ({"tabular_tower": "x" * 10**6}, "tabular_tower of config.json has 1,000,000 characters"),
    "text_layers": (of_text(num_hidden_layers=10**8), "num_hidden_layers of config.json is 100,000,000"),
    "some_layers": (of_text(num_hidden_layers=10**5), "asks for at least .* tensors"),
    "text_labels": (of_text(num_labels=10**10), "num_labels of config.json is 10,000,000,000"),
    "words": (of_text(vocab_size=BIG), "asks for at least .* numbers"),
    "positions": (of_text(max_position_embeddings=BIG), "asks for at least .* numbers"),
    "width": (of_text(intermediate_size=10**18), "asks for at least .* numbers|cannot be loaded"),
}
# What holds any number of rows in a few bytes.
ROWS = 10**6


def rows(values: pa.Array, **more: pa.Array) -> pa.Table:
    fields = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(values), np.int32)), pa.array(["user"]))
    zeros = pa.array(np.zeros(len(values), np.int64))
    return pa.table({"field": fields, "value": values, "count": zeros, "order": zeros.cast(pa.int32()), **more})


def schema(*names: str) -> dict[str, Any]:
    return {"format_version": 2, "schema": [{"name": name, "kind": "categorical", "type": "string"} for name in names]}


def bombs() -> Iterator[tuple[str, pa.Table, dict[str, Any], int, str, str]]:
    """Name, rows, how often these, metadata, codec, and what is said."""
    one = pa.array(["x"] * ROWS)
    few = pa.array([None, "x"])
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 10**5]))
    many = pa.array([[7] * ROWS, [7]], pa.large_list(pa.int32()))
    yield "rows", rows(one), schema("user"), 100, "snappy", "bytes and holds 100,000,000 rows"
    yield "codec", rows(one[:1000]), schema("user"), 1, "zstd", "compressed with ZSTD"
    yield "texts", rows(shared.cast(pa.string())), schema("user"), 10, "snappy", "bytes of values; at most"
    yield (
        "tokens",
        rows(few, tokens=many, is_value=many.cast(pa.large_list(pa.bool_()))),
        schema("user"),
        100,
        "snappy",
        "tokens; at most",
    )
    yield "column", rows(few, more=few), schema("user"), 1, "snappy", "a column 'more' that save does not write"
    yield "type", rows(few, tokens=few), schema("user"), 1, "snappy", "a column 'tokens' that save does not write"
    yield (
        "schema",
        rows(few),
        schema(*map(str, range(100_001))),
        1,
        "snappy",
        "there are 100,001 fields; at most 100,000",
    )
    yield "name", rows(few), schema("n" * 10**6), 1, "snappy", "name has 1,000,000 characters; at most 1,000"


@pytest.fixture(scope="module")
def said(
    wordpiece: PreTrainedTokenizerFast, tiny_text_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What loading each of the crafted checkpoints says."""
    whole, crafted = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("crafted")
    processor = FlipProcessor.fit([{"user": "1"}, {"user": "2"}], ["user"], wordpiece)
    torch.manual_seed(0)
    model = FlipForCTR.from_text_pretrained(tiny_text_model, processor, embedding_size=4, hidden_sizes=[8])
    model.save_pretrained(whole)
    processor.save_pretrained(whole)
    for part in (MODEL, PROCESSOR):
        (whole / part.checksums).unlink()

    def copy(name: str, source: Path, *without: str) -> Path:
        (crafted / name).mkdir()
        for file in source.iterdir():
            if file.name not in without:
                (crafted / name / file.name).symlink_to(file)
        return crafted / name

    copy("config-whole", whole)
    copy("vocabulary-whole", whole)
    copy("text-whole", tiny_text_model)
    config = json.loads((whole / "config.json").read_text())
    text_config = json.loads((tiny_text_model / "config.json").read_text())
    for name, (settings, _) in CONFIGS.items():
        changed = config | settings
        if "text_config" in settings:
            changed["text_config"] = config["text_config"] | settings["text_config"]
            text = copy(f"text-{name}", tiny_text_model, "config.json")
            (text / "config.json").write_text(json.dumps(text_config | settings["text_config"]))
        (copy(f"config-{name}", whole, "config.json") / "config.json").write_text(json.dumps(changed))
    for name, table, metadata, times, codec, _ in bombs():
        path = copy(f"vocabulary-{name}", whole, "feature_vocab.parquet") / "feature_vocab.parquet"
        table = table.replace_schema_metadata({"flip": json.dumps(metadata)})
        with pq.ParquetWriter(path, table.schema, compression=codec) as writer:
            for _ in range(times):
                writer.write_table(table)
    done = subprocess.run([sys.executable, "-c", LOAD, str(crafted)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_whole_checkpoints_load(said: dict[str, Any]) -> None:
    assert {said[f"{kind}-whole"] for kind in ("config", "text", "vocabulary")} == {"loaded"}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_not_of_its_weights(name: str, said: dict[str, Any]) -> None:
    for kind in ("config", "text") if "text_config" in CONFIGS[name][0] else ("config",):
        message = said[f"{kind}-{name}"]
        assert re.search(CONFIGS[name][1], message), message
        assert "\n" not in message
        assert len(message) < 1000


@pytest.mark.parametrize("name", [name for name, *_ in bombs()])
def test_a_vocabulary_that_unfolds(name: str, said: dict[str, Any]) -> None:
    message, expected = said[f"vocabulary-{name}"], {bomb[0]: bomb[-1] for bomb in bombs()}[name]
    assert expected in message, message
    assert "\n" not in message
    assert len(message) < 1000


def test_nothing_of_their_size_was_made(said: dict[str, Any]) -> None:
    peaks = [value for name, value in said.items() if name.endswith(" MB")]
    assert max(peaks) < 4000, said


ALIASES = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}]\n" for before, name in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, r"alias \*a in line 2: recipes may not use aliases"),
        ("a: &a {<<: *a}", r"alias \*a in line 1"),
        ("a: " + "[" * 10**5, "line 1 is nested more than 20 levels deep"),
    ],
)
def test_a_recipe_that_unfolds(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        read_yaml(text)


def test_a_recipe_that_names_one_list_twice_is_written_out() -> None:
    """As this package writes recipes, it can read them."""
    shared = ["user"]
    recipe = {"fields": shared, "item_fields": shared}
    assert read_yaml(to_yaml(recipe)) == recipe


def test_train_py_refuses_such_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(ALIASES)
    with pytest.raises(SystemExit):
        parse_recipe([str(path)])
    assert capsys.readouterr().err.startswith(
        "train.py: error: Problems parsing config: alias *a in line 2: recipes may not use aliases"
    )
