"""The pretraining losses against the paper's equations, written out with loops over tiny tensors."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_flip.configuration_flip import FlipConfig
from modeling_flip.objectives import (
    InstanceContrastiveLearning,
    MaskedLanguageModeling,
    MaskedTabularModeling,
    gather_rows,
    row_mean,
)

D_TAB, D_TEXT = 5, 4
_ = -100  # not masked


def make_config(**settings: Any) -> FlipConfig:
    sizes: dict[str, Any] = {"num_features": 9, "num_fields": 3, "embedding_size": 3, "projection_size": 6}
    return FlipConfig(**sizes | settings)


def randomised(module: torch.nn.Module, seed: int = 0) -> Any:
    """Every parameter drawn anew, biases too: an objective leaves some of its own to the model that holds it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.7, generator=generator)
    return module


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 + seed))


def numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return numpy(layer.weight) @ x + (0 if layer.bias is None else numpy(layer.bias))


class LargestTensor(TorchDispatchMode):
    """Watches every operation, backward ones too, for the most numbers that one of them gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(output) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return output


# ---- the mean over rows


def test_row_mean_gives_each_row_the_same_weight_and_an_empty_row_zero() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0, 5.0])
    rows = torch.tensor([0, 0, 0, 2])
    assert row_mean(losses, rows, 4).item() == pytest.approx((9 / 3 + 0 + 5 / 1 + 0) / 4)


def test_row_mean_of_rows_without_any_element_is_zero() -> None:
    assert row_mean(torch.zeros(0), torch.zeros(0, dtype=torch.long), 2).item() == 0


# ---- masked language modelling

MLM_LABELS = torch.tensor([[_, 4, _, 0], [_, _, _, _], [_, _, 6, _]])
VOCAB_SIZE, TOKEN_SIZE = 7, 3


def make_mlm(*, joint: bool) -> MaskedLanguageModeling:
    config = make_config(joint_reconstruction=joint)
    return randomised(MaskedLanguageModeling(config, D_TAB, D_TEXT, TOKEN_SIZE, VOCAB_SIZE))


@pytest.mark.parametrize("joint", [True, False])
def test_mlm_is_the_cross_entropy_of_each_rows_masked_tokens(joint: bool) -> None:
    mlm = make_mlm(joint=joint)
    text, tabular, embeddings = draw(3, 4, D_TEXT), draw(3, D_TAB, seed=1), draw(VOCAB_SIZE, TOKEN_SIZE, seed=2)
    row_losses = []
    for w, v, labels in zip(numpy(text), numpy(tabular), MLM_LABELS.tolist(), strict=True):
        token_losses = []
        for w_l, label in zip(w, labels, strict=True):
            if label != -100:
                hidden = gelu(linear(mlm.hidden, np.concatenate([w_l, v]) if joint else w_l))
                if not joint:
                    weight, bias = map(numpy, mlm.norm.parameters())
                    hidden = (hidden - hidden.mean()) / hidden.std() * weight + bias
                q = numpy(embeddings) @ hidden + numpy(mlm.bias)
                token_losses.append(-np.log(softmax(q)[label]))
        row_losses.append(sum(token_losses) / len(token_losses) if token_losses else 0.0)
    actual = mlm(text, tabular, MLM_LABELS, embeddings)
    assert actual.item() == pytest.approx(sum(row_losses) / 3, rel=1e-5)


def test_mlm_reads_only_masked_tokens_and_so_no_padding() -> None:
    mlm = make_mlm(joint=True)
    text, tabular, embeddings = draw(3, 4, D_TEXT), draw(3, D_TAB, seed=1), draw(VOCAB_SIZE, TOKEN_SIZE, seed=2)
    loss = mlm(text, tabular, MLM_LABELS, embeddings)
    padded_text = torch.cat([text, draw(3, 2, D_TEXT, seed=3)], dim=1)
    padded_text[:, 0] = 7.0  # masked in no row
    padded_labels = torch.cat([MLM_LABELS, torch.full((3, 2), -100)], dim=1)
    assert torch.equal(mlm(padded_text, tabular, padded_labels, embeddings), loss)


def test_mlm_of_a_batch_without_masked_tokens_is_zero_and_has_a_gradient() -> None:
    mlm = make_mlm(joint=True)
    loss = mlm(draw(2, 3, D_TEXT), draw(2, D_TAB), torch.full((2, 3), -100), draw(VOCAB_SIZE, TOKEN_SIZE))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in mlm.parameters())


def test_mlm_makes_nothing_of_size_batch_by_length_by_vocabulary() -> None:
    size, length, vocab_size = 8, 32, 2000
    mlm = randomised(MaskedLanguageModeling(make_config(), D_TAB, D_TEXT, TOKEN_SIZE, vocab_size))
    embeddings = draw(vocab_size, TOKEN_SIZE).requires_grad_()
    text = draw(size, length, D_TEXT).requires_grad_()
    labels = torch.full((size, length), -100)
    labels[:, 5] = torch.arange(size)
    with LargestTensor() as largest:
        mlm(text, draw(size, D_TAB), labels, embeddings).backward()
    assert largest.numel == size * vocab_size  # the logits of one masked token a row


# ---- masked tabular modelling

MTM_LABELS = torch.tensor([[3, _, 8], [_, _, _], [_, 5, _]])
NOISE = torch.tensor(  # the j-th of a row is of its j-th masked field, and the rest of none
    [[[0, 3, 7, 7], [4, 4, 1, 2]], [[1, 2, 3, 4], [0, 0, 0, 0]], [[5, 6, 0, 2], [7, 7, 7, 7]]]
)
ATTENTION_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def make_mtm(*, joint: bool = True, **settings: Any) -> MaskedTabularModeling:
    return randomised(MaskedTabularModeling(make_config(joint_reconstruction=joint, **settings), D_TAB, D_TEXT))


def mtm_inputs() -> dict[str, torch.Tensor]:
    return {
        "masked_tabular": draw(3, D_TAB),
        "text": draw(3, 4, D_TEXT, seed=1),
        "attention_mask": ATTENTION_MASK,
        "labels": MTM_LABELS,
        "noise_feature_ids": NOISE,
    }


@pytest.mark.parametrize("joint", [True, False])
def test_mtm_is_the_noise_contrastive_loss_of_each_rows_masked_fields(joint: bool) -> None:
    mtm, inputs = make_mtm(joint=joint), mtm_inputs()
    row_losses = []
    for b in range(3):
        x = numpy(inputs["masked_tabular"][b])
        if joint:
            tokens = [numpy(w) for w, is_token in zip(inputs["text"][b], ATTENTION_MASK[b], strict=True) if is_token]
            query = numpy(mtm.query.weight) @ x
            attention = softmax(np.array([query @ w for w in tokens]) / math.sqrt(D_TEXT))
            x = sum(a * w for a, w in zip(attention, tokens, strict=True))
        field_losses: list[float] = []
        for f, label in enumerate(MTM_LABELS[b].tolist()):
            if label == -100:
                continue
            noise = NOISE[b, len(field_losses)]
            hidden = gelu(x @ numpy(mtm.hidden.weight[f]) + numpy(mtm.hidden.bias[f]))
            field = hidden @ numpy(mtm.output.weight[f]) + numpy(mtm.output.bias[f])

            def sigma(feature: int, field: np.ndarray = field) -> float:
                score = field @ numpy(mtm.feature_embedding.weight[feature]) + mtm.feature_bias.weight[feature].item()
                return 1 / (1 + math.exp(-score))

            noise_losses = [math.log(1 - sigma(k)) for k in noise.tolist()]
            field_losses.append(-math.log(sigma(label)) - sum(noise_losses))
        row_losses.append(sum(field_losses) / len(field_losses) if field_losses else 0.0)
    assert mtm(**inputs).item() == pytest.approx(sum(row_losses) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("noise", "is_read"),
    [((0, 0), True), ((0, 1), True), ((1, 0), False), ((1, 1), False), ((2, 0), True), ((2, 1), False)],
)
def test_each_masked_field_is_held_against_noise_of_its_own(noise: tuple[int, int], is_read: bool) -> None:
    mtm, inputs = make_mtm(), mtm_inputs()
    other = NOISE.clone()
    other[noise] = 8 - other[noise]
    assert (mtm(**inputs) != mtm(**inputs | {"noise_feature_ids": other})) == is_read


def test_mtm_without_joint_reconstruction_needs_no_text() -> None:
    mtm, inputs = make_mtm(joint=False), mtm_inputs()
    assert torch.equal(mtm(**inputs | {"text": None}), mtm(**inputs))


def test_mtm_pays_no_attention_to_padding() -> None:
    mtm, inputs = make_mtm(), mtm_inputs()
    loss = mtm(**inputs)
    inputs["text"] = torch.cat([inputs["text"], 50 * draw(3, 3, D_TEXT, seed=2)], dim=1)
    inputs["text"][:, :4][ATTENTION_MASK == 0] = 50.0
    inputs["attention_mask"] = torch.cat([ATTENTION_MASK, torch.zeros(3, 3, dtype=torch.long)], dim=1)
    torch.testing.assert_close(mtm(**inputs), loss, rtol=1e-6, atol=0)


def test_mtm_does_not_depend_on_where_a_token_stands() -> None:
    mtm, inputs = make_mtm(), mtm_inputs()
    loss = mtm(**inputs)
    order = torch.tensor([2, 0, 3, 1])
    inputs["text"], inputs["attention_mask"] = inputs["text"][:, order], ATTENTION_MASK[:, order]
    torch.testing.assert_close(mtm(**inputs), loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layer", ["hidden", "output"])
def test_each_field_has_an_mlp_of_its_own(layer: str) -> None:
    mtm, inputs = make_mtm(), mtm_inputs()
    labels_of_field = [torch.full((3, 3), -100) for _ in range(3)]
    for f, labels in enumerate(labels_of_field):
        labels[:, f] = f + 1
    before = [mtm(**inputs | {"labels": labels}) for labels in labels_of_field]
    getattr(mtm, layer).weight.data[1] += 1
    after = [mtm(**inputs | {"labels": labels}) for labels in labels_of_field]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_mtm_makes_nothing_as_wide_as_all_features_for_each_row() -> None:
    size, num_fields, num_features, embedding_size = 16, 6, 3000, 3
    mtm = make_mtm(num_fields=num_fields, num_features=num_features)
    labels = torch.full((size, num_fields), -100)
    labels[:, 1] = torch.arange(size)
    with LargestTensor() as largest:
        mtm(
            draw(size, D_TAB).requires_grad_(),
            draw(size, 4, D_TEXT).requires_grad_(),
            torch.ones(size, 4, dtype=torch.long),
            labels,
            torch.arange(size * 25).view(size, 1, 25),
        ).backward()
    assert largest.numel == num_features * embedding_size  # the gradient of the output table
    assert largest.numel < size * num_features  # and so no softmax over all features, even of one field a row


# ---- instance contrastive learning


def normed(icl: InstanceContrastiveLearning, x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) if icl.layer_norm else x


def icl_by_hand(icl: InstanceContrastiveLearning, text: torch.Tensor, tabular: torch.Tensor, tau: float) -> float:
    sentences = [linear(icl.text_projection, normed(icl, w)) for w in numpy(text)]
    tables = [linear(icl.tabular_projection, normed(icl, v)) for v in numpy(tabular)]
    text_to_table, table_to_text = 0.0, 0.0
    for i in range(len(text)):
        text_to_table -= math.log(softmax(np.array([sentences[i] @ table / tau for table in tables]))[i])
        table_to_text -= math.log(softmax(np.array([tables[i] @ sentence / tau for sentence in sentences]))[i])
    return (text_to_table / len(text) + table_to_text / len(text)) / 2


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_icl_is_the_mean_of_both_directions_over_the_temperature(temperature: float, layer_norm: bool) -> None:
    config = make_config(temperature=temperature, icl_layer_norm=layer_norm)
    icl = randomised(InstanceContrastiveLearning(config, D_TAB, D_TEXT))
    text, tabular = draw(4, D_TEXT), draw(4, D_TAB, seed=1)
    expected = icl_by_hand(icl, text, tabular, temperature)
    assert icl(text, tabular).item() == pytest.approx(expected, rel=1e-5)


def subspace_icl_by_hand(
    icl: InstanceContrastiveLearning, text: torch.Tensor, tabular: torch.Tensor, tau: float, num_subspaces: int
) -> float:
    """CTRL's: each part of what searches takes the most similar part of what is found."""

    def parts(x: np.ndarray) -> list[np.ndarray]:
        size = len(x) // num_subspaces
        return [x[s * size : (s + 1) * size] for s in range(num_subspaces)]

    def similarity(a: np.ndarray, b: np.ndarray) -> float:
        return sum(max(float(x @ y) for y in parts(b)) for x in parts(a))

    sentences = [linear(icl.text_projection, normed(icl, w)) for w in numpy(text)]
    tables = [linear(icl.tabular_projection, normed(icl, v)) for v in numpy(tabular)]
    loss = 0.0
    for searching, found in ((sentences, tables), (tables, sentences)):
        for i, a in enumerate(searching):
            loss -= math.log(softmax(np.array([similarity(a, b) / tau for b in found]))[i]) / len(searching) / 2
    return loss


