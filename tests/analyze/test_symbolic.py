"""Symbolic graphs against systems whose entropy is known."""

import math

import pytest
import torch

from stepscan.analyze.symbolic import symbol_graph, symbols, topological_entropy
from stepscan.mixers import MIXERS
from stepscan.ops.dynamics_cells import AlmostLinear
from stepscan.train.forcing import free_run

GOLDEN = (1 + math.sqrt(5)) / 2


def tent(slope):
    """z' = 1 - slope |z|, an almost-linear RNN of one unit, which is a ReLU."""
    number = lambda v: torch.tensor([v], dtype=torch.float64)  # noqa: E731
    return AlmostLinear(number(slope), number(-2 * slope)[None], number(1.0), number(0.0)[None], 1)


def orbit(cell, *, rows=20, steps=2000, settle=100):
    torch.manual_seed(0)
    start = torch.rand(rows, cell.sizes[1], dtype=torch.float64) - 0.5
    return free_run(cell, start, steps=steps)[:, settle:]


@pytest.mark.parametrize(("slope", "entropy"), [(1.9999, math.log(2)), (GOLDEN, math.log(GOLDEN))])
def test_topological_entropy_of_tent_maps(slope, entropy):
    cell = tent(slope)
    graph = symbol_graph(cell, orbit(cell))
    assert abs(graph.topological_entropy() / entropy - 1) < 1e-6
    assert graph.entropy_rate() <= graph.topological_entropy() + 1e-3  # counted, of 38,000 steps
    assert len(graph.patterns) == 2
    assert graph.visits.sum() == 20 * 1900


def test_the_golden_tent_never_says_low_twice():
    cell = tent(GOLDEN)
    graph = symbol_graph(cell, orbit(cell))
    low = int((~graph.patterns[:, 0]).nonzero()[0])
    assert graph.moves[low, low] == 0
    assert (graph.moves > 0).sum() == 3


def test_entropy_rate_of_a_fair_coin_and_of_a_cycle():
    cell = tent(1.9999)
    graph = symbol_graph(cell, orbit(cell))
    assert abs(graph.entropy_rate() / math.log(2) - 1) < 0.02
    assert topological_entropy(torch.tensor([[0, 1], [1, 0]]) > 0) == 0
    assert topological_entropy(torch.tensor([[0, 1], [0, 0]]) > 0) == 0


@pytest.mark.parametrize("P", [0, 2, 3])
def test_no_more_symbols_than_two_to_the_p(P):
    torch.manual_seed(P)
    cell = MIXERS["al_rnn"](relu_units=P).build(6).double().cell()
    word, patterns = symbols(cell, torch.randn(20, 100, 6, dtype=torch.float64))
    assert patterns.shape == (2**P, P)
    assert (word.flatten().bincount().diff() <= 0).all()


def test_without_relu_nothing_is_chaotic():
    """Linear: one symbol, no entropy; errors grow with the spectral radius or not at all."""
    torch.manual_seed(0)
    cell = MIXERS["al_rnn"](relu_units=0).build(6).double().cell()
    z = orbit(cell, steps=300)
    graph = symbol_graph(cell, z)
    assert graph.topological_entropy() == graph.entropy_rate() == 0
    jacobians = cell.jacobian(z)
    assert (jacobians == jacobians[0, 0]).all()
    assert z.isfinite().all()  # a bounded orbit: no direction grows
    assert torch.linalg.eigvals(jacobians[0, 0]).abs().max() <= 1 + 1e-6  # drawn in float32
