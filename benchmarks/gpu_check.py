"""What needs a GPU or the Hub, run where there is one, as a table: `make gpu-check`, or

    pip install -e '.[test,qlora]'
    python benchmarks/gpu_check.py [--out docs/gpu-check.md]

A check that cannot be run here is skipped with its reason; one that fails is in the table with its error, and the exit
code is 1. Runs train tiny random models, but for those of the Hub.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from families import FAMILIES, WIDE, tiny_family  # noqa: E402
from test_families import SAMPLES, alone  # noqa: E402
from tiny import byte_tokenizer, save_tiny_model, tiny_values  # noqa: E402

from retain.config import load_config, make_config  # noqa: E402
from retain.device import open_model  # noqa: E402
from retain.layouts import choose_layout  # noqa: E402
from retain.losses import sample_losses  # noqa: E402
from retain.model import LanguageModel  # noqa: E402
from retain.run import run  # noqa: E402
from retain.types import InputError  # noqa: E402

HUB = ("HuggingFaceTB/SmolLM2-135M", "openai-community/gpt2", "google-t5/t5-small", "Qwen/Qwen2.5-0.5B-Instruct",
       "google/gemma-2-2b")  # fmt: skip


class Skipped(Exception):
    """Why a check cannot be run here."""


def need_gpu(count: int = 1) -> None:
    """Skip where there are fewer GPUs."""
    if torch.cuda.device_count() < count:
        found = torch.cuda.device_count() or "none"
        raise Skipped(f"needs {'a GPU' if count == 1 else f'{count} GPUs'}; there is {found}")


def need_package(name: str) -> None:
    """Skip where a package is missing."""
    if importlib.util.find_spec(name) is None:
        raise Skipped(f"needs the package {name}")


def tiny_run(name: str = "run", model: str = "auto", **training: object) -> list[float]:
    """A whole tiny run, twice: the second must equal the first. Returns the held-out losses after the last stage."""
    outcomes = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder)
            values = tiny_values(base)
            save_tiny_model(base / "model", tiny_family("qwen3", **WIDE))
            values["training"] |= training
            values["model"] = {"name": values["model"], "dtype": model}
            out = run(make_config(values, name), base, base / "run")
            outcomes.append(json.loads((out / "results.json").read_text())["matrices"]["nll"][-1])
    apart = max(abs(a - b) for a, b in zip(*outcomes, strict=True))
    assert apart < 1e-3, f"two runs differ by {apart:.1e} nats"
    return outcomes[0]


def precision(name: str) -> str:
    """Training in mixed precision ends near training in single precision."""
    need_gpu()
    if name == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise Skipped("this GPU has no bfloat16")
    found, exact = tiny_run(precision=name), tiny_run(precision="float32")
    apart = max(abs(a - b) for a, b in zip(found, exact, strict=True))
    assert apart < 0.3, f"{apart:.3f} nats from float32"
    return f"{apart:.3f} nats from float32"


def weights(name: str) -> str:
    """Weights that are loaded in half precision."""
    need_gpu()
    return f"losses {', '.join(f'{loss:.2f}' for loss in tiny_run(model=name))}"


def full() -> str:
    """Full fine-tuning in the precision that `auto` takes."""
    need_gpu()
    return f"losses {', '.join(f'{loss:.2f}' for loss in tiny_run(method='full', learning_rate=1e-3))}"


def qlora() -> str:
    """Adapters beside weights of four bits."""
    need_gpu()
    need_package("bitsandbytes")
    return f"losses {', '.join(f'{loss:.2f}' for loss in tiny_run(method='qlora'))}"


def families() -> str:
    """The losses of every checked architecture on the GPU, against transformers on the CPU."""
    need_gpu()
    worst = (0.0, "")
    for name in FAMILIES:
        lm, model = LanguageModel(tiny_family(name), byte_tokenizer(), 128), tiny_family(name)
        lm.model.to("cuda")
        choose_layout(lm)
        sequences = [lm.encode(one) for one in SAMPLES]
        expected = torch.stack([alone(model, sequence)[2] for sequence in sequences]).detach()
        apart = ((sample_losses(lm, sequences) - expected).abs() / expected).max().item()
        assert apart < 1e-3, f"{name} ({lm.layout}): {apart:.1e} of the loss"
        worst = max(worst, (apart, name))
    return f"{len(FAMILIES)} families; largest difference {worst[0]:.1e} of the loss ({worst[1]})"


def flash_attention() -> str:
    """Padded rows under FlashAttention 2, against transformers' own attention."""
    need_gpu()
    need_package("flash_attn")
    lm, model = LanguageModel(tiny_family("llama", torch.bfloat16), byte_tokenizer(), 128), tiny_family("llama")
    lm.model.to("cuda").set_attn_implementation("flash_attention_2")
    lm.use_layout("padded")
    sequences = [lm.encode(one) for one in SAMPLES]
    expected = torch.stack([alone(model, sequence)[2] for sequence in sequences]).detach()
    apart = (sample_losses(lm, sequences) - expected).abs().max().item()
    assert apart < 0.3, f"{apart:.3f} nats"
    return f"{apart:.3f} nats from float32"


