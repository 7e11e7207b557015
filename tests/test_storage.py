"""Where synthetic samples live, and that no real text of a past task stays where none may."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_run import journal, results
from tiny import save_tiny_model, stopped_in

import retain.stages
import retain.synthesis.writer
from retain.config import load_config, make_config
from retain.generation import Generated
from retain.run import run
from retain.store import read_lines, write_lines
from retain.synthesis.prompts import writing_prompt

INSTRUCTIONS = {"color": "Name the color.", "notes": None, "cities": "Say where it is."}
DESCRIPTIONS = {
    "color": "Read a line and say which color it names",
    "notes": "Read a question about a note and answer in a few words",
    "cities": "Read the name of a place and say where it lies",
}
ROWS = 10
MODES = ["stored", "cached", "on-demand"]


def secret(*parts):
    """Four words that stand nowhere else, and that a byte tokenizer spells out."""
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    return " ".join(digest[k : k + 5] for k in range(0, 20, 5))


def row(task, split, k):
    """Inputs with secrets in all tasks; answers with secrets where they are free text."""
    said = secret(task, split, k, "input")
    match task:
        case "color":
            labels = ["red", "blue"]
            return {"instruction": "Name the color.", "input": said, "output": labels[k % 2], "choices": labels}
        case "notes":  # an instruction of its own in each row
            return {"instruction": f"What of {said}?", "input": "", "output": secret(task, split, k, "output")}
        case "cities":
            return {"instruction": "Say where it is.", "input": said, "output": secret(task, split, k, "output")}


def write_secret_tasks(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for task in INSTRUCTIONS:
        for split, count in (("train", ROWS), ("test", 2)):
            lines = [json.dumps(row(task, split, k)) + "\n" for k in range(count)]
            (folder / f"{task}_{split}.jsonl").write_text("".join(lines))
    return [
        {"name": task, "train": f"{task}_train.jsonl", "test": f"{task}_test.jsonl", "description": text}
        for task, text in DESCRIPTIONS.items()
    ]


def secret_values(folder, **changes):
    """A small run over tasks whose every training text is a secret; sections in `changes` are merged."""
    values = {
        "model": str(save_tiny_model(folder / "model")),
        "tasks": write_secret_tasks(folder),
        "strategy": "ssr",
        "training": {"learning_rate": 1.0e-2, "batch_size": 4, "max_length": 128},
        "evaluation": {"batch_size": 4, "max_new_tokens": 2},
        "schedule": {"first_interval": 1},
        "synthesis": {"samples": 4, "max_input_tokens": 8, "max_output_tokens": 4, "max_joint_tokens": 12},
        "filters": {"heuristics": False, "perplexity": None, "consistency": None, "diversity": None},
        "output": "run",
    }
    for key, value in changes.items():
        merge = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if merge else value
    return values


def run_secret(folder, out="run", **changes):
    return run(make_config(secret_values(folder, **changes), "test"), folder, folder / out)


# ---- looking for real text --------------------------------------------------------------------------------


def texts_in(path):
    """All that a file says, unpacked."""
    raw = path.read_bytes()
    if path.suffix in (".gz", ".zst"):
        compression = {".gz": "gzip", ".zst": "zstd"}[path.suffix]
        return pa.input_stream(pa.BufferReader(raw), compression=compression).read().decode()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return json.dumps(table.to_pydict(), ensure_ascii=False, default=str) + str(table.schema.metadata)
    return raw.decode("utf-8", errors="replace")  # JSON, YAML, HTML; of safetensors the header at least


def words_of(text):
    return re.findall(r"\w+", text.replace("\\n", " "))


def runs_of_four(text):
    found = words_of(text)
    return {tuple(found[k : k + 4]) for k in range(len(found) - 3)}


def leaks(out, split="train"):
    """Files of the directory in which a secret word, or four words in a row, of a training text stand."""
    parts = [secret(task, split, k, part) for task in INSTRUCTIONS for k in range(ROWS) for part in ("input", "output")]
    secrets, runs = {word for part in parts for word in part.split()}, {one for p in parts for one in runs_of_four(p)}
    found = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        said = texts_in(path)
        if secrets & set(words_of(said)) or runs & runs_of_four(said):
            found.append(str(path.relative_to(out)))
    return found


def texts_of(task):
    """What a model that memorized the task would say."""
    rows = [row(task, "train", k) for k in range(ROWS)]
    answers = [] if task == "color" else [one["output"] for one in rows]
    return [one["input"] or one["instruction"] for one in rows] + answers


def memorizing(monkeypatch, joint=False):
    """A generator that says training texts of what was learned: every other text is new, the rest is memorized.

    joint: an answer comes with it, memorized in every third.
    """
    learned, counter, train = [], iter(range(10**6)), retain.stages.train_stage

    def remembering(lm, stage, *rest):
        learned.extend(texts_of(stage.task.name))
        return train(lm, stage, *rest)

    def sample(lm, prompts, *arguments, **options):
        found = []
        for k in (next(counter) for _ in prompts):
            text = f"harmless text number {k} here" if k % 2 else learned[k % len(learned)]
            if joint:
                text += f"\nOutput: {'red' if k % 3 else learned[k % len(learned)]}"
            found.append(Generated(lm.tokenizer(text, add_special_tokens=False).input_ids, -1.0, True))
        return found

    monkeypatch.setattr(retain.stages, "train_stage", remembering)
    monkeypatch.setattr(retain.synthesis.writer, "sample", sample)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strategy", ["ssr", "mssr + ssr", "lamol"])
def test_no_real_text_stays_even_of_a_model_that_says_it(strategy, mode, tmp_path, monkeypatch):
    memorizing(monkeypatch, joint=strategy == "lamol")
    out = run_secret(tmp_path, strategy=strategy, storage={"mode": mode, "cache_size": 5})
    assert results(out)["finished"]
    assert leaks(out) == []
    predicted = [f"stages/{name}/predictions.jsonl" for name in ("00-base", "01-color", "02-notes", "03-cities")]
    assert set(leaks(out, "test")) <= set(predicted), "test items stand in predictions alone"
    written = journal(out, "synthesis")
    if mode != "on-demand":
        assert any(line["dropped"].get("memorization") for line in written), "the copies were seen"
        kept = [line for path in out.rglob("synthetic.jsonl*") for line in read_lines(path)]
        assert mode == "cached" or any("harmless" in one["input"] for one in kept), "and what is new was kept"


def test_the_search_finds_what_is_there(tmp_path):
    """Stored replay and hybrid keep real samples, and the report of the latter shows some: the search finds them."""
    assert "buffer/samples.parquet" in leaks(run_secret(tmp_path, "stored", strategy="mssr"))
    hybrid = run_secret(tmp_path, "hybrid", storage={"mode": "hybrid", "real_samples": 4})
    stages = [f"stages/{name}/buffer/samples.parquet" for name in ("01-color", "02-notes")]
    assert leaks(hybrid) == ["buffer/samples.parquet", "report.html", *stages]
    for compression, name in (("gzip", "x.gz"), ("zstd", "x.zst")):
        folder = tmp_path / compression
        folder.mkdir()
        path = write_lines(folder / "x", [{"text": secret("color", "train", 3, "input")}], compression)
        assert path.name == name and leaks(folder) == [name]


def test_demonstrations_and_predictions_are_the_exceptions_and_can_be_turned_off(tmp_path):
    shown = {"method": "in-context", "demonstrations": 1}
    out = run_secret(tmp_path, synthesis=shown, evaluation={"save_predictions": False})
    assert {name.rpartition("/")[2] for name in leaks(out)} == {"demonstrations.jsonl", "report.html"}
    assert leaks(out, "test") == []


def test_demonstrations_drawn_from_the_training_data_leave_nothing(tmp_path, monkeypatch):
    prompts, real = [], retain.synthesis.writer.prompts

    def watched(*arguments):
        prompts.extend(found := real(*arguments))
        return found

    monkeypatch.setattr(retain.synthesis.writer, "prompts", watched)
    shown = {"method": "in-context", "demonstrations": 2, "demonstrations_from": "training"}
    out = run_secret(tmp_path, synthesis=shown, keep_data=False)
    assert leaks(out) == [] and not list(out.rglob("demonstrations*"))
    seen = {secret("notes", "train", k, "output") for k in range(ROWS)}
    assert any(one in prompt for one in seen for prompt in prompts), "they were shown"


# ---- the modes --------------------------------------------------------------------------------------------


def buffered(out):
    return pq.read_table(out / "buffer" / "samples.parquet").to_pylist()


def synthetic_files(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("synthetic.jsonl*"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run in each mode."""
    folder = tmp_path_factory.mktemp("modes")
    modes = {
        "stored": {"mode": "stored", "compression": "zstd"},
        "cached": {"mode": "cached", "cache_size": 5},
        "on-demand": {"mode": "on-demand"},
        "hybrid": {"mode": "hybrid", "real_samples": 5, "refresh_every": 2},
    }
    return folder, modes, {name: run_secret(folder, name, storage=storage) for name, storage in modes.items()}


