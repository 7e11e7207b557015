"""Is the memory model right? Measured losses of the stored samples against predicted strength; parameters that fit."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from retain.assessment import assess, assess_fit
from retain.buffer import SAMPLES_FILE, read_samples
from retain.calibration import forgotten
from retain.data_record import ACCEPTED
from retain.device import open_model
from retain.files import write_json
from retain.history import History, Observation, exposures, follow, read_history, to_histories
from retain.losses import sample_losses
from retain.model import LanguageModel
from retain.reading import read_table
from retain.report.calibration import write_page
from retain.rundir import RunDir, read_hashes
from retain.tasks import load_task
from retain.types import InputError, Sample
from retain.weights import load_weights, weight_files

log = logging.getLogger("retain")
FOLDER = "probes"
CHUNK = 256
PROBE = pa.schema([("id", pa.string()), ("loss", pa.float64())])


def calibrate(run_dir: Path) -> dict[str, Any]:
    """Compare what the memory predicted for each stored sample with what its loss did.

    Writes calibration.json and calibration.html into the run's directory, and what it measured into `probes/`.
    """
    history = read_history(run_dir)
    followed = follow(history)
    probes = probe(history)
    groups = {"unreviewed": followed.unreviewed, "intervals": followed.intervals, "stored": followed.ends}
    changes = {name: [change(one, probes) for one in group] for name, group in groups.items()}
    try:
        found = {"run": run_dir.resolve().name, **assess(groups, changes, history.config.seed)}
    except InputError as error:
        raise InputError(f"{run_dir}: {error}") from None
    write_json(run_dir / "calibration.json", found)
    write_page(run_dir / "calibration.html", found)
    return found


def fit(run_dirs: Sequence[Path]) -> dict[str, Any]:
    """The memory's parameters under which the recorded outcomes of one or several runs are most likely."""
    histories = [read_history(path) for path in run_dirs]
    outcomes, own = [], []
    for history in histories:
        followed, probes = follow(history), probe(history)
        known = [(one, rise) for one in followed.intervals if (rise := change(one, probes)) is not None]
        outcomes.append({(one.id, one.stage): bool(forgotten(rise)) for one, rise in known})
        own += [one.log_strength - one.log_start for one, _ in known]
    try:
        data = to_histories(exposures(histories), outcomes)
        return {
            "runs": [str(path) for path in run_dirs],
            **assess_fit([h.config for h in histories], data, np.array(own)),
        }
    except InputError as error:
        raise InputError(f"{', '.join(map(str, run_dirs))}: {error}") from None


def change(one: Observation, probes: dict[int, dict[str, float]]) -> float | None:
    """Rise of a sample's loss since the stage's start, in nats a token; None where its text is gone."""
    before = probes[one.stage - 1].get(one.id)
    after = one.loss if one.loss == one.loss else probes[one.stage].get(one.id)
    return None if before is None or after is None else after - before


def probe(history: History) -> dict[int, dict[str, float]]:
    """The loss of every stored sample before and after each stage that stored it: by row, by id.

    What was measured stands in `probes/` beside the run, so it is measured once; rows that are there are kept.
    """
    wanted: dict[int, set[str]] = {}
    for stage in history.stages:
        wanted.setdefault(stage.number - 1, set()).update(stage.losses)
        wanted.setdefault(stage.number, set()).update(stage.losses)
    rows = RunDir(history.path).rows()
    found = {row: _read(_file(rows[row]), _weights(rows[row])) for row in wanted}
    missing = {row: sorted(ids - found[row].keys()) for row, ids in wanted.items()}
    if not any(missing.values()):
        return found
    texts = _texts(history, set().union(*missing.values()))
    todo = {row: [texts[one] for one in ids if one in texts] for row, ids in missing.items()}
    if any(todo.values()):
        lm, _ = open_model(history.config, history.path)
        for row, samples in sorted(todo.items()):
            found[row] |= _measure(lm, rows[row], row, samples)
            _write(_file(rows[row]), _weights(rows[row]), found[row])
    return found


def _measure(lm: LanguageModel, folder: Path, row: int, samples: Sequence[Sample]) -> dict[str, float]:
    """The loss of each sample under the weights of one row; row 0 is the untouched model."""
    if not samples:
        return {}
    if row:
        load_weights(lm, folder)
    losses: dict[str, float] = {}
    chunks = range(0, len(samples), CHUNK)
    with nullcontext() if row else lm.base():
        for first in tqdm(chunks, f"probe {folder.name}", unit="batch", delay=2, leave=False, disable=None):
            chunk = samples[first : first + CHUNK]
            values = sample_losses(lm, [lm.encode(sample) for sample in chunk])
            losses |= dict(zip([sample.id for sample in chunk], values.double().tolist(), strict=True))
    log.info("%s: the loss of %d stored samples measured", folder.name, len(samples))
    return losses


def _texts(history: History, ids: set[str]) -> dict[str, Sample]:
    """The stored samples by id, from the buffer, and from the training data for those that left it.

    A text that the model wrote and that left the buffer is gone, and so is one of data that changed since.
    """
    config, path = history.config, history.path
    found = {sample.id: sample for sample in read_samples(path / "buffer" / SAMPLES_FILE)}
    gone = {task for stage in history.stages for one, task in stage.tasks.items() if one in ids - found.keys()}
    prints = {(facts := RunDir(path).scores(row)).get("task"): facts.get("fingerprint") for row in RunDir(path).rows()}
    seed = [config.buffer.seed] if config.buffer.seed and not config.buffer.seed.synthesize else []
    noted = read_hashes(path)
    for spec in [*config.tasks, *seed]:
        if spec.name in gone and spec.train and ACCEPTED not in noted.get(spec.name, {}):
            task = load_task(spec, config, path, config.needs_validation and spec not in seed, needs_test=False)
            if prints.get(spec.name) not in (None, task.fingerprint):
                raise InputError(f"task {spec.name!r}: its data are not those {path} was trained on; restore them")
            found |= {sample.id: sample for sample in task.train}
    if lost := ids - found.keys():
        log.warning("%s: %d samples left the buffer and their texts are gone; they are left out", path, len(lost))
    return found


def _file(row: Path) -> Path:
    return row.parents[1] / FOLDER / f"{row.name}.parquet"


def _weights(row: Path) -> bytes:
    """What tells a row's weights from others: a digest of their files."""
    digest = hashlib.sha256()
    for path in weight_files(row):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest().encode()


def _read(path: Path, weights: bytes) -> dict[str, float]:
    """The losses that were measured under these weights; none where the file is missing or of other weights."""
    try:
        table = read_table(path, hint="delete it to measure again")
    except FileNotFoundError:
        return {}
    if (table.schema.metadata or {}).get(b"weights") != weights or table.schema.names != PROBE.names:
        return {}
    return dict(zip(table["id"].to_pylist(), table["loss"].to_pylist(), strict=True))


def _write(path: Path, weights: bytes, losses: dict[str, float]) -> None:
    path.parent.mkdir(exist_ok=True)
    columns = {"id": list(losses), "loss": list(losses.values())}
    scratch = path.with_name(path.name + ".tmp")
    pq.write_table(pa.table(columns, PROBE.with_metadata({b"weights": weights})), scratch)
    scratch.replace(path)
