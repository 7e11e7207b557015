"""Maximally interfered retrieval against copied models that take a real step, and what a run replays."""

from __future__ import annotations

import copy
from itertools import chain

import pytest
import torch
from test_run import journal, results, run_tiny
from test_scheduler import make, memory_of, second
from test_strategies import NEW, OLD, OTHER, context, move, naive_loss

import retain.stages
from retain.config import make_config
from retain.replayer import Replayer
from retain.strategies.base import snapshot
from retain.strategies.mir import MostInterfered, interference
from retain.types import InputError, Sample

STORED = [*OLD, *OTHER]
IDS = [sample.id for sample in STORED]


def naive_rises(ctx, new, candidates, rate):
    """Each candidate's loss after a step of PyTorch's own SGD on a copy of the model, less its loss before it."""
    model, lm = copy.deepcopy(ctx.lm.model), ctx.lm
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [naive_loss(model, lm, sample).item() for sample in candidates]
    optimizer = torch.optim.SGD(parameters, lr=rate)
    (sum(naive_loss(model, lm, sample) for sample in new) / len(new)).backward()
    optimizer.step()
    return [naive_loss(model, lm, one).item() - old for one, old in zip(candidates, before, strict=True)]


@pytest.mark.parametrize("rate", [1e-3, 0.5])
def test_interference_is_the_rise_after_a_real_step(rate):
    ctx = context()
    move(ctx.lm)
    for parameter in ctx.lm.parameters():
        parameter.grad = torch.ones_like(parameter)
    weights = snapshot(ctx.lm.model)
    found = interference(ctx, NEW, STORED, rate)
    expected = naive_rises(ctx, NEW, STORED, rate)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-8)
    assert all(torch.equal(weights[name], value) for name, value in snapshot(ctx.lm.model).items())
    assert all((parameter.grad == 1).all() for parameter in ctx.lm.parameters()), "training's gradient stays"
    read = [*STORED, *NEW, *STORED]
    assert ctx.probe_tokens == sum(len(ctx.lm.encode(sample)) for sample in read)


def test_a_small_step_raises_a_loss_by_the_product_of_gradients():
    ctx, rate = context(), 1e-4
    move(ctx.lm)
    found = interference(ctx, NEW, STORED, rate)
    step = ctx.gradient(NEW)
    slopes = [sum((a * b).sum() for a, b in zip(ctx.gradient([one]), step, strict=True)) for one in STORED]
    torch.testing.assert_close(found, -rate * torch.stack(slopes), rtol=1e-2, atol=1e-8)


def test_the_most_interfered_are_taken_whatever_the_order():
    ctx = context()
    move(ctx.lm)
    rises = dict(zip(IDS, naive_rises(ctx, NEW, STORED, 0.1), strict=True))
    ranked = sorted(IDS, key=lambda one: -rises[one])
    choose = MostInterfered(ctx, 0.1)
    assert choose(NEW, IDS, 2) == choose(NEW, IDS[::-1], 2) == ranked[:2]
    assert choose(NEW, IDS, 5) == ranked


# ---- in the replayer --------------------------------------------------------------------------------------


def replayer_of(candidates, stored=40, lambda_0=0.2, choose=None):
    memory = {"candidates": candidates, "priority": "uniform"}
    config = make(kind="fixed", first_interval=5, ratio_form="constant", lambda_0=lambda_0, memory=memory)
    plan, ids = second(40, config), [f"a/{row}" for row in range(stored)]
    return Replayer(plan, config, 2, 10, memory_of(ids, config, 10, plan.time_unit), choose=choose)


@pytest.mark.parametrize(("stored", "offered"), [(40, 15), (12, 12), (6, 6)])
def test_candidates_are_offered_and_the_chosen_are_replayed(stored, offered):
    seen = []

    def choose(new, ids, count):
        seen.append((new, list(ids), count))
        return list(ids)[-count:]

    replayer = replayer_of(3, stored, choose=choose)
    mixed = [replayer.draw(step, NEW) for step in range(1, 8)]
    [(new, ids, count)] = seen
    assert (new, len(ids), len(set(ids)), count) == (NEW, offered, offered, 5)
    assert list(chain(*mixed)) == replayer.drawn[0] == ids[-5:]


def test_there_is_no_choice_where_all_are_replayed_or_nothing_is_new():
    def choose(new, ids, count):
        raise AssertionError

    for replayer, new in [
        (replayer_of(1, choose=choose), NEW),
        (replayer_of(3, stored=4, choose=choose), NEW),
        (replayer_of(3, choose=choose), []),
        (replayer_of(3, lambda_0=0.0, choose=choose), NEW),
        (replayer_of(3), NEW),
    ]:
        drawn = list(chain(*(replayer.draw(step, new) for step in range(1, 8))))
        assert len(drawn) == sum(event.replayed for event in replayer.events)


# ---- in a run ---------------------------------------------------------------------------------------------


def test_a_run_replays_what_its_next_step_harms_and_counts_the_looks(tmp_path, monkeypatch):
    """Each choice of a run, made again from the weights it was made with."""
    taken = []

    class Checked(MostInterfered):
        def __call__(self, new, ids, count):
            chosen = super().__call__(new, ids, count)
            before, rate = self.context.probe_tokens, self.rate
            candidates = [self.context.buffer.samples[one] for one in ids]
            rises = dict(zip(ids, naive_rises(self.context, new, candidates, rate), strict=True))
            assert self.context.probe_tokens == before
            assert sorted(rises[one] for one in chosen) == sorted(rises.values())[-count:]
            tokens = sum(len(self.context.lm.encode(sample)) for sample in [*candidates, *new, *candidates])
            taken.append((len(ids), count, tokens))
            return chosen

    monkeypatch.setattr(retain.stages, "MostInterfered", Checked)
    out = run_tiny(tmp_path, strategy="mir", model={"name": str(tmp_path / "model"), "dtype": "float64"})
    events = [line for line in journal(out, "event") if line["replayed"]]
    assert [count for _, count, _ in taken] == [line["replayed"] for line in events] != []
    assert all(offered == 5 * count for offered, count, _ in taken)
    assert results(out)["costs"]["probe_tokens"] == sum(tokens for _, _, tokens in taken)


def test_training_with_a_guarantee_refuses_what_looks_at_new_samples():
    private = {"privacy": {"dp_sgd": {}}}
    with pytest.raises(InputError, match=r"memory.candidates: candidates are compared .* \(privacy.dp_sgd\)"):
        make_config({**private, "strategy": "mir + ssr"}, "test", need_tasks=False)
    with pytest.raises(InputError, match=r"schedule.kind: loss watches .* use trigger.signal: probe"):
        make_config({**private, "strategy": "loss + ssr"}, "test", need_tasks=False)
    for strategy in ("loss + ssr", "forever + ssr"):
        make_config({**private, "strategy": strategy, "trigger": {"signal": "probe"}}, "test", need_tasks=False)


def test_samples_are_told_apart_by_what_they_lose():
    """A new batch that is a stored sample's opposite harms that one most."""
    ctx = context(stored=[Sample("a", "old", "Say it:\n", "red"), Sample("b", "old", "Count to nine:\n", "zzz")])
    new = [Sample("n", "new", "Say it:\n", "blue")]
    for _ in range(30):
        for parameter, gradient in zip(ctx.lm.parameters(), ctx.gradient([ctx.buffer.samples["a"]]), strict=True):
            parameter.data -= 0.5 * gradient
    assert MostInterfered(ctx, 0.5)(new, ["b", "a"], 1) == ["a"]