@pytest.mark.parametrize("num_subspaces", [1, 2, 3, 6])
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_icl_of_subspaces_compares_each_part_with_the_most_similar_part(num_subspaces: int, temperature: float) -> None:
    config = make_config(temperature=temperature, icl_subspaces=num_subspaces)
    icl = randomised(InstanceContrastiveLearning(config, D_TAB, D_TEXT))
    text, tabular = draw(4, D_TEXT), draw(4, D_TAB, seed=1)
    expected = subspace_icl_by_hand(icl, text, tabular, temperature, num_subspaces)
    assert icl(text, tabular).item() == pytest.approx(expected, rel=1e-5)
    in_one = icl_by_hand(icl, text, tabular, temperature)
    assert (abs(expected - in_one) < 1e-9) is (num_subspaces == 1)


def test_the_size_of_a_representation_says_nothing_to_icl() -> None:
    text, tabular = draw(4, D_TEXT), draw(4, D_TAB, seed=1)
    icl = randomised(InstanceContrastiveLearning(make_config(), D_TAB, D_TEXT))
    assert icl(text * 100, tabular * 50).item() == pytest.approx(icl(text, tabular).item(), rel=1e-3)


def test_icl_of_a_checkpoint_from_before_the_layer_norm_is_as_it_was() -> None:
    saved = FlipConfig().to_dict()
    assert FlipConfig.from_dict(saved).icl_layer_norm
    del saved["icl_layer_norm"]
    assert not FlipConfig.from_dict(saved).icl_layer_norm


