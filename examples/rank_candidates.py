"""Rank the items that could be shown to one user: `python -m examples.rank_candidates` (seconds).

It scores with the model of `examples.dataframe_to_scores`: run that first.
"""

from transformers import pipeline

import modeling_flip  # noqa: F401  # registers the pipeline
from data_scripts import demo

log = demo.load()["test"].to_pandas()
user = log.loc[0, ["user_id", "age", "occupation", "interest"]].to_dict()
candidates = log[["item_id", "title", "category"]].drop_duplicates("item_id").to_dict("records")

score = pipeline("ctr-prediction", model="outputs/examples/clicks")
print(f"user {user['user_id']}, {user['occupation']}, who likes {user['interest']}; {len(candidates)} candidates")
for best in score.rank(user, candidates, top_k=5):
    print(f"{best['probability']:.3f}  {candidates[best['index']]['title']}")

# Several users at once: rows as they are logged, and each row's rank among those of its user.
rows = log.head(20)
rows["rank"] = [scored["rank"] for scored in score(rows, group_by="user_id")]
print(rows.sort_values(["user_id", "rank"])[["user_id", "rank", "title"]].to_string(index=False))
