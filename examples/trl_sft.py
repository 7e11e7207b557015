"""Two tasks in turn with TRL and MSSR, and what was forgotten: python examples/trl_sft.py DATA OUT [STRATEGY]"""

import sys

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from retain.embedded import embedded_model
from retain.integrations.transformers import Replay, replayify

data, out, strategy = [*sys.argv[1:], "mssr"][:3]
files = {f"{task}_{split}": f"{data}/{task}/{split}.jsonl" for task in ("trec", "sst2") for split in ("train", "test")}
form = lambda row: {"prompt": f"{row['instruction']}\n{row['input']}\nAnswer:\n", "completion": row["output"]}  # noqa: E731
sets = {name: load_dataset("json", data_files=file)["train"].take(32).map(form) for name, file in files.items()}
options = {"per_device_train_batch_size": 4, "learning_rate": 2e-3, "num_train_epochs": 1, "bf16": False}
model, lora, table = str(embedded_model()), LoraConfig(target_modules=["q_proj", "v_proj"]), {}
for task in ("trec", "sst2"):
    trainer = replayify(SFTTrainer)(model, SFTConfig(f"{out}/{task}", **options), train_dataset=sets[f"{task}_train"],
                                    peft_config=lora, replay=Replay(f"{out}/memory", task, strategy))  # fmt: skip
    trainer.train()
    model, lora = trainer.model, None
    table[task] = [trainer.evaluate(sets[f"{name}_test"])["eval_loss"] for name in ("trec", "sst2")]
print("held-out loss  trec   sst2", *(f"after {task}     {one:.3f}  {two:.3f}" for task, (one, two) in table.items()),
      f"forgotten      {table['sst2'][0] - table['trec'][0]:+.3f}", sep="\n")  # fmt: skip
