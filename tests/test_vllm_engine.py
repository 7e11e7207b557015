"""Writing by vLLM, with a stand-in that speaks its interface: no test here has seen vLLM itself, or a GPU."""

import logging
import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import fake_vllm
import peft
import pytest
import torch
import yaml
from test_bad_synthesis import free_text
from test_losses import language_model
from test_run import adapter, journal, results, same_tensors
from test_storage import buffered
from tiny import save_tiny_model, stopped_in, terse, tiny_llama, tiny_t5, write_tasks
from transformers import AutoModelForCausalLM

from retain import generation, vllm_engine
from retain.batching import Encoded
from retain.cli import main
from retain.config import make_config
from retain.losses import sample_losses
from retain.model import LanguageModel
from retain.run import run
from retain.sampling import Sampling
from retain.store import read_lines
from retain.synthesize import synthesize
from retain.types import InputError
from retain.vllm_engine import check_engine, writing

PROMPTS = [[110, 111, 112], [120] * 7, [130, 131], [140, 141, 142], [150]]
PLAIN = Sampling(top_k=0, top_p=1.0)
WARPED = Sampling(temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.2)


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """The stand-in in place of vLLM on a machine with a GPU; the engines that were opened."""
    vllm_engine._open.cache_clear()
    monkeypatch.setattr(vllm_engine, "sees_gpu", lambda: True)
    yield fake_vllm.install(monkeypatch, tmp_path)
    vllm_engine._open.cache_clear()


@pytest.fixture
def lm(tmp_path):
    """A base model in a folder, with opinions and many tokens that end a text, and an adapter that changes it."""
    model = terse(tiny_llama())
    model.get_input_embeddings().weight.data.mul_(4)
    adapted = language_model(model=AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "base", model)))
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(5)
    return adapted


def config_of(**changes):
    synthesis = {"engine": "vllm", **changes.pop("synthesis", {})}
    return make_config({"tasks": [], "strategy": "ssr", "synthesis": synthesis, **changes}, "test", need_tasks=False)


def texts(lm, prompts=PROMPTS, sampling=PLAIN, length=12, config=None, **options):
    with writing(lm, config or config_of()) as draw:
        return draw(lm, prompts, sampling, length, **options)


# ---- the contract of `generation.sample` ------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [PLAIN, WARPED])
@pytest.mark.parametrize("off", [False, True])
def test_log_probabilities_are_those_of_our_own_scorer(sampling, off, engines, lm):
    """Under the unwarped distribution, the ending token included; of the base model where the adapter is off."""
    prompts = PROMPTS * 4
    with lm.base() if off else nullcontext():
        often = Counter(token for one in texts(lm, prompts, sampling) for token in one.ids).most_common(1)[0][0]
        found = texts(lm, prompts, sampling, stop=[often])
        whole = [one.ids + [often] * one.finished for one in found]
        losses = sample_losses(lm, [Encoded.of(*pair) for pair in zip(prompts, whole, strict=True)])
    assert 0 < sum(one.finished for one in found) < len(found), "some texts end and some are cut"
    for one, ids, loss in zip(found, whole, losses.tolist(), strict=True):
        assert often not in one.ids and one.tokens == len(ids) <= 12 and (one.finished or len(ids) == 12)
        assert one.log_probability == pytest.approx(-loss * len(ids), abs=1e-3)
    assert all((request is None) == off for _, _, request in engines[0].requests)


def test_the_most_likely_texts_are_those_that_transformers_writes(engines, lm):
    greedy = Sampling(top_k=1)
    with lm.base():
        base = texts(lm, sampling=greedy)
        assert [one.ids for one in base] == [one.ids for one in generation.sample(lm, PROMPTS, greedy, 12)]
    found, ours = texts(lm, sampling=greedy), generation.sample(lm, PROMPTS, greedy, 12)
    assert [(one.ids, one.finished) for one in found] == [(one.ids, one.finished) for one in ours]
    assert [one.log_probability for one in found] == pytest.approx([one.log_probability for one in ours], abs=1e-3)
    assert [one.ids for one in found] != [one.ids for one in base], "the adapter takes part"


def test_a_text_is_a_function_of_the_seed_and_its_index(engines, lm):
    twice = PROMPTS + PROMPTS
    found = texts(lm, twice, seed=(3, 1))
    assert found == texts(lm, twice, seed=(3, 1)), "repeatable"
    assert found[:3] == texts(lm, twice[:3], seed=(3, 1)), "whatever else is written"
    assert found[:5] != found[5:], "equal prompts, other places"
    assert found != texts(lm, twice, seed=(3, 2)) and found != texts(lm, twice, seed=(1, 3))
    seeds = [params.seed for _, params, _ in engines[0].requests[:10]]
    assert len(set(seeds)) == 10 and all(0 <= seed < 2**63 for seed in seeds)
    assert len(texts(lm, twice, seed=(2**64 - 1, 0))) == 10, "a secret seed has 64 bits"


