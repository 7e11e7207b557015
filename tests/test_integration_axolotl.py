"""The Axolotl plugin against a stand-in that speaks Axolotl's interface; Axolotl itself needs a GPU's stack.

The stand-in does what Axolotl's plugin manager, its merge of configurations, its causal builder and its trainer's data
loader do with a plugin, as its sources have it (axolotl-ai-cloud/axolotl: integrations/base.py, integrations/config.py,
core/builders/causal.py, core/trainers/base.py).
"""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import pytest
import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from test_integration_transformers import arguments, buffer_of, collator, quiet, rows_of, steps_of, trainer_of  # noqa: F401
from tiny import byte_tokenizer, tiny_llama
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer

from retain.rundir import RunDir
from retain.types import InputError

PLUGIN = "retain.integrations.axolotl.RetainPlugin"


class Defaulting(dict):
    """A configuration as Axolotl hands it over: attributes for keys, None for what is not there."""

    def __init__(self, values):
        super().__init__({key: self.of(value) for key, value in values.items()})

    @classmethod
    def of(cls, value):
        return cls(value) if isinstance(value, dict) else value

    def __getattr__(self, name):
        return self.get(name)

    def __missing__(self, name):
        return None


class InputConfig(BaseModel):
    """The part of Axolotl's own configuration that is used here."""

    model_config = ConfigDict(extra="allow")
    plugins: list[str] | None = None
    trainer_cls: str | None = None


class BasePlugin:
    """Every hook does nothing."""

    def register(self, cfg):
        pass

    def get_input_args(self):
        pass

    def get_trainer_cls(self, cfg):
        pass

    def pre_model_load(self, cfg):
        pass


class AxolotlTrainer(Trainer):
    """Its own arguments, and its own data loader, which looks at the columns of what it is given."""

    def __init__(self, *args, bench_data_collator=None, eval_data_collator=None, dataset_tags=None, **kwargs):
        self.bench_data_collator, self.eval_data_collator = bench_data_collator, eval_data_collator
        super().__init__(*args, **kwargs)
        self.train_data_collator = self.data_collator

    def _get_dataloader(self, dataset, description, batch_size, sampler_fn=None, is_training=False, **rest):
        collate = self._get_collator_with_removed_columns(self.data_collator, description=description)
        sampler = sampler_fn(dataset) if sampler_fn else None
        if dataset.column_names and "length" in dataset.column_names:
            dataset = dataset.remove_columns(["length"])
        return self.accelerator.prepare(DataLoader(dataset, batch_size=batch_size, collate_fn=collate, sampler=sampler))


class OtherTrainer(AxolotlTrainer):
    """What a user may name under `trainer_cls`."""


@pytest.fixture
def axolotl(monkeypatch):
    """Axolotl's modules, as far as the plugin sees them."""
    names = ("axolotl", "axolotl.integrations", "axolotl.integrations.base", "axolotl.core", "axolotl.core.trainers",
             "axolotl.core.trainers.base")  # fmt: skip
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["axolotl.integrations.base"].BasePlugin = BasePlugin
    sys.modules["axolotl.core.trainers.base"].AxolotlTrainer = AxolotlTrainer
    sys.modules["axolotl.core.trainers.base"].OtherTrainer = OtherTrainer
    monkeypatch.delitem(sys.modules, "retain.integrations.axolotl", raising=False)
    yield
    sys.modules.pop("retain.integrations.axolotl", None)


