"""The command: what it prints where, its exit codes, and how fast it answers."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest

import retain
from retain import cli
from retain.types import GateError, InputError

COMMANDS = [
    *("run", "quickstart", "compare", "plan", "simulate", "evaluate", "synthesize", "review", "report"),
    *("calibrate", "fit", "gate", "rollback", "erase", "doctor", "tasks", "models", "add", "export", "merge", "push"),
]
TRACE = {
    "config": {"time_unit": 10},
    "ops": [
        {"op": "add", "ids": ["a", "b"], "step": 0, "losses": [1.0, 2.0]},
        {"op": "query", "step": 20},
    ],
}


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process; the exit code, standard output and standard error."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["retain", *map(str, arguments)])
        monkeypatch.setattr(logging.getLogger("retain"), "handlers", [])  # what main adds goes with the test
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return command


@pytest.fixture
def engine(monkeypatch):
    """A stand-in for `retain.run`, for what the command does around it."""
    module = types.ModuleType("retain.run")
    monkeypatch.setitem(sys.modules, "retain.run", module)
    monkeypatch.setattr(retain, "run", module, raising=False)
    return module


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("tasks: [home_intent, iso_date]\n")
    return path


def fresh(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "retain", *arguments], capture_output=True, text=True, timeout=60, **options
    )


# ---- help -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_is_quick(name):
    arguments = [*filter(None, [name]), "--help"]
    seconds = []
    for _ in range(5):
        started = processor_seconds()
        done = fresh(*arguments)
        seconds.append(processor_seconds() - started)
        assert done.returncode == 0
        assert "Usage" in done.stdout
        if seconds[-1] < 0.5:
            return
    pytest.fail(f"help took {min(seconds):.2f} s at best")


def processor_seconds() -> float:
    """What processes that this one started have computed, which other work on the machine does not lengthen."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_imports_nothing_heavy(name):
    program = (
        "import sys\nfrom retain import cli\n"
        f"sys.argv = {['retain', *filter(None, [name]), '--help']}\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_shows_an_example_of_each_command(command):
    for name in COMMANDS:
        code, out, _ = command(name, "--help")
        assert code == 0
        assert f"retain {name}" in out.split("Example", 1)[1]


def test_version(command):
    assert command("--version") == (0, f"retain {retain.__version__}\n", "")
    assert fresh("--version").stdout == f"retain {retain.__version__}\n"


@pytest.mark.parametrize("arguments", [["run"], ["plna"], ["plan", "--jsn"], ["evaluate", "x", "--stage", "-1"]])
def test_a_wrong_command_line_is_exit_2(command, arguments):
    code, out, err = command(*arguments)
    assert code == 2
    assert not out
    assert "Usage" in err


# ---- plan, simulate, tasks, models ----------------------------------------------------------------------


def test_plan_prints_json_and_nothing_else(command, config, cache):
    code, out, err = command("plan", config, "--json", "tasks.0.max_train=80", "strategy=fixed")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert [stage["task"] for stage in plan["stages"]] == ["home_intent", "iso_date"]
    assert plan["stages"][0]["steps"] == 10
    assert plan["stages"][0]["time_unit"] is None
    assert plan["totals"]["replayed"] == sum(event["replayed"] for event in plan["stages"][1]["events"]) > 0


def test_plan_as_a_table_names_stages_events_and_totals(command, config, cache):
    code, out, _ = command("plan", config)
    assert code == 0
    assert "home_intent" in out and "never" in out
    assert "totals: steps 80, new samples 640" in out


def test_a_long_calendar_is_shortened_and_its_sums_hold(command, config, cache):
    _, out, _ = command("plan", config, "schedule.kind=every")
    assert "... 29 more" in out


def test_plan_marks_what_is_only_projected(command, config, cache):
    _, out, _ = command("plan", config, "schedule.kind=threshold", "memory.time_unit=1")
    assert "~ projected" in out


def test_plan_counts_a_seed_and_needs_no_torch(config, cache):
    program = (
        "import sys\nfrom retain import cli\n"
        f"sys.argv = ['retain', 'plan', {str(config)!r}, 'buffer.seed=builtin:order_number', '--json']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == "False\n"
    assert json.loads(done.stdout)["stages"][0]["events"]


def test_plan_counts_tokens_where_the_tokenizer_is_at_hand(command, config, cache):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (cache / "smollm2-135m").mkdir(parents=True)
    tokenizer.save(str(cache / "smollm2-135m" / "tokenizer.json"))
    totals = json.loads(command("plan", config, "--json")[1])["totals"]
    assert any("tokens" in name and value > totals["new_samples"] for name, value in totals.items())


def test_simulate_reads_a_file_and_standard_input(command, tmp_path, monkeypatch):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(TRACE))
    code, out, err = command("simulate", path, "--json")
    assert (code, err) == (0, "")
    [query] = json.loads(out)["queries"]
    assert query["step"] == 20 and set(query["samples"]) == {"a", "b"}
    done = fresh("simulate", "-", "--json", input=json.dumps(TRACE))
    assert done.stdout == out
    table = command("simulate", path)[1]
    assert "step 20" in table and "stability" in table


def test_simulate_without_a_query_says_so(command, tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({**TRACE, "ops": []}))
    assert "it has no query" in command("simulate", path)[1]


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"config": {},\n "ops": [}', "trace.json: broken JSON at line 2, column 10"),
        ("", "trace.json: broken JSON at line 1, column 1"),
        ("[" * 100_000, "trace.json: broken JSON (nested too deeply)"),
        ("[]", "trace.json: "),
        (
            '{"config": {"time_unit": 1}, "ops": [{"op": "refresh", "step": 2}, {"op": "query", "step": 1}]}',
            "trace.json: ",
        ),
    ],
)
def test_a_wrong_trace_is_named_with_its_place(command, tmp_path, text, expected):
    (tmp_path / "trace.json").write_text(text)
    code, out, err = command("simulate", tmp_path / "trace.json", "--json")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and expected in err


