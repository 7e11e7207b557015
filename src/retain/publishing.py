"""The adapter of a finished stage outside its run: copied with its card, merged into the base model, on the Hub."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from retain.config import load_config
from retain.files import write_json, write_text
from retain.model import LanguageModel, load_model
from retain.modelcard import CARD, Story, model_card, reads
from retain.reading import foreign, read_json
from retain.rundir import RunDir
from retain.types import InputError

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
METHODS = ("cat", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
SPARSE = METHODS[2:]  # they keep a share of each adapter's values
CONVERTER = "convert_hf_to_gguf.py"


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several stages' adapters as one, by PEFT's `add_weighted_adapter`. weights: one a stage, equal ones for none;
    density: the share of values that sparse methods keep."""

    stages: Sequence[int]
    method: str = "cat"
    weights: Sequence[float] = ()
    density: float = 0.5


def check_new(out: Path) -> None:
    """An InputError for a folder that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: {out} is not an empty folder; name a new one")


def adapter_of(run_dir: Path, stage: int | None) -> tuple[int, Path]:
    """The number of a finished stage (the last one by default) and the folder of its adapter. Raises InputError."""
    rows = RunDir(run_dir).rows()
    stage = len(rows) - 1 if stage is None else stage
    if not 0 < stage < len(rows):
        raise InputError(
            f"--stage: {stage} is not a finished stage of {run_dir}; there are 1 to {max(len(rows) - 1, 0)}"
        )
    folder = rows[stage] / "adapter"
    if not folder.is_dir():
        raise InputError(f"{rows[stage]}: keeps no adapter; a run that trains all weights has whole models instead")
    return stage, folder


def card_of(run_dir: Path, stage: int, library: str = "peft") -> str:
    """The model card of a stage's adapter, or of a model that it was merged into."""
    config, run, results = (
        load_config(run_dir / "config.yaml", need_tasks=False),
        RunDir(run_dir),
        run_dir / "results.json",
    )
    rows = run.rows()[: stage + 1]
    if not results.is_file():
        raise InputError(f"{run_dir}: has no results.json; `retain run` with its configuration writes it")
    with foreign(run_dir):
        story = Story(config, read_json(results), [run.scores(row) for row in rows], run_dir)
        return model_card(story, library, reads(rows[-1] / "adapter"))


def copy_adapter(run_dir: Path, stage: int | None, out: Path) -> list[Path]:
    """A stage's adapter in PEFT's format with its card, without a path of this machine; returns the files."""
    check_new(out)
    stage, folder = adapter_of(run_dir, stage)
    config = load_config(run_dir / "config.yaml", need_tasks=False)
    settings, card = read_json(folder / SETTINGS), card_of(run_dir, stage)
    if not isinstance(settings, dict) or not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: is not what a run wrote; restore it, or start anew with --out")
    settings["base_model_name_or_path"] = Story(config, {}, [], run_dir).model or Path(config.model.name).name
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SETTINGS, settings)
    shutil.copyfile(folder / WEIGHTS, out / WEIGHTS)
    write_text(out / CARD, card)
    return [out / name for name in (SETTINGS, WEIGHTS, CARD)]


def push(run_dir: Path, repo: str, stage: int | None = None, private: bool = True) -> str:
    """A stage's adapter with its card to a repository of the Hub, made where there is none; returns its address."""
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as scratch:
        copy_adapter(run_dir, stage, Path(scratch) / "adapter")
        try:
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            found = api.upload_folder(repo_id=repo, folder_path=Path(scratch) / "adapter",
                                      commit_message="Adapter trained by retain")  # fmt: skip
        except Exception as error:  # no token, no network, no right to write there, no such name
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{repo!r} cannot be pushed to ({type(error).__name__}: {reason}); `hf auth login` sets a "
                             "token, and a name is owner/name") from None  # fmt: skip
    return str(getattr(found, "repo_url", None) or f"https://huggingface.co/{repo}")


