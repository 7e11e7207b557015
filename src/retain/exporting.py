"""What a run has for other software: data sets of what its memory keeps, a stage with replay mixed in, an adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retain.adding import read_task
from retain.buffer import Buffer
from retain.config import Config, load_config
from retain.conflicts import retired_tasks, settle_conflicts, stored_tasks
from retain.files import write_json, write_text
from retain.presets import preset_of
from retain.publishing import check_new, copy_adapter
from retain.replayer import Replayer
from retain.rundir import RunDir
from retain.scheduler import plan_stage
from retain.schedules import decided_online
from retain.store import write_lines
from retain.tasks import load_task
from retain.trainer import new_batches
from retain.types import InputError, Sample

FORMS = ("jsonl", "parquet", "llamafactory", "adapter")
ROLES = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
         "system_tag": "system"}  # fmt: skip


def export(run_dir: Path, form: str, out: Path, task: Path | None = None, stage: int | None = None) -> list[Path]:
    """Write a run's samples, or an adapter, into the folder `out`, new or empty; returns the files.

    jsonl, parquet: what the memory keeps, a file a task, and a README.md that makes the folder a data set of the Hub.
    llamafactory: the next stage, of the new `task` with its replay, as a data file and dataset_info.json. What is
    retired (`supersedes`, `valid_until`), and what the new task's data correct (`conflicts`), is left out.
    adapter: that of a stage, the last one by default, with its model card.
    """
    if form not in FORMS:
        raise InputError(f"{form!r} is not a form of export; choose {', '.join(FORMS)}")
    if (form == "llamafactory") != (task is not None):
        raise InputError("--task: names the new task of a llamafactory export, and of that alone")
    if stage is not None and form != "adapter":
        raise InputError("--stage: names the stage of an exported adapter, and of that alone")
    if form == "adapter":
        return copy_adapter(run_dir, stage, out)
    config = load_config(run_dir / "config.yaml", need_tasks=False)
    if not (run_dir / "buffer").is_dir():
        raise InputError(f"{run_dir}: its memory keeps no samples yet, so there is nothing to export")
    buffer = Buffer.load(run_dir / "buffer", config.buffer, config.memory, config.seed)
    retired = retired_tasks(config, RunDir(run_dir).learned())
    buffer.drop([one for one, sample in buffer.samples.items() if sample.task in retired])
    check_new(out)
    if task is not None:
        return _llamafactory(run_dir, config, buffer, task, out)
    return _data_set(buffer, form, out)


def _data_set(buffer: Buffer, form: str, out: Path) -> list[Path]:
    """A file of each task's samples, and the card that names them."""
    (out / "data").mkdir(parents=True)
    files = []
    for task in buffer.tasks:
        rows = [_row(sample) for sample in buffer.samples.values() if sample.task == task]
        path = out / "data" / f"{task}.{form}"
        if form == "jsonl":
            write_lines(path, rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        files.append(path)
    parts = [f"- config_name: {path.stem}\n  data_files: data/{path.name}\n" for path in files]
    write_text(out / "README.md", f"---\nconfigs:\n{''.join(parts)}---\n\nSamples that a run of retain rehearses.\n")
    return [*files, out / "README.md"]


def _row(sample: Sample) -> dict[str, Any]:
    """A sample in a form that `retain run` and TRL read."""
    extra = {name: list(values) for name in ("choices", "references") if (values := getattr(sample, name))}
    if sample.messages:
        return {"messages": _chat(sample), **extra}
    return {"prompt": sample.prompt, "completion": sample.answer, **extra}


def _chat(sample: Sample) -> list[dict[str, str]]:
    turns = sample.messages or (("user", sample.prompt), ("assistant", sample.answer))
    return [{"role": role, "content": content} for role, content in turns]


def _llamafactory(run_dir: Path, config: Config, buffer: Buffer, task: Path, out: Path) -> list[Path]:
    """The mixed stage in the order of its steps, and its entry for LlamaFactory."""
    spec = read_task(task, run_dir)
    loaded, run = load_task(spec, config, run_dir, needs_test=False), RunDir(run_dir)
    asked = config.model_copy(update={"tasks": [*config.tasks, spec]})
    settle_conflicts(buffer, asked, [*stored_tasks(buffer, run.learned()), loaded], lambda kind, **fields: None)
    samples = list(mixed(config, run, buffer, loaded.train))
    name, chat = f"retain_{spec.name}", any(sample.messages for sample in samples)
    if chat:
        rows: list[dict[str, Any]] = [{"messages": _chat(sample)} for sample in samples]
        entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": ROLES}
    else:
        rows = [{"instruction": sample.prompt, "input": "", "output": sample.answer} for sample in samples]
        entry = {"columns": {"prompt": "instruction", "query": "input", "response": "output"}}
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.json", json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    write_json(out / "dataset_info.json", {name: {"file_name": f"{name}.json", **entry}})
    return [out / f"{name}.json", out / "dataset_info.json"]


def mixed(config: Config, run: RunDir, buffer: Buffer, new: list[Sample]) -> Iterable[Sample]:
    """The samples of the next stage step by step: new ones as `retain run` orders them, then those replayed with them.

    Nobody reports losses back, so the draws take each replayed sample to keep the loss it had; the buffer's memory is
    changed by them. Raises InputError for a strategy that does not replay by a plan.
    """
    chosen = preset_of(config.strategy)
    told = decided_online(config.schedule) and config.schedule.kind != "threshold"  # training tells it when
    if not chosen.replay or chosen.source or config.memory.candidates > 1 or told:
        raise InputError(f"strategy {chosen.name!r}: its replay cannot be planned; such as fixed, er and mssr can")
    rows = run.rows()
    last = run.scores(rows[-1])
    first_step = run.steps()
    plan = plan_stage(config, new[0].task, len(new), len(buffer), first_step)
    memory = buffer.memory
    memory.set_unit(plan.time_unit or 1.0, first_step)
    known = dict(zip(memory.ids, memory.to_tensors()["ema_loss"].tolist(), strict=True))
    replayer = Replayer(plan, config, len(rows), first_step, memory, buffer.confidences, last.get("last_event"))
    for step, batch in enumerate(new_batches(new, plan, config.seed, len(rows)), start=1):
        ids = replayer.draw(step)
        yield from batch
        yield from (buffer.samples[one] for one in ids)
        seen = list(dict.fromkeys(ids))
        memory.review(seen, [0.0 if math.isnan(known[one]) else known[one] for one in seen], first_step + step)