def test_a_missing_trace_is_named(command, tmp_path):
    code, _, err = command("simulate", tmp_path / "trace.json")
    assert code == 2 and "trace.json: no such file" in err


def test_tasks_lists_the_suite_and_those_of_a_file(command, config):
    assert "iso_date" in command("tasks")[1]
    code, out, _ = command("tasks", config, "tasks.iso_date.max_train=33")
    assert code == 0
    assert "33" in out and "exact_match" in out


def test_models_lists_names_and_the_cache(command, cache):
    (cache / "other").mkdir(parents=True)
    (cache / "other" / "weights").write_bytes(b"0" * 3_000_000)
    code, out, _ = command("models")
    assert code == 0
    assert "smollm2-135m" in out and "no, made on first use" in out
    assert "other" in out and "3 MB" in out


# ---- errors ---------------------------------------------------------------------------------------------


def test_a_wrong_configuration_is_one_message_and_exit_2(command, config):
    code, out, err = command("run", config, "schedule.kind=expandin")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and "did you mean expanding?" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "error, code, expected",
    [
        (InputError("model: unknown"), 2, "error: model: unknown\n"),
        (GateError("too few reviews"), 3, "not met: too few reviews\n"),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to resume\n"),
        (
            OSError(errno.ENOSPC, "No space left", "w.bin"),
            1,
            "error: no space left on the disk at w.bin; free some",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            1,
            "error: no permission for x (Permission denied)",
        ),
        (RuntimeError("a\nb"), 1, "error: RuntimeError: a b (set RETAIN_DEBUG=1 for the traceback)\n"),
        (ValueError(), 1, "error: ValueError: no message"),
    ],
)
def test_each_kind_of_failure_has_its_code_and_one_line(command, config, engine, monkeypatch, error, code, expected):
    def run(*_, **__):
        raise error

    engine.run = run
    monkeypatch.delenv("RETAIN_DEBUG", raising=False)
    status, out, err = command("run", config)
    assert (status, out) == (code, "")
    assert err.startswith(expected)
    assert err.count("\n") == 1


