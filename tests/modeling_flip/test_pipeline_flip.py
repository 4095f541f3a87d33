"""The pipeline: the model's own probabilities for every kind of input, in order, lazily where it must be; and its errors."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from modeling_flip import (
    CTRBertForCTR,
    CtrPredictionPipeline,
    FlipConfig,
    FlipDataCollator,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    MoRecForCTR,
    P5ForCTR,
    pipeline_flip,
)
from modeling_flip.pipeline_flip import BATCHES_PER_CHUNK, rank_in_group
from modeling_flip.sentences import SentenceTokenizer

FIELDS = ["user_id", "gender", "title"]
SIZES: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [8]}
WORDS = ["toy", "story", "the", "usual", "suspects", "amélie", "東京物語", "a", "wonderful", "life", "das", "boot"]
FLOAT_NOISE: dict[str, Any] = {"rel": 0, "abs": 1e-5}  # of batches of another size; it differs between CPUs


def make_rows(size: int, seed: int = 0) -> list[dict[str, Any]]:
    """Titles of 1 to 12 words, some genders missing, and a column that is no field; in random order of length."""
    rng = np.random.default_rng(seed)
    return [
        {
            "user_id": int(rng.integers(1, 9)),
            "gender": [None, "female", "male"][rng.integers(3)],
            "title": " ".join(rng.choice(WORDS, rng.integers(1, 13))),
            "session": f"s{rng.integers(5)}",
        }
        for _ in range(size)
    ]


ROWS = make_rows(120)
UNKNOWN = {"user_id": "nobody", "gender": "?", "title": "never seen"}


def lively(model: Any, scale: float = 0.3) -> Any:
    """With larger weights than at the start, so that logits differ by more than noise."""
    set_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def processor(wordpiece: PreTrainedTokenizerFast) -> FlipProcessor:
    return FlipProcessor.fit(ROWS[:100], FIELDS, wordpiece)


@pytest.fixture(scope="module")
def model(tiny_text_model: Path, processor: FlipProcessor) -> FlipForCTR:
    return lively(FlipForCTR.from_text_pretrained(tiny_text_model, processor, **SIZES))


@pytest.fixture(scope="module")
def checkpoint(model: FlipForCTR, processor: FlipProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> CtrPredictionPipeline:
    return pipeline("ctr-prediction", model=str(checkpoint))


@pytest.fixture(scope="module")
def expected(model: FlipForCTR, processor: FlipProcessor) -> list[float]:
    """Each row by itself through the model."""
    with torch.no_grad():
        return [model(**processor([row])).logits.sigmoid().item() for row in ROWS]


@pytest.fixture
def warnings_of_processor() -> Iterator[list[str]]:
    """What the processor warns of; what it has warned of once, it warns of again."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("modeling_flip.processing_flip")
    type(logger).warning_once.cache_clear()  # type: ignore[attr-defined]
    logger.addHandler(handler)
    yield heard
    logger.removeHandler(handler)


def probabilities(scores: Any) -> list[float]:
    return [score["probability"] for score in scores]


# ---- the same probabilities, whatever the batch and the kind of input


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_scores_are_the_models_own_row_by_row(
    pipe: CtrPredictionPipeline, expected: list[float], batch_size: int
) -> None:
    assert max(expected) - min(expected) > 0.1
    assert probabilities(pipe(ROWS, batch_size=batch_size)) == pytest.approx(expected, **FLOAT_NOISE)


def test_scores_follow_their_rows_into_another_order(pipe: CtrPredictionPipeline, expected: list[float]) -> None:
    order = np.random.default_rng(1).permutation(len(ROWS))
    scores = probabilities(pipe([ROWS[i] for i in order], batch_size=3))
    assert scores == pytest.approx([expected[i] for i in order], **FLOAT_NOISE)


