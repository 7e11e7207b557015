"""lwf, der++, gem, o-lora, osf and the Fisher information on a tiny model, against naive reimplementations."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from test_losses import language_model
from test_run import adapter, results, run_tiny, same_tensors
from tiny import tiny_llama, tiny_values

from retain import Learner
from retain.buffer import Buffer
from retain.config import make_config
from retain.losses import label_logits, make_rows, row_losses, token_losses
from retain.model import ADAPTER
from retain.presets import REGULARIZERS, AGemOptions, DerOptions, GemOptions, LwfOptions, preset_of
from retain.run import run
from retain.sections import BufferConfig, MemoryConfig
from retain.strategies import STRATEGIES, build
from retain.strategies.agem import AGem
from retain.strategies.base import Batch, Context, holding, snapshot, trained
from retain.strategies.composition import Combined
from retain.strategies.der import DarkExperienceReplay
from retain.strategies.ewc import diagonal_fisher
from retain.strategies.gem import Gem, flat
from retain.strategies.lwf import LearningWithoutForgetting, distillation
from retain.tasks import load_tasks
from retain.types import InputError, Sample, Task

OLD = [Sample(f"old/{k}", "old", f"Say {'x' * k}:\n", word) for k, word in enumerate(["red", "blue", "a"])]
OTHER = [Sample(f"other/{k}", "other", f"Name {'y' * k}:\n", word) for k, word in enumerate(["one", "two"])]
NEW = [Sample(f"new/{k}", "new", f"Tell {'z' * k}:\n", word) for k, word in enumerate(["big", "small"])]
TASK = Task("new", train=NEW)
CONFIG = make_config({}, "test", need_tasks=False)


def context(stage=2, stored=(*OLD, *OTHER), capacity=64):
    lm = language_model(torch.float64)
    lm.use_layout("tree")
    buffer = Buffer(BufferConfig(capacity=capacity), MemoryConfig())
    buffer.admit(list(stored), 0, {}, stage=1)
    return Context(lm, buffer, Accelerator(), seed=3, stage=stage)


def naive_logits(model, lm, sample):
    """Logits and tokens of a sample's answer, from a forward pass of its own."""
    sequence = lm.encode(sample)
    logits = model(input_ids=torch.tensor([sequence.ids])).logits[0]
    places = [k for k, label in enumerate(sequence.labels) if label]
    return logits[[k - 1 for k in places]], torch.tensor([sequence.ids[k] for k in places])


def naive_loss(model, lm, sample):
    return F.cross_entropy(*naive_logits(model, lm, sample))


def move(lm, seed=11, std=0.05):
    """Weights somewhere else, as training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def losses_under(strategy, lm, samples):
    """Each sample's loss, with gradient, in rows as training makes them."""
    total = [None] * len(samples)
    for row in make_rows(lm, [lm.encode(sample) for sample in samples], max_members=3):
        logits = label_logits(lm, row)
        base = row_losses(token_losses(logits, row), row)
        batch = Batch([samples[k] for k in row.members], row, torch.ones_like(base))
        each = strategy.losses(lm.model, batch, base, logits)
        for member, loss in zip(row.members, each, strict=True):
            total[member] = loss
    return torch.stack(total)


def same_gradients(lm, one, two):
    expected = torch.autograd.grad(two, lm.parameters())
    for found, value in zip(torch.autograd.grad(one, lm.parameters()), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-9)  # rotary embeddings are float32


# ---- what a method may use --------------------------------------------------------------------------------


def test_the_gradient_of_a_mean_loss_and_its_cost():
    ctx = context()
    lm = ctx.lm
    for parameter in lm.parameters():
        parameter.grad = torch.ones_like(parameter)
    found = ctx.gradient(OLD)
    assert all((parameter.grad == 1).all() for parameter in lm.parameters())
    assert ctx.probe_tokens == sum(len(lm.encode(sample)) for sample in OLD)
    mean = sum(naive_loss(lm.model, lm, sample) for sample in OLD) / len(OLD)
    for one, two in zip(found, torch.autograd.grad(mean, lm.parameters()), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-9)  # rotary embeddings are float32


