"""gem's quadratic program against every active set and its optimality conditions; agem's formula."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from retain.strategies.agem import project_on_one
from retain.strategies.gem import project, solve_dual


def problem(tasks, size, seed, spread=1.0):
    """A gradient and references that lean against it."""
    generator = np.random.default_rng([tasks, size, seed])
    references = generator.normal(size=(tasks, size)) * spread ** generator.normal(size=(tasks, 1))
    return torch.as_tensor(-references.sum(0) + generator.normal(size=size)), torch.as_tensor(references)


def objective(gram, linear, v):
    return 0.5 * v @ gram @ v + linear @ v


def best_of_all_active_sets(gram, linear, margin):
    """The least objective over every choice of variables that sit at the margin."""
    best = np.inf
    for held in product([False, True], repeat=len(linear)):
        held, v = np.array(held), np.full(len(linear), margin)
        if not held.all():
            free = ~held
            right = -linear[free] - gram[np.ix_(free, held)] @ v[held]
            v[free] = np.linalg.lstsq(gram[np.ix_(free, free)], right, rcond=None)[0]
        if (v >= margin - 1e-9).all():
            best = min(best, objective(gram, linear, v))
    return best


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_the_dual_is_the_best_of_all_active_sets(tasks, margin, seed):
    gradient, references = problem(tasks, 8, seed, spread=3.0)
    gram, linear = (references @ references.T).numpy(), (references @ gradient).numpy()
    v = solve_dual(gram, linear, margin)
    assert (v >= margin).all()
    assert objective(gram, linear, v) == pytest.approx(best_of_all_active_sets(gram, linear, margin), rel=1e-9)


@pytest.mark.parametrize(("tasks", "size"), [(1, 3), (4, 50), (19, 300), (20, 10), (6, 2)])
@pytest.mark.parametrize("seed", range(5))
def test_the_projection_fulfils_its_optimality_conditions(tasks, size, seed):
    gradient, references = problem(tasks, size, seed, spread=10.0)
    gram, linear = (references @ references.T).numpy(), (references @ gradient).numpy()
    v = solve_dual(gram, linear)
    slope = gram @ v + linear  # the products of the projected gradient with the references
    scale = np.abs(linear).max()
    assert (
        (v >= 0).all() and (slope >= -1e-8 * scale).all() and np.abs(v * slope).max() <= 1e-7 * scale * max(1, v.max())
    )
    found = project(gradient, references)
    torch.testing.assert_close(references @ found, torch.as_tensor(slope), rtol=1e-6, atol=1e-8 * scale)
    assert found.norm() <= gradient.norm() * (1 + 1e-9), "a projection onto a cone is no longer than what it came from"


def test_one_reference_is_the_closed_form():
    gradient, reference = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])
    expected = gradient - (gradient @ reference) / (reference @ reference) * reference
    torch.testing.assert_close(project(gradient, reference[None]), expected)
    torch.testing.assert_close(project_on_one(gradient, reference), expected)
    torch.testing.assert_close(expected @ reference, torch.tensor(0.0))


def test_a_feasible_gradient_stays_as_it_is():
    gradient, references = torch.tensor([1.0, 1.0]), torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    assert project(gradient, references, margin=3.0) is gradient
    assert project_on_one(gradient, references[1]) is gradient


def test_a_margin_pulls_along_every_reference():
    gradient, references = torch.tensor([-1.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(project(gradient, references, margin=0.5), torch.tensor([0.0, 0.5]))


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        ([[1.0, 0.0], [1.0, 0.0]], [0.0, 3.0]),  # the same twice
        ([[1.0, 0.0], [-1.0, 0.0]], [0.0, 3.0]),  # opposite ones leave what is orthogonal to both
        ([[0.0, 0.0], [1.0, 0.0]], [0.0, 3.0]),  # a task whose gradient vanished
        ([[1.0, 0.0], [0.0, -1.0]], [0.0, 0.0]),  # nothing is left
        ([[1e-20, 0.0], [1e10, 0.0]], [0.0, 3.0]),
    ],
)
def test_degenerate_references(references, expected):
    found = project(torch.tensor([-2.0, 3.0], dtype=torch.float64), torch.tensor(references, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)
