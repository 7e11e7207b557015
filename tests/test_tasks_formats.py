import pytest

from retain.tasks.formats import check_template, detect, fill, parse
from retain.types import InputError

TEMPLATE = "{instruction}\n{input}\nAnswer:\n"


def read(row: dict, template: str = TEMPLATE, labels: tuple[str, ...] = ()):
    return parse(row, detect(row), template, labels)[0]


def problem(row, like: dict | None = None, labels: tuple[str, ...] = ()) -> str:
    with pytest.raises(ValueError) as caught:
        parse(row, detect(like or row), TEMPLATE, labels)
    return str(caught.value)


def test_alpaca():
    row = {"instruction": "Add.", "input": "1 1", "output": " 2", "id": 7}
    assert read(row)["prompt"] == "Add.\n1 1\nAnswer:\n" and read(row)["answer"] == " 2"
    for empty in ("", " ", None):
        assert read(row | {"input": empty})["prompt"] == "Add.\nAnswer:\n"
    assert read({"instruction": "Add.", "output": "2"})["prompt"] == "Add.\nAnswer:\n"
    assert read({"instruction": "", "input": "1 1", "output": "2"})["prompt"] == "1 1\nAnswer:\n"


def test_alpaca_as_chat():
    row = {"instruction": "Add.", "input": "1 {input}", "output": "2"}
    assert read(row, "chat")["messages"] == (("user", "Add.\n1 {input}"), ("assistant", "2"))
    assert read(row | {"input": ""}, "chat")["messages"][0] == ("user", "Add.")
    assert read(row, "chat")["prompt"] == ""


def test_prompt_and_completion_as_they_are():
    fields = read({"prompt": "a {instruction}\n", "completion": "b"})
    assert (fields["prompt"], fields["answer"]) == ("a {instruction}\n", "b")


def test_chat_and_sharegpt():
    turns = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")]
    chat = {"messages": [{"role": role, "content": text} for role, text in turns]}
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    sharegpt = {"conversations": [{"from": names[role], "value": text} for role, text in turns]}
    for row in (chat, sharegpt):
        fields = read(row)
        assert fields["messages"] == tuple(turns) and fields["answer"] == "b" and fields["prompt"] == ""


def test_optional_fields():
    row = {"prompt": "p", "completion": "a", "choices": ["a", "b"], "references": ["a", "A"], "answer": "42"}
    fields, final = parse(row, detect(row), TEMPLATE, ())
    assert (fields["choices"], fields["references"], final) == (("a", "b"), ("a", "A"), "42")
    absent = row | {"choices": None, "references": None, "answer": None}
    fields, final = parse(absent, detect(absent), TEMPLATE, ("a", "c"))
    assert (fields["choices"], fields["references"], final) == (("a", "c"), (), "")
    assert read(row, labels=("x", "y"))["choices"] == ("a", "b")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"output": ""}, "\"output\" is ''; it must not be empty"),
        ({"output": " \n"}, "\"output\" is ' \\n'; it must not be empty"),
        ({"output": None}, '"output" is None; it must be a text'),
        ({"output": 5}, '"output" is 5; it must be a text'),
        ({"output": float("nan")}, '"output" is nan; it must be a text'),
        ({"output": ["x"]}, "\"output\" is ['x']; it must be a text"),
        ({"output": "\ud800"}, "\"output\" is '\\ud800'; half of a surrogate pair"),
        ({"input": 5}, '"input" is 5; it must be a text'),
        ({"instruction": "", "input": " "}, '"instruction" and "input" are both empty'),
        ({"choices": ["x", "y"]}, "the answer 'a' is not among the choices (x, y)"),
        ({"choices": ["a"]}, "\"choices\" is ['a']; it must be a list of at least 2 text(s)"),
        ({"choices": "a,b"}, "\"choices\" is 'a,b'; it must be a list"),
        ({"choices": ["a", "b", "a"]}, "\"choices\" names 'a' twice; choices must differ"),
        ({"choices": ["a", " "]}, "\"choices\" is ' '; it must not be empty"),
        ({"choices": ["a", 1]}, '"choices" is 1; it must be a text'),
        ({"references": []}, '"references" is []; it must be a list of at least 1 text(s)'),
        ({"references": [""]}, "\"references\" is ''; it must not be empty"),
        ({"references": "a"}, "\"references\" is 'a'; it must be a list"),
        ({"answer": 42}, '"answer" is 42; it must be a text'),
    ],
)
def test_bad_alpaca_rows(change, expected):
    assert expected in problem({"instruction": "i", "input": "x", "output": "a"} | change)


