"""A generated click log that needs no download: small, honest, and with something to learn on both sides.

    python -m data_scripts.demo --output_dir DIR [--push_to_hub OWNER/NAME]

Words carry meaning: an occupation and two interests say which topics a user leans to, and the three words of a title
say how inviting an item is and which topics it is about. IDs carry more: each user departs from what their words say,
and each item has a quality that its title does not tell. New items keep coming out, so part of the test rows show items
that no earlier row has. The label is drawn last, from the probability that all of this gives.

Seed 0: 16,800 train, 2,400 validation and 4,800 test rows, 43 % clicks, 23 % of the test rows with an item of neither
train nor validation. Test AUC of predictors that know the generator (`oracle_auc` says what each of them knows):

    knows         all    seen   unseen items
    everything   0.858  0.847  0.893
    the words    0.756  0.740  0.806
    the IDs      0.808  0.847  0.603
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict

if __name__ == "__main__":  # run as a file, python looks for modules in the file's folder, not in the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data_scripts import registry
from data_scripts.publishing import dataset_card, dataset_id, push, write
from data_scripts.text_model import write as write_text_model

_USERS = 300
_ITEMS = 400
_ROWS = 24_000  # rounds in which every user comes once, so that every user is in every split
_VALIDATION_FROM, _TEST_FROM = 0.7, 0.8  # shares of the rows, which are in time order
_SHELF_LIFE = 0.5  # share of the whole time in which an item is shown, from its release on

_COLUMNS = ["user_id", "age", "occupation", "interest", "item_id", "title", "category", "label"]

# Words of titles, occupations, interests. The topics lie on a circle in this order: neighbours please the same people.
_TOPICS = [
    ("Harbor Tide Lighthouse Reef Anchor Island", "sailor fisher", "sailing diving fishing"),
    ("Kitchen Recipe Bakery Feast Spice Orchard", "chef farmer", "baking gardening cooking"),
    ("Wedding Valentine Sweetheart Kiss Bouquet Bride", "florist hairdresser", "poetry dancing dating"),
    ("Melody Concert Guitar Chorus Rhythm Opera", "musician actor", "singing drumming jazz"),
    ("Empire Castle Dynasty Knight Crown Relic", "historian librarian", "museums genealogy antiques"),
    ("Detective Alibi Clue Suspect Robbery Cipher", "lawyer programmer", "chess puzzles thrillers"),
    ("Orbit Comet Nebula Rocket Planet Eclipse", "pilot engineer", "astronomy rocketry physics"),
    ("Marathon Champion Stadium Goal Sprint League", "coach nurse", "running football cycling"),
]
# First words of titles, from the most inviting to the least.
_TONES = (
    "Brilliant Dazzling Gripping Joyful Clever Tender Bold Gentle Quiet Plain Distant Slow Gloomy Bitter Dreary Dull"
)
_CATEGORIES = ["film", "novel", "series", "podcast", "game"]
_AGES = ["under 18", "18-24", "25-34", "35-49", "50-64", "65 or older"]


def load(seed: int = 0) -> DatasetDict:
    """Return the splits train, validation and test, in time order; the same seed gives the same rows.

    Columns: user_id, age, occupation, interest, item_id, title, category (all strings) and label (int64, 0 or 1).
    """
    rows = _generate(seed)
    return DatasetDict(
        {
            split: Dataset.from_dict(rows.loc[rows["split"] == split, _COLUMNS].to_dict("list"))
            for split in ("train", "validation", "test")
        }
    )


def oracle_auc(seed: int = 0) -> dict[str, float]:
    """Return the test AUC of three predictors that know the generator, over all test rows and over two parts of them.

    "bayes" knows everything but the coin flip. "words" knows what the words mean, and nothing about this user or this
    item beyond it. "ids" knows everything about users and about items of earlier rows, and of other items only the
    category. What a predictor does not know is at its mean. Keys: "bayes", "words", "ids", for all test rows, and each
    with "_seen" or "_unseen", for rows whose item is or is not in train or validation.

    Only "bayes" bounds every model: one that reads whole titles can also come to know the items behind them.
    """
    rows = _generate(seed)
    test = rows[rows["split"] == "test"]
    parts = {"": test, "_seen": test[test["seen"]], "_unseen": test[~test["seen"]]}
    return {
        oracle + suffix: _auc(part["label"].to_numpy(), part[oracle].to_numpy())
        for suffix, part in parts.items()
        for oracle in ("bayes", "words", "ids")
    }


def text_model(output_dir: str | Path, dataset: DatasetDict) -> Path:
    """Write a tiny untrained text tower for the demo, with a vocabulary of its training sentences, as a checkpoint folder.

    `AutoTokenizer` and `AutoModel` load it; the same dataset gives the same bytes.
    """
    names = [name for name in dataset["train"].column_names if name != "label"]
    sentences = [
        " ".join(f"{name.replace('_', ' ')} is {row[name]}." for name in names) for row in dataset["train"].to_list()
    ]
    return write_text_model(output_dir, sentences, max_length=128)


def _generate(seed: int) -> pd.DataFrame:
    """Return all rows in time order.

    Beside the public columns: "split", "seen" (is the item in train or validation?), and the log-odds of a click as the
    oracles see them, "bayes", "words" and "ids".
    """
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * np.arange(len(_TOPICS)) / len(_TOPICS)
    topics = np.stack([np.cos(angle), np.sin(angle)], axis=1)  # (topics, 2)
    title_words, title_topic = _words(0)
    occupations, occupation_topic = _words(1)
    interests, interest_topic = _words(2)
    tones = _TONES.split()

    # Users: a taste in the plane of the topics, and how easily they click: what the words tell, then the truth.
    age = rng.integers(len(_AGES), size=_USERS)
    occupation = rng.integers(len(occupations), size=_USERS)
    interest = np.stack([rng.choice(len(interests), size=2, replace=False) for _ in range(_USERS)])  # (users, 2)
    told_taste = 0.8 * topics[occupation_topic[occupation]] + 0.6 * topics[interest_topic[interest]].sum(axis=1)
    taste = told_taste + rng.normal(size=(_USERS, 2))  # (users, 2)
    told_ease = np.linspace(-0.3, 0.3, len(_AGES))[age]
    ease = told_ease + 0.5 * rng.normal(size=_USERS)

    # Items, in order of release: a place in the same plane, and an appeal. No two titles are equal.
    steps = np.abs(title_topic[:, None] - title_topic)
    alike = np.minimum(steps, len(_TOPICS) - steps) <= 1
    pairs = np.argwhere(alike & ~np.eye(len(title_words), dtype=bool))  # (pairs, 2)
    tone, pair = np.divmod(rng.choice(len(tones) * len(pairs), size=_ITEMS, replace=False), len(pairs))
    place = topics[title_topic[pairs[pair]]].mean(axis=1)  # (items, 2)
    category = rng.integers(len(_CATEGORIES), size=_ITEMS)
    category_appeal = np.linspace(-0.2, 0.2, len(_CATEGORIES))[category]
    told_appeal = category_appeal + np.linspace(2, -2, len(tones))[tone]
    appeal = told_appeal + 0.9 * rng.normal(size=_ITEMS)
    release = np.sort(rng.uniform(-_SHELF_LIFE, 1, size=_ITEMS))

    # Rows: at each moment one user is shown one item of those on the shelf.
    time = np.arange(_ROWS) / _ROWS
    user = np.concatenate([rng.permutation(_USERS) for _ in range(_ROWS // _USERS)])
    oldest, newest = np.searchsorted(release, time - _SHELF_LIFE), np.searchsorted(release, time)
    item = rng.integers(oldest, newest)
    split = np.select([time < _VALIDATION_FROM, time < _TEST_FROM], ["train", "validation"], "test")
    seen = np.isin(item, item[split != "test"])

    base = -0.4  # brings the click rate to about 0.44
    bayes = base + ease[user] + (taste[user] * place[item]).sum(axis=1) + appeal[item]
    words = base + told_ease[user] + (told_taste[user] * place[item]).sum(axis=1) + told_appeal[item]
    ids = np.where(seen, bayes, base + ease[user] + category_appeal[item])
    label = (rng.random(_ROWS) < 1 / (1 + np.exp(-bayes))).astype(np.int64)

    users = pd.DataFrame(
        {
            "user_id": np.arange(1, _USERS + 1).astype(str),
            "age": [_AGES[index] for index in age],
            "occupation": [occupations[index] for index in occupation],
            "interest": [f"{interests[first]} and {interests[second]}" for first, second in interest],
        }
    )
    items = pd.DataFrame(
        {
            "item_id": np.arange(1, _ITEMS + 1).astype(str),
            "title": [
                f"{tones[of_tone]} {title_words[first]} {title_words[second]}"
                for of_tone, (first, second) in zip(tone, pairs[pair], strict=True)
            ],
            "category": [_CATEGORIES[index] for index in category],
        }
    )
    shown = [users.iloc[user].reset_index(drop=True), items.iloc[item].reset_index(drop=True)]
    return pd.concat(shown, axis=1).assign(label=label, split=split, seen=seen, bayes=bayes, words=words, ids=ids)


def _words(kind: int) -> tuple[list[str], np.ndarray]:
    """Return the words of one kind (0 titles, 1 occupations, 2 interests), and the topic's number of each."""
    found = [(word, number) for number, topic in enumerate(_TOPICS) for word in topic[kind].split()]
    return [word for word, _ in found], np.array([number for _, number in found])


