"""Score rows as they come in, without holding them in memory: `python -m examples.score_a_stream`.

It scores with the model of `examples.dataframe_to_scores`: run that first. Rows may come from a queue, a database cursor or a
`datasets.IterableDataset`; the pipeline reads 16 batches ahead.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from transformers import pipeline

import modeling_flip  # noqa: F401  # registers the pipeline
from data_scripts import demo


def incoming() -> Iterator[dict[str, Any]]:
    """Stands for your own stream of rows. Unseen and missing values are fine."""
    yield {"user_id": "a new user", "title": "Brilliant Comet Rocket"}
    yield from demo.load()["test"]


score = pipeline("ctr-prediction", model="outputs/examples/clicks")
for row, scored in zip(islice(incoming(), 1000), score(islice(incoming(), 1000)), strict=True):
    if scored["probability"] > 0.9:
        print(f"{scored['probability']:.3f}  user {row['user_id']}: {row['title']}")