def test_the_parameters_say_what_our_sampling_says(engines, lm):
    texts(lm, sampling=WARPED, stop=[7, 5, 5])
    _, params, request = engines[0].requests[0]
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (0.7, 20, 0.9, 1.2)
    assert (params.min_p, params.logprobs, params.ignore_eos, params.stop) == (0.0, 0, True, [])
    assert sorted(set(params.stop_token_ids)) == [5, 7] and not params.detokenize
    assert engines[0].mode == "raw_logprobs" and request.lora_int_id == 1


def test_until_ends_a_text_behind_its_characters(engines, lm):
    common = Counter(pair for one in texts(lm, PROMPTS * 8) for pair in zip(one.ids, one.ids[1:], strict=False))
    until = list(common.most_common(1)[0][0])
    found, whole = texts(lm, PROMPTS * 8, until=until), texts(lm, PROMPTS * 8)
    ended = 0
    for one, longer in zip(found, whole, strict=True):
        ends = [end for end in range(2, len(longer.ids) + 1) if longer.ids[end - 2 : end] == until]
        expected = longer.ids[: ends[0]] if ends else longer.ids
        assert one.ids == expected and one.finished == (longer.finished and not ends)
        ended += bool(ends)
        if not ends:
            assert one.log_probability == longer.log_probability
    assert ended


def test_what_is_beyond_the_until_is_cut_with_its_probability():
    """An engine may draw more tokens than one before it looks at the text."""
    places = [{token: fake_vllm.Logprob(-float(token))} for token in (4, 5, 6, 7, 1)]
    output = fake_vllm.CompletionOutput(0, "", [4, 5, 6, 7, 1], -23.0, places, "stop")
    assert vllm_engine._read(output, [1], [5, 6]) == generation.Generated([4, 5, 6], -15.0, False)
    assert vllm_engine._read(output, [1], []) == generation.Generated([4, 5, 6, 7], -23.0, True)
    assert vllm_engine._read(output, [2], [9]) == generation.Generated([4, 5, 6, 7, 1], -23.0, False)


def test_there_may_be_no_room_for_a_text(engines, lm):
    full, empty = [7] * lm.positions, generation.Generated()
    found = texts(lm, [full, [7] * (lm.positions - 2), [5]], config=config_of(vllm={"max_model_len": 256}))
    assert found[0] == empty and found[1].tokens <= 2 and found[2].tokens
    with pytest.raises(InputError, match=r"max_model_len: 64 is too little for a prompt of 60 tokens and a text of 12"):
        texts(lm, [[7] * 60], config=config_of(vllm={"max_model_len": 64}))
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        texts(lm, [[5], []])
    assert texts(lm, []) == []


# ---- one engine, asleep while others work, with the adapter of the round ------------------------------------


def test_each_round_writes_with_the_weights_as_they_are(engines, lm):
    greedy = Sampling(top_k=1)
    before = texts(lm, sampling=greedy)
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            parameter.data.neg_()
    after = texts(lm, sampling=greedy)
    assert [one.ids for one in after] == [one.ids for one in generation.sample(lm, PROMPTS, greedy, 12)]
    assert after != before
    assert [request.lora_int_id for _, _, request in engines[0].requests] == [1] * 5 + [2] * 5
    assert len({request.lora_name for _, _, request in engines[0].requests}) == 2, "prefixes are cached by name"
    assert not any(Path(request.lora_path).exists() for _, _, request in engines[0].requests), "nothing is left"


def test_the_engine_is_opened_once_and_sleeps_between_rounds(engines, lm):
    for round_ in range(3):
        texts(lm)
        assert len(engines) == 1 and engines[0].sleeps and engines[0].nights == round_ + 1
    with pytest.raises(KeyError), writing(lm, config_of()):
        raise KeyError
    assert engines[0].sleeps
    assert (engines[0].dtype, engines[0].rank, engines[0].length) == ("float16", 8, 256)


def test_other_options_are_another_engine(engines, lm):
    texts(lm)
    wider = language_model(model=AutoModelForCausalLM.from_pretrained(lm.unwrapped.name_or_path), r=9)
    texts(wider)
    assert [engine.rank for engine in engines] == [8, 16]