def test_icl_compares_in_one_space_unless_told_otherwise() -> None:
    text, tabular = draw(4, D_TEXT), draw(4, D_TAB, seed=1)
    default, one = (
        randomised(InstanceContrastiveLearning(make_config(**settings), D_TAB, D_TEXT))
        for settings in ({}, {"icl_subspaces": 1})
    )
    assert torch.equal(default(text, tabular), one(text, tabular))


def test_icl_of_subspaces_makes_nothing_of_size_parts_by_parts_by_batch_by_batch() -> None:
    size, num_subspaces = 32, 6
    config = make_config(icl_subspaces=num_subspaces)
    icl = randomised(InstanceContrastiveLearning(config, D_TAB, D_TEXT))
    with LargestTensor() as largest:
        icl(draw(size, D_TEXT), draw(size, D_TAB)).backward()
    assert largest.numel == num_subspaces * size**2


@pytest.mark.parametrize("num_subspaces", [0, -1, 4, 7, 12])
def test_parts_that_do_not_divide_the_projection_are_refused(num_subspaces: int) -> None:
    message = rf"icl_subspaces is {num_subspaces}; it must divide projection_size \(6\)"
    with pytest.raises(ValueError, match=message):
        make_config(icl_subspaces=num_subspaces)


@pytest.mark.parametrize("num_subspaces", [1, 3])
def test_icl_of_one_row_is_zero(num_subspaces: int) -> None:
    icl = randomised(InstanceContrastiveLearning(make_config(icl_subspaces=num_subspaces), D_TAB, D_TEXT))
    assert icl(draw(1, D_TEXT), draw(1, D_TAB)).item() == 0


