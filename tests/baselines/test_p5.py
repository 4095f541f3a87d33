"""P5: its loss and its logit by hand, prompts and answers."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BertConfig, T5Config, set_seed

from modeling_flip import (
    FlipDataCollator,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
    P5Config,
    P5ForCTR,
)
from tests.baselines.tiny import FIELDS, ROWS, Collate, Make


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def answers_by_hand(model: P5ForCTR, sentence: list[int], prompt: list[int]) -> list[float]:
    """Log likelihood of each answer: one teacher-forced pass for every token of it, no padding anywhere."""
    likelihoods = []
    tokens, start = torch.tensor([[*prompt, *sentence]]), model.text_tower.config.decoder_start_token_id
    for answer in model.config.answer_ids:
        total = 0.0
        for t, token in enumerate(answer):
            decoder_ids = torch.tensor([[start, *answer[:t]]])
            logits = model.text_tower(input_ids=tokens, decoder_input_ids=decoder_ids).logits[0, -1]
            total += log_softmax(logits.detach().double().numpy())[token]
        likelihoods.append(total)
    return likelihoods


def sentences_of(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    return [ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


@pytest.mark.parametrize(
    "answers",
    [[[5], [6]], [[5, 6], [7]], [[8], [5, 6, 9]], [[5, 6], [5, 7]], [[5, 6, 7], [5, 8, 7]], None],
    ids=lambda answers: "the tokenizer's" if answers is None else str(answers),
)
def test_p5s_loss_is_minus_the_log_likelihood_of_the_right_answer_and_its_logit_the_difference(
    make: Make, collate: Collate, answers: list[list[int]] | None
) -> None:
    model = make("p5")
    model.config.answer_ids = answers or model.config.answer_ids
    batch = collate(model)
    assert batch["attention_mask"].sum(1).unique().numel() > 2
    likelihoods = [answers_by_hand(model, words, model.config.prompt_ids[0]) for words in sentences_of(batch)]
    output = model(**batch)
    expected = [yes - no for yes, no in likelihoods]
    np.testing.assert_allclose(output.logits.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 1e-3
    losses = [-(yes if row["label"] else no) for (yes, no), row in zip(likelihoods, ROWS, strict=True)]
    assert output.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_p5_spells_prompts_and_answers_as_its_tokenizer_does(make: Make, tiny_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    model = make("p5")
    assert [tokenizer.decode(answer).strip() for answer in model.config.answer_ids] == ["yes", "no"]
    prompts = [tokenizer.decode(prompt).strip() for prompt in model.config.prompt_ids]
    assert len(set(prompts)) == len(prompts) == 4
    assert all("yes" in prompt and "no" in prompt for prompt in prompts)
    every = {token for prompt in [*model.config.prompt_ids, *model.config.answer_ids] for token in prompt}
    assert not every & {tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}


def test_p5s_scores_are_not_rounded_to_bf16(make: Make, collate: Collate) -> None:
    model = make("p5")
    model.config.answer_ids = [[5], [6]]
    head = model.text_tower.get_output_embeddings()
    assert head.weight is model.get_input_embeddings().weight
    hidden: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, args: hidden.append(args[0][:, 0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = model(**collate(model)).logits
    exact = hidden[0].double() @ (head.weight[5] - head.weight[6]).double()
    torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=1e-5)
    yes, no = (hidden[0].bfloat16() @ head.weight[[5, 6]].T.bfloat16()).float().T
    assert (yes - no - exact).abs().max() > 1e-3  # what rounding would do


def test_p5_draws_a_prompt_for_each_row_in_training_and_takes_the_first_in_scoring(
    make: Make, collate: Collate
) -> None:
    model = make("p5")  # without dropout
    batch = collate(model)
    prompts = model.config.prompt_ids
    by_prompt = []
    for prompt in prompts:
        model.config.prompt_ids = [prompt]
        by_prompt.append(model(**batch).logits)
    model.config.prompt_ids = prompts
    each = torch.stack(by_prompt)  # (P, B)
    assert each.std(0).min() > 1e-3
    torch.testing.assert_close(model(**batch).logits, each[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    drawn = []
    for _ in range(20):
        distance = (model(**batch).logits - each).abs()
        assert distance.min(0).values.max() < 1e-4
        drawn.append(distance.argmin(0))
    counts = torch.stack(drawn).flatten().bincount(minlength=len(prompts))
    assert counts.min() > 15  # of 140; 35 expected, standard deviation 5
    assert any(len(row.unique()) > 1 for row in drawn)


def test_p5_needs_an_encoder_decoder(processors: dict[str, FlipProcessor], tiny_bert: Path) -> None:
    ids: dict[str, Any] = {"prompt_ids": [[5]], "answer_ids": [[5], [6]]}
    with pytest.raises(ValueError, match="P5 generates its answer, but text model 'bert' has no decoder; use a T5"):
        P5ForCTR(P5Config(text_config=BertConfig(), **ids))
    with pytest.raises(ValueError, match="P5 generates its answer, but text model 'gpt2' has no decoder; use a T5"):
        P5ForCTR(P5Config(text_config={"model_type": "gpt2"}, **ids))
    with pytest.raises(ValueError, match="P5 generates its answer, but text model 'bert' has no decoder; use a T5"):
        P5ForCTR.from_text_pretrained(tiny_bert, processors["ctr_bert"])


def test_p5_needs_prompts_and_answers() -> None:
    with pytest.raises(ValueError, match=r"prompt_ids and answer_ids are missing; P5ForCTR.from_text_pretrained"):
        P5ForCTR(P5Config(text_config=T5Config()))


def test_a_mask_token_that_p5s_tokenizer_lacked_gets_a_row_of_its_own(tiny_t5: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    old_size = len(tokenizer)
    tokenizer.add_special_tokens({"mask_token": "<a new mask>"})
    processor = FlipProcessor.fit(ROWS, FIELDS, tokenizer)
    model = P5ForCTR.from_text_pretrained(tiny_t5, processor).eval()
    table = model.get_input_embeddings().weight
    assert len(table) == model.config.text_config.vocab_size == old_size + 1
    assert model.text_tower.get_output_embeddings().weight.shape == table.shape
    batch = FlipDataCollator(processor, model.inputs)(processor.encode(ROWS))
    model.save_pretrained(tmp_path)
    loaded = copy.deepcopy(P5ForCTR.from_pretrained(tmp_path))
    assert torch.equal(loaded(**batch).logits, copy.deepcopy(model)(**batch).logits)


# ---- a text model whose output layer has weights of its own


@pytest.fixture(params=["t5", "mt5"])
def untied_t5(request: pytest.FixtureRequest, tiny_t5: Path, tmp_path: Path) -> Path:
    """tiny_t5 as T5 v1.1, Flan-T5 and mT5 are published."""
    folder = Path(shutil.copytree(tiny_t5, tmp_path / "untied"))
    config = json.loads((folder / "config.json").read_text())
    del config["scale_decoder_outputs"]
    config |= {"model_type": request.param, "architectures": None, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    shared = weights["shared.weight"]
    set_seed(1)
    weights["lm_head.weight"] = torch.randn_like(shared)
    weights |= {f"{part}.embed_tokens.weight": shared.clone() for part in ("encoder", "decoder")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def different(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> list[str]:
    weights = model.state_dict()
    assert weights.keys() == expected.keys()
    return [name for name, weight in weights.items() if not torch.equal(weight, expected[name])]


def test_an_output_layer_with_weights_of_its_own_keeps_them(
    untied_t5: Path, processors: dict[str, FlipProcessor], tmp_path: Path
) -> None:
    """And its decoder's outputs are scaled, or not, as there."""
    source = AutoModelForSeq2SeqLM.from_pretrained(untied_t5).eval()
    weights = load_file(untied_t5 / "model.safetensors")
    model = P5ForCTR.from_text_pretrained(untied_t5, processors["p5"]).eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    given = {"input_ids": tokens, "decoder_input_ids": tokens[:, :2]}
    expected = source(**given).logits
    model.save_pretrained(tmp_path / "saved")
    for one in (model, P5ForCTR.from_pretrained(tmp_path / "saved")):
        tower = one.text_tower
        assert different(tower, weights) == []
        torch.testing.assert_close(tower(**given).logits, expected)
        one.tie_weights()
        assert different(tower, weights) == []
        assert tower.get_encoder().embed_tokens.weight is tower.get_decoder().embed_tokens.weight is tower.shared.weight
    batch = FlipDataCollator(processors["p5"], model.inputs)(processors["p5"].encode(ROWS))
    loaded = copy.deepcopy(P5ForCTR.from_pretrained(tmp_path / "saved"))
    assert torch.equal(loaded(**batch).logits, copy.deepcopy(model)(**batch).logits)


