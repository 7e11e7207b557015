"""A sample is taken out of everything a run keeps beside its weights; what is left is told."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from test_run import journal, results
from tiny import save_tiny_model, tiny_llama
from typer.testing import CliRunner

from retain.cli import app
from retain.config import make_config
from retain.erasure import erase, find
from retain.run import run
from retain.rundir import RunDir
from retain.searching import Sought, fold
from retain.types import InputError

SECRET = 'Jane "JJ" Döe <jane.doe@example.com>'
WHO = "color/3"


def write_people(folder, rows=12):
    """Two tasks; the fourth row of the first holds the secret."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = []
    for name, labels in (("color", ["red", "blue"]), ("size", ["big", "small"]), ("shape", ["round", "flat"])):
        for split, count in (("train", rows), ("test", 4)):
            lines = []
            for k in range(count):
                said = SECRET if (name, split, k) == ("color", "train", 3) else f"{name} {split} item {k}"
                lines.append({"instruction": f"Name the {name}.", "input": said, "output": labels[k % 2]})
            (folder / f"{name}_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        spec = {"name": name, "train": f"{name}_train.jsonl", "test": f"{name}_test.jsonl"}
        specs.append(spec | {"description": f"Read a line and name its {name} in a word"})
    return specs


def wide_llama():
    model = tiny_llama()
    model.config.max_position_embeddings = 1024  # prompts with demonstrations are long in bytes
    return model


def people_run(folder, tasks=2, **changes):
    values = {
        "model": str(save_tiny_model(folder / "model", wide_llama())),
        "tasks": write_people(folder)[:tasks],
        "training": {"batch_size": 4, "max_length": 512, "learning_rate": 0.01},
        "schedule": {"first_interval": 1},
        "output": "run",
    }
    return run(make_config(values | changes, "test"), folder)


WRITING = {
    "strategy": "ssr",
    "schedule": {},
    "synthesis": {
        "samples": 6, "method": "in-context", "demonstrations": 8, "max_input_tokens": 10, "max_output_tokens": 6,
        "max_attempts": 2,
    },
    "filters": {"heuristics": False, "perplexity": None, "consistency": None, "diversity": None, "memorization": None},
    "curriculum": {"kind": "constant", "initial": 0.3},
}  # fmt: skip


def holders(folder, text=SECRET):
    """An independent search: the files that hold a text in any of the spellings that files of a run use."""
    spellings = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], html.escape(text)}
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        elif path.suffix == ".zst":
            content = pa.input_stream(str(path), compression="zstd").read()
        elif path.suffix == ".parquet":
            content = str(pq.read_table(path).to_pylist()).encode() + content
        if any(one.encode() in content for one in spellings):
            found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def command(out, *arguments, **kinds):
    return CliRunner().invoke(app, ["erase", str(out), *arguments], **kinds)


# ---- from a run with stored samples -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    return people_run(folder, tasks=3, strategy="mssr + der++")


@pytest.fixture
def out(stored, tmp_path):
    """A copy of the run, with an unfinished stage and a page that shows the secret."""
    shutil.copytree(stored.parent, tmp_path / "all")
    out = tmp_path / "all" / "run"
    scratch = out / "stages" / ".04-more" / "checkpoints" / "00000003"
    scratch.mkdir(parents=True)
    (scratch / "state.json").write_text(json.dumps({"texts": [SECRET]}))
    (out / "report.html").write_text(f"<p>{html.escape(SECRET)}</p>")
    (out / "buffer" / "samples.parquet.tmp").write_text(SECRET)
    return out


@pytest.mark.parametrize("how", [("--record", WHO), ("--match", "jane.doe@EXAMPLE.com"), ("--match", 'Jane "JJ" Döe')])
def test_it_is_gone_from_every_file(how, out):
    before = holders(out)
    assert {"buffer/samples.parquet", "stages/01-color/buffer/samples.parquet", "report.html"} <= set(before)
    tensors = load_file(out / "stages" / "02-size" / "strategy.safetensors")
    done = command(out, *how, "--yes")
    assert done.exit_code == 0, done.output
    assert holders(out) == []
    assert re.search(r"searched \d+ files afterwards: 0 hold the text", done.output)
    assert "The weights of stages 1 to 3 were trained with it and are not unlearned" in done.output
    assert f"--to 0 --delete && retain run {out}/config.yaml --out {out} --accept-changed-data" in done.output
    assert "color_train.jsonl (color): row 4" in done.output
    left = load_file(out / "stages" / "02-size" / "strategy.safetensors")
    assert len(left["der++/hashes"]) == len(tensors["der++/hashes"]) - 1
    assert left["der++/counts"].sum() == len(left["der++/values"]) == len(left["der++/tokens"])
    assert not list((out / "stages").glob(".*")) and (out / "report.html").is_file()