def _auc(label: np.ndarray, score: np.ndarray) -> float:
    """Return the probability that a clicked row scores above one that is not, ties counting half."""
    clicks = int(label.sum())
    ranks = pd.Series(score).rank().to_numpy()
    return float((ranks[label == 1].sum() - clicks * (clicks + 1) / 2) / (clicks * (len(label) - clicks)))


_CARD = """
Generated by `data_scripts/demo.py` of modeling-flip with seed {seed}: every row is made up, and Apache-2.0 like its
generator. Rows are in time order (the first 70 % are `train`, the next 10 % `validation`, the rest `test`), new items keep
coming out, and {unseen:.0%} of the test rows show an item that no earlier split has. It is there to try FLIP (Wang et al.,
RecSys '24, https://doi.org/10.1145/3640457.3688106), which is what to cite.

Test AUC of predictors that know the generator, on all rows, and on those whose item is or is not in an earlier split:

| knows | all | seen | unseen |
| --- | --- | --- | --- |
{oracles}

Beside these files the generator writes `text_model/`, a tiny untrained text tower with a vocabulary of the training
sentences; it is no data, and is not pushed to the Hub with them.
"""

DATASET = registry.Dataset(
    names=("demo",),
    load=lambda name, raw_dir: load(),
    fields=dict.fromkeys(_COLUMNS[:-1], "categorical"),
    item_fields=("item_id", "title", "category"),
    card=_CARD,
    license="apache-2.0",
    text_model=text_model,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the demo as Parquet files with a dataset card, and its text model; push the former where that is asked for."""
    parser = argparse.ArgumentParser(description="Write the generated demo, and a tiny text model for it.")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated data")
    parser.add_argument(
        "--push_to_hub", type=dataset_id, metavar="OWNER/NAME", help="also push it to this dataset on the Hub"
    )
    parser.add_argument("--private", action="store_true", help="make that dataset private")
    options = parser.parse_args(arguments)
    if options.private and not options.push_to_hub:
        parser.error("--private needs --push_to_hub OWNER/NAME")
    dataset, auc = load(options.seed), oracle_auc(options.seed)
    earlier = {item for split in ("train", "validation") for item in dataset[split]["item_id"]}
    card = dataset_card(
        dataset,
        options.push_to_hub or str(options.output_dir),
        DATASET.card.format(
            seed=options.seed,
            unseen=np.mean([item not in earlier for item in dataset["test"]["item_id"]]),
            oracles="\n".join(
                f"| {name} | {auc[oracle]:.3f} | {auc[f'{oracle}_seen']:.3f} | {auc[f'{oracle}_unseen']:.3f} |"
                for oracle, name in (("bayes", "everything"), ("words", "the words"), ("ids", "the IDs"))
            ),
        ),
        item_fields=DATASET.item_fields,
        train="configuration/quickstart.yaml --text_model_name_or_path sentence-transformers/all-MiniLM-L6-v2",
        pretty_name="FLIP demo",
        license=DATASET.license,
    )
    try:
        print(f"wrote {dataset.num_rows} to {write(dataset, options.output_dir, card)}")
        print(f"wrote {text_model(options.output_dir / 'text_model', dataset)}")
        if options.push_to_hub:
            print(f"pushed it to {push(options.output_dir, options.push_to_hub, private=options.private)}")
    except (ValueError, OSError) as error:
        sys.exit(f"demo.py: error: {error}")


if __name__ == "__main__":
    main()