def test_a_model_of_16_bits_keeps_them(engines, lm):
    texts(LanguageModel(lm.model.to(torch.bfloat16), lm.tokenizer, 64), length=4)
    assert engines[0].dtype == "bfloat16"


def test_an_engine_with_other_weights_is_found_out(engines, lm, monkeypatch):
    monkeypatch.setattr(fake_vllm.LLM, "_model", lambda self, request: self.base)
    with pytest.raises(FloatingPointError, match=r"[+-]\d\.\d{3} nats a token off the model's own"):
        texts(lm)
    with lm.base():
        assert texts(lm)


def test_the_engine_of_transformers_is_the_default(lm):
    config = make_config({"tasks": []}, "test", need_tasks=False)
    with writing(lm, config) as draw:
        assert draw is None
    assert not check_engine(config)


# ---- whole runs ---------------------------------------------------------------------------------------------


def values_of(folder, **changes):
    """Two tiny tasks, one with labels and one of free text, of which a model writes what it likes."""
    labels = write_tasks(folder, train=8, test=2)[0]
    return {
        "model": str(save_tiny_model(folder / "model", terse(tiny_llama()))),
        "tasks": [{**labels, "description": "Say which color a line names"}, free_text(folder)],
        "strategy": "ssr",
        "training": {"learning_rate": 1.0e-2, "batch_size": 4, "max_length": 128},
        "evaluation": {"batch_size": 4, "max_new_tokens": 2},
        "filters": {"heuristics": False, "perplexity": None, "consistency": None, "diversity": None},
        "monitor": {"perplexity_ratio": None},
        "output": "run",
        **changes,
        "synthesis": {"engine": "vllm", "samples": 4, "max_input_tokens": 8, "max_output_tokens": 4}
        | changes.get("synthesis", {}),
    }


def run_case(folder, out, **changes):
    return run(make_config(values_of(folder, **changes), "test"), folder, folder / out)


@pytest.fixture
def no_other(monkeypatch):
    """Nothing is drawn by transformers."""

    def sample(*arguments, **options):
        raise AssertionError("drawn by transformers")

    monkeypatch.setattr("retain.synthesis.writer.sample", sample)


def test_a_run_writes_by_the_engine_and_resumes(engines, no_other, tmp_path, monkeypatch):
    one = run_case(tmp_path, "one")
    assert results(one)["finished"] and len(engines) == 1 and engines[0].nights == 2
    assert [line["kept"] for line in journal(one, "synthesis")] == [4, 4]
    assert results(one)["versions"]["vllm"] == "0.33.0"
    with stopped_in(2, monkeypatch):
        run_case(tmp_path, "again")
    vllm_engine._open.cache_clear()  # another process
    again = run_case(tmp_path, "again", vllm={"gpu_memory_utilization": 0.2})  # which changes no text
    assert same_tensors(adapter(one), adapter(again)) and buffered(one) == buffered(again)
    assert results(one)["matrices"] == results(again)["matrices"]


@pytest.mark.parametrize(
    "changes",
    [
        {"synthesis": {"method": "in-context", "demonstrations": 1}},
        {"synthesis": {"sampling": "mixed", "inputs_by": "base", "answers": "greedy"}},
        {"strategy": "mssr", "buffer": {"seed": {"synthesize": {"samples": 4}}}},
    ],
)
def test_other_ways_of_writing(changes, engines, no_other, tmp_path):
    out = run_case(tmp_path, "run", **changes)
    assert results(out)["finished"] and all(line["generated"] for line in journal(out, "synthesis"))
    by_base = {request is None for _, _, request in engines[0].requests}
    shows, seed = "method" in changes.get("synthesis", {}), "buffer" in changes
    assert by_base == ({False} if shows else {True} if seed else {True, False})
    assert any(params.stop for _, params, _ in engines[0].requests) == shows


def test_a_finished_run_writes_by_it_too(engines, no_other, tmp_path):
    out = run_case(tmp_path, "run")
    written = synthesize(out, "free", 3, tmp_path / "more.jsonl", overrides=["synthesis.temperature=1.2"])
    assert len(written.kept) == len(list(read_lines(tmp_path / "more.jsonl", ("input", "answer")))) == 3
    assert engines[0].requests[-1][1].temperature == 1.2


def test_what_writes_nothing_needs_no_engine(tmp_path):
    assert results(run_case(tmp_path, "run", strategy="none"))["finished"]


# ---- what is refused ----------------------------------------------------------------------------------------