@pytest.mark.parametrize("mode", MODES)
def test_nothing_real_stays(mode, runs):
    assert leaks(runs[2][mode]) == []


def test_stored_keeps_all_in_compressed_files(runs):
    out = runs[2]["stored"]
    assert synthetic_files(out) == [
        f"stages/{name}/synthetic.jsonl.zst" for name in ("01-color", "02-notes", "03-cities")
    ]
    kept = [line for name in synthetic_files(out) for line in read_lines(out / name)]
    assert {line["id"] for line in kept} == {sample["id"] for sample in buffered(out)}
    assert len(kept) == 12 and all(line["when"] == "end" for line in journal(out, "synthesis"))
    gzipped = run_secret(runs[0], "gzip", storage={"mode": "stored"})
    assert synthetic_files(gzipped) == [name.replace(".zst", ".gz") for name in synthetic_files(out)]
    assert [sample["prompt"] for sample in buffered(gzipped)] == [sample["prompt"] for sample in buffered(out)]


def test_cached_keeps_at_most_its_size_and_writes_the_rest_again(runs):
    out = runs[2]["cached"]
    assert synthetic_files(out) == [] and len(buffered(out)) == 5
    assert {sample["task"] for sample in buffered(out)} == set(INSTRUCTIONS)
    again = [
        (line["stage"], line["task"], line["asked"]) for line in journal(out, "synthesis") if line["when"] == "start"
    ]
    assert again == [(3, "color", 1), (3, "notes", 2)], "the first stage's four fit; two stages share five places"
    learned = {"color": 1, "notes": 2, "cities": 3}
    for sample in buffered(out):
        assert sample["id"].startswith(f"{sample['task']}/synthetic/{learned[sample['task']]}/"), "checked for copies"


