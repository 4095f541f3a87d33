"""The collators: what is masked, what never is, and that it depends on the seed, the epoch and the row alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from modeling_flip import Field, FlipDataCollator, FlipDataset, FlipProcessor, PretrainingCollator
from modeling_flip.data_collator import IGNORE, FrequencySampler, uniforms

FIELDS = ["user_id", "gender", "age", "title", "genre"]
FAMILIES = ["wordpiece", "byte_level_bpe", "unigram"]
TITLES = [
    "Toy Story (1995)",
    "東京物語",
    "It's a Wonderful Life",
    "is",
    "gender is male.",
    "Amélie",
    "x",
    "a.b-c/d & e?",
]


def make_rows(size: int) -> dict[str, list[Any]]:
    """Rows of five fields whose sentences differ in length; no value is empty."""
    return {
        "user_id": [i % 5 for i in range(size)],
        "gender": [["female", "male", None][i % 3] for i in range(size)],
        "age": [20 + i % 4 for i in range(size)],
        "title": [TITLES[i % 8] for i in range(size)],
        "genre": [["Action", "Drama and romance"][i % 2] for i in range(size)],
        "click": [int(i % 3 == 0) for i in range(size)],
    }


@pytest.fixture(scope="module")
def processors(tokenizers: dict[str, PreTrainedTokenizerFast]) -> dict[str, FlipProcessor]:
    return {family: FlipProcessor.fit(make_rows(7), FIELDS, tokenizer) for family, tokenizer in tokenizers.items()}


@pytest.fixture(scope="module")
def datasets(processors: dict[str, FlipProcessor]) -> dict[str, FlipDataset]:
    """Sixteen rows; the last title of every eight was never seen."""
    return {family: processor.encode(make_rows(16)) for family, processor in processors.items()}


def collate(collator: PretrainingCollator, dataset: FlipDataset, indices: list[int]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in collator(dataset.__getitems__(indices)).items()}


def by_row(batches: list[dict[str, np.ndarray]], indices: list[int]) -> dict[int, dict[str, list[int]]]:
    """What each row got, padding aside."""
    rows: list[dict[str, list[int]]] = []
    for batch in batches:
        lengths = batch["attention_mask"].sum(1)
        for r in range(len(lengths)):
            text = {"input_ids", "masked_input_ids", "attention_mask", "mlm_labels"}
            rows.append({k: (v[r, : lengths[r]] if k in text else v[r]).tolist() for k, v in batch.items()})
    return dict(zip(indices, rows, strict=True))


def assert_masked_exactly(batch: dict[str, np.ndarray], name: str, labels: str, masked: np.ndarray, mask: int) -> None:
    """Where `masked`, the mask stands in the copy and the original in the labels; elsewhere the original and -100."""
    original = batch[name]
    np.testing.assert_array_equal(batch[f"masked_{name}"], np.where(masked, mask, original))
    np.testing.assert_array_equal(batch[labels], np.where(masked, original, IGNORE))


ratios = st.floats(0, 1, exclude_min=True)
seeds = st.integers(0, 2**32 - 1)

# ---- masking whole fields


@pytest.mark.parametrize("family", FAMILIES)
@given(text_ratio=ratios, tabular_ratio=ratios, seed=seeds, epoch=st.integers(0, 100))
def test_whole_fields_are_masked_and_nothing_else(
    processors: dict[str, FlipProcessor],
    datasets: dict[str, FlipDataset],
    family: str,
    text_ratio: float,
    tabular_ratio: float,
    seed: int,
    epoch: int,
) -> None:
    processor, dataset = processors[family], replace(datasets[family], epoch=epoch)
    assert processor.tokenizer is not None
    batch = collate(PretrainingCollator(processor, text_ratio, tabular_ratio, seed=seed), dataset, list(range(16)))

    masked_fields = batch["mtm_labels"] != IGNORE
    assert (masked_fields.sum(1) == max(1, round(tabular_ratio * 5))).all()
    mask_feature = processor.vocabulary.mask_feature_id
    assert_masked_exactly(batch, "feature_ids", "mtm_labels", masked_fields, mask_feature)

    # Names, "is", full stops, special tokens and padding belong to no field (-1).
    fields = processor.sentences(dataset)["token_field_ids"]
    masked_tokens = batch["mlm_labels"] != IGNORE
    chosen = [set(fields[r, masked_tokens[r]].tolist()) for r in range(16)]
    assert {len(c) for c in chosen} == {max(1, round(text_ratio * 5))}
    whole = np.array([np.isin(fields[r], list(chosen[r])) for r in range(16)]) & (fields >= 0)
    assert_masked_exactly(batch, "input_ids", "mlm_labels", whole, processor.tokenizer.mask_token_id)


@pytest.mark.parametrize(("ratio", "count"), [(0.001, 1), (0.15, 1), (0.3, 2), (0.5, 2), (0.7, 4), (0.9, 4), (1.0, 5)])
def test_how_many_of_five_fields_a_ratio_masks(
    processors: dict[str, FlipProcessor], datasets: dict[str, FlipDataset], ratio: float, count: int
) -> None:
    # 1.5 rounds to 2, 2.5 to 2, 3.5 to 4, 4.5 to 4
    batch = collate(PretrainingCollator(processors["wordpiece"], ratio, ratio), datasets["wordpiece"], list(range(16)))
    assert (batch["mtm_labels"] != IGNORE).sum(1).tolist() == [count] * 16


def test_a_value_is_masked_in_the_sentence_and_its_name_is_not(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"title": ["is title."]}, ["title"], wordpiece)
    batch = PretrainingCollator(processor)(processor.encode({"title": ["is title."]}))
    tokens = wordpiece.convert_ids_to_tokens(batch["masked_input_ids"][0])
    assert tokens == ["[CLS]", "title", "is", "[MASK]", "[MASK]", "[MASK]", ".", "[SEP]"]
    labels = batch["mlm_labels"][0]
    assert (labels != IGNORE).tolist() == [False] * 3 + [True] * 3 + [False] * 2
    assert wordpiece.convert_ids_to_tokens(labels[3:6]) == ["is", "title", "."]


def test_the_two_sides_choose_their_fields_evenly_and_independently(processors: dict[str, FlipProcessor]) -> None:
    processor = processors["wordpiece"]
    dataset = processor.encode(make_rows(2500))
    batch = collate(PretrainingCollator(processor, 0.2, 0.2), dataset, list(range(2500)))
    fields = processor.sentences(dataset)["token_field_ids"]
    in_text = np.where(batch["mlm_labels"] != IGNORE, fields, -1).max(1)
    in_table = (batch["mtm_labels"] != IGNORE).argmax(1)
    pairs = np.bincount(in_text * 5 + in_table, minlength=25)
    assert np.abs(pairs - 100).max() < 45  # 100 expected, standard deviation 10


# ---- masking tokens


@pytest.mark.parametrize("family", FAMILIES)
@given(ratio=ratios, seed=seeds)
def test_token_masking_keeps_labels_and_never_masks_special_tokens_or_padding(
    processors: dict[str, FlipProcessor], datasets: dict[str, FlipDataset], family: str, ratio: float, seed: int
) -> None:
    processor = processors[family]
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    collator = PretrainingCollator(processor, ratio, text_masking="token", seed=seed)
    batch = collate(collator, datasets[family], list(range(16)))
    masked = batch["mlm_labels"] != IGNORE
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert not masked[np.isin(batch["input_ids"], list(control))].any()
    assert not masked[batch["attention_mask"] == 0].any()
    np.testing.assert_array_equal(batch["mlm_labels"], np.where(masked, batch["input_ids"], IGNORE))
    np.testing.assert_array_equal(batch["masked_input_ids"][~masked], batch["input_ids"][~masked])
    assert np.isin(batch["masked_input_ids"], np.arange(len(tokenizer))).all()


def test_of_chosen_tokens_eight_in_ten_are_masked_one_is_random_and_one_stays(
    processors: dict[str, FlipProcessor],
) -> None:
    processor = processors["wordpiece"]
    assert processor.tokenizer is not None
    size = len(processor.tokenizer)
    dataset = processor.encode(make_rows(1000))
    batch = collate(PretrainingCollator(processor, 0.5, text_masking="token"), dataset, list(range(1000)))
    chosen = batch["mlm_labels"] != IGNORE
    before, after = batch["input_ids"][chosen], batch["masked_input_ids"][chosen]
    is_mask, stays = after == processor.tokenizer.mask_token_id, after == before
    assert len(after) > 10_000  # of which one percentage point is more than three standard deviations
    assert is_mask.mean() == pytest.approx(0.8, abs=0.013)
    assert stays.mean() == pytest.approx(0.1, abs=0.01)
    drawn = after[~is_mask & ~stays]
    assert drawn.mean() == pytest.approx(size / 2, rel=0.06)  # uniform over the tokens
    assert len(np.unique(drawn)) > 0.9 * size
    # What a token becomes has nothing to do with where it stands.
    field = processor.sentences(dataset)["token_field_ids"][chosen]
    assert [is_mask[field == f].mean() for f in range(5)] == pytest.approx([0.8] * 5, abs=0.05)


def test_token_masking_takes_its_share_of_all_words_whatever_their_field(processors: dict[str, FlipProcessor]) -> None:
    processor = processors["wordpiece"]
    assert processor.tokenizer is not None
    dataset = processor.encode(make_rows(1000))
    batch = collate(PretrainingCollator(processor, 0.3, text_masking="token"), dataset, list(range(1000)))
    fields = processor.sentences(dataset)["token_field_ids"]
    words = ~np.isin(batch["input_ids"], processor.tokenizer.all_special_ids)
    masked = batch["mlm_labels"] != IGNORE
    for field in range(-1, 5):  # -1: names, "is" and full stops
        assert masked[words & (fields == field)].mean() == pytest.approx(0.3, abs=0.06)


# ---- what the choices depend on


@pytest.mark.parametrize("text_masking", ["field", "token"])
@given(order=st.permutations(range(16)), seed=seeds)
def test_what_a_row_gets_does_not_depend_on_its_batch(
    processors: dict[str, FlipProcessor],
    datasets: dict[str, FlipDataset],
    text_masking: str,
    order: list[int],
    seed: int,
) -> None:
    collator = PretrainingCollator(processors["wordpiece"], 0.4, 0.4, text_masking=text_masking, seed=seed)
    dataset, rows = datasets["wordpiece"], list(range(16))
    whole = by_row([collate(collator, dataset, rows)], rows)
    halves = by_row([collate(collator, dataset, rows[:8]), collate(collator, dataset, rows[8:])], rows)
    assert whole == halves == by_row([collate(collator, dataset, order)], order)


@pytest.mark.parametrize("text_masking", ["field", "token"])
@pytest.mark.parametrize("change", ["epoch", "seed"])
def test_another_epoch_or_seed_chooses_anew(
    processors: dict[str, FlipProcessor], datasets: dict[str, FlipDataset], text_masking: str, change: str
) -> None:
    dataset, rows = replace(datasets["wordpiece"]), list(range(16))
    collator = PretrainingCollator(processors["wordpiece"], 0.3, 0.3, text_masking=text_masking)
    first = collate(collator, dataset, rows)
    if change == "epoch":
        dataset.epoch = 1
    else:
        collator.seed = 1
    second = collate(collator, dataset, rows)
    for key in ("mlm_labels", "mtm_labels", "noise_feature_ids"):
        assert (first[key] != second[key]).any(), key
    for key in ("input_ids", "feature_ids"):
        assert (first[key] == second[key]).all(), key


# ---- noise


def draw_noise(processor: FlipProcessor, rows: dict[str, list[Any]], copies: int) -> np.ndarray:
    """(N, 1, 25) noise features of the rows, repeated; of two fields one is masked."""
    dataset = processor.encode({field: values * copies for field, values in rows.items()})
    return PretrainingCollator(processor)(dataset)["noise_feature_ids"].numpy()


def test_noise_follows_the_training_frequency(wordpiece: PreTrainedTokenizerFast) -> None:
    rows: dict[str, list[Any]] = {"gender": ["f"] * 6 + ["m"] * 3 + [None], "city": ["x"] * 5 + ["y"] * 4 + ["rare"]}
    processor = FlipProcessor.fit(rows, ["gender", "city"], wordpiece, min_count=2)
    # gender: one null, f, m; city: "rare" is unknown, x, y; <MASK> never
    assert processor.vocabulary.feature_counts.tolist() == [1, 6, 3, 1, 5, 4, 0]
    drawn = draw_noise(processor, rows, copies=200)
    assert drawn.shape == (2000, 1, 25)
    share = np.bincount(drawn.ravel(), minlength=7) / drawn.size
    assert share[:6] == pytest.approx(np.array([1, 6, 3, 1, 5, 4]) / 20, abs=0.012)  # six standard deviations
    assert share[6] == 0


def test_noise_is_never_a_feature_that_training_did_not_see(wordpiece: PreTrainedTokenizerFast) -> None:
    rows: dict[str, list[Any]] = {"gender": ["f", "m"], "city": ["x", "x"]}
    processor = FlipProcessor.fit(rows, ["gender", "city"], wordpiece)
    # unknown, f, m, unknown, x, <MASK>
    assert set(draw_noise(processor, rows, copies=100).ravel().tolist()) == {1, 2, 4}


@pytest.mark.parametrize(
    "counts", [[1], [0, 3, 0], [1, 1, 1], [5, 0, 0, 1, 2, 0, 900, 0], [2**30, *range(1000), 0], [1] * 4097]
)
def test_a_draw_is_the_first_whose_cumulative_share_is_above_the_uniform(counts: list[int]) -> None:
    shares = np.cumsum(counts) / sum(counts)
    edges = np.concatenate([shares, np.nextafter(shares, 0), np.arange(64) / 64])  # between two, and on the guide's own
    edges = edges[edges < 1]
    uniforms = np.concatenate([np.random.default_rng(0).random(2000), edges, [0, 1 - 2**-53]]).reshape(1, -1)
    drawn = FrequencySampler(np.array(counts))(uniforms)
    assert drawn.dtype == np.int64
    assert (drawn == np.searchsorted(shares, uniforms, side="right")).all()
    assert (np.array(counts)[drawn] > 0).all()


def test_each_masked_field_has_noise_of_its_own(
    processors: dict[str, FlipProcessor], datasets: dict[str, FlipDataset]
) -> None:
    collator = PretrainingCollator(processors["wordpiece"], tabular_mask_ratio=0.6, num_noise_features=50)
    noise = collate(collator, datasets["wordpiece"], list(range(16)))["noise_feature_ids"]
    assert noise.shape == (16, 3, 50)
    flat = noise.reshape(48, 50)
    assert len(np.unique(flat, axis=0)) == 48  # not one draw for a row, or for a batch


# ---- random numbers


@pytest.mark.parametrize("first_row", [0, 2**40])
def test_uniforms_are_uniform(first_row: int) -> None:
    drawn = uniforms(0, 0, 0, first_row + np.arange(4000), 25)
    assert drawn.shape == (4000, 25)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    tenths = np.bincount((drawn * 10).astype(int).ravel(), minlength=10) / drawn.size
    assert tenths == pytest.approx(np.full(10, 0.1), abs=0.006)  # six standard deviations


def test_uniforms_of_other_rows_columns_streams_epochs_and_seeds_are_uncorrelated() -> None:
    rows = np.arange(4000)
    drawn = uniforms(0, 0, 0, rows, 25)
    pairs = {
        "rows": (drawn[1:], drawn[:-1]),
        "columns": (drawn[:, 1:], drawn[:, :-1]),
        "stream": (drawn, uniforms(0, 0, 1, rows, 25)),
        "epoch": (drawn, uniforms(0, 1, 0, rows, 25)),
        "seed": (drawn, uniforms(1, 0, 0, rows, 25)),
    }
    correlation = {name: float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for name, (a, b) in pairs.items()}
    assert correlation == pytest.approx(dict.fromkeys(pairs, 0.0), abs=0.02)  # six standard deviations


# ---- arguments, shapes


@pytest.mark.parametrize("name", ["text_mask_ratio", "tabular_mask_ratio"])
@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_a_ratio_outside_zero_to_one_is_refused(processors: dict[str, FlipProcessor], name: str, ratio: float) -> None:
    arguments: dict[str, Any] = {name: ratio}
    with pytest.raises(ValueError, match=f"{name} is {ratio}"):
        PretrainingCollator(processors["wordpiece"], **arguments)


def test_another_text_masking_is_refused(processors: dict[str, FlipProcessor]) -> None:
    with pytest.raises(ValueError, match="text_masking is 'word'; it must be 'field' or 'token'"):
        PretrainingCollator(processors["wordpiece"], text_masking="word")


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("text_masking", ["field", "token"])
def test_batches_of_no_row_and_of_one(
    processors: dict[str, FlipProcessor], datasets: dict[str, FlipDataset], text_masking: str, size: int
) -> None:
    collator = PretrainingCollator(processors["wordpiece"], num_noise_features=7, text_masking=text_masking)
    batch = collate(collator, datasets["wordpiece"], list(range(size)))
    assert batch["masked_feature_ids"].shape == batch["mtm_labels"].shape == (size, 5)
    assert batch["noise_feature_ids"].shape == (size, 1, 7)  # one field of five is masked
    two = PretrainingCollator(processors["wordpiece"], tabular_mask_ratio=0.4, num_noise_features=7)
    assert collate(two, datasets["wordpiece"], list(range(size)))["noise_feature_ids"].shape == (size, 2, 7)
    assert batch["masked_input_ids"].shape == batch["mlm_labels"].shape == batch["input_ids"].shape
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize(
    ("inputs", "keys"),
    [
        (("feature_ids", "sentence"), {"feature_ids", "input_ids", "attention_mask", "labels"}),
        (("feature_ids",), {"feature_ids", "labels"}),
        (("sentence",), {"input_ids", "attention_mask", "labels"}),
    ],
)
def test_a_batch_holds_what_its_model_reads(
    processors: dict[str, FlipProcessor], inputs: tuple[str, ...], keys: set[str]
) -> None:
    processor = processors["wordpiece"]
    rows = make_rows(6)
    batch = FlipDataCollator(processor, inputs)(processor.encode(rows, "click").__getitems__([3, 1]))
    assert set(batch) == keys
    expected = processor({field: [rows[field][3], rows[field][1]] for field in FIELDS})
    for key in keys - {"labels"}:
        assert torch.equal(batch[key], expected[key]), key
    assert torch.equal(batch["labels"], torch.tensor([1.0, 0.0]))


def test_rows_without_labels_give_a_batch_without(processors: dict[str, FlipProcessor]) -> None:
    processor = processors["wordpiece"]
    assert "labels" not in FlipDataCollator(processor)(processor.encode(make_rows(2)))


# ---- fields of every kind

KINDS = [
    Field(name="movie", type="integer"),
    Field(name="title", kind="text"),
    Field(name="price", kind="numeric", type="number"),
    Field(name="tags", kind="list", separator="|"),
    Field(name="history", kind="list", type="integer", features_of="movie"),
]
KIND_ROWS: list[dict[str, Any]] = [
    {"movie": 1, "title": "Toy Story", "price": 2.5, "tags": "a|b|c", "history": [2, 3]},
    {"movie": 2, "title": "Heat", "price": 4, "tags": "b", "history": []},
    {"movie": 3, "title": None, "price": None, "tags": None, "history": [1, 1, 2, 99]},
]
# movie: unknown 0, 1 2 3 99 in the order of the rows; price: unknown 5, 6, 7; tags: unknown 8, a 9, b 10, c 11; <MASK> 12.
# Title is in the sentence alone; the history has the movies' features.
FEATURES = [[1, 6, 9, 2], [2, 7, 10, 0], [3, 5, 8, 1]]
LISTS = [
    [[9, 10, 11, -1], [2, 3, -1, -1]],
    [[10, -1, -1, -1], [0, -1, -1, -1]],
    [[8, -1, -1, -1], [1, 1, 2, 4]],
]
MASK = 12


@pytest.fixture(scope="module")
def kinds(wordpiece: PreTrainedTokenizerFast) -> FlipProcessor:
    return FlipProcessor.fit(KIND_ROWS, KINDS, wordpiece)


def test_numbers_and_lists_are_masked_by_hand(kinds: FlipProcessor) -> None:
    batch = collate(
        PretrainingCollator(kinds, tabular_mask_ratio=1.0, num_noise_features=5), kinds.encode(KIND_ROWS), [0, 1, 2]
    )
    assert kinds.vocabulary.values["movie"].to_pylist() == ["1", "2", "3", "99"]
    assert batch["feature_ids"].tolist() == FEATURES
    assert batch["list_feature_ids"].tolist() == LISTS
    assert batch["masked_feature_ids"].tolist() == [[MASK] * 4] * 3
    assert batch["masked_list_feature_ids"].tolist() == [[[MASK, -1, -1, -1]] * 2] * 3
    assert batch["noise_feature_ids"].shape == (3, 4, 5)
    labels = batch["mtm_labels"]
    assert labels[:, :2].tolist() == [row[:2] for row in FEATURES]  # the movie and the bucket of the price
    for row, lists in zip(labels[:, 2:].tolist(), LISTS, strict=True):
        assert all(label in members and label >= 0 for label, members in zip(row, lists, strict=True))


@given(ratio=ratios, seed=seeds, epoch=st.integers(0, 9))
def test_a_list_is_masked_where_its_field_is(kinds: FlipProcessor, ratio: float, seed: int, epoch: int) -> None:
    dataset = replace(kinds.encode(KIND_ROWS * 3), epoch=epoch)
    batch = collate(PretrainingCollator(kinds, tabular_mask_ratio=ratio, seed=seed), dataset, list(range(9)))
    masked = batch["mtm_labels"] != IGNORE
    count = max(1, round(ratio * 4))  # four fields have a table side
    assert (masked.sum(1) == count).all()
    assert batch["noise_feature_ids"].shape == (9, count, 25)
    np.testing.assert_array_equal(batch["masked_feature_ids"], np.where(masked, MASK, FEATURES * 3))
    of_mask = np.array([MASK, -1, -1, -1])
    expected = np.where(masked[:, 2:, None], of_mask, np.array(LISTS * 3))
    np.testing.assert_array_equal(batch["masked_list_feature_ids"], expected)
    is_member = (batch["mtm_labels"][:, 2:, None] == np.array(LISTS * 3)).any(2)
    np.testing.assert_array_equal(is_member, masked[:, 2:])


def test_every_member_of_a_list_is_drawn_about_equally_often(kinds: FlipProcessor) -> None:
    dataset = kinds.encode(KIND_ROWS[:1] * 3000)
    labels = collate(PretrainingCollator(kinds, tabular_mask_ratio=1.0), dataset, list(range(3000)))["mtm_labels"]
    for column, members in ((2, [9, 10, 11]), (3, [2, 3])):
        share = np.bincount(labels[:, column], minlength=13)[members] / 3000
        assert share == pytest.approx(np.full(len(members), 1 / len(members)), abs=0.06)  # six standard deviations
    pairs = np.unique(labels[:, 2:], axis=0, return_counts=True)[1]
    assert pairs == pytest.approx(np.full(6, 500), abs=130)  # the two lists draw for themselves


@given(order=st.permutations(range(12)), seed=seeds)
def test_the_drawn_member_does_not_depend_on_the_batch(kinds: FlipProcessor, order: list[int], seed: int) -> None:
    dataset = kinds.encode(KIND_ROWS * 4)
    collator = PretrainingCollator(kinds, tabular_mask_ratio=0.8, seed=seed)
    whole = collate(collator, dataset, list(range(12)))["mtm_labels"]
    np.testing.assert_array_equal(collate(collator, dataset, order)["mtm_labels"], whole[order])
    for row in range(12):  # alone its lists are padded to another width
        np.testing.assert_array_equal(collate(collator, dataset, [row])["mtm_labels"][0], whole[row])
    # In a file of other rows it is the same row still, if it has its number.
    other = replace(kinds.encode(KIND_ROWS[:1]), row_ids=np.array([9]))
    np.testing.assert_array_equal(collate(collator, other, [0])["mtm_labels"][0], whole[9])


@pytest.mark.parametrize("change", ["epoch", "seed"])
def test_another_epoch_or_seed_draws_another_member(kinds: FlipProcessor, change: str) -> None:
    dataset = kinds.encode(KIND_ROWS[:1] * 40)
    collator = PretrainingCollator(kinds, tabular_mask_ratio=1.0)
    first = collate(collator, dataset, list(range(40)))["mtm_labels"]
    if change == "epoch":
        dataset.epoch = 1
    else:
        collator.seed = 1
    second = collate(collator, dataset, list(range(40)))["mtm_labels"]
    assert (first[:, :2] == second[:, :2]).all()
    assert (first[:, 2] != second[:, 2]).any()
    assert (first[:, 3] != second[:, 3]).any()


def test_text_is_masked_in_the_sentence_and_counts_there_alone(kinds: FlipProcessor) -> None:
    dataset = kinds.encode(KIND_ROWS[:1] * 300)
    batch = collate(PretrainingCollator(kinds, text_mask_ratio=0.2, tabular_mask_ratio=0.2), dataset, list(range(300)))
    fields = kinds.sentences(dataset)["token_field_ids"]
    chosen = np.where(batch["mlm_labels"] != IGNORE, fields, -1).max(1)
    assert set(chosen.tolist()) == {0, 1, 2, 3, 4}  # the title too
    in_table = (batch["mtm_labels"] != IGNORE).argmax(1)
    assert (batch["mtm_labels"] != IGNORE).sum(1).tolist() == [1] * 300
    assert set(in_table.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("text_masking", ["field", "token"])
@pytest.mark.parametrize("size", [0, 1])
def test_batches_of_no_row_and_of_one_with_lists(kinds: FlipProcessor, text_masking: str, size: int) -> None:
    collator = PretrainingCollator(kinds, tabular_mask_ratio=0.5, num_noise_features=7, text_masking=text_masking)
    batch = collate(collator, kinds.encode(KIND_ROWS), list(range(size)))
    assert batch["feature_ids"].shape == batch["mtm_labels"].shape == (size, 4)
    assert batch["list_feature_ids"].shape == batch["masked_list_feature_ids"].shape
    assert batch["list_feature_ids"].shape[:2] == (size, 2)
    assert batch["noise_feature_ids"].shape == (size, 2, 7)
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int64)}


def test_a_table_of_text_alone_has_nothing_to_mask_in_the_table(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"title": ["Toy Story"]}, [Field(name="title", kind="text")], wordpiece)
    for size in (1, 0):
        batch = PretrainingCollator(processor, num_noise_features=7)(processor.encode({"title": ["Heat"] * size}))
        assert batch["feature_ids"].shape == batch["mtm_labels"].shape == (size, 0)
        assert batch["noise_feature_ids"].shape == (size, 0, 7)


def test_batches_hold_lists_where_there_are_some(kinds: FlipProcessor) -> None:
    batch = FlipDataCollator(kinds, ("feature_ids",))(kinds.encode(KIND_ROWS))
    assert {key: value.tolist() for key, value in batch.items()} == {"feature_ids": FEATURES, "list_feature_ids": LISTS}


def test_user_and_item_sentences_of_fields_of_every_kind(
    kinds: FlipProcessor, wordpiece: PreTrainedTokenizerFast
) -> None:
    rows = [{**row, "title": "Heat", "movie": 2} for row in KIND_ROWS]
    batch = FlipDataCollator(kinds, ("user_sentence", "item_sentence"), [0, 1])(kinds.encode(rows))
    items = wordpiece.batch_decode(batch["item_input_ids"], skip_special_tokens=True)
    assert items == ["movie is 2. title is heat."]
    users = wordpiece.batch_decode(batch["user_input_ids"][batch["user_index"]], skip_special_tokens=True)
    assert users == [
        "price is 2. 5. tags is a, b, c. history is 2, 3.",
        "price is 4. tags is b. history is unknown.",
        "price is unknown. tags is unknown. history is 1, 1, 2, 99.",
    ]


# ---- sentences of the user and of the item

MOVIE_FIELDS = ["user_id", "movie_id", "gender", "title"]
MOVIES, USERS = [1, 3], [0, 2]


def make_movie_rows() -> dict[str, list[Any]]:
    """Users and movies come back; one movie's title is missing, one was never seen in training."""
    titles = {1: "Toy Story (1995)", 2: "東京物語", 3: None, 4: "never seen"}
    genders = {7: "female", 8: None, 9: "male"}
    pairs = [(9, 2), (7, 1), (8, 1), (7, 2), (8, 3), (9, 1), (7, 4), (9, 4)]
    return {
        "user_id": [user for user, _ in pairs],
        "movie_id": [movie for _, movie in pairs],
        "gender": [genders[user] for user, _ in pairs],
        "title": [titles[movie] for _, movie in pairs],
    }