def load(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def prepare(text):
    """YAML to the plugin and the configuration that its hooks get."""
    values = yaml.safe_load(text)
    plugin = load(values["plugins"][0])()
    assert isinstance(plugin, BasePlugin)
    whole = type("AxolotlInputConfig", (InputConfig, load(plugin.get_input_args())), {})
    cfg = Defaulting(whole(**values).model_dump(exclude_none=True))
    plugin.register(cfg)
    plugin.pre_model_load(cfg)
    return plugin, cfg


def build(folder, cfg, plugin, rows, model, **changes):
    """A trainer as the causal builder makes it."""
    trainer = plugin.get_trainer_cls(cfg)(
        model=model,
        train_dataset=rows,
        eval_dataset=None,
        args=arguments(folder, **changes),
        data_collator=collator(pad_to_multiple_of=8),
        callbacks=[],
        processing_class=byte_tokenizer(),
        eval_data_collator=collator(),
        bench_data_collator=collator(),
        dataset_tags=[],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def text_of(folder, name, **section):
    section = {"out": str(folder / "memory"), "task": name, **section}
    return f"base_model: tiny\nplugins:\n  - {PLUGIN}\nretain: {json.dumps(section)}\n"


MSSR = {"strategy": "mssr", "schedule": {"kind": "every", "lambda_0": 0.34}, "conflict_similarity": None}


def test_two_tasks_are_learned_with_replay(axolotl, tmp_path):
    """The same memory and the same replay as `replayify(Trainer)` makes, step by step."""
    mine, plain = tiny_llama(torch.float64), tiny_llama(torch.float64)
    for task in ("color", "size"):
        plugin, cfg = prepare(text_of(tmp_path, task, **(MSSR if task == "color" else {})))
        trainer = build(tmp_path, cfg, plugin, rows_of(task), mine)
        assert isinstance(trainer, AxolotlTrainer) and type(trainer).__name__ == "ReplayAxolotlTrainer"
        trainer.train()
        trainer_of(tmp_path / "plain", task, model=plain).train()
    run = RunDir(tmp_path / "memory")
    assert run.learned() == ["color", "size"] and buffer_of(run.path).tasks == {"color": 24, "size": 24}
    found, expected = (steps_of(folder, 2) for folder in (tmp_path, tmp_path / "plain"))
    for key in ("new", "replayed", "tokens"):
        assert [step[key] for step in found] == [step[key] for step in expected]
    assert sum(step["replayed"] for step in found) > 0
    assert [step["replay_loss"] for step in found] == pytest.approx(
        [step["replay_loss"] for step in expected], rel=1e-3
    )
    assert "conflict_similarity: null" in (run.path / "config.yaml").read_text(), "an explicit null is not lost"


def test_a_checkpoint_resumes(axolotl, tmp_path):
    model = tiny_llama(torch.float64)
    plugin, cfg = prepare(text_of(tmp_path, "color", **MSSR))
    trainer = build(tmp_path, cfg, plugin, rows_of(), model, save_strategy="steps", save_steps=2)
    trainer.replay.finish = lambda *rest: None  # as if it had stopped before
    trainer.train()
    again = build(tmp_path, cfg, plugin, rows_of(), model, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=True)
    assert len(steps_of(tmp_path, 1)) == 6 and RunDir(tmp_path / "memory").learned() == ["color"]


def test_a_trainer_of_the_users_own_gets_replay_too(axolotl, tmp_path):
    plugin, cfg = prepare(text_of(tmp_path, "color") + "trainer_cls: axolotl.core.trainers.base.OtherTrainer\n")
    assert issubclass(plugin.get_trainer_cls(cfg), OtherTrainer)


@pytest.mark.parametrize("kind", ["rl", "reward_model", "process_reward_model"])
def test_other_kinds_of_training_are_refused(axolotl, kind, tmp_path):
    plugin, cfg = prepare(text_of(tmp_path, "color") + f"{kind}: dpo\n")
    with pytest.raises(InputError, match=f"{kind}: replay is for supervised fine-tuning"):
        plugin.get_trainer_cls(cfg)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"task": None}, r"retain\.task: None is no text"),
        ({"out": 5}, r"retain\.out: 5 is no text"),
        ({"task": "no such/name"}, "name"),
        ({"scedule": {}}, "scedule: unknown key; did you mean schedule"),
        ({"schedule": {"lambda_0": 2}}, r"schedule\.lambda_0"),
        ({"strategy": "mssr + ewc"}, "regularizers act inside"),
        ({"strategy": "mssrr"}, "did you mean 'mssr'"),
    ],
)
def test_a_wrong_section_is_said_before_a_model_is_loaded(axolotl, section, message, tmp_path):
    with pytest.raises(ValidationError, match=message):
        prepare(text_of(tmp_path, "color", **section))
    assert not (tmp_path / "memory").exists()


def test_a_section_that_is_missing(axolotl, tmp_path):
    with pytest.raises(ValidationError, match="retain"):
        prepare(f"plugins: [{PLUGIN}]\n")


def test_packing_is_refused(axolotl, tmp_path):
    plugin, cfg = prepare(text_of(tmp_path, "color"))
    real = arguments(tmp_path)
    real.sample_packing = True
    with pytest.raises(InputError, match=r"sample_packing=True: a packed row .* batch_flattening=True"):
        plugin.get_trainer_cls(cfg)(tiny_llama(), real, collator(), rows_of(), processing_class=byte_tokenizer())


def test_retain_does_not_need_axolotl():
    assert "axolotl" not in sys.modules
    from retain.integrations.axolotl import RetainPlugin

    assert RetainPlugin().get_input_args() == "retain.integrations.axolotl.RetainArgs"
