"""A tiny text model for any sentences: it knows their words, can spell others, and is the same whenever it is made."""

import os
import subprocess
import sys
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from data_scripts import text_model

REPOSITORY = Path(__file__).resolve().parents[2]
SENTENCES = [
    "colour 🎨 is 🍓 pink. title is 東京物語. shop is Café Сталкер, €5.",
    "colour 🎨 is red. shop is Café Сталкер.",
]


def test_words_are_whole_others_are_spelled_and_no_character_is_unknown(tmp_path: Path) -> None:
    folder = text_model.write(tmp_path / "tiny", SENTENCES, max_length=64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert AutoModel.from_pretrained(folder).config.max_position_embeddings == tokenizer.model_max_length == 64
    assert tokenizer.tokenize("colour 🎨 is pink") == ["colour", "🎨", "is", "pink"]
    assert "сталкер" in tokenizer.tokenize(SENTENCES[0])
    for sentence in (*SENTENCES, "zebra quilt 0123!? 🍓🎨"):
        assert tokenizer.unk_token not in tokenizer.tokenize(sentence)


def test_the_same_sentences_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    here = text_model.write(tmp_path / "here", SENTENCES, max_length=64)
    code = f"from data_scripts import text_model; text_model.write({str(tmp_path / 'there')!r}, {SENTENCES!r}, 64)"
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    for file in here.iterdir():
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes(), file.name