def test_icl_pairs_rows_by_their_place_in_the_batch() -> None:
    icl = randomised(InstanceContrastiveLearning(make_config(), D_TAB, D_TEXT))
    text, tabular, order = draw(4, D_TEXT), draw(4, D_TAB, seed=1), torch.tensor([3, 1, 0, 2])
    loss = icl(text, tabular)
    torch.testing.assert_close(icl(text[order], tabular[order]), loss, rtol=1e-6, atol=0)
    assert abs(icl(text[order], tabular) - loss) > 0.1


def test_a_lone_process_gathers_its_own_rows() -> None:
    text, tabular = draw(2, 3), draw(2, 3, seed=1)
    all_text, all_tabular, first = gather_rows(text, tabular)
    assert all_text is text
    assert all_tabular is tabular
    assert first == 0


TWO_PROCESSES = """
import sys
import warnings
import torch
from torch.multiprocessing import start_processes
from modeling_flip.configuration_flip import FlipConfig
from modeling_flip.objectives import InstanceContrastiveLearning

warnings.filterwarnings("error", category=FutureWarning, module="modeling_flip")


def one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    batch = torch.load(f"{folder}/batch.pt")
    icl = InstanceContrastiveLearning(FlipConfig(projection_size=6), 5, 4)
    icl.load_state_dict(batch["weights"])
    numbers = batch["numbers"]
    text, tabular = (batch[name].split(numbers)[rank].clone().requires_grad_() for name in ("text", "tabular"))
    loss = icl(text, tabular) * 2 * numbers[rank] / sum(numbers)
    loss.backward()
    weights = {name: parameter.grad for name, parameter in icl.named_parameters()}
    torch.save({"loss": loss.detach(), "text": text.grad, "tabular": tabular.grad} | weights, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


start_processes(one_of_two, sys.argv[1:], nprocs=2, start_method="fork")
"""


