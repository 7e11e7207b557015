"""A run on several processes is the run on one: decisions, memory, weights, scores, costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_jobs
from safetensors.torch import load_file
from tiny import terse, tiny_llama, tiny_values, write_tasks

from retain.config import make_config
from retain.memory.state import MemoryState
from retain.sections import MemoryModel
from retain.sharding import check_shardable
from retain.stages import check_agreement, digest
from retain.store import read_lines
from retain.team import Team
from retain.types import InputError

TRAINING = {"learning_rate": 1.0e-2, "batch_size": 5, "max_length": 128, "epochs": 2}
SYNTHESIS = {"samples": 6, "max_input_tokens": 12, "max_output_tokens": 6, "max_attempts": 4}
NO_FILTERS = {"heuristics": False, "perplexity": None, "consistency": None}
SCENARIOS = {
    "mssr": {"strategy": "mssr"},
    "gem": {"strategy": "gem"},
    "ssr": {"strategy": "ssr", "synthesis": SYNTHESIS, "filters": NO_FILTERS},
    "lwf + mir": {"strategy": "lwf + mir"},
    "private": {"strategy": "none", "privacy": {"noise_seed": 3, "dp_sgd": {"noise_multiplier": 0.5, "delta": 0.01}}},
}
RUNS = [("mssr", 2), ("mssr", 3), ("gem", 2), ("ssr", 2), ("lwf + mir", 2), ("private", 2)]
SHARDED = [("mssr", 2), ("gem", 2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directory of each scenario by its name, its number of processes and whether the model was sharded."""
    folder, jobs, found = tmp_path_factory.mktemp("ranks"), [], {}
    for name, changes in SCENARIOS.items():
        (folder / name).mkdir()
        values = tiny_values(folder / name, training=TRAINING, **changes)
        terse(tiny_llama(torch.float64)).save_pretrained(folder / name / "model")
        values["model"] = {"name": values["model"], "dtype": "float64"}
        values["tasks"] = write_tasks(folder / name, train=25, test=5)[:2]
        for task in values["tasks"]:
            task["description"] = "Say which of two words fits the letters of the line that is given."
        kinds = [(1, False), *((size, False) for one, size in RUNS if one == name)]
        for size, sharded in [*kinds, *((size, True) for one, size in SHARDED if one == name)]:
            out = found[name, size, sharded] = folder / name / f"{size}{sharded}"
            jobs.append({"values": values, "folder": folder / name, "out": out, "size": size, "sharded": sharded})
            if (name, size) == ("mssr", 3):
                jobs.insert(-1, jobs[-1] | {"size": 2, "stop": (1, 4)})
    run_jobs(jobs, folder)
    return found


def rows(out: Path) -> list[Path]:
    return sorted((out / "stages").iterdir())[1:]


@pytest.mark.parametrize(
    ("name", "size", "sharded"), [(*run, False) for run in RUNS] + [(*run, True) for run in SHARDED]
)
def test_several_processes_do_what_one_does(runs, name, size, sharded):
    alone, together = runs[name, 1, False], runs[name, size, sharded]
    steps = [line for line in read_lines(alone / "journal.jsonl") if line["kind"] == "step"]
    assert len(steps) == 20
    for one, other in zip(rows(alone), rows(together), strict=True):
        a, b = (load_file(row / "adapter" / "adapter_model.safetensors") for row in (one, other))
        assert all(tensor.dtype == torch.float64 for tensor in a.values())
        assert max((a[key] - b[key]).abs().max() for key in a) < 1e-6
    assert reviews(alone) == reviews(together)
    assert [kept(row) for row in rows(alone)] == [kept(row) for row in rows(together)]
    one, other = (json.loads((out / "results.json").read_text()) for out in (alone, together))
    assert one["matrix"] == other["matrix"]
    counted = [key for key in one["costs"] if "seconds" not in key and "memory" not in key]
    assert {key: one["costs"][key] for key in counted} == {key: other["costs"][key] for key in counted}


def reviews(out: Path) -> list:
    """Which samples were replayed at which step, a review each, and the events that drew them."""
    log = out / "memory_reviews.parquet"
    found = pq.read_table(log).to_pylist() if log.exists() else []
    events = [line for line in read_lines(out / "journal.jsonl") if line["kind"] == "event"]
    return [(one["step"], one["id"]) for one in found] + [line | {"time": ""} for line in events]


def kept(row: Path) -> list[str]:
    """Ids of the samples in the buffer after a stage."""
    folder = row / "buffer" if (row / "buffer").is_dir() else row.parents[1] / "buffer"
    return pq.read_table(folder / "samples.parquet").column("id").to_pylist() if folder.is_dir() else []


def test_a_signal_to_one_stops_all_after_the_same_step(runs):
    resumed = [line for line in read_lines(runs["mssr", 3, False] / "journal.jsonl") if line["kind"] == "resume"]
    assert [line.get("after_step") for line in resumed if "into" in line] == [4]


def test_only_number_0_writes_and_says_so(runs):
    out = runs["mssr", 2, False]
    start = next(line for line in read_lines(out / "journal.jsonl") if line["kind"] == "start")
    assert start["processes"] == 2
    assert [path.name for path in out.parent.iterdir() if path.name.startswith("retain-")] == []


def test_a_launcher_starts_the_command_line(tmp_path):
    values = tiny_values(tmp_path, training=TRAINING)
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "--main_process_port", "0", "-m", "retain", "run", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ACC") == 1 and "process" not in done.stderr.split("untouched model")[1]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["finished"]


def test_processes_that_decide_differently_are_stopped():
    class Two(Team):
        def gather(self, found):
            return [*found, digest([["a"]], MemoryState(MemoryModel()))]

    check_agreement(Two(0, 2), [["a"]], MemoryState(MemoryModel()))
    with pytest.raises(RuntimeError, match="replayed different samples"):
        check_agreement(Two(0, 2), [["b"]], MemoryState(MemoryModel()))


def test_shares_are_put_together_in_order():
    items = list(range(8))
    shares = [Team(rank, 3).share(items) for rank in range(3)]
    assert sorted(one for share in shares for one in share) == items and shares[1] == [1, 4, 7]
    assert Team().share(items) == items and Team().gather(items) == items and not Team().any(False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"strategy": "lwf"}, "lwf"),
        ({"strategy": "ssr"}, "synthesis"),
        ({"strategy": "none", "privacy": {"dp_sgd": {"noise_multiplier": 1.0, "delta": 0.01}}}, "dp_sgd"),
    ],
)
def test_what_would_wait_for_ever_under_sharding_is_refused(changes, named):
    config = make_config(changes, "test", need_tasks=False)
    with pytest.raises(InputError, match=rf"{named} .*sharded by FSDP"):
        check_shardable(config)
