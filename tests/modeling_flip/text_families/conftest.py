from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast, set_seed

from modeling_flip import FlipProcessor
from tests.modeling_flip.text_families.families import FAMILIES, FIELDS, RENAMED, ROWS, TextModel, without_tokens


@pytest.fixture(scope="session")
def text_model(
    tokenizers: dict[str, PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], TextModel]:
    """A tiny random model of the family in a folder with a tokenizer, and a processor made with it."""
    made: dict[str, TextModel] = {}

    def make(name: str) -> TextModel:
        if name not in made:
            family, folder = (FAMILIES | RENAMED)[name], tmp_path_factory.mktemp(name)
            tokenizer = without_tokens(tokenizers[family.tokenizer], family.lacks)
            pad = {} if "pad_token" in family.lacks else {"pad_token_id": tokenizer.pad_token_id}
            config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **pad, **family.settings)
            set_seed(1)
            model = AutoModel.from_config(config)
            for parameter in model.parameters():  # zeros and ones, as they start, tell nothing of where they come from
                parameter.data += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            processor = FlipProcessor.fit(ROWS, FIELDS, AutoTokenizer.from_pretrained(folder))
            read = model.encoder if name == "t5" else model
            weights = {key: value for key, value in read.state_dict().items() if not key.startswith("pooler.")}
            made[name] = TextModel(folder, weights, processor, processor.encode(ROWS, "label"))
        return made[name]

    return make
