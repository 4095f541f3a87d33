"""From a DataFrame to click probabilities: `python -m examples.dataframe_to_scores` (about a minute on two cores, no download).

The demo stands for your own data: any DataFrame with a column of clicks, 0 and 1. `demo.text_model` makes a tiny language model
with random weights; for your own data use a Hub id instead, such as "sentence-transformers/all-MiniLM-L6-v2".
"""

from transformers import AutoTokenizer, pipeline

from data_scripts import demo
from modeling_flip import FlipForCTR, FlipProcessor, FlipTrainer, FlipTrainingArguments

log = demo.load()
train, validation, new = (log[split].to_pandas() for split in ("train", "validation", "test"))
text_model = demo.text_model("outputs/examples/text-model", log)

processor = FlipProcessor.fit(train, tokenizer=AutoTokenizer.from_pretrained(text_model), label="label")
model = FlipForCTR.from_text_pretrained(text_model, processor)
args = FlipTrainingArguments("outputs/examples/clicks", num_train_epochs=2, eval_strategy="epoch")
train_rows, eval_rows = (processor.encode(frame, "label") for frame in (train, validation))
trainer = FlipTrainer(model, args, processor, train_rows, eval_rows)
trainer.train()
trainer.save_model()  # model and processor

score = pipeline("ctr-prediction", model="outputs/examples/clicks")
print(score(new.head(3)))
