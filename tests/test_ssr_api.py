"""The document's own API: its usage example, and each part against a loop written out from the document."""

from __future__ import annotations

import copy
import logging
import math
import random

import numpy as np
import peft
import pytest
import torch
from tiny import byte_tokenizer, save_tiny_model, terse, tiny_llama, tiny_t5
from torch.utils.data import DataLoader

import retain.ssr.model
from retain.model import LanguageModel
from retain.ssr import CurriculumScheduler, QualityFilter, SSRModel, SynthesisModel, SyntheticExample
from retain.trainer import Optimization
from retain.types import InputError

# SSR 6, "Usage Example", with the tokenizer that it leaves out.
USAGE = """
config = {
    "model": llm,
    "tokenizer": tokenizer,
    "num_synthesis_examples": 1000,
    "synthesis_batch_size": 8,
    "perplexity_threshold": 100.0,
    "consistency_threshold": 0.5,
    "initial_synthetic_ratio": 0.2,
    "final_synthetic_ratio": 0.8,
    "warmup_steps": 1000
}

ssr_model = SSRModel(config)

task1_loader = sentiment
ssr_model.train_task(
    task1_loader,
    task_id=0,
    task_description="Classify sentiment of movie reviews",
    num_epochs=3,
    learning_rate=5e-5
)

task2_loader = questions
ssr_model.train_task(
    task2_loader,
    task_id=1,
    task_description="Answer questions based on context",
    num_epochs=3,
    learning_rate=5e-5
)

evaluate(ssr_model.model, task1_loader)
"""
REVIEWS = [
    (f"the {noun} was {word}", "good" if word in ("fine", "great") else "bad")
    for word in ("fine", "great", "dull", "poor")
    for noun in ("film", "book")
]
QUESTIONS = [(f"who saw it? {name} saw it.", name) for name in ("Ann", "Bob", "Cid", "Dee")]
MODELS = {"llama": tiny_llama, "t5": lambda *arguments: tiny_t5(*arguments, dropout_rate=0.0)}


@pytest.fixture(params=MODELS)
def llm(request):
    return MODELS[request.param](torch.float64)


def config(model, **options):
    quick = {"num_synthesis_examples": 4, "synthesis_batch_size": 32, "max_length": 12}
    lenient = {"perplexity_threshold": 1.0e6, "consistency_threshold": 0.0}
    return {"model": model, "tokenizer": byte_tokenizer(), **quick, **lenient, **options}


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def changed(before, model):
    return {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}


# ---- the usage example -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_the_usage_example_runs_as_it_stands(kind, caplog):
    llm = terse(MODELS[kind]())
    seen, before = [], weights(llm)
    names = {"SSRModel": SSRModel, "llm": llm, "tokenizer": byte_tokenizer()}
    names |= {"sentiment": DataLoader(REVIEWS, batch_size=4), "questions": DataLoader(QUESTIONS, batch_size=4)}
    names["evaluate"] = lambda model, loader: seen.append((model, len(loader)))
    with caplog.at_level(logging.WARNING, "retain"):
        exec(USAGE, names)
    ssr_model = names["ssr_model"]
    assert seen == [(llm, 2)] and changed(before, llm)
    assert list(ssr_model.synthetic_memory) == [0, 1] and ssr_model.scheduler.current_step == 9
    assert "of 1000 synthetic examples" in caplog.text and "To keep more" in caplog.text  # random weights, noise


@pytest.fixture(scope="module")
def learned():
    """A model that has learned the reviews so far that it writes some of its own."""
    ssr_model = SSRModel(config(tiny_t5(), num_synthesis_examples=12, max_length=24, generator_weight=1.0))
    history = ssr_model.train_task([REVIEWS], "reviews", "Classify the reviews of films", 30, 2e-2)
    return ssr_model, history


def test_a_task_that_was_learned_is_written(learned):
    ssr_model, history = learned
    assert len(history["loss"]) == 30 and history["loss"][-1] < 0.5 * history["loss"][0]
    examples = ssr_model.get_rehearsal_examples()
    assert examples == ssr_model.synthetic_memory["reviews"] and len(examples) >= 8
    assert all(isinstance(one, SyntheticExample) and one.task_id == "reviews" for one in examples)
    assert all(0.0 < one.confidence <= 1.0 for one in examples)
    assert not {(one.input_text, one.target_text) for one in examples} & set(REVIEWS), "training data were copied"
    assert sum("the" in one.input_text for one in examples) >= len(examples) / 2


