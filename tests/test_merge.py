"""Merged models: the same scores and answers as the adapter's, whole or not there, and never over something else."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model, tiny_t5, tiny_values
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from retain import cli, publishing
from retain.config import load_config, make_config
from retain.model import load_model
from retain.publishing import Mixture, check_saved, merge
from retain.run import run
from retain.types import InputError

PROMPTS = ("Name the color.\ntrain 3 x\nAnswer:\n", "abc", "Size?")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    values = tiny_values(folder, strategy="none")
    values["training"]["learning_rate"] = 0.05  # so that the adapter matters
    return run(make_config(values, "test"), folder)


def ids(text, tokenizer):
    return torch.tensor([tokenizer(text).input_ids])


@pytest.mark.parametrize("stage", [None, 1])
def test_the_merged_model_answers_as_the_adapter_does(finished, tmp_path, stage):
    merge(finished, tmp_path / "out", stage)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    lm = load_model(load_config(finished / "config.yaml"), finished)
    lm.load_adapter(sorted((finished / "stages").glob("[0-9]*-*"))[-1 if stage is None else stage] / "adapter")
    lm.model.eval()
    for text in PROMPTS:
        given = ids(text, tokenizer)
        assert torch.equal(given, ids(text, lm.tokenizer))
        with torch.no_grad():
            merged, adapted = model(given).logits, lm.model(input_ids=given).logits
            with lm.base():
                untouched = lm.model(input_ids=given).logits
        assert (merged - adapted).abs().max() < 1e-4 < 0.01 < (merged - untouched).abs().max()
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(given, **options), lm.model.generate(input_ids=given, **options))


def test_the_folder_holds_a_model_a_tokenizer_and_a_card_and_no_path(finished, tmp_path):
    merge(finished, tmp_path / "new" / "out", dtype="bfloat16")
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert "library_name: transformers" in (tmp_path / "new" / "out" / "README.md").read_text()
    for path in (tmp_path / "new" / "out").iterdir():
        assert str(finished.parent).encode() not in path.read_bytes(), path.name
    assert {one.dtype for one in load_file(tmp_path / "new" / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_nothing_is_overwritten_or_left_half(finished, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="not an empty folder"):
        merge(finished, tmp_path / "out")
    with pytest.raises(InputError, match="not an empty folder"):
        merge(finished, tmp_path / "out" / "mine")

    def broken(folder, model):
        raise OSError(5, "broken")

    monkeypatch.setattr(publishing, "check_saved", broken)
    with pytest.raises(OSError):
        merge(finished, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_check_finds_a_changed_and_a_missing_tensor(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    check_saved(tmp_path, model)
    save_file(state | {"0.bias": state["0.bias"] + 1e-6}, tmp_path / "model.safetensors")
    with pytest.raises(OSError, match=r"0\.bias was not written as it is"):
        check_saved(tmp_path, model)
    del state["1.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(OSError, match="15 of 17 values"):
        check_saved(tmp_path, model)


def test_an_encoder_decoder(tmp_path):
    values = tiny_values(tmp_path, strategy="none", tasks=tiny_values(tmp_path)["tasks"][:1])
    shutil.rmtree(tmp_path / "model")
    save_tiny_model(tmp_path / "model", tiny_t5())
    out = run(make_config(values, "test"), tmp_path)
    merge(out, tmp_path / "out")
    lm = load_model(load_config(out / "config.yaml"), out)
    lm.load_adapter(out / "stages" / "01-color" / "adapter")
    model, given = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval(), ids("red?", lm.tokenizer)
    start = torch.tensor([[0]])
    with torch.no_grad():
        adapted = lm.model.eval()(input_ids=given, decoder_input_ids=start).logits
        assert (model(input_ids=given, decoder_input_ids=start).logits - adapted).abs().max() < 1e-4
    assert "pipeline_tag: text2text-generation" in (tmp_path / "out" / "README.md").read_text()


def changes(finished, folder):
    """What a merge added to each weight of the base model."""
    base, merged = (load_file(path / "model.safetensors") for path in (finished.parent / "model", folder))
    return {name: merged[name] - base[name] for name in base}


def test_cat_is_the_weighted_mean_of_what_the_stages_changed(finished, tmp_path):
    for stage in (1, 2, 3):
        merge(finished, tmp_path / str(stage), stage)
    merge(finished, tmp_path / "mean", mixture=Mixture([1, 2, 3]))
    merge(finished, tmp_path / "weighted", mixture=Mixture([1, 3], "cat", [0.25, 0.75]))
    alone = {stage: changes(finished, tmp_path / str(stage)) for stage in (1, 2, 3)}
    for folder, shares in (("mean", {1: 1 / 3, 2: 1 / 3, 3: 1 / 3}), ("weighted", {1: 0.25, 3: 0.75})):
        found = changes(finished, tmp_path / folder)
        for name, change in found.items():
            expected = sum(share * alone[stage][name] for stage, share in shares.items())
            torch.testing.assert_close(change, expected, atol=1e-5, rtol=1e-4)
        assert max(change.abs().max() for change in found.values()) > 1e-3


@pytest.mark.parametrize("method", publishing.METHODS)
def test_every_method_writes_a_model_and_the_same_again(finished, tmp_path, method):
    state = torch.get_rng_state()
    for folder in ("a", "b"):
        merge(finished, tmp_path / folder, mixture=Mixture([1, 2], method))
    assert torch.equal(state, torch.get_rng_state())
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("strategy", ["o-lora", "osf"])
def test_adapters_of_other_shapes(tmp_path, strategy):
    values = tiny_values(tmp_path, strategy=strategy)
    values["tasks"].pop()
    out = run(make_config(values, "test"), tmp_path)
    merge(out, tmp_path / "out")
    lm = load_model(load_config(out / "config.yaml"), out)
    lm.load_adapter(out / "stages" / "02-size" / "adapter")
    model, given = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), ids("red?", lm.tokenizer)
    with torch.no_grad():
        assert (model(given).logits - lm.model.eval()(input_ids=given).logits).abs().max() < 1e-4


# ---- the command ----------------------------------------------------------------------------------------


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["retain", "merge", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    told = capsys.readouterr()
    return stopped.value.code or 0, told.out, told.err.strip()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--stage", "9"], "--stage: 9 is not a finished stage"),
        (["--stages", "1,x"], "--stages: '1,x'; give numbers"),
        (["--stages", "1,0"], "--stage: 0 is not a finished stage"),
        (["--stages", "1,2", "--weights", "1"], "--weights: 1 for 2 stages"),
        (["--stages", "1,2", "--method", "tie"], "--method: 'tie'; choose cat"),
        (["--stages", "1,2", "--method", "ties", "--density", "0"], "--density: 0"),
        (["--stages", "1,2", "--stage", "1"], "give one of them"),
        (["--dtype", "int8"], "--dtype: 'int8'"),
        (["--gguf", "x.gguf", "--converter", "nowhere.py"], "--converter: 'nowhere.py' is no file"),
        (["--gguf", "x.gguf"], "no convert_hf_to_gguf.py on PATH"),
    ],
)
def test_wrong_options_are_one_message(finished, tmp_path, monkeypatch, capsys, options, expected):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, error = command(monkeypatch, capsys, finished, "--out", tmp_path / "out", *options)
    assert code == 2 and expected in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_by_a_converter(finished, tmp_path, monkeypatch, capsys):
    """The converter is a fake that takes llama.cpp's arguments."""
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text(
        "import sys, pathlib\n"
        "folder, option, target = sys.argv[1:]\n"
        "assert option == '--outfile' and (pathlib.Path(folder) / 'model.safetensors').is_file()\n"
        "pathlib.Path(target).write_bytes(b'GGUF')\n"
    )
    arguments = (finished, "--out", tmp_path / "out", "--gguf", tmp_path / "m.gguf", "--converter", converter)
    code, said, _ = command(monkeypatch, capsys, *arguments)
    assert code == 0 and (tmp_path / "m.gguf").read_bytes() == b"GGUF" and "gguf:" in said
    code, _, error = command(monkeypatch, capsys, *arguments)
    assert code == 2 and "m.gguf is there already" in error
    converter.write_text("import sys\nsys.exit('unknown\\nmodel type')")
    other = (finished, "--out", tmp_path / "out2", "--gguf", tmp_path / "n.gguf", "--converter", converter)
    code, _, error = command(monkeypatch, capsys, *other)
    assert code == 1 and "model type" in error and "the merged model stands in" in error
    assert not (tmp_path / "n.gguf").exists() and (tmp_path / "out2" / "config.json").exists()


def test_weights_that_are_not_finite_are_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    config = json.loads((finished.parent / "model" / "config.json").read_text())
    assert config["model_type"] == "llama"
    shutil.copytree(finished.parent / "model", tmp_path / "model")
    path = tmp_path / "run" / "stages" / "03-shape" / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: torch.full_like(tensor, 1e30) for name, tensor in weights.items()}, path)
    with pytest.raises(InputError, match="merged weights are not finite"):
        merge(tmp_path / "run", tmp_path / "out")
