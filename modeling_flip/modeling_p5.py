"""P5, a baseline: an encoder-decoder that reads a prompt and the row, and answers yes or no."""

# No `from __future__ import annotations` here: `strict` reads the types of the fields, and skips types that are strings.
import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from .checkpoint_files import LOCATION_KEYS
from .configuration_flip import CLICK_AUTO_CLASS, FlipConfig, load_text_config
from .modeling_flip import FlipForCTROutput, FlipPreTrainedModel
from .objectives import batch_mean
from .processing_flip import FlipProcessor
from .text_tower import check_max_length, create_text_tower, load_text_model, most_tokens

PROMPTS = (
    "will the user like this item? answer yes or no:",
    "read who the user is and what is offered, then say yes if they would click and no if not:",
    "is the item below a good recommendation for the user below, yes or no?",
    "predict the click, yes or no:",
)
ANSWERS = ("yes", "no")


@strict
class P5Config(FlipConfig):
    """FlipConfig of `P5ForCTR`.

    Args:
        prompt_ids: tokens of each prompt template.
        answer_ids: tokens of the two answers, yes and no.
        untied_head: whether the text model's output layer has weights of its own, as in T5 v1.1, Flan-T5 and mT5, instead of
            those of its word embeddings.
    """

    model_type = "p5"
    remote_classes = {
        "AutoConfig": "modeling_p5.P5Config",
        CLICK_AUTO_CLASS: "modeling_p5.P5ForCTR",
    }
    towers: str = "text"
    prompt_ids: list[list[int]] | None = None
    answer_ids: list[list[int]] | None = None
    untied_head: bool = False


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
        self.text_tower = create_text_tower(config.text_config, AutoModelForSeq2SeqLM)
        if config.untied_head:
            untie_head(self.text_tower)
        # The same layer with the same weights, tied or not.
        self.text_tower.get_output_embeddings().__class__ = Float32Linear
        self.post_init()

    @classmethod
    def from_text_pretrained(
        cls, text_model_name_or_path: str | os.PathLike | None, processor: FlipProcessor, **config_kwargs: Any
    ) -> Self:
        """A model around a pretrained encoder-decoder, with the prompts as the processor's tokenizer spells them."""
        tokenizer = processor.tokenizer
        located = {key: config_kwargs.pop(key) for key in LOCATION_KEYS if key in config_kwargs}
        if text_model_name_or_path is None or tokenizer is None:
            raise ValueError("a text tower needs text_model_name_or_path and a processor with a tokenizer")
        check_has_decoder(load_text_config(text_model_name_or_path, **located))
        source = load_text_model(AutoModelForSeq2SeqLM, text_model_name_or_path, **located)
        check_max_length(processor.max_length, most_tokens(source, tokenizer), text_model_name_or_path)
        is_untied = source.get_output_embeddings().weight is not source.get_input_embeddings().weight
        if is_untied:
            untie_head(source)  # resizing would tie it
        if len(tokenizer) > source.get_input_embeddings().num_embeddings:
            source.resize_token_embeddings(len(tokenizer))
        prompt_ids, answer_ids = (tokenizer(list(t), add_special_tokens=False)["input_ids"] for t in (PROMPTS, ANSWERS))
        config = P5Config.from_processor(
            processor,
            text_config=source.config,
            prompt_ids=prompt_ids,
            answer_ids=answer_ids,
            untied_head=is_untied,
            **config_kwargs,
        )
        model = cls(config)
        model.text_tower.load_state_dict(source.state_dict())
        model.text_tower.has_random_weights = False
        return model

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_tower.get_input_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FlipForCTROutput:
        """input_ids (B, L), attention_mask (B, L), labels (B,) of 0 and 1."""
        if not (rows := input_ids.shape[0]):  # as `hidden_states` says
            input_ids, attention_mask = input_ids.new_zeros(1, 1), attention_mask.new_ones(1, 1)
        prompts: Sequence[Sequence[int]] = self.config.prompt_ids
        width = max(map(len, prompts))
        # Padding comes before a prompt, so that prompt and sentence are adjacent; T5's positions are relative.
        padded = input_ids.new_tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = attention_mask.new_tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        chosen = torch.zeros_like(input_ids[:, 0])  # the first prompt, but in training one by lot
        if self.training:
            chosen = torch.randint(len(prompts), chosen.shape, device=input_ids.device)
        mask = torch.cat([mask[chosen], attention_mask], dim=1)
        encoded = self.text_tower.get_encoder()(torch.cat([padded[chosen], input_ids], dim=1), attention_mask=mask)

        start = self.text_tower.config.decoder_start_token_id
        likelihoods: dict[int, torch.Tensor] = {}
        # Answers with the same decoder input, such as answers of one token, share a pass.
        reads = [(start, *answer[:-1]) for answer in self.config.answer_ids]
        for read in dict.fromkeys(reads):
            decoder_ids = input_ids.new_tensor(read).expand(input_ids.shape[0], -1)
            logits = self.text_tower(
                encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False
            ).logits
            log_probabilities = logits.log_softmax(-1)  # (B, answer tokens, V)
            for k, answer in enumerate(self.config.answer_ids):
                if reads[k] == read:
                    likelihoods[k] = log_probabilities[:, range(len(answer)), answer].sum(1)
        yes, no = likelihoods[0][:rows], likelihoods[1][:rows]
        loss = None if labels is None else batch_mean(-torch.where(labels > 0.5, yes, no))
        return FlipForCTROutput(loss=loss, logits=self.calibrated(yes - no))


class Float32Linear(nn.Linear):
    """A linear layer in fp32, under autocast too. bf16 would round logits of the vocabulary to three digits, and a score is the
    difference of two."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), bias)


def untie_head(text_model: PreTrainedModel) -> None:
    """Give a text model's output layer weights of its own, which transformers does not tie again.

    Its configuration cannot say so: `tie_word_embeddings` also ties the tables of encoder and decoder, and T5's is always true.
    """
    head = text_model.get_output_embeddings()
    if head.weight is text_model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
    own = [name for name, weight in text_model.named_parameters(remove_duplicate=False) if weight is head.weight]
    tied = text_model._tied_weights_keys or {}
    text_model._tied_weights_keys = {name: source for name, source in tied.items() if name not in own}
    text_model.all_tied_weights_keys = text_model.get_expanded_tied_weights_keys(all_submodels=True)


def check_has_decoder(text_config: Any) -> None:
    """Raises ValueError if a text model cannot generate an answer."""
    if not getattr(text_config, "is_encoder_decoder", False):
        raise ValueError(f"P5 generates its answer, but text model {text_config.model_type!r} has no decoder; use a T5")