def test_the_traceback_is_there_for_those_who_ask(command, config, engine, monkeypatch):
    monkeypatch.setenv("RETAIN_DEBUG", "1")
    engine.run = lambda *_, **__: 1 / 0
    code, _, err = command("run", config)
    assert code == 1
    assert "Traceback" in err and "ZeroDivisionError" in err


def test_a_closed_pipe_is_no_traceback(config):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "retain", "plan", str(config), "--json"],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(write)
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


# ---- run, evaluate, report ------------------------------------------------------------------------------


def test_run_hands_over_config_base_and_place_and_says_where_it_lies(command, config, engine, tmp_path, monkeypatch):
    shown = types.ModuleType("retain.report.tables")
    shown.run_table = lambda results: f"table of {results['strategy']}"
    monkeypatch.setitem(sys.modules, "retain.report.tables", shown)
    seen = []

    def run(config, base, out, accept_changed_data):
        seen.append((config.strategy, base, out))
        out.mkdir()
        (out / "results.json").write_text('{"strategy": "fixed"}')
        (out / "report.html").write_text("")
        return out

    engine.run = run
    code, out, _ = command("run", config, "--out", tmp_path / "here", "strategy=fixed")
    assert code == 0
    assert seen == [("fixed", tmp_path, tmp_path / "here")]
    assert "table of fixed" in out
    assert f"The run lies in {tmp_path / 'here'}" in out
    assert f"retain evaluate {tmp_path / 'here'}" in out
    assert str(tmp_path / "here" / "report.html") in out


def test_evaluate_shows_the_scores_of_a_stage(command, engine, tmp_path):
    (tmp_path / "journal.jsonl").write_text("")
    scores = {
        "generated": 0.5,
        "likelihood": None,
        "likelihood_summed": None,
        "nll": 1.25,
        "metric": "bleu",
        "n": 7,
    }
    engine.evaluate = lambda folder, stage, harness, limit: {"stage": stage, "scores": {"sst2": scores}}
    code, out, _ = command("evaluate", tmp_path, "--stage", "2")
    assert code == 0
    assert "after stage 2" in out and "1.25" in out and "bleu" in out


@pytest.mark.parametrize("name", ["evaluate", "report", "review"])
def test_what_is_no_run_is_refused(command, tmp_path, name):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "journal.jsonl").write_text("")
    (tmp_path / "file").write_text("")
    for folder, expected in [
        (
            "runs",
            f"not the directory of a run (no journal.jsonl in it); did you mean {tmp_path / 'runs' / 'a'}?",
        ),
        ("rnus", f"no such directory; did you mean {tmp_path / 'runs'}?"),
        ("file", "not a directory"),
    ]:
        code, _, err = command(name, tmp_path / folder)
        assert code == 2
        assert expected in err


def test_report_goes_where_it_is_asked_to(command, tmp_path, monkeypatch):
    import retain.report

    run = tmp_path / "run"
    run.mkdir()
    (run / "journal.jsonl").write_text("")

    def write_report(folder):
        (folder / "report.html").write_text("<p>page</p>")
        return folder / "report.html"

    monkeypatch.setattr(retain.report, "write_report", write_report)
    assert command("report", run) == (0, f"report: {run / 'report.html'}\n", "")
    command("report", run, "--out", tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text() == "<p>page</p>"
    assert str(tmp_path / "report.html") in command("report", run, "--out", tmp_path)[1]
    assert command("report", run, "--out", run / "report.html")[0] == 0, "where it is already"
    code, _, err = command("report", run, "--out", run / "journal.jsonl" / "page.html")
    assert code == 2 and "page.html cannot be written: " in err


def test_the_page_lists_every_command_and_its_trace_runs(command, tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    assert set(re.findall(r"^\| `retain (\w+)", page, flags=re.MULTILINE)) == set(COMMANDS)
    assert {info.name or info.callback.__name__ for info in cli.app.registered_commands} == set(COMMANDS)
    (tmp_path / "trace.json").write_text(page.split("```json\n")[1].split("```")[0])
    assert command("simulate", tmp_path / "trace.json")[0] == 0
