"""Chat templates: a model's own, one from a file, and templates that tell earlier answers otherwise."""

import pytest
from test_losses import language_model
from tiny import save_tiny_model

from retain.config import make_config
from retain.model import load_model
from retain.relocation import relocate
from retain.types import InputError, Sample

TURNS = (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao"))
CHAT = Sample("c/0", "c", "", "Ciao", messages=TURNS)
PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# The last answer is told with its (empty) reasoning, earlier ones without, as Qwen 3 does.
LAST_ONLY = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}<t></t>{% endif %}{{ m.content }}"
    "{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
# The model is led to reason, and answers are told without, as DeepSeek R1 does.
LED = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<t>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN


def opened(folder, template=None):
    model = {"name": str(save_tiny_model(folder / "model"))}
    if template is not None:
        (folder / "own.jinja").write_text(template)
        model["chat_template"] = str(folder / "own.jinja")
    return load_model(make_config({"model": model}, "test", need_tasks=False))


def parts(lm):
    """What is read, and what of it bears loss."""
    sequence = lm.encode(CHAT)
    trained = [i for i, label in zip(sequence.ids, sequence.labels, strict=True) if label]
    return lm.tokenizer.decode(sequence.ids), lm.tokenizer.decode(trained)


def test_a_template_from_a_file(tmp_path):
    read, trained = parts(opened(tmp_path, PLAIN))
    assert read == "[user]Hi[assistant]Hello<end>[user]Bye[assistant]Ciao<end>" and trained == "Hello<end>Ciao<end>"


def test_a_file_wins_over_the_models_own(tmp_path):
    lm = opened(tmp_path, PLAIN)
    lm.tokenizer.save_pretrained(tmp_path / "model")
    config = make_config({"model": str(tmp_path / "model")}, "test", need_tasks=False)
    assert load_model(config).tokenizer.chat_template == PLAIN, "the model's own is used where it has one"
    (tmp_path / "other.jinja").write_text(LED)
    chosen = config.model.model_copy(update={"chat_template": str(tmp_path / "other.jinja")})
    assert load_model(config.model_copy(update={"model": chosen})).tokenizer.chat_template == LED


def test_a_base_model_needs_none(tmp_path):
    lm = opened(tmp_path)
    assert lm.encode(Sample("p/0", "p", "Say it:\n", "red")).labels[-1]
    with pytest.raises(InputError, match=r"no chat template; give the data .* under model.chat_template"):
        lm.encode(CHAT)


def test_earlier_answers_that_are_told_otherwise_bear_no_loss(tmp_path):
    read, trained = parts(opened(tmp_path, LAST_ONLY))
    assert read == "[user]Hi[assistant]Hello<end>[user]Bye[assistant]<t></t>Ciao<end>" and trained == "<t></t>Ciao<end>"


def test_an_answer_follows_what_the_model_is_led_by(tmp_path):
    lm = opened(tmp_path, LED)
    read, trained = parts(lm)
    assert read == "[user]Hi[assistant]Hello<end>[user]Bye[assistant]<t>Ciao<end>" and trained == "Ciao<end>"
    assert (*lm.prompt_ids(CHAT), *lm.answer_ids(CHAT, "Ciao")) == lm.encode(CHAT).ids


@pytest.mark.parametrize("template", [PLAIN, LAST_ONLY, LED])
def test_what_is_trained_is_what_is_scored(template):
    lm = language_model()
    lm.tokenizer.chat_template = template
    assert lm.encode(CHAT).ids[: len(lm.prompt_ids(CHAT))] == tuple(lm.prompt_ids(CHAT))


def test_a_template_that_refuses_a_role(tmp_path):
    lm = opened(tmp_path, NO_SYSTEM)
    chat = Sample("c/0", "c", "", "Ciao", messages=(("system", "Be brief"), *TURNS[2:]))
    with pytest.raises(InputError, match=r"cannot write a chat of system, user.*no system role"):
        lm.encode(chat)


@pytest.mark.parametrize("content", ["{% for %}", "{{ 1 + messages }}", "{{ missing.name.other }}"])
def test_a_broken_template(tmp_path, content):
    with pytest.raises(InputError, match="model: its chat template cannot write a chat of user"):
        opened(tmp_path, content)


def test_no_template_at_the_path(tmp_path):
    model = {"name": str(save_tiny_model(tmp_path / "model")), "chat_template": str(tmp_path)}
    with pytest.raises(InputError, match=r"model.chat_template: .* is no file of a Jinja template"):
        load_model(make_config({"model": model}, "test", need_tasks=False))


def test_a_template_is_found_from_the_run_directory(tmp_path):
    (tmp_path / "own.jinja").write_text(PLAIN)
    config = make_config({"model": {"chat_template": "own.jinja"}}, "test", need_tasks=False)
    assert relocate(config, tmp_path, tmp_path / "runs" / "one").model.chat_template == "../../own.jinja"
    assert relocate(config, tmp_path, tmp_path).model.name == "smollm2-135m"