def test_the_others_stay_with_their_memory_and_the_run_goes_on(out):
    before = pq.read_table(out / "buffer" / "samples.parquet").to_pylist()
    erase(find(out, record=WHO))
    after = pq.read_table(out / "buffer" / "samples.parquet").to_pylist()
    assert after == [row for row in before if row["id"] != WHO]
    from retain.buffer import Buffer
    from retain.config import load_config

    config = load_config(out / "config.yaml", need_tasks=False)
    buffer = Buffer.load(out / "buffer", config.buffer, config.memory, config.seed)
    assert sorted(buffer.memory.ids) == sorted(row["id"] for row in after)


def test_the_command_that_is_named_trains_again_without_it(out):
    data = out.parent / "color_train.jsonl"
    command(out, "--record", WHO, "--yes")
    data.write_text("".join(line for line in data.read_text().splitlines(keepends=True) if "jane" not in line))
    assert CliRunner().invoke(app, ["rollback", str(out), "--to", "0", "--delete"]).exit_code == 0
    done = CliRunner().invoke(app, ["run", str(out / "config.yaml"), "--out", str(out), "--accept-changed-data"])
    assert done.exit_code == 0, done.output
    assert results(out)["finished"] and holders(out) == []


def test_the_journal_has_the_act_without_the_text(out):
    assert command(out, "--match", SECRET, "--yes").exit_code == 0
    line = journal(out, "erase")[-1]
    assert line["sha256"] == hashlib.sha256(SECRET.encode()).hexdigest()
    assert (line["ids"], line["stages"], line["left"]) == ([WHO], [1, 3], 0)
    assert line["removed"]["buffered samples"] == 3 and line["removed"]["unfinished stages"] == 1


def test_what_was_rolled_back_is_searched_too(out):
    CliRunner().invoke(app, ["rollback", str(out), "--to", "1"])
    assert any(name.startswith("rolled-back") for name in holders(out))
    assert command(out, "--record", WHO, "--yes").exit_code == 0
    assert holders(out) == []


def test_a_dry_run_changes_nothing_and_no_is_no(out):
    def files():  # but for who works there
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".holder.json"}

    before = files()
    dry = command(out, "--record", WHO, "--dry-run")
    assert dry.exit_code == 0 and "3  buffered samples" in dry.output and "not unlearned" in dry.output
    assert command(out, "--record", WHO, input="n\n").exit_code == 1
    assert command(out, "--record", WHO, input="").exit_code == 1
    assert files() == before
    assert command(out, "--record", WHO, input="y\n").exit_code == 0
    assert holders(out) == []
    again = command(out, "--record", WHO, "--yes")
    assert again.exit_code == 0 and "nothing of them lies in this directory" in again.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "give either --record"),
        (("--record", WHO, "--match", "x"), "give either --record"),
        (("--match", ""), "--match: empty"),
        (("--match", " \n\t"), "--match: empty"),
        (("--record", ""), "--record: empty"),
        (("--record", "color/33"), "'color/33' is no sample of"),
        (("--record", "../../etc/passwd"), "is no sample of"),
    ],
)
def test_wrong_input(arguments, message, out):
    done = command(out, *arguments, "--yes")
    assert done.exit_code == 2 and message in done.output, done.output
    assert "buffer/samples.parquet" in holders(out)


def test_a_text_is_literal(out):
    for text in (".*", "ja[n]e", "jane.doe.example.com", "(jane|doe)", "^jane", "\\w+"):
        done = command(out, "--match", text, "--yes")
        assert done.exit_code == 0 and "0 samples" in done.output, text
    assert "buffer/samples.parquet" in holders(out)


def test_a_setting_that_holds_the_text_is_left_and_said(out):
    done = command(out, "--match", "Read a line and name its size", "--yes")
    assert done.exit_code == 1 and "config.yaml" in done.output


def test_a_test_item_was_in_no_weights(out):
    done = command(out, "--match", "color test item 2", "--yes")
    assert done.exit_code == 0 and "No finished stage was trained with it" in done.output
    ids = [line["id"] for line in map(json.loads, (out / "stages/03-shape/predictions.jsonl").read_text().splitlines())]
    assert "color/test/2" not in ids and "color/test/1" in ids


def test_a_short_record_leaves_those_that_begin_like_it(out):
    """`color train item 1` is no part of `color train item 10` here: a short record is a whole text."""
    done = command(out, "--record", "color/1", "--yes")
    assert done.exit_code == 0, done.output
    ids = pq.read_table(out / "buffer" / "samples.parquet")["id"].to_pylist()
    assert "color/1" not in ids and {"color/10", "color/11"} <= set(ids)