def test_on_demand_leaves_no_synthetic_text_behind(runs):
    out = runs[2]["on-demand"]
    assert synthetic_files(out) == [] and buffered(out) == []
    asked = [(line["stage"], line["task"], line["when"]) for line in journal(out, "synthesis")]
    assert asked == [(2, "color", "start"), (3, "color", "start"), (3, "notes", "start")]
    assert [sum(line["replayed"] for line in journal(out, "step") if line["stage"] == k) > 0 for k in (1, 2, 3)] == [
        False,
        True,
        True,
    ]


def test_on_demand_leaves_none_in_what_a_method_keeps_either(tmp_path):
    out = run_secret(tmp_path, strategy="ssr + der++", storage={"mode": "on-demand"})
    for path in out.rglob("strategy.safetensors"):
        assert b"der++" not in path.read_bytes(), "the largest logits spell a sample out"


def test_hybrid_keeps_few_real_samples_and_replays_each_once_in_a_refresh(runs):
    folder, modes, found = runs
    out = found["hybrid"]
    real = [sample for sample in buffered(out) if sample["confidence"] is None]
    assert sorted(sample["task"] for sample in real) == ["cities", "color", "color", "notes", "notes"]
    drawn = {stage: [] for stage in (1, 2, 3)}

    class Recorded(retain.stages.CurriculumReplayer):
        def draw(self, step, new=()):
            ids = super().draw(step)
            drawn[self._stage] += ids
            return ids

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retain.stages, "CurriculumReplayer", Recorded)
        run_secret(folder, "again", storage=modes["hybrid"])
    once = {stage: sorted(one for one in ids if "synthetic" not in one) for stage, ids in drawn.items()}
    assert once[1] == once[3] == []
    assert len(once[2]) == len(set(once[2])) == 5 and all(one.startswith("color/") for one in once[2])