def test_past_tasks_are_rehearsed(learned, monkeypatch):
    ssr_model, steps = copy.deepcopy(learned[0]), []
    ssr_model.scheduler = CurriculumScheduler(0.25, 0.75, warmup_steps=2)
    real = Optimization.step

    def spy(self, samples, weights):
        steps.append(([sample.task for sample in samples], np.array(weights)))
        return real(self, samples, weights)

    monkeypatch.setattr(Optimization, "step", spy)
    ssr_model.train_task([QUESTIONS], 1, "Answer the question from its context", num_epochs=3)
    assert [tasks.count("'reviews'") for tasks, _ in steps] == [1, 2, 3]  # ⌊4·α⌋ at 0.25, 0.5, 0.75
    assert [tasks.count("1") for tasks, _ in steps] == [3, 2, 1]
    for tasks, weight in steps:
        assert weight[: tasks.count("1")] == pytest.approx(1.0)
        assert weight[tasks.count("1") :].mean() == pytest.approx(1.0) and (weight > 0).all()
    assert len(set(steps[2][1][1:].round(6))) > 1, "confidence weighs in the loss"


def test_what_is_kept_of_a_task_is_not_its_texts(learned):
    ssr_model = learned[0]
    card = ssr_model.cards["'reviews'"]
    assert card.reference.training is None and not ssr_model.lm._encoded
    assert not any(input in str(card.to_dict()) for input, _ in REVIEWS)


# ---- training --------------------------------------------------------------------------------------------


def naive_loss(model, prompt, answer):
    """Mean NLL of the answer and its end, by transformers itself."""
    tokenizer = byte_tokenizer()
    prompt = tokenizer(prompt).input_ids
    answer = [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
    if model.config.is_encoder_decoder:
        logits = model(input_ids=torch.tensor([[*prompt, 1]]), labels=torch.tensor([answer])).logits[0]
    else:
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(answer))


