"""MoRec, a baseline: an ID model in which text stands for the item."""

# No `from __future__ import annotations` here: `strict` reads the types of the fields, and skips types that are strings.
import copy
from collections import OrderedDict
from typing import Any, Self

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.activations import ACT2FN

from .configuration_flip import CLICK_AUTO_CLASS, MOREC_FORMAT_VERSION, FlipConfig, check_item_fields
from .feature_embeddings import FeatureEmbeddings
from .modeling_flip import FlipForCTROutput, FlipPreTrainedModel, click_loss
from .tabular_towers import create_tabular_tower
from .text_tower import create_text_tower, hidden_states, pooled


@strict
class MoRecConfig(FlipConfig):
    """FlipConfig of `MoRecForCTR`; `item_fields` must be named.

    Args:
        freeze_text_tower: do not train the text tower: each item is encoded once and cached, up to the
            `MoRecForCTR.max_remembered` most recent ones, as long as the text tower's weights stay the same.
        item_activation: activation of the projected sentence, "gelu"; "linear" (none) in checkpoints from before it existed.
    """

    model_type = "morec"
    remote_classes = {
        "AutoConfig": "modeling_morec.MoRecConfig",
        CLICK_AUTO_CLASS: "modeling_morec.MoRecForCTR",
    }
    towers: str = "tabular"
    freeze_text_tower: bool = False
    item_activation: str = "gelu"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As FlipConfig's; a config.json without `item_activation` is of a model that had none."""
        return super().from_dict({"item_activation": "linear", **config_dict}, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = {"model_type": "bert"}
        super().__post_init__(**kwargs)

    @property
    def needed_format(self) -> int:
        """An activation, which older code would leave out, needs a later format."""
        return super().needed_format if self.item_activation == "linear" else MOREC_FORMAT_VERSION

    def check(self) -> None:
        super().check()
        if self.item_activation not in ("gelu", "linear"):
            raise ValueError(f"item_activation is {self.item_activation!r}; it must be one of gelu, linear")


class MoRecForCTR(FlipPreTrainedModel):
    """MoRec (Yuan et al., SIGIR '23): an ID model that replaces the item's IDs by its text.

    The item's fields, as one sentence w_0 through the text tower, become one embedding, GELU(W w_0 + b), as in the authors'
    text encoder; it comes after the embeddings of the other fields in the tabular tower. Models with first-order weights see
    `<MASK>` there. An item that occurs in several rows of a batch is encoded once.
    """

    config_class = MoRecConfig
    inputs = ("feature_ids", "item_sentence")

    max_remembered = 65_536  # sentences of a frozen text tower: 100 MB for a hidden size of 384

    def __init__(self, config: MoRecConfig):
        super().__init__(config)
        check_item_fields(config)
        # `item_fields` are positions in the sentence, which also has fields that the tabular tower does not read.
        in_sentence = range(config.num_fields + len(config.text_fields))
        in_table = [f for f in in_sentence if f not in config.text_fields]
        self.user_fields = [i for i, f in enumerate(in_table) if f not in config.item_fields]
        self.user_lists = [n for n, i in enumerate(config.list_fields) if i in self.user_fields]
        tower_config = copy.copy(config)
        tower_config.num_fields = len(self.user_fields) + 1
        tower_config.list_fields = [self.user_fields.index(config.list_fields[n]) for n in self.user_lists]
        tower = create_tabular_tower(tower_config)
        config.tower_settings = tower_config.tower_settings
        self.feature_embeddings = FeatureEmbeddings(tower_config, tower.first_order)
        self.tabular_tower = tower
        self.text_tower = create_text_tower(config.text_config)
        self.item_projection = nn.Linear(self.text_tower.config.hidden_size, config.embedding_size)
        self.item_activation = ACT2FN[config.item_activation]
        self._remembered: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._remembered_with: Fingerprint | None = None
        self.post_init()
        self.train(self.training)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_tower.get_input_embeddings()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.config.freeze_text_tower:
            # Cached sentences must not have dropout. from_pretrained, which recreates parameters, calls this at its end.
            self.text_tower.eval().requires_grad_(False)
        return self

    def forward(
        self,
        feature_ids: torch.Tensor,
        item_input_ids: torch.Tensor,
        item_attention_mask: torch.Tensor,
        item_index: torch.Tensor,
        labels: torch.Tensor | None = None,
        list_feature_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FlipForCTROutput:
        """feature_ids (B, F), tokens (U, L) and mask (U, L) of the distinct items, item_index (B,) which of them each row
        has, labels (B,) of 0 and 1, and where there are list fields list_feature_ids (B, number of them, longest list)."""
        remembers = self.config.freeze_text_tower and not torch.compiler.is_exporting()
        encode = self.remember_items if remembers else self.encode_items
        items = self.item_activation(self.item_projection(encode(item_input_ids, item_attention_mask)))  # (U, D)
        with torch.autocast(feature_ids.device.type, enabled=False):
            ids = feature_ids[:, self.user_fields]
            lists = list_feature_ids[:, self.user_lists] if list_feature_ids is not None else None
            users = self.feature_embeddings(ids, lists)  # (B, F - item fields, D)
            _, logits = self.tabular_tower(torch.cat([users, items.to(users.dtype)[item_index][:, None]], dim=1))
            if self.tabular_tower.first_order:
                item = torch.full_like(ids[:, :1], self.config.num_features - 1)
                logits = logits + self.feature_embeddings.linear_term(torch.cat([ids, item], dim=1), lists)
        logits = self.calibrated(logits)
        loss = None if labels is None else click_loss(logits, labels) + self.embedding_penalty(ids, lists)
        return FlipForCTROutput(loss=loss, logits=logits)

    def encode_items(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """tokens (U, L), mask (U, L) → sentences (U, D_text)."""
        hidden = hidden_states(self.text_tower, tokens, mask)
        return pooled(hidden, mask, self.config.text_pooling)

    @torch.no_grad()
    def remember_items(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """As `encode_items`, for a frozen text tower: only items that are not cached are encoded."""
        if len(tokens) == 0:  # of a process that has none of the rows of a short last batch
            return self.encode_items(tokens, mask)
        fingerprint = Fingerprint(self.text_tower, self.config.text_pooling)
        if fingerprint != self._remembered_with:
            self._remembered.clear()
            self._remembered_with = fingerprint
        lengths = mask.sum(1).tolist()
        keys = [row[:n].tobytes() for row, n in zip(tokens.cpu().numpy(), lengths, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._remembered]
        if new:
            for i, sentence in zip(new, self.encode_items(tokens[new], mask[new]), strict=True):
                self._remembered[keys[i]] = sentence.clone()
        sentences = torch.stack([self._remembered[key] for key in keys])
        for key in keys:
            self._remembered.move_to_end(key)
        while len(self._remembered) > self.max_remembered:
            self._remembered.popitem(last=False)
        return sentences.to(self.item_projection.weight)


class Fingerprint:
    """Identifies the weights of a module: while it stays equal, the module returns the same for the same input. For each
    parameter and buffer it holds its storage, so that nothing else can take that address; PyTorch's version counter; and a
    sample of the values, because writes through `.data` are not counted (a few rows written that way may go unnoticed).
    """

    def __init__(self, module: nn.Module, *settings: Any):
        self.tensors = [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
        places = [(tensor.data_ptr(), tensor.shape, tensor.dtype, tensor._version) for tensor in self.tensors]
        device = self.tensors[0].device
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        self.facts = (places, device, autocast, torch.get_float32_matmul_precision(), settings)
        self.sample = torch.cat([t.flatten()[:: 1 + t.numel() // 32].float() for t in self.tensors])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.facts == other.facts and torch.equal(self.sample, other.sample)