def hub(name: str) -> str:
    """A model by its Hub name: loaded, and its losses those of transformers."""
    from huggingface_hub import model_info

    try:
        model_info(name, timeout=10)
    except Exception as error:
        raise Skipped(f"the Hub does not give it ({type(error).__name__})") from None
    lm, _ = open_model(make_config({"model": name}, name, need_tasks=False), Path())
    lm.model.eval()
    sequences = [lm.encode(one) for one in SAMPLES]
    with torch.no_grad():
        if lm.is_encoder_decoder:
            return f"layout {lm.layout}; losses {sample_losses(lm, sequences).mean():.3f}"
        found = []
        for sequence in sequences:
            ids, labels = torch.tensor([sequence.ids]), torch.tensor(sequence.labels)
            out = lm.unwrapped(input_ids=ids.to(lm.device), labels=torch.where(labels, ids, -100).to(lm.device))
            found.append(out.loss.float().cpu())
    apart = (sample_losses(lm, sequences) - torch.stack(found)).abs().max().item()
    assert apart < 1e-3, f"{apart:.1e} nats"
    return f"layout {lm.layout}; {apart:.1e} nats apart"


def sharded() -> str:
    """A run whose weights are sharded over two GPUs (FSDP), by `accelerate launch`."""
    need_gpu(2)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "run.yaml").write_text(yaml.safe_dump(tiny_values(base)))
        command = ["accelerate.commands.launch", "--use_fsdp", "--num_processes", "2", "-m", "retain", "run"]
        done = subprocess.run(
            [sys.executable, "-m", *command, str(base / "run.yaml")], capture_output=True, text=True, timeout=900
        )
        if done.returncode == 2:
            raise Skipped(done.stderr.strip().splitlines()[-1][:200])
        assert done.returncode == 0, done.stderr.strip().splitlines()[-1][:200]
        return f"finished, strategy {load_config(base / 'run' / 'config.yaml').strategy}"


CHECKS: dict[str, Callable[[], str]] = {
    "bfloat16 training": lambda: precision("bfloat16"),
    "float16 training": lambda: precision("float16"),
    "bfloat16 weights": lambda: weights("bfloat16"),
    "float16 weights": lambda: weights("float16"),
    "full fine-tuning": full,
    "QLoRA": qlora,
    "losses of every family": families,
    "FlashAttention 2": flash_attention,
    "FSDP, two GPUs": sharded,
    **{f"Hub: {name}": lambda name=name: hub(name) for name in HUB},
}


def checked() -> Iterator[tuple[str, str, str]]:
    """Name, outcome and figure or reason of each check."""
    for name, check in CHECKS.items():
        started = time.perf_counter()
        try:
            yield name, "passed", f"{check()}; {time.perf_counter() - started:.0f} s"
        except Skipped as reason:
            yield name, "skipped", str(reason)
        except (AssertionError, InputError, RuntimeError, ValueError, OSError, ImportError) as error:
            yield name, "FAILED", " ".join(f"{type(error).__name__}: {error}".split())[:200]


def page(rows: list[tuple[str, str, str]]) -> str:
    """The table with what it was made on."""
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    packages = ("retain", "torch", "transformers", "peft", "accelerate")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    done = sum(outcome != "skipped" for _, outcome, _ in rows)
    summary = f"{done} of {len(rows)} were run." if done else "**Nothing of this was run: all of it is unverified.**"
    lines = [f"| {name} | {outcome} | {text.replace('|', '/')} |" for name, outcome, text in rows]
    return "\n".join([
        "# What needs a GPU or the Hub", "",
        "Written by `make gpu-check` and by nothing else.", "",
        f"{summary} GPUs: {', '.join(gpus) or 'none'}; Python {platform.python_version()}, {versions}.", "",
        "| check | outcome | figure, or why not |", "|---|---|---|", *lines, "",
    ])  # fmt: skip


def main() -> int:
    """Run what can be run here and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu-check.md")
    arguments = parser.parse_args()
    rows = []
    for row in checked():
        rows.append(row)
        print("  ".join(row), flush=True)
    arguments.out.write_text(page(rows), encoding="utf-8")
    return int(any(outcome == "FAILED" for _, outcome, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