@pytest.mark.parametrize("generator_weight", [0.0, 0.25])
def test_a_plain_model_is_trained_in_full_as_a_naive_loop_trains_it(llm, generator_weight):
    other, description = copy.deepcopy(llm), "Tell how the thing was"
    given = config(llm, generator_weight=generator_weight, num_synthesis_examples=1)
    history = SSRModel(given).train_task([REVIEWS[:3], REVIEWS[3:5]], 0, description, 2, 1e-3)
    optimizer, expected = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.01), []
    for _ in range(2):
        epoch = []
        for batch in (REVIEWS[:3], REVIEWS[3:5]):
            answers = [naive_loss(other, f"Task: {description}\nInput: {x}\nOutput:", y) for x, y in batch]
            asked = f"Generate a training example for: {description}\nInput:"
            inputs = [naive_loss(other, asked, f" {x}") for x, _ in batch]
            (sum(answers) / len(batch) + generator_weight * sum(inputs) / len(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
            epoch.append(sum(answers).item() / len(batch))
        expected.append(sum(epoch) / 2)
    assert history == {"loss": pytest.approx(expected, rel=1e-6)}
    for name, value in other.state_dict().items():
        # AdamW turns the rounding of a gradient near 0 into a step of its own, so not every entry can agree.
        assert (llm.state_dict()[name] - value).abs().mean() < 1e-5, name


def test_of_a_model_with_an_adapter_the_adapter_is_trained():
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    before = weights(model)
    SSRModel(config(model)).train_task([REVIEWS], 0, "Tell how the thing was", 1, 1e-2)
    assert changed(before, model) and all("lora_" in name for name in changed(before, model))


def test_a_plain_model_has_no_untouched_form():
    with pytest.raises(InputError, match="no adapter"), LanguageModel(tiny_llama(), byte_tokenizer(), 64).base():
        pass


def test_training_is_deterministic_and_leaves_the_global_generators_alone():
    def run():
        ssr_model = SSRModel(config(tiny_llama(), num_synthesis_examples=2))
        for number, rows in enumerate((REVIEWS, QUESTIONS)):
            ssr_model.train_task([rows], number, "Tell how the thing was", 2, 1e-2)
        return weights(ssr_model.model), ssr_model.synthetic_memory

    states = random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    (one, memory), (two, again) = run(), run()
    assert all(torch.equal(one[name], two[name]) for name in one) and memory == again
    assert states == (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())


# ---- the forms of a batch --------------------------------------------------------------------------------


def tokens(model):
    """REVIEWS as tensors, padded as a collator would pad them."""
    tokenizer, rows = byte_tokenizer(), []
    for x, y in REVIEWS:
        prompt, answer = tokenizer(x).input_ids, [*tokenizer(y).input_ids, 1]
        if model.config.is_encoder_decoder:
            rows.append((prompt, answer))
        else:
            rows.append((prompt + answer, [-100] * len(prompt) + answer))
    wide, long = (max(len(row[side]) for row in rows) for side in (0, 1))
    return {
        "input_ids": torch.tensor([ids + [0] * (wide - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (wide - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([ids + [-100] * (long - len(ids)) for _, ids in rows]),
    }


FORMS = {
    "pairs": lambda model: [REVIEWS],
    "lists": lambda model: [[list(pair) for pair in REVIEWS]],
    "examples": lambda model: [[SyntheticExample(*pair, 7) for pair in REVIEWS]],
    "rows": lambda model: [[{"text": x, "answer": y} for x, y in REVIEWS]],
    "columns": lambda model: [{"input": [x for x, _ in REVIEWS], "output": [y for _, y in REVIEWS]}],
    "collated pairs": lambda model: DataLoader(REVIEWS, batch_size=8),
    "collated twos": lambda model: DataLoader(REVIEWS, batch_size=2),
    "collated rows": lambda model: DataLoader([{"prompt": x, "completion": y} for x, y in REVIEWS], batch_size=8),
    "a generator": lambda model: (rows for rows in [REVIEWS]),
    "tensors": lambda model: [tokens(model)],
    "tensors without a mask": lambda model: [{k: v for k, v in tokens(model).items() if k != "attention_mask"}],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_form_of_a_batch_says_the_same(form, kind, monkeypatch):
    steps, model = [], MODELS[kind]()
    monkeypatch.setattr(
        Optimization, "step", lambda self, samples, weights: steps.append(samples) or np.zeros(len(samples))
    )
    monkeypatch.setattr(SSRModel, "synthesize_task_memory", lambda *arguments: None)
    SSRModel(config(model)).train_task(FORMS[form](model), 0, "Tell how the thing was", num_epochs=2)
    before, after = ("", "") if "tensors" in form else ("Task: Tell how the thing was\nInput: ", "\nOutput:")
    found = [(sample.prompt, sample.answer) for step in steps for sample in step]
    assert sorted(found) == sorted([(f"{before}{x}{after}", y) for x, y in REVIEWS] * 2)


def test_the_space_before_an_answer_stays(monkeypatch):
    ids = {"input_ids": [[100, 101, 222, 102]] * 2, "labels": [[-100, -100, 222, 102]] * 2}
    assert byte_tokenizer().decode([222]) == " "
    ssr_model = SSRModel(config(tiny_llama(), num_synthesis_examples=2, template="{input}"))
    ssr_model.train_task([ids], 0, "Tell how the thing was", 1)
    ssr_model.synthesize_task_memory(1, "Tell how the thing was")
    assert all(one.target_text.startswith(" ") for one in ssr_model.synthetic_memory[0])
    assert not any(one.target_text.startswith(" ") for one in ssr_model.synthetic_memory[1])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], "batch 0: it is empty"),
        ("text", "batch 0: str is no batch"),
        (5, "batch 0: int is no batch"),
        ([("a", "b", "c")], "row 0: .* is neither an .input, target. pair"),
        ([("a b", "c"), ("a b", 1)], "row 1: the target 1 is not a text"),
        ([("a b", "c"), (" ", "c")], "row 1: the input ' ' is not a text"),
        ([{"input": "a"}], "row 0: no target in it, it has input; name it one of output"),
        ({"in": ["a"], "output": ["b"]}, "no input in it, it has in, output"),
        ({"input": ["a", "b"], "output": ["b"]}, "two lists of the same length"),
        ({"input_ids": torch.ones(2, 3)}, "'labels'"),
        ({"input_ids": torch.ones(2, 3), "labels": torch.ones(2)}, r"shapes \(2, 3\) and \(2,\)"),
        ({"input_ids": torch.ones(2, 3), "labels": torch.ones(3, 3)}, "are not rows of the same texts"),
        ({"input_ids": torch.full((1, 3), 99), "labels": torch.full((1, 3), 99)}, "row 0: no prompt or no answer"),
        ({"input_ids": [[1], [1, 2]], "labels": [[1]]}, "must be tensors of token ids"),
    ],
)
def test_a_wrong_batch_is_named(batch, message):
    with pytest.raises(InputError, match=f"^train_task: .*{message}"):
        SSRModel(config(tiny_llama())).train_task([batch], 0, "Tell how the thing was")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"perplexity_treshold": 3}, "SSRModel: perplexity_treshold: unknown key; did you mean perplexity_threshold?"),
        ({"consistency_threshold": 2}, "consistency_threshold: 2 is too large .allowed: 0 to 1."),
        ({"num_synthesis_examples": 0}, "num_synthesis_examples: 0 is too small"),
        ({"schedule_type": "lineal"}, "did you mean linear"),
        ({"template": "no place"}, "must hold {input} once"),
        ({"model": "gpt2"}, "SSRModel: model: str is not a transformers model"),
        ({"model": tiny_llama().model}, "LlamaModel is not a transformers model that writes text"),
        ({"tokenizer": None}, "tokenizer: none is given, and the model says not where it came from"),
    ],
)
def test_a_wrong_configuration_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        SSRModel(config(tiny_llama()) | changes)


