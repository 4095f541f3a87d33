"""The pretraining objectives of FLIP (RecSys '24, §3.2): heads and losses, each its own module.

B rows, F fields, L tokens, V text vocabulary, M features, K noise features. `-100` marks what is not masked. Losses are
computed in fp32, under autocast too. Nothing of size (B, L, V) or (B, F, M) is ever made.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .feature_embeddings import FeatureTable
from .tabular_layers import FieldwiseLinear

IGNORE = -100


def row_mean(losses: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Mean over rows of each row's mean: losses (n,) of elements that stand in rows (n,). A row without elements counts 0, and so
    does a batch without rows."""
    per_row = torch.bincount(rows, minlength=num_rows)[rows]
    return (losses / per_row).sum() / max(1, num_rows)


def batch_mean(losses: torch.Tensor) -> torch.Tensor:
    """Mean of losses (B,); 0 where there are none, as on a process that gets no row of a short last batch."""
    return losses.sum() / max(1, len(losses))


class MaskedLanguageModeling(nn.Module):
    """MLM (Eq. 5-6): recover masked tokens from the masked sentence, with the help of the table.

    q_l = MLP([ŵ_l ⊕ v]) ∈ R^V for each masked token l, cross-entropy, averaged over the row's masked tokens. The MLP's
    output layer shares the text tower's input embeddings. Without joint reconstruction, q_l = MLP(ŵ_l) with a layer norm before
    its output layer: the head that pretrained masked language models have, so that it can start from theirs.
    """

    def __init__(self, config: FlipConfig, tabular_size: int, text_size: int, token_size: int, vocab_size: int):
        super().__init__()
        self.joint = config.joint_reconstruction
        self.hidden = nn.Linear(text_size + tabular_size * self.joint, token_size)
        self.norm = nn.Identity() if self.joint else nn.LayerNorm(token_size, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def init_parameters(self) -> None:
        init.zeros_(self.bias)

    def forward(
        self,
        masked_text: torch.Tensor,
        tabular: torch.Tensor | None,
        labels: torch.Tensor,
        token_embeddings: torch.Tensor,
    ) -> torch.Tensor:
        """masked_text (B, L, D_text), tabular (B, D_tab), labels (B, L), token_embeddings (V, token_size) → scalar.

        `tabular` is not read without joint reconstruction.
        """
        is_masked = labels != IGNORE
        rows = is_masked.nonzero()[:, 0]  # (n,)
        x = masked_text[is_masked]  # (n, D_text)
        if self.joint and tabular is not None:
            x = torch.cat([x, tabular[rows]], dim=1)
        logits = F.linear(self.norm(F.gelu(self.hidden(x))), token_embeddings, self.bias)  # (n, V)
        losses = F.cross_entropy(logits.float(), labels[is_masked], reduction="none")
        return row_mean(losses, rows, len(labels))


class MaskedTabularModeling(nn.Module):
    """MTM (Eq. 7-10): recover masked features from the masked table, with the help of the text.

    u = softmax(v̂ Q wᵀ / √D_text) w over the sentence's tokens, padding left out; for each masked field f its own MLP of u,
    scored against an output table by dot product plus bias. Noise-contrastive loss with K features, drawn for each masked
    field from the training frequency over all M: −log σ(c_t) − Σ_k log(1 − σ(c_k)), averaged over the row's masked fields.
    Without joint reconstruction the MLPs read v̂ itself.
    """

    def __init__(self, config: FlipConfig, tabular_size: int, text_size: int):
        super().__init__()
        self.joint = config.joint_reconstruction
        if self.joint:
            self.query = nn.Linear(tabular_size, text_size, bias=False)
        size = text_size if self.joint else tabular_size
        self.hidden = FieldwiseLinear(config.num_fields, size, config.projection_size)
        self.output = FieldwiseLinear(config.num_fields, config.projection_size, config.embedding_size)
        self.feature_embedding = FeatureTable(config.num_features, config.embedding_size)
        self.feature_bias = FeatureTable(config.num_features, 1)

    def forward(
        self,
        masked_tabular: torch.Tensor,
        text: torch.Tensor | None,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        noise_feature_ids: torch.Tensor,
    ) -> torch.Tensor:
        """masked_tabular (B, D_tab), text (B, L, D_text), attention_mask (B, L), labels (B, F), noise (B, F_masked, K), the
        j-th of a row being of its j-th masked field → scalar.

        `text` is not read without joint reconstruction.
        """
        x = masked_tabular
        if self.joint and text is not None:
            scores = torch.einsum("bd,bld->bl", self.query(masked_tabular), text).float() / math.sqrt(text.shape[-1])
            attention = scores.masked_fill(attention_mask == 0, -torch.inf).softmax(dim=1)
            x = torch.einsum("bl,bld->bd", attention.to(text.dtype), text)  # u (B, D_text)
        fields = self.output(F.gelu(self.hidden(x)))  # (B, F, D)
        is_masked = labels != IGNORE
        rows = is_masked.nonzero()[:, 0]  # (n,)
        nth = (is_masked.cumsum(1) - 1)[is_masked]  # (n,), which of its row's masked fields each is
        candidates = torch.cat([labels[is_masked][:, None], noise_feature_ids[rows, nth]], dim=1)  # (n, 1 + K)
        with torch.autocast(labels.device.type, enabled=False):
            embeddings, bias = self.feature_embedding(candidates).float(), self.feature_bias(candidates).float()
            scores = torch.einsum("nd,nkd->nk", fields[is_masked].float(), embeddings) + bias.squeeze(-1)
        losses = F.softplus(-scores[:, 0]) + F.softplus(scores[:, 1:]).sum(1)
        return row_mean(losses, rows, len(labels))


class InstanceContrastiveLearning(nn.Module):
    """ICL (Eq. 11): each row's sentence and table find each other among all rows of the batch, on all processes.

    Both towers are projected linearly to `projection_size`; similarity is their dot product over τ; InfoNCE from text to
    table and from table to text, averaged. What is projected is layer-normalised, without a learned scale. The paper says nothing
    of it; its authors' heads have a layer norm as well. Without it, the products of a table that has hardly been trained are
    nearly 0, whatever its text, and the loss may never leave log B.

    With `icl_subspaces` S above 1 the similarity is CTRL's fine-grained one (Li et al., 2023): both projections are split into S
    parts, and sim(a, b) = Σ_s max_t ⟨a_s, b_t⟩, a being the side that searches.
    """

    def __init__(self, config: FlipConfig, tabular_size: int, text_size: int):
        super().__init__()
        self.temperature = config.temperature
        self.num_subspaces = config.icl_subspaces
        self.layer_norm = config.icl_layer_norm
        self.text_projection = nn.Linear(text_size, config.projection_size)
        self.tabular_projection = nn.Linear(tabular_size, config.projection_size)

    def forward(self, text: torch.Tensor, tabular: torch.Tensor) -> torch.Tensor:
        """text (B, D_text), tabular (B, D_tab) → scalar, the mean over the rows of this process. Weighed by their numbers of
        rows, the mean over processes is the loss of the whole batch."""
        return self.contrast(*self.project(text, tabular))

    def contrast(self, text: torch.Tensor, tabular: torch.Tensor) -> torch.Tensor:
        """The loss of projections, (B, projection_size) each."""
        all_text, all_tabular, first = gather_rows(text, tabular)
        targets = torch.arange(len(text), device=text.device) + first
        with torch.autocast(text.device.type, enabled=False):
            scores = [self.similarity(text, all_tabular), self.similarity(tabular, all_text)]
            both = [F.cross_entropy(of / self.temperature, targets, reduction="none") for of in scores]
        return batch_mean(both[0] + both[1]) / 2

    def project(self, text: torch.Tensor, tabular: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """text (B, D_text), tabular (B, D_tab) → (B, projection_size) each, where they are compared."""
        if self.layer_norm:
            text, tabular = (F.layer_norm(x.float(), x.shape[-1:]) for x in (text, tabular))
        return self.text_projection(text).float(), self.tabular_projection(tabular).float()

    def similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a (A, projection_size), b (B, projection_size) → (A, B)."""
        if self.num_subspaces == 1:
            return a @ b.T
        a, b = (x.unflatten(1, (self.num_subspaces, -1)).transpose(0, 1) for x in (a, b))  # (S, A, d), (S, B, d)
        best = [torch.stack([part @ other.T for other in b]).amax(0) for part in a]  # S of (A, B): never (S, S, A, B)
        return torch.stack(best).sum(0)


def gather_rows(text: torch.Tensor, tabular: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The rows of all processes, with their gradient, and where this process's rows start."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return text, tabular, 0
    number = torch.tensor([len(text)], device=text.device)
    numbers = [torch.empty_like(number) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(numbers, number)
    rows = torch.cat(numbers).tolist()
    gathered = GatherRows.apply(torch.cat([text, tabular], dim=1), rows)
    all_text, all_tabular = gathered.split([text.shape[1], tabular.shape[1]], dim=1)
    return all_text, all_tabular, sum(rows[: torch.distributed.get_rank()])


class GatherRows(torch.autograd.Function):
    """(b, D) of each process → (B, D), on all of them; b may differ, and be 0. accelerator.gather has no gradient: rows of one
    process are negatives, and pushed away, on the others."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, numbers: list[int]) -> torch.Tensor:
        """rows (b, D), and b of each process."""
        ctx.numbers = numbers
        padded = rows.new_zeros(max(numbers), rows.shape[1])  # all_gather takes as many of each
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in numbers]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:b] for part, b in zip(parts, numbers, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(B, D) → (b, D), summed over the processes."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total.split(ctx.numbers)[torch.distributed.get_rank()], None
