"""The configuration: what is read, what is refused, and in which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from retain.config import Config, diff_config, dump_config, load_config, make_config, validate
from retain.config_errors import allowed_in
from retain.config_yaml import MAX_BYTES, dump_yaml, parse_yaml
from retain.presets import REGULARIZERS
from retain.sections import MemoryModel, Section
from retain.types import InputError

DOCS = Path(__file__).parents[1] / "docs" / "configuration.md"
TASKS = "tasks: [iso_date]\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def load(write):
    return lambda text, *overrides: load_config(write(text), list(overrides))


@pytest.fixture
def complaint(load):
    """The message a YAML text and overrides earn, without the folder."""

    def complaint(text: str | bytes, *overrides: str) -> str:
        with pytest.raises(InputError) as caught:
            load(text, *overrides)
        return re.sub(r"\S*/run\.yaml", "run.yaml", str(caught.value))

    return complaint


def one(key: str, value: str) -> str:
    """A YAML file with one dotted key set."""
    values: object = yaml.safe_load(f"x: {value}")["x"]
    for part in reversed(key.split(".")):
        values = {part: values}
    return TASKS + dump_yaml(values)


# ---- what is read ---------------------------------------------------------------------------------------


def test_only_tasks_is_needed_and_the_rest_are_the_papers_values(load):
    config = load(TASKS)
    assert config.model.name == "smollm2-135m"
    assert config.strategy == "mssr"
    assert (config.schedule.lambda_0, config.schedule.beta_r) == (0.3, 1e-5)
    assert config.training.learning_rate == 2e-4


@pytest.mark.parametrize(
    "text, value", [("1e-3", 1e-3), ("2.0e-4", 2e-4), ("1E-2", 1e-2), (".5", 0.5), ("1e5", 1e5), ("+3", 3.0)]
)
def test_numbers_are_numbers_in_the_file_and_in_overrides(load, text, value):
    assert load(f"{TASKS}training: {{learning_rate: {text}}}").training.learning_rate == value
    assert load(TASKS, f"training.learning_rate={text}").training.learning_rate == value


def test_a_whole_number_may_have_an_exponent_or_underscores(load):
    assert load(TASKS, "training.max_steps=1e3").training.max_steps == 1000
    assert load(TASKS, "training.max_steps=10_000").training.max_steps == 10_000


@pytest.mark.parametrize("word", ["no", "off", "yes", "1:30", "2024-01-01", "null-model", "010"])
def test_words_stay_words(load, word):
    assert load(f"{TASKS}output: {word}").output == word


def test_short_forms(load):
    config = load("model: path/to/model\ntasks: [iso_date, {builtin: home_intent, max_train: 8}]\n")
    assert config.model.name == "path/to/model"
    assert [task.name for task in config.tasks] == ["iso_date", "home_intent"]
    assert config.tasks[0].train == config.tasks[0].validation == config.tasks[0].test == "builtin:iso_date"
    assert (config.tasks[1].train, config.tasks[1].max_train) == ("builtin:home_intent", 8)


def test_a_buffer_seed_is_a_path_or_a_task(load):
    assert load(f"{TASKS}buffer: {{seed: old.jsonl}}").buffer.seed.train == "old.jsonl"
    seed = load(f"{TASKS}buffer: {{seed: {{name: general, train: g.jsonl, max_train: 9}}}}").buffer.seed
    assert (seed.name, seed.train, seed.max_train) == ("general", "g.jsonl", 9)
    assert load(TASKS, "buffer.seed=builtin:home_intent").buffer.seed.train == "builtin:home_intent"


def test_an_empty_section_is_the_default(load):
    assert load(f"{TASKS}memory:\nlora:\n") == load(TASKS)


def test_anchors_and_merges_are_read(load):
    config = load("tasks: [{name: a, <<: &own {train: a.jsonl, max_train: 3}}, {name: b, <<: *own, max_train: 4}]")
    assert [task.max_train for task in config.tasks] == [3, 4]


def test_a_strategy_lays_its_defaults_under_explicit_keys(load):
    assert load(f"{TASKS}strategy: er").schedule.kind == "every"
    config = load(f"{TASKS}strategy: er\nschedule: {{kind: geometric}}")
    assert (config.schedule.kind, config.schedule.ratio_form) == ("geometric", "constant")
    assert load(f"{TASKS}strategy: er", "strategy=fixed").schedule.kind == "fixed"


def test_overrides_reach_into_lists_by_index_and_by_name(load):
    text = "tasks: [iso_date, {name: sst2, train: a.jsonl}]\nschedule: {explicit: [1, 2]}"
    config = load(text, "tasks.0.max_train=100", "tasks.sst2.max_train=7", "schedule.explicit.1=3.5")
    assert [task.max_train for task in config.tasks] == [100, 7]
    assert config.schedule.explicit == [1, 3.5]


def test_an_override_may_replace_a_section_or_a_short_form(load):
    config = load(f"{TASKS}model: a", "model=b", "tasks=[home_intent]", "schedule={kind: fixed}", "schedule.eta_p=0")
    assert (config.model.name, config.tasks[0].name, config.schedule.kind) == ("b", "home_intent", "fixed")
    assert config.schedule.eta_p == 0
    assert load(TASKS, "output=a=b").output == "a=b"


def test_constant_shares_may_lie_below_the_minimum(load):
    assert load(f"{TASKS}schedule: {{ratio_form: constant, lambda_0: 0.01}}").schedule.lambda_0 == 0.01


# ---- what is written ------------------------------------------------------------------------------------


def test_a_dump_holds_every_key_and_loads_back_equal(load, write):
    config = load(
        "tasks: [iso_date, {name: x, train: a.jsonl, description: '1e-3'}, {name: y, test: '=b: [c'}]\n"
        "strategy: er\nbuffer: {seed: old.jsonl}\noutput: 'no'\nschedule: {first_interval: 7, beta_r: 1e-9}\n"
    )
    text = dump_config(config)
    assert load_config(write(text, "again.yaml")) == config
    assert set(yaml.safe_load(text)) == set(Config.model_fields)
    assert set(yaml.safe_load(text)["memory"]) == set(type(config.memory).model_fields)


@pytest.mark.parametrize("text", ["1e-3", "1e5", "no", "null", "~", "true", "1:30", "0x1f", "<<", ".5", "é\n\tx", ""])
def test_text_survives_the_yaml(text):
    assert parse_yaml(dump_yaml({"x": text}), "text")[0] == {"x": text}


def test_the_difference_of_two_configs_names_keys_and_both_values(load):
    old = load("tasks: [iso_date, home_intent]")
    new = load("tasks: [iso_date, home_intent]", "training.epochs=2", "tasks.1.max_train=5", "output=elsewhere")
    assert diff_config(old, new) == ["tasks.home_intent.max_train: None -> 5", "training.epochs: 1 -> 2"]
    assert diff_config(old, old) == []


def test_a_combination_keeps_its_options_in_the_dump(load, write):
    config = load(f"{TASKS}strategy: [{{name: ewc, weight: 5}}, mssr, der++]")
    again = load_config(write(dump_config(config), "again.yaml"))
    assert again == config and config.schedule.kind == "expanding"
    assert load(f"{TASKS}strategy: ssr", "strategy=der++ + ewc + mssr", "strategy.ewc.weight=5") == config
    other = load(TASKS, "strategy={name: ewc, weight: 6}", "strategy.online=true")
    assert diff_config(config, other)[0] == "strategy: mssr + ewc + der++ -> ewc"
    assert "strategy.ewc.weight: 5.0 -> 6.0" in diff_config(config, other)
    assert diff_config(config, again) == []


# ---- what is refused ------------------------------------------------------------------------------------


def test_all_problems_come_in_one_message_with_their_lines(complaint):
    message = complaint(
        "tasks: [iso_date]\nschedule:\n  kind: expandin\n  lambda_0: 1.3\ntraining:\n  learning_rat: 1e-3\n",
        "training.epochs=0",
    )
    assert message.splitlines() == [
        "run.yaml: 4 problems",
        "  line 3: schedule.kind: 'expandin' is not one of expanding, fixed, geometric, explicit, every, "
        "threshold, loss, accuracy; did you mean expanding?",
        "  line 4: schedule.lambda_0: 1.3 is too large (allowed: 0 to 0.9)",
        "  line 6: training.learning_rat: unknown key; did you mean learning_rate?",
        "  override 'training.epochs=0': training.epochs: 0 is too small (allowed: a whole number of at least 1)",
    ]


STEPS = "(allowed: a whole number of steps of at least 1, or a share of the stage above 0 and below 1)"


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("schedule.first_interval", "1.0", f"1.0 is not allowed {STEPS}"),
        ("schedule.first_interval", "0", f"0 is too small {STEPS}"),
        ("schedule.first_interval", "2.5", f"2.5 is not allowed {STEPS}"),
        ("schedule.first_interval", "true", f"true is not allowed {STEPS}"),
        ("schedule.lambda_0", "-0.1", "-0.1 is too small (allowed: 0 to 0.9)"),
        ("schedule.lambda_0", "true", "true is not a number (allowed: 0 to 0.9)"),
        (
            "schedule.lambda_0",
            "'0.5'",
            "'0.5' is not a number but text; remove the quotes (allowed: 0 to 0.9)",
        ),
        ("schedule.lambda_0", ".nan", "nan is not a finite number (allowed: 0 to 0.9)"),
        ("schedule.explicit", "[]", "[] is not allowed (allowed: a list of numbers above 0)"),
        ("schedule.explicit", "[1, 0]", "explicit.1: 0 is too small (allowed: above 0)"),
        ("schedule.explicit", "3", "3 is not allowed (allowed: a list of numbers above 0)"),
        ("memory.time_unit", "atuo", "(allowed: one of auto, interval, or above 0); did you mean auto?"),
        ("memory.time_unit", ".inf", "inf is not a finite number"),
        ("memory.quantile_low", "0.97", "quantile_high: 0.95 is not above quantile_low (0.97)"),
        ("memory.quantile_high", "0.05", "quantile_high: 0.05 is not above quantile_low (0.05)"),
        ("memory.s_min", "11", "s_max: 10 is below s_min (11)"),
        ("memory.kind", "fixed", "memory.kind: unknown key; did you mean schedule.kind or curriculum.kind?"),
        ("memory.ema_beta", "1", "1 is too large (allowed: at least 0 and below 1)"),
        ("training.batch_size", "8.0", "8.0 is not a whole number (allowed: a whole number of at least 1)"),
        ("training.epochs", "null", "null is not a whole number"),
        ("training.micro_batch_size", "3", "3 does not divide batch_size (8)"),
        ("training.learning_rate", "0", "0 is too small (allowed: above 0)"),
        ("model.trust_remote_code", "yes please", "'yes please' is not allowed (allowed: true or false)"),
        ("model", "3", "3 is not a section; write its keys below it: name, dtype"),
        ("lora.target_modules", "[]", "[] is not allowed (allowed: a list of names, or one pattern, or null)"),
        (
            "evaluation.after",
            "stag",
            "(allowed: stage, or a whole number of at least 1); did you mean stage?",
        ),
        ("seed", "-1", "seed: -1 is too small"),
        ("seed", "5000000000", "is too large (allowed: a whole number, 0 to 4294967295)"),
        ("output", "5", "5 is not text; put it in quotes (allowed: text)"),
        ("output", "''", "'' is not allowed (allowed: text)"),
        ("Outputs", "x", "unknown key; did you mean output?"),
        ("learning_rate", "1", "unknown key; did you mean training.learning_rate?"),
        ("xyzzy", "1", "xyzzy: unknown key (allowed: model, tasks, strategy,"),
        ("strategy", "msrr", "'msrr'; did you mean 'mssr'?"),
        ("strategy", "5", "strategy: 5 is neither a name"),
        ("strategy", "{name: ewc, weight: -1}", "strategy: options of 'ewc': weight: -1 is too small (allowed: at "),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(complaint, key, value, expected):
    assert expected in complaint(one(key, value))


def test_a_huge_number_is_refused(complaint):
    assert "is not a number" in complaint(f"{TASKS}training: {{learning_rate: {'9' * 400}}}")


@pytest.mark.parametrize(
    "tasks, expected",
    [
        ("[]", "tasks: missing or empty"),
        ("null", "tasks: missing or empty"),
        ("5", "tasks: 5 is not allowed (allowed: a list of names of built-in tasks and of tasks)"),
        ("[5]", "tasks.0: 5 is not a section; write its keys below it: name, train"),
        ("[data/a.jsonl]", "tasks.0: 'data/a.jsonl' is not a section"),
        ("[{train: a.jsonl}]", "tasks.0.name: missing; it has no default"),
        ("[{name: a, train: ''}]", "tasks.0.train: '' is not allowed"),
        ("[{name: a, train: x, trian: y}]", "tasks.0.trian: unknown key; did you mean train?"),
        ("[{name: a, test: x}]", "tasks: no task has `train`, so there is nothing to learn"),
        ("[{name: a, train: x}, {name: A, train: y}]", "tasks.1.name: 'A' is the name of tasks.0 too"),
        ("[{name: ../a, train: x}]", "'../a' is not a task name (allowed: 1 to 64 letters, digits, _ and -)"),
        ("[{name: a.b, train: x}]", "'a.b' is not a task name"),
        ("[{name: '', train: x}]", "'' is not a task name"),
        (f"[{{name: {'a' * 65}, train: x}}]", "is not a task name"),
        ("[{name: 7, train: x}]", "tasks.0.name: 7 is not text; put it in quotes"),
        ("[{name: Joint, train: x}]", "'Joint' is taken: the run directory uses it"),
        ("[{name: base, train: x}]", "'base' is taken"),
        (
            "[{name: a, train: x, max_train: 0}]",
            "max_train: 0 is too small (allowed: a whole number of at least 1",
        ),
    ],
)
def test_wrong_tasks(complaint, tasks, expected):
    message = complaint(f"seed: 1\ntasks: {tasks}")
    assert expected in message
    assert tasks == "null" or "line 2" in message


def test_a_buffer_seed_shares_no_name_with_a_task(complaint):
    text = "tasks: [{name: seed, train: a.jsonl}]\nbuffer: {seed: b.jsonl}"
    assert "tasks.0.name: 'seed' is the name of buffer.seed too" in complaint(text)


def test_tasks_may_come_later_where_that_is_asked_for(write):
    assert load_config(write("seed: 1\n"), need_tasks=False).tasks == []
    assert (
        make_config({"tasks": [{"name": "mmlu", "test": "t.jsonl"}]}, "task", need_tasks=False).tasks[0].name == "mmlu"
    )


@pytest.mark.parametrize(
    "override, expected",
    [
        ("training.epochs", "write key=value, such as training.epochs=2"),
        ("=3", "write key=value"),
        ("training..epochs=3", "write key=value"),
        ("seed.x=1", "seed is a value, not a section, so it has no 'x'"),
        ("tasks.3.max_train=1", "tasks has no item '3'; allowed: 0 to 1 or iso_date, home_intent"),
        ("tasks.iso_dat.max_train=1", "tasks has no item 'iso_dat'; did you mean iso_date?"),
        ("training.epochs=[1", "override 'training.epochs=[1', line 1"),
        ("training.epoch=1", "training.epoch: unknown key; did you mean epochs?"),
        ("training.epochs=", "training.epochs: null is not a whole number"),
    ],
)
def test_wrong_overrides(complaint, override, expected):
    assert expected in complaint("tasks: [iso_date, home_intent]\nseed: 1", override)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "run.yaml: the file is empty; it needs at least `tasks:`"),
        ("# nothing\n", "run.yaml: the file is empty"),
        ("- a\n- b\n", "run.yaml: a list stands at the top"),
        ("hello", "run.yaml: a single value stands at the top"),
        ("a: 1\nb: [1\nc: 2\n", "run.yaml, line 3"),
        ("a:\n\tb: 1\n", "run.yaml, line 2, column 1: a tab; YAML is indented with spaces"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: a second document starts here"),
        (
            "training:\n  epochs: 1\n  seed: 2\n  epochs: 3\n",
            "training.epochs stands twice (lines 2 and 4); keep one",
        ),
        ("seed: 1\nseed: 2\noutput: a\noutput: b\n", "seed stands twice (lines 1 and 2)"),
        ("seed: 1\nseed: 2\noutput: a\noutput: b\n", "output stands twice (lines 3 and 4)"),
        ("a: !!python/object/apply:os.system ['x']\n", "line 1, column 4: could not determine a constructor"),
        ("a: *b\n", "run.yaml, line 1, column 4: not valid YAML: found undefined alias"),
        ("1: a\n", "line 1: key '1' is not text; put it in quotes"),
        ("? [a]\n: b\n", "key 'a list or mapping' is not text"),
        ("a: \x01\n", "run.yaml: not valid YAML"),
        (b"a: 1\nb: \xe9\n", "run.yaml, line 2: not UTF-8 text (byte 0xe9); save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "line 1: not UTF-8 text (byte 0xff)"),
        ("a" * (MAX_BYTES + 1), "run.yaml: larger than 1 MB"),
        ("[" * 20_000, "run.yaml: nested too deeply"),
        ("a: " + "[" * 50 + "]" * 50, "too large once its aliases are written out"),
        ("a: &a [*a]\n", "too large once its aliases are written out"),
    ],
)
def test_unreadable_files(complaint, text, expected):
    assert expected in complaint(text)


def test_an_alias_bomb_is_refused_at_once(complaint):
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "too large once its aliases are written out" in complaint("a0: &a0 [x]\n" + "\n".join(levels))
    merges = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    assert "too large once its aliases are written out" in complaint("a0: &a0 {x: 1}\n" + "\n".join(merges))


def test_a_byte_order_mark_is_no_part_of_the_first_key(load):
    assert load(b"\xef\xbb\xbf" + TASKS.encode()).tasks[0].name == "iso_date"


def test_a_missing_file_names_the_nearest(write, tmp_path):
    write(TASKS, "my-run.yaml")
    with pytest.raises(InputError, match=r"my-rum\.yaml: no such file; did you mean \S*my-run\.yaml\?"):
        load_config(tmp_path / "my-rum.yaml")
    with pytest.raises(InputError, match=r"zzz: no such file; found in \S+: my-run\.yaml"):
        load_config(tmp_path / "zzz")
    with pytest.raises(InputError, match="no such file; there is no folder"):
        load_config(tmp_path / "nowhere" / "a.yaml")


def test_a_directory_is_no_file(write, tmp_path):
    write(TASKS, "my-run.yaml")
    with pytest.raises(InputError, match=r"a directory, not a \.yaml file; found in \S+: my-run\.yaml"):
        load_config(tmp_path)


def test_sections_can_be_checked_alone():
    assert validate(MemoryModel, {"alpha": 1}, "trace").alpha == 1
    with pytest.raises(InputError, match=r"^trace: 2 problems\n  alpha: .*\n  phi_q: unknown key; did you mean phi_k"):
        validate(MemoryModel, {"alpha": -1, "phi_q": 3}, "trace")


# ---- the page about it ----------------------------------------------------------------------------------


def documented() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `([\w.+-]+)` \| (.*) \| (.*) \| (.*) \|$", DOCS.read_text(), flags=re.MULTILINE)
    return {key: rest for key, *rest in rows}


def keys() -> dict[str, tuple[type[Section], str]]:
    """Every key of the configuration as the page writes it, with its section and field."""
    found = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.default, Section):
            found |= {f"{name}.{key}": (type(field.default), key) for key in type(field.default).model_fields}
        else:
            found[name] = (Config, name)
    task = Config.model_fields["tasks"].annotation.__args__[0]
    for name, row in REGULARIZERS.items():
        found |= {f"strategy.{name}.{key}": (row.options, key) for key in row.options.model_fields}
    return found | {f"tasks.N.{key}": (task, key) for key in task.model_fields}


def test_the_page_lists_every_key_and_no_other():
    assert set(documented()) == set(keys())


@pytest.mark.parametrize("key", keys())
def test_the_page_states_the_default_and_what_is_allowed(key):
    section, name = keys()[key]
    default, allowed, meaning = documented()[key]
    assert allowed == allowed_in(section, name)
    field = section.model_fields[name]
    if field.is_required():
        assert default == "required"
    else:
        assert parse_yaml(default.strip("`"), "page")[0] == field.default
    assert meaning


def test_a_comparison_is_told_from_a_run(tmp_path):
    path = tmp_path / "methods.yaml"
    path.write_text("run: my-run.yaml\nstrategies: [none, mssr]\n")
    with pytest.raises(InputError, match=r"methods.yaml: compares strategies .*retain compare"):
        load_config(path)
