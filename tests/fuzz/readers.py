"""The readers under attack: a name, a strategy of files, and a function that reads one. A reader may raise an
InputError and nothing else; what it says must be short and printable, and it may not write outside of its folder."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from retain.buffer import MEMORY_FILE, SAMPLES_FILE, Buffer
from retain.cells import read_cell
from retain.config import diff_config, dump_config, load_config, make_config
from retain.history import follow, read_history
from retain.memory.simulate import simulate
from retain.memory.state import MemoryState
from retain.reading import parse_json
from retain.report import write_report
from retain.report.rundata import read_run
from retain.rundir import RunDir
from retain.scheduler import plan_run
from retain.sections import BufferConfig, MemoryModel
from retain.store import read_lines
from retain.tasks import load_task
from retain.trace import REVIEWS, SCHEMA
from retain.types import InputError, Sample
from tests.fuzz.inputs import damaged_bytes, damaged_value, dump_json, numbers, texts


@dataclass(frozen=True)
class Reader:
    """files: {name in the folder: content}; read: given the folder, reads them."""

    name: str
    files: st.SearchStrategy[dict[str, bytes]]
    read: Callable[[Path], Any]


def one(name: str, content: st.SearchStrategy[bytes]) -> st.SearchStrategy[dict[str, bytes]]:
    return content.map(lambda data: {name: data})


# ---- configuration ----------------------------------------------------------------------------------------

TASK = {"name": "a", "train": "a.jsonl", "test": "b.jsonl", "max_train": 3}
FEW = {"tasks": ["iso_date", TASK], "strategy": {"name": "mssr", "ewc": 1}, "model": {"name": "m"}, "seed": 1}
WHOLE = make_config({"tasks": [TASK], "strategy": "ssr + ewc"}, "seed").model_dump()
YAML_BITS = st.lists(
    st.sampled_from(
        ["a: ", "tasks:", "- ", "\n", "  ", "&x ", "*x", "!!python/name:os.system ",
        "!tag ", "{", "}", "[", "]", "<<: ",
         "|\n", ">\n", "? ", "---\n", "...\n", "%YAML 9.9\n", "#", '"', "'",
         "\t", "\0", "\x85", "1e400", "0x1f", "~", ", "]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@st.composite
def bomb(draw: st.DrawFn) -> str:
    """Anchors that unfold, by lists or by merges."""
    width, depth = draw(st.sampled_from([(2, 3), (9, 9), (2, 40)])), draw(st.integers(2, 30))
    lines = ["a0: &a0 {x: 1}" if draw(st.booleans()) else "a0: &a0 [x]"]
    for level in range(1, depth):
        inner = ", ".join([f"*a{level - 1}"] * width[0])
        lines.append(
            f"a{level}: &a{level} [{inner}]" if draw(st.booleans()) else f"a{level}: &a{level} {{<<: [{inner}]}}"
        )
    return "\n".join(lines)


def as_yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", errors="surrogatepass")
    except RecursionError:  # JSON is YAML
        return dump_json(value)


configs = st.one_of(
    damaged_value(FEW).map(dump_json),
    damaged_value(WHOLE).map(dump_json),
    damaged_value(FEW).map(as_yaml),
    damaged_bytes(as_yaml(FEW)),
    YAML_BITS.map(lambda text: text.encode("utf-8", errors="surrogatepass")),
    bomb().map(str.encode),
)


def damaged_json(value: Any) -> st.SearchStrategy[bytes]:
    return st.one_of(damaged_value(value).map(dump_json), damaged_bytes(dump_json(value)))


def read_config(folder: Path) -> None:
    config = load_config(folder / "run.yaml", need_tasks=False)
    (folder / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert not diff_config(load_config(folder / "again.yaml", need_tasks=False), config)
    for task in config.tasks:
        assert task.name == os.path.basename(task.name) and task.name not in ("", ".", "..")


def read_config_and_plan(folder: Path) -> None:
    read_config(folder)
    config = load_config(folder / "run.yaml", need_tasks=False)
    if (config.training.max_steps or 0) < 1000 and config.training.epochs < 100:
        plan_run(config, [(task.name, 50) for task in config.tasks[:3]])


# ---- data -------------------------------------------------------------------------------------------------

ROWS = [
    {"instruction": "Say it.", "input": "one", "output": "yes", "choices": ["yes", "no"], "references": ["yes"]},
    {"instruction": "Say it.", "input": "two", "output": "no", "choices": ["yes", "no"], "answer": "2"},
]
CHAT = [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                      {"role": "assistant", "content": "a"}]}]  # fmt: skip
SHAREGPT = [{"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}]
PAIRS = [{"prompt": "p", "completion": "c"}, {"prompt": "q", "completion": "d"}]
FORMS = (ROWS, CHAT, SHAREGPT, PAIRS)
any_rows = st.sampled_from(FORMS).flatmap(damaged_value)


def as_lines(rows: Any) -> bytes:
    return b"".join(dump_json(row) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


def as_parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


CSV = b'instruction,input,output,choices\n"Say, it",one,yes,"[""yes"", ""no""]"\nSay it,two,no,\n'
odd_tables = st.dictionaries(
    st.sampled_from(["prompt", "completion", "choices", "messages", "output", "answer"]),
    st.sampled_from(
        [pa.array([1, 2]), pa.array(["a", None]), pa.array([["a", "b"], None]), pa.array([b"\xff", b""]), pa.nulls(2),
         pa.array([{"role": "user", "content": "x"}] * 2), pa.array([1.5, float("nan")]),
         pa.array([10**15, 1], pa.timestamp("ns")),
         pa.array(["a", "b"]).dictionary_encode(), pa.array([10**17, 1], pa.timestamp("us")),
         pa.array(["x", "y"], pa.large_string())]
    ),
    min_size=1,
).map(lambda columns: as_parquet(pa.table(columns)))  # fmt: skip
data = st.one_of(
    one("a.jsonl", any_rows.map(as_lines)),
    one("a.jsonl", st.sampled_from(FORMS).map(as_lines).flatmap(damaged_bytes)),
    one("a.json", any_rows.map(dump_json)),
    one("a.json", damaged_bytes(dump_json({"data": ROWS}))),
    one("a.csv", damaged_bytes(CSV)),
    one("a.parquet", damaged_bytes(as_parquet(pa.Table.from_pylist(ROWS)))),
    one("a.parquet", odd_tables),
    st.tuples(any_rows.map(as_lines), damaged_value(["yes", "no"]).map(dump_json)).map(
        lambda pair: {"a.jsonl": pair[0], "labels.json": pair[1]}
    ),
)


def read_data(folder: Path) -> None:
    source = next(name for name in os.listdir(folder) if name.startswith("a."))
    for policy in ("error", "skip"):
        config = make_config({"tasks": [{"name": "t", "train": source, "test": source, "on_invalid": policy}]}, "test")
        try:
            task = load_task(config.tasks[0], config, folder)
        except InputError:
            if policy == "skip":
                raise
            continue
        for sample in task.train:
            texts_of = [sample.id, sample.prompt, sample.answer, *sample.choices, *sample.references]
            "".join([*texts_of, *(part for turn in sample.messages for part in turn)]).encode()
        buffer = Buffer(BufferConfig(), MemoryModel())
        buffer.admit(task.train, 1, {}, 1)
        buffer.save(folder / "buffer")
        assert Buffer.load(folder / "buffer", BufferConfig(), MemoryModel()).samples == buffer.samples


# ---- a run's directory ------------------------------------------------------------------------------------

STEP = {"kind": "step", "time": "2026-03-01T00:00:00+00:00", "stage": 2, "task": "b", "step": 1, "global_step": 11,
        "new_loss": 0.5, "replay_loss": 0.4, "new": 4, "replayed": 2, "tokens": 90, "seconds": 0.1}  # fmt: skip
EVALUATIONS = [
    {"kind": "evaluation", "row": row, "task": task, "generated": 0.5, "likelihood": None, "likelihood_summed": None,
     "nll": 1.5, "metric": "exact_match", "n": 4}
    for row in range(3) for task in ("a", "b")
]  # fmt: skip
JOURNAL = [
    {"kind": "start", "time": "2026-03-01T00:00:00+00:00", "strategy": "mssr", "seed": 1,
    "model": "m", "versions": {"x": "1"}},
    *EVALUATIONS[:2],
    {"kind": "plan", "stage": 2, "task": "b", "steps": 3, "time_unit": 2.0, "buffer": 4,
     "events": [{"step": 1, "ratio": 0.3, "replayed": 2, "projected": True}]},
    {"kind": "stage_start", "stage": 2, "task": "b", "step": 10},
    STEP, {**STEP, "step": 2, "global_step": 12, "skipped": ["b/1"], "new_loss": None},
    {"kind": "event", "stage": 2, "step": 1, "global_step": 11, "ratio": 0.3, "replayed": 2, "by_task": {"a": 2}},
    {"kind": "curriculum", "stage": 2, "step": 1, "ratio": 0.4, "new_loss": 1.0, "old_loss": 0.5},
    {"kind": "synthesis", "stage": 2, "task": "b", "when": "end", "asked": 4, "generated": 8, "kept": 4,
     "dropped": {"heuristics": 2}, "account": "a", "generated_tokens": 80, "seconds": 1.0, "drifted": True,
     "drift": {"perplexity_real": 3.0, "perplexity_synthetic": 9.0, "labels": {"x": 0.5}}},
    *EVALUATIONS[2:],
    {"kind": "end", "seconds": 3.0},
]  # fmt: skip
RESULTS = {
    "tasks": ["a", "b"], "matrix": [[0.1, 0.2], [0.5, 0.2], [0.4, 0.6]], "strategy": "mssr", "joint": False, "seed": 1,
    "matrices": {"generated": [[0.1, 0.2], [0.5, 0.2], [0.4, 0.6]], "nll": [[3.0, 2.0], [1.0, 2.0], [1.1, 1.0]]},
    "metrics": {"ACC": 0.5, "NLL": 1.05}, "metrics_by_matrix": {"generated": {"ACC": 0.5}},
    "task_metrics": {"a": "exact_match"},
    "evaluation_only": {"tasks": ["c"], "matrices": {"generated": [[0.1], [0.2], [0.3]]}, "change": {"c": 0.2}},
    "costs": {"train_tokens": 10, "seconds": 3.0, "peak_memory_bytes": 10}, "versions": {"x": "1"}, "finished": True,
    "truncated": 1, "truncated_test": {"a": 1}, "skipped": {"a": 1}, "skipped_steps": {"b": 1}, "privacy": None,
}  # fmt: skip
RUN_CONFIG = b"tasks: [{name: a, train: a.jsonl, test: a.jsonl}]\nstrategy: mssr\n"


def lived_through() -> pa.Table:
    """The trace of two samples over one stage, as a run records it."""
    memory = MemoryState(make_config({"tasks": [TASK]}, "test").memory, 42)
    memory.set_unit(2.0, 10)
    memory.add(["a/0", "a/1"], 10, [0.5, None])
    rows = [_at(memory, 10)]
    memory.review(["a/0"], [0.4], 11)
    memory.refresh(12)
    return pa.concat_tables([*rows, _at(memory, 12)])


def _at(memory: MemoryState, step: int) -> pa.Table:
    state = memory.snapshot(step)
    columns = {
        "stage": [2, 2], "step": [step, step], "id": state["id"], "task": ["a", "a"],
        "strength": np.exp(state["log_strength"]), "stability": state["stability"],
        "ema_loss": pa.array(state["ema_loss"], from_pandas=True), "hazard": state["hazard"],
    }  # fmt: skip
    return pa.table(columns, schema=SCHEMA)


TRACE = lived_through()
journals = st.one_of(damaged_value(JOURNAL).map(as_lines), damaged_bytes(as_lines(JOURNAL)))


def run_files(**damaged: st.SearchStrategy[bytes]) -> st.SearchStrategy[dict[str, bytes]]:
    names = {
        "journal": "journal.jsonl",
        "results": "results.json",
        "config": "config.yaml",
        "trace": "memory_trace.parquet",
    }
    whole = {"journal": as_lines(JOURNAL), "config": RUN_CONFIG, "trace": as_parquet(TRACE)}
    parts = {key: damaged.get(key, st.just(content)) for key, content in {**whole, **damaged}.items()}
    return st.fixed_dictionaries({names.get(key, key): part for key, part in parts.items() if part is not None})


def read_journal_and_report(folder: Path) -> None:
    run = read_run(folder)
    page = write_report(folder).read_text(encoding="utf-8")
    assert run.refreshes is not None and page.count("<script>") == 1 and "<img" not in page and "\0" not in page


LOG = pa.table({"stage": [2], "step": [11], "id": ["a/0"], "task": ["a"], "loss": [0.4]}, schema=REVIEWS)


@st.composite
def odd_table(draw: st.DrawFn, whole: pa.Table) -> bytes:
    """A table with a column of odd values, another type, or missing; rows repeated or gone."""
    name = draw(st.sampled_from(whole.column_names))
    place, column = whole.column_names.index(name), whole[name]
    act = draw(st.integers(0, 4))
    if act == 0:
        whole = whole.drop_columns([name])
    elif act == 1:
        whole = whole.set_column(place, name, pa.array([draw(texts).encode(errors="replace").decode() for _ in column]))
    elif act == 2:
        rows = draw(st.lists(st.integers(0, len(whole) - 1), max_size=6))
        whole = whole.take(pa.array(rows, pa.int64()))
    elif act == 3:
        whole = whole.set_column(place, name, pa.nulls(len(whole), column.type))
    else:
        kind, cells = column.type, column.to_pylist()
        for row in range(len(cells)):
            if draw(st.booleans()):
                cells[row] = draw(numbers if pa.types.is_floating(kind) else st.integers(-3, 2**31 - 1))
        cells = [str(cell) for cell in cells] if pa.types.is_string(kind) else cells
        cells = [
            cell
            if cell is None
            else float(max(min(cell, 1e308), -1e308))
            if isinstance(cell, int) and pa.types.is_floating(kind)
            else cell
            for cell in cells
        ]
        whole = whole.set_column(place, whole.schema.field(place), pa.array(cells, kind))
    return as_parquet(whole)


traces = st.one_of(damaged_bytes(as_parquet(TRACE)), odd_table(TRACE))
logs = st.one_of(st.just(as_parquet(LOG)), damaged_bytes(as_parquet(LOG)), odd_table(LOG))


@st.composite
def trace_files(draw: st.DrawFn) -> dict[str, bytes]:
    """A finished run whose trace, log of reviews or plan is damaged."""
    files = {"config.yaml": RUN_CONFIG, "results.json": dump_json(RESULTS), "journal.jsonl": as_lines(JOURNAL)}
    if draw(st.integers(0, 9)) == 0:
        files["journal.jsonl"] = draw(journals)
    return files | {"memory_trace.parquet": draw(traces), "memory_reviews.parquet": draw(logs)}


def read_trace(folder: Path) -> None:
    problems = []
    for read in (lambda: follow(read_history(folder)), lambda: read_run(folder).refreshes):
        try:
            read()
        except InputError as error:
            problems.append(error)
    if problems:
        raise problems[0]


SIMULATION = {
    "config": {"time_unit": 2.0, "alpha": 0.01, "phi": "sigmoid"},
    "ops": [{"op": "add", "ids": ["a", "b"], "step": 1, "losses": [1.0, None]},
    {"op": "observe", "ids": ["a"], "losses": [0.5]},
            {"op": "refresh", "step": 2}, {"op": "review", "ids": ["b"], "losses": [0.5], "step": 3},
            {"op": "query", "step": 4},
            {"op": "unit", "time_unit": 3.0, "step": 5}, {"op": "remove", "ids": ["a"]}, {"op": "query", "step": 9}],
}  # fmt: skip


def read_simulation(folder: Path) -> None:
    try:
        value = parse_json((folder / "trace.json").read_bytes())
    except ValueError as error:
        raise InputError(str(error)) from None
    json.dumps(simulate(value), allow_nan=False)


# ---- buffer, cells, scores, lines -------------------------------------------------------------------------


def worn_buffer(folder: Path) -> dict[str, bytes]:
    buffer = Buffer(BufferConfig(), MemoryModel(time_unit=1.0))
    samples = [Sample(f"a/{k}", "a", f"p{k}", "yes", choices=("yes", "no")) for k in range(3)]
    buffer.admit(
        [*samples, Sample("b/1", "b", "", "x", messages=(("user", "u"), ("assistant", "x")))], 1, {"a/1": 0.5}, 1
    )
    buffer.memory.review(["a/1"], [0.4], 3)
    buffer.save(folder)
    return {name: (folder / name).read_bytes() for name in (SAMPLES_FILE, MEMORY_FILE)}


@st.composite
def buffers(draw: st.DrawFn, whole: dict[str, bytes]) -> dict[str, bytes]:
    """A saved buffer with either file damaged, or tensors of another shape, type or content."""
    from safetensors.numpy import load, save

    act = draw(st.integers(0, 3))
    if act == 0:
        return whole | {SAMPLES_FILE: draw(damaged_bytes(whole[SAMPLES_FILE]))}
    if act == 1:
        return whole | {MEMORY_FILE: draw(damaged_bytes(whole[MEMORY_FILE]))}
    if act == 2:
        return whole | {
            SAMPLES_FILE: draw(
                odd_table(
                    pq.read_table(io.BytesIO(whole[SAMPLES_FILE])).drop_columns(["choices", "references", "messages"])
                )
            )
        }
    tensors = load(whole[MEMORY_FILE])
    name = draw(st.sampled_from(sorted(tensors)))
    old = tensors[name]
    kinds = [np.float64, np.float32, np.int64, np.uint8, np.bool_]
    with np.errstate(all="ignore"):
        new = np.full(draw(st.sampled_from([old.shape, (), (1,), (7,), (4, 4), (0,)])), draw(numbers), dtype=object)
        try:
            new = new.astype(draw(st.sampled_from([old.dtype, *kinds])))
        except (OverflowError, ValueError):
            new = np.zeros(3)
    return whole | {MEMORY_FILE: save(tensors | {name: new})}


def read_buffer(folder: Path) -> None:
    buffer = Buffer.load(folder, BufferConfig(), MemoryModel(time_unit=1.0))
    buffer.memory.set_unit(2.0, 10)
    buffer.memory.refresh(12)
    buffer.memory.log_priorities(12)
    buffer.admit([Sample("new/1", "new", "p", "a")], 13, {}, 2)


CELL = {"format": 1, "label": "x", "row": "r", "seed": 1, "order": 0, "config": {"tasks": []}, "data": {"a": "f"},
        "results": RESULTS, "items": {"a": {"ids": "d", "score": [1.0], "nll": [0.5]}},
        "settings": {}, "strategy": "mssr"}  # fmt: skip
SCORES = {"row": 0, "scores": {"a": {"generated": 0.5, "nll": 1.0, "metric": "exact_match", "truncated": 0}},
          "costs": {"seconds": 1.0, "eval_tokens": 10, "peak_memory_bytes": 100},
          "steps": 3, "truncated": 0}  # fmt: skip
LINES = [{"id": "a/1", "task": "a", "input": "x", "answer": "y", "perplexity": 2.0}]


def read_scores(folder: Path) -> None:
    row = folder / "stages" / "00-base"
    row.mkdir(parents=True, exist_ok=True)
    os.replace(folder / "scores.json", row / "scores.json")
    config = make_config({"tasks": [TASK]}, "test")
    RunDir(folder).collect(config, [{"name": "a", "stage": True, "metric": "exact_match", "skipped": 0}], {})


def read_one_cell(folder: Path) -> None:
    read_cell(folder / "cell.json")


def make_readers(folder: Path) -> dict[str, Reader]:
    """Every reader by name; `folder` is scratch space for what a valid buffer is made of."""
    lines = st.one_of(damaged_value(LINES).map(as_lines), damaged_bytes(as_lines(LINES)))
    texts_in = ("id", "task", "input", "answer")
    readers = [
        Reader("config", one("run.yaml", configs), read_config_and_plan),
        Reader("data", data, read_data),
        Reader("journal", run_files(journal=journals), read_journal_and_report),
        Reader("trace", trace_files(), read_trace),
        Reader("simulate", one("trace.json", damaged_json(SIMULATION)), read_simulation),
        Reader("buffer", buffers(worn_buffer(folder)), read_buffer),
        Reader("results", run_files(results=damaged_json(RESULTS)), read_journal_and_report),
        Reader("cell", one("cell.json", damaged_json(CELL)), read_one_cell),
        Reader("scores", one("scores.json", damaged_json(SCORES)), read_scores),
        Reader("lines", one("lines.jsonl", lines), lambda at: list(read_lines(at / "lines.jsonl", texts_in))),
    ]  # fmt: skip
    return {reader.name: reader for reader in readers}
