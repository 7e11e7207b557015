"""Loading models: what is wrong is said in one message."""

import logging

import pytest
from tiny import byte_tokenizer, save_tiny_model

from retain.config import make_config
from retain.model import load_model
from retain.types import InputError, Sample


def config(model, **sections):
    return make_config({"model": str(model), **sections}, "test", need_tasks=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_the_same_seed_draws_the_same_adapter(folder):
    one, two, other = (load_model(config(folder, seed=seed)) for seed in (1, 1, 2))
    first = [next(iter(lm.parameters())) for lm in (one, two, other)]
    assert first[0].equal(first[1]) and not first[0].equal(first[2])


def test_only_the_adapter_is_trained(folder):
    lm = load_model(config(folder))
    assert {name for name, p in lm.model.named_parameters() if p.requires_grad} == {
        name for name, _ in lm.model.named_parameters() if "lora_" in name
    }


def test_adapters_come_back_as_they_were(folder, tmp_path):
    lm = load_model(config(folder))
    kept = [p.detach().clone() for p in lm.parameters()]
    lm.save_adapter(tmp_path)
    for parameter in lm.parameters():
        parameter.data.zero_()
    lm.load_adapter(tmp_path)
    assert all(a.equal(b) for a, b in zip(kept, lm.parameters(), strict=True))
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize("name", ["no/such-model-anywhere", "/no/such/folder"])
def test_unknown_model(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"model.name: .*cannot be loaded.*smollm2-135m.*config.json.*Hub name"):
        load_model(config(name))


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load_model(config(tmp_path))


def test_damaged_weights(tmp_path):
    save_tiny_model(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(config(tmp_path))


def test_unknown_target_modules(folder):
    with pytest.raises(InputError, match=r"lora.target_modules: .*'nope'.*not found.*q_proj"):
        load_model(config(folder, lora={"target_modules": ["nope"]}))


def test_a_limit_beyond_the_models_positions_is_cut_and_said(folder, caplog):
    caplog.set_level(logging.WARNING, logger="retain")
    assert load_model(config(folder)).max_length == 256
    assert "2048 is cut to the model's 256 positions" in caplog.text


def test_a_chat_needs_a_chat_template(folder):
    lm = load_model(config(folder))
    assert byte_tokenizer().chat_template is None
    turns = (("user", "Hi"), ("assistant", "Hello"))
    with pytest.raises(InputError, match="no chat template"):
        lm.encode(Sample("c/0", "c", "", "Hello", messages=turns))
