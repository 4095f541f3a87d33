"""Generated rows with MovieLens-1M's fields, sizes and sentence lengths, and a tokenizer for them: for timing alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from modeling_flip import Field

NAMES = ["user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre"]
FIELDS = [Field(name=name) for name in NAMES]
NUM_WORDS = 30_000
VOCAB_SIZE = 30_522  # BERT's


def rows(num_rows: int, seed: int = 0) -> pa.Table:
    """num_rows rows of text and a label: 6,040 users, 3,883 films, popularity as uneven as in the real data."""
    rng = np.random.default_rng(seed)

    def pick(values: list[str], popularity: float = 0.0) -> pa.Array:
        weight = 1 / np.arange(1, len(values) + 1) ** popularity
        index = rng.choice(len(values), num_rows, p=weight / weight.sum())
        return pa.array(values, pa.string()).take(pa.array(index))

    def words(low: int, high: int) -> str:
        return " ".join(f"w{w}" for w in rng.integers(0, NUM_WORDS, rng.integers(low, high)))

    columns = {
        "user_id": pick([str(i) for i in range(1, 6041)], 0.6),
        "gender": pick(["female", "male"]),
        "age": pick(["under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56 or older"]),
        "occupation": pick([words(1, 4) for _ in range(21)]),
        "zipcode": pick([f"{z:05d}" for z in rng.integers(0, 99999, 3439)], 0.6),
        "movie_id": pick([str(i) for i in range(1, 3884)], 0.8),
        "title": pick([f"{words(1, 8)} (19{rng.integers(10, 99)})" for _ in range(3883)], 0.8),
        "genre": pick([", ".join(words(1, 2) for _ in range(rng.integers(1, 4))) for _ in range(301)]),
        "label": pa.array(rng.integers(0, 2, num_rows)),
    }
    return pa.table(columns)


def tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of BERT's size that knows the generated words and spells numbers by pairs of digits."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["user", "id", "is", "gender", "age", "occupation", "zipcode", "movie", "title"],
    ]
    pieces += [*["genre", "female", "male", "under", "or", "older"], *".,()-", *(f"{i}" for i in range(100))]
    pieces += [f"##{i}" for i in range(100)] + [f"w{i}" for i in range(NUM_WORDS)]
    pieces = list(dict.fromkeys(pieces))
    pieces += [f"[unused{i}]" for i in range(VOCAB_SIZE - len(pieces))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)
