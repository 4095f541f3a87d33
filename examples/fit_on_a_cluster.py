"""Fit a processor on files that many machines read, as a job of Ray: `python -m examples.fit_on_a_cluster` (extra `cluster`).

Without a cluster Ray starts on this machine. Its result is that of one machine, to the byte: parts are merged in their order.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from data_scripts import demo
from modeling_flip import FeatureVocabulary, Field, FlipProcessor

# The demo stands for your log: Parquet files that every machine can read, with the rows in the order of their names.
train, folder = demo.load()["train"], Path("outputs/examples/log")
folder.mkdir(parents=True, exist_ok=True)
for i in range(8):
    train.shard(8, i, contiguous=True).to_parquet(folder / f"part-{i:04}.parquet")
paths = [str(path.absolute()) for path in sorted(folder.glob("*.parquet"))]

# Fields are decided once, here from the first row group of each file. You can list them instead: [Field(name="user_id"), ...].
sample = pa.concat_tables([pq.ParquetFile(path).read_row_group(0) for path in paths])
schema = FlipProcessor.fit(sample, label="label").schema


@ray.remote
def fit(path: str, schema: Sequence[Field]) -> FeatureVocabulary:
    return FeatureVocabulary.fit(pq.read_table(path), schema)


@ray.remote
def merge(*parts: FeatureVocabulary) -> FeatureVocabulary:
    return FeatureVocabulary.merge(parts)


ray.init(ignore_reinit_error=True)  # RAY_ADDRESS names a cluster
parts = [fit.remote(path, schema) for path in paths]
while len(parts) > 1:  # neighbours are merged, so that the order of the parts stays
    parts = [merge.remote(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
FlipProcessor(None, ray.get(parts[0])).save_pretrained("outputs/examples/fitted")
