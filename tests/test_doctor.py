"""What the doctor says of a machine and a configuration, and that no text of a user is in a bundle."""

import json
import zipfile

import pytest
import yaml
from test_erase import people_run
from typer.testing import CliRunner

from retain.bundle import Scrubber
from retain.cli import app
from retain.config import make_config
from retain.doctor import needs

CANARY = "canary"


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_the_machine(cache):
    done = doctor()
    assert done.exit_code == 0, done.output
    assert all(word in done.output for word in ("retain 0.", "torch 2.", "device", "float32", "GB free", str(cache)))
    found = json.loads(doctor("--json").stdout)
    assert found["versions"]["retain"] and found["free_bytes"] > 0 and found["needs"] == {}


def test_what_would_be_downloaded(tmp_path, cache):
    (tmp_path / "a.jsonl").write_text("{}")
    tasks = [
        {"name": "mine", "train": "a.jsonl", "test": "gone.jsonl"},
        {"name": "hub", "train": "someone/something", "test": "builtin:iso_date"},
    ]
    filters = {"similarity": "sentence-transformers"}
    config = make_config({"tasks": tasks, "model": "nobody/no-such-model", "filters": filters}, "test")
    found = dict(needs(config, tmp_path))
    assert found["model"] == "nobody/no-such-model: would be downloaded from the Hub"
    assert found["mine, test"] == "gone.jsonl: missing" and "mine, train" not in found
    assert found["hub, train"].startswith("someone/something: a data set of the Hub") and "hub, test" not in found
    assert "all-MiniLM-L6-v2: would be downloaded" in found["filters.embedding_model"]
    embedded = dict(needs(make_config({"tasks": tasks}, "test"), tmp_path))["model"]
    assert "converted once" in embedded or "not installed" in embedded
    (cache / "smollm2-135m").mkdir(parents=True)
    assert dict(needs(make_config({"tasks": tasks}, "test"), tmp_path))["model"] == "smollm2-135m: in the cache"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    assert "gone.jsonl: missing" in doctor(tmp_path / "run.yaml").output


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run with canaries wherever a user's text, name or path can stand."""
    folder = tmp_path_factory.mktemp(f"{CANARY}-home")
    out = people_run(folder, template=f"{CANARY}-template {{instruction}} {{input}}\nAnswer:\n")
    text = (out / "config.yaml").read_text()
    config = yaml.safe_load(text)
    for place, task in enumerate(config["tasks"]):
        task |= {"name": f"{CANARY}_task{place}", "description": f"{CANARY} description"}
    config["gate"]["score"] = {f"{CANARY}_task0": 0.5}
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    for old, new in (("color", f"{CANARY}_task0"), ("size", f"{CANARY}_task1")):
        for path in [out / "journal.jsonl", out / "results.json", *out.glob("stages/*/scores.json")]:
            path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))
        for row in out.glob(f"stages/*-{old}"):
            row.rename(row.with_name(row.name.replace(old, new)))
    with open(out / "journal.jsonl", "a") as file:
        lines = [
            {"kind": "synthesis", "task": f"{CANARY}_gone", "account": CANARY, "drift": {"labels": {CANARY: 0.5}}},
            {"kind": f"{CANARY}", "versions": {"x": CANARY}, "time": CANARY, "by_task": {f"{CANARY} x": 3}},
            {"kind": "conflicts", "ids": [[f"{CANARY}/1", f"{CANARY}/2", 1.0]], "stage": 1},
            {"kind": "choice", "why": CANARY, "unsuited": {f"{CANARY}_task1": CANARY}},
            [CANARY, {CANARY: [CANARY]}],
        ]
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.write(f"no JSON {CANARY}\n")
    (out / "reviews.jsonl").write_text(json.dumps({"rater": CANARY}) + "\n")
    (out / f"{CANARY}.txt").write_text(CANARY)
    (out / "stages" / f"09-{CANARY}").mkdir()
    (out / "stages" / f"09-{CANARY}" / "scores.json").write_text("{}")
    return out


def test_a_bundle_has_no_text_of_the_user(planted, tmp_path):
    done = doctor(planted, "--bundle", tmp_path / "bundle.zip")
    assert done.exit_code == 0, done.output
    with zipfile.ZipFile(tmp_path / "bundle.zip") as bundle:
        contents = {name: bundle.read(name).decode() for name in bundle.namelist()}
    assert set(contents) == {"machine.json", "config.yaml", "journal.jsonl", "results.json", "files.txt"}
    for name, text in contents.items():
        assert CANARY not in text and CANARY not in name, name
        assert "jane" not in text.lower() and str(planted.parent) not in text
    assert "task-1" in contents["results.json"] and "02-task-2" in contents["files.txt"]


def test_a_bundle_says_what_happened(planted, tmp_path):
    doctor(planted, "--bundle", tmp_path / "bundle.zip")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as bundle:
        config = yaml.safe_load(bundle.read("config.yaml"))
        journal = [json.loads(line) for line in bundle.read("journal.jsonl").decode().splitlines()]
        results = json.loads(bundle.read("results.json"))
        machine = json.loads(bundle.read("machine.json"))
    assert config["strategy"] == "mssr" and config["schedule"]["kind"] == "expanding"
    assert config["training"]["learning_rate"] == 0.01 and config["gate"]["score"] == {"task-1": 0.5}
    real = json.loads((planted / "results.json").read_text())
    assert results["matrices"] == real["matrices"] and results["versions"] == real["versions"]
    steps = [line for line in journal if isinstance(line, dict) and line["kind"] == "step"]
    assert steps[0]["new_loss"] > 0 and steps[0]["task"] == "task-1" and "T" in steps[0]["time"]
    assert machine["versions"]["torch"]


def test_what_a_run_writes_needs_no_other_key(tmp_path):
    """The lists of known keys and words keep up with what runs write."""
    out = people_run(tmp_path, strategy="mssr + der++", gate={"after_stage": "raise_replay", "nll": 0.0})
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    results = json.loads((out / "results.json").read_text())
    scrub = Scrubber(make_config({"tasks": [{"name": "color", "train": "x"}]}, "test"), lines, results)
    text = json.dumps([scrub(lines), scrub(results)])
    assert "other-" not in text
    assert text.count(" characters>") == 1  # the model's path


def test_wrong_input(planted, tmp_path):
    (tmp_path / "there.zip").write_text("")
    (tmp_path / "run.yaml").write_text("tasks: [iso_date]\n")
    for arguments, message in (
        (("--bundle", tmp_path / "b.zip"), "--bundle: needs the directory of a run"),
        ((tmp_path / "run.yaml", "--bundle", tmp_path / "b.zip"), "--bundle: needs the directory of a run"),
        ((planted, "--bundle", tmp_path / "there.zip"), "is there already"),
        ((planted, "--bundle", tmp_path / "no" / "b.zip"), "cannot be written"),
        ((tmp_path,), "not the directory of a run"),
        ((tmp_path / "none.yaml",), "no such file"),
    ):
        done = doctor(*arguments)
        assert done.exit_code == 2 and message in done.output, done.output
