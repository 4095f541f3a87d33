"""A tiny text tower for a dataset without one: random weights, and a vocabulary of the words in the training rows."""

import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_scripts.publishing import finished_folder

_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_LETTERS = string.ascii_lowercase + string.digits
_OTHER_CHARACTERS = 500


def write(
    output_dir: str | Path,
    sentences: Sequence[str],
    max_length: int,
    *,
    vocab_size: int = 2_000,
    min_frequency: int = 0,
    **settings: Any,
) -> Path:
    """Write a tiny untrained BERT that reads at most `max_length` tokens, with a WordPiece vocabulary of the sentences.

    `AutoTokenizer` and `AutoModel` load the folder; the same sentences give the same bytes.

    Args:
        vocab_size: most pieces of the vocabulary, beside the characters that are not ASCII.
        min_frequency: of a piece.
        settings: of BertConfig, such as `hidden_size`.
    """
    # Imported here, so that reading rows does not wait for them.
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, BertTokenizer

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers characters in the random order in which it meets them, and breaks ties by number. Named here,
    # they have fixed numbers, and words that the sentences do not have can be spelled.
    met: Counter[str] = Counter()
    for sentence in sentences:
        met.update(trained.normalizer.normalize_str(sentence))
    named = {*_LETTERS, *string.punctuation, *string.whitespace}
    others = sorted((c for c in met if c not in named), key=lambda c: (-met[c], c))[:_OTHER_CHARACTERS]
    characters = [*_LETTERS, *string.punctuation, *others]
    pieces = [*_SPECIAL_TOKENS, *characters, *(f"##{c}" for c in (*_LETTERS, *others))]
    trained.train_from_iterator(
        sentences,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size + 2 * len(others),
            min_frequency=min_frequency,
            special_tokens=pieces,
            show_progress=False,
        ),
    )
    tokenizer = BertTokenizer(vocab=trained.get_vocab(), model_max_length=max_length)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=max_length, **sizes | settings)
    with torch.random.fork_rng(devices=[]):  # leave the caller's random state alone
        torch.manual_seed(0)
        model = BertModel(config)
    with finished_folder(output_dir) as folder:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return Path(output_dir)
