"""Several tabular towers on the same rows: `python -m examples.compare_towers` (a minute on two cores, no download).

Each is trained from scratch with the same settings. One seed proves little: docs/results.md says when a model is better.
"""

from transformers import set_seed

from data_scripts import demo
from modeling_flip import FlipConfig, FlipForCTR, FlipProcessor, FlipTrainer, FlipTrainingArguments

log = demo.load()
processor = FlipProcessor.fit(log["train"], label="label")  # no tokenizer: no text tower
train, test = (processor.encode(log[split], "label") for split in ("train", "test"))

for name in ("dcnv2", "deepfm", "autoint", "wide_deep"):
    set_seed(0)
    model = FlipForCTR(
        FlipConfig.from_processor(processor, tabular_tower=name, embedding_size=16, hidden_sizes=[64, 32])
    )
    args = FlipTrainingArguments(
        f"outputs/examples/towers/{name}", num_train_epochs=1, save_strategy="no", report_to="none"
    )
    trainer = FlipTrainer(model, args, processor, train)
    trainer.train()
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    print(f"{name}: AUC {metrics['test_auc']:.4f}, logloss {metrics['test_logloss']:.4f}")