def test_every_k_stages_all_tasks_are_written_anew(tmp_path):
    out = run_secret(tmp_path, synthesis={"every": 2}, storage={"mode": "cached", "cache_size": 100})
    written = [(line["stage"], line["task"]) for line in journal(out, "synthesis") if line["when"] == "end"]
    assert written == [(1, "color"), (2, "color"), (2, "notes"), (3, "cities")]
    assert sorted({sample["id"].rsplit("/", 1)[0] for sample in buffered(out)}) == [
        "cities/synthetic/3",
        "color/synthetic/2",
        "notes/synthetic/2",
    ]
    assert leaks(out) == []


def test_what_is_written_anew_is_compared_with_the_training_texts(tmp_path, monkeypatch):
    memorizing(monkeypatch)
    out = run_secret(tmp_path, synthesis={"every": 1, "max_input_tokens": 64, "max_output_tokens": 64})
    again = [line for line in journal(out, "synthesis") if line["stage"] == 3]
    assert len(again) == 3 and all(line["dropped"]["memorization"] for line in again)
    assert leaks(out) == []


def test_nothing_is_written_anew_whose_training_texts_are_gone(tmp_path, monkeypatch, caplog):
    real = retain.stages.SelfSynthesis

    def forgetful(*arguments):
        return real(*arguments[:4])

    monkeypatch.setattr(retain.stages, "SelfSynthesis", forgetful)
    out = run_secret(tmp_path, synthesis={"every": 1})
    assert [(line["stage"], line["task"]) for line in journal(out, "synthesis")] == [
        (1, "color"),
        (2, "notes"),
        (3, "cities"),
    ]
    assert "copies could not be told" in caplog.text
    assert len(buffered(out)) == 12, "the old ones stay"


@pytest.mark.parametrize("mode", [*MODES, "hybrid"])
def test_a_resumed_run_ends_like_one_that_was_not_stopped(mode, runs, monkeypatch):
    folder, modes, found = runs
    with stopped_in(3, monkeypatch):
        run_secret(folder, f"{mode}-resumed", storage=modes[mode])
    out = run_secret(folder, f"{mode}-resumed", storage=modes[mode])
    # Scores of written samples differ in the last bits with several threads, and so do the weights that train on them.
    for kind, matrix in results(found[mode])["matrices"].items():
        same = np.array(matrix, dtype=float)
        np.testing.assert_allclose(np.array(results(out)["matrices"][kind], dtype=float), same, rtol=1e-4, atol=1e-4)
    assert [sample["prompt"] for sample in buffered(out)] == [sample["prompt"] for sample in buffered(found[mode])]


# ---- parts ------------------------------------------------------------------------------------------------


def test_lines_keep_texts_that_look_like_several_lines(tmp_path):
    texts = ["a\u2028b", "c\x85d\x1ce", "f\r\ng\n", "", "\x0b\x0c", "<script>", "\ud800"]
    path = write_lines(tmp_path / "x.jsonl", [{"text": text} for text in texts], "gzip")
    assert [line["text"] for line in read_lines(path)] == texts


def test_the_only_row_of_a_task_has_no_frame(tmp_path):
    from retain.tasks.formats import FORMATS, frame_of

    one = {"instruction": "Call 555-0199 and ask for Ann", "input": "x", "output": "y"}
    chat = {"messages": [{"role": "system", "content": "Ann's diary"}, {"role": "user", "content": "u"},
                         {"role": "assistant", "content": "a"}]}  # fmt: skip
    for form, only, template in (
        ("alpaca", one, "{instruction}\n{input}"),
        ("alpaca", one, "chat"),
        ("chat", chat, ""),
    ):
        frame = frame_of([only], FORMATS[form], template)
        assert (frame.prefix, frame.suffix, frame.system) == ("", "", "")
        assert frame.chat == (form == "chat" or template == "chat")
        assert frame_of([only, only], FORMATS[form], template) != frame, "what two rows share is the task's"


def test_the_config_of_a_run_reads_back(runs):
    for out in runs[2].values():
        assert load_config(out / "config.yaml").storage.mode in out.name
    assert np.isfinite(results(runs[2]["stored"])["metrics"]["NLL"])
    assert writing_prompt  # the prompt is part of the card, and no real text: see `test_nothing_real_stays`