TABLE = pa.Table.from_pylist(ROWS)
SHUFFLED = datasets.Dataset(TABLE).shuffle(seed=0)
KINDS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(ROWS),
    "DataFrame": lambda: pd.DataFrame(ROWS, index=range(500, 500 + len(ROWS))),
    "Arrow table": lambda: TABLE,
    "Arrow table in chunks": lambda: pa.concat_tables([TABLE[:50], TABLE[50:]]),
    "Dataset": lambda: datasets.Dataset(TABLE),
    "Dataset in another format": lambda: datasets.Dataset(TABLE).with_format("torch", columns=["user_id"]),
    "generator": lambda: (row for row in ROWS),
    "IterableDataset": lambda: datasets.Dataset(TABLE).to_iterable_dataset(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gives_the_same(pipe: CtrPredictionPipeline, expected: list[float], kind: str) -> None:
    scores = pipe(KINDS[kind](), batch_size=2)  # several chunks
    assert isinstance(scores, list) == (kind not in ("generator", "IterableDataset"))
    assert probabilities(scores) == pytest.approx(expected, **FLOAT_NOISE)


def test_a_shuffled_dataset_is_scored_in_its_own_order(pipe: CtrPredictionPipeline) -> None:
    assert probabilities(pipe(SHUFFLED, batch_size=2)) == pytest.approx(
        probabilities(pipe(list(SHUFFLED))), **FLOAT_NOISE
    )


def test_one_row_gives_one_score(pipe: CtrPredictionPipeline, expected: list[float]) -> None:
    score = pipe(ROWS[0])
    assert list(score) == ["probability"] and isinstance(score["probability"], float)
    assert score["probability"] == pytest.approx(expected[0], **FLOAT_NOISE)
    assert probabilities(pipe([ROWS[0]])) == pytest.approx(expected[:1], **FLOAT_NOISE)


@pytest.mark.parametrize("empty", [[], (), TABLE[:0], pd.DataFrame(ROWS)[:0], datasets.Dataset(TABLE[:0])], ids=repr)
def test_nothing_gives_nothing(pipe: CtrPredictionPipeline, empty: Any) -> None:
    assert pipe(empty) == [] == pipe(empty, group_by="user_id")
    assert list(pipe(iter([]))) == []


def test_rows_of_nothing_but_unseen_values_are_scored(
    pipe: CtrPredictionPipeline, model: FlipForCTR, processor: FlipProcessor
) -> None:
    rows = [UNKNOWN | {"title": "東京 " * n} for n in range(1, 9)] + [dict.fromkeys(FIELDS)]
    with torch.no_grad():
        each = [model(**processor([row])).logits.sigmoid().item() for row in rows]
    assert probabilities(pipe(rows, batch_size=2)) == pytest.approx(each, **FLOAT_NOISE)


def test_few_rows_and_many_are_encoded_alike(processor: FlipProcessor) -> None:
    rows = [*ROWS, UNKNOWN, {"title": "alone"}]
    together = processor.encode(rows, strict=False)
    alone = [processor.encode([row], strict=False) for row in rows]
    np.testing.assert_array_equal(np.concatenate([row.feature_ids() for row in alone]), together.feature_ids())
    assert [row.has_unseen_value[0] for row in alone] == together.has_unseen_value.tolist()


# ---- ranking


USER = {"user_id": 3, "gender": "male"}
CANDIDATES = [{"title": row["title"]} for row in ROWS[:40]]


def test_candidates_are_ranked_by_their_scores_to_the_bit(pipe: CtrPredictionPipeline) -> None:
    scores = probabilities(pipe([{**USER, **candidate} for candidate in CANDIDATES]))
    ranked = pipe.rank(USER, CANDIDATES)
    assert [r["index"] for r in ranked] == sorted(range(len(scores)), key=lambda i: -scores[i])
    assert [r["probability"] for r in ranked] == [scores[r["index"]] for r in ranked]
    assert pipe.rank(USER, iter(CANDIDATES), top_k=3) == ranked[:3]


def test_a_candidates_own_field_comes_before_the_users(pipe: CtrPredictionPipeline) -> None:
    candidates = [{"title": "toy story"}, {"title": "toy story", "gender": "female"}]
    scores = probabilities(pipe([{**USER, **candidate} for candidate in candidates]))
    assert scores[0] != scores[1]
    assert {r["index"]: r["probability"] for r in pipe.rank(USER, candidates)} == dict(enumerate(scores))


def test_a_user_nobody_knows_is_ranked_for(pipe: CtrPredictionPipeline, warnings_of_processor: list[str]) -> None:
    ranked = pipe.rank({"user_id": "nobody", "gender": "?"}, CANDIDATES)
    assert warnings_of_processor == []  # one value in all rows says nothing of a column
    scores = probabilities(pipe([{**UNKNOWN, **candidate} for candidate in CANDIDATES]))
    assert {r["index"]: r["probability"] for r in ranked} == dict(enumerate(scores))


def test_a_ranking_of_nothing_or_by_nothing(pipe: CtrPredictionPipeline) -> None:
    assert pipe.rank(USER, []) == []
    with pytest.raises(ValueError, match="top_k is 0"):
        pipe.rank(USER, CANDIDATES, top_k=0)
    with pytest.raises(TypeError, match=r"holds a str, 'title'; of a DataFrame, pass candidates.to_dict\('records'\)"):
        pipe.rank(USER, pd.DataFrame({"title": ["a"]}))
    with pytest.raises(ValueError, match=r"no candidate has a field of the model.*titel"):
        pipe.rank(USER, [{"titel": "toy story"}])


# ---- streams


def test_a_generator_is_read_a_bounded_number_of_rows_ahead(pipe: CtrPredictionPipeline, expected: list[float]) -> None:
    read = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal read
        for row in ROWS:
            read += 1
            yield row

    scores = pipe(rows(), batch_size=2)
    assert read == 0
    ahead = 2 * BATCHES_PER_CHUNK
    first = [next(scores) for _ in range(ahead)]
    assert read == ahead
    first.append(next(scores))
    assert read == 2 * ahead
    assert probabilities([*first, *scores]) == pytest.approx(expected, **FLOAT_NOISE)


def test_an_absent_field_is_reported_once(pipe: CtrPredictionPipeline, warnings_of_processor: list[str]) -> None:
    rows = [{"user_id": row["user_id"], "title": row["title"]} for row in ROWS]
    scores = probabilities(pipe(rows, batch_size=2))
    assert warnings_of_processor == ["no column 'gender' in the rows: scored as missing"]
    assert scores == pytest.approx(probabilities(pipe([row | {"gender": None} for row in rows])), **FLOAT_NOISE)


def test_rows_of_a_stream_may_differ_in_their_fields(
    pipe: CtrPredictionPipeline, warnings_of_processor: list[str]
) -> None:
    """In whole chunks gender is absent, then gender and title, then nothing; and within a chunk now this, now that."""
    drop = [("gender",)] * 32 + [("gender", "title")] * 32 + [()] * 32 + [("title",), ("user_id",)] * 12
    rows = [{k: v for k, v in row.items() if k not in d} for row, d in zip(ROWS, drop, strict=True)]
    scores = probabilities(pipe(iter(rows), batch_size=2))
    assert sorted(warnings_of_processor) == [
        f"no column {name!r} in the rows: scored as missing" for name in ("gender", "title")
    ]
    filled = [dict.fromkeys(FIELDS) | row for row in rows]
    assert scores == pytest.approx(probabilities(pipe(filled)), **FLOAT_NOISE)


# ---- what else can be asked for


def test_towers_probabilities_are_theirs(pipe: CtrPredictionPipeline, checkpoint: Path) -> None:
    scores = pipe(ROWS, return_towers=True, batch_size=7)
    assert list(scores[0]) == ["probability", "tabular_probability", "text_probability"]
    for towers in ("tabular", "text"):
        alone = pipeline("ctr-prediction", model=str(checkpoint), model_kwargs={"towers": towers})
        assert probabilities(alone(ROWS)) == pytest.approx([s[f"{towers}_probability"] for s in scores], **FLOAT_NOISE)
        for ask in (lambda: alone(ROWS, return_towers=True), lambda: alone(iter(ROWS), return_towers=True)):  # noqa: B023
            with pytest.raises(ValueError, match=f"config.towers is '{towers}'"):
                ask()


@pytest.mark.parametrize("column", ["user_id", "session"])
@pytest.mark.parametrize("kind", ["list", "DataFrame", "Dataset"])
def test_rank_is_among_the_rows_of_the_group(
    pipe: CtrPredictionPipeline, expected: list[float], column: str, kind: str
) -> None:
    rows = {"list": ROWS, "DataFrame": pd.DataFrame(ROWS), "Dataset": datasets.Dataset(TABLE)}[kind]
    ranks = [score["rank"] for score in pipe(rows, group_by=column, batch_size=5)]
    for i, row in enumerate(ROWS):
        better = [
            p for p, other in zip(expected, ROWS, strict=True) if other[column] == row[column] and p > expected[i]
        ]
        twins = [j for j, other in enumerate(ROWS) if {**other, "session": 0} == {**row, "session": 0}]
        if len(twins) == 1:  # equal rows may differ by noise
            assert ranks[i] == len(better) + 1


def test_rank_by_hand() -> None:
    groups = pa.array(["a", "b", "a", None, "a", "b", None]).dictionary_encode()
    scores = np.array([0.2, 0.5, 0.9, 0.1, 0.2, 0.7, 0.3])
    assert rank_in_group(groups, scores).tolist() == [2, 2, 1, 2, 3, 1, 1]
    assert rank_in_group(pa.array(["a"] * 50).dictionary_encode(), np.zeros(50)).tolist() == list(range(1, 51))


def test_a_rank_needs_its_column_and_all_rows(pipe: CtrPredictionPipeline) -> None:
    assert pipe(ROWS[0], group_by="user_id")["rank"] == 1
    for rows in (ROWS, TABLE, pd.DataFrame(ROWS), datasets.Dataset(TABLE), ROWS[0]):
        with pytest.raises(ValueError, match=r"column 'userid' is missing.*did you mean 'user_id'"):
            pipe(rows, group_by="userid")
    with pytest.raises(ValueError, match=r"group_by='user_id'.*pass a list"):
        pipe(iter(ROWS), group_by="user_id")


def test_settings_of_the_pipeline_hold_for_every_call(checkpoint: Path) -> None:
    pipe = pipeline("ctr-prediction", model=str(checkpoint), batch_size=5, return_towers=True, group_by="user_id")
    assert list(pipe(ROWS[0])) == ["probability", "tabular_probability", "text_probability", "rank"]
    assert list(pipe(ROWS[0], return_towers=False)) == ["probability", "rank"]
    with batches_of(pipe) as sizes:
        pipe(ROWS[:12])
        pipe(ROWS[:12], batch_size=6)
    assert [rows for rows, _ in sizes] == [5, 5, 2, 6, 6]


class batches_of:
    """The rows and tokens of each batch that the model is given."""

    def __init__(self, pipe: CtrPredictionPipeline):
        self.sizes: list[tuple[int, int]] = []
        self.model = pipe.model

    def __enter__(self) -> list[tuple[int, int]]:
        self.hook = self.model.register_forward_pre_hook(
            lambda _, args, kwargs: self.sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        )
        return self.sizes

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def test_batches_are_of_like_length(pipe: CtrPredictionPipeline, processor: FlipProcessor) -> None:
    lengths = np.sort(processor.encode(ROWS, strict=False).lengths) + 2  # [CLS] and [SEP]
    with batches_of(pipe) as sizes:
        pipe(ROWS, batch_size=10)
    assert sizes == [(10, longest) for longest in lengths[9::10]]


def test_a_bar_only_where_it_takes_long(
    pipe: CtrPredictionPipeline, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers_logging.enable_progress_bar()  # whatever a test before has done
    monkeypatch.setattr(pipeline_flip, "SECONDS_WITHOUT_BAR", 1e9)
    pipe(ROWS, batch_size=1)
    assert capfd.readouterr().err == ""  # seven chunks, but soon done
    monkeypatch.setattr(pipeline_flip, "SECONDS_WITHOUT_BAR", 0.0)
    pipe(ROWS, batch_size=1)
    assert "120/120" in capfd.readouterr().err
    pipe(ROWS)
    assert capfd.readouterr().err == ""  # one chunk
    transformers_logging.disable_progress_bar()
    try:
        pipe(ROWS, batch_size=1)
    finally:
        transformers_logging.enable_progress_bar()
    assert capfd.readouterr().err == ""


# ---- models


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_the_models_alone(checkpoint: Path, expected: list[float], dtype: str) -> None:
    pipe = pipeline("ctr-prediction", model=str(checkpoint), dtype=dtype)
    assert pipe.dtype == getattr(torch, dtype)
    with torch.no_grad():
        logit = pipe.model(**pipe.processor(ROWS[:1])).logits
    assert logit.dtype == pipe.dtype
    assert pipe(ROWS[0])["probability"] == pytest.approx(1 / (1 + np.exp(-float(logit))), rel=1e-12)
    assert probabilities(pipe(ROWS, batch_size=16)) == pytest.approx(expected, abs=0.05)


def test_a_model_in_training_mode_scores_without_dropout(
    model: FlipForCTR, processor: FlipProcessor, expected: list[float]
) -> None:
    pipe = CtrPredictionPipeline(model.train(), processor)
    try:
        assert probabilities(pipe(ROWS)) == pytest.approx(expected, **FLOAT_NOISE)
    finally:
        model.eval()


@pytest.fixture(scope="module")
def tiny_t5(tokenizers: dict[str, PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer, folder = tokenizers["unigram"], tmp_path_factory.mktemp("tiny_t5")
    sizes = {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    start = {"decoder_start_token_id": tokenizer.pad_token_id, "pad_token_id": tokenizer.pad_token_id}
    set_seed(0)
    T5ForConditionalGeneration(T5Config(**sizes, **start)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_class", [CTRBertForCTR, MoRecForCTR, P5ForCTR])
def test_baselines_are_scored_too(model_class: Any, tiny_text_model: Path, tiny_t5: Path, tmp_path: Path) -> None:
    text_model = tiny_t5 if model_class is P5ForCTR else tiny_text_model
    processor = FlipProcessor.fit(ROWS[:100], FIELDS, AutoTokenizer.from_pretrained(text_model))
    settings = SIZES | ({} if model_class is P5ForCTR else {"item_fields": [2]})
    model = lively(model_class.from_text_pretrained(text_model, processor, **settings), scale=0.1)
    collate = FlipDataCollator(processor, model.inputs, model.config.item_fields)
    with torch.no_grad():
        each = [model(**collate(processor.encode([row]))).logits.item() for row in ROWS]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("ctr-prediction", model=str(tmp_path))
    assert type(pipe.model) is model_class
    assert max(each) - min(each) > 0.1
    scores = np.array(probabilities(pipe(ROWS, batch_size=7)))
    np.testing.assert_allclose(np.log(scores / (1 - scores)), each, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"config\.towers"):
        pipe(ROWS, return_towers=True)


def test_a_checkpoint_without_tokenizer_is_scored(processor: FlipProcessor, tmp_path: Path) -> None:
    model = lively(FlipForCTR(FlipConfig(towers="tabular", **SIZES, **processor.config_settings)))
    model.save_pretrained(tmp_path)
    processor.tabular_only().save_pretrained(tmp_path)
    pipe = pipeline("ctr-prediction", model=str(tmp_path))
    assert pipe.processor.tokenizer is None
    with torch.no_grad():
        logits = model(**pipe.processor(ROWS)).logits
    assert probabilities(pipe(ROWS, batch_size=7)) == pytest.approx(logits.sigmoid().tolist(), **FLOAT_NOISE)


def test_a_tabular_tower_alone_tokenises_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("ctr-prediction", model=str(checkpoint), model_kwargs={"towers": "tabular"})

    def tokenise(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("tokenised")

    monkeypatch.setattr(SentenceTokenizer, "tokenize", tokenise)
    pipe([UNKNOWN])
    with pytest.raises(AssertionError, match="tokenised"):
        pipeline("ctr-prediction", model=str(checkpoint))([UNKNOWN])


def test_a_saved_pipeline_is_a_whole_checkpoint(
    pipe: CtrPredictionPipeline, expected: list[float], tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path)
    again = pipeline("ctr-prediction", model=str(tmp_path))
    assert probabilities(again(ROWS)) == pytest.approx(expected, **FLOAT_NOISE)


def test_pipeline_says_nothing(
    checkpoint: Path, capfd: pytest.CaptureFixture[str], warnings_of_processor: list[str]
) -> None:
    transformers_logging.disable_progress_bar()
    try:
        pipe = pipeline("ctr-prediction", model=str(checkpoint), local_files_only=True)
        pipe(ROWS), list(pipe(iter(ROWS)))
    finally:
        transformers_logging.enable_progress_bar()
    output = capfd.readouterr()
    assert (output.out, output.err, warnings_of_processor) == ("", "", [])


# ---- errors


@pytest.mark.parametrize(
    "rows", ["text", b"bytes", 3, None, {1, 2}, np.zeros((2, 3)), pd.Series([1, 2]), ["text"], [[1, 2]]], ids=repr
)
def test_anything_else_is_refused_by_its_type(pipe: CtrPredictionPipeline, rows: Any) -> None:
    with pytest.raises(TypeError, match="rows must be a dict, a list of dicts, a DataFrame, an Arrow table"):
        pipe(rows)


def test_a_stream_of_anything_else_is_refused(pipe: CtrPredictionPipeline) -> None:
    with pytest.raises(TypeError, match="not <class 'list'> of dict, str"):
        next(pipe(iter([ROWS[0], "text"])))


@pytest.mark.parametrize(
    "rows",
    [TABLE.to_pydict(), dict(pd.DataFrame(ROWS)), datasets.DatasetDict(test=datasets.Dataset(TABLE))],
    ids=["lists", "Series", "DatasetDict"],
)
def test_columns_in_a_dict_are_refused(pipe: CtrPredictionPipeline, rows: Any) -> None:
    with pytest.raises(
        TypeError, match=r"a dict is one row, and .* holds a .*; pass columns as a DataFrame or an Arrow table"
    ):
        pipe(rows)


@pytest.mark.parametrize(
    "row", [{"genres": ["War"]}, {"genres": ["War", None]}, {"genres": []}, {"genres": ["War"], "clicked": [1, 0]}]
)
def test_a_row_of_lists_alone_is_a_row(row: dict[str, Any]) -> None:
    members = [["War", "Noir"], ["Noir"], ["Drama"]]
    processor = FlipProcessor.fit(pa.table({"genres": members}), ["genres"])
    model = FlipForCTR(FlipConfig.from_processor(processor, embedding_size=4, hidden_sizes=[4]))
    score = CtrPredictionPipeline(model, processor)
    assert score(row) == score([row])[0]


@pytest.mark.parametrize("rows", [{}, {"bogus": 1}, [{"bogus": 1}], pd.DataFrame({"bogus": [1]})], ids=repr)
def test_rows_without_any_field_are_refused(pipe: CtrPredictionPipeline, rows: Any) -> None:
    with pytest.raises(ValueError, match="the rows have none of the fields"):
        pipe(rows)


def test_settings_that_cannot_be_are_refused(pipe: CtrPredictionPipeline) -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        pipe(ROWS, batch_size=0)
    with pytest.raises(TypeError, match="return_tower"):
        pipe(ROWS, return_tower=True)


def test_a_processor_is_needed_and_must_be_the_models(
    model: FlipForCTR, processor: FlipProcessor, checkpoint: Path, wordpiece: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"pass processor=FlipProcessor\.from_pretrained"):
        CtrPredictionPipeline(model)
    with pytest.raises(ValueError, match=r"pass processor=FlipProcessor\.from_pretrained"):
        pipeline("ctr-prediction", model=model)
    assert pipeline("ctr-prediction", model=FlipForCTR.from_pretrained(checkpoint))(ROWS[0])  # where it was loaded from
    assert pipeline("ctr-prediction", model=model, processor=str(checkpoint))(ROWS[0])
    assert pipeline("ctr-prediction", model=model, processor=processor)(ROWS[0])
    model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"feature_vocab\.parquet is missing.*processor="):
        pipeline("ctr-prediction", model=str(tmp_path))
    with pytest.raises(ValueError, match=r"num_features is \d+, the model's \d+"):
        CtrPredictionPipeline(model, FlipProcessor.fit(ROWS[:5], FIELDS, wordpiece))
    with pytest.raises(ValueError, match="no tokenizer"):
        CtrPredictionPipeline(model, processor.tabular_only())


def test_a_model_that_predicts_no_clicks_is_refused(processor: FlipProcessor, tiny_text_model: Path) -> None:
    others = [
        FlipForPreTraining.from_text_pretrained(tiny_text_model, processor, **SIZES),
        BertForSequenceClassification.from_pretrained(tiny_text_model),
    ]
    for other in others:
        with pytest.raises(ValueError, match=f"{type(other).__name__} predicts no clicks"):
            CtrPredictionPipeline(other, processor)


@pytest.mark.parametrize("towers", ["both", "tabular", "text"])
def test_weights_that_were_never_trained_are_refused(
    processor: FlipProcessor, checkpoint: Path, tiny_text_model: Path, tmp_path: Path, towers: str
) -> None:
    FlipForPreTraining.from_text_pretrained(tiny_text_model, processor, **SIZES).save_pretrained(tmp_path / "aligned")
    processor.save_pretrained(tmp_path / "aligned")
    with pytest.raises(ValueError, match=r"holds no trained weights for the click heads.*Finetune it first"):
        pipeline("ctr-prediction", model=str(tmp_path / "aligned"), model_kwargs={"towers": towers})

    one = "text" if towers != "text" else "tabular"  # a checkpoint of one tower, asked for another
    FlipForCTR.from_pretrained(checkpoint, towers=one).save_pretrained(tmp_path / "one")
    processor.save_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match=r"trained weights for .*load only the towers that it has|no text tower"):
        pipeline("ctr-prediction", model=str(tmp_path / "one"), model_kwargs={"towers": towers})
    whole = FlipForCTR.from_pretrained(tmp_path / "one")
    assert whole.untrained_weights == ()
    assert probabilities(CtrPredictionPipeline(whole, processor)(ROWS))


def test_a_tensor_missing_from_the_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "cut")
    weights = load_file(tmp_path / "cut/model.safetensors")
    name = next(key for key in weights if key.endswith("text_classifier.weight"))
    del weights[name]
    save_file(weights, tmp_path / "cut/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "cut/model.sha256").unlink()
    with pytest.raises(ValueError, match=f"holds no trained weights for {name}"):
        pipeline("ctr-prediction", model=str(tmp_path / "cut"))
