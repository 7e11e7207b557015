"""Files that somebody else made: they neither execute nor lead out of their directory nor end in a traceback."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from report_fixture import build_run
from safetensors.torch import load_file, save_file
from test_run import run_tiny
from typer.testing import CliRunner

from retain import reading
from retain.cli import app
from retain.config import load_config, make_config
from retain.history import read_history
from retain.report import write_report
from retain.report.journal import read_journal
from retain.run import evaluate
from retain.store import read_lines
from retain.tasks.files import read_file
from retain.types import InputError


def refused(*line: object, text: str) -> str:
    """The command is refused with exit code 2 and one message of visible characters; returns it."""
    logging.getLogger("retain").handlers.clear()
    done = CliRunner().invoke(app, [str(part) for part in line])
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stderr.count("error: ") == 1 and text in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.replace("\n", "").isprintable()
    return done.stderr


# ---- out of the directory ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_tiny(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished.parent, tmp_path / "copy")
    return tmp_path / "copy" / "run"


@pytest.mark.parametrize(
    "place",
    [
        "journal.jsonl",
        "config.yaml.tmp",
        "results.json.tmp",
        ".lock",
        ".holder.json",
        "stages",
        "buffer",
        "stages/.04-x",
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_link_that_leads_out_is_refused_before_anything_is_touched(place, kind, copy, tmp_path):
    other = tmp_path / "other"
    if kind == "folder":
        (other / ".01-mine").mkdir(parents=True)
        (other / ".01-mine" / "letter.txt").write_text("mine")
    elif kind == "file":
        other.write_text("mine\nand no line's end")
    target = copy / place
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    target.symlink_to(other)
    for name in ("report", "evaluate", "calibrate"):
        if (copy / "journal.jsonl").is_file():
            refused(name, copy, text="a link that leads out of")
    with pytest.raises(InputError, match="a link that leads out of"):
        run_tiny(copy.parent)
    if kind == "nothing":
        assert not os.path.lexists(other)
    else:
        kept = other / ".01-mine" / "letter.txt" if kind == "folder" else other
        assert kept.read_text().startswith("mine")


def test_links_inside_a_directory_and_to_it_are_fine(copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    (copy / "latest").symlink_to("stages/03-shape")
    assert evaluate(tmp_path / "link", 0)["stage"] == 0
    reading.check_links(tmp_path / "link")


def test_a_pipe_in_a_directory_does_not_hang_a_command(copy):
    os.mkfifo(copy / "results.json.new")
    refused("report", copy, text="a pipe or a device")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "..", "a/b", "a\\b", "a\0b", "-", "CON\u202e", "a\n", "x" * 65, "", ".hidden"]
)
def test_a_task_name_is_no_path(name):
    if name == "-":
        return  # a folder of that name is `01--`, an ordinary one
    with pytest.raises(InputError, match="is not a task name"):
        make_config({"tasks": [{"name": name, "train": "a.jsonl", "test": "a.jsonl"}]}, "t")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_a_pipe_or_a_device_is_no_data_file(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="a pipe or a device, not a file"):
        read_file(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match="a pipe or a device, not a file"):
        read_file(tmp_path / name)


# ---- too much ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_line_without_an_end_is_never_held(name, tmp_path, monkeypatch):
    """A gigabyte takes the memory of the limit: here 200 MB against a limit of 1000 bytes."""
    import tracemalloc

    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1000)
    with open(tmp_path / name, "wb") as file:
        file.write(b"a,b\n")
        file.truncate(200_000_000)  # a hole: NULs
    tracemalloc.start()
    with pytest.raises(InputError, match="line 2: 199,999,996 bytes in one line, at most 1,000 are allowed"):
        read_file(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_journal_with_a_line_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1000)
    run = build_run(tmp_path / "run")
    with open(run / "journal.jsonl", "ab") as file:
        file.write(b"x" * 5000)
    refused("report", run, text="5,000 bytes in one line")


def test_files_that_unfold_are_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 100_000)
    (tmp_path / "synthetic.jsonl.gz").write_bytes(gzip.compress(b" " * 50_000_000))
    with pytest.raises(InputError, match=r"synthetic.jsonl.gz: more than 100,000 bytes"):
        list(read_lines(tmp_path / "synthetic.jsonl.gz"))
    same = pa.table({"prompt": pa.array(["x" * 1000] * 100_000).dictionary_encode(), "completion": ["y"] * 100_000})
    pq.write_table(same, tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 50_000
    with pytest.raises(InputError, match=r"bomb.parquet: more than 100,000 bytes once decoded"):
        read_file(tmp_path / "bomb.parquet")
    (tmp_path / "a.json").write_bytes(b"[" + b" " * 200_000 + b"]")
    with pytest.raises(InputError, match="more than 100,000 bytes; it is not read"):
        read_file(tmp_path / "a.json")


BOMB = "\n".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" if k else "a0: &a0 [x]" for k in range(12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "too large once its aliases are written out"),
        ("tasks: !!python/object/apply:os.system ['touch /tmp/owned']", "tags are not allowed"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("x: \0", "not valid YAML"),
    ],
)
def test_a_hostile_configuration_in_a_runs_directory(text, message, tmp_path):
    """The report reads it too, and reads it no less carefully than `retain run` does."""
    run = build_run(tmp_path / "run")
    (run / "config.yaml").write_text(text)
    refused("report", run, text=message)
    refused("evaluate", run, text=message)
    refused("run", run / "config.yaml", text=message)


# ---- wrong in kind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": {"a": 1}}', "not an object with a"),
        ('{"kind": "evaluation", "row": 1000000000, "task": "a"}', "row has a value that no run writes"),
        ('{"kind": "evaluation", "row": {}, "task": "a"}', "row has a value that no run writes"),
        ('{"kind": "evaluation", "row": 1, "task": {"a": 1}}', "task has a value that no run writes"),
        ('{"kind": "step", "stage": [1], "global_step": 1}', "stage has a value"),
        ('{"kind": "step", "stage": 1, "global_step": 1e400}', "global_step has a value"),
        ('{"kind": "plan", "stage": 1, "events": 3}', "events is no list of objects"),
        ('{"kind": "plan", "stage": 1, "time_unit": "x"}', "time_unit has a value"),
        ('{"kind": "event", "stage": 1, "global_step": 1, "by_task": {"a": "x"}}', "by_task has a value"),
        ('{"kind": ' + "[" * 900 + "]" * 900 + "}", "nested too deeply"),
        ('{"kind": ' + "9" * 5000 + "}", "too many digits"),
    ],
)
def test_records_that_no_run_writes(line, message, tmp_path):
    run = build_run(tmp_path / "run", results=False)
    lines = (run / "journal.jsonl").read_text().splitlines()
    (run / "journal.jsonl").write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n")
    assert "line 4" in refused("report", run, text=message)


@pytest.mark.parametrize(
    "changes",
    [
        {"matrices": 1.5}, {"matrices": {"nll": 2.5}}, {"matrices": {"nll": [1.5]}},
        {"versions": "x"}, {"costs": {"seconds": "x"}},
        {"evaluation_only": 3}, {"metrics_by_matrix": []}, {"truncated": {}}, {"skipped": "x"}, {"skipped_steps": [1]},
        {"privacy": "x"}, {"strategy": [[[]]]}, {"tasks": [{}]}, {"seed": {"a": [1e999]}},
    ],
    ids=str,
)  # fmt: skip
def test_results_that_no_run_writes(changes, tmp_path):
    run = build_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | changes))
    try:
        page = write_report(run).read_text()
    except InputError as error:
        assert "results.json" in str(error) or "is not what a run wrote" in str(error)
    else:
        assert page.count("<script>") == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.set_column(0, "stage", pa.array(["x"] * len(table))),
        lambda table: table.set_column(2, "id", pa.nulls(len(table), pa.string())),
        lambda table: table.set_column(2, "id", pa.array(["other"] * len(table))),
        lambda table: table.set_column(1, "step", pa.array([2**62] * len(table), pa.int64())),
        lambda table: table.drop_columns(["hazard"]),
        lambda table: table.slice(0, 0),
    ],
)
def test_a_trace_that_no_run_writes(damage, copy):
    path = copy / "memory_trace.parquet"
    pq.write_table(damage(pq.read_table(path)), path)
    refused("fit", copy, text="run")


def test_reviews_of_samples_that_are_not_there(copy):
    path = copy / "memory_reviews.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "id", pa.array(["nobody"] * len(table))), path)
    with pytest.raises(InputError):
        from retain.history import follow

        follow(read_history(copy))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: {k: torch.full_like(t, float("nan")) for k, t in w.items()}, "its weights are not finite"),
        (lambda w: {k: t[:, :1] for k, t in w.items()}, "not an adapter of this model"),
        (lambda w: {f"x.{k}": t for k, t in w.items()}, "not an adapter of this model"),
        (lambda w: {k: torch.zeros(20_000, 2) if "lora_A" in k else t for k, t in w.items()}, "ranks 20000"),
        (
            lambda w: {k: torch.zeros(i % 3 + 1, 2) for i, (k, t) in enumerate(w.items())},
            "not an adapter of this model",
        ),
        (lambda w: {k: torch.zeros(()) for k in w}, "not an adapter of this model"),
    ],
)
def test_an_adapter_of_something_else(damage, message, copy):
    path = copy / "stages" / "03-shape" / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in damage(load_file(path)).items()}, path)
    refused("evaluate", copy, text=message)


def test_an_adapter_that_is_a_pickle_is_not_opened(copy):
    folder = copy / "stages" / "03-shape" / "adapter"
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    refused("evaluate", copy, text="no adapter_model.safetensors")


def test_a_base_of_the_run_is_kept_when_scores_are_hostile(copy):
    for text in (
        "[]",
        "{}",
        '{"scores": 1, "costs": {}}',
        '{"scores": {}, "costs": {}}',
        "[" * 90_000,
        '{"a": ' + "9" * 9000 + "}",
    ):
        (copy / "stages" / "02-size" / "scores.json").write_text(text)
        with pytest.raises(InputError, match=r"02-size/scores\.json"):
            run_tiny(copy.parent)


def test_messages_show_what_cannot_be_seen(tmp_path):
    (tmp_path / "run.yaml").write_text('"\\e[2J\\u202eevil": 1\ntasks: [iso_date]\n')
    said = refused("run", tmp_path / "run.yaml", text="unknown key")
    assert "\\x1b[2J\\u202eevil" in said


def test_a_message_has_an_end(tmp_path):
    keys = "".join(f"key{k}: 1\n" for k in range(500))
    (tmp_path / "run.yaml").write_text(keys + "tasks: [iso_date]\n")
    assert "and 480 more" in refused("run", tmp_path / "run.yaml", text="500 problems")
    (tmp_path / "run.yaml").write_text(keys + keys + "tasks: [iso_date]\n")
    assert refused("run", tmp_path / "run.yaml", text="and 480 more").count("not valid YAML") == 0


def test_half_a_surrogate_pair_as_a_key(tmp_path):
    (tmp_path / "run.yaml").write_text('{"tasks": ["iso_date"], "\\uda8e": 1}')
    refused("run", tmp_path / "run.yaml", text="half of a surrogate pair")
    with pytest.raises(InputError):
        load_config(tmp_path / "run.yaml")


def test_a_torn_line_may_only_be_the_last(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"kind": "a"}\n{"to')
    assert len(read_journal(path)) == 1
    path.write_bytes(b'{"kind": "a"}\n{"to\n\n{"kind": "b"}\n')
    with pytest.raises(InputError, match="line 2: not valid JSON"):
        read_journal(path)


# ---- the fuzzer -------------------------------------------------------------------------------------------


def test_a_few_files_thrown_at_every_reader(tmp_path):
    from tests.fuzz.attack import attack
    from tests.fuzz.readers import make_readers

    for name, reader in make_readers(tmp_path / "seed").items():
        found = attack(reader, 20.0, 7, tmp_path, most=20)
        assert found.inputs >= 20 and not found.failures, (name, found.failures)


def test_the_fuzzer_finds_what_it_is_for(tmp_path):
    from tests.fuzz.attack import attack
    from tests.fuzz.readers import Reader, make_readers

    def crash(folder):
        (folder.parent / "escaped").write_text("x")
        raise KeyError("x")

    naive = Reader("naive", make_readers(tmp_path / "seed")["lines"].files, crash)
    assert {key.split()[0] for key in attack(naive, 5.0, 1, tmp_path, most=5).failures} == {"KeyError", "escape"}
