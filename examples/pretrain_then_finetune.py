"""FLIP in its two stages: align the towers, then finetune them to predict the click, and keep the tabular tower alone too.

Run it with `python -m examples.pretrain_then_finetune`: a few minutes on two cores, no download.
"""

from transformers import AutoTokenizer

from data_scripts import demo
from modeling_flip import FlipForCTR, FlipForPreTraining, FlipProcessor, FlipTrainer, FlipTrainingArguments

log = demo.load()
text_model = demo.text_model("outputs/examples/text-model", log)
processor = FlipProcessor.fit(log["train"], tokenizer=AutoTokenizer.from_pretrained(text_model), label="label")
train, validation, test = (processor.encode(log[split], "label") for split in ("train", "validation", "test"))

# Stage 1: whole fields are masked in one view of a row and recovered with the help of the other. It reads no labels.
model = FlipForPreTraining.from_text_pretrained(text_model, processor)
args = FlipTrainingArguments("outputs/examples/aligned", num_train_epochs=3, text_learning_rate=1e-3, logging_steps=20)
trainer = FlipTrainer(model, args, processor, train)
trainer.train()
trainer.save_model()

# Stage 2: the aligned towers learn to predict the click. The epoch with the best validation AUC is kept.
model = FlipForCTR.from_pretrained("outputs/examples/aligned")
args = FlipTrainingArguments(
    "outputs/examples/flip",
    num_train_epochs=3,
    eval_strategy="epoch",
    save_strategy="epoch",
    load_best_model_at_end=True,
    metric_for_best_model="auc",
)
trainer = FlipTrainer(model, args, processor, train, validation)
trainer.train()
trainer.save_model()
print(trainer.evaluate(test, metric_key_prefix="test"))

# The tabular tower alone (FLIP_ID) scores without any language model.
alone = FlipForCTR.from_pretrained("outputs/examples/flip", towers="tabular")
alone.save_pretrained("outputs/examples/flip-id", processor=processor.tabular_only())