def test_what_is_no_configuration_is_named():
    with pytest.raises(InputError, match="SSRModel: list is not a mapping with the key model"):
        SSRModel([tiny_llama()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0, "Tell how it was"), "data_loader has no batch"),
        (([REVIEWS], 0, ""), "task_description: '' is not allowed"),
        (([REVIEWS], 0, " \n"), "task_description: .* is not allowed"),
        (([REVIEWS], 0, None), "task_description: null is not text"),
        (([REVIEWS], 0, "Tell how it was", 0), "num_epochs: 0 is too small"),
        (([REVIEWS], 0, "Tell how it was", 1, 0.0), "learning_rate: 0.0 is too small"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=f"train_task: {message}"):
        SSRModel(config(tiny_llama())).train_task(*arguments)


def test_examples_of_an_unknown_task_are_no_rehearsal():
    ssr_model = SSRModel(config(tiny_llama(), initial_synthetic_ratio=0.5))
    ssr_model.synthetic_memory[9] = [SyntheticExample("a b c", "d", 9)]
    with pytest.raises(InputError, match="task 9 has not been learned"):
        ssr_model.train_task([REVIEWS], 0, "Tell how the thing was")


def test_a_loss_that_is_not_finite_stops():
    with pytest.raises(FloatingPointError, match="task 0: a loss is not finite; lower learning_rate"):
        SSRModel(config(tiny_llama())).train_task([REVIEWS], 0, "Tell how the thing was", 9, 1e20)


def test_the_tokenizer_beside_the_model_is_found(tmp_path):
    model = type(tiny_llama()).from_pretrained(save_tiny_model(tmp_path))
    given = {key: value for key, value in config(model).items() if key != "tokenizer"}
    assert SSRModel(given).lm.tokenizer.eos_token_id == 1


# ---- writing ---------------------------------------------------------------------------------------------


def test_examples_are_written_from_a_description(llm):
    given = {"model": terse(llm.float()), "tokenizer": byte_tokenizer(), "max_length": 8}
    one, two = SynthesisModel(given), SynthesisModel(given)
    examples = one.synthesize_examples("Tell how the thing was", task_id="t", num_examples=5, batch_size=2)
    assert len(examples) == 5 and {(e.task_id, e.confidence) for e in examples} == {("t", 1.0)}
    assert all(e.input_text and e.target_text for e in examples)
    assert examples == two.synthesize_examples("Tell how the thing was", "t", 5)  # whatever the size of batches
    assert examples != one.synthesize_examples("Tell how the thing was", "t", 5)
    with pytest.raises(InputError, match="synthesize_examples: num_examples: 0 is too small"):
        one.synthesize_examples("Tell how the thing was", "t", 0)
    with pytest.raises(InputError, match="task_description: '' is not allowed"):
        one.synthesize_examples("", "t")


