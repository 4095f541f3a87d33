"""CTR-BERT, a baseline: user and item as one sentence each, through twin text towers."""

# No `from __future__ import annotations` here: `strict` reads the types of the fields, and skips types that are strings.
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedModel

from .configuration_flip import CLICK_AUTO_CLASS, FlipConfig, check_item_fields
from .modeling_flip import FlipForCTROutput, FlipPreTrainedModel, click_loss
from .tabular_layers import MLP
from .text_tower import create_text_tower, hidden_states, pooled


@strict
class CTRBertConfig(FlipConfig):
    """FlipConfig of `CTRBertForCTR`; `item_fields` must be named."""

    model_type = "ctr_bert"
    remote_classes = {
        "AutoConfig": "modeling_ctr_bert.CTRBertConfig",
        CLICK_AUTO_CLASS: "modeling_ctr_bert.CTRBertForCTR",
    }
    towers: str = "text"


class CTRBertForCTR(FlipPreTrainedModel):
    """CTR-BERT's twin towers (Muhamed et al., ENLSP at NeurIPS '21): the user's fields as one sentence and the item's as
    another, each through a text tower of its own; logit = w · MLP([u ⊕ v ⊕ u ⊙ v]) + b.

    A user or an item that occurs in several rows of a batch is encoded once.
    """

    config_class = CTRBertConfig
    inputs = ("user_sentence", "item_sentence")

    def __init__(self, config: CTRBertConfig):
        super().__init__(config)
        check_item_fields(config)
        self.user_text_tower = create_text_tower(config.text_config)
        self.item_text_tower = create_text_tower(config.text_config)
        self.head = MLP(3 * self.user_text_tower.config.hidden_size, config)
        self.output = nn.Linear(config.hidden_sizes[-1], 1)
        self.post_init()

    def fresh_text_towers(self) -> list[PreTrainedModel]:
        return [self.user_text_tower, self.item_text_tower]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        for tower in self.fresh_text_towers():
            embeddings = tower.resize_token_embeddings(*args, **kwargs)
        return embeddings

    def get_input_embeddings(self) -> nn.Embedding:
        return self.user_text_tower.get_input_embeddings()

    def forward(
        self,
        user_input_ids: torch.Tensor,
        user_attention_mask: torch.Tensor,
        user_index: torch.Tensor,
        item_input_ids: torch.Tensor,
        item_attention_mask: torch.Tensor,
        item_index: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FlipForCTROutput:
        """Tokens (U, L) and mask (U, L) of the distinct users, user_index (B,) which of them each row has; likewise the
        items; labels (B,) of 0 and 1."""
        pooling = self.config.text_pooling
        users = hidden_states(self.user_text_tower, user_input_ids, user_attention_mask)
        items = hidden_states(self.item_text_tower, item_input_ids, item_attention_mask)
        user = pooled(users, user_attention_mask, pooling)[user_index]  # (B, D_text)
        item = pooled(items, item_attention_mask, pooling)[item_index]
        with torch.autocast(user.device.type, enabled=False):
            both = torch.cat([user, item, user * item], dim=1).to(self.output.weight.dtype)
            logits = self.calibrated(self.output(self.head(both)).squeeze(1))
        return FlipForCTROutput(loss=None if labels is None else click_loss(logits, labels), logits=logits)
