"""What is not as it was saved is refused, with its name and what to do; nothing here unpickles, evaluates or trusts."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoProcessor,
    PreTrainedTokenizerFast,
    modeling_utils,
    pipeline,
)

from modeling_flip import FlipForCTR, FlipProcessor
from modeling_flip.checkpoint_files import MODEL, PROCESSOR
from modeling_flip.configuration_flip import FORMAT_VERSION, LAST_FORMAT_VERSION

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    ROOT / "train.py",
    *(p for folder in ("modeling_flip", "data_scripts") for p in (ROOT / folder).rglob("*.py")),
]


@pytest.fixture(scope="module")
def whole(wordpiece: PreTrainedTokenizerFast, tiny_text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its weights in shards."""
    return save(tmp_path_factory.mktemp("whole"), wordpiece, tiny_text_model, "Amélie")


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, text_model: Path, title: str) -> Path:
    rows = [{"user": "1", "title": title}, {"user": "2", "title": "Toy Story"}]
    processor = FlipProcessor.fit(rows, ["user", "title"], tokenizer)
    torch.manual_seed(0)
    model = FlipForCTR.from_text_pretrained(text_model, processor, embedding_size=4, hidden_sizes=[8])
    model.save_pretrained(folder, max_shard_size="50KB")
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def load(folder: Path) -> None:
    FlipForCTR.from_pretrained(folder)
    FlipProcessor.from_pretrained(folder)


def load_auto(folder: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder)
    AutoProcessor.from_pretrained(folder)


def load_pipeline(folder: Path) -> None:
    pipeline("ctr-prediction", model=str(folder))


def without_checksums(folder: Path) -> None:
    for part in (MODEL, PROCESSOR):
        (folder / part.checksums).unlink()


def shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 3])


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def change_config(path: Path) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"text_pooling": "mean"}))


def change_vocabulary(path: Path) -> None:
    table = pq.read_table(path)
    values = ["Toy Storey" if v == "Toy Story" else v for v in table["value"].to_pylist()]
    changed = table.set_column(table.column_names.index("value"), "value", pa.array(values, pa.string()))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


@pytest.mark.parametrize("how", [load, load_auto, load_pipeline])
def test_a_whole_checkpoint_loads(how: Callable[[Path], None], copy: Path) -> None:
    how(copy)
    without_checksums(copy)  # as checkpoints of the first version are
    how(copy)


@pytest.mark.parametrize("how", [load, load_auto, load_pipeline])
@pytest.mark.parametrize(
    ("name", "damage", "has_checksums"),
    [
        ("weights", cut_short, True),
        ("weights", cut_short, False),
        ("weights", flip_one_bit, True),
        ("config.json", cut_short, True),
        ("config.json", cut_short, False),
        ("config.json", change_config, True),
        ("feature_vocab.parquet", cut_short, True),
        ("feature_vocab.parquet", cut_short, False),
        ("feature_vocab.parquet", change_vocabulary, True),
        ("feature_vocab.parquet", change_vocabulary, False),  # it has a fingerprint in config.json too
        ("tokenizer.json", cut_short, True),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    how: Callable[[Path], None], name: str, damage: Callable[[Path], None], has_checksums: bool, copy: Path
) -> None:
    path = shard(copy) if name == "weights" else copy / name
    damage(path)
    if not has_checksums:
        without_checksums(copy)
    with pytest.raises((ValueError, OSError)) as refused:
        how(copy)
    message = str(refused.value)
    assert path.name in message or "vocabulary does not belong to the weights" in message, message
    assert "again" in message or "same checkpoint" in message or "valid JSON" in message, message


def test_a_missing_shard_is_named(copy: Path) -> None:
    path = shard(copy)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} of .* is missing; download or copy it again"):
        load(copy)