def test_a_draw_depends_on_the_step_and_not_on_the_order():
    ctx, samples = context(), [Sample(f"s/{k}", "s", "", "") for k in range(30)]
    drawn = ctx.draw(samples, 5, step=1)
    assert {s.id for s in drawn} == {s.id for s in ctx.draw(samples[::-1], 5, step=1)}
    assert drawn != ctx.draw(samples, 5, step=2) and len(ctx.draw(samples, 99, step=1)) == 30


def test_other_weights_leave_the_graph_as_it_is():
    lm = context().lm
    old, sample = snapshot(lm.model), OLD[1]
    frozen = copy.deepcopy(lm.model)
    move(lm)
    now = snapshot(lm.model)
    expected = torch.autograd.grad(naive_loss(lm.model, lm, sample), lm.parameters())
    loss = naive_loss(lm.model, lm, sample)
    with pytest.raises(ZeroDivisionError), holding(lm.model, old), torch.no_grad():
        torch.testing.assert_close(naive_loss(lm.model, lm, sample), naive_loss(frozen, lm, sample))
        raise ZeroDivisionError
    assert all(torch.equal(value, now[name]) for name, value in trained(lm.model).items())
    assert all(map(torch.equal, torch.autograd.grad(loss, lm.parameters()), expected))


# ---- the Fisher information -------------------------------------------------------------------------------


def test_the_empirical_fisher_is_a_double_loop_of_squared_gradients():
    ctx = context()
    lm, found = ctx.lm, diagonal_fisher(ctx, OLD, "data")
    for name, parameter in trained(lm.model).items():
        expected = torch.zeros_like(parameter)
        for sample in OLD:
            lm.model.zero_grad()
            naive_loss(lm.model, lm, sample).backward()
            expected += parameter.grad**2 / len(OLD)
        torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=1e-15)
    assert ctx.probe_tokens == sum(len(lm.encode(sample)) for sample in OLD)


def test_the_fisher_with_the_models_own_labels_is_the_expectation_over_them():
    """E (Σ_t g_t / T)² = Σ_t E g_t² / T² since E g_t = 0 and the tokens are drawn independently."""
    ctx = context()
    sample, draws = OLD[2], 600
    logits, targets = naive_logits(ctx.lm.model, ctx.lm, sample)
    logp = logits.log_softmax(-1)
    exact = [torch.zeros_like(parameter) for parameter in ctx.lm.parameters()]
    for t in range(len(targets)):
        for token in range(logits.shape[-1]):
            gradients = torch.autograd.grad(logp[t, token], ctx.lm.parameters(), retain_graph=True)
            for total, gradient in zip(exact, gradients, strict=True):
                total += logp[t, token].exp().detach() * gradient**2 / len(targets) ** 2
    found = flat(list(diagonal_fisher(ctx, [sample] * draws, "model").values()))
    assert (found - flat(exact)).norm() / flat(exact).norm() < 0.1
    assert float(found.sum() / flat(exact).sum()) == pytest.approx(1, abs=0.05)
    again = diagonal_fisher(context(), [sample] * 2, "model")
    assert all(map(torch.equal, again.values(), diagonal_fisher(context(), [sample] * 2, "model").values()))


# ---- lwf --------------------------------------------------------------------------------------------------