@pytest.mark.parametrize("numbers", [[3, 3], [4, 2], [0, 6]])
def test_two_processes_with_parts_of_the_rows_learn_what_one_with_all_does(numbers: list[int], tmp_path: Path) -> None:
    """The two are forked from one that has computed nothing: the imports take longer than all else."""
    icl = randomised(InstanceContrastiveLearning(make_config(), D_TAB, D_TEXT))
    text, tabular = draw(6, D_TEXT).requires_grad_(), draw(6, D_TAB, seed=1).requires_grad_()
    batch = {"weights": icl.state_dict(), "text": text.data, "tabular": tabular.data, "numbers": numbers}
    torch.save(batch, tmp_path / "batch.pt")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "error::FutureWarning:modeling_flip", "-c", TWO_PROCESSES, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=120)

    loss = icl(text, tabular)
    loss.backward()
    zero, one = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close((zero["loss"] + one["loss"]) / 2, loss.detach())
    # As DistributedDataParallel averages the gradients of the processes: each row's is half of what its process holds.
    torch.testing.assert_close(torch.cat([zero["text"], one["text"]]) / 2, text.grad)
    torch.testing.assert_close(torch.cat([zero["tabular"], one["tabular"]]) / 2, tabular.grad)
    for name, parameter in icl.named_parameters():
        torch.testing.assert_close((zero[name] + one[name]) / 2, parameter.grad)