# ---- from a run that writes -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gzip", "zstd"])
def writing(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    return people_run(folder, **WRITING, storage={"compression": request.param})


def test_what_was_written_after_or_like_it_goes(writing, tmp_path):
    shutil.copytree(writing.parent, tmp_path / "all")
    out = tmp_path / "all" / "run"
    shown = [json.loads(line) for line in (out / "stages/02-size/demonstrations.jsonl").read_text().splitlines()]
    was_shown = any(row["input"] == SECRET for row in shown)
    file = next((out / "stages" / "02-size").glob("synthetic.jsonl*"))
    found = find(out, record=WHO)
    buffered = pq.read_table(out / "buffer" / "samples.parquet").to_pylist()
    assert found.derived == ({row["id"] for row in buffered if row["task"] == "color"} if was_shown else set())
    erase(found)
    assert holders(out) == [] and found.left == []
    assert pa.input_stream(str(file), compression="zstd" if file.suffix == ".zst" else "gzip").read()
    tasks = {row["task"] for row in pq.read_table(out / "buffer" / "samples.parquet").to_pylist()}
    assert tasks == ({"size"} if was_shown else {"color", "size"})
    assert not any(
        row["input"] == SECRET for row in map(json.loads, (out / "stages/02-size/demonstrations.jsonl").open())
    )


def test_near_copies_go_and_others_stay(writing, tmp_path):
    from retain.store import write_lines

    shutil.copytree(writing.parent, tmp_path / "all")
    out = tmp_path / "all" / "run"
    long = "on the third of march the old lighthouse keeper wrote to his sister about the storm"
    data = out.parent / "size_train.jsonl"
    lines = data.read_text().splitlines()
    lines[5] = json.dumps({"instruction": "Name the size.", "input": long, "output": "small"})
    data.write_text("\n".join(lines) + "\n")
    rows = [
        {"id": f"color/synthetic/1/{k}", "task": "color", "input": text, "answer": "red"}
        for k, text in enumerate(
            [long.replace("old", "aged"), "a storm in march", "the lighthouse keeper and his sister"]
        )
    ]
    for old in (out / "stages" / "01-color").glob("synthetic*"):
        old.unlink()
    write_lines(out / "stages" / "01-color" / "synthetic.jsonl", rows, "gzip")
    for shown in out.glob("stages/*/demonstrations.jsonl"):
        shown.unlink()
    found = find(out, record="size/5")
    assert found.derived & {row["id"] for row in rows} == {"color/synthetic/1/0"}
    erase(found)
    kept = gzip.decompress((out / "stages/01-color/synthetic.jsonl.gz").read_bytes()).decode()
    assert "aged" not in kept and "a storm in march" in kept


# ---- the search itself ------------------------------------------------------------------------------------


def test_the_search_reads_every_kind_of_file(tmp_path):
    text = "Straße 12, «Zürich» & <b>"
    (tmp_path / "a.json").write_text(json.dumps({"x": [{"y": text}]}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prediction": f"so {text}!"}) + "\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"input": text}).encode()))
    (tmp_path / "d.html").write_text(f"<td>{html.escape(text)}</td>")
    (tmp_path / "e.yaml").write_text(f"x: |\n  {text}\n")
    pq.write_table(pa.table({"m": [[["user", text]]]}), tmp_path / "f.parquet")
    (tmp_path / "g.safetensors").write_bytes(b"\0\1" + text.encode() + b"\0")
    (tmp_path / "h").write_text(text)
    (tmp_path / "broken.json").write_text('{"x": "' + text)
    files = sorted(tmp_path.iterdir())
    sought = Sought.of([text])
    assert [path.name for path in files if not sought.is_in_file(path)] == []
    assert Sought.of([text.upper()]).is_in_file(tmp_path / "b.jsonl")
    assert not any(Sought.of(["Straße 13"]).is_in_file(path) for path in files)


def test_identifiers_are_no_texts():
    assert not Sought.of(["color"]).is_in_value({"task": "color", "id": "color/1", "answer": "red"})
    assert Sought.of(["color"]).is_in_value({"task": "color", "answer": "a color"})
    assert Sought.of(whole=["red"]).is_in_value(["Red "]) and not Sought.of(whole=["red"]).is_in_value(["reddish"])
    phrase = Sought.of(phrases=["the item 1"])
    assert phrase.is_in("So, the ITEM 1!") and not phrase.is_in("the item 10") and not phrase.is_in("bathe item 1")
    assert fold(" \u00c4 ﬁ\n B") == "ä fi b"


def test_a_run_in_use_is_left_alone(out):
    run_dir = RunDir(out)
    run_dir.lock()
    import subprocess
    import sys

    program = f"from retain.erasure import find; import pathlib; find(pathlib.Path({str(out)!r}), record={WHO!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert "in use by another process" in done.stderr


def test_neither_and_both_in_python(out):
    with pytest.raises(InputError, match="give either"):
        find(out)