def test_distillation_is_the_divergence_at_a_temperature():
    old, new = (torch.randn(5, 7, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (1, 2))
    teacher, student = (torch.distributions.Categorical(logits=z / 3.0) for z in (old, new))
    expected = 9.0 * torch.distributions.kl_divergence(teacher, student)
    torch.testing.assert_close(distillation(old, new, 3.0), expected)
    torch.testing.assert_close(distillation(old, old, 3.0), torch.zeros(5, dtype=torch.float64))


def test_lwf_holds_new_inputs_to_the_old_answers():
    ctx = context()
    lm, samples = ctx.lm, [*NEW, *OLD]
    strategy = LearningWithoutForgetting(LwfOptions(weight=3.0, temperature=2.0), ctx)
    strategy.begin_task(lm.model, TASK)
    same = losses_under(strategy, lm, samples)
    expected = torch.stack([naive_loss(lm.model, lm, sample) for sample in samples])
    torch.testing.assert_close(same, expected)  # nothing has moved yet

    old = copy.deepcopy(lm.model)
    move(lm)
    naive = []
    for sample in samples:
        logits, targets = naive_logits(lm.model, lm, sample)
        term = distillation(naive_logits(old, lm, sample)[0].detach(), logits, 2.0).mean()
        naive.append(F.cross_entropy(logits, targets) + (3.0 * term if sample.task == "new" else 0.0))
    found = losses_under(strategy, lm, samples)
    torch.testing.assert_close(found, torch.stack(naive), rtol=1e-8, atol=1e-10)
    same_gradients(lm, found.sum(), torch.stack(naive).sum())
    assert lm.model.training


def test_lwf_has_no_teacher_in_the_first_stage():
    ctx = context(stage=1)
    strategy = LearningWithoutForgetting(LwfOptions(weight=3.0), ctx)
    strategy.begin_task(ctx.lm.model, TASK)
    move(ctx.lm)
    expected = torch.stack([naive_loss(ctx.lm.model, ctx.lm, sample) for sample in NEW])
    torch.testing.assert_close(losses_under(strategy, ctx.lm, NEW), expected)
    assert ctx.probe_tokens == 0


# ---- der++ ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [4, 1000])
def test_der_against_a_naive_loop(top_k):
    ctx = context()
    lm, samples = ctx.lm, [NEW[0], *OLD, OTHER[1], NEW[1]]
    strategy = DarkExperienceReplay(DerOptions(alpha=0.3, beta=0.6, top_k=top_k), ctx)
    strategy.begin_task(lm.model, TASK)
    stored = {s.id: naive_logits(lm.model, lm, s)[0].detach() for s in (*OLD, *OTHER)}
    move(lm)
    naive = []
    for sample in samples:
        logits, targets = naive_logits(lm.model, lm, sample)
        loss = F.cross_entropy(logits, targets)
        if sample.id in stored:
            values, tokens = stored[sample.id].topk(min(top_k, 258))
            loss = 0.6 * loss + 0.3 * ((logits.gather(-1, tokens) - values) ** 2).mean()
        naive.append(loss)
    found = losses_under(strategy, lm, samples)
    torch.testing.assert_close(found, torch.stack(naive), rtol=1e-8, atol=1e-10)
    same_gradients(lm, found.sum(), torch.stack(naive).sum())


def test_der_keeps_the_logits_of_entry_and_forgets_who_left():
    ctx = context(stored=OLD)
    first = DarkExperienceReplay(DerOptions(top_k=8), ctx)
    first.begin_task(ctx.lm.model, TASK)
    tensors = first.state_dict()
    assert {name: len(tensor) for name, tensor in tensors.items()}["counts"] == 3
    assert tensors["values"].shape == tensors["tokens"].shape == (sum(tensors["counts"]), 8)

    move(ctx.lm)
    ctx.buffer.admit(OTHER, 5, {}, stage=2)
    del ctx.buffer.samples[OLD[0].id]
    before = ctx.probe_tokens
    second = DarkExperienceReplay(DerOptions(top_k=8), ctx)
    second.load_state_dict(tensors)
    second.begin_task(ctx.lm.model, TASK)
    assert len(second.stored) == 4
    kept = [key for key in first.stored if key in second.stored]
    assert len(kept) == 2 and all(torch.equal(first.stored[key][0], second.stored[key][0]) for key in kept)
    assert ctx.probe_tokens - before == sum(len(ctx.lm.encode(sample)) for sample in OTHER), "only those that came"


def test_der_without_anything_stored_is_plain():
    ctx = context(stored=[])
    strategy = DarkExperienceReplay(DerOptions(), ctx)
    strategy.begin_task(ctx.lm.model, TASK)
    assert strategy.state_dict() == {}
    strategy.load_state_dict({})
    expected = torch.stack([naive_loss(ctx.lm.model, ctx.lm, sample) for sample in NEW])
    torch.testing.assert_close(losses_under(strategy, ctx.lm, NEW), expected)


# ---- gem and agem -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), [(Gem, GemOptions(margin=0.0, samples=2)), (AGem, AGemOptions())])
def test_no_past_loss_rises_to_first_order(kind, options):
    ctx = context()
    lm = ctx.lm
    strategy = kind(options, ctx)
    strategy.begin_task(lm.model, TASK)
    against = [-a - b for a, b in zip(ctx.gradient(OLD), ctx.gradient(OTHER), strict=True)]
    for parameter, gradient in zip(lm.parameters(), against, strict=True):
        parameter.grad = gradient
    strategy.adjust_gradients(lm.model)
    found = flat([parameter.grad for parameter in lm.parameters()])
    if kind is AGem:
        references = [flat(ctx.gradient([*OLD, *OTHER]))]
    else:
        references = [flat(ctx.gradient(ctx.draw(past, 2, step=1))) for past in (OLD, OTHER)]
    for reference in references:
        assert flat(against) @ reference < 0
        assert found @ reference > -1e-9 * reference.norm() * flat(against).norm()


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_an_empty_buffer_leaves_the_gradient(name):
    ctx = context(stored=[])
    strategy = build(preset_of(name), ctx, CONFIG)
    strategy.begin_task(ctx.lm.model, TASK)
    for parameter in ctx.lm.parameters():
        parameter.grad = torch.ones_like(parameter)
    strategy.adjust_gradients(ctx.lm.model)
    assert all((parameter.grad == 1).all() for parameter in ctx.lm.parameters()) and ctx.probe_tokens == 0


def test_gem_keeps_samples_and_replays_none(tmp_path):
    out = run_tiny(tmp_path, strategy="gem")
    assert (out / "buffer" / "samples.parquet").is_file()
    costs = results(out)["costs"]
    assert costs["replayed_samples"] == 0 and costs["probe_tokens"] > costs["train_tokens"]


# ---- o-lora and osf ---------------------------------------------------------------------------------------


def test_o_lora_stacks_the_stages_into_one_ordinary_adapter(tmp_path):
    out = run_tiny(tmp_path, strategy={"name": "o-lora", "weight": 0.0})
    stages = [adapter(out, stage) for stage in (1, 2, 3)]
    for stage, weights in enumerate(stages, start=1):
        for name, value in weights.items():
            side = "lora_B" in name
            assert value.shape[side] == 8 * stage
            for past in stages[: stage - 1]:
                assert np.array_equal(value.take(range(past[name].shape[side]), axis=int(side)), past[name])
    config = peft.PeftConfig.from_pretrained(out / "stages/03-shape/adapter")
    assert (config.r, config.lora_alpha) == (24, 48.0)
    model = peft.PeftModel.from_pretrained(tiny_llama(), out / "stages/03-shape/adapter")
    weight = "base_model.model.model.layers.1.self_attn.q_proj"
    change = model.get_submodule(weight).get_delta_weight("default")
    a, b = (torch.as_tensor(stages[-1][f"{weight}.lora_{side}.weight"]) for side in "AB")
    torch.testing.assert_close(change, 2.0 * b @ a)


def overlap(weights):
    """Σ |A_past A_newᵀ| over layers, for the last stage of three."""
    return sum(np.abs(a[:16] @ a[16:].T).sum() for name, a in weights.items() if "lora_A" in name)


def test_o_lora_turns_the_new_space_away_from_the_old(tmp_path):
    free, held = (
        run_tiny(tmp_path, tmp_path / f"w{weight}", strategy={"name": "o-lora", "weight": weight})
        for weight in (0.0, 10.0)
    )
    assert overlap(adapter(held)) < 0.8 * overlap(adapter(free))


def test_o_lora_gradient_is_that_of_its_penalty():
    ctx = context(stage=3)
    lm = ctx.lm
    strategy = build(preset_of({"name": "o-lora", "weight": 0.7, "l2": 0.2}), ctx, CONFIG)
    lm.put_adapter(ADAPTER, 8, seed=5)
    lm.activate()
    before = naive_logits(lm.model, lm, NEW[0])[0].detach()
    strategy.begin_task(lm.model, TASK)
    torch.testing.assert_close(naive_logits(lm.model, lm, NEW[0])[0], before)
    move(lm)
    layers = [layer.lora_A for layer in lm.model.modules() if "past" in getattr(layer, "lora_A", {})]
    pairs = [(layer["default"].weight, layer["past"].weight) for layer in layers]
    assert len(pairs) == 4 and all(new.shape[0] == past.shape[0] // 2 == 4 for new, past in pairs)
    penalty = 0.7 * sum((new @ past.T).abs().sum() for new, past in pairs)
    penalty = penalty + 0.5 * 0.2 * sum((p**2).sum() for p in lm.parameters())
    expected = torch.autograd.grad(penalty, lm.parameters())
    for parameter in lm.parameters():
        parameter.grad = torch.zeros_like(parameter)
    strategy.adjust_gradients(lm.model)
    for parameter, value in zip(lm.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, value)
    moved = naive_logits(lm.model, lm, NEW[0])[0].detach()
    strategy.end_task(lm.model, TASK)
    torch.testing.assert_close(naive_logits(lm.model, lm, NEW[0])[0], moved)
    assert list(lm.model.peft_config) == [ADAPTER] and lm.model.peft_config[ADAPTER].r == 12


@pytest.mark.parametrize("name", ["o-lora", "osf"])
def test_a_stages_folder_reloads_with_peft_alone(name, tmp_path):
    values = {"training": {"max_length": 128, "learning_rate": 1e-2}}
    run = run_tiny(tmp_path, strategy=name)
    learner = Learner(str(tmp_path / "model"), name, tmp_path / "other", **values)
    learner.lm.load_adapter(run / "stages/03-shape/adapter")
    learner.lm.use_layout("padded")
    mine = naive_logits(learner.lm.model.eval(), learner.lm, OLD[1])[0]
    model = peft.PeftModel.from_pretrained(tiny_llama(), run / "stages/03-shape/adapter").eval()
    torch.testing.assert_close(naive_logits(model, learner.lm, OLD[1])[0], mine, rtol=1e-4, atol=1e-5)
    with learner.lm.base():
        torch.testing.assert_close(
            naive_logits(learner.lm.model, learner.lm, OLD[1])[0], naive_logits(tiny_llama(), learner.lm, OLD[1])[0]
        )
    learner.lm.load_adapter(run / "stages/01-color/adapter")  # of another rank, for o-lora
    assert not torch.allclose(naive_logits(learner.lm.model, learner.lm, OLD[1])[0], mine)


def test_osf_keeps_the_largest_directions(tmp_path):
    training = {"learning_rate": 1e-3, "batch_size": 4, "max_length": 128, "epochs": 4}
    out = run_tiny(tmp_path, strategy="osf", training=training)
    model = peft.PeftModel.from_pretrained(tiny_llama(), out / "stages/03-shape/adapter").get_base_model()
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"):
        layer = model.get_submodule(name)
        u, s, v = torch.linalg.svd(layer.base_layer.weight.detach(), full_matrices=False)
        change, top = layer.get_delta_weight("default").detach(), len(s) // 2
        assert change.norm() > 0.1 * layer.base_layer.weight.norm()
        assert (u[:, :top].T @ change @ v[:top].T).norm() < 0.01 * change.norm()


def test_the_learner_gives_what_the_run_gives_where_ranks_grow(tmp_path):
    values = tiny_values(tmp_path, strategy="o-lora")
    out = run(make_config(values, "test"), tmp_path, tmp_path / "run")
    sections = {key: values[key] for key in ("model", "strategy", "training", "schedule", "evaluation")}
    learner = Learner(out=tmp_path / "other", **sections)
    for task in load_tasks(make_config(values, "test"), tmp_path):
        learner.learn(task)  # scores earlier stages again, with their own adapters
    assert same_tensors(adapter(tmp_path / "other"), adapter(out))
    np.testing.assert_allclose(learner.evaluate()["matrices"]["nll"], results(out)["matrices"]["nll"], rtol=1e-6)


# ---- state ------------------------------------------------------------------------------------------------


def test_every_name_has_a_class_in_the_order_of_the_table():
    assert list(STRATEGIES) == list(REGULARIZERS)


@pytest.mark.parametrize("damage", ["missing", "broken", "torn"])
def test_a_strategy_without_its_state(damage, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Combined, "load", stop)  # the second stage begins with it
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path, strategy="si + der++")
    monkeypatch.undo()
    state = tmp_path / "run/stages/01-color/strategy.safetensors"
    if damage == "missing":
        state.unlink()
    elif damage == "broken":
        state.write_bytes(b"nonsense")
    else:
        tensors = {"der++/values": torch.zeros(3, 2)}
        save_file(tensors, state)
    with pytest.raises(InputError, match=r"01-color/strategy.safetensors: missing or broken .*start anew with --out"):
        run_tiny(tmp_path, strategy="si + der++")


SHAPES = {
    "another shape": lambda tensors, name: tensors | {name: tensors[name][..., :1].clone()},
    "a name missing": lambda tensors, name: {key: value for key, value in tensors.items() if key != name},
    "another's name": lambda tensors, name: tensors | {name.replace("layers.0", "layers.9"): tensors[name].clone()},
    "none of it": lambda tensors, name: {"other/x": torch.zeros(1)},
}
STATES = ("si/precision", "ewc/precision", "ewc/center")


@pytest.fixture(scope="module")
def before_stage_two(tmp_path_factory):
    """A run of two tasks that stopped as its second stage began."""
    folder = tmp_path_factory.mktemp("state")
    values = tiny_values(folder, strategy="si + ewc", training={"batch_size": 8, "max_length": 128})
    values["tasks"].pop()
    config = make_config(values, "test")
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Combined, "load", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
        run(config, folder)
    return folder, config


def refuses(before, tmp_path, change, reason):
    """A run goes on after its state was changed, and says what is wrong with it."""
    folder, config = before
    out = shutil.copytree(folder / "run", folder / tmp_path.name)  # its paths are relative
    state = out / "stages/01-color/strategy.safetensors"
    save_file(change(load_file(state)), state)
    with pytest.raises(InputError, match=rf"01-color/strategy.safetensors: missing or broken .*{reason}.*with --out"):
        run(config, folder, out)


@pytest.mark.parametrize("damage", SHAPES)
@pytest.mark.parametrize("part", STATES)
def test_a_state_of_other_shapes_or_names_is_said(part, damage, before_stage_two, tmp_path):
    def change(tensors):
        return SHAPES[damage](tensors, next(name for name in tensors if name.startswith(part) and "lora_A" in name))

    refuses(before_stage_two, tmp_path, change, "")


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("values", lambda v: v[:, :3].clone(), "values and tokens of the shapes"),
        ("tokens", lambda v: v + 1000, "none of the model's 258"),
        ("counts", lambda v: v + torch.tensor([1, 0, -1]), "which has others"),
        ("hashes", lambda v: v[:-1].clone(), ""),
        ("counts", lambda v: v + 1, ""),
    ],
)
def test_logits_that_fit_no_sample_are_said(part, change, reason, tmp_path):
    ctx = context(stored=OLD)
    first, second = (Combined({"der++": DarkExperienceReplay(DerOptions(top_k=8), ctx)}) for _ in range(2))
    first.begin_task(ctx.lm.model, TASK)
    first.save(tmp_path)
    state = tmp_path / "strategy.safetensors"
    tensors = load_file(state)
    save_file(tensors | {f"der++/{part}": change(tensors[f"der++/{part}"])}, state)
    with pytest.raises(InputError, match=rf"strategy.safetensors: missing or broken .*{reason}.*with --out"):
        second.load(tmp_path, ctx.lm.device)
        second.begin_task(ctx.lm.model, TASK)
        losses_under(second, ctx.lm, OLD)


def test_plain_strategies_write_no_state(tmp_path):
    out = run_tiny(tmp_path, strategy="mssr")
    assert not list(out.rglob("strategy.safetensors"))


def test_what_a_regularizer_reads_is_counted(tmp_path):
    out = run_tiny(tmp_path, strategy={"name": "ewc", "samples": 5})
    lengths = results(out)["costs"]["train_tokens"] / 72
    assert results(out)["costs"]["probe_tokens"] == pytest.approx(15 * lengths, rel=0.1)
    names = load_file(out / "stages/03-shape/strategy.safetensors")
    assert len(names) == 16 and all(name.startswith(("ewc/precision/base", "ewc/center/base")) for name in names)