def merge(
    run_dir: Path,
    out: Path,
    stage: int | None = None,
    mixture: Mixture | None = None,
    dtype: str | None = None,
) -> None:
    """The base model with a stage's adapter in its weights, as safetensors with tokenizer and card, in `out`.

    mixture: several stages' adapters instead of one. dtype: what the weights are saved in, that of the run by default.
    The folder is there whole, each of its tensors read back, or not at all. Raises InputError.
    """
    check_new(out)
    if mixture:
        _check_mixture(mixture)
    config = load_config(run_dir / "config.yaml", need_tasks=False)
    stages = list(mixture.stages) if mixture else [stage]
    adapters = [adapter_of(run_dir, one) for one in stages]
    card = card_of(run_dir, adapters[-1][0], "transformers")
    lm = load_model(config, run_dir)
    if mixture:
        _mix(lm, [folder for _, folder in adapters], mixture, config.seed)
    else:
        lm.load_adapter(adapters[0][1])
    model = _merged(lm)
    if dtype:
        model.to(getattr(torch, dtype))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / out.name
        model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        for name in ("config.json", "tokenizer_config.json"):
            _forget_path(folder / name)
        write_text(folder / CARD, card)
        check_saved(folder, model)
        if out.is_dir():
            out.rmdir()
        os.replace(folder, out)


def _check_mixture(mixture: Mixture) -> None:
    stages, weights = len(mixture.stages), len(mixture.weights)
    problems = {
        f"--method: {mixture.method!r}; choose {', '.join(METHODS)}": mixture.method not in METHODS,
        f"--weights: {weights} for {stages} stages; give one each": weights not in (0, stages),
        f"--density: {mixture.density:g}; a share above 0 and at most 1": not 0 < mixture.density <= 1,
    }
    if wrong := [text for text, is_wrong in problems.items() if is_wrong]:
        raise InputError("; ".join(wrong))


def _mix(lm: LanguageModel, folders: Sequence[Path], mixture: Mixture, seed: int) -> None:
    """Several adapters as one, which then acts alone."""
    weights, names = list(mixture.weights) or [1 / len(folders)] * len(folders), []
    for number, folder in enumerate(folders):
        lm.load_adapter(folder)
        found = lm.adapter_weights()
        names.append(f"stage{number}")
        lm.put_adapter(names[-1], next(len(one) for key, one in found.items() if "lora_A" in key), found)
    density = mixture.density if mixture.method in SPARSE else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dare drops values at random
        try:
            lm.model.add_weighted_adapter(names, weights, "mixed", combination_type=mixture.method, density=density)
        except ValueError as error:
            raise InputError(f"--method: {mixture.method} cannot mix these adapters ({error}); cat can") from None
    lm.model.set_adapter("mixed")


def _merged(lm: LanguageModel) -> torch.nn.Module:
    """The plain model with its active adapter in the weights."""
    if getattr(lm.unwrapped, "is_quantized", False):
        raise InputError("model: its weights are quantized, so an adapter cannot be merged into them without loss")
    try:
        model = lm.model.merge_and_unload()
    except (AttributeError, NotImplementedError) as error:
        raise InputError(f"this adapter cannot be merged ({type(error).__name__}: {error})") from None
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise InputError("the merged weights are not finite; take an earlier --stage")
    return model


def _forget_path(path: Path) -> None:
    """Take out of a settings file where the model was loaded from."""
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        for name in ("_name_or_path", "name_or_path"):
            found.pop(name, None)
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_saved(folder: Path, model: torch.nn.Module) -> None:
    """An OSError where the safetensors of a folder are not the model's weights, read back."""
    state, values = model.state_dict(), 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                tensor = file.get_tensor(name)
                values += tensor.numel()
                if name in state and not torch.equal(tensor, state[name].cpu()):
                    raise OSError(errno.EIO, f"{name} was not written as it is", str(path))
    shared = {tensor.data_ptr(): tensor.numel() for tensor in state.values()}  # tied weights are written once
    if values != sum(shared.values()):
        raise OSError(errno.EIO, f"{values} of {sum(shared.values())} values were written", str(folder))


def find_converter(converter: str | None) -> Path:
    """llama.cpp's converter: the file given, or the one on PATH. Raises InputError."""
    found = converter or shutil.which(CONVERTER)
    if found is None or not Path(found).is_file():
        what = f"{converter!r} is no file" if converter else f"no {CONVERTER} on PATH"
        raise InputError(f"--converter: {what}; it comes with llama.cpp, name its {CONVERTER}")
    return Path(found)


def write_gguf(folder: Path, target: Path, converter: Path) -> None:
    """A merged model as one GGUF file by llama.cpp's converter, there whole or not at all. RuntimeError if it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / target.name
        program = [sys.executable] if converter.suffix == ".py" else []
        done = subprocess.run([*program, str(converter), str(folder), "--outfile", str(part)], text=True,
                              capture_output=True, errors="replace")  # fmt: skip
        if done.returncode or not part.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1][:300]
            raise RuntimeError(
                f"{converter.name} failed with {done.returncode}: {said}; the merged model stands in {folder}"
            )
        os.replace(part, target)