def test_trainer_reads_an_output_layer_with_weights_of_its_own(
    untied_t5: Path, processors: dict[str, FlipProcessor], tmp_path: Path
) -> None:
    model, processor = P5ForCTR.from_text_pretrained(untied_t5, processors["p5"]), processors["p5"]
    arguments = FlipTrainingArguments(str(tmp_path / "out"), use_cpu=True)
    trainer = FlipTrainer(model, arguments, processor, processor.encode(ROWS, "label"))
    trainer.save_model(str(tmp_path / "checkpoint"))
    for parameter in model.parameters():
        parameter.data += 1
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint"))
    assert different(model.text_tower, load_file(untied_t5 / "model.safetensors")) == []


def test_a_new_mask_token_leaves_an_output_layer_its_weights(untied_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(untied_t5)
    old_size = len(tokenizer)
    tokenizer.add_special_tokens({"mask_token": "<a new mask>"})
    model = P5ForCTR.from_text_pretrained(untied_t5, FlipProcessor.fit(ROWS, FIELDS, tokenizer))
    source = load_file(untied_t5 / "model.safetensors")
    for name, weight in model.text_tower.state_dict().items():
        assert torch.equal(weight[:old_size], source[name]), name
    assert len(model.text_tower.lm_head.weight) == old_size + 1
