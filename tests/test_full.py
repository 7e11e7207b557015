"""Full fine-tuning: the contract of strategies, what a stage keeps, and every command on such a directory."""

import json

import numpy as np
import pytest
import torch
from crash.same import differences
from test_contract import difference, opened, run_float64, stopped_and_resumed  # noqa: F401 (fixtures)
from test_run import adapter, journal, same_tensors
from tiny import stopped_after, tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from retain.buffer import read_samples
from retain.bundle import write_bundle
from retain.calibrate import calibrate
from retain.config import load_config, make_config
from retain.erasure import erase, find
from retain.exporting import export
from retain.gate import check_gate
from retain.learner import Learner
from retain.model import load_model
from retain.report import write_report
from retain.rollback import rollback
from retain.run import evaluate
from retain.rundir import RunDir
from retain.sections import GateConfig
from retain.sharding import check_shardable
from retain.types import InputError
from retain.weights import load_weights, save_weights, weight_files

FULL = {"method": "full", "learning_rate": 1.0e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("full")


@pytest.fixture(scope="module")
def plain(folder):
    return run_float64(folder, "plain", "none", **FULL)


@pytest.mark.parametrize("name", ["none", "mssr", "ewc", "gem", "lwf", "er + si"])
def test_contract_of_full_fine_tuning(name, tmp_path, plain, monkeypatch, opened):  # noqa: F811
    one = run_float64(tmp_path, "one", name, **FULL)
    with stopped_after(2, 5, monkeypatch):
        run_float64(tmp_path, "stopped", name, every=2, **FULL)
    stopped = run_float64(tmp_path, "stopped", name, **FULL)
    assert [line["after_step"] for line in journal(stopped, "resume") if "after_step" in line] == [4]
    assert differences(one, stopped) == [], "another end after it was stopped"

    cut = run_float64(tmp_path, "cut", name, micro_batch_size=1, **FULL)
    # Norms round in float32, and Adam turns a gradient that is hardly more than that into part of a step of 1e-2.
    apart = np.concatenate([np.ravel(adapter(cut)[key] - value) for key, value in adapter(one).items()])
    assert np.sqrt((apart**2).mean()) < 2e-5 and abs(apart).max() < 2e-3, "depends on micro-batches"
    assert same_tensors(adapter(one, 1), adapter(plain, 1)), "the first stage has nothing to protect"
    if name != "none":
        assert difference(adapter(one), adapter(plain)) > 1e-5, "does not act"
    lm, base = opened[0][0], tiny_llama(torch.float64).state_dict()
    trained = {key: value.clone() for key, value in lm.model.state_dict().items()}
    with lm.base():
        assert all(torch.equal(lm.model.state_dict()[key], value) for key, value in base.items())
    assert all(torch.equal(lm.model.state_dict()[key], value) for key, value in trained.items())
    assert any(not torch.equal(trained[key], value) for key, value in base.items())


def test_a_stage_keeps_a_model_that_transformers_reads(plain):
    rows = sorted((plain / "stages").glob("[0-9]*"))
    assert not list(plain.rglob("adapter")) and not list(plain.rglob("*.bin"))
    model = AutoModelForCausalLM.from_pretrained(rows[-1] / "model")
    tokenizer = AutoTokenizer.from_pretrained(rows[-1] / "model")
    assert model.config._attn_implementation != "retain_tree" and tokenizer.eos_token == "<end>"
    assert "retain_tree" not in (rows[-1] / "model" / "config.json").read_text()
    written = adapter(plain)
    assert all(np.array_equal(written[name], value.detach()) for name, value in model.named_parameters())


def test_scores_come_again_from_what_is_kept(plain):
    for stage in (0, 1, 3):
        found = evaluate(plain, stage)["scores"]
        row = sorted((plain / "stages").glob("[0-9]*"))[stage]
        noted = json.loads((row / "scores.json").read_text())["scores"]
        assert {name: one["nll"] for name, one in found.items()} == {name: one["nll"] for name, one in noted.items()}


def test_rollback_and_on(folder, tmp_path):
    one, two = (run_float64(tmp_path, name, "mssr", **FULL) for name in ("one", "two"))
    rollback(two, "1", delete=True)
    run_float64(tmp_path, "two", "mssr", **FULL)
    assert same_tensors(adapter(one), adapter(two))


def test_a_task_of_later_is_scored_with_the_weights_of_each_row(folder, tmp_path, plain):
    learner = Learner({"name": str(folder / "model"), "dtype": "float64"}, "none", tmp_path / "run",
                      training={**FULL, "batch_size": 4, "max_length": 128})  # fmt: skip
    for name in ("color", "size"):
        learner.learn(name=name, train=str(folder / f"{name}_train.jsonl"), test=str(folder / f"{name}_test.jsonl"))
    matrix = learner.evaluate()["matrices"]["nll"]
    expected = json.loads((plain / "results.json").read_text())["matrices"]["nll"]
    assert matrix[0] == pytest.approx(expected[0][:2], abs=1e-9)
    assert len({row[1] for row in matrix}) == 3, "the base, stage 1 and stage 2 differ"


def test_reports_exports_calibration_gate_and_erasure_go_on(tmp_path):
    out = run_float64(tmp_path, "run", "mssr", **FULL)
    assert write_report(out).is_file()
    assert export(out, "jsonl", tmp_path / "samples")
    assert check_gate(RunDir(out), load_config(out / "config.yaml").model_copy(update={"gate": GateConfig(score=0.9)}))
    with pytest.raises(InputError, match="none of 72 observations of stored samples was forgotten"):
        calibrate(out)
    assert len(list((out / "probes").iterdir())) == 3, "each stage's weights were read"
    write_bundle(out, tmp_path / "bundle.zip", {})
    before = adapter(out)
    erase(find(out, record="color/0"))
    assert same_tensors(adapter(out), before)
    names = {sample.id for sample in read_samples(out / "buffer" / "samples.parquet")}
    assert names and "color/0" not in names


def test_sharding_is_refused():
    config = make_config({"training": {"method": "full"}}, "test", need_tasks=False)
    with pytest.raises(InputError, match=r"training.method: full does not work with a model sharded by FSDP"):
        check_shardable(config)


@pytest.fixture
def lm(folder, plain):
    config = make_config({"model": str(folder / "model"), "training": {"method": "full"}}, "test", need_tasks=False)
    return load_model(config)


def test_weights_in_shards(lm, tmp_path):
    lm.model.save_pretrained(tmp_path / "model", max_shard_size="10KB")
    before = {key: value.clone() for key, value in lm.model.state_dict().items()}
    assert len(weight_files(tmp_path)) > 2
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.zero_()
    load_weights(lm, tmp_path)
    assert all(torch.equal(lm.model.state_dict()[key], value) for key, value in before.items())


def test_weights_that_are_none(lm, tmp_path):
    with pytest.raises(InputError, match=r"model: no weights in it; restore it"):
        load_weights(lm, tmp_path)
    save_weights(lm, tmp_path)
    [path] = weight_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(InputError, match="model: its weights are broken"):
        load_weights(lm, tmp_path)
    path.write_bytes(whole)
    with torch.no_grad():
        next(lm.model.parameters())[0, 0] = float("nan")
    save_weights(lm, tmp_path)
    with pytest.raises(InputError, match="its weights are not finite"):
        load_weights(lm, tmp_path)


def test_weights_of_another_model(lm, tmp_path):
    other = tiny_llama()
    del other.model.layers[1]
    other.config.num_hidden_layers = 1
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"not the weights of this model"):
        load_weights(lm, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "o-lora", "training": {"method": "full"}}, r"training.method: full, and strategy 'o-lora' is a"),
        ({"strategy": "osf", "training": {"method": "full"}}, r"training.method: full, and strategy 'osf' is a"),
        ({"strategy": "osf", "training": {"method": "qlora"}}, r"training.method: qlora, and strategy 'osf' is a"),
        ({"strategy": "o-lora", "lora": {"use_dora": True}}, r"lora.use_dora: given, and strategy 'o-lora' is a"),
        ({"training": {"method": "fulll"}}, r"training.method: 'fulll'.*lora, qlora, full"),
        ({"lora": {"use_doraa": True}}, r"use_doraa.*use_dora"),
        ({"lora": {"init_lora_weights": "pissa"}}, r"lora.init_lora_weights: 'pissa'"),
        ({"lora": {"rank_pattern": {"q_proj": 0}}}, r"rank_pattern"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make_config(changes, "test", need_tasks=False)