def test_weights_that_the_checksums_do_not_list_are_refused(copy: Path) -> None:
    """transformers would take them rather than the shards."""
    shutil.copyfile(shard(copy), copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds model\.safetensors beside the shards that model\.sha256 lists"):
        load(copy)


def test_a_vocabulary_of_other_weights_is_refused(
    copy: Path, wordpiece: PreTrainedTokenizerFast, tiny_text_model: Path, tmp_path: Path
) -> None:
    """Also one of the same size, saved properly over the right one: only a title differs."""
    other = save(tmp_path / "other", wordpiece, tiny_text_model, "Amelie")
    message = "the vocabulary does not belong to the weights: its vocabulary_fingerprint is"
    model = FlipForCTR.from_pretrained(copy)
    with pytest.raises(ValueError, match=message):
        pipeline("ctr-prediction", model=model, processor=FlipProcessor.from_pretrained(other))
    FlipProcessor.from_pretrained(other).save_pretrained(copy)
    with pytest.raises(ValueError, match=message):
        FlipProcessor.from_pretrained(copy)


def test_a_tokenizer_of_other_weights_is_refused(
    whole: Path, wordpiece: PreTrainedTokenizerFast, tiny_text_model: Path, tmp_path: Path
) -> None:
    """The rows, and so the vocabulary, are the same: two text models were trained on one table."""
    tokenizer = deepcopy(wordpiece)
    tokenizer.add_tokens(["Amélie"])
    other = save(tmp_path / "other", tokenizer, tiny_text_model, "Amélie")
    model, processor = FlipForCTR.from_pretrained(whole), FlipProcessor.from_pretrained(other)
    assert processor.vocabulary.fingerprint == model.config.vocabulary_fingerprint
    message = "the tokenizer does not belong to the weights: its tokenizer_fingerprint is"
    with pytest.raises(ValueError, match=message):
        pipeline("ctr-prediction", model=model, processor=processor)
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "mixed", processor=processor)
    tabular = FlipForCTR.from_pretrained(whole, towers="tabular")
    pipeline("ctr-prediction", model=tabular, processor=processor)  # no tokenizer is read
    model.config.tokenizer_fingerprint = None  # as in older checkpoints
    pipeline("ctr-prediction", model=model, processor=processor)


