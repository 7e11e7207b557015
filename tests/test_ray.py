"""The adapter to Ray, against a stand-in that has the few calls it makes; Ray itself is not installed for tests."""

from __future__ import annotations

import sys
import types

import pytest

from retain.integrations.ray import on_ray
from retain.types import InputError


class FakeRay(types.ModuleType):
    """Runs a task when it is waited for, the last one first."""

    def __init__(self, gpus):
        super().__init__("ray")
        self.gpus, self.options, self.pending = gpus, None, {}

    def init(self, ignore_reinit_error):
        assert ignore_reinit_error

    def cluster_resources(self):
        return {"CPU": 8.0} | ({"GPU": float(self.gpus)} if self.gpus else {})

    def remote(self, **options):
        self.options = options

        def wrap(function):
            def submit(*arguments):
                number = len(self.pending)
                self.pending[number] = (function, arguments)
                return number

            return types.SimpleNamespace(remote=submit)

        return wrap

    def wait(self, references, num_returns):
        return [references[-num_returns]], references[:-num_returns]

    def get(self, reference):
        function, arguments = self.pending[reference]
        return function(*arguments)


@pytest.mark.parametrize(
    ("gpus", "options"),
    [(0, {"num_cpus": 2, "num_gpus": 0, "max_retries": 0}), (4, {"num_cpus": 1, "num_gpus": 1, "max_retries": 0})],
)
def test_cells_are_tasks(tmp_path, monkeypatch, gpus, options):
    fake = FakeRay(gpus)
    monkeypatch.setitem(sys.modules, "ray", fake)
    commands = [
        ("good", [sys.executable, "-c", "print('seen')"]),
        ("bad", [sys.executable, "-c", "raise SystemExit(3)"]),
    ]
    assert list(on_ray(commands, tmp_path / "logs", 2)) == [("bad", 3), ("good", 0)]
    assert fake.options == options
    assert (tmp_path / "logs" / "good.log").read_text().strip() == "seen"


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray is not installed; run `pip install 'retain\[ray\]'`"):
        next(on_ray([], tmp_path, 1))
