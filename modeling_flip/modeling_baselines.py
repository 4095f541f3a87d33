"""The language-model baselines that are no setting of FLIP: CTR-BERT, MoRec and P5.

They share FLIP's processor, trainer and configuration. PTab and CTRL are recipes: FLIP's own parts with other objectives.
"""

# No `from __future__ import annotations` here: `strict` reads the types of the fields, and skips types that are strings.
import copy
import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from .configuration_flip import CLICK_AUTO_CLASS, FlipConfig
from .modeling_flip import FlipForCTR, FlipForCTROutput, FlipPreTrainedModel, click_loss, create_text_tower, pooled
from .processing_flip import FlipProcessor
from .tabular_layers import MLP
from .tabular_towers import create_tabular_tower

PROMPTS = (
    "will the user like this item? answer yes or no:",
    "read who the user is and what is offered, then say yes if they would click and no if not:",
    "is the item below a good recommendation for the user below, yes or no?",
    "predict the click, yes or no:",
)
ANSWERS = ("yes", "no")


@strict
class CTRBertConfig(FlipConfig):
    """FlipConfig of `CTRBertForCTR`; `item_fields` must be named."""

    model_type = "ctr_bert"
    remote_classes = {
        "AutoConfig": "modeling_baselines.CTRBertConfig",
        CLICK_AUTO_CLASS: "modeling_baselines.CTRBertForCTR",
    }
    towers: str = "text"