def test_a_newer_format_is_refused_with_a_sentence(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    assert config["format_version"] == FORMAT_VERSION
    # Whatever else it holds that this version would stumble over.
    newer = config | {
        "format_version": LAST_FORMAT_VERSION + 1,
        "tabular_tower": {"name": "dcnv4"},
        "towers": "three",
    }
    (copy / "config.json").write_text(json.dumps(newer))
    without_checksums(copy)
    reads = LAST_FORMAT_VERSION
    message = f"config.json has format version {reads + 1}, but this modeling_flip reads up to {reads}; upgrade"
    for call in (FlipForCTR.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=message):
            call(copy)


def test_checksums_are_those_of_sha256sum(copy: Path) -> None:
    names = [MODEL.checksums, PROCESSOR.checksums]
    done = subprocess.run(["sha256sum", "--check", "--strict", *names], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    checked = {line.split(":")[0] for line in done.stdout.splitlines()}
    weights = {path.name for path in copy.glob("*.safetensors")}
    assert checked >= weights | {"config.json", "feature_vocab.parquet", "processor_config.json", "tokenizer.json"}
    with (copy / MODEL.checksums).open("w") as sums:  # as `sha256sum --binary` writes them
        subprocess.run(["sha256sum", "--binary", "config.json", *weights], cwd=copy, stdout=sums, check=True)
    load(copy)


@pytest.mark.parametrize("part", [MODEL, PROCESSOR])
@pytest.mark.parametrize(
    "content", [b"", b"0" * 64 + b"  ../../secret\n", b"0" * 64 + b"  /etc/hostname\n", b"nonsense", b"\xff"]
)
def test_checksums_that_are_none_are_refused(part: Any, content: bytes, copy: Path) -> None:
    (copy / part.checksums).write_bytes(content)
    with pytest.raises(ValueError, match=f"{part.checksums} (holds .* which is not a line of checksums|is cut short)"):
        load(copy)


def test_a_line_cut_off_the_checksums_is_missed(copy: Path) -> None:
    path = copy / MODEL.checksums
    path.write_text("".join(path.read_text().splitlines(True)[1:]))
    with pytest.raises(ValueError, match=r"model.sha256 is cut short: it does not list config.json"):
        load(copy)


def test_what_is_saved_again_is_whole_again(copy: Path) -> None:
    model, processor = FlipForCTR.from_pretrained(copy), FlipProcessor.from_pretrained(copy)
    model.config.text_pooling = "mean"
    model.save_pretrained(copy)
    processor.save_pretrained(copy)
    assert FlipForCTR.from_pretrained(copy).config.text_pooling == "mean"
    assert not list(copy.glob("model-*.safetensors"))


@pytest.mark.parametrize(
    "sizes", [("50GB", "50KB", "50KB"), ("50KB", "50GB", "50GB"), ("50KB", "100KB", "50GB", "50KB")]
)
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_holds_only_the_weights_saved_last(
    variant: str | None, sizes: Sequence[str], whole: Path, tmp_path: Path
) -> None:
    """In shards or in a single file, which transformers would read instead of the shards."""
    model, other = FlipForCTR.from_pretrained(whole), "fp16" if variant is None else None
    model.save_pretrained(tmp_path, variant=other)
    beside = {path.name for path in tmp_path.glob("model*.safetensors*")}
    for size in sizes:
        for parameter in model.parameters():
            parameter.data += 1
        model.save_pretrained(tmp_path, max_shard_size=size, variant=variant)
        sums = (tmp_path / MODEL.checksums).read_text()
        loaded = FlipForCTR.from_pretrained(tmp_path, variant=variant).state_dict()
        assert [name for name, weight in model.state_dict().items() if not torch.equal(loaded[name], weight)] == []
        files = {path.name for path in tmp_path.glob("model*.safetensors*")} - beside
        shards = {name for name in files if "-of-" in name}
        assert len(files - shards) == 1  # the single file or the index
        assert bool(shards) == (size != "50GB") == any("index" in name for name in files)
        assert all(name in sums for name in files if name.endswith(".safetensors"))


def test_a_save_that_is_interrupted_leaves_the_single_file(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes only when all shards are written."""
    model = FlipForCTR.from_pretrained(copy)
    model.save_pretrained(tmp_path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data += 1
    write, left = modeling_utils.safe_save_file, iter(range(2))

    def write_two(*args: Any, **kwargs: Any) -> None:
        if next(left, None) is None:
            raise OSError("no space left")
        write(*args, **kwargs)

    monkeypatch.setattr(modeling_utils, "safe_save_file", write_two)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(tmp_path, max_shard_size="50KB")
    loaded = FlipForCTR.from_pretrained(tmp_path).state_dict()
    assert [name for name, weight in before.items() if not torch.equal(loaded[name], weight)] == []


def test_a_pickle_is_not_read_even_where_there_is_nothing_else(copy: Path) -> None:
    weights: dict[str, torch.Tensor] = {}
    for path in copy.glob("*.safetensors"):
        weights |= load_file(path)
        path.unlink()
    (copy / "model.safetensors.index.json").unlink()
    without_checksums(copy)
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        FlipForCTR.from_pretrained(copy, use_safetensors=False)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    load(copy)


def test_a_text_model_that_is_a_pickle_is_not_read(
    tiny_text_model: Path, wordpiece: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    shutil.copy(tiny_text_model / "config.json", tmp_path)
    torch.save(load_file(tiny_text_model / "model.safetensors"), tmp_path / "pytorch_model.bin")
    processor = FlipProcessor.fit([{"user": "1"}], ["user"], wordpiece)
    with pytest.raises(OSError, match="safetensors"):
        FlipForCTR.from_text_pretrained(tmp_path, processor)


# ---- code: what a hostile checkpoint may ask for, of a person who trusts it

TRUST = json.loads('{"trust_remote_code": true}')
# Says that it ran as soon as it is imported, and is whatever transformers may look for.
EVIL = """
from pathlib import Path
Path({marker!r}).write_text("the code of the checkpoint ran")
from transformers import PreTrainedConfig

class Config(PreTrainedConfig):
    model_type = "evil"

class Evil:
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return cls()

    @classmethod
    def register_for_auto_class(cls, *args, **kwargs):
        pass
"""


def edit(path: Path, **changes: Any) -> None:
    """Change settings of a JSON file; None removes one."""
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (settings | changes).items() if v is not None}))


def processor_class(folder: Path) -> None:
    edit(folder / "processor_config.json", processor_class="Evil", auto_map={"AutoProcessor": "evil.Evil"})


def processor_class_of_the_tokenizer(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    edit(folder / "tokenizer_config.json", processor_class="Evil", auto_map={"AutoProcessor": "evil.Evil"})


def processor_class_of_an_image_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    names = {"AutoProcessor": "evil.Evil", "AutoImageProcessor": "evil.Evil"}
    edit(folder / "preprocessor_config.json", processor_class="Evil", image_processor_type="Evil", auto_map=names)


def tokenizer_beside_its_own(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Evil"]})


def tokenizer(folder: Path) -> None:
    names = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map=names)


def custom_pipeline(folder: Path) -> None:
    task = {"impl": "evil.Evil", "pt": ["AutoModelForSequenceClassification"], "type": "multimodal"}
    edit(folder / "config.json", custom_pipelines={"ctr-prediction": task})


def auto_map(folder: Path) -> None:
    names = ("AutoModelForSequenceClassification", "AutoModel", "AutoConfig", "AutoProcessor", "AutoTokenizer")
    edit(folder / "config.json", auto_map=dict.fromkeys(names, "evil.Evil"))


def text_tower(folder: Path) -> None:
    text_config = json.loads((folder / "config.json").read_text())["text_config"]
    names = {"AutoConfig": f"{folder}--evil.Config", "AutoModel": f"{folder}--evil.Evil"}
    edit(folder / "config.json", text_config=text_config | {"auto_map": names})


def text_tower_that_transformers_lacks(folder: Path) -> None:
    edit(folder / "config.json", text_config={"model_type": "encoder-decoder"})
    text_tower(folder)


def kernel(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="somebody/kernel")


def kernel_of_the_text_tower(folder: Path) -> None:
    text_config = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config=text_config | {"attn_implementation": "somebody/kernel"})


def make_hostile(folder: Path, attack: Callable[[Path], None]) -> Path:
    """Returns the file that comes into being where code of the checkpoint runs."""
    marker = folder.parent / "marker"
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    without_checksums(folder)
    attack(folder)
    return marker


@pytest.fixture
def yes_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who answers every question of transformers with yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


@pytest.mark.usefixtures("yes_to_all")
@pytest.mark.parametrize(
    ("attack", "refused"),
    [
        (processor_class, None),
        (processor_class_of_the_tokenizer, None),
        (processor_class_of_an_image_processor, None),
        (tokenizer_beside_its_own, None),
        (tokenizer, "contains custom code"),
        (custom_pipeline, None),
        (auto_map, None),
        (text_tower, None),
        (text_tower_that_transformers_lacks, "Could not load model"),
        (kernel, "attn_implementation of config.json is 'somebody/kernel', code of a repository; none is run"),
        (kernel_of_the_text_tower, "code of a repository; none is run"),
    ],
)
def test_the_pipeline_runs_no_code_of_a_checkpoint_of_this_package(
    attack: Callable[[Path], None], refused: str | None, copy: Path
) -> None:
    """Even where the person trusts it: the package is imported, and its classes are those that are asked."""
    marker = make_hostile(copy, attack)
    if refused is None:
        score = pipeline("ctr-prediction", model=str(copy), **TRUST)
        assert 0 < score({"user": "1"})["probability"] < 1
    else:
        with pytest.raises(ValueError, match=refused):
            pipeline("ctr-prediction", model=str(copy), **TRUST)
    assert not marker.exists()


@pytest.mark.usefixtures("yes_to_all")
@pytest.mark.parametrize("attack", [processor_class, tokenizer, auto_map, text_tower_that_transformers_lacks, kernel])
def test_our_own_classes_run_no_code_of_a_checkpoint(attack: Callable[[Path], None], copy: Path) -> None:
    marker = make_hostile(copy, attack)
    for cls in (FlipForCTR, FlipProcessor):
        with suppress(ValueError):
            cls.from_pretrained(copy, **TRUST)
    assert not marker.exists()


def foreign_model(folder: Path) -> None:
    edit(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})


def test_what_transformers_runs_before_this_package_is_asked(copy: Path) -> None:
    """SECURITY.md says so: with trust_remote_code=True, a model_type that is none of this package's is somebody else's model, and
    AutoProcessor by itself goes by what the files name. Where this fails, that sentence can go."""
    marker = make_hostile(copy, foreign_model)
    with pytest.raises(ValueError, match="custom code"):
        pipeline("ctr-prediction", model=str(copy), trust_remote_code=False)
    assert not marker.exists()
    with pytest.raises(ValueError, match="Could not load model"):
        pipeline("ctr-prediction", model=str(copy), **TRUST)
    assert marker.exists()


def test_what_transformers_runs_where_it_looks_for_a_processor_itself(copy: Path) -> None:
    """As above: AutoProcessor asks the files of a checkpoint for a class first, and its configuration last."""
    marker = make_hostile(copy, processor_class)
    AutoProcessor.from_pretrained(copy, **TRUST)
    assert marker.exists()


def test_a_processor_names_no_other_model(copy: Path, tiny_text_model: Path, unread: list[str]) -> None:
    """transformers would load it, from anywhere, and pickles too."""
    torch.save(load_file(tiny_text_model / "model.safetensors"), copy.parent / "pytorch_model.bin")
    shutil.copy(tiny_text_model / "config.json", copy.parent)
    other = {"audio_tokenizer_class": "BertModel", "audio_tokenizer_name_or_path": str(copy.parent)}
    edit(copy / "processor_config.json", audio_tokenizer=other)
    without_checksums(copy)
    for how in (load, load_pipeline):
        with pytest.raises(ValueError, match="the checkpoint names the class 'BertModel' as a part of its processor"):
            how(copy)
    assert not unread


# ---- weights


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that torch is asked to unpickle."""
    files: list[str] = []
    unpickle = torch.load

    def noted(file: Any, *args: Any, **kwargs: Any) -> Any:
        files.append(str(file))
        return unpickle(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", noted)
    return files


def weights_elsewhere(folder: Path, name: str) -> None:
    """Weights in a file that torch would unpickle, or that lies outside, and an index that names it."""
    weights: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        weights |= load_file(path)
        path.unlink()
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    torch.save(weights, target) if name.endswith(".bin") else save_file(weights, target, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["w.bin", "../w.safetensors", "/ABSOLUTE/w.safetensors", "sub/w.safetensors", "w.safetensors.bin"]
)
def test_an_index_names_files_of_safetensors_beside_it_alone(
    name: str, copy: Path, tiny_text_model: Path, wordpiece: PreTrainedTokenizerFast, unread: list[str]
) -> None:
    name = name.replace("/ABSOLUTE", str(copy.parent))
    message = rf"index\.json names '{name}' as a file of weights; only safetensors files beside it are read"
    weights_elsewhere(copy, name)
    without_checksums(copy)
    with pytest.raises(ValueError, match=message):
        FlipForCTR.from_pretrained(copy)
    text_model = Path(shutil.copytree(tiny_text_model, copy.parent / "text"))
    weights_elsewhere(text_model, name)
    processor = FlipProcessor.fit([{"user": "1"}], ["user"], wordpiece)
    with pytest.raises(ValueError, match=message):
        FlipForCTR.from_text_pretrained(text_model, processor)
    assert not unread


@pytest.mark.parametrize("name", ["adapter_model.bin", "other.safetensors"])
def test_a_configuration_names_no_weights(
    name: str, copy: Path, tiny_text_model: Path, wordpiece: PreTrainedTokenizerFast, unread: list[str]
) -> None:
    """transformers would read them instead of those that have checksums."""
    text_model = Path(shutil.copytree(tiny_text_model, copy.parent / "text"))
    processor = FlipProcessor.fit([{"user": "1"}], ["user"], wordpiece)
    without_checksums(copy)
    for folder in (copy, text_model):
        edit(folder / "config.json", transformers_weights=name)
        torch.save({}, folder / name) if name.endswith(".bin") else save_file({}, folder / name, {"format": "pt"})
    message = f"config.json names '{name}' as its weights"
    with pytest.raises(ValueError, match=message):
        FlipForCTR.from_pretrained(copy)
    with pytest.raises(ValueError, match=message):
        FlipForCTR.from_text_pretrained(text_model, processor)
    assert not unread


def test_an_adapter_beside_the_weights_is_not_loaded(
    copy: Path, tiny_text_model: Path, wordpiece: PreTrainedTokenizerFast, unread: list[str]
) -> None:
    """With peft installed, transformers would load it, from a pickle too, or the model that it names."""
    pytest.importorskip("peft")
    text_model = Path(shutil.copytree(tiny_text_model, copy.parent / "text"))
    for folder in (copy, text_model):
        adapter = {"peft_type": "LORA", "target_modules": ["query"], "base_model_name_or_path": "elsewhere/evil"}
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
        torch.save({}, folder / "adapter_model.bin")
    message = r"holds an adapter \(adapter_config.json\), which is not read: merge it into its model"
    with pytest.raises(ValueError, match=message):
        FlipForCTR.from_pretrained(copy)
    with pytest.raises(ValueError, match=message):
        FlipForCTR.from_text_pretrained(text_model, FlipProcessor.fit([{"user": "1"}], ["user"], wordpiece))
    assert not unread


def test_weights_as_torch_distributed_writes_them_do_not_pass_by_the_checksums(copy: Path) -> None:
    """transformers would load them rather than those that are listed."""
    shutil.copy(shard(copy), copy / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=r"shard-00001-model-00001-of-00001\.safetensors would be loaded instead"):
        load(copy)


# ---- the syntax tree of the package


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_no_eval_no_trust(path: Path) -> None:
    assert not list(forbidden(ast.parse(path.read_text())))


def forbidden(tree: ast.AST) -> Any:
    """Lines that unpickle, evaluate text, or trust remote code in the user's stead."""
    modules = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    calls = {"eval", "exec", "compile", "__import__"}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if modules & {name.split(".")[0] for name in names}:
                yield node.lineno
        if isinstance(node, ast.Call):
            name, owner = "", ""
            if isinstance(node.func, ast.Name):
                name = node.func.id
            elif isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                if owner in ("torch", "np", "numpy", "pd", "pandas") and node.func.attr in (
                    "load",
                    "save",
                    "read_pickle",
                ):
                    yield node.lineno
            if name in calls:
                yield node.lineno
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            yield node.value.lineno
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            if {"trust_remote_code", "allow_pickle"} & set(keys):
                yield node.lineno


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as p",
        "eval('1')",
        "exec(text)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "f(**{'trust_remote_code': True})",
    ],
)
def test_the_guard_sees(code: str) -> None:
    assert list(forbidden(ast.parse(code)))


def test_the_guard_lets_pass() -> None:
    code = "model.eval()\nmodel = model.train().eval()\nre.compile('x')\njson.load(f)\n'trust_remote_code=True'"
    assert not list(forbidden(ast.parse(code)))
