"""The shape of the package: who may import whom, and the house rules that a machine can check."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "retain"

# A package stands for its submodules. `retain` itself only names `Learner` lazily.
LAYERS = {
    "types": 0,
    "reading": 0,
    "cache": 0,
    "config": 0,
    "sections": 0,
    "synthesis_sections": 0,
    "config_errors": 0,
    "config_yaml": 0,
    "presets": 0,
    "extending": 0,
    "strategy_options": 0,
    "privacy": 0,
    "memory": 0,
    "schedules": 0,
    "matrix": 0,
    "metrics": 0,
    "quality": 0,
    "curriculum": 0,
    "costs": 0,
    "calibration": 0,
    "intervals": 0,
    "interrupts": 0,
    "launcher": 0,
    "buffer": 1,
    "plans": 1,
    "files": 0,
    "triggers": 1,
    "store": 1,
    "comparison": 1,
    "cells": 1,
    "sharing": 1,
    "rehearsal": 1,
    "cards": 1,
    "choosing": 1,
    "replayer": 1,
    "scheduler": 1,
    "tasks": 1,
    "report": 1,
    "rundir": 1,
    "sealed": 1,
    "data_record": 1,
    "holder": 1,
    "reviews": 1,
    "conflicts": 1,
    "gate": 1,
    "bundle": 1,
    "modelcard": 1,
    "rollback": 1,
    "searching": 1,
    "trace": 1,
    "history": 1,
    "assessment": 1,
    "attention": 2,
    "architecture": 2,
    "linear": 2,
    "embedded": 2,
    "adapters": 2,
    "chat": 2,
    "weights": 2,
    "faults": 2,
    "team": 2,
    "model": 2,
    "batching": 2,
    "encoder_decoder": 2,
    "losses": 2,
    "layouts": 2,
    "device": 2,
    "sharding": 2,
    "sampling": 2,
    "likelihood": 2,
    "generation": 2,
    "vllm_engine": 2,
    "synthesis": 2,
    "slots": 2,
    "dp_sgd": 2,
    "checkpoint": 2,
    "strategies": 3,
    "trainer": 4,
    "selfsynthesis": 4,
    "evaluate": 4,
    "harness": 2,
    "checks": 5,
    "relocation": 5,
    "following": 5,
    "learner": 5,
    "intake": 5,
    "progress": 5,
    "stages": 5,
    "tracking": 5,
    "run": 5,
    "ssr": 5,
    "compare": 5,
    "publishing": 5,
    "adding": 5,
    "exporting": 5,
    "calibrate": 5,
    "doctor": 5,
    "erasure": 5,
    "estimates": 5,
    "quickstart": 5,
    "synthesize": 5,
    "cli": 6,
    "cli_care": 6,
    "cli_adapters": 6,
    "cli_add": 6,
    "cli_plan": 6,
    "cli_compare": 6,
    "cli_guard": 6,
    "cli_options": 6,
    "cli_review": 6,
    "cli_views": 6,
    "__main__": 6,
    "integrations": 6,
}
TORCH_STARTS_AT = 2
FILES = {str(path.relative_to(SOURCE).with_suffix("")).replace("/", "."): path for path in SOURCE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items() if name != "__init__"}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def part_of(module: str) -> str:
    """`memory` for `memory.state`."""
    return module.partition(".")[0]


def imported(tree: ast.AST) -> set[str]:
    """The modules of the package a tree imports, at any depth, without the leading `retain.`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import out from `retain`"
            if node.module == "retain":
                names |= {f"retain.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    inside = {name.removeprefix("retain.") for name in names if name.startswith("retain.")}
    return {name for name in inside if not name.startswith("__version__")}


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_its_own_layer_or_a_lower_one(module):
    assert part_of(module) in LAYERS, f"{module} is not in the table of layers"
    layer = LAYERS[part_of(module)]
    upward = {name for name in imported(TREES[module]) if LAYERS.get(part_of(name), 99) > layer}
    assert not upward, f"{module} (layer {layer}) imports {sorted(upward)}"


def test_imports_are_seen_wherever_they_stand():
    tree = ast.parse("import os\ndef f():\n    from retain.run import Learner\n    from retain import presets\n")
    assert imported(tree) == {"run", "presets"}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if part_of(name) in ("trainer", "evaluate")))
def test_the_loop_knows_no_strategy_and_no_report(module):
    known = {name for name in imported(TREES[module]) if part_of(name) in ("strategies", "report")}
    assert known <= {"strategies.base"}


def test_layers_0_and_1_come_without_torch():
    light = sorted(name for name in MODULES if LAYERS[part_of(name)] < TORCH_STARTS_AT)
    program = (
        "import importlib, json, sys\n"
        "guilty = {}\n"
        f"for name in {light}:\n"
        "    importlib.import_module('retain.' + name)\n"
        "    heavy = [m for m in ('torch', 'transformers', 'accelerate', 'peft') if m in sys.modules]\n"
        "    if heavy: guilty[name] = heavy; break\n"
        "print(json.dumps(guilty))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_house_rules(module):
    path, tree = MODULES[module], TREES[module]
    broken = []
    length = len(path.read_text().splitlines())
    if length > 400:
        broken.append(f"{length} lines; split the module")
    if not ast.get_docstring(tree) and path.read_text().strip():
        broken.append("no docstring")
    for function in functions(tree):
        lines = function.end_lineno - function.lineno + 1
        if lines > 60:
            broken.append(f"{function.name} has {lines} lines")
    for function in tree.body:
        public = isinstance(function, ast.FunctionDef | ast.ClassDef) and not function.name.startswith("_")
        if public and not ast.get_docstring(function):
            broken.append(f"{function.name} has no docstring")
    for node in ast.walk(tree):
        name = getattr(getattr(node, "func", None), "id", "")
        if name == "print" and not part_of(module).startswith("cli"):
            broken.append(f"print in line {node.lineno}")
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
            if {"pickle", "dill", "joblib"} & set(names):
                broken.append(f"pickle in line {node.lineno}")
    assert not broken, f"{module}: " + "; ".join(broken)
