"""A tabular tower of your own, trained without any text: `python -m examples.own_tabular_tower` (seconds).

CONTRIBUTING.md has a longer one, with settings and a test.
"""

from typing import Any

import torch
from torch import nn

from data_scripts import demo
from modeling_flip import (
    FlipConfig,
    FlipForCTR,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
    TabularTower,
    register_tabular_tower,
)


@register_tabular_tower("two_layers")
class TwoLayers(TabularTower):
    """representation = ReLU(W e + b), e the row's embeddings end to end; logit = w · representation + c."""

    def __init__(self, config: FlipConfig, settings: Any):
        super().__init__(config, settings)
        self.representation_size = 64
        self.hidden = nn.Linear(config.num_fields * config.embedding_size, self.representation_size)
        self.output = nn.Linear(self.representation_size, 1)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # (B, F, D)
        representation = self.hidden(embeddings.flatten(1)).relu()  # (B, 64)
        return representation, self.output(representation).squeeze(1)  # and (B,)


log = demo.load()
processor = FlipProcessor.fit(log["train"], label="label")  # no tokenizer: no text tower
model = FlipForCTR(FlipConfig.from_processor(processor, tabular_tower="two_layers", embedding_size=16))
args = FlipTrainingArguments("outputs/examples/two-layers", num_train_epochs=2)
trainer = FlipTrainer(model, args, processor, processor.encode(log["train"], "label"))
trainer.train()
trainer.save_model()
print(trainer.evaluate(processor.encode(log["test"], "label"), metric_key_prefix="test"))