def test_bad_rows_of_any_form():
    alpaca = {"instruction": "i", "output": "a"}
    assert problem(["x"], alpaca) == "found ['x']; a row must be an object with named fields"
    assert problem({"instruction": "i"}, alpaca) == "\"output\" is missing; found 'instruction'"
    assert "the answer 'a' is not among the choices (b0, b1, b2, b3, b4, …)" in problem(
        alpaca, labels=tuple(f"b{i}" for i in range(77))
    )
    assert problem({"prompt": " ", "completion": "a"}) == "\"prompt\" is ' '; it must not be empty"
    long = problem(alpaca | {"output": "x" * 1000, "choices": ["a", "b"]})
    assert len(long) < 150 and "…" in long


USER, ASSISTANT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], '"messages" is []; it must be a list of messages'),
        ("hi", "\"messages\" is 'hi'; it must be a list of messages"),
        (["hi"], "\"messages\" item 1 is 'hi'; it must be an object"),
        ([USER, ASSISTANT, USER], "must hold a user turn and end with an assistant turn; it ends with user"),
        ([ASSISTANT], "must hold a user turn"),
        (
            [USER, {"role": "bot", "content": "a"}],
            "item 2: \"role\" is 'bot'; allowed: system, user, assistant",
        ),
        ([USER, {"role": ["x"], "content": "a"}], "item 2: \"role\" is ['x']"),
        ([USER, {"content": "a"}], 'item 2: "role" is None'),
        ([USER, {"role": "system", "content": "s"}, ASSISTANT], "(system only first)"),
        ([USER, {"role": "assistant", "content": " "}], "item 2: \"content\" is ' '; it must not be empty"),
        ([USER, {"role": "assistant"}], 'item 2: "content" is missing'),
        ([{"role": "user", "content": [{"type": "text"}]}, ASSISTANT], 'item 1: "content" is [{'),
    ],
)
def test_bad_conversations(turns, expected):
    assert expected in problem({"messages": turns})


def test_sharegpt_names_its_own_roles():
    row = {"conversations": [{"from": "tool", "value": "x"}]}
    assert problem(row).endswith("allowed: human, user, gpt, assistant, system (system only first)")


def test_missing_columns():
    with pytest.raises(ValueError) as caught:
        detect({"instruction": "i", "outputs": "o", "x" * 100: ""})
    assert str(caught.value) == (
        f"found the columns 'instruction', 'outputs', '{'x' * 60}'…; did you mean 'output'?; needed: "
        "messages (chat); or conversations (sharegpt); or prompt, completion (prompt/completion); "
        "or instruction, output (alpaca)"
    )
    with pytest.raises(ValueError, match="found the columns no columns; needed"):
        detect({})


HOSTILE = "{input} {instruction} {0} {} {{x}} %s \\1 \\g<0> $& \u202e\x00 }{"


def test_texts_are_inserted_literally():
    assert fill(TEMPLATE, HOSTILE, HOSTILE) == f"{HOSTILE}\n{HOSTILE}\nAnswer:\n"
    assert fill('{"q": "{input}"}', "", "x") == '{"q": "x"}'


def test_an_empty_text_drops_its_line():
    assert fill(TEMPLATE, "Do.", "") == "Do.\nAnswer:\n"
    assert fill("### Task:\n{instruction}\n\nInput: {input}\nA:", "Do.", "") == "### Task:\nDo.\n\nA:"
    assert fill("{instruction} {input}\nA:", "Do.", "") == "Do.\nA:"
    assert fill("{input}: {instruction}", "Do.", "x") == "x: Do."


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "{instructions}\nA:",
            "template: unknown placeholder {instructions}; did you mean 'instruction'?; allowed are",
        ),
        ("{input} {0}", "template: unknown placeholder {0}; allowed are {instruction} and {input}"),
        ("Answer:", "template: 'Answer:' holds neither {instruction} nor {input}"),
        ("", "template: '' holds neither"),
    ],
)
def test_bad_templates(template, expected):
    with pytest.raises(InputError) as caught:
        check_template(template)
    assert expected in str(caught.value)


def test_good_templates():
    for template in (TEMPLATE, "chat", '{"question": "{input}"}', "{instruction}"):
        check_template(template)


def test_a_template_that_leaves_the_prompt_empty():
    row = {"instruction": "", "input": "something", "output": "x"}
    with pytest.raises(ValueError, match="leaves the prompt empty"):
        parse(row, detect(row), "{instruction}", ())