class CTRBertForCTR(FlipPreTrainedModel):
    """CTR-BERT's twin towers (Muhamed et al., ENLSP at NeurIPS '21): the user's fields as one sentence and the item's as
    another, each through a text tower of its own; logit = w · MLP([u ⊕ v ⊕ u ⊙ v]) + b.

    A user or an item that stands in several rows of a batch is encoded once.
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

    def get_input_embeddings(self) -> nn.Module:
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
        users = self.user_text_tower(input_ids=user_input_ids, attention_mask=user_attention_mask).last_hidden_state
        items = self.item_text_tower(input_ids=item_input_ids, attention_mask=item_attention_mask).last_hidden_state
        user = pooled(users, user_attention_mask, pooling)[user_index]  # (B, D_text)
        item = pooled(items, item_attention_mask, pooling)[item_index]
        with torch.autocast(user.device.type, enabled=False):
            both = torch.cat([user, item, user * item], dim=1).to(self.output.weight.dtype)
            logits = self.output(self.head(both)).squeeze(1)
        return FlipForCTROutput(loss=None if labels is None else click_loss(logits, labels), logits=logits)


@strict
class MoRecConfig(FlipConfig):
    """FlipConfig of `MoRecForCTR`; `item_fields` must be named.

    Args:
        freeze_text_tower: use the text tower as it is: each item is encoded once and remembered.
    """

    model_type = "morec"
    remote_classes = {
        "AutoConfig": "modeling_baselines.MoRecConfig",
        CLICK_AUTO_CLASS: "modeling_baselines.MoRecForCTR",
    }
    towers: str = "tabular"
    freeze_text_tower: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = {"model_type": "bert"}
        super().__post_init__(**kwargs)


class MoRecForCTR(FlipPreTrainedModel):
    """MoRec (Yuan et al., SIGIR '23): an ID model in which the item's IDs give way to its text.

    The item's fields, as one sentence through the text tower, become one embedding, a linear projection of the sentence; it
    stands behind the embeddings of the other fields in the tabular tower. Models with weights of single features see
    `<MASK>` there. An item that stands in several rows of a batch is encoded once.
    """

    config_class = MoRecConfig
    inputs = ("feature_ids", "item_sentence")

    def __init__(self, config: MoRecConfig):
        super().__init__(config)
        check_item_fields(config)
        in_sentence = range(config.num_fields + len(config.text_fields))
        table_fields = [f for f in in_sentence if f not in config.text_fields]
        # Positions among the fields that the tabular tower reads.
        self.user_fields = [i for i, f in enumerate(table_fields) if f not in config.item_fields]
        tower_config = copy.copy(config)
        tower_config.num_fields = len(self.user_fields) + 1
        self.tabular_tower = create_tabular_tower(tower_config)
        self.text_tower = create_text_tower(config.text_config)
        self.item_projection = nn.Linear(self.text_tower.config.hidden_size, config.embedding_size)
        self._encoded: dict[bytes, torch.Tensor] = {}
        self.post_init()
        self.train(self.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_tower.get_input_embeddings()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.config.freeze_text_tower:
            # What is remembered has no dropout. from_pretrained, which makes parameters anew, ends by calling this too.
            self.text_tower.eval().requires_grad_(False)
        return self

    def forward(
        self,
        feature_ids: torch.Tensor,
        item_input_ids: torch.Tensor,
        item_attention_mask: torch.Tensor,
        item_index: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FlipForCTROutput:
        """feature_ids (B, F), tokens (U, L) and mask (U, L) of the distinct items, item_index (B,) which of them each row
        has, labels (B,) of 0 and 1."""
        encode = self._remembered if self.config.freeze_text_tower else self.encode_items
        items = self.item_projection(encode(item_input_ids, item_attention_mask))  # (U, D)
        with torch.autocast(feature_ids.device.type, enabled=False):
            user_ids = feature_ids[:, self.user_fields]
            embedding = self.tabular_tower.embedding
            embeddings = torch.cat([embedding(user_ids), items.to(embedding.weight.dtype)[item_index][:, None]], dim=1)
            item_ids = torch.full_like(user_ids[:, :1], self.config.num_features - 1)
            _, logits = self.tabular_tower(torch.cat([user_ids, item_ids], dim=1), embeddings)
        loss = None if labels is None else click_loss(logits, labels) + self.embedding_penalty()
        return FlipForCTROutput(loss=loss, logits=logits)

    def encode_items(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """tokens (U, L), mask (U, L) → sentences (U, D_text)."""
        hidden = self.text_tower(input_ids=tokens, attention_mask=mask).last_hidden_state
        return pooled(hidden, mask, self.config.text_pooling)

    @torch.no_grad()
    def _remembered(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lengths = mask.sum(1).tolist()
        keys = [row[:n].tobytes() for row, n in zip(tokens.cpu().numpy(), lengths, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._encoded]
        if new:
            for i, encoding in zip(new, self.encode_items(tokens[new], mask[new]), strict=True):
                self._encoded[keys[i]] = encoding.clone()
        return torch.stack([self._encoded[key].to(self.item_projection.weight) for key in keys])


@strict
class P5Config(FlipConfig):
    """FlipConfig of `P5ForCTR`.

    Args:
        prompt_ids: tokens of each prompt template.
        answer_ids: tokens of the two answers, yes and no.
    """

    model_type = "p5"
    remote_classes = {
        "AutoConfig": "modeling_baselines.P5Config",
        CLICK_AUTO_CLASS: "modeling_baselines.P5ForCTR",
    }
    towers: str = "text"
    prompt_ids: list[list[int]] | None = None
    answer_ids: list[list[int]] | None = None


class P5ForCTR(FlipPreTrainedModel):
    """P5 (Geng et al., RecSys '22): an encoder-decoder reads a prompt and the row's sentence, and says yes or no.

    Trained as a language model: loss = −log p(right answer). The click's logit is log p(yes) − log p(no). In training each
    row draws one of the prompts; scoring uses the first.
    """

    config_class = P5Config
    inputs = ("sentence",)

    def __init__(self, config: P5Config):
        super().__init__(config)
        check_has_decoder(config.text_config)
        if not config.prompt_ids or not config.answer_ids:
            raise ValueError("prompt_ids and answer_ids are missing; P5ForCTR.from_text_pretrained makes them")
        self.text_tower = AutoModelForSeq2SeqLM.from_config(config.text_config, dtype=torch.get_default_dtype())
        self.post_init()

    @classmethod
    def from_text_pretrained(
        cls, text_model_name_or_path: str | os.PathLike | None, processor: FlipProcessor, **config_kwargs: Any
    ) -> Self:
        """A model around a pretrained encoder-decoder, with the prompts as the processor's tokenizer spells them."""
        tokenizer = processor.tokenizer
        if text_model_name_or_path is None or tokenizer is None:
            raise ValueError("a text tower needs text_model_name_or_path and a processor with a tokenizer")
        check_has_decoder(AutoConfig.from_pretrained(text_model_name_or_path))
        source = AutoModelForSeq2SeqLM.from_pretrained(
            text_model_name_or_path, dtype=torch.float32, use_safetensors=True
        )
        if len(tokenizer) > source.get_input_embeddings().num_embeddings:
            source.resize_token_embeddings(len(tokenizer))
        prompt_ids, answer_ids = (tokenizer(list(t), add_special_tokens=False)["input_ids"] for t in (PROMPTS, ANSWERS))
        config = P5Config(
            text_config=source.config,
            prompt_ids=prompt_ids,
            answer_ids=answer_ids,
            **processor.config_settings,
            **config_kwargs,
        )
        model = cls(config)
        model.text_tower.load_state_dict(source.state_dict())
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.text_tower.get_input_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FlipForCTROutput:
        """input_ids (B, L), attention_mask (B, L), labels (B,) of 0 and 1."""
        prompts: Sequence[Sequence[int]] = self.config.prompt_ids
        width = max(map(len, prompts))
        # Padding stands before a prompt, so that it joins its sentence; T5's positions are relative.
        padded = input_ids.new_tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = attention_mask.new_tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        rows = len(input_ids)
        chosen = torch.randint(len(prompts) if self.training else 1, (rows,), device=input_ids.device)
        mask = torch.cat([mask[chosen], attention_mask], dim=1)
        encoded = self.text_tower.get_encoder()(torch.cat([padded[chosen], input_ids], dim=1), attention_mask=mask)

        start = self.text_tower.config.decoder_start_token_id
        likelihoods: dict[int, torch.Tensor] = {}
        # Answers that share what the decoder reads, as answers of one token do, share its pass.
        reads = [(start, *answer[:-1]) for answer in self.config.answer_ids]
        for read in dict.fromkeys(reads):
            decoder_ids = input_ids.new_tensor(read).expand(rows, -1)
            logits = self.text_tower(
                encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False
            ).logits
            log_probabilities = logits.float().log_softmax(-1)  # (B, answer tokens, V)
            for k, answer in enumerate(self.config.answer_ids):
                if reads[k] == read:
                    likelihoods[k] = log_probabilities[:, range(len(answer)), answer].sum(1)
        yes, no = likelihoods[0], likelihoods[1]
        loss = None if labels is None else -torch.where(labels > 0.5, yes, no).mean()
        return FlipForCTROutput(loss=loss, logits=yes - no)


def check_has_decoder(text_config: Any) -> None:
    """Raises ValueError where a text model cannot write an answer to what it reads."""
    if not getattr(text_config, "is_encoder_decoder", False):
        raise ValueError(f"P5 writes its answer: text model {text_config.model_type!r} has no decoder; use a T5")


def check_item_fields(config: FlipConfig) -> None:
    """Raises ValueError where no field is named as the item's."""
    if not config.item_fields:
        raise ValueError(f"{config.model_type} keeps users and items apart: name the item's fields with item_fields")


# Every model that predicts clicks, by its model_type.
CTR_MODELS = {cls.config_class.model_type: cls for cls in (FlipForCTR, CTRBertForCTR, MoRecForCTR, P5ForCTR)}
