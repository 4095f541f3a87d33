"""Items that training never saw: `python -m examples.cold_start` (seconds).

It scores with the model of `examples.pretrain_then_finetune`: run that first. The text tower reads a new item's title as any
other. The tabular tower has no embedding for it, and reads its field's "unknown" feature, or with cold_start="text" the embedding
that the text tower predicts from the words.
"""

from sklearn.metrics import roc_auc_score
from transformers import pipeline

import modeling_flip  # noqa: F401  # registers the pipeline
from data_scripts import demo

log = demo.load()
seen = set(log["train"]["item_id"]) | set(log["validation"]["item_id"])
test = log["test"].to_pandas()
new = test[~test["item_id"].isin(seen)]
print(f"{len(new)} of {len(test)} test rows show a new item. AUC on these:")

for cold_start in (None, "text"):
    score = pipeline("ctr-prediction", model="outputs/examples/flip", cold_start=cold_start)
    scored = score(new, return_towers=True)
    for name in scored[0]:
        print(f"{roc_auc_score(new['label'], [row[name] for row in scored]):.3f}  {name}, cold_start={cold_start!r}")