# ---- the filter ------------------------------------------------------------------------------------------


def test_perplexity_and_consistency_are_what_transformers_computes(llm):
    quality = QualityFilter(llm, tokenizer=byte_tokenizer())
    text = "the film was fine"
    with torch.no_grad():
        first, rest = ("", text) if llm.config.is_encoder_decoder else (text[:1], text[1:])
        ids = byte_tokenizer()(rest).input_ids
        if llm.config.is_encoder_decoder:
            loss = llm(input_ids=torch.tensor([[1]]), labels=torch.tensor([ids])).loss
        else:
            whole = torch.tensor([[*byte_tokenizer()(first).input_ids, *ids]])
            loss = llm(input_ids=whole, labels=whole).loss
        agreement = math.exp(-naive_loss(llm, f"{text}\nOutput:", "good"))
    assert quality.compute_perplexity(text) == pytest.approx(math.exp(loss), rel=1e-5)
    assert quality.compute_consistency(text, "good") == pytest.approx(agreement, rel=1e-5)


def test_both_forms_of_the_filter(llm):
    pairs = REVIEWS[:4]
    scores = QualityFilter({"model": llm, "tokenizer": byte_tokenizer()})
    ppl = [scores.compute_perplexity(f"{x} {y}") for x, y in pairs]
    agreement = [scores.compute_consistency(x, y) for x, y in pairs]
    limits = {"perplexity_threshold": sorted(ppl)[2] + 1e-9, "consistency_threshold": sorted(agreement)[1]}
    expected = [
        k
        for k in range(4)
        if ppl[k] < limits["perplexity_threshold"] and agreement[k] > limits["consistency_threshold"]
    ]
    assert 0 < len(expected) < 3
    quality = QualityFilter(llm, **limits, tokenizer=byte_tokenizer())
    kept = quality.filter_examples(pairs)
    assert [(one["input"], one["output"]) for one in kept] == [pairs[k] for k in expected]
    assert [one["confidence"] for one in kept] == pytest.approx([agreement[k] for k in expected], rel=1e-6)
    assert [one["perplexity"] for one in kept] == pytest.approx([ppl[k] for k in expected], rel=1e-6)
    examples = [SyntheticExample(*pair, 0) for pair in pairs]
    again = QualityFilter({"model": llm, "tokenizer": byte_tokenizer(), **limits})
    assert again.filter_examples(examples) == [examples[k] for k in expected]
    assert [one.confidence for one in examples] == pytest.approx(agreement, rel=1e-6)
    assert quality.filter_examples([]) == []
    assert (again.perplexity_threshold, again.consistency_threshold) == tuple(limits.values())


def test_a_known_task_is_filtered_under_its_own_prompt(learned):
    ssr_model = learned[0]
    examples = [SyntheticExample("the film was fine", "good", task) for task in ("reviews", "another")]
    ssr_model.quality_filter.filter_examples(examples)
    prompts = ["Task: Classify the reviews of films\nInput: the film was fine\nOutput:", "the film was fine\nOutput:"]
    with torch.no_grad():
        expected = [math.exp(-naive_loss(ssr_model.model, prompt, "good")) for prompt in prompts]
    assert [one.confidence for one in examples] == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_wrong_arguments_of_the_filter():
    with pytest.raises(InputError, match="QualityFilter: perplexity_threshold: 0 is too small"):
        QualityFilter(tiny_llama(), 0, tokenizer=byte_tokenizer())
    with pytest.raises(InputError, match="QualityFilter: model: NoneType is not"):
        QualityFilter()
    with pytest.raises(InputError, match="filter_examples, row 0: 5 is neither"):
        QualityFilter(tiny_llama(), tokenizer=byte_tokenizer()).filter_examples([5])