@pytest.fixture
def complaint(tmp_path, monkeypatch, capsys):
    """What `retain run` prints where the user's input is wrong."""

    def complaint(**changes):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values_of(tmp_path, **changes)))
        monkeypatch.setattr("sys.argv", ["retain", "run", str(tmp_path / "run.yaml")])
        monkeypatch.setattr(logging.getLogger("retain"), "handlers", [])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr().err
        assert stopped.value.code == 2 and "Traceback" not in printed, printed
        return " ".join(printed.split())

    return complaint


REFUSED = {
    "privacy": ({"privacy": {"epsilon_per_token": 40.0}}, "does not clip logits .* privacy.epsilon_per_token"),
    "o-lora": ({"strategy": ["ssr", "o-lora"]}, "one LoRA adapter, which strategy o-lora is not"),
    "osf": ({"strategy": ["ssr", "osf"]}, "one LoRA adapter, which strategy osf is not"),
    "hot": ({"synthesis": {"temperature": 2.5}}, "synthesis.temperature of 0.01 to 2.0, not 2.5"),
    "cold": ({"synthesis": {"temperature": 0.001}}, "synthesis.temperature of 0.01 to 2.0, not 0.001"),
    "greedy for the GPU": (
        {"vllm": {"gpu_memory_utilization": 0.95}},
        r"does not open .*model \(Engine core initialization failed.*gpu_memory_utilization is the share",
    ),
    "too long": (
        {"vllm": {"max_model_len": 9999}},
        "max_model_len 9999 is greater than .*longest sequence",
    ),
    "a share above 1": ({"vllm": {"gpu_memory_utilization": 1.5}}, "gpu_memory_utilization"),
    "an engine that is none": ({"synthesis": {"engine": "tgi"}}, "transformers, vllm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_clear_message_and_exit_2(case, engines, complaint):
    changes, message = REFUSED[case]
    assert re.search(message, printed := complaint(**changes)), printed


def test_an_encoder_decoder_is_refused_before_it_is_trained(engines, complaint, tmp_path):
    printed = complaint(model=str(save_tiny_model(tmp_path / "t5", terse(tiny_t5()))))
    assert "writes with decoders only, and t5 is an encoder-decoder" in printed
    assert not list((tmp_path / "run").rglob("adapter"))


def test_a_machine_without_a_gpu(engines, complaint, monkeypatch):
    monkeypatch.setattr(vllm_engine, "sees_gpu", lambda: False)
    assert "vllm needs a GPU, and PyTorch sees none" in complaint()


def test_a_machine_without_vllm(complaint):
    assert "vllm is not installed; pip install 'retain[vllm]'; or set synthesis.engine: transformers" in complaint()


@pytest.mark.parametrize("version", ["0.10.2", "0.34.0", "1.0"])
def test_another_version(version, complaint, tmp_path, monkeypatch):
    fake_vllm.install(monkeypatch, tmp_path, version)
    assert f"vllm {version} is installed, and this works with >=0.11,<0.34" in complaint()


def test_several_processes(engines, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="in one process only"):
        check_engine(config_of())


def test_the_range_of_versions_is_that_of_the_extra():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'vllm = ["vllm{vllm_engine.VERSIONS}"]' in text


def test_models_that_are_not_a_base_and_one_adapter(engines, lm):
    base = AutoModelForCausalLM.from_pretrained(lm.unwrapped.name_or_path)
    with pytest.raises(InputError, match="one LoRA adapter, which this model has not"):
        texts(LanguageModel(base, lm.tokenizer, 64))
    dora = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], use_dora=True))
    with pytest.raises(InputError, match="does not read use_dora of an adapter"):
        texts(LanguageModel(dora, lm.tokenizer, 64))
    with pytest.raises(InputError, match="rank 512 at most, not 513"):
        texts(language_model(model=AutoModelForCausalLM.from_pretrained(lm.unwrapped.name_or_path), r=513))
    lm.put_adapter("past", 4)
    with pytest.raises(InputError, match="one LoRA adapter, which this model has not"):
        texts(lm)
    lm.model.delete_adapter("past")
    lm.unwrapped.config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(InputError, match="weights of this model that are not quantized"):
        texts(lm)
    assert not engines


def test_rank_stabilized_adapters_are_written_with(engines, lm):
    """Their scale is read from the adapter's own settings."""
    base = AutoModelForCausalLM.from_pretrained(lm.unwrapped.name_or_path)
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["v_proj"], r=4, use_rslora=True))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    assert texts(LanguageModel(adapted, lm.tokenizer, 64))


def test_a_clip_is_never_left_out(engines, lm):
    with pytest.raises(ValueError, match="does not clip"):
        texts(lm, sampling=Sampling(top_k=0, top_p=1.0, clip=10.0))
