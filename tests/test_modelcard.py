"""Model cards: what the Hub reads, the scores of the run, a recipe that trains the same again, and nothing private."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny import tiny_values

from retain.config import diff_config, load_config, make_config
from retain.exporting import export
from retain.modelcard import Story, code, model_card, plain, recipe, write_cards
from retain.publishing import copy_adapter, push
from retain.relocation import relocate
from retain.run import run
from retain.rundir import RunDir
from retain.types import InputError

NASTY = "</script> | *x* [a](b)\n# head `code` ``` --- <b>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    values = tiny_values(folder, tracking=None)
    values["tasks"][0]["description"] = NASTY
    values["tasks"].append({"name": "watched", "test": "shape_test.jsonl"})
    run(make_config(values, "test"), folder)
    return folder / "run"


def card_at(run_dir, stage):
    return (sorted((run_dir / "stages").glob("[0-9]*-*"))[stage] / "adapter" / "README.md").read_text()


def table_under(text, heading):
    lines = text.split(f"## {heading}")[1].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_the_front_matter_is_what_the_hub_reads(finished):
    for stage in (1, 2, 3):
        card = ModelCard(card_at(finished, stage))
        assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-generation"
        assert "lora" in card.data.tags and card.data.license is None
        assert card.data.base_model is None and card.data.datasets is None  # both are of this machine


def test_the_matrix_is_that_of_the_run_up_to_the_stage(finished):
    results = json.loads((finished / "results.json").read_text())
    whole = [[*row, other[0]] for row, other in zip(
        results["matrix"], results["evaluation_only"]["matrices"]["generated"], strict=True)]  # fmt: skip
    for stage in (1, 2, 3):
        table = table_under(card_at(finished, stage), "Scores")
        columns = [*range(stage), 3]
        assert table[0][1:] == [f"`{name}`" for name in [*results["tasks"][:stage], "watched"]]
        shown = table[2 : 2 + stage + 1]
        assert [row[0] for row in shown] == ["untouched", *(f"after {name}" for name in results["tasks"][:stage])]
        assert [row[1:] for row in shown] == [[f"{whole[k][c]:.3f}" for c in columns] for k in range(stage + 1)]
        values = {row[0]: row[1] for row in table if len(row) == 2}
        assert values["ACC"] == f"{sum(whole[stage][:stage]) / stage:.3f}"
    assert values["NLL"] == f"{results['metrics']['NLL']:.3f}"
    replayed = results["costs"]["replayed_samples"]
    assert replayed and f"{replayed:,} samples replayed" in card_at(finished, 3)


def test_no_path_of_this_machine_and_no_way_out_of_a_cell(finished):
    for stage in (1, 2, 3):
        text = card_at(finished, stage)
        assert str(finished.parent) not in text and ".." not in text.replace("...", "")
        before = text.split("## Again")[0]
        assert "<b>" not in text.split("## Again")[0] and "</script>" not in before
        assert [line for line in before.splitlines() if line.startswith("#")] == [
            line for line in before.splitlines() if line.startswith(("# model after", "## Scores", "## Replay recipe"))
        ]


def test_the_recipe_is_the_configuration_and_nothing_breaks_its_fence(finished, tmp_path):
    text = card_at(finished, 3)
    opening = text.split("## Again")[1].splitlines()[4]
    assert opening == "````yaml"  # longer than the backticks inside
    body = text.split(opening + "\n")[1].rsplit("````", 1)[0]
    for path in finished.parent.glob("*.jsonl"):
        shutil.copyfile(path, tmp_path / path.name)
    shutil.copytree(finished.parent / "model", tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(body)
    again = relocate(load_config(tmp_path / "recipe.yaml"), tmp_path, tmp_path / "run")
    assert diff_config(again, load_config(finished / "config.yaml")) == []
    short = yaml.safe_load(card_at(finished, 1).split("````yaml\n")[1].rsplit("````", 1)[0])
    assert [task["name"] for task in short["tasks"]] == ["color", "watched"]


def test_hub_names_stand_in_the_front_matter(finished):
    config = load_config(finished / "config.yaml")
    tasks = [spec.model_copy(update={"train": "owner/data/part:train"} if spec.train else {}) for spec in config.tasks]
    model = config.model.model_copy(update={"name": "Qwen/Qwen2.5-7B"})
    config = config.model_copy(update={"model": model, "tasks": tasks})
    rundir = RunDir(finished)
    rows = [rundir.scores(row) for row in rundir.rows()]
    results = json.loads((finished / "results.json").read_text())
    data = ModelCard(model_card(Story(config, results, rows, finished), "transformers", True)).data
    assert data.base_model == "Qwen/Qwen2.5-7B" and data.datasets == ["owner/data"]
    assert data.base_model_relation == "finetune" and data.pipeline_tag == "text2text-generation"
    embedded = config.model_copy(update={"model": model.model_copy(update={"name": "smollm2-135m"})})
    text = model_card(Story(embedded, results, rows, finished))
    assert ModelCard(text).data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and "dequantized" in text


def test_trackers_and_places_are_no_part_of_a_recipe(finished):
    config = make_config(
        {"tasks": [{"name": "a", "train": "/home/ada/a.jsonl", "test": "~/b.jsonl", "valid_until": "b"},
                   {"name": "b", "train": "../c/c.jsonl"}, {"lm_eval": "/home/ada/x.yaml", "name": "x"}],
         "tracking": {"trackers": ["wandb"], "options": {"wandb": {"api_key": "secret"}}},
         "model": "/home/ada/model", "buffer": {"seed": "/home/ada/seed.jsonl"}, "output": "/home/ada/run"}, "test"
    )  # fmt: skip
    told = recipe(Story(config, {}, [{}, {"task": "a"}], finished))
    assert "ada" not in str(told) and "secret" not in str(told) and "~" not in str(told)
    assert told["tasks"] == [
        {"name": "a", "train": "a.jsonl", "test": "b.jsonl"},
        {"name": "x", "lm_eval": "x.yaml"},
    ]
    assert told["model"]["name"] == "model" and told["buffer"]["seed"]["train"] == "seed.jsonl"


@pytest.mark.parametrize("text", [NASTY, "\x00\x1b[31m", "a" * 5000, "| a |\n| b |", "&lt;", "\\`"])
def test_texts_stay_on_one_line_of_their_own(text):
    for shown in (plain(text), code(text)):
        assert "\n" not in shown and len(shown) < 1000 and "<" not in plain(text)
    assert code(text).count("`") == 2 and "|" not in code(text)


def test_cards_are_written_again_where_they_are_gone_and_only_there(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    run_dir, path = RunDir(tmp_path / "run"), tmp_path / "run" / "stages" / "02-size" / "adapter" / "README.md"
    before, other = path.read_text(), tmp_path / "run" / "stages" / "01-color" / "adapter" / "README.md"
    path.unlink()
    known = other.stat().st_mtime_ns
    write_cards(run_dir, load_config(finished / "config.yaml"), json.loads((finished / "results.json").read_text()))
    assert path.read_text() == before and other.stat().st_mtime_ns == known


def test_an_exported_adapter_carries_its_card_and_no_path(finished, tmp_path):
    files = export(finished, "adapter", tmp_path / "out", stage=2)
    assert sorted(path.name for path in files) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert (tmp_path / "out" / "README.md").read_text() == card_at(finished, 2)
    weights = finished / "stages" / "02-size" / "adapter" / "adapter_model.safetensors"
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == weights.read_bytes()
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "model" and settings["r"] == 8
    for arguments, expected in [
        (("adapter", tmp_path / "out"), "not an empty folder"),
        (("adapter", tmp_path / "new", None, 9), "--stage: 9 is not a finished stage"),
        (("jsonl", tmp_path / "new", None, 1), "--stage: names the stage of an exported adapter"),
        (("adapter", tmp_path / "new", tmp_path / "task.yaml"), "--task"),
    ]:
        with pytest.raises(InputError, match=expected):
            export(finished, *arguments)


def test_a_run_of_whole_models_is_refused_politely(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "stages" / "03-shape" / "adapter").rename(tmp_path / "run" / "stages" / "03-shape" / "model")
    with pytest.raises(InputError, match="03-shape: keeps no adapter; a run that trains all weights"):
        copy_adapter(tmp_path / "run", None, tmp_path / "out")


def test_a_push_uploads_the_adapter_with_its_card(finished, monkeypatch):
    """By a fake of huggingface_hub's client: the upload itself is unverified."""
    asked = []

    class Api:
        def create_repo(self, repo, **options):
            asked.append((repo, options))
            if repo == "nobody/nothing":
                raise PermissionError("401\nno token")

        def upload_folder(self, repo_id, folder_path, commit_message):
            asked.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push(finished, "ada/tickets") == "https://huggingface.co/ada/tickets"
    assert asked == [
        ("ada/tickets", {"private": True, "exist_ok": True}),
        ("ada/tickets", ["README.md", "adapter_config.json", "adapter_model.safetensors"]),
    ]
    with pytest.raises(InputError, match=r"'nobody/nothing' cannot be pushed to \(PermissionError: 401 no token\)"):
        push(finished, "nobody/nothing")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("stages/02-size/adapter/adapter_config.json", "[1]"),
        ("stages/02-size/scores.json", '{"scores": {"color": {"generated": "x"}}, "costs": {"replayed_samples": "y"},'
                                       ' "task": "size", "fingerprint": "", "steps": 6}'),
        ("results.json", '{"task_metrics": 3}'),
        ("results.json", "[]"),
    ],
)  # fmt: skip
def test_files_from_elsewhere_are_one_message(finished, tmp_path, name, text):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(InputError):
        copy_adapter(tmp_path / "run", 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()