# ---- the scheduler ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "halfway", "quarter"),
    [
        ("linear", 0.5, 0.35),
        ("cosine", 0.5, 0.8 - 0.6 * (1 + math.sqrt(0.5)) / 2),
        ("exponential", 0.8 - 0.6 * math.exp(-2.5), 0.8 - 0.6 * math.exp(-1.25)),
    ],
)
def test_ratios_follow_the_documents_code(kind, halfway, quarter):
    scheduler, found = CurriculumScheduler(warmup_steps=100, schedule_type=kind), []
    for _ in range(150):
        found.append(scheduler.get_ratio())
        scheduler.step()
    assert [found[k] for k in (0, 25, 50)] == pytest.approx([0.2, quarter, halfway])
    assert found[100:] == [0.8] * 50 and found == sorted(found) and found[99] < 0.8


def test_names_of_both_sections():
    one = CurriculumScheduler(initial_ratio=0.1, final_ratio=0.3, warmup_steps=4)
    two = CurriculumScheduler(initial_synthetic_ratio=0.1, final_synthetic_ratio=0.3, warmup_steps=4)
    three = CurriculumScheduler(0.1, 0.3, 4, "linear")
    for _ in range(6):
        assert one.get_ratio() == two.get_ratio() == three.get_ratio()
        [scheduler.step() for scheduler in (one, two, three)]
    assert CurriculumScheduler(warmup_steps=0).get_ratio() == 0.8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"initial_ratio": 1.5}, "CurriculumScheduler: initial_synthetic_ratio: 1.5 is too large"),
        ({"warmup_steps": -1}, "warmup_steps: -1 is too small"),
        ({"schedule_type": "adaptive"}, "schedule_type: 'adaptive' is not one of linear, cosine, exponential"),
    ],
)
def test_a_wrong_schedule_is_named(values, message):
    with pytest.raises(InputError, match=message):
        CurriculumScheduler(**values)


def test_mixed_batches_in_both_call_forms():
    scheduler = CurriculumScheduler(0.3, 0.3)
    real, pool = [f"real {k}" for k in range(20)], [{"input": k} for k in range(50)]
    batch = scheduler.create_mixed_batch(real, pool, 10)
    assert len(batch) == 10 and sum(isinstance(one, dict) for one in batch) == 3
    assert len({str(one) for one in batch}) == 10, "without replacement"
    examples = [SyntheticExample("x", "y", task) for task in (0, 0, 1, 0)]
    for form in ({"task_id": 1}, {"third": 1}):
        batch = scheduler.create_mixed_batch(real, examples, **form)
        found = [one for one in batch if isinstance(one, SyntheticExample)]
        assert len(batch) == 20 and len(found) == 3 and all(one.task_id == 0 for one in found)
    assert len(scheduler.create_mixed_batch(real, examples, batch_size=10)) == 10
    assert sorted(scheduler.create_mixed_batch(real, [])) == sorted(real)


def test_mixed_batches_are_uniform_and_shuffled():
    scheduler = CurriculumScheduler(0.5, 0.5)
    counts, places = np.zeros(8), np.zeros(4)
    for _ in range(2000):
        batch = scheduler.create_mixed_batch([-1] * 4, list(range(8)), 4)
        counts[[one for one in batch if one >= 0]] += 1
        places += [one >= 0 for one in batch]
    assert np.abs(counts - 500).max() < 5 * math.sqrt(2000 * 0.25 * 0.75)
    assert np.abs(places - 1000).max() < 5 * math.sqrt(2000 * 0.25)
    again = CurriculumScheduler(0.5, 0.5)
    first, second = again.create_mixed_batch("abcd", "efgh", 4), again.create_mixed_batch("abcd", "efgh", 4)
    assert first == CurriculumScheduler(0.5, 0.5).create_mixed_batch("abcd", "efgh", 4) != second


def test_a_batch_that_cannot_be_mixed():
    scheduler = CurriculumScheduler(0.5, 0.5)
    with pytest.raises(InputError, match="real_data: 2 samples, and 3 real ones are due"):
        scheduler.create_mixed_batch([1, 2], [3], 4)
    with pytest.raises(InputError, match="batch_size: 0 is not a whole number of at least 1"):
        scheduler.create_mixed_batch([1, 2], [3], 0)


def test_the_module_names_what_it_offers():
    assert set(retain.ssr.__all__) == {
        "CurriculumScheduler",
        "QualityFilter",
        "SSRModel",
        "SynthesisModel",
        "SyntheticExample",
    }
