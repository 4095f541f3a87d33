"""Feature embeddings: ids of fields of every kind to (B, F, D), and to the linear term. All tables of features live here.

B rows, F fields with a table side, L of them lists, K members of the longest list, M features, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .configuration_flip import FlipConfig


class FeatureTable(nn.Embedding):
    """A table with a row for each feature, (M, d). With `sparse` set, nothing of it is read but the rows that are looked up: its
    gradient holds these alone, and an optimizer can leave the others alone too.

    Attributes:
        more: (U, d) rows of the ids M, M + 1, …, which stand in no table; see `FeatureEmbeddings.with_more`.
    """

    more: torch.Tensor | None = None

    def squared_norm(self) -> torch.Tensor:
        """Scalar ‖w‖²."""
        return self.weight.square().sum()


class FeatureEmbeddings(nn.Module):
    """The table of embeddings (M, D) and, where the tower has a linear part, that of first-order weights (M, 1).

    A field's embedding is the row of its feature; a list field's is the mean of its members' rows. `feature_ids` (B, F) holds a
    feature for each field; at `config.list_fields` that is the list's first member, and not looked up. `list_feature_ids`
    (B, L, K) holds the members of the list fields, each list padded with −1 and never empty: a list without members has its
    field's unknown feature, a masked one `<MASK>`. Models without list fields do not read it.

    Only `_rows` reads the weights of sparse tables, so these can be stored elsewhere.

    Example:

        >>> features = FeatureEmbeddings(FlipConfig(num_features=9, num_fields=2, list_fields=[1]), first_order=True)
        >>> ids, members = torch.tensor([[0, 5], [2, 6]]), torch.tensor([[[5, -1]], [[6, 7]]])
        >>> features(ids, members).shape, features.linear_term(ids, members).shape
        (torch.Size([2, 2, 32]), torch.Size([2]))
    """

    def __init__(self, config: FlipConfig, first_order: bool = False):
        super().__init__()
        self.list_fields = tuple(config.list_fields)
        self.embedding = FeatureTable(config.num_features, config.embedding_size)
        self.first_order = FeatureTable(config.num_features, 1) if first_order else None

    def forward(self, feature_ids: torch.Tensor, list_feature_ids: torch.Tensor | None = None) -> torch.Tensor:
        """feature_ids (B, F), list_feature_ids (B, L, K) → embeddings (B, F, D).

        Raises:
            ValueError: `list_feature_ids` is missing, or of another number of list fields.
        """
        return self._fields(self.embedding, feature_ids, list_feature_ids)

    def linear_term(self, feature_ids: torch.Tensor, list_feature_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Σ_f w_f (B,), a list's w being the mean of its members'."""
        assert self.first_order is not None
        return self._fields(self.first_order, feature_ids, list_feature_ids).sum((1, 2))

    def squared_norm(self, feature_ids: torch.Tensor, list_feature_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Scalar Σ (‖e‖² + w²) over all features. Where the tables' gradients are sparse, over those that these rows look up, and
        without a gradient: `training.sparse` adds it once for all rows of a step, which may be several batches."""
        if self.embedding.sparse:
            with torch.no_grad():
                ids = torch.cat(self._looked_up(feature_ids, list_feature_ids)).unique()
                return torch.stack([self._rows(table, ids).square().sum() for table in self.tables]).sum()
        return torch.stack([table.squared_norm() for table in self.tables]).sum()

    @property
    def tables(self) -> list[FeatureTable]:
        return [self.embedding] if self.first_order is None else [self.embedding, self.first_order]

    @property
    def width(self) -> int:
        """W, the numbers that a feature has in all tables."""
        return sum(table.embedding_dim for table in self.tables)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (n,) → (n, W): each feature's embedding followed by its first-order weight."""
        return torch.cat([table(ids) for table in self.tables], dim=1)

    def replace_rows(self, rows: torch.Tensor) -> None:
        """Take rows (M, W), as `rows` gives them, as those of all features; M may be another."""
        for table, part in zip(self.tables, self._parts(rows), strict=True):
            table.num_embeddings = len(part)
            table.weight = nn.Parameter(part.to(table.weight.dtype).contiguous(), table.weight.requires_grad)

    @contextmanager
    def with_more(self, rows: torch.Tensor) -> Iterator[None]:
        """Meanwhile the ids M, M + 1, … have these rows (U, W), one or more."""
        for table, part in zip(self.tables, self._parts(rows), strict=True):
            table.more = part.to(table.weight.dtype)
        try:
            yield
        finally:
            for table in self.tables:
                table.more = None

    def _parts(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """rows (n, W) → those of each table."""
        return rows.split([table.embedding_dim for table in self.tables], dim=1)

    @staticmethod
    def _rows(table: FeatureTable, ids: torch.Tensor) -> torch.Tensor:
        """ids (…) → (…, d)."""
        if table.more is None:
            return table(ids)
        own = ids - table.num_embeddings  # their place among the rows that the table lacks
        return torch.where((own < 0).unsqueeze(-1), table(torch.where(own < 0, ids, 0)), table.more[own.clamp(min=0)])

    def _fields(
        self, table: FeatureTable, feature_ids: torch.Tensor, list_feature_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, F, d), with one lookup."""
        if not self.list_fields:
            return self._rows(table, feature_ids)
        ids = self._looked_up(feature_ids, list_feature_ids)
        *fields, members = self._rows(table, torch.cat(ids)).split([part.shape[0] for part in ids])
        assert list_feature_ids is not None
        is_member = list_feature_ids >= 0
        share = (is_member / is_member.sum(2, keepdim=True)).to(members.dtype)  # (B, L, K), of each in its list's mean
        lists = torch.einsum("blk,blkd->bld", share, members.unflatten(0, share.shape))
        for position, field in zip(self.list_fields, lists.unbind(1), strict=True):
            fields.insert(position, field)
        return torch.stack(fields, dim=1)

    def _looked_up(self, feature_ids: torch.Tensor, list_feature_ids: torch.Tensor | None) -> list[torch.Tensor]:
        """Vectors of ids: where there are list fields, one (B,) for each other field, and last (B L K) members."""
        if not self.list_fields:
            return [feature_ids.flatten()]
        if list_feature_ids is None or list_feature_ids.shape[1] != len(self.list_fields):
            given = "missing" if list_feature_ids is None else f"of shape {tuple(list_feature_ids.shape)}"
            raise ValueError(
                f"list_feature_ids is {given}; fields {list(self.list_fields)} are lists: pass everything that FlipProcessor "
                "returns"
            )
        columns = [column for f, column in enumerate(feature_ids.unbind(1)) if f not in self.list_fields]
        # Padding stands in for the list's first member, with no share in the mean: no other row is touched.
        members = torch.where(list_feature_ids < 0, list_feature_ids[..., :1], list_feature_ids)
        return [*columns, members.flatten()]
