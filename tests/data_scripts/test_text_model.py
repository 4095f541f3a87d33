"""A tiny text model for any sentences: it knows their words, and can spell others.

That it is the same whenever it is made: test_demo.py."""

from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from data_scripts import text_model

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
