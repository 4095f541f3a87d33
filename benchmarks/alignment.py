"""Figures 5 and 6 of the paper, and what they show in numbers, from checkpoints of pretraining.

    python -m benchmarks.alignment CHECKPOINT [CHECKPOINT …] --rows FILE_OR_DATASET --output_dir DIR [--raw_dir DIR]
        [--labels NAME …] [--num_rows 256]

heat_map.png and .svg (figure 5): one field of a row is masked in its text, one in its table; how similar are the two? The same
field should be the most similar one: the diagonal, which is outlined; a dot marks the largest of each row. Drawn for the last
checkpoint that was trained with ICL, whose projections are compared.

embeddings.png and .svg (figure 6): the feature embeddings in the plane, one panel for each checkpoint, a colour for each field.
Where they degenerate, they lie in a narrow cone: nearly parallel to each other, and in few directions.

alignment.json has the figures of every checkpoint. Checkpoints are named by what their pretraining left out, as in the paper, or
by `--labels`. `--rows` is a file, or a registered dataset such as `demo`, whose test rows are taken.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mpl_toolkits.axes_grid1 import ImageGrid
from scipy.stats import entropy
from torch.nn.functional import normalize

from data_scripts.registry import registered_datasets
from modeling_flip import FlipConfig, FlipDataset, FlipForPreTraining, FlipPreTrainedModel, FlipProcessor
from modeling_flip.data_collator import TABULAR_FIELDS, PretrainingCollator
from modeling_flip.table_files import open_table
from modeling_flip.training.manifest import environment
from modeling_flip.training.splits import as_table

BATCH_SIZE = 64
OBJECTIVES = ("mlm", "mtm", "icl")


# ---- figure 5


@dataclass
class OneFieldMasked(PretrainingCollator):
    """Masks one field in the text and in the table, in every row, and otherwise as pretraining does.

    Args:
        field: which, by its position in the table.
    """

    field: int = 0

    def _choose_fields(self, rows: FlipDataset, stream: int, num_fields: int, ratio: float) -> np.ndarray:
        columns = self.processor.vocabulary.table_columns
        chosen = np.zeros((len(rows), num_fields), bool)
        chosen[:, self.field if stream == TABULAR_FIELDS else columns[self.field]] = True
        return chosen


@torch.inference_mode()
def masked_field_similarity(model: FlipForPreTraining, processor: FlipProcessor, rows: FlipDataset) -> np.ndarray:
    """How similar a row's text without one field is to its table without another (figure 5).

    Of the N rows, and the F fields that both towers read: the dot products of ICL's projections, L2-normalised, of the text with
    field i masked and the table with field j masked. A value that `max_length` cuts off cannot be masked. Puts the model in
    evaluation mode.

    Returns:
        (N, F, F) float32.

    Raises:
        ValueError: the model was pretrained without ICL, so it has no projections.
    """
    if not model.config.icl_weight:
        raise ValueError("the model was pretrained without ICL (icl_weight is 0), whose projections are compared")
    model.eval()
    collate = OneFieldMasked(processor, num_noise_features=0)
    parts = []
    for first in range(0, len(rows), BATCH_SIZE):
        some = rows.__getitems__(np.arange(first, min(first + BATCH_SIZE, len(rows))))
        text, table = [], []
        for collate.field in range(model.config.num_fields):
            batch = {name: tensor.to(model.device) for name, tensor in collate(some).items()}
            output = model.flip(
                feature_ids=batch["masked_feature_ids"],
                input_ids=batch["masked_input_ids"],
                attention_mask=batch["attention_mask"],
                list_feature_ids=batch.get("masked_list_feature_ids"),
            )
            projected = model.icl.project(output.text_representation, output.tabular_representation)
            text.append(normalize(projected[0]))
            table.append(normalize(projected[1]))
        parts.append(torch.einsum("ibp,jbp->bij", torch.stack(text), torch.stack(table)))
    return torch.cat(parts).cpu().numpy()


def diagonal_figures(similarity: np.ndarray) -> dict[str, float]:
    """How far the diagonal of matrices (…, F, F) stands out, averaged over them.

    Returns:
        the share of rows, and of columns, whose diagonal entry is larger than all others (1/F by chance); and the means on the
        diagonal and off it.
    """
    diagonal = np.diagonal(similarity, axis1=-2, axis2=-1)
    others = similarity.shape[-1] - 1
    off = similarity.sum((-2, -1)) - diagonal.sum(-1)
    return {
        "largest_of_row": float(((similarity < diagonal[..., :, None]).sum(-1) == others).mean()),
        "largest_of_column": float(((similarity < diagonal[..., None, :]).sum(-2) == others).mean()),
        "mean_diagonal": float(diagonal.mean()),
        "mean_off_diagonal": float((off / (others * (others + 1))).mean()),
    }


def draw_heat_map(panels: Mapping[str, np.ndarray], fields: Sequence[str], path: Path) -> None:
    """Draws matrices (F, F), by title, side by side as `path`.png and .svg."""
    side = 1 + 0.25 * len(fields)
    figure = Figure(figsize=(len(panels) * (side + 0.3) + 2, side + 1.5))
    low, high = (pick([pick(matrix) for matrix in panels.values()]) for pick in (np.min, np.max))
    grid = ImageGrid(figure, 111, (1, len(panels)), axes_pad=0.3, cbar_mode="single", cbar_size=0.12, cbar_pad=0.2)
    for panel, (title, matrix) in zip(grid, panels.items(), strict=True):
        image = panel.imshow(matrix, cmap="viridis", vmin=low, vmax=high)
        for i, largest in enumerate(matrix.argmax(1)):
            panel.add_patch(Rectangle((i - 0.46, i - 0.46), 0.92, 0.92, fill=False, ec="white", lw=1.5))
            panel.plot(largest, i, "o", ms=5, color="black", mec="white", mew=0.8)
        panel.set_title(title, fontsize="medium")
        panel.set_xticks(range(len(fields)), fields, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        panel.set_yticks(range(len(fields)), fields, parse_math=False)
        panel.set(xlabel="field masked in the table", ylabel="field masked in the text")
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    grid.cbar_axes[0].colorbar(image, label="cosine similarity").outline.set_visible(False)
    save(figure, path)


# ---- figure 6


def embedding_spread(model: FlipPreTrainedModel, processor: FlipProcessor) -> dict[str, Any]:
    """How the embeddings of the n features that training saw lie in their space (figure 6).

    Returns:
        "mean_cosine", over all pairs of features: 1 where all are parallel; "effective_rank", the exponential of the entropy of
        the normalised singular values (Roy and Vetterli, EUSIPCO 2007), from 1 to the embedding size; "coordinates" (n, 2),
        the projection to the first two singular directions; and "fields", the coordinates of each field's features by its name.
    """
    vocabulary = processor.vocabulary
    seen = torch.from_numpy(np.flatnonzero(vocabulary.feature_counts))
    table = model.base_model.feature_embeddings.embedding.weight.detach().cpu()
    embeddings = table[seen].double().numpy()
    left, singular, _ = np.linalg.svd(embeddings, full_matrices=False)
    coordinates = left[:, :2] * singular[:2]
    coordinates *= np.where(coordinates.sum(0) < 0, -1, 1)  # the sign of a direction is arbitrary
    owner = np.searchsorted(vocabulary.feature_offsets, seen.numpy(), side="right") - 1
    directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    n = len(seen)
    return {
        "mean_cosine": float((np.square(directions.sum(0)).sum() - n) / (n * (n - 1))),
        "effective_rank": float(np.exp(entropy(singular))),
        "coordinates": coordinates,
        "fields": {vocabulary.fields[i]: coordinates[owner == i] for i in np.unique(owner)},
    }


def draw_embeddings(spreads: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws what `embedding_spread` gives, by title, side by side as `path`.png and .svg. What counts are directions: every panel
    has the origin in its centre and a scale of its own, which leaves at most one point in a hundred outside. Each field has a
    colour; many fields have the same ones again."""
    figure = Figure(figsize=(2.9 * len(spreads) + 1.2, 3.3), layout="constrained")
    axes = figure.subplots(1, len(spreads), squeeze=False)[0]
    for panel, (title, spread) in zip(axes, spreads.items(), strict=True):
        points = spread["coordinates"]
        end = 1.2 * np.quantile(np.abs(points).max(1), 0.99)
        panel.axhline(0, color="0.8", lw=0.8)
        panel.axvline(0, color="0.8", lw=0.8)
        for i, (field, its) in enumerate(spread["fields"].items()):
            panel.plot(*its.T, ".", ms=4, color=f"C{i % 10}", alpha=0.6, mew=0, rasterized=True, label=field)
        panel.set(xlim=(-end, end), ylim=(-end, end), aspect="equal", xlabel="first singular direction")
        panel.set_title(title, fontsize="medium", pad=18, parse_math=False)
        measured = f"mean cosine {spread['mean_cosine']:z.2f}, effective rank {spread['effective_rank']:.1f}"
        panel.text(0.5, 1.03, measured, ha="center", fontsize="small", transform=panel.transAxes)
        panel.locator_params(nbins=4)
        panel.tick_params(labelsize="small")
    axes[0].set_ylabel("second singular direction")
    names = axes[-1].get_legend_handles_labels()
    legend = figure.legend(*names, loc="outside right center", title="features of", fontsize="small", markerscale=2)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As `path`.png and .svg; the same figure gives the same bytes."""
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path.with_suffix(".png"), dpi=200, bbox_inches="tight")
        figure.savefig(path.with_suffix(".svg"), dpi=200, bbox_inches="tight", metadata={"Date": None})


# ---- the command


def load(checkpoint: str) -> tuple[FlipForPreTraining, FlipProcessor]:
    """Raises ValueError if its objectives are not trained."""
    model = FlipForPreTraining.from_pretrained(checkpoint)
    if model.untrained_weights:
        raise ValueError(f"{checkpoint} is no checkpoint of pretraining: it lacks {model.untrained_weights[0]}")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), FlipProcessor.from_pretrained(checkpoint)


def label_of(config: FlipConfig) -> str:
    """What the paper calls a pretraining without some of its objectives."""
    left_out = [name.upper() for name in OBJECTIVES if not getattr(config, f"{name}_weight")]
    return f"w/o {'&'.join(left_out)}" if left_out else "FLIP"


def read_rows(name: str, raw_dir: str | None, count: int) -> pa.Table:
    """At most `count` rows, evenly spread over a file, or over the test rows of a registered dataset."""
    dataset = registered_datasets().get(name)
    rows = open_table(name).to_table() if dataset is None else as_table(dataset.load(name, raw_dir)["test"])
    return rows.take(pa.array(np.linspace(0, len(rows), min(count, len(rows)), endpoint=False).astype(np.int64)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folder or Hub id")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="names of the checkpoints")
    parser.add_argument("--rows", required=True, metavar="FILE_OR_DATASET")
    parser.add_argument("--raw_dir", help="folder of the dataset's raw files")
    parser.add_argument(
        "--num_rows", type=int, default=256, help="how many rows to average over (default: %(default)s)"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args(arguments)
    loaded = [load(checkpoint) for checkpoint in args.checkpoints]
    labels = args.labels or [label_of(model.config) for model, _ in loaded]
    if len(set(labels)) != len(loaded):
        parser.error(f"{len(loaded)} checkpoints need as many --labels, all different; they are {labels}")
    rows = read_rows(args.rows, args.raw_dir, args.num_rows)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    figures: dict[str, dict[str, Any]] = {}
    spreads, heat_map = {}, None
    for label, (model, processor) in zip(labels, loaded, strict=True):
        spreads[label] = spread = embedding_spread(model, processor)
        figures[label] = found = {name: spread[name] for name in ("mean_cosine", "effective_rank")}
        found |= {"features": len(spread["coordinates"]), "embedding_size": model.config.embedding_size}
        if model.config.icl_weight:
            similarity = masked_field_similarity(model, processor, processor.encode(rows))
            one, mean = similarity[0], similarity.mean(0)
            found["fields"] = [processor.fields[i] for i in processor.vocabulary.table_columns]
            heat_map = {"one row": one, f"mean of {len(rows)} rows": mean}, found["fields"]
            for name, matrices in {"one_row": one, "mean_matrix": mean, "every_row": similarity}.items():
                found[name] = diagonal_figures(matrices)
    if heat_map is not None:
        draw_heat_map(*heat_map, args.output_dir / "heat_map")
    draw_embeddings(spreads, args.output_dir / "embeddings")
    content = {"rows": len(rows), "checkpoints": figures, **environment()}
    (args.output_dir / "alignment.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    show(figures)


def show(figures: Mapping[str, Mapping[str, Any]]) -> None:
    kinds = {"one_row": "one row", "mean_matrix": "mean matrix", "every_row": "every row"}
    heads = "".join(f"{head:>17}" for head in [*kinds.values(), "on the diagonal", "off it"])
    print(f"\n{'':20}{'embeddings':>22}   the diagonal is the largest of its row / column")
    print(f"{'':20}{'cosine':>10}{'rank':>12}{heads}")
    for label, found in figures.items():
        cells = []
        if "every_row" in found:
            of = [found[kind] for kind in kinds]
            cells = [f"{one['largest_of_row']:.2f} / {one['largest_of_column']:.2f}" for one in of]
            cells += [f"{of[-1][name]:.3f}" for name in ("mean_diagonal", "mean_off_diagonal")]
        rank = f"{found['effective_rank']:.1f} of {found['embedding_size']}"
        print(f"{label:20}{found['mean_cosine']:10.3f}{rank:>12}" + "".join(f"{cell:>17}" for cell in cells))


if __name__ == "__main__":
    main()