@pytest.fixture(scope="module")
def movie_processors(tokenizers: dict[str, PreTrainedTokenizerFast]) -> dict[str, FlipProcessor]:
    seen = {field: values[:6] for field, values in make_movie_rows().items()}
    return {family: FlipProcessor.fit(seen, MOVIE_FIELDS, tokenizer) for family, tokenizer in tokenizers.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_user_and_each_item_of_a_batch_has_one_sentence_and_rows_point_to_theirs(
    movie_processors: dict[str, FlipProcessor], family: str
) -> None:
    processor = movie_processors[family]
    dataset = processor.encode(make_movie_rows())
    batch = FlipDataCollator(processor, ("user_sentence", "item_sentence"), MOVIES)(dataset)
    assert set(batch) == {
        f"{side}_{key}" for side in ("user", "item") for key in ("input_ids", "attention_mask", "index")
    }
    for side, fields, count in (("user", USERS, 3), ("item", MOVIES, 4)):
        sentences = processor.sentences(dataset, fields)
        assert batch[f"{side}_input_ids"].shape == batch[f"{side}_attention_mask"].shape
        assert len(batch[f"{side}_input_ids"]) == count
        assert len(np.unique(batch[f"{side}_input_ids"], axis=0)) == count
        index = batch[f"{side}_index"]
        for key in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(batch[f"{side}_{key}"][index], sentences[key])


def test_the_sentence_of_an_item_is_its_fields_as_the_tokenizer_reads_them(
    movie_processors: dict[str, FlipProcessor], wordpiece: PreTrainedTokenizerFast
) -> None:
    processor, rows = movie_processors["wordpiece"], make_movie_rows()
    batch = FlipDataCollator(processor, ("user_sentence", "item_sentence"), MOVIES)(processor.encode(rows))
    texts = {
        "item": [
            f"movie id is {movie}. title is {title or 'unknown'}."
            for movie, title in zip(rows["movie_id"], rows["title"], strict=True)
        ],
        "user": [
            f"user id is {user}. gender is {gender or 'unknown'}."
            for user, gender in zip(rows["user_id"], rows["gender"], strict=True)
        ],
    }
    for side, expected in texts.items():
        encoded = wordpiece(expected, padding=True, return_tensors="pt")
        index = batch[f"{side}_index"]
        assert torch.equal(batch[f"{side}_input_ids"][index], encoded["input_ids"])
        assert torch.equal(batch[f"{side}_attention_mask"][index], encoded["attention_mask"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [MOVIES, USERS, [0], [1], [3], [0, 1, 2, 3]], ids=str)
def test_gathered_sentences_of_some_fields_equal_tokenised_ones(
    movie_processors: dict[str, FlipProcessor], family: str, fields: list[int]
) -> None:
    processor = movie_processors[family]
    dataset = processor.encode(make_movie_rows())
    assert dataset.token_tables is not None
    gathered = processor.sentences(dataset, fields)
    tokenised = processor.sentences(replace(dataset, token_tables=None), fields)
    assert gathered.keys() == tokenised.keys()
    for key, value in tokenised.items():
        np.testing.assert_array_equal(gathered[key], value, err_msg=key)
    assert set(np.unique(gathered["token_field_ids"])) == {-1, *fields}
    if fields == [0, 1, 2, 3]:
        np.testing.assert_array_equal(gathered["input_ids"], processor.sentences(dataset)["input_ids"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [[3, 1], [2, 0]], ids=str)
def test_the_order_in_which_fields_are_named_changes_no_sentence(
    movie_processors: dict[str, FlipProcessor], family: str, fields: list[int]
) -> None:
    processor = movie_processors[family]
    dataset = processor.encode(make_movie_rows())
    for rows in (dataset, replace(dataset, token_tables=None)):
        expected = processor.sentences(rows, sorted(fields))
        for key, value in processor.sentences(rows, fields).items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_side_is_made_only_where_a_model_reads_it(movie_processors: dict[str, FlipProcessor], side: str) -> None:
    processor = movie_processors["wordpiece"]
    dataset = processor.encode(make_movie_rows())
    batch = FlipDataCollator(processor, ("feature_ids", f"{side}_sentence"), MOVIES)(dataset)
    assert set(batch) == {"feature_ids", f"{side}_input_ids", f"{side}_attention_mask", f"{side}_index"}
    assert torch.equal(batch["feature_ids"], torch.from_numpy(dataset.feature_ids()))
    one = FlipDataCollator(processor, (f"{side}_sentence",), MOVIES)(dataset[3])
    assert one[f"{side}_index"].tolist() == [0]
    assert one[f"{side}_input_ids"].shape[0] == 1


def test_labels_stand_first_because_trainer_counts_the_rows_of_the_first_tensor(
    processors: dict[str, FlipProcessor],
) -> None:
    processor = processors["wordpiece"]
    dataset = processor.encode(make_rows(16), "click")
    batch = FlipDataCollator(processor, ("item_sentence", "user_sentence"), [3, 4])(dataset)
    assert next(iter(batch)) == "labels"
    assert len(batch["item_input_ids"]) < 16
    assert {value.dtype for name, value in batch.items() if name != "labels"} == {torch.int64}
